"""`sam-alm train`: names, plans, errors, a killed run, two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command for the toy recipe on a tiny model, with twenty steps in its second stage."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    settings = ("save_steps=1", "evaluation_rows=1", "generated_rows=1", "stages.2.epochs=10", f"model={folder}")
    return ["train", "toy", *(word for setting in settings for word in ("--set", setting)), "--output"]


def training(words, output, log) -> subprocess.Popen:
    """The command, started in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sam_alm", *words, output],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def trained_to_the_end(words, command, capsys, monkeypatch):
    """Runs the command in this process, with one thread as the one that is killed, and returns what it printed."""
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(output) -> str:
        command(*words, output)
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def killed_behind(words, checkpoint, output, log) -> None:
    """Kills the command, and what it has started, as soon as a checkpoint is complete."""
    end = time.monotonic() + 300
    with open(log, "w") as handle, training(words, output, handle) as process:
        try:
            while not (output / checkpoint / "complete").exists():
                assert process.poll() is None, f"it ended before {checkpoint}: {log.read_text()[-3000:]}"
                assert time.monotonic() < end, f"no {checkpoint} in 300 seconds: {log.read_text()[-3000:]}"
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed, with {process.returncode}"


@pytest.mark.slow
def test_a_run_killed_within_a_stage_resumes_to_the_same_losses(words, trained_to_the_end, tmp_path):
    """All four stages by the command, its process killed early in the second stage."""
    straight, output = tmp_path / "straight", tmp_path / "killed"
    printed = trained_to_the_end(straight)
    assert "finished" not in printed and "resuming from" not in printed
    killed_behind(words, "stage-2/checkpoint-1", output, tmp_path / "killed.log")
    assert (output / "stage-1" / "finished.json").exists()
    assert not (output / "stage-2" / "trained.json").exists(), (
        "stage 2 ended before the kill: this machine stood still"
    )
    printed = trained_to_the_end(output)
    assert "stage 1, connector on classification: finished\n" in printed
    assert re.findall(r"resuming from .*/(stage-\d/checkpoint)-\d\n", printed) == ["stage-2/checkpoint"]
    for stage, steps in {"stage-1": 4, "stage-2": 20, "stage-3": 2, "stage-4": 2}.items():
        assert (output / stage / "finished.json").exists()
        histories = [json.loads((each / stage / "trainer_state.json").read_text()) for each in (straight, output)]
        losses = [[row["loss"] for row in each["log_history"] if "loss" in row] for each in histories]
        assert losses[0] == losses[1] and len(losses[0]) == steps
    one, two = (load_file(each / "stage-4" / "adapter" / "adapter_model.safetensors") for each in (straight, output))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_recipes_are_listed(command, capsys):
    command("train", "--list")
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in names if name[1:].isdigit()] == [f"E{number}" for number in range(1, 19)]
    assert {"toy", "ltu", "sam-tiny"} <= set(names)


def test_a_recipe_has_a_name_or_a_file(command, capsys, tmp_path):
    plans = []
    for recipe in ("E6", ROOT / "sam_lab" / "training" / "recipes" / "E6.yaml"):
        command("train", recipe, "--dry-run")
        plans.append(capsys.readouterr().out)
    assert (plans[0] == plans[1] and "hours in all" in plans[0]) or "unknown" in plans[0]
    command("train", "E66", "--dry-run", status=2, error="error: recipe: got 'E66', expected one of .*E6")
    command("train", tmp_path / "none.yaml", "--dry-run", status=2, error="none.yaml")


def test_what_is_missing_is_asked_for(command):
    command("train", status=2, error="RECIPE: got none")
    command("train", "E6", status=2, error="--output: got none, expected a folder")
    command("train", "E6", "--dry-run", "--pairs-per-second", "0", status=2, error="expected a positive number")
