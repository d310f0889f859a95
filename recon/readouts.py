"""The readouts of a whole scan, slice by slice, kept for the reconstructions that run when it is over; their scale."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import coils
import mrdhelper
from recon import nufft
from recon.conditioning import SampleError, robust_scale
from recon.fieldcorrection import Correction
from recon.fieldplan import with_fields
from recon.physio import PhysioError
from recon.spiral import SpiralScan
from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

FIRST_ROWS = 64
FIELD_ARMS = 144  # that a field is learned from, at most
SCALE_FRAMES = 50  # tell the data's scale as well as all

Prepared = TypeVar("Prepared")


class DataError(ValueError):
    """The readouts cannot be reconstructed; the text says why and what would be right."""


class Readouts:
    """Readouts of one slice, kept once.

    Attributes
    ----------
    first
        The first of them.
    slice
        Number of the slice.
    samples
        complex64 [readout, coil, sample]; zeros for those that are not usable.
    usable
        Whether each readout is a measurement, see `outliers` [readouts].
    columns, numbers
        Arm of the trajectory, and number in the scan, of all slices together, of each readout [readouts].
    heads
        Their headers.
    coordinates
        K-space of the trajectory's arms [column, sample, (kx, ky)] in cycles per image field of view, float32.
    matrix
        Pixels along each side of the images.
    correction
        Field terms, if there are several. A single one is in the samples: they are demodulated as they come.
    """

    def __init__(
        self, first: SpiralReadout, coordinates: NDArray[np.float32], matrix: int, correction: Correction | None = None
    ) -> None:
        self.first = first
        self._rows = np.empty((FIRST_ROWS, *first.samples.shape), np.complex64)
        self.slice = int(first.head.idx.slice)
        self.usable: list[bool] = []
        self.columns: list[int] = []
        self.numbers: list[int] = []
        self.heads: list[ismrmrd.AcquisitionHeader] = []
        self.coordinates = coordinates
        self.matrix = matrix
        self.correct(correction)

    def correct(self, correction: Correction | None) -> None:
        """Correct the fields of all readouts, those to come too; only once, and not where a single term was there."""
        single = correction is not None and len(correction) == 1
        self._demodulation = correction.demodulation if correction is not None and single else None
        self.correction = None if single else correction
        if self._demodulation is not None:
            for row, column in zip(self.samples, self.columns, strict=True):
                row *= self._factors(column)

    def _factors(self, column: int) -> NDArray[np.complex64]:
        """Factors [sample] that demodulate an arm."""
        assert self._demodulation is not None
        return self._demodulation[column if len(self._demodulation) > 1 else 0]

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def samples(self) -> NDArray[np.complex64]:
        """All samples (a view: changing them changes the readouts)."""
        return self._rows[: len(self)]

    def append(self, readout: SpiralReadout) -> None:
        """Keep a readout.

        Raises
        ------
        DataError
            It has other coils or another orientation than the first.
        """
        first = self.first
        check_coils(readout, first)
        if readout.orientation != first.orientation:
            raise DataError(
                f"readout {readout.head.scan_counter} has another orientation than the first of slice {self.slice}: "
                "within a slice it must stay"
            )
        if len(self) == len(self._rows):  # in place where the system can remap memory: no second copy
            self._rows.resize((len(self) + max(FIRST_ROWS, len(self) // 8), *first.samples.shape), refcheck=False)
        self._rows[len(self)] = readout.samples
        if self._demodulation is not None:
            self._rows[len(self)] *= self._factors(readout.column)
        self.usable.append(readout.usable)
        self.columns.append(readout.column)
        self.numbers.append(readout.number)
        self.heads.append(readout.head)


def check_coils(readout: SpiralReadout, first: SpiralReadout) -> None:
    """Raise a DataError when a readout has other coils than the first of its slice."""
    if readout.samples.shape != first.samples.shape:
        raise DataError(
            f"readout {readout.head.scan_counter} has {readout.samples.shape[0]} coils, "
            f"the first has {first.samples.shape[0]}: they must be the same throughout"
        )


def receive(scan: SpiralScan, items: Iterable[Any], fov_oversampling: float, most: int | None = None) -> list[Readouts]:
    """Take a whole scan in, and keep the first `most` imaging readouts of each slice.

    Returns
    -------
    The slices, in the order of their numbers.

    Raises
    ------
    DataError
        There is no readout, or those of a slice do not belong together.
    """
    slices: dict[int, Readouts] = {}
    places: dict[int, tuple[float, ...]] = {}
    moved = 0
    coordinates: dict[tuple[float, ...], NDArray[np.float32]] = {}  # which slices of one orientation share
    for readout in scan.readouts(items):
        number, orientation = readout.head.idx.slice, readout.orientation
        if number not in slices:
            if orientation not in coordinates:
                k = scan.trajectory_of(readout).cycles_per_fov(fov_oversampling)
                coordinates[orientation] = k.astype(np.float32)
            first = scan.correction(readout) if not scan.learns_field else None
            slices[number] = Readouts(readout, coordinates[orientation], scan.matrix, first)
            places[number] = scan.place_of(readout)
        moved += places[number] != scan.place_of(readout)
        if most is None or len(slices[number]) < most:
            slices[number].append(readout)
    if not slices:
        raise DataError("no imaging readout was received")
    if moved:
        scan.warn(
            f"{moved} readouts have another position than the first of their slice: fields are corrected for that"
        )
    if scan.learns_field:
        for one in slices.values():
            learn_field(scan, one)
    return [slices[number] for number in sorted(slices)]


def learn_field(scan: SpiralScan, readouts: Readouts) -> None:
    """Learn the field of a slice from arms in the middle of its readouts, and correct it."""
    usable = np.flatnonzero(readouts.usable)
    start = max(len(usable) - FIELD_ARMS, 0) // 2
    columns, at = np.unique(np.array(readouts.columns)[usable[start : start + FIELD_ARMS]], return_index=True)
    first = readouts.first
    if len(columns):
        samples = np.moveaxis(readouts.samples[usable[start : start + FIELD_ARMS][at]], 1, 0)
        scan.learn_field(first, columns, samples)
    readouts.correct(scan.correction(first))


def prepare_each(
    prepare: Callable[[Readouts], Prepared], slices: Sequence[Readouts], warn: Callable[[str], None]
) -> list[Prepared]:
    """Prepare the slices; one that cannot be reconstructed is left out, with a warning, if there are others.

    Raises
    ------
    DataError, conditioning.SampleError, physio.PhysioError
        What is wrong with the first slice, if something is with all of them.
    """
    prepared: list[Prepared] = []
    refused: list[tuple[int, ValueError]] = []
    for readouts in slices:
        try:
            if not any(readouts.usable):
                raise DataError(f"none of the {len(readouts)} imaging readouts can be used")
            prepared.append(prepare(readouts))
        except (DataError, SampleError, PhysioError) as error:
            logger.warning("Slice %d cannot be reconstructed: %s", readouts.slice, error)
            refused.append((readouts.slice, error))
    if not prepared:
        raise refused[0][1]
    if refused:
        number, reason = refused[0]
        others = f"; {len(refused) - 1} more, which the log lists" if len(refused) > 1 else ""
        warn(f"slice {number} is left out: {reason}{others}")
    return prepared


def frame_head(
    middle: ismrmrd.AcquisitionHeader,
    first: ismrmrd.AcquisitionHeader,
    origin: ismrmrd.AcquisitionHeader,
    count: int,
    tr: float | None,
) -> ismrmrd.AcquisitionHeader:
    """Header that stands for a frame: that of its middle readout, with the time at which the frame begins.

    Time stamps of single readouts are good to a tick; counted from the slice's first by TR, frames are evenly spaced,
    and stay so where readouts were lost, or belong to other slices.

    Parameters
    ----------
    middle, first
        Headers of the frame's middle and first readouts.
    origin
        Header of the slice's first readout.
    count
        Readouts of the scan from `origin` to `first`.
    tr
        Repetition time [s]; None: the time stamp of `first` counts.
    """
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(middle)
    head.acquisition_time_stamp = first.acquisition_time_stamp
    if tr:
        head.acquisition_time_stamp = round(origin.acquisition_time_stamp + count * tr / mrdhelper.SECONDS_PER_TICK)
    return head


def data_scale(readouts: Readouts, maps: NDArray[Any], arms_per_frame: int, frames: Sequence[int]) -> float:
    """Scale of the data, as BART estimates it: what `pics -w` divides by, from coil-combined adjoint images.

    Parameters
    ----------
    readouts
        Where frame n consists of those from n * arms_per_frame on.
    maps
        [coil, row, column].
    arms_per_frame
        Readouts of a frame.
    frames
        Which frames to look at: if there are any, only those whose readouts are all usable; of many, `SCALE_FRAMES`
        evenly spread ones.

    Raises
    ------
    conditioning.SampleError
        The data are zero, or not finite.
    """
    numbers = np.add.outer(arms_per_frame * np.array(frames), np.arange(arms_per_frame))
    complete = np.array(readouts.usable)[numbers].all(axis=1)
    numbers = numbers[complete] if complete.any() else numbers
    numbers = numbers[:: -(-len(numbers) // SCALE_FRAMES)]
    used, arms = np.unique(np.array(readouts.columns)[numbers], return_inverse=True)
    plan = with_fields(nufft.ArmPlan(readouts.coordinates[used], maps.shape[1:]), readouts.correction, used)
    grid = plan.zeros(len(maps))
    magnitudes = np.empty((len(numbers), *maps.shape[1:]), np.float32)
    for number, arm, magnitude in zip(numbers, arms.reshape(numbers.shape), magnitudes, strict=True):
        grid.fill(0)
        for n, a in zip(number, arm, strict=True):
            plan.add_arm(grid, a, readouts.samples[n])
        magnitude[:] = np.abs(coils.combine(plan.image(grid), maps))
    magnitudes /= np.sqrt(maps[0].size)  # BART's transform is a unitary one
    scale = robust_scale(magnitudes)
    logger.info("Data scale %g, from %d frames", scale, len(numbers))
    return scale
