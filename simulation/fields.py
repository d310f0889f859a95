"""Exact signals of objects in fields that are not what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulation.phantom import Coils, Ellipse


def detuned_kspace(
    coils: Coils, ellipses: Sequence[Ellipse], frequencies: Sequence[float], kx: Any, ky: Any, time: ArrayLike
) -> NDArray[np.complexfloating]:
    """Exact signal of ellipses of which each has a frequency of its own.

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
    signals = [
        coils.kspace((ellipse,), kx, ky) * np.exp(-2j * np.pi * frequency * np.asarray(time))
        for ellipse, frequency in zip(ellipses, frequencies, strict=True)
    ]
    return np.sum(signals, axis=0)


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
