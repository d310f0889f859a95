"""A spiral scan of a beating, breathing chest, simulated readout by readout.

The k-space is exact (closed form), so that a reconstruction can be compared with the truth. A density of 1 is pixel
value 1: samples are what the discrete Fourier sum over the pixels of a fine enough image would give::

    simulation = simulate(design_spiral(SpiralDesign()), Scan(readouts=336, coils=8))
    for item in simulation.items(): ...                # acquisitions and waveforms in the order of time
    simulation.truth.frames([range(0, 7), range(7, 14)])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import ismrmrd.xsd
import numpy as np
from numpy.typing import NDArray

from GIRF import rotation_to_physical
from mrdhelper import SECONDS_PER_TICK
from mrdio.mrdsource import in_time_order
from recon.gradientresponse import predict_trajectory
from recon.trajectory import SIGNATURE_PARAMETER, Trajectory
from simulation import fields, spiralphysiology
from simulation.fields import OffResonance
from simulation.phantom import Ellipse
from simulation.spiralphantom import array_coils, as_parameters, moving_kspace, vials
from simulation.spiraltruth import Truth

ECHO_TIME = 0.91e-3  # [s]
SLICE_THICKNESS = 6e-3  # [m]
SLICE_SPACING = 9e-3  # [m]
FIRST_TIME_STAMP = 12 * 3600 * 400  # of the first imaging readout: noon [ticks]
NOISE_SCAN_LEAD = 0.5  # [s] before the first imaging readout
POINT_RADIUS = 1.5  # pixels
BATCH = 32  # readouts computed at once
MAX_COUNTER = 2**16
UNITS = ("cycles", "1/m", "rad/m", "pixel")  # of trajectories in readouts: cycles/FOV, 1/m, rad/m, cycles per pixel


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan to simulate; the trajectory comes apart.

    Attributes
    ----------
    readouts
        Imaging readouts, of all slices together.
    tr
        Time from readout to readout [s].
    coils
        Number of coils.
    noise
        Standard deviation of real and of imaginary part of a coil's image gridded from every arm of the metafile once;
        density is 1 in the heart's blood.
    slices, interleaved
        Number of slices; whether the slice changes with every readout or they follow one another.
    partitions
        Partitions of a 3-D stack, each `SLICE_THICKNESS` thick; 1: a 2-D scan. All arms of a partition follow one
        another.
    kind
        The header's trajectory: "spiral", "radial", "goldenangle" or "other".
    carried
        Unit of the trajectory that readouts carry, one of `UNITS`; empty: they carry none, and the header has the
        metafile's signature.
    rotation
        Angles [degree] by which the readout axes are turned about the patient's x, then y, then z axis.
    position
        Centre of the slices in patient coordinates [mm].
    patient_position
        One of the keys of `GIRF.PATIENT_TO_DEVICE`.
    girf
        Gradient impulse response complex [frequencies, 3] that distorts the trajectory; None for ideal gradients.
    remove_oversampling
        Keep every second sample.
    still
        Nothing moves.
    point
        Place (x, y), or in a stack (x, y, z), [mm] of a small disc in place of the chest; there it is as thick as a
        partition.
    vials
        Frequencies [Hz] of ellipses that do not touch, one each, in place of the chest.
    off_resonance
        That of all of the object, beside the frequencies of vials.
    field_strength
        Main field [T]; None: 0.55 with concomitant fields, and 3 without, where they do not matter.
    concomitant
        Whether the gradients' concomitant fields act; they are those of the readout, from its first sample.
    echo_times
        Times from the excitation to the first sample of the trajectory [s]. With several, readouts run through all arms
        and slices with the first one, then with the second: each is a contrast.
    heart_rate, breathing_rate
        Mean rates [1/min].
    waveforms
        Whether there are ECG and pilot tone.
    pilot_tone_delay
        By how much the pilot tone's triggers come late [s].
    noise_scan, dummies
        Whether a noise readout comes first; number of dummy readouts before the first imaging one.
    lost
        Number of imaging readouts that are lost on the way.
    seed
        Of the random numbers.
    """

    readouts: int = 1150
    tr: float = 5.74e-3
    coils: int = 8
    noise: float = 0.002
    slices: int = 1
    interleaved: bool = True
    partitions: int = 1
    kind: str = "spiral"
    carried: str = ""
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    patient_position: str = "HFS"
    girf: NDArray[np.complex128] | None = None
    remove_oversampling: bool = False
    still: bool = False
    point: tuple[float, ...] | None = None
    vials: tuple[float, ...] = ()
    off_resonance: OffResonance = field(default_factory=OffResonance)
    field_strength: float | None = None
    concomitant: bool = False
    echo_times: tuple[float, ...] = (ECHO_TIME,)
    heart_rate: float = 84.0
    breathing_rate: float = 18.0
    waveforms: bool = True
    pilot_tone_delay: float = 0.15
    noise_scan: bool = False
    dummies: int = 0
    lost: int = 0
    seed: int = 0

    @property
    def b0(self) -> float:
        """Main field [T]."""
        return self.field_strength if self.field_strength is not None else 0.55 if self.concomitant else 3.0


def readout_axes(rotation: Sequence[float]) -> NDArray[np.float64]:
    """read_dir, phase_dir and slice_dir as rows [3, 3] for the angles [degree] of `Scan.rotation`."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).T


def make_header(trajectory: Trajectory, scan: Scan) -> ismrmrd.xsd.ismrmrdHeader:
    """MRD header of a scan."""
    xsd = ismrmrd.xsd
    size, extent = trajectory.matrix_size(), 1e3 * trajectory.image_fov()
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=size, y=size, z=scan.partitions),
        fieldOfView_mm=xsd.fieldOfViewMm(x=extent, y=extent, z=1e3 * SLICE_THICKNESS * scan.partitions),
    )
    limits = {
        "kspace_encoding_step_1": (trajectory.arms, 0),
        "kspace_encoding_step_2": (scan.partitions, scan.partitions // 2),
        "slice": (scan.slices, 0),
        "contrast": (len(scan.echo_times), 0),
    }
    parameters = {"Simulation": "closed-form ellipses"}
    if not scan.carried:
        parameters[SIGNATURE_PARAMETER] = trajectory.file.stem
    encoding = xsd.encodingType(
        trajectory=xsd.trajectoryType(scan.kind),
        encodedSpace=space,
        reconSpace=space,
        encodingLimits=xsd.encodingLimitsType(
            **{
                name: xsd.limitType(minimum=0, maximum=count - 1, center=center)
                for name, (count, center) in limits.items()
            }
        ),
    )
    return xsd.ismrmrdHeader(
        version=1,
        measurementInformation=xsd.measurementInformationType(
            measurementID="spiral_phantom",
            patientPosition=xsd.patientPositionType(scan.patient_position),
            protocolName="spiral phantom",
        ),
        # The vendor whose orientation the data has: pixels show -x and -y.
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="SIEMENS",
            systemModel="simulation",
            systemFieldStrength_T=scan.b0,
            receiverChannels=scan.coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(
            H1resonanceFrequency_Hz=round(23_616_000 / 0.55 * scan.b0)
        ),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(TR=[1e3 * scan.tr], TE=[1e3 * each for each in scan.echo_times]),
        userParameters=xsd.userParametersType(
            userParameterString=[
                xsd.userParameterStringType(name=name, value=value) for name, value in parameters.items()
            ]
        ),
    )


@dataclass(frozen=True, eq=False)
class Simulation:
    """A scan that can be played: nothing large is kept, readouts are computed as they are asked for.

    Attributes
    ----------
    trajectory, scan
        What is simulated.
    header
        MRD header.
    truth
        What the readouts look at.
    physiology
        Heartbeats and breaths.
    """

    trajectory: Trajectory
    scan: Scan
    header: ismrmrd.xsd.ismrmrdHeader
    truth: Truth
    physiology: spiralphysiology.Physiology

    def items(self) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
        """Yield readouts, and packets of waveforms as soon as they are complete."""
        return in_time_order(self.acquisitions(), self.waveforms(), _end)

    def waveforms(self) -> Iterator[ismrmrd.Waveform]:
        """Yield the packets of ECG and pilot tone in the order in which they are complete."""
        scan = self.scan
        if not scan.waveforms:
            return
        random_ecg, random_pilot = (np.random.default_rng([scan.seed, stream]) for stream in (2, 3))
        duration = scan.readouts * scan.tr
        start = FIRST_TIME_STAMP
        streams = [
            spiralphysiology.ecg(self.physiology, duration, start, random_ecg),
            spiralphysiology.pilot_tone(
                self.physiology, scan.readouts, scan.tr, scan.pilot_tone_delay, start, random_pilot
            ),
        ]
        packets = [(next(stream), stream) for stream in streams]
        while packets:
            waveform, stream = packet = min(packets, key=lambda pair: _end(pair[0]))
            packets.remove(packet)
            yield waveform
            packets += [(following, stream) for following in [next(stream, None)] if following is not None]

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """Yield the readouts in the order of time."""
        scan, truth, random = self.scan, self.truth, np.random.default_rng([self.scan.seed, 1])
        deviation = scan.noise * sample_noise(self.trajectory) / (math.sqrt(2) if scan.remove_oversampling else 1)
        whole = np.concatenate([np.zeros((truth.actual_k.shape[0], self.trajectory.pre_discard, 2)), truth.actual_k], 1)
        # The receiver's filter settles while samples are discarded.
        gain = np.minimum(np.arange(1, whole.shape[1] + 1) / (self.trajectory.pre_discard + 1), 1).astype(np.float32)
        step = 2 if scan.remove_oversampling else 1
        whole, gain = whole[:, ::step], gain[::step]
        time = self.trajectory.dwell * (step * np.arange(len(gain)) - self.trajectory.pre_discard)
        echo_time = np.array(scan.echo_times)[self.contrast(np.arange(scan.readouts)), np.newaxis]

        def noise() -> NDArray[np.complex64]:
            shape = (scan.coils, gain.size, 2)
            return np.float32(deviation) * random.standard_normal(shape, np.float32).view(np.complex64)[..., 0]

        if scan.noise_scan:
            yield self._readout(noise(), 1, -NOISE_SCAN_LEAD, [ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        for n in range(scan.dummies):
            lead = (n - scan.dummies) * scan.tr
            yield self._readout(noise(), scan.noise_scan + 1 + n, lead, [ismrmrd.ACQ_IS_DUMMYSCAN_DATA])
        for begin in range(0, scan.readouts, BATCH):
            part = slice(begin, begin + BATCH)
            signal = self.signal(np.arange(scan.readouts)[part], whole[truth.column[part]], time + echo_time[part])
            signal *= gain / np.float32(truth.pixel**2)
            for n, samples in enumerate(signal, start=begin):
                if truth.received[n]:
                    yield self._imaging_readout(n, samples + noise())

    def contrast(self, number: Any) -> Any:
        """Contrast of imaging readouts, any shape."""
        each = self.trajectory.arms * self.scan.partitions * self.scan.slices
        return number // each % len(self.scan.echo_times)

    def position(self, number: int) -> NDArray[np.float64]:
        """Position of the readouts of a slice, as in their headers [mm]."""
        offset = 1e3 * SLICE_SPACING * (number - (self.scan.slices - 1) / 2) * readout_axes(self.scan.rotation)[2]
        return np.array(self.scan.position) + offset

    def signal(
        self, readouts: NDArray[np.integer], k: NDArray[np.float64], time: NDArray[np.float64], concomitant: bool = True
    ) -> NDArray[np.complex64]:
        """Exact k-space of what some readouts look at.

        In a stack each partition of the image is a slab, uniform along z, at z = -(p - P // 2) * its thickness.

        Parameters
        ----------
        readouts
            Their numbers.
        k
            (kx, ky) [readout, sample, 2] [1/m].
        time
            Since the excitation [readout, sample] [s].
        concomitant
            With concomitant fields where the scan has them.

        Returns
        -------
        Signal [readout, coil, sample] [density m^2], complex64.
        """
        truth, scan = self.truth, self.scan
        k = k + scan.off_resonance.gradient(self.trajectory.image_fov()) * time[..., np.newaxis]
        common = np.exp(-2j * np.pi * scan.off_resonance.centre * time)[:, np.newaxis].astype(np.complex64)
        if scan.partitions > 1:
            return self._slab_signal(readouts, k) * common
        ellipses, frequencies = truth.ellipses(readouts), truth.still_frequencies
        if not (scan.concomitant and concomitant):
            return fields.signal(ellipses, frequencies, k, time, truth.coils) * common
        return common * self._concomitant_signal(readouts, k, time)

    def _concomitant_signal(
        self, readouts: NDArray[np.integer], k: NDArray[np.float64], time: NDArray[np.float64]
    ) -> NDArray[np.complex64]:
        truth, scan = self.truth, self.scan
        ellipses, frequencies = truth.ellipses(readouts), truth.still_frequencies
        axes, dwell = readout_axes(scan.rotation), float(time[0, 1] - time[0, 0])
        planes = [fields.Plane(1e-3 * self.position(number), axes, scan.b0) for number in truth.slice[readouts]]
        if planes[0].is_axial:
            cycles = [
                plane.cycles(each, dwell, plane.centre[np.newaxis]).T for plane, each in zip(planes, k, strict=True)
            ]
            exact = fields.signal(ellipses, frequencies, k, time, truth.coils)
            return exact * np.exp(-2j * np.pi * np.stack(cycles)).astype(np.complex64)
        size = (truth.matrix, truth.pixel)
        return np.stack(
            [
                fields.summed_signal(ellipses[n], frequencies, k[n], time[n], truth.coils, planes[n], dwell, size)
                for n in range(len(readouts))
            ]
        )

    def _slab_signal(self, readouts: NDArray[np.integer], k: NDArray[np.float64]) -> NDArray[np.complex64]:
        truth, scan = self.truth, self.scan
        kz = kz_of(truth.partition[readouts], scan.partitions)[:, np.newaxis, np.newaxis]
        if scan.point is not None:
            places = [1e-3 * scan.point[2]]
        else:
            places = [-(p - scan.partitions // 2) * SLICE_THICKNESS for p in range(scan.partitions)]
        return sum(
            moving_kspace(truth.ellipses(readouts, p), k, truth.coils)
            * (np.sinc(kz * SLICE_THICKNESS) * np.exp(-2j * np.pi * kz * z)).astype(np.complex64)
            for p, z in enumerate(places)
        )

    def _carried(self, n: int) -> NDArray[np.float32]:
        """Trajectory [sample, dimension] that readout n carries, samples to discard included."""
        trajectory, scan = self.trajectory, self.scan
        k = np.concatenate([np.zeros((trajectory.pre_discard, 2)), trajectory.k[self.truth.column[n]]])
        extents = np.array([trajectory.image_fov()] * 2)
        pixels = np.array([trajectory.resolution] * 2)
        if scan.partitions > 1:
            kz = kz_of(self.truth.partition[n], scan.partitions)
            k = np.column_stack([k, np.full(len(k), kz)])
            extents = np.append(extents, SLICE_THICKNESS * scan.partitions)
            pixels = np.append(pixels, SLICE_THICKNESS)
        factor = {"cycles": extents, "1/m": 1.0, "rad/m": 2 * np.pi, "pixel": pixels}[scan.carried]
        return (k[:: 2 if scan.remove_oversampling else 1] * factor).astype(np.float32)

    def _imaging_readout(self, n: int, samples: NDArray[np.complex64]) -> ismrmrd.Acquisition:
        truth, number = self.truth, int(self.truth.slice[n])
        step = self.scan.slices if self.scan.interleaved else 1  # readouts until the next of the same slice
        flags = []
        if n < step or truth.slice[n - step] != number:
            flags.append(ismrmrd.ACQ_FIRST_IN_SLICE)
        if n + step >= self.scan.readouts or truth.slice[n + step] != number:
            flags.append(ismrmrd.ACQ_LAST_IN_SLICE)
        if n == self.scan.readouts - 1:
            flags.append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
        acquisition = self._readout(samples, int(truth.scan_counter[n]), float(truth.time[n]), flags)
        if self.scan.carried:
            k = self._carried(n)
            acquisition.resize(acquisition.number_of_samples, acquisition.active_channels, k.shape[1])
            acquisition.data[:], acquisition.traj[:] = samples, k
            acquisition.discard_pre = acquisition.center_sample
        acquisition.idx.kspace_encode_step_1 = int(truth.column[n])
        acquisition.idx.kspace_encode_step_2 = int(truth.partition[n])
        acquisition.idx.slice = number
        arms = self.trajectory.arms * self.scan.partitions * len(self.scan.echo_times)
        acquisition.idx.repetition = n // arms % MAX_COUNTER
        beat = np.searchsorted(self.physiology.beats, truth.time[n], side="right") - 1
        acquisition.physiology_time_stamp[0] = round((truth.time[n] - self.physiology.beats[beat]) / SECONDS_PER_TICK)
        acquisition.idx.contrast = int(self.contrast(n))
        acquisition.position = tuple(self.position(number))
        return acquisition

    def _readout(
        self, data: NDArray[np.complex64], counter: int, seconds: float, flags: Sequence[int]
    ) -> ismrmrd.Acquisition:
        """Readout with what all of them share in its header; data [coil, sample], `seconds` after the first one."""
        acquisition = ismrmrd.Acquisition.from_array(data)
        acquisition.scan_counter = counter
        acquisition.acquisition_time_stamp = FIRST_TIME_STAMP + round(seconds / SECONDS_PER_TICK)
        acquisition.center_sample = self.trajectory.pre_discard // (2 if self.scan.remove_oversampling else 1)
        acquisition.sample_time_us = 1e6 * self.trajectory.dwell * (2 if self.scan.remove_oversampling else 1)
        acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = map(
            tuple, readout_axes(self.scan.rotation).tolist()
        )
        acquisition.position = self.scan.position
        for coil in range(self.scan.coils):
            acquisition.setChannelActive(coil)
        for flag in flags:
            acquisition.set_flag(flag)
        return acquisition


def _end(waveform: ismrmrd.Waveform) -> float:
    """Time stamp at which a packet is complete [ticks]."""
    return waveform.time_stamp + waveform.number_of_samples * 1e-6 * waveform.sample_time_us / SECONDS_PER_TICK


def kz_of(partition: Any, partitions: int) -> Any:
    """Place kz [1/m] of partition counters, any shape; the centre is partition `partitions` // 2."""
    return (partition - partitions // 2) / (partitions * SLICE_THICKNESS)


def sample_noise(trajectory: Trajectory) -> float:
    """Standard deviation of a sample's noise that gives 1 in an image gridded from every arm once.

    That image is the weighted adjoint transform, times the part of k-space that a unit of weight stands for.
    """
    weights = np.broadcast_to(trajectory.weights, trajectory.k.shape[:2])
    edge = np.linalg.norm(trajectory.k, axis=-1).max() * trajectory.resolution  # [1/pixel]
    return weights.sum() / (np.pi * edge**2 * math.sqrt((weights**2).sum()))


def simulate(trajectory: Trajectory, scan: Scan) -> Simulation:
    """Prepare a scan.

    Raises
    ------
    ValueError
        Trajectory and scan do not fit, or a number makes no sense; says which.
    GirfError
        The gradient response cannot be used.
    """
    check(trajectory, scan)
    random = np.random.default_rng([scan.seed, 0])
    physiology = dataclasses.replace(
        spiralphysiology.make_physiology(
            scan.readouts * scan.tr, random, scan.heart_rate, scan.breathing_rate, scan.tr
        ),
        still=scan.still or scan.point is not None or bool(scan.vials),
    )
    number = np.arange(scan.readouts)
    levels = max(scan.slices, scan.partitions)
    pixel = trajectory.resolution
    state = physiology.state(number * scan.tr)
    slices = number % scan.slices if scan.interleaved else number * scan.slices // scan.readouts
    received = np.ones(scan.readouts, bool)
    received[1 + random.choice(scan.readouts - 2, scan.lost, replace=False)] = False
    k = trajectory.k
    if scan.girf is not None:
        read_dir, phase_dir, slice_dir = readout_axes(scan.rotation)
        rotation = rotation_to_physical(read_dir, phase_dir, slice_dir, scan.patient_position)
        k = predict_trajectory(k, scan.girf, trajectory.dwell, rotation)
    still_object = np.zeros((0, 6))
    if scan.point is not None:
        x, y = (1e-3 * value for value in scan.point[:2])
        still_object = as_parameters(Ellipse(x, y, POINT_RADIUS * pixel, POINT_RADIUS * pixel, 0, 1))
    if scan.vials:
        still_object = vials(len(scan.vials), trajectory.image_fov())
    truth = Truth(
        matrix=trajectory.matrix_size(),
        pixel=pixel,
        coils=array_coils(scan.coils, trajectory.image_fov()),
        time=number * scan.tr,
        scan_counter=scan.noise_scan + scan.dummies + 1 + number,
        column=number % trajectory.arms,
        slice=slices,
        partition=number // trajectory.arms % scan.partitions,
        received=received,
        cardiac_phase=state.cardiac_phase,
        respiratory_phase=state.respiratory_phase,
        contraction=state.contraction,
        inhalation=state.inhalation,
        level=np.linspace(-1, 1, levels) if levels > 1 else np.zeros(1),
        beats=physiology.beats,
        actual_k=k,
        still_object=still_object,
        still_frequencies=np.array(scan.vials, float),
        off_resonance=np.array(dataclasses.astuple(scan.off_resonance), float),
    )
    return Simulation(trajectory, scan, make_header(trajectory, scan), truth, physiology)


def check(trajectory: Trajectory, scan: Scan) -> None:
    """Raise a ValueError that says what is wrong unless trajectory and scan fit each other and make sense."""
    for name, lowest, highest in (
        ("readouts", 4, 10_000_000),
        ("coils", 1, 1024),
        ("slices", 1, MAX_COUNTER),
        ("partitions", 1, 1024 if scan.slices == 1 else 1),
        ("dummies", 0, 1_000_000),
        ("lost", 0, scan.readouts - 2),
        ("noise", 0, math.inf),
        ("b0", 0.01, 20),
        ("heart_rate", 10, 300),
        ("breathing_rate", 2, 60),
        ("pilot_tone_delay", 0, 1),
    ):
        value = getattr(scan, name)
        if not lowest <= value <= highest:
            raise ValueError(f"{name} is {value:g}, must be {lowest} to {highest}")
    if scan.carried not in ("", *UNITS):
        raise ValueError(f"carried is {scan.carried!r}, must be empty or one of {', '.join(UNITS)}")
    if scan.point is not None and len(scan.point) != (2 if scan.partitions == 1 else 3):
        raise ValueError(f"point is {scan.point}, must be (x, y), or in a stack (x, y, z)")
    if scan.point is not None and scan.vials:
        raise ValueError("point and vials are both in place of the chest: give one of them")
    if not np.isfinite([*scan.vials, *dataclasses.astuple(scan.off_resonance)]).all():
        raise ValueError("vials and off_resonance must be finite numbers")
    if scan.partitions > 1 and (scan.concomitant or scan.vials):
        raise ValueError("concomitant and vials are simulated for slices, not for stacks: partitions must be 1")
    duration = trajectory.readout_length * trajectory.dwell + max(scan.echo_times)
    if not scan.tr > duration:
        raise ValueError(f"a TR of {1e3 * scan.tr:g} ms is too short for readouts that end after {1e3 * duration:g} ms")
    if scan.slices > scan.readouts:
        raise ValueError(f"{scan.readouts} readouts are too few for {scan.slices} slices")
    if not 8 <= trajectory.readout_length < MAX_COUNTER:
        raise ValueError(f"a readout would have {trajectory.readout_length} samples, must be 8 to {MAX_COUNTER - 1}")
    if scan.remove_oversampling and trajectory.readout_length % 2:
        raise ValueError(
            f"{trajectory.readout_length} samples cannot be halved: change pre_discard by one to remove oversampling"
        )
