"""DICOM folders to MRD files: ``python dicom2mrd.py -o out.h5 folder``.

Every frame becomes one MRD image, every DICOM series an image series of its own, numbered from 1 in the order of the
series numbers. Pixels keep their stored values; RescaleSlope and RescaleIntercept are meta attributes. All
other DICOM attributes are in the meta attribute DicomJson, so that ``mrd2dicom.py`` can give them back.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from tqdm import tqdm

import mrdhelper
from dicomio.files import (
    PYDICOM_ERRORS,
    DicomFileError,
    file_error,
    find_dicom_files,
    quiet_pydicom,
    read_dicom,
)
from dicomio.flow import velocity_encoding
from dicomio.frames import Frame, frame_type, mrd_geometry
from dicomio.header import acquisition_ticks, acquisition_time, clean_text, echo_time, mrd_header, trigger_time
from dicomio.packing import FRAME_KEY, HASH_KEY, JSON_KEY, pack_frames, pixel_hash
from dicomio.pixels import decode_frames
from dicomio.series import ObjectEntry, Series, survey
from mrdio.h5groups import MrdFileError, open_mrd
from mrdio.mrdfile import MrdWriter

logger = logging.getLogger(__name__)

UINT16_MAXIMUM = 65535
UINT32_MAXIMUM = 2**32 - 1


# --------------------------------------------------------------------------------------------------- making images
def images_of(entry: ObjectEntry, series_index: int, first_index: int) -> Iterator[ismrmrd.Image]:
    """Yield the MRD images of one file.

    Parameters
    ----------
    entry
        The file.
    series_index
        Number of the image series.
    first_index
        Number of the file's first frame in the series, counted from 1.

    Raises
    ------
    DicomFileError
        When the file, or its pixels, cannot be read.
    """
    dataset = read_dicom(entry.path)
    attributes = pack_frames(dataset, len(entry.frames))
    for number, (pixels, exact) in enumerate(decode_frames(dataset, len(entry.frames))):
        frame = Frame(dataset, number)
        meta = frame_meta(frame)
        meta[JSON_KEY] = next(attributes)
        if exact:
            meta[HASH_KEY] = pixel_hash(pixels)
        elif number == 0:
            logger.warning("%s: colours are reduced to 8 bits", entry.path)
        kind = ismrmrd.IMTYPE_RGB if pixels.shape[0] == 3 else entry.frames[number].kind
        head = image_head(frame, entry.frames[number].counters)
        image = mrdhelper.build_image(
            pixels[:, np.newaxis],
            head,
            None,
            index=min(first_index + number, UINT16_MAXIMUM),
            series=series_index,
            image_type=kind,
            field_of_view=tuple(head.field_of_view),
            meta=meta,
        )
        if "WindowCenter" not in meta:  # the builder's window is for images that a module scaled
            for key in ("WindowCenter", "WindowWidth"):
                image.meta.pop(key, None)
        yield image


def image_head(frame: Frame, counters: dict[str, int]) -> ismrmrd.ImageHeader:
    """Geometry, counters and time stamps of a frame."""
    head = ismrmrd.ImageHeader()
    geometry = mrd_geometry(frame)
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "field_of_view"):
        setattr(head, name, getattr(geometry, name))
    for name, value in counters.items():
        setattr(head, name, min(value, UINT16_MAXIMUM))
    head.acquisition_time_stamp = acquisition_ticks(frame)
    trigger = max(trigger_time(frame) or 0.0, 0.0) / 1e3 / mrdhelper.SECONDS_PER_TICK
    head.physiology_time_stamp = (min(round(trigger), UINT32_MAXIMUM), 0, 0)
    return head


def frame_meta(frame: Frame) -> dict[str, Any]:
    """Meta attributes of a frame that modules and people may want to read; absent ones are left out.

    WindowCenter and WindowWidth are in terms of the image's pixels, not of the rescaled values as in DICOM.
    """
    meta: dict[str, Any] = {"ImageProcessingHistory": "DICOM", FRAME_KEY: str(frame.index + 1)}
    for keyword in ("SeriesNumber", "InstanceNumber", "SeriesDescription", "ProtocolName", "PhotometricInterpretation"):
        if text := clean_text(frame.text(keyword)):
            meta[keyword if keyword != "SeriesDescription" else "SequenceDescription"] = text
    if types := [clean_text(value) for value in frame_type(frame)]:
        meta["ImageType"] = types
    slope, intercept = frame.number("RescaleSlope"), frame.number("RescaleIntercept")
    if slope == 0:
        slope = 1.0  # it would make all pixels the same, and nothing could undo it
    if slope is not None and intercept is not None:
        meta["RescaleSlope"], meta["RescaleIntercept"] = repr(slope), repr(intercept)
    centre, width = frame.number("WindowCenter"), frame.number("WindowWidth")
    if centre is not None and width is not None:
        slope = slope or 1.0
        meta["WindowCenter"] = repr((centre - (intercept or 0.0)) / slope)
        meta["WindowWidth"] = repr(width / abs(slope))
    if time := clean_text(acquisition_time(frame)):
        meta["AcquisitionTime"] = time
    for key, value in (("TriggerTime", trigger_time(frame)), ("EchoTime", echo_time(frame))):
        if value is not None:
            meta[key] = repr(value)
    if (flow := velocity_encoding(frame)) is not None:
        meta["Venc"] = repr(flow.venc)
        if flow.direction:
            meta["VencDirection"] = flow.direction[0] if len(flow.direction) == 1 else list(flow.direction)
    return meta


# ----------------------------------------------------------------------------------------------------- the command
def convert(folder: Path, output: Path, group: str = "dataset") -> int:
    """Convert all DICOM images below a folder.

    Parameters
    ----------
    folder
        Where the DICOM files are.
    output
        MRD file; made, or added to when it has no such group.
    group
        Name of the group in it.

    Returns
    -------
    Number of images written.

    Raises
    ------
    DicomFileError
        When there is no DICOM image that can be read; then nothing is written.
    OSError
        When the output cannot be written, or has the group already.
    """
    if not folder.is_dir():
        raise DicomFileError(f"there is no folder {folder}")
    if not group or group.strip("/.") != group:
        raise MrdFileError(f"'{group}' is no name for a group")
    if output.is_file() and h5py.is_hdf5(output):
        with open_mrd(output, group) as file:
            if group in file:
                raise MrdFileError(f"{output} has a group '{group}' already: name another one with -g, or another file")
    with quiet_pydicom():
        return _convert(survey(find_dicom_files(folder)), folder, output, group)


def _convert(series: list[Series], folder: Path, output: Path, group: str) -> int:
    total = sum(len(entry.frames) for one in series for entry in one.objects)
    header = mrd_header([one.facts for one in series]) if series else None
    writer, written = None, 0
    try:
        for image in tqdm(_all_images(series), "converting image", total, disable=None):
            if writer is None:
                writer = MrdWriter(output, group)
                writer.write_header(header)
            writer.write(image)
            written += 1
    finally:
        if writer is not None:
            writer.close()
    if not written:
        raise DicomFileError(f"{folder} holds no DICOM image that can be read")
    return written


def _all_images(series: list[Series]) -> Iterator[ismrmrd.Image]:
    for series_index, one in enumerate(series, start=1):
        index = 1
        for entry in one.objects:
            try:
                for image in images_of(entry, series_index, index):
                    yield image
                    index += 1
            except PYDICOM_ERRORS as error:
                logger.warning("skipped: %s", file_error(entry.path, error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 if nothing was converted."""
    parser = argparse.ArgumentParser(description="Converts a folder of DICOM images into an MRD file.")
    parser.add_argument("folder", type=Path, help="folder with DICOM files, also in sub-folders")
    parser.add_argument("-o", "--outFile", type=Path, help="output file (default: the folder's name with .h5)")
    parser.add_argument("-g", "--outGroup", default="dataset", help="group in the output file (default: dataset)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    output = args.outFile or Path(f"{args.folder.resolve().name}.h5")
    try:
        written = convert(args.folder, output, args.outGroup)
    except (DicomFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written} images written to {output}, group {args.outGroup}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
