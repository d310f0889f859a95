"""The client's output file: a run goes into a file beside it while it comes, and joins the output when it is complete.

The file beside is an ISMRMRD stream that is only appended to (``out.part-<date>-<time>-<letters>.mrd`` for ``out.h5``).
Whatever ends the client, its whole messages can be read: `mrdsource` and the ``ismrmrd`` package do so, and

    python recorder.py out.part-20261125-134417-x7k2m1qa.mrd -o out.h5 -G dataset

puts them into a group of the output. The output itself is never written to. A copy of it gets the new group, and takes
its place in one step, so that at any time the output is either the earlier file or the whole new one.

This runs in a process of its own: HDF5 may crash when a write fails where the disk still reports free space (a file
size limit, a quota), and would end the client, too.
"""

import contextlib
import errno
import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from constants import MessageId
from mrdio.codec import StreamBroken, encode, read_messages
from mrdio.h5groups import MrdFileError, open_mrd, refuse_raw_data
from mrdio.limits import Limits
from mrdio.mrdfile import MrdWriter
from mrdio.streamfiles import RECORDER, is_named

if sys.platform != "win32":  # Windows does not replace a file that is open: nothing is lost, but the step may fail
    import fcntl

logger = logging.getLogger(__name__)

# The stream was made by the client itself, of messages that kept to its limits; writing may make texts longer.
_UNLIMITED = Limits(data=sys.maxsize, text=sys.maxsize, header=sys.maxsize, attributes=sys.maxsize)

_COPY_STEP = 1 << 30  # [bytes]
WRITER_PATIENCE = 1.0  # [s]
ERROR = "error: "  # begins the line that says why the command failed


class PartFile:
    """The stream file of one run; made when there is something to write, so that a run without images leaves none.

    Parameters
    ----------
    output : Path
        The output file; the stream goes beside it, or beside what it links to.
    header_xml : str
        MRD header, which is the first message.

    Attributes
    ----------
    path : Path or None
        The stream file, once something has been written.
    """

    def __init__(self, output: Path, header_xml: str) -> None:
        self.path: Path | None = None
        self._output = output
        self._header_xml = header_xml
        self._file: io.FileIO | None = None
        self._size = 0
        self._is_empty = True

    def write(self, identifier: MessageId, content: Any) -> None:
        """Append one message.

        Raises
        ------
        OSError
            If it cannot be written whole; then the file ends with the message before it.
        """
        if self._file is None:
            handle, name = _make_part(self._output)
            self._file, self.path = os.fdopen(handle, "wb", buffering=0), Path(name)
            self._append(self._file, MessageId.METADATA_XML_TEXT, self._header_xml)
        self._append(self._file, identifier, content)
        self._is_empty = False

    def _append(self, file: io.FileIO, identifier: MessageId, content: Any) -> None:
        try:
            for buffer in encode(identifier, content):
                rest = memoryview(buffer).cast("B") if len(buffer) else buffer
                while len(rest):
                    rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(self._size)
            raise
        self._size = file.tell()

    def close(self) -> None:
        """Close the file; one that nothing could be written into is removed."""
        if self._file is None:
            return
        self._file.close()
        if self._is_empty and self.path is not None:
            self.path.unlink()
            self.path = None


def _make_part(output: Path) -> tuple[int, str]:
    """Make a new file beside the output, for its user only; returns its handle and name."""
    output = output.resolve()
    ending = f".part-{time.strftime('%Y%m%d-%H%M%S')}-"
    return tempfile.mkstemp(".mrd", _cut(output.stem, len(ending) + 12) + ending, output.parent)


def _cut(name: str, length: int) -> str:
    """Shorten a name so that so many bytes more still make a file name, of 255 bytes on most systems."""
    return os.fsencode(name)[: 255 - length].decode(errors="ignore")


def check_output(output: Path, group: str, overwrite: bool = False) -> None:
    """Check, before a scan, that a run can join a group of the output file, or replace it, without touching that.

    It is logged when images will be added to those of an earlier run.

    Raises
    ------
    MrdFileError
        If no file can be made beside it; or it exists and is write-protected, is no HDF5 file or is open for writing;
        or an object in the group leads to another file; or the group is to be replaced, and holds raw data.
    """
    try:
        handle, name = _make_part(output)
        os.close(handle)
        Path(name).unlink()
        if output.exists():
            if not os.access(output, os.W_OK):
                raise PermissionError(errno.EACCES, "it is write-protected")
            with open_mrd(output, group) as file:
                if group in file and overwrite:
                    refuse_raw_data(file[group])
                elif group in file:
                    text = "images are added to it (--overwrite replaces it, -G names another)"
                    logger.warning("Group '%s' is in %s already: %s", group, output, text)
    except OSError as error:
        raise MrdFileError(f"{output} cannot be written: {error}") from error


def join_command(part: Path, output: Path, group: str, overwrite: bool = False) -> str:
    """Command line that puts a stream file into a group of an output file."""
    return shlex.join(_command(part, output.absolute(), group, overwrite))


def _command(part: Path, output: Path, group: str, overwrite: bool) -> list[str]:
    further = ["--overwrite"] if overwrite else []
    return [sys.executable, str(RECORDER), str(part), "-o", str(output), f"-G={group}", *further]


def join_in_process(part: Path, output: Path, group: str, overwrite: bool = False) -> None:
    """Do as `join` in a process of its own; its warnings are logged.

    Raises
    ------
    MrdFileError
        If that fails or crashes. The output is as it was, and the stream is kept.
    """
    process = subprocess.Popen(
        _command(part, output, group, overwrite),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl+C reaches the client's process group; the client decides when to end
    )
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    finally:
        if process.returncode:
            _remove_unfinished(output)
    lines = said.splitlines()
    reason = lines.pop() if process.returncode > 0 and lines else f"exit status {process.returncode}"
    for line in lines:
        logger.warning("%s", line)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise MrdFileError(f"HDF5 crashed ({name}), as it does when a file size limit or a quota is reached")
    if process.returncode:
        raise MrdFileError(reason.removeprefix(ERROR))


def join(part: Path, output: Path, group: str, overwrite: bool = False) -> None:
    """Put the messages of a stream file into a group of an output file, and remove the stream file.

    A message that broke off at the end of the stream is left out, and logged. Earlier content of the group is kept
    unless `overwrite` is true.
    The group notes the stream's name, size and time, so that a process that is killed before it has removed the stream
    does not lead to the same images twice.

    Parameters
    ----------
    part : Path
        The stream file.
    output : Path
        MRD .h5 file; made if it is not there. It is replaced in one step, when its new version is on the disk; where it
        is a link, that is done to what it links to.
    group : str
        The group.

    Raises
    ------
    OSError, MrdError
        If the stream cannot be read or is in the group already, or the output cannot be written. The output is as it
        was.
    """
    try:
        stream = io.BufferedReader(_locked(part.resolve(), flags=0))  # one process at a time: no run is added twice
    except FileNotFoundError as error:
        raise MrdFileError(f"there is no {part}: it has been put into an output already, or been moved") from error
    with stream:
        facts = os.fstat(stream.fileno())
        with _new_version(output.resolve()) as new, MrdWriter(new, group, locking=False, replace=overwrite) as writer:
            if not writer.note(part.name, f"{facts.st_size} bytes of {facts.st_mtime_ns} ns"):
                raise MrdFileError(f"{part} is in group '{group}' of {output} already, all of it: remove it")
            try:
                for message in read_messages(stream, _UNLIMITED):
                    if message.identifier == MessageId.METADATA_XML_TEXT:
                        writer.write_header(message.content)
                    else:
                        writer.write(message.content)
            except StreamBroken as error:
                logger.warning("%s breaks off in its last message, which is left out: %s", part, error)
        if sys.platform == "win32":
            stream.close()  # Windows removes no file that is open
        part.unlink()


def reason(error: Exception, output: Path) -> str:
    """Text of an error of `join` in one line; it names the output, not its unfinished version."""
    return str(error).replace(str(_unfinished(output.resolve())), str(output)).replace("\n", " ")


def _unfinished(output: Path) -> Path:
    return output.with_name(f".{_cut(output.name, 12)}.unfinished")


@contextlib.contextmanager
def _new_version(output: Path) -> Iterator[Path]:
    """A copy of the output, or an empty HDF5 file, which takes the output's place if all goes well.

    Only one process at a time has it, so that no run gets lost when several join one output.
    """
    path = _unfinished(output)
    with _locked(path) as file, contextlib.ExitStack() as until_replaced:
        try:
            file.truncate(0)  # a process that was killed may have left something
            if output.exists():
                earlier = until_replaced.enter_context(output.open("rb", buffering=0))
                _keep_writers_out(output, earlier)  # data that they write into the earlier file would be lost
                _copy(earlier, file)
                if os.fstat(earlier.fileno()).st_nlink > 1:
                    logger.warning("%s has further names (hard links): under these, the earlier file stays", output)
            else:
                h5py.File(path, "w", locking=False).close()
            yield path
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # Windows moves no file that is open
                until_replaced.close()  # and replaces none
            path.replace(output)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    _sync_folder(output.parent)


def _locked(path: Path, flags: int = os.O_CREAT, wait: bool = True) -> io.FileIO:
    """Open a file that no other process has; with a lock on the file itself, which needs no further file.

    Raises
    ------
    BlockingIOError
        If another process has it, and this is not to be waited for.
    """
    while True:
        flags |= os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if is_named(path, file):
                return file
        except BlockingIOError:
            file.close()
            raise
        except OSError as error:
            logger.warning("%s cannot be locked: let no other client write into the same output: %s", path, error)
            return file
        file.close()  # the process that had the lock has renamed or removed it


def _remove_unfinished(output: Path) -> None:
    """Remove the unfinished file of a process that was killed, or crashed; unless another one has it."""
    path = _unfinished(output.resolve())
    with contextlib.suppress(OSError), _locked(path, flags=0, wait=False):
        path.unlink()


def _keep_writers_out(output: Path, file: io.FileIO) -> None:
    """Lock the open output as its readers do, until it is closed: HDF5 then refuses to open it for writing.

    Raises
    ------
    MrdFileError
        If another program has it open for writing for longer than `WRITER_PATIENCE`.
    """
    deadline = time.monotonic() + WRITER_PATIENCE
    while sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:  # the run before this one releases its lock just after its last step
            if time.monotonic() > deadline:
                raise MrdFileError(f"{output} is open for writing in another program") from error
            time.sleep(0.02)
        except OSError as error:
            logger.debug("%s cannot be locked: %s", output, error)
            return
        else:
            return


def _copy(source: io.FileIO, target: io.FileIO) -> None:
    """Copy a file, its owner and mode; where the file system can, its blocks are shared and not copied."""
    facts = os.fstat(source.fileno())
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):  # only root may give a file to others
            os.fchown(target.fileno(), facts.st_uid, facts.st_gid)
        os.fchmod(target.fileno(), facts.st_mode)  # after the owner: a change of the owner removes parts of the mode
    with contextlib.suppress(OSError, AttributeError):
        while os.copy_file_range(source.fileno(), target.fileno(), _COPY_STEP):
            pass
    shutil.copyfileobj(source, target, 1 << 20)  # the rest: everything, where the system has no such call


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows, and some network shares, offer nothing like it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
