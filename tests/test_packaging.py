"""What `pip install` gives, and what the README promises."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

import sam_alm
from configuration_sam import __version__
from sam_lab import parsers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
MODULES = SETUP["options"]["py_modules"].split()

PUBLIC = [
    "CONNECTORS",
    "LANGUAGE_MODEL_SIZES",
    "SamAudioConfig",
    "SamAudioLanguageProcessor",
    "SamAudioModel",
    "SamCache",
    "SamConfig",
    "SamConnector",
    "SamDataCollator",
    "SamFeatureExtractor",
    "SamForConditionalGeneration",
    "SamModel",
    "SamProcessor",
    "__version__",
    "audio_slot_pattern",
    "load_audio",
    "mamba2_config",
]


def test_the_public_names_are_frozen():
    assert sorted(sam_alm.__all__) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(sam_alm, name)] == []


def test_every_module_is_packaged_and_there():
    assert sorted(MODULES) == sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "setup")


def test_versions_are_written_once():
    assert SETUP["metadata"]["version"] == "attr: configuration_sam.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_every_floor_has_its_reason():
    """Each requirement with a floor is named in the comment above the list."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    reasons = re.findall(r"^#   ([\w-]+) [\d.]+ +\S", text, re.MULTILINE)
    floors = re.findall(r"^([\w-]+)>=", SETUP["options"]["install_requires"], re.MULTILINE)
    assert sorted(set(floors) - set(reasons)) == ["numpy"]  # soxr's reason names it


@pytest.mark.parametrize(
    "name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "PAPER.md", "REPRODUCE.md", "Makefile", ".ci/run"]
)
def test_the_papers_of_a_project_are_there(name):
    assert (ROOT / name).stat().st_size > 0


def test_the_licence_is_what_the_metadata_says():
    assert SETUP["metadata"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_ci_is_executable_and_checks_before_it_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make quality", "make test"]


# -- The README ---------------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_in_the_readme_parses_and_imports_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "sh"])
def test_shell_in_the_readme_parses_and_names_what_exists(code):
    assert subprocess.run(["bash", "-n", "-c", code]).returncode == 0
    commands = [line.split("#")[0] for line in code.replace("\\\n", " ").splitlines()]
    for command in commands:
        words = command.split()
        if words[:1] == ["sam-alm"]:
            assert words[2:] == ["--list"] or parsers.parse(words[1:])
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def test_the_readme_links_to_what_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_example_is_eight_lines():
    first = next(code for language, code in BLOCKS if language == "python")
    assert len([line for line in first.splitlines() if line]) == 8


# -- Distributions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed():
    """Where pip installed the package in this environment; `make test` does. (The checkout may hold metadata too.)"""
    site = sysconfig.get_path("purelib")
    if not list(importlib.metadata.distributions(name="sam-alm", path=[site])):
        pytest.skip("sam-alm is not installed in this environment")
    return Path(site).resolve()


@pytest.mark.slow
def test_the_installed_package_works_away_from_the_checkout(installed, tmp_path):
    code = f"import {', '.join(MODULES)}; print(*[m.__file__ for m in ({', '.join(MODULES)})], sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert {Path(line).resolve().parent for line in result.stdout.splitlines()} == {installed}


def test_only_the_model_and_the_lab_are_installed(installed):
    (package,) = importlib.metadata.distributions(name="sam-alm", path=[str(installed)])
    files = {str(file) for file in package.files if "__pycache__" not in str(file)}
    places = {file.split("/")[0] for file in files}
    expected = {f"{module}.py" for module in MODULES} | {"sam_lab", f"sam_alm-{__version__}.dist-info", ".."}
    assert places == expected
    checkout = [file for file in (ROOT / "sam_lab").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {file for file in files if file.startswith("sam_lab/")} == {
        str(file.relative_to(ROOT)) for file in checkout
    }
    assert [file for file in files if file.startswith("..")] == ["../../../bin/sam-alm"]
    assert sum(file.startswith("sam_lab/training/recipes/") for file in files) >= 25


@pytest.mark.slow
def test_the_command_is_installed(installed, tmp_path):
    command = Path(sys.executable).parent / "sam-alm"
    result = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == f"sam-alm {__version__}\n", result.stderr
    result = subprocess.run([command, "describe", "x.wav"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "--model" in result.stderr


def test_the_source_distribution_leaves_weights_and_recordings_out(tmp_path):
    source = tmp_path / "source"
    (source / "examples" / "sam-tiny").mkdir(parents=True)
    (source / "examples" / "audio").mkdir()
    for name in ["setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "PAPER.md"]:
        shutil.copy(ROOT / name, source)
    for module in MODULES:
        shutil.copy(ROOT / f"{module}.py", source)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["quickstart.py", "sam-tiny/model.safetensors", "sam-tiny/README.md", "audio/dog.ogg", "audio/dog.md"]:
        (source / "examples" / name).write_text("#")
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist")]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"{module}.py" for module in MODULES} | {"LICENSE", "PAPER.md", "examples/quickstart.py"} <= names
    assert "tests/test_packaging.py" in names and "tests/tiny.py" in names
    assert [name for name in names if name.startswith(("examples/sam-tiny", "examples/audio"))] == []
