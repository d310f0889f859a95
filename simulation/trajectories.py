"""Non-Cartesian trajectories: radial, rosette, spirals of constant and of variable density; no gradient limits.

Each function returns K-space [arm, sample, (kx, ky)] [1/m], from -edge to edge or from the centre to the edge
1 / (2 resolution). Arms are turned evenly, or by the golden angle against the one before.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon.density import compensation
from recon.trajectory import Trajectory
from simulation.spiraldesign import SpiralDesign, signature_for

FULL_TURN = 2 * math.pi
GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
KINDS = ("radial", "rosette", "variable")
DENSITY_POWER = 1.6  # of spirals of variable density


def turned(arm: NDArray[np.complexfloating], arms: int, golden: bool, turn: float = FULL_TURN) -> NDArray[np.float64]:
    """Copies of an arm kx + i ky [sample], turned about the centre.

    Parameters
    ----------
    arm
        One of them [1/m].
    arms
        How many.
    golden
        Turned by `turn` / golden ratio from arm to arm; else by `turn` / `arms`.
    turn
        Angle after which the arm is the same again [rad].
    """
    angles = np.arange(arms) * turn / (GOLDEN_RATIO if golden else arms)
    k = arm * np.exp(1j * angles)[:, np.newaxis]
    return np.stack([k.real, k.imag], axis=-1)


def radial(fov: float, resolution: float, arms: int, golden: bool = False) -> NDArray[np.float64]:
    """Spokes through the centre, oversampled by two, as receivers do.

    Parameters
    ----------
    fov, resolution
        Field of view and pixel size [m].
    arms
        Number of spokes; pi / 2 times the matrix size fills k-space.
    golden
        Whether they are turned by the golden angle.
    """
    samples = 2 * round(fov / resolution)
    return turned((np.arange(samples) - samples // 2) / (2 * fov) + 0j, arms, golden, math.pi)


def rosette(fov: float, resolution: float, arms: int, golden: bool = False, turns: float = 0.35) -> NDArray[np.float64]:
    """Petals that start and end in the centre: k = edge sin(pi t) exp(2 pi i turns t), t = 0 to 1; see `radial`."""
    t = np.linspace(0, 1, 4 * round(fov / resolution))
    return turned(np.sin(math.pi * t) * np.exp(2j * math.pi * turns * t) / (2 * resolution), arms, golden)


def spiral(
    fov: float,
    resolution: float,
    arms: int,
    golden: bool = False,
    interleaves: int | None = None,
    density_power: float = 1.0,
) -> NDArray[np.float64]:
    """Spirals k = edge u^density_power exp(2 pi i turns u), u = 0 to 1; see `radial`.

    Parameters
    ----------
    interleaves
        Number of evenly turned arms that fill k-space; by default `arms`. By the golden angle it takes more.
    density_power
        1: Archimedean, neighbouring turns are 1 / fov apart everywhere; above, as far apart as that at the edge and
        nearer to each other in the middle.
    """
    turns = density_power * fov / (2 * resolution * (interleaves or arms))
    # Along the edge of k-space samples are half of 1 / fov apart.
    steps = math.ceil(FULL_TURN * turns * fov / resolution)
    u = np.linspace(0, 1, steps + 1) ** (1 / (1 + density_power / 2))
    return turned(u**density_power * np.exp(2j * math.pi * turns * u) / (2 * resolution), arms, golden)


def design(kind: str, requirements: SpiralDesign, folder: Path = Path()) -> Trajectory:
    """Trajectory of one of the `KINDS`, for a simulation or a metafile.

    Parameters
    ----------
    kind
        "radial", "rosette" or "variable", a spiral of variable density.
    requirements
        Field of view, resolution, arms, ordering, dwell time; the gradient limits do not count.
    folder
        Where its metafile will stand; nothing is written.

    Raises
    ------
    ValueError
        There is no such kind.
    """
    golden = requirements.ordering == "ga"
    arms = requirements.arms if golden else requirements.interleaves
    size = (requirements.fov, requirements.resolution, arms, golden)
    if kind == "radial":
        k = radial(*size)
    elif kind == "rosette":
        k = rosette(*size)
    elif kind == "variable":
        k = spiral(*size, interleaves=requirements.interleaves, density_power=DENSITY_POWER)
    else:
        raise ValueError(f"trajectory is {kind!r}, must be one of {', '.join(KINDS)}")
    if (k.shape[1] + requirements.pre_discard) % 2:
        k = k[:, :-1]  # so that readout oversampling can be removed
    weights = compensation(k, (requirements.fov, requirements.fov)).mean(axis=0)
    weights /= weights.max()
    return Trajectory(
        file=folder / f"{signature_for(f'{kind} {requirements}', k, weights)}.mat",
        k=k,
        weights=weights,
        dwell=requirements.dwell,
        pre_discard=requirements.pre_discard,
        fov=requirements.fov,
        resolution=requirements.resolution,
        interleaves=arms,
        arm_ordering=requirements.ordering,
    )
