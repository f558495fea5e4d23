"""Two numbers of BENCHMARKS.md that need no GPU: log-mel clips a second, and prefill against transformers' Mamba2.

python benchmarks/cpu.py --threads 2 --json benchmarks/cpu.json
"""

import argparse
import time
from pathlib import Path

import torch
import transformers
from transformers import Mamba2ForCausalLM

from audio_sam import SamFeatureExtractor
from configuration_sam import mamba2_config
from mamba_sam import SamMamba2Model
from sam_lab.common.files import write_json


def best(function, *args, **kwargs) -> float:
    """Smallest wall time of a call, in seconds, of four after one to warm up."""
    function(*args, **kwargs)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function(*args, **kwargs)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []

    extractor, clips = SamFeatureExtractor(), list(0.1 * torch.randn(64, 160000).numpy())
    seconds = best(extractor, clips, sampling_rate=16000, return_tensors="pt")
    rows.append({"work": "log-mel", "clips_of_10_s": len(clips), "per_second": len(clips) / seconds})

    twin = Mamba2ForCausalLM(mamba2_config("130m")).eval()
    ours = SamMamba2Model(twin.config).eval()
    ours.load_state_dict(twin.backbone.state_dict())
    for length in (96, 128, 700):
        embeds = torch.randn(1, length, 768)
        with torch.no_grad():
            mine = best(ours, embeds)
            theirs = best(twin.backbone, inputs_embeds=embeds, use_cache=False)
            difference = ours(embeds).last_hidden_state - twin.backbone(inputs_embeds=embeds).last_hidden_state
        rows.append(
            {
                "work": "prefill, 130M shape, batch 1, fp32",
                "positions": length,
                "ms": 1000 * mine,
                "transformers_ms": 1000 * theirs,
                "ratio": theirs / mine,
                "largest_difference": float(difference.abs().max()),
            }
        )
    about = {"threads": args.threads, "torch": torch.__version__, "transformers": transformers.__version__}
    for row in rows:
        print({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    write_json({**about, "results": rows}, args.json)


if __name__ == "__main__":
    main()
