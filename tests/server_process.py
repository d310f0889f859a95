"""`python main.py` as its users start it, watched from outside; and waiting for what has to come."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[1]
PATIENCE = 10.0  # how long a test waits for what has to come [s]
_MARK = "TESTED_SERVER"  # environment variable by which processes that have outlived their server are found


def wait_until(condition: Callable[[], object], seconds: float = 2 * PATIENCE) -> bool:
    """Wait until a condition holds, at most so long [s]; returns whether it does."""
    deadline, pause = time.monotonic() + seconds, 0.005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)  # less and less often: looking takes processor time from the server
    return True


def is_running(process: psutil.Process) -> bool:
    """True unless the process has ended; one that only waits for its parent has."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


class ServerProcess:
    """`python main.py` on a free port.

    Parameters
    ----------
    *arguments
        Further arguments of the server.
    cwd : Path
        Its current folder.
    temporary : Path
        Where its temporary files go, so that what is left of them shows; libraries then use one thread.
    program : Path
        Its main.py, for a copy of the project.
    """

    def __init__(
        self, *arguments: object, cwd: Path, temporary: Path | None = None, program: Path = PROJECT / "main.py"
    ) -> None:
        self._log, name = tempfile.mkstemp()  # no pipe, since processes that outlive the server may hold it
        Path(name).unlink()
        weakref.finalize(self, os.close, self._log)
        self._temporary, self._seen = temporary, set()  # every process that has been part of it
        self._mark = f"{os.getpid()}-{id(self)}-{time.monotonic_ns()}"
        environment = {_MARK: self._mark}
        if temporary is not None:
            temporary.mkdir(parents=True, exist_ok=True)
            environment |= {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = psutil.Popen(
            [sys.executable, str(program), "-p", "0", *map(str, arguments)],
            cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )  # fmt: skip
        wait_until(lambda: "Listening on" in self.log() or self.process.poll() is not None)
        found = re.search(r"Listening on (\S+):(\d+)", self.log())
        self.address = (found[1], int(found[2])) if found else None
        self.port = self.address[1] if self.address else None

    def log(self) -> str:
        """Its log so far."""
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode("utf-8", "replace")

    def wait_for(self, word: str) -> None:
        """Wait for a word in the log."""
        assert wait_until(lambda: word in self.log(), PATIENCE), self.log()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, unless the server has ended, and wait for its end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(PATIENCE + 20)

    def tree(self) -> list[psutil.Process]:
        """The server and the processes that it has started, without those that have ended."""
        try:
            found = [each for each in (self.process, *self.process.children(recursive=True)) if is_running(each)]
        except psutil.NoSuchProcess:
            return []
        self._seen.update(process.pid for process in found)
        return found

    def counts(self) -> dict[str, int]:
        """Threads, sockets, open files (sockets among them) and processes now, and memory [bytes]."""
        counts = dict.fromkeys(("threads", "sockets", "files", "processes", "memory"), 0)
        for process in self.tree():
            with contextlib.suppress(psutil.Error, OSError):
                counts["threads"] += process.num_threads()
                counts["memory"] += process.memory_info().rss
                descriptors = [_target(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
                counts["files"] += len(descriptors)
                counts["sockets"] += sum(target.startswith("socket:") for target in descriptors)
                counts["processes"] += 1
        return counts

    def temporary_folders(self) -> list[Path]:
        """What lies in its temporary folder, and on the RAM disk of a process of its."""
        on_ram_disk = Path("/dev/shm").glob("mrd-bart-*-*")
        mine = [path for path in on_ram_disk if int(path.name.split("-")[2]) in self._seen]
        return [*self._temporary.iterdir(), *mine]

    def orphans(self) -> list[psutil.Process]:
        """Processes that have outlived the server."""
        tree = {process.pid for process in self.tree()}
        return [process for process in self._marked() if process.pid not in tree and is_running(process)]

    def sessions(self) -> list[psutil.Process]:
        """Processes of running sessions (``-m``): they branch off a helper that is itself no session."""
        tree = self.tree()
        helpers = {process.pid for process in tree if process.ppid() == self.process.pid}
        return [process for process in tree if process.ppid() in helpers]

    def running(self, word: str) -> list[psutil.Process]:
        """Processes of the server that have a word in their command line."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if any(each.endswith(word) for each in process.cmdline()) else []
        return found

    def end_all(self) -> None:
        """Kill whatever is left of it."""
        left = [*self.tree(), *self.orphans()]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE)
        assert wait_until(lambda: not any(map(is_running, left)))  # the system's first process may reap them much later

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    yield process


def process_of(server: ServerProcess, word: str) -> psutil.Process:
    """Wait for a process of a server that has a word in its command line."""
    assert wait_until(lambda: server.running(word)), server.log()[-2000:]
    return server.running(word)[0]


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)  # noqa: PTH115 -- socket:[123] is no path
    except OSError:
        return ""


@pytest.fixture(name="start")
def start_server_process(tmp_path):
    running = []

    def start_server(*arguments):
        running.append(ServerProcess(*arguments, cwd=tmp_path))
        assert running[-1].port, running[-1].log()
        return running[-1]

    yield start_server
    for each in running:
        each.end_all()
