"""What the view knows: running and recent sessions, and of each a bounded history of images, traces and messages.

Belongs to the thread of the view's event loop, which alone calls it.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serving.summary import SessionSummary
from serving.view.feed import Kind, Letter
from serving.view.frames import Frame, Packet, image_frame, waveform_packet

logger = logging.getLogger(__name__)

RECENT = 20  # sessions that are remembered when they have ended
SERIES = 32  # of a session
SERIES_IMAGES, SERIES_BYTES = 1000, 48 << 20  # of one series
ALL_BYTES = 256 << 20  # of the images of all sessions
MESSAGES = 500  # of a session
SETTINGS = 8  # files of a session
TRACES, TRACE_SAMPLES = 6, 60_000  # of a session, and of a trace
SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass
class Series:
    """Numbers of the images of one series that are kept, and their bytes."""

    numbers: deque[int] = field(default_factory=deque)
    size: int = 0
    count: int = 0


@dataclass
class Trace:
    """Packets of one waveform that are kept; `count` is of all that came."""

    packets: deque[Packet] = field(default_factory=deque)
    samples: int = 0
    count: int = 0

    def add(self, packet: Packet) -> None:
        """Keep a packet, and drop the oldest ones above the limit."""
        self.packets.append(packet)
        self.samples += packet.curve.size
        self.count += 1
        while self.samples > TRACE_SAMPLES:
            self.samples -= self.packets.popleft().curve.size

    def since(self, count: int) -> list[Packet]:
        """Packets that came after the first `count`, if they are still kept."""
        new = self.count - count
        return list(self.packets)[-new:] if new > 0 else []


class WatchedSession:
    """One session as the view knows it."""

    def __init__(self, summary: SessionSummary) -> None:
        self.summary = summary
        self.has_ended = False
        self.started = self.changed = time.time()
        self.opening: dict[str, Any] = {}
        self.messages: deque[dict[str, Any]] = deque(maxlen=MESSAGES)
        self.message_count = 0
        self.settings: dict[str, Any] = {}
        self.settings_count = 0
        self.images: dict[int, Frame] = {}
        self.series: dict[int, Series] = {}
        self.traces: dict[int, Trace] = {}
        self.size = 0
        self._trigger_is_on: dict[int, bool] = {}

    def take(self, letter: Letter) -> None:
        """Take in a letter."""
        if letter.kind is Kind.SUMMARY:
            if not self.has_ended:  # else it was overtaken by the end
                self.summary = SessionSummary.from_json(letter.content.tobytes())
        elif letter.kind is Kind.OPENING:
            self.opening = json.loads(letter.content.tobytes())
            self.settings_count += 1
        elif letter.kind is Kind.TEXT:
            self._take_text(letter)
        elif letter.kind is Kind.SETTINGS:
            read = json.loads(letter.content.tobytes())
            if read["file"] in self.settings or len(self.settings) < SETTINGS:
                self.settings[read["file"]] = read["values"]
                self.settings_count += 1
        elif letter.kind is Kind.IMAGE:
            self._keep(image_frame(letter))
        else:
            self._keep_packet(waveform_packet(letter, self._trigger_is_on))

    def _take_text(self, letter: Letter) -> None:
        text = letter.content.tobytes().decode("utf-8", "replace")
        word, _, rest = text.partition(" ")
        level, text = (word, rest.strip()) if word in SEVERITIES else ("INFO", text)
        self.message_count += 1
        self.messages.append({"number": self.message_count, "time": letter.time, "level": level, "text": text})

    def _keep(self, frame: Frame) -> None:
        if frame.series not in self.series and len(self.series) >= SERIES:
            first = next(iter(self.series))
            while self.series[first].numbers:
                self._drop(self.series[first])
            del self.series[first]
        series = self.series.setdefault(frame.series, Series())
        series.numbers.append(frame.number)
        series.size += len(frame.content)
        series.count += 1
        self.images[frame.number] = frame
        self.size += len(frame.content)
        self.changed = time.time()
        while len(series.numbers) > SERIES_IMAGES or series.size > SERIES_BYTES:
            self._drop(series)

    def _keep_packet(self, packet: Packet | None) -> None:
        if packet is not None and (packet.kind in self.traces or len(self.traces) < TRACES):
            self.traces.setdefault(packet.kind, Trace()).add(packet)

    def _drop(self, series: Series) -> None:
        frame = self.images.pop(series.numbers.popleft())
        series.size -= len(frame.content)
        self.size -= len(frame.content)

    def drop_oldest(self) -> None:
        """Drop the oldest image; its series is forgotten with its last one."""
        frame = next(iter(self.images.values()))
        series = self.series[frame.series]
        self._drop(series)
        if not series.numbers:
            del self.series[frame.series]

    def in_words(self) -> dict[str, Any]:
        """Return what the list of sessions shows."""
        known = {key: value for key, value in self.opening.items() if key != "parameters"}
        return known | self.summary.fields() | {"name": self.summary.session, "started": self.started}

    def details(self, messages: int, settings: int) -> dict[str, Any]:
        """Return what is shown of the session that a viewer watches.

        Parameters
        ----------
        messages
            How many messages the viewer has: those after them are returned.
        settings
            Value of `settings_count` when the viewer was told the settings: they are returned when it has changed.
        """
        new = min(self.message_count - messages, len(self.messages))
        changed = self.settings_count != settings
        told = {"settings": self.settings, "parameters": self.opening.get("parameters", "")} if changed else {}
        return told | {
            "name": self.summary.session,
            "messages": list(self.messages)[-new:] if new else [],
            "series": {number: [each.numbers[0], each.count] for number, each in self.series.items()},
        }


class Hub:
    """All sessions, in the order in which they began."""

    def __init__(self) -> None:
        self.sessions: dict[str, WatchedSession] = {}

    def take(self, name: str, letters: list[bytes]) -> None:
        """Take in letters of a session; one that cannot be read costs only itself."""
        session = self._session(SessionSummary(name))
        for letter in letters:
            try:
                session.take(Letter.read(letter))
            except Exception as error:  # noqa: BLE001 -- images hold what clients and modules have put there
                logger.debug("not shown: %s", error, extra={"session": name})
        self._limit_images()

    def end(self, summary: SessionSummary) -> None:
        """Note how a session has ended."""
        session = self._session(summary)
        session.summary, session.has_ended = summary, True
        ended = [name for name, each in self.sessions.items() if each.has_ended]
        for name in ended[:-RECENT]:
            del self.sessions[name]

    def _session(self, summary: SessionSummary) -> WatchedSession:
        if summary.session not in self.sessions:
            self.sessions[summary.session] = WatchedSession(summary)
        return self.sessions[summary.session]

    def _limit_images(self) -> None:
        while sum(each.size for each in self.sessions.values()) > ALL_BYTES:
            min((each for each in self.sessions.values() if each.images), key=lambda each: each.changed).drop_oldest()

    def in_words(self) -> Iterator[dict[str, Any]]:
        """Yield what the list of sessions shows."""
        return (each.in_words() for each in self.sessions.values())
