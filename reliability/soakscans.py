"""Data of the soak test's clients: sessions made once, and kept as bytes."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ismrmrd
import numpy as np

from recon.trajectory import write_metafile
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan as SpiralScan
from simulation.spiralsimulation import simulate

from .scripted import CLOSE, config, header, message

TR = 5.74e-3  # of the spiral [s]
ARMS_PER_FRAME, WINDOW_SHIFT = 55, 17
FAILS_AFTER = 20  # readouts

# Stands in each header, as its protocol; a client puts the name of its session there, which names the recording.
PROTOCOL = "soak-000000000000"

FAILING_MODULE = f'''"""Fails in the middle of a scan, as a module under development may."""


def process(connection, config, metadata):
    for number, _ in enumerate(connection):
        if number == {FAILS_AFTER}:
            raise RuntimeError("this module always fails")
'''

CRASHING_MODULE = f'''"""Ends its process in the middle of a scan, as a crash in native code does."""

import os


def process(connection, config, metadata):
    for number, _ in enumerate(connection):
        if number == {FAILS_AFTER}:
            os._exit(3)
'''


@dataclass(frozen=True)
class Scan:
    """A session as a client sends it.

    Attributes
    ----------
    name : str
        For the figures.
    file : str
        File with its bytes.
    ends : tuple of int
        Where each message ends in it.
    readouts : int
        How many readouts it has.
    fails : bool
        Whether the module fails, and the client is to be told.
    crashes : bool
        Whether the module ends its process when it has taken a readout more than `FAILS_AFTER`.
    pace : float
        Time from readout to readout, 0: as fast as it goes [s].
    waited_for : tuple of int
        Of each image, the number of the message behind which it can come at the earliest; empty: not measured.
    weight : float
        How often clients choose it.
    """

    name: str
    file: str
    ends: tuple[int, ...]
    readouts: int
    fails: bool = False
    crashes: bool = False
    pace: float = 0.0
    waited_for: tuple[int, ...] = ()
    weight: float = 1.0

    @classmethod
    def write(cls, folder: Path, name: str, messages: Sequence[bytes], **facts: Any) -> Self:
        """Write the bytes of a scan into a folder."""
        (folder / f"{name}.bin").write_bytes(b"".join(messages))
        ends = tuple(int(end) for end in np.cumsum([len(each) for each in messages]))
        return cls(name, f"{name}.bin", ends, **facts)


def make_scans(folder: Path, crashing: bool = False) -> list[Scan]:
    """Write all scans into a folder, with the configuration and the modules that they need, and a list of them.

    Parameters
    ----------
    folder : Path
        Where to.
    crashing : bool
        Whether there is one whose module ends its process, which is to be that of its session only.
    """
    scans = [_cartesian(folder), _images(folder), _null(folder), _spiral(folder), _failing(folder, "soakfailing")]
    if crashing:
        scans.append(_failing(folder, "soakcrashing"))
    (folder / "scans.json").write_text(json.dumps([dataclasses.asdict(scan) for scan in scans]), "utf-8")
    return scans


def read_scans(folder: Path) -> list[Scan]:
    """The list that `make_scans` has written."""
    listed = json.loads((folder / "scans.json").read_text("utf-8"))
    return [Scan(**scan | {"ends": tuple(scan["ends"]), "waited_for": tuple(scan["waited_for"])}) for scan in listed]


def _named(header_message: bytes) -> bytes:
    """Header with the protocol that stands for the name of a session."""
    text = header_message[6:].rstrip(b"\0").decode()
    parsed = ismrmrd.xsd.CreateFromDocument(text)
    position = ismrmrd.xsd.patientPositionType.HFS
    parsed.measurementInformation = ismrmrd.xsd.measurementInformationType(
        patientPosition=position, protocolName=PROTOCOL
    )
    return message(parsed)


def _readouts(count: int, channels: int, samples: int) -> list[bytes]:
    """Noise readouts of a Cartesian scan."""
    random = np.random.default_rng([count, channels, samples])
    found = []
    for row in range(count):
        data = random.standard_normal((channels, 2 * samples)).astype(np.float32).view(np.complex64)
        item = ismrmrd.Acquisition.from_array(data, center_sample=samples // 2, scan_counter=row)
        item.idx.kspace_encode_step_1 = row
        item.read_dir, item.phase_dir, item.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        found.append(message(item))
    return found


def _cartesian(folder: Path) -> Scan:
    size = 96
    messages = [config("simplefft"), _named(header(size, size)), *_readouts(size, 4, size), CLOSE]
    return Scan.write(folder, "simplefft", messages, readouts=size, weight=3)


def _images(folder: Path) -> Scan:
    random = np.random.default_rng(5)
    size, count = 256, 32  # more than the buffers between server and client hold, so that a slow reader is felt
    messages = [config("invertcontrast"), _named(header(size, size))]
    for number in range(count):
        image = ismrmrd.Image.from_array(random.integers(0, 2000, (size, size), np.int16), transpose=False)
        image.image_index, image.image_type = number + 1, ismrmrd.IMTYPE_MAGNITUDE
        image.meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": ["FIRE", "PYTHON"]})
        messages.append(message(image))
    return Scan.write(folder, "invertcontrast", [*messages, CLOSE], readouts=0, weight=2)


def _null(folder: Path) -> Scan:
    count = 512
    messages = [config("null"), _named(header()), *_readouts(count, 8, 256), CLOSE]
    return Scan.write(folder, "null", messages, readouts=count, weight=2)


def _spiral(folder: Path) -> Scan:
    (folder / "configs").mkdir()
    (folder / "seq_meta").mkdir()
    settings = f'metafile_paths = ["seq_meta"]\n[reconstruction]\narms_per_frame = {ARMS_PER_FRAME}\n'
    (folder / "configs" / "rtspiral_vs_config.toml").write_text(f"{settings}window_shift = {WINDOW_SHIFT}\n", "utf-8")
    trajectory = design_spiral(SpiralDesign(resolution=4e-3, interleaves=13, arms=89), folder / "seq_meta")
    write_metafile(trajectory)
    frames = 11
    arms = ARMS_PER_FRAME + (frames - 1) * WINDOW_SHIFT
    simulation = simulate(trajectory, SpiralScan(readouts=arms, tr=TR, coils=4, waveforms=False))
    messages = [config("simplenufft1arm"), _named(message(simulation.header))]
    first = len(messages)
    messages += [message(each) for each in simulation.acquisitions()]
    last_arms = tuple(first + ARMS_PER_FRAME - 1 + frame * WINDOW_SHIFT for frame in range(frames))
    return Scan.write(
        folder, "simplenufft1arm", [*messages, CLOSE], readouts=arms, pace=TR, waited_for=last_arms, weight=2
    )


def _failing(folder: Path, name: str) -> Scan:
    crashes = name == "soakcrashing"
    (folder / f"{name}.py").write_text(CRASHING_MODULE if crashes else FAILING_MODULE, "utf-8")
    size = 48
    messages = [config(name), _named(header(size, size)), *_readouts(size, 4, size), CLOSE]
    return Scan.write(folder, name, messages, readouts=size, fails=not crashes, crashes=crashes)
