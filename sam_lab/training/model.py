"""The model of a training: adapters, which parts train and in which type, base and adapter weights."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers.utils import logging

from configuration_sam import SamConfig
from modeling_sam import SamAudioModel, SamForConditionalGeneration
from sam_lab.common.files import flush
from sam_lab.training.recipe import Recipe

logger = logging.get_logger(__name__)

# A pattern, because bare names would also match an `out_proj` outside the language model.
LORA_TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"
CARD = Path(__file__).with_name("adapter_card.md")

# -- Parameters ---------------------------------------------------------------------------------------------------


def lora_config(rank: int, modules_to_save: Sequence[str] = (), dropout: float = 0.0) -> LoraConfig:
    """LoRA on every `in_proj` and `out_proj` of the language model (paper, section 3.1), with alpha = 2 rank.

    Args:
        rank (`int`): Rank of the adapters; 8 to 256 in the paper.
        modules_to_save (list of `str`, *optional*): Modules that are fully trained and saved with the adapter, such
            as `"connector"` and `"audio_tower"`.
        dropout (`float`, *optional*, defaults to 0): Share of an adapter's inputs dropped in training; 0.05 in LTU.

    Raises:
        ValueError: `rank` is not a positive integer, or `dropout` not in [0, 1).
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: got {rank!r}, expected a positive integer.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout!r}, expected a number from 0 to 1, less than 1.")
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=list(modules_to_save) or None,
    )


def upcast_trainable(model: torch.nn.Module) -> int:
    """Makes every trainable parameter float32, in place, and returns the number of trained values.

    The model has its adapters already, and its other parameters are frozen. A checkpoint stored in bf16 loads as bf16,
    where small updates round away: most of them at a learning rate of 1e-4. So trained parameters, and with them the
    optimiser's state, are float32; frozen ones keep their type.

    Raises:
        ValueError: Nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("model: got no trainable parameter, expected some; unfreeze a part or add LoRA.")
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return sum(parameter.numel() for parameter in trainable)


def follow_autocast(model: torch.nn.Module) -> None:
    """Stops LoRA layers from casting their inputs under autocast.

    peft casts them to the adapter's float32 before dropout, and autocast casts them back, to the same numbers. Without
    autocast, peft still casts. A model without adapters does not change, nor does a second call change anything.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and _leave_inputs not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_leave_inputs)


def _leave_inputs(module, args):
    module.cast_input_dtype_enabled = not torch.is_autocast_enabled(args[0].device.type)


def check_float32(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Asserts, after at least one step, that trained parameters and their optimiser state are float32; the
    `AssertionError` names the first tensor that is not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, f"{name} is trained in {parameter.dtype}, expected float32"
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.dtype == torch.float32, f"the optimiser keeps {name} in {value.dtype}, expected float32"


def save_checkpoint(model, processor, folder: str | Path) -> None:
    """Saves model and processor so that a `config.json`, written last, means that the checkpoint is complete.

    Not by [`written`], which replaces the whole folder: other files in it, such as a licence, must never be at risk.

    Args:
        model ([`SamForConditionalGeneration`]): The model.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        folder (`str`): The folder; its other files, and its owner's model card, stay.
    """
    folder = Path(folder)
    unfinished = folder / "unfinished" / folder.resolve().name  # the model card's title is the folder's name
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    if (folder / "README.md").exists():
        unfinished.mkdir(parents=True)
        shutil.copy(folder / "README.md", unfinished)  # else a default card would replace it
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    flush(unfinished)
    (folder / "config.json").unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, folder / file.name)
    shutil.rmtree(unfinished.parent)


# -- The model ----------------------------------------------------------------------------------------------------


def model_config(recipe: Recipe, plan: bool = False) -> SamConfig:
    """The configuration of a recipe's model, checked against the recipe. With `plan` it is the paper's preset of
    `size` and `connector` if the model does not exist here.

    Raises:
        FileNotFoundError: The model does not exist.
        ValueError: Its size or connector is not the recipe's.
    """
    is_here = (Path(recipe.model).expanduser() / "config.json").is_file()
    if plan and not is_here and recipe.size is not None:
        return SamConfig.from_preset(recipe.size, recipe.connector or "concatenation")
    try:
        config = SamConfig.from_pretrained(recipe.model)
    except OSError as error:
        connector = recipe.connector or "concatenation"
        raise FileNotFoundError(
            f"model: there is no SAM checkpoint {recipe.model!r}, neither here nor on the Hub; make it as described "
            f"at the top of {recipe.name}.yaml, or with `sam-alm convert ... --connector {connector} --output "
            f"{recipe.model}`, or name another with --set model=DIR."
        ) from error
    if recipe.connector not in (None, config.connector):
        raise ValueError(
            f"model: {recipe.model} has the connector {config.connector}, the recipe {recipe.name} expects "
            f"{recipe.connector}; convert the checkpoint with --connector {recipe.connector}."
        )
    if recipe.size is not None:
        expected = SamConfig.from_preset(recipe.size).text_config
        for name in ("num_hidden_layers", "hidden_size"):
            found, wanted = getattr(config.text_config, name), getattr(expected, name)
            if found != wanted:
                raise ValueError(
                    f"model: {recipe.model} has {name} {found} in its language model, the recipe {recipe.name} "
                    f"expects size {recipe.size}, which has {wanted}; convert that size, or change the recipe's."
                )
    return config


def encoder_folder(recipe: Recipe) -> Path:
    """The encoder of `encoder_from`: that folder itself, or the encoder of the last stage if it is a run's.

    Raises:
        FileNotFoundError: It is neither.
        ValueError: The run has not finished its last stage.
    """
    folder = Path(recipe.encoder_from).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if not (folder / "recipe.yaml").is_file():
        raise FileNotFoundError(
            f"encoder_from: {recipe.encoder_from!r} contains neither an encoder's config.json nor the recipe.yaml of "
            "a run; run that recipe first, or name its output with --set encoder_from=DIR."
        )
    keys = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))  # flat: stages.4.name
    last = folder / f"stage-{max(int(key.split('.')[1]) for key in keys if key.startswith('stages.'))}"
    if not (last / "finished.json").is_file():
        raise ValueError(
            f"encoder_from: the run in {recipe.encoder_from!r} has not finished its last stage, {last.name}; finish "
            f"it, or name the encoder of another stage with --set encoder_from={folder}/stage-N/encoder."
        )
    return last / "encoder"


def load_base(recipe: Recipe, dtype: str | None = None) -> SamForConditionalGeneration:
    """The model before training, with the encoder of `encoder_from`, on the CPU; its parameter type is `dtype`, by
    default the recipe's `base_dtype`.

    Raises:
        FileNotFoundError: A checkpoint has no weights.
        ValueError: Some are missing or of another shape; nothing is trained on random weights.
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
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *other})
    if wrong:
        raise ValueError(
            f"{key}: in {str(source)!r} {len(wrong)} tensors are missing or of another shape than in its "
            f"config.json, or have no place there, the first is {wrong[0]}; expected a complete checkpoint: make it "
            "again."
        )
    return model


def with_adapters(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Adds the recipe's adapters, if it has any, and makes everything float32 that any of its stages trains.

    Call it before weights are loaded: those of the stage before are float32, and a bf16 module would round them. The
    modules trained beside LoRA, connector and encoder, are peft's copies (`modules_to_save`). So is a frozen encoder
    taken from another run: adapter and base together must be the model that was trained.
    """
    parts = recipe.trained_parts
    if recipe.lora_rank:
        has_encoder = recipe.joint_encoder or recipe.encoder_from is not None
        modules = ["connector", "audio_tower"] if has_encoder else ["connector"]
        model = get_peft_model(model, lora_config(recipe.lora_rank, modules, recipe.lora_dropout))
        folder = Path(recipe.model).expanduser()
        if folder.is_dir():  # an absolute path never looks like a Hub id
            model.peft_config["default"].base_model_name_or_path = str(folder.resolve())
        parts = ["connector", "lora", *(["encoder"] if recipe.joint_encoder else [])]
    choose_trainable(model, parts)
    upcast_trainable(model)
    return model


def adapter_card(recipe: Recipe) -> str:
    """The model card of a recipe's adapter; it only names a base model that has a Hub id."""
    frozen = " and the frozen encoder of another run" if recipe.encoder_from is not None else ""
    is_id = recipe.base_id is not None or not Path(recipe.model).expanduser().exists()
    base = recipe.base_id or recipe.model
    return CARD.read_text(encoding="utf-8").format(
        metadata=f"base_model: {base}\n" if is_id else "",
        base=base if is_id else "THE_BASE",
        rank=recipe.lora_rank,
        beside="the connector" + (" and the encoder" if recipe.joint_encoder else frozen),
        recipe=recipe.name,
    )


def part_of(name: str, adapted: bool) -> str | None:
    """Which of `PARTS` a parameter belongs to by its name; `None` for parameters that no stage can train."""
    if ".lora_" in name:
        return "lora"
    if adapted and ".modules_to_save." not in name:
        return None
    return "encoder" if ".audio_tower." in name else "connector" if ".connector." in name else "language_model"


def choose_trainable(model: torch.nn.Module, parts: Sequence[str]) -> dict[str, int]:
    """Makes exactly these parts trainable, and returns their numbers of parameters."""
    counts = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name, isinstance(model, PeftModel))
        parameter.requires_grad_(part in counts)
        if part in counts:
            counts[part] += parameter.numel()
    return counts


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Loads the weights saved by a stage: an adapter, or a whole model if there is no LoRA.

    Raises:
        ValueError: The folder's tensors are not those of the model.
    """
    adapted = isinstance(model, PeftModel)
    files = sorted(folder.glob("adapter_model*.safetensors" if adapted else "model*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = get_peft_model_state_dict(model) if adapted else model.state_dict()
    learns = any(p.requires_grad for name, p in model.named_parameters() if part_of(name, adapted) == "encoder")
    if adapted and not learns:  # adapters were once saved without a frozen encoder
        tensors = {**{name: tensor for name, tensor in expected.items() if ".audio_tower." in name}, **tensors}
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (expected, tensors)]
    wrong = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()} - {"lm_head.weight"})
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]}; "
            "they belong to another recipe or model."
        )
    if adapted:
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors, strict=False)


def merged_model(recipe: Recipe, weights: Path) -> SamForConditionalGeneration:
    """The whole model of a stage's weights: adapters merged in float32, then in the parameter types of the base."""
    base = load_base(recipe)
    types = {name: parameter.dtype for name, parameter in base.named_parameters()}
    model = with_adapters(base.float(), recipe)
    load_weights(model, weights)
    model = model.merge_and_unload() if recipe.lora_rank else model
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
    return model
