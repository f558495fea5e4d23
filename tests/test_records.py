"""Audio roots, coverage, and folders of records."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

import records_sam
from processing_sam import load_audio
from records_sam import (
    KINDS,
    AudioCoverage,
    coverage_table,
    map_audio,
    parse_audio_roots,
    read_openaqa,
    read_summary,
    records_dataset,
    records_fingerprint,
    write_records,
)

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "examples" / "audio"


# ---------------------------------------------------------------------------------------------------------------
# Audio roots
# ---------------------------------------------------------------------------------------------------------------


def test_audio_roots_are_read():
    assert parse_audio_roots(["/data/a=/mnt/a", "=/mnt/b", "c=d=e"]) == [
        ("/data/a", "/mnt/a"),
        ("", "/mnt/b"),
        ("c", "d=e"),
    ]
    assert parse_audio_roots(["a=~/b"]) == [("a", os.path.expanduser("~/b"))]
    for wrong in ("/data/a", "/data/a="):
        with pytest.raises(ValueError, match=f"--audio-root: got '{wrong}', expected FROM=TO"):
            parse_audio_roots([wrong])
    with pytest.raises(ValueError, match="got 'a' twice, as 'b' and 'c'"):
        parse_audio_roots(["a=b", "a=c"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/sls/x.flac", "/one/x.flac"),
        ("/data/sls/audioset/x.flac", "/two/x.flac"),  # the longest, which is neither first nor last
        ("/data/sls/audioset/deep/er/x.flac", "/two/deep/er/x.flac"),
        ("/data/sls/audioset2/x.flac", "/one/audioset2/x.flac"),  # whole folders match
        ("/data/slsx/x.flac", "/data/slsx/x.flac"),
        ("AudioCapsLarger/train/x.wav", "/three/train/x.wav"),
        ("Clotho/x.wav", "/four/Clotho/x.wav"),
        ("/elsewhere/x.wav", "/elsewhere/x.wav"),  # an empty FROM is for relative paths
    ],
)
def test_the_longest_root_wins(path, expected):
    roots = [("/data/sls", "/one"), ("/data/sls/audioset/", "/two"), ("AudioCapsLarger", "/three"), ("", "/four")]
    assert map_audio(path, roots) == expected
    assert map_audio(path, roots[::-1]) == expected
    assert map_audio(path, []) == path


# ---------------------------------------------------------------------------------------------------------------
# Coverage
# ---------------------------------------------------------------------------------------------------------------


def record(audio, source="vggsound_train", kind="closed", **more):
    return {"audio": audio, "prompt": "What is it?", "answer": "A dog.", "source": source, "kind": kind, **more}


@pytest.fixture
def clips(tmp_path):
    """A folder with a.wav, b.wav and c.wav; d.wav and e.wav are not there, and f.wav is a folder."""
    folder = tmp_path / "clips"
    (folder / "f.wav").mkdir(parents=True)
    for name in "abc":
        (folder / f"{name}.wav").touch()
    return folder


def some_records():
    """Eleven records, of which four have no audio: two of d.wav, one of e.wav, one of f.wav."""
    rows = [record(f"/there/{name}.wav") for name in "aabdd"]
    rows += [record(f"/there/{name}.wav", "as_strong_train", "open") for name in "ae"]
    rows += [record(f"/there/{name}.wav", "clothov21", "binary") for name in "cf"]
    return [*rows, record("/there/c.wav", "clothov21", "caption"), record(None, "text", "other")]


COUNTS = {
    "as_strong_train": {"rows": 1, "missing": 1, "clips": 1, "missing_clips": 1, "kinds": {"open": 2}},
    "clothov21": {"rows": 2, "missing": 1, "clips": 1, "missing_clips": 1, "kinds": {"binary": 2, "caption": 1}},
    "text": {"rows": 1, "missing": 0, "clips": 0, "missing_clips": 0, "kinds": {"other": 1}},
    "vggsound_train": {"rows": 3, "missing": 2, "clips": 2, "missing_clips": 1, "kinds": {"closed": 5}},
}


def test_coverage_is_counted(clips, tmp_path):
    summary = write_records(some_records(), tmp_path / "out", [("/there", str(clips))], max_missing=0.4)
    assert (summary["rows"], summary["missing"]) == (7, 4)
    assert summary["by_source"] == COUNTS
    assert summary["by_kind"] == {"closed": 3, "open": 1, "binary": 1, "caption": 1, "other": 1}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary == read_summary(tmp_path / "out")
    rows = list(records_dataset(tmp_path / "out"))
    names = [row["audio"] and Path(row["audio"]).relative_to(clips).stem for row in rows]
    assert names == ["a", "a", "b", "a", "c", "c", None]
    assert rows[0] == record(str(clips / "a.wav")) and rows[3]["kind"] == "open"


def test_each_clip_is_looked_up_once(clips, monkeypatch):
    looked_up = Counter()
    isfile = os.path.isfile
    monkeypatch.setattr(records_sam.os.path, "isfile", lambda path: looked_up.update([path]) or isfile(path))
    coverage = AudioCoverage([("/there", str(clips))])
    rows = some_records()
    found = [coverage([row])[0] is not None for row in rows] + [row is not None for row in coverage(rows)]
    assert found == [True, True, True, False, False, True, False, True, False, True, True] * 2
    assert looked_up == Counter({str(clips / f"{name}.wav"): 1 for name in "abcdef"})
    assert rows == some_records()  # the caller's are as they were


def test_without_a_check_all_is_there(tmp_path):
    summary = write_records(some_records(), tmp_path, check_audio=False)
    assert (summary["rows"], summary["missing"], summary["check_audio"]) == (11, 0, False)


def test_too_little_audio_is_an_error_with_a_table(clips, tmp_path):
    roots = [("/there", str(clips))]
    with pytest.raises(ValueError, match=r"4 of 11 records have no audio file, more than max_missing=36\.0%") as error:
        write_records(some_records(), tmp_path / "out", roots, max_missing=0.36)  # 4 of 11 are 36.4 %
    assert "--audio-root FROM=TO" in str(error.value)
    assert "vggsound_train      3        2    60.0%      2              1" in str(error.value).splitlines()
    with pytest.raises(FileNotFoundError, match="has no summary"):
        records_dataset(tmp_path / "out")
    with pytest.raises(ValueError, match="10 of 11 records have no audio"):
        write_records(some_records(), tmp_path / "out")


def test_the_table_is_beside_the_published_counts():
    table = coverage_table({"rows": 7, "missing": 4, "by_source": COUNTS})
    assert [line.split() for line in table.splitlines()[:6]] == [
        ["source", "rows", "missing", "covered", "clips", "missing", "clips"],
        ["as_strong_train", "1", "1", "50.0%", "1", "1"],
        ["clothov21", "2", "1", "66.7%", "1", "1"],
        ["text", "1", "0", "100.0%", "0", "0"],
        ["vggsound_train", "3", "2", "60.0%", "2", "1"],
        ["all", "7", "4", "63.6%", "4", "3"],
    ]
    assert table.splitlines()[6:] == [
        "",
        "OpenAQA closed: 5 read, 1,917,894 published",
        "OpenAQA open: 2 read, 3,763,814 published",
        "ReasonAQA (train): 3 read, 968,071 published, 203,565 of them on two clips",
    ]


# ---------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------


def many(count):
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    return [record(None, f"source {index % 3}", kind, answer=f"Réponse {index}") for index, kind in enumerate(kinds)]


@pytest.mark.parametrize(("rows_per_shard", "sizes"), [(10, [10, 10, 5]), (25, [25]), (7, [7, 7, 7, 4]), (100, [25])])
def test_shards(tmp_path, rows_per_shard, sizes):
    summary = write_records(iter(many(25)), tmp_path, rows_per_shard=rows_per_shard)
    names = [f"part-{index:05d}.parquet" for index in range(len(sizes))]
    assert summary["shards"] == [{"file": name, "rows": size} for name, size in zip(names, sizes)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "summary.json"]
    for streaming in (True, False):
        rows = records_dataset(tmp_path, streaming)
        assert list(rows) == many(25)
        assert list(rows.features.values()) == [datasets.Value("string")] * 5
    assert records_dataset(tmp_path).num_shards == len(sizes)


def test_shards_are_cut_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(records_sam, "CHUNK", 4)
    assert [shard["rows"] for shard in write_records(many(25), tmp_path, rows_per_shard=10)["shards"]] == [10, 10, 5]
    assert list(records_dataset(tmp_path)) == many(25)


class Killed(Exception):
    pass


def killed(count):
    yield from many(count)
    raise Killed


def test_a_broken_writing_leaves_no_summary_and_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(records_sam, "CHUNK", 5)
    with pytest.raises(Killed):
        write_records(killed(23), tmp_path, rows_per_shard=4, fingerprint="x")
    assert len(list(tmp_path.glob("part-*.parquet"))) == 5  # of 20 records
    with pytest.raises(FileNotFoundError, match=r"has no summary\.json, which is written last; write the records"):
        records_dataset(tmp_path)
    (tmp_path / "part-00002.parquet.unfinished").touch()
    write_records(many(6), tmp_path, rows_per_shard=4, fingerprint="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
        "summary.json",
    ]
    assert list(records_dataset(tmp_path)) == many(6)


def test_an_old_summary_does_not_outlive_its_shards(tmp_path, monkeypatch):
    """The new shards have the names of the old ones when the writing breaks off."""
    monkeypatch.setattr(records_sam, "CHUNK", 5)
    write_records(many(12), tmp_path, rows_per_shard=4, fingerprint="x")
    with pytest.raises(Killed):
        write_records(killed(23), tmp_path, rows_per_shard=4, fingerprint="y")
    with pytest.raises(FileNotFoundError, match="has no summary"):
        read_summary(tmp_path)


def test_a_whole_folder_is_used_again(tmp_path):
    first = write_records(many(5), tmp_path, fingerprint="x")
    assert write_records(killed(0), tmp_path, fingerprint="x") == first  # reads nothing
    for different in (
        {"fingerprint": "y"},
        {"fingerprint": None},
        {"fingerprint": "x", "audio_roots": [("a", "b")]},
        {"fingerprint": "x", "check_audio": False},
    ):
        with pytest.raises(Killed):
            write_records(killed(0), tmp_path, **different)
    assert read_summary(tmp_path) == first  # records that cannot be read leave the folder as it was
    with pytest.raises(Killed):
        write_records(killed(records_sam.CHUNK), tmp_path, fingerprint="y")
    with pytest.raises(FileNotFoundError):
        read_summary(tmp_path)


def test_a_folder_that_lost_a_shard_is_written_again(tmp_path):
    write_records(many(5), tmp_path, rows_per_shard=2, fingerprint="x")
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks part-00001\.parquet, which its summary\.json names"):
        records_dataset(tmp_path)
    write_records(many(5), tmp_path, rows_per_shard=2, fingerprint="x")
    assert list(records_dataset(tmp_path)) == many(5)


def test_a_folder_used_again_still_needs_its_audio(clips, tmp_path):
    roots = [("/there", str(clips))]
    write_records(some_records(), tmp_path / "out", roots, max_missing=0.5, fingerprint="x")
    with pytest.raises(ValueError, match="4 of 11 records have no audio"):
        write_records(some_records(), tmp_path / "out", roots, max_missing=0.1, fingerprint="x")


def test_the_fingerprint_knows_files_and_settings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    first = records_fingerprint([path], seed=0)
    assert first == records_fingerprint([str(path)], seed=0)
    assert first != records_fingerprint([path], seed=1)
    path.write_text("[ ]")
    assert first != records_fingerprint([path], seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "clsoed"}, "number 2 is of kind 'clsoed', expected one of closed, open"),
        ({"answer": ""}, "number 2 has '' as answer, expected text"),
        ({"prompt": 3}, "number 2 has 3 as prompt, expected text"),
        ({"audio": {"path": "x"}}, "number 2 has dict as audio, expected a path or None"),
        ({"fold": 1}, "number 2 has the keys audio, prompt, answer, source, kind, fold, expected audio, prompt"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_records([record(None), {**record(None), **wrong}], tmp_path)


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="records: there are none"):
        write_records([], tmp_path)
    with pytest.raises(ValueError, match="rows_per_shard: got 0"):
        write_records(many(3), tmp_path, rows_per_shard=0)


def test_from_a_published_file_to_a_dataset(tmp_path):
    shutil.copy(CLIPS / "dog.ogg", tmp_path)
    keys = {"instruction": "What is it?", "input": "", "dataset": "esc50", "task": "classification"}
    items = [{**keys, "audio_id": f"/data/sls/{name}.ogg", "output": name} for name in ("dog", "dog", "cat")]
    (tmp_path / "openaqa.json").write_text(json.dumps(items))
    records = read_openaqa(tmp_path / "openaqa.json", closed_prefix=0)
    write_records(records, tmp_path / "out", parse_audio_roots([f"/data/sls={tmp_path}"]), max_missing=0.5)
    rows = list(records_dataset(tmp_path / "out"))
    assert [row["answer"] for row in rows] == ["dog", "dog"]
    assert np.array_equal(load_audio(rows[0]["audio"]), load_audio(str(CLIPS / "dog.ogg")))
