"""Make an MRD raw data file of a spiral scan: a beating, breathing chest seen by several coils, ECG and pilot tone.

Radial scans, rosettes, spirals of variable density and 3-D stacks of any of them, too. Written are the raw data, the
metafile of the trajectory (unless the readouts carry it), the truth (`simulation.spiraltruth.Truth` reads it), and,
when the gradients are to be distorted, their impulse response. The simulation is `simulation.spiralsimulation`.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from GIRF import PATIENT_TO_DEVICE
from mrdio.commandline import number
from recon.configuration import project_path
from recon.gradientresponse import load_girf
from recon.trajectory import SIGNATURE_LENGTH, Trajectory, read_metafile, write_metafile
from simulation import trajectories, twoechoes
from simulation.fields import OffResonance
from simulation.rawfile import beside, write_raw
from simulation.spiraldesign import SpiralDesign, arm_rotation, design_spiral, synthetic_girf
from simulation.spiralsimulation import UNITS, Scan, simulate

SYNTHETIC = "synthetic"
SPIRAL = "spiral"
INTERLEAVES: dict[str, Callable[[float], float]] = {  # evenly turned arms that fill k-space, by the matrix size
    SPIRAL: lambda matrix: SpiralDesign().interleaves,
    "radial": lambda matrix: math.pi / 2 * matrix,
    "rosette": lambda matrix: 2 * matrix,
    "variable": lambda matrix: matrix / 3,
}
HEADER_KIND = {"radial": "radial", "rosette": "other"}  # else a spiral


def make_trajectory(options: argparse.Namespace) -> Trajectory:
    """Read or design the trajectory that the command line asks for, and see that its metafile is in `--seq-meta`.

    Raises
    ------
    ValueError
        The design or the metafile cannot be used.
    """
    if not options.carry:
        options.seq_meta.mkdir(exist_ok=True)
    if options.metafile is not None:
        name = options.metafile.stem
        if not (name.isascii() and name.isalnum() and len(name) <= SIGNATURE_LENGTH):
            raise ValueError(f"the name {name!r} is no signature of {SIGNATURE_LENGTH} letters and digits")
        trajectory = read_metafile(options.metafile)
        target = options.seq_meta / options.metafile.name
        if not options.carry and not (target.exists() and target.samefile(options.metafile)):
            shutil.copyfile(options.metafile, target)
        return trajectory
    resolution = options.resolution if options.matrix is None else 10 * options.fov / options.matrix
    matrix = 10 * options.fov / resolution
    design = SpiralDesign(
        fov=1e-2 * options.fov,
        resolution=1e-3 * resolution,
        interleaves=options.interleaves or math.ceil(INTERLEAVES[options.trajectory](matrix)),
        gradient=1e-3 * options.gradient,
        slew=options.slew,
        dwell=1e-6 * options.dwell,
        ordering=options.ordering,
        arms=options.arms_in_metafile,
        pre_discard=options.pre_discard,
    )
    if options.trajectory == SPIRAL:
        trajectory = design_spiral(design, options.seq_meta)
    else:
        trajectory = trajectories.design(options.trajectory, design, options.seq_meta)
    if not options.carry:
        write_metafile(trajectory, ga_rotation=arm_rotation(design))
    return trajectory


def make_scan(options: argparse.Namespace) -> Scan:
    """Collect what is to be simulated from the command line; the gradient response is read or made."""
    girf = None
    if options.girf is not None:
        girf = synthetic_girf() if options.girf == SYNTHETIC else load_girf(options.girf)
    tr = 1e-3 * options.tr
    return Scan(
        readouts=options.arms if options.seconds is None else math.ceil(options.seconds / tr),
        tr=tr,
        coils=options.coils,
        noise=options.noise_level,
        slices=options.slices,
        partitions=options.partitions,
        kind=HEADER_KIND.get(options.trajectory, "spiral"),
        carried=options.carry,
        interleaved=options.slice_order == "interleaved",
        rotation=tuple(options.rotate),
        position=tuple(options.position),
        patient_position=options.patient_position,
        girf=girf,
        remove_oversampling=options.remove_oversampling,
        still=options.still,
        point=None if options.point is None else tuple(options.point),
        vials=tuple(options.vials),
        off_resonance=OffResonance(*options.off_resonance),
        field_strength=options.field_strength,
        concomitant=options.concomitant,
        heart_rate=options.heart_rate,
        breathing_rate=options.breathing_rate,
        waveforms=not options.no_waveforms,
        pilot_tone_delay=options.pilot_tone_delay,
        noise_scan=options.noise_calibration,
        dummies=options.dummies,
        lost=options.drop,
        seed=options.seed,
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Make an MRD raw data file of a spiral scan of a beating, breathing chest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    scan, spiral = Scan(), SpiralDesign()

    add = parser.add_argument_group("files").add_argument
    add("-o", "--output", type=Path, default=Path("spiral_raw.h5"), help="file to write; one of that name is replaced")
    add("-d", "--dataset", default="dataset", help="group in the file")
    add("--seq-meta", type=Path, default=project_path("seq_meta"), help="folder for the metafile of the trajectory")

    add = parser.add_argument_group("trajectory").add_argument
    add("--metafile", type=Path, help="use this one instead of designing a spiral")
    add("--trajectory", choices=(SPIRAL, *trajectories.KINDS), default=SPIRAL, help="a spiral within the gradient "
        "limits; or radial, rosette, a spiral of variable density, without limits")  # fmt: skip
    add("--carry", choices=("", *UNITS), default="", help="readouts carry the trajectory in this unit (cycles per "
        "field of view, 1/m, rad/m, cycles per pixel), and there is no metafile")  # fmt: skip
    add("--fov", type=float, default=100 * spiral.fov, help="field of view [cm]")
    add("--resolution", type=float, default=1e3 * spiral.resolution, help="pixel size [mm]")
    add("-m", "--matrix", type=number(4, high=1024), help="pixels along each side, instead of the resolution")
    add("--interleaves", type=number(1, high=4096), help=f"arms that fill k-space; by default {spiral.interleaves}, "
        "or, without gradient limits, as many as the matrix takes")  # fmt: skip
    add("--gradient", type=float, default=1e3 * spiral.gradient, help="gradient limit [mT/m]")
    add("--slew", type=float, default=spiral.slew, help="slew rate limit [T/m/s]")
    add("--dwell", type=float, default=1e6 * spiral.dwell, help="time from sample to sample [us]")
    add("--ordering", choices=("ga", "linear"), default=spiral.ordering, help="golden angle, or evenly turned arms")
    add("--arms-in-metafile", type=number(1, high=16384), default=spiral.arms, help="for golden angle")
    add("--pre-discard", type=number(0, high=1000), default=spiral.pre_discard, help="samples before the spiral begins")

    add = parser.add_argument_group("scan").add_argument
    add("-a", "--arms", type=number(4, high=10_000_000), default=scan.readouts, help="imaging readouts, of all slices")
    add("--seconds", type=float, help="length of the scan [s], instead of the number of arms")
    add("--tr", type=float, default=1e3 * scan.tr, help="repetition time [ms]")
    add("-c", "--coils", type=number(1, high=1024), default=scan.coils, help="number of coils")
    add("-n", "--noise-level", type=float, default=scan.noise, help="noise of one coil's image from all arms of the "
        "metafile, density is 1")  # fmt: skip
    add("--slices", type=number(1, high=1024), default=scan.slices, help="number of slices")
    add("--partitions", type=number(1, high=1024), default=scan.partitions, help="of a 3-D stack, in place of slices")
    add("--slice-order", choices=("interleaved", "sequential"), default="interleaved", help="a new slice with every "
        "readout, or slice after slice")  # fmt: skip
    add("--rotate", type=float, nargs=3, default=scan.rotation, metavar=("X", "Y", "Z"), help="turn the slices about "
        "the patient's axes [degree]")  # fmt: skip
    add("--position", type=float, nargs=3, default=scan.position, metavar=("X", "Y", "Z"), help="their centre [mm]")
    add("--patient-position", choices=tuple(PATIENT_TO_DEVICE), default=scan.patient_position, help="on the table")
    add("--girf", nargs="?", const=SYNTHETIC, metavar="FILE", help="distort the gradients by the response in FILE, or "
        "by an invented one, which is written as well")  # fmt: skip
    add("--remove-oversampling", action="store_true", help="keep every second sample")
    add("-C", "--noise-calibration", action="store_true", help="begin with a noise readout")
    add("--dummies", type=number(0, high=100_000), default=scan.dummies, help="dummy readouts before imaging")
    add("--drop", type=number(0, high=1_000_000), default=scan.lost, help="imaging readouts that get lost")

    add = parser.add_argument_group("fields").add_argument
    add("--off-resonance", type=float, nargs="+", default=(0.0,), metavar="HZ", help="in the centre, and its growth "
        "from left to right and from top to bottom of the image")  # fmt: skip
    add("--field-strength", type=float, default=scan.field_strength, metavar="T",
        help="main field [T]; by default 0.55 with concomitant fields, 3 without")  # fmt: skip
    add("--concomitant", action="store_true", help="with the concomitant fields of the gradients; unless slices are "
        "axial this takes a second or so for each readout")  # fmt: skip
    add("--field-map-scan", choices=twoechoes.KINDS, help="write the scan of two echoes, too, that a field map is "
        "made of; the raw data name it as a dependency")  # fmt: skip
    add("--field-map-echo-times", type=float, nargs=2, default=[1e3 * each for each in twoechoes.ECHO_TIMES],
        metavar="MS", help="of that scan")  # fmt: skip

    add = parser.add_argument_group("object and physiology").add_argument
    add("--still", action="store_true", help="nothing moves")
    add("--point", type=float, nargs="+", metavar="MM", help="a small disc at x y, in a stack x y z, [mm] instead of "
        "the chest")  # fmt: skip
    add("--vials", type=float, nargs="+", default=(), metavar="HZ", help="ellipses that do not touch, each of another "
        "frequency, instead of the chest")  # fmt: skip
    add("--heart-rate", type=float, default=scan.heart_rate, help="[1/min]")
    add("--breathing-rate", type=float, default=scan.breathing_rate, help="[1/min]")
    add("--pilot-tone-delay", type=float, default=scan.pilot_tone_delay, help="of the pilot tone's triggers [s]")
    add("--no-waveforms", action="store_true", help="neither ECG nor pilot tone")
    add("-s", "--seed", type=number(0, high=2**32 - 1), default=scan.seed, help="of the random numbers")

    options = parser.parse_args(arguments)
    if len(options.off_resonance) not in (1, 3):
        parser.error("--off-resonance takes one number, or three")
    for name in ("tr", "seconds", "fov", "resolution"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} is {value}; expected a positive number")
    if not np.isfinite([*options.rotate, *options.position, *(options.point or ())]).all():
        parser.error("--rotate, --position and --point take finite numbers")
    if not options.output.parent.is_dir() or options.output.is_dir():
        parser.error(f"{options.output} is no file in an existing folder")
    if not options.seq_meta.absolute().parent.is_dir():
        parser.error(f"--seq-meta: there is no folder {options.seq_meta.absolute().parent}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    options = parse_arguments(arguments)
    truth_file = beside(options.output, "truth.h5")
    replaced = ", in place of the file that was there" if options.output.exists() else ""
    try:
        trajectory = make_trajectory(options)
        scan = make_scan(options)
        simulation = simulate(trajectory, scan)
        streams = (simulation.acquisitions(), simulation.waveforms())
        map_file = None
        if options.field_map_scan is not None:
            map_file = beside(options.output, "fieldmap.h5")
            echo_times = tuple(1e-3 * each for each in options.field_map_echo_times)
            two_echoes = twoechoes.scan_of(simulation, options.field_map_scan, echo_times)
            write_raw(two_echoes.header, (two_echoes.acquisitions(),), map_file, options.dataset)
            twoechoes.depend(simulation.header, two_echoes.header)
        readouts, packets = write_raw(simulation.header, streams, options.output, options.dataset)
        simulation.truth.save(truth_file)
        girf_file = _write_girf(options, scan)
    except (OSError, ValueError) as error:
        print(f"{options.output} not written: {error}", file=sys.stderr)
        return 1
    where = "trajectory in the readouts" if scan.carried else f"metafile {options.seq_meta / trajectory.file.name}"
    size = f"{trajectory.matrix_size()} x {trajectory.matrix_size()}"
    print(
        f"wrote {options.output}{replaced}: {readouts} readouts of {scan.coils} coils in {scan.readouts * scan.tr:.1f}"
        f" s, {packets} packets of waveforms, group {options.dataset}\n"
        f"{where}: {trajectory.arms} arms of {trajectory.k.shape[1]} samples"
        f", {1e2 * trajectory.fov:g} cm, {1e3 * trajectory.resolution:g} mm, {size}\n"
        f"truth {truth_file}"
    )
    if map_file is not None:
        print(f"scan of two echoes {map_file}: send it first, with the config savedep")
    if girf_file is not None:
        print(f"gradient impulse response {girf_file}: name it as girf_file in the configuration")
    return 0


def _write_girf(options: argparse.Namespace, scan: Scan) -> Path | None:
    """File of the response that distorts the gradients; an invented one is written beside the raw data."""
    if options.girf != SYNTHETIC:
        return None if options.girf is None else Path(options.girf)
    from scipy.io import savemat

    file = beside(options.output, "girf.mat")
    savemat(file, {"GIRF": scan.girf})
    return file


if __name__ == "__main__":
    sys.exit(main())
