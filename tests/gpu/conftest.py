import importlib
import math
import os
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.pop("SAM_KERNELS", None)  # the tests choose themselves


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def short_autotuning():
    """Leaves each Triton kernel its two smallest configurations: here numbers are checked, not speed, and trying them
    all takes minutes a data type."""
    try:
        import mamba_ssm.ops.triton as package
    except ImportError:
        return
    for module in pkgutil.iter_modules(package.__path__):
        try:
            content = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        except ImportError:
            continue
        for kernel in content.values():
            if len(configs := getattr(kernel, "configs", [])) > 2:
                kernel.configs = sorted(configs, key=lambda config: math.prod(config.kwargs.values() or [1]))[:2]


@pytest.fixture
def count_fused(monkeypatch):
    """Grows with each call of the fused layer."""
    import kernels_sam

    calls = []
    original = kernels_sam.mamba_split_conv1d_scan_combined
    monkeypatch.setattr(
        kernels_sam, "mamba_split_conv1d_scan_combined", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    return calls
