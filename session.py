"""One session from its first byte to its last: config, header, module, and an ending that always comes."""

import json
import logging
import math
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codec import Limits, Message, MrdError, StreamBroken
from connection import Connection
from constants import MRD_LOGGING_ERROR, MRD_LOGGING_WARNING, MessageId
from debugarrays import DebugArrays
from module_loader import ModuleLoader, Process
from mrdheader import parse_header
from recorder import DEFAULT_FOLDER, HoldBack, Recorder

logger = logging.getLogger(__name__)

SAVE_ONLY = "savedataonly"

# After CLOSE has been sent, the peer's remaining data are still taken, so that the connection is not reset under the
# last message on its way to the peer: with pauses of this length, and for this long in all [s].
DRAIN_WAIT = 10.0
DRAIN_TOTAL = 120.0

# How long a peer may take to send config and header [s]: each one that only keeps its connection open holds a session.
OPENING_LIMIT = 60.0


@dataclass(frozen=True)
class SessionOptions:
    """What the server's command line settles for every session.

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
    limits : Limits
        How large incoming messages may be.
    timeout : float
        Longest pause of a peer, in sending as in receiving [s].
    debug_folder : Path or None
        Where modules' intermediate arrays are written, if anywhere.
    """

    default_config: str = "invertcontrast"
    module_folders: tuple[Path, ...] = ()
    save_data: bool = False
    save_folder: Path = Path(DEFAULT_FOLDER)
    limits: Limits = field(default_factory=Limits)
    timeout: float = 3600.0
    debug_folder: Path | None = None


class ConfigurationRefused(MrdError, ValueError):
    """What the client asked for cannot be run; the message says what would be right."""


def discard(connection: Iterable[Any], config: Any, metadata: Any) -> None:
    """Take everything and make nothing of it: the built-in modules ``null`` and ``savedataonly``."""
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
        What the command line settled.
    loader : ModuleLoader
        Where modules come from.
    """

    def __init__(self, sock: socket.socket, name: str, options: SessionOptions, loader: ModuleLoader) -> None:
        sock.settimeout(options.timeout)
        self.name = name
        self._options = options
        self._loader = loader
        self._recorder: Recorder | None = None
        self._connection = Connection(sock, options.limits)
        self._connection.savedataFolder = str(options.save_folder)
        if options.debug_folder is not None:
            self._connection.debug = DebugArrays(options.debug_folder, name).save
        self._module = "no module"

    def run(self) -> None:
        """Serve the peer. Whatever happens is reported to it and logged, and ends with CLOSE and a closed socket."""
        connection = self._connection
        start = time.monotonic()
        try:
            self._serve()
        except StreamBroken as error:
            logger.warning("%s: %s", self.name, error)
            self._tell(MRD_LOGGING_ERROR, f"{error}")
        except MrdError as error:
            logger.error("%s: %s", self.name, error)
            self._tell(MRD_LOGGING_ERROR, f"{error}")
        except BaseException as error:  # noqa: BLE001 -- whatever a module raises goes to its client
            # Python's own formatting copes with exceptions that cannot even say what they are.
            summary = "".join(traceback.format_exception_only(error)).strip()
            report = "".join(traceback.format_exception(error))
            logger.error("%s: %s failed\n%s", self.name, self._module, report)
            self._tell(MRD_LOGGING_ERROR, f"{self._module} failed: {summary}\n{report}")
        finally:
            try:
                self._close(connection)
            finally:
                connection.close()
                if self._recorder is not None:
                    self._recorder.finish()
        logger.info(
            "%s: %s ended: received %d readouts, %d waveforms, %d images; sent %d images; %.2f s",
            self.name, self._module, connection.recvAcqs, connection.recvWaveforms, connection.recvImages,
            connection.sentImages, time.monotonic() - start,
        )  # fmt: skip

    def interrupt(self, reason: str) -> None:
        """End the session from another thread: tell the peer why, and break off what waits for it."""
        self._connection.interrupt(f"{MRD_LOGGING_ERROR} {reason}")
        if self._recorder is not None:
            self._recorder.give_up()

    # ---- the opening -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        connection = self._connection
        held = HoldBack()
        connection.observe(held)
        if self._options.save_data:
            self._record(held)
        connection.limit_receiving(OPENING_LIMIT)
        config = self._receive_config()
        if config is None:
            return
        metadata = self._receive_header()
        if metadata is None:
            return
        connection.limit_receiving(math.inf)
        self._prepare(config.content, metadata)
        parameters = self._receive_parameters(config)
        name = _requested_module(config.content, parameters)
        process = self._choose(name)
        if self._recorder is None:
            if self._module == SAVE_ONLY:
                self._record(held)
            else:
                connection.observe(None)
        logger.info("%s: config %.100r runs %s", self.name, name, self._module)
        process(connection, config.content if parameters is None else parameters, metadata)

    def _receive_config(self) -> Message | None:
        """First message of the session; None when the peer had nothing to ask for."""
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
        return parse_header(message.content)

    def _prepare(self, config: str, metadata: Any) -> None:
        """Give the module that the config names a chance to set up before the first data come, if it wants one.

        A module may define ``prepare(config, metadata)`` for this. Between header and first readout a scanner takes its
        time, which compiling and reading tables can use. JSON parameters may still name another module, and whatever
        goes wrong here goes wrong again in ``process``, which reports it.
        """
        try:
            process = self._find(config.strip())
            prepare = None if process is None else getattr(sys.modules.get(process.__module__), "prepare", None)
            if prepare is not None:
                prepare(config, metadata)
        except Exception as error:  # noqa: BLE001 -- the module's own code, which process will run into again
            logger.debug("%s: preparing %s failed: %s", self.name, self._module, error)

    def _receive_parameters(self, config: Message) -> dict[str, Any] | None:
        """JSON parameters: a TEXT directly after the header, or a config that was sent as JSON text."""
        if self._connection.peek_mrd_message_identifier() == MessageId.TEXT:
            text = self._connection.receive().content.lstrip("\ufeff")  # editors of one system put this mark first
            if not text.lstrip().startswith("{"):
                logger.info("%s: text from the client: %.1000r", self.name, text)
                return None
        elif config.identifier == MessageId.CONFIG_TEXT and config.content.lstrip().startswith("{"):
            text = config.content
        else:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigurationRefused(f"the JSON parameters cannot be read: {error}") from error

    def _choose(self, name: str) -> Process:
        """``process`` that a config asks for, or that of the default config with a warning to the client."""
        process = self._find(name)
        if process is None:
            default = self._options.default_config
            self._tell(
                MRD_LOGGING_WARNING,
                f"there is no module {name[:100]!r} (a file of that name with .py, which defines process, in "
                f"{', '.join(map(str, self._loader.folders))}): the default config '{default}' runs instead",
            )
            process = self._find(default)
            if process is None:
                raise ConfigurationRefused(f"there is no module for the default config '{default}' either")
        return process

    def _find(self, name: str) -> Process | None:
        self._module = repr(name[:100]).strip("'")  # for log lines, which a name must not be able to forge
        return BUILT_IN.get(name) or self._loader.load(name)

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
            )
        except OSError as error:
            text = f"what comes in cannot be saved in {options.save_folder}: {error}"
            if self._module == SAVE_ONLY:
                raise ConfigurationRefused(text) from error
            logger.error("%s: %s", self.name, text)
            self._tell(MRD_LOGGING_ERROR, text)
            return
        connection.observe(self._recorder)
        connection.savedata = True
        connection.mrdFilePath = str(self._recorder.stream_path)

    def _tell(self, level: str, text: str) -> None:
        """Send a log line to the client if it can still be reached."""
        try:
            self._connection.send_text(f"{level} {text}")
        except MrdError as error:
            logger.debug("%s: the client could not be told: %s", self.name, error)

    def _close(self, connection: Connection) -> None:
        try:
            connection.send_close()
        except MrdError as error:
            logger.debug("%s: CLOSE could not be sent: %s", self.name, error)
        if self._recorder is not None:  # the data are being kept: take all of them
            connection.drain(self._options.timeout, math.inf)
        elif connection.can_send:
            connection.drain(DRAIN_WAIT, DRAIN_TOTAL)


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
            return name.strip()
    return config.strip()
