"""The clips of examples/audio: few, attributed, and in no training."""

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import soxr
from shared import DATA, SOUNDS, needs
from tiny import script

from audio_sam import load_audio

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CLIPS = EXAMPLES / "audio"
AUDIO = sorted(path for path in CLIPS.iterdir() if path.suffix in (".flac", ".ogg", ".wav"))


recipe = script("examples/sam_tiny/make_sam_tiny.py")


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


@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".webm", "libopus")])
def test_lossy_copies_are_described_alike(tmp_path, monkeypatch, capsys, command, suffix, codec):
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(ffmpeg)  # under the name that is looked for
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    copies = [tmp_path / f"{path.stem}{suffix}" for path in AUDIO]
    for path, copy in zip(AUDIO, copies):
        encode = [ffmpeg, "-loglevel", "error", "-i", path, "-c:a", codec, "-b:a", "128k", copy]
        subprocess.run(encode, stdin=subprocess.DEVNULL, check=True)
    command("describe", *AUDIO, *copies, "--model", EXAMPLES / "sam-tiny")
    texts = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(texts) == 2 * len(AUDIO)
    same = sum(before == after for before, after in zip(texts[: len(AUDIO)], texts[len(AUDIO) :]))
    assert same >= 0.9 * len(AUDIO), list(zip(texts[: len(AUDIO)], texts[len(AUDIO) :]))


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


@needs(SOUNDS)
def test_no_training_has_an_excluded_clip():
    metadata = recipe.read_metadata(DATA)
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


@needs(SOUNDS)
@pytest.mark.parametrize("name", ["cow", "dog", "frog", "rooster", "train"])
def test_the_excluded_clips_are_found_by_content(name):
    (clip,) = (path for path in AUDIO if path.stem in (name, f"{name}s"))
    (excluded,) = (file for file in recipe.excluded_files() if file.startswith(f"audio/{name}/"))
    sound = whitened(clip)
    assert correlation(sound, whitened(SOUNDS / excluded)) > 0.9
    train, _ = recipe.training_clips(recipe.read_metadata(DATA))
    same = [row["file"] for row in train if row["label"] == name]
    for file in random.Random(0).sample(same, min(12, len(same))):
        assert correlation(sound, whitened(SOUNDS / file)) < 0.75, file
