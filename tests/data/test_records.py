"""Audio roots, coverage, and folders of records."""

import json
import math
import os
import re
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest

from processing_sam import load_audio
from sam_lab.data import records as records_module
from sam_lab.data.coverage import KINDS, AudioCoverage, coverage_table, map_audio, parse_audio_roots
from sam_lab.data.published import read_openaqa, read_reasonaqa
from sam_lab.data.records import read_summary, records_dataset, records_fingerprint, write_records

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT / "examples" / "audio"


# -- Audio roots --------------------------------------------------------------------------------------------------


def test_audio_roots_are_read():
    assert parse_audio_roots(["/data/a=/mnt/a", "=/mnt/b"]) == [("/data/a", "/mnt/a"), ("", "/mnt/b")]
    assert parse_audio_roots(["a=~/b"]) == [("a", os.path.expanduser("~/b"))]
    for wrong in ("/data/a", "/data/a=", "/data/a\\=b"):
        with pytest.raises(ValueError, match=f"--audio-root: got {re.escape(repr(wrong))}, expected FROM=TO"):
            parse_audio_roots([wrong])
    with pytest.raises(ValueError, match="got 'a' twice, as 'b' and 'c'"):
        parse_audio_roots(["a=b", "a=c"])


def test_an_equals_sign_in_a_folder(tmp_path):
    (tmp_path / "d=e").mkdir()
    (tmp_path / "x").mkdir()
    assert parse_audio_roots([f"c={tmp_path}/d=e"]) == [("c", f"{tmp_path}/d=e")]
    assert parse_audio_roots([f"/a=b={tmp_path}/x"]) == [("/a=b", f"{tmp_path}/x")]
    assert parse_audio_roots(["/a\\=b=/mnt/c\\=d"]) == [("/a=b", "/mnt/c=d")]
    with pytest.raises(ValueError, match=r"got '/a=b=/none', in which several = could divide FROM=TO; write \\= for"):
        parse_audio_roots(["/a=b=/none"])


def test_audio_roots_are_compared_as_folders():
    assert parse_audio_roots(["/a//b/=/x/", "./aud=y", ".=z", "//c=/w"]) == [
        ("/a/b", "/x"),
        ("aud", "y"),
        ("", "z"),
        ("/c", "/w"),
    ]
    assert parse_audio_roots(["/a/=/b", "/a=/b/"]) == [("/a", "/b")]
    with pytest.raises(ValueError, match="got '/a' twice, as '/b' and '/c'"):
        parse_audio_roots(["/a/=/b", "/a=/c"])
    for path, root in [
        ("./aud/x.wav", "aud"),
        ("aud/x.wav", "./aud"),
        ("aud//x.wav", "aud/"),
        ("aud/x.wav", ".//aud"),
    ]:
        assert map_audio(path, [(root, "/m")]) == "/m/x.wav", path
    assert map_audio("/d//a/./x.wav", [("/d/a", "/m")]) == map_audio("//d/a/x.wav", [("/d/a", "/m")]) == "/m/x.wav"
    assert map_audio("/x.wav", [("/", "/m")]) == "/m/x.wav"
    assert map_audio("./y//x.wav", [("aud", "/m")]) == "./y//x.wav"  # what no root holds is left as it is


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


# -- Coverage -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(records_module.os.path, "isfile", lambda path: looked_up.update([path]) or isfile(path))
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


def test_a_source_without_audio_is_an_error_though_it_is_small(clips, tmp_path):
    """Two in a hundred of all, but all of one of its sources, whose folder was misspelt."""
    there = [record("/there/a.wav")] * 4900
    lost = [record(f"/other/clotho/{index}.wav", source="clotho") for index in range(100)]
    roots = [("/there", str(clips)), ("/other/cloto", str(clips))]
    assert (clips / "a.wav").is_file()
    with pytest.raises(
        ValueError, match=r"^100 of 100 records of clotho have no audio file, more than max_missing=5\.0%"
    ) as error:
        write_records(there + lost, tmp_path / "out", roots)
    told = str(error.value)
    assert "'/other/clotho/0.wav', for example, was searched under this path, since no --audio-root fits." in told
    assert f"No record's path lies in the folder of --audio-root /other/cloto={clips}." in told
    with pytest.raises(ValueError, match=rf"'/other/clotho/0\.wav', for example, was searched as '{clips}/0\.wav'\."):
        write_records(there + lost, tmp_path / "out", [roots[0], ("/other/clotho", str(clips))])
    summary = write_records(there + lost, tmp_path / "out", roots, missing_sources=["clotho"])
    assert (summary["rows"], summary["missing"]) == (4900, 100)
    with pytest.raises(ValueError, match="100 of 100 records have no audio"):  # not even then
        write_records(lost, tmp_path / "b", roots, missing_sources=["clotho"])
    more = [record(f"/gone/{index}.wav", source=f"n{index % 2}") for index in range(180)]
    with pytest.raises(ValueError, match=r"^180 of 280 records have no .* '/gone/0\.wav', for example, was searched"):
        write_records(there[:100] + lost + more, tmp_path / "c", roots, missing_sources=["clotho"])
    few = write_records(
        there + lost[:99], tmp_path / "few", [list(root) for root in roots]
    )  # of so few none is judged
    assert few["missing"] == 99


def test_a_folder_of_audio_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"--audio-root: /there=/nowhere: there is no folder '/nowhere'; correct it"):
        write_records(killed(0), tmp_path, [("/there", "/nowhere")])


def test_the_largest_share_that_may_be_missing_is_allowed(tmp_path):
    """29 of 100, where 0.29 * 100 is less than 29; and one more."""
    there = [record(None)] * 71
    summary = write_records(there + [record("/none.wav")] * 29, tmp_path / "a", max_missing=0.29)
    assert (summary["rows"], summary["missing"]) == (71, 29)
    with pytest.raises(ValueError, match="30 of 101 records"):
        write_records(there + [record("/none.wav")] * 30, tmp_path / "b", max_missing=0.29)
    assert write_records(there, tmp_path / "c", max_missing=0)["missing"] == 0
    assert write_records([*there, record("/none.wav")], tmp_path / "d", max_missing=1)["missing"] == 1


@pytest.mark.parametrize("wrong", [5, -0.1, 1.01, math.nan])
def test_a_share_is_checked_before_anything_is_read(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"max_missing: got {wrong}, expected a share from 0 to 1"):
        write_records(killed(0), tmp_path, max_missing=wrong)


def test_the_table_has_sources():
    table = coverage_table({"rows": 7, "missing": 4, "by_source": COUNTS})
    assert [line.split() for line in table.splitlines()] == [
        ["source", "rows", "missing", "covered", "clips", "missing", "clips"],
        ["as_strong_train", "1", "1", "50.0%", "1", "1"],
        ["clothov21", "2", "1", "66.7%", "1", "1"],
        ["text", "1", "0", "100.0%", "0", "0"],
        ["vggsound_train", "3", "2", "60.0%", "2", "1"],
        ["all", "7", "4", "63.6%", "4", "3"],
    ]


def test_what_was_read_is_beside_what_was_published(tmp_path):
    """Only of the collections that were read, whatever the sources are called; and the numbers add up."""
    keys = {"instruction": "What is it?", "input": "", "audio_id": "a.wav", "dataset": "audiocaps"}
    rows = [("caption", "A dog."), ("caption", ""), ("open-ended question", "Sorry."), ("closed", "A cat.")]
    items = [{**keys, "task": task, "output": output} for task, output in rows]
    (tmp_path / "q.json").write_text(json.dumps(items))
    counts = {}
    records = read_openaqa(tmp_path / "q.json", skip_unanswerable=True, counts=counts)
    summary = write_records(records, tmp_path / "out", check_audio=False, fingerprint="x", counts={"OpenAQA": counts})
    expected = {"records": 4, "closed": 3, "open": 1, "unanswered": 1, "unanswerable": 1}
    assert summary["collections"] == {"OpenAQA": expected} and summary["rows"] == 2
    assert coverage_table(summary).splitlines()[3:] == [
        "",
        "OpenAQA: 4 records in its files, skipped 1 with an empty answer, 1 whose answer states that there is none: "
        "2 used",
        "OpenAQA closed: 3 read, 1,917,894 published",
        "OpenAQA open: 1 read, 3,763,814 published",
    ]
    again = write_records(killed(0), tmp_path / "out", check_audio=False, fingerprint="x", counts={"OpenAQA": {}})
    assert again == summary == read_summary(tmp_path / "out")

    keys = {"taskname": "mine", "filepath1": "a.wav", "caption1": "", "caption2": "", "subtype": "ClothoAQA.json"}
    items = [
        {**keys, "filepath2": second, "input": "is it?", "answer": answer}
        for second, answer in [("", "yes"), ("", "no"), ("b.wav", "no"), ("", "")]
    ]
    (tmp_path / "train.json").write_text(json.dumps(items))
    counts = {}
    records = read_reasonaqa(tmp_path / "train.json", counts=counts)
    summary = write_records(records, tmp_path / "r", check_audio=False, counts={"ReasonAQA": counts})
    assert coverage_table(summary).splitlines()[3:] == [
        "",
        "ReasonAQA: 4 records in its files, skipped 1 on two clips, 1 with an empty answer: 2 used",
        "ReasonAQA: 4 read, 968,071 published",
    ]


# -- Folders ------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(records_module, "CHUNK", 4)
    assert [shard["rows"] for shard in write_records(many(25), tmp_path, rows_per_shard=10)["shards"]] == [10, 10, 5]
    assert list(records_dataset(tmp_path)) == many(25)


class Killed(Exception):
    pass


def killed(count):
    yield from many(count)
    raise Killed


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_broken_writing_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "CHUNK", 5)
    with pytest.raises(Killed):
        write_records(killed(23), tmp_path, rows_per_shard=4, fingerprint="x")
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"has no summary\.json, which is written last; write the records"):
        records_dataset(tmp_path)
    (tmp_path / "part-00002.parquet.unfinished").touch()  # of a kill that nothing can catch
    write_records(many(6), tmp_path, rows_per_shard=4, fingerprint="x")
    assert names(tmp_path) == ["part-00000.parquet", "part-00001.parquet", "summary.json"]
    assert list(records_dataset(tmp_path)) == many(6)


def test_a_broken_writing_leaves_the_old_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "CHUNK", 5)
    write_records(many(12), tmp_path, rows_per_shard=4, fingerprint="x")
    before = names(tmp_path)
    with pytest.raises(Killed):
        write_records(killed(23), tmp_path, rows_per_shard=3, fingerprint="y")
    with pytest.raises(ValueError, match="have no audio file"):
        write_records([record(None), record("/none.wav")], tmp_path, fingerprint="y")
    assert names(tmp_path) == before and list(records_dataset(tmp_path)) == many(12)


@pytest.mark.parametrize("at", range(7))
def test_a_replacing_that_breaks_off_is_done_again(tmp_path, monkeypatch, at):
    """Wherever it does: either summary stands beside its own shards, or there is none."""
    write_records(many(6), tmp_path, rows_per_shard=3, fingerprint="x")
    steps = []

    def breaking(call):
        def step(*arguments, **options):
            steps.append(call)
            if len(steps) == at + 1:
                raise Killed
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as context:
        context.setattr(records_module, "_discard_unfinished", lambda folder: None)  # as if killed without notice
        context.setattr(records_module.os, "replace", breaking(os.replace))
        context.setattr(Path, "unlink", breaking(Path.unlink))
        with pytest.raises(Killed):
            write_records(many(8), tmp_path, rows_per_shard=4, fingerprint="y")
            pytest.fail("fewer steps than thought")
    if (tmp_path / "summary.json").exists():
        assert list(records_dataset(tmp_path)) == (many(6) if at == 0 else many(8))
    write_records(many(2), tmp_path, fingerprint="z")
    assert names(tmp_path) == ["part-00000.parquet", "summary.json"] and list(records_dataset(tmp_path)) == many(2)


def test_a_folder_may_be_rewritten_from_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "CHUNK", 5)
    write_records(many(23), tmp_path, rows_per_shard=4)
    write_records(iter(records_dataset(tmp_path)), tmp_path, rows_per_shard=7)
    assert list(records_dataset(tmp_path)) == many(23) and len(names(tmp_path)) == 5


@pytest.mark.parametrize(
    ("file", "text", "whole"),
    [
        ("part-00007.parquet", "mine", False),
        ("part-mine.parquet", "mine", False),
        ("part-00007.parquet", "mine", True),  # beside our own
        ("summary.json", '{"rows": 3}', False),
        ("summary.json", "[]", False),
        ("summary.json", "no JSON", False),
    ],
)
def test_what_is_not_ours_is_not_deleted(tmp_path, file, text, whole):
    if whole:
        write_records(many(3), tmp_path)
    (tmp_path / file).write_text(text)
    before = names(tmp_path)
    with pytest.raises(ValueError, match=rf"^folder: .*{file}"):
        write_records(killed(0), tmp_path)  # before anything is read
    assert names(tmp_path) == before and (tmp_path / file).read_text() == text


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"folder: .*out' is a file, expected a folder"):
        write_records(many(1), tmp_path / "out")


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?", "[a-z]"])
def test_a_folders_name_is_no_pattern(tmp_path, name):
    for other, count in ((name, 3), ("x1", 4), ("xy", 5), ("a", 6)):
        write_records(many(count), tmp_path / other)
    for streaming in (True, False):
        assert list(records_dataset(tmp_path / name, streaming)) == many(3)


def test_a_whole_folder_is_used_again(tmp_path):
    first = write_records(many(5), tmp_path, fingerprint="x")
    assert write_records(killed(0), tmp_path, fingerprint="x") == first  # reads nothing
    for different in (
        {"fingerprint": "y"},
        {"fingerprint": None},
        {"fingerprint": "x", "audio_roots": [("a", str(CLIPS))]},
        {"fingerprint": "x", "check_audio": False},
    ):
        with pytest.raises(Killed):
            write_records(killed(0), tmp_path, **different)
    with pytest.raises(Killed):  # records that cannot be read leave the folder as it was
        write_records(killed(records_module.CHUNK), tmp_path, fingerprint="y")
    assert read_summary(tmp_path) == first


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
        ({"answer": "A \ud83d."}, "number 2 has half of a surrogate pair in its answer, 'A .ud83d.'"),
        ({"audio": "\ud83d.wav"}, "number 2 has half of a surrogate pair in its audio"),
        ({"audio": {"path": "x"}}, "number 2 has dict as audio, expected a path or None"),
        ({"fold": 1}, "number 2 has the keys audio, prompt, answer, source, kind, fold, expected audio, prompt"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_records([record(None), {**record(None), **wrong}], tmp_path)


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="records: got none"):
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


# -- Writing again, and at the same time --------------------------------------------------------------------------


def test_a_folder_whose_summary_was_deleted_is_written_again(tmp_path):
    first = write_records([record(None)] * 3, tmp_path / "records", fingerprint="x")
    (tmp_path / "records" / "summary.json").unlink()
    again = write_records([record(None)] * 4, tmp_path / "records", fingerprint="x")
    assert (first["rows"], again["rows"]) == (3, 4) and len(
        records_dataset(tmp_path / "records", streaming=False)
    ) == 4


def test_two_writers_take_turns(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        for number in range(12_000):  # more than are looked up at once
            if number == 11_000:
                begun.set()
                assert go_on.wait(30)
            yield record(None)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(write_records, slow(), tmp_path / "records", fingerprint="x")
        assert begun.wait(30)
        other = pool.submit(write_records, [record(None)] * 5, tmp_path / "records", fingerprint="y")
        same = pool.submit(write_records, [record(None)] * 7, tmp_path / "records", fingerprint="x")
        go_on.set()
        assert [one.result()["rows"], other.result()["rows"]] == [12_000, 5]
        assert same.result()["rows"] in (7, 12_000)  # before the other one it has nothing to write
    summary = read_summary(tmp_path / "records")
    assert len(records_dataset(tmp_path / "records", streaming=False)) == summary["rows"]
    assert not [path.name for path in (tmp_path / "records").iterdir() if path.name.startswith(".")]
