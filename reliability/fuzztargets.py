"""Targets of the fuzzer, and the properties that hold whatever the bytes are.

A target takes any bytes. It returns when the code under test has kept its promise, and raises when it has not: what it
raises then is the finding. Nothing here needs the fuzzer itself, so that tests can run any input through a target.
"""

import functools
import io
import logging
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from ismrmrd.serialization import ProtocolDeserializer

import analyzeflow
import report
from connection import Connection
from constants import MessageId
from mrdio.codec import CODECS, MrdError, ProtocolError, decode_text, encode, make_image, read_messages
from mrdio.jsonparameters import parse_parameters
from mrdio.limits import Limits
from mrdio.mrdfile import MrdReader
from mrdio.mrdheader import parse_header
from mrdio.recordings import convert_stream, protocol_name
from recon.configuration import ConfigurationError, load
from recon.moduleparameters import read_parameters
from recon.trajectory import TrajectoryError, read_metafile
from rtspiral_bart_tvrecon import TfdConfig
from serving.module_loader import ModuleError, ModuleLoader
from serving.session import Session, SessionOptions
from simplenufft1arm import ViewSharingConfig
from spiral_xdgrasp_recon import XdConfig

LIMITS = Limits(text=1 << 16, header=1 << 15, attributes=1 << 14, data=1 << 20, json=1 << 12, images=3, timeout=1.0)
DATA = {MessageId.ISMRMRD_ACQUISITION, MessageId.ISMRMRD_IMAGE, MessageId.ISMRMRD_WAVEFORM}

# What sessions may ask for: a module that sends everything back, one that stops early, one that fails.
MODULES = {
    "echo": (
        "import ismrmrd\n"
        "def process(connection, config, metadata):\n"
        "    for item in connection:\n"
        "        if isinstance(item, ismrmrd.Image): connection.send_image(item)\n"
        "        elif isinstance(item, ismrmrd.Acquisition): connection.send_acquisition(item)\n"
        "        elif isinstance(item, ismrmrd.Waveform): connection.send_waveform(item)\n"
        "        else: connection.send_logging('INFO', item)\n"
    ),
    "hasty": "def process(connection, config, metadata):\n    next(connection, None)\n",
    "failing": (
        "def prepare(config, metadata):\n    raise KeyError(config)\n"
        "def process(connection, config, metadata):\n    raise RuntimeError([config, metadata])\n"
    ),
}


class StrictHandler(logging.Handler):
    """Formats every record and drops it: a log line that cannot be formatted is a finding."""

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record."""
        record.getMessage()


class MemorySocket:
    """Stands for a connected socket: gives bytes in chunks of one size, then its end; keeps what is sent.

    Parameters
    ----------
    data : bytes
        What the peer sends.
    chunk : int
        How much each receiving call gives at most [bytes].
    """

    family = None

    def __init__(self, data: bytes, chunk: int = 1 << 20) -> None:
        self._received = io.BytesIO(data)
        self._chunk = chunk
        self.sent = bytearray()
        self.is_closed = False

    def recv_into(self, buffer: Any) -> int:
        """Give the next bytes."""
        return self._received.readinto(memoryview(buffer)[: self._chunk])

    def sendmsg(self, buffers: list[memoryview]) -> int:
        """Take all bytes of the buffers."""
        before = len(self.sent)
        for part in buffers:
            self.sent += part
        return len(self.sent) - before

    def gettimeout(self) -> float:
        """Longest wait, of which there is none here."""
        return 1.0

    def settimeout(self, seconds: float) -> None:
        """Take the longest wait."""

    def setblocking(self, flag: bool) -> None:
        """Take whether calls wait."""

    def setsockopt(self, *_: int) -> None:
        """Take an option."""

    def shutdown(self, how: int) -> None:
        """End one direction or both."""

    def close(self) -> None:
        """Note the end."""
        self.is_closed = True


def _taken(items: Iterator[Any]) -> tuple[list[Any], MrdError | None]:
    """Everything up to the end or the first error, and that error."""
    found: list[Any] = []
    try:
        found.extend(items)  # keeps what came before an error
    except MrdError as error:
        return found, error
    return found, None


def fingerprint(content: Any) -> tuple:
    """Form of a content by which equal ones compare as equal; broken numbers (NaN) are compared as bytes."""
    if not hasattr(content, "data"):
        return (type(content), content)
    head = content.getHead()
    if isinstance(content, ismrmrd.Image):
        head.attribute_string_len = 0  # the attributes are written anew
    arrays = [content.data] + ([content.traj] if isinstance(content, ismrmrd.Acquisition) else [])
    return (type(content), bytes(head), *((each.shape, each.dtype.str, each.tobytes()) for each in arrays))


def _check(holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(promise)


# ---- targets -------------------------------------------------------------------------------------------------------


def messages(data: bytes) -> None:
    """Message reader: only `MrdError` comes out, no more memory than bytes, and what was read can be sent on."""
    found, _ = _taken(read_messages(io.BytesIO(data), LIMITS))
    size = sum(each.content.data.nbytes for each in found if each.identifier in DATA)
    _check(size <= 2 * len(data), f"{size} bytes of arrays came of {len(data)} bytes")  # 32-bit integers are widened
    for message in found:
        try:
            raw = b"".join(bytes(part) for part in encode(message.identifier, message.content))
        except ProtocolError:
            _check(message.identifier == MessageId.CONFIG_FILE, f"a {message.identifier.name} cannot be sent on")
            continue  # a name that fills its field has no room for the NUL
        (again,) = read_messages(io.BytesIO(raw))
        _check(fingerprint(again.content) == fingerprint(message.content), "a message changes when it is sent on")


def connection(data: bytes) -> None:
    """Connection: whatever the sizes of the chunks, the same messages as from the stream, and it always ends."""
    chunk, stream = 1 + (data[0] if data else 0), data[1:]
    sock = MemorySocket(stream, chunk)
    ours = Connection(sock, LIMITS)
    found, error = _taken(iter(ours))
    expected, expected_error = _taken(read_messages(io.BytesIO(stream), LIMITS))
    contents = [each.content for each in expected]
    _check(list(map(fingerprint, found)) == list(map(fingerprint, contents)), "other messages than from the stream")
    _check(expected_error is None or type(error) is type(expected_error), f"{error!r}, {expected_error!r} expected")
    counts = [sum(isinstance(each, kind) for each in contents)
              for kind in (ismrmrd.Acquisition, ismrmrd.Image, ismrmrd.Waveform)]  # fmt: skip
    _check(counts == [ours.recvAcqs, ours.recvImages, ours.recvWaveforms], "the counters are wrong")
    _check(ours.is_exhausted and ours.next() is None, "the connection goes on after its end")
    ours.drain(0.1, 0.1)
    ours.send_close()
    ours.close()
    _check(sock.is_closed and bytes(sock.sent) == b"\x04\x00", "no ending")


@functools.cache
def _folder() -> Path:
    """Folder for what a target writes; removed when the program ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


@functools.cache
def _modules() -> ModuleLoader:
    folder = _folder() / "modules"
    folder.mkdir()
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source, "utf-8")
    return ModuleLoader([folder])


def session(data: bytes) -> None:
    """Session: it ends, nothing is raised, and the peer gets valid messages with CLOSE once, as the last one."""
    loader = _modules()
    options = SessionOptions("echo", tuple(loader.folders), limits=LIMITS)
    sock = MemorySocket(data)
    Session(sock, "session-fuzz", options, loader).run()
    _check(sock.is_closed, "the socket is left open")
    answers = io.BytesIO(sock.sent)
    found, error = _taken(read_messages(answers))
    _check(error is None, f"the answers cannot be read: {error}")
    _check(sock.sent.endswith(b"\x04\x00") and not answers.read(), "CLOSE is not sent once and last")
    allowed = DATA | {MessageId.TEXT}
    _check(all(each.identifier in allowed for each in found), "the answer holds what no server sends")


def header(data: bytes) -> None:
    """Header XML: `parse_header` never raises; a header or the very text; a protocol name fit for a file name."""
    text = decode_text(data)
    parsed = parse_header(text)
    _check(parsed is text or isinstance(parsed, ismrmrd.xsd.ismrmrdHeader), f"a header is {type(parsed)}")
    name = protocol_name(text)
    _check(re.fullmatch(r"[A-Za-z0-9_-]{0,64}", name) is not None, f"the protocol name {name!r} is no file name")


def attributes(data: bytes) -> None:
    """Attributes XML: any bytes become attributes, and those can be sent so that the `ismrmrd` package reads them."""
    head = ismrmrd.ImageHeader(data_type=ismrmrd.DATATYPE_USHORT, channels=1, matrix_size=(1, 1, 1))
    image = make_image(head, decode_text(data), np.zeros((1, 1, 1, 1), np.uint16))
    values = [value if isinstance(value, list) else [value] for value in image.meta.values()]
    texts = [*image.meta, *(each for several in values for each in several)]
    _check(all(isinstance(each, str) for each in texts), f"attributes are not text: {image.meta}")
    raw = b"".join(bytes(part) for part in encode(MessageId.ISMRMRD_IMAGE, image))
    (again,) = ProtocolDeserializer(io.BytesIO(raw + b"\x04\x00")).deserialize()
    _check(len(again.meta) <= len(image.meta), "attributes appear from nowhere")


def configuration(data: bytes) -> None:
    """Configuration file: a dataclass or `ConfigurationError`. The first byte selects dataclass and format."""
    choice, content = (data[0] if data else 0), data[1:]
    cls = (ViewSharingConfig, TfdConfig, XdConfig)[choice % 3]
    file = _folder() / ("fuzz.json" if choice % 2 else "fuzz.toml")
    file.write_bytes(content)
    try:
        loaded = load(cls, file)
    except ConfigurationError as error:
        _check(str(file) in str(error), f"the error does not name the file: {error}")
        return
    _check(type(loaded) is cls, f"the configuration is a {type(loaded)}")


def parameters(data: bytes) -> None:
    """JSON parameters: refused with a `ValueError`, or a module's `Parameters`, or `ConfigurationError`."""
    try:
        sent = parse_parameters(decode_text(data), LIMITS)
    except ValueError:
        return
    for cls in (analyzeflow.Parameters, report.Parameters):
        for config in (sent, {"parameters": sent}):
            try:
                read = read_parameters(cls, config)
            except ConfigurationError:
                continue
            _check(type(read) is cls, f"the parameters are a {type(read)}")


_watching = threading.Event()


def _on_audit(event: str, arguments: tuple) -> None:
    if _watching.is_set() and event == "exec" and str(_folder()) in getattr(arguments[0], "co_filename", ""):
        raise AssertionError("looking for a module runs it")


@functools.cache
def _audit() -> None:
    """Watch what Python executes; there is no way to take such a hook off again."""
    sys.addaudithook(_on_audit)


def module_names(data: bytes) -> None:
    """Module names (first line) and sources (the rest): a file in the folder, None, or `ModuleError`; nothing runs."""
    first, _, source = data.partition(b"\n")
    folder = _modules().folders[0]
    (folder / "fuzzed.py").write_bytes(source)
    _audit()
    for name in (decode_text(first), "fuzzed"):
        _watching.set()
        try:
            found = _modules().find(name)
        except ModuleError:
            continue
        finally:
            _watching.clear()
        _check(found is None or found == folder / f"{name}.py", f"{name!r} leads to {found}")


def recording(data: bytes) -> None:
    """Recording: every message that can be read is in the MRD file, and no stream is lost or left unconverted."""
    expected, error = _taken(read_messages(io.BytesIO(data), LIMITS))
    with tempfile.TemporaryDirectory(dir=_folder()) as name:
        path = Path(name) / "2026-01-01_00-00-00_fuzz.mrdpart"
        path.write_bytes(data)
        target = convert_stream(path, LIMITS)
        wanted = [sum(each.identifier == kind for each in expected) for kind in sorted(DATA)]
        _check((target is not None) == any(wanted), f"{wanted} messages with data give {target}")
        _check(not path.exists(), "the stream is left unconverted")
        broken = list(Path(name).glob("*.broken"))
        _check(len(broken) == isinstance(error, ProtocolError), f"{error!r}, and kept were {broken}")
        if target is not None:
            with MrdReader(target) as reader:
                kept = [list(reader.acquisitions()), list(reader.images()), list(reader.waveforms())]
            _check(list(map(len, kept)) == wanted, "messages are missing in the MRD file")


def metafile(data: bytes) -> None:
    """Metafile: a trajectory or `TrajectoryError`, whatever the MATLAB file holds."""
    file = _folder() / "fuzz.mat"
    file.write_bytes(data)
    try:
        trajectory = read_metafile(file)
    except TrajectoryError as error:
        _check(str(file) in str(error), f"the error does not name the file: {error}")
        return
    _check(np.isfinite(trajectory.k).all(), "a trajectory is not finite")


Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        messages, connection, session, recording, header, attributes, configuration, parameters, module_names, metafile,
    )
}  # fmt: skip

# Words that the mutations may put in, for each target.
_IDENTIFIERS = [int(each).to_bytes(2, "little") for each in CODECS]
_NAMES = [each.encode() for each in (*MODULES, "null", "savedataonly")]
_XML = [b"<ismrmrdHeader", b"<encoding>", b"</", b"/>", b"<!--", b"<?xml", b"<![CDATA[", b"&amp;", b"&#x0;", b"xmlns="]
_META = [b"<ismrmrdMeta>", b"<meta>", b"<name>", b"<value>", b"</ismrmrdMeta>", b"<!DOCTYPE", b"&lt;", b"&#55296;"]
_JSON = [b'{"parameters":', b'"customconfig"', b'"config"', b"NaN", b"1e999", b"\\ud800", b"null", b"true"]
WORDS: dict[str, list[bytes]] = {
    "messages": _IDENTIFIERS,
    "connection": _IDENTIFIERS,
    "session": [*_IDENTIFIERS, *_NAMES, *_JSON],
    "recording": _IDENTIFIERS,
    "header": _XML,
    "attributes": _META,
    "configuration": [b"[reconstruction]", b"[binning]", b"metafile_paths", b"num_iter", b"inf", b"nan"],
    "parameters": [*_JSON, b'"maskThreshold"', b'"venc"', b'"reportSize"', b'"sendOriginal"', b'"True"'],
    "module_names": [b"def process(a, b, c): pass", b"process = 1", b"if 1:", b"try:", b"# coding: ", b"../"],
    "metafile": [b"kx", b"ky", b"w", b"param", b"\x0e\x00\x00\x00", b"\x0f\x00\x00\x00"],
}
