"""Report of a scan: a picture with a table of names and values, and the same values as meta attributes.

Send raw data or images. One image comes back. Its meta attributes hold each value under its name, for programs that go
through many scans. Copy this file to report something else: `header_facts` and `Statistics` fill one dictionary.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from connection import Connection
from recon.configuration import parameter
from recon.moduleparameters import read_parameters

logger = logging.getLogger(__name__)

WHITE = 255
MARGIN = 0.05  # of the picture's width
LINE_SPACING = 1.5  # of the font's size
LARGEST_FONT = 22  # [pixels]
SMALLEST_FONT = 8
MAX_VALUE_LENGTH = 200  # characters of a value, which may come from the header


@dataclass(frozen=True)
class Parameters:
    """Parameters that a client may set."""

    reportSize: int = parameter(512, "Columns of the report's picture.", "pixels", minimum=256, maximum=2048)
    sendOriginal: bool = parameter(False, "Send the incoming images back as well.")


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Take all data of a session, and send a report of them.

    Parameters
    ----------
    connection
        Yields readouts and images, sends the report.
    config
        The config name, or the JSON object with the `Parameters`.
    metadata
        The MRD header; without one, the report holds facts of the data only.
    """
    parameters = read_parameters(Parameters, config)
    statistics = Statistics()
    for item in connection:
        statistics.add(item)
        if parameters.sendOriginal and isinstance(item, ismrmrd.Image):
            connection.send_image(item)
    values = header_facts(metadata) | statistics.values()
    if statistics.first is None:
        text = "there were no readouts and no images: the report is about the header"
        connection.warn(text)
    connection.send_image(build_report(values, statistics, parameters.reportSize))


# -------------------------------------------------------------------------------------------------------- the values
def header_facts(metadata: Any) -> dict[str, str]:
    """Facts of the scan from the MRD header; those that it does not hold are left out.

    Parameters
    ----------
    metadata
        The MRD header, or the text that came instead.

    Returns
    -------
    Names, which serve as names of meta attributes, and values.
    """
    system = functools.partial(_get, metadata, "acquisitionSystemInformation")
    encoding = functools.partial(_get, metadata, "encoding", 0)
    sequence = functools.partial(_get, metadata, "sequenceParameters")
    vendor = " ".join(str(part) for part in (system("systemVendor"), system("systemModel")) if part)
    acceleration = functools.partial(encoding, "parallelImaging", "accelerationFactor")
    facts = {
        "protocolName": _get(metadata, "measurementInformation", "protocolName"),
        "studyDate": _get(metadata, "studyInformation", "studyDate"),
        "scanner": vendor,
        "fieldStrength": _number(system("systemFieldStrength_T"), "T"),
        "receiverChannels": system("receiverChannels"),
        "trajectory": getattr(encoding("trajectory"), "value", encoding("trajectory")),
        "fieldOfView": _triple(encoding("reconSpace", "fieldOfView_mm"), "mm"),
        "matrixSize": _triple(encoding("reconSpace", "matrixSize")),
        "acceleration": " x ".join(
            str(factor) for step in (1, 2) if (factor := acceleration(f"kspace_encoding_step_{step}")) is not None
        ),
        "repetitionTime": _numbers(sequence("TR"), "ms"),
        "echoTime": _numbers(sequence("TE"), "ms"),
        "inversionTime": _numbers(sequence("TI"), "ms"),
        "flipAngle": _numbers(sequence("flipAngle_deg"), "deg"),
    }
    return {name: str(value)[:MAX_VALUE_LENGTH] for name, value in facts.items() if value not in (None, "")}


def _get(root: Any, *path: str | int) -> Any:
    """Follow attribute names and list indices; None where the way ends."""
    for step in path:
        if isinstance(step, int):
            root = root[step] if isinstance(root, Sequence) and not isinstance(root, str) and step < len(root) else None
        else:
            root = getattr(root, step, None)
    return root


def _number(value: Any, unit: str) -> str | None:
    return f"{value:.4g} {unit}" if isinstance(value, int | float) and math.isfinite(value) else None


def _numbers(values: Any, unit: str) -> str | None:
    known = [f"{value:.4g}" for value in values or [] if isinstance(value, int | float) and math.isfinite(value)]
    return f"{', '.join(known)} {unit}" if known else None


def _triple(space: Any, unit: str = "") -> str | None:
    sizes = [getattr(space, axis, None) for axis in "xyz"]
    if not all(isinstance(size, int | float) for size in sizes):
        return None
    return " x ".join(f"{size:.4g}" for size in sizes) + (f" {unit}" if unit else "")


class Statistics:
    """Counts of what came in, and statistics of the images' pixels (their magnitude, if complex).

    Attributes
    ----------
    first
        First readout or image, None before there was one.
    last_series : int
        Largest number of an image series, -1 before there was one.
    """

    def __init__(self) -> None:
        self.first: Any = None
        self.last_series = -1
        self._readouts = self._images = self._pixels = self._waveforms = 0
        self._series: set[int] = set()
        self._size = ""
        self._stamps: set[int] = set()
        self._range = (math.inf, -math.inf)
        self._mean = self._squares = 0.0

    def add(self, item: Any) -> None:
        """Take a readout, an image or a waveform; its data are not kept."""
        if isinstance(item, ismrmrd.Waveform):
            self._waveforms += 1
        if not isinstance(item, ismrmrd.Acquisition | ismrmrd.Image):
            return
        if self.first is None:
            self.first = item
        if item.acquisition_time_stamp:  # zero is a time that was not set
            stamps = {*self._stamps, item.acquisition_time_stamp}
            self._stamps = {min(stamps), max(stamps)}
        if isinstance(item, ismrmrd.Acquisition):
            self._readouts += 1
        else:
            self._images += 1
            self._size = self._size or " x ".join(str(size) for size in item.data.shape[:0:-1])
            self._series.add(item.image_series_index)
            self.last_series = max(self.last_series, item.image_series_index)
            self._add_pixels(item.data)

    def _add_pixels(self, data: NDArray[Any]) -> None:
        values = (np.abs(data) if np.iscomplexobj(data) else data).astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            return
        # Two parts' means and squares are joined as Chan, Golub and LeVeque do (The American Statistician 37, 1983),
        # which loses no digits where the mean is large against the deviation.
        mean, count = float(values.mean()), self._pixels + values.size
        shift = mean - self._mean
        self._squares += float(np.sum((values - mean) ** 2)) + shift**2 * self._pixels * values.size / count
        self._mean += shift * values.size / count
        self._pixels = count
        self._range = min(self._range[0], float(values.min())), max(self._range[1], float(values.max()))

    def values(self) -> dict[str, str]:
        """Names and values for the report."""
        counts = ((self._readouts, "readouts"), (self._images, "images"), (self._waveforms, "waveforms"))
        found = {"inputData": ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing"}
        if self._stamps:
            found["duration"] = f"{mrdhelper.ticks_to_seconds(max(self._stamps) - min(self._stamps)):.1f} s"
        if self._images:
            found["imageSeries"] = str(len(self._series))
            found["imageSize"] = self._size
        if self._pixels:
            found["pixelMinimum"], found["pixelMaximum"] = (f"{value:.6g}" for value in self._range)
            found["pixelMean"] = f"{self._mean:.6g}"
            found["pixelDeviation"] = f"{math.sqrt(self._squares / self._pixels):.6g}"
        return found


# ------------------------------------------------------------------------------------------------------- the picture
def build_report(values: Mapping[str, str], statistics: Statistics, size: int) -> ismrmrd.Image:
    """Build the report's image, with `values` in the picture and in the meta attributes."""
    head = ismrmrd.ImageHeader()
    # Directions of length zero are no geometry; the table's place brings the report near the other images.
    head.read_dir, head.phase_dir, head.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    if statistics.first is not None:
        for name in ("measurement_uid", "acquisition_time_stamp", "patient_table_position"):
            setattr(head, name, getattr(statistics.first, name))
    pixels = mrdhelper.scale_to_int16(draw_table(values, size), mrdhelper.DEFAULT_BITS_STORED, WHITE)
    return mrdhelper.build_image(
        pixels,
        head,
        None,
        index=1,
        series=(statistics.last_series + 1) % 2**16,
        field_of_view=(pixels.shape[1], pixels.shape[0], 1),
        meta={**values, "SequenceDescriptionAdditional": "Report"},
    )


def draw_table(values: Mapping[str, str], size: int) -> NDArray[np.uint8]:
    """Draw names and values, light on dark, one below the other.

    The font is as large as the picture allows. A value that is too long is cut, with an ellipsis; for more rows than
    fit, the picture becomes higher.

    Parameters
    ----------
    values
        Names and values.
    size
        Columns, and rows at least.

    Returns
    -------
    Grey values [row, column].
    """
    from pathlib import Path

    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    font_file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic and more
    margin = round(MARGIN * size)
    width = size - 2 * margin
    for font_size in range(min(LARGEST_FONT, max(size // 24, SMALLEST_FONT)), SMALLEST_FONT - 1, -1):
        font = ImageFont.truetype(font_file, font_size)
        gap = font_size
        names = max((font.getlength(name) for name in values), default=0)
        widest = names + gap + max((font.getlength(value) for value in values.values()), default=0)
        if widest <= width and len(values) * LINE_SPACING * font_size <= size - 2 * margin:
            break
    height = max(size, math.ceil(2 * margin + len(values) * LINE_SPACING * font_size))
    picture = Image.new("L", (size, height), 0)
    draw = ImageDraw.Draw(picture)
    for row, (name, value) in enumerate(values.items()):
        y = margin + row * LINE_SPACING * font_size
        draw.text((margin, y), name, fill=WHITE * 2 // 3, font=font)
        text = " ".join(value.split())
        draw.text((margin + names + gap, y), _fit(text, width - names - gap, font.getlength), fill=WHITE, font=font)
    return np.asarray(picture)


def _fit(text: str, width: float, length: Callable[[str], float]) -> str:
    """Cut a text so that it is at most `width` long."""
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1]
    return text + "…"
