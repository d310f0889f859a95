"""A GPU beside the processor, in the same run: view-sharing, and the iterative reconstruction after the scan.

    python benchmarks/gpu.py

View-sharing goes through client and server as fast as it goes; the iterative reconstruction is a call. Images are those
of the processor. The live reconstruction on a GPU is ``python benchmarks/live.py --gpu 0``.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import iterative as phantom
import native
import realtime

from recon import nufft
from solvers.backends import NativeSolver
from solvers.problem import Reporter


def view_sharing() -> Iterator[str]:
    """Images of 256 x 256 pixels from 32 coils."""
    with tempfile.TemporaryDirectory() as folder:
        desk = realtime.Desk(Path(folder))
        for device in (-1, 0):
            yield from realtime.unpaced(desk, realtime.GPU, 1150, device)


def iterative() -> Iterator[str]:
    """Temporal finite differences, short and long scans."""
    iterations = native.ITERATIONS[-1]
    problem = native.tfd_problem(phantom.FRAMES, NativeSolver(-1, Reporter(lambda text: None)))
    native.native(problem, 1, gpu_device=0)  # what is compiled and planned once
    on_cpu, cpu_seconds = timed(lambda: native.native(problem, iterations, gpu_device=-1))
    on_gpu, gpu_seconds = timed(lambda: native.native(problem, iterations, gpu_device=0))
    apart = np.linalg.norm(on_gpu - on_cpu) / np.linalg.norm(on_cpu)
    what = f"TFD, {phantom.FRAMES} frames, {iterations} iterations"
    yield f"| {what} | {cpu_seconds:.2f} s | |"
    ratio = f"{cpu_seconds / gpu_seconds:.1f} x as fast, images {apart:.1e} apart"
    yield f"| {what}, GPU | {gpu_seconds:.2f} s | {ratio} |"
    longer = native.repeated(problem, native.VERY_LONG)
    _, seconds = timed(lambda: native.native(longer, iterations, gpu_device=0))
    what = f"TFD, {native.VERY_LONG} frames, {iterations} iterations, GPU"
    yield f"| {what} | {seconds:.1f} s | {longer.scan_time / seconds:.1f} x acquired |"


def timed(work: Callable[[], NDArray[np.complex64]]) -> tuple[NDArray[np.complex64], float]:
    """Result of some work, and the time that it took [s]."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def main() -> None:
    """Print the table; without a GPU end with an error, so that `python benchmarks` keeps what was measured on one."""
    try:
        nufft.open_backend(0)
    except nufft.GpuUnavailableError as error:
        sys.exit(f"not measured: {error}")
    print("| work | time | remarks |\n| --- | --- | --- |")
    for rows in (view_sharing(), iterative()):
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
