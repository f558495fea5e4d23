"""The operations of a Mamba-2 layer: convolution, scan, one decode step, and the fused layer for training.

Each exists twice: as a readable torch function that states the mathematics, runs everywhere and is the reference of
the tests, and as the CUDA kernel of mamba-ssm or causal-conv1d. Each call chooses by its tensors, so that a model on
the CPU works with the kernels installed. `SAM_KERNELS=torch` in the environment disables the kernels.
[`implementations`] lists what will run and why.

Letters: B batch, L positions, H heads, P head dimension, G groups, N state size, C convolution channels
(H*P + 2*G*N), K convolution width, Q chunk length.
"""

import os
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Why a compiled package cannot be imported (missing, built for another torch or CUDA), for messages about kernels that
# do not run.
missing: dict[str, str] = {}
try:
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
except Exception as error:
    causal_conv1d_fn = causal_conv1d_update = None
    missing["causal_conv1d"] = f"{type(error).__name__}: {error}"
try:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
except Exception as error:
    mamba_chunk_scan_combined = mamba_split_conv1d_scan_combined = selective_state_update = None
    missing["mamba_ssm"] = f"{type(error).__name__}: {error}"

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
REFERENCE_CHUNK = 64  # short: on a CPU the work within chunks, quadratic in their length, outweighs that between them
UNLIMITED = (0.0, float("inf"))


# -- Convolution --------------------------------------------------------------------------------------------------


def causal_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal depthwise convolution over positions, then SiLU.

    Args:
        x (`torch.Tensor` of shape `[B, L, C]`): Input.
        weight (`torch.Tensor` of shape `[C, K]`): Taps, the last one on the current position.
        bias (`torch.Tensor` of shape `[C]`, *optional*): Bias.
        state (`torch.Tensor` of shape `[B, C, K-1]`, *optional*): The inputs before `x`; zeros by default.
        seq_idx (`torch.Tensor` of shape `[B, L]`, *optional*): Index of the sequence of each position of a packed
            row; nothing crosses from one sequence to another. Not together with `state`.

    Returns:
        `torch.Tensor` of shape `[B, L, C]`.
    """
    why_not = _why_no_convolution_kernel(x, weight.shape[-1])
    if why_not:
        warn_once_on_cuda(x, "convolution", why_not)
        return causal_convolution_reference(x, weight, bias, state, seq_idx)
    if x.stride(1) % 8 or x.stride(2) != 1 or x.stride(0) % 8:
        x = x.contiguous()  # the kernel reads eight channels at a time
    if state is not None:
        state = state.to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # channels last, as x is
    with torch.cuda.device(x.device):
        y = causal_conv1d_fn(
            x.transpose(1, 2),
            weight,
            bias,
            seq_idx=None if seq_idx is None else seq_idx.int().contiguous(),
            initial_states=state,
            activation="silu",
        )
    return y.transpose(1, 2)


def causal_convolution_reference(x, weight, bias, state=None, seq_idx=None):
    """[`causal_convolution`] in plain torch."""
    length, width = x.shape[1], weight.shape[-1]
    if state is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([state.to(x.dtype).transpose(1, 2), x], dim=1)
    y = bias if bias is not None else 0
    for tap in range(width):
        shifted = padded[:, tap : tap + length]
        if seq_idx is not None and tap < width - 1:
            before = F.pad(seq_idx, (width - 1, 0), value=-1)[:, tap : tap + length]
            shifted = shifted * (before == seq_idx).unsqueeze(-1)
        y = y + shifted * weight[:, tap]
    return F.silu(y).to(x.dtype)


def convolution_tail(x: torch.Tensor, width: int, state: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """The last `K - 1` inputs of every row, which the next call of the convolution needs.

    Args:
        x (`torch.Tensor` of shape `[B, L, C]`): Input of the convolution.
        width (`int`): K.
        state (`torch.Tensor` of shape `[B, C, K-1]`): The inputs before `x`.
        lengths (`torch.Tensor` of shape `[B]`, *optional*): Real positions of each row, which come first.

    Returns:
        `torch.Tensor` of shape `[B, C, K-1]`.
    """
    padded = torch.cat([state.to(x.dtype).transpose(1, 2), x], dim=1)  # [B, K-1+L, C]
    if lengths is None:
        tail = padded[:, padded.shape[1] - (width - 1) :]
    else:
        index = lengths[:, None] + torch.arange(width - 1, device=x.device)  # [B, K-1]
        tail = padded.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return tail.transpose(1, 2)


def convolution_step(x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
    """One position of [`causal_convolution`]; updates `state` in place.

    Args:
        x (`torch.Tensor` of shape `[B, C]`): Input.
        state (`torch.Tensor` of shape `[B, C, K-1]`): The inputs before `x`, changed in place.
        weight (`torch.Tensor` of shape `[C, K]`): Taps.
        bias (`torch.Tensor` of shape `[C]`, *optional*): Bias.

    Returns:
        `torch.Tensor` of shape `[B, C]`.
    """
    if not _why_no_convolution_kernel(x, weight.shape[-1]) and state.dtype == x.dtype:
        with torch.cuda.device(x.device):
            return causal_conv1d_update(x.contiguous(), state, weight, bias, activation="silu")
    return convolution_step_reference(x, state, weight, bias)


def convolution_step_reference(x, state, weight, bias):
    """[`convolution_step`] in plain torch."""
    window = torch.cat([state.to(x.dtype), x.unsqueeze(-1)], dim=-1)  # [B, C, K]
    state.copy_(window[..., 1:].detach())
    y = (window * weight).sum(-1)
    return F.silu(y if bias is None else y + bias).to(x.dtype)


# -- Scan ---------------------------------------------------------------------------------------------------------


def discretise(dt: torch.Tensor, dt_bias: torch.Tensor, limit=UNLIMITED, lengths: torch.Tensor | None = None):
    """The step size `softplus(dt + dt_bias)`, clamped to `limit` and zero past the end of a row (no decay, no input).

    Args:
        dt (`torch.Tensor` of shape `[B, L, H]`): Output of the projection.
        dt_bias (`torch.Tensor` of shape `[H]`): Bias.
        limit (`tuple[float, float]`, *optional*): Smallest and largest step.
        lengths (`torch.Tensor` of shape `[B]`, *optional*): Real positions of each row, which come first.

    Returns:
        `torch.Tensor` of shape `[B, L, H]` in at least float32.
    """
    compute = torch.promote_types(dt.dtype, torch.float32)
    dt = F.softplus(dt.to(compute) + dt_bias.to(compute))
    if tuple(limit) != UNLIMITED:
        dt = dt.clamp(*limit)
    if lengths is not None:
        dt = dt * (torch.arange(dt.shape[1], device=dt.device) < lengths[:, None]).unsqueeze(-1)
    return dt


def scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    chunk_size: int = 256,
    state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state space recurrence over a whole sequence (paper, equation 1), with a scalar decay for each head:

    `S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T`, `y_t = S_t C_t + D x_t`.

    Args:
        x (`torch.Tensor` of shape `[B, L, H, P]`): Input.
        dt (`torch.Tensor` of shape `[B, L, H]`): Step size, from [`discretise`].
        A (`torch.Tensor` of shape `[H]`): Negative decay rate.
        B (`torch.Tensor` of shape `[B, L, G, N]`): Input map.
        C (`torch.Tensor` of shape `[B, L, G, N]`): Output map.
        D (`torch.Tensor` of shape `[H]`, *optional*): Skip.
        chunk_size (`int`, *optional*, defaults to 256): Q of the kernel, without effect on the result.
        state (`torch.Tensor` of shape `[B, H, P, N]`, *optional*): State before the first position; zeros by default.
        seq_idx (`torch.Tensor` of shape `[B, L]`, *optional*): Sequence of each position of a packed row.

    Returns:
        `y` of shape `[B, L, H, P]` in `x`'s type, and the state after the last position, `[B, H, P, N]`, in at least
        float32.
    """
    why_not = _why_no_scan_kernel(x)
    if why_not:
        warn_once_on_cuda(x, "scan", why_not)
        with torch.autocast(x.device.type, enabled=False):  # the state is float32, under autocast too
            return scan_reference(x, dt, A, B, C, D, state, seq_idx)
    with torch.cuda.device(x.device):
        return mamba_chunk_scan_combined(
            x,
            dt.float(),
            A.float(),
            B,
            C,
            chunk_size=chunk_size,
            D=None if D is None else D.float(),
            initial_states=None if state is None else state.float(),
            seq_idx=None if seq_idx is None else seq_idx.int().contiguous(),
            return_final_states=True,
        )


def scan_reference(x, dt, A, B, C, D=None, state=None, seq_idx=None, chunk_size=REFERENCE_CHUNK):
    """[`scan`] in plain torch: Mamba-2's block decomposition, with a masked matrix product for each chunk.

    `C B^T` is the same for all heads of a group and computed once.
    """
    batch, length, heads, _ = x.shape
    groups = B.shape[2]
    dtype, compute = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x_in, dt, A, B, C = x, dt.to(compute), A.to(compute), B.to(compute), C.to(compute)
    x = x.to(compute)
    Q = min(chunk_size, length)
    pad = -length % Q
    chunks = (length + pad) // Q

    # [B, chunks, H, Q, P], [B, chunks, H, Q], [B, chunks, G, Q, N]; padding has dt = 0 and changes nothing
    xdt = F.pad(x * dt.unsqueeze(-1), (0, 0, 0, 0, 0, pad)).view(batch, chunks, Q, heads, -1).transpose(2, 3)
    decay = F.pad(dt * A, (0, 0, 0, pad)).view(batch, chunks, Q, heads).transpose(2, 3).cumsum(-1)
    B = F.pad(B, (0, 0, 0, 0, 0, pad)).view(batch, chunks, Q, groups, -1).transpose(2, 3)
    C = F.pad(C, (0, 0, 0, 0, 0, pad)).view(batch, chunks, Q, groups, -1).transpose(2, 3)
    by_head = (batch, chunks, groups, heads // groups)

    # within a chunk: position i reads j <= i, faded by exp(decay_i - decay_j)
    reads = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    if seq_idx is not None:
        seq = torch.cat([seq_idx, seq_idx[:, -1:].expand(-1, pad)], dim=1).view(batch, chunks, 1, Q)
        last = torch.cat([seq[:, :1, :, 0], seq[:, :-1, :, -1]], dim=1)  # sequence at the end of the chunk before
        reads = reads & (seq.unsqueeze(-1) == seq.unsqueeze(-2))
        from_before = (seq == last.unsqueeze(-1)).to(compute)  # [B, chunks, 1, Q]
        to_end = (seq == seq[..., -1:]).to(compute)
    fade = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).masked_fill(~reads, -torch.inf).exp()  # [B, chunks, H, Q, Q]
    mixing = ((C @ B.mT).unsqueeze(3) * fade.view(*by_head, Q, Q)).view(batch, chunks, heads, Q, Q)
    y = mixing @ xdt

    # between chunks: first what each chunk adds to the state, then the states one after another
    fade_to_end = (decay[..., -1:] - decay).exp()
    fade_from_start = decay.exp()
    keep = decay[..., -1].exp()  # [B, chunks, H]
    if seq_idx is not None:
        fade_to_end, fade_from_start = fade_to_end * to_end, fade_from_start * from_before
        keep = keep * from_before[..., -1]
    faded = (xdt * fade_to_end.unsqueeze(-1)).view(*by_head, Q, -1)
    added = (faded.mT @ B.unsqueeze(3)).view(batch, chunks, heads, xdt.shape[-1], -1)  # [B, chunks, H, P, N]
    state = torch.zeros_like(added[:, 0]) if state is None else state.to(compute)
    before = []
    for chunk in range(chunks):
        before.append(state)
        state = state * keep[:, chunk, :, None, None] + added[:, chunk]
    earlier = C.unsqueeze(3) @ torch.stack(before, 1).view(*by_head, xdt.shape[-1], -1).mT  # [B, chunks, G, H/G, Q, P]
    y = y + earlier.view(batch, chunks, heads, Q, -1) * fade_from_start.unsqueeze(-1)

    y = y.transpose(2, 3).reshape(batch, chunks * Q, heads, -1)[:, :length]
    if D is not None:
        y = y + D.to(compute)[:, None] * x_in.to(compute)
    return y.to(dtype), state


def scan_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    limit=UNLIMITED,
) -> torch.Tensor:
    """One position of [`scan`]; updates `state` in place.

    Args:
        state (`torch.Tensor` of shape `[B, H, P, N]`): State before `x`, changed in place.
        x (`torch.Tensor` of shape `[B, H, P]`): Input.
        dt (`torch.Tensor` of shape `[B, H]`): Output of the projection.
        A, D, dt_bias (`torch.Tensor` of shape `[H]`): Decay rate, skip, bias of the step size.
        B, C (`torch.Tensor` of shape `[B, G, N]`): Input and output map.
        limit (`tuple[float, float]`, *optional*): Smallest and largest step.

    Returns:
        `torch.Tensor` of shape `[B, H, P]`.
    """
    if _why_no_scan_kernel(x) or tuple(limit) != UNLIMITED:  # the kernel supports no limit
        with torch.autocast(x.device.type, enabled=False):
            return scan_step_reference(state, x, dt, A, B, C, D, dt_bias, limit)
    P, N = state.shape[-2:]
    with torch.cuda.device(x.device):
        # Expanded views: zero strides tell the kernel that a head has one A, one dt and one D.
        return selective_state_update(
            state,
            x,
            dt.unsqueeze(-1).expand(-1, -1, P),
            A.float()[:, None, None].expand(-1, P, N),
            B,
            C,
            D.float()[:, None].expand(-1, P),
            dt_bias=dt_bias.float()[:, None].expand(-1, P),
            dt_softplus=True,
        )


def scan_step_reference(state, x, dt, A, B, C, D, dt_bias, limit=UNLIMITED):
    """[`scan_step`] in plain torch."""
    compute = torch.promote_types(x.dtype, torch.float32)
    per_group = x.shape[1] // B.shape[1]
    B, C = (t.to(compute).repeat_interleave(per_group, dim=1) for t in (B, C))  # [B, H, N]
    dt = discretise(dt.unsqueeze(1), dt_bias, limit).squeeze(1)
    xdt = x.to(compute) * dt.unsqueeze(-1)
    new = state.to(compute) * (dt * A.to(compute)).exp()[..., None, None] + xdt.unsqueeze(-1) * B.unsqueeze(-2)
    state.copy_(new.detach())
    y = (new @ C.unsqueeze(-1)).squeeze(-1) + D.to(compute)[:, None] * x.to(compute)
    return y.to(x.dtype)


# -- Gated norm, fused layer --------------------------------------------------------------------------------------


def gated_rms_norm(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float, groups: int) -> torch.Tensor:
    """`RMSNorm(y * silu(z)) * weight` for each group, in at least float32, returned in `y`'s type.

    Args:
        y, z (`torch.Tensor` of shape `[..., H*P]`): Values and gate.
        weight (`torch.Tensor` of shape `[H*P]`): Scale.
        eps (`float`): Added to the mean square.
        groups (`int`): Number of groups, each normalised by itself.
    """
    compute = torch.promote_types(y.dtype, torch.float32)
    gated = (y.to(compute) * F.silu(z.to(compute))).unflatten(-1, (groups, -1))
    normed = (gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2)
    return (normed * weight.to(compute)).to(y.dtype)


def fused_layer(
    zxbcdt: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    head_dim: int,
    groups: int,
    chunk_size: int,
    limit=UNLIMITED,
    seq_idx: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Convolution, scan and gated norm of a layer in one kernel, which recomputes what its backward needs.

    The kernel could also apply `out_proj`, but would use its weight without any adapter: LoRA on `out_proj` would not
    be trained. So `out_proj` stays a module call outside.

    Args:
        zxbcdt (`torch.Tensor` of shape `[B, L, 2*H*P + 2*G*N + H]`): Output of `in_proj`.
        The others as in the functions above.

    Returns:
        `torch.Tensor` of shape `[B, L, H*P]`, or `None` if the kernel cannot run; use the single operations then.
    """
    if fused_layer_why_not(zxbcdt, conv_weight.shape[-1]):
        return None
    with torch.cuda.device(zxbcdt.device):
        return mamba_split_conv1d_scan_combined(
            zxbcdt,
            conv_weight,
            conv_bias,
            dt_bias.float(),
            A,
            D.float(),
            chunk_size,
            seq_idx=None if seq_idx is None else seq_idx.int().contiguous(),
            dt_limit=tuple(limit),
            activation="silu",
            rmsnorm_weight=norm_weight,
            rmsnorm_eps=eps,
            outproj_weight=None,
            outproj_bias=None,
            headdim=head_dim,
            ngroups=groups,
            norm_before_gate=False,
        )


# -- Dispatch -----------------------------------------------------------------------------------------------------


def fused_layer_why_not(zxbcdt: torch.Tensor, width: int) -> str:
    """The reason why the fused layer cannot run on this input; empty if it can."""
    why_not = _why_no_scan_kernel(zxbcdt) or _why_no_convolution_kernel(zxbcdt, width)
    if not why_not and zxbcdt.shape[-1] % 8:
        why_not = f"in_proj has {zxbcdt.shape[-1]} outputs, not a multiple of 8"
    return why_not


def _why_no_scan_kernel(x: torch.Tensor) -> str:
    return _why_no_kernel("mamba_ssm", x)


def _why_no_convolution_kernel(x: torch.Tensor, width: int) -> str:
    why_not = _why_no_kernel("causal_conv1d", x)
    if not why_not and not 2 <= width <= 4:
        why_not = f"conv_kernel is {width}, the kernel supports 2 to 4"
    return why_not


def _why_no_kernel(package: str, x: torch.Tensor) -> str:
    if not x.is_cuda:
        return f"the tensors are on {x.device.type}, {package} runs on CUDA"
    if os.environ.get("SAM_KERNELS") == "torch":
        return "SAM_KERNELS=torch"
    if package in missing:
        return f"{package} cannot be imported ({missing[package]})"
    if x.dtype not in KERNEL_DTYPES:
        return f"{package} does not compute in {x.dtype}"
    return ""


def warn_once_on_cuda(x: torch.Tensor, operation: str, why_not: str) -> None:
    if x.is_cuda and "SAM_KERNELS" not in why_not:
        logger.warning_once(
            f"SAM's {operation} runs in plain torch on this GPU, several times slower than its kernel: {why_not}. "
            "`pip install sam-alm[cuda]` installs the kernels; `sam-alm env` lists which ones are used."
        )


def implementations() -> list[dict[str, Any]]:
    """The implementation of each operation on each kind of device of this machine.

    Returns:
        A list of `{"operation", "device", "implementation", "reason"}`; `reason` states why nothing faster is used.
    """
    rows = []
    packages = {
        "scan": "mamba_ssm",
        "convolution": "causal_conv1d",
        "decode step": "mamba_ssm, causal_conv1d",
        "fused training layer": "mamba_ssm, causal_conv1d",
    }
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        probe = torch.empty(1, device=device)
        for operation, needs in packages.items():
            reasons = [why for package in needs.split(", ") if (why := _why_no_kernel(package, probe))]
            name = "torch" if reasons else needs.replace("_", "-").replace(", ", " + ")
            rows.append(
                {"operation": operation, "device": device, "implementation": name, "reason": "; ".join(reasons)}
            )
        rows.append({"operation": "encoder attention", "device": device, **_encoder_attention(device)})
    return rows


def _encoder_attention(device: str) -> dict[str, str]:
    from transformers.utils import is_flash_attn_2_available

    if device != "cuda":
        return {"implementation": "sdpa", "reason": "flash_attention_2 runs on CUDA"}
    if is_flash_attn_2_available():
        return {"implementation": "sdpa", "reason": 'flash-attn is installed: attn_implementation="flash_attention_2"'}
    return {"implementation": "sdpa", "reason": "flash-attn is not installed"}
