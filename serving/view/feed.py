"""The session's end of the live view: copies of what is received and sent, in a bounded queue that nobody waits for.

A letter is bytes: the prefix of a `Letter`, then JSON, text or an MRD message, by its `Kind`. Of a session in a thread
the view takes letters out of its `Feed`. In a process of its own, a `PipeFeed` writes them to the server's process,
where `read_pipe` puts them into a `Mailbox`.
"""

import contextlib
import dataclasses
import json
import logging
import math
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple, Self

from constants import MessageId
from mrdio.codec import Message, encode
from mrdio.logs import current_session
from serving.summary import Outcome, SessionSummary

logger = logging.getLogger(__name__)

LARGEST = 32 << 20  # of an image; larger ones are counted only [bytes]
WAITING = 64 << 20  # of images and waveforms that wait for the view; then the oldest are lost [bytes]
TEXTS = 500  # texts that wait for the view; then the oldest are lost
LONGEST_TEXT = 20_000  # of a text that is shown [bytes]
PERIOD = 0.2  # between two looks at the counters of a session [s]
FLUSH = 1.0  # time that the last letters of a process get [s]

_PREFIX = struct.Struct("<BdId")


class Kind(IntEnum):
    """Content of a letter; the type of what follows the prefix."""

    SUMMARY = 1  # JSON of a SessionSummary
    OPENING = 2  # JSON
    TEXT = 3  # sent to the client, with its severity
    SETTINGS = 4  # JSON
    IMAGE = 5  # MRD message without its identifier
    WAVEFORM = 6  # MRD message without its identifier


_COUNTERS = (
    "kspace_encoding_step_1", "kspace_encoding_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
)  # fmt: skip
_LATEST_ONLY = frozenset({Kind.SUMMARY, Kind.OPENING})
_DATA = frozenset({Kind.IMAGE, Kind.WAVEFORM})


class Letter(NamedTuple):
    """A letter, read.

    Attributes
    ----------
    kind : Kind
        Its kind.
    time : float
        When it was written, since the epoch [s].
    number : int
        Of an image: how many the session has sent, this one included.
    waited : float
        Of an image: time since the latest readout had been received [s]; NaN if there was none.
    content : memoryview
        What follows the prefix.
    """

    kind: Kind
    time: float
    number: int
    waited: float
    content: memoryview

    @classmethod
    def read(cls, letter: bytes) -> Self:
        """Read a letter."""
        kind, time, number, waited = _PREFIX.unpack_from(letter)
        return cls(Kind(kind), time, number, waited, memoryview(letter)[_PREFIX.size :])


class Mailbox:
    """Bounded queue of letters: putting one in never waits, and the newest data are kept.

    Parameters
    ----------
    wake : callable
        Called, by whoever puts a letter in, when there was none before.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._latest: dict[int, bytes] = {}
        self._texts: deque[bytes] = deque(maxlen=TEXTS)
        self._data: deque[bytes] = deque()
        self._size = 0

    def put(self, letter: bytes) -> None:
        """Put a letter in."""
        kind = letter[0]
        with self._lock:
            was_empty = not (self._data or self._texts or self._latest)
            if kind in _DATA:
                self._data.append(letter)
                self._size += len(letter)
                while self._size > WAITING:
                    self._size -= len(self._data.popleft())
            elif kind in _LATEST_ONLY:
                self._latest[kind] = letter
            else:
                self._texts.append(letter)
        if was_empty:
            self._wake()

    def take(self) -> list[bytes]:
        """Take all letters out; data come last, in their order."""
        with self._lock:
            letters = [*self._latest.values(), *self._texts, *self._data]
            self._latest, self._size = {}, 0
            self._texts.clear()
            self._data.clear()
        return letters


class Feed(Mailbox):
    """Takes from a session what the view shows; a `connection.Watcher`.

    Parameters
    ----------
    wake : callable
        As of `Mailbox`.
    names : bool
        Whether the patient's name and number may leave the session.
    """

    def __init__(self, wake: Callable[[], object], names: bool = False) -> None:
        super().__init__(wake)
        self._names = names
        self._arrival = float("nan")
        self._images = 0
        self._summary: SessionSummary | None = None
        self._connection: Any = None
        self._told = b""

    def attach(self, summary: SessionSummary, connection: Any) -> None:
        """Take the counters from here."""
        self._summary, self._connection = summary, connection

    def _write(self, kind: Kind, *parts: Any, number: int = 0, waited: float = 0.0) -> None:
        self.put(b"".join((_PREFIX.pack(kind, time.time(), number, waited), *parts)))

    def open(self, metadata: Any, parameters: Any) -> None:
        """Take what is known before the first readout: the header, and the JSON parameters of the client."""
        shown = json.dumps(parameters, default=str)[:LONGEST_TEXT] if parameters is not None else ""
        self._write(Kind.OPENING, json.dumps(facts(metadata, self._names) | {"parameters": shown}).encode())

    def received(self, message: Message) -> None:
        """Take a waveform; of a readout only the time."""
        if message.identifier == MessageId.ISMRMRD_ACQUISITION:
            self._arrival = time.time()
        elif message.identifier == MessageId.ISMRMRD_WAVEFORM:
            self._write(Kind.WAVEFORM, *encode(message.identifier, message.content)[1:])

    def sent(self, identifier: MessageId, buffers: list[memoryview]) -> None:
        """Take an image, or a text, that has been sent, as the bytes that it was sent as."""
        if identifier == MessageId.ISMRMRD_IMAGE:
            self._images += 1
            if sum(map(len, buffers)) <= LARGEST:
                waited = time.time() - self._arrival
                self._write(Kind.IMAGE, *buffers[1:], number=self._images, waited=waited)
        elif identifier == MessageId.TEXT and len(buffers) == 3:  # else it is empty
            self._write(Kind.TEXT, buffers[-1][:LONGEST_TEXT])

    def settings(self, file: str, values: Any) -> None:
        """Take the settings that the module has read from a file."""
        if self._summary is not None and self._summary.outcome is not Outcome.RUNNING:
            return  # a fallback asks the settings of other modules
        content = json.dumps({"file": file, "values": values}, default=str)
        if len(content) <= LONGEST_TEXT:
            self._write(Kind.SETTINGS, content.encode())

    def take(self) -> list[bytes]:
        """Take all letters out, the counters among them where they have changed."""
        if self._summary is not None:
            self._summary.count(self._connection)
            content = self._summary.to_json()
            if content != self._told:
                self._told = content
                self._write(Kind.SUMMARY, content)
        return super().take()


class SettingsHandler(logging.Handler):
    """Hands the settings that log records carry to the feed of their session."""

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        super().__init__(logging.INFO)
        self._feeds = feeds

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; most carry no settings."""
        settings = getattr(record, "settings", None)
        if settings is not None and (feed := self._feeds.get(current_session())) is not None:
            feed.settings(str(getattr(record, "file", "")), dataclasses.asdict(settings))


def facts(metadata: Any, names: bool) -> dict[str, Any]:
    """Facts of an MRD header that the view shows; of one that is only text, none."""
    measurement = getattr(metadata, "measurementInformation", None)
    found = {
        "protocol": getattr(measurement, "protocolName", None) or "",
        "readouts": expected_readouts(metadata),
        "patient": "",
    }
    subject = getattr(metadata, "subjectInformation", None)
    if names and subject is not None:
        found["patient"] = ", ".join(str(part) for part in (subject.patientName, subject.patientID) if part)
    return found


def expected_readouts(metadata: Any) -> int:
    """Number of readouts by the counters' limits and the acceleration of an MRD header; 0 where it does not say."""
    total = 0.0
    encodings = getattr(metadata, "encoding", None) or []
    for encoding in encodings:
        limits = [getattr(encoding.encodingLimits, name) for name in _COUNTERS]
        count = math.prod(max(1, limit.maximum - limit.minimum + 1) for limit in limits if limit is not None)
        factors = getattr(encoding.parallelImaging, "accelerationFactor", None)
        if factors is not None:
            count /= max(1, factors.kspace_encoding_step_1) * max(1, factors.kspace_encoding_step_2)
        total += count
    return round(total) if total > len(encodings) else 0


# ---- from process to process ---------------------------------------------------------------------------------------


class PipeFeed(Feed):
    """Feed of a session in a process of its own: a thread writes the letters to the server's process.

    Parameters
    ----------
    pipe
        Where to; closed at the end.
    names : bool
        As of `Feed`.
    """

    def __init__(self, pipe: Pipe, names: bool) -> None:
        self._ready = threading.Event()
        super().__init__(self._ready.set, names)
        self._pipe = pipe
        self._ended = False
        self._thread = threading.Thread(target=self._write_to_pipe, name="view", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no threads left: the session is served all the same
            logger.warning("The session is not shown: %s", error)

    def _write_to_pipe(self) -> None:
        with contextlib.suppress(OSError), self._pipe:  # there is no server any more
            while True:
                ended = self._ended  # first: what was put in before is then taken out
                for letter in self.take():
                    self._pipe.send_bytes(letter)
                if ended:
                    return
                self._ready.wait(PERIOD)
                self._ready.clear()

    def close(self) -> None:
        """Give the letters that wait a moment to leave."""
        self._ended = True
        self._ready.set()
        if self._thread.is_alive():
            self._thread.join(FLUSH)


def read_pipe(pipe: Pipe, mailbox: Mailbox) -> None:
    """Put letters of a session's process into a mailbox until the process closes its end."""
    with contextlib.suppress(EOFError, OSError), pipe:
        while True:
            mailbox.put(pipe.recv_bytes())
