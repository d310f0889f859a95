"""Scans of files: of an MRD header, a simulated scan that fits it; of recorded data, the data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from checks import scans
from checks.finding import Finding, ok, warning
from checks.scans import Scan
from mrdhelper import SECONDS_PER_TICK
from mrdio.limits import MIB
from mrdio.mrdheader import parse_header
from mrdio.mrdsource import open_source
from recon import memory
from recon.mrdencoding import acceleration_factors
from recon.trajectorysources import find

DEFAULT_TR = 10e-3  # where a header tells none [s]
SHORTEST = 1.0  # length of a simulated scan, at least [s]
MOST_DATA = 512 * MIB  # of a simulated scan


class NotSimulated(ValueError):
    """A scan of a kind that is not simulated here; the message says which."""


def read_header(path: Path) -> tuple[str, Any]:
    """Read the MRD header of an XML file, an MRD .h5 file or an ISMRMRD stream.

    Returns
    -------
    The text, and the header.

    Raises
    ------
    ValueError
        It is no header.
    OSError, mrdio.h5groups.MrdFileError
        The file cannot be read.
    """
    if path.suffix.lower() == ".xml":
        text = path.read_text("utf-8-sig")
    else:
        with open_source(path) as source:
            text = source.header_xml or ""
    header = parse_header(text)
    if isinstance(header, str):
        raise ValueError(  # noqa: TRY004 - the type is how the reader says it
            f"{path}: there is no valid MRD header in it (an XML text with the root ismrmrdHeader)"
        )
    return text, header


def describe(header: Any) -> Iterator[Finding]:
    """Yield findings about a header: what a reconstruction needs, and what is not simulated."""
    if not header.encoding:
        yield warning("header", "it has no encoding: no matrix, no field of view, no trajectory")
        return
    for number, encoding in enumerate(header.encoding):
        trajectory = getattr(encoding.trajectory, "value", encoding.trajectory)
        matrix, view = encoding.reconSpace.matrixSize, encoding.reconSpace.fieldOfView_mm
        text = (
            f"encoding {number}: {trajectory}, matrix {matrix.x} x {matrix.y} x {matrix.z}, "
            f"{view.x:g} x {view.y:g} x {view.z:g} mm, TR {1e3 * tr_of(header):g} ms"
        )
        if not all((matrix.x, matrix.y, matrix.z, view.x, view.y)):
            yield warning("header", f"{text}: no size may be zero")
        elif max(acceleration_factors(encoding)) > 1:
            yield warning("header", f"{text}: acceleration is not simulated, all lines are sent; send recorded data "
                          "with --data")  # fmt: skip
        else:
            yield ok("header", text)


def tr_of(header: Any) -> float:
    """Repetition time of a header [s]."""
    times = getattr(header.sequenceParameters, "TR", None)
    return 1e-3 * float(times[0]) if times and times[0] else DEFAULT_TR


def simulated(text: str, header: Any, folders: Sequence[Path]) -> Scan:
    """Scan of the doctor's object that fits a header; its slice lies as in `scans`.

    Parameters
    ----------
    text, header
        The header.
    folders
        In which the file of a sequence is looked for.

    Raises
    ------
    NotSimulated
        It is a kind that is not simulated here.
    recon.trajectory.TrajectoryError
        There is no file of the sequence.
    """
    encoding = header.encoding[0] if header.encoding else None
    if encoding is None:
        raise NotSimulated("a header without an encoding")
    trajectory = getattr(encoding.trajectory, "value", encoding.trajectory)
    if encoding.encodedSpace.matrixSize.z > 1:
        raise NotSimulated("a 3-D scan is not simulated here: send recorded data with --data")
    if trajectory == "epi":
        raise NotSimulated("EPI is not simulated here: send recorded data with --data")
    tr = tr_of(header)
    coils = getattr(header.acquisitionSystemInformation, "receiverChannels", None) or 4
    view = encoding.reconSpace.fieldOfView_mm
    if trajectory == "cartesian":
        limit = getattr(encoding.encodingLimits, "slice", None)
        slices = 1 if limit is None else min(limit.maximum + 1, scans.SLICES)
        phantom = scans.stack(min(view.x, view.y), slices)
        space = encoding.encodedSpace.matrixSize
        repetitions = _count(space.y * slices, space.x * coils, tr)
        made = scans.cartesian_of(header, phantom, repetitions, tr)
    else:
        found = find(header, folders).trajectory
        phantom = scans.stack(1e3 * found.fov, 1)
        readouts = found.readouts * _count(found.readouts, found.readout_length * coils, tr)
        made = scans.spiral_of(header, found, phantom, readouts, tr, carried=False)
    return Scan(f"{made.name} by the header", header, made.messages, made.places, made.phantom, tr, text)


def _count(readouts: int, samples: int, tr: float) -> int:
    """Repetitions of so many readouts of so many samples, that are long enough, and not too much for the memory."""
    most = max(MOST_DATA // (8 * samples * readouts), 1)
    return int(min(max(np.ceil(SHORTEST / (readouts * tr)), 2), most))


def recorded(path: Path) -> Scan:
    """Scan of a file with its messages as they are; nothing is known about its object.

    Raises
    ------
    ValueError
        It holds no header or nothing else, or does not fit into the memory.
    OSError, mrdio.h5groups.MrdFileError
        It cannot be read.
    """
    size, usable = path.stat().st_size, memory.usable()
    if size > usable:
        raise ValueError(f"{path} holds {size / MIB:.0f} MiB, and {usable / MIB:.0f} MiB of memory are free")
    text, header = read_header(path)
    with open_source(path, waveforms=True) as source:
        messages = list(source.items)
    placed = [each for each in messages if not isinstance(each, ismrmrd.Waveform)]
    if not placed:
        raise ValueError(f"{path} holds no readouts and no images")
    imaging = [each for each in placed if any(each.slice_dir)] or placed
    names = ("position", "read_dir", "phase_dir", "slice_dir")
    places = dict.fromkeys(scans.Place(*(tuple(getattr(each, name)) for name in names)) for each in imaging)
    readouts = [each for each in placed if isinstance(each, ismrmrd.Acquisition)]
    tr = 0.0
    if len(readouts) > 1:
        ticks = readouts[-1].acquisition_time_stamp - readouts[0].acquisition_time_stamp
        tr = ticks * SECONDS_PER_TICK / (len(readouts) - 1) or tr_of(header)
    return Scan(path.name, header, messages, tuple(places), None, tr, text)
