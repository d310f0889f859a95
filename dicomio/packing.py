"""DICOM attributes as text in a meta attribute of an MRD image, and back.

The text is the DICOM JSON model (PS3.18 annex F) of the dataset without its pixels, in base64. Of a multi-frame object
each frame's image carries the attributes of the object and of its own frame, not of the other frames.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from dicomio.files import PIXEL_KEYWORDS, PYDICOM_ERRORS, quiet_pydicom
from dicomio.frames import PER_FRAME

logger = logging.getLogger(__name__)

# Names of the meta attributes that hold an image's DICOM attributes.
JSON_KEY, HASH_KEY, FRAME_KEY = "DicomJson", "DicomPixelHash", "DicomFrame"

_LEFT_OUT = {*PIXEL_KEYWORDS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DataSetTrailingPadding"}
_WORD_SIZES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_TAG = re.compile(r"[0-9A-Fa-f]{8}")


def pack_frames(dataset: Dataset, frames: int) -> Iterator[str]:
    """Attributes of each frame as base64 text; one that cannot be put into JSON is named and left out."""
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        dataset = copy.deepcopy(dataset)
        _swap_words(dataset)
    common = _to_json(dataset, without=PER_FRAME)
    items = dataset.get(PER_FRAME) or []
    for index in range(frames):
        model = common
        if index < len(items):
            model = {**common, "52009230": {"vr": "SQ", "Value": [_to_json(items[index])]}}
        yield base64.b64encode(json.dumps(model, separators=(",", ":")).encode()).decode("ascii")


def _swap_words(dataset: Dataset) -> None:
    """Turn the binary words of a big-endian file into little-endian ones; pydicom leaves them as they are."""
    for element in dataset:
        size = _WORD_SIZES.get(element.VR)
        if element.VR == "SQ":
            for item in element.value:
                _swap_words(item)
        elif size and isinstance(element.value, bytes) and len(element.value) % size == 0:
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def _to_json(dataset: Dataset, without: str = "") -> dict[str, Any]:
    model: dict[str, Any] = {}
    unreadable = []
    with quiet_pydicom():
        for tag in sorted(dataset.keys()):
            keyword = keyword_for_tag(tag)
            if keyword in _LEFT_OUT or tag.element == 0 or (without and keyword == without):
                continue
            try:
                model[f"{int(tag):08X}"] = dataset[tag].to_json_dict(None, 0)
            except PYDICOM_ERRORS as error:
                unreadable.append(f"{keyword or tag} ({error})")
    if unreadable:
        logger.warning("attributes with values that cannot be read are left out: %s", ", ".join(unreadable))
    return model


def unpack(text: str) -> Dataset:
    """Attributes from the text that `pack_frames` made.

    The text may have come over a network: pixels, file meta information and attributes that cannot be read are left
    out, the last with a warning that names them.

    Raises
    ------
    ValueError
        When it is no base64 text of a DICOM JSON model.
    """
    try:
        model = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no base64 text of JSON: {error}") from error
    if not isinstance(model, dict):
        raise ValueError(f"it holds a {type(model).__name__}, expected a JSON object")  # noqa: TRY004
    dataset, unreadable = Dataset(), []
    with quiet_pydicom():
        for key, value in model.items():
            if not _TAG.fullmatch(key):
                unreadable.append(repr(key[:40]))
                continue
            if int(key[:4], 16) <= 2 or int(key[4:], 16) == 0 or keyword_for_tag(int(key, 16)) in _LEFT_OUT:
                continue
            try:
                dataset.update(Dataset.from_json({key: value}))
            except PYDICOM_ERRORS as error:
                unreadable.append(f"{keyword_for_tag(int(key, 16)) or key} ({error})")
    if unreadable:
        logger.warning("%d attributes of an image cannot be read and are left out: %s", len(unreadable), unreadable[:5])
    return dataset


def pixel_hash(pixels: NDArray[Any]) -> str:
    """Fingerprint of pixel values: the same in every type, but for real and complex ones.

    Parameters
    ----------
    pixels
        Integers, real or complex numbers, of any shape; axes of length 1 make no difference.
    """
    kind = "<c16" if np.iscomplexobj(pixels) else "<f8"  # double precision holds all of MRD's real types exactly
    squeezed = np.squeeze(pixels)
    digest = hashlib.sha256(f"{kind} {squeezed.shape}".encode())
    digest.update(np.ascontiguousarray(squeezed, kind).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
