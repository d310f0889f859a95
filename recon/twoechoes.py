"""Field map from a scan of two echoes, Cartesian or not: the phase between them, over the time between them.

The product of the second echo and the conjugate of the first is summed over coils, which weights each with its signal,
and smoothed. Its phase is -2 pi df dTE, in the sign convention of `fieldterms`. In each slice, it is unwrapped from the
brightest pixel outwards, brighter pixels first, so that paths go through signal. Pixels darker than `MASK` have no
value. Regions that no signal connects begin with the value that is nearest to zero.

Missing lines of an accelerated Cartesian scan are filled by GRAPPA, which leaves each coil its phase.

Reference: Jezzard and Balaban, Magn Reson Med 1995;34:65, doi 10.1002/mrm.1910340111.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ismrmrd.xsd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrdio.dependencies import Dependency
from recon import cartesian, noncartesian
from recon.calibrationlines import CalibrationLines
from recon.fieldmap import FieldMapError, PlacedMap, placed
from recon.parallel import ParallelImaging
from recon.reconspace import ReconSpace
from recon.telling import once
from recon.volumes import sort_volumes

logger = logging.getLogger(__name__)

KIND = "FieldMap"  # that a header names a scan of two echoes by
SMOOTHING = 1.0  # standard deviation of the Gaussian [pixels]
MASK = 0.1  # of the brightest pixels (99th percentile of the magnitude of the brightest slice)
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
    warn_of = once(lambda text: warn(f"the scan of two echoes {name}: {text}"))
    try:
        counter = _counter(measurement)
        for image, head, field_of_view in _images(measurement, metafile_folders, warn_of):
            echoes = slices.setdefault(head.idx.slice, {})
            echoes.setdefault(getattr(head.idx, counter), (image, head, field_of_view))
    except FieldMapError:
        raise
    except (ValueError, TypeError) as error:
        raise FieldMapError(f"the scan of two echoes {name} cannot be reconstructed: {error}") from error
    complete = {number: sorted(echoes.items()) for number, echoes in slices.items() if len(echoes) >= 2}
    if not complete:
        raise FieldMapError(f"the scan {name} has two echoes of no slice")
    products, heads = [], []
    for _, ((_, first), (_, second), *_) in sorted(complete.items()):
        products.append(product_of(first[0], second[0]))
        heads.append(first[1])
    brightest = max(map(brightness, products))
    planes = [field_of(product, between, brightest) for product in products]
    made = placed(f"of the scan {name}", planes, heads, first[2], warn)
    known = np.concatenate([plane[np.isfinite(plane)] for plane in planes])
    tell(
        f"field map of the scan {name}: {len(planes)} slice(s) of {planes[0].shape[0]} x {planes[0].shape[1]} pixels, "
        f"echoes {1e3 * between:g} ms apart, {np.percentile(known, 2):.0f} to {np.percentile(known, 98):.0f} Hz"
    )
    return made


def product_of(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> NDArray[np.complexfloating]:
    """Product of two echoes [coil, row, column], summed over coils, smoothed: [row, column]."""
    product = (second * first.conj()).sum(axis=0)
    return ndimage.gaussian_filter(product.real, SMOOTHING) + 1j * ndimage.gaussian_filter(product.imag, SMOOTHING)


def brightness(product: NDArray[np.complexfloating]) -> float:
    """Magnitude of the brightest pixels of a slice, by the product of its echoes [row, column]."""
    return float(np.percentile(np.sqrt(np.abs(product)), 99))


def field_of(product: NDArray[np.complexfloating], between: float, brightest: float) -> NDArray[np.float32]:
    """Off-resonance [row, column] [Hz] from two echoes; not a number where there is no signal.

    Parameters
    ----------
    product
        Of the echoes [row, column], see `product_of`.
    between
        Time from the first echo to the second [s].
    brightest
        The largest `brightness` of all slices.
    """
    magnitude = np.sqrt(np.abs(product))
    mask = magnitude > MASK * brightest
    phase = unwrapped(np.angle(product), np.where(mask, magnitude, 0))
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


def _images(
    measurement: Dependency, folders: Sequence[Path], warn: Callable[[str], None]
) -> Iterator[tuple[NDArray[np.complex64], Any, Any]]:
    """Yield images [coil, row, column], with the header of a readout and the field of view (x, y, z) [mm]."""
    header = measurement.header
    encodings = getattr(header, "encoding", None)
    if not encodings:
        raise FieldMapError(f"the header of the scan {measurement.measurement} has no encoding")
    if encodings[0].trajectory == ismrmrd.xsd.trajectoryType.CARTESIAN:
        yield from _cartesian_images(measurement, warn)
        return
    for slabs in noncartesian.sort_repetitions(measurement.readouts, header, folders, logger.info, warn):
        for slab in slabs:
            images = noncartesian.to_image(slab)
            for number, head in enumerate(slab.image_heads):
                yield images[:, number], head, slab.field_of_view


def _cartesian_images(
    measurement: Dependency, warn: Callable[[str], None]
) -> Iterator[tuple[NDArray[np.complex64], Any, Any]]:
    """As `_images`, of a Cartesian scan."""
    lines = CalibrationLines(measurement.header, warn=warn)
    imaging = ParallelImaging("grappa", tell=logger.info, warn=warn)
    for volume in lines.awaited(sort_volumes(measurement.readouts, measurement.header, warn, lines.add)):
        space, kspace = ReconSpace(volume), volume.kspace[..., 0]
        unit = float(np.abs(kspace).max()) or 1.0  # energies neither overflow nor vanish
        calibration = lines.of(volume, 0)
        filled = imaging.fill(
            volume.key[1:],
            space.without_oversampling(kspace / unit),
            volume.sampled[..., 0] > 0,
            space.without_oversampling(calibration.block / unit) if calibration.rows else None,
        )
        images = space.to_image(filled.kspace)  # [coil, partition, row, column]
        for number, head in enumerate(cartesian.partition_heads(volume, 0)):
            yield images[:, number], head, cartesian.field_of_view(volume)
