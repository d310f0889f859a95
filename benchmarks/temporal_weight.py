"""The best weight of the temporal differences, and how the number of chunks changes the images.

    python benchmarks/temporal_weight.py

A small scan (48 x 48, 4 coils, 7 arms per frame) of 16, 48 and 144 frames, by the native solver and by BART, with the
same coil maps and data scale; errors are relative to the truth after one factor for all images. Then a larger one (96 x
96, 8 coils, 96 frames) by the native solver in one, two and three parts. Takes six minutes on two cores.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import bart_tools
import coils
from recon import spiral
from recon.readouts import Readouts, data_scale, receive
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdConfig, TfdReconstruction
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, simulate
from solvers import bart_recon, calibration, movies
from solvers.backends import NativeSolver
from solvers.problem import Reporter, Solver

ARMS, FOV = 7, 0.256  # arms per frame; [m]
LENGTHS = (16, 48, 144)  # frames
WEIGHTS = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064)


class Series:
    """A simulated scan, ready to be reconstructed.

    Parameters
    ----------
    matrix, interleaves
        Pixels along each side, arms that fill k-space.
    frames
        Of `ARMS` arms each.
    coil_count
        Coils.
    """

    def __init__(self, matrix: int, interleaves: int, frames: int, coil_count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            design = SpiralDesign(resolution=FOV / matrix, interleaves=interleaves, arms=144)
            trajectory = design_spiral(design, Path(folder))
            write_metafile(trajectory)
            scan = Scan(readouts=ARMS * frames, coils=coil_count, noise=0.002, heart_rate=84)
            simulation = simulate(trajectory, scan)
            settings = TfdConfig((Path(folder),), TfdReconstruction(fov_oversampling=1.0))
            session = spiral.SpiralScan(settings, simulation.header)
            self.readouts: Readouts
            (self.readouts,) = receive(session, simulation.acquisitions(), 1.0)
        groups = [range(ARMS * n, ARMS * (n + 1)) for n in range(frames)]
        self.truth = simulation.truth.frames(groups) * coils.rssq(simulation.truth.maps())
        self.frames = frames
        self.maps = calibration.coil_maps(self.readouts)
        self.scale = data_scale(self.readouts, self.maps, ARMS, range(movies.UNSTEADY_FRAMES, frames))

    def images(self, solver: Solver, weight: float, iterations: int, count: int = 1) -> NDArray:
        """Magnitudes [frame, row, column], made in so many parts."""
        movie = movies.Movie(self.readouts, ARMS, tuple(movies.split(self.frames, count, solver.overlap)))
        results = solver.reconstruct(movie.parts(self.maps, self.scale, weight, iterations), count)
        return np.abs([image for chunk in movies.images([movie], results) for _, _, image in chunk])


def error(images: NDArray, truth: NDArray) -> float:
    """Relative error after one factor for all images."""
    factor = (images * truth).sum() / (images * images).sum()
    return float(np.linalg.norm(factor * images - truth) / np.linalg.norm(truth))


def change(images: NDArray, truth: NDArray) -> float:
    """Correlation of the change over time with the true one."""
    one, other = images - images.mean(axis=0), truth - truth.mean(axis=0)
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def main() -> None:
    """Print both tables."""
    silent = Reporter(lambda text: None)
    native, bart = NativeSolver(-1, silent), bart_recon.BartSolver(bart_tools.find_bart(), -1, silent)
    print("| solver, frames | best weight | error | change |\n| --- | --- | --- | --- |")
    for solver, name, iterations in ((native, "native", 100), (bart, "BART", 80)):
        for frames in LENGTHS:
            series = Series(48, 12, frames, 4)
            results = {weight: series.images(solver, weight, iterations) for weight in WEIGHTS}
            best = min(WEIGHTS, key=lambda weight: error(results[weight], series.truth))
            found = error(results[best], series.truth), change(results[best], series.truth)
            print(f"| {name}, {frames} | {best:g} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)
    print("\n| parts of 96 frames | difference to one part | error | change |\n| --- | --- | --- | --- |")
    series, whole = Series(96, 26, 96, 8), None
    for count in (1, 2, 3):
        images = series.images(native, 0.0096, 60, count)
        whole = images if whole is None else whole
        row = error(images, whole), error(images, series.truth), change(images, series.truth)
        print(f"| {count} | {row[0]:.4f} | {row[1]:.4f} | {row[2]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
