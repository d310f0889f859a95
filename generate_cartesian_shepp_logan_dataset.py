"""Make an MRD raw data file: the Shepp-Logan phantom, sampled on a Cartesian grid, seen by several coils.

The k-space is exact (closed form), so a reconstruction can be compared with `simulation.phantom.image`. Density 1 is
pixel value 1 in an image that is the inverse Fourier transform divided by the number of k-space points.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import ismrmrd.xsd
import numpy as np

from mrdio.commandline import number
from mrdio.mrdfile import MrdWriter
from simulation import phantom

FIELD_OF_VIEW = 0.3  # [m], of the longer side
SLICE_THICKNESS = 5e-3  # [m]
REPETITION_TIME = 10.0  # [ms]
ECHO_TIME = 5.0  # [ms]
TICK = 2.5  # [ms], of time stamps
FIRST_TIME_STAMP = 12 * 3600 * 400  # noon [ticks]
DWELL = 5.0  # [us]
MAX_COUNTER = 2**16
MAX_SAMPLES = 8192


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
        Each repetition becomes this many, with every `acceleration`-th line each, beginning one line later each time.
    calibration_width
        Lines round the k-space centre that are always acquired when accelerated.
    noise
        Standard deviation of real and of imaginary part of a coil's fully sampled image; density is 1 at most.
    noise_scan
        Whether a noise readout comes first.
    seed
        Of the random numbers.
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

    @property
    def pixel(self) -> float:
        """Edge of a pixel [m]."""
        return FIELD_OF_VIEW / max(self.columns, self.rows)

    @property
    def samples(self) -> int:
        """Samples of a readout."""
        return self.columns * self.oversampling

    @property
    def object(self) -> tuple[phantom.Ellipse, ...]:
        """The phantom, as large as the shorter side of the field of view."""
        return phantom.shepp_logan(self.pixel * min(self.columns, self.rows))

    @property
    def coil_ring(self) -> phantom.Coils:
        """The coils' sensitivities."""
        return phantom.ring_of_coils(self.coils, self.pixel * min(self.columns, self.rows))


def header(scan: Scan) -> ismrmrd.xsd.ismrmrdHeader:
    """MRD header of a scan."""
    xsd = ismrmrd.xsd
    width, height, depth = scan.columns * scan.pixel * 1e3, scan.rows * scan.pixel * 1e3, SLICE_THICKNESS * 1e3
    shots = scan.repetitions * scan.acceleration
    encoding = xsd.encodingType(
        trajectory=xsd.trajectoryType.CARTESIAN,
        encodedSpace=xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=scan.samples, y=scan.rows, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width * scan.oversampling, y=height, z=depth),
        ),
        reconSpace=xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=scan.columns, y=scan.rows, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=height, z=depth),
        ),
        encodingLimits=xsd.encodingLimitsType(
            kspace_encoding_step_0=xsd.limitType(minimum=0, maximum=scan.samples - 1, center=scan.samples // 2),
            kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=scan.rows - 1, center=scan.rows // 2),
            repetition=xsd.limitType(minimum=0, maximum=shots - 1, center=0),
        ),
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=scan.acceleration, kspace_encoding_step_2=1
            ),
            calibrationMode=xsd.calibrationModeType.INTERLEAVED,
        ),
    )
    return xsd.ismrmrdHeader(
        version=1,
        measurementInformation=xsd.measurementInformationType(
            measurementID="shepp_logan",
            patientPosition=xsd.patientPositionType.HFS,
            protocolName="Shepp-Logan phantom",
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Simulation", systemModel="closed form", receiverChannels=scan.coils
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_870_000),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(TR=[REPETITION_TIME], TE=[ECHO_TIME], flipAngle_deg=[15.0]),
    )


def clean_kspace(scan: Scan) -> np.ndarray:
    """Noise-free k-space complex128 [coil, row, sample], with k = 0 at index N // 2."""
    kx = (np.arange(scan.samples) - scan.samples // 2) / (scan.samples * scan.pixel)
    ky = (np.arange(scan.rows) - scan.rows // 2) / (scan.rows * scan.pixel)
    return scan.coil_ring.kspace(scan.object, kx, ky[:, np.newaxis]) / scan.pixel**2


def calibration_rows(scan: Scan) -> range:
    """Rows that an accelerated scan acquires every time; none when it is not accelerated."""
    if scan.acceleration == 1:
        return range(0)
    first = scan.rows // 2 - scan.calibration_width // 2
    return range(max(first, 0), min(first + scan.calibration_width, scan.rows))


def acquisitions(scan: Scan) -> Iterator[ismrmrd.Acquisition]:
    """Yield the readouts of a scan in the order of time."""
    random = np.random.default_rng(scan.seed)
    sigma = scan.noise * np.sqrt(scan.rows * scan.samples)

    def noise() -> np.ndarray:
        return sigma * (random.standard_normal((2, scan.coils, scan.samples)) * np.array([1, 1j])[:, None, None]).sum(0)

    counter = 0
    if scan.noise_scan:
        counter += 1
        yield _readout(scan, noise(), counter, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    clean = clean_kspace(scan)
    calibration = calibration_rows(scan)
    shots = scan.repetitions * scan.acceleration
    for shot in range(shots):
        regular = range(shot % scan.acceleration, scan.rows, scan.acceleration)
        rows = sorted({*regular, *calibration})
        for row in rows:
            counter += 1
            flags = _position_flags(row == rows[0], row == rows[-1], shot == shots - 1)
            if row in calibration:
                flags.append(
                    ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
                    if row in regular
                    else ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
                )
            yield _readout(scan, clean[:, row] + noise(), counter, flags, row, shot)


def _position_flags(first: bool, last: bool, last_shot: bool) -> list[int]:
    flags = []
    if first:
        flags += [ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION]
    if last:
        flags += [ismrmrd.ACQ_LAST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION]
    if last and last_shot:
        flags.append(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return flags


def _readout(
    scan: Scan, data: np.ndarray, counter: int, flags: Sequence[int], row: int = 0, repetition: int = 0
) -> ismrmrd.Acquisition:
    """One acquisition with a complete header; data [coil, sample], `counter` from 1."""
    acquisition = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
    acquisition.scan_counter = counter
    acquisition.acquisition_time_stamp = FIRST_TIME_STAMP + round((counter - 1) * REPETITION_TIME / TICK)
    acquisition.center_sample = scan.samples // 2
    acquisition.sample_time_us = DWELL
    acquisition.read_dir, acquisition.phase_dir, acquisition.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    acquisition.position = (0, 0, 0)
    acquisition.idx.kspace_encode_step_1 = row
    acquisition.idx.repetition = repetition
    for coil in range(scan.coils):
        acquisition.setChannelActive(coil)
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def write(scan: Scan, path: Path, group: str) -> int:
    """Write a scan to a new MRD file, which replaces one of that name only when it is complete.

    Returns
    -------
    Number of readouts.
    """
    count = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / "unfinished.h5"
        with MrdWriter(unfinished, group) as writer:
            writer.write_header(header(scan).toXML("utf-8"))
            for acquisition in acquisitions(scan):
                writer.write(acquisition)
                count += 1
        unfinished.replace(path)
    return count


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Make an MRD raw data file of the Shepp-Logan phantom with Cartesian sampling.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Scan()
    add = parser.add_argument
    add("-m", "--matrix", type=number(2, high=4096), nargs="+", default=[256], metavar="N", help="matrix: N, or x y")
    add("-c", "--coils", type=number(1, high=1024), default=default.coils, help="number of coils")
    add("-O", "--oversampling", type=number(1, high=16), default=default.oversampling, help="readout oversampling")
    add("-r", "--repetitions", type=number(1, high=MAX_COUNTER), default=default.repetitions, help="repetitions")
    add("-a", "--acceleration", type=number(1, high=64), default=1, help="acquire every n-th line, shifted each time")
    add("-w", "--calibration-width", type=number(0, high=4096), default=0, help="central lines always acquired")
    add("-n", "--noise-level", type=float, default=default.noise, help="noise of one coil's image, density is 1")
    add("-o", "--output", type=Path, default=Path("testdata.h5"), help="file to write; one of that name is replaced")
    add("-d", "--dataset", default="dataset", help="group in the file")
    add("-s", "--seed", type=number(0, high=2**32 - 1), default=default.seed, help="of the random numbers")
    add("-C", "--noise-calibration", action="store_true", help="begin with a noise readout")
    options = parser.parse_args(arguments)
    if len(options.matrix) > 2:
        parser.error(f"--matrix takes one or two numbers; got {len(options.matrix)}")
    if options.matrix[0] * options.oversampling > MAX_SAMPLES:
        parser.error(f"matrix times oversampling gives readouts of more than {MAX_SAMPLES} samples")
    if options.acceleration > options.matrix[-1]:
        parser.error(f"--acceleration is {options.acceleration}; there are only {options.matrix[-1]} lines")
    if options.repetitions * options.acceleration > MAX_COUNTER:
        parser.error(f"repetitions times acceleration is more than {MAX_COUNTER}")
    if not 0 <= options.noise_level < np.inf:
        parser.error(f"--noise-level is {options.noise_level}; expected a finite number that is not negative")
    if not options.output.parent.is_dir() or options.output.is_dir():
        parser.error(f"{options.output} is no file in an existing folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    options = parse_arguments(arguments)
    scan = Scan(
        columns=options.matrix[0],
        rows=options.matrix[-1],
        coils=options.coils,
        oversampling=options.oversampling,
        repetitions=options.repetitions,
        acceleration=options.acceleration,
        calibration_width=options.calibration_width,
        noise=options.noise_level,
        noise_scan=options.noise_calibration,
        seed=options.seed,
    )
    replaced = ", in place of the file that was there" if options.output.exists() else ""
    try:
        count = write(scan, options.output, options.dataset)
    except OSError as error:
        print(f"cannot write {options.output}: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {options.output}{replaced}: {count} readouts, matrix {scan.columns} x {scan.rows}, {scan.coils} coils, "
        f"{scan.repetitions * scan.acceleration} repetitions, group {options.dataset}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
