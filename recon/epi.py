"""Echo planar readouts to ordinary Cartesian ones: ramps regridded, reversed lines turned round, their phase corrected.

K-space along a readout is the integral of the gradient's trapezoid. It is 0 at half of the trapezoid's area, for lines
of either direction, since the lines of a train lead from one side of k-space to the other and back. The area under the
samples spans the encoded matrix. Both are the conventions of the scanners whose headers carry these parameters.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon.epiphase import EchoLine, entropy_phase, navigator_phase
from recon.fourier import centred_fft
from recon.mrdencoding import CARTESIAN, encoding_axis, is_calibration_only, is_imaging

logger = logging.getLogger(__name__)

EPI = "epi"
MODES = ("auto", "joint", "coil", "none")  # of the phase correction
MAX_SAMPLES = 2048  # of a readout: the regridding solves equations of this size
DWELL_TOLERANCE = 0.01
NOISE = 1e-3  # noise power over signal power in the regridding
REQUIRED = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "numSamples", "dwellTime")


# ------------------------------------------------------------------------------------------------------- the header
@dataclass(frozen=True)
class Trapezoid:
    """Readout gradient of an echo, and the samples under it.

    Attributes
    ----------
    ramp_up, flat_top, ramp_down
        Durations [us].
    delay
        From the start of the gradient to that of the first sample [us].
    dwell
        Duration of a sample [us].
    samples
        Their number.
    """

    ramp_up: float
    flat_top: float
    ramp_down: float
    delay: float
    dwell: float
    samples: int

    def area(self, time: Any) -> Any:
        """Integral of the gradient, of amplitude 1, up to a time after its start [us]."""
        up = np.clip(time, 0, self.ramp_up)
        flat = np.clip(time - self.ramp_up, 0, self.flat_top)
        down = np.clip(time - self.ramp_up - self.flat_top, 0, self.ramp_down)
        area = flat + down
        if self.ramp_up:
            area = area + up**2 / (2 * self.ramp_up)
        if self.ramp_down:
            area = area - down**2 / (2 * self.ramp_down)
        return area

    def position(self, sample: Any, points: int) -> Any:
        """K-space, in points of the encoded matrix, at a time in samples (n + 0.5 is the middle of sample n)."""
        begin, end, whole = (
            self.area(time) for time in (self.delay, self.delay + self.samples * self.dwell, self.duration)
        )
        return (self.area(self.delay + np.asarray(sample) * self.dwell) - whole / 2) * points / (end - begin)

    @property
    def duration(self) -> float:
        """Of the whole gradient [us]."""
        return self.ramp_up + self.flat_top + self.ramp_down


def is_epi(encoding: Any) -> bool:
    """True for an encoding whose trajectory is echo planar."""
    return str(getattr(encoding.trajectory, "value", encoding.trajectory)).lower() == EPI


def trapezoid_of(encoding: Any) -> Trapezoid:
    """Read the readout gradient from an encoding's trajectoryDescription, whatever its identifier.

    Raises
    ------
    ValueError
        When a value is missing, makes no sense, or contradicts the others.
    """
    description = encoding.trajectoryDescription
    if description is None:
        raise ValueError(
            "the header's trajectory is 'epi', but it has no trajectoryDescription; "
            f"needed are {', '.join(REQUIRED)}, as ConventionalEPI has them"
        )
    groups = (description.userParameterLong, description.userParameterDouble)
    values = {parameter.name: parameter.value for group in groups for parameter in group or []}
    missing = [name for name in REQUIRED if name not in values]
    which = f"the header's trajectoryDescription '{description.identifier}'"
    if missing:
        raise ValueError(f"{which} lacks {', '.join(missing)}, which EPI readouts are regridded by")
    for name in REQUIRED:
        low = 0 if name not in ("numSamples", "dwellTime") else 1e-3
        if not isinstance(values[name], int | float) or not low <= values[name] < 1e6:
            raise ValueError(f"{which} has {name} {values[name]}; expected a number of at least {low:g}, and below 1e6")
    if not (2 <= values["numSamples"] <= MAX_SAMPLES and values["numSamples"] == int(values["numSamples"])):
        raise ValueError(f"{which} has numSamples {values['numSamples']}; expected 2 to {MAX_SAMPLES}")
    up, flat, down, delay, samples, dwell = (float(values[name]) for name in REQUIRED)
    trapezoid = Trapezoid(up, flat, down, delay, dwell, int(samples))
    timing = f"rampUpTime {up:g} + flatTopTime {flat:g} + rampDownTime {down:g} = {trapezoid.duration:g} us"
    sampled = delay + samples * dwell
    if sampled > trapezoid.duration + dwell:
        raise ValueError(
            f"{which} contradicts itself: acqDelayTime {delay:g} + numSamples {samples:g} * dwellTime {dwell:g} = "
            f"{sampled:g} us is longer than the gradient: {timing}"
        )
    spacing = values.get("echoSpacing")
    if isinstance(spacing, int | float) and 0 < spacing < trapezoid.duration - dwell:
        raise ValueError(
            f"{which} contradicts itself: echoSpacing {spacing:g} us is shorter than the gradient: {timing}"
        )
    return trapezoid


def cartesian_header(metadata: Any) -> Any:
    """Copy of the MRD header in which echo planar encodings are called Cartesian, as they are after `corrected`."""
    metadata = copy.deepcopy(metadata)
    for encoding in getattr(metadata, "encoding", None) or []:
        if is_epi(encoding):
            encoding.trajectory = type(encoding.trajectory)(CARTESIAN)
    return metadata


# ------------------------------------------------------------------------------------------------------- regridding
def regridding(positions: NDArray[np.float64], points: int) -> NDArray[np.complex64]:
    """Matrix from samples at any places of k-space to the image along the readout.

    The image of least energy that explains the samples up to noise: E^H (E E^H + noise)^-1 with the Fourier sum E from
    pixels to samples. Where samples lie dense their noise averages; where there are none nothing is invented.

    Parameters
    ----------
    positions
        Places of the samples [sample], in points of the encoded matrix, from about -points / 2 to points / 2.
    points
        Size of the encoded matrix.

    Returns
    -------
    complex64 [pixel, sample], x = 0 at index points // 2, in the scale of `fourier.centred_ifft`.
    """
    pixels = np.arange(points) - points // 2
    encode = np.exp(-2j * np.pi / points * np.outer(positions, pixels))
    power = encode @ encode.conj().T + NOISE * points * np.eye(len(positions))
    return np.linalg.solve(power, encode).conj().T.astype(np.complex64)


class _Encoding:
    """Regridding of the readouts of one encoding."""

    def __init__(self, encoding: Any, tell: Callable[[str], None]) -> None:
        self._trapezoid = trapezoid_of(encoding)
        axis = encoding_axis(encoding, "x")
        self.points, self.pixels = axis.points, round(axis.pixels * axis.points / axis.transform)
        self._matrices: dict[tuple[bool, int, int], NDArray[np.complex64]] = {}
        self._tell = tell
        self._told = False

    def fits(self, readout: Any) -> bool:
        """True for a readout that can be one under the trapezoid, by its number of samples and its dwell time."""
        dwell = self._trapezoid.dwell
        same_dwell = readout.sample_time_us <= 0 or abs(readout.sample_time_us / dwell - 1) <= DWELL_TOLERANCE
        return readout.number_of_samples == self._trapezoid.samples and same_dwell

    def to_image(self, readout: Any) -> tuple[NDArray[np.complex64], int, int]:
        """Image along the readout [coil, pixel], and the first and last point of k-space that both directions reach."""
        total, trapezoid = readout.number_of_samples, self._trapezoid
        which = f"readout {readout.scan_counter} (its scan_counter)"
        if total != trapezoid.samples:
            raise ValueError(f"{which} has {total} samples, the header's numSamples is {trapezoid.samples}")
        if not self.fits(readout):
            raise ValueError(
                f"{which} has sample_time_us {readout.sample_time_us:g}, the header's dwellTime is {trapezoid.dwell:g}"
            )
        pre, end = readout.discard_pre, total - readout.discard_post
        reverse = readout.is_flag_set(ismrmrd.ACQ_IS_REVERSE)
        half = 0.0
        if pre < end:
            half = float(min(-trapezoid.position(pre, self.points), trapezoid.position(end, self.points))) + 1e-6
        if half < 1:
            raise ValueError(f"{which}: its samples {pre} to {end - 1} do not reach both sides of the k-space centre")
        first = max(math.ceil(-half), -(self.points // 2))
        last = min(math.floor(half), (self.points - 1) // 2)
        if last - first + 1 < self.points and not self._told:
            self._told = True
            self._tell(
                f"forward and reversed readouts reach {last - first + 1} of {self.points} points along the readout "
                "in common: the rest is left out, which costs resolution"
            )
        key = (reverse, pre, end)
        if key not in self._matrices:
            positions = trapezoid.position(np.arange(pre, end) + 0.5, self.points)
            self._matrices[key] = regridding(-positions if reverse else positions, self.points)
        with np.errstate(invalid="ignore", over="ignore"):  # samples that are not finite: who sorts the readouts tells
            return readout.data[:, pre:end] @ self._matrices[key].T, first, last


# ------------------------------------------------------------------------------------------------------- the stream
@dataclass
class _Line:
    """A line on its way: the readout it comes from, and its image along x."""

    readout: ismrmrd.Acquisition
    line: EchoLine
    first: int
    last: int

    def finish(self, phase: NDArray[np.float64] | None) -> ismrmrd.Acquisition:
        """Make the Cartesian readout; half of the phase is taken from either direction."""
        image = self.line.data
        if phase is not None:
            image = image * np.exp((-0.5j if self.line.reverse else 0.5j) * phase)
        with np.errstate(invalid="ignore", over="ignore"):
            kspace = centred_fft(image, 1)
        centre = kspace.shape[1] // 2
        head = self.readout.getHead()
        head.number_of_samples, head.center_sample = self.last - self.first + 1, -self.first
        head.discard_pre = head.discard_post = head.trajectory_dimensions = 0
        head.clear_flag(ismrmrd.ACQ_IS_REVERSE)
        readout = ismrmrd.Acquisition(head)
        readout.data[:] = kspace[:, centre + self.first : centre + self.last + 1]
        return readout


class _Corrector:
    """Navigators and waiting lines of a scan."""

    def __init__(self, mode: str, tell: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._mode, self._tell, self._warn = mode, tell, warn
        self._navigators: dict[Any, list[EchoLine]] = {}  # that came since the last line of their slice
        self._phases: dict[Any, NDArray[np.float64]] = {}  # from the latest navigators of a slice
        self._waiting: list[_Line] = []  # of one image without navigators
        self._key: Any = None
        self._pixels = 0
        self._told: set[str] = set()

    def _once(self, send: Callable[[str], None], kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            send(text)

    def navigator(self, place: Any, line: EchoLine) -> None:
        """Keep a navigator for the lines of its slice that come after it."""
        if np.isfinite(line.data).all():
            self._navigators.setdefault(place, []).append(line)
        else:
            self._once(
                self._warn, "finite", "a navigator is left out: its samples are not finite; so is any further one"
            )

    def take(self, place: Any, key: Any, line: _Line, pixels: int) -> Iterator[ismrmrd.Acquisition]:
        """Correct a line; yields what is ready."""
        if self._mode == "none":
            yield line.finish(None)
            return
        if self._waiting and key != self._key:
            yield from self.flush()
        navigators = self._navigators.pop(place, None)
        if navigators:
            yield from self.flush()
            self._estimate(place, navigators, pixels)
        if place in self._phases:
            yield line.finish(self._phases[place])
            return
        self._key, self._pixels = key, pixels
        self._waiting.append(line)

    def _estimate(self, place: Any, navigators: list[EchoLine], pixels: int) -> None:
        phase = navigator_phase(navigators, self._mode, pixels)
        if phase is not None:
            self._phases[place] = phase
            slope = (phase[:, -1] - phase[:, 0]).mean() * phase.shape[1] / max(phase.shape[1] - 1, 1)
            self._once(
                self._tell,
                "phase",
                f"phase of reversed lines over forward ones, from {len(navigators)} navigators: "
                f"{phase[:, phase.shape[1] // 2].mean():.2f} rad, and {slope:.2f} rad over the encoded field of view",
            )
            return
        reverse = sum(line.reverse for line in navigators)
        self._once(
            self._warn,
            "useless",
            f"{len(navigators)} navigators of slice {place[1]}, {reverse} of them reversed, tell no phase: they need "
            "both directions, one after the other, and signal; they are not used",
        )

    def flush(self) -> Iterator[ismrmrd.Acquisition]:
        """Correct the waiting lines by their own phase, which takes the whole image."""
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        phase = entropy_phase([line.line for line in lines], self._pixels)
        if phase is not None:
            self._once(
                self._warn,
                "lines",
                "there are no navigators (ACQ_IS_PHASECORR_DATA) before the lines of slice "
                f"{lines[0].readout.idx.slice}: the phase between its odd and even lines is estimated from the lines "
                "themselves; an image that is moved by half a field of view would have a constant beyond 90 degrees",
            )
        elif len({line.line.reverse for line in lines}) > 1:
            self._once(
                self._warn,
                "ghost",
                "there are no navigators (ACQ_IS_PHASECORR_DATA) before the lines of slice "
                f"{lines[0].readout.idx.slice}, and too few lines to do without: expect a ghost",
            )
        for line in lines:
            yield line.finish(phase)


def corrected(
    items: Iterable[Any],
    metadata: Any,
    mode: str = "auto",
    tell: Callable[[str], None] = logger.info,
    warn: Callable[[str], None] = logger.warning,
) -> Iterator[Any]:
    """Turn the readouts of echo planar encodings into ordinary Cartesian ones; all else goes through as it is.

    So do calibration lines that are no echoes of the same gradient, by their number of samples or their dwell time.

    Each line is regridded, turned round if it was reversed, and corrected by the phase between both directions, from
    the latest navigators of its slice before it. They are not yielded. Lines without navigators wait until their image
    is complete, which then gives the phase. What comes out belongs to the header of `cartesian_header`.

    Parameters
    ----------
    items
        Messages of a scan in the order of acquisition.
    metadata
        The MRD header.
    mode
        Phase correction: "auto" for each coil with clear navigators by its own and the others by the joint one,
        "joint", "coil", or "none".
    tell, warn
        Called with a text about what was found, or what may spoil the image.

    Yields
    ------
    Messages. The readouts have no ACQ_IS_REVERSE flag and no trajectory, samples on the encoded matrix, their k = 0 at
    ``center_sample``.

    Raises
    ------
    ValueError
        When the mode is none of these, the header lacks or contradicts what is needed, see `trapezoid_of`, a readout
        does not fit it, or the number of channels changes.
    """
    if mode not in MODES:
        raise ValueError(f"the EPI phase correction is {mode!r}; expected one of {', '.join(MODES)}")
    encodings = getattr(metadata, "encoding", None) or []
    known: dict[int, _Encoding | None] = {}
    corrector = _Corrector(mode, tell, warn)
    channels = None
    directions = set()
    misfits = 0
    for item in items:
        reference = item.encoding_space_ref if isinstance(item, ismrmrd.Acquisition) else len(encodings)
        if reference >= len(encodings):
            yield item
            continue
        if reference not in known:
            known[reference] = _Encoding(encodings[reference], tell) if is_epi(encodings[reference]) else None
        encoding = known[reference]
        navigator = item.is_flag_set(ismrmrd.ACQ_IS_PHASECORR_DATA)
        if encoding is None or not (navigator or is_imaging(item, metadata) or is_calibration_only(item)):
            yield item
            continue
        if is_calibration_only(item) and not encoding.fits(item):
            yield item  # of a sequence of its own, as FLASH reference lines are
            continue
        if navigator and not encoding.fits(item):
            if not misfits:
                warn(f"navigator {item.scan_counter} is left out: it is no echo like the lines; so is any further one")
            misfits += 1
            continue
        channels = channels or item.active_channels
        if item.active_channels != channels:
            raise ValueError(
                f"readout with scan_counter {item.scan_counter} has {item.active_channels} channels; "
                f"those before it have {channels}"
            )
        idx, reverse = item.idx, item.is_flag_set(ismrmrd.ACQ_IS_REVERSE)
        image, first, last = encoding.to_image(item)
        line = EchoLine(reverse, idx.kspace_encode_step_1, image)
        place = (reference, idx.slice)
        if navigator:
            corrector.navigator(place, line)
            continue
        directions.add(reverse)
        counters = (idx.kspace_encode_step_2, idx.contrast, idx.phase, idx.repetition, idx.set, idx.average)
        yield from corrector.take(place, (*place, *counters), _Line(item, line, first, last), encoding.pixels)
    yield from corrector.flush()
    if directions == {False}:
        warn(
            "no EPI line has the flag ACQ_IS_REVERSE: that is right if all were read in one direction; "
            "else every other one is mirrored, and the image is wrong"
        )
