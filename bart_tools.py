"""Find BART (the Berkeley Advanced Reconstruction Toolbox) and run one of its commands.

A command runs in a private temporary folder, in an environment and a process group of its own, so that several sessions
do not see each other and that nothing outlives its session. What BART prints becomes log lines, progress reports and,
when it fails, the text of the error.

Arrays travel through BART's file format, see `cfl`.

Reference: BART toolbox, doi 10.5281/zenodo.592960.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrdio.cfl import SAMPLE, BartError, read_cfl, write_cfl
from serving.processes import kill_group

logger = logging.getLogger(__name__)

_FOLDER_PREFIX = "mrd-bart-"
ENVIRONMENT_VARIABLES = ("BART_TOOLBOX_PATH", "BART_PATH", "TOOLBOX_PATH")
DEFAULT_TIMEOUT = 6 * 3600.0  # [s], longer than any sensible reconstruction, so that every wait ends
RAM_DISK = Path("/dev/shm")

_POLL = 0.1  # [s], interval of the check for a cancelled session or a passed timeout
_PROBE_TIMEOUT = 30.0  # [s], for `bart version` and `bart COMMAND -h`
_KILL_TIMEOUT = 10.0  # [s], for the system to take down a killed process
_LINE = 500  # [characters] of a line that are kept
_ERROR_LINES = 6  # lines of BART's output that go into an error


class BartNotFoundError(BartError):
    """There is no BART where it was looked for."""


class BartCancelledError(BartError):
    """The command was killed because its session ended."""


class BartTimeoutError(BartError):
    """The command was killed because it took longer than its time limit."""


@dataclass(frozen=True)
class Bart:
    """One installed BART."""

    path: Path  # the executable
    version: str  # for example v0.8.00
    cuda: bool  # whether it was compiled with CUDA
    modified: int  # modification time [ns]: a new build at the same place is queried again

    def options(self, command: str) -> frozenset[str]:
        """Options that `command` knows, for example `{"-i", "-g", "--lowmem"}`; asked once per build."""
        return _options(self.path, self.modified, command)


def find_bart(configured: str | Path = "") -> Bart:
    """Find BART: the configured place (executable, or folder holding `bart`), else environment variables, else PATH.

    Raises
    ------
    BartNotFoundError
        No executable; says where it was looked for and how to get one. A configured place without BART is an error
        even if there is another BART elsewhere, as that one may know no CUDA.
    BartError
        What was found does not behave like BART.
    """
    if str(configured).strip():
        places: dict[str, str | None] = {"config value BART_TOOLBOX_PATH": str(configured)}
    else:
        places = {f"environment variable {name}": os.environ.get(name) for name in ENVIRONMENT_VARIABLES}
        places["PATH"] = shutil.which("bart")
    path = next((found for place in places.values() if place and (found := _executable(Path(place)))), None)
    if path is None:
        looked = [f"{place or 'not set'} ({name})" if name != "PATH" else name for name, place in places.items()]
        raise BartNotFoundError(
            f"There is no executable bart in {', '.join(looked)}. Get it with `apt-get install bart` (Debian, Ubuntu), "
            "or set BART_TOOLBOX_PATH in the config file to the folder of your own build (empty: environment variable "
            f"{' or '.join(ENVIRONMENT_VARIABLES)}, then PATH)."
        )
    for name, place in places.items():
        if place and not _executable(Path(place)):
            logger.warning("There is no executable bart in %s (%s): %s is used", place, name, path)
    return _probe(path, path.stat().st_mtime_ns)


def _executable(place: Path) -> Path | None:
    """Path of the executable that `place` is or holds, or None."""
    for candidate in (place, place / "bart"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    return None


@functools.lru_cache(maxsize=32)
def _probe(path: Path, modified: int) -> Bart:
    """Ask an executable for its version and for CUDA."""
    answer = _ask(path, "version", "-V")
    version = re.search(r"^v?\d+\.\d+\S*", answer, re.MULTILINE)
    if version is None:
        raise BartError(f"{path} is not the BART toolbox: `bart version -V` answers {answer[:200]!r}")
    bart = Bart(path, version.group(), re.search(r"^CUDA=1\b", answer, re.MULTILINE) is not None, modified)
    logger.info("BART %s at %s, %s CUDA", bart.version, bart.path, "with" if bart.cuda else "without")
    return bart


@functools.lru_cache(maxsize=256)
def _options(path: Path, modified: int, command: str) -> frozenset[str]:
    """Options in the usage line and in the option table of `bart COMMAND -h`."""
    return frozenset(re.findall(r"(?:^\s*|\[|,)(--?[A-Za-z][\w-]*)", _ask(path, command, "-h"), re.MULTILINE))


def _ask(path: Path, *arguments: str) -> str:
    """Everything that a short BART command prints."""
    listener = _Listener(arguments[0], keep=1000)
    _execute([str(path), *arguments], None, dict(os.environ), listener, lambda: False, _PROBE_TIMEOUT)
    return "\n".join(listener.final_text)


@dataclass(frozen=True)
class Progress:
    """Progress of a command; `str()` makes a line for the log and the client of it.

    For `pics` with ADMM, iterations are the normal operators of its inner conjugate gradients, at most 10 in each step.
    BART begins another step until more than `-i` are done: 1 to 9 all make 10 iterations, and 10 makes 20.
    """

    command: str
    iteration: int  # done; at the end of the command, what was really done
    total: int | None  # asked for with -i, None if it was not
    elapsed: float  # [s] since the command began
    remaining: float | None  # [s], from the time per iteration without the preparation; None if there is no total

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        if self.total is not None and self.iteration > self.total:
            of = f", more than the {self.total} asked for"
        return f"BART {self.command}: iteration {self.iteration}{of}, {self.elapsed:.0f} s elapsed"


class _Listener:
    """Reads what BART prints: log lines, error messages, progress reports. Unknown lines are only logged."""

    _ADMM_ROW = re.compile(r"\s*\d+\t\s*(\d+)\t\s*[-+.\w]+\t")
    _NEWTON_STEP = re.compile(r"Step: (\d+), Res:")
    _GRADIENT_STEP = re.compile(r"#(?:it: *)?(\d+):")
    _INVISIBLE = re.compile(r"\x1b\[[0-9;]*m|[^\t\x20-\x7e\xa0-\uffff]")

    def __init__(
        self, command: str, total: int | None = None, report: Callable[[Progress], Any] | None = None,
        interval: float = 0.0, keep: int = _ERROR_LINES,
    ) -> None:  # fmt: skip
        self.final_text: deque[str] = deque(maxlen=keep)
        self._command, self._total, self._report, self._interval = command, total, report, interval
        self._begin = self._iterating_since = time.monotonic()
        self._next_report, self._admm, self._rest = 0.0, False, b""
        self._unreported: int | None = None

    def feed(self, data: bytes) -> None:
        """Take in bytes as they come; only the start of an overlong line is kept."""
        *lines, rest = re.split(rb"[\r\n]", self._rest + data)
        self._rest = rest[: 4 * _LINE]
        for line in lines:
            self._line(self._INVISIBLE.sub("", line[: 4 * _LINE].decode(errors="replace"))[:_LINE].rstrip())

    def finish(self) -> None:
        """Report the last iteration, as the command has ended well."""
        if self._unreported is not None:
            self._tell(self._unreported)

    def message(self) -> str:
        """BART's last message."""
        return " | ".join(word.strip() for word in self.final_text) or "it printed nothing"

    def _line(self, line: str) -> None:
        if not line.strip():
            return
        self.final_text.append(line)
        logger.debug("bart %s: %s", self._command, line)
        if line.strip() == "ADMM":  # from here on, "#n:" lines are its inner iterations
            self._admm, self._iterating_since = True, time.monotonic()
        elif found := self._ADMM_ROW.match(line):
            self._progress(int(found[1]))
        elif found := self._NEWTON_STEP.match(line) or (None if self._admm else self._GRADIENT_STEP.match(line)):
            self._progress(int(found[1]) + 1)

    def _progress(self, iteration: int) -> None:
        self._unreported = iteration
        if time.monotonic() >= self._next_report:
            self._tell(iteration)

    def _tell(self, done: int) -> None:
        now, left = time.monotonic(), None
        self._next_report, self._unreported = now + self._interval, None
        if self._total and done:
            left = (now - self._iterating_since) / done * max(self._total - done, 0)
        progress = Progress(self._command, done, self._total, now - self._begin, left)
        logger.info("%s", progress)
        if self._report:
            self._report(progress)


def run(
    bart: Bart, command: str, options: Sequence[str | float | np.ndarray] = (), *inputs: np.ndarray, outputs: int = 1,
    cancelled: threading.Event | Callable[[], bool] | None = None,
    progress: Callable[[Progress], Any] | None = None, progress_interval: float = 2.0,
    gpu_device: int = -1, threads: int | None = None, timeout: float = DEFAULT_TIMEOUT, output_bytes: int | None = None,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Run `bart COMMAND OPTIONS INPUTS OUTPUTS` and return its outputs: complex64, 16 axes, Fortran-ordered.

    Parameters
    ----------
    bart, command
        From `find_bart`; for example `pics`.
    options
        Texts and numbers; an array becomes a file that an option needs, as in `["-i", 30, "-t", trajectory]`.
    *inputs
        Arrays [up to BART's 16 axes]; see `cfl.write_cfl` for what they cost and `cfl.on_axes` for placing their axes.
    outputs
        How many arrays the command writes.
    cancelled
        Event or function; once set or true, the command is killed, within about 0.2 s.
    progress
        Called in this thread with a `Progress`, at most every `progress_interval` [s] and once more at the end if there
        was an iteration since. An exception that it raises ends the command and is passed on.
    gpu_device, threads
        The one GPU that BART may use, counted as in this process (-1: none); OMP_NUM_THREADS (None: as it is).
    timeout
        Longest time that the command may take [s].
    output_bytes
        Expected size of the outputs [bytes], to see whether the RAM disk is large enough; None: that of the inputs.

    Raises
    ------
    BartCancelledError, BartTimeoutError
        The command was killed.
    BartError
        The command cannot be run or failed, its output is missing or incomplete, or the disk is full.
    """
    stop = cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled or (lambda: False)
    if stop():
        raise BartCancelledError(f"bart {command} was cancelled before it began")
    arrays = [item for item in (*options, *inputs) if isinstance(item, np.ndarray)]
    needed = sum(array.size for array in arrays) * SAMPLE
    environment = _environment(gpu_device, threads)
    listener = _Listener(command, _iterations(options), progress, progress_interval)
    parent = _roomy_place(needed + (needed if output_bytes is None else output_bytes))
    # cleanup errors are ignored because a killed grandchild may still be closing its files; the system takes them down
    _sweep(parent)
    prefix = f"{_FOLDER_PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        names = [f"out{index}" for index in range(outputs)]
        arguments = [str(bart.path), command, *_place(folder, command, (*options, *inputs)), *names]
        logger.debug("in %s: %s", folder, " ".join(arguments))
        status = _execute(arguments, folder, environment, listener, stop, timeout)
        if status != 0:
            raise BartError(f"bart {command} {_ending(status)}: {listener.message()}{_space(folder)}")
        listener.finish()
        try:
            return tuple(read_cfl(folder / output) for output in names)
        except BartError as error:
            raise BartError(f"bart {command} ended well, but {error}: {listener.message()}{_space(folder)}") from error


def _sweep(parent: str | None) -> None:
    """Remove what servers that were killed left behind: a full RAM disk leaves no memory for others."""
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        found = re.match(r"(\d+)-", folder.name.removeprefix(_FOLDER_PREFIX))
        try:
            if found and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{found[1]}").exists():
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            logger.debug("%s is left: %s", folder, error)


def _place(folder: Path, command: str, items: Sequence[str | float | np.ndarray]) -> list[str]:
    """Command line arguments; arrays become files in the folder."""
    files = {f"in{index}": item for index, item in enumerate(items) if isinstance(item, np.ndarray)}
    for name, array in files.items():
        try:
            write_cfl(folder / name, array)
        except OSError as error:
            raise BartError(f"cannot write an input of bart {command}: {error.strerror}{_space(folder)}") from error
    return [f"in{index}" if f"in{index}" in files else str(item) for index, item in enumerate(items)]


def _execute(
    arguments: list[str], folder: Path | None, environment: dict[str, str], listener: _Listener,
    stop: Callable[[], bool], timeout: float,
) -> int:  # fmt: skip
    """Run a process to its end and return its exit status; its process group has ended afterwards in any case."""
    try:
        process = subprocess.Popen(
            arguments if folder is None else [*_ended_with_parent(), *arguments],  # `bart version` ends by itself
            cwd=folder, env=environment, bufsize=0, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise BartError(f"{arguments[0]} cannot be run: {error.strerror}") from error
    output = process.stdout
    assert output is not None  # a pipe, as asked for
    deadline = time.monotonic() + timeout
    kill = weakref.finalize(process, kill_group, process.pid)  # also at the interpreter's exit, should that come first
    try:
        os.set_blocking(output.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while process.poll() is None:
                if stop():
                    raise BartCancelledError(f"bart {arguments[1]} was cancelled")
                if time.monotonic() > deadline:
                    raise BartTimeoutError(
                        f"bart {arguments[1]} passed its limit of {timeout:g} s: {listener.message()}"
                    )
                if selector.get_map() and selector.select(_POLL):
                    if data := output.read(65536):
                        listener.feed(data)
                    else:
                        selector.unregister(output)
                elif not selector.get_map():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL)
        kill()
        listener.feed((output.read(2**20) or b"") + b"\n")
        return process.returncode
    finally:
        kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_TIMEOUT)
        if process.returncode is None:
            logger.error("process %d of bart %s does not die", process.pid, arguments[1])
        output.close()


@functools.cache
def _ended_with_parent() -> tuple[str, ...]:
    """Command prefix with which the system kills a command when its parent is killed; empty where it cannot."""
    prefix = (shutil.which("setpriv") or "", "--pdeathsig", "KILL")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=_PROBE_TIMEOUT)
    except (OSError, subprocess.SubprocessError):  # not Linux, or older than util-linux 2.33
        return ()
    return prefix


def _environment(gpu_device: int, threads: int | None) -> dict[str, str]:
    """Environment of the child; ours stays as it is."""
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    visible = re.findall(r"[^,\s]+", environment.get("CUDA_VISIBLE_DEVICES", ""))
    if visible and gpu_device >= len(visible):
        raise BartError(f"gpu_device {gpu_device} is not among the {len(visible)} of CUDA_VISIBLE_DEVICES")
    seen = visible[gpu_device] if visible else str(gpu_device)
    return environment | {"CUDA_VISIBLE_DEVICES": "" if gpu_device < 0 else seen}


def _roomy_place(needed: int) -> str | None:
    """The RAM disk if it and the memory have `needed` bytes free, else None for the normal temporary folder."""
    try:
        free = shutil.disk_usage(RAM_DISK).free
        memory = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    # BART itself works on several arrays as large as its output, so leave it half of the memory
    roomy = memory and needed < 0.9 * free and needed < 0.5 * 1024 * int(memory[1])
    return str(RAM_DISK) if roomy and os.access(RAM_DISK, os.W_OK | os.X_OK) else None


def _iterations(options: Sequence[str | float | np.ndarray]) -> int | None:
    """Number of iterations that the options ask for with `-i 30` or `-i30`."""
    texts = ["" if isinstance(item, np.ndarray) else str(item) for item in options]
    found = re.search(r"(?:^|\0)-i\0?(\d+)(?=\0|$)", "\0".join(texts))
    return int(found[1]) if found else None


def _ending(status: int) -> str:
    """The ending of a process, in words."""
    hints = {-signal.SIGKILL: " (the system may have run out of memory)", -signal.SIGBUS: " (the disk may be full)"}
    if status >= 0:
        return f"failed with exit status {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status)}){hints.get(status, '')}"


def _space(folder: Path) -> str:
    """Note on the free space of the folder's disk when it is nearly used up, else nothing."""
    free = shutil.disk_usage(folder).free
    return f" (the disk of {folder.parent} is full: {free} bytes free)" if free < 2**20 else ""
