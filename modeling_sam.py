"""SAM: EAT encodes the audio, the connector maps it to embeddings, Mamba-2 reads them with the prompt and answers.

Importing this module registers the classes with transformers' Auto classes.
"""

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from .checks_sam import check_model_inputs, check_slots
except ImportError:
    if __package__:
        raise
    from checks_sam import check_model_inputs, check_slots
try:
    from .configuration_sam import SamAudioConfig, SamConfig
except ImportError:
    if __package__:
        raise
    from configuration_sam import SamAudioConfig, SamConfig
try:
    from .hub_sam import copy_checkpoint_modules, push_folder_to_hub, write_model_card
except ImportError:
    if __package__:
        raise
    from hub_sam import copy_checkpoint_modules, push_folder_to_hub, write_model_card
try:
    from .generation_sam import SamGenerationMixin
except ImportError:
    if __package__:
        raise
    from generation_sam import SamGenerationMixin
try:
    from .mamba_sam import SamCache, SamMamba2Model, SamOutput, given_cache, init_mamba2_weights, residual_stream
except ImportError:
    if __package__:
        raise
    from mamba_sam import SamCache, SamMamba2Model, SamOutput, given_cache, init_mamba2_weights, residual_stream
try:
    from .weights_sam import SamWeightsMixin
except ImportError:
    if __package__:
        raise
    from weights_sam import SamWeightsMixin


# -- Audio encoder ------------------------------------------------------------------------------------------------


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """`softmax(q k^T) v` with the signature of transformers: `[B, heads, L, d]` in, `[B, L, heads, d]` out."""
    weights = (query @ key.mT * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def sine_cosine_positions(hidden_size: int, num_time_steps: int, num_bands: int) -> torch.Tensor:
    """EAT's fixed 2-D positions, `[num_time_steps * num_bands, hidden_size]`, frequency varying fastest.

    The first half of the dimensions encodes the frequency band, the second half the time step; each half is sines,
    then cosines, of the position times `10000^(-j/(hidden_size/4))`.
    """
    frequencies = 10000 ** (-torch.arange(hidden_size // 4, dtype=torch.float32) / (hidden_size // 4))
    time, band = torch.meshgrid(
        torch.arange(num_time_steps, dtype=torch.float32),
        torch.arange(num_bands, dtype=torch.float32),
        indexing="ij",
    )
    angles = [position.reshape(-1, 1) * frequencies for position in (band, time)]
    return torch.cat([half for angle in angles for half in (angle.sin(), angle.cos())], dim=1)


class SamPatchEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Conv2d(1, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, input_features):
        # [B, frames, bins] -> [B, d, time, band] -> [B, time * band, d]
        patches = self.proj(input_features.unsqueeze(1).to(self.proj.weight.dtype))
        return patches.flatten(2).transpose(1, 2)


class SamAudioAttention(nn.Module):
    is_causal = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        name = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        y, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return self.proj(y.flatten(2))


class SamAudioMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SamAudioBlock(GradientCheckpointingLayer):
    """A ViT block with the norms after the residual sums (post-norm), as in EAT."""

    def __init__(self, config):
        super().__init__()
        self.attn = SamAudioAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SamAudioMLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class SamPreTrainedModel(SamWeightsMixin, PreTrainedModel):
    """Flags that transformers reads, and the initialisation of weights."""

    config_class = SamConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SamAudioBlock", "SamMamba2Block"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _keep_in_fp32_modules_strict = ["A_log", "D", "dt_bias"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        config = getattr(self.config, "audio_config", self.config)
        if isinstance(module, SamAudioModel):
            init.normal_(module.extra_tokens, std=config.initializer_range)
            init.copy_(module.positions, module.fixed_positions().to(module.positions.device))
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.normal_(module.weight, std=config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif hasattr(self.config, "text_config"):
            init_mamba2_weights(module, self.config.text_config)


class SamAudioModel(SamPreTrainedModel):
    """EAT (paper, section 2.2): log-mel spectrogram in, one vector for each of the 64 x 8 patches out.

    Parameter names are those of EAT's Hugging Face port without the prefix `model.`.

    Args:
        config ([`SamAudioConfig`]): Sizes; EAT-base by default.
    """

    config_class = SamAudioConfig
    base_model_prefix = "model.audio_tower"
    other_parts = ("model.connector.", "model.language_model.", "lm_head.")
    main_input_name = "input_features"
    _is_stateful = False

    def __init__(self, config):
        super().__init__(config)
        self.local_encoder = SamPatchEmbedding(config)
        self.extra_tokens = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(SamAudioBlock(config) for _ in range(config.num_hidden_layers))
        self.register_buffer("positions", self.fixed_positions(), persistent=False)
        self.gradient_checkpointing = False
        self.post_init()

    def fixed_positions(self) -> torch.Tensor:
        """[`sine_cosine_positions`] of this encoder."""
        return sine_cosine_positions(self.config.hidden_size, self.config.num_time_steps, self.config.num_bands)

    def get_input_embeddings(self):
        return self.local_encoder.proj

    def embed(self, input_features: torch.Tensor) -> torch.Tensor:
        """Patch and position embeddings, before the class token and the first norm: `[B, 512, d]`."""
        check_model_inputs(input_features=input_features)
        expected = (self.config.max_frames, self.config.num_mel_bins)
        if input_features.ndim != 3 or tuple(input_features.shape[1:]) != expected:
            raise ValueError(
                f"input_features: got shape {tuple(input_features.shape)}, expected [clips, {expected[0]} frames, "
                f"{expected[1]} mel bins]; use SamFeatureExtractor."
            )
        patches = self.local_encoder(input_features)
        return patches + self.positions.to(patches.dtype)

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Applies the blocks to any subset of the patches: `[B, n, d]` in, `[B, n, d]` out, without class token."""
        # The class token has no position embedding.
        x = torch.cat([self.extra_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1), patches], dim=1)
        x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]

    def forward(self, input_features, **kwargs):
        """
        Args:
            input_features (`torch.Tensor` of shape `[B, 1024, 128]`): Normalised log-mel spectrogram.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `[B, 512, d]`, index `time * 8 + band`.
        """
        return BaseModelOutput(last_hidden_state=self.encode(self.embed(input_features)))


# -- Connector ----------------------------------------------------------------------------------------------------


class SamConnector(nn.Module):
    """The two-layer MLP between the encoder and the language model, in its three layouts (paper, section 2.3).

    Args:
        config ([`SamConfig`]): Layout (`connector`) and hidden width (`connector_hidden_size`).
    """

    def __init__(self, config):
        super().__init__()
        self.layout = config.connector
        self.num_time_steps = config.audio_config.num_time_steps
        self.num_bands = config.audio_config.num_bands
        in_features = config.audio_config.hidden_size
        if self.layout == "concatenation":
            in_features *= self.num_bands
        out_features = config.text_config.hidden_size
        hidden = config.connector_hidden_size or out_features
        self.linear_1 = nn.Linear(in_features, hidden)
        self.linear_2 = nn.Linear(hidden, out_features)

    def arrange(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The encoder's output in the order of the slots: `[B, 64, 8*d]` for (a), `[B, 512, d]` for (b) and (c)."""
        tokens = hidden_states.unflatten(1, (self.num_time_steps, self.num_bands))  # [B, time, band, d]
        if self.layout == "concatenation":
            return tokens.flatten(2)
        if self.layout == "frequency_major":
            tokens = tokens.transpose(1, 2)
        return tokens.flatten(1, 2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, 512, d_audio]` from the encoder in, `[B, 64 or 512, d_text]` without separators out."""
        return self.linear_2(F.gelu(self.linear_1(self.arrange(hidden_states))))


# -- Model --------------------------------------------------------------------------------------------------------


@dataclass
class SamModelOutput(SamOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `[B, L, D]`): Output of the language model.
        cache ([`SamCache`], *optional*): The state after the last position; `past_key_values` is its other name.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Input of every layer and the last output.
        audio_hidden_states (`torch.Tensor`, *optional*): Output of the connector, `[clips, 64 or 512, D]`.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: SamCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: torch.Tensor | None = None


@dataclass
class SamCausalLMOutput(SamOutput):
    """
    Args:
        loss (`torch.Tensor`, *optional*): Next-token cross-entropy over the labels.
        logits (`torch.Tensor` of shape `[B, L, V]`, *optional*): In float32.
        The others as in [`SamModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: SamCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: torch.Tensor | None = None


class SamModel(SamPreTrainedModel):
    """Audio encoder, connector and language model without the output head.

    Args:
        config ([`SamConfig`]): Sizes and connector.
    """

    other_parts = ("lm_head.",)

    def __init__(self, config):
        super().__init__(config)
        self.audio_tower = SamAudioModel(config.audio_config)
        self.connector = SamConnector(config)
        self.language_model = SamMamba2Model(config.text_config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.embeddings

    def set_input_embeddings(self, value):
        self.language_model.embeddings = value

    def get_audio_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """Embeddings of clips for the language model.

        Args:
            input_features (`torch.Tensor` of shape `[clips, 1024, 128]`): Normalised log-mel spectrograms.

        Returns:
            `torch.Tensor` of shape `[clips, 64 or 512, D]`, in the order of the slots, without separators.
        """
        return self.connector(self.audio_tower(input_features).last_hidden_state)

    def forward(
        self,
        input_ids=None,
        input_features=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        seq_idx=None,
        output_hidden_states=None,
        cache=None,
        **kwargs,
    ):
        cache = given_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: pass exactly one of them.")
        check_model_inputs(input_ids, input_features, attention_mask)
        if inputs_embeds is not None and input_features is not None:
            raise ValueError(
                "inputs_embeds and input_features: got both, but embeddings do not show where the slots are; pass "
                "input_ids, or insert get_audio_features(input_features) into inputs_embeds."
            )
        text_config = self.config.text_config
        if use_cache is None:
            use_cache = text_config.use_cache and not self.training and seq_idx is None
        if use_cache and self.training and self.language_model.layers[0].gradient_checkpointing:
            use_cache, cache = False, None
        # by name: code loaded from a checkpoint is another copy of the class
        if cache is not None and type(cache).__name__ != "SamCache":
            raise ValueError(f"cache: got {type(cache).__name__}, expected SamCache.")
        if use_cache and cache is None:
            cache = SamCache(text_config.num_hidden_layers)

        audio_features, slots_fit = None, None
        if inputs_embeds is None:
            inputs_embeds = self.language_model.embeddings(input_ids)
            stepping = cache is not None and cache.seen_tokens > 0 and input_ids.shape[1] == 1
            if input_features is not None:
                audio_features = self.get_audio_features(input_features)
            if not stepping or audio_features is not None:
                inputs_embeds, slots_fit = self._fill_slots(input_ids, inputs_embeds, audio_features)
        if audio_features is None and self.training:
            inputs_embeds = inputs_embeds + self._untouched_parameters()

        outputs = self.language_model(inputs_embeds, attention_mask, cache, seq_idx, bool(output_hidden_states))
        if slots_fit is not None:
            slots_fit()
        return SamModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cache=cache if use_cache else None,
            hidden_states=outputs.hidden_states,
            audio_hidden_states=audio_features,
        )

    def _fill_slots(self, input_ids, inputs_embeds, audio_features):
        """Writes the features of the clips into their slots, in order; raises if the two do not match.

        Training never waits for the GPU here: the check of the slots is returned as a function, to be called when the
        GPU has work, and `masked_scatter`, whose backward waits, is not used.
        """
        if self.config.audio_token_id is None:
            if audio_features is not None:
                raise ValueError(
                    "input_features: got clips, but config.audio_token_id is None: this model reads text only."
                )
            return inputs_embeds, None
        slots = input_ids == self.config.audio_token_id
        clips, slots_fit = 0 if audio_features is None else len(audio_features), None
        if not torch.compiler.is_compiling():
            by_row, arrived = slots.sum(dim=1), None
            if self.training and by_row.is_cuda:
                by_row = torch.empty_like(by_row, device="cpu", pin_memory=True).copy_(by_row, non_blocking=True)
                arrived = torch.cuda.current_stream(input_ids.device).record_event()
            slots_fit = functools.partial(check_slots, by_row, clips, self.config.num_audio_features, arrived)
            slots_fit = slots_fit if arrived else slots_fit()
        if audio_features is None:
            return inputs_embeds, slots_fit
        inputs_embeds = residual_stream(inputs_embeds, self.config.text_config.residual_in_fp32)
        audio_features = audio_features.to(inputs_embeds.device, inputs_embeds.dtype).flatten(0, 1)
        order = torch.argsort(slots.flatten().logical_not().to(torch.uint8), stable=True)  # slots first
        filled = inputs_embeds.flatten(0, 1).index_copy(0, order[: len(audio_features)], audio_features)
        return filled.view_as(inputs_embeds), slots_fit

    def _untouched_parameters(self):
        """Zero, with a gradient for every parameter that a batch without audio does not use, since distributed
        training waits for all gradients."""
        unused = [*self.audio_tower.parameters(), *self.connector.parameters()]
        return sum((parameter.sum() * 0 for parameter in unused if parameter.requires_grad), start=0.0)


class SamForConditionalGeneration(SamPreTrainedModel, SamGenerationMixin):
    """SAM, the state-space audio-language model: clips and text in, text out.

    Args:
        config ([`SamConfig`]): Sizes and connector.

    Example:
        ```python
        >>> model = SamForConditionalGeneration.from_pretrained("examples/sam-tiny")
        >>> processor = SamProcessor.from_pretrained("examples/sam-tiny")
        >>> inputs = processor(text="What do you hear?", audio="dog.wav", return_tensors="pt")
        >>> processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :])
        ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = SamModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        self.generation_config = self.default_generation_config(config)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def get_audio_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """[`SamModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features)

    def forward(
        self,
        input_ids=None,
        input_features=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        seq_idx=None,
        output_hidden_states=None,
        return_dict=None,
        cache=None,
        loss_positions=None,
        **kwargs,
    ):
        """
        Args:
            input_ids (`torch.Tensor` of shape `[B, L]`): Tokens, with `config.audio_token_id` at the audio slots.
            input_features (`torch.Tensor` of shape `[clips, 1024, 128]`, *optional*): The clips in the order of
                their slots: row by row, from left to right.
            attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): 1 at real positions. Padding may be on
                either side.
            cache ([`SamCache`], *optional*): State to continue from; changed in place. `past_key_values` is its name
                in transformers before 5.24.
            inputs_embeds (`torch.Tensor` of shape `[B, L, D]`, *optional*): Instead of `input_ids`.
            labels (`torch.Tensor` of shape `[B, L]`, *optional*): Tokens to predict, aligned with `input_ids` (the
                shift happens here); -100 is ignored.
            use_cache (`bool`, *optional*): Return the state; by default as in the configuration, and `False` in
                training.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): Compute the logits of this number of
                last positions, or of these positions, only; 0 computes all.
            seq_idx (`torch.Tensor` of shape `[B, L]`, *optional*): Index of the sequence of each position, if several
                are packed into a row; neither state nor loss crosses from one to the next.
            loss_positions (`torch.Tensor` of shape `[N]`, *optional*): [`positions_with_loss`] of `labels`, for
                training: the head reads only these positions, which saves most of its time and memory. The loss is
                the same (0 with a gradient of 0 if N is 0), and `logits` is `None`.

        Returns:
            [`SamCausalLMOutput`].

        Raises:
            ValueError: Slots and clips that do not match, both or neither of `input_ids` and `inputs_embeds`, a mask
                or a cache of another batch.
        """
        check_model_inputs(input_ids, labels=labels)
        if loss_positions is not None and labels is None:
            raise ValueError("loss_positions: got positions without labels; pass the labels that they were found in.")
        keep = logits_to_keep
        if isinstance(keep, int):
            keep = slice(-keep, None) if keep else None
        if labels is not None and keep is not None:
            name = "labels" if loss_positions is None else "loss_positions"
            raise ValueError(
                f"{name} and logits_to_keep: got both, but the loss needs the logits of every label; pass only one."
            )
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            attention_mask=attention_mask,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            seq_idx=seq_idx,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and seq_idx is not None:
            labels = labels.masked_fill(F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)), -100)
        if loss_positions is not None:
            hidden_states = hidden_states.flatten(0, 1).index_select(0, loss_positions)
            labels = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()[loss_positions]
        elif keep is not None:
            hidden_states = hidden_states[:, keep]
        logits = self.lm_head(hidden_states.to(self.lm_head.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))

        loss = None
        if loss_positions is not None and not len(loss_positions):
            loss = logits.sum()  # 0, with a gradient for every parameter: other processes wait for it
        elif labels is not None:
            shifted = {} if loss_positions is None else {"shift_labels": labels}
            loss = self.loss_function(logits, labels, self.config.text_config.vocab_size, **shifted, **kwargs)
        output = SamCausalLMOutput(
            loss=loss,
            logits=logits if loss_positions is None else None,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            audio_hidden_states=outputs.audio_hidden_states,
        )
        return output if return_dict is not False else output.to_tuple()

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with the code of the processor, and a model card unless the directory has one."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            copy_checkpoint_modules(save_directory, self.name_or_path)
            write_model_card(self.config, save_directory)

    def push_to_hub(self, repo_id, **kwargs):
        """Pushes weights, code, generation configuration and model card; see [`push_folder_to_hub`]."""
        return push_folder_to_hub(self, repo_id, **kwargs)


def positions_with_loss(labels: torch.Tensor) -> torch.Tensor:
    """Positions of the flattened batch whose next one has a label other than -100, where the loss is computed.

    Args:
        labels (`torch.Tensor` of shape `[B, L]`): Labels, aligned with the tokens.

    Returns:
        `torch.Tensor` of shape `[N]`, int64.
    """
    return F.pad(labels[:, 1:] != -100, (0, 1)).flatten().nonzero().squeeze(1)


for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
    auto_class.register(SamConfig, SamForConditionalGeneration, exist_ok=True)
AutoConfig.register(SamConfig.model_type, SamConfig, exist_ok=True)
AutoConfig.register(SamAudioConfig.model_type, SamAudioConfig, exist_ok=True)
AutoModel.register(SamAudioConfig, SamAudioModel, exist_ok=True)
SamForConditionalGeneration.register_for_auto_class("AutoModel")
SamAudioModel.register_for_auto_class("AutoModel")
