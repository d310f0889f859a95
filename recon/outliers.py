"""Readouts that are no measurement: found here, once for all spiral reconstructions, each of which leaves them out.

Every arm of a spiral passes the centre of k-space, so that readouts of a slice that follow one another have nearly the
same norm (lines of a Cartesian scan do not: this is not for them). A readout is left out when

- its samples are not finite;
- all of them are zero, as when a readout that was lost is filled up: they would say that nothing is there;
- it is a spike, or a fault of the receiver: its norm is more than `BRIGHT` times the median of the `HISTORY` good ones
  before it in its slice, and the next ones are as before.

Brightness that stays is the signal's own (a pause, another gain): `TOGETHER` bright readouts one after the other that
agree are good, and the next ones are compared with them; so are those that make up most of the last ones, with darker
ones among them. Brightness that comes again and again is the signal's own, too (a trigger, an inversion): readouts up
to `RECURRING` times as bright as the others are good from the fifth on that are alike. Echoes, sets and partitions are
judged by themselves. Only a bright readout waits for the next ones, and the first ones, until there are `TOGETHER` of
them to compare; all others go on at once. A readout that is left out keeps its place. Dark ones are left alone: null
points and recovery make them, and they spoil no more than one missing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from statistics import median, median_low

import numpy as np
from numpy.typing import NDArray

from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

# Arms of simulated chests differ by 15 %, of a simulated brain by 8 %. One readout this much too bright among 55 raises
# the error of a view-sharing frame from 0.05 to 0.08.
BRIGHT = 3.0
HISTORY = 11
TOGETHER = 5  # up to two spikes among the first ones are found
RECURRING = 20.0  # brighter than a signal becomes that has had time to recover
RECENT = 300  # readouts within which it has to come again

NOT_FINITE, ZERO, SPIKE = "not finite", "all zero", "far brighter than their neighbours"


class UnusableScanError(ValueError):
    """No readout of the scan is a measurement; the text says how many of which kind came."""


class OutlierFilter:
    """Marks the readouts of a scan that are no measurement, counts them, and tells the client.

    Parameters
    ----------
    warn
        Called with a text for the client: at the first readout that is left out, and with their number at the end;
        at the first time that the brightness changes and stays.
    by_brightness
        Compare the norms of readouts; False where not all of them pass the centre of k-space.
    """

    def __init__(self, warn: Callable[[str], None], by_brightness: bool = True) -> None:
        self._warn = warn
        self._by_brightness = by_brightness
        self._levels: dict[tuple[int, ...], _Level] = {}
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()

    def marked(self, readouts: Iterable[SpiralReadout]) -> Iterator[SpiralReadout]:
        """Yield all readouts, in the order of each slice; those left out are not `usable`, and hold zeros.

        Raises
        ------
        UnusableScanError
            There were readouts, but all of them are left out. Raised behind the last one.
        """
        for readout in readouts:
            idx = readout.head.idx
            alike = (idx.slice, idx.contrast, idx.set, idx.kspace_encode_step_2)
            if alike not in self._levels:
                self._levels[alike] = _Level(
                    self._leave_out, self._report_change, self._report_recurrence, self._by_brightness
                )
            yield from self._levels[alike].add(readout)
        for level in self._levels.values():
            yield from level.finish()
        count = sum(level.count for level in self._levels.values())
        if left_out := self._counts.total():
            kinds = ", ".join(f"{number} {kind}" for kind, number in self._counts.most_common())
            if left_out == count:
                raise UnusableScanError(f"none of the {count} imaging readouts can be used: {kinds}")
            self._warn(f"{left_out} of {count} imaging readouts left out in all: {kinds}")

    def _leave_out(self, readout: SpiralReadout, kind: str, what: str) -> None:
        self._counts[kind] += 1
        self._tell("left out", f"readout {readout.head.scan_counter} is left out: {what}")

    def _report_change(self, readout: SpiralReadout, factor: float) -> None:
        times = f"{factor:.0f} times as bright as those before"
        self._tell("change", f"readouts from scan counter {readout.head.scan_counter} on are {times}: they are kept")

    def _report_recurrence(self, readout: SpiralReadout, factor: float) -> None:
        times = f"readouts {factor:.0f} times as bright as the others come again and again"
        self._tell("recurrence", f"{times}: from scan counter {readout.head.scan_counter} on they are kept")

    def _tell(self, kind: str, text: str) -> None:
        """Tell the client of the first of a kind, the log of all."""
        if kind in self._told:
            logger.info("%s", text)
        else:
            self._told.add(kind)
            self._warn(f"{text}; the log lists any further")


class _Level:
    """Brightness of the good readouts of one slice, echo, set and partition, by which the next ones are judged.

    Parameters
    ----------
    leave_out
        Called with each readout that is left out, the kind of its fault, and the fault in words.
    report_change, report_recurrence
        Called with the first of the readouts that are brighter from now on, or are kept since they come again and
        again, and by which factor.
    by_brightness
        Compare norms.
    """

    def __init__(
        self,
        leave_out: Callable[[SpiralReadout, str, str], None],
        report_change: Callable[[SpiralReadout, float], None],
        report_recurrence: Callable[[SpiralReadout, float], None],
        by_brightness: bool,
    ) -> None:
        self._by_brightness = by_brightness
        self._leave_out, self._report_change, self._report_recurrence = leave_out, report_change, report_recurrence
        self.count = 0
        self._judged = 0
        self._norms: deque[float] = deque(maxlen=HISTORY)  # of the last good readouts
        self._spikes: deque[tuple[int, float]] = deque()  # number and norm of those left out as such, lately
        self._waiting: list[tuple[SpiralReadout, float]] = []  # with their norms; the first one is sound

    def add(self, readout: SpiralReadout) -> Iterator[SpiralReadout]:
        """Take the next readout; yield those that are judged now, in their order."""
        self.count += 1
        norm = norm_of(readout.samples)
        if not is_sound(norm):
            readout = without_samples(readout)
        self._waiting.append((readout, norm))
        bright = [each for _, each in self._waiting if is_sound(each)]
        if not bright or not self._by_brightness:
            yield from self._judge(1, math.inf)
        elif self._norms and is_sound(norm) and norm <= BRIGHT * (level := median(self._norms)):
            yield from self._judge(len(self._waiting), level)
        elif len(bright) == TOGETHER:
            if not self._norms:
                yield from self._judge(len(self._waiting), median_low(bright))
            elif max(bright) <= BRIGHT * min(bright):
                self._report_change(self._waiting[0][0], median(bright) / median(self._norms))
                self._norms.clear()
                yield from self._judge(len(self._waiting), max(bright))
            else:  # several spikes: the oldest is none of a new level
                sound = [n for n, (_, each) in enumerate(self._waiting) if is_sound(each)]
                yield from self._judge(sound[1], median(self._norms))

    def finish(self) -> Iterator[SpiralReadout]:
        """Yield those that still wait."""
        if self._waiting:
            level = median(self._norms or [median_low(each for _, each in self._waiting if is_sound(each))])
            yield from self._judge(len(self._waiting), level)

    def _judge(self, count: int, level: float) -> Iterator[SpiralReadout]:
        """Yield the oldest of those that wait, and leave out those far above the level."""
        judged, self._waiting = self._waiting[:count], self._waiting[count:]
        for readout, norm in judged:
            self._judged += 1
            if not math.isfinite(norm):
                self._leave_out(readout, NOT_FINITE, "its samples are not finite")
            elif norm == 0:
                self._leave_out(readout, ZERO, "all its samples are zero")
            elif norm > BRIGHT * level and not self._is_signal(readout, norm, level):
                self._spikes.append((self._judged, norm))
                self._leave_out(readout, SPIKE, f"it is {norm / level:.0f} times as bright as its neighbours")
                readout = without_samples(readout)
            else:
                self._norms.append(norm)
            yield readout

    def _is_signal(self, readout: SpiralReadout, norm: float, level: float) -> bool:
        """Tell whether a bright readout is like so many others that were left out that all of them are the signal's."""
        while self._spikes and self._spikes[0][0] <= self._judged - RECENT:
            self._spikes.popleft()
        alike = [(number, each) for number, each in self._spikes if norm / BRIGHT <= each <= norm * BRIGHT]
        latest = [each for number, each in alike if number > self._judged - HISTORY]
        if len(latest) + 1 > HISTORY / 2:
            self._report_change(readout, norm / level)
            self._norms.clear()
            self._norms.extend(latest)
            self._spikes.clear()
            return True
        if len(alike) + 1 >= TOGETHER and norm <= RECURRING * level:
            self._report_recurrence(readout, norm / level)
            return True
        return False


def norm_of(samples: NDArray[np.complex64]) -> float:
    """Root of the sum of squares over coils and samples; not finite if one of them is not.

    Not by `numpy.linalg.norm`: for so few samples, the threads of its library wait for each other far longer than they
    compute. In double precision, as the squares of samples may exceed the range of single precision.
    """
    return math.sqrt(np.square(samples.view(np.float32), dtype=np.float64).sum())


def is_sound(norm: float) -> bool:
    """Return whether a readout of this norm holds a signal."""
    return 0 < norm < math.inf


def without_samples(readout: SpiralReadout) -> SpiralReadout:
    """Return a readout in its place, with zeros that take no memory."""
    return dataclasses.replace(readout, samples=np.broadcast_to(np.complex64(0), readout.samples.shape), usable=False)
