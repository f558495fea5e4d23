"""Micro-batches of records for training, streamed by any number of workers, resumable, with broken audio judged."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers.utils import logging

from processing_sam import IGNORE_INDEX
from sam_lab.common.checks import check_integers
from sam_lab.data.collation import MicroBatch, RowCollator
from sam_lab.data.counts import MIN_SEEN, SourceCounts
from sam_lab.data.order import BatchOrder
from sam_lab.data.streams import RecordSource

logger = logging.get_logger(__name__)

PROBED = 64  # records of each source that are looked at before training
LOST = {
    "broken": "records are skipped, since their audio cannot be read",
    "truncated": "clips over 10.24 s have lost their end",
    "cut": "rows of more than text_cutoff tokens have lost their end",
    "unanswered": "rows have nothing left of their answer",
}


class RecordBatches(torch.utils.data.IterableDataset):
    """Micro-batches of records for training: [`BatchOrder`] chooses the records, [`RowCollator`] makes the tensors.

    Iterating reads one epoch, the one that [`~RecordBatches.set_epoch`] or [`~RecordBatches.seek`] has chosen. Each
    process decodes its own part only; `SamTrainer` makes sure that nothing shards again, as `accelerate` would.

    **Workers.** `SamTrainer(train_batches=...)` and [`~RecordBatches.load`] read with any number of workers. A worker
    sees only its own share, so they [`count`][~RecordBatches.count] each micro-batch in the main process, which judges
    all of them. With workers of a `DataLoader` of your own, call it too: until then only a worker whose own share is
    clearly too broken stops the run.

    **Broken audio.** Too many broken records are an error: judged once this process has read 100 records, and however
    few they are at the end of each epoch that was read whole. Of a source of at least 100, clearly more than the share
    are too many.

    Args:
        order ([`BatchOrder`]): Which records each micro-batch holds.
        collator ([`RowCollator`]): What makes a micro-batch from them.
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of broken records among those that this
            process has read, and one more, unless it is 0.
        start_step (`int`, *optional*, defaults to 0): Optimizer step at which the first pass starts.

    Raises:
        ValueError: A number out of range, a source of whose first records no audio file exists or no answer remains.
            In a pass: too many broken records, none with a label, one that cannot be learned, or an epoch of other
            records than counted.
    """

    def __init__(self, order: BatchOrder, collator: RowCollator, max_broken: float = 0.01, start_step: int = 0):
        check_integers(0, start_step=start_step)
        self.order, self.collator, self.processor = order, collator, collator.processor
        self.counts = SourceCounts(max_broken)
        self.start_step = start_step
        for source in order.sources:
            self._check_first(source)
        if start_step >= order.num_steps:
            raise ValueError(
                f"start_step: got {start_step}, expected one below the {order.num_steps} steps of the training."
            )
        # What to read next, shared with workers that live through several epochs: the epoch, its first optimizer
        # step, whether empty batches stand for what precedes that, and the step at which all ends.
        self._position = torch.zeros(4, dtype=torch.int64).share_memory_()
        self.stop_at(order.num_steps)
        self.seek(start_step)

    def __len__(self) -> int:
        """Micro-batches of one epoch, of one process."""
        return self.order.steps_per_epoch * self.order.accumulation

    # -- position -------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start with this epoch's first step."""
        self.seek(epoch * self.order.steps_per_epoch)

    def seek(self, step: int, placeholders: bool = False) -> None:
        """Makes the next pass start at an optimizer step, without decoding what precedes it.

        Args:
            step (`int`): Counted from the start of the first epoch.
            placeholders (`bool`, *optional*, defaults to `False`): Yield an empty dict for each micro-batch of that
                epoch which precedes it, for a Trainer that skips them.
        """
        self._position[:2] = torch.tensor(divmod(step, self.order.steps_per_epoch))
        self._position[2] = int(placeholders)

    def stop_at(self, step: int) -> None:
        """Makes a pass end before this optimizer step, by default `num_steps`: nothing is decoded in vain."""
        self._position[3] = step

    @property
    def end_step(self) -> int:
        """The optimizer step that [`~RecordBatches.stop_at`] has set."""
        return int(self._position[3])

    # -- reading --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = self.order
        epoch, first, placeholders, end = self._position.tolist()
        begin = epoch * order.steps_per_epoch
        if begin + first >= end and not placeholders:  # a finished run may be resumed
            raise ValueError(
                f"epochs: got {order.epochs:g}, which are {end} steps, but a pass should start at epoch {epoch}, step "
                f"{first}; set more epochs, or an earlier epoch."
            )
        # The rest of an epoch may be a few records, of which a single broken one would end each resumed run.
        is_whole = not first and begin + order.steps_per_epoch <= end
        number = 0
        for step, records in enumerate(order.global_batches(epoch)):
            if begin + step >= end:
                return
            if step < first and not placeholders:
                continue
            for part in order.micro_batches(records):
                number += 1
                if (number - 1) % workers != index:  # a DataLoader takes the workers' batches in turn
                    continue
                if step < first:
                    yield {}
                    continue
                batch = self.collator(part)
                batch.ends_epoch = is_whole and number == len(self)
                self.count(batch)
                yield batch

    def load(self, num_workers: int = 0, **options: Any) -> Iterator[MicroBatch]:
        """One pass, read by workers; each micro-batch is counted and judged before it is yielded.

        Args:
            num_workers (`int`, *optional*, defaults to 0): Processes that read; 0 is this one.
            options: `DataLoader`'s, such as `pin_memory`.
        """
        for batch in torch.utils.data.DataLoader(self, batch_size=None, num_workers=num_workers, **options):
            self.count(batch)
            yield batch

    # -- counts ---------------------------------------------------------------------------------------------------

    def count(self, batch: MicroBatch) -> None:
        """Counts once what was read for a micro-batch, and judges all that was read so far.

        Args:
            batch ([`MicroBatch`]): From a worker, or from this process, which has then counted it already.

        Raises:
            ValueError: Too many records are broken; at the end of a whole epoch also that none has a label.
        """
        if batch.is_counted:
            return
        in_worker = torch.utils.data.get_worker_info() is not None
        if not in_worker:
            self._warn(batch)
        self.counts.merge(batch.read)
        batch.is_counted = not in_worker
        if batch.error is not None and self.counts.total("seen") >= MIN_SEEN:
            self.counts.check_broken(batch.error, deviations=4 if in_worker else 0)
        # Before the last batch is handed over, since nobody may ask for another.
        if batch.ends_epoch and not in_worker:
            self.counts.check()

    def _warn(self, batch: MicroBatch) -> None:
        for kind, what in LOST.items():
            source = next((name for name, row in batch.read.items() if row[kind]), None)
            if source is not None and not self.counts.total(kind):
                error = f": {batch.error}" if kind == "broken" else ""
                logger.warning(f"Some {what}{error}. Seen in {source!r}; not repeated, report() counts all.")

    def report(self) -> dict[str, dict[str, int]]:
        """What this process has read, by source, without what workers have read ahead.

        Returns:
            `dict`: `{source: {"seen", "broken", "truncated", "cut", "unanswered"}}`: records read; skipped because of
            their audio; with a clip cut at 10.24 s; with text cut at `text_cutoff`; of these, with nothing left of the
            answer. A record counts each time it is read.
        """
        return self.counts.report()

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check_first(self, source: RecordSource) -> None:
        records = source.first(PROBED)
        paths = [record["audio"] for record in records if isinstance(record["audio"], str)]
        is_much = len(paths) > self.counts.max_broken * source.num_rows
        if paths and is_much and not any(map(os.path.isfile, paths)):
            raise ValueError(
                f"source: none of the {len(paths)} audio files in the first {len(records)} records of {source.name} "
                f"exists, the first is {paths[0]!r}; map the paths with --audio-root FROM=TO when the records are "
                "written, or remove what has no audio."
            )
        if not any(label != IGNORE_INDEX for row in self.collator.text_rows(records) for label in row["labels"]):
            raise ValueError(
                f"text_cutoff: {self.collator.text_cutoff} leaves nothing of any answer in the first {len(records)} "
                f"records of {source.name}, so that there is nothing to learn; raise it."
            )
