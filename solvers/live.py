"""Temporal finite differences while the scan runs: a window of the latest frames that moves frame by frame.

Minimised is, over the frames x_1 ... x_W of the window,

    1/2 ||E x - y||^2  +  weight (||x_1 - x_0||_1 + ||x_2 - x_1||_1 + ... + ||x_W - x_W-1||_1),

as in the batch reconstruction (`native_recon`): the same operators, the same weight. x_0 is the frame that has left the
window last. It stays as it is, but the first of the window is still tied to it, and through it to all frames before.
A new frame begins as the last one, moved on by a part of the last step; all others go on from where they are.

The iteration is that of `admm`, with three differences:

- The step is the best one in the plane of s = P r and the step before: E^H E of that one is known already, so that it
  costs nothing. The first step behind each new frame has no such partner.
- Frequencies beyond the arms' reach, the corners of k-space, stay as they are at the very start: P is zero there.
- It can run on the newest few frames alone, with the frame before those held fixed.

Most of the iterations are spent on the `NEWEST` two frames, between the arrival of the last arm and the sending of the
image; one in `WINDOW_PART` of them on the whole window, while the next arms come in, and twice as many where the frame
that is sent next is older than those two.

What was tried, on the simulated heart with frames of 7 arms, by error and temporal change of the newest frame at equal
cost:

- The plane of two directions: a quarter less error than s alone. Conjugate gradients with coefficients from formulas
  (Fletcher-Reeves, Polak-Ribiere) diverge, as v changes in between; so does the plane when it is kept from one frame
  to the next.
- Corners of k-space held: without it they fill with noise, a little more with every frame, and the error of a converged
  window is half as large again as that of a few iterations. With it there is no drift over hundreds of frames.
- Iterations on the newest two frames, and one on the window: a sixth less error than the same work on the window alone.
  On the newest one alone it is as good for that, and worse for those before it.
- Windows longer than 3 frames: 1 % less error, no more than the same work on a window of 3 brings.
- Start of a new frame: extrapolation by half of the last step is best; the frame before as it is, 0.8 of the step or
  all of it are 1 to 4 % worse. Second differences: worse.
- Penalty: half as large again as in the batch reconstruction; less than that overshoots. Over-relaxation of 1 in place
  of 1.7: 2 % more error; 1.9: the same.
- Weight: 0.25 to 0.5 of the best one of the batch reconstruction are as good; the same weight has 10 % more error, as
  the newest frame has no future to be tied to.
- The floor of the preconditioner makes no difference once the corners are held.
- Threads: frames of E^H E are shared among them. The shorter steps in between are faster in one.
- Iterations on the newest frames: from 4 to 5, an eighth less error of the newest frame; from 5 to 6, a twelfth; from
  6 to 8, a twentieth.
- Iterations on the window for a frame that is sent two frames later: two instead of one, 3 % less error, and a tenth
  less of the change is missed. For a lag of 0 or 1: 1 to 2 % less error.
- Kernels of half precision: the same images, in the same time. Coils: those that keep 99.9 % of the energy; with all of
  them the images are the same, and take twice the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recon.arrays import array_module
from solvers import toeplitz
from solvers.admm import RELAXATION, KSpaceInverse, Term, blocks, inner, soft
from solvers.linops import HeldDifference
from solvers.native_recon import FLOOR, GPU_BATCH, still
from solvers.team import Team

NEWEST = 2  # frames that most iterations work on
WINDOW_PART = 6  # one iteration on the window for so many on the newest frames
EXTRAPOLATION = 0.5  # of the last step from frame to frame
PENALTY = 0.5  # of the distance between differences and their copies, over root of weight times largest density
INDEPENDENT = 1e-6  # part of the determinant of two directions, below which they are one


class LiveWindow:
    """The frames of the window, and the algorithm; see the top of this file.

    Parameters
    ----------
    maps
        complex64 [coil, row, column].
    kernel, adjoint
        Means over frames before the window: of their kernels, see `toeplitz.ToeplitzNormal`, and of their
        E^H y over the scale of the data [row, column]. The image that fits them best is the first x_0.
    sampled
        Which frequencies of the images the arms reach [row frequency, column frequency].
    weight
        Of the differences, for data over their scale; 0 or more.
    frames
        Of the window, 1 or more.
    team
        Who works on it.
    spatial
        Field terms, complex64 [term, row, column]; None: there are none.
    """

    def __init__(
        self, maps: Any, kernel: Any, adjoint: Any, sampled: Any, *, weight: float, frames: int, team: Team,
        spatial: Any = None,
    ) -> None:  # fmt: skip
        xp = array_module(maps)
        self.frames, self._shape = frames, maps.shape[1:]
        self._alone = Team(1)  # in steps this short, threads would wait for each other longer than they work
        density = toeplitz.k_space_diagonal(kernel, maps, spatial)
        top = float(density.max())
        self._density = xp.where(sampled, density.clip(FLOOR * top), xp.float32(np.inf))
        penalty = PENALTY * float(np.sqrt(weight)) * top
        self._term = Term(HeldDifference(), weight, penalty)
        self._batch = 1 if xp is np else GPU_BATCH
        mean = toeplitz.ToeplitzNormal(kernel[np.newaxis], maps, team, spatial=spatial)
        start = still(mean, self._density, adjoint[np.newaxis])
        kernels = xp.zeros((frames, *kernel.shape), np.float32)
        self._normal = toeplitz.ToeplitzNormal(kernels, maps, team, self._batch, spatial)
        self._inverses: dict[int, KSpaceInverse] = {}
        self._count = 0
        self._images = xp.empty((frames + 1, start.size), np.complex64)  # the first one is that before the window
        self._images[:] = start.ravel()
        self._gradient, self._split, self._way, self._direction, self._change, self._step, self._step_change = (
            xp.zeros((frames, start.size), np.complex64) for _ in range(7)
        )

    @staticmethod
    def memory(frames: int, matrix: int) -> int:
        """Return what a window of images of matrix x matrix pixels takes, about [bytes]."""
        return frames * matrix**2 * (8 * 8 + 4 * toeplitz.PHASES)

    def image(self, lag: int = 0) -> Any:
        """Return the image [row, column] of the frame that came `lag` frames before the newest, for data over scale."""
        return self._images[-1 - lag].reshape(self._shape).copy()

    def advance(self, kernel: Any, adjoint: Any) -> None:
        """Take a new frame into the window; the oldest leaves it when it is full.

        Parameters
        ----------
        kernel
            As those of `toeplitz.ToeplitzNormal`.
        adjoint
            E^H y over the scale of the data [row, column].
        """
        for series in (self._images, self._gradient, self._split, self._normal.kernels):
            series[:-1] = series[1:].copy()
        self._count = min(self._count + 1, self.frames)
        newest, before = self._images[-1], self._images[-2]
        newest += np.float32(EXTRAPOLATION) * (before - (self._images[-3] if self.frames > 1 else before))
        self._split[-1] = newest - before
        self._normal.kernels[-1] = kernel
        image, projected = newest.reshape(1, *self._shape), array_module(adjoint).empty((1, *self._shape), np.complex64)
        self._normal(image, projected, self.frames - 1)
        self._gradient[-1] = (adjoint - projected[0]).ravel()
        self._step[:], self._step_change[:] = 0, 0

    def refine(self, frames: int) -> None:
        """Do one iteration on so many of the newest frames, or on as many as there are."""
        count = min(frames, self._count)
        if not count:
            return
        if count not in self._inverses:
            terms = (self._term,) if self._term.weight else ()
            self._inverses[count] = KSpaceInverse(self._density, terms, (count,), self._alone, self._batch)
        first = self.frames - count
        images = self._images[first:]
        gradient, split, way, direction, change, step, step_change = (
            series[first:]
            for series in (
                self._gradient, self._split, self._way, self._direction, self._change, self._step, self._step_change
            )
        )  # fmt: skip
        term = self._term
        difference, penalty, parts = term.difference, np.float32(term.penalty), blocks(direction)

        def descend(n: int) -> None:
            place = (..., parts[n])
            way[place] = gradient[place]
            if term.weight:
                v, threshold = split[place], term.weight / term.penalty
                now = images[1:][place] - images[:-1][place]
                v += np.float32(RELAXATION) * (now - soft(v, threshold))
                way[place] += penalty * difference.adjoint(2 * soft(v, threshold) - v - now)
            direction[place] = way[place]

        self._alone.each(descend, len(parts))
        along = self._inverses[count](direction)
        self._normal(direction.reshape(-1, *self._shape), change.reshape(-1, *self._shape), first)
        sums = np.zeros((len(parts), 4))

        def measure(n: int) -> None:
            place = (..., parts[n])
            here, there = direction[place], step[place]
            of_here, of_there = difference(here), difference(there)
            sums[n] = (
                inner(here, change[place]) + term.penalty * inner(of_here, of_here),
                inner(there, change[place]) + term.penalty * inner(of_there, of_here),
                inner(there, step_change[place]) + term.penalty * inner(of_there, of_there),
                inner(there, way[place]),
            )

        self._alone.each(measure, len(parts))
        curvature, mixed, other, along_step = sums.sum(axis=0)
        length, momentum = best_step(curvature, mixed, other, along, along_step)

        def walk(n: int) -> None:
            place = (..., parts[n])
            for one, new in ((step[place], direction[place]), (step_change[place], change[place])):
                one *= np.float32(momentum)
                one += np.float32(length) * new
            images[1:][place] += step[place]
            gradient[place] -= step_change[place]

        self._alone.each(walk, len(parts))


def best_step(curvature: float, mixed: float, other: float, along: float, along_other: float) -> tuple[float, float]:
    """Return how far to go along two directions to get farthest down; the second one is left out where it adds nothing.

    Parameters
    ----------
    curvature, mixed, other
        Inner products of the first direction with itself, with the second one, and of that with itself, each through
        the normal operator.
    along, along_other
        Inner products of both with the way down.
    """
    determinant = curvature * other - mixed**2
    if determinant > INDEPENDENT * curvature * other:
        return (along * other - along_other * mixed) / determinant, (
            along_other * curvature - along * mixed
        ) / determinant
    return (along / curvature if along > 0 and curvature > 0 else 0.0), 0.0
