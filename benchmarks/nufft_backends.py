"""Compares ways to transform spiral arms for view-sharing: time per arm and per frame, and error.

    python benchmarks/nufft_backends.py [--repeats 15] [--gpu 0]

Everything runs in one thread. "arm" is what has to be done when an arm arrives, "frame" what has to be done when one is
complete (55 arms, shift 17), "per arm" their sum spread over the 17 arms of a shift. Times are medians. Errors are
those of one coil's 55-arm frame against direct sums in double precision.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recon.arrays import to_host
from recon.nufft import ArmPlan, GpuUnavailableError
from recon.slidingwindow import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH, SHIFT, ARMS = 55, 17, 144
CASES = ((128, 8, 1500), (192, 16, 2000))


def spiral(n: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return golden-angle spiral arms [arm, sample, (kx, ky)] in cycles per field of view, and density weights."""
    t = np.linspace(0, 1, samples)
    arm = n / 2 * t * np.exp(2j * np.pi * n / 40 * t)
    k = arm * np.exp(1j * np.deg2rad(222.4969) * np.arange(ARMS))[:, None]
    return np.stack([k.real, k.imag], axis=-1), np.maximum(t, 1 / n)


def direct(coords: np.ndarray, data: np.ndarray, n: int) -> np.ndarray:
    """Return the image [y, x] of arms [arm, sample] by direct sums."""
    position = -(np.arange(n) - n // 2) / n
    image = np.zeros((n, n), complex)
    for k, samples in zip(coords, data, strict=True):
        x, y = (np.exp(2j * np.pi * np.outer(k[:, axis], position)) for axis in (0, 1))
        image += (y * samples[:, None]).T @ x
    return image


def median_ms(work: Callable[[int], Any], repeats: int) -> float:
    """Return the median time of a call [ms]; calls get their number."""
    work(0)
    times = []
    for i in range(1, repeats + 1):
        start = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


class Case:
    """One acquisition to measure with, and the table row printer."""

    def __init__(self, n: int, coils: int, samples: int, repeats: int) -> None:
        rng = np.random.default_rng(0)
        self.n, self.coils, self.repeats = n, coils, repeats
        self.coords, self.weights = spiral(n, samples)
        shape = (coils, ARMS, samples)
        self.data = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
        self.weighted = (self.data * self.weights).astype(np.complex64)
        self.truth = direct(self.coords[:LENGTH], self.weighted[0, :LENGTH], n)

    def row(self, name: str, arm: Callable, frame: Callable | None, image: np.ndarray) -> float:
        """Measure and print one candidate; return its time per arm."""
        arm_ms = median_ms(arm, self.repeats)
        frame_ms = 0.0 if frame is None else median_ms(frame, self.repeats)
        total = arm_ms + frame_ms / SHIFT
        error = np.linalg.norm(image - self.truth) / np.linalg.norm(self.truth)
        print(f"{name:<38}{arm_ms:9.2f}{frame_ms:9.2f}{total:9.2f}{error:10.1e}", flush=True)
        return total


def arm_plan_row(case: Case, name: str, gpu_device: int = -1, **options: Any) -> float:
    """Measure this project's plan."""
    plan = ArmPlan(case.coords, (case.n, case.n), case.weights, gpu_device=gpu_device, **options)
    grid = plan.zeros(case.coils)
    window = plan.zeros(1)
    for i in range(LENGTH):
        plan.add_arm(window, i, case.data[:1, i])

    def arm(i: int) -> None:
        plan.add_arm(grid, i, case.data[:, i])
        if gpu_device >= 0:
            to_host(grid[0, 0])  # waits for the device

    return case.row(name, arm, lambda _: to_host(plan.image(grid)), to_host(plan.image(window))[0])


def sparse_row(case: Case) -> None:
    """Measure the same gridding as a sparse matrix, with the plan's own tables."""
    from scipy.sparse import csc_array

    plan = ArmPlan(case.coords[:LENGTH], (case.n, case.n), case.weights)
    ny, nx = plan.grid_shape
    matrices = []
    for first, taps in zip(plan._first, plan._weighted, strict=True):
        x, y = ((first[:, axis, None] + np.arange(taps.shape[2])) % n for axis, n in ((0, nx), (1, ny)))
        rows = (y[:, :, None] * nx + x[:, None, :]).astype(np.int32)
        weights = taps[:, 1, :, None] * taps[:, 0, None, :]
        starts = np.arange(len(first) + 1, dtype=np.int32) * taps.shape[2] ** 2
        matrices.append(csc_array((weights.ravel(), rows.ravel(), starts), shape=(ny * nx, len(first))))
    grid = np.zeros((ny * nx, 2 * case.coils), np.float32)
    window = np.zeros((ny, nx, 1), np.complex64)

    def add(grid: np.ndarray, data: np.ndarray, i: int) -> None:
        grid += matrices[i] @ np.ascontiguousarray(data.T).view(np.float32)

    for i in range(LENGTH):
        add(window.view(np.float32).reshape(ny * nx, 2), case.data[:1, i], i)
    full = grid.view(np.complex64).reshape(ny, nx, case.coils)
    case.row(
        "scipy.sparse, oversampling 1.5, width 6",
        lambda i: add(grid, case.data[:, i], i),
        lambda _: plan.image(full),
        plan.image(window)[0],
    )


def finufft_rows(case: Case, eps: float) -> None:
    """Measure FINUFFT: every arm's images added up, and all arms of a frame in one call."""
    import finufft

    radians = 2 * np.pi / case.n * case.coords.astype(np.float32)

    def transform(arms: slice, data: np.ndarray) -> np.ndarray:
        plan = finufft.Plan(1, (case.n, case.n), n_trans=len(data), eps=eps, isign=-1, dtype="complex64", nthreads=1)
        x, y = (np.ascontiguousarray(radians[arms, :, axis].ravel()) for axis in (0, 1))
        plan.setpts(y, x)
        return plan.execute(np.ascontiguousarray(data[:, arms].reshape(len(data), -1)))

    frame = slice(0, LENGTH)
    image = transform(frame, case.weighted[:2])[0]
    case.row(f"FINUFFT {eps:g}, each arm", lambda i: transform(slice(i, i + 1), case.weighted), None, image)
    case.row(f"FINUFFT {eps:g}, whole frames", lambda _: None, lambda _: transform(frame, case.weighted), image)


def sigpy_row(case: Case) -> float:
    """Measure one SigPy adjoint per arm, as reference servers do it, with SigPy's default kernel."""
    import sigpy

    def transform(data: np.ndarray, arms: slice) -> np.ndarray:
        coords = -case.coords[arms].reshape(-1, 2)[:, ::-1]
        return sigpy.nufft_adjoint(data[:, arms].reshape(len(data), -1), coords, (len(data), case.n, case.n)) * case.n

    image = transform(case.weighted[:1], slice(0, LENGTH))[0]
    return case.row("SigPy, each arm", lambda i: transform(case.weighted, slice(i, i + 1)), None, image)


class RunningSum:
    """The alternative to `SlidingWindow`: one grid, the newest arm added, the oldest gridded again and subtracted."""

    def __init__(self, plan: ArmPlan, coils: int, dtype: type) -> None:
        self._plan, self._held, self._seen = plan, deque(), 0
        self._grid = plan.zeros(coils).astype(dtype)

    def _spread(self, arm: int, data: np.ndarray) -> None:
        plan, real = self._plan, self._grid.real.dtype
        rows = np.ascontiguousarray(data.astype(self._grid.dtype).T).view(real)
        plan._backend.spread(self._grid.view(real), plan._first[arm], plan._weighted[arm], rows)

    def add(self, arm: int, data: np.ndarray) -> np.ndarray | None:
        """Take the next arm; return the frame's grid when one is complete."""
        if len(self._held) == LENGTH:
            old_arm, old_data = self._held.popleft()
            self._spread(old_arm, -old_data)
        self._spread(arm, data)
        self._held.append((arm, data))
        self._seen += 1
        complete = self._seen >= LENGTH and (self._seen - LENGTH) % SHIFT == 0
        return self._grid.astype(np.complex64) if complete else None


def window_makers(plan: ArmPlan, coils: int) -> dict[str, Callable[[], Any]]:
    """Return the ways to keep a moving window, by name."""
    return {
        "sums of pieces (SlidingWindow)": lambda: SlidingWindow(plan, coils, LENGTH, SHIFT),
        "running sum, complex64": lambda: RunningSum(plan, coils, np.complex64),
        "running sum, complex128": lambda: RunningSum(plan, coils, np.complex128),
    }


def drift(make: Callable[[], Any], coords: np.ndarray, total: int = 50_000) -> float:
    """Return the relative error of the last frame of many arms."""
    rng = np.random.default_rng(1)
    held: deque = deque(maxlen=LENGTH)
    window, frame, expected = make(), None, []
    for number in range(total):
        data = (rng.standard_normal((2, coords.shape[1])) + 1j * rng.standard_normal((2, coords.shape[1]))) * 100
        held.append((number % len(coords), data.astype(np.complex64)))
        grid = window.add(*held[-1])
        if grid is not None:
            frame, expected = grid, list(held)
    exact = ArmPlan(coords, (16, 16), dtype=np.complex128, oversampling=1.5, width=6)
    truth = exact.zeros(2)
    for arm, data in expected:
        exact.add_arm(truth, arm, data)
    return float(np.linalg.norm(frame - truth) / np.linalg.norm(truth))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="calls per median (default %(default)s, at most 50)")
    parser.add_argument("--gpu", type=int, default=-1, help="number of a GPU to measure too")
    args = parser.parse_args()
    repeats = min(args.repeats, LENGTH - 5)

    for n, coils, samples in CASES:
        case = Case(n, coils, samples, repeats)
        print(f"\n{n} x {n}, {coils} coils, {samples} samples; times in ms")
        print(f"{'':<38}{'arm':>9}{'frame':>9}{'per arm':>9}{'error':>10}")
        reference = sigpy_row(case)
        for eps in (1e-3, 1e-4):
            finufft_rows(case, eps)
        sparse_row(case)
        for oversampling, width in ((1.25, 7), (1.5, 5), (2.0, 4), (2.0, 5)):
            name = f"ArmPlan, oversampling {oversampling}, width {width}"
            arm_plan_row(case, name, oversampling=oversampling, width=width)
        own = arm_plan_row(case, "ArmPlan, as it is (1.5, 6)")
        print(f"ArmPlan is {reference / own:.0f} times as fast as one SigPy adjoint per arm")
        if args.gpu >= 0:
            try:
                arm_plan_row(case, f"ArmPlan, GPU {args.gpu}", gpu_device=args.gpu)
            except GpuUnavailableError as error:
                print(error)

        print(f"{'moving window, gridding included':<38}{'arm':>9}{'largest':>9}")
        plan = ArmPlan(case.coords, (n, n), case.weights)
        for name, make in window_makers(plan, coils).items():
            window, times = make(), []
            for i in range(LENGTH + 5 * SHIFT * 2):
                start = time.perf_counter()
                window.add(i % ARMS, case.data[:, i % ARMS])
                times.append(1e3 * (time.perf_counter() - start))
            steady = times[LENGTH + 5 * SHIFT :]
            print(f"{name:<38}{np.mean(steady):9.2f}{np.max(steady):9.2f}", flush=True)
        del case, plan, window, make
        gc.collect()

    coords, _ = spiral(16, 40)
    print("\nlast frame of 50 000 arms against one made anew in double precision")
    for name, make in window_makers(ArmPlan(coords, (16, 16)), 2).items():
        print(f"{name:<38}{drift(make, coords):27.1e}", flush=True)


if __name__ == "__main__":
    main()
