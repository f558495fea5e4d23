"""Clips of every documented format, without torchcodec and with it, by the real `datasets`."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import imageio_ffmpeg
import numpy as np
import pyarrow
import pytest
import soundfile
from loopback_hub import LoopbackHub
from shared import NO_TORCHCODEC

from processing_sam import load_audio
from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.data.clips import TABLE_KINDS, open_clips

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000


def noise(seed, seconds=1.0):
    """Low noise, which no codec drops, told apart by its seed."""
    sound = np.convolve(np.random.default_rng(seed).normal(size=int(seconds * RATE)), np.ones(24) / 24, "same")
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


SOUNDS = [noise(seed) for seed in range(3)]


def heard(audio):
    """Which of the sounds it is: by correlation, wherever a codec's delay has moved it."""
    waveform = load_audio(audio)
    found = []
    for sound in SOUNDS:
        part = sound[4000:12000]
        begin = np.correlate(waveform, part, "valid").argmax()
        found.append(np.corrcoef(waveform[begin : begin + len(part)], part)[0, 1])
    assert max(found) > 0.95, found
    return int(np.argmax(found))


@pytest.fixture(params=[False, True], ids=["without torchcodec", "with torchcodec"])
def torchcodec(request, monkeypatch):
    if request.param:
        pytest.importorskip("torchcodec.decoders", reason=NO_TORCHCODEC, exc_type=Exception)
    else:
        for name in ("torchcodec", "torchcodec.decoders", "torchcodec.encoders"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# -- Folders of audio ---------------------------------------------------------------------------------------------


def write_sound(path, sound):
    if path.suffix in (".m4a", ".webm"):  # what soundfile does not write
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "wav", "-i", "-", path]
        subprocess.run(command, input=encoded(sound), check=True)
    else:
        format = {".aif": "AIFF", ".opus": "OGG"}.get(path.suffix, path.suffix[1:].upper())
        soundfile.write(path, sound, RATE, format=format, subtype="OPUS" if path.suffix == ".opus" else None)


def encoded(sound):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def ffmpeg(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_every_audio_suffix_is_read(tmp_path, torchcodec, ffmpeg):
    for index, suffix in enumerate(AUDIO_SUFFIXES):
        write_sound(tmp_path / f"{index % 3}{suffix}", SOUNDS[index % 3])
    clips = list(open_clips(str(tmp_path)).clips(0, 1))
    assert sorted(Path(clip.key).suffix for clip in clips) == sorted(AUDIO_SUFFIXES)
    assert [heard(clip.audio) for clip in clips] == [int(Path(clip.key).stem) for clip in clips]


# -- Files of tables ----------------------------------------------------------------------------------------------


def write_table(path, sounds):
    """One file of any kind, with a number to keep: the sounds in it where the format can, else beside its folder."""
    beside = path.parent.parent / "sounds"
    rows = [{"number": index, "audio": f"../sounds/{index}.wav"} for index, _ in sounds]
    if path.suffix == ".tar":
        return write_shard(path, sounds)
    if path.suffix in (".csv", ".json", ".jsonl"):
        beside.mkdir(exist_ok=True)
        for index, sound in sounds:
            soundfile.write(beside / f"{index}.wav", sound, RATE)
        if path.suffix == ".json":
            return path.write_text(json.dumps(rows))
        table = datasets.Dataset.from_list(rows)
        return table.to_csv(path) if path.suffix == ".csv" else table.to_json(path)
    rows = [{"number": index, "audio": {"bytes": encoded(sound), "path": f"{index}.wav"}} for index, sound in sounds]
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    if path.suffix == ".parquet":
        return table.to_parquet(path)
    with pyarrow.ipc.new_stream(path, table.data.table.schema) as writer:
        writer.write_table(table.data.table)


def write_shard(path, sounds):
    """A shard of WebDataset by the standard library."""
    with tarfile.open(path, "w") as archive:
        for index, sound in sounds:
            for name, content in (
                (f"{index}.wav", encoded(sound)),
                (f"{index}.json", json.dumps({"n": index}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
@pytest.mark.parametrize("suffix", TABLE_KINDS)
@pytest.mark.parametrize("of", ["file", "folder"])
def test_every_kind_of_table_is_read(tmp_path, torchcodec, suffix, streaming, of):
    folder = tmp_path / "data"
    folder.mkdir()
    shards = [folder / f"a[1]{suffix}"] if of == "file" else [folder / f"{part}{suffix}" for part in "ab"]
    numbered = list(enumerate(SOUNDS))
    for shard, part in zip(shards, [numbered] if of == "file" else [numbered[:2], numbered[2:]], strict=True):
        write_table(shard, part)
    keep = ["json"] if suffix == ".tar" else ["number"]
    source = open_clips(str(shards[0] if of == "file" else folder), keep=keep, streaming=streaming)
    clips = list(source.clips(0, 1))
    assert [heard(clip.audio) for clip in clips] == [0, 1, 2]
    assert [clip.kept for clip in clips] == [
        {"json": {"n": n}} if suffix == ".tar" else {"number": n} for n in range(3)
    ]
    assert [Path(clip.path).name for clip in clips] == ["0.wav", "1.wav", "2.wav"]
    halves = [clip.key for process in range(2) for clip in source.clips(process, 2)]
    assert sorted(halves) == [clip.key for clip in clips]
    assert streaming or source.fingerprint.startswith("3 rows, ")


def test_what_datasets_saved_is_read(tmp_path, torchcodec):
    write_table(tmp_path / "t.parquet", list(enumerate(SOUNDS)))
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), split="train")
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "several"))
    for folder, split in (("one", "train"), ("several", "test")):
        clips = open_clips(str(tmp_path / folder), split=split, keep=["number"]).clips(0, 1)
        assert [(heard(clip.audio), clip.kept["number"]) for clip in clips] == [(0, 0), (1, 1), (2, 2)]


def test_another_shard_of_the_same_size_is_told(tmp_path):
    prints = []
    for name, order in (("a", [0, 1, 2]), ("b", [1, 0, 2])):
        write_shard(tmp_path / f"{name}.tar", [(index, SOUNDS[index]) for index in order])
        prints.append(open_clips(str(tmp_path / f"{name}.tar")).fingerprint)
    assert len(set(prints)) == 2


# -- The Hub ------------------------------------------------------------------------------------------------------

HUB = r"""
import io, json, sys
sys.path.insert(0, {root!r})
if {hidden}:
    sys.modules.update(dict.fromkeys(("torchcodec", "torchcodec.decoders", "torchcodec.encoders")))
import datasets
if {hidden}:
    datasets.config.TORCHCODEC_AVAILABLE = False
from huggingface_hub import HfApi
from audio_sam import load_audio
from sam_lab.data.clips import open_clips
from sam_lab.data.plain_tables import read_table

api = HfApi()
for name in ("folders", "shards"):
    api.create_repo("acme/" + name, repo_type="dataset")
    api.upload_folder(repo_id="acme/" + name, folder_path={data!r} + "/" + name, repo_type="dataset")
rows = datasets.load_dataset("parquet", data_files={data!r} + "/t.parquet", split="train")
rows.push_to_hub("acme/table", split="test")

def peak(audio):
    return round(float(abs(load_audio(audio)).max()), 1)

found = {{}}
for name, split in (("table", "test"), ("folders", "train"), ("shards", "train")):
    for streaming in (False, True):
        clips = list(open_clips("acme/" + name, split=split, streaming=streaming).clips(0, 1))
        found[f"{{name}} {{streaming}}"] = [[peak(clip.audio), clip.path.split("/")[-1]] for clip in clips]
for name, split in (("table", "test"), ("folders", "train")):
    found[name] = [[peak(row["audio"]), row["answer"]] for row in read_table("acme/" + name, split)]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [True, False], ids=["without torchcodec", "with torchcodec"])
def test_datasets_of_the_hub(tmp_path, hidden):
    """A table with audio in it, a folder for each class, and shards of WebDataset: prepared and streamed."""
    if not hidden:
        pytest.importorskip("torchcodec.decoders", reason=NO_TORCHCODEC, exc_type=Exception)
    levels = {"cat": 0.2, "dog": 0.7}
    sounds = {name: np.full(1600, level, np.float32) for name, level in levels.items()}
    for name, sound in sounds.items():
        (tmp_path / "data" / "folders" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / "folders" / name / f"{name}.wav", sound, RATE)
    (tmp_path / "data" / "shards").mkdir()
    write_shard(tmp_path / "data" / "shards" / "a.tar", sounds.items())
    rows = [
        {"audio": {"bytes": encoded(sound), "path": f"{name}.wav"}, "answer": name} for name, sound in sounds.items()
    ]
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    table.to_parquet(tmp_path / "data" / "t.parquet")
    code = HUB.format(root=str(ROOT), hidden=hidden, data=str(tmp_path / "data"))
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [[level, f"{name}.wav"] for name, level in levels.items()]
    answers = [[level, name] for name, level in levels.items()]
    ways = [f"{name} {streaming}" for name in ("table", "folders", "shards") for streaming in (False, True)]
    expected = dict.fromkeys(ways, files) | {"table": answers, "folders": answers}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
