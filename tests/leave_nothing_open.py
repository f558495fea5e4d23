"""Runs a script as `python SCRIPT ...` does, and fails if it leaves its connections to other processes open."""

import runpy
import sys
from pathlib import Path

import torch

sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
if torch.distributed.is_initialized():
    sys.exit(f"{sys.argv[0]} has left its process group open")
