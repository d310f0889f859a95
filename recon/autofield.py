"""Off-resonance of a slice from its own data: the field whose correction makes the image the sharpest.

The image is made as it would be in a uniform field of each frequency of a range. Where that is the true one, a pixel
has the phase of the object; where it is not, it is blurred, and has contributions of other phases from around it. So
the imaginary part, after the phase of a blur-free image of low resolution has been removed, is least at the true
frequency (Noll 1992). Low resolution means the samples around the centre of k-space, acquired within a short time.

Over a small region, that finds a frequency only where there is structure. Therefore the whole image decides first,
about a constant and a linear field (Irarrazabal 1996). Regions then add what is left, as far as it makes the imaginary
part clearly less, and regions with much signal decide for those around them.

It is for arms that begin in the centre of k-space. In a radial scan off-resonance hardly changes the imaginary part,
and rosettes come by the centre at all times: there `FieldEstimate.blur` is infinite, and nothing is corrected.

References: Noll et al., IEEE Trans Med Imaging 1992;11:319, doi 10.1109/42.158937; Irarrazabal et al., Magn Reson Med
1996;35:278, doi 10.1002/mrm.1910350221; Man et al., Magn Reson Med 1997;37:906, doi 10.1002/mrm.1910370616.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from recon.arrays import to_host
from recon.concomitant import SAME_PLACE
from recon.conditioning import virtual_coils
from recon.fieldplan import FieldPlan
from recon.fieldterms import Phase, find_terms

BAND = 2.0  # [cycles] that a field may turn spins by in the longest time of an arm, in both directions
LARGEST = 400.0  # [Hz], likewise
FREQUENCIES = 65  # that images are made for
ACCURACY = 0.02  # of the images at all these frequencies
VIRTUAL_COILS = 4  # that carry most of the signal
LOW = 0.2  # of the largest |k|, up to which samples make the image of low resolution
SOON = 0.25  # of the longest time of an arm, likewise: rosettes come by the centre again and again
OBJECT = 0.05  # of the largest magnitude; darker pixels do not decide about the linear field
CONSTANTS = np.linspace(-0.5, 0.5, 9)  # of the band, to begin with
GROWTHS = np.linspace(-0.75, 0.75, 7)  # over the image, likewise
SPARSE = 7  # every so many pixels decide at first
REGION = 0.05  # radius of regions, of the image
RESERVE = 0.1  # imaginary part, over that of the uncorrected image, that a region's deviation by 1 cycle has to save
REGIONS = 0.05  # [cycles], root mean square, that regions have to add; where there is no field they may add half of it
FLOOR = 1e-3  # power of the signal, over the largest, below which regions decide little
LEAST = 0.02  # [cycles]; what turns less is left alone
SHARPER = 0.97  # imaginary part, over that of the uncorrected image, that a map has to reach
APART = 0.5  # of the longest time; arms that are in the centre as late as that, or as early, do not begin there
UPDATE = 10.0  # [s], after which a field is learned again
CHANGE = 0.03  # [cycles], by which it has to differ then


class NoSignalError(ValueError):
    """There are no data that a field could be learned from."""


@dataclass(frozen=True, eq=False)
class FieldEstimate:
    """Off-resonance of a slice.

    Attributes
    ----------
    hertz
        The map, float32 [row, column] [Hz], in the sign convention of `fieldterms`.
    linear
        Its value in the middle of the image, and its growth over the columns and over the rows of the image [Hz].
    smooth
        Root mean square of what regions add, weighted by the signal's power [Hz].
    turn
        Root mean square of the phase that the whole makes in the longest time of an arm [cycles].
    blur
        Imaginary part that is left, over that without correction; infinite where the arms do not begin in the centre.
    power
        Of the signal [row, column], in any unit.
    longest
        Time that an arm takes from the centre of k-space on [s].
    """

    hertz: NDArray[np.float32]
    linear: tuple[float, float, float]
    smooth: float
    turn: float
    blur: float
    power: NDArray[np.floating]
    longest: float

    @property
    def useful(self) -> bool:
        """True where the field is one that blurs, and the map makes the image sharper."""
        return self.turn >= LEAST and self.blur <= SHARPER

    def differs(self, other: FieldEstimate) -> bool:
        """True where it is worth while to correct anew, by this in place of another one."""
        if self.useful != other.useful or self.hertz.shape != other.hertz.shape:
            return True
        change = math.sqrt(np.average((self.hertz - other.hertz) ** 2, weights=self.power))
        return self.useful and change * self.longest > CHANGE

    def __str__(self) -> str:
        middle, across, down = self.linear
        regions = f", {self.smooth:.0f} Hz rms besides" if self.smooth else ""
        text = (
            f"off-resonance by the scan's own data {middle:.0f} Hz in the middle, {across:+.0f} Hz over the columns "
            f"and {down:+.0f} Hz over the rows{regions}, {self.turn:.2f} cycles in a readout; "
            f"imaginary part {self.blur:.2f} of what it was"
        )
        if math.isinf(self.blur):
            return "off-resonance is not corrected: a scan tells it itself if its arms begin in the centre of k-space"
        return text if self.useful else f"no off-resonance that blurs was found ({text}): nothing is corrected"


class AutoFieldMap:
    """Fields that were learned, plane by plane; a map for `fieldcorrection.FieldCorrection`."""

    def __init__(self) -> None:
        self._known: dict[tuple[float, ...], _Known] = {}  # by slice counter and orientation

    def on_grid(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> NDArray[np.float32] | None:
        """Off-resonance [row, column] [Hz] of the plane of a readout; None: nothing is to be corrected there."""
        found = self._of(head)
        return found.estimate.hertz if found and found.estimate.useful and found.estimate.hertz.shape == shape else None

    def is_due(self, head: ismrmrd.AcquisitionHeader) -> bool:
        """True where a plane's field is not known, or no longer new."""
        found = self._of(head)
        return found is None or time.monotonic() - found.since > UPDATE

    def keep(self, head: ismrmrd.AcquisitionHeader, estimate: FieldEstimate) -> bool:
        """Keep what was learned about a plane; True where that changes what is corrected."""
        before = self._of(head)
        same = before is not None and not estimate.differs(before.estimate)
        kept = before.estimate if before is not None and same else estimate
        self._known[_plane(head)] = _Known(kept, time.monotonic(), tuple(head.position))
        return not same and (before is None or estimate.useful or before.estimate.useful)

    def _of(self, head: ismrmrd.AcquisitionHeader) -> _Known | None:
        """The newest of a plane, unless it has moved since."""
        found = self._known.get(_plane(head))
        return found if found and math.dist(found.position, head.position) <= SAME_PLACE else None


@dataclass(frozen=True, eq=False)
class _Known:
    """Estimate, when it was made, and the position [mm] of its plane."""

    estimate: FieldEstimate
    since: float
    position: tuple[float, ...]


def _plane(head: ismrmrd.AcquisitionHeader) -> tuple[float, ...]:
    """Slice counter and orientation."""
    return (head.idx.slice, *(round(value, 3) for value in (*head.read_dir, *head.phase_dir)))


def estimate(plan: Any, samples: NDArray[np.complex64], radius: NDArray[Any], seconds: NDArray[Any]) -> FieldEstimate:
    """Estimate the field of one slice.

    Parameters
    ----------
    plan
        Weighted adjoint transform of the arms, such as `nufft.ArmPlan`.
    samples
        complex64 [coil, arm, sample].
    radius
        |k| [arm, sample], in any unit.
    seconds
        Time since each arm passed the centre of k-space [arm or 1, sample] [s].

    Raises
    ------
    NoSignalError
        All samples are zero.
    """
    longest = float(np.abs(seconds).max())
    late = np.broadcast_to(np.abs(seconds) > APART * longest, radius.shape)
    begins = seconds.min() > -APART * longest and not (radius[late] < LOW / 2 * radius.max()).any()
    few = np.tensordot(virtual_coils(samples, VIRTUAL_COILS), samples, 1)
    scan = _Focus(plan, few, radius, seconds / longest, min(BAND, LARGEST * longest))
    linear = scan.linear()
    cycles, weights = scan.plane(linear), scan.power / scan.power.sum()
    rest = scan.locally(cycles) - cycles
    smooth = float(np.sqrt((weights * rest**2).sum()))
    if smooth > REGIONS:
        cycles = cycles + rest
    return FieldEstimate(
        hertz=(cycles / longest).astype(np.float32),
        linear=(float(linear[0]) / longest, float(linear[1]) / longest, float(linear[2]) / longest),
        smooth=(smooth if smooth > REGIONS else 0.0) / longest,
        turn=float(np.sqrt((weights * cycles**2).sum())),
        blur=scan.imaginary(cycles) / scan.imaginary(np.zeros_like(cycles)) if begins else math.inf,
        power=scan.power,
        longest=longest,
    )


class _Focus:
    """Images at all frequencies, and how large their imaginary parts are.

    Attributes
    ----------
    power
        Of the image of low resolution [row, column].
    """

    def __init__(
        self, plan: Any, samples: NDArray[np.complex64], radius: NDArray[Any], turns: NDArray[Any], band: float
    ) -> None:
        low = radius / (LOW * radius.max())
        window = np.where((low < 1) & (np.abs(turns) < SOON), 0.5 + 0.5 * np.cos(np.pi * low), 0)
        reference = to_host(plan.adjoint((samples * window).astype(np.complex64)))
        self.power = (np.abs(reference) ** 2).sum(axis=0)
        if not self.power.max() > 0:
            raise NoSignalError("there is no signal")
        phases = reference.conj() / np.sqrt(np.maximum(self.power, 1e-6 * self.power.max()))
        self._cycles = np.linspace(-band, band, FREQUENCIES)
        terms = find_terms(Phase(turns[..., np.newaxis], self._cycles[np.newaxis, np.newaxis]), ACCURACY)
        assert terms is not None  # the frequencies differ
        several = FieldPlan(plan, terms.spatial, terms.temporal(turns[..., np.newaxis]))
        grid = several.zeros(len(samples))
        for arm in range(samples.shape[1]):
            several.add_arm(grid, arm, samples[:, arm])
        images = (to_host(several.term_images(grid)) * phases).sum(axis=1)
        by_frequency = np.tensordot(terms.spatial[:, 0].conj(), images, (0, 0))
        self._imaginary = np.abs(by_frequency.imag)
        self._bright = np.flatnonzero(self.power > OBJECT**2 * self.power.max())
        shape = self.power.shape
        y, x = np.mgrid[: shape[0], : shape[1]] - np.reshape([n // 2 for n in shape], (2, 1, 1))
        self._planes = np.stack([np.ones(shape), x / shape[1], y / shape[0]])

    def plane(self, linear: NDArray[np.float64]) -> NDArray[np.float64]:
        """Constant and linear field [row, column]."""
        return np.tensordot(linear, self._planes, 1)

    def imaginary(self, cycles: NDArray[np.float64]) -> float:
        """Sum of the imaginary parts with a field [row, column] [cycles]."""
        return self._sum(self._imaginary.reshape(len(self._cycles), -1), cycles.ravel())

    def linear(self) -> NDArray[np.float64]:
        """Constant, and growth over the columns and the rows, with the least imaginary part [cycles]."""
        planes, parts = self._planes.reshape(3, -1)[:, self._bright], self._imaginary.reshape(len(self._cycles), -1)
        parts = parts[:, self._bright]
        some_planes, some_parts = planes[:, ::SPARSE], np.ascontiguousarray(parts[:, ::SPARSE])
        band = self._cycles[-1]
        tried = band * np.stack(np.meshgrid(CONSTANTS, GROWTHS, GROWTHS, indexing="ij"), axis=-1).reshape(-1, 3)
        best = tried[np.argmin([self._sum(some_parts, each @ some_planes) for each in tried])]
        found = optimize.minimize(
            lambda each: self._sum(parts, each @ planes), best, method="Nelder-Mead",
            options={"initial_simplex": best + 0.1 * band * np.eye(4, 3, -1), "xatol": 1e-3,
                     "fatol": 1e-5 * parts[0].sum()},
        )  # fmt: skip
        return np.asarray(found.x)

    def locally(self, cycles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Field [row, column] [cycles] that regions make of a linear one."""
        radius = REGION * max(cycles.shape)
        regions = ndimage.gaussian_filter(self._imaginary, (0, radius, radius))
        reserve = RESERVE * self._imaginary[len(self._cycles) // 2].mean()
        away = self._cycles[:, np.newaxis, np.newaxis] - cycles
        change = np.take_along_axis(away, (regions + reserve * away**2).argmin(axis=0)[np.newaxis], axis=0)[0]
        weights = ndimage.gaussian_filter(self.power, radius / 2) + FLOOR * self.power.max()
        return cycles + ndimage.gaussian_filter(self.power * change, radius / 2) / weights

    def _sum(self, parts: NDArray[Any], cycles: NDArray[np.float64]) -> float:
        """Sum of imaginary parts [frequency, pixel] at a frequency for each pixel [cycles]."""
        first, last = self._cycles[[0, -1]]
        place = np.clip((cycles - first) / (last - first) * (len(parts) - 1), 0, len(parts) - 1.001)
        outside = np.abs(cycles).max() / last
        lower = place.astype(int)
        part, pixel = place - lower, np.arange(len(place))
        total = (1 - part) @ parts[lower, pixel] + part @ parts[lower + 1, pixel]
        return float(total * max(outside, 1.0))
