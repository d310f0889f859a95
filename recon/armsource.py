"""Where the arms of a non-Cartesian scan come from: the sequence, or the readouts themselves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon import trajectory, trajectorysources
from recon.configuration import project_path
from recon.mrdencoding import CARTESIAN, any_encoding, is_imaging, trajectory_of
from recon.readouttrajectory import Unit, carries_trajectory, find_unit, kept_samples, raw_trajectory
from recon.sequencereadouts import SequenceReadouts
from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

CENTRE = 0.04  # of the largest |k| of an arm: so near the centre it goes through it


@dataclass(frozen=True, eq=False)
class ArmReadout(SpiralReadout):
    """One imaging readout of a non-Cartesian scan, with what tells its arm.

    Attributes
    ----------
    acquisition
        The readout as it came.
    passes_centre
        Whether its arm goes through the centre of k-space.
    dwell
        Time from sample to sample [s]; 0: not known.
    """

    acquisition: ismrmrd.Acquisition | None = None
    passes_centre: bool = True
    dwell: float = 0.0


class ArmSource(Protocol):
    """Trajectory of a scan, readout by readout."""

    def receive(self, acquisition: ismrmrd.Acquisition) -> ArmReadout | None:
        """Take the next readout of the scan; None for one that is not of imaging."""

    def arms(
        self, readouts: Sequence[ArmReadout], encoding: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """K-space [readout, sample, (kx, ky)] [1/m] of one slab's readouts, and weights [readout, sample] if any."""


def find_source(
    metadata: Any,
    metafile_folders: Sequence[Path],
    tell: Callable[[str], None] = logger.info,
    warn: Callable[[str], None] = logger.warning,
    first_arm: int = 0,
) -> ArmSource:
    """Find where the trajectory of a scan comes from: the sequence, see `trajectorysources`, else the readouts.

    Parameters
    ----------
    metadata
        The MRD header.
    metafile_folders
        Where a metafile is looked for.
    tell, warn
        Called with a text for the client.
    first_arm
        Imaging readouts of the scan that came before the first one.
    """
    try:
        found = trajectorysources.find(metadata, [project_path(folder) for folder in metafile_folders])
    except trajectory.TrajectoryError as error:
        return ReadoutSource(metadata, tell, f"{error}")
    tell(found.told)
    return SequenceSource(found.trajectory, warn, tell, first_arm)


class SequenceSource:
    """Arms of a sequence, which readouts belong to by their number in the scan.

    Parameters
    ----------
    nominal
        The sequence's trajectory.
    warn, tell
        Called with a text for the client about readouts that are missing or do not fit; about their segments.
    first_arm
        Imaging readouts of the scan that came before the first one.
    """

    def __init__(
        self,
        nominal: trajectory.Trajectory,
        warn: Callable[[str], None],
        tell: Callable[[str], None],
        first_arm: int = 0,
    ) -> None:
        self._nominal = nominal
        self._readouts = SequenceReadouts(nominal, warn, tell)
        self._fitted: trajectory.Trajectory | None = None
        self._passes_centre = np.empty(0, bool)  # of each arm
        self._first_arm = first_arm
        self._counter = trajectory.ArmCounter(
            nominal.readouts, lambda gap: warn(f"{gap.missing} readouts are missing after scan counter {gap.after}")
        )

    def receive(self, acquisition: ismrmrd.Acquisition) -> ArmReadout | None:
        """Take the next readout, see `ArmSource`.

        Raises
        ------
        TrajectoryError
            It has another length than the sequence says.
        """
        arm = self._counter.place(acquisition)
        if arm is None:
            return None
        played = self._readouts.take(acquisition, arm.number + self._first_arm)
        if played is None:
            return None
        if self._fitted is None:
            self._fitted = self._nominal.fitted_to(played.acquisition)
            self._passes_centre = passes_centre(self._fitted.k)
        return ArmReadout(
            samples=self._fitted.samples(played.acquisition),
            column=played.arm,
            number=played.number,
            head=played.acquisition.getHead(),
            arrival=math.nan,
            passes_centre=bool(self._passes_centre[played.arm]),
            dwell=self._fitted.dwell,
        )

    def arms(self, readouts: Sequence[ArmReadout], encoding: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """K-space and weights, see `ArmSource`."""
        assert self._fitted is not None  # or there were no readouts
        columns = [each.column for each in readouts]
        weights = np.broadcast_to(self._fitted.weights, self._fitted.k.shape[:2])
        return self._fitted.k[columns], weights[columns]


class ReadoutSource:
    """The readouts' own trajectories, each its own; the unit is found once for each encoding.

    Parameters
    ----------
    metadata
        The MRD header.
    tell
        Called with a text for the client about the unit.
    else_missing
        Why there is no other source, for the error when the readouts carry no trajectory.
    """

    def __init__(self, metadata: Any, tell: Callable[[str], None], else_missing: str) -> None:
        self._metadata, self._tell, self._else_missing = metadata, tell, else_missing
        self._count = 0
        self._units: dict[int, Unit] = {}

    def receive(self, acquisition: ismrmrd.Acquisition) -> ArmReadout | None:
        """Take the next readout, see `ArmSource`.

        Raises
        ------
        TrajectoryError
            It carries no trajectory.
        ValueError
            There is no MRD header, or no such encoding.
        ReadoutTrajectoryError
            All of its samples are to be discarded.
        """
        if not is_imaging(acquisition, self._metadata):
            return None
        if not carries_trajectory(acquisition):
            shape = acquisition.traj.shape
            encoding = any_encoding(self._metadata, acquisition.encoding_space_ref)
            cartesian = "; the header says that it is Cartesian: cartesian_recon and simplefft reconstruct such scans"
            raise trajectory.TrajectoryError(
                f"this scan has no trajectory: {self._else_missing}; and readout {acquisition.scan_counter} carries "
                f"none of two dimensions (traj is {shape}, expected ({acquisition.number_of_samples}, 2))"
                f"{cartesian if trajectory_of(encoding) == CARTESIAN else ''}"
            )
        self._count += 1
        kept = kept_samples(acquisition)
        return ArmReadout(
            samples=acquisition.data[:, kept],
            column=0,
            number=self._count - 1,
            head=acquisition.getHead(),
            arrival=math.nan,
            acquisition=acquisition,
            passes_centre=bool(passes_centre(acquisition.traj[kept, :2])),
            dwell=1e-6 * acquisition.sample_time_us,
        )

    def arms(self, readouts: Sequence[ArmReadout], encoding: Any) -> tuple[NDArray[np.float64], None]:
        """K-space, and no weights, see `ArmSource`.

        Raises
        ------
        ReadoutTrajectoryError
            The trajectories cannot be used.
        """
        k = raw_trajectory([each.acquisition for each in readouts if each.acquisition is not None])
        number = readouts[0].head.encoding_space_ref
        if number not in self._units:
            self._units[number] = find_unit(k, encoding)
            self._tell(f"{self._units[number].description}; there is no other source: {self._else_missing}")
        return k * self._units[number].factors, None


def passes_centre(k: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tell which arms [..., sample, (kx, ky)] go through the centre of k-space, in whatever unit."""
    radius = np.linalg.norm(k, axis=-1)
    return radius.min(axis=-1) <= CENTRE * radius.max(axis=-1)
