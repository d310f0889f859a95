"""The other side of a session: a scanner that sends a simulated scan to the real server, and keeps what comes back."""

import contextlib
import io
import logging
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ismrmrd
import numpy as np

from checks.scans import Scan
from connection import Connection
from mrdio.codec import MrdError
from mrdio.limits import Limits
from server import Server, ServerOptions
from serving.session import SessionOptions
from serving.summary import SessionSummary

logger = logging.getLogger(__name__)

GRACE = 0.1  # of the server, for what a module has left when the checks are over [s]


@dataclass
class Answer:
    """Answer to a scan.

    Attributes
    ----------
    images, waveforms, texts : list
        As they came.
    closed : bool
        Whether CLOSE came.
    seconds : float
        From the first message to the end [s].
    last_sent : float
        When the last message had been sent, likewise [s].
    image_times : list of float
        When each image came, likewise [s].
    broken : str
        Why there was no CLOSE.
    reason : str
        Why the session failed, as the server logged it; empty when it did not.
    printed : str
        Text that was printed meanwhile.
    changed : list of str
        What of the process is no longer as it was, in words.
    """

    images: list[Any] = field(default_factory=list)
    waveforms: list[Any] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closed: bool = False
    seconds: float = 0.0
    last_sent: float = 0.0
    image_times: list[float] = field(default_factory=list)
    broken: str = ""
    reason: str = ""
    printed: str = ""
    changed: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """Texts about errors."""
        return [text for text in self.texts if text.startswith(("ERROR", "CRITICAL"))]


class Scanner:
    """A server in threads of this process, and a client of it; a context manager.

    Parameters
    ----------
    folders : sequence of Path
        Where modules lie.
    patience : float
        How long a module may take to end after the last message [s].
    """

    def __init__(self, folders: Sequence[Path], patience: float) -> None:
        self.patience = patience
        self._temporary = tempfile.TemporaryDirectory(prefix="doctor.")
        self._sessions = 0  # the server counts them, too
        self._summaries: queue.Queue[SessionSummary] = queue.Queue()
        session = SessionOptions(
            default_config="null",
            module_folders=tuple(folders),
            save_folder=Path(self._temporary.name) / "saved",
            convert=False,
            limits=Limits(timeout=max(patience, 1.0)),
            fallback_memory=0,
        )
        self._server = Server(ServerOptions(port=0, grace=GRACE, session=session), self._summaries.put)
        self._thread = threading.Thread(target=self._server.serve, name="server of the doctor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop()
        self._thread.join()
        self._temporary.cleanup()

    def send(self, module: str, scan: Scan, realtime: bool = False) -> Answer:
        """Send a scan to a module, and take what comes until the session is over or the patience is.

        Parameters
        ----------
        module
            Name of the module.
        scan
            The scan.
        realtime
            Whether its messages leave one TR after the other, else as fast as they go.
        """
        answer = Answer()
        self._sessions += 1
        with _watched(answer), socket.create_connection(self._server.address, timeout=self.patience) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, Limits(send_timeout=self.patience))
            connection.send_config_file(module)
            connection.send_metadata(scan.header_xml)
            begin = time.monotonic()
            receiver = threading.Thread(target=_receive, args=(connection, answer, begin), name="receiver", daemon=True)
            receiver.start()
            try:
                self._send_all(connection, scan, begin if realtime else None)
            except MrdError as error:
                logger.debug("sending ended early: %s", error)
            answer.last_sent = time.monotonic() - begin
            receiver.join(self.patience)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            receiver.join()
            if answer.closed:
                answer.reason = self._reason()
        return answer

    def _send_all(self, connection: Connection, scan: Scan, begin: float | None) -> None:
        number = 0
        for message in scan.messages:
            if isinstance(message, ismrmrd.Image):
                connection.send_image(message)
            elif isinstance(message, ismrmrd.Waveform):
                connection.send_waveform(message)
            else:
                if begin is not None:
                    time.sleep(max(0.0, begin + number * scan.tr - time.monotonic()))
                number += 1
                connection.send_acquisition(message)
        connection.send_close()

    def _reason(self) -> str:
        """Wait for the server's summary of the session that has just been held; earlier ones may come late."""
        try:
            while (summary := self._summaries.get(timeout=self.patience)).session != f"session-{self._sessions}":
                continue
        except queue.Empty:
            return ""
        return summary.reason


def _receive(connection: Connection, answer: Answer, begin: float) -> None:
    try:
        for item in connection:
            if isinstance(item, ismrmrd.Image):
                answer.images.append(item)
                answer.image_times.append(time.monotonic() - begin)
            elif isinstance(item, str):
                answer.texts.append(item)
            elif isinstance(item, ismrmrd.Waveform):
                answer.waveforms.append(item)
        answer.closed = True
    except (MrdError, OSError) as error:
        answer.broken = str(error)
    answer.seconds = time.monotonic() - begin


class _Tee(io.TextIOBase):
    """Standard output that is kept."""

    def __init__(self) -> None:
        self.text = io.StringIO()

    def write(self, text: str) -> int:
        """Keep a text."""
        return self.text.write(text)


@contextlib.contextmanager
def _watched(answer: Answer) -> Iterator[None]:
    """Note what is printed, and what of this process is changed and stays so; the changes are undone."""
    printed, state = _Tee(), _state()
    environment, path, errors = dict(os.environ), list(sys.path), np.geterr()
    with contextlib.redirect_stdout(printed):
        yield
    answer.printed = printed.text.getvalue()
    answer.changed = [name for name, value in _state().items() if value != state[name]]
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    np.seterr(**errors)
    os.chdir(state["the current folder (os.chdir)"])
    logging.disable(state["logging (logging.disable)"])


def _state() -> dict[str, Any]:
    return {
        "environment variables (os.environ)": dict(os.environ),
        "the search path of modules (sys.path)": list(sys.path),
        "the current folder (os.chdir)": str(Path.cwd()),
        "logging (logging.disable)": logging.root.manager.disable,
        "NumPy's error handling (np.seterr)": np.geterr(),
    }
