"""Listens, and gives each connection a thread, or a process, of its own."""

import logging
import multiprocessing
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from mrdio.limits import flag_of
from mrdio.streamfiles import make_folder
from serving.converter import Converter
from serving.memoryguard import MemoryGauge, MemoryGuard
from serving.module_loader import ModuleLoader
from serving.processes import group_lives, kill_group
from serving.session import BUILT_IN, SAVE_ONLY, Session, SessionOptions
from serving.summary import Outcome, SessionSummary
from serving.waiting import Pending, WaitingQueue
from serving.workers import BREAK_OFF_WAIT, ProcessWorker, ThreadWorker, Worker, warm_up_processes

if TYPE_CHECKING:  # imported when it is asked for
    from serving.view.site import View

if sys.platform != "win32":  # which has no limit on open files
    import resource

logger = logging.getLogger(__name__)

# How many file handles have to be free when a session begins: for its socket, its recording and its module, and for
# files that other sessions open at that moment.
HANDLES = 16

# Interval of the check for ended sessions while no connection comes, and no process ends [s].
HOUSEKEEPING = 1.0

# The same while a client waits for a place, or a refused one reads why [s].
QUEUE_PERIOD = 0.1


@dataclass(frozen=True)
class ServerOptions:
    """Settings of the server, from the command line.

    Attributes
    ----------
    host, port : str, int
        Where to listen; port 0 takes any free port.
    processes : bool
        Whether each connection gets a process instead of a thread.
    overload : str
        How connections above the maximum number of sessions are treated: ``"refuse"`` (with a message) or ``"wait"``.
    grace : float
        How long running sessions may go on after the server was told to stop [s].
    session : SessionOptions
        Settings of every session.
    setup_process : callable
        Called first in each process (configures logging there).
    """

    host: str = "127.0.0.1"
    port: int = 9002
    processes: bool = False
    overload: str = "refuse"
    grace: float = 30.0
    session: SessionOptions = field(default_factory=SessionOptions)
    setup_process: Callable[[], None] | None = None


class Server:
    """MRD server.

    Parameters
    ----------
    options : ServerOptions
        Settings from the command line.
    ended : callable
        Called with the summary of each session that has ended, from any thread.
    view : View, optional
        Shows the sessions in a browser.

    Raises
    ------
    ValueError
        If there is no module for the default config.
    OSError
        If the address cannot be listened on, or incoming data are to be saved in a folder that cannot be made.
    """

    def __init__(
        self,
        options: ServerOptions,
        ended: Callable[[SessionSummary], object] = lambda summary: None,
        view: "View | None" = None,
    ) -> None:
        self._options = options
        self._count_ended = ended
        self._view = view
        self._loader = ModuleLoader(options.session.module_folders)
        default = options.session.default_config
        if default not in BUILT_IN and self._loader.find(default) is None:
            folders = ", ".join(map(str, self._loader.folders))
            raise ValueError(f"there is no module for the default config '{default}' in {folders}")
        if options.session.save_data:
            make_folder(options.session.save_folder)
        self._stopped = threading.Event()
        self._workers: list[Worker] = []  # whose sessions run
        self._lingering: list[Worker] = []  # whose sessions have ended: a process may go on, for what its module left
        self._converter: Converter | None = None
        # Leftovers have a process of their own: the recording of a session does not wait for theirs.
        self._leftovers: Converter | None = None
        if options.session.convert:
            self._converter, self._leftovers = Converter(options.session.limits), Converter(options.session.limits)
        self._session_count = 0
        self._accepting = True
        self._groups: set[int] = set()  # of processes that ended sessions have left
        self._memory = MemoryGauge(options.session.limits)
        self._waiting = WaitingQueue(options.session.limits, self._ended)
        self._listener = _listen(options.host, options.port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)

    def serve(self) -> None:
        """Accept connections until `stop` is called, then let the running sessions end within the grace time."""
        if self._options.processes:
            warm_up_processes()
        logger.info("Listening on %s:%d", *self.address)
        if self._converter is not None and self._leftovers is not None:
            self._converter.start()
            self._leftovers.convert_leftovers(self._options.session.save_folder)
            self._leftovers.close()
            self._leftovers.start()
        guard = MemoryGuard(self._options.session.limits, self._all_workers) if self._options.processes else None
        if guard is not None:
            guard.start()
        try:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(self._wake_receiver, selectors.EVENT_READ)
            while not self._stopped.is_set():
                ready = self._selector.select(QUEUE_PERIOD if self._waiting.is_busy else HOUSEKEEPING)
                self._forget_ended()
                self._waiting.look(self.running)
                while self._waiting.queue and not self._stopped.is_set() and not self._shortage():
                    self._serve(self._waiting.next())
                if ready and not self._stopped.is_set():
                    self._accept()
        finally:
            self._stopped.set()
            self._listener.close()
            self._waiting.close()
            self._end_sessions()
            self._stop_converting()
            if guard is not None:
                guard.stop()
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()

    def stop(self) -> None:
        """Stop accepting; may be called from any thread and from a signal handler."""
        self._stopped.set()
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return  # the wait has been ended already

    @property
    def running(self) -> int:
        """Number of sessions that are being served."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """Number of sessions that wait for a place."""
        return len(self._waiting.queue)

    def kill_sessions(self) -> None:
        """End the processes of sessions at once; threads end with the server's own process."""
        for worker in self._all_workers():
            if worker.is_alive():
                worker.kill()
        for group in self._groups:
            kill_group(group)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            return  # another socket ended the wait, or the peer has disconnected
        except OSError as error:  # the process has no file handles left
            if self._accepting:  # told once: the client waits, and it is tried again at once
                logger.error("Connections cannot be accepted, and wait until they can: %s", error)
            self._accepting = False
            self._stopped.wait(0.1)
            return
        self._accepting = True
        self._session_count += 1
        pending = Pending(sock, f"session-{self._session_count}", f"{address[0]}:{address[1]}")
        logger.info("connected from %s", pending.peer, extra={"session": pending.name})
        shortage = self._shortage()
        if not shortage and not self._waiting.queue:
            self._serve(pending)
        elif self._options.overload == "wait":
            self._waiting.admit(pending, self.running)
        else:
            text = f"the server already serves {self.running} sessions, {shortage or 'and others wait'}"
            self._waiting.refuse(pending, f"{text}: try again later")

    def _shortage(self) -> str | None:
        """Return what a further session lacks, in words; None when it can begin."""
        if self.running >= self._options.session.limits.sessions:
            return f"its limit ({flag_of('sessions')})"
        if not self.running:  # it may be those who wait that have all handles, and no other session would free memory
            return None
        if not _has_handles():
            return "and has no file handles for more (ulimit -n)"
        return None if self._options.processes else self._memory.shortage()

    def _serve(self, pending: Pending) -> None:
        sock, name, peer = pending.sock, pending.name, pending.peer
        try:
            if self._options.processes:
                worker: Worker = ProcessWorker(
                    sock, name, peer, self._options.session, self._options.setup_process, self._view
                )
            else:
                convert = None if self._converter is None else self._converter.convert
                options = self._options.session
                feed = None if self._view is None else self._view.feed(name)
                worker = ThreadWorker(Session(sock, name, options, self._loader, peer, self._report, convert, feed))
            worker.start()
        except (OSError, RuntimeError) as error:  # no memory or no threads left
            self._waiting.refuse(pending, f"the server cannot serve a further session: {error}")
            return
        self._workers.append(worker)
        if self._options.processes:
            sock.close()  # the process has its own copy
        if worker.sentinel is not None:
            self._selector.register(worker.sentinel, selectors.EVENT_READ)

    def _report(self, summary: SessionSummary) -> None:
        if summary.outcome is not Outcome.RUNNING:
            self._ended(summary)

    def _ended(self, summary: SessionSummary) -> None:
        self._count_ended(summary)
        if self._view is not None:
            self._view.ended(summary)

    def _all_workers(self) -> list[Worker]:
        return [*self._workers, *self._lingering]

    def _forget_ended(self) -> None:
        over = [worker for worker in self._workers if worker.is_over()]
        self._lingering = [*self._lingering, *over]  # first: other threads, and signal handlers, look at them
        self._workers = [worker for worker in self._workers if worker not in over]
        for worker in over:
            if (summary := worker.report()) is not None:
                self._ended(summary)
                # However the session has ended, its recording is a stream that is not written any more.
                if self._converter is not None and self._may_have_saved(summary):
                    self._converter.convert_session(self._options.session.save_folder, worker.name)
        ended = [worker for worker in self._lingering if not worker.is_alive()]
        self._lingering = [worker for worker in self._lingering if worker not in ended]
        for worker in ended:
            if worker.sentinel is not None:
                self._selector.unregister(worker.sentinel)
            worker.release()
        self._groups.update(worker.pid for worker in ended if worker.pid)
        self._groups = {group for group in self._groups if group_lives(group)}

    def _may_have_saved(self, summary: SessionSummary) -> bool:
        """Tell whether a session in a process may have left a recording; one that died early has reported no module."""
        return self._options.session.save_data or summary.module in ("", SAVE_ONLY)

    def _end_sessions(self) -> None:
        grace = self._options.grace
        deadline = time.monotonic() + grace
        self._forget_ended()
        running = [worker for worker in self._all_workers() if worker.is_alive()]
        if running:
            text = "Stopping: %d running sessions, and %d processes whose sessions are over, have %g s to end"
            logger.info(text, self.running, len(running) - self.running, grace)
        _join(running, grace)
        if not self._options.processes and (left := _children_of_modules()):
            logger.info("Stopping: %d processes that modules have left have as long", len(left))
            _join(left, deadline - time.monotonic())
        self._finish_conversions(deadline - time.monotonic())
        running = [worker for worker in running if worker.is_alive()]
        _break_off(running, "the server is being stopped")
        _join(running, BREAK_OFF_WAIT)
        for worker in running:
            if worker.is_alive():
                logger.error("does not end; it is given up", extra={"session": worker.name})
                worker.give_up()
        _join([worker for worker in running if worker.pid], BREAK_OFF_WAIT)
        self._finish_conversions(BREAK_OFF_WAIT)
        for group in self._groups:
            kill_group(group)

    def _finish_conversions(self, wait: float) -> None:
        """Have the recordings of ended sessions converted; gives up after a time [s]."""
        self._forget_ended()
        if self._converter is not None:
            self._converter.finish(max(0.0, wait))

    def _stop_converting(self) -> None:
        converters = [each for each in (self._leftovers, self._converter) if each is not None]
        if left := set[Path]().union(*(converter.stop() for converter in converters)):
            folder = self._options.session.save_folder
            logger.warning("%d recordings stay streams in %s: they are converted at the next start", len(left), folder)


def _has_handles() -> bool:
    """Tell whether this process may open so many more files and sockets that a session can begin."""
    if sys.platform == "win32" or not (handles := Path("/proc/self/fd")).is_dir():
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return limit == resource.RLIM_INFINITY or len(list(handles.iterdir())) + HANDLES <= limit
    except OSError:  # not even one is left
        return False


def _break_off(workers: list[Worker], reason: str) -> None:
    """Break all off at the same time: each may wait a while for a client that does not read."""
    threads = [threading.Thread(target=each.break_off, args=(reason,), daemon=True) for each in workers]
    for worker, thread in zip(workers, threads, strict=True):
        try:
            thread.start()
        except RuntimeError:  # no threads left
            worker.break_off(reason)
    _join([thread for thread in threads if thread.ident], BREAK_OFF_WAIT)


def _children_of_modules() -> list[BaseProcess]:
    """Return the children that Python itself would wait for: they may be writing a file."""
    return [child for child in multiprocessing.active_children() if not child.daemon]


def _join(workers: Sequence[Worker | threading.Thread | BaseProcess], wait: float) -> None:
    deadline = time.monotonic() + wait
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there the option means that two servers may share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: does another one listen there?", f"{host}:{port}") from error
    return listener
