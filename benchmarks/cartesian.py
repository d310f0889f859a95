"""Ways to fill undersampled Cartesian k-space, against the exact image: error and time.

    python benchmarks/cartesian.py

Head phantom, 8 coils, 256 x 256, R = 2 and 3 with 24 calibration lines, noise of a hundredth of the largest magnitude
in the image (standard deviation of real and imaginary part each); the same in a field of view that the object exceeds
by a sixth along the rows; random lines; and 32 coils. Magnitudes are compared after one factor. Coil images are
combined with the phantom's maps after GRAPPA, except for the object larger than the field of view, which has no maps:
there it is the root sum of squares, and full sampling has the same bias by noise. SigPy and pygrappa get the best of
several regularisations, found by looking at the truth; ours get their default ("best": the best, too). pygrappa is
compared where it is installed. Ours had their defaults chosen on this phantom, theirs had not: on other objects
GRAPPA's may be worse than the best of pygrappa. Takes a quarter of an hour on two cores.
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
from recon.sampling import IrregularSamplingError
from recon.sense import l1_wavelet, sense
from simulation import phantom

FOV, SIZE, MATRIX, LINES, NOISE = 0.256, 0.24, 256, 24, 0.01
WEIGHTS = (1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # for sweeps; no best one may be at an end
PYGRAPPA_WEIGHTS = (1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
CASES = {  # coils, acceleration (0: a third of the lines at random), object over field of view
    "R = 2": (8, 2, 1.0),
    "R = 3": (8, 3, 1.0),
    "R = 2, larger than the field of view": (8, 2, 1.25),
    "R = 3, larger than the field of view": (8, 3, 1.25),
    "random third": (8, 0, 1.0),
    "32 coils, R = 3": (32, 3, 1.0),
}
Method = Callable[[], tuple[NDArray, float]]


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
    """

    def __init__(self, number: int, step: int, wrap: float) -> None:
        rng = np.random.default_rng(0)
        places = np.arange(MATRIX) - MATRIX // 2
        ring = phantom.ring_of_coils(number, FOV)
        exact = ring.kspace(
            phantom.shepp_logan(SIZE), places[np.newaxis] / FOV, places[:, np.newaxis] * wrap / FOV, np.complex64
        )[:, np.newaxis]
        images = to_images(exact)
        unit = coils.rssq(images).max()
        noise = rng.standard_normal((2, *exact.shape), np.float32) * np.float32(NOISE * MATRIX)
        self.truth = coils.rssq(images)[0] / unit
        self.full = exact / unit + noise[0] + 1j * noise[1]
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


def best(scan: Scan, works: dict[float, Callable[[], NDArray]]) -> tuple[NDArray, float, str]:
    """Image with the least error, its time and its weight."""
    results = {weight: timed(work) for weight, work in works.items()}
    weight = min(results, key=lambda weight: scan.error(results[weight][0]))
    end = " (end of the sweep)" if weight in (min(works), max(works)) else ""
    return *results[weight], f" at {weight:g}{end}"


def ours(scan: Scan) -> Iterator[tuple[str, NDArray, float]]:
    """Methods of this project."""
    try:
        kernels, calibrating = timed(lambda: grappa.calibrate(scan.calibration, scan.kspace, scan.sampled))
        filled, filling = timed(lambda: kernels.fill(scan.kspace, scan.sampled))
        yield f"GRAPPA ({calibrating:.2f} s of it calibration)", scan.combine(filled), calibrating + filling
    except IrregularSamplingError:
        pass
    for sets in (1, 2) if scan.maps is None else (1,):
        maps, seconds = timed(lambda: espirit.coil_maps(scan.calibration, scan.full.shape[1:], sets))  # noqa: B023
        of = f"{sets} sets of maps" if sets > 1 else f"maps ({seconds:.2f} s)"
        for name, method in (("SENSE", sense), ("l1-wavelet", l1_wavelet)):

            def made(weight: float | None = None, method: Any = method, maps: NDArray = maps) -> NDArray:
                options = {} if weight is None else {"reg_lambda": weight}
                return coils.rssq(method(scan.kspace, scan.sampled, maps, **options))[0]

            yield f"{name}, {of}", *timed(made)
            image, seconds, at = best(scan, {weight: lambda w=weight: made(w) for weight in WEIGHTS})
            yield f"{name}, {of}, best{at}", image, seconds


def theirs(scan: Scan) -> Iterator[tuple[str, NDArray, float]]:
    """SigPy, and pygrappa where it is installed."""
    from sigpy.mri import app

    kspace, mask = scan.kspace[:, 0], scan.sampled[0, :, np.newaxis].astype(np.float32)
    maps, seconds = timed(
        lambda: app.EspiritCalib(kspace, calib_width=LINES, crop=0.95, show_pbar=False).run().astype(np.complex64)
    )
    scaled = kspace / np.float32(MATRIX)  # their transform is unitary
    for name, method in (("SENSE", app.SenseRecon), ("l1-wavelet", app.L1WaveletRecon)):
        works = {
            weight: lambda w=weight, m=method: np.abs(m(scaled, maps, w, weights=mask, show_pbar=False).run())
            for weight in WEIGHTS
        }
        image, spent, at = best(scan, works)
        yield f"SigPy: {name}, maps ({seconds:.2f} s), best{at}", image, spent
    if scan.regular and importlib.util.find_spec("pygrappa"):
        from pygrappa import mdgrappa

        works = {
            weight: lambda w=weight: scan.combine(
                np.asarray(mdgrappa(kspace, scan.calibration[:, 0], (5, 5), coil_axis=0, lamda=w))[:, np.newaxis]
            )
            for weight in PYGRAPPA_WEIGHTS
        }
        image, spent, at = best(scan, works)
        yield f"pygrappa: mdgrappa, best{at}", image, spent


def main() -> None:
    """Print the table."""
    warm = Scan(2, 2, 1.0)
    grappa.calibrate(warm.calibration, warm.kspace, warm.sampled).fill(warm.kspace, warm.sampled)  # imports
    print("| case | way | error | time |\n| --- | --- | --- | --- |")
    for case, arguments in CASES.items():
        scan = Scan(*arguments)
        print(f"| {case} | full sampling | {scan.error(scan.combine(scan.full)):.4f} | |")
        for methods in (ours, theirs):
            for name, image, seconds in methods(scan):
                print(f"| {case} | {name} | {scan.error(image):.4f} | {seconds:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
