"""Configuration of SAM: the audio encoder (EAT), the connector and the Mamba-2 language model.

Nothing here needs torch: a configuration can be read, checked and written anywhere.
"""

import copy
from typing import Any

from transformers import Mamba2Config, PretrainedConfig

# Layers and width of the paper's three language models (section 2.1); all other sizes are the same.
LANGUAGE_MODEL_SIZES: dict[str, tuple[int, int]] = {"130m": (24, 768), "780m": (48, 1536), "2.7b": (64, 2560)}

# The paper's three connectors (section 2.3), in its order (a), (b), (c).
CONNECTORS: tuple[str, ...] = ("concatenation", "time_major", "frequency_major")

__version__ = "0.1.0"

AUTO_MAP: dict[str, str] = {
    "AutoConfig": "configuration_sam.SamConfig",
    "AutoModel": "modeling_sam.SamForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_sam.SamForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_sam.SamForConditionalGeneration",
    "AutoFeatureExtractor": "audio_sam.SamFeatureExtractor",
    "AutoProcessor": "processing_sam.SamAudioLanguageProcessor",
}

FLOAT32_MAX = 3.4028234663852886e38


def mamba2_config(size: str = "130m", **overrides: Any) -> Mamba2Config:
    """The `Mamba2Config` of one of the published `state-spaces/mamba2-*` checkpoints.

    Args:
        size (`str`, *optional*, defaults to `"130m"`): `"130m"`, `"780m"` or `"2.7b"`.
        overrides: Fields with other values.

    Raises:
        ValueError: Unknown size.
    """
    if size not in LANGUAGE_MODEL_SIZES:
        raise ValueError(f"size: got {size!r}, expected one of {', '.join(LANGUAGE_MODEL_SIZES)}.")
    num_hidden_layers, hidden_size = LANGUAGE_MODEL_SIZES[size]
    fields: dict[str, Any] = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "head_dim": 64,
        "num_heads": 2 * hidden_size // 64,
        "state_size": 128,
        "n_groups": 1,
        "vocab_size": 50288,  # 50,277 entries of the GPT-NeoX tokenizer, padded to a multiple of 16
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    }
    return Mamba2Config(**{**fields, **overrides})


def audio_slot_pattern(connector: str, num_time_steps: int = 64, num_bands: int = 8) -> list[bool]:
    """The slots of one clip in the token sequence: `True` for an audio feature, `False` for a separator.

    One separator follows every time step of `time_major` and every band of `frequency_major` (section 2.3). Ten
    seconds take 64, 64 * (8 + 1) = 576 or 8 * (64 + 1) = 520 slots.

    Args:
        connector (`str`): One of [`CONNECTORS`].
        num_time_steps (`int`, *optional*, defaults to 64): Time steps of the encoder's output.
        num_bands (`int`, *optional*, defaults to 8): Frequency bands of the encoder's output.

    Raises:
        ValueError: Unknown connector.
    """
    if connector == "concatenation":
        return [True] * num_time_steps
    if connector == "time_major":
        return ([True] * num_bands + [False]) * num_time_steps
    if connector == "frequency_major":
        return ([True] * num_time_steps + [False]) * num_bands
    raise ValueError(f"connector: got {connector!r}, expected one of {', '.join(CONNECTORS)}.")


class SamAudioConfig(PretrainedConfig):
    """Configuration of the audio encoder, EAT-base by default (paper, section 2.2).

    Args:
        hidden_size (`int`, *optional*, defaults to 768): Width of the blocks.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of ViT blocks.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of a block.
        intermediate_size (`int`, *optional*, defaults to 3072): Width of a block's MLP.
        patch_size (`int`, *optional*, defaults to 16): Side of a square patch, in frames and mel bins.
        num_mel_bins (`int`, *optional*, defaults to 128): Mel bins of the log-mel spectrogram.
        max_frames (`int`, *optional*, defaults to 1024): Frames of the log-mel spectrogram, 10 ms each.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every LayerNorm.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of new weights.

    Raises:
        ValueError: A size that is not positive or not a multiple of another; the message names the field.
    """

    model_type = "sam_alm_audio_encoder"

    def __init__(
        self,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        patch_size=16,
        num_mel_bins=128,
        max_frames=1024,
        layer_norm_eps=1e-6,
        initializer_range=0.02,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.patch_size = patch_size
        self.num_mel_bins = num_mel_bins
        self.max_frames = max_frames
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            _check_positive_int(f"audio_config.{name}", getattr(self, name))
        for name in ("patch_size", "num_mel_bins", "max_frames"):
            _check_positive_int(f"audio_config.{name}", getattr(self, name))
        _check_multiple("audio_config.hidden_size", hidden_size, num_attention_heads, "num_attention_heads")
        _check_multiple("audio_config.hidden_size", hidden_size, 4, "four, for the 2-D sine-cosine positions")
        _check_multiple("audio_config.num_mel_bins", num_mel_bins, patch_size, "patch_size")
        _check_multiple("audio_config.max_frames", max_frames, patch_size, "patch_size")
        super().__init__(**kwargs)

    @property
    def num_time_steps(self) -> int:
        """Time steps of the encoder's output (64 for ten seconds)."""
        return self.max_frames // self.patch_size

    @property
    def num_bands(self) -> int:
        """Frequency bands of the encoder's output (8)."""
        return self.num_mel_bins // self.patch_size


class SamConfig(PretrainedConfig):
    """Configuration of [`SamForConditionalGeneration`].

    Args:
        audio_config ([`SamAudioConfig`] or `dict`, *optional*): The audio encoder; EAT-base by default.
        text_config (`Mamba2Config` or `dict`, *optional*): The language model; the 130M size by default. Fields
            missing from a `dict` have the defaults of transformers, no published size: see [`mamba2_config`].
        connector (`str`, *optional*, defaults to `"concatenation"`): `"concatenation"` (a), `"time_major"` (b) or
            `"frequency_major"` (c) of the paper's section 2.3.
        connector_hidden_size (`int`, *optional*): Hidden width of the connector's MLP; the language model's by
            default (the paper does not state it).
        audio_token_id (`int`, *optional*): The token at the position of an audio feature. Without it the model reads
            text only.
        separator_token_id (`int`, *optional*): The token `&&` between time steps or bands.
        base_models (`list[str]`, *optional*): Hub ids of the checkpoints that this one was made from, for its card.
        license (`str`, *optional*): The Hub's name for the licence of the weights, for the model card.

    Raises:
        ValueError: Unknown connector, sizes that do not fit, a token id outside the vocabulary, a sub-configuration
            of the wrong kind. The message names the field, its value and what was expected.
    """

    model_type = "sam_alm"
    sub_configs = {"audio_config": SamAudioConfig, "text_config": Mamba2Config}
    keys_to_ignore_at_inference = ["cache", "past_key_values", "audio_hidden_states"]

    def __init__(
        self,
        audio_config=None,
        text_config=None,
        connector="concatenation",
        connector_hidden_size=None,
        audio_token_id=None,
        separator_token_id=None,
        base_models=None,
        license=None,
        **kwargs,
    ):
        self.audio_config = _sub_config("audio_config", audio_config, SamAudioConfig, SamAudioConfig)
        self.text_config = _sub_config("text_config", text_config, Mamba2Config, mamba2_config)
        self.connector = connector
        self.connector_hidden_size = connector_hidden_size
        self.audio_token_id = audio_token_id
        self.separator_token_id = separator_token_id
        if base_models is not None and (
            not isinstance(base_models, (list, tuple)) or not all(isinstance(name, str) for name in base_models)
        ):
            raise ValueError(f"base_models: got {base_models!r}, expected a list of Hub ids, or None.")
        self.base_models = base_models
        self.license = license
        shared = ("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
        for name in shared:
            # transformers reads these at the top, the language model in its own configuration: set both
            value = kwargs.pop(name, None)
            if value is not None:
                if name != "tie_word_embeddings":
                    _check_token_id(name, value, self.text_config.vocab_size, several=name == "eos_token_id")
                if getattr(self.text_config, name) != value:
                    self.text_config = copy.copy(self.text_config)  # do not change the caller's
                    setattr(self.text_config, name, value)
        self._check()
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__init__(**kwargs)
        for name in shared:
            setattr(self, name, getattr(self.text_config, name))

    @classmethod
    def from_preset(cls, size="130m", connector="concatenation", **kwargs):
        """The configuration of one of the paper's models.

        Args:
            size (`str`, *optional*, defaults to `"130m"`): `"130m"`, `"780m"` or `"2.7b"`.
            connector (`str`, *optional*, defaults to `"concatenation"`): One of the three connectors.
            kwargs: Other fields. `separator_token_id` defaults to GPT-NeoX's `&&` (10494), `audio_token_id` to its
                first unused row (50277).
        """
        kwargs.setdefault("audio_token_id", 50277)
        kwargs.setdefault("separator_token_id", 10494)
        return cls(text_config=mamba2_config(size), connector=connector, **kwargs)

    @property
    def audio_slot_pattern(self) -> list[bool]:
        """[`audio_slot_pattern`] of this model's encoder and connector."""
        return audio_slot_pattern(self.connector, self.audio_config.num_time_steps, self.audio_config.num_bands)

    @property
    def num_audio_slots(self) -> int:
        """Positions that one clip takes in the sequence: 64, 576 or 520 for the paper's connectors."""
        return len(self.audio_slot_pattern)

    @property
    def num_audio_features(self) -> int:
        """Audio features of one clip, i.e. its slots without the separators: 64, 512 or 512."""
        return sum(self.audio_slot_pattern)

    def to_dict(self):
        output = super().to_dict()
        text_config = output["text_config"] if isinstance(output.get("text_config"), dict) else {}
        limit = text_config.get("time_step_limit")
        if limit is not None:
            # JSON has no infinity, and transformers 4 and 5 cannot read each other's replacement for it.
            if list(limit) == [0.0, float("inf")]:
                del text_config["time_step_limit"]
            else:
                text_config["time_step_limit"] = [min(float(value), FLOAT32_MAX) for value in limit]
        return output

    def _check(self) -> None:
        audio_slot_pattern(self.connector)
        text = self.text_config
        for name in ("hidden_size", "num_heads", "head_dim", "state_size", "n_groups", "conv_kernel", "vocab_size"):
            _check_positive_int(f"text_config.{name}", getattr(text, name))
        if text.hidden_size * text.expand != text.num_heads * text.head_dim:
            raise ValueError(
                f"text_config.num_heads: got {text.num_heads} heads of head_dim {text.head_dim}, "
                f"{text.num_heads * text.head_dim} in all, expected hidden_size * expand = "
                f"{text.hidden_size * text.expand}."
            )
        _check_multiple("text_config.num_heads", text.num_heads, text.n_groups, "n_groups")
        if text.hidden_act != "silu":
            raise ValueError(f"text_config.hidden_act: got {text.hidden_act!r}, expected 'silu', as in Mamba-2.")
        if self.connector_hidden_size is not None:
            _check_positive_int("connector_hidden_size", self.connector_hidden_size)
        for name in ("audio_token_id", "separator_token_id"):
            _check_token_id(name, getattr(self, name), text.vocab_size)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            _check_token_id(
                f"text_config.{name}", getattr(text, name), text.vocab_size, several=name == "eos_token_id"
            )
        if self.audio_token_id is not None and self.audio_token_id == self.separator_token_id:
            raise ValueError(
                f"audio_token_id and separator_token_id: both are {self.audio_token_id}, expected two ids."
            )


def _sub_config(name, value, config_class, default):
    if value is None:
        return default()
    if isinstance(value, dict):
        model_type = value.get("model_type", config_class.model_type)
        if model_type != config_class.model_type:
            raise ValueError(
                f"{name}: got a configuration of model type {model_type!r}, expected {config_class.model_type!r}."
            )
        try:
            return config_class(**{key: item for key, item in value.items() if key != "model_type"})
        except ValueError:
            raise
        except Exception as error:  # transformers' strict dataclasses raise a class of their own
            raise ValueError(f"{name}: {error}") from error
    # By name, not by class: code loaded from a checkpoint is another copy of this module.
    if getattr(value, "model_type", None) != config_class.model_type:
        raise ValueError(f"{name}: got {type(value).__name__}, expected {config_class.__name__}, a dict or None.")
    return value


def _check_positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer.")


def _check_token_id(name: str, value: Any, vocab_size: int, several: bool = False) -> None:
    for token_id in value if several and isinstance(value, (list, tuple)) else [value]:
        if token_id is None:
            continue
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{name}: got {token_id!r}, expected an integer from 0 to {vocab_size - 1} "
                "(text_config.vocab_size - 1), or None."
            )


def _check_multiple(name: str, value: int, divisor: int, what: str) -> None:
    if value % divisor:
        raise ValueError(f"{name}: got {value}, expected a multiple of {what} ({divisor}).")


SamAudioConfig.register_for_auto_class()
SamConfig.register_for_auto_class()
