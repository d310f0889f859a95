"""Conversion of recorded streams into MRD files."""

import errno
import io
import logging
import os
import re
import shutil
from pathlib import Path

from constants import MessageId
from mrdio.codec import MrdError, ProtocolError, read_messages
from mrdio.limits import MESSAGE_LIMITS, MIB, Limits, flag_of
from mrdio.mrdfile import MrdWriter
from mrdio.mrdheader import parse_header
from mrdio.streamfiles import claim_stream, is_named, name_new, streams_in

logger = logging.getLogger(__name__)

# Limits of a conversion.
CONVERSION_LIMITS = (*MESSAGE_LIMITS, "disk")

# A scanner's session has some tens of series; each takes up some kilobytes, so that a small stream could fill a disk.
IMAGE_GROUPS = 1000


def protocol_name(header_xml: str) -> str:
    """Protocol name of a header as part of a file name: letters, digits and ``._-`` only, at most 64 of them."""
    header = parse_header(header_xml)
    information = None if isinstance(header, str) else header.measurementInformation
    name = (information.protocolName if information else None) or ""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64].strip("_")


def convert_stream(path: Path, limits: Limits | None = None) -> Path | None:
    """Turn a recorded stream into an MRD .h5 beside it, named after date, time and protocol, and remove the stream.

    A message that broke off at the end is left out, and logged. When the stream holds bytes that are no message, it
    is kept beside the MRD file, since nothing after them could be read.

    Parameters
    ----------
    path : Path
        The stream file.
    limits : Limits, optional
        Limits on its messages, and on the disk space that is left free.

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
        claim = claim_stream(path)
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


def _convert_claimed(path: Path, stream: "io.BufferedReader[io.FileIO]", limits: Limits) -> Path | None:
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
            target = name_new(unfinished, stem)
    finally:
        unfinished.unlink(missing_ok=True)  # where the disk is full, its space is needed
    if not is_named(path, stream):
        return target  # the stream has been moved or removed
    if readable:
        path.unlink()
    else:
        path.replace((target or path).with_suffix(".mrd.broken"))
    return target


def _check_room(path: Path, keep_free: int) -> None:
    """Refuse to begin a conversion that does not fit on the disk: HDF5 may crash when the disk runs full."""
    free, needed = shutil.disk_usage(path.parent).free, path.stat().st_size
    if free < 1.1 * needed + 16 * MIB + keep_free:
        kept = f"{keep_free / MIB:g} MiB are to stay so ({flag_of('disk')})"
        raise OSError(errno.ENOSPC, f"{needed // MIB} MiB are to be converted, {free // MIB} MiB are free, {kept}")


def _copy_messages(stream: "io.BufferedReader[io.FileIO]", writer: MrdWriter, limits: Limits) -> tuple[str, int, bool]:
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


def finish_leftovers(folder: Path, limits: Limits | None = None) -> list[Path]:
    """Convert the streams that an earlier run left in a folder; those that another process still writes are left alone.

    Returns
    -------
    list of Path
        The MRD files that were written.
    """
    results = [convert_stream(path, limits) for path in streams_in(folder)]
    return [result for result in results if result is not None]
