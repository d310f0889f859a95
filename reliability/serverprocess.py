"""The server as its users start it, in a folder of its own, watched from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent

# How long anything may take that has to come [s]; nothing waits that long when all is well.
PATIENCE = 20.0

# How soon something awaited is looked for again: less and less often, as looking costs the server its processor [s].
_FIRST_LOOK, _LAST_LOOK = 0.005, 0.05
_RAM_DISK = Path("/dev/shm")


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait until a condition holds, at most so long [s]; returns whether it does."""
    deadline, pause = time.monotonic() + patience, _FIRST_LOOK
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(1.5 * pause, _LAST_LOOK)
    return True


@dataclass(frozen=True)
class Counts:
    """Resources of a server and its children: none of it may grow."""

    threads: int
    sockets: int
    files: int
    processes: int
    folders: int

    def above(self, other: "Counts") -> str:
        """Where these counts are higher than others, in words; empty when nowhere."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return ", ".join(f"{mine} {name} instead of {theirs}" for name, mine, theirs in pairs if mine > theirs)


class ServerProcess:
    """``python main.py`` on a free port.

    Parameters
    ----------
    folder : Path
        Its log, its temporary files and, in ``saved``, its recordings go there.
    *arguments : str
        Further arguments.
    processes : bool
        Whether each session gets a process (``-m``).

    Raises
    ------
    RuntimeError
        If it does not come to listen; the text is its log.
    """

    def __init__(self, folder: Path, *arguments: str, processes: bool = False) -> None:
        self.folder, self.saved, self._temporary = folder, folder / "saved", folder / "temporary"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        self._seen: set[int] = set()  # every process that has been part of it
        options = ["-p", "0", "-d", "null", "-S", str(self.saved), "--grace", "1", *arguments]
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, str(PROJECT / "main.py"), *options, *(["-m"] if processes else [])],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True,
                env=os.environ | {"TMPDIR": str(self._temporary), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        if not wait_until(lambda: "Listening on" in self.log() or self.process.poll() is not None):
            self.end_all()
        found = re.search(r"Listening on (\S+):(\d+)", self.log())
        if found is None:
            raise RuntimeError(f"the server does not listen:\n{self.log()}")
        self.address = (found[1], int(found[2]))

    def log(self) -> str:
        """Its log so far."""
        return self._log.read_text("utf-8", "replace")

    def tree(self) -> list[psutil.Process]:
        """The server and the processes that it has started, those that have ended but for a trace left out."""
        try:
            found = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        found = [process for process in found if _is_running(process)]
        self._seen.update(process.pid for process in found)
        return found

    def counts(self) -> Counts:
        """Resources of the server and its children now."""
        threads = sockets = files = processes = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                threads += process.num_threads()
                descriptors = [_target(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
                files += len(descriptors)
                sockets += sum(target.startswith("socket:") for target in descriptors)
                processes += 1
        return Counts(threads, sockets, files, processes, len(self.temporary_folders()))

    def temporary_folders(self) -> list[Path]:
        """Folders in its temporary folder, and those on the RAM disk that a process of its has, or had."""
        on_ram_disk = [path for path in _RAM_DISK.glob("mrd-bart-*-*") if int(path.name.split("-")[2]) in self._seen]
        return [*self._temporary.iterdir(), *on_ram_disk]

    def memory(self) -> int:
        """Physical memory of the server and its children [bytes]."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def sessions(self) -> list[psutil.Process]:
        """The processes of running sessions (``-m``): they branch off a helper that is itself no session."""
        helpers = [process for process in self.tree() if process.ppid() == self.process.pid]
        return [process for process in self.tree() if process.ppid() in {helper.pid for helper in helpers}]

    def converters(self) -> list[psutil.Process]:
        """Running conversions of recordings."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(argument.endswith("recorder.py") for argument in process.cmdline()):
                    found.append(process)
        return found

    def stop(self, signum: int = signal.SIGTERM) -> int | None:
        """Send a signal and wait for the end; returns the exit status, None when it does not end."""
        if self.process.is_running():
            self.process.send_signal(signum)
        try:
            return self.process.wait(PATIENCE)
        except psutil.TimeoutExpired:
            return None

    def end_all(self) -> list[psutil.Process]:
        """Kill whatever is left of it; returns what was."""
        left = [*self.tree(), *self.orphans()]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([self.process, *left], PATIENCE)
        return left

    def orphans(self) -> list[psutil.Process]:
        """Processes that outlived the server: they know its temporary folder from their environment."""
        found, tree = [], {process.pid for process in self.tree()}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("TMPDIR") == str(self._temporary)
                if mine and process.pid not in tree and _is_running(process):
                    found.append(process)
        return found


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)  # noqa: PTH115 -- socket:[123] is no path
    except OSError:
        return ""
