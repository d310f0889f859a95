"""Readouts of one image or volume, each group when its data are complete; shared by Cartesian and other scans."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import ismrmrd

from recon.mrdencoding import acceleration_factors, counter_limit, counter_values

logger = logging.getLogger(__name__)

CORNERS = 0.7  # part of the lines of a 3-D encoding that are acquired at least when its corners are left out
CALIBRATION_ROWS = 8  # neighbouring ones at least, before a scan of unknown calibration counts as calibrated
LAST = (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)
LAST_MASK = sum(1 << (flag - 1) for flag in LAST)

Item = TypeVar("Item")


class Key(NamedTuple):
    """Counters by which readouts belong to one volume, in the order in which images are made."""

    repetition: int
    encoding_space_ref: int
    slice: int
    contrast: int
    set: int


class Keyed(Protocol):
    """Data of one volume."""

    @property
    def key(self) -> Key:
        """Its counters."""

    @property
    def encoding(self) -> Any:
        """The header's encoding."""


KeyedData = TypeVar("KeyedData", bound=Keyed)


class ReadoutGroup(NamedTuple, Generic[Item]):
    """Readouts of one volume, with all its cardiac phases, in the order in which they came.

    Attributes
    ----------
    key
        Its counters.
    encoding
        The header's encoding.
    readouts
        One at least.
    """

    key: Key
    encoding: Any
    readouts: list[Item]


def sort_groups(
    items: Iterable[Item],
    encoding_of: Callable[[int], Any],
    warn: Callable[[str], None] = logger.warning,
    readout_of: Callable[[Item], Any] = lambda item: item,
    may_have_calibration: Callable[[Key], bool] = lambda key: False,
    calibrated: Callable[[Key], bool] = lambda key: True,
) -> Iterator[ReadoutGroup[Item]]:
    """Sort the imaging readouts of a scan into groups, and yield each when its data are complete.

    A group is complete when a readout is flagged as the last of its slice, or a later repetition of the slice has
    begun, and it has the lines that the encoding limits promise: all, or, in an accelerated scan, so many that they are
    no farther apart than the header's acceleration factor says, and calibration lines, unless there are others or an
    earlier repetition had none. One that stays incomplete comes when no readout has been added to it for twice as many
    as a group has, or at the end of the scan. So the memory does not grow with the number of repetitions.

    Parameters
    ----------
    items
        Imaging readouts.
    encoding_of
        Returns the header's encoding of that number.
    warn
        Called with a text about readouts that come late.
    readout_of
        Returns the acquisition of an item.
    may_have_calibration, calibrated
        Whether calibration lines of an accelerated scan may be among a group's own lines; whether there are others.
    """
    waiting: dict[Key, _Waiting[Item]] = {}
    newest: dict[tuple[int, int], int] = {}  # repetition of each slice of an encoding space
    made: set[Key] = set()
    uncalibrated: set[tuple[int, ...]] = set()  # series that have no calibration lines
    late = 0
    for count, item in enumerate(items):
        readout = readout_of(item)
        idx = readout.idx
        key = Key(idx.repetition, readout.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        late += key in made
        if key not in waiting:
            waiting[key] = _Waiting(encoding_of(key.encoding_space_ref), may_have_calibration(key))
        waiting[key].add(item, readout, count)
        series = (readout.encoding_space_ref, idx.slice)
        begun = idx.repetition > newest.get(series, 0)
        newest[series] = max(idx.repetition, newest.get(series, 0))
        for other in sorted(each for each in waiting if each[1:3] == series) if begun else [key]:
            later = other.repetition < newest[series]
            known = other[1:] in uncalibrated or calibrated(other)
            if waiting[other].is_complete(later, known) or (later and waiting[other].is_left(count)):
                made.add(other)
                if not waiting[other].has_calibration():
                    uncalibrated.add(other[1:])
                yield waiting.pop(other).group(other)
    if late:
        warn(f"{late} readouts came after the image that they belong to: a further one was made of them")
    for key in sorted(waiting):
        yield waiting.pop(key).group(key)


class _Waiting(Generic[Item]):
    """Readouts of a group that is not complete.

    Parameters
    ----------
    encoding
        The header's.
    may_have_calibration
        Calibration lines of an accelerated scan may be among its lines.
    """

    def __init__(self, encoding: Any, may_have_calibration: bool) -> None:
        self._encoding = encoding
        self._readouts: list[Item] = []
        self._places: dict[tuple[int, int], set[tuple[int, int]]] = {}  # [average, phase]: (row, partition)
        self._count = 0  # of different places
        self._newest = 0  # number of the newest readout in the scan
        self._is_last = False
        self._limit = counter_limit(encoding, "kspace_encoding_step_1")
        self._lines = tuple(counter_values(encoding, f"kspace_encoding_step_{step}") for step in (1, 2))
        known = (counter_limit(encoding, name) for name in ("kspace_encoding_step_1", "average"))
        self._can_end = None not in known  # by a flag
        self._knows_phases = counter_limit(encoding, "phase") is not None
        self._images = counter_values(encoding, "average") * counter_values(encoding, "phase")
        self._factors = acceleration_factors(encoding)
        self._wants_calibration = may_have_calibration and max(self._factors) > 1

    def group(self, key: Key) -> ReadoutGroup[Item]:
        """All of them."""
        return ReadoutGroup(key, self._encoding, self._readouts)

    def add(self, item: Item, readout: Any, number: int) -> None:
        """Keep an item and its readout, with its number in the scan."""
        self._newest = number
        idx = readout.idx
        places = self._places.setdefault((idx.average, idx.phase), set())
        before = len(places)
        places.add((idx.kspace_encode_step_1, idx.kspace_encode_step_2))
        self._count += len(places) - before
        self._is_last = bool(readout.flags & LAST_MASK)
        self._readouts.append(item)

    def is_complete(self, later_has_begun: bool, calibrated: bool) -> bool:
        """Tell whether nothing more has to be waited for."""
        ends_by_flag = self._can_end and self._is_last and (self._knows_phases or len(self._places) <= self._images)
        if not later_has_begun and not ends_by_flag:
            return False
        if self._count >= self._images * math.prod(self._lines):
            return True
        if len(self._places) < self._images or not all(map(self._is_covered, self._places.values())):
            return False
        return later_has_begun or calibrated or not self._wants_calibration or self.has_calibration()

    def has_calibration(self) -> bool:
        """Tell whether some image has neighbouring lines, as they are round the centre."""
        return any(
            all((row + step, partition) in places for step in range(CALIBRATION_ROWS))
            for places in self._places.values()
            for row, partition in places
        )

    def is_left(self, count: int) -> bool:
        """Tell whether so many readouts have come since the newest one that no further ones are to be expected."""
        return count - self._newest > 2 * max(len(self._readouts), self._images * math.prod(self._lines))

    def _is_covered(self, places: set[tuple[int, int]]) -> bool:
        least = math.prod(count // factor for count, factor in zip(self._lines, self._factors, strict=True))
        if self._lines[1] > 1:
            return len(places) >= CORNERS * least
        limit, factor = self._limit, self._factors[0]
        rows = sorted({row for row, _ in places})
        if limit is not None:
            rows = [limit.minimum - 1, *rows, limit.maximum + 1]
        return all(after - before <= factor for before, after in pairwise(rows))


def by_repetition(volumes: Iterable[KeyedData]) -> Iterator[list[KeyedData]]:
    """Yield volumes one repetition at a time, sorted by encoding space, slice, contrast and set.

    A repetition comes as soon as it has the slices, contrasts and sets that the encoding limits promise, or at the end
    of the scan.
    """
    waiting: dict[int, list[KeyedData]] = {}

    def sorted_volumes(repetition: int) -> list[KeyedData]:
        return sorted(waiting.pop(repetition), key=lambda volume: volume.key)

    for volume in volumes:
        mine = waiting.setdefault(volume.key.repetition, [])
        mine.append(volume)
        spaces = {each.key.encoding_space_ref: each.encoding for each in mine}
        names = ("slice", "contrast", "set")
        if len(mine) >= sum(math.prod(counter_values(each, name) for name in names) for each in spaces.values()):
            yield sorted_volumes(volume.key.repetition)
    for repetition in sorted(waiting):
        yield sorted_volumes(repetition)
