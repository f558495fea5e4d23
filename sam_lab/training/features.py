"""Log-mel that is computed once and stays on the training device."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from audio_sam import SAMPLING_RATE, load_audio
from processing_sam import IGNORE_INDEX
from sam_lab.data.collation import BROKEN
from sam_lab.data.counts import SourceCounts
from sam_lab.data.plain_tables import clip_key

logger = logging.get_logger(__name__)


def extract_features(
    clips: Sequence[Any],
    processor,
    device="cpu",
    num_threads: int = 8,
    read: Callable[[Any], np.ndarray | None] | None = None,
) -> torch.Tensor:
    """Computes the log-mel of many clips, in half precision.

    Args:
        clips (list): Anything that `read` reads; of clips over 10.24 s the beginning is used.
        processor ([`SamAudioLanguageProcessor`]): Its feature extractor is used.
        device (*optional*, defaults to `"cpu"`): Where the result is stored: 256 KiB a clip.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.
        read (callable, *optional*): Returns a clip's waveform, or `None` to skip the clip; [`load_audio`] by default.

    Returns:
        `torch.Tensor`: `[clips, 1024, 128]`, float16, normalised, without the skipped clips.
    """
    extractor = processor.feature_extractor
    read = read or partial(load_audio, **extractor.reading("truncate"))
    shape = (len(clips), extractor.max_frames, extractor.feature_size)
    features = torch.empty(shape, dtype=torch.float16, device=device)
    count = 0
    with ThreadPoolExecutor(num_threads) as pool, tqdm(total=len(clips), desc="features", unit="clip") as bar:
        for begin in range(0, len(clips), 64):
            part = clips[begin : begin + 64]
            readable = (waveform for waveform in pool.map(read, part) if waveform is not None)
            if waveforms := [waveform[: extractor.max_frames * 160 + 240] for waveform in readable]:
                batch = extractor(waveforms, SAMPLING_RATE, return_tensors="pt", overflow="truncate", device=device)
                features[count : count + len(waveforms)] = batch["input_features"]
            count += len(waveforms)
            bar.update(len(part))
    return features[:count]


class CachedRows(torch.utils.data.Dataset):
    """Rows whose log-mel was computed once and stays on the training device; rows without audio are text.

    With small data the loader is the bottleneck: this takes reading, decoding and the filter bank out of the loop.
    Pass it to Trainer with `dataloader_num_workers=0` and `dataloader_pin_memory=False`. Rows whose clip cannot be
    read are skipped and counted by source: [`~CachedRows.report`].

    Args:
        table (`datasets.Dataset`): Rows `audio`, `prompt`, `answer`, as [`read_table`] returns them.
        processor ([`SamAudioLanguageProcessor`]): The processor.
        device (*optional*, defaults to `"cpu"`): Where the features are stored.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.
        text_cutoff (`int`, *optional*): Tokens of template, prompt and answer that remain, as in [`RowCollator`]; a
            warning counts the rows that are cut.
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of rows whose clip cannot be read, and
            one more, unless it is 0: as in [`RecordBatches`], so that what trains from disk also trains from memory.
        sources (list of `str`, *optional*): The dataset that each row counts as; `"unnamed"` by default.

    Raises:
        ValueError: Too many clips cannot be read, no row has a label, or `sources` are not as many as the rows.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        processor,
        device="cpu",
        num_threads: int = 8,
        text_cutoff: int | None = None,
        max_broken: float = 0.01,
        sources: Sequence[str] | None = None,
    ):
        self.counts = SourceCounts(max_broken)
        sources = ["unnamed"] * len(table) if sources is None else sources
        if len(sources) != len(table):
            raise ValueError(
                f"sources: got {len(sources)} for a table of {len(table)} rows, expected one for each row."
            )
        clips = table["audio"][:] if len(table) else []
        keys = [clip_key(clip) for clip in clips]
        first = {key: index for index, key in reversed(list(enumerate(keys))) if key is not None}
        errors, long = {}, set()  # by key

        def read(key):
            try:
                waveform = load_audio(clips[first[key]], **processor.feature_extractor.reading("truncate"))
            except BROKEN as error:
                errors[key] = error
                return None
            if processor.feature_extractor.num_frames(len(waveform)) > processor.feature_extractor.max_frames:
                long.add(key)
            return waveform

        self.features = extract_features(list(first), processor, device, num_threads, read)
        place = {key: row for row, key in enumerate(key for key in first if key not in errors)}
        readable = [index for index, key in enumerate(keys) if key not in errors]
        self.clip = [place.get(keys[index]) for index in readable]  # None: a row of text
        table, self.rows = table.select(readable), []
        lost = {"seen": range(len(keys)), "broken": [index for index, key in enumerate(keys) if key in errors]}
        lost["truncated"] = [index for index, key in enumerate(keys) if key in long]
        if len(table):
            slots = [int(clip is not None) for clip in self.clip]
            tokens = processor.encode_texts(table["prompt"][:], slots, table["answer"][:], False, text_cutoff)
            if num_cut := sum(tokens["is_cut"]):
                logger.warning(
                    f"{num_cut} of {len(table)} rows are longer than {text_cutoff} text tokens and are cut."
                )
            pairs = zip(tokens["input_ids"], tokens["labels"])
            self.rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
            lost["cut"] = compress(readable, tokens["is_cut"])
            lost["unanswered"] = [
                index for index, row in zip(readable, self.rows) if set(row["labels"]) == {IGNORE_INDEX}
            ]
        for kind, indices in lost.items():
            for source, number in Counter(sources[index] for index in indices).items():
                self.counts.add(source, kind, number)
        error = next((errors[key] for key in keys if key in errors), None)
        self.counts.check(error)
        if error is not None:
            logger.warning(f"{len(lost['broken'])} of {len(keys)} rows with unreadable audio are skipped: {error}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip[index]
        return self.rows[index] if clip is None else {**self.rows[index], "input_features": self.features[clip]}

    def report(self) -> dict[str, dict[str, int]]:
        """What became of the table's rows, by source, in the form of [`~RecordBatches.report`]; each counts once."""
        return self.counts.report()
