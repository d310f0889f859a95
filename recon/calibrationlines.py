"""Calibration lines of an accelerated scan: from the image itself, from lines of their own, or from another scan."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdio.dependencies import Dependency
from recon.kspacevolume import Key, KSpaceVolume, add_readout
from recon.mrdencoding import extent, first_index, is_calibration_only, is_imaging
from recon.sampling import acquired_region, calibration_block
from recon.telling import once

logger = logging.getLogger(__name__)

FEWEST = 8  # lines of a block that is preferred to what other sources have
FIELD_OF_VIEW_TOLERANCE = 0.01  # of the image's
POSITION_TOLERANCE = 0.02  # of the field of view along the readout
PARALLEL = 0.99  # cosine of the angle between directions that are the same but for rounding

Block = NDArray[np.complex64]  # [coil, partition, row, sample]


class Calibration(NamedTuple):
    """A block of calibration lines, empty where there are none, and where it comes from: equal for the same lines."""

    block: Block
    origin: tuple[Any, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows, 0 for none."""
        return self.block.shape[2] if self.block.size else 0


class UnusableCalibrationError(ValueError):
    """Calibration lines do not fit the image; the text says why."""


class CalibrationLines:
    """Finds the calibration lines of each volume.

    In this order: lines that were acquired for calibration only, before the image or between its lines; the block of
    neighbouring lines round the k-space centre of the volume itself, of an earlier repetition, or of another phase or
    contrast; the lines of successive repetitions together, of interleaved scans; the stored calibration scan that the
    header names. The first block with `FEWEST` lines is taken, or else the largest.

    Parameters
    ----------
    metadata
        The MRD header.
    whitened
        Whitens a readout of a stored calibration scan.
    stored
        ``connection.dependency``: returns the stored measurement of a kind, here "SenMap", that the header names.
    warn
        Called with a text for the client.
    """

    def __init__(
        self,
        metadata: Any,
        whitened: Callable[[Any], Any] = lambda readout: readout,
        stored: Callable[[str], Dependency | None] = lambda kind: None,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self._whitened, self._stored, self._warn = whitened, stored, once(warn)
        self._separate = _Readouts(metadata, self._warn)
        self._other_scan: _Readouts | None = None
        self._asked = False
        self._kept: dict[tuple[int, ...], Calibration] = {}  # of the newest repetition that had its own
        self._merged: dict[tuple[int, ...], Block] = {}  # of successive repetitions
        self._without: set[tuple[int, ...]] = set()  # series of volumes that waited in vain

    def add(self, readout: Any) -> None:
        """Keep a calibration line that is none of the image's, or not only; lines after an image belong to the next."""
        self._separate.add(readout)

    def awaited(self, volumes: Iterable[KSpaceVolume]) -> Iterator[KSpaceVolume]:
        """Yield volumes, each when it has its calibration lines.

        One without waits for those that come after it, and for the next repetitions as long as they bring lines that
        those before did not have, as in an interleaved scan. A series that waited in vain does not wait again.
        """
        waiting: dict[tuple[int, ...], list[KSpaceVolume]] = {}
        for volume in volumes:
            series = volume.key[1:]
            for other in list(waiting):
                if other != series and self._are_calibrated(waiting[other]):
                    yield from waiting.pop(other)
            pending = [*waiting.pop(series, []), volume]
            if series in self._without or self._are_calibrated(pending):
                yield from pending
            elif self._merge(volume):
                waiting[series] = pending
                if self._are_calibrated(pending):
                    yield from waiting.pop(series)
            else:
                self._without.add(series)
                yield from pending
        for pending in waiting.values():
            yield from pending

    def of(self, volume: KSpaceVolume, phase: int) -> Calibration:
        """Return the calibration lines of one cardiac phase of a volume."""
        series = (*volume.key[1:], phase)
        sources: tuple[Callable[[], Calibration | None], ...] = (
            lambda: self._separate.calibration(volume),
            lambda: Calibration(
                _central(volume.kspace[..., phase], volume.sampled[..., phase] > 0), ("own", volume.key.repetition)
            ),
            lambda: self._kept.get(series) or self._of_others(volume),
            lambda: self._merged_of(volume, phase),
            lambda: self._of_other_scan(volume),
        )
        best = Calibration(volume.kspace[:, :0, :0, :, 0])
        for source in sources:
            found = source()
            if found is not None and found.rows > best.rows:
                best = found
                if best.rows >= FEWEST:
                    break
        if best.origin[:1] == ("own",) and best.rows >= FEWEST:
            self._kept.pop(series, None)  # the newest is last
            self._kept[series] = best
        return best

    def _of_others(self, volume: KSpaceVolume) -> Calibration | None:
        """Return the newest lines of the slice with another contrast, set or phase."""
        place, shape = (volume.key.encoding_space_ref, volume.key.slice), volume.kspace.shape
        for series, found in reversed(self._kept.items()):
            if series[:2] == place and (len(found.block), found.block.shape[3]) == (shape[0], shape[3]):
                return found
        return None

    def _are_calibrated(self, volumes: list[KSpaceVolume]) -> bool:
        return all(
            _is_complete(volume, phase) or self.of(volume, phase).rows >= FEWEST
            for volume in volumes
            for phase in range(len(volume.heads))
        )

    def _of_other_scan(self, volume: KSpaceVolume) -> Calibration | None:
        if not self._asked:
            self._asked = True
            if (measurement := self._stored("SenMap")) is not None:
                self._other_scan = _Readouts(measurement.header, self._warn, of_other_scan=True)
                for readout in map(self._whitened, measurement.readouts):
                    if is_imaging(readout) or is_calibration_only(readout):
                        self._other_scan.add(readout)
        return None if self._other_scan is None else self._other_scan.calibration(volume)

    def _merge(self, volume: KSpaceVolume) -> bool:
        """Merge the lines of successive repetitions, the newest one of each place; returns False if none was new."""
        any_new = False
        for phase in range(len(volume.heads)):
            key = (*volume.key[1:], phase)
            before = self._merged.get(key)
            if before is None or before.shape != volume.kspace.shape[:-1]:
                before = np.zeros_like(volume.kspace[..., phase])
            sampled = volume.sampled[..., phase] > 0
            any_new |= bool((sampled & ~np.any(before, axis=(0, 3))).any())
            self._merged[key] = np.where(sampled[..., np.newaxis], volume.kspace[..., phase], before)
        return any_new

    def _merged_of(self, volume: KSpaceVolume, phase: int) -> Calibration | None:
        merged = self._merged.get((*volume.key[1:], phase))
        return None if merged is None else Calibration(_central(merged, np.any(merged, axis=(0, 3))), ("merged",))


class _Readouts:
    """Calibration readouts of a scan, by what they were acquired for.

    Parameters
    ----------
    metadata
        Header of the scan that they come from.
    warn
        Called with a text for the client.
    of_other_scan
        Slices may be numbered in another way than the image's: the nearest one is taken.
    """

    def __init__(self, metadata: Any, warn: Callable[[str], None], of_other_scan: bool = False) -> None:
        self._metadata, self._warn, self._of_other_scan = metadata, warn, of_other_scan
        self._readouts: dict[Key, list[Any]] = {}  # without the repetition
        self._placed: dict[tuple[Key, Any], Calibration | None] = {}  # by key and image; None: they do not fit
        self._number = itertools.count()

    def add(self, readout: Any) -> None:
        """Keep a readout; the first one of another repetition, or after an image was made, begins a new block."""
        idx = readout.idx
        key = Key(0, readout.encoding_space_ref, idx.slice, idx.contrast, idx.set)
        mine = self._readouts.setdefault(key, [])
        used = [each for each in self._placed if each[0] == key]
        if used or (mine and mine[-1].idx.repetition != idx.repetition):
            mine.clear()
        for each in used:
            del self._placed[each]
        mine.append(readout)

    def calibration(self, volume: KSpaceVolume) -> Calibration | None:
        """Return the lines for a volume: of its slice, if possible of its contrast, set and encoding space."""
        wanted = volume.key._replace(repetition=0)
        image = (wanted.encoding_space_ref, wanted.slice, volume.kspace.shape[:4])
        for key in sorted(self._readouts, key=lambda key: self._difference(key, volume)):
            first = self._readouts[key][0]
            if first.active_channels != len(volume.kspace) or (key.slice != wanted.slice and not self._of_other_scan):
                continue
            if (key, image) not in self._placed:
                self._placed[key, image] = self._place(key, volume)
            if (found := self._placed[key, image]) is not None:
                return found
        return None

    def _place(self, key: Key, volume: KSpaceVolume) -> Calibration | None:
        try:
            check_geometry(self._readouts[key][0], volume)
            block = _central(*place_calibration(self._readouts[key], self._metadata, volume))
        except UnusableCalibrationError as error:
            self._warn(f"calibration lines cannot be used for slice {volume.key.slice}: {error}")
            return None
        return Calibration(block, ("separate", self._of_other_scan, next(self._number)))

    def _difference(self, key: Key, volume: KSpaceVolume) -> tuple[float, ...]:
        """Order of preference: the nearest slice, then the same slice number, contrast, set and encoding space."""
        distance = 0.0
        if self._of_other_scan:
            apart = np.subtract(self._readouts[key][0].position, volume.heads[0].position)
            distance = round(float(np.linalg.norm(apart)), 1)
        names = ("slice", "contrast", "set", "encoding_space_ref")
        return distance, *(getattr(key, name) != getattr(volume.key, name) for name in names)


def _is_complete(volume: KSpaceVolume, phase: int) -> bool:
    """True if no line is missing between acquired ones, so that there is nothing to calibrate for."""
    sampled = volume.sampled[..., phase] > 0
    return bool((sampled == acquired_region(sampled)).all())


def _central(kspace: Block, sampled: NDArray[np.bool_]) -> Block:
    """Block [coil, partition, row, sample] of neighbouring lines round the centre; empty when that was not acquired."""
    partitions, rows = calibration_block(sampled)
    return kspace[:, partitions, rows]


def check_geometry(readout: Any, volume: KSpaceVolume) -> None:
    """Check that a calibration readout has the directions and the position of the image, as far as both say them.

    Raises
    ------
    UnusableCalibrationError
        When it has not.
    """
    head = volume.heads[0]
    for name in ("read_dir", "phase_dir", "slice_dir"):
        theirs, ours = (np.array(getattr(each, name), float) for each in (readout, head))
        length = np.linalg.norm(theirs) * np.linalg.norm(ours)
        if length > 0 and theirs @ ours < PARALLEL * length:
            raise UnusableCalibrationError(
                f"their {name} is {theirs.round(3).tolist()}, its own {ours.round(3).tolist()}"
            )
    theirs, ours = np.array(readout.position, float), np.array(head.position, float)
    field_of_view = extent(volume.encoding.encodedSpace.fieldOfView_mm, "x")
    if field_of_view and np.linalg.norm(theirs - ours) > POSITION_TOLERANCE * field_of_view:
        raise UnusableCalibrationError(
            f"their position is {theirs.round(1).tolist()} mm, its own {ours.round(1).tolist()} mm"
        )


def place_calibration(
    readouts: Iterable[ismrmrd.Acquisition], metadata: Any, volume: KSpaceVolume
) -> tuple[Block, NDArray[np.bool_]]:
    """Place calibration readouts, of this scan or another, in the matrix of a volume.

    Parameters
    ----------
    readouts
        One at least, with the same number of channels.
    metadata
        Header of the scan that they come from.
    volume
        The image's. Matrix sizes may differ, the field of view may not.

    Returns
    -------
    kspace
        complex64 [channel, partition, row, sample], zeros where there are none.
    sampled
        [partition, row], where there is a line.

    Raises
    ------
    UnusableCalibrationError
        When the field of view is another one, one is 2-D and the other 3-D, no readout has a place, or the header does
        not say.
    """
    readouts = list(readouts)
    encodings = getattr(metadata, "encoding", None) or []
    if not encodings:
        raise UnusableCalibrationError("their header has no encoding")
    own = encodings[min(readouts[0].encoding_space_ref, len(encodings) - 1)]
    columns, rows, partitions = volume.columns.points, volume.rows.points, volume.partitions.points
    spaces = (own.encodedSpace.fieldOfView_mm, volume.encoding.encodedSpace.fieldOfView_mm)
    for axis in "xyz" if partitions > 1 else "xy":
        theirs, ours = (extent(space, axis) for space in spaces)
        if theirs and ours and abs(theirs - ours) > FIELD_OF_VIEW_TOLERANCE * ours:
            raise UnusableCalibrationError(f"their field of view along {axis} is {theirs:g} mm, its own {ours:g} mm")
    if partitions == 1 and len({readout.idx.kspace_encode_step_2 for readout in readouts}) > 1:
        raise UnusableCalibrationError("they are of a 3-D scan, the image is 2-D")
    sizes = (own.encodedSpace.matrixSize.y, own.encodedSpace.matrixSize.z if partitions > 1 else 1)
    first_row, first_partition = (
        size // 2 - own_size // 2 + first_index(own, f"kspace_encoding_step_{step}", own_size)
        for step, size, own_size in zip((1, 2), (rows, partitions), sizes, strict=True)
    )
    kspace = np.zeros((readouts[0].active_channels, partitions, rows, columns), np.complex64)
    count = np.zeros(kspace.shape[1:], np.uint32)
    for readout in readouts:
        row = readout.idx.kspace_encode_step_1 + first_row
        partition = (readout.idx.kspace_encode_step_2 + first_partition) if partitions > 1 else 0
        add_readout(readout, kspace, count, partition, row)
    kspace /= np.maximum(count, 1)
    sampled = np.any(count, axis=2)
    if not sampled.any():
        raise UnusableCalibrationError("none of them has a place in the image's matrix")
    return kspace, sampled
