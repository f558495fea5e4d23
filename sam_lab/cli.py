"""The command line: `sam-alm COMMAND ...`, the same as `python -m sam_alm COMMAND ...`.

A command's work is `run(arguments) -> int` of the module of its name in `sam_lab.commands`, which is imported after
parsing: help and wrong usage answer without torch and transformers.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from sam_lab.common.names import print_any_name
from sam_lab.parsers import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv (`list[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: The exit status: 0, or 1 for an error, which is printed to stderr.

    Raises:
        SystemExit: Wrong usage (status 2), `--help` and `--version` (status 0).
    """
    if argv is None:
        _read_names_as_utf8()
    print_any_name()
    command, arguments = parse(argv)
    try:
        status = importlib.import_module(f"sam_lab.commands.{command}").run(arguments)
        _end_processes()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of `sam-alm describe ... | head` has ended: not an error of this program
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"sam-alm: {error}", file=sys.stderr)
        return 1


def _read_names_as_utf8() -> None:
    """Starts anew in Python's UTF-8 mode where names would be ASCII: in the locale C with that mode switched off.

    Tables and results hold names as text, and there an é of theirs could not be opened.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode and hasattr(os, "execv"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _end_processes() -> None:
    """Ends what several processes of a command share.

    All at once: a process that leaves with its connections open may abort (gloo's threads outlive Python), upon which
    torchrun ends the others, which may still be writing.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        importlib.import_module("sam_lab.common.processes").end_processes()


if __name__ == "__main__":
    sys.exit(main())
