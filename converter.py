"""Has recordings turned into MRD files, one after the other, by one process that lives as long as the server.

The process is ``python recorder.py --follow``. It starts with the first recording that ends. Should it die (HDF5 may
crash on a full disk), the next recording starts another one, and the stream that it died of is kept.
"""

import contextlib
import json
import logging
import secrets
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import recorder
from limits import Limits, as_arguments
from logs import current_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A stream that is to be converted.

    Attributes
    ----------
    path : Path
        The stream.
    session : str
        Session that the log lines belong to.
    is_leftover : bool
        Whether it is of an earlier run: nobody waits for it.
    done : threading.Event
        Is set when nothing more will be done about it.
    token : str
        Known to nobody who could make a library print it.
    """

    path: Path
    session: str
    is_leftover: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    token: str = field(default_factory=lambda: secrets.token_hex(8))


class Converter:
    """Queue of the streams that are to be converted, and the process that does it.

    Streams of sessions come before those that were left by an earlier run.

    Parameters
    ----------
    limits : Limits, optional
        Limits on the messages, and on the room that is left on the disk.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._leftovers: deque[Job] = deque()
        self._now: Job | None = None
        self._stopped = False
        self._process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._run, name="converter", daemon=True)

    def start(self) -> None:
        """Begin with what has been, or will be, handed in."""
        self._thread.start()

    def convert(self, path: Path, session: str | None = None) -> threading.Event:
        """Have the stream of a session converted.

        Parameters
        ----------
        path : Path
            The stream.
        session : str, optional
            The session, for the log; that of this thread unless it is given.

        Returns
        -------
        threading.Event
            Set when the stream has been converted, or cannot be (logged).
        """
        job = Job(path.absolute(), session or current_session())
        with self._changed:
            if self._stopped:
                job.done.set()
            else:
                self._jobs.append(job)
                self._changed.notify_all()
        return job.done

    def convert_leftovers(self, folder: Path) -> None:
        """Have the streams converted that are left in a folder, when no session's wait."""
        found = [Job(path.absolute(), current_session(), is_leftover=True) for path in recorder.streams_in(folder)]
        with self._changed:
            self._leftovers.extend(found)
            self._changed.notify_all()

    def finish(self, patience: float) -> None:
        """Forget the leftovers, and wait until no session's stream is left, at most so long [s]."""
        with self._changed:
            self._leftovers.clear()
            self._changed.wait_for(lambda: not self._jobs and (self._now is None or self._now.is_leftover), patience)

    def stop(self) -> None:
        """End; what has not been converted stays as it is."""
        with self._changed:
            self._stopped = True
            for job in (*self._jobs, *self._leftovers):
                job.done.set()
            self._jobs.clear()
            self._leftovers.clear()
            if self._process is not None:
                self._process.terminate()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._hand_over(job)
            except Exception as error:  # noqa: BLE001 -- the thread has to live on for the recordings to come
                logger.error("%s is not converted now, it is kept as it is: %s", job.path, error, extra=_line(job))
            finally:
                job.done.set()
        self._end_process()

    def _next(self) -> Job | None:
        with self._changed:
            self._now = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._jobs or self._leftovers)
            if not self._stopped:
                self._now = (self._jobs or self._leftovers).popleft()
            return self._now

    def _hand_over(self, job: Job) -> None:
        """Have the process convert a stream, and log what it says meanwhile."""
        process = self._running()
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it has just died
            process.stdin.write(json.dumps([str(job.path), job.token]) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            entry = _parse(line)
            if entry.get("done") == job.token:
                return
            _log(job, line.rstrip("\n"), entry)
        status = self._end_process()
        if not self._stopped and job.path.exists():
            text = "%s has not been converted, it is kept as it is: the conversion ended with %d"
            logger.error(text, job.path, status, extra=_line(job))

    def _running(self) -> subprocess.Popen | None:
        """Return the process, a new one if there is none or it has died; None when none is wanted any more."""
        if self._process is not None and self._process.poll() is not None:
            self._end_process()
        with self._changed:
            if self._process is None and not self._stopped:
                self._process = subprocess.Popen(
                    [sys.executable, recorder.__file__, "--follow", "--log-json",
                     *as_arguments(self._limits, *recorder.CONVERSION_LIMITS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # Ctrl+C reaches the server's group; the server decides when to end
                )  # fmt: skip
            return self._process

    def _end_process(self) -> int:
        """Wait for the end of the process, which has been told to end or has died; returns its exit status."""
        with self._changed:
            process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):  # what it had not read yet
            process.stdin.close()
        process.stdout.close()
        return process.wait()


def _parse(line: str) -> dict:
    """Content of a line of JSON; empty when it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # a library has printed it
        return {}
    return entry if isinstance(entry, dict) else {}


def _log(job: Job, line: str, entry: dict) -> None:
    """Log a line of the conversion; what a library has printed may hold what a client has sent: it is a warning."""
    try:
        level, text = logging.getLevelNamesMapping()[entry["level"]], entry["message"]
    except (KeyError, TypeError):
        level, text = logging.WARNING, line
    if text:
        logger.log(level, "%s", text, extra=_line(job))


def _line(job: Job) -> dict[str, str]:
    return {"session": job.session}
