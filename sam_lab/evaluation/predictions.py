"""A model's answers to the items of a task: in batches, over several processes, and resumable after a kill.

Each process appends the answers to each batch as one line to its own file in a work folder. Items that already have an
answer are skipped, however many processes wrote them; at the end the main process sorts all answers into the items'
order. The batches do not depend on the number of processes, so neither do the results.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from audio_sam import SAMPLING_RATE, SamFeatureExtractor, load_audio
from sam_lab.common.answers import generate
from sam_lab.common.checks import failure_reason
from sam_lab.common.cores import num_cores
from sam_lab.common.files import write_json, write_text
from sam_lab.common.iteration import batched
from sam_lab.evaluation.items import Item

RUN_FILE = "run.json"
DONE_FILE = "done.jsonl"
AHEAD = 2  # batches whose audio is read while another is answered

# -- Clips --------------------------------------------------------------------------------------------------------


def load_clip(path: str, feature_extractor: SamFeatureExtractor) -> tuple[np.ndarray | None, str | None]:
    """A clip's beginning, as much as is used of it, or the reason why it cannot be read."""
    try:
        return load_audio(path, **feature_extractor.reading("truncate")), None
    except Exception as error:  # also too little memory: this clip's failure, not the end of the evaluation
        return None, failure_reason(error)


def load_batches(
    batches: Sequence[list[Item]], feature_extractor: SamFeatureExtractor
) -> Iterator[tuple[list[Item], list[tuple[np.ndarray | None, Any]]]]:
    """Batches with their clips, which threads read while earlier batches are answered."""
    waiting: deque = deque()
    with ThreadPoolExecutor(min(16, num_cores())) as pool:
        for batch in batches:
            waiting.append((batch, [pool.submit(load_clip, item.audio, feature_extractor) for item in batch]))
            if len(waiting) > AHEAD:
                items, clips = waiting.popleft()
                yield items, [clip.result() for clip in clips]
        for items, clips in waiting:
            yield items, [clip.result() for clip in clips]


@torch.inference_mode()
def answer_batch(
    model,
    processor,
    items: Sequence[Item],
    clips: Sequence,
    candidates: dict[str, list[str]],
    end_of_text: bool,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """A record for each item: `id`, `text` (`None` if the clip cannot be read, with the reason in `failed`), `long`
    (whether it exceeds 10.24 s and was truncated), and for the candidates `sums`, their log-likelihoods, and `tokens`.
    """
    records = [{"id": item.id, "text": None, "failed": reason} for item, (_, reason) in zip(items, clips)]
    readable = [index for index, (waveform, _) in enumerate(clips) if waveform is not None]
    if not readable:
        return records
    extractor = processor.feature_extractor
    waveforms = [clips[index][0] for index in readable]
    inputs = processor(
        text=[items[index].prompt for index in readable],
        audio=[[waveform] for waveform in waveforms],
        sampling_rate=SAMPLING_RATE,
        overflow="truncate",
        return_tensors="pt",
        device=model.device,
    ).to(model.device)
    texts = generate(model, inputs, processor, max_new_tokens)
    for index, waveform, text in zip(readable, waveforms, texts):
        long = extractor.num_frames(len(waveform)) > extractor.max_frames
        records[index].update(text=text, long=long)
    if candidates:
        rows = [candidates[items[index].id] for index in readable]
        scores = model.score_candidates(processor, inputs, rows, end_of_text=end_of_text)
        for row, index in enumerate(readable):
            sums = scores.sums[row, : len(rows[row])].tolist()
            records[index]["sums"] = [round(value, 5) for value in sums]  # 527 labels make a long line
            records[index]["tokens"] = scores.lengths[row, : len(rows[row])].tolist()
    return records


# -- Processes and part files -------------------------------------------------------------------------------------


def read_parts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records in all files of a work folder by item id; a line that a kill has truncated is skipped."""
    records = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                records.update({record["id"]: record for record in json.loads(line)})
    return records


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` if the work folder contains answers of a run with other settings."""
    path = folder / RUN_FILE
    if not path.is_file() or not read_parts(folder):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if names:
        changes = "; ".join(f"{name} {str(before.get(name))[:60]} -> {str(settings.get(name))[:60]}" for name in names)
        raise ValueError(
            f"output: {str(folder)!r} has the answers of an interrupted run with other settings ({changes}); delete "
            "the folder, or choose another output."
        )


def gather_parts(folder: Path) -> None:
    """Merges all files into one and deletes them; at every moment each answer is in a complete file."""
    parts = list(folder.glob("part-*.jsonl"))
    write_text("".join(json.dumps([record]) + "\n" for record in read_parts(folder).values()), folder / DONE_FILE)
    for path in parts:
        path.unlink()


def predict(
    model,
    processor,
    items: Sequence[Item],
    folder: str | Path,
    settings: dict[str, Any],
    candidates: dict[str, list[str]] | None = None,
    end_of_text: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 400,
    state: PartialState | None = None,
) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
    """Answers the items, each process its share. An interrupted run with the same settings is resumed.

    Args:
        model ([`SamForConditionalGeneration`]): The model, on this process's device, in evaluation mode.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        items (list of [`Item`]): Items with existing audio files and distinct `id`s.
        folder (`str` or `Path`): The work folder, visible to all processes; created if needed. It is not deleted.
        settings (`dict`): Everything that the answers depend on, as JSON values, so that different runs are not mixed.
        candidates (`dict`, *optional*): By item `id`, the answers whose likelihoods are computed as well.
        end_of_text (`bool`, *optional*, defaults to `True`): Whether a candidate is the whole answer, or only its
            start.
        batch_size (`int`, *optional*, defaults to 32): Items that are answered together. Long prompts come first, so
            that a batch too large for the memory fails at once.
        max_new_tokens (`int`, *optional*, defaults to 400): Longest answer, as in LTU.
        state (`PartialState`, *optional*): accelerate's state; created from the environment by default.

    Returns:
        `tuple`: The records of [`answer_batch`] in the items' order (`None` on processes other than the main one), and
        a `dict` with the `seconds` and `clips_per_second` of this run, and `resumed`, the number of items that an
        earlier run had answered.

    Raises:
        ValueError: Two items with the same `id`; a work folder with other settings.
    """
    state = state or PartialState()
    folder = Path(folder)
    if len({item.id for item in items}) != len(items):
        raise ValueError(
            f"items: got {len(items)} with {len({item.id for item in items})} ids, expected distinct ones."
        )
    if state.is_main_process:
        check_run(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(settings, folder / RUN_FILE)
        gather_parts(folder)
    state.wait_for_everyone()
    done = read_parts(folder)
    resumed = sum(item.id in done for item in items)
    begin = time.perf_counter()
    order = sorted(items, key=lambda item: -len(item.prompt))
    share = list(batched(order, batch_size))[state.process_index :: state.num_processes]
    batches = [left for batch in share if (left := [item for item in batch if item.id not in done])]
    total = sum(map(len, batches))
    with (
        open(folder / f"part-{state.process_index:05d}.jsonl", "ab", buffering=0) as handle,
        tqdm(total=total, desc="answering", unit="clip", disable=not state.is_main_process) as progress,
    ):
        for batch, clips in load_batches(batches, processor.feature_extractor):
            answers = answer_batch(model, processor, batch, clips, candidates or {}, end_of_text, max_new_tokens)
            handle.write((json.dumps(answers) + "\n").encode())  # a single write for each batch
            progress.update(len(batch))
    state.wait_for_everyone()
    seconds = time.perf_counter() - begin
    speed = {"seconds": seconds, "clips_per_second": (len(items) - resumed) / seconds, "resumed": resumed}
    if not state.is_main_process:
        return None, speed
    records = read_parts(folder)
    absent = [item.id for item in items if item.id not in records]
    if absent:
        raise RuntimeError(
            f"{len(absent)} items have no answer, such as {absent[0]!r}: do all processes see {folder}?"
        )
    return [records[item.id] for item in items], speed
