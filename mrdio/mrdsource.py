"""Data that a client sends: the content of an MRD .h5 file or of an ISMRMRD stream file, through one interface."""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import ismrmrd

from constants import MessageId
from mrdio.codec import Message, MrdError, read_messages
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

Item: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image


@dataclass(frozen=True)
class Source(AbstractContextManager):
    """A file opened for sending.

    Attributes
    ----------
    header_xml, json_parameters : str or None
        MRD header and JSON parameters of the file.
    items : iterator
        Readouts and waveforms in time order, then images; can be iterated over once.
    total : int or None
        How many items there are, where the file tells.
    close : callable
        Closes the file.
    """

    header_xml: str | None
    json_parameters: str | None
    items: Iterator[Item]
    total: int | None
    close: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: Path, group: str | None = None, waveforms: bool = False) -> Source:
    """Open a file for sending.

    Parameters
    ----------
    path : Path
        An MRD .h5 file or an ISMRMRD stream file.
    group : str, optional
        Group of an .h5 file; may be left out when it has only one.
    waveforms : bool
        Whether waveforms are sent as well.

    Raises
    ------
    MrdFileError
        If the file is neither, holds no data, or the group is not there or must be named.
    """
    if path.is_fifo() or path.is_char_device():  # which would block, or never end
        raise MrdFileError(f"{path} is a pipe or device, not a file")
    try:
        with path.open("rb") as stream:
            is_hdf5 = stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    except OSError as error:
        raise MrdFileError(f"{path} cannot be read: {error.strerror}") from error
    return _open_hdf5(path, group, waveforms) if is_hdf5 else _open_stream(path, waveforms)


def _open_hdf5(path: Path, group: str | None, waveforms: bool) -> Source:
    reader = MrdReader(path, group)
    readouts_and_waveforms = in_time_order(reader.acquisitions(), reader.waveforms() if waveforms else iter(()))
    total = reader.acquisition_count + reader.image_count + (reader.waveform_count if waveforms else 0)
    if not total:
        reader.close()
        raise MrdFileError(f"{path}: group '{reader.group}' holds neither readouts nor images to send")
    return Source(
        header_xml=reader.header_xml,
        json_parameters=reader.json_parameters,
        items=itertools.chain(readouts_and_waveforms, reader.images()),
        total=total,
        close=reader.close,
    )


def first_sample(waveform: ismrmrd.Waveform) -> float:
    """Time stamp of a waveform [ticks]."""
    return waveform.time_stamp


def in_time_order(
    acquisitions: Iterator[ismrmrd.Acquisition],
    waveforms: Iterator[ismrmrd.Waveform],
    due: Callable[[ismrmrd.Waveform], float] = first_sample,
) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
    """Merge readouts, in their order, with waveforms: each waveform before the first readout that is not older.

    Parameters
    ----------
    acquisitions, waveforms
        Messages to merge.
    due
        Time at which a waveform is to be sent [ticks].
    """
    waveform = next(waveforms, None)
    for acquisition in acquisitions:
        while waveform is not None and due(waveform) <= acquisition.acquisition_time_stamp:
            yield waveform
            waveform = next(waveforms, None)
        yield acquisition
    if waveform is not None:
        yield waveform
        yield from waveforms


def _open_stream(path: Path, waveforms: bool) -> Source:
    stream = path.open("rb")
    try:
        opening, rest = _split_opening(_checked_messages(path, stream))
        if rest is None:
            raise MrdFileError(f"{path} holds neither readouts nor images to send")
    except BaseException:
        stream.close()
        raise
    return Source(
        header_xml=opening.get(MessageId.METADATA_XML_TEXT),
        json_parameters=opening.get(MessageId.TEXT),
        items=(item for item in rest if waveforms or not isinstance(item, ismrmrd.Waveform)),
        total=None,
        close=stream.close,
    )


def _checked_messages(path: Path, stream: io.BufferedIOBase) -> Iterator[Message]:
    try:
        yield from read_messages(stream)
    except MrdError as error:
        raise MrdFileError(f"{path} is no MRD .h5 file, and as an ISMRMRD stream it breaks off: {error}") from error


def _split_opening(messages: Iterator[Message]) -> tuple[dict[MessageId, Any], Iterator[Item] | None]:
    """Opening messages by identifier, and the data that follow them, if any; texts between data are dropped."""
    opening: dict[MessageId, Any] = {}
    data = (MessageId.ISMRMRD_ACQUISITION, MessageId.ISMRMRD_IMAGE, MessageId.ISMRMRD_WAVEFORM)
    for message in messages:
        if message.identifier in data:
            rest = (later.content for later in messages if later.identifier in data)
            return opening, itertools.chain([message.content], rest)
        opening[message.identifier] = message.content
    return opening, None
