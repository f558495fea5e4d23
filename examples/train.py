"""Trains SAM by a recipe: all of its stages in order (after `pip install .`).

    python examples/train.py --recipe sam_lab/training/recipes/E6.yaml --output runs/E6 --set data_root=/data \
        --audio-root /data/sls/audioset/dave_version/audio=/mnt/audioset

Killed at any point and started again with the same command, it goes on and computes the same losses. `--dry-run` says
what the stages would train, for how many steps, tokens and hours, without data, and without the model where the recipe
says its `size`. The recipes are explained in
`sam_lab/training/recipes/ltu.yaml`, their keys in `sam_lab/training/recipe.py`, what is written in `sam_lab/training/stages.py`. Any key can be
changed: `--set stages.2.learning_rate=5e-5`.

Pushing what the last stage has left, the whole model, or the adapter alone (trained with `--set base_id=YOU/BASE`, so
that it names a base that others have):

    python -c "from sam_alm import *; SamForConditionalGeneration.from_pretrained('runs/E6/stage-4/last', dtype='auto').push_to_hub('YOU/MODEL')"
    python -c "from sam_alm import *; SamProcessor.from_pretrained('runs/E6/stage-4/last').push_to_hub('YOU/MODEL')"
    hf upload YOU/ADAPTER runs/E6/stage-4/adapter

On two GPUs, with the same global batch and so the same steps:

    accelerate launch --config_file examples/accelerate_two_gpu_bf16.yaml examples/train.py --recipe ... --output ...

Training the whole of a 2.7B language model (a recipe with `lora_rank: 0`), its states divided over the GPUs:

    accelerate launch --config_file examples/accelerate_fsdp_bf16.yaml examples/train.py --recipe ... --output ...

On several machines that see the same folders, on each of them with its own `--machine_rank`; this has not been run:

    accelerate launch --config_file examples/accelerate_two_gpu_bf16.yaml --num_machines 2 --num_processes 4 \
        --machine_rank 0 --main_process_ip HOST --main_process_port 29500 examples/train.py --recipe ... --output ...
"""

import argparse
import os
import sys
from pathlib import Path

# Tuning the kernels takes minutes; a run that goes on finds what it found before, and so computes the same.
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installing it
from sam_lab.common.processes import end_processes
from sam_lab.training.curriculum import run_recipe
from sam_lab.training.plan import plan, plan_text
from sam_lab.training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, such as sam_lab/training/recipes/E6.yaml")
    parser.add_argument("--output", help="the folder for everything that is trained")
    parser.add_argument("--stage", type=int, help="run this stage only; the one before must be finished")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key; repeatable")
    parser.add_argument(
        "--audio-root", action="append", default=[], metavar="FROM=TO", help="where a folder of audio is; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--pairs-per-second", type=float, help="measured speed, for the hours of --dry-run")
    args = parser.parse_args()
    if args.output is None and not args.dry_run:
        parser.error("--output: a folder is needed")
    overrides = list(args.set)
    if args.audio_root:
        overrides.append(f"audio_roots={args.audio_root!r}")
    try:
        recipe = load_recipe(args.recipe, overrides)
        if args.dry_run:
            output = None if args.output is None else Path(args.output)
            print(plan_text(plan(recipe, args.pairs_per_second, args.stage, output)))
        else:
            run_recipe(recipe, args.output, args.stage)
            end_processes()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
