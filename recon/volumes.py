"""Cartesian readouts to k-space volumes, each when its data are complete.

Readouts are placed by their counters and the header's encoding limits, never by their order of arrival.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.fourier import Axis
from recon.mrdencoding import (
    acceleration_factors,
    calibration_mode,
    counter_values,
    encoding_axis,
    encoding_of,
    first_index,
    is_calibration_only,
    is_imaging,
    is_mirrored,
)

logger = logging.getLogger(__name__)

MAX_POINTS = 2**28  # complex numbers in one k-space (2 GiB, and as much again in each step to the image)
PARALLEL = 0.99  # cosine of the angle between readouts, which is 0 or 180 degrees but for what rounding does
CORNERS = 0.7  # part of the lines of a 3-D encoding that are acquired at least when its corners are left out
LAST = (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)
LAST_MASK = sum(1 << (flag - 1) for flag in LAST)


class OutsideMatrixError(ValueError):
    """None of the readouts of a volume has a place in the matrix; the text says where they lie."""


class Key(NamedTuple):
    """Counters by which readouts belong to one volume, in the order in which images are made."""

    repetition: int
    encoding_space_ref: int
    slice: int
    contrast: int
    set: int


@dataclass(frozen=True, eq=False)
class KSpaceVolume:
    """The k-space of one slice or slab, with all its cardiac phases.

    Attributes
    ----------
    key
        Its counters.
    kspace
        complex64 [channel, partition, row, sample, phase], k = 0 at index N // 2; averages, segments, and image and
        calibration lines of one place are merged by their mean, places without a readout are 0. The phase axis has one
        entry for each phase counter that occurs.
    sampled
        Number of readouts at each place [partition, row, phase].
    samples
        First sample of the readout axis that any readout has, and the one after the last.
    heads
        For each phase the header of the readout nearest to the k-space centre.
    encoding
        The header's encoding.
    columns, rows, partitions
        Sizes along readout and both phase encodings.
    mirrored
        Whether the data follows the scanner's sign convention, see `is_mirrored`.
    """

    key: Key
    kspace: NDArray[np.complex64]
    sampled: NDArray[np.uint32]
    samples: tuple[int, int]
    heads: tuple[ismrmrd.AcquisitionHeader, ...]
    encoding: Any
    columns: Axis
    rows: Axis
    partitions: Axis
    mirrored: bool


# ------------------------------------------------------------------------------------------------- sorting readouts
def sort_volumes(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None] = logger.warning,
    calibration: Callable[[Any], None] | None = None,
) -> Iterator[KSpaceVolume]:
    """Sort the imaging readouts of a scan into volumes, and yield each when its data are complete.

    A volume is complete when a readout is flagged as the last of its slice, or a later repetition has begun, and it has
    the lines that the encoding limits promise: all, or, in an accelerated scan, so many that they are no farther
    apart than the header's acceleration factor says. One that stays incomplete comes when no readout has been added to
    it for twice as many as a volume has, or at the end of the scan. So the memory does not grow with the number of
    repetitions.

    Parameters
    ----------
    items
        Readouts; waveforms, texts and None among them are ignored.
    metadata
        The MRD header.
    warn
        Called with a text about readouts that have no place or no use.
    calibration
        Called with each readout that was acquired for calibration only and is none of the image's; None: they have no
        use, and the client is told where they may be some of the image.

    Raises
    ------
    TypeError
        When an image is among the items.
    ValueError
        When the header is missing, its trajectory is not Cartesian or its sizes are beyond limits, the trajectory in
        the readouts is none of straight lines, the number of channels changes, or no readout has a place in the matrix.
    """
    builder = _Builder(metadata, warn)
    waiting: dict[Key, _Waiting] = {}
    newest = 0  # repetition
    made: set[Key] = set()
    late = 0
    for count, item in enumerate(_checked(items, metadata, warn, calibration)):
        idx = item.idx
        key = Key(idx.repetition, item.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        late += key in made
        if key not in waiting:
            waiting[key] = _Waiting(encoding_of(metadata, key.encoding_space_ref))
        waiting[key].add(item, count)
        begun, newest = idx.repetition > newest, max(idx.repetition, newest)
        for other in sorted(waiting) if begun else [key]:
            later = other.repetition < newest
            if waiting[other].is_complete(later) or (later and waiting[other].is_left(count)):
                made.add(other)
                yield from builder.build(other, waiting.pop(other).readouts)
    if late:
        warn(f"{late} readouts came after the image that they belong to: a further one was made of them")
    for key in sorted(waiting):
        yield from builder.build(key, waiting.pop(key).readouts)
    builder.finish()


class _Waiting:
    """Readouts of a volume that is not complete.

    Parameters
    ----------
    encoding
        The header's.
    """

    def __init__(self, encoding: Any) -> None:
        self.readouts: list[Any] = []
        self._places: dict[tuple[int, int], set[tuple[int, int]]] = {}  # [average, phase]: (row, partition)
        self._count = 0  # of different places
        self._newest = 0  # number of the newest readout in the scan
        self._is_last = False
        limits = encoding.encodingLimits
        self._limits = (limits.kspace_encoding_step_1, limits.kspace_encoding_step_2)
        self._lines = tuple(counter_values(encoding, f"kspace_encoding_step_{step}") for step in (1, 2))
        self._can_end = None not in (limits.kspace_encoding_step_1, limits.average)  # by a flag
        self._images = counter_values(encoding, "average") * counter_values(encoding, "phase")
        self._factors = acceleration_factors(encoding)

    def add(self, readout: Any, number: int) -> None:
        """Keep a readout, with its number in the scan."""
        self._newest = number
        idx = readout.idx
        places = self._places.setdefault((idx.average, idx.phase), set())
        before = len(places)
        places.add((idx.kspace_encode_step_1, idx.kspace_encode_step_2))
        self._count += len(places) - before
        self._is_last = bool(readout.flags & LAST_MASK)
        self.readouts.append(readout)

    def is_complete(self, later_has_begun: bool) -> bool:
        """Tell whether nothing more has to be waited for."""
        if not later_has_begun and not (self._can_end and self._is_last):
            return False
        if self._count >= self._images * math.prod(self._lines):
            return True
        return len(self._places) >= self._images and all(map(self._is_covered, self._places.values()))

    def is_left(self, count: int) -> bool:
        """Tell whether so many readouts have come since the newest one that no further ones are to be expected."""
        return count - self._newest > 2 * max(len(self.readouts), self._images * math.prod(self._lines))

    def _is_covered(self, places: set[tuple[int, int]]) -> bool:
        least = math.prod(count // factor for count, factor in zip(self._lines, self._factors, strict=True))
        if self._lines[1] > 1:
            return len(places) >= CORNERS * least
        limit, factor = self._limits[0], self._factors[0]
        rows = sorted({row for row, _ in places})
        if limit is not None:
            rows = [limit.minimum - 1, *rows, limit.maximum + 1]
        return all(after - before <= factor for before, after in pairwise(rows))


def _checked(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None],
    calibration: Callable[[Any], None] | None,
) -> Iterator[ismrmrd.Acquisition]:
    """Yield the imaging readouts of a scan; those for calibration only are passed to `calibration`."""
    channels = None
    directions: dict[int, NDArray[Any] | None] = {}  # of the readouts of an encoding space, by their trajectory
    told = False
    imaging = broken = 0
    for item in items:
        if isinstance(item, ismrmrd.Image):
            raise TypeError("got an image; a Cartesian reconstruction needs raw data (readouts)")
        if not isinstance(item, ismrmrd.Acquisition):
            continue
        if not is_imaging(item, metadata):
            if not is_calibration_only(item):
                continue
            if calibration is None:
                told = told or _tell_unknown_calibration(item, metadata, warn)
            elif np.isfinite(item.data).all():
                calibration(item)
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
        yield item
    if broken:
        text = f"{broken} of {imaging} imaging readouts hold samples that are not finite"
        if broken == imaging:
            raise ValueError(text)
        warn(f"{text}: they are left out")


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


# ------------------------------------------------------------------------------------------------ one k-space volume
class _Builder:
    """Places the readouts of each volume in its matrix, and says what had no place.

    Parameters
    ----------
    metadata
        The MRD header.
    warn
        Called with a text for the client.
    """

    def __init__(self, metadata: Any, warn: Callable[[str], None]) -> None:
        self._metadata, self._warn = metadata, warn
        self._outside = 0
        self._nowhere: OutsideMatrixError | None = None
        self._found_a_place = False

    def build(self, key: Key, readouts: list[Any]) -> Iterator[KSpaceVolume]:
        """Yield the volume of some readouts, unless none of them has a place in the matrix."""
        try:
            volume, outside = place(key, readouts, self._metadata)
        except OutsideMatrixError as error:  # no image is better than a black one
            self._nowhere = self._nowhere or error
            return
        self._outside += outside
        self._found_a_place = True
        yield volume

    def finish(self) -> None:
        """Say what had no place.

        Raises
        ------
        OutsideMatrixError
            Nothing had one.
        """
        if self._nowhere and not self._found_a_place:
            raise self._nowhere
        if self._nowhere:
            self._warn(f"an image is not made: {self._nowhere}")
        if self._outside:
            text = "readouts lie wholly or partly outside the matrix; what lies outside is left out"
            self._warn(f"{self._outside} {text}")


def place(key: Key, readouts: list[Any], metadata: Any) -> tuple[KSpaceVolume, int]:
    """Place readouts in the matrix of their encoding.

    Parameters
    ----------
    key
        Their counters.
    readouts
        One at least.
    metadata
        The MRD header.

    Returns
    -------
    volume
        All of them.
    outside
        How many did not fit into the matrix, wholly or partly.

    Raises
    ------
    OutsideMatrixError
        When none did.
    ValueError
        When the sizes are beyond limits.
    """
    encoding = encoding_of(metadata, key.encoding_space_ref)
    columns, rows, partitions = axes_of(encoding, readouts[0])
    counters = sorted({readout.idx.phase for readout in readouts})
    phases = {counter: position for position, counter in enumerate(counters)}

    shape = (readouts[0].active_channels, partitions.points, rows.points, columns.points, len(phases))
    largest = shape[0] * shape[-1] * math.prod(max(axis) for axis in (partitions, rows, columns))
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
        phase = phases[readout.idx.phase]
        outside += not add_readout(readout, kspace[..., phase], count[..., phase], partition, row)
        distance = abs(row - rows.points // 2) + abs(partition - partitions.points // 2)
        if phase not in nearest or distance < nearest[phase][0]:
            nearest[phase] = (distance, readout)
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
    present = np.flatnonzero(count.any(axis=(0, 1, 3)))
    return KSpaceVolume(
        key=key,
        kspace=kspace,
        sampled=count.max(axis=2),
        samples=(int(present[0]), int(present[-1]) + 1),
        heads=tuple(nearest[phase][1].getHead() for phase in range(len(phases))),
        encoding=encoding,
        columns=columns,
        rows=rows,
        partitions=partitions,
        mirrored=is_mirrored(metadata),
    ), outside


def add_readout(
    readout: Any, kspace: NDArray[np.complex64], count: NDArray[np.uint32], partition: int, row: int
) -> bool:
    """Add the samples of a readout to its line of the matrix; returns False if they do not all have a place there.

    Parameters
    ----------
    readout
        The acquisition.
    kspace
        [channel, partition, row, sample], changed in place.
    count
        Number of readouts at each place [partition, row, sample], changed in place.
    partition, row
        Its line, which may lie outside.
    """
    _, partitions, rows, points = kspace.shape
    samples, start = ordered_samples(readout, points)
    begin, end = max(start, 0), min(start + samples.shape[1], points)
    if not (0 <= row < rows and 0 <= partition < partitions and begin < end):
        return False
    kspace[:, partition, row, begin:end] += samples[:, begin - start : end - start]
    count[partition, row, begin:end] += 1
    return end - begin == samples.shape[1]


def axes_of(encoding: Any, readout: Any) -> tuple[Axis, Axis, Axis]:
    """Sizes along readout, rows and partitions of an encoding, as a readout of it says."""
    columns, rows, partitions = (encoding_axis(encoding, name) for name in "xyz")
    if partitions.points == 1:
        partitions = Axis(1, 1, 1)  # some headers write the number of slices of a 2-D encoding here
    if _oversampling_removed(readout, columns):
        columns = Axis(columns.pixels, columns.pixels, columns.pixels)
    return columns, rows, partitions


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
