"""The numbers of the paper's Tables 1, 3, 4 and 5, and its tables again with results of ours beside them.

Everything is in the paper's units: accuracy, micro-F1 and mAP in percent, SPICE times 100.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_lab.evaluation.scoring import wilson_interval
from sam_lab.evaluation.tasks import TASKS

SOURCE = "Lee, Jung, Lee: SAM: A Mamba-2 State-Space Audio-Language Model (Interspeech 2026)"
TABLE1_METRICS = {
    **{"ESC": "accuracy", "DCASE": "micro-F1", "VS": "accuracy", "TUT": "accuracy", "BJO": "accuracy"},
    **{"VGG": "accuracy", "FSD": "mAP", "AS": "mAP", "AC": "SPICE", "CL": "SPICE"},
}
TABLE4_COLUMNS = ("ESC", "VGG", "FSD", "AS", "AC", "CL")
TABLE5_COLUMNS = tuple(f"{task}_{split}" for task in ("sound", "music", "speech") for split in ("mini", "test"))
TABLE5_NOTE = "accuracy in %, MMAU v05.15.25; mini = test-mini, test = the paper's 'base' (9,000 questions)"

# Table 1: experiment (none of a peer's), model, LoRA rank, connector, encoder, data, then TABLE1_METRICS' columns.
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
# Table 4: the experiment the encoder is from, its size, then TABLE4_COLUMNS.
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
RESULT_METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "map": "mAP", "SPICE": "SPICE"}
PROTOCOLS = {  # of results -> how a row says it
    "text_encoder": "nearest label by {encoder}",
    "likelihood": "likeliest label",
    "names_label": "label named",
    "captions": "captions",
    "mmau_correct": "MMAU's rule",
}

# What the paper claims of its numbers, as pairs of rows: the first should be the better one.
SIZES = ("130M", "780M", "2.7B")
CLAIMS = {
    "r = 256 over r = 8 (E4-6 against E1-3)": (("E4", "E1"), ("E5", "E2"), ("E6", "E3")),
    "encoder trained jointly over frozen (E4-6 against E7-9)": (("E4", "E7"), ("E5", "E8"), ("E6", "E9")),
    "connector (a) over (b) (E4-6 against E10, E12, E14)": (("E4", "E10"), ("E5", "E12"), ("E6", "E14")),
    "connector (a) over (c) (E4-6 against E11, E13, E15)": (("E4", "E11"), ("E5", "E13"), ("E6", "E15")),
    "OpenReasonAQA over OpenAQA in description (E16-18 against E4-6)": (("E16", "E4"), ("E17", "E5"), ("E18", "E6")),
}


# ---------------------------------------------------------------------------------------------------------------
# The paper's numbers
# ---------------------------------------------------------------------------------------------------------------


def paper_tables() -> dict[str, Any]:
    """The numbers as the paper prints them: `source`, `table1` (`metrics` and `rows`), `table3`, `table4`, `table5`
    (`note` and `rows`); a row is a dict."""
    rows = []
    for experiment, model, rank, connector, encoder, data, *values in _cells(TABLE1_TEXT):
        row = {"model": model, "lora_rank": int(rank), "connector": connector}
        if experiment != "-":
            row |= {"experiment": experiment, "audio_encoder": ENCODERS[encoder], "data": data}
        rows.append(row | dict(zip(TABLE1_METRICS, map(float, values))))
    return {
        "source": SOURCE,
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
        columns (list of `str`): Where they are compared; more is better in all of them.

    Returns:
        `dict`: `won`, `tied`, `lost`, and `mean_difference`, a number a pair.
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
    """The paper's claims counted in its own tables, cell by cell. All are single runs, without seeds or intervals.

    Args:
        paper (`dict`, *optional*): As [`paper_tables`] gives them; those by default.

    Returns:
        `list[dict]`: `claim`, `table`, and what [`compare`] gives, a mean difference for each of [`SIZES`] in Table 1.
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


# ---------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------


def load_results(specifications: Sequence[str]) -> list[dict[str, Any]]:
    """Reads results of `examples/evaluate.py`.

    Args:
        specifications (list of `str`): Files, or folders of them, each as `PATH` or `NAME=PATH`, to name the model.

    Returns:
        `list[dict]`: The results, each with `label` (the name; by default the last part of `model`) and `file`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a result; a benchmark that is in none of the tables; one model, protocol and benchmark twice;
            one name for two models.
    """
    results: list[dict[str, Any]] = []
    for specification in specifications:
        name, _, place = ("", "", specification) if Path(specification).exists() else specification.rpartition("=")
        files = [Path(place)]
        if Path(place).is_dir():
            files = [path for path in sorted(Path(place).glob("*.json")) if not path.stem.endswith("-submission")]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"results: there is no file {place!r}, nor a folder of that name with results.")
        for file in files:
            results.append(_checked_result(file, name))
    _check_together(results)
    return results


def _checked_result(file: Path, name: str) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"results: {str(file)!r} is no JSON ({error}), expected what evaluate.py writes.") from error
    keys = ("benchmark", "protocol", "metric", "value", "count", "predictions")
    absent = [key for key in keys if not isinstance(result, dict) or key not in result]
    if absent:
        raise ValueError(f"results: {str(file)!r} has no {absent[0]!r}, expected what evaluate.py writes.")
    if result["benchmark"] not in TASKS:
        raise ValueError(
            f"results: {str(file)!r} is of the benchmark {result['benchmark']!r}, which is in none of the paper's tables; "
            f"expected one of {', '.join(TASKS)}."
        )
    label = name or Path(str(result.get("model", ""))).name
    if not label:
        raise ValueError(f"results: {str(file)!r} does not say its model; name it with NAME={file}.")
    return {**result, "label": label, "file": str(file)}


def _check_together(results: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple, str] = {}
    models: dict[str, tuple[Any, str]] = {}
    for result in results:
        hashed = result.get("checkpoint_hash", result.get("model"))
        other, file = models.setdefault(result["label"], (hashed, result["file"]))
        if other != hashed:
            raise ValueError(
                f"results: {file!r} and {result['file']!r} are of different models, and both are called "
                f"{result['label']!r}; name them with NAME=FILE."
            )
        for protocol in _scores(result):
            key = (result["label"], result["benchmark"], protocol, _encoder(result, protocol))
            if key in seen:
                raise ValueError(
                    f"results: {seen[key]!r} and {result['file']!r} both have {result['label']} on "
                    f"{result['benchmark']} by {protocol}; expected one of them, or two names (NAME=FILE)."
                )
            seen[key] = result["file"]


def _scores(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Protocol -> its scores."""
    return result.get("protocols") or {result["protocol"]: result}


def _encoder(result: Mapping[str, Any], protocol: str) -> str | None:
    return result.get("text_encoder") if protocol == "text_encoder" else None


def _cell(score: Mapping[str, Any], count: int, interval: Sequence[float] | None = None) -> dict[str, Any]:
    interval = score.get("interval") if interval is None else interval
    return {
        "value": round(100 * score["value"], 2),
        "interval": None if interval is None else [round(100 * bound, 2) for bound in interval],
        "count": count,
    }


def measured_rows(results: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[list[dict], list[str]]:
    """Rows of Table 1 or 4 from results: one a model and protocol.

    Captions have one protocol: their scores stand in every row of LTU's protocol (`text_encoder`), else in their own.

    Args:
        results (list of `dict`): From [`load_results`].
        columns (list of `str`): The table's columns.

    Returns:
        `list[dict]`: `model`, `protocol`, and by column `{"value", "interval", "count"}`; `list[str]`: what is to be
        known about the cells.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    captions: dict[str, dict[str, Any]] = {}
    notes = []
    for result in results:
        benchmark = TASKS[result["benchmark"]]
        column = benchmark.paper_column
        if column not in columns:
            continue
        if result["count"] < benchmark.expected:
            part = f", fold {result['fold']}" if benchmark.name == "esc50" and result.get("fold") else ""
            notes.append(
                f"{result['label']}: {result['count']:,} of the {benchmark.expected:,} clips of {benchmark.title}{part}."
            )
        if result.get("failed"):
            notes.append(f"{result['label']}: {len(result['failed'])} clips of {benchmark.title} could not be read.")
        for protocol, score in _scores(result).items():
            if RESULT_METRICS.get(score["metric"]) != TABLE1_METRICS[column]:
                notes.append(
                    f"{result['label']}: of {benchmark.title} there is {score['metric']} and no "
                    f"{TABLE1_METRICS[column]}, so that its cell is empty."
                )
                continue
            cell = _cell(score, result["count"])
            if protocol == "captions":
                captions.setdefault(result["label"], {})[column] = cell
            else:
                how = PROTOCOLS.get(protocol, protocol).format(encoder=_encoder(result, protocol))
                row = rows.setdefault((result["label"], how), {"model": result["label"], "protocol": how})
                row[column] = cell
                if "model_config" in result:  # which leaves out what is as by default
                    row["connector"] = result["model_config"].get("connector", "concatenation")
                row["is_ltus"] = protocol == "text_encoder"
    for label, cells in captions.items():
        beside = [row for (name, _), row in rows.items() if name == label and row["is_ltus"]]
        if not beside:
            beside = [rows.setdefault((label, "captions"), {"model": label, "protocol": PROTOCOLS["captions"]})]
        for row in beside:
            row.update(cells)
    return [{key: value for key, value in row.items() if key != "is_ltus"} for row in rows.values()], notes


# ---------------------------------------------------------------------------------------------------------------
# Tables: {"title", "columns", "rows", "notes"}
# ---------------------------------------------------------------------------------------------------------------


def table1(
    results: Sequence[Mapping[str, Any]], paper: Mapping[str, Any] | None = None, only_ours: bool = False
) -> dict[str, Any]:
    """Table 1: the peers, the paper's experiments, and ours.

    Args:
        results (list of `dict`): From [`load_results`].
        paper (`dict`, *optional*): As [`paper_tables`] gives them; those by default.
        only_ours (`bool`, *optional*, defaults to `False`): Leave out the peers' rows and the paper's.

    Returns:
        `dict`: `title`, `columns`, `rows` (a dict a row; cells are numbers of the paper's or
        `{"value", "interval", "count"}`) and `notes`.
    """
    paper = paper_tables() if paper is None else paper
    rows, notes = measured_rows(results, list(TABLE1_METRICS))
    return _table(
        "Table 1: audio description (accuracy, micro-F1 and mAP in %, SPICE x 100)",
        ["model", "connector", *TABLE1_METRICS]
        if only_ours
        else ["experiment", "model", "lora_rank", "connector", "audio_encoder", "data", *TABLE1_METRICS],
        rows if only_ours else [*paper["table1"]["rows"], *rows],
        [*zero_shot_notes(list(TABLE1_METRICS)), *notes],
    )


def table4(results: Sequence[Mapping[str, Any]], paper: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Table 4: one size of language model with frozen encoders taken from several. Name each result by its encoder
    (`NAME=FILE`). Arguments and result as in [`table1`]."""
    paper = paper_tables() if paper is None else paper
    rows, notes = measured_rows(results, TABLE4_COLUMNS)
    return _table(
        "Table 4: SAM-130M with frozen encoders from E4-E6 (the paper's rows), and encoders of ours",
        ["encoder_from", "size", "model", *TABLE4_COLUMNS],
        [*paper["table4"], *rows],
        [*zero_shot_notes(TABLE4_COLUMNS), *notes],
    )


def table5(results: Sequence[Mapping[str, Any]], paper: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Table 5: MMAU by task, beside the paper's models, and what answers without listening reach. Arguments and result
    as in [`table1`]."""
    paper = paper_tables() if paper is None else paper
    rows: list[dict[str, Any]] = []
    guesses: dict[str, dict[str, Any]] = {}
    notes = []
    for result in results:
        split = {"mmau_mini": "mini", "mmau": "test"}.get(result["benchmark"])
        if split is None:
            continue
        expected = TASKS[result["benchmark"]].expected
        if result["count"] < expected:
            notes.append(f"{result['label']}: {result['count']:,} of {expected:,} questions of {split}.")
        for protocol, score in _scores(result).items():
            if score["value"] is None:
                notes.append(f"{result['label']}: the answers of {split} are not published; its authors score it.")
                continue
            how = PROTOCOLS.get(protocol, protocol)
            row = next((row for row in rows if row["model"] == result["label"] and row["protocol"] == how), None)
            if row is None:
                rows.append(row := {"model": result["label"], "protocol": how})
            for task, share in score["by_task"].items():
                interval = wilson_interval(share["correct"], share["count"])
                row[f"{task}_{split}"] = _cell(share, share["count"], interval)
            if score.get("unanswered"):
                notes.append(
                    f"{result['label']}: {score['unanswered']} questions of {split} unanswered, counted as wrong."
                )
            for name, guess in score.get("baselines", {}).items():
                cells = guesses.setdefault(name, {"model": name.replace("_", " "), "protocol": "without listening"})
                cells |= {f"{task}_{split}": round(100 * value, 2) for task, value in guess["by_task"].items()}
    return _table(
        f"Table 5: MMAU ({paper['table5']['note']})",
        ["model", *TABLE5_COLUMNS],
        [*paper["table5"]["rows"], *guesses.values(), *rows],
        list(dict.fromkeys(notes)),
    )


def table2(results: Sequence[Mapping[str, Any]], clips: Sequence[str]) -> dict[str, Any]:
    """Table 2, qualitative: what models said about chosen clips, beside the reference.

    Args:
        results (list of `dict`): From [`load_results`].
        clips (list of `str`): Names of clips as the results give them, with or without their ending.

    Returns:
        `dict`: As [`table1`]; a row a text, with `clip`, `who` and `text`.

    Raises:
        ValueError: A clip that a model has no answer for, or that is in several benchmarks.
    """
    rows, notes = [], []
    labels = list(dict.fromkeys(result["label"] for result in results))
    for clip in clips:
        found = {}
        for result in results:
            for each in result["predictions"]:
                names = {each["audio"], each.get("id"), Path(each["audio"]).stem}
                if clip in names:
                    text = each["prediction"] or "(no answer)"
                    found.setdefault(result["benchmark"], {}).setdefault(
                        (result["label"], each["prompt"]), (text, each)
                    )
        if len(found) != 1:
            where = f"is in {', '.join(found)}" if found else "is in none of the results"
            raise ValueError(f"clips: {clip!r} {where}, expected a clip of one benchmark; give its full name.")
        (said,) = found.values()
        absent = [label for label in labels if label not in {label for label, _ in said}]
        if absent:
            raise ValueError(f"clips: {absent[0]} has no answer for {clip!r}; leave it or the model out.")
        references = next(iter(said.values()))[1]["reference"]
        for text in [references] if isinstance(references, str) else references:
            rows.append({"clip": clip, "who": "Reference", "text": text})
        prompts = {prompt for _, prompt in said}
        for (label, prompt), (text, _) in said.items():
            rows.append(
                {"clip": clip, "who": label if len(prompts) == 1 else f"{label}, asked: {prompt}", "text": text}
            )
        if len(prompts) == 1:
            notes.append(f"{clip} was asked: {next(iter(prompts))}")
    return _table("Table 2: what is said about chosen clips", ["clip", "who", "text"], rows, notes)


def claims_table(paper: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """[`count_claims`] as a table."""
    rows = [
        {**row, "mean_difference": ", ".join(f"{value:+.2f}" for value in row["mean_difference"])}
        for row in count_claims(paper)
    ]
    notes = [
        "Counted cell by cell in the paper's tables, single runs without seeds or intervals.",
        f"Mean difference: by size ({', '.join(SIZES)}) in Table 1 and for OpenReasonAQA, by pair elsewhere.",
    ]
    return _table(
        "The paper's claims in its own numbers", ["claim", "won", "tied", "lost", "mean_difference"], rows, notes
    )


def zero_shot_notes(columns: Sequence[str]) -> list[str]:
    """Which of some columns are zero-shot, and which are not.

    Args:
        columns (list of `str`): Columns of Table 1.
    """
    heard = [each.paper_column for each in TASKS.values() if each.heard_in_training]
    unheard = [column for column in columns if column not in heard]
    return [
        f"Zero-shot for models trained on OpenAQA: {', '.join(unheard)}. Not zero-shot, since it holds their training parts: "
        f"{', '.join(column for column in columns if column in heard)}."
    ]


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> dict[str, Any]:
    columns = list(columns)
    if any("protocol" in row for row in rows):
        columns.insert(columns.index("model") + 1, "protocol")
    return {"title": title, "columns": columns, "rows": [dict(row) for row in rows], "notes": list(notes)}
