"""What holds for every message, file, configuration and session, on examples that hypothesis makes up.

The examples follow from the source of each test (``derandomize``), so that a run can be repeated.
"""

import contextlib
import ctypes
import io
import json
import math
import re
import socket
import struct
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ismrmrd.serialization import ConfigFile, ConfigText

from conftest import PATIENCE, bytes_of, header_xml, make_acquisition, make_image, make_waveform, write_module
from constants import MessageId
from mrdio import codec
from mrdio.codec import IMAGE_DTYPES, ProtocolError, StreamBroken, read_messages
from mrdio.conversion import convert_stream
from mrdio.limits import Limits
from mrdio.mrdfile import MrdReader, MrdWriter
from recon.configuration import ConfigurationError, declared, load, project_path
from rtspiral_bart_tvrecon import TfdConfig
from scripted import fingerprint
from serving.module_loader import ModuleLoader
from serving.session import Session, SessionOptions
from simplenufft1arm import ViewSharingConfig
from spiral_xdgrasp_recon import XdConfig

reproducible = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
few = settings(reproducible, max_examples=25)

# ---- examples ------------------------------------------------------------------------------------------------------

EXTENTS = st.integers(0, 5)
NO_SURROGATES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@st.composite
def headers(draw, kind, **fields):
    """Header with any bits in all its fields (infinities and NaN among them) but those that give the sizes."""
    any_bits = kind.from_buffer_copy(draw(st.binary(min_size=ctypes.sizeof(kind), max_size=ctypes.sizeof(kind))))
    head = kind()
    for name, _ in kind._fields_:  # what lies between the fields is nobody's
        setattr(head, name, getattr(any_bits, name))
    for name, value in fields.items():
        setattr(head, name, value)
    return head


@st.composite
def arrays(draw, shape, dtype):
    """Array of any bits."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def acquisitions(draw):
    channels, samples, dimensions = draw(EXTENTS), draw(EXTENTS), draw(EXTENTS)
    fields = {"active_channels": channels, "number_of_samples": samples, "trajectory_dimensions": dimensions}
    head = draw(headers(ismrmrd.AcquisitionHeader, **fields))
    data, trajectory = draw(arrays((channels, samples), "c8")), draw(arrays((samples, dimensions), "f4"))
    return MessageId.ISMRMRD_ACQUISITION, ismrmrd.Acquisition(head, data, trajectory)


@st.composite
def waveforms(draw):
    channels, samples = draw(EXTENTS), draw(EXTENTS)
    head = draw(headers(ismrmrd.WaveformHeader, channels=channels, number_of_samples=samples))
    return MessageId.ISMRMRD_WAVEFORM, ismrmrd.Waveform(head, draw(arrays((channels, samples), "u4")))


@st.composite
def images(draw):
    data_type = draw(st.sampled_from(sorted(IMAGE_DTYPES)))
    channels, z, y, x = shape = tuple(draw(EXTENTS) for _ in range(4))
    fields = {"data_type": data_type, "channels": channels, "matrix_size": (x, y, z)}
    head = draw(headers(ismrmrd.ImageHeader, **fields))
    meta = ismrmrd.Meta({"DataRole": "Image", "ImageComment": ["ä", "b"]}).serialize() if draw(st.booleans()) else ""
    pixels = draw(arrays(shape, IMAGE_DTYPES[data_type]))
    return MessageId.ISMRMRD_IMAGE, codec.make_image(head, meta, pixels)


@st.composite
def texts(draw):
    return draw(st.sampled_from([MessageId.TEXT, MessageId.CONFIG_TEXT, MessageId.METADATA_XML_TEXT])), draw(
        NO_SURROGATES
    )


CONFIG_FILES = st.tuples(st.just(MessageId.CONFIG_FILE), NO_SURROGATES)
DATA = st.one_of(acquisitions(), waveforms(), images())
MESSAGES = st.one_of(DATA, texts(), CONFIG_FILES)


def encoded(identifier, content=None):
    return b"".join(bytes(part) for part in codec.encode(identifier, content))


def of_package(identifier, content):
    """The same message as the `ismrmrd` package writes it."""
    wrapped = {MessageId.CONFIG_FILE: ConfigFile, MessageId.CONFIG_TEXT: ConfigText}.get(identifier, lambda each: each)
    if identifier == MessageId.METADATA_XML_TEXT:  # of which it only writes what it has made itself
        return struct.pack("<HI", identifier, len(content.encode())) + content.encode()
    return bytes_of(wrapped(content))


# ---- messages ------------------------------------------------------------------------------------------------------


@reproducible
@given(MESSAGES)
def test_messages_come_back_as_they_were(message):
    identifier, content = message
    raw = encoded(identifier, content)
    (again,) = read_messages(io.BytesIO(raw))
    assert again.identifier == identifier
    assert fingerprint(again.content) == fingerprint(content)
    assert encoded(identifier, again.content) == raw


@reproducible
@given(MESSAGES)
def test_messages_are_those_of_the_package(message):
    assert encoded(*message) == of_package(*message)


@reproducible
@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_chunks_do_not_matter(messages, sizes):
    """Bytes that arrive in pieces of any sizes are the same messages."""
    raw = b"".join(encoded(*each) for each in messages)
    stream = io.BufferedReader(Pieces(raw, sizes), 512)
    found = list(read_messages(stream))
    assert [fingerprint(each.content) for each in found] == [fingerprint(content) for _, content in messages]


class Pieces(io.RawIOBase):
    """Gives pieces of these sizes, again and again."""

    def __init__(self, data, sizes):
        self._data, self._sizes, self._count = io.BytesIO(data), sizes, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self._count += 1
        return self._data.readinto(memoryview(buffer)[: self._sizes[self._count % len(self._sizes)]])


@reproducible
@given(st.lists(MESSAGES, min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_early_says_so(messages, data):
    """The whole messages come, then `StreamBroken`, unless the stream ends between two messages."""
    parts = [encoded(*each) for each in messages]
    raw = b"".join(parts)
    ends = np.cumsum([0, *map(len, parts)])
    cut = data.draw(st.integers(0, len(raw) - 1))
    whole = int(np.searchsorted(ends, cut, side="right")) - 1
    stream = read_messages(io.BytesIO(raw[:cut]))
    for _, content in messages[:whole]:
        assert fingerprint(next(stream).content) == fingerprint(content)
    if cut in ends:
        assert next(stream, None) is None
    else:
        with pytest.raises(StreamBroken):
            next(stream)


@reproducible
@given(st.sampled_from([MessageId.TEXT, MessageId.CONFIG_TEXT, MessageId.CONFIG_FILE]), st.text(max_size=300))
@example(MessageId.TEXT, "before\0behind")
@example(MessageId.CONFIG_FILE, "\ud800")
def test_any_text_can_be_sent(identifier, text):
    """Up to its first NUL; half a character becomes a question mark."""
    try:
        raw = encoded(identifier, text)
    except ProtocolError:
        assert identifier == MessageId.CONFIG_FILE
        assert len(text.encode("utf-8", "replace")) > 1023
        return
    (message,) = read_messages(io.BytesIO(raw))
    assert message.content == re.sub("[\ud800-\udfff]", "?", text.partition("\0")[0])


NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


WORDS = st.text(max_size=9)


def through_xml(text):
    """A text behind XML: line ends are one character there, what no XML can hold is marked."""
    return NOT_XML.sub("\ufffd", text.replace("\ud800", "?")).replace("\r\n", "\n").replace("\r", "\n")


@reproducible
@given(st.dictionaries(WORDS, WORDS | st.lists(WORDS, min_size=2, max_size=3)))
@example({"empty": "", "": "nameless", "several": ["", "x"], "control": "\x01", "lines": "a\r\nb"})
def test_attributes_come_back(attributes):
    image = ismrmrd.Image(meta=ismrmrd.Meta(attributes), data=np.zeros((1, 1, 1, 1), np.uint16))
    (message,) = read_messages(io.BytesIO(encoded(MessageId.ISMRMRD_IMAGE, image)))
    expected = {}
    for name, value in attributes.items():
        values = [through_xml(each) for each in ([value] if isinstance(value, str) else value)]
        expected.setdefault(through_xml(name), []).extend(values)
    assert message.content.meta == {name: each[0] if len(each) == 1 else each for name, each in expected.items()}


@reproducible
@given(st.binary(max_size=600))
def test_any_bytes_are_messages_or_an_error(raw):
    with contextlib.suppress(StreamBroken, ProtocolError):
        for message in read_messages(io.BytesIO(raw), Limits(text=1000, data=1000)):
            assert message.identifier in codec.CODECS


# ---- files ---------------------------------------------------------------------------------------------------------


BROKEN_PIXELS = np.full((1, 1, 1, 2), [complex(1, np.inf), complex(-0.0, np.nan)], np.complex64)


@few
@given(st.lists(DATA, max_size=6))
@example([(MessageId.ISMRMRD_IMAGE, ismrmrd.Image(meta=ismrmrd.Meta(), data=BROKEN_PIXELS))])
def test_mrd_files_hold_what_was_written(tmp_path, messages):
    path = tmp_path / "any.h5"
    path.unlink(missing_ok=True)
    with MrdWriter(path) as writer:
        for _, content in messages:
            writer.write(content)
    with MrdReader(path) as reader:
        found = [*reader.acquisitions(), *reader.waveforms(), *reader.images()]
    assert sorted(fingerprint(each)[1:] for each in found) == sorted(fingerprint(each)[1:] for _, each in messages)


@few
@given(st.lists(MESSAGES, max_size=6), st.data())
def test_recordings_hold_what_came(tmp_path, messages, data):
    """Of a stream that is cut anywhere, every whole message with data is in the MRD file."""
    parts = [encoded(*each) for each in messages]
    cut = data.draw(st.integers(0, sum(map(len, parts))))
    path = tmp_path / "2026-01-02_03-04-05_any.mrdpart"
    path.write_bytes(b"".join(parts)[:cut])
    ends = np.cumsum(list(map(len, parts)))
    kept = [content for (_, content), end in zip(messages, ends, strict=True) if end <= cut]
    whole = [content for content in kept if hasattr(content, "data")]
    target = convert_stream(path)
    assert (target is not None) == bool(whole)
    assert not path.exists()
    if target is not None:
        with MrdReader(target) as reader:
            found = [*reader.acquisitions(), *reader.waveforms(), *reader.images()]
        assert sorted(fingerprint(each)[1:] for each in found) == sorted(fingerprint(each)[1:] for each in whole)
        target.unlink()


# ---- configurations ------------------------------------------------------------------------------------------------

CONFIGURATIONS = [ViewSharingConfig, TfdConfig, XdConfig]
PATHS = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=8)


def values_for(declaration):
    """Values that a parameter may have, as a file gives them."""
    low, high = declaration.parameter.minimum, declaration.parameter.maximum
    if declaration.parameter.choices:
        return st.sampled_from(declaration.parameter.choices)
    if declaration.parameter.pattern:
        return st.just("") | st.from_regex(declaration.parameter.pattern, fullmatch=True)
    if declaration.kind is bool:
        return st.booleans()
    if declaration.kind is int:
        return st.integers(low, high)
    if declaration.kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if declaration.kind == tuple[Path, ...]:
        return st.lists(PATHS, min_size=1, max_size=3)
    return PATHS | st.just("")


@st.composite
def configurations(draw):
    """Configuration class, and a value for each of some of its keys."""
    cls = draw(st.sampled_from(CONFIGURATIONS))
    chosen = draw(st.lists(st.sampled_from(list(declared(cls))), unique_by=lambda each: each.key))
    return cls, {declaration: draw(values_for(declaration)) for declaration in chosen}


def as_mapping(values):
    mapping = {}
    for declaration, value in values.items():
        table = mapping.setdefault(declaration.table, {}) if declaration.table else mapping
        table[declaration.name] = value
    return mapping


def as_toml(values):
    """The same as TOML; its plain texts and numbers are written as in JSON."""
    lines = []
    for table in ("", "reconstruction", "binning"):
        here = {declaration.name: value for declaration, value in values.items() if declaration.table == table}
        lines += [f"[{table}]"] if table and here else []
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in here.items()]
    return "\n".join(lines)


@reproducible
@given(configurations(), st.sampled_from(["toml", "json"]))
def test_configurations_are_read_as_written(tmp_path, configuration, suffix):
    cls, values = configuration
    path = tmp_path / f"any.{suffix}"
    path.write_text(as_toml(values) if suffix == "toml" else json.dumps(as_mapping(values)), "utf-8")
    loaded = load(cls, path)
    for declaration in declared(cls):
        found = getattr(getattr(loaded, declaration.table) if declaration.table else loaded, declaration.name)
        expected = values.get(declaration, declaration.default)
        if declaration.kind == tuple[Path, ...]:
            expected = tuple(project_path(each) for each in expected)
        elif declaration.kind == Path | None:
            expected = project_path(expected) if expected else None
        assert found == expected
        assert type(found) is type(expected)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@reproducible
@given(st.sampled_from(CONFIGURATIONS), st.data())
def test_a_wrong_value_is_named(tmp_path, cls, data):
    """A configuration with anything as a value is read, or refused with the key's name."""
    declaration = data.draw(st.sampled_from(list(declared(cls))))
    path = tmp_path / "any.json"
    path.write_text(json.dumps(as_mapping({declaration: data.draw(ANYTHING)})), "utf-8")
    try:
        loaded = load(cls, path)
    except ConfigurationError as error:
        loaded, text = None, str(error)
    assert isinstance(loaded, cls) or (f"{declaration.key} = " in text and f"must be {declaration.allowed}" in text)


# ---- sessions ------------------------------------------------------------------------------------------------------

MODULES = {
    "echo": "def process(connection, config, metadata):\n    for item in connection: answer(connection, item)\n",
    "failing": "def process(connection, config, metadata):\n    raise RuntimeError(metadata)\n",
    "leaving": "def process(connection, config, metadata):\n    raise SystemExit(3)\n",
    "closing": "def process(connection, config, metadata):\n    connection.send_close()\n    list(connection)\n",
}
ANSWER = """
import ismrmrd
def answer(connection, item):
    if isinstance(item, ismrmrd.Image):
        connection.send_image(item)
    elif isinstance(item, str):
        connection.send_text(item)
"""


def text(identifier, content):
    return struct.pack("<HI", identifier, len(content.encode())) + content.encode()


CONFIGS = [text(MessageId.CONFIG_TEXT, name) for name in [*MODULES, "null", "no_such_module", "../echo", ""]]
BODY = [
    bytes_of(make_acquisition(1)), bytes_of(make_waveform(1)), bytes_of(make_image(1)), text(MessageId.TEXT, "hello"),
    text(MessageId.TEXT, '{"parameters": {"config": "echo"}}'), text(MessageId.TEXT, '{"parameters": 3}'),
    text(MessageId.TEXT, "{"), text(MessageId.METADATA_XML_TEXT, header_xml()), bytes_of(close=True), b"\xff\xff",
]  # fmt: skip
HEADERS = [text(MessageId.METADATA_XML_TEXT, each) for each in (header_xml(), "no XML", "")]


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    for name, source in MODULES.items():
        write_module(folder, name, ANSWER + source)
    return ModuleLoader([folder])


@st.composite
def conversations(draw):
    """What a peer may send: mostly in the right order, sometimes in any, sometimes cut off."""
    opening = [draw(st.sampled_from(CONFIGS)), draw(st.sampled_from(HEADERS))]
    body = draw(st.lists(st.sampled_from([*BODY, *CONFIGS, *HEADERS]), max_size=6))
    raw = b"".join([*opening, *body] if draw(st.integers(0, 3)) else draw(st.permutations([*opening, *body])))
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw


SESSION_OPTIONS = SessionOptions("null", limits=Limits(timeout=PATIENCE))


@settings(reproducible, max_examples=200)
@given(conversations())
def test_a_session_always_ends_with_one_close(no_leaks, loader, raw):
    ours, theirs = socket.socketpair()
    with theirs, theirs.makefile("rb") as reader:
        theirs.settimeout(PATIENCE)
        theirs.sendall(raw)  # fits into the socket's buffer
        theirs.shutdown(socket.SHUT_WR)
        Session(ours, "session-any", SESSION_OPTIONS, loader).run()
        answer = reader.read()
    stream = io.BytesIO(answer)
    identifiers = [message.identifier for message in read_messages(stream)]
    assert stream.tell() == len(answer)
    assert answer.endswith(bytes_of(close=True))
    assert set(identifiers) <= {MessageId.TEXT, MessageId.ISMRMRD_IMAGE}
    assert ours.fileno() == -1
