"""Peers that fall silent, send a byte now and then, or never read: limits, short ones here, end their sessions."""

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from checked_server import Case
from scripted import (
    CLOSE,
    OPENING,
    PATIENCE,
    config,
    connect,
    header,
    quiet,
    readout,
    readouts_in,
    representative,
    take_answer,
    told,
)

ARGUMENTS = [f"--limit={each}" for each in ("timeout=0.7", "openingTime=1.5", "messageTime=1.5", "sendTimeout=0.7")]

_ENDS = list(itertools.accumulate(map(len, representative())))
SILENT_AFTER = sorted({0, *_ENDS[:-1], *(end - 1 for end in _ENDS), *(end + 1 for end in _ENDS)})

_FLOODING = """
import ismrmrd, numpy
def process(connection, config, metadata):
    image = ismrmrd.Image.from_array(numpy.zeros((512, 512), numpy.float32))
    for _ in range(100):
        connection.send_image(image)
"""


@pytest.fixture(scope="module")
def silent(checked):
    """All at the same time, since each of them waits."""
    cases = {}
    for session, place in enumerate(SILENT_AFTER):
        messages = representative(session)
        judge = quiet if place >= _ENDS[-1] else told("the peer has sent nothing for")
        cases[place] = Case(b"".join(messages)[:place], readouts_in(messages, place), judge)
    return checked.run(cases)


@pytest.mark.parametrize("place", SILENT_AFTER)
def test_silent_after_a_part(silent, place):
    assert not silent[place]


TRICKLING = {  # what comes whole, and what comes a byte at a time
    "config": ([], config("null")),
    "header": ([config("null")], header()),
    "readout": ([*OPENING, readout(1), readout(2)], readout(3, samples=60)),
}


def trickle(checked, opening, tail):
    """Send messages, then a byte every 50 ms until the server has had enough."""
    with connect(checked.address) as sock:
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


@pytest.fixture(scope="module")
def trickled(checked):
    with ThreadPoolExecutor() as pool:
        answers = {name: pool.submit(trickle, checked, *parts) for name, parts in TRICKLING.items()}
    for opening, _ in TRICKLING.values():
        checked.expect(readouts_in(opening))
    checked.check()
    return {name: answer.result() for name, answer in answers.items()}


@pytest.mark.parametrize("name", TRICKLING)
def test_a_byte_now_and_then_for_ever(trickled, name):
    assert not told()(trickled[name])


def test_peers_that_never_read_hold_nobody_up(checked):
    (checked.folder / "flooding.py").write_text(_FLOODING)
    messages = [config("flooding"), header(), readout(1), readout(2), CLOSE]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(checked.address)).sendall(b"".join(messages))
            checked.expect(readouts_in(messages))
        checked.serve_next()  # while the others are stuck
        checked.check()  # they are ended
