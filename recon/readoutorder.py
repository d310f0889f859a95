"""Order in which a scanner plays the readouts of a sequence, also in segments and where the sequence is repeated."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """One of the `pieces` (`number`, from 0) in which the readout `readout` of the scan arrives.

    `place` is the readout's in the order.
    """

    readout: int
    place: int
    number: int
    pieces: int


@dataclass(frozen=True, eq=False)
class ReadoutOrder:
    """Readouts of one run of a sequence, without those that labels declare none of the image's.

    Attributes
    ----------
    arms
        Arm of each readout; -1 for one that is none of the image's [readout].
    samples
        Samples of each readout [readout].
    first_run_only
        True for a readout that only the first run has: label ONCE = 1 [readout].
    kz
        Of each readout [1/m] [readout].
    segment
        Samples of each of the equal segments in which a scanner sends readouts that are longer; 0: it sends them whole.
    """

    arms: NDArray[np.int64]
    samples: NDArray[np.int64]
    first_run_only: NDArray[np.bool_]
    kz: NDArray[np.float64]
    segment: int = 0

    def __len__(self) -> int:
        return len(self.arms)

    @property
    def acquisitions(self) -> int:
        """Number of acquisitions in which the readouts of the first run arrive."""
        return int(self._totals[0][-1])

    def piece(self, number: int) -> Piece:
        """Find the readout that the imaging acquisition `number` of the scan, from 0, belongs to."""
        totals, later = self._totals
        before, within = 0, number
        if number >= totals[-1]:
            run, within = divmod(number - int(totals[-1]), int(later[-1]))
            before, totals = len(self) + run * len(later), later
        index = int(np.searchsorted(totals, within, side="right"))
        place = int(self._later_places[index]) if before else index
        pieces = int(self._pieces[place])
        return Piece(before + index, place, within - int(totals[index]) + pieces, pieces)

    @functools.cached_property
    def _later_places(self) -> NDArray[np.intp]:
        """Readouts of each run but the first."""
        return np.flatnonzero(~self.first_run_only) if not self.first_run_only.all() else np.arange(len(self))

    @functools.cached_property
    def _pieces(self) -> NDArray[np.int64]:
        """Number of segments of each readout."""
        split = (self.segment > 0) & (self.samples % max(self.segment, 1) == 0)
        return np.where(split, self.samples // max(self.segment, 1), 1)

    @functools.cached_property
    def _totals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Acquisitions up to the end of each readout of the first run, and of a later one."""
        return np.cumsum(self._pieces), np.cumsum(self._pieces[self._later_places])
