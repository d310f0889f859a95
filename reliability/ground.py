"""Runs cases against one server, and checks after each that nothing is left of it and nothing is lost."""

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .scripted import STAY, Answer, hold, phantom, phantom_problem, readouts_in, saved_readouts
from .serverprocess import PATIENCE, PROJECT, Counts, ServerProcess, wait_until

# How many of the cases that may run side by side do, and how many of them one check follows.
AT_ONCE = 8
BATCH = 32

# Longest time in which a server with a grace time of 1 s has to end, whatever its modules do [s].
STOP_LIMIT = 8.0

# How long what a case leaves behind may take to go [s].
LEFT_PATIENCE = PATIENCE

Judge = Callable[[Answer], str]


def closed(answer: Answer) -> str:
    """Any answer that ends with CLOSE will do; returns what is wrong, as every judge does."""
    return "" if answer.closed else f"answered with {answer}"


def quiet(answer: Answer) -> str:
    """CLOSE, and no error before it."""
    return "" if answer.closed and not answer.errors else f"answered with {answer}"


def told(*words: str) -> Judge:
    """An error that says all these words, then CLOSE."""

    def judge(answer: Answer) -> str:
        said = "\n".join(answer.errors)
        return "" if answer.closed and said and all(word in said for word in words) else f"answered with {answer}"

    return judge


def anything(answer: Answer) -> str:
    """Whatever comes will do: the connection may be dead."""
    return ""


@dataclass(frozen=True)
class Case:
    """One session that goes wrong.

    Attributes
    ----------
    name : str
        What it is called when it fails.
    data : bytes
        What the client sends.
    readouts : list of bytes
        Those readouts within it that the server has to keep.
    judge : callable
        Says what is wrong with the answer.
    leaving, step
        As in `scripted.hold`.
    """

    name: str
    data: bytes
    readouts: list[bytes] = field(default_factory=list)
    judge: Judge = closed
    leaving: str = STAY
    step: int = 0


def case(name: str, messages: list[bytes], judge: Judge = closed, tail: bytes = b"", **more: str | int) -> Case:
    """Case of whole messages, and perhaps bytes behind them."""
    return Case(name, b"".join(messages) + tail, readouts_in(messages), judge, **more)


@dataclass
class Row:
    """Outcome of a group of cases."""

    cases: int = 0
    failed: int = 0
    whole: int = 0
    lost: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if all cases passed and nothing was lost."""
        return not (self.failed or self.lost or self.problems)

    def fail(self, problem: str, cases: int = 1) -> None:
        """Note that cases failed."""
        self.failed += cases
        self.problems.append(problem[:600])


class Ground:
    """A server that saves what it receives, and what is known of it.

    Parameters
    ----------
    folder : Path
        Everything goes there.
    processes : bool
        Whether sessions get processes.
    *arguments : str
        Further arguments of the server.

    Attributes
    ----------
    row : Row
        What came of the cases so far.
    """

    def __init__(self, folder: Path, processes: bool, *arguments: str) -> None:
        self.folder, self.processes, self.arguments = folder, processes, arguments
        self.row = Row()
        self._sent: Counter[bytes] = Counter()
        self._streams: list[tuple[bytes, list[bytes]]] = []
        self._begin = time.monotonic()
        self._phantom = phantom()
        self.server = self._start()

    def _start(self) -> ServerProcess:
        server = ServerProcess(self.folder, "-s", "--convertLater", *self.arguments, processes=self.processes)
        self.server = server
        for _ in range(3):  # what is imported and started once belongs to the server
            if problem := self.next_client():
                self.row.fail(f"a fresh server: {problem}", 0)
        counts = [server.counts() for _ in range(10)]  # the last session may just be ending
        self._baseline = Counts(*map(min, zip(*(vars(each).values() for each in counts), strict=True)))
        return server

    def restart(self) -> None:
        """Start the server anew after it has been killed.

        What `multiprocessing` keeps of a process that was killed, a folder with a socket, nobody takes down.
        """
        self.server.end_all()
        for folder in self.server.temporary_folders():
            if folder.name.startswith("pymp-"):
                shutil.rmtree(folder)
        self.server = self._start()

    # ---- cases -----------------------------------------------------------------------------------------------------

    def run(self, cases: Iterable[Case]) -> None:
        """Run cases one after the other, with a check after each."""
        for each in cases:
            self.together([each])

    def together(self, cases: Iterable[Case]) -> None:
        """Run cases side by side, with a check after each batch of them."""
        cases = list(cases)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(cases), BATCH):
                batch = cases[start : start + BATCH]
                with self.checked(f"{batch[0].name} to {batch[-1].name}" if len(batch) > 1 else batch[0].name, 0):
                    for each, problem in zip(batch, pool.map(self._hold, batch), strict=True):
                        self.expect(each.readouts)
                        self._streams.append((each.data, each.readouts))
                        self.row.cases += 1
                        if problem:
                            self.row.fail(f"{each.name}: {problem}")

    def _hold(self, each: Case) -> str:
        return each.judge(hold(self.server.address, each.data, each.leaving, each.step))

    @contextlib.contextmanager
    def checked(self, name: str, cases: int = 1) -> Iterator[None]:
        """Check after what is done inside: the next client is served, and no counts have grown."""
        self.row.cases += cases
        problem = ""
        try:
            yield
        except (OSError, AssertionError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem := problem or self.is_unwell():
            self.row.fail(f"after {name}: {problem}")

    def is_unwell(self) -> str:
        """Traces of the last cases in the server, or harm to the next client; empty when there is none."""
        return self._sessions_left() or self.next_client() or self._grown()

    def has_saved(self, data: bytes) -> bool:
        """Wait until a stream on the disk holds these bytes, neither more nor less; returns whether one does."""
        return wait_until(lambda: any(path.read_bytes() == data for path in self.server.saved.glob("*.mrdpart")))

    def expect(self, readouts: Iterable[bytes]) -> None:
        """Note readouts that the server has received whole."""
        readouts = list(readouts)
        self._sent.update(readouts)
        self.row.whole += len(readouts)

    def next_client(self) -> str:
        """Serve a phantom; returns what is wrong with its image."""
        readouts = readouts_in(self._phantom)
        self._sent.update(readouts)
        self._streams.append((b"".join(self._phantom), readouts))
        return phantom_problem(hold(self.server.address, b"".join(self._phantom)))

    def _sessions_left(self) -> str:
        counts = []

        def ended() -> bool:
            counts[:] = [self.server.counts()]
            mine, theirs = counts[0], self._baseline
            return mine.threads <= theirs.threads and mine.processes <= theirs.processes

        return "" if wait_until(ended, LEFT_PATIENCE) else f"sessions are left: {counts[0].above(self._baseline)}"

    def _grown(self) -> str:
        is_above = self.server.counts().above(self._baseline)
        # A session may have begun behind the last look. The server forgets what has ended when somebody connects.
        if is_above and (problem := self._sessions_left() or self.next_client()):
            return problem
        above = [""]

        def is_back() -> bool:
            above[0] = self.server.counts().above(self._baseline)
            return not above[0]

        return "" if wait_until(is_back, LEFT_PATIENCE) else above[0]

    def match_streams(self, sample: int) -> None:
        """Check that the streams on the disk hold what was sent, byte by byte; then keep but a sample of them.

        Converting one takes 10 ms, and equal bytes become equal files.
        """
        paths = {path: path.read_bytes() for path in sorted(self.server.saved.glob("*.mrdpart"))}
        sent = Counter(data for data, _ in self._streams)
        difference = sent - Counter(paths.values())
        if difference:
            lost = sum((Counter(readouts) for data, readouts in self._streams if data in difference), Counter())
            self.row.lost += lost.total()
            self.row.fail(f"{difference.total()} sessions were not saved as they were sent", difference.total())
        else:
            chosen = set(random.Random(len(paths)).sample(sorted(paths), min(sample, len(paths))))
            for path in paths.keys() - chosen:
                path.unlink()
            of_data = dict(self._streams)
            self._sent = sum((Counter(of_data[paths[path]]) for path in chosen), Counter())

    # ---- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> Row:
        """Stop the server, convert what it saved, and compare that with what was sent; the last case of each group."""
        self.row.cases += 1
        for problem in (*self._stop(), *self._convert(), *self._compare()):
            self.row.fail(f"at the end: {problem}", 0)
        if any(problem.startswith("at the end") for problem in self.row.problems):
            self.row.failed += 1
        self.row.seconds = time.monotonic() - self._begin
        return self.row

    def _stop(self) -> Iterator[str]:
        begin = time.monotonic()
        status = self.server.stop()
        if (took := time.monotonic() - begin) > STOP_LIMIT:
            yield f"the server took {took:.1f} s to end"
        if status != 0:
            yield f"the server's exit status is {status}:\n{self.server.log()[-400:]}"
        if not wait_until(lambda: not self.server.orphans()):
            yield f"processes outlive the server: {self.server.end_all()}"
        if left := self.server.temporary_folders():
            yield f"temporary folders are left: {left}"

    def _convert(self) -> Iterator[str]:
        command = [sys.executable, str(PROJECT / "recorder.py"), str(self.server.saved)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * PATIENCE, check=False)
        if done.returncode or done.stderr:
            yield f"the conversion ended with {done.returncode}: {done.stderr[-400:]}"
        if left := [path.name for path in self.server.saved.glob("*part")]:
            yield f"streams could not be converted: {left[:5]}\n{done.stdout[-400:]}"

    def _compare(self) -> Iterator[str]:
        saved: Counter[bytes] = Counter()
        try:
            for _, readouts in saved_readouts(self.server.saved):
                saved.update(readouts)
        except OSError as error:
            yield f"a saved file does not open: {error}"
        lost = self._sent - saved
        self.row.lost += lost.total()
        if lost:
            yield f"{lost.total()} of {self._sent.total()} readouts are not in the saved files"
