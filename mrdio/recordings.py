"""Keeps the data that a session receives: an append-only ISMRMRD stream while it arrives, an MRD .h5 when it is over.

Receiving never waits for HDF5. The stream file holds the very bytes that came in, so that a crash loses nothing that
the operating system had been given. The conversion runs in a process of its own (`converter`): it takes no time from
other sessions, and a crash of HDF5 on a full disk ends nothing else. Streams that were left unconverted are finished
at the next start of the server, or by ``python recorder.py FOLDER``.
"""

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mrdio.limits import MIB, Limits, flag_of
from mrdio.streamfiles import create_claimed, make_folder, release

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "/tmp/share/saved_data"

# Disk space is reserved in steps of this size: appending into reserved blocks is faster [bytes].
RESERVE = 64 << 20


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
        Bytes that came in before.
    limits : Limits, optional
        Limits that the session's messages are held to, and on the disk space that is left free.
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
        self._file, self._claim = create_claimed(folder, stem)
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
        """Reserve disk space for so many bytes more; for a whole step, if the disk has that much to spare."""
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
        release(self._claim)
        if there and self._convert is not None:
            self._convert(self.stream_path)


def _reserve(file: BinaryIO, start: int, length: int) -> None:
    """Reserve disk space without changing the file's size, where the file system offers that.

    Python's `os.posix_fallocate` would change the size, and on a network share write a byte into every block instead.
    """
    if sys.platform != "linux":
        return
    keep_size = 1
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(file.fileno(), keep_size, start, length) != 0:
        logger.debug("No disk space could be reserved: %s", os.strerror(ctypes.get_errno()))
