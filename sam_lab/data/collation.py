"""From records to the tensors of a micro-batch: audio is read, broken clips are skipped, rows are packed and
padded."""

from dataclasses import dataclass
from typing import Any

import torch

from audio_sam import check_choice, load_audio
from processing_sam import IGNORE_INDEX, PROMPT_TEMPLATE, assign_clips
from sam_lab.common.checks import check_integers
from sam_lab.data.counts import SourceCounts

# What load_audio and the decoders under it raise for bad audio, and for audio that does not fit into memory.
BROKEN = (OSError, ValueError, RuntimeError, MemoryError)


class MicroBatch(dict):
    """A micro-batch of tensors, with what became of the records that were read for it.

    Workers run ahead of the training, and their memory is their own: by this the main process counts what it takes.

    Args:
        batch (`dict`): The model's inputs.
        read (`dict`): Counts by source, in the form of [`SourceCounts.report`].
        error (`str`, *optional*): What the first broken record raised.

    Attributes:
        ends_epoch (`bool`): Whether an epoch that was read from its beginning ends with it.
        is_counted (`bool`): Whether [`RecordBatches.count`] has counted it in the main process.
    """

    def __init__(self, batch: dict[str, torch.Tensor], read: dict[str, dict[str, int]], error: str | None = None):
        super().__init__(batch)
        self.read, self.error = read, error
        self.ends_epoch = self.is_counted = False


@dataclass
class RowCollator:
    """Makes a micro-batch from records.

    Records whose audio is missing, cannot be decoded, breaks off, is empty or is shorter than 25 ms are skipped and
    counted. A micro-batch without any record left is one row of text without labels.

    Args:
        processor ([`SamAudioLanguageProcessor`]): The processor.
        pack_to (`int`, *optional*): Pack the rows of a micro-batch into rows of at most this many positions
            ([`pack_rows`]); otherwise each stands alone.
        text_cutoff (`int`, *optional*): Tokens of template, prompt and answer that remain; LTU's is 108. As in LTU the
            right end is lost, and end of text with it. Audio slots do not count.
        features (`str`, *optional*, defaults to `"workers"`): Where log-mel is computed: `"workers"` or `"device"`,
            see [`collate_rows`].
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also learn the prompt's text, as LTU does.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to such a multiple.

    Raises:
        ValueError: A number or a choice out of range, a `pack_to` that no clip fits in, or a `text_cutoff` that leaves
            no answer.
    """

    processor: Any
    pack_to: int | None = None
    text_cutoff: int | None = None
    features: str = "workers"
    train_on_prompt: bool = False
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        check_choice("features", self.features, ("workers", "device"))
        sizes = ("pack_to", "text_cutoff", "pad_to_multiple_of")
        check_integers(1, **{name: getattr(self, name) for name in sizes})
        slots, template = len(self.processor.slot_pattern), len(self._template())
        if self.pack_to is not None and self.pack_to < slots + template:
            raise ValueError(
                f"pack_to: got {self.pack_to}, expected at least {slots + template}, a clip's slots and the template, "
                "better several times that."
            )
        if self.text_cutoff is not None and self.text_cutoff <= template:
            raise ValueError(
                f"text_cutoff: got {self.text_cutoff}, but the template alone has {template} tokens, which leaves no "
                "label; LTU's is 108."
            )

    def __call__(self, records: list[dict[str, Any]]) -> MicroBatch:
        """Reads the records' audio and returns the inputs of [`collate_rows`]."""
        counts, error = SourceCounts(), None
        reading = self.processor.feature_extractor.reading("truncate")
        waveforms, readable = [], []
        for record in records:
            source = record.get("source") or "unnamed"
            counts.add(source, "seen")
            try:
                waveform = None if record["audio"] is None else load_audio(record["audio"], **reading)
            except BROKEN as raised:
                counts.add(source, "broken")
                error = error or str(raised) or type(raised).__name__
                continue
            if waveform is not None:
                waveform, is_long = self.processor.feature_extractor.center(waveform)
                counts.add(source, "truncated", int(is_long))
            waveforms.append(waveform)
            readable.append(record)
        rows = self.text_rows(readable)
        for record, row, waveform in zip(readable, rows, waveforms):
            row["waveform"] = waveform
            source = record.get("source") or "unnamed"
            counts.add(source, "cut", int(row.pop("is_cut")))
            counts.add(source, "unanswered", int(all(label == IGNORE_INDEX for label in row["labels"])))
        if not rows:
            ids = self._template()
            rows = [{"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids), "waveform": None}]
        is_packed = self.pack_to is not None
        packed = pack_rows(rows, self.pack_to) if is_packed else [[row] for row in rows]
        batch = collate_rows(packed, self.processor, self.features, is_packed, self.pad_to_multiple_of)
        return MicroBatch(batch, counts.report(), error)

    def text_rows(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records' `input_ids`, `labels` and `is_cut`, without reading their audio."""
        if not records:
            return []
        texts = [record["prompt"] for record in records]
        clips = [[] if record["audio"] is None else [record["audio"]] for record in records]
        data = self.processor.encode_texts(
            texts,
            [len(items) for items in assign_clips(texts, clips)],
            [record["answer"] for record in records],
            self.train_on_prompt,
            self.text_cutoff,
        )
        return [dict(zip(data, values)) for values in zip(*data.values())]

    def _template(self) -> list[int]:
        return self.processor.tokenize_texts([PROMPT_TEMPLATE.format(prompt="")])[0]


def pack_rows(rows: list[dict[str, Any]], pack_to: int) -> list[list[dict[str, Any]]]:
    """Packs several rows into one, first-fit decreasing: the longest first, each where it fits first.

    Args:
        rows (`list[dict]`): Rows with `input_ids`, a list.
        pack_to (`int`): The longest sum of lengths. A longer row stays alone.

    Returns:
        `list[list[dict]]`: The rows of each packed row.
    """
    packed: list[list[dict[str, Any]]] = []
    space: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        place = next((index for index, free in enumerate(space) if free >= length), None)
        if place is None:
            place = len(packed)
            packed.append([])
            space.append(pack_to)
        packed[place].append(row)
        space[place] -= length
    return packed


def collate_rows(
    packed: list[list[dict[str, Any]]], processor, features="workers", seq_idx=True, pad_to_multiple_of=None
) -> dict[str, torch.Tensor]:
    """The model's inputs from packed rows, padded on the right.

    Args:
        packed (`list[list[dict]]`): The rows of each packed row: `input_ids`, `labels` (lists), and `waveform` (a
            tensor from the feature extractor's `center`, or `None` for text).
        processor ([`SamAudioLanguageProcessor`]): Its padding token and feature extractor are used.
        features (`str`, *optional*, defaults to `"workers"`): `"workers"` computes `input_features` here, `"device"`
            returns `waveforms` and `num_samples` for [`~SamFeatureExtractor.log_mel`].
        seq_idx (`bool`, *optional*, defaults to `True`): Number the sequences of a row; pads get the next number.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to such a multiple.

    Returns:
        `dict`: `input_ids`, `labels`, `attention_mask` and `seq_idx`, int64 `[rows, L]`; `input_features`, float32
        `[clips, 1024, 128]`, or `waveforms`, float32 `[clips, samples]`, and `num_samples`, int64 `[clips]`, in the
        order of their slots. The first token of a sequence has no label, as nothing precedes it: then packed and
        unpacked rows have as many labels, whether or not the prompt is learned.
    """
    data = {
        "input_ids": [[token for row in rows for token in row["input_ids"]] for rows in packed],
        "labels": [[token for row in rows for token in [IGNORE_INDEX, *row["labels"][1:]]] for rows in packed],
    }
    processor.pad_rows(data, True, "right", pad_to_multiple_of)
    batch = {key: torch.tensor(value) for key, value in data.items()}
    if seq_idx:
        width = batch["input_ids"].shape[1]
        lengths = [[len(row["input_ids"]) for row in rows] for rows in packed]
        numbers = [torch.repeat_interleave(torch.tensor([*row, width - sum(row)])) for row in lengths]
        batch["seq_idx"] = torch.stack(numbers)
    clips = [row["waveform"] for rows in packed for row in rows if row["waveform"] is not None]
    if clips:
        batch["waveforms"] = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        batch["num_samples"] = torch.tensor([len(clip) for clip in clips])
    return batch if features == "device" else compute_features(batch, processor)


def compute_features(batch: dict[str, Any], processor) -> dict[str, Any]:
    """The batch with `input_features` on their device in place of `waveforms` and `num_samples`, if it has these."""
    if "waveforms" not in batch:
        return batch
    batch = dict(batch)
    waveforms, num_samples = batch.pop("waveforms"), batch.pop("num_samples")
    return {**batch, "input_features": processor.feature_extractor.log_mel(waveforms, num_samples)}
