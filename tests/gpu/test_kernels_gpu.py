"""The CUDA kernels against their torch twins, which are computed in float64 from the same inputs."""

import pytest
import torch

import kernels_sam as kernels

# Largest relative error (norm of the difference over the norm of the truth) that each type's own rounding explains:
# float32 products run in TF32 inside Triton.
LIMITS = {torch.float32: 2e-3, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
GRADIENT_LIMITS = {torch.float32: 6e-3, torch.bfloat16: 3e-2}


def error(ours, truth):
    truth = truth.double()
    return float((ours.double() - truth).norm() / truth.norm())


def rand(*shape, dtype, low=None, high=None):
    x = torch.randn(*shape, device="cuda") if low is None else torch.empty(*shape, device="cuda").uniform_(low, high)
    return x.to(dtype)


def test_the_kernels_are_installed():
    assert kernels.missing == {}


@pytest.fixture
def dims():
    torch.manual_seed(0)
    return {"batch": 2, "length": 300, "heads": 8, "head_dim": 64, "state_size": 128}


def scan_inputs(dims, dtype, groups=1):
    b, length, h, p, n = dims.values()
    return [
        rand(b, length, h, p, dtype=dtype),
        rand(b, length, h, dtype=torch.float32, low=0.001, high=0.1),
        -rand(h, dtype=torch.float32, low=1, high=16),
        rand(b, length, groups, n, dtype=dtype),
        rand(b, length, groups, n, dtype=dtype),
        rand(h, dtype=torch.float32),
    ]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", ["plain", "state", "packed", "short", "groups"])
def test_scan(dims, dtype, case):
    if case == "short":
        dims["length"] = 5
    inputs = scan_inputs(dims, dtype, groups=2 if case == "groups" else 1)
    kwargs = {}
    if case == "state":
        kwargs["state"] = rand(2, 8, 64, 128, dtype=torch.float32)
    if case == "packed":
        kwargs["seq_idx"] = (torch.arange(300, device="cuda") // 70).expand(2, -1)
    y, state = kernels.scan(*inputs, **kwargs)
    assert y.dtype == dtype and state.dtype == torch.float32
    exact = [tensor.double() for tensor in inputs]
    expected, expected_state = kernels.scan_reference(
        *exact, **{k: v.double() if k == "state" else v for k, v in kwargs.items()}
    )
    assert error(y, expected) < LIMITS[dtype], error(y, expected)
    assert error(state, expected_state) < LIMITS[dtype], error(state, expected_state)


@pytest.mark.parametrize("dtype", GRADIENT_LIMITS)
@pytest.mark.parametrize("packed", [False, True])
def test_scan_gradients(dims, dtype, packed):
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(dims, dtype)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    seq_idx = (torch.arange(300, device="cuda") // 70).expand(2, -1) if packed else None
    weights = rand(2, 300, 8, 64, dtype=torch.float32)
    ours = torch.autograd.grad((kernels.scan(*inputs, seq_idx=seq_idx)[0] * weights).sum(), inputs)
    truth = torch.autograd.grad((kernels.scan_reference(*exact, seq_idx=seq_idx)[0] * weights).sum(), exact)
    for name, a, b in zip("x dt A B C D".split(), ours, truth):
        assert error(a, b) < GRADIENT_LIMITS[dtype], name


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", ["plain", "state", "packed", "strided"])
def test_convolution(dtype, case):
    torch.manual_seed(0)
    x = rand(2, 50, 72 if case == "strided" else 64, dtype=dtype)[..., :64]
    weight, bias = rand(64, 4, dtype=dtype), rand(64, dtype=dtype)
    kwargs = {}
    if case == "state":
        kwargs["state"] = rand(2, 64, 3, dtype=dtype)
    if case == "packed":
        kwargs["seq_idx"] = (torch.arange(50, device="cuda") // 7).expand(2, -1)
    y = kernels.causal_convolution(x, weight, bias, **kwargs)
    expected = kernels.causal_convolution_reference(
        x.double(), weight.double(), bias.double(), **{k: v.double() if k == "state" else v for k, v in kwargs.items()}
    )
    assert y.dtype == dtype and error(y, expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_one_step(dims, dtype):
    x, dt, A, B, C, D = scan_inputs(dims, dtype)
    dt, dt_bias = dt.to(dtype), rand(8, dtype=torch.float32)
    state = rand(2, 8, 64, 128, dtype=torch.float32)
    exact_state = state.double()
    y = kernels.scan_step(state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, dt_bias)
    expected = kernels.scan_step_reference(
        exact_state, *(t.double() for t in (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, dt_bias))
    )
    assert error(y, expected) < LIMITS[dtype] and error(state, exact_state) < LIMITS[dtype]

    tail, weight, bias = rand(2, 64, 3, dtype=dtype), rand(64, 4, dtype=dtype), rand(64, dtype=dtype)
    exact_tail, new = tail.double(), rand(2, 64, dtype=dtype)
    y = kernels.convolution_step(new, tail, weight, bias)
    expected = kernels.convolution_step_reference(new.double(), exact_tail, weight.double(), bias.double())
    assert error(y, expected) < LIMITS[dtype] and torch.equal(tail.double(), exact_tail)


def test_a_step_limit_is_kept_on_cuda(dims):
    x, dt, A, B, C, D = scan_inputs(dims, torch.float32)
    dt_bias, limit = rand(8, dtype=torch.float32), (0.3, 0.5)
    state, twin = (torch.zeros(2, 8, 64, 128, device="cuda") for _ in range(2))
    y = kernels.scan_step(state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, dt_bias, limit)
    expected = kernels.scan_step_reference(twin, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, dt_bias, limit)
    assert error(y, expected) < 1e-5


@pytest.mark.parametrize("dtype", GRADIENT_LIMITS)
@pytest.mark.parametrize("packed", [False, True])
def test_fused_layer(dims, dtype, packed):
    """Forward and every gradient of the fused layer against the parts in float64."""
    b, length, h, p, n = dims.values()
    inner, channels = h * p, h * p + 2 * n
    seq_idx = (torch.arange(length, device="cuda") // 70).expand(b, -1) if packed else None
    names = ["zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight"]
    inputs = [
        rand(b, length, inner + channels + h, dtype=dtype),
        rand(channels, 4, dtype=dtype) / 2,
        rand(channels, dtype=dtype),
        rand(h, dtype=torch.float32) - 4,
        -rand(h, dtype=torch.float32, low=1, high=16),
        rand(h, dtype=torch.float32),
        rand(inner, dtype=dtype),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    y = kernels.fused_layer(*inputs, 1e-5, p, 1, 256, seq_idx=seq_idx)
    assert y is not None

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight = exact
    z, xbc, dt = zxbcdt.split([inner, channels, h], dim=-1)
    xbc = kernels.causal_convolution_reference(xbc, conv_weight, conv_bias, seq_idx=seq_idx)
    x, B, C = xbc.split([inner, n, n], dim=-1)
    expected, _ = kernels.scan_reference(
        x.unflatten(-1, (h, p)),
        kernels.discretise(dt, dt_bias),
        A,
        B.unsqueeze(2),
        C.unsqueeze(2),
        D,
        seq_idx=seq_idx,
    )
    expected = kernels.gated_rms_norm(expected.flatten(2), z, norm_weight, 1e-5, 1)
    assert error(y, expected) < LIMITS[dtype]

    weights = rand(b, length, inner, dtype=torch.float32)
    ours = torch.autograd.grad((y * weights).sum(), inputs)
    truth = torch.autograd.grad((expected * weights).sum(), exact)
    for name, a, b in zip(names, ours, truth):
        assert error(a, b) < GRADIENT_LIMITS[dtype], (name, error(a, b))


def test_float64_takes_the_torch_twin_on_cuda(dims):
    inputs = [tensor.double() for tensor in scan_inputs(dims, torch.float32)]
    y, _ = kernels.scan(*inputs)
    assert y.dtype == torch.float64


def test_cpu_tensors_work_while_kernels_are_installed(dims):
    inputs = [tensor.cpu() for tensor in scan_inputs(dims, torch.float32)]
    y, _ = kernels.scan(*inputs)
    assert y.device.type == "cpu"
