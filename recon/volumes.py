"""Cartesian readouts to k-space volumes, each when its data are complete.

Readouts are placed by their counters and the header's encoding limits, never by their order of arrival.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.kspacevolume import KSpaceVolume, OutsideMatrixError, place
from recon.mrdencoding import (
    SAME_CONTRAST,
    calibration_mode,
    encoding_of,
    is_calibration,
    is_calibration_only,
    is_imaging,
)
from recon.readoutgroups import Key, sort_groups

logger = logging.getLogger(__name__)

PARALLEL = 0.99  # cosine of the angle between readouts, which is 0 or 180 degrees but for what rounding does
NO_OWN_CALIBRATION = ("separate", "external", "interleaved")  # modes in which an image has no calibration lines itself


# ------------------------------------------------------------------------------------------------- sorting readouts
def sort_volumes(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None] = logger.warning,
    calibration: Callable[[Any], None] | None = None,
) -> Iterator[KSpaceVolume]:
    """Sort the imaging readouts of a scan into volumes, and yield each when its data are complete.

    When they are: see `readoutgroups.sort_groups`.

    Parameters
    ----------
    items
        Readouts; waveforms, texts and None among them are ignored.
    metadata
        The MRD header.
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
    builder = _Builder(metadata, warn)
    calibrated: set[int] = set()  # slices that calibration lines came for

    def calibrate(readout: ismrmrd.Acquisition) -> None:
        calibrated.add(readout.idx.slice)
        if calibration is not None:
            calibration(readout)

    readouts = _checked(items, metadata, warn, None if calibration is None else calibrate)
    for group in sort_groups(
        readouts,
        encoding_of=lambda number: encoding_of(metadata, number),
        warn=warn,
        may_have_calibration=lambda key: calibration_mode(metadata, key.encoding_space_ref) not in NO_OWN_CALIBRATION,
        calibrated=lambda key: key.slice in calibrated,
    ):
        yield from builder.build(group.key, group.readouts)
    builder.finish()


def _checked(
    items: Iterable[Any],
    metadata: Any,
    warn: Callable[[str], None],
    calibration: Callable[[Any], None] | None,
) -> Iterator[ismrmrd.Acquisition]:
    """Yield the imaging readouts of a scan; calibration lines are passed to `calibration`, see `sort_volumes`."""
    channels = None
    directions: dict[int, NDArray[Any] | None] = {}  # of the readouts of an encoding space, by their trajectory
    told = False
    imaging = broken = 0
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
        if not is_imaging(item, metadata):
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
        self._found_a_place = self._told = False

    def build(self, key: Key, readouts: list[Any]) -> Iterator[KSpaceVolume]:
        """Yield the volume of some readouts, unless none of them has a place in the matrix."""
        try:
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
