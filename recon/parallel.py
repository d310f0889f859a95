"""Accelerated Cartesian scans: the method that fits the sampling pattern, and what it keeps for the next repetition."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon import espirit, sense
from recon.fourier import centred_fft
from recon.grappa import CalibrationError, Grappa, calibrate
from recon.sampling import IrregularSamplingError, acquired_region, find_lattice

logger = logging.getLogger(__name__)

METHODS = ("auto", "grappa", "sense", "l1-wavelet", "none")
MOSTLY_SAMPLED = 0.8  # of the acquired region: what a few lost lines leave is solved without a wavelet penalty
KEPT = 64  # series whose kernels or maps are kept
SETS = 2  # of coil maps: an object larger than the field of view overlaps itself


@dataclass(frozen=True, eq=False)
class Filled:
    """K-space without gaps in its acquired region.

    Attributes
    ----------
    kspace
        complex64 [coil, partition, row, sample]; of a combined image, a set of coil maps takes the place of a coil.
    sites
        Number of lines in the acquired region, those that were not acquired included.
    combined
        Whether the coils are combined.
    noise
        Called with combination weights [coil, partition, row, column]; returns the noise of the combined image in units
        of that of full sampling of the acquired region, and the g-factor: both [partition, row, column]. None where the
        method does not tell.
    """

    kspace: NDArray[np.complex64]
    sites: int
    combined: bool = False
    noise: Callable[[NDArray[np.complex64]], tuple[NDArray[np.float32], NDArray[np.float32]]] | None = None


class ParallelImaging:
    """Fills the gaps of accelerated k-space.

    "auto" is GRAPPA where the lines are regular, and l1-wavelet where they are not. GRAPPA needs no model of one
    sensitivity in each pixel, and l1-wavelet has two sets of maps: both hold where the object is larger than the field
    of view.

    Parameters
    ----------
    method
        One of `METHODS`.
    reg_lambda, num_iter
        Of SENSE and l1-wavelet; None: their own.
    tell, warn
        Called with a text for the client.
    """

    def __init__(
        self,
        method: str = "auto",
        reg_lambda: float | None = None,
        num_iter: int | None = None,
        tell: Callable[[str], None] = logger.info,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self._method = method
        self._options: dict[str, Any] = {"reg_lambda": reg_lambda, "num_iter": num_iter}
        self._options = {name: value for name, value in self._options.items() if value is not None}
        self._tell, self._warn = tell, warn
        self._kernels: dict[tuple[int, ...], Grappa] = {}  # of the latest series
        self._maps: dict[tuple[int, ...], NDArray[np.complex64]] = {}  # the same

    def forget(self, series: tuple[int, ...]) -> None:
        """Drop kernels and maps of earlier repetitions."""
        self._kernels.pop(series, None)
        self._maps.pop(series, None)

    def fill(
        self,
        series: tuple[int, ...],
        kspace: NDArray[np.complex64],
        sampled: NDArray[np.bool_],
        calibration: NDArray[np.complex64] | None,
        noise_variance: float | None = None,
    ) -> Filled:
        """Fill the gaps of one k-space.

        Parameters
        ----------
        series
            Names what repetitions share: kernels and maps are kept for the next one.
        kspace
            [coil, partition, row, sample], k = 0 at index N // 2.
        sampled
            [partition, row], where there is a line.
        calibration
            Block of calibration lines [coil, partition, row, sample]; None: there are none.
        noise_variance
            Mean |noise|^2 of a sample, where it is known.

        Returns
        -------
        The k-space; as it came where there are no gaps, where `method` is "none", or, with a warning, where the
        calibration does not suffice.
        """
        lines, sites = int(np.count_nonzero(sampled)), int(np.count_nonzero(acquired_region(sampled)))
        as_it_came = Filled(kspace, sites, noise=lambda weights: _noise_of_zero_filling(weights, lines / sites))
        if lines == sites or self._method == "none":
            return as_it_came
        count = f"{lines} of {sites} lines were acquired"
        try:
            method, reason = self._choose(sampled, lines / sites)
            if method == "grappa":
                factor = find_lattice(sampled).factor
                if factor > len(kspace):
                    self._warn(f"{len(kspace)} coil(s) cannot make up for an acceleration of {factor}: expect aliasing")
                kernels = self._calibrated(series, kspace, sampled, calibration, noise_variance)
                gain = np.float32(np.sqrt(sites / lines))

                def noise(weights: NDArray[np.complex64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
                    g_factor = kernels.g_factor(weights, sampled)
                    return g_factor * gain, g_factor

                filled = Filled(kernels.fill(kspace, sampled), sites, noise=noise)
            else:
                image = self._solved(method, series, kspace, sampled, calibration, noise_variance)
                filled = Filled(image, sites, combined=True)
        except (CalibrationError, IrregularSamplingError) as error:
            self._warn(f"{count}; the missing ones are taken as zero, expect aliasing: {error}")
            return as_it_came
        self._tell(f"{count}{reason}: {method} makes up for the others")
        return filled

    def _choose(self, sampled: NDArray[np.bool_], part: float) -> tuple[str, str]:
        if self._method != "auto":
            return self._method, ""
        try:
            lattice = find_lattice(sampled)
        except IrregularSamplingError:
            return ("sense", ", a few are missing") if part > MOSTLY_SAMPLED else ("l1-wavelet", ", irregularly")
        partitions = f", in 1 of {lattice.partition_step} partitions" if lattice.partition_step > 1 else ""
        shift = f", shifted by {lattice.shift}" if lattice.shift else ""
        return "grappa", f", 1 of {lattice.row_step} rows{partitions}{shift}"

    def _calibrated(
        self, series: Any, kspace: Any, sampled: Any, calibration: Any, noise_variance: float | None
    ) -> Grappa:
        """Return GRAPPA kernels, those of earlier repetitions where they fit."""
        kernels = self._kernels.get(series)
        if kernels is None or not kernels.fits(kspace.shape, sampled):
            kernels = calibrate(_needed(calibration), kspace, sampled, noise_variance)
            _keep(self._kernels, series, kernels)
        return kernels

    def _solved(
        self, method: str, series: Any, kspace: Any, sampled: Any, calibration: Any, noise_variance: float | None
    ) -> NDArray[np.complex64]:
        """Return the k-space [set, partition, row, sample] of the image that SENSE or l1-wavelet makes."""
        maps = self._maps.get(series)
        if maps is None or maps.shape[1:] != kspace.shape:
            maps = espirit.coil_maps(_needed(calibration), kspace.shape[1:], SETS)
            _keep(self._maps, series, maps)
        solve = sense.l1_wavelet if method == "l1-wavelet" else sense.sense
        image = solve(kspace, sampled, maps, **self._options, noise_variance=noise_variance)
        for axis in (1, 2, 3):
            image = centred_fft(image, axis)
        return image.astype(np.complex64)


def _keep(kept: dict[tuple[int, ...], Any], series: tuple[int, ...], value: Any) -> None:
    """Keep a value for the next repetition, and drop the oldest ones, so that slices and phases do not fill memory."""
    kept[series] = value
    while len(kept) > KEPT:
        del kept[next(iter(kept))]


def _needed(calibration: NDArray[np.complex64] | None) -> NDArray[np.complex64]:
    if calibration is None:
        raise CalibrationError(
            "there are no calibration lines: neither round the k-space centre, nor of their own, nor in a stored "
            "calibration scan (SenMap) that the header names"
        )
    return calibration


def _noise_of_zero_filling(
    weights: NDArray[np.complex64], part: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    ones = np.ones(weights.shape[1:], np.float32)
    return ones * np.float32(np.sqrt(part)), ones
