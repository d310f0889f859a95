"""BART's arrays, in memory and in its file format: a text header `.hdr`, and a `.cfl` of complex64 by columns.

Reference: BART toolbox, doi 10.5281/zenodo.592960.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

READ_DIM, PHS1_DIM, PHS2_DIM, COIL_DIM = 0, 1, 2, 3
TIME_DIM, TIME2_DIM = 10, 11
DIMENSIONS = 16

SAMPLE = np.dtype(np.complex64).itemsize
SLAB = 16 * 2**20  # [bytes], how much of an array that BART's layout does not suit is copied at a time


class BartError(Exception):
    """A BART command could not be run or failed; the text has BART's own message."""


def dimensions(sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Shape of a BART array from named axes, for example `{COIL_DIM: 8, TIME_DIM: 48}`; every other axis is 1."""
    if wrong := [axis for axis in sizes if not 0 <= axis < DIMENSIONS]:
        raise ValueError(f"BART axes are 0 to {DIMENSIONS - 1}, not {wrong}")
    return tuple(sizes.get(axis, 1) for axis in range(DIMENSIONS))


def on_axes(array: np.ndarray, *axes: int) -> np.ndarray:
    """View of an array with its axes at their places among BART's 16; `axes` names the BART axis of each of its own.

    Nothing is copied. A C-ordered array whose axes are named from the largest BART number to the smallest, such as
    `on_axes(data, TIME_DIM, COIL_DIM, PHS1_DIM)` for data [time, coil, sample], is in BART's own memory order.
    ValueError unless there is one distinct BART axis for each axis of the array.
    """
    if len(axes) != array.ndim or len(set(axes)) != len(axes):
        raise ValueError(f"an array of shape {array.shape} needs {array.ndim} distinct BART axes, not {axes}")
    dimensions(dict.fromkeys(axes, 1))
    rest = [axis for axis in range(DIMENSIONS) if axis not in axes]
    return np.expand_dims(array.transpose(np.argsort(axes)), rest)


def write_cfl(base: Path, array: np.ndarray) -> None:
    """Write an array as `base.hdr` and `base.cfl`; ValueError for more than 16 dimensions or an empty array.

    A Fortran-ordered complex64 array is written straight from its memory. Any other is converted slab by slab, at most
    16 MiB at a time, so that there is never a second whole copy of it in memory.
    """
    array = np.asarray(array)
    if array.ndim > DIMENSIONS or array.size == 0:
        raise ValueError(f"BART arrays have at most {DIMENSIONS} dimensions, none of them 0; this has {array.shape}")
    shape = array.shape + (1,) * (DIMENSIONS - array.ndim)
    base.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, shape))}\n")
    with base.with_suffix(".cfl").open("wb") as file:
        for slab in _slabs(array):
            file.write(np.asfortranarray(slab, dtype=np.complex64).T.data)


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    """Split an array along its last axes into pieces that follow each other in column-major order."""
    if array.ndim < 2 or (array.flags.f_contiguous and array.dtype == np.complex64):
        yield array
        return
    step = SLAB // (array[..., 0].size * SAMPLE)
    for start in range(0, array.shape[-1], max(1, step)):
        yield from [array[..., start : start + step]] if step else _slabs(array[..., start])


def read_cfl(base: Path) -> np.ndarray:
    """Read `base.hdr` and `base.cfl` into memory, one copy: complex64 with BART's 16 axes, Fortran-ordered.

    BartError when a file is missing, the header is not one, or the data is not as long as the header says.
    """
    try:
        with base.with_suffix(".hdr").open(errors="replace") as file:
            header = file.read(65536)
        available = base.with_suffix(".cfl").stat().st_size
    except OSError as error:
        raise BartError(f"there is no {Path(error.filename or base).name}: {error.strerror}") from error
    found = re.search(r"^# Dimensions\n((?:\d{1,15} +)*\d{1,15}) *$", header, re.MULTILINE)
    shape = tuple(int(size) for size in found[1].split()) if found else ()
    if not shape or len(shape) > DIMENSIONS or min(shape) < 1:
        raise BartError(f"{base.name}.hdr has no 1 to {DIMENSIONS} sizes after '# Dimensions': {header[:80]!r}")
    expected = math.prod(shape) * SAMPLE
    if available != expected:
        raise BartError(f"{base.name}.cfl has {available} bytes, its header {shape} says {expected}")
    shape += (1,) * (DIMENSIONS - len(shape))
    return np.fromfile(base.with_suffix(".cfl"), dtype=np.complex64).reshape(shape, order="F")
