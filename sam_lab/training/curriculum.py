"""Runs a recipe: its stages in order, each from the weights that the one before handed on, resumable at any point.

The output folder of a run contains

    recipe.yaml       the recipe: a run only continues with the same one
    inputs.json       hashes of the model's weights and of the rows
    records/          records made from published files
    stage-N/          a stage: see [`sam_lab.training.stages`]
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.integrations import is_tensorboard_available
from transformers.utils import is_flash_attn_2_available

from modeling_sam import SamAudioModel
from processing_sam import SamProcessor
from sam_lab.common.files import locked, write_json, write_text
from sam_lab.common.processes import processes, say
from sam_lab.common.provenance import checkpoint_hash
from sam_lab.training.model import encoder_folder, model_config
from sam_lab.training.plan import accumulation
from sam_lab.training.recipe import DataSource, Recipe, recipe_values
from sam_lab.training.sources import Rows, prepare_data, rows_hash, validation_rows
from sam_lab.training.stages import Run, delete_checkpoints, is_finished, run_stage, stage_folder, stage_steps

LOCK_SECONDS = 15  # the loader workers of a killed run end up to that much later
# Keys that may change when a run continues: where data lies (`claim_inputs` compares its rows), and how fast the same
# steps are computed (equal up to rounding, with other random numbers for dropout).
FREE_KEYS = ("micro_batch_size", "num_workers", "recompute", "data_root", "audio_roots", "records", "base_id")


# -- Checks -------------------------------------------------------------------------------------------------------


def check_machine(recipe: Recipe, num_processes: int) -> None:
    """Finds errors that can be known before anything is loaded.

    Raises:
        FileNotFoundError: The model or the encoder does not exist.
        ValueError: The model is not the recipe's, a global batch does not divide, or the encoder's attention is not
            installed.
    """
    for stage in recipe.stages:
        accumulation(stage, num_processes)
        if stage.max_seconds is not None and num_processes > 1:
            raise ValueError(
                f"stages.{stage.number}.max_seconds: got it with {num_processes} processes, expected one."
            )
    if recipe.cache_features and num_processes > 1:
        raise ValueError(
            f"cache_features: got true with {num_processes} processes, expected one: rows that do not divide among "
            "them would come twice. Set it to false."
        )
    if recipe.encoder_attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "encoder_attention: 'flash_attention_2' needs a CUDA GPU and the package flash-attn, which cannot be used "
            "here; install it, or use torch's attention with --set encoder_attention=sdpa."
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", recipe.precision):
        raise ValueError(
            f"precision: the recipe has {recipe.precision}, accelerate was launched with {launched}; expected the "
            "same, or `accelerate launch --mixed_precision no`."
        )
    config = model_config(recipe)
    if recipe.encoder_from is not None:
        ours, theirs = config.audio_config, SamAudioModel.config_class.from_pretrained(encoder_folder(recipe))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"encoder_from: {recipe.encoder_from} has {name} {getattr(theirs, name)}, the model "
                    f"{getattr(ours, name)}; expected the same."
                )


def claim(recipe: Recipe, output: Path, write: bool = True) -> None:
    """Writes the recipe into an output folder, or checks that the folder has the same one; only checks without
    `write`.

    Raises:
        ValueError: The folder holds another recipe; the message lists the differences.
    """
    path, values = output / "recipe.yaml", _flat(recipe_values(recipe))
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: {output} is a file, expected a folder, or a path where one can be made.")
    if path.is_file():
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        differ = [key for key in {**old, **values} if old.get(key, "absent") != values.get(key, "absent")]
        differ = [key for key in differ if key.rsplit(".", 1)[-1] not in FREE_KEYS]
        differ = [key for key in differ if key in old or not _is_default(key, values[key])]
        differ = [key for key in differ if not _is_planning(key, recipe)]
        if differ:
            listed = "; ".join(f"{key}: {old.get(key)!r} there, {values.get(key)!r} now" for key in differ)
            raise ValueError(f"output: {output} was started with another recipe ({listed}); choose another folder.")
    elif write:
        output.mkdir(parents=True, exist_ok=True)
        write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), path)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _is_planning(key: str, recipe: Recipe) -> bool:
    """Whether a key only states how many rows a data source should have."""
    return any(key == f"data.{name}.rows" and each.format != "openreasonaqa" for name, each in recipe.data.items())


def _is_default(key: str, value: Any) -> bool:
    """Whether the value of a data source's key is its default: what a run from before that key had."""
    for item in dataclasses.fields(DataSource):
        if key.startswith("data.") and key.endswith(f".{item.name}"):
            return value == (item.default if item.default_factory is dataclasses.MISSING else item.default_factory())
    return False


def claim_inputs(recipe: Recipe, output: Path, sources: dict[str, Rows]) -> None:
    """Writes hashes of a run's weights and rows (`inputs.json`), or checks that they are the same.

    The texts of all rows, their order and the names of their audio files count, but not where they are stored.

    Raises:
        ValueError: The run would continue with others; the message names them.
    """
    found = {f"rows.{name}": rows_hash(source) for name, source in sources.items()}  # `data.*` was another hash
    if Path(recipe.model).expanduser().is_dir():  # a Hub's model is named by its id
        found["model"] = checkpoint_hash(Path(recipe.model).expanduser())
    path = output / "inputs.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = sorted(key for key, value in found.items() if old.get(key, value) != value)
    changed = [key.replace("rows.", "data.", 1) for key in changed]  # as the recipe calls them
    if changed:
        raise ValueError(
            f"output: {output} was started with other contents of {', '.join(changed)}; restore them, or "
            "choose another folder."
        )
    write_json({**old, **found}, path)


# -- Running ------------------------------------------------------------------------------------------------------


def run_recipe(
    recipe: Recipe, output: str | Path, stage: int | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Runs a recipe's stages in order; skips finished ones and resumes an interrupted one.

    Killed at any point and called again with the same recipe and output, it computes the same losses as an
    uninterrupted run (with `max_seconds`: it trains for the seconds that remain).

    Args:
        recipe ([`Recipe`]): The recipe.
        output (`str` or `Path`): The run's folder; its contents are listed at the top of this file.
        stage (`int`, *optional*): Run this stage only; the one before must be finished.
        callbacks (list of `TrainerCallback`, *optional*): Passed to every stage's Trainer.

    Returns:
        The folder of the last requested stage.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit; raised before anything is trained.
    """
    todo = recipe.chosen(stage)
    output = Path(output).expanduser().resolve()
    check_machine(recipe, processes().num_processes)
    previous = recipe.previous(todo[0])
    if previous is not None and not is_finished(output, previous):
        raise ValueError(
            f"stage: {todo[0].number} starts from stage {previous.number}, which is not finished in {output}; run "
            "that one first."
        )
    claim(recipe, output, write=False)
    with ExitStack() as stack:
        if processes().is_main_process:  # a second run would take the unfinished files of this one for its own
            output.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(output, LOCK_SECONDS))
            except TimeoutError as error:
                raise ValueError(
                    f"output: another run is writing into {output}; wait for it or choose another folder."
                ) from error
        unfinished = [each for each in todo if not is_finished(output, each)]
        names = dict.fromkeys(name for each in unfinished for name in each.data)
        if recipe.validation is not None and unfinished:
            names[recipe.validation] = None
        sources = prepare_data(recipe, output, list(names))
        processor = SamProcessor.from_pretrained(recipe.model)
        processor.feature_extractor.incomplete = recipe.incomplete
        run = Run(recipe, output, processor, sources)
        for each in unfinished:  # so that an error in the last stage does not appear after the others
            stage_steps(run, each)
        if recipe.validation is not None and unfinished:
            run.validation = validation_rows(
                recipe, sources[recipe.validation], processor.feature_extractor.reading("truncate")
            )
        if processes().is_main_process:
            claim(recipe, output)
            if unfinished:
                claim_inputs(recipe, output, sources)  # reads all weights
        processes().wait_for_everyone()
        if unfinished and not is_tensorboard_available():
            say("no TensorBoard curves: the package tensorboard is not installed")
        for each in todo:
            if each in unfinished:
                say(f"stage {each.number}, {each.name}:")
                run_stage(run, each, callbacks)
            else:
                say(f"stage {each.number}, {each.name}: finished")
                if processes().is_main_process:
                    delete_checkpoints(recipe, stage_folder(output, each))
    return stage_folder(output, todo[-1])
