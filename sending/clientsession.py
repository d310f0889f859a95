"""One session of the client with a server: sends a file, and keeps the images that come back.

Images go into a stream file beside the output file, which joins the output when the session is over (`outputfile`). It
does so too when the server reports an error or breaks the session off: no more will come. A run that is interrupted
(Ctrl+C, SIGTERM, SIGHUP) stays beside the output: an incomplete run does not belong among the complete ones, and the
program must end without waiting for a large file. The note on the exception names the stream and the command that puts
it into the output.
"""

import json
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from connection import Connection
from constants import NO_SUCH_MODULE, MessageId
from mrdio.codec import MrdError
from mrdio.h5groups import MrdFileError
from mrdio.limits import Limits
from mrdio.mrdheader import parse_header
from mrdio.mrdsource import Item, Source
from sending.exports import GROUP, exported, writer_for
from sending.inputs import open_input
from sending.outputfile import PartFile, check_output, join_command, join_in_process
from sending.pacing import Pace
from sending.pipes import STANDARD

logger = logging.getLogger(__name__)

BESIDE_CLIENT = Path(__file__).resolve().parents[1]
CONNECT_PATIENCE = 5.0  # a server that is just starting may refuse connections for this long [s]
CONNECT_PAUSE = 0.2
PROGRESS_STEP = 0.2  # time between two calls of `ClientOptions.progress` while data are sent [s]
INTERRUPT_WAIT = 1.0  # time that an interrupted run may take to end [s]


class ClientError(Exception):
    """The session cannot be held; the message says why in one line."""


class _Unwanted(Exception):
    """The server runs another module than the one that was asked for; the message is the server's."""


@dataclass(frozen=True)
class ClientOptions:
    """Source and destination of a session, and the file for its images.

    Attributes
    ----------
    source : Path
        File that is sent, in one of the formats of `inputs`.
    in_group, out_group : str or None
        Groups of the input and output files; None: the only one, and the date and time.
    output : Path or None
        Output file; None: the input's name with ``_results.h5``. A name that ends in another way than .h5 may mean
        another format (`exports`).
    address, port : str, int
        Where the server listens.
    config : str
        Name of the module that the server is to run.
    config_file : Path or None
        A local file whose text is sent as the config instead.
    ignore_json_config : bool
        Whether modules named in JSON parameters are left out, so that `config` decides.
    send_waveforms : bool
        Whether waveforms are sent between the readouts.
    fix_transposed : bool
        Whether a received image is transposed when that makes it fit the first of its series.
    timeout : float
        Longest silence of the server [s].
    progress : callable, optional
        Is called every now and then with the numbers of items sent, of items in all (None: not known) and of images
        received.
    realtime : bool
        Whether readouts and waveforms leave at the pace of their time stamps, as from a scanner.
    keep : bool
        Whether the images that come back are kept; else there is no output.
    strict : bool
        Whether it is an error, which ends the session, when the server runs its default module in place of one that it
        does not know. (A module that fails is an error anyway, with or without fallback images.)
    overwrite : bool
        Whether a group of the output that is there already is replaced; else images are added to it.
    """

    source: Path
    in_group: str | None = None
    output: Path | None = None
    out_group: str | None = None
    address: str = "localhost"
    port: int = 9002
    config: str = "invertcontrast"
    config_file: Path | None = None
    ignore_json_config: bool = False
    send_waveforms: bool = False
    fix_transposed: bool = False
    timeout: float = 3600.0
    progress: Callable[[int, int | None, int], None] | None = None
    realtime: bool = False
    keep: bool = True
    strict: bool = False
    overwrite: bool = False


@dataclass
class Result:
    """Outcome of a session.

    Attributes
    ----------
    output, group : Path, str
        Where the images are.
    sent, received, fallbacks : dict, dict, int
        Numbers of acquisitions, waveforms and images sent and received, and of the fallback images among them.
    errors : list of str
        Error messages of the server, and errors that broke the session off.
    seconds : float
        How long the session took [s].
    part : Path or None
        Stream file that holds the images instead, where they could not be put into the output.
    pace : str
        How well the pace of the scan was kept, where that was asked for.
    overwrite : bool
        Whether the images replace those of the group.
    files : list of Path
        The files that were made, where the output is no MRD .h5 file.
    """

    output: Path
    group: str
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    fallbacks: int = 0
    part: Path | None = None
    pace: str = ""
    overwrite: bool = False
    files: list[Path] = field(default_factory=list)


class _Receiver(threading.Thread):
    """Writes the messages of the server to the stream file as they arrive; `complete` is true if none was left out."""

    def __init__(self, connection: Connection, options: ClientOptions, result: Result, part: PartFile) -> None:
        super().__init__(name="receiver", daemon=True)
        self.complete = False
        self._connection = connection
        self._options = options
        self._result = result
        self._part = part
        self._shapes: dict[int, tuple[int, ...]] = {}

    def run(self) -> None:
        try:
            while (message := self._connection.receive()).identifier != MessageId.CLOSE:
                if isinstance(message.content, str):
                    self._take_text(message.content)
                else:
                    self._result.fallbacks += "Fallback" in getattr(message.content, "meta", ())
                    if self._options.keep:
                        self._part.write(message.identifier, self._fixed(message.content))
            self.complete = True
        except MrdError as error:
            self._result.errors.append(f"the session broke off: {error}")
            self.complete = True
        except _Unwanted as error:
            self._result.errors.append(str(error))
            self.complete = True
            self._connection.abort()
        except Exception as error:  # noqa: BLE001 -- whatever keeps images from being kept is an error of the session
            self._result.errors.append(f"what came back could not be kept: {error}")
            self._connection.abort()
        finally:
            self._part.close()

    def _take_text(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        level = logging.getLevelNamesMapping().get(word)
        if level is None:
            level, rest = logging.INFO, text
        # Control characters from a server must not change the terminal.
        rest = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in rest.strip())
        first, _, further = rest.partition("\n")
        logger.log(level, "server: %s", first, extra={"traceback": further})
        if level >= logging.ERROR:
            self._result.errors.append(first or "an error without text")
        elif self._options.strict and first.startswith(NO_SUCH_MODULE):
            raise _Unwanted(first)

    def _fixed(self, item: Any) -> Any:
        if not (self._options.fix_transposed and isinstance(item, ismrmrd.Image)):
            return item
        shape = self._shapes.setdefault(item.image_series_index, item.data.shape)
        if item.data.shape == shape or (*item.data.shape[:2], *item.data.shape[:1:-1]) != shape:
            return item
        logger.warning("Image %d of series %d is transposed to fit", item.image_index, item.image_series_index)
        return ismrmrd.Image(item.getHead(), meta=item.meta, data=np.ascontiguousarray(item.data.swapaxes(2, 3)))


def connect(address: str, port: int, timeout: float) -> socket.socket:
    """Connect to a server; one that refuses is tried again for a few seconds.

    Raises
    ------
    ClientError
        If the address is not known, or no server listens there.
    """
    deadline = time.monotonic() + CONNECT_PATIENCE
    while True:
        try:
            sock = socket.create_connection((address, port), timeout=CONNECT_PATIENCE)
        except socket.gaierror as error:
            raise ClientError(f"the address '{address}' is not known: {error.strerror}") from error
        except OSError as error:
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() > deadline:
                raise ClientError(f"no server answers at {address}:{port}: {error}") from error
            time.sleep(CONNECT_PAUSE)
        else:
            sock.settimeout(timeout)
            return sock


def json_parameters(options: ClientOptions, of_file: str | None) -> str | None:
    """JSON parameters to send.

    They are looked for in ``<config>.json`` in the current folder, then in the input file, then in ``<config>.json``
    beside the client, where those of the modules that come with it are.

    Raises
    ------
    ClientError
        If they are no JSON object.
    """
    local, ours = (folder / f"{options.config}.json" for folder in (Path(), BESIDE_CLIENT))
    may_be_local = options.config_file is None
    if may_be_local and local.is_file():
        text, where = _read_text(local), str(local)
        if of_file:
            logger.warning("%s replaces the JSON parameters of the input file", local)
    elif of_file:
        text, where = of_file, str(options.source)
    elif may_be_local and ours.is_file():
        text, where = _read_text(ours), str(ours)
    else:
        return None
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"the JSON parameters of {where} cannot be read: {error}") from error
    if not isinstance(parameters, dict):
        raise ClientError(f'the JSON parameters of {where} are to be an object: {{"parameters": {{...}}}}')
    inner = parameters.get("parameters")
    if options.ignore_json_config and isinstance(inner, dict):
        for key in ("config", "customconfig"):
            if inner.pop(key, None):
                logger.warning('"%s" in the JSON parameters of %s is ignored: the config is given', key, where)
    logger.info("JSON parameters from %s", where)
    return json.dumps(parameters)


def run(options: ClientOptions) -> Result:
    """Hold one session: send the file, receive until the server closes, put the images into the output.

    Raises
    ------
    ClientError, MrdFileError
        If the session cannot begin. Later errors are in the result's ``errors``.
    KeyboardInterrupt
        If it is interrupted; a note says where the images that came until then are kept.
    """
    writer = writer_for(options.output) if options.keep else None
    if options.output is None or writer is None:
        return _run(options)
    if options.out_group and options.output != STANDARD:
        raise ClientError(f"{options.output} has no groups: leave out -G, or name an .h5 file with -o")
    with exported(options.output, writer, options.overwrite) as export:
        result = _run(replace(options, output=export.images, out_group=options.out_group or GROUP))
        if result.part is None:
            result.output = options.output
            try:
                result.files = export.write(result.group)
            except MrdFileError as error:
                result.errors.append(str(error))
    return result


def _run(options: ClientOptions) -> Result:
    group = options.out_group or str(datetime.now())
    result = Result(_output_path(options, group), group, overwrite=options.overwrite)
    start = time.monotonic()
    with open_input(options.source, options.in_group, options.send_waveforms) as source:
        part = PartFile(result.output, source.header_xml or "")
        try:
            complete = _hold_session(source, part, options, result)
            result.seconds = time.monotonic() - start
            if part.path is not None:
                result.part = part.path
                if complete and not (options.overwrite and result.errors):  # a failed run replaces no earlier one
                    _join(part.path, result)
        except BaseException as error:
            if part.path is not None and part.path.exists():  # else it has just joined the output
                error.add_note(where_kept(part.path, result))
            raise
    return result


def _join(part: Path, result: Result) -> None:
    try:
        join_in_process(part, result.output, result.group, result.overwrite)
        result.part = None
    except MrdFileError as error:
        result.errors.append(f"what came back could not be kept in {result.output}: {error}")


def where_kept(part: Path, result: Result) -> str:
    """Sentence that names the stream file of a run, and the command that puts it into the output."""
    command = join_command(part, result.output, result.group, result.overwrite)
    return f"what came in is kept in {part}; this puts it into {result.output}: {command}"


def _hold_session(source: Source, part: PartFile, options: ClientOptions, result: Result) -> bool:
    """Send the file and receive; returns whether all that came is in the stream file."""
    parameters = json_parameters(options, source.json_parameters)
    config_text = None if options.config_file is None else _read_text(options.config_file)
    # The server may compute for long before it takes more: only its silence is limited.
    limits = Limits(send_timeout=options.timeout, message_time=math.inf, images=sys.maxsize)
    connection = Connection(connect(options.address, options.port, options.timeout), limits)
    receiver = _Receiver(connection, options, result, part)
    receiver.start()
    try:
        try:
            if config_text is None:
                connection.send_config_file(options.config)
            else:
                connection.send_config_text(config_text)
            connection.send_metadata(source.header_xml or f"{options.source} holds no MRD header")
            if parameters is not None:
                connection.send_json_parameters(parameters)
            _send_items(connection, receiver, source, options, result)
        except MrdError as error:
            receiver.join(CONNECT_PATIENCE)  # the server's error message, if there is one, comes first
            result.errors.append(str(error))
        except MrdFileError as error:
            result.errors.append(str(error))
        connection.abort()  # ends the wait of the receiver
        receiver.join()  # data that the system has received by then are still kept
    finally:
        connection.close()  # an interrupted one ends with the message that it has
        receiver.join(INTERRUPT_WAIT)
    result.sent = {"acquisitions": connection.sentAcqs, "waveforms": connection.sentWaveforms,
                   "images": connection.sentImages}  # fmt: skip
    result.received = {"acquisitions": connection.recvAcqs, "waveforms": connection.recvWaveforms,
                       "images": connection.recvImages}  # fmt: skip
    return receiver.complete


def _output_path(options: ClientOptions, group: str) -> Path:
    output = options.output or options.source.with_name(f"{options.source.stem}_results.h5")
    if not options.keep:
        return output
    if output.resolve() == options.source.resolve():
        raise ClientError(f"the output would overwrite the input {options.source}: name another with -o")
    if not output.resolve().parent.is_dir():
        raise ClientError(f"there is no folder {output.resolve().parent} for the output")
    check_output(output, group, options.overwrite)  # an output that cannot be written is reported before the scan
    return output


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # some editors put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"{path} cannot be read: {error}") from error


def _send_items(
    connection: Connection, receiver: _Receiver, source: Source, options: ClientOptions, result: Result
) -> None:
    """Send the data and CLOSE, and wait until the server has closed, too."""
    pace = Pace(parse_header(source.header_xml or "")) if options.realtime else None
    shown = time.monotonic()
    for item in _until_closed(source.items if pace is None else pace.paced(source.items), receiver):
        if isinstance(item, ismrmrd.Acquisition):
            connection.send_acquisition(item)
        elif isinstance(item, ismrmrd.Waveform):
            connection.send_waveform(item)
        else:
            connection.send_image(item)
        if time.monotonic() - shown > PROGRESS_STEP:
            shown = time.monotonic()
            _tell_progress(connection, source, options)
    all_sent = time.monotonic()
    connection.send_close()
    while receiver.is_alive():  # its waits are limited by the socket's timeout
        receiver.join(0.5)
        _tell_progress(connection, source, options)
    if pace is not None:
        result.pace = f"{pace.summary()}; the server ended {time.monotonic() - all_sent:.2f} s after the last of them"


def _until_closed(items: Iterator[Item], receiver: _Receiver) -> Iterator[Item]:
    """Items to send, up to the point where the server has closed: the rest would not be read."""
    for item in items:
        if not receiver.is_alive():
            logger.warning("The server has closed before everything was sent")
            return
        yield item


def _tell_progress(connection: Connection, source: Source, options: ClientOptions) -> None:
    if options.progress is not None:
        sent = connection.sentAcqs + connection.sentWaveforms + connection.sentImages
        options.progress(sent, source.total, connection.recvImages)
