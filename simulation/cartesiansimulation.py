"""A Cartesian scan of the Shepp-Logan phantom, simulated readout by readout: plain, accelerated, partial, 3-D, or EPI.

The k-space is exact (closed form), so that a reconstruction can be compared with the truth. Density 1 is pixel value 1
in an image that is the inverse Fourier transform divided by the number of k-space points::

    scan = Scan(columns=128, rows=96, coils=4)
    metadata = header(scan)
    for readout in acquisitions(scan): ...             # in the order of time
    density(scan), maps(scan), noise_covariance(scan)  # truth
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import ismrmrd.xsd
import numpy as np
from numpy.typing import NDArray

from simulation import phantom
from simulation.cartesianorder import Line, has_calibration, is_navigator, trains
from simulation.cartesianphantom import Cylinder, groups_by_extent, slab_signal
from simulation.cartesianscan import REPETITION_TIME, SLICE_THICKNESS, Epi, Noise, Scan, check

__all__ = [
    "Epi", "Noise", "Scan", "acquisitions", "check", "density", "header", "maps", "noise_acquisitions",
    "noise_covariance", "noise_header", "save_truth",
]  # fmt: skip

ECHO_TIME = 5.0  # [ms]
TICK = 2.5  # [ms], of time stamps
FIRST_TIME_STAMP = 12 * 3600 * 400  # noon [ticks]
MEASUREMENT_ID = "shepp_logan"
NOISE_MEASUREMENT_ID = "shepp_logan_noise"
CALIBRATION_SIGNAL = 2.0  # of separate calibration lines, by that of the image


# ------------------------------------------------------------------------------------------------------------- header
def header(scan: Scan) -> ismrmrd.xsd.ismrmrdHeader:
    """MRD header of a scan."""
    xsd = ismrmrd.xsd
    width, height = scan.columns * scan.pixel * 1e3, scan.rows * scan.pixel * 1e3
    depth = scan.partitions * SLICE_THICKNESS * 1e3
    rows, partitions = scan.acquired_rows, scan.acquired_partitions
    limit = xsd.limitType
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=limit(
            minimum=0, maximum=scan.samples - scan.first_sample - 1, center=scan.samples // 2 - scan.first_sample
        ),
        # Counters begin at 0 with the first line that is acquired, as in Siemens data.
        kspace_encoding_step_1=limit(minimum=0, maximum=len(rows) - 1, center=scan.rows // 2 - rows.start),
        kspace_encoding_step_2=limit(
            minimum=0, maximum=len(partitions) - 1, center=scan.partitions // 2 - partitions.start
        ),
        average=limit(minimum=0, maximum=scan.averages - 1, center=0),
        slice=limit(minimum=0, maximum=scan.slices - 1, center=0),
        repetition=limit(minimum=0, maximum=scan.shots - 1, center=0),
        segment=limit(minimum=0, maximum=0 if scan.epi is None else 1, center=0),
    )
    encoding = xsd.encodingType(
        trajectory=xsd.trajectoryType.CARTESIAN if scan.epi is None else xsd.trajectoryType.EPI,
        trajectoryDescription=None if scan.epi is None else _epi_description(scan, scan.epi),
        encodedSpace=xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=scan.samples, y=scan.rows, z=scan.partitions),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width * scan.oversampling, y=height, z=depth),
        ),
        reconSpace=xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=scan.columns, y=scan.rows, z=scan.partitions),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=height, z=depth),
        ),
        encodingLimits=limits,
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=scan.acceleration, kspace_encoding_step_2=scan.acceleration_2
            ),
            calibrationMode=_calibration_mode(scan),
        ),
        echoTrainLength=None if scan.epi is None else _echo_train_length(scan),
    )
    made = _header(scan, MEASUREMENT_ID, "Shepp-Logan phantom", [encoding])
    if scan.noise_model.dependency:
        made.measurementInformation.measurementDependency = [
            xsd.measurementDependencyType(dependencyType="Noise", measurementID=NOISE_MEASUREMENT_ID)
        ]
    return made


def noise_header(scan: Scan) -> ismrmrd.xsd.ismrmrdHeader:
    """MRD header of the noise measurement that is a scan of its own, on which `header` says that the scan depends."""
    xsd = ismrmrd.xsd
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=scan.samples, y=1, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=1e3 * scan.samples * scan.pixel, y=1e3 * scan.rows * scan.pixel, z=5.0),
    )
    encoding = xsd.encodingType(
        trajectory=xsd.trajectoryType.CARTESIAN,
        encodedSpace=space,
        reconSpace=space,
        encodingLimits=xsd.encodingLimitsType(
            kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=scan.noise_model.readouts - 1, center=0)
        ),
    )
    return _header(scan, NOISE_MEASUREMENT_ID, "noise measurement", [encoding])


def _header(scan: Scan, identifier: str, protocol: str, encodings: list) -> ismrmrd.xsd.ismrmrdHeader:
    xsd = ismrmrd.xsd
    return xsd.ismrmrdHeader(
        version=1,
        measurementInformation=xsd.measurementInformationType(
            measurementID=identifier, patientPosition=xsd.patientPositionType.HFS, protocolName=protocol
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Simulation",
            systemModel="closed form",
            relativeReceiverNoiseBandwidth=scan.noise_model.bandwidth,
            receiverChannels=scan.coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_870_000),
        encoding=encodings,
        sequenceParameters=xsd.sequenceParametersType(
            TR=[_repetition_time(scan)], TE=[ECHO_TIME], flipAngle_deg=[15.0]
        ),
    )


def _calibration_mode(scan: Scan) -> ismrmrd.xsd.calibrationModeType:
    if scan.calibration != "interleaved" and not has_calibration(scan):
        return ismrmrd.xsd.calibrationModeType.OTHER
    return ismrmrd.xsd.calibrationModeType(scan.calibration)


def _echo_train_length(scan: Scan) -> int:
    """Lines of the longest EPI train of the image, without navigators."""
    imaging = (train for train in trains(scan) if not train[-1].calibration)
    return max(sum(not is_navigator(line) for line in train) for train in imaging)


def _epi_description(scan: Scan, epi: Epi) -> ismrmrd.xsd.trajectoryDescriptionType:
    """Readout gradient in the words of converters of Siemens data, times in microseconds."""
    xsd, lobe = ismrmrd.xsd, scan.lobe
    integers = {
        "etl": _echo_train_length(scan),
        "numberOfNavigators": epi.navigators,
        "rampUpTime": lobe.ramp_time,
        "rampDownTime": lobe.ramp_time,
        "flatTopTime": lobe.flat_top_time,
        "acqDelayTime": lobe.acquisition_delay,
        "numSamples": lobe.samples,
        "echoSpacing": lobe.echo_spacing,
    }
    return xsd.trajectoryDescriptionType(
        identifier="ConventionalEPI",
        userParameterLong=[xsd.userParameterLongType(name=name, value=value) for name, value in integers.items()],
        userParameterDouble=[xsd.userParameterDoubleType(name="dwellTime", value=lobe.dwell)],
        comment="Conventional 2D EPI sequence",
    )


def _repetition_time(scan: Scan) -> float:
    """Time from excitation to excitation [ms]."""
    if scan.epi is None:
        return REPETITION_TIME
    train = 1e-3 * scan.lobe.echo_spacing * (scan.epi.navigators + scan.rows)
    return REPETITION_TIME * (train // REPETITION_TIME + 2)


# ------------------------------------------------------------------------------------------------------------- signal
def kx_of(scan: Scan, from_right: bool = False) -> NDArray[np.float64]:
    """Positions of the samples of a readout in the order of time [1/m]; of EPI where the gradients really bring them.

    Parameters
    ----------
    scan
        The scan.
    from_right
        Of a reversed line.
    """
    extent = scan.samples * scan.pixel
    if scan.epi is None:
        return (np.arange(scan.first_sample, scan.samples) - scan.samples // 2) / extent
    return scan.lobe.positions(scan.epi.delay) * (-1 if from_right else 1) / extent


class KSpace:
    """Noise-free k-space of a scan; what does not depend on z is computed once.

    Parameters
    ----------
    scan
        The scan.
    """

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._groups = groups_by_extent(scan.cylinders) if scan.partitions > 1 else _groups_by_slice(scan)
        ky = (np.arange(scan.rows) - scan.rows // 2) / (scan.rows * scan.pixel)
        self._planes = [
            [
                scan.coil_ring.kspace([c.ellipse for c in group], kx_of(scan, from_right), ky[:, np.newaxis])
                / scan.pixel**2
                for group in self._groups
            ]
            for from_right in ((False,) if scan.epi is None else (False, True))
        ]  # [direction][group][coil, row, sample]
        self._factors = [
            [self._along_z(group, number, partition) for group in self._groups]
            for number in range(scan.slices)
            for partition in range(scan.partitions)
        ]  # [slice or partition][group][coil]

    def _along_z(self, group: tuple[Cylinder, ...], number: int, partition: int) -> NDArray[np.complex128]:
        scan = self._scan
        if scan.partitions > 1:
            kz = (partition - scan.partitions // 2) / (scan.partitions * SLICE_THICKNESS)
            return slab_signal(group[0], scan.coils_along_z, kz) / SLICE_THICKNESS
        z = scan.slice_positions[number]
        return scan.coils_along_z.maps(z, 0.0) * group[0].contains(z)

    def line(self, line: Line) -> NDArray[np.complex128]:
        """Signal of a line [coil, sample] in the order of time."""
        scan = self._scan
        factors = self._factors[line.slice if scan.partitions == 1 else line.partition]
        planes = self._planes[int(line.reversed)]
        products = (f[:, np.newaxis] * plane[:, line.row] for f, plane in zip(factors, planes, strict=True))
        signal: NDArray[np.complex128] = sum(products, start=np.zeros((), complex))
        if scan.epi is not None and line.reversed:
            signal = signal * np.exp(1j * reversed_phase(scan.epi, scan.coils))[:, np.newaxis]
        return signal * (CALIBRATION_SIGNAL if line.calibration else 1.0)


def reversed_phase(epi: Epi, coils: int) -> NDArray[np.float64]:
    """Phase of reversed lines [coil] [rad]."""
    return epi.phase * (1 + 0.5 * np.sin(np.arange(coils)))


def _groups_by_slice(scan: Scan) -> list[tuple[Cylinder, ...]]:
    """Cylinders that occur in the same slices, together."""
    groups: dict[tuple[bool, ...], list[Cylinder]] = {}
    for item in scan.cylinders:
        groups.setdefault(tuple(item.contains(z) for z in scan.slice_positions), []).append(item)
    return [tuple(group) for group in groups.values()]


# -------------------------------------------------------------------------------------------------------------- noise
def noise_covariance(scan: Scan) -> NDArray[np.complex128]:
    """Covariance of the noise of imaging samples between coils, E[n n^H] [coil, coil]; 2 x noise^2 x points on average.

    (1 - correlation) times the identity and correlation times a random matrix A A^H with ones on its diagonal; the
    coils' levels differ by up to 2^correlation either way.
    """
    random = np.random.default_rng(scan.noise_model.covariance_seed)
    correlation, count = scan.noise_model.correlation, scan.coils
    real, imaginary = random.standard_normal((2, count, count))
    mixing = real + 1j * imaginary
    product = mixing @ mixing.conj().T
    level = np.sqrt(np.diagonal(product).real)
    level_of_coil = 2.0 ** (correlation * random.uniform(-1, 1, count))
    level_of_coil /= np.sqrt(np.mean(level_of_coil**2))
    mixed = (1 - correlation) * np.eye(count) + correlation * product / np.outer(level, level)
    points = scan.rows * scan.samples * scan.partitions
    return 2 * scan.noise**2 * points * np.outer(level_of_coil, level_of_coil) * mixed


@dataclass(frozen=True, eq=False)
class _NoiseSource:
    """Random samples with the covariance of a scan's noise; `factor` [coil, coil] times its adjoint is half of that."""

    random: np.random.Generator
    factor: NDArray[np.complexfloating]

    def samples(self, count: int, scale: float = 1.0) -> NDArray[np.complex128]:
        """Noise [coil, sample]; `scale` multiplies its standard deviation."""
        parts = self.random.standard_normal((2, len(self.factor), count))
        return scale * (self.factor @ (parts[0] + 1j * parts[1]))


def _noise_source(scan: Scan, seed: list[int] | int) -> _NoiseSource:
    half = noise_covariance(scan) / 2
    factor = np.linalg.cholesky(half) if scan.noise > 0 else np.zeros_like(half)
    return _NoiseSource(np.random.default_rng(seed), factor)


def _noise_readouts(scan: Scan, source: _NoiseSource) -> Iterator[ismrmrd.Acquisition]:
    model = scan.noise_model
    dwell = scan.dwell if model.dwell is None else model.dwell
    scale = np.sqrt(scan.dwell / dwell * (model.bandwidth or 1.0))
    for number in range(model.readouts):
        readout = _readout(scan, source.samples(scan.samples, scale), number + 1, number * REPETITION_TIME)
        readout.sample_time_us = dwell
        readout.center_sample = scan.samples // 2
        readout.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        yield readout


def noise_acquisitions(scan: Scan) -> Iterator[ismrmrd.Acquisition]:
    """Yield the readouts of the noise measurement that is a scan of its own."""
    yield from _noise_readouts(scan, _noise_source(scan, [scan.seed, 1]))


# ----------------------------------------------------------------------------------------------------------- readouts
def acquisitions(scan: Scan) -> Iterator[ismrmrd.Acquisition]:
    """Yield the readouts of a scan in the order of time."""
    source = _noise_source(scan, scan.seed)
    counter = 0
    if scan.noise_scan:
        for readout in _noise_readouts(scan, source):
            counter += 1
            yield readout
    kspace = KSpace(scan)
    begin, repetition_time = counter * REPETITION_TIME, _repetition_time(scan)
    spacing = 0.0 if scan.epi is None else 1e-3 * scan.lobe.echo_spacing
    for number, train in enumerate(trains(scan)):
        for echo, line in enumerate(train):
            counter += 1
            signal = kspace.line(line)
            data = signal + source.samples(signal.shape[1])
            yield _imaging_readout(scan, line, data, counter, begin + number * repetition_time + echo * spacing)


def _imaging_readout(
    scan: Scan, line: Line, data: NDArray[np.complex128], counter: int, time: float
) -> ismrmrd.Acquisition:
    readout = _readout(scan, data, counter, time)
    idx = readout.idx
    idx.kspace_encode_step_1 = line.row - scan.acquired_rows.start
    idx.kspace_encode_step_2 = line.partition - scan.acquired_partitions.start
    idx.slice, idx.repetition, idx.average = line.slice, line.repetition, line.average
    idx.segment = int(line.reversed)  # as converters of Siemens data count
    idx.user[0] = line.shot
    readout.position = (0, 0, 1e3 * scan.slice_positions[line.slice])
    for flag in line.flags:
        readout.set_flag(flag)
    return readout


def _readout(scan: Scan, data: NDArray[np.complex128], counter: int, time: float) -> ismrmrd.Acquisition:
    """One acquisition with what all have in common; data [coil, sample], `counter` from 1, `time` [ms]."""
    acquisition = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
    acquisition.scan_counter = counter
    acquisition.acquisition_time_stamp = FIRST_TIME_STAMP + round(time / TICK)
    acquisition.center_sample = scan.samples // 2 - scan.first_sample
    acquisition.sample_time_us = scan.dwell
    acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    acquisition.position = (0, 0, 0)
    for coil in range(scan.coils):
        acquisition.setChannelActive(coil)
    return acquisition


# -------------------------------------------------------------------------------------------------------------- truth
def plane_positions(scan: Scan) -> NDArray[np.float64]:
    """Position along z of the middle of each slice, or of each partition [m]."""
    if scan.partitions == 1:
        return scan.slice_positions
    return (np.arange(scan.partitions, dtype=float) - scan.partitions // 2) * SLICE_THICKNESS


def density(scan: Scan) -> NDArray[np.float64]:
    """True density [slice or partition, row, column], each pixel the mean over its area, or its volume in 3-D."""
    shape, pixel = (scan.rows, scan.columns), (scan.pixel, scan.pixel)
    positions, half = plane_positions(scan), SLICE_THICKNESS / 2
    truth = np.zeros((len(positions), *shape))
    for item in scan.cylinders:
        image = phantom.image([item.ellipse], shape, pixel)
        for plane, z in enumerate(positions):
            part = item.overlap(z - half, z + half) / SLICE_THICKNESS if scan.partitions > 1 else item.contains(z)
            truth[plane] += part * image
    return truth


def maps(scan: Scan) -> NDArray[np.complex128]:
    """True sensitivities times the phase of the object [coil, slice or partition, row, column]; not normalised."""
    grid = phantom.pixel_grid((scan.rows, scan.columns), (scan.pixel, scan.pixel))
    along_z = scan.coils_along_z.maps(plane_positions(scan), 0.0)
    return scan.coil_ring.maps(*grid)[:, np.newaxis] * along_z[:, :, np.newaxis, np.newaxis]


def save_truth(scan: Scan, file: Path) -> None:
    """Write `density`, `maps` and `noise_covariance` to an HDF5 file, each under its name."""
    import h5py

    with h5py.File(file, "w") as group:
        group["density"], group["maps"], group["noise_covariance"] = density(scan), maps(scan), noise_covariance(scan)
