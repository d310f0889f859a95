"""Meta attributes of images: read as the `ismrmrd` package reads them, by one session at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import ismrmrd
import pytest

from conftest import PATIENCE
from mrdio import codec
from mrdio.codec import UNREADABLE, parse_attributes


def xml(*metas):
    return f"<ismrmrdMeta>{''.join(f'<meta>{meta}</meta>' for meta in metas)}</ismrmrdMeta>"


@pytest.mark.parametrize(
    "text",
    [
        xml(),
        xml("<name>a</name><value>1</value>"),
        xml("<name>a</name><value>1</value><value>2</value>", "<name>b</name><value>ü &lt;</value>"),
        xml("<name>a</name><value>1</value>", "<name>a</name><value>2</value>"),
        xml("<name>a</name><value>1</value><value>2</value>", "<name>a</name><value>3</value>"),
        xml("<name>a</name><value>1</value>", "<name>a</name><value>2</value><value>3</value>"),
        xml("<name>a</name>"),
        xml("<value>1</value><name>a</name><other>x</other>"),
        '<?xml version="1.0"?>\n' + xml("<name>a</name><value>" + "long " * codec.PIECE + "</value>"),
    ],
)
def test_attributes_are_read_as_the_package_reads_them(text):
    assert parse_attributes(text) == ismrmrd.Meta.deserialize(text)


@pytest.mark.parametrize("text", ["<other/>", xml("<value>1</value>"), "<ismrmrdMeta>", "none", xml("<name>\0</name>")])
def test_what_is_no_attributes_is_kept_as_text(text):
    assert parse_attributes(text) == {UNREADABLE: text}


def test_many_of_one_name_are_read_in_one_go():
    many = 50_000
    values = parse_attributes(xml(*["<name>a</name><value>1</value>"] * many))["a"]
    assert values == ["1"] * many


def test_sessions_take_turns_with_attributes_of_one_length_and_not_with_others(monkeypatch):
    """Else a scan beside clients with long attributes gets no time: each reading holds the interpreter."""
    inside, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def read(text):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if text in ("short", "long" * 99):
            both.wait(PATIENCE)
        with lock:
            inside -= 1
        return ismrmrd.Meta()

    monkeypatch.setattr(codec, "_read_meta", read)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(parse_attributes, ["same size"] * 200))
        assert most == 1
        list(pool.map(parse_attributes, ["short", "long" * 99]))
    assert most == 2
