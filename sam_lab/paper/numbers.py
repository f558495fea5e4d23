"""The numbers of the paper's Tables 1, 3, 4 and 5, and how often its claims hold in them.

All numbers have the paper's units: accuracy, micro-F1 and mAP in percent, SPICE times 100.
"""

from collections.abc import Mapping, Sequence
from typing import Any

CITATION = "Lee, Jung, Lee: SAM: A Mamba-2 State-Space Audio-Language Model (Interspeech 2026)"
TABLE1_METRICS = {
    **{"ESC": "accuracy", "DCASE": "micro-F1", "VS": "accuracy", "TUT": "accuracy", "BJO": "accuracy"},
    **{"VGG": "accuracy", "FSD": "mAP", "AS": "mAP", "AC": "SPICE", "CL": "SPICE"},
}
TABLE4_COLUMNS = ("ESC", "VGG", "FSD", "AS", "AC", "CL")
TABLE5_COLUMNS = tuple(f"{task}_{split}" for task in ("sound", "music", "speech") for split in ("mini", "test"))
TABLE5_NOTE = "accuracy in %, MMAU v05.15.25; mini = test-mini, test = the paper's 'base' (9,000 questions)"

# Table 1: experiment (`-` for a peer's row), model, LoRA rank, connector, encoder, data, columns of TABLE1_METRICS.
TABLE1_TEXT = """
- LTU-7B 8 Linear - - 83.1 45.9 55.6 32.5 69.9 50.3 46.3 18.7 17.0 11.9
- GAMA-7B 8 QFormer - - 82.6 38.4 52.4 21.5 69.5 52.2 47.8 19.2 18.5 13.5
- ssLALM-2.8B 8 Linear - - 86.8 47.9 61.2 35.9 61.0 51.0 47.7 19.4 17.7 11.7
E1 SAM-130M 8 concatenation joint OpenAQA 79.7 42.8 55.7 29.2 49.2 51.8 47.0 19.7 14.7 10.5
E2 SAM-780M 8 concatenation joint OpenAQA 83.9 45.5 56.3 29.4 57.6 54.5 47.0 20.3 16.2 11.5
E3 SAM-2.7B 8 concatenation joint OpenAQA 87.1 48.7 63.2 32.8 69.1 56.6 48.4 20.8 17.3 12.4
E4 SAM-130M 256 concatenation joint OpenAQA 83.3 47.3 59.8 33.3 62.3 53.5 46.7 19.9 16.6 12.0
E5 SAM-780M 256 concatenation joint OpenAQA 87.7 47.7 61.9 31.7 49.2 56.1 48.8 21.1 16.9 12.2
E6 SAM-2.7B 256 concatenation joint OpenAQA 89.7 48.7 70.9 31.6 65.3 57.0 49.2 21.1 17.6 11.8
E7 SAM-130M 256 concatenation frozen OpenAQA 76.5 43.9 48.2 31.6 56.8 48.1 39.9 18.2 16.7 11.1
E8 SAM-780M 256 concatenation frozen OpenAQA 84.3 46.5 62.1 32.5 52.5 53.3 45.0 20.4 16.1 11.8
E9 SAM-2.7B 256 concatenation frozen OpenAQA 86.4 48.9 67.3 31.8 58.9 54.3 44.5 21.0 16.9 11.8
E10 SAM-130M 256 time_major joint OpenAQA 83.2 47.3 64.1 30.9 46.6 53.1 46.3 18.8 16.8 12.1
E11 SAM-130M 256 frequency_major joint OpenAQA 84.5 47.3 63.6 32.0 62.7 52.9 46.3 19.1 16.4 12.2
E12 SAM-780M 256 time_major joint OpenAQA 88.3 46.6 68.0 33.2 61.0 55.7 48.6 20.0 17.2 12.3
E13 SAM-780M 256 frequency_major joint OpenAQA 87.6 47.4 64.1 32.8 58.1 56.2 48.4 20.5 17.2 12.3
E14 SAM-2.7B 256 time_major joint OpenAQA 90.0 48.3 71.0 32.4 64.4 56.7 48.9 21.1 17.8 13.0
E15 SAM-2.7B 256 frequency_major joint OpenAQA 88.2 48.1 72.2 32.4 64.4 56.7 49.0 20.7 17.2 12.8
E16 SAM-130M 256 concatenation joint OpenReasonAQA 82.7 44.4 65.8 31.5 57.6 51.7 44.0 19.0 17.2 12.2
E17 SAM-780M 256 concatenation joint OpenReasonAQA 86.2 46.7 62.5 30.7 48.3 54.4 46.6 20.7 17.5 11.8
E18 SAM-2.7B 256 concatenation joint OpenReasonAQA 87.0 46.7 70.9 27.7 57.2 55.6 46.7 20.8 17.4 11.3
"""
# Table 3: model, connector, effective rank, cosine similarity.
TABLE3_TEXT = """
SAM-130M concatenation 53.2 0.47
SAM-130M time_major 39.5 0.53
SAM-130M frequency_major 40.3 0.54
SAM-780M concatenation 55.7 0.4
SAM-780M time_major 50.0 0.47
SAM-780M frequency_major 49.7 0.47
SAM-2.7B concatenation 57.1 0.35
SAM-2.7B time_major 51.0 0.45
SAM-2.7B frequency_major 51.2 0.46
"""
# Table 4: the experiment that the encoder comes from, its size, then TABLE4_COLUMNS.
TABLE4_TEXT = """
E4 130M 81.5 53.1 46.2 19.8 16.9 11.4
E5 780M 80.2 52.8 45.6 19.8 16.9 11.5
E6 2.7B 80.2 52.7 45.4 19.4 16.4 11.1
"""
# Table 5: model, then TABLE5_COLUMNS.
TABLE5_TEXT = """
Gemma_3n-4B 55.86 50.27 56.89 53.2 61.26 62.13
Gemma_3n-2B 51.35 47.47 52.1 51.63 52.22 57.07
GAMA-7B 31.83 30.73 17.71 17.33 12.91 16.97
LTU-7B 22.52 25.86 9.69 12.83 17.71 16.37
SAM-2.7B 24.92 22.83 16.47 15.87 3.3 4.7
SAM-780M 9.01 7.8 7.49 6.13 2.7 2.1
SAM-130M 11.41 11.67 5.99 7.67 5.11 4.77
SAM+OR-2.7B 61.86 56.77 48.8 50.43 31.23 27.43
SAM+OR-780M 58.86 59.73 43.71 46.63 30.33 33.0
SAM+OR-130M 48.95 46.93 40.12 41.47 20.72 23.93
"""

ENCODERS = {"joint": "trained jointly", "frozen": "frozen in every stage"}
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
    rows = []
    for experiment, model, rank, connector, encoder, data, *values in _cells(TABLE1_TEXT):
        row = {"model": model, "lora_rank": int(rank), "connector": connector}
        if experiment != "-":
            row |= {"experiment": experiment, "audio_encoder": ENCODERS[encoder], "data": data}
        rows.append(row | dict(zip(TABLE1_METRICS, map(float, values))))
    return {
        "source": CITATION,
        "table1": {"metrics": TABLE1_METRICS, "rows": rows},
        "table3": [
            {"model": model, "connector": connector, "effective_rank": float(rank), "cosine_similarity": float(cosine)}
            for model, connector, rank, cosine in _cells(TABLE3_TEXT)
        ],
        "table4": [
            {"encoder_from": experiment, "size": size, **dict(zip(TABLE4_COLUMNS, map(float, values)))}
            for experiment, size, *values in _cells(TABLE4_TEXT)
        ],
        "table5": {
            "note": TABLE5_NOTE,
            "rows": [
                {"model": model.replace("_", " "), **dict(zip(TABLE5_COLUMNS, map(float, values)))}
                for model, *values in _cells(TABLE5_TEXT)
            ],
        },
    }


def _cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


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
