"""Cardiac and respiratory bins of readouts, and the readouts of every pair of bins.

All bins are computed on the raster of readouts (`physio.Raster`), for slots whose readout was lost, too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from recon.physio import PhysioError

logger = logging.getLogger(__name__)

NO_BIN = -1

# A spurious trigger splits a beat, and the shorter part is at most half of it. With heartbeats that vary by less than
# 20 % this finds every single spurious trigger; a real beat that comes earlier than this would cost every bin 40 %.
SHORTEST_BEAT = 0.6  # of the median beat
BINNED_PART_OF_BEAT = 0.9  # of the shortest beat
SLOPE_SMOOTHING = 0.2  # [s], standard deviation of the Gaussian: far below a breath, far above a TR


def without_double_triggers(triggers: np.ndarray) -> np.ndarray:
    """Leave out triggers that split a heartbeat.

    While a beat is shorter than 0.6 of the median beat, one of the two triggers around it goes: the one without which
    the beats next to it are closer to the median. So neither an echo of a beat nor a trigger that comes before its
    beat shrinks the shortest beat, which sets the length of all bins. A missed trigger needs no rule: later
    readouts of the long beat belong to no bin.
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
    """Mask of readouts that are kept when the first `pre` and the last `post` seconds are left out; 0 leaves out none.

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
