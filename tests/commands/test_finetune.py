"""`sam-alm finetune`, and the script examples/finetune.py."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file
from tiny import NOTHING_OPEN, tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor

from modeling_sam import SamForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
AUDIO = sorted(path for path in (ROOT / "examples" / "audio").iterdir() if path.suffix in (".flac", ".ogg", ".wav"))


def checkpoint(path, dtype):
    """A tiny checkpoint."""
    tiny_model().to(dtype).save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("base"), torch.float32)


@pytest.fixture(scope="module")
def base_in_bf16(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Six clips, by paths relative to the table."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for path in AUDIO[:6]:
        shutil.copy(path, folder / path.name)
        rows.append([path.name, f"{path.stem.capitalize()}."])
    with open(folder / "clips.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["audio", "answer"], *rows])
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    """Four clips in a folder for each class."""
    folder = tmp_path_factory.mktemp("classes")
    for name in ("cow", "crow", "dog", "rooster"):
        (folder / name).mkdir()
        (clip,) = (path for path in AUDIO if path.stem == name)
        shutil.copy(clip, folder / name)
    return folder


def finetuned(command, base, source, output, *options, **expected):
    command(
        "finetune",
        *("--model", base, "--train", source, "--output_dir", output, "--use_cpu", "--report_to", "none"),
        *("--disable_tqdm", "True", "--dataloader_pin_memory", "False", "--per_device_train_batch_size", 3),
        *("--learning_rate", 1e-2, "--num_examples", 1, *options),
        **expected,
    )
    return load_file(output / "model.safetensors") if (output / "model.safetensors").exists() else {}


def changed(base, tensors) -> set[str]:
    """Which tensors of the base are others now, beyond what storing them in bf16 may do."""
    before = load_file(base / "model.safetensors")
    assert before.keys() == tensors.keys()
    return {
        name
        for name, tensor in tensors.items()
        if (tensor.float() - before[name].float()).abs().max() > 0.01 * before[name].float().abs().max()
    }


def part(names, word) -> set[str]:
    return {name for name in names if f"model.{word}." in name}


def test_on_a_table(command, base, table, tmp_path, capsys):
    tensors = finetuned(command, base, table, tmp_path / "out", "--max_steps", 3, "--validation_share", 0.3)
    moved = changed(base, tensors)
    assert part(moved, "audio_tower") and part(moved, "connector") and not part(moved, "language_model")

    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text="What is it?", audio=str(AUDIO[0]), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]

    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_loss"] > 0
    shown = capsys.readouterr().out
    assert re.search(r"\nprompt +Close-ended question.*\ntruth +\w+\.\nanswer ", shown)
    assert re.search(r"training 0\.0\d of 0\.0\d million parameters", shown)


@pytest.mark.slow
def test_on_two_processes_as_on_one(command, base, table, tmp_path):
    """In full batches of all six rows, so that their order does not matter."""
    options = ["--max_steps", "2", "--optim", "sgd", "--max_grad_norm", "0", "--lora_rank", "2", "--lora_dropout", "0"]
    options += ["--validation", str(table), "--learning_rate", "0.3"]
    one = finetuned(command, base, table, tmp_path / "one", *options, "--per_device_train_batch_size", 6)
    words = ["--model", base, "--train", table, "--output_dir", tmp_path / "two", "--use_cpu", "--report_to", "none"]
    words += ["--num_examples", "1", "--per_device_train_batch_size", "3"]
    words += ["--ddp_backend", "gloo", "--disable_tqdm", "True", *options]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", NOTHING_OPEN, "finetune"]
    done = subprocess.run(
        list(map(str, [sys.executable, *two, *words])),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nanswer ") == 1
    tensors = load_file(tmp_path / "two" / "model.safetensors")
    assert changed(base, tensors)
    for name, tensor in one.items():
        assert torch.allclose(tensors[name], tensor, rtol=1e-4, atol=1e-5), name
    losses = [json.loads((tmp_path / name / "eval_results.json").read_text())["eval_loss"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # Trainer's mean of the batches' means


def test_with_lora_in_bf16_on_class_folders(command, base_in_bf16, class_folders, tmp_path):
    tensors = finetuned(
        command,
        *(base_in_bf16, class_folders, tmp_path / "out", "--lora_rank", 2, "--max_steps", 3, "--bf16"),
        *("--validation", class_folders),
    )
    moved = changed(base_in_bf16, tensors)
    adapted = {name for name in tensors if name.endswith(("in_proj.weight", "out_proj.weight"))}
    assert len(adapted) == 4
    assert part(moved, "language_model") == adapted  # the adapters are merged, and nothing else has moved there
    assert part(moved, "audio_tower") and part(moved, "connector")
    assert not list((tmp_path / "out").glob("adapter*"))
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is SamForConditionalGeneration


def test_everything_from_cached_features(command, base, table, tmp_path):
    options = ("--train_language_model", "True", "--cache_features", "--augment", "--recompute", "--max_steps", 2)
    moved = changed(base, finetuned(command, base, table, tmp_path / "out", *options))
    assert all(part(moved, name) for name in ("audio_tower", "connector", "language_model"))


def test_the_adapters_alone(command, base, table, tmp_path):
    options = ("--lora_rank", 2, "--freeze_connector", "--freeze_encoder", "--max_steps", 2)
    moved = changed(base, finetuned(command, base, table, tmp_path / "out", *options))
    assert moved and all(name.endswith(("in_proj.weight", "out_proj.weight")) for name in moved)


@pytest.mark.slow
def test_resumes(command, base, table, tmp_path):
    options = ("--lora_rank", 2, "--max_steps", 4, "--save_steps", 2)
    straight = finetuned(command, base, table, tmp_path / "straight", *options)
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    resumed = finetuned(command, base, table, tmp_path / "out", *options, "--resume_from_checkpoint", checkpoint)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_reports_what_is_wrong(command, base, table, tmp_path):
    rows = table.read_text().splitlines()
    one, no_answer = table.with_name("one.csv"), table.with_name("no_answer.csv")
    one.write_text("\n".join(rows[:2]) + "\n")
    no_answer.write_text("audio,says\n" + "\n".join(rows[1:]) + "\n")
    out = tmp_path / "out"

    def refused(message, model, source, *options):
        finetuned(command, model, source, out, *options, error="^sam-alm: " + message)

    refused("--model: got '.*nowhere', expected a SAM checkpoint", tmp_path / "nowhere", table)
    refused("source: there is no file '.*nowhere.csv'", base, tmp_path / "nowhere.csv")
    refused("source: .* has the columns audio, says, expected one of answer", base, no_answer)
    refused("validation_share: 0.05 of 1 rows is 1, expected to keep rows to train on", base, one)
    for share in (1, 1.5, -0.01):
        refused(f"validation_share: {share} of 6 rows", base, table, "--validation_share", share)
    both = ("--lora_rank", 2, "--train_language_model")
    finetuned(command, base, table, out, *both, status=2, error="--lora_rank and --train_language_model: got both")
    assert not out.exists()


def test_without_validation(command, base, table, tmp_path):
    one = table.with_name("one.csv")
    one.write_text("\n".join(table.read_text().splitlines()[:2]) + "\n")
    options = ("--validation_share", 0, "--cache_features", "--max_steps", 1)
    assert changed(base, finetuned(command, base, one, tmp_path / "out", *options))
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_looks_for_the_audio_before_training(command, base, table, tmp_path, capsys):
    lacking = table.with_name("lacking.csv")
    lacking.write_text(table.read_text() + "nope.wav,Nothing.\n")
    out, message = (
        tmp_path / "out",
        r"the audio of 1 of 7 rows does not exist \(.*nope\.wav\), more than max_missing=0",
    )
    finetuned(command, base, lacking, out, error=f"--train: {message}")
    finetuned(command, base, table, out, "--validation", lacking, error=f"--validation: {message}")
    capsys.readouterr()
    options = ("--validation", lacking, "--max_missing", 0.2, "--num_train_epochs", 1)
    assert changed(base, finetuned(command, base, lacking, out, *options))
    said = capsys.readouterr().out
    assert all(f"{option}: the audio of 6 of 7 rows is present\n" in said for option in ("--train", "--validation"))


def test_saves_before_it_evaluates(command, base, table, tmp_path):
    """A clip that cannot be decoded is found when it is read, and named; what was trained by then is saved."""
    table.with_name("broken.wav").write_bytes(b"RIFF, but no more")
    broken = table.with_name("broken.csv")
    broken.write_text("audio,answer\nbroken.wav,Nothing.\n")
    out = tmp_path / "out"
    options = ("--validation", broken, "--lora_rank", 2, "--max_steps", 1)
    finetuned(command, base, table, out, *options, error=r"broken\.wav")
    assert part(changed(base, load_file(out / "model.safetensors")), "connector")
    assert type(AutoModel.from_pretrained(out)) is SamForConditionalGeneration
    assert AutoProcessor.from_pretrained(out)


@pytest.mark.parametrize("options, dropout", [((), 0.05), (("--lora_dropout", 0.2), 0.2)])
def test_drops_of_the_adapters_inputs(command, base, table, tmp_path, options, dropout):
    finetuned(command, base, table, tmp_path, "--lora_rank", 2, "--max_steps", 1, *options)
    assert json.loads((tmp_path / "checkpoint-1" / "adapter_config.json").read_text())["lora_dropout"] == dropout


# In a process of its own, since the Hub's client reads its environment when it is imported. A folder and a repository
# with an earlier run's adapter; then a finetuning; then what AutoModel makes of both, beside the weights alone.
PUSH = """
import json, sys, torch
root, base, table, out, token = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
import sam_alm
from huggingface_hub import HfApi
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import tiny_inputs, tiny_model
from sam_lab.cli import main
from sam_lab.training.model import lora_config
from transformers import AutoModel

model = get_peft_model(tiny_model(), lora_config(4))
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)
model.save_pretrained(out)
api = HfApi(token=token)
api.create_repo("acme/ft")
api.upload_folder(repo_id="acme/ft", folder_path=out, commit_message="An earlier adapter")
words = ["finetune", "--model", base, "--train", table, "--output_dir", out, "--use_cpu", "--report_to", "none"]
words += ["--lora_rank", "4", "--learning_rate", "1e-2", "--max_steps", "2", "--save_steps", "1", "--num_examples", "0"]
words += ["--push_to_hub", "--hub_model_id", "ft", "--hub_token", token]
assert main(words) == 0

merged = tiny_model()
merged.load_state_dict(load_file(out + "/model.safetensors"), strict=False)
models = [tiny_model(), merged, AutoModel.from_pretrained(out), AutoModel.from_pretrained("acme/ft")]
with torch.no_grad():
    logits = [each.eval()(**tiny_inputs()).logits for each in models]
print("\\n" + json.dumps([(each - logits[1]).abs().max().item() for each in logits]))
"""


@pytest.mark.slow
def test_pushes_no_adapter_beside_the_merged_weights(base, table, tmp_path):
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        del environment["HF_TOKEN"]  # --hub_token is all there is
        out = tmp_path / "out"
        done = subprocess.run(
            [sys.executable, "-c", PUSH, ROOT, base, table, out, hub.token],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        before, merged, by_folder, by_repository = json.loads(done.stdout.splitlines()[-1])
        assert before > 1e-2 and merged == by_folder == by_repository == 0
        assert not [name for name in (*hub.files("acme/ft"), *os.listdir(out)) if name.startswith("adapter_")]
        titles = [commit.title for commit in hub.commits("acme/ft")][2:]
        assert not [title for title in titles if "in progress" in title]


@pytest.mark.slow
def test_the_script_trains_and_saves(base, table, tmp_path):
    """examples/finetune.py, which a user copies; without an installed package it needs the path."""
    script = ROOT / "examples" / "finetune.py"
    assert len(script.read_text().splitlines()) <= 150
    done = subprocess.run(
        list(map(str, [sys.executable, script, table, tmp_path / "out", base])),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    moved = changed(base, load_file(tmp_path / "out" / "model.safetensors"))
    assert all(part(moved, name) for name in ("audio_tower", "connector", "language_model"))
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is SamForConditionalGeneration
    assert done.stdout.count("\nanswer ") == 1  # a tenth of six rows
