"""The pattern of a Cartesian scan's missing lines: a lattice in the plane of the two phase encodings."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR_CENTRE = 2  # lines from the centre, of which one has to be there
MAX_FACTOR = 16  # larger lattices fit lines that lie there by chance


class IrregularSamplingError(ValueError):
    """The lines do not lie on a lattice, so that GRAPPA's kernels do not fit; the text says what was found."""


class Lattice(NamedTuple):
    """Lines at partition `first_partition` + i `partition_step` and row `first_row` + i `shift` + j `row_step`.

    i and j are any integers. Any regular pattern can be written in this way, also CAIPIRINHA along partitions (Breuer
    et al., Magn Reson Med 2006;55:549).
    """

    partition_step: int = 1
    row_step: int = 1
    shift: int = 0
    first_partition: int = 0
    first_row: int = 0

    @property
    def factor(self) -> int:
        """Acceleration: sites of k-space for each line of the lattice."""
        return self.partition_step * self.row_step

    @property
    def steps(self) -> tuple[int, int, int]:
        """Partition step, row step and shift: what two lattices share that differ by their first line only."""
        return self.partition_step, self.row_step, self.shift

    def places(self, partitions: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.integer]:
        """Number of the site within its cell: 0 on the lattice, up to `factor` - 1 elsewhere."""
        cell, partition = np.divmod(partitions - self.first_partition, self.partition_step)
        return partition * self.row_step + (rows - self.first_row - self.shift * cell) % self.row_step


def find_lattice(sampled: NDArray[np.bool_]) -> Lattice:
    """Find the lattice that a scan's lines lie on.

    It is the finest one of whose lines none is missing within the acquired region. Lines beside it have to be a block
    without gaps, the calibration lines.

    Parameters
    ----------
    sampled
        [partition, row], where there is a line.

    Raises
    ------
    IrregularSamplingError
        There is no such lattice with at most `MAX_FACTOR` sites for each line, or no line at all.
    """
    return _find_lattice(sampled.shape, np.packbits(sampled).tobytes())


@functools.lru_cache(maxsize=64)
def _find_lattice(shape: tuple[int, int], packed: bytes) -> Lattice:
    """Find the lattice of lines that are packed as bits: several steps ask for it, for each repetition."""
    sampled = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(bool)
    region = acquired_region(sampled)
    least = region.sum() / (2 * np.count_nonzero(sampled)) if sampled.any() else math.inf  # edges cut lattices off
    sites = np.indices(sampled.shape)
    for factor in range(max(math.ceil(min(least, MAX_FACTOR + 1)), 1), MAX_FACTOR + 1):
        for partition_step in (step for step in range(1, factor + 1) if factor % step == 0):
            row_step = factor // partition_step
            for shift in range(row_step if sampled.shape[0] > partition_step else 1):
                lattice = Lattice(partition_step, row_step, shift)
                places = lattice.places(sites[0], sites[1])
                present, missing = (
                    np.bincount(places[sites], minlength=factor) for sites in (sampled, region & ~sampled)
                )
                for place in np.flatnonzero((present > 0) & (missing == 0)):
                    extra = sampled & (places != place)
                    if not (acquired_region(extra) & ~sampled).any():
                        partition, row = divmod(int(place), row_step)
                        return lattice._replace(first_partition=partition, first_row=row)
    raise IrregularSamplingError(
        f"the {np.count_nonzero(sampled)} lines of {region.sum()} do not lie at regular distances with a block of "
        "calibration lines: GRAPPA needs that, 'sense' and 'l1wavelet' do not"
    )


def acquired_region(sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the sites [partition, row] within the convex hull of the lines: beyond it nothing was acquired.

    So partial Fourier and elliptical scans leave sites empty outside, acceleration inside.
    """
    region = np.zeros_like(sampled)
    partitions = np.flatnonzero(sampled.any(axis=1))
    if len(partitions) == 0:
        return region
    first = sampled[partitions].argmax(axis=1)
    last = sampled.shape[1] - 1 - sampled[partitions, ::-1].argmax(axis=1)
    every = np.arange(partitions[0], partitions[-1] + 1)
    low, high = -_upper_hull(partitions, -first, every), _upper_hull(partitions, last, every)
    if len(partitions) > 1 and (high - low < 1e-6).all():  # all on one line, which may be oblique
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    rows = np.arange(sampled.shape[1])
    region[every] = (rows >= low[:, np.newaxis] - 1e-6) & (rows <= high[:, np.newaxis] + 1e-6)
    return region


def _upper_hull(places: NDArray[np.integer], values: NDArray[np.integer], every: NDArray[np.integer]) -> NDArray[Any]:
    """Upper edge, at every place, of the convex hull of points (place, value); places rise."""
    hull: list[tuple[int, int]] = []
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        while len(hull) > 1 and (
            (hull[-1][0] - hull[-2][0]) * (value - hull[-2][1]) >= (hull[-1][1] - hull[-2][1]) * (place - hull[-2][0])
        ):
            hull.pop()
        hull.append((place, value))
    return np.interp(every, [place for place, _ in hull], [value for _, value in hull])


def calibration_block(sampled: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the largest block (partitions, rows) of neighbouring lines round the centre of k-space, for calibration.

    It grows from the line nearest to the centre N // 2 by one line on a side in turn, as long as all are acquired. It
    is empty when none near the centre was.
    """
    centre = [n // 2 for n in sampled.shape]
    near = [place for place in np.argwhere(sampled) if np.abs(place - centre).max() <= NEAR_CENTRE]
    if not near:
        return slice(0, 0), slice(0, 0)
    low = [int(index) for index in min(near, key=lambda place: np.abs(place - centre).sum())]
    high = [index + 1 for index in low]
    grown = True
    while grown:
        grown = False
        for axis, step in itertools.product((1, 0), (-1, 1)):
            begin, end = low.copy(), high.copy()
            (begin if step < 0 else end)[axis] += step
            inside = min(begin) >= 0 and end[0] <= sampled.shape[0] and end[1] <= sampled.shape[1]
            if inside and sampled[begin[0] : end[0], begin[1] : end[1]].all():
                low, high, grown = begin, end, True
    return slice(low[0], high[0]), slice(low[1], high[1])
