"""MATLAB files of version 5 (up to `-v7`), read without trusting them.

scipy's reader indexes tables with type codes of the file and can bring the whole process down on a damaged one, so that
the structure is walked through first. Format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HEADER_LENGTH = 128
NUMBERS = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13))
TEXTS = frozenset((16, 17, 18))
MATRIX, COMPRESSED = 14, 15
VARIABLE_START = [6, 5, 1]  # unsigned flags, signed dimensions, name
CELL_CLASS, STRUCT_CLASS, CHAR_CLASS, NUMBER_CLASSES = 1, 2, 4, range(6, 16)
COMPLEX_FLAG = 0x800
MAX_DEPTH = 8
MAX_INFLATED = 2**30  # bytes


class MatFileError(ValueError):
    """A file that is missing, damaged, or no MATLAB file of version 5; the text names it and says what is wrong."""


def read_mat(file: str | Path, names: Sequence[str]) -> dict[str, Any]:
    """Read variables of a MATLAB file.

    Parameters
    ----------
    file
        The file.
    names
        Variables to read; those that the file lacks are absent in the result.

    Returns
    -------
    Arrays of at least two dimensions by name; a structure is a structured array.

    Raises
    ------
    MatFileError
        Names the file and what is wrong with it.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = Path(file).read_bytes()
        check_structure(content, names)
        loaded = loadmat(io.BytesIO(content), variable_names=list(names))
    except OSError as error:
        raise MatFileError(f"cannot read {file}: {error.strerror or error}") from error
    except (MatReadError, ValueError, TypeError, KeyError, IndexError, MemoryError, OverflowError, zlib.error) as error:
        raise MatFileError(f"{file} is no intact MATLAB file: {error or type(error).__name__}") from error
    return {name: loaded[name] for name in names if name in loaded}


def check_structure(content: bytes, names: Sequence[str]) -> None:
    """Walk through a MATLAB file, and into the variables `names`; others may be of any class.

    Raises
    ------
    ValueError
        The file is of another version, ends early, or holds elements of unknown type or number.
    """
    if content[124:128] in (b"\x00\x02IM", b"\x02\x00MI"):
        raise ValueError("it has version 7.3; save it with -v7")
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(content[124:128])
    if order is None:
        raise ValueError("it has no header of version 5")
    for kind, data in _elements(memoryview(content)[HEADER_LENGTH:], order):
        if kind == COMPRESSED:
            for inner_kind, inner in _elements(_inflated(data), order):
                _check_variable(inner_kind, inner, order, names)
        else:
            _check_variable(kind, data, order, names)


def _inflated(data: memoryview) -> memoryview:
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(data, MAX_INFLATED)
    if not inflater.eof:
        raise ValueError("a compressed variable is incomplete or too large")
    return memoryview(inflated)


def _check_variable(
    kind: int, content: memoryview, order: str, names: Sequence[str] | None = None, depth: int = 0
) -> None:
    """Check one variable: array flags, dimensions, name, and (if it is one of `names`) what its class has besides."""
    if kind != MATRIX or depth > MAX_DEPTH:
        raise ValueError(f"an element of type {kind} where a variable should be, {depth} levels deep")
    if not content:
        return  # an empty field of a structure
    parts = list(_elements(content, order))
    if [kind for kind, _ in parts[:3]] != VARIABLE_START or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise ValueError("a variable without flags, dimensions and name")
    if names is not None and bytes(parts[2][1]).decode("latin-1") not in names:
        return
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    dimensions = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    array_class, is_complex = flags & 0xFF, bool(flags & COMPLEX_FLAG)
    if array_class in NUMBER_CLASSES or array_class == CHAR_CLASS:
        kinds = NUMBERS if array_class in NUMBER_CLASSES else NUMBERS | TEXTS
        if len(parts) != 4 + is_complex or any(kind not in kinds for kind, _ in parts[3:]):
            raise ValueError("an array without its values")
    elif array_class in (CELL_CLASS, STRUCT_CLASS):
        first, fields = 3, 1
        if array_class == STRUCT_CLASS:
            if len(parts) < 5 or len(parts[3][1]) != 4:
                raise ValueError("a structure without its fields")
            first, fields = 5, len(parts[4][1]) // max(1, struct.unpack(f"{order}i", parts[3][1])[0])
        if len(parts) - first != fields * math.prod(dimensions):
            raise ValueError("a structure or cell array without all its values")
        for inner_kind, inner in parts[first:]:
            _check_variable(inner_kind, inner, order, None, depth + 1)
    else:
        raise ValueError(f"a variable of class {array_class}; only numbers, texts, cells and structures are read")


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and data of each element."""
    position = 0
    while position < len(content):
        if position + 8 > len(content):
            raise ValueError(f"it ends {position + 8 - len(content)} bytes early")
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start = position + 8
        end = start + size if kind == COMPRESSED else start + (size + 7) // 8 * 8  # all others are padded
        if kind >> 16:  # a small element: type, size and at most four bytes in one
            kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        if start + size > len(content):
            raise ValueError(f"it ends {start + size - len(content)} bytes early")
        if kind not in NUMBERS and kind not in TEXTS and kind not in (MATRIX, COMPRESSED):
            raise ValueError(f"an element of unknown type {kind}")
        yield kind, content[start : start + size]
        position = end
