"""One session from its first byte to its last: config, header, module, and an ending that always comes."""

import contextlib
import logging
import math
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connection import Connection
from constants import MRD_LOGGING_ERROR, MRD_LOGGING_WARNING, NO_SUCH_MODULE, MessageId
from mrdio.codec import Message, MrdError, StreamBroken
from mrdio.dependencies import CONFIGS, DependencyLookup, DependencyStore
from mrdio.jsonparameters import is_json, parse_parameters
from mrdio.limits import MIB, Limits
from mrdio.logs import current_session, enter_session, log_summary
from mrdio.mrdheader import parse_header
from mrdio.recordings import DEFAULT_FOLDER, HoldBack, Recorder
from serving import fallback
from serving.debugarrays import DebugArrays
from serving.module_loader import ModuleLoader, Process, known_names
from serving.summary import LONGEST_WORD, Outcome, SessionSummary

if TYPE_CHECKING:  # the view is imported when it is asked for
    from serving.view.feed import Feed

logger = logging.getLogger(__name__)

SAVE_ONLY = "savedataonly"
DEPENDENCIES = "dependencies"  # name of the folder

# A config may be a long text for the module; a name of one is looked for in its beginning [characters].
LONGEST_NAME = 1000

# After CLOSE has been sent, the peer's remaining data are still taken, so that the connection is not reset under the
# last message on its way to the peer: with pauses of this length, and for this long in all [s].
DRAIN_WAIT = 10.0
DRAIN_TOTAL = 120.0


@dataclass(frozen=True)
class SessionOptions:
    """Settings of every session, from the server's command line.

    Attributes
    ----------
    default_config : str
        Module for configs that name none.
    module_folders : tuple of Path
        Where modules may lie.
    save_data : bool
        Whether every session is recorded.
    save_folder : Path
        Where recordings go.
    convert : bool
        Whether a recording becomes an MRD file when its session ends; else it stays the stream that it is.
    limits : Limits
        Limits of a session.
    dependency_folder : Path or None
        Where measurements are kept that later scans depend on; None: `DEPENDENCIES` beside `save_folder`.
    debug_folder : Path or None
        Where modules' intermediate arrays are written, if anywhere.
    fallback_memory : int
        Memory for messages that are kept for fallback images, in case the module fails [bytes]; 0: no fallback images.
    """

    default_config: str = "invertcontrast"
    module_folders: tuple[Path, ...] = ()
    save_data: bool = False
    save_folder: Path = Path(DEFAULT_FOLDER)
    convert: bool = True
    limits: Limits = field(default_factory=Limits)
    dependency_folder: Path | None = None
    debug_folder: Path | None = None
    fallback_memory: int = 128 * MIB

    @property
    def dependencies(self) -> DependencyStore:
        """Measurements that scans depend on."""
        beside = self.save_folder.absolute().parent / DEPENDENCIES
        return DependencyStore(self.dependency_folder or beside, self.limits)


class ConfigurationRefused(MrdError, ValueError):
    """The client asked for something that cannot be run; the message says what would be right."""


def discard(connection: Iterable[Any], config: Any, metadata: Any) -> None:
    """Receive everything and send nothing: the built-in modules ``null`` and ``savedataonly``."""
    for _ in connection:
        pass


BUILT_IN: dict[str, Process] = {"null": discard, SAVE_ONLY: discard}


class Session:
    """Serves one connected peer.

    Parameters
    ----------
    sock : socket.socket
        The connected socket; the session closes it.
    name : str
        Name of the session in log lines and recordings.
    options : SessionOptions
        Settings from the command line.
    loader : ModuleLoader
        Where modules come from.
    peer : str
        Who is connected, for the log.
    report : callable
        Called with the summary when the module begins and, as the last thing, at the end.
    convert : callable, optional
        Has a recording converted when it is complete, see `Recorder`; None: it stays a stream, for others to convert.
    feed : Feed, optional
        Takes what the live view shows.

    Attributes
    ----------
    summary : SessionSummary
        Outcome of the session so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        options: SessionOptions,
        loader: ModuleLoader,
        peer: str = "-",
        report: Callable[[SessionSummary], object] = lambda summary: None,
        convert: Callable[[Path], object] | None = None,
        feed: "Feed | None" = None,
    ) -> None:
        sock.settimeout(options.limits.timeout)
        self.name = name
        self._options = options
        self._loader = loader
        self._recorder: Recorder | None = None
        self._connection = Connection(sock, options.limits)
        self._connection.savedataFolder = str(options.save_folder)
        if options.debug_folder is not None:
            self._connection.debug = DebugArrays(options.debug_folder, name).save
        self._module = "no module"
        self._process: Process | None = None
        self._metadata: Any = None
        self._report = report
        self._convert = convert
        self._ended = threading.Event()
        self._start = time.monotonic()
        self.summary = SessionSummary(name, peer)
        self._feed = feed
        if feed is not None:
            feed.attach(self.summary, self._connection)
            self._connection.watcher = feed

    def run(self) -> None:
        """Serve the peer. All errors are reported to it and logged; the session ends with CLOSE and a closed socket."""
        connection = self._connection
        outside = current_session()
        enter_session(self.name)
        try:
            try:
                self._serve()
            except BaseException as error:  # noqa: BLE001 -- whatever a module raises goes to its client
                self._fail(error)
            self._fall_back()  # out here, since the exception would keep the module's arrays
        finally:
            with contextlib.ExitStack() as ending:  # in reverse order, and all of it
                ending.callback(enter_session, outside)
                ending.callback(self._end)
                if self._recorder is not None:
                    ending.callback(self._recorder.finish)
                ending.callback(connection.close)
                self._close(connection)
                self.summary.seconds = time.monotonic() - self._start

    def interrupt(self, reason: str) -> None:
        """End the session from another thread: tell the peer why, and end all waits for it."""
        if not self._connection.has_ended:
            self.summary.end(Outcome.INTERRUPTED, reason)
            self.summary.errors += 1
        self._connection.interrupt(f"{MRD_LOGGING_ERROR} {reason}")

    def give_up(self) -> None:
        """Report a session from another thread that does not end although it was interrupted."""
        self._end()

    def _fail(self, error: BaseException) -> None:
        """Log the error that ended the session early, and tell the client."""
        if isinstance(error, MrdError):
            gone = isinstance(error, StreamBroken) or not self._connection.can_send
            logger.log(logging.WARNING if gone else logging.ERROR, "%s", error)
            refused = isinstance(error, ConfigurationRefused)
            outcome = Outcome.CLIENT_GONE if gone else Outcome.REFUSED if refused else Outcome.FAILED
            reason, text = str(error), str(error)
        else:
            # Python's own formatting copes with exceptions that cannot even say what they are.
            said = "".join(traceback.format_exception_only(error)).strip()
            report = "".join(traceback.format_exception(error))
            outcome, reason = Outcome.FAILED, f"{self._module} failed: {said}"
            # As text: a log handler that keeps records would keep the module's arrays with the exception.
            logger.error("%s", reason, extra={"traceback": report})
            text = f"{reason}\n{report}"
        if self.summary.outcome is Outcome.RUNNING:  # and not interrupted, which makes modules fail
            self.summary.end(outcome, reason)
        self._tell(MRD_LOGGING_ERROR, text)

    def _fall_back(self) -> None:
        """Send fallback images, if a failed module leaves the client without any although data came in."""
        connection, summary = self._connection, self.summary
        kept = connection.keeper
        failed = summary.outcome in (Outcome.FAILED, Outcome.CLIENT_GONE)
        if failed and isinstance(kept, fallback.Kept) and not connection.has_ended:
            limits = self._options.limits
            connection.drain(min(limits.fallback_wait, limits.timeout), limits.timeout, last=False)
            own = _part_of_module(self._process, "fallback")
            summary.fallback_images = fallback.send(connection, kept, self._metadata, summary.reason, own)
        connection.keeper = None

    def _end(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        summary = self.summary
        summary.count(self._connection)
        summary.module = self._module
        summary.seconds = summary.seconds or time.monotonic() - self._start
        if summary.outcome is Outcome.RUNNING:
            summary.end(Outcome.COMPLETED)
        log_summary(summary)
        self._report(summary)

    # ---- the opening -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        connection = self._connection
        held = HoldBack()
        connection.observe(held)
        if self._options.save_data:
            self._record(held)
        connection.limit_receiving(self._options.limits.opening)
        config = self._receive_config()
        if config is None:
            return
        metadata = self._receive_header()
        if metadata is None:
            return
        connection.limit_receiving(math.inf)
        self._metadata = metadata
        connection.dependency = DependencyLookup(self._options.dependencies, metadata, self._tell_missing)
        if self._options.fallback_memory:
            connection.keeper = fallback.Kept(self._options.fallback_memory)
        begun = time.monotonic()
        self._prepare(config.content, metadata)
        connection.set_up = time.monotonic() - begun
        parameters = self._receive_parameters(config)
        name = _requested_module(config.content, parameters)
        self.summary.config = name[:LONGEST_WORD]
        process = self._process = self._choose(name)
        if process in (discard, self._keep_dependency):
            connection.keeper = None  # no images are expected
        if self._recorder is None:
            if self._module == SAVE_ONLY:
                self._record(held)
            else:
                connection.observe(None)
        logger.info("config %.100r runs %s", name, self._module)
        self.summary.module = self._module
        if self._feed is not None:
            self._feed.open(metadata, parameters)
        self._report(self.summary)
        process(connection, config.content if parameters is None else parameters, metadata)

    def _receive_config(self) -> Message | None:
        """First message of the session; None when the peer sent none."""
        if self._connection.peek_mrd_message_identifier() is None:
            self._module = "a connection without data"
            return None
        message = self._connection.receive()
        if message.identifier == MessageId.CLOSE:
            self._module = "a session without config"
            return None
        if message.identifier not in (MessageId.CONFIG_FILE, MessageId.CONFIG_TEXT):
            raise ConfigurationRefused(f"a session opens with CONFIG_FILE or CONFIG_TEXT, not {message.identifier!r}")
        return message

    def _receive_header(self) -> Any | None:
        """Header after the config; None for a peer that asks for nothing more (a dependency query)."""
        message = self._connection.receive()
        if message.identifier == MessageId.CLOSE:
            self._module = "a dependency query"
            return None
        if message.identifier != MessageId.METADATA_XML_TEXT:
            raise ConfigurationRefused(f"METADATA_XML_TEXT comes after the config, not {message.identifier.name}")
        return parse_header(message.content, self._options.limits.header)

    def _prepare(self, config: str, metadata: Any) -> None:
        """Let the module that the config names prepare before the first data come, if it has a function for that.

        A module may define ``prepare(config, metadata)`` for this. Between header and first readout a scanner pauses;
        compiling and reading tables can use that time. JSON parameters may still name another module. An error here
        occurs again in ``process``, which reports it.
        """
        try:
            prepare = _part_of_module(self._find(_name_in(config)), "prepare")
            if prepare is not None:
                prepare(config, metadata)
        except Exception as error:  # noqa: BLE001 -- the module's own code, which process will run into again
            logger.debug("preparing %s failed: %s", self._module, error)

    def _receive_parameters(self, config: Message) -> dict[str, Any] | None:
        """JSON parameters: a TEXT directly after the header, or a config that was sent as JSON text."""
        if self._connection.peek_mrd_message_identifier() == MessageId.TEXT:
            text = self._connection.receive().content
            if not is_json(text):
                logger.info("text from the client: %.1000r", text[:1000])
                return None
        elif config.identifier == MessageId.CONFIG_TEXT and is_json(config.content):
            text = config.content
        else:
            return None
        try:
            return parse_parameters(text, self._options.limits)
        except ValueError as error:
            raise ConfigurationRefused(f"the JSON parameters cannot be read: {error}") from error

    def _choose(self, name: str) -> Process:
        """``process`` that a config asks for, or that of the default config with a warning to the client."""
        process = self._find(name)
        if process is None:
            default = self._options.default_config
            known = known_names(name, sorted({*self._loader.names(), *BUILT_IN, CONFIGS[0]}))
            self._tell(
                MRD_LOGGING_WARNING,
                f"{NO_SUCH_MODULE} {name[:100]!r} (a file of that name with .py, which defines process, in "
                f"{', '.join(map(str, self._loader.folders))}): the default config '{default}' runs instead; {known}",
            )
            process = self._find(default)
            if process is None:
                raise ConfigurationRefused(f"there is no module for the default config '{default}' either")
        return process

    def _find(self, name: str) -> Process | None:
        self._module = repr(name[:100]).strip("'")  # for log lines, which a name must not be able to imitate
        if name in CONFIGS:
            return self._keep_dependency
        return BUILT_IN.get(name) or self._loader.load(name)

    def _keep_dependency(self, connection: Connection, config: Any, metadata: Any) -> None:
        """Keep the data for scans that depend on them, and send no image: the built-in module ``savedep``."""
        measurement, count = self._options.dependencies.keep(connection, metadata)
        if count:
            connection.info(f"{count} readouts, waveforms and images are kept as the measurement {measurement}")
        else:
            connection.warn(f"nothing came of the measurement {measurement}: nothing is kept")

    # ---- recording and ending --------------------------------------------------------------------------------------

    def _record(self, held: HoldBack) -> None:
        connection, options = self._connection, self._options
        try:
            self._recorder = Recorder(
                options.save_folder,
                self.name,
                held.held,
                options.limits,
                on_failure=lambda text: self._tell(MRD_LOGGING_ERROR, text),
                convert=self._convert,
            )
        except OSError as error:
            text = f"what comes in cannot be saved in {options.save_folder}: {error}"
            if self._module == SAVE_ONLY:
                raise ConfigurationRefused(text) from error
            logger.error("%s", text)
            self._tell(MRD_LOGGING_ERROR, text)
            return
        connection.observe(self._recorder)
        connection.savedata = True
        connection.mrdFilePath = str(self._recorder.stream_path)

    def _tell_missing(self, kind: str, reason: str) -> None:
        """Tell the client, and mark the images, when a measurement that the scan depends on is not there."""
        self._connection.missing_dependencies[kind] = reason
        self._connection.warn(f"the scan depends on a measurement ({kind}) that is missing: {reason}")

    def _tell(self, level: str, text: str) -> None:
        """Send a log line to the client if it can still be reached."""
        self.summary.errors += level == MRD_LOGGING_ERROR
        try:
            self._connection.send_text(f"{level} {text}")
        except MrdError as error:
            logger.debug("the client could not be told: %s", error)

    def _close(self, connection: Connection) -> None:
        if self._recorder is not None:
            self._recorder.check()  # while the client can still be told
        try:
            connection.send_close()
        except MrdError as error:
            logger.debug("CLOSE could not be sent: %s", error)
        if self._recorder is not None:  # the data are being kept: take all of them
            connection.drain(self._options.limits.timeout, math.inf)
        elif connection.can_send:
            connection.drain(DRAIN_WAIT, DRAIN_TOTAL)


def _part_of_module(process: Process | None, name: str) -> Any:
    """Return another function that a module defines beside its ``process``; None when it does not."""
    return getattr(sys.modules.get(getattr(process, "__module__", "")), name, None)


def _requested_module(config: str, parameters: dict[str, Any] | None) -> str:
    """Name of the module: a non-empty ``customconfig`` of the JSON parameters, else their ``config``, else the config.

    Raises
    ------
    ConfigurationRefused
        If the parameters are not of the form ``{"parameters": {...}}``, or the names in them are no text.
    """
    inner = {} if parameters is None else parameters.get("parameters", {})
    if not isinstance(inner, dict):
        raise ConfigurationRefused(f'"parameters" of the JSON parameters is to be an object, not {inner!r:.100}')
    for key in ("customconfig", "config"):
        name = inner.get(key)
        if name is not None and not isinstance(name, str):
            raise ConfigurationRefused(f'"{key}" of the JSON parameters is to name a module, not {name!r:.100}')
        if name:
            return _name_in(name)
    return _name_in(config)


def _name_in(config: str) -> str:
    return config[:LONGEST_NAME].strip()
