"""Runs the independent parts of a reconstruction: in this process, or on the workers of a Dask cluster.

A part is a function of picklable arguments, which reports how far it is, with the time left [s] where it can tell, and
ends early when reporting raises::

    def reconstruct_part(part, report):  # defined at the top of a file that the workers have as well
        ...
        report("iteration 3 of 30", 9.0)
        return images

    for images in cluster.run(reconstruct_part, parts, tell, scheduler="tcp://host:8786"):
        ...

Results come in the order of the parts. Without a scheduler the parts run one after the other where they are; one part
keeps all cores busy already, so a local cluster would only take memory. With one, a worker that dies is replaced: the
scheduler gives its part to another one, up to its setting ``distributed.scheduler.allowed-failures`` (three). For that
the part's data stay with the scheduler until the part is done, which is why only a few more parts than there are
workers are handed to it at a time.

Dask runs whatever reaches its ports: scheduler and workers belong on a network of their own, or behind TLS
(``doc/cluster.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import pickle
import queue
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import distributed

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
Result = TypeVar("Result")

CONNECT_WAIT = 10.0  # for the scheduler to answer, and for a first worker [s]
REPORT_INTERVAL = 2.0  # so often at least the client is told something; sending fails when it has disconnected [s]
WORKERS_WAIT = 60.0  # how long a cluster may be without workers, or out of reach [s]
SILENCE = 300.0  # how long a part that is being worked on may report nothing [s]; the solver reports every 2 s

_SAME_FILES = (
    'scheduler and workers need the files of this server: start them as "python -m dask ..." in a folder like its own'
)


class ClusterError(RuntimeError):
    """The cluster cannot be used, or did not do the work; the text says what to check."""


def run(
    function: Callable[[Part, Callable[..., Any]], Result],
    parts: Iterable[Part],
    report: Callable[..., Any],
    scheduler: str = "",
) -> Iterator[Result]:
    """Yield the function's results for the parts, in their order.

    Parameters
    ----------
    function
        Called as ``function(part, report)``; for a cluster, defined at the top of a module that workers can import.
    parts
        Its arguments, picklable for a cluster; taken one by one, as workers become free.
    report
        Called as ``report(text, left, number=number)`` with the time left for a part [s] or None, and the number of the
        part from 1; an exception that it raises ends the work, on the workers too.
    scheduler
        Address of a Dask scheduler, such as ``tcp://host:8786``; empty: this process.

    Raises
    ------
    ClusterError
        The scheduler does not answer, has no workers, or lost too many of them.
    Exception
        Of the function, or of `report`.
    """
    if scheduler:
        yield from _run_on_cluster(function, parts, report, scheduler)
    else:
        for number, part in enumerate(parts, start=1):
            yield function(part, functools.partial(report, number=number))


def check(scheduler: str) -> None:
    """Check that a scheduler answers.

    Raises
    ------
    ClusterError
        It does not.
    """
    try:
        asyncio.run(_knock(scheduler))
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f'scheduler = "{scheduler}" does not answer ({error}): start it with "python -m dask scheduler", or leave '
            "the key empty to compute here"
        ) from error


def _run_on_cluster(
    function: Callable[..., Result], parts: Iterable[Part], report: Callable[..., Any], scheduler: str
) -> Iterator[Result]:
    name = f"mrd-{uuid.uuid4().hex}"  # of the session's parts, and of the topic that they report under
    reports: queue.SimpleQueue[tuple[str, float | None, int]] = queue.SimpleQueue()
    waiting: deque[distributed.Future] = deque()
    with _connected(scheduler) as client:
        client.subscribe_topic(name, lambda event: reports.put(event[1]))
        numbered = enumerate(parts, start=1)
        watch = _Watch(client, scheduler, reports, report)
        try:
            for awaited in itertools.count(1):
                free = len(watch.workers()) + 1 - len(waiting)
                for number, part in itertools.islice(numbered, max(free, 0)):
                    # As bytes, the scheduler keeps them without looking into them.
                    work = pickle.dumps((function, part), protocol=pickle.HIGHEST_PROTOCOL)
                    waiting.append(client.submit(_work, work, name, number, key=f"{name}-{number}", pure=False))
                if not waiting:
                    return
                watch.until_done(waiting[0], awaited)
                yield _result(waiting[0])
                waiting.popleft()
        finally:
            # Parts that are still being worked on notice it with their next report.
            client.cancel(list(waiting), force=True)


def _result(future: distributed.Future) -> Any:
    from distributed.scheduler import KilledWorker

    try:
        return future.result(timeout=CONNECT_WAIT)
    except KilledWorker as error:
        raise ClusterError(
            f"part {future.key} was given up: every worker that it was given to died; too little memory? ({error})"
        ) from error
    except (ModuleNotFoundError, AttributeError) as error:
        raise ClusterError(f"{error} on a worker: {_SAME_FILES}") from error
    except RuntimeError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # the scheduler's, as it reads what it is handed
            raise ClusterError(f"{error.__cause__} at the scheduler: {_SAME_FILES}") from error
        raise


class _Watch:
    """Waits for parts, passes on their reports, and notices when no more can come."""

    def __init__(
        self, client: distributed.Client, scheduler: str, reports: queue.SimpleQueue, report: Callable[..., Any]
    ) -> None:
        self._client, self._scheduler, self._reports, self._report = client, scheduler, reports, report
        self._spoke = self._heard = self._in_order = time.monotonic()

    def workers(self) -> dict[str, Any]:
        """Workers that the scheduler has, as it last said; none while it is out of reach."""
        if self._client.status != "running":
            return {}
        return self._client.scheduler_info(n_workers=-1)["workers"]

    def until_done(self, future: distributed.Future, number: int) -> None:
        """Wait until a part, the one with this number, is done, well or badly.

        Raises
        ------
        ClusterError
            Workers or scheduler are out of reach for too long, or a part that is worked on reports nothing more.
        """
        self._heard = time.monotonic()
        while not future.done():
            try:
                report = self._reports.get(timeout=0.05)
            except queue.Empty:
                self._check(future, number)
            else:
                self._heard = time.monotonic()
                self._tell(*report)
        if future.status == "cancelled":  # Dask's status when the scheduler has left
            raise ClusterError(f"the scheduler {self._scheduler} has dropped the work: was it restarted?")

    def _tell(self, text: str, left: float | None, number: int) -> None:
        self._report(text, left, number=number)
        self._spoke = time.monotonic()

    def _check(self, future: distributed.Future, number: int) -> None:
        now = time.monotonic()
        if workers := len(self.workers()):
            self._in_order = now
        elif now - self._in_order > WORKERS_WAIT:
            lost = "has no workers" if self._client.status == "running" else "is out of reach"
            raise ClusterError(f"the scheduler {self._scheduler} {lost} for {WORKERS_WAIT:g} s")
        if now - self._heard > SILENCE:
            # A part that waits behind other sessions' parts may report nothing.
            if any(future.key in keys for keys in self._client.processing().values()):
                raise ClusterError(f"part {future.key} has said nothing for {SILENCE:g} s: does its worker hang?")
            self._heard = now
        if now - self._spoke > REPORT_INTERVAL:
            self._tell(f"waiting for the cluster {self._scheduler}, {workers} workers", None, number)


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[distributed.Client]:
    """Client of a scheduler that has at least one worker."""
    import dask
    import distributed

    # The data go with the work on purpose: scattered ahead, they would be lost with the worker that holds them.
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    check(scheduler)  # a client that cannot connect would leave a thread behind
    client = distributed.Client(scheduler, timeout=CONNECT_WAIT, set_as_default=False, name="mrd-server")
    try:
        try:
            client.wait_for_workers(1, timeout=CONNECT_WAIT)
        except TimeoutError as error:
            start = f"python -m dask worker {scheduler} --nthreads 1"
            raise ClusterError(f'scheduler = "{scheduler}" has no workers: start some with "{start}"') from error
        yield client
    finally:
        client.close(timeout=CONNECT_WAIT)


async def _knock(scheduler: str) -> None:
    from distributed.comm import connect

    comm = await connect(scheduler, timeout=CONNECT_WAIT)
    await comm.close()


def _work(work: bytes, topic: str, number: int) -> Any:
    """Do one part, as a task on a worker; ends early when its result is not waited for any more."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def report(text: str, left: float | None = None) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise ClusterError("the part has been cancelled")
        worker.log_event(topic, (f"on {worker.address}: {text}", left, number))

    function, part = pickle.loads(work)
    return function(part, report)
