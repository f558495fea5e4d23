"""One clip or question of an evaluation task, and how its audio file is found."""

import os
from dataclasses import dataclass, field

from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.common.names import name_path

AUDIO_AND_VIDEO_SUFFIXES = (*AUDIO_SUFFIXES, ".mp4")  # VGGSound is distributed as videos


@dataclass(frozen=True)
class Item:
    """One clip of a task, or one question.

    Args:
        id (`str`): Unique within the task: the name of the file or of the question.
        audio (`str`, *optional*): Path of the audio file; `None` if it does not exist.
        prompt (`str`): The prompt, without the template.
        references (`tuple[str]`): The true labels as [`Task`] spells them, the human captions, or the true choice.
        choices (`tuple[str]`, *optional*): The choices of a multiple-choice question.
        groups (`dict[str, str]`, *optional*): Groups that scores are broken down by, such as `{"fold": "4"}`.
    """

    id: str
    audio: str | None
    prompt: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


def audio_stem(name: str) -> str:
    """A file's name without folder and suffix. Only an audio suffix is removed, since names may contain dots."""
    name = name.rsplit("/", 1)[-1]
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in AUDIO_AND_VIDEO_SUFFIXES else name


def existing_path(path: str) -> str | None:
    """The file itself, else the first existing file with another audio suffix (FLAC instead of WAV), else `None`."""
    root = os.path.join(os.path.dirname(path), audio_stem(path))
    paths = map(name_path, (path, *(root + suffix for suffix in AUDIO_AND_VIDEO_SUFFIXES)))
    return next((file for file in paths if os.path.isfile(file)), None)
