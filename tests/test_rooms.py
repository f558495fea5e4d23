"""Imports point one way: from the commands down to the model, never back, without a circle, wherever they stand."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each line may import the lines above it, and within a line what does not lead back.
FLOORS = (
    ("hub_sam",),
    ("configuration_sam", "films_sam", "containers_sam", "sound_files_sam", "checks_sam", "weights_sam", "audio_sam"),
    ("kernels_sam", "collator_sam", "chat_sam", "processing_sam"),
    ("mamba_sam",),
    ("generation_sam",),
    ("modeling_sam",),
    ("sam_lab.common",),
    ("sam_lab.data",),
    ("sam_lab.checkpoint_files", "sam_lab.conversion", "sam_lab.annotation", "sam_lab.training", "sam_lab.evaluation"),
    ("sam_lab.timing",),
    ("sam_lab.paper",),
    ("sam_lab.commands",),
    ("sam_lab.parsers",),
    ("sam_lab.cli",),
    ("sam_alm",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = [*ROOT.glob("*_sam.py"), ROOT / "sam_alm.py", *(ROOT / "sam_lab").rglob("*.py")]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in sorted(FILES)
}
TRAVELLING = [name for name in MODULES if name.endswith("_sam")]


def imported(file: Path) -> set[str]:
    """The project's modules that a file imports, at its top, in a function, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {item.value for item in node.args if isinstance(item, ast.Constant)}
    return found & MODULES.keys()


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


ARROWS = {module: imported(file) - {module} for module, file in MODULES.items()}


def test_there_are_arrows():
    assert len(MODULES) > 50 and sum(map(len, ARROWS.values())) > 150
    assert {"sam_lab.training", "sam_lab.evaluation"} <= {room(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_back(module):
    if module == "sam_lab":
        assert not ARROWS[module]
        return
    back = [name for name in ARROWS[module] if name != "sam_lab" and FLOOR[room(name)] > FLOOR[room(module)]]
    assert not back, f"{module} imports {', '.join(back)}, which may import it"


def test_there_is_no_circle_of_modules_or_rooms():
    between: dict[str, set[str]] = {}
    for module, names in ARROWS.items():
        between.setdefault(room(module), set()).update({room(name) for name in names} - {room(module)})
    for graph in (ARROWS, between):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_the_model_knows_nothing_of_the_lab_and_the_hub_nothing_of_torch():
    for module in TRAVELLING:
        assert not [name for name in ARROWS[module] if not name.endswith("_sam")]
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(MODULES["hub_sam"].read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & {"torch", "accelerate", "peft"}


def test_only_the_public_door_has_a_list_of_names():
    listed = [
        module
        for module, file in MODULES.items()
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    ]
    assert listed == ["sam_alm"]


def test_modules_can_be_read_in_one_sitting():
    files = [*MODULES.values(), *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {str(file): count for file in files if (count := len(file.read_text(encoding="utf-8").splitlines())) > 600}
    assert not long


@pytest.mark.parametrize("module", MODULES)
def test_no_module_uses_the_privates_of_another(module):
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or node.module in MODULES)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not private
