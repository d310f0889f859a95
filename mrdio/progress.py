"""A line on the terminal that shows how far a long run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_UPDATES = 0.2


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items; on a terminal, show on standard error how many of `total` are done.

    Parameters
    ----------
    items
        What is worked on.
    total
        How many there will be.
    label
        What is being done, before the numbers.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    shown = 0.0
    done = 0
    try:
        for done, item in enumerate(items, start=1):
            if time.monotonic() - shown > SECONDS_BETWEEN_UPDATES:
                shown = time.monotonic()
                sys.stderr.write(f"\r{label} {done}/{total}")
                sys.stderr.flush()
            yield item
    finally:
        if done:
            sys.stderr.write(f"\r{label} {done}/{total}\n")
