"""SIGTERM, SIGINT and SIGKILL to server, client and BART, at moments that a seed decides."""

import random
import signal
import subprocess
import sys
import time

import pytest

from scripted import CLOSE, PATIENCE, Sender, changed, config, connect, header, hold, quiet, readout, take_answer, told
from server_process import PROJECT, is_running, process_of, wait_until

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
IN_FLIGHT = 0.1  # what was handed over so long before the server was killed has been received [s]

_BART = """
import bart_tools, numpy
def process(connection, config, metadata):
    bart = bart_tools.find_bart()
    (kspace,) = bart_tools.run(bart, "phantom", ["-k", "-x", 64, "-s", 2])
    bart_tools.run(bart, "pics", ["-i", {iterations}, "-R", "T:3:0:0.001"], kspace, numpy.ones_like(kspace), threads=1)
"""


def wait_for_moment(signum, longest):
    """Wait for a time of chance that belongs to the signal, so that a trial happens at several moments."""
    time.sleep(random.Random(int(signum)).uniform(0.0, longest))


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_to_the_server(checked, signum):
    """A session that is a process outlives a server that is killed, and ends as its client wishes."""
    senders = [Sender(checked.address, 10 * int(signum) + each) for each in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        assert sender.started.wait(PATIENCE)
    wait_for_moment(signum, 0.3)
    moment = time.monotonic()
    status = checked.server.stop(signum)
    assert status == (-signal.SIGKILL if signum == signal.SIGKILL else 0)
    for sender in senders:
        assert sender.stop(), "a client waits for ever"
        checked.expect(raw for handed, raw in sender.handed if handed < moment - IN_FLIGHT)
        assert signum == signal.SIGKILL or sender.answer.closed, sender.answer
    assert wait_until(lambda: not checked.server.orphans()), "processes outlive the server and its sessions"
    checked.restart()


# ---- client --------------------------------------------------------------------------------------------------------

_READOUT = readout(0, session=5000)


def _timed(number):
    """Readout of a scan with one readout in 2.5 ms."""
    return changed(_READOUT, scan_counter=number, acquisition_time_stamp=number)


def _whole_readouts(stream):
    """Number of readouts that stand whole in a stream that holds nothing else behind its opening."""
    return max(0, stream.stat().st_size - len(config("null")) - len(header())) // len(_READOUT)


def test_signals_to_clients(checked):
    """The server keeps what had come from clients that send at the pace of a scan.

    One client for each signal, all at the same time: each sends its first readout some seconds after its header.
    """
    source = checked.folder / "scan.mrd"
    source.write_bytes(header() + b"".join(map(_timed, range(4000))) + CLOSE)
    known = set(checked.saved.iterdir())

    def streams():
        return [path for path in set(checked.saved.iterdir()) - known if _whole_readouts(path)]

    def start(signum):
        command = [
            sys.executable, str(PROJECT / "client.py"), str(source), "-p", str(checked.server.port), "-c", "null",
            "--realtime", "-o", str(checked.folder / f"out{int(signum)}.h5"),
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=checked.folder)

    clients = {signum: start(signum) for signum in SIGNALS}
    try:
        assert wait_until(lambda: len(streams()) == len(clients)), "the clients do not send"
        for signum, client in clients.items():
            wait_for_moment(signum, 0.2)
            client.send_signal(signum)
        for stream in streams():
            checked.expect(map(_timed, range(_whole_readouts(stream))))
    finally:
        for client in clients.values():
            client.wait(PATIENCE)
    checked.check()


# ---- BART ----------------------------------------------------------------------------------------------------------


def _bart_session(checked, iterations=100_000):
    name = f"bart_{iterations}"
    (checked.folder / f"{name}.py").write_text(_BART.format(iterations=iterations))
    checked.expect([readout(1)])
    return b"".join([config(name), header(), readout(1), CLOSE])


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_to_bart(checked, signum):
    with connect(checked.address) as sock:
        sock.sendall(_bart_session(checked))
        bart = process_of(checked.server, "pics")
        wait_for_moment(signum, 0.2)
        bart.send_signal(signum)
        if signum == signal.SIGINT and checked.processes:
            bart.terminate()  # a session's process ignores SIGINT, and so does what it starts
        assert not told("ended by signal")(take_answer(sock))
    checked.check()


def test_bart_ends_with_its_session_and_the_next_one_takes_down_what_is_left(checked):
    with connect(checked.address) as sock:
        sock.sendall(_bart_session(checked))
        bart = process_of(checked.server, "pics")
        (checked.server.sessions()[0] if checked.processes else checked.server.process).kill()
        take_answer(sock)
        assert wait_until(lambda: not is_running(bart)), "BART outlives its session"
    killed = checked.server
    if not checked.processes:
        checked.restart()
    assert not quiet(hold(checked.address, _bart_session(checked, 1)))
    assert not [path for path in killed.temporary_folders() if path.name.startswith("mrd-bart-")]
    checked.check()
