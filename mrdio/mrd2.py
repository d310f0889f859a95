"""MRD version 2 streams: readouts, waveforms and images to those of version 1, and back, with the ``mrd`` package.

Such a stream is written by the yardl serializer. It holds the whole description of its format, so that it can be read
only by the version of the package that wrote it. The package is optional (requirements-mrd2.txt).

The fields correspond as in the converters of the package, ``mrd_to_ismrmrd`` and ``ismrmrd_to_mrd``. Time stamps are
passed on as they are.
"""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import ismrmrd
import numpy as np
from ismrmrd import xsd

from mrdio.codec import IMAGE_DTYPES, make_image
from mrdio.h5groups import MrdFileError
from mrdio.mrd2header import convert

NAMES = (".mrd2",)
VERSION = "2.1"  # of the package: others have other fields
_MAGIC = b"yardl"
_ADVICE = "or convert the file with mrd_to_ismrmrd, which comes with the program that wrote it"

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image

_COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition",
             "set", "segment")  # fmt: skip
_READOUT_NUMBERS = ("flags", "measurement_uid", "scan_counter", "acquisition_time_stamp", "discard_pre", "discard_post",
                    "encoding_space_ref", "sample_time_us")  # fmt: skip
_IMAGE_NUMBERS = ("flags", "measurement_uid", "average", "slice", "contrast", "phase", "repetition", "set",
                  "acquisition_time_stamp", "image_index", "image_series_index")  # fmt: skip
_WAVEFORM_NUMBERS = ("flags", "measurement_uid", "scan_counter", "time_stamp", "sample_time_us", "waveform_id")
_READOUT_VECTORS = {name: name for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")}
_IMAGE_VECTORS = {"position": "position", "read_dir": "col_dir", "phase_dir": "line_dir", "slice_dir": "slice_dir",
                  "patient_table_position": "patient_table_position", "field_of_view": "field_of_view"}  # fmt: skip
_LISTS = ("physiology_time_stamp", "user_int", "user_float")
_IMAGE_ITEMS = {"uint16": "ImageUint16", "int16": "ImageInt16", "uint32": "ImageUint32", "int32": "ImageInt32",
                "float32": "ImageFloat", "float64": "ImageDouble", "complex64": "ImageComplexFloat",
                "complex128": "ImageComplexDouble"}  # fmt: skip


def is_mrd2(path: Path) -> bool:
    """Tell from its first bytes whether a file is an MRD version 2 stream."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def package() -> Any:
    """Import the ``mrd`` package.

    Raises
    ------
    MrdFileError
        If it is not installed, or in a version that has other fields.
    """
    install = "install it with: pip install -r requirements-mrd2.txt"
    try:
        version = importlib.metadata.version("mrd-python")
        module = importlib.import_module("mrd")
    except ImportError as error:
        raise MrdFileError(f"MRD version 2 needs the package mrd-python, which is missing: {install}") from error
    if not version.startswith(f"{VERSION}."):
        text = f"MRD version 2 needs the package mrd-python {VERSION}, here is {version}: {install}"
        raise MrdFileError(text)
    return module


# ---- a stream in and out -------------------------------------------------------------------------------------------
def read(file: BinaryIO, name: str) -> tuple[xsd.ismrmrdHeader | None, Iterator[Item]]:
    """Read a stream of version 2.

    Parameters
    ----------
    file : binary file
        The stream; it must stay open while the items are read.
    name : str
        Name of the stream, for errors.

    Returns
    -------
    header : ismrmrd.xsd.ismrmrdHeader or None
        The MRD header, if the stream has one.
    items : iterator
        Readouts, waveforms and images in the order of the stream. It raises `MrdFileError` at one that breaks off or
        has no counterpart in version 1.

    Raises
    ------
    MrdFileError
        If the package is missing, or the stream was written by another version of it or breaks off in its header.
    """
    try:
        mrd = package()
    except MrdFileError as error:
        raise MrdFileError(f"{name} is an MRD version 2 stream. {error}; {_ADVICE}") from error
    with _reading(name):
        try:
            reader = mrd.BinaryMrdReader(file)
        except RuntimeError as error:
            text = f"{name} is a stream of another version of MRD than {VERSION} ({error}): write it with that one"
            raise MrdFileError(f"{text}, {_ADVICE}") from error
        header = convert(reader.read_header(), xsd.ismrmrdHeader)
    return header, _items(reader, mrd, name)


def _items(reader: Any, mrd: Any, name: str) -> Iterator[Item]:
    with _reading(name):
        for item in reader.read_data():
            yield _from_item(item, mrd)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except MrdFileError:
        raise
    except EOFError as error:
        raise MrdFileError(f"{name} breaks off: the MRD version 2 stream has no end") from error
    except ValueError as error:
        raise MrdFileError(f"{name} cannot be read as MRD version 2: {error}") from error
    except Exception as error:  # the package raises whatever damaged bytes lead to
        raise MrdFileError(f"{name} is damaged, as MRD version 2: {type(error).__name__}: {error}") from error


def write(file: BinaryIO, header: xsd.ismrmrdHeader | None, items: Iterable[Item]) -> None:
    """Write a stream of version 2.

    Raises
    ------
    MrdFileError
        If the package is missing.
    ValueError
        If the header lacks what version 2 requires.
    OSError
        If the file cannot be written.
    """
    mrd = package()
    with mrd.BinaryMrdWriter(file) as writer:
        writer.write_header(convert(header, mrd.Header))
        writer.write_data(_to_item(item, mrd) for item in items)


# ---- version 2 to 1 ------------------------------------------------------------------------------------------------
def _from_item(item: Any, mrd: Any) -> Item:
    if isinstance(item, mrd.StreamItem.Acquisition):
        return _from_acquisition(item.value)
    if isinstance(item, mrd.StreamItem.WaveformUint32):
        return _from_waveform(item.value)
    if item.tag in _IMAGE_ITEMS.values():
        return _from_image(item.value)
    raise ValueError(f"it holds an item of the type {item.tag}, which MRD version 1 does not have: it has readouts, "
                     "waveforms and images")  # fmt: skip


def _from_acquisition(source: Any) -> ismrmrd.Acquisition:
    head, given = ismrmrd.AcquisitionHeader(), source.head
    channels, samples = source.data.shape
    trajectory = np.ascontiguousarray(source.trajectory.T)  # [samples, dimensions]
    _set_all(head, given, _READOUT_NUMBERS, _READOUT_VECTORS)
    _set_all(head.idx, given.idx, _COUNTERS, {}, lists=("user",))
    _set(head, "number_of_samples", samples)
    _set(head, "active_channels", channels)
    _set(head, "center_sample", samples // 2 if given.center_sample is None else given.center_sample)
    _set(head, "trajectory_dimensions", trajectory.shape[1])
    if trajectory.size and len(trajectory) != samples:
        raise ValueError(f"a readout has {samples} samples, and {len(trajectory)} of its trajectory")
    order = np.asarray(given.channel_order, dtype=np.int64)
    data = source.data
    if order.size:
        if order.size != channels or len(set(given.channel_order)) != channels:
            raise ValueError(f"a readout of {channels} channels has the channel order {given.channel_order}")
        data = data[np.argsort(order)]  # version 1 has a mask: the channels are in the order of their numbers
        for channel in given.channel_order:
            if channel >= 64 * len(head.channel_mask):
                raise ValueError(f"a readout has channel {channel}: MRD version 1 has {64 * len(head.channel_mask)}")
            head.channel_mask[channel // 64] |= 1 << channel % 64
    _set(head, "available_channels", max(channels, 1 + int(order.max(initial=-1))))
    return ismrmrd.Acquisition(head, np.ascontiguousarray(data), trajectory.reshape(samples, -1))


def _from_waveform(source: Any) -> ismrmrd.Waveform:
    head = ismrmrd.WaveformHeader()
    _set_all(head, source, _WAVEFORM_NUMBERS, {}, lists=())
    channels, samples = source.data.shape
    _set(head, "channels", channels)
    _set(head, "number_of_samples", samples)
    return ismrmrd.Waveform(head, np.ascontiguousarray(source.data))


def _from_image(source: Any) -> ismrmrd.Image:
    head, given = ismrmrd.ImageHeader(), source.head
    _set_all(head, given, _IMAGE_NUMBERS, _IMAGE_VECTORS)
    _set(head, "image_type", given.image_type.value)
    head.data_type = next(number for number, dtype in IMAGE_DTYPES.items() if dtype == source.data.dtype)
    channels, *sizes = source.data.shape
    _set(head, "channels", channels)
    for index, size in enumerate(reversed(sizes)):
        _set(head.matrix_size, index, size)
    texts = {name: [str(value.value) for value in values] for name, values in source.meta.items()}
    meta = {name: values[0] if len(values) == 1 else values for name, values in texts.items()}
    return make_image(head, ismrmrd.Meta(meta).serialize(), np.ascontiguousarray(source.data))


def _set_all(
    head: Any, given: Any, numbers: Iterable[str], vectors: dict[str, str], lists: Iterable[str] = _LISTS
) -> None:
    """Set numbers (absent ones stay 0), vectors, and lists of at most the length that version 1 has."""
    for name in numbers:
        if (value := getattr(given, name)) is not None:
            _set(head, name, value)
    for name, theirs in vectors.items():
        getattr(head, name)[:] = getattr(given, theirs).tolist()
    for name in lists:
        target, values = getattr(head, name), getattr(given, name)
        if len(values) > len(target):
            raise ValueError(f"{name} has {len(values)} values: MRD version 1 has {len(target)}")
        for index, value in enumerate(values):
            _set(target, index, value, name)


def _set(target: Any, key: str | int, value: Any, name: str = "") -> None:
    """Set a field of a structure or an element of its array. Version 2 has larger integers: those would wrap."""
    if isinstance(key, int):
        target[key] = value
        kept = target[key]
    else:
        setattr(target, key, value)
        kept = getattr(target, key)
    if isinstance(kept, int) and kept != value:
        raise ValueError(f"{name or key} is {int(value)}, which does not fit into a header of MRD version 1")


# ---- version 1 to 2 ------------------------------------------------------------------------------------------------
def _to_item(item: Item, mrd: Any) -> Any:
    if isinstance(item, ismrmrd.Acquisition):
        return mrd.StreamItem.Acquisition(_to_acquisition(item, mrd))
    if isinstance(item, ismrmrd.Waveform):
        numbers = {name: getattr(item, name) for name in _WAVEFORM_NUMBERS}
        return mrd.StreamItem.WaveformUint32(mrd.Waveform(**numbers, data=item.data))
    image = _to_image(item, mrd)
    return getattr(mrd.StreamItem, _IMAGE_ITEMS[image.data.dtype.name])(image)


def _to_acquisition(item: ismrmrd.Acquisition, mrd: Any) -> Any:
    given = item.getHead()
    order = [channel for channel in range(64 * len(given.channel_mask))
             if given.channel_mask[channel // 64] >> channel % 64 & 1]  # fmt: skip
    fields = _fields(given, _READOUT_NUMBERS, _READOUT_VECTORS) | {
        "flags": mrd.AcquisitionFlags(given.flags),
        "idx": mrd.EncodingCounters(**_fields(given.idx, _COUNTERS, {}, lists=("user",))),
        "channel_order": order if len(order) == given.active_channels else list(range(given.active_channels)),
        "center_sample": given.center_sample,
    }
    return mrd.Acquisition(head=mrd.AcquisitionHeader(**fields), data=item.data, trajectory=item.traj.T)


def _to_image(item: ismrmrd.Image, mrd: Any) -> Any:
    given = item.getHead()
    fields = _fields(given, _IMAGE_NUMBERS, _IMAGE_VECTORS) | {
        "flags": mrd.ImageFlags(given.flags),
        "image_type": mrd.ImageType(given.image_type),
    }
    meta = {
        name: [mrd.ImageMetaValue.String(str(each)) for each in (value if isinstance(value, list) else [value])]
        for name, value in item.meta.items()
    }
    pixels = item.data.astype(IMAGE_DTYPES[given.data_type], copy=False)
    return mrd.Image(head=mrd.ImageHeader(**fields), data=pixels, meta=meta)


def _fields(
    given: Any, numbers: Iterable[str], vectors: dict[str, str], lists: Iterable[str] = _LISTS
) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(given, name) for name in numbers}
    fields |= {theirs: np.array(getattr(given, name), np.float32) for name, theirs in vectors.items()}
    return fields | {name: list(getattr(given, name)) for name in lists}
