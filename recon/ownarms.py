"""Arms of a scan whose readouts carry their trajectory themselves: known only as they arrive.

The first readouts tell the unit of their trajectories and the density compensation. An arm that comes later for the
first time has the weights that the arms before have at the same sample on average: arms of a scan are turned copies of
one another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import density, readouttrajectory
from recon.mrdencoding import extent
from recon.readouttrajectory import ReadoutTrajectoryError
from recon.sequenceextent import designed_field_of_view
from recon.trajectory import Trajectory, TrajectoryError

SOURCE = Path("trajectory of the readouts")


class OwnArms:
    """Trajectory of the first readouts of a scan, and the arms of all.

    Parameters
    ----------
    first
        Its first imaging readouts.
    header
        The MRD header.
    tell
        Called with a text for the client about the unit that was taken.

    Attributes
    ----------
    trajectory
        Of the different arms of the first readouts, without samples that their headers discard.

    Raises
    ------
    TrajectoryError
        A readout carries no trajectory that can be used, or the header has no matrix or field of view.
    """

    def __init__(self, first: Sequence[ismrmrd.Acquisition], header: Any, tell: Callable[[str], None]) -> None:
        self._numbers: dict[bytes, int] = {}
        different = [readout for readout in first if self._is_new(readout)]
        encoding = header.encoding[different[0].encoding_space_ref]
        try:
            raw = readouttrajectory.raw_trajectory(different)
            unit = readouttrajectory.find_unit(raw, encoding)
        except ReadoutTrajectoryError as error:
            raise TrajectoryError(str(error)) from error
        tell(unit.description)
        self._factors = unit.factors
        k = raw * unit.factors
        fov, resolution = _geometry(encoding, header)
        designed = designed_field_of_view(k, encoding)
        self.trajectory = Trajectory(
            file=SOURCE,
            k=k,
            weights=density.weights_of_arms(k, (designed, designed)),
            dwell=1e-6 * different[0].sample_time_us,
            pre_discard=0,
            fov=fov,
            resolution=resolution,
            interleaves=len(k),
        )

    def place(self, readout: ismrmrd.Acquisition) -> tuple[int, NDArray[np.float64] | None]:
        """Arm of a readout; and its k-space [sample, (kx, ky)] [1/m] if it is none of those of `trajectory`.

        Raises
        ------
        TrajectoryError
            It carries no trajectory, or one of another length than the first.
        """
        self._is_new(readout)
        arm = self._numbers[_key(readout)]
        if arm < self.trajectory.arms:
            return arm, None
        try:
            (k,) = readouttrajectory.raw_trajectory([readout]) * self._factors
        except ReadoutTrajectoryError as error:
            raise TrajectoryError(str(error)) from error
        if k.shape != self.trajectory.k.shape[1:]:
            raise TrajectoryError(
                f"readout {readout.scan_counter} has {len(k)} samples of trajectory, expected "
                f"{self.trajectory.k.shape[1]} as in the readouts before"
            )
        return arm, k

    def one(self, k: NDArray[np.float64]) -> Trajectory:
        """Trajectory of one arm [sample, (kx, ky)] [1/m] that came after the first readouts."""
        return dataclasses.replace(self.trajectory, k=k[np.newaxis], weights=self.trajectory.weights.mean(axis=0))

    def _is_new(self, readout: ismrmrd.Acquisition) -> bool:
        """Number the arm of a readout; True if it came for the first time."""
        count = len(self._numbers)
        return self._numbers.setdefault(_key(readout), count) == count


def _key(readout: ismrmrd.Acquisition) -> bytes:
    """Hash by which arms are told apart: memory does not grow with their samples."""
    return hashlib.blake2b(readout.traj.tobytes(), digest_size=16).digest()


def _geometry(encoding: Any, header: Any) -> tuple[float, float]:
    """Field of view, the larger of x and y, and pixel size of the header [m]."""
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    width = extent(encoded.fieldOfView_mm, "x")
    shown = max((mrdhelper.recon_field_of_view(header) or (0.0, 0.0))[:2]) or width
    pixels = recon.matrixSize.x if recon.matrixSize is not None else 0
    pixel = extent(recon.fieldOfView_mm, "x") / pixels if pixels else width / encoded.matrixSize.x
    if not 0 < pixel < shown < math.inf:
        raise TrajectoryError(f"the header has a field of view of {shown:g} mm and pixels of {pixel:g} mm")
    return 1e-3 * shown, 1e-3 * pixel
