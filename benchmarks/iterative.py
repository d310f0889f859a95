"""The iterative spiral reconstructions through BART: errors to the truth, times, memory.

    python benchmarks/iterative.py [--pictures doc/pictures]

Scans of the beating, breathing phantom go through sessions of the modules, each in a process of its own; this takes a
quarter of an hour on two cores. Errors are relative to the truth (density times root sum of squares of the coils) after
one factor for all images; "change" is the correlation of what changes over the images with the true change. With
``--pictures``, the pictures of the guides in ``doc/`` are drawn from the same reconstructions.
"""

import argparse
import importlib
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ismrmrd
import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import bart_tools
import coils
import spiral_xdgrasp_recon
from connection import Connection
from mrdio.mrdheader import parse_header
from recon import configuration, nufft, physiobins
from recon.trajectory import write_metafile
from rtspiral_bart_tvrecon import TfdConfig
from simulation.gridding import gridded
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, Simulation, simulate
from solvers import bart_recon
from spiral_xdgrasp_recon import XdConfig

ARMS, FRAMES, SHARED_ARMS = 7, 48, 55
DESIGN = SpiralDesign()
TFD_SCAN = Scan(readouts=ARMS * FRAMES, coils=8, noise=0.002, heart_rate=84)
LONG_SCAN = Scan(readouts=ARMS * 300, coils=8, noise=0.002, heart_rate=84)
XD_SCAN = Scan(readouts=2304, coils=6, noise=0.002, heart_rate=66)
TFD, XD = "rtspiral_bart_tvrecon", "spiral_xdgrasp_recon"
CONFIGURATIONS = {TFD: TfdConfig, XD: XdConfig}
TFD_SETTINGS = {"backend": "bart", "arms_per_frame": ARMS, "num_recon_frames": FRAMES, "num_chunks": 1,
                "fov_oversampling": 1.0, "reg_lambda": 0.0002, "num_iter": 60}  # fmt: skip
XD_SETTINGS = {"backend": "bart", "arm_discard_pre": 0, "arm_discard_post": 0, "num_iter": 30,
               "reg_lambda_resp": 0.0005, "reg_lambda_card": 0.0005}  # fmt: skip
XD_BINNING = {"n_respiratory_bins": 6, "n_cardiac_bins": 8, "trigger_source": "ecg"}


# --- Sessions -------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """Answer of a session."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    raw_bytes: int = 0
    seconds: float = 0.0  # from CLOSE to the last image
    commands: list[tuple[str, float]] = field(default_factory=list)  # of BART, with their times [s]
    memory: int = 0  # that the session's process took at most, beyond what it had at the start [bytes]
    files: int = 0  # largest size of BART's files on the RAM disk [bytes]

    @property
    def pixels(self) -> np.ndarray:
        """All images [image, row, column]."""
        return np.stack([image.data[0, 0] for image in self.images]).astype(float)

    def time_of(self, command: str) -> float:
        """Time in a command of BART [s]."""
        return sum(seconds for name, seconds in self.commands if name == command)


def toml(tables: dict[str, dict[str, Any]], **top: Any) -> str:
    """Text of a configuration file."""

    def value(item: Any) -> str:
        return str(item).lower() if isinstance(item, bool) else repr(item)

    lines = [f"{key} = {value(item)}" for key, item in top.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {value(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"


def run_session(
    module: str, simulation: Simulation, tables: dict[str, dict[str, Any]], patch: Callable[[], None] | None = None
) -> Result:
    """Send a simulated scan through a module in a process of its own; `patch` is called there first."""
    context = multiprocessing.get_context("fork")
    ours, theirs = socket.socketpair()
    report, their_report = context.Pipe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_metafile(simulation.trajectory, folder / simulation.trajectory.file.name)
        (folder / "config.toml").write_text(toml(tables, metafile_paths=[str(folder)]))
        arguments = (theirs, their_report, module, folder / "config.toml", ismrmrd.xsd.ToXML(simulation.header), patch)
        process = context.Process(target=_serve, args=arguments)
        process.start()
        theirs.close()
        their_report.close()
        result = Result()
        client = Connection(ours)
        for item in simulation.items():
            if isinstance(item, ismrmrd.Acquisition):
                client.send_acquisition(item)
                result.raw_bytes += item.data.nbytes
            else:
                client.send_waveform(item)
        client.send_close()
        start = time.perf_counter()
        for item in client:
            if isinstance(item, ismrmrd.Image):
                result.images.append(item)
            elif isinstance(item, str):
                result.texts.append(item)
        result.seconds = time.perf_counter() - start
        result.commands, result.memory, result.files = report.recv()
        client.close()
        process.join()
    return result


def _serve(
    sock: socket.socket, report: Any, module: str, config: Path, header: str, patch: Callable[[], None] | None
) -> None:
    """Session in a process of its own, watched."""
    CONFIGURATIONS[module].FILE = str(config)
    process = importlib.import_module(module).process
    nufft.warm_up()
    commands: list[tuple[str, float]] = []
    run = bart_tools.run

    def timed(bart: Any, command: str, *arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        outputs = run(bart, command, *arguments, **keywords)
        commands.append((command, time.perf_counter() - start))
        return outputs

    bart_tools.run = timed
    if patch is not None:
        patch()
    connection = Connection(sock)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _memory("VmRSS")
    with _watched_files() as files:
        process(connection, module, parse_header(header))
    report.send((commands, _memory("VmHWM") - before, files[0]))
    connection.send_close()
    connection.close()


def _memory(name: str) -> int:
    """Memory of this process [bytes]."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


@contextmanager
def _watched_files() -> Iterator[list[int]]:
    """Give BART a folder of its own on the RAM disk; the list holds the largest size of what was in it [bytes]."""
    largest, ended = [0], threading.Event()
    with tempfile.TemporaryDirectory(dir=bart_tools.RAM_DISK) as name:
        bart_tools.RAM_DISK = Path(name)

        def watch() -> None:
            while not ended.wait(0.02):
                try:
                    size = sum(file.stat().st_blocks * 512 for file in Path(name).rglob("*"))
                except OSError:
                    continue  # a file went while it was looked at
                largest[0] = max(largest[0], size)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield largest
        finally:
            ended.set()
            thread.join()


# --- Against the truth ----------------------------------------------------------------------------------------------


def make(scan: Scan, design: SpiralDesign = DESIGN) -> Simulation:
    """Simulate a scan with 128 x 128 pixels."""
    return simulate(design_spiral(design), scan)


def true_images(simulation: Simulation, groups: Iterable[Iterable[int]]) -> np.ndarray:
    """True images [group, row, column] of groups of readouts, with the shading that normalised maps leave."""
    return simulation.truth.frames(groups) * coils.rssq(simulation.truth.maps())


def scaled(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Images times the one factor that fits them best to the truth."""
    return images * ((images * truth).sum() / (images * images).sum())


def error(images: np.ndarray, truth: np.ndarray) -> float:
    """Relative error after one factor."""
    return float(np.linalg.norm(scaled(images, truth) - truth) / np.linalg.norm(truth))


def change(images: np.ndarray, truth: np.ndarray) -> float:
    """Correlation of what changes over the images with the true change."""
    one, other = images - images.mean(axis=0), truth - truth.mean(axis=0)
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def tfd_groups() -> list[range]:
    """Readouts of each frame."""
    return [range(ARMS * n, ARMS * (n + 1)) for n in range(FRAMES)]


def shared_groups() -> list[range]:
    """The same for view-sharing: so many readouts, centred on the frame where the scan allows it."""
    last = ARMS * FRAMES - SHARED_ARMS
    starts = [min(max(group.start + ARMS // 2 - SHARED_ARMS // 2, 0), last) for group in tfd_groups()]
    return [range(start, start + SHARED_ARMS) for start in starts]


def xd_bins(simulation: Simulation) -> physiobins.BinTable:
    """Bins of a scan, as the module makes them."""
    heads = [acquisition.getHead() for acquisition in simulation.acquisitions()]
    settings = configuration.from_mapping(XdConfig, {"reconstruction": XD_SETTINGS, "binning": XD_BINNING}, "benchmark")
    readouts = SimpleNamespace(heads=heads, usable=[True] * len(heads))
    return spiral_xdgrasp_recon.sort(readouts, list(simulation.waveforms()), settings, simulation.scan.tr, print)


def members(bins: physiobins.BinTable) -> list[np.ndarray]:
    """Readouts of each bin."""
    return [bins.readouts[place][bins.weights[place] > 0] for place in np.ndindex(bins.counts.shape)]


# --- The table ------------------------------------------------------------------------------------------------------


def without_weights() -> None:
    """Patch: fill bins up with zeros, and take these for samples."""
    pics = bart_recon.BartSolver.pics

    def patched(solver: Any, options: Any, samples: Any, coordinates: Any, maps: Any, weights: Any) -> Any:
        return pics(solver, options, samples * weights[..., np.newaxis, np.newaxis], coordinates, maps)

    bart_recon.BartSolver.pics = patched


def tfd_rows(keep: Callable[..., None]) -> Iterator[str]:
    """View-sharing against TFD with several weights, and in chunks."""
    simulation = make(TFD_SCAN)
    truth = true_images(simulation, tfd_groups())
    shared = gridded(simulation, shared_groups())
    keep("view-sharing", shared, truth)
    yield row("view-sharing, 55 arms centred on the frame", error(shared, truth), change(shared, truth))
    per_frame: dict[str, np.ndarray] = {}
    for name, settings in (
        ("TFD, reg_lambda 0.0002, 60 iterations", {}),
        ("the same in 3 chunks", {"num_chunks": 3, "reg_lambda": 0.0006}),
        ("the same, reg_lambda 0.00002", {"reg_lambda": 0.00002}),
        ("the same, reg_lambda 0.002", {"reg_lambda": 0.002}),
        ("the same, 30 iterations", {"num_iter": 30}),
    ):
        result = run_session(TFD, simulation, {"reconstruction": TFD_SETTINGS | settings})
        images = result.pixels
        keep(name, images, truth)
        norms = [np.linalg.norm(part, axis=(1, 2)) for part in (scaled(images, truth) - truth, truth)]
        per_frame[name] = norms[0] / norms[1]
        iterations = (TFD_SETTINGS | settings)["num_iter"]
        yield row(name, error(images, truth), change(images, truth), result, FRAMES, iterations)
    whole, chunked = list(per_frame.values())[:2]
    seams = [15, 16, 31, 32]
    elsewhere = [n for n in range(FRAMES) if n not in seams]
    ratio = (chunked[seams] / whole[seams]).mean() / (chunked[elsewhere] / whole[elsewhere]).mean()
    yield f"| frames at the seams against the others (each against the same frame in one chunk) | {ratio:.3f} | | | | |"


def memory_row() -> Iterator[str]:
    """A longer scan in the chunks that the configuration has; few iterations, which memory does not depend on."""
    settings = TFD_SETTINGS | {"num_recon_frames": 300, "num_chunks": 5, "num_iter": 2}
    result = run_session(TFD, make(LONG_SCAN), {"reconstruction": settings})
    yield row(f"memory: TFD, 300 frames, 5 chunks ({result.raw_bytes / 2**20:.0f} MiB of raw data)", result=result)


def xd_rows(keep: Callable[..., None]) -> Iterator[str]:
    """Gridding each bin alone against both constraints."""
    simulation = make(XD_SCAN)
    bins = xd_bins(simulation)
    groups = members(bins)
    truth = true_images(simulation, groups)
    alone = gridded(simulation, groups)
    keep("gridding", alone, truth)
    yield row("XD: gridding each bin alone", error(alone, truth), change(alone, truth))
    for name, settings, patch in (
        ("XD: both weights 0.0005, 30 iterations", {}, None),
        ("the same, weights 0.005", {"reg_lambda_resp": 0.005, "reg_lambda_card": 0.005}, None),
        ("the same, weights 0.00005", {"reg_lambda_resp": 0.00005, "reg_lambda_card": 0.00005}, None),
        ("weights 0.0005, bins filled up with zeros, not weighted", {}, without_weights),
    ):
        result = run_session(XD, simulation, {"reconstruction": XD_SETTINGS | settings, "binning": XD_BINNING}, patch)
        images = result.pixels
        keep(name, images, truth)
        yield row(name, error(images, truth), change(images, truth), result, bins.counts.size, 30)


def row(
    name: str, wrong: float | None = None, changing: float | None = None, result: Result | None = None,
    frames: int = 0, iterations: int = 0,
) -> str:  # fmt: skip
    """One line of the table."""
    cells = [name, "" if wrong is None else f"{wrong:.3f}", "" if changing is None else f"{changing:.3f}", "", "", ""]
    if result is not None:
        cells[3] = f"{result.seconds:.0f} s (nlinv {result.time_of('nlinv'):.1f} s)"
        if frames:
            cells[4] = f"{1e3 * result.time_of('pics') / frames / iterations:.1f} ms"
        sizes = (result.memory / result.raw_bytes, result.files / result.raw_bytes)
        cells[5] = f"{sizes[0]:.1f} + {sizes[1]:.1f} on the RAM disk"
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table; draw the pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the guides")
    options, _ = parser.parse_known_args()
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def keep(name: str, images: np.ndarray, truth: np.ndarray) -> None:
        kept[name] = (scaled(images, truth), truth)

    print("| work | error | change | time after the scan | per frame and iteration | peak memory / raw data |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rows in (tfd_rows(keep), memory_row(), xd_rows(keep)):
        for line in rows:
            print(line, flush=True)
    if options.pictures:
        import _iterative_pictures

        _iterative_pictures.draw(kept, options.pictures)


if __name__ == "__main__":
    main()
