"""Measurements that later scans depend on, such as those of the noise: kept in a folder, found by their ID.

A session of its own sends such a measurement, with the config ``savedep`` or another of `CONFIGS`. It is kept under
the measurementID of its header, as an ISMRMRD stream, as `client.py` reads it: a crash or a full disk costs nothing
that was written before, and HDF5, which may crash on a full disk, is not needed. While it comes in, it is a recording
(`recordings.Recorder`) in the same folder; when it is complete, it gets its name, and replaces an earlier one of the
same ID in one step.

The header of a later scan names the ID under ``measurementInformation.measurementDependency``.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd

from constants import MessageId
from mrdio.codec import MrdError, StreamBroken, encode, read_messages
from mrdio.limits import Limits, flag_of
from mrdio.mrdheader import parse_header
from mrdio.recordings import Recorder
from mrdio.streamfiles import STREAM_SUFFIX, remove_stream

logger = logging.getLogger(__name__)

CONFIGS = tuple(f"{name}{end}" for name in ("savedep", "default_measurement_dependencies") for end in ("", ".xml"))
# Files of these names are removed when they are old, so they have to be of this folder alone.
SUFFIX = ".dependency.mrd"
UNFINISHED = "dependency-"  # begins the session's name in the name of a stream
LONGEST_ID = 128

_ID = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,{LONGEST_ID - 1}}}")
_IDENTIFIERS = {
    ismrmrd.Acquisition: MessageId.ISMRMRD_ACQUISITION,
    ismrmrd.Waveform: MessageId.ISMRMRD_WAVEFORM,
    ismrmrd.Image: MessageId.ISMRMRD_IMAGE,
}


class DependencyError(MrdError, ValueError):
    """A measurement cannot be kept, or there is none of that ID; the text says why."""


@dataclass(frozen=True, eq=False)
class Dependency:
    """A measurement that was kept.

    Attributes
    ----------
    measurement
        Its ID.
    header
        Its MRD header (`ismrmrd.xsd.ismrmrdHeader`), or the text of one that is not valid.
    readouts
        Its acquisitions, of all kinds, in the order in which they came.
    """

    measurement: str
    header: Any
    readouts: list[ismrmrd.Acquisition]


def checked_id(measurement: Any) -> str:
    """Return a measurement ID if it may become part of a file's name.

    Raises
    ------
    DependencyError
        It may not; says what would be right.
    """
    if isinstance(measurement, str) and _ID.fullmatch(measurement):
        return measurement
    raise DependencyError(
        f"the measurementID {measurement!r:.150} is no name: expected 1 to {LONGEST_ID} of the characters A-Z, a-z, "
        "0-9, '_', '-' and '.', the first of them no '.'"
    )


def named_in(header: Any, kind: str) -> list[str]:
    """IDs of the measurements of a kind ("Noise", "SenMap", ...) that a header says its scan depends on."""
    information = getattr(header, "measurementInformation", None)
    return [
        each.measurementID or ""
        for each in getattr(information, "measurementDependency", None) or []
        if (each.dependencyType or "").lower() == kind.lower()
    ]


class DependencyStore:
    """Folder of measurements that later scans depend on; any number of threads and processes may use it at a time.

    Parameters
    ----------
    folder
        Made when the first one is kept.
    limits
        Limits on messages, on the disk, and on how old measurements get and how much there is of them.
    """

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self._folder = folder
        self._limits = limits or Limits()

    def keep(self, items: Iterable[Any], header: Any) -> tuple[str, int]:
        """Keep the readouts, waveforms and images of a session, all that come, under the measurementID of its header.

        Returns
        -------
        The ID, and how many readouts, waveforms and images were kept. 0: nothing is, and an earlier measurement stays.

        Raises
        ------
        DependencyError
            The header is not valid, or has no usable measurementID; or what comes cannot be read or written whole: what
            was written until then stays in a stream that the text names, and an earlier measurement stays.
        StreamBroken
            What comes breaks off. The same holds.
        """
        if isinstance(header, str):
            raise DependencyError("without a valid MRD header there is no measurementID to keep a measurement under")
        measurement = checked_id(getattr(header.measurementInformation, "measurementID", None))
        xml = header.toXML("utf-8")
        failures: list[str] = []
        kind: type[MrdError] = DependencyError
        try:
            recorder = Recorder(self._folder, f"{UNFINISHED}{measurement}", b"", self._limits, failures.append)
        except OSError as error:
            raise DependencyError(f"no measurement can be kept in {self._folder}: {error}") from error
        part, count = recorder.stream_path, 0
        try:
            _write(recorder, MessageId.METADATA_XML_TEXT, xml)
            for item in items:
                if type(item) in _IDENTIFIERS:  # and no text
                    _write(recorder, _IDENTIFIERS[type(item)], item)
                    count += not failures
                if failures:
                    break
            else:
                _write(recorder, MessageId.CLOSE)
        except MrdError as error:
            failures.append(str(error))
            kind = StreamBroken if isinstance(error, StreamBroken) else kind
        finally:
            recorder.finish()
            if count == 0:
                part.unlink(missing_ok=True)
        if not failures and count:
            try:
                part.replace(self._path(measurement))
            except OSError as error:
                failures.append(f"{part} cannot be renamed: {error}")
        self._tidy(newest=part if failures else self._path(measurement))
        if failures:
            kept = f"; the first {count} readouts, waveforms and images are in {part}" if count else ""
            raise kind(f"the measurement {measurement} is not kept: {failures[0]}{kept}")
        return measurement, count

    def load(self, measurement: str) -> Dependency:
        """Read a measurement.

        Raises
        ------
        DependencyError
            The ID is no name, there is no such measurement, or it cannot be read.
        """
        path = self._path(checked_id(measurement))
        self._tidy()
        header, readouts = None, []
        try:
            with path.open("rb") as stream:
                for message in read_messages(stream, self._limits):
                    if message.identifier == MessageId.METADATA_XML_TEXT:
                        header = parse_header(message.content, self._limits.header)
                    elif message.identifier == MessageId.ISMRMRD_ACQUISITION:
                        readouts.append(message.content)
        except FileNotFoundError:
            why = f"it has not been sent with the config {CONFIGS[0]}, or has been removed"
            raise DependencyError(f"the measurement {measurement} is not there: {why}") from None
        except (OSError, MrdError) as error:
            raise DependencyError(f"the measurement {measurement} cannot be read: {error}") from error
        return Dependency(measurement, header, readouts)

    def _path(self, measurement: str) -> Path:
        return self._folder / f"{measurement}{SUFFIX}"

    def _tidy(self, newest: Path | None = None) -> None:
        """Remove measurements that are too old, and, where a new one has come, the oldest until it fits.

        Streams of sessions that broke off are removed likewise, and those that are being written are not.
        """
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                unfinished = entry.name.endswith(STREAM_SUFFIX) and f"_{UNFINISHED}" in entry.name
                if unfinished or entry.name.endswith(SUFFIX):
                    with contextlib.suppress(OSError):  # another session has just removed it
                        facts = entry.stat(follow_symlinks=False)
                        found.append((facts.st_mtime, facts.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for written, size, path in sorted(found):
            too_old = time.time() - written > self._limits.dependency_age
            too_much = newest is not None and total > self._limits.dependencies
            if path == newest or not (too_old or too_much):
                continue
            with contextlib.suppress(OSError):
                if remove_stream(path):
                    total -= size
                    flag = flag_of("dependency_age" if too_old else "dependencies")
                    logger.info("Removed the measurement %s (%s)", path, flag)


def in_order_of(dependency: Dependency, header: Any) -> Dependency:
    """Return a measurement with its channels in the order of another scan, where both headers name their coils.

    Raises
    ------
    DependencyError
        They name other coils.
    """
    theirs, ours = coil_names(dependency.header), coil_names(header)
    if theirs == ours or not (theirs and ours):
        return dependency
    if sorted(theirs) != sorted(ours):
        raise DependencyError(
            f"the measurement {dependency.measurement} is of the coils {', '.join(theirs)}, "
            f"the scan of {', '.join(ours)}"
        )
    order = [theirs.index(name) for name in ours]
    readouts = [
        ismrmrd.Acquisition(each.getHead(), each.data[order], each.traj) if each.active_channels == len(order) else each
        for each in dependency.readouts
    ]
    return Dependency(dependency.measurement, dependency.header, readouts)


def coil_names(header: Any) -> list[str]:
    """Names of the coils in the order of the channels; empty where the header does not name each once."""
    labels = getattr(getattr(header, "acquisitionSystemInformation", None), "coilLabel", None) or []
    numbers = [label.coilNumber for label in labels]
    if sorted(numbers) == list(range(len(numbers))):
        labels = sorted(labels, key=lambda label: label.coilNumber)
    names = [label.coilName or "" for label in labels]
    return names if len(set(names)) == len(names) and all(names) else []


def _write(recorder: Recorder, identifier: MessageId, content: Any = None) -> None:
    for part in encode(identifier, content):
        if len(part):
            recorder.write(memoryview(part).cast("B"))


class DependencyLookup:
    """``connection.dependency``: finds what the header of one scan says that it depends on.

    Parameters
    ----------
    store
        Where it is looked for.
    header
        The scan's MRD header.
    missing
        Called once for each kind of which no measurement that the header names can be read: with the kind, and a text
        that says why.
    """

    def __init__(self, store: DependencyStore, header: Any, missing: Callable[[str, str], None]) -> None:
        self._store = store
        self._header = header
        self._missing = missing
        self._told: set[str] = set()

    def __call__(self, kind: str) -> Dependency | None:
        """Measurement of a kind ("Noise", "SenMap", ...), the first one that can be read; None: there is none."""
        problems = []
        for measurement in named_in(self._header, kind):
            try:
                return in_order_of(self._store.load(measurement), self._header)
            except DependencyError as error:
                problems.append(str(error))
        if problems and kind.lower() not in self._told:
            self._told.add(kind.lower())
            self._missing(kind, "; ".join(problems))
        return None
