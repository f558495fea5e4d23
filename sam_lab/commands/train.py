"""`sam-alm train`: trains by a recipe."""

import argparse
import os
from pathlib import Path

# Tuning the kernels takes minutes; a run that resumes finds the same choices, and so computes the same numbers.
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")

from sam_lab.common.text_tables import text_table
from sam_lab.training.curriculum import run_recipe
from sam_lab.training.plan import plan, plan_text
from sam_lab.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "training" / "recipes"


def recipe_names() -> dict[str, str]:
    """The package's recipes: the first comment line of each by its name, E2 before E10."""
    files = sorted(RECIPES.glob("*.yaml"), key=lambda file: (len(file.stem), file.stem))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files}


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one of the package."""
    path = Path(recipe)
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    if recipe not in recipe_names():
        raise ValueError(f"recipe: got {recipe!r}, expected one of {', '.join(recipe_names())}, or a YAML file.")
    return RECIPES / f"{recipe}.yaml"


def run(arguments: argparse.Namespace) -> int:
    """Trains, plans the training (`--dry-run`) or lists the recipes."""
    if arguments.list:
        print(text_table(list(recipe_names().items()), align="left"))
        return 0
    roots = [f"audio_roots={arguments.audio_root!r}"] if arguments.audio_root else []
    recipe = load_recipe(recipe_path(arguments.recipe), [*arguments.set, *roots])
    if arguments.dry_run:
        output = None if arguments.output is None else Path(arguments.output)
        print(plan_text(plan(recipe, arguments.pairs_per_second, arguments.stage, output)))
    else:
        run_recipe(recipe, arguments.output, arguments.stage)
    return 0
