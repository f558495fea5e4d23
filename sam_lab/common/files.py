"""Files and folders that appear whole or not at all, and locks on folders."""

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

AUDIO_SUFFIXES = (".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm")

# -- Writing ------------------------------------------------------------------------------------------------------


def unfinished(path: str | os.PathLike) -> Path:
    """The path where a file or folder is written before it is renamed: `NAME.unfinished` beside it."""
    path = Path(path)
    return path.with_name(f"{path.name}.unfinished")


@contextmanager
def written(path: str | os.PathLike, folder: bool = False) -> Iterator[Path]:
    """Yields a place to write a file or a folder, which replaces `path` when the block ends without an error.

    A reader of `path` sees the whole old content or the whole new: the new content is written beside it, flushed to
    disk and renamed. (A folder that is replaced is absent between two renames; the next writing puts back what a kill
    in that moment left as `NAME.replaced`.) What else remains of a killed run is deleted first. Only one process may
    write a path at a time; [`locked`] excludes others.

    Args:
        path (`str` or `os.PathLike`): The file or folder to write; its parent must exist.
        folder (`bool`, *optional*, defaults to `False`): Write a folder; an empty one is created.

    Yields:
        `Path`: [`unfinished`] of `path`.
    """
    path, place = Path(path), unfinished(path)
    discard(place)
    if _replaced(path).exists() and not path.exists():
        os.replace(_replaced(path), path)
    discard(_replaced(path))
    if folder:
        place.mkdir(parents=True)
    try:
        yield place
        publish(path)
    except BaseException:
        discard(place)
        raise


def _replaced(path: Path) -> Path:
    """Where an existing folder is moved until it is deleted."""
    return path.with_name(f"{path.name}.replaced")


def publish(path: Path) -> None:
    """Moves the complete file or folder at [`unfinished`] of `path` to `path`."""
    place = unfinished(path)
    flush(place)
    if path.is_dir():
        os.replace(path, _replaced(path))
    os.replace(place, path)
    discard(_replaced(path))


def flush(path: Path) -> None:
    """Waits until a file, or all files of a folder, are on the disk."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with open(file, "rb+") as handle:  # Windows flushes only what is open for writing
            os.fsync(handle.fileno())


def discard(path: Path) -> None:
    """Deletes a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with written(path) as place:
        place.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | os.PathLike) -> None:
    """Writes a JSON file, whole or not at all.

    Half a character, by which Python stands for a byte of a file's name that is no text, becomes JSON's escape.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_text(text.encode("utf-8", "backslashreplace").decode(), path)


# -- Locks --------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, seconds: float | None = None, name: str = ".lock") -> Iterator[None]:
    """Excludes other processes that use the same lock from a folder.

    The lock ends with the process that holds it, even if that is killed. Systems without `fcntl` (Windows) have no
    such lock: a warning is issued, and a second process is not excluded.

    Args:
        folder (`Path`): An existing folder.
        seconds (`float`, *optional*): How long to wait for another process; without a limit by default.
        name (`str`, *optional*, defaults to `".lock"`): The lock's file, deleted at the end.

    Raises:
        TimeoutError: Another process holds the lock longer.
    """
    if fcntl is None:
        warnings.warn(f"{folder}: not locked, since this system has no fcntl; start one process only.", stacklevel=3)
        yield
        return
    path, begin = folder / name, time.monotonic()
    while True:
        lock = open(path, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break  # else the previous process has deleted it
            lock.close()
        except BlockingIOError as error:
            lock.close()
            if seconds is not None and time.monotonic() - begin > seconds:
                raise TimeoutError(f"{folder}: another process is writing there.") from error
            time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # a process that this one has started may keep the file open
        lock.close()
