"""The parsers of all commands, and the conflicts between their options. Nothing here is slow to import."""

import argparse
import ast
import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam_lab.common.cores import num_cores
from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT
from sam_lab.common.text_tables import text_table
from sam_lab.training.library import find_recipe, recipe_names

# What modules that are slow to import define; tests/commands/test_cli.py compares both.
CONNECTORS = ("concatenation", "time_major", "frequency_major")
DTYPES = ("float32", "bfloat16", "float16")
METRICS = {  # of each task of `evaluate`
    **dict.fromkeys(("esc50", "vocalsound", "tut2017", "beijing_opera", "vggsound"), "accuracy"),
    "dcase2017": "micro_f1",
    **dict.fromkeys(("fsd50k", "audioset"), "map"),
    **dict.fromkeys(("audiocaps", "clotho"), "caption"),
    **dict.fromkeys(("mmau_mini", "mmau"), "mmau"),
    "questions": "questions",
}
STYLES = ("reasonaqa", "audio_flamingo", "plain")
ANSWER_FORM = "{Label}"
FORMATS = ("parquet", "jsonl")
READINGS = ("whole", "replacement")
CAPTION_RULES = ("all_open", "caption_words", "not_yes_no")
SIZES = ("130m", "780m", "2.7b")

DEFAULT = "default: %(default)s"
MODEL = "a SAM checkpoint: a directory or a Hub id"


def parse(argv: Sequence[str] | None = None) -> tuple[str, argparse.Namespace]:
    """The name of a command and its checked arguments.

    Args:
        argv (`list[str]`, *optional*): The arguments; those of the process by default.

    Raises:
        SystemExit: Wrong usage (status 2), `--help` and `--version` (status 0).
    """
    parser = argparse.ArgumentParser(prog="sam-alm", description="SAM, the Mamba-2 audio-language model.")
    parser.add_argument(
        "--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, add_options in COMMANDS.items():
        text = inspect.cleandoc(add_options.__doc__ or "")
        form = argparse.RawDescriptionHelpFormatter
        add_options(commands.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=form))
    arguments, rest = parser.parse_known_args(argv)
    command = arguments.command
    del arguments.command
    if command == "finetune":
        arguments.training = rest
    elif rest:
        commands.choices[command].error(f"unrecognized arguments: {' '.join(rest)}")
    if command in CHECKS:
        CHECKS[command](commands.choices[command], arguments)
    return command, arguments


class _Version(argparse.Action):
    def __call__(self, parser, *unused):
        file = importlib.util.find_spec("configuration_sam").origin  # not imported: it needs transformers
        version = re.search(r'^__version__ = "(.+)"$', Path(file).read_text(encoding="utf-8"), re.MULTILINE)
        print(f"sam-alm {version.group(1)}")
        parser.exit()


class _Recipes(argparse.Action):
    def __call__(self, parser, *unused):
        print(text_table(list(recipe_names().items()), align="left"))
        parser.exit()


def _pair(expected: str) -> Callable[[str], str]:
    """A type of argparse: two parts with an equals sign between them."""

    def check(text: str) -> str:
        if not re.match(r"(?:[^=\\]|\\.)+=", text):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return text

    return check


def _number(kind: type, least: float, most: float, expected: str) -> Callable[[str], Any]:
    """A type of argparse: numbers in a range."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return convert


_positive = _number(int, 1, float("inf"), "a positive integer")
_not_negative = _number(int, 0, float("inf"), "an integer from 0")
_share = _number(float, 0, 1, "a number from 0 to 1")
_above_zero = _number(float, sys.float_info.min, sys.float_info.max, "a positive number")
AUDIO_ROOT = {
    "type": _pair("FROM=TO"),
    "action": "append",
    "default": [],
    "metavar": "FROM=TO",
    "help": "the audio folder FROM of the published paths is TO here; repeatable",
}


INCOMPLETE = {
    "choices": ("error", "keep"),
    "default": "error",
    "help": f"audio files that break off: unreadable, or keep what is there; {DEFAULT}",
}
MAX_SECONDS = {"type": _above_zero, "default": 10800.0, "metavar": "S", "help": f"longest clip; {DEFAULT}, 3 hours"}


def _truth(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected true or false")
    return values[text.lower()]


# -- describe, convert, env ---------------------------------------------------------------------------------------


def _describe(parser: argparse.ArgumentParser) -> None:
    """Describes audio files in words.

    Prints a line for each file: path, tab, text. A file of several windows of 10.24 seconds has a line for each
    window: path, tab, start-end in seconds, tab, text. A path's backslashes are \\\\, its line ends \\n, its tabs \\t,
    other control characters their number, as \\x1b. --json has the path itself (a byte that is no UTF-8 is \\udcNN).
    """
    add = parser.add_argument
    add("audio", nargs="*", metavar="AUDIO", help="files; by default a checkout's examples/audio")
    add("--model", metavar="DIR_OR_ID", help=f"{MODEL}; by default a checkout's examples/sam-tiny")
    add("--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help=DEFAULT)
    add("--device", metavar="D", help="cpu, cuda, cuda:1, mps ...; by default cuda where available")
    add("--dtype", choices=("auto", *DTYPES), help="default: float32 on a CPU, else auto (as stored)")
    add("--max-new-tokens", type=_positive, metavar="N", help="by default the checkpoint's")
    add("--incomplete", **INCOMPLETE)
    add("--max-seconds", **MAX_SECONDS)
    text = 'print JSON objects: {"audio", "start", "end", "text", "seconds": the clip\'s length}'
    add("--json", action="store_true", help=text)


def _convert(parser: argparse.ArgumentParser) -> None:
    """Makes a SAM checkpoint from published weights.

    Converts an EAT and a Mamba-2 checkpoint into one SAM directory. SRC is a file, a directory or a Hub id
    (owner/name[@revision]). The connector is new and untrained.
    """
    add = parser.add_argument
    add("--audio-encoder", required=True, metavar="SRC", help="EAT: fairseq's or the Hub's layout")
    add("--audio-encoder-heads", type=_positive, metavar="N", help="of an EAT whose files do not say it")
    add("--language-model", required=True, metavar="SRC", help="Mamba-2: state-spaces' or the Hub's layout")
    add("--tokenizer", required=True, metavar="SRC", help="usually EleutherAI/gpt-neox-20b")
    add("--output", required=True, metavar="DIR", help="the directory to write")
    add("--connector", choices=CONNECTORS, help="default: concatenation")
    add("--dtype", choices=DTYPES, help="to store; default: float32")
    add("--max-shard-size", metavar="S", help="of the largest file, such as 5GB")
    add("--push-to-hub", metavar="ID", help="upload the directory to this repository of the Hub")
    add(
        "--check",
        nargs=2,
        metavar=("WAV", "NPY"),
        help="compare the encoder's output for WAV with the features in NPY (EAT publishes such a pair)",
    )


def _env(parser: argparse.ArgumentParser) -> None:
    """Prints versions, devices and implementations: what a bug report should contain."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# -- finetune, train ----------------------------------------------------------------------------------------------


def _finetune(parser: argparse.ArgumentParser) -> None:
    """Trains a checkpoint on your own clips and texts.

        sam-alm finetune --model examples/sam-tiny --train clips.csv --output_dir runs/mine \\
            --learning_rate 1e-3 --num_train_epochs 10 --bf16

    --train is a CSV or JSON file with the columns audio, answer and optionally prompt; a folder of audio files with a
    metadata.csv, or with a subfolder for each class; or a dataset on the Hub. By default the connector and the encoder
    are trained and the language model stays frozen. What is trained is float32, under bf16 autocast with --bf16.
    --output_dir gets the result with the adapters merged; it loads without the base. On several GPUs:

        accelerate launch -m sam_alm finetune ...
    """
    parser.allow_abbrev = False
    parser.epilog = """All other options are fields of transformers' TrainingArguments, given as --name value, such as
--output_dir, --learning_rate, --num_train_epochs, --resume_from_checkpoint DIR and --push_to_hub:
https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments
With adapters nothing is pushed before the end, when they are merged."""

    def add(name: str, **options: Any) -> None:
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **options)

    def add_flag(name: str, text: str) -> None:
        add(name, nargs="?", type=_truth, const=True, default=False, metavar="BOOL", help=text)

    add("model", required=True, metavar="DIR_OR_ID", help=MODEL)
    add("train", required=True, metavar="DATA", help="a CSV or JSON file, an audio folder, or a dataset's name")
    add("validation", metavar="DATA", help="the same for the validation split")
    add("validation_share", type=float, default=0.05, metavar="S", help=f"without --validation, of --train; {DEFAULT}")
    add("max_missing", type=_share, default=0.0, metavar="S", help=f"largest share of rows without audio; {DEFAULT}")
    add("incomplete", **INCOMPLETE)
    add("prompt", default=DEFAULT_PROMPT, metavar="TEXT", help=f"of rows that have none; {DEFAULT}")
    add("lora_rank", type=_not_negative, default=0, metavar="N", help="of adapters on the language model; 0: none")
    add("lora_dropout", type=float, default=0.05, metavar="S", help=f"of the adapters' inputs; {DEFAULT}")
    add_flag("train_language_model", "train the whole language model")
    add_flag("freeze_connector", "do not train the connector")
    add_flag("freeze_encoder", "do not train the audio encoder")
    add_flag("recompute", "save memory: gradient (activation) checkpointing")
    add_flag("cache_features", "compute log-mel once and store it on the device")
    add_flag("augment", "change the training clips at random: for few clips")
    add("max_seconds", type=_above_zero, metavar="S", help="train for this time instead of steps or epochs")
    add("num_examples", type=_not_negative, default=5, metavar="N", help=f"answers printed at the end; {DEFAULT}")


def _check_finetune(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.lora_rank and arguments.train_language_model:
        parser.error("--lora_rank and --train_language_model: got both, expected one of them")
    if arguments.training and not arguments.training[0].startswith("--"):
        parser.error(f"unrecognized arguments: {arguments.training[0]}")
    fields = training_fields()
    ours = [option[2:] for option in parser._option_string_actions if option.startswith("--")]
    for word in arguments.training:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in fields and name.removeprefix("no_") not in fields:
            near = difflib.get_close_matches(name, [*fields, *ours], 1)
            hint = f"did you mean --{near[0]}?" if near else "see --help"
            parser.error(f"--{name}: neither an option of finetune nor a field of TrainingArguments; {hint}")


def training_fields() -> list[str]:
    """The fields of transformers' `TrainingArguments`, read from its source, since importing it takes seconds."""
    source = Path(importlib.util.find_spec("transformers").origin).with_name("training_args.py")
    classes = {node.name: node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> list[str]:
        node = classes.get(name)
        if node is None:  # imported from another file, such as a mixin
            return []
        inherited = [field for base in node.bases if isinstance(base, ast.Name) for field in fields(base.id)]
        return inherited + [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]

    return fields("TrainingArguments")


def _train(parser: argparse.ArgumentParser) -> None:
    """Trains by a recipe: all of its stages in order.

        sam-alm train E6 --output runs/E6 --set data_root=/data --audio-root /data/sls/audioset=/mnt/audioset

    RECIPE is a name (see --list) or a YAML file; recipes/ltu.yaml explains the keys. Killed at any point and started
    again with the same command, a run resumes and computes the same losses. On two GPUs, with the same global batch
    and so the same steps, and with the states of a whole 2.7B language model divided over the GPUs:

        accelerate launch --config_file examples/accelerate_two_gpu_bf16.yaml -m sam_alm train ...
        accelerate launch --config_file examples/accelerate_fsdp_bf16.yaml -m sam_alm train ...
    """
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a name, such as E6, or a YAML file")
    add("--list", action=_Recipes, nargs=0, dest=argparse.SUPPRESS, help="print the names of the recipes and exit")
    add("--output", metavar="DIR", help="the folder for everything that is trained")
    add("--stage", type=_not_negative, metavar="N", help="run this stage only; the one before must be finished")
    kind = _pair("KEY=VALUE")
    add("--set", type=kind, action="append", default=[], metavar="KEY=VALUE", help="change a key; repeatable")
    add("--audio-root", **AUDIO_ROOT)
    add(
        "--dry-run", action="store_true", help="print parameters, steps, tokens and hours of the stages; needs no data"
    )
    add("--pairs-per-second", type=_above_zero, metavar="X", help="measured speed, for the hours of --dry-run")


def _check_train(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.recipe is None:
        parser.error("RECIPE: got none, expected a name, such as E6 (see --list), or a YAML file")
    try:
        find_recipe(arguments.recipe)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if arguments.output is None and not arguments.dry_run:
        parser.error("--output: got none, expected a folder")


# -- evaluate, caption --------------------------------------------------------------------------------------------


def _evaluate(parser: argparse.ArgumentParser) -> None:
    """Measures a checkpoint on published tasks or on your own questions.

        sam-alm evaluate esc50 --model examples/sam-tiny --data path/to/ESC-50 --fold 4 --output esc50.json
        accelerate launch -m sam_alm evaluate esc50 vocalsound audiocaps --model DIR --text-encoder clap-2022 \\
            --data esc50=path/to/ESC-50 --data vocalsound=path/to/vocalsound --data audiocaps=audiocaps_test.json \\
            --audio-root /published/paths=path/to/audio --output results
        sam-alm evaluate clotho --human --data path/to/clotho --output human.json
        sam-alm evaluate questions --model examples/sam-tiny --data questions.csv --output questions.json

    --data is in the layout in which it is published, or one of LTU's evaluation files. Classification is scored with a
    text encoder, which has no default, and by the likelihood of the labels; ESC-50 without a text encoder by whether
    the description names the clip's class and no other. `questions` takes a table with the columns audio, prompt,
    answer and kind (such as binary and multiple_choice).

    The answers are stored beside the output, in FILE.json.answers, until all results are written: the same command
    resumes an interrupted run, with any number of processes.
    """
    add = parser.add_argument
    add("benchmarks", nargs="+", choices=METRICS, metavar="BENCHMARK", help=", ".join(METRICS))
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", metavar="DIR_OR_ID", help=MODEL)
    models.add_argument("--human", action="store_true", help="score one human caption of a clip against its others")
    add("--data", required=True, action="append", metavar="[BENCHMARK=]PATH", help="its folder, JSON file or table")
    add("--output", type=Path, required=True, metavar="PATH", help="a JSON file, or a folder for several benchmarks")
    add("--fold", type=int, choices=range(1, 6), help="of ESC-50; default: all")
    add("--text-encoder", metavar="NAME", help="such as clap-2022, clap-2023, minilm, or a folder")
    add("--text-tokenizer", metavar="DIR", help="of Microsoft CLAP's tokenizer, where there is no network")
    add("--protocol", action="append", metavar="NAME", help="repeatable; the first one's value is the result's")
    add("--answer-form", default=ANSWER_FORM, metavar="TEXT", help=f"how the model writes a label; {DEFAULT}")
    add("--prompt-style", choices=STYLES, default="reasonaqa", help=f"of MMAU; {DEFAULT}")
    add("--shuffle-choices", type=int, metavar="SEED", help="ask MMAU with its choices in another order")
    add("--audio-root", **AUDIO_ROOT)
    add("--min-coverage", type=_share, default=0.0, metavar="S", help="least share of clips that exist, such as 0.95")
    add("--limit", type=_positive, metavar="N", help="only the first items, for a quick look")
    add("--spice-jars", metavar="DIR", help="of SPICE's jars; see examples/spice-pom.xml")
    add("--require-spice", action="store_true", help="stop where SPICE cannot be computed")
    add("--max-new-tokens", type=_positive, default=400, metavar="N", help=f"longest answer; {DEFAULT}, LTU's")
    add("--incomplete", **INCOMPLETE)
    add("--batch-size", type=_positive, default=32, metavar="N", help=DEFAULT)
    add("--device", metavar="D", help="by default each process's GPU where available")
    add("--dtype", default="float32", choices=DTYPES, help=DEFAULT)


def _check_evaluate(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    arguments.benchmarks = names = list(dict.fromkeys(arguments.benchmarks))
    if len(names) > 1 and arguments.output.suffix == ".json":
        parser.error(f"--output: got {arguments.output} for {len(names)} benchmarks, expected a folder")
    metrics = {METRICS[name] for name in names}
    for option, is_given, is_used, reason in (
        ("fold", arguments.fold is not None, "esc50" in names, "only esc50 has folds"),
        ("shuffle-choices", arguments.shuffle_choices is not None, "mmau" in metrics, "only MMAU has choices"),
        ("prompt-style", arguments.prompt_style != "reasonaqa", "mmau" in metrics, "only MMAU's prompts have styles"),
        ("require-spice", arguments.require_spice, "caption" in metrics, "no captions are scored"),
        ("text-tokenizer", arguments.text_tokenizer is not None, arguments.text_encoder, "there is no text encoder"),
    ):
        if is_given and not is_used:
            parser.error(f"--{option}: given, but {reason}")
    named: dict[str, str] = {}
    general = []
    for each in arguments.data:
        name, equals, path = each.partition("=")
        if not equals or name not in METRICS:
            general.append(each)
        elif named.setdefault(name, path) != path:
            parser.error(f"--data: got {name} twice, {named[name]!r} and {path!r}")
    unused = [name for name in named if name not in names] + general[1:]
    if unused:
        parser.error(f"--data: got {unused[0]!r}, which is for none of {', '.join(names)}")
    without = [name for name in names if name not in named and not general]
    if without:
        parser.error(f"--data: got none for {without[0]}, expected --data {without[0]}=PATH")
    arguments.data = {name: named.get(name) or general[0] for name in names}


def _caption(parser: argparse.ArgumentParser) -> None:
    """Describes every clip of a folder or dataset of any size.

        sam-alm caption recordings/ --model examples/sam-tiny --output captions/
        sam-alm caption owner/dataset --streaming --split train --keep id --output captions/ --model DIR
        accelerate launch -m sam_alm caption recordings/ --model DIR --output captions/ --labels labels.txt \\
            --prompt "caption=Write an audio caption." --prompt "where=Where was this recorded?"

    A clip of more than 10.24 seconds is described window by window. The output is a folder of shards with a row for
    each window, as sam_lab/annotation.py documents it. failures.jsonl lists what cannot be read, with the reason. The
    same command resumes a killed run, also with another number of processes.
    """
    add = parser.add_argument
    share = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    add("source", metavar="SOURCE", help="a folder of audio, a folder or file of a dataset, or a dataset on the Hub")
    add("--model", required=True, metavar="DIR_OR_ID", help=MODEL)
    add("--output", required=True, metavar="DIR", help="the folder to write or to resume")
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="a question; repeatable, each is a column; by default that of `sam-alm describe`, as the column text",
    )
    add("--labels", metavar="FILE", help="labels to score, one a line: columns label, log_likelihoods")
    add("--label-prompt", default=CLASSIFICATION_PROMPT, metavar="TEXT", help=DEFAULT)
    add("--split", default="train", metavar="NAME", help=f"of a dataset; {DEFAULT}")
    add("--audio-column", metavar="NAME", help="of a dataset; by default its Audio column")
    add("--keep", action="append", default=[], metavar="COLUMN", help="copy to the output; repeatable")
    add("--streaming", action="store_true", help="read a dataset without preparing it on disk")
    add("--format", choices=FORMATS, default="parquet", help=DEFAULT)
    add("--max-new-tokens", type=_positive, metavar="N", help="by default the checkpoint's")
    add("--batch-size", type=_positive, default=32, metavar="N", help=f"windows; {DEFAULT}")
    add("--shard-size", type=_positive, default=2000, metavar="N", help=f"windows; {DEFAULT}")
    add("--workers", type=_not_negative, default=min(8, share), metavar="N", help=f"decoders a process; {DEFAULT}")
    add("--dtype", choices=("auto", *DTYPES), help="default: float32 on a CPU, else auto (as stored)")
    add("--incomplete", **INCOMPLETE)
    add("--max-seconds", **MAX_SECONDS)
    add("--retry-failures", action="store_true", help="try again what could not be read before")


# -- analyze, tables, mix -----------------------------------------------------------------------------------------


def _analyze(parser: argparse.ArgumentParser) -> None:
    """Analyses audio tokens as the paper does: Tables 3 and 4, Figures 2 and 3.

        sam-alm analyze stages runs/E4 runs/E6 --start checkpoints/sam-130m-concatenation --clips path/to/clips \\
            --limit 500 --output figure2.json --figure figure2.pdf
        sam-alm analyze tokens examples/sam-tiny runs/E10/stage-4/last --clips clips.csv --output table3.json
        sam-alm analyze swap E4=results/e4 E5=results/e5 E6=results/e6 --output table4.json
        sam-alm analyze distance --output figure3.json

    Clips are a folder, a table (.csv, .json, .jsonl) with a column of files, or a dataset; --limit draws some of them
    by --seed. The paper does not state which it took. The JSON file holds them, with all that the numbers depend on.
    """
    works = parser.add_subparsers(dest="analysis", required=True, metavar="{tokens,stages,swap,distance}")
    tokens = works.add_parser("tokens", help="Table 3: rank and similarity of the tokens of checkpoints")
    tokens.add_argument("checkpoints", nargs="+", metavar="[NAME=]DIR", help="checkpoints; by default a row is a size")
    tokens.add_argument("--with-connector", action="store_true", help="also measure the connector's output")
    stages = works.add_parser("stages", help="Figure 2: rank by training stage; and Table 3 of the last stages")
    stages.add_argument("runs", nargs="+", metavar="[NAME=]DIR", help="output folders of `sam-alm train`")
    stages.add_argument(
        "--start", required=True, metavar="DIR", help="the checkpoint, or encoder, before any training"
    )
    stages.add_argument("--figure", metavar="FILE", help="the .png, .pdf or .svg to draw")
    swap = works.add_parser("swap", help="Table 4: scores with the encoders of other sizes")
    swap.add_argument("results", nargs="+", metavar="NAME=PATH", help="E4=results/e4, a JSON file or a folder of them")
    distance = works.add_parser("distance", help="Figure 3: state updates between neighbouring tokens")
    distance.add_argument("--model", metavar="DIR_OR_ID", help="take this checkpoint's time steps and bands")
    for work in (tokens, stages):
        add = work.add_argument
        add("--clips", required=True, metavar="SOURCE", help="a folder or a table of audio files, or a dataset")
        add("--limit", type=_positive, metavar="N", help="analyse at most so many of them, drawn by --seed")
        add("--seed", type=int, default=0, metavar="N", help=DEFAULT)
        add("--tau", type=_share, default=0.95, metavar="S", help=f"{DEFAULT}, the paper's")
        add("--batch-size", type=_positive, default=16, metavar="N", help=DEFAULT)
        add("--device", metavar="D", help="by default cuda where available")
        add("--dtype", default="float32", choices=DTYPES, help=DEFAULT)
    for work in (tokens, stages, swap, distance):
        work.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON file to write")


def _tables(parser: argparse.ArgumentParser) -> None:
    """Prints the paper's tables with your results beside them.

        sam-alm tables esc50.json clotho.json --json tables.json
        sam-alm tables small=runs/130m/esc50.json large=runs/2.7b/esc50.json --table 1
        sam-alm tables small=clotho_130m.json large=clotho_2.7b.json --table 2 --clips "Rain on a roof.wav"
        sam-alm tables --table claims

    Results are files or folders that `sam-alm evaluate` has written; NAME=PATH names a model, in Table 4 by the source
    of its encoder. `claims` counts how often what the paper calls better is better, cell by cell.
    """
    add = parser.add_argument
    add("results", nargs="*", metavar="[NAME=]PATH", help="results of `sam-alm evaluate`, files or folders")
    add(
        "--table",
        nargs="+",
        choices=("1", "2", "4", "5", "claims"),
        help="default: 1 and 5 where there are results for them, and all but 2 without results",
    )
    add("--clips", nargs="+", default=[], metavar="NAME", help="of Table 2")
    add("--paper", metavar="FILE", help="JSON with the paper's numbers, instead of the built-in ones")
    add("--json", type=Path, metavar="FILE", help="also write the tables to this file")


def _mix(parser: argparse.ArgumentParser) -> None:
    """Builds OpenReasonAQA from OpenAQA and ReasonAQA.

        sam-alm mix --openaqa openaqa_5.6M.json --reasonaqa train.json --tokenizer state-spaces/mamba-130m-hf \\
            --audio-root /data/sls/audioset/dave_version/audio=/mnt/audioset \\
            --audio-root AudioCapsLarger=/mnt/audiocaps --output data/openreasonaqa

    The paper does not state how it drew its 3.8 million pairs: --reading and --caption-rule choose. The folder gets
    Parquet shards in random order, summary.json, and the counts by kind and source as openreasonaqa.json, which are
    also printed. Records without audio are removed before anything is drawn.
    """
    add = parser.add_argument
    add("--openaqa", required=True, metavar="FILE", help="OpenAQA's JSON file with closed and open questions")
    add("--reasonaqa", required=True, nargs="+", metavar="FILE", help="ReasonAQA's JSON files, such as train.json")
    add("--output", required=True, metavar="DIR", help="the folder to write")
    add("--size", type=_positive, default=3_800_000, metavar="N", help=f"number of records; {DEFAULT}")
    add("--reading", choices=READINGS, default="whole", help=f"what has that size; {DEFAULT}")
    add(
        "--caption-rule",
        choices=CAPTION_RULES,
        default="all_open",
        help="which open-ended questions are replaced: all; those that ask for a description; those that are not "
        f"answered by yes or no; {DEFAULT}",
    )
    add("--seed", type=_not_negative, default=0, metavar="N", help=DEFAULT)
    add("--audio-root", **AUDIO_ROOT)
    add("--no-audio-check", action="store_true", help="keep records without audio")
    add("--max-missing", type=_share, default=0.05, metavar="S", help=f"largest share without audio; {DEFAULT}")
    add("--missing-source", action="append", default=[], metavar="NAME", help="may lack all of its audio; repeatable")
    add(
        "--closed-prefix",
        type=_share,
        default=0.5,
        metavar="S",
        help=f"of closed questions with LTU's prefix; {DEFAULT}",
    )
    add("--skip-unanswerable", action="store_true", help="skip answers such as 'cannot be determined'")
    add("--keep-case", action="store_true", help="do not lower-case ReasonAQA, as Mellow does")
    add("--tokenizer", metavar="SRC", help="a tokenizer.json, a folder or a Hub id: counts what --cutoff would cut")
    add("--cutoff", type=_positive, default=108, metavar="N", help=f"text tokens; {DEFAULT}, LTU's")


# -- benchmark ----------------------------------------------------------------------------------------------------


def _benchmark(parser: argparse.ArgumentParser) -> None:
    """Measures speed and memory with random weights of the paper's sizes.

        sam-alm benchmark train --size 2.7b --batch 32 64 --json train.json
        sam-alm benchmark train --size 2.7b --connector time_major --memory-limit-gib 23.5 --json fit.json
        sam-alm benchmark load --workers 0 4 8 --json load.json

    The result is a list of {"work", "implementation", "size", "batch", "dtype", "state_dtype", "per_second",
    "floor_ms", "device", ...}, written after each measurement. floor_ms is the time for the arithmetic of a
    micro-batch at the 790 TFLOP/s that a large bf16 matrix product reached on an H100.
    """
    works = parser.add_subparsers(dest="work", required=True, metavar="{load,train}")

    def add_work(name: str, seconds: float, text: str) -> Any:
        add = works.add_parser(name, help=text, description=text).add_argument
        add("--json", type=Path, required=True, metavar="FILE", help="the file to write")
        add("--batch", type=_positive, nargs="+", default=[32], metavar="N", help="rows of a micro-batch")
        add("--seconds", type=_above_zero, default=seconds, metavar="S", help=f"of each, at most; {DEFAULT}")
        add("--device", metavar="D", help="by default cuda where available")
        add("--seed", type=int, default=0, metavar="N", help=DEFAULT)
        return add

    add = add_work("load", 10.0, "Clips a second from compressed stereo files of 44.1 kHz to batches.")
    add("--clips", type=_positive, default=64, metavar="N", help=f"files of each format; {DEFAULT}")
    add("--workers", type=_not_negative, nargs="+", default=[0, 2, 4, 8], metavar="N", help="processes that load")
    add("--features", nargs="+", choices=("workers", "device"), default=["workers", "device"], help="place of log-mel")
    add("--threads", type=_positive, default=num_cores(), metavar="N", help=f"of torch without workers; {DEFAULT}")

    add = add_work("train", 60.0, "LoRA, connector and encoder, bf16 autocast, AdamW: pairs a second, memory, shares.")
    add("--size", choices=(*SIZES, "tiny"), required=True, help="of the model; tiny is for trying the command")
    add("--connector", nargs="+", choices=CONNECTORS, default=["concatenation"], help="one or more")
    add("--rank", type=_positive, default=256, metavar="N", help=f"of LoRA; {DEFAULT}")
    add("--frozen-encoder", action="store_true", help="do not train the encoder")
    add("--recompute", action="store_true", help="recompute activations in the backward pass")
    add("--pack-to", type=_positive, metavar="N", help="pack pairs into rows of at most so many positions")
    add("--lengths", choices=("mix", "captions"), default="mix", help=f"distribution of the text's length; {DEFAULT}")
    add("--text-tokens", type=_positive, metavar="N", help="instead: so many text positions in every pair")
    add("--text-cutoff", type=_positive, metavar="N", help="most text positions of a pair; LTU's is 108")
    add("--pad-to-multiple-of", type=_positive, default=1, metavar="N", help=DEFAULT)
    add("--chunk-size", type=_positive, metavar="N", help="of the scan's kernels; default: the configuration's")
    add("--global-batch", type=_positive, default=256, metavar="N", help=f"pairs of an optimiser step; {DEFAULT}")
    add("--steps", type=_positive, default=8, metavar="N", help=f"optimiser steps to measure, at most; {DEFAULT}")
    add("--waveforms", action="store_true", help="start with sound in the host's memory, not log-mel")
    add("--all-logits", action="store_true", help="compute the logits of all positions")
    add("--memory-limit-gib", type=_above_zero, metavar="X", help="of a smaller card; finds the largest micro-batch")
    add("--largest-batch", type=_positive, default=256, metavar="N", help=f"where that search ends; {DEFAULT}")
    add("--profile", type=Path, metavar="FILE", help="write the time of each kernel in a step")


COMMANDS = {  # in the order of the help; the docstrings are the commands' descriptions
    "describe": _describe,
    "convert": _convert,
    "env": _env,
    "finetune": _finetune,
    "train": _train,
    "evaluate": _evaluate,
    "caption": _caption,
    "analyze": _analyze,
    "tables": _tables,
    "mix": _mix,
    "benchmark": _benchmark,
}
# Conflicts between the options of a command.
CHECKS = {"finetune": _check_finetune, "train": _check_train, "evaluate": _check_evaluate}
