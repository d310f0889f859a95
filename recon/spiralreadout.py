"""One readout of a spiral scan, as reconstructions take it."""

from dataclasses import dataclass

import ismrmrd
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SpiralReadout:
    """One imaging readout of a spiral scan.

    Attributes
    ----------
    samples
        complex64 [coil, sample], without the pre-discarded ones.
    column
        Which arm of the trajectory it is.
    number
        Which imaging readout of the scan it is, from 0, lost ones counted.
    head
        Its header.
    arrival
        When it arrived, on the clock of the scan's ledger [s].
    usable
        Whether it is a measurement, see `outliers`; else it only keeps its place, and its samples are zeros.
    k
        K-space [sample, (kx, ky)] [1/m] of an arm that the scan's trajectory has not: a readout brought it itself,
        later than the first ones.
    moment
        When it was acquired, from the first one on [s]; 0 for all where nothing tells it, see `latency.ScanClock`.
    """

    samples: NDArray[np.complex64]
    column: int
    number: int
    head: ismrmrd.AcquisitionHeader
    arrival: float
    usable: bool = True
    k: NDArray[np.float64] | None = None
    moment: float = 0.0

    @property
    def orientation(self) -> tuple[float, ...]:
        """Direction cosines, by which trajectories that the gradient response has corrected differ."""
        return (*self.head.read_dir, *self.head.phase_dir, *self.head.slice_dir)
