"""One clip or question of a benchmark."""

import os
from dataclasses import dataclass, field

from sam_lab.evaluation.layouts import SUFFIXES, audio_stem


@dataclass(frozen=True)
class Item:
    """One clip of a benchmark, or one question.

    Args:
        id (`str`): Unique in the benchmark: the name of the file, or that of the question.
        audio (`str`, *optional*): Path of its file; `None` where there is none.
        prompt (`str`): What is asked.
        references (`tuple[str]`): The true labels as [`Benchmark`] spells them (one or several), the captions, or the
            true choice.
        choices (`tuple[str]`, *optional*): Of a multiple-choice question.
        groups (`dict[str, str]`, *optional*): What scores are broken down by, such as `{"fold": "4"}`.
    """

    id: str
    audio: str | None
    prompt: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


def existing_path(path: str) -> str | None:
    """The file, else one that differs in the suffix alone, such as FLAC in the place of WAV."""
    root = os.path.join(os.path.dirname(path), audio_stem(path))
    return next((file for file in (path, *(root + suffix for suffix in SUFFIXES)) if os.path.isfile(file)), None)
