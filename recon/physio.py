"""Heartbeat and breathing: triggers and respiratory amplitude from ECG and pilot-tone waveforms.

Readouts are taken every TR. Their time stamps, as those of the waveforms, are ticks of 2.5 ms, which is too coarse for
a TR of a few milliseconds; so the raster is a straight line fitted through all of them. Triggers and amplitudes, and
the bins that `physiobins` makes of them, belong to places ("slots") on the raster, whether their readout came in or was
lost. `Raster.index` then picks the slots of the readouts that there are:

    raster = readout_raster(time_stamps, scan_counters)
    cardiac = cardiac_bins(cardiac_triggers(waveforms, "ecg", raster), raster.size, n_cardiac)
    respiratory = respiratory_bins(respiration(waveforms, raster), n_respiratory, resp_discard, raster.tr)
    keep = arm_discard(pre, post, raster.tr, raster.size)
    table = bin_table(*(np.where(keep, bins, NO_BIN)[raster.index] for bins in (respiratory, cardiac)), ...)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mrdhelper import SECONDS_PER_TICK, ticks_to_seconds

logger = logging.getLogger(__name__)

ECG, PILOT_TONE = 0, 1025  # waveform_id
RESPIRATION_ROW, TRIGGER_ROW, DERIVATIVE_TRIGGER_ROW = 0, 2, 4  # of the pilot tone
ECG_TRIGGER_ROW = 4
ROWS = 5
PILOT_TONE_ZERO = 2**31  # the pilot tone's signed values are stored with this offset
TRIGGER_SOURCES = ("ecg", "pilottone", "pilottone_derivative")
MINIMUM_COVERAGE = 0.5  # of the readouts' time that a waveform has to span
MAXIMUM_EMPTY_SLOTS = 100_000  # and 10 for each readout: minutes of pause; false counters cannot take much memory


class PhysioError(ValueError):
    """The waveforms or readouts do not give what is asked of them; the text says what is missing."""


@dataclass(frozen=True)
class Raster:
    """Positions and times of readouts: equidistant slots, some of which may have no readout."""

    start: float  # time of slot 0, the first readout [s]
    tr: float  # time between slots [s]
    index: np.ndarray  # slot of each readout, ascending [readouts]
    warn: Callable[[str], None] = logger.warning  # called with a text about irregular waveforms or readouts

    @property
    def size(self) -> int:
        """Number of slots from the first readout to the last."""
        return int(self.index[-1]) + 1

    @property
    def times(self) -> np.ndarray:
        """Time of every slot [s], [slots]."""
        return self.start + self.tr * np.arange(self.size)

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """Slot nearest to each time [s]; may lie outside the raster."""
        return np.rint((times - self.start) / self.tr).astype(np.int64)

    def span(self) -> str:
        """Time span of the readouts, in words."""
        return f"the readouts last from {self.start:.3f} s to {self.start + self.tr * (self.size - 1):.3f} s"


@dataclass(frozen=True)
class Signal:
    """Waveform of one kind, its packets put in order and joined."""

    waveform_id: int
    times: np.ndarray  # time of every sample, ascending [s], [samples]
    rows: np.ndarray  # values as sent [5, samples]
    interval: float  # time between samples [s]

    def span(self) -> str:
        """Time span of the waveform, in words."""
        return f"the {_name(self.waveform_id)} lasts from {self.times[0]:.3f} s to {self.times[-1]:.3f} s"


def _name(waveform_id: int) -> str:
    """Kind of waveform, in words."""
    kind = {ECG: "ECG ", PILOT_TONE: "pilot-tone "}.get(waveform_id, "")
    return f"{kind}waveform (waveform_id {waveform_id})"


def readout_raster(
    time_stamps: np.ndarray,
    scan_counters: np.ndarray | None = None,
    tr: float | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> Raster:
    """Find the raster that readouts were taken on.

    The readout with number n is at start + n * TR, both from a least-squares line through all time stamps: single
    stamps are only good to a tick. Numbers come from the scan counters, so that a lost readout leaves its slot empty;
    where the scan paused (time stamps jump by more than two ticks too much), slots are left empty for the pause.

    Parameters
    ----------
    time_stamps
        `acquisition_time_stamp` of the imaging readouts [ticks of 2.5 ms], [readouts], in the order of acquisition.
    scan_counters
        Their `scan_counter` [readouts]; None or not ascending: consecutive readouts.
    tr
        Repetition time of the MRD header [s], if known: only compared, as headers round it.

    Raises
    ------
    PhysioError
        Fewer than two readouts, time stamps that do not ascend, or readouts scattered over an absurd time.
    """
    times = ticks_to_seconds(np.asarray(time_stamps, dtype=np.float64))
    if times.size < 2:
        raise PhysioError(f"a raster needs at least 2 readouts, there are {times.size}")
    steps = np.ones(times.size - 1, dtype=np.int64)
    if scan_counters is not None and np.all(np.diff(np.asarray(scan_counters, dtype=np.int64)) > 0):
        steps = np.diff(np.asarray(scan_counters, dtype=np.int64))
    index = np.concatenate(([0], np.cumsum(steps)))
    window = min(times.size - 1, 500)  # long enough that ticks do not matter, short enough that most have no pause
    guess = float(np.median((times[window:] - times[:-window]) / (index[window:] - index[:-window])))
    if not guess > 0 or np.any(np.diff(times) < 0):
        raise PhysioError("the readouts' time stamps do not ascend")
    if max(index[-1], (times[-1] - times[0]) / guess) > MAXIMUM_EMPTY_SLOTS + 10 * times.size:
        raise PhysioError(f"{times.size} readouts are spread over {index[-1] + 1} numbers, {times[-1] - times[0]:g} s")
    pause = np.diff(times) - steps * guess
    pause[np.abs(pause) <= 2 * SECONDS_PER_TICK] = 0
    if np.any(pause > 0):
        warn(f"the scan paused {np.count_nonzero(pause > 0)} times, for {pause.max():.3f} s at most")
    index = np.concatenate(([0], np.cumsum(np.maximum(steps + np.rint(pause / guess).astype(np.int64), 1))))
    if (lost := int(index[-1]) + 1 - index.size) and not np.any(pause > 0):
        warn(f"{lost} of {int(index[-1]) + 1} readouts are missing")
    fitted, start = np.polyfit(index, times, 1)
    if tr is not None and abs(fitted - tr) > 0.01 * tr:
        warn(f"TR is {tr:g} s by the header, but {fitted:g} s by the time stamps, which is used")
    return Raster(float(start), float(fitted), index, warn)


def collect(waveforms: Iterable[Any], waveform_id: int, warn: Callable[[str], None] = logger.warning) -> Signal:
    """Join the packets of one waveform, which may have come in any order.

    Packets that follow each other without a gap are on one raster, fitted to all their time stamps. Gaps stay gaps in
    the times; samples that an earlier packet covered already are dropped; both are logged.

    `waveforms` are `ismrmrd.Waveform` objects of any kind, `waveform_id` is `ECG` or `PILOT_TONE`. PhysioError when
    there is no such waveform, when it has too few rows, or no usable sampling time.
    """
    waveforms = list(waveforms)
    packets = [packet for packet in waveforms if packet.waveform_id == waveform_id and packet.data.size]
    packets.sort(key=lambda packet: (packet.time_stamp, packet.scan_counter))
    name = _name(waveform_id)
    if not packets:
        there = sorted({int(packet.waveform_id) for packet in waveforms})
        if not waveforms:
            raise PhysioError(f"there is no {name}: no waveforms were received; client.py -w sends those of the file")
        raise PhysioError(f"there is no {name}; the {len(waveforms)} packets received have the ids {there}")
    if (fewest := min(packet.data.shape[0] for packet in packets)) < ROWS:
        raise PhysioError(f"a {name} has {ROWS} rows, this has {fewest}")
    intervals = {round(1e-6 * float(packet.sample_time_us), 9) for packet in packets}
    interval = intervals.pop()
    if intervals or not 0 < interval < np.inf:
        raise PhysioError(f"the {name} needs one sample_time_us above 0, not {sorted({interval, *intervals})} s")

    tolerance = SECONDS_PER_TICK + interval
    pieces: list[np.ndarray] = []
    stamps: list[float] = []  # time stamp of each piece [s]
    firsts: list[int] = []  # its first sample, counted from the last gap
    for packet in packets:
        data, stamp = packet.data[:ROWS], float(ticks_to_seconds(packet.time_stamp))
        late = stamp - stamps[-1] - interval * pieces[-1].shape[1] if pieces else np.inf
        if late < -tolerance:
            doubled = min(int(np.rint(-late / interval)), data.shape[1])
            warn(f"{name}: {doubled} samples at {stamp:.3f} s came twice")
            data, stamp = data[:, doubled:], stamp + doubled * interval
            if not data.size:
                continue
        elif tolerance < late < np.inf:
            warn(f"{name}: nothing for {late:.3f} s from {stamp - late:.3f} s on")
        firsts.append(0 if late > tolerance else firsts[-1] + pieces[-1].shape[1])
        stamps.append(stamp)
        pieces.append(data)
    begins = [*np.flatnonzero(np.array(firsts) == 0), len(firsts)]
    times = [
        _times(np.array(firsts[a:b]), np.array(stamps[a:b]), interval, firsts[b - 1] + pieces[b - 1].shape[1])
        for a, b in pairwise(begins)
    ]
    return Signal(waveform_id, np.concatenate(times), np.hstack(pieces), interval)


def _times(firsts: np.ndarray, stamps: np.ndarray, interval: float, samples: int) -> np.ndarray:
    """Times of samples without gap [s], [samples], from the first sample and the time stamp of each packet."""
    offset = np.mean(stamps - firsts * interval)
    if firsts.size >= 8:  # enough to see by how much sample_time_us is rounded
        interval, offset = np.polyfit(firsts, stamps, 1)
    return offset + interval * np.arange(samples)


def _check_coverage(signal: Signal, raster: Raster) -> None:
    """Raise unless the waveform spans enough of the readouts' time."""
    times = raster.times
    covered = (times >= signal.times[0] - signal.interval) & (times <= signal.times[-1] + signal.interval)
    part = float(np.mean(covered))
    what = "do not overlap" if part == 0 else f"overlap for {100 * part:.0f} % of the readouts"
    if part < MINIMUM_COVERAGE:
        raise PhysioError(f"{signal.span()}, {raster.span()}: they {what}, needed is {100 * MINIMUM_COVERAGE:.0f} %")
    if part < 0.99:
        raster.warn(f"{signal.span()}, {raster.span()}: they {what}")


def _times_on_raster(signal: Signal, raster: Raster) -> np.ndarray:
    """Time of every sample [s], [samples].

    A pilot tone has one sample for each readout. If the numbers agree and so do the starts, within what ticks and one
    TR can do, sample n belongs to readout n; otherwise (readouts lost, waveform longer) time stamps decide.
    """
    starts_together = abs(signal.times[0] - raster.start) <= raster.tr + SECONDS_PER_TICK
    one_to_one = signal.waveform_id == PILOT_TONE and signal.times.size == raster.size and starts_together
    return raster.times if one_to_one else signal.times


def _trigger_slots(signal: Signal, raster: Raster, row: int, nothing: int) -> np.ndarray:
    """Slots where a row begins to differ from `nothing`; at most one before the raster and one behind it."""
    _check_coverage(signal, raster)
    on = signal.rows[row] != nothing
    slots = raster.nearest(_times_on_raster(signal, raster)[on & ~np.concatenate(([False], on[:-1]))])
    slots = slots[max(np.searchsorted(slots, 0) - 1, 0) : np.searchsorted(slots, raster.size) + 1]
    if slots.size < 2:
        raise PhysioError(
            f"row {row} of the {_name(signal.waveform_id)} has {slots.size} triggers (values other than {nothing}) "
            f"during the scan, at least 2 are needed; {signal.span()}, {raster.span()}"
        )
    return slots


def ecg_triggers(waveforms: Iterable[Any], raster: Raster) -> np.ndarray:
    """Heartbeats in the ECG: slots nearest in time to where row 4 becomes other than 0, [triggers]."""
    return _trigger_slots(collect(waveforms, ECG, raster.warn), raster, ECG_TRIGGER_ROW, 0)


def pilot_tone_triggers(
    waveforms: Iterable[Any], raster: Raster, derivative: bool = False, delay: float = 0.0
) -> np.ndarray:
    """Heartbeats in the pilot tone: slots where row 2, or 4 for the derivative, becomes other than 2^31, [triggers].

    They come `delay` [s] late and are moved back by it, which may lead to negative slots.
    """
    row = DERIVATIVE_TRIGGER_ROW if derivative else TRIGGER_ROW
    slots = _trigger_slots(collect(waveforms, PILOT_TONE, raster.warn), raster, row, PILOT_TONE_ZERO)
    return slots - int(np.rint(delay / raster.tr))


def cardiac_triggers(waveforms: Iterable[Any], source: str, raster: Raster, delay: float = 0.0) -> np.ndarray:
    """Heartbeats from the config's `trigger_source`; the delay [s] is that of the pilot tone, the ECG has none."""
    if source not in TRIGGER_SOURCES:
        raise PhysioError(f"trigger_source is one of {', '.join(TRIGGER_SOURCES)}, not {source!r}")
    if source == "ecg":
        return ecg_triggers(waveforms, raster)
    return pilot_tone_triggers(waveforms, raster, source == "pilottone_derivative", delay)


def respiration(waveforms: Iterable[Any], raster: Raster) -> np.ndarray:
    """Respiratory amplitude for every slot, from row 0 of the pilot tone; NaN where there is no sample, [slots]."""
    signal = collect(waveforms, PILOT_TONE, raster.warn)
    _check_coverage(signal, raster)
    times = _times_on_raster(signal, raster)
    after = np.clip(np.searchsorted(times, raster.times), 1, max(times.size - 1, 1)) % times.size
    nearest = after - (np.abs(times[after - 1] - raster.times) <= np.abs(times[after] - raster.times))
    amplitude = signal.rows[RESPIRATION_ROW, nearest].astype(np.float64) - PILOT_TONE_ZERO
    if np.ptp(amplitude) == 0:
        raise PhysioError(f"row {RESPIRATION_ROW} (respiration) of the {_name(PILOT_TONE)} is flat: {amplitude[0]:g}")
    return np.where(np.abs(times[nearest] - raster.times) <= signal.interval, amplitude, np.nan)
