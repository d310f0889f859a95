"""Plain gridding of simulated readouts with the true coil maps: what iterative reconstructions are compared with."""

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

import coils
from recon import nufft
from simulation.spiralsimulation import Simulation


def gridded(simulation: Simulation, groups: Iterable[Collection[int]]) -> NDArray[np.float64]:
    """Magnitude images [group, row, column] of groups of readouts, each by itself, combined with the true maps."""
    trajectory, size = simulation.trajectory, simulation.truth.matrix
    plan = nufft.ArmPlan(trajectory.cycles_per_fov(), (size, size), trajectory.weights)
    maps = simulation.truth.maps()
    maps = (maps / coils.rssq(maps)).astype(np.complex64)
    samples = [trajectory.samples(acquisition) for acquisition in simulation.acquisitions()]
    images = []
    for group in groups:
        grid = plan.zeros(len(maps))
        for n in group:
            plan.add_arm(grid, simulation.truth.column[n], samples[n])
        images.append(np.abs(coils.combine(plan.image(grid), maps)) / max(len(group), 1))
    return np.stack(images)
