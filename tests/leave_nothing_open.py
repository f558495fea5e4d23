"""Runs `python -m sam_alm ...`, and fails if it leaves its connections to other processes open."""

import runpy
import sys
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])
try:
    runpy.run_module("sam_alm", run_name="__main__", alter_sys=True)
    status = None
except SystemExit as end:
    status = end.code
if torch.distributed.is_initialized():
    sys.exit("sam_alm has left its process group open")
sys.exit(status)
