"""SIGKILL while sessions are being saved, and several converters of one folder: nothing that was received is lost.

``TRIALS=20 python -m pytest tests/faults/test_kills.py -rP`` makes 20 trials of each kind, and prints their figures.
"""

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from checked_server import TRIALS, recover
from mrdio.mrdfile import MrdReader
from scripted import CLOSE, OPENING, PATIENCE, Sender, config, header, hold, readout, saved_readouts
from server_process import PROJECT, ServerProcess, wait_until

IN_FLIGHT = 0.1  # what was received so long before the kill is on the disk [s]
LONGEST, LONGEST_CONVERSION = 0.5, 0.1  # before the kill: from the first readout, from the end of the clients [s]

# Kind: whether sessions get processes.
KINDS = {
    "server, sessions in threads": False,
    "one session's process": True,
    "server and all its processes": True,
    "conversion, sessions in threads": False,
    "conversion, sessions in processes": True,
}


class Kill:
    """A server with two clients that send 1000 readouts a second, and a kill of a kind at a moment of chance.

    `run` notes 100 ms before the kill how many readouts have been received, as the system tells. Of a session that goes
    on, and of one whose conversion is killed, that is all of them.
    """

    def __init__(self, folder, kind, seed):
        self.folder, self.kind, self.chance = folder, kind, random.Random(seed)
        self.saved = folder / "saved"

    def start(self, *flags):
        arguments = ["-d", "null", "-s", "-S", self.saved, "--grace", "1", *flags]
        return ServerProcess(*arguments, cwd=self.folder, temporary=self.folder / "temporary")

    def run(self):
        self.server = self.start(*["-m"] * KINDS[self.kind])
        converts = self.kind.startswith("conversion")
        if converts:
            hold(self.server.address, b"".join(OPENING) + CLOSE)
            assert wait_until(lambda: self.server.running("recorder.py") and not list(self.saved.iterdir()))
        self.senders = [Sender(self.server.address, each, count=100 if converts else None) for each in (1, 2)]
        for sender in self.senders:
            sender.start()
        assert wait_until(lambda: sum(size > len(b"".join(OPENING)) for size in self.sizes()) >= 2), self.server.log()
        received = self.kill_converters() if converts else self.kill_sessions()
        for sender in self.senders:
            assert sender.stop(), "a client waits for ever"
        if self.kind == "one session's process":  # the server has lived on, and finishes what the session left
            assert wait_until(lambda: not list(self.saved.glob("*.mrdpart"))), "the server leaves the stream alone"
        self.server.end_all()
        return received

    def sizes(self):
        for path in self.saved.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it has just been converted
                yield path.stat().st_size

    def kill_converters(self):
        for sender in self.senders:
            sender.join(PATIENCE)
        time.sleep(self.chance.uniform(0, LONGEST_CONVERSION))
        self.end([*self.server.running("recorder.py"), *(self.server.tree() if self.chance.random() < 0.5 else [])])
        return [len(sender.handed) for sender in self.senders]

    def kill_sessions(self):
        time.sleep(self.chance.uniform(0, LONGEST))
        received = [sender.received() for sender in self.senders]
        time.sleep(IN_FLIGHT)
        victims = {
            "one session's process": self.server.sessions()[:1],
            "server and all its processes": self.server.tree(),
        }
        self.end(victims.get(self.kind, [self.server.process]))
        return received

    def end(self, victims):
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()

    def recover(self):
        """As the next start of the server does, or by the command."""
        if self.chance.random() < 0.5:
            recover(self.saved)
        else:
            server = self.start()
            done = wait_until(lambda: not list(self.saved.glob("*part")))
            server.stop()
            assert done, server.log()

    def lost(self, received):
        """Number of readouts that were received and stand in no file."""
        found = sum((readouts for _, readouts in saved_readouts(self.saved)), Counter())
        wanted = Counter()
        for sender, count in zip(self.senders, received, strict=True):
            # A session with a proper end has gone on, and everything was received.
            wanted.update(raw for _, raw in (sender.handed if sender.answer.closed else sender.handed[:count]))
        sent = Counter(raw for sender in self.senders for _, raw in sender.handed)
        assert found <= sent, "readouts were saved twice, or nobody sent them"
        print(f"{self.kind}: sent {sent.total()}, received {wanted.total()}, recovered {found.total()}")
        return (wanted - found).total()


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_received_before_a_kill_is_not_lost(kind, trial, tmp_path_factory):
    kill = Kill(tmp_path_factory.mktemp("kill"), kind, trial)  # sockets of processes need a short path
    try:
        received = kill.run()
        assert sum(received) > 0
        kill.recover()
        assert kill.lost(received) == 0
    finally:
        kill.server.end_all()
    files = list(kill.saved.glob("*.h5"))
    assert len(files) == 2
    for path in files:
        told = subprocess.run(["ismrmrd_info", path], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr


def test_what_is_missing_is_counted(tmp_path):
    kill = Kill(tmp_path, "server, sessions in threads", 3)
    try:
        received = kill.run()  # and nobody recovers anything
        assert kill.lost(received) == sum(received) > 0
    finally:
        kill.server.end_all()


@pytest.mark.parametrize("trial", range(TRIALS))
def test_several_converters_at_once_lose_nothing(trial, tmp_path):
    """Each stream becomes one file with its own readouts, nothing else lies there, and nobody tells of an error."""
    streams, readouts = 60, 3
    for each in range(streams):
        messages = [config("null"), header(), *(readout(row, session=each) for row in range(readouts)), CLOSE]
        (tmp_path / f"2026-01-02_03-04-05_session-{each}.mrdpart").write_bytes(b"".join(messages))
    command = [sys.executable, str(PROJECT / "recorder.py"), str(tmp_path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2 + (trial + 1) % 3)
    ]
    try:
        said = "".join(process.communicate(timeout=PATIENCE + streams)[0] for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [line for line in said.splitlines() if line.split()[2] != "INFO"] == []
    found = []
    for path in tmp_path.iterdir():
        with MrdReader(path) as reader:
            sessions = [item.measurement_uid for item in reader.acquisitions()]
        assert len(sessions) == readouts
        found += set(sessions)
    assert sorted(found) == list(range(streams))
