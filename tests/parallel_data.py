"""Undersampled Cartesian scans in closed form, for the tests of parallel imaging."""

from dataclasses import dataclass

import numpy as np

from recon.fourier import centred_ifft
from simulation import phantom

SIZE = 0.24  # of the object [m]


@dataclass
class CartesianScan:
    """full [coil, 1, row, sample], exact coil images [coil, 1, row, column], normalised maps and magnitude."""

    full: np.ndarray
    images: np.ndarray
    maps: np.ndarray

    @property
    def truth(self):
        return np.sqrt((np.abs(self.images) ** 2).sum(axis=0))


def scan(rows=96, columns=80, coils=8, noise=0.003, wrap=1.0, seed=0):
    """Head phantom in a field of view of 256 mm, divided by `wrap` along rows; noise over the largest magnitude."""
    fov_y, fov_x = 0.256 / wrap, 0.256
    ky, kx = (np.arange(rows) - rows // 2) / fov_y, (np.arange(columns) - columns // 2) / fov_x
    ring = phantom.ring_of_coils(coils, 0.256)
    exact = ring.kspace(phantom.shepp_logan(SIZE), kx[np.newaxis], ky[:, np.newaxis])[:, np.newaxis]
    images = to_images(exact)
    unit = np.sqrt((np.abs(images) ** 2).sum(axis=0)).max()
    rng = np.random.default_rng(seed)
    full = exact / unit + noise * np.sqrt(rows * columns / 2) * white(rng, exact.shape)
    x, y = phantom.pixel_grid((rows, columns), (fov_y / rows, fov_x / columns))
    maps = ring.maps(x, y)
    maps = (maps / np.sqrt((np.abs(maps) ** 2).sum(axis=0)))[:, np.newaxis]
    return CartesianScan(full.astype(np.complex64), images / unit, maps.astype(np.complex64))


def white(rng, shape):
    """Complex noise, variance 1 of real and imaginary part each."""
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def pattern(rows, step, calibration=24, first=0, partitions=1):
    """Lines [partition, row]: every `step`-th row, and `calibration` rows round the centre."""
    sampled = np.zeros((partitions, rows), bool)
    sampled[:, first::step] = True
    sampled[:, rows // 2 - calibration // 2 : rows // 2 - calibration // 2 + calibration] = True
    return sampled


def centre(kspace, lines=24):
    """Calibration rows round the centre."""
    start = kspace.shape[2] // 2 - lines // 2
    return kspace[:, :, start : start + lines]


def to_images(kspace):
    """Coil images [coil, partition, row, column]."""
    for axis in (1, 2, 3):
        kspace = centred_ifft(kspace, axis)
    return kspace


def magnitude(images):
    return np.sqrt((np.abs(images) ** 2).sum(axis=0))


def error(image, truth):
    """Relative error after one factor."""
    image = np.abs(image)
    factor = (image * truth).sum() / (image * image).sum()
    return np.linalg.norm(factor * image - truth) / np.linalg.norm(truth)


def volume(shape=(24, 40, 32), coils=8, noise=0.003, seed=0):
    """k-space [coil, partition, row, sample] of ellipsoids, and their density."""
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / n for n in shape), indexing="ij")
    density = 1.0 * ((z / 0.4) ** 2 + (y / 0.42) ** 2 + (x / 0.4) ** 2 < 1)
    density += 0.7 * (((z - 0.1) / 0.15) ** 2 + ((y - 0.1) / 0.2) ** 2 + ((x + 0.1) / 0.1) ** 2 < 1)
    maps = []
    for coil in range(coils):
        angle = 2 * np.pi * coil / coils
        place = np.array([0.42 if coil % 2 else -0.42, 0.6 * np.cos(angle), 0.6 * np.sin(angle)])
        distance = (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2
        maps.append(np.exp(-distance / 0.35 + 1j * (angle + 2 * y * place[1] + 2 * z * place[0])))
    maps = np.array(maps) / np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(maps * density, (1, 2, 3)), axes=(1, 2, 3)), (1, 2, 3))
    noisy = kspace + noise * np.sqrt(density.size / 2) * white(np.random.default_rng(seed), kspace.shape)
    return noisy.astype(np.complex64), density
