"""Operators of one frame, built up while its arms arrive.

A frame x enters the reconstruction through E^H E, by its kernel (see `toeplitz`), and through E^H y. Both are sums over
the frame's arms, so each arm is worked in when it arrives. After the last one, only Fourier transforms are left. The
kernels of single arms do not depend on the samples: where the trajectory has few enough arms they are made beforehand,
and a frame's kernel is a sum of some of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import coils
from recon import nufft
from recon.fieldcorrection import Correction
from recon.fieldplan import with_fields
from solvers import linops
from solvers.team import Team

KERNEL_BYTES = 256 << 20  # of kernels of single arms that are kept; beyond, each frame's arms are gridded together


class ArmTables:
    """Tables of all arms of a trajectory. They do not change, so several frames and slices may use them at once.

    Parameters
    ----------
    coordinates
        [arm, sample, (kx, ky)] in cycles per field of view.
    shape
        Of the images (rows, columns).
    team
        Makes the tables.
    gpu_device
        GPU to use, through CuPy; -1 for the CPU.
    correction
        Field terms of the arms; None: there are none.

    Attributes
    ----------
    plan, spread
        Plans of the images, and of the point spread functions.
    kernels
        float32 [arm, *kernel_shape]; None: they would take more than `KERNEL_BYTES`.
    kernel_shape
        Of a kernel: phase, pair of field terms if there are some, row frequency, column frequency.
    samples
        Those of point spread functions.
    spatial
        Field terms [term, row, column]; None: there are none.
    sampled
        Which frequencies of the images lie within the disc that the arms reach [row frequency, column frequency].
    """

    def __init__(
        self, coordinates: NDArray[Any], shape: tuple[int, int], team: Team, gpu_device: int = -1,
        correction: Correction | None = None,
    ) -> None:  # fmt: skip
        self.backend = nufft.open_backend(gpu_device)
        self.shape = shape
        self.unit = np.float32(1 / np.sqrt(np.prod(shape)))  # makes a unitary transform of it
        arms, samples, _ = coordinates.shape
        with self.backend.device():
            self.plan = with_fields(linops.Plan(coordinates, shape, team, self.backend), correction)
            self.spread = linops.kernel_plan(coordinates, shape, team, self.backend)
            size = (self.spread.shape[0] // 2, self.spread.shape[1] // 2)
            self.samples = linops.SpreadSamples(samples, self.unit, None if correction is None else correction.temporal)
            self.spatial = None if correction is None else self.plan.spatial
            self.kernel_shape = self.samples.kernel_shape(size)
            self.kernels: Any = None
            if 4 * arms * np.prod(self.kernel_shape) <= KERNEL_BYTES:
                kernels = self.backend.xp.empty((arms, *self.kernel_shape), np.float32)

                def work(arm: int) -> None:
                    grid = self.spread.zeros(self.samples.count)
                    self.spread_arm(grid, arm)
                    self.samples.write_kernel(self.spread.image(grid), kernels[arm])

                team.each(work, arms)
                self.kernels = kernels
            reach = np.linalg.norm(coordinates, axis=-1).max()
            rows, columns = (np.fft.fftfreq(n, 1 / n) for n in shape)
            self.sampled = self.backend.xp.asarray(np.hypot(rows[:, np.newaxis], columns) <= reach)

    def spread_arm(self, grid: Any, arm: int) -> None:
        """Add an arm's point spread functions to a grid of `spread`."""
        self.spread.add_arm(grid, arm, self.samples.of(arm))


class ArrivingFrame:
    """E^H E and E^H y of the frame that is being acquired.

    Parameters
    ----------
    tables
        Of the trajectory.
    maps
        complex64 [coil, row, column], where the tables are.
    mixing
        [coil, coil of the samples]: what makes the coils of the maps of those of the samples.
    scale
        What samples are divided by.
    """

    def __init__(self, tables: ArmTables, maps: Any, mixing: NDArray[np.complex64], scale: float) -> None:
        self._tables, self._maps = tables, maps
        self._mixing = (mixing / scale).astype(np.complex64)
        with tables.backend.device():
            self._grid = tables.plan.zeros(len(maps))
            self._spread = None if tables.kernels is not None else tables.spread.zeros(tables.samples.count)
            self._kernel = tables.backend.xp.zeros(tables.kernel_shape, np.float32)

    def add(self, arm: int, samples: NDArray[np.complex64]) -> None:
        """Work in the samples [coil, sample] of an arm of the trajectory."""
        tables = self._tables
        with tables.backend.device():
            tables.plan.add_arm(self._grid, arm, self._mixing @ samples)
            if self._spread is None:
                self._kernel += tables.kernels[arm]
            else:
                tables.spread_arm(self._spread, arm)

    def take(self) -> tuple[Any, Any]:
        """Return kernel, see `ArmTables.kernel_shape`, and E^H y [row, column], and begin the next frame."""
        tables = self._tables
        with tables.backend.device():
            adjoint = coils.combine(tables.plan.image(self._grid), self._maps) * tables.unit
            kernel = self._kernel.copy()
            if self._spread is not None:
                tables.samples.write_kernel(tables.spread.image(self._spread), kernel)
                self._spread.fill(0)
            self._grid.fill(0)
            self._kernel.fill(0)
            return kernel, adjoint
