"""What starts the encoder of `examples/sam-tiny`, and the comparison of trained and frozen encoders."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import script, tiny_model, tiny_processor

from sam_lab.training.pretraining import MaskedPatches

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CLIPS = [EXAMPLES / "audio" / name for name in ("cow.ogg", "dog.ogg", "rain.ogg", "rooster.ogg")]


pretrain = script("examples/sam_tiny/pretrain_encoder.py")
distill = script("examples/sam_tiny/distill_encoder.py")
compare = script("benchmarks/joint_or_frozen.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four clips and a scene, as `make_sam_tiny.py` lays them out."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "scenes").mkdir()
    for clip in CLIPS:
        shutil.copy(clip, folder)
    shutil.copy(EXAMPLES / "audio" / "dog_in_rain.flac", folder / "scenes" / "00000.flac")
    captions = {"cow": "Cow mooing.", "dog": "Dog barking.", "rain": "Rain falling.", "rooster": "Rooster crowing."}
    rows = [{"audio": clip.name, "prompt": "What?", "answer": captions[clip.stem]} for clip in CLIPS]
    rows += [{**row, "answer": f"Labels: {row['answer']}"} for row in rows]
    rows.append({"audio": "scenes/00000.flac", "prompt": "What?", "answer": "Dog barking and rain falling."})
    with open(folder / "classification.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, ["audio", "prompt", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "classification.csv"


def tensors(folder):
    return load_file(folder / "model.safetensors")


def trained(folder, base):
    """Which tensors are others than the base's."""
    before, after = tensors(base), tensors(folder)
    assert before.keys() == after.keys()
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_masked_patches_train_the_encoder_and_continue(run, base, table, tmp_path):
    options = ["--model", base, "--train", table, "--output", tmp_path, "--batch-size", 4]
    run(pretrain, *options, "--steps", 2)
    names = trained(tmp_path, base)
    assert names and all(".audio_tower." in name for name in names)
    state = torch.load(tmp_path / "pretraining.pt", weights_only=True)
    assert state["step"] == 2
    first = tensors(tmp_path)
    run(pretrain, *options, "--steps", 2, "--resume")  # nothing left to do
    assert all(torch.equal(first[name], value) for name, value in tensors(tmp_path).items())
    run(pretrain, *options, "--steps", 4, "--resume")
    assert torch.load(tmp_path / "pretraining.pt", weights_only=True)["step"] == 4
    assert trained(tmp_path, base) == names


def test_masked_patches_of_rows_of_text_and_of_clips_in_the_table(run, base, tmp_path, monkeypatch):
    contents = [clip.read_bytes() for clip in CLIPS]
    clips = [{"bytes": content, "path": "1.wav"} for content in contents] + [{"bytes": contents[0], "path": "2.wav"}]
    table = datasets.Dataset.from_dict({"audio": [None, *clips, None]})
    heard, extract = [], pretrain.extract_features
    monkeypatch.setattr(pretrain, "read_table", lambda source: table)
    monkeypatch.setattr(
        pretrain, "extract_features", lambda clips, *rest: heard.extend(clips) or extract(clips, *rest)
    )
    options = ["--model", base, "--train", "x", "--output", tmp_path, "--batch-size", 2, "--steps", 1]
    run(pretrain, *options)
    assert sorted(clip["bytes"] for clip in heard) == sorted(contents)
    table = datasets.Dataset.from_dict({"audio": [None]})
    with pytest.raises(ValueError, match="--train: no row of 'x' has audio"):
        run(pretrain, *options)


def test_a_kill_while_saving_leaves_the_state_before(run, base, table, tmp_path, monkeypatch):
    options = ["--model", base, "--train", table, "--output", tmp_path, "--batch-size", 4]
    run(pretrain, *options, "--steps", 1)
    before = (tmp_path / "pretraining.pt").read_bytes()

    def die(state, target):
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", die)
        run(pretrain, *options, "--steps", 2, "--resume")
    assert (tmp_path / "pretraining.pt").read_bytes() == before
    run(pretrain, *options, "--steps", 2, "--resume")
    assert torch.load(tmp_path / "pretraining.pt", weights_only=True)["step"] == 2


def test_what_is_hidden_cannot_be_seen(base):
    """What the encoder is given does not change with a hidden patch."""
    learner = MaskedPatches(tiny_model().model.audio_tower).eval()
    features = torch.randn(2, 512, 128, generator=torch.Generator().manual_seed(0))
    count = 512 // learner.patch * learner.encoder.config.num_bands
    order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(n)) for n in (1, 2)])
    seen = []
    encode = learner.encoder.encode
    learner.encoder.encode = lambda patches: seen.append(patches) or encode(patches)
    learner(features, order, 0)
    changed = features.clone()
    hidden = order[0, -1].item()  # one hidden patch of the first window
    time, band = divmod(hidden, learner.encoder.config.num_bands)
    size = learner.patch
    changed[0, time * size : (time + 1) * size, band * size : (band + 1) * size] += 5
    learner(changed, order, 0)
    assert torch.equal(seen[0], seen[1]) and seen[0].shape[1] == count - int(0.75 * count)


def test_a_scene_has_no_single_answer(table):
    answers = distill.clips_of(table)
    assert answers["dog.ogg"] == "Dog barking." and answers["scenes/00000.flac"] is None and len(answers) == 5


@pytest.fixture(scope="module")
def scores(table):
    """What a teacher might hear in the clips."""
    clips = sorted(distill.clips_of(table))
    heard = np.random.default_rng(0).normal(size=(len(clips), 7)).astype(np.float32)
    np.savez(table.with_name("scores.npz"), clips=np.array(clips), scores=heard)
    return table.with_name("scores.npz")


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_encoder_learns_scores_and_answers(run, base, table, scores, tmp_path, monkeypatch, capsys):
    esc50 = tmp_path / "esc50"
    (esc50 / "meta").mkdir(parents=True)
    (esc50 / "audio").mkdir()
    for name in ("dog", "rain"):
        shutil.copy(EXAMPLES / "audio" / f"{name}.ogg", esc50 / "audio")
    (esc50 / "meta" / "esc50.csv").write_text("filename,fold,category\ndog.wav,4,dog\nrain.wav,4,rain\n")
    output = tmp_path / "distilled"
    options = ("--train", table, "--scores", scores, "--output", output, "--batch-size", 5)
    options += ("--learning-rate", 3e-3, "--validation", esc50)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # a kill before all is written
        patch.setattr(distill, "validate", interrupt)
        run(distill, "train", "--model", base, *options, "--seconds", 0.01)
    assert not (output / "config.json").exists()
    run(distill, "train", "--model", base, *options, "--seconds", 6)
    names = trained(output, base)
    assert names and all(".audio_tower." in name for name in names)
    result = json.loads((output / "classifier.json").read_text())
    assert result["count"] == 2 and result["value"] in (0.0, 0.5, 1.0)
    assert "the encoder's answers" in capsys.readouterr().out


def test_a_killed_distillation_continues_from_its_state(run, base, table, scores, tmp_path, monkeypatch, capsys):
    options = ["--model", base, "--train", table, "--scores", scores, "--output", tmp_path, "--batch-size", 5]
    monkeypatch.setattr(distill, "SAVE_SECONDS", 0.0)
    states, shares = [], []

    def two_steps(share):
        shares.append(share)
        if len(shares) % 3 == 0:
            raise KeyboardInterrupt
        return 1.0

    with monkeypatch.context() as patch:
        patch.setattr(distill, "warmup_cosine", two_steps)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(distill, "train", *options, "--seconds", 100, "--resume")
            states.append(torch.load(tmp_path / "distilling.pt", weights_only=True))
    assert [state["step"] for state in states] == [2, 4]
    assert {moments["step"].item() for moments in states[1]["optimizer"]["state"].values()} == {4}
    assert shares[3] >= states[0]["spent"] / 100  # the time that was spent is not had again
    run(distill, "train", *options, "--seconds", states[1]["spent"], "--resume")  # nothing left to do
    assert "4 steps of 5 clips" in capsys.readouterr().out
    kept, place = tensors(tmp_path), "model.audio_tower."
    learned = {name.removeprefix("encoder."): value for name, value in states[1]["listener"].items()}
    assert all(torch.equal(value, learned[name[len(place) :]]) for name, value in kept.items() if place in name)
    assert trained(tmp_path, base) and not (tmp_path / "distilling.pt").exists()


def test_padding_is_not_averaged(base):
    """The heads hear the mean over a clip's own time steps."""
    listener = distill.Listener(tiny_model().model.audio_tower, 3, 4).eval()
    features = torch.randn(1, 1024, 128)
    with torch.no_grad():
        tokens = listener.encoder(features).last_hidden_state.unflatten(1, (64, 8))
        expected = listener.answers(tokens[:, :4].mean(dim=(1, 2)))
        torch.testing.assert_close(listener(features, torch.tensor([50]))[1], expected)  # 50 frames: 4 steps of 16


def test_the_comparison_runs_every_combination_and_counts(run, tmp_path, monkeypatch, capsys):
    calls = []

    def call(log, *command):
        calls.append(command)
        output = Path(command[command.index("--output") + 1])
        if command[0] == "evaluate":
            name = output.parent.name
            value = {"frozen": 0.3, "joint": 0.5}[name.split("-")[0]] + 0.02 * int(name[-1])
            output.write_text(json.dumps({"value": value, "count": 50}))
        elif "--stage" not in command:
            (output / "stage-2").mkdir(parents=True)
            (output / "stage-2" / "finished.json").write_text('{"steps": 9, "seconds": 7.5}')

    monkeypatch.setattr(compare, "call", call)
    output = tmp_path / "result.json"
    options = ("--data", tmp_path, "--patches", "patches", "--work", tmp_path / "work", "--output", output)
    run(compare, *options, "--ranks", 2, 4, "--seeds", 0, 1, 2)
    result = json.loads(output.read_text())
    table = {(row["encoder"], row["rank"]): (row["mean"], row["sd"]) for row in result["table"]}
    assert table == {
        (encoder, rank): (pytest.approx(mean), pytest.approx(0.02))
        for encoder, mean in (("frozen", 0.32), ("joint", 0.52))
        for rank in (2, 4)
    }
    assert len(result["runs"]) == 12 and all((each["steps"], each["seconds"]) == (9, 7.5) for each in result["runs"])
    trainings = [command for command in calls if command[0] == "train"]
    assert len(trainings) == 13 and "--stage" in trainings[0]
    frozen = [command for command in trainings if "joint_encoder=false" in command]
    assert len(frozen) == 6 and all("stages.2.trains=[connector, lora]" in command for command in frozen)
    calls.clear()
    run(compare, *options, "--ranks", 2, 4, "--seeds", 0, 1, 2)  # only the start is looked at again
    assert len(calls) == 1
    assert "joint" in capsys.readouterr().out
