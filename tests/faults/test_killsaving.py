"""The kill test of ``python reliability/killsaving.py``, a short run of it."""

import socket

import pytest

from reliability import killsaving
from reliability.killsaving import KINDS, Outcome, kill_once, run_kills
from reliability.scripted import CLOSE, config, header, readout
from reliability.sender import Sender


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_older_than_100_ms_is_lost_and_everything_opens(kind):
    (outcome,) = run_kills(1, seed=3, kinds=(kind,)).values()
    assert outcome.is_good, "\n".join(outcome.problems)
    assert outcome.kills == 1
    assert outcome.files == outcome.opened == 2
    assert outcome.recovered > 0
    assert outcome.lost == 0


def test_what_is_missing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(killsaving, "_recover", lambda folder, by_restart: "")  # nobody recovers anything
    outcome = Outcome()
    kill_once("server, sessions in threads", 3, tmp_path, outcome)
    assert not outcome.is_good
    assert outcome.recovered == outcome.files == 0
    assert 0 < outcome.lost == outcome.sent - outcome.late


def test_sender_sends_what_it_says():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = Sender(listener.getsockname(), session=5, interval=0, count=3)
        sender.start()
        sock, _ = listener.accept()
    with sock, sock.makefile("rb") as stream:
        opening = config("null") + header()
        assert stream.read(len(opening)) == opening
        first = stream.read(len(readout(0, 4, 64, session=5)))
        assert first == readout(0, 4, 64, session=5)
        rest = stream.read(2 * len(first) + len(CLOSE))
        assert rest.endswith(CLOSE)
        sock.sendall(CLOSE)
    assert sender.wait(10)
    assert b"".join(raw for _, raw in sender.handed) + CLOSE == first + rest
    assert sender.answer.closed
