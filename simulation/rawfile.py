"""Simulated scans into MRD files."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import ismrmrd
import ismrmrd.xsd

from mrdio.mrdfile import MrdWriter


def write_raw(
    header: ismrmrd.xsd.ismrmrdHeader,
    streams: Iterable[Iterable[ismrmrd.Acquisition | ismrmrd.Waveform]],
    path: Path,
    group: str = "dataset",
) -> list[int]:
    """Write a scan to a new MRD file, which replaces one of that name only when it is complete.

    Parameters
    ----------
    header
        MRD header.
    streams
        Readouts, waveforms.
    path, group
        The file, and the group in it.

    Returns
    -------
    Number of items of each stream.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    counts = []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / "unfinished.h5"
        with MrdWriter(unfinished, group) as writer:
            writer.write_header(header.toXML("utf-8"))
            for stream in streams:
                counts.append(0)
                for item in stream:
                    writer.write(item)
                    counts[-1] += 1
        unfinished.replace(path)
    return counts


def beside(path: Path, what: str) -> Path:
    """File of that kind beside the raw data: `raw.h5` has `raw_truth.h5`."""
    return path.with_name(f"{path.stem}_{what}")
