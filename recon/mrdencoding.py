"""Encodings of an MRD header, and the purpose of a readout by its flags."""

import math
from typing import Any

import ismrmrd

from recon.fourier import Axis

MAX_MATRIX = 8192  # pixels of one axis
CARTESIAN = "cartesian"
ELSEWHERE = {  # by the header's trajectory: who can make an image of it
    "spiral": "simplenufft reconstructs spirals, simplenufft1arm makes movies of them",
    "radial": "simplenufft reconstructs it, if its trajectory is known (doc/sequences.md)",
    "goldenangle": "simplenufft reconstructs it, if its trajectory is known (doc/sequences.md)",
    "other": "simplenufft reconstructs it, if its trajectory is known and in a plane (doc/sequences.md)",
    "epi": "cartesian_recon reconstructs EPI, whose readouts need regridding of the ramps and a phase correction of "
    "the reversed lines; once both are done, 'cartesian' is right",
}
SAME_CONTRAST = ("embedded", "interleaved")  # calibration modes whose calibration lines are of the image's own contrast
NOT_IMAGING_FLAGS = (
    ismrmrd.ACQ_IS_NOISE_MEASUREMENT,
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_PHASECORR_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)
NOT_IMAGING_MASK = sum(1 << (flag - 1) for flag in NOT_IMAGING_FLAGS)


def is_imaging(acquisition: Any, metadata: Any = None) -> bool:
    """True for a readout (or its header) that belongs into an image.

    Noise, navigator, phase correction, feedback, dummy, coil correction and phase stabilisation readouts do not. Lines
    flagged as calibration only do where the header's calibration mode is embedded or interleaved: they are lines of the
    same scan. With another mode, or none, they may have another contrast.

    Parameters
    ----------
    acquisition
        The readout or its header.
    metadata
        The MRD header; without it lines flagged as calibration only do not belong into an image.
    """
    if acquisition.flags & NOT_IMAGING_MASK:
        return False
    if not is_calibration_only(acquisition):
        return True
    return calibration_mode(metadata, acquisition.encoding_space_ref) in SAME_CONTRAST


def is_calibration(acquisition: Any) -> bool:
    """True for a readout (or its header) flagged as calibration, whether it belongs into an image as well or not."""
    if acquisition.flags & NOT_IMAGING_MASK:
        return False
    flags = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    return any(map(acquisition.is_flag_set, flags))


def is_calibration_only(acquisition: Any) -> bool:
    """True for a readout (or its header) flagged as calibration, and not as calibration and imaging."""
    return acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) and not acquisition.is_flag_set(
        ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    )


def calibration_mode(metadata: Any, encoding_space_ref: int) -> str | None:
    """Calibration mode of an encoding ('embedded', 'separate', ...); None when the header does not say."""
    encodings = getattr(metadata, "encoding", None) or []
    parallel = encodings[encoding_space_ref].parallelImaging if encoding_space_ref < len(encodings) else None
    mode = getattr(parallel, "calibrationMode", None)
    return getattr(mode, "value", mode)


def acceleration_factors(encoding: Any) -> tuple[int, int]:
    """Acceleration along rows and partitions that the header states; 1 where it does not say."""
    factor = getattr(getattr(encoding, "parallelImaging", None), "accelerationFactor", None)
    first, second = (getattr(factor, f"kspace_encoding_step_{step}", 1) or 1 for step in (1, 2))
    return max(first, 1), max(second, 1)


def multiband_factor(encoding: Any) -> int:
    """Number of slices that are excited at a time, where the header says that there are several; else 0."""
    factor = getattr(getattr(getattr(encoding, "parallelImaging", None), "multiband", None), "multiband_factor", 0)
    return factor if isinstance(factor, int) and factor > 1 else 0


def is_mirrored(metadata: Any) -> bool:
    """True if k-space has the scanner's sign, so that the image needs a mirrored transform.

    MRD leaves the sign of k-space open. Data of Siemens scanners follows the scanner's convention: with
    s(k) = integral rho(r) exp(-2 pi i k r) dr, pixel (row, column) shows the object at x = -(column - N // 2) * pixel
    and y = -(row - N // 2) * pixel, and only so do ``read_dir`` and ``phase_dir`` describe the image. All other data is
    taken as it is: x = +(column - N // 2) * pixel, as the ISMRMRD tools do.
    """
    vendor = getattr(getattr(metadata, "acquisitionSystemInformation", None), "systemVendor", None)
    return "siemens" in (vendor or "").lower()


def any_encoding(metadata: Any, encoding_space_ref: int) -> Any:
    """Return the header's encoding that a readout refers to, whatever its trajectory.

    Raises
    ------
    ValueError
        When there is no MRD header, or no such encoding.
    """
    encodings = getattr(metadata, "encoding", None)
    if encodings is None:
        raise ValueError("a reconstruction of raw data needs a valid MRD header; the client sent none")
    if encoding_space_ref >= len(encodings):
        raise ValueError(f"a readout refers to encoding space {encoding_space_ref}; the header has {len(encodings)}")
    return encodings[encoding_space_ref]


def encoding_of(metadata: Any, encoding_space_ref: int) -> Any:
    """Return the header's encoding that a readout refers to, if it is Cartesian.

    Raises
    ------
    ValueError
        When there is no MRD header, no such encoding, or its trajectory is not Cartesian.
    """
    encoding = any_encoding(metadata, encoding_space_ref)
    if encoding.trajectory is None:
        raise ValueError("the header names no trajectory: a Cartesian reconstruction needs 'cartesian'")
    trajectory = trajectory_of(encoding)
    if trajectory != CARTESIAN:
        who = ELSEWHERE.get(trajectory, "no module here reconstructs that yet")
        raise ValueError(
            f"the header's trajectory is '{trajectory}', a Cartesian reconstruction needs 'cartesian'; {who}"
        )
    return encoding


def griddable_encoding(metadata: Any, encoding_space_ref: int) -> Any:
    """Return the header's encoding that a readout refers to, if gridding its readouts makes an image.

    Raises
    ------
    ValueError
        When there is no MRD header, no such encoding, or it is EPI: lines of both directions need a phase correction.
    """
    encoding = any_encoding(metadata, encoding_space_ref)
    if trajectory_of(encoding) == "epi":
        raise ValueError(f"the header's trajectory is 'epi': gridding alone leaves ghosts; {ELSEWHERE['epi']}")
    return encoding


def trajectory_of(encoding: Any) -> str:
    """Kind of trajectory that the header states, in lower case; "none" where it states none."""
    return str(getattr(encoding.trajectory, "value", encoding.trajectory)).lower()


def encoding_axis(encoding: Any, name: str) -> Axis:
    """Sizes of the axis 'x', 'y' or 'z' of an encoding.

    The transform's size gives pixels of reconstructed field of view / reconstructed matrix size.

    Raises
    ------
    ValueError
        When a size is outside 1 to MAX_MATRIX.
    """
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    for space, place in ((encoded, "encodedSpace"), (recon, "reconSpace")):
        if getattr(space, "matrixSize", None) is None:
            raise ValueError(f"the header's encoding has no {place} with a matrixSize")
    points = checked_size(f"encodedSpace.matrixSize.{name}", getattr(encoded.matrixSize, name))
    pixels = checked_size(f"reconSpace.matrixSize.{name}", getattr(recon.matrixSize, name))
    encoded_fov = extent(encoded.fieldOfView_mm, name)
    recon_fov = extent(recon.fieldOfView_mm, name)
    transform = points
    if encoded_fov and recon_fov:
        size = pixels * encoded_fov / recon_fov
        transform = checked_size(f"matrix {name} of the field of view {encoded_fov:g} mm", round(min(size, 1e9)))
    return Axis(points, transform, pixels)


def checked_size(name: str, size: int) -> int:
    """Return the size of an axis if it is one, else raise a ValueError that names it and the limit."""
    if not isinstance(size, int) or not 1 <= size <= MAX_MATRIX:
        raise ValueError(f"{name} is {size!r}; expected 1 to {MAX_MATRIX}")
    return size


def extent(field_of_view: Any, name: str) -> float:
    """Extent of a field of view along 'x', 'y' or 'z' [mm]; 0 when missing or nonsense."""
    value = getattr(field_of_view, name, None) or 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def counter_limit(encoding: Any, limit_name: str) -> Any:
    """Minimum, maximum and centre of a counter by the encoding limits; None when the header does not say."""
    return getattr(encoding.encodingLimits, limit_name, None)


def first_index(encoding: Any, limit_name: str, points: int) -> int:
    """Offset from a k-space counter to the index in an axis with k = 0 at `points` // 2."""
    limit = counter_limit(encoding, limit_name)
    if limit is None:
        return 0
    if limit.center == 0 and limit.minimum == 0 and limit.maximum + points // 2 >= points > 1:
        return 0  # the centre was never set: the lines do not fit behind it
    return points // 2 - limit.center


def counter_values(encoding: Any, limit_name: str) -> int:
    """Number of values that a counter takes by the limits; 1 when they do not say."""
    limit = counter_limit(encoding, limit_name)
    return 1 if limit is None else max(limit.maximum - limit.minimum + 1, 1)
