"""Where the trajectory of a scan comes from: sources that are tried in order, and what is said of them.

Each of `SOURCES` finds what belongs to the signature of the sequence. The trajectories that readouts carry themselves
are the last source: they come with the data, see `ownarms`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mrdhelper
from recon import pulseq, trajectory
from recon.trajectory import Trajectory, TrajectoryError

logger = logging.getLogger(__name__)

KEPT = 4  # trajectories, of the latest scans


class Found(NamedTuple):
    """A trajectory, and a text for the client that says where it comes from."""

    trajectory: Trajectory
    told: str


Source = Callable[[str, Sequence[Path], Any], Found]


def find(header: Any, folders: Sequence[Path]) -> Found:
    """Find the trajectory of a scan by the signature of its sequence.

    It is kept for the next scan as long as the file stays as it is.

    Parameters
    ----------
    header
        The MRD header.
    folders
        In which files are looked for, in this order.

    Raises
    ------
    TrajectoryError
        No source has it; lists what was looked for where, and what was wrong with it.
    """
    signature = trajectory.signature_of(header)
    reasons: list[str] = []
    for source in SOURCES:
        try:
            found = source(signature, folders, header)
        except TrajectoryError as error:
            reasons.append(str(error))
            continue
        # A source that has nothing is no news; one that is damaged is.
        damaged = [reason for reason in reasons if not reason.startswith("no ")]
        return Found(found.trajectory, "; ".join([found.told, *damaged]))
    raise TrajectoryError("; ".join(reasons))


def from_metafile(signature: str, folders: Sequence[Path], header: Any) -> Found:
    """Trajectory of the metafile `<signature>.mat`."""
    file = trajectory.find_metafile(signature, folders)
    status = file.stat()
    return Found(_read_metafile(file, status.st_mtime_ns, status.st_size), f"trajectory: metafile {file.name}")


def from_pulseq(signature: str, folders: Sequence[Path], header: Any) -> Found:
    """Trajectory of a Pulseq sequence whose signature it is, whatever the name of the file.

    Raises
    ------
    TrajectoryError
        No sequence has the signature, or those that have it cannot be read.
    """
    asked = 1e-3 * max((mrdhelper.recon_field_of_view(header) or (0.0, 0.0))[:2])
    reasons: list[str] = []
    for file in sequences_of(signature, folders):
        try:
            status = file.stat()
            taken, told = _read_sequence(file, status.st_mtime_ns, status.st_size, asked)
        except OSError as error:
            reasons.append(f"cannot read {file}: {error.strerror}")
        except TrajectoryError as error:
            reasons.append(str(error))
        else:
            return Found(taken, f"trajectory: {told}")
    if reasons:
        raise TrajectoryError("; ".join(reasons))
    count = sum(len(list(Path(folder).glob("*.seq"))) for folder in folders)
    places = ", ".join(str(folder) for folder in folders)
    raise TrajectoryError(
        f"no Pulseq sequence (.seq) with the signature {signature} in {places}; {count} other(s) there"
    )


def sequences_of(signature: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the sequences that state a signature at their end, and that of its name if it states none.

    One that cannot be opened counts by its name: whoever reads it says why.
    """
    for folder in folders:
        for file in sorted(Path(folder).glob("*.seq"), key=lambda file: (file.stem != signature, file.name)):
            try:
                stated = pulseq.stated_signature(file)
            except OSError as error:
                logger.warning("Cannot read %s: %s", file, error)
                stated = None
            if stated == signature.lower() or (stated is None and file.stem == signature):
                yield file


SOURCES: tuple[Source, ...] = (from_metafile, from_pulseq)


@functools.lru_cache(maxsize=KEPT)
def _read_metafile(file: Path, modified: int, size: int) -> Trajectory:
    taken = trajectory.read_metafile(file)
    # It is shared by sessions, so it must not be changed.
    for array in (taken.k, taken.weights):
        array.flags.writeable = False
    return taken


@functools.lru_cache(maxsize=KEPT)
def _read_sequence(file: Path, modified: int, size: int, asked_fov: float) -> tuple[Trajectory, str]:
    return pulseq.trajectory_from(file, pulseq.read_readouts(file), asked_fov)
