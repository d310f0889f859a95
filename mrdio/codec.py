"""MRD messages as bytes and back: one reader and one writer for each message type, in one table.

Nothing here uses a socket: a reader takes any buffered binary stream (a connection, a file, bytes in memory), a writer
returns the buffers that make up the message. The same bytes in a file are an ISMRMRD stream.

Exceptions::

    MrdError                 root of all errors of a session
    ├── StreamBroken         the bytes end, or stop coming, where more were expected (also a ConnectionError)
    ├── ProtocolError        the bytes are no valid MRD message (also a ValueError)
    ├── SessionEnded         something was to be sent after the end of this side's session
    └── LimitReached         a session has reached a limit
"""

import ctypes
import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np
from ismrmrd.image import get_dtype_from_data_type

from constants import ATTRIBUTES_LENGTH, CONFIG_FILE_NAME, IDENTIFIER, TEXT_LENGTH, MessageId
from mrdio.limits import Limits

logger = logging.getLogger(__name__)


class MrdError(Exception):
    """Root of the errors of an MRD session."""


class StreamBroken(MrdError, ConnectionError):
    """The stream ends, or stops coming, where more bytes were expected."""


class ProtocolError(MrdError, ValueError):
    """The bytes are no valid MRD message; the message says which and why."""


class SessionEnded(MrdError, ConnectionError):
    """This side has already sent CLOSE, or its last message could not be sent whole."""


class LimitReached(MrdError):
    """A session has reached a limit; the message names the limit and its flag."""


@dataclass(frozen=True)
class Message:
    """One message: its identifier, and its content as text, `ismrmrd` object, or None for CLOSE."""

    identifier: MessageId
    content: Any = None


# ---- bytes from a stream -------------------------------------------------------------------------------------------


def _read(stream: io.BufferedIOBase, count: int, what: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise StreamBroken(f"the stream ends after {len(data)} bytes of {what}, expected {count}")
    return data


def _read_array(stream: io.BufferedIOBase, shape: tuple[int, ...], dtype: Any, limit: int, what: str) -> np.ndarray:
    """Read a C-ordered array. Its memory is only taken up as data come, so a false size costs nothing."""
    dtype = np.dtype(dtype)
    count = dtype.itemsize
    for extent in shape:
        count *= extent
    if count > limit:
        raise ProtocolError(f"{what} of shape {shape} would take {count} bytes, the limit is {limit}")
    array = np.empty(shape, dtype)
    if count:
        got = stream.readinto(array.reshape(-1).view(np.uint8).data)
        if got != count:
            raise StreamBroken(f"the stream ends after {got} bytes of {what}, expected {count}")
    return array


def decode_text(data: bytes) -> str:
    """Text of a message: up to its terminating NUL if it has one; UTF-8, else Latin-1, which loses no byte."""
    data = data.split(b"\0", 1)[0]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_identifier(stream: io.BufferedIOBase) -> int | None:
    """Identifier of the next message, or None at the end of the stream.

    Raises
    ------
    StreamBroken
        If the stream ends after the first of its two bytes.
    """
    data = stream.read(IDENTIFIER.size)
    if not data:
        return None
    if len(data) != IDENTIFIER.size:
        raise StreamBroken(f"the stream ends after 1 byte of a message identifier, expected {IDENTIFIER.size}")
    return IDENTIFIER.unpack(data)[0]


# ---- readers -------------------------------------------------------------------------------------------------------


def _read_config_file(stream: io.BufferedIOBase, limits: Limits) -> str:
    return decode_text(_read(stream, CONFIG_FILE_NAME.size, "CONFIG_FILE"))


def _read_counted(stream: io.BufferedIOBase, limit: int, what: str) -> str:
    (length,) = TEXT_LENGTH.unpack(_read(stream, TEXT_LENGTH.size, f"a {what} length"))
    if length > limit:
        raise ProtocolError(f"a {what} of {length} bytes is announced, the limit is {limit}")
    return decode_text(_read(stream, length, what))


def _read_text(stream: io.BufferedIOBase, limits: Limits) -> str:
    return _read_counted(stream, limits.text, "text")


def _read_header(stream: io.BufferedIOBase, limits: Limits) -> str:
    return _read_counted(stream, limits.header, "header")


def _read_close(stream: io.BufferedIOBase, limits: Limits) -> None:
    return None


def _read_acquisition(stream: io.BufferedIOBase, limits: Limits) -> ismrmrd.Acquisition:
    header = _read(stream, ctypes.sizeof(ismrmrd.AcquisitionHeader), "an acquisition header")
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(header)
    samples = head.number_of_samples
    trajectory = _read_array(
        stream, (samples, head.trajectory_dimensions), np.float32, limits.data, "an acquisition's trajectory"
    )
    data = _read_array(stream, (head.active_channels, samples), np.complex64, limits.data, "an acquisition's data")
    return ismrmrd.Acquisition(head, data, trajectory)


def _read_waveform(stream: io.BufferedIOBase, limits: Limits) -> ismrmrd.Waveform:
    header = _read(stream, ctypes.sizeof(ismrmrd.WaveformHeader), "a waveform header")
    head = ismrmrd.WaveformHeader.from_buffer_copy(header)
    shape = (head.channels, head.number_of_samples)
    return ismrmrd.Waveform(head, _read_array(stream, shape, np.uint32, limits.data, "a waveform's data"))


def _read_image(stream: io.BufferedIOBase, limits: Limits) -> ismrmrd.Image:
    header = _read(stream, ctypes.sizeof(ismrmrd.ImageHeader), "an image header")
    head = ismrmrd.ImageHeader.from_buffer_copy(header)
    (length,) = ATTRIBUTES_LENGTH.unpack(_read(stream, ATTRIBUTES_LENGTH.size, "an image's attribute length"))
    if length > limits.attributes:
        raise ProtocolError(f"an image announces {length} bytes of attributes, the limit is {limits.attributes}")
    attributes = decode_text(_read(stream, length, "an image's attributes"))
    dtype = IMAGE_DTYPES.get(head.data_type)
    if dtype is None:
        raise ProtocolError(f"an image has the data type {head.data_type}, known are {sorted(IMAGE_DTYPES)}")
    x, y, z = head.matrix_size
    data = _read_array(stream, (head.channels, z, y, x), dtype, limits.data, "an image's data")
    return make_image(head, attributes, data)


def make_image(head: ismrmrd.ImageHeader, attributes: str, data: np.ndarray) -> ismrmrd.Image:
    """Image from its header, the XML of its attributes, and its pixels [channel, z, y, x]."""
    # ismrmrd holds 32-bit integers as 64-bit ones; on the wire and in files they have the 32 bits of their name.
    data = data.astype(get_dtype_from_data_type(head.data_type), copy=False)
    return ismrmrd.Image(head, meta=parse_attributes(attributes), data=data)


IMAGE_DTYPES: dict[int, np.dtype] = {
    ismrmrd.DATATYPE_USHORT: np.dtype(np.uint16),
    ismrmrd.DATATYPE_SHORT: np.dtype(np.int16),
    ismrmrd.DATATYPE_UINT: np.dtype(np.uint32),
    ismrmrd.DATATYPE_INT: np.dtype(np.int32),
    ismrmrd.DATATYPE_FLOAT: np.dtype(np.float32),
    ismrmrd.DATATYPE_DOUBLE: np.dtype(np.float64),
    ismrmrd.DATATYPE_CXFLOAT: np.dtype(np.complex64),
    ismrmrd.DATATYPE_CXDOUBLE: np.dtype(np.complex128),
}


BEGINNING_OF_MRD2 = int.from_bytes(b"ya", "little")  # of "yardl", where a message of version 1 has its identifier
UNREADABLE = "UnreadableAttributes"

PIECE = 1 << 14  # characters of attributes that are read at once: no other thread runs meanwhile

# The interpreter runs one thread at a time. If many sessions read attributes at once, the other sessions would hardly
# run. So one session at a time reads attributes of one length, by powers of two: none waits for far longer ones.
_TURNS = tuple(threading.Lock() for _ in range(64))


def has_document_type(xml: str) -> bool:
    """True if XML declares a document type: MRD never does, and entities can make XML expand without limit."""
    return "<!DOCTYPE" in xml or "<!ENTITY" in xml


def parse_attributes(xml: str) -> ismrmrd.Meta:
    """Meta attributes of an image from their XML.

    An image whose attributes cannot be read is kept: their text is stored under the name `UNREADABLE`.
    """
    try:
        if has_document_type(xml):
            raise ValueError("it declares a document type")
        with _TURNS[len(xml).bit_length()]:
            return _read_meta(xml)
    except (SyntaxError, ValueError) as error:  # ElementTree.ParseError is a SyntaxError
        logger.debug("The attributes of an image are no valid MRD meta XML: %s", error)  # there may be many
        meta = ismrmrd.Meta()
        meta[UNREADABLE] = xml
        return meta


def _read_meta(xml: str) -> ismrmrd.Meta:
    """Read as `ismrmrd.Meta.deserialize`, but piece by piece, as no other thread runs meanwhile.

    An empty text stays one: the package reads it as None, and would write that as the word.
    """
    if not xml:
        return ismrmrd.Meta()
    parser = ET.XMLParser()
    for start in range(0, len(xml), PIECE):
        parser.feed(xml[start : start + PIECE])
    root = parser.close()
    if root.tag != "ismrmrdMeta":
        raise ValueError(f"its root is {root.tag}, not ismrmrdMeta")
    found: dict[str, list[str]] = {}
    for child in root.iterfind("meta"):
        name = child.find("name")
        if name is None:
            raise ValueError("a meta without a name")
        found.setdefault(name.text or "", []).extend(value.text or "" for value in child.iterfind("value"))
    return ismrmrd.Meta((name, values[0] if len(values) == 1 else values) for name, values in found.items())


# ---- writers -------------------------------------------------------------------------------------------------------


def _bytes_of(array: np.ndarray, dtype: Any, *shape: int) -> memoryview:
    if array.shape != shape:  # the peer goes by the header: it would take the next message for the missing bytes
        raise ValueError(f"an array of shape {array.shape} does not fit its header, which says {shape}")
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


# Characters that no XML may hold: with one of them in a value, the peer could read none of the attributes. The package
# writes half characters as references, from &#55296; to &#57343;
_NOT_XML = re.compile(
    "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|&#5(?:529[6-9]|5[3-9][0-9]{2}|6[0-9]{3}|7[0-2][0-9]{2}|73[0-3][0-9]|734[0-3]);"
)


def _encode_text(text: str) -> bytes:
    """UTF-8; half a character, as broken JSON may hold it, becomes a question mark and costs no message."""
    return text.encode("utf-8", "replace")


def _write_config_file(name: str) -> list[bytes]:
    data = _encode_text(name)
    if len(data) >= CONFIG_FILE_NAME.size:
        raise ProtocolError(f"a config name of {len(data)} bytes does not fit into {CONFIG_FILE_NAME.size - 1}")
    return [CONFIG_FILE_NAME.pack(data)]


def _write_text(text: str) -> list[bytes]:
    data = _encode_text(text)
    return [TEXT_LENGTH.pack(len(data)), data]


def _write_close(content: None) -> list[bytes]:
    return []


def _write_acquisition(acquisition: ismrmrd.Acquisition) -> list[bytes | memoryview]:
    head = acquisition.getHead()
    return [
        bytes(head),
        _bytes_of(acquisition.traj, np.float32, head.number_of_samples, head.trajectory_dimensions),
        _bytes_of(acquisition.data, np.complex64, head.active_channels, head.number_of_samples),
    ]


def _write_waveform(waveform: ismrmrd.Waveform) -> list[bytes | memoryview]:
    head = waveform.getHead()
    return [bytes(head), _bytes_of(waveform.data, np.uint32, head.channels, head.number_of_samples)]


def _write_image(image: ismrmrd.Image) -> list[bytes | memoryview]:
    attributes = _encode_text(_NOT_XML.sub("\ufffd", image.attribute_string))
    head = image.getHead()
    head.attribute_string_len = len(attributes)
    x, y, z = head.matrix_size
    pixels = _bytes_of(image.data, IMAGE_DTYPES[head.data_type], head.channels, z, y, x)
    return [bytes(head), ATTRIBUTES_LENGTH.pack(len(attributes)), attributes, pixels]


# ---- the table -----------------------------------------------------------------------------------------------------

Reader = Callable[[io.BufferedIOBase, Limits], Any]
Writer = Callable[[Any], list]

CODECS: dict[int, tuple[Reader, Writer]] = {
    MessageId.CONFIG_FILE: (_read_config_file, _write_config_file),
    MessageId.CONFIG_TEXT: (_read_text, _write_text),
    MessageId.METADATA_XML_TEXT: (_read_header, _write_text),
    MessageId.CLOSE: (_read_close, _write_close),
    MessageId.TEXT: (_read_text, _write_text),
    MessageId.ISMRMRD_ACQUISITION: (_read_acquisition, _write_acquisition),
    MessageId.ISMRMRD_IMAGE: (_read_image, _write_image),
    MessageId.ISMRMRD_WAVEFORM: (_read_waveform, _write_waveform),
}


def read_content(identifier: int, stream: io.BufferedIOBase, limits: Limits) -> Message:
    """Read what follows an identifier.

    Raises
    ------
    ProtocolError
        If the identifier is unknown or deprecated (the length of such a message is unknown, so nothing after it can be
        read), a length exceeds its limit, or a field has no valid value.
    StreamBroken
        If the stream ends within the message.
    """
    codec = CODECS.get(identifier)
    if identifier == BEGINNING_OF_MRD2:
        raise ProtocolError(
            f"message identifier {identifier}: this is MRD version 2, the server takes version 1; client.py sends both"
        )
    if codec is None:
        name = f" ({MessageId(identifier).name}, deprecated)" if identifier in MessageId.__members__.values() else ""
        known = ", ".join(str(int(known)) for known in CODECS)
        raise ProtocolError(f"message identifier {identifier}{name} is not one of {known}")
    read, _ = codec
    return Message(MessageId(identifier), read(stream, limits))


def read_messages(stream: io.BufferedIOBase, limits: Limits | None = None) -> Iterator[Message]:
    """Messages of an ISMRMRD stream, up to CLOSE or to the end of the stream between two messages.

    Raises
    ------
    StreamBroken, ProtocolError
        As in `read_content`.
    """
    limits = limits or Limits()
    while (identifier := read_identifier(stream)) is not None and identifier != MessageId.CLOSE:
        yield read_content(identifier, stream, limits)


def encode(identifier: MessageId, content: Any = None) -> list:
    """Buffers that make up one message, identifier first; arrays are not copied."""
    _, write = CODECS[identifier]
    return [IDENTIFIER.pack(identifier), *write(content)]
