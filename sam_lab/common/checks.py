"""Checks of arguments."""

from pathlib import Path
from typing import Any

import torch

from configuration_sam import SamConfig


def check_integers(least: int, **values: Any) -> None:
    """Raises `ValueError` for the first value that is no integer of at least `least`; `None` passes.
    The values are passed by the names of their arguments."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}.")


def check_model(model: str) -> None:
    """Raises `FileNotFoundError` unless `--model` is a SAM checkpoint.

    Reads the configuration only: without a network each file of the processor would be tried for half a minute.
    """
    if Path(model).is_dir() and not Path(model, "config.json").is_file():  # transformers would take the defaults
        raise FileNotFoundError(f"--model: got {model!r}, expected a SAM checkpoint: it has no config.json.")
    try:
        SamConfig.from_pretrained(model)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"--model: got {model!r}, expected a SAM checkpoint: {reason}") from None


def choose_device(name: str | None) -> torch.device:
    """The device that `--device` names, by default cuda where available, else the CPU.

    Raises:
        ValueError: torch does not know the name, or cannot use the device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: got {name!r}, which torch cannot use: {str(error).splitlines()[0]}") from error
    return device


def failure_reason(error: Exception) -> str:
    """Why something failed, in one line: the message, after the kind of error where that says more."""
    message = " ".join(str(error).split())
    if isinstance(error, (OSError, ValueError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
