"""Threads that share the items of an array among them, while the caller says now and then how far they are.

NumPy's element-wise functions, the Fourier transforms and the compiled loops of `nufft` release the interpreter lock,
so that threads are enough: nothing is copied between processes.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

PULSE = 0.5  # [s] between two calls of `pulse` at most, as long as there is work


def nothing() -> None:
    """Do nothing: the default of `pulse`."""


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """Threads that work on items 0 to n - 1, in any order.

    Use it in a ``with`` statement: on the way out the threads end. An exception, of the work or of the pulse, ends the
    work that has not begun and passes through once that which has begun is over.

    Parameters
    ----------
    size
        Number of threads; None: one for each processor. With one, the calling thread works itself.
    pulse
        Called by the calling thread at least every `PULSE` seconds while there is work, as often as an item takes at
        least if it works itself; may raise.
    """

    def __init__(self, size: int | None = None, pulse: Callable[[], None] = nothing) -> None:
        self.size = size or processors()
        self._pulse = pulse
        self._pool = ThreadPoolExecutor(self.size, "reconstruction") if self.size > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[int], None], count: int) -> None:
        """Call work(n) once for each n below count."""
        if self._pool is None:
            for n in range(count):
                work(n)
                self._pulse()
            return
        numbers, lock, stop = iter(range(count)), threading.Lock(), threading.Event()

        def some() -> None:
            while not stop.is_set():
                with lock:
                    n = next(numbers, None)
                if n is None:
                    return
                work(n)

        futures = [self._pool.submit(contextvars.copy_context().run, some) for _ in range(min(self.size, count))]
        try:
            while wait(futures, PULSE, FIRST_EXCEPTION).not_done:
                if any(future.done() and future.exception() for future in futures):
                    break
                self._pulse()
            self._pulse()
        finally:
            stop.set()
            wait(futures)
        for future in futures:
            future.result()
