"""Counts by source, and when too many records are broken."""

import numpy as np
import pytest

from sam_lab.data.counts import SourceCounts


def test_counts_have_a_place_for_any_number_of_sources():
    counts = SourceCounts()
    for index in range(70):
        counts.add(f"source {index}", "seen")
    counts.add("x" * 63 + "ö" * 9, "broken", 2)
    report = counts.report()
    assert len(report) == 71 and report["source 5"]["seen"] == report["source 69"]["seen"] == 1
    assert counts.total("seen") == 70 and counts.total("broken") == 2


def test_long_names_of_sources_stay_apart():
    counts = SourceCounts()
    names = ["/data/" + "ö" * 40 + f"/{index}" for index in range(3)]
    for index, name in enumerate(names):
        counts.add(name, "seen", index + 1)
    assert {name: row["seen"] for name, row in counts.report().items()} == dict(zip(names, [1, 2, 3]))


def test_a_source_that_is_broken_is_found_among_others():
    """Two in a hundred of all, which is allowed, but all of one source."""
    counts = SourceCounts(0.05)
    for name, seen, broken in (("good", 4900, 0), ("bad", 99, 99)):
        counts.add(name, "seen", seen)
        counts.add(name, "broken", broken)
    counts.check()  # of so few nothing is judged alone
    counts.add("bad", "seen")
    with pytest.raises(
        ValueError, match=r"audio of 99 of 100 records of bad cannot be read \(bad: 99 of 100\), .*5\.00%"
    ):
        counts.check_broken()
    counts.add("bad", "seen", 1900)
    counts.check()


def test_a_source_as_broken_as_all_are_is_never_refused():
    """Eight sources of which each process sees a part, at four fifths of what is allowed, judged at each record."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(20):
        counts = SourceCounts(0.01)
        for source, broken in zip(rng.integers(8, size=4000), rng.random(4000) < 0.008):
            counts.add(f"s{source}", "seen")
            if broken:
                counts.add(f"s{source}", "broken")
                total, seen = counts.total("broken"), counts.total("seen")
                if seen >= 100 and total <= seen * 0.01 + 1:  # what is judged of all is another rule
                    try:
                        counts.check_broken()
                    except ValueError:
                        refused += 1
    assert refused == 0
