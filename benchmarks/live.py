"""The live reconstruction beside view-sharing and the batch solver: errors to the truth, and time per frame.

    python benchmarks/live.py [--frames N]

One simulated scan (128 x 128, 8 coils, beating heart, breathing) goes through client and server on this machine, at
the scanner's pace where images come while the scan runs. Errors are relative to the truth after one factor for all
images; "change" is the correlation of what changes over the images with the true change. Times are from the arrival of
a frame's own last readout to the sending of its image; for the batch reconstruction, the session's by its frames.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from iterative import toml
from numpy.typing import NDArray
from streaming import PROJECT, running_server
from temporal_weight import change, error

sys.path.insert(0, str(PROJECT))

import coils
from mrdhelper import SECONDS_PER_TICK
from mrdio.mrdfile import MrdReader, MrdWriter
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdConfig
from rtspiral_live_tvrecon import LiveConfig
from simplenufft1arm import ViewSharingConfig
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import FIRST_TIME_STAMP, Scan, Simulation, simulate

ARMS, SHARED_ARMS = 7, 55
SETTLED = 60  # frames: those before belong to the start


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


def run(case: Case, folder: Path, raw: Path, port: int) -> tuple[list[ismrmrd.Image], str]:
    """Send the scan through a module; returns the images and what the client printed."""
    (folder / case.config.FILE).write_text(toml({"reconstruction": case.settings}, metafile_paths=["seq_meta"]))
    output = folder / f"{case.name}.h5"
    options = ["--realtime"] if case.realtime else []
    arguments = ["-p", port, "-c", case.module, "-o", output, *options, raw]
    command = [sys.executable, str(PROJECT / "client.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    with MrdReader(output) as reader:
        return list(reader.images()), done.stdout + done.stderr


def frames_of(case: Case, images: Iterable[ismrmrd.Image], tr: float) -> dict[int, ismrmrd.Image]:
    """Images by the number of the frame that they show."""
    if case.config is ViewSharingConfig:
        return {image.image_index - 1 + SHARED_ARMS // 2 // ARMS: image for image in images}
    seconds = SECONDS_PER_TICK / (ARMS * tr)
    return {round((image.acquisition_time_stamp - FIRST_TIME_STAMP) * seconds): image for image in images}


def row(case: Case, images: dict[int, ismrmrd.Image], seconds: float, truth: NDArray, compared: range) -> str:
    """Row of the table."""
    made = [n for n in compared if n in images]
    pixels, truth = np.array([images[n].data[0, 0] for n in made], float), truth[np.array(made) - compared.start]
    text = (
        f"| {case.name} | {len(made)} of {len(compared)} | {error(pixels, truth):.3f} | {change(pixels, truth):.3f} |"
    )
    if not case.realtime:
        return f"{text} {1e3 * seconds / len(images):.0f} per frame, after the scan |"
    times = [float(images[n].meta["ProcessingTime_ms"]) for n in made]
    return f"{text} {np.percentile(times, 50):.0f}, {np.percentile(times, 99):.0f} |"


def simulated(frames: int) -> Simulation:
    """The scan."""
    scan = Scan(readouts=ARMS * frames, coils=8, noise=0.002, heart_rate=84, waveforms=False)
    return simulate(design_spiral(SpiralDesign()), scan)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200, help=f"of the scan, more than {SETTLED + 8}")
    frames = parser.parse_args().frames
    simulation = simulated(frames)
    tr = 1e-3 * simulation.header.sequenceParameters.TR[0]
    compared = range(SETTLED, frames - 8)
    groups = [range(ARMS * n, ARMS * (n + 1)) for n in compared]
    truth = simulation.truth.frames(groups) * coils.rssq(simulation.truth.maps())
    print(
        f"| frames of {1e3 * ARMS * tr:.1f} ms | made | error | change | p50, p99 [ms] |\n| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").mkdir()
        (folder / "seq_meta").mkdir()
        write_metafile(simulation.trajectory, folder / "seq_meta" / simulation.trajectory.file.name)
        raw = folder / "raw.h5"
        with MrdWriter(raw) as writer:
            writer.write_header(simulation.header)
            for readout in simulation.acquisitions():
                writer.write(readout)
        with running_server(folder=folder) as (port, _):
            for case in CASES:
                begin = time.perf_counter()
                images, said = run(case, folder, raw, port)
                seconds = time.perf_counter() - begin
                print(row(case, frames_of(case, images, tr), seconds, truth, compared), flush=True)
                for line in said.splitlines():
                    if "too slow" in line or "behind the scan" in line:
                        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
