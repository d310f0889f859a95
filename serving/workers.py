"""Runs sessions: each in a thread, or in a process, of its own."""

import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mrdio.logs import enter_session, log_summary
from serving.module_loader import ModuleLoader
from serving.processes import kill_group, lead_group, leave
from serving.session import Session, SessionOptions
from serving.summary import Outcome, SessionSummary

if TYPE_CHECKING:  # imported when it is asked for
    from serving.view.site import View

logger = logging.getLogger(__name__)

# How long a session may take to end after it has been broken off [s].
BREAK_OFF_WAIT = 3.0


class Worker(Protocol):
    """Runs one session: a thread or a process.

    Attributes
    ----------
    name : str
        Name of the session.
    pid : int or None
        The process of the session, if it has one of its own.
    sentinel : int or None
        File descriptor that becomes readable when that process ends; Windows has none.
    """

    name: str
    pid: int | None
    sentinel: int | None

    def start(self) -> None:
        """Begin; OSError or RuntimeError if no further thread or process can be made."""

    def is_over(self) -> bool:
        """True if the session has ended; what its module has left in its process may go on."""

    def is_alive(self) -> bool:
        """True if the thread or process runs."""

    def join(self, timeout: float) -> None:
        """Wait for the thread or process to end."""

    def break_off(self, reason: str) -> None:
        """Have it end, and tell its client why."""

    def kill(self) -> None:
        """End it at once, where that can be done."""

    def give_up(self) -> None:
        """Leave it behind when the server ends: end it at once, or else report it as it is."""

    def report(self) -> SessionSummary | None:
        """Summary of the session, unless it has reported that by itself; called when the session has ended."""

    def release(self) -> None:
        """Release its resources; called once, when it has ended and has been reported."""


class ThreadWorker(threading.Thread):
    """Runs a session in a thread."""

    pid: int | None = None
    sentinel: int | None = None

    def __init__(self, session: Session) -> None:
        super().__init__(target=session.run, name=session.name, daemon=True)
        self._session = session
        self.break_off = session.interrupt
        self.give_up = session.give_up

    def is_over(self) -> bool:
        """True if the session has ended."""
        return not self.is_alive()

    def kill(self) -> None:
        """Do nothing: a thread cannot be ended from outside; it ends with the server's own process."""

    def report(self) -> None:
        """Return None: a session in a thread reports by itself how it ended."""

    def release(self) -> None:
        """Do nothing: a thread that has ended holds nothing."""


def _run_in_process(
    sock: socket.socket,
    name: str,
    peer: str,
    options: SessionOptions,
    setup: Callable[[], None] | None,
    reports: Pipe,
    reasons: Pipe,
    letters: Pipe | None,
    names: bool,
) -> None:
    """Serve one session as the whole work of a process; SIGTERM ends it, for a reason that comes through a pipe.

    Children and threads that the module has left may go on when the session is over, until SIGTERM.
    """
    lead_group()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the server decides when to end
    if setup is not None:
        setup()
    enter_session(name)
    loader = ModuleLoader(options.module_folders)

    def report(summary: SessionSummary) -> None:
        with contextlib.suppress(OSError):  # there is no server any more
            reports.send_bytes(summary.to_json())

    feed = None
    if letters is not None:
        from serving.view.feed import PipeFeed, SettingsHandler

        feed = PipeFeed(letters, names)
        logging.getLogger().addHandler(SettingsHandler({name: feed}))
    session = Session(sock, name, options, loader, peer, report, feed=feed)

    interrupted = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        reason = "the server is being stopped"
        with contextlib.suppress(EOFError, OSError):  # there is no server any more
            if reasons.poll():
                reason = reasons.recv_bytes().decode()
        session.interrupt(reason)

    signal.signal(signal.SIGTERM, on_signal)
    session.run()
    if feed is not None:
        feed.close()
    signal.signal(signal.SIGTERM, lambda signum, frame: leave(0))
    if interrupted:
        leave(0)


# How a process ended can be read once: of two threads that ask at a time, one would be told 255. Starting a process
# asks all others. Reentrant, and never held while a line is logged: a signal handler may ask, too.
_ONE_ASKS = threading.RLock()


class ProcessWorker:
    """Runs a session in a process; any thread may call its methods."""

    pid: int | None = None
    sentinel: int | None = None

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        peer: str,
        options: SessionOptions,
        setup: Callable[[], None] | None,
        view: "View | None" = None,
    ) -> None:
        context = _process_context()
        self.name = name
        self._reports, reports = context.Pipe(duplex=False)
        reasons, self._reasons = context.Pipe(duplex=False)
        self._view = view
        letters: Pipe | None = None
        if view is not None:
            self._letters, letters = context.Pipe(duplex=False)
        self._theirs = [pipe for pipe in (reports, reasons, letters) if pipe is not None]
        names = view is not None and view.names
        arguments = (sock, name, peer, options, setup, reports, reasons, letters, names)
        self._process = context.Process(target=_run_in_process, args=arguments, name=name)
        self._released = False
        self._summary = SessionSummary(name, peer)
        self._start = time.monotonic()

    def start(self) -> None:
        """Start the process.

        Raises
        ------
        OSError
            If no further process can be made.
        """
        try:
            with _ONE_ASKS:
                self._process.start()
            self.pid = self._process.pid
            if sys.platform != "win32":
                self.sentinel = self._process.sentinel
        except OSError:
            self._reports.close()
            self._reasons.close()
            if self._view is not None:
                self._letters.close()
            raise
        finally:
            for pipe in self._theirs:
                pipe.close()  # the process has its own copy
        if self._view is not None:
            self._view.listen(self.name, self._letters)

    def is_over(self) -> bool:
        """True if the session has ended: it says so, and its process may go on, or the process has died."""
        alive = self.is_alive()  # first: what a process has said is there when it has ended
        self._listen()
        return not alive or self._summary.outcome is not Outcome.RUNNING

    def _listen(self) -> None:
        with _ONE_ASKS, contextlib.suppress(EOFError, OSError):
            while not self._released and self._reports.poll():
                self._summary = SessionSummary.from_json(self._reports.recv_bytes())

    def is_alive(self) -> bool:
        """True if the process runs."""
        with _ONE_ASKS:
            return not self._released and self._process.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for the process to end."""
        with _ONE_ASKS:
            ends = [] if self._released else [self._process.sentinel]
        if ends:
            wait(ends, timeout)

    def break_off(self, reason: str) -> None:
        """Have the session end, and tell its client why."""
        if not self._released:
            logger.info("to be ended: %s", reason, extra={"session": self.name})
        with _ONE_ASKS:
            if not self._released:
                with contextlib.suppress(OSError):  # it has just ended
                    self._reasons.send_bytes(reason.encode())
                self._process.terminate()

    def report(self) -> SessionSummary:
        """Summary that the process sent of its session, or, if it died before, what became of it."""
        self._listen()
        summary = self._summary
        if summary.outcome is Outcome.RUNNING:
            self._kill_group()
            with _ONE_ASKS:
                status = self._process.exitcode
            ending = _ending(status)
            killed = status is not None and status < 0
            summary.end(*((Outcome.KILLED, ending) if killed else (Outcome.FAILED, f"its process ended {ending}")))
            summary.seconds = time.monotonic() - self._start
            log_summary(summary)
        return summary

    def release(self) -> None:
        """Let go of the process, which has ended; an end that is no good one is logged."""
        with _ONE_ASKS:
            status = self._process.exitcode
            self._released = True
            self._reports.close()
            self._reasons.close()
            self._process.close()
        if status:  # it died
            self._kill_group()
            logger.error("its process ended %s", _ending(status), extra={"session": self.name})

    def kill(self) -> None:
        """End the process, and all that it has started, at once."""
        with _ONE_ASKS:
            if not self._released:
                self._process.kill()
                self._kill_group()

    give_up = kill

    def _kill_group(self) -> None:
        if self.pid is not None:  # it has been started
            kill_group(self.pid)


def _ending(status: int | None) -> str:
    """Ending of a process by its exit status, in words."""
    if status is not None and status < 0:
        return f"by signal {-status} ({_signal_name(-status)})"
    return f"with exit code {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return "unnamed"


def _process_context() -> "multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext":
    """Processes branch off a small helper that has the imports done and no threads; Windows can only start afresh."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


def warm_up_processes() -> None:
    """Start the helper that processes branch off, so that the first connection does not wait for it."""
    context = _process_context()
    if context.get_start_method() == "forkserver":
        # All that the command line's file imports, or each process would import it again.
        context.set_forkserver_preload(["main"])
        from multiprocessing import forkserver

        # The helper imports from the folder that it starts in first: it must be this one.
        with contextlib.chdir(Path(__file__).resolve().parent.parent):
            forkserver.ensure_running()
