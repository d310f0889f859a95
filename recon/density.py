"""Density compensation of any 2-D trajectory: the part of k-space that each sample stands for.

Compared were ring areas (`trajectory.ring_areas`), Voronoi cells, and Pipe and Menon's iteration, by the error of the
gridded image of a chest against its exact band-limited image: spirals of two sequences by another program (with their
own weights as well), other spirals, spirals of variable density, radial scans and rosettes, evenly turned and by the
golden angle, filling k-space and with few arms. Pipe and Menon's iteration has the smallest error with few arms, with
arms turned by the golden angle and for radial scans, and a smaller one than the sequences' own weights. Where evenly
turned arms fill k-space, ring areas are a little better, and all errors are small; elsewhere they are the worst.
Voronoi cells are better for many golden-angle spirals only, and take longer. ``python benchmarks/density.py`` gives the
figures (``doc/benchmarks.md``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon import nufft

ITERATIONS = 30  # more change the error of an image by less than a tenth of it
MANY_SAMPLES = 1 << 19  # the first arms with as many tell the weights of all arms that are turned copies
TURNED = 1e-2  # of the largest |k|: by how much |k| of turned copies differs at most
SAME_PLACE = 1e-4  # of the largest |k|: samples that are not farther apart are one in the iteration
FLOOR = 1e-3  # of the largest sum of neighbouring weights: the least that a weight is divided by


def compensation(
    k: NDArray[np.floating], field_of_view: tuple[float, float], iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    """Density compensation of a 2-D trajectory by Pipe and Menon's iteration w <- w / (w * psi).

    The kernel psi is the Fourier transform of the overlap of two ellipses with the field of view as their axes, shifted
    against each other: a squared Bessel function, so that no weight becomes negative. With the final weights each
    sample's neighbourhood, 1 / field of view wide, has the weighted density 1. Where samples are farther apart than
    that, a weight stays at the area of one such neighbourhood: gaps do not make their borders bright. Samples at one
    place, such as the start of all arms or a receiver that runs before the gradients do, share its weight; one by one
    they would make the iteration converge slowly.

    Parameters
    ----------
    k
        K-space [arm, sample, (kx, ky)] [1/m], of all arms of one image.
    field_of_view
        Of the object (x, y) [m].
    iterations
        Number of steps, each one adjoint and one forward transform.

    Returns
    -------
    Weights [arm, sample] [1/m^2]: the weighted adjoint transform of s(k) = integral rho(r) exp(-2 pi i k.r) dr is rho.

    Raises
    ------
    ValueError
        The trajectory is not [arm, sample, 2], or it or the field of view are not finite.

    References
    ----------
    Pipe, Menon. Sampling density compensation in MRI. Magn Reson Med 1999;41:179.
    Kernel: Johnson, Pipe. Convolution kernel design and efficient algorithm for sampling density correction. Magn Reson
    Med 2009;61:439.
    """
    if np.ndim(k) != 3 or k.shape[2] != 2 or not np.isfinite(k).all() or not 0 < min(field_of_view) < np.inf:
        raise ValueError(
            f"k is {np.shape(k)}, the field of view {field_of_view} m: expected [arm, sample, 2] and (x, y), finite"
        )
    cycles = np.asarray(k, float) * field_of_view
    # Of one field of view; the kernel is as wide as two.
    nx, ny = (int(2 * np.ceil(edge)) + 2 for edge in np.abs(cycles).max(axis=(0, 1)))
    steps = np.rint(cycles / (SAME_PLACE * (np.abs(cycles).max() or 1.0))).reshape(-1, 2)
    _, first, place, count = np.unique(
        steps[:, 0] + 1j * steps[:, 1], return_index=True, return_inverse=True, return_counts=True
    )
    plan = nufft.ArmPlan(2 * cycles.reshape(1, -1, 2)[:, first], (2 * ny, 2 * nx))
    x, y = np.arange(-nx, nx) / nx, np.arange(-ny, ny) / ny
    radius = np.minimum(np.hypot(x, y[:, np.newaxis]), 1)
    overlap = 2 / np.pi * (np.arccos(radius) - radius * np.sqrt(1 - radius**2))
    transform = (overlap * (field_of_view[0] * field_of_view[1] / (nx * ny))).astype(np.float32)
    weights = np.ones((1, 1, len(first)))
    for _ in range(iterations):
        around = plan.forward(plan.adjoint(weights.astype(np.complex64)) * transform).real
        weights /= np.maximum(around, FLOOR * around.max())
    return (weights[0, 0] / count)[place].reshape(cycles.shape[:2])


def weights_of_arms(k: NDArray[np.floating], field_of_view: tuple[float, float]) -> NDArray[np.float64]:
    """Density compensation of the arms of a sequence, at most 1.

    Thousands of arms that are turned copies of one another have the same weights: those of the first ones, on average.

    Parameters
    ----------
    k
        K-space [arm, sample, (kx, ky)] [1/m].
    field_of_view
        Of the object (x, y) [m].

    Returns
    -------
    Weights [arm, sample].
    """
    radius = np.linalg.norm(k, axis=-1)
    if radius.size <= MANY_SAMPLES or np.ptp(radius, axis=0).max() > TURNED * radius.max():
        weights = compensation(k, field_of_view)
    else:
        some = compensation(k[: max(1, MANY_SAMPLES // k.shape[1])], field_of_view)
        weights = np.broadcast_to(some.mean(axis=0), radius.shape)
    return weights / weights.max()
