"""NIfTI files: arrays with their place in the patient, in MRD's axis order and coordinates.

NIfTI's axes are [x, y, z, frame], and its coordinates grow to the right, the front and the head (RAS). MRD has
[frame, z, y, x], and coordinates that grow to the left, the back and the head (LPS), as DICOM has.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrdio.pixeltypes import to_pixel_type

NAMES = (".nii", ".nii.gz")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GZIP = b"\x1f\x8b"
_KINDS = {  # where in the file its version is told, and how
    "Nifti1Image": (344, b"n+1\0"),
    "Nifti2Image": (4, b"n+2\0\r\n\x1a\n"),
}
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
_SECONDS = {"msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True)
class Geometry:
    """Place of an array [frame, z, y, x] in the patient.

    Attributes
    ----------
    affine : (4, 4) array
        Maps an index (x, y, z, 1) to patient coordinates [mm]: x to the left, y to the back, z to the head (LPS).
    is_known : bool
        Whether that is a place in the patient; else the affine gives the pixels' sizes only.
    interval : float
        Time between frames [s]; 0 where it is not known.
    """

    affine: NDArray[np.float64]
    is_known: bool = True
    interval: float = 0.0


def is_nifti(path: Path) -> bool:
    """Tell from its first bytes whether a file is a NIfTI file of one part, also a compressed one."""
    with path.open("rb") as file:
        start = file.read(352)
    return start.startswith(_GZIP) or _kind(start) is not None


def _kind(start: bytes) -> str | None:
    return next((name for name, (at, magic) in _KINDS.items() if start[at : at + len(magic)] == magic), None)


def read(path: Path) -> tuple[NDArray, Geometry]:
    """Read a NIfTI file.

    Parameters
    ----------
    path
        A ``.nii`` or ``.nii.gz`` file, recognised by its content.

    Returns
    -------
    Array [frame, z, y, x] of values scaled as the file says, of an integer type where it does not, and its place.

    Raises
    ------
    ValueError
        If it is no such file, is damaged, or has more than four axes; the text names the file.
    OSError
        If it cannot be read.
    """
    import nibabel  # takes longer than all other imports of the client
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    content = path.read_bytes()
    try:
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        kind = _kind(content)
        if kind is None:
            raise ValueError("it has no NIfTI header (files of two parts, .hdr and .img, are not read)")
        image = getattr(nibabel, kind).from_bytes(content)
        values = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=float)
        space, time = image.header.get_xyzt_units()
    except (MemoryError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as NIfTI: it says that it holds more than the memory does") from error
    except KeyError as error:
        raise ValueError(f"{path} cannot be read as NIfTI: unknown code {error.args[0]} of a unit") from error
    except (EOFError, HeaderDataError, ImageFileError, OSError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    while values.ndim > 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if not 2 <= values.ndim <= 4 or not values.size or values.dtype.names:
        text = f"{path} has pixels {values.dtype} of shape {values.shape}"
        raise ValueError(f"{text}; expected numbers [x, y], [x, y, z] or [x, y, z, frame]")
    values = values.reshape(values.shape + (1,) * (4 - values.ndim)).T
    affine[:3] *= _MILLIMETRES.get(space, 1.0)
    if not np.all(np.isfinite(affine)) or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path} has an affine matrix that gives its pixels no size: {affine[:3].tolist()}")
    zooms = image.header.get_zooms()
    interval = float(zooms[3]) * _SECONDS.get(time, 1.0) if len(zooms) > 3 and time in ("sec", "msec", "usec") else 0.0
    is_known = bool(image.header["qform_code"] or image.header["sform_code"])
    return values, Geometry(_RAS_TO_LPS @ affine if is_known else affine, is_known, interval)


def write(path: Path, values: NDArray, geometry: Geometry) -> None:
    """Write a NIfTI file; one that is there already is replaced when the new one is complete.

    Parameters
    ----------
    path
        A name that ends in ``.nii``, or in ``.nii.gz`` for a compressed one.
    values
        Array [frame, z, y, x] or [channel, frame, z, y, x].
    geometry
        Its place.

    Raises
    ------
    ValueError
        If NIfTI does not hold such an array.
    OSError
        If the file cannot be written.
    """
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    values = to_pixel_type(values).T
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    affine = _RAS_TO_LPS @ geometry.affine if geometry.is_known else geometry.affine
    try:
        image = nibabel.Nifti1Image(values, affine)
    except HeaderDataError as error:
        raise ValueError(f"NIfTI holds no array [x, y, z, ...] of shape {values.shape}: {error}") from error
    axes = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0)
    is_sheared = not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    image.set_sform(affine, code=int(geometry.is_known))
    image.set_qform(affine, code=int(geometry.is_known and not is_sheared))  # a rotation, which knows no shear
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim > 3:
        image.header.set_zooms((*image.header.get_zooms()[:3], geometry.interval, *image.header.get_zooms()[4:]))
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        nibabel.save(image, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
