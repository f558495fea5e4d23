"""`sam-alm describe`: prints a description of each window of each file."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

import processing_sam  # noqa: F401 (registers the processor)
from audio_sam import read_windows
from modeling_sam import SamForConditionalGeneration
from sam_lab.common.answers import answer_windows, prompt_inputs
from sam_lab.common.checks import choose_device, failure_reason
from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.common.iteration import batched
from sam_lab.common.names import name_in_line, name_text

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BATCH_SIZE = 8  # windows that go through the model together


def run(arguments: argparse.Namespace) -> int:
    """Describes the files; returns 1 if one of them could not be read (the others are described nevertheless)."""
    paths = arguments.audio or _example_clips()
    model, processor = _load(arguments.model or _example_model(), arguments.device, arguments.dtype)
    extractor = processor.feature_extractor
    extractor.incomplete, extractor.max_seconds = arguments.incomplete, arguments.max_seconds
    prompt = prompt_inputs(model, processor, arguments.prompt)

    failed: list[str] = []
    show = sys.stderr.isatty() and len(paths) > 1
    progress = tqdm(paths, unit="file", file=sys.stderr, disable=not show)
    for batch in batched(_windows(progress, processor, failed), BATCH_SIZE):
        features = torch.cat([window.pop("features") for window in batch])
        for window, text in zip(batch, answer_windows(model, processor, prompt, features, arguments.max_new_tokens)):
            tqdm.write(_line({**window, "text": text}, arguments.json), file=sys.stdout)
        sys.stdout.flush()
    return 1 if failed else 0


def _example_clips() -> list[str]:
    clips = [path for path in sorted((EXAMPLES / "audio").glob("*")) if path.suffix in AUDIO_SUFFIXES]
    if not clips:
        raise ValueError("describe: got no AUDIO, expected one or more audio files.")
    return [os.path.relpath(path) for path in clips]


def _example_model() -> str:
    folder = EXAMPLES / "sam-tiny"
    if not (folder / "config.json").is_file():
        raise ValueError("describe: got no --model, expected a directory or a Hub id: only a checkout has a default.")
    return str(folder)


def _load(model_id: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    place = choose_device(device)
    dtype = dtype or ("float32" if place.type == "cpu" else "auto")
    try:
        model = AutoModel.from_pretrained(model_id, dtype=dtype)
        processor = AutoProcessor.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: cannot load {model_id!r}: {error}") from error
    if not isinstance(model, SamForConditionalGeneration):
        raise ValueError(f"--model: {model_id!r} is of type {model.config.model_type!r}, expected 'sam_alm'.")
    return model.to(place).eval(), processor


def _windows(paths: Iterable[str], processor: Any, failed: list[str]) -> Iterator[dict[str, Any]]:
    """Yields {"audio", "start", "end", "seconds", "windows", "features"} for every window of every file."""
    for path in paths:
        try:
            spans, features = read_windows(path, processor.feature_extractor)
        except Exception as error:  # whatever it is, also too little memory: the others are described
            print(f"sam-alm: {name_in_line(path)}: {failure_reason(error)}", file=sys.stderr)
            failed.append(path)
            continue
        for index, span in enumerate(spans):
            yield {"audio": path, **span, "windows": len(spans), "features": features[index : index + 1]}


def _line(window: dict[str, Any], as_json: bool) -> str:
    if as_json:
        times = {name: round(window[name], 6) for name in ("start", "end", "seconds")}
        facts = {**window, **times, "audio": name_text(window["audio"])}
        return json.dumps({name: facts[name] for name in ("audio", "start", "end", "text", "seconds")})
    span = [f"{window['start']:.2f}-{window['end']:.2f}"] if window["windows"] > 1 else []
    return "\t".join([name_in_line(window["audio"]), *span, window["text"]])
