"""DICOM files sorted into series, and the MRD counters of their frames."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from pydicom.dataset import Dataset
from tqdm import tqdm

from dicomio.files import PYDICOM_ERRORS, DicomFileError, file_error, read_dicom
from dicomio.flow import velocity_encoding
from dicomio.frames import Frame, frame_count, plane_of
from dicomio.header import SeriesFacts, acquisition_ticks, echo_time, trigger_time

logger = logging.getLogger(__name__)

MOST_FRAMES = 65535  # in one file: the index of an MRD image has 16 bits

_IMAGE_TYPES = {
    "M": ismrmrd.IMTYPE_MAGNITUDE,
    "MAGNITUDE": ismrmrd.IMTYPE_MAGNITUDE,
    "P": ismrmrd.IMTYPE_PHASE,
    "PHASE": ismrmrd.IMTYPE_PHASE,
    "PHASE MAP": ismrmrd.IMTYPE_PHASE,
    "VELOCITY": ismrmrd.IMTYPE_PHASE,
    "VELOCITY MAP": ismrmrd.IMTYPE_PHASE,
    "R": ismrmrd.IMTYPE_REAL,
    "REAL": ismrmrd.IMTYPE_REAL,
    "I": ismrmrd.IMTYPE_IMAG,
    "IMAGINARY": ismrmrd.IMTYPE_IMAG,
}
# DICOMDIR, presentation states, structured reports and key objects lie beside images and hold none (PS3.4, B.5):
# that they are left out is not reported.
_WITHOUT_IMAGES = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.88.")


@dataclass
class FrameEntry:
    """One frame in the order of its series, with what its counters are made from; the pixels stay in the file."""

    kind: int
    location: tuple[float, ...] | None
    echo: float | None
    trigger: float | None
    flow: Any
    counters: dict[str, int] = field(default_factory=dict)


@dataclass
class ObjectEntry:
    """One DICOM file of a series."""

    path: Path
    order: tuple[Any, ...]
    frames: list[FrameEntry]


@dataclass
class Series:
    """The files of one DICOM series, in order, and what the header says about it."""

    objects: list[ObjectEntry]
    facts: SeriesFacts


def image_kind(frame: Frame) -> int:
    """MRD image type of a frame, from ComplexImageComponent and the values of its image type."""
    values = [frame.text("ComplexImageComponent"), *frame.texts("FrameType")[2:], *frame.texts("ImageType")[2:]]
    return next((_IMAGE_TYPES[value.upper()] for value in values if value.upper() in _IMAGE_TYPES), 1)


def survey(paths: Sequence[Path]) -> list[Series]:
    """Read all files without their pixels, and sort them into series.

    Files that are broken are named in a warning and left out, those without an image too unless they are of a class
    that has none.
    """
    objects: dict[tuple[float, str], list[ObjectEntry]] = defaultdict(list)
    firsts: dict[tuple[float, str], Frame] = {}
    for path in tqdm(paths, "reading file", disable=None):
        try:
            dataset = read_dicom(path, with_pixels=False)
            if "Rows" not in dataset or "Columns" not in dataset:
                sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
                if not sop_class.startswith(_WITHOUT_IMAGES):
                    logger.warning("skipped: %s has no Rows and Columns: it is cut short, or holds no image", path)
                else:
                    logger.info("%s holds no image and is skipped", path)
                continue
            _check_frame_count(dataset, path)
            frame = Frame(dataset)
            number = frame.number("SeriesNumber")
            key = (float("inf") if number is None else number, frame.text("SeriesInstanceUID"))
            instance = frame.number("InstanceNumber")
            order = (float("inf") if instance is None else instance, acquisition_ticks(frame), str(path))
            frames = [frame_entry(Frame(dataset, index)) for index in range(frame_count(dataset))]
        except PYDICOM_ERRORS as error:
            logger.warning("skipped: %s", file_error(path, error))
            continue
        objects[key].append(ObjectEntry(path, order, frames))
        if key not in firsts or order < min(entry.order for entry in objects[key][:-1]):
            firsts[key] = frame
    series = []
    for key in sorted(objects):
        entries = sorted(objects[key], key=lambda entry: entry.order)
        series.append(Series(entries, count([frame for entry in entries for frame in entry.frames], firsts[key])))
    return series


def _check_frame_count(dataset: Dataset, path: Path) -> None:
    frames, most = frame_count(dataset), min(MOST_FRAMES, path.stat().st_size)
    if frames > most:
        reason = "MRD numbers no more images of a series" if most == MOST_FRAMES else "it has no more bytes"
        raise DicomFileError(f"it says that it has {frames} frames, expected at most {most}: {reason}")


def frame_entry(frame: Frame) -> FrameEntry:
    """Keep what a frame's counters are made from."""
    plane, location = plane_of(frame), None
    if plane is not None:
        normal = np.cross(plane.along_row, plane.along_column)
        distance = round(float(np.dot(normal, plane.first_pixel)), 2)
        location = (*np.round(normal, 3).tolist(), distance)
    return FrameEntry(image_kind(frame), location, echo_time(frame), trigger_time(frame), velocity_encoding(frame))


def count(frames: list[FrameEntry], first: Frame) -> SeriesFacts:
    """Give every frame of a series its counters.

    ``slice`` counts slices along their normal, ``contrast`` echo times, ``set`` velocity encodings in the order of
    their appearance, ``phase`` trigger times among the frames that share all of these, ``repetition`` what is left.
    """
    locations = _ranks(frame.location for frame in frames)
    echoes = _ranks(frame.echo for frame in frames)
    flows = {flow: number for number, flow in enumerate(dict.fromkeys(frame.flow for frame in frames))}
    triggers: dict[tuple[int, ...], list[FrameEntry]] = defaultdict(list)
    for frame in frames:
        frame.counters = {
            "slice": locations.get(frame.location, 0),
            "contrast": echoes.get(frame.echo, 0),
            "set": flows[frame.flow],
        }
        triggers[frame.kind, *frame.counters.values()].append(frame)
    seen: Counter = Counter()
    for key, group in triggers.items():
        phases = _ranks(frame.trigger for frame in group)
        for frame in group:
            frame.counters["phase"] = phases.get(frame.trigger, 0)
            place = (*key, frame.counters["phase"])
            frame.counters["repetition"] = seen[place]
            seen[place] += 1

    def values(name: str) -> int:
        return 1 + max(frame.counters[name] for frame in frames)

    return SeriesFacts(
        first,
        values("slice"),
        values("contrast"),
        values("phase"),
        values("repetition"),
        values("set"),
        sorted({frame.echo for frame in frames if frame.echo is not None}),
    )


def _ranks(values: Iterable[Any]) -> dict[Any, int]:
    return {value: rank for rank, value in enumerate(sorted({value for value in values if value is not None}))}
