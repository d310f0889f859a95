"""Bytes over a socket, both ways: every wait has a limit, and an observer is called with the bytes that arrive."""

import io
import math
import selectors
import socket
import time
from typing import Any, Protocol

from mrdio.codec import StreamBroken
from mrdio.limits import Limits

# How long a connection may be silent before the system asks whether the other machine is still there, and how often it
# asks [s]: a scanner that pauses answers, one that was switched off does not.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 60, 10, 6

# The system counts a wait in milliseconds with 31 bits [s].
LONGEST_WAIT = 1e6

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Observer(Protocol):
    """Observer of the bytes of a session, called as they arrive, before they are parsed."""

    def write(self, chunk: memoryview) -> None:
        """Take one chunk; it is only valid during the call."""


class SocketStream(io.RawIOBase):
    """A socket as a raw stream to read from, and to send to. One thread may read while another one sends.

    Parameters
    ----------
    sock : socket.socket
        A connected stream socket. Its timeout limits each wait, for data and for sending.
    limits : Limits
        Limits on the time for sending.

    Attributes
    ----------
    observer : Observer or None
        Is called with the bytes that arrive.
    received, sent : int
        How much has arrived, and has been sent [bytes].
    timeout, send_timeout : float
        Longest wait for data, and for sending [s].
    deadline, message_deadline : float
        When receiving as a whole, and receiving the present message, is to be over, on the monotonic clock [s].
    """

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._socket = sock
        self._message_time = limits.message_time
        self.observer: Observer | None = None
        self.received = self.sent = 0
        timeout = sock.gettimeout()
        self.timeout = math.inf if timeout is None else timeout
        self.send_timeout = min(self.timeout, limits.send_timeout)
        self.deadline = self.message_deadline = math.inf
        sock.setblocking(False)  # the waits are counted here: receiving and sending have different ones
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            _prepare_tcp(sock)

    def readable(self) -> bool:
        """True: `io.BufferedReader` asks."""
        return True

    def begin_message(self) -> None:
        """Let the time of a message that comes in begin."""
        self.message_deadline = time.monotonic() + self._message_time

    def end_message(self) -> None:
        """Let the time of a message end."""
        self.message_deadline = math.inf

    def readinto(self, buffer: Any) -> int:
        """Wait for bytes and take them; 0 at the end of the stream.

        Raises
        ------
        StreamBroken
            If none come in time, or the connection breaks.
        """
        while True:
            left = min(self.deadline, self.message_deadline) - time.monotonic()
            if left < 0:
                raise StreamBroken(self._what_is_over())
            try:
                count = self._socket.recv_into(buffer)
                break
            except BlockingIOError:
                ready = self._wait(selectors.EVENT_READ, min(self.timeout, left))
            except OSError as error:
                raise StreamBroken(f"the connection broke while receiving: {error}") from error
            if not ready:
                if left <= self.timeout:
                    raise StreamBroken(self._what_is_over())
                raise StreamBroken(f"the peer has sent nothing for {self.timeout:g} s, and has not sent CLOSE")
        self.received += count
        if count and self.observer is not None:
            self.observer.write(memoryview(buffer)[:count])
        return count

    def _what_is_over(self) -> str:
        if self.message_deadline < self.deadline:
            return f"a message has not come whole within {self._message_time:g} s"
        return "the time that the peer had for this is over"

    def send(self, buffers: list[memoryview]) -> None:
        """Send one message, given as its parts; the list is used up.

        Raises
        ------
        OSError
            If the connection breaks, the peer takes nothing for longer than `send_timeout`, or all of it takes longer
            than one message may take (``TimeoutError``).
        """
        start = time.monotonic()
        while buffers:
            try:
                sent = self._send_some(buffers)
            except BlockingIOError:
                left = start + self._message_time - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the peer has not taken a message within {self._message_time:g} s") from None
                if not self._wait(selectors.EVENT_WRITE, min(self.send_timeout, left)) and self.send_timeout < left:
                    raise TimeoutError(f"the peer has taken nothing for {self.send_timeout:g} s") from None
                continue
            self.sent += sent
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.pop(0))
            if sent:
                buffers[0] = buffers[0][sent:]

    def _send_some(self, buffers: list[memoryview]) -> int:
        if hasattr(self._socket, "sendmsg"):
            return self._socket.sendmsg(buffers)
        return self._socket.send(buffers[0])  # Windows

    def _wait(self, event: int, seconds: float) -> bool:
        """Wait until the socket is ready; also when it breaks, or is closed, which the next call then tells."""
        if self._socket.fileno() < 0:
            return True
        with _Selector() as selector:
            selector.register(self._socket, event)
            return bool(selector.select(max(0.0, min(seconds, LONGEST_WAIT))))


def _prepare_tcp(sock: socket.socket) -> None:
    """Send small messages at once, and notice when the other machine has failed without closing the connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
