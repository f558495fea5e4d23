"""The plan of a recipe: what its stages would train, for how many steps, tokens and hours, without running them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_sam import SamForConditionalGeneration
from sam_lab.common.text_tables import text_table
from sam_lab.data.coverage import parse_audio_roots
from sam_lab.training.model import choose_trainable, model_config, with_adapters
from sam_lab.training.recipe import PARTS, Recipe, Stage
from sam_lab.training.sources import planned_rows


def accumulation(stage: Stage, num_processes: int) -> int:
    """Micro-batches that each process accumulates in an optimiser step.

    Raises:
        ValueError: The global batch is no multiple of the micro-batches of all processes.
    """
    at_once = stage.micro_batch_size * num_processes
    if stage.global_batch_size % at_once:
        raise ValueError(
            f"stages.{stage.number}: global_batch_size {stage.global_batch_size} is no multiple of micro_batch_size "
            f"{stage.micro_batch_size} times {num_processes} process(es); change one of them with --set."
        )
    return stage.global_batch_size // at_once


def planned_steps(stage: Stage, rows: Sequence[int]) -> int:
    """Optimiser steps of a stage over data sources of so many rows; the last batch of an epoch may be smaller."""
    return math.ceil(math.ceil(sum(rows) / stage.global_batch_size) * stage.epochs)


def check_steps(stage: Stage, steps: int) -> None:
    """Raises `ValueError` if a stage has fewer steps than its warm-up or `hand_over_step`."""
    if max(stage.hand_over_step or 0, stage.warmup_steps) > steps:
        raise ValueError(
            f"stages.{stage.number}: its data make {steps} steps, hand_over_step is {stage.hand_over_step} and "
            f"warmup_steps {stage.warmup_steps}, expected both within them; lower them with --set."
        )


# Pairs per second of one NVIDIA H100 by micro-batch, for (size, rank of LoRA), with the encoder trained, connector (a)
# and text cut at 108 tokens: see BENCHMARKS.md.
MEASURED = {
    ("130m", 8): {8: 39.4, 32: 147.9, 64: 349.4, 128: 472.5},
    ("780m", 8): {8: 28.1, 32: 109.0, 64: 201.0},
    ("2.7b", 8): {8: 21.5, 16: 44.7, 32: 88.3, 64: 104.0},
    ("130m", 256): {8: 53.9, 32: 195.8, 64: 373.6, 128: 473.9},
    ("780m", 256): {8: 31.4, 32: 114.6, 64: 196.5},
    ("2.7b", 256): {8: 18.2, 16: 43.2, 32: 86.5, 64: 102.0},
}
MEASURED_POSITIONS = 64 + 108


def measured_speed(recipe: Recipe, stage: Stage, num_audio_slots: int) -> float | None:
    """Pairs per second that one H100 trains in a stage, at least, derived from `MEASURED`; `None` if nothing similar
    was measured.

    Savings from frozen parts are ignored. A pair with more positions than the measured ones counts in proportion,
    which overestimates the encoder's share. Small micro-batches take as long as larger ones, since Python launches the
    kernels no faster: below the smallest measured one the speed falls in proportion.
    """
    speeds = MEASURED.get((recipe.size or "", recipe.lora_rank))
    plain = recipe.pack_to is None and not recipe.recompute and recipe.precision == "bf16"
    if speeds is None or not plain or stage.text_cutoff is None:
        return None
    longer = max((num_audio_slots + stage.text_cutoff) / MEASURED_POSITIONS, 1.0)
    sizes, size = sorted(speeds), stage.micro_batch_size * longer
    speed = speeds[sizes[0]] * size / sizes[0]
    if size > sizes[0]:
        speed = float(np.interp(size, sizes, [speeds[each] for each in sizes]))
    return speed / longer


def is_measured(recipe: Recipe, stage: Stage, num_audio_slots: int) -> bool:
    """Whether such a stage was measured, so that [`measured_speed`] is not derived from another."""
    is_short = stage.text_cutoff is not None and num_audio_slots + stage.text_cutoff <= MEASURED_POSITIONS
    is_same = is_short and recipe.encoder_attention == "flash_attention_2"
    return is_same and "encoder" in stage.trains and "lora" in stage.trains


def plan(
    recipe: Recipe, pairs_per_second: float | None = None, stage: int | None = None, output: Path | None = None
) -> list[dict[str, Any]]:
    """What a recipe would do, a dict per stage, from shapes and counts alone; loads neither weights nor audio.

    Args:
        recipe ([`Recipe`]): The recipe; its model and data may be missing, then `size` and published counts are used.
        pairs_per_second (`float`, *optional*): Speed to estimate hours from; by default [`measured_speed`].
        stage (`int`, *optional*): Plan this stage only.
        output (`Path`, *optional*): The run's folder, which may contain records made from published files.

    Returns:
        For each stage: `stage`, `name`, `trained` (parameters by part), `parameters` (of all), `rows`, `steps`,
        `tokens` (audio slots and text; an upper bound, which takes the cutoff as the length of every text) and
        `hours`; `None` if unknown. `rows_from` names the source of the count; `pairs_per_second`, `micro_batch_size`,
        `is_given` and `is_measured` describe the speed behind the hours.

    Raises:
        ValueError: The recipe has no such stage; a stage has fewer steps than its warm-up or `hand_over_step`, or a
            global batch that is no multiple of its micro-batch.
    """
    wanted = recipe.chosen(stage)
    if pairs_per_second is not None and not 0 < pairs_per_second < math.inf:
        raise ValueError(f"pairs_per_second: got {pairs_per_second!r}, expected a positive number.")
    parse_audio_roots(recipe.audio_roots)
    config = model_config(recipe, plan=True)
    slots = config.num_audio_slots
    with torch.device("meta"):
        base = SamForConditionalGeneration(config)
        total = sum(parameter.numel() for parameter in base.parameters())
        model = with_adapters(base, recipe)
    names = dict.fromkeys(name for each in wanted for name in each.data)
    rows = {name: planned_rows(recipe, name, output) for name in names}  # may read files: each once
    stages = []
    for each in wanted:
        counts, origins = zip(*(rows[name] for name in each.data))
        known = each.epochs is not None and None not in counts
        steps = planned_steps(each, counts) if known else None
        accumulation(each, 1)
        if steps is not None:
            check_steps(each, steps)
        speed = measured_speed(recipe, each, slots) if pairs_per_second is None else pairs_per_second
        pairs = each.epochs * sum(counts) if known else None
        hours = None if each.max_seconds is None else each.max_seconds / 3600
        if pairs is not None and speed is not None:
            hours = pairs / speed / 3600
        length = None if each.text_cutoff is None else slots + each.text_cutoff
        stages.append(
            {
                "stage": each.number,
                "name": each.name,
                "trained": choose_trainable(model, [part for part in PARTS if part in each.trains]),
                "parameters": total,
                "rows": None if None in counts else sum(counts),
                "rows_from": ", ".join(dict.fromkeys(origins)),
                "steps": steps,
                "tokens": None if pairs is None or length is None else int(pairs * length),
                "hours": hours,
                "micro_batch_size": each.micro_batch_size,
                "pairs_per_second": None if pairs is None else speed,
                "is_given": pairs_per_second is not None,
                "is_measured": pairs_per_second is not None or is_measured(recipe, each, slots),
            }
        )
    return stages


def plan_text(stages: Sequence[dict[str, Any]]) -> str:
    """[`plan`]'s result as a table, with a line below each stage."""

    def cell(value: float | None, form: str) -> str:
        return "unknown" if value is None else format(value, form)

    rows = [("stage  trained parameters (millions)", "rows", "steps", "tokens<=", "hours")]
    for stage in stages:
        trained = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in stage["trained"].items())
        numbers = [
            cell(stage[key], form) for key, form in zip(("rows", "steps", "tokens", "hours"), (",", ",", ".3g", ".1f"))
        ]
        rows.append((f"{stage['stage']:<6} {trained}", *numbers))
    header, *table = text_table(rows).splitlines()
    lines = [header]
    for line, stage in zip(table, stages):
        speed = "" if stage["pairs_per_second"] is None else f" at {stage['pairs_per_second']:.3g} pairs/s"
        if speed and not stage["is_measured"]:
            speed += " (estimated)"
        details = f"{stage['name']}; rows {stage['rows_from']}; micro-batches of {stage['micro_batch_size']}{speed}"
        lines += [line, f"       {details}"]
    lines.append(f"of {stages[0]['parameters'] / 1e6:.2f} million parameters without the adapters")
    known = [stage["hours"] for stage in stages if stage["hours"] is not None]
    if len(known) == len(stages):
        lines.append(f"{sum(known):.1f} hours in all")
    if any(stage["is_given"] for stage in stages):
        lines.append("hours: of training at the given speed, without loading, saving and evaluation")
    elif any(stage["pairs_per_second"] is not None for stage in stages):
        lines.append(
            "hours: of training on one H100, at most, without loading, saving and evaluation; larger micro-batches "
            "are faster if they fit"
        )
    if any(stage["pairs_per_second"] is not None and not stage["is_measured"] for stage in stages):
        lines.append(
            f"estimated: from stages that train connector, encoder and LoRA on up to {MEASURED_POSITIONS} positions; "
            "savings from frozen parts are ignored"
        )
    if any(stage["hours"] is None and stage["steps"] is not None for stage in stages):
        lines.append(
            "unknown hours: nothing similar was measured; measure the speed and give it as --pairs-per-second"
        )
    return "\n".join(lines)
