"""SAM-2.7B at full size, with random weights: written, loaded by AutoModel, used, saved, loaded again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]

WRITE = """
import sys, torch, sam_alm
from configuration_sam import SamConfig
from modeling_sam import SamForConditionalGeneration
torch.manual_seed(0)
config = SamConfig.from_preset("2.7b")
with torch.device("cuda"):
    model = SamForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
for name, parameter in model.named_parameters():
    if name.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias"):
        parameter.data = parameter.data.float()
model.save_pretrained(sys.argv[1], max_shard_size="2GB")
"""

USE = """
import json, resource, sys, time, torch, sam_alm
from transformers import AutoModel
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
report = {"host_gib_before": peak()}
start = time.perf_counter()
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map="cuda")
torch.cuda.synchronize()
report["load_seconds"] = time.perf_counter() - start
report["host_gib_after_load"] = peak()
report["gpu_gib"] = torch.cuda.memory_allocated() / 2**30
report["parameters"] = sum(p.numel() for p in model.parameters())
types = {str(p.dtype) for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias")}
assert types == {"torch.float32"}, types
assert all(p.is_cuda for p in model.parameters())
torch.manual_seed(1)
features = torch.randn(1, 1024, 128, device="cuda")
ids = torch.tensor([[50277] * 64 + [4118, 41959, 27, 187]], device="cuda")
inputs = {"input_ids": ids, "input_features": features, "attention_mask": torch.ones_like(ids)}
model.generate(**inputs, max_new_tokens=4)
torch.cuda.synchronize()
start = time.perf_counter()
tokens = model.generate(**inputs, max_new_tokens=32, min_new_tokens=32)
torch.cuda.synchronize()
report["generate_seconds_32_tokens"] = time.perf_counter() - start
start = time.perf_counter()
model.save_pretrained(sys.argv[2], max_shard_size="2GB")
report["save_seconds"] = time.perf_counter() - start
report["host_gib_peak"] = peak()
# in one process, because autotuning may choose other kernels, which round otherwise, in the next
again = AutoModel.from_pretrained(sys.argv[2], dtype=torch.bfloat16, device_map="cuda")
weights = again.state_dict()
report["equal_weights"] = all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
report["equal_tokens"] = torch.equal(again.generate(**inputs, max_new_tokens=32, min_new_tokens=32), tokens)
with torch.no_grad():
    report["equal_logits"] = torch.equal(model(**inputs).logits, again(**inputs).logits)
print("REPORT" + json.dumps(report))
"""


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
    return json.loads(lines[0][6:]) if lines else None


def test_sam_2_7b_loads_generates_saves_and_reloads_equal(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(WRITE, first)
    assert len(list(first.glob("*.safetensors"))) > 2, "sharded"
    report = run(USE, first, second)
    print("\nSAM-2.7B on", torch.cuda.get_device_name(), json.dumps(report))
    assert report["equal_weights"] and report["equal_tokens"] and report["equal_logits"]
    # encoder 85.3 M + connector + language model 2,702.6 M
    assert report["parameters"] == 85_254_144 + (6144 * 2560 + 2560) + (2560 * 2560 + 2560) + 2_702_599_680
    assert report["gpu_gib"] < 5.7
    assert report["host_gib_peak"] < 10
