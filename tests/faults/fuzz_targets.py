"""Entrances for bytes from outside, as functions that raise when a promise is broken, and words for the fuzzer.

``tests/fuzz_corpus/NAME`` has the seeds of each. Properties that need more are in ``tests/mrdio/test_properties.py``.
"""

import io
import logging
import re
import socket
import tempfile
from pathlib import Path

import ismrmrd
import numpy as np
from ismrmrd.serialization import ProtocolDeserializer

import analyzeflow
import report
from connection import Connection
from constants import MessageId
from mrdio.codec import CODECS, MrdError, ProtocolError, decode_text, encode, make_image, read_messages
from mrdio.conversion import convert_stream, protocol_name
from mrdio.jsonparameters import parse_parameters
from mrdio.limits import Limits
from mrdio.mrdfile import MrdReader
from mrdio.mrdheader import parse_header
from recon.configuration import ConfigurationError, load
from recon.moduleparameters import read_parameters
from recon.trajectory import TrajectoryError, read_metafile
from rtspiral_bart_tvrecon import TfdConfig
from scripted import CLOSE, fingerprint
from serving.module_loader import ModuleError, ModuleLoader
from serving.session import Session, SessionOptions
from simplenufft1arm import ViewSharingConfig
from spiral_xdgrasp_recon import XdConfig

LIMITS = Limits(text=1 << 16, header=1 << 15, attributes=1 << 14, data=1 << 20, json=1 << 12, images=3, timeout=1.0)
DATA = (MessageId.ISMRMRD_ACQUISITION, MessageId.ISMRMRD_IMAGE, MessageId.ISMRMRD_WAVEFORM)
TEMPORARY = tempfile.TemporaryDirectory(prefix="fuzz")
FOLDER = Path(TEMPORARY.name)
RAN = FOLDER / "ran"  # appears when a module that is only looked for runs
MODULES = {
    "echo": "def process(connection, config, metadata):\n    for item in connection: connection.send_image(item) "
    "if hasattr(item, 'image_type') else connection.send_text(str(item)[:99])\n",
    "hasty": "def process(connection, config, metadata):\n    next(connection, None)\n",
    "failing": "def process(connection, config, metadata):\n    raise RuntimeError([config, metadata])\n",
}
for _name, _source in MODULES.items():
    (FOLDER / f"{_name}.py").write_text(_source, "utf-8")
LOADER = ModuleLoader([FOLDER])


class StrictHandler(logging.Handler):
    """Formats every record and drops it: a log line that cannot be formatted is a finding."""

    def emit(self, record):
        record.getMessage()


def _taken(items):
    """Everything up to the end or the first error, and that error."""
    found = []
    try:
        found.extend(items)  # keeps what came before an error
    except MrdError as error:
        return found, error
    return found, None


def messages(data):
    """Only `MrdError` comes out, no more memory than bytes, and what was read can be sent on."""
    found, _ = _taken(read_messages(io.BytesIO(data), LIMITS))
    assert sum(each.content.data.nbytes for each in found if each.identifier in DATA) <= 2 * len(
        data
    )  # 32 from 16 bits
    for each in found:
        try:
            raw = b"".join(bytes(part) for part in encode(each.identifier, each.content))
        except ProtocolError:
            assert each.identifier == MessageId.CONFIG_FILE  # a name that fills its field has no room for the NUL
            continue
        (again,) = read_messages(io.BytesIO(raw))
        assert fingerprint(again.content) == fingerprint(each.content)


def _sent(data):
    """Socket with these bytes to read and then the end of the stream, and its other side."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)  # the fuzzer's inputs fit into the buffer
    theirs.shutdown(socket.SHUT_WR)
    theirs.settimeout(LIMITS.timeout)
    return ours, theirs


def connection(data):
    """The same messages as from the stream, it always ends, and it ends with CLOSE; the first byte is passed over."""
    data = data[1:]
    ours, theirs = _sent(data)
    with theirs, theirs.makefile("rb") as answer:
        reading = Connection(ours, LIMITS)
        found, error = _taken(reading)
        expected, expected_error = _taken(read_messages(io.BytesIO(data), LIMITS))
        assert [*map(fingerprint, found)] == [fingerprint(each.content) for each in expected]
        assert expected_error is None or type(error) is type(expected_error)
        counts = (reading.recvAcqs, reading.recvImages, reading.recvWaveforms)
        assert counts == tuple(sum(each.identifier == kind for each in expected) for kind in DATA)
        assert reading.is_exhausted
        assert reading.next() is None
        reading.send_close()
        reading.drain(0.1, 0.1)
        reading.close()
        assert answer.read() == CLOSE


def session(data):
    """It ends, nothing is raised, and the peer gets valid messages with CLOSE once, as the last one."""
    ours, theirs = _sent(data)
    with theirs, theirs.makefile("rb") as answer:
        Session(ours, "session-fuzz", SessionOptions("echo", (FOLDER,), limits=LIMITS), LOADER).run()
        raw = answer.read()
    assert raw.endswith(CLOSE)
    stream = io.BytesIO(raw)
    assert {each.identifier for each in read_messages(stream)} <= {MessageId.ISMRMRD_IMAGE, MessageId.TEXT}
    assert not stream.read()


def header(data):
    """A header or the very text, and a protocol name that is fit for a file name."""
    text = decode_text(data)
    parsed = parse_header(text)
    assert parsed is text or isinstance(parsed, ismrmrd.xsd.ismrmrdHeader)
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,64}", protocol_name(text))


def attributes(data):
    """Any bytes become attributes, and those can be sent so that the `ismrmrd` package reads them."""
    head = ismrmrd.ImageHeader(data_type=ismrmrd.DATATYPE_USHORT, channels=1, matrix_size=(1, 1, 1))
    image = make_image(head, decode_text(data), np.zeros((1, 1, 1, 1), np.uint16))
    for value in (*image.meta, *image.meta.values()):
        assert all(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))
    raw = b"".join(bytes(part) for part in encode(MessageId.ISMRMRD_IMAGE, image))
    (again,) = ProtocolDeserializer(io.BytesIO(raw + CLOSE)).deserialize()
    assert len(again.meta) <= len(image.meta)


def configuration(data):
    """A dataclass or an error that names the file; the first byte selects dataclass and format."""
    choice = data[0] if data else 0
    cls, file = (ViewSharingConfig, TfdConfig, XdConfig)[choice % 3], FOLDER / ("a.json" if choice % 2 else "a.toml")
    file.write_bytes(data[1:])
    try:
        assert type(load(cls, file)) is cls
    except ConfigurationError as error:
        assert str(file) in str(error)  # noqa: PT017 - other exceptions are findings


def parameters(data):
    """JSON parameters are refused with a `ValueError`, of which `ConfigurationError` is one, or a module's own."""
    try:
        sent = parse_parameters(decode_text(data), LIMITS)
    except ValueError:
        return
    for cls in (analyzeflow.Parameters, report.Parameters):
        for config in (sent, {"parameters": sent}):
            try:
                assert type(read_parameters(cls, config)) is cls
            except ConfigurationError:
                continue


def module_names(data):
    """A name (first line) and a source (the rest) lead to a file in the folder, None or `ModuleError`; nothing runs."""
    name, _, source = data.partition(b"\n")
    (FOLDER / "fuzzed.py").write_bytes(b"open(%r, 'w')\n" % str(RAN) + source)
    for each in (decode_text(name), "fuzzed"):
        try:
            assert LOADER.find(each) in (None, FOLDER / f"{each}.py")
        except ModuleError:
            continue
    assert not RAN.exists()


def recording(data):
    """Every message that can be read is in the MRD file, and no stream is lost or left unconverted."""
    expected, error = _taken(read_messages(io.BytesIO(data), LIMITS))
    wanted = [sum(each.identifier == kind for each in expected) for kind in DATA]
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        path = Path(name) / "2026-01-01_00-00-00_fuzz.mrdpart"
        path.write_bytes(data)
        target = convert_stream(path, LIMITS)
        assert (target is not None) == any(wanted)
        assert not path.exists()
        assert len([*Path(name).glob("*.broken")]) == isinstance(error, ProtocolError)
        if target is not None:
            with MrdReader(target) as reader:
                kept = [[*reader.acquisitions()], [*reader.images()], [*reader.waveforms()]]
            assert [*map(len, kept)] == wanted


def metafile(data):
    """A trajectory or an error that names the file, whatever the MATLAB file holds."""
    file = FOLDER / "a.mat"
    file.write_bytes(data)
    try:
        assert np.isfinite(read_metafile(file).k).all()
    except TrajectoryError as error:
        assert str(file) in str(error)  # noqa: PT017 - other exceptions are findings


_IDENTIFIERS = [int(each).to_bytes(2, "little") for each in CODECS]
_XML = [b"<ismrmrdHeader", b"<encoding>", b"</", b"/>", b"<!--", b"<?xml", b"<![CDATA[", b"&amp;", b"&#x0;", b"xmlns="]
_META = [b"<ismrmrdMeta>", b"<meta>", b"<name>", b"<value>", b"</ismrmrdMeta>", b"<!DOCTYPE", b"&lt;", b"&#55296;"]
_JSON = [b'{"parameters":', b'"customconfig"', b'"config"', b"NaN", b"1e999", b"\\ud800", b"null", b"true"]

# Name: the function, and words that mutations may put in.
TARGETS = {
    "messages": (messages, _IDENTIFIERS),
    "connection": (connection, _IDENTIFIERS),
    "session": (session, [*_IDENTIFIERS, *(each.encode() for each in MODULES), b"null", b"savedataonly", *_JSON]),
    "recording": (recording, _IDENTIFIERS),
    "header": (header, _XML),
    "attributes": (attributes, _META),
    "configuration": (
        configuration,
        [b"[reconstruction]", b"[binning]", b"metafile_paths", b"num_iter", b"inf", b"nan"],
    ),
    "parameters": (parameters, [*_JSON, b'"maskThreshold"', b'"venc"', b'"reportSize"', b'"sendOriginal"', b'"True"']),
    "module_names": (module_names, [b"def process(a, b, c): pass", b"process = 1", b"if 1:", b"try:", b"# coding: "]),
    "metafile": (metafile, [b"kx", b"ky", b"w", b"param", b"\x0e\x00\x00\x00", b"\x0f\x00\x00\x00"]),
}
