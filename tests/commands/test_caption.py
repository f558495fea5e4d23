"""`sam-alm caption`; what is written is tested in tests/test_annotation.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from tiny import NOTHING_OPEN

from audio_sam import load_audio
from sam_lab.annotation import done_clips
from sam_lab.commands.caption import parse_prompts

ROOT = Path(__file__).resolve().parents[2]
SAM_TINY = ROOT / "examples" / "sam-tiny"
AUDIO = sorted(path for path in (ROOT / "examples" / "audio").iterdir() if path.suffix in (".flac", ".ogg", ".wav"))

pytestmark = pytest.mark.skipif(
    not (SAM_TINY / "model.safetensors").exists(), reason="examples/sam-tiny is not here: it is not trained yet"
)


@pytest.fixture
def folder(tmp_path):
    """Six clips in two folders, one of 25 seconds, one at 44.1 kHz and stereo, and a text."""
    place = tmp_path / "clips"
    (place / "b").mkdir(parents=True)
    for path, name in zip(AUDIO, ("b/1", "b/2", "b/3", "x")):
        shutil.copy(path, place / f"{name}{path.suffix}")
    sound = np.concatenate([load_audio(path) for path in AUDIO])
    soundfile.write(place / "a_long.flac", np.resize(sound, 25 * 16000), 16000)
    soundfile.write(place / "stereo.wav", 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    (place / "notes.txt").write_text("no sound")
    return place


def parts(output):
    return sorted(path.name for path in Path(output).glob("part-*.parquet"))


def rows_of(output):
    return [row for name in parts(output) for row in pyarrow.parquet.read_table(output / name).to_pylist()]


def test_prompts_of_the_command():
    parse = parse_prompts
    assert list(parse([])) == ["text"] and parse([], labels=True) == {}
    assert parse(["Is x=1?"]) == {"text": "Is x=1?"} and parse(["what=What?"]) == {"what": "What?"}
    assert parse(["a=A?", "b=B = b?"]) == {"a": "A?", "b": "B = b?"}
    for wrong in (["a=A?", "B?"], ["a=A?", "a=B?"]):
        with pytest.raises(ValueError, match="expected several as NAME=TEXT"):
            parse(wrong)


@pytest.mark.slow
def test_the_command(command, folder, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("dog\n\nrain\n")
    (folder / "broken.wav").write_bytes(b"x")
    options = ["--model", SAM_TINY, "--workers", 1, "--max-new-tokens", 4]
    more = ("--output", tmp_path / "out", "--labels", tmp_path / "labels.txt", "--prompt", "Hm?")
    command("caption", folder, *options, *more)
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["files"], summary["windows"], summary["failures"]) == (6, 8, 1)
    assert summary["run"]["files_per_second"] == pytest.approx(7 / summary["run"]["seconds"], rel=0.01)
    assert summary["versions"]["torch"] == torch.__version__ and len(summary["model_hash"]) == 64
    assert "skipped: 1 .txt" in output.err
    assert {row["label"] for row in rows_of(tmp_path / "out")} <= {"dog", "rain"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["labels"] == ["dog", "rain"] and manifest["settings"]["prompts"] == {"text": "Hm?"}
    for more, message in [
        ([], "sam-alm: output: .* is of another job"),
        (["--labels", tmp_path / "none.txt"], "sam-alm: labels: there is no file"),
        (["--audio-column", "sound"], "sam-alm: audio_column: given for"),
    ]:
        command("caption", folder, *options, "--output", tmp_path / "out", *more, error=message)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"x")
    words = (tmp_path / "bad", *options, "--output", tmp_path / "bad_out")
    command("caption", *words, error="sam-alm: none of 1 clips could be read")


@pytest.mark.slow
def test_killed_and_resumed_by_two_processes(folder, tmp_path):
    """A real SIGKILL, then torchrun; the rows are those of one process that is left alone."""
    for number in range(20):
        shutil.copy(AUDIO[number % 4], folder / f"more{number:02d}{AUDIO[number % 4].suffix}")
    output = tmp_path / "out"
    options = ["--model", SAM_TINY, "--output", output, "--max-new-tokens", 16, "--batch-size", 1, "--workers", 0]
    words = ["caption", folder, *options, "--shard-size", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    killed = subprocess.Popen(
        list(map(str, [sys.executable, "-m", "sam_alm", *words])),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(output.glob("part-*.parquet")) and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = len(done_clips(output))
    assert 1 <= first < 26
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    again = subprocess.run(
        list(map(str, [*launcher, NOTHING_OPEN, *words])),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    summary = json.loads(again.stdout)
    assert (summary["files"], summary["windows"], summary["failures"]) == (26, 28, 0)
    assert (summary["run"]["files"], summary["run"]["processes"]) == (26 - first, 2)
    rows = rows_of(output)
    assert len({(row["clip"], row["start"]) for row in rows}) == len(rows) == 28
    # a copy is described as its original, whoever did it
    texts = {row["clip"]: row["text"] for row in rows}
    for number in range(20):
        suffix = AUDIO[number % 4].suffix
        assert texts[f"more{number:02d}{suffix}"] == texts[("b/1", "b/2", "b/3", "x")[number % 4] + suffix]
    assert {name[5:10] for name in parts(output)} == {"00000", "00001"}
