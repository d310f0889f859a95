"""Position of an image in the patient: DICOM's terms to MRD's and back. Pure arithmetic.

DICOM gives the centre of the first pixel, MRD the position of the image. `reference_offset` is the one place that says
how far they are apart. All coordinates are DICOM's patient coordinates [mm]: x to the left, y to the back, z to the
head (LPS).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
NOWHERE: Vector = (0.0, 0.0, 0.0)
OBLIQUE = 0.2  # direction cosine, 12 degrees: what is tilted less has the letter of the nearest axis alone


@dataclass(frozen=True)
class Plane:
    """Position of the pixels of one image plane, as in DICOM.

    Attributes
    ----------
    first_pixel
        Centre of pixel (row 0, column 0) [mm].
    along_row, along_column
        Unit vectors in the direction of rising column and of rising row index.
    spacing
        Distance between rows and between columns [mm], in this order.
    shape
        Number of rows and of columns.
    thickness
        Slice thickness [mm]; None when it is not known.
    """

    first_pixel: Vector
    along_row: Vector
    along_column: Vector
    spacing: tuple[float, float]
    shape: tuple[int, int]
    thickness: float | None = None

    def pixel_centre(self, row: float, column: float) -> NDArray[np.float64]:
        """Patient coordinates [mm] of a pixel's centre (DICOM PS3.3, equation C.7.6.2.1-1)."""
        return (
            np.asarray(self.first_pixel, dtype=float)
            + np.asarray(self.along_row, dtype=float) * self.spacing[1] * column
            + np.asarray(self.along_column, dtype=float) * self.spacing[0] * row
        )


@dataclass(frozen=True)
class MrdGeometry:
    """The geometry fields of an MRD image header of one slice; vectors and field of view (x, y, z) in [mm]."""

    position: Vector
    read_dir: Vector
    phase_dir: Vector
    slice_dir: Vector
    field_of_view: Vector


def reference_offset(
    along_row: Vector, along_column: Vector, spacing: tuple[float, float], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Vector [mm] from the first pixel's centre to the point that MRD's ``position`` denotes.

    That point is the centre of pixel (rows // 2, columns // 2): where the reconstructions here, and the scanners, put
    the centre of the field of view. For an even size this is half a pixel beyond the middle between the outer edges.
    """
    rows, columns = shape
    return np.asarray(along_row, dtype=float) * spacing[1] * (columns // 2) + np.asarray(
        along_column, dtype=float
    ) * spacing[0] * (rows // 2)


def to_mrd(plane: Plane) -> MrdGeometry:
    """MRD's terms for a plane. A thickness that is not known becomes a field of view of 0 along z."""
    offset = reference_offset(plane.along_row, plane.along_column, plane.spacing, plane.shape)
    position = np.asarray(plane.first_pixel, dtype=float) + offset
    rows, columns = plane.shape
    return MrdGeometry(
        position=vector(position),
        read_dir=plane.along_row,
        phase_dir=plane.along_column,
        slice_dir=vector(np.cross(plane.along_row, plane.along_column)),
        field_of_view=(plane.spacing[1] * columns, plane.spacing[0] * rows, plane.thickness or 0.0),
    )


def to_planes(head: Any) -> list[Plane] | None:
    """Planes of an MRD image, one for each index along z; None when its directions say nothing.

    Along z, ``position`` is the centre of slice nz // 2, as it is in the plane.

    Parameters
    ----------
    head
        An MRD image header.

    Returns
    -------
    Planes with orthogonal unit vectors. A field of view that is not positive gives pixels of 1 mm and no thickness.
    """
    directions = _orthonormal(head.read_dir, head.phase_dir)
    position = np.asarray(tuple(head.position), dtype=float)
    if directions is None or not np.all(np.isfinite(position)):
        return None
    along_row, along_column = directions
    columns, rows, slices = head.matrix_size
    width, height, depth = (_positive(extent) for extent in head.field_of_view)
    spacing = (height / rows if height else 1.0, width / columns if width else 1.0)
    thickness = depth / slices if depth else None
    normal = np.cross(along_row, along_column)
    if np.dot(normal, np.nan_to_num(tuple(head.slice_dir))) < 0:
        normal = -normal
    offset = reference_offset(vector(along_row), vector(along_column), spacing, (rows, columns))
    return [
        Plane(
            first_pixel=vector(position + (index - slices // 2) * (thickness or 1.0) * normal - offset),
            along_row=vector(along_row),
            along_column=vector(along_column),
            spacing=spacing,
            shape=(rows, columns),
            thickness=thickness,
        )
        for index in range(slices)
    ]


def edge_letters(head: Any) -> tuple[str, str, str, str] | None:
    """Sides of the patient at the left, top, right and bottom edge of an image; None when its directions say nothing.

    Parameters
    ----------
    head
        An MRD image header: read_dir is the direction of rising column, phase_dir that of rising row.
    """
    directions = _orthonormal(head.read_dir, head.phase_dir)
    if directions is None:
        return None
    row, column = directions
    return patient_side(-row), patient_side(-column), patient_side(row), patient_side(column)


def patient_side(direction: Any) -> str:
    """Letters of a direction [x, y, z] in the patient: L or R, P or A, H or F, the nearest first.

    As in DICOM's Patient Orientation (PS3.3, C.7.6.1.1.1). Components below `OBLIQUE` are left out.
    """
    letters = (("R", "L"), ("A", "P"), ("F", "H"))
    order = np.argsort(-np.abs(np.round(direction, 6)), kind="stable")
    return "".join(letters[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > OBLIQUE)


def same_geometry(geometry: MrdGeometry, head: Any) -> bool:
    """True if an MRD image header holds this geometry, to the accuracy of its single-precision fields."""
    tolerances = {"position": 1e-4, "field_of_view": 1e-4, "read_dir": 1e-6, "phase_dir": 1e-6, "slice_dir": 1e-6}
    return all(
        np.allclose(tuple(getattr(head, name)), getattr(geometry, name), rtol=1e-6, atol=tolerance)
        for name, tolerance in tolerances.items()
    )


def _orthonormal(read_dir: Any, phase_dir: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Unit vectors along both directions; None when they are no directions, or far from orthogonal."""
    row, column = (np.asarray(tuple(direction), dtype=float) for direction in (read_dir, phase_dir))
    lengths = [float(np.linalg.norm(direction)) for direction in (row, column)]
    if not all(math.isfinite(length) and length > 1e-6 for length in lengths):
        return None
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > 1e-2:
        return None
    column = column - (row @ column) * row
    return row, column / np.linalg.norm(column)


def _positive(value: float) -> float:
    return float(value) if math.isfinite(value) and value > 0 else 0.0


def vector(values: Any) -> Vector:
    """Three numbers as a vector."""
    x, y, z = (float(value) for value in values)
    return x, y, z
