"""Small spiral scans and what plays the server for the tests of the iterative reconstructions."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

import coils
import constants
from recon import readouts, spiral
from recon.fieldcorrection import FieldCorrection
from recon.trajectory import Trajectory, write_metafile
from rtspiral_bart_tvrecon import TfdConfig, TfdReconstruction
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, Simulation, simulate

FOV = 0.256  # [m]


def one_thread() -> Iterator[None]:
    """Fixture: for problems this small, more threads of BART would only wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def small_scan(folder: Path, matrix: int = 48, interleaves: int = 12, ordering: str = "ga", **scan: Any) -> Simulation:
    """Simulated scan of few pixels, its metafile in the folder."""
    design = SpiralDesign(resolution=FOV / matrix, interleaves=interleaves, arms=89, ordering=ordering)
    trajectory = design_spiral(design, folder)
    write_metafile(trajectory)
    return simulate(trajectory, Scan(**{"coils": 4, "noise": 0.003} | scan))


def configure(monkeypatch: Any, cls: type, folder: Path, **tables: dict[str, Any]) -> None:
    """Have a module read this configuration; metafiles are in the folder, which becomes the current one."""
    lines = [f"metafile_paths = ['{folder}']"]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    path = folder / cls.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))
    monkeypatch.chdir(folder)  # a relative path starts there


@dataclass
class Client:
    """Stands for a connection: yields items, keeps what is sent."""

    items: Iterable[Any]
    images: list[ismrmrd.Image] = field(default_factory=list)
    waveforms: list[ismrmrd.Waveform] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __iter__(self):
        return iter(self.items)

    def send_image(self, image):
        self.images.append(image)

    def dependency(self, kind):
        return None

    def send_waveform(self, waveform):
        self.waveforms.append(waveform)

    def send_text(self, text):
        self.texts.append(text)

    def send_logging(self, level, text):
        self.texts.append(f"{level} {text}")

    def info(self, text):
        self.send_logging(constants.MRD_LOGGING_INFO, text)

    def warn(self, text):
        self.send_logging(constants.MRD_LOGGING_WARNING, text)

    @property
    def pixels(self) -> np.ndarray:
        """All images [image, row, column]."""
        return np.stack([image.data[0, 0] for image in self.images]).astype(float)


def fake_bart(folder: Path, body: str, cuda: int = 0) -> Path:
    """Folder with an executable `bart` of a few shell lines, which tells its version like a real one."""
    folder.mkdir(exist_ok=True)
    script = folder / "bart"
    probe = f'[ "$1" = version ] && {{ echo v0.9.00; echo CUDA={cuda}; exit 0; }}\n'
    help_text = '[ "$2" = -h ] && { echo "Usage: $1 [-i d] [-g] [-t f] [-S]"; exit 0; }\n'
    script.write_text("#!/bin/sh\n" + probe + help_text + body)
    script.chmod(0o755)
    return folder


def true_images(simulation: Simulation, groups: Iterable[Iterable[int]], matrix: int | None = None) -> np.ndarray:
    """True images [group, row, column] with the shading that normalised coil maps leave."""
    return simulation.truth.frames(groups, matrix) * coils.rssq(simulation.truth.maps(matrix))


def error(images: np.ndarray, truth: np.ndarray) -> float:
    """Relative error after one factor for all images."""
    factor = (images * truth).sum() / (images * images).sum()
    return float(np.linalg.norm(factor * images - truth) / np.linalg.norm(truth))


def change(images: np.ndarray, truth: np.ndarray) -> float:
    """Correlation of what changes over the images with the true change."""
    one, other = images - images.mean(axis=0), truth - truth.mean(axis=0)
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def received(simulation: Simulation, fov_oversampling: float = 1.0, most: int | None = None) -> readouts.Readouts:
    """Readouts of a simulated scan."""
    settings = TfdReconstruction(fov_oversampling=fov_oversampling)
    scan = spiral.SpiralScan(TfdConfig((simulation.trajectory.file.parent,), settings), simulation.header)
    (kept,) = readouts.receive(scan, simulation.acquisitions(), fov_oversampling, most)
    return kept


def maps_agreement(maps: np.ndarray, simulation: Simulation) -> float:
    """Mean inner product of maps with the true ones where the object is, 1 at best."""
    true = simulation.truth.maps(maps.shape[1])
    true /= coils.rssq(true)
    inside = simulation.truth.frame([0], maps.shape[1]) > 0.05
    return float(np.abs((maps.conj() * true).sum(axis=0))[inside].mean())


def in_axial_fields(
    items: Iterable[ismrmrd.Acquisition], trajectory: Trajectory, height: float = 0.0, hertz: float = 0.0
) -> Iterator[ismrmrd.Acquisition]:
    """Readouts of axial planes with the phase that concomitant fields at 0.55 T, and a uniform field, give them.

    `height` [m] is added to that of their position: an object in a stack need not be in its middle.
    """
    steps = np.diff(trajectory.k, axis=1, prepend=trajectory.k[:, :1])
    squares = np.cumsum((steps**2).sum(axis=-1), axis=1) / trajectory.dwell
    seconds = trajectory.dwell * np.arange(trajectory.k.shape[1])
    for item in items:
        square = (1e-3 * item.position[2] + height) ** 2
        cycles = square * squares[item.idx.kspace_encode_step_1] / (2 * 0.55 * 42.576e6) + hertz * seconds
        item.data[:, -len(seconds) :] *= np.exp(-2j * np.pi * cycles)
        yield item


SLOPE = np.array([1100.0, -600.0]) / FOV  # of a linear field along x and y [Hz/m]


def in_linear_field(simulation: Simulation) -> Simulation:
    """The same scan in a field of `SLOPE`: k is off by the slope times the time, exactly."""
    seconds = simulation.trajectory.dwell * np.arange(simulation.trajectory.k.shape[1])
    k = simulation.trajectory.k + SLOPE * seconds[:, np.newaxis]
    return dataclasses.replace(simulation, truth=dataclasses.replace(simulation.truth, actual_k=k))


class LinearField:
    """Its field map, for `FieldCorrection`."""

    def on_grid(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> np.ndarray:
        down, across = (np.arange(n) - n // 2 for n in shape)
        pixel = 1e-3 * field_of_view[0] / shape[1]
        return (-pixel * (SLOPE[0] * across + SLOPE[1] * down[:, np.newaxis])).astype(np.float32)


def know_the_field(monkeypatch: Any, module: Any) -> None:
    """Have a module's field correction know the map of `in_linear_field`."""

    def opened(settings: Any, header: Any, connection: Any, folders: Any) -> FieldCorrection:
        return FieldCorrection(settings, header, LinearField(), connection.info, connection.warn)

    monkeypatch.setattr(module, "open_correction", opened)
