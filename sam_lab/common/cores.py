"""The CPU cores of this process."""

import os


def num_cores() -> int:
    """The cores that this process may use; where the system cannot limit them (macOS, Windows), all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
