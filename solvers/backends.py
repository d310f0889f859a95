"""The backend of the iterative reconstructions, native or BART, and code that both share.

A backend is a solver object with the same few methods: `coil_maps`, `weight_over_time`, `memory_needed` and
`reconstruct`. It takes parts of a scan, each a set of frames that are reconstructed together, and tells the client how
far it is; through that it also ends when the client has disconnected. `Reporter` says which part it is, and how long
the whole scan will still take.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recon import memory, nufft
from recon.configuration import ConfigurationError
from recon.readouts import Readouts
from solvers import bart_recon, calibration, cluster, native_recon
from solvers.problem import IterativeReconstruction, Part, Reporter, Solver

logger = logging.getLogger(__name__)

LAMBDA_FRAMES = 48  # see `NativeSolver.weight_over_time`


# --- Native -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NativeSolver:
    """This project's solver, computing for one client.

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
    corrects_fields: ClassVar[bool] = True
    overlap: ClassVar[int] = 16  # parts of 32 frames or more then change the images by less than 1 %

    def __str__(self) -> str:
        where = f"GPU {self.gpu_device}" if self.gpu_device >= 0 else "CPU"
        return f"the native solver on the {where}{f' of each worker of {self.scheduler}' if self.scheduler else ''}"

    @property
    def memory_device(self) -> int:
        """GPU whose memory limits a part, -1 for this machine's; workers are taken to have as much as this machine."""
        return -1 if self.scheduler else self.gpu_device

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Coil maps by nlinv, see `calibration`."""
        return calibration.coil_maps(readouts)

    def weight_over_time(self, reg_lambda: float, frames: int, parts: int) -> float:
        """Weight of each difference, the same for scans of all lengths however they are divided.

        BART multiplies lambda with the frames of a part, as its norm is joint over them: it grows with their square
        root only. Here each difference counts by itself, and the best weight, 0.008 for the phantom, is the same for
        16, 48 and 144 frames (``python benchmarks/temporal_weight.py``). Lambda therefore means the same as in BART
        for 48 frames; for more, BART smooths more.
        """
        return reg_lambda * LAMBDA_FRAMES

    def memory_needed(
        self, frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, columns: int, terms: int = 0
    ) -> int:
        """Memory that a part takes, the coordinates of its samples included [bytes]."""
        coordinates = 8 * math.prod(frames) * arms * samples if self.gpu_device < 0 else 0
        return coordinates + native_recon.memory_needed(
            frames, arms, coils, samples, matrix, columns=columns, gpu_device=self.gpu_device, terms=terms
        )

    def reconstruct(self, parts: Iterable[Part], count: int) -> Generator[NDArray[np.complex64], None, None]:
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
        Called with how far it is, and the time left [s] or None, at least every two seconds; an exception that it
        raises ends the work.

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
    terms = 0 if part.fields is None else len(part.fields.spatial)
    needed = native_recon.memory_needed(
        frames, arms, coils, samples, size, columns=part.columns, gpu_device=gpu_device, terms=terms
    )
    if needed > (there := memory.free(gpu_device)):
        what = f"{' x '.join(map(str, frames))} frames of {size} x {size} pixels from {arms} arms of {samples} samples"
        raise memory.ShortageError(f"{what} and {coils} coils", needed, there)
    return native_recon.reconstruct(
        part.samples, part.coordinates, part.maps, part.penalties, scale=part.scale, weights=part.weights,
        iterations=part.iterations, progress=lambda progress: report(str(progress), progress.remaining),
        gpu_device=gpu_device, fields=part.fields,
    )  # fmt: skip


# --- Choice -----------------------------------------------------------------------------------------------------------


def open_solver(settings: IterativeReconstruction, send: Callable[[str], Any], tell: Callable[[str], Any]) -> Solver:
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


def leave_fields(solver: Solver, slices: Iterable[Readouts], warn: Callable[[str], Any]) -> None:
    """Leave out the field terms of slices where the backend cannot take them, and tell the client."""
    for readouts in slices:
        if readouts.correction is not None and not solver.corrects_fields:
            warn(
                f"fields are not corrected: {solver} cannot, as they vary over the image of slice {readouts.slice} "
                f'({len(readouts.correction)} terms); backend = "native" can'
            )
            break
    else:
        return
    for readouts in slices:
        readouts.correction = None


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
