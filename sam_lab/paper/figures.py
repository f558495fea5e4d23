"""The results of `analysis.py` in the paper's form: Figure 2, and Table 3 with the paper's numbers beside ours."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configuration_sam import CONNECTORS
from sam_lab.common.files import written
from sam_lab.common.text_tables import text_table
from sam_lab.paper.numbers import paper_tables

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")

# -- Figure 2 -----------------------------------------------------------------------------------------------------


def check_figure(path: str | Path) -> None:
    """Raises [`draw_stages`]' errors about a file's name and matplotlib, before any computation."""
    if Path(path).suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(f"figure: got {str(path)!r}, expected a name that ends in {', '.join(FIGURE_SUFFIXES)}.")
    _figure_class()


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A figure needs matplotlib; install it with `pip install 'sam-alm[eval]'`.") from error
    return Figure


def draw_stages(curves: Mapping[str, Mapping[str, Any]], path: str | Path | None = None):
    """Figure 2: τ-effective rank by training stage, with a curve for each model.

    Curves also differ in marker and line style, so that the figure is readable without colours. Bars are the standard
    error of the mean over the clips.

    Args:
        curves (`dict[str, dict]`): [`analyse_run`]'s results by legend text.
        path (`str` or `Path`, *optional*): File to save the figure to: `.png`, `.pdf` or `.svg`.

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
    colours = ("black", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, safe for colour blindness
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
        with written(path) as place:
            figure.savefig(place, format=Path(path).suffix[1:].lower(), dpi=300)
    return figure


# -- Table 3 ------------------------------------------------------------------------------------------------------


def table_3_text(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Table 3: `rank / similarity` by size (rows) and connector (columns), with the paper's numbers in brackets.

    Args:
        entries (list of `(str, dict)`): Row name and [`analyse_checkpoint`]'s result.

    Raises:
        ValueError: Two entries for one cell.
    """
    paper = {(row["model"].removeprefix("SAM-"), row["connector"]): row for row in paper_tables()["table3"]}
    cells: dict[tuple[str, str | None], str] = {}
    for name, entry in entries:
        key = name, entry["connector_layout"]
        if key in cells:
            raise ValueError(
                f"checkpoints: two are {name} with {key[1] or 'no connector'}; name rows, as in seed-1=DIR."
            )
        text = f"{entry['effective_rank']['mean']:.1f} / {entry['token_similarity']['mean']:.2f}"
        theirs = paper.get((entry["size"], entry["connector_layout"]))
        if theirs is not None:
            text += f" ({theirs['effective_rank']:.1f} / {theirs['cosine_similarity']:.2f})"
        cells[key] = text
    columns = [column for column in (*CONNECTORS, None) if any(key[1] == column for key in cells)]
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [["size", *(column or "encoder alone" for column in columns)]]
    rows += [[name, *(cells.get((name, column), "") for column in columns)] for name in names]
    return f"τ-effective rank / cosine similarity (the paper's)\n{text_table(rows)}"
