"""Linear operators of temporally constrained, multi-coil, non-Cartesian imaging, each with its adjoint.

`Encoding` is the measurement E of a series of frames, `Difference` the step D from one frame to the next,
`HeldDifference` that of frames behind one that does not change any more. Images are
[..., row, column] in the scanner's orientation, see `nufft`; E is scaled as a unitary transform would be (one over the
root of the number of pixels), and so is BART's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon import arrays, nufft
from recon.arrays import array_module
from recon.fieldcorrection import Correction
from recon.fieldplan import FieldPlan
from recon.nufft import ArmPlan, ArrayBackend
from solvers import toeplitz
from solvers.team import Team
from solvers.transforms import fourier_module


@dataclass(frozen=True, eq=False)
class ArmFields:
    """Field terms of arms, see `recon.fieldterms`.

    Attributes
    ----------
    spatial
        c_l, complex64 [term, row, column].
    temporal
        b_l, complex64 [column, term, sample]; a single one stands for all. Those of a sample differ by real factors.
    columns
        Which of these each arm is [*frames, arm].
    """

    spatial: NDArray[np.complex64]
    temporal: NDArray[np.complex64]
    columns: NDArray[np.intp]


def arm_fields(correction: Correction | None, columns: NDArray[Any]) -> ArmFields | None:
    """Field terms of arms [*frames, arm], which have these columns of the trajectory."""
    if correction is None:
        return None
    return ArmFields(correction.terms.spatial, correction.temporal, np.asarray(columns, np.intp))


@dataclass(frozen=True)
class Difference:
    """D, the differences from frame to frame along one axis.

    Attributes
    ----------
    axis
        Axis of the frames.
    cyclic
        Whether the last frame's next one is the first.
    """

    axis: int
    cyclic: bool

    def __call__(self, images: Any) -> Any:
        """Return image(next) - image(this): as many as there are frames if cyclic, else one fewer."""
        xp = array_module(images)
        if self.cyclic:
            return xp.roll(images, -1, self.axis) - images
        return xp.diff(images, axis=self.axis)

    def adjoint(self, differences: Any) -> Any:
        """Return D^H of differences."""
        xp = array_module(differences)
        if self.cyclic:
            return xp.roll(differences, 1, self.axis) - differences
        ends = [(0, 0)] * differences.ndim
        ends[self.axis] = (1, 1)
        return -xp.diff(xp.pad(differences, ends), axis=self.axis)

    def eigenvalues(self, frames: int) -> NDArray[np.float64]:
        """Eigenvalues [mode] of D^H D for so many frames, in the order of `modes`."""
        return 2 - 2 * np.cos((2 if self.cyclic else 1) * np.pi * np.arange(frames) / frames)

    def modes(self, images: Any, inverse: bool = False) -> Any:
        """Transform the frames to the eigenvectors of D^H D, or back: a unitary Fourier or cosine transform."""
        fft = fourier_module(array_module(images))
        if self.cyclic:
            return (fft.ifft if inverse else fft.fft)(images, axis=self.axis, norm="ortho")
        return (fft.idct if inverse else fft.dct)(images, axis=self.axis, norm="ortho")


@dataclass(frozen=True)
class HeldDifference:
    """D, the differences from frame to frame along the first axis, with the frame before the first one held fixed.

    Linear, of changes of the frames: that of the frame before them is zero. The interface is that of `Difference`.
    """

    axis: int = 0

    def __call__(self, images: Any) -> Any:
        """Return image(this) - image(before): as many as there are frames."""
        differences = images.copy()
        differences[1:] -= images[:-1]
        return differences

    def adjoint(self, differences: Any) -> Any:
        """Return D^H of differences."""
        images = differences.copy()
        images[:-1] -= differences[1:]
        return images

    def eigenvalues(self, frames: int) -> NDArray[np.float64]:
        """Eigenvalues [mode] of D^H D for so many frames, in the order of `modes`."""
        return 2 - 2 * np.cos((2 * np.arange(frames) + 1) * np.pi / (2 * frames + 1))

    def modes(self, images: Any, inverse: bool = False) -> Any:
        """Transform the frames to the eigenvectors of D^H D, or back: a sine transform, zero before the first frame."""
        xp = array_module(images)
        matrix = xp.asarray(_sine_matrix(len(images)))
        return xp.tensordot(matrix.T if inverse else matrix, images, 1)


@functools.lru_cache(maxsize=8)
def _sine_matrix(frames: int) -> NDArray[np.complex64]:
    """Matrix [mode, frame] of the sine transform of `HeldDifference`."""
    waves = np.outer(2 * np.arange(frames) + 1, np.arange(1, frames + 1)) * (np.pi / (2 * frames + 1))
    return (2 / np.sqrt(2 * frames + 1) * np.sin(waves)).astype(np.complex64)


class Encoding:
    """E, from frames to the samples that each frame's own arms take with each coil.

    Arms have weights, the W of the data term 1/2 (E x - y)^H W (E x - y): `adjoint` is E^H W, the adjoint in the inner
    product that they make, and `normal` E^H W E. Arms of weight 0 do not exist, whatever they hold. Arms that occur
    more than once are planned once.

    Parameters
    ----------
    coordinates
        [frame, arm, sample, (kx, ky)] in cycles per field of view.
    weights
        [frame, arm]; None: all are 1.
    maps
        complex64 [coil, row, column], where the backend works.
    team
        Threads that work on the frames.
    backend
        Of the CPU or the GPU; None: the CPU.
    fields
        Field terms, with `columns` [frame, arm]: E is then a sum of B_l F C_l. None: there are none.

    Raises
    ------
    ValueError
        The shapes do not fit, or coordinates or weights are not finite, or weights are negative.
    """

    def __init__(
        self, coordinates: NDArray[Any], weights: NDArray[Any] | None, maps: Any, team: Team,
        backend: ArrayBackend | None = None, fields: ArmFields | None = None,
    ) -> None:  # fmt: skip
        if coordinates.ndim != 4 or coordinates.shape[3] != 2:
            raise ValueError(f"coordinates are {coordinates.shape}, expected (frames, arms, samples, 2)")
        weights = arm_weights(weights, coordinates.shape[:2])
        self.maps, self.weights, self.team = maps, weights, team
        self.shape = (int(maps.shape[1]), int(maps.shape[2]))
        self._backend = backend or nufft.open_backend()
        self._arms, self._columns = distinct_arms(coordinates, weights > 0)
        if not len(self._arms):
            raise ValueError("no arm has a weight above 0")
        self.spatial: Any = None
        if fields is not None:
            self.spatial = self._backend.xp.asarray(fields.spatial)
            first = np.unique(self._columns[weights > 0], return_index=True)[1]
            several = len(fields.temporal) > 1
            self._temporal = fields.temporal[fields.columns[weights > 0][first]] if several else fields.temporal
        self._unit = np.float32(1 / np.sqrt(np.prod(self.shape)))  # so that the transform is unitary

    def _plan(self) -> Plan | FieldPlan:
        plan = Plan(self._arms, self.shape, self.team, self._backend)
        return plan if self.spatial is None else FieldPlan(plan, self.spatial, self._temporal)

    def used(self, frame: int) -> NDArray[np.intp]:
        """Arms of a frame that count."""
        return np.flatnonzero(self.weights[frame])

    def forward(self, images: Any) -> NDArray[np.complex64]:
        """Return samples [frame, arm, coil, sample] of images [frame, row, column]; zero where arms do not exist."""
        samples = np.zeros((*self.weights.shape, len(self.maps), self._arms.shape[1]), np.complex64)
        plan = self._plan()

        def work(frame: int) -> None:
            if not (used := self.used(frame)).size:
                return
            samples[frame, used] = plan.forward(self.maps * images[frame], self._columns[frame, used]) * self._unit

        self.team.each(work, len(samples))
        return samples

    def adjoint(self, samples: NDArray[Any], mixing: NDArray[Any] | None = None) -> Any:
        """Return E^H W of samples, images [frame, row, column].

        Parameters
        ----------
        samples
            [frame, arm, coil, sample].
        mixing
            [coil, coil of the samples]: from the coils of the samples to those of the maps; None: they are the same.
        """
        images = self._backend.xp.empty((len(samples), *self.shape), np.complex64)
        plan = self._plan()
        conjugate_maps = self.maps.conj() * self._unit

        def work(frame: int) -> None:
            grid = plan.zeros(len(self.maps))
            for arm in self.used(frame):
                taken = samples[frame, arm] if mixing is None else mixing @ samples[frame, arm]
                plan.add_arm(grid, self._columns[frame, arm], taken * np.float32(self.weights[frame, arm]))
            images[frame] = (conjugate_maps * plan.image(grid)).sum(axis=0)

        self.team.each(work, len(samples))
        return images

    def kernels(self) -> Any:
        """Return each frame's kernel for `toeplitz.ToeplitzNormal`.

        It is [frame, phase, row frequency, column frequency], with field terms [frame, phase, pair, ...].
        """
        plan = kernel_plan(self._arms, self.shape, self.team, self._backend)
        size = (plan.shape[0] // 2, plan.shape[1] // 2)
        samples = SpreadSamples(self._arms.shape[1], self._unit, None if self.spatial is None else self._temporal)
        shape = (len(self.weights), *samples.kernel_shape(size))
        kernels = self._backend.xp.empty(shape, np.float32)

        def work(frame: int) -> None:
            grid = plan.zeros(samples.count)
            for arm in self.used(frame):
                column = self._columns[frame, arm]
                plan.add_arm(grid, column, samples.of(column) * np.float32(self.weights[frame, arm]))
            samples.write_kernel(plan.image(grid), kernels[frame])

        self.team.each(work, len(kernels))
        return kernels

    def data_term(self, images: Any, samples: NDArray[Any]) -> float:
        """Return 1/2 (E x - y)^H W (E x - y) for images x and samples y, shaped as those of `forward`."""
        misfit = np.zeros(len(samples))
        plan = self._plan()

        def work(frame: int) -> None:
            if not (used := self.used(frame)).size:
                return
            taken = plan.forward(self.maps * images[frame], self._columns[frame, used]) * self._unit
            difference = taken - samples[frame, used]
            energy = (difference.real**2 + difference.imag**2).sum(axis=(1, 2), dtype=np.float64)
            misfit[frame] = 0.5 * (self.weights[frame, used] * energy).sum()

        self.team.each(work, len(samples))
        return float(misfit.sum())


class SpreadSamples:
    """Samples whose adjoint transform is the point spread function of an arm, or those of all pairs of field terms.

    Parameters
    ----------
    length
        Samples of an arm.
    unit
        Factor of the unitary transform.
    temporal
        b_l, complex64 [arm, term, sample], a single arm stands for all; None: there are no field terms.

    Attributes
    ----------
    count
        Number of point spread functions.
    """

    def __init__(self, length: int, unit: np.float32, temporal: NDArray[np.complex64] | None) -> None:
        self._unit, self._temporal = unit, temporal
        self._ones = np.full((1, length), unit**2, np.complex64)
        self._pairs = [] if temporal is None else toeplitz.pairs(temporal.shape[1])
        self.count = len(self._pairs) or 1

    def kernel_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of a frame's kernel for transforms of this size."""
        return (toeplitz.PHASES, *([self.count] if self._pairs else []), *size)

    def of(self, arm: int) -> NDArray[np.complex64]:
        """Samples [point spread function, sample] of an arm."""
        if self._temporal is None:
            return self._ones
        of_arm = self._temporal[arm if len(self._temporal) > 1 else 0]
        one, other = np.transpose(self._pairs)
        return (of_arm[one].conj() * of_arm[other] * self._unit**2).real.astype(np.complex64)

    def write_kernel(self, spreads: Any, kernel: Any) -> None:
        """Make a frame's kernel, in place, of its point spread functions [point spread function, row, column]."""
        if self._temporal is None:
            kernel[...] = toeplitz.kernel(spreads[0])
            return
        for n, spread in enumerate(spreads):
            kernel[:, n] = toeplitz.kernel(spread)


def arm_weights(weights: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Weights of arms as an array of this shape; None means 1.

    Raises
    ------
    ValueError
        They have another shape, or are not finite, or negative.
    """
    weights = np.ones(shape) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != shape:
        raise ValueError(f"weights are {weights.shape}, expected {shape}: one for each arm of each frame")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights of arms must be finite and not negative")
    return weights


class Plan:
    """An `nufft.ArmPlan` that a team makes part by part.

    Parameters
    ----------
    arms
        [arm, sample, (kx, ky)].
    shape
        Of the images (rows, columns).
    team, backend
        Threads that work on it, and where.
    """

    PART = 16  # arms that a thread plans at once

    def __init__(self, arms: NDArray[Any], shape: tuple[int, int], team: Team, backend: ArrayBackend) -> None:
        self._parts: dict[int, ArmPlan] = {}

        def work(n: int) -> None:
            self._parts[n] = ArmPlan(arms[n * self.PART : (n + 1) * self.PART], shape, backend=backend)

        team.each(work, -(-len(arms) // self.PART))
        self.shape, self.zeros, self.image = shape, self._parts[0].zeros, self._parts[0].image
        self.device = backend.device

    def add_arm(self, grid: Any, arm: int, samples: Any) -> None:
        """Add an arm's samples [coil, sample] to a grid."""
        self._parts[arm // self.PART].add_arm(grid, arm % self.PART, samples)

    def forward(self, images: Any, arms: NDArray[np.intp]) -> NDArray[np.complex64]:
        """Return the samples [arm, coil, sample] of images [coil, row, column] on some of the arms."""
        taken: dict[int, NDArray[np.complex64]] = {}
        for n in np.unique(arms // self.PART):
            own = arms[arms // self.PART == n]
            samples = self._parts[n].forward(images, own % self.PART)
            taken.update(zip(own, arrays.to_host(samples).transpose(1, 0, 2), strict=True))
        return np.array([taken[arm] for arm in arms])


def kernel_plan(arms: NDArray[Any], shape: tuple[int, int], team: Team, backend: ArrayBackend) -> Plan:
    """Plan of the point spread functions from which `toeplitz.kernel` makes the kernels of images of this shape."""
    rows, columns = (toeplitz.transform_size(n) for n in shape)
    return Plan(arms * [2 * columns / shape[1], 2 * rows / shape[0]], (2 * rows, 2 * columns), team, backend)


def distinct_arms(coordinates: NDArray[Any], counts: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Find the arms that differ.

    Parameters
    ----------
    coordinates
        [frame, arm, sample, (kx, ky)].
    counts
        Arms that exist [frame, arm]; the others are passed over.

    Returns
    -------
    arms : [distinct arm, sample, (kx, ky)]
    columns : [frame, arm]
        Which of them each arm is; 0 where it does not exist.
    """
    numbers: dict[bytes, int] = {}
    columns = np.zeros(counts.shape, np.intp)
    places = []
    for place in zip(*np.nonzero(counts), strict=True):
        arm = coordinates[place].tobytes()
        if arm not in numbers:
            numbers[arm] = len(numbers)
            places.append(place)
        columns[place] = numbers[arm]
    return np.array([coordinates[place] for place in places], np.float64), columns
