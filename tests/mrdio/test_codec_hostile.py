"""The codec against bytes that nobody should send: false sizes, unknown identifiers, attributes that are none."""

import io
import resource
import struct
import time
import tracemalloc
from typing import Any

import ismrmrd
import pytest
from ismrmrd.serialization import ProtocolDeserializer

from conftest import bytes_of, make_acquisition, make_header, make_image, make_waveform
from constants import MessageId
from mrdio import codec
from mrdio.codec import ProtocolError, StreamBroken
from mrdio.limits import Limits


def read_one(stream: Any, limits: Limits = Limits(text=1 << 16, data=1 << 20)) -> codec.Message:  # noqa: B008
    identifier = codec.read_identifier(stream)
    assert identifier is not None
    return codec.read_content(identifier, stream, limits)


# ---- hostile bytes -------------------------------------------------------------------------------------------------

TOO_LARGE = [
    (
        struct.pack("<HI", MessageId.TEXT, 0xFFFFFFFF),
        "a text of 4294967295 bytes is announced, the limit is 67108864",
    ),
    (
        struct.pack("<HI", MessageId.METADATA_XML_TEXT, (4 << 20) + 1),
        "a header of 4194305 bytes is announced, the limit is 4194304",
    ),
]


def image_bytes(matrix_size=(1, 1, 1), channels=1, data_type=1, attributes=b"", length=None, pixels=b"") -> bytes:
    head = ismrmrd.ImageHeader()
    head.matrix_size = matrix_size
    head.channels = channels
    head.data_type = data_type
    length = len(attributes) if length is None else length
    return b"\xfe\x03" + bytes(head) + struct.pack("<Q", length) + attributes + pixels


def acquisition_bytes(**fields: int) -> bytes:
    head = ismrmrd.AcquisitionHeader()
    for name, value in fields.items():
        setattr(head, name, value)
    return b"\xf0\x03" + bytes(head)


def waveform_bytes(**fields: int) -> bytes:
    head = ismrmrd.WaveformHeader()
    for name, value in fields.items():
        setattr(head, name, value)
    return b"\x02\x04" + bytes(head)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        *TOO_LARGE,
        (
            image_bytes((65535, 65535, 65535), 65535, data_type=8),
            f"an image's data of shape {(65535,) * 4} would take {16 * 65535**4} bytes, the limit is 4294967296",
        ),
        (
            image_bytes(length=2**64 - 1),
            f"an image announces {2**64 - 1} bytes of attributes, the limit is 4194304",
        ),
        (
            acquisition_bytes(number_of_samples=65535, active_channels=65535),
            f"an acquisition's data of shape (65535, 65535) would take {8 * 65535**2} bytes, the limit is 4294967296",
        ),
        (
            acquisition_bytes(number_of_samples=65535, trajectory_dimensions=65535),
            f"an acquisition's trajectory of shape (65535, 65535) would take 17179344900 bytes, the limit is {4 << 30}",
        ),
        (
            waveform_bytes(number_of_samples=65535, channels=65535),
            f"a waveform's data of shape (65535, 65535) would take {4 * 65535**2} bytes, the limit is 4294967296",
        ),
    ],
)
def test_announced_sizes_over_the_limit_are_refused_before_memory_is_taken(raw, text):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            read_one(io.BytesIO(raw + bytes(64)), Limits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value) == text
    assert peak < 1 << 20


def test_memory_of_an_announced_size_is_only_taken_as_data_come():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StreamBroken, match="after 64 bytes of an image's data, expected 1073594370"):
        read_one(io.BytesIO(image_bytes((65535, 8191, 1), 1, data_type=1) + bytes(64)), Limits())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # [KiB]


@pytest.mark.parametrize(
    ("raw", "size", "limit"),
    [
        (bytes_of("0123456789"), 10, "text"),
        (bytes_of(make_header()), len(make_header().toXML()), "header"),
        (image_bytes(attributes=b"<ismrmrdMeta />", pixels=b"ab"), 15, "attributes"),
        (bytes_of(make_acquisition(channels=2, samples=3)), 48, "data"),
        (bytes_of(make_acquisition(channels=1, samples=3, dimensions=9)), 108, "data"),
        (bytes_of(make_waveform(channels=2, samples=3)), 24, "data"),
        (bytes_of(make_image(shape=(2, 2, 2, 3))), 96, "data"),
    ],
)
def test_limits_are_inclusive(raw, size, limit):
    large = {"text": 1000, "data": 1000, "header": 2000, "attributes": 1000}
    read_one(io.BytesIO(raw), Limits(**large | {limit: size}))
    with pytest.raises(ProtocolError, match=rf"the limit is {size - 1}"):
        read_one(io.BytesIO(raw), Limits(**large | {limit: size - 1}))


@pytest.mark.parametrize("identifier", [0, 6, 999, 1000, 1024, 1025, 1030, 4096, 65535])
def test_unknown_identifiers(identifier):
    with pytest.raises(ProtocolError) as caught:
        read_one(io.BytesIO(struct.pack("<H", identifier) + bytes(2000)))
    assert str(caught.value) == f"message identifier {identifier} is not one of 1, 2, 3, 4, 5, 1008, 1022, 1026"


@pytest.mark.parametrize("member", [member for member in MessageId if member not in codec.CODECS])
def test_deprecated_identifiers_are_named(member):
    with pytest.raises(ProtocolError) as caught:
        read_one(io.BytesIO(struct.pack("<H", member) + bytes(2000)))
    assert str(caught.value) == (
        f"message identifier {int(member)} ({member.name}, deprecated) is not one of 1, 2, 3, 4, 5, 1008, 1022, 1026"
    )


@pytest.mark.parametrize("data_type", [0, 9, 65535])
def test_unknown_pixel_types(data_type):
    with pytest.raises(ProtocolError) as caught:
        read_one(io.BytesIO(image_bytes(data_type=data_type, pixels=bytes(16))))
    assert str(caught.value) == f"an image has the data type {data_type}, known are [1, 2, 3, 4, 5, 6, 7, 8]"


# ---- attributes ----------------------------------------------------------------------------------------------------

ENTITIES = '<!DOCTYPE x [<!ENTITY a "boom">]><ismrmrdMeta><meta><name>a</name><value>&a;</value></meta></ismrmrdMeta>'


@pytest.mark.parametrize(
    "attributes",
    [
        "no XML at all",
        "<ismrmrdMeta><meta>",
        "<otherRoot />",
        "<ismrmrdMeta><meta><value>without name</value></meta></ismrmrdMeta>",
        "<ismrmrdMeta>&undefined;</ismrmrdMeta>",
        ENTITIES,
    ],
)
def test_unreadable_attributes_do_not_cost_the_image(attributes, caplog):
    raw = image_bytes((2, 1, 1), attributes=attributes.encode(), pixels=b"abcd")
    message = read_one(io.BytesIO(raw + b"next"))
    assert message.content.data.tobytes() == b"abcd"
    assert message.content.meta["UnreadableAttributes"] == attributes
    assert "boom" not in str(message.content.meta.get("a"))
    assert not caplog.records  # who receives images says it once: a session of them would flood the log


def test_unreadable_attributes_can_be_sent_on():
    # Modules copy attributes from input to output images: what arrives at the client must be XML again.
    raw = image_bytes(attributes=b"\x01\x0b & <broken", pixels=b"ab")
    sent = b"".join(map(bytes, codec.encode(MessageId.ISMRMRD_IMAGE, read_one(io.BytesIO(raw)).content)))
    (image,) = ProtocolDeserializer(io.BytesIO(sent + b"\x04\x00")).deserialize()
    assert "broken" in image.meta["UnreadableAttributes"]


@pytest.mark.parametrize(
    "attributes",
    [
        "<ismrmrdMeta>" + "<a>" * 100_000 + "</a>" * 100_000 + "</ismrmrdMeta>",
        "<ismrmrdMeta>" + "<a>" * 1_000_000,
        "<ismrmrdMeta>" + "<meta>" * 100_000 + "</meta>" * 100_000 + "</ismrmrdMeta>",
        "<ismrmrdMeta " + " ".join(f"a{number}=''" for number in range(300_000)) + "/>",
        "<ismrmrdMeta " + " ".join(f"xmlns:a{number}='b'" for number in range(150_000)) + "/>",
        "<ismrmrdMeta>" + "<a/>" * 1_000_000 + "</ismrmrdMeta>",
        "<ismrmrdMeta>" + "<meta><name>a</name><value>1</value></meta>" * 90_000 + "</ismrmrdMeta>",
        "<ismrmrdMeta><meta><name>a</name>" + "<value>1</value>" * 250_000 + "</meta></ismrmrdMeta>",
    ],
    ids=["deep", "deep and never closed", "deep metas", "attributes", "namespaces", "elements", "metas", "values"],
)
def test_huge_attributes_are_done_with_soon(attributes):
    raw = image_bytes((2, 1, 1), attributes=attributes.encode(), pixels=b"abcd")
    start = time.monotonic()
    image = read_one(io.BytesIO(raw), Limits()).content  # with the limits of the server: nearly 4 MiB come this far
    assert image.data.tobytes() == b"abcd"
    assert b"".join(map(bytes, codec.encode(MessageId.ISMRMRD_IMAGE, image)))
    assert time.monotonic() - start < 10


LATIN_1 = (
    b"<?xml version='1.0' encoding='ISO-8859-1'?>"
    b"<ismrmrdMeta><meta><name>key</name><value>\xb5</value></meta></ismrmrdMeta>"
)


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        (b"<ismrmrdMeta><meta><name>key</name><value>\xb5</value></meta></ismrmrdMeta>", "µ"),
        ("<ismrmrdMeta><meta><name>key</name><value>µ</value></meta></ismrmrdMeta>\0\0".encode(), "µ"),
        (b"<ismrmrdMeta><meta><name>key</name><value>1</value><value>2</value></meta></ismrmrdMeta>", ["1", "2"]),
        (LATIN_1, "µ"),
    ],
)
def test_attribute_texts(attributes, value):
    assert read_one(io.BytesIO(image_bytes(attributes=attributes, pixels=b"ab"))).content.meta["key"] == value


def test_stream_of_version_2_is_told_as_such():
    """What a program of MRD version 2 sends to the server."""
    with pytest.raises(ProtocolError, match=r"this is MRD version 2, the server takes version 1; client\.py sends"):
        read_one(io.BytesIO(b"yardl\x01\x00\x00\x00"))
