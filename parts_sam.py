"""The parts of a model that a recipe trains: adapters, parameter types, weights handed on, and what it will cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from configuration_sam import SamConfig
from coverage_sam import parse_audio_roots
from modeling_sam import SamAudioModel, SamForConditionalGeneration
from recipe_sam import PARTS, Recipe, Stage, last_stage
from sources_sam import planned_rows
from training_sam import lora_config, upcast_trainable

# ---------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------


def model_config(recipe: Recipe, plan: bool = False) -> SamConfig:
    """The configuration of a recipe's model, checked against the recipe.

    Args:
        recipe ([`Recipe`]): The recipe.
        plan (`bool`, *optional*, defaults to `False`): Take the paper's preset of `size` and `connector` where the
            model is not there.

    Raises:
        FileNotFoundError: The model is not there.
        ValueError: It has another size or connector than the recipe says.
    """
    is_here = (Path(recipe.model).expanduser() / "config.json").is_file()
    if plan and not is_here and recipe.size is not None:
        return SamConfig.from_preset(recipe.size, recipe.connector or "concatenation")
    try:
        config = SamConfig.from_pretrained(recipe.model)
    except OSError as error:
        connector = recipe.connector or "concatenation"
        raise FileNotFoundError(
            f"model: there is no SAM checkpoint {recipe.model!r}, neither here nor on the Hub; make it as the head of "
            f"{recipe.name}.yaml says, or with `sam-alm convert ... --connector {connector} --output {recipe.model}`, or "
            "name another with --set model=DIR."
        ) from error
    if recipe.connector not in (None, config.connector):
        raise ValueError(
            f"model: {recipe.model} has the connector {config.connector}, the recipe {recipe.name} says "
            f"{recipe.connector}; convert the checkpoint with --connector {recipe.connector}."
        )
    if recipe.size is not None:
        expected = SamConfig.from_preset(recipe.size).text_config
        for name in ("num_hidden_layers", "hidden_size"):
            found, wanted = getattr(config.text_config, name), getattr(expected, name)
            if found != wanted:
                raise ValueError(
                    f"model: {recipe.model} has {name} {found} in its language model, the recipe {recipe.name} says "
                    f"size {recipe.size}, which has {wanted}."
                )
    return config


def encoder_folder(recipe: Recipe) -> Path:
    """Where `encoder_from` points to: a folder of an encoder, or the last stage's of another recipe's output."""
    folder = Path(recipe.encoder_from).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if not (folder / "recipe.yaml").is_file():
        raise FileNotFoundError(
            f"encoder_from: {recipe.encoder_from!r} holds neither an encoder's config.json nor the recipe.yaml of a "
            "run; run that recipe first, or name its output with --set encoder_from=DIR."
        )
    last = folder / f"stage-{last_stage(folder)}"
    if not (last / "finished.json").is_file():
        raise ValueError(
            f"encoder_from: the run in {recipe.encoder_from!r} has not finished its last stage, {last.name}; run it to "
            f"its end, or name the encoder of another stage with --set encoder_from={folder}/stage-N/encoder."
        )
    return last / "encoder"


def load_base(recipe: Recipe, dtype: str | None = None) -> SamForConditionalGeneration:
    """The model before any training, with the encoder of `encoder_from`, on the CPU, in the recipe's `base_dtype`.

    Raises:
        FileNotFoundError: A checkpoint has no weights.
        ValueError: It does not have all of them, or of another shape: nothing is trained on random weights.
    """
    options = {"attn_implementation": {"audio_config": recipe.encoder_attention}}
    model = _loaded("model", SamForConditionalGeneration, recipe.model, dtype=dtype or recipe.base_dtype, **options)
    if recipe.encoder_from is not None:
        encoder = _loaded("encoder_from", SamAudioModel, encoder_folder(recipe), dtype=torch.float32)
        model.model.audio_tower.load_state_dict(encoder.state_dict())
    return model


def _loaded(key: str, kind: Any, source: str | Path, **options: Any) -> Any:
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except OSError as error:
        raise FileNotFoundError(f"{key}: the weights of {str(source)!r} cannot be read: {error}") from error
    other = [name for name, *_ in info["mismatched_keys"]]
    wrong = sorted({*info["missing_keys"], *other})
    if wrong:
        raise ValueError(
            f"{key}: in {str(source)!r} {len(wrong)} tensors are missing or of another shape than its config.json "
            f"says, the first is {wrong[0]}; expected a whole checkpoint: make it again."
        )
    return model


def with_adapters(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Adds the recipe's adapters, if it has any, and makes everything float32 that any of its stages trains.

    Before weights are loaded into it: those of the stage before are float32, and a bf16 module would round them.
    The modules trained beside LoRA, connector and encoder, are peft's copies (`modules_to_save`). A frozen encoder of
    another run is one as well, so that adapter and base together are what was trained.
    """
    parts = recipe.trained_parts
    if recipe.lora_rank:
        has_encoder = recipe.joint_encoder or recipe.encoder_from is not None
        modules = ["connector", "audio_tower"] if has_encoder else ["connector"]
        model = get_peft_model(model, lora_config(recipe.lora_rank, modules, recipe.lora_dropout))
        folder = Path(recipe.model).expanduser()
        if folder.is_dir():  # by its whole path, which never looks like a Hub id
            model.peft_config["default"].base_model_name_or_path = str(folder.resolve())
        parts = ["connector", "lora", *(["encoder"] if recipe.joint_encoder else [])]
    choose_trainable(model, parts)
    upcast_trainable(model)
    return model


ADAPTER_CARD = """---
library_name: peft
pipeline_tag: audio-text-to-text
{metadata}tags:
- audio
- mamba2
- lora
---

# Adapter of {base}

LoRA of rank {rank} on every `in_proj` and `out_proj` of SAM's language model, with {beside}; the recipe was {recipe}.

```python
import sam_alm
from peft import PeftModel
from transformers import AutoModel, AutoProcessor

base = AutoModel.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "THIS_REPOSITORY")
processor = AutoProcessor.from_pretrained("{base}")
```
"""


def adapter_card(recipe: Recipe) -> str:
    """A model card for a recipe's adapter, in which only a Hub id counts as a base model."""
    encoder = " and the frozen encoder of another run" if recipe.encoder_from is not None else ""
    encoder = " and the encoder" if recipe.joint_encoder else encoder
    is_id = recipe.base_id is not None or not Path(recipe.model).expanduser().exists()
    base = recipe.base_id or recipe.model
    return ADAPTER_CARD.format(
        metadata=f"base_model: {base}\n" if is_id else "",
        base=base if is_id else "THE_BASE",
        rank=recipe.lora_rank,
        beside="the connector" + encoder,
        recipe=recipe.name,
    )


def part_of(name: str, adapted: bool) -> str | None:
    """Which of [`PARTS`] a parameter belongs to by its name; `None` for what no stage can train."""
    if ".lora_" in name:
        return "lora"
    if adapted and ".modules_to_save." not in name:
        return None
    return "encoder" if ".audio_tower." in name else "connector" if ".connector." in name else "language_model"


def choose_trainable(model: torch.nn.Module, parts: Sequence[str]) -> dict[str, int]:
    """Makes exactly some parts trainable, and returns how many numbers each of them has."""
    counts = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name, isinstance(model, PeftModel))
        parameter.requires_grad_(part in counts)
        if part in counts:
            counts[part] += parameter.numel()
    return counts


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Loads what a stage has saved: an adapter, or a whole model where there is no LoRA.

    Raises:
        ValueError: The folder holds other tensors than the model needs.
    """
    adapted = isinstance(model, PeftModel)
    files = sorted(folder.glob("adapter_model*.safetensors" if adapted else "model*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = get_peft_model_state_dict(model) if adapted else model.state_dict()
    expected = {name: tensor for name, tensor in expected.items() if adapted or name != "lm_head.weight"}
    learns = any(p.requires_grad for name, p in model.named_parameters() if part_of(name, adapted) == "encoder")
    if adapted and not learns:  # frozen, it is there already, and adapters once came without it
        tensors = {**{name: tensor for name, tensor in expected.items() if ".audio_tower." in name}, **tensors}
    wrong = sorted(
        name
        for name in {*expected, *tensors} - {"lm_head.weight"}
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]}; it "
            "comes from another recipe or model."
        )
    if adapted:
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors, strict=False)


def merged_model(recipe: Recipe, weights: Path) -> SamForConditionalGeneration:
    """The whole model of a stage's weights, adapters merged in float32, in the parameter types of the base."""
    base = load_base(recipe)
    types = {name: parameter.dtype for name, parameter in base.named_parameters()}
    model = with_adapters(base.float(), recipe)
    load_weights(model, weights)
    model = model.merge_and_unload() if recipe.lora_rank else model
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
    return model


# ---------------------------------------------------------------------------------------------------------------
# Planning
# ---------------------------------------------------------------------------------------------------------------


def accumulation(stage: Stage, num_processes: int) -> int:
    """Micro-batches that each process sums up to an optimiser step.

    Raises:
        ValueError: The global batch does not divide.
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
    """Raises `ValueError` where a stage has fewer steps than its warm-up or `hand_over_step`."""
    if max(stage.hand_over_step or 0, stage.warmup_steps) > steps:
        raise ValueError(
            f"stages.{stage.number}: its data make {steps} steps, hand_over_step is {stage.hand_over_step} and "
            f"warmup_steps {stage.warmup_steps}, expected both within them."
        )


# Pairs a second of one NVIDIA H100 by micro-batch, for (size, rank of LoRA), the encoder trained, connector (a) and text cut
# at 108 tokens: BENCHMARKS.md.
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
    """Pairs a second that one H100 would train in a stage, at least, by what was measured; `None` where nothing like it
    was.

    What a frozen part saves is not counted. A pair of more positions than the measured ones counts as so many pairs as it
    has times their number, which is too much for the encoder's share. Small micro-batches take as long as larger ones, for
    Python launches no faster: below the smallest that was measured the speed falls in proportion.
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
    """Whether [`measured_speed`] is of such a stage, and not reckoned from another."""
    is_short = stage.text_cutoff is not None and num_audio_slots + stage.text_cutoff <= MEASURED_POSITIONS
    is_same = is_short and recipe.encoder_attention == "flash_attention_2"
    return is_same and "encoder" in stage.trains and "lora" in stage.trains


def plan(
    recipe: Recipe, pairs_per_second: float | None = None, stage: int | None = None, output: Path | None = None
) -> list[dict[str, Any]]:
    """What a recipe would do, a dict for each stage, from shapes and counts alone; loads neither weights nor audio.

    Args:
        recipe ([`Recipe`]): The recipe; its model and data may be missing, then `size` and published counts count.
        pairs_per_second (`float`, *optional*): Speed to estimate hours from; by default [`measured_speed`].
        stage (`int`, *optional*): Plan this stage only.
        output (`Path`, *optional*): The run's folder, where published files may have been read and counted already.

    Returns:
        For each stage: `stage`, `name`, `trained` (parameters by part), `parameters` (of all), `rows`, `steps`,
        `tokens` (audio slots and text, with the cutoff as its length where the data is not there) and `hours`; `None`
        where it cannot be known. `rows_from` says where the count comes from, `pairs_per_second`, `micro_batch_size`,
        `is_given` and `is_measured` of what the hours are.

    Raises:
        ValueError: The recipe has no such stage; a stage has fewer steps than its warm-up or `hand_over_step`, or a
            global batch that does not divide.
    """
    wanted = recipe.chosen(stage)
    if pairs_per_second is not None and not 0 < pairs_per_second < math.inf:
        raise ValueError(f"pairs_per_second: got {pairs_per_second!r}, expected a positive number.")
    parse_audio_roots(recipe.audio_roots)
    config = model_config(recipe, plan=True)
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
        slots = config.num_audio_slots
        speed = measured_speed(recipe, each, slots) if pairs_per_second is None else pairs_per_second
        pairs = each.epochs * sum(counts) if known else None
        hours = None if each.max_seconds is None else each.max_seconds / 3600
        if pairs is not None and speed is not None:
            hours = pairs / speed / 3600
        length = None if each.text_cutoff is None else config.num_audio_slots + each.text_cutoff
        stages.append(
            {
                "stage": each.number,
                "name": each.name,
                "trained": choose_trainable(model, [part for part in PARTS if part in each.trains]),
                "parameters": total,
                "rows": sum(counts) if None not in counts else None,
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
    """[`plan`]'s result as a table."""
    lines = ["stage  trained parameters (millions)                       rows      steps  tokens<=   hours"]
    for stage in stages:
        trained = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in stage["trained"].items())
        count = "unknown" if stage["rows"] is None else f"{stage['rows']:,}"
        steps = "unknown" if stage["steps"] is None else f"{stage['steps']:,}"
        tokens = "unknown" if stage["tokens"] is None else f"{stage['tokens']:.3g}"
        hours = "unknown" if stage["hours"] is None else f"{stage['hours']:.1f}"
        lines.append(f"{stage['stage']:<6} {trained:<48} {count:>10} {steps:>10} {tokens:>9} {hours:>8}")
        speed = "" if stage["pairs_per_second"] is None else f" at {stage['pairs_per_second']:.3g} pairs/s"
        if speed and not stage["is_measured"]:
            speed += " (reckoned)"
        lines.append(
            f"       {stage['name']}; rows {stage['rows_from']}; micro-batches of {stage['micro_batch_size']}{speed}"
        )
    lines.append(f"of {stages[0]['parameters'] / 1e6:.2f} million parameters without the adapters")
    known = [stage["hours"] for stage in stages if stage["hours"] is not None]
    if len(known) == len(stages):
        lines.append(f"{sum(known):.1f} hours in all")
    if any(stage["is_given"] for stage in stages):
        lines.append("hours: of training at the speed that was given; loading, saving and evaluation come on top")
    elif any(stage["pairs_per_second"] is not None for stage in stages):
        lines.append(
            "hours: of training on one H100, at most; larger micro-batches are faster, where they fit; loading, saving and "
            "evaluation come on top"
        )
    if any(stage["pairs_per_second"] is not None and not stage["is_measured"] for stage in stages):
        lines.append(
            f"reckoned: from stages that train connector, encoder and LoRA on up to {MEASURED_POSITIONS} positions; what a "
            "frozen part saves is not counted"
        )
    if any(stage["hours"] is None and stage["steps"] is not None for stage in stages):
        lines.append("unknown hours: nothing like it was measured; measure it, and give --pairs-per-second")
    return "\n".join(lines)


__all__ = [
    "adapter_card",
    "choose_trainable",
    "encoder_folder",
    "load_base",
    "load_weights",
    "merged_model",
    "model_config",
    "part_of",
    "plan",
    "plan_text",
    "with_adapters",
]
