"""The tests import the checkout's modules, however pytest was started; and how they run scripts and commands."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def run(monkeypatch):
    """Runs a script's `main` with a command line."""

    def run_main(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return run_main


@pytest.fixture
def command(capsys):
    """Runs a command of `sam-alm`, and expects its exit status, 0 by default, and an error that matches."""
    from sam_lab.cli import main

    def run_command(*words, status=0, error=None):
        if error is not None:
            capsys.readouterr()
        try:
            found = main(list(map(str, words)))
        except SystemExit as end:
            found = end.code
        if error is None:
            assert found == status, capsys.readouterr().err
            return
        said = capsys.readouterr().err
        assert found == (status or 1) and re.search(error, said, re.MULTILINE), said
        assert "Traceback" not in said

    return run_command
