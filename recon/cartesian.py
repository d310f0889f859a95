"""Cartesian readouts to k-space planes, and k-space planes to images.

Readouts are placed by their counters and the header's encoding limits, never by their order of arrival. 3-D encodings
are transformed along the partitions here, so that callers see two-dimensional planes only.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.fourier import Axis, centred_fft, mirror, resize_centred, to_image_axis
from recon.mrdencoding import (
    calibration_mode,
    counter_values,
    encoding_axis,
    encoding_of,
    extent,
    first_index,
    is_calibration_only,
    is_imaging,
    is_mirrored,
)

__all__ = ["KSpacePlane", "is_imaging", "sort_readouts", "sort_repetitions", "to_image"]

logger = logging.getLogger(__name__)

MAX_POINTS = 2**28  # complex numbers in one k-space (2 GiB, and as much again in each step to the image)

PARALLEL = 0.99  # cosine of the angle between readouts, which is 0 or 180 degrees but for what rounding does
READOUT_AXIS, PHASE_ENCODE_AXIS = 2, 1  # of [channel, phase encode, readout, phase]


class OutsideMatrixError(ValueError):
    """None of the readouts of a plane has a place in the matrix; the text says where they lie."""


class Key(NamedTuple):
    """Counters by which readouts belong to one plane, in the order in which planes are made."""

    repetition: int
    encoding_space_ref: int
    slice: int
    contrast: int
    set: int


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

    A repetition comes as soon as it is complete according to the encoding limits and a later one has begun; what is not
    complete comes at the end of the scan. So the memory does not grow with the number of repetitions.

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
    TypeError
        When an image is among the items.
    ValueError
        When the header is missing, its trajectory is not Cartesian or its sizes are beyond limits, the trajectory in
        the readouts is none of straight lines, the number of channels changes, or no readout has a place in the matrix.
    """
    waiting: dict[int, dict[Key, list[Any]]] = {}
    misplaced = 0
    told = found_a_place = False
    nowhere: OutsideMatrixError | None = None
    for repetition in _repetitions(items, metadata, waiting, warn):
        planes = []
        for key, readouts in sorted(waiting.pop(repetition).items()):
            try:
                new, outside = _planes(key, readouts, metadata)
            except OutsideMatrixError as error:  # no image is better than a black one
                nowhere, new, outside = nowhere or error, [], 0
            planes += new
            misplaced += outside
        missing = next((text for text in map(missing_lines, planes) if text), None)
        if missing and not told:
            told = True
            warn(missing)
        if planes:
            found_a_place = True
            yield planes
    if nowhere and not found_a_place:
        raise nowhere
    if nowhere:
        warn(f"an image is not made: {nowhere}")
    if misplaced:
        warn(f"{misplaced} readouts lie wholly or partly outside the matrix; what lies outside is left out")


def sort_readouts(
    items: Iterable[Any], metadata: Any, warn: Callable[[str], None] = logger.warning
) -> Iterator[KSpacePlane]:
    """Sort the imaging readouts of a scan into planes; the same as `sort_repetitions`, but one plane at a time."""
    for planes in sort_repetitions(items, metadata, warn):
        yield from planes


def _repetitions(
    items: Iterable[Any], metadata: Any, waiting: dict[int, dict[Key, list[Any]]], warn: Callable[[str], None]
) -> Iterator[int]:
    """Collect readouts in `waiting` and yield the number of each repetition when it is to be worked on."""
    channels = None
    newest = -1
    directions: dict[int, NDArray[Any] | None] = {}  # of the readouts of an encoding space, by their trajectory
    told = False
    imaging = broken = 0
    for item in items:
        if isinstance(item, ismrmrd.Image):
            raise TypeError("got an image; a Cartesian reconstruction needs raw data (readouts)")
        if not isinstance(item, ismrmrd.Acquisition):
            continue
        if not is_imaging(item, metadata):
            if not told and is_calibration_only(item):
                told = _tell_unknown_calibration(item, metadata, warn)
            continue
        if item.encoding_space_ref not in directions:  # at the first readout: a whole scan is long to wait for an error
            encoding_of(metadata, item.encoding_space_ref)
            directions[item.encoding_space_ref] = None
        direction = check_trajectory(item, directions[item.encoding_space_ref])
        directions[item.encoding_space_ref] = direction
        imaging += 1
        if not np.isfinite(item.data).all():  # one would make the whole image black
            broken += 1
            if broken == 1:
                warn(f"readout {item.scan_counter} is left out: its samples are not finite; so is any further such one")
            continue
        channels = item.active_channels if channels is None else channels
        if item.active_channels != channels:
            raise ValueError(
                f"readout with scan_counter {item.scan_counter} has {item.active_channels} channels; "
                f"those before it have {channels}"
            )
        idx = item.idx
        key = Key(idx.repetition, item.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        if idx.repetition > newest:
            newest = idx.repetition
            while waiting and _is_complete(waiting[min(waiting)], metadata):
                yield min(waiting)  # the caller takes it out
        waiting.setdefault(idx.repetition, {}).setdefault(key, []).append(item)
    if broken:
        text = f"{broken} of {imaging} imaging readouts hold samples that are not finite"
        if broken == imaging:
            raise ValueError(text)
        warn(f"{text}: they are left out")
    yield from sorted(waiting)


def _is_complete(groups: dict[Key, list[Any]], metadata: Any) -> bool:
    """True if the encoding limits leave nothing to wait for."""
    for reference in {key.encoding_space_ref for key in groups}:
        encoding = encoding_of(metadata, reference)
        mine = [readouts for key, readouts in groups.items() if key.encoding_space_ref == reference]
        if len(mine) < math.prod(counter_values(encoding, name) for name in ("slice", "contrast", "set")):
            return False
        names = ("kspace_encoding_step_1", "kspace_encoding_step_2", "average", "phase")
        expected = math.prod(counter_values(encoding, name) for name in names)
        for readouts in mine:
            places = {
                (r.idx.kspace_encode_step_1, r.idx.kspace_encode_step_2, r.idx.average, r.idx.phase) for r in readouts
            }
            if len(places) < expected:
                return False
    return True


def _tell_unknown_calibration(readout: Any, metadata: Any, warn: Callable[[str], None]) -> bool:
    """Warn of a calibration line that is left out although it may be one of the image; returns True if it did."""
    mode = calibration_mode(metadata, readout.encoding_space_ref)
    if mode not in (None, "other"):
        return False
    warn(
        f"readouts flagged as calibration only are left out, since the header's calibrationMode is {mode or 'absent'}: "
        "if they have the contrast of the image, 'embedded' is right"
    )
    return True


def check_trajectory(readout: Any, direction: NDArray[Any] | None) -> NDArray[Any] | None:
    """Check that the trajectory in a readout, if it has one, is a straight line with samples at equal distances.

    Parameters
    ----------
    readout
        The acquisition; samples that are to be discarded do not count.
    direction
        Unit vector of the readouts before, to which it has to be parallel; None: there was none.

    Returns
    -------
    Unit vector of this readout, or `direction` where it has no trajectory.

    Raises
    ------
    ValueError
        When a sample is more than two distances away from where it would be, or the line has another direction.
    """
    k = readout.traj[readout.discard_pre : max(readout.number_of_samples - readout.discard_post, 0)].astype(np.float64)
    if k.size == 0 or len(k) < 2 or not np.isfinite(k).all():
        return direction
    which = f"the header's trajectory is 'cartesian', but that of the readout with scan_counter {readout.scan_counter}"
    length = np.linalg.norm(k[-1] - k[0])
    if np.linalg.norm(k - np.linspace(k[0], k[-1], len(k)), axis=1).max() > 2 * length / (len(k) - 1):
        raise ValueError(f"{which} is no straight line with samples at equal distances: one of them is wrong")
    if length == 0:
        return direction
    own = (k[-1] - k[0]) / length
    if direction is not None and len(direction) == len(own) and abs(own @ direction) < PARALLEL:
        raise ValueError(f"{which} has another direction than those before, as in a radial scan: one of them is wrong")
    return own if direction is None else direction


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

    limits = plane.encoding.encodingLimits
    axes = []  # (which of its lines occur, how many there should be)
    for along, limit in (
        (acquired.any(axis=0), limits.kspace_encoding_step_1),
        (acquired.any(axis=1), limits.kspace_encoding_step_2),
    ):
        promised = along.size if limit is None else min(limit.maximum - limit.minimum + 1, along.size)
        first, last = np.flatnonzero(along)[[0, -1]]
        axes.append((along, max(promised, last - first + 1)))
    count = f"{number[worst]} of {math.prod(expected for _, expected in axes)} phase encoding lines were acquired"
    if gaps[worst]:
        factor = getattr(getattr(plane.encoding, "parallelImaging", None), "accelerationFactor", None)
        factors = [getattr(factor, f"kspace_encoding_step_{step}", 1) for step in (1, 2)]
        reason = f" (acceleration {factors[0]} x {factors[1]})" if max(factors) > 1 else ""
        return f"{count}{reason}: the missing ones are taken as zero, expect aliasing"
    for along, expected in axes:
        if np.count_nonzero(along) < expected:
            return f"{count}, {_position(along)}"
    return None


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
def _planes(key: Key, readouts: list[Any], metadata: Any) -> tuple[list[KSpacePlane], int]:
    """Build the planes of one key; also returns how many readouts did not fit into the matrix.

    Raises
    ------
    OutsideMatrixError
        When none did.
    """
    encoding = encoding_of(metadata, key.encoding_space_ref)
    columns, rows, partitions = (encoding_axis(encoding, name) for name in "xyz")
    if partitions.points == 1:
        partitions = Axis(1, 1, 1)  # some headers write the number of slices of a 2-D encoding here
    if _oversampling_removed(readouts[0], columns):
        columns = Axis(columns.pixels, columns.pixels, columns.pixels)
    counters = sorted({readout.idx.phase for readout in readouts})
    phases = {counter: position for position, counter in enumerate(counters)}

    shape = (readouts[0].active_channels, partitions.points, rows.points, columns.points, len(phases))
    largest = math.prod(shape) // math.prod((partitions.points, rows.points, columns.points))
    largest *= math.prod(max(axis) for axis in (partitions, rows, columns))
    if largest > MAX_POINTS:
        raise ValueError(f"k-space [channel, z, y, x, phase] of size {shape} is beyond {MAX_POINTS} points")

    kspace = np.zeros(shape, dtype=np.complex64)
    count = np.zeros(shape[1:], dtype=np.uint32)
    nearest: dict[int, tuple[int, Any]] = {}
    first_row = first_index(encoding, "kspace_encoding_step_1", rows.points)
    first_partition = first_index(encoding, "kspace_encoding_step_2", partitions.points)
    outside = 0
    for readout in readouts:
        row = readout.idx.kspace_encode_step_1 + first_row
        partition = readout.idx.kspace_encode_step_2 + first_partition
        samples, start = ordered_samples(readout, columns.points)
        begin, end = max(start, 0), min(start + samples.shape[1], columns.points)
        inside = 0 <= row < rows.points and 0 <= partition < partitions.points and begin < end
        outside += not inside or end - begin < samples.shape[1]
        phase = phases[readout.idx.phase]
        distance = abs(row - rows.points // 2) + abs(partition - partitions.points // 2)
        if phase not in nearest or distance < nearest[phase][0]:
            nearest[phase] = (distance, readout)
        if inside:
            kspace[:, partition, row, begin:end, phase] += samples[:, begin - start : end - start]
            count[partition, row, begin:end, phase] += 1
    if not count.any():
        first = readouts[0]
        raise OutsideMatrixError(
            f"none of {len(readouts)} readouts has a place in the matrix: the first one's kspace_encode_step_1 is "
            f"{first.idx.kspace_encode_step_1} where {-first_row} to {rows.points - first_row - 1} would be right, its "
            f"kspace_encode_step_2 is {first.idx.kspace_encode_step_2} where {-first_partition} to "
            f"{partitions.points - first_partition - 1} would be, and its samples begin at column "
            f"{ordered_samples(first, columns.points)[1]} of {columns.points}, "
            "by the header's encodedSpace and encodingLimits"
        )
    if count.max() > 1:
        kspace /= np.maximum(count, 1)

    volume, depth = kspace, 0.0
    if partitions.points > 1:
        volume = to_image_axis(kspace, partitions, 1, is_mirrored(metadata))
        depth = extent(encoding.reconSpace.fieldOfView_mm, "z") / partitions.pixels
    fov = encoding.reconSpace.fieldOfView_mm
    heads = [nearest[phase][1].getHead() for phase in range(len(phases))]
    planes = [
        KSpacePlane(
            kspace=volume[:, partition],
            sampled=count.max(axis=2),
            heads=tuple(partition_head(head, partition, volume.shape[1], depth) for head in heads),
            encoding=encoding,
            rows=rows,
            columns=columns,
            field_of_view=None if fov is None else (fov.x, fov.y, depth or fov.z),
            mirrored=is_mirrored(metadata),
        )
        for partition in range(volume.shape[1])
    ]
    return planes, outside


def _oversampling_removed(readout: Any, columns: Axis) -> bool:
    """True if someone on the way halved the readout by removing its oversampling, and left the header as it was."""
    samples = readout.number_of_samples - readout.discard_pre - readout.discard_post
    centre = readout.center_sample - readout.discard_pre
    centred = abs(centre - samples // 2) <= 1 or centre >= samples  # the latter: the centre was left as it was, too
    return samples == columns.pixels and columns.points == 2 * columns.pixels == columns.transform and centred


def ordered_samples(readout: Any, points: int) -> tuple[NDArray[np.complex64], int]:
    """Samples of a readout in the order of rising k, and the column of the first of them.

    ``discard_pre`` and ``discard_post`` samples are dropped, reversed readouts turned round. ``center_sample`` counts
    in the order of rising k, as converters of vendor data write it. Where it was obviously not set (0 in a readout as
    wide as the matrix, or beyond the readout's end) the readout is centred.

    Parameters
    ----------
    readout
        The acquisition, data [channel, sample].
    points
        Columns of the matrix, with k = 0 at column `points` // 2.
    """
    total = readout.number_of_samples
    pre, post = readout.discard_pre, readout.discard_post
    samples = readout.data[:, pre : max(total - post, pre)]
    if readout.is_flag_set(ismrmrd.ACQ_IS_REVERSE):
        samples, pre = samples[:, ::-1], post
    width = samples.shape[1]
    centre = readout.center_sample - pre
    if centre >= width or (readout.center_sample == 0 and width >= points > 1):
        centre = width // 2
    return samples, points // 2 - centre


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
