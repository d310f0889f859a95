"""Exact signals of objects in fields that are not what they should be.

Off-resonance of frequency f turns the signal as exp(-2 pi i f t), t the time since the excitation. One that grows
linearly over the object moves k by its gradient times t; concomitant fields in an axial plane are a common phase: both
are exact. Where concomitant fields vary over the image the signal is a direct sum over points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulation.phantom import Coils, Ellipse
from simulation.spiralphantom import moving_kspace, raster

GAMMA_BAR = 42.576e6  # [Hz/T]
POINTS_PER_PIXEL = 2  # along each axis, of direct sums
CHUNK = 2**13  # points that are summed up at once
PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # of coordinates, in a quadratic form


@dataclass(frozen=True)
class OffResonance:
    """Off-resonance that grows linearly over the image.

    Attributes
    ----------
    centre
        In the centre of the image [Hz].
    across, down
        Growth over the field of view from the left to the right of the image, and from its top to its bottom [Hz].
    """

    centre: float = 0.0
    across: float = 0.0
    down: float = 0.0

    def map(self, matrix: int) -> NDArray[np.float64]:
        """At the pixels [row, column] of a square image [Hz]."""
        place = (np.arange(matrix) - matrix // 2) / matrix
        return self.centre + self.across * place + self.down * place[:, np.newaxis]

    def gradient(self, fov: float) -> NDArray[np.float64]:
        """Along x and y of k-space [2] [Hz/m]: x and y grow from right to left and from bottom to top."""
        return -np.array([self.across, self.down]) / fov


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an image lies, for the concomitant fields of the gradients.

    Attributes
    ----------
    centre
        Its centre from the isocentre, in patient coordinates [m].
    axes
        read_dir, phase_dir and slice_dir as rows [3, 3].
    b0
        Main field [T].
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    b0: float

    @property
    def is_axial(self) -> bool:
        """True where all points have the same z."""
        return bool(np.abs(self.axes[:2, 2]).max() < 1e-9)

    def places(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
        """Patient coordinates [point, 3] of points at x, y [m] of k-space: read_dir and phase_dir go against them."""
        return self.centre - np.outer(x, self.axes[0]) - np.outer(y, self.axes[1])

    def cycles(self, k: NDArray[np.float64], dwell: float, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phase of the concomitant fields since the first sample [..., sample, point] [cycles].

        Each gradient is played from one sample to the next:
        B_c = ((Gx^2 + Gy^2) z^2 + Gz^2 (x^2 + y^2) / 4 - Gx Gz x z - Gy Gz y z) / (2 B0).

        Parameters
        ----------
        k
            (kx, ky) [..., sample, 2] [1/m].
        dwell
            Time from sample to sample [s].
        places
            [point, 3] [m].
        """
        steps = np.diff(k, axis=-2, prepend=k[..., :1, :]) / (dwell * GAMMA_BAR)
        gx, gy, gz = np.moveaxis(steps @ self.axes[:2], -1, 0)  # [T/m], but for a sign that no product has
        coefficients = np.stack([gz**2 / 4, gz**2 / 4, gx**2 + gy**2, np.zeros_like(gz), -gx * gz, -gy * gz], axis=-1)
        products = np.stack([places[:, i] * places[:, j] for i, j in PRODUCTS])
        return GAMMA_BAR * dwell / (2 * self.b0) * np.cumsum(coefficients, axis=-2) @ products


def signal(
    ellipses: NDArray[np.float64], frequencies: NDArray[np.float64], k: NDArray[np.float64], time: NDArray[np.float64],
    coils: Coils,
) -> NDArray[np.complex64]:  # fmt: skip
    """Exact signal of ellipses of which each has a frequency of its own.

    Parameters
    ----------
    ellipses
        Parameters [arm, ellipse, 6].
    frequencies
        Of each ellipse [Hz]; empty: all are 0.
    k
        (kx, ky) [arm, sample, 2] [1/m].
    time
        Since the excitation [arm, sample] [s].
    coils
        Sensitivities.

    Returns
    -------
    Signal [arm, coil, sample] [density m^2].
    """
    if not np.any(frequencies):
        return moving_kspace(ellipses, k, coils)
    total = np.zeros((len(k), len(coils.weights), k.shape[1]), np.complex64)
    for frequency in np.unique(frequencies):
        part = moving_kspace(ellipses[:, frequencies == frequency], k, coils)
        total += part * np.exp(-2j * np.pi * frequency * time)[:, np.newaxis]
    return total


def summed_signal(
    ellipses: NDArray[np.float64], frequencies: NDArray[np.float64], k: NDArray[np.float64], time: NDArray[np.float64],
    coils: Coils, plane: Plane, dwell: float, size: tuple[int, float],
) -> NDArray[np.complex64]:  # fmt: skip
    """As `signal`, of one arm, with concomitant fields: a direct sum over points.

    Parameters
    ----------
    ellipses
        [ellipse, 6].
    k, time
        [sample, 2] [1/m], [sample] [s].
    plane
        Where the image lies.
    dwell
        Time from sample to sample [s].
    size
        Pixels along each side of the image that has all of the object, and their size [m].

    Returns
    -------
    Signal [coil, sample].
    """
    matrix, pixel = size[0] * POINTS_PER_PIXEL, size[1] / POINTS_PER_PIXEL
    axis: NDArray[np.floating] = -(np.arange(matrix) - matrix // 2) * pixel
    own = frequencies if len(frequencies) else np.zeros(len(ellipses))
    total = np.zeros((len(coils.weights), len(k)), np.complex128)
    for frequency in np.unique(own):
        density = raster(ellipses[own == frequency], matrix, pixel)
        rows, columns = np.nonzero(density)
        x, y, density = axis[columns], axis[rows], density[rows, columns]
        for begin in range(0, len(x), CHUNK):
            part = slice(begin, begin + CHUNK)
            cycles = plane.cycles(k, dwell, plane.places(x[part], y[part]))
            cycles += k @ np.stack([x[part], y[part]]) + frequency * time[:, np.newaxis]
            phase = (-2 * np.pi * (cycles % 1)).astype(np.float32)
            weighted = (density[part] * coils.maps(x[part], y[part])).astype(np.complex64)
            total += weighted @ (np.cos(phase) + 1j * np.sin(phase)).T
    # Densities are means over squares, which takes a sinc away.
    return (total * pixel**2 / np.sinc(k * pixel).prod(axis=-1)).astype(np.complex64)


def detuned_kspace(
    coils: Coils, ellipses: Sequence[Ellipse], frequencies: Sequence[float], kx: Any, ky: Any, time: ArrayLike
) -> NDArray[np.complexfloating]:
    """As `signal`, but in double precision, at single places.

    Parameters
    ----------
    coils
        Sensitivities.
    ellipses
        The object.
    frequencies
        Off-resonance of each ellipse [Hz]; positive ones turn the signal as exp(-2 pi i f t).
    kx, ky
        Places [1/m], of any shapes that broadcast.
    time
        When each of them is sampled [s], likewise.

    Returns
    -------
    Signal [coil, ...] [density m^2].
    """
    return np.sum(
        [
            coils.kspace((ellipse,), kx, ky) * np.exp(-2j * np.pi * frequency * np.asarray(time))
            for ellipse, frequency in zip(ellipses, frequencies, strict=True)
        ],
        axis=0,
    )


def points_signal(
    density: NDArray[Any], places: NDArray[np.float64], k: NDArray[np.float64], cycles: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Signal of points, by a direct sum.

    Parameters
    ----------
    density
        Of each point [point].
    places
        (x, y) along kx and ky [point, 2] [m].
    k
        (kx, ky) [sample, 2] [1/m].
    cycles
        Phase of the fields at each sample and point [sample, point] [cycles].

    Returns
    -------
    Signal [sample].
    """
    return np.exp(-2j * np.pi * (k @ places.T + cycles)) @ density
