"""Waits on a socket: each has an end, whoever makes it last."""

import math
import socket
import struct
import threading
import time

import pytest

from conftest import PATIENCE, bytes_of, make_acquisition, make_image, tcp_pair, wait_for, watched
from connection import Connection
from constants import MessageId
from mrdio.codec import LimitReached, StreamBroken
from mrdio.limits import Limits

LARGE = (1, 1, 512, 1024)  # an image of 2 MiB, more than any buffer between the two sides
SLOW = (1, 1, 2048, 1024)


def test_message_that_comes_a_byte_at_a_time_is_ended_as_a_whole(pair, in_thread):
    connection, peer = pair(limits=Limits(message_time=0.1))
    enough = threading.Event()

    def drip():
        for byte in bytes_of(make_acquisition()):
            peer.send_raw(bytes([byte]))
            if enough.wait(0.005):
                return

    dripping = in_thread(drip)
    with pytest.raises(StreamBroken, match=r"a message has not come whole within 0.1 s"):
        connection.next()
    assert dripping.thread.is_alive()
    enough.set()
    dripping.result()


def test_message_that_stops_is_ended_by_its_own_time_although_pauses_may_be_long(pair):
    connection, peer = pair(limits=Limits(message_time=0.05))
    peer.send_raw(bytes_of(make_acquisition())[:50])
    start = time.monotonic()
    with pytest.raises(StreamBroken, match="has not come whole"):
        connection.next()
    assert time.monotonic() - start < PATIENCE / 2


def test_pause_between_messages_is_no_part_of_their_time(pair, in_thread):
    connection, peer = pair(limits=Limits(message_time=0.05))
    peer.send(make_acquisition(1))
    assert connection.next() == make_acquisition(1)
    waiting = in_thread(connection.next)
    waiting.thread.join(0.2)  # four times as long as a message may take
    assert waiting.thread.is_alive()
    peer.send(make_acquisition(2))
    assert waiting.result() == make_acquisition(2)


def test_silent_peer_is_ended_at_the_deadline_and_not_after_the_longer_timeout(pair):
    connection, _ = pair()
    connection.limit_receiving(0.05)
    start = time.monotonic()
    with pytest.raises(StreamBroken, match="the time that the peer had for this is over"):
        connection.next()
    assert time.monotonic() - start < PATIENCE / 2


def test_receiving_without_a_timeout_waits(in_thread):
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    with ours, theirs:
        reader = in_thread(connection.peek_mrd_message_identifier)
        theirs.sendall(struct.pack("<H", MessageId.CLOSE))
        assert reader.result() == MessageId.CLOSE
        assert connection._raw.timeout == math.inf


def take(peer, event, count, pause):
    """Take some bytes after each pause."""
    while not event.wait(pause):
        peer.sock.recv(count)


def test_peer_that_takes_little_at_a_time_is_ended_by_the_time_of_the_message(pair, in_thread):
    connection, peer = pair(limits=Limits(message_time=0.2))
    watched(connection).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    enough = threading.Event()
    taking = in_thread(take, peer, enough, 4096, 0.001)
    with pytest.raises(StreamBroken, match=r"the peer has not taken a message within 0.2 s"):
        connection.send_image(make_image(1, SLOW))
    enough.set()
    taking.result()


def test_peer_that_pauses_less_than_the_limit_gets_everything(pair, in_thread):
    connection, peer = pair(limits=Limits(send_timeout=5.0))
    sending = in_thread(connection.send_image, make_image(1, LARGE))
    wait_for(watched(connection).sending)
    sending.thread.join(0.2)
    assert sending.thread.is_alive()
    receiving = in_thread(peer.receive)
    sending.result()
    connection.send_close()
    assert receiving.result() == [make_image(1, LARGE)]


def test_limit_on_sending_does_not_limit_receiving(pair, in_thread):
    connection, peer = pair(limits=Limits(send_timeout=0.02))
    waiting = in_thread(connection.next)
    with pytest.raises(StreamBroken, match=r"the peer has taken nothing for 0.02 s"):
        connection.send_image(make_image(1, LARGE))
    assert waiting.thread.is_alive()
    peer.send("still here")
    assert waiting.result() == "still here"


def test_images_of_a_session_are_counted(pair):
    connection, peer = pair(limits=Limits(images=2))
    with pytest.raises(LimitReached, match=r"has sent 2 images, its limit \(--limit maxImages\)"):
        connection.send_image(make_image(number) for number in range(5))
    connection.send_close()
    assert peer.receive() == [make_image(0), make_image(1)]


def test_bytes_are_counted(pair):
    connection, peer = pair()
    peer.send(make_acquisition(1))
    connection.next()
    connection.send_text("words")
    assert connection.recvBytes == len(bytes_of(make_acquisition(1)))
    assert connection.sentBytes == len(bytes_of("words"))


def test_system_asks_whether_a_silent_machine_is_still_there():
    ours, theirs = tcp_pair()
    with ours, theirs:
        Connection(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        silent_for = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert silent_for + 6 * ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 120
