"""Rank, similarity, clips, stages of a training and distances, each against another way to get it; and the figures."""

import csv
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_config, tiny_model, tiny_processor, tone

from audio_sam import SamFeatureExtractor
from configuration_sam import CONNECTORS, SamConfig
from modeling_sam import SamAudioModel
from sam_lab.commands import analyze as analyze_module
from sam_lab.paper import figures as figures_module
from sam_lab.paper.analysis import (
    analyse_checkpoint,
    analyse_encoder,
    analyse_run,
    choose_clips,
    effective_rank,
    size_name,
    slot_positions,
    state_update_distance,
    token_similarity,
)
from sam_lab.paper.figures import draw_stages, table_3_text
from sam_lab.training.curriculum import run_recipe
from sam_lab.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]


# -- Rank and similarity ------------------------------------------------------------------------------------------


def with_spectrum(values, rows=20, columns=30, seed=0) -> torch.Tensor:
    """A matrix of these singular values, in directions of no meaning."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0][:, : len(values)]
        for size in (rows, columns)
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def rank_by_svd(tokens, tau=0.95) -> int:
    """Equation 4 word by word."""
    squares = np.linalg.svd(np.asarray(tokens, np.float64), compute_uv=False) ** 2
    k = 1
    while squares[:k].sum() / squares.sum() < tau:
        k += 1
    return k


def similarity_by_pairs(tokens) -> float:
    tokens = np.asarray(tokens, np.float64)
    cosines = [
        one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
        for i, one in enumerate(tokens)
        for j, other in enumerate(tokens)
        if i != j
    ]
    return float(np.mean(cosines))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)], ids=["wide", "tall"])
def test_the_rank_of_known_spectra(shape):
    assert effective_rank(with_spectrum([7.0], *shape)) == 1
    assert effective_rank(with_spectrum([1.0] * 20, *shape)) == 19  # 19 / 20 is 0.95, and reaches it
    assert effective_rank(with_spectrum([1.0] * 20, *shape), 0.951) == 20
    assert effective_rank(with_spectrum([1.0] * 10, *shape)) == 10  # 9 / 10 does not
    # energies 16, 3, 1 of 20: shares 0.8, 0.95, 1
    for tau, rank in [(0.01, 1), (0.8, 1), (0.8001, 2), (0.95, 2), (0.9501, 3), (1, 3)]:
        assert effective_rank(with_spectrum([1.0, 4.0, 3**0.5], *shape), tau) == rank


def test_orthogonal_rows_and_every_border():
    for count in (5, 20, 40):
        tokens = 3 * torch.eye(count, 64)
        for rank in range(1, count + 1):
            assert effective_rank(tokens, rank / count) == rank


def test_the_rank_is_equation_4_not_centred():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(60, 40, generator=generator) @ torch.randn(40, 48, generator=generator) + 2
    for tau in (0.5, 0.9, 0.95, 0.99):
        assert effective_rank(tokens, tau) == rank_by_svd(tokens, tau)
    assert effective_rank(torch.ones(9, 5)) == 1  # centred, nothing would be left of it
    assert (
        effective_rank(tokens.double().numpy() * 1e-200)
        == effective_rank(tokens.double() * 1e200)
        == effective_rank(tokens)
    )
    assert effective_rank(tokens.bfloat16()) == rank_by_svd(tokens.bfloat16().float())


def test_similarity_is_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(37, 8, generator=generator) + 0.4
    assert token_similarity(tokens) == pytest.approx(similarity_by_pairs(tokens), abs=1e-12)
    assert token_similarity(torch.eye(5)) == pytest.approx(0, abs=1e-15)
    assert token_similarity(torch.tensor([[1.0, 0], [-3, 0]])) == -1
    assert token_similarity(torch.tensor([[1.0, 2], [2, 4], [5, 10]])) == pytest.approx(1)
    half = torch.tensor([[1.0, 0], [0.5, 3**0.5 / 2]])  # 60 degrees
    assert token_similarity(half) == pytest.approx(0.5, abs=1e-7)
    almost = torch.ones(512, 768, dtype=torch.bfloat16)
    assert token_similarity(almost) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("measure", [effective_rank, token_similarity])
def test_tokens_that_cannot_be_measured(measure):
    good = torch.ones(4, 3)
    for shape in [(4,), (1, 4, 3), (0, 3), (4, 0)]:
        with pytest.raises(ValueError, match=r"tokens: got shape .*expected \[tokens, dimensions\]"):
            measure(torch.ones(shape))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tokens: got numbers that are not finite"):
            measure(good.index_fill(0, torch.tensor([2]), value))
    with pytest.raises(ValueError, match="nothing but zeros"):
        measure(0 * good)


def test_other_arguments_that_are_wrong():
    for tau in (0, -0.5, 1.01, 95, float("nan")):
        with pytest.raises(ValueError, match=r"tau: got .*expected a share greater than 0 and at most 1"):
            effective_rank(torch.ones(4, 3), tau)
    with pytest.raises(ValueError, match="number 2 is zero"):
        token_similarity(torch.ones(4, 3).index_fill(0, torch.tensor([2]), 0))
    assert effective_rank(torch.ones(4, 3).index_fill(0, torch.tensor([2]), 0)) == 1
    with pytest.raises(ValueError, match="at least two tokens"):
        token_similarity(torch.ones(1, 3))


# -- Clips --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Noises and tones of 0.03 to 12 s, a broken file and a text, with tables of them."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(0)
    for index, seconds in enumerate((0.03, 0.5, 2.0, 12.0)):
        noise = rng.normal(0, 0.1, int(seconds * 16000)).clip(-1, 1)
        soundfile.write(folder / f"noise-{index}.wav", noise, 16000)
        soundfile.write(folder / "deep" / f"tone-{index}.flac", tone(seconds, frequency=300 * (index + 1)), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF and no more")
    (folder / "notes.md").write_text("no sound")
    names = ["deep/tone-1.flac", "noise-2.wav", "noise-2.wav", "noise-1.wav"]
    (folder / "clips.csv").write_text("label,file_name\n" + "".join(f'"a, b",{name}\n' for name in names))
    (folder / "excel.csv").write_text((folder / "clips.csv").read_text(), encoding="utf-8-sig")
    (folder / "clips.json").write_text(json.dumps([{"audio": name} for name in names]))
    (folder / "clips.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    return folder


def test_clips_of_a_folder_and_a_table(sounds):
    clips = choose_clips(sounds)
    assert len(clips.names) == clips.available == 9 and "deep/tone-0.flac" in clips.names
    assert clips.clips[0].audio == str(sounds / "broken.wav") and clips.names == sorted(clips.names)
    expected = ["deep/tone-1.flac", "noise-2.wav", "noise-1.wav"]
    for table in ("clips.csv", "excel.csv", "clips.json", "clips.jsonl"):
        listed = choose_clips(sounds / table)
        assert listed.names == expected
        assert listed.to_dict()["sha256"] == hashlib.sha256("\n".join((*expected, "")).encode()).hexdigest()


def test_some_clips_by_a_seed(sounds):
    one, again, other = (choose_clips(sounds, 4, seed) for seed in (1, 1, 3))
    assert one.names == again.names != other.names
    assert len(set(one.names)) == 4 and list(one.names) == sorted(one.names)
    about = one.to_dict()
    assert (about["limit"], about["seed"], about["count"], about["available"]) == (4, 1, 4, 9)
    assert about["sha256"] != other.to_dict()["sha256"]
    assert choose_clips(sounds, 100).names == choose_clips(sounds).names


def test_clips_that_are_not_there(sounds, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        choose_clips(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no audio"):
        choose_clips(tmp_path)
    with pytest.raises(ValueError, match="limit: got 0"):
        choose_clips(sounds, 0)
    with pytest.raises(ValueError, match=r"expected a folder or one of \.parquet"):
        choose_clips(sounds / "notes.md")
    (tmp_path / "t.csv").write_text("sound,label\na.wav,b\n")
    with pytest.raises(ValueError, match=r"none of audio, .* name one of its columns: sound, label"):
        choose_clips(tmp_path / "t.csv")


def test_audio_inside_a_dataset_is_told_apart_by_its_row(sounds, tmp_path):
    rows = [{"bytes": (sounds / f"noise-{index}.wav").read_bytes(), "path": "audio.wav"} for index in (1, 2)]
    table = datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio(decode=False))
    table.save_to_disk(str(tmp_path / "table"))
    clips = choose_clips(tmp_path / "table")
    assert clips.available == 2 and clips.names == ["audio.wav", "audio.wav"]
    result = analyse_encoder(tiny_model().model.audio_tower, SamFeatureExtractor(), clips)
    assert [row["seconds"] for row in result["clips"]] == [0.5, 2.0]


def test_a_row_and_a_name_that_are_no_clip_are_left_out(sounds, tmp_path):
    """A row without a file; a name that is no text."""
    encoder, extractor = tiny_model().model.audio_tower, SamFeatureExtractor()
    (tmp_path / "t.csv").write_text(f"file,label\n,a\n{sounds / 'noise-1.wav'},b\n")
    result = analyse_encoder(encoder, extractor, choose_clips(tmp_path / "t.csv"))
    assert result["count"] == 1 and [each["audio"] for each in result["failed"]] == ["0000000000"]
    (tmp_path / "folder").mkdir()
    shutil.copy(sounds / "noise-1.wav", tmp_path / "folder")
    shutil.copy(sounds / "noise-1.wav", os.fsencode(tmp_path / "folder") + b"/caf\xe9.wav")
    clips = choose_clips(tmp_path / "folder")
    result = analyse_encoder(encoder, extractor, clips)
    assert (
        clips.to_dict()["names"] == ["caf\\xe9.wav", "noise-1.wav"] and result["count"] == 2 and not result["failed"]
    )


# -- Encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", CONNECTORS)
def test_an_encoder_is_measured_by_what_the_model_hears(sounds, connector):
    model, processor = tiny_model(connector), tiny_processor(connector)
    clips = choose_clips(sounds)
    result = analyse_encoder(model, processor.feature_extractor, clips, 0.9999, batch_size=3, with_connector=True)
    assert [failure["audio"] for failure in result["failed"]] == ["broken.wav"]
    assert "cannot be decoded" in result["failed"][0]["error"]
    assert result["count"] == 8 and result["truncated"] == 2 and result["shape"] == [512, 32]
    heard = []
    hook = model.model.audio_tower.register_forward_hook(lambda *args: heard.append(args[2].last_hidden_state[0]))
    for row in result["clips"]:  # one by one, in a prompt
        inputs = processor("What?", str(sounds / row["audio"]), overflow="truncate", return_tensors="pt")
        with torch.no_grad():
            connected = model(**inputs).audio_hidden_states[0]
        assert row["effective_rank"] == rank_by_svd(heard[-1], 0.9999)
        assert row["token_similarity"] == pytest.approx(naive(heard[-1]), abs=1e-6)
        assert row["connector"]["effective_rank"] == rank_by_svd(connected, 0.9999)
        assert row["connector"]["token_similarity"] == pytest.approx(naive(connected), abs=1e-6)
    hook.remove()
    assert result["connector"]["shape"] == [64 if connector == "concatenation" else 512, 32]
    assert {row["audio"]: row["seconds"] for row in result["clips"]}["noise-1.wav"] == 0.5
    for key in ("effective_rank", "token_similarity"):
        values = [row[key] for row in result["clips"]]
        assert len(set(values)) > 1
        expected = {"mean": np.mean(values), "std": np.std(values, ddof=1), "min": min(values), "max": max(values)}
        assert result[key] == pytest.approx(expected)


def naive(tokens) -> float:
    """All cosines at once, without the diagonal."""
    units = torch.nn.functional.normalize(tokens.double(), dim=1)
    cosines = units @ units.T
    return float(cosines[~torch.eye(len(units), dtype=torch.bool)].mean())


def test_a_batch_is_as_its_clips_alone(sounds):
    encoder, extractor = tiny_model().model.audio_tower, SamFeatureExtractor()
    paths = sorted(sounds.glob("noise-*.wav"))
    together = analyse_encoder(encoder, extractor, paths, 0.9999, batch_size=4)["clips"]
    for path, row in zip(paths, together):
        alone = analyse_encoder(encoder, extractor, [path], tau=0.9999)
        assert alone["clips"][0]["effective_rank"] == row["effective_rank"]
        assert alone["clips"][0]["token_similarity"] == pytest.approx(row["token_similarity"], abs=1e-6)
        assert alone["effective_rank"]["std"] is None


def test_in_bf16_the_numbers_are_near(sounds):
    encoder, extractor = tiny_model().model.audio_tower, SamFeatureExtractor()
    clip = {"array": tone(2), "sampling_rate": 16000}
    exact, rough = (analyse_encoder(e, extractor, [clip]) for e in (encoder, encoder.bfloat16()))
    assert rough["token_similarity"]["mean"] == pytest.approx(exact["token_similarity"]["mean"], abs=0.02)
    assert rough["clips"][0]["audio"] == "clip 0"


def test_nothing_to_measure_is_an_error(sounds):
    encoder, extractor = tiny_model().model.audio_tower, SamFeatureExtractor()
    with pytest.raises(ValueError, match=r"none of 1 could be measured; the first: .*broken\.wav"):
        analyse_encoder(encoder, extractor, [sounds / "broken.wav"])
    with pytest.raises(ValueError, match="with_connector: got only an encoder"):
        analyse_encoder(encoder, extractor, [sounds / "noise-1.wav"], with_connector=True)
    with pytest.raises(ValueError, match="tau: got 2"):
        analyse_encoder(encoder, extractor, [sounds / "noise-1.wav"], tau=2)
    with pytest.raises(ValueError, match="batch_size: got -1"):
        analyse_encoder(encoder, extractor, [sounds / "noise-1.wav"], batch_size=-1)
    encoder.pre_norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"none of 1 could be measured.*not finite"):
        analyse_encoder(encoder, extractor, [sounds / "noise-1.wav"])


def saved(folder, seed=0, connector="concatenation", **text):
    """A tiny checkpoint in bf16, as the stages of a training keep theirs."""
    model = tiny_model(connector, seed, **text)
    for name, parameter in model.named_parameters():
        if not name.endswith(("A_log", ".D", "dt_bias")):
            parameter.data = parameter.data.bfloat16()
    model.save_pretrained(folder)
    tiny_processor(connector).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint") / "tiny")


def test_a_checkpoint_and_its_encoder_alone_are_the_same(sounds, checkpoint, tmp_path):
    clips = choose_clips(sounds / "clips.csv")
    whole = analyse_checkpoint(checkpoint, clips, with_connector=True)
    part = analyse_checkpoint(checkpoint, clips)
    encoder = SamAudioModel.from_pretrained(checkpoint, dtype=torch.float32)
    encoder.save_pretrained(tmp_path / "encoder")
    alone = analyse_checkpoint(tmp_path / "encoder", clips)
    assert whole["clips"][0].pop("connector") and part["clips"][0] == alone["clips"][0] == whole["clips"][0]
    assert whole["encoder_sha256"] == part["encoder_sha256"] == alone["encoder_sha256"]
    assert (part["stored_dtype"], alone["stored_dtype"], part["dtype"]) == ("bfloat16", "float32", "float32")
    assert (part["connector_layout"], alone["connector_layout"], alone["size"]) == ("concatenation", None, None)
    encoder.pre_norm.bias.data[0] += 1e-3
    encoder.save_pretrained(tmp_path / "encoder")
    assert analyse_checkpoint(tmp_path / "encoder", clips)["encoder_sha256"] != alone["encoder_sha256"]


def test_a_checkpoint_without_its_encoder_is_an_error(checkpoint, sounds, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "blocks.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 12 tensors, such as blocks\.1\."):
        analyse_checkpoint(tmp_path, choose_clips(sounds))
    with pytest.raises(ValueError, match=r"lacks 12 tensors, such as model\.audio_tower\.blocks\.1\."):
        analyse_checkpoint(tmp_path, choose_clips(sounds), with_connector=True)


def test_sizes_have_the_papers_names():
    for size, name in [("130m", "130M"), ("780m", "780M"), ("2.7b", "2.7B")]:
        assert size_name(SamConfig.from_preset(size)) == name
    count = sum(p.numel() for p in tiny_model().model.language_model.parameters())
    assert size_name(tiny_config()) == f"{count / 1e6:.1f}M"


# -- Stages (Figure 2) --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(checkpoint, sounds, tmp_path_factory):
    """A training by `toy.yaml`, and the same when it was at its third stage."""
    folder = tmp_path_factory.mktemp("runs")
    with open(folder / "rows.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["audio", "prompt", "answer"])
        writer.writerows([sounds / f"noise-{index}.wav", "What?", "A noise"] for index in (0, 1, 2, 2))
    data = [f"data.{name}.path={folder / 'rows.csv'}" for name in ("classification", "closed", "mix")]
    # stages 2 to 4 are to move the encoder where bf16 shows it
    rates = [f"stages.{number}.learning_rate=1e-2" for number in (2, 3, 4)]
    changes = [f"model={checkpoint}", "validation=null", "warmup_steps=0", *data, *rates]
    recipe = load_recipe(ROOT / "sam_lab" / "training" / "recipes" / "toy.yaml", changes)
    run_recipe(recipe, folder / "whole")
    shutil.copytree(folder / "whole", folder / "half", ignore=shutil.ignore_patterns("stage-4", "stage-3"))
    (folder / "half" / "stage-3" / "checkpoint-1").mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_a_curve_begins_at_the_untouched_encoder(runs, checkpoint, sounds):
    clips = choose_clips(sounds / "clips.csv")
    start = analyse_checkpoint(checkpoint, clips)
    curve = analyse_run(runs / "whole", start, clips)
    assert [point["stage"] for point in curve["points"]] == ["start", 1, 2, 3, 4] and curve["unfinished"] == []
    hashes = [point["encoder_sha256"] for point in curve["points"]]
    assert hashes[0] == hashes[1]  # the first stage trains the connector alone
    assert len(set(hashes)) == 4
    assert curve["points"][1]["clips"] == start["clips"] != curve["points"][2]["clips"]
    assert [point["trains"] for point in curve["points"][1:3]] == [["connector"], ["connector", "encoder", "lora"]]
    last = analyse_checkpoint(runs / "whole" / "stage-4" / "last", clips)
    assert curve["points"][4]["clips"] == last["clips"]  # which is stored in bf16 here
    assert (curve["connector_layout"], curve["size"]) == ("concatenation", last["size"])
    half = analyse_run(runs / "half", start, clips)
    assert [point["stage"] for point in half["points"]] == ["start", 1, 2] and half["unfinished"] == [3, 4]


def test_folders_that_are_no_training(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no recipe\.yaml, expected an output folder"):
        analyse_run(tmp_path, {}, [])
    (tmp_path / "recipe.yaml").write_text("stages.1.name: one")
    with pytest.raises(FileNotFoundError, match=r"has no stage-N/finished\.json"):
        analyse_run(tmp_path, {}, [])


def curve(*ranks, stages=(1, 2, 3, 4)):
    points = [{"stage": s, "effective_rank": {"mean": r, "std": 4.0}, "count": 16} for s, r in zip(stages, ranks[1:])]
    return {"points": [{"stage": "start", "effective_rank": {"mean": ranks[0], "std": None}, "count": 16}, *points]}


def with_tau(curves):
    for each in curves.values():
        each["points"][0]["tau"] = 0.9
    return curves


def test_figure_2_has_a_curve_for_each_model(tmp_path):
    curves = with_tau(
        {"130M": curve(60, 60, 57, 55, 53), "780M": curve(60, 60, 58), "2.7B": curve(60, 57, stages=(3,))}
    )
    figure = draw_stages(curves, tmp_path / "figure.png")
    (axes,) = figure.axes
    lines = [container.lines[0] for container in axes.containers]
    assert [list(line.get_xdata()) for line in lines] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 3]]
    assert [list(line.get_ydata()) for line in lines] == [[60, 60, 57, 55, 53], [60, 60, 58], [60, 57]]
    for get in ("get_marker", "get_linestyle", "get_color"):
        assert len({getattr(line, get)() for line in lines}) == 3
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [round(segment[1][1] - segment[0][1], 6) for segment in bars] == [0, 2, 2, 2, 2]  # 2 * 4 / sqrt(16)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["130M", "780M", "2.7B"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["untouched", "1", "2", "3", "4"]
    assert axes.get_ylabel() == "0.9-effective rank"
    image = (tmp_path / "figure.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n") and image.endswith(b"IEND\xaeB`\x82")
    draw_stages(curves, tmp_path / "figure.PDF")
    assert (tmp_path / "figure.PDF").read_bytes().startswith(b"%PDF")
    draw_stages(curves, tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("}svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.PDF", "figure.png", "figure.svg"]
    with pytest.raises(ValueError, match=r"figure: got 'a\.gif', expected a name that ends in \.png"):
        draw_stages(curves, "a.gif")


def test_a_figure_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sam-alm\[eval\]'"):
        draw_stages(with_tau({"130M": curve(1, 2)}))
    with pytest.raises(ImportError, match=r"sam-alm\[eval\]"):
        figures_module.check_figure("a.png")


# -- Distances (Figure 3) -----------------------------------------------------------------------------------------


def walked(connector):
    """The order of section 2.3, slot by slot: which tokens (time step, band) the model reads there."""
    if connector == "concatenation":
        return [[(time, band) for band in range(8)] for time in range(64)]
    if connector == "time_major":
        return [slot for time in range(64) for slot in [*([(time, band)] for band in range(8)), []]]
    return [slot for band in range(8) for slot in [*([(time, band)] for time in range(64)), []]]


@pytest.mark.parametrize(
    ("connector", "time", "band"), [("concatenation", 1, 0), ("time_major", 9, 1), ("frequency_major", 1, 65)]
)
def test_distances_are_those_of_a_walk_over_the_slots(connector, time, band):
    slots = walked(connector)
    places = {token: place for place, slot in enumerate(slots) for token in slot}
    positions = slot_positions(tiny_config(connector))
    assert positions.shape == (64, 8)
    assert all(positions[token] == place for token, place in places.items())
    steps = {abs(places[t + 1, b] - places[t, b]) for t in range(63) for b in range(8)}
    bands = {abs(places[t, b + 1] - places[t, b]) for t in range(64) for b in range(7)}
    assert (steps, bands) == ({time}, {band})
    expected = {"next_time_step": time, "next_band": band, "slots": len(slots)}
    assert state_update_distance(SamConfig.from_preset("130m", connector)) == expected


# -- Table 3 ------------------------------------------------------------------------------------------------------


def entry(size, connector, rank, similarity):
    numbers = {"effective_rank": {"mean": rank}, "token_similarity": {"mean": similarity}}
    return {"size": size, "connector_layout": connector, **numbers}


def test_table_3_is_size_by_connector():
    entries = [
        ("780M", entry("780M", "concatenation", 50.04, 0.314)),
        ("tiny", entry("0.1M", "time_major", 7, -0.5)),
        ("780M", entry("780M", "time_major", 40, 0.4)),
    ]
    lines = table_3_text(entries).splitlines()
    assert lines[1].split() == ["size", "concatenation", "time_major"]
    assert lines[2] == "780M  50.0 / 0.31 (55.7 / 0.40)  40.0 / 0.40 (50.0 / 0.47)"
    assert lines[3].split() == ["tiny", "7.0", "/", "-0.50"]  # in the second column, without the paper's
    assert len(lines[3]) == len(lines[2])
    with pytest.raises(ValueError, match="two are 780M with time_major; name rows"):
        table_3_text([*entries, entries[2]])


# -- The command --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_command_draws_figure_2_and_prints_table_3(
    command, runs, checkpoint, sounds, tmp_path, capsys, monkeypatch
):
    figures = []
    monkeypatch.setattr(analyze_module, "draw_stages", lambda *args: figures.append(figures_module.draw_stages(*args)))
    names = ["first=" + str(runs / "whole"), "second=" + str(runs / "half")]
    options = ["--start", checkpoint, "--clips", sounds, "--limit", 6, "--seed", 3, "--tau", 0.9, "--device", "cpu"]
    command(
        "analyze", "stages", *names, *options, "--figure", tmp_path / "new" / "f.png", "--output", tmp_path / "f.json"
    )
    text = capsys.readouterr().out
    assert len(figures[0].axes[0].containers) == 2 and (tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "f.json").read_text())
    assert (written["analysis"], written["tau"], written["dtype"]) == ("stages", 0.9, "float32")
    assert {"torch", "transformers", "sam-alm"} <= written["versions"].keys()
    expected = choose_clips(sounds, 6, 3)
    assert written["clips"] == {**expected.to_dict(), "names": list(expected.names)}
    counts = {point["count"] + len(point["failed"]) for c in written["curves"] for point in c["points"]}
    assert counts == {6}
    assert f"{runs / 'half'}: stages 3, 4 are not finished, and are skipped" in text
    rows = [line.split() for line in text.split("0.9-effective rank\n")[1].splitlines()]
    assert rows[0] == ["after", "stage", "first", "second"]
    by_stage = {str(p["stage"]): f"{p['effective_rank']['mean']:.1f}" for p in written["curves"][0]["points"]}
    assert {row[0]: row[1] for row in rows[1:6]} == by_stage
    assert "first  " in text.split("cosine similarity")[1] and "second " in text.split("cosine similarity")[1]
    if "broken.wav" in expected.names:
        assert "broken.wav is skipped" in text
    twice = ("stages", runs / "half", runs / "half", *options, "--output", tmp_path / "g.json")
    command("analyze", *twice, error="sam-alm: runs: two are .*name curves")
    assert not (tmp_path / "g.json").exists()
