"""A scripted client: sessions as bytes made by the `ismrmrd` package, ended in every way there is, and the answer."""

import io
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from ismrmrd import xsd
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer, ProtocolSerializer

PATIENCE = 20.0  # longest wait [s]
READOUT = 1008
CLOSE = struct.pack("<H", 4)
ROWS, COLUMNS = 10, 12  # of the phantom

# How a client may leave: CLOSE is for the peer to answer, the end of the stream too, a reset kills the connection.
STAY, FINISH, RESET = "stays", "FIN", "RST"

# ---- messages ------------------------------------------------------------------------------------------------------


def message(item: Any) -> bytes:
    """Bytes of one message."""
    stream = io.BytesIO()
    ProtocolSerializer(stream).serialize(item)
    return stream.getvalue()


def config(name: str) -> bytes:
    """CONFIG_FILE: 1024 bytes, most of them padding."""
    return message(ConfigFile(name))


def config_text(text: str) -> bytes:
    """CONFIG_TEXT: as long as its text."""
    return message(ConfigText(text))


def text_message(identifier: int, text: bytes | str) -> bytes:
    """A message that is a length and a text, valid or not."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<HI", identifier, len(raw)) + raw


def header(rows: int = ROWS, columns: int = COLUMNS, protocol: str | None = None) -> bytes:
    """MRD header of a Cartesian scan."""
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=columns, y=rows, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=float(columns), y=float(rows), z=5.0),
    )
    steps = xsd.limitType(minimum=0, maximum=rows - 1, center=rows // 2)
    encoding = xsd.encodingType(
        encodedSpace=space, reconSpace=space, trajectory=xsd.trajectoryType.CARTESIAN,
        encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_1=steps),
    )  # fmt: skip
    frequency = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_500_000)
    return message(named(xsd.ismrmrdHeader(experimentalConditions=frequency, encoding=[encoding]), protocol))


def named(head: Any, protocol: str | None) -> Any:
    """Header with a protocol, which names its recording."""
    if protocol:
        position = xsd.patientPositionType.HFS
        head.measurementInformation = xsd.measurementInformationType(patientPosition=position, protocolName=protocol)
    return head


def readout(number: int, channels: int = 2, samples: int = 4, dimensions: int = 0, session: int = 0) -> bytes:
    """Readout whose content follows from its number; `session` goes into its ``measurement_uid``."""
    random = np.random.default_rng([number, channels, samples])
    data = random.standard_normal((channels, samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = random.standard_normal((samples, dimensions)).astype(np.float32)
    return message(
        ismrmrd.Acquisition.from_array(data, trajectory, scan_counter=number, measurement_uid=session, sample_time_us=5)
    )


def changed(raw: bytes, **fields: int) -> bytes:
    """Readout with other values in its header; ``idx_slice`` and the like are fields of its ``idx``."""
    copy = bytearray(raw)
    head = ismrmrd.AcquisitionHeader.from_buffer(copy, len(CLOSE))
    for name, value in fields.items():
        setattr(head.idx if name.startswith("idx_") else head, name.removeprefix("idx_"), value)
    del head
    return bytes(copy)


def cartesian(kspace: np.ndarray) -> list[bytes]:
    """Readouts of a Cartesian scan from its k-space [row, channel, column]."""
    readouts = []
    for row, data in enumerate(kspace.astype(np.complex64)):
        item = ismrmrd.Acquisition.from_array(data, center_sample=data.shape[1] // 2, scan_counter=row)
        item.idx.kspace_encode_step_1 = row
        item.read_dir, item.phase_dir, item.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        readouts.append(message(item))
    return readouts


def waveform(channels: int = 2, samples: int = 3) -> bytes:
    """Waveform."""
    return message(ismrmrd.Waveform.from_array(np.arange(channels * samples, dtype=np.uint32).reshape(channels, -1)))


def image(columns: int = 3, rows: int = 2) -> bytes:
    """Image with attributes."""
    pixels = np.arange(columns * rows, dtype=np.int16).reshape(1, 1, rows, columns)
    item = ismrmrd.Image.from_array(pixels, transpose=False)
    item.meta = ismrmrd.Meta({"WindowCenter": "3"})
    return message(item)


SMALLEST_HEADER = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
    "<H1resonanceFrequency_Hz>1</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)
OPENING = [config("null"), header()]


def representative(session: int = 0, opening: bytes | None = None) -> list[bytes]:
    """Every kind of message: what is cut at every byte; CONFIG_FILE unless another opening is given."""
    first, second = readout(1, dimensions=2, session=session), readout(2, session=session)
    return [
        opening or config("null"), text_message(3, SMALLEST_HEADER), text_message(5, '{"parameters": {}}'), first,
        waveform(), second, image(), text_message(5, "a text"), CLOSE,
    ]  # fmt: skip


def phantom_pixels() -> np.ndarray:
    """Pixels [row, column] without any symmetry, the brightest 1."""
    pixels = np.random.default_rng(7).random((ROWS, COLUMNS)) + 0.1
    pixels[1:4, 2:7] += 2
    return pixels / pixels.max()


def phantom() -> list[bytes]:
    """Session with the Cartesian readouts of the phantom."""
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(phantom_pixels())))
    return [config("simplefft"), header(), *cartesian(kspace[:, np.newaxis]), CLOSE]


def readouts_in(messages: list[bytes], length: int | None = None) -> list[bytes]:
    """Those messages that are readouts and lie wholly within the first so many bytes."""
    found, end = [], 0
    for each in messages:
        end += len(each)
        if length is not None and end > length:
            break
        if struct.unpack_from("<H", each)[0] == READOUT:
            found.append(each)
    return found


# ---- the answer ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """Answer of a server: whether CLOSE came with nothing behind it, what came before, why the connection ended."""

    closed: bool = False
    texts: list[str] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    rest: str = ""

    @property
    def errors(self) -> list[str]:
        """Texts that tell of errors."""
        return [text for text in self.texts if text.startswith(("ERROR", "CRITICAL"))]

    def __str__(self) -> str:
        ending = "CLOSE" if self.closed else f"no CLOSE ({self.rest})"
        return f"answered with {[text[:200] for text in self.texts]}, {len(self.images)} images, {ending}"


Judge = Callable[[Answer], str]  # returns what is wrong with an answer; empty when nothing is


def closed(answer: Answer) -> str:
    """Any answer that ends with CLOSE will do."""
    return "" if answer.closed else str(answer)


def quiet(answer: Answer) -> str:
    """CLOSE, and no error before it."""
    return "" if answer.closed and not answer.errors else str(answer)


def not_silent(answer: Answer) -> str:
    """An image, or a word about why there is none, then CLOSE."""
    return "" if answer.closed and (answer.images or answer.texts) else str(answer)


def told(*words: str) -> Judge:
    """An error that says all these words, then CLOSE."""

    def judge(answer: Answer) -> str:
        said = "\n".join(answer.errors)
        return "" if answer.closed and said and all(word in said for word in words) else str(answer)

    return judge


def anything(answer: Answer) -> str:
    """Whatever comes will do: the connection may be dead."""
    return ""


def right_phantom(answer: Answer) -> str:
    """The image of the phantom, CLOSE, and no error."""
    if quiet(answer) or len(answer.images) != 1:
        return str(answer)
    pixels = np.asarray(answer.images[0].data[0, 0], float)
    good = pixels.shape == (ROWS, COLUMNS) and np.abs(pixels / pixels.max() - phantom_pixels()).max() <= 1e-3
    return "" if good else "the phantom's pixels are wrong"


# ---- the client ----------------------------------------------------------------------------------------------------


def connect(address: tuple[str, int]) -> socket.socket:
    """Connect; every wait of this client has an end."""
    return socket.create_connection(address, timeout=PATIENCE)


def hold(address: tuple[str, int], data: bytes, leaving: str = STAY, step: int = 0) -> Answer:
    """Send a session and take what comes back until the server ends the connection.

    Parameters
    ----------
    address : tuple
        The server's.
    data : bytes
        What to send.
    leaving : str
        What follows: nothing, the end of the stream, or a reset, to which there is no answer.
    step : int
        Send so many bytes at a time; 0: all at once.
    """
    with connect(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = ""
        try:
            for start in range(0, len(data), step or max(1, len(data))):
                sock.sendall(data[start : start + step] if step else data)
            if leaving == FINISH:
                sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the server has ended the session already: its answer says why
            rest = str(error)
        if leaving == RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Answer()
        return take_answer(sock, rest)


def take_answer(sock: socket.socket, rest: str = "", received: bytes = b"") -> Answer:
    """Take what comes, behind what has come, until the server ends the connection."""
    raw = bytearray(received)
    try:
        while chunk := sock.recv(1 << 16):
            raw += chunk
    except OSError as error:
        rest += str(error)
    stream, answer = io.BytesIO(raw), Answer(rest=rest)
    try:
        for item in ProtocolDeserializer(stream).deserialize():
            (answer.texts if isinstance(item, str) else answer.images).append(item)
        answer.closed = stream.tell() == len(raw)
    except (EOFError, ValueError, struct.error, SyntaxError) as error:  # the last: of XML
        answer.rest += f" {type(error).__name__}: {error}"
    return answer


class Sender(threading.Thread):
    """A scanner: sends 1000 readouts a second until it is told to stop or the connection breaks.

    Attributes
    ----------
    handed : list of tuple
        For each readout the time when its last byte was handed to the system [s], and its bytes.
    answer : Answer
        What came back.
    """

    def __init__(self, address: tuple[str, int], session: int, module: str = "null", count: int | None = None) -> None:
        super().__init__(name=f"sender {session}", daemon=True)
        self.handed: list[tuple[float, bytes]] = []
        self.answer = Answer()
        self.started, self._stopped = threading.Event(), threading.Event()
        self._address, self._module, self._count, self._port = address, module, count, 0
        self._readout = readout(0, channels=4, samples=64, session=session)

    def run(self) -> None:
        """Hold the session."""
        try:
            with connect(self._address) as sock:
                rest = ""
                try:
                    self._send(sock)
                except OSError as error:  # the server has ended the session: its answer says why
                    rest = str(error)
                self.answer = take_answer(sock, rest)
        except OSError as error:
            self.answer = Answer(rest=str(error))
        finally:
            self.started.set()

    def _send(self, sock: socket.socket) -> None:
        self._port = sock.getsockname()[1]
        sock.sendall(config(self._module) + header())
        begin = time.monotonic()
        while not self._stopped.is_set() and (self._count is None or len(self.handed) < self._count):
            whole = changed(self._readout, scan_counter=len(self.handed))
            sock.sendall(whole)
            self.handed.append((time.monotonic(), whole))
            self.started.set()
            # The pace is kept on the whole: after a wait for the processor, the readouts that are due follow at once.
            self._stopped.wait(max(0.0, begin + len(self.handed) * 0.001 - time.monotonic()))
        sock.sendall(CLOSE)

    def received(self) -> int:
        """Number of readouts that the server has read whole."""
        return len(self.handed) - -(-unread(self._port) // len(self._readout))

    def stop(self) -> bool:
        """End the session properly, if it is still there; returns whether it has ended."""
        self._stopped.set()
        self.join(PATIENCE)
        return not self.is_alive()


def unread(port: int) -> int:
    """Bytes that a port has sent and its peer has not read yet, as the system tells (Linux) [bytes]."""
    end, total = f":{port:04X}", 0
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, local, remote, _, queues, *_ = line.split()
        to_send, _, to_read = queues.partition(":")
        if local.endswith(end):
            total += int(to_send, 16)
        elif remote.endswith(end):
            total += int(to_read, 16)
    return total


# ---- what was kept -------------------------------------------------------------------------------------------------


def saved_readouts(folder: Path) -> Iterator[tuple[Path, Counter[bytes]]]:
    """Readouts of each MRD file of a folder as the bytes of their messages; opened by h5py and by `ismrmrd`.

    Raises
    ------
    OSError
        If a file does not open.
    """
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            count = len(file["dataset/data"]) if "data" in file["dataset"] else 0
        found: Counter[bytes] = Counter()
        if count:
            with ismrmrd.File(path, "r") as file:
                found.update(message(item) for item in file["dataset"].acquisitions[:])
        yield path, found


def fingerprint(content: Any) -> tuple:
    """Form of a content by which equal ones compare as equal; broken numbers (NaN) are compared as bytes."""
    if not hasattr(content, "data"):
        return (type(content), content)
    head = content.getHead()
    if isinstance(content, ismrmrd.Image):
        head.attribute_string_len = 0  # the attributes are written anew
    arrays = [content.data] + ([content.traj] if isinstance(content, ismrmrd.Acquisition) else [])
    return (type(content), bytes(head), *((each.shape, each.dtype.str, each.tobytes()) for each in arrays))
