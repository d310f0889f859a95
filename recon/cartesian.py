"""Cartesian readouts to k-space planes, and k-space planes to images.

Readouts are placed by their counters and the header's encoding limits, never by their order of arrival. 3-D encodings
are transformed along the partitions here, so that callers see two-dimensional planes only.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.fourier import Axis, centred_fft, mirror, resize_centred, to_image_axis
from recon.kspacevolume import KSpaceVolume
from recon.mrdencoding import acceleration_factors, counter_limit, extent, first_index, is_imaging
from recon.readoutgroups import VOLUME_COUNTERS, by_repetition, volumes_of
from recon.volumes import sort_volumes

__all__ = ["KSpacePlane", "is_imaging", "sort_readouts", "sort_repetitions", "to_image"]

logger = logging.getLogger(__name__)

ABOVE_NOISE = 20  # a largest sample over the median: that of noise is below 8
Result = tuple[KSpaceVolume, int, NDArray[np.float32], NDArray[np.float32]]  # volume, phase, magnitude, g-factor
READOUT_AXIS, PHASE_ENCODE_AXIS = 2, 1  # of [channel, phase encode, readout, phase]


class Slab(Protocol):
    """Sizes and headers of a slice or slab, whatever its trajectory: its geometry follows from them."""

    @property
    def encoding(self) -> Any:
        """The header's encoding."""

    @property
    def partitions(self) -> Axis:
        """Sizes along the partitions."""

    @property
    def heads(self) -> Sequence[ismrmrd.AcquisitionHeader]:
        """For each phase the header that stands for the whole slab."""


@dataclass(frozen=True, eq=False)
class KSpacePlane:
    """The k-space of one slice or partition, with all its cardiac phases.

    Attributes
    ----------
    kspace
        complex64 [channel, phase encode, readout, phase], k = 0 at index N // 2; averages, segments, and image and
        calibration lines of one place are merged by their mean, places without a readout are 0. The phase axis has one
        entry for each phase counter that occurs.
    sampled
        Number of readouts at each place [partition, phase encode, phase] of the encoding that the plane comes from.
    heads
        For each phase the header of the readout nearest to the k-space centre; its position is that of this plane.
    encoding
        The header's encoding.
    rows, columns
        Sizes along phase encode and readout.
    field_of_view
        Of the image (x, y, z) [mm]; None when the header does not say.
    mirrored
        Whether the data follows the scanner's sign convention, see `is_mirrored`.
    """

    kspace: NDArray[np.complex64]
    sampled: NDArray[np.uint32]
    heads: tuple[ismrmrd.AcquisitionHeader, ...]
    encoding: Any
    rows: Axis
    columns: Axis
    field_of_view: tuple[float, float, float] | None
    mirrored: bool

    @property
    def head(self) -> ismrmrd.AcquisitionHeader:
        """Header that stands for the whole plane: that of its first phase."""
        return self.heads[0]


# ------------------------------------------------------------------------------------------------- sorting readouts
def sort_repetitions(
    items: Iterable[Any], metadata: Any, warn: Callable[[str], None] = logger.warning
) -> Iterator[list[KSpacePlane]]:
    """Sort the imaging readouts of a scan into planes, and yield them one repetition at a time.

    A repetition comes as soon as its slices, contrasts and sets are complete (see `volumes.sort_volumes`), or at the
    end of the scan. So the memory does not grow with the number of repetitions.

    Parameters
    ----------
    items
        Readouts; waveforms, texts and None among them are ignored.
    metadata
        The MRD header.
    warn
        Called with a text about readouts that are missing or have no place.

    Yields
    ------
    Planes of one repetition, sorted by encoding space, slice, contrast and set.

    Raises
    ------
    TypeError, ValueError
        As `volumes.sort_volumes`.
    """
    told = False
    for volumes in by_repetition(sort_volumes(items, metadata, warn)):
        planes = [plane for volume in volumes for plane in split(volume)]
        missing = next((text for text in map(missing_lines, planes) if text), None)
        if missing and not told:
            told = True
            warn(missing)
        yield planes


def sort_readouts(
    items: Iterable[Any], metadata: Any, warn: Callable[[str], None] = logger.warning
) -> Iterator[KSpacePlane]:
    """Sort the imaging readouts of a scan into planes; the same as `sort_repetitions`, but one plane at a time."""
    for planes in sort_repetitions(items, metadata, warn):
        yield from planes


def missing_lines(plane: KSpacePlane) -> str | None:
    """Say which phase encoding lines a plane lacks and what that does to the image; None when it lacks none.

    It lacks those between acquired ones, and outer ones that the encoding limits promise. In a 3-D encoding a line is
    one of the slab, and lines that were left out in its corners are not missing.
    """
    acquired = plane.sampled > 0  # [partition, row, phase]
    gaps = np.count_nonzero(_enclosed(acquired, 0) | _enclosed(acquired, 1), axis=(0, 1))
    number = np.count_nonzero(acquired, axis=(0, 1))
    worst = max(range(len(number)), key=lambda phase: (gaps[phase], number[phase] > 0, -number[phase]))
    acquired = acquired[:, :, worst]

    axes = []  # (which of its lines occur, how many there should be)
    for along, limit in (
        (np.any(acquired, axis=0), counter_limit(plane.encoding, "kspace_encoding_step_1")),
        (np.any(acquired, axis=1), counter_limit(plane.encoding, "kspace_encoding_step_2")),
    ):
        promised = along.size if limit is None else min(limit.maximum - limit.minimum + 1, along.size)
        first, last = np.flatnonzero(along)[[0, -1]]
        axes.append((along, max(promised, last - first + 1)))
    count = f"{number[worst]} of {math.prod(expected for _, expected in axes)} phase encoding lines were acquired"
    if gaps[worst]:
        factors = acceleration_factors(plane.encoding)
        reason = f" (acceleration {factors[0]} x {factors[1]})" if max(factors) > 1 else ""
        return f"{count}{reason}: the missing ones are taken as zero, expect aliasing"
    for along, expected in axes:
        if np.count_nonzero(along) < expected:
            return f"{count}, {_position(along)}"
    return None


def missing_ends(sampled: NDArray[np.bool_], encoding: Any) -> str | None:
    """Say which lines at the ends of k-space lack that the encoding limits promise, as in an aborted scan; None: none.

    Parameters
    ----------
    sampled
        [partition, row], where there is a line. Distances of lines as they occur within, in an accelerated scan, are
        no lack at the ends either.
    encoding
        The header's.
    """
    texts = []
    for axis, (name, along) in enumerate((("row", np.any(sampled, axis=0)), ("partition", np.any(sampled, axis=1)))):
        limit = counter_limit(encoding, f"kspace_encoding_step_{axis + 1}")
        if limit is None or along.size == 1 or not along.any():
            continue
        counters = np.flatnonzero(along) - first_index(encoding, f"kspace_encoding_step_{axis + 1}", along.size)
        distance = max(int(np.diff(counters).max(initial=1)), acceleration_factors(encoding)[axis])
        if counters[0] - limit.minimum >= distance or limit.maximum - counters[-1] >= distance:
            texts.append(
                f"{name}s {counters[0]} to {counters[-1]} were acquired, the header's encodingLimits promise "
                f"{limit.minimum} to {limit.maximum}"
            )
    return (
        f"{'; '.join(texts)}: the rest is taken as left out by partial Fourier, or the scan was aborted"
        if texts
        else None
    )


def has_far_peak(kspace: NDArray[np.complex64]) -> bool:
    """True if the largest sample lies in the outer half of rows or samples, and stands out from noise.

    Parameters
    ----------
    kspace
        [coil, partition, row, sample].
    """
    magnitude = np.abs(kspace).max(axis=(0, 1))
    place = np.unravel_index(magnitude.argmax(), magnitude.shape)
    far = any(abs(index - size // 2) > size / 4 + 1 for index, size in zip(place, magnitude.shape, strict=True))
    return far and bool(magnitude.any()) and bool(magnitude[place] > ABOVE_NOISE * np.median(magnitude[magnitude > 0]))


def first_repetition_together(results: Iterable[Result]) -> Iterator[list[Result]]:
    """Yield the images of the first repetition together, those of later ones one by one.

    So one intensity scale can be found that holds for all slices, contrasts and sets. They come when there are as many
    as the encoding limits promise, or else, and where the header lacks one of these, when a later repetition has begun.

    Parameters
    ----------
    results
        Of each volume and cardiac phase.
    """
    first: list[Result] | None = []
    for result in results:
        key = result[0].key
        if first is None:
            yield [result]
            continue
        if first and key.repetition != first[0][0].key.repetition:
            yield first
            first = None
            yield [result]
            continue
        first.append(result)
        spaces = {each[0].key.encoding_space_ref: each[0].encoding for each in first}
        known = all(counter_limit(each, name) for each in spaces.values() for name in VOLUME_COUNTERS)
        if known and len({each[0].key for each in first}) >= sum(map(volumes_of, spaces.values())):
            yield first
            first = None
    if first:
        yield first


def _enclosed(acquired: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Places that were not acquired, with acquired ones on both sides along an axis."""
    before = np.logical_or.accumulate(acquired, axis)
    after = np.flip(np.logical_or.accumulate(np.flip(acquired, axis), axis), axis)
    return before & after & ~acquired


def _position(along: NDArray[np.bool_]) -> str:
    """Say where the acquired lines of an axis lie, and what taking the outer ones as zero does."""
    first, last = np.flatnonzero(along)[[0, -1]] - along.size // 2
    if first > 0 or last < 0:
        return "without the k-space centre: the image shows edges at most"
    if abs(first + last) <= 1:
        return "those about the k-space centre: the image has a lower resolution"
    return "more on one side of the k-space centre, as in partial Fourier: zeros fill the rest, expect a blurred image"


# -------------------------------------------------------------------------------------------------- one k-space plane
def split(volume: KSpaceVolume) -> list[KSpacePlane]:
    """Split a volume into its planes; a slab is transformed along its partitions for that."""
    kspace = volume.kspace
    if volume.partitions.points > 1:
        kspace = to_image_axis(kspace, volume.partitions, 1, volume.mirrored)
    heads = zip(*(partition_heads(volume, phase) for phase in range(len(volume.heads))), strict=True)
    return [
        KSpacePlane(
            kspace=kspace[:, partition],
            sampled=volume.sampled,
            heads=each,
            encoding=volume.encoding,
            rows=volume.rows,
            columns=volume.columns,
            field_of_view=field_of_view(volume),
            mirrored=volume.mirrored,
        )
        for partition, each in enumerate(heads)
    ]


def field_of_view(volume: Slab) -> tuple[float, float, float] | None:
    """Field of view of one plane (x, y, z) [mm]; None when the header does not say."""
    fov = volume.encoding.reconSpace.fieldOfView_mm
    return None if fov is None else (fov.x, fov.y, partition_distance(volume) or fov.z)


def partition_heads(volume: Slab, phase: int) -> list[ismrmrd.AcquisitionHeader]:
    """Headers of the planes of a volume in one cardiac phase."""
    partitions, depth = volume.partitions.pixels, partition_distance(volume)
    return [partition_head(volume.heads[phase], number, partitions, depth) for number in range(partitions)]


def partition_distance(volume: Slab) -> float:
    """Distance between the partitions of a slab [mm]; 0 in a 2-D encoding, or when the header does not say."""
    if volume.partitions.points == 1:
        return 0.0
    return extent(volume.encoding.reconSpace.fieldOfView_mm, "z") / volume.partitions.pixels


def partition_head(
    head: ismrmrd.AcquisitionHeader, partition: int, partitions: int, depth: float
) -> ismrmrd.AcquisitionHeader:
    """Header of one partition of a slab: slice number, and position moved along ``slice_dir``.

    The slab's position is the centre of partition `partitions` // 2, where the transform has its centre, too.

    Parameters
    ----------
    head
        Header of the slab, left as it is.
    partition, partitions
        Number of the partition, counted from 0, and how many there are.
    depth
        Distance between partitions [mm].
    """
    head = copy.copy(head)
    if partitions > 1:
        shift = (partition - partitions // 2) * depth
        head.position = tuple(p + shift * d for p, d in zip(head.position, head.slice_dir, strict=True))
        head.idx.slice = head.idx.slice * partitions + partition
    return head


# --------------------------------------------------------------------------------------------------- k-space to image
def to_image(plane: KSpacePlane) -> NDArray[np.complex64]:
    """Transform the k-space of a plane to its image.

    The inverse Fourier transform, divided by the number of k-space points: zero-filling and cropping leave the scale of
    the values alone. Pixel size and matrix are those of the header's reconSpace, the orientation is that of
    `is_mirrored`.

    Returns
    -------
    Image [channel, row, column, phase], x = 0 and y = 0 at index N // 2.
    """
    image = to_image_axis(plane.kspace, plane.rows, PHASE_ENCODE_AXIS, plane.mirrored)
    return to_image_axis(image, plane.columns, READOUT_AXIS, plane.mirrored)


def to_recon_space(image: NDArray[Any], plane: KSpacePlane) -> NDArray[Any]:
    """Bring an image that was transformed without a change of size to the plane's pixel size, orientation and matrix.

    Parameters
    ----------
    image
        Inverse Fourier transform of ``plane.kspace`` [channel, row, column, phase], x = 0 and y = 0 at index N // 2.
    plane
        The plane it came from.

    Returns
    -------
    What `to_image` returns.
    """
    for axis, number in ((plane.rows, PHASE_ENCODE_AXIS), (plane.columns, READOUT_AXIS)):
        if axis.transform != axis.points:
            kspace = centred_fft(image, number)
            image = to_image_axis(kspace, axis, number, plane.mirrored)
        else:
            image = resize_centred(mirror(image, [number]) if plane.mirrored else image, axis.pixels, number)
    return image
