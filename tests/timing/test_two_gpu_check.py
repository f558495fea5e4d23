"""benchmarks/two_gpu_check.py: what it trains, compares and reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import script

from sam_lab.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
check = script("benchmarks/two_gpu_check.py")


def runs(dtype, one, two, speeds=(10.0, 19.0)):
    common = {"size": "tiny", "batch": 2, "global_batch": 4, "dtype": dtype, "state_dtype": "float32", "device": "cpu"}
    return [{**common, "losses": losses, "per_second": speed} for losses, speed in zip((one, two), speeds)]


def test_two_processes_are_compared():
    row = check.compare(*runs("float32", [4.0, 2.0], [4.002, 1.9990]))
    assert row["largest_relative_difference"] == pytest.approx(5e-4) and row["within_1e-3"] is True
    assert row["times_as_fast"] == pytest.approx(1.9)
    assert check.compare(*runs("float32", [4.0, 2.0], [4.0, 2.01]))["within_1e-3"] is False
    assert "within_1e-3" not in check.compare(*runs("bfloat16", [4.0], [4.1]))
    with pytest.raises(ValueError):
        check.compare(*runs("float32", [4.0, 2.0], [4.0]))


def test_both_runs_have_the_same_recipe_and_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["two_gpu_check.py"])
    args = type("Arguments", (), {"batch": 3, "bf16_batch": 8, "rank": 2, "workers": 0, "fsdp": False})
    path = check.write_recipe(tmp_path / "fp32.yaml", args, ROOT / "examples" / "sam-tiny", "fp32", 5)
    recipe = load_recipe(path)
    assert recipe.lora_dropout == 0.0 and recipe.base_dtype == "float32"
    assert recipe.stages[0].global_batch_size == 6 and recipe.stages[0].trains == ["connector", "encoder", "lora"]
    table = (tmp_path / "fp32" / "table.csv").read_text().splitlines()
    assert len(table) == 1 + 5 * 6
    audio = table[1].split(",")[0]
    assert Path(audio).is_file() and recipe.data["rows"].path == str(tmp_path / "fp32" / "table.csv")
    for steps, every in ((4, 1), (40, 5)):  # few steps have losses too
        path = check.write_recipe(tmp_path / "bf16.yaml", args, ROOT / "examples" / "sam-tiny", "bf16", steps)
        assert load_recipe(path).logging_steps == every


def test_a_run_that_fails_or_hangs_is_reported(tmp_path, monkeypatch):
    values = {"batch": 1, "bf16_batch": 1, "work": tmp_path, "size": "tiny", "seconds": 20.0, "fsdp": False}
    args = type("Arguments", (), values)
    monkeypatch.setattr(check, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('went wrong')"])
    assert "went wrong" in check.run(1, "fp32", tmp_path / "none.yaml", args)["error"]
    args.seconds = 0.5
    monkeypatch.setattr(check, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert "ended after 0.5 s" in check.run(2, "bf16", tmp_path / "none.yaml", args)["error"]


@pytest.mark.slow
def test_a_plot_without_matplotlib_says_so(tmp_path):
    rows = runs("float32", [4.0, 2.0], [4.0, 2.0])
    (tmp_path / "two.json").write_text(json.dumps([{**row, "implementation": "x"} for row in rows]))
    words = ["--plot-only", "--json", tmp_path / "two.json", "--plot", tmp_path / "two.png"]
    code = "import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / "benchmarks" / "two_gpu_check.py", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "no plot: matplotlib is not installed" in done.stdout, done.stderr[-2000:]
    assert not (tmp_path / "two.png").exists()
