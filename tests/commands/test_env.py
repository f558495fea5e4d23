"""`sam-alm env`."""

import json

import torch

import kernels_sam
from configuration_sam import __version__
from sam_lab.cli import main


def test_env_reports_versions_devices_and_implementations(capsys):
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["sam-alm"] == __version__
    assert report["versions"]["torch"] == torch.__version__
    assert {"mamba-ssm", "causal-conv1d", "flash-attn", "triton", "torchcodec", "libsndfile", "ffmpeg"} <= set(
        report["versions"]
    )
    assert "cpu" in report["devices"]
    assert report["implementations"] == kernels_sam.implementations()
    operations = {row["operation"] for row in report["implementations"] if row["device"] == "cpu"}
    assert {"scan", "convolution", "decode step", "encoder attention"} <= operations


def test_env_is_readable(capsys):
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"sam-alm          {__version__}" in lines
    head = next(line for line in lines if line.startswith("operation"))
    row = next(line for line in lines if line.startswith("scan"))
    assert row.index("cpu") == head.index("device") and row.index("torch") == head.index("implementation")
