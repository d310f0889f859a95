"""Start of a live reconstruction: coil maps, compression, data scale and static image, from the first readouts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import ismrmrd
import numpy as np

import coils
from recon.conditioning import compression
from recon.readouts import DataError, Readouts, data_scale
from recon.spiralreadout import SpiralReadout
from solvers import calibration
from solvers.arrivingframe import ArmTables, ArrivingFrame
from solvers.live import LiveWindow
from solvers.movies import UNSTEADY_FRAMES
from solvers.team import Team

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LiveStart:
    """Data and images from which the iterations start.

    Attributes
    ----------
    arriving
        Takes the arms of the frame that is being acquired.
    window
        The latest frames; its image is the static image before the first one.
    scale
        What the samples are divided by: its images times this are comparable with the samples.
    """

    arriving: ArrivingFrame
    window: LiveWindow
    scale: float


def begin(
    readouts: Readouts, tables: ArmTables, *, arms: int, weight: float, window_frames: int, team: Team
) -> LiveStart:
    """Make coil maps, compression, data scale and static image.

    Parameters
    ----------
    readouts
        The first ones of a slice, those of one frame at least.
    tables
        Of the trajectory.
    arms
        Readouts of a frame.
    weight
        Of the differences from frame to frame, for data over their scale.
    window_frames
        Frames of the window.
    team
        Who works on the window.

    Raises
    ------
    DataError, conditioning.SampleError
        The readouts are too few, or zero, or not finite.
    """
    begun = time.perf_counter()
    frames = len(readouts) // arms
    usable = np.reshape(readouts.usable[: frames * arms], (frames, arms))
    steady = [n for n in range(frames) if usable[n].any()]
    steady = [n for n in steady if n >= UNSTEADY_FRAMES] or steady
    if not steady:
        raise DataError(f"none of the first {len(readouts)} readouts makes a frame of {arms} that can be used")
    maps = calibration.coil_maps(readouts)
    scale = data_scale(readouts, maps, arms, steady)
    samples = readouts.samples[: frames * arms].reshape(frames, arms, *readouts.samples.shape[1:])[steady]
    mixing, _ = compression(samples, usable[steady].astype(np.float32))
    with tables.backend.device():
        maps = tables.backend.xp.asarray(np.tensordot(mixing, maps, 1).astype(np.complex64))
        arriving = ArrivingFrame(tables, maps, mixing, scale)
        for n in steady:
            for readout in range(n * arms, (n + 1) * arms):
                if readouts.usable[readout]:
                    arriving.add(readouts.columns[readout], readouts.samples[readout])
        kernel, adjoint = (total / np.float32(len(steady)) for total in arriving.take())
        window = LiveWindow(maps, kernel, adjoint, tables.sampled, weight=weight, frames=window_frames, team=team)
    logger.info("Live reconstruction prepared in %.2f s", time.perf_counter() - begun)
    return LiveStart(arriving, window, scale)


def rehearse(gpu_device: int = -1) -> None:
    """Go through a start and a frame of a few pixels: what that imports and compiles, no scan has to wait for.

    Parameters
    ----------
    gpu_device
        GPU to use, through CuPy; -1 for the CPU.
    """
    arms, size, rng = 4, 16, np.random.default_rng(0)
    coordinates = (size * (rng.random((arms, size**2, 2)) - 0.5)).astype(np.float32)
    samples = rng.standard_normal((arms, 2, size**2, 2), np.float32).view(np.complex64)[..., 0]
    measured = [SpiralReadout(samples[n], n, n, ismrmrd.AcquisitionHeader(), 0.0) for n in range(arms)]
    readouts = Readouts(measured[0], coordinates, size)
    for readout in measured:
        readouts.append(readout)
    with Team(1) as team:
        tables = ArmTables(coordinates, (size, size), team, gpu_device)
        coils.inati(tables.plan.image(tables.plan.zeros(2)))  # as view-shared images do
        start = begin(readouts, tables, arms=arms, weight=0.001, window_frames=2, team=team)
        start.arriving.add(0, samples[0])
        start.window.advance(*start.arriving.take())
        start.window.refine(2)
