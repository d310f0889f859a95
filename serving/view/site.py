"""Serves the live view: one page, and a WebSocket for each viewer, in a thread of its own.

Nothing can be changed through it: a viewer names the session that it watches, and says which frames it has got. At most
`IN_FLIGHT` frames are on their way to a viewer, so one that is slow gets fewer frames, the newest ones, and costs
neither memory nor the time of anybody else. Frames that it had no time for follow when it has.

Other sites must not read what is shown: the name in Host has to be one of this machine (an attacker's name that leads
here is refused), the Origin of a WebSocket has to be this page, and the page runs only what comes from here.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from serving.summary import SessionSummary
from serving.view import ViewError
from serving.view.feed import PERIOD, Feed, Mailbox, SettingsHandler, read_pipe
from serving.view.frames import waveform_frame
from serving.view.hub import SERIES_IMAGES, Hub, WatchedSession

logger = logging.getLogger(__name__)

VIEWERS = 16
CONNECTIONS = 64  # viewers among them; each holds a file handle
IN_FLIGHT, IN_FLIGHT_BYTES = 4, 8 << 20  # frames on their way to a viewer, and their bytes; one is always allowed
BEHIND = 0.25  # a viewer who is this far behind goes on with the newest image [s]
REQUEST = 1024  # of what a viewer says [bytes]
OPENING = 5.0  # time for the request of a connection [s]
SOCKET = "/live"

_PAGE = Path(__file__).resolve().parent / "page"
_FILES = {
    "/": ("view.html", "text/html; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# The package tells of each request, and of each that is none.
_quiet = logging.getLogger(f"{__name__}.websockets")
_quiet.setLevel(logging.CRITICAL)


class View:
    """The live view of a server.

    Parameters
    ----------
    port : int
        Where to listen; 0 takes any free port.
    host : str
        Address to listen on.
    names : bool
        Whether the patient's name and number are shown.

    Attributes
    ----------
    address : tuple of str and int
        Where it listens.

    Raises
    ------
    ViewError
        If the address cannot be listened on.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", names: bool = False) -> None:
        self.names = names
        self.hub = Hub()
        self._identity = os.urandom(8).hex()  # another one after a restart, when names of sessions begin anew
        self._own_names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._viewers: set[Viewer] = set()
        self._mailboxes: dict[str, Mailbox] = {}
        self._feeds: dict[str, Feed] = {}
        self._settings = SettingsHandler(self._feeds)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        try:
            self._listener = socket.create_server((host, port), family=_family(host), backlog=CONNECTIONS)
        except OSError as error:
            self._loop.close()
            text = f"the view cannot be served at {host}:{port}: {error.strerror}: does another one listen there?"
            raise ViewError(text) from error
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        logging.getLogger().addHandler(self._settings)
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._thread.start()
        logger.info("View: open %s in a browser", self.url)
        if not self._is_local():
            logger.warning(
                "The view shows images to everybody who reaches %s:%d: it asks for no password", *self.address
            )

    @property
    def url(self) -> str:
        """Address for a browser on this machine."""
        host = self.address[0]
        if ipaddress.ip_address(host).is_unspecified:
            host = "localhost"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.address[1]}/"

    def _is_local(self) -> bool:
        return ipaddress.ip_address(self.address[0]).is_loopback

    # ---- called by the server, from any thread ---------------------------------------------------------------------

    def feed(self, session: str) -> Feed:
        """Feed for a session in a thread."""
        feed = self._feeds[session] = Feed(functools.partial(self._call, self._collect, session), self.names)
        self._call(self._mailboxes.__setitem__, session, feed)
        return feed

    def listen(self, session: str, pipe: Pipe) -> None:
        """Take the letters of a session in a process of its own, in a thread that ends when the pipe does."""
        mailbox = Mailbox(functools.partial(self._call, self._collect, session))
        self._call(self._mailboxes.__setitem__, session, mailbox)
        try:
            threading.Thread(target=read_pipe, args=(pipe, mailbox), name=f"view {session}", daemon=True).start()
        except RuntimeError as error:  # no threads left: the session is served all the same
            logger.warning("is not shown: %s", error, extra={"session": session})
            pipe.close()

    def ended(self, summary: SessionSummary) -> None:
        """Note the end of a session."""
        self._feeds.pop(summary.session, None)
        self._call(self._end, summary)

    def close(self) -> None:
        """Stop serving."""
        logging.getLogger().removeHandler(self._settings)
        self._call(self._stopped.set)
        self._thread.join()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    # ---- in the thread of the event loop ---------------------------------------------------------------------------

    async def _listen(self) -> Server:
        return await serve(
            self._show, sock=self._listener, process_request=self._answer, compression=None, max_size=REQUEST,
            max_queue=16, write_limit=1 << 16, open_timeout=OPENING, close_timeout=1.0, server_header=None,
            logger=_quiet, create_connection=Connection,
        )  # fmt: skip

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._work())
        finally:
            self._loop.close()

    async def _work(self) -> None:
        server = await self._listen()
        while not self._stopped.is_set():
            for session in list(self._mailboxes):
                self._collect(session)
            self._wake()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), PERIOD)
        server.close()
        await server.wait_closed()

    def _collect(self, session: str) -> None:
        mailbox = self._mailboxes.get(session)
        letters = mailbox.take() if mailbox is not None else []
        if letters:
            self.hub.take(session, letters)
            for viewer in self._viewers:
                viewer.wake.set()

    def _end(self, summary: SessionSummary) -> None:
        self._collect(summary.session)
        if isinstance(self._mailboxes.get(summary.session), Feed):
            del self._mailboxes[summary.session]
        self.hub.end(summary)
        gone = set(self._mailboxes) - set(self.hub.sessions)
        for session in gone:
            del self._mailboxes[session]

    def _wake(self) -> None:
        if self._viewers:
            status = json.dumps({"type": "sessions", "sessions": list(self.hub.in_words())})
            for viewer in self._viewers:
                viewer.status, viewer.looks_due = status, True
                viewer.wake.set()

    # ---- requests --------------------------------------------------------------------------------------------------

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request; None lets a WebSocket begin."""
        hosts = request.headers.get_all("Host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return _response(HTTPStatus.FORBIDDEN, "This name is not one of the server's: open it by its address.")
        path = request.path.partition("?")[0]
        if path == SOCKET:
            origins = request.headers.get_all("Origin")
            if len(origins) != 1 or origins[0].partition("://")[2].lower() != hosts[0].lower():
                return _response(HTTPStatus.FORBIDDEN, "Only the page of this server may read what it shows.")
            return None
        if path not in _FILES:
            return _response(HTTPStatus.NOT_FOUND, "There is nothing of this name.")
        name, kind = _FILES[path]
        return _response(HTTPStatus.OK, (_PAGE / name).read_bytes(), kind)

    def _is_own(self, host: str) -> bool:
        """Tell whether a Host is this machine's: an address, which no foreign name can pass for, or its own name."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() in self._own_names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    # ---- viewers ---------------------------------------------------------------------------------------------------

    async def _show(self, connection: ServerConnection) -> None:
        if len(self._viewers) >= VIEWERS:
            await connection.close(1013, f"{VIEWERS} viewers watch already, as many as there may be")
            return
        await connection.send(json.dumps({"type": "server", "identity": self._identity, "now": time.time()}))
        viewer = Viewer(connection, self.hub)
        self._viewers.add(viewer)
        self._wake()
        sending = asyncio.create_task(self._send(viewer, connection))
        try:
            async for text in connection:
                viewer.take(text)
        except (ValueError, TypeError, KeyError, RecursionError):
            await connection.close(1008, "this is not what the page says")
        except ConnectionClosed:
            pass
        finally:
            self._viewers.discard(viewer)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self, viewer: "Viewer", connection: ServerConnection) -> None:
        try:
            await viewer.send()
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("A viewer is left")
            await connection.close(1011, "the view has failed: the log of the server says how")


class Connection(ServerConnection):
    """A connection, unless there are too many: then it ends at once."""

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        super().connection_made(transport)
        if len(self.server.handler_tasks) > CONNECTIONS:
            transport.abort()


class Viewer:
    """One open page.

    Parameters
    ----------
    connection
        Its WebSocket.
    hub
        What there is to see.
    """

    def __init__(self, connection: ServerConnection, hub: Hub) -> None:
        self.wake = asyncio.Event()
        self.status = ""  # of all sessions, as JSON
        self.looks_due = False  # whether there may be more to tell than images
        self._connection = connection
        self._hub = hub
        self._session: WatchedSession | None = None
        self._position = 0  # number of the newest image that has been sent
        self._missed: deque[int] = deque(maxlen=SERIES_IMAGES)  # numbers of those before it that were not
        self._in_flight: list[int] = []  # bytes of the frames that have not been acknowledged
        self._seen_messages = 0
        self._seen_packets: dict[int, int] = {}
        self._seen_settings = -1
        self._begins = False  # whether the page is still to be told that it gets another session's images from here on
        self._told = self._told_details = ""

    def take(self, text: str | bytes) -> None:
        """Take what the page says: the session that it watches, or that it has got a frame.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is something else.
        """
        said = json.loads(text)
        if "watch" in said:
            self._session = self._hub.sessions.get(str(said["watch"]))
            earlier = [] if self._session is None else list(self._session.images)[:-1]
            self._missed = deque(earlier, maxlen=SERIES_IMAGES)
            self._position = earlier[-1] if earlier else 0
            self._seen_messages, self._seen_packets, self._seen_settings, self._told_details = 0, {}, -1, ""
            self._begins = True
        else:
            del self._in_flight[: int(said["got"])]
        self.wake.set()

    async def send(self) -> None:
        """Send what is new, as long as the page takes it."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self._begins:
                self._begins = False
                name = None if self._session is None else self._session.summary.session
                await self._connection.send(json.dumps({"type": "watching", "name": name}))
            while not self._begins and (frame := self._next_frame()) is not None:
                self._in_flight.append(len(frame))
                await self._connection.send(frame)
            if self.looks_due:
                self.looks_due = False
                if self.status != self._told:
                    self._told = self.status
                    await self._connection.send(self.status)
                await self._send_details()

    async def _send_details(self) -> None:
        session = self._session
        if session is None:
            return
        details = session.details(self._seen_messages, self._seen_settings)
        self._seen_messages, self._seen_settings = session.message_count, session.settings_count
        text = json.dumps({"type": "details", **details})
        if text != self._told_details:
            self._told_details = text
            await self._connection.send(text)
        for kind, trace in list(session.traces.items()):
            packets, self._seen_packets[kind] = trace.since(self._seen_packets.get(kind, 0)), trace.count
            if packets:
                await self._connection.send(waveform_frame(kind, packets))

    def _next_frame(self) -> bytes | None:
        """Return the next frame in order; a viewer who is behind gets the newest, and what it missed in idle time."""
        session = self._session
        full = len(self._in_flight) >= IN_FLIGHT or sum(self._in_flight) >= IN_FLIGHT_BYTES
        if session is None or (self._in_flight and full) or not session.images:
            return None
        newest = next(reversed(session.images))
        new = []
        for number in reversed(session.images):
            if number <= self._position:
                break
            new.append(number)
        if new:
            number = new[-1]
            if time.time() - session.images[number].time > BEHIND:
                self._missed += reversed(new[1:])
                number = newest
            self._position = number
            return session.images[number].content
        while self._missed and not self._in_flight:
            frame = session.images.get(self._missed.pop())
            if frame is not None:
                return frame.content
        return None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _response(status: HTTPStatus, body: str | bytes, kind: str = "text/plain; charset=utf-8") -> Response:
    content = body.encode() if isinstance(body, str) else body
    length = {"Content-Length": str(len(content)), "Content-Type": kind, "Connection": "close"}
    return Response(status, status.phrase, Headers(_HEADERS | length), content)
