"""Ellipses whose k-space is known in closed form, seen by coils whose sensitivities keep it so.

Signal: s(k) = integral rho(r) exp(-2 pi i k.r) dr. A sensitivity that is a sum of a few complex exponentials turns the
k-space of the product into a sum of shifted k-spaces, without any approximation.

References
----------
Shepp, Logan: The Fourier reconstruction of a head section. IEEE Trans Nucl Sci 21 (1974). The intensities are those of
the higher-contrast variant in Toft: The Radon transform, PhD thesis, DTU (1996).
Van de Walle et al.: Reconstruction of MR images from data acquired on a general nonregular grid by pseudoinverse
calculation. IEEE Trans Med Imaging 19 (2000): the transform of an ellipse.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**15  # k-space points worked on at once: small enough for the processor's cache


@dataclass(frozen=True)
class Ellipse:
    """One ellipse; those that overlap add up.

    Attributes
    ----------
    x, y
        Centre [m].
    a, b
        Semi-axes along the ellipse's own x and y [m].
    angle
        Rotation from x towards y [rad].
    intensity
        Signal density inside.
    """

    x: float
    y: float
    a: float
    b: float
    angle: float
    intensity: float


def shepp_logan(size: float) -> tuple[Ellipse, ...]:
    """Shepp-Logan head phantom with the higher-contrast intensities, upright when y points down in the image.

    Parameters
    ----------
    size
        Edge of the square that holds it [m].
    """
    half = size / 2
    # intensity, a, b, x, y, angle [deg]; in the literature's frame y points up
    table = (
        (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
        (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
        (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
        (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
        (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
        (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
        (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
        (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
        (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
        (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
    )
    return tuple(
        Ellipse(x * half, -y * half, a * half, b * half, -math.radians(angle), intensity)
        for intensity, a, b, x, y, angle in table
    )


def kspace(ellipses: Iterable[Ellipse], kx: Any, ky: Any) -> NDArray[np.complex128]:
    """Exact k-space of a sum of ellipses.

    Parameters
    ----------
    ellipses
        The object.
    kx, ky
        Places [1/m], of any shapes that broadcast.

    Returns
    -------
    Signal [density m^2], of the broadcast shape.
    """
    return Coils(frequencies=((0.0, 0.0),), weights=((1.0,),)).kspace(ellipses, kx, ky)[0]


def _kspace_chunk(
    ellipses: Iterable[Ellipse], kx: NDArray[np.float64], ky: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Sum of area * 2 J1(t) / t, t = 2 pi |(a u, b v)|, with the phase of the centre; (u, v) is k turned back."""
    from scipy.special import j1

    signal = np.zeros(kx.shape, dtype=np.complex128)
    for ellipse in ellipses:
        cosine, sine = math.cos(ellipse.angle), math.sin(ellipse.angle)
        u, v = cosine * kx + sine * ky, cosine * ky - sine * kx
        t = 2 * np.pi * np.sqrt((ellipse.a * u) ** 2 + (ellipse.b * v) ** 2)
        t = np.maximum(t, 1e-9)  # 2 J1(t) / t is 1 there to the last digit, and needs no limit of its own
        phase = -2 * np.pi * (ellipse.x * kx + ellipse.y * ky)
        amplitude = (2 * np.pi * ellipse.a * ellipse.b * ellipse.intensity) * j1(t) / t
        signal.real += amplitude * np.cos(phase)
        signal.imag += amplitude * np.sin(phase)
    return signal


def image(
    ellipses: Iterable[Ellipse], shape: tuple[int, int], pixel: tuple[float, float], subpixels: int = 8
) -> NDArray[np.float64]:
    """Rasterise a sum of ellipses, each pixel the mean over its area.

    Parameters
    ----------
    ellipses
        The object.
    shape
        (rows, columns).
    pixel
        Pixel size (along y, along x) [m]; pixel (row, column) is centred on y = (row - rows // 2) * pixel[0] and
        x = (column - columns // 2) * pixel[1].
    subpixels
        Points along each axis of a pixel that the mean is taken over.

    Returns
    -------
    Density [row, column].
    """
    y, x = (_fine_positions(n, size, subpixels) for n, size in zip(shape, pixel, strict=True))
    fine = np.zeros((y.size, x.size))
    for ellipse in ellipses:
        cosine, sine = math.cos(ellipse.angle), math.sin(ellipse.angle)
        dx, dy = x[np.newaxis, :] - ellipse.x, y[:, np.newaxis] - ellipse.y
        along, across = (cosine * dx + sine * dy) / ellipse.a, (cosine * dy - sine * dx) / ellipse.b
        fine += ellipse.intensity * (along**2 + across**2 <= 1)
    return fine.reshape(shape[0], subpixels, shape[1], subpixels).mean(axis=(1, 3))


def _fine_positions(size: int, pixel: float, subpixels: int) -> NDArray[np.float64]:
    return ((np.arange(size * subpixels) + 0.5) / subpixels - 0.5 - size // 2) * pixel


def pixel_grid(shape: tuple[int, int], pixel: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions x and y [m] of pixel centres, each [row, column], in the convention of `image`."""
    rows, columns = shape
    y, x = np.meshgrid(
        (np.arange(rows) - rows // 2) * pixel[0], (np.arange(columns) - columns // 2) * pixel[1], indexing="ij"
    )
    return x, y


@dataclass(frozen=True)
class Coils:
    """Coil sensitivities c_j(r) = sum over m of weights[j][m] exp(2 pi i frequencies[m] . r).

    Attributes
    ----------
    frequencies
        (x, y) [1/m] of each exponential; the coils share them.
    weights
        Complex, [coil][exponential].
    """

    frequencies: Sequence[tuple[float, float]]
    weights: Sequence[Sequence[complex]]

    def maps(self, x: Any, y: Any) -> NDArray[np.complex128]:
        """Sensitivities [coil, ...] at places x, y [m] of any shapes that broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        terms = np.stack([np.exp(2j * np.pi * (fx * x + fy * y)) for fx, fy in self.frequencies])
        return np.tensordot(np.asarray(self.weights, dtype=complex), terms, axes=1)

    def kspace(
        self, ellipses: Iterable[Ellipse], kx: Any, ky: Any, dtype: Any = np.complex128
    ) -> NDArray[np.complexfloating]:
        """Exact k-space of object times sensitivity.

        Parameters
        ----------
        ellipses
            The object.
        kx, ky
            Places [1/m], of any shapes that broadcast.
        dtype
            complex128, or complex64 to save memory.

        Returns
        -------
        Signal [coil, ...] [density m^2].
        """
        kx, ky = np.broadcast_arrays(np.asarray(kx, float), np.asarray(ky, float))
        ellipses = tuple(ellipses)
        weights = np.asarray(self.weights, dtype=complex)
        flat_x, flat_y = kx.ravel(), ky.ravel()
        signal = np.empty((len(weights), flat_x.size), dtype=dtype)
        for begin in range(0, flat_x.size, CHUNK):
            part = slice(begin, begin + CHUNK)
            x, y = flat_x[part], flat_y[part]
            signal[:, part] = weights @ [_kspace_chunk(ellipses, x - fx, y - fy) for fx, fy in self.frequencies]
        return signal.reshape(len(weights), *kx.shape)


def ring_of_coils(count: int, size: float) -> Coils:
    """Coils on a ring round the object, each most sensitive on its own side, with a phase that varies over the object.

    A single coil is uniform. Else coil j, in the direction (cos a, sin a) with a = 2 pi j / count, has the sensitivity
    exp(i a) (0.6 + 0.4 (cos a sin u + sin a sin v) + 0.3 i (cos a cos v - sin a cos u)) / sqrt(count)
    with u = pi x / size, v = pi y / size.

    Parameters
    ----------
    count
        Number of coils.
    size
        Extent of the object [m]; sensitivities vary by half a period over it.
    """
    if count == 1:
        return Coils(frequencies=((0.0, 0.0),), weights=((1.0,),))
    f = 0.5 / size
    weights = []
    for angle in 2 * np.pi * np.arange(count) / count:
        c, s = math.cos(angle), math.sin(angle)
        terms = (0.6, -0.2j * c - 0.15j * s, 0.2j * c - 0.15j * s, -0.2j * s + 0.15j * c, 0.2j * s + 0.15j * c)
        weights.append(tuple(complex(np.exp(1j * angle) / math.sqrt(count) * term) for term in terms))
    return Coils(frequencies=((0.0, 0.0), (f, 0.0), (-f, 0.0), (0.0, f), (0.0, -f)), weights=tuple(weights))
