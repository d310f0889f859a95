"""Speed and memory of `cartesian_recon` for many coils and slices, against the time that the scan takes.

    python benchmarks/cartesian_speed.py

32 coils, 256 x 256 with twofold readout oversampling, every third line and 24 calibration lines, 20 slices, 5 ms from
line to line. Each row is a process of its own; it is compared with the scan's time, and with the memory of two
repetitions.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import cartesian_recon
from cartesian_recon import CartesianConfig, CartesianReconstruction
from recon import configuration
from simulation.cartesiansimulation import Noise, Scan, acquisitions, header

LINE = 5e-3  # [s] from one line of a slice to the next
ROWS = {
    "GRAPPA, 16 virtual coils": {},
    "GRAPPA, all coils": {"coil_compression": 0},
    "zero-filled": {"acceleration": "none"},
}


class Recording:
    """Stands for a connection."""

    def __init__(self, readouts: Iterator[Any]) -> None:
        self._readouts, self.images, self.times = readouts, 0, [time.perf_counter()]

    def __iter__(self) -> Iterator[Any]:
        return self._readouts

    def dependency(self, kind: str) -> None:
        """No stored measurement."""

    def send_image(self, image: Any) -> None:
        """Count an image, and note when it came."""
        self.images += 1
        self.times.append(time.perf_counter())

    def info(self, text: str) -> None:
        """Drop a text."""

    warn = info


def readouts_of(scan: Scan, slices: int, repetitions: int) -> tuple[list[Any], Iterator[Any]]:
    """Readouts of one slice, and those of many, slice after slice, of the same data."""
    one = list(acquisitions(scan))
    noise = [each for each in one if each.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    lines = one[len(noise) :]

    def all_of_them() -> Iterator[Any]:
        yield from noise
        for repetition in range(repetitions):
            for number in range(slices):
                for line in lines:
                    copy = ismrmrd.Acquisition(line.getHead(), line.data)
                    copy.idx.slice, copy.idx.repetition = number, repetition
                    yield copy

    return lines, all_of_them()


def measure(options: dict[str, Any], slices: int, repetitions: int) -> tuple[float, float, float, int, int]:
    """Median and longest time for a slice [s], its acquisition time [s], memory above the start [MiB], images."""
    scan = Scan(
        coils=32, acceleration=3, calibration="embedded", calibration_width=24, noise_scan=True,
        noise_model=Noise(readouts=20), slices=1,
    )  # fmt: skip
    head = header(scan)
    head.encoding[0].encodingLimits.slice = ismrmrd.xsd.limitType(minimum=0, maximum=slices - 1, center=0)
    settings = CartesianConfig(CartesianReconstruction(**options))
    configuration.load = lambda cls: settings
    lines, readouts = readouts_of(scan, slices, repetitions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recording = Recording(readouts)
    cartesian_recon.process(recording, "cartesian_recon", head)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = np.diff(recording.times)
    return float(np.median(each)), float(each[1:].max()), len(lines) * LINE, (peak - before) >> 10, recording.images


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=20)
    slices = parser.parse_args().slices
    print(
        "| reconstruction | a slice: median, longest | acquisition of a slice | ratio | memory, 2 and 6 repetitions |"
    )
    print("| --- | --- | --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    for name, options in ROWS.items():
        results = []
        for repetitions in (2, 6):
            with context.Pool(1) as pool:
                results.append(pool.apply(measure, (options, slices, repetitions)))
        median, longest, acquired, _, _ = results[-1]
        memory = " and ".join(str(result[3]) for result in results)
        row = f"{name} | {1e3 * median:.0f} ms, {1e3 * longest:.0f} ms | {1e3 * acquired:.0f} ms"
        print(f"| {row} | {acquired / median:.1f} x as fast | {memory} MiB |", flush=True)


if __name__ == "__main__":
    main()
