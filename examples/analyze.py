"""The paper's analysis of audio tokens, for checkpoints and trainings of your own: Tables 3 and 4, Figures 2 and 3.

    python examples/analyze.py stages runs/E4 runs/E6 --start checkpoints/sam-130m-concatenation --clips path/to/clips \
        --limit 500 --output figure2.json --figure figure2.pdf
    python examples/analyze.py tokens examples/sam-tiny runs/E10/stage-4/last --clips clips.csv --output table3.json
    python examples/analyze.py swap E4=results/e4 E5=results/e5 E6=results/e6 --output table4.json
    python examples/analyze.py distance --output figure3.json

`stages` draws Figure 2, the effective rank after each stage of one or more trainings by `examples/train.py`, beginning
at the untouched encoder, and prints Table 3 of the encoders that they ended with. `tokens` prints Table 3 of checkpoints.
`swap` prints Table 4 from the results that `examples/evaluate.py` has written for the three recipes
`table4_encoder_e4` to `e6`, a folder or file of JSON for each. `distance` prints Figure 3's numbers.

Clips are a folder, a table (.csv, .json, .jsonl) with a column of files, or a dataset; `--limit` draws some of them by
`--seed`. The paper does not say which it took. The JSON holds them, with all that the numbers depend on.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configuration_sam import CONNECTORS, SamConfig
from sam_lab.common.files import write_json
from sam_lab.common.provenance import versions
from sam_lab.common.text_tables import markdown, text_table
from sam_lab.paper.analysis import analyse_checkpoint, analyse_run, choose_clips, state_update_distance
from sam_lab.paper.figures import check_figure, draw_stages, table_3_text
from sam_lab.paper.tables import load_results, table4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tokens = commands.add_parser("tokens", help="Table 3: rank and similarity of the tokens of checkpoints")
    tokens.add_argument("checkpoints", nargs="+", metavar="[NAME=]DIR", help="checkpoints; the size is the row's name")
    tokens.add_argument("--with-connector", action="store_true", help="also measure the connector's output")
    stages = commands.add_parser("stages", help="Figure 2: rank by training stage; and Table 3 of the last stages")
    stages.add_argument("runs", nargs="+", metavar="[NAME=]DIR", help="output folders of examples/train.py")
    stages.add_argument("--start", required=True, help="the checkpoint, or encoder alone, before any training")
    stages.add_argument("--figure", help="the .png, .pdf or .svg to draw")
    for command in (tokens, stages):
        command.add_argument("--clips", required=True, help="a folder or a table of audio files, or a dataset")
        command.add_argument("--limit", type=int, help="analyse at most so many of them, drawn by --seed")
        command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
        command.add_argument("--tau", type=float, default=0.95, help="default: %(default)s, the paper's")
        command.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command.add_argument("--device", default=device, help="default: %(default)s")
        command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    swap = commands.add_parser("swap", help="Table 4: scores with the encoders of other sizes")
    swap.add_argument("results", nargs="+", metavar="NAME=PATH", help="E4=results/e4, a JSON file or a folder of them")
    distance = commands.add_parser("distance", help="Figure 3: state updates between neighbouring tokens")
    distance.add_argument("--model", help="take this checkpoint's numbers of time steps and bands")
    for command in (tokens, stages, swap, distance):
        command.add_argument("--output", required=True, help="the JSON file to write")
    args = parser.parse_args()
    run = {"tokens": run_tokens, "stages": run_stages, "swap": run_swap, "distance": run_distance}[args.command]
    try:
        for file in filter(None, (args.output, getattr(args, "figure", None))):
            Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the work
        write_json({"analysis": args.command, "versions": versions(), **run(args)}, Path(args.output))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {args.output}")


def run_tokens(args: argparse.Namespace) -> dict:
    clips, options = measuring(args)
    entries = []
    for name, checkpoint in map(named, args.checkpoints):
        entry = analyse_checkpoint(checkpoint, clips, with_connector=args.with_connector, **options)
        report(checkpoint, entry)
        entries.append((name or entry["size"] or checkpoint, entry))
    print(table_3_text(entries))
    for name, entry in entries if args.with_connector else []:
        output = entry["connector"]
        numbers = f"{output['effective_rank']['mean']:.1f} / {output['token_similarity']['mean']:.2f}"
        print(f"{name}: connector's output, {output['shape'][0]} tokens: {numbers}")
    return {**settings(args, clips), "checkpoints": [{"name": name, **entry} for name, entry in entries]}


def run_stages(args: argparse.Namespace) -> dict:
    clips, options = measuring(args)
    if args.figure:
        check_figure(args.figure)  # before the work
    start = analyse_checkpoint(args.start, clips, **options)
    report(args.start, start)
    curves: dict[str, dict] = {}
    for name, run in map(named, args.runs):
        curve = analyse_run(run, start, clips, **options)
        for point in curve["points"][1:]:
            report(point["checkpoint"], point)
        if curve["unfinished"]:
            print(f"{run}: stages {', '.join(map(str, curve['unfinished']))} are not finished, and left out")
        name = name or f"{curve['size']}, {curve['connector_layout']}"
        if name in curves:
            raise ValueError(f"runs: two are {name!r}; name curves, as in seed-1=DIR.")
        curves[name] = curve
    rows = [["after stage", *curves]]
    for stage in dict.fromkeys(point["stage"] for curve in curves.values() for point in curve["points"]):
        means = ({p["stage"]: f"{p['effective_rank']['mean']:.1f}" for p in c["points"]} for c in curves.values())
        rows.append([str(stage), *(by_stage.get(stage, "") for by_stage in means)])
    print(f"{args.tau:g}-effective rank\n{text_table(rows)}\n")
    about = ("size", "connector_layout")
    ends = [(name, c["points"][-1] | {key: c[key] for key in about}) for name, c in curves.items()]
    given = [named(run)[0] for run in args.runs]
    print(table_3_text([(label or end["size"], end) for label, (_, end) in zip(given, ends)]))
    if args.figure:
        draw_stages(curves, args.figure)
        print(f"drawn: {args.figure}")
    return {**settings(args, clips), "curves": [{"name": name, **curve} for name, curve in curves.items()]}


def run_swap(args: argparse.Namespace) -> dict:
    table = table4(load_results(args.results))
    print(markdown(table))
    return table


def run_distance(args: argparse.Namespace) -> dict:
    audio = SamConfig.from_pretrained(args.model).audio_config if args.model else None
    distances = {name: state_update_distance(SamConfig(audio_config=audio, connector=name)) for name in CONNECTORS}
    rows = [["state updates", "to the next time step", "to the next band", "slots"]]
    print(text_table(rows + [[name, *map(str, found.values())] for name, found in distances.items()]))
    return {"connectors": distances}


def named(argument: str) -> tuple[str | None, str]:
    """`NAME=DIR` in its parts; the name is `None` where there is none."""
    name, equals, folder = argument.partition("=")
    return (name, folder) if equals and "/" not in name else (None, argument)


def measuring(args: argparse.Namespace) -> tuple:
    clips = choose_clips(args.clips, args.limit, args.seed)
    keys = ("tau", "batch_size", "device", "dtype")
    return clips, {key: getattr(args, key) for key in keys}


def settings(args: argparse.Namespace, clips) -> dict:
    keys = ("tau", "dtype", "device", "batch_size")
    return {**{key: getattr(args, key) for key in keys}, "clips": clips.to_dict()}


def report(source: str, entry: dict) -> None:
    """Says what is not as one might think."""
    for failure in entry["failed"]:
        print(f"{source}: {failure['audio']} is left out: {failure['error']}")
    if entry["truncated"]:
        print(f"{source}: of {entry['truncated']} clips over 10.24 s the beginning was heard")


if __name__ == "__main__":
    main()
