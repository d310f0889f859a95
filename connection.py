"""One MRD session over one socket: typed messages out of bytes, bytes out of typed messages, counters."""

import contextlib
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import ismrmrd

import constants
import mrdhelper
from constants import MessageId
from mrdio.codec import (
    UNREADABLE,
    LimitReached,
    Message,
    MrdError,
    ProtocolError,
    SessionEnded,
    StreamBroken,
    encode,
    read_content,
    read_identifier,
)
from mrdio.dependencies import Dependency
from mrdio.limits import Limits, flag_of
from mrdio.socketstream import Observer, SocketStream

logger = logging.getLogger(__name__)

# Few system calls for many readouts, and large appends for a recorder; benchmarks/streaming.py measures both.
RECEIVE_BUFFER = 1 << 20

_CLOSE_SENT = "CLOSE has been sent"

_WITH_DATA = frozenset({MessageId.ISMRMRD_ACQUISITION, MessageId.ISMRMRD_IMAGE, MessageId.ISMRMRD_WAVEFORM})

# How long a session that is being ended may take to say so [s].
INTERRUPT_WAIT = 1.0


class Keeper(Protocol):
    """Observer of the readouts, waveforms and images of a session, called with each as it is received."""

    def add(self, item: Any) -> None:
        """Receive one of them."""


class Watcher(Protocol):
    """Observer of a session for the live view; takes what it needs at once, and never waits."""

    def received(self, message: Message) -> None:
        """Take note of a message that has been received."""

    def sent(self, identifier: MessageId, buffers: list[memoryview]) -> None:
        """Take note of a message that has been sent, as its bytes, identifier first."""


def _no_debugging(name: str, array: Any) -> None:
    """Do nothing: ``connection.debug`` when no arrays were asked for."""


def _no_dependency(kind: str) -> Dependency | None:
    """Find nothing: ``connection.dependency`` without a header that names a measurement."""
    return None


class Connection:
    """Messages of one session, both ways.

    Iterating yields what the peer sends (`ismrmrd.Acquisition`, `ismrmrd.Image`, `ismrmrd.Waveform`, or text) and ends
    at CLOSE; a stream that breaks off raises. Receiving and sending have separate locks: one thread may send images
    while another waits for data.

    Parameters
    ----------
    sock : socket.socket
        A connected stream socket; its timeout limits each wait, for data and for sending.
    limits : Limits, optional
        How large messages may be, how long they may take, and how many images may be sent.

    Attributes
    ----------
    recvAcqs, recvImages, recvWaveforms, sentAcqs, sentImages, sentWaveforms : int
        Numbers of messages received and sent.
    recvBytes, sentBytes : int
        The same in bytes.
    keeper : Keeper or None
        Is called with every readout, waveform and image received, until the first image has been sent.
    watcher : Watcher or None
        Is called with every message received and sent.
    set_up : float
        How long the module's ``prepare`` took [s]: what the peer sent meanwhile has waited.
    is_exhausted : bool
        Whether the peer's messages have ended, by CLOSE or by a break.
    savedata : bool
        Whether what comes in is being kept, in `savedataFolder`; `mrdFilePath` is the file, else empty.
    debug : callable
        ``connection.debug("name", array)`` writes an array for the developer of a module, if the server was started
        with ``--debug-folder``; else it does nothing.
    dependency : callable
        ``connection.dependency("Noise")`` returns the measurement of a kind (`mrdio.dependencies.Dependency`) that the
        header says the scan depends on; None where the header names none. None as well where it has not been kept: the
        client is told why, and all images that follow are marked.
    missing_dependencies : dict
        The reason for each kind that was not there; images are marked with it.
    """

    def __init__(self, sock: socket.socket, limits: Limits | None = None) -> None:
        self._socket = sock
        self._limits = limits or Limits()
        self._raw = SocketStream(sock, self._limits)
        self._stream = io.BufferedReader(self._raw, RECEIVE_BUFFER)
        self._receive_lock = threading.RLock()
        self._send_lock = threading.Lock()
        self._next_identifier: int | None = None
        self._unreadable = False
        self.set_up = 0.0
        self._warned = False
        self._ended_by: str | None = None
        self.is_exhausted = False
        self.savedata = False
        self.savedataFolder = ""
        self.mrdFilePath = ""
        self.debug: Callable[[str, Any], None] = _no_debugging
        self.dependency: Callable[[str], Dependency | None] = _no_dependency
        self.missing_dependencies: dict[str, str] = {}
        self.recvAcqs = self.recvImages = self.recvWaveforms = 0
        self.sentAcqs = self.sentImages = self.sentWaveforms = 0
        self.keeper: Keeper | None = None
        self.watcher: Watcher | None = None

    def observe(self, observer: Observer | None) -> None:
        """Show every byte that is received from here on to an observer; None: to none."""
        self._raw.observer = observer

    # ---- receiving -------------------------------------------------------------------------------------------------

    def peek_mrd_message_identifier(self) -> int | None:
        """Identifier of the next message without taking it; None when the peer left without a further one.

        Raises
        ------
        StreamBroken
            If the stream ends within the identifier, or nothing comes within the socket's timeout.
        """
        with self._receive_lock:
            if self._next_identifier is None and not self.is_exhausted:
                try:
                    self._next_identifier = read_identifier(self._stream)
                except MrdError as error:
                    raise self._broken(error) from None
            return self._next_identifier

    def limit_receiving(self, seconds: float) -> None:
        """Let receiving end in so many seconds from now, whatever the peer sends until then; infinite lifts it."""
        self._raw.deadline = time.monotonic() + seconds

    def receive(self) -> Message:
        """Take the next message, whatever it is.

        Raises
        ------
        StreamBroken
            If the stream ends before CLOSE or within a message, or nothing comes within the socket's timeout.
        ProtocolError
            If the bytes are no valid message.
        """
        with self._receive_lock:
            if self.is_exhausted:
                raise StreamBroken("the peer's messages have already ended")
            identifier = self.peek_mrd_message_identifier()
            self._next_identifier = None
            if identifier is None:
                raise self._broken(StreamBroken("the stream ends without CLOSE"))
            self._raw.begin_message()
            try:
                message = read_content(identifier, self._stream, self._limits)
            except MrdError as error:
                raise self._broken(error) from None
            finally:
                self._raw.end_message()
            if identifier == MessageId.ISMRMRD_ACQUISITION:
                self.recvAcqs += 1
            elif identifier == MessageId.ISMRMRD_IMAGE:
                self.recvImages += 1
                if UNREADABLE in message.content.meta and not self._warned:
                    self._warned = True
                    logger.warning(
                        "The attributes of image %d are no valid MRD meta XML: their text is kept as '%s'. "
                        "Further ones like this are not logged.", self.recvImages, UNREADABLE,
                    )  # fmt: skip
            elif identifier == MessageId.ISMRMRD_WAVEFORM:
                self.recvWaveforms += 1
            elif identifier == MessageId.CLOSE:
                self.is_exhausted = True
            keeper = self.keeper  # another thread may send an image, and so end the keeping
            if keeper is not None and identifier in _WITH_DATA:
                keeper.add(message.content)
            if self.watcher is not None:
                self.watcher.received(message)
            return message

    def _broken(self, error: MrdError) -> MrdError:
        """Mark the stream as ended by an error; returns the error with what had been received before."""
        self.is_exhausted = True
        self._unreadable = isinstance(error, ProtocolError)
        received = f"{self.recvAcqs} readouts, {self.recvWaveforms} waveforms and {self.recvImages} images"
        return type(error)(f"{error} (after {received})")

    def next(self) -> Any:
        """Content of the next message; None when the peer has closed (iterate instead, where you can)."""
        with self._receive_lock:
            return None if self.is_exhausted else self.receive().content

    def __next__(self) -> Any:
        with self._receive_lock:
            while not self.is_exhausted:
                message = self.receive()
                if message.identifier != MessageId.CLOSE:
                    return message.content
        raise StopIteration

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._receive_lock:  # another thread may take the last message first
                if self.is_exhausted:
                    return
                message = self.receive()
            if message.identifier != MessageId.CLOSE:
                yield message.content

    # ---- sending ---------------------------------------------------------------------------------------------------

    def _send(self, identifier: MessageId, content: Any = None) -> None:
        buffers = [memoryview(part).cast("B") for part in encode(identifier, content) if len(part)]
        with self._send_lock:
            if self._ended_by:
                raise SessionEnded(f"{identifier.name} cannot be sent: {self._ended_by}")
            try:
                self._raw.send([*buffers])
            except OSError as error:
                # What follows a message that was cut short could not be told from its missing bytes.
                self._ended_by = f"the connection broke while sending: {error}"
                raise StreamBroken(self._ended_by) from error
            if identifier == MessageId.CLOSE:
                self._ended_by = _CLOSE_SENT
            if self.watcher is not None:
                self.watcher.sent(identifier, buffers)

    def send_config_file(self, name: str) -> None:
        """Send the name of the module to run."""
        self._send(MessageId.CONFIG_FILE, name)

    def send_config_text(self, text: str) -> None:
        """Send a config as text."""
        self._send(MessageId.CONFIG_TEXT, text)

    def send_metadata(self, xml: str) -> None:
        """Send the MRD header."""
        self._send(MessageId.METADATA_XML_TEXT, xml)

    def send_text(self, text: str) -> None:
        """Send a text."""
        self._send(MessageId.TEXT, text)

    def send_json_parameters(self, parameters: dict[str, Any] | str) -> None:
        """Send JSON parameters; they belong directly after the header."""
        self.send_text(parameters if isinstance(parameters, str) else json.dumps(parameters))

    def send_logging(self, level: str, text: str) -> None:
        """Log a line here and send it to the peer.

        Parameters
        ----------
        level : str
            DEBUG, INFO, WARNING, ERROR or CRITICAL, as ``constants.MRD_LOGGING_*`` have them.
        text : str
            The line.
        """
        logger.log(logging.getLevelNamesMapping().get(level.strip(), logging.INFO), "%s", text)
        self.send_text(f"{level.strip():<{len(constants.MRD_LOGGING_INFO)}} {text}")

    def info(self, text: str) -> None:
        """Log a line here and send it to the peer."""
        self.send_logging(constants.MRD_LOGGING_INFO, text)

    def warn(self, text: str) -> None:
        """Log a warning here and send it to the peer."""
        self.send_logging(constants.MRD_LOGGING_WARNING, text)

    def send_acquisition(self, acquisition: ismrmrd.Acquisition) -> None:
        """Send a readout."""
        self._send(MessageId.ISMRMRD_ACQUISITION, acquisition)
        self.sentAcqs += 1

    def send_waveform(self, waveform: ismrmrd.Waveform) -> None:
        """Send a waveform."""
        self._send(MessageId.ISMRMRD_WAVEFORM, waveform)
        self.sentWaveforms += 1

    def send_image(self, images: ismrmrd.Image | Iterable[ismrmrd.Image | None] | None) -> None:
        """Send an image, or several; None among them is skipped.

        Raises
        ------
        LimitReached
            If the session has sent as many images as it may.
        """
        if images is None:
            return
        for image in [images] if isinstance(images, ismrmrd.Image) else images:
            if image is not None:
                if self.sentImages >= self._limits.images:
                    raise LimitReached(
                        f"the session has sent {self.sentImages} images, its limit ({flag_of('images')})"
                    )
                if self.missing_dependencies:
                    _mark(image, self.missing_dependencies)
                self._send(MessageId.ISMRMRD_IMAGE, image)
                self.sentImages += 1
                self.keeper = None

    def send_close(self) -> None:
        """Tell the peer that nothing more comes; any further call does nothing."""
        with self._send_lock:
            if self._ended_by:
                return
        try:
            self._send(MessageId.CLOSE)
        except SessionEnded:
            return  # another thread was faster

    @property
    def recvBytes(self) -> int:
        """Bytes that have been received."""
        return self._raw.received

    @property
    def sentBytes(self) -> int:
        """Bytes that have been sent."""
        return self._raw.sent

    @property
    def has_ended(self) -> bool:
        """True if nothing more can be sent: CLOSE has been, or the peer could not be reached."""
        return self._ended_by is not None

    @property
    def can_send(self) -> bool:
        """True if the peer could be reached up to the last thing that was sent to it."""
        return self._ended_by in (None, _CLOSE_SENT)

    # ---- ending ----------------------------------------------------------------------------------------------------

    def drain(self, wait: float, total: float, last: bool = True) -> None:
        """Take what the peer still sends, until its CLOSE or its end; only observer and `keeper` get it.

        Parameters
        ----------
        wait : float
            Longest pause of the peer [s].
        total : float
            Longest time in all [s]; infinite when the data are being kept.
        last : bool
            Whether nothing will be sent any more. A socket closed with unread data resets the connection, and the peer
            may then lose what was sent to it last: so also what is no message is taken.
        """
        # A module's thread may still wait in a read; when nothing comes for it, nothing is left unread either.
        if not self._receive_lock.acquire(timeout=min(wait, threading.TIMEOUT_MAX)):
            return
        self.limit_receiving(total)
        self._raw.timeout = wait
        try:
            if last:
                self._socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ProtocolError):
                while not self.is_exhausted:
                    self.receive()
            # After bytes that are no message, the start of the next one is not known.
            buffer = bytearray(RECEIVE_BUFFER)
            while last and self._unreadable and self._raw.readinto(buffer):
                pass
        except (MrdError, OSError) as error:
            logger.debug("The peer's remaining data ended early: %s", error)
            self._unreadable = True  # it may go on, in the middle of a message
        finally:
            self._receive_lock.release()

    def interrupt(self, final_text: str) -> None:
        """End both directions from another thread, with a text and CLOSE to the peer if they can be sent at once.

        A thread that waits in this connection gets `StreamBroken`.
        """
        self._raw.send_timeout = INTERRUPT_WAIT
        if self._send_lock.acquire(timeout=INTERRUPT_WAIT):  # else a module is stuck in sending to a peer that is stuck
            self._send_lock.release()
            try:
                self.send_text(final_text)
                self.send_close()
            except MrdError as error:
                logger.debug("The peer could not be told: %s", error)
        self.abort()

    def abort(self) -> None:
        """End both directions at once; a thread that waits in this connection gets `StreamBroken`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            logger.debug("The connection was closed already.")

    def close(self) -> None:
        """Release the socket."""
        self.abort()  # wakes a module's thread that still waits here
        self.is_exhausted = True
        self._socket.close()


def _mark(image: ismrmrd.Image, missing: dict[str, str]) -> None:
    """Note in the attributes of an image, once, which measurements were missing when it was made."""
    for kind, reason in missing.items():
        if kind not in mrdhelper.meta_values(image.meta, "MissingDependency"):
            mrdhelper.append_to_meta(image.meta, "MissingDependency", kind)
            mrdhelper.append_to_meta(image.meta, _comment_key(image.meta), f"made without {kind}: {reason}")


def _comment_key(meta: ismrmrd.Meta) -> str:
    """Attribute that holds an image's comments: the one that is there, as only one of the two becomes DICOM's."""
    return "ImageComment" if meta.get("ImageComment") and not meta.get("ImageComments") else "ImageComments"
