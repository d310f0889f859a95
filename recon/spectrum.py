"""Signal and noise in the parts of Cartesian k-space: what regularisation is chosen by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 9  # edge of the block of samples whose mean energy stands for that of its centre
STRETCH, COILS = 16, 4  # samples, and coils at most, whose covariance shows the noise
NULL_SPACE = 0.1  # of its eigenvalues are noise alone, about


def local_energy(
    kspace: NDArray[np.complexfloating], sampled: NDArray[np.bool_], steps: tuple[int, int] = (1, 1)
) -> NDArray[Any]:
    """Mean |sample|^2 over coils and over the acquired samples around each place.

    Parameters
    ----------
    kspace
        [coil, partition, row, sample].
    sampled
        [partition, row], where there is a line. What `kspace` holds elsewhere is not looked at.
    steps
        Distances of lines along partitions and rows: the block is large enough to hold one.

    Returns
    -------
    [partition, row, sample]; 0 where no line is near.
    """
    from scipy.ndimage import uniform_filter, uniform_filter1d

    size = np.maximum(BLOCK, [2 * step + 1 for step in steps])
    energy = np.where(sampled[..., np.newaxis], kspace.real**2 + kspace.imag**2, 0).mean(axis=0, dtype=np.float64)
    energy = uniform_filter(energy, (*size, 0), mode="constant")
    lines = uniform_filter(sampled.astype(float), size, mode="constant")[..., np.newaxis]
    near = lines > 1e-9
    energy = np.where(near, energy / np.where(near, lines, 1), 0)
    return uniform_filter1d(energy, BLOCK, axis=2, mode="nearest").clip(0)


def estimate_noise(kspace: NDArray[np.complexfloating], sampled: NDArray[np.bool_]) -> float:
    """Estimate the mean |noise|^2 of a sample, for data that were not whitened and came without noise readouts.

    Stretches of neighbouring samples of all coils hold less signal in some directions than in others: where the object
    does not fill the field of view along the readout, and where coils are alike. The smallest eigenvalues of their
    covariance are the noise. Each stretch counts by the inverse of its energy, so that those from the edges of k-space
    prevail. Too large where signal is in all directions.

    Parameters
    ----------
    kspace
        [coil, partition, row, sample].
    sampled
        [partition, row], where there is a line.
    """
    lines = kspace[:COILS, sampled]
    length = min(STRETCH, lines.shape[2])
    windows = np.lib.stride_tricks.sliding_window_view(lines, length, axis=2)[:, :, :: max(length // 2, 1)]
    stretches = windows.transpose(1, 2, 0, 3).reshape(-1, len(lines) * length)
    energy = np.linalg.norm(stretches, axis=1)
    stretches = stretches[energy > 0] / energy[energy > 0, np.newaxis]
    if not len(stretches):
        return 0.0
    values = np.linalg.eigvalsh(stretches.T @ stretches.conj()) / (1 / energy[energy > 0] ** 2).sum(dtype=np.float64)
    return max(float(np.quantile(values, NULL_SPACE)), 0.0)
