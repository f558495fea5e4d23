"""What some tests need beside the checkout: `../shared` with sounds, texts, the paper's tables and SPICE's jars."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(os.environ.get("SAM_SHARED_DATA", SHARED / "data"))
REFERENCE = Path(os.environ.get("SAM_SHARED_REFERENCE", SHARED / "reference"))
JARS = Path(os.environ.get("SAM_SPICE_JARS", SHARED / "jars"))

SOUNDS = DATA / "sounds"
NEOX = DATA / "tokenizer" / "gpt-neox-20b.json"
PAPER_TABLES = REFERENCE / "paper-tables.json"
MMAU_MINI = DATA / "text" / "bench" / "mmau-test-mini.json"


class NotShared(pytest.skip.Exception):
    """Skips a test for lack of shared data: the one reason, besides a GPU, that CI may accept (see conftest.py)."""


def shared(path: Path) -> Path:
    """The path, or the end of the test that needs it."""
    if not path.exists():
        raise NotShared(f"{path} is not there; set SAM_SHARED_DATA, SAM_SHARED_REFERENCE or SAM_SPICE_JARS")
    return path


needs = pytest.mark.shared

# Whatever importing it raises: ImportError without the package, RuntimeError or OSError without a library that it fits.
NO_TORCHCODEC = "torchcodec, or the shared libraries of FFmpeg or torch that it needs, cannot be loaded"
