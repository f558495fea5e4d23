"""Records as streams: folders, files and datasets in new orders, and what is refused."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiny import write_shards

from sam_lab.data.streams import RecordSource, mix

NUM_RECORDS = 23


@pytest.mark.parametrize("kind", ["folder", "file", "jsonl", "dataset", "stream"])
def test_every_record_once_in_a_new_order(kind, folder, records, tmp_path):
    if kind == "folder":
        source = str(folder)
    elif kind == "file":
        source = write_shards(tmp_path / "one", records, [NUM_RECORDS]) / "part-00000.parquet"
    elif kind == "jsonl":
        source = tmp_path / "records.jsonl"
        source.write_text("\n".join(map(json.dumps, records)))
    else:
        source = datasets.Dataset.from_list(records)
        source = source.to_iterable_dataset(num_shards=2) if kind == "stream" else source
    stream = RecordSource(source, 8)
    assert stream.num_rows == NUM_RECORDS
    walks = [[record["prompt"] for record in stream.walk([seed])] for seed in (0, 0, 1)]
    expected = [record["prompt"] for record in records]
    assert walks[0] == walks[1] != walks[2]
    assert sorted(walks[0]) == sorted(walks[2]) == sorted(expected)
    assert walks[0] != expected
    endless = [record["prompt"] for record in stream.take(0, 2 * NUM_RECORDS, [0])]
    assert sorted(endless[:NUM_RECORDS]) == sorted(endless[NUM_RECORDS:]) == sorted(expected)
    assert endless[:NUM_RECORDS] != endless[NUM_RECORDS:]  # each walk has its own order
    found = {record["prompt"]: record for record in stream.walk([0])}
    assert all(found[record["prompt"]] == record for record in records)


def test_undecoded_audio_columns(records):
    table = datasets.Dataset.from_list([{**record, "audio": records[0]["audio"]} for record in records[:3]])
    stored = table.cast_column("audio", datasets.Audio())
    for source in (stored, stored.to_iterable_dataset()):
        assert next(RecordSource(source, 8).walk([0]))["audio"]["path"] == records[0]["audio"]


@pytest.mark.parametrize("count", [9, 11])
def test_a_stream_that_changes_after_counting_is_an_error(records, count):
    current = records[:10]
    source = RecordSource(datasets.IterableDataset.from_generator(lambda: iter(current)), 4)
    assert source.num_rows == 10
    current[:] = records[:count]
    word = "fewer" if count < 10 else "more"
    with pytest.raises(ValueError, match=f"the IterableDataset had {word} records than the 10 that were counted"):
        list(source.take(0, 10, [0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, r"has the prompt 'What is it, 20\?' and the answer None, expected text"),
        ({"prompt": "a" * 999, "answer": None}, "has the prompt 'a{79} and the answer None, expected text"),
        ({"audio": 5}, r"prompt 'What is it, 20\?' and the answer 'It is .* has int as audio, expected a path"),
        ({"audio": ["a.wav", "b.wav"]}, "has list as audio"),
        ({"source": 3}, "has the source 3, expected text or None"),
        ({"prompt": "<|audio|> or <|audio|>?"}, r"<\|audio\|>\?' and .* has 2 <\|audio\|> in the prompt and 1 clip"),
        ({"prompt": "<|audio|>?", "audio": None}, r"has 1 <\|audio\|> in the prompt and 0 clip"),
        ({"answer": "It is <|audio|>."}, r"has the special token <\|audio\|> in the answer"),
        ({"answer": "A<|endoftext|>B"}, r"has the special token <\|endoftext\|> in the answer"),
    ],
)
def test_a_record_that_cannot_be_learned_is_an_error(records, change, message):
    rows = [*records[:20], {**records[20], **change}, *records[21:]]
    with pytest.raises(ValueError, match=f"source: the IterableDataset,? .*{message}"):
        RecordSource(datasets.IterableDataset.from_generator(lambda: iter(rows)), 8, ["<|endoftext|>"])


def test_a_record_that_cannot_be_learned_is_an_error_in_a_walk(records):
    rows = [*records[:20], {**records[20], "answer": None}, *records[21:]]
    source = RecordSource(datasets.Dataset.from_list(rows), 8)
    with pytest.raises(ValueError, match=r"the Dataset has the prompt .* and the answer None"):
        list(source.walk([0]))


def json_lines(file: Path, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_shards_of_json_lines_may_differ(records, tmp_path):
    parts = [[{**record, "audio": None} for record in records[:5]], [], records[5:9], records[9:]]
    parts[2] = [{**record, "id": 1} for record in parts[2]]
    parts[3] = [{**record, "id": "x"} for record in parts[3]]
    for index, part in enumerate(parts):
        json_lines(tmp_path / f"{index}.jsonl", part)
    source = RecordSource(tmp_path, 8)
    assert source.counts == [5, 0, 4, NUM_RECORDS - 9]
    found = sorted(source.walk([0]), key=lambda record: record["prompt"])
    assert found == sorted(chain(*parts), key=lambda record: record["prompt"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "cannot be read as JSON"),
        ("[1]", r"is b'\[1\]\\n', expected an object with audio, prompt, answer"),
        ('{"audio": null, "prompt": "?"}', "has the columns audio, prompt, expected also answer"),
        ('{"audio": null, "prompt": "?", "answer": 1}', r"has the prompt '\?' and the answer 1, expected text"),
    ],
)
def test_an_error_in_json_lines_names_file_and_line(records, tmp_path, line, message):
    json_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "b.jsonl").write_text(f"{json.dumps(records[0])}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"source: '.*b\.jsonl', line 3 {message}"):
        RecordSource(tmp_path, 8)
    for name in ("a.csv", "a.json"):
        (tmp_path / name).write_text("audio,prompt,answer\n")
        with pytest.raises(ValueError, match=r"source: got the file .*, expected one that ends in \.parquet or"):
            RecordSource(tmp_path / name, 8)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="has no records"):
        RecordSource(tmp_path / "empty.jsonl", 8)


def test_every_parquet_shard_has_the_columns(folder, records, tmp_path):
    part = write_shards(tmp_path / "whole", records, [NUM_RECORDS])
    table = parquet.read_table(part / "part-00000.parquet")
    (part / "summary.json").unlink()
    for name, other, message in (
        ("answer", None, r"part-00001\.parquet' has the columns audio, prompt, .*, expected also answer"),
        ("answer", pyarrow.int64(), r"part-00001\.parquet' has answer as int64, expected strings"),
        ("prompt", pyarrow.null(), "has prompt as null"),
        ("audio", pyarrow.int64(), "has audio as int64"),
        ("source", pyarrow.int64(), "has source as int64"),
    ):
        columns = {column: table[column] for column in table.column_names if column != name}
        if other is not None:
            columns[name] = pyarrow.nulls(len(table), other)
        parquet.write_table(pyarrow.table(columns), part / "part-00001.parquet")
        with pytest.raises(ValueError, match=message):
            RecordSource(part, 8)
    texts = table.set_column(3, "source", table["source"].dictionary_encode())
    texts = texts.set_column(0, "audio", pyarrow.nulls(len(table)))
    parquet.write_table(texts, part / "part-00001.parquet")
    assert len(list(RecordSource(part, 8).walk([0]))) == 2 * NUM_RECORDS


def test_a_folder_that_was_not_written_to_its_end_is_refused(records, tmp_path):
    part = write_shards(tmp_path / "part", records, [NUM_RECORDS])
    for name in (".records", "part-00001.parquet.unfinished"):
        (part / name).touch()
        RecordSource(part, 8)  # its summary says that it is whole
        summary = (part / "summary.json").read_text()
        (part / "summary.json").unlink()
        with pytest.raises(
            ValueError, match=r"has no summary\.json, since its writing was interrupted; write it again"
        ):
            RecordSource(part, 8)
        (part / name).unlink()
        assert RecordSource(part, 8).num_rows == NUM_RECORDS  # another program's
        for other in ("{}", "[]", "{"):
            (part / "summary.json").write_text(other)
            with pytest.raises(ValueError, match=r"summary\.json' does not state the number of 'rows'"):
                RecordSource(part, 8)
        (part / "summary.json").write_text(summary)


def test_a_folder_of_several_formats_or_splits_is_refused(records, tmp_path):
    part = write_shards(tmp_path / "part", records, [NUM_RECORDS])
    json_lines(part / "more.jsonl", records)
    with pytest.raises(ValueError, match=r"has \*\.parquet and \*\.jsonl, expected one of them"):
        RecordSource(part, 8)
    (part / "more.jsonl").unlink()
    (part / "summary.json").unlink()
    shard = (part / "part-00000.parquet").rename(part / "train-00000-of-00002.parquet").read_bytes()
    (part / "train-00001-of-00002.parquet").write_bytes(shard)
    (part / "testimony.parquet").write_bytes(shard)
    assert RecordSource(part, 8).num_rows == 3 * NUM_RECORDS
    for name in ("test-00000-of-00001.parquet", "validation.parquet"):
        (part / name).write_bytes(shard)
        with pytest.raises(ValueError, match=f"has the splits {name[:4]}.*train|has the splits train, {name[:4]}"):
            RecordSource(part, 8)
        (part / name).unlink()


@pytest.mark.parametrize("kind", ["pandas", "arrow", "torch"])
def test_formatted_datasets_give_plain_records(records, kind):
    table = datasets.Dataset.from_list(records)
    for source in (table.with_format(kind), table.to_iterable_dataset().with_format(kind)):
        found = sorted(RecordSource(source, 8).walk([0]), key=lambda record: record["prompt"])
        assert found == sorted(records, key=lambda record: record["prompt"])
    changed = table.with_transform(lambda rows: {**rows, "answer": ["New."] * len(rows["prompt"])})
    assert {record["answer"] for record in RecordSource(changed, 8).walk([0])} == {"New."}


def test_a_mixture_gives_each_item_the_same_chance():
    first = Counter()
    for seed in range(400):
        items = list(mix([iter("ab"), iter("cdefgh")], [2, 6], np.random.default_rng(seed)))
        assert sorted(items) == list("abcdefgh")
        assert items.index("a") < items.index("b")  # each stream keeps its order
        first[items[0] in "ab"] += 1
    assert 70 < first[True] < 130  # a quarter of 400, give or take three and a half standard deviations
    with pytest.raises(ValueError, match="fewer records than the 5 that were counted"):
        list(mix([iter("ab")], [5], np.random.default_rng(0)))
