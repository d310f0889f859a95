"""A chest that beats and breathes, as ellipses whose parameters move from readout to readout, and its exact k-space.

Coordinates are those of k-space: x along kx, y along ky [m], the origin in the centre of the image. Images and maps are
in the scanner's orientation: pixel (row, col) shows x = -(col - columns // 2) * pixel, y = -(row - rows // 2) * pixel.

The closed form is that of `simulation.phantom.Coils.kspace`, with the ellipse's transform 2 J1(t) / t read from a table
of cubic Hermite polynomials (error below 1e-9 of an ellipse's whole signal, less than what single precision keeps), so
that an ellipse that moves with every readout costs no more than one that stands still.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulation.phantom import Coils, Ellipse, pixel_grid

X, Y, A, B, ANGLE, INTENSITY = range(6)  # parameters in arrays [..., 6], as in `simulation.phantom.Ellipse`
TABLE_STEP = 1 / 32  # of t = 2 pi |k| * semi-axis
FOV = 0.256  # [m], that the chest is drawn for


# --- Anatomy --------------------------------------------------------------------------------------------------------


def chest(contraction: ArrayLike, inhalation: ArrayLike, level: ArrayLike = 0.0, fov: float = FOV) -> NDArray:
    """Ellipses of a transverse slice of the chest, as large as the field of view allows.

    Nothing is symmetric: the heart and a capsule on the skin are on the patient's left (-x, the right of the image),
    the spine is at -y (the bottom).

    Parameters
    ----------
    contraction
        0 relaxed to 1 contracted heart, any shape.
    inhalation
        0 exhaled to about 1 inhaled, shape that broadcasts with it.
    level
        Height of the slice, -1 (towards the feet) to 1; the heart is smaller towards both ends.
    fov
        Field of view [m].

    Returns
    -------
    Parameters x, y, a, b [m], angle [rad], intensity, in the last axis: [..., ellipses, 6].
    """
    c, d, level = np.broadcast_arrays(*(np.asarray(value, float) for value in (contraction, inhalation, level)))
    size = 1 - 0.12 * np.abs(level) - 0.06 * level
    shift_x, shift_y = 0.4 * c - 0.2 * d, -0.4 * c - 0.9 * d  # of the heart, by its own beat and by the diaphragm
    wall, squeeze = 1 - 0.08 * c, 1 - 0.48 * c
    twist = 0.25 * c

    def heart(x: float, y: float, inward: float = 0.0) -> tuple[NDArray, NDArray]:
        """Place that goes along with the heart, and towards the centre of the left ventricle with the contraction."""
        along_x = x + inward * c * (-3.0 - x)
        along_y = y + inward * c * (0.6 - y)
        return size * along_x + shift_x, size * along_y + shift_y

    # x, y, a, b [cm], angle [rad], intensity; those that overlap add up. The brightest have an edge of 2 mm.
    soft: list[tuple[float | NDArray, ...]] = [
        (0, 0.12 * d, 11.4, 8.3 + 0.14 * d, 0, 0.34),  # skin and fat
        (-1.7, -4.4 + 0.05 * d, 0.95 + 0.08 * c, 0.95 + 0.08 * c, 0, 0.65),  # descending aorta
        (*heart(-3.0, 0.6), 2.7 * size * squeeze, 2.3 * size * squeeze, 0.5 + twist, 0.65),  # blood, left ventricle
        (*heart(2.5, 1.9), 2.5 * size * (1 - 0.3 * c), 1.7 * size * (1 - 0.4 * c), -0.45, 0.80),  # right ventricle
    ]
    rows: tuple[tuple[float | NDArray, ...], ...] = (
        (0, 0.12 * d, 10.6, 7.5 + 0.14 * d, 0, -0.19),  # what is inside of it is darker
        (7.2, 0.2 - 0.15 * d, 2.3 + 0.1 * d, 5.0 + 0.15 * d, 0.12, -0.12),  # right lung
        (-8.0, -0.2 - 0.15 * d, 1.5, 4.2 + 0.15 * d, -0.15, -0.12),  # left lung
        (0.6, -5.5, 1.5, 1.3, 0, 0.22),  # vertebra
        (0.6, -5.3, 0.7, 0.6, 0, -0.22),  # spinal canal
        (*heart(-3.0, 0.6), 3.7 * size * wall, 3.3 * size * wall, 0.5 + twist, 0.20),  # wall of the left ventricle
        (*heart(-3.4, 1.9, 0.4), 0.45 * size, 0.35 * size, 0.3, -0.40),  # papillary muscles
        (*heart(-2.2, -0.5, 0.4), 0.35 * size, 0.45 * size, 0.3, -0.40),
        (*heart(-0.2, 3.7, 0.1), 0.30 * size, 0.25 * size, 0, 0.60),  # coronary artery
        (6.8, 2.0 - 0.6 * d, 0.35, 0.35, 0, 0.40),  # vessels of the lungs
        (7.6, -1.6 - 0.5 * d, 0.25, 0.5, 0.5, 0.40),
        (-8.2, -1.0 - 0.5 * d, 0.3, 0.3, 0, 0.40),
        (-9.3, 6.9 + 0.2 * d, 0.5, 0.4, 0.6, 0.80),  # capsule on the skin
    )
    soft = [(*row[:2], row[2] + edge, row[3] + edge, row[4], row[5] / 2) for row in soft for edge in (-0.1, 0.1)]
    ellipses = np.stack([np.stack(np.broadcast_arrays(*row, c)[:6], axis=-1) for row in (*soft, *rows)], axis=-2)
    ellipses[..., :ANGLE] *= 1e-2 * fov / FOV
    return ellipses


def as_parameters(ellipse: Ellipse) -> NDArray[np.float64]:
    """Parameters [1, 6] of a single ellipse that does not move."""
    return np.array([[ellipse.x, ellipse.y, ellipse.a, ellipse.b, ellipse.angle, ellipse.intensity]])


def vials(count: int, fov: float = FOV) -> NDArray[np.float64]:
    """Parameters [ellipses, 6] of ellipses of different sizes on a ring, which do not touch each other.

    The first is in the direction of +x, y = +0.2 of it; there is none in the centre. See `as_parameters`.
    """
    number = np.arange(count)
    angle = 2 * np.pi * (number + 0.15) / count
    radius = (0.27 if count > 1 else 0.05) * fov
    largest = min(0.16 * fov, 0.9 * radius * math.sin(np.pi / count)) if count > 1 else 0.25 * fov
    a, b = largest * (1 - 0.2 * (number % 2)), largest * (0.75 + 0.1 * (number % 3))
    intensity = 1 - 0.15 * (number % 3)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), a, b, 0.7 * number, intensity], axis=-1)


# --- Coils ----------------------------------------------------------------------------------------------------------


def array_coils(count: int, fov: float = FOV) -> Coils:
    """Coil array round the chest: each coil sees its own side.

    The sensitivity of coil j at (x_j, y_j) is exp(i phi_j) p(x - x_j) p(y - y_j) with
    p(x) = 0.5 + 0.5 cos(2 pi q x) + 0.2 i sin(2 pi q x) and a period 1 / q of twice the field of view: a sum of nine
    exponentials, with which eight coils are independent. (Those of `simulation.phantom.ring_of_coils` have three
    independent sensitivities however many there are, too few for parallel imaging.) The maximum of the root sum of
    squares is near 1 for four coils and more.

    Parameters
    ----------
    count
        Number of coils; a single one is uniform.
    fov
        Field of view [m]; the coils stand on an ellipse of nearly this size.
    """
    if count == 1:
        return Coils(frequencies=((0.0, 0.0),), weights=((1.0,),))
    q = 0.5 / fov  # [1/m]
    frequencies = tuple((m * q, n * q) for m in (-1, 0, 1) for n in (-1, 0, 1))
    factor = {-1: 0.15, 0: 0.5, 1: 0.35}  # of exp(2 pi i q m x): cosine and sine together
    weights = []
    for number in range(count):
        angle = 2 * np.pi * (number + 0.3) / count
        x, y = 0.50 * fov * math.cos(angle), 0.42 * fov * math.sin(angle)
        gain = math.sqrt(3 / count) * np.exp(1j * 2.4 * number)
        weights.append(
            tuple(
                complex(gain * factor[m] * factor[n] * np.exp(-2j * np.pi * q * (m * x + n * y)))
                for m in (-1, 0, 1)
                for n in (-1, 0, 1)
            )
        )
    return Coils(frequencies=frequencies, weights=tuple(weights))


def coil_maps(coils: Coils, matrix: int, pixel: float) -> NDArray[np.complex128]:
    """Sensitivities [coil, y, x] at the pixels of a square image in the scanner's orientation; pixel [m]."""
    x, y = pixel_grid((matrix, matrix), (pixel, pixel))
    return coils.maps(-x, -y)


# --- K-space --------------------------------------------------------------------------------------------------------


def moving_kspace(ellipses: NDArray[np.float64], k: NDArray[np.float64], coils: Coils) -> NDArray[np.complex64]:
    """Exact k-space of ellipses that stand still during a readout and move from one to the next.

    Parameters
    ----------
    ellipses
        Parameters [arms, ellipses, 6] as `chest` returns them.
    k
        Places (kx, ky) [1/m], [arms, samples, 2].
    coils
        The sensitivities.

    Returns
    -------
    Signal [arms, coil, samples] [density m^2], complex64.
    """
    frequencies = np.array(coils.frequencies, float).reshape(-1, 2)
    ellipses, k = np.ascontiguousarray(ellipses, float), np.ascontiguousarray(k, float)
    if ellipses.ndim != 3 or k.ndim != 3 or len(ellipses) != len(k) or k.shape[2] != 2:
        raise ValueError(f"ellipses are {ellipses.shape}, k is {k.shape}: expected [arms, n, 6] and [arms, samples, 2]")
    reach = 2 * np.pi * math.sqrt(2) * (np.abs(k).max() + np.abs(frequencies).max()) * ellipses[..., [A, B]].max()
    table = _jinc_table(4096 * (int(reach / TABLE_STEP) // 4096 + 1))
    terms = np.zeros((len(k), len(frequencies), 2, k.shape[1]))  # real and imaginary part, each in one piece
    _compiled_sum()(ellipses, k, frequencies, table, terms)
    signals = (terms[:, :, 0] + 1j * terms[:, :, 1]).astype(np.complex64)
    return np.matmul(np.asarray(coils.weights, np.complex64), signals)


@functools.lru_cache(maxsize=4)
def _jinc_table(length: int) -> NDArray[np.float64]:
    """Cubic polynomials of 2 J1(t) / t between t = n * TABLE_STEP and the next, lowest power first: [length, 4]."""
    from scipy.special import jv

    t = np.maximum(np.arange(length + 1) * TABLE_STEP, 1e-9)
    value, slope = 2 * jv(1, t) / t, -2 * jv(2, t) / t * TABLE_STEP
    rise, left, right = np.diff(value), slope[:-1], slope[1:]
    return np.stack([value[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], axis=1)


@functools.lru_cache(maxsize=1)
def _compiled_sum() -> Callable:
    """Compile the sum over ellipses; it releases the interpreter lock."""
    import numba

    def add(
        ellipses: NDArray[np.float64], k: NDArray[np.float64], frequencies: NDArray[np.float64],
        table: NDArray[np.float64], terms: NDArray[np.float64],
    ) -> None:  # fmt: skip
        samples = k.shape[1]
        u, v, real, imag = np.empty(samples), np.empty(samples), np.empty(samples), np.empty(samples)
        for arm in range(k.shape[0]):
            for e in range(ellipses.shape[1]):
                x, y, a, b, angle, intensity = ellipses[arm, e]
                cosine, sine = math.cos(angle), math.sin(angle)
                scale_u, scale_v = 2 * math.pi * a / TABLE_STEP, 2 * math.pi * b / TABLE_STEP
                for s in range(samples):
                    kx, ky = k[arm, s]
                    u[s] = scale_u * (cosine * kx + sine * ky)
                    v[s] = scale_v * (cosine * ky - sine * kx)
                    phase = -2 * math.pi * (x * kx + y * ky)
                    real[s], imag[s] = math.cos(phase), math.sin(phase)
                for m in range(frequencies.shape[0]):
                    fx, fy = frequencies[m]
                    shift_u = scale_u * (cosine * fx + sine * fy)
                    shift_v = scale_v * (cosine * fy - sine * fx)
                    phase = 2 * math.pi * (x * fx + y * fy)
                    area = math.pi * a * b * intensity
                    c, d = area * math.cos(phase), area * math.sin(phase)
                    for s in range(samples):
                        t = math.sqrt((u[s] - shift_u) ** 2 + (v[s] - shift_v) ** 2)
                        n = np.uint64(t)
                        t -= n
                        value = table[n, 0] + t * (table[n, 1] + t * (table[n, 2] + t * table[n, 3]))
                        terms[arm, m, 0, s] += value * (c * real[s] - d * imag[s])
                        terms[arm, m, 1, s] += value * (c * imag[s] + d * real[s])

    try:
        return numba.njit(nogil=True, fastmath=True, cache=True)(add)
    except RuntimeError:  # no folder that the cache could be written to
        return numba.njit(nogil=True, fastmath=True)(add)


# --- Images ---------------------------------------------------------------------------------------------------------


def raster(ellipses: NDArray[np.float64], matrix: int, pixel: float, rows_per_pixel: int = 8) -> NDArray[np.float64]:
    """Mean density over the area of each pixel, in the scanner's orientation.

    Along a row the ellipse's extent is known exactly; `rows_per_pixel` lines go through each pixel.

    Parameters
    ----------
    ellipses
        Parameters [ellipses, 6].
    matrix
        Pixels along each side.
    pixel
        Pixel size [m].
    rows_per_pixel
        Lines through each pixel.

    Returns
    -------
    Density [y, x].
    """
    # All lengths in pixels, x and y turned so that they grow with column and row.
    centre = matrix // 2
    image = np.zeros((matrix, matrix))
    for x, y, a, b, angle, intensity in ellipses:
        cosine, sine = math.cos(angle), math.sin(angle)
        a, b, x, y = a / pixel, b / pixel, centre - x / pixel, centre - y / pixel
        rows = _covered(y, math.hypot(a * sine, b * cosine), matrix)
        columns = _covered(x, math.hypot(a * cosine, b * sine), matrix)
        # (cosine dx + sine dy)^2 / a^2 + (cosine dy - sine dx)^2 / b^2 = 1 is a quadratic equation for dx.
        square = (cosine / a) ** 2 + (sine / b) ** 2
        dy = rows.start - 0.5 + (np.arange(len(rows) * rows_per_pixel) + 0.5) / rows_per_pixel - y
        middle = x - cosine * sine * (1 / a**2 - 1 / b**2) / square * dy
        half = np.sqrt(np.maximum(square - (dy / (a * b)) ** 2, 0)) / square
        edges = np.arange(columns.start, columns.stop + 1) - 0.5
        left, right = (middle - half)[:, np.newaxis], (middle + half)[:, np.newaxis]
        part = np.diff(np.clip(edges, left, right), axis=1)
        image[rows.start : rows.stop, columns.start : columns.stop] += intensity * part.reshape(
            len(rows), rows_per_pixel, len(columns)
        ).mean(axis=1)
    return image


def _covered(centre: float, reach: float, matrix: int) -> range:
    """Pixels that an extent of `centre` - `reach` to `centre` + `reach` [pixels] touches."""
    first, last = math.floor(centre - reach + 0.5), math.ceil(centre + reach - 0.5)
    return range(min(max(first, 0), matrix), min(max(last + 1, 0), matrix))
