"""Measures how fast SAM trains, with random weights of the paper's sizes, and how fast its clips load.

    python examples/benchmark.py train --size 2.7b --batch 32 64 --json train.json
    python examples/benchmark.py train --size 2.7b --connector time_major --memory-limit-gib 23.5 --json fit.json
    python examples/benchmark.py loader --workers 0 4 8 --json loader.json

The result is a list of `{"work", "implementation", "size", "batch", "dtype", "state_dtype", "per_second", "floor_ms",
"device", ...}`, written after each measurement. `floor_ms` is what the arithmetic of a micro-batch takes at the 790
TFLOP/s that a large bf16 matrix product reached on an H100.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # batches differ in length
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what one run has tuned, the next one finds

import datasets
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installing it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmark_training import GIB, Training, device_name, experiments, say

import kernels_sam
from audio_sam import load_audio
from configuration_sam import CONNECTORS
from processing_sam import SamProcessor
from sam_lab.common.files import write_json
from sam_lab.data.batches import RecordBatches
from sam_lab.timing.load import measure_loader

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("130m", "780m", "2.7b")
CLIP_TYPES = {".flac", ".ogg", ".wav"}

# ---------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------


class Results:
    """A list in a JSON file, complete after each addition."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row, writes the file anew and says it."""
        self.rows.append(row)
        write_json(self.rows, self.path)
        print(json.dumps(row), flush=True)


# ---------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, results: Results) -> None:
    """Measures training steps; see `--help`."""
    device = torch.device(args.device)
    limit, context = args.memory_limit_gib, None
    if limit is not None and device.type == "cuda":
        device = torch.zeros(1, device=device).device  # with its index
        free, total = torch.cuda.mem_get_info(device)
        context = (total - free - torch.cuda.memory_reserved(device)) / GIB
        torch.cuda.set_per_process_memory_fraction((limit - context) * GIB / total, device)
    for connector in args.connector:
        say(f"SAM-{args.size}, {connector}: building")
        training = Training(args, connector, device)
        attention = training.config.audio_config._attn_implementation
        common = {
            "work": "train",
            "implementation": f"{'torch' if kernels_sam.missing or device.type == 'cpu' else 'mamba-ssm'}, {attention}",
            "size": args.size,
            "connector": connector,
            "dtype": "bfloat16",
            "state_dtype": "float32",
            "per_second": None,
            "floor_ms": None,
            "device": device_name(device),
        }
        details = {
            **{name: getattr(args, name) for name in ("rank", "recompute", "pack_to", "lengths", "text_tokens")},
            **{name: getattr(args, name) for name in ("text_cutoff", "all_logits", "waveforms", "chunk_size")},
            "joint_encoder": not args.frozen_encoder,
            "memory_limit_gib": limit,
            "context_gib": context,
            "trained_parameters": sum(parameter.numel() for parameter in training.trained),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        sizes = list(args.batch)
        if limit is not None:
            say("  looking for the largest micro-batch")
            found = training.largest(args.largest_batch)
            results.add({**common, "work": "train: largest micro-batch", "batch": found, **details})
            sizes = [found] if found else []
        best = 0.0
        for size in sizes:
            row = {**common, "batch": size, **details}
            try:
                row.update(training.measure(size))
                best = max(best, row["per_second"])
            except torch.OutOfMemoryError:
                row["error"] = "out of memory"
            results.add(row)
            if "error" in row:
                if limit is not None and size > 1:  # the search did not see how memory fragments
                    sizes.append(size - max(1, size // 8))
                training.optimizer.zero_grad(set_to_none=True)
                training.sound = None
                gc.collect()
                torch.cuda.empty_cache()
        if best:
            for row in experiments(args, connector, best):
                results.add({**common, "batch": None, **row})
        del training
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------


def write_clips(folder: Path, number: int, seed: int) -> dict[str, list[str]]:
    """So many FLAC and so many Ogg/Vorbis files of 10 s, 44.1 kHz, stereo, mixed from `examples/audio`."""
    import soundfile
    import soxr

    rng = np.random.default_rng(seed)
    sounds = [load_audio(path) for path in sorted((ROOT / "examples/audio").iterdir()) if path.suffix in CLIP_TYPES]
    sounds = [soxr.resample(sound, 16000, 44100) for sound in sounds]
    files: dict[str, list[str]] = {"flac": [], "ogg": []}
    for index in range(number):
        channels = []
        for _ in range(2):
            first, second = (
                np.resize(np.roll(sounds[rng.integers(len(sounds))], -rng.integers(44100)), 441000) for _ in "ab"
            )
            channels.append(np.clip(rng.uniform(0.3, 0.9) * first + rng.uniform(0, 0.3) * second, -1, 1))
        for kind, names in files.items():
            names.append(str(folder / f"{index}.{kind}"))
            sound = np.stack(channels, axis=1)
            with soundfile.SoundFile(names[-1], "w", 44100, 2, format=kind.upper()) as file:
                for begin in range(0, len(sound), 44100):  # libsndfile's Vorbis cannot take much at once
                    file.write(sound[begin : begin + 44100])
    return files


def loader(args: argparse.Namespace, results: Results) -> None:
    """Measures clips a second from files to batches; see `--help`."""
    device = torch.device(args.device)
    processor = SamProcessor.from_pretrained(ROOT / "examples/sam-tiny")
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing {args.clips} clips of each format")
        files = write_clips(Path(folder), args.clips, args.seed)
        for kind, names in files.items():
            size = sum(Path(name).stat().st_size for name in names) / len(names)
            records = [
                {"audio": name, "prompt": "What do you hear?", "answer": "A sound.", "source": kind, "kind": "other"}
                for name in names
            ]
            for features, workers in itertools.product(args.features, args.workers):
                table = datasets.Dataset.from_list(records * -(-20_000 // len(records)))  # epochs restart the workers
                batches = RecordBatches(table, processor, args.batch[0], features=features, shuffle_buffer=1000)
                torch.set_num_threads(1 if workers else max(1, args.threads))
                row = measure_loader(batches, args.seconds, workers, device)
                results.add(
                    {
                        "work": "loader",
                        "implementation": features,
                        "size": None,
                        "batch": args.batch[0],
                        "dtype": "float32",
                        "state_dtype": None,
                        "per_second": row["clips_per_second"],
                        "floor_ms": None,
                        "device": device_name(device),
                        "format": f"{kind}, 10 s, 44.1 kHz, stereo, {size / 1000:.0f} kB a file",
                        "workers": workers,
                        "cores": len(os.sched_getaffinity(0)),
                        "clips": row["clips"],
                        "seconds": row["seconds"],
                    }
                )


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def a_size(value: str) -> str:
    if value not in (*SIZES, "tiny"):
        raise argparse.ArgumentTypeError(f"got {value!r}, expected one of {', '.join(SIZES)}")
    return value


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{train,loader}")
    default = "cuda" if torch.cuda.is_available() else "cpu"

    def command(run, batch, seconds, text):
        sub = commands.add_parser(run.__name__, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", type=Path, required=True, help="the file of the result")
        sub.add_argument("--batch", type=int, nargs="+", default=[batch], help="records of a micro-batch")
        sub.add_argument("--seconds", type=float, default=seconds, help="how long to measure each, at most")
        sub.add_argument("--device", default=default)
        sub.add_argument("--seed", type=int, default=0)
        return sub

    sub = command(train, 32, 60.0, "LoRA, connector and encoder, bf16 autocast, AdamW: pairs a second, memory, shares")
    sub.add_argument("--size", type=a_size, required=True, metavar=f"{{{','.join(SIZES)}}}")
    sub.add_argument("--connector", nargs="+", choices=CONNECTORS, default=["concatenation"])
    sub.add_argument("--rank", type=int, default=256, help="of LoRA")
    encoder = sub.add_mutually_exclusive_group()
    encoder.add_argument("--joint", action="store_true", help="train the encoder, the default")
    encoder.add_argument("--frozen-encoder", action="store_true", help="do not train the encoder")
    sub.add_argument("--recompute", action="store_true", help="compute activations again in the backward pass")
    sub.add_argument("--pack-to", type=int, help="pack pairs into rows of at most so many positions")
    sub.add_argument("--lengths", choices=("mix", "captions"), default="mix", help="distribution of the text's length")
    sub.add_argument("--text-tokens", type=int, help="so many text positions in every pair instead")
    sub.add_argument("--text-cutoff", type=int, help="text positions that are kept; LTU's is 108")
    sub.add_argument("--pad-to-multiple-of", type=int, default=1)
    sub.add_argument("--chunk-size", type=int, help="of the scan's kernels, instead of the configuration's")
    sub.add_argument("--global-batch", type=int, default=256, help="pairs of an optimiser step")
    sub.add_argument("--steps", type=int, default=8, help="optimiser steps to measure, at most")
    sub.add_argument("--waveforms", action="store_true", help="begin with sound in the host's memory, not log-mel")
    sub.add_argument("--all-logits", action="store_true", help="compute the logits of all positions")
    sub.add_argument("--memory-limit-gib", type=float, help="as a card of this memory; finds the largest micro-batch")
    sub.add_argument("--profile", type=Path, help="write there what kernels a step's time goes to")
    sub.add_argument("--largest-batch", type=int, default=256, help="where that search ends")

    sub = command(loader, 32, 10.0, "clips a second from compressed stereo files of 44.1 kHz to batches")
    sub.add_argument("--clips", type=int, default=64, help="files of each format")
    sub.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4, 8])
    sub.add_argument("--features", nargs="+", choices=("workers", "device"), default=["workers", "device"])
    sub.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch without workers")
    args = parser.parse_args(arguments)
    for name in ("rank", "steps", "global_batch", "clips", "pad_to_multiple_of", "largest_batch"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(args, name)}, expected a positive number")
    if min(args.batch) < 1:
        parser.error(f"--batch: got {min(args.batch)}, expected positive numbers")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    args.run(args, Results(args.json))


if __name__ == "__main__":
    main()
