"""Training on batches of records: resumed, packed, on broken audio, in two processes, and the speed of loading."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import datasets
import pytest
import torch
from tiny import load, tiny_batches, tiny_model, write_shards
from transformers import TrainerCallback, TrainingArguments

from processing_sam import load_audio
from sam_lab.data import collation as collation_module
from sam_lab.data.collation import BROKEN
from sam_lab.timing.load import measure_loader
from sam_lab.training.trainer import BatchesCallback, SamTrainer

ROOT = Path(__file__).resolve().parents[2]
NUM_RECORDS = 23


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


@pytest.mark.slow
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
    monkeypatch.setattr(
        collation_module, "load_audio", lambda path, **options: heard.append(path) or load_audio(path, **options)
    )
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert result["clips"] > 0 and result["seconds"] >= 0.3
        assert result["clips_per_second"] == pytest.approx(result["clips"] / result["seconds"])
        assert (result["features"], result["num_workers"], result["device"]) == (features, workers, "cpu")
        assert len(load(batches)) == len(batches)  # as it was


def test_a_part_of_an_epoch_without_labels_fails_too(processor, tmp_path):
    rows = [{"audio": None, "prompt": "Why? " * 30, "answer": "So.", "source": "s"} for _ in range(40)]
    rows[7]["prompt"] = "Why?"  # the only one whose answer is not cut, and not in the first step
    table = datasets.Dataset.from_list(rows)
    with pytest.raises(ValueError, match="source: none of the 2 records that were read has a label"):
        trainer_of(tmp_path, table, processor, 2, text_cutoff=80, arguments_too={"max_steps": 1}).train()
