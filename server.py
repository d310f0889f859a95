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

from doorkeeper import Doorkeeper, Visitor
from limits import flag_of
from memoryguard import MemoryGuard
from module_loader import ModuleLoader
from processes import group_lives, kill_group
from recorder import STREAM_SUFFIX, Conversion, make_folder
from session import BUILT_IN, Session, SessionOptions
from summary import Outcome, SessionSummary
from workers import BREAK_OFF_WAIT, ProcessWorker, ThreadWorker, Worker, warm_up_processes

logger = logging.getLogger(__name__)

# How often ended sessions are looked after while no connection comes [s].
HOUSEKEEPING = 5.0

# The same while somebody waits for a place, or has been told to leave [s].
DOORKEEPING = 0.1


@dataclass(frozen=True)
class ServerOptions:
    """What the command line settles for the server.

    Attributes
    ----------
    host, port : str, int
        Where to listen; port 0 takes any free port.
    processes : bool
        Whether each connection gets a process instead of a thread.
    overload : str
        What becomes of connections that there is no place for: ``"refuse"`` (they are told so) or ``"wait"``.
    grace : float
        How long running sessions may go on after the server was told to stop [s].
    session : SessionOptions
        What is settled for every session.
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
        What the command line settled.
    ended : callable
        Called with the summary of each session that has ended, from any thread.

    Raises
    ------
    ValueError
        If there is no module for the default config.
    OSError
        If the address cannot be listened on, or incoming data are to be saved in a folder that cannot be made.
    """

    def __init__(
        self, options: ServerOptions, ended: Callable[[SessionSummary], object] = lambda summary: None
    ) -> None:
        self._options = options
        self._ended = ended
        self._loader = ModuleLoader(options.session.module_folders)
        default = options.session.default_config
        if default not in BUILT_IN and self._loader.find(default) is None:
            folders = ", ".join(map(str, self._loader.folders))
            raise ValueError(f"there is no module for the default config '{default}' in {folders}")
        if options.session.save_data:
            make_folder(options.session.save_folder)
        self._stopped = threading.Event()
        self._workers: list[Worker] = []
        self._conversions: list[Conversion] = []
        self._session_count = 0
        self._groups: set[int] = set()  # of processes that ended sessions have left
        self._door = Doorkeeper(options.session.limits, ended)
        self._listener = _listen(options.host, options.port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)

    def serve(self) -> None:
        """Accept connections until `stop` is called, then let the running sessions end within the grace time."""
        if self._options.processes:
            warm_up_processes()
        logger.info("Listening on %s:%d", *self.address)
        self._finish_leftovers()
        guard = MemoryGuard(self._options.session.limits, lambda: self._workers)
        guard.start()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._wake_receiver, selectors.EVENT_READ)
                while not self._stopped.is_set():
                    ready = selector.select(DOORKEEPING if self._door.is_busy else HOUSEKEEPING)
                    self._forget_ended()
                    self._door.look(self.running)
                    while self._has_place() and (visitor := self._door.next()) is not None:
                        self._serve(visitor)
                    if ready and not self._stopped.is_set():
                        self._accept()
        finally:
            self._stopped.set()
            self._listener.close()
            self._door.close()
            for conversion in list(self._conversions):  # which leave the list as they end
                conversion.stop()
            self._end_sessions()
            guard.stop()
            self._wake_receiver.close()
            self._wake_sender.close()

    def stop(self) -> None:
        """Stop accepting; may be called from any thread and from a signal handler."""
        self._stopped.set()
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return  # it has been woken already

    @property
    def running(self) -> int:
        """How many sessions are being served."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """How many sessions wait for a place."""
        return len(self._door.queue)

    def kill_sessions(self) -> None:
        """End the processes of sessions at once; threads end with the server's own process."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        for group in self._groups:
            kill_group(group)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            return  # it was not the listener that woke the loop, or the peer is gone again
        except OSError as error:  # the process has no file descriptors left
            logger.error("A connection could not be accepted: %s", error)
            self._stopped.wait(0.1)
            return
        self._session_count += 1
        visitor = Visitor(sock, f"session-{self._session_count}", f"{address[0]}:{address[1]}")
        logger.info("connected from %s", visitor.peer, extra={"session": visitor.name})
        if self._has_place() and not self._door.queue:
            self._serve(visitor)
        elif self._options.overload == "wait":
            self._door.admit(visitor, self.running)
        else:
            limit = f"its limit ({flag_of('sessions')})"
            self._door.refuse(visitor, f"the server already serves {self.running} sessions, {limit}: try again later")

    def _has_place(self) -> bool:
        return self.running < self._options.session.limits.sessions and not self._stopped.is_set()

    def _serve(self, visitor: Visitor) -> None:
        sock, name, peer = visitor.sock, visitor.name, visitor.peer
        try:
            if self._options.processes:
                worker = ProcessWorker(sock, name, peer, self._options.session, self._options.setup_process)
            else:
                worker = ThreadWorker(Session(sock, name, self._options.session, self._loader, peer, self._report))
            worker.start()
        except (OSError, RuntimeError) as error:  # no memory or no threads left
            self._door.refuse(visitor, f"the server cannot serve a further session: {error}")
            return
        self._workers.append(worker)
        if self._options.processes:
            sock.close()  # the process has its own copy

    def _report(self, summary: SessionSummary) -> None:
        if summary.outcome is not Outcome.RUNNING:
            self._ended(summary)

    def _forget_ended(self) -> None:
        ended = [worker for worker in self._workers if not worker.is_alive()]
        self._workers = [worker for worker in self._workers if worker not in ended]  # first: other threads look at them
        for worker in ended:
            if (summary := worker.report()) is not None:
                self._ended(summary)
        self._groups.update(worker.pid for worker in ended if worker.pid)
        self._groups = {group for group in self._groups if group_lives(group)}
        if any(worker.died for worker in ended) and not self._stopped.is_set():
            self._finish_leftovers()

    def _finish_leftovers(self) -> None:
        """Begin to convert the recordings that an earlier run, or a process that died, has left, if there are any."""
        options = self._options.session
        if options.convert and any(options.save_folder.glob(f"*{STREAM_SUFFIX}")):
            try:
                conversion = Conversion(options.save_folder, options.limits)
            except OSError as error:  # no memory, or no file descriptors left
                logger.error("What was left in %s cannot be converted now: %s", options.save_folder, error)
                return
            self._conversions.append(conversion)

            def finish() -> None:
                conversion.wait()
                self._conversions.remove(conversion)

            threading.Thread(target=finish, name="leftovers", daemon=True).start()

    def _end_sessions(self) -> None:
        grace = self._options.grace
        deadline = time.monotonic() + grace
        running = [worker for worker in self._workers if worker.is_alive()]
        if running:
            logger.info("Stopping: %d running sessions have %g s to end", len(running), grace)
        _join(running, grace)
        if not self._options.processes and (left := _children_of_modules()):
            logger.info("Stopping: %d processes that modules have left have as long", len(left))
            _join(left, deadline - time.monotonic())
        running = [worker for worker in running if worker.is_alive()]
        _break_off(running, "the server is being stopped")
        _join(running, BREAK_OFF_WAIT)
        for worker in running:
            if worker.is_alive():
                logger.error("does not end; it is given up", extra={"session": worker.name})
                worker.give_up()
        _join([worker for worker in running if worker.pid], BREAK_OFF_WAIT)
        self._forget_ended()
        for group in self._groups:
            kill_group(group)


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
