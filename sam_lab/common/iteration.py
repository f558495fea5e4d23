"""Iterating in batches."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter (`itertools.batched` needs Python 3.12)."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
