"""Running a model on an evaluation task, and the protocols that score its answers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from sam_lab.common.names import name_in_line, name_text
from sam_lab.evaluation.caption_metrics import caption_preflight, caption_scores, human_scores, sentence_similarity
from sam_lab.evaluation.items import Item
from sam_lab.evaluation.mmau import has_true_choice, lettered_choices, score_mmau
from sam_lab.evaluation.predictions import predict
from sam_lab.evaluation.questions import answers_question, has_option
from sam_lab.evaluation.scoring import (
    METRICS,
    bootstrap_interval,
    bootstrap_mean,
    label_similarities,
    strip_caption_prefix,
    target_matrix,
    top_is_true,
    top_labels,
    wilson_interval,
)
from sam_lab.evaluation.tasks import Task
from sam_lab.evaluation.text_encoders import TEXT_ENCODER_NAMES
from sam_lab.evaluation.wordforms import names_label

# A task's metric -> its protocols; the first one determines the value of the result.
PROTOCOLS = {
    **dict.fromkeys(METRICS, ("text_encoder", "likelihood")),
    "caption": ("captions",),
    "mmau": ("mmau_correct", "likelihood"),
    "questions": ("answers_question",),
}
ANSWER_FORM = "{Label}"  # how a description starts

# -- Running ------------------------------------------------------------------------------------------------------


def choose_protocols(task: Task, protocols: Sequence[str] | None, has_encoder: bool) -> tuple[str, ...]:
    """The protocols that a task is scored by.

    Args:
        task ([`Task`]): The task.
        protocols (list of `str`, *optional*): Some of `"text_encoder"`, `"likelihood"`, `"names_label"` (ESC-50),
            `"captions"`, `"mmau_correct"`, `"answers_question"`. By default all that apply to the task; for ESC-50
            without a text encoder only `"names_label"`.
        has_encoder (`bool`): Whether a text encoder was given.

    Raises:
        ValueError: A protocol that does not apply to the task, or that needs a text encoder when none was given.
    """
    choices = PROTOCOLS[task.metric] + (("names_label",) if task.name == "esc50" else ())
    if not protocols:
        protocols = ("names_label",) if task.name == "esc50" and not has_encoder else choices
    unknown = [name for name in protocols if name not in choices]
    if unknown:
        raise ValueError(f"protocols: got {unknown[0]!r} for {task.name}, expected some of {', '.join(choices)}.")
    if "text_encoder" in protocols and not has_encoder:
        rest = " or ".join(name for name in choices if name != "text_encoder")
        raise ValueError(
            f"text_encoder: got None for {task.name}, expected the encoder that compares answers with labels. There "
            f"is no default, since scores depend on it: name one with --text-encoder ({TEXT_ENCODER_NAMES}), or "
            f"choose --protocol {rest}."
        )
    return tuple(dict.fromkeys(protocols))


def coverage_line(task: Task, items: Sequence[Item], min_coverage: float = 0.0) -> str:
    """A line that reports how many items have an audio file.

    Raises:
        ValueError: No item has one, or a smaller share than `min_coverage`.
    """
    found = sum(item.audio is not None for item in items)
    line = f"{task.name}: {found:,} of {len(items):,} clips are present"
    line += f", {task.expected:,} were published" if task.expected not in (0, len(items)) else ""
    if not found or found < min_coverage * len(items):
        absent = ", ".join(name_in_line(item.id) for item in items if item.audio is None)
        raise ValueError(
            f"data: {line}; expected at least min_coverage={min_coverage:.0%}. Missing: {absent[:200]}. Map their "
            "folder with --audio-root FROM=TO, download them, or lower --min-coverage."
        )
    return line


def evaluate(
    model,
    processor,
    items: Sequence[Item],
    task: Task,
    work: str | Path,
    protocols: Sequence[str] | None = None,
    text_encoder=None,
    max_new_tokens: int = 400,
    batch_size: int = 32,
    min_coverage: float = 0.0,
    answer_form: str = ANSWER_FORM,
    spice_jars: str | Path | None = None,
    require_spice: bool = False,
    checkpoint_hash: str | None = None,
    state: PartialState | None = None,
) -> dict[str, Any] | None:
    """A model's score on a task: one greedy answer to each item, scored by each protocol.

    - `text_encoder` (LTU's): the label whose text is closest to the answer, see [`label_similarities`]; mAP ranks by
      the cosines.
    - `likelihood` (ours): the label that is likeliest as the start of the model's answer, or the choice that is
      likeliest as the whole answer. The sum of the tokens' log-likelihoods decides and is the score for mAP; `by_mean`
      reports the mean per token. The likelihood depends on how the labels are written, see `answer_form`.
    - `names_label` (ESC-50): [`names_label`] of the answer.
    - `captions`: [`caption_scores`], and with a text encoder the similarity to the references.
    - `mmau_correct`: MMAU's rule on the answer without its option letter.
    - `answers_question`: [`answers_question`] by kind.

    Items without a file are `missing` and do not count. A file that exists but cannot be read is in `failed` and
    counts: as wrong, for mAP with the lowest score, as an empty caption.

    Under accelerate's or torchrun's launchers each process answers its share, and the main process scores all answers.

    Args:
        model ([`SamForConditionalGeneration`]): The model; it is put into evaluation mode.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        items (list of [`Item`]): From [`read_task`].
        task ([`Task`]): The task, one of [`TASKS`] or [`QUESTIONS`].
        work (`str` or `Path`): Folder for the answers, visible to all processes. An interrupted run resumes from it.
            It is not deleted.
        protocols (list of `str`, *optional*): As in [`choose_protocols`]; the first determines the result's value.
        text_encoder ([`TextEncoder`], *optional*): From [`load_text_encoder`].
        max_new_tokens (`int`, *optional*, defaults to 400): Longest answer, as in LTU.
        batch_size (`int`, *optional*, defaults to 32): Clips that are answered together.
        min_coverage (`float`, *optional*, defaults to 0): Smallest share of the items that must have an audio file; at
            least one must. Missing items are listed in any case.
        answer_form (`str`, *optional*, defaults to `"{Label}"`): How the model would write a label, for its
            likelihood. `{Label}` stands for the label with a capital first letter, `{label}` for the unmodified label.
            With a form that the model was not trained to write, the likelihood is meaningless.
        spice_jars, require_spice (*optional*): As in [`caption_scores`].
        checkpoint_hash (`str`, *optional*): From [`checkpoint_hash`]; prevents resuming with another model.
        state (`PartialState`, *optional*): accelerate's state.

    Returns:
        `dict`, or `None` on processes other than the main one: `benchmark` (the task's name), `protocol`, `metric`,
        `value` (a fraction), `interval` (95 %), `count` (clips found), `expected` (items), `published`, `missing`
        (ids), `failed` (`id` and `reason`), `unanswered` (empty answers), `long` (clips over 10.24 s, which are
        truncated), `text_encoder`, `texts_cut` (texts that it truncated), `answer_form`, `protocols` (the scores by
        each), `seconds`, `clips_per_second`, `resumed`, `predictions` (a dict for each item, with the result of each
        protocol in `by_protocol`).

    Raises:
        ValueError: See [`choose_protocols`], [`coverage_line`] and [`predict`].
    """
    protocols = choose_protocols(task, protocols, text_encoder is not None)
    coverage_line(task, items, min_coverage)
    if "captions" in protocols:
        caption_preflight(spice_jars, require_spice)
    found = [item for item in items if item.audio is not None]
    wanted = found if "likelihood" in protocols else []
    shared = candidate_texts(found[0], task, answer_form) if task.labels else None
    candidates = {item.id: shared or candidate_texts(item, task) for item in wanted}
    settings = {
        "benchmark": task.name,
        "checkpoint_hash": checkpoint_hash,
        "dtype": str(model.dtype),
        "max_new_tokens": max_new_tokens,
        "items": _digest([[item.id, name_text(Path(item.audio).name), item.prompt] for item in found]),
        "candidates": _digest([sorted(candidates), shared] if shared else candidates),
    }
    if processor.feature_extractor.incomplete != "error":
        settings["incomplete"] = processor.feature_extractor.incomplete
    model.eval()
    options = (candidates, not task.labels, batch_size, max_new_tokens, state)
    records, speed = predict(model, processor, found, work, settings, *options)
    if records is None:
        return None
    if text_encoder is not None:
        text_encoder.cut_texts.clear()  # those of another task
    scores = {name: _score(name, task, found, records, text_encoder, spice_jars, require_spice) for name in protocols}
    by_item = {name: score.pop("items") for name, score in scores.items()}
    return {
        "benchmark": task.name,
        "title": task.title,
        "protocol": protocols[0],
        **scores[protocols[0]],
        "count": len(found),
        "expected": len(items),
        "published": task.expected,
        "heard_in_training": task.heard_in_training,
        "missing": [item.id for item in items if item.audio is None],
        "cannot_be_right": cannot_be_right(found, task),
        "failed": [{"id": each["id"], "reason": each["failed"]} for each in records if each["failed"]],
        "unanswered": sum(each["text"] == "" for each in records),
        "long": sum(each.get("long", False) for each in records),
        "answer_form": answer_form if "likelihood" in protocols and task.labels else None,
        "text_encoder": None if text_encoder is None else text_encoder.name,
        "texts_cut": 0 if text_encoder is None else len(text_encoder.cut_texts),
        "protocols": scores,
        **speed,
        "predictions": [
            _prediction(item, record, {name: each[row] for name, each in by_item.items()})
            for row, (item, record) in enumerate(zip(found, records))
        ],
    }


def cannot_be_right(items: Sequence[Item], task: Task) -> list[str]:
    """Ids of the items that count as wrong whichever choice is made: questions whose answer is none of their choices.

    Other truths that nothing could meet are refused when they are read: a label that is none of the classes, a caption
    without a word, an answer to a yes-or-no question that is neither.
    """
    if task.metric == "mmau":
        return [item.id for item in items if item.references and not has_true_choice(item)]
    return [item.id for item in items if not has_option(item)] if task.metric == "questions" else []


def candidate_texts(item: Item, task: Task, answer_form: str = ANSWER_FORM) -> list[str]:
    """The answers whose likelihoods are compared: the labels' texts, or the choices as the question's prompt has them.

    Raises:
        ValueError: An answer form without the label.
    """
    if task.labels:
        if "{label}" not in answer_form and "{Label}" not in answer_form:
            raise ValueError(f"answer_form: got {answer_form!r}, expected a text with {{label}} or {{Label}} in it.")
        return [
            answer_form.replace("{label}", text).replace("{Label}", text[:1].upper() + text[1:])
            for text in task.label_texts
        ]
    forms = (lettered_choices(item.choices, style) for style in ("reasonaqa", "plain"))
    unlettered = [" ".join(choice.split()) for choice in item.choices]
    return next((form for form in forms if all(text in item.prompt for text in form)), unlettered)


def _prediction(item: Item, record: dict[str, Any], by_protocol: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        **item.groups,
        "id": item.id,
        "audio": name_text(Path(item.audio).name),
        "prompt": item.prompt,
        "prediction": record["text"],
        "reference": item.references[0] if len(item.references) == 1 else list(item.references),
        "correct": next(iter(by_protocol.values())).get("correct"),
        "by_protocol": by_protocol,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- Protocols: each returns metric, value, interval, scores, ... and `items`, a dict for each item ---------------


def _score(name, task, items, records, text_encoder, spice_jars, require_spice) -> dict[str, Any]:
    texts = [record["text"] or "" for record in records]
    if name == "text_encoder":
        scores = label_similarities(texts, task.label_texts, text_encoder)
        scores[[record["failed"] is not None for record in records]] = -np.inf
        return score_labels(scores, items, task)
    if name == "likelihood":
        return score_likelihoods(items, records, task)
    if name == "captions":
        return score_captions(texts, items, text_encoder, spice_jars, require_spice)
    if name == "mmau_correct":
        return score_choices([record["text"] for record in records], items)
    if name == "names_label":
        return _rates([names_label(text, item.references[0]) for text, item in zip(texts, items)])
    right = [answers_question(text, item.references[0], item.groups["kind"]) for text, item in zip(texts, items)]
    return _rates(right, [item.groups["kind"] for item in items])


def _rates(right: Sequence[bool], kinds: Sequence[str] = ()) -> dict[str, Any]:
    """The share of correct answers with Wilson's interval, also by kind."""

    def score(part):
        interval = list(wilson_interval(sum(part), len(part)))
        return {"value": sum(part) / len(part), "interval": interval, "count": len(part)}

    by_kind = {kind: score([r for r, each in zip(right, kinds) if each == kind]) for kind in sorted(set(kinds))}
    return {
        "metric": "accuracy",
        **score(right),
        "interval_method": "wilson",
        **({"by_kind": by_kind} if kinds else {}),
        "items": [{"correct": each} for each in right],
    }


def score_labels(scores: np.ndarray, items: Sequence[Item], task: Task) -> dict[str, Any]:
    """The metrics of the scores `[N, C]` of `C` labels; a row of minus infinity is a clip that could not be read."""
    targets = target_matrix([item.references for item in items], task.labels)
    metric = METRICS[task.metric]
    top, right = top_labels(scores), top_is_true(scores, targets)
    return {
        "metric": task.metric,
        "value": float(metric(scores, targets)[0]),
        "interval": bootstrap_interval(lambda weights: metric(scores, targets, weights), len(scores)),
        "interval_method": "bootstrap",
        "scores": {name: float(each(scores, targets)[0]) for name, each in METRICS.items()},
        "labels_without_clips": int((~targets.any(axis=0)).sum()),
        "items": [
            {"label": task.labels[t], "score": float(row[t]), "correct": bool(r)}
            if t >= 0
            else {"label": None, "score": None, "correct": False}
            for t, r, row in zip(top, right, scores)
        ],
    }


def score_likelihoods(items: Sequence[Item], records: Sequence[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The metrics of the candidates' log-likelihoods: the sums decide, `by_mean` reports the means per token."""
    result = {}
    for name in ("sums", "means"):
        found = [_likelihoods(record, name) for record in records]
        if task.labels:
            scores = np.array([row or [-np.inf] * len(task.labels) for row in found])
            result[name] = score_labels(scores, items, task)
        else:
            chosen = [item.choices[int(np.argmax(row))] if row else None for row, item in zip(found, items)]
            result[name] = score_choices(chosen, items)
            for row, choice in zip(result[name]["items"], chosen):
                row["label"] = choice
    by_mean = {name: result["means"][name] for name in ("value", "interval")}
    return {**result["sums"], "by_mean": by_mean}


def _likelihoods(record: dict[str, Any], name: str) -> list[float]:
    """The candidates' sums, or means per token; empty if the clip could not be read."""
    sums = record.get("sums", [])
    return sums if name == "sums" else [value / count for value, count in zip(sums, record.get("tokens", []))]


def score_choices(chosen: Sequence[str | None], items: Sequence[Item]) -> dict[str, Any]:
    """MMAU's accuracy and everything else that [`score_mmau`] returns; no value if no answer is published."""
    scores = score_mmau(items, chosen)
    right = scores.pop("is_correct")
    known = [each for each in right if each is not None]
    return {
        **{name: value for name, value in scores.items() if name not in ("count", "unanswered")},
        "metric": "accuracy",
        "interval": bootstrap_mean(known) if known else None,
        "interval_method": "bootstrap",
        "scores": {f"accuracy_{task}": share["value"] for task, share in scores["by_task"].items()},
        "items": [{"correct": each} for each in right],
    }


def score_captions(texts, items: Sequence[Item], text_encoder, spice_jars, require_spice) -> dict[str, Any]:
    """SPICE, or CIDEr if SPICE is not available, with the other metrics in `scores`."""
    captions = [strip_caption_prefix(text) for text in texts]
    references = [list(item.references) for item in items]
    found = caption_scores(captions, references, spice_jars=spice_jars, require_spice=require_spice)
    by_clip = {name: found[f"{name}_per_clip"] for name in ("CIDEr", "SPICE") if name in found}
    scores = {name: value for name, value in found.items() if isinstance(value, float)}
    metric = "SPICE" if "SPICE" in scores else "CIDEr"
    interval = bootstrap_mean(by_clip[metric])
    if text_encoder is not None:
        similarity = sentence_similarity(captions, references, text_encoder)
        scores |= {"similarity_mean": similarity["mean"], "similarity_max": similarity["max"]}
        by_clip |= {"similarity_mean": similarity["mean_per_clip"], "similarity_max": similarity["max_per_clip"]}
    return {
        "metric": metric,
        "value": scores[metric],
        "interval": interval,
        "interval_method": "bootstrap",
        "scores": scores,
        "lacking": found["missing"],
        "items": [dict(zip(by_clip, row)) for row in zip(*by_clip.values())],
    }


def evaluate_humans(
    items: Sequence[Item], task: Task, spice_jars: str | Path | None = None, require_spice: bool = False
) -> dict[str, Any]:
    """The score of human captions on a caption task, as a result for the tables beside a model's.

    Args:
        items (list of [`Item`]): Items of a caption task; their audio files need not exist.
        task ([`Task`]): The task.
        spice_jars, require_spice (*optional*): As in [`caption_scores`].

    Returns:
        `dict`: The keys of [`evaluate`] that apply. The scores are means over the rounds of [`human_scores`], without
        an interval; `first` has the scores of each clip's first caption.

    Raises:
        ValueError: A task without captions, or a clip with fewer than two.
    """
    if task.metric != "caption":
        raise ValueError(f"human: got {task.name}, expected a benchmark with captions by people.")
    found = human_scores([item.references for item in items], spice_jars, require_spice)
    metric = "SPICE" if "SPICE" in found["mean"] else "CIDEr"
    score = {"metric": metric, "value": found["mean"][metric], "interval": None, "scores": found["mean"]}
    return {
        "benchmark": task.name,
        "title": task.title,
        "protocol": "captions",
        **score,
        **{name: found[name] for name in ("first", "rounds", "count")},
        "lacking": found["missing"],
        "expected": len(items),
        "published": task.expected,
        "missing": [],
        "cannot_be_right": [],
        "failed": [],
        "protocols": {"captions": score},
        "predictions": [],
        "model": "human",
    }
