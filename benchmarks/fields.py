"""Correction of fields: how sharp images become, by which map, and what it costs.

    python benchmarks/fields.py [--quick] [--pictures FOLDER]

Scans are exact by construction (`simulation.fields`). Errors are those of `simplenufft` to the true image, after one
factor, over the error of the same scan without any field: 1 is perfect. "Wrong sign" is the true map with the other
sign. Costs are those of view-sharing at the pace of a scan, through server and client, and of TFD when the scan is
over.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from realtime import SMALL, TR, Desk, outcome
from streaming import PROJECT, running_server

sys.path.insert(0, str(PROJECT))

import coils
import rtspiral_bart_tvrecon
import simplenufft
from mrdio.dependencies import Dependency
from rtspiral_bart_tvrecon import TfdConfig
from simplenufft import NufftConfig
from simulation import twoechoes
from simulation.fields import OffResonance
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, Simulation, simulate

MATRIX, INTERLEAVES, ARMS = 128, 15, 144  # readouts of 4.5 ms
STILL = Scan(readouts=ARMS, coils=8, noise=0.002, still=True, waveforms=False, carried="1/m")
VIALS = (-60.0, 20.0, 110.0)
LINEAR = OffResonance(0, 150, -80)
CASES: dict[str, dict[str, Any]] = {
    "ellipses at -60, +20, +110 Hz": {"vials": VIALS},
    "linear, 150 x -80 Hz over the image": {"off_resonance": LINEAR},
    "ellipses, in the linear field": {"vials": VIALS, "off_resonance": LINEAR},
    "no field": {},
}
PLANES: dict[str, dict[str, Any]] = {
    "0.55 T, axial, 10 cm off": {"position": (0.0, 0.0, 100.0)},
    "0.55 T, sagittal, 10 cm off": {"rotation": (0.0, 90.0, 0.0), "position": (100.0, 0.0, 0.0)},
    "0.55 T, oblique, 10 cm off": {"rotation": (25.0, -40.0, 10.0), "position": (60.0, -50.0, 62.0)},
}
TFD = Scan(readouts=17 * 24, coils=8, noise=0.002, heart_rate=75, waveforms=False)


class Desktop:
    """Stands for a connection: yields a scan, keeps images and texts."""

    def __init__(self, simulation: Simulation, two_echoes: Dependency | None = None) -> None:
        self._items = simulation.items()
        self._two_echoes = two_echoes
        self.images: list[NDArray[np.float64]] = []
        self.texts: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def dependency(self, kind: str) -> Dependency | None:
        """Scan of two echoes, if there is one."""
        return self._two_echoes if kind == twoechoes.DEPENDENCY else None

    def send_image(self, image: ismrmrd.Image) -> None:
        """Keep an image."""
        self.images.append(image.data[0, 0].astype(float))

    def send_waveform(self, waveform: Any) -> None:
        """Leave it."""

    def send_text(self, text: str) -> None:
        """Keep a text."""
        self.texts.append(text)

    info = warn = send_text


@contextlib.contextmanager
def configured(cls: type, *lines: str) -> Iterator[None]:
    """Be in a folder with the configuration of a module: lines of its table [reconstruction]."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / cls.FILE
        path.parent.mkdir()
        path.write_text("[reconstruction]\n" + "\n".join(lines) + "\n")
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)


def images_of(
    simulation: Simulation, *lines: str, two_echoes: Dependency | None = None
) -> tuple[NDArray[np.float64], list[str]]:
    """Images of simplenufft with these settings, and what it told."""
    with configured(NufftConfig, 'coil_combine = "rssq"', *lines):
        client = Desktop(simulation, two_echoes)
        simplenufft.process(client, "simplenufft", simulation.header)
    return client.images[0], client.texts


def error(image: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Relative error after one factor."""
    factor = (image * truth).sum() / (image * image).sum()
    return float(np.linalg.norm(factor * image - truth) / np.linalg.norm(truth))


def scan(**options: Any) -> Simulation:
    """Simulated still scan."""
    trajectory = design_spiral(SpiralDesign(resolution=0.256 / MATRIX, interleaves=INTERLEAVES))
    return simulate(trajectory, dataclasses.replace(STILL, **options))


def truth_of(simulation: Simulation) -> NDArray[np.float64]:
    """True image with the shading of the coils."""
    return simulation.truth.frame([0]) * coils.rssq(simulation.truth.maps())


def terms_in(texts: list[str]) -> str:
    """Number of terms that the client was told."""
    return next((text.split(" term")[0].split()[-1] for text in texts if "are corrected by" in text), "-")


def sharpness() -> Iterator[str]:
    """Yield the rows of off-resonance."""
    yield "| field | uncorrected | wrong sign | true map | two echoes | auto | terms |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, options in CASES.items():
        disturbed = scan(**options)
        free = scan(**{"vials": (0.0,) * len(VIALS)} if "vials" in options else {})
        truth = truth_of(free)
        base = error(images_of(free)[0], truth)
        measured = twoechoes.scan_of(disturbed, "cartesian")
        kept = Dependency("two echoes", measured.header, list(measured.acquisitions()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map.npy"
            settings = ["", f'field_map = "{path}"', f'field_map = "{path}"']
            got = []
            for sign, line in zip((0, -1, 1), settings, strict=True):
                np.save(path, sign * disturbed.truth.field_map())
                got.append(images_of(disturbed, line))
        got += [images_of(disturbed, f'field_map = "{key}"', two_echoes=kept) for key in ("dependency", "auto")]
        ratios = " | ".join(f"{error(image, truth) / base:.2f}" for image, _ in got)
        yield f"| {name} | {ratios} | {terms_in(got[2][1])} |"


def concomitant() -> Iterator[str]:
    """Yield the rows of concomitant fields: fewer readouts, as those that are not axial are sums over points."""
    yield "| concomitant fields | uncorrected | corrected | terms |"
    yield "| --- | --- | --- | --- |"
    for name, options in PLANES.items():
        short = {"readouts": INTERLEAVES * 2, "vials": (0.0,) * 3, "noise": 0.0}
        free, disturbed = scan(**short), scan(**short, concomitant=True, **options)
        plain = images_of(free)[0]
        blurred, (sharp, texts) = images_of(disturbed, 'concomitant = "off"')[0], images_of(disturbed)
        yield (
            f"| {name} | {100 * error(blurred, plain):.1f} % of the image | {100 * error(sharp, plain):.2f} % | "
            f"{terms_in(texts)} |"
        )


def view_sharing(seconds: float) -> Iterator[str]:
    """Yield the rows of view-sharing at the pace of a scan."""
    yield f"| view-sharing, {SMALL.name}, TR {1e3 * TR:g} ms | latency p50 | p99 | |"
    yield "| --- | --- | --- | --- |"
    hundred = OffResonance(0, 50, -50)
    simulation = SMALL.simulation(concomitant=True, position=(0.0, 0.0, 100.0), off_resonance=hundred)
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        raw = desk.write(simulation, round(seconds / TR))
        np.save(desk.folder / "map.npy", hundred.map(SMALL.matrix))
        for name, lines in {
            "without": (),
            "0.55 T, axial, 10 cm off": ('concomitant = "on"',),
            "0.55 T, axial, 10 cm off, a map of 100 Hz": ('concomitant = "on"', 'field_map = "map.npy"'),
            "auto": ('concomitant = "on"', 'field_map = "auto"'),
        }.items():
            desk.configure(-1, *(lines or ('concomitant = "off"',)))
            with running_server(folder=desk.folder) as (port, _):
                client = desk.client(raw, port, "--realtime")
                found = outcome(client)
            pace = "falls behind" if found.behind else f"never behind, largest backlog {found.backlog}"
            yield f"| {name}, {found.terms or 'no'} terms | {found.p50:.1f} ms | {found.p99:.1f} ms | {pace} |"


def tfd() -> Iterator[str]:
    """Yield the rows of TFD, batch, native solver."""
    yield "| TFD, batch, 128 x 128, 24 frames, native | time | over that without | error of the movie |"
    yield "| --- | --- | --- | --- |"
    trajectory = design_spiral(SpiralDesign(resolution=0.256 / MATRIX, interleaves=INTERLEAVES))
    plain = simulate(trajectory, dataclasses.replace(TFD, carried="1/m"))
    disturbed = simulate(trajectory, dataclasses.replace(TFD, carried="1/m", off_resonance=LINEAR))
    truth = plain.truth.frames([range(17 * n, 17 * n + 17) for n in range(24)]) * coils.rssq(plain.truth.maps())
    common = ('backend = "native"', "num_iter = 30", "arms_per_frame = 17", "fov_oversampling = 1.0")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.npy"
        np.save(path, disturbed.truth.field_map())
        for name, simulation, lines in (
            ("no field", plain, ()),
            ("uncorrected", disturbed, ()),
            ("true map", disturbed, (f'field_map = "{path}"', "field_tolerance = 0.02")),
            ("auto", disturbed, ('field_map = "auto"', "field_tolerance = 0.02")),
        ):
            with configured(TfdConfig, *common, *lines):
                client = Desktop(simulation)
                begun = time.perf_counter()
                rtspiral_bart_tvrecon.process(client, "", simulation.header)
                seconds = time.perf_counter() - begun
            first = first or seconds
            label = name if not lines else f"{name}, {terms_in(client.texts)} terms"
            yield f"| {label} | {seconds:.1f} s | {seconds / first:.1f} | {error(np.stack(client.images), truth):.4f} |"


def draw(folder: Path) -> None:
    """Draw the ellipses and the chest: without a field, uncorrected, corrected."""
    from matplotlib.figure import Figure

    sys.path.insert(0, str(PROJECT / "doc"))
    from drawing import save, show, white_of

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    titles = ("no field", "uncorrected", "true map", "auto")
    rows = ("ellipses at -60, +20, +110 Hz", "linear, 150 x -80 Hz over the image")
    for axes, name in zip(figure.subplots(2, 4), rows, strict=True):
        disturbed = scan(**CASES[name])
        free = scan(vials=(0.0,) * 3) if "vials" in CASES[name] else scan()
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "map.npy"
            np.save(path, disturbed.truth.field_map())
            shown = [images_of(free)[0], images_of(disturbed)[0], images_of(disturbed, f'field_map = "{path}"')[0],
                     images_of(disturbed, 'field_map = "auto"')[0]]  # fmt: skip
        white = white_of(shown[:1])
        for place, title, image in zip(axes, titles, shown, strict=True):
            show(place, image, title, white)
    save(figure, "fields", folder=folder)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Correction of fields: sharpness and costs.")
    parser.add_argument("--quick", action="store_true", help="shorter scans at the scanner's pace")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw fields.png instead")
    options = parser.parse_args()
    if options.pictures:
        draw(options.pictures)
        return
    tables: tuple[Callable[[], Iterator[str]], ...] = (
        sharpness, concomitant, lambda: view_sharing(8 if options.quick else 30), tfd
    )  # fmt: skip
    for number, table in enumerate(tables):
        if number:
            print()
        for line in table():
            print(line, flush=True)


if __name__ == "__main__":
    main()
