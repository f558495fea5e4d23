"""The Mamba-2 language model of SAM and its cache.

Parameter names and numbers are those of transformers' `Mamba2Model` and of the state-spaces checkpoints. The mixer
reads a whole sequence, a chunk that continues from a state, or one step.

Padding: the real positions of each row are first moved to its front ([`RowPacking`]). No real position then depends on
padding, wherever the mask had it, and only two operations need the lengths: the step size is zero past the end of a
row, and the convolution's tail ends where the row ends.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

try:
    from .kernels_sam import (
        causal_convolution,
        convolution_step,
        convolution_tail,
        discretise,
        fused_layer,
        gated_rms_norm,
        scan,
        scan_step,
    )
except ImportError:
    if __package__:
        raise
    from kernels_sam import (
        causal_convolution,
        convolution_step,
        convolution_tail,
        discretise,
        fused_layer,
        gated_rms_norm,
        scan,
        scan_step,
    )


class SamCache:
    """The model's state after everything it has read: two tensors of fixed size for each layer.

    The tensors are allocated at the first use of a layer and then written in place, so that their addresses do not
    change. Methods that change the batch size replace them.

    Args:
        num_layers (`int`): Layers of the language model.
        state_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type of the recurrent states.
            `torch.bfloat16` halves the memory and costs accuracy.

    Attributes:
        convolution (`list[torch.Tensor]`): The last inputs of each layer's convolution, `[B, C, K-1]`, in the
            activations' type.
        recurrent (`list[torch.Tensor]`): The state of each layer, `[B, H, P, N]`.
        seen_tokens (`int`): Positions read so far, including padding.
    """

    is_compileable = False
    is_croppable = False
    # From 5.24 on, `generate` passes all ids to "linear" layers. Ours read only new ids, as with all other caches.
    is_linear = (False,)

    def __init__(self, num_layers: int, state_dtype: torch.dtype = torch.float32):
        self.state_dtype = state_dtype
        self.convolution: list[torch.Tensor | None] = [None] * num_layers
        self.recurrent: list[torch.Tensor | None] = [None] * num_layers
        self.seen_tokens = 0

    def __len__(self) -> int:
        return len(self.recurrent)

    @property
    def batch_size(self) -> int:
        """Number of rows; zero before the first input."""
        return 0 if self.recurrent[0] is None else self.recurrent[0].shape[0]

    def layer(self, index, batch, mixer, dtype, device):
        """The two tensors of layer `index`, zeros at first use."""
        if self.recurrent[index] is None:
            shape = (batch, mixer.num_heads, mixer.head_dim, mixer.state_size)
            # a float64 model keeps float64 states, for comparisons with exact arithmetic
            state_dtype = torch.float64 if dtype == torch.float64 else self.state_dtype
            self.recurrent[index] = torch.zeros(shape, dtype=state_dtype, device=device)
            shape = (batch, mixer.conv_dim, mixer.conv_kernel - 1)
            self.convolution[index] = torch.zeros(shape, dtype=dtype, device=device)
        rows = self.recurrent[index].shape[0]
        if rows != batch:
            raise ValueError(f"cache: got {rows} rows, expected {batch} as in the input.")
        return self.convolution[index], self.recurrent[index]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions read so far, including padding."""
        return self.seen_tokens

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit: the states do not grow."""
        return -1

    def reset(self) -> None:
        """Sets the state to zero, in place."""
        for tensor in self._tensors():
            tensor.zero_()
        self.seen_tokens = 0

    def crop(self, max_length: int) -> None:
        raise ValueError(
            "SamCache.crop: a recurrent state cannot return to an earlier position; keep a copy of that position "
            "with `cache.fork()`."
        )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replaces row `i` by row `beam_idx[i]`, in place (beam search)."""
        for tensor in self._tensors():
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times, one after another."""
        self._replace(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows of `indices`."""
        self._replace(lambda tensor: tensor[indices.to(tensor.device)])

    def fork(self, repeats: int = 1) -> "SamCache":
        """An independent copy with every row `repeats` times."""
        fork = copy.copy(self)
        fork.batch_repeat_interleave(repeats)  # replaces the tensors of the copy
        return fork

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state as named tensors, for safetensors."""
        tensors = {"seen_tokens": torch.tensor(self.seen_tokens)}
        for index in range(len(self)):
            if self.recurrent[index] is not None:
                tensors[f"layers.{index}.convolution"] = self.convolution[index]
                tensors[f"layers.{index}.recurrent"] = self.recurrent[index]
        return tensors

    @classmethod
    def from_state_dict(cls, tensors: dict[str, torch.Tensor], num_layers: int) -> "SamCache":
        """Makes a cache from copies of the tensors of [`~SamCache.state_dict`].

        Raises:
            ValueError: The tensors are of another number of layers.
        """
        layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}
        if layers and layers != set(range(num_layers)):
            raise ValueError(f"tensors: got {len(layers)} layers, expected {num_layers}.")
        cache = cls(num_layers)
        for index in sorted(layers):
            cache.convolution[index] = tensors[f"layers.{index}.convolution"].clone()
            cache.recurrent[index] = tensors[f"layers.{index}.recurrent"].clone()
            if cache.recurrent[index].dtype != torch.float64:
                cache.state_dtype = cache.recurrent[index].dtype
        cache.seen_tokens = int(tensors["seen_tokens"])
        return cache

    def _tensors(self):
        return [tensor for tensor in (*self.convolution, *self.recurrent) if tensor is not None]

    def _replace(self, change) -> None:
        self.convolution = [None if tensor is None else change(tensor) for tensor in self.convolution]
        self.recurrent = [None if tensor is None else change(tensor) for tensor in self.recurrent]


class RowPacking:
    """Moves each row's real positions to its front, and back.

    Args:
        mask (`torch.Tensor` of shape `[B, L]`): 1 at real positions, 0 at padding, in any order.
    """

    def __init__(self, mask: torch.Tensor):
        real = mask.bool()
        self.lengths = real.sum(dim=1)
        self.order = torch.argsort(real.logical_not().to(torch.uint8), dim=1, stable=True)
        self.back = torch.argsort(self.order, dim=1)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Real positions first: `[B, L]` or `[B, L, D]`."""
        return self._take(x, self.order)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~RowPacking.pack`]."""
        return self._take(x, self.back)

    @staticmethod
    def _take(x, index):
        index = index.to(x.device)
        return x.gather(1, index if x.ndim == 2 else index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SamRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in at least float32, returned in the weight's type."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class SamGatedRMSNorm(nn.Module):
    """`RMSNorm(y * silu(z)) * weight`: the gate before the norm."""

    def __init__(self, hidden_size: int, eps: float, groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps
        self.groups = groups

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return gated_rms_norm(y, z, self.weight, self.eps, self.groups)


class SamMamba2Mixer(nn.Module):
    """One Mamba-2 layer (paper, section 2.1): projection, convolution, scan, gated norm, projection.

    Args:
        config (`Mamba2Config`): Sizes.
        layer_idx (`int`): Index of the layer in the cache.
    """

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.state_size = config.state_size
        self.n_groups = config.n_groups
        self.conv_kernel = config.conv_kernel
        self.chunk_size = config.chunk_size
        self.inner_size = config.num_heads * config.head_dim
        self.conv_dim = self.inner_size + 2 * config.n_groups * config.state_size
        self.time_step_limit = tuple(float(value) for value in config.time_step_limit)

        self.in_proj = nn.Linear(
            config.hidden_size, self.inner_size + self.conv_dim + self.num_heads, bias=config.use_bias
        )
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, config.conv_kernel, groups=self.conv_dim, bias=config.use_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.norm = SamGatedRMSNorm(self.inner_size, config.layer_norm_epsilon, config.n_groups)
        self.out_proj = nn.Linear(self.inner_size, config.hidden_size, bias=config.use_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: SamCache | None = None,
        lengths: torch.Tensor | None = None,
        seq_idx: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `[B, L, D]`): Input, real positions first.
            cache ([`SamCache`], *optional*): State to continue from, updated in place.
            lengths (`torch.Tensor` of shape `[B]`, *optional*): Real positions of each row; all by default.
            seq_idx (`torch.Tensor` of shape `[B, L]`, *optional*): Sequence of each position of a packed row.

        Returns:
            `torch.Tensor` of shape `[B, L, D]`; positions past the end of a row have no meaning.
        """
        zxbcdt = self.in_proj(hidden_states)
        if cache is None:
            y = self._whole(zxbcdt, seq_idx)
        elif zxbcdt.shape[1] == 1 and cache.seen_tokens > 0 and lengths is None:
            y = self._step(zxbcdt, cache)
        else:
            y = self._chunk(zxbcdt, cache, lengths)
        # Always call the module, never use its weight: an adapter acts in the call.
        return self.out_proj(y)

    @property
    def decay(self) -> torch.Tensor:
        """The negative decay rate `A` of each head."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _split(self, zxbcdt):
        return zxbcdt.split([self.inner_size, self.conv_dim, self.num_heads], dim=-1)

    def _split_xbc(self, xbc):
        groups = self.n_groups * self.state_size
        x, B, C = xbc.split([self.inner_size, groups, groups], dim=-1)
        return (
            x.unflatten(-1, (self.num_heads, self.head_dim)),
            B.unflatten(-1, (self.n_groups, self.state_size)),
            C.unflatten(-1, (self.n_groups, self.state_size)),
        )

    def _whole(self, zxbcdt, seq_idx):
        taps, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        y = fused_layer(
            zxbcdt,
            taps,
            bias,
            self.dt_bias,
            self.decay,
            self.D,
            self.norm.weight,
            self.norm.eps,
            self.head_dim,
            self.n_groups,
            self.chunk_size,
            self.time_step_limit,
            seq_idx,
        )
        if y is not None:
            return y
        z, xbc, dt = self._split(zxbcdt)
        x, B, C = self._split_xbc(causal_convolution(xbc, taps, bias, seq_idx=seq_idx))
        dt = discretise(dt, self.dt_bias, self.time_step_limit)
        y, _ = scan(x, dt, self.decay, B, C, self.D, self.chunk_size, seq_idx=seq_idx)
        return self.norm(y.flatten(2), z)

    def _chunk(self, zxbcdt, cache, lengths):
        z, xbc, dt = self._split(zxbcdt)
        tail, state = cache.layer(self.layer_idx, zxbcdt.shape[0], self, zxbcdt.dtype, zxbcdt.device)
        first = cache.seen_tokens == 0
        taps, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        x, B, C = self._split_xbc(causal_convolution(xbc, taps, bias, None if first else tail))
        lengths = None if lengths is None else lengths.to(xbc.device)
        # Detached: a state that is updated again and again must not keep every autograd graph alive.
        tail.copy_(convolution_tail(xbc, self.conv_kernel, tail, lengths).detach())
        dt = discretise(dt, self.dt_bias, self.time_step_limit, lengths)
        y, new_state = scan(x, dt, self.decay, B, C, self.D, self.chunk_size, None if first else state)
        state.copy_(new_state.detach())
        return self.norm(y.flatten(2), z)

    def _step(self, zxbcdt, cache):
        z, xbc, dt = self._split(zxbcdt.squeeze(1))
        tail, state = cache.layer(self.layer_idx, zxbcdt.shape[0], self, zxbcdt.dtype, zxbcdt.device)
        x, B, C = self._split_xbc(convolution_step(xbc, tail, self.conv1d.weight.squeeze(1), self.conv1d.bias))
        y = scan_step(state, x, dt, self.decay, B, C, self.D, self.dt_bias, self.time_step_limit)
        return self.norm(y.flatten(1), z).unsqueeze(1)


class SamMamba2Block(GradientCheckpointingLayer):
    """RMSNorm, mixer and residual sum, which is kept in float32."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = SamRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = SamMamba2Mixer(config, layer_idx)

    def forward(self, hidden_states, cache=None, lengths=None, seq_idx=None):
        residual = residual_stream(hidden_states, self.residual_in_fp32)
        return residual + self.mixer(self.norm(hidden_states), cache, lengths, seq_idx)


def residual_stream(hidden_states: torch.Tensor, in_fp32: bool) -> torch.Tensor:
    """`hidden_states`, in at least float32 if the configuration asks for it."""
    return hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32)) if in_fp32 else hidden_states


def given_cache(cache, past_key_values):
    """The cache under either name of the argument: `cache` from transformers 5.24 on, `past_key_values` before.

    Raises:
        ValueError: Two different caches.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values: got both names of one argument; pass one of them.")
    return past_key_values if cache is None else cache


class SamOutput(ModelOutput):
    """An output with `past_key_values` as a second name of `cache`, which transformers before 5.24 uses."""

    @property
    def past_key_values(self):
        return self.cache

    def __contains__(self, key):
        return super().__contains__("cache" if key == "past_key_values" else key)

    def __getitem__(self, key):
        return super().__getitem__("cache" if key == "past_key_values" else key)


@dataclass
class SamMamba2Output(SamOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `[B, L, D]`): After the final norm.
        cache ([`SamCache`], *optional*): The state after the last position.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Input of every layer and the last output.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: SamCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class SamMamba2Model(nn.Module):
    """The Mamba-2 backbone: embeddings, blocks, final norm. Names as in transformers' `Mamba2Model`.

    Args:
        config (`Mamba2Config`): Sizes.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SamMamba2Block(config, index) for index in range(config.num_hidden_layers))
        self.norm_f = SamRMSNorm(config.hidden_size, config.layer_norm_epsilon)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: SamCache | None = None,
        seq_idx: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> SamMamba2Output:
        """
        Args:
            inputs_embeds (`torch.Tensor` of shape `[B, L, D]`): Embedded sequence.
            attention_mask (`torch.Tensor` of shape `[B, L]` or longer, *optional*): 1 at real positions; only its
                last `L` columns are used. Padding may be anywhere and changes no result.
            cache ([`SamCache`], *optional*): State to continue from, changed in place.
            seq_idx (`torch.Tensor` of shape `[B, L]`, *optional*): Sequence of each position of a packed row; not
                together with a cache.
            output_hidden_states (`bool`, *optional*, defaults to `False`): Also return the input of every layer.

        Returns:
            [`SamMamba2Output`].
        """
        length = inputs_embeds.shape[1]
        if seq_idx is not None and cache is not None:
            raise ValueError("seq_idx: packed rows cannot be read into a cache; pass use_cache=False.")
        packing = None
        if attention_mask is not None:
            mask = attention_mask[:, -length:]
            if mask.shape != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"attention_mask: got shape {tuple(attention_mask.shape)}, expected {inputs_embeds.shape[0]} rows "
                    f"and at least {length} columns."
                )
            # Reading the mask is free on a CPU, but waits for a GPU, where moving rows costs little.
            if mask.is_cuda or not bool(mask.all()):
                packing = RowPacking(mask)
        hidden_states, lengths = inputs_embeds, None
        if packing is not None:
            hidden_states, lengths = packing.pack(hidden_states), packing.lengths
            seq_idx = None if seq_idx is None else packing.pack(seq_idx)
        hidden_states = residual_stream(hidden_states, self.config.residual_in_fp32)

        unpack = packing.unpack if packing is not None else lambda states: states
        collected = []
        for block in self.layers:
            if output_hidden_states:
                collected.append(unpack(hidden_states))
            hidden_states = block(hidden_states, cache, lengths, seq_idx)
        hidden_states = unpack(self.norm_f(hidden_states))
        if cache is not None:
            cache.seen_tokens += length
        return SamMamba2Output(
            last_hidden_state=hidden_states,
            cache=cache,
            hidden_states=(*collected, hidden_states) if output_hidden_states else None,
        )


@torch.no_grad()
def init_mamba2_weights(module: nn.Module, config) -> None:
    """Initialises one module as the authors of Mamba-2 do; tensors that are already loaded do not change.

    `A` uniform from 1 to 16, step sizes log-uniform from `time_step_min` to `time_step_max`, `out_proj` scaled by
    the square root of the number of layers, embeddings normal with `initializer_range`.
    """
    if isinstance(module, SamMamba2Mixer):
        heads, like = module.num_heads, {"device": module.A_log.device, "dtype": torch.float32}
        init.copy_(module.A_log, torch.empty(heads, **like).uniform_(1, 16).log())
        init.ones_(module.D)
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        dt = torch.empty(heads, **like).uniform_(low, high).exp().clamp(min=config.time_step_floor)
        init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        bound = 1 / math.sqrt(module.in_proj.in_features)
        init.uniform_(module.in_proj.weight, -bound, bound)
        bound = 1 / math.sqrt(module.out_proj.in_features * config.num_hidden_layers)
        init.uniform_(module.out_proj.weight, -bound, bound)
        bound = 1 / math.sqrt(module.conv_kernel)
        init.uniform_(module.conv1d.weight, -bound, bound)
        for bias in (module.conv1d.bias, module.in_proj.bias, module.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
    elif isinstance(module, (SamRMSNorm, SamGatedRMSNorm)):
        init.ones_(module.weight)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, mean=0.0, std=config.initializer_range)
