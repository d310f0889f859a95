"""One model of all field errors: a short sum of products of a function of time and one of place.

The signal of an object rho in a field that is off by df(r) [Hz], and by the concomitant fields of the gradients, is

    s(t) = integral rho(r) exp(-2 pi i (k(t).r + df(r) t + phi_c(r, t))) dr.

This is the sign convention everywhere here: df is positive where spins precess as if k.r grew, and a field map of the
other sign makes images worse than none. t is the time since the sample nearest to k = 0; before it, it is negative. (A
constant offset of t is a phase of the image, no blur.)

The phase of both is a sum of products, `Phase`. Its exponential is approximated by L terms,

    exp(-2 pi i (df(r) t + phi_c(r, t)))  ~  sum over l of b_l(t) c_l(r),

so that imaging is L non-uniform Fourier transforms of images weighted by c_l, and the adjoint L griddings of samples
weighted by conj(b_l). The best terms are the singular vectors of the matrix of all times and places (Fessler). Times
and places whose phases are nearly the same are represented by one: that is the histogram of the field map of the
literature, but for all functions at once. A place counts as those do that it represents, but no less than the mean, so
that the few pixels of an extreme field are approximated as well. The mean frequency is taken out beforehand: where
nothing else is left, as in an axial plane, one term is exact. Beside it the b_l are real: real and imaginary part of
the matrix are approximated together. That takes at most one term more, and the products conj(b_l) b_m are real, so that
normal operators take half the memory and half the work (`solvers.toeplitz`).

References: Fessler et al., IEEE Trans Signal Process 2005;53:3393, doi 10.1109/TSP.2005.853152 (terms by SVD over a
histogram); Sutton et al., IEEE Trans Med Imaging 2003;22:178, doi 10.1109/TMI.2002.808360; Lee, Nayak et al., Magn
Reson Med 2022;88:691, doi 10.1002/mrm.29232 (both phases together).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CELL = 0.5  # of phase, that times or places may differ by and are represented by one, over the tolerance [cycles]
CELLS = 256  # of times, and of places, at most: more only makes them finer
SAMPLES = 2**16  # that representatives are looked for among
NODES_PER_TERM = 3  # times and places that carry the terms over to all others


@dataclass(frozen=True, eq=False)
class Phase:
    """The phase of all pixels at all samples, sum over features f of times_f(t) * places_f(r) [cycles].

    Attributes
    ----------
    times
        [arm, sample, feature]; one arm stands for all if they do not differ.
    places
        [feature, row, column].
    """

    times: NDArray[np.float64]
    places: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FieldTerms:
    """The terms of one image, in the order of what they contribute.

    Attributes
    ----------
    spatial
        c_l, complex64 [term, row, column].
    errors
        Root mean square of what so many terms leave of the exponential, whose magnitude is 1, over times and places
        [number of terms].
    """

    spatial: NDArray[np.complex64]
    errors: NDArray[np.float64]
    _mean: NDArray[np.float64]
    _nodes: NDArray[np.float64]
    _mixing: NDArray[np.complex128]

    def __len__(self) -> int:
        return len(self.spatial)

    @property
    def error(self) -> float:
        """That of `errors` for these terms."""
        return float(self.errors[len(self)])

    def temporal(self, times: NDArray[np.float64]) -> NDArray[np.complex64]:
        """b_l of arms, complex64 [arm, term, sample], from their `Phase.times`: real, but for the mean frequency."""
        amplitudes = ((exponential(arm, self._nodes) @ self._mixing).real.T for arm in times)
        return np.stack(
            [
                (amplitude * exponential(arm, self._mean[np.newaxis])[:, 0]).astype(np.complex64)
                for amplitude, arm in zip(amplitudes, times, strict=True)
            ]
        )

    def first(self, count: int) -> FieldTerms:
        """The first `count` terms: the best so few."""
        return replace(self, spatial=self.spatial[:count], _mixing=self._mixing[:, :count])


def exponential(times: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return exp(-2 pi i times.places) [time, place] of times [time, feature] and places [place, feature]."""
    return np.exp(-2j * np.pi * (times @ places.T))


def find_terms(phase: Phase, tolerance: float) -> FieldTerms | None:
    """Find the fewest terms that leave no more than a tolerance.

    Parameters
    ----------
    phase
        Of the image.
    tolerance
        Root mean square error of the exponential over times and places.

    Returns
    -------
    The terms; None where the exponential differs from 1 by less than the tolerance without any.

    Raises
    ------
    ValueError
        The phase is not finite.
    """
    features, shape = len(phase.places), phase.places.shape[1:]
    places, times = phase.places.reshape(features, -1).T, phase.times.reshape(-1, features)
    if not (np.isfinite(places).all() and np.isfinite(times).all()):
        raise ValueError("a field map, or a trajectory, has values that are not finite")
    reach = np.abs(times).max(axis=0) @ np.abs(places).max(axis=0)
    if 2 * np.pi * reach < tolerance:
        return None
    mean = (places.max(axis=0) + places.min(axis=0)) / 2
    places = places - mean
    rows = times[:: max(len(times) // SAMPLES, 1)]
    chosen, counts = _representatives(rows, np.ptp(places, axis=0), CELL * tolerance)
    some_times, of_times = rows[chosen], np.sqrt(counts / counts.sum())[:, np.newaxis]
    chosen, counts = _representatives(places, np.ptp(rows, axis=0), CELL * tolerance)
    some_places, of_places = places[chosen], np.sqrt(np.maximum(counts, counts.mean()) / counts.sum())
    exact = exponential(some_times, some_places)
    weighted = of_times * exact * of_places
    left, sizes, right = np.linalg.svd(np.concatenate([weighted.real, weighted.imag], axis=1), full_matrices=False)
    right = right[:, : len(some_places)] + 1j * right[:, len(some_places) :]
    rest = np.sqrt(np.append(np.cumsum(sizes[::-1] ** 2)[::-1], 0) / (sizes**2).sum())
    count = max(int(np.argmax(rest <= tolerance)), 1)
    nodes, mixing = _nodes(exact, left[:, :count] / of_times)
    time_nodes, place_mixing = _nodes(exact.T, (sizes[:count, np.newaxis] * right[:count] / of_places).T)
    spatial = np.empty((count, len(places)), np.complex64)
    for begin in range(0, len(places), SAMPLES):
        part = slice(begin, begin + SAMPLES)
        spatial[:, part] = (exponential(places[part], some_times[time_nodes]) @ place_mixing).T
    return FieldTerms(spatial.reshape(count, *shape), rest, mean, some_places[nodes], mixing)


def _representatives(
    points: NDArray[np.float64], reach: NDArray[np.float64], cell: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose one of the points [point, feature] whose phases are nearly the same: their indices, what each counts.

    `reach` is that of what the features are multiplied by [feature]; phases differ by `cell` [cycles], or more where
    there would be more than `CELLS`.
    """
    cycles = points * reach
    cycles = cycles - cycles.min(axis=0)
    span = cycles.max(axis=0)
    while True:
        # No feature is left to one value alone, however small it is: five are a smooth curve.
        sizes = np.minimum(cell, np.where(span > 0, span / 4, 1))
        _, first, counts = np.unique(
            np.round(cycles / sizes).astype(np.int64), axis=0, return_index=True, return_counts=True
        )
        if len(first) <= CELLS:
            return first, counts
        cell *= max((len(first) / CELLS) ** (1 / points.shape[1]), 1.2)


def _nodes(exact: NDArray[np.complex128], wanted: NDArray[np.complex128]) -> tuple[NDArray, NDArray]:
    """Find a few columns of `exact` [row, column] of which `wanted` [row, term] are sums.

    Returns
    -------
    columns : [node]
    mixing : [node, term]
        exact[:, columns] @ mixing is wanted.
    """
    from scipy.linalg import qr

    columns = qr(exact, mode="r", pivoting=True)[1][: NODES_PER_TERM * wanted.shape[1]]
    return columns, np.linalg.lstsq(exact[:, columns], wanted, rcond=1e-6)[0]
