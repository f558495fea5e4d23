"""Trains the same recipe with one process and with two, and compares losses and speed (after `pip install .`).

    python benchmarks/two_gpu_check.py --size 130m --work runs/two --json two_gpu.json --plot two_gpu.png
    python benchmarks/two_gpu_check.py --size tiny --batch 2 --bf16-batch 2 --bf16-steps 4 --work runs/two \
        --json two_cpu.json
    python benchmarks/two_gpu_check.py --size 2.7b --fsdp --bf16-steps 6 --bf16-batch 8 --work runs/two \
        --json fsdp.json

The global batch is the same, so the losses should be equal: in float32 (dropout 0, a few steps, the largest relative
difference at most 1e-3) and, more loosely, in bf16. Two processes run on two GPUs under `accelerate launch
--config_file examples/accelerate_two_gpu_bf16.yaml`, or, without a GPU, on the CPU under torchrun. `--plot`
needs matplotlib; `--plot-only` draws a JSON file of another machine. `--fsdp` instead trains the whole model,
including its language model, divided over two GPUs by examples/accelerate_fsdp_bf16.yaml.
"""

import argparse
import csv
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from transformers import TrainerCallback

from audio_sam import load_audio
from configuration_sam import SamConfig
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.common.files import AUDIO_SUFFIXES, write_json
from sam_lab.common.processes import end_processes
from sam_lab.common.prompts import CLASSIFICATION_PROMPT
from sam_lab.training.curriculum import run_recipe
from sam_lab.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e-3  # largest relative difference of float32 losses
PROMPTS = (CLASSIFICATION_PROMPT, "What do you hear?", "Describe the sound in one sentence.")

# -- What is trained ----------------------------------------------------------------------------------------------


def write_model(folder: Path, size: str) -> None:
    """Random weights of one of the paper's sizes in bf16, with sam-tiny's tokenizer."""
    if (folder / "config.json").is_file():
        return
    processor = SamProcessor.from_pretrained(ROOT / "examples/sam-tiny")
    config = SamConfig.from_preset(
        size, audio_token_id=processor.audio_token_id, separator_token_id=processor.separator_token_id
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = SamForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # the runs need it


def write_data(folder: Path, rows: int, clips: int = 64) -> Path:
    """A table of so many rows over clips of 10 s, mixed from `examples/audio`; WAV, so that loading is not
    measured."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in (ROOT / "examples/audio").iterdir() if path.suffix in AUDIO_SUFFIXES)
    sounds = [load_audio(path) for path in files]
    names = []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(clips):
        pair = rng.choice(len(sounds), 2, replace=False)
        mixed = sum(
            gain * np.resize(np.roll(sounds[each], -index * 997), 160_000) for each, gain in zip(pair, (0.7, 0.2))
        )
        path = folder / f"{index}.wav"
        soundfile.write(path, np.clip(mixed, -1, 1), 16000, subtype="PCM_16")
        names.append((path, " and ".join(files[each].stem.replace("_", " ") for each in pair)))
    table = folder / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "prompt", "answer"])
        for row in range(rows):
            path, sound = names[rng.integers(clips)]
            words = " ".join(str(number) for number in rng.integers(10, 99, rng.integers(0, 12)))
            writer.writerow([path, PROMPTS[row % len(PROMPTS)], f"{sound} {words}"])
    return table


def batch_of(precision: str, args: argparse.Namespace) -> int:
    """Pairs of a micro-batch, half of the global batch."""
    return args.batch if precision == "fp32" else args.bf16_batch


def write_recipe(path: Path, args: argparse.Namespace, model: Path, precision: str, steps: int) -> Path:
    """A recipe of one stage, without dropout, that trains what the curriculum does; all weights with `--fsdp`."""
    batch = batch_of(precision, args)
    table = write_data(path.parent / path.stem, steps * 2 * batch)
    recipe = {
        "model": str(model),
        "data_root": str(path.parent),
        "lora_rank": 0 if args.fsdp else args.rank,
        "lora_dropout": 0.0,
        "encoder_attention": "sdpa",
        "base_dtype": "float32" if precision == "fp32" else "bfloat16",
        "precision": precision,
        "text_cutoff": None,
        "global_batch_size": 2 * batch,
        "micro_batch_size": batch,
        "warmup_steps": 0,
        "features": "device" if torch.cuda.is_available() else "workers",
        "num_workers": args.workers,
        "logging_steps": 1 if precision == "fp32" or steps < 20 else 5,  # which waits for the GPU
        "save_steps": 100_000,
        "data": {"rows": {"path": str(table), "format": "table"}},
        "stages": {
            1: {
                "name": f"{precision}, {steps} steps",
                "trains": ["connector", "encoder", "language_model" if args.fsdp else "lora"],
                "learning_rate": 1e-5 if args.fsdp else 3e-4,
                "epochs": 1,
                "data": ["rows"],
            }
        },
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


class StepTimes(TrainerCallback):
    """Writes the time at which each step ended, and the first GPU's largest memory.

    On a GPU that is the time at which the GPU reached the point, without waiting for it: Python runs ahead.
    """

    def __init__(self, path: Path):
        self.path, self.points = path, []

    def on_step_end(self, args, state, control, **kwargs):
        """Marks the place."""
        if torch.cuda.is_available():
            self.points.append(torch.cuda.Event(enable_timing=True))
            self.points[-1].record()
        else:
            self.points.append(time.perf_counter())

    def on_train_end(self, args, state, control, **kwargs):
        """Writes the first process's times: the others wait for it in every step."""
        ends, peak = self.points, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            ends = [ends[0].elapsed_time(point) / 1000 for point in ends]
            peak = torch.cuda.max_memory_allocated() / 2**30
        if state.is_world_process_zero:
            self.path.write_text(json.dumps({"ends": ends, "peak_allocated_gib": peak}))


# -- Running ------------------------------------------------------------------------------------------------------


def command(number: int, precision: str, words: list[str], config: str) -> list[str]:
    """The command that starts a number of processes of this script, with a configuration of accelerate in
    examples/."""
    if number == 1:
        return [sys.executable, __file__, *words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if not torch.cuda.is_available():
        launch = ["torch.distributed.run", "--nproc_per_node", str(number), "--master_port", port]
    else:
        launch = ["accelerate.commands.launch", "--config_file", str(ROOT / "examples" / config)]
        launch += ["--num_processes", str(number)]
        launch += ["--main_process_port", port, "--mixed_precision", "no" if precision == "fp32" else precision]
    return [sys.executable, "-m", *launch, __file__, *words]


def run(number: int, precision: str, recipe: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trains in new processes; returns the losses and the speed, or `error`."""
    config = "accelerate_fsdp_bf16.yaml" if args.fsdp else "accelerate_two_gpu_bf16.yaml"
    output = args.work / f"{precision}-{number}-{int(time.time())}"
    times, log = output.with_suffix(".times.json"), output.with_suffix(".log")
    words = ["--worker", str(recipe), "--output", str(output), "--times", str(times)]
    # Each process tunes the kernels for a minute or two, unless it finds what another has found.
    environment = {"OMP_NUM_THREADS": "1", "TRITON_CACHE_AUTOTUNING": "1", **os.environ}
    if number == 1 and torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    print(f"{time.strftime('%H:%M:%S')} {precision}, {number} process(es): {log}", flush=True)
    row = {
        "work": "train all weights, divided by FSDP" if args.fsdp else "train, one and two processes",
        "implementation": f"{number} process{'es' if number > 1 else ''}",
        "size": args.size,
        "batch": batch_of(precision, args),
        "global_batch": 2 * batch_of(precision, args),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
        "state_dtype": "float32",
        "floor_ms": None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    with open(log, "w") as file:
        words = command(number, precision, words, config)
        # a new group, so that the processes that a launcher has started end with it
        started = subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            code = started.wait(timeout=args.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            code = f"ended after {args.seconds:g} s"
    if code:
        return {**row, "error": f"{code}: {log.read_text()[-2000:]}"}
    state = json.loads((output / "stage-1/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    measured = json.loads(times.read_text())
    ends = measured["ends"]
    # The median ignores the first steps, and those in which a kernel is tuned for a row of another shape.
    steps = [after - before for before, after in itertools.pairwise(ends)][min(len(ends) // 2, 6) :]
    rate = row["global_batch"] / statistics.median(steps)
    return {**row, "per_second": rate, "steps_timed": len(steps), "losses": losses, **measured}


def compare(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """The difference of two runs of the same recipe in losses and speed."""
    pairs = list(zip(one["losses"], two["losses"], strict=True))
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    row = {key: one[key] for key in ("size", "batch", "global_batch", "dtype", "state_dtype", "device")}
    row |= {"work": "comparison of one and two processes", "implementation": "2 processes to 1", "floor_ms": None}
    row |= {"largest_relative_difference": difference, "times_as_fast": two["per_second"] / one["per_second"]}
    if one["dtype"] == "float32":
        row["within_1e-3"] = difference <= LIMIT
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the losses of all runs."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed; draw it elsewhere with --plot-only --json FILE --plot FILE.png")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(row["dtype"] for row in rows if "losses" in row))
    if not kinds:
        print("no plot: no run has succeeded")
        return
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.6), squeeze=False, layout="constrained")
    for axis, kind in zip(axes[0], kinds):
        for row, style in zip([row for row in rows if row["dtype"] == kind and "losses" in row], ("-", "--")):
            every = round(len(row["ends"]) / len(row["losses"]))  # a loss is the mean of so many steps
            steps = [every * (index + 1) for index in range(len(row["losses"]))]
            axis.plot(steps, row["losses"], style, label=row["implementation"])
        axis.set(title=f"SAM-{rows[0]['size']}, {kind}", xlabel="step", ylabel="loss")
        axis.legend()
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("130m", "780m", "2.7b", "tiny"), default="130m", help="tiny is sam-tiny")
    parser.add_argument("--work", type=Path, help="a folder for model, data and runs")
    parser.add_argument("--json", type=Path, help="the file of the result")
    parser.add_argument("--plot", type=Path, help="a PNG file for the losses")
    parser.add_argument("--plot-only", action="store_true", help="draw an existing --json file")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a float32 micro-batch, half the global batch")
    parser.add_argument("--bf16-batch", type=int, default=192, help="the same in bf16")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--steps", type=int, default=20, help="in float32")
    parser.add_argument("--bf16-steps", type=int, default=40, help="in bf16, where the speed counts")
    parser.add_argument("--fsdp", action="store_true", help="train all weights, in bf16, divided over two GPUs")
    parser.add_argument("--workers", type=int, default=4 if torch.cuda.is_available() else 0, help="of each loader")
    parser.add_argument("--seconds", type=float, default=300, help="after which a run is ended")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        run_recipe(load_recipe(args.worker), args.output, callbacks=[StepTimes(args.times)])
        end_processes()
        return
    if args.json is None or (args.plot if args.plot_only else args.work) is None:
        parser.error("--json and --work are needed (with --plot-only: --json and --plot)")
    if args.plot_only:
        plot(json.loads(args.json.read_text()), args.plot)
        return
    if torch.cuda.device_count() == 1:
        parser.error("--size: this machine has one GPU, expected two, or none for a trial on the CPU")

    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    model = ROOT / "examples/sam-tiny" if args.size == "tiny" else args.work / f"sam-{args.size}"
    if args.size != "tiny":
        write_model(model, args.size)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        write_json(rows, args.json)
        print(json.dumps(row), flush=True)

    for precision, steps in (("fp32", 0 if args.fsdp else args.steps), ("bf16", args.bf16_steps)):
        if steps == 0:
            continue
        recipe = write_recipe(args.work / f"{precision}.yaml", args, model, precision, steps)
        for number in (2,) if args.fsdp else (1, 2):
            add(run(number, precision, recipe, args))
        if not args.fsdp and not any("error" in row for row in rows[-2:]):
            add(compare(*rows[-2:]))
    if args.plot is not None:
        plot(rows, args.plot)
    if any("error" in row or row.get("within_1e-3") is False for row in rows):
        sys.exit("error: a run has failed, or float32 losses differ by more than 1e-3")


if __name__ == "__main__":
    main()
