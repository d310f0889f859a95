"""Iterators in threads: order, errors, and stopping early."""

import threading
import time

import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, make_acquisition, make_header, write_module
from mrdio.limits import Limits
from recon.pipeline import threaded


def test_items_come_in_order_through_several_links(no_leaks):
    squares = (number * number for number in threaded(iter(range(1000)), 4, "first"))
    assert list(threaded(squares, 3, "second")) == [number * number for number in range(1000)]


def test_error_comes_behind_the_items_before_it(no_leaks):
    def broken():
        yield 1
        yield 2
        raise ValueError("third")

    items = threaded(broken(), 10, "broken")
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(items)


def test_thread_works_ahead_up_to_its_capacity(no_leaks):
    made = []
    reached = threading.Event()

    def source():
        for number in range(10):
            made.append(number)
            if number == 3:
                reached.set()
            yield number

    items = threaded(source(), 2, "ahead")
    assert next(items) == 0
    assert reached.wait(PATIENCE)  # 1 and 2 wait, 3 is in the thread's hands
    assert len(made) <= 4
    assert list(items) == list(range(1, 10))


def test_consumer_that_stops_early_ends_all_links(no_leaks):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = threaded(threaded(endless(), 2, "inner"), 2, "outer")
    next(items)
    items.close()
    assert closed.wait(PATIENCE)


def test_module_that_fails_while_its_thread_waits_for_a_silent_peer_ends(server, connect, tmp_path, monkeypatch):
    """The error reaches the client at once; the thread ends with the connection."""
    monkeypatch.setattr("serving.session.DRAIN_WAIT", 0.2)
    source = """
from recon.pipeline import threaded
def process(connection, config, metadata):
    for item in threaded(connection, 4, "receiving"):
        raise ValueError("broken while the peer is silent")
"""
    write_module(tmp_path, "silent", source)
    peer = connect(server(module_folders=(tmp_path,), limits=Limits(fallback_wait=0.2)).address)
    peer.send(ConfigFile("silent"), make_header(), make_acquisition())
    start = time.monotonic()
    text, *_ = peer.receive()
    assert "broken while" in text
    assert time.monotonic() - start < PATIENCE / 2
    assert peer.is_at_end()


def test_consumer_that_stops_early_does_not_end_the_session(server, connect, tmp_path):
    source = """
from recon.pipeline import threaded
import threading
def process(connection, config, metadata):
    items = threaded(connection, 1, "receiving early")
    next(items)
    items.close()
    for thread in threading.enumerate():
        if thread.name == "receiving early":
            thread.join()
    connection.send_text("still here")
"""
    write_module(tmp_path, "early", source)
    peer = connect(server(module_folders=(tmp_path,)).address)
    peer.send(ConfigFile("early"), make_header(), *(make_acquisition(number) for number in range(9)))
    peer.send_close()
    assert peer.receive() == ["still here"]


def test_images_leave_while_the_scan_goes_on(server, connect, tmp_path):
    source = """
import ismrmrd, numpy
from recon.pipeline import threaded
def process(connection, config, metadata):
    images = (ismrmrd.Image.from_array(numpy.abs(item.data)) for item in threaded(connection, 4, "receiving"))
    for image in threaded(images, 4, "working"):
        connection.send_image(image)
"""
    write_module(tmp_path, "prompt", source)
    peer = connect(server(module_folders=(tmp_path,)).address)
    peer.send(ConfigFile("prompt"), make_header())
    size = 2 + 198 + 8 + 4 * 16
    for number in range(5):
        peer.send(make_acquisition(number))
        image = np.frombuffer(peer.reader.read(size)[-64:], np.float32)
        np.testing.assert_array_equal(image.reshape(2, 8), np.abs(make_acquisition(number).data))
    peer.send_close()
    assert peer.receive() == []
