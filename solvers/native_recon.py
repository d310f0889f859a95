"""Iterative reconstruction without BART: frames of a few arms each, constrained along one or two axes of time.

Minimised is, over the frames x,

    1/2 ||E x - y||^2  +  sum over axes d of weight_d ||D_d x||_1,

E: coil maps and non-uniform Fourier transform of each frame's own arms (`linops.Encoding`); y: the samples over their
scale, so that weights mean the same for every scan, and the same as with BART; D_d: difference to the next frame along
axis d, its norm the sum of magnitudes over all pixels and frames. Steps:

1. The coils are replaced by as few combinations of them as keep 99.9 % of the energy (`conditioning`).
2. One kernel for each frame holds all about its arms (`toeplitz`), E^H y all about the samples: from here on the work
   does not depend on how many arms a frame has.
3. All frames start from the static image that fits them best: only the changes are left for the iterations.
4. ADMM with one preconditioned step per iteration (`admm`).

``python benchmarks/native.py`` compares time and error with those of BART.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon import arrays, nufft
from recon.arrays import array_module
from recon.conditioning import compression, robust_scale
from solvers import toeplitz
from solvers.admm import ConjugateGradients, KSpaceInverse, TemporalAdmm, Term, inner
from solvers.linops import ArmFields, Difference, Encoding, arm_weights
from solvers.team import Team, processors
from solvers.timekeeper import Progress, Timekeeper

logger = logging.getLogger(__name__)

START_ITERATIONS = 12
# Of the distance between differences and their copies, over root of weight times largest density in k-space. With a
# tenth to ten times the usual weights, and with many or few arms, this is within a third of the best.
PENALTY = 0.35
FLOOR = 0.01  # of the density in k-space for the preconditioner, likewise: k-space's corners hold noise alone
QUIET_ITERATIONS = 3  # that must bring less than the tolerance, one after the other, for the iteration to end
GPU_BATCH = 32  # frames that are transformed at once
TABLE_BYTES = 136  # of the interpolation tables, for each sample of the arms that differ


@dataclass(frozen=True)
class Penalty:
    """Weight of the differences along one axis of frames.

    Attributes
    ----------
    axis
        Axis of the frames.
    weight
        Weight of the differences, 0 or more, for data over their scale.
    cyclic
        Whether the last frame's next one is the first.
    """

    axis: int
    weight: float
    cyclic: bool


def reconstruct(
    samples: NDArray[np.complex64], coordinates: NDArray[np.float32], maps: NDArray[np.complex64],
    penalties: Sequence[Penalty], *, iterations: int, scale: float | None = None, weights: NDArray[Any] | None = None,
    tolerance: float = 1e-3, progress: Callable[[Progress], Any] | None = None, gpu_device: int = -1,
    start: NDArray[np.complex64] | None = None, threads: int | None = None, fields: ArmFields | None = None,
) -> NDArray[np.complex64]:  # fmt: skip
    """Reconstruct frames together.

    Parameters
    ----------
    samples
        [*frames, arm, coil, sample].
    coordinates
        [*frames, arm, sample, (kx, ky)] in cycles per field of view.
    maps
        [coil, row, column].
    penalties
        On the differences along axes of frames; those with weight 0 are none.
    iterations
        At most.
    scale
        Divisor of the samples before the weights are applied; None: as BART estimates it, see `robust_scale`,
        from all frames.
    weights
        Of each arm in the data term [*frames, arm]; arms of weight 0 do not exist. None: all are 1.
    tolerance
        The iteration ends when the objective changes by less than this fraction three times in a row.
    progress
        Called about once a second from the calling thread; an exception that it raises ends the work and is passed on.
    gpu_device
        GPU to use, through CuPy; -1 for the CPU.
    start
        Images to start from [*frames, row, column], as they come back; None: the mean over all frames.
    threads
        To use on the CPU; None: one for each processor.
    fields
        Field terms, with `columns` [*frames, arm]; None: there are none.

    Returns
    -------
    Images [*frames, row, column], for which E x is comparable with the samples as they were given.

    Raises
    ------
    SampleError
        The samples are zero or not finite, or all weights are zero.
    ValueError
        Shapes that do not fit, or other arguments that make no sense.
    nufft.GpuUnavailableError
        The GPU is not there.
    """
    _check(samples, coordinates, maps, penalties, start, scale)
    frames, shape = samples.shape[:-3], maps.shape[1:]
    count = int(np.prod(frames))
    weights = arm_weights(weights, samples.shape[:-2]).reshape(count, -1)
    samples = samples.reshape(count, *samples.shape[-3:])
    coordinates = coordinates.reshape(count, *coordinates.shape[-3:])
    backend = nufft.open_backend(gpu_device)
    clock = Timekeeper(iterations, progress)
    batch = 1 if gpu_device < 0 else GPU_BATCH

    with backend.device(), Team(threads if gpu_device < 0 else 1, clock.pulse) as team:
        mixing, energy = compression(samples, weights)
        maps = backend.xp.asarray(np.tensordot(mixing, maps, 1).astype(np.complex64))
        if fields is not None:
            fields = replace(fields, columns=fields.columns.reshape(count, -1))
        encoding = Encoding(coordinates, weights, maps, team, backend, fields)
        gradient = encoding.adjoint(samples, mixing)
        scale = robust_scale(gradient) if scale is None else scale
        gradient /= np.float32(scale)
        energy /= scale**2
        normal = toeplitz.ToeplitzNormal(encoding.kernels(), maps, team, batch, encoding.spatial)
        del encoding  # and its tables: the samples are not needed any more

        mean = toeplitz.ToeplitzNormal(normal.kernels.mean(axis=0, keepdims=True), maps, team, spatial=normal.spatial)
        density = toeplitz.k_space_diagonal(mean.kernels[0], maps, normal.spatial)
        top = float(density.max())
        density = density.clip(FLOOR * top)
        images = backend.xp.empty_like(gradient)
        if start is None:
            images[:] = still(mean, density, gradient.mean(axis=0, keepdims=True))
        else:
            images[:] = backend.xp.asarray(start).reshape(images.shape) / np.float32(scale)
        data_term = 0.5 * energy + residual(normal, images, gradient)

        terms = [
            Term(Difference(one.axis, one.cyclic), one.weight, PENALTY * float(np.sqrt(one.weight)) * top)
            for one in penalties
            if one.weight > 0 and frames[one.axis] > 1
        ]
        invert = KSpaceInverse(density, terms, frames, team, batch)
        algorithm: TemporalAdmm | ConjugateGradients
        if terms:
            series = (*frames, *shape)
            images, gradient = images.reshape(series), gradient.reshape(series)
            algorithm = TemporalAdmm(normal, invert, terms, images, gradient, data_term, team)
        else:
            algorithm = ConjugateGradients(normal, invert, images, gradient, data_term)
        run(algorithm, iterations, tolerance, clock)
        images *= np.float32(scale)
        return arrays.to_host(images).reshape(*frames, *shape)


def memory_needed(
    frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, *, columns: int | None = None,
    gpu_device: int = -1, threads: int | None = None, terms: int = 0,
) -> int:  # fmt: skip
    """Memory that `reconstruct` takes at most, beyond what it is given [bytes].

    Parameters
    ----------
    frames
        Lengths of the axes of frames that have penalties.
    arms, coils, samples
        Of a frame, of the samples, of an arm.
    matrix
        Pixels along each side of the images.
    columns
        Number of arms that differ; None: no arm occurs twice.
    gpu_device, threads
        As for `reconstruct`.
    terms
        Number of field terms; 0: there are none.
    """
    count, batch, workers = int(np.prod(frames)), GPU_BATCH, 1
    if gpu_device < 0:
        batch, workers = 1, threads or processors()
    image, kernel = 8 * matrix**2, 4 * toeplitz.PHASES * toeplitz.transform_size(matrix) ** 2
    spreads = terms * (terms + 1) // 2 or 1
    kernel *= spreads
    preparing = count * (kernel + image) + TABLE_BYTES * samples * min(columns or count * arms, count * arms)
    iterating = count * (kernel + (4 + len(frames)) * image)
    # The first: grids from which kernels are made.
    scratch = workers * image * max(20 + 10 * spreads, batch * (3 * coils + 4 * max(terms, 1)))
    return max(preparing, iterating) + scratch


def run(algorithm: TemporalAdmm | ConjugateGradients, iterations: int, tolerance: float, clock: Timekeeper) -> None:
    """Iterate until the objective stays, or long enough."""
    quiet = 0
    clock.begin(algorithm.objective)
    for _ in range(iterations):
        before = algorithm.objective
        algorithm.update()
        clock.iterated(algorithm.objective)
        quiet = quiet + 1 if abs(before - algorithm.objective) < tolerance * abs(before) else 0
        if quiet == QUIET_ITERATIONS:
            break
    logger.info("%s", clock.progress())


def still(mean: toeplitz.ToeplitzNormal, density: Any, adjoint: Any) -> Any:
    """The one image that fits all frames best, as far as `FLOOR` lets it [1, row, column].

    Parameters
    ----------
    mean
        Mean normal operator of the frames.
    density
        Its diagonal in k-space.
    adjoint
        Mean of E^H y over the frames [1, row, column].
    """
    image, gradient = array_module(adjoint).zeros_like(adjoint), adjoint.copy()
    algorithm = ConjugateGradients(mean, KSpaceInverse(density, (), (1,), mean.team, 1), image, gradient, 0.0)
    for _ in range(START_ITERATIONS):
        algorithm.update()
    return image


def residual(normal: toeplitz.ToeplitzNormal, images: Any, adjoint: Any) -> float:
    """Make E^H (y - E x) of E^H y, in place; return 1/2 ||E x||^2 - <E x, y>."""
    projected = array_module(images).empty_like(images)
    normal(images, projected)
    # Frame by frame: a sum of all in single precision would be no better than the difference of the two.
    value = sum(0.5 * inner(image, other) for image, other in zip(images, projected, strict=True))
    value -= sum(map(inner, images, adjoint))
    adjoint -= projected
    return value


def _check(
    samples: NDArray[Any], coordinates: NDArray[Any], maps: NDArray[Any], penalties: Sequence[Penalty],
    start: NDArray[Any] | None, scale: float | None,
) -> None:  # fmt: skip
    """Refuse arrays that do not fit together; `Encoding` and `arm_weights` check the coordinates and the weights."""
    frames = samples.shape[:-3]
    if samples.ndim < 4 or samples.size == 0:
        raise ValueError(f"samples are {samples.shape}, expected ([*frames], arms, coils, samples), and some")
    *_, arms, coils, length = samples.shape
    expected = {
        "coordinates": (coordinates, (*frames, arms, length, 2)),
        "start": (start, (*frames, *maps.shape[1:])),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} are {array.shape}, expected {shape} for samples {samples.shape}")
    if maps.ndim != 3 or maps.shape[0] != coils or maps.size == 0:
        raise ValueError(f"maps are {maps.shape}, expected ({coils}, rows, columns) for samples {samples.shape}")
    if not np.isfinite(maps).all() or (start is not None and not np.isfinite(start).all()):
        raise ValueError("coil maps and start images must be finite")
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale is {scale}, expected a finite number above 0")
    for one in penalties:
        if not (0 <= one.axis < len(frames) and 0 <= one.weight < np.inf):
            raise ValueError(f"{one}: the axis must be one of {len(frames)}, the weight finite and not negative")
