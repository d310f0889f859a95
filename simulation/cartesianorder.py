"""Order in which a Cartesian scan acquires its lines: trains of lines with their counters and flags."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import ismrmrd

from simulation.cartesianscan import Scan

# Converters of Siemens data flag navigators of EPI so.
NAVIGATOR_FLAGS = (ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_RTFEEDBACK_DATA)


@dataclass
class Line:
    """One readout.

    Attributes
    ----------
    row, partition
        Place in k-space, from 0.
    slice, repetition, average
        Counters of the readout.
    shot
        Number of the train among those of an image.
    reversed
        Acquired from right to left.
    calibration
        Of the separate calibration.
    flags
        Names of the ISMRMRD library.
    """

    row: int
    partition: int = 0
    slice: int = 0
    repetition: int = 0
    average: int = 0
    shot: int = 0
    reversed: bool = False
    calibration: bool = False
    flags: list[int] = field(default_factory=list)


Train = list[Line]


def trains(scan: Scan) -> Iterator[Train]:
    """Yield the lines of a scan in the order of time, one train each after its excitation."""
    if has_calibration(scan) and scan.calibration == "separate":
        for number in range(scan.slices):
            yield from _calibration_trains(scan, number)
    for repetition in range(scan.shots):
        for number in range(scan.slices):
            block = [
                train
                for average in range(scan.averages)
                for partition in scan.acquired_partitions
                for train in _partition_trains(scan, repetition, number, average, partition)
            ]
            _flag_block(scan, block, number, repetition)
            yield from block


def has_calibration(scan: Scan) -> bool:
    """True for a scan with calibration lines."""
    return scan.calibration_width > 0 and scan.acceleration * scan.acceleration_2 > 1


def central(count: int, width: int, acquired: range) -> range:
    """Range of the `width` lines round the centre of `count`, as far as they are acquired."""
    first = count // 2 - width // 2
    return range(max(first, acquired.start), max(min(first + width, acquired.stop), acquired.start))


def calibration_rows(scan: Scan) -> range:
    """Rows of the calibration lines; none in a scan that has none."""
    return central(scan.rows, scan.calibration_width if has_calibration(scan) else 0, scan.acquired_rows)


def calibration_partitions(scan: Scan) -> range:
    """Partitions of the calibration lines; none in a scan that has none."""
    width = max(scan.calibration_width, 1) if has_calibration(scan) else 0
    return central(scan.partitions, width, scan.acquired_partitions)


def regular_rows(scan: Scan, repetition: int, partition: int) -> list[int]:
    """Rows of the accelerated pattern in a partition.

    With a CAIPIRINHA shift, partitions are `shift` further from one acquired row to the next (Breuer et al., Magn Reson
    Med 55 (2006)).
    """
    offset = repetition if scan.calibration == "interleaved" else scan.rows // 2
    return [
        row
        for row in scan.acquired_rows
        if (row - offset) % scan.acceleration == 0
        and (partition - scan.partitions // 2 - scan.shift * ((row - offset) // scan.acceleration))
        % scan.acceleration_2 == 0
    ]  # fmt: skip


def _calibration_trains(scan: Scan, number: int) -> Iterator[Train]:
    for partition in calibration_partitions(scan):
        lines = [Line(row, partition, number, calibration=True) for row in calibration_rows(scan)]
        for line in lines:
            line.flags.append(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        yield from _divided(scan, lines, shots=1)


def _partition_trains(scan: Scan, repetition: int, number: int, average: int, partition: int) -> list[Train]:
    regular = regular_rows(scan, repetition, partition)
    calibration: Sequence[int] = ()
    if scan.calibration != "separate" and partition in calibration_partitions(scan):
        calibration = calibration_rows(scan)
    lines = [Line(row, partition, number, repetition, average) for row in sorted({*regular, *calibration})]
    for line in lines:
        if line.row in calibration:
            both = line.row in regular
            line.flags.append(
                ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING if both else ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
            )
    if lines:
        lines[0].flags.insert(0, ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1)
        lines[-1].flags.append(ismrmrd.ACQ_LAST_IN_ENCODE_STEP1)
    return _divided(scan, lines, scan.epi.shots if scan.epi else 1)


def _divided(scan: Scan, lines: Sequence[Line], shots: int) -> list[Train]:
    """Lines as trains: one each, or EPI trains with their navigators."""
    if scan.epi is None:
        return [[line] for line in lines]
    whole = []
    for shot in range(min(shots, len(lines))):
        imaging = lines[shot::shots]
        template = imaging[0]
        train = [
            Line(
                scan.rows // 2,
                scan.partitions // 2,
                template.slice,
                template.repetition,
                average=n // 2,
                calibration=template.calibration,
                flags=list(NAVIGATOR_FLAGS),
            )
            for n in range(scan.epi.navigators)
        ] + list(imaging)
        for n, line in enumerate(train):
            line.shot = shot
            line.reversed = (n % 2 == 1) != scan.epi.first_reversed
            if line.reversed:
                line.flags.append(ismrmrd.ACQ_IS_REVERSE)
        whole.append(train)
    return whole


def is_navigator(line: Line) -> bool:
    """True for a line without phase encoding for the correction of the phase."""
    return ismrmrd.ACQ_IS_PHASECORR_DATA in line.flags


def _flag_block(scan: Scan, block: Sequence[Train], number: int, repetition: int) -> None:
    """Flag the first and the last line of the lines of a slice in one repetition."""
    lines = [line for train in block for line in train if not is_navigator(line)]
    first, last = lines[0].flags, lines[-1].flags
    first.append(ismrmrd.ACQ_FIRST_IN_SLICE)
    last.append(ismrmrd.ACQ_LAST_IN_SLICE)
    if scan.epi is not None and scan.epi.navigators:
        block[0][0].flags.append(ismrmrd.ACQ_FIRST_IN_SLICE)
    if scan.partitions > 1:
        first.append(ismrmrd.ACQ_FIRST_IN_ENCODE_STEP2)
        last.append(ismrmrd.ACQ_LAST_IN_ENCODE_STEP2)
    if number == 0:
        first.append(ismrmrd.ACQ_FIRST_IN_REPETITION)
    if number == scan.slices - 1:
        last.append(ismrmrd.ACQ_LAST_IN_REPETITION)
        if repetition == scan.shots - 1:
            last.append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
