"""Truth of a simulated spiral scan: the state of the object at every readout, true frames, true coil maps.

Truth of a frame is not stored but drawn when it is asked for, from any list of readouts::

    truth = Truth.load("raw_truth.h5")
    frames = truth.frames([range(n, n + 7) for n in range(0, 336, 7)])  # [frame, y, x]
    maps = truth.maps()  # [coil, y, x]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulation.fields import OffResonance
from simulation.phantom import Coils
from simulation.spiralphantom import chest, coil_maps, raster

_LISTS = ("frequencies", "weights")


@dataclass(frozen=True, eq=False)
class Truth:
    """Truth of a scan; arrays are indexed by the number of the imaging readout, from 0, lost ones included.

    Attributes
    ----------
    matrix, pixel
        Pixels along each side of the designed image; pixel size [m].
    coils
        Sensitivities.
    time
        Since the first imaging readout [s], [readouts].
    scan_counter, column, slice, partition
        Of each readout: counter in its header, column of the metafile, slice, partition counter [readouts].
    received
        False for readouts that were lost [readouts].
    cardiac_phase, respiratory_phase
        Part of the heartbeat and of the breath that is over, 0 to below 1 [readouts].
    contraction, inhalation
        What the object looks like: 0 relaxed to 1 contracted, 0 exhaled to about 1 inhaled [readouts].
    level
        Height of each slice, or of each partition of a stack, -1 to 1 [slices].
    beats
        Times of heartbeats [s].
    actual_k
        K-space that was really sampled [arms, samples, (kx, ky)] [1/m]; the metafile holds the nominal one.
    still_object
        Parameters [ellipses, 6] of an object in place of the chest, which does not move; empty for the chest.
    still_frequencies
        Off-resonance of each of its ellipses [Hz]; empty: 0.
    off_resonance
        The values of `simulation.fields.OffResonance` [3] [Hz].
    """

    matrix: int
    pixel: float
    coils: Coils
    time: NDArray[np.floating]
    scan_counter: NDArray[np.int64]
    column: NDArray[np.int64]
    slice: NDArray[np.int64]
    partition: NDArray[np.int64]
    received: NDArray[np.bool_]
    cardiac_phase: NDArray[np.float64]
    respiratory_phase: NDArray[np.float64]
    contraction: NDArray[np.float64]
    inhalation: NDArray[np.float64]
    level: NDArray[np.float64]
    beats: NDArray[np.float64]
    actual_k: NDArray[np.float64]
    still_object: NDArray[np.float64]
    still_frequencies: NDArray[np.float64]
    off_resonance: NDArray[np.float64]

    def ellipses(self, readouts: Any, partition: int | None = None) -> NDArray[np.float64]:
        """Parameters [readouts, ellipses, 6] of the object at some readouts (indices or a slice).

        Of a stack they are those of one partition of the image.
        """
        here = self.slice[readouts]
        level = self.level[here if partition is None else np.full_like(here, partition)]
        if self.still_object.size:
            return np.broadcast_to(self.still_object, (level.size, *self.still_object.shape))
        return chest(self.contraction[readouts], self.inhalation[readouts], level, self.matrix * self.pixel)

    def frame(
        self, readouts: Iterable[int], matrix: int | None = None, partition: int | None = None
    ) -> NDArray[np.float64]:
        """True image: the mean over what the object looked like at some readouts.

        Parameters
        ----------
        readouts
            Their numbers.
        matrix
            Pixels along each side, of the same size; by default the designed number.
        partition
            Which one of a stack's image.

        Returns
        -------
        Density [y, x] in the scanner's orientation.
        """
        index = np.fromiter(readouts, np.int64)
        states, counts = np.unique(self.ellipses(index, partition), axis=0, return_counts=True)
        images = (n * raster(state, matrix or self.matrix, self.pixel) for state, n in zip(states, counts, strict=True))
        return sum(images) / index.size

    def frames(self, groups: Iterable[Iterable[int]], matrix: int | None = None) -> NDArray[np.float64]:
        """True images [frame, y, x] of several lists of readouts, see `frame`."""
        return np.stack([self.frame(group, matrix) for group in groups])

    def maps(self, matrix: int | None = None) -> NDArray[np.complex128]:
        """True sensitivities [coil, y, x] in the scanner's orientation, not normalised."""
        return coil_maps(self.coils, matrix or self.matrix, self.pixel)

    def field_map(self, matrix: int | None = None) -> NDArray[np.float64]:
        """True off-resonance [y, x] in the scanner's orientation [Hz]; outside of vials, that of the nearest one.

        Without concomitant fields. It is the same in all slices.
        """
        from scipy.ndimage import distance_transform_edt

        matrix = matrix or self.matrix
        total = OffResonance(*self.off_resonance).map(matrix)
        if not self.still_frequencies.size:
            return total
        parts = [raster(ellipse[np.newaxis], matrix, self.pixel) for ellipse in self.still_object]
        distances = [distance_transform_edt(part < 0.5) - part for part in parts]
        return total + self.still_frequencies[np.argmin(distances, axis=0)]

    def save(self, file: Path) -> None:
        """Write an HDF5 file; the maps of the designed image are in it for other programs."""
        import h5py

        with h5py.File(file, "w") as group:
            for field in fields(self):
                if field.name != "coils":
                    group[field.name] = getattr(self, field.name)
            for name in _LISTS:
                group[f"coils/{name}"] = np.array(getattr(self.coils, name))
            group["maps"] = self.maps()
            group["field_map"] = self.field_map()

    @classmethod
    def load(cls, file: Path | str) -> Truth:
        """Read what `save` wrote."""
        import h5py

        with h5py.File(file, "r") as group:
            values = {field.name: group[field.name][()] for field in fields(cls) if field.name != "coils"}
            lists = (tuple(map(tuple, group[f"coils/{name}"][()].tolist())) for name in _LISTS)
            coils = Coils(*lists)
        return cls(**values | {"matrix": int(values["matrix"]), "pixel": float(values["pixel"]), "coils": coils})
