"""Standard input and output in place of files, for a client that stands in a pipe.

HDF5 must be able to go back in a file, which a pipe does not allow: what comes in goes into a temporary file first, and
what goes out comes from one.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mrdio.h5groups import MrdFileError

STANDARD = Path("-")  # in place of a file's name


@contextlib.contextmanager
def input_file(path: Path) -> Iterator[Path]:
    """The file, or for `STANDARD` a temporary one of what standard input holds.

    Raises
    ------
    MrdFileError
        If standard input is a terminal, is empty, or there is no disk space for it.
    """
    if path != STANDARD:
        yield path
        return
    if sys.stdin.isatty():
        raise MrdFileError("standard input is a terminal, not a file: name a file in place of -")
    with tempfile.TemporaryDirectory(prefix="mrd-client-") as folder:
        copy = Path(folder) / "standard-input"
        try:
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        except OSError as error:
            raise MrdFileError(f"standard input cannot be kept in {folder}: {error.strerror}") from error
        if not copy.stat().st_size:
            raise MrdFileError("standard input is empty: the program before the client has written nothing")
        yield copy


def check_output_pipe() -> None:
    """Check that standard output is no terminal, which cannot show a file.

    Raises
    ------
    MrdFileError
        If it is one.
    """
    if sys.stdout.isatty():
        raise MrdFileError("standard output is a terminal, not a file: name a file with -o")


def to_output_pipe(path: Path) -> None:
    """Write a file to standard output.

    Raises
    ------
    OSError
        If it cannot be written, as when the program that reads it has ended.
    """
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.buffer.flush()
