"""Devices as measurements see them."""

import time
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """The GPU's name, or `"cpu"`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def say(*words: Any) -> None:
    """Prints progress with the time of day."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)
