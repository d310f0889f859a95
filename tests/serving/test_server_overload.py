"""More sessions than there are places; peers that do not read; who may connect."""

import socket
import struct
import threading
import time

import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, Peer, make_acquisition, make_header, tcp_pair, write_module
from mrdio.limits import Limits
from serving import waiting
from serving.summary import Outcome
from serving.waiting import Pending, WaitingQueue

WAITING = """
from pathlib import Path

def process(connection, config, metadata):
    with Path(__file__).with_name("starts").open("a") as starts:
        starts.write(metadata.measurementInformation.protocolName + " ")
    connection.send_text("started")
    connection.send_text(f"finished {len(list(connection))}")
"""

FLOOD = """
import ismrmrd, numpy
def process(connection, config, metadata):
    image = ismrmrd.Image.from_array(numpy.zeros((1000, 1000), 'f4'))
    while True: connection.send_image(image)
"""


@pytest.fixture
def busy(server, connect, tmp_path):
    """Server with one place, which is taken: ``busy(overload="wait", waiting_time=1.0)``; returns it and the peer."""
    write_module(tmp_path, "waiting", WAITING)

    def start(overload="wait", processes=False, **limits):
        running = server(
            module_folders=(tmp_path,),
            server_options={"overload": overload, "processes": processes},
            limits=Limits(sessions=1, **limits),
        )
        first = connect(running.address)
        first.send(ConfigFile("waiting"), make_header())
        first.send(make_acquisition(0))
        assert next_text(first) == "started"
        return running, first

    return start


def next_text(peer):
    identifier, length = struct.unpack("<HI", peer.reader.read(6))
    assert identifier == 5
    return peer.reader.read(length).decode()


def open_session(peer, count):
    """Send a whole session before it has a place, as a client does that does not read first."""
    peer.send(ConfigFile("waiting"), make_header(f"of {count}"), *(make_acquisition(number) for number in range(count)))
    peer.send_close()


# ---- waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [False, True])
def test_waiting_sessions_are_told_and_served_in_order(busy, connect, tmp_path, processes):
    running, first = busy(processes=processes)
    others = []
    for number in (1, 2, 3):
        others.append(connect(running.address))
        open_session(others[-1], 10 * number)
        said = next_text(others[-1])
        assert said.startswith("INFO ")
        assert f"number {number} of those that wait" in said
    first.send_close()
    assert first.receive() == ["finished 1"]
    for number, peer in enumerate(others, 1):
        texts = peer.receive()
        assert [text for text in texts if not text.startswith("INFO ")] == ["started", f"finished {10 * number}"]
        places = [int(text.split("number ")[1].split()[0]) for text in texts if text.startswith("INFO ")]
        assert places == list(range(number - 1, 0, -1))  # each step forward was told
    assert (tmp_path / "starts").read_text() == "localizer of 10 of 20 of 30 "


def test_waiting_does_not_keep_the_server_from_accepting(busy, connect):
    running, first = busy(waiting=50)
    waiting = [connect(running.address) for _ in range(50)]
    start = time.monotonic()
    (text,) = connect(running.address).receive()
    assert time.monotonic() - start < PATIENCE / 2
    assert text == "ERROR    1 sessions are served and 50 wait, the limit (--limit maxWaiting): try again later"
    assert "number 50 of those" in next_text(waiting[-1])
    first.send_close()


def test_waiting_has_an_end(busy, connect):
    running, first = busy(waiting_time=0.3)
    peer = connect(running.address)
    open_session(peer, 3)
    texts = peer.receive()
    assert texts[-1] == "ERROR    no place has become free within 0.3 s (--limit waitingTime): try again later"
    assert peer.is_at_end()
    first.send_close()
    assert first.receive() == ["finished 1"]


@pytest.mark.parametrize("has_sent", [False, True])
def test_who_hangs_up_loses_the_place(busy, connect, caplog, monkeypatch, has_sent):
    monkeypatch.setattr(waiting, "NOTICE", 0.05)
    caplog.set_level("INFO")
    running, first = busy()
    gone, staying = connect(running.address), connect(running.address)
    if has_sent:
        open_session(gone, 3)
    assert "number 1 of" in next_text(gone)
    assert "number 2 of" in next_text(staying)
    gone.close()
    while "number 1 of" not in next_text(staying):
        assert "disconnected while it waited" not in caplog.text
    assert "disconnected while it waited" in caplog.text
    open_session(staying, 2)
    first.send_close()
    assert staying.receive()[-1] == "finished 2"


def test_stopping_sends_those_that_wait_away(busy, connect):
    running, first = busy()
    peer = connect(running.address)
    open_session(peer, 3)
    assert "number 1" in next_text(peer)
    running.server.stop()
    assert peer.receive() == ["ERROR    the server is being stopped"]
    first.send_close()
    assert first.receive() == ["finished 1"]


# ---- refusing ------------------------------------------------------------------------------------------------------


def test_flood_of_connections_does_not_slow_accepting(busy, connect):
    running, first = busy("refuse")
    start = time.monotonic()
    flood = [connect(running.address) for _ in range(60)]
    for peer in flood[::10]:
        (text,) = peer.receive()
        assert text == "ERROR    the server already serves 1 sessions, its limit (--limit maxSessions): try again later"
    assert time.monotonic() - start < 60 * 0.1  # draining one after the other would take twice that
    first.send_close()
    assert first.receive() == ["finished 1"]


def test_refused_client_that_sends_much_still_hears_why(busy, connect, in_thread):
    running, _ = busy("refuse")
    peer = connect(running.address)
    sent = in_thread(lambda: peer.sock.sendall(bytes(8 << 20)))
    (text,) = peer.receive()
    assert "try again later" in text
    try:
        sent.result()
    except OSError:
        return  # it was cut off, and had heard why before


def test_more_farewells_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(waiting, "MAX_CLOSING", 2)
    summaries = []
    door = WaitingQueue(Limits(), summaries.append)
    pairs = [tcp_pair() for _ in range(4)]
    for number, (ours, _) in enumerate(pairs):
        door.refuse(Pending(ours, f"session-{number}", "peer"), "no")
    assert [ours.fileno() < 0 for ours, _ in pairs] == [True, True, False, False]
    assert door.is_busy
    door.close()
    assert all(ours.fileno() < 0 for ours, _ in pairs)
    assert [summary.outcome for summary in summaries] == [Outcome.REFUSED] * 4
    for _, theirs in pairs:
        theirs.close()


# ---- peers that do not read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [False, True])
def test_slow_reader_is_ended_and_disturbs_nobody(server, connect, tmp_path, caplog, monkeypatch, processes):
    monkeypatch.setattr("server.HOUSEKEEPING", 0.05)
    write_module(tmp_path, "flood", FLOOD)
    write_module(tmp_path, "waiting", WAITING)
    running = server(
        module_folders=(tmp_path,), server_options={"processes": processes}, limits=Limits(send_timeout=1.0)
    )
    stuck = connect(running.address)
    stuck.send(ConfigFile("flood"), make_header(), make_acquisition())
    stuck.reader.read(2)  # images have begun to come
    for number in range(5):
        peer = connect(running.address)
        open_session(peer, 100)
        assert peer.receive() == ["started", "finished 100"], number
        peer.close()
    deadline = time.monotonic() + PATIENCE
    while running.server.running:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    running.stop()
    if not processes:  # whose log lines are in their own process
        assert "the peer has taken nothing for 1 s" in caplog.text
    taken = len(stuck.reader.read())
    assert taken < 64 << 20  # what is in the system's buffers; the module went on sending for a second


def test_clients_that_do_not_read_are_ended_at_the_same_time(server, connect, tmp_path):
    write_module(tmp_path, "flood", FLOOD)
    running = server(module_folders=(tmp_path,), server_options={"grace": 0.0})
    stuck = [connect(running.address) for _ in range(6)]
    for peer in stuck:
        peer.send(ConfigFile("flood"), make_header(), make_acquisition())
        peer.sock.recv(2)  # images have begun to come
    for worker in running.server._workers:
        while not worker._session._connection._send_lock.locked():
            threading.Event().wait(0.01)
    start = time.monotonic()
    running.stop()
    assert time.monotonic() - start < 4  # each takes INTERRUPT_WAIT, 1 s


# ---- who may connect -----------------------------------------------------------------------------------------------


def test_server_listens_on_loopback_only_unless_told(server):
    running = server()
    assert running.address[0] == "127.0.0.1"
    everywhere = server(server_options={"host": "0.0.0.0"})
    assert everywhere.address[0] == "0.0.0.0"
    # Another address of this machine reaches only the second: all of 127.0.0.0/8 is loopback, one of it is listened on.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", running.port), timeout=PATIENCE)
    peer = Peer(socket.create_connection(("127.0.0.2", everywhere.port), timeout=PATIENCE))
    peer.send(ConfigFile("null"), make_header())
    peer.send_close()
    assert peer.receive() == []
    peer.close()
