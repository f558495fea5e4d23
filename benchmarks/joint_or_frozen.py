"""Is training the encoder jointly worth it? The paper's section 4.1 in miniature, on one GPU.

    python benchmarks/joint_or_frozen.py --data runs/sam-tiny --patches runs/sam-tiny/patches \
        --work runs/joint-or-frozen --output joint_or_frozen.json

From the same start (stage 0 of recipes/sam-tiny.yaml on an encoder that has only seen masked patches) it runs
recipes/joint-or-frozen.yaml with the encoder frozen and trained, at a small and a large rank, with several seeds, some
of the runs side by side, and scores each on a fold of ESC-50 that the data exclude (`make_sam_tiny.py prepare
--development`, and `--fold 3`). The stages end after a fixed time: runs side by side get fewer steps each, and
a frozen encoder gets more of them than a trained one; `--set stages.2.max_seconds=null --set stages.2.epochs=20` gives
all of them the same number. Finished runs are not repeated.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from sam_lab.common.files import write_json


def call(log: Path, *command: str) -> None:
    """Runs a command of `sam-alm`, its output into a file.

    Raises:
        RuntimeError: It failed; the message has the output's end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"SAM_KERNELS": "torch", **os.environ}  # tuning the kernels would take longer than a run
    with open(log, "a") as output:
        done = subprocess.run(
            [sys.executable, "-m", "sam_alm", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")


def run(args: argparse.Namespace, encoder: str, rank: int, seed: int) -> dict:
    """One training and its score."""
    folder = args.work / f"{encoder}-r{rank}-seed{seed}"
    score = folder / "esc50.json"
    if not score.is_file():
        changes = [f"model={args.work / 'start/stage-0/last'}", f"data_root={args.data}", f"lora_rank={rank}"]
        changes += [f"seed={seed}", *args.set]
        if encoder == "frozen":
            changes += ["joint_encoder=false", "stages.2.trains=[connector, lora]"]
            changes += ["stages.2.encoder_learning_rate=null"]
        options = [word for change in changes for word in ("--set", change)]
        call(folder / "log.txt", "train", "joint-or-frozen", "--output", str(folder), *options)
        where = ["--model", str(folder / "stage-2" / "last"), "--data", str(args.data / "esc50")]
        where += ["--fold", str(args.fold), "--batch-size", "128", "--output", str(score)]
        call(folder / "log.txt", "evaluate", "esc50", *where)
    result = json.loads(score.read_text())
    finished = json.loads((folder / "stage-2" / "finished.json").read_text())
    return {
        "encoder": encoder,
        "rank": rank,
        "seed": seed,
        **{key: finished[key] for key in ("steps", "seconds")},
        **{key: result[key] for key in ("value", "count")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what make_sam_tiny.py prepare has written")
    parser.add_argument("--patches", required=True, help="the checkpoint of pretrain_encoder.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--fold", type=int, default=3, help="of ESC-50, to score on (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=6, help="runs side by side (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe's keys")
    parser.add_argument("--start-set", action="append", default=[], metavar="KEY=VALUE", help="those of stage 0")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()

    changes = [f"model={args.patches}", f"data_root={args.data}", *args.start_set]
    options = [word for change in changes for word in ("--set", change)]
    output = ["--output", str(args.work / "start")]
    call(args.work / "start.txt", "train", "sam-tiny", *output, "--stage", "0", *options)

    runs = list(itertools.product(("frozen", "joint"), args.ranks, args.seeds))
    with ThreadPoolExecutor(args.at_once) as pool:
        results = list(tqdm(pool.map(lambda each: run(args, *each), runs), total=len(runs), desc="runs", unit="run"))
    table = []
    print("encoder  rank   mean    sd  seeds")
    for encoder, rank in itertools.product(("frozen", "joint"), args.ranks):
        values = [each["value"] for each in results if (each["encoder"], each["rank"]) == (encoder, rank)]
        spread = statistics.stdev(values) if len(values) > 1 else None
        table.append({"encoder": encoder, "rank": rank, "mean": statistics.mean(values), "sd": spread})
        shown = "    -" if spread is None else f"{spread:5.1%}"
        print(f"{encoder:8} {rank:4} {statistics.mean(values):6.1%} {shown}  {', '.join(f'{v:.1%}' for v in values)}")
    write_json({"fold": args.fold, "table": table, "runs": results}, args.output)


if __name__ == "__main__":
    main()
