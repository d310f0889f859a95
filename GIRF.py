"""Gradient impulse response: what the scanner's gradients did instead of what they were told.

`predict_trajectory` is a pure function from the nominal k-space to the predicted one. The system is linear and
time-invariant on the physical axes, so gyromagnetic ratio and gradient units cancel: gradients are handled as change
of k per sample.

Reference: Vannesjo et al., Magn Reson Med 2013;69:583, doi 10.1002/mrm.24263 (the response and its measurement);
Campbell-Washburn et al., Magn Reson Med 2016;75:2278, doi 10.1002/mrm.25788 (trajectory prediction).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configuration import PROJECT_FOLDER
from matfile import MatFileError, read_mat
from trajectory import ring_areas

if TYPE_CHECKING:
    import ismrmrd

    from trajectory import Trajectory

logger = logging.getLogger(__name__)

RASTER = 10e-6  # [s], of the impulse response
SYSTEM_DELAY = 0.85e-6  # [s], by which the measured response comes late
RECEIVER_DELAY = 3e-6  # [s]
TAIL = 200  # samples over which the last gradient goes to zero
TAPER = 0.1  # part of the impulse response, at each end, that is tapered before zero-padding
BLOCK = 64  # arms transformed at once: bounds the memory

PATIENT_TO_DEVICE = {
    "HFS": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "HFP": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "FFS": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "FFP": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "HFDR": ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
    "HFDL": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "FFDR": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "FFDL": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
}
"""Rotation from patient to device coordinates by patient position."""

READOUT_TO_GRADIENT = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], float)
METAFILE_SIGNS = np.array([1.0, -1.0, 1.0])  # the metafile's ky is opposite to the gradient that makes it


class GirfError(ValueError):
    """The response or the orientation it needs cannot be used; the text says what is wrong and what would be right."""


# --- The response ---------------------------------------------------------------------------------------------------


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


def checked_response(response: ArrayLike, source: str = "the response") -> NDArray[np.complex128]:
    """Check a response and return it in double precision.

    Raises
    ------
    GirfError
        Names `source`, what is wrong with it, and what is expected.
    """
    values = np.asarray(response)
    if values.ndim != 2 or values.shape[1] != 3 or values.shape[0] < 2 or values.dtype.kind not in "iufc":
        raise GirfError(
            f"{source}: GIRF has shape {values.shape} and type {values.dtype}, must be complex numbers [frequencies, 3]"
        )
    if not np.isfinite(values).all():
        raise GirfError(f"{source}: GIRF holds values that are not finite")
    centre = np.abs(values[len(values) // 2])
    if centre.min() < 0.5 or centre.max() > 2:
        raise GirfError(
            f"{source}: zero frequency belongs in the centre of GIRF, with magnitudes near 1; "
            f"at point {len(values) // 2} they are {centre.round(3).tolist()}"
        )
    return values.astype(np.complex128)


# --- Orientation ----------------------------------------------------------------------------------------------------


def rotation_to_physical(
    read_dir: ArrayLike, phase_dir: ArrayLike, slice_dir: ArrayLike, patient_position: str
) -> NDArray[np.float64]:
    """Rotation [3, 3] from readout axes to the physical axes of the gradient coils.

    It is (patient to device) (gradient to patient) (readout axes to gradient axes); the gradient-to-patient matrix has
    the columns phase_dir, -read_dir, slice_dir, and the last factor swaps the first two axes.

    Parameters
    ----------
    read_dir, phase_dir, slice_dir
        Direction cosines of the readout's header, in patient coordinates.
    patient_position
        One of the keys of `PATIENT_TO_DEVICE`.

    Raises
    ------
    GirfError
        Unknown patient position, or directions that are not orthonormal.
    """
    if patient_position not in PATIENT_TO_DEVICE:
        raise GirfError(
            f"patient position {patient_position!r} is unknown, must be one of {', '.join(PATIENT_TO_DEVICE)}: "
            "the gradient correction needs it"
        )
    read, phase, normal = (np.asarray(direction, float) for direction in (read_dir, phase_dir, slice_dir))
    gradient_to_patient = np.stack([phase, -read, normal], axis=1)
    if not np.allclose(gradient_to_patient.T @ gradient_to_patient, np.eye(3), atol=1e-3):
        raise GirfError(
            f"read_dir {read.tolist()}, phase_dir {phase.tolist()} and slice_dir {normal.tolist()} of the readout are "
            "not orthonormal: the gradient correction needs them"
        )
    return np.array(PATIENT_TO_DEVICE[patient_position], float) @ gradient_to_patient @ READOUT_TO_GRADIENT


def rotation_of(acquisition: ismrmrd.Acquisition, header: Any) -> NDArray[np.float64]:
    """`rotation_to_physical` of a readout, with the patient position of the MRD header."""
    position = getattr(getattr(header, "measurementInformation", None), "patientPosition", None)
    return rotation_to_physical(
        acquisition.read_dir,
        acquisition.phase_dir,
        acquisition.slice_dir,
        str(getattr(position, "value", position)),
    )


# --- Prediction -----------------------------------------------------------------------------------------------------


def predict_trajectory(
    k: NDArray[np.float64],
    response: ArrayLike,
    dwell: float,
    rotation: ArrayLike,
    t0: float | None = None,
) -> NDArray[np.float64]:
    """Predict the k-space that the gradients really traced.

    Gradients (difference quotient, from k = 0) stand in the centre of a window as long as the impulse response, or
    longer where half an impulse response would not fit between the readout and its periodic copy, and end in half a
    Hann window. Each frequency is multiplied by the response of the physical axes, seen from the readout axes
    (R^T diag(H) R), and by exp(+2 pi i f t0). Frequencies that the response does not cover are zero. The integral to k
    begins at the first sample.

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
        Time by which the response's delay is taken back [s]; None: 0.85 us + dwell / 2 + 3 us receiver delay.

    Returns
    -------
    Predicted k-space, shaped as `k` [1/m].
    """
    if t0 is None:
        t0 = SYSTEM_DELAY + dwell / 2 + RECEIVER_DELAY
    response = checked_response(response)
    arms, samples, axes = k.shape

    readout = (samples + TAIL) * dwell
    window = max(len(response) * RASTER, readout + len(response) * RASTER / 2)
    # A window of whole samples; the tolerance keeps one that fits exactly, and with it the response's own frequencies.
    length = math.ceil(window / dwell * (1 - 1e-12))
    transfer = response_on_window(response, length * dwell)[: length // 2 + 1]
    frequencies = np.arange(len(transfer)) / (length * dwell)
    transfer = transfer * np.exp(2j * np.pi * frequencies * t0)[:, np.newaxis]

    to_physical = (np.asarray(rotation, float) * METAFILE_SIGNS)[:, :axes]
    seen_from_readout = np.einsum("pi,fp,pj->ijf", to_physical, transfer, to_physical)

    start = (length - samples - TAIL) // 2
    tail = 0.5 * (1 + np.cos(np.pi * np.arange(1, TAIL + 1) / TAIL))
    predicted = np.empty_like(k, dtype=np.float64)
    for first in range(0, arms, BLOCK):
        steps = np.diff(k[first : first + BLOCK], axis=1, prepend=0).transpose(0, 2, 1)
        gradients = np.zeros((*steps.shape[:2], length))
        gradients[..., start : start + samples] = steps
        gradients[..., start + samples : start + samples + TAIL] = steps[..., -1:] * tail
        spectrum = np.fft.rfft(gradients)[..., : transfer.shape[0]]
        spectrum = np.einsum("ijf,ajf->aif", seen_from_readout, spectrum)
        answer = np.fft.irfft(spectrum, length)[..., start : start + samples]
        predicted[first : first + BLOCK] = np.cumsum(answer, axis=-1).transpose(0, 2, 1)
    return predicted


def response_on_window(response: NDArray[np.complex128], window: float) -> NDArray[np.complex128]:
    """Bring the response to the frequencies m / window, m = 0, 1, ..., inside the band that it was measured in.

    Only what makes real gradients of real ones is kept: H(f) and conj H(-f) are averaged, which is taking the real part
    of the prediction. For another window than the response's own, its impulse response is tapered at the ends and
    transformed at the new frequencies, as zero-padding in time does.

    Parameters
    ----------
    response
        GIRF [frequencies, (x, y, z)], zero frequency at n // 2.
    window
        Length of the window [s].

    Returns
    -------
    Response [m, (x, y, z)].
    """
    n = len(response)
    duration = n * RASTER
    middle = n // 2
    half = (n + 1) // 2  # the frequency -1/2 of an even n has no partner
    if math.isclose(window, duration, rel_tol=1e-9):
        positive, negative = response[middle : middle + half], response[middle - half + 1 : middle + 1][::-1]
        return (positive + np.conj(negative)) / 2

    from scipy.signal import czt

    impulse = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(response, axes=0), axis=0), axes=0)
    distance = np.abs(np.arange(n) - middle) / (n / 2)  # from the centre, 1 at the ends
    taper = np.cos(np.pi / 2 * np.clip((distance - (1 - TAPER)) / TAPER, 0, 1)) ** 2
    points = math.ceil((half - 0.5) * window / duration)
    step = RASTER / window  # of frequency, in cycles per raster point
    real_impulse = (impulse * taper[:, np.newaxis]).real
    spectrum = czt(real_impulse, points, np.exp(-2j * np.pi * step), axis=0)
    return spectrum * np.exp(2j * np.pi * step * middle * np.arange(points))[:, np.newaxis]


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
