"""Steps of a reconstruction that run at the same time: each iterator in a thread of its own, in order."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def threaded(items: Iterable[Item], capacity: int, name: str) -> Iterator[Item]:
    """Yield the items of an iterator that a thread goes through ahead of the consumer.

    A chain of generators becomes a pipeline by wrapping its links: ``threaded(grid(threaded(receive(...))))``. What an
    iterator raises is raised to its consumer, behind the items that came before. A consumer that stops early stops the
    thread at its next item; a thread that waits for a network peer at that moment ends with its connection.

    Parameters
    ----------
    items : iterable
        Gone through in the thread.
    capacity : int
        How many items may wait for the consumer; then the thread waits, so that memory is bounded.
    name : str
        Name of the thread.
    """
    waiting: queue.Queue = queue.Queue(capacity)
    stopped = threading.Event()

    def run() -> None:
        try:
            for item in items:
                waiting.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 -- raised again in the consumer
            waiting.put(_Raised(error))
        else:
            waiting.put(_END)
        finally:
            if stopped.is_set() and hasattr(items, "close"):
                items.close()  # in turn, the links before it

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        while not waiting.empty():  # a thread that waits for room finds it, and then sees that it is to stop
            waiting.get_nowait()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
