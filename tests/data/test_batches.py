"""Streams of records and the batches made of them: order, sharding, packing, broken audio, and training on them."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain, islice, pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from pyarrow import parquet
from tiny import tiny_batches, tiny_model, tiny_processor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import TrainerCallback, TrainingArguments

from processing_sam import SamDataCollator, load_audio
from sam_lab.data import collation as collation_module
from sam_lab.data.collation import BROKEN, RowCollator, collate_rows, compute_features, pack_rows
from sam_lab.data.counts import SourceCounts, merge_reports
from sam_lab.data.streams import RecordSource, mix, shares
from sam_lab.timing.load import measure_loader
from sam_lab.training.trainer import BatchesCallback, SamTrainer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE_LENGTH = len("### Instruction:\n\n\n### Response:\n")  # bytes are tokens here
NUM_RECORDS = 23


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips that sound different, of a third to two thirds of a second."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        time = np.arange(5300 + 900 * index) / 16000
        sound = 0.3 * np.sin(2 * np.pi * 200 * (index + 1) * time) * np.exp(-index * time)
        soundfile.write(folder / f"{index}.wav", sound, 16000)
    return folder


@pytest.fixture(scope="module")
def records(clips):
    """Records of very different lengths; every fourth is text only."""
    return [
        {
            "audio": None if index % 4 == 3 else str(clips / f"{index % 6}.wav"),
            "prompt": f"What is it, {index}?",
            "answer": f"It is number {index}" + " and so on" * (index * 7 % 10) + ".",
            "source": "abc"[index % 3],
            "kind": "other",
        }
        for index in range(NUM_RECORDS)
    ]


def write_shards(folder: Path, records, sizes) -> Path:
    folder.mkdir()
    columns = ("audio", "prompt", "answer", "source", "kind")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    begin = 0
    for number, size in enumerate(sizes):
        table = pyarrow.Table.from_pylist(records[begin : begin + size], schema)
        parquet.write_table(table, folder / f"part-{number:05}.parquet")
        begin += size
    assert begin == len(records)
    (folder / "summary.json").write_text(json.dumps({"rows": len(records)}))
    return folder


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """The records in three shards, in a folder whose name is a pattern."""
    return write_shards(tmp_path_factory.mktemp("records") / "a[b]c*", records, (10, 1, 12))


def prompts(global_batches) -> list[list[str]]:
    return [[record["prompt"] for record in batch] for batch in global_batches]


def load(batches, num_workers=0) -> list[dict]:
    return list(batches.load(num_workers))


def same(one: list[dict], two: list[dict]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, two)
    )


# ---------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------


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


def test_weights_are_kept_exactly(processor, records, clips):
    small, large = datasets.Dataset.from_list(records[:5]), datasets.Dataset.from_list(records[5:])
    batches = tiny_batches([(small, 1.0), (large, 1)], processor, 4, num_rows=10)
    epochs = [Counter(chain(*prompts(batches.order.global_batches(epoch)))) for epoch in range(4)]
    of_small = {record["prompt"] for record in records[:5]}
    for epoch in epochs:
        assert sum(epoch.values()) == 10
        assert {prompt: count for prompt, count in epoch.items() if prompt in of_small} == dict.fromkeys(of_small, 1)
    # five of the eighteen an epoch: three epochs go on where the one before stopped, and the fourth begins again
    assert len(set().union(*epochs[:3]) - of_small) == 15
    assert len(set().union(*epochs) - of_small) == 18
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert tiny_batches([(small, 3), (large, 1)], processor, 4).order.num_rows == NUM_RECORDS


def test_counts_have_a_place_for_any_number_of_sources():
    counts = SourceCounts()
    for index in range(70):
        counts.add(f"source {index}", "seen")
    counts.add("x" * 63 + "ö" * 9, "broken", 2)
    report = counts.report()
    assert len(report) == 71 and report["source 5"]["seen"] == report["source 69"]["seen"] == 1
    assert counts.total("seen") == 70 and counts.total("broken") == 2


def test_long_names_of_sources_stay_apart():
    counts = SourceCounts()
    names = ["/data/" + "ö" * 40 + f"/{index}" for index in range(3)]
    for index, name in enumerate(names):
        counts.add(name, "seen", index + 1)
    assert {name: row["seen"] for name, row in counts.report().items()} == dict(zip(names, [1, 2, 3]))


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


# ---------------------------------------------------------------------------------------------------------------
# Order and sharding
# ---------------------------------------------------------------------------------------------------------------


def test_the_order_does_not_depend_on_the_split(processor, folder):
    splits = [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 4, 1)]
    orders = []
    for size, processes, accumulation in splits:
        everything = []
        for process in range(processes):
            batches = tiny_batches(
                folder,
                processor,
                size,
                num_processes=processes,
                process_index=process,
                accumulation=accumulation,
                group_buffer=3,
            )
            assert (batches.order.global_batch, batches.order.steps_per_epoch, len(batches)) == (
                4,
                6,
                6 * accumulation,
            )
            steps = list(batches.order.global_batches(1))
            parts = [batches.order.micro_batches(step) for step in steps]
            assert all(len(part) == accumulation and all(len(rows) <= size for rows in part) for part in parts)
            everything.append(parts)
        orders.append(prompts(steps))
        for index, step in enumerate(orders[-1]):
            dealt = [record["prompt"] for parts in everything for rows in parts[index] for record in rows]
            assert sorted(dealt) == sorted(step)
    assert all(order == orders[0] for order in orders)
    assert [len(step) for step in orders[0]] == [4, 4, 4, 4, 4, 3]
    assert len(set(chain(*orders[0]))) == NUM_RECORDS
    assert orders[0] != prompts(batches.order.global_batches(0))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_the_batches(processor, folder, num_workers):
    batches = tiny_batches(folder, processor, 2, accumulation=3, pack_to=300, epochs=2)
    batches.set_epoch(1)
    alone = load(batches)
    assert len(alone) == len(batches) == 12
    assert same(load(batches, num_workers), alone)
    batches.seek(6)  # the third of four steps of the second epoch
    assert same(load(batches, num_workers), alone[6:])
    assert (
        batches.counts.total("seen") == 2 * NUM_RECORDS + 11
    )  # the last time, only what follows the first two steps of six
    batches.set_epoch(0)
    assert not same(load(batches, num_workers), alone)


def test_rows_of_a_similar_length_meet(processor):
    texts = ["x" * int(length) for length in np.random.default_rng(0).integers(1, 400, size=1024)]
    table = datasets.Dataset.from_list([{"audio": None, "prompt": "", "answer": text} for text in texts])

    def padding(**options):
        batches = tiny_batches(table, processor, 8, accumulation=2, num_processes=2, **options)
        parts = [part for step in batches.order.global_batches(0) for part in batches.order.micro_batches(step)]
        lengths = [[len(record["answer"]) for record in part] for part in parts]
        return sum(max(part) * len(part) - sum(part) for part in lengths) / sum(map(sum, lengths))

    assert padding(group_buffer=16) < 0.2 < padding(group_buffer=1) < 0.45
    batches = tiny_batches(table, processor, 8, num_processes=4, group_buffer=32)
    means = [np.mean([len(record["answer"]) for record in step]) for step in batches.order.global_batches(0)]
    assert len(means) == 32 and abs(np.corrcoef(means, range(32))[0, 1]) < 0.6  # whole global batches are shuffled


def test_processes_work_on_rows_of_the_same_length(processor, records):
    two = [
        tiny_batches(
            datasets.Dataset.from_list(records), processor, 4, num_processes=2, process_index=index, accumulation=2
        )
        for index in range(2)
    ]
    for step in two[0].order.global_batches(0):
        for parts in zip(*(batches.order.micro_batches(step) for batches in two)):
            zeroth, first = ([two[0].order.length(record) for record in part] for part in parts)
            assert all(a <= b for a, b in zip(zeroth, first))
            assert all(b <= a for b, a in zip(first, zeroth[1:]))


def test_the_order_by_length_has_noise(processor):
    table = datasets.Dataset.from_list([{"audio": None, "prompt": "", "answer": "x" * n} for n in range(200, 456)])
    epochs = []
    for epoch in range(2):
        steps = list(tiny_batches(table, processor, 16, group_buffer=16).order.global_batches(epoch))
        lengths = sorted([len(record["answer"]) for record in step] for step in steps)
        assert all(step == sorted(step) for step in lengths)
        ahead = max(max(one) / min(two) for one, two in pairwise(sorted(lengths, key=np.mean)))
        assert 1 < ahead < 1.5  # records of neighbouring batches are mixed, and no others
        epochs.append(lengths)
    assert epochs[0] != epochs[1]  # other records meet


def test_a_fraction_of_an_epoch(processor, folder):
    batches = tiny_batches(folder, processor, 2, accumulation=2, epochs=1.5)
    assert (batches.order.steps_per_epoch, batches.order.num_steps, len(batches)) == (6, 9, 12)
    batches.set_epoch(1)
    assert len(load(batches)) == 6
    assert len(load(tiny_batches(folder, processor, 2, accumulation=2, start_step=4))) == 4
    batches.set_epoch(2)
    with pytest.raises(ValueError, match=r"epochs: got 1\.5, which are 9 steps, but a pass should start at epoch 2"):
        load(batches)


# ---------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------


def test_batches_are_the_collators(processor, folder, records):
    (step,) = tiny_batches(folder, processor, 32).order.global_batches(0)
    (batch,) = load(tiny_batches(folder, processor, 32))
    expected = SamDataCollator(processor)(step)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) for key in ("input_ids", "labels", "attention_mask"))
    assert torch.allclose(batch["input_features"], expected["input_features"], atol=1e-5)


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("audio", [False, True])
def test_the_cutoff_is_ltus(processor, clips, audio, train_on_prompt):
    prompt, answer = "What?", "A dog."
    text = f"### Instruction:\n{prompt}\n\n### Response:\n{answer}"
    record = {"audio": str(clips / "0.wav") if audio else None, "prompt": prompt, "answer": answer, "source": "s"}
    for cutoff in (36, len(text) - 1, len(text), len(text) + 1, len(text) + 9):
        batch = RowCollator(processor, text_cutoff=cutoff, train_on_prompt=train_on_prompt)([record])
        ids = processor.tokenizer(text)["input_ids"][:cutoff]  # as finetune.py of LTU does
        if len(ids) < cutoff:
            ids = ids + [processor.tokenizer.eos_token_id]
        learned = len(ids) if train_on_prompt else max(len(ids) - len(text) + len(answer), 0)
        slots = 64 * audio
        assert batch["input_ids"][0].tolist() == [258] * slots + ids
        labels = [-100] * (slots + len(ids) - learned) + (ids[-learned:] if learned else [])
        assert batch["labels"][0].tolist() == [-100] + labels[1:]
        assert batch.read["s"]["cut"] == (cutoff <= len(text))
        assert batch.read["s"]["unanswered"] == (learned == 0)


def test_a_clip_is_heard_even_behind_the_cutoff(processor, clips):
    record = {"audio": str(clips / "0.wav"), "prompt": "x" * 90 + "<|audio|>", "answer": "No."}
    batches = tiny_batches(datasets.Dataset.from_list([record]), processor, 1, text_cutoff=60, train_on_prompt=True)
    (batch,) = load(batches)
    assert (batch["input_ids"] == 258).sum() == 64 and batch["input_ids"].shape == (1, 124)
    assert len(batch["input_features"]) == 1


# ---------------------------------------------------------------------------------------------------------------
# Log-mel
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loud_and_long(tmp_path):
    """Records of a short clip, one over 10.24 s whose end has another mean, and one that is silent in the middle."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, 8000), rng.normal(0.02, 0.01, 200_000), rng.normal(0, 0.1, 48_000)]
    sounds[1][170_000:] += 0.5
    sounds[2][10_000:30_000] = 0
    for index, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{index}.wav", sound, 16000, subtype="FLOAT")
    return [
        {"audio": str(tmp_path / f"{index}.wav"), "prompt": "?" * (index + 1), "answer": ".", "source": "s"}
        for index in range(3)
    ]


@pytest.mark.parametrize("features", ["workers", "device"])
def test_log_mel_is_the_feature_extractors(processor, loud_and_long, features):
    batches = tiny_batches(datasets.Dataset.from_list(loud_and_long), processor, 3, features=features)
    (batch,) = load(batches)
    if features == "device":
        assert "input_features" not in batch
        assert batch["num_samples"].tolist() == [8000, 164_080, 48_000]
        batch = compute_features(batch, processor)
        assert "waveforms" not in batch and "num_samples" not in batch
    paths = [record["audio"] for step in batches.order.global_batches(0) for record in step]
    waveforms = [load_audio(path) for path in paths]
    expected = processor.feature_extractor(waveforms, 16000, return_tensors="pt", overflow="truncate")
    assert (batch["input_features"] - expected["input_features"]).abs().max() < 1e-4
    assert batches.counts.total("truncated") == 1


# ---------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------


def test_rows_are_packed_first_fit_decreasing():
    rows = [{"input_ids": [0] * length} for length in (3, 7, 5, 12, 4, 1)]
    lengths = [[len(row["input_ids"]) for row in packed] for packed in pack_rows(rows, 10)]
    assert lengths == [[12], [7, 3], [5, 4, 1]]


def gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    count = batch["labels"][:, 1:].ne(-100).sum()  # as Trainer counts
    loss = model(**batch, num_items_in_batch=count).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("connector", ["concatenation", "time_major", "frequency_major"])
def test_packed_training_equals_unpacked(connector, train_on_prompt, records):
    model, processor = tiny_model(connector).train(), tiny_processor(connector)
    table, slots = datasets.Dataset.from_list(records[:6]), len(processor.slot_pattern)
    options = {"train_on_prompt": train_on_prompt}
    (plain,) = load(tiny_batches(table, processor, 6, **options))
    (packed,) = load(tiny_batches(table, processor, 6, pack_to=2 * slots + 330, **options))
    assert len(plain["input_ids"]) == 6 > len(packed["input_ids"])
    assert packed["attention_mask"].min() == 0  # there is padding too
    assert packed["labels"].ne(-100).sum() == plain["labels"].ne(-100).sum()
    (loss, grads), (packed_loss, packed_grads) = gradients(model, plain), gradients(model, packed)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for name, expected in grads.items():
        scale = max(expected.abs().max().item(), 1.0)
        assert (packed_grads[name] - expected).abs().max() < 1e-5 * scale, name


def test_nothing_leaks_across_a_border(processor, clips):
    model = tiny_model()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, 40_000).astype(np.float32))

    def row(waveform, text):
        ids = [258] * 64 + processor.tokenizer(text)["input_ids"]
        return {"input_ids": ids, "labels": list(ids), "waveform": waveform}

    tone = processor.feature_extractor.center(load_audio(str(clips / "5.wav")))[0]
    second = row(tone, "A tone.")
    outputs = {}
    for name, first in (("tone", row(tone, "Quiet!")), ("noise", row(noise, "Louder"))):
        assert len(first["input_ids"]) == 70
        batch = collate_rows([[first, second]], processor, pad_to_multiple_of=16)
        assert batch["seq_idx"][0].tolist() == [0] * 70 + [1] * 71 + [2] * 3
        # all is labelled, so that only the masking of what begins a sequence keeps the loss within it
        outputs[name] = model(**{**batch, "labels": batch["input_ids"].masked_fill(batch["seq_idx"] != 1, -100)})
    alone = model(**collate_rows([[second]], processor))
    for packed in outputs.values():
        assert torch.allclose(packed.logits[0, 70:141], alone.logits[0], atol=1e-4)
    assert (outputs["tone"].logits[0, :70] - outputs["noise"].logits[0, :70]).abs().max() > 0.1
    labels = torch.tensor(second["input_ids"])[1:]
    expected = torch.nn.functional.cross_entropy(alone.logits[0, :-1], labels)
    assert torch.allclose(outputs["noise"].loss, expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# Broken audio
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(records, tmp_path):
    """The records, of which four have audio that cannot be read."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is no sound.")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    names = {0: "missing.wav", 4: "empty.wav", 10: "text.wav", 12: "short.wav"}
    return [
        {**record, "audio": str(tmp_path / names[index])} if index in names else record
        for index, record in enumerate(records)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_audio_is_left_out_and_counted(processor, broken, num_workers, caplog):
    batches = tiny_batches(datasets.Dataset.from_list(broken), processor, 4, max_broken=4 / NUM_RECORDS)
    with caplog.at_level("WARNING"):
        loaded = load(batches, num_workers)
    assert sum(len(batch["input_ids"]) for batch in loaded) == NUM_RECORDS - 4
    assert sum(len(batch.get("input_features", [])) for batch in loaded) == NUM_RECORDS - 4 - NUM_RECORDS // 4
    texts = [text for batch in loaded for text in processor.batch_decode(batch["input_ids"])]
    for index in range(NUM_RECORDS):
        assert sum(f"What is it, {index}?" in text for text in texts) == (index not in (0, 4, 10, 12))
    report = batches.report()
    assert {name: row["seen"] for name, row in report.items()} == {"a": 8, "b": 8, "c": 7}
    assert {name: row["broken"] for name, row in report.items()} == {"a": 2, "b": 2, "c": 0}
    (warning,) = [record for record in caplog.records if "cannot be read" in record.message]
    assert str(Path(broken[0]["audio"]).parent) in warning.message


def test_records_without_a_source_are_counted_by_the_name_of_their_table(processor, records):
    tables = [datasets.Dataset.from_list([dict(record) for record in part]) for part in (records[:6], records[6:12])]
    tables[1] = tables[1].remove_columns("source")
    sources = [(table, 1.0) for table in tables]
    for names, expected in ((["x", "y"], {"a", "b", "c", "y"}), (None, {"a", "b", "c", "unnamed"})):
        batches = tiny_batches(sources, processor, 4, names=names)
        load(batches)
        report = batches.report()
        assert report.keys() == expected and report[names[1] if names else "unnamed"]["seen"] == 6
    with pytest.raises(ValueError, match="names: got 1, expected 2, one for each source"):
        tiny_batches(sources, processor, 4, names=["x"])


def test_whatever_a_decoder_raises_is_broken_audio(processor, records, monkeypatch):
    errors = [OSError("x"), ValueError("x"), soundfile.LibsndfileError(1)]  # the last is a RuntimeError

    def fail(path):
        raise errors.pop()

    monkeypatch.setattr(collation_module, "load_audio", fail)
    batch = RowCollator(processor)(records[:3])
    assert not errors and sum(row["broken"] for row in batch.read.values()) == 3
    assert "Error opening" in batch.error or batch.error


def some_broken(records) -> list[dict]:
    """Six of the 23 records are broken."""
    return [{**record, "audio": "/nowhere.wav"} if index % 4 == 0 else record for index, record in enumerate(records)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_records_are_an_error_within_a_pass(processor, records, num_workers):
    table = datasets.Dataset.from_list(some_broken(records) * 10)
    batches = tiny_batches(table, processor, 4, max_broken=0.2)
    with pytest.raises(ValueError, match=r"max_broken: the audio of \d+ of 1\d\d records cannot be read \(a: .*/nowh"):
        load(batches, num_workers)
    assert 100 <= batches.counts.total("seen") < 10 * NUM_RECORDS


@pytest.mark.parametrize("num_workers", [0, 1, 3, 8])
def test_too_many_broken_records_are_an_error_at_the_end_of_a_pass(processor, records, num_workers):
    table = datasets.Dataset.from_list(some_broken(records))
    batches = tiny_batches(table, processor, 4, max_broken=0.2)
    loader = batches.load(num_workers)
    with pytest.raises(
        ValueError, match=r"max_broken: the audio of 6 of 23 records .*, expected at most 20\.00%\. Rep"
    ):
        for _ in range(6):  # as Trainer does, which never asks for one more than there are
            next(loader)
    assert batches.counts.total("seen") == NUM_RECORDS
    batches.seek(3)
    assert len(load(batches, num_workers)) == 3  # of the rest of an epoch nothing can be said


def test_a_pass_that_is_cut_short_is_not_judged(processor, records):
    """Of a few records nothing can be said; nor of one broken record among a process's share."""
    batches = tiny_batches(datasets.Dataset.from_list(some_broken(records)), processor, 4, max_broken=0.01)
    batches.stop_at(2)
    assert len(load(batches, 0)) == 2
    table = datasets.Dataset.from_list([*records[1:], {**records[0], "audio": "/nowhere.wav"}])
    for process in (0, 1):
        load(tiny_batches(table, processor, 4, num_processes=2, process_index=process, max_broken=1 / 23), 0)
    with pytest.raises(ValueError, match="max_broken: the audio of 1 of 23"):
        load(tiny_batches(table, processor, 4, max_broken=0.0), 0)


def test_missing_files_at_the_head_of_a_large_source_may_be_few_of_it(processor, records):
    missing = [{**records[0], "audio": f"/nowhere/{index}.wav"} for index in range(64)]
    table = datasets.Dataset.from_list([*missing, *(records * 300)[:6_400]])
    tiny_batches(table, processor, 4, max_broken=0.01)
    with pytest.raises(ValueError, match="none of the 64 audio files"):
        tiny_batches(table, processor, 4, max_broken=0.005)


def test_a_source_that_is_broken_is_found_among_others():
    """Two in a hundred of all, which is allowed, but all of one source."""
    counts = SourceCounts(0.05)
    for name, seen, broken in (("good", 4900, 0), ("bad", 99, 99)):
        counts.add(name, "seen", seen)
        counts.add(name, "broken", broken)
    counts.check()  # of so few nothing is judged alone
    counts.add("bad", "seen")
    with pytest.raises(
        ValueError, match=r"audio of 99 of 100 records of bad cannot be read \(bad: 99 of 100\), .*5\.00%"
    ):
        counts.check_broken()
    counts.add("bad", "seen", 1900)
    counts.check()


def test_a_source_as_broken_as_all_are_is_never_refused():
    """Eight sources of which each process sees a part, at four fifths of what is allowed, judged at each record."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(20):
        counts = SourceCounts(0.01)
        for source, broken in zip(rng.integers(8, size=4000), rng.random(4000) < 0.008):
            counts.add(f"s{source}", "seen")
            if broken:
                counts.add(f"s{source}", "broken")
                total, seen = counts.total("broken"), counts.total("seen")
                if seen >= 100 and total <= seen * 0.01 + 1:  # what is judged of all is another rule
                    try:
                        counts.check_broken()
                    except ValueError:
                        refused += 1
    assert refused == 0


def test_as_many_broken_records_as_allowed_are_no_error(processor, records):
    table = datasets.Dataset.from_list(some_broken(records))
    for seed in range(4):  # where one of the workers alone may have read more of them
        batches = tiny_batches(table, processor, 4, max_broken=6 / 23, seed=seed, epochs=2)
        load(batches, 2)
        batches.set_epoch(1)
        load(batches, 2)
        assert (batches.counts.total("broken"), batches.counts.total("seen")) == (12, 46)


def test_a_pass_without_a_label_is_an_error(processor, broken):
    table = datasets.Dataset.from_list([broken[4], broken[10]])
    with pytest.raises(
        ValueError, match=r"none of the 2 records that were read has a label, .* the audio of 2 cannot"
    ):
        load(tiny_batches(table, processor, 1, max_broken=1.0))


def test_what_workers_read_is_counted_once_where_it_is_taken(processor, folder):
    batches = tiny_batches(folder, processor, 4)
    loaded = list(DataLoader(batches, batch_size=None, num_workers=2))
    assert batches.report() == {}  # the workers' memory is not this process's
    for batch in (*loaded, *loaded):
        batches.count(batch)
    assert batches.report() == merge_reports(batch.read for batch in loaded)
    assert batches.counts.total("seen") == NUM_RECORDS
    assert [batch.ends_epoch for batch in loaded] == [False] * 5 + [True]
    for _ in batches:  # without workers, reading counts
        pass
    assert batches.counts.total("seen") == 2 * NUM_RECORDS


def test_a_worker_alone_stops_for_a_share_that_is_clearly_too_broken(processor, records):
    """In a loader of somebody's own, whose main process counts nothing."""
    for max_broken, stops in ((0.2, False), (0.1, True)):  # of 100 records 26 are broken
        table = datasets.Dataset.from_list(some_broken(records) * 10)
        loader = DataLoader(tiny_batches(table, processor, 4, max_broken=max_broken), batch_size=None, num_workers=2)
        if stops:
            with pytest.raises(ValueError, match=r"max_broken: the audio of \d+ of 1\d\d records cannot be read"):
                list(loader)
        else:
            assert len(list(loader)) == 58


def test_a_micro_batch_without_rows_is_text_without_labels(processor, broken):
    collate = RowCollator(processor)
    loaded = [collate([broken[0]]), collate([])]
    for batch in loaded:
        assert processor.batch_decode(batch["input_ids"]) == ["### Instruction:\n\n\n### Response:\n"]
        assert batch["labels"].eq(-100).all() and "input_features" not in batch
    model = tiny_model().train()
    loss = model(**loaded[0], num_items_in_batch=torch.tensor(5)).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------
# Errors before training
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"accumulation": 1.5}, "accumulation: got 1.5"),
        ({"num_processes": -1}, "num_processes: got -1"),
        ({"process_index": 2, "num_processes": 2}, "process_index: got 2, expected one below"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"max_broken": 2}, "max_broken: got 2"),
        ({"features": "gpu"}, "features: got 'gpu', expected one of 'workers', 'device'"),
        ({"pack_to": 64}, f"pack_to: got 64, expected at least {64 + TEMPLATE_LENGTH}"),
        ({"text_cutoff": TEMPLATE_LENGTH}, f"template alone has {TEMPLATE_LENGTH} tokens"),
        ({"text_cutoff": TEMPLATE_LENGTH + 3}, "leaves nothing of any answer in the first 23 records"),
        ({"start_step": 6}, "start_step: got 6, expected one below the 6 steps"),
    ],
)
def test_numbers_that_make_no_sense(processor, folder, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_batches(folder, processor, **{"batch_size": 4, **options})


def test_sources_that_make_no_sense(processor, records, folder, tmp_path):
    for weight in (0, -1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match=r"got the weight .*, expected positive numbers"):
            tiny_batches([(folder, weight)], processor, 4)
    for source in ([], [folder]):
        with pytest.raises(ValueError, match=r"expected a list of \(source, weight\)"):
            tiny_batches(source, processor, 4)
    with pytest.raises(TypeError, match="source: got int, expected a folder of records"):
        tiny_batches(1, processor, 4)
    with pytest.raises(FileNotFoundError, match="no file or folder '/nowhere'"):
        tiny_batches("/nowhere", processor, 4)
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet and no \*\.jsonl"):
        tiny_batches(tmp_path, processor, 4)
    with pytest.raises(ValueError, match="has no records"):
        tiny_batches(write_shards(tmp_path / "empty", [], [0]), processor, 4)
    with pytest.raises(ValueError, match="has the columns audio, prompt, text, expected also answer"):
        tiny_batches(datasets.Dataset.from_list([{"audio": None, "prompt": "?", "text": "."}]), processor, 4)
    with pytest.raises(ValueError, match=r"has the prompt None and the answer '\.', expected text"):
        tiny_batches(datasets.Dataset.from_list([{"audio": None, "prompt": None, "answer": "."}]), processor, 4)
    one, three = (datasets.Dataset.from_list(records[:number]) for number in (1, 3))
    with pytest.raises(ValueError, match=r"number 2, the Dataset, has the weight 0\.1, which gives it none of the 4 "):
        tiny_batches([(three, 3.0), (one, 0.1)], processor, 4)
    ending = {"audio": None, "prompt": "?", "answer": "A dog.<|endoftext|>"}
    with pytest.raises(ValueError, match=r"has the special token <\|endoftext\|> in the answer"):
        tiny_batches(datasets.Dataset.from_list([ending]), processor, 4)
    other = write_shards(tmp_path / "other", records, [NUM_RECORDS])
    (other / "summary.json").write_text('{"rows": 99}')
    with pytest.raises(ValueError, match=r"have 23 records, its summary\.json states 99"):
        tiny_batches(other, processor, 4)
    (other / "part-00001.parquet").write_text("cut short")
    with pytest.raises(ValueError, match=r"part-00001\.parquet' cannot be read as Parquet"):
        tiny_batches(other, processor, 4)


def test_audio_that_is_elsewhere_is_an_error_before_training(processor, records):
    missing = [
        {**record, "audio": record["audio"] and f"/data/sls/{index}.wav"} for index, record in enumerate(records)
    ]
    rows = missing * 3  # more than are looked at
    message = (
        r"none of the 50 audio files in the first 64 records of the Dataset exists, the first is '/data/sls/0\.wav'"
    )
    with pytest.raises(ValueError, match=f"{message}.*--audio-root"):
        tiny_batches([(datasets.Dataset.from_list(part), 1.0) for part in (records, rows)], processor, 4)
    tiny_batches(datasets.Dataset.from_list([*rows[:60], *records]), processor, 4)  # one of 64 is there
    tiny_batches(datasets.Dataset.from_list([{**record, "audio": None} for record in records]), processor, 4)


# ---------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------


def arguments(output, **options) -> TrainingArguments:
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    quiet |= {"save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(output), **{**quiet, **options})


def trainer_of(output, folder, processor, batch_size=4, accumulation=1, callbacks=(), arguments_too=None, **options):
    batches = tiny_batches(folder, processor, batch_size, accumulation=accumulation, **options)
    args = arguments(
        output,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **(arguments_too or {}),
    )
    return SamTrainer(tiny_model(), args, train_batches=batches, callbacks=list(callbacks))


def logged(trainer, key="loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


class Kill(TrainerCallback):
    """Ends a run after some steps, as if it had been killed just after saving."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("killed", "accumulation", "epochs", "group_buffer", "num_workers"), [(2, 1, 1.0, 2, 0), (4, 2, 1.5, 32, 2)]
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    killed, accumulation, epochs, group_buffer, num_workers, folder, processor, tmp_path, monkeypatch
):
    options = {"batch_size": 4, "accumulation": accumulation, "epochs": epochs, "group_buffer": group_buffer}
    options |= {"shuffle_buffer": 8, "arguments_too": {"dataloader_num_workers": num_workers}}
    whole = trainer_of(tmp_path / "whole", folder, processor, **options)
    steps = whole.train_batches.order.num_steps
    whole.train()
    assert whole.state.global_step == steps == len(logged(whole))
    per_epoch = whole.train_batches.order.steps_per_epoch
    assert logged(whole, "epoch") == pytest.approx([(step + 1) / per_epoch for step in range(steps)], abs=1e-3)

    options["arguments_too"] |= {"save_strategy": "steps", "save_steps": killed}
    first = trainer_of(tmp_path / "run", folder, processor, callbacks=[Kill(killed)], **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_of(tmp_path / "run", folder, processor, **options)
    heard = []
    monkeypatch.setattr(collation_module, "load_audio", lambda path: heard.append(path) or load_audio(path))
    second.train(resume_from_checkpoint=True)
    assert logged(first)[:killed] + logged(second)[killed:] == pytest.approx(logged(whole), abs=1e-6)
    assert logged(second, "epoch") == logged(whole, "epoch")
    order = [step for epoch in range(2) for step in second.train_batches.order.global_batches(epoch)]
    expected = [r["audio"] for step in order[killed:steps] for r in step if r["audio"] is not None]
    if not num_workers:  # where they share the memory of this process
        assert sorted(heard) == sorted(expected)
    assert second.train_batches.counts.total("seen") == sum(map(len, order[killed:steps]))
    counts = Counter(record["source"] for step in order[:steps] for record in step)
    assert {name: row["seen"] for name, row in second.progress.report().items()} == counts
    assert second.progress.report() == whole.progress.report()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_checkpoint_keeps_what_was_trained_on(num_workers, processor, broken, tmp_path):
    """Not what the workers had read ahead: that is read again."""
    table = datasets.Dataset.from_list(broken)
    options = {"batch_size": 2, "accumulation": 2, "max_broken": 0.3, "epochs": 2}
    options["arguments_too"] = {"dataloader_num_workers": num_workers, "save_strategy": "steps", "save_steps": 2}
    first = trainer_of(tmp_path, table, processor, callbacks=[Kill(2)], **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    trained = list(chain(*islice(first.train_batches.order.global_batches(0), 2)))
    kept = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    whole = {record["audio"] for record in broken if record["audio"] is not None and is_heard(record["audio"])}
    lost = [record["source"] for record in trained if record["audio"] not in {None, *whole}]
    assert {name: row["seen"] for name, row in kept[BatchesCallback.COUNTS].items()} == Counter(
        r["source"] for r in trained
    )
    assert Counter({name: row["broken"] for name, row in kept[BatchesCallback.COUNTS].items()}) == Counter(lost)
    again = trainer_of(tmp_path, table, processor, **options)
    again.train(resume_from_checkpoint=True)
    assert {name: row["seen"] for name, row in again.progress.report().items()} == {"a": 16, "b": 16, "c": 14}
    assert {name: row["broken"] for name, row in again.progress.report().items()} == {"a": 4, "b": 4, "c": 0}
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    del state["stateful_callbacks"][BatchesCallback.COUNTS]  # as in a checkpoint of before
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    older = trainer_of(tmp_path, table, processor, **options)
    older.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sum(row["seen"] for row in older.progress.report().values()) == 2 * NUM_RECORDS - 8


def is_heard(path) -> bool:
    try:
        return load_audio(path) is not None
    except BROKEN:
        return False


def test_pinned_batches_say_what_was_read(processor, records, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # there may be no GPU
    batch = RowCollator(processor)(records[:3])
    assert pin_memory(batch).read == batch.read
    assert {name: row["seen"] for name, row in batch.read.items()} == Counter(r["source"] for r in records[:3])


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(folder, processor, tmp_path):
    options = {"batch_size": 8, "epochs": 1.4, "arguments_too": {"save_strategy": "steps", "save_steps": 5}}
    first = trainer_of(tmp_path, folder, processor, **options)
    first.train()
    assert first.state.global_step == 5  # in the middle of an epoch
    again = trainer_of(tmp_path, folder, processor, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5 and again.train_batches.counts.total("seen") == 0
    trained = first.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.model.state_dict().items())


def test_workers_that_stay_and_an_epoch_that_is_left(folder, processor, tmp_path):
    class Leave(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 2

    seen = []

    class Recorded(SamTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.extend(processor.batch_decode(inputs["input_ids"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    batches = tiny_batches(folder, processor, 8, epochs=2)
    args = arguments(
        tmp_path, per_device_train_batch_size=8, dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    Recorded(tiny_model(), args, train_batches=batches, callbacks=[Leave()]).train()
    order = [step for epoch, size in ((0, 2), (1, 3)) for step in list(batches.order.global_batches(epoch))[:size]]
    assert len(seen) == sum(map(len, order))
    assert all(record["prompt"] in text for record, text in zip(chain(*order), seen))


def test_training_on_waveforms_and_packed_rows_is_the_same(folder, processor, tmp_path):
    class Loud:
        def __call__(self, features):
            return features + 0.1

    runs = []
    for options in ({}, {"features": "device"}, {"features": "device", "pack_to": 400}):
        trainer = trainer_of(tmp_path, folder, processor, batch_size=12, **options)
        trainer.augment = Loud()
        trainer.train()
        runs.append(logged(trainer))
    assert runs[1] == pytest.approx(runs[0], abs=1e-4)
    assert runs[2] == pytest.approx(runs[0], abs=1e-4)


def test_a_step_without_labels_changes_nothing(processor, broken, tmp_path, caplog):
    states = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            states.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    table = datasets.Dataset.from_list([broken[0], broken[1]])
    options = {"optim": "sgd", "logging_nan_inf_filter": False}
    trainer = trainer_of(
        tmp_path, table, processor, batch_size=1, callbacks=[Keep()], arguments_too=options, max_broken=0.5
    )
    states.append({name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()})
    with caplog.at_level("WARNING"):
        trainer.train()
    losses = logged(trainer)
    assert min(losses) == 0.0 < max(losses)
    for loss, before, after in zip(losses, states, states[1:]):
        assert all(torch.equal(before[name], after[name]) for name in before) == (loss == 0.0)
    assert "a: 1 seen, 1 broken, 0 truncated" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_on_broken_audio_fails(num_workers, processor, broken, tmp_path):
    table = datasets.Dataset.from_list([broken[0], *broken[4:6]])
    options = {"batch_size": 1, "arguments_too": {"dataloader_num_workers": num_workers}}
    with pytest.raises(ValueError, match="max_broken: the audio of 2 of 3 records cannot be read"):
        trainer_of(tmp_path, table, processor, **options).train()


def test_a_trainer_that_does_not_fit(folder, processor, records, tmp_path):
    batches = tiny_batches(folder, processor, 4, accumulation=2)
    fitting = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    for wrong, message in (
        ({"per_device_train_batch_size": 8}, "batch_size is 4, expected 8 as args.per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 1}, "accumulation is 2, expected 1 as args.gradient_accumulation_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            SamTrainer(tiny_model(), arguments(tmp_path, **{**fitting, **wrong}), train_batches=batches)
    args = arguments(tmp_path, **fitting)
    with pytest.raises(ValueError, match="got both"):
        SamTrainer(tiny_model(), args, train_batches=batches, train_dataset=datasets.Dataset.from_list(records))
    for options, message in (
        ({"num_processes": 2}, "num_processes is 2, expected 1"),
        ({"start_step": 1}, "start_step is 1, expected 0"),
    ):
        other = tiny_batches(folder, processor, 4, accumulation=2, **options)
        with pytest.raises(ValueError, match=message):
            SamTrainer(tiny_model(), args, train_batches=other)
    assert SamTrainer(tiny_model(), args, train_batches=batches).args.max_steps == batches.order.num_steps == 3
    few = arguments(tmp_path, **fitting, max_steps=2)
    assert SamTrainer(tiny_model(), few, train_batches=batches).args.max_steps == 2


TWO_PROCESSES = """
import os, sys
import torch
from transformers import TrainingArguments

root, folder, output = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
from tiny import tiny_batches, tiny_model, tiny_processor
from sam_lab.common.processes import end_processes
from sam_lab.training.trainer import SamTrainer

world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
seen, processor = [], tiny_processor()

class Recorded(SamTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        texts = processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        seen.append([text.split(chr(10))[1] for text in texts])
        return super().compute_loss(model, inputs, *args, **kwargs)

args = TrainingArguments(
    output, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, per_device_train_batch_size=3,
    gradient_accumulation_steps=2 // world, ddp_backend="gloo" if world > 1 else None, ddp_timeout=200,
    ddp_find_unused_parameters=False, use_cpu=True, dataloader_pin_memory=False, dataloader_num_workers=1,
    report_to="none", disable_tqdm=True, save_steps=4,
)
batches = tiny_batches(
    folder, processor, 3, num_processes=world, process_index=rank, accumulation=2 // world, epochs=2, shuffle_buffer=8,
    group_buffer=2,
)
trainer = Recorded(tiny_model(), args, train_batches=batches)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
read, kept = trainer.progress.report(), trainer.state.stateful_callbacks["records_read"]
torch.save(
    {"losses": losses, "seen": seen, "world": args.world_size, "read": read, "kept": kept}, f"{output}/{world}-{rank}.pt"
)
end_processes()
"""


def test_two_processes_equal_one(records, tmp_path):
    # 19 = 3 * 6 + 1: the last step of an epoch leaves the second process, or the second micro-batch, without a record.
    folder = write_shards(tmp_path / "records", records[:19], (10, 9))
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable, *two], [sys.executable]):
        done = subprocess.run(
            [*command, script, ROOT, folder, tmp_path],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, zeroth, first = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert (one["world"], zeroth["world"], first["world"]) == (1, 2, 2)
    assert len(one["losses"]) == 8
    assert zeroth["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert first["seen"] != zeroth["seen"]
    assert {name: row["seen"] for name, row in one["read"].items()} == Counter(r["source"] for r in records[:19] * 2)
    assert one["read"] == one["kept"] == zeroth["read"] == zeroth["kept"] == first["read"]
    expected = sorted(record["prompt"] for record in records[:19])
    for epoch in range(2):
        steps = slice(4 * epoch, 4 * epoch + 4)
        alone = chain(*one["seen"][8 * epoch : 8 * epoch + 8])
        both = chain(*zeroth["seen"][steps], *first["seen"][steps])
        assert sorted(text for text in alone if text) == sorted(text for text in both if text) == expected


def test_a_loader_is_measured(processor, folder):
    for features, workers in (("workers", 0), ("device", 1)):
        batches = tiny_batches(folder, processor, 4, features=features)
        result = measure_loader(batches, seconds=0.3, num_workers=workers)
        assert result["clips"] > 10 and result["seconds"] >= 0.3
        assert result["clips_per_second"] == pytest.approx(result["clips"] / result["seconds"])
        assert (result["features"], result["num_workers"], result["device"]) == (features, workers, "cpu")
        assert len(load(batches)) == len(batches)  # as it was
