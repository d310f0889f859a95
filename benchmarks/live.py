"""The live reconstruction beside view-sharing and the batch solver: errors to the truth, and time per frame.

    python benchmarks/live.py [--frames N] [--pixels N] [--coils N] [--interleaves N] [--only TEXT ...]
                              [--busy] [--gpu N]

One simulated scan (128 x 128, 8 coils, beating heart, breathing) goes through client and server on this machine, at
the scanner's pace where images come while the scan runs. Errors are relative to the truth after one factor for all
images; "change" is the correlation of what changes over the images with the true change. Times are from the arrival of
a frame's own last readout to the sending of its image: of all compared frames, and the median of the first and the
last fifth of them. Memory is the server's: after a quarter of the scan, and the most. For what comes after the scan,
time is that of the session by its frames. BART's ``rtnlinv``, which makes frame after frame but no stream, runs on a
part of the scan. With ``--busy`` another process takes what it gets of one core; with ``--gpu`` a GPU computes.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import psutil
from iterative import toml
from numpy.typing import NDArray
from streaming import PROJECT, running_server
from temporal_weight import change, error

sys.path.insert(0, str(PROJECT))

import bart_tools
import coils
from mrdhelper import SECONDS_PER_TICK
from mrdio.cfl import COIL_DIM, PHS1_DIM, PHS2_DIM, READ_DIM, TIME_DIM, on_axes
from mrdio.mrdfile import MrdReader, MrdWriter
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdConfig
from rtspiral_live_tvrecon import LiveConfig
from simplenufft1arm import ViewSharingConfig
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import FIRST_TIME_STAMP, Scan, Simulation, simulate
from solvers.bart_recon import for_bart

ARMS, SHARED_ARMS = 7, 55
SETTLED = 60  # frames: those before belong to the start
BART_FRAMES = range(40, 80)  # of BART's run, from SETTLED on compared


@dataclass(frozen=True)
class Case:
    """A row of the table: module, configuration, and its table [reconstruction]."""

    name: str
    module: str
    config: Any
    settings: dict[str, Any]
    realtime: bool = True


CASES = (
    Case("view-sharing, 55 arms", "simplenufft1arm", ViewSharingConfig,
         {"arms_per_frame": SHARED_ARMS, "window_shift": ARMS}),
    *(Case(f"live, lag {lag}", "rtspiral_live_tvrecon", LiveConfig, {"arms_per_frame": ARMS, "lag_frames": lag})
      for lag in (0, 1, 2)),
    Case("batch (native)", "rtspiral_bart_tvrecon", TfdConfig,
         {"arms_per_frame": ARMS, "fov_oversampling": 1.0, "num_chunks": 1}, realtime=False),
)  # fmt: skip


def run(case: Case, folder: Path, raw: Path, port: int, gpu_device: int = -1) -> tuple[list[ismrmrd.Image], str]:
    """Send the scan through a module; returns the images and what the client printed."""
    settings = {"reconstruction": case.settings | {"gpu_device": gpu_device}}
    (folder / case.config.FILE).write_text(toml(settings, metafile_paths=["seq_meta"]))
    output = folder / f"{case.name}.h5"
    options = ["--realtime"] if case.realtime else []
    arguments = ["-p", port, "-c", case.module, "-o", output, *options, raw]
    command = [sys.executable, str(PROJECT / "client.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    with MrdReader(output) as reader:
        return list(reader.images()), done.stdout + done.stderr


def write_scan(simulation: Simulation, folder: Path) -> Path:
    """Write the raw data and the metafile into the folder of a server; returns the former."""
    (folder / "configs").mkdir()
    (folder / "seq_meta").mkdir()
    write_metafile(simulation.trajectory, folder / "seq_meta" / simulation.trajectory.file.name)
    raw = folder / "raw.h5"
    with MrdWriter(raw) as writer:
        writer.write_header(simulation.header)
        for readout in simulation.acquisitions():
            writer.write(readout)
    return raw


def frames_of(case: Case, images: Iterable[ismrmrd.Image], tr: float) -> dict[int, ismrmrd.Image]:
    """Images by the number of the frame that they show."""
    if case.config is ViewSharingConfig:
        return {image.image_index - 1 + SHARED_ARMS // 2 // ARMS: image for image in images}
    seconds = SECONDS_PER_TICK / (ARMS * tr)
    return {round((image.acquisition_time_stamp - FIRST_TIME_STAMP) * seconds): image for image in images}


def row(
    case: Case, images: dict[int, ismrmrd.Image], seconds: float, truth: NDArray, compared: range, memory: str
) -> str:
    """Row of the table."""
    made = [n for n in compared if n in images]
    pixels, truth = np.array([images[n].data[0, 0] for n in made], float), truth[np.array(made) - compared.start]
    count = f"{len(made)} of {len(compared)}"
    text = f"| {case.name} | {count} | {error(pixels, truth):.3f} | {change(pixels, truth):.3f} |"
    if not case.realtime:
        return f"{text} {1e3 * seconds / len(images):.0f} per frame, after the scan | | {memory} |"
    times = np.array([float(images[n].meta["ProcessingTime_ms"]) for n in made])
    part = max(len(times) // 5, 1)
    medians = ", ".join(f"{np.median(some):.0f}" for some in (times[:part], times[-part:]))
    return f"{text} {np.percentile(times, 50):.0f}, {np.percentile(times, 99):.0f} | {medians} | {memory} |"


def bart_row(simulation: Simulation, steps: int, truth: NDArray, compared: range) -> str:
    """Row of BART's real-time reconstruction, by so many Newton steps."""
    bart, k = bart_tools.find_bart(), simulation.trajectory.cycles_per_fov()
    readouts = list(simulation.acquisitions())[ARMS * BART_FRAMES.start : ARMS * BART_FRAMES.stop]
    fitted = simulation.trajectory.fitted_to(readouts[0])
    shape = (len(BART_FRAMES), ARMS)
    columns = np.arange(ARMS * BART_FRAMES.start, ARMS * BART_FRAMES.stop).reshape(shape) % len(k)
    samples = np.stack([fitted.samples(each) for each in readouts]).reshape(*shape, -1, k.shape[1])
    trajectory = on_axes(for_bart(k[columns]), TIME_DIM, PHS2_DIM, PHS1_DIM, READ_DIM)
    kspace = on_axes(samples, TIME_DIM, PHS2_DIM, COIL_DIM, PHS1_DIM)
    size = simulation.trajectory.matrix_size()
    options = ["-i", steps, "-S", "-t", trajectory]
    begin = time.perf_counter()
    images, *_ = bart_tools.run(bart, "rtnlinv", options, kspace, timeout=3600)
    seconds = (time.perf_counter() - begin) / len(BART_FRAMES)
    shown = range(max(SETTLED, compared.start), min(BART_FRAMES.stop, compared.stop))
    movie = np.abs(np.moveaxis(images.reshape(size, size, -1), (0, 1), (2, 1)))[shown.start - BART_FRAMES.start :]
    expected = truth[shown.start - compared.start : shown.stop - compared.start]
    text = f"| BART rtnlinv -i {steps} | {len(movie)} of {len(movie)} | {error(movie, expected):.3f} |"
    return f"{text} {change(movie, expected):.3f} | {1e3 * seconds:.0f} per frame, after the scan | | |"


class Memory(threading.Thread):
    """Watches the memory of a server [MiB], until `stop` is called."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process, self._stopped, self._sizes = psutil.Process(process), threading.Event(), [0]

    def run(self) -> None:
        """Look four times a second."""
        while not self._stopped.wait(0.25):
            self._sizes.append(self._process.memory_info().rss >> 20)

    def stop(self) -> str:
        """After a quarter of the time, and the most."""
        self._stopped.set()
        self.join()
        return f"{self._sizes[len(self._sizes) // 4]}, {max(self._sizes)}"


@contextlib.contextmanager
def another_process(busy: bool) -> Iterator[None]:
    """Let another process use the processor."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    if busy:
        process.start()
    try:
        yield
    finally:
        if busy:
            process.kill()


def spin() -> None:
    """Use the processor for ever."""
    while True:
        os.getpid()


def simulated(frames: int, pixels: int, coil_count: int, interleaves: int = SpiralDesign.interleaves) -> Simulation:
    """The scan."""
    scan = Scan(readouts=ARMS * frames, coils=coil_count, noise=0.002, heart_rate=84, waveforms=False)
    return simulate(design_spiral(SpiralDesign(resolution=0.256 / pixels, interleaves=interleaves)), scan)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200, help=f"of the scan, more than {SETTLED + 8}")
    parser.add_argument("--pixels", type=int, default=128, help="of the images, along each side")
    parser.add_argument("--coils", type=int, default=8)
    fills = "arms that fill k-space; fewer take longer"
    parser.add_argument("--interleaves", type=int, default=SpiralDesign.interleaves, help=fills)
    parser.add_argument("--only", nargs="+", default=[""], help="rows that have one of these texts in their name")
    parser.add_argument("--busy", action="store_true", help="beside a process that does not rest")
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU that computes")
    options = parser.parse_args()
    simulation = simulated(options.frames, options.pixels, options.coils, options.interleaves)
    tr = 1e-3 * simulation.header.sequenceParameters.TR[0]
    compared = range(SETTLED, options.frames - 8)
    groups = [range(ARMS * n, ARMS * (n + 1)) for n in compared]
    truth = simulation.truth.frames(groups) * coils.rssq(simulation.truth.maps())
    heading = f"frames of {1e3 * ARMS * tr:.1f} ms | made | error | change | p50, p99 [ms]"
    print(f"| {heading} | p50 of the first, the last fifth | memory [MiB] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name, another_process(options.busy):
        folder = Path(name)
        raw = write_scan(simulation, folder)
        for case in CASES:
            if not any(text in case.name for text in options.only):
                continue
            with running_server(folder=folder) as (port, server):
                memory = Memory(server.pid)
                memory.start()
                begin = time.perf_counter()
                images, said = run(case, folder, raw, port, options.gpu)
                seconds = time.perf_counter() - begin
                used = memory.stop()
            print(row(case, frames_of(case, images, tr), seconds, truth, compared, used), flush=True)
            for line in said.splitlines():
                if "too slow" in line or "behind the scan" in line:
                    print(line, file=sys.stderr)
        if shutil.which("bart") and any(text in "BART" for text in options.only):
            for steps in (6,):
                print(bart_row(simulation, steps, truth, compared), flush=True)


if __name__ == "__main__":
    main()
