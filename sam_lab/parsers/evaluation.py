"""Parsers of the commands that score and show: evaluate, analyze, tables."""

import argparse
from pathlib import Path

from sam_lab.parsers.options import (
    ANSWER_FORM,
    AUDIO_ROOT,
    DEFAULT,
    DTYPES,
    INCOMPLETE,
    METRICS,
    MODEL,
    STYLES,
    positive,
    share,
)


def evaluate(parser: argparse.ArgumentParser) -> None:
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
    add("--min-coverage", type=share, default=0.0, metavar="S", help="least share of clips that exist, such as 0.95")
    add("--limit", type=positive, metavar="N", help="only the first items, for a quick look")
    add("--spice-jars", metavar="DIR", help="of SPICE's jars; see examples/spice-pom.xml")
    add("--require-spice", action="store_true", help="stop where SPICE cannot be computed")
    add("--max-new-tokens", type=positive, default=400, metavar="N", help=f"longest answer; {DEFAULT}, LTU's")
    add("--incomplete", **INCOMPLETE)
    add("--batch-size", type=positive, default=32, metavar="N", help=DEFAULT)
    add("--device", metavar="D", help="by default each process's GPU where available")
    add("--dtype", default="float32", choices=DTYPES, help=DEFAULT)


def check_evaluate(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
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


def analyze(parser: argparse.ArgumentParser) -> None:
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
        add("--limit", type=positive, metavar="N", help="analyse at most so many of them, drawn by --seed")
        add("--seed", type=int, default=0, metavar="N", help=DEFAULT)
        add("--tau", type=share, default=0.95, metavar="S", help=f"{DEFAULT}, the paper's")
        add("--batch-size", type=positive, default=16, metavar="N", help=DEFAULT)
        add("--device", metavar="D", help="by default cuda where available")
        add("--dtype", default="float32", choices=DTYPES, help=DEFAULT)
    for work in (tokens, stages, swap, distance):
        work.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON file to write")


def tables(parser: argparse.ArgumentParser) -> None:
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
