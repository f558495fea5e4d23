"""The parsers of all commands, and the conflicts between their options. Nothing here is slow to import."""

import argparse
import importlib.util
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from sam_lab.parsers import evaluation, training, using


def parse(argv: Sequence[str] | None = None) -> tuple[str, argparse.Namespace]:
    """The name of a command and its checked arguments.

    Args:
        argv (`list[str]`, *optional*): The arguments; those of the process by default.

    Raises:
        SystemExit: Wrong usage (status 2), `--help` and `--version` (status 0).
    """
    parser = argparse.ArgumentParser(prog="sam-alm", description="SAM, the Mamba-2 audio-language model.")
    parser.add_argument(
        "--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, add_options in COMMANDS.items():
        text = inspect.cleandoc(add_options.__doc__ or "")
        form = argparse.RawDescriptionHelpFormatter
        add_options(commands.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=form))
    arguments, rest = parser.parse_known_args(argv)
    command = arguments.command
    del arguments.command
    if command == "finetune":
        arguments.training = rest
    elif rest:
        commands.choices[command].error(f"unrecognized arguments: {' '.join(rest)}")
    if command in CHECKS:
        CHECKS[command](commands.choices[command], arguments)
    return command, arguments


class _Version(argparse.Action):
    def __call__(self, parser, *unused):
        file = importlib.util.find_spec("configuration_sam").origin  # not imported: it needs transformers
        version = re.search(r'^__version__ = "(.+)"$', Path(file).read_text(encoding="utf-8"), re.MULTILINE)
        print(f"sam-alm {version.group(1)}")
        parser.exit()


COMMANDS = {  # in the order of the help; the docstrings are the commands' descriptions
    "describe": using.describe,
    "convert": using.convert,
    "env": using.env,
    "finetune": training.finetune,
    "train": training.train,
    "evaluate": evaluation.evaluate,
    "caption": using.caption,
    "analyze": evaluation.analyze,
    "tables": evaluation.tables,
    "mix": training.mix,
    "benchmark": using.benchmark,
}
# Conflicts between the options of a command.
CHECKS = {
    "finetune": training.check_finetune,
    "train": training.check_train,
    "evaluate": evaluation.check_evaluate,
}
