"""The pixel types of MRD images, and which of them other NumPy types become."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIXEL_TYPES = ("uint16", "int16", "uint32", "int32", "float32", "float64", "complex64", "complex128")

# Each holds every value of the type that becomes it. Those of 64 bits fit if their values do.
_NEAREST = {"bool": "uint16", "uint8": "uint16", "int8": "int16", "float16": "float32", "int64": "int32",
            "uint64": "uint32"}  # fmt: skip


def to_pixel_type(data: NDArray[Any]) -> NDArray[Any]:
    """Pixels of one of the eight MRD types, in the byte order of this machine, of the same values.

    uint8 and bool become uint16, int8 int16, float16 float32. int64 becomes int32, and uint64 uint32.

    Parameters
    ----------
    data
        Pixels of any shape. Those of an MRD type are returned as they are.

    Raises
    ------
    ValueError
        If there is no MRD type for them, or integers do not fit in 32 bits; the text names type, range and shape.
    """
    name = data.dtype.newbyteorder("=").name
    wanted = name if name in PIXEL_TYPES else _NEAREST.get(name)
    if wanted is None:
        types = ", ".join(PIXEL_TYPES)
        raise ValueError(f"pixels of shape {data.shape} are of type {data.dtype}; expected one of {types}")
    if name in ("int64", "uint64") and data.size:
        limits, low, high = np.iinfo(wanted), data.min(), data.max()
        if low < limits.min or high > limits.max:
            text = f"pixels of shape {data.shape} and type {name} have values from {low} to {high}"
            raise ValueError(f"{text}: MRD has integers of at most 32 bits; convert them with .astype(np.float64)")
    return data.astype(wanted, copy=False)
