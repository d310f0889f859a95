"""Centred Fourier transforms of images: sizes, orientation and scale. The centre of N points is index N // 2."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy import fft
from numpy.typing import NDArray


class Axis(NamedTuple):
    """One axis of an encoding: `points` in k-space, transformed to `transform` pixels, of which `pixels` are kept."""

    points: int
    transform: int
    pixels: int


def centred_fft(data: NDArray[Any], axis: int) -> NDArray[Any]:
    """Fourier transform one axis, with k = 0 and x = 0 at index N // 2."""
    return fft.fftshift(fft.fft(fft.ifftshift(data, axes=axis), axis=axis), axes=axis)


def centred_ifft(data: NDArray[Any], axis: int) -> NDArray[Any]:
    """Inverse of `centred_fft`: divides by the number of points."""
    return fft.fftshift(fft.ifft(fft.ifftshift(data, axes=axis), axis=axis), axes=axis)


def resize_centred(data: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    """Crop or zero-pad one axis so that index N // 2 becomes index `size` // 2."""
    present = data.shape[axis]
    start = present // 2 - size // 2
    if size < present:
        return data[(slice(None),) * axis + (slice(start, start + size),)]
    widths = [(0, 0)] * data.ndim
    widths[axis] = (-start, size - present + start)
    return data if size == present else np.pad(data, widths)


def mirror(data: NDArray[Any], axes: Iterable[int]) -> NDArray[Any]:
    """Mirror axes about their centre pixel N // 2.

    A flip alone would move the object by one pixel along axes of even size.
    """
    for axis in axes:
        data = np.flip(data, axis)
        if data.shape[axis] % 2 == 0:
            data = np.roll(data, 1, axis)
    return data


def to_image_axis(kspace: NDArray[Any], axis: Axis, number: int, mirrored: bool) -> NDArray[Any]:
    """Transform axis `number` of an array as `axis` says, and crop it to its pixels.

    The values are divided by the number of k-space points, whatever zero-filling does to the size of the transform.
    """
    data = centred_ifft(resize_centred(kspace, axis.transform, number), number) * (axis.transform / axis.points)
    return resize_centred(mirror(data, [number]) if mirrored else data, axis.pixels, number)
