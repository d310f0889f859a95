"""Images of an MRD file as pictures: pixels, the values shown black and white, and overlays.

`survey` looks once at all images of a series, one at a time, for their order and their common window; `read_picture`
then reads one of them when it is to be drawn.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdio.mrdfile import MrdReader
from mrdio.overlays import parse_roi, parse_text

logger = logging.getLogger(__name__)

LARGEST_PX = 16384  # [px] per side; beyond it no viewer opens the picture
PERCENTILES = (0.5, 99.5)
BACKGROUND = 0.1, 99.9  # pixels of a magnitude below this part of this percentile of an image are not the object
BRIGHT = 98  # [percent] of the object's pixels are darker than what is shown white; a few bright vessels may saturate
ORDINARY = 90  # [percent] of the images of a series count; brighter ones are those before the steady state
WINDOW_SAMPLES = 2**22  # values that the percentiles are taken from


@dataclass(frozen=True, slots=True)
class Entry:
    """Place of one image in the preview of its series.

    Attributes
    ----------
    index : int
        Number of the image in its sub-group, counted from 0.
    frame : tuple of int
        Counters that images of one frame have in common; the last one is the image type.
    slice, time_stamp, series : int
        Slice counter; acquisition time stamp [ticks of 2.5 ms]; series number.
    window : (float, float) or None
        Values shown black and white, from the attributes.
    """

    index: int
    frame: tuple[int, ...]
    slice: int = 0
    time_stamp: int = 0
    series: int = 0
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Facts of all images of a sub-group, needed before the first is drawn.

    Attributes
    ----------
    read : callable
        Reads the image of a number.
    entries : list of Entry
        In stored order.
    shape : (int, int, int)
        Planes, rows and columns of each image.
    windows : dict
        Values shown black and white by image type, for images without a window of their own.
    has_overlays : bool
        Whether an image has ROIs or texts.
    """

    read: Callable[[int], ismrmrd.Image]
    entries: list[Entry]
    shape: tuple[int, int, int]
    windows: dict[int, tuple[float, float]]
    has_overlays: bool


@dataclass(frozen=True)
class Picture:
    """One image of an MRD file, ready to be drawn.

    Attributes
    ----------
    planes : numpy.ndarray
        Values [z, y, x] float32, or colours [z, y, x, 3] uint8.
    window : (float, float)
        Values shown black and white.
    lut : str
        LUTFileName, may be empty.
    rois, texts : tuple
        Visible ones, as `overlays.parse_roi` and `overlays.parse_text` return them.
    head : ismrmrd.ImageHeader, optional
        Header of the image.
    """

    planes: NDArray[Any]
    window: tuple[float, float]
    lut: str = ""
    rois: tuple = ()
    texts: tuple = ()
    head: ismrmrd.ImageHeader | None = None


def survey(reader: MrdReader, name: str) -> Series:
    """Look at all images of a sub-group, one at a time.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or its images are too large or have no pixels.
    """
    count, *axes = reader.image_shape(name)
    if max(axes[-2:], default=0) > LARGEST_PX:
        raise ValueError(f"images of {axes[-1]} x {axes[-2]} pixels, expected at most {LARGEST_PX} a side")
    shape = (0, 0, 0)
    entries: list[Entry] = []
    samples: dict[int, list[NDArray[Any]]] = {}
    has_overlays = False
    for index, image in enumerate(reader.images(name)):
        head, meta = image.getHead(), image.meta
        frame = (head.average, head.contrast, head.phase, head.repetition, head.set, head.image_type)
        window = window_from_meta(meta)
        entry = Entry(index, frame, head.slice, head.acquisition_time_stamp, head.image_series_index, window)
        entries.append(entry)
        has_overlays = has_overlays or any(str(key).startswith(("ROI_", "Text_")) for key in meta)
        planes = to_planes(image.data, head.image_type)
        shape = (planes.shape[0], planes.shape[1], planes.shape[2])
        if planes.ndim == 3 and entry.window is None:
            step = max(1, count * planes.size // WINDOW_SAMPLES) | 1  # odd: not the same columns in every row
            samples.setdefault(head.image_type, []).append(planes.ravel()[::step].copy())
    windows = {image_type: window_from_values(values) for image_type, values in samples.items()}
    return Series(lambda index: reader.image(name, index), entries, shape, windows, has_overlays)


def read_picture(series: Series, entry: Entry) -> Picture:
    """Read an image and its overlays; an attribute that cannot be used is left out with a log line."""
    image = series.read(entry.index)
    meta = image.meta
    return Picture(
        planes=to_planes(image.data, image.image_type),
        window=entry.window or series.windows.get(image.image_type, (0.0, 1.0)),
        lut=first_value(meta, "LUTFileName"),
        rois=tuple(roi for roi in overlays(meta, "ROI_", parse_roi) if roi[5] and len(roi[0])),
        texts=tuple(text for text in overlays(meta, "Text_", parse_text) if text[3]),
        head=image.getHead(),
    )


def to_planes(data: NDArray[Any], image_type: int) -> NDArray[Any]:
    """Reduce pixels [channels, z, y, x] to values [z, y, x] float32 or colours [z, y, x, 3] uint8.

    Complex data become magnitudes; several channels that are no colours become their root sum of squares.
    """
    if data.ndim != 4 or not data.size:
        raise ValueError(f"pixels of shape {data.shape}, expected [channels, z, y, x]")
    if image_type == ismrmrd.IMTYPE_RGB and data.shape[0] == 3 and not np.iscomplexobj(data):
        return np.moveaxis(np.nan_to_num(data).clip(0, 255), 0, -1).astype(np.uint8)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: white
        if data.shape[0] > 1 or np.iscomplexobj(data):
            data = np.linalg.norm(data.astype(np.promote_types(data.dtype, np.float64)), axis=0, keepdims=True)
        return data[0].astype(np.float32)


def overlays(meta: dict, prefix: str, parse: Callable[[list[str]], tuple]) -> Iterator[tuple]:
    """Yield what `parse` makes of the attributes whose names start with `prefix`."""
    for key, value in meta.items():
        if str(key).startswith(prefix):
            try:
                yield parse([value] if isinstance(value, str) else list(value or ()))
            except ValueError as error:
                logger.warning("Attribute %s is not drawn: %s", key, error)


def first_value(meta: dict, key: str) -> str:
    """Return an attribute, the first of its values if it has several, empty if there is none."""
    value = meta.get(key) or ""
    return str(value if isinstance(value, str) else value[0])


def window_from_meta(meta: dict) -> tuple[float, float] | None:
    """Values shown black and white from WindowCenter and WindowWidth; None if there are none that can be used.

    A window from 0 over 2^n values, n at least 8, says how many bits the pixels have, not which of them the image uses
    (`mrdhelper.set_window`, and modules of other servers): the same as none.
    """
    texts = first_value(meta, "WindowCenter"), first_value(meta, "WindowWidth")
    if not all(texts):
        return None
    try:
        centre, width = map(float, texts)
    except ValueError:
        centre, width = math.nan, math.nan
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        logger.warning("WindowCenter %s and WindowWidth %s are no window: two numbers, width > 0, expected", *texts)
        return None
    if centre == width / 2 and width >= 2**8 and math.log2(width).is_integer():
        return None
    return centre - width / 2, centre + width / 2


def window_from_values(images: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Values shown black and white, from the values of each image of a series.

    Magnitudes, whose values are hardly ever negative, are white at what few pixels of the object reach: how much
    background there is around it does not count. Nor do the brightest images of a series of more than ten, for the
    first ones, before the steady state, may be several times as bright as all others. Other images have percentiles
    of all pixels.
    """
    finite = [values[np.isfinite(values)].astype(np.float64) for values in images]
    finite = [values for values in finite if values.size]
    if not finite:
        return 0.0, 1.0
    values = np.concatenate(finite)
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if low >= 0:
        high = float(np.percentile([bright_value(each) for each in finite], ORDINARY, method="higher"))
    if low >= high:  # few pixels differ from a uniform background
        low, high = float(values.min()), float(values.max())
    if low == high:  # all pixels are equal: zero is the other end
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def bright_value(values: NDArray[np.float64]) -> float:
    """Value of a magnitude image that few pixels of the object exceed; 0 if there is no object."""
    part, percentile = BACKGROUND
    pixels = values[values > part * np.percentile(values, percentile)]
    return float(np.percentile(pixels, BRIGHT)) if pixels.size else 0.0
