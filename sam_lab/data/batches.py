"""From records to training batches: streams larger than memory, sharding, length groups, packing, broken audio.

A record is `{"audio": path or None, "prompt", "answer", "source"}`. [`RecordBatches`] walks the records of an epoch as
text and decodes the audio of its own share only; `SamTrainer(train_batches=...)` trains on it.
"""

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from audio_sam import check_choice, load_audio
from processing_sam import IGNORE_INDEX, PROMPT_TEMPLATE, assign_clips
from sam_lab.data.counts import SourceCounts
from sam_lab.data.streams import RecordSource, mix, shares

logger = logging.get_logger(__name__)

BROKEN = (OSError, ValueError, RuntimeError)  # what load_audio and the decoders under it raise for bad audio
MIN_SEEN = 100  # records before the share of broken ones is judged within a pass
PROBED = 64  # records of each source that are looked at before training
CHARACTERS_PER_TOKEN = 4  # of English in GPT-NeoX's tokenizer, about; only for the order by length

# ---------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------


def pack_rows(rows: list[dict[str, Any]], pack_to: int) -> list[list[dict[str, Any]]]:
    """Puts several rows into one, first-fit decreasing: the longest first, each where it fits first.

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
    """The model's inputs of packed rows, padded on the right.

    Args:
        packed (`list[list[dict]]`): For each row of the batch what stands in it: `input_ids`, `labels` (lists), and
            `waveform` (a tensor from the feature extractor's `center`, or `None` for text).
        processor ([`SamAudioLanguageProcessor`]): Its padding token and feature extractor are used.
        features (`str`, *optional*, defaults to `"workers"`): `"workers"` computes `input_features` here, `"device"`
            leaves `waveforms` and `num_samples` for [`~SamFeatureExtractor.log_mel`].
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
        waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        num_samples = torch.tensor([len(clip) for clip in clips])
        if features == "device":
            batch.update(waveforms=waveforms, num_samples=num_samples)
        else:
            batch["input_features"] = processor.feature_extractor.log_mel(waveforms, num_samples)
    return batch


def compute_features(batch: dict[str, Any], processor) -> dict[str, Any]:
    """A batch whose `waveforms` and `num_samples`, if it has them, have become `input_features`, on their device."""
    if "waveforms" not in batch:
        return batch
    batch = dict(batch)
    waveforms, num_samples = batch.pop("waveforms"), batch.pop("num_samples")
    return {**batch, "input_features": processor.feature_extractor.log_mel(waveforms, num_samples)}


# ---------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------


class MicroBatch(dict):
    """A micro-batch with what was read for it, `read`, in the form of [`~RecordBatches.report`].

    Workers run ahead of the training, which counts by this what it was trained on.
    """

    def __init__(self, batch: dict[str, torch.Tensor], read: dict[str, dict[str, int]]):
        super().__init__(batch)
        self.read = read


class RecordBatches(torch.utils.data.IterableDataset):
    """Micro-batches of records for training, for a `DataLoader(batches, batch_size=None)` with any number of workers.

    **Order.** An epoch is every record once, in an order that depends on the data, the seed and the epoch only (and on
    the version of `datasets`). It is cut into *global batches* of `batch_size * num_processes * accumulation` records,
    one for each optimizer step; the last one is smaller where they do not divide. Records of similar length meet:
    `group_buffer` global batches at a time are sorted by the length of their text (with up to a tenth of noise), cut,
    and shuffled as global batches.

    **Sharding.** Every process walks the whole stream as text, which costs little, and decodes its own part only. A
    global batch, sorted by length, is cut into `accumulation` equal parts, of which process p takes the records p,
    p + num_processes, ...: at any moment all processes work on rows of about the same length, and one process with
    accumulation 2 reads the same global batches as two processes. A micro-batch without a record is one row of text
    without labels. Nothing else may shard again: `SamTrainer` takes care of that, and so need not `accelerate`.

    **Broken audio.** Records whose audio is missing, cannot be decoded, is empty or under 25 ms are left out and
    counted by source: [`~RecordBatches.report`].

    **Passes.** Iterating gives one epoch, the one that [`~RecordBatches.set_epoch`] or [`~RecordBatches.seek`] says.

    Args:
        source: What [`RecordSource`] takes, or a list of `(source, weight)`. An epoch of the list has in all as many
            records as its sources, in the exact proportion of the weights; a source that gives fewer than it has
            goes on in the next epoch where it stopped, one that gives more begins again, reshuffled.
        processor ([`SamAudioLanguageProcessor`]): The processor.
        batch_size (`int`): Records of a micro-batch, of one process.
        num_processes (`int`, *optional*, defaults to 1): Processes that train together.
        process_index (`int`, *optional*, defaults to 0): Which of them this is.
        accumulation (`int`, *optional*, defaults to 1): Micro-batches of a process in one optimizer step.
        epochs (`float`, *optional*, defaults to 1.0): How long to train, for `num_steps`; may be a fraction.
        seed (`int`, *optional*, defaults to 0): Of the order.
        shuffle_buffer (`int`, *optional*, defaults to 20,000): Records that are held to be shuffled, for each source.
        group_buffer (`int`, *optional*, defaults to 32): Global batches that are sorted by length together.
        pack_to (`int`, *optional*): Pack the rows of a micro-batch into rows of at most so many positions
            ([`pack_rows`]); otherwise each stands alone.
        text_cutoff (`int`, *optional*): Tokens of template, prompt and answer that are kept; LTU's is 108. As in LTU
            the right end is lost, and end of text with it; `num_cut` counts such rows. Audio slots do not count.
        features (`str`, *optional*, defaults to `"workers"`): Where log-mel is computed: `"workers"` or `"device"`,
            see [`collate_rows`].
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of broken records, of those that this
            process has read, and one more, unless it is 0: judged once 100 were read, and however few they are at the
            end of each epoch that was read whole. Of a source of at
            least 100, clearly more than the share are too many.
        start_step (`int`, *optional*, defaults to 0): Optimizer step at which the first pass begins.
        num_rows (`int`, *optional*): Records of an epoch, if not all of them.
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also learn the prompt's text, as LTU does.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to such a multiple.
        names (list of `str`, *optional*): For each source of the list what its records are counted as where they have
            no `source` of their own; `"unnamed"` by default.

    Raises:
        FileNotFoundError, ValueError, TypeError: As [`RecordSource`], and a number or a choice that makes no sense,
            weights that are not positive or give no record, a `pack_to` that no clip fits in, a `text_cutoff` that
            leaves no answer, a source of whose first records no audio file is there.
            In a pass: too many broken records, none with a label, one that cannot be learned, or an epoch of other
            records than counted.
    """

    def __init__(
        self,
        source: Any,
        processor,
        batch_size: int,
        *,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        epochs: float = 1.0,
        seed: int = 0,
        shuffle_buffer: int = 20_000,
        group_buffer: int = 32,
        pack_to: int | None = None,
        text_cutoff: int | None = None,
        features: str = "workers",
        max_broken: float = 0.01,
        start_step: int = 0,
        num_rows: int | None = None,
        train_on_prompt: bool = False,
        pad_to_multiple_of: int | None = None,
        names: Sequence[str] | None = None,
    ):
        check_choice("features", features, ("workers", "device"))
        sizes = {"batch_size": batch_size, "num_processes": num_processes, "accumulation": accumulation}
        optional = {"pack_to": pack_to, "text_cutoff": text_cutoff, "num_rows": num_rows}
        optional["pad_to_multiple_of"] = pad_to_multiple_of
        _check_integers(1, **sizes, shuffle_buffer=shuffle_buffer, group_buffer=group_buffer)
        _check_integers(1, **{name: value for name, value in optional.items() if value is not None})
        _check_integers(0, seed=seed, start_step=start_step, process_index=process_index)
        if process_index >= num_processes:
            raise ValueError(f"process_index: got {process_index}, expected one below num_processes, {num_processes}.")
        if not 0 < epochs < math.inf:
            raise ValueError(f"epochs: got {epochs!r}, expected a positive number.")
        self.counts = SourceCounts(max_broken)
        self.processor = processor
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.accumulation = accumulation
        self.epochs = epochs
        self.seed = seed
        self.group_buffer = group_buffer
        self.pack_to = pack_to
        self.text_cutoff = text_cutoff
        self.features = features
        self.max_broken = max_broken
        self.start_step = start_step
        self.train_on_prompt = train_on_prompt
        self.pad_to_multiple_of = pad_to_multiple_of
        self._check_lengths()

        parts = source if isinstance(source, (list, tuple)) else [(source, 1.0)]
        if not parts or not all(isinstance(part, (list, tuple)) and len(part) == 2 for part in parts):
            raise ValueError(f"source: got {str(source)[:80]}, expected a list of (source, weight).")
        for _, weight in parts:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"source: got the weight {weight!r}, expected positive numbers.")
        if names is not None and len(names) != len(parts):
            raise ValueError(f"names: got {len(names)}, expected {len(parts)}, one for each source.")
        tokens = processor.tokenizer.all_special_tokens
        self.sources = [
            RecordSource(part, shuffle_buffer, tokens, name)
            for (part, _), name in zip(parts, names or [None] * len(parts))
        ]
        for part in self.sources:
            self._check_first(part)
        self.num_rows = num_rows or sum(part.num_rows for part in self.sources)
        self._shares = shares([weight for _, weight in parts], self.num_rows)
        for number, (part, (_, weight), share) in enumerate(zip(self.sources, parts, self._shares), 1):
            if not share:
                raise ValueError(
                    f"source: number {number}, {part.name}, has the weight {weight!r}, which gives it none of the "
                    f"{self.num_rows} records of an epoch, expected at least one; raise it, or leave the source out."
                )

        # For each worker, 1 + the epoch that it has read to its end.
        self._finished = torch.zeros(SourceCounts.NUM_WORKERS, dtype=torch.int64).share_memory_()
        # What to read next, shared with workers that live through several epochs: the epoch, its first optimizer
        # step, whether what precedes that is given as empty batches, and the step at which all ends.
        self._position = torch.zeros(4, dtype=torch.int64).share_memory_()
        self.stop_at(self.num_steps)
        if start_step >= self.num_steps:
            raise ValueError(f"start_step: got {start_step}, expected one below the {self.num_steps} steps there are.")
        self.seek(start_step)

    @property
    def global_batch(self) -> int:
        """Records of one optimizer step."""
        return self.batch_size * self.num_processes * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.num_rows // self.global_batch)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return math.ceil(self.epochs * self.steps_per_epoch)

    def __len__(self) -> int:
        """Micro-batches of one epoch, of one process."""
        return self.steps_per_epoch * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass begin with this epoch's first step."""
        self.seek(epoch * self.steps_per_epoch)

    def seek(self, step: int, placeholders: bool = False) -> None:
        """Makes the next pass begin at an optimizer step, without decoding what precedes it.

        Args:
            step (`int`): Counted from the beginning of the first epoch.
            placeholders (`bool`, *optional*, defaults to `False`): Give an empty dict for each micro-batch of that
                epoch which precedes it, for a Trainer that skips them.
        """
        self._position[:2] = torch.tensor(divmod(step, self.steps_per_epoch))
        self._position[2] = int(placeholders)

    def stop_at(self, step: int) -> None:
        """Makes a pass end before this optimizer step, by default `num_steps`: nothing is decoded in vain."""
        self._position[3] = step

    # -- order ----------------------------------------------------------------------------------------------------

    def global_batches(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        """The undecoded records of each optimizer step of an epoch, from short to long."""
        rng = np.random.default_rng([self.seed, epoch])
        takes = [
            source.take(epoch * share, share, [self.seed, index])
            for index, (source, share) in enumerate(zip(self.sources, self._shares))
        ]
        stream = takes[0] if len(takes) == 1 else mix(takes, self._shares, rng)
        size = self.global_batch
        while group := list(islice(stream, size * self.group_buffer)):
            end = len(group) - len(group) % size
            lengths = np.array([self._length(record) for record in group])
            order = np.argsort(lengths[:end] * rng.uniform(0.9, 1.1, size=end), kind="stable")
            cuts = order.reshape(-1, size)[rng.permutation(end // size)]
            for cut in [*cuts, *([np.arange(end, len(group))] if end < len(group) else [])]:
                yield [group[index] for index in cut[np.argsort(lengths[cut], kind="stable")]]

    def micro_batches(self, records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The part of a global batch that this process reads, a list of records for each accumulation step."""
        bounds = [round(len(records) * index / self.accumulation) for index in range(self.accumulation + 1)]
        parts = [records[begin:end] for begin, end in pairwise(bounds)]
        return [part[self.process_index :: self.num_processes] for part in parts]

    def _length(self, record) -> int:
        slots = CHARACTERS_PER_TOKEN * len(self.processor.slot_pattern) if record["audio"] is not None else 0
        return len(record["prompt"]) + len(record["answer"]) + slots

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, first, placeholders, stop = self._position.tolist()
        if epoch * self.steps_per_epoch + first >= stop and not placeholders:  # a finished run may be resumed
            raise ValueError(
                f"epochs: got {self.epochs:g}, which are {stop} steps, but a pass should begin at epoch {epoch}, step "
                f"{first}; set more epochs, or an epoch before."
            )
        number = 0
        steps = min(stop - epoch * self.steps_per_epoch, self.steps_per_epoch)
        total = self.accumulation * (steps if placeholders else steps - first)
        self._finished[index] = 0
        for step, records in enumerate(self.global_batches(epoch)):
            if epoch * self.steps_per_epoch + step >= stop:
                return
            if step < first and not placeholders:
                continue
            for part in self.micro_batches(records):
                if number % workers == index:  # a DataLoader takes the workers' batches in turn
                    batch = self.collate(part) if step >= first else {}
                    # Before the last batch is given: nobody may ask for another. Not of the rest of an epoch, which
                    # may be a few records, of which a single one would end a run each time that it is resumed.
                    if number + workers >= total and not first and steps == self.steps_per_epoch:
                        self._finished[index] = epoch + 1
                        if (self._finished[: min(workers, total)] == epoch + 1).all():
                            # By the worker that is the last to get here: the others' counts are whole then.
                            self.counts.check()
                    yield batch
                number += 1

    # -- rows -----------------------------------------------------------------------------------------------------

    def collate(self, records: list[dict[str, Any]]) -> MicroBatch:
        """One micro-batch: reads the audio, leaves out what is broken, and makes tensors ([`collate_rows`])."""
        self.counts.recent = {}
        waveforms, kept = [], []
        for record in records:
            source = record.get("source") or "unnamed"
            self.counts.add(source, "seen")
            try:
                waveform = None if record["audio"] is None else load_audio(record["audio"])
            except BROKEN as error:
                self._count_broken(source, error)
                continue
            if waveform is not None:
                waveform, is_long = self.processor.feature_extractor.center(waveform)
                if is_long:
                    self._count_lost("truncated", source, "clips over 10.24 s have lost their end")
            waveforms.append(waveform)
            kept.append(record)
        rows = self._text_rows(kept)
        for record, row, waveform in zip(kept, rows, waveforms):
            row["waveform"] = waveform
            source = record.get("source") or "unnamed"
            if row.pop("is_cut"):
                self._count_lost(
                    "cut", source, f"rows of more than {self.text_cutoff} text tokens have lost their end"
                )
            if all(label == IGNORE_INDEX for label in row["labels"]):
                self._count_lost("unanswered", source, "rows have nothing left of their answer")
        if not rows:
            (ids,) = self.processor.tokenize_texts([PROMPT_TEMPLATE.format(prompt="")])
            rows = [{"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids), "waveform": None}]
        packed = [[row] for row in rows] if self.pack_to is None else pack_rows(rows, self.pack_to)
        is_packed = self.pack_to is not None
        batch = collate_rows(packed, self.processor, self.features, is_packed, self.pad_to_multiple_of)
        return MicroBatch(batch, self.counts.recent)

    def _text_rows(self, records) -> list[dict[str, Any]]:
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

    # -- what is lost ---------------------------------------------------------------------------------------------

    @property
    def num_seen(self) -> int:
        """Records that this process has read, broken ones included, in all epochs and workers."""
        return self.counts.total("seen")

    @property
    def num_broken(self) -> int:
        """Records left out because of their audio."""
        return self.counts.total("broken")

    @property
    def num_truncated(self) -> int:
        """Clips of more than 10.24 s, which have lost their end."""
        return self.counts.total("truncated")

    @property
    def num_cut(self) -> int:
        """Rows that `text_cutoff` has cut, if only their end of text."""
        return self.counts.total("cut")

    def report(self) -> dict[str, dict[str, int]]:
        """What this process has read, by source: with workers, also what they have read ahead.

        Returns:
            `dict`: `{source: {"seen", "broken", "truncated", "cut", "unanswered"}}`: records read; left out because
            of their audio; with a clip cut at 10.24 s; with text cut at `text_cutoff`; of these, with nothing left of
            the answer. A record counts each time it is read.
        """
        return self.counts.table()

    def _count_broken(self, source: str, error: Exception) -> None:
        self._count_lost("broken", source, f"records are left out, since their audio cannot be read: {error}")
        if self.num_seen >= MIN_SEEN:
            self.counts.check_broken(error)

    def _count_lost(self, kind: str, source: str, what: str) -> None:
        if not self.counts.total(kind):
            logger.warning(f"Some {what}. It happened in {source!r}, is not said again, and counted by report().")
        self.counts.add(source, kind)

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check_lengths(self) -> None:
        slots = len(self.processor.slot_pattern)
        (template,) = self.processor.tokenize_texts([PROMPT_TEMPLATE.format(prompt="")])
        if self.pack_to is not None and self.pack_to < slots + len(template):
            raise ValueError(
                f"pack_to: got {self.pack_to}, expected at least {slots + len(template)}, a clip's slots and the "
                "template, better several times that."
            )
        if self.text_cutoff is not None and self.text_cutoff <= len(template):
            raise ValueError(
                f"text_cutoff: got {self.text_cutoff}, but the template alone has {len(template)} tokens, which leaves "
                "no label; LTU's is 108."
            )

    def _check_first(self, source: RecordSource) -> None:
        records = source.first(PROBED)
        paths = [record["audio"] for record in records if isinstance(record["audio"], str)]
        if paths and len(paths) > self.max_broken * source.num_rows and not any(map(os.path.isfile, paths)):
            raise ValueError(
                f"source: none of the {len(paths)} audio files in the first {len(records)} records of {source.name} is "
                f"there, the first is {paths[0]!r}; map the paths with --audio-root FROM=TO when the records are "
                "written, or leave out what has no audio."
            )
        if not any(label != IGNORE_INDEX for row in self._text_rows(records) for label in row["labels"]):
            raise ValueError(
                f"text_cutoff: {self.text_cutoff} leaves nothing of any answer in the first {len(records)} records "
                f"of {source.name}, so that there is nothing to learn; raise it."
            )


def _check_integers(least: int, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}.")
