"""What may be skipped where, and that CI says what it leaves out."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest
from shared import NEOX, needs, shared

@needs(NEOX)
def test_marked():
    assert NEOX.is_file()

@pytest.fixture(scope="module")
def tokenizer():
    return shared(NEOX)

@pytest.mark.parametrize("again", [1, 2])
def test_fixture(tokenizer, again):
    assert tokenizer.is_file()

def test_passes():
    pass
"""
SKIPS = {  # the reasons sound like a GPU, and do not count
    "call": "def test_it():\n    pytest.skip('needs a GPU')\n",
    "fixture": "@pytest.fixture\ndef it():\n    pytest.skip('needs a GPU')\ndef test_it(it):\n    pass\n",
    "mark": "@pytest.mark.skipif(True, reason='needs a CUDA device')\ndef test_it():\n    pass\n",
    "import": "def test_it():\n    pytest.importorskip('no_such_package')\n",
    "xfail": "@pytest.mark.xfail(reason='a known error')\ndef test_it():\n    assert False\n",
    "module": "pytest.importorskip('no_such_package')\ndef test_it():\n    pass\n",
}


@pytest.fixture
def clone(tmp_path):
    """A checkout with our conftest files and a few tests, and no ../shared."""
    tests = tmp_path / "clone" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tests.parent)
    for name in ("conftest.py", "shared.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "test_some.py").write_text(TESTS)
    return tests.parent


def run_tests(folder, *words, ci=True):
    """The exit status, what the last line counts, and the output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SAM_", "PYTEST", "CI"))}
    environment |= {"CI": "true"} if ci else {}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error|xfailed)", last)}
    return done.returncode, counts, done.stdout


@pytest.mark.slow
def test_shared_data_may_be_missing_as_a_whole(clone):
    for ci in (False, True):
        status, counts, output = run_tests(clone, "-n", "2", ci=ci)
        assert (status, counts) == (0, {"passed": 1, "skipped": 3}), output
        assert "gpt-neox-20b.json is not there; set SAM_SHARED_DATA" in output
    place = clone.parent / "shared" / "data" / "tokenizer"
    place.mkdir(parents=True)
    assert run_tests(clone, "-n", "2", ci=False)[:2] == (0, {"passed": 1, "skipped": 3})
    status, counts, output = run_tests(clone, "-n", "2")
    assert status == 1 and counts["passed"] == 1 and "skipped" not in counts, output
    assert output.count("with CI=true only what needs a GPU may be skipped") >= 3
    (place / "gpt-neox-20b.json").write_text("{}")
    assert run_tests(clone, "-n", "2")[:2] == (0, {"passed": 4})


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_any_other_skip_fails_in_ci_alone(clone, workers):
    (clone / "tests" / "test_some.py").unlink()
    for name, code in SKIPS.items():
        (clone / "tests" / f"test_{name}.py").write_text("import pytest\n\n" + code)
    status, counts, output = run_tests(clone, "-n", workers, ci=False)
    assert (status, counts) == (0, {"skipped": 5, "xfailed": 1}), output
    status, counts, output = run_tests(clone, "-n", workers, "--continue-on-collection-errors")
    assert status == 1 and not {"passed", "skipped", "xfailed"} & counts.keys(), output
    for name in SKIPS:
        assert re.search(rf"test_{name}\.py\S*: not run \(.+\); with CI=true only", output), name


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_needs_a_gpu_is_told_by_its_marker(clone, workers):
    (clone / "tests" / "test_some.py").unlink()
    for name, code in SKIPS.items():
        if name != "module":
            code = code.replace("def test_it", "@pytest.mark.gpu\ndef test_it")
            (clone / "tests" / f"test_{name}.py").write_text("import pytest\n\n" + code)
    status, counts, output = run_tests(clone, "-n", workers)
    assert (status, counts) == (0, {"skipped": 4, "xfailed": 1}), output


@pytest.mark.slow
def test_the_tests_of_the_gpu_folder_have_the_marker():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not gpu", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5 and re.search(r"no tests collected \(\d\d+ deselected\)", done.stdout), done.stdout


# -- What CI leaves out -------------------------------------------------------------------------------------------


def test_ci_prints_what_it_does_not_run():
    script = ROOT / ".ci" / "run"
    if not (ROOT / ".ci").is_dir():
        pytest.skip("a source distribution, which has no .ci")
    code, printed = script.read_text(encoding="utf-8").split("\nNot run here:\n")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = re.findall(r"^([\w-]+):[^\n=]*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    targets = {name for name, recipe in recipes if "-m pytest" in recipe}
    assert targets == {"test", "test-quick", "test-timing", "test-floor", "gpu-test"}
    assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) == {"quality", "test"}
    left_out = targets - {"test", "test-quick"}  # test has all of test-quick
    assert set(re.findall(r"^  make ([\w-]+)  ", printed, re.MULTILINE)) == left_out
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = {re.match(r"\w+", line).group() for line in options["markers"]}
    (selected,) = re.findall(r'pytest -m "(.+)"', dict(recipes)["test"])
    assert selected == "not timing" and markers == {"slow", "timing", "gpu", "shared"}
    assert all(f"(marker {name})" in printed for name in ("timing", "gpu"))
