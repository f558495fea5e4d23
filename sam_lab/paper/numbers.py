"""The numbers of the paper's Tables 1, 3, 4 and 5, and how often its claims hold in them.

All numbers have the paper's units: accuracy, micro-F1 and mAP in percent, SPICE times 100.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CITATION = "Lee, Jung, Lee: SAM: A Mamba-2 State-Space Audio-Language Model (Interspeech 2026)"
TABLE1_METRICS = {
    **{"ESC": "accuracy", "DCASE": "micro-F1", "VS": "accuracy", "TUT": "accuracy", "BJO": "accuracy"},
    **{"VGG": "accuracy", "FSD": "mAP", "AS": "mAP", "AC": "SPICE", "CL": "SPICE"},
}
TABLE4_COLUMNS = ("ESC", "VGG", "FSD", "AS", "AC", "CL")
TABLE5_COLUMNS = tuple(f"{task}_{split}" for task in ("sound", "music", "speech") for split in ("mini", "test"))
TABLE5_NOTE = "accuracy in %, MMAU v05.15.25; mini = test-mini, test = the paper's 'base' (9,000 questions)"
TEXT_COLUMNS = ("model", "connector", "experiment", "audio_encoder", "data", "encoder_from", "size")

# The paper's claims as pairs of experiments, of which the first should be the better one.
SIZES = ("130M", "780M", "2.7B")
CLAIMS = {
    "r = 256 over r = 8 (E4-6 against E1-3)": (("E4", "E1"), ("E5", "E2"), ("E6", "E3")),
    "encoder trained jointly over frozen (E4-6 against E7-9)": (("E4", "E7"), ("E5", "E8"), ("E6", "E9")),
    "connector (a) over (b) (E4-6 against E10, E12, E14)": (("E4", "E10"), ("E5", "E12"), ("E6", "E14")),
    "connector (a) over (c) (E4-6 against E11, E13, E15)": (("E4", "E11"), ("E5", "E13"), ("E6", "E15")),
    "OpenReasonAQA over OpenAQA in description (E16-18 against E4-6)": (("E16", "E4"), ("E17", "E5"), ("E18", "E6")),
}


def paper_tables() -> dict[str, Any]:
    """The paper's numbers: `source`, `table1` (`metrics` and `rows`), `table3`, `table4` and `table5` (`note` and
    `rows`); each row is a dict."""
    return {
        "source": CITATION,
        "table1": {"metrics": TABLE1_METRICS, "rows": _rows("table1")},
        "table3": _rows("table3"),
        "table4": _rows("table4"),
        "table5": {"note": TABLE5_NOTE, "rows": _rows("table5")},
    }


def _rows(table: str) -> list[dict[str, Any]]:
    """The rows of `published/TABLE.csv`, without empty cells (the peers have no experiment)."""
    with (Path(__file__).parent / "published" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    types = dict.fromkeys(TEXT_COLUMNS, str) | {"lora_rank": int}
    return [{name: types.get(name, float)(cell) for name, cell in row.items() if cell} for row in rows]


def compare(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], columns: Sequence[str]) -> dict[str, Any]:
    """How often the first row of a pair is better than the second.

    Args:
        pairs (list of pairs of `dict`): Rows of one table.
        columns (list of `str`): The columns to compare; higher is better in all of them.

    Returns:
        `dict`: `won`, `tied`, `lost`, and `mean_difference`, a number for each pair.
    """
    cells = [(first[column], second[column]) for first, second in pairs for column in columns]
    differences = [[first[column] - second[column] for column in columns] for first, second in pairs]
    return {
        "won": sum(first > second for first, second in cells),
        "tied": sum(first == second for first, second in cells),
        "lost": sum(first < second for first, second in cells),
        "mean_difference": [round(sum(each) / len(columns), 2) for each in differences],
    }


def count_claims(paper: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Counts in the paper's tables, cell by cell, how often its claims hold. All are single runs, without intervals.

    Args:
        paper (`dict`, *optional*): As [`paper_tables`] returns; by default its result.

    Returns:
        `list[dict]`: `claim`, `table`, and the result of [`compare`], in Table 1 with a mean difference for each of
        [`SIZES`].
    """
    paper = paper_tables() if paper is None else paper
    table1 = {row["experiment"]: row for row in paper["table1"]["rows"] if "experiment" in row}
    table4 = {row["encoder_from"]: row for row in paper["table4"]}
    table5 = {row["model"]: row for row in paper["table5"]["rows"]}
    counted = [
        {"claim": claim, "table": 1, **compare([(table1[a], table1[b]) for a, b in pairs], list(TABLE1_METRICS))}
        for claim, pairs in CLAIMS.items()
    ]
    swaps = [(table4["E4"], table4[other]) for other in ("E5", "E6")]
    reason = [(table5[f"SAM+OR-{size}"], table5[f"SAM-{size}"]) for size in SIZES]
    gemma = [(table5["SAM+OR-2.7B"], table5["Gemma 3n-4B"])]
    return [
        *counted,
        {"claim": "size-matched encoder (E4's against E5's and E6's)", "table": 4, **compare(swaps, TABLE4_COLUMNS)},
        {"claim": "OpenReasonAQA over OpenAQA on MMAU", "table": 5, **compare(reason, TABLE5_COLUMNS)},
        {"claim": "SAM+OR-2.7B over Gemma 3n-4B on MMAU", "table": 5, **compare(gemma, TABLE5_COLUMNS)},
    ]
