"""Coil maps from calibration lines by ESPIRiT: one set, or two for an object that overlaps itself.

Blocks of neighbouring samples of all coils lie in a space of few dimensions. In each pixel the vector of coil
sensitivities is the one whose blocks lie in that space: an eigenvector with eigenvalue 1. Where the object is larger
than the field of view two places share a pixel, and there are two such vectors.

How it compares: ``python benchmarks/cartesian.py``.

Reference: Uecker et al., Magn Reson Med 2014;71:990, doi 10.1002/mrm.24751.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from recon.conditioning import compression
from recon.grappa import CalibrationError

KERNEL, KERNEL_3D = 6, 4  # edge of a block of samples
COLUMNS = 24  # samples along the readout, at least, that are looked at
SIGNAL = 0.03  # singular values of blocks below this part of the largest are noise
CROP = 0.95  # eigenvalues below belong to no coil sensitivity
MAX_COILS = 12  # combinations that the maps are made for, and expanded to all coils
CHUNK = 2**22  # complex numbers worked on at once


def coil_maps(
    calibration: NDArray[np.complexfloating], shape: tuple[int, int, int], sets: int = 1
) -> NDArray[np.complex64]:
    """Coil maps for an image of any size that covers the field of view of the calibration lines.

    Parameters
    ----------
    calibration
        [coil, partition, row, sample], a block without gaps from the centre of k-space.
    shape
        (partitions, rows, columns) of the image, x = 0 at index N // 2.
    sets
        1, or 2 for an object that may be larger than the field of view.

    Returns
    -------
    Maps [set, coil, partition, row, column]. In each pixel the sets are orthogonal, and the sum of |map|^2 over coils
    is 1, or 0 where there is no signal; the phase is such that the strongest combination of coils is real.

    Raises
    ------
    CalibrationError
        There are too few lines for a block, or they are zero or not finite.
    """
    coils, *lines, samples = calibration.shape
    energy = np.vdot(calibration, calibration).real
    if not (np.isfinite(energy) and energy > 0):
        raise CalibrationError("the calibration lines are zero or not finite, or there are none")
    edge = KERNEL if lines[0] == 1 else KERNEL_3D
    edges = [1 if lines[0] == 1 else edge, edge, edge]
    columns = min(samples, max(*lines, COLUMNS))
    needed = [1 if edge == 1 else 2 * edge - 1 for edge in edges]  # as many places for a block as samples in it
    if any(n < least for n, least in zip((*lines, columns), needed, strict=True)):
        raise CalibrationError(
            f"the calibration has {lines[0]} x {lines[1]} lines (partitions x rows) of {samples} samples: coil maps "
            f"need at least {needed[0]} x {needed[1]} of {needed[2]}"
        )
    start = samples // 2 - columns // 2
    block = calibration[..., start : start + columns]
    block = (block / np.sqrt(energy / block.size)).astype(np.complex64)
    mixing, _ = compression(block.reshape(1, 1, coils, -1), np.ones((1, 1)))
    mixing = mixing[:MAX_COILS] if coils > MAX_COILS else np.eye(coils, dtype=np.complex64)
    return _eigenvectors(_lags(np.tensordot(mixing, block, axes=1), edges), shape, sets, mixing)


def _lags(block: NDArray[np.complex64], edges: list[int]) -> NDArray[np.complex64]:
    """Projection onto the space of blocks, summed over pairs at the same distance: [coil, coil, (distances)]."""
    windows = np.lib.stride_tricks.sliding_window_view(block, edges, axis=(1, 2, 3))
    coils, size = len(block), int(np.prod(edges))
    matrix = windows.transpose(0, 4, 5, 6, 1, 2, 3).reshape(coils * size, -1)
    values, vectors = np.linalg.eigh(matrix @ matrix.conj().T)
    kept = vectors[:, values > SIGNAL**2 * values[-1]]
    projection = (kept @ kept.conj().T).reshape(coils, *edges, coils, *edges)
    lags = np.zeros((coils, coils, *(2 * edge - 1 for edge in edges)), np.complex64)
    for place in itertools.product(*map(range, edges)):
        part = tuple(slice(edge - 1 - at, 2 * edge - 1 - at) for at, edge in zip(place, edges, strict=True))
        lags[:, :, *part] += projection[:, *place]
    return lags / size


def _eigenvectors(
    lags: NDArray[np.complex64], shape: tuple[int, int, int], sets: int, mixing: NDArray[np.complex64]
) -> NDArray[np.complex64]:
    """Eigenvectors of the largest eigenvalues of the transform of `lags` in each pixel, expanded to all coils."""
    coils = len(lags)
    waves = []
    for n, width in zip(shape, lags.shape[2:], strict=True):
        distances, places = np.arange(width) - width // 2, (np.arange(n) - n // 2) / n
        waves.append(np.exp(-2j * np.pi * np.outer(places, distances)).astype(np.complex64))
    # [partition, coil, coil, row distance, column]: small, since the distances are few
    partial = np.einsum("pi,abijk,xk->pabjx", waves[0], lags, waves[2], optimize=True)
    maps = np.empty((sets, mixing.shape[1], *shape), np.complex64)
    step = max(CHUNK // (coils * coils * shape[2]), 1)
    for partition in range(shape[0]):
        for begin in range(0, shape[1], step):
            rows = waves[1][begin : begin + step]
            matrices = np.tensordot(rows, partial[partition], axes=(1, 2)).transpose(0, 3, 1, 2)
            values, vectors = np.linalg.eigh(matrices)
            for number in range(sets):
                vector = vectors[..., -1 - number] * (values[..., -1 - number, np.newaxis] > CROP)
                along = vector[..., :1]
                size = np.abs(along)
                vector = vector * np.where(size > 0, along.conj() / np.where(size > 0, size, 1), 1)
                maps[number, :, partition, begin : begin + step] = np.moveaxis(vector @ mixing.conj(), -1, 0)
    return maps
