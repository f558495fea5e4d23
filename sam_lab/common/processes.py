"""The processes that work together under accelerate or torchrun."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState

PATIENCE = timedelta(hours=4)  # for processes that wait while the first converts data, merges or generates


def processes() -> PartialState:
    """This process among those that train together; the first call connects them."""
    options: dict[str, Any] = {} if torch.cuda.is_available() else {"cpu": True}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options.update({"timeout": PATIENCE}, **({"backend": "gloo"} if "cpu" in options else {}))
    return PartialState(**options)


def say(text: str) -> None:
    """Prints a line, in the first process only."""
    if processes().is_main_process:  # PartialState.print prints once per machine
        print(text, flush=True)


def end_processes() -> None:
    """Closes the connections that [`processes`] or Trainer has opened; a script calls it at its end.

    All processes close together: one that exits with open connections may abort (gloo's threads outlive Python), and
    torchrun then kills the others, which may still be writing.
    """
    state = processes()
    state.wait_for_everyone()
    state.destroy_process_group()
