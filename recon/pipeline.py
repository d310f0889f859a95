"""Steps of a reconstruction that run at the same time: each iterator in a thread of its own, in order."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def one(item: object) -> int:
    """Weigh every item alike."""
    return 1


def threaded(items: Iterable[Item], capacity: int, name: str, weight: Callable[[Item], int] = one) -> Iterator[Item]:
    """Yield the items of an iterator that a thread goes through ahead of the consumer.

    A chain of generators becomes a pipeline by wrapping its links: ``threaded(grid(threaded(receive(...))))``. What an
    iterator raises is raised to its consumer, behind the items that came before. A consumer that stops early stops the
    thread at its next item; a thread that waits for a network peer at that moment ends with its connection.

    Parameters
    ----------
    items : iterable
        Gone through in the thread.
    capacity : int
        How much may wait for the consumer; then the thread waits, so that memory is bounded.
    name : str
        Name of the thread.
    weight : callable
        How much of the capacity an item takes: by default 1, so that the capacity is a number of items.
    """
    channel = _Channel(capacity)
    # Of its own: a connection can be closed as well, which would end the session.
    iterator = iter(items)

    def run() -> None:
        try:
            for item in iterator:
                if not channel.put(item, weight(item)):
                    return
        except BaseException as error:  # noqa: BLE001 -- raised again in the consumer
            channel.end(error)
        else:
            channel.end(None)
        finally:
            if channel.stopped and hasattr(iterator, "close"):
                iterator.close()  # in turn, the links before it

    # In a copy of the context, by which its log lines carry the session's id.
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name, daemon=True).start()
    try:
        yield from channel
    finally:
        channel.stop()


class _Channel:
    """Hands items from one thread to another; what waits in between is limited."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[tuple[Any, int]] = deque()
        self._load = 0
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self.stopped = False

    def put(self, item: Any, weight: int) -> bool:
        """Wait for room and hand an item over; False when it is not wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._load < self._capacity or self.stopped)
            if self.stopped:
                return False
            self._waiting.append((item, weight))
            self._load += weight
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None) -> None:
        """Let the consumer's iteration end, or raise, behind the items that wait."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Refuse further items."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    break
                item, weight = self._waiting.popleft()
                self._load -= weight
                self._changed.notify_all()
            yield item
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # else it would keep this frame, and with it all that its own frames hold, until some collection
