"""Processes and threads that modules leave behind: the server ends in spite of them, and they end with it."""

import signal
import socket

import psutil
import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, Peer, make_acquisition, make_header, write_module
from server_process import is_running, wait_until

# Ends by itself when nobody has ended it, so that a test that fails leaves nothing [s].
FOREVER = 40

CHILD = f"""
import atexit, multiprocessing, os, signal, subprocess, threading, time
context = multiprocessing.get_context("fork")
def wait():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep({FOREVER})
def start_child():
    child = context.Process(target=wait)
    child.start()
    return child.pid
"""

WRITING_CHILD = """
import multiprocessing, pathlib, time
def wait(folder=pathlib.Path({folder!r})):
    while not (folder / "go").exists():
        time.sleep(0.01)
    (folder / "written").touch()
def start_child():
    child = multiprocessing.get_context("fork").Process(target=wait)
    child.start()
    return child.pid
"""

# Each defines `left`: the numbers of processes that are to end with the server.
EVERYTHING = f"""
program = subprocess.Popen(["sleep", "{FOREVER}"])
shell = subprocess.Popen("sleep {FOREVER} & echo $!; wait", shell=True, stdout=subprocess.PIPE)
left = [start_child(), program.pid, shell.pid, int(shell.stdout.readline())]
threading.Thread(target=time.sleep, args=({FOREVER},)).start()
"""
A_CHILD = "left = [start_child()]"
A_PROGRAM = f"left = [subprocess.Popen(['sleep', '{FOREVER}']).pid]"
A_THREAD = f"left = [os.getpid()]; threading.Thread(target=time.sleep, args=({FOREVER},)).start()"
A_QUEUE_AND_AN_EXIT_FUNCTION = f"""
left = [os.getpid()]
context.Queue().put(bytes(1 << 20))
atexit.register(time.sleep, {FOREVER})
"""


def leave_behind(tmp_path, port, body, ending="pass", helpers=CHILD):
    """Run a session whose module leaves processes behind; returns them."""
    tell = "connection.send_text(' '.join(map(str, left)) + '.')"
    lines = [*body.strip().split("\n"), tell, "for item in connection: pass", ending]
    source = f"{helpers}\ndef process(connection, config, metadata):\n"
    write_module(tmp_path, "leaving", source + "".join(f"    {line}\n" for line in lines))
    peer = Peer(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
    peer.send(ConfigFile("leaving"), make_header(), make_acquisition())
    peer.send_close()
    text = peer.reader.read(6)
    while not text.endswith(b"."):
        text += peer.reader.read(1)
    peer.close()
    return [psutil.Process(int(number)) for number in text[6:-1].split()]


def are_gone(processes):
    """Wait for the end of processes; what is left of one that nobody has asked about does not count."""
    return wait_until(lambda: not any(map(is_running, processes)), PATIENCE)


def statuses_when_all_are_gone(servers, left, signum=signal.SIGTERM):
    """Send servers a signal; their exit statuses, once they and what was left have ended."""
    for each in servers:
        each.process.send_signal(signum)
    statuses = [each.process.wait(PATIENCE) for each in servers]
    gone = are_gone(left)
    for each in servers:
        each.stop()  # waits for the end of all that could write into the log
    return statuses if gone else "something lives on"


@pytest.mark.parametrize("body", [EVERYTHING, A_QUEUE_AND_AN_EXIT_FUNCTION], ids=["everything", "exit"])
def test_server_ends_with_what_a_module_has_left(start, tmp_path, body):
    """Both kinds of server at the same time, since each waits for what is left as long as it may."""
    servers = [start("-d", "null", "--grace", "0.2", *mode) for mode in ([], ["-m"])]
    left = [process for each in servers for process in leave_behind(tmp_path, each.port, body)]
    assert statuses_when_all_are_gone(servers, left) == [0, 0]


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_second_signal_ends_it_at_once(start, tmp_path, mode):
    running = start("-d", "null", "--grace", "600", *mode)
    left = leave_behind(tmp_path, running.port, EVERYTHING, f"time.sleep({FOREVER})")
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("Stopping")
    assert statuses_when_all_are_gone([running], left) == [128 + signal.SIGTERM]


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_child_that_still_works_has_the_grace_time(start, tmp_path, mode):
    """It may be writing a file: that is not lost because the server is told to stop."""
    running = start("-d", "null", "--grace", "20", *mode)
    leave_behind(tmp_path, running.port, A_CHILD, helpers=WRITING_CHILD.format(folder=str(tmp_path)))
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("Stopping")
    (tmp_path / "go").touch()
    assert running.process.wait(PATIENCE) == 0
    running.stop()
    assert (tmp_path / "written").exists()


def test_programs_of_a_process_that_died_end_with_it(start, tmp_path):
    running = start("-d", "null", "-m")
    left = leave_behind(tmp_path, running.port, A_PROGRAM, "os._exit(7)")
    assert are_gone(left)
    assert running.stop() == 0


def test_program_that_outlives_its_session_ends_with_the_server(start, tmp_path):
    running = start("-d", "null", "-m")
    left = leave_behind(tmp_path, running.port, A_PROGRAM)
    running.wait_for("session-1  ended, completed")
    assert left[0].is_running()
    assert statuses_when_all_are_gone([running], left) == [0]


def test_session_whose_process_goes_on_is_over_and_saved(start, tmp_path):
    """Python waits for threads and children that are no daemons: neither the place nor the recording does."""
    servers, left = [], []
    for name, body in {"child": A_CHILD, "thread": A_THREAD}.items():
        saving = ("-s", "-S", str(tmp_path / name))
        servers.append(start("-d", "null", "-m", *saving, "--limit", "maxSessions=1", "--grace", "0.2"))
        for number in (1, 2):
            left += leave_behind(tmp_path, servers[-1].port, body)
            servers[-1].wait_for(f"session-{number}  What came in was saved as")
        assert not list((tmp_path / name).glob("*.mrdpart"))
    assert all(process.is_running() for process in left)
    assert statuses_when_all_are_gone(servers, left) == [0, 0]
