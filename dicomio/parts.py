"""MRD images divided into DICOM's frames: one plane, one component, one colour or grey image each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomio.frames import Frame, is_enhanced, mrd_geometry
from dicomio.geometry import Plane, same_geometry, to_planes
from dicomio.minimal import valid_uid
from dicomio.packing import FRAME_KEY, HASH_KEY, JSON_KEY, pixel_hash, unpack
from dicomio.pixels import ValueRange
from dicomio.update import meta_number
from mrdhelper import get_meta_value

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Part:
    """One frame of an object that is to be written.

    Attributes
    ----------
    head, meta
        Of the MRD image that it is part of.
    pixels
        [row, column], or colours [row, column, 3].
    kind
        MRD image type: magnitude, phase, real, imaginary or RGB.
    label
        Text that distinguishes it from other parts of its image in other series; empty when there are none.
    source
        Attributes of the DICOM frame that it was made from; None when there was none.
    changed
        Whether the pixels are others than the source's.
    plane
        Where it lies, None when the image does not say.
    moved
        Whether it lies elsewhere than the source, or has another matrix.
    """

    head: ismrmrd.ImageHeader
    meta: dict[str, Any]
    pixels: NDArray[Any]
    kind: int
    label: str
    source: Dataset | None
    changed: bool
    plane: Plane | None
    moved: bool

    @property
    def source_frame(self) -> int:
        """Which frame of its object the source was, counted from 0."""
        return max(int(meta_number(self.meta, FRAME_KEY) or 1), 1) - 1

    @property
    def series(self) -> tuple[int, str, str]:
        """Key of its output series: image series, label, UID of the source's series."""
        uid = "" if self.source is None else str(self.source.get("SeriesInstanceUID", ""))
        return self.head.image_series_index, self.label, uid

    def values(self) -> ValueRange:
        """Range of its pixel values; a phase in radians always spans the circle."""
        if self.label == "phase":
            return ValueRange(-np.pi, np.pi, whole=False)
        return ValueRange.of(self.pixels)


def source_of(meta: dict[str, Any]) -> Dataset | None:
    """Attributes of the DICOM frame that an image was made from.

    They must at least say class, study and series, since an object without them is none. None when there are none; when
    they are broken, with a warning.
    """
    text = get_meta_value(meta, JSON_KEY)
    if text is None:
        return None
    try:
        dataset = unpack(text if isinstance(text, str) else "".join(str(part) for part in text))
    except ValueError as error:
        logger.warning("%s of an image is broken (%s): its DICOM attributes are lost", JSON_KEY, error)
        return None
    needed = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
    missing = [keyword for keyword in needed if not valid_uid(str(dataset.get(keyword, "")))]
    if missing:
        logger.warning("%s of an image has no valid %s: it is left unused", JSON_KEY, ", ".join(missing))
        return None
    return dataset


def parts_of(image: ismrmrd.Image) -> Iterator[Part]:
    """Divide an MRD image.

    Complex pixels become a magnitude and a phase [radians], every channel (other than colours) and every index along z
    a part of its own.
    """
    head, meta = image.getHead(), dict(image.meta)
    data = image.data
    is_source_hash = get_meta_value(meta, HASH_KEY) == pixel_hash(data)
    planes = to_planes(head)
    for pixels, kind, label in _components(data, head):
        for z in range(pixels.shape[0]):
            source = source_of(meta)
            part = Part(
                head=head,
                meta=meta,
                pixels=pixels[z],
                kind=kind,
                label=label,
                source=source,
                changed=source is not None and not is_source_hash,
                plane=None if planes is None else planes[z],
                moved=False,
            )
            if source is not None:
                _compare_geometry(part, source)
            yield part


def _components(data: NDArray[Any], head: ismrmrd.ImageHeader) -> Iterator[tuple[NDArray[Any], int, str]]:
    """Yield (pixels [z, row, column] or [z, row, column, 3], image type, label) of pixels [channel, z, row, column]."""
    if head.image_type == ismrmrd.IMTYPE_RGB and data.shape[0] == 3 and not np.iscomplexobj(data):
        yield np.moveaxis(data, 0, -1), ismrmrd.IMTYPE_RGB, ""
        return
    known = (ismrmrd.IMTYPE_MAGNITUDE, ismrmrd.IMTYPE_PHASE, ismrmrd.IMTYPE_REAL, ismrmrd.IMTYPE_IMAG)
    kind = head.image_type if head.image_type in known else ismrmrd.IMTYPE_MAGNITUDE
    for number, channel in enumerate(data, start=1):
        suffix = f"channel {number}" if len(data) > 1 else ""
        if np.iscomplexobj(channel):
            yield np.abs(channel), ismrmrd.IMTYPE_MAGNITUDE, suffix
            yield np.angle(channel), ismrmrd.IMTYPE_PHASE, " ".join(word for word in ("phase", suffix) if word)
        else:
            yield channel, kind, suffix


def _compare_geometry(part: Part, source: Dataset) -> None:
    """Say whether a part lies elsewhere than its source; one that lost its geometry lies where the source was."""
    # The functional groups that travel with an image are those of its own frame; other objects list all frames.
    expected = mrd_geometry(Frame(source, 0 if is_enhanced(source) else part.source_frame))
    shape = part.pixels.shape[:2]
    same_matrix = (source.get("Rows"), source.get("Columns")) == shape
    if part.plane is None and any(expected.read_dir):
        part.moved = not same_matrix
        if part.moved:
            logger.warning("an image has another matrix and no geometry: the source's field of view is taken")
            head = ismrmrd.ImageHeader()
            for name in ("position", "read_dir", "phase_dir", "slice_dir", "field_of_view"):
                setattr(head, name, getattr(expected, name))
            head.matrix_size[:] = (shape[1], shape[0], 1)
            if planes := to_planes(head):
                part.plane = planes[0]
            else:
                logger.warning(
                    "that is none, since its directions are not orthogonal: its DICOM attributes are left out"
                )
                part.source, part.changed, part.moved = None, False, False
        return
    part.moved = part.plane is not None and not (
        same_matrix and part.head.matrix_size[2] == 1 and same_geometry(expected, part.head)
    )
