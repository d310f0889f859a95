"""Calibration lines of an accelerated scan: from the image itself, from lines of their own, or from another scan."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrdio.dependencies import Dependency
from recon.mrdencoding import calibration_mode, first_index, is_calibration_only, is_imaging
from recon.sampling import calibration_block
from recon.volumes import KSpaceVolume, add_readout, axes_of

logger = logging.getLogger(__name__)

FEWEST = 8  # lines of a block that is preferred to what other sources have
FIELD_OF_VIEW_TOLERANCE = 0.01


class CalibrationLines:
    """Finds the calibration lines of each volume.

    In this order: lines that were acquired for calibration only, before the image or between its lines; the block of
    neighbouring lines round the k-space centre of the volume itself; in an interleaved scan, the lines of successive
    repetitions together; the stored calibration scan that the header names.

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
        self._metadata, self._whitened, self._stored, self._warn = metadata, whitened, stored, warn
        self._separate: dict[int, list[Any]] = {}  # readouts of each slice
        self._blocks: dict[int, NDArray[np.complex64] | None] = {}  # the same, in the matrix
        self._merged: dict[tuple[int, ...], NDArray[np.complex64]] = {}  # of interleaved repetitions
        self._asked = False
        self._metadata_of_separate = metadata

    def add(self, readout: Any) -> None:
        """Keep a readout that was acquired for calibration only; lines after an image belong to the next one."""
        number = readout.idx.slice
        if number in self._blocks:
            del self._blocks[number]
            self._separate.pop(number, None)
        self._separate.setdefault(number, []).append(readout)

    def awaited(self, volumes: Iterable[KSpaceVolume]) -> Iterator[KSpaceVolume]:
        """Yield volumes, each when it has its calibration lines: interleaved repetitions wait for those after them."""
        waiting: dict[tuple[int, ...], list[KSpaceVolume]] = {}
        for volume in volumes:
            phases = range(len(volume.heads))
            mode = calibration_mode(self._metadata, volume.key.encoding_space_ref)
            if mode == "interleaved" and any(_rows(self._own(volume, phase)) < FEWEST for phase in phases):
                pending = waiting.setdefault(volume.key[1:], [])
                pending.append(volume)
                if min(_rows(self._merge(volume, phase)) for phase in phases) >= FEWEST:
                    yield from pending
                    pending.clear()
            else:
                yield volume
        for pending in waiting.values():
            yield from pending

    def is_own(self, volume: KSpaceVolume, phase: int) -> bool:
        """Tell whether the volume itself has its calibration lines: each repetition is calibrated anew then."""
        return volume.key.slice not in self._separate and _rows(self._own(volume, phase)) >= FEWEST

    def block(self, volume: KSpaceVolume, phase: int) -> NDArray[np.complex64] | None:
        """Return the calibration lines of a volume, a block [coil, partition, row, sample]; None: there are none."""
        if (separate := self._of_slice(volume)) is not None:
            return separate
        own = self._own(volume, phase)
        if (merged := self._merged.get((*volume.key[1:], phase))) is not None and _rows(own) < FEWEST:
            own = _central_of_merged(merged)
        if _rows(own) < FEWEST and not self._asked:
            self._asked = True
            if (measurement := self._stored("SenMap")) is not None:
                for readout in map(self._whitened, measurement.readouts):
                    if is_imaging(readout) or is_calibration_only(readout):
                        self.add(readout)
                self._metadata_of_separate = measurement.header
                return self.block(volume, phase)
        return own if _rows(own) else None

    def _own(self, volume: KSpaceVolume, phase: int) -> NDArray[np.complex64]:
        return _central(volume.kspace[..., phase], volume.sampled[..., phase] > 0)

    def _of_slice(self, volume: KSpaceVolume) -> NDArray[np.complex64] | None:
        number = volume.key.slice
        if number not in self._blocks:
            readouts = [each for each in self._separate.get(number, []) if each.active_channels == len(volume.kspace)]
            if not readouts:
                return None
            placed = place_calibration(readouts, self._metadata_of_separate, volume.encoding)
            self._blocks[number] = None if placed is None else _central(*placed)
            if self._blocks[number] is None:
                self._warn("calibration lines are not used: they do not have the image's field of view, or no centre")
        return self._blocks[number]

    def _merge(self, volume: KSpaceVolume, phase: int) -> NDArray[np.complex64]:
        """Lines of successive repetitions, the newest one of each place."""
        key = (*volume.key[1:], phase)
        before = self._merged.get(key)
        if before is None or before.shape != volume.kspace.shape[:-1]:
            before = np.zeros_like(volume.kspace[..., phase])
        sampled = volume.sampled[..., phase] > 0
        merged = np.where(sampled[..., np.newaxis], volume.kspace[..., phase], before)
        self._merged[key] = merged
        return _central_of_merged(merged)


def _rows(block: NDArray[Any]) -> int:
    return block.shape[2] if block.size else 0


def _central(kspace: NDArray[np.complex64], sampled: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Block [coil, partition, row, sample] of neighbouring lines round the centre; empty when that was not acquired."""
    partitions, rows = calibration_block(sampled)
    return kspace[:, partitions, rows]


def _central_of_merged(merged: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The same of k-space that is zero where nothing was acquired."""
    return _central(merged, np.any(merged, axis=(0, 3)))


def place_calibration(
    readouts: Iterable[Any], metadata: Any, encoding: Any
) -> tuple[NDArray[np.complex64], NDArray[np.bool_]] | None:
    """Place calibration readouts, of this scan or another, in the matrix of an encoding.

    Parameters
    ----------
    readouts
        One at least, with the same number of channels.
    metadata
        Header of the scan that they come from.
    encoding
        The image's. Sizes may differ, the field of view may not.

    Returns
    -------
    kspace
        complex64 [channel, partition, row, sample], zeros where there are none.
    sampled
        [partition, row], where there is a line.
    None when the field of view is another one, or no readout has a place.
    """
    readouts = list(readouts)
    own = metadata.encoding[min(readouts[0].encoding_space_ref, len(metadata.encoding) - 1)]
    theirs, ours = own.encodedSpace.fieldOfView_mm, encoding.encodedSpace.fieldOfView_mm
    if any(
        abs(getattr(theirs, axis) - getattr(ours, axis)) > FIELD_OF_VIEW_TOLERANCE * getattr(ours, axis)
        for axis in "xy"
    ):
        return None
    columns, rows, partitions = (axis.points for axis in axes_of(encoding, readouts[0]))
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
    return (kspace, sampled) if sampled.any() else None
