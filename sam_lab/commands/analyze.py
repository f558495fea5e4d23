"""`sam-alm analyze`: the paper's analysis of audio tokens, Tables 3 and 4, Figures 2 and 3."""

import argparse
from pathlib import Path
from typing import Any

from configuration_sam import CONNECTORS, SamConfig
from sam_lab.common.checks import check_model, choose_device
from sam_lab.common.files import write_json
from sam_lab.common.names import name_in_line
from sam_lab.common.provenance import versions
from sam_lab.common.text_tables import markdown, text_table
from sam_lab.paper.analysis import ClipSet, analyse_checkpoint, analyse_run, choose_clips, state_update_distance
from sam_lab.paper.figures import check_figure, draw_stages, table_3_text
from sam_lab.paper.tables import load_results, table4


def run(arguments: argparse.Namespace) -> int:
    """Runs one of the analyses, and writes its JSON file."""
    for file in filter(None, (arguments.output, getattr(arguments, "figure", None))):
        Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the work
    analyse = {"tokens": _tokens, "stages": _stages, "swap": _swap, "distance": _distance}[arguments.analysis]
    write_json({"analysis": arguments.analysis, "versions": versions(), **analyse(arguments)}, arguments.output)
    print(f"written: {arguments.output}")
    return 0


def _tokens(arguments: argparse.Namespace) -> dict[str, Any]:
    clips, options = _measuring(arguments)
    entries = []
    for name, checkpoint in map(_named, arguments.checkpoints):
        entry = analyse_checkpoint(checkpoint, clips, with_connector=arguments.with_connector, **options)
        _report(checkpoint, entry)
        entries.append((name or entry["size"] or checkpoint, entry))
    print(table_3_text(entries))
    for name, entry in entries if arguments.with_connector else []:
        output = entry["connector"]
        numbers = f"{output['effective_rank']['mean']:.1f} / {output['token_similarity']['mean']:.2f}"
        print(f"{name}: connector's output, {output['shape'][0]} tokens: {numbers}")
    return {**options, "clips": clips.to_dict(), "checkpoints": [{"name": name, **entry} for name, entry in entries]}


def _stages(arguments: argparse.Namespace) -> dict[str, Any]:
    clips, options = _measuring(arguments)
    if arguments.figure:
        check_figure(arguments.figure)  # before the work
    start = analyse_checkpoint(arguments.start, clips, **options)
    _report(arguments.start, start)
    curves: dict[str, dict] = {}
    for name, run in map(_named, arguments.runs):
        curve = analyse_run(run, start, clips, **options)
        for point in curve["points"][1:]:
            _report(point["checkpoint"], point)
        if curve["unfinished"]:
            print(f"{run}: stages {', '.join(map(str, curve['unfinished']))} are not finished, and are skipped")
        name = name or f"{curve['size']}, {curve['connector_layout']}"
        if name in curves:
            raise ValueError(f"runs: two are {name!r}; name curves, as in seed-1=DIR.")
        curves[name] = curve
    rows = [["after stage", *curves]]
    for stage in dict.fromkeys(point["stage"] for curve in curves.values() for point in curve["points"]):
        means = ({p["stage"]: f"{p['effective_rank']['mean']:.1f}" for p in c["points"]} for c in curves.values())
        rows.append([str(stage), *(by_stage.get(stage, "") for by_stage in means)])
    print(f"{arguments.tau:g}-effective rank\n{text_table(rows)}\n")
    about = ("size", "connector_layout")
    ends = [(name, c["points"][-1] | {key: c[key] for key in about}) for name, c in curves.items()]
    given = [_named(run)[0] for run in arguments.runs]
    print(table_3_text([(label or end["size"], end) for label, (_, end) in zip(given, ends)]))
    if arguments.figure:
        draw_stages(curves, arguments.figure)
        print(f"drawn: {arguments.figure}")
    return {**options, "clips": clips.to_dict(), "curves": [{"name": name, **curve} for name, curve in curves.items()]}


def _swap(arguments: argparse.Namespace) -> dict[str, Any]:
    table = table4(load_results(arguments.results))
    print(markdown(table))
    return table


def _distance(arguments: argparse.Namespace) -> dict[str, Any]:
    audio = None
    if arguments.model is not None:
        check_model(arguments.model)
        audio = SamConfig.from_pretrained(arguments.model).audio_config
    distances = {name: state_update_distance(SamConfig(audio_config=audio, connector=name)) for name in CONNECTORS}
    rows = [["state updates", "to the next time step", "to the next band", "slots"]]
    print(text_table(rows + [[name, *map(str, found.values())] for name, found in distances.items()]))
    return {"connectors": distances}


def _named(argument: str) -> tuple[str | None, str]:
    """`NAME=DIR` in its parts; without a name that is `None`."""
    name, equals, folder = argument.partition("=")
    return (name, folder) if equals and "/" not in name else (None, argument)


def _measuring(arguments: argparse.Namespace) -> tuple[ClipSet, dict[str, Any]]:
    """The clips to measure, and how."""
    clips = choose_clips(arguments.clips, arguments.limit, arguments.seed)
    arguments.device = str(choose_device(arguments.device))
    return clips, {key: getattr(arguments, key) for key in ("tau", "dtype", "device", "batch_size")}


def _report(source: str, entry: dict[str, Any]) -> None:
    """Prints which clips could not be measured, or not whole."""
    for failure in entry["failed"]:
        print(f"{source}: {name_in_line(failure['audio'])} is skipped: {failure['error']}")
    if entry["truncated"]:
        print(f"{source}: of {entry['truncated']} clips over 10.24 s the first 10.24 s were used")
