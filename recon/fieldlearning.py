"""Learning the fields of slices in the background, from a scan whose images go on meanwhile."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from recon.fieldcorrection import Correction
from recon.readouts import FIELD_ARMS
from recon.spiral import SpiralScan
from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

ARMS = 55  # readouts that a field is learned from, or as many as fill k-space, if that is more, up to `FIELD_ARMS`


@dataclass
class _Slice:
    """Arms of a slice that a field is to be learned from, and what has been learned."""

    readouts: dict[int, SpiralReadout] = field(default_factory=dict)  # the newest of each arm
    count: int = 0
    learning: Future[tuple[bool, Correction | None]] | None = None


class FieldLearner:
    """Learns the field of each slice, again and again.

    Parameters
    ----------
    scan
        Where the readouts come from.
    in_time
        Leaves out terms that there is no time for; called in the background with a correction and a readout.
    background
        Works meanwhile.
    """

    def __init__(
        self,
        scan: SpiralScan,
        in_time: Callable[[Correction | None, SpiralReadout], Correction | None],
        background: ThreadPoolExecutor,
    ) -> None:
        self._scan, self._in_time, self._background = scan, in_time, background
        self._slices: dict[int, _Slice] = {}

    def add(self, readout: SpiralReadout) -> None:
        """Take a readout; when there are enough, the field is learned from them if it is not known or no longer new."""
        scan = self._scan
        if not scan.learns_field or not readout.usable or readout.k is not None:
            return
        here = self._slices.setdefault(readout.head.idx.slice, _Slice())
        if here.learning is not None or scan.fields is None or not scan.fields.is_due(readout.head):
            return
        if here.readouts and scan.place_of(readout) != scan.place_of(next(iter(here.readouts.values()))):
            here.readouts, here.count = {}, 0
        here.readouts[readout.column] = readout
        here.count += 1
        if here.count >= min(max(ARMS, scan.designed.interleaves), FIELD_ARMS):
            taken, here.readouts, here.count = here.readouts, {}, 0
            here.learning = self._background.submit(contextvars.copy_context().run, self._learn, taken)

    def news(self, number: int) -> tuple[bool, Correction | None]:
        """Tell whether a slice has a new correction, and which."""
        here = self._slices.get(number)
        if here is None or here.learning is None or not here.learning.done():
            return False, None
        learned, here.learning = here.learning, None
        return learned.result()

    def _learn(self, readouts: dict[int, SpiralReadout]) -> tuple[bool, Correction | None]:
        columns = np.array(sorted(readouts))
        samples = np.stack([readouts[column].samples for column in columns.tolist()], axis=1)
        first = readouts[int(columns[0])]
        if not self._scan.learn_field(first, columns, samples):
            return False, None
        return True, self._in_time(self._scan.correction(first), first)


@contextmanager
def learning(
    scan: SpiralScan, in_time: Callable[[Correction | None, SpiralReadout], Correction | None]
) -> Iterator[FieldLearner]:
    """Open a `FieldLearner`; what it has not begun at the end is not waited for."""
    background = ThreadPoolExecutor(1, "learning the field")
    try:
        yield FieldLearner(scan, in_time, background)
    finally:
        background.shutdown(cancel_futures=True)
