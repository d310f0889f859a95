"""Connections that are not served: those that wait for a place, and those that were told to leave.

All of it happens in the thread that accepts connections, and nothing in it waits. What a waiting client has sent lies
in the system's buffers until its session begins.
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

# How often those that wait are told so [s]; a client that has hung up is noticed by this at the latest.
NOTICE = 5.0

# How long, and for how many bytes and how many clients, what somebody sends who was told to leave is still taken: a
# socket that is closed with unread data resets the connection, and the last words are lost.
FAREWELL = 1.0
FAREWELL_BYTES = 16 << 20
FAREWELLS = 128


@dataclass
class Visitor:
    """A connection that has been accepted: its socket, the name of its session, and who is there."""

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
class _Leaving:
    sock: socket.socket
    until: float
    left: int = FAREWELL_BYTES


class Doorkeeper:
    """Keeps those that wait, in order, and sees off those that are refused.

    Parameters
    ----------
    limits : Limits
        How many may wait, and how long.
    ended : callable
        Called with the summary of each session that ends here.

    Attributes
    ----------
    queue : deque of Visitor
        Who waits, the first first.
    """

    def __init__(self, limits: Limits, ended: Callable[[SessionSummary], object] = lambda summary: None) -> None:
        self._limits = limits
        self._ended = ended
        self.queue: deque[Visitor] = deque()
        self._leaving: deque[_Leaving] = deque()

    @property
    def is_busy(self) -> bool:
        """True if `look` is to be called soon again."""
        return bool(self.queue or self._leaving)

    def admit(self, visitor: Visitor, running: int) -> None:
        """Let a visitor wait, or refuse it when too many do."""
        waiting = len(self.queue)
        if waiting >= self._limits.waiting:
            limit = f"the limit ({flag_of('waiting')})"
            self.refuse(visitor, f"{running} sessions are served and {waiting} wait, {limit}: try again later")
            return
        visitor.sock.setblocking(False)
        self.queue.append(visitor)
        logger.info("waits for a place, as number %d", waiting + 1, extra={"session": visitor.name})
        self._tell_places(running)

    def next(self) -> Visitor | None:
        """Let in who has waited longest; None when nobody waits."""
        if not self.queue:
            return None
        first = self.queue.popleft()
        waited = time.monotonic() - first.since
        logger.info("has a place after %.1f s", waited, extra={"session": first.name})
        return first

    def refuse(self, visitor: Visitor, reason: str) -> None:
        """Tell a visitor why it is not served, and let it go."""
        self._note(visitor, Outcome.REFUSED, reason)
        sock = visitor.sock
        sock.setblocking(False)
        if not (visitor.tell(MRD_LOGGING_ERROR, reason) and _send(sock, b"".join(encode(MessageId.CLOSE)))):
            sock.close()
            return
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        self._leaving.append(_Leaving(sock, time.monotonic() + FAREWELL))
        if len(self._leaving) > FAREWELLS:
            self._leaving.popleft().sock.close()

    def look(self, running: int) -> None:
        """Tell those that wait; drop those that have hung up or waited too long; let go those that were refused."""
        now, most = time.monotonic(), self._limits.waiting_time
        for visitor in list(self.queue):
            if _has_hung_up(visitor.sock):
                self._note(visitor, Outcome.CLIENT_GONE, "the client hung up while it waited for a place")
                visitor.sock.close()
            elif now - visitor.since > most:
                time_limit = f"{most:g} s ({flag_of('waiting_time')})"
                self.refuse(visitor, f"no place has become free within {time_limit}: try again later")
            else:
                continue
            self.queue.remove(visitor)
        self._tell_places(running)
        self._leaving = deque(leaving for leaving in self._leaving if not _is_gone(leaving, now))

    def close(self) -> None:
        """Send away all that wait: the server stops."""
        while self.queue:
            self.refuse(self.queue.popleft(), "the server is being stopped")
        for leaving in self._leaving:
            _is_gone(leaving, time.monotonic())
            leaving.sock.close()
        self._leaving.clear()

    def _tell_places(self, running: int) -> None:
        now = time.monotonic()
        for place, visitor in enumerate(self.queue, 1):
            if place == visitor.told_place and now - visitor.told_at < NOTICE:
                continue
            visitor.told_place, visitor.told_at = place, now
            left = max(0.0, visitor.since + self._limits.waiting_time - now)
            text = f"{running} sessions are served: you are number {place} of those that wait, for {left:.0f} s more"
            # What does not go out whole cannot be told from what comes next; then `look` finds the connection broken.
            if not visitor.tell(MRD_LOGGING_INFO, text):
                with contextlib.suppress(OSError):
                    visitor.sock.shutdown(socket.SHUT_RDWR)

    def _note(self, visitor: Visitor, outcome: Outcome, reason: str) -> None:
        summary = SessionSummary(visitor.name, visitor.peer)
        summary.end(outcome, reason)
        summary.errors = int(outcome is Outcome.REFUSED)
        summary.seconds = time.monotonic() - visitor.since
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


def _is_gone(leaving: _Leaving, now: float) -> bool:
    """Take what a refused peer still sends; close the socket when it has ended, or had its time."""
    try:
        while now < leaving.until and leaving.left > 0 and (taken := len(leaving.sock.recv(1 << 20))):
            leaving.left -= taken
    except BlockingIOError:
        return False
    except OSError as error:
        logger.debug("A refused peer has broken off: %s", error)
    leaving.sock.close()
    return True
