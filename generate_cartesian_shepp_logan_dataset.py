"""Make an MRD raw data file: the Shepp-Logan phantom, sampled on a Cartesian grid or by EPI, seen by several coils.

The k-space is exact (closed form), so a reconstruction can be compared with the truth, which `--truth` writes. Density
1 is pixel value 1 in an image that is the inverse Fourier transform divided by the number of k-space points. The
simulation is `simulation.cartesiansimulation`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mrdio.commandline import number
from simulation.cartesianscan import MAX_COUNTER, MODES
from simulation.cartesiansimulation import (
    Epi,
    Noise,
    Scan,
    acquisitions,
    check,
    header,
    noise_acquisitions,
    noise_header,
    save_truth,
)
from simulation.rawfile import beside, write_raw


def make_scan(options: argparse.Namespace) -> Scan:
    """Collect what is to be simulated from the command line.

    Raises
    ------
    ValueError
        It makes no sense, or an option would have no effect.
    """
    epi = Epi(
        shots=options.epi_shots,
        delay=options.epi_delay,
        phase=options.epi_phase,
        ramp=options.epi_ramp,
        first_reversed=options.epi_first_reversed,
    )
    noise = Noise(
        correlation=options.noise_correlation,
        covariance_seed=options.noise_covariance_seed,
        readouts=options.noise_readouts,
        dwell=options.noise_dwell,
        bandwidth=options.noise_bandwidth,
        dependency=options.noise_output is not None,
    )
    if epi != Epi() and not options.epi:
        raise ValueError("options of EPI need --epi")
    if (options.noise_readouts > 1 or options.noise_dwell) and not (options.noise_calibration or noise.dependency):
        raise ValueError("--noise-readouts and --noise-dwell need -C or --noise-output")
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
        slices=options.slices,
        partitions=options.partitions,
        averages=options.averages,
        acceleration_2=options.acceleration_2,
        shift=options.shift,
        calibration=options.calibration,
        partial_fourier=options.partial_fourier,
        slice_partial_fourier=options.slice_partial_fourier,
        asymmetric_echo=options.asymmetric_echo,
        missing_end=options.missing_end,
        object_size=options.object_size,
        phase=options.phase,
        dwell=options.dwell,
        epi=epi if options.epi else None,
        noise_model=noise,
    )
    check(scan)
    return scan


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Scan]:
    """Read the command line; also returns the scan that it asks for."""
    parser = argparse.ArgumentParser(
        description="Make an MRD raw data file of the Shepp-Logan phantom with Cartesian sampling or EPI.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default, epi, noise = Scan(), Epi(), Noise()
    add = parser.add_argument
    add("-m", "--matrix", type=number(2, high=4096), nargs="+", default=[256], metavar="N", help="matrix: N, or x y")
    add("-c", "--coils", type=number(1, high=1024), default=default.coils, help="number of coils")
    add("-O", "--oversampling", type=number(1, high=16), default=default.oversampling, help="readout oversampling")
    add("-r", "--repetitions", type=number(1, high=MAX_COUNTER), default=default.repetitions, help="repetitions")
    add("-a", "--acceleration", type=number(1, high=64), default=1, help="acquire every n-th line; see --calibration")
    add("-w", "--calibration-width", type=number(0, high=4096), default=0, help="central lines always acquired")
    add("-n", "--noise-level", type=float, default=default.noise, help="noise of one coil's image, density is 1")
    add("-o", "--output", type=Path, default=Path("testdata.h5"), help="file to write; one of that name is replaced")
    add("-d", "--dataset", default="dataset", help="group in the file")
    add("-s", "--seed", type=number(0, high=2**32 - 1), default=default.seed, help="of the random numbers")
    add("-C", "--noise-calibration", action="store_true", help="begin with a noise readout")
    add("--truth", action="store_true", help="write density, coil maps and noise covariance as OUTPUT_truth.h5, too")

    add = parser.add_argument_group("object").add_argument
    add("--object-size", type=float, default=default.object_size, help="by the shorter side of the field of view; "
        "above 1 it wraps round")  # fmt: skip
    add("--phase", type=float, default=default.phase, help="amplitude of a smooth phase [rad]")
    add("--slices", type=number(1, high=1024), default=default.slices, help="number of slices")
    add("--partitions", type=number(1, high=1024), default=default.partitions, help="3-D: partitions of one slab")

    add = parser.add_argument_group("sampling").add_argument
    add("--averages", type=number(1, high=MAX_COUNTER), default=default.averages, help="how often each line is taken")
    add("--calibration", choices=MODES, default=default.calibration, help="interleaved: --acceleration repetitions, "
        "each one line later; embedded: always the same lines, the calibration lines among them; separate: calibration "
        "lines come first, with another contrast")  # fmt: skip
    add("--acceleration-2", type=number(1, high=64), default=1, help="3-D: acquire every n-th partition")
    add("--shift", type=number(0, high=63), default=default.shift, help="CAIPIRINHA: partitions further per line")
    add("--partial-fourier", type=float, default=default.partial_fourier, help="part of the lines acquired")
    add("--slice-partial-fourier", type=float, default=default.slice_partial_fourier, help="part of the partitions")
    add("--asymmetric-echo", type=float, default=default.asymmetric_echo, help="part of each readout acquired")
    add("--missing-end", action="store_true", help="partial Fourier leaves out the end, not the beginning")
    add("--dwell", type=float, default=default.dwell, help="time from sample to sample [us]")

    add = parser.add_argument_group("EPI").add_argument
    add("--epi", action="store_true", help="trains of lines to and fro, sampled on the ramps, after three navigators")
    add("--epi-shots", type=number(1, high=4096), default=epi.shots, help="trains into which an image is divided")
    add("--epi-delay", type=float, default=epi.delay, help="of the gradients [us]; displaces odd and even lines")
    add("--epi-phase", type=float, default=epi.phase, help="of reversed lines [rad]; each coil has another")
    add("--epi-ramp", type=float, default=epi.ramp, help="part of a line's gradient that each ramp takes")
    add("--epi-first-reversed", action="store_true", help="the first navigator is reversed, as on Siemens scanners")

    add = parser.add_argument_group("noise").add_argument
    add("--noise-correlation", type=float, default=noise.correlation, help="between coils, 0 to below 1")
    add("--noise-covariance-seed", type=number(0, high=2**32 - 1), default=noise.covariance_seed, help="of the coils' "
        "covariance")  # fmt: skip
    add("--noise-readouts", type=number(1, high=MAX_COUNTER), default=noise.readouts, help="of a noise measurement")
    add("--noise-dwell", type=float, help="time from sample to sample of noise readouts [us], instead of --dwell")
    add("--noise-bandwidth", type=float, help="relativeReceiverNoiseBandwidth of the header")
    add("--noise-output", type=Path, help="write a noise measurement of its own, which the scan's header names")
    options = parser.parse_args(arguments)
    if len(options.matrix) > 2:
        parser.error(f"--matrix takes one or two numbers; got {len(options.matrix)}")
    for path in (options.output, options.noise_output):
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            parser.error(f"{path} is no file in an existing folder")
    if options.noise_output is not None and options.noise_output.absolute() == options.output.absolute():
        parser.error("--noise-output and --output are the same file")
    try:
        return options, make_scan(options)
    except ValueError as error:
        return parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    options, scan = parse_arguments(arguments)
    replaced = ", in place of the file that was there" if options.output.exists() else ""
    path = options.output
    more = []
    try:
        (count,) = write_raw(header(scan), [acquisitions(scan)], path, options.dataset)
        if options.noise_output is not None:
            path = options.noise_output
            write_raw(noise_header(scan), [noise_acquisitions(scan)], path, options.dataset)
            more.append(f"noise measurement {path}: send it first")
        if options.truth:
            path = beside(options.output, "truth.h5")
            save_truth(scan, path)
            more.append(f"truth {path}")
    except OSError as error:
        print(f"cannot write {path}: {error}", file=sys.stderr)
        return 1
    depth = f" x {scan.partitions}" if scan.partitions > 1 else f", {scan.slices} slices" if scan.slices > 1 else ""
    print(
        f"wrote {options.output}{replaced}: {count} readouts, matrix {scan.columns} x {scan.rows}{depth}, "
        f"{scan.coils} coils, {scan.shots} repetitions, group {options.dataset}",
        *more,
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
