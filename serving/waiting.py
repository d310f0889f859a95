"""Connections that are not served: those that wait in the queue, and those that were refused.

All of it happens in the thread that accepts connections, and nothing in it blocks. Data of a waiting client stay in the
system's buffers until its session begins.
"""

import contextlib
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from constants import MRD_LOGGING_ERROR, MRD_LOGGING_INFO, MessageId
from mrdio.codec import encode
from mrdio.limits import Limits, flag_of
from mrdio.logs import log_summary
from serving.summary import Outcome, SessionSummary

logger = logging.getLogger(__name__)

# How often waiting clients are told so [s]; a client that has disconnected is noticed by this at the latest.
NOTICE = 5.0

# How long, and for how many bytes and how many clients, what a refused client sends is still taken: a socket that is
# closed with unread data resets the connection, and the message to the client is lost.
CLOSING_TIME = 1.0
CLOSING_BYTES = 16 << 20
MAX_CLOSING = 128


@dataclass
class Pending:
    """A connection that has been accepted: its socket, the name of its session, and the address of the peer."""

    sock: socket.socket
    name: str
    peer: str
    since: float = field(default_factory=time.monotonic)
    told_at: float = -math.inf
    told_place: int = 0

    def tell(self, level: str, text: str) -> bool:
        """Send a line without waiting; False when it did not go out whole."""
        return _send(self.sock, b"".join(encode(MessageId.TEXT, f"{level} {text}")))


@dataclass
class _Closing:
    sock: socket.socket
    until: float
    left: int = CLOSING_BYTES


class WaitingQueue:
    """Keeps waiting connections in order, and tells refused ones why before they are closed.

    Parameters
    ----------
    limits : Limits
        How many may wait, and how long.
    ended : callable
        Called with the summary of each session that ends here.

    Attributes
    ----------
    queue : deque of Pending
        Waiting connections, the first first.
    """

    def __init__(self, limits: Limits, ended: Callable[[SessionSummary], object] = lambda summary: None) -> None:
        self._limits = limits
        self._ended = ended
        self.queue: deque[Pending] = deque()
        self._closing: deque[_Closing] = deque()

    @property
    def is_busy(self) -> bool:
        """True if `look` is to be called soon again."""
        return bool(self.queue or self._closing)

    def admit(self, pending: Pending, running: int) -> None:
        """Let a connection wait, or refuse it when too many do."""
        waiting = len(self.queue)
        if waiting >= self._limits.waiting:
            limit = f"the limit ({flag_of('waiting')})"
            self.refuse(pending, f"{running} sessions are served and {waiting} wait, {limit}: try again later")
            return
        pending.sock.setblocking(False)
        self.queue.append(pending)
        logger.info("waits for a place, as number %d", waiting + 1, extra={"session": pending.name})
        self._tell_places(running)

    def next(self) -> Pending:
        """Remove the one that has waited longest from the queue."""
        first = self.queue.popleft()
        waited = time.monotonic() - first.since
        logger.info("has a place after %.1f s", waited, extra={"session": first.name})
        return first

    def refuse(self, pending: Pending, reason: str) -> None:
        """Tell a client why it is not served, and close its connection."""
        self._note(pending, Outcome.REFUSED, reason)
        sock = pending.sock
        sock.setblocking(False)
        if not (pending.tell(MRD_LOGGING_ERROR, reason) and _send(sock, b"".join(encode(MessageId.CLOSE)))):
            sock.close()
            return
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        self._closing.append(_Closing(sock, time.monotonic() + CLOSING_TIME))
        if len(self._closing) > MAX_CLOSING:
            self._closing.popleft().sock.close()

    def look(self, running: int) -> None:
        """Tell waiting clients; drop those that have disconnected or waited too long; close those that were refused."""
        now, most = time.monotonic(), self._limits.waiting_time
        for pending in list(self.queue):
            if _has_hung_up(pending.sock):
                self._note(pending, Outcome.CLIENT_GONE, "the client disconnected while it waited for a place")
                pending.sock.close()
            elif now - pending.since > most:
                time_limit = f"{most:g} s ({flag_of('waiting_time')})"
                self.refuse(pending, f"no place has become free within {time_limit}: try again later")
            else:
                continue
            self.queue.remove(pending)
        self._tell_places(running)
        self._closing = deque(closing for closing in self._closing if not _is_gone(closing, now))

    def close(self) -> None:
        """Send away all that wait: the server stops."""
        while self.queue:
            self.refuse(self.queue.popleft(), "the server is being stopped")
        for closing in self._closing:
            _is_gone(closing, time.monotonic())
            closing.sock.close()
        self._closing.clear()

    def _tell_places(self, running: int) -> None:
        now = time.monotonic()
        for place, pending in enumerate(self.queue, 1):
            if place == pending.told_place and now - pending.told_at < NOTICE:
                continue
            pending.told_place, pending.told_at = place, now
            left = max(0.0, pending.since + self._limits.waiting_time - now)
            text = f"{running} sessions are served: you are number {place} of those that wait, for {left:.0f} s more"
            # A line that is cut short cannot be told from the next one; then `look` finds the connection broken.
            if not pending.tell(MRD_LOGGING_INFO, text):
                with contextlib.suppress(OSError):
                    pending.sock.shutdown(socket.SHUT_RDWR)

    def _note(self, pending: Pending, outcome: Outcome, reason: str) -> None:
        summary = SessionSummary(pending.name, pending.peer)
        summary.end(outcome, reason)
        summary.errors = int(outcome is Outcome.REFUSED)
        summary.seconds = time.monotonic() - pending.since
        log_summary(summary)
        self._ended(summary)


def _send(sock: socket.socket, data: bytes) -> bool:
    """Send a few bytes without waiting; False when they do not go out whole."""
    try:
        return sock.send(data) == len(data)
    except OSError:
        return False


def _has_hung_up(sock: socket.socket) -> bool:
    """True if a peer has reset its connection, or ended it without having sent anything."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) or not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_gone(closing: _Closing, now: float) -> bool:
    """Take what a refused peer still sends; close the socket when it has ended, or had its time."""
    try:
        while now < closing.until and closing.left > 0 and (taken := len(closing.sock.recv(1 << 20))):
            closing.left -= taken
    except BlockingIOError:
        return False
    except OSError as error:
        logger.debug("A refused peer has broken off: %s", error)
    closing.sock.close()
    return True
