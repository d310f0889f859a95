"""NIfTI files, read into the axes and the patient coordinates of MRD."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENDINGS = (".nii", ".nii.gz")
_TO_LPH = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's x and y grow towards R and A, those of MRD towards L and P


class NiftiError(ValueError):
    """A file is missing, damaged, or no NIfTI file; the text names it."""


def read(path: Path | str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the values of a file, and where they lie.

    Parameters
    ----------
    path
        Compressed or not.

    Returns
    -------
    values
        [..., slice, row, column]: NIfTI's i is the column, j the row, k the slice; further axes come first, the last
        one of the file before all others. Scaled as the file says.
    to_patient
        Affine matrix [4, 4] from (slice, row, column, 1) to (x, y, z, 1) towards L, P, H [mm].

    Raises
    ------
    NiftiError
        Names the file and what is wrong with it.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):  # Nifti2 is one, too
            raise NiftiError(f"{path} is a file of {type(image).__name__}, no NIfTI file")
        values, affine = np.asarray(image.dataobj), np.asarray(image.affine, float)
    except (ImageFileError, HeaderDataError, OSError, EOFError, OverflowError, zlib.error) as error:
        raise NiftiError(f"{path} is no intact NIfTI file: {error}") from error
    except MemoryError as error:
        raise NiftiError(f"{path} says that it holds more than the memory does: {image.shape}") from error
    if values.ndim < 3:
        values = values.reshape(values.shape + (1,) * (3 - values.ndim))
    return values.transpose(), (_TO_LPH @ affine)[:, [2, 1, 0, 3]]
