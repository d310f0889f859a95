"""Pixels of DICOM objects to MRD's types and back.

Stored values are not rescaled: slope and intercept are kept beside them, so that the way back is exact.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels, pack_bits
from pydicom.uid import RLELossless
from pydicom.valuerep import format_number_as_ds

from dicomio.files import PYDICOM_ERRORS, DicomFileError, is_compressed, quiet_pydicom

logger = logging.getLogger(__name__)

UINT16_MAXIMUM = 65535
# A few bytes of compressed pixels may stand for any number of them. 8192 x 8192 pixels of 16 bits are beyond all MRI,
# and take 1 GiB on the way to an MRD file; 16 GiB are the most frames that MRD numbers, of 256 x 256 pixels of 32 bits.
LARGEST_FRAME, LARGEST_OBJECT = 128 << 20, 16 << 30
LARGEST_RLE_FRAME = 16 << 20  # of which pydicom makes up to 64 times as much, before it looks at the matrix
LARGEST = 1e300  # values beyond are clipped, so that differences stay finite
_COLOUR_KEYWORDS = [
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue", "Alpha")
    for part in ("Data", "Descriptor")
]
# Attributes that describe the pixels' format; an object with float pixels lacks most of them.
_FORMAT_KEYWORDS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")


# --------------------------------------------------------------------------------------------------- DICOM to MRD
def decode_frames(dataset: Dataset, frames: int) -> Iterator[tuple[NDArray[Any], bool]]:
    """Yield the frames of an object, of which it says that it has `frames`.

    Yields
    ------
    Pixels [channel, row, column] of one of MRD's types, and whether they are exactly the object's. Integers are the
    stored values, in the smallest of MRD's types that holds them. Colours, also those of palettes and of luminance and
    chrominance, are red, green and blue from 0 to 255; deeper colours are rounded to that, which is not exact.

    Raises
    ------
    DicomFileError
        When there are no pixels, they are broken, or the decoder for their compression is not installed.
    """
    if is_compressed(dataset):
        _check_decoder(dataset)
        _check_decoded_size(dataset, frames)
    is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    try:
        with quiet_pydicom():
            if is_compressed(dataset):
                _check_encoded_frames(dataset, frames)
            decoded = 0
            for frame in itertools.islice(iter_pixels(dataset), frames):
                decoded += 1
                if is_palette:
                    yield _to_rgb(apply_color_lut(frame, dataset), _palette_bits(dataset))
                elif frame.ndim == 3:
                    yield _to_rgb(frame, int(dataset.BitsStored))
                else:
                    yield _widen(frame)[np.newaxis], True
            if decoded < frames:
                raise DicomFileError(f"its pixels end after {decoded} of {frames} frames")
    except PYDICOM_ERRORS as error:
        raise DicomFileError(f"its pixels cannot be read: {error}") from error


def _check_decoder(dataset: Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DicomFileError(f"its transfer syntax '{syntax.name}' holds no pixels that can be read here") from error
    if not decoder.is_available:
        needed = " or ".join(decoder.missing_dependencies)
        raise DicomFileError(f"its compression '{syntax.name}' needs a decoder that is not installed: {needed}")


def _check_decoded_size(dataset: Dataset, frames: int) -> None:
    """Raise DicomFileError where a compressed object says that it is larger than any image needs to be."""
    rows, columns, samples = (int(dataset.get(name) or 0) for name in ("Rows", "Columns", "SamplesPerPixel"))
    size = rows * columns * samples * math.ceil(int(dataset.get("BitsAllocated") or 0) / 8)
    if size > LARGEST_FRAME or size * frames > LARGEST_OBJECT:
        raise DicomFileError(
            f"it says that it has {frames} frames of {rows} x {columns} pixels, {size * frames >> 20} MiB: expected at "
            f"most {LARGEST_FRAME >> 20} MiB for a compressed frame and {LARGEST_OBJECT >> 20} MiB for all"
        )


def _check_encoded_frames(dataset: Dataset, frames: int) -> None:
    """Raise DicomFileError where an encoded frame holds more than the object says: decoders go by the frame."""
    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    is_rle = dataset.file_meta.TransferSyntaxUID == RLELossless
    offsets = tables if all(tables) else None
    for data in generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=offsets):
        if is_rle and len(data) > LARGEST_RLE_FRAME:
            raise DicomFileError(f"an RLE frame has {len(data)} bytes, expected at most {LARGEST_RLE_FRAME}")
        if not is_rle:
            _check_picture(data, int(dataset.Columns), int(dataset.Rows))


def _check_picture(data: bytes, columns: int, rows: int) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "JPEG2000")) as picture:
            size = picture.size
    except UnidentifiedImageError:  # of another kind, such as JPEG-LS, or broken
        return
    except Image.DecompressionBombError as error:
        raise DicomFileError(f"a compressed frame is too large: {error}") from error
    if math.prod(size) > rows * columns:
        raise DicomFileError(f"a compressed frame has {size[1]} x {size[0]} pixels, expected {rows} x {columns}")


def _palette_bits(dataset: Dataset) -> int:
    return int(dataset.RedPaletteColorLookupTableDescriptor[2])


def _to_rgb(frame: NDArray[Any], bits: int) -> tuple[NDArray[np.uint16], bool]:
    """Colours [row, column, colour] of `bits` bits as [colour, row, column] from 0 to 255."""
    if frame.shape[-1] not in (3, 4):
        raise ValueError(f"pixels with {frame.shape[-1]} samples, expected 1 or 3")
    colours = np.moveaxis(frame[..., :3], -1, 0)
    if bits > 8:
        colours = np.rint(colours * (255 / (2**bits - 1)))
    return colours.astype(np.uint16), bits <= 8


def _widen(frame: NDArray[Any]) -> NDArray[Any]:
    """Pixels in the smallest of MRD's types that holds them all.

    Signed integers of 32 bits become double precision, which is exact: ismrmrd 1.15 cannot make an int32 image.
    """
    types = (np.uint16, np.int16, np.uint32, np.float32, np.float64)
    exact = next(kind for kind in types if np.can_cast(frame.dtype, kind))
    return frame.astype(exact, copy=False)


# --------------------------------------------------------------------------------------------------- MRD to DICOM
@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Pixels as DICOM stores them.

    Attributes
    ----------
    values
        uint8, int16 or uint16 [frame, row, column] or [frame, row, column, colour].
    bits_stored
        Bits that the values may use.
    slope, intercept
        value = stored * slope + intercept.
    """

    values: NDArray[Any]
    bits_stored: int
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class ValueRange:
    """Smallest and largest finite value of pixels, and whether all are whole numbers."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, pixels: NDArray[Any]) -> ValueRange:
        """Range of an array of any shape; 0 to 0 when nothing in it is finite."""
        if np.issubdtype(pixels.dtype, np.integer):
            return cls(float(pixels.min()), float(pixels.max()), True)
        is_finite = np.isfinite(pixels)
        finite = pixels[is_finite]
        whole = bool(is_finite.all() and np.all(pixels == np.rint(pixels)))
        return cls(float(finite.min()), float(finite.max()), whole) if finite.size else cls(0.0, 0.0, False)

    def __or__(self, other: ValueRange) -> ValueRange:
        """Range of both together."""
        return ValueRange(min(self.low, other.low), max(self.high, other.high), self.whole and other.whole)


def store(pixels: NDArray[Any], values: ValueRange | None = None, source: Dataset | None = None) -> StoredPixels:
    """Choose how DICOM is to store pixels.

    Whole numbers that fit 16 bits are stored as they are: as the source's pixels were if they fit there, else unsigned,
    else signed. Everything else is scaled to 16 bits, and slope and intercept give the values back to half a step.

    Parameters
    ----------
    pixels
        Real values [frame, row, column], or colours from 0 to 255 [frame, row, column, 3].
    values
        Range of the whole series, so that all its images are scaled alike; by default the pixels' own.
    source
        The object that the pixels were made from.
    """
    if pixels.ndim == 4:
        return StoredPixels(np.clip(np.rint(np.nan_to_num(pixels)), 0, 255).astype(np.uint8), 8)
    values = values or ValueRange.of(pixels)
    low, high = max(values.low, -LARGEST), min(values.high, LARGEST)
    for signed, bits in (*_source_formats(source), (False, 16), (True, 16)):
        if values.whole and -(2 ** (bits - 1)) * signed <= low and high < 2 ** (bits - signed):
            return StoredPixels(pixels.astype(np.int16 if signed else np.uint16), bits)
    slope = _as_stored_number((high - low) / UINT16_MAXIMUM) or 1.0
    intercept = _as_stored_number(low)
    if not np.all(np.isfinite(pixels)):
        logger.warning("pixels that are no finite numbers become the smallest value")
    finite = np.clip(np.nan_to_num(pixels.astype(np.float64), nan=low), low, high)
    steps = (finite - intercept) / slope
    return StoredPixels(np.clip(np.rint(steps), 0, UINT16_MAXIMUM).astype(np.uint16), 16, slope, intercept)


def _source_formats(source: Dataset | None) -> list[tuple[bool, int]]:
    if source is None or source.get("BitsAllocated") != 16 or "BitsStored" not in source:
        return []
    bits = int(source.BitsStored)
    return [(source.get("PixelRepresentation") == 1, bits)] if 1 <= bits <= 16 else []


def _as_stored_number(value: float) -> float:
    """Nearest number that DICOM's decimal string of 16 characters can hold."""
    return float(format_number_as_ds(float(value)))


def put_stored(dataset: Dataset, stored: StoredPixels) -> None:
    """Put new pixels and the description of their format into a dataset; the caller sets the rescaling."""
    forget_pixels(dataset)
    is_colour = stored.values.ndim == 4
    dataset.SamplesPerPixel = 3 if is_colour else 1
    if is_colour:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = "RGB"
    elif dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.values.shape[1:3]
    dataset.BitsAllocated = 8 * stored.values.dtype.itemsize
    dataset.BitsStored = stored.bits_stored
    dataset.HighBit = stored.bits_stored - 1
    dataset.PixelRepresentation = int(stored.values.dtype.kind == "i")
    _set_pixel_bytes(dataset, stored.values)


def put_unchanged(dataset: Dataset, pixels: NDArray[Any]) -> None:
    """Put the pixels that the dataset always had back, in the format that it describes.

    Parameters
    ----------
    dataset
        With its format.
    pixels
        [frame, row, column], or colours [frame, row, column, 3].

    Raises
    ------
    ValueError
        When the description is missing, or does not fit the pixels.
    """
    _check_description(dataset, pixels)
    bits = int(dataset.BitsAllocated)
    is_eight_bits = (bits, dataset.get("BitsStored"), dataset.get("SamplesPerPixel")) == (8, 8, 3)
    if pixels.ndim == 4 and not is_eight_bits:
        put_stored(dataset, StoredPixels(pixels.astype(np.uint8), 8))
    elif pixels.ndim == 4:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = "RGB"
        _set_pixel_bytes(dataset, pixels.astype(np.uint8))
    elif bits == 1:
        dataset.PixelData = pack_bits(pixels.astype(np.uint8).ravel())
        dataset["PixelData"].VR = "OB"
    elif "BitsStored" not in dataset and bits in (32, 64):
        name = "FloatPixelData" if bits == 32 else "DoubleFloatPixelData"
        setattr(dataset, name, pixels.astype(f"<f{bits // 8}").tobytes())
    elif bits in (8, 16, 32):
        values = pixels.astype(("<i" if dataset.PixelRepresentation == 1 else "<u") + str(bits // 8))
        if not np.array_equal(values, pixels):
            raise ValueError(f"the pixels do not fit the {bits} bits that the attributes say")
        _set_pixel_bytes(dataset, values)
    else:
        raise ValueError(f"BitsAllocated is {bits}, expected 1, 8, 16 or 32")


def _check_description(dataset: Dataset, pixels: NDArray[Any]) -> None:
    """Raise ValueError where attributes of the format contradict pixels [frame, row, column(, colour)]."""
    is_colour = pixels.ndim == 4
    if (dataset.Rows, dataset.Columns) != pixels.shape[1:3]:
        raise ValueError(f"the attributes say {dataset.Rows} x {dataset.Columns} pixels, not {pixels.shape[1:3]}")
    if is_colour:
        return  # where the rest does not fit, as for palettes, it is written anew
    if dataset.SamplesPerPixel != 1:
        raise ValueError(f"SamplesPerPixel is {dataset.SamplesPerPixel} for grey pixels, expected 1")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"PhotometricInterpretation is {dataset.PhotometricInterpretation} for grey pixels")
    bits = dataset.get("BitsStored")
    if bits is not None and not 1 <= int(bits) <= int(dataset.BitsAllocated):
        raise ValueError(f"BitsStored is {bits} of {dataset.BitsAllocated} bits allocated")


def _set_pixel_bytes(dataset: Dataset, values: NDArray[Any]) -> None:
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"


def forget_pixels(dataset: Dataset) -> None:
    """Remove attributes that describe old pixels and do not hold for new ones."""
    for keyword in (
        *_FORMAT_KEYWORDS,
        *_COLOUR_KEYWORDS,
        "PlanarConfiguration",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "SmallestPixelValueInSeries",
        "LargestPixelValueInSeries",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "FloatPixelPaddingValue",
        "DoubleFloatPixelPaddingValue",
        "IconImageSequence",
        "ModalityLUTSequence",
        "VOILUTSequence",
        "PaletteColorLookupTableUID",
    ):
        if keyword in dataset:
            delattr(dataset, keyword)
