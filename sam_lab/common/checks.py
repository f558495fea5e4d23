"""Checks of arguments."""

from typing import Any

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
    try:
        SamConfig.from_pretrained(model)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"--model: got {model!r}, expected a SAM checkpoint: {reason}") from None
