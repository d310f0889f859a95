"""Sessions that are sound messages with unsound content: samples, counters, headers, texts."""

import struct

import ismrmrd
import numpy as np
import pytest

from checked_server import case
from scripted import (
    CLOSE,
    COLUMNS,
    FINISH,
    ROWS,
    cartesian,
    changed,
    closed,
    config,
    config_text,
    header,
    image,
    not_silent,
    phantom,
    quiet,
    readout,
    right_phantom,
    text_message,
    told,
    waveform,
)

GOOD = phantom()[2:-1]  # readouts

# ---- samples and headers of readouts -------------------------------------------------------------------------------


def _filled(value, rows=ROWS):
    """Readouts of the phantom, the first of them filled with one value."""
    return cartesian(np.full((rows, 1, COLUMNS), value)) + GOOD[rows:]


def _instead(*items):
    """Readouts of the phantom with others in place of the fifth."""
    return [*GOOD[:4], *items, *GOOD[5:]]


CONTENTS = {
    **{f"first readout {value}": _filled(value, 1) for value in (np.nan, np.inf, -np.inf, 3e38, 0)},
    **{f"every readout {value}": _filled(value) for value in (np.nan, np.inf, 0)},
    "no channels": [readout(1, channels=0, samples=COLUMNS)],
    "no samples": [readout(1, channels=2, samples=0)],
    "neither": [readout(1, channels=0, samples=0)],
    "no channels in the midst": _instead(readout(1, channels=0, samples=COLUMNS)),
    "no samples in the midst": _instead(readout(1, channels=1, samples=0)),
    "more channels in the midst": _instead(readout(1, channels=5, samples=COLUMNS)),
    "shorter readouts": _instead(readout(1, channels=1, samples=3)),
    "longer readouts": _instead(readout(1, channels=1, samples=1000)),
    "a trajectory": [readout(1, channels=1, samples=COLUMNS, dimensions=3), *GOOD[1:]],
    "all flags": [changed(GOOD[0], flags=2**64 - 1), *GOOD[1:]],
    "one readout": GOOD[:1],
    "readouts in reverse": GOOD[::-1],
    "readouts three times": GOOD * 3,
    "nothing but waveforms": [waveform(), waveform(1, 1)],
    "an image": [image()],
    "an image in the midst": _instead(image(), GOOD[4]),
    "texts in the midst": _instead(text_message(5, "hello"), text_message(5, b""), GOOD[4]),
    "no data": [],
}
for _field in (
    "idx_kspace_encode_step_1", "idx_kspace_encode_step_2", "idx_slice", "idx_repetition", "idx_set", "idx_phase",
    "idx_average", "idx_contrast", "encoding_space_ref", "center_sample", "discard_pre", "discard_post",
):  # fmt: skip
    CONTENTS |= {f"{_field} {value} in one": _instead(changed(GOOD[4], **{_field: value})) for value in (255, 65535)}
    CONTENTS[f"{_field} different in each"] = [changed(GOOD[row], **{_field: 997 * row}) for row in range(ROWS)]

INVERTED = {
    "no data": quiet, "nothing but waveforms": quiet, "an image": not_silent, "no samples": not_silent,
    "every readout nan": not_silent,
}  # fmt: skip

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

NAMES = ["", " ", "../simplefft", "/etc/passwd", "os", "a\nb", "\x1b[31m", "x" * 1023, "\u00e4" * 500, "{", "n\0x"]


def with_attributes(text):
    """Image with these attributes."""
    item, head = image(), 2 + len(bytes(ismrmrd.ImageHeader()))
    return item[:head] + struct.pack("<Q", len(text)) + text + item[-12:]


def cases():
    good = [*GOOD, CLOSE]
    opening = [config("simplefft"), header()]
    for name, items in CONTENTS.items():
        yield f"simplefft: {name}", case([*opening, *items, CLOSE], not_silent)
    for name, judge in INVERTED.items():
        yield f"invertcontrast: {name}", case([config("invertcontrast"), header(), *CONTENTS[name], CLOSE], judge)
    for name, text in HEADERS.items():
        yield f"header {name}", case([config("simplefft"), text_message(3, text), *good], not_silent)
        yield f"attributes {name}", case([config("null"), header(), with_attributes(text), readout(1), CLOSE], closed)
    for name, text in PARAMETERS.items():
        yield f"parameters {name}", case([*opening, text_message(5, text), *good], told())
    for name, text in TOLERATED.items():
        yield f"parameters {name}", case([*opening, text_message(5, text), *good], right_phantom)
    for name in NAMES:
        yield f"config {name!r:.20}", case([config(name), header(), *good], closed)
    for name, text in {**PARAMETERS, **TOLERATED, "1 MiB name": "x" * (1 << 20)}.items():
        yield f"config text {name}", case([text_message(2, text), header(), *good], closed)
    yield "config text as JSON", case([config_text('{"parameters": {"config": "null"}}'), header(), *good])
    yield "config bytes", case([struct.pack("<H1024s", 1, bytes(range(1, 256)) * 5), header(), *good], closed)
    for before, identifier in (([], 2), ([config("null")], 3), ([config("null"), header()], 5)):
        announced = struct.pack("<HI", identifier, (1 << 32) - 1) + bytes(1 << 20)
        yield f"4 GiB announced, {identifier}", case(before, told("limit"), announced, leaving=FINISH)


CASES = dict(cases())


@pytest.fixture(scope="module")
def problems(checked):
    return checked.run(CASES)


@pytest.mark.parametrize("name", CASES)
def test_wrong_content(name, problems):
    assert not problems[name]
