"""Sessions that are wrong as bytes: cut, in small pieces, with false lengths and identifiers, out of order."""

import ctypes
import io
import itertools
import struct

import ismrmrd
import pytest

from checked_server import TRIALS, Case, case
from mrdio.codec import CODECS, ProtocolError, read_content
from mrdio.limits import Limits
from scripted import (
    CLOSE,
    FINISH,
    OPENING,
    RESET,
    anything,
    closed,
    config,
    config_text,
    header,
    image,
    phantom,
    quiet,
    readout,
    readouts_in,
    representative,
    right_phantom,
    text_message,
    told,
    waveform,
)

# ---- cut -----------------------------------------------------------------------------------------------------------

PAYLOAD_STEP = 23  # where a session costs a process, payloads are cut in steps of so many bytes
SAMPLE = 40  # of the streams of cut sessions, all of which have to hold the very bytes that were sent, are converted

# Lengths of the fixed parts of messages behind the identifier [bytes]: in these every byte counts.
FIXED = {2: 4, 3: 4, 5: 4, 1008: 340, 1022: 198 + 8, 1026: 40}


def cut_places(messages, every_byte):
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


@pytest.mark.parametrize(
    ("leaving", "opening", "turn"),
    [(FINISH, config("null"), 0), (RESET, config_text("null"), 1)],
    ids=["end of the stream", "reset"],
)
def test_cut_at_every_byte(checked, leaving, opening, turn):
    """The two endings take turns, and sessions in processes are cut at half of the places.

    With ``TRIALS=2`` each ending is tried at every byte, and the endings take turns in processes only.
    """
    places = cut_places(representative(opening=opening), not checked.processes)
    step = (2 if TRIALS == 1 else 1) * (2 if checked.processes else 1)
    cases = {}
    for session, place in enumerate(places[turn * step // 2 :: step]):
        messages = representative(session, opening)
        judge = anything if leaving == RESET else quiet if place in (0, places[-1]) else told("the stream ends")
        cases[place] = Case(b"".join(messages)[:place], readouts_in(messages, place), judge, leaving)
    assert not any(checked.run(cases).values())
    checked.match_streams(SAMPLE)


def test_every_boundary_and_header_byte_is_cut_in_processes_too():
    messages = representative()
    places = set(cut_places(messages, every_byte=False))
    end = 0
    for message in messages:
        assert {end, end + 1, end + 2, end + len(message) - 1, end + len(message)} <= places
        end += len(message)
    begin = sum(map(len, messages[:3]))
    assert set(range(begin, begin + 2 + 340)) <= places
    assert max(places) == end


# ---- other tables --------------------------------------------------------------------------------------------------

# Field: the message that has it, its place behind the start of the message [bytes], and its format.
_READOUT, _IMAGE, _WAVEFORM = readout(9, dimensions=2), image(), waveform()
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
    "image attributes": (_IMAGE, 2 + ctypes.sizeof(ismrmrd.ImageHeader), "Q"),
    "waveform channels": (_WAVEFORM, 2 + ismrmrd.WaveformHeader.channels.offset, "H"),
    "waveform samples": (_WAVEFORM, 2 + ismrmrd.WaveformHeader.number_of_samples.offset, "H"),
}


def false_lengths():
    """Every length field with false values, each alone, and followed by what would have been right."""
    for field, (message, place, form) in LENGTH_FIELDS.items():
        bits = 8 * struct.calcsize(form)
        opening = {"config text": [], "header": [config("null")]}.get(field, [*OPENING, readout(1), readout(2)])
        for value in (0, 1, 2**bits - 1, 2 ** (bits - 1), 2**bits - 2):  # the latter are negative ones
            false = message[:place] + struct.pack("<" + form, value) + message[place + struct.calcsize(form) :]
            for name, behind in (("alone", b""), ("and more", readout(3) + CLOSE)):
                yield f"{field} {value} {name}", case(opening, closed, false + behind, leaving=FINISH)


def identifiers():
    """Identifiers that no message has, at the begin, behind the config, and behind data."""
    for opening in ([], [config("null")], [*OPENING, readout(1)]):
        for number in (0, 6, 7, 255, 256, 999, 1000, 1001, 1007, 1009, 1023, 1025, 1027, 4096, 0x8000, 0xFFFF):
            false = struct.pack("<H", number) + bytes(100)
            yield f"{number} after {len(opening)} messages", case(opening, told(str(number)), false, leaving=FINISH)


def orders():
    """Every order of the messages of an opening, and messages that come twice or behind the end."""
    parts = {
        "config": config("null"), "header": header(), "parameters": text_message(5, '{"parameters": {}}'),
        "readout": readout(1), "waveform": waveform(),
    }  # fmt: skip
    for chosen in itertools.permutations(parts):
        good = chosen[:2] == ("config", "header")
        judge = quiet if good else told("METADATA_XML_TEXT" if chosen[0] == "config" else "opens with")
        yield ", ".join(chosen), case([*(parts[name] for name in chosen), CLOSE], judge)
    one, two = readout(1), readout(2)
    yield from {
        "nothing but CLOSE": case([CLOSE], quiet),
        "config and CLOSE": case([config("null"), CLOSE], quiet),
        "no data": case([*OPENING, CLOSE], quiet),
        "config twice": case([config("null"), config("null"), header(), one, CLOSE], told("METADATA_XML_TEXT")),
        "header twice": case([*OPENING, header(), one, CLOSE], closed),
        "config behind data": case([*OPENING, one, config("null"), two, CLOSE], closed),
        "header behind data": case([*OPENING, one, header(), two, CLOSE], closed),
        "CLOSE twice": case([*OPENING, one, CLOSE], quiet, CLOSE),
        "data behind CLOSE": case([*OPENING, one, CLOSE], quiet, two + CLOSE),
        "zeros behind CLOSE": case([*OPENING, one, CLOSE], quiet, bytes(5000)),
        "two sessions in one": case([*OPENING, one, CLOSE], quiet, b"".join([*OPENING, two, CLOSE])),
        "a text before everything": case([text_message(5, "hello"), *OPENING, one, CLOSE], told("opens with")),
        "an image before everything": case([image(), *OPENING, one, CLOSE], told("opens with")),
    }.items()


PIECES = {
    f"{step} bytes at a time": Case(b"".join(phantom()), readouts_in(phantom()), right_phantom, step=step)
    for step in (1, 2, 3, 7, 341)
}
CASES = {**dict(false_lengths()), **dict(identifiers()), **dict(orders()), **PIECES}


@pytest.fixture(scope="module")
def problems(checked):
    before = checked.server.counts()["memory"]
    problems = checked.run(CASES)
    grown = checked.server.counts()["memory"] - before
    assert grown < 256 << 20, "false lengths have cost memory"
    return problems


@pytest.mark.parametrize("name", CASES)
def test_wrong_bytes(name, problems):
    assert not problems[name]


def test_every_unknown_identifier_is_refused():
    for identifier in set(range(1 << 16)) - set(CODECS):
        with pytest.raises(ProtocolError, match=rf"\b{identifier}\b"):
            read_content(identifier, io.BytesIO(bytes(64)), Limits())
