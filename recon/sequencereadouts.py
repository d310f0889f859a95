"""Imaging readouts of a scan and the arms that its sequence played: segments are joined, misfits are found out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import ismrmrd
import numpy as np

from recon.readoutorder import Piece, ReadoutOrder
from recon.readouttrajectory import FLAT, add_plane
from recon.trajectory import Trajectory, TrajectoryError

DWELL_TOLERANCE = 0.01  # relative difference of a dwell time that is told
MOST_SAMPLES = 0xFFFF  # of an MRD acquisition


class PlayedReadout(NamedTuple):
    """A whole readout, its number among the imaging ones of the scan, and its arm."""

    acquisition: ismrmrd.Acquisition
    number: int
    arm: int


class SequenceReadouts:
    """Finds the readout of the sequence that each imaging acquisition of a scan is, or is a segment of.

    Scanners cannot receive long readouts at once: they send them in equal segments, each an acquisition of its own.

    Parameters
    ----------
    nominal
        The sequence's trajectory.
    warn, tell
        Called with a text for the client about what may make the image wrong; about segments.
    """

    def __init__(self, nominal: Trajectory, warn: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self._nominal, self._warn, self._tell = nominal, warn, tell
        self._order = nominal.order
        self._first = True
        self._parts: list[ismrmrd.Acquisition] = []  # segments of the readout `_joined`
        self._joined = -1
        self._told = False
        self._flat = FLAT * float(np.linalg.norm(nominal.k, axis=-1).max())  # [1/m]
        self._planes: dict[tuple[int, ...], dict[int, float]] = {}  # of each image

    def take(self, acquisition: ismrmrd.Acquisition, number: int) -> PlayedReadout | None:
        """Take the next imaging acquisition of the scan.

        Parameters
        ----------
        acquisition
            As it came.
        number
            Of it among the imaging ones, lost ones counted, see `trajectory.ArmCounter`.

        Returns
        -------
        The readout that is whole with it; None when segments lack, or it is none of the image's.

        Raises
        ------
        TrajectoryError
            It has another length than what the sequence plays at this place.
        ReadoutTrajectoryError
            kz of the sequence does not follow the partitions that the scan counts.
        """
        order = self._order
        if order is None:
            self._check_dwell(acquisition)
            return PlayedReadout(acquisition, number, self._nominal.arm_of(number))
        if not order.segment and (segment := self._segment_of(acquisition, order)):
            order = self._order = dataclasses.replace(order, segment=segment)
        piece = order.piece(number)
        if acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT):
            self._check_end(piece, order)
        arm = int(order.arms[piece.place])
        self._check_length(acquisition, int(order.samples[piece.place]), piece.pieces)
        if arm < 0:
            return None
        self._check_dwell(acquisition)
        self._check_kz(acquisition, float(order.kz[piece.place]))
        whole = acquisition if piece.pieces == 1 else self._joined_with(acquisition, piece)
        return None if whole is None else PlayedReadout(whole, piece.readout, arm)

    def _segment_of(self, acquisition: ismrmrd.Acquisition, order: ReadoutOrder) -> int:
        """Samples of a segment if an acquisition is one, else 0.

        An acquisition with half of the samples may be a whole readout without its oversampling: the dwell time tells.
        """
        received, expected = acquisition.number_of_samples, self._nominal.readout_length
        if not 0 < received < expected or expected % received or received in order.samples:
            return 0
        dwell = acquisition.sample_time_us
        if 2 * received == expected and not math.isclose(dwell, 1e6 * self._nominal.dwell, rel_tol=DWELL_TOLERANCE):
            return 0
        self._tell(
            f"readouts come in segments of {received} samples: {expected // received} make one of {expected}, as "
            f"{self._nominal.file.name} plays it"
        )
        if expected > MOST_SAMPLES:
            raise TrajectoryError(f"readouts of {expected} samples in segments: {MOST_SAMPLES} are the most")
        return received

    def _check_length(self, acquisition: ismrmrd.Acquisition, samples: int, pieces: int) -> None:
        received = acquisition.number_of_samples * pieces
        if received not in (samples, samples // 2):
            file = self._nominal.file
            raise TrajectoryError(
                f"readout {acquisition.scan_counter} has {acquisition.number_of_samples} samples where {file.name} "
                f"plays one of {samples}{f' in {pieces} segments' if pieces > 1 else ''}: the scan is of another "
                "sequence, or it flags readouts as noise, navigator or the like that the sequence does not label so "
                "(NOISE, NAV), or the other way round"
            )

    def _check_end(self, piece: Piece, order: ReadoutOrder) -> None:
        if piece.place != len(order) - 1 or piece.number != piece.pieces - 1:
            self._warn(
                f"the last readout of the scan is number {piece.place + 1} of {len(order)} that "
                f"{self._nominal.file.name} plays: unless the scan was stopped, readouts were taken for others and "
                "the image is wrong. Those that the scan flags as noise, navigator or the like need the labels NOISE "
                "or NAV in the sequence, and only those"
            )

    def _check_dwell(self, acquisition: ismrmrd.Acquisition) -> None:
        """Warn of the first acquisition's dwell time if it is not the sequence's."""
        if not self._first:
            return
        self._first = False
        dwell, nominal = acquisition.sample_time_us, 1e6 * self._nominal.dwell
        whole = self._order is None or not self._order.segment
        halved = whole and 2 * acquisition.number_of_samples == self._nominal.readout_length
        expected = 2 * nominal if halved else nominal
        if dwell > 0 and not math.isclose(dwell, expected, rel_tol=DWELL_TOLERANCE):
            self._warn(
                f"readouts have a dwell time of {dwell:g} us, {self._nominal.file.name} gives {expected:g} us: if the "
                "former is right, the trajectory is wrong"
            )

    def _check_kz(self, acquisition: ismrmrd.Acquisition, kz: float) -> None:
        """Check that kz follows the partitions of the readout's image: else they would be added up, or mirrored."""
        idx = acquisition.idx
        image = (acquisition.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        add_plane(self._planes.setdefault(image, {}), idx.kspace_encode_step_2, kz, self._flat)

    def _joined_with(self, acquisition: ismrmrd.Acquisition, piece: Piece) -> ismrmrd.Acquisition | None:
        """Return the whole readout with its last segment."""
        if piece.readout != self._joined or piece.number == 0:
            self._report_left()
            self._parts, self._joined = [], piece.readout
        self._parts.append(acquisition)
        if len(self._parts) < piece.pieces:
            return None
        parts, self._parts = self._parts, []
        head = parts[0].getHead()
        head.number_of_samples = sum(part.number_of_samples for part in parts)
        head.discard_post = parts[-1].discard_post
        head.flags |= parts[-1].flags
        return ismrmrd.Acquisition(head, np.concatenate([part.data for part in parts], axis=1))

    def _report_left(self) -> None:
        if self._parts and not self._told:
            self._told = True
            self._warn(
                f"a readout is left out: of its segments, only {len(self._parts)} came, up to scan counter "
                f"{self._parts[-1].scan_counter}. There may be more such readouts"
            )
