"""Figures of a running server for Prometheus, through its official client library; served to this machine only."""

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from serving.summary import Outcome, SessionSummary

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
DURATIONS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)  # upper ends of the histogram [s]
CONNECTIONS = 8  # Prometheus has one; some more are for browsers
SILENCE = 5.0  # of a connection [s]
PAUSE = 0.1  # until a connection that could not be accepted is tried again [s]
KINDS = ("readouts", "waveforms", "images")


class MetricsError(Exception):
    """Metrics cannot be served; the message says why in one line."""


class _Handler(WSGIRequestHandler):
    """Answers one request, and waits for it no longer than `SILENCE`."""

    timeout = SILENCE

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """Has at most `CONNECTIONS` connections: a new one ends the oldest, since idle ones would use up file handles."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: dict[socket.socket, None] = {}  # the oldest is first
        self._lock = threading.Lock()

    def get_request(self) -> Any:
        """Accept a connection; where that fails, the next try comes a while later, since it waits to be accepted."""
        try:
            return super().get_request()
        except OSError:  # no file handles are left
            time.sleep(PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin with a request."""
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= CONNECTIONS else None
            self._open[request] = None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its peer may be gone
                    oldest.shutdown(socket.SHUT_RDWR)  # which ends its thread, and that closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a request."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a peer did not wait for its answer."""
        logger.debug("A request for metrics ended early: %s", sys.exception())


class Metrics:
    """Counts sessions, and serves the counts at ``http://127.0.0.1:<port>/metrics``.

    A session is counted when it has ended. Each object has a registry of its own.

    Parameters
    ----------
    port : int
        Where to listen; 0 takes any free port.

    Attributes
    ----------
    address : tuple of str and int
        Where it listens.

    Raises
    ------
    MetricsError
        If the package is not installed, or the port is taken.
    """

    def __init__(self, port: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            text = "--metrics needs the package prometheus-client: pip install prometheus-client"
            raise MetricsError(text) from error
        registry = prometheus.CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"mrd_{name}", text, labels, registry=registry)

        self._sessions = counter("sessions", "Sessions that have ended, by outcome", "outcome")
        self._messages = counter("messages", "Messages with data", "direction", "kind")
        self._bytes = counter("bytes", "Bytes over the network", "direction")
        self._fallback = counter("fallback_images", "Images sent in place of those that a module did not make")
        self._errors = counter("errors", "Error messages to clients")
        self._seconds = prometheus.Histogram(
            "mrd_session_seconds", "Duration of sessions", buckets=DURATIONS, registry=registry
        )
        self._running = prometheus.Gauge("mrd_sessions_running", "Sessions that are being served", registry=registry)
        self._waiting = prometheus.Gauge("mrd_sessions_waiting", "Sessions that wait for a place", registry=registry)
        prometheus.Info("mrd_server", "What runs", registry=registry).info(_versions())
        # A figure that is there from the start can be told from one that is not known.
        for outcome in set(Outcome) - {Outcome.RUNNING}:
            self._sessions.labels(outcome)
        for direction in ("received", "sent"):
            self._bytes.labels(direction)
            for kind in KINDS:
                self._messages.labels(direction, kind)
        try:
            self._server = make_server(
                ADDRESS, port, prometheus.make_wsgi_app(registry), server_class=_Server, handler_class=_Handler
            )
        except OSError as error:
            raise MetricsError(
                f"metrics cannot be served at {ADDRESS}:{port}: {error.strerror}: does another one listen there?"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = (ADDRESS, self._server.server_port)
        logger.info("Metrics are served at http://%s:%d/metrics", *self.address)

    def watch(self, running: Callable[[], float] | None = None, waiting: Callable[[], float] | None = None) -> None:
        """Ask these functions, whenever metrics are read, how many sessions are served, and how many wait."""
        for gauge, function in ((self._running, running), (self._waiting, waiting)):
            if function is not None:
                gauge.set_function(function)

    def count(self, summary: SessionSummary) -> None:
        """Count a session that has ended; may be called from any thread."""
        self._sessions.labels(summary.outcome).inc()
        for direction in ("received", "sent"):
            self._bytes.labels(direction).inc(getattr(summary, f"{direction}_bytes"))
            for kind in KINDS:
                self._messages.labels(direction, kind).inc(getattr(summary, f"{direction}_{kind}"))
        self._fallback.inc(summary.fallback_images)
        self._errors.inc(summary.errors)
        self._seconds.observe(summary.seconds)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _versions() -> dict[str, str]:
    """Versions of this project, of Python and of the packages that data pass through."""
    import platform
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        found["version"] = tomllib.loads(project.read_text("utf-8"))["project"]["version"]
    for package in ("ismrmrd", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
