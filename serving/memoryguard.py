"""Limits on the memory of the server and its sessions, so that the system does not end the server.

The memory of a session in a process of its own is known: that of its process and the programs it runs, with their part
of shared memory. `MemoryGuard` ends the session that uses too much. The memory of one of several threads is not known;
`MemoryGauge` tells when there is none for further ones.
"""

import contextlib
import ctypes
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence

from mrdio.limits import MIB, Limits, flag_of
from recon.cgroups import memory_of_groups
from serving.workers import BREAK_OFF_WAIT, Worker

logger = logging.getLogger(__name__)

# Interval of the measurements [s].
PERIOD = 0.5

# Part of the memory of the machine, or the container, that the server may use by default.
SHARE = 0.8

# How long the memory of a session that has been ended may take to go, before a further one is ended [s].
SETTLE = 10.0


class MemoryGauge:
    """Tells whether the server uses all the memory that it may.

    Sessions in threads share one process, and which of them uses how much is not known. So none is ended: while
    the memory is short, the server takes no further one.

    Parameters
    ----------
    limits : Limits
        How much memory that is.
    """

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.memory
        self._looked = -math.inf
        self._used = 0

    def shortage(self) -> str | None:
        """Return the memory in use and the limit in words when the limit is reached, else None."""
        self._limit = self._limit or default_memory()
        if time.monotonic() - self._looked > PERIOD:
            tree = ProcessTree()
            self._used = sum(tree.resident.values())
            if self._used > self._limit:
                give_back()
                self._used = ProcessTree().whole()
            self._looked = time.monotonic()
        if self._used <= self._limit:
            return None
        return f"it uses {_mib(self._used)} of memory, and may use {_mib(self._limit)} ({flag_of('memory')})"


class ProcessTree:
    """The server's process and all that it has started, as they are now.

    Attributes
    ----------
    resident : dict
        Memory of each process, by its number, with what it shares with others [bytes].
    """

    def __init__(self) -> None:
        import psutil  # here: listening is not to wait for it

        self._gone = psutil.Error
        own = psutil.Process()
        self._processes, self._parents, self.resident = {}, {}, {}
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(self._gone):
                self._parents[process.pid] = process.ppid()
                self.resident[process.pid] = process.memory_info().rss
                self._processes[process.pid] = process

    def below(self, pid: int) -> list[int]:
        """Numbers of a process and of all that it has started."""
        found = [pid] if pid in self._processes else []
        for parent in found:  # which grows meanwhile
            found += [child for child in self._processes if self._parents[child] == parent]
        return found

    def portion(self, pid: int) -> int:
        """Memory of a process and all that it has started, with their part of shared memory [bytes]."""
        return sum(map(self._exact, self.below(pid)))

    def whole(self) -> int:
        """Memory of all processes, each page counted once [bytes]."""
        return sum(map(self._exact, self._processes))

    def _exact(self, pid: int) -> int:
        try:
            memory = self._processes[pid].memory_full_info()
        except self._gone:
            return 0
        return getattr(memory, "pss", memory.uss)  # only Linux knows the shares in shared pages


class MemoryGuard(threading.Thread):
    """Measures the memory of the server and of its sessions in processes, and ends a session that uses too much.

    Parameters
    ----------
    limits : Limits
        How much that is.
    workers : callable
        Returns the sessions that run.
    """

    def __init__(self, limits: Limits, workers: Callable[[], Sequence[Worker]]) -> None:
        super().__init__(name="memory guard", daemon=True)
        self._most, self._session_most = limits.memory, limits.session_memory
        self._workers = workers
        self._stopped = threading.Event()
        self._ended: dict[Worker, float] = {}  # and since when

    def stop(self) -> None:
        """Have it end, and wait for that."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Measure again and again, also after a failure: there may be no file descriptors left for a while."""
        import psutil  # as above

        failing = False
        while True:
            try:
                self.look(ProcessTree())
                failing = False
            except (OSError, psutil.Error) as error:
                if not failing:
                    logger.error("The memory in use cannot be found out, and is not limited meanwhile: %s", error)
                failing = True
            if self._stopped.wait(PERIOD):
                return

    def look(self, tree: ProcessTree) -> None:
        """Look at the memory once, and end the session that uses too much, if there is one."""
        self._most = self._most or default_memory()
        running = [worker for worker in self._workers() if worker.is_alive()]
        resident = sum(tree.resident.values())
        self._forget(running)
        used = {worker: self._used(tree, worker.pid) for worker in running if worker.pid and worker not in self._ended}
        settling = any(time.monotonic() - since < SETTLE for since in self._ended.values())
        if not used or settling:
            return
        worker = max(used, key=used.__getitem__)
        if self._session_most and used[worker] > self._session_most:
            limit = f"{_mib(self._session_most)} ({flag_of('session_memory')})"
            self._end(worker, f"the session uses {_mib(used[worker])}, more than one may, {limit}")
        elif resident > self._most and (whole := tree.whole()) > self._most:
            limit = f"{_mib(self._most)} ({flag_of('memory')})"
            share = f"this session uses the most of it, {_mib(used[worker])}"
            self._end(worker, f"the server uses {_mib(whole)}, more than it may, {limit}, and {share}")

    def _used(self, tree: ProcessTree, pid: int) -> int:
        """Memory of a session's process: shared memory counts only as long as that makes no difference."""
        resident = sum(tree.resident[each] for each in tree.below(pid))
        return tree.portion(pid) if resident > (self._session_most or self._most) else resident

    def _end(self, worker: Worker, reason: str) -> None:
        logger.error("is ended: %s", reason, extra={"session": worker.name})
        self._ended[worker] = time.monotonic()
        worker.break_off(reason)

    def _forget(self, running: list[Worker]) -> None:
        """Forget those that have ended, and kill processes that do not end."""
        for worker, since in list(self._ended.items()):
            if worker not in running:
                del self._ended[worker]
            elif time.monotonic() - since > BREAK_OFF_WAIT:
                worker.kill()


def default_memory() -> int:
    """Memory that the server may use by default: a share of what the machine or the container has [bytes]."""
    import psutil

    return int(SHARE * min([psutil.virtual_memory().total, *(limit for limit, _ in memory_of_groups())]))


def give_back() -> None:
    """Have the C library return freed memory to the system; otherwise it keeps it, and the memory is counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # other C libraries have no such thing
        trim(0)


def _mib(count: float) -> str:
    return f"{count / MIB:.0f} MiB"
