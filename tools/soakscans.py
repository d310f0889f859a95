"""Scans that the clients of a soak send, with the configuration and the modules that they need."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import ismrmrd
import numpy as np

from recon.trajectory import write_metafile
from scripted import CLOSE, cartesian, config, header, message, named
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan as SpiralScan
from simulation.spiralsimulation import simulate
from tools.soakclients import PROTOCOL, Scan

TR = 5.74e-3  # of the spiral [s]
ARMS_PER_FRAME, WINDOW_SHIFT, FRAMES = 55, 17, 11
FAILS_AFTER = 20  # readouts
MODULES = {
    "soakfailing": 'raise RuntimeError("this module always fails")',
    "soakcrashing": "import os; os._exit(3)",  # as a crash in native code does
}


def make_scans(folder: Path, crashing: bool = False) -> list[Scan]:
    """Write all scans into a folder, with the configuration and the modules that they need, and a list of them.

    Parameters
    ----------
    folder : Path
        Where to.
    crashing : bool
        Whether there is one whose module ends its process, which is to be that of its session only.
    """
    scans = []

    def add(
        name: str, head: bytes, data: Sequence[bytes], readouts: int, weight: float = 1.0, pace: float = 0.0,
        waited_for: Sequence[int] = (),
    ) -> None:  # fmt: skip
        messages = [config(name), head, *data, CLOSE]
        (folder / f"{name}.bin").write_bytes(b"".join(messages))
        ends = np.cumsum([len(each) for each in messages]).tolist()
        scans.append(Scan(name, ends, readouts, weight, pace, list(waited_for)))

    def noise(rows: int, channels: int, samples: int) -> list[bytes]:
        parts = np.random.default_rng([rows, channels, samples]).standard_normal((2, rows, channels, samples))
        return cartesian(parts[0] + 1j * parts[1])

    head = header(protocol=PROTOCOL)
    add("simplefft", header(96, 96, PROTOCOL), noise(96, 4, 96), 96, weight=3)
    add("invertcontrast", head, _images(), 0, weight=2)
    add("null", head, noise(512, 8, 256), 512, weight=2)
    for name in ("soakfailing", "soakcrashing")[: 1 + crashing]:
        lines = f"for number, _ in enumerate(connection):\n        if number == {FAILS_AFTER}: {MODULES[name]}"
        (folder / f"{name}.py").write_text(f"def process(connection, config, metadata):\n    {lines}\n", "utf-8")
        add(name, header(48, 48, PROTOCOL), noise(48, 4, 48), 48)

    (folder / "configs").mkdir()
    (folder / "seq_meta").mkdir()
    settings = f"[reconstruction]\narms_per_frame = {ARMS_PER_FRAME}\nwindow_shift = {WINDOW_SHIFT}\n"
    toml = folder / "configs" / "rtspiral_vs_config.toml"
    toml.write_text(f'metafile_paths = ["seq_meta"]\n{settings}', "utf-8")
    trajectory = design_spiral(SpiralDesign(resolution=4e-3, interleaves=13, arms=89), folder / "seq_meta")
    write_metafile(trajectory)
    arms = ARMS_PER_FRAME + (FRAMES - 1) * WINDOW_SHIFT
    spiral = simulate(trajectory, SpiralScan(readouts=arms, tr=TR, coils=4, waveforms=False))
    last_arms = [2 + ARMS_PER_FRAME - 1 + frame * WINDOW_SHIFT for frame in range(FRAMES)]
    data = [message(each) for each in spiral.acquisitions()]
    add("simplenufft1arm", message(named(spiral.header, PROTOCOL)), data, arms, weight=2, pace=TR, waited_for=last_arms)
    (folder / "scans.json").write_text(json.dumps([dataclasses.asdict(scan) for scan in scans]), "utf-8")
    return scans


def _images() -> list[bytes]:
    """More images than the buffers between server and client hold, so that a slow reader delays the server."""
    random, items = np.random.default_rng(5), []
    for index in range(32):
        item = ismrmrd.Image.from_array(random.integers(0, 2000, (256, 256), np.int16), transpose=False)
        item.image_index, item.image_type = index + 1, ismrmrd.IMTYPE_MAGNITUDE
        item.meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": ["FIRE", "PYTHON"]})
        items.append(message(item))
    return items
