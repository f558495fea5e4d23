"""One stage of a recipe, trained to its end from the weights that the one before handed on, resumable at any point.

The folder of a stage, `stage-N/` in the run's folder, contains

    checkpoint-K/     for resuming; deleted when the stage is finished, unless the recipe keeps them
    adapter/          what the next stage starts from: LoRA and the modules trained beside it, in float32, and an
                      encoder taken from another run. It can be pushed as it is if the recipe's model is a Hub id or
                      has a `base_id`. (`weights/`, the whole model, if there is no LoRA)
    last/             the whole model after the last step, adapters merged: loads by itself
    best/             the same for the lowest evaluation loss, if the recipe has validation data
    handed/           the same for `hand_over_step`, if the stage has one
    encoder/          the encoder that was handed on, in bf16: loads with [`SamAudioModel`]
    samples.json      generated answers to validation questions
    trainer_state.json, runs/   losses; TensorBoard's curves
    trained.json      marks the end of training: steps, their mean loss, seconds, and what was read of each source
                      (seen, broken, ...), whether or not the stage was resumed
    finished.json     the same, written after everything else
"""

import copy
import gc
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import is_tensorboard_available

from hub_sam import write_model_card
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamDataCollator, SamProcessor
from sam_lab.common.answers import generate_answers
from sam_lab.common.cores import num_cores
from sam_lab.common.files import unfinished, write_json, written
from sam_lab.common.processes import PATIENCE, processes, say
from sam_lab.data.batches import RecordBatches
from sam_lab.data.collation import RowCollator
from sam_lab.data.order import BatchOrder
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import CachedRows
from sam_lab.training.model import (
    adapter_card,
    check_float32,
    choose_trainable,
    load_base,
    load_weights,
    merged_model,
    part_of,
    with_adapters,
)
from sam_lab.training.plan import accumulation, check_steps, planned_steps
from sam_lab.training.recipe import Recipe, Stage
from sam_lab.training.sources import Rows, as_table, count_rows, first_rows
from sam_lab.training.trainer import SamTrainer

SECONDS = "seconds"  # in a checkpoint: of training so far
COMPLETE = "complete"  # marks a checkpoint that all processes have written


@dataclass
class Run:
    """What the stages of a run share.

    Args:
        recipe ([`Recipe`]): The recipe.
        output (`Path`): The run's folder.
        processor ([`SamAudioLanguageProcessor`]): The model's.
        sources (dict): The rows of the data sources by name, from [`prepare_data`].
        validation (`datasets.Dataset`, *optional*): The rows to evaluate on, from [`validation_rows`].
    """

    recipe: Recipe
    output: Path
    processor: SamProcessor
    sources: dict[str, Rows]
    validation: datasets.Dataset | None = None

    def handed_weights(self, stage: Stage) -> Path:
        """The weights that a stage hands on."""
        return stage_folder(self.output, stage) / ("adapter" if self.recipe.lora_rank else "weights")


def stage_folder(output: Path, stage: Stage) -> Path:
    """The folder of a stage in that of its run."""
    return output / f"stage-{stage.number}"


def is_finished(output: Path, stage: Stage) -> bool:
    """Whether a stage has nothing more to do."""
    return (stage_folder(output, stage) / "finished.json").is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones were being written when the run was killed."""
    done = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return max(done, key=lambda path: int(path.name.split("-")[1]), default=None)


# -- Data ---------------------------------------------------------------------------------------------------------


def stage_batches(run: Run, stage: Stage) -> RecordBatches:
    """The stage's batches as a stream from disk."""
    state, recipe, sources = processes(), run.recipe, [run.sources[name] for name in stage.data]
    order = BatchOrder(
        list(zip(sources, stage.weights or [float(count_rows(source)) for source in sources])),
        run.processor,
        stage.micro_batch_size,
        num_processes=state.num_processes,
        process_index=state.process_index,
        accumulation=accumulation(stage, state.num_processes),
        epochs=1_000_000 if stage.epochs is None else stage.epochs,
        seed=recipe.seed + stage.number,
        names=stage.data,
    )
    collator = RowCollator(
        run.processor,
        pack_to=recipe.pack_to,
        text_cutoff=stage.text_cutoff,
        features=recipe.features,
        train_on_prompt=recipe.train_on_prompt,
    )
    return RecordBatches(order, collator, recipe.max_broken)


def cached_rows(run: Run, stage: Stage, device: torch.device) -> CachedRows:
    """The stage's rows with their log-mel on the device.

    Raises:
        ValueError: Too many clips cannot be read, or the cutoff leaves no label.
    """
    tables = [as_table(run.sources[name]) for name in stage.data]
    origins: list[str] = []
    for name, table in zip(stage.data, tables):
        own = table["source"][:] if "source" in table.column_names else [None] * len(table)
        origins += [source or name for source in own]
    return CachedRows(
        datasets.concatenate_datasets([table.select_columns(["audio", "prompt", "answer"]) for table in tables]),
        run.processor,
        device,
        num_cores(),
        stage.text_cutoff,
        run.recipe.max_broken,
        origins,
    )


def stage_steps(run: Run, stage: Stage) -> tuple[RecordBatches | None, int | None]:
    """The stage's batches (`None` if its rows are cached) and its optimiser steps (`None` with `max_seconds`).

    Raises:
        ValueError: It has fewer steps than its warm-up or `hand_over_step`, or no label.
    """
    batches = None if run.recipe.cache_features else stage_batches(run, stage)
    if stage.max_seconds is not None:
        return batches, None
    rows = [count_rows(run.sources[name]) for name in stage.data]
    steps = planned_steps(stage, rows) if batches is None else batches.order.num_steps
    check_steps(stage, steps)
    return batches, steps


# -- Running ------------------------------------------------------------------------------------------------------


class StageTrainer(SamTrainer):
    """[`SamTrainer`] of a stage: keeps the other parts frozen when it resumes, may train the encoder at a learning
    rate of its own, and saves the weights that are handed on."""

    def __init__(self, *args, recipe: Recipe, stage: Stage, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe, self.stage = recipe, stage
        self.begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training so far, including those before the checkpoint that was resumed."""
        return time.monotonic() - self.begin

    @property
    def mean_loss(self) -> float | None:
        """Of all steps up to the last logged one, including those before the checkpoint that was resumed."""
        logged = [(entry["step"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        steps = np.diff([0, *(step for step, _ in logged)])
        return float(np.average([loss for _, loss in logged], weights=steps)) if logged else None

    def _save_checkpoint(self, model, trial):
        self.state.stateful_callbacks[SECONDS] = self.seconds
        super()._save_checkpoint(model, trial)

    def create_optimizer(self, *args, **kwargs):
        """As in `Trainer`, with separate groups for the encoder's parameters if it has its own learning rate."""
        is_new, rate = self.optimizer is None, self.stage.encoder_learning_rate
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and rate is not None:
            encoder = {id(p) for name, p in self.model.named_parameters() if part_of(name, False) == "encoder"}
            for group in list(optimizer.param_groups):
                mine = [parameter for parameter in group["params"] if id(parameter) in encoder]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in encoder]
                optimizer.add_param_group({**group, "params": mine, "lr": rate})
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PeftModel):  # loading an adapter makes all of it trainable
            choose_trainable(self.model, self.stage.trains)

    def save_weights(self, folder: Path) -> None:
        """Saves the model, or its adapter, in a folder that appears when it is complete; called by all processes."""
        with ExitStack() as stack:
            if self.is_world_process_zero():
                stack.enter_context(written(folder, folder=True))
            self.accelerator.wait_for_everyone()
            partial = unfinished(folder)
            self.save_model(str(partial))
            self.accelerator.wait_for_everyone()
            if not self.is_world_process_zero():
                return
            (partial / "training_args.bin").unlink(missing_ok=True)  # pickled, and specific to this machine
            if not self.recipe.lora_rank:
                return
            (partial / "README.md").write_text(adapter_card(self.recipe), encoding="utf-8")
            if self.recipe.base_id is not None:  # only here: before each save peft asks the Hub about an id
                named = json.loads((partial / "adapter_config.json").read_text(encoding="utf-8"))
                write_json({**named, "base_model_name_or_path": self.recipe.base_id}, partial / "adapter_config.json")


class StageCallback(TrainerCallback):
    """Saves the weights of `hand_over_step`, saves and evaluates at the end, and marks complete checkpoints."""

    def __init__(self, trainer: StageTrainer, handed: Path):
        self.trainer, self.handed = trainer, handed
        self.checked = False

    def on_step_end(self, args, state, control, **kwargs):
        """Runs after Trainer's callbacks and the clock."""
        if not self.checked and not self.trainer.is_fsdp_enabled:
            check_float32(self.trainer.model, self.trainer.optimizer)
            self.checked = True
        if state.global_step == self.trainer.stage.hand_over_step:
            self.trainer.save_weights(self.handed)
        if control.should_training_stop:
            control.should_log = True  # the last steps, however few
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_save(self, args, state, control, **kwargs):
        """Marks the checkpoint once all processes have written their part."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            write_json({}, Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE)


def stage_arguments(run: Run, stage: Stage, steps: int | None) -> TrainingArguments:
    """`TrainingArguments` of a stage: AdamW, warm-up, then a linear (or cosine) decay to zero."""
    recipe, state, on_gpu = run.recipe, processes(), torch.cuda.is_available()
    options: dict[str, Any] = {}
    if recipe.recompute:  # transformers 5.23 has renamed it
        new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        options = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if not on_gpu:
        options.update(use_cpu=True, ddp_backend="gloo" if state.num_processes > 1 else None)
    if recipe.validation is not None:
        options.update(eval_strategy="steps", eval_steps=recipe.save_steps, prediction_loss_only=True)
        options.update(metric_for_best_model="loss", greater_is_better=False)
    return TrainingArguments(
        str(stage_folder(run.output, stage)),
        max_steps=-1 if steps is None else steps,
        per_device_train_batch_size=stage.micro_batch_size,
        per_device_eval_batch_size=stage.micro_batch_size,
        gradient_accumulation_steps=accumulation(stage, state.num_processes),
        learning_rate=stage.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=stage.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        seed=recipe.seed + stage.number,
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,  # it waits for the GPU after every micro-batch, and hides what went wrong
        save_steps=recipe.save_steps,
        save_total_limit=2,  # the newest may be incomplete
        report_to=["tensorboard"] if is_tensorboard_available() else "none",
        remove_unused_columns=False,
        dataloader_num_workers=0 if recipe.cache_features else recipe.num_workers,
        dataloader_pin_memory=not recipe.cache_features and on_gpu,
        ddp_find_unused_parameters=False,  # every trainable parameter takes part in every step
        ddp_broadcast_buffers=False,  # constants
        ddp_timeout=int(PATIENCE.total_seconds()),
        **options,
    )


def run_stage(run: Run, stage: Stage, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Trains one stage to its end, from its start or its newest checkpoint, and writes its folder. The stage before is
    finished; the callbacks are passed to the Trainer."""
    trained = stage_folder(run.output, stage) / "trained.json"
    if not trained.is_file():
        _train(run, stage, callbacks, trained)
        gc.collect()  # the Trainer and its callbacks refer to each other
        torch.cuda.empty_cache()
    if processes().is_main_process:
        _write_results(run, stage, json.loads(trained.read_text()))
    processes().wait_for_everyone()


def _train(run: Run, stage: Stage, callbacks: Sequence[TrainerCallback], trained: Path) -> None:
    begin = time.monotonic()
    trainer = stage_trainer(run, stage)
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(trained.parent)
    if trainer.is_world_process_zero():
        for partial in set(trained.parent.glob("checkpoint-*")) - {checkpoint}:
            if not (partial / COMPLETE).is_file():
                shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    trainer.begin = begin
    if checkpoint is not None:
        say(f"  resuming from {checkpoint}")
        saved = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
        trainer.begin -= saved.get(SECONDS, 0.0)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stage.hand_over_step is None:
        trainer.save_weights(run.handed_weights(stage))
    trainer.save_state()
    read = trainer.train_dataset.report() if trainer.progress is None else trainer.progress.report()
    if trainer.is_world_process_zero():
        summary = {"steps": trainer.state.global_step, "best_step": trainer.state.best_global_step, "read": read}
        write_json({**summary, "loss": trainer.mean_loss, "seconds": trainer.seconds}, trained)
    trainer.accelerator.wait_for_everyone()


def stage_trainer(run: Run, stage: Stage) -> StageTrainer:
    """The Trainer of a stage, with the weights that the stage before handed on."""
    recipe, extractor = run.recipe, run.processor.feature_extractor
    set_seed(recipe.seed + stage.number)
    batches, steps = stage_steps(run, stage)
    model = with_adapters(load_base(recipe, "float32" if recipe.precision == "fp32" else None), recipe)
    previous = recipe.previous(stage)
    if previous is not None:
        load_weights(model, run.handed_weights(previous))
    counts = choose_trainable(model, stage.trains)
    say("  trains " + ", ".join(f"{part} ({count / 1e6:.2f} million)" for part, count in counts.items()))
    arguments = stage_arguments(run, stage, steps)
    changes: dict[str, Any] = {"turn": False, "mix": 0.0} if stage.augment == "in_place" else {}
    trainer = StageTrainer(
        recipe=recipe,
        stage=stage,
        model=model,
        args=arguments,
        train_batches=batches,
        train_dataset=cached_rows(run, stage, arguments.device) if batches is None else None,
        eval_dataset=None if run.validation is None else first_rows(run.validation, recipe.evaluation_rows),
        data_collator=SamDataCollator(run.processor, train_on_prompt=recipe.train_on_prompt),
        processing_class=run.processor,
        augment=None if stage.augment == "none" else AugmentLogMel(extractor.mean, extractor.std, **changes),
        max_seconds=stage.max_seconds,
    )
    trainer.add_callback(StageCallback(trainer, run.handed_weights(stage)))
    return trainer


def _write_results(run: Run, stage: Stage, summary: dict[str, Any]) -> None:
    """Writes what is made from a trained stage; each folder appears when complete, so this can be repeated."""
    recipe, folder = run.recipe, stage_folder(run.output, stage)
    final = "handed" if stage.hand_over_step else "last"
    models = {final: run.handed_weights(stage)}
    if stage.hand_over_step:
        models["last"] = folder / f"checkpoint-{summary['steps']}"
    if summary["best_step"]:
        models["best"] = folder / f"checkpoint-{summary['best_step']}"
    for name, weights in models.items():
        model = merged_model(recipe, weights)
        if name == final:
            with written(folder / "encoder", folder=True) as partial:
                copy.deepcopy(model.model.audio_tower).to(torch.bfloat16).save_pretrained(partial)
        with written(folder / name, folder=True) as partial:
            model.save_pretrained(partial)
            run.processor.save_pretrained(partial)
            write_model_card(model.config, partial, name=recipe.name)  # not the partial folder's
    if run.validation is not None and recipe.generated_rows:
        rows = first_rows(run.validation, recipe.generated_rows)
        model = SamForConditionalGeneration.from_pretrained(folder / final, dtype="auto").to(processes().device)
        answers = generate_answers(model, run.processor, rows["audio"][:], rows["prompt"][:])
        write_json(
            [{**row, "audio": _path(row["audio"]), "prediction": text} for row, text in zip(rows, answers)],
            folder / "samples.json",
        )
    write_json(summary, folder / "finished.json")
    delete_checkpoints(recipe, folder)


def _path(clip: Any) -> str | None:
    path = clip.get("path") if isinstance(clip, dict) else clip
    return path if isinstance(path, str) else None  # then the clip exists only in the table


def delete_checkpoints(recipe: Recipe, folder: Path) -> None:
    """Deletes a finished stage's checkpoints unless the recipe keeps them; last of all, since its models are made from
    them."""
    if not recipe.keep_checkpoints:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
