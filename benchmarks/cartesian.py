"""Ways to fill undersampled Cartesian k-space, against the exact image: error and time.

    python benchmarks/cartesian.py

256 x 256, 24 calibration lines. The head phantom, and objects of random ellipses that no default was chosen on; noise
over the largest magnitude in the image (standard deviation of real and imaginary part each). Magnitudes are compared
after one factor. Coil images are combined with the phantom's maps after GRAPPA, except for an object larger than the
field of view along the rows, which has no maps: there it is the root sum of squares, and full sampling has the same
bias by noise. Ours have their defaults, and know the noise. SigPy's and pygrappa's weight is the one with the least
error among steps of a factor of three, found by looking at the truth. SigPy's l1-wavelet is compared at random lines,
pygrappa where it is installed; its time is that of a warm call.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import coils
from recon import espirit, grappa
from recon.fourier import centred_ifft
from recon.sense import l1_wavelet, sense
from simulation import phantom

FOV, SIZE, MATRIX, LINES = 0.256, 0.24, 256, 24
HEAD = 0  # seed that stands for the head phantom
CASES = {  # coils, acceleration (0: a third of the lines at random), object over field of view, noise, seed
    "8 coils, R = 2": (8, 2, 1.0, 0.01, HEAD),
    "8 coils, R = 3": (8, 3, 1.0, 0.005, 6),
    "14 coils, R = 3": (14, 3, 1.0, 0.005, 1),
    "10 coils, R = 4": (10, 4, 1.0, 0.004, 2),
    "8 coils, R = 3, larger than the field of view": (8, 3, 1.3, 0.005, 3),
    "8 coils, random third": (8, 0, 1.0, 0.01, 4),
    "32 coils, R = 3": (32, 3, 1.0, 0.01, 5),
}
STEP, MAX_STEPS = 3.0, 8  # of a sweep


def random_ellipses(rng: np.random.Generator) -> tuple[phantom.Ellipse, ...]:
    """A body with smaller ellipses in it."""
    half = SIZE / 2
    body = phantom.Ellipse(0, 0, half * rng.uniform(0.6, 0.9), half * rng.uniform(0.8, 0.95), rng.uniform(-0.2, 0.2), 1)
    parts = []
    for _ in range(10):
        radius, angle = half * rng.uniform(0, 0.55), rng.uniform(0, 2 * np.pi)
        edges = half * rng.uniform(0.03, 0.35, 2)
        place = radius * np.cos(angle), radius * np.sin(angle)
        parts.append(phantom.Ellipse(*place, *edges, rng.uniform(0, 3), rng.uniform(-0.6, 0.8)))
    return (body, *parts)


class Scan:
    """An undersampled scan and its truth.

    Parameters
    ----------
    number
        Coils.
    step
        Acceleration, 0: random.
    wrap
        The field of view along rows is divided by it.
    noise
        Standard deviation of real and imaginary part over the largest magnitude.
    seed
        Of the object.
    """

    def __init__(self, number: int, step: int, wrap: float, noise: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ellipses = phantom.shepp_logan(SIZE) if seed == HEAD else random_ellipses(rng)
        places = np.arange(MATRIX) - MATRIX // 2
        ring = phantom.ring_of_coils(number, FOV)
        exact = ring.kspace(ellipses, places[np.newaxis] / FOV, places[:, np.newaxis] * wrap / FOV, np.complex64)[
            :, np.newaxis
        ]
        images = to_images(exact)
        unit = coils.rssq(images).max()
        white = rng.standard_normal((2, *exact.shape), np.float32) * np.float32(noise * MATRIX)
        self.noise_variance = 2 * (noise * MATRIX) ** 2
        self.truth = coils.rssq(images)[0] / unit
        self.full = exact / unit + white[0] + 1j * white[1]
        self.sampled = np.zeros((1, MATRIX), bool)
        self.regular = step > 0
        if self.regular:
            self.sampled[0, ::step] = True
        else:
            self.sampled[0] = rng.random(MATRIX) < 1 / 3 - LINES / MATRIX
        block = slice(MATRIX // 2 - LINES // 2, MATRIX // 2 + LINES // 2)
        self.sampled[:, block] = True
        self.kspace = np.where(self.sampled[..., np.newaxis], self.full, 0)
        self.calibration = np.ascontiguousarray(self.full[:, :, block])
        x, y = phantom.pixel_grid((MATRIX, MATRIX), (FOV / wrap / MATRIX, FOV / MATRIX))
        maps = ring.maps(x, y)
        self.maps = None if wrap > 1 else (maps / coils.rssq(maps)).astype(np.complex64)

    def combine(self, kspace: NDArray) -> NDArray:
        """Magnitude of k-space without gaps."""
        images = to_images(kspace)[:, 0]
        return coils.rssq(images) if self.maps is None else np.abs(coils.combine(images, self.maps))

    def error(self, image: NDArray) -> float:
        """Relative error after one factor."""
        factor = (image * self.truth).sum() / (image * image).sum()
        return float(np.linalg.norm(factor * image - self.truth) / np.linalg.norm(self.truth))


def to_images(kspace: NDArray) -> NDArray:
    """Coil images [coil, partition, row, column]."""
    return centred_ifft(centred_ifft(kspace, 3), 2)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call, and seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def best(scan: Scan, work: Callable[[float], NDArray], start: float) -> tuple[NDArray, float, str]:
    """Image with the least error, its time and its weight: from `start`, as long as the error falls on a side."""
    results = {0: timed(lambda: work(start))}
    error = {0: scan.error(results[0][0])}
    while len(error) < MAX_STEPS:
        at = min(error, key=lambda step: error[step])
        step = next((step for step in (at + 1, at - 1) if step not in error), None)
        if step is None:
            break
        results[step] = timed(lambda: work(start * STEP**step))  # noqa: B023
        error[step] = scan.error(results[step][0])
    at = min(error, key=lambda step: error[step])
    end = " (end of the sweep)" if at in (min(error), max(error)) else ""
    return *results[at], f", best at {start * STEP**at:.2g}{end}"


def ours(scan: Scan) -> Iterator[tuple[str, NDArray, float]]:
    """Methods of this project."""
    noise = scan.noise_variance
    if scan.regular:
        kernels, calibrating = timed(lambda: grappa.calibrate(scan.calibration, scan.kspace, scan.sampled, noise))
        filled, filling = timed(lambda: kernels.fill(scan.kspace, scan.sampled))
        yield f"GRAPPA ({calibrating:.2f} s of it calibration)", scan.combine(filled), calibrating + filling
    sets = 2 if scan.maps is None else 1
    maps, seconds = timed(lambda: espirit.coil_maps(scan.calibration, scan.full.shape[1:], sets))
    for name, method in (("SENSE", sense), ("l1-wavelet", l1_wavelet)):
        image, spent = timed(lambda: method(scan.kspace, scan.sampled, maps, noise_variance=noise))  # noqa: B023
        yield f"{name}, {sets} set{'s' * (sets > 1)} of maps ({seconds:.2f} s)", coils.rssq(image)[0], spent


def theirs(scan: Scan) -> Iterator[tuple[str, NDArray, float]]:
    """SigPy, and pygrappa where it is installed."""
    from sigpy.mri import app

    kspace, mask = scan.kspace[:, 0], scan.sampled[0, :, np.newaxis].astype(np.float32)
    maps, seconds = timed(
        lambda: app.EspiritCalib(kspace, calib_width=LINES, crop=0.95, show_pbar=False).run().astype(np.complex64)
    )
    scaled = kspace / np.float32(MATRIX)  # their transform is unitary
    methods = [("SENSE", app.SenseRecon, 0.03)]
    if not scan.regular:
        methods.append(("l1-wavelet", app.L1WaveletRecon, 0.003))
    for name, method, start in methods:
        image, spent, at = best(
            scan,
            lambda weight: np.abs(method(scaled, maps, weight, weights=mask, show_pbar=False).run()),  # noqa: B023
            start,
        )
        yield f"SigPy: {name}, maps ({seconds:.2f} s){at}", image, spent
    if scan.regular and importlib.util.find_spec("pygrappa"):
        from pygrappa import mdgrappa

        image, spent, at = best(
            scan,
            lambda weight: scan.combine(
                np.asarray(mdgrappa(kspace, scan.calibration[:, 0], (5, 5), coil_axis=0, lamda=weight))[:, np.newaxis]
            ),
            0.3,
        )
        yield f"pygrappa: mdgrappa{at}", image, spent


def main() -> None:
    """Print the table."""
    for _ in ours(Scan(2, 2, 1.0, 0.01, HEAD)):  # imports
        pass
    print("| case | way | error | time |\n| --- | --- | --- | --- |")
    for case, arguments in CASES.items():
        scan = Scan(*arguments)
        for name, kspace in (("full sampling", scan.full), ("zeros", scan.kspace)):
            print(f"| {case} | {name} | {scan.error(scan.combine(kspace)):.4f} | |")
        for methods in (ours, theirs):
            for name, image, seconds in methods(scan):
                print(f"| {case} | {name} | {scan.error(image):.4f} | {seconds:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
