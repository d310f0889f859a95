"""Cartesian readouts to k-space volumes, each when its data are complete.

Readouts are placed by their counters and the header's encoding limits, never by their order of arrival.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.kspacevolume import (
    Key,
    KSpaceVolume,
    OutsideMatrixError,
    centre_of_partial_fourier,
    check_size,
    place,
)
from recon.mrdencoding import (
    SAME_CONTRAST,
    acceleration_factors,
    calibration_mode,
    counter_limit,
    counter_values,
    encoding_of,
    is_calibration,
    is_calibration_only,
    is_imaging,
)

logger = logging.getLogger(__name__)

PARALLEL = 0.99  # cosine of the angle between readouts, which is 0 or 180 degrees but for what rounding does
CORNERS = 0.7  # part of the lines of a 3-D encoding that are acquired at least when its corners are left out
CALIBRATION_ROWS = 8  # neighbouring ones at least, before a scan of unknown calibration counts as calibrated
NO_OWN_CALIBRATION = ("separate", "external", "interleaved")  # modes in which an image has no calibration lines itself
LAST = (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)
LAST_MASK = sum(1 << (flag - 1) for flag in LAST)
LAST_OF_SLAB_MASK = sum(1 << (flag - 1) for flag in LAST[1:])  # of a slab, each partition or shot may end a "slice"


# ------------------------------------------------------------------------------------------------- sorting readouts
def sort_volumes(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None] = logger.warning,
    calibration: Callable[[Any], None] | None = None,
) -> Iterator[KSpaceVolume]:
    """Sort the imaging readouts of a scan into volumes, and yield each when its data are complete.

    A volume is complete when a readout is flagged as the last of its slice, or a later repetition of the slice has
    begun, and it has the lines that the encoding limits promise: all, or, in an accelerated scan, so many that they are
    no farther apart than the header's acceleration factor says, and calibration lines, unless there are others or an
    earlier repetition had none. One that stays incomplete comes when no readout has been added to it for twice as many
    as a volume has, or at the end of the scan. So the memory does not grow with the number of repetitions.

    Parameters
    ----------
    items
        Readouts; waveforms, texts and None among them are ignored.
    metadata
        The MRD header. A centre that partial Fourier proves wrong is corrected in it.
    warn
        Called with a text about readouts that have no place or no use.
    calibration
        Called with each calibration line, unless the header's calibration mode makes it one of the image's; lines of
        both purposes belong to the image, too. None: lines for calibration only have no use, and the client is told
        where they may be some of the image.

    Raises
    ------
    TypeError
        When an image is among the items.
    ValueError
        When the header is missing, its trajectory is not Cartesian or its sizes are beyond limits, the trajectory in
        the readouts is none of straight lines, the number of channels changes, or no readout has a place in the matrix.
    """
    builder = _Builder(metadata, warn, calibration)
    waiting: dict[Key, _Waiting] = {}
    newest: dict[tuple[int, int], int] = {}  # repetition of each slice of an encoding space
    made: dict[Key, set[int]] = {}  # cardiac phases of which there is an image
    calibrated: set[tuple[int, ...]] = set()  # slices that calibration lines came for, series that have none
    late = 0

    def calibrate(readout: ismrmrd.Acquisition) -> None:
        calibrated.add((readout.idx.slice,))
        if calibration is not None:
            calibration(readout)

    keep = None if calibration is None else calibrate
    for count, item in enumerate(_checked(items, metadata, warn, keep)):
        idx = item.idx
        key = Key(idx.repetition, item.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        late += idx.phase in made.get(key, ())
        if key not in waiting:
            encoding = encoding_of(metadata, key.encoding_space_ref)
            mode = calibration_mode(metadata, key.encoding_space_ref)
            waiting[key] = _Waiting(encoding, may_have_calibration=mode not in NO_OWN_CALIBRATION)
        waiting[key].add(item, count)
        series = (item.encoding_space_ref, idx.slice)
        begun = idx.repetition > newest.get(series, 0)
        newest[series] = max(idx.repetition, newest.get(series, 0))
        for other in sorted(each for each in waiting if each[1:3] == series) if begun else [key]:
            later = other.repetition < newest[series]
            known = not calibrated.isdisjoint({(other.slice,), other[1:]})
            if waiting[other].is_complete(later, known) or (later and waiting[other].is_left(count)):
                made.setdefault(other, set()).update(waiting[other].phases)
                if not waiting[other].has_calibration():
                    calibrated.add(other[1:])
                yield from builder.build(other, waiting.pop(other).readouts)
    if late:
        warn(
            f"{late} readouts came after the image that they belong to: half a matrix or more makes a further image, "
            "fewer are left out"
        )
    for key in sorted(waiting):
        left = waiting.pop(key)
        if not (left.is_remainder and left.phases <= made.get(key, set())):
            yield from builder.build(key, left.readouts)
    builder.finish()


class _Waiting:
    """Readouts of a volume that is not complete.

    Parameters
    ----------
    encoding
        The header's.
    may_have_calibration
        Calibration lines of an accelerated scan may be among its lines.
    """

    def __init__(self, encoding: Any, may_have_calibration: bool) -> None:
        self.readouts: list[Any] = []
        self._places: dict[tuple[int, int], set[tuple[int, int]]] = {}  # [average, phase]: (row, partition)
        self._count = 0  # of different places
        self._newest = 0  # number of the newest readout in the scan
        self._is_last = False
        self._limits = tuple(counter_limit(encoding, f"kspace_encoding_step_{step}") for step in (1, 2))
        self._lines = tuple(counter_values(encoding, f"kspace_encoding_step_{step}") for step in (1, 2))
        known = (counter_limit(encoding, name) for name in ("kspace_encoding_step_1", "average"))
        self._can_end = None not in known  # by a flag
        self._knows_phases = counter_limit(encoding, "phase") is not None
        self._images = counter_values(encoding, "average") * counter_values(encoding, "phase")
        self._factors = acceleration_factors(encoding)
        self._wants_calibration = may_have_calibration and max(self._factors) > 1

    def add(self, readout: Any, number: int) -> None:
        """Keep a readout, with its number in the scan."""
        self._newest = number
        idx = readout.idx
        places = self._places.setdefault((idx.average, idx.phase), set())
        before = len(places)
        places.add((idx.kspace_encode_step_1, idx.kspace_encode_step_2))
        self._count += len(places) - before
        self._is_last = bool(readout.flags & (LAST_MASK if self._lines[1] == 1 else LAST_OF_SLAB_MASK))
        self.readouts.append(readout)

    def is_complete(self, later_has_begun: bool, calibrated: bool) -> bool:
        """Tell whether nothing more has to be waited for."""
        ends_by_flag = self._can_end and self._is_last and (self._knows_phases or len(self._places) <= self._images)
        if not later_has_begun and not ends_by_flag:
            return False
        if later_has_begun and all(map(is_calibration_only, self.readouts)):
            return True
        if self._count >= self._images * math.prod(self._lines):
            return True
        if len(self._places) < self._images or not all(map(self._is_covered, self._places.values())):
            return False
        return later_has_begun or calibrated or not self._wants_calibration or self.has_calibration()

    @property
    def phases(self) -> set[int]:
        """Cardiac phases."""
        return {phase for _, phase in self._places}

    @property
    def is_remainder(self) -> bool:
        """Whether these are less than half of the lines that the encoding limits promise."""
        return 2 * self._count < self._images * math.prod(self._lines) / math.prod(self._factors)

    def has_calibration(self) -> bool:
        """Tell whether some image has neighbouring lines, as they are round the centre."""
        return any(
            all((row + step, partition) in places for step in range(CALIBRATION_ROWS))
            for places in self._places.values()
            for row, partition in places
        )

    def is_left(self, count: int) -> bool:
        """Tell whether so many readouts have come since the newest one that no further ones are to be expected."""
        return count - self._newest > 2 * max(len(self.readouts), self._images * math.prod(self._lines))

    def _is_covered(self, places: set[tuple[int, int]]) -> bool:
        least = math.prod(count // factor for count, factor in zip(self._lines, self._factors, strict=True))
        if self._lines[1] > 1 and len(places) < CORNERS * least:
            return False
        return all(
            after - before <= factor
            for counters, limit, factor in zip(zip(*places, strict=True), self._limits, self._factors, strict=True)
            for before, after in pairwise(
                sorted({*counters, *(() if limit is None else (limit.minimum - 1, limit.maximum + 1))})
            )
        )


def _checked(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None],
    calibration: Callable[[Any], None] | None,
) -> Iterator[ismrmrd.Acquisition]:
    """Yield the imaging readouts of a scan; calibration lines are passed to `calibration`, see `sort_volumes`."""
    channels: dict[tuple[int, ...], int] = {}  # of the readouts of one image
    directions: dict[tuple[int, ...], NDArray[Any] | None] = {}  # the same, by their trajectory
    told = False
    imaging = broken = broken_lines = 0
    for item in items:
        if isinstance(item, ismrmrd.Image):
            raise TypeError("got an image; a Cartesian reconstruction needs raw data (readouts)")
        if not isinstance(item, ismrmrd.Acquisition):
            continue
        if is_calibration(item) and calibration_mode(metadata, item.encoding_space_ref) not in SAME_CONTRAST:
            if calibration is None:
                told = told or (is_calibration_only(item) and _tell_unknown_calibration(item, metadata, warn))
            elif np.isfinite(item.data).all():
                calibration(item)
            else:
                broken_lines += 1
        if not is_imaging(item, metadata):
            continue
        series = (item.encoding_space_ref, item.idx.slice, item.idx.contrast, item.idx.set)
        if series not in directions:  # at the first readout: a whole scan is long to wait for an error
            check_size(encoding_of(metadata, item.encoding_space_ref), item)
        directions[series] = check_trajectory(item, directions.get(series))
        imaging += 1
        if not np.isfinite(item.data).all():  # one would make the whole image black
            broken += 1
            if broken == 1:
                warn(f"readout {item.scan_counter} is left out: its samples are not finite; so is any further such one")
            continue
        if item.active_channels != channels.setdefault(series, item.active_channels):
            raise ValueError(
                f"readout with scan_counter {item.scan_counter} has {item.active_channels} channels; "
                f"those before it have {channels[series]}"
            )
        yield item
    if broken_lines:
        warn(f"{broken_lines} calibration lines hold samples that are not finite: they are left out")
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


class _Builder:
    """Places the readouts of each volume in its matrix, and says what had no place.

    Parameters
    ----------
    metadata
        The MRD header.
    warn
        Called with a text for the client.
    calibration
        Called with the readouts of a volume that has calibration lines only.
    """

    def __init__(
        self, metadata: Any, warn: Callable[[str], None], calibration: Callable[[Any], None] | None = None
    ) -> None:
        self._metadata, self._warn, self._calibration = metadata, warn, calibration
        self._outside = 0
        self._nowhere: OutsideMatrixError | None = None
        self._found_a_place = self._told = False

    def build(self, key: Key, readouts: list[Any]) -> Iterator[KSpaceVolume]:
        """Yield the volume of some readouts, unless they are calibration lines, or none has a place in the matrix."""
        if self._calibration is not None and all(map(is_calibration_only, readouts)):
            for readout in readouts:
                self._calibration(readout)
            return
        try:
            volume, outside = place(key, readouts, self._metadata)
            if (centre := centre_of_partial_fourier(volume)) is not None:
                limit = counter_limit(volume.encoding, "kspace_encoding_step_1")
                self._warn(
                    f"encodingLimits.kspace_encoding_step_1.center is {limit.center}, but the k-space centre is at "
                    f"{centre}, by the lines that partial Fourier leaves out: {centre} is taken"
                )
                limit.center = centre
                volume, outside = place(key, readouts, self._metadata)
        except OutsideMatrixError as error:  # no image is better than a black one
            self._nowhere = self._nowhere or error
            return
        self._outside += outside
        self._found_a_place = True
        planes = volume.encoding.encodedSpace.matrixSize.z
        if planes > volume.partitions.points and not self._told:
            self._told = True
            self._warn(
                f"encodedSpace.matrixSize.z is {planes}, but kspace_encode_step_2 has one value: this is taken as a "
                "2-D scan, for which 1 is right"
            )
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
