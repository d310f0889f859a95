"""Has recordings turned into MRD files, one after the other, by one process that lives as long as the server.

The process is ``python recorder.py --follow``. It starts with the first recording that ends. If it crashes (HDF5 may
do so on a full disk), the next recording starts another one, and the stream that it was converting is kept.
"""

import contextlib
import json
import logging
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mrdio import conversion, streamfiles
from mrdio.limits import Limits, as_arguments
from mrdio.logs import current_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Streams that are to be converted.

    Attributes
    ----------
    find : callable
        Returns the streams; called in the converter's thread, since looking for them takes time, and may fail.
    session : str
        Session that the log lines belong to.
    done : threading.Event
        Is set when nothing more will be done about them.
    """

    find: Callable[[], list[Path]]
    session: str
    done: threading.Event = field(default_factory=threading.Event)


class Converter:
    """Queue of the streams that are to be converted, and the process that does it.

    Parameters
    ----------
    limits : Limits, optional
        Limits on the messages, and on the disk space that is left free.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._now: Job | None = None
        self._closed = False
        self._stopped = False
        self._process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._run, name="converter", daemon=True)

    def start(self) -> None:
        """Begin to convert."""
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
        return self._add(lambda: [path.absolute()], session or current_session())

    def convert_session(self, folder: Path, session: str) -> None:
        """Have the streams converted that a session has left in a folder."""
        self._add(lambda: streamfiles.streams_of(folder.absolute(), session), session)

    def convert_leftovers(self, folder: Path) -> None:
        """Have all streams in a folder converted."""
        self._add(lambda: streamfiles.streams_in(folder.absolute()), current_session())

    def _add(self, find: Callable[[], list[Path]], session: str) -> threading.Event:
        job = Job(find, session)
        with self._changed:
            if self._stopped:
                job.done.set()
            else:
                self._jobs.append(job)
                self._changed.notify_all()
        return job.done

    def finish(self, wait: float) -> None:
        """Wait until nothing is left to convert, at most so long [s]."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and self._now is None, wait)

    def close(self) -> None:
        """End when all jobs are done, without waiting for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> set[Path]:
        """End; returns the streams that have not been converted, and stay as they are."""
        with self._changed:
            self._stopped = True
            left = [*([self._now] if self._now else []), *self._jobs]
            for job in self._jobs:
                job.done.set()
            self._jobs.clear()
            if self._process is not None:
                self._process.terminate()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        kept: set[Path] = set()
        for job in left:
            with contextlib.suppress(OSError):  # where the folder cannot be read
                kept.update(path for path in job.find() if path.exists())
        return kept

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                for path in job.find():
                    self._try(job, path)
            except Exception as error:  # noqa: BLE001 -- the thread has to live on for the recordings to come
                text = "Recordings cannot be looked for, they are kept as they are: %s"
                logger.error(text, error, extra=_line(job))
            finally:
                job.done.set()
        self._end_process()

    def _next(self) -> Job | None:
        with self._changed:
            self._now = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._closed or self._jobs)
            if self._jobs:
                self._now = self._jobs.popleft()
            return self._now

    def _try(self, job: Job, path: Path) -> None:
        try:
            self._hand_over(job, path)
        except Exception as error:  # noqa: BLE001 -- no memory, no file handles left: the next one may be luckier
            logger.error("%s is not converted now, it is kept as it is: %s", path, error, extra=_line(job))

    def _hand_over(self, job: Job, path: Path) -> None:
        """Have the process convert a stream, and log its lines meanwhile."""
        process = self._running()
        if process is None:
            return
        assert process.stdin is not None  # pipes, as asked for
        assert process.stdout is not None
        token = secrets.token_hex(8)  # not known to the file, which could otherwise make a library print it
        with contextlib.suppress(BrokenPipeError):  # it has just died
            process.stdin.write(json.dumps([str(path), token]) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            entry = _parse(line)
            if entry.get("done") == token:
                return
            _log(job, line.rstrip("\n"), entry)
        status = self._end_process()
        if not self._stopped and path.exists():
            text = "%s has not been converted, it is kept as it is: the conversion ended with %d"
            logger.error(text, path, status, extra=_line(job))

    def _running(self) -> subprocess.Popen | None:
        """Return the process, a new one if there is none or it has died; None when none is wanted any more."""
        if self._process is not None and self._process.poll() is not None:
            self._end_process()
        with self._changed:
            if self._process is None and not self._stopped:
                self._process = subprocess.Popen(
                    [sys.executable, str(streamfiles.RECORDER), "--follow", "--log-json",
                     *as_arguments(self._limits, *conversion.CONVERSION_LIMITS)],
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
        assert process.stdin is not None  # pipes, as asked for
        assert process.stdout is not None
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
