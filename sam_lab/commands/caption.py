"""`sam-alm caption`: describes every clip of a folder or of a dataset."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.annotation import describe_clips, finish_output, open_output, output_schema
from sam_lab.common.processes import processes
from sam_lab.common.prompts import DEFAULT_PROMPT
from sam_lab.common.provenance import versions, weights_hash
from sam_lab.data.clips import open_clips


def run(arguments: argparse.Namespace) -> int:
    """Describes the clips; returns 1 if none of them could be read."""
    prompts, labels = parse_prompts(arguments.prompt, arguments.labels is not None), _read_labels(arguments.labels)
    source = open_clips(arguments.source, arguments.split, arguments.audio_column, arguments.keep, arguments.streaming)
    output_schema(source.schema, prompts, labels)  # columns that conflict are found before anything is loaded
    state = processes()
    dtype = arguments.dtype or ("float32" if state.device.type == "cpu" else "auto")
    model = SamForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype).to(state.device).eval()
    processor = SamProcessor.from_pretrained(arguments.model)
    extractor = processor.feature_extractor  # how files are read changes the failures, not what was described
    extractor.incomplete, extractor.max_seconds = arguments.incomplete, arguments.max_seconds
    settings: dict = {}
    if state.is_main_process:
        names = ("split", "audio_column", "keep", "streaming", "max_new_tokens")
        settings = {
            "source": arguments.source,
            "fingerprint": source.fingerprint,
            **{name: getattr(arguments, name) for name in names},
            "model_hash": weights_hash(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompts": prompts,
            "labels": labels,
            "label_prompt": arguments.label_prompt if labels else None,
            "format": arguments.format,
        }
        open_output(arguments.output, settings, arguments.retry_failures)
        if source.skipped:
            found = ", ".join(f"{number} {suffix or 'without'}" for suffix, number in source.skipped.most_common(8))
            print(f"files with other endings, skipped: {found}", file=sys.stderr)
    state.wait_for_everyone()
    counts = describe_clips(
        *(model, processor, source, arguments.output, prompts, labels),
        label_prompt=arguments.label_prompt,
        file_format=arguments.format,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        shard_size=arguments.shard_size,
        process_index=state.process_index,
        num_processes=state.num_processes,
    )
    state.wait_for_everyone()
    counts = gather_object([counts])
    if not state.is_main_process:
        return 0
    summary = _summary(arguments, state, model, settings["model_hash"], counts)
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    if not summary["files"]:
        print(f"sam-alm: none of {summary['failures']} clips could be read, see failures.jsonl", file=sys.stderr)
    return 0 if summary["files"] else 1


def _summary(arguments: argparse.Namespace, state, model, hashed: str, counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Finishes the output folder; returns its counts and the speed of all processes together."""
    total = {name: sum(each[name] for each in counts) for name in ("files", "windows", "failures")}
    seconds, waiting = (max(each[name] for each in counts) for name in ("seconds", "waiting_seconds"))
    on_gpu = state.device.type == "cuda"
    device = torch.cuda.get_device_name(state.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    return finish_output(
        arguments.output,
        model=arguments.model,
        model_hash=hashed,
        versions=versions(),
        run={
            **total,
            "seconds": round(seconds, 3),
            "files_per_second": round((total["files"] + total["failures"]) / seconds, 3),
            "windows_per_second": round(total["windows"] / seconds, 3),
            "waiting_seconds": round(waiting, 3),
            "processes": state.num_processes,
            "workers": arguments.workers,
            "batch_size": arguments.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device,
        },
    )


def parse_prompts(values: list[str], labels: bool = False) -> dict[str, str]:
    """Columns and prompts of `--prompt`: one prompt alone is the column `text`, several are given as NAME=TEXT.

    Args:
        values (list of `str`): The option's values; without any, the prompt of `sam-alm describe`, unless
            labels are scored.
        labels (`bool`, *optional*, defaults to `False`): Whether labels are scored.

    Raises:
        ValueError: Several prompts, of which one has no name or two have the same name.
    """
    if not values:
        return {} if labels else {"text": DEFAULT_PROMPT}
    named = [value.split("=", 1) if value.split("=", 1)[0].isidentifier() else ["", value] for value in values]
    if len(named) == 1:
        return {named[0][0] or "text": named[0][1]}
    prompts = dict(named)
    if len(prompts) < len(named) or "" in prompts:
        raise ValueError(f"prompt: got {values}, expected several as NAME=TEXT, with different names.")
    return prompts


def _read_labels(path: str | None) -> list[str] | None:
    """The lines of a file, without blank ones."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels: there is no file {path!r}.")
    labels = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels: {path!r} has {len(labels)} lines, expected one or more, all different.")
    return labels
