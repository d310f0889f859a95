"""One frame of a DICOM object, whether it is classic, multi-frame or enhanced with functional groups."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicomio.files import PYDICOM_ERRORS, quiet_pydicom
from dicomio.geometry import NOWHERE, MrdGeometry, Plane, to_mrd, vector

logger = logging.getLogger(__name__)

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def is_enhanced(dataset: Dataset) -> bool:
    """True if a dataset describes its frames with functional groups."""
    return bool(dataset.get(PER_FRAME)) or bool(dataset.get(SHARED))


def frame_count(dataset: Dataset) -> int:
    """Number of frames: 1 for a classic object."""
    try:
        with quiet_pydicom():
            return max(1, int(dataset.get("NumberOfFrames") or 1))
    except PYDICOM_ERRORS:
        return 1


def functional_groups(item: Dataset) -> Iterator[DataElement]:
    """Yield the functional groups of an item, as the standard knows them.

    Private sequences beside them are no part of a frame's description: those of Philips, for one, repeat attributes
    with the values, and by the rules, of a classic object.
    """
    for tag in sorted(item.keys()):
        if not tag.is_private and item[tag].VR == "SQ":
            yield item[tag]


class Frame:
    """Reads, and changes, the attributes that hold for one frame.

    Parameters
    ----------
    dataset
        The object that the frame is part of.
    index
        Number of the frame, counted from 0.
    """

    def __init__(self, dataset: Dataset, index: int = 0) -> None:
        self.dataset = dataset
        self.index = index
        self._find_attributes()

    def _find_attributes(self) -> None:
        """Look up once where the frame's attributes are: objects of thousands of frames ask for dozens of each."""
        self._places: dict[int, Dataset] = {}  # item of a functional group, by the tag of an attribute in it
        self._type_macro: str | None = None
        try:
            with quiet_pydicom():
                for name, position in ((PER_FRAME, self.index), (SHARED, 0)):
                    items = self.dataset.get(name) or []
                    for group in functional_groups(items[position]) if position < len(items) else ():
                        if group.value:
                            self._places = dict.fromkeys(group.value[0].keys(), group.value[0]) | self._places
                        if group.keyword.endswith("FrameTypeSequence"):
                            self._type_macro = self._type_macro or group.keyword
        except PYDICOM_ERRORS as error:
            logger.debug("the functional groups cannot be read: %s", error)

    def get(self, keyword: str) -> Any:
        """Value of an attribute: this frame's, else the one that all frames share, else the object's; None if absent.

        A value that cannot be read counts as absent.
        """
        try:
            with quiet_pydicom():
                tag = tag_for_keyword(keyword)
                return (self.dataset if tag is None else self._places.get(tag, self.dataset)).get(keyword)
        except PYDICOM_ERRORS as error:
            logger.debug("%s cannot be read: %s", keyword, error)
            return None

    def text(self, keyword: str) -> str:
        """Value as text, the first of several; empty when absent."""
        value = self.get(keyword)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            value = value[0] if len(value) else None
        return "" if value is None else str(value).strip()

    def texts(self, keyword: str) -> list[str]:
        """All values as text."""
        value = self.get(keyword)
        if value is None or value == "":
            return []
        return [str(value)] if isinstance(value, str) else [str(item) for item in value]

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Exactly `count` finite numbers, else None."""
        value = self.get(keyword)
        if value is None:
            return None
        try:
            numbers = np.array(value, dtype=float).ravel()
        except (TypeError, ValueError):
            return None
        return tuple(numbers.tolist()) if numbers.size == count and np.all(np.isfinite(numbers)) else None

    def number(self, keyword: str) -> float | None:
        """One finite number, the first of several; else None."""
        value = self.get(keyword)
        try:
            number = float(np.array(value, dtype=float).ravel()[0])
        except (TypeError, ValueError, IndexError):
            return None
        return number if np.isfinite(number) else None

    def put(self, macro: str, keyword: str, value: Any) -> None:
        """Set an attribute: in this frame's functional group `macro` of an enhanced object, else in the object itself.

        A macro that the frames shared becomes this frame's own copy; see `merge_frames`.
        """
        target = self.macro(macro) if is_enhanced(self.dataset) else self.dataset
        setattr(target, keyword, value)
        self._find_attributes()

    def drop(self, macro: str, keyword: str) -> None:
        """Remove an attribute from where `put` would set it."""
        target = self.macro(macro) if is_enhanced(self.dataset) else self.dataset
        if keyword in target:
            delattr(target, keyword)
            self._find_attributes()

    def macro(self, name: str) -> Dataset:
        """Item of this frame's own functional group `name`, made when it is not there."""
        if PER_FRAME not in self.dataset or self.index >= len(self.dataset[PER_FRAME].value):
            setattr(self.dataset, PER_FRAME, [Dataset() for _ in range(self.index + 1)])
        own = self.dataset[PER_FRAME].value[self.index]
        if not own.get(name):
            shared = self.dataset.get(SHARED) or [Dataset()]
            setattr(own, name, copy.deepcopy(shared[0].get(name)) or [Dataset()])
        return own[name].value[0]

    def frame_type_macro(self) -> str | None:
        """Name of the functional group with the frame's type, such as MRImageFrameTypeSequence."""
        return self._type_macro


def frame_type(frame: Frame) -> list[str]:
    """Values of a frame's own type, else of the object's image type."""
    return frame.texts("FrameType") or frame.texts("ImageType")


def plane_of(frame: Frame) -> Plane | None:
    """Position of the pixels of a frame; None when the object does not say.

    Missing pixel spacing counts as 1 mm.
    """
    position = frame.numbers("ImagePositionPatient", 3)
    orientation = frame.numbers("ImageOrientationPatient", 6)
    rows, columns = frame.number("Rows"), frame.number("Columns")
    if position is None or orientation is None or not rows or not columns:
        return None
    first_pixel, along_row, along_column = np.array(position), vector(orientation[:3]), vector(orientation[3:])
    offsets = frame.get("GridFrameOffsetVector")
    if offsets is not None and not is_enhanced(frame.dataset):
        try:
            shift = float(offsets[frame.index]) - float(offsets[0])
        except (TypeError, ValueError, IndexError):
            shift = 0.0
        first_pixel += shift * np.cross(along_row, along_column)
    thickness = frame.number("SliceThickness") or frame.number("SpacingBetweenSlices")
    row_spacing, column_spacing = frame.numbers("PixelSpacing", 2) or (1.0, 1.0)
    return Plane(
        first_pixel=vector(first_pixel),
        along_row=along_row,
        along_column=along_column,
        spacing=(row_spacing, column_spacing),
        shape=(int(rows), int(columns)),
        thickness=abs(thickness) if thickness else None,
    )


def mrd_geometry(frame: Frame) -> MrdGeometry:
    """Geometry of a frame in MRD's terms; without a plane only the field of view is set."""
    plane = plane_of(frame)
    if plane is not None:
        return to_mrd(plane)
    spacing = frame.numbers("PixelSpacing", 2) or (1.0, 1.0)
    rows, columns = frame.number("Rows") or 0.0, frame.number("Columns") or 0.0
    return MrdGeometry(
        position=NOWHERE,
        read_dir=NOWHERE,
        phase_dir=NOWHERE,
        slice_dir=NOWHERE,
        field_of_view=(spacing[1] * columns, spacing[0] * rows, abs(frame.number("SliceThickness") or 0.0)),
    )


def merge_frames(parts: list[Dataset], indices: list[int], main: int = 0) -> Dataset:
    """One multi-frame dataset out of datasets that describe one frame each.

    Parameters
    ----------
    parts
        The frames' datasets, of the same original object.
    indices
        Which frame of the original object each one was, counted from 0.
    main
        Number of the part whose attributes are those of the whole object.
    """
    merged = parts[main]
    total = frame_count(merged)
    if is_enhanced(merged):
        items = [part[PER_FRAME].value[0] if part.get(PER_FRAME) else Dataset() for part in parts]
        own = {macro.keyword for item in items for macro in functional_groups(item)}
        shared = merged[SHARED].value[0] if merged.get(SHARED) else Dataset()
        for name in own & {macro.keyword for macro in functional_groups(shared)}:
            # A functional group is either shared or each frame's own, never both.
            for item in items:
                if name not in item:
                    item[name] = copy.deepcopy(shared[name])
            del shared[name]
        setattr(merged, PER_FRAME, items)
    elif len(indices) != total or indices != list(range(total)):
        _select_vectors(merged, indices, total)
    merged.NumberOfFrames = len(parts)
    return merged


def _select_vectors(dataset: Dataset, indices: list[int], total: int) -> None:
    """Keep the entries of the frames that are there, in attributes with one value for each frame."""
    pointers = dataset.get("FrameIncrementPointer")
    if pointers is None:
        return
    first = plane_of(Frame(dataset, indices[0]))
    for tag in pointers if isinstance(pointers, Sequence) else [pointers]:
        element = dataset.get(tag)
        if element is not None and isinstance(element.value, Sequence) and len(element.value) == total:
            element.value = [element.value[index] for index in indices]
    offsets = dataset.get("GridFrameOffsetVector")
    if offsets and first is not None:  # offsets are relative to the first frame that is there
        dataset.ImagePositionPatient = [format_number_as_ds(value) for value in first.first_pixel]
        dataset.GridFrameOffsetVector = [offset - offsets[0] for offset in offsets]
