"""Describes large numbers of clips with a model (`sam-alm caption`), resumable and in several processes.

The output folder:

- `part-<process>-<number>.parquet` (or `.jsonl`): shards, with a row for each window of 10.24 s. A shard appears whole
  or not at all, and contains all windows of its clips. Columns: `clip` (its key in the source), `audio` (its path, if
  it has one), `start`, `end` and `seconds` (the clip's length) in seconds, the columns copied from the dataset, a text
  column for each prompt, and with labels `label` (the likeliest) and `log_likelihoods` (of each label, in the given
  order). The rows of a shard are in the order of the source; sorting all rows by `clip` and `start` restores that
  order over the shards.
- `failures/part-<process>-<number>.jsonl`, and at the end all of them in `failures.jsonl`: clips that could not be
  read, each with the reason.
- `manifest.json`: the settings and the shards; `summary.json`, at the end: counts, speed, versions.

Clips in a shard or a list of failures are skipped when the job is resumed, with any number of processes.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from tqdm.auto import tqdm

from audio_sam import check_choice, read_windows
from sam_lab.common.answers import answer_windows, prompt_inputs
from sam_lab.common.files import write_json, written
from sam_lab.common.iteration import batched
from sam_lab.common.prompts import CLASSIFICATION_PROMPT
from sam_lab.data.clips import Clip, FolderClips, StreamClips, TableClips

MANIFEST_FILE = "manifest.json"
SUMMARY_FILE = "summary.json"
FAILURES_FILE = "failures.jsonl"
FAILURES_FOLDER = "failures"
FORMATS = ("parquet", "jsonl")
ORDER = "rows of a shard: as in the source; of all shards: sort by clip, then start"

WINDOW_SCHEMA = pyarrow.schema(
    [("clip", pyarrow.string()), ("audio", pyarrow.string())]
    + [(name, pyarrow.float64()) for name in ("start", "end", "seconds")]
)
LABEL_SCHEMA = pyarrow.schema([("label", pyarrow.string()), ("log_likelihoods", pyarrow.list_(pyarrow.float32()))])


# -- The output folder --------------------------------------------------------------------------------------------


def output_schema(kept: pyarrow.Schema, prompts: Mapping[str, str], labels: Sequence[str] | None) -> pyarrow.Schema:
    """The columns of the shards.

    Args:
        kept (`pyarrow.Schema`): Columns that are copied from the source.
        prompts (`dict`): Prompts by column name.
        labels (list of `str`, *optional*): Whether labels are scored.

    Raises:
        ValueError: Two columns with the same name, or neither prompts nor labels.
    """
    if not prompts and not labels:
        raise ValueError("prompts, labels: got neither, expected a prompt or labels to score.")
    texts = pyarrow.schema([(name, pyarrow.string()) for name in prompts])
    fields = [field for part in (WINDOW_SCHEMA, kept, texts, LABEL_SCHEMA if labels else []) for field in part]
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"prompts, keep: {', '.join(twice)} would be two columns, expected different names: {names}.")
    return pyarrow.schema(fields)


def open_output(output: str | Path, settings: dict[str, Any], retry_failures: bool = False) -> None:
    """Creates the output folder, or checks that it belongs to the same job. One process does this before all start.

    Args:
        output (`str` or `Path`): The folder.
        settings (`dict`): Everything that the rows depend on, as JSON values: the model's hash, source, prompts …
        retry_failures (`bool`, *optional*, defaults to `False`): Read the clips again that could not be read.

    Raises:
        ValueError: The folder contains other files, or was written with other settings.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    if (output / MANIFEST_FILE).is_file():
        stored = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))["settings"]
        changed = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
        if changed:
            changes = "; ".join(f"{name} was {stored.get(name)!r}, is {settings.get(name)!r}" for name in changed)
            raise ValueError(f"output: {str(output)!r} is of another job ({changes}); choose another folder.")
    elif any(output.iterdir()):
        raise ValueError(f"output: {str(output)!r} has files in it but no {MANIFEST_FILE}; choose an empty folder.")
    else:
        write_json({"settings": settings, "order": ORDER, "shards": []}, output / MANIFEST_FILE)
    (output / SUMMARY_FILE).unlink(missing_ok=True)
    (output / FAILURES_FOLDER).mkdir(exist_ok=True)
    unfinished = [*output.glob("part-*.unfinished"), *(output / FAILURES_FOLDER).glob("part-*.unfinished")]
    for path in [*unfinished, *((output / FAILURES_FOLDER).glob("part-*.jsonl") if retry_failures else [])]:
        path.unlink()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as handle:  # names may contain other line-breaking characters
        return [json.loads(line) for line in handle]


def shard_clips(path: Path) -> list[str]:
    """The clip's key of each row of a shard."""
    if path.suffix == ".parquet":
        with open(path, "rb") as file:  # pyarrow opens no path that is not UTF-8
            return pyarrow.parquet.read_table(file, columns=["clip"])["clip"].to_pylist()
    return [row["clip"] for row in _read_lines(path)]


def _shards(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("part-*") if path.suffix[1:] in FORMATS)


def _failures(output: Path) -> list[dict[str, Any]]:
    rows = [row for path in (output / FAILURES_FOLDER).glob("part-*.jsonl") for row in _read_lines(path)]
    return sorted(rows, key=lambda row: row["clip"])


def done_clips(output: str | Path) -> set[str]:
    """The keys of all clips in the finished shards and the lists of failures of an output folder."""
    done = {clip for path in _shards(Path(output)) for clip in shard_clips(path)}
    return done | {row["clip"] for row in _failures(Path(output))}


def finish_output(output: str | Path, **facts: Any) -> dict[str, Any]:
    """Lists the shards in the manifest and the failures in one file, and writes the summary. One process does this
    after all have finished.

    Args:
        output (`str` or `Path`): The output folder.
        facts: Fields of the summary beside the counts.

    Returns:
        `dict`: The summary: `files`, `windows`, `failures` of the whole folder, and the facts.
    """
    output = Path(output)
    shards = []
    for path in _shards(output):
        clips = shard_clips(path)
        shards.append({"file": path.name, "clips": len(set(clips)), "windows": len(clips)})
    failures = _failures(output)
    _write_lines(failures, output / FAILURES_FILE)
    manifest = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))
    write_json({**manifest, "shards": shards}, output / MANIFEST_FILE)
    files, windows = (sum(shard[name] for shard in shards) for name in ("clips", "windows"))
    summary = {"files": files, "windows": windows, "failures": len(failures), **facts}
    write_json(summary, output / SUMMARY_FILE)
    return summary


def _write_lines(rows: Iterable[dict[str, Any]], path: Path) -> None:
    # half a character, which stands for a byte of a name, becomes JSON's escape
    with written(path) as place, open(place, "w", encoding="utf-8", errors="backslashreplace") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


class _Shards:
    """Writes this process's shards, with numbers after those of existing shards."""

    def __init__(self, output: Path, process_index: int, schema: pyarrow.Schema, file_format: str):
        self.output, self.schema, self.file_format = output, schema, file_format
        self.prefix = f"part-{process_index:05d}-"
        paths = [*output.glob(f"{self.prefix}*"), *(output / FAILURES_FOLDER).glob(f"{self.prefix}*")]
        self.number = 1 + max((int(path.name.removeprefix(self.prefix).split(".")[0]) for path in paths), default=-1)

    def write(self, rows: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
        name = f"{self.prefix}{self.number:05d}"
        shard = self.output / f"{name}.{self.file_format}"
        if shard.exists():
            raise ValueError(f"output: another job has written {str(shard)!r} meanwhile; stop one of the two jobs.")
        if failures:
            _write_lines(failures, self.output / FAILURES_FOLDER / f"{name}.jsonl")
        if rows and self.file_format == "jsonl":
            _write_lines(rows, shard)
        elif rows:
            with written(shard) as place, open(place, "wb") as file:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, self.schema), file)
        self.number += bool(rows or failures)


# -- Describing ---------------------------------------------------------------------------------------------------


class _Reader(torch.utils.data.Dataset):
    """Reads a clip's windows, or returns the reason why it cannot. A `DataLoader` passes clips as indices, so that one
    process iterates over the source and many decode."""

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __getitem__(self, clip: Clip) -> tuple[dict[str, Any], list[dict[str, float]], Any]:
        facts = {"clip": clip.key, "audio": clip.path, **clip.kept}
        try:
            spans, features = read_windows(clip.audio, self.feature_extractor)
        except Exception as error:  # one clip in a million must not stop the job: it is listed with the reason
            return facts, [], f"{type(error).__name__}: {error}"
        return facts, spans, features.numpy()  # arrays are sent through a pipe: shared memory may be small


class WindowQuestions:
    """Answers the prompts and scores the labels for batches of windows."""

    def __init__(self, model, processor, prompts, labels, label_prompt, max_new_tokens):
        self.model, self.processor, self.labels = model, processor, labels
        self.max_new_tokens = max_new_tokens
        self.prompts = {name: prompt_inputs(model, processor, prompt) for name, prompt in prompts.items()}
        self.label_prompt = prompt_inputs(model, processor, label_prompt) if labels else None

    @torch.inference_mode()
    def ask(self, features: torch.Tensor) -> list[dict[str, Any]]:
        """The text and label columns of each window of `[B, 1024, 128]`."""
        rows: list[dict[str, Any]] = [{} for _ in features]
        features = features.to(self.model.device)
        for name, prompt in self.prompts.items():
            answers = answer_windows(
                self.model, self.processor, prompt, features, self.max_new_tokens, do_sample=False
            )
            for row, text in zip(rows, answers):
                row[name] = text
        if self.labels:
            inputs = {key: value.expand(len(features), -1) for key, value in self.label_prompt.items()}
            scores = self.model.score_candidates(
                self.processor, {**inputs, "input_features": features}, self.labels
            ).sums.tolist()
            for row, values in zip(rows, scores):
                row.update(label=self.labels[int(np.argmax(values))], log_likelihoods=values)
        return rows


def describe_clips(
    model,
    processor,
    source: FolderClips | TableClips | StreamClips,
    output: str | Path,
    prompts: Mapping[str, str],
    labels: Sequence[str] | None = None,
    label_prompt: str = CLASSIFICATION_PROMPT,
    file_format: str = "parquet",
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    shard_size: int = 2000,
    process_index: int = 0,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Describes one process's share of the remaining clips, in a folder prepared by [`open_output`].

    Answers are greedy. Except for rounding a window's text does not depend on its batch, so in float32 it does not
    depend on the number of processes either.

    Args:
        model ([`SamForConditionalGeneration`]): The model, in evaluation mode, on its device.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        source ([`FolderClips`], [`TableClips`] or [`StreamClips`]): The clips.
        output (`str` or `Path`): The output folder.
        prompts (`dict`): The prompt for each text column; may be empty if there are labels.
        labels (list of `str`, *optional*): Labels to score by `model.score_candidates`, each as a whole answer.
        label_prompt (`str`, *optional*): The prompt for the labels.
        file_format (`str`, *optional*, defaults to `"parquet"`): `"parquet"` or `"jsonl"`.
        max_new_tokens (`int`, *optional*): Longest answer; by default the checkpoint's setting.
        batch_size (`int`, *optional*, defaults to 32): Windows that the model processes together.
        num_workers (`int`, *optional*, defaults to 2): Processes that decode audio; with 0 this process decodes.
        shard_size (`int`, *optional*, defaults to 2000): Number of windows after which a shard is written. A kill
            loses at most this many windows, and the remaining ones of the last clip.
        process_index (`int`, *optional*, defaults to 0): Index of this process.
        num_processes (`int`, *optional*, defaults to 1): Number of processes.

    Returns:
        `dict`: `files`, `windows` and `failures` of this call, its `seconds`, and `waiting_seconds`, during which the
        model was idle.

    Raises:
        ValueError: A setting out of range.
    """
    check_choice("file_format", file_format, FORMATS)
    if not 0 <= process_index < num_processes:
        raise ValueError(f"process_index: got {process_index}, expected one from 0 to {num_processes - 1}.")
    if min(batch_size, shard_size) < 1 or num_workers < 0:
        raise ValueError(
            f"batch_size, shard_size, num_workers: got {batch_size}, {shard_size} and {num_workers}, expected at "
            "least 1, 1 and 0."
        )
    output = Path(output)
    shards = _Shards(output, process_index, output_schema(source.schema, prompts, labels), file_format)
    questions = WindowQuestions(model, processor, prompts, labels, label_prompt, max_new_tokens)
    done = done_clips(output)
    loader = torch.utils.data.DataLoader(
        _Reader(processor.feature_extractor),
        batch_size=None,
        sampler=source.clips(process_index, num_processes, done),
        num_workers=num_workers,
        collate_fn=_unchanged,
    )
    total = source.count(process_index, num_processes, done)
    counts: dict[str, Any] = {"files": 0, "windows": 0, "failures": 0, "waiting_seconds": 0.0}
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    complete = 0  # rows of clips whose windows are all described
    begin = time.perf_counter()
    with tqdm(total=total, desc="describing", unit="file", disable=process_index > 0) as bar:
        windows = _windows(_timed(loader, counts), failures)
        for batch in batched(windows, batch_size):
            answers = questions.ask(torch.from_numpy(np.stack([feature for _, feature, _ in batch])))
            for (facts, _, is_last), answer in zip(batch, answers):
                rows.append({**facts, **answer})
                if is_last:
                    complete = len(rows)
                    counts["files"] += 1
            counts["windows"] += len(batch)
            if complete >= shard_size or len(failures) >= shard_size:
                counts["failures"] += len(failures)
                shards.write(rows[:complete], failures)
                del rows[:complete]
                failures.clear()
                complete = 0
            bar.update(counts["files"] + counts["failures"] + len(failures) - bar.n)
        counts["failures"] += len(failures)
        shards.write(rows, failures)
        bar.update(counts["files"] + counts["failures"] - bar.n)
    return {**counts, "seconds": time.perf_counter() - begin}


def _unchanged(item: Any) -> Any:
    return item


def _timed(items: Iterable[Any], counts: dict[str, Any]) -> Iterator[Any]:
    """Yields the items, and adds the time spent waiting for each to `waiting_seconds`."""
    items = iter(items)
    while True:
        begin = time.perf_counter()
        item = next(items, None)
        counts["waiting_seconds"] += time.perf_counter() - begin
        if item is None:
            return
        yield item


def _windows(clips: Iterable[tuple], failures: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any, bool]]:
    """Yields (facts, features, whether it is its clip's last) of each window; lists unreadable clips in `failures`."""
    for facts, spans, features in clips:
        if not spans:
            failures.append({**facts, "error": features})
        for number, span in enumerate(spans, start=1):
            yield {**facts, **span}, features[number - 1], number == len(spans)
