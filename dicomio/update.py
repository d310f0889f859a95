"""Changes of a DICOM object's attributes after processing: those of the pixels, the plane and the series."""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ismrmrd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

import mrdhelper
from dicomio.frames import Frame, frame_count, frame_type, is_enhanced
from dicomio.geometry import Plane
from dicomio.minimal import COMPONENTS, clean, decimal, put_plane, valid_uid
from dicomio.pixels import UINT16_MAXIMUM, StoredPixels
from dicomio.series import image_kind

logger = logging.getLogger(__name__)

_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
ENHANCED_TYPES = 4  # values of an enhanced object's image type
_NEVER_KEPT = ("DigitalSignaturesSequence", "MACParametersSequence", "InstanceCreatorUID")


def meta_number(meta: Mapping[str, Any], key: str) -> float | None:
    """Finite number in a meta attribute, the first of several; None when there is none."""
    texts = mrdhelper.meta_values(meta, key)
    try:
        number = float(texts[0])
    except (IndexError, ValueError):
        return None
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------------------------------------ pixels
def mark_derived(frame: Frame, meta: Mapping[str, Any], kind: int) -> None:
    """Say that the pixels of a frame were made from those of the object whose attributes it still carries.

    Sets image type, complex component, derivation, the reference to the original, content date and time, and the SOP
    class where colours were made of an object that allows none.
    """
    dataset = frame.dataset
    source_kind = image_kind(frame)
    _refer_to_source(frame, meta)
    history = [text for text in mrdhelper.meta_values(meta, "ImageProcessingHistory") if text != "DICOM"]
    if history:
        dataset.DerivationDescription = clean(", ".join(history), 1024)
    now = dt.datetime.now()
    dataset.ContentDate, dataset.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    if kind == ismrmrd.IMTYPE_RGB:
        classes = {
            MRImageStorage: SecondaryCaptureImageStorage,
            EnhancedMRImageStorage: EnhancedMRColorImageStorage,
        }
        dataset.SOPClassUID = classes.get(dataset.SOPClassUID, dataset.SOPClassUID)
        if dataset.SOPClassUID == SecondaryCaptureImageStorage:
            dataset.ConversionType = "WSD"
            if "PatientOrientation" not in dataset:
                dataset.PatientOrientation = ""
        elif dataset.SOPClassUID == EnhancedMRColorImageStorage:
            dataset.PixelPresentation = "TRUE_COLOR"
            dataset.ICCProfile, dataset.ColorSpace = _srgb_profile(), "SRGB"
    is_new_component = kind in COMPONENTS and kind != source_kind
    types = _derived_type(frame_type(frame), mrdhelper.meta_values(meta, "ImageType"), is_enhanced(dataset))
    if is_new_component and not is_enhanced(dataset):
        types[2:3] = [COMPONENTS[kind][0]]
    dataset.ImageType = types
    macro = frame.frame_type_macro()
    if macro:
        frame.put(macro, "FrameType", types)
    if is_new_component and (is_enhanced(dataset) or "ComplexImageComponent" in dataset):
        dataset.ComplexImageComponent = COMPONENTS[kind][1]
        if macro:
            frame.put(macro, "ComplexImageComponent", COMPONENTS[kind][1])


def _srgb_profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile + b"\0" * (len(profile) % 2)


def _derived_type(source: list[str], wanted: list[str], enhanced: bool) -> list[str]:
    """Image type of changed pixels: a module's own if it set a valid one, else the source's, but derived.

    An enhanced object's has four values, and PRIMARY as the second (PS3.3, C.8.16.1); a classic one's two or more.
    """
    fits = len(wanted) == ENHANCED_TYPES if enhanced else len(wanted) > 1
    values = wanted if fits and all(_CODE_STRING.fullmatch(value) for value in wanted) else source
    return ["DERIVED", "PRIMARY", *values[2:ENHANCED_TYPES]] if enhanced else ["DERIVED", "SECONDARY", *values[2:]]


def summarise_frames(dataset: Dataset) -> None:
    """Make an enhanced object say of itself what holds for all its frames, and MIXED where they differ.

    This concerns its image type, value by value, and its complex component (PS3.3, C.8.16.1 and C.8.13.3.1).
    """
    frames = [Frame(dataset, index) for index in range(frame_count(dataset))]
    dataset.ImageType = [_common(values) for values in zip(*map(frame_type, frames), strict=False)]
    if "ComplexImageComponent" in dataset:
        dataset.ComplexImageComponent = _common([frame.text("ComplexImageComponent") for frame in frames])


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else "MIXED"


def _refer_to_source(frame: Frame, meta: Mapping[str, Any]) -> None:
    dataset = frame.dataset
    item = Dataset()
    item.ReferencedSOPClassUID = dataset.SOPClassUID
    item.ReferencedSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    if not valid_uid(str(item.ReferencedSOPInstanceUID)):
        return
    number = meta_number(meta, "DicomFrame")
    if "NumberOfFrames" in dataset and number:
        item.ReferencedFrameNumber = int(number)
    dataset.SourceImageSequence = [*(dataset.get("SourceImageSequence") or []), item]


def put_rescale(frame: Frame, meta: Mapping[str, Any], stored: StoredPixels | None) -> tuple[float, float]:
    """Set rescale slope and intercept, so that stored values give the meaning of the image's pixels.

    Parameters
    ----------
    frame
        Where to set them. They are left out where they would change nothing and were not there.
    meta
        RescaleSlope and RescaleIntercept turn the image's pixels into their meaning, itself when they are absent.
    stored
        How changed pixels are stored; None for unchanged ones, which keep the object's slope if `meta` has none.

    Returns
    -------
    Slope and intercept from the image's pixels to their meaning.
    """
    present = _pair(frame, "RescaleSlope", "RescaleIntercept")
    slope, intercept = meta_number(meta, "RescaleSlope"), meta_number(meta, "RescaleIntercept")
    if not slope or intercept is None:
        slope, intercept = (1.0, 0.0) if stored is not None or present is None else (present[0] or 1.0, present[1])
    factor, offset = (1.0, 0.0) if stored is None else (stored.slope, stored.intercept)
    wanted = factor * slope, offset * slope + intercept
    if not math.isfinite(UINT16_MAXIMUM * abs(wanted[0]) + abs(wanted[1])) or wanted[0] == 0:
        logger.warning("rescaling by %g and %g leaves no finite numbers, and is left out", slope, intercept)
        slope, intercept = 1.0, 0.0
        wanted = factor, offset
    if present is None:
        if wanted != (1.0, 0.0):
            _set_rescale(frame, wanted)
    elif not np.allclose(wanted, present, rtol=1e-9, atol=0):
        _set_rescale(frame, wanted)
    return slope, intercept


def _pair(frame: Frame, first: str, second: str) -> tuple[float, float] | None:
    """Values of two attributes that go together; None when one is absent."""
    values = frame.number(first), frame.number(second)
    return None if values[0] is None or values[1] is None else (values[0], values[1])


def _set_rescale(frame: Frame, values: tuple[float, float]) -> None:
    macro = "PixelValueTransformationSequence"
    frame.put(macro, "RescaleSlope", decimal(values[0]))
    frame.put(macro, "RescaleIntercept", decimal(values[1]))
    if not frame.text("RescaleType"):
        frame.put(macro, "RescaleType", "US")


def put_window(
    frame: Frame, meta: Mapping[str, Any], rescale: tuple[float, float], shown: tuple[float, float] | None
) -> None:
    """Set the display window.

    Parameters
    ----------
    frame
        Where to set it.
    meta
        WindowCenter and WindowWidth in terms of the image's pixels; they come first.
    rescale
        Slope and intercept from the image's pixels to their meaning, which DICOM's window is about.
    shown
        Smallest and largest pixel of changed pixels, for a window where `meta` has none; None leaves the old one.
    """
    slope, intercept = rescale
    centre, width = meta_number(meta, "WindowCenter"), meta_number(meta, "WindowWidth")
    if centre is None or width is None or width <= 0:
        if shown is None:
            return
        centre, width = (shown[0] + shown[1]) / 2, (shown[1] - shown[0]) or 1.0
    wanted = centre * slope + intercept, width * abs(slope)
    if not all(map(math.isfinite, wanted)) or wanted[1] <= 0:
        logger.warning("a window of centre %g and width %g is no finite one, and is left out", *wanted)
        return
    present = _pair(frame, "WindowCenter", "WindowWidth")
    if present is not None and np.allclose(wanted, present, rtol=1e-6, atol=1e-6):
        return
    macro = "FrameVOILUTSequence"
    frame.put(macro, "WindowCenter", decimal(wanted[0]))
    frame.put(macro, "WindowWidth", decimal(wanted[1]))
    if wanted[1] < 1:  # the default function is for integers, and has no width below 1
        frame.put(macro, "VOILUTFunction", "LINEAR_EXACT")
    frame.drop(macro, "WindowCenterWidthExplanation")


def drop_window(frame: Frame) -> None:
    """Remove the display window, which means nothing for colours."""
    for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"):
        if keyword in frame.dataset:
            delattr(frame.dataset, keyword)


# ---------------------------------------------------------------------------------------------------------- geometry
def put_geometry(frame: Frame, plane: Plane) -> None:
    """Set the plane of a frame with another geometry than the source; remove attributes that followed from the old."""
    dataset = frame.dataset
    if is_enhanced(dataset):
        classic = Dataset()
        put_plane(classic, plane)
        frame.put("PixelMeasuresSequence", "PixelSpacing", classic.PixelSpacing)
        if plane.thickness is not None:
            frame.put("PixelMeasuresSequence", "SliceThickness", classic.SliceThickness)
        frame.put("PlaneOrientationSequence", "ImageOrientationPatient", classic.ImageOrientationPatient)
        frame.put("PlanePositionSequence", "ImagePositionPatient", classic.ImagePositionPatient)
    else:
        put_plane(dataset, plane)
    stale = ["SliceLocation", "PatientOrientation", "GridFrameOffsetVector", "PixelAspectRatio"]
    for keyword in stale:
        if keyword in dataset:
            delattr(dataset, keyword)
    if (dataset.get("Rows"), dataset.get("Columns")) != plane.shape:
        overlays = [element.tag for element in dataset if 0x6000 <= element.tag.group <= 0x60FF]
        for tag in overlays:  # they have the old matrix
            del dataset[tag]


# ------------------------------------------------------------------------------------------------------------ series
def put_identity(
    dataset: Dataset, meta: Mapping[str, Any], series_uid: str, series_number: int, instance_number: int, label: str
) -> None:
    """Set the attributes that make the object a new one: its UIDs and numbers, series description and comments.

    Parameters
    ----------
    dataset
        Changed in place.
    meta
        SeriesDescription replaces the description, SequenceDescriptionAdditional is added to it; ImageComment or
        ImageComments becomes the comment.
    series_uid, series_number, instance_number
        Of the new object. Its own UID is made from `series_uid`'s root at random.
    label
        Further addition to the description, such as "phase"; may be empty.
    """
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesNumber = series_number
    dataset.InstanceNumber = instance_number
    now = dt.datetime.now()
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for keyword in _NEVER_KEPT:
        if keyword in dataset:
            delattr(dataset, keyword)
    own = clean("".join(mrdhelper.meta_values(meta, "SeriesDescription")[:1]))
    additions = [clean("_".join(mrdhelper.meta_values(meta, "SequenceDescriptionAdditional"))), label]
    if own or any(additions):
        words = [own or str(dataset.get("SeriesDescription") or ""), *additions]
        # The addition is what tells the series apart, so it is the rest that is cut.
        tail = "_".join(word for word in words[1:] if word)[:64]
        start = words[0][: max(0, 63 - len(tail))] if tail else words[0]
        dataset.SeriesDescription = "_".join(word for word in (start, tail) if word)
    comment = " ".join(mrdhelper.meta_values(meta, "ImageComments") or mrdhelper.meta_values(meta, "ImageComment"))
    if comment:
        dataset.ImageComments = clean(comment, 10240)
    added = f"{dataset.get('SeriesDescription') or ''}{dataset.get('ImageComments') or ''}"
    if not added.isascii():
        dataset.SpecificCharacterSet = "ISO_IR 192"
