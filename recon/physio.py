"""Heartbeat and breathing: ECG and pilot-tone waveforms to triggers and bins on the raster of readouts.

Readouts are taken every TR. Their time stamps, as those of the waveforms, are ticks of 2.5 ms, which is too coarse for
a TR of a few milliseconds; so the raster is a straight line fitted through all of them, and a bin is first worked out
for every place ("slot") on the raster, whether its readout came in or was lost. `Raster.index` then picks the slots of
the readouts that there are:

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
NO_BIN = -1

# A spurious trigger splits a beat, and the shorter part is at most half of it. With heartbeats that vary by less than
# 20 % this finds every single spurious trigger; a real beat that comes earlier than this would cost every bin 40 %.
SHORTEST_BEAT = 0.6  # of the median beat
BINNED_PART_OF_BEAT = 0.9  # of the shortest beat
SLOPE_SMOOTHING = 0.2  # [s], standard deviation of the Gaussian: far below a breath, far above a TR
MINIMUM_COVERAGE = 0.5  # of the readouts' time that a waveform has to span
MAXIMUM_EMPTY_SLOTS = 100_000  # and 10 for each readout: minutes of pause, but no memory for what counters may claim


class PhysioError(ValueError):
    """The waveforms or readouts do not give what is asked of them; the text says what is missing."""


@dataclass(frozen=True)
class Raster:
    """Where and when readouts are."""

    start: float  # time of slot 0, the first readout [s]
    tr: float  # time between slots [s]
    index: np.ndarray  # slot of each readout, ascending [readouts]
    warn: Callable[[str], None] = logger.warning  # told what is odd about waveforms on this raster

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
    """Join the packets of one waveform, in whatever order they came.

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


def without_double_triggers(triggers: np.ndarray) -> np.ndarray:
    """Leave out triggers that split a heartbeat.

    While a beat is shorter than 0.6 of the median beat, one of the two triggers around it goes: the one without which
    the beats next to it are closer to the median. So neither an echo of a beat nor a trigger that comes before its
    beat shrinks the shortest beat, which sets the length of all bins. A missed trigger needs no rule: what follows in
    the long beat belongs to no bin.
    """
    triggers = np.unique(triggers)
    median = float(np.median(np.diff(triggers)))
    while triggers.size > 2 and (beats := np.diff(triggers)).min() < SHORTEST_BEAT * median:
        short = int(np.argmin(beats))
        candidates = (np.delete(triggers, short), np.delete(triggers, short + 1))
        near = slice(max(short - 2, 0), short + 2)
        triggers = min(candidates, key=lambda left: np.abs(np.diff(left)[near] - median).sum())
    return triggers


def cardiac_bins(triggers: np.ndarray, n_readouts: int, n_bins: int) -> np.ndarray:
    """Cardiac bin of every readout: n equal bins of whole readouts after each trigger.

    Together the bins last at most 90 % of the shortest beat, after `without_double_triggers`; later readouts of a
    longer beat belong to none.

    Parameters
    ----------
    triggers
        Slots of the heartbeats [triggers]; may lie outside the raster.
    n_readouts, n_bins
        Number of slots, number of bins.

    Returns
    -------
    Bin from 0 of each slot, -1 for none [n_readouts].

    Raises
    ------
    PhysioError
        Fewer than two triggers, or beats too short for so many bins.
    """
    triggers = np.unique(triggers)
    if n_bins < 1 or triggers.size < 2:
        raise PhysioError(f"{n_bins} cardiac bins from {triggers.size} triggers: at least 1 and 2 are needed")
    triggers = without_double_triggers(triggers)
    shortest = int(np.diff(triggers).min())
    width = int(BINNED_PART_OF_BEAT * shortest) // n_bins
    if width < 1:
        raise PhysioError(f"the shortest heartbeat has {shortest} readouts, too few for {n_bins} cardiac bins")
    beat = np.searchsorted(triggers, np.arange(n_readouts), side="right") - 1
    bins = (np.arange(n_readouts) - triggers[beat]) // width
    return np.where((beat >= 0) & (bins < n_bins), bins, NO_BIN)


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


def respiratory_bins(amplitude: np.ndarray, n_bins: int, discard: float, tr: float) -> np.ndarray:
    """Cyclic respiratory bin of every readout.

    Amplitudes between the quantiles discard/2 and 1 - discard/2 are divided evenly: with rising slope up through the
    first half of the bins, with falling slope back down through the second half (an odd bin goes to the rise; one bin
    takes all). The slope's sign is that of the derivative of the amplitude smoothed by a Gaussian of 0.2 s.

    Parameters
    ----------
    amplitude
        Respiratory amplitude of each slot, NaN where there is none [slots].
    n_bins, tr
        Number of bins; time between slots [s].
    discard
        Ratio of the readouts with extreme amplitudes that belong to no bin, half of it at each end; 0: none.

    Returns
    -------
    Bin from 0 of each slot, -1 for none [slots].

    Raises
    ------
    PhysioError
        Flat or missing amplitudes, no breathing in and out, or numbers out of range.
    """
    if n_bins < 1 or not 0 <= discard < 1:
        raise PhysioError(f"{n_bins} respiratory bins (needed: 1 or more), resp_discard {discard:g} (0 to below 1)")
    known = np.isfinite(amplitude)
    if not np.any(known):
        raise PhysioError("no readout has a respiratory amplitude")
    low, high = np.quantile(amplitude[known], [discard / 2, 1 - discard / 2])
    if not high > low:
        raise PhysioError(f"the respiration is flat: {low:g} but for the discarded part {discard:g}")
    rising = _slope(np.interp(np.arange(known.size), np.flatnonzero(known), amplitude[known]), tr) >= 0
    if n_bins > 1 and (np.all(rising[known]) or not np.any(rising[known])):
        raise PhysioError(f"the respiration only {'rises' if rising[known][0] else 'falls'}: not one breath to sort by")
    n_up, n_down = (n_bins + 1) // 2, n_bins // 2
    level = (np.where(known, amplitude, low) - low) / (high - low)
    up = np.clip(np.floor(level * n_up), 0, n_up - 1)
    down = n_bins - 1 - np.clip(np.floor(level * n_down), 0, n_down - 1)
    bins = np.where(rising | (n_bins == 1), up, down).astype(np.int64)
    return np.where(known & (level >= 0) & (level <= 1), bins, NO_BIN)


def _slope(values: np.ndarray, tr: float) -> np.ndarray:
    """Derivative of a smoothed waveform [slots], unscaled; odd continuation beyond the ends keeps the slope there."""
    from scipy.signal import fftconvolve

    reach = max(min(int(np.ceil(4 * SLOPE_SMOOTHING / tr)), values.size - 1), 1)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets * tr / SLOPE_SMOOTHING) ** 2)
    padded = np.pad(values, reach + 1, mode="reflect", reflect_type="odd")
    smooth = fftconvolve(padded, kernel, mode="valid")
    return (smooth[2:] - smooth[:-2]) / 2


def arm_discard(pre: float, post: float, tr: float, n_readouts: int) -> np.ndarray:
    """Which readouts are kept when the first `pre` and the last `post` seconds are left out; 0 leaves out none.

    Returns bool [n_readouts]; PhysioError when nothing would be left or a time is negative.
    """
    if not (pre >= 0 and post >= 0):
        raise PhysioError(f"arm_discard_pre and arm_discard_post are times from 0 on, not {pre:g} s and {post:g} s")
    first, behind = np.ceil(np.array([pre, post]) / tr - 1e-6)
    slots = np.arange(n_readouts)
    keep = (slots >= first) & (slots < n_readouts - behind)
    if not np.any(keep):
        raise PhysioError(f"without its first {pre:g} s and last {post:g} s nothing is left of {n_readouts * tr:.3f} s")
    return keep


@dataclass(frozen=True)
class BinTable:
    """Readouts of every pair of respiratory and cardiac bin."""

    readouts: np.ndarray  # index of each readout [respiratory, cardiac, arms]; any where the weight is 0
    weights: np.ndarray  # 1 for a readout of the bin, 0 for filling [respiratory, cardiac, arms], float32
    counts: np.ndarray  # how many readouts fell into each bin [respiratory, cardiac]


def bin_table(
    respiratory: np.ndarray, cardiac: np.ndarray, n_respiratory: int, n_cardiac: int, fill_small_bins: bool
) -> BinTable:
    """List the readouts of every bin pair, all pairs made equally long.

    Parameters
    ----------
    respiratory, cardiac
        Bin of each readout, -1 for none [readouts].
    n_respiratory, n_cardiac
        Numbers of bins.
    fill_small_bins
        True: fill up to the largest with readouts of weight 0. False: crop all to the first readouts of each, as many
        as the smallest has.

    Raises
    ------
    PhysioError
        No readout in any bin; or, without filling, an empty bin.
    """
    members = [
        [np.flatnonzero((respiratory == r) & (cardiac == c)) for c in range(n_cardiac)] for r in range(n_respiratory)
    ]
    counts = np.array([[bin_.size for bin_ in row] for row in members])
    empty = [f"(respiratory {r}, cardiac {c})" for r, c in np.argwhere(counts == 0)]
    named = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    if counts.max() == 0:
        raise PhysioError(f"none of {respiratory.size} readouts has both a respiratory and a cardiac bin")
    if empty and not fill_small_bins:
        raise PhysioError(f"no readout is in bin {named}: use fewer bins, a longer scan, or fill_small_bins = true")
    if empty:
        logger.warning("no readout is in bin %s", named)
    arms = int(counts.max() if fill_small_bins else counts.min())
    readouts = np.zeros((n_respiratory, n_cardiac, arms), dtype=np.int64)
    for r, c in np.ndindex(counts.shape):
        chosen = members[r][c][:arms]
        readouts[r, c, : chosen.size] = chosen
    weights = (np.arange(arms) < counts[..., np.newaxis]).astype(np.float32)
    return BinTable(readouts, weights, counts)
