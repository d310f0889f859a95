"""Keeps what a session receives: an append-only ISMRMRD stream while it arrives, an MRD .h5 when it is over.

Receiving never waits for HDF5. The stream file holds the very bytes that came in, so that a crash costs nothing that
the operating system had been given. The conversion runs in a process of its own (`converter`): it takes no time from
other sessions, and HDF5, which may crash on a full disk, takes nothing with it. What was left unconverted is finished
at the next start of the server, or by ``python recorder.py FOLDER``.

Any number of processes may look for streams in a folder. Its writer or converter holds a lock on it, the
claim, until it is written, or until the MRD file has its name and the stream is gone.
"""

import contextlib
import ctypes
import errno
import io
import itertools
import logging
import os
import re
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from constants import MessageId
from mrdio.codec import MrdError, ProtocolError, read_messages
from mrdio.limits import MESSAGE_LIMITS, MIB, Limits, flag_of
from mrdio.mrdfile import MrdWriter
from mrdio.mrdheader import parse_header

try:
    import fcntl
except ImportError:  # Windows refuses to rename a file that is open, which protects a running recording as well
    fcntl = None

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "/tmp/share/saved_data"
STREAM_SUFFIX = ".mrdpart"

# Room is asked for in steps of this size: appending into reserved blocks costs about half [bytes].
RESERVE = 64 << 20

# What a conversion keeps to.
CONVERSION_LIMITS = (*MESSAGE_LIMITS, "disk")

# A scanner's session has some tens of series; each takes up some kilobytes, so that a small stream could fill a disk.
IMAGE_GROUPS = 1000

# What is saved is patients' data: not for everybody on this machine to read.
FILE_MODE, FOLDER_MODE = 0o640, 0o750


class HoldBack:
    """Holds the first bytes of a session in memory until it is known whether they are to be kept.

    The config, which may ask for it, comes with these bytes; they are limited by the limits on its messages.
    """

    def __init__(self) -> None:
        self.held = bytearray()

    def write(self, chunk: memoryview) -> None:
        """Hold a chunk."""
        self.held += chunk


class Recorder:
    """Appends the bytes of one session to a stream file, and turns it into an MRD file at the end.

    Parameters
    ----------
    folder : Path
        Where both files go; made if it is not there.
    session : str
        Name of the session, for the stream file's name.
    held : bytes-like
        What came in before.
    limits : Limits, optional
        Limits that the session's messages are held to, and on the room that is left on the disk.
    on_failure : callable
        Called once with a text when writing fails (a full disk): the session goes on without being recorded, and what
        was written before is kept.
    convert : callable, optional
        Called with the stream's path when the stream is complete: has the MRD file written, without waiting for it.
        None: the stream is left, for others to convert.

    Raises
    ------
    OSError
        If the folder or the stream file cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        session: str,
        held: bytes | bytearray = b"",
        limits: Limits | None = None,
        on_failure: Callable[[str], None] | None = None,
        convert: Callable[[Path], object] | None = None,
    ) -> None:
        make_folder(folder)
        self._limits = limits or Limits()
        self._on_failure = on_failure
        self._convert = convert
        self._failed = False
        stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{re.sub(r'[^A-Za-z0-9-]', '-', session)}"
        self._file, self._claim = _create_claimed(folder, stem)
        self.stream_path = Path(self._file.name)
        self._size = self._reserved = 0
        self.write(memoryview(held))

    def write(self, chunk: memoryview) -> None:
        """Append a chunk."""
        if self._failed:
            return
        try:
            self._size += len(chunk)
            if self._size > self._reserved:
                self._make_room(self._size - self._reserved)
            while len(chunk):
                chunk = chunk[self._file.write(chunk) :]
        except OSError as error:
            self._fail(f"What comes in is no longer being saved: {self.stream_path} cannot be written: {error}")

    def _make_room(self, count: int) -> None:
        """Ask for room for so many bytes more; for a whole step, if the disk has that much to spare."""
        if not self.check():
            return
        free = shutil.disk_usage(self.stream_path.parent).free
        if free - count < self._limits.disk:
            kept = f"{self._limits.disk / MIB:g} MiB are to stay so ({flag_of('disk')})"
            raise OSError(errno.ENOSPC, f"{free / MIB:.0f} MiB are free on the disk, {kept}")
        step = max(count, min(RESERVE, free - self._limits.disk))
        _reserve(self._file, self._reserved, step)
        self._reserved += step

    def check(self) -> bool:
        """True if what has been saved is still there; if not, this is told, once."""
        try:
            there, why = self.stream_path.exists(), f"{self.stream_path} has been removed or moved"
        except OSError as error:
            there, why = False, str(error)
        if not there:
            self._fail(f"What comes in is no longer being saved: {why}")
        return there

    def _fail(self, text: str) -> None:
        if self._failed:
            return
        self._failed = True
        logger.error(text)
        if self._on_failure is not None:
            self._on_failure(text)

    def finish(self) -> None:
        """End the recording and hand the stream over to be converted."""
        there = self.check()
        with contextlib.suppress(OSError):
            self._file.truncate()  # gives back what was reserved
        try:
            self._file.close()
        except OSError as error:  # a network share may tell only now that it is full
            self._fail(f"What came in may not have been saved whole: {self.stream_path} cannot be closed: {error}")
        _release(self._claim)
        if there and self._convert is not None:
            self._convert(self.stream_path)


def _names(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    yield folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        yield folder / f"{stem}_{number}{suffix}"


def _create_new(folder: Path, stem: str, suffix: str) -> BinaryIO:
    """Open a new file for unbuffered writing under a name that no file has."""
    names = _names(folder, stem, suffix)
    while True:
        with contextlib.suppress(FileExistsError):
            return open(next(names), "xb", buffering=0, opener=_open_private)


def _name_new(unfinished: Path, stem: str) -> Path:
    """Give a file a name that no file has, in its folder; no other recording is ever overwritten."""
    for target in _names(unfinished.parent, stem, ".h5"):
        try:
            os.link(unfinished, target)  # the caller removes the former name
        except FileExistsError:
            continue
        except (OSError, AttributeError) as error:
            logger.debug("%s cannot have a further name: %s", unfinished, error)
            break  # some file systems have no hard links
        return target
    with _create_new(unfinished.parent, stem, ".h5") as reserved:  # an empty file takes the name
        target = Path(reserved.name)
    try:
        unfinished.replace(target)
    except OSError:
        target.unlink()
        raise
    return target


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def make_folder(folder: Path) -> None:
    """Make a folder for recordings, and those that it lies in, where they are not there.

    Raises
    ------
    OSError
        If it cannot be made, or something else has its name.
    """
    for each in [*reversed(folder.absolute().parents), folder]:
        if not each.is_dir():
            each.mkdir(FOLDER_MODE, exist_ok=True)


def _reserve(file: BinaryIO, start: int, length: int) -> None:
    """Ask the file system for room without changing the file's size, where it offers that.

    Python's `os.posix_fallocate` would change the size, and on a network share write a byte into every block instead.
    """
    if sys.platform != "linux":
        return
    keep_size = 1
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(file.fileno(), keep_size, start, length) != 0:
        logger.debug("No room could be reserved: %s", os.strerror(ctypes.get_errno()))


# ---- who may convert and remove a stream ---------------------------------------------------------------------------

# A lock belongs to all processes that have the open file, so that a forked child would keep it for as long as it lives.
_claims: weakref.WeakSet[io.FileIO] = weakref.WeakSet()


def _drop_claims() -> None:
    for claim in list(_claims):
        claim.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_claims)


def _claim(path: Path) -> io.FileIO | None:
    """Open a stream and lock it for this process; None when another process has it, or has removed it.

    Raises
    ------
    OSError
        If it cannot be opened, or the file system has no locks.
    """
    try:
        file = io.FileIO(path, "rb+")  # some network shares lock only what is open for writing
    except FileNotFoundError:
        return None
    _claims.add(file)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(path, file):  # and not the former file of that name, which another process had until now
            return file
    except BlockingIOError:
        pass
    except OSError:
        file.close()
        raise
    file.close()
    return None


def _is_named(path: Path, file: BinaryIO) -> bool:
    """Tell whether a path still is the name of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _release(claim: io.FileIO) -> None:
    """Unlock a stream, also where a process that is just being started has the open file as well."""
    if fcntl is not None:
        fcntl.flock(claim, fcntl.LOCK_UN)
    claim.close()


def _create_claimed(folder: Path, stem: str) -> tuple[BinaryIO, io.FileIO]:
    """Open a new stream for writing, and claim it."""
    while True:
        file = _create_new(folder, stem, STREAM_SUFFIX)
        path = Path(file.name)
        try:
            claim = _claim(path)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        # Between its creation and the claim, another process may have taken the empty file for a leftover.
        if claim is not None and os.path.sameopenfile(claim.fileno(), file.fileno()):
            return file, claim
        if claim is not None:
            claim.close()
        file.close()


def remove_stream(path: Path) -> bool:
    """Remove a stream; returns False where it is left alone, since somebody writes or converts it, or it is gone.

    Raises
    ------
    OSError
        If it cannot be removed.
    """
    claim = _claim(path)
    if claim is None:
        return False
    try:
        path.unlink()
    finally:
        _release(claim)
    return True


# ---- conversion ----------------------------------------------------------------------------------------------------


def protocol_name(header_xml: str) -> str:
    """Protocol name of a header as part of a file name: letters, digits and ``._-`` only, at most 64 of them."""
    header = parse_header(header_xml)
    information = None if isinstance(header, str) else header.measurementInformation
    name = (information.protocolName if information else None) or ""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64].strip("_")


def convert_stream(path: Path, limits: Limits | None = None) -> Path | None:
    """Turn a recorded stream into an MRD .h5 beside it, named after date, time and protocol, and remove the stream.

    A message that broke off at the end is left out, and logged. When bytes that are no message stand in the stream, it
    is kept beside the MRD file, since nothing behind them could be read.

    Parameters
    ----------
    path : Path
        The stream file.
    limits : Limits, optional
        Limits on its messages, and on the room that is left on the disk.

    Returns
    -------
    Path or None
        The MRD file; None when there were no data, another process has the stream or has converted it, or the
        conversion failed (logged).
    """
    try:
        if not path.is_file():
            if path.exists():  # and has not been converted meanwhile
                logger.warning("%s is passed over: it is no file, only its name is that of a recording", path)
            return None
        claim = _claim(path)
        if claim is None:
            return None
        with io.BufferedReader(claim) as stream:
            target = _convert_claimed(path, stream, limits or Limits())
    except Exception as error:  # noqa: BLE001 -- whatever one stream holds, the others are to be finished
        logger.error("%s could not be converted, it is kept as it is: %s", path, error)
        return None
    if target is not None:
        logger.info("What came in was saved as %s", target)
    return target


def _convert_claimed(path: Path, stream: BinaryIO, limits: Limits) -> Path | None:
    """Convert a stream that this process has claimed; returns the MRD file, None when there were no data."""
    facts = os.fstat(stream.fileno())
    if not facts.st_size:  # which no disk is too full for
        path.unlink()
        return None
    # The number belongs to the claimed file: who claims another one that is given the same name has another number.
    unfinished = path.with_suffix(f".{facts.st_ino}.h5part")
    unfinished.unlink(missing_ok=True)  # of a conversion that was killed
    _check_room(path, limits.disk)
    try:
        with MrdWriter(unfinished, keep_free=limits.disk, image_groups=IMAGE_GROUPS) as writer:
            protocol, data, readable = _copy_messages(stream, writer, limits)
        target = None
        if data:
            stem = "_".join(part for part in (*path.stem.split("_")[:2], protocol) if part)
            target = _name_new(unfinished, stem)
    finally:
        unfinished.unlink(missing_ok=True)  # where the disk is full, its room is needed
    if not _is_named(path, stream):
        return target  # the stream has been moved or removed
    if readable:
        path.unlink()
    else:
        path.replace((target or path).with_suffix(".mrd.broken"))
    return target


def _check_room(path: Path, keep_free: int) -> None:
    """Refuse to begin what the disk has no room for: HDF5 may crash when it runs full."""
    free, needed = shutil.disk_usage(path.parent).free, path.stat().st_size
    if free < 1.1 * needed + 16 * MIB + keep_free:
        kept = f"{keep_free / MIB:g} MiB are to stay so ({flag_of('disk')})"
        raise OSError(errno.ENOSPC, f"{needed // MIB} MiB are to be converted, {free // MIB} MiB are free, {kept}")


def _copy_messages(stream: BinaryIO, writer: MrdWriter, limits: Limits) -> tuple[str, int, bool]:
    """Copy a stream into an MRD file; returns protocol name, number of messages with data, whether all was readable."""
    protocol, data, opening = "", 0, True
    writers = {
        MessageId.CONFIG_FILE: writer.write_config,
        MessageId.CONFIG_TEXT: writer.write_config_text,
        MessageId.METADATA_XML_TEXT: writer.write_header,
    }
    try:
        for message in read_messages(stream, limits):
            if message.identifier in writers:
                writers[message.identifier](message.content)
            elif message.identifier == MessageId.TEXT:
                if opening:  # JSON parameters come before the data
                    writer.write_json_parameters(message.content)
            else:
                writer.write(message.content)
                data += 1
                opening = False
            if message.identifier == MessageId.METADATA_XML_TEXT:
                protocol = protocol_name(message.content)
    except ProtocolError as error:
        logger.error("%s holds bytes that are no message, it is kept: %s", stream.name, error)
        return protocol, data, False
    except MrdError as error:
        logger.warning("%s breaks off in its last message, which is left out: %s", stream.name, error)
    return protocol, data, True


def streams_in(folder: Path) -> list[Path]:
    """Streams in a folder, those that another process still writes among them, by name; none where it is not there.

    Raises
    ------
    OSError
        If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:  # `Path.glob` passes over errors, or not: that depends on Python's version
            return sorted(folder / entry.name for entry in entries if entry.name.endswith(STREAM_SUFFIX))
    except FileNotFoundError:
        return []


def streams_of(folder: Path, session: str) -> list[Path]:
    """Streams in a folder that have been recorded by sessions of that name; raises what `streams_in` raises."""
    return [path for path in streams_in(folder) if re.search(rf"_{re.escape(session)}(_.*)?$", path.stem)]


def finish_leftovers(folder: Path, limits: Limits | None = None) -> list[Path]:
    """Convert the streams that an earlier run left in a folder; those that another process still writes are left alone.

    Returns
    -------
    list of Path
        The MRD files that were written.
    """
    results = [convert_stream(path, limits) for path in streams_in(folder)]
    return [result for result in results if result is not None]
