"""The iterative reconstruction of our own against BART: time, objective, error to the truth.

    python benchmarks/native.py [--pictures doc/pictures]

Both solve the same problems, from the same samples, maps and scale: the beating, breathing phantom of
`benchmarks/iterative.py`, 48 frames of 7 arms with one constraint in time, in golden-angle and in linear ordering, and
6 x 8 bins with two constraints. The objective

    1/2 ||E x - y||^2 + sum over axes d of weight_d ||D_d x||_1

is computed afterwards by one function for both, with all coils and `nufft.forward`, which the solver does not use.
BART's time is that of ``bart pics``; ours is that of the whole call. Both use all processors; times are medians.
Takes about five minutes on two cores, and with ``--pictures`` three more for BART with other numbers of iterations.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import iterative as phantom

import bart_tools
import spiral_xdgrasp_recon
from recon import configuration, nufft, physiobins, spiral
from recon import readouts as kept
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdReconstruction
from simulation.spiraldesign import SpiralDesign
from simulation.spiralsimulation import Scan, Simulation
from solvers import backends as solvers
from solvers import bart_recon, movies, native_recon
from spiral_xdgrasp_recon import XdReconstruction

LONG, VERY_LONG = 240, 2000  # frames; the latter for a GPU (gpu.py)
ITERATIONS = (3, 6, 9, 12, 18, 24, 30)
XD_ITERATIONS = (6, 12, 24)
BART_ITERATIONS = (30, 60)
LINEAR = SpiralDesign(interleaves=31, ordering="linear")
LINEAR_ITERATIONS = (60, 120)
CURVE = (5, 10, 15, 20, 45)  # other numbers of BART's iterations for the picture
REPEATS = 3
HEADER = ("solver", "time", "part of BART's", "time / scan", "objective", "error", "change")


@dataclass(frozen=True, eq=False)
class Problem:
    """A case: the data, and the images that are right.

    Attributes
    ----------
    part
        Samples, arms, maps, weights.
    truth
        [frame, row, column].
    scan_time
        What the scan took [s].
    """

    part: solvers.Part
    truth: np.ndarray
    scan_time: float


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a case."""

    images: np.ndarray
    seconds: float
    objective: float
    error: float
    change: float

    def at_least_as_good(self, other: "Result") -> bool:
        """True if objective, error and change are no worse than another's."""
        return self.objective <= other.objective and self.error <= other.error and self.change >= other.change


# --- Problems -------------------------------------------------------------------------------------------------------


def receive(scan: Scan, module: str, design: SpiralDesign = phantom.DESIGN) -> tuple[Simulation, kept.Readouts]:
    """Simulate a scan, and take it in as a module does."""
    simulation = phantom.make(scan, design)
    with tempfile.TemporaryDirectory() as name:
        write_metafile(simulation.trajectory, Path(name) / simulation.trajectory.file.name)
        tables = {"metafile_paths": [name], "reconstruction": {"fov_oversampling": 1.0}}
        settings = configuration.from_mapping(phantom.CONFIGURATIONS[module], tables, "benchmark")
        taken = spiral.SpiralScan(settings, simulation.header, print)
        (readouts,) = kept.receive(taken, simulation.acquisitions(), 1.0)
        return simulation, readouts


def tfd_problem(frames: int, solver: solvers.Solver, design: SpiralDesign = phantom.DESIGN) -> Problem:
    """Frames of seven arms, constrained in time."""
    scan = dataclasses.replace(phantom.TFD_SCAN, readouts=phantom.ARMS * frames)
    simulation, readouts = receive(scan, phantom.TFD, design)
    options = TfdReconstruction(arms_per_frame=phantom.ARMS)
    maps = solver.coil_maps(readouts)
    scale = kept.data_scale(readouts, maps, phantom.ARMS, range(5, frames))
    weight = phantom.TFD_SETTINGS["reg_lambda"] * phantom.FRAMES
    movie = movies.Movie(readouts, phantom.ARMS, (movies.Chunk(range(frames), range(frames)),))
    (part,) = movie.parts(maps, scale, weight, options.num_iter)
    groups = [range(phantom.ARMS * n, phantom.ARMS * (n + 1)) for n in range(frames)]
    return Problem(part, phantom.true_images(simulation, groups), scan.readouts * scan.tr)


def xd_problem(solver: solvers.Solver) -> Problem:
    """Bins of respiration and cardiac phase, constrained along both."""
    simulation, readouts = receive(phantom.XD_SCAN, phantom.XD)
    bins: physiobins.BinTable = phantom.xd_bins(simulation)
    np.multiply(readouts.samples, spiral_xdgrasp_recon.taper(readouts.samples.shape[-1]), out=readouts.samples)
    options = XdReconstruction(**phantom.XD_SETTINGS)
    maps = solver.coil_maps(readouts)
    part = spiral_xdgrasp_recon.part_of(readouts, maps, bins, options)
    # One scale for both, so that the objective of both can be computed.
    *_, arms, coils, samples = part.samples.shape
    with native_recon.Team() as team:
        coordinates = part.coordinates.reshape(-1, arms, samples, 2)
        encoding = native_recon.Encoding(coordinates, part.weights.reshape(-1, arms), maps, team)
        scale = native_recon.robust_scale(encoding.adjoint(part.samples.reshape(-1, arms, coils, samples)))
    part = dataclasses.replace(part, scale=scale)
    return Problem(part, phantom.true_images(simulation, phantom.members(bins)), 2304 * phantom.XD_SCAN.tr)


def objective(images: np.ndarray, part: solvers.Part) -> float:
    """Value of what is minimised for images [*frames, row, column], BART's differences cyclic where ours are."""
    images = images / part.scale
    value, unit = 0.0, np.sqrt(part.maps[0].size)
    for place in np.ndindex(images.shape[:-2]):
        used = slice(None) if part.weights is None else part.weights[place] > 0
        if not part.samples[place][used].size:
            continue
        taken = nufft.forward(part.coordinates[place][used], part.maps * images[place]) / unit
        misfit = taken.transpose(1, 0, 2) - part.samples[place][used] / part.scale
        value += 0.5 * float((misfit.real**2 + misfit.imag**2).sum(dtype=float))
    for penalty in part.penalties:
        following = np.roll(images, -1, penalty.axis) - images
        if not penalty.cyclic:
            following = np.delete(following, -1, penalty.axis)
        value += penalty.weight * float(abs(following).sum(dtype=float))
    return value


# --- Solvers --------------------------------------------------------------------------------------------------------


def judged(images: np.ndarray, seconds: float, problem: Problem) -> Result:
    """Compare images with the truth."""
    magnitudes = abs(images).reshape(problem.truth.shape)
    error, change = phantom.error(magnitudes, problem.truth), phantom.change(magnitudes, problem.truth)
    return Result(magnitudes, seconds, objective(images, problem.part), error, change)


def by_bart(problem: Problem, iterations: int, solver: bart_recon.BartSolver) -> Result:
    """Reconstruct by BART, once."""
    part = dataclasses.replace(problem.part, iterations=iterations)
    start = time.perf_counter()
    (images,) = solver.reconstruct([part], 1)
    return judged(images, time.perf_counter() - start, problem)


def native(problem: Problem, iterations: int, gpu_device: int = -1) -> np.ndarray:
    """Images by the solver of our own."""
    part = problem.part
    return native_recon.reconstruct(
        part.samples, part.coordinates, part.maps, part.penalties, iterations=iterations, scale=part.scale,
        weights=part.weights, tolerance=0.0, gpu_device=gpu_device,
    )  # fmt: skip


def by_native(problem: Problem, iterations: int) -> Result:
    """Reconstruct by the solver of our own, several times."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        images = native(problem, iterations)
        times.append(time.perf_counter() - start)
    return judged(images, statistics.median(times), problem)


# --- The table ------------------------------------------------------------------------------------------------------


def row(name: str, result: Result, reference: Result | None, problem: Problem) -> str:
    """One line of the table."""
    part = "" if reference is None else f"1/{reference.seconds / result.seconds:.1f}"
    cells = [name, f"{result.seconds:.2f} s", part, f"{result.seconds / problem.scan_time:.2f}",
             f"{result.objective:.4g}", f"{result.error:.4f}", f"{result.change:.4f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def tfd_rows(solver: bart_recon.BartSolver, keep: Callable[[str, float, Result], None]) -> Iterator[str]:
    """One constraint: both solvers, and where ours is as good as BART's end."""
    problem = tfd_problem(phantom.FRAMES, solver)
    start = time.perf_counter()
    native(problem, 1)
    yield f"| native, 48 frames, the first iteration in a new process | {time.perf_counter() - start:.2f} s | | | | | |"
    references = {}
    for iterations in BART_ITERATIONS:
        references[iterations] = result = by_bart(problem, iterations, solver)
        keep("BART", iterations, result)
        yield row(f"BART, {iterations} iterations", result, None, problem)
    ours = {iterations: by_native(problem, iterations) for iterations in ITERATIONS}
    for iterations, result in ours.items():
        keep("native", iterations, result)
        yield row(f"native, {iterations} iterations", result, references[BART_ITERATIONS[0]], problem)
    for iterations, reference in references.items():
        for text, good in (
            ("objective", lambda result, reference=reference: result.objective <= reference.objective),
            ("objective, error and change", lambda result, reference=reference: result.at_least_as_good(reference)),
        ):
            name = f"native, {text} no worse than BART's after {iterations} iterations"
            first = next((pair for pair in ours.items() if good(pair[1])), None)
            yield (
                f"| {name}: not reached | | | | | | |"
                if first is None
                else (row(f"{name}: {first[0]} iterations", first[1], reference, problem))
            )
        fifth = [result for result in ours.values() if result.seconds <= reference.seconds / 5]
        if fifth:
            name = f"native, after at most a fifth of BART's time for {iterations} iterations"
            yield row(name, fifth[-1], reference, problem)
    last = ITERATIONS[-1]
    longer = tfd_problem(LONG, solver)
    result = by_native(longer, last)
    yield row(f"native, {LONG} frames, {last} iterations", result, None, longer)
    factor = result.seconds / ours[last].seconds
    yield f"| {LONG} frames against {phantom.FRAMES}: {factor:.2f} times the time | | | | | | |"
    keep("truth", 0, Result(problem.truth, 0.0, 0.0, 0.0, 1.0))


def linear_rows(solver: bart_recon.BartSolver) -> Iterator[str]:
    """One constraint, with arms that follow one another around k-space."""
    problem = tfd_problem(phantom.FRAMES, solver, LINEAR)
    for iterations in LINEAR_ITERATIONS:
        reference = by_bart(problem, iterations, solver)
        yield row(f"linear ordering, 31 interleaves: BART, {iterations} iterations", reference, None, problem)
        result = by_native(problem, iterations)
        yield row(f"linear ordering: native, {iterations} iterations", result, reference, problem)


def xd_rows(solver: bart_recon.BartSolver) -> Iterator[str]:
    """Two constraints."""
    problem = xd_problem(solver)
    reference = by_bart(problem, BART_ITERATIONS[0], solver)
    yield row(f"two constraints, 6 x 8 bins: BART, {BART_ITERATIONS[0]} iterations", reference, None, problem)
    for iterations in XD_ITERATIONS:
        result = by_native(problem, iterations)
        yield row(f"two constraints: native, {iterations} iterations", result, reference, problem)


def repeated(problem: Problem, frames: int) -> Problem:
    """A longer scan of the same again and again."""
    part, times = problem.part, frames // phantom.FRAMES + 1
    samples, coordinates = (np.concatenate(times * [array])[:frames] for array in (part.samples, part.coordinates))
    return Problem(
        dataclasses.replace(part, samples=samples, coordinates=coordinates),
        np.concatenate(times * [problem.truth])[:frames],
        problem.scan_time * frames / phantom.FRAMES,
    )


# --- Pictures -------------------------------------------------------------------------------------------------------


def draw(results: dict[str, dict[float, Result]], folder: Path) -> None:
    """Draw objective and error over time, and images side by side."""
    import _iterative_pictures
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3), dpi=90, layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, quantity in zip(axes, ("objective", "error"), strict=True):
        for solver in ("BART", "native"):
            curve = sorted(results[solver].items())
            axis.loglog([r.seconds for _, r in curve], [getattr(r, quantity) for _, r in curve], "o-", label=solver)
        axis.set(xlabel="time of the whole reconstruction [s]", ylabel=quantity)
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].legend()
    figure.savefig(folder / "native_convergence.png")

    truth = results["truth"][0].images
    chosen = [("BART", BART_ITERATIONS[0]), ("BART", BART_ITERATIONS[-1]), ("native", 9), ("native", 24)]
    movies, titles = [truth], ["truth"]
    for solver, iterations in chosen:
        result = results[solver][iterations]
        movies.append(phantom.scaled(result.images, truth))
        titles.append(f"{solver}, {iterations} iter.\n{result.seconds:.1f} s, error {result.error:.3f}")
    _iterative_pictures.tfd_picture(titles, movies).savefig(folder / "native.png")


def main() -> None:
    """Print the table; draw the pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the guides")
    options, _ = parser.parse_known_args()
    results: dict[str, dict[float, Result]] = {"BART": {}, "native": {}, "truth": {}}

    def keep(solver: str, iterations: float, result: Result) -> None:
        results[solver][iterations] = result

    solver = bart_recon.BartSolver(bart_tools.find_bart(), -1, solvers.Reporter(lambda text: None))
    print(f"| {' | '.join(HEADER)} |")
    print(f"| {' | '.join(['---'] * len(HEADER))} |")
    for rows in (tfd_rows(solver, keep), linear_rows(solver), xd_rows(solver)):
        for line in rows:
            print(line, flush=True)
    if options.pictures:
        problem = tfd_problem(phantom.FRAMES, solver)
        for iterations in CURVE:
            keep("BART", iterations, by_bart(problem, iterations, solver))
        draw(results, options.pictures)


if __name__ == "__main__":
    main()
