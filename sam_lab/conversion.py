"""Converts published weights of the two parts, EAT and Mamba-2, to one SAM directory of safetensors.

The audio encoder is read from a fairseq checkpoint of EAT (pre-trained or fine-tuned; fairseq is not needed) or from
the safetensors of its Hugging Face port, the language model from state-spaces' or transformers' layout. No source has
the connector: it is initialised at random and reported. Code in a checkpoint is never executed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from tqdm import tqdm
from transformers import AutoTokenizer, Mamba2Config, Mamba2ForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from audio_sam import SamFeatureExtractor, check_choice, load_audio
from configuration_sam import SamAudioConfig, SamConfig, audio_slot_pattern
from hub_sam import write_model_card
from modeling_sam import SamAudioModel, SamForConditionalGeneration, sine_cosine_positions
from processing_sam import SamProcessor
from sam_lab.checkpoint_files import (
    Source,
    as_number,
    config_file,
    fetch,
    file_sha256,
    model_fields,
    read_checkpoint,
    read_json_object,
    read_tensors,
)
from sam_lab.common.files import written

DTYPES = ("float32", "bfloat16", "float16")


def _tensor_problems(tensors: dict[str, Any], model_class: type, config: Any, optional: str = "") -> list[str]:
    """Every difference between `tensors` and the weights of `model_class(config)`."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in model_class(config).state_dict().items()}
    problems = [f"missing: {name} {list(expected[name])}" for name in expected.keys() - tensors.keys() - {optional}]
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
            problems.append(f"not a floating-point tensor: {name} ({kind})")
        elif name not in expected:
            problems.append(f"unexpected: {name} {list(value.shape)}")
        elif tuple(value.shape) != expected[name]:
            problems.append(f"misshapen: {name} {list(value.shape)}, expected {list(expected[name])}")
    return sorted(problems)


def _check_tensors(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{what}: {len(problems)} tensors do not fit:\n  " + "\n  ".join(problems))


# -- The audio encoder --------------------------------------------------------------------------------------------

# Tensors in EAT's files that SAM does not use; any other unexpected tensor is an error.
UNUSED_AUDIO_TENSORS = re.compile(
    r"_ema($|\.)"  # the teacher
    r"|fixed_positional_encoder\.positions$"  # the sine-cosine positions, which we compute
    r"|(decoder|shared_decoder|recon_proj|cls_proj)\.|center$"  # heads for pre-training
    r"|(fc_norm|head)\."  # the classifier of the fine-tuned model
)
POSITIONS = "fixed_positional_encoder.positions"

# What EAT's configuration, fairseq's or the Hugging Face port's, says of the mathematics, by the last part of a
# field's name. SAM's encoder has one form of these:
LAYOUT_FIELDS = {
    "layer_norm_first": False,
    "norm_affine": True,
    "qkv_bias": True,
    "cosine_attention": False,
    "use_rel_pos_bias": False,
    "use_alibi_encoder": False,
    "fixed_positions": True,
    "in_chans": 1,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    **dict.fromkeys(("activation_fn", "act_layer", "hidden_act"), "gelu"),
}
# these must agree with the tensors (`stride` is a patch's side: patches do not overlap):
TENSOR_FIELDS = {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "model_depth": "num_hidden_layers"}
TENSOR_FIELDS |= {"patch_size": "patch_size", "stride": "patch_size"}
# and these are in no tensor:
READ_FIELDS = {"num_heads": "num_attention_heads", "norm_eps": "layer_norm_eps", "mel_bins": "num_mel_bins"}
READ_FIELDS |= {"target_length": "max_frames"}
# A field that a file lacks has the value of EAT's own classes. The number of heads is not among them: a width alone
# fits several, and another number converts as well and is wrong.
UNSAID = {"layer_norm_eps": 1e-6, "max_frames": 1024}

# The port's fields that change nothing at inference, or only the classifier.
PORT_IGNORED = {"activation_dropout", "attn_drop_rate", "drop_rate", "end_drop_path_rate", "start_drop_path_rate"}
PORT_IGNORED |= {"post_mlp_drop", "model_variant", "num_classes", "max_length"}

# Mean and standard deviation that EAT's data loader normalises with, by the task's option; else AudioSet's.
NORMALISATIONS = {"esc50_eval": (-6.627, 5.359), "spcv2_eval": (-6.846, 5.565)}
AUDIOSET_NORMALISATION = (-4.268, 4.569)


@dataclass
class AudioEncoder:
    """An EAT checkpoint, read by [`read_audio_encoder`].

    Attributes:
        config (`SamAudioConfig`): Its configuration.
        tensors (`dict`): Weights in the stored dtype that load into `SamAudioModel(config)` strictly.
        mean, std (`float`): What its spectrograms were normalised by.
        notes (list of `str`): What neither the file nor an argument says.
    """

    config: SamAudioConfig
    tensors: dict[str, torch.Tensor]
    mean: float
    std: float
    notes: list[str]


def convert_audio_encoder(
    path: str | Path, num_heads: int | None = None
) -> tuple[SamAudioConfig, dict[str, torch.Tensor]]:
    """An EAT checkpoint as the configuration and weights of [`SamAudioModel`]: see [`read_audio_encoder`].

    Returns:
        The configuration, and tensors in the stored dtype that load into `SamAudioModel(config)` strictly.
    """
    encoder = read_audio_encoder(path, num_heads)
    return encoder.config, encoder.tensors


def read_audio_encoder(path: str | Path, num_heads: int | None = None) -> AudioEncoder:
    """Reads an EAT checkpoint.

    Depth, width, width of the MLP and patch size are those of the tensors. The number of heads, the epsilon of the
    norms and the length are those of the file's own configuration: `cfg` or `args` of a fairseq checkpoint (of a
    fine-tuned one also that of the model it started from), `config.json` beside the Hugging Face port.

    Args:
        path (`str` or `Path`): A fairseq checkpoint (pre-trained, or fine-tuned with its `model.` prefix), the
            safetensors of the Hugging Face port, or a directory with one of them.
        num_heads (`int`, *optional*): Attention heads, for a file that does not say it.

    Raises:
        ValueError: Code in the file; an encoder of another layout, a configuration that contradicts itself, the
            tensors or `num_heads`, a number of heads that nothing says; tensors missing, unexpected or misshapen. All
            are listed in one message.
    """
    path = Path(path).expanduser()
    tensors: dict[str, Any] = {}
    found, beside = read_checkpoint(path)
    positions = None
    for key, value in found.items():
        # fine-tuned `model.modality_encoders.IMAGE.x`, pre-trained `modality_encoders.IMAGE.x`, the port's `model.x`
        name = key.removeprefix("model.").removeprefix("modality_encoders.IMAGE.")
        if name == POSITIONS:
            positions = value
        elif UNUSED_AUDIO_TENSORS.match(name) is None:
            tensors[name.replace("context_encoder.norm.", "pre_norm.")] = value
    try:
        hidden_size, _, patch_size, _ = tensors["local_encoder.proj.weight"].shape
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
            "intermediate_size": tensors["blocks.0.mlp.fc1.weight"].shape[0],
            "patch_size": patch_size,
        }
    except (KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not an EAT encoder, which contains local_encoder.proj.weight [width, 1, 16, 16] and "
            f"blocks.0.mlp.fc1.weight; found {', '.join(sorted(tensors)[:5]) or 'no tensor'}, …"
        ) from error

    fields, problems = _said_fields(path, beside)
    mean, std = _normalisation(beside, problems)
    said = _read_fields(fields, sizes, problems)
    if num_heads is not None:
        said.setdefault("num_attention_heads", {})["num_heads, the argument"] = num_heads
    read = {name: next(iter(values.values())) for name, values in said.items()}
    for values in said.values():
        if len(set(values.values())) > 1:
            problems.append(" but ".join(f"{origin} is {value!r}" for origin, value in values.items()))
    if "num_attention_heads" not in read:
        hint = f" (EAT's published ones have width / 64, here {hidden_size // 64})" if hidden_size % 64 == 0 else ""
        problems.append(
            "num_heads is not in the file's cfg or args, nor in a config.json beside it, and no tensor tells it; pass "
            f"num_heads=N, or --audio-encoder-heads N{hint}"
        )
    unsaid = {name: value for name, value in UNSAID.items() if name not in read}
    notes = [f"{name}: {value!r}, as in EAT's code, since the file does not say it" for name, value in unsaid.items()]
    try:
        config = SamAudioConfig(**{**sizes, "num_attention_heads": 1, **UNSAID, **read})
    except ValueError as error:
        problems.append(str(error))
        config = None
    unfit = [] if config is None else _tensor_problems(tensors, SamAudioModel, config)
    if config is not None:
        problems += _position_problems(positions, config)
    if problems:
        raise ValueError(
            f"{path}: {len(problems) + len(unfit)} reasons why this is not an encoder of SAM:\n  "
            + "\n  ".join([*problems, *unfit])
        )
    _check_tensors(str(path), unfit)
    return AudioEncoder(config, tensors, mean, std, notes)


def _said_fields(path: Path, beside: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """All fields of an encoder's configuration by their place, such as `cfg.model.num_heads`, and what is wrong."""
    fields = {place: value for name, root in beside.items() for place, value in model_fields(name, root)}
    port = read_json_object(config_file(path)) if config_file(path).is_file() else {}
    if port.get("model_type", None if fields else "eat") != "eat":  # of another model, in the same folder
        kind = port.get("model_type")
        return fields, [f"config.json has model_type {kind!r}, expected 'eat'"] if port and not fields else []
    known = {*PORT_IGNORED, *LAYOUT_FIELDS, *TENSOR_FIELDS, *READ_FIELDS, "mlp_ratio", "img_size"}
    known |= {*PretrainedConfig().to_dict(), "auto_map", "model_type", "torch_dtype"}
    size = port.get("img_size")
    if isinstance(size, list) and len(size) == 2:
        port |= {"img_size.target_length": size[0], "img_size.mel_bins": size[1]}
    fields |= {f"config.json: {name}": value for name, value in port.items() if value is not None}
    unknown = [name for name in port if name.split(".")[0] not in known and not name.startswith("_")]
    return fields, [f"config.json: {name} is {port[name]!r}, a field that EAT does not have" for name in unknown]


def _normalisation(beside: dict[str, Any], problems: list[str]) -> tuple[float, float]:
    """Mean and standard deviation of the task that a fairseq file was trained on."""
    found = {
        option: f"{name}.{part}.{option}"
        for name, root in beside.items()
        for part in ("model", "task")
        for option in NORMALISATIONS
        if isinstance(root.get(part), dict) and root[part].get(option) is True
    }
    if len(found) > 1:
        problems.append(f"{' and '.join(found.values())} are both true, expected one at most")
    return NORMALISATIONS[next(iter(found))] if found else AUDIOSET_NORMALISATION


def _read_fields(fields: dict[str, Any], sizes: dict[str, int], problems: list[str]) -> dict[str, dict[str, Any]]:
    """Checks the fields of a configuration, and returns those that no tensor has by our name and their place."""
    said: dict[str, dict[str, Any]] = {}
    for place, value in fields.items():
        name = re.split(r"[. ]", place)[-1]
        if isinstance(LAYOUT_FIELDS.get(name), str):  # a class or its name, such as torch.nn.GELU
            value = str(value).rpartition(".")[-1].lower()
        if name in LAYOUT_FIELDS and value != LAYOUT_FIELDS[name]:
            problems.append(f"{place} is {value!r}, only {LAYOUT_FIELDS[name]!r} is supported")
        elif name == "supported_modality" and str(value).rpartition(".")[-1].upper() not in ("IMAGE", "2"):
            problems.append(f"{place} is {value!r}, only IMAGE is supported, which spectrograms are to EAT")
        elif name == "mlp_ratio":
            if int((as_number(value, float) or 0) * sizes["hidden_size"]) != sizes["intermediate_size"]:
                ratio = sizes["intermediate_size"] / sizes["hidden_size"]
                problems.append(f"{place} is {value!r}, but by the tensors it is {ratio:g}")
        elif name in TENSOR_FIELDS and as_number(value, int) != sizes[TENSOR_FIELDS[name]]:
            problems.append(f"{place} is {value!r}, but by the tensors it is {sizes[TENSOR_FIELDS[name]]}")
        elif name in READ_FIELDS:
            number = as_number(value, float if name == "norm_eps" else int)
            if number is None or number <= 0:
                problems.append(f"{place} is {value!r}, expected a positive number")
            else:
                said.setdefault(READ_FIELDS[name], {})[place] = number
    return said


def _position_problems(positions: Any, config: SamAudioConfig) -> list[str]:
    """EAT computes its positions, as we do; a file has the table too. Zeros are a table that was never filled."""
    if not isinstance(positions, torch.Tensor) or not positions.any():
        return []
    ours = sine_cosine_positions(config.hidden_size, config.num_time_steps, config.num_bands)
    given = positions.float().flatten(0, -2)[: len(ours)]
    if given.shape != ours.shape:
        return [f"{POSITIONS} is {list(positions.shape)}, expected [1, {len(ours)} or more, {config.hidden_size}]"]
    difference = (given - ours).abs().max().item()
    if not difference < 1e-2:  # a bfloat16 table differs by 4e-3
        return [f"{POSITIONS} differs by {difference:.3g} from sines and cosines of band and time: other positions"]
    return []


# -- The language model -------------------------------------------------------------------------------------------

# mamba_ssm's layer options: the configuration field of those for shapes, the only supported value of those that change
# the mathematics, and those that only affect initialisation or kernels.
SSM_FIELDS = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "headdim": "head_dim"}
SSM_FIELDS |= {"ngroups": "n_groups", "chunk_size": "chunk_size", "bias": "use_bias", "conv_bias": "use_conv_bias"}
SSM_FIELDS |= {"dt_limit": "time_step_limit"}
SSM_FIXED = {"layer": "Mamba2", "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None}
SSM_MODEL = {"d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm"}
SSM_MODEL |= {"residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"}
SSM_IGNORED = ("A_init_range", "conv_init", "dt_init_floor", "dt_max", "dt_min", "use_mem_eff_path")


def _state_spaces_config(path: Path, source: dict[str, Any], vocab_size: int) -> Mamba2Config:
    """The `Mamba2Config` of a `config.json` in mamba_ssm's schema."""
    ssm = {"layer": "Mamba1"} | (source.get("ssm_cfg") or {})
    problems = [
        f"ssm_cfg.{name} is {ssm[name]!r}, only {value!r} is supported"
        for name, value in SSM_FIXED.items()
        if ssm.get(name, value) != value
    ]
    problems += [f"ssm_cfg.{name} is unknown" for name in ssm if name not in {*SSM_FIELDS, *SSM_FIXED, *SSM_IGNORED}]
    problems += [f"{name} is unknown" for name in source if name not in {*SSM_MODEL, *PretrainedConfig().to_dict()}]
    for name, fault in (("attn_layer_idx", "attention layers"), ("d_intermediate", "MLP layers")):
        if source.get(name):
            problems.append(f"{name} is {source[name]!r}: {fault} are not supported")
    if not source.get("rms_norm", True):
        problems.append("rms_norm is false, expected true")
    absent = [name for name in ("d_model", "n_layer", "vocab_size") if not isinstance(source.get(name), int)]
    if absent:
        problems.append(f"{', '.join(absent)}: missing, or not an integer")
    else:
        multiple = source.get("pad_vocab_size_multiple", 8)
        padded = -(-source["vocab_size"] // multiple) * multiple
        if padded != vocab_size:
            problems.append(
                f"vocab_size in multiples of {multiple} makes {padded} rows, the embedding has {vocab_size}"
            )
    if problems:
        raise ValueError(f"{path}: not a configuration that can be converted: {'; '.join(problems)}.")
    # Mamba2's own defaults, which a field that is absent has in mamba_ssm
    fields: dict[str, Any] = {"state_size": 128, "conv_kernel": 4, "expand": 2, "head_dim": 64, "n_groups": 1}
    fields |= {"chunk_size": 256, "use_bias": False, "use_conv_bias": True, "time_step_limit": (0.0, float("inf"))}
    fields.update({SSM_FIELDS[name]: value for name, value in ssm.items() if name in SSM_FIELDS})
    return Mamba2Config(
        hidden_size=source["d_model"],
        num_hidden_layers=source["n_layer"],
        num_heads=source["d_model"] * fields["expand"] // fields["head_dim"],
        vocab_size=vocab_size,
        layer_norm_epsilon=1e-5,  # in mamba_ssm's code, in no file
        residual_in_fp32=source.get("residual_in_fp32", True),
        tie_word_embeddings=source.get("tie_embeddings", True),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **fields,
    )


def convert_language_model(path: str | Path) -> tuple[Mamba2Config, dict[str, torch.Tensor]]:
    """A Mamba-2 checkpoint as the configuration and weights of transformers' `Mamba2ForCausalLM`.

    Args:
        path (`str` or `Path`): A directory with `config.json` and weights, or the file of weights with `config.json`
            beside it, in the layout of state-spaces (`pytorch_model.bin`) or of transformers (`model_type`
            `"mamba2"`; safetensors, in shards or not, or `pytorch_model.bin`).

    Returns:
        The configuration, and tensors in the stored dtype that load into `Mamba2ForCausalLM(config)` strictly; a tied
        `lm_head.weight` is omitted.

    Raises:
        ValueError: Not Mamba-2 (Mamba-1, attention layers, options that change the mathematics), a vocabulary size
            that differs from the embedding's, or tensors that do not fit, all listed in one message.
    """
    path = Path(path).expanduser()
    if not config_file(path).is_file():
        raise FileNotFoundError(f"{path}: a language model needs its config.json beside the weights.")
    source = read_json_object(config_file(path))
    model_type = source.get("model_type")
    if model_type not in (None, "mamba2") or (model_type is None and "d_model" not in source):
        raise ValueError(
            f"{path}: config.json has model_type {model_type!r}, expected 'mamba2' or the schema of mamba_ssm "
            "(d_model, …)."
        )
    tensors = read_tensors(path)
    if not any(name.startswith("backbone.") for name in tensors):
        tensors = {name if name.startswith("lm_head.") else f"backbone.{name}": tensors[name] for name in tensors}
    if "backbone.embedding.weight" in tensors:  # mamba_ssm's name
        tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    embedding = tensors.get("backbone.embeddings.weight")
    if not isinstance(embedding, torch.Tensor) or embedding.dim() != 2:
        raise ValueError(f"{path}: no embedding: expected backbone.embedding(s).weight [vocabulary, width].")
    if model_type is None:
        config = _state_spaces_config(path, source, len(embedding))
    else:
        try:
            config = Mamba2Config.from_json_file(config_file(path))  # decodes an infinite time_step_limit
        except Exception as error:  # transformers' strict dataclasses raise a class of their own
            raise ValueError(f"{path}: config.json is not a configuration of Mamba-2: {error}") from error
        if config.vocab_size != len(embedding):
            raise ValueError(
                f"{path}: config.json has vocab_size {config.vocab_size}, the embedding has {len(embedding)} rows."
            )
    tied = bool(config.tie_word_embeddings)
    optional = "lm_head.weight" if tied else ""
    _check_tensors(str(path), _tensor_problems(tensors, Mamba2ForCausalLM, config, optional))
    head = tensors.pop("lm_head.weight") if tied and "lm_head.weight" in tensors else None
    if head is not None and not torch.equal(head, embedding):
        raise ValueError(f"{path}: config.json ties lm_head.weight to the embedding, but the two differ in the file.")
    return config, tensors


# -- One SAM directory --------------------------------------------------------------------------------------------


@dataclass
class ConversionReport:
    """The result of [`convert`]; `str(report)` is the text that `sam-alm convert` prints.

    `difference` and `pushed` are set if [`convert`] was called with `check` and `push_to_hub`.
    """

    output: Path
    dtype: str
    sources: list[Source]
    parameters: dict[str, int]  # number of parameters by part
    initialised: list[str]  # tensors that no source has: the connector's
    seed: int  # of their random values
    notes: list[str] = field(default_factory=list)
    difference: float | None = None
    pushed: str | None = None  # URL of the commit

    def __str__(self) -> str:
        lines = [f"{self.output}: a SAM checkpoint in {self.dtype}"]
        for source in self.sources:
            revision = f" at {source.revision}" if source.revision else ""
            lines.append(f"  {source.part} from {source.given}{revision}")
            lines += [f"    {digest}  {name}" for name, digest in source.files.items()]
        lines += ["  parameters"] + [f"    {count:>13,}  {part}" for part, count in self.parameters.items()]
        lines.append(
            f"  initialised at random (seed {self.seed}), to be trained before use: {', '.join(self.initialised)}"
        )
        lines += [f"  {note}" for note in self.notes]
        if self.difference is not None:
            lines.append(f"  largest difference of the encoder's output from the reference: {self.difference:.3g}")
        if self.pushed is not None:
            lines.append(f"  pushed: {self.pushed}")
        return "\n".join(lines)


def convert(
    audio_encoder: str | Path,
    language_model: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    connector: str = "concatenation",
    dtype: str = "float32",
    max_shard_size: str | int = "50GB",
    push_to_hub: str | None = None,
    seed: int = 0,
    check: tuple[str | Path, str | Path] | None = None,
    audio_encoder_heads: int | None = None,
) -> ConversionReport:
    """Creates one SAM directory from an audio encoder, a language model and a tokenizer.

    The directory appears when it is complete: it is written under another name and renamed.

    Args:
        audio_encoder (`str` or `Path`): EAT, see [`convert_audio_encoder`]. This argument and the next two are a file,
            a directory, or a Hub id (`owner/name` or `owner/name@revision`).
        language_model (`str` or `Path`): Mamba-2, see [`convert_language_model`].
        tokenizer (`str` or `Path`): The language model's tokenizer: a `tokenizer.json` or a directory with one.
        output (`str` or `Path`): The directory to write; it must not exist, or be empty.
        connector (`str`, *optional*, defaults to `"concatenation"`): `"concatenation"`, `"time_major"` or
            `"frequency_major"`. Its weights are not published and are initialised at random.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"`, `"bfloat16"` or `"float16"`.
        max_shard_size (`str` or `int`, *optional*, defaults to `"50GB"`): Largest file of weights.
        push_to_hub (`str`, *optional*): Hub id to upload the directory to.
        seed (`int`, *optional*, defaults to 0): Seed of the connector's weights.
        check (`tuple`, *optional*): A WAV file and an NPY file with the encoder's output for it, [513, width] with CLS
            first, or [512, width] without. The report then contains the largest difference in float32. EAT publishes
            such a pair, `feature_extract/test.wav` and `test.npy`.
        audio_encoder_heads (`int`, *optional*): The audio encoder's attention heads, for a file that does not say it.

    Returns:
        [`ConversionReport`].

    Raises:
        FileExistsError: `output` exists and is not empty.
        FileNotFoundError: A source does not exist.
        ValueError: A source cannot be converted, or the parts do not fit together.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output: {output} exists and is not an empty directory; choose another or remove it.")
    check_choice("dtype", dtype, DTYPES)
    audio_slot_pattern(connector)  # raises for an unknown connector, before anything is downloaded

    given = {"audio encoder": audio_encoder, "language model": language_model, "tokenizer": tokenizer}
    sources = [fetch(part, source) for part, source in given.items()]
    encoder = read_audio_encoder(sources[0].path, audio_encoder_heads)
    audio_config, audio_tensors = encoder.config, encoder.tensors
    text_config, text_tensors = convert_language_model(sources[1].path)
    extractor = SamFeatureExtractor(
        feature_size=audio_config.num_mel_bins, max_frames=audio_config.max_frames, mean=encoder.mean, std=encoder.std
    )
    processor = SamProcessor(
        extractor, _load_tokenizer(sources[2].path), connector, patch_size=audio_config.patch_size
    )
    notes = [f"audio encoder: {note}" for note in encoder.notes] + _fit_tokenizer(text_config, processor)
    difference = None if check is None else _encoder_difference(audio_config, audio_tensors, extractor, *check)
    for source in sources:
        files = tqdm(source.files_read(), desc=f"SHA-256 of the {source.part}", unit="file")
        source.files = {file.name: file_sha256(file) for file in files}

    config = SamConfig(
        audio_config=audio_config,
        text_config=text_config,
        connector=connector,
        audio_token_id=processor.audio_token_id,
        separator_token_id=processor.separator_token_id,
        base_models=[source.repository for source in sources[:2] if source.repository] or None,
    )
    tensors = {f"model.audio_tower.{name}": value for name, value in audio_tensors.items()}
    for name, value in text_tensors.items():
        tensors[name.replace("backbone.", "model.language_model.", 1)] = value
    del audio_tensors, text_tensors, encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = SamForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=tensors, dtype=getattr(torch, dtype), output_loading_info=True
        )
    del tensors
    initialised = sorted(info["missing_keys"])
    if info["unexpected_keys"] or not all(name.startswith("model.connector.") for name in initialised):
        raise RuntimeError(f"assembling the model left unused or missing tensors: {info}")

    with written(output, folder=True) as place:
        write_model_card(config, place, name=push_to_hub or output.name)
        model.save_pretrained(place, max_shard_size=max_shard_size)
        processor.save_pretrained(place)
    parts = (model.model.audio_tower, model.model.connector, model.model.language_model)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    return ConversionReport(
        output=output,
        dtype=dtype,
        sources=sources,
        parameters=dict(zip(("audio encoder", "connector", "language model"), counts)),
        initialised=initialised,
        seed=seed,
        notes=notes,
        difference=difference,
        pushed=None if push_to_hub is None else _push(output, push_to_hub),
    )


END_OF_TEXT = "<|endoftext|>"  # GPT-NeoX's


def _load_tokenizer(path: Path) -> Any:
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json: {error}") from error
    if END_OF_TEXT in tokenizer.get_vocab():  # the file alone does not define the special tokens
        tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = END_OF_TEXT
    return tokenizer


def _fit_tokenizer(text_config: Mamba2Config, processor: Any) -> list[str]:
    """Checks that the tokenizer fits the embedding, and sets the language model's special tokens."""
    size = 1 + max(processor.tokenizer.get_vocab().values())
    if size > text_config.vocab_size:
        raise ValueError(
            f"tokenizer: {size} entries (with {processor.audio_token}), but the language model's embedding has only "
            f"{text_config.vocab_size} rows; use the language model's own tokenizer."
        )
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    notes = []
    for name, token in (("eos_token_id", end), ("bos_token_id", end), ("pad_token_id", end if pad is None else pad)):
        if (before := getattr(text_config, name)) != token:
            setattr(text_config, name, token)
            notes.append(f"{name}: {before} in the language model's configuration, {token} by the tokenizer")
    return notes


def _encoder_difference(
    config: SamAudioConfig, tensors: dict[str, Any], extractor: SamFeatureExtractor, wav: str | Path, npy: str | Path
) -> float:
    """Largest absolute difference, in float32, between the encoder's output for `wav` and the features in `npy`."""
    expected = torch.from_numpy(np.load(npy, allow_pickle=False)).float()
    tokens = config.num_time_steps * config.num_bands
    if tuple(expected.shape) == (tokens + 1, config.hidden_size):
        expected = expected[1:]  # CLS, which SAM does not use
    if tuple(expected.shape) != (tokens, config.hidden_size):
        raise ValueError(
            f"check: {npy} has shape {list(expected.shape)}, expected [{tokens + 1}, {config.hidden_size}] with CLS "
            f"first, or [{tokens}, {config.hidden_size}]."
        )
    features = extractor(load_audio(wav), extractor.sampling_rate, return_tensors="pt", overflow="truncate")
    model = SamAudioModel(config).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        output = model(features["input_features"]).last_hidden_state[0]
    return (output - expected).abs().max().item()


def _push(folder: Path, repository: str) -> str:
    """Uploads the directory in one commit; an existing model card of the repository is not replaced."""
    api = HfApi()
    repository = api.create_repo(repository, exist_ok=True).repo_id
    kept = ["README.md"] if api.file_exists(repository, "README.md") else None
    return str(api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=kept).commit_url)
