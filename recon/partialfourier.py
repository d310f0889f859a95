"""Partial Fourier: lines, partitions or samples that were left out on one side of k-space, from those on the other.

Reference
---------
Haacke, Lindskog, Lin: A fast, iterative, partial-Fourier technique capable of local phase recovery. J Magn Reson
1991;92:126: projections onto convex sets (POCS).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.fourier import centred_fft, centred_ifft

logger = logging.getLogger(__name__)

ITERATIONS = 20
CHANGE = 1e-3  # of k-space from one iteration to the next, relative to all of it, from which on it is as good as done
TRANSITION = 4  # acquired lines beside the missing ones, over which measured values give way to estimated ones
FEWEST = 4  # points on either side of the echo's peak that the phase can be told from


def extent_of(acquired: NDArray[np.bool_]) -> tuple[int, int]:
    """First acquired index of an axis and the one after the last, from whether each was acquired; (0, 0) for none."""
    places = np.flatnonzero(acquired)
    return (int(places[0]), int(places[-1]) + 1) if places.size else (0, 0)


def is_partial(points: int, extent: tuple[int, int]) -> bool:
    """True if one side of k-space reaches farther than the other, by more than an even size does."""
    begin, end = extent
    return begin < end and abs((points // 2 - begin) - (end - 1 - points // 2)) > 1


def pocs(
    kspace: NDArray[np.complex64],
    extents: Sequence[tuple[int, int]],
    warn: Callable[[str], None] = logger.warning,
) -> NDArray[np.complex64]:
    """Fill what was left out on one side of k-space.

    The phase of each coil's image is taken from the part that lies symmetrically about the echo's peak, Hann-windowed.
    In turn the image is replaced by the nearest one that has this phase, and k-space by what was measured, with a
    smooth transition. Points without a measured counterpart on the other side of the peak stay zero: nothing tells
    their phase. Coils are worked on one by one: this holds where the object is larger than the field of view, too.

    Parameters
    ----------
    kspace
        [coil, partition, row, sample], k = 0 at index N // 2, zero where nothing was acquired. Lines missing between
        acquired ones have to be filled before.
    extents
        Of partition, row and sample: first acquired index, and the one after the last.
    warn
        Called with a text when an axis has too few points beyond the peak to tell the phase from; its zeros stay.

    Returns
    -------
    complex64 [coil, partition, row, sample].

    Raises
    ------
    ValueError
        When an extent does not lie in its axis.
    """
    partial = []
    for axis, (name, (begin, end)) in enumerate(zip(("partition", "row", "sample"), extents, strict=True), start=1):
        points = kspace.shape[axis]
        if not 0 <= begin < end <= points:
            raise ValueError(
                f"the acquired extent of the {name} axis is {begin} to {end}; expected some of 0 to {points}"
            )
        if not is_partial(points, (begin, end)):
            continue
        peak = _peak(kspace, axis)
        beyond = min(peak - begin, end - 1 - peak)
        if beyond < FEWEST:
            warn(
                f"partial Fourier along the {name} axis: {beyond} of {points} points on the other side of the echo's "
                f"peak were acquired, at least {FEWEST} are needed to tell the phase: zeros fill the rest, expect a "
                "blurred image"
            )
        else:
            partial.append((axis, begin, end, peak, beyond))
    if not partial:
        return kspace

    weight = window = fillable = np.ones((1, 1, 1), np.float32)
    for axis, begin, end, peak, beyond in partial:
        index = np.arange(kspace.shape[axis])
        acquired = (index >= begin) & (index < end)
        mirrored = np.isin(2 * peak - index, index[acquired])
        weight = weight * _along(axis, _edges(acquired, min(TRANSITION, beyond // 2)))
        window = window * _along(axis, np.where(np.abs(index - peak) <= beyond, _hann(index - peak, beyond), 0))
        fillable = fillable * _along(axis, acquired | mirrored)
    axes = [axis - 1 for axis, *_ in partial]
    return np.stack([_fill(each, axes, weight, window, fillable) for each in kspace])


def _fill(
    kspace: NDArray[np.complex64],
    axes: Sequence[int],
    weight: NDArray[np.float32],
    window: NDArray[np.float32],
    fillable: NDArray[np.float32],
) -> NDArray[np.complex64]:
    """Fill the k-space [partition, row, sample] of one coil along some axes."""
    others = [axis for axis in range(3) if axis not in axes]
    measured = _transform(centred_ifft, kspace, others)  # axes that are complete need only be transformed once
    low = _transform(centred_ifft, measured * window, axes)
    phase = low / np.maximum(np.abs(low), np.finfo(np.float32).tiny)
    filled = measured
    for _ in range(ITERATIONS):
        magnitude = np.maximum((phase.conj() * _transform(centred_ifft, filled, axes)).real, 0)
        estimate = _transform(centred_fft, phase * magnitude, axes)
        new = weight * measured + (fillable - weight) * estimate
        change = np.linalg.norm(new - filled)
        filled = new
        if change <= CHANGE * np.linalg.norm(new):
            break
    return _transform(centred_fft, filled, others).astype(np.complex64)


def _transform(function: Callable[[NDArray[Any], int], NDArray[Any]], data: NDArray[Any], axes: Any) -> NDArray[Any]:
    for axis in axes:
        data = function(data, axis)
    return data


def _peak(kspace: NDArray[Any], axis: int) -> int:
    """Index of most energy along an axis: a linear phase of the image moves the echo away from k = 0."""
    return int(np.linalg.norm(np.moveaxis(kspace, axis, 0).reshape(kspace.shape[axis], -1), axis=1).argmax())


def _along(axis: int, values: NDArray[Any]) -> NDArray[np.float32]:
    """Values of one axis of [coil, partition, row, sample], as [partition, row, sample]."""
    return values.astype(np.float32).reshape([-1 if axis == each else 1 for each in (1, 2, 3)])


def _hann(position: NDArray[np.int64], last: int) -> NDArray[np.float64]:
    return np.cos(np.pi / 2 * position / (last + 1)) ** 2


def _edges(acquired: NDArray[np.bool_], width: int) -> NDArray[np.float64]:
    """1 for acquired points and 0 for others, with a smooth transition in the acquired ones beside missing ones."""
    weight = acquired.astype(float)
    begin, end = extent_of(acquired)
    slope = np.sin(np.pi / 2 * np.arange(1, width + 1) / (width + 1)) ** 2
    if begin > 0:
        weight[begin : begin + width] = slope
    if end < len(acquired):
        weight[end - width : end] = slope[::-1]
    return weight
