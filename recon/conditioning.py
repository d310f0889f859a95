"""Preparation of samples for reconstruction: fewer coils, and a scale that makes weights comparable.

References: Buehrer et al., Magn Reson Med 2007;57:1131, doi 10.1002/mrm.21237 (coil compression by singular values).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.arrays import array_module

logger = logging.getLogger(__name__)

KEPT_ENERGY = 0.999


class SampleError(ValueError):
    """The samples cannot be reconstructed; the text says why."""


def virtual_coils(kspace: NDArray[Any], most: int) -> NDArray[np.complex64]:
    """Orthonormal combinations [combination, coil] of coils, at most so many, that keep most energy.

    Parameters
    ----------
    kspace
        [coil, ...].
    most
        Their number.
    """
    samples = kspace.reshape(len(kspace), -1)
    _, vectors = np.linalg.eigh(samples @ samples.conj().T)
    return vectors[:, ::-1][:, :most].conj().T.astype(np.complex64)


def compression(samples: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[np.complex64], float]:
    """Find the fewest combinations of coils that keep `KEPT_ENERGY`.

    Parameters
    ----------
    samples
        [frame, arm, coil, sample].
    weights
        [frame, arm]; arms of weight 0 are not looked at.

    Returns
    -------
    mixing : [combination, coil]
        Orthonormal, in the order of their energy.
    energy : float
        Weighted sum of |sample|^2 over all samples of these combinations.

    Raises
    ------
    SampleError
        The samples are zero or not finite, or there are none.
    """
    coils = samples.shape[2]
    covariance = np.zeros((coils, coils), complex)
    for frame, weight in zip(samples, weights, strict=True):
        for arm in np.flatnonzero(weight):
            covariance += weight[arm] * (frame[arm] @ frame[arm].conj().T)
    if not np.isfinite(covariance).all():
        raise SampleError("the samples hold values that are no numbers")
    energies, vectors = np.linalg.eigh(covariance)
    energies, vectors = energies[::-1].clip(0), vectors[:, ::-1]
    if not energies.sum() > 0:
        raise SampleError("all samples are zero, or of arms of weight 0: there is nothing to reconstruct")
    kept = int(np.searchsorted(energies.cumsum(), KEPT_ENERGY * energies.sum())) + 1
    logger.info("%d of %d coils keep %.2f %% of the energy", kept, coils, 100 * energies[:kept].sum() / energies.sum())
    return vectors[:, :kept].conj().T.astype(np.complex64), float(energies[:kept].sum())


def robust_scale(images: Any) -> float:
    """Scale of the data as BART estimates it from their adjoint images.

    The 90th percentile of the magnitude or, where the maximum is farther above it than twice its distance from the
    median, the maximum.

    Raises
    ------
    SampleError
        The images are zero or not finite.
    """
    xp = array_module(images)
    magnitudes = xp.abs(images)
    median, high = (float(value) for value in xp.percentile(magnitudes, xp.asarray([50.0, 90.0])))
    largest = float(magnitudes.max())
    scale = high if largest - high < 2 * (high - median) else largest
    if not (np.isfinite(scale) and scale > 0):
        raise SampleError(f"the images of the data reach {largest:g}: zeros or not finite, nothing to reconstruct")
    return scale
