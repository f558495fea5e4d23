"""Batches for training: raw rows or results of the processor, checked and padded ([`SamDataCollator`])."""

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.utils import logging

try:
    from .audio_sam import check_choice
except ImportError:
    if __package__:
        raise
    from audio_sam import check_choice
try:
    from .checks_sam import IGNORE_INDEX, LabelWatch, check_features
except ImportError:
    if __package__:
        raise
    from checks_sam import IGNORE_INDEX, LabelWatch, check_features

logger = logging.get_logger(__name__)


class SamDataCollator:
    """Makes right-padded training batches from raw rows or from results of the processor.

    For raw rows pass `remove_unused_columns=False` to Trainer, which otherwise removes the audio. Read an Audio column
    of `datasets` with `cast_column("audio", Audio(decode=False))`, which needs no torchcodec.

    Args:
        processor ([`SamAudioLanguageProcessor`]): The processor.
        audio_column (`str`, *optional*, defaults to `"audio"`): Clip of a raw row: anything that [`load_audio`] reads
            (arrays as `{"array", "sampling_rate"}`), a list of clips, or `None` for text only.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): Prompt of a raw row.
        answer_column (`str`, *optional*, defaults to `"answer"`): Answer of a raw row.
        overflow (`str`, *optional*, defaults to `"truncate"`): `"truncate"` or `"error"`, for clips over 10.24 s.
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also train on the text of the prompt, as LTU does.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to a multiple of this number.
    """

    def __init__(
        self,
        processor,
        audio_column="audio",
        prompt_column="prompt",
        answer_column="answer",
        overflow="truncate",
        train_on_prompt=False,
        pad_to_multiple_of=None,
    ):
        check_choice("overflow", overflow, ("truncate", "error"))
        self.processor = processor
        self.audio_column = audio_column
        self.prompt_column = prompt_column
        self.answer_column = answer_column
        self.overflow = overflow
        self.train_on_prompt = train_on_prompt
        self.pad_to_multiple_of = pad_to_multiple_of
        # Shared with the workers of a DataLoader. Each has its own entry, so that no lock is needed.
        self._truncated = torch.zeros(256, dtype=torch.int64).share_memory_()
        self._watch_labels = LabelWatch()

    @property
    def num_truncated(self) -> int:
        """How often clips over 10.24 s have been truncated so far, in all workers."""
        return int(self._truncated.sum())

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        """
        Args:
            rows (`list[dict]`): All raw, or all results of the processor (`input_ids`, and optionally
                `attention_mask`, `labels`, `input_features`).

        Returns:
            [`BatchFeature`] of tensors: `input_ids`, `attention_mask`, `labels`, `input_features`.

        Raises:
            ValueError: Missing columns, audio slots and `input_features` of a row that do not match, ids or labels
                outside the vocabulary, features that are not finite, a special token in a raw row's text, or a whole
                epoch without any label; a first batch without any is a warning.
        """
        rows = [dict(row) for row in rows]
        processed = all("input_ids" in row for row in rows)
        data = self._join(rows) if processed else self._process(rows)
        if "labels" in data:
            self._watch_labels(data["labels"])
        self.processor.pad_rows(data, True, "right", self.pad_to_multiple_of)
        return BatchFeature(
            {
                key: value if isinstance(value, torch.Tensor) else torch.tensor(value)
                for key, value in data.items()
                if key in ("input_ids", "attention_mask", "labels", "input_features")
            }
        )

    def _process(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for name in (self.audio_column, self.prompt_column, self.answer_column):
            if not all(name in row for row in rows):
                raise ValueError(
                    f"rows: got the columns {sorted({key for row in rows for key in row})}, expected also {name!r}. "
                    "If the dataset has it, Trainer has removed it: remove_unused_columns=True removes all columns "
                    "that are no arguments of forward(): pass TrainingArguments(remove_unused_columns=False). If it "
                    "has another name, pass audio_column, prompt_column or answer_column; for rows without audio the "
                    "audio is None."
                )
        data, num_long = self.processor.encode_rows(
            [row[self.prompt_column] for row in rows],
            [row[self.audio_column] for row in rows],
            [row[self.answer_column] for row in rows],
            overflow=self.overflow,
            train_on_prompt=self.train_on_prompt,
            names=(self.prompt_column, self.answer_column),
        )
        if num_long:
            if not self.num_truncated:
                logger.warning("Clips over 10.24 s are truncated; num_truncated of the collator counts them.")
            worker = torch.utils.data.get_worker_info()
            self._truncated[(0 if worker is None else worker.id + 1) % len(self._truncated)] += num_long
        return data

    def _join(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        with_labels = [row.get("labels") is not None for row in rows]
        if any(with_labels) and not all(with_labels):
            raise ValueError("labels: got rows with and without them, expected all or none.")
        data: dict[str, Any] = {"input_ids": [], **({"labels": []} if all(with_labels) else {})}
        features = []
        for index, row in enumerate(rows):
            lists = {key: self._integers(key, row[key], index) for key in data}
            mask = row.get("attention_mask")
            keep = np.ones_like(lists["input_ids"]) if mask is None else np.asarray(mask).reshape(-1)
            for name, values in {**lists, "attention_mask": keep}.items():
                if len(values) != len(lists["input_ids"]):
                    raise ValueError(
                        f"{name}: row {index} of the batch has {len(values)}, expected {len(lists['input_ids'])}, as "
                        "many as input_ids."
                    )
            for key, values in lists.items():
                data[key].append(values[keep.astype(bool)].tolist())
            clips = self._clips(row.get("input_features"), f"row {index} of the batch, ")
            expected = sum(self.processor.slot_pattern)
            found = data["input_ids"][-1].count(self.processor.audio_token_id)
            if found != expected * len(clips):
                raise ValueError(
                    f"input_features: got {len(clips)} clips for {found} audio slots in input_ids, expected "
                    f"{found / expected:g} ({expected} slots for each clip); if the dataset has them, check that "
                    "nothing, such as Trainer's remove_unused_columns, removes them."
                )
            features.append(clips)
        if sum(map(len, features)):
            data["input_features"] = torch.cat(features).float()
        return data

    def _integers(self, name: str, values: Any, index: int) -> np.ndarray:
        """One row of ids or labels, checked: what is outside the vocabulary ends a training on a GPU without a word on
        the row."""
        array = np.asarray(values)
        if array.dtype.kind not in "iu" or array.size == 0 or array.size != array.shape[-1]:
            raise ValueError(
                f"{name}: row {index} of the batch has {array.dtype} of shape {list(array.shape)}, expected integers "
                "of shape [L], of one text."
            )
        array = array.reshape(-1)
        is_label = name == "labels"
        tokens = array[array != IGNORE_INDEX] if is_label else array
        size = len(self.processor.tokenizer)
        if tokens.size and tokens.max() >= size:  # ids of added tokens may have gaps
            size = max(self.processor.tokenizer.get_vocab().values()) + 1
        wrong = tokens[(tokens < 0) | (tokens >= size) | (is_label & (tokens == self.processor.audio_token_id))]
        if wrong.size:
            expected = f"tokens from 0 to {size - 1}, the processor's vocabulary"
            if is_label:
                expected += f", without {self.processor.audio_token}, and {IGNORE_INDEX} where nothing is learned"
            raise ValueError(f"{name}: row {index} of the batch has {int(wrong[0])}, expected {expected}.")
        return array

    def _clips(self, features: Any, where: str = "") -> torch.Tensor:
        extractor = self.processor.feature_extractor
        shape = (extractor.max_frames, extractor.feature_size)
        if features is None or len(features) == 0:
            return torch.empty((0, *shape))
        if not isinstance(features, torch.Tensor):
            features = torch.from_numpy(np.asarray(features, dtype=np.float32))
        if features.shape[-2:] != shape or features.ndim > 3:
            raise ValueError(
                f"input_features: got the shape {tuple(features.shape)}, expected [clips, {shape[0]}, {shape[1]}]."
            )
        features = features.reshape(-1, *shape)
        if features.device.type == "cpu" and len(features):  # on a GPU they are our extractor's, and it would wait
            check_features(features, *map(float, torch.aminmax(features)), where)
        return features
