"""The examples: finetuning, stages, the recipe of `examples/sam-tiny`, its captions, the clips, and the checkpoint."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from loopback_hub import LoopbackHub
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import NOTHING_OPEN, script, tiny_model, tiny_processor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from audio_sam import load_audio
from configuration_sam import AUTO_MAP, SamConfig
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamAudioLanguageProcessor
from sam_lab.evaluation import caption_metrics as caption_metrics_module
from sam_lab.evaluation import predictions as predictions_module
from sam_lab.evaluation.caption_metrics import caption_scores
from sam_lab.evaluation.wordforms import ESC50_FORMS, named_labels, names_label

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CLIPS = EXAMPLES / "audio"
SAM_TINY = EXAMPLES / "sam-tiny"
SHARED = Path(os.environ.get("SAM_SHARED_DATA", ROOT / ".." / "shared" / "data"))
AUDIO = sorted(path for path in CLIPS.iterdir() if path.suffix in (".flac", ".ogg", ".wav"))
LABELS = sorted(ESC50_FORMS)

needs_sam_tiny = pytest.mark.skipif(
    not (SAM_TINY / "model.safetensors").exists(), reason="examples/sam-tiny is not here: it is not trained yet"
)
needs_sounds = pytest.mark.skipif(
    not (SHARED / "sounds" / "metadata.csv").exists(), reason="the shared sounds are not here; set SAM_SHARED_DATA"
)


captions = script("captions")
recipe = script("make_sam_tiny")
finetune = script("finetune")
evaluate = script("evaluate")
analyze = script("analyze")


# ---------------------------------------------------------------------------------------------------------------
# finetune.py
# ---------------------------------------------------------------------------------------------------------------


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


def finetuned(run, base, source, output, *options):
    run(
        finetune,
        *("--model", base, "--train", source, "--output_dir", output, "--use_cpu", "--report_to", "none"),
        *("--disable_tqdm", "True", "--dataloader_pin_memory", "False", "--per_device_train_batch_size", 3),
        *("--learning_rate", 1e-2, "--num_examples", 1, *options),
    )
    return load_file(output / "model.safetensors")


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


def test_finetune_is_short():
    assert len((EXAMPLES / "finetune.py").read_text().splitlines()) <= 200


def test_finetune_on_a_table(run, base, table, tmp_path, capsys):
    tensors = finetuned(run, base, table, tmp_path / "out", "--max_steps", 3, "--validation_share", 0.3)
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


def test_finetune_on_two_processes_as_on_one(run, base, table, tmp_path):
    """In full batches of all six rows, so that their order does not matter."""
    options = ["--max_steps", "2", "--optim", "sgd", "--max_grad_norm", "0", "--lora_rank", "2", "--lora_dropout", "0"]
    options += ["--validation", str(table), "--learning_rate", "0.3"]
    one = finetuned(run, base, table, tmp_path / "one", *options, "--per_device_train_batch_size", 6)
    words = ["--model", base, "--train", table, "--output_dir", tmp_path / "two", "--use_cpu", "--report_to", "none"]
    words += ["--num_examples", "1", "--per_device_train_batch_size", "3"]
    words += ["--ddp_backend", "gloo", "--disable_tqdm", "True", *options]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", NOTHING_OPEN]
    done = subprocess.run(
        list(map(str, [sys.executable, *two, EXAMPLES / "finetune.py", *words])),
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


def test_finetune_with_lora_in_bf16_on_class_folders(run, base_in_bf16, class_folders, tmp_path):
    tensors = finetuned(
        run,
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


def test_finetune_everything_from_cached_features(run, base, table, tmp_path):
    options = ("--train_language_model", "True", "--cache_features", "--augment", "--recompute", "--max_steps", 2)
    moved = changed(base, finetuned(run, base, table, tmp_path / "out", *options))
    assert all(part(moved, name) for name in ("audio_tower", "connector", "language_model"))


def test_finetune_the_adapters_alone(run, base, table, tmp_path):
    options = ("--lora_rank", 2, "--freeze_connector", "--freeze_encoder", "--max_steps", 2)
    moved = changed(base, finetuned(run, base, table, tmp_path / "out", *options))
    assert moved and all(name.endswith(("in_proj.weight", "out_proj.weight")) for name in moved)


def test_finetune_resumes(run, base, table, tmp_path):
    options = ("--lora_rank", 2, "--max_steps", 4, "--save_steps", 2)
    straight = finetuned(run, base, table, tmp_path / "straight", *options)
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    resumed = finetuned(run, base, table, tmp_path / "out", *options, "--resume_from_checkpoint", checkpoint)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def refused(message, *arguments):
    """The script ends before training, with a message and exit code 1."""
    with pytest.raises(SystemExit) as end:
        finetuned(*arguments)
    assert re.search("^error: " + message, str(end.value.code)), end.value.code


def test_finetune_says_what_is_wrong(run, base, table, tmp_path):
    rows = table.read_text().splitlines()
    one, no_answer = table.with_name("one.csv"), table.with_name("no_answer.csv")
    one.write_text("\n".join(rows[:2]) + "\n")
    no_answer.write_text("audio,says\n" + "\n".join(rows[1:]) + "\n")
    out = tmp_path / "out"
    refused("--lora_rank and --train_", run, base, table, out, "--lora_rank", 2, "--train_language_model")
    refused("--model: got '.*nowhere', expected a SAM checkpoint", run, tmp_path / "nowhere", table, out)
    refused("source: there is no file '.*nowhere.csv'", run, base, tmp_path / "nowhere.csv", out)
    refused("source: .* has the columns audio, says, expected one of answer", run, base, no_answer, out)
    refused("--validation_share: 0.05 of 1 rows is 1, expected to keep rows to train on", run, base, one, out)
    for share in (1, 1.5, -0.01):
        refused(f"--validation_share: {share} of 6 rows", run, base, table, out, "--validation_share", share)
    assert not out.exists()


def test_finetune_without_validation(run, base, table, tmp_path):
    one = table.with_name("one.csv")
    one.write_text("\n".join(table.read_text().splitlines()[:2]) + "\n")
    options = ("--validation_share", 0, "--cache_features", "--max_steps", 1)
    assert changed(base, finetuned(run, base, one, tmp_path / "out", *options))
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_finetune_looks_for_the_audio_before_training(run, base, table, tmp_path, capsys):
    lacking = table.with_name("lacking.csv")
    lacking.write_text(table.read_text() + "nope.wav,Nothing.\n")
    out, message = (
        tmp_path / "out",
        r"the audio of 1 of 7 rows does not exist \(.*nope\.wav\), more than max_missing=0",
    )
    refused(f"--train: {message}", run, base, lacking, out)
    refused(f"--validation: {message}", run, base, table, out, "--validation", lacking)
    capsys.readouterr()
    options = ("--validation", lacking, "--max_missing", 0.2, "--num_train_epochs", 1)
    assert changed(base, finetuned(run, base, lacking, out, *options))
    said = capsys.readouterr().out
    assert all(f"{option}: the audio of 6 of 7 rows is there\n" in said for option in ("--train", "--validation"))


def test_finetune_saves_before_it_evaluates(run, base, table, tmp_path):
    """A clip that cannot be decoded is found when it is read, and named; what was trained by then is kept."""
    table.with_name("broken.wav").write_bytes(b"RIFF, but no more")
    broken = table.with_name("broken.csv")
    broken.write_text("audio,answer\nbroken.wav,Nothing.\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"broken\.wav"):
        finetuned(run, base, table, out, "--validation", broken, "--lora_rank", 2, "--max_steps", 1)
    assert part(changed(base, load_file(out / "model.safetensors")), "connector")
    assert type(AutoModel.from_pretrained(out)) is SamForConditionalGeneration
    assert AutoProcessor.from_pretrained(out)


@pytest.mark.parametrize("options, dropout", [((), 0.05), (("--lora_dropout", 0.2), 0.2)])
def test_finetune_drops_of_the_adapters_inputs(run, base, table, tmp_path, options, dropout):
    finetuned(run, base, table, tmp_path, "--lora_rank", 2, "--max_steps", 1, *options)
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
from tiny import script, tiny_inputs, tiny_model
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
sys.argv = ["finetune", "--model", base, "--train", table, "--output_dir", out, "--use_cpu", "--report_to", "none"]
sys.argv += ["--lora_rank", "4", "--learning_rate", "1e-2", "--max_steps", "2", "--save_steps", "1", "--num_examples", "0"]
sys.argv += ["--push_to_hub", "--hub_model_id", "ft", "--hub_token", token]
script("finetune").main()

merged = tiny_model()
merged.load_state_dict(load_file(out + "/model.safetensors"), strict=False)
models = [tiny_model(), merged, AutoModel.from_pretrained(out), AutoModel.from_pretrained("acme/ft")]
with torch.no_grad():
    logits = [each.eval()(**tiny_inputs()).logits for each in models]
print("\\n" + json.dumps([(each - logits[1]).abs().max().item() for each in logits]))
"""


def test_finetune_pushes_no_adapter_beside_the_merged_weights(base, table, tmp_path):
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


# ---------------------------------------------------------------------------------------------------------------
# train.py
# ---------------------------------------------------------------------------------------------------------------


def training(output, log) -> subprocess.Popen:
    """The command for the toy recipe, begun in a process group of its own."""
    options = (
        "--recipe",
        ROOT / "sam_lab" / "training" / "recipes" / "toy.yaml",
        "--output",
        output,
        "--set",
        "save_steps=1",
    )
    return subprocess.Popen(
        [sys.executable, EXAMPLES / "train.py", *options],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )


def trained_to_the_end(output, log) -> str:
    """What the command printed."""
    with open(log, "w") as handle, training(output, handle) as process:
        try:
            code = process.wait(timeout=300)
        finally:
            process.kill()
    assert code == 0, log.read_text()[-3000:]
    return log.read_text()


def killed_behind(checkpoint, output, log) -> None:
    """Kills the command, and what it has started, as soon as a checkpoint is complete."""
    end = time.monotonic() + 300
    with open(log, "w") as handle, training(output, handle) as process:
        try:
            while not (output / checkpoint / "complete").exists():
                assert process.poll() is None, f"it ended before {checkpoint}: {log.read_text()[-3000:]}"
                assert time.monotonic() < end, f"no {checkpoint} in 300 seconds: {log.read_text()[-3000:]}"
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed, with {process.returncode}"


@needs_sam_tiny
def test_train_killed_within_a_stage_goes_on_to_the_same_losses(tmp_path):
    """All four stages by the command itself, killed with three of the second stage's four steps ahead."""
    straight, output = tmp_path / "straight", tmp_path / "killed"
    printed = trained_to_the_end(straight, tmp_path / "straight.log")
    assert "finished" not in printed and "resuming from" not in printed
    killed_behind("stage-2/checkpoint-1", output, tmp_path / "killed.log")
    assert (output / "stage-1" / "finished.json").exists()
    assert not (output / "stage-2" / "trained.json").exists(), (
        "stage 2 ended before the kill: this machine stood still"
    )
    printed = trained_to_the_end(output, tmp_path / "again.log")
    assert "stage 1, connector on classification: finished\n" in printed
    assert re.findall(r"resuming from .*/(stage-\d/checkpoint)-\d\n", printed) == ["stage-2/checkpoint"]
    for stage, steps in {"stage-1": 4, "stage-2": 4, "stage-3": 2, "stage-4": 2}.items():
        assert (output / stage / "finished.json").exists()
        histories = [json.loads((each / stage / "trainer_state.json").read_text()) for each in (straight, output)]
        losses = [[row["loss"] for row in each["log_history"] if "loss" in row] for each in histories]
        assert losses[0] == losses[1] and len(losses[0]) == steps
    one, two = (load_file(each / "stage-4" / "adapter" / "adapter_model.safetensors") for each in (straight, output))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------------------------------------------------------
# evaluate.py
# ---------------------------------------------------------------------------------------------------------------


def test_evaluate_writes_every_prediction(run, base, tmp_path, capsys):
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    rows = [("dog.wav", 1, "dog"), ("cow.wav", 2, "cow"), ("rain.wav", 2, "rain"), ("absent.wav", 2, "cat")]
    for name, _, label in rows[:3]:
        shutil.copy(CLIPS / f"{label}.ogg", tmp_path / "audio" / f"{Path(name).stem}.ogg")  # found by its stem
    with open(tmp_path / "meta" / "esc50.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("filename", "fold", "category"), *rows])
    output = tmp_path / "score.json"
    options = ("--model", base, "--data", tmp_path, "--fold", 2, "--device", "cpu", "--output", output)
    with pytest.raises(ValueError, match=r"esc50: 2 of 3 clips are present.*min_coverage=95%.*absent\.wav"):
        run(evaluate, "esc50", *options, "--min-coverage", 0.95)
    assert not output.exists()
    run(evaluate, "esc50", *options, "--max-new-tokens", 8)
    result = json.loads(output.read_text())
    assert (result["benchmark"], result["protocol"], result["fold"]) == ("esc50", "names_label", 2)
    assert (result["count"], result["expected"], result["missing"]) == (2, 3, ["absent.wav"])
    assert [item["reference"] for item in result["predictions"]] == ["cow", "rain"]
    assert [item["audio"] for item in result["predictions"]] == ["cow.ogg", "rain.ogg"]
    for item in result["predictions"]:
        assert item["correct"] == names_label(item["prediction"], item["reference"])
    assert result["value"] == sum(item["correct"] for item in result["predictions"]) / 2
    assert "1 of 3 clips are missing" in capsys.readouterr().out
    assert len(result["checkpoint_hash"]) == 64 and result["versions"]["torch"] == torch.__version__
    assert result["config"]["max_new_tokens"] == 8 and result["model_config"]["connector"] == "concatenation"


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason='pycocoevalcap is missing: pip install ".[eval]"')
def test_evaluate_scores_the_people_who_captioned(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SAM_SPICE_JARS", raising=False)
    monkeypatch.setattr(
        caption_metrics_module, "meteor_scores", lambda said, truth: (0.0, [0.0] * len(said))
    )  # takes seconds
    captions = ["A dog barks loudly", "A dog is barking", "Rain falls on a roof", "Rain is falling", "It rains"]
    rows = [("a.wav", *captions), ("b.wav", *captions[::-1])]
    with open(tmp_path / "clotho_captions_evaluation.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("file_name", *(f"caption_{n}" for n in range(1, 6))), *rows])
    run(evaluate, "clotho", "--human", "--data", tmp_path, "--output", tmp_path / "new" / "human.json")
    result = json.loads((tmp_path / "new" / "human.json").read_text())
    rounds = [
        caption_scores([a, b], [captions[:k] + captions[k + 1 :], captions[::-1][:k] + captions[::-1][k + 1 :]])
        for k, (a, b) in enumerate(zip(captions, captions[::-1]))
    ]
    assert result["scores"]["BLEU_1"] == pytest.approx(sum(each["BLEU_1"] for each in rounds) / 5)
    assert (result["model"], result["metric"], result["rounds"], result["count"]) == ("human", "CIDEr", 5, 2)
    assert result["value"] == result["scores"]["CIDEr"] and "SPICE" in result["lacking"]
    assert "clotho, captions, CIDEr: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="human: got questions, expected a benchmark with captions"):
        (tmp_path / "q.csv").write_text("audio,prompt,answer,kind\na.wav,Is it?,Yes.,binary\n")
        run(evaluate, "questions", "--human", "--data", tmp_path / "q.csv", "--output", tmp_path / "q.json")


class LetterCounts:
    """A text encoder without a model."""

    name = "letters"

    def __init__(self):
        self.cut_texts = set()

    def embed(self, texts, batch_size=64):
        counts = torch.tensor([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return torch.nn.functional.normalize(counts.float() + 0.1, dim=1)


def test_evaluate_runs_several_benchmarks(run, base, tmp_path, monkeypatch, capsys):
    esc50, opera = tmp_path / "esc50", tmp_path / "opera"
    (esc50 / "meta").mkdir(parents=True)
    (esc50 / "audio").mkdir()
    (esc50 / "meta" / "esc50.csv").write_text("filename,fold,category\ndog.wav,1,dog\nrain.wav,1,rain\n")
    for name in ("dog", "rain"):
        shutil.copy(CLIPS / f"{name}.ogg", esc50 / "audio")
    opera.mkdir()
    shutil.copy(CLIPS / "dog.ogg", opera / "gong.ogg")
    record = {"audio_id": "/published/gong.wav", "output": "Audio caption: small gong"}
    (tmp_path / "beijing_opera.json").write_text(json.dumps([record]))
    monkeypatch.setattr(evaluate, "load_text_encoder", lambda name, device, tokenizer: LetterCounts())
    data = ("--data", f"esc50={esc50}", "--data", f"beijing_opera={tmp_path / 'beijing_opera.json'}")
    options = (*data, "--model", base, "--device", "cpu", "--max-new-tokens", 4)
    options += ("--audio-root", f"/published={opera}", "--text-encoder", "letters", "--output", tmp_path / "out")
    asked, answer_batch = [], predictions_module.answer_batch

    def dying(model, processor, items, *rest):
        asked.append([item.id for item in items])
        if asked.count(["gong.wav"]) == 1:
            raise RuntimeError("killed")
        return answer_batch(model, processor, items, *rest)

    monkeypatch.setattr(predictions_module, "answer_batch", dying)
    with pytest.raises(RuntimeError, match="killed"):
        run(evaluate, "esc50", "beijing_opera", *options)
    run(evaluate, "esc50", "beijing_opera", "esc50", *options)
    assert asked == [["dog.wav", "rain.wav"], ["gong.wav"], ["gong.wav"]]  # what was done is not done again
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert sorted(results) == ["beijing_opera", "esc50"]
    assert list(results["esc50"]["protocols"]) == ["text_encoder", "likelihood", "names_label"]
    assert results["beijing_opera"]["predictions"][0]["reference"] == "small gong"
    assert all(result["text_encoder"] == "letters" for result in results.values())
    printed = capsys.readouterr().out
    assert "esc50: 2 of 2 clips are present, 2,000 were published" in printed
    model, cells = base.name, printed.split("Table 1: ")[1].splitlines()[4].split("|")
    assert cells[1].strip() == model and cells[4].strip().startswith(f"{100 * results['esc50']['value']:.1f} [")


def test_evaluate_asks_questions(run, base, tmp_path, capsys):
    shutil.copy(CLIPS / "dog.ogg", tmp_path)
    lines = ["audio,prompt,answer,kind", "dog.ogg,Is it a dog?,Yes.,binary", "dog.ogg,Is it a cow?,No.,binary"]
    (tmp_path / "questions.csv").write_text("\n".join(lines) + "\n")
    options = ("--model", base, "--data", tmp_path / "questions.csv", "--device", "cpu", "--max-new-tokens", 4)
    run(evaluate, "questions", *options, "--output", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["protocol"], result["count"]) == ("answers_question", 2)
    assert result["by_kind"]["binary"]["count"] == 2 and "binary: " in capsys.readouterr().out


def test_evaluate_says_what_is_wrong(run, base, tmp_path, capsys):
    options = ("--model", base, "--data", tmp_path, "--device", "cpu", "--output", tmp_path / "out.json")
    with pytest.raises(SystemExit):
        run(evaluate, "esc51", *options)
    assert re.search(r"invalid choice: '?esc51'? \(choose from .*esc50.*vocalsound", capsys.readouterr().err)
    with pytest.raises(FileNotFoundError, match=r"esc50\.csv.*expected ESC-50 as it is published"):
        run(evaluate, "esc50", *options)
    with pytest.raises(FileNotFoundError, match=r"--model: got '.*nowhere', expected a SAM checkpoint"):
        run(evaluate, "esc50", "--model", tmp_path / "nowhere", *options[2:])
    with pytest.raises(SystemExit):
        run(evaluate, "esc50", "vocalsound", *options)
    assert "for 2 benchmarks, expected a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(evaluate, "esc50", *options, "--data", f"clotho={tmp_path}")
    assert "--data: got 'clotho', which is for none of esc50" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(evaluate, "clotho", *options[:2], *options[4:], "--data", "clotho=a", "--data", "clotho=b")
    assert "--data: got clotho twice, 'a' and 'b'" in capsys.readouterr().err
    with pytest.raises(
        FileNotFoundError, match="data: there is no 'clotho', expected Clotho"
    ):  # a folder of that name
        run(evaluate, "clotho", *options[:2], *options[4:], "--data", "clotho")
    for option, reason in {
        ("--fold", 4): "only esc50 has folds",
        ("--shuffle-choices", 0): "only MMAU has choices",
        ("--prompt-style", "plain"): "only MMAU's prompts have styles",
        ("--text-tokenizer", "gpt2"): "there is no text encoder",
    }.items():
        with pytest.raises(SystemExit):
            run(evaluate, "clotho", *options, *option)
        assert f"{option[0]}: given, but {reason}" in capsys.readouterr().err
    for option in ("--limit", "--batch-size", "--max-new-tokens"):
        with pytest.raises(SystemExit):
            run(evaluate, "esc50", *options, option, 0)
        assert f"{option}: got 0, expected at least 1" in capsys.readouterr().err
    (tmp_path / "opera").mkdir()
    shutil.copy(CLIPS / "dog.ogg", tmp_path / "opera" / "small gong 1.ogg")
    options = ("--model", base, "--data", tmp_path / "opera", "--device", "cpu", "--output", tmp_path / "out.json")
    with pytest.raises(
        ValueError, match=r"text_encoder: got None for beijing_opera.*clap-2023.*--protocol likelihood"
    ):
        run(evaluate, "beijing_opera", *options)


# ---------------------------------------------------------------------------------------------------------------
# The clips
# ---------------------------------------------------------------------------------------------------------------


def test_the_clips_are_few_and_short():
    assert 5 <= len(AUDIO) <= 10
    assert sum(path.stat().st_size for path in CLIPS.iterdir()) < 1_500_000
    assert all(0.4 < soundfile.info(path).duration <= 10 for path in AUDIO)


def test_every_clip_is_attributed():
    lines = [line for line in (CLIPS / "ATTRIBUTION.md").read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert sorted(row[0].strip("`") for row in cells) == [path.name for path in AUDIO]
    for name, what, _, _, author, licence in cells:
        assert what and author, name
        assert re.match(r"(Free Art License 1\.2|GPL-[23]\+?|CC BY 3\.0|CC0)", licence), name
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3" in (CLIPS / "GPL-3.txt").read_text()


def test_the_mixture_is_what_its_recipe_makes(tmp_path, monkeypatch):
    (code,) = re.findall("```python\n(.*?)```", (CLIPS / "ATTRIBUTION.md").read_text(), re.DOTALL)
    folder = tmp_path / "examples" / "audio"
    shutil.copytree(CLIPS, folder)
    (folder / "dog_in_rain.flac").unlink()
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    again, shipped = (soundfile.read(each / "dog_in_rain.flac", dtype="int16")[0] for each in (folder, CLIPS))
    assert len(again) == len(shipped)
    assert np.abs(again.astype(int) - shipped).max() <= 1  # another version of the resampler may round otherwise


def test_the_recipe_reads_the_list_of_excluded_clips(tmp_path, monkeypatch):
    lines = (CLIPS / "excluded_from_training.txt").read_text().splitlines()
    listed = {line for line in lines if line.startswith("audio/")}
    assert len(listed) == 8  # all recordings but the helicopter's, of which the collection has no copy
    assert recipe.excluded_files() == listed
    rows = [
        {"file": file, "weights_ok": "yes", "label": "dog", "split": split, "official_fold": "", "recording": file}
        for file in ["audio/dog/free.ogg", *listed]
        for split in ("train", "val")
    ]
    for development in (False, True):
        for part in recipe.training_clips(rows, development):
            assert {row["file"] for row in part} <= {"audio/dog/free.ogg"}
    (tmp_path / "other.txt").write_text("# nothing but this\naudio/dog/free.ogg\n")
    monkeypatch.setattr(recipe, "EXCLUDED", tmp_path / "other.txt")
    assert {row["file"] for row in recipe.training_clips(rows)[0]} == listed


@needs_sounds
def test_no_training_has_an_excluded_clip():
    metadata = recipe.read_metadata(SHARED)
    excluded = recipe.excluded_files()
    assert excluded <= {row["file"] for row in metadata}
    recordings = {row["recording"] for row in metadata if row["file"] in excluded}
    for development in (False, True):
        train, validation = recipe.training_clips(metadata, development)
        held_out = {"fold4", "fold3"} if development else {"fold4"}
        assert len(train) > 1000
        assert all(row["weights_ok"] == "yes" and row["split"] == "train" for row in train)
        assert not {row["official_fold"] for row in train if row["source"] == "ESC-50"} & held_out
        assert not {row["file"] for row in train + validation} & excluded
        assert not {row["recording"] for row in train + validation} & recordings
        assert not {row["recording"] for row in train} & {row["recording"] for row in validation}


def whitened(path) -> np.ndarray:
    """8 kHz, high frequencies raised, without silence at the ends."""
    waveform = soxr.resample(load_audio(str(path)), 16000, 8000)
    waveform = np.append(waveform[:1], waveform[1:] - 0.95 * waveform[:-1])
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The largest normalised cross-correlation of the loudest half second of `one` with any place of `other`."""
    width = min(len(one), len(other), 4000)
    energy = np.convolve(one**2, np.ones(width), "valid")
    piece = one[(begin := int(energy.argmax())) : begin + width]
    size = 1 << (len(other) + width).bit_length()
    products = np.fft.irfft(np.fft.rfft(other, size) * np.fft.rfft(piece, size).conj(), size)
    products = products[: len(other) - width + 1]
    energies = np.maximum(np.convolve(other**2, np.ones(width), "valid"), 1e-3 * (piece**2).sum())
    return float((np.abs(products) / np.sqrt(energies * (piece**2).sum())).max())


@needs_sounds
@pytest.mark.parametrize("name", ["cow", "dog", "frog", "rooster", "train"])
def test_the_excluded_clips_are_found_by_content(name):
    (clip,) = (path for path in AUDIO if path.stem in (name, f"{name}s"))
    (excluded,) = (file for file in recipe.excluded_files() if file.startswith(f"audio/{name}/"))
    sound = whitened(clip)
    assert correlation(sound, whitened(SHARED / "sounds" / excluded)) > 0.9
    train, _ = recipe.training_clips(recipe.read_metadata(SHARED))
    same = [row["file"] for row in train if row["label"] == name]
    for file in random.Random(0).sample(same, min(12, len(same))):
        assert correlation(sound, whitened(SHARED / "sounds" / file)) < 0.75, file


# ---------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", LABELS)
def test_every_wording_names_its_label(label):
    wordings = [captions.caption(label), captions.label_list(label)]
    wordings += [captions.sentence(prompt, label) for prompt in captions.SENTENCE_PROMPTS]
    assert len(set(wordings)) == len(wordings)
    for text in wordings:
        assert names_label(text, label), text


def test_a_mixtures_wording_names_both():
    for first, second in zip(LABELS, LABELS[7:] + LABELS[:7]):
        wordings = [captions.caption(first, second), captions.label_list(first, second)]
        wordings += [captions.sentence(prompt, first, second) for prompt in captions.SENTENCE_PROMPTS]
        for text in wordings:
            assert named_labels(text) == {first, second}, text


def test_wordings_by_hand():
    assert captions.caption("dog", "rain") == "Dog barking and rain falling."
    prompts = list(captions.SENTENCE_PROMPTS)
    assert [captions.sentence(prompt, "dog", "rain") for prompt in prompts] == [
        "A dog is barking and rain is falling.",
        "The sound of a dog barking and rain falling.",
        "It sounds like a dog is barking and rain is falling.",
        "I hear a dog barking and rain falling.",
    ]
    assert captions.label_list("dog", "rain") == "Labels: dog barking; rain falling"


# ---------------------------------------------------------------------------------------------------------------
# The recipe, and the checkpoint that it makes
# ---------------------------------------------------------------------------------------------------------------


TRAINED = {f"{name}/{name}_{number}.ogg" for name in ("cow", "dog", "rain") for number in ("one", "two")}
TRAINED |= {"frog/frog_one.ogg", "frog/frog_again.ogg"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A small sound collection in the layout that the recipe reads."""
    data = tmp_path_factory.mktemp("data")
    excluded = "audio/dog/gcompris_b87930b34e.ogg"
    rows = [
        ("audio/dog/dog_one.ogg", "dog", "yes", "train", "ESC-50", "fold1", "dog.ogg"),
        ("audio/dog/dog_two.ogg", "dog", "yes", "train", "ESC-50", "fold3", "dog.ogg"),
        ("audio/cow/cow_one.ogg", "cow", "yes", "train", "sonic-pi-samples", "", "cow.ogg"),
        ("audio/cow/cow_two.ogg", "cow", "yes", "train", "ESC-50", "fold2", "cow.ogg"),
        ("audio/rain/rain_one.ogg", "rain", "yes", "train", "ESC-50", "fold3", "rain.ogg"),
        ("audio/rain/rain_two.ogg", "rain", "yes", "train", "ESC-50", "fold2", "rain.ogg"),
        ("audio/frog/frog_one.ogg", "frog", "yes", "train", "ESC-50", "fold1", "frogs.ogg"),
        ("audio/frog/frog_again.ogg", "frog", "yes", "train", "ESC-50", "fold3", "frogs.ogg"),
        ("audio/rain/rain_gpl.ogg", "rain", "no", "train", "gcompris", "", "rain.ogg"),
        ("audio/rooster/rooster_one.ogg", "rooster", "yes", "val", "ESC-50", "fold4", "rooster.ogg"),
        ("audio/rooster/rooster_two.ogg", "rooster", "yes", "val", "donateacry", "", "rooster.ogg"),
        (excluded, "dog", "yes", "train", "gcompris", "", "dog.ogg"),
    ]
    fields = ["file", "label", "weights_ok", "split", "source", "official_fold"]
    more = {"description": "x", "author_or_url": "someone", "licence": "CC0", "original_label": "y"}
    (data / "sounds").mkdir()
    with open(data / "sounds" / "metadata.csv", "w") as handle:
        writer = csv.DictWriter(handle, [*fields, *more, "recording"])
        writer.writeheader()
        for *values, clip in rows:
            recording = "a pond" if values[1] == "frog" else values[0]
            writer.writerow({**dict(zip(fields, values)), **more, "recording": recording})
            target = data / "sounds" / values[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CLIPS / clip, target)
    return data


@pytest.fixture(scope="module")
def work(collection, tmp_path_factory):
    """What `prepare`, `finish` and `card` leave, with a training that has done nothing in between."""
    work = tmp_path_factory.mktemp("work")
    argv = sys.argv
    try:
        for command in ("prepare", "finish", "card"):
            more = ["--scenes", "8", "--workers", "1"] if command == "prepare" else []
            sys.argv = ["make_sam_tiny", command, "--data", str(collection), "--work", str(work), *more]
            recipe.main()
            if command == "prepare":
                shutil.copytree(work / "initial", work / "stages" / "stage-4" / "last")
                (work / "command.txt").write_text("SEED=7 sh examples/sam_tiny.sh\n")
                score = {"value": 0.5, "interval": [0.4, 0.6], "count": 2, "predictions": [{"correct": True}] * 1}
                (work / "esc50.json").write_text(json.dumps(score))
                kinds = {"binary": {**score, "value": 0.9}, "multiple_choice": {**score, "value": 0.7}}
                (work / "questions.json").write_text(json.dumps({"by_kind": kinds}))
                (work / "pretrained").mkdir()
                (work / "pretrained" / "classifier.json").write_text(json.dumps({**score, "value": 0.6}))
    finally:
        sys.argv = argv
    return work


def rows_of(path) -> list[dict]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_prepare_writes_the_tables(work, collection):
    for name in ("classification", "closed", "open"):
        rows = rows_of(work / f"{name}.csv")
        assert all((work / row["audio"]).is_file() for row in rows)
        clips = {row["audio"] for row in rows if not row["audio"].startswith("scenes/")}
        assert {str(Path(clip).relative_to(collection / "sounds" / "audio")) for clip in clips} == TRAINED
        assert len({row["audio"] for row in rows} - clips) == 8
    single = rows_of(work / "single.csv")
    assert [
        row for row in rows_of(work / "classification.csv") if row["audio"] in {r["audio"] for r in single}
    ] == single
    assert len(single) == 2 * len(TRAINED)
    assert {row["audio"] for row in rows_of(work / "text.csv")} == {""}
    asked = {Path(row["audio"]).name for row in rows_of(work / "questions.csv")}
    assert asked == {"rooster_one.ogg", "rooster_two.ogg"}  # none that was trained on
    validation = rows_of(work / "validation.csv")
    assert [(Path(row["audio"]).parts[-2:], row["answer"]) for row in validation] == [
        (("rooster", "rooster_two.ogg"), "Rooster crowing.")
    ]
    folds = {row["filename"]: row["fold"] for row in rows_of(work / "esc50" / "meta" / "esc50.csv")}
    assert folds == {"dog_two.ogg": "3", "rain_one.ogg": "3", "frog_again.ogg": "3", "rooster_one.ogg": "4"}


def test_development_holds_a_fold_out(collection):
    train, validation = recipe.training_clips(recipe.read_metadata(collection), development=True)
    assert {row["official_fold"] for row in validation} == {"fold3"} and len(validation) == 3
    assert {row["official_fold"] for row in train} == {"fold1", "fold2", ""}
    assert "audio/frog/frog_one.ogg" not in {row["file"] for row in train}  # a recording of the held-out fold
    assert len(train) == 4


def tokens_of_its_own(path):
    tokenizer = AutoProcessor.from_pretrained(path).tokenizer
    assert len(tokenizer("&&")["input_ids"]) == 1
    for text in ("Dog barking and rain falling.", "Ünïcode, 雨\n\n### Response:\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def is_small(path):
    weights = path / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    with safe_open(weights, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) <= 8_000_000
    kept = {name for name in types if name.endswith((".A_log", ".D", ".dt_bias"))}  # a few numbers a layer
    assert {name for name, kind in types.items() if kind != "BF16"} == kept


def loads_by_the_auto_classes(path):
    assert type(AutoConfig.from_pretrained(path)) is SamConfig
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
        model, info = auto_class.from_pretrained(path, output_loading_info=True)
        assert type(model) is SamForConditionalGeneration
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(AutoProcessor.from_pretrained(path)) is SamAudioLanguageProcessor
    assert AutoFeatureExtractor.from_pretrained(path).feature_size == 128


def names_its_code_and_has_none(path):
    models = {name: value for name, value in AUTO_MAP.items() if "Model" in name or name == "AutoConfig"}
    assert models.items() <= json.loads((path / "config.json").read_text())["auto_map"].items()
    written = (path / "processor_config.json").read_text()
    assert AUTO_MAP["AutoProcessor"] in written and AUTO_MAP["AutoFeatureExtractor"] in written
    assert not list(path.rglob("*.py")) and not (path / "__pycache__").exists()


def a_copy_has_its_code(path, copy):
    AutoModel.from_pretrained(path).save_pretrained(copy)
    AutoProcessor.from_pretrained(path).save_pretrained(copy)
    modules = {f"{value.split('.')[0]}.py" for value in AUTO_MAP.values()}
    names = {file.name for file in copy.iterdir()}
    assert modules | {"mamba_sam.py", "kernels_sam.py", "generation_sam.py", "model.safetensors"} <= names


CHECKS = [tokens_of_its_own, is_small, loads_by_the_auto_classes, names_its_code_and_has_none]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_the_recipe_makes(work, check):
    check(work / "sam-tiny")


def test_a_copy_of_what_the_recipe_makes_has_its_code(work, tmp_path):
    a_copy_has_its_code(work / "sam-tiny", tmp_path)


def test_finish_writes_no_weights_without_their_licence(run, work, collection, tmp_path, monkeypatch):
    last = tmp_path / "stages" / "stage-4" / "last"
    shutil.copytree(work / "stages" / "stage-4" / "last", last)
    found = []
    monkeypatch.setattr(recipe, "save_checkpoint", lambda model, processor, folder: found.extend(folder.iterdir()))
    run(recipe, "finish", "--data", collection, "--work", tmp_path)
    assert {path.name for path in found} == {"ATTRIBUTION.csv", "LICENSE"}


def test_finish_attributes_and_card_tells(work):
    files = {row["file"] for row in rows_of(work / "sam-tiny" / "ATTRIBUTION.csv")}
    assert files == {f"audio/{name}" for name in TRAINED}
    card = (work / "sam-tiny" / "README.md").read_text()
    assert "**50.0 %** (1 clips; 95 % interval 40.0 to 60.0 %" in card
    assert all(f"{value} %" in card for value in ("60.0", "90.0", "70.0"))
    assert "SEED=7 sh examples/sam_tiny.sh" in card
    assert "non-commercial" in (work / "sam-tiny" / "LICENSE").read_text()


# ---------------------------------------------------------------------------------------------------------------
# examples/sam-tiny
# ---------------------------------------------------------------------------------------------------------------


@needs_sam_tiny
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sam_tiny(check):
    check(SAM_TINY)


@needs_sam_tiny
def test_a_copy_of_sam_tiny_has_its_code(tmp_path):
    a_copy_has_its_code(SAM_TINY, tmp_path)


@needs_sam_tiny
def test_sam_tinys_card_and_licence():
    card = (SAM_TINY / "README.md").read_text()
    assert re.search(r"^license: other$", card, re.MULTILINE)
    assert re.search(r"^pipeline_tag: audio-text-to-text$", card, re.MULTILINE)
    (value,) = re.findall(r"\*\*(\d+\.\d) %\*\*", card)
    assert float(value) >= 35
    assert "sh examples/sam_tiny.sh" in card and "SEED=" in card and "ESC-50" in card
    assert "CC BY-NC 3.0" in (SAM_TINY / "LICENSE").read_text()


@needs_sam_tiny
def test_sam_tiny_attributes_no_other_licence():
    rows = rows_of(SAM_TINY / "ATTRIBUTION.csv")
    assert len({row["file"] for row in rows}) == len(rows) > 1000
    assert not {row["file"] for row in rows} & recipe.excluded_files()
    for row in rows:
        assert row["author_or_url"] or row["description"] or row["source"], row
        licence = row["licence"].split(" ; pack")[0]  # the recording's own, not that of what it came in
        assert not re.search(r"GPL|-SA|Sampling|ODbL", licence), row


@needs_sam_tiny
@needs_sounds
def test_sam_tiny_attributes_what_it_was_trained_on():
    train, _ = recipe.training_clips(recipe.read_metadata(SHARED))
    attributed = [(row["file"], row["licence"]) for row in rows_of(SAM_TINY / "ATTRIBUTION.csv")]
    assert sorted(attributed) == sorted((row["file"], row["licence"]) for row in train)


@needs_sam_tiny
def test_sam_tiny_describes_the_clips_in_time():
    command = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import sam_alm
from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained(sys.argv[2]), AutoProcessor.from_pretrained(sys.argv[2])
results = {}
for clip in sys.argv[3:]:
    begin = time.perf_counter()
    prompt = "Close-ended question: Write an audio caption describing the sound."
    inputs = processor(text=prompt, audio=clip, overflow="truncate", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]
    results[clip] = processor.decode(tokens, skip_special_tokens=True), time.perf_counter() - begin
print(json.dumps(results))
"""
    arguments = [sys.executable, "-c", command, str(ROOT), str(SAM_TINY), *map(str, AUDIO)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert max(seconds for _, seconds in results.values()) < 2
    assert all(re.fullmatch(r"[A-Z][^\n]{3,120}\.", text) for text, _ in results.values()), results
    assert len({text for text, _ in results.values()}) >= 5  # it hears differences


@needs_sam_tiny
def test_sam_tiny_is_answered_the_same_in_bf16_and_fp32():
    processor = AutoProcessor.from_pretrained(SAM_TINY)
    inputs = processor(text=captions.CAPTION_PROMPT, audio=str(CLIPS / "dog.ogg"), return_tensors="pt")
    begin = time.perf_counter()
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModel.from_pretrained(SAM_TINY, dtype=dtype)
        answers.append(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
    assert answers[0] == answers[1] and time.perf_counter() - begin < 60


# ---------------------------------------------------------------------------------------------------------------
# analyze.py
# ---------------------------------------------------------------------------------------------------------------


def test_table_3_of_two_checkpoints(run, base, tmp_path, capsys):
    tiny_model("time_major").save_pretrained(tmp_path / "b")
    tiny_processor("time_major").save_pretrained(tmp_path / "b")
    run(analyze, "tokens", base, tmp_path / "b", "--clips", CLIPS, "--limit", 2, "--output", tmp_path / "t.json")
    head, row = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    written = json.loads((tmp_path / "t.json").read_text())
    assert head == ["size", "concatenation", "time_major"]
    ranks = [f"{entry['effective_rank']['mean']:.1f}" for entry in written["checkpoints"]]
    assert row[1::3] == ranks and written["clips"]["count"] == written["checkpoints"][0]["count"] == 2


def test_figure_3_and_table_4(run, base, tmp_path, capsys):
    run(analyze, "distance", "--model", base, "--output", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())["connectors"]
    assert [(d["next_time_step"], d["next_band"]) for d in found.values()] == [(1, 0), (9, 1), (1, 65)]
    result = {"benchmark": "esc50", "metric": "accuracy", "value": 0.5, "protocol": "likelihood", "count": 9}
    (tmp_path / "esc.json").write_text(json.dumps({**result, "model": "m", "interval": [0.4, 0.6], "predictions": []}))
    run(analyze, "swap", f"mine={tmp_path / 'esc.json'}", "--output", tmp_path / "s.json")
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row.get("encoder_from") for row in rows] == ["E4", "E5", "E6", None]
    assert rows[3]["model"] == "mine" and rows[3]["ESC"]["value"] == 50
    text = capsys.readouterr().out
    assert "50.0 [40.0, 60.0]" in text and "mine: 9 of the 2,000 clips of ESC-50" in text
