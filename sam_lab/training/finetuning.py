"""The steps that `sam-alm finetune` and examples/finetune.py share."""

import math
from pathlib import Path

import datasets
import torch
from peft import PeftModel, get_peft_model

from modeling_sam import SamForConditionalGeneration
from sam_lab.training.model import lora_config, upcast_trainable

ADAPTER_FILES = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors")


def prepare_model(
    model: SamForConditionalGeneration,
    lora_rank: int = 0,
    lora_dropout: float = 0.05,
    encoder: bool = True,
    connector: bool = True,
    language_model: bool = False,
) -> torch.nn.Module:
    """Freezes what is not trained, adds adapters, and makes what is trained float32.

    Args:
        model ([`SamForConditionalGeneration`]): The model, changed in place.
        lora_rank (`int`, *optional*, defaults to 0): Rank of adapters on the language model (paper, section 3.1); 0
            for none.
        lora_dropout (`float`, *optional*, defaults to 0.05): Share of the adapters' inputs that training drops.
        encoder, connector, language_model (`bool`, *optional*): Which parts are trained whole.

    Returns:
        The model, or with adapters the `PeftModel` around it.

    Raises:
        ValueError: Adapters and the whole language model, or nothing to train.
    """
    if lora_rank and language_model:
        raise ValueError("lora_rank, language_model: got both, expected adapters or the whole language model.")
    parts = {"audio_tower": encoder, "connector": connector, "language_model": language_model}
    if lora_rank:
        whole = [name for name, trained in parts.items() if trained]
        model = get_peft_model(model, lora_config(lora_rank, whole, lora_dropout))
    else:
        for name, trained in parts.items():
            getattr(model.model, name).requires_grad_(trained)
    upcast_trainable(model)
    return model


def split_rows(
    table: datasets.Dataset, validation_share: float, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Takes rows to validate on out of a table, at random.

    Args:
        table (`datasets.Dataset`): The rows.
        validation_share (`float`): Share of them to validate on, rounded up; 0 for none.
        seed (`int`, *optional*, defaults to 0): Of the choice.

    Returns:
        Rows to train on, and rows to validate on, which may be none.

    Raises:
        ValueError: No row remains to train on.
    """
    number = math.ceil(validation_share * len(table))
    if not 0 <= validation_share < 1 or number == len(table):
        raise ValueError(
            f"validation_share: {validation_share:g} of {len(table)} rows is {number}, expected to keep rows to train "
            "on; give another share from 0, no validation, to 1, or a table to validate on."
        )
    if number == 0:
        return table, table.select([])
    splits = table.train_test_split(number, seed=seed)
    return splits["train"], splits["test"]


def save_merged(
    model: torch.nn.Module, processor, folder: str | Path, write: bool = True
) -> SamForConditionalGeneration:
    """Saves a trained model, its adapters merged, so that it loads by itself.

    Args:
        model (`torch.nn.Module`): From [`prepare_model`]; adapters are merged in place.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        folder (`str` or `Path`): Where to; adapter files of an earlier run there are deleted, since `AutoModel` would
            load them on top of the merged weights.
        write (`bool`, *optional*, defaults to `True`): Or only merge, in a process other than the main one.

    Returns:
        The model without adapters.
    """
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if write:
        for name in ADAPTER_FILES:
            Path(folder, name).unlink(missing_ok=True)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model
