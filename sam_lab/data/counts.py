"""How many records of each dataset were read or lost, and whether too many of them are broken."""

import math
from collections.abc import Iterable, Mapping

# Of a record: read; skipped because of its audio; with a clip cut at 10.24 s; with text cut at `text_cutoff`; of
# these, with nothing left of the answer.
KINDS = ("seen", "broken", "truncated", "cut", "unanswered")
MIN_SEEN = 100  # records before the share of broken ones is judged within an epoch, or for one source alone


class SourceCounts:
    """Counts of records by kind (KINDS) and by source, the dataset that a record is from.

    Args:
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of broken records among those seen. One
            more is allowed, unless the share is 0. Of a single source, only clearly more than the share are too many.

    Raises:
        ValueError: `max_broken` is not a share.
    """

    def __init__(self, max_broken: float = 0.01):
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken: got {max_broken!r}, expected a share from 0 to 1.")
        self.max_broken = max_broken
        self.table: dict[str, dict[str, int]] = {}

    def add(self, source: str, kind: str, number: int = 1) -> None:
        """Adds to the count of this source and kind."""
        self.table.setdefault(source, dict.fromkeys(KINDS, 0))[kind] += number

    def merge(self, report: Mapping[str, Mapping[str, int]]) -> None:
        """Adds all counts of a [`~SourceCounts.report`]."""
        for source, row in report.items():
            for kind, number in row.items():
                self.add(source, kind, number)

    def total(self, kind: str) -> int:
        """The count over all sources."""
        return sum(row[kind] for row in self.table.values())

    def report(self) -> dict[str, dict[str, int]]:
        """`{source: {kind: count}}`, sorted by source."""
        return {source: dict(row) for source, row in sorted(self.table.items())}

    def check_broken(self, error: object = None, deviations: int = 0) -> None:
        """Refuses more broken records than `max_broken` allows: among all, and among those of a source of at least
        100.

        Args:
            error (*optional*): What one of them raised, for the message.
            deviations (`int`, *optional*, defaults to 0): Standard deviations that are allowed on top for all records,
                where these are a random part of what is judged.

        Raises:
            ValueError: There are more.
        """
        # One more than the share, which is then exact over any epochs and processes, and lets one file of few pass. A
        # process sees a random part of a source, judged again and again: four standard deviations on top.
        judged = [("", self.total("seen"), self.total("broken"), deviations)]
        judged += [
            (f" of {source}", row["seen"], row["broken"], 4)
            for source, row in self.report().items()
            if row["seen"] >= MIN_SEEN
        ]
        for what, seen, broken, slack in judged:
            share = seen * self.max_broken
            if broken > (share + 1 + slack * math.sqrt(share) if share else 0):
                rows = self.report().items()
                listed = [f"{source}: {row['broken']} of {row['seen']}" for source, row in rows if row["broken"]]
                last = "." if error is None else f"; one of them: {error}"
                raise ValueError(
                    f"max_broken: the audio of {broken} of {seen} records{what} cannot be read ({', '.join(listed)}), "
                    f"expected at most {self.max_broken:.2%}{last} Repair the files, remove the records or raise "
                    "max_broken."
                )

    def check(self, error: object = None) -> None:
        """Judges what was read to its end; the error is what one of the broken records raised, for the message.

        Raises:
            ValueError: Too many records are broken, or none has a label.
        """
        self.check_broken(error)
        self.check_labels()

    def check_labels(self) -> None:
        """Refuses what was read if nothing of it can be learned.

        Raises:
            ValueError: None of the records has a label.
        """
        seen, broken, unanswered = (self.total(kind) for kind in ("seen", "broken", "unanswered"))
        if seen and seen == broken + unanswered:
            raise ValueError(
                f"source: none of the {seen} records that were read has a label, expected some: the audio of {broken} "
                f"cannot be read, and text_cutoff leaves nothing of the answer of {unanswered}. Repair the files, or "
                "raise text_cutoff."
            )


def merge_reports(reports: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of several reports of [`SourceCounts`]."""
    counts = SourceCounts()
    for report in reports:
        counts.merge(report)
    return counts.report()
