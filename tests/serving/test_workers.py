"""Sessions in processes of their own: what threads may ask of them, and when."""

import contextlib
import socket
import threading
from multiprocessing import forkserver
from multiprocessing.connection import wait

import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, make_header
from serving.session import SessionOptions
from serving.summary import Outcome
from serving.workers import ProcessWorker


@pytest.fixture
def started():
    """A worker whose client has not sent anything yet, and the client's socket; ended at the end."""
    ours, theirs = socket.socketpair()
    worker = ProcessWorker(ours, "session-1", "peer", SessionOptions(), None)
    worker.start()
    ours.close()
    yield worker, theirs
    theirs.close()
    worker.kill()
    worker.join(PATIENCE)
    with contextlib.suppress(ValueError):  # the test has let go of it
        worker.report()
        worker.release()


@pytest.fixture
def reads(monkeypatch):
    """How often the status of a process has been read; reading takes a while, in which nobody else may read it."""
    read, count, second = forkserver.read_signed, [], threading.Event()

    def read_late(descriptor):
        count.append(descriptor)
        if len(count) > 1:
            second.set()
        second.wait(0.3)
        return read(descriptor)

    monkeypatch.setattr(forkserver, "read_signed", read_late)
    return count


def end_of(worker, client):
    """Have a session end, and wait for it without asking how it has ended."""
    client.close()
    assert wait([worker.sentinel], PATIENCE)


def test_session_that_ended_well_counts_as_such_although_two_threads_ask(started, in_thread, reads):
    worker, client = started
    end_of(worker, client)
    asking = [in_thread(worker.is_alive) for _ in range(2)]
    assert [each.result() for each in asking] == [False, False]
    summary = worker.report()
    assert len(reads) == 1
    assert summary.outcome is Outcome.COMPLETED


def test_starting_another_process_does_not_take_the_status_of_one_that_is_asked(started, in_thread, reads):
    worker, client = started
    end_of(worker, client)
    ours, theirs = socket.socketpair()
    other = ProcessWorker(ours, "session-2", "peer", SessionOptions(), None)
    asking = in_thread(worker.is_alive)
    while not reads:
        threading.Event().wait(0.001)
    other.start()  # asks all that have been started
    assert not asking.result()
    assert len(set(reads)) == len(reads)  # the other one is that of its start
    ours.close()
    end_of(other, theirs)
    assert [each.report().outcome for each in (worker, other)] == [Outcome.COMPLETED] * 2
    other.release()


def test_worker_that_has_been_released_can_still_be_asked(started):
    worker, client = started
    number = worker.pid
    assert worker.is_alive()
    client.close()
    worker.join(PATIENCE)
    worker.report()
    worker.release()
    assert worker.is_over()
    assert not worker.is_alive()
    worker.join(PATIENCE)
    worker.kill()
    worker.break_off("too late")
    assert worker.pid == number


def test_waiting_for_one_does_not_keep_others_from_asking(started, in_thread):
    worker, client = started
    waiting = in_thread(worker.join, PATIENCE)
    assert in_thread(worker.is_alive).result()
    client.close()
    waiting.result()
    assert not worker.is_alive()


def test_server_has_let_go_of_a_worker_before_it_reports(server, connect, monkeypatch):
    """Other threads look at the server's list, and a process that has been reported is gone."""
    monkeypatch.setattr("server.HOUSEKEEPING", 0.05)
    running, seen, reported = server(server_options={"processes": True}), [], threading.Event()

    def report(worker):
        seen.append(running.server.running)
        reported.set()
        return original(worker)

    original = ProcessWorker.report
    monkeypatch.setattr(ProcessWorker, "report", report)
    peer = connect(running.address)
    peer.send(ConfigFile("null"), make_header())
    peer.send_close()
    assert peer.receive() == []
    assert reported.wait(PATIENCE)
    assert seen == [0]
