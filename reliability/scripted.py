"""Sessions as bytes, made by the `ismrmrd` package, and a client that ends them in every way there is."""

import io
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from ismrmrd import xsd
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer, ProtocolSerializer

from .serverprocess import PATIENCE

READOUT = 1008
ROWS, COLUMNS = 10, 12  # of the phantom

# How a client may leave: CLOSE is for the peer to answer, the end of the stream too, a reset kills the connection.
STAY, FINISH, RESET = "stays", "FIN", "RST"


def message(item: Any) -> bytes:
    """Bytes of one message."""
    stream = io.BytesIO()
    ProtocolSerializer(stream).serialize(item)
    return stream.getvalue()


CLOSE = struct.pack("<H", 4)


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


def header(rows: int = ROWS, columns: int = COLUMNS) -> bytes:
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
    return message(xsd.ismrmrdHeader(experimentalConditions=frequency, encoding=[encoding]))


def readout(number: int, channels: int = 2, samples: int = 4, dimensions: int = 0, session: int = 0) -> bytes:
    """Readout whose content follows from its number; `session` goes into its ``measurement_uid``."""
    random = np.random.default_rng([number, channels, samples])
    data = random.standard_normal((channels, samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = random.standard_normal((samples, dimensions)).astype(np.float32)
    return message(
        ismrmrd.Acquisition.from_array(data, trajectory, scan_counter=number, measurement_uid=session, sample_time_us=5)
    )


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


def representative(session: int = 0, opening: bytes | None = None) -> list[bytes]:
    """Every kind of message: what is cut at every byte; CONFIG_FILE unless another opening is given."""
    first, second = readout(1, dimensions=2, session=session), readout(2, session=session)
    return [
        opening or config("null"), text_message(3, SMALLEST_HEADER), text_message(5, '{"parameters": {}}'), first,
        waveform(), second, image(), text_message(5, "a text"), CLOSE,
    ]  # fmt: skip


# ---- the phantom that shows that the server is well ----------------------------------------------------------------


def phantom_pixels() -> np.ndarray:
    """Pixels [row, column] without any symmetry, the brightest 1."""
    pixels = np.random.default_rng(7).random((ROWS, COLUMNS)) + 0.1
    pixels[1:4, 2:7] += 2
    return pixels / pixels.max()


def phantom(config_name: str = "simplefft") -> list[bytes]:
    """Session with the Cartesian readouts of the phantom."""
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(phantom_pixels()))).astype(np.complex64)
    readouts = []
    for row in range(ROWS):
        item = ismrmrd.Acquisition.from_array(kspace[np.newaxis, row], center_sample=COLUMNS // 2, scan_counter=row)
        item.idx.kspace_encode_step_1 = row
        item.read_dir, item.phase_dir, item.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        readouts.append(message(item))
    return [config(config_name), header(), *readouts, CLOSE]


def phantom_problem(answer: "Answer") -> str:
    """Faults of the answer to the phantom; empty when nothing is."""
    if not answer.closed or answer.errors or len(answer.images) != 1:
        return f"the phantom was answered with {answer}"
    pixels = np.asarray(answer.images[0].data[0, 0], float)
    if pixels.shape != (ROWS, COLUMNS) or np.abs(pixels / pixels.max() - phantom_pixels()).max() > 1e-3:
        return "the phantom's pixels are wrong"
    return ""


# ---- the client ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """Answer of a server.

    Attributes
    ----------
    closed : bool
        Whether CLOSE came, with nothing behind it.
    texts, images : list
        What came before.
    rest : str
        What could not be read, or why the connection ended.
    """

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
        return f"{[text[:200] for text in self.texts]}, {len(self.images)} images, {ending}"


def read_answer(raw: bytes, rest: str = "") -> Answer:
    """Take the bytes of an answer apart."""
    stream, answer = io.BytesIO(raw), Answer(rest=rest)
    try:
        for item in ProtocolDeserializer(stream).deserialize():
            (answer.texts if isinstance(item, str) else answer.images).append(item)
        answer.closed = stream.tell() == len(raw)
    except (EOFError, ValueError, struct.error, SyntaxError) as error:  # the last: of XML
        answer.rest += f" {type(error).__name__}: {error}"
    return answer


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
    received = bytearray(received)
    try:
        while chunk := sock.recv(1 << 16):
            received += chunk
    except OSError as error:
        rest += str(error)
    return read_answer(bytes(received), rest)


# ---- what was saved ------------------------------------------------------------------------------------------------


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
