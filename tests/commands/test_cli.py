"""The command line's surface: options, help and wrong usage without slow imports, what all commands share."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from configuration_sam import CONNECTORS, LANGUAGE_MODEL_SIZES, __version__
from sam_lab import parsers
from sam_lab.annotation import FORMATS
from sam_lab.commands.benchmark import WORKS
from sam_lab.data.published import CAPTION_RULES, READINGS
from sam_lab.evaluation.mmau import PROMPT_STYLES
from sam_lab.evaluation.protocols import ANSWER_FORM
from sam_lab.evaluation.questions import QUESTIONS
from sam_lab.evaluation.tasks import TASKS
from sam_lab.parsers import options
from sam_lab.parsers.training import training_fields

ROOT = Path(__file__).parents[2]
# Runs the command line; at its end nothing slow may have been imported.
LIGHT = """
import sys
from sam_lab.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("status", end.code)
slow = {"torch", "transformers", "numpy", "soundfile", "datasets", "yaml"} & set(sys.modules)
assert not slow, slow
"""
EVALUATE = ["evaluate", "esc50", "--model", "x", "--data", "x", "--output", "x.json"]
# Of each command a wrong usage, and what is said of it.
WRONG = [
    (["describe", "--max-new-tokens", "0", "x.wav"], "--max-new-tokens: got '0', expected a positive integer"),
    (["describe", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
    (["convert", "--connector", "b"], "--connector: invalid choice: 'b'"),
    (["env", "--jsonl"], "unrecognized arguments: --jsonl"),
    (["finetune", "--model", "x"], "the following arguments are required: --train"),
    (["finetune", "--model", "x", "--train", "y", "--outputdir", "z"], "did you mean --output_dir?"),
    (["finetune", "--model", "x", "--train", "y", "--lora-ranks", "8"], "did you mean --lora_rank?"),
    (["finetune", "--model", "x", "--train", "y", "z"], "unrecognized arguments: z"),
    (["finetune", "--model", "x", "--train", "y", "--augment", "perhaps"], "got 'perhaps', expected true or false"),
    (["train", "--output", "x"], "RECIPE: got none"),
    (["train", "E6"], "--output: got none"),
    (["evaluate", "esc51"], "invalid choice: 'esc51' (choose from"),
    ([*EVALUATE, "--text-tokenizer", "x"], "--text-tokenizer: given, but there is no text encoder"),
    (["caption", "x", "--model", "x", "--output", "x", "--batch-size", "-1"], "expected a positive integer"),
    (["caption", "x", "--model", "x", "--output", "x", "--format", "csv"], "--format: invalid choice: 'csv'"),
    (["analyze", "token"], "invalid choice: 'token'"),
    (["analyze", "tokens", "x", "--clips", "x", "--tau", "2", "--output", "x"], "expected a number from 0 to 1"),
    (["tables", "--table", "3"], "--table: invalid choice: '3'"),
    (["mix", "--reading", "x"], "--reading: invalid choice: 'x'"),
    (["benchmark", "decode"], "invalid choice: 'decode'"),
    (["benchmark", "load"], "the following arguments are required: --json"),
    (["benchmark", "train", "--json", "x", "--size", "7b"], "--size: invalid choice: '7b'"),
    (["listen"], "invalid choice: 'listen'"),
    ([], "the following arguments are required: COMMAND"),
    (["train", "E66", "--output", "x"], "recipe: got 'E66', expected one of E1, E2"),
    (["train", "none.yaml", "--dry-run"], "recipe: there is no file 'none.yaml'"),
    (["train", "E6", "--dry-run", "--set", "seed"], "--set: got 'seed', expected KEY=VALUE"),
    (["train", "E6", "--dry-run", "--audio-root", "/data"], "--audio-root: got '/data', expected FROM=TO"),
]
HELP = [
    [],
    *([name] for name in parsers.COMMANDS),
    ["analyze", "tokens"],
    ["benchmark", "load"],
    ["benchmark", "train"],
]


def light(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_needs_no_slow_import(words):
    done = light(*words, "--help")
    assert done.stdout.startswith(" ".join(["usage: sam-alm", *words])) and done.stdout.endswith("status 0\n")


@pytest.mark.parametrize(
    ("words", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_usage_needs_no_slow_import(words, message):
    done = light(*words)
    assert done.stdout == "status 2\n" and message in done.stderr


@pytest.mark.parametrize(("words", "printed"), [(["--version"], "sam-alm 0."), (["train", "--list"], "E1 ")])
def test_what_is_known_without_a_model_needs_no_slow_import(words, printed):
    done = light(*words)
    assert done.stdout.startswith(printed) and done.stdout.endswith("status 0\n")


def test_every_command_has_a_wrong_usage_and_a_module():
    assert {words[0] for words, _ in WRONG if words} - {"listen"} == set(parsers.COMMANDS)
    modules = {path.stem for path in (ROOT / "sam_lab" / "commands").glob("[a-z]*.py")}
    assert modules == set(parsers.COMMANDS)


def test_the_options_are_those_that_others_rely_on():
    done = {name: light(name, "--help").stdout for name in ("describe", "convert", "env")}
    options = {
        "describe": {"--model", "--prompt", "--device", "--dtype", "--max-new-tokens", "--json"}
        | {"--incomplete", "--max-seconds"},
        "convert": {"--audio-encoder", "--language-model", "--tokenizer", "--connector", "--dtype"}
        | {"--max-shard-size", "--push-to-hub", "--output", "--check", "--audio-encoder-heads"},
        "env": {"--json"},
    }
    for name, expected in options.items():
        lines = [line.split()[0] for line in done[name].splitlines() if line.startswith("  --")]
        assert set(lines) == expected and len(lines) == len(expected)


def test_the_parsers_repeat_what_slow_modules_define():
    assert options.CONNECTORS == tuple(CONNECTORS)
    assert options.METRICS == {each.name: each.metric for each in (*TASKS.values(), QUESTIONS)}
    assert (options.STYLES, options.ANSWER_FORM, options.FORMATS) == (PROMPT_STYLES, ANSWER_FORM, FORMATS)
    assert (options.READINGS, options.CAPTION_RULES) == (READINGS, CAPTION_RULES)
    assert options.SIZES == tuple(LANGUAGE_MODEL_SIZES)
    assert "{" + ",".join(WORKS) + "}" in light("benchmark", "--help").stdout
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(training_fields()) == fields and len(fields) > 90


def test_finetunes_options_are_its_own_and_the_rest_is_passed_on():
    words = (
        "finetune --model m --train t.csv --lora-rank 8 --augment --learning_rate 1e-3 --bf16 --no_dataloader_in_order"
    )
    command, arguments = parsers.parse(
        [*words.split(), "--report_to", "wandb", "tensorboard", "--optim=sgd", "--seed", "-1"]
    )
    assert (command, arguments.lora_rank, arguments.augment, arguments.recompute) == ("finetune", 8, True, False)
    passed = "--learning_rate 1e-3 --bf16 --no_dataloader_in_order --report_to wandb tensorboard --optim=sgd --seed -1"
    assert arguments.training == passed.split()


@pytest.mark.slow
def test_the_module_runs_the_commands():
    words = [sys.executable, "-m", "sam_alm", "--version"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"sam-alm {__version__}"), done.stderr
