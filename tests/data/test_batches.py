"""Batches of records: passes, workers, broken audio, and errors before training."""

from pathlib import Path

import datasets
import pytest
import torch
from tiny import load, tiny_batches, write_shards
from torch.utils.data import DataLoader

from sam_lab.data.counts import merge_reports

TEMPLATE_LENGTH = len("### Instruction:\n\n\n### Response:\n")  # bytes are tokens here
NUM_RECORDS = 23


def same(one: list[dict], two: list[dict]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, two)
    )


# -- Passes and workers -------------------------------------------------------------------------------------------


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


def test_a_fraction_of_an_epoch(processor, folder):
    batches = tiny_batches(folder, processor, 2, accumulation=2, epochs=1.5)
    assert (batches.order.steps_per_epoch, batches.order.num_steps, len(batches)) == (6, 9, 12)
    batches.set_epoch(1)
    assert len(load(batches)) == 6
    assert len(load(tiny_batches(folder, processor, 2, accumulation=2, start_step=4))) == 4
    batches.set_epoch(2)
    with pytest.raises(ValueError, match=r"epochs: got 1\.5, which are 9 steps, but a pass should start at epoch 2"):
        load(batches)


# -- Broken audio -------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
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


# -- Errors before training ---------------------------------------------------------------------------------------


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
    with pytest.raises(
        ValueError, match=r"number 2, the Dataset, has the weight 0\.1, which leaves it none of the 4 "
    ):
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
