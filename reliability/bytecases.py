"""Cases that are made of bytes: cut, slow, false, out of order."""

import contextlib
import ctypes
import io
import itertools
import struct
from concurrent.futures import ThreadPoolExecutor

import ismrmrd

from mrdio.codec import CODECS, Limits, ProtocolError, read_content

from .ground import Case, Ground, anything, case, closed, quiet, told
from .scripted import (
    CLOSE,
    FINISH,
    RESET,
    Answer,
    config,
    config_text,
    connect,
    header,
    image,
    phantom,
    phantom_problem,
    readout,
    readouts_in,
    representative,
    take_answer,
    text_message,
    waveform,
)
from .serverprocess import PATIENCE

# Where a session costs a process, payloads are cut in steps of so many bytes.
PAYLOAD_STEP = 23

# Of the streams of cut sessions, all of which have to hold the very bytes that were sent, so many are converted.
SAMPLE = 200

# Lengths of the fixed parts of messages behind the identifier [bytes]: in these every byte counts.
FIXED = {2: 4, 3: 4, 5: 4, 1008: 340, 1022: 198 + 8, 1026: 40}


def cut_places(messages: list[bytes], every_byte: bool) -> list[int]:
    """Places at which a session may break off.

    Where a session costs a process, payloads (texts, attributes, samples) are cut at some places only; every byte round
    a message boundary, and of each kind of header and its length fields, is a place all the same.
    """
    total = len(b"".join(messages))
    if every_byte:
        return list(range(total + 1))
    places, start, seen = {0, total}, 0, set()
    for each in messages:
        (identifier,) = struct.unpack_from("<H", each)
        fixed = 2 if identifier in seen else 2 + FIXED.get(identifier, 0)
        end = start + len(each)
        places |= {*range(start, min(start + fixed + 2, end)), *range(start, end, PAYLOAD_STEP), end - 1, end}
        seen.add(identifier)
        start = end
    return sorted(places)


def _cut(ground: Ground, leaving: str, opening: bytes, turn: int) -> None:
    """Cut the representative session at every place, in processes at every other one of them."""
    places = cut_places(representative(opening=opening), not ground.processes)
    cases = []
    for session, place in enumerate(places[turn::2] if ground.processes else places):
        messages = representative(session, opening)
        judge = anything if leaving == RESET else quiet if place in (0, places[-1]) else told("the stream ends")
        whole = readouts_in(messages, place)
        cases.append(Case(f"{leaving} after {place} bytes", b"".join(messages)[:place], whole, judge, leaving))
    ground.together(cases)
    ground.match_streams(SAMPLE)


def cut_with_fin(ground: Ground) -> None:
    """The stream ends; the session opens with CONFIG_FILE."""
    _cut(ground, FINISH, config("null"), 0)


def cut_with_rst(ground: Ground) -> None:
    """The connection is reset; the session opens with CONFIG_TEXT."""
    _cut(ground, RESET, config_text("null"), 1)


def slow(ground: Ground) -> None:
    """Whole sessions, byte by byte and in odd pieces."""
    raw = phantom()
    ground.together(
        Case(f"{step} bytes at a time", b"".join(raw), readouts_in(raw), phantom_problem, step=step)
        for step in (1, 2, 3, 7, 341)
    )


def silent(ground: Ground) -> None:
    """A peer sends a part and nothing more, and keeps the connection: the limit ends it (`--timeout` is short here)."""
    messages = representative()
    boundaries = list(itertools.accumulate(map(len, messages)))
    places = sorted({0, *boundaries[:-1], *(place - 1 for place in boundaries), *(place + 1 for place in boundaries)})
    cases = []
    for session, place in enumerate(places):
        mine = representative(session)
        judge = quiet if place >= boundaries[-1] else told("the peer has sent nothing for")
        cases.append(Case(f"silent after {place} bytes", b"".join(mine)[:place], readouts_in(mine, place), judge))
    ground.together(cases)


def trickling(ground: Ground) -> None:
    """A peer that sends a byte now and then, for ever: opening and messages have a time in which they must be done."""
    readouts = [readout(1), readout(2)]
    with ThreadPoolExecutor() as pool, ground.checked("bytes that trickle", 3):
        sent = [
            pool.submit(_trickle, ground, opening, tail)
            for opening, tail in (
                ([], config("null")), ([config("null")], header()), ([*OPENING, *readouts], readout(3, samples=60)),
            )
        ]  # fmt: skip
        ground.expect(readouts)
        for each in sent:
            problem = told()(each.result())
            assert not problem, problem


def _trickle(ground: Ground, opening: list[bytes], tail: bytes) -> Answer:
    """Send messages, then a byte every 50 ms until the server has had enough."""
    with connect(ground.server.address) as sock:
        sock.sendall(b"".join(opening))
        sock.settimeout(0.05)
        received = b""
        for byte in tail:
            sock.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                received = sock.recv(1)
                break
        sock.settimeout(PATIENCE)
        return take_answer(sock, received=received)


def unread(ground: Ground) -> None:
    """Peers that never read what the server sends: they are ended, and nobody waits for them meanwhile."""
    (ground.folder / "flooding.py").write_text(_FLOODING)
    messages = [config("flooding"), header(), readout(1), readout(2), CLOSE]
    with contextlib.ExitStack() as stack, ground.checked("peers that never read", 3):
        for _ in range(3):
            sock = stack.enter_context(connect(ground.server.address))
            sock.sendall(b"".join(messages))
            ground.expect(readouts_in(messages))
        problem = ground.next_client()  # while the others are stuck
        assert not problem, problem


_FLOODING = """
import ismrmrd, numpy
def process(connection, config, metadata):
    image = ismrmrd.Image.from_array(numpy.zeros((512, 512), numpy.float32))
    for _ in range(100):
        connection.send_image(image)
"""


# ---- lengths -------------------------------------------------------------------------------------------------------

OPENING = [config("null"), header()]

# Field: the message that has it, its place behind the start of the message [bytes], and its format.
_READOUT, _IMAGE, _WAVEFORM = readout(9, dimensions=2), image(), waveform()
_ATTRIBUTES = 2 + ctypes.sizeof(ismrmrd.ImageHeader)

# Field: the message that has it, its place behind the start of the message [bytes], and its format.
LENGTH_FIELDS = {
    "config text": (config_text("null"), 2, "I"),
    "header": (header(), 2, "I"),
    "text": (text_message(5, "text"), 2, "I"),
    "readout samples": (_READOUT, 2 + ismrmrd.AcquisitionHeader.number_of_samples.offset, "H"),
    "readout channels": (_READOUT, 2 + ismrmrd.AcquisitionHeader.active_channels.offset, "H"),
    "trajectory dimensions": (_READOUT, 2 + ismrmrd.AcquisitionHeader.trajectory_dimensions.offset, "H"),
    "image channels": (_IMAGE, 2 + ismrmrd.ImageHeader.channels.offset, "H"),
    "image columns": (_IMAGE, 2 + ismrmrd.ImageHeader.matrix_size.offset, "H"),
    "image rows": (_IMAGE, 4 + ismrmrd.ImageHeader.matrix_size.offset, "H"),
    "image slices": (_IMAGE, 6 + ismrmrd.ImageHeader.matrix_size.offset, "H"),
    "image data type": (_IMAGE, 2 + ismrmrd.ImageHeader.data_type.offset, "H"),
    "image attributes": (_IMAGE, _ATTRIBUTES, "Q"),
    "waveform channels": (_WAVEFORM, 2 + ismrmrd.WaveformHeader.channels.offset, "H"),
    "waveform samples": (_WAVEFORM, 2 + ismrmrd.WaveformHeader.number_of_samples.offset, "H"),
}


def lengths(ground: Ground) -> None:
    """Every length field with false values, each alone, and followed by what would have been right."""
    before = ground.server.memory()
    for field, (message, place, form) in LENGTH_FIELDS.items():
        bits = 8 * struct.calcsize(form)
        values = {"0": 0, "1": 1, "maximum": 2**bits - 1, "smallest negative": 2 ** (bits - 1), "-2": 2**bits - 2}
        opening = {"config text": [], "header": [config("null")]}.get(field, [*OPENING, readout(1), readout(2)])
        batch = []
        for name, value in values.items():
            false = message[:place] + struct.pack("<" + form, value) + message[place + struct.calcsize(form) :]
            batch += [
                case(f"{field} {name}", opening, closed, false + behind, leaving=FINISH)
                for behind in (b"", readout(3) + CLOSE)
            ]
        ground.together(batch)
    grown = ground.server.memory() - before
    if grown > 256 << 20:
        ground.row.fail(f"the false lengths have cost {grown >> 20} MiB of memory")


def identifiers(ground: Ground) -> None:
    """Identifiers that no message has: all of them through the codec, some through the server."""
    for identifier in range(1 << 16):
        if identifier in CODECS:
            continue
        ground.row.cases += 1
        try:
            read_content(identifier, io.BytesIO(bytes(64)), Limits())
        except ProtocolError as error:
            if str(identifier) in str(error):
                continue
        ground.row.fail(f"identifier {identifier} was taken")
    some = (0, 6, 7, 255, 256, 999, 1000, 1001, 1007, 1009, 1023, 1025, 1027, 4096, 0x8000, 0xFFFF)
    for opening in ([], [config("null")], [*OPENING, readout(1)]):
        ground.together(
            case(f"identifier {number} after {len(opening)} messages", opening, told(str(number)),
                 struct.pack("<H", number) + bytes(100), leaving=FINISH)
            for number in some
        )  # fmt: skip


# ---- order ---------------------------------------------------------------------------------------------------------


def order(ground: Ground) -> None:
    """Every order of the messages of an opening, and messages that come twice or behind the end."""
    parts = {
        "config": config("null"), "header": header(), "parameters": text_message(5, '{"parameters": {}}'),
        "readout": readout(1), "waveform": waveform(),
    }  # fmt: skip
    cases = []
    for chosen in itertools.permutations(parts):
        good = chosen[:2] == ("config", "header")
        messages = [*(parts[name] for name in chosen), CLOSE]
        judge = quiet if good else told("METADATA_XML_TEXT" if chosen[0] == "config" else "opens with")
        cases.append(case(", ".join(chosen), messages, judge))
    one, two = readout(1), readout(2)
    cases += [
        case("nothing but CLOSE", [CLOSE], quiet),
        case("config and CLOSE", [config("null"), CLOSE], quiet),
        case("no data", [*OPENING, CLOSE], quiet),
        case("config twice", [config("null"), config("null"), header(), one, CLOSE], told("METADATA_XML_TEXT")),
        case("header twice", [*OPENING, header(), one, CLOSE], closed),
        case("config behind data", [*OPENING, one, config("null"), two, CLOSE], closed),
        case("header behind data", [*OPENING, one, header(), two, CLOSE], closed),
        case("CLOSE twice", [*OPENING, one, CLOSE], quiet, CLOSE),
        case("data behind CLOSE", [*OPENING, one, CLOSE], quiet, two + CLOSE),
        case("zeros behind CLOSE", [*OPENING, one, CLOSE], quiet, bytes(5000)),
        case("two sessions in one", [*OPENING, one, CLOSE], quiet, b"".join([*OPENING, two, CLOSE])),
        case("a text before everything", [text_message(5, "hello"), *OPENING, one, CLOSE], told("opens with")),
        case("an image before everything", [image(), *OPENING, one, CLOSE], told("opens with")),
    ]
    ground.together(cases)
