"""Description of a Cartesian scan to simulate: sizes, order of acquisition, noise; and a check that it makes sense."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulation import phantom
from simulation.cartesianphantom import Cylinder, coils_along_z, cylinders, with_phase
from simulation.epilobe import Lobe, make_lobe

FIELD_OF_VIEW = 0.3  # [m], of the longer side
SLICE_THICKNESS = 5e-3  # [m], of a partition, too
SLICE_SPACING = 7.5e-3  # [m]
REPETITION_TIME = 10.0  # [ms], of one readout; an EPI train takes as many of them as it needs
MAX_COUNTER = 2**16
MAX_SAMPLES = 8192
MODES = ("interleaved", "embedded", "separate")


@dataclass(frozen=True)
class Epi:
    """Readouts of an EPI scan.

    Attributes
    ----------
    shots
        Trains into which the lines of an image are divided, every `shots`-th line in each.
    delay
        By how much the gradients come late [us]; lines from left to right and back are displaced by it in opposite
        directions.
    phase
        Constant phase of reversed lines [rad]; coil j has phase (1 + 0.5 sin j).
    ramp
        Part of a line's gradient that each ramp takes, 0 to 0.4; samples are taken on the ramps, too.
    first_reversed
        The train begins with a line from right to left, as on Siemens scanners: of the three navigators the first and
        the last are reversed. Else the middle one is. Either way the lines of the image go on alternating.
    navigators
        Lines without phase encoding at the beginning of each train.
    """

    shots: int = 1
    delay: float = 1.0
    phase: float = 0.3
    ramp: float = 0.29
    first_reversed: bool = False
    navigators: int = 3


@dataclass(frozen=True)
class Noise:
    """Noise between coils, and its measurement.

    Attributes
    ----------
    correlation
        0: alike and independent in all coils; up to below 1: different and correlated.
    covariance_seed
        Of the covariance's random numbers.
    readouts
        Noise readouts of one measurement.
    dwell
        Time from sample to sample of noise readouts [us]; None: that of the imaging readouts.
    bandwidth
        The header's relativeReceiverNoiseBandwidth: the variance of noise readouts is smaller by this factor than
        that of imaging readouts of the same dwell time. None: 1, and the header does not say.
    dependency
        The noise measurement is a scan of its own, which the header names.
    """

    correlation: float = 0.0
    covariance_seed: int = 0
    readouts: int = 1
    dwell: float | None = None
    bandwidth: float | None = None
    dependency: bool = False


@dataclass(frozen=True)
class Scan:
    """A scan to simulate.

    Attributes
    ----------
    columns, rows
        Reconstructed matrix (x, y) [pixels]; pixels are square.
    coils
        Number of coils.
    oversampling
        Readout oversampling factor.
    repetitions
        How often the whole k-space is acquired.
    acceleration
        Every `acceleration`-th line is acquired, see `calibration`.
    calibration_width
        Lines (in 3-D: and partitions) round the k-space centre that are acquired besides when accelerated.
    noise
        Standard deviation of real and of imaginary part of a coil's fully sampled image; density is 1 at most.
    noise_scan
        Whether noise readouts come first.
    seed
        Of the random numbers.
    slices
        Number of slices, at different positions.
    partitions
        Partitions of a slab (3-D).
    averages
        How often each line is acquired.
    acceleration_2, shift
        Every `acceleration_2`-th partition is acquired, `shift` partitions further from each acquired line to the next
        (CAIPIRINHA).
    calibration
        "interleaved": each repetition becomes as many as `acceleration`, beginning one line later each time, and
        calibration lines are part of all. "embedded": the same lines, the central one among them, and calibration lines
        in every repetition. "separate": the same lines; calibration lines come before all others, at twice the signal,
        as if they had another contrast.
    partial_fourier, slice_partial_fourier
        Parts of all lines and of all partitions that are acquired.
    asymmetric_echo
        Part of the samples of a readout that is acquired; the beginning is missing.
    missing_end
        What partial Fourier leaves out is the end rather than the beginning.
    object_size
        Of the object by the shorter side of the field of view; an object larger than 1 wraps round.
    phase
        Amplitude of a smooth phase of the object [rad].
    dwell
        Time from sample to sample [us].
    epi
        The readouts are EPI trains.
    noise_model
        More about the noise.
    """

    columns: int = 256
    rows: int = 256
    coils: int = 8
    oversampling: int = 2
    repetitions: int = 1
    acceleration: int = 1
    calibration_width: int = 0
    noise: float = 0.01
    noise_scan: bool = False
    seed: int = 0
    slices: int = 1
    partitions: int = 1
    averages: int = 1
    acceleration_2: int = 1
    shift: int = 0
    calibration: str = "interleaved"
    partial_fourier: float = 1.0
    slice_partial_fourier: float = 1.0
    asymmetric_echo: float = 1.0
    missing_end: bool = False
    object_size: float = 1.0
    phase: float = 0.0
    dwell: float = 5.0
    epi: Epi | None = None
    noise_model: Noise = field(default_factory=Noise)

    @property
    def pixel(self) -> float:
        """Edge of a pixel [m]."""
        return FIELD_OF_VIEW / max(self.columns, self.rows)

    @property
    def samples(self) -> int:
        """Samples of a whole readout."""
        return self.columns * self.oversampling

    @property
    def first_sample(self) -> int:
        """Samples missing at the beginning of a readout."""
        return self.samples - round(self.asymmetric_echo * self.samples)

    @property
    def acquired_rows(self) -> range:
        """Lines within the part that partial Fourier acquires."""
        return acquired_part(self.rows, self.partial_fourier, self.missing_end)

    @property
    def acquired_partitions(self) -> range:
        """Partitions within the part that partial Fourier acquires."""
        return acquired_part(self.partitions, self.slice_partial_fourier, self.missing_end)

    @property
    def shots(self) -> int:
        """Repetitions in the file."""
        return self.repetitions * (self.acceleration if self.calibration == "interleaved" else 1)

    @property
    def size(self) -> float:
        """Edge of the square that holds the object's cross-section [m]."""
        return self.object_size * self.pixel * min(self.columns, self.rows)

    @property
    def depth(self) -> float:
        """Extent of what is imaged along z [m]."""
        return self.partitions * SLICE_THICKNESS if self.partitions > 1 else self.slices * SLICE_SPACING

    @property
    def slice_positions(self) -> NDArray[np.float64]:
        """Position along z of the middle of each slice [m]; that of a slab is that of partition `partitions` // 2."""
        return (np.arange(self.slices, dtype=float) - (self.slices - 1) / 2) * SLICE_SPACING

    @property
    def object(self) -> tuple[phantom.Ellipse, ...]:
        """The object's cross-section at z = 0, as large as the shorter side of the field of view by default."""
        return phantom.shepp_logan(self.size)

    @property
    def cylinders(self) -> tuple[Cylinder, ...]:
        """The object."""
        return cylinders(self.size, self.depth)

    @property
    def coil_ring(self) -> phantom.Coils:
        """The coils' sensitivities at z = 0, times the phase of the object."""
        return with_phase(phantom.ring_of_coils(self.coils, self.size), self.phase, self.size)

    @property
    def coils_along_z(self) -> phantom.Coils:
        """Factors of the sensitivities along z."""
        return coils_along_z(self.coils, self.depth)

    @property
    def lobe(self) -> Lobe:
        """Readout gradient of a line of an EPI scan."""
        if self.epi is None:
            raise ValueError("only a scan of EPI trains has a readout gradient")
        return make_lobe(self.samples, self.dwell, self.epi.ramp)


def acquired_part(count: int, fraction: float, missing_end: bool) -> range:
    """Range of lines out of `count` that partial Fourier acquires."""
    acquired = round(fraction * count)
    return range(acquired) if missing_end else range(count - acquired, count)


def check(scan: Scan) -> None:
    """Raise a ValueError that says what is wrong unless the scan makes sense."""
    noise, epi = scan.noise_model, scan.epi
    for name, value, lowest, highest in (
        ("columns", scan.columns, 2, 4096),
        ("rows", scan.rows, 2, 4096),
        ("coils", scan.coils, 1, 1024),
        ("samples of a readout", scan.samples, 2, MAX_SAMPLES),
        ("repetitions", scan.repetitions, 1, MAX_COUNTER),
        ("repetitions times acceleration", scan.shots, 1, MAX_COUNTER),
        ("slices", scan.slices, 1, 1024),
        ("partitions", scan.partitions, 1, 1024),
        ("averages", scan.averages, 1, MAX_COUNTER),
        ("CAIPIRINHA shift", scan.shift, 0, scan.acceleration_2 - 1),
        ("noise level", scan.noise, 0, 1e9),
        ("object size", scan.object_size, 0.01, 8),
        ("phase [rad]", scan.phase, -20, 20),
        ("dwell time [us]", scan.dwell, 0.1, 1000),
        ("noise correlation", noise.correlation, 0, 0.999),
        ("noise readouts", noise.readouts, 1, MAX_COUNTER),
        ("dwell time of noise [us]", scan.dwell if noise.dwell is None else noise.dwell, 0.1, 1000),
        ("receiver noise bandwidth", 1 if noise.bandwidth is None else noise.bandwidth, 0.01, 100),
    ):
        _check_limits(name, value, lowest, highest)
    for name, fraction, count in (
        ("partial Fourier", scan.partial_fourier, scan.rows),
        ("slice partial Fourier", scan.slice_partial_fourier, scan.partitions),
        ("asymmetric echo", scan.asymmetric_echo, scan.samples),
    ):
        if not (0 < fraction <= 1 and round(fraction * count) > count // 2):
            raise ValueError(f"{name} is {fraction:g} of {count}, must be more than half and at most 1")
    _check_limits("acceleration", scan.acceleration, 1, len(scan.acquired_rows))
    _check_limits("acceleration along the partitions", scan.acceleration_2, 1, len(scan.acquired_partitions))
    if scan.calibration not in MODES:
        raise ValueError(f"calibration is {scan.calibration!r}, must be one of {', '.join(MODES)}")
    if scan.slices > 1 and scan.partitions > 1:
        raise ValueError("a scan has several slices or several partitions, not both")
    if epi is None:
        return
    _check_limits("EPI shots", epi.shots, 1, scan.rows)
    _check_limits("ramp of an EPI line", epi.ramp, 0, 0.4)
    _check_limits("EPI navigators", epi.navigators, 0, 64)
    _check_limits("EPI phase [rad]", epi.phase, -math.pi, math.pi)
    margin = scan.lobe.acquisition_delay  # else a sample would be taken in the gradient of the neighbouring line
    _check_limits("EPI delay [us]", epi.delay, -margin, margin)
    if scan.asymmetric_echo < 1:
        raise ValueError("EPI has no asymmetric echo here: its lines go both ways")
    if scan.calibration_width and scan.calibration != "separate":
        raise ValueError("calibration lines of EPI must be separate: others would make the steps of a train unequal")


def _check_limits(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is {value:g}, must be {lowest:g} to {highest:g}")
