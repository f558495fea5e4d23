"""`sam-alm train`: trains by a recipe."""

import argparse
import os
from pathlib import Path

# Tuning the kernels takes minutes; a run that resumes finds the same choices, and so computes the same numbers.
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")

from sam_lab.training.curriculum import run_recipe
from sam_lab.training.plan import plan, plan_text
from sam_lab.training.recipe import load_recipe


def run(arguments: argparse.Namespace) -> int:
    """Trains, or plans the training (`--dry-run`)."""
    roots = [f"audio_roots={arguments.audio_root!r}"] if arguments.audio_root else []
    recipe = load_recipe(arguments.recipe, [*arguments.set, *roots])
    if arguments.dry_run:
        output = None if arguments.output is None else Path(arguments.output)
        print(plan_text(plan(recipe, arguments.pairs_per_second, arguments.stage, output)))
    else:
        run_recipe(recipe, arguments.output, arguments.stage)
    return 0
