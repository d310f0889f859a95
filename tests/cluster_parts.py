"""Parts of work for the tests of cluster.py; the workers import them from here."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solvers import timekeeper

PATIENCE = 20.0


def dask_setup(worker: Any) -> None:
    """Have solvers report at every opportunity; called as a worker starts that preloads this file."""
    timekeeper.REPORT_INTERVAL = 0.0


def square(part: int, report: Callable[..., Any]) -> int:
    """Work of no time."""
    report(f"squaring {part}", 1.5)
    return part * part


def fail(part: str, report: Callable[[str], Any]) -> None:
    """Raise."""
    raise ValueError(f"{part} cannot be done")


def wait_for_file(part: Path, report: Callable[[str], Any]) -> int:
    """Say which process this is, then go on reporting until a file is there; returns the process."""
    report(f"process {os.getpid()}")
    deadline = time.monotonic() + PATIENCE
    try:
        while not part.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{part} has not come")
            report("waiting")
            time.sleep(0.02)
    except Exception as error:
        part.with_suffix(".ended").write_text(repr(error))
        raise
    return os.getpid()
