"""What a model says about the clips of a benchmark: in batches, over several processes, and resumable after a kill.

Each process appends every batch it has answered to a file of its own in a work folder, one line a batch. What is there
already is not asked again, however many processes wrote it; at the end the main process puts all into the items'
order. The batches are the same for any number of processes, so that their number changes no result.
"""

import json
import os
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

from audio_sam import SAMPLING_RATE, load_audio
from sam_lab.common.answers import generate
from sam_lab.common.files import write_json, write_text
from sam_lab.evaluation.items import Item

RUN_FILE = "run.json"
DONE_FILE = "done.jsonl"
AHEAD = 2  # batches whose audio is read while one is answered
UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a WAV file that was written to a pipe

# ---------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------


def check_whole(path: str | Path) -> None:
    """Raises `ValueError` if a WAV or Ogg file breaks off before its end: a decoder would give its beginning.

    A WAV file that is shorter than its header says, and an Ogg file whose last page does not say that it is the last.
    FLAC and most others cannot be decoded then, which [`load_audio`] reports. An MP3 file has no end that could be
    missed: it is taken for a shorter one.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        start = handle.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            said = int.from_bytes(start[4:8], "little")
            if said not in UNKNOWN_SIZES and said + 8 > size + 1:  # some leave out the last padding byte
                raise ValueError(f"audio: {str(path)!r} has {size} bytes, its header says {said + 8}: it breaks off.")
        elif start[:4] == b"OggS":
            handle.seek(max(0, size - (1 << 16)))  # a page has under 64 KiB
            end = handle.read()
            page = end.rfind(b"OggS")
            if page < 0 or len(end) < page + 6 or not end[page + 5] & 4:
                raise ValueError(f"audio: {str(path)!r} ends without Ogg's last page: it breaks off.")


def load_clip(path: str) -> tuple[np.ndarray | None, str | None]:
    """A clip's waveform, or why there is none."""
    try:
        check_whole(path)
        return load_audio(path), None
    except (OSError, ValueError) as error:
        return None, str(error)


def load_batches(batches: Sequence[list[Item]]) -> Iterator[tuple[list[Item], list[tuple[np.ndarray | None, Any]]]]:
    """Batches with their clips, read by threads while those before are answered."""
    waiting: deque = deque()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for batch in batches:
            waiting.append((batch, [pool.submit(load_clip, item.audio) for item in batch]))
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
    """One record an item: `id`, `text` (`None` where the clip cannot be read, for the reason in `failed`), `long`
    (more than 10.24 s, of which the rest was not heard), and of the candidates `sums`, their log-likelihoods, and `tokens`."""
    records = [{"id": item.id, "text": None, "failed": reason} for item, (_, reason) in zip(items, clips)]
    heard = [index for index, (waveform, _) in enumerate(clips) if waveform is not None]
    if not heard:
        return records
    extractor = processor.feature_extractor
    waveforms = [clips[index][0] for index in heard]
    inputs = processor(
        text=[items[index].prompt for index in heard],
        audio=[[waveform] for waveform in waveforms],
        sampling_rate=SAMPLING_RATE,
        overflow="truncate",
        return_tensors="pt",
        device=model.device,
    ).to(model.device)
    texts = generate(model, inputs, processor, max_new_tokens)
    for index, waveform, text in zip(heard, waveforms, texts):
        long = extractor.num_frames(len(waveform)) > extractor.max_frames
        records[index].update(text=text, long=long)
    if candidates:
        rows = [candidates[items[index].id] for index in heard]
        scores = model.score_candidates(processor, inputs, rows, end_of_text=end_of_text)
        for row, index in enumerate(heard):
            sums = scores.sums[row, : len(rows[row])].tolist()
            records[index]["sums"] = [round(value, 5) for value in sums]  # of 527 labels a line is long
            records[index]["tokens"] = scores.lengths[row, : len(rows[row])].tolist()
    return records


# ---------------------------------------------------------------------------------------------------------------
# Processes and part files
# ---------------------------------------------------------------------------------------------------------------


def read_parts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records of all files of a work folder by their item; a line that a kill has cut is left out."""
    records = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                records.update({record["id"]: record for record in json.loads(line)})
    return records


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` where the work folder holds answers of a run with other settings."""
    path = folder / RUN_FILE
    if not path.is_file() or not read_parts(folder):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if names:
        changes = "; ".join(f"{name} {str(before.get(name))[:60]} -> {str(settings.get(name))[:60]}" for name in names)
        raise ValueError(
            f"output: {str(folder)!r} holds the answers of a run that was broken off with other settings ({changes}); "
            "delete the folder, or give another output."
        )


def gather_parts(folder: Path) -> None:
    """Puts what all files hold into one, and removes them; at every moment everything is in a whole file."""
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
    """Answers to the items, each process its share, from where an earlier run of the same settings was broken off.

    Args:
        model ([`SamForConditionalGeneration`]): The model, on this process's device, in evaluation mode.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        items (list of [`Item`]): With their audio there, and distinct `id`s.
        folder (`str` or `Path`): The work folder, which all processes see; made if needed. It stays.
        settings (`dict`): All that the answers depend on, as JSON can hold it: it guards against mixing runs.
        candidates (`dict`, *optional*): By an item's `id`, the answers whose likelihood is wanted beside.
        end_of_text (`bool`, *optional*, defaults to `True`): Whether a candidate is the whole answer, or its
            beginning.
        batch_size (`int`, *optional*, defaults to 32): Items that are answered together; those with long prompts
            first, so that what does not fit into memory fails at once.
        max_new_tokens (`int`, *optional*, defaults to 400): Longest answer, LTU's.
        state (`PartialState`, *optional*): accelerate's; made from the environment by default.

    Returns:
        `tuple`: The records of [`answer_batch`] in the items' order (`None` but on the main process), and `seconds`,
        `clips_per_second` and `resumed`: of this run, and how many items an earlier one had answered.

    Raises:
        ValueError: Two items of one `id`; a work folder of other settings.
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
    plan = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    own = [
        [item for item in batch if item.id not in done] for batch in plan[state.process_index :: state.num_processes]
    ]
    options = (candidates or {}, end_of_text, max_new_tokens)
    _answer(model, processor, [batch for batch in own if batch], folder, options, state)
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


def _answer(model, processor, batches, folder: Path, options: tuple, state) -> None:
    """Answers this process's batches, each appended by one write."""
    total = sum(map(len, batches))
    progress = tqdm(total=total, desc="answering", unit="clip", disable=not state.is_main_process)
    with open(folder / f"part-{state.process_index:05d}.jsonl", "ab", buffering=0) as handle:
        for items, clips in load_batches(batches):
            records = answer_batch(model, processor, items, clips, *options)
            handle.write((json.dumps(records) + "\n").encode())
            progress.update(len(items))
    progress.close()
