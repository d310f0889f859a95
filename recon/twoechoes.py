"""Field map from a scan of two echoes, Cartesian or not: the phase between them, over the time between them.

The product of the second echo and the conjugate of the first is summed over coils, which weights each with its signal,
and smoothed. Its phase is -2 pi df dTE, in the sign convention of `fieldterms`. It is unwrapped from the brightest
pixel outwards, brighter pixels first, so that paths go through signal. Pixels darker than `MASK` have no value.
Regions that no signal connects begin with the value that is nearest to zero.

Reference: Jezzard and Balaban, Magn Reson Med 1995;34:65, doi 10.1002/mrm.1910340111.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrdio.dependencies import Dependency
from recon import cartesian, noncartesian
from recon.fieldmap import FieldMapError, PlacedMap, placed

logger = logging.getLogger(__name__)

KIND = "FieldMap"  # that a header names a scan of two echoes by
SMOOTHING = 1.0  # standard deviation of the Gaussian [pixels]
MASK = 0.1  # of the brightest pixels (99th percentile of the magnitude)
COUNTERS = ("contrast", "set", "repetition")  # that tell echoes apart


def measured(
    measurement: Dependency, metafile_folders: Sequence[Path], tell: Callable[[str], None], warn: Callable[[str], None]
) -> PlacedMap:
    """Make the map of a scan of two echoes.

    Parameters
    ----------
    measurement
        The scan: its echo times are the first two of ``sequenceParameters.TE``, its echoes differ in `COUNTERS`.
    metafile_folders
        Where the trajectory of a non-Cartesian scan is looked for.
    tell, warn
        Called with a text for the client.

    Raises
    ------
    FieldMapError
        It is no scan of two echoes.
    """
    name = measurement.measurement
    parameters = getattr(measurement.header, "sequenceParameters", None)
    times = list(getattr(parameters, "TE", None) or [])
    if len(times) < 2 or not 0 < times[0] < times[1]:
        raise FieldMapError(f"the header of the scan {name} has TE {times}: expected two echo times that rise [ms]")
    between = 1e-3 * (times[1] - times[0])
    slices: dict[int, dict[int, tuple[NDArray[np.complex64], Any, Any]]] = {}
    try:
        counter = _counter(measurement)
        for image, head, field_of_view in _images(measurement, metafile_folders):
            echoes = slices.setdefault(head.idx.slice, {})
            echoes.setdefault(getattr(head.idx, counter), (image, head, field_of_view))
    except FieldMapError:
        raise
    except (ValueError, TypeError) as error:
        raise FieldMapError(f"the scan of two echoes {name} cannot be reconstructed: {error}") from error
    complete = {number: sorted(echoes.items()) for number, echoes in slices.items() if len(echoes) >= 2}
    if not complete:
        raise FieldMapError(f"the scan {name} has two echoes of no slice")
    planes, heads = [], []
    for _, ((_, first), (_, second), *_) in sorted(complete.items()):
        planes.append(field_of(first[0], second[0], between))
        heads.append(first[1])
    made = placed(f"of the scan {name}", planes, heads, first[2], warn)
    known = np.concatenate([plane[np.isfinite(plane)] for plane in planes])
    tell(
        f"field map of the scan {name}: {len(planes)} slice(s) of {planes[0].shape[0]} x {planes[0].shape[1]} pixels, "
        f"echoes {1e3 * between:g} ms apart, {np.percentile(known, 2):.0f} to {np.percentile(known, 98):.0f} Hz"
    )
    return made


def field_of(first: NDArray[np.complex64], second: NDArray[np.complex64], between: float) -> NDArray[np.float32]:
    """Off-resonance [row, column] [Hz] from two echoes; not a number where there is no signal.

    Parameters
    ----------
    first, second
        Images [coil, row, column].
    between
        Time from the first echo to the second [s].
    """
    product = (second * first.conj()).sum(axis=0)
    smooth = ndimage.gaussian_filter(product.real, SMOOTHING) + 1j * ndimage.gaussian_filter(product.imag, SMOOTHING)
    magnitude = np.sqrt(np.abs(smooth))
    mask = magnitude > MASK * np.percentile(magnitude, 99)
    phase = unwrapped(np.angle(smooth), np.where(mask, magnitude, 0))
    return np.where(mask, -phase / (2 * np.pi * between), np.nan).astype(np.float32)


def unwrapped(phase: NDArray[np.floating], quality: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unwrap a phase [row, column] [rad] from the pixel of the best quality outwards; quality 0 is left alone."""
    result = np.array(phase, float)
    done = quality <= 0
    while not done.all():  # regions that do not touch
        start = int(np.argmax(np.where(done, -1, quality)))
        done.flat[start] = True
        waiting = [(-float(quality.flat[start]), start, float(result.flat[start]))]
        while waiting:
            _, place, before = heapq.heappop(waiting)
            value = result.flat[place] + 2 * np.pi * round((before - result.flat[place]) / (2 * np.pi))
            result.flat[place] = value
            row, column = divmod(place, phase.shape[1])
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < phase.shape[0] and 0 <= c < phase.shape[1] and not done[r, c]:
                    done[r, c] = True
                    heapq.heappush(waiting, (-float(quality[r, c]), r * phase.shape[1] + c, value))
    return result


def _counter(measurement: Dependency) -> str:
    """Counter that tells the echoes apart."""
    for counter in COUNTERS:
        if len({getattr(readout.idx, counter) for readout in measurement.readouts}) > 1:
            return counter
    raise FieldMapError(
        f"the scan {measurement.measurement} has one echo: its readouts differ in none of the counters "
        f"{', '.join(COUNTERS)}"
    )


def _images(measurement: Dependency, folders: Sequence[Path]) -> Iterator[tuple[NDArray[np.complex64], Any, Any]]:
    """Yield images [coil, row, column], with the header of a readout and the field of view (x, y, z) [mm]."""
    header = measurement.header
    encodings = getattr(header, "encoding", None)
    if not encodings:
        raise FieldMapError(f"the header of the scan {measurement.measurement} has no encoding")
    if encodings[0].trajectory.value == "cartesian":
        for planes in cartesian.sort_repetitions(measurement.readouts, header, logger.warning):
            for plane in planes:
                yield cartesian.to_image(plane)[..., 0], plane.heads[0], plane.field_of_view
        return
    for slabs in noncartesian.sort_repetitions(measurement.readouts, header, folders, logger.info, logger.warning):
        for slab in slabs:
            images = noncartesian.to_image(slab)
            for number, head in enumerate(slab.image_heads):
                yield images[:, number], head, slab.field_of_view
