"""The backend of the iterative reconstructions, native or BART, and what both have in common.

A backend is a solver object with the same few methods: `coil_maps`, `weight_over_time`, `memory_needed` and
`reconstruct`. It takes parts of a scan, each a set of frames that are reconstructed together, and tells the client how
far it is; through that it also ends when there is nobody to be told. `Reporter` says which part it is, and how long the
whole scan will still take.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

import bart_recon
import cluster
import constants
import memory
import native_recon
import nufft
from configuration import ConfigurationError, IterativeReconstruction
from native import calibration
from native_recon import Penalty
from readouts import Readouts

logger = logging.getLogger(__name__)

LAMBDA_FRAMES = 48  # see `NativeSolver.weight_over_time`


@dataclass(frozen=True, eq=False)
class Part:
    """Frames that are reconstructed together: all that a solver needs, wherever it runs.

    Attributes
    ----------
    samples
        complex64 [*frames, arm, coil, sample].
    coordinates
        [*frames, arm, sample, (kx, ky)] in cycles per field of view.
    maps
        [coil, row, column].
    penalties
        On the differences along axes of frames.
    iterations
        At most.
    columns
        How many different arms there are.
    scale
        What the samples are divided by; None: the solver finds it.
    weights
        [*frames, arm], 0 for arms that only fill up; None: all count.
    """

    samples: NDArray[np.complex64]
    coordinates: NDArray[np.float32]
    maps: NDArray[np.complex64]
    penalties: tuple[Penalty, ...]
    iterations: int
    columns: int
    scale: float | None = None
    weights: NDArray[np.float32] | None = None


class Solver(Protocol):
    """What a reconstruction asks of a backend; ``str()`` names it for the client.

    Attributes
    ----------
    overlap
        Frames that parts of a series have to reach into their neighbours, to be dropped afterwards.
    """

    overlap: ClassVar[int]

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Maps [coil, row, column] from readouts in the middle of the scan."""

    def weight_over_time(self, reg_lambda: float, frames: int, parts: int) -> float:
        """Weight of the differences from frame to frame, of all frames in that many parts."""

    def memory_needed(
        self, frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, columns: int
    ) -> int:
        """Memory that a part takes beyond its samples [bytes]; `columns` of its arms differ."""

    def reconstruct(self, parts: Iterable[Part], count: int) -> Iterator[NDArray[np.complex64]]:
        """Yield the images [*frames, row, column] of each of `count` parts, in their order."""


class Reporter:
    """Tells the client how far a solver is; through this, the solver also ends when there is nobody to be told.

    `report` passes on what the solver says, `check` speaks up while it is silent. Once the session is over, because the
    client is gone or the server is being stopped, sending raises, and that is what ends the work.

    The time left is that of the present part, as the solver estimates it, and that of the parts that have not begun:
    each is taken to need as long as those that have begun, on average.

    Parameters
    ----------
    send
        Sends a text to the client, raises when the session is over.
    clock
        Time [s].
    """

    interval = 2.0  # [s]; a session that is broken off has 3 s to end, and notices it with the next report

    def __init__(self, send: Callable[[str], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._work = ""
        self._begin = self._last = self._start = clock()
        self._parts, self._begun = 0, 1

    def expect(self, parts: int) -> None:
        """So many parts are coming, and the first one begins."""
        self._start, self._parts, self._begun = self._clock(), parts, 1

    def next_part(self) -> None:
        """The present part is done, and the next one begins."""
        self._begun += 1

    def begin(self, work: str) -> None:
        """Some work begins."""
        self._work = work
        self._begin = self._last = self._clock()

    def report(self, text: str, left: float | None = None, number: int | None = None) -> None:
        """Send how far the work is.

        Parameters
        ----------
        text
            In the solver's words.
        left
            Time that the part will still take [s]; None: the solver cannot tell.
        number
            Number of the part, from 1; None: the present one.
        """
        self._last = self._clock()
        self._begun = max(self._begun, number or 0)
        if self._parts:
            text = f"part {number or self._begun} of {self._parts}: {text}"
        if left is not None:
            each = (self._last + left - self._start) / self._begun
            text += f", about {left + (self._parts - self._begun) * each:.0f} s left for the whole scan"
        self._send(f"{constants.MRD_LOGGING_INFO} {text}")

    def check(self) -> bool:
        """Send a sign of life if nothing has been sent for `interval`; False: nobody cancels the work."""
        if self._clock() - self._last >= self.interval:
            self.report(f"{self._work}: {self._clock() - self._begin:.0f} s elapsed")
        return False


# --- Our own ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NativeSolver:
    """The solver of our own at work for one client.

    Attributes
    ----------
    gpu_device
        GPU to use, through CuPy; -1 for the CPU.
    reporter
        Tells the client.
    scheduler
        Address of the Dask scheduler whose workers compute the parts; empty: this process does.
    """

    gpu_device: int
    reporter: Reporter
    scheduler: str = ""
    overlap: ClassVar[int] = 16  # parts of 32 frames or more then change the images by less than 1 %

    def __str__(self) -> str:
        where = f"GPU {self.gpu_device}" if self.gpu_device >= 0 else "CPU"
        return f"the native solver on the {where}{f' of each worker of {self.scheduler}' if self.scheduler else ''}"

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Coil maps by an nlinv of our own, see `calibration`."""
        return calibration.coil_maps(readouts)

    def weight_over_time(self, reg_lambda: float, frames: int, parts: int) -> float:
        """Weight of each difference, the same for scans of all lengths however they are divided.

        BART multiplies lambda with the frames of a part, as its norm is joint over them: it grows with their square
        root only. Here each difference counts by itself, and the best weight, 0.008 for the phantom, is the same for
        16, 48 and 144 frames (``python benchmarks/temporal_weight.py``). Lambda therefore means what it means to BART
        for 48 frames; for more, BART smooths more.
        """
        return reg_lambda * LAMBDA_FRAMES

    def memory_needed(
        self, frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, columns: int
    ) -> int:
        """Memory that a part takes, the coordinates of its samples included [bytes]."""
        coordinates = 8 * math.prod(frames) * arms * samples if self.gpu_device < 0 else 0
        return coordinates + native_recon.memory_needed(
            frames, arms, coils, samples, matrix, columns=columns, gpu_device=self.gpu_device
        )

    def reconstruct(self, parts: Iterable[Part], count: int) -> Iterator[NDArray[np.complex64]]:
        """Yield the images [*frames, row, column] of each of `count` parts, in their order."""
        self.reporter.expect(count)
        jobs = ((part, self.gpu_device) for part in parts)
        yield from cluster.run(reconstruct_part, jobs, self.reporter.report, self.scheduler)


def reconstruct_part(job: tuple[Part, int], report: Callable[..., Any]) -> NDArray[np.complex64]:
    """Reconstruct one part with the native solver, in this process or another.

    Parameters
    ----------
    job
        The part, and the GPU to use (-1: the CPU).
    report
        Called with how far it is, and the time left [s] or None, at least every two seconds; what it raises ends the
        work.

    Returns
    -------
    Images [*frames, row, column].

    Raises
    ------
    memory.ShortageError
        The part does not fit into the memory.
    """
    part, gpu_device = job
    *frames, arms, coils, samples = part.samples.shape
    size = part.maps.shape[-1]
    needed = native_recon.memory_needed(
        frames, arms, coils, samples, size, columns=part.columns, gpu_device=gpu_device
    )
    if needed > (there := memory.free(gpu_device)):
        what = f"{' x '.join(map(str, frames))} frames of {size} x {size} pixels from {arms} arms of {samples} samples"
        raise memory.ShortageError(f"{what} and {coils} coils", needed, there)
    return native_recon.reconstruct(
        part.samples, part.coordinates, part.maps, part.penalties, scale=part.scale, weights=part.weights,
        iterations=part.iterations, progress=lambda progress: report(str(progress), progress.remaining),
        gpu_device=gpu_device,
    )  # fmt: skip


# --- Choice -----------------------------------------------------------------------------------------------------------


def open_solver(
    settings: IterativeReconstruction, send: Callable[[str], Any], tell: Callable[[str], Any]
) -> Solver:
    """Find the backend that the configuration asks for, and see that it can do what is asked for.

    ``backend = "auto"`` is the native solver, with BART installed or not: images must not depend on what happens to be
    installed, and it is the faster one (``doc/native.md``).

    Parameters
    ----------
    settings
        Table [reconstruction] of the configuration.
    send
        Sends a text to the client, raises when the session is over.
    tell
        Called with the choice, and with what it makes of the settings, in words for the client.

    Raises
    ------
    bart_tools.BartNotFoundError
        BART is asked for, and there is none; says how to get one.
    bart_tools.BartError
        BART and a GPU are asked for, but this BART was built without CUDA.
    nufft.GpuUnavailableError
        The native solver is to use a GPU, and there is none, or no CuPy. With a scheduler, that of the workers shows
        only when they begin.
    configuration.ConfigurationError
        BART is asked for, and a scheduler.
    cluster.ClusterError
        The scheduler does not answer.
    """
    choose = _bart if settings.backend == "bart" else _native
    solver = choose(settings, Reporter(send))
    tell(f"computing with {solver}")
    if settings.backend == "bart":
        tell(f"num_iter = {settings.num_iter}: {bart_recon.STEPS}")
    elif settings.BART_TOOLBOX_PATH:
        tell(f'BART_TOOLBOX_PATH = "{settings.BART_TOOLBOX_PATH}" is not used: set backend = "bart" to compute with it')
    return solver


def _bart(settings: IterativeReconstruction, reporter: Reporter) -> Solver:
    if settings.scheduler:
        raise ConfigurationError(
            f'backend = "bart" computes here, but scheduler = "{settings.scheduler}" asks for the workers of a '
            'cluster: leave scheduler empty, or set backend to "native" or "auto"'
        )
    return bart_recon.BartSolver(bart_recon.find_bart(settings), settings.gpu_device, reporter)


def _native(settings: IterativeReconstruction, reporter: Reporter) -> Solver:
    if settings.scheduler:
        cluster.check(settings.scheduler)  # now, not when the scan is over
        return NativeSolver(settings.gpu_device, reporter, settings.scheduler)
    try:
        nufft.open_backend(settings.gpu_device)
    except nufft.GpuUnavailableError as error:
        hint = 'or backend = "bart" to use a BART that was built with CUDA'
        raise nufft.GpuUnavailableError(f"{error}, {hint}") from error
    return NativeSolver(settings.gpu_device, reporter)
