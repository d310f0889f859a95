"""Pulseq sequences for tests, written with pypulseq, and scans whose readouts carry their trajectories."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ismrmrd
import numpy as np
import pypulseq
from numpy.typing import NDArray

from recon.trajectory import SIGNATURE_PARAMETER
from simulation.spiralsimulation import Simulation

RASTER = 10e-6  # of gradients [s]
SYSTEM = pypulseq.Opts(max_grad=1e9, grad_unit="Hz/m", max_slew=1e13, slew_unit="Hz/m/s", adc_dead_time=0)


def spiral_arm(
    fov: float = 0.24, interleaves: int = 8, turns: float = 1.5, points: int = 120
) -> NDArray[np.complex128]:
    """K-space of one arm at the borders of the gradient raster, from 0, kx + i ky [1/m]; slow at both ends."""
    time = np.linspace(0, 1, points + 1)
    phase = 2 * np.pi * turns * (time - np.sin(2 * np.pi * time) / (2 * np.pi))
    return interleaves / fov * phase / (2 * np.pi) * np.exp(1j * phase)


def gradients(arm: NDArray[np.complex128], delay: float = 0.0) -> list[SimpleNamespace]:
    """Gradient events of an arm along x and y, which bring k to the points of the arm within the raster's accuracy."""
    waveform = np.diff(arm) / RASTER
    events = []
    for channel, values in (("x", waveform.real), ("y", waveform.imag)):
        events.append(pypulseq.make_arbitrary_grad(channel, values, first=0, last=0, delay=delay, system=SYSTEM))
    return events


def excitation(flip: float = 20.0, use: str = "excitation") -> SimpleNamespace:
    """Pulse of 1 ms."""
    return pypulseq.make_block_pulse(np.radians(flip), duration=1e-3, system=SYSTEM, use=use, delay=20e-6)


def label(name: str, value: int) -> SimpleNamespace:
    """Label event that sets a label."""
    return pypulseq.make_label(name, "SET", value)


def adc(samples: int = 300, dwell: float = 4e-6, delay: float = 0.0) -> SimpleNamespace:
    """Readout."""
    return pypulseq.make_adc(samples, dwell=dwell, delay=delay, system=SYSTEM)


def spiral_sequence(arms: int = 8, runs: int = 1, fov: float = 0.24, **definitions: Any) -> pypulseq.Sequence:
    """Spiral with evenly turned arms; for each a pulse, the arm, and a spoiler."""
    sequence = pypulseq.Sequence(SYSTEM)
    for number in range(arms * runs):
        sequence.add_block(excitation())
        turned = spiral_arm(fov, arms) * np.exp(2j * np.pi * (number % arms) / arms)
        sequence.add_block(*gradients(turned, 30e-6), adc(delay=20e-6))
        sequence.add_block(pypulseq.make_trapezoid("z", area=400, duration=1e-3, system=SYSTEM))
    for name, value in definitions.items():
        sequence.set_definition(name, value)
    return sequence


def text_of(sequence: pypulseq.Sequence, folder: Path, old: bool = False) -> str:
    """Text of its file; `old` writes format 1.4 in place of 1.5."""
    file = write(sequence, folder / "written.seq", old)[0]
    text = file.read_text("utf-8")
    file.unlink()
    return text


def write(sequence: pypulseq.Sequence, file: Path, old: bool = False) -> tuple[Path, str]:
    """Write a sequence; returns the file and its signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = sequence.write(str(file), check_timing=False, v141_compat=old)
    assert signature
    return file, signature


def header_of(signature: str) -> SimpleNamespace:
    """MRD header that has the signature of a sequence."""
    parameter = ismrmrd.xsd.userParameterStringType(name=SIGNATURE_PARAMETER, value=signature)
    return SimpleNamespace(userParameters=ismrmrd.xsd.userParametersType(userParameterString=[parameter]))


def carrying(simulation: Simulation) -> Iterator[ismrmrd.Acquisition]:
    """Readouts of a scan that carry their trajectories, in cycles per field of view."""
    trajectory = simulation.trajectory
    for number, item in enumerate(simulation.acquisitions()):
        k = np.zeros((item.number_of_samples, 2), np.float32)
        k[trajectory.pre_discard :] = trajectory.k[trajectory.arm_of(number)] * trajectory.image_fov()
        head = item.getHead()
        head.trajectory_dimensions, head.discard_pre = 2, trajectory.pre_discard
        yield ismrmrd.Acquisition(head, item.data, k)
