"""`sam-alm evaluate`: measures a SAM checkpoint on published tasks or on questions of its user."""

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.common.checks import check_model, choose_device
from sam_lab.common.files import write_json
from sam_lab.common.processes import processes
from sam_lab.common.provenance import checkpoint_hash, versions
from sam_lab.common.text_tables import markdown
from sam_lab.data.coverage import parse_audio_roots
from sam_lab.evaluation.caption_metrics import caption_preflight
from sam_lab.evaluation.mmau import MMAU_FILES, read_mmau, shuffle_choices, write_mmau_submission
from sam_lab.evaluation.protocols import choose_protocols, coverage_line, evaluate, evaluate_humans
from sam_lab.evaluation.questions import QUESTIONS, question_items
from sam_lab.evaluation.tasks import MMAU_SPLITS, TASKS, read_task
from sam_lab.evaluation.text_encoders import load_text_encoder
from sam_lab.paper.tables import load_results, table1


def run(arguments: argparse.Namespace) -> int:
    """Scores a model, or with `--human` the people who captioned the clips, and writes a file for each benchmark."""
    if arguments.human:
        _score_humans(arguments)
    else:
        _score_model(arguments)
    return 0


def _score_humans(arguments: argparse.Namespace) -> None:
    for name in arguments.benchmarks:
        output, task = _output(name, arguments), TASKS.get(name, QUESTIONS)
        output.parent.mkdir(parents=True, exist_ok=True)
        result = evaluate_humans(_items(name, arguments), task, arguments.spice_jars, arguments.require_spice)
        write_json({**result, "limit": arguments.limit, "versions": versions()}, output)
        _report(result)
        for metric, value in result["scores"].items():
            print(f"  {metric}: {value:.4f}")


def _score_model(arguments: argparse.Namespace) -> None:
    state = processes()
    device = state.device if arguments.device is None else choose_device(arguments.device)
    check_model(arguments.model)
    plan, written = [], []
    for name in arguments.benchmarks:  # every mistake is found before anything is generated
        task, items = TASKS.get(name, QUESTIONS), _items(name, arguments)
        protocols = choose_protocols(task, arguments.protocol, arguments.text_encoder is not None)
        coverage = coverage_line(task, items, arguments.min_coverage)
        missing = None
        if "captions" in protocols:
            missing = caption_preflight(arguments.spice_jars, arguments.require_spice)["missing"]
        state.print(coverage + (f"\n{missing}" if missing else ""))
        plan.append((task, items, protocols))
    encoder = None
    if arguments.text_encoder is not None:
        encoder = load_text_encoder(arguments.text_encoder, device, tokenizer=arguments.text_tokenizer)
    processor = SamProcessor.from_pretrained(arguments.model)
    processor.feature_extractor.incomplete = arguments.incomplete
    model = SamForConditionalGeneration.from_pretrained(arguments.model, dtype=arguments.dtype).to(device).eval()
    checkpoint = checkpoint_hash(arguments.model) if state.is_main_process else None  # the only one that writes it

    for task, items, protocols in plan:
        name = task.name
        output = _output(name, arguments)
        result = evaluate(
            *(model, processor, items, task, _answers(name, arguments), protocols, encoder),
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            min_coverage=arguments.min_coverage,
            answer_form=arguments.answer_form,
            spice_jars=arguments.spice_jars,
            require_spice=arguments.require_spice,
            checkpoint_hash=checkpoint,
            state=state,
        )
        if result is None:  # another process than the main one
            continue
        used = {"output": str(arguments.output), "device": str(device), "processes": state.num_processes}
        result |= {
            "fold": arguments.fold if name == "esc50" else None,
            "limit": arguments.limit,
            "model": arguments.model,
            "checkpoint_hash": checkpoint,
            "versions": versions(),
            "config": {**vars(arguments), **used},
            "model_config": model.config.to_diff_dict(),
        }
        write_json(result, output)
        if name in MMAU_SPLITS and arguments.limit is None:
            predicted = {each["id"]: each["prediction"] for each in result["predictions"]}
            source = Path(arguments.data[name])
            source = source / MMAU_FILES[MMAU_SPLITS[name].removeprefix("test-")] if source.is_dir() else source
            submission = output.with_name(f"{output.stem}-submission.json")
            write_mmau_submission(items, [predicted.get(item.id) for item in items], source, submission)
        _report(result)
        if task.paper_column is not None:
            written.append(str(output))
    if state.is_main_process:  # only now: a run that was interrupted earlier asks nothing twice
        for task, _, _ in plan:
            shutil.rmtree(_answers(task.name, arguments))
    if written:
        print("\n" + markdown(table1(load_results(written), only_ours=True)))


def _items(name: str, arguments: argparse.Namespace) -> list[Any]:
    if name == "questions":
        with open(arguments.data[name], newline="", encoding="utf-8-sig") as handle:
            items = question_items(list(csv.DictReader(handle)), Path(arguments.data[name]).parent)
    elif name in MMAU_SPLITS:
        roots = parse_audio_roots(arguments.audio_root)
        items = read_mmau(arguments.data[name], MMAU_SPLITS[name], arguments.prompt_style, roots)
        if arguments.shuffle_choices is not None:
            items = shuffle_choices(items, arguments.shuffle_choices, arguments.prompt_style)
    else:
        fold = arguments.fold if name == "esc50" else None
        items = read_task(name, arguments.data[name], fold, parse_audio_roots(arguments.audio_root))
    return items[: arguments.limit]


def _report(result: dict) -> None:
    """Prints the scores and what is missing."""
    rows = [
        (f"{result['benchmark']}, {name}, {each['metric']}", each, result["count"])
        for name, each in result["protocols"].items()
    ]
    rows += [(name, each, each["count"]) for name, each in result.get("by_kind", {}).items()]
    for name, score, count in rows:
        if score["value"] is None:
            print(f"{name}: no answers are published; {count} predictions")
            continue
        low, high = score["interval"] or (None, None)
        interval = "" if low is None else f" (95 % interval {low:.1%} to {high:.1%})"
        print(f"{name}: {score['value']:.1%}{interval} of {count}")
    for task, share in result.get("by_task", {}).items():
        print(f"{task}: {share['value']:.1%} of {share['count']}")
    for name, share in result.get("baselines", {}).items():
        print(f"beside it, {name}: " + ("unknown" if share["value"] is None else f"{share['value']:.1%}"))
    if result["missing"]:
        print(f"{len(result['missing'])} of {result['expected']} clips are missing and do not count")
    if result["cannot_be_right"]:
        print(
            f"{len(result['cannot_be_right'])} of {result['count']} questions have an answer that is none of their "
            "choices and count as wrong"
        )
    for failed in result["failed"][:10]:
        print(f"failed: {failed['reason']}")
    if result["failed"]:
        print(f"{len(result['failed'])} of {result['count']} clips cannot be read and count as wrong")


def _output(name: str, arguments: argparse.Namespace) -> Path:
    """Where a benchmark's result is written."""
    is_folder = len(arguments.benchmarks) > 1 or arguments.output.is_dir()
    return arguments.output / f"{name}.json" if is_folder else arguments.output


def _answers(name: str, arguments: argparse.Namespace) -> Path:
    """Where its answers are stored until then."""
    output = _output(name, arguments)
    return output.with_name(f"{output.name}.answers")
