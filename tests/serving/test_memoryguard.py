"""Memory: who uses it, who is ended for it, and that the others go on."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, Peer, bytes_of, make_acquisition, make_header, write_module
from mrdio.limits import MIB, Limits
from server_process import ServerProcess, wait_until
from serving import memoryguard
from serving.memoryguard import MemoryGauge, MemoryGuard, ProcessTree

HOARD = """
def process(connection, config, metadata):
    kept = [item.data for item in connection]
    connection.send_text(f"kept {len(kept)}")
"""

COUNT = """
def process(connection, config, metadata):
    connection.send_text(f"counted {sum(1 for _ in connection)}")
"""

LARGE = bytes_of(make_acquisition(1, channels=64, samples=16384))  # 8 MiB


@pytest.fixture
def start(tmp_path):
    """Start `python main.py` with two modules, one that keeps what comes and one that does not."""
    write_module(tmp_path, "hoard", HOARD)
    write_module(tmp_path, "count", COUNT)
    opened = []

    def start_server(*arguments):
        opened.append(ServerProcess("-d", "null", *arguments, cwd=tmp_path))
        assert opened[-1].port, opened[-1].log()
        return opened[-1]

    def open_session(running, config):
        opened.append(Peer(socket.create_connection(("127.0.0.1", running.port), timeout=20)))
        opened[-1].send(ConfigFile(config), make_header())
        return opened[-1]

    start_server.session = open_session
    yield start_server
    for each in reversed(opened):
        if isinstance(each, Peer):
            each.close()
        elif each.process.poll() is None:
            each.stop(signal.SIGKILL)


def pour(peer, most, meanwhile=lambda: None):
    """Send large readouts until the server breaks off, or so many; returns how many, and the last text."""
    sent = 0
    try:
        while sent < most:
            peer.sock.sendall(LARGE)
            sent += 1
            meanwhile()
        peer.send_close()
        return sent, peer.receive()
    except (OSError, EOFError):  # the server has broken off
        return sent, []


# ---- the whole way -------------------------------------------------------------------------------------------------


def test_session_over_its_budget_is_ended_and_the_other_goes_on(start):
    running = start("--limit", "sessionMemory=300", "-m")
    other = start.session(running, "count")
    numbers = itertools.count()
    sent, _ = pour(start.session(running, "hoard"), 400, lambda: other.send(make_acquisition(next(numbers))))
    assert 30 < sent < 400
    running.wait_for("more than one may, 300 MiB (--limit sessionMemory)")
    other.send(make_acquisition(0))
    other.send_close()
    assert other.receive() == [f"counted {next(numbers) + 1}"]
    assert running.log().count("(--limit sessionMemory)") <= 3  # told, noted, and summed up, of one session
    again = start.session(running, "hoard")
    again.send(make_acquisition(0))
    again.send_close()
    assert again.receive() == ["kept 1"]
    assert running.stop() == 0


def test_largest_session_is_ended_when_the_server_is_over_its_limit(start):
    running = start("--limit", "maxMemory=700", "-m")
    small = start.session(running, "hoard")
    for _ in range(4):
        small.sock.sendall(LARGE)
    sent, _ = pour(start.session(running, "hoard"), 400)
    assert 30 < sent < 400
    running.wait_for("more than it may, 700 MiB (--limit maxMemory), and this session uses the most of it")
    small.send_close()
    assert small.receive() == ["kept 4"]
    assert running.stop() == 0


def test_long_stream_at_constant_memory_is_not_blamed(start):
    running = start("--limit", "sessionMemory=200", "--limit", "maxMemory=700", "-m")
    assert pour(start.session(running, "count"), 200) == (200, ["counted 200"])
    assert "Memory" not in running.log()
    assert running.stop() == 0


def test_client_is_told_both_numbers_and_the_flag(start):
    running = start("--limit", "sessionMemory=250", "-m")
    peer = start.session(running, "hoard")
    with contextlib.suppress(OSError):  # it may be ended before it has sent all of this
        for _ in range(45):
            peer.sock.sendall(LARGE)
    (text,) = [text for text in peer.receive() if "--limit sessionMemory" in text]
    assert text.startswith("ERROR    the session uses ")
    assert 250 < float(text.split("uses ")[1].split(" MiB")[0]) < 500
    assert text.endswith(" MiB, more than one may, 250 MiB (--limit sessionMemory)")
    assert running.stop() == 0


@pytest.mark.parametrize("overload", ["refuse", "wait"])
def test_threads_take_no_further_session_while_memory_is_short(start, overload):
    running = start("--limit", "maxMemory=500", "--overload", overload)
    hoarder = start.session(running, "hoard")
    for _ in range(60):
        hoarder.sock.sendall(LARGE)
    hoarder.send(make_acquisition(1))
    assert wait_until(lambda: running.process.memory_info().rss > 520 * MIB)  # 60 readouts of 8 MiB, and the server
    other = start.session(running, "count")
    if overload == "refuse":
        (said,) = other.receive()
        assert said.startswith("ERROR    the server already serves 1 sessions, it uses ")
        assert said.endswith(" MiB of memory, and may use 500 MiB (--limit maxMemory): try again later")
    else:
        running.wait_for("waits for a place, as number 1")
    hoarder.send_close()
    assert hoarder.receive() == ["kept 61"]  # it is not ended
    if overload == "wait":
        other.send_close()
        assert other.receive()[-1] == "counted 0"

    def is_served():
        other = start.session(running, "count")
        other.send_close()
        return other.receive() == ["counted 0"]

    assert wait_until(is_served)
    assert running.stop() == 0


def test_budget_of_a_session_needs_processes():
    done = subprocess.run(
        [sys.executable, "main.py", "--limit", "sessionMemory=300"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert "--limit sessionMemory needs -m" in done.stderr


def test_shortage_of_memory_is_told_and_ends(monkeypatch, clock):
    trees = [FakeTree({1: 400 * MIB})]
    monkeypatch.setattr(memoryguard, "ProcessTree", lambda: trees[-1])
    gauge = MemoryGauge(Limits(memory=500 * MIB))
    assert gauge.shortage() is None
    trees.append(FakeTree({1: 600 * MIB}))
    assert gauge.shortage() is None  # it has just been looked
    clock[0] += memoryguard.PERIOD + 0.1
    assert gauge.shortage() == "it uses 600 MiB of memory, and may use 500 MiB (--limit maxMemory)"
    trees.append(FakeTree({1: 100 * MIB}))
    clock[0] += memoryguard.PERIOD + 0.1
    assert gauge.shortage() is None


# ---- who is ended, and when ----------------------------------------------------------------------------------------


class FakeWorker:
    def __init__(self, name, pid=None):
        self.name, self.pid, self.alive = name, pid, True
        self.reasons, self.killed = [], 0

    def is_alive(self):
        return self.alive

    def break_off(self, reason):
        self.reasons.append(reason)

    def kill(self):
        self.killed += 1


class FakeTree:
    """Processes with so much memory; process 1 is the server's."""

    def __init__(self, resident, shared=0):
        self.resident, self._shared = resident, shared

    def below(self, pid):
        return [pid]

    def portion(self, pid):
        return self.resident[pid] - self._shared

    def whole(self):
        return sum(self.resident.values()) - self._shared * (len(self.resident) - 1)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(memoryguard.time, "monotonic", lambda: now[0])
    return now


def guard_of(workers, **limits):
    return MemoryGuard(Limits(**limits), lambda: workers)


def test_shared_memory_of_processes_does_not_count(clock):
    workers = [FakeWorker("a", 2), FakeWorker("b", 3)]
    guard = guard_of(workers, memory=1000, session_memory=300)
    guard.look(FakeTree({1: 100, 2: 450, 3: 400}, shared=200))
    assert workers[0].reasons == workers[1].reasons == []
    guard.look(FakeTree({1: 100, 2: 450, 3: 501}, shared=200))
    assert workers[0].reasons == []
    assert workers[1].reasons == ["the session uses 0 MiB, more than one may, 0 MiB (--limit sessionMemory)"]


def test_next_one_is_ended_only_when_the_first_had_time_to_go(clock):
    workers = [FakeWorker("a", 2), FakeWorker("b", 3)]
    guard = guard_of(workers, memory=500)
    for _ in range(3):
        guard.look(FakeTree({1: 100, 2: 300, 3: 200}))
    assert [len(worker.reasons) for worker in workers] == [1, 0]
    clock[0] += memoryguard.BREAK_OFF_WAIT + 0.1
    guard.look(FakeTree({1: 100, 2: 300, 3: 200}))
    assert workers[0].killed
    clock[0] += memoryguard.SETTLE
    guard.look(FakeTree({1: 100, 2: 300, 3: 200}))
    assert [len(worker.reasons) for worker in workers] == [1, 1]


def test_one_that_has_gone_makes_room(clock):
    workers = [FakeWorker("a", 2), FakeWorker("b", 3)]
    guard = guard_of(workers, memory=500)
    guard.look(FakeTree({1: 100, 2: 300, 3: 200}))
    del workers[0]
    guard.look(FakeTree({1: 100, 3: 200}))
    assert workers[0].reasons == []
    guard.look(FakeTree({1: 100, 3: 450}))  # and the next one does not wait
    assert len(workers[0].reasons) == 1


def test_server_without_sessions_ends_nobody(clock):
    guard_of([], memory=1, session_memory=1).look(FakeTree({1: 1000}))


# ---- what there is -------------------------------------------------------------------------------------------------


def test_tree_has_programs_that_were_started_and_what_they_hold():
    hold = f"import sys; kept = b'x' * {64 * MIB}; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        tree = ProcessTree()
        assert child.pid in tree.below(os.getpid())
        assert tree.below(child.pid) == [child.pid]
        assert 64 * MIB < tree.portion(child.pid) <= tree.resident[child.pid] < 128 * MIB
        assert tree.resident[os.getpid()] > 30 * MIB
        assert tree.portion(child.pid) < tree.whole() <= sum(tree.resident.values()) + MIB
        child.stdin.close()
    assert tree.portion(child.pid) == 0  # it has gone meanwhile
    assert child.pid not in ProcessTree().resident


def test_default_is_a_share_of_what_the_group_may_use(monkeypatch):
    monkeypatch.setattr(memoryguard, "memory_of_groups", lambda: iter([(1 << 30, 5), (1 << 29, 7)]))
    assert memoryguard.default_memory() == int(0.8 * (1 << 29))
    monkeypatch.setattr(memoryguard, "memory_of_groups", lambda: iter(()))
    assert memoryguard.default_memory() > 1 << 29


def test_what_a_process_shares_with_its_own_children_counts_once():
    hold = (
        f"import os, sys; kept = b'x' * {64 * MIB}; read, write = os.pipe(); child = os.fork()\n"
        "if child == 0: os.close(write); os.read(read, 1); os._exit(0)\n"
        "print('ready', flush=True); sys.stdin.read(); os.close(write); os.waitpid(child, 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        tree = ProcessTree()
        assert len(tree.below(process.pid)) == 2
        assert 64 * MIB < tree.portion(process.pid) < 100 * MIB
        process.stdin.close()


def test_memory_that_was_freed_is_given_back():
    own = psutil.Process()
    arrays = [np.ones(100_000, np.uint8) for _ in range(1000)]  # too small to have mappings of their own
    last = np.ones(100_000, np.uint8)  # the C library gives back what lies behind it by itself
    del arrays
    before = own.memory_info().rss
    memoryguard.give_back()
    assert own.memory_info().rss < before - 50e6
    assert last.all()


# ---- a guard that goes on ------------------------------------------------------------------------------------------


def test_one_that_has_ended_is_not_blamed(clock):
    workers = [FakeWorker("a", 2), FakeWorker("b", 3)]
    workers[0].alive = False
    guard_of(workers, memory=500).look(FakeTree({1: 100, 3: 450}))
    assert workers[0].reasons == []
    assert len(workers[1].reasons) == 1


def test_looks_that_fail_are_told_once_and_do_not_end_the_guard(monkeypatch, caplog, no_leaks):
    monkeypatch.setattr(memoryguard, "PERIOD", 0.001)
    looks, recovered, again = itertools.count(), threading.Event(), threading.Event()

    def look():
        number = next(looks)
        if number in (5, 6, 7, 20, 21):
            raise OSError(24, "Too many open files") if number != 6 else psutil.AccessDenied(1)
        recovered.set() if number > 7 else None
        again.set() if number > 21 else None
        return FakeTree({1: 100})

    monkeypatch.setattr(memoryguard, "ProcessTree", look)
    guard = guard_of([], memory=500)
    guard.start()
    try:
        assert recovered.wait(PATIENCE)
        assert again.wait(PATIENCE)
    finally:
        guard.stop()
    assert caplog.text.count("cannot be found out") == 2
    assert caplog.text.count("Too many open files") == 2
