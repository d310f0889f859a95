"""The switch between array libraries: NumPy for arrays in the memory, CuPy for those on a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def array_module(array: Any) -> Any:
    """Return the module that works on an array: CuPy for a CuPy array, else NumPy."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """Return the array as a NumPy array, copied from the GPU if it lies there."""
    return np.asarray(array) if array_module(array) is np else array.get()


def scipy_module(array: Any, name: str) -> Any:
    """Return the submodule of SciPy, such as ``"ndimage"``, that works on an array: CuPy's copy for a CuPy array."""
    return importlib.import_module(f"{'scipy' if array_module(array) is np else 'cupyx.scipy'}.{name}")
