"""Field maps that were measured: from files, and from scans of two echoes; resampled on the grid of an image.

Maps are in Hz, in the sign convention of `fieldterms`. Where a map has no value (it is not a number), and beyond its
edges, the nearest value counts.

- ``.npy`` and ``.mat`` files (variable ``field_map``) have no geometry: they are on the images' own grid, [row, column]
  or [slice, row, column], as the images are sent. A map of another matrix is taken for one of the same field of view.
- NIfTI files and MRD images have one: position and direction cosines in the patient. So has a scan of two echoes.
"""

from __future__ import annotations

import logging
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrdio import nifti
from mrdio.mrdfile import MrdReader
from recon import concomitant
from recon.matfile import read_mat
from recon.telling import once

logger = logging.getLogger(__name__)

VARIABLE = "field_map"  # of .mat files
SPACING = 0.02  # relative, by which distances of slices may differ
OUTSIDE = 0.5  # part of an image that a map need not cover without a word: fields of view are larger than objects
UNIT = 0.01  # by which a direction's length may differ from 1
RIGHT_ANGLE = 1e-3  # cosine, by which axes may differ from it


class FieldMapError(ValueError):
    """A field map cannot be used; the text names it and says why."""


class GridMap:
    """Map on the images' own grid.

    Parameters
    ----------
    name
        For messages.
    hertz
        [row, column], or [slice, row, column] by the slice counter.
    warn
        Called with a text for the client.

    Raises
    ------
    FieldMapError
        It is no map.
    """

    def __init__(self, name: str, hertz: NDArray[Any], warn: Callable[[str], None] = logger.warning) -> None:
        volume = checked(name, hertz)
        self._name, self._volume, self._warn = name, filled(volume), once(warn)

    def on_grid(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> NDArray[np.float32] | None:
        """Off-resonance [row, column] [Hz] of the plane of a readout, field of view (x, y) [mm]; None: not known."""
        number = head.idx.slice if len(self._volume) > 1 else 0
        if number >= len(self._volume):
            self._warn(f"the field map {self._name} has {len(self._volume)} slices: slice {number} is not corrected")
            return None
        plane = self._volume[number]
        if head.idx.slice > number:
            self._warn(f"the field map {self._name} has one slice: it is taken for slice {head.idx.slice}, too")
        if plane.shape != shape:
            self._warn(
                f"the field map {self._name} has {plane.shape[0]} x {plane.shape[1]} pixels, the images have "
                f"{shape[0]} x {shape[1]}: it is taken for a map of the same field of view"
            )
            # Pixel n // 2 of both is the centre.
            lines = ((np.arange(n) - n // 2) * old / n + old // 2 for n, old in zip(shape, plane.shape, strict=True))
            plane = ndimage.map_coordinates(plane, np.meshgrid(*lines, indexing="ij"), order=1, mode="nearest")
        return plane.astype(np.float32)


class PlacedMap:
    """Map of slices at known places in the patient.

    Parameters
    ----------
    name
        For messages.
    hertz
        [slice, row, column].
    to_patient
        Affine matrix [4, 4] from (slice, row, column) to (x, y, z) towards L, P, H [mm].
    thickness
        Of a single slice [mm]; 0: not known.
    warn
        Called with a text for the client.

    Raises
    ------
    FieldMapError
        It is no map, or its axes are not at right angles.
    """

    def __init__(
        self, name: str, hertz: NDArray[Any], to_patient: NDArray[Any], thickness: float = 0.0,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:  # fmt: skip
        volume, axes = checked(name, hertz), np.asarray(to_patient, float)[:3, :3]
        sizes = np.linalg.norm(axes, axis=0)
        if not (np.isfinite(to_patient).all() and (sizes > 0).all()):
            raise FieldMapError(f"the field map {name} has no geometry: its affine matrix is {to_patient.tolist()}")
        cosines = (axes / sizes).T @ (axes / sizes)
        if np.abs(cosines - np.eye(3)).max() > RIGHT_ANGLE:
            raise FieldMapError(f"the axes of the field map {name} are not at right angles")
        self._name, self._volume, self._warn = name, filled(volume), once(warn)
        self._from_patient = np.linalg.inv(np.vstack([np.asarray(to_patient, float)[:3], [0, 0, 0, 1]]))
        self._reach = (np.reshape(volume.shape, (3, 1, 1)) - 1) / 2 + 1.0  # from the middle [voxels]
        self._reach[0] += max(thickness / sizes[0] - 1, 0)
        self._told = False

    def on_grid(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> NDArray[np.float32] | None:
        """Off-resonance [row, column] [Hz] of the plane of a readout, field of view (x, y) [mm]; None: not known."""
        lengths = [np.linalg.norm(direction) for direction in (head.read_dir, head.phase_dir)]
        if not np.allclose(lengths, 1, atol=UNIT):
            self._warn(
                "off-resonance is not corrected: the readouts' read_dir and phase_dir do not say how they lie in the "
                f"field map {self._name}"
            )
            return None
        places = 1e3 * concomitant.positions(head, shape, field_of_view)
        voxels = np.moveaxis(places @ self._from_patient[:3, :3].T + self._from_patient[:3, 3], -1, 0)
        middle = (np.reshape(self._volume.shape, (3, 1, 1)) - 1) / 2
        outside = (np.abs(voxels - middle) > self._reach).any(axis=0).mean()
        if outside > OUTSIDE and not self._told:  # of many planes, as of a live scan, the first one
            self._told = True
            self._warn(
                f"the field map {self._name} does not reach as far as {100 * outside:.0f} % of slice {head.idx.slice}, "
                f"whose centre is at ({', '.join(f'{value:.0f}' for value in head.position)}) mm: its nearest values "
                "are taken"
            )
        return ndimage.map_coordinates(self._volume, voxels, np.float32, order=1, mode="nearest")


def checked(name: str, hertz: NDArray[Any]) -> NDArray[np.float32]:
    """Volume [slice, row, column] of real numbers.

    Raises
    ------
    FieldMapError
        It is none.
    """
    hertz = np.asarray(hertz)
    if hertz.dtype.kind not in "iuf" or hertz.ndim not in (2, 3) or not hertz.size:
        raise FieldMapError(
            f"the field map {name} holds {hertz.dtype} {hertz.shape}: expected real numbers in Hz, [row, column] or "
            "[slice, row, column]"
        )
    volume = hertz.reshape(-1, *hertz.shape[-2:]).astype(np.float32)
    if not np.isfinite(volume).any():
        raise FieldMapError(f"the field map {name} has no value that is a number")
    return volume


def filled(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map whose places without a value have the nearest one of their slice, or else of all."""
    volume = volume.copy()
    known = np.isfinite(volume)
    for plane, has in zip(volume, known, strict=True):
        if has.any() and not has.all():
            nearest = ndimage.distance_transform_edt(~has, return_distances=False, return_indices=True)
            plane[:] = plane[tuple(nearest)]
    empty = ~known.any(axis=(1, 2))
    if empty.any():
        numbers = np.flatnonzero(~empty)
        for number in np.flatnonzero(empty):
            volume[number] = volume[numbers[np.abs(numbers - number).argmin()]]
    return volume


def read_file(path: Path, warn: Callable[[str], None]) -> GridMap | PlacedMap:
    """Read the map of a file, by its ending.

    Raises
    ------
    FieldMapError
        There is none, or it is no map.
    """
    name = path.name.lower()
    try:
        if name.endswith(".npy"):
            return GridMap(path.name, np.load(path, allow_pickle=False), warn)
        if name.endswith(".mat"):
            variables = read_mat(path, [VARIABLE])
            if VARIABLE not in variables:
                raise FieldMapError(f"the field map {path} has no variable {VARIABLE}")
            return GridMap(path.name, variables[VARIABLE], warn)
        if name.endswith(nifti.NAMES):
            return _nifti(path, warn)
        if name.endswith(".h5"):
            return _mrd_images(path, warn)
    except FieldMapError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, tokenize.TokenError) as error:
        raise FieldMapError(f"cannot read the field map {path}: {error}") from error
    raise FieldMapError(
        f'field_map = "{path}": expected "dependency", "auto", or a file that ends in .npy, .mat, .nii, .nii.gz or .h5'
    )


def _nifti(path: Path, warn: Callable[[str], None]) -> PlacedMap:
    """Map of a NIfTI file of one volume; its last axis are the slices."""
    values, geometry = nifti.read(path)
    if len(values) != 1:
        raise FieldMapError(f"the field map {path} has {len(values)} volumes: expected one")
    if not geometry.is_known:
        raise FieldMapError(f"the field map {path} does not tell where it lies: its qform and sform codes are 0")
    to_patient = geometry.affine[:, [2, 1, 0, 3]]  # of (slice, row, column)
    return PlacedMap(path.name, values[0], to_patient, float(np.linalg.norm(to_patient[:3, 0])), warn)


def _mrd_images(path: Path, warn: Callable[[str], None]) -> PlacedMap:
    """Map of the images in an MRD file, one for each slice."""
    with MrdReader(path) as file:
        images = list(file.images())
    if not images:
        raise FieldMapError(f"the field map {path} has no images")
    for image in images:
        if image.data.shape[:2] != (1, 1):
            raise FieldMapError(
                f"the field map {path} has images of {image.data.shape} [channel, partition, row, column]: "
                "expected one channel and one slice in each"
            )
    places = {tuple(image.position) for image in images}
    if len(places) < len(images):
        raise FieldMapError(
            f"the field map {path} has {len(images)} images in {len(places)} places: expected one of each slice, "
            "those of the map alone"
        )
    return placed(path.name, [image.data[0, 0] for image in images], [image.getHead() for image in images], warn=warn)


def placed(
    name: str, planes: Sequence[NDArray[Any]], heads: Sequence[Any],
    field_of_view: tuple[float, float, float] | None = None, warn: Callable[[str], None] = logger.warning,
) -> PlacedMap:  # fmt: skip
    """Map of parallel slices, from their headers.

    Parameters
    ----------
    name
        For messages.
    planes
        [row, column] [Hz] each.
    heads
        Of an image or a readout of each: position and direction cosines.
    field_of_view
        (x, y, z) [mm]; None: that of the image headers.
    warn
        Called with a text for the client.

    Raises
    ------
    FieldMapError
        The slices are not parallel and evenly spaced, or differ in size.
    """
    first = heads[0]
    fov = field_of_view or tuple(first.field_of_view)
    read, phase = np.array(first.read_dir, float), np.array(first.phase_dir, float)
    normal = np.cross(read, phase)
    shape = planes[0].shape
    if any(plane.shape != shape for plane in planes):
        raise FieldMapError(f"the slices of the field map {name} differ in size")
    if any(np.dot(head.read_dir, read) < 0.999 or np.dot(head.phase_dir, phase) < 0.999 for head in heads):
        raise FieldMapError(f"the slices of the field map {name} are not parallel")
    height = np.array([np.dot(head.position, normal) for head in heads])
    order = np.argsort(height, kind="stable")
    steps = np.diff(height[order])
    if len(steps) and not (steps.min() > 0 and np.ptp(steps) <= SPACING * steps.max()):
        raise FieldMapError(
            f"the slices of the field map {name} are not evenly spaced: they lie at "
            f"{', '.join(f'{value:.1f}' for value in height[order])} mm along their normal"
        )
    rows, columns = shape
    pixel = fov[1] / rows, fov[0] / columns
    distance = steps.mean() if len(steps) else fov[2] or 1.0
    corner = np.array(heads[order[0]].position) - rows // 2 * pixel[0] * phase - columns // 2 * pixel[1] * read
    to_patient = np.eye(4)
    to_patient[:3] = np.stack([distance * normal, pixel[0] * phase, pixel[1] * read, corner], axis=1)
    return PlacedMap(name, np.stack(planes)[order], to_patient, fov[2], warn)
