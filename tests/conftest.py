"""The tests import the checkout's modules, however pytest was started; what may be skipped; and how they run scripts
and commands."""

import os
import re
import sys
from pathlib import Path

import pytest
from shared import SHARED, NotShared, shared

sys.path.insert(0, str(Path(__file__).parents[1]))


# -- Skipping: with CI=true, a test that is skipped fails, but for a GPU, or for shared data where there is no ../shared.


def pytest_runtest_setup(item):
    for mark in item.iter_markers("shared"):
        for path in mark.args:
            shared(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    lacks_shared = not SHARED.is_dir() and call.excinfo is not None and call.excinfo.errisinstance(NotShared)
    if report.skipped and not lacks_shared and item.get_closest_marker("gpu") is None:
        _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped:
        _fail_in_ci(report)
    return report


def _fail_in_ci(report):
    if os.environ.get("CI") != "true":
        return
    reason = vars(report).pop("wasxfail", None) or report.longrepr[2]
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: not run ({reason}); with CI=true only what needs a GPU may be skipped"


# -- Scripts and commands -----------------------------------------------------------------------------------------


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
