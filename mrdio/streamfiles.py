"""Files of streams: their names in a folder, and which process may convert or remove one.

Any number of processes may look for streams in a folder. Its writer or converter holds a lock on it, the claim, until
it is written, or until the MRD file has its name and the stream is removed.
"""

import contextlib
import io
import itertools
import logging
import os
import re
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":  # which refuses to rename a file that is open: that protects a running recording as well
    import fcntl

logger = logging.getLogger(__name__)

STREAM_SUFFIX = ".mrdpart"
RECORDER = Path(__file__).resolve().parent.parent / "recorder.py"  # the command that puts streams into MRD files

# Recordings are patients' data: not readable for everybody on this machine.
FILE_MODE, FOLDER_MODE = 0o640, 0o750


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


def _names(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    yield folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        yield folder / f"{stem}_{number}{suffix}"


def create_new(folder: Path, stem: str, suffix: str) -> BinaryIO:
    """Open a new file for unbuffered writing under a name that no file has."""
    names = _names(folder, stem, suffix)
    while True:
        with contextlib.suppress(FileExistsError):
            return open(next(names), "xb", buffering=0, opener=_open_private)


def name_new(unfinished: Path, stem: str) -> Path:
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
    with create_new(unfinished.parent, stem, ".h5") as reserved:  # an empty file takes the name
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


# ---- who may convert and remove a stream ---------------------------------------------------------------------------

# A lock belongs to all processes that have the open file, so that a forked child would keep it for as long as it lives.
_claims: weakref.WeakSet[io.FileIO] = weakref.WeakSet()


def _drop_claims() -> None:
    for claim in list(_claims):
        claim.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_claims)


def claim_stream(path: Path) -> io.FileIO | None:
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
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_named(path, file):  # and not the former file of that name, which another process had until now
            return file
    except BlockingIOError:
        pass
    except OSError:
        file.close()
        raise
    file.close()
    return None


def is_named(path: Path, file: BinaryIO) -> bool:
    """Tell whether a path still is the name of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def release(claim: io.FileIO) -> None:
    """Unlock a stream, also where a process that is just being started has the open file as well."""
    if sys.platform != "win32":
        fcntl.flock(claim, fcntl.LOCK_UN)
    claim.close()


def create_claimed(folder: Path, stem: str) -> tuple[BinaryIO, io.FileIO]:
    """Open a new stream for writing, and claim it."""
    while True:
        file = create_new(folder, stem, STREAM_SUFFIX)
        path = Path(file.name)
        try:
            claim = claim_stream(path)
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
    """Remove a stream; returns False if it does not exist, or a process writes or converts it.

    Raises
    ------
    OSError
        If it cannot be removed.
    """
    claim = claim_stream(path)
    if claim is None:
        return False
    try:
        path.unlink()
    finally:
        release(claim)
    return True
