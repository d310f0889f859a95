"""Listens, and gives each connection a thread, or a process, of its own."""

import contextlib
import logging
import multiprocessing
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from connection import Connection
from constants import MRD_LOGGING_ERROR
from module_loader import ModuleLoader
from recorder import STREAM_SUFFIX, Conversion
from session import BUILT_IN, Session, SessionOptions

logger = logging.getLogger(__name__)

# How long a session may take to end after it has been broken off [s].
BREAK_OFF_WAIT = 3.0

# How often ended sessions are looked after while no connection comes [s].
HOUSEKEEPING = 5.0


@dataclass(frozen=True)
class ServerOptions:
    """What the command line settles for the server.

    Attributes
    ----------
    host, port : str, int
        Where to listen; port 0 takes any free port.
    processes : bool
        Whether each connection gets a process instead of a thread.
    max_sessions : int
        How many connections are served at once; further ones are refused with an error to the client.
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
    max_sessions: int = 64
    grace: float = 30.0
    session: SessionOptions = field(default_factory=SessionOptions)
    setup_process: Callable[[], None] | None = None


class _Worker(Protocol):
    """Runs one session: a thread or a process."""

    def is_alive(self) -> bool: ...

    def join(self, timeout: float) -> None: ...

    def break_off(self, reason: str) -> None: ...

    def report(self) -> None: ...


class _ThreadWorker(threading.Thread):
    def __init__(self, session: Session) -> None:
        super().__init__(target=session.run, name=session.name, daemon=True)
        self.break_off = session.interrupt

    def report(self) -> None:
        """Say nothing: a session in a thread has always said how it ended."""


def _run_in_process(sock: socket.socket, name: str, options: ServerOptions) -> None:
    """Serve one session as the whole work of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the server decides when to end
    if options.setup_process is not None:
        options.setup_process()
    session = Session(sock, name, options.session, ModuleLoader(options.session.module_folders))
    signal.signal(signal.SIGTERM, lambda *_: session.interrupt("the server is being stopped"))
    session.run()


class _ProcessWorker:
    def __init__(self, sock: socket.socket, name: str, options: ServerOptions) -> None:
        self._process = _process_context().Process(target=_run_in_process, args=(sock, name, options), name=name)

    def start(self) -> None:
        self._process.start()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def join(self, timeout: float) -> None:
        self._process.join(timeout)

    def break_off(self, reason: str) -> None:
        logger.info("Ending %s: %s", self._process.name, reason)
        self._process.terminate()

    def report(self) -> None:
        """Log a process that did not end by itself (a crash of native code, say), and release it."""
        if self._process.exitcode:
            logger.error("%s: its process ended with exit code %d", self._process.name, self._process.exitcode)
        self._process.close()

    def kill(self) -> None:
        self._process.kill()


def _process_context() -> multiprocessing.context.BaseContext:
    """Processes branch off a small helper that has the imports done and no threads; Windows can only start afresh."""
    return multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


class Server:
    """MRD server.

    Parameters
    ----------
    options : ServerOptions
        What the command line settled.

    Raises
    ------
    ValueError
        If there is no module for the default config.
    OSError
        If the address cannot be listened on, or incoming data are to be saved in a folder that cannot be made.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._loader = ModuleLoader(options.session.module_folders)
        default = options.session.default_config
        if default not in BUILT_IN and self._loader.find(default) is None:
            folders = ", ".join(map(str, self._loader.folders))
            raise ValueError(f"there is no module for the default config '{default}' in {folders}")
        if options.session.save_data:
            options.session.save_folder.mkdir(parents=True, exist_ok=True)
        self._stopped = threading.Event()
        self._workers: list[_Worker] = []
        self._session_count = 0
        self._listener = _listen(options.host, options.port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)

    def serve(self) -> None:
        """Accept connections until `stop` is called, then let the running sessions end within the grace time."""
        if self._options.processes:
            _warm_up_processes()
        logger.info("Listening on %s:%d", *self.address)
        leftovers = _finish_leftovers(self._options.session)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._wake_receiver, selectors.EVENT_READ)
                while not self._stopped.is_set():
                    ready = selector.select(HOUSEKEEPING)
                    self._forget_ended()
                    if ready and not self._stopped.is_set():
                        self._accept()
        finally:
            self._stopped.set()
            self._listener.close()
            if leftovers is not None:
                leftovers.stop()
            self._end_sessions()
            self._wake_receiver.close()
            self._wake_sender.close()

    def stop(self) -> None:
        """Stop accepting; may be called from any thread and from a signal handler."""
        self._stopped.set()
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return  # it has been woken already

    def kill_sessions(self) -> None:
        """End the processes of running sessions at once; threads end with the server's own process."""
        for worker in self._workers:
            if isinstance(worker, _ProcessWorker) and worker.is_alive():
                worker.kill()

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except OSError as error:  # the peer is gone again, or the process has no file descriptors left
            logger.error("A connection could not be accepted: %s", error)
            self._stopped.wait(0.1)
            return
        self._session_count += 1
        name = f"session-{self._session_count}"
        logger.info("%s: connected from %s:%d", name, *peer[:2])
        if len(self._workers) >= self._options.max_sessions:
            logger.error("%s: refused, %d sessions are running", name, len(self._workers))
            _refuse(sock, f"the server already serves {len(self._workers)} sessions, its limit: try again later")
            return
        try:
            if self._options.processes:
                worker = _ProcessWorker(sock, name, self._options)
            else:
                worker = _ThreadWorker(Session(sock, name, self._options.session, self._loader))
            worker.start()
        except (OSError, RuntimeError) as error:  # no memory or no threads left
            logger.error("%s: cannot be served: %s", name, error)
            _refuse(sock, f"the server cannot serve a further session: {error}")
            return
        self._workers.append(worker)
        if self._options.processes:
            sock.close()  # the process has its own copy

    def _forget_ended(self) -> None:
        running = [worker for worker in self._workers if worker.is_alive()]
        for worker in self._workers:
            if worker not in running:
                worker.report()
        self._workers = running

    def _end_sessions(self) -> None:
        running = [worker for worker in self._workers if worker.is_alive()]
        if running:
            logger.info("Stopping: %d running sessions have %g s to end", len(running), self._options.grace)
        _join(running, self._options.grace)
        running = [worker for worker in running if worker.is_alive()]
        for worker in running:
            worker.break_off("the server is being stopped")
        _join(running, BREAK_OFF_WAIT)
        for worker in running:
            if worker.is_alive():
                logger.error("A session does not end; it is given up")
        self.kill_sessions()


def _join(workers: list[_Worker], wait: float) -> None:
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
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: does another one listen there?", f"{host}:{port}") from error
    return listener


def _refuse(sock: socket.socket, reason: str) -> None:
    sock.settimeout(1.0)
    connection = Connection(sock)
    try:
        connection.send_text(f"{MRD_LOGGING_ERROR} {reason}")
        connection.send_close()
        connection.drain(0.2, 0.2)
    except OSError as error:
        logger.debug("The refused peer could not be told: %s", error)
    connection.close()


def _finish_leftovers(options: SessionOptions) -> Conversion | None:
    """Begin to convert the recordings that an earlier run left, if there are any."""
    if not any(options.save_folder.glob(f"*{STREAM_SUFFIX}")):
        return None
    conversion = Conversion(options.save_folder, options.limits)
    threading.Thread(target=conversion.wait, name="leftovers", daemon=True).start()
    return conversion


def _warm_up_processes() -> None:
    """Start the helper that processes branch off, so that the first connection does not wait for it."""
    context = _process_context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["session"])
        from multiprocessing import forkserver

        # The helper imports from the folder that it starts in first: it must be this one.
        with contextlib.chdir(Path(__file__).resolve().parent):
            forkserver.ensure_running()
