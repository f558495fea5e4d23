"""Parsers of the commands that train: finetune, train, mix."""

import argparse
import ast
import difflib
import importlib.util
from pathlib import Path
from typing import Any

from sam_lab.common.prompts import DEFAULT_PROMPT
from sam_lab.common.text_tables import text_table
from sam_lab.parsers.options import (
    AUDIO_ROOT,
    CAPTION_RULES,
    DEFAULT,
    INCOMPLETE,
    MODEL,
    READINGS,
    above_zero,
    not_negative,
    pair,
    positive,
    share,
    truth,
)
from sam_lab.training.library import find_recipe, recipe_names


class _Recipes(argparse.Action):
    def __call__(self, parser, *unused):
        print(text_table(list(recipe_names().items()), align="left"))
        parser.exit()


def finetune(parser: argparse.ArgumentParser) -> None:
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
        add(name, nargs="?", type=truth, const=True, default=False, metavar="BOOL", help=text)

    add("model", required=True, metavar="DIR_OR_ID", help=MODEL)
    add("train", required=True, metavar="DATA", help="a CSV or JSON file, an audio folder, or a dataset's name")
    add("validation", metavar="DATA", help="the same for the validation split")
    add("validation_share", type=float, default=0.05, metavar="S", help=f"without --validation, of --train; {DEFAULT}")
    add("max_missing", type=share, default=0.0, metavar="S", help=f"largest share of rows without audio; {DEFAULT}")
    add("incomplete", **INCOMPLETE)
    add("prompt", default=DEFAULT_PROMPT, metavar="TEXT", help=f"of rows that have none; {DEFAULT}")
    add("lora_rank", type=not_negative, default=0, metavar="N", help="of adapters on the language model; 0: none")
    add("lora_dropout", type=float, default=0.05, metavar="S", help=f"of the adapters' inputs; {DEFAULT}")
    add_flag("train_language_model", "train the whole language model")
    add_flag("freeze_connector", "do not train the connector")
    add_flag("freeze_encoder", "do not train the audio encoder")
    add_flag("recompute", "save memory: gradient (activation) checkpointing")
    add_flag("cache_features", "compute log-mel once and store it on the device")
    add_flag("augment", "change the training clips at random: for few clips")
    add("max_seconds", type=above_zero, metavar="S", help="train for this time instead of steps or epochs")
    add("num_examples", type=not_negative, default=5, metavar="N", help=f"answers printed at the end; {DEFAULT}")


def check_finetune(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
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


def train(parser: argparse.ArgumentParser) -> None:
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
    add("--stage", type=not_negative, metavar="N", help="run this stage only; the one before must be finished")
    kind = pair("KEY=VALUE")
    add("--set", type=kind, action="append", default=[], metavar="KEY=VALUE", help="change a key; repeatable")
    add("--audio-root", **AUDIO_ROOT)
    add(
        "--dry-run", action="store_true", help="print parameters, steps, tokens and hours of the stages; needs no data"
    )
    add("--pairs-per-second", type=above_zero, metavar="X", help="measured speed, for the hours of --dry-run")


def check_train(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.recipe is None:
        parser.error("RECIPE: got none, expected a name, such as E6 (see --list), or a YAML file")
    try:
        find_recipe(arguments.recipe)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if arguments.output is None and not arguments.dry_run:
        parser.error("--output: got none, expected a folder")


def mix(parser: argparse.ArgumentParser) -> None:
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
    add("--size", type=positive, default=3_800_000, metavar="N", help=f"number of records; {DEFAULT}")
    add("--reading", choices=READINGS, default="whole", help=f"what has that size; {DEFAULT}")
    add(
        "--caption-rule",
        choices=CAPTION_RULES,
        default="all_open",
        help="which open-ended questions are replaced: all; those that ask for a description; those that are not "
        f"answered by yes or no; {DEFAULT}",
    )
    add("--seed", type=not_negative, default=0, metavar="N", help=DEFAULT)
    add("--audio-root", **AUDIO_ROOT)
    add("--no-audio-check", action="store_true", help="keep records without audio")
    add("--max-missing", type=share, default=0.05, metavar="S", help=f"largest share without audio; {DEFAULT}")
    add("--missing-source", action="append", default=[], metavar="NAME", help="may lack all of its audio; repeatable")
    add(
        "--closed-prefix",
        type=share,
        default=0.5,
        metavar="S",
        help=f"of closed questions with LTU's prefix; {DEFAULT}",
    )
    add("--skip-unanswerable", action="store_true", help="skip answers such as 'cannot be determined'")
    add("--keep-case", action="store_true", help="do not lower-case ReasonAQA, as Mellow does")
    add("--tokenizer", metavar="SRC", help="a tokenizer.json, a folder or a Hub id: counts what --cutoff would cut")
    add("--cutoff", type=positive, default=108, metavar="N", help=f"text tokens; {DEFAULT}, LTU's")
