"""The paper's tables again, with results of ours beside its numbers.

All numbers have the paper's units: accuracy, micro-F1 and mAP in percent, SPICE times 100.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_lab.evaluation.scoring import wilson_interval
from sam_lab.evaluation.tasks import TASKS
from sam_lab.paper.numbers import SIZES, TABLE1_METRICS, TABLE4_COLUMNS, TABLE5_COLUMNS, count_claims, paper_tables

RESULT_METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "map": "mAP", "SPICE": "SPICE"}
PROTOCOL_DESCRIPTIONS = {  # in a table's rows
    "text_encoder": "nearest label by {encoder}",
    "likelihood": "likeliest label",
    "names_label": "label named",
    "captions": "captions",
    "mmau_correct": "MMAU's rule",
}

# -- Results ------------------------------------------------------------------------------------------------------


def load_results(specifications: Sequence[str]) -> list[dict[str, Any]]:
    """Reads results of `sam-alm evaluate`.

    Args:
        specifications (list of `str`): Files or folders of files, each as `PATH`, or as `NAME=PATH` to name the model.

    Returns:
        `list[dict]`: The results, each with `label` (the name; by default the last part of `model`) and `file`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Not a result; a benchmark that no table contains; the same model, protocol and benchmark twice; the
            same name for two models.
    """
    results: list[dict[str, Any]] = []
    for specification in specifications:
        name, _, place = ("", "", specification) if Path(specification).exists() else specification.rpartition("=")
        files = [Path(place)]
        if Path(place).is_dir():
            files = [path for path in sorted(Path(place).glob("*.json")) if not path.stem.endswith("-submission")]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"results: there is no file {place!r}, nor a folder of that name with results.")
        results += [_checked_result(file, name) for file in files]
    _check_together(results)
    return results


def _checked_result(file: Path, name: str) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"results: {str(file)!r} is no JSON ({error}), expected a result of sam-alm evaluate."
        ) from error
    keys = ("benchmark", "protocol", "metric", "value", "count", "predictions")
    absent = [key for key in keys if not isinstance(result, dict) or key not in result]
    if absent:
        raise ValueError(f"results: {str(file)!r} has no {absent[0]!r}, expected a result of sam-alm evaluate.")
    if result["benchmark"] not in TASKS:
        raise ValueError(
            f"results: {str(file)!r} is of the benchmark {result['benchmark']!r}, which is in none of the paper's "
            f"tables; expected one of {', '.join(TASKS)}."
        )
    label = name or Path(str(result.get("model", ""))).name
    if not label:
        raise ValueError(f"results: {str(file)!r} has no model; name it with NAME={file}.")
    return {**result, "label": label, "file": str(file)}


def _check_together(results: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple, str] = {}
    models: dict[str, tuple[Any, str]] = {}
    for result in results:
        hashed = result.get("checkpoint_hash", result.get("model"))
        other, file = models.setdefault(result["label"], (hashed, result["file"]))
        if other != hashed:
            raise ValueError(
                f"results: {file!r} and {result['file']!r} are of different models, but both are named "
                f"{result['label']!r}; name them with NAME=FILE."
            )
        for protocol in _scores(result):
            key = (result["label"], result["benchmark"], protocol, _encoder(result, protocol))
            if key in seen:
                raise ValueError(
                    f"results: {seen[key]!r} and {result['file']!r} both have {result['label']} on "
                    f"{result['benchmark']} by {protocol}; expected only one of them, or two names (NAME=FILE)."
                )
            seen[key] = result["file"]


def _scores(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scores by protocol."""
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
    """Rows of Table 1 or 4 from results, one for each model and protocol.

    Captions have a single protocol: their scores are added to every row of LTU's protocol (`text_encoder`), or have
    their own row if the model has no such row.

    Args:
        results (list of `dict`): From [`load_results`].
        columns (list of `str`): The table's columns.

    Returns:
        `list[dict]`: `model`, `protocol`, and by column `{"value", "interval", "count"}`; `list[str]`: notes on the
        cells.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    ltus: set[tuple] = set()
    captions: dict[str, dict[str, Any]] = {}
    notes = []
    for result in results:
        task = TASKS[result["benchmark"]]
        column = task.paper_column
        if column not in columns:
            continue
        if result["count"] < task.expected:
            part = f", fold {result['fold']}" if task.name == "esc50" and result.get("fold") else ""
            notes.append(
                f"{result['label']}: {result['count']:,} of the {task.expected:,} clips of {task.title}{part}."
            )
        if result.get("failed"):
            notes.append(f"{result['label']}: {len(result['failed'])} clips of {task.title} could not be read.")
        for protocol, score in _scores(result).items():
            if RESULT_METRICS.get(score["metric"]) != TABLE1_METRICS[column]:
                notes.append(
                    f"{result['label']}: of {task.title} there is {score['metric']} and no "
                    f"{TABLE1_METRICS[column]}, so that its cell is empty."
                )
                continue
            cell = _cell(score, result["count"])
            if protocol == "captions":
                captions.setdefault(result["label"], {})[column] = cell
            else:
                key = (
                    result["label"],
                    PROTOCOL_DESCRIPTIONS.get(protocol, protocol).format(encoder=_encoder(result, protocol)),
                )
                row = rows.setdefault(key, {"model": key[0], "protocol": key[1]})
                row[column] = cell
                if protocol == "text_encoder":
                    ltus.add(key)
                if "model_config" in result:  # it contains only values that differ from the default
                    row["connector"] = result["model_config"].get("connector", "concatenation")
    for label, cells in captions.items():
        own = (label, PROTOCOL_DESCRIPTIONS["captions"])
        for key in [key for key in ltus if key[0] == label] or [own]:
            rows.setdefault(key, {"model": label, "protocol": own[1]}).update(cells)
    return list(rows.values()), notes


# -- Tables: {"title", "columns", "rows", "notes"} ----------------------------------------------------------------


def table1(
    results: Sequence[Mapping[str, Any]], paper: Mapping[str, Any] | None = None, only_ours: bool = False
) -> dict[str, Any]:
    """Table 1: the peers, the paper's experiments, and our results.

    Args:
        results (list of `dict`): From [`load_results`].
        paper (`dict`, *optional*): As [`paper_tables`] returns; by default its result.
        only_ours (`bool`, *optional*, defaults to `False`): Exclude the rows of the peers and of the paper.

    Returns:
        `dict`: `title`, `columns`, `rows` (a dict for each row; a cell is a number of the paper or
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
    """Table 4: SAM-130M with frozen encoders from models of other sizes. Name each result after its encoder
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
    """Table 5: MMAU by MMAU's tasks (sound, music, speech), beside the paper's models and baselines without audio.
    Arguments and result as in [`table1`]."""
    paper = paper_tables() if paper is None else paper
    rows: dict[tuple, dict[str, Any]] = {}
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
            key = result["label"], PROTOCOL_DESCRIPTIONS.get(protocol, protocol)
            row = rows.setdefault(key, {"model": key[0], "protocol": key[1]})
            for kind, share in score["by_task"].items():
                interval = wilson_interval(share["correct"], share["count"])
                row[f"{kind}_{split}"] = _cell(share, share["count"], interval)
            if score.get("unanswered"):
                notes.append(
                    f"{result['label']}: {score['unanswered']} questions of {split} unanswered, counted as wrong."
                )
            for name, guess in score.get("baselines", {}).items():
                cells = guesses.setdefault(name, {"model": name.replace("_", " "), "protocol": "without listening"})
                cells |= {f"{kind}_{split}": round(100 * value, 2) for kind, value in guess["by_task"].items()}
    return _table(
        f"Table 5: MMAU ({paper['table5']['note']})",
        ["model", *TABLE5_COLUMNS],
        [*paper["table5"]["rows"], *guesses.values(), *rows.values()],
        list(dict.fromkeys(notes)),
    )


def table2(results: Sequence[Mapping[str, Any]], clips: Sequence[str]) -> dict[str, Any]:
    """Table 2, qualitative: the models' answers about chosen clips, beside the reference.

    Args:
        results (list of `dict`): From [`load_results`].
        clips (list of `str`): Names of clips as in the results, with or without suffix.

    Returns:
        `dict`: As [`table1`]; each row has `clip`, `who` and `text`.

    Raises:
        ValueError: A clip without an answer of some model, or one that is in several benchmarks.
    """
    rows, notes = [], []
    labels = list(dict.fromkeys(result["label"] for result in results))
    for clip in clips:
        found = {}
        for result in results:
            for each in result["predictions"]:
                if clip in (each["audio"], each.get("id"), Path(each["audio"]).stem):
                    answers = found.setdefault(result["benchmark"], {})
                    answers.setdefault((result["label"], each["prompt"]), each)
        if len(found) != 1:
            where = f"is in {', '.join(found)}" if found else "is in none of the results"
            raise ValueError(f"clips: {clip!r} {where}, expected a clip of one benchmark; pass its full name.")
        (answers,) = found.values()
        absent = [label for label in labels if label not in {label for label, _ in answers}]
        if absent:
            raise ValueError(f"clips: {absent[0]} has no answer for {clip!r}; remove the clip or the model.")
        references = next(iter(answers.values()))["reference"]
        for text in [references] if isinstance(references, str) else references:
            rows.append({"clip": clip, "who": "Reference", "text": text})
        prompts = {prompt for _, prompt in answers}
        for (label, prompt), each in answers.items():
            who = label if len(prompts) == 1 else f"{label}, asked: {prompt}"
            rows.append({"clip": clip, "who": who, "text": each["prediction"] or "(no answer)"})
        if len(prompts) == 1:
            notes.append(f"{clip} was asked: {next(iter(prompts))}")
    return _table("Table 2: answers about chosen clips", ["clip", "who", "text"], rows, notes)


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
    """A note on which columns are zero-shot and which are not.

    Args:
        columns (list of `str`): Columns of Table 1.
    """
    trained = [task.paper_column for task in TASKS.values() if task.heard_in_training]
    zero_shot = [column for column in columns if column not in trained]
    return [
        f"Zero-shot for models trained on OpenAQA: {', '.join(zero_shot)}. Not zero-shot, since it holds their "
        f"training parts: {', '.join(column for column in columns if column in trained)}."
    ]


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> dict[str, Any]:
    columns = list(columns)
    if any("protocol" in row for row in rows):
        columns.insert(columns.index("model") + 1, "protocol")
    return {"title": title, "columns": columns, "rows": [dict(row) for row in rows], "notes": list(notes)}
