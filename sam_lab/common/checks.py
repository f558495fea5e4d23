"""Checks of arguments."""

from typing import Any


def check_integers(least: int, **values: Any) -> None:
    """Raises `ValueError` for the first value that is no integer of at least `least`; `None` passes.
    The values are passed by the names of their arguments."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}.")
