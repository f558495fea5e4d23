"""What was measured, as the paper shows it: Figure 2, Table 3 and Table 4, with the paper's numbers beside ours.

Figure 2 and Table 3 are drawn from what `analysis_sam.py` measures, Table 4 from the results of `examples/evaluate.py`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configuration_sam import CONNECTORS
from records_sam import text_table

FIGURES = (".png", ".pdf", ".svg")

# Table 3: (size, connector) -> τ-effective rank, cosine similarity.
PAPER_TABLE_3 = {
    ("130M", "concatenation"): (53.2, 0.47),
    ("130M", "time_major"): (39.5, 0.53),
    ("130M", "frequency_major"): (40.3, 0.54),
    ("780M", "concatenation"): (55.7, 0.40),
    ("780M", "time_major"): (50.0, 0.47),
    ("780M", "frequency_major"): (49.7, 0.47),
    ("2.7B", "concatenation"): (57.1, 0.35),
    ("2.7B", "time_major"): (51.0, 0.45),
    ("2.7B", "frequency_major"): (51.2, 0.46),
}
# Table 4: benchmark -> its column, its metric. Captions are scored by SPICE.
TABLE_4_COLUMNS = {
    "esc50": ("ESC", "accuracy"),
    "vggsound": ("VGG", "accuracy"),
    "fsd50k": ("FSD", "map"),
    "audioset": ("AS", "map"),
    "audiocaps": ("AC", "spice"),
    "clotho": ("CL", "spice"),
}
# Experiment that the frozen encoder is from -> size of its language model, scores in per cent by column.
PAPER_TABLE_4 = {
    "E4": ("130M", {"ESC": 81.5, "VGG": 53.1, "FSD": 46.2, "AS": 19.8, "AC": 16.9, "CL": 11.4}),
    "E5": ("780M", {"ESC": 80.2, "VGG": 52.8, "FSD": 45.6, "AS": 19.8, "AC": 16.9, "CL": 11.5}),
    "E6": ("2.7B", {"ESC": 80.2, "VGG": 52.7, "FSD": 45.4, "AS": 19.4, "AC": 16.4, "CL": 11.1}),
}

# ---------------------------------------------------------------------------------------------------------------
# Figure 2
# ---------------------------------------------------------------------------------------------------------------


def check_figure(path: str | Path) -> None:
    """Raises what [`draw_stages`] would raise about a file's name and matplotlib, before the work."""
    if Path(path).suffix.lower() not in FIGURES:
        raise ValueError(f"figure: got {str(path)!r}, expected a name that ends in {', '.join(FIGURES)}.")
    _figure_class()


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A figure needs matplotlib; install it with `pip install 'sam-alm[eval]'`.") from error
    return Figure


def draw_stages(curves: Mapping[str, Mapping[str, Any]], path: str | Path | None = None):
    """Figure 2: τ-effective rank by training stage, a curve a model.

    Curves differ in their markers and lines too, so that a print without colours can be read. Bars are the standard
    error of the mean over the clips.

    Args:
        curves (`dict[str, dict]`): What the legend says -> [`analyse_run`]'s result.
        path (`str` or `Path`, *optional*): Where to save it: `.png`, `.pdf` or `.svg`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: A file of another kind.
    """
    if path is not None:
        check_figure(path)
    figure = _figure_class()(figsize=(4.2, 3.0), layout="constrained")
    axes = figure.subplots()
    stages = sorted({p["stage"] for c in curves.values() for p in c["points"] if p["stage"] != "start"})
    places = {stage: place for place, stage in enumerate(["start", *stages])}
    colours = ("black", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by colour-blind eyes
    for number, (name, curve) in enumerate(curves.items()):
        ranks = [point["effective_rank"] for point in curve["points"]]
        errors = [(rank["std"] or 0.0) / math.sqrt(p["count"]) for rank, p in zip(ranks, curve["points"])]
        axes.errorbar(
            [places[point["stage"]] for point in curve["points"]],
            [rank["mean"] for rank in ranks],
            errors,
            label=name,
            color=colours[number % len(colours)],
            marker="os^Dv*"[number % 6],
            linestyle=("-", "--", ":", "-.")[number % 4],
            markersize=5,
            capsize=2,
            elinewidth=0.8,
        )
    axes.set_xticks(list(places.values()), ["untouched", *map(str, stages)])
    axes.set_xlabel("encoder after training stage")
    tau = next(iter(curves.values()))["points"][0]["tau"]
    axes.set_ylabel(f"{tau:g}-effective rank")
    axes.grid(axis="y", color="0.85", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    if path is not None:
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=300)
        os.replace(partial, path)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# Table 3
# ---------------------------------------------------------------------------------------------------------------


def table_3_text(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Table 3: a row a size, a column a connector, `rank / similarity`, the paper's in brackets where it has them.

    Args:
        entries (list of `(str, dict)`): Name of the row, and [`analyse_checkpoint`]'s result.

    Raises:
        ValueError: Two entries for one cell.
    """
    cells: dict[tuple[str, str | None], str] = {}
    for name, entry in entries:
        key = name, entry["connector_layout"]
        if key in cells:
            raise ValueError(
                f"checkpoints: two are {name} with {key[1] or 'no connector'}; name rows, as in seed-1=DIR."
            )
        text = f"{entry['effective_rank']['mean']:.1f} / {entry['token_similarity']['mean']:.2f}"
        paper = PAPER_TABLE_3.get((entry["size"], entry["connector_layout"]))
        cells[key] = text + (f" ({paper[0]:.1f} / {paper[1]:.2f})" if paper else "")
    columns = [column for column in (*CONNECTORS, None) if any(key[1] == column for key in cells)]
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [["size", *(column or "encoder alone" for column in columns)]]
    rows += [[name, *(cells.get((name, column), "") for column in columns)] for name in names]
    return f"τ-effective rank / cosine similarity (the paper's)\n{text_table(rows)}"


# ---------------------------------------------------------------------------------------------------------------
# Table 4
# ---------------------------------------------------------------------------------------------------------------


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Evaluation results: of a JSON file of `examples/evaluate.py`, or of every JSON file of a folder.

    Returns:
        list of `dict`: Each with `benchmark`, `metric`, `value` and what else the file holds, and `file`.

    Raises:
        FileNotFoundError: There is no such file, or no JSON file in the folder.
        ValueError: A file that is no evaluation result.
    """
    path = Path(path).expanduser()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"results: {str(path)!r} is neither a JSON file nor a folder with some.")
    results = []
    for file in files:
        held = json.loads(file.read_text(encoding="utf-8"))
        for result in held if isinstance(held, list) else [held]:
            if not isinstance(result, dict) or not {"benchmark", "metric", "value"} <= result.keys():
                raise ValueError(f"results: {str(file)!r} is no evaluation; expected benchmark, metric and value.")
            results.append({**result, "file": str(file)})
    return results


def table_4(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Table 4: scores of SAM-130M with frozen encoders of several trainings.

    Args:
        results (`dict[str, list]`): Experiment that the encoder is from, such as `"E4"` -> [`read_results`] of the
            model that was trained with it, such as by the recipe `table4_encoder_e4`.

    Returns:
        `dict`: For each experiment `size`, `paper` (scores by column; both `None` where the paper has no such row),
        `scores` (per cent by column), `results` (`interval`, `count`, `missing`, `protocol`, `text_encoder`, `file`
        and `model` of each score) and `other` (benchmarks of the results that are not in Table 4).

    Raises:
        ValueError: A metric that is not the table's, two results for one cell, results of several checkpoints in a
            row, or of several protocols in a column.
    """
    table: dict[str, dict[str, Any]] = {}
    protocols: dict[str, tuple[str, Any]] = {}
    for experiment, found in results.items():
        size, paper = PAPER_TABLE_4.get(experiment, (None, None))
        row: dict[str, Any] = {"size": size, "paper": paper, "scores": {}, "results": {}, "other": []}
        models = {str(result.get("checkpoint_hash") or result.get("model")) for result in found}
        if len(models) > 1:
            raise ValueError(f"{experiment}: its results are of {len(models)} models ({', '.join(sorted(models))}).")
        for result in found:
            if result["benchmark"] not in TABLE_4_COLUMNS:
                row["other"].append(result["benchmark"])
                continue
            column, metric = TABLE_4_COLUMNS[result["benchmark"]]
            if column in row["scores"]:
                files = f"{row['results'][column]['file']} and {result['file']}"
                raise ValueError(f"{experiment}: two results for {column} ({files}); pass one file of each.")
            protocol = result.get("protocol"), result.get("text_encoder")
            other, theirs = protocols.setdefault(column, (experiment, protocol))
            if protocol != theirs:
                raise ValueError(f"{column}: {other} is scored by {theirs}, {experiment} by {protocol}; take one.")
            row["scores"][column] = 100 * _score(result, metric)
            kept = ("count", "missing", "protocol", "text_encoder", "file", "model")
            row["results"][column] = {key: result.get(key) for key in kept}
            if result["metric"].casefold() == metric:  # the interval is of that metric
                row["results"][column]["interval"] = result.get("interval")
        table[experiment] = row
    return table


def _score(result: Mapping[str, Any], metric: str) -> float:
    if result["metric"].casefold() == metric:
        return result["value"]
    for name, value in (result.get("scores") or {}).items():
        if name.casefold() == metric:
            return value
    raise ValueError(
        f"{result['file']}: {result['benchmark']} is scored by {result['metric']}, Table 4 needs {metric}; evaluate it so."
    )


def table_4_text(table: Mapping[str, Mapping[str, Any]]) -> str:
    """[`table_4`]'s result as text: ours, the paper's in brackets; `*` marks the best of a column."""
    columns = [column for column, _ in TABLE_4_COLUMNS.values()]
    papers = {experiment: paper for experiment, (_, paper) in PAPER_TABLE_4.items() if experiment in table}
    best = {column: max(row["scores"].get(column, -1) for row in table.values()) for column in columns}
    paper_best = {column: max((paper[column] for paper in papers.values()), default=None) for column in columns}

    def cell(experiment: str, column: str) -> str:
        score, paper = table[experiment]["scores"].get(column), papers.get(experiment)
        text = "-" if score is None else f"{score:.1f}{'*' if score == best[column] else ''}"
        if paper is not None:
            text += f" ({paper[column]:.1f}{'*' if paper[column] == paper_best[column] else ''})"
        return text

    rows = [["encoder from", *columns]]
    for experiment, row in table.items():
        label = experiment if row["size"] is None else f"{row['size']} ({experiment})"
        rows.append([label, *(cell(experiment, column) for column in columns)])
    return f"per cent (the paper's); * is the best of its column\n{text_table(rows)}"


__all__ = [
    "PAPER_TABLE_3",
    "PAPER_TABLE_4",
    "check_figure",
    "draw_stages",
    "read_results",
    "table_3_text",
    "table_4",
    "table_4_text",
]
