"""MRD images to NIfTI files and back.

A NIfTI file becomes one MRD image for each slice and frame. On the way back, images of one size and orientation make
one file: their slices a stack, further images of the same slices its frames.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from ismrmrd import xsd
from numpy.typing import NDArray

import mrdhelper
from dicomio.geometry import Plane, to_mrd, to_planes, vector
from mrdio import nifti
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from mrdio.mrdsource import Source
from mrdio.pixeltypes import to_pixel_type

logger = logging.getLogger(__name__)

SAME_DIRECTION = 1e-3  # of direction cosines, and of pixel sizes [mm]
SAME_PLACE = 0.05  # distance [mm] below which two slices are the same one
UNEVEN = 0.02  # deviation of a slice from an even stack, in parts of the distance of slices
SKEW = 1e-3  # largest scalar product of the directions of rows and columns
LARGEST_COUNTER = 2**16 - 1


# ---- NIfTI to MRD --------------------------------------------------------------------------------------------------
def open_nifti(path: Path) -> Source:
    """Open a NIfTI file for sending.

    Raises
    ------
    MrdFileError
        If it cannot be read.
    """
    try:
        values, geometry = nifti.read(path)
    except (OSError, ValueError) as error:
        raise MrdFileError(str(error)) from error
    try:
        planes = planes_of(values.shape[1:], geometry)
        values = to_pixel_type(values)
    except ValueError as error:
        raise MrdFileError(f"{path} cannot be sent: {error}") from error
    count = values.shape[0] * values.shape[1]
    header = header_of(values.shape, planes[0])
    return Source(xsd.ToXML(header), None, images_of(values, geometry, planes), count, lambda: None)


def planes_of(shape: tuple[int, int, int], geometry: nifti.Geometry) -> list[Plane]:
    """Planes of the slices of an array [z, y, x].

    Raises
    ------
    ValueError
        If rows and columns are not at right angles.
    """
    slices, rows, columns = shape
    along = geometry.affine[:3, :3]
    width, height = (float(np.linalg.norm(along[:, axis])) for axis in (0, 1))
    along_row, along_column = along[:, 0] / width, along[:, 1] / height
    if abs(along_row @ along_column) > SKEW:
        raise ValueError(f"rows and columns are not at right angles: directions {along_row} and {along_column}")
    return [
        Plane(
            first_pixel=vector(geometry.affine[:3, 3] + index * along[:, 2]),
            along_row=vector(along_row),
            along_column=vector(along_column),
            spacing=(height, width),
            shape=(rows, columns),
            thickness=abs(float(np.cross(along_row, along_column) @ along[:, 2])),
        )
        for index in range(slices)
    ]


def header_of(shape: tuple[int, int, int, int], plane: Plane) -> xsd.ismrmrdHeader:
    """MRD header of an array [frame, z, y, x]: matrix, field of view, numbers of slices and frames."""
    frames, slices, rows, columns = shape
    x, y, z = to_mrd(plane).field_of_view
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=columns, y=rows, z=1), fieldOfView_mm=xsd.fieldOfViewMm(x=x, y=y, z=z)
    )
    limits = xsd.encodingLimitsType(
        slice=xsd.limitType(minimum=0, maximum=slices - 1, center=slices // 2),
        repetition=xsd.limitType(minimum=0, maximum=frames - 1, center=0),
    )
    encoding = xsd.encodingType(
        encodedSpace=space, reconSpace=space, encodingLimits=limits, trajectory=xsd.trajectoryType.CARTESIAN
    )
    unknown = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=0)  # the schema wants a number
    return xsd.ismrmrdHeader(experimentalConditions=unknown, encoding=[encoding])


def images_of(values: NDArray[Any], geometry: nifti.Geometry, planes: Sequence[Plane]) -> Iterator[ismrmrd.Image]:
    """Yield the MRD images of an array [frame, z, y, x], frame by frame; the frame is the counter ``repetition``."""
    ticks = geometry.interval / mrdhelper.SECONDS_PER_TICK
    for (frame, volume), (index, plane) in itertools.product(enumerate(values), enumerate(planes)):
        head = ismrmrd.ImageHeader()
        place = to_mrd(plane)
        if geometry.is_known:
            head.position, head.read_dir, head.phase_dir = place.position, place.read_dir, place.phase_dir
            # The slices are counted in this direction; in files of other programs it may be the opposite one.
            up = np.sign(np.dot(place.slice_dir, geometry.affine[:3, 2]))
            head.slice_dir = vector(up * np.asarray(place.slice_dir))
        head.slice, head.repetition = min(index, LARGEST_COUNTER), min(frame, LARGEST_COUNTER)
        head.acquisition_time_stamp = round(frame * ticks)
        number = min(frame * len(planes) + index + 1, LARGEST_COUNTER)
        yield mrdhelper.build_image(
            volume[index], head, None, index=number, field_of_view=place.field_of_view, meta={"DataRole": "Image"}
        )


# ---- MRD to NIfTI --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Slice:
    """One plane of an image: pixels [channel, y, x]; `plane` is None where the image's place is not known."""

    pixels: NDArray[Any]
    head: ismrmrd.ImageHeader
    plane: Plane | None

    @property
    def counters(self) -> tuple[int, ...]:
        head = self.head
        return head.average, head.contrast, head.set, head.repetition, head.phase

    def is_parallel_to(self, other: "_Slice") -> bool:
        """Tell whether two slices may belong to one stack."""
        if self.plane is None or other.plane is None:
            return self.plane is other.plane
        pairs = [(each.along_row, each.along_column, each.spacing) for each in (self.plane, other.plane)]
        return all(np.allclose(one, two, rtol=0, atol=SAME_DIRECTION) for one, two in zip(*pairs, strict=True))

    @property
    def upwards(self) -> NDArray[np.float64]:
        """Normal of the plane, in the direction in which slices are counted."""
        assert self.plane is not None
        normal = np.cross(self.plane.along_row, self.plane.along_column)
        return -normal if normal @ np.asarray(tuple(self.head.slice_dir)) < 0 else normal


def write_group(source: Path, group: str | None, output: Path, overwrite: bool = False) -> list[Path]:
    """Write the images of a group of an MRD .h5 file as NIfTI; returns the files.

    One file if all images are of one series, size, type and orientation; else one for each, ``out_image_1.nii.gz`` and
    ``out_image_1_2.nii.gz`` for ``out.nii.gz``. Of complex images the magnitude is written, which is logged.

    Raises
    ------
    MrdFileError
        If there are no images, or one of the files is there already and is not to be overwritten.
    ValueError
        If NIfTI cannot hold them: slices at uneven distances, or not as many images of each; the text says which.
    OSError
        If a file cannot be read or written.
    """
    with MrdReader(source, group) as reader:
        stacks = [
            (name if number == 1 else f"{name}_{number}", stack)
            for name in reader.image_groups
            for number, stack in enumerate(_by_orientation(reader.images(name)), start=1)
        ]
        if not stacks:
            raise MrdFileError(f"{source} has no images in group '{reader.group}'")
    end = next(end for end in sorted(nifti.NAMES, key=len, reverse=True) if output.name.lower().endswith(end))
    stem = output.name[: -len(end)]
    written = {}
    for name, stack in stacks:
        path = output if len(stacks) == 1 else output.with_name(f"{stem}_{name}{output.name[-len(end) :]}")
        try:
            written[path] = _volume(stack)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if path.exists() and not overwrite:
            raise MrdFileError(f"there is a file {path} already")
    for path, (values, geometry) in written.items():
        nifti.write(path, values, geometry)
    return list(written)


def _by_orientation(images: Iterable[ismrmrd.Image]) -> list[list[_Slice]]:
    stacks: list[list[_Slice]] = []
    for image in images:
        head = image.getHead()
        planes: Sequence[Plane | None] = to_planes(head) or [None] * image.data.shape[1]
        for index, plane in enumerate(planes):
            each = _Slice(image.data[:, index], head, plane)
            stack = next((stack for stack in stacks if stack[0].is_parallel_to(each)), None)
            if stack is None:
                stacks.append([each])
            else:
                stack.append(each)
    return stacks


def _volume(stack: list[_Slice]) -> tuple[NDArray[Any], nifti.Geometry]:
    """Array [channel, frame, z, y, x] of a stack, and its place."""
    places = _at_places(stack)
    counts = [len(place) for place in places]
    if len(set(counts)) > 1:
        raise ValueError(f"its {len(places)} slices have from {min(counts)} to {max(counts)} images each, not as many")
    if len(places) > 1:
        in_order = [sorted(place, key=lambda each: each.counters) for place in places]  # stable: else as in the file
        if all([each.counters for each in place] == [each.counters for each in in_order[0]] for place in in_order):
            places = in_order
        elif counts[0] > 1:
            logger.warning("The counters of slices differ: the frames of each are in the order of the file")
    values = np.stack([np.stack([each.pixels for each in place]) for place in places])  # [z, frame, channel, y, x]
    if np.iscomplexobj(values):
        logger.warning("NIfTI viewers show no complex images: the magnitude is written")
        values = np.abs(values)
    return values.transpose(2, 1, 0, 3, 4), _geometry(places)


def _at_places(stack: list[_Slice]) -> list[list[_Slice]]:
    """Slices that lie at the same place, in the order of the file; the places in the order of a stack."""
    if stack[0].plane is None:
        by_counter: dict[int, list[_Slice]] = {}
        for each in stack:
            by_counter.setdefault(each.head.slice, []).append(each)
        return [by_counter[number] for number in sorted(by_counter)]
    upwards = stack[0].upwards
    heights = np.array([upwards @ np.asarray(each.plane.first_pixel) for each in stack if each.plane is not None])
    order = np.argsort(heights, kind="stable")
    ends = np.flatnonzero(np.diff(heights[order]) > SAME_PLACE) + 1
    return [[stack[index] for index in sorted(part)] for part in np.split(order, ends)]


def _geometry(places: list[list[_Slice]]) -> nifti.Geometry:
    frames = places[0]
    stamps = np.diff([each.head.acquisition_time_stamp for each in frames])
    interval = mrdhelper.SECONDS_PER_TICK * float(np.mean(stamps)) if stamps.size and np.all(stamps > 0) else 0.0
    first = frames[0].plane
    affine = np.eye(4)
    if first is None:
        rows, columns = frames[0].pixels.shape[1:]
        sizes = np.divide(tuple(frames[0].head.field_of_view), (columns, rows, frames[0].head.matrix_size[2]))
        affine[:3, :3] = np.diag(np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0))
        return nifti.Geometry(affine, is_known=False, interval=interval)
    corners = np.array([[each.plane.first_pixel for each in place if each.plane is not None] for place in places])
    moved = np.abs(corners - corners[:, :1]).max()
    if moved > SAME_PLACE:
        raise ValueError(f"its images move in their plane, by {moved:.2f} mm: NIfTI has one place for all frames")
    corners = corners[:, 0]
    if len(places) > 1:
        step = (corners[-1] - corners[0]) / (len(places) - 1)
        away = np.linalg.norm(corners - corners[0] - np.arange(len(places))[:, np.newaxis] * step, axis=1).max()
        if away > UNEVEN * np.linalg.norm(step):
            heights = ", ".join(f"{height:.2f}" for height in (corners - corners[0]) @ frames[0].upwards)
            raise ValueError(f"its slices are not at even distances: they are {heights} mm above the first")
    else:
        step = frames[0].upwards * (first.thickness or 1.0)
    affine[:3, 0] = np.asarray(first.along_row) * first.spacing[1]
    affine[:3, 1] = np.asarray(first.along_column) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = corners[0]
    return nifti.Geometry(affine, interval=interval)
