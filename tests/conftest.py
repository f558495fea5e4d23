"""The tests import the checkout's modules, however pytest was started; and how they run an example."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def run(monkeypatch):
    """Runs an example's `main` with a command line."""

    def run_main(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return run_main
