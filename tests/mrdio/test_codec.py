"""The codec against bytes that the `ismrmrd` package makes, and against bytes that nobody should make."""

import io
import struct
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer

from conftest import bytes_of, make_acquisition, make_header, make_image, make_waveform
from constants import MessageId
from mrdio import codec
from mrdio.codec import IMAGE_DTYPES, MrdError, ProtocolError, SessionEnded, StreamBroken
from mrdio.limits import Limits

LIMITS = Limits(text=1 << 16, data=1 << 20)


@dataclass(frozen=True)
class Case:
    """A message: what the `ismrmrd` package is given, its bytes, our content, and the parts after the identifier."""

    name: str
    identifier: MessageId
    raw: bytes
    content: Any
    parts: tuple[tuple[str, int], ...]


def text_case(name: str, identifier: MessageId, given: Any, content: str) -> Case:
    what = "header" if identifier == MessageId.METADATA_XML_TEXT else "text"
    parts = ((f"a {what} length", 4), (what, len(content.encode())))
    return Case(name, identifier, bytes_of(given), content, parts)


def acquisition_case(name: str, **options: int) -> Case:
    acquisition = make_acquisition(5, **options)
    parts = (
        ("an acquisition header", 340),
        ("an acquisition's trajectory", acquisition.traj.nbytes),
        ("an acquisition's data", acquisition.data.nbytes),
    )
    return Case(name, MessageId.ISMRMRD_ACQUISITION, bytes_of(acquisition), acquisition, parts)


def waveform_case(name: str, **options: int) -> Case:
    waveform = make_waveform(5, **options)
    parts = (("a waveform header", 40), ("a waveform's data", waveform.data.nbytes))
    return Case(name, MessageId.ISMRMRD_WAVEFORM, bytes_of(waveform), waveform, parts)


def image_case(name: str, **options: Any) -> Case:
    image = make_image(5, **options)
    raw = bytes_of(image)  # sets the length of the attributes in the image's own header
    parts = (
        ("an image header", 198),
        ("an image's attribute length", 8),
        ("an image's attributes", len(image.attribute_string.encode())),
        ("an image's data", image.data.nbytes),
    )
    return Case(name, MessageId.ISMRMRD_IMAGE, raw, image, parts)


CASES = [
    Case("config file", MessageId.CONFIG_FILE, bytes_of(ConfigFile("größe")), "größe", (("CONFIG_FILE", 1024),)),
    Case("empty config file", MessageId.CONFIG_FILE, bytes_of(ConfigFile("")), "", (("CONFIG_FILE", 1024),)),
    Case(
        "longest config file", MessageId.CONFIG_FILE, bytes_of(ConfigFile("x" * 1023)), "x" * 1023,
        (("CONFIG_FILE", 1024),),
    ),
    text_case("config text", MessageId.CONFIG_TEXT, ConfigText("<config>µ</config>"), "<config>µ</config>"),
    text_case("header", MessageId.METADATA_XML_TEXT, make_header(), make_header().toXML()),
    text_case("text", MessageId.TEXT, "INFO     ein Text mit Ümlaut\n", "INFO     ein Text mit Ümlaut\n"),
    text_case("empty text", MessageId.TEXT, "", ""),
    acquisition_case("acquisition"),
    acquisition_case("acquisition with trajectory", channels=1, samples=7, dimensions=3),
    acquisition_case("acquisition without samples", samples=0, dimensions=2),
    acquisition_case("acquisition without channels", channels=0, samples=4),
    acquisition_case("acquisition of one sample", channels=1, samples=1, dimensions=1),
    waveform_case("waveform"),
    waveform_case("waveform without samples", samples=0),
    waveform_case("waveform without channels", channels=0),
    image_case("image", meta={"DataRole": "Image", "Größe": ["1", "µ"]}),
    image_case("image without attributes", shape=(3, 2, 3, 4), dtype=np.complex64),
    image_case("image without pixels", shape=(1, 1, 0, 4)),
]  # fmt: skip
CLOSE = Case("close", MessageId.CLOSE, b"\x04\x00", None, ())

every_case = pytest.mark.parametrize("case", [*CASES, CLOSE], ids=lambda case: case.name)
every_case_with_content = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class OneByteAtATime(io.RawIOBase):
    """Gives one byte per read, as a slow network may."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(memoryview(buffer)[:1])


def read_one(stream: Any, limits: Limits = LIMITS) -> codec.Message:
    identifier = codec.read_identifier(stream)
    assert identifier is not None
    return codec.read_content(identifier, stream, limits)


def encoded(identifier: MessageId, content: Any = None) -> bytes:
    return b"".join(bytes(part) for part in codec.encode(identifier, content))


def assert_is(message: codec.Message, case: Case) -> None:
    assert message.identifier is case.identifier
    assert message.content == case.content
    if hasattr(case.content, "data"):
        assert message.content.data.dtype == case.content.data.dtype
        assert message.content.data.shape == case.content.data.shape
        assert bytes(message.content.getHead()) == bytes(case.content.getHead())


# ---- round trips ---------------------------------------------------------------------------------------------------


def test_cases_cover_the_table():
    assert {case.identifier for case in [*CASES, CLOSE]} == set(codec.CODECS)


@every_case
def test_reads_a_message_whole(case):
    stream = io.BytesIO(case.raw)
    assert_is(read_one(stream), case)
    assert stream.read() == b""


@every_case
def test_reads_a_message_that_comes_byte_by_byte(case):
    assert_is(read_one(io.BufferedReader(OneByteAtATime(case.raw), 64)), case)


@every_case
def test_leaves_what_follows_a_message(case):
    stream = io.BytesIO(case.raw + b"what follows")
    assert_is(read_one(stream), case)
    assert stream.read() == b"what follows"


@every_case
def test_writes_what_the_package_writes(case):
    assert encoded(case.identifier, case.content) == case.raw


@every_case_with_content
def test_the_package_reads_what_is_written(case):
    stream = io.BytesIO(encoded(case.identifier, case.content) + CLOSE.raw)
    (item,) = ProtocolDeserializer(stream).deserialize()
    if case.identifier == MessageId.METADATA_XML_TEXT:
        assert item == make_header()
    else:
        assert item == case.content


def test_written_arrays_are_not_copied():
    acquisition = make_acquisition()
    assert any(np.shares_memory(acquisition.data, part) for part in codec.encode(1008, acquisition)[1:])


def test_strided_arrays_are_written_in_order():
    acquisition = make_acquisition(1, channels=2, samples=6)
    strided = ismrmrd.Acquisition(acquisition.getHead(), np.asfortranarray(acquisition.data), acquisition.traj)
    assert encoded(MessageId.ISMRMRD_ACQUISITION, strided) == bytes_of(acquisition)


def test_sizes_of_the_headers_are_those_of_the_protocol():
    assert len(bytes_of(make_acquisition(samples=0))) == 2 + 340
    assert len(bytes_of(make_waveform(samples=0))) == 2 + 40
    assert len(bytes_of(make_image(shape=(1, 1, 1, 0)))) == 2 + 198 + 8


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f4", "f8", "c8", "c16"])
def test_every_pixel_type(dtype):
    image = make_image(3, (2, 1, 3, 5), dtype)
    if dtype[0] in "iu":  # the ends of the range must survive
        info = np.iinfo(dtype)
        image.data.reshape(-1)[:2] = info.min, info.max
    raw = bytes_of(image)
    message = read_one(io.BytesIO(raw))
    np.testing.assert_array_equal(message.content.data, image.data)
    assert message.content.data.dtype.kind == np.dtype(dtype).kind
    assert message.content.getHead().data_type == image.getHead().data_type
    assert encoded(MessageId.ISMRMRD_IMAGE, image) == raw
    assert encoded(MessageId.ISMRMRD_IMAGE, message.content) == raw


def test_platform_integers_of_the_package_are_written_as_32_bits():
    pixels = np.arange(-3, 3).reshape(1, 1, 2, 3)  # int64, which the package files under the 32-bit type
    raw = encoded(MessageId.ISMRMRD_IMAGE, ismrmrd.Image.from_array(pixels))
    assert len(raw) == 2 + 198 + 8 + 4 * pixels.size
    assert np.array_equal(np.frombuffer(raw[-24:], "<i4"), pixels.ravel())


# ---- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", [MessageId.CONFIG_TEXT, MessageId.METADATA_XML_TEXT, MessageId.TEXT])
@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"plain", "plain"),
        (b"terminated\0", "terminated"),
        (b"padded\0\0\0\0", "padded"),
        (b"what stands behind\0 the end", "what stands behind"),
        (b"\0", ""),
        ("µ-Ω".encode(), "µ-Ω"),
        (b"\xb5 in Latin-1", "µ in Latin-1"),
        (bytes(range(1, 256)), bytes(range(1, 256)).decode("latin-1")),
    ],
)
def test_text_payloads(identifier, payload, text):
    stream = io.BytesIO(struct.pack("<HI", identifier, len(payload)) + payload + b"next")
    assert read_one(stream).content == text
    assert stream.read() == b"next"


def test_config_file_without_room_for_a_nul():
    assert read_one(io.BytesIO(b"\x01\x00" + b"y" * 1024)).content == "y" * 1024


def test_config_file_with_garbage_behind_its_nul():
    payload = b"null\0" + b"\xff" * 1019
    assert read_one(io.BytesIO(b"\x01\x00" + payload)).content == "null"


@pytest.mark.parametrize("name", ["x" * 1024, "µ" * 512])
def test_config_names_that_do_not_fit_are_refused(name):
    with pytest.raises(ProtocolError, match="a config name of 1024 bytes does not fit into 1023"):
        codec.encode(MessageId.CONFIG_FILE, name)


def test_text_with_a_lone_surrogate_can_be_sent():
    # JSON parameters may hold "\ud800"; an error message that quotes it must still reach the client.
    stream = io.BytesIO(encoded(MessageId.TEXT, "ERROR    option \ud800 is unknown"))
    text = read_one(stream).content
    assert text.startswith("ERROR    option ")
    assert text.endswith(" is unknown")


@pytest.mark.parametrize("character", ["\ud800", "\ufffe", "\x00", "\x1b"])
def test_attributes_with_what_no_xml_may_hold_can_be_read(character):
    # A fallback image quotes the error of its module, which may hold anything.
    image = make_image(meta={"why": f"an {character} error", "kept": "&#55296; is text, and so is &#65;\ud7ff\ue000"})
    (received,) = ProtocolDeserializer(io.BytesIO(encoded(MessageId.ISMRMRD_IMAGE, image) + b"\x04\x00")).deserialize()
    assert received.meta["why"] == "an \ufffd error"
    assert received.meta["kept"] == "&#55296; is text, and so is &#65;\ud7ff\ue000"


# ---- truncation ----------------------------------------------------------------------------------------------------


def expected_break(case: Case, cut: int) -> str:
    """Error text for a message of which only the first bytes come."""
    if cut == 1:
        return "the stream ends after 1 byte of a message identifier, expected 2"
    start = 2
    for what, length in case.parts:
        if cut < start + length:
            return f"the stream ends after {cut - start} bytes of {what}, expected {length}"
        start += length
    raise AssertionError("the case's parts do not add up to its bytes")


@every_case
def test_truncation_at_every_byte(case):
    assert 2 + sum(length for _, length in case.parts) == len(case.raw)
    assert list(codec.read_messages(io.BytesIO(b""), LIMITS)) == []
    for cut in range(1, len(case.raw)):
        for stream in (io.BytesIO(case.raw[:cut]), io.BufferedReader(OneByteAtATime(case.raw[:cut]))):
            with pytest.raises(StreamBroken) as caught:
                list(codec.read_messages(stream, LIMITS))
            assert str(caught.value) == expected_break(case, cut)


def test_exceptions_are_what_callers_catch():
    assert issubclass(StreamBroken, MrdError)
    assert issubclass(StreamBroken, ConnectionError)
    assert issubclass(ProtocolError, MrdError)
    assert issubclass(ProtocolError, ValueError)
    assert issubclass(SessionEnded, MrdError)


# ---- streams of messages -------------------------------------------------------------------------------------------


def test_a_stream_of_messages_in_order_up_to_close():
    items = [make_acquisition(number) for number in range(3)] + [make_waveform(1), make_image(2), "text"]
    raw = bytes_of(*items)
    for ending in (b"", CLOSE.raw, CLOSE.raw + b"anything behind CLOSE"):
        assert [message.content for message in codec.read_messages(io.BytesIO(raw + ending))] == items


# ---- the table -----------------------------------------------------------------------------------------------------


def test_pixel_types_are_those_of_the_protocol():
    expected = ["uint16", "int16", "uint32", "int32", "float32", "float64", "complex64", "complex128"]
    assert {number: dtype.name for number, dtype in IMAGE_DTYPES.items()} == dict(enumerate(expected, 1))
