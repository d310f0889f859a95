"""Trajectories corrected by the gradient impulse response: its file, a readout's orientation, the predicted k-space.

Reference: Campbell-Washburn et al., Magn Reson Med 2016;75:2278, doi 10.1002/mrm.25788.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from GIRF import GirfError, checked_response, predict_gradients, rotation_to_physical
from recon.configuration import PROJECT_FOLDER
from recon.matfile import MatFileError, read_mat
from recon.trajectory import Trajectory, ring_areas

if TYPE_CHECKING:
    import ismrmrd

logger = logging.getLogger(__name__)

CENTRED = 2.0  # largest step of an arm: the first sample is not farther from the centre of k-space
METAFILE_SIGNS = np.array([1.0, -1.0, 1.0])  # the metafile's ky is opposite to the gradient that makes it


def find_girf(girf_file: str | Path | None = None, folder: Path = PROJECT_FOLDER) -> Path:
    """Find the file of the response.

    Parameters
    ----------
    girf_file
        `girf_file` of the configuration; None looks for the one `girf*.mat` (any case) in `folder`.

    Raises
    ------
    GirfError
        There is no such file, or more than one; says where it was looked for.
    """
    advice = "set girf_file in the configuration, or apply_girf = false to reconstruct without correction"
    if girf_file is not None:
        if not Path(girf_file).is_file():
            raise GirfError(f"no gradient impulse response at {girf_file} (girf_file): {advice}")
        return Path(girf_file)
    found = sorted(file for file in folder.glob("*.mat") if file.name.lower().startswith("girf"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise GirfError(f"apply_girf needs one file girf*.mat in {folder}, there is {names}: {advice}")
    return found[0]


def load_girf(file: str | Path) -> NDArray[np.complex128]:
    """Read the response [frequencies, (x, y, z)], zero frequency at n // 2, 1 / (n * 10 us) from point to point.

    Raises
    ------
    GirfError
        The file cannot be read, or its key GIRF has another shape, is not finite, or is no response.
    """
    try:
        response = read_mat(file, ["GIRF"]).get("GIRF")
    except MatFileError as error:
        raise GirfError(f"gradient impulse response: {error}") from error
    if response is None:
        raise GirfError(f"{file} has no key GIRF, the response as a complex array [frequencies, 3]")
    return checked_response(response, str(file))


def rotation_of(acquisition: ismrmrd.Acquisition, header: Any) -> NDArray[np.float64]:
    """`rotation_to_physical` of a readout, with the patient position of the MRD header."""
    position = getattr(getattr(header, "measurementInformation", None), "patientPosition", None)
    return rotation_to_physical(
        acquisition.read_dir,
        acquisition.phase_dir,
        acquisition.slice_dir,
        str(getattr(position, "value", position)),
    )


def predict_trajectory(
    k: NDArray[np.float64],
    response: ArrayLike,
    dwell: float,
    rotation: ArrayLike,
    t0: float | None = None,
) -> NDArray[np.float64]:
    """Predict the k-space that the gradients really traced.

    Gradients are the difference quotient of k, from k = 0; `GIRF.predict_gradients` predicts what they were; the
    integral to k begins at the first sample.

    Parameters
    ----------
    k
        Nominal k-space [arms, samples, (kx, ky)] or [arms, samples, (kx, ky, kz)] [1/m], of a metafile.
    response
        GIRF [frequencies, (x, y, z)] as `load_girf` returns it.
    dwell
        Time from sample to sample [s].
    rotation
        Readout axes to physical axes [3, 3].
    t0
        Time by which the response's delay is taken back [s]; None: as `GIRF.predict_gradients` takes it.

    Returns
    -------
    Predicted k-space, shaped as `k` [1/m].

    Raises
    ------
    GirfError
        The dwell time is not known; or an arm does not start in the centre of k-space: what brought it to its first
        sample is not known.
    """
    if not dwell > 0:
        raise GirfError(
            "apply_girf needs the time from sample to sample, but the readouts, which bring the trajectory, have no "
            "sample_time_us: set apply_girf = false"
        )
    begin = np.linalg.norm(k[:, 0], axis=-1)
    steps = np.linalg.norm(np.diff(k, axis=1), axis=-1).max(axis=1, initial=0)
    if (begin > CENTRED * steps).any():
        raise GirfError(
            f"apply_girf needs arms that start in the centre of k-space, but one starts at |k| = {begin.max():.4g} "
            "1/m: the gradients before its first sample are not known; set apply_girf = false"
        )
    to_physical = (np.asarray(rotation, float) * METAFILE_SIGNS)[:, : k.shape[-1]]
    gradients = np.diff(k, axis=1, prepend=0).transpose(0, 2, 1)
    predicted = predict_gradients(gradients, response, dwell, to_physical, t0)
    return np.cumsum(predicted, axis=-1).transpose(0, 2, 1)


def correct_trajectory(
    trajectory: Trajectory, response: ArrayLike, acquisition: ismrmrd.Acquisition, header: Any
) -> Trajectory:
    """Return the trajectory with the predicted k-space for the orientation of a readout.

    The density weights follow: where the gradients came late, the centre is sampled more densely than was planned. They
    are multiplied by the ratio of the ring areas of predicted and nominal mean radius.

    Call it before `Trajectory.fitted_to`, on the receiver's own raster.

    Raises
    ------
    GirfError
        Orientation or response cannot be used.
    """
    predicted = predict_trajectory(trajectory.k, response, trajectory.dwell, rotation_of(acquisition, header))
    deviation = float(np.linalg.norm(predicted - trajectory.k, axis=-1).max())
    logger.info("Gradient correction moves k-space by up to %.2f 1/m, %.2f / field of view", deviation,
                deviation * trajectory.fov)  # fmt: skip
    nominal, real = (ring_areas(np.linalg.norm(k, axis=-1).mean(axis=0)) for k in (trajectory.k, predicted))
    ratio = np.divide(np.maximum(real, 0), nominal, out=np.ones_like(real), where=nominal > 0)
    return dataclasses.replace(trajectory, k=predicted, weights=trajectory.weights * ratio)
