"""A scanner: sends readouts at a steady pace, and knows when each of them was handed over."""

import socket
import struct
import threading
import time
from pathlib import Path

import ismrmrd

from .scripted import CLOSE, Answer, config, connect, header, readout, take_answer

_COUNTER = struct.calcsize("<H") + ismrmrd.AcquisitionHeader.scan_counter.offset
_SESSION = struct.calcsize("<H") + ismrmrd.AcquisitionHeader.measurement_uid.offset

# As long as what comes before the first readout, whatever module is asked for.
OPENING = config("null") + header()


def unread(port: int) -> int:
    """Bytes that a port has sent and its peer has not read yet, as the system tells (Linux) [bytes]."""
    end, total = f":{port:04X}", 0
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, local, remote, _, queues, *_ = line.split()
        to_send, _, to_read = queues.partition(":")
        if local.endswith(end):
            total += int(to_send, 16)
        elif remote.endswith(end):
            total += int(to_read, 16)
    return total


class Sender(threading.Thread):
    """One session in a thread of its own; it goes on until it is told to stop or the connection breaks.

    Parameters
    ----------
    address : tuple
        The server's.
    session : int
        Goes into the ``measurement_uid`` of each readout.
    interval : float
        Time between readouts [s].
    config_name : str
        Module to run.
    count : int or None
        How many readouts to send; None: until told to stop.

    Attributes
    ----------
    handed : list of tuple
        For each readout the time when its last byte was handed to the system [s], and its bytes.
    answer : Answer
        What came back.
    port : int
        Its side of the connection; 0 before there is one.
    size : int
        How long a readout is [bytes].
    """

    def __init__(
        self, address: tuple[str, int], session: int, interval: float = 0.001, config_name: str = "null",
        count: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name=f"sender {session}", daemon=True)
        self.session, self.handed, self.answer = session, [], Answer()
        self._address, self._interval, self._config, self._count = address, interval, config_name, count
        self._stopped = threading.Event()
        self.started = threading.Event()
        self.port = 0
        self._readout = readout(0, channels=4, samples=64, session=session)
        self.size = len(self._readout)

    def run(self) -> None:
        """Hold the session."""
        try:
            with connect(self._address) as sock:
                rest = ""
                try:
                    self._send(sock)
                except OSError as error:  # the server has ended the session: its answer says why
                    rest = str(error)
                self.answer = take_answer(sock, rest)
        except OSError as error:
            self.answer = Answer(rest=str(error))
        finally:
            self.started.set()

    def unread(self) -> int:
        """Bytes that were handed over and that the server has not read yet."""
        return unread(self.port)

    def _send(self, sock: socket.socket) -> None:
        self.port = sock.getsockname()[1]
        sock.sendall(config(self._config) + header())
        raw = bytearray(self._readout)
        begin = time.monotonic()
        while not self._stopped.is_set() and (self._count is None or len(self.handed) < self._count):
            struct.pack_into("<I", raw, _COUNTER, len(self.handed))
            whole = bytes(raw)
            sock.sendall(whole)
            self.handed.append((time.monotonic(), whole))
            self.started.set()
            # The pace is kept on the whole: after a wait for the processor, the readouts that are due follow at once.
            self._stopped.wait(max(0.0, begin + len(self.handed) * self._interval - time.monotonic()))
        sock.sendall(CLOSE)

    def handed_before(self, moment: float) -> list[bytes]:
        """Readouts whose last byte was handed over before a moment [s]."""
        return [raw for handed, raw in list(self.handed) if handed < moment]

    def stop(self) -> None:
        """End the session properly, if it is still there."""
        self._stopped.set()

    def wait(self, patience: float) -> bool:
        """Wait for the end; returns whether it has come."""
        self.join(patience)
        return not self.is_alive()
