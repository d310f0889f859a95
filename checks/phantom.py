"""Object of the doctor's simulated scanner: different from every side and in every slice, at a known place.

Coordinates are those of the stack: u along read_dir, v along phase_dir, w along slice_dir, from its middle.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulation import phantom
from simulation.phantom import Ellipse

SUBPIXELS = 4  # along each axis, over which a pixel's mean is taken


@dataclass(frozen=True)
class Place:
    """Where a slice lies: its middle [mm], and the directions of its rows, columns and normal."""

    position: tuple[float, float, float]
    read_dir: tuple[float, float, float]
    phase_dir: tuple[float, float, float]
    slice_dir: tuple[float, float, float]


@dataclass(frozen=True)
class Phantom:
    """Object and the stack of slices through it.

    Attributes
    ----------
    places : tuple of Place
        Of the slices, all parallel.
    spacing : float
        Distance of the slices [mm].
    size : float
        Edge of the square that holds the object [mm].
    mirrored : bool
        The object is mirrored along the rows: same pixel values, elsewhere.
    """

    places: tuple[Place, ...]
    spacing: float
    size: float
    mirrored: bool = False

    def ellipses(self, number: int) -> list[Ellipse]:
        """Parts of the object in a slice [m]."""
        size, angle = 1e-3 * self.size, 2 * math.pi * number / len(self.places) + 1
        parts = [
            Ellipse(0.02 * size, -0.03 * size, 0.33 * size, 0.40 * size, 0.3, 1.0),
            Ellipse(-0.15 * size, -0.18 * size, 0.08 * size, 0.08 * size, 0.0, 2.0),
            Ellipse(0.13 * size, 0.06 * size, 0.05 * size, 0.16 * size, 0.5, 1.2),
            Ellipse(0.2 * size * math.cos(angle), 0.2 * size * math.sin(angle), 0.1 * size, 0.1 * size, 0.0, 2.0),
        ]
        if self.mirrored:
            parts = [Ellipse(-e.x, e.y, e.a, e.b, -e.angle, e.intensity) for e in parts]
        return parts

    def signal(
        self, number: int, coils: int, kx: NDArray[Any], ky: NDArray[Any], scanner_sign: bool
    ) -> NDArray[np.complex64]:
        """K-space [coil, ...] of a slice at places [1/m] of any shapes that broadcast; density 1 is 1 in 1 mm^2.

        Parameters
        ----------
        scanner_sign
            Whether the sign is that of Siemens scanners, see `recon.mrdencoding.is_mirrored`.
        """
        sign = -1 if scanner_sign else 1
        ring = phantom.ring_of_coils(coils, 1e-3 * self.size)
        return (1e6 * ring.kspace(self.ellipses(number), sign * kx, sign * ky)).astype(np.complex64)

    def density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Density [...] at places [..., 3] in patient coordinates [mm]; zero far from all slices."""
        first = self.places[0]
        middle = np.mean([place.position for place in self.places], axis=0)
        axes = np.array([first.read_dir, first.phase_dir, first.slice_dir])
        u, v, w = 1e-3 * np.moveaxis((points - middle) @ axes.T, -1, 0)
        total = np.zeros(u.shape)
        for number, place in enumerate(self.places):
            height = 1e-3 * float(np.dot(np.array(place.position) - middle, axes[2]))
            here = np.zeros(u.shape)
            for e in self.ellipses(number):
                cosine, sine = math.cos(e.angle), math.sin(e.angle)
                along, across = cosine * (u - e.x) + sine * (v - e.y), cosine * (v - e.y) - sine * (u - e.x)
                here += e.intensity * ((along / e.a) ** 2 + (across / e.b) ** 2 <= 1)
            total += here * (np.abs(w - height) < 0.45e-3 * self.spacing)
        return total

    def picture(self, head: Any) -> NDArray[np.float64]:
        """Picture [row, column] of the object that an image with this header has to show.

        Pixel (row, column) lies at position + (column - columns // 2) * width * read_dir + (row - rows // 2) * height *
        phase_dir.
        """
        columns, rows = head.matrix_size[0], head.matrix_size[1]
        x = _fine(columns) * head.field_of_view[0] / columns
        y = _fine(rows) * head.field_of_view[1] / rows
        points = (
            np.array(head.position)
            + x[np.newaxis, :, np.newaxis] * np.array(head.read_dir)
            + y[:, np.newaxis, np.newaxis] * np.array(head.phase_dir)
        )
        fine = self.density(points).reshape(rows, SUBPIXELS, columns, SUBPIXELS)
        mean: NDArray[np.float64] = fine.mean(axis=(1, 3))
        return mean


def _fine(count: int) -> NDArray[np.float64]:
    """Places of the points within the pixels of an axis [pixels], 0 in the middle of pixel count // 2."""
    return (np.arange(count * SUBPIXELS) + 0.5) / SUBPIXELS - 0.5 - count // 2
