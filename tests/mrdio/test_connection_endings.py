"""Every way in which a session over a socket can end."""

import struct
import threading
from typing import Any

import pytest

import connection as connection_module
from conftest import PATIENCE, bytes_of, make_acquisition, make_image, make_waveform, wait_for, watched
from connection import Connection
from constants import MessageId
from mrdio.codec import ProtocolError, SessionEnded, StreamBroken

CLOSE = b"\x04\x00"
LARGE = (1, 1, 512, 1024)  # an image of 2 MiB, more than any buffer between the two sides


def test_close_is_sent_once_and_nothing_after_it(pair):
    connection, peer = pair()
    connection.send_close()
    connection.send_close()
    for send, item, name in (
        (connection.send_text, "late", "TEXT"),
        (connection.send_image, make_image(), "ISMRMRD_IMAGE"),
        (connection.send_acquisition, make_acquisition(), "ISMRMRD_ACQUISITION"),
        (connection.send_waveform, make_waveform(), "ISMRMRD_WAVEFORM"),
    ):
        with pytest.raises(SessionEnded) as caught:
            send(item)
        assert str(caught.value) == f"{name} cannot be sent: CLOSE has been sent"
    connection.close()
    assert peer.reader.read() == CLOSE
    assert (connection.sentAcqs, connection.sentWaveforms, connection.sentImages) == (0, 0, 0)


def test_close_from_several_threads_at_once_is_sent_once(pair, in_thread):
    for _ in range(5):
        connection, peer = pair()
        barrier = threading.Barrier(8)

        def close(connection: Connection = connection, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            connection.send_close()

        for running in [in_thread(close) for _ in range(8)]:
            running.result()
        connection.close()
        assert peer.reader.read() == CLOSE


def test_receiving_goes_on_after_close_has_been_sent(pair):
    connection, peer = pair()
    connection.send_close()
    peer.send(make_acquisition(1))
    peer.send_close()
    assert list(connection) == [make_acquisition(1)]


GARBAGE = b"\xff\xff" + bytes(32 << 20)


@pytest.mark.parametrize(
    ("begin", "tail"), [(b"", b""), (GARBAGE, b""), (b"", GARBAGE)], ids=["messages", "garbage", "garbage that follows"]
)
def test_drain_lets_the_peer_read_the_final_text(pair, in_thread, begin, tail):
    connection, peer = pair(tcp=True)
    raw = begin + bytes_of(*(make_acquisition(number, channels=16, samples=512) for number in range(60))) + tail

    def send_much_then_listen() -> list[Any]:
        peer.send_raw(raw)
        peer.send_close()
        received = peer.receive()
        peer.close()
        return received

    heard = in_thread(send_much_then_listen)
    if begin:
        with pytest.raises(ProtocolError):
            connection.next()
    else:
        assert connection.next() is not None
    connection.send_text("ERROR    last words")
    connection.send_close()
    connection.drain(PATIENCE, PATIENCE)
    connection.close()
    assert heard.result() == ["ERROR    last words"]


def test_drain_ends_at_close_of_the_peer(pair):
    connection, peer = pair()
    peer.send(make_acquisition(1))
    peer.send_close()
    connection.drain(PATIENCE, PATIENCE)
    assert connection.recvAcqs == 1
    assert peer.is_at_end()  # it was told that nothing more comes


def test_drain_waits_for_a_silent_peer_with_a_limit(pair):
    connection, _ = pair()
    connection.drain(0.05, PATIENCE)
    assert connection.is_exhausted


def test_drain_has_a_limit_in_all_within_one_message(pair, in_thread):
    # A peer that drips one long message, a byte at a time, must not hold the session for as long as it likes.
    connection, peer = pair()
    enough = threading.Event()

    def drip() -> None:
        peer.send_raw(struct.pack("<HI", MessageId.TEXT, 1000))
        for _ in range(300):
            peer.send_raw(b"x")
            if enough.wait(0.005):
                return

    dripping = in_thread(drip)
    connection.drain(1.0, 0.1)
    still_dripping = dripping.thread.is_alive()
    enough.set()
    dripping.result()
    assert still_dripping


def test_interrupt_wakes_a_blocked_reader_and_tells_the_peer(pair, in_thread):
    connection, peer = pair(tcp=True)
    reader = in_thread(lambda: list(connection))
    wait_for(watched(connection).receiving)
    connection.interrupt("ERROR    the server is being stopped")
    with pytest.raises(StreamBroken):
        reader.result()
    assert peer.receive() == ["ERROR    the server is being stopped"]
    assert peer.is_at_end()


def test_interrupt_wakes_a_blocked_sender(pair, in_thread, monkeypatch):
    monkeypatch.setattr(connection_module, "INTERRUPT_WAIT", 0.05)
    connection, _ = pair()
    sender = in_thread(connection.send_image, make_image(1, LARGE))
    wait_for(watched(connection).sending)
    connection.interrupt("ERROR    the server is being stopped")
    with pytest.raises(StreamBroken):
        sender.result()


def test_interrupt_after_close_sends_nothing_more(pair):
    connection, peer = pair()
    connection.send_close()
    connection.interrupt("too late")
    assert peer.reader.read() == CLOSE


def test_abort_and_close_can_be_called_in_any_state(pair):
    connection, peer = pair()
    peer.close()
    for _ in range(2):
        connection.abort()
        connection.close()
    assert list(connection) == []
    assert connection.next() is None
