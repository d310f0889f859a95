"""Cases that are sound messages with unsound content: samples, counters, headers, texts."""

import struct

import ismrmrd
import numpy as np

from .ground import Answer, Case, Ground, case, closed, quiet, told
from .scripted import (
    CLOSE,
    COLUMNS,
    FINISH,
    ROWS,
    config,
    config_text,
    header,
    image,
    message,
    phantom,
    phantom_problem,
    readout,
    readouts_in,
    text_message,
    waveform,
)


def not_silent(answer: Answer) -> str:
    """An image, or a word about why there is none, then CLOSE."""
    return "" if answer.closed and (answer.images or answer.texts) else f"answered with {answer}"


def _changed(number: int, *fields: tuple[str, int], of: bytes | None = None) -> bytes:
    """Readout of the phantom with other values in its header."""
    raw = bytearray(of or phantom()[2 + number])
    head = ismrmrd.AcquisitionHeader.from_buffer(raw, struct.calcsize("<H"))
    for name, value in fields:
        target, attribute = (head.idx, name.removeprefix("idx.")) if name.startswith("idx.") else (head, name)
        setattr(target, attribute, value)
    del head
    return bytes(raw)


def _filled(value: float, rows: int = ROWS) -> list[bytes]:
    """Readouts of the phantom, the first of them filled with one value."""
    data = np.full((1, COLUMNS), value, np.complex64)
    items = []
    for row in range(rows):
        item = ismrmrd.Acquisition.from_array(data, center_sample=COLUMNS // 2)
        item.idx.kspace_encode_step_1 = row
        items.append(message(item))
    return [*items, *phantom()[2 + rows : -1]]


def samples(ground: Ground) -> None:
    """NaN, infinities, nothing at all, and what does not fit the header."""
    good = phantom()[2:-1]
    steps = ("idx.kspace_encode_step_1", "idx.kspace_encode_step_2", "idx.slice", "idx.repetition", "idx.set",
             "idx.phase", "idx.average", "idx.contrast", "encoding_space_ref", "center_sample", "discard_pre",
             "discard_post")  # fmt: skip
    contents = {
        **{f"first readout {value}": _filled(value, 1) for value in (np.nan, np.inf, -np.inf, 3e38, 0)},
        **{f"every readout {value}": _filled(value) for value in (np.nan, np.inf, 0)},
        "no channels": [readout(1, channels=0, samples=COLUMNS)],
        "no samples": [readout(1, channels=2, samples=0)],
        "neither": [readout(1, channels=0, samples=0)],
        "no channels in the midst": [*good[:4], readout(1, channels=0, samples=COLUMNS), *good[5:]],
        "no samples in the midst": [*good[:4], readout(1, channels=1, samples=0), *good[5:]],
        "more channels in the midst": [*good[:4], readout(1, channels=5, samples=COLUMNS), *good[5:]],
        "shorter readouts": [*good[:4], readout(1, channels=1, samples=3), *good[5:]],
        "longer readouts": [*good[:4], readout(1, channels=1, samples=1000), *good[5:]],
        "a trajectory": [readout(1, channels=1, samples=COLUMNS, dimensions=3), *good[1:]],
        "all flags": [_changed(0, ("flags", 2**64 - 1)), *good[1:]],
        "one readout": good[:1],
        "readouts in reverse": good[::-1],
        "readouts three times": good * 3,
        "nothing but waveforms": [waveform(), waveform(1, 1)],
        "an image": [image()],
        "an image in the midst": [*good[:4], image(), *good[4:]],
        "texts in the midst": [*good[:4], text_message(5, "hello"), text_message(5, b""), *good[4:]],
        "no data": [],
    }
    for name in steps:
        contents |= {f"{name} {value} in one": [*good[:4], _changed(4, (name, value)), *good[5:]]
                     for value in (255, 65535)}  # fmt: skip
        contents[f"{name} different in each"] = [_changed(row, (name, 997 * row)) for row in range(ROWS)]
    ground.together(
        case(f"simplefft: {name}", [config("simplefft"), header(), *items, CLOSE], not_silent)
        for name, items in contents.items()
    )
    ground.together(
        case(f"invertcontrast: {name}", [config("invertcontrast"), header(), *contents[name], CLOSE], judge)
        for name, judge in (
            ("no data", quiet), ("nothing but waveforms", quiet), ("an image", not_silent), ("no samples", not_silent),
            ("every readout nan", not_silent),
        )
    )  # fmt: skip


# ---- headers and texts ---------------------------------------------------------------------------------------------

_XML = header()[6:].decode()
_SIZES = f"<x>{COLUMNS}</x>"

HEADERS = {
    "empty": b"",
    "a NUL": b"\0",
    "NULs": bytes(1000),
    "no XML": b"Dummy XML header",
    "cut off": _XML[: len(_XML) // 2].encode(),
    "another document": b"<?xml version='1.0'?><html><body/></html>",
    "a root without content": b'<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>',
    "no UTF-8": b"\xff\xfe\xfd" + _XML.encode("utf-16"),
    "half a character": _XML.encode()[:-1] + b"\xc3",
    "Latin-1": _XML.replace("<encoding>", "<!-- Kopf\xe4rzt --><encoding>").encode("latin-1"),
    "control characters": bytes(range(256)),
    "entities that grow": (
        '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "ha">'
        + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
        + "]><ismrmrdHeader>&a11;</ismrmrdHeader>"
    ).encode(),
    "an entity from a file": (
        b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&a;</ismrmrdHeader>'
    ),
    "100000 levels": b"<a>" * 100_000,
    "a comment of 1 MiB": _XML.replace("<encoding>", f"<!--{' ' * (1 << 20)}--><encoding>").encode(),
    "no columns": _XML.replace(_SIZES, "<x>0</x>").encode(),
    "-1 columns": _XML.replace(_SIZES, "<x>-1</x>").encode(),
    "65535 columns": _XML.replace(_SIZES, "<x>65535</x>").encode(),
    "10^18 columns": _XML.replace(_SIZES, f"<x>{10**18}</x>").encode(),
    "columns NaN": _XML.replace(_SIZES, "<x>NaN</x>").encode(),
    "field of view 0": _XML.replace(f"<x>{COLUMNS}.0</x>", "<x>0</x>").encode(),
    "field of view NaN": _XML.replace(f"<x>{COLUMNS}.0</x>", "<x>NaN</x>").encode(),
    "limits beyond the matrix": _XML.replace(f"<maximum>{ROWS - 1}<", "<maximum>65535<").encode(),
    "limits below 0": _XML.replace(f"<center>{ROWS // 2}<", "<center>-7<").encode(),
}

PARAMETERS = {
    "cut off": '{"parameters": ',
    "a list within": '{"parameters": [1]}',
    "a number within": '{"parameters": 1}',
    "null within": '{"parameters": null}',
    "a config that is a number": '{"parameters": {"config": 3}}',
    "a config that is a list": '{"parameters": {"customconfig": ["a"]}}',
    "100000 levels": '{"parameters": ' + "[" * 100_000,
    "100000 objects": '{"a": ' * 100_000,
    "a number of 5000 digits": '{"parameters": {"a": ' + "9" * 5000 + "}}",
    "no UTF-8": b'{"parameters": {"config": "\xff\xfe"}, \xff}',
    "2 MiB": '{"parameters": {"a": "' + "x" * (2 << 20) + '"}}',
}

# These are sound, or near enough: the session goes on.
TOLERATED = {
    "nothing": b"",
    "a NUL": b"\0",
    "no JSON": "hello",
    "a list": "[1, 2]",
    "1e999": '{"parameters": {"a": 1e999, "b": -1e999, "c": NaN}}',
    "the same key twice": '{"parameters": {}, "parameters": {}}',
    "0.9 MiB of text": '{"parameters": {"a": "' + "x" * 900_000 + '"}}',
    "20000 keys": '{"parameters": {' + ", ".join(f'"k{n}": {n}' for n in range(20_000)) + "}}",
    "half a character": '{"parameters": {"a": "\\ud800"}}',
    "no UTF-8 in a value": b'{"parameters": {"a": "\xff\xfe"}}',
    "control characters": bytes(range(1, 256)),
}


def texts(ground: Ground) -> None:
    """XML and JSON that is malformed, huge, or no UTF-8, as header, parameters, config and attributes."""
    good = phantom()[2:]
    cases = [
        case(f"header {name}", [config("simplefft"), text_message(3, text), *good], not_silent)
        for name, text in HEADERS.items()
    ]
    cases += [
        case(f"parameters {name}", [config("simplefft"), header(), text_message(5, text), *good], told())
        for name, text in PARAMETERS.items()
    ]
    for name, text in TOLERATED.items():
        messages = [config("simplefft"), header(), text_message(5, text), *good]
        cases.append(Case(f"parameters {name}", b"".join(messages), readouts_in(messages), phantom_problem))
    names = ["", " ", "../simplefft", "/etc/passwd", "os", "a\nb", "\x1b[31m", "x" * 1023, "\u00e4" * 500, "{", "n\0x"]
    cases += [case(f"config {name!r:.20}", [config(name), header(), *good], closed) for name in names]
    jsons = {**PARAMETERS, **TOLERATED, "1 MiB name": "x" * (1 << 20)}
    for name, text in jsons.items():
        cases.append(case(f"config text {name}", [text_message(2, text), header(), *good], closed))
    cases.append(case("config text as JSON", [config_text('{"parameters": {"config": "null"}}'), header(), *good]))
    cases.append(case("config bytes", [struct.pack("<H1024s", 1, bytes(range(1, 256)) * 5), header(), *good], closed))
    item = image()
    head = 2 + len(bytes(ismrmrd.ImageHeader()))
    pixels = item[-12:]
    for name, text in HEADERS.items():
        false = item[:head] + struct.pack("<Q", len(text)) + text + pixels
        cases.append(case(f"attributes {name}", [config("null"), header(), false, readout(1), CLOSE], closed))
    ground.together(cases)
    limit = 1 << 32
    for opening, identifier in (([], 2), ([config("null")], 3), ([config("null"), header()], 5)):
        announced = struct.pack("<HI", identifier, limit - 1) + bytes(1 << 20)
        ground.together([case(f"4 GiB announced, {identifier}", opening, told("limit"), announced, leaving=FINISH)])
