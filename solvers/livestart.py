"""Start of a live reconstruction: coil maps, compression, data scale and static image, from the first readouts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import coils
from recon.conditioning import compression
from recon.fieldcorrection import Correction
from recon.readouts import DataError, Readouts, data_scale
from recon.spiralreadout import SpiralReadout
from recon.viewsharing import REPEATS
from solvers import calibration, toeplitz
from solvers.arrivingframe import ArmTables, ArrivingFrame
from solvers.live import NEWEST, LiveWindow
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
    readouts: Readouts, tables_of: Callable[[Correction | None], ArmTables], *, arms: int, weight: float,
    window_frames: int, team: Team, iterations: int = 1,
    keep_pace: Callable[[Correction, float], Correction] | None = None,
) -> LiveStart:  # fmt: skip
    """Make coil maps, compression, data scale and static image.

    Parameters
    ----------
    readouts
        The first ones of a slice, those of one frame at least.
    tables_of
        Makes the tables of the trajectory, with field terms or without.
    arms
        Readouts of a frame.
    weight
        Of the differences from frame to frame, for data over their scale.
    window_frames
        Frames of the window.
    team
        Who works on the window.
    iterations
        On the newest frames for each frame, that there should be time for.
    keep_pace
        Leaves out field terms that there is no time for, by the time that all of them take for a frame [s]; None: all
        are taken.

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
    correction = readouts.correction
    compressed = np.tensordot(mixing, maps, 1).astype(np.complex64)
    if correction is not None and keep_pace is not None:
        correction = keep_pace(correction, iterations * seconds_per_iteration(compressed, correction, team))
    tables = tables_of(correction)
    with tables.backend.device():
        maps = tables.backend.xp.asarray(compressed)
        arriving = ArrivingFrame(tables, maps, mixing, scale)
        for n in steady:
            for readout in range(n * arms, (n + 1) * arms):
                if readouts.usable[readout]:
                    arriving.add(readouts.columns[readout], readouts.samples[readout])
        kernel, adjoint = (total / np.float32(len(steady)) for total in arriving.take())
        window = LiveWindow(
            maps, kernel, adjoint, tables.sampled, weight=weight, frames=window_frames, team=team,
            spatial=tables.spatial,
        )  # fmt: skip
    logger.info("Live reconstruction prepared in %.2f s", time.perf_counter() - begun)
    return LiveStart(arriving, window, scale)


def seconds_per_iteration(maps: NDArray[np.complex64], correction: Correction, team: Team) -> float:
    """Time that the normal operator of the newest frames takes with all field terms, measured on this machine [s].

    It is most of the time of an iteration.
    """
    size = tuple(toeplitz.transform_size(n) for n in maps.shape[1:])
    pairs = len(toeplitz.pairs(len(correction)))
    kernels = np.ones((NEWEST, toeplitz.PHASES, pairs, *size), np.float32)
    normal = toeplitz.ToeplitzNormal(kernels, maps, team, spatial=correction.terms.spatial)
    images = np.zeros((NEWEST, *maps.shape[1:]), np.complex64)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        normal(images, np.empty_like(images))
        times.append(time.perf_counter() - start)
    return min(times)


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
        start = begin(readouts, lambda _: tables, arms=arms, weight=0.001, window_frames=2, team=team)
        start.arriving.add(0, samples[0])
        start.window.advance(*start.arriving.take())
        start.window.refine(2)
