"""What was read of each source of records, and whether too much of it is broken."""

import hashlib
import math

import torch

# ---------------------------------------------------------------------------------------------------------------
# Counts
# ---------------------------------------------------------------------------------------------------------------


class SourceCounts:
    """Counts by source, in memory that a DataLoader's workers share: each has its own place, so none needs a lock.

    Args:
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of broken records, of those seen, and one
            more, unless it is 0; of a source clearly more are too many.

    Raises:
        ValueError: `max_broken` is no share.
    """

    KINDS = ("seen", "broken", "truncated", "cut", "unanswered")
    NUM_WORKERS, NUM_SOURCES, NAME_BYTES = 257, 64, 64
    OTHERS = "(others)"  # where there are more sources than places

    def __init__(self, max_broken: float = 0.01):
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken: got {max_broken!r}, expected a share from 0 to 1.")
        self.max_broken = max_broken
        self.recent: dict[str, dict[str, int]] = {}  # what this process, or worker, has added; its owner empties it
        shape = (self.NUM_WORKERS, self.NUM_SOURCES)
        self.names = torch.zeros(*shape, self.NAME_BYTES, dtype=torch.uint8).share_memory_()
        self.values = torch.zeros(*shape, len(self.KINDS), dtype=torch.int64).share_memory_()

    def add(self, source: str, kind: str, number: int = 1) -> None:
        """Adds to the count of this kind."""
        worker = torch.utils.data.get_worker_info()
        worker = 0 if worker is None else worker.id + 1
        place = self._place(worker, source)
        self.values[worker, place, self.KINDS.index(kind)] += number
        self.recent.setdefault(self._name(worker, place), dict.fromkeys(self.KINDS, 0))[kind] += number

    def total(self, kind: str) -> int:
        """Over all sources and workers."""
        return int(self.values[:, :, self.KINDS.index(kind)].sum())

    def table(self) -> dict[str, dict[str, int]]:
        """`{source: {kind: count}}`, sorted by source."""
        found: dict[str, dict[str, int]] = {}
        for worker, place in (self.names[:, :, 0] != 0).nonzero().tolist():
            row = found.setdefault(self._name(worker, place), dict.fromkeys(self.KINDS, 0))
            for kind, value in zip(self.KINDS, self.values[worker, place].tolist()):
                row[kind] += value
        return dict(sorted(found.items()))

    def check_broken(self, error: Exception | None = None) -> None:
        """Refuses more broken records than `max_broken` allows, of all, and clearly more of a source of at least 100.

        Args:
            error (`Exception`, *optional*): What one of them said.

        Raises:
            ValueError: There are more.
        """
        table = self.table()
        # One more than the share, which is then exact over any epochs and processes, and lets one file of few pass. A
        # process sees a random part of a source, judged again and again: four standard deviations on top.
        judged = [("", self.total("seen"), self.total("broken"), 0)]
        judged += [(f" of {name}", row["seen"], row["broken"], 4) for name, row in table.items() if row["seen"] >= 100]
        for what, seen, broken, deviations in judged:
            share = seen * self.max_broken
            if broken > (share + 1 + deviations * math.sqrt(share) if share else 0):
                listed = [f"{name}: {row['broken']} of {row['seen']}" for name, row in table.items() if row["broken"]]
                last = "." if error is None else f"; one of them: {error}"
                raise ValueError(
                    f"max_broken: the audio of {broken} of {seen} records{what} cannot be read ({', '.join(listed)}), "
                    f"expected at most {self.max_broken:.2%}{last} Repair the files, leave the records out or raise "
                    "max_broken."
                ) from error

    def check(self, error: Exception | None = None) -> None:
        """Judges what was read to its end.

        Args:
            error (`Exception`, *optional*): What one of the broken records said.

        Raises:
            ValueError: Too many records are broken, or none has a label.
        """
        self.check_broken(error)
        seen, broken, unanswered = (self.total(kind) for kind in ("seen", "broken", "unanswered"))
        if seen and seen == broken + unanswered:
            raise ValueError(
                f"source: none of the {seen} records that were read has a label, expected some: the audio of {broken} "
                f"cannot be read, and text_cutoff leaves nothing of the answer of {unanswered}. Repair the files, or "
                "raise text_cutoff."
            )

    def _name(self, worker: int, place: int) -> str:
        return bytes(self.names[worker, place].tolist()).rstrip(b"\0").decode(errors="ignore")

    def _place(self, worker: int, source: str) -> int:
        name = source.encode()
        if len(name) > self.NAME_BYTES:  # a hash keeps names apart that begin alike
            tail = "~" + hashlib.sha256(name).hexdigest()[:8]
            source = name[: self.NAME_BYTES - len(tail)].decode(errors="ignore") + tail
        for place in range(self.NUM_SOURCES):
            if place == self.NUM_SOURCES - 1:
                source = self.OTHERS
            if not self.names[worker, place, 0]:
                name = source.encode()
                self.names[worker, place, : len(name)] = torch.tensor(list(name), dtype=torch.uint8)
                return place
            if self._name(worker, place) == source:
                return place
        raise AssertionError("the last place takes any source")


def merge_reports(reports: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of several reports of counts by source."""
    merged: dict[str, dict[str, int]] = {}
    for report in reports:
        for source, row in report.items():
            into = merged.setdefault(source, dict.fromkeys(row, 0))
            for kind, value in row.items():
                into[kind] += value
    return dict(sorted(merged.items()))
