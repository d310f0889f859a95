"""GRAPPA: missing lines of k-space as sums of acquired ones nearby, with weights found on calibration lines.

The weights for each place between the lines of the lattice reach over the nearest lines and `SAMPLES` samples along the
readout. They are applied after a Fourier transform along the readout, where the sum along it is a product.

How the choice was made: ``python benchmarks/cartesian.py``.

References
----------
Griswold et al., Magn Reson Med 2002;47:1202, doi 10.1002/mrm.10171 (GRAPPA). Breuer et al., Magn Reson Med 2009;62:739,
doi 10.1002/mrm.22066 (g-factor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.sampling import Lattice, acquired_region, find_lattice

SAMPLES = 5  # of a kernel along the readout
LINES = (4, 2)  # nearest lines that a kernel takes, the larger number where the calibration lines allow it; 2-D
LINES_3D = (8, 4)
# See `calibrate`. Chosen on the Shepp-Logan phantom; other objects have their best a factor of ten below or above.
REGULARISATION = 0.5
MAX_EQUATIONS = 16  # per unknown
LEAST_WEIGHT, LEAST_SIGNAL = 1e-5, 0.1  # of the calibration's energy; of the noise variance
NOISE_COILS = 12  # that the noise variance is estimated from, to save time
NULL_SPACE = 0.1  # of the calibration matrix's singular values these at least are noise alone
CHUNK = 2**22  # complex numbers worked on at once


class CalibrationError(ValueError):
    """The calibration lines are too few; the text names how many there are and are needed."""


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Weights of the places within a cell that share their sources.

    Attributes
    ----------
    places
        Number of each place within its cell, rising (`Lattice.places`).
    sources
        Lattice lines [line, (partition, row)] relative to the cell's own.
    weights
        complex64 [tap along the readout, line x coil, place x coil].
    """

    places: NDArray[np.int64]
    sources: NDArray[np.int64]
    weights: NDArray[np.complex64]

    @property
    def taps(self) -> NDArray[np.int64]:
        """Samples along the readout relative to the target."""
        return np.arange(len(self.weights)) - len(self.weights) // 2


@dataclass(frozen=True, eq=False)
class Grappa:
    """Kernels for a lattice, wherever its first line is; made by `calibrate`, good for any number of repetitions."""

    lattice: Lattice
    coils: int
    kernels: tuple[_Kernel, ...]

    def fill(self, kspace: NDArray[np.complexfloating], sampled: NDArray[np.bool_]) -> NDArray[np.complex64]:
        """Return k-space with the missing lines of the acquired region filled; acquired lines stay as they are.

        Parameters
        ----------
        kspace
            [coil, partition, row, sample].
        sampled
            [partition, row], where there is a line. What `kspace` holds elsewhere is not looked at.

        Raises
        ------
        ValueError
            The coils or the lattice are not those of the calibration.
        IrregularSamplingError
            The lines do not lie on a lattice.
        """
        import scipy.fft

        coils, samples = kspace.shape[0], kspace.shape[3]
        lattice = find_lattice(sampled)
        filled = np.where(sampled[..., np.newaxis], kspace, 0).astype(np.complex64, copy=False)
        if lattice.factor == 1:
            return filled
        if coils != self.coils or lattice.steps != self.lattice.steps:
            raise ValueError(
                f"{coils} coils, and lines at steps (partition, row, shift) of {lattice.steps}: the calibration was "
                f"made for {self.coils} coils and {self.lattice.steps}"
            )
        places = lattice.places(*np.indices(sampled.shape))
        missing = np.argwhere(acquired_region(sampled) & ~sampled)
        acquired = np.argwhere(sampled & (places == 0))

        # The last line stands for all that were not acquired.
        hybrid = np.zeros((samples, len(acquired) + 1, coils), np.complex64)
        hybrid[:, :-1] = scipy.fft.ifft(filled[:, acquired[:, 0], acquired[:, 1]], axis=2).transpose(2, 1, 0)
        number = np.full(sampled.shape, len(acquired))
        number[tuple(acquired.T)] = np.arange(len(acquired))

        for kernel in self.kernels:
            place = places[tuple(missing.T)]
            sites, place = missing[chosen := np.isin(place, kernel.places)], place[chosen]
            if len(sites) == 0:
                continue
            own = sites - np.stack(np.divmod(place, lattice.row_step), axis=1)
            cells, cell = np.unique(own, axis=0, return_inverse=True)
            lines = _line_numbers(number, cells[:, np.newaxis] + kernel.sources, len(acquired))
            result = np.empty((samples, len(cells), kernel.weights.shape[2]), np.complex64)
            step = max(CHUNK // max(lines.size * coils, kernel.weights[0].size), 1)
            for begin in range(0, samples, step):
                part = slice(begin, begin + step)
                sources = hybrid[part][:, lines].reshape(-1, len(cells), kernel.weights.shape[1])
                np.matmul(sources, _along_readout(kernel, samples, part), out=result[part])
            values = result.reshape(samples, len(cells), -1, coils)[:, cell, np.searchsorted(kernel.places, place)]
            filled[:, sites[:, 0], sites[:, 1]] = scipy.fft.fft(values.transpose(2, 1, 0), axis=2)
        return filled

    def g_factor(self, weights: NDArray[np.complexfloating], sampled: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Noise of the combined image over that of full sampling, divided by the root of the acceleration.

        From the kernels' transform to image space (Breuer 2009), for white noise. The acceleration is the number of
        sites of the acquired region over that of the lines, calibration lines among them included.

        Parameters
        ----------
        weights
            [coil, partition, row, column]: the combined image is the sum of conj(weight) * coil image, as of
            `coils.combine`; x = 0 at index N // 2.
        sampled
            [partition, row], where there is a line.

        Returns
        -------
        g [partition, row, column]; 0 where the weights are 0.

        Raises
        ------
        ValueError
            The sizes or the lattice are not those of the calibration.
        """
        if weights.ndim != 4 or (len(weights), *weights.shape[1:3]) != (self.coils, *sampled.shape):
            raise ValueError(f"weights are {weights.shape}, expected ({self.coils}, {sampled.shape}, columns)")
        lattice = find_lattice(sampled)
        if lattice.steps != self.lattice.steps:
            raise ValueError(f"lines at steps {lattice.steps}, the calibration was made for {self.lattice.steps}")
        columns = weights.shape[3]
        partitions, rows = (np.exp(-2j * np.pi * (np.arange(n) - n // 2) / n) for n in sampled.shape)
        combining = weights.conj().transpose(3, 1, 2, 0).astype(np.complex64)  # [column, partition, row, coil]
        through = combining.copy()  # what a sample of each coil on the lattice adds to the image
        for kernel in self.kernels:
            targets = np.stack(np.divmod(kernel.places, lattice.row_step), axis=1)
            lines = len(kernel.sources)
            for column in range(columns):
                along = _along_readout(kernel, columns, slice(column, column + 1), columns // 2)[0]
                along = along.reshape(lines, self.coils, len(targets), self.coils)
                for number, target in enumerate(targets):
                    for line, (partition, row) in enumerate(kernel.sources - target):
                        phases = np.multiply.outer(partitions**partition, rows**row).astype(np.complex64)
                        part = combining[column] @ along[line, :, number].T
                        through[column] += phases[..., np.newaxis] * part
        energy, amplified = ((np.abs(part) ** 2).sum(axis=-1).transpose(1, 2, 0) for part in (combining, through))
        # Lines at edges, and beside calibration lines, are sources of fewer targets than others.
        acquired = sampled & (lattice.places(*np.indices(sampled.shape)) == 0)
        lines, used = int(np.count_nonzero(acquired)), self._use(sampled, acquired, lattice)
        total = lines * (energy + used * (amplified - energy)) + (np.count_nonzero(sampled) - lines) * energy
        region = np.count_nonzero(acquired_region(sampled))
        ratio = np.where(energy > 0, total / region / np.where(energy > 0, energy, 1), 0)
        return np.sqrt(ratio.clip(0) * np.count_nonzero(sampled) / region).astype(np.float32)

    def _use(self, sampled: NDArray[np.bool_], acquired: NDArray[np.bool_], lattice: Lattice) -> float:
        """Energy of the weights that are applied, over that if all lines were sources of as many targets."""
        missing = np.argwhere(acquired_region(sampled) & ~sampled)
        place = lattice.places(*missing.T)
        own = missing - np.stack(np.divmod(place, lattice.row_step), axis=1)
        applied, all_targets = 0.0, 0.0
        for kernel in self.kernels:
            shape = (-1, len(kernel.sources), self.coils, len(kernel.places), self.coils)
            energy = (np.abs(kernel.weights.reshape(shape)) ** 2).sum(axis=(0, 2, 4))  # [line, place]
            for number, target in enumerate(kernel.places):
                there = _line_numbers(acquired, own[place == target][:, np.newaxis] + kernel.sources, False)
                applied += float(there.sum(axis=0) @ energy[:, number])
            all_targets += float(energy.sum()) * np.count_nonzero(acquired)
        return applied / all_targets if all_targets else 1.0


def _line_numbers(number: NDArray[Any], sites: NDArray[np.int64], none: int) -> NDArray[Any]:
    """Look up sites [..., (partition, row)] in [partition, row]; `none` for those beyond the matrix."""
    inside = np.all((sites >= 0) & (sites < number.shape), axis=-1)
    partitions, rows = np.moveaxis(np.where(inside[..., np.newaxis], sites, 0), -1, 0)
    return np.where(inside, number[partitions, rows], none)


def _along_readout(kernel: _Kernel, samples: int, part: slice, origin: int = 0) -> NDArray[np.complex64]:
    """Weights [pixel, line x coil, place x coil] of some pixels along the readout, x = 0 at index `origin`."""
    pixels = np.arange(samples)[part] - origin
    phases = np.exp(-2j * np.pi / samples * np.outer(pixels, kernel.taps)).astype(np.complex64)
    return np.tensordot(phases, kernel.weights, axes=1)


def calibrate(
    calibration: NDArray[np.complexfloating],
    kspace: NDArray[np.complexfloating],
    sampled: NDArray[np.bool_],
    noise_variance: float | None = None,
) -> Grappa:
    """Find the weights on calibration lines.

    They are the least-squares solution with a Tikhonov weight of `REGULARISATION` times the mean energy of the
    calibration over the signal-to-noise ratio of the other lines: the calibration lines have a better one than the
    lines that are to be filled, so that plain least squares would amplify noise there.

    Parameters
    ----------
    calibration
        [coil, partition, row, sample], a block without gaps from the centre of k-space; its distances between lines
        and between samples are those of the image's k-space, its contrast may be another.
    kspace
        [coil, partition, row, sample].
    sampled
        [partition, row], where there is a line in `kspace`.
    noise_variance
        Mean |noise|^2 of a sample; None: estimated from the smallest singular values of the calibration matrix.

    Raises
    ------
    CalibrationError
        There are too few lines for the smallest kernel, or they are zero or not finite.
    IrregularSamplingError
        The lines do not lie on a lattice.
    """
    lattice = find_lattice(sampled)
    energy = np.vdot(calibration, calibration).real
    if not (np.isfinite(energy) and energy > 0):
        raise CalibrationError("the calibration lines are zero or not finite, or there are none")
    coils, *lines, samples = calibration.shape
    for count in LINES if lines[0] == 1 else LINES_3D:
        groups = _groups(lattice, count, lines[0] == 1)
        needed = np.max([_block(lattice, *group)[2] for group in groups], axis=0, initial=1)
        positions = int(np.clip(lines - needed + 1, 0, None).prod()) * max(samples - SAMPLES + 1, 0)
        enough = 1 if count == LINES[-1] or count == LINES_3D[-1] else 2
        if (lines >= enough * needed).all() and positions >= coils * count * SAMPLES:
            outer = _outer_energy(kspace, sampled, lattice)
            kernels = [_kernel(calibration, lattice, *group, outer, noise_variance) for group in groups]
            return Grappa(lattice, coils, tuple(kernels))
    raise CalibrationError(
        f"the calibration has {lines[0]} x {lines[1]} lines (partitions x rows) of {samples} samples: for {coils} "
        f"coils and lines at steps (partition, row, shift) of {lattice.steps}, {needed[0]} x {needed[1]} lines are the "
        f"least, and have to fit in at {coils * count * SAMPLES} places; they fit in at {positions}"
    )


def _outer_energy(kspace: NDArray[Any], sampled: NDArray[np.bool_], lattice: Lattice) -> float:
    """Mean |sample|^2 of the lattice's lines outside the block of calibration lines."""
    on_lattice = lattice.places(*np.indices(sampled.shape)) == 0
    block = acquired_region(sampled & ~on_lattice)
    lines = kspace[:, sampled & on_lattice & ~block]
    return float(np.vdot(lines, lines).real / max(lines.size, 1))


def _groups(lattice: Lattice, count: int, plane: bool) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places within a cell and their nearest lattice lines; places with the same lines share them."""
    steps = range(-2 * count, 2 * count + 1)
    lines = [
        (i * lattice.partition_step, i * lattice.shift + j * lattice.row_step)
        for i in ((0,) if plane else steps)
        for j in steps
    ]
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for place in range(1, lattice.factor):
        partition, row = divmod(place, lattice.row_step)
        nearest = sorted(lines, key=lambda line: (line[0] - partition) ** 2 + (line[1] - row) ** 2)[:count]
        groups.setdefault(tuple(sorted(nearest)), []).append(place)
    return [(np.array(places), np.array(sources)) for sources, places in groups.items()]


def _block(lattice: Lattice, places: NDArray[np.int64], sources: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
    """Sources and targets [line, (partition, row)] within the block that holds them, and the block's lines."""
    targets = np.stack(np.divmod(places, lattice.row_step), axis=1)
    low = np.minimum(sources.min(axis=0), targets.min(axis=0))
    high = np.maximum(sources.max(axis=0), targets.max(axis=0))
    return sources - low, targets - low, high - low + 1


def _kernel(
    calibration: NDArray[Any],
    lattice: Lattice,
    places: NDArray[np.int64],
    sources: NDArray[np.int64],
    outer_energy: float,
    noise_variance: float | None,
) -> _Kernel:
    """Solve (S^H S + weight) w = S^H T for all places of a group: T the samples there, S those of the sources."""
    from scipy.linalg import cho_factor, cho_solve

    sources_in, targets_in, block = _block(lattice, places, sources)
    coils, *lines, samples = calibration.shape
    unknowns = coils * len(sources) * SAMPLES
    partitions, rows = np.array(lines) - block + 1
    columns = int(np.clip(np.ceil(MAX_EQUATIONS * unknowns / (partitions * rows)), SAMPLES, samples - SAMPLES + 1))
    first = (samples - SAMPLES + 1 - columns + 1) // 2

    def windows(places_in: NDArray[np.int64], taps: Any) -> NDArray[np.complex64]:
        """Samples [partition x row x sample, tap x line x coil] at each position of the block."""
        parts = [
            calibration[:, p : p + partitions, r : r + rows, first + tap : first + tap + columns]
            for tap in taps
            for p, r in places_in
        ]
        return np.concatenate(parts).reshape(len(parts) * coils, -1).astype(np.complex64)

    from_lines, to_lines = windows(sources_in, range(SAMPLES)), windows(targets_in, [SAMPLES // 2])
    equations = from_lines.shape[1]
    normal = from_lines.conj() @ from_lines.T / np.float32(equations)
    if noise_variance is None:
        few = np.arange(unknowns) % coils < NOISE_COILS
        noise_variance = max(float(np.quantile(np.linalg.eigvalsh(normal[few][:, few]), NULL_SPACE)), 0.0)
    noise_to_signal = noise_variance / max(
        outer_energy - noise_variance, LEAST_SIGNAL * noise_variance, float(np.finfo(np.float32).tiny)
    )
    weight = max(REGULARISATION * noise_to_signal, LEAST_WEIGHT) * normal.trace().real / unknowns
    factor = cho_factor(normal + weight * np.eye(unknowns, dtype=np.complex64), overwrite_a=True)
    weights = cho_solve(factor, from_lines.conj() @ to_lines.T / np.float32(equations))
    return _Kernel(places, sources, weights.reshape(SAMPLES, len(sources) * coils, -1))
