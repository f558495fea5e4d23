"""Files and folders that appear whole or not at all, and locks on folders."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, seconds: float | None = None, name: str = ".lock") -> Iterator[None]:
    """Keeps other processes out of a folder that is there, which also hold its lock while they write.

    Args:
        folder (`Path`): The folder.
        seconds (`float`, *optional*): How long to wait for another process; by default until it is done.
        name (`str`, *optional*, defaults to `".lock"`): The file that is there meanwhile.

    Raises:
        TimeoutError: Another process holds it longer.
    """
    if fcntl is None:
        yield
        return
    path, begin = folder / name, time.monotonic()
    while True:
        lock = open(path, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break  # else the one before has deleted it
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


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def write_json(value: Any, path: Path) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    unfinished = _unfinished(path)
    unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def save_state(state: dict[str, Any], file: Path) -> None:
    """`torch.save` that a kill does not break: the file is the one before until the new one is whole."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, file)


# ---------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------


class _written:
    """A folder that appears when it is complete: written beside its place, then renamed over what was there."""

    def __init__(self, folder: Path):
        self.folder, self.partial = folder, folder.with_name(f".{folder.name}.partial")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.partial, self.folder)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)
