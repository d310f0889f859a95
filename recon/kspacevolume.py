"""The k-space of one slice or slab: the place of each readout in its matrix."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.fourier import Axis
from recon.mrdencoding import counter_limit, encoding_axis, encoding_of, first_index, is_mirrored
from recon.readoutgroups import Key

MAX_POINTS = 2**28  # complex numbers in one k-space (2 GiB, and as much again in each step to the image)


class OutsideMatrixError(ValueError):
    """None of the readouts of a volume has a place in the matrix; the text says where they lie."""


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
        entry for each phase counter that occurs in the matrix.
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
    columns, rows, partitions = axes_of(encoding, readouts)
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
    placed = [number for number in range(len(phases)) if count[..., number].any()]
    if len(placed) < len(phases):
        kspace, count = kspace[..., placed], count[..., placed]
    if count.max() > 1:
        kspace /= np.maximum(count, 1)
    present = np.flatnonzero(count.any(axis=(0, 1, 3)))
    return KSpaceVolume(
        key=key,
        kspace=kspace,
        sampled=count.max(axis=2),
        samples=(int(present[0]), int(present[-1]) + 1),
        heads=tuple(nearest[phase][1].getHead() for phase in placed),
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


def axes_of(encoding: Any, readouts: list[Any]) -> tuple[Axis, Axis, Axis]:
    """Sizes along readout, rows and partitions of an encoding, as its readouts, one at least, say."""
    columns, rows = (encoding_axis(encoding, name) for name in "xy")
    if _oversampling_removed(readouts[0], columns):
        columns = Axis(columns.pixels, columns.pixels, columns.pixels)
    return columns, rows, partition_axis(encoding, readouts)


def partition_axis(encoding: Any, readouts: Iterable[Any]) -> Axis:
    """Sizes along partitions of an encoding; all 1 in a 2-D one.

    Some headers write the number of slices of a 2-D encoding where that of the partitions belongs. It is 2-D when the
    partition counter has one value, by the header and in the readouts.
    """
    limit = counter_limit(encoding, "kspace_encoding_step_2")
    only = 0 if limit is None else limit.minimum
    one_by_header = limit is None or limit.maximum <= limit.minimum
    if one_by_header and all(readout.idx.kspace_encode_step_2 == only for readout in readouts):
        return Axis(1, 1, 1)
    return encoding_axis(encoding, "z")


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
