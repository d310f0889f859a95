"""Progress of a reconstruction: reports about once a second, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REPORT_INTERVAL = 1.0  # [s]


@dataclass(frozen=True)
class Progress:
    """Progress of a reconstruction.

    Attributes
    ----------
    iteration, iterations
        Iterations done, and at most to do.
    objective
        Value of the objective; None before the first iteration.
    elapsed, remaining
        Time since the start, and the estimate of what is still to come [s]; None before the first iteration.
    """

    iteration: int
    iterations: int
    objective: float | None
    elapsed: float
    remaining: float | None

    def __str__(self) -> str:
        if self.objective is None or not self.iteration:
            return f"iterative reconstruction: preparing, {self.elapsed:.0f} s elapsed"
        return (
            f"iterative reconstruction: {self.iteration} of {self.iterations} iterations, objective "
            f"{self.objective:.4g}, {self.elapsed:.0f} s elapsed"
        )


class Timekeeper:
    """Tells how far a reconstruction is, about once a second."""

    def __init__(self, iterations: int, report: Callable[[Progress], Any] | None) -> None:
        self._iterations, self._report = iterations, report
        self._begin = self._last = self._iterating = time.monotonic()
        self._iteration = 0
        self._objective: float | None = None

    def begin(self, objective: float) -> None:
        """The iterations begin."""
        self._iterating, self._objective = time.monotonic(), objective

    def iterated(self, objective: float) -> None:
        """An iteration is done."""
        self._iteration, self._objective = self._iteration + 1, objective
        self.pulse()

    def progress(self) -> Progress:
        """Progress so far."""
        now, remaining = time.monotonic(), None
        if self._iteration:
            remaining = (now - self._iterating) / self._iteration * (self._iterations - self._iteration)
        return Progress(self._iteration, self._iterations, self._objective, now - self._begin, remaining)

    def pulse(self) -> None:
        """Report, if it is time to."""
        now = time.monotonic()
        if self._report is not None and now - self._last >= REPORT_INTERVAL:
            self._last = now
            self._report(self.progress())
