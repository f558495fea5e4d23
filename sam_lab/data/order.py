"""Which records each micro-batch of a training holds: mixed, shuffled, grouped by length and sharded, all as text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from checks_sam import special_tokens
from sam_lab.common.checks import check_integers
from sam_lab.data.streams import RecordSource, mix, shares

CHARACTERS_PER_TOKEN = 4  # of English in GPT-NeoX's tokenizer, about; only for the order by length


@dataclass(eq=False, repr=False)
class BatchOrder:
    """The order of a training's records, which are undecoded here.

    **Order.** An epoch is every record once, in an order that depends only on the data, the seed, the epoch and the
    version of `datasets`. It is cut into *global batches* of `batch_size * num_processes * accumulation` records, one
    for each optimizer step; the last one is smaller where they do not divide. Records of similar length meet:
    `group_buffer` global batches at a time are sorted by the length of their text (with up to a tenth of noise), cut,
    and shuffled as global batches.

    **Sharding.** Every process walks the whole stream as text, which costs little, and takes its own part. A global
    batch, sorted by length, is cut into `accumulation` equal parts, of which process p takes the records p,
    p + num_processes, ...: at any moment all processes work on rows of about the same length, and one process with
    accumulation 2 reads the same global batches as two processes.

    Args:
        source: What [`RecordSource`] takes, or a list of `(source, weight)`. An epoch of the list has in all as many
            records as its sources, in the exact proportion of the weights. A source that contributes fewer than it has
            continues in the next epoch where it stopped; one that contributes more starts again, reshuffled.
        processor ([`SamAudioLanguageProcessor`]): Its special tokens and the number of a clip's slots are used.
        batch_size (`int`): Records of a micro-batch, of one process.
        num_processes (`int`, *optional*, defaults to 1): Processes that train together.
        process_index (`int`, *optional*, defaults to 0): Which of them this is.
        accumulation (`int`, *optional*, defaults to 1): Micro-batches of a process in one optimizer step.
        epochs (`float`, *optional*, defaults to 1.0): How long to train, for `num_steps`; may be a fraction.
        seed (`int`, *optional*, defaults to 0): Of the order.
        shuffle_buffer (`int`, *optional*, defaults to 20,000): Records that are held to be shuffled, for each source.
        group_buffer (`int`, *optional*, defaults to 32): Global batches that are sorted by length together.
        num_rows (`int`, *optional*): Records of an epoch, if not all of them.
        names (list of `str`, *optional*): For each source of the list, the dataset that its records count as where
            they have no `source` of their own.

    Raises:
        FileNotFoundError, ValueError, TypeError: As [`RecordSource`]; a number outside its range; weights that are not
            positive or leave a source without a record. In a walk: an epoch of other records than counted.
    """

    source: InitVar[Any]
    processor: InitVar[Any]
    batch_size: int
    num_processes: int = 1
    process_index: int = 0
    accumulation: int = 1
    epochs: float = 1.0
    seed: int = 0
    shuffle_buffer: int = 20_000
    group_buffer: int = 32
    num_rows: int | None = None
    names: InitVar[Sequence[str] | None] = None

    def __post_init__(self, source, processor, names):
        sizes = ("batch_size", "num_processes", "accumulation", "shuffle_buffer", "group_buffer", "num_rows")
        check_integers(1, **{name: getattr(self, name) for name in sizes})
        check_integers(0, seed=self.seed, process_index=self.process_index)
        if self.process_index >= self.num_processes:
            raise ValueError(
                f"process_index: got {self.process_index}, expected one below num_processes, {self.num_processes}."
            )
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs: got {self.epochs!r}, expected a positive number.")
        parts = source if isinstance(source, (list, tuple)) else [(source, 1.0)]
        if not parts or not all(isinstance(part, (list, tuple)) and len(part) == 2 for part in parts):
            raise ValueError(f"source: got {str(source)[:80]}, expected a list of (source, weight).")
        for _, weight in parts:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"source: got the weight {weight!r}, expected positive numbers.")
        if names is not None and len(names) != len(parts):
            raise ValueError(f"names: got {len(names)}, expected {len(parts)}, one for each source.")
        tokens = special_tokens(processor.tokenizer)
        self.sources = [
            RecordSource(part, self.shuffle_buffer, tokens, name)
            for (part, _), name in zip(parts, names or [None] * len(parts))
        ]
        self.num_rows = self.num_rows or sum(part.num_rows for part in self.sources)
        self.clip_length = CHARACTERS_PER_TOKEN * len(processor.slot_pattern)
        self.shares = shares([weight for _, weight in parts], self.num_rows)  # records of each source in an epoch
        for number, (part, (_, weight), share) in enumerate(zip(self.sources, parts, self.shares), 1):
            if not share:
                raise ValueError(
                    f"source: number {number}, {part.name}, has the weight {weight!r}, which leaves it none of the "
                    f"{self.num_rows} records of an epoch, expected at least one; raise it, or remove the source."
                )

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

    def global_batches(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        """The records of each optimizer step of an epoch, from short to long."""
        rng = np.random.default_rng([self.seed, epoch])
        takes = [
            source.take(epoch * share, share, [self.seed, index])
            for index, (source, share) in enumerate(zip(self.sources, self.shares))
        ]
        stream = takes[0] if len(takes) == 1 else mix(takes, self.shares, rng)
        size = self.global_batch
        while group := list(islice(stream, size * self.group_buffer)):
            end = len(group) - len(group) % size
            lengths = np.array([self.length(record) for record in group])
            order = np.argsort(lengths[:end] * rng.uniform(0.9, 1.1, size=end), kind="stable")
            cuts = order.reshape(-1, size)[rng.permutation(end // size)]
            for cut in [*cuts, *([np.arange(end, len(group))] if end < len(group) else [])]:
                yield [group[index] for index in cut[np.argsort(lengths[cut], kind="stable")]]

    def micro_batches(self, records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The part of a global batch that this process reads: a list of records for each accumulation step."""
        bounds = [round(len(records) * index / self.accumulation) for index in range(self.accumulation + 1)]
        parts = [records[begin:end] for begin, end in pairwise(bounds)]
        return [part[self.process_index :: self.num_processes] for part in parts]

    def length(self, record: dict[str, Any]) -> int:
        """About how long a record's row is, in characters."""
        return len(record["prompt"]) + len(record["answer"]) + self.clip_length * (record["audio"] is not None)
