"""Ways to compensate the sampling density, by the error of the gridded image; and the time that they take.

    python benchmarks/density.py [metafile.mat ...]

One image of a chest, one coil without noise, gridded with the weights, against the exact image of the same disc of
k-space: relative error after one factor. With metafiles, their trajectories too, and the weights that they hold.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recon import nufft
from recon.density import compensation
from recon.fourier import centred_fft
from recon.trajectory import read_metafile, ring_areas
from simulation import trajectories
from simulation.phantom import Coils
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralphantom import chest, moving_kspace

FOV, MATRIX = 0.256, 96
ONE_COIL = Coils(frequencies=((0.0, 0.0),), weights=((1.0,),))


def rings(k: NDArray[np.float64], fov: float) -> NDArray[np.float64]:
    """Ring areas of each arm."""
    return np.abs([ring_areas(np.linalg.norm(arm, axis=-1)) for arm in k])


def voronoi(k: NDArray[np.float64], fov: float) -> NDArray[np.float64]:
    """Areas of Voronoi cells; samples at one place share theirs, those at the edge end half of 1 / fov beyond it."""
    from scipy.spatial import Voronoi

    points = k.reshape(-1, 2)
    radius = np.hypot(*points.T)
    _, first, place, count = np.unique(
        np.rint(points / (1e-6 * radius.max())), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    points, radius = points[first], radius[first]
    outer = radius > 0.8 * radius.max()
    mirrored = points[outer] * (2 * (radius.max() + 0.5 / fov) / radius[outer] - 1)[:, np.newaxis]
    cells = Voronoi(np.concatenate([points, mirrored]))
    regions = [cells.regions[number] for number in cells.point_region[: len(points)]]
    areas = np.empty(len(points))
    for number, region in enumerate(regions):
        x, y = (cells.vertices[region] - points[number]).T
        areas[number] = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return (areas / count)[place.ravel()].reshape(k.shape[:2])


WAYS: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "ring areas": rings,
    "Voronoi": voronoi,
    "Pipe, 10": lambda k, fov: compensation(k, (fov, fov), 10),
    "Pipe, 30": lambda k, fov: compensation(k, (fov, fov), 30),
    "Pipe, 100": lambda k, fov: compensation(k, (fov, fov), 100),
}


def exact_image(ellipses: NDArray[np.float64], edge: float, fov: float, matrix: int) -> NDArray[np.complex128]:
    """Image of the disc of k-space up to `edge` [1/m], from a Cartesian raster of twice the field of view."""
    n = 2 * matrix
    axis = (np.arange(n) - n // 2) / (2 * fov)
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    (kspace,) = moving_kspace(ellipses, np.stack([kx, ky], axis=-1).reshape(1, -1, 2), ONE_COIL)[0]
    kspace = np.where(np.hypot(kx, ky) <= edge, kspace.reshape(n, n), 0)
    image = centred_fft(centred_fft(kspace, 0), 1)  # the scanner's orientation turns the sign
    start = n // 2 - matrix // 2
    return image[start : start + matrix, start : start + matrix]


def error(weights: NDArray[np.float64], k: NDArray[np.float64], fov: float, data: NDArray, truth: NDArray) -> float:
    """Relative error of the gridded image after one factor."""
    (image,) = nufft.adjoint(k * fov, data[np.newaxis], truth.shape, weights)
    return float(
        np.linalg.norm(image * (np.vdot(image, truth) / np.vdot(image, image)) - truth) / np.linalg.norm(truth)
    )


def cases(files: list[str]) -> dict[str, tuple[NDArray[np.float64], float, int, NDArray[np.float64] | None]]:
    """Trajectories k [arm, sample, 2] [1/m], their field of view, matrix, and own weights."""
    resolution = FOV / MATRIX
    made: dict[str, NDArray[np.float64]] = {}
    for golden in (False, True):
        turned = "golden angle" if golden else "evenly turned"
        for arms in (34, 96, 151, 233):
            made[f"radial, {arms} {turned}"] = trajectories.radial(FOV, resolution, arms, golden)
        for arms in (55, 192, 288):
            made[f"rosette, {arms} {turned}"] = trajectories.rosette(FOV, resolution, arms, golden)
        for arms in (13, 34, 89):
            k = trajectories.spiral(FOV, resolution, arms, golden, interleaves=34, density_power=1.6)
            made[f"variable density, {arms} {turned}, 34 fill k-space"] = k
    for arms in (13, 34, 89):
        design = SpiralDesign(FOV, resolution, interleaves=34, arms=arms)
        made[f"spiral, {arms} golden angle, 34 fill k-space"] = design_spiral(design).k
    design = SpiralDesign(FOV, resolution, interleaves=34, ordering="linear")
    made["spiral, 34 evenly turned"] = design_spiral(design).k
    listed = {name: (k, FOV, MATRIX, None) for name, k in made.items()}
    for file in files:
        own = read_metafile(file)
        for arms in sorted({own.arms, min(own.arms, 34)}, reverse=True):
            weights = np.broadcast_to(own.weights, own.k.shape[:2])[:arms]
            listed[f"{own.file.stem[:8]}, {arms} arms"] = own.k[:arms], own.image_fov(), own.matrix_size(), weights
    return listed


def main() -> None:
    """Print a table."""
    print(f"| trajectory | the file's own | {' | '.join(WAYS)} | time of each |")
    print("| --- | --- |" + " --- |" * (len(WAYS) + 1))
    nufft.warm_up()
    for name, (k, fov, matrix, own) in cases(sys.argv[1:]).items():
        ellipses = chest(0, 0, 0, fov)[np.newaxis]
        data = np.concatenate([moving_kspace(ellipses, arm[np.newaxis], ONE_COIL)[:, 0] for arm in k])
        truth = exact_image(ellipses, np.linalg.norm(k, axis=-1).max(), fov, matrix)
        shown, times = ["" if own is None else f"{error(own, k, fov, data, truth):.4f}"], []
        for way in WAYS.values():
            begin = time.perf_counter()
            weights = way(k, fov)
            times.append(f"{time.perf_counter() - begin:.2f}")
            shown.append(f"{error(weights, k, fov, data, truth):.4f}")
        print(f"| {name} | {' | '.join(shown)} | {', '.join(times)} s |", flush=True)


if __name__ == "__main__":
    main()
