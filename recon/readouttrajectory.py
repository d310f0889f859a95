"""The trajectory that readouts carry themselves (``traj``), as k [1/m].

MRD does not say in which unit. Writers use cycles per field of view, 1/m, rad/m, or scale k to +-0.5 (cycles per
pixel). The largest |k| tells: in the right unit it is near the edge of k-space, 1 / (2 pixel), that the header's
encodedSpace has. The pixel is that along x: y often counts spokes or arms, not pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.mrdencoding import extent

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 1 / 3, 1.6  # largest |k| over the edge of k-space: coarser than the matrix, or to its corners
CLEAR = 1.15  # a unit within this factor of the edge is not doubted
FLAT = 1e-3  # of the largest |k|: kz of a readout that is in a plane


class ReadoutTrajectoryError(ValueError):
    """Readouts do not carry a 2-D trajectory that can be used; the text says why and what would be right."""


class Unit(NamedTuple):
    """Unit of a trajectory: its name, the factors (x, y) that make 1/m of it, and the largest |k| over the edge."""

    name: str
    factors: tuple[float, float]
    reach: float

    @property
    def description(self) -> str:
        """The unit that was assumed, in words for the client."""
        text = (
            f"trajectory of the readouts taken as {self.name}: |k| then reaches {self.reach:.2f} of the matrix's edge"
        )
        clear = 1 / CLEAR <= self.reach <= CLEAR
        return (
            text if clear else f"{text}, expected 1: if the image has a wrong size, the unit or encodedSpace is wrong"
        )


def carries_trajectory(readout: Any) -> bool:
    """True for a readout with a trajectory of at least two dimensions."""
    return readout.traj.ndim == 2 and readout.traj.shape[1] >= 2 and len(readout.traj) == readout.number_of_samples


def kept_samples(readout: Any) -> slice:
    """Samples of a readout that are not to be discarded by its header.

    Raises
    ------
    ReadoutTrajectoryError
        There is none.
    """
    end = readout.number_of_samples - readout.discard_post
    if readout.discard_pre >= end:
        raise ReadoutTrajectoryError(
            f"readout {readout.scan_counter} has {readout.number_of_samples} samples, of which discard_pre = "
            f"{readout.discard_pre} and discard_post = {readout.discard_post} leave none"
        )
    return slice(readout.discard_pre, end)


def read_trajectory(
    readouts: Sequence[ismrmrd.Acquisition], encoding: Any, tell: Callable[[str], None] = logger.info
) -> NDArray[np.float64]:
    """Read the trajectories of the readouts of one image.

    Parameters
    ----------
    readouts
        One at least.
    encoding
        The header's.
    tell
        Called with a text about the unit that was taken.

    Returns
    -------
    K-space [readout, sample, (kx, ky)] [1/m], without samples that are to be discarded.

    Raises
    ------
    ReadoutTrajectoryError
        As `raw_trajectory` and `find_unit`.
    """
    k = raw_trajectory(readouts)
    unit = find_unit(k, encoding)
    tell(unit.description)
    return k * unit.factors


def raw_trajectory(readouts: Sequence[ismrmrd.Acquisition]) -> NDArray[np.float64]:
    """Trajectories of the readouts of one image in the unit of their writer.

    Returns
    -------
    K-space [readout, sample, (kx, ky)], without samples that are to be discarded.

    Raises
    ------
    ReadoutTrajectoryError
        A readout carries no trajectory, or one that is not finite or leaves its plane, or readouts differ in length; or
        kz does not follow the partitions.
    """
    raw = [_own_trajectory(readout) for readout in readouts]
    lengths = sorted({len(each) for each in raw})
    if len(lengths) > 1:
        raise ReadoutTrajectoryError(
            f"readouts of one image have {lengths[0]} to {lengths[-1]} samples; expected the same number in each"
        )
    dimensions = sorted({each.shape[1] for each in raw})
    if len(dimensions) > 1:
        raise ReadoutTrajectoryError(f"trajectories of one image have {dimensions} dimensions; expected one number")
    k = np.stack(raw)
    if dimensions[0] > 2:
        _check_planes(k, readouts)
    return k[..., :2]


def find_unit(k: NDArray[np.floating], encoding: Any) -> Unit:
    """Find the unit of a trajectory, see the module's text.

    Parameters
    ----------
    k
        [..., (kx, ky)] in the unknown unit; it has to reach the edge of k-space.
    encoding
        The header's, with encodedSpace and reconSpace.

    Raises
    ------
    ReadoutTrajectoryError
        The header lacks matrix or field of view, or no unit brings the largest |k| near the edge.
    """
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    width, height = (1e-3 * extent(encoded.fieldOfView_mm, axis) for axis in "xy")
    matrix = encoded.matrixSize.x
    if not (width and height and matrix > 0):
        raise ReadoutTrajectoryError(
            "encodedSpace has no matrixSize.x or fieldOfView_mm: without them the unit of the readouts' trajectory "
            "cannot be told"
        )
    pixel = width / matrix
    factors = {
        "cycles/FOV": (1 / width, 1 / height),
        "1/m": (1.0, 1.0),
        "rad/m": (0.5 / math.pi, 0.5 / math.pi),
        "cycles/pixel (+-0.5)": (1 / pixel, 1 / pixel),
    }
    shown = [1e-3 * extent(recon.fieldOfView_mm, axis) for axis in "xy"]
    if all(shown) and not math.isclose(shown[0], width, rel_tol=0.01):  # readout oversampling
        factors["cycles/FOV of reconSpace"] = (1 / shown[0], 1 / shown[1])
    units = [
        Unit(name, factor, float(2 * pixel * np.linalg.norm(k * factor, axis=-1).max(initial=0)))
        for name, factor in factors.items()
    ]
    fitting = [unit for unit in units if LOWEST <= unit.reach <= HIGHEST]
    if not fitting:
        largest = np.linalg.norm(k, axis=-1).max(initial=0)
        edges = ", ".join(f"{largest / unit.reach:.4g} {unit.name}" for unit in units if unit.reach)
        raise ReadoutTrajectoryError(
            f"the largest |k| of the readouts' trajectory is {largest:.4g}; by encodedSpace ({matrix} pixels of "
            f"{1e3 * pixel:.4g} mm) the edge of k-space is {edges or 'not 0'}: none of these is near"
        )
    best, *others = sorted(fitting, key=lambda unit: abs(math.log(unit.reach)))
    doubt = [other.name for other in others if not math.isclose(other.factors[0], best.factors[0], rel_tol=0.01)]
    if doubt and not 1 / CLEAR <= best.reach <= CLEAR:
        return best._replace(name=f"{best.name} (or is it {' or '.join(doubt)}?)")
    return best


def _own_trajectory(readout: ismrmrd.Acquisition) -> NDArray[np.float64]:
    if not carries_trajectory(readout):
        raise ReadoutTrajectoryError(
            f"readout {readout.scan_counter} carries no 2-D trajectory: traj is {readout.traj.shape}; expected "
            f"({readout.number_of_samples}, 2) or ({readout.number_of_samples}, 3)"
        )
    k = readout.traj[kept_samples(readout)].astype(float)
    if not np.isfinite(k).all():
        raise ReadoutTrajectoryError(f"the trajectory of readout {readout.scan_counter} has values that are not finite")
    return k


def _check_planes(k: NDArray[np.float64], readouts: Sequence[ismrmrd.Acquisition]) -> None:
    """Check that kz is that of planes, one for each partition, in their order: else the images would be wrong."""
    tolerance = FLAT * np.linalg.norm(k[..., :2], axis=-1).max()
    planes: dict[int, float] = {}
    for kz, readout in zip(k[..., 2], readouts, strict=True):
        if np.ptp(kz) > tolerance:
            raise ReadoutTrajectoryError(
                f"kz of readout {readout.scan_counter} goes from {kz.min():.4g} to {kz.max():.4g}: expected one value, "
                "as in a 2-D scan or a stack of planes"
            )
        add_plane(planes, readout.idx.kspace_encode_step_2, kz[0], tolerance)


def add_plane(planes: dict[int, float], partition: int, kz: float, tolerance: float) -> None:
    """Add kz of a readout to that of the partitions of an image, and check that it rises evenly with their counter.

    Parameters
    ----------
    planes
        kz of each partition; changed in place.
    partition
        ``kspace_encode_step_2`` of the readout.
    kz
        Of the readout, in any unit.
    tolerance
        In the same unit.

    Raises
    ------
    ReadoutTrajectoryError
        Readouts of one partition have different kz, or kz does not rise evenly.
    """
    tells = "since the counter (label PAR of a Pulseq sequence) tells the partition of a stack"
    if partition in planes:
        if abs(kz - planes[partition]) > tolerance:
            raise ReadoutTrajectoryError(
                f"readouts with kspace_encode_step_2 = {partition} have kz {planes[partition]:.4g} and {kz:.4g}: "
                f"expected one value, {tells}"
            )
        return
    planes[partition] = kz
    numbers = sorted(planes)
    steps = np.diff([planes[number] for number in numbers]) / np.diff(numbers)
    if len(steps) and (steps.min() <= 0 or np.ptp(steps) > 2 * tolerance):
        raise ReadoutTrajectoryError(
            f"kz of the partitions changes by {steps.min():.4g} to {steps.max():.4g} from one kspace_encode_step_2 to "
            f"the next: expected one positive value, {tells}"
        )
