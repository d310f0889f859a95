"""A server in which sessions go wrong, with a check after each batch that it is well and that nothing is lost."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripted import (
    CLOSE,
    PATIENCE,
    STAY,
    Judge,
    closed,
    config,
    header,
    hold,
    phantom,
    readout,
    readouts_in,
    right_phantom,
    saved_readouts,
    waveform,
)
from server_process import PROJECT, ServerProcess, wait_until

AT_ONCE, BATCH = 8, 32  # sessions that run side by side, and how many a check follows
STOP_LIMIT = 8.0  # in which a server with a grace time of 1 s has to end, whatever its modules do [s]

# How often each trial at a random moment is made: TRIALS=50 python -m pytest tests/faults/test_kills.py
TRIALS = int(os.environ.get("TRIALS", "1"))


PHANTOM = phantom()


@dataclass(frozen=True)
class Case:
    """A session that goes wrong: its bytes, the readouts in them that are to be kept, and the judge of its answer."""

    data: bytes
    readouts: list[bytes] = field(default_factory=list)
    judge: Judge = closed
    leaving: str = STAY
    step: int = 0


def case(messages: list[bytes], judge: Judge = closed, tail: bytes = b"", **more: str | int) -> Case:
    """Case of whole messages, and perhaps bytes behind them."""
    return Case(b"".join(messages) + tail, readouts_in(messages), judge, **more)


def session(module: str, number: int = 0) -> list[bytes]:
    """Messages of a session with five readouts."""
    data = [readout(row, session=number) for row in range(5)]
    return [config(module), header(), *data[:3], waveform(), *data[3:], CLOSE]


class CheckedServer:
    """A server that saves what it receives, and what is known of it.

    Parameters
    ----------
    folder : Path
        Everything goes there.
    processes : bool
        Whether sessions get processes.
    *arguments : str
        Further arguments of the server.
    """

    def __init__(self, folder: Path, processes: bool, *arguments: str) -> None:
        self.folder, self.processes, self.saved = folder, processes, folder / "saved"
        self._arguments = ["-s", "-S", self.saved, "-d", "null", "--grace", "1", "--convertLater", *arguments]
        self._arguments += ["-m"] * processes
        self._sent: Counter[bytes] = Counter()  # readouts
        self._streams: list[tuple[bytes, list[bytes]]] = []
        self.start()

    def start(self) -> None:
        """Start the server, and note what it has when nothing runs."""
        self.server = ServerProcess(*self._arguments, cwd=self.folder, temporary=self.folder / "temporary")
        self.address = self.server.address
        for _ in range(3):  # what is imported and started once belongs to the server
            self.serve_next()
        counts = [self._counts() for _ in range(10)]  # the last session may just be ending
        self._baseline = {name: min(each[name] for each in counts) for name in counts[0]}

    def restart(self) -> None:
        """Start the server anew after it has been killed.

        What `multiprocessing` keeps of a process that was killed, a folder with a socket, nobody takes down.
        """
        self.server.end_all()
        for folder in self.server.temporary_folders():
            if folder.name.startswith("pymp-"):
                shutil.rmtree(folder)
        self.start()

    def run(self, cases: dict[str, Case]) -> dict[str, str]:
        """Run sessions side by side, with a check after each batch; returns what is wrong with each answer."""
        names, problems = list(cases), {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(names), BATCH):
                batch = names[start : start + BATCH]
                problems |= dict(zip(batch, pool.map(self.hold_case, [cases[name] for name in batch]), strict=True))
                for name in batch:
                    self.expect(cases[name].readouts)
                try:
                    self.check()
                except AssertionError as error:
                    error.add_note(f"after {batch}")
                    raise
        return problems

    def hold_case(self, each: Case) -> str:
        """Hold a session; returns what is wrong with its answer."""
        self._streams.append((each.data, each.readouts))
        return each.judge(hold(self.address, each.data, each.leaving, each.step))

    def expect(self, readouts: Iterable[bytes]) -> None:
        """Note readouts that the server has received whole."""
        self._sent.update(readouts)

    def serve_next(self) -> None:
        """Serve a phantom."""
        each = Case(b"".join(PHANTOM), readouts_in(PHANTOM), right_phantom)
        self.expect(each.readouts)
        problem = self.hold_case(each)
        assert not problem, f"the next client: {problem}"

    def check(self, patience: float = PATIENCE) -> None:
        """Check that the next client is served, and that nothing is left of the sessions before."""
        assert wait_until(lambda: not self._above("threads", "processes"), patience), f"left are {self._above()}"
        self.serve_next()
        if self._above() and not wait_until(lambda: not self._above(), min(2.0, patience)):
            self.serve_next()  # the server forgets what has ended when somebody connects
            assert wait_until(lambda: not self._above(), patience), f"left are {self._above()}"

    def _counts(self) -> dict[str, int]:
        counts = self.server.counts() | {"temporary folders": len(self.server.temporary_folders())}
        counts.pop("memory")
        return counts

    def _above(self, *names: str) -> str:
        counts = self._counts()
        more = [name for name in names or counts if counts[name] > self._baseline[name]]
        return ", ".join(f"{counts[name]} {name} instead of {self._baseline[name]}" for name in more)

    def has_saved(self, data: bytes) -> bool:
        """Wait until a stream on the disk holds these bytes, neither more nor less; returns whether one does."""
        return wait_until(lambda: any(path.read_bytes() == data for path in self.saved.glob("*.mrdpart")))

    def match_streams(self, sample: int) -> None:
        """Check that the streams on the disk hold what was sent, byte by byte; then keep but a sample of them.

        Converting one takes 10 ms, and equal bytes become equal files.
        """
        paths = [(path, path.read_bytes()) for path in self.saved.glob("*.mrdpart")]
        lost = Counter(data for data, _ in self._streams) - Counter(data for _, data in paths)
        assert not lost, f"{lost.total()} of {len(self._streams)} sessions are not saved as they were sent"
        readouts = dict(self._streams)
        random.Random(len(paths)).shuffle(paths)
        for path, data in paths[sample:]:
            if data in readouts:
                path.unlink()
                self._sent -= Counter(readouts[data])
        self._streams.clear()

    def finish(self) -> None:
        """Check that the server ends in time, leaves nothing, and has saved every readout that was sent whole."""
        begin = time.monotonic()
        status = self.server.stop()
        assert status == 0, self.server.log()[-2000:]
        assert time.monotonic() - begin < STOP_LIMIT
        assert wait_until(lambda: not self.server.orphans()), f"outlive the server: {self.server.orphans()}"
        assert self.server.temporary_folders() == []
        recover(self.saved)
        saved = sum((readouts for _, readouts in saved_readouts(self.saved)), Counter())
        lost = self._sent - saved
        assert not lost, f"{lost.total()} of {self._sent.total()} readouts are not in the saved files"


def recover(saved: Path) -> None:
    """Turn the streams of a folder into MRD files."""
    command = [sys.executable, str(PROJECT / "recorder.py"), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6 * PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    left = list(saved.glob("*part"))
    assert not left, f"{left[:5]} could not be converted:\n{done.stdout[-2000:]}"


@pytest.fixture(scope="module", params=["threads", "processes"])
def checked(request, tmp_path_factory) -> Iterator[CheckedServer]:
    """A server for all cases of a file, which may name further arguments of it in ``ARGUMENTS``."""
    folder = tmp_path_factory.mktemp(request.param)
    running = CheckedServer(folder, request.param == "processes", *getattr(request.module, "ARGUMENTS", ()))
    try:
        yield running
        if not request.session.shouldstop:
            running.finish()
    finally:
        running.server.end_all()
