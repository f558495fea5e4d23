"""`sam-alm env`: prints versions, devices, and for each operation which implementation runs where, and why."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess

import soundfile
import torch

from configuration_sam import __version__
from kernels_sam import implementations
from sam_lab.common.text_tables import text_table

PACKAGES = (
    "torch transformers accelerate peft datasets tokenizers huggingface-hub numpy soundfile soxr "
    "mamba-ssm causal-conv1d flash-attn triton torchcodec"
).split()


def run(arguments: argparse.Namespace) -> int:
    """Prints the report as tables or as JSON."""
    report = {"versions": _versions(), "devices": _devices(), "implementations": implementations()}
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    heads = ("operation", "device", "implementation", "reason")
    rows = [[" ".join(row[head].split()) for head in heads] for row in report["implementations"]]
    versions = [[name, version or "not installed"] for name, version in report["versions"].items()]
    for table in (versions, list(report["devices"].items()), [heads, *rows]):
        print(text_table(table, align="left"), end="\n" if table[0] is heads else "\n\n")
    return 0


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"sam-alm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    versions["libsndfile"] = soundfile.__libsndfile_version__
    versions["ffmpeg"] = _ffmpeg_version()
    versions["platform"] = platform.platform()
    return versions


def _ffmpeg_version() -> str | None:
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, errors="replace", check=False)
    words = answer.stdout.split()  # "ffmpeg version 7.1 Copyright ..."
    return words[2] if words[:2] == ["ffmpeg", "version"] else "unknown"


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB, "
            f"CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices
