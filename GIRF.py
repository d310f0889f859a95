"""Gradient impulse response: the gradients that the scanner played out, from those that were asked for.

`predict_gradients` is a function from the gradients that were asked for to those that were played out. The system is
linear and time-invariant on the physical axes. Gyromagnetic ratio and units cancel: gradients may be in any unit, such
as change of k per sample.

Reference: Vannesjo et al., Magn Reson Med 2013;69:583, doi 10.1002/mrm.24263 (the response and its measurement);
Campbell-Washburn et al., Magn Reson Med 2016;75:2278, doi 10.1002/mrm.25788 (trajectory prediction).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


class GirfError(ValueError):
    """The response or the orientation it needs cannot be used; the text says what is wrong and what would be right."""


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


def predict_gradients(
    gradients: NDArray[np.float64],
    response: ArrayLike,
    dwell: float,
    to_physical: ArrayLike,
    t0: float | None = None,
) -> NDArray[np.float64]:
    """Predict the gradients that the system really played out.

    The gradients are placed in the centre of a window as long as the impulse response, or longer where half an impulse
    response would not fit between the readout and its periodic copy, and end in half a Hann window. Each frequency is
    multiplied by the response of the physical axes, seen from the gradients' own axes (R^T diag(H) R), and by
    exp(+2 pi i f t0). Frequencies that the response does not cover are zero.

    Parameters
    ----------
    gradients
        [arms, axes, samples], any unit; axes: two or three.
    response
        GIRF [frequencies, (x, y, z)], zero frequency at n // 2, 1 / (n * 10 us) from point to point.
    dwell
        Time from sample to sample [s].
    to_physical
        Rotation R from the gradients' axes to the physical axes [3, axes].
    t0
        Time by which the response's delay is taken back [s]; None: 0.85 us + dwell / 2 + 3 us receiver delay.

    Returns
    -------
    Predicted gradients, shaped and in the unit as `gradients`.

    Raises
    ------
    GirfError
        The response cannot be used.
    """
    if t0 is None:
        t0 = SYSTEM_DELAY + dwell / 2 + RECEIVER_DELAY
    response = checked_response(response)
    samples = gradients.shape[-1]

    readout = (samples + TAIL) * dwell
    window = max(len(response) * RASTER, readout + len(response) * RASTER / 2)
    # A window of whole samples; the tolerance keeps one that fits exactly, and with it the response's own frequencies.
    length = math.ceil(window / dwell * (1 - 1e-12))
    transfer = response_on_window(response, length * dwell)[: length // 2 + 1]
    frequencies = np.arange(len(transfer)) / (length * dwell)
    transfer = transfer * np.exp(2j * np.pi * frequencies * t0)[:, np.newaxis]

    to_physical = np.asarray(to_physical, float)
    seen_from_readout = np.einsum("pi,fp,pj->ijf", to_physical, transfer, to_physical)

    start = (length - samples - TAIL) // 2
    tail = 0.5 * (1 + np.cos(np.pi * np.arange(1, TAIL + 1) / TAIL))
    predicted = np.empty_like(gradients, dtype=np.float64)
    for first in range(0, len(gradients), BLOCK):
        block = gradients[first : first + BLOCK]
        padded = np.zeros((*block.shape[:2], length))
        padded[..., start : start + samples] = block
        padded[..., start + samples : start + samples + TAIL] = block[..., -1:] * tail
        spectrum = np.fft.rfft(padded)[..., : transfer.shape[0]]
        spectrum = np.einsum("ijf,ajf->aif", seen_from_readout, spectrum)
        predicted[first : first + BLOCK] = np.fft.irfft(spectrum, length)[..., start : start + samples]
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
