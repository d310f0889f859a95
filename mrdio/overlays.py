"""Regions of interest and text as values of meta attributes, which scanners and viewers draw over an image.

Modules reach these functions as ``mrdhelper.create_roi`` and so on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def create_roi(
    x: Sequence[float] | NDArray[Any],
    y: Sequence[float] | NDArray[Any],
    rgb: Sequence[float] = (1, 0, 0),
    thickness: float = 1,
    style: int = 0,
    visibility: int = 1,
) -> list[str]:
    """Describe a region of interest for a meta attribute named ``ROI_*``.

    Parameters
    ----------
    x, y
        Corner points [pixels from the top left], x to the right and y down.
    rgb
        Colour, three values from 0 to 1.
    thickness
        Line thickness [pixels].
    style, visibility
        Line style (0 solid, 1 dashed) and whether it is shown (1) or hidden (0).

    Returns
    -------
    Text values r, g, b, thickness, style, visibility, x1, y1, x2, y2, ...
    """
    if len(x) != len(y):
        raise ValueError(f"a ROI needs as many x as y coordinates; got {len(x)} and {len(y)}")
    if len(rgb) != 3:
        raise ValueError(f"a ROI colour has 3 values; got {len(rgb)}")
    points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1).ravel()
    return [f"{value:g}" for value in (*rgb, thickness, style, visibility, *points)]


def parse_roi(
    values: Sequence[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float, float], float, int, int]:
    """Read back what `create_roi` wrote.

    Returns
    -------
    (x, y, rgb, thickness, style, visibility): x and y [points], in pixels from the top left.

    Raises
    ------
    ValueError
        When the values are no numbers, too few, or not pairs.
    """
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"a ROI has 6 values and x, y pairs; got {len(values)} values")
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"a ROI holds numbers only: {error}") from None
    if not np.all(np.isfinite(numbers)):
        raise ValueError("a ROI holds finite numbers only")
    red, green, blue, thickness, style, visibility = numbers[:6].tolist()
    return numbers[6::2], numbers[7::2], (red, green, blue), thickness, int(style), int(visibility)


def create_text(
    x: float, y: float, rgb: Sequence[float] = (1, 0, 0), visibility: int = 1, string: str = ""
) -> list[str]:
    """Describe a text overlay for a meta attribute named ``Text_*``.

    Parameters
    ----------
    x, y
        Place [pixels from the top left].
    rgb
        Colour, three values from 0 to 1.
    visibility
        1 shown, 0 hidden.
    string
        The text.

    Returns
    -------
    Text values r, g, b, x, y, visibility, text.
    """
    if len(rgb) != 3:
        raise ValueError(f"a text colour has 3 values; got {len(rgb)}")
    return [*(f"{value:g}" for value in (*rgb, x, y, visibility)), string]


def parse_text(values: Sequence[str]) -> tuple[float, float, tuple[float, float, float], int, str]:
    """Read back what `create_text` wrote: (x, y, rgb, visibility, text); x and y [pixels from the top left].

    Raises
    ------
    ValueError
        When there are fewer than 7 values, or the first 6 are no finite numbers.
    """
    if len(values) < 7:
        raise ValueError(f"a text overlay has 7 values; got {len(values)}")
    try:
        numbers = [float(value) for value in values[:6]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"a text overlay begins with 6 numbers: {error}") from None
    if not np.all(np.isfinite(numbers)):
        raise ValueError("a text overlay begins with 6 finite numbers")
    red, green, blue, x, y, visibility = numbers
    # An empty element of the XML is read back as None.
    return x, y, (red, green, blue), int(visibility), " ".join(str(value or "") for value in values[6:])
