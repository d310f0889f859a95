"""JSON parameters: what is read, and what is refused before it costs anything."""

import json
import time

import pytest
from ismrmrd.serialization import ConfigFile

from conftest import make_header
from mrdio.jsonparameters import is_json, parse_parameters
from mrdio.limits import MIB, Limits


def nested(depth, opening="[", closing="]"):
    return '{"a": ' + opening * (depth - 1) + closing * (depth - 1) + "}"


NESTED = {"parameters": {"config": "x", "list": [[1], [2, {"µ": '"[{\\'}]]}}


@pytest.mark.parametrize("values", [{}, NESTED, {"a\\": "["}])
def test_parameters_are_read(values):
    assert parse_parameters(json.dumps(values), Limits()) == values
    assert parse_parameters(json.dumps(values, ensure_ascii=False), Limits()) == values


def test_size_is_limited():
    limits = Limits(json=20)
    assert parse_parameters('{"a": "0123456789 "}', limits)
    with pytest.raises(ValueError, match=r"21 bytes long, the limit is 20 \(--limit maxJson\)"):
        parse_parameters('{"a": "0123456789µ"}', limits)


@pytest.mark.parametrize(
    "text",
    ["{" * 500_000, '{"a":' * 200_000, nested(500_000), '{"' + "[" * 1_000_000, '{"' + "\\" * 1_000_000,
     '{"a": ' + "9" * 1_000_000 + "}", '{"a"' * 250_000, '{"a": "' + '\\"' * 500_000],
    ids=["objects", "keys", "lists", "open string", "backslashes", "long number", "strings", "quotes"],
)  # fmt: skip
def test_hostile_texts_are_refused_soon(text):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"nested|JSON|Expecting|Unterminated|Exceeds|escape|delimiter|property"):
        parse_parameters(text, Limits(json=2 * MIB))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text",
    ['{"' + '\\"' * 500_000 + "\\", '{"' + "\\\\" * 500_000 + "\\", '"\\' * 500_000, '{"a":"\\""' * 100_000 + '"\\',
     '{"' + "\\\n" * 500_000 + "\\", '""' * 500_000 + '"\\', '{"' + "a" * 1_000_000 + "\\"],
    ids=["quotes", "backslashes", "pairs", "strings", "line ends", "empty strings", "letters"],
)  # fmt: skip
def test_string_that_ends_in_a_backslash_takes_no_time(text):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"nested|JSON|Expecting|Unterminated|escape|delimiter|property|Extra data"):
        parse_parameters(text, Limits(json=2 * MIB))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("text", ["{}", " \n{}", "\ufeff{}", "\ufeff \t{}"])
def test_what_may_stand_before_parameters(text):
    assert is_json(text)
    assert parse_parameters(text, Limits()) == {}


@pytest.mark.parametrize("text", ["", "x{}", " " * 1_000_000, "\ufeff" * 1_000_000, "[{}]"])
def test_other_texts_are_no_parameters(text):
    assert not is_json(text)


def test_client_is_told_which_limit_its_parameters_exceed(server, connect):
    running = server()
    for text, reason in (
        (nested(400_000), "nested deeper than they can be read"),
        ('{"a": "' + "x" * MIB + '"}', "--limit maxJson)"),
    ):
        peer = connect(running.address)
        peer.send(ConfigFile("null"), make_header(), text)
        peer.send_close()
        (answer,) = peer.receive()
        assert answer.startswith("ERROR")
        assert reason in answer
