"""How fast clips load."""

import time
from typing import Any

import torch

from sam_lab.data.batches import RecordBatches
from sam_lab.data.collation import compute_features


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
            if device.type == "cuda":
                torch.cuda.synchronize(device)
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
