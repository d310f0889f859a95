"""Alternating directions with one preconditioned step each: the algorithm of the temporally constrained reconstruction.

Minimises over frames x

    1/2 ||E x - y||^2  +  sum over d of weight_d ||D_d x||_1

knowing E^H E x, how to approximate its inverse in k-space, and the differences D_d. Each d has a copy z_d of D_d x and
multipliers u_d; both are kept in one array v_d = u_d + the latest D_d x, because z_d = soft(v_d), its soft threshold
at weight_d / penalty_d, and u_d = v_d - z_d. One iteration:

1. v_d <- v_d + a (D_d x - soft(v_d)),      with over-relaxation a,
2. r = E^H (y - E x) + sum penalty_d D_d^H (2 soft(v_d) - v_d - D_d x), the descent direction for x, z and u held fixed,
3. s = P r, with P the inverse of "diagonal of E^H E in k-space + sum penalty_d D_d^H D_d": both are diagonal after
   Fourier transforms of the frames and the transform of the series of frames to the eigenvectors of D_d^H D_d,
4. x <- x + t s, with the t that minimises the objective along s.

Only step 4 needs E^H E, once, for s: that is most of the time. The gradient and the data term follow from it without
another use of the data. Everything else works pixel by pixel in time, on blocks of pixels that stay in a cache.

References: Boyd et al., Found Trends Mach Learn 2011;3:1, doi 10.1561/2200000016 (ADMM, over-relaxation); Ramani,
Fessler, IEEE Trans Med Imaging 2011;30:694, doi 10.1109/TMI.2010.2093536 (ADMM for coil arrays, inexact and
preconditioned).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon.arrays import array_module
from solvers.linops import Difference, HeldDifference
from solvers.team import Team
from solvers.transforms import open_transform

RELAXATION = 1.7
SOLVED = 1e-14  # of the first squared residual, preconditioned: what is left of it in single precision is rounding
BLOCK = 2**14  # values of one array that a thread works on at once on the CPU: 128 KiB, for about five arrays
GPU_BLOCK = 2**24
SMALLEST_BLOCK = 64  # pixels; neighbours in memory come together anyway


@dataclass(frozen=True)
class Term:
    """One of the terms weight ||D x||_1.

    Attributes
    ----------
    difference
        D.
    weight
        Its weight.
    penalty
        Of the distance between D x and its copy: how fast the two approach each other.
    """

    difference: Difference | HeldDifference
    weight: float
    penalty: float


def soft(values: Any, threshold: float) -> Any:
    """Soft threshold: reduce magnitudes of complex values by `threshold`; those below it become zero."""
    xp = array_module(values)
    magnitude, smallest = xp.abs(values), xp.float32(np.finfo(np.float32).tiny)  # that spares a division by zero
    return values * (xp.maximum(magnitude - xp.float32(threshold), 0) / xp.maximum(magnitude, smallest))


def inner(one: Any, other: Any) -> float:
    """Real part of the inner product."""
    return float(array_module(one).vdot(one, other).real)


class ConjugateGradients:
    """Minimises 1/2 ||E x - y||^2 alone, by preconditioned conjugate gradients.

    Parameters
    ----------
    normal
        Writes E^H E x to its second argument, both [frame, row, column].
    invert
        P.
    images
        Where to begin [frame, row, column]; changed in place.
    gradient
        E^H (y - E x) for them; likewise.
    data_term
        1/2 ||E x - y||^2 for them.

    Attributes
    ----------
    objective
        Of the images as they are.
    """

    def __init__(
        self, normal: Callable[[Any, Any], None], invert: Callable[[Any], float], images: Any, gradient: Any,
        data_term: float,
    ) -> None:  # fmt: skip
        self._normal, self._invert, self._images, self._gradient = normal, invert, images, gradient
        self._first = self._slope = 0.0
        self._direction = array_module(images).zeros_like(images)
        self.objective = data_term

    def update(self) -> None:
        """Do one iteration."""
        step = self._gradient.copy()
        slope = self._invert(step)
        self._first = self._first or slope
        if slope <= SOLVED * self._first:
            return
        if self._slope:
            step += np.float32(slope / self._slope) * self._direction
        self._slope, self._direction = slope, step
        change = array_module(step).empty_like(step)
        self._normal(step, change)
        curvature = inner(step, change)
        if curvature <= 0:  # it is solved to the last digit: the step is too short for its square
            return
        length = slope / curvature
        self._images += np.float32(length) * step
        self._gradient -= np.float32(length) * change
        self.objective -= 0.5 * length * slope


class KSpaceInverse:
    """P: the inverse of "diagonal of E^H E in k-space + sum penalty_d D_d^H D_d", applied in place.

    Parameters
    ----------
    diagonal
        [row frequency, column frequency], positive.
    terms
        Penalties on differences along the axes of frames.
    frames
        Lengths of these axes.
    team
        Threads that work on it.
    batch
        Frames that are transformed at once.
    """

    def __init__(self, diagonal: Any, terms: Sequence[Term], frames: tuple[int, ...], team: Team, batch: int) -> None:
        xp = array_module(diagonal)
        shift = np.zeros((*frames, 1))
        for term in terms:
            axis, length = term.difference.axis, frames[term.difference.axis]
            eigenvalues = term.penalty * term.difference.eigenvalues(length)
            shift += eigenvalues.reshape([length if n == axis else 1 for n in range(len(frames))] + [1])
        self._shift = xp.asarray(shift.astype(np.float32))
        self._diagonal, self._differences = diagonal.ravel(), [term.difference for term in terms]
        self._team, self._batch, self._shape, self._frames = team, batch, diagonal.shape, frames
        self._transforms: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(team.size):
            self._transforms.put(open_transform((batch, *diagonal.shape), xp))

    def __call__(self, images: Any) -> float:
        """Apply P to images, in place; return the inner product of what they were and what they have become."""
        series, pixels = images.reshape(*self._frames, -1), self._diagonal.size
        parts = blocks(series)
        products = [0.0] * len(parts)

        def divide(n: int) -> None:
            modes = series[..., parts[n]]
            for difference in self._differences:
                modes = difference.modes(modes)
            # Not modes / (...): where the diagonal is infinite, that is 0 in NumPy and nan in CuPy.
            quotient = modes * (np.float32(1 / pixels) / (self._diagonal[parts[n]] + self._shift))
            products[n] = inner(modes, quotient)
            for difference in self._differences:
                quotient = difference.modes(quotient, inverse=True)
            series[..., parts[n]] = quotient

        self._fourier(series, "forward")
        self._team.each(divide, len(parts))
        self._fourier(series, "inverse")
        return sum(products)

    def _fourier(self, series: Any, direction: str) -> None:
        images = series.reshape(-1, *self._shape)

        def work(n: int) -> None:
            frames = images[n * self._batch : (n + 1) * self._batch]
            transform = self._transforms.get()
            transform.buffer[: len(frames)] = frames
            getattr(transform, direction)()
            frames[...] = transform.buffer[: len(frames)]
            self._transforms.put(transform)

        self._team.each(work, -(-len(images) // self._batch))


def blocks(series: Any) -> list[slice]:
    """Divide the pixels of series [*frames, pixel] so that a thread's share of them stays in its cache."""
    frames, pixels = series[..., 0].size, series.shape[-1]
    size = max((BLOCK if array_module(series) is np else GPU_BLOCK) // frames, SMALLEST_BLOCK)
    return [slice(start, min(start + size, pixels)) for start in range(0, pixels, size)]


class TemporalAdmm:
    """State of the algorithm, see the top of this file.

    Parameters
    ----------
    normal
        Writes E^H E x to its second argument, both [frame, row, column].
    invert
        P.
    terms
        The terms with differences.
    images
        Where to begin [*frames, row, column]; changed in place.
    gradient
        E^H (y - E x) for them; likewise.
    data_term
        1/2 ||E x - y||^2 for them.
    team
        Threads that work on it.

    Attributes
    ----------
    objective
        Of the images as they are.
    """

    def __init__(
        self, normal: Callable[[Any, Any], None], invert: KSpaceInverse, terms: Sequence[Term], images: Any,
        gradient: Any, data_term: float, team: Team,
    ) -> None:  # fmt: skip
        xp = array_module(images)
        self._normal, self._invert, self._terms, self._team = normal, invert, terms, team
        series = (*images.shape[:-2], -1)
        self._images, self._gradient = images.reshape(series), gradient.reshape(series)
        self._shape = (-1, *images.shape[-2:])
        self._direction, self._change = xp.zeros_like(self._images), xp.zeros_like(self._images)
        self._splits = [term.difference(self._images) for term in terms]
        self._data_term = data_term
        self._descend(0.0)

    def update(self) -> None:
        """Do one iteration."""
        direction, change = self._direction, self._change
        slope = self._invert(direction)
        self._normal(direction.reshape(self._shape), change.reshape(self._shape))
        parts = blocks(direction)
        sums = np.zeros((len(parts), 3))

        def measure(n: int) -> None:
            step, result = direction[..., parts[n]], change[..., parts[n]]
            sums[n] = inner(step, self._gradient[..., parts[n]]), inner(step, result), 0
            for term in self._terms:
                difference = term.difference(step)
                sums[n, 2] += term.penalty * inner(difference, difference)

        self._team.each(measure, len(parts))
        along, curvature, drawn = sums.sum(axis=0)
        length = slope / (curvature + drawn) if slope > 0 else 0.0
        self._data_term += length * (0.5 * length * curvature - along)
        self._descend(length)

    def _descend(self, length: float) -> None:
        """Take a step of this length, update v_d, and find the next descent direction."""
        parts = blocks(self._images)
        norms = np.zeros(len(parts))
        step = np.float32(length)

        def work(n: int) -> None:
            place = (..., parts[n])
            self._images[place] += step * self._direction[place]
            self._gradient[place] -= step * self._change[place]
            way = self._gradient[place].copy()
            for term, split in zip(self._terms, self._splits, strict=True):
                v, threshold = split[place], term.weight / term.penalty
                difference = term.difference(self._images[place])
                norms[n] += term.weight * float(abs(difference).sum())
                v += np.float32(RELAXATION) * (difference - soft(v, threshold))
                way += np.float32(term.penalty) * term.difference.adjoint(2 * soft(v, threshold) - v - difference)
            self._direction[place] = way

        self._team.each(work, len(parts))
        self.objective = self._data_term + norms.sum()
