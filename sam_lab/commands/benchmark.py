"""`sam-alm benchmark`: measures speed and memory."""

import argparse
import json
import os

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # batches differ in length
os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # the next run finds the kernels that this one has tuned

from sam_lab.common.files import write_json
from sam_lab.timing.load import load_rows
from sam_lab.timing.train import train_rows

WORKS = {"load": load_rows, "train": train_rows}


def run(arguments: argparse.Namespace) -> int:
    """Measures; the file is complete after each row."""
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in WORKS[arguments.work](arguments):
        rows.append(row)
        write_json(rows, arguments.json)
        print(json.dumps(row), flush=True)
    return 0
