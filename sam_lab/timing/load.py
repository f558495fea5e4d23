"""How fast clips load."""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr
import torch

from audio_sam import load_audio
from processing_sam import SamProcessor
from sam_lab.common.checks import choose_device
from sam_lab.common.cores import num_cores
from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.data.batches import RecordBatches
from sam_lab.data.collation import RowCollator, compute_features
from sam_lab.data.order import BatchOrder
from sam_lab.timing.devices import device_name, say, synchronize

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def measure_loader(
    batches: RecordBatches, seconds: float = 10.0, num_workers: int = 0, device: str | torch.device | None = None
) -> dict[str, Any]:
    """Measures how many clips a loader reads in a second, from files to the model's inputs.

    Args:
        batches ([`RecordBatches`]): What to load. Its next pass starts with the first epoch.
        seconds (`float`, *optional*, defaults to 10.0): How long to measure, after each worker's first batch.
        num_workers (`int`, *optional*, defaults to 0): Processes that load; 0 is this one.
        device (*optional*): Also move the batches there, and with `features="device"` compute log-mel there.

    Returns:
        `dict`: `clips_per_second`, `clips`, `seconds`, `num_workers`, `features`, `device`.
    """
    device = torch.device(device or "cpu")

    def endless():
        for epoch in range(1 << 30):
            batches.set_epoch(epoch)
            yield from batches.load(num_workers, pin_memory=device.type == "cuda")

    end_step = batches.end_step
    batches.stop_at(1 << 62)
    clips = 0
    begin = now = 0.0
    try:
        for number, batch in enumerate(endless()):
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            batch = compute_features(batch, batches.processor)
            synchronize(device)
            now = time.perf_counter()
            if number < max(num_workers, 1):
                begin = now
                continue
            clips += len(batch.get("input_features", ()))
            if now - begin >= seconds:
                break
    finally:
        batches.stop_at(end_step)
        batches.set_epoch(0)
    elapsed = now - begin
    return {
        "clips_per_second": clips / elapsed,
        "clips": clips,
        "seconds": elapsed,
        "num_workers": num_workers,
        "features": batches.collator.features,
        "device": str(device),
    }


# -- The rows of `sam-alm benchmark load` -------------------------------------------------------------------------


def write_clips(folder: Path, number: int, seed: int) -> dict[str, list[str]]:
    """Writes `number` FLAC and `number` Ogg/Vorbis files of 10 s, 44.1 kHz, stereo, mixed from `examples/audio`.

    Returns:
        `dict`: The files by format, `"flac"` and `"ogg"`.
    """
    rng = np.random.default_rng(seed)
    sounds = [load_audio(path) for path in sorted((EXAMPLES / "audio").iterdir()) if path.suffix in AUDIO_SUFFIXES]
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
                for begin in range(0, len(sound), 44100):  # libsndfile's Vorbis encoder fails on longer parts
                    file.write(sound[begin : begin + 44100])
    return files


def load_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures clips a second for each format, place of log-mel and number of workers: the rows of
    `sam-alm benchmark load`."""
    if not (EXAMPLES / "audio").is_dir():
        raise FileNotFoundError(f"benchmark load: there is no {EXAMPLES}, expected a checkout; run it in one.")
    device = choose_device(args.device)
    processor = SamProcessor.from_pretrained(EXAMPLES / "sam-tiny")
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
                order = BatchOrder(table, processor, args.batch[0], shuffle_buffer=1000)
                batches = RecordBatches(order, RowCollator(processor, features=features))
                torch.set_num_threads(1 if workers else max(1, args.threads))
                row = measure_loader(batches, args.seconds, workers, device)
                yield {
                    "work": "load",
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
                    "cores": num_cores(),
                    "clips": row["clips"],
                    "seconds": row["seconds"],
                }
