"""Opens what the client sends: MRD .h5 files, ISMRMRD streams, and files of other formats, told by their content."""

from pathlib import Path

from mrdio import nifti
from mrdio.mrdsource import Source, open_source
from sending.niftiimages import open_nifti


def open_input(path: Path, group: str | None = None, waveforms: bool = False) -> Source:
    """Open a file for sending.

    Parameters
    ----------
    path : Path
        An MRD .h5 file, an ISMRMRD stream or a NIfTI file.
    group, waveforms
        As for `open_source`.

    Raises
    ------
    MrdFileError
        If it is none of these, cannot be read or holds no data.
    """
    if path.is_file() and nifti.is_nifti(path):
        return open_nifti(path)
    return open_source(path, group, waveforms)
