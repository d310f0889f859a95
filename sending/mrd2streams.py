"""MRD version 2 streams as inputs and outputs of the client."""

import itertools
import logging
import os
from pathlib import Path

import ismrmrd
from ismrmrd import xsd

from mrdio import mrd2
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from mrdio.mrdheader import parse_header
from mrdio.mrdsource import Source, in_time_order

logger = logging.getLogger(__name__)


def open_mrd2(path: Path, waveforms: bool = False) -> Source:
    """Open an MRD version 2 stream for sending.

    Raises
    ------
    MrdFileError
        If the ``mrd`` package is missing, or the stream cannot be read or holds no data.
    """
    file = path.open("rb")
    try:
        header, items = mrd2.read(file, str(path))
        first = next(items, None)
        if first is None:
            raise MrdFileError(f"{path} holds neither readouts nor images to send")
    except BaseException:
        file.close()
        raise
    everything = itertools.chain([first], items)
    return Source(
        header_xml=None if header is None else xsd.ToXML(header),
        json_parameters=None,
        items=(item for item in everything if waveforms or not isinstance(item, ismrmrd.Waveform)),
        total=None,
        close=file.close,
    )


def write_group(source: Path, group: str | None, output: Path, overwrite: bool = False) -> list[Path]:
    """Write a group of an MRD .h5 file as an MRD version 2 stream; returns the stream.

    Raises
    ------
    MrdFileError
        If the ``mrd`` package is missing, or the stream is there already and is not to be overwritten.
    ValueError
        If the header lacks what version 2 requires; the text names it.
    OSError
        If a file cannot be read or written. Nothing is left of the output, or the earlier one.
    """
    if output.exists() and not overwrite:
        raise MrdFileError(f"there is a file {output} already")
    unfinished = output.with_name(f".{output.name}.unfinished-{os.getpid()}")
    with MrdReader(source, group) as reader:
        header = None if reader.header_xml is None else parse_header(reader.header_xml)
        if isinstance(header, str):
            logger.warning("%s gets no header: the one of the input is no MRD header", output)
            header = None
        items = itertools.chain(in_time_order(reader.acquisitions(), reader.waveforms()), reader.images())
        try:
            with unfinished.open("wb") as file:
                mrd2.write(file, header, items)
            unfinished.replace(output)
        finally:
            unfinished.unlink(missing_ok=True)
    return [output]
