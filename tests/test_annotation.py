"""Describing very many clips: windows, shards, exactly once, resuming, what cannot be read."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from audio_sam import load_audio
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab import annotation as annotation_module
from sam_lab.annotation import describe_clips, done_clips, finish_output, open_output, output_schema
from sam_lab.data.clips import open_clips

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "examples" / "audio"
SAM_TINY = ROOT / "examples" / "sam-tiny"
AUDIO = sorted(path for path in CLIPS.iterdir() if path.suffix in (".flac", ".ogg", ".wav"))
PROMPTS = {"text": "What do you hear?"}

pytestmark = pytest.mark.skipif(
    not (SAM_TINY / "model.safetensors").exists(), reason="examples/sam-tiny is not here: it is not trained yet"
)


@pytest.fixture(scope="module")
def model():
    return SamForConditionalGeneration.from_pretrained(SAM_TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return SamProcessor.from_pretrained(SAM_TINY)


@pytest.fixture(scope="module")
def long_clip():
    """25 seconds of real sound."""
    sound = np.concatenate([load_audio(path) for path in AUDIO])
    return np.resize(sound, 25 * 16000)


@pytest.fixture
def folder(tmp_path, long_clip):
    """Six clips in two folders, one of them long, one at 44.1 kHz and stereo, and a text."""
    place = tmp_path / "clips"
    (place / "b").mkdir(parents=True)
    for path, name in zip(AUDIO, ("b/1", "b/2", "b/3", "x")):
        shutil.copy(path, place / f"{name}{path.suffix}")
    soundfile.write(place / "a_long.flac", long_clip, 16000)
    soundfile.write(place / "stereo.wav", 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    (place / "notes.txt").write_text("no sound")
    return place


def describe(model, processor, source, output, shares=1, only=None, **options):
    """Describes in so many processes, one after another, or in those of `only`."""
    source = open_clips(str(source)) if isinstance(source, (str, Path)) else source
    options = {"max_new_tokens": 6, "num_workers": 0, "batch_size": 4, **options}
    prompts = options.pop("prompts", PROMPTS)
    open_output(output, {"prompts": prompts, "model_hash": "aa"})
    return [
        describe_clips(model, processor, source, output, prompts, process_index=p, num_processes=shares, **options)
        for p in (range(shares) if only is None else only)
    ]


def rows_of(output):
    tables = [pyarrow.parquet.read_table(path) for path in sorted(Path(output).glob("part-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["clip"], row["start"]))


def parts(output):
    return sorted(path.name for path in Path(output).glob("part-*"))


@torch.inference_mode()
def naive(model, processor, waveform, prompt="What do you hear?"):
    """What the model says of a waveform of at most 10.24 s."""
    inputs = processor(text=prompt, audio=waveform, sampling_rate=16000, return_tensors="pt")
    inputs = {name: value[None] if value.ndim == 1 else value for name, value in inputs.items()}
    tokens = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    return " ".join(processor.decode(tokens, skip_special_tokens=True).split())


# -- Windows and columns ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_file_is_described_by_windows(model, processor, folder, tmp_path):
    (counts,) = describe(model, processor, folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["clip"] for row in rows][:3] == ["a_long.flac"] * 3
    spans = [(row["start"], row["end"], row["seconds"]) for row in rows[:3]]
    assert spans == [(0.0, 10.24, 25.0), (10.24, 20.48, 25.0), (20.48, 25.0, 25.0)]
    # the last frame of a window reaches 240 samples over its end
    waveform = load_audio(folder / "a_long.flac")
    pieces = [waveform[begin : begin + 163840 + 240] for begin in (0, 163840, 327680)]
    assert [row["text"] for row in rows[:3]] == [naive(model, processor, piece) for piece in pieces]
    short = {row["clip"]: row["text"] for row in rows[3:]}
    assert short == {name: naive(model, processor, load_audio(folder / name)) for name in short}
    assert len(short) == 5 and len({row["text"] for row in rows}) > 4  # what is said depends on the sound
    assert (counts["files"], counts["windows"], counts["failures"]) == (6, 8, 0)
    assert 0 < counts["waiting_seconds"] < counts["seconds"]


def test_a_tail_under_25_ms_is_dropped(model, processor, tmp_path, long_clip):
    (tmp_path / "clips").mkdir()
    for name, length in (("short", 327680 + 399), ("exact", 327680 + 640)):
        soundfile.write(tmp_path / "clips" / f"{name}.wav", long_clip[:length], 16000)
    describe(model, processor, tmp_path / "clips", tmp_path / "out")
    assert Counter(row["clip"] for row in rows_of(tmp_path / "out")) == {"short.wav": 2, "exact.wav": 3}


@pytest.mark.slow
def test_several_prompts_are_columns_and_labels_are_scored(model, processor, folder, tmp_path):
    prompts = {"what": "What do you hear?", "where": "Where was it?"}
    labels = ["dog", "a dog barking", "rain"]
    describe(model, processor, folder, tmp_path / "out", prompts=prompts, labels=labels, label_prompt="Classify.")
    for row in rows_of(tmp_path / "out")[3:]:
        waveform = load_audio(folder / row["clip"])
        for name, prompt in prompts.items():
            assert row[name] == naive(model, processor, waveform, prompt)
        scores = []
        for label in labels:  # a whole answer, end of text included, read in one forward
            inputs = processor(
                text=["Classify."], audio=[waveform], answer=[label], sampling_rate=16000, return_tensors="pt"
            )
            wanted = inputs.pop("labels")[0, 1:]
            with torch.no_grad():
                found = model(**inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
            scores.append(float(found.gather(1, wanted.clamp(min=0)[:, None])[wanted != -100].sum()))
        assert row["log_likelihoods"] == pytest.approx(scores, rel=1e-4, abs=1e-3)
        assert row["label"] == labels[int(np.argmax(scores))]
    table = pyarrow.parquet.read_table(tmp_path / "out" / parts(tmp_path / "out")[0])
    window = ["clip", "audio", "start", "end", "seconds"]
    assert table.column_names == [*window, "what", "where", "label", "log_likelihoods"]


def test_labels_alone(model, processor, folder, tmp_path):
    describe(model, processor, folder, tmp_path / "out", prompts={}, labels=["dog", "rain"])
    assert {row["label"] for row in rows_of(tmp_path / "out")} <= {"dog", "rain"}
    assert "text" not in rows_of(tmp_path / "out")[0]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_the_shards_are_read_by_datasets(model, processor, folder, tmp_path, file_format):
    describe(model, processor, folder, tmp_path / "out", shares=2, file_format=file_format, shard_size=2)
    files = [str(path) for path in sorted((tmp_path / "out").glob(f"part-*.{file_format}"))]
    assert len(files) > 2
    kind = "json" if file_format == "jsonl" else file_format
    table = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["clip", "audio", "start", "end", "seconds", "text"] and len(table) == 8
    assert sorted(set(table["clip"])) == sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.suffix != ".txt"
    )
    # each shard is in the order of the source, and no clip is in two of them
    assert (
        Counter(clip for file in files for clip in set(annotation_module.shard_clips(Path(file)))).most_common(1)[0][1]
        == 1
    )
    for file in files:
        assert annotation_module.shard_clips(Path(file)) == sorted(annotation_module.shard_clips(Path(file)))


# -- Processes, kills ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_number_of_processes_and_workers_writes_the_same_rows(model, processor, folder, tmp_path):
    describe(model, processor, folder, tmp_path / "one")
    rows = rows_of(tmp_path / "one")
    assert len(rows) == 8
    for name, options in {
        "two": {"shares": 2},
        "five": {"shares": 5, "shard_size": 1},
        "workers": {"num_workers": 2, "batch_size": 3},
    }.items():
        describe(model, processor, folder, tmp_path / name, **options)
        assert rows_of(tmp_path / name) == rows
    assert {name[5:10] for name in parts(tmp_path / "two")} == {"00000", "00001"}


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 4, 7])
def test_going_on_after_a_kill(model, processor, folder, tmp_path, monkeypatch, after):
    describe(model, processor, folder, tmp_path / "whole")
    ask, asked = annotation_module.WindowQuestions.ask, []

    def ask_or_die(self, features):
        asked.append(len(features))
        if len(asked) > after:
            raise Killed
        return ask(self, features)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(annotation_module.WindowQuestions, "ask", ask_or_die)
        describe(model, processor, folder, tmp_path / "out", batch_size=1, shard_size=2)
    before = parts(tmp_path / "out")
    done = done_clips(tmp_path / "out")
    # the first clip has three windows, and is there whole or not at all
    assert len(done) == {2: 0, 4: 1, 7: 5}[after]
    (tmp_path / "out" / "part-00000-00009.parquet.unfinished").write_bytes(b"torn")
    again = describe(model, processor, folder, tmp_path / "out", shares=3)
    assert sum(each["files"] for each in again) == 6 - len(done)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert set(before) < set(parts(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.unfinished"))
    assert sum(each["windows"] for each in describe(model, processor, folder, tmp_path / "out", shares=2)) == 0


def test_a_shard_ends_between_clips_wherever_a_batch_ends(model, processor, tmp_path, long_clip):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", long_clip[:16000], 16000)
    soundfile.write(tmp_path / "clips" / "b.wav", long_clip, 16000)  # the first batch ends in its first window
    for name in ("c.wav", "d.wav", "f.wav"):
        (tmp_path / "clips" / name).touch()
    soundfile.write(tmp_path / "clips" / "e.wav", long_clip[:16000], 16000)
    soundfile.write(tmp_path / "clips" / "g.wav", long_clip[:16000], 16000)
    describe(model, processor, tmp_path / "clips", tmp_path / "out", batch_size=2, shard_size=1)
    shards = [
        pyarrow.parquet.read_table(tmp_path / "out" / name)["clip"].to_pylist() for name in parts(tmp_path / "out")
    ]
    assert shards == [["a.wav"], ["b.wav"] * 3, ["e.wav", "g.wav"]]


def test_new_files_are_described_too(model, processor, folder, tmp_path):
    describe(model, processor, folder, tmp_path / "out", shares=2)
    shutil.copy(AUDIO[5], folder / "another.ogg")
    counts = describe(model, processor, folder, tmp_path / "out", shares=2)
    assert sum(each["files"] for each in counts) == 1
    assert Counter(row["clip"] for row in rows_of(tmp_path / "out"))["another.ogg"] == 1


def test_two_jobs_do_not_write_over_each_other(model, processor, folder, tmp_path, monkeypatch):
    ask = annotation_module.WindowQuestions.ask

    def ask_meanwhile(self, features):
        (tmp_path / "out" / "part-00000-00000.parquet").write_bytes(b"another's")
        return ask(self, features)

    monkeypatch.setattr(annotation_module.WindowQuestions, "ask", ask_meanwhile)
    with pytest.raises(ValueError, match=r"another job has written .*part-00000-00000.parquet' meanwhile"):
        describe(model, processor, folder, tmp_path / "out")
    assert (tmp_path / "out" / "part-00000-00000.parquet").read_bytes() == b"another's"


# -- What cannot be read ------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(model, processor, folder, tmp_path):
    (folder / "broken.wav").write_bytes(b"RIFFno sound at all")
    (folder / "b" / "empty.ogg").write_bytes(b"")
    soundfile.write(folder / "short.wav", np.zeros(300), 16000)
    truncated = (folder / "a_long.flac").read_bytes()
    (folder / "cut.flac").write_bytes(truncated[:30])
    output = tmp_path / "out"
    counts = describe(model, processor, folder, output, shares=2, shard_size=1)
    assert sum(each["failures"] for each in counts) == 4 and sum(each["files"] for each in counts) == 6
    summary = finish_output(output, model="tiny")
    assert {**summary} == {"files": 6, "windows": 8, "failures": 4, "model": "tiny"}
    assert json.loads((output / "summary.json").read_text()) == summary
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert [each["clip"] for each in failures] == ["b/empty.ogg", "broken.wav", "cut.flac", "short.wav"]
    assert "is empty" in failures[0]["error"] and "300 samples" in failures[3]["error"]
    manifest = json.loads((output / "manifest.json").read_text())
    assert sum(shard["clips"] for shard in manifest["shards"]) == 6
    assert [shard["file"] for shard in manifest["shards"]] == parts(output)

    shutil.copy(AUDIO[0], folder / "short.wav")  # libsndfile goes by the content
    counts = describe(model, processor, folder, output, shares=2)
    assert sum(each["failures"] + each["files"] for each in counts) == 0  # not tried again unless asked
    open_output(output, {"prompts": PROMPTS, "model_hash": "aa"}, retry_failures=True)
    assert not (output / "summary.json").exists()
    (counts,) = describe(model, processor, folder, output)
    assert (counts["files"], counts["failures"]) == (1, 3)
    assert finish_output(output) == {"files": 7, "windows": 9, "failures": 3}
    assert len((output / "failures.jsonl").read_text().splitlines()) == 3


def test_nothing_but_what_cannot_be_read(model, processor, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"x")
    (counts,) = describe(model, processor, tmp_path / "clips", tmp_path / "out")
    assert (counts["files"], counts["failures"], parts(tmp_path / "out")) == (0, 1, [])
    assert finish_output(tmp_path / "out") == {"files": 0, "windows": 0, "failures": 1}


def test_a_name_that_is_no_text_does_not_end_the_job(model, processor, tmp_path):
    """libsndfile's wrapper cannot open it; the list names it in text."""
    (tmp_path / "clips").mkdir()
    shutil.copy(AUDIO[0], tmp_path / "clips")
    shutil.copy(AUDIO[0], os.fsencode(tmp_path / "clips") + b"/caf\xe9.ogg")
    output = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out-\xff"))  # nor need the folder's name be
    (counts,) = describe(model, processor, tmp_path / "clips", output)
    assert counts["files"] + counts["failures"] == 2
    assert done_clips(output) == {AUDIO[0].name, "caf\\xe9.ogg"}
    assert finish_output(output)["files"] == counts["files"]


def test_two_names_that_read_alike_are_two_clips(tmp_path):
    """One has the byte ff, the other four characters that spell it."""
    for name in (b"odd-\xff.wav", b"odd-\\xff.wav", b"plain.wav"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    source = open_clips(str(tmp_path))
    found = {clip.key: os.fsencode(os.path.basename(clip.audio)) for clip in source.clips(0, 1)}
    assert found == {"odd-\\xff.wav": b"odd-\\xff.wav", "./odd-\\xff.wav": b"odd-\xff.wav", "plain.wav": b"plain.wav"}
    assert source.count(0, 1, done=["odd-\\xff.wav"]) == 2


def test_whatever_happens_to_a_clip_is_its_own_failure(model, processor, tmp_path, monkeypatch):
    """Too little memory, or a text that no UTF-8 can have, which the list of failures must take."""
    (tmp_path / "clips").mkdir()
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / "clips" / name, np.full(8000, 0.1), 16000)
    read = annotation_module.read_windows
    errors = {"a.wav": MemoryError(), "b.wav": RuntimeError("odd-\udcff")}

    def fail(path, extractor):
        if os.path.basename(path) in errors:
            raise errors[os.path.basename(path)]
        return read(path, extractor)

    monkeypatch.setattr(annotation_module, "read_windows", fail)
    (counts,) = describe(model, processor, tmp_path / "clips", tmp_path / "out")
    assert (counts["files"], counts["failures"]) == (1, 2)
    finish_output(tmp_path / "out")
    lines = (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["error"] for line in lines] == ["MemoryError: ", "RuntimeError: odd-\udcff"]


def test_names_with_line_ends_go_through_lines_of_json(model, processor, tmp_path):
    """U+2028 and U+0085 end a line for `str.splitlines`, and JSON does not escape them."""
    names = ["a\u2028b.wav", "c\u0085d.wav", "e\nf.wav"]
    (tmp_path / "clips").mkdir()
    for name in names:
        soundfile.write(tmp_path / "clips" / name, np.full(8000, 0.1), 16000)
    (tmp_path / "clips" / "g\u2029h.wav").touch()
    describe(model, processor, tmp_path / "clips", tmp_path / "out", file_format="jsonl")
    assert done_clips(tmp_path / "out") == {*names, "g\u2029h.wav"}
    summary = finish_output(tmp_path / "out")
    assert (summary["files"], summary["failures"]) == (3, 1)


# -- Datasets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    """Seven rows with the content of files, a number and a word; row 4 has no audio."""
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in AUDIO[:7]]
    rows[4] = None
    table = datasets.Dataset.from_dict({"number": list(range(7)), "word": list("abcdefg"), "sound": rows})
    return table.cast_column("sound", datasets.Audio(decode=False))


def expected_texts(model, processor):
    return {index: naive(model, processor, load_audio(path)) for index, path in enumerate(AUDIO[:7]) if index != 4}


@pytest.mark.slow
def test_a_dataset_by_any_way(model, processor, table, tmp_path):
    texts = expected_texts(model, processor)
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "tables").mkdir()
    for part in range(3):
        table.shard(3, part).to_parquet(str(tmp_path / "tables" / f"{part}.parquet"))
    table.to_parquet(str(tmp_path / "one.parquet"))
    ways = {
        "saved": open_clips(str(tmp_path / "saved"), keep=["number"]),
        "file": open_clips(str(tmp_path / "one.parquet"), keep=["number"]),
        "folder": open_clips(str(tmp_path / "tables"), keep=["number"]),
        "stream": open_clips(str(tmp_path / "tables"), keep=["number"], streaming=True),
        "stream of a file": open_clips(str(tmp_path / "one.parquet"), keep=["number"], streaming=True),
    }
    for name, source in ways.items():
        output = tmp_path / f"out of {name}"
        counts = describe(model, processor, source, output, shares=2)  # 3 files or 1 for 2 processes
        rows = rows_of(output)
        assert {row["number"]: row["text"] for row in rows} == texts, name
        assert [row["number"] for row in rows] == sorted(texts), name  # keys are in the order of the source
        assert len(rows) == 6 and sum(each["failures"] for each in counts) == 1
        assert all(each["windows"] for each in counts), name  # both had a part
        assert [row["audio"] for row in rows] == [AUDIO[row["number"]].name for row in rows]
        (failure,) = map(json.loads, next((output / "failures").iterdir()).read_text().splitlines())
        assert failure["number"] == 4
        # by another number of processes nothing is left to do
        assert sum(each["files"] for each in describe(model, processor, source, output, shares=5)) == 0


def test_a_table_of_paths(model, processor, tmp_path):
    (tmp_path / "sounds").mkdir()
    for path in AUDIO[:3]:
        shutil.copy(path, tmp_path / "sounds")
    lines = [f"{index},sounds/{path.name}" for index, path in enumerate(AUDIO[:3])]
    (tmp_path / "clips.csv").write_text("\n".join(["id,file", *lines, "3,sounds/absent.wav"]) + "\n")
    for streaming in (False, True):
        source = open_clips(str(tmp_path / "clips.csv"), keep=["id"], streaming=streaming)
        (counts,) = describe(model, processor, source, tmp_path / f"out{streaming}")
        assert [row["id"] for row in rows_of(tmp_path / f"out{streaming}")] == [0, 1, 2]
        assert counts["failures"] == 1


def test_another_table_of_the_same_name_is_told(table, tmp_path):
    """What is done is told by the rows' numbers, which are other clips in another table."""
    lines = ["file", "a.wav", "b.wav", "c.wav"]
    found = []
    for rows in (lines, [*lines, "d.wav"], ["file", "b.wav", "a.wav", "c.wav"], lines):
        (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
        found.append(open_clips(str(tmp_path / "clips.csv")).fingerprint)
    assert found[0] == found[3] and len(set(found)) == 3 and found[1].startswith("4 rows, ")
    table.to_parquet(str(tmp_path / "embedded.parquet"))
    assert len(open_clips(str(tmp_path / "embedded.parquet")).fingerprint.split(", ")[1]) == 16
    output = tmp_path / "out"
    open_output(output, {"fingerprint": found[0]})
    with pytest.raises(ValueError, match="fingerprint"):
        open_output(output, {"fingerprint": found[1]})


def test_sources_that_do_not_fit(table, folder, tmp_path):
    table.to_parquet(str(tmp_path / "one.parquet"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("")
    one = str(tmp_path / "one.parquet")
    for arguments, error, message in [
        ({"source": str(tmp_path / "none")}, ValueError, r"has no audio files .* found: 1 .txt"),
        ({"source": str(tmp_path / "absent")}, FileNotFoundError, "there is no file or folder"),
        ({"source": "absent/clips.csv"}, FileNotFoundError, "there is no file or folder"),
        ({"source": str(folder / "notes.txt")}, ValueError, "expected a folder or one of .parquet"),
        ({"source": one, "audio_column": "audio"}, ValueError, "audio_column: got 'audio', expected one of number"),
        ({"source": one, "keep": ["colour"]}, ValueError, "keep: got 'colour', expected columns"),
        ({"source": one, "keep": ["sound"]}, ValueError, "keep: got 'sound', expected columns"),
        ({"source": str(tmp_path / "splits"), "split": "val"}, ValueError, "split: got 'val', expected one of test"),
        ({"source": str(tmp_path / "splits"), "split": "test", "streaming": True}, ValueError, "streaming: given for"),
        ({"source": str(folder), "keep": ["id"]}, ValueError, "keep: given for .* a folder of audio"),
    ]:
        with pytest.raises(error, match=message):
            open_clips(**arguments)
    table.remove_columns("sound").to_parquet(str(tmp_path / "soundless.parquet"))
    with pytest.raises(ValueError, match=r"has no Audio column and none of audio, .*: number, word"):
        open_clips(str(tmp_path / "soundless.parquet"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, content",
    [("bad.json", "x"), ("none.csv", ""), ("none.json", "[]"), ("p.parquet", "x"), ("w.tar", "no tar")],
)
def test_a_table_that_cannot_be_read_is_named(name, content, streaming, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"source: '.*{name}'.* (cannot be read|has no rows|has no Audio column)"):
        open_clips(str(tmp_path / name), streaming=streaming)


# -- The output folder --------------------------------------------------------------------------------------------


def test_an_output_of_another_job(tmp_path):
    open_output(tmp_path / "out", {"prompts": {"text": "a"}, "model_hash": "1"})
    open_output(tmp_path / "out", {"prompts": {"text": "a"}, "model_hash": "1"})
    with pytest.raises(ValueError, match=r"is of another job \(prompts was \{'text': 'a'\}, is \{'text': 'b'\}\)"):
        open_output(tmp_path / "out", {"prompts": {"text": "b"}, "model_hash": "1"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"has files in it but no manifest.json"):
        open_output(tmp_path / "full", {})


def test_columns_of_one_name():
    kept = pyarrow.schema([("text", pyarrow.int64())])
    with pytest.raises(ValueError, match="text would be two columns"):
        output_schema(kept, PROMPTS, None)
    with pytest.raises(ValueError, match="start would be two columns"):
        output_schema(pyarrow.schema([]), {"start": "When?"}, None)
    with pytest.raises(ValueError, match="got neither"):
        output_schema(kept, {}, None)


def test_settings_that_cannot_be(model, processor, folder, tmp_path):
    for options, message in [
        ({"file_format": "csv"}, "file_format: got 'csv'"),
        ({"batch_size": 0}, "batch_size"),
        ({"shares": 2, "only": [2]}, "process_index: got 2, expected one from 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            describe(model, processor, folder, tmp_path / "out", **options)
