"""GRAPPA: missing lines of k-space as sums of acquired ones nearby, with weights found on calibration lines.

The weights for each place between the lines of the lattice reach over the nearest lines and `SAMPLES` samples along the
readout. Calibration lines have far more signal than the samples that are to be filled, so that plain least squares
would amplify noise. The weights are therefore those of least mean squared error for the signal-to-noise ratio at the
place that is filled: one set for each level of it (`LEVEL_RATIO`), all from one decomposition of the calibration.

How it compares: ``python benchmarks/cartesian.py``.

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
from recon.spectrum import estimate_noise, local_energy

SAMPLES = 7  # of a kernel along the readout
LINES, LINES_3D = 2, 4  # nearest lines that a kernel takes
MAX_EQUATIONS = 32  # per unknown
LEAST_WEIGHT, LEAST_SIGNAL = 1e-5, 0.1  # of the calibration's energy; of the noise variance
LEVEL_RATIO = 4.0  # between one level of the signal-to-noise ratio and the next
CHUNK = 2**20  # complex numbers worked on at once: small enough for the processor's cache


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
        complex64 [level, line, tap along the readout, coil, place, coil].
    """

    places: NDArray[np.int64]
    sources: NDArray[np.int64]
    weights: NDArray[np.complex64]


@dataclass(frozen=True, eq=False)
class Grappa:
    """Kernels for a lattice, wherever its first line is; made by `calibrate`, good for any number of repetitions.

    Attributes
    ----------
    lattice, coils
        What the kernels are for.
    levels
        Level of the signal-to-noise ratio [partition, row, sample]: which weights fill the sample.
    kernels
        One for each group of places with the same sources.
    """

    lattice: Lattice
    coils: int
    levels: NDArray[np.int64]
    kernels: tuple[_Kernel, ...]

    def fits(self, shape: tuple[int, ...], sampled: NDArray[np.bool_]) -> bool:
        """Tell whether `fill` takes k-space of this shape [coil, partition, row, sample] and sampling."""
        return (shape[0], shape[1:], find_lattice(sampled).steps) == (
            self.coils, self.levels.shape, self.lattice.steps,
        )  # fmt: skip

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
            The coils, the size or the lattice are not those of the calibration.
        IrregularSamplingError
            The lines do not lie on a lattice.
        """
        filled = np.where(sampled[..., np.newaxis], kspace, 0).astype(np.complex64, copy=False)
        lattice = find_lattice(sampled)
        if lattice.factor == 1:
            return filled
        if not self.fits(kspace.shape, sampled):
            raise ValueError(
                f"{len(kspace)} coils of {kspace.shape[1:]} samples, and lines at steps (partition, row, shift) of "
                f"{lattice.steps}: the calibration was made for {self.coils} coils of {self.levels.shape} and "
                f"{self.lattice.steps}"
            )
        acquired = sampled & (lattice.places(*np.indices(sampled.shape)) == 0)
        # The last line stands for all that were not acquired; the coils of neighbouring samples lie side by side.
        lines = np.zeros((np.count_nonzero(acquired) + 1, kspace.shape[3] + SAMPLES - 1, self.coils), np.complex64)
        lines[:-1, SAMPLES // 2 : SAMPLES // 2 + kspace.shape[3]] = np.moveaxis(filled[:, acquired], 0, -1)
        flat = lines.reshape(len(lines), -1)
        windows = np.lib.stride_tricks.sliding_window_view(flat, SAMPLES * self.coils, axis=1)[:, :: self.coils]
        number = np.full(sampled.shape, len(lines) - 1)
        number[acquired] = np.arange(len(lines) - 1)

        for kernel, sites, place, cells, cell in self._missing(sampled, lattice):
            sources = _look_up(number, cells[:, np.newaxis] + kernel.sources, len(lines) - 1)
            values = np.empty((len(cells), kspace.shape[3], len(kernel.places) * self.coils), np.complex64)
            levels = self._levels_of(cells)
            for level, weights in enumerate(kernel.weights):
                weights = weights.reshape(-1, values.shape[2])
                in_cell, sample = np.nonzero(levels == level)
                step = max(CHUNK // len(weights), 1)
                for begin in range(0, len(sample), step):
                    part = in_cell[begin : begin + step], sample[begin : begin + step]
                    near = windows[sources[part[0]], part[1][:, np.newaxis]]
                    values[part] = near.reshape(len(near), -1) @ weights
            values = values.reshape(*values.shape[:2], -1, self.coils)[cell, :, np.searchsorted(kernel.places, place)]
            filled[:, sites[:, 0], sites[:, 1]] = values.transpose(2, 0, 1)
        return filled

    def _missing(self, sampled: NDArray[np.bool_], lattice: Lattice) -> Any:
        """For each kernel: its missing sites [site, (partition, row)] and places, the cells, and each site's cell."""
        missing = np.argwhere(acquired_region(sampled) & ~sampled)
        places = lattice.places(*missing.T)
        for kernel in self.kernels:
            chosen = np.isin(places, kernel.places)
            if chosen.any():
                sites, place = missing[chosen], places[chosen]
                own = sites - np.stack(np.divmod(place, lattice.row_step), axis=1)
                cells, cell = np.unique(own, axis=0, return_inverse=True)
                yield kernel, sites, place, cells, cell

    def _levels_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level of each sample [cell, sample]; a cell that begins beyond the matrix has that of its edge."""
        partitions, rows = np.clip(cells, 0, np.array(self.levels.shape[:2]) - 1).T
        return self.levels[partitions, rows]

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
        if lattice.steps != self.lattice.steps or sampled.shape != self.levels.shape[:2]:
            raise ValueError(
                f"lines of {sampled.shape} at steps {lattice.steps}, the calibration was made for "
                f"{self.levels.shape[:2]} at {self.lattice.steps}"
            )
        combining = weights.conj().transpose(3, 1, 2, 0).reshape(weights.shape[3], -1, self.coils).astype(np.complex64)
        acquired = sampled & (lattice.places(*np.indices(sampled.shape)) == 0)
        region, lines = np.count_nonzero(acquired_region(sampled)), np.count_nonzero(acquired)
        energy = (np.abs(combining) ** 2).sum(axis=2)  # [column, partition x row]
        total = energy * np.count_nonzero(sampled)
        for level, used in enumerate(self._use(sampled, acquired, lattice)):
            if used > 0:
                total += lines * used * (self._amplified(combining, sampled.shape, lattice, level) - energy)
        ratio = np.where(energy > 0, total / region / np.where(energy > 0, energy, 1), 0)
        g = np.sqrt(ratio.clip(0) * np.count_nonzero(sampled) / region)
        return g.T.reshape(weights.shape[1:]).astype(np.float32)

    def _amplified(
        self, combining: NDArray[np.complex64], shape: tuple[int, ...], lattice: Lattice, level: int
    ) -> NDArray[np.float32]:
        """Energy [column, partition x row] that a sample of the lattice adds to the image, were all of one level."""
        columns = len(combining)
        waves = [np.exp(-2j * np.pi * (np.arange(n) - n // 2) / n) for n in shape]
        taps = np.arange(SAMPLES) - SAMPLES // 2
        along = np.exp(-2j * np.pi / columns * np.outer(np.arange(columns) - columns // 2, taps)).astype(np.complex64)
        energy = np.empty(combining.shape[:2], np.float32)
        step = max(CHUNK // (combining.shape[1] * self.coils), 1)
        for begin in range(0, columns, step):
            part = slice(begin, begin + step)
            through = combining[part].copy()
            for kernel in self.kernels:
                # by column, line, coil, place and coil
                in_image = np.einsum("xt,ltcpd->xlcpd", along[part], kernel.weights[level], optimize=True)
                targets = np.stack(np.divmod(kernel.places, lattice.row_step), axis=1)
                for line, source in enumerate(kernel.sources):
                    for place, (partition, row) in enumerate(source - targets):
                        wave = np.multiply.outer(waves[0] ** partition, waves[1] ** row).reshape(-1, 1)
                        through += wave.astype(np.complex64) * (
                            combining[part] @ in_image[:, line, :, place].transpose(0, 2, 1)
                        )
            energy[part] = (through.real**2 + through.imag**2).sum(axis=2)
        return energy

    def _use(self, sampled: NDArray[np.bool_], acquired: NDArray[np.bool_], lattice: Lattice) -> NDArray[np.float64]:
        """Energy of the weights of each level that are applied, over that if it were applied to all samples.

        Lines at edges, and beside calibration lines, are sources of fewer targets than others.
        """
        count = self.kernels[0].weights.shape[0] if self.kernels else 0
        applied, all_targets = np.zeros(count), np.zeros(count)
        for kernel in self.kernels:
            energy = (np.abs(kernel.weights) ** 2).sum(axis=(2, 3, 5))  # [level, line, place]
            all_targets += energy.sum(axis=(1, 2)) * (np.count_nonzero(acquired) * self.levels.shape[2])
        for kernel, _, place, cells, cell in self._missing(sampled, lattice):
            energy = (np.abs(kernel.weights) ** 2).sum(axis=(2, 3, 5))
            there = _look_up(acquired, cells[:, np.newaxis] + kernel.sources, False)[cell]  # [site, line]
            energy = energy[:, :, np.searchsorted(kernel.places, place)]  # [level, line, site]
            samples = np.equal.outer(self._levels_of(cells)[cell], np.arange(count)).sum(axis=1)  # [site, level]
            applied += np.einsum("sl,gls,sg->g", there, energy, samples)
        return np.divide(applied, all_targets, out=np.zeros(count), where=all_targets > 0)


def _look_up(values: NDArray[Any], sites: NDArray[np.int64], none: int) -> NDArray[Any]:
    """Look up sites [..., (partition, row)] in [partition, row]; `none` for those beyond the matrix."""
    inside = np.all((sites >= 0) & (sites < values.shape), axis=-1, keepdims=True)
    partitions, rows = np.moveaxis(np.where(inside, sites, 0), -1, 0)
    return np.where(inside[..., 0], values[partitions, rows], none)


def calibrate(
    calibration: NDArray[np.complexfloating],
    kspace: NDArray[np.complexfloating],
    sampled: NDArray[np.bool_],
    noise_variance: float | None = None,
) -> Grappa:
    """Find the weights on calibration lines.

    Weights w that predict samples of signal energy a c from sources with the covariance a C + noise, where C and c are
    those of the calibration, have the least mean squared error for (C + noise / a) w = b, b the covariance of sources
    and targets: a Tikhonov weight of the calibration's energy over the signal-to-noise ratio of the samples to be
    filled. That ratio comes from the mean energy of the acquired samples around them. Each position counts by its
    amplitude, not by its energy, since the few samples at the centre of k-space are unlike those to be filled.

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
        Mean |noise|^2 of a sample, 1 for whitened data; None: `spectrum.estimate_noise`.

    Raises
    ------
    CalibrationError
        There are too few lines for the kernel, or they are zero or not finite.
    IrregularSamplingError
        The lines do not lie on a lattice.
    """
    lattice = find_lattice(sampled)
    total = np.vdot(calibration, calibration).real
    if not (np.isfinite(total) and total > 0):
        raise CalibrationError("the calibration lines are zero or not finite, or there are none")
    coils, *lines, samples = calibration.shape
    count = LINES if lines[0] == 1 else LINES_3D
    groups = _groups(lattice, count, lines[0] == 1)
    needed = np.max([_block(lattice, *group)[2] for group in groups], axis=0, initial=1)
    positions = int(np.clip(lines - needed + 1, 0, None).prod()) * max(samples - SAMPLES + 1, 0)
    if (lines < needed).any() or positions < coils * count * SAMPLES:
        raise CalibrationError(
            f"the calibration has {lines[0]} x {lines[1]} lines (partitions x rows) of {samples} samples: for {coils} "
            f"coils and lines at steps (partition, row, shift) of {lattice.steps}, {needed[0]} x {needed[1]} lines are "
            f"the least, and have to fit in at {coils * count * SAMPLES} places; they fit in at {positions}"
        )
    fits = [_fit(calibration, lattice, *group) for group in groups]
    energy = local_energy(kspace, sampled, lattice.steps[:2])
    if noise_variance is None:
        noise_variance = estimate_noise(kspace, sampled)
    ratio = energy / max(noise_variance, np.finfo(np.float32).tiny) - 1
    ratio = np.clip(ratio, LEAST_SIGNAL, 1 / LEAST_WEIGHT)
    exponents = np.round(np.log(ratio) / np.log(LEVEL_RATIO)).astype(int)
    present, levels = np.unique(exponents, return_inverse=True)
    ratios = LEVEL_RATIO**present
    kernels = []
    for (places, sources), (values, vectors, projected) in zip(groups, fits, strict=True):
        mean = float(values.mean())
        signal = max(mean - noise_variance, LEAST_SIGNAL * noise_variance)
        added = np.maximum(signal / ratios - noise_variance, LEAST_WEIGHT * mean).astype(np.float32)
        weights = vectors @ (projected / (values.clip(0) + added[:, np.newaxis])[..., np.newaxis])
        kernels.append(
            _Kernel(places, sources, weights.reshape(len(ratios), len(sources), SAMPLES, coils, len(places), coils))
        )
    return Grappa(lattice, coils, levels.reshape(ratio.shape), tuple(kernels))


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


def _fit(
    calibration: NDArray[Any], lattice: Lattice, places: NDArray[np.int64], sources: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.complex64], NDArray[np.complex64]]:
    """Eigenvalues and vectors V of S^H S, and V^H S^H T: T samples of the places of a group, S those of the sources."""
    sources_in, targets_in, block = _block(lattice, places, sources)
    coils, *lines, samples = calibration.shape
    partitions, rows = np.array(lines) - block + 1
    columns = samples - SAMPLES + 1
    step = max(partitions * rows * columns // (MAX_EQUATIONS * coils * len(sources) * SAMPLES), 1)

    def windows(places_in: NDArray[np.int64], taps: Any) -> NDArray[np.complex64]:
        """Samples [line x tap x coil, partition x row x sample] at each position of the block."""
        parts = [
            calibration[:, p : p + partitions, r : r + rows, tap : tap + columns : step]
            for p, r in places_in
            for tap in taps
        ]
        return np.concatenate(parts).reshape(len(parts) * coils, -1).astype(np.complex64)

    from_lines, to_lines = windows(sources_in, range(SAMPLES)), windows(targets_in, [SAMPLES // 2])
    amplitude = np.sqrt((from_lines.real**2 + from_lines.imag**2).mean(axis=0))
    weight = 1 / np.maximum(amplitude, np.finfo(np.float32).eps * amplitude.max())
    weighted = from_lines.conj() * (weight / weight.sum(dtype=np.float64)).astype(np.float32)
    values, vectors = np.linalg.eigh(weighted @ from_lines.T)
    return values, vectors, vectors.conj().T @ (weighted @ to_lines.T)
