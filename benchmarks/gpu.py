"""A GPU beside the processor, in the same run: view-sharing, and the iterative reconstruction after the scan.

    python benchmarks/gpu.py

View-sharing goes through client and server as fast as it goes; the iterative reconstruction is a call. Images are those
of the processor. The live reconstruction on a GPU is ``python benchmarks/live.py --gpu 0``.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import iterative as phantom
import native
import realtime

from recon import nufft
from solvers.backends import NativeSolver
from solvers.problem import Reporter

ITERATIONS = 30


def view_sharing() -> Iterator[str]:
    """Images of 256 x 256 pixels from 32 coils."""
    with tempfile.TemporaryDirectory() as folder:
        desk = realtime.Desk(Path(folder))
        for device in (-1, 0):
            yield from realtime.unpaced(desk, realtime.GPU, 1150, device)


def iterative() -> Iterator[str]:
    """Temporal finite differences, short and long scans."""
    problem = native.tfd_problem(phantom.FRAMES, NativeSolver(-1, Reporter(lambda text: None)))
    native.native(problem, 1, gpu_device=0)  # what is compiled and planned once
    seconds, images = {}, {}
    for device in (-1, 0):
        begin = time.perf_counter()
        images[device] = native.native(problem, ITERATIONS, gpu_device=device)
        seconds[device] = time.perf_counter() - begin
    apart = np.linalg.norm(images[0] - images[-1]) / np.linalg.norm(images[-1])
    what = f"TFD, {phantom.FRAMES} frames, {ITERATIONS} iterations"
    yield f"| {what} | {seconds[-1]:.2f} s | |"
    ratio = f"{seconds[-1] / seconds[0]:.1f} x as fast, images {apart:.1e} apart"
    yield f"| {what}, GPU | {seconds[0]:.2f} s | {ratio} |"
    longer = native.repeated(problem, native.VERY_LONG)
    begin = time.perf_counter()
    native.native(longer, ITERATIONS, gpu_device=0)
    passed = time.perf_counter() - begin
    what = f"TFD, {native.VERY_LONG} frames, {ITERATIONS} iterations, GPU"
    yield f"| {what} | {passed:.1f} s | {longer.scan_time / passed:.1f} x acquired |"


def main() -> None:
    """Print the table."""
    print("| work | time | remarks |\n| --- | --- | --- |")
    try:
        nufft.open_backend(0)
    except nufft.GpuUnavailableError as error:
        print(f"| GPU | not measured | {error} |")
        return
    for rows in (view_sharing(), iterative()):
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
