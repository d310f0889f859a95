"""Opens what the client sends: MRD .h5 files, ISMRMRD streams, and files of other formats, told by their content."""

from pathlib import Path

from mrdio import mrd2, nifti
from mrdio.mrdsource import Source, open_source
from sending.mrd2streams import open_mrd2
from sending.niftiimages import open_nifti


def open_input(path: Path, group: str | None = None, waveforms: bool = False) -> Source:
    """Open a file for sending.

    Parameters
    ----------
    path : Path
        An MRD .h5 file, an ISMRMRD stream, an MRD version 2 stream or a NIfTI file.
    group, waveforms
        As for `open_source`.

    Raises
    ------
    MrdFileError
        If it is none of these, cannot be read or holds no data.
    """
    if path.is_file():
        if nifti.is_nifti(path):
            return open_nifti(path)
        if mrd2.is_mrd2(path):
            return open_mrd2(path, waveforms)
    return open_source(path, group, waveforms)
