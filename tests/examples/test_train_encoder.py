"""The training of sam-tiny's encoder from waveforms: data, teacher, student, duplicates, plans."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shared import SOUNDS, needs
from tiny import script

from audio_sam import SamFeatureExtractor, load_audio
from modeling_sam import SamAudioModel

ROOT = Path(__file__).resolve().parents[2]

data = script("examples/sam_tiny/encoder_data.py")
student = script("examples/sam_tiny/encoder_student.py")
views = script("examples/sam_tiny/encoder_views.py")
trainer = script("examples/sam_tiny/train_encoder.py")
yamnet = script("examples/sam_tiny/yamnet.py")
duplicates = script("examples/sam_tiny/duplicates.py")
CPU = torch.device("cpu")
SMALL = {"width": 32, "layers": 2, "heads": 2, "batch_size": 12, "full_batch_size": 3, "frames": 112, "fold": 3}
HERTZ = {"dog": 300, "rain": 1000, "cow": 3000, "frog": 5000}


def sound(hertz, seconds, seed):
    """A tone in a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16000)) / 16000
    return 0.3 * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6)) + 0.01 * rng.standard_normal(len(time))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A collection in the layout of the real one: tones instead of animals."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, label in enumerate(["dog", "rain", "cow", "frog"] * 8):
        fold = ("fold1", "fold2", "fold3", "fold4", "", "", "", "")[number // 4]
        rows.append(
            {
                "file": f"audio/{label}/clip_{number}.ogg",
                "label": label,
                "weights_ok": "no" if number == 30 else "yes",
                "split": "val" if fold == "fold4" or number // 4 == 6 else "train",
                "source": "ESC-50" if fold else "elsewhere",
                "official_fold": fold,
                # one recording of the held-out fold is also in another
                "recording": "shared" if number in (0, 8) else str(number),
            }
        )
    rows.append({**rows[1], "file": "audio/glass_breaking/cddaccsounds_4639de8a9f.ogg", "recording": "copy"})
    (folder / "sounds").mkdir()
    for number, row in enumerate(rows):
        file = folder / "sounds" / row["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, sound(HERTZ[row["label"]], 0.5 + number % 3, number), 16000)
    with open(folder / "sounds" / "metadata.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A network of YAMNet's form with two convolutions of random weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 1, 3, 3), (8, 1, 3, 3)]
    tensors = {
        f"{index}.weight": torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
        for index, shape in enumerate(shapes)
    }
    tensors |= {f"{index}.scale": torch.full((8,), 0.003) for index in range(2)}
    tensors |= {f"{index}.bias": 0.1 * torch.randn(8, generator=generator) for index in range(2)}
    tensors["head.weight"] = torch.randint(-128, 128, (521, 8), generator=generator).to(torch.int8)
    tensors |= {"head.scale": torch.tensor(0.01), "head.bias": torch.zeros(521)}
    layer = {"stride": [2, 2], "pads": [0, 0, 1, 1], "groups": 1, "limit": 20.0}
    layers = {"input_range": [-6.9, 5.3], "pooled_limit": 10.0}
    layers["convolutions"] = [layer, {**layer, "stride": [1, 1], "pads": [1, 1, 1, 1], "groups": 8}]
    file = tmp_path_factory.mktemp("teacher") / "yamnet.safetensors"
    save_file(tensors, file, {"layers": json.dumps(layers)})
    return file


@pytest.fixture(scope="module")
def packed(collection, teacher_file, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "encoder-data.safetensors"
    data.pack(collection, file, [3, 4], teacher_file)
    return file


@pytest.fixture(scope="module")
def loaded(packed):
    return data.Collection.load(packed, 3, CPU)


def run_of(loaded, packed, tmp_path, **changes):
    settings = trainer.Settings(**{**SMALL, "steps": 6, "evaluate_every": 1e9, **changes})
    return trainer.Run(settings, loaded, trainer.load_teacher(packed, CPU), tmp_path / "state.pt")


# -- Data ---------------------------------------------------------------------------------------------------------


def test_the_held_out_fold_is_not_trained_on(packed, collection):
    for fold, expected in ((3, {"fold1", "fold2", ""}), (4, {"fold1", "fold2", "fold3", ""})):
        found = data.Collection.load(packed, fold, CPU)
        assert {row["official_fold"] for row in found.train.rows} == expected
        assert {row["official_fold"] for row in found.held_out.rows} == {f"fold{fold}"}
        recordings = {row["recording"] for row in found.held_out.rows}
        assert not recordings & {row["recording"] for row in found.train.rows}
        assert all(row["split"] == "train" for row in found.train.rows)
        files = {row["file"] for row in found.train.rows}
        assert "audio/glass_breaking/cddaccsounds_4639de8a9f.ogg" not in files  # a copy of a held-out recording
        assert "audio/cow/clip_30.ogg" not in files  # weights that ship may not hold it
        assert {row["file"] for row in found.outside.rows} == {
            f"audio/{label}/clip_{24 + index}.ogg" for index, label in enumerate(HERTZ)
        }
        assert found.labels == sorted(HERTZ)
    found = data.Collection.load(packed, 3, CPU)
    assert "audio/dog/clip_0.ogg" not in {row["file"] for row in found.train.rows}


def test_packed_clips_are_the_clips(loaded, collection):
    for clips in (loaded.train, loaded.held_out):
        for wave, row in zip(clips.waves(), clips.rows):
            np.testing.assert_array_equal(wave.numpy(), load_audio(collection / "sounds" / row["file"]))
        behind = torch.arange(clips.waveforms.shape[1]) >= clips.num_samples[:, None]
        assert not clips.waveforms[behind].any()


def test_a_fold_that_was_not_packed_is_named(packed):
    with pytest.raises(ValueError, match=r"--fold: got 5, of which .* has no clips"):
        data.Collection.load(packed, 5, CPU)


# -- Teacher ------------------------------------------------------------------------------------------------------


def test_the_teacher_is_clamped_where_its_numbers_end(teacher_file):
    net = yamnet.YamNet(teacher_file)
    patches = torch.randn(3, 96, 64) * 4
    scores, embedding = net(patches)
    x = patches[:, None].numpy().clip(-6.9, 5.3)
    with safe_open(teacher_file, "pt") as store:
        weights = {name: store.get_tensor(name).double().numpy() for name in store.keys()}
    # by hand: padding at the end only with stride 2, then depthwise with padding everywhere
    x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, 0, ::2, ::2]
    x = np.einsum("nhwij,oij->nohw", windows, weights["0.weight"][:, 0] * 0.003) + weights["0.bias"][:, None, None]
    x = np.pad(x.clip(0, 20), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    x = np.einsum("nohwij,oij->nohw", windows, weights["1.weight"][:, 0] * 0.003) + weights["1.bias"][:, None, None]
    pooled = x.clip(0, 20).mean((2, 3)).clip(max=10)
    np.testing.assert_allclose(embedding.numpy(), pooled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), pooled @ weights["head.weight"].T * 0.01, rtol=1e-3, atol=1e-3)


def test_the_teachers_log_mel_is_yamnets():
    """Against the definition: magnitudes of a periodic Hann window, HTK triangles from 125 to 7,500 Hz."""
    net = yamnet.YamNet.__new__(yamnet.YamNet)
    torch.nn.Module.__init__(net)
    net.register_buffer("bank", yamnet.mel_bank())
    net.register_buffer("window", torch.hann_window(400))
    wave = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    found = net.log_mel(wave)
    assert found.shape == (2, 1 + (16000 - 512) // 160, 64)
    mel = np.linspace(*(2595 * math.log10(1 + hertz / 700) for hertz in (125, 7500)), 66)
    edges = 700 * (10 ** (mel / 2595) - 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    hertz = np.arange(257) * 31.25
    for frame in (0, 7):
        part = wave[1, 160 * frame + 56 : 160 * frame + 456].double().numpy() * window  # 400 in the middle of 512
        magnitude = np.abs(np.fft.rfft(part, 512))
        bank = [np.interp(hertz, edges[band : band + 3], [0, 1, 0]) @ magnitude for band in range(64)]
        np.testing.assert_allclose(found[1, frame].numpy(), np.log(np.array(bank) + 1e-6), atol=2e-3)


# -- Student ------------------------------------------------------------------------------------------------------


def test_the_student_is_the_encoder_and_means_of_its_tokens():
    settings = views.Settings(**SMALL)
    net = trainer.build_student(settings, ["a", "b", "c"], None).eval()
    features = torch.randn(2, 1024, 128)
    frames = torch.tensor([1024, 300])
    logits, said, heard = net(features, frames)
    tokens = net.encoder(features).last_hidden_state
    # 300 frames: the patches that begin before frame 300 are 19 of 16 frames
    torch.testing.assert_close(heard[0], tokens[0].mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heard[1], tokens[1, : 19 * 8].mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, net.answers(heard))
    assert said is None


def test_dropped_tokens_have_no_part():
    net = trainer.build_student(views.Settings(**SMALL), ["a", "b"], None).eval()
    features = torch.randn(1, 192, 128)
    keep = torch.tensor([[0, 9, 40, 95]])  # of 12 x 8 patches
    changed = features.clone()
    changed[0, 16:32, :16] += 5.0  # patch 8, which is dropped
    frames = torch.tensor([192])
    first, second, whole = (
        net(*part)[2] for part in ((features, frames, keep), (changed, frames, keep), (features, frames))
    )
    assert torch.equal(first, second) and not torch.allclose(first, whole)
    changed[0, 16:32, 16:32] += 5.0  # patch 9, which is kept
    assert not torch.allclose(first, net(changed, frames, keep)[2])


def test_losses_are_of_standardised_patches_within_the_clip():
    net = student.Student(
        trainer.build_student(views.Settings(**SMALL), ["a", "b"], None).encoder.config, ["a", "b"], 3, 2
    )
    net.teacher_mean.copy_(torch.arange(5.0))
    net.teacher_std.fill_(2.0)
    said = torch.zeros(2, 2, 5)
    scores, embedding = torch.randn(2, 2, 3), torch.randn(2, 2, 2)
    logits, targets = torch.randn(2, 2), torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    frames = torch.tensor([190, 100])  # the second patch of the second clip is filled
    found = student.losses(net, (logits, said, None), targets, (scores, embedding), frames)
    truth = (torch.cat([scores, embedding], 2) - torch.arange(5.0)) / 2
    real = [truth[0, 0], truth[0, 1], truth[1, 0]]
    assert float(found[0]) == pytest.approx(float(-(targets * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)
    assert float(found[1]) == pytest.approx(
        float(torch.stack([each[:3].square().mean() for each in real]).mean()), rel=1e-5
    )
    assert float(found[2]) == pytest.approx(
        float(torch.stack([each[3:].square().mean() for each in real]).mean()), rel=1e-5
    )


def test_a_stored_student_answers_the_same_and_its_encoder_is_the_products(tmp_path):
    net = trainer.build_student(views.Settings(**SMALL), ["a", "b"], None).eval()
    student.save_student(net, tmp_path / "encoder.safetensors", torch.float32)
    again = student.load_student(tmp_path / "encoder.safetensors")
    assert again.labels == ["a", "b"]
    features, frames = torch.randn(1, 1024, 128), torch.tensor([1024])
    assert torch.equal(net(features, frames)[0], again(features, frames)[0])
    encoder = SamAudioModel(again.encoder.config)
    encoder.load_state_dict(again.encoder.state_dict())


# -- Views --------------------------------------------------------------------------------------------------------


def test_views_have_the_products_features(loaded):
    settings = views.Settings(**{**SMALL, "full_repeated": 0.0})
    batches = views.Batches(loaded.train, loaded.labels, settings, None)
    found, _ = batches.views(True)
    features = batches.log_mel(found, views.FULL_FRAMES)
    waves = [wave[:count] for wave, count in zip(found.waveforms, found.num_samples.tolist())]
    expected = SamFeatureExtractor()(waves, 16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)
    batch = batches.next(False)
    assert batch["features"].shape == (12, 112, 128) and batch["keep"].shape == (12, 42)  # three quarters of 56
    assert all(len(set(row)) == 42 for row in batch["keep"].tolist())
    torch.testing.assert_close(batch["targets"].sum(dim=1), torch.ones(12))


# -- Training -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_a_few_steps_lower_the_losses(loaded, packed, tmp_path, optimizer):
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    run = run_of(loaded, packed, tmp_path, steps=60, optimizer=optimizer, learning_rate=5e-3, evaluate_every=0)
    assert run.train()
    first, last = run.curve[0], run.curve[-1]
    assert last["step"] == 60
    assert last["scores"] < first["scores"] and last["loss"] < 0.9 * first["loss"]


@pytest.mark.slow
def test_resuming_is_as_if_nothing_had_happened(loaded, packed, tmp_path):
    (tmp_path / "part").mkdir()
    optimizer = "muon" if hasattr(torch.optim, "Muon") else "adamw"
    whole = run_of(loaded, packed, tmp_path, steps=22, full_steps=5, optimizer=optimizer)
    assert whole.train()
    first = run_of(loaded, packed, tmp_path / "part", steps=22, full_steps=5, optimizer=optimizer)
    assert not first.train(deadline=0.0)  # stops at the first look at the clock
    assert 0 < first.step < 22
    second = run_of(loaded, packed, tmp_path / "part", steps=22, full_steps=5, optimizer=optimizer)
    second.resume()
    assert second.step == first.step
    assert second.train()
    for part in ("student", "average"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(second, part).state_dict()[name]), name


def test_a_state_of_other_settings_is_refused(loaded, packed, tmp_path):
    run_of(loaded, packed, tmp_path).save()
    with pytest.raises(ValueError, match=r"--resume: .* belongs to other settings"):
        run_of(loaded, packed, tmp_path, learning_rate=1.0).resume()


def test_a_teacher_that_is_missing_is_named(loaded, packed, tmp_path):
    with pytest.raises(ValueError, match="--teacher: --data has none"):
        trainer.Run(trainer.Settings(**SMALL), loaded, None, tmp_path / "state.pt")


def test_the_average_is_a_mean_at_first(loaded, packed, tmp_path):
    run = run_of(loaded, packed, tmp_path, teacher=False)
    weight, average = run.student.answers.weight, run.average.answers.weight
    start = average.clone()
    with torch.no_grad():
        weight.add_(1.0)
    run.step = 10
    run.follow()
    torch.testing.assert_close(average, start + 0.5)  # 10 / 20
    run.step = 10**9
    run.follow()
    torch.testing.assert_close(average, torch.lerp(start + 0.5, weight.detach(), 0.001))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", *map(str, arguments)])
    trainer.main()


def options(**changes):
    settings = {**SMALL, "optimizer": "adamw", **changes}
    return [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]


def test_train_writes_the_encoder_and_its_score(packed, tmp_path, monkeypatch):
    command(
        monkeypatch,
        "train",
        "--data",
        packed,
        "--output",
        tmp_path / "out",
        *options(steps=4, full_steps=1),
        "--no-teacher",
    )
    found = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert found["count"] == 4 and found["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert found["settings"]["optimizer"] == "adamw" and found["settings"]["fold"] == 3
    assert found["steps"] == 4 and found["train_clips"] == len(data.Collection.load(packed, 3, CPU).train)
    assert found["torch"] == torch.__version__ and found["device"] == "CPU" and found["clips_per_second"] > 0
    assert {"full", "crop", "outside", "neighbours", "nll"} <= set(found["scores"])
    assert found["curve"][-1]["step"] == 4 and {"seconds", "loss", "full"} <= set(found["curve"][-1])
    assert found["parameters"] == sum(
        each.numel() for each in student.load_student(tmp_path / "out" / "encoder.safetensors").encoder.parameters()
    )
    with safe_open(tmp_path / "out" / "encoder.safetensors", "pt") as store:
        assert store.get_tensor("answers.weight").dtype == torch.bfloat16
    assert not (tmp_path / "out" / "state.pt").exists()


@pytest.mark.slow
def test_a_plan_continues_where_it_was_cut(packed, tmp_path, monkeypatch, capsys):
    plan = {
        "common": {**SMALL, "optimizer": "adamw", "steps": 12},
        "seeds": [0, 1],
        "runs": {"one": {}, "alone": {"teacher": False}},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    results = tmp_path / "results.jsonl"
    arguments = [
        "plan",
        "--data",
        packed,
        "--plan",
        tmp_path / "plan.json",
        "--work",
        tmp_path / "work",
        "--results",
        results,
    ]
    command(monkeypatch, *arguments, "--until", 0.01, "--least", -1000)
    assert "one-0 stopped after" in capsys.readouterr().out and not results.exists()
    assert (tmp_path / "work" / "one-0" / "state.pt").exists()
    command(monkeypatch, *arguments, "--part", "2/2")
    assert [json.loads(line)["name"] for line in results.read_text().splitlines()] == ["alone-0", "alone-1"]
    results.write_text(results.read_text() + '{"name": "one-1", "accura')  # killed while it wrote
    command(monkeypatch, *arguments)
    found = trainer.read_results(results)
    assert [each["name"] for each in found] == ["alone-0", "alone-1", "one-0", "one-1"]
    assert [each["settings"]["seed"] for each in found] == [0, 1, 0, 1]
    assert [each["settings"]["teacher"] for each in found] == [False, False, True, True]
    before = results.read_text()
    command(monkeypatch, *arguments)
    assert results.read_text() == before


def test_the_committed_plan_can_be_read():
    runs = trainer.planned(json.loads((ROOT / "examples" / "sam_tiny" / "encoder_experiments.json").read_text()))
    assert len(runs) == len({name for name, _ in runs}) and all(settings.fold == 3 for _, settings in runs)


# -- Duplicates ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recording_is_found_under_another_name(tmp_path):
    rng = np.random.default_rng(0)

    def hits(seed, seconds=5.0):
        """Some short decaying sounds of one colour in a quiet noise."""
        rng = np.random.default_rng(seed)
        wave = 0.003 * rng.standard_normal(int(seconds * 16000))
        for _ in range(4):
            start = rng.integers(0, len(wave) - 4000)
            wave[start : start + 4000] += 0.3 * rng.standard_normal(4000) * np.exp(-np.arange(4000) / 800)
        return wave.astype(np.float32)

    references = {f"held out {index}": hits(index) for index in range(8)}
    sounds = {f"other {index}": hits(100 + index) for index in range(20)}
    copy = references["held out 3"]
    energy = np.convolve(copy**2, np.ones(8000), "valid").argmax()
    soundfile.write(tmp_path / "copy.ogg", 0.2 * copy[energy : energy + 8000], 16000)  # a part, coded, quieter
    sounds["a part"] = load_audio(tmp_path / "copy.ogg")
    longer = np.concatenate([np.zeros(16000), 0.5 * references["held out 5"], np.zeros(8000)])
    sounds["later"] = (longer + 0.002 * rng.standard_normal(len(longer))).astype(np.float32)
    found = duplicates.find(sounds, references)
    assert {(pair["sound"], pair["reference"]) for pair in found} == {
        ("a part", "held out 3"),
        ("later", "held out 5"),
    }


@pytest.mark.slow
@needs(SOUNDS)
def test_the_known_pairs_are_found():
    pairs = {
        "glass_breaking/cddaccsounds_4639de8a9f.ogg": "glass_breaking/esc50_48fb398626.ogg",
        "clock_alarm/esc50_2161213dac.ogg": "clock_alarm/esc50_ea05f8cf5b.ogg",
    }
    folder = SOUNDS / "audio"
    others = sorted(
        str(file.relative_to(folder)) for kind in ("dog", "clapping") for file in (folder / kind).glob("*")
    )
    sounds = {name: load_audio(folder / name) for name in [*pairs, *others[:30]]}
    references = {name: load_audio(folder / name) for name in pairs.values()}
    found = duplicates.find(sounds, references)
    assert {pair["sound"]: pair["reference"] for pair in found} == pairs and len(found) == 2
    assert "audio/glass_breaking/cddaccsounds_4639de8a9f.ogg" in data.duplicates()
