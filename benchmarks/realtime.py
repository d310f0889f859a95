"""Real-time view-sharing through client and server: latency at the scanner's pace, speed without it, memory.

    python benchmarks/realtime.py [--quick]

Client and server share this machine. What a user would do instead is one SigPy adjoint NUFFT for each arm.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
from streaming import PROJECT, running_server

sys.path.insert(0, str(PROJECT))

from mrdio.mrdfile import MrdWriter
from recon.trajectory import write_metafile
from simplenufft1arm import ViewSharingConfig
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, Simulation, simulate

TR = 5.74e-3
ARMS_PER_FRAME, WINDOW_SHIFT = 55, 17


@dataclass(frozen=True)
class Case:
    """A scan: matrix size, coils, and interleaves, which decide how long a readout is."""

    matrix: int
    coils: int
    interleaves: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.matrix} x {self.matrix}, {self.coils} coils"

    def simulation(self, **options: Any) -> Simulation:
        """One turn through the metafile's 144 arms; options are those of `Scan`."""
        design = SpiralDesign(resolution=0.256 / self.matrix, interleaves=self.interleaves)
        scan = Scan(**{"readouts": 144, "coils": self.coils, "tr": TR, "still": True, "waveforms": False} | options)
        return simulate(design_spiral(design), scan)


SMALL, LARGE, GPU = Case(128, 8, 23), Case(192, 16, 36), Case(256, 32, 48)


def repeated(simulation: Simulation, arms: int) -> Iterator[ismrmrd.Acquisition]:
    """Yield the readouts of a simulation again and again, with counters and time stamps that go on."""
    turn = list(simulation.acquisitions())
    first = turn[0].acquisition_time_stamp
    for number in range(arms):
        same = turn[number % len(turn)]
        head = same.getHead()
        head.scan_counter = number + 1
        head.acquisition_time_stamp = first + int(number * TR / 2.5e-3)
        yield ismrmrd.Acquisition(head, same.data, same.traj)


class Desk:
    """A folder with configuration, metafiles and raw data, and servers and clients that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "configs").mkdir()
        (folder / "seq_meta").mkdir()
        self.configure(-1)

    def configure(self, gpu_device: int, *lines: str) -> None:
        """Write the configuration, with further lines of its table."""
        (self.folder / ViewSharingConfig.FILE).write_text(
            f'metafile_paths = ["seq_meta"]\n[reconstruction]\narms_per_frame = {ARMS_PER_FRAME}\n'
            f"window_shift = {WINDOW_SHIFT}\ngpu_device = {gpu_device}\n" + "\n".join(lines)
        )

    def write(self, simulation: Simulation, arms: int) -> Path:
        """Write raw data of so many arms."""
        write_metafile(simulation.trajectory, self.folder / "seq_meta" / simulation.trajectory.file.name)
        path = self.folder / f"raw_{simulation.truth.matrix}_{arms}.h5"
        with MrdWriter(path) as writer:
            writer.write_header(simulation.header)
            for readout in repeated(simulation, arms):
                writer.write(readout)
        return path

    def client(self, raw: Path, port: int, *options: str) -> subprocess.Popen:
        """Start the client."""
        output = self.folder / f"out_{time.monotonic_ns()}.h5"
        arguments = ["-p", port, "-c", "simplenufft1arm", "-o", output, *options, raw]
        command = [sys.executable, str(PROJECT / "client.py"), *map(str, arguments)]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@dataclass(frozen=True)
class Outcome:
    """Summary line of the server at the end of a scan."""

    p50: float
    p99: float
    rate: float
    backlog: int
    behind: bool
    seconds: float
    terms: int  # of the field correction


def outcome(client: subprocess.Popen) -> Outcome:
    """Wait for a client and read what its server said."""
    text = client.communicate()[0]
    numbers = re.search(
        r"(\d+) images, ([\d.]+) per second.*p50 ([\d.]+), p95 [\d.]+, p99 ([\d.]+) ms; largest backlog (\d+)", text
    )
    seconds = re.search(r"received .* in ([\d.]+) s", text)
    if client.returncode or not numbers or not seconds:
        raise RuntimeError(text)
    images, rate, p50, p99, backlog = (float(number) for number in numbers.groups())
    terms = [int(count) for count in re.findall(r"(\d+) term\(s\)", text)]
    return Outcome(p50, p99, rate, int(backlog), "behind the scan" in text, images / rate, terms[-1] if terms else 0)


def paced(desk: Desk, seconds: float) -> list[str]:
    """Latency at the scanner's pace: alone, and three scans at once in processes."""
    raw = desk.write(SMALL.simulation(), round(seconds / TR))
    rows = []
    for count, options in ((1, []), (3, ["-m"])):
        with running_server(*options, folder=desk.folder) as (port, _):
            outcomes = [outcome(client) for client in [desk.client(raw, port, "--realtime") for _ in range(count)]]
        worst = max(outcomes, key=lambda each: each.p99)
        behind = "falls behind" if any(each.behind for each in outcomes) else "never behind"
        name = "paced" if count == 1 else f"paced, {count} scans at once (-m), the slowest"
        rows.append(
            f"| {name}, {SMALL.name} | latency p50 {worst.p50:.1f}, p99 {worst.p99:.1f} ms | "
            f"{behind}, largest backlog {worst.backlog} readouts |"
        )
    return rows


def unpaced(desk: Desk, case: Case, arms: int, gpu_device: int = -1) -> list[str]:
    """Speed against the scan's own, and against one SigPy adjoint for each arm."""
    simulation = case.simulation()
    raw = desk.write(simulation, arms)
    desk.configure(gpu_device)
    with running_server(folder=desk.folder) as (port, _):
        ours = statistics.median(outcome(desk.client(raw, port)).seconds / arms for _ in range(3))
    theirs = sigpy_per_arm(simulation)
    device = "" if gpu_device < 0 else ", GPU"
    ratios = f"{TR / ours:.1f} x acquired, {theirs / ours:.1f} x one SigPy adjoint per arm ({1e3 * theirs:.1f} ms)"
    return [f"| as fast as it goes, {case.name}{device} | {1e3 * ours:.2f} ms per arm | {ratios} |"]


def sigpy_per_arm(simulation: Simulation) -> float:
    """Time of one SigPy adjoint NUFFT for one arm of all coils [s]."""
    import sigpy

    trajectory = simulation.trajectory
    size = trajectory.matrix_size()
    coordinates = trajectory.cycles_per_fov()
    readouts = list(simulation.acquisitions())
    times = []
    for number in range(30):
        data = readouts[number].data[:, trajectory.pre_discard :] * trajectory.weights
        start = time.perf_counter()
        sigpy.nufft_adjoint(data, coordinates[number], (len(data), size, size))
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def memory(desk: Desk, counts: tuple[int, int]) -> list[str]:
    """Peak memory of the server over short and long scans."""
    simulation = SMALL.simulation()
    peaks = []
    for arms in counts:
        raw = desk.write(simulation, arms)
        with running_server(folder=desk.folder) as (port, process):
            outcome(desk.client(raw, port))
            status = Path(f"/proc/{process.pid}/status").read_text()
        peaks.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
        raw.unlink()
    volume = counts[1] * simulation.scan.coils * simulation.trajectory.readout_length * 8 / 2**20
    ratio = f"{peaks[1] / peaks[0]:.2f} x, for {volume:.0f} MiB of raw data"
    return [f"| memory, {counts[0]} and {counts[1]} arms | peak {peaks[0]:.0f} and {peaks[1]:.0f} MiB | {ratio} |"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter scans")
    quick = parser.parse_args().quick
    print("| scan | figure | remarks |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for rows in (
            lambda: paced(desk, 8 if quick else 20),
            lambda: unpaced(desk, SMALL, 1150),
            lambda: unpaced(desk, LARGE, 600 if quick else 1150),
            lambda: memory(desk, (1000, 5000) if quick else (1000, 50_000)),
        ):
            for row in rows():
                print(row, flush=True)


if __name__ == "__main__":
    main()
