"""What the options of several commands are and take."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

# What modules that are slow to import define; tests/commands/test_cli.py compares both.
CONNECTORS = ("concatenation", "time_major", "frequency_major")
DTYPES = ("float32", "bfloat16", "float16")
METRICS = {  # of each task of `evaluate`
    **dict.fromkeys(("esc50", "vocalsound", "tut2017", "beijing_opera", "vggsound"), "accuracy"),
    "dcase2017": "micro_f1",
    **dict.fromkeys(("fsd50k", "audioset"), "map"),
    **dict.fromkeys(("audiocaps", "clotho"), "caption"),
    **dict.fromkeys(("mmau_mini", "mmau"), "mmau"),
    "questions": "questions",
}
STYLES = ("reasonaqa", "audio_flamingo", "plain")
ANSWER_FORM = "{Label}"
FORMATS = ("parquet", "jsonl")
READINGS = ("whole", "replacement")
CAPTION_RULES = ("all_open", "caption_words", "not_yes_no")
SIZES = ("130m", "780m", "2.7b")

DEFAULT = "default: %(default)s"
MODEL = "a SAM checkpoint: a directory or a Hub id"


def pair(expected: str) -> Callable[[str], str]:
    """A type of argparse: two parts with an equals sign between them."""

    def check(text: str) -> str:
        if not re.match(r"(?:[^=\\]|\\.)+=", text):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return text

    return check


def number(kind: type, least: float, most: float, expected: str) -> Callable[[str], Any]:
    """A type of argparse: numbers in a range."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return convert


positive = number(int, 1, float("inf"), "a positive integer")
not_negative = number(int, 0, float("inf"), "an integer from 0")
share = number(float, 0, 1, "a number from 0 to 1")
above_zero = number(float, sys.float_info.min, sys.float_info.max, "a positive number")
AUDIO_ROOT = {
    "type": pair("FROM=TO"),
    "action": "append",
    "default": [],
    "metavar": "FROM=TO",
    "help": "the audio folder FROM of the published paths is TO here; repeatable",
}


INCOMPLETE = {
    "choices": ("error", "keep"),
    "default": "error",
    "help": f"audio files that break off: unreadable, or keep what is there; {DEFAULT}",
}
MAX_SECONDS = {"type": above_zero, "default": 10800.0, "metavar": "S", "help": f"longest clip; {DEFAULT}, 3 hours"}


def truth(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected true or false")
    return values[text.lower()]
