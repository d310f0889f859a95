"""DICOM files: finding them by their content, reading and writing them."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

logger = logging.getLogger(__name__)

# A fixed number of our own (UUID-derived, PS3.5 B.2), so that files say which program wrote them.
IMPLEMENTATION_CLASS_UID = UID("2.25.297945047532927965731116448647015611440")
IMPLEMENTATION_VERSION = "MRD_RECON_0_1"

# What pydicom and the decoders behind it are known to raise on broken or hostile data.
PYDICOM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # also NotImplementedError and RecursionError
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    pydicom.errors.InvalidDicomError,
    pydicom.errors.BytesLengthException,
)

PREAMBLE = 128
# A deflated object is inflated in memory as a whole, to some 1000 times its size at most, and copied twice. This holds
# 4000 frames of 256 x 256 pixels; objects of that size are not deflated by scanners.
LARGEST_INFLATED = 512 << 20
INFLATED_AT_ONCE = 1 << 20
DICOM_SUFFIXES = (".dcm", ".ima")
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class DicomFileError(ValueError):
    """A file that should be DICOM cannot be read; the message says why."""


def file_error(path: Path, error: Exception) -> str:
    """Message of an error, with the name of the file that it is about."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


_is_quiet = contextvars.ContextVar("_is_quiet", default=False)


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings about odd values away: what matters is checked where the value is used.

    Both switches clear caches; inside another call it costs nothing, as where thousands of frames are converted.
    """
    if _is_quiet.get():
        yield
        return
    pydicom_logger = logging.getLogger("pydicom")
    level = pydicom_logger.level
    pydicom_logger.setLevel(logging.CRITICAL + 1)
    token = _is_quiet.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _is_quiet.reset(token)
        pydicom_logger.setLevel(level)


def find_dicom_files(folder: Path) -> list[Path]:
    """DICOM files of a folder and its sub-folders, sorted by path.

    Files count by their content: they have DICOM's mark after the preamble. Files named .dcm or .ima count in any case,
    so that a broken one is not passed over in silence.
    """
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            file.seek(PREAMBLE)
            return file.read(4) == b"DICM"
    except OSError as error:
        logger.warning("%s cannot be opened (%s) and is skipped", path, error)
        return False


def read_dicom(path: Path, *, with_pixels: bool = True) -> Dataset:
    """Read one DICOM file, also one without preamble and file meta information.

    Parameters
    ----------
    path
        The file.
    with_pixels
        Whether the pixel data is wanted.

    Returns
    -------
    The dataset; its file meta information names the transfer syntax. Binary words are as they are in the file.

    Raises
    ------
    DicomFileError
        When it cannot be read, or is no DICOM dataset.
    """
    try:
        with quiet_pydicom(), path.open("rb") as file:
            _check_inflated_size(file)
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not with_pixels)
            _complete_file_meta(dataset)
            is_named = "SOPClassUID" in dataset or dataset.file_meta.get("MediaStorageSOPClassUID")
            if not is_named and "Rows" not in dataset:
                raise DicomFileError("it holds no DICOM dataset")
    except PYDICOM_ERRORS as error:
        raise DicomFileError(f"{path} is no readable DICOM file: {error}") from error
    return dataset


def _check_inflated_size(file: BinaryIO) -> None:
    """Raise DicomFileError where a file holds more than LARGEST_INFLATED; pydicom inflates without a limit."""
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflater.eof and (data := inflater.unconsumed_tail or file.read(INFLATED_AT_ONCE)):
            total += len(inflater.decompress(data, INFLATED_AT_ONCE))
            if total > LARGEST_INFLATED:
                raise DicomFileError(f"inflated it has more than {LARGEST_INFLATED >> 20} MiB")
    file.seek(0)


def _complete_file_meta(dataset: Dataset) -> None:
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def is_compressed(dataset: Dataset) -> bool:
    """True if the pixel data is encapsulated."""
    native = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    return dataset.file_meta.TransferSyntaxUID not in native


def write_dicom(dataset: Dataset, path: Path) -> Path:
    """Write a Part 10 file, Explicit VR Little Endian, that does not exist yet.

    Parameters
    ----------
    dataset
        With SOP class and instance UID; its file meta information is made here.
    path
        Where to write; an existing file is kept, the new one then gets a number behind its name.

    Returns
    -------
    Path of the file.
    """
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    further = 1
    while True:
        target = path if further == 1 else path.with_stem(f"{path.stem}_{further}")
        try:
            file = target.open("xb")
        except FileExistsError:
            further += 1
            continue
        try:
            with file, quiet_pydicom():
                pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        except PYDICOM_ERRORS:
            target.unlink()  # half a file is worse than none
            raise
        return target
