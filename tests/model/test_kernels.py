"""The torch operations against a float64 recurrence written position by position."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import kernels_sam as kernels


def recurrence(x, dt, A, B, C, D, state=None, seq_idx=None):
    """Equation 1 of the paper, one position after another."""
    per_group = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(per_group, dim=2) for t in (B, C))
    S = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1], dtype=x.dtype) if state is None else state
    ys = []
    for t in range(x.shape[1]):
        if seq_idx is not None and t > 0:
            S = S * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        S = S * torch.exp(dt[:, t] * A)[..., None, None] + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        ys.append(torch.einsum("bhpn,bhn->bhp", S, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(ys, dim=1), S


def scan_inputs(length, groups=2, batch=2, heads=4, head_dim=8, state_size=16, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return (
        torch.randn(batch, length, heads, head_dim, dtype=dtype),
        torch.rand(batch, length, heads, dtype=dtype),
        -4 * torch.rand(heads, dtype=dtype),
        torch.randn(batch, length, groups, state_size, dtype=dtype),
        torch.randn(batch, length, groups, state_size, dtype=dtype),
        torch.randn(heads, dtype=dtype),
    )


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scan_equals_the_recurrence(length, groups):
    inputs = scan_inputs(length, groups)
    y, state = kernels.scan(*inputs)
    expected_y, expected_state = recurrence(*inputs)
    torch.testing.assert_close(y, expected_y, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(state, expected_state, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 63, 64, 256])
def test_scan_does_not_depend_on_the_chunk_size(chunk_size):
    inputs = scan_inputs(130)
    torch.testing.assert_close(
        kernels.scan_reference(*inputs, chunk_size=chunk_size)[0], recurrence(*inputs)[0], atol=1e-12, rtol=1e-10
    )


def test_scan_goes_on_from_a_state():
    inputs, start = scan_inputs(100), torch.randn(2, 4, 8, 16, dtype=torch.float64)
    y, state = kernels.scan(*inputs, state=start)
    expected_y, expected_state = recurrence(*inputs, state=start)
    torch.testing.assert_close(y, expected_y, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(state, expected_state, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("borders", [[17], [64], [1, 2, 3], [63, 65, 128], [5, 70, 140, 199]])
def test_nothing_crosses_the_border_of_packed_sequences(borders):
    inputs = scan_inputs(200)
    seq_idx = torch.zeros(2, 200, dtype=torch.long)
    for border in borders:
        seq_idx[:, border:] += 1
    y, state = kernels.scan(*inputs, seq_idx=seq_idx)
    expected_y, expected_state = recurrence(*inputs, seq_idx=seq_idx)
    torch.testing.assert_close(y, expected_y, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(state, expected_state, atol=1e-12, rtol=1e-10)
    whole, _ = kernels.scan(*inputs)
    assert not torch.allclose(whole, y), "the borders must matter"


def test_scan_gradients_equal_the_recurrence():
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(70)]
    seq_idx = (torch.arange(70) // 30).expand(2, -1)
    weights = torch.randn(2, 70, 4, 8, dtype=torch.float64)
    ours = torch.autograd.grad((kernels.scan(*inputs, seq_idx=seq_idx)[0] * weights).sum(), inputs)
    expected = torch.autograd.grad((recurrence(*inputs, seq_idx=seq_idx)[0] * weights).sum(), inputs)
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_scan_step_by_step_equals_whole():
    x, dt, A, B, C, D = scan_inputs(20)
    dt_bias = torch.randn(4, dtype=torch.float64)
    expected, expected_state = recurrence(x, F.softplus(dt + dt_bias).clamp(0.1, 1.0), A, B, C, D)
    state = torch.zeros(2, 4, 8, 16, dtype=torch.float64)
    for t in range(20):
        y = kernels.scan_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D, dt_bias, (0.1, 1.0))
        torch.testing.assert_close(y, expected[:, t], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(state, expected_state, atol=1e-12, rtol=1e-10)


def test_scan_in_bfloat16_keeps_its_state_in_float32():
    inputs = [tensor.bfloat16() for tensor in scan_inputs(50)]
    y, state = kernels.scan(*inputs)
    exact, _ = recurrence(*[tensor.double() for tensor in inputs])
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert (y.double() - exact).norm() / exact.norm() < 4e-3  # half a unit in bfloat16's last place, and no more


def test_scan_does_not_lose_precision_under_autocast():
    inputs = scan_inputs(70, dtype=torch.float32)
    step = (inputs[0][:, 0], inputs[1][:, 0], inputs[2], inputs[3][:, 0], inputs[4][:, 0], inputs[5], torch.zeros(4))
    expected, state = kernels.scan(*inputs)
    expected_step = kernels.scan_step(state.clone(), *step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernels.scan(*inputs)[0], expected)
        assert torch.equal(kernels.scan_step(state.clone(), *step), expected_step)


def convolution_by_hand(x, weight, bias, state=None, seq_idx=None):
    """Every output from its window, by index."""
    length = x.shape[1]
    width = weight.shape[1]
    y = torch.zeros_like(x)
    for t in range(length):
        for k in range(width):
            s = t - (width - 1) + k
            if s >= 0:
                tap = x[:, s]
                if seq_idx is not None:
                    tap = tap * (seq_idx[:, s] == seq_idx[:, t])[:, None]
            else:
                tap = state[..., s] if state is not None else 0
            y[:, t] += weight[:, k] * tap
    return F.silu(y + bias)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 30])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_convolution_equals_its_definition(length, width):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, length, 6).double(), torch.randn(6, width).double(), torch.randn(6).double()
    state = torch.randn(2, 6, width - 1).double()
    seq_idx = (torch.arange(length) // 3).expand(2, -1)
    for kwargs in ({}, {"state": state}, {"seq_idx": seq_idx}):
        torch.testing.assert_close(
            kernels.causal_convolution(x, weight, bias, **kwargs), convolution_by_hand(x, weight, bias, **kwargs)
        )


def test_convolution_in_pieces_equals_whole():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 12, 6).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    expected = convolution_by_hand(x, weight, bias)
    state = torch.zeros(2, 6, 3).double()
    for start, end in [(0, 1), (1, 3), (3, 9)]:
        piece = x[:, start:end]
        y = kernels.causal_convolution(piece, weight, bias, state)
        torch.testing.assert_close(y, expected[:, start:end])
        state = kernels.convolution_tail(piece, 4, state, None).contiguous()
    for t in range(9, 12):
        y = kernels.convolution_step(x[:, t], state, weight, bias)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state, x[:, -3:].transpose(1, 2))


def test_convolution_tail_ends_where_the_row_ends():
    x = torch.arange(1.0, 6.0).view(1, 5, 1).expand(3, 5, 1)
    state = torch.tensor([-3.0, -2.0, -1.0]).expand(3, 1, 3)
    tail = kernels.convolution_tail(x, 4, state, torch.tensor([5, 2, 0]))
    assert tail[:, 0].tolist() == [[3, 4, 5], [-1, 1, 2], [-3, -2, -1]]


def test_step_size_past_the_end_is_zero():
    dt = kernels.discretise(torch.randn(2, 4, 3), torch.randn(3), (0.5, 1.0), torch.tensor([4, 1]))
    assert (dt[0] >= 0.5).all() and (dt[1, :1] >= 0.5).all() and (dt[1, 1:] == 0).all() and (dt <= 1).all()


def test_gated_norm_by_hand():
    torch.manual_seed(0)
    y, z, weight = torch.randn(3, 8).double(), torch.randn(3, 8).double(), torch.randn(8).double()
    gated = y * z / (1 + torch.exp(-z))
    for groups in (1, 2):
        parts = gated.view(3, groups, -1)
        expected = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(3, 8) * weight
        torch.testing.assert_close(kernels.gated_rms_norm(y, z, weight, 1e-5, groups), expected)


def test_dispatch_by_the_tensors_device(monkeypatch):
    """A kernel that cannot run on the CPU must not be called there, installed or not."""

    def fails(*args, **kwargs):
        raise AssertionError("a CUDA kernel was called with CPU tensors")

    for name in (
        "causal_conv1d_fn",
        "causal_conv1d_update",
        "mamba_chunk_scan_combined",
        "mamba_split_conv1d_scan_combined",
        "selective_state_update",
    ):
        monkeypatch.setattr(kernels, name, fails)
    monkeypatch.setattr(kernels, "missing", {})
    x, dt, A, B, C, D = scan_inputs(5, dtype=torch.float32)
    kernels.scan(x, dt, A, B, C, D)
    kernels.scan_step(torch.zeros(2, 4, 8, 16), x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, torch.zeros(4))
    kernels.causal_convolution(torch.randn(2, 5, 6), torch.randn(6, 4), None)
    kernels.convolution_step(torch.randn(2, 6), torch.zeros(2, 6, 3), torch.randn(6, 4), None)
    assert kernels.fused_layer_why_not(torch.randn(2, 5, 8), 4)


def test_a_gpu_without_the_kernels_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(kernels.logger, "propagate", True)
    on_gpu = SimpleNamespace(is_cuda=True)
    with caplog.at_level("WARNING"):
        for _ in range(2):
            kernels.warn_once_on_cuda(on_gpu, "scan", "mamba_ssm cannot be imported (for this test)")
        kernels.warn_once_on_cuda(on_gpu, "scan", "SAM_KERNELS=torch")
        kernels.warn_once_on_cuda(torch.zeros(1), "scan", "the tensors are on cpu")
    assert len(caplog.records) == 1
    assert "several times slower" in caplog.text and "sam-alm env" in caplog.text


def test_implementations_name_every_operation():
    rows = kernels.implementations()
    cpu = {row["operation"]: row for row in rows if row["device"] == "cpu"}
    assert set(cpu) == {"scan", "convolution", "decode step", "fused training layer", "encoder attention"}
    assert all(row["reason"] for row in cpu.values())
    assert cpu["scan"]["implementation"] == "torch"
