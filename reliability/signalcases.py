"""Cases that are signals to server, client and BART, at moments that a seed decides."""

import contextlib
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import psutil

from .ground import Ground
from .scripted import CLOSE, config, connect, header, hold, readout, take_answer
from .sender import Sender
from .serverprocess import PATIENCE, PROJECT, wait_until

# What was handed over so long before the server was killed has been received [s].
IN_FLIGHT = 0.1

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)

_BART = """
import bart_tools, numpy
def process(connection, config, metadata):
    bart = bart_tools.find_bart()
    (kspace,) = bart_tools.run(bart, "phantom", ["-k", "-x", 64, "-s", 2])
    connection.send_text("begins")
    bart_tools.run(bart, "pics", ["-i", 100000, "-R", "T:3:0:0.001"], kspace, numpy.ones_like(kspace), threads=1)
"""


def _moments(seed: int, longest: float) -> Iterator[tuple[signal.Signals, float]]:
    """Each signal, after times that the seed decides [s]."""
    times = random.Random(seed)
    for signum in _SIGNALS:
        yield signum, times.uniform(0.0, longest)


def server_signals(ground: Ground) -> None:
    """SIGTERM, SIGINT and SIGKILL to a server with two sessions; then it is started again.

    A session that is a process outlives a server that is killed, and ends as its client wishes.
    """
    for number, (signum, delay) in enumerate(_moments(1, 0.3)):
        ground.row.cases += 1
        name = f"{signum.name} after {delay:.3f} s"
        senders = [Sender(ground.server.address, 10 * number + each) for each in range(2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.started.wait(PATIENCE)
        time.sleep(delay)
        moment = time.monotonic()
        status = ground.server.stop(signum)
        if status != (-signal.SIGKILL if signum == signal.SIGKILL else 0):
            ground.row.fail(f"{name}: the server's exit status is {status}")
        for sender in senders:
            sender.stop()
            if not sender.wait(PATIENCE):
                ground.row.fail(f"{name}: a client waits for ever")
            ground.expect(sender.handed_before(moment - IN_FLIGHT))
            if signum != signal.SIGKILL and not sender.answer.closed:
                ground.row.fail(f"{name}: a client got {sender.answer}")
        if not wait_until(lambda: not ground.server.orphans()):
            ground.row.fail(f"{name}: processes outlive the server and its sessions: {ground.server.end_all()}")
        ground.restart()


def client_signals(ground: Ground) -> None:
    """SIGTERM, SIGINT and SIGKILL to a client that sends at the pace of a scan: the server keeps what had come."""
    source = ground.folder / "scan.mrd"
    source.write_bytes(header() + b"".join(_timed(number) for number in range(4000)) + CLOSE)
    command = [
        sys.executable, str(PROJECT / "client.py"), str(source), "-p", str(ground.server.address[1]), "-c", "null",
        "--realtime", "-o", str(ground.folder / "out.h5"),
    ]  # fmt: skip
    for signum, delay in _moments(2, 0.2):
        name = f"{signum.name} to a client after {delay:.3f} s"
        known = set(ground.server.saved.iterdir())
        with ground.checked(name):
            client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ground.folder)
            try:
                stream = _growing(ground, known)
                time.sleep(delay)
                client.send_signal(signum)
                ground.expect(_timed(number) for number in range(_whole_readouts(stream)))
            finally:
                client.wait(PATIENCE)


def _timed(number: int) -> bytes:
    """Readout of a scan with one readout in 2.5 ms."""
    raw = bytearray(readout(number, session=5000))
    head = ismrmrd.AcquisitionHeader.from_buffer(raw, struct.calcsize("<H"))
    head.acquisition_time_stamp = number
    del head
    return bytes(raw)


def _growing(ground: Ground, known: set[Path]) -> Path:
    """Stream that is new, as soon as readouts stand in it."""
    new: list[Path] = []

    def grows() -> bool:
        new[:] = [path for path in set(ground.server.saved.iterdir()) - known if _whole_readouts(path)]
        return bool(new)

    if not wait_until(grows):
        raise ConnectionError("the client does not send")
    return new[0]


def _whole_readouts(stream: Path) -> int:
    """Number of readouts that stand whole in a stream that holds nothing else behind its opening."""
    return max(0, stream.stat().st_size - len(config("null")) - len(header())) // len(_timed(0))


def bart_signals(ground: Ground) -> None:
    """SIGTERM, SIGINT and SIGKILL to BART in the midst of its work, and its session's end without it."""
    (ground.folder / "bart_fault.py").write_text(_BART)
    messages = [config("bart_fault"), header(), readout(1), CLOSE]
    for signum, delay in _moments(3, 0.2):
        name = f"{signum.name} to BART after {delay:.3f} s"
        with ground.checked(name), connect(ground.server.address) as sock:
            sock.sendall(b"".join(messages))
            ground.expect([messages[2]])
            bart = _bart(ground)
            time.sleep(delay)
            bart.send_signal(signum)
            if signum == signal.SIGINT and ground.processes:
                bart.terminate()  # a session's process ignores SIGINT, and so does what it starts
            answer = take_answer(sock)
            assert answer.closed, f"{name}: {answer}"
            assert any("ended by signal" in error for error in answer.errors), f"{name}: {answer}"

    with connect(ground.server.address) as sock:  # and the session, or the server, is killed while BART works
        sock.sendall(b"".join(messages))
        ground.expect([messages[2]])
        ground.row.cases += 1
        bart = _bart(ground)
        (ground.server.sessions()[0] if ground.processes else ground.server.process).kill()
        take_answer(sock)
        if not wait_until(lambda: not bart.is_running()):
            bart.kill()
            ground.row.fail("BART outlives its session")
    killed = ground.server
    if not ground.processes:
        ground.restart()
    (ground.folder / "bart_well.py").write_text(_BART.replace('-i", 100000', '-i", 1'))
    with ground.checked("the next BART, which takes down what the killed one left"):
        answer = hold(ground.server.address, b"".join([config("bart_well"), *messages[1:]]))
        ground.expect([messages[2]])
        assert answer.closed, f"{answer}"
        assert not answer.errors, f"{answer}"
        left = [path for path in killed.temporary_folders() if path.name.startswith("mrd-bart-")]
        assert not left, f"{left}"


def _bart(ground: Ground) -> psutil.Process:
    found: list[psutil.Process] = []

    def runs() -> bool:
        for process in ground.server.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:2] == ["pics"]:
                    found.append(process)
        return bool(found)

    if not wait_until(runs):
        raise ConnectionError(f"BART has not been started:\n{ground.server.log()[-600:]}")
    return found[0]
