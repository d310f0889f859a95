"""Ways to make coil maps from the centre of k-space, against the true maps of the phantom.

    python benchmarks/coil_maps.py

For each way: mean inner product with the true maps inside the object (1 at best), that of the worst pixel, and the
time. Takes a quarter of a minute on one core.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import bart_tools
import coils
from recon import nufft, spiral
from recon.readouts import Readouts, receive
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdConfig, TfdReconstruction
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, Simulation, simulate
from solvers import bart_recon, calibration
from solvers.problem import Reporter

FOV = 0.256  # [m]
CASES = {  # matrix, interleaves, field of view over the designed one, scan
    "128 x 128, 8 coils": (128, 34, 1.0, Scan(readouts=144, coils=8, noise=0.003)),
    "the same, 1.5 x the field of view": (128, 34, 1.5, Scan(readouts=144, coils=8, noise=0.003)),
    "the same, 6 coils, much noise": (128, 34, 1.0, Scan(readouts=144, coils=6, noise=0.1)),
    "63 x 63, 8 coils": (63, 17, 1.0, Scan(readouts=144, coils=8, noise=0.003)),
    "128 x 128, 8 coils, 16 arms": (128, 34, 1.0, Scan(readouts=16, coils=8, noise=0.003)),
}


def low_resolution(readouts: Readouts, steps: int = 20) -> NDArray:
    """Coil images [coil, row, column] of the centre of k-space, by least squares (conjugate gradients)."""
    coordinates, samples = calibration.central_samples(readouts)
    shape = (calibration.MATRIX, calibration.MATRIX)
    plan = nufft.ArmPlan(coordinates, shape)
    images = np.zeros((samples.shape[1], *shape), np.complex64)
    residual = direction = plan.adjoint(samples.transpose(1, 0, 2))
    power = np.vdot(residual, residual).real
    for _ in range(steps):
        result = plan.adjoint(plan.forward(direction))
        step = power / np.vdot(direction, result).real
        images, residual = images + step * direction, residual - step * result
        power, before = np.vdot(residual, residual).real, power
        direction = residual + power / before * direction
    return images


def by_inati(readouts: Readouts) -> NDArray:
    """Inati's method on images of low resolution."""
    maps, _ = coils.inati(low_resolution(readouts))
    return coils.upsample_maps(maps, (readouts.matrix, readouts.matrix), 1.0)


def by_espirit(readouts: Readouts) -> NDArray:
    """ESPIRiT of SigPy, on the Cartesian k-space of images of low resolution."""
    import sigpy
    from sigpy.mri.app import EspiritCalib

    kspace = sigpy.fft(low_resolution(readouts), axes=(1, 2))
    padded = sigpy.resize(kspace, (len(kspace), readouts.matrix, readouts.matrix))
    return EspiritCalib(padded, calib_width=24, crop=0, show_pbar=False).run()


def by_bart(readouts: Readouts) -> NDArray:
    """BART's nlinv."""
    return bart_recon.BartSolver(bart_tools.find_bart(), -1, Reporter(lambda text: None)).coil_maps(readouts)


WAYS: dict[str, Callable[[Readouts], NDArray]] = {
    "low resolution, Inati": by_inati,
    "ESPIRiT of SigPy": by_espirit,
    "nlinv of BART": by_bart,
    "nlinv of our own": calibration.coil_maps,
}


def received(
    folder: Path, matrix: int, interleaves: int, fov_oversampling: float, scan: Scan
) -> tuple[Simulation, Readouts]:
    """Simulated scan, and its readouts."""
    trajectory = design_spiral(SpiralDesign(resolution=FOV / matrix, interleaves=interleaves, arms=144), folder)
    write_metafile(trajectory)
    simulation = simulate(trajectory, scan)
    settings = TfdReconstruction(fov_oversampling=fov_oversampling)
    session = spiral.SpiralScan(TfdConfig((folder,), settings), simulation.header)
    (readouts,) = receive(session, simulation.acquisitions(), fov_oversampling)
    return simulation, readouts


def agreement(maps: NDArray, simulation: Simulation) -> NDArray:
    """Magnitudes of the inner products with the true maps, pixels of the object only."""
    true = simulation.truth.maps(maps.shape[1])
    inside = simulation.truth.frame([0], maps.shape[1]) > 0.05
    return np.abs((maps.conj() * true / coils.rssq(true)).sum(axis=0))[inside]


def main() -> None:
    """Print the table."""
    nufft.warm_up()
    print("| case | way | mean | worst | time |\n| --- | --- | --- | --- | --- |")
    for case, arguments in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            simulation, readouts = received(Path(folder), *arguments)
        for name, way in WAYS.items():
            start = time.perf_counter()
            maps = way(readouts)
            seconds = time.perf_counter() - start
            found = agreement(maps, simulation)
            print(f"| {case} | {name} | {found.mean():.5f} | {found.min():.3f} | {seconds:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
