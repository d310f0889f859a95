"""MRD images to DICOM files: ``python mrd2dicom.py images.h5``; to NIfTI with ``-o images.nii.gz``.

Images that came from DICOM (see ``dicom2mrd.py``) get all their attributes back, but for those that processing
changed. The frames of an enhanced or other multi-frame object become one such object again, the rest classic
single-frame objects. Images without a DICOM origin become MR images, colour images secondary captures; complex images
two series, magnitude and phase.

Every output series has a new series UID in the study of its source. It keeps the source's series number if its pixels
are the source's; otherwise, and for further series of the same source, 1000 is added until the number is free.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from tqdm import tqdm

from dicomio.files import PYDICOM_ERRORS, quiet_pydicom, write_dicom
from dicomio.frames import Frame, frame_count, is_enhanced, merge_frames
from dicomio.geometry import Plane
from dicomio.minimal import minimal_dataset, put_plane
from dicomio.parts import Part, parts_of
from dicomio.pixels import ValueRange, put_stored, put_unchanged, store
from dicomio.update import (
    drop_window,
    mark_derived,
    put_geometry,
    put_identity,
    put_rescale,
    put_window,
    summarise_frames,
)
from mrdio import nifti
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from mrdio.mrdheader import parse_header
from sending import niftiimages

logger = logging.getLogger(__name__)

SERIES_NUMBER_STEP = 1000
LARGEST_INTEGER_STRING = 2**31 - 1
GEOMETRY_UNKNOWN = "Position, orientation and pixel size are not known: standard values."


@dataclass
class SeriesPlan:
    """Facts of a whole output series, needed before its first file is written.

    Attributes
    ----------
    uid, frame_of_reference
        New UIDs: of the series, and for images that have no frame of reference.
    source
        Study and series UID of the source; empty when there was none.
    wanted_number, number
        Series number of the source (or of the image series), and the one that the series gets.
    values
        Range of the pixel values of all its images.
    altered
        Whether any pixels are others than the source's, or have none.
    instances
        Instance numbers of the sources; None for a source without one.
    """

    source: tuple[str, str]
    wanted_number: int
    values: ValueRange
    uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    frame_of_reference: str = field(default_factory=lambda: generate_uid(prefix=None))
    number: int = 0
    altered: bool = False
    instances: list[int | None] = field(default_factory=list)
    written: int = 0

    @property
    def keeps_instances(self) -> bool:
        """True if the sources' instance numbers can stay: each has one, and no two the same."""
        return None not in self.instances and len(set(self.instances)) == len(self.instances)


def plan_series(images: Iterable[ismrmrd.Image]) -> dict[tuple[int, str, str], SeriesPlan]:
    """Look at all images once, and decide on series numbers, instance numbers and scaling."""
    plans: dict[tuple[int, str, str], SeriesPlan] = {}
    sources: dict[tuple[int, str, str], set[str]] = {}  # a multi-frame object has one number for all its frames
    for image in images:
        for part in parts_of(image):
            frame = Frame(part.source or Dataset())
            if part.series not in plans:
                origin = frame.text("StudyInstanceUID"), frame.text("SeriesInstanceUID")
                number = _integer(frame.number("SeriesNumber")) or 0 if part.source else part.head.image_series_index
                plans[part.series] = SeriesPlan(origin, number, part.values())
            plan = plans[part.series]
            plan.values |= part.values()
            plan.altered |= part.source is None or part.changed
            if is_multiframe(part.source):
                known = sources.setdefault(part.series, set())
                if frame.text("SOPInstanceUID") in known:
                    continue
                known.add(frame.text("SOPInstanceUID"))
            plan.instances.append(_integer(frame.number("InstanceNumber")))
    _number_series(plans.values())
    return plans


def _number_series(plans: Iterable[SeriesPlan]) -> None:
    used: set[tuple[str, int]] = set()
    kept: set[tuple[str, str]] = set()
    for plan in sorted(plans, key=lambda plan: plan.altered):
        plan.number = plan.wanted_number
        if plan.altered or plan.source in kept:
            plan.number += SERIES_NUMBER_STEP if any(plan.source) else 0
            while (plan.source[0], plan.number) in used:
                plan.number += SERIES_NUMBER_STEP
        else:
            kept.add(plan.source)
        used.add((plan.source[0], plan.number))


def _integer(value: float | None) -> int | None:
    return None if value is None or abs(value) > LARGEST_INTEGER_STRING else int(value)


def is_multiframe(source: Dataset | None) -> TypeGuard[Dataset]:
    """True if a source is one frame of an object with several, or with functional groups."""
    return source is not None and (frame_count(source) > 1 or is_enhanced(source))


# --------------------------------------------------------------------------------------------------- making objects
def from_source(parts: list[Part], plan: SeriesPlan) -> Dataset:
    """DICOM object of the parts that were frames of one object, or of a single one."""
    changed = any(part.changed for part in parts)
    pixels = np.stack([part.pixels for part in parts])
    sources = [part.source for part in parts if part.source is not None]
    stored = store(pixels, plan.values, sources[0]) if changed else None
    is_colour = parts[0].kind == ismrmrd.IMTYPE_RGB
    for part, source in zip(parts, sources, strict=True):
        frame = Frame(source)
        if part.moved and part.plane is not None:
            put_geometry(frame, part.plane)
        if part.changed:
            mark_derived(frame, part.meta, part.kind)
        if is_colour:
            drop_window(frame)
        else:
            rescale = put_rescale(frame, part.meta, stored)
            shown = (plan.values.low, plan.values.high) if part.changed else None
            put_window(frame, part.meta, rescale, shown)
    dataset = sources[0]
    if not is_multiframe(dataset):
        if "NumberOfFrames" in dataset:
            dataset.NumberOfFrames = 1
    else:
        altered = [number for number, part in enumerate(parts) if part.changed]
        main = altered[0] if altered else 0
        dataset = merge_frames(sources, [part.source_frame for part in parts], main)
        if altered and dataset.get("SourceImageSequence"):
            dataset.SourceImageSequence[-1].ReferencedFrameNumber = [parts[n].source_frame + 1 for n in altered]
        if altered and is_enhanced(dataset):
            summarise_frames(dataset)
    if stored is None:
        put_unchanged(dataset, pixels)
    else:
        put_stored(dataset, stored)
        _put_pixel_limits(dataset, stored.values)
    return dataset


def _put_pixel_limits(dataset: Dataset, values: NDArray[Any]) -> None:
    if dataset.SamplesPerPixel == 1 and not is_enhanced(dataset):
        dataset.SmallestImagePixelValue = int(values.min())
        dataset.LargestImagePixelValue = int(values.max())


def from_header(part: Part, plan: SeriesPlan, header: Any, study_uid: str) -> Dataset:
    """DICOM object of an image that has no DICOM origin."""
    dataset = minimal_dataset(header, part.head, part.kind, study_uid)
    plane = part.plane
    if plane is None or not all(0 < extent < np.inf for extent in tuple(part.head.field_of_view)[:2]):
        dataset.ImageComments = GEOMETRY_UNKNOWN
        dataset.FrameOfReferenceUID = plan.frame_of_reference  # nothing may be aligned with it
    if plane is None:
        plane = Plane((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0), part.pixels.shape[:2])
    if "FrameOfReferenceUID" not in dataset:
        dataset.FrameOfReferenceUID = plan.frame_of_reference
    put_plane(dataset, plane)
    stored = store(part.pixels[np.newaxis], plan.values)
    put_stored(dataset, stored)
    if part.kind != ismrmrd.IMTYPE_RGB:
        frame = Frame(dataset)
        rescale = put_rescale(frame, part.meta, stored)
        put_window(frame, part.meta, rescale, (plan.values.low, plan.values.high))
        _put_pixel_limits(dataset, stored.values)
    return dataset


class DicomWriter:
    """Writes parts as DICOM files; frames of multi-frame objects are kept back until their image series is over.

    Parameters
    ----------
    folder
        Output folder; made if it is not there.
    header
        The MRD header, text or None when there is no valid one.
    plans
        Of `plan_series`.
    """

    def __init__(self, folder: Path, header: Any, plans: dict[tuple[int, str, str], SeriesPlan]) -> None:
        self.folder = folder
        self.written = 0
        self._header = header
        self._plans = plans
        self._study_uid = generate_uid(prefix=None)
        self._waiting: dict[tuple[Any, ...], list[Part]] = {}

    def add(self, part: Part) -> None:
        """Take one part."""
        if any(key[0] != part.head.image_series_index for key in self._waiting):
            self.flush()
        if is_multiframe(part.source):
            place = (*part.series, str(part.source.get("SOPInstanceUID")), part.pixels.shape)
            self._waiting.setdefault(place, []).append(part)
        else:
            self._write([part])

    def flush(self) -> None:
        """Write the multi-frame objects that were kept back."""
        waiting, self._waiting = self._waiting, {}
        for parts in waiting.values():
            self._write(sorted(parts, key=lambda part: part.source_frame))

    def _write(self, parts: list[Part]) -> None:
        plan = self._plans[parts[0].series]
        if parts[0].source is not None:
            try:
                with quiet_pydicom():
                    self._save(from_source(parts, plan), parts[0], plan)
            except PYDICOM_ERRORS as error:
                if isinstance(error, OSError):
                    raise
                logger.warning("attributes of an image cannot be written (%s): it gets only the most necessary", error)
            else:
                return
        for part in parts:
            with quiet_pydicom():
                self._save(from_header(part, plan, self._header, self._study_uid), part, plan)

    def _save(self, dataset: Dataset, part: Part, plan: SeriesPlan) -> None:
        own = _integer(Frame(dataset).number("InstanceNumber")) if plan.keeps_instances else None
        instance = plan.written + 1 if own is None else own
        put_identity(dataset, part.meta, plan.uid, plan.number, instance, part.label)
        name = re.sub(r"[^A-Za-z0-9]+", "_", str(dataset.get("SeriesDescription") or "")).strip("_")[:40]
        parts = (f"{abs(plan.number):04d}", name, f"{abs(instance):05d}")
        write_dicom(dataset, self.folder / ("_".join(part for part in parts if part) + ".dcm"))
        plan.written += 1
        self.written += 1


# ----------------------------------------------------------------------------------------------------- the command
def convert(path: Path, folder: Path, group: str | None = None) -> int:
    """Convert the images of one group of an MRD file.

    Parameters
    ----------
    path
        The MRD file.
    folder
        Output folder; made if it is not there. Files in it are kept.
    group
        Group of the file; may be left out when it has only one.

    Returns
    -------
    Number of DICOM files written.

    Raises
    ------
    MrdFileError
        When the file cannot be read, or holds no images with pixels.
    OSError
        When the output cannot be written.
    """
    with MrdReader(path, group) as reader:
        if not reader.image_count:
            raise MrdFileError(f"{path} has no images in group '{reader.group}'")
        header = None if reader.header_xml is None else parse_header(reader.header_xml)
        total = reader.image_count
        plans = plan_series(tqdm(_valid(reader), "reading image", total, disable=None))
        if not plans:
            raise MrdFileError(f"none of the {total} images of {path} in group '{reader.group}' has pixels")
        valid = 0
        folder.mkdir(parents=True, exist_ok=True)
        writer = DicomWriter(folder, header, plans)
        for image in tqdm(_valid(reader), "writing image", total, disable=None):
            valid += 1
            for part in parts_of(image):
                writer.add(part)
        writer.flush()
    if valid < total:
        logger.warning("%d of %d images have no pixels and are left out", total - valid, total)
    return writer.written


def _valid(reader: MrdReader) -> Iterator[ismrmrd.Image]:
    """Images of a file that have pixels."""
    for image in reader.images():
        if image.data.size:
            yield image


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 if nothing was converted."""
    parser = argparse.ArgumentParser(description="Converts the images of an MRD file into DICOM files, or NIfTI.")
    output = "output folder (default: the file's name without .h5), or a NIfTI file, which ends in .nii or .nii.gz"
    parser.add_argument("filename", type=Path, metavar="file.h5", help="MRD file with images")
    parser.add_argument("-g", "--in-group", help="group in the file (may be left out when there is only one)")
    parser.add_argument("-o", "--out-folder", type=Path, help=output)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    folder = args.out_folder or args.filename.with_suffix("")
    if folder == args.filename:  # a file without suffix
        folder = args.filename.with_name(f"{args.filename.name}_dicom")
    try:
        if folder.name.lower().endswith(nifti.NAMES):
            print("\n".join(map(str, niftiimages.write_group(args.filename, args.in_group, folder))))
            return 0
        written = convert(args.filename, folder, args.in_group)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written} DICOM files written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
