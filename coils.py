"""Coil sensitivity maps and coil combination.

Images and maps have the coil as their first axis: [coil, y, x] or [coil, z, y, x]. The functions take NumPy and CuPy
arrays and return what they got. Maps are normalised: the sum of |map|^2 over coils is 1 everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recon.arrays import array_module, scipy_module


def rssq(images: Any, axis: int = 0) -> Any:
    """Return the root of the sum of squared magnitudes over the coil axis."""
    return array_module(images).sqrt((images.real**2 + images.imag**2).sum(axis=axis))


def combine(images: Any, maps: Any) -> Any:
    """Return sum of conj(map) * image over coils: the least-squares estimate for normalised maps and white noise.

    Parameters
    ----------
    images, maps
        [coil, ...], the same coils.

    Returns
    -------
    The combined complex image [...].

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if images.shape != maps.shape:
        raise ValueError(f"images are {images.shape}, maps {maps.shape}: expected the same shape")
    return (maps.conj() * images).sum(axis=0)


def inati(images: Any, smoothing: int = 5, iterations: int = 5) -> tuple[Any, Any]:
    """Estimate coil maps from the images themselves, by Inati's iterative method.

    In a block around each pixel the images are taken as map times object, with a map that does not change over the
    block: the dominant singular vector of the block [coil, pixels]. The power iteration for all blocks at once
    alternates between the object, conj(map) . images, and the map, the block average of images times conj(object).
    The phase that this leaves open in each pixel is fixed by making the map's component along the image-wide dominant
    coil combination real and positive, so that the maps are smooth across blocks.

    Parameters
    ----------
    images
        Complex [coil, y, x] or [coil, z, y, x], any size.
    smoothing
        Edge of the block [pixels], odd.
    iterations
        Number of power iterations.

    Returns
    -------
    maps : [coil, ...]
        Normalised maps. Where there is no signal at all they are the image-wide combination.
    combined : [...]
        Complex image, the sum of conj(map) * image.

    Raises
    ------
    ValueError
        The images are not complex [coil, y, x] or [coil, z, y, x], or a parameter makes no sense.

    References
    ----------
    Inati, Hansen, Kellman. A solution to the phased array problem. Proc. ISMRM 2013, 2672.
    Inati, Hansen, Kellman. A fast optimal method for coil sensitivity estimation and adaptive coil combination for
    complex images. Proc. ISMRM 2014, 4407.
    """
    xp = array_module(images)
    if images.ndim not in (3, 4) or images.dtype.kind != "c" or images.size == 0:
        raise ValueError(f"images are {images.dtype} {images.shape}, expected complex [coil, y, x] or [coil, z, y, x]")
    if smoothing < 1 or smoothing % 2 == 0 or iterations < 1:
        raise ValueError(f"smoothing is {smoothing}, iterations {iterations}: expected an odd number and at least 1")

    # The largest value as the unit: products of weak images would underflow in single precision.
    peak = float(xp.abs(images).max())
    scaled = images / peak if peak > 0 else images
    pixels = tuple(range(1, images.ndim))
    ndimage, block = scipy_module(images, "ndimage"), (1, *[smoothing] * len(pixels))
    reference = scaled.sum(axis=pixels, keepdims=True)
    reference = _unit(reference, xp.ones_like(reference))
    maps = reference
    for _ in range(iterations):
        combined = (maps.conj() * scaled).sum(axis=0)
        blocks = ndimage.uniform_filter(scaled * combined.conj(), block, mode="constant")  # zeros outside
        maps = _unit(blocks, reference)
        combined = (maps.conj() * scaled).sum(axis=0)
        reference = _unit((maps * combined).sum(axis=pixels, keepdims=True), reference)
        along = (reference.conj() * maps).sum(axis=0)
        size = xp.abs(along)
        maps = maps * xp.where(size > 0, along.conj() / xp.where(size > 0, size, 1), 1)
    maps = xp.ascontiguousarray(maps)
    return maps, combine(images, maps)


def _unit(vectors: Any, fallback: Any) -> Any:
    """Scale vectors [coil, ...] to length 1; those of no length become the fallback, scaled likewise."""
    xp = array_module(vectors)
    length = rssq(vectors)
    # Lengths below the smallest normal number cannot be divided by with any accuracy.
    usable = length > 1e3 * np.finfo(length.dtype).tiny
    other = fallback / rssq(fallback)
    return xp.where(usable, vectors / xp.where(usable, length, 1), other)


def upsample_maps(maps: Any, shape: tuple[int, int], oversampling: float = 2.0) -> Any:
    """Interpolate low-resolution maps to an image size by zero-padding their Fourier transform.

    Pixel i of n lies at (i - n//2) pixel widths, before and after.

    Parameters
    ----------
    maps
        Complex [coil, n_y, n_x], covering `oversampling` times the field of view of the image.
    shape
        Image size (ny, nx).
    oversampling
        Field of view of the maps over that of the image.

    Returns
    -------
    Normalised maps [coil, ny, nx]; zero where the given maps are zero.

    Raises
    ------
    ValueError
        The maps are not [coil, y, x], or oversampling times the image size is no whole number.
    """
    xp, signal = array_module(maps), scipy_module(maps, "signal")
    if maps.ndim != 3 or len(shape) != 2:
        raise ValueError(f"maps are {maps.shape} for an image {tuple(shape)}, expected [coil, y, x] and (ny, nx)")
    for axis, n in enumerate(shape, start=1):
        full = round(n * oversampling)
        if oversampling < 1 or abs(full - n * oversampling) > 1e-9:
            raise ValueError(f"oversampling {oversampling} of {n} pixels is no whole number of at least {n} pixels")
        # Pixel 0 of what is resampled lies at the origin.
        resampled = signal.resample(xp.fft.ifftshift(maps, axes=axis), full, axis=axis)
        maps = xp.fft.fftshift(resampled, axes=axis)
        start = full // 2 - n // 2
        maps = xp.moveaxis(xp.moveaxis(maps, axis, 0)[start : start + n], 0, axis)
    length = rssq(maps)
    return maps / xp.where(length > 0, length, 1)
