"""Outputs of the client that are no MRD .h5 file: a session's images are converted when it is over.

Until then they are in an .h5 file in a folder of its own. It stays, and the error names it, when they cannot be
converted: no image is lost.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mrdio import mrd2, nifti
from mrdio.h5groups import MrdFileError
from sending import mrd2streams, niftiimages
from sending.pipes import STANDARD, check_output_pipe, to_output_pipe

GROUP = "dataset"

Writer: TypeAlias = Callable[[Path, str, Path, bool], list[Path]]


def _copy_out(source: Path, group: str, output: Path, overwrite: bool) -> list[Path]:
    to_output_pipe(source)
    return [output]


WRITERS: dict[str, Writer] = {  # by the end of the output's name
    **dict.fromkeys(nifti.NAMES, niftiimages.write_group),
    **dict.fromkeys(mrd2.NAMES, mrd2streams.write_group),
}


@dataclass(frozen=True)
class Export:
    """An output that is made of an .h5 file.

    Attributes
    ----------
    output : Path
        The output, or `STANDARD`.
    images : Path
        The .h5 file, in a folder of its own.
    writer : callable
        Makes the output of a group of the .h5 file, and returns the files that it has made.
    overwrite : bool
        Whether files that are there already are replaced.
    """

    output: Path
    images: Path
    writer: Writer
    overwrite: bool

    def write(self, group: str) -> list[Path]:
        """Make the output of what the .h5 file holds; returns the files, none if there were no images.

        Raises
        ------
        MrdFileError
            If that fails; the .h5 file is kept, and named.
        """
        made: list[Path] = []
        if self.images.exists():
            try:
                made = self.writer(self.images, group, self.output, self.overwrite)
            except (OSError, ValueError) as error:
                name = "standard output" if self.output == STANDARD else self.output
                text = f"{name} cannot be written: {error}; the images are kept in {self.images}"
                raise MrdFileError(text) from error
        shutil.rmtree(self.images.parent)
        return made


def writer_for(output: Path | None) -> Writer | None:
    """Function that makes an output of this name; None for an MRD .h5 file."""
    if output == STANDARD:
        return _copy_out
    name = "" if output is None else output.name.lower()
    return next((writer for end, writer in WRITERS.items() if name.endswith(end)), None)


@contextlib.contextmanager
def exported(output: Path, writer: Writer, overwrite: bool) -> Iterator[Export]:
    """Prepare an output; what is left in its folder when the session is interrupted stays there.

    Raises
    ------
    MrdFileError
        If the output is there already and is not to be overwritten, cannot be written, or needs a package that is
        missing.
    """
    if writer is mrd2streams.write_group:
        mrd2.package()
    if output == STANDARD:
        check_output_pipe()
    elif output.exists() and not overwrite:
        raise MrdFileError(f"there is a file {output} already: --overwrite replaces it, -o names another")
    try:
        folder = Path(tempfile.mkdtemp(prefix="mrd-client-", dir=None if output == STANDARD else output.parent))
    except OSError as error:
        raise MrdFileError(f"{output} cannot be written: {error}") from error
    try:
        yield Export(output, folder / "images.h5", writer, overwrite)
    finally:
        with contextlib.suppress(OSError):  # there are images in it, or it has gone
            folder.rmdir()
