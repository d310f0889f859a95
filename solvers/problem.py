"""Interface of the backends of the iterative reconstructions: parts of a scan, settings, how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

import constants
from recon.configuration import SpiralReconstruction, parameter
from recon.readouts import Readouts
from solvers.linops import ArmFields
from solvers.native_recon import Penalty


@dataclass(frozen=True)
class IterativeReconstruction(SpiralReconstruction):
    """Table [reconstruction]: settings that both iterative reconstructions share."""

    backend: str = parameter(
        "auto",
        "What computes: native, the server's own solver; bart; auto: native, with BART installed or not.",
        choices=("auto", "bart", "native"),
    )
    scheduler: str = parameter(
        "",
        "Dask scheduler whose workers compute, by the native solver; empty: this machine does.",
        pattern=r"[a-z][a-z0-9]*://[!-~]+",
        example="tcp://host:8786",
    )
    num_iter: int = parameter(120, "Iterations of the optimisation.", minimum=1)
    BART_TOOLBOX_PATH: Path | None = parameter(  # noqa: RUF009 - parameter returns a dataclasses.field
        None, "Folder of BART for backend = bart; empty: the environment variable of that name, then the PATH."
    )


@dataclass(frozen=True, eq=False)
class Part:
    """Frames that are reconstructed together: the whole input of a solver, on any machine.

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
        Divisor of the samples; None: the solver finds it.
    weights
        [*frames, arm], 0 for arms that only fill up; None: all count.
    fields
        Field terms; None: there are none.
    """

    samples: NDArray[np.complex64]
    coordinates: NDArray[np.float32]
    maps: NDArray[np.complex64]
    penalties: tuple[Penalty, ...]
    iterations: int
    columns: int
    scale: float | None = None
    weights: NDArray[np.float32] | None = None
    fields: ArmFields | None = None


class Solver(Protocol):
    """Interface of a backend; ``str()`` names it for the client.

    Attributes
    ----------
    overlap
        Frames that parts of a series have to reach into their neighbours, to be dropped afterwards.
    memory_device
        GPU whose memory limits a part; -1: this machine's memory does.
    corrects_fields
        Whether it takes the field terms of a part.
    """

    overlap: ClassVar[int]
    corrects_fields: ClassVar[bool]

    @property
    def memory_device(self) -> int: ...  # noqa: D102 - described above

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Maps [coil, row, column] from readouts in the middle of the scan."""

    def weight_over_time(self, reg_lambda: float, frames: int, parts: int) -> float:
        """Weight of the differences from frame to frame, of all frames in that many parts."""

    def memory_needed(
        self, frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, columns: int, terms: int = 0
    ) -> int:
        """Memory that a part takes beyond its samples [bytes]; `columns` of its arms differ; `terms` are of fields."""

    def reconstruct(self, parts: Iterable[Part], count: int) -> Generator[NDArray[np.complex64], None, None]:
        """Yield the images [*frames, row, column] of each of `count` parts, in their order."""


class Reporter:
    """Tells the client how far a solver is; through this, the solver also ends when the client has disconnected.

    `report` passes on the solver's reports, `check` sends the time elapsed while there are none. Once the session is
    over, because the client has disconnected or the server is being stopped, sending raises, which ends the work.

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
            The solver's report.
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
        """Send the time elapsed if nothing has been sent for `interval`; False: the work is not cancelled."""
        if self._clock() - self._last >= self.interval:
            self.report(f"{self._work}: {self._clock() - self._begin:.0f} s elapsed")
        return False
