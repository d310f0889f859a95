"""Spiral design: the fastest Archimedean spiral that the gradients can play, its density compensation, its distortion.

The arm is k(theta) = pitch * theta * exp(i theta): with n arms evenly turned, neighbouring turns are 1 / FOV apart when
pitch = n / (2 pi FOV). The gradient limit bounds |dk/dt|, the slew limit |d2k/dt2|; the fastest way along the curve is
found in the phase plane (theta, theta'^2), where the slew limit gives a quadratic equation for theta''.

References
----------
Meyer et al.: Fast spiral coronary artery imaging. Magn Reson Med 28 (1992), doi 10.1002/mrm.1910280204.
Glover: Simple analytic spiral k-space algorithm. Magn Reson Med 42 (1999): the limits as functions of theta.
Hoge et al.: Density compensation functions for spiral MRI. Magn Reson Med 38 (1997), doi 10.1002/mrm.1910380117.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from GIRF import RASTER
from recon.trajectory import SIGNATURE_LENGTH, Trajectory, ring_areas

GAMMA_BAR = 42.576e6  # [Hz/T]
GOLDEN_ANGLE = 180 * (3 - math.sqrt(5))  # [degree], the smaller part of a full turn divided by the golden ratio
STEPS = 20_000  # along the curve
MAX_SAMPLES = 50_000


@dataclass(frozen=True)
class SpiralDesign:
    """Requirements on a spiral.

    Attributes
    ----------
    fov
        Field of view [m].
    resolution
        Pixel size [m].
    interleaves
        Number of evenly turned arms that together fill k-space.
    gradient
        Largest gradient [T/m].
    slew
        Largest slew rate [T/m/s].
    dwell
        Time from sample to sample [s].
    ordering
        "ga": each arm is turned by the golden angle against the one before; "linear": by 360 degrees / interleaves.
    arms
        Arms in the metafile with golden-angle ordering; with linear ordering there are as many as interleaves.
    pre_discard
        Samples that the receiver takes before the spiral begins.
    """

    fov: float = 0.256
    resolution: float = 2e-3
    interleaves: int = 23
    gradient: float = 24e-3
    slew: float = 96.0
    dwell: float = 2e-6
    ordering: str = "ga"
    arms: int = 144
    pre_discard: int = 10


def design_spiral(design: SpiralDesign, folder: Path = Path()) -> Trajectory:
    """Design a spiral.

    Parameters
    ----------
    design
        What is asked for.
    folder
        Where its metafile will stand; nothing is written.

    Returns
    -------
    Trajectory whose file is `folder / <signature>.mat`; the signature is a hash of the content.

    Raises
    ------
    ValueError
        A number makes no sense, or the arm would last too long; says which.
    """
    _check(design)
    arm = spiral_arm(design)
    weights = density_weights(arm)
    linear = design.ordering == "linear"
    arms = design.interleaves if linear else design.arms
    angles = np.radians(arm_rotation(design)) * np.arange(arms)
    turned = arm * np.exp(1j * angles)[:, np.newaxis]
    k = np.stack([turned.real, turned.imag], axis=-1)
    return Trajectory(
        file=folder / f"{signature_for(str(design), k, weights)}.mat",
        k=k,
        weights=weights,
        dwell=design.dwell,
        pre_discard=design.pre_discard,
        fov=design.fov,
        resolution=design.resolution,
        interleaves=arms,
        arm_ordering=design.ordering,
    )


def signature_for(text: str, k: NDArray[np.float64], weights: NDArray[np.float64]) -> str:
    """Signature of a trajectory: a hash of its description and its content."""
    content = f"{text} {k.shape}".encode() + k.tobytes() + weights.tobytes()
    return hashlib.blake2b(content, digest_size=SIGNATURE_LENGTH // 2).hexdigest()


def arm_rotation(design: SpiralDesign) -> float:
    """Angle from arm to arm [degree]."""
    return GOLDEN_ANGLE if design.ordering == "ga" else 360 / design.interleaves


def _check(design: SpiralDesign) -> None:
    for name in ("fov", "resolution", "gradient", "slew", "dwell"):
        value = getattr(design, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}, must be a positive number")
    for name, minimum in (("interleaves", 1), ("arms", 1), ("pre_discard", 0)):
        if getattr(design, name) < minimum:
            raise ValueError(f"{name} is {getattr(design, name)}, must be at least {minimum}")
    if design.ordering not in ("ga", "linear"):
        raise ValueError(f"ordering is {design.ordering!r}, must be ga or linear")
    if design.resolution > design.fov / 2:
        raise ValueError(f"a resolution of {design.resolution:g} m leaves no two pixels in {design.fov:g} m")


def spiral_arm(design: SpiralDesign) -> NDArray[np.complex128]:
    """One arm from the centre of k-space to 1 / (2 resolution), kx + i ky [1/m], complex128 [samples]."""
    pitch = design.interleaves / (2 * np.pi * design.fov)  # [1/m per radian]
    # Finer steps where the spiral starts: theta grows as the square of time there.
    root = np.linspace(0, math.sqrt(0.5 / design.resolution / pitch), STEPS + 1)
    theta = root**2
    speed = np.sqrt(_fastest(theta, GAMMA_BAR * design.gradient / pitch, GAMMA_BAR * design.slew / pitch))
    times = np.concatenate(([0], np.cumsum(2 * np.diff(theta) / (speed[1:] + speed[:-1]))))
    samples = math.floor(times[-1] / design.dwell) + 1
    samples -= (samples + design.pre_discard) % 2  # so that readout oversampling can be removed
    if not 8 <= samples <= MAX_SAMPLES:
        raise ValueError(f"an arm would have {samples} samples, must have 8 to {MAX_SAMPLES}: change interleaves")
    theta = np.interp(np.arange(samples) * design.dwell, times, root) ** 2
    return pitch * theta * np.exp(1j * theta)


def _fastest(theta: NDArray[np.float64], speed_limit: float, slew_limit: float) -> NDArray[np.float64]:
    """Largest theta'^2 [1/s^2] at each theta within the limits of |dk/dt| and |d2k/dt2|, both divided by the pitch.

    |k''|^2 = (theta'' - theta p)^2 + (theta theta'' + 2 p)^2 with p = theta'^2, so that the largest theta'' is the root
    of a quadratic equation, and one exists up to p = slew sqrt(1 + theta^2) / (2 + theta^2). Going forward alone is
    enough: on both bounds the curve itself asks for less deceleration than the slew limit allows.
    """
    square = theta**2
    bound = np.minimum(speed_limit**2 / (1 + square), slew_limit * np.sqrt(1 + square) / (2 + square)).tolist()
    p = [0.0]
    for n, step in enumerate(np.diff(theta).tolist()):
        now, x = p[-1], float(square[n])
        room = (1 + x) * slew_limit**2 - (now * (2 + x)) ** 2
        acceleration = (math.sqrt(max(room, 0.0)) - math.sqrt(x) * now) / (1 + x)
        p.append(min(now + 2 * acceleration * step, bound[n + 1]))
    return np.array(p)


def density_weights(arm: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Density compensation of evenly turned arms, maximum 1, [samples].

    See `trajectory.ring_areas`.
    """
    weights = ring_areas(np.abs(arm))
    return weights / weights.max()


def synthetic_girf(points: int = 3800) -> NDArray[np.complex128]:
    """Gradient impulse response of an invented scanner, with what measured ones show.

    Each axis has its own delay, loses high frequencies, and induces two eddy currents, which oppose changes. Delays are
    near those that `GIRF.predict_gradients` takes back, and the bandwidth is at the upper end of what is measured: the
    centre of k-space is then sampled as densely as planned, so that the metafile's weights still fit.

    Parameters
    ----------
    points
        Number of frequencies, 1 / (points * 10 us) apart.

    Returns
    -------
    Response complex128 [points, (x, y, z)], zero frequency at points // 2, where it is 1.
    """
    frequency = ((np.arange(points) - points // 2) / (points * RASTER))[:, np.newaxis]
    delay = np.array([4.9e-6, 4.7e-6, 5.0e-6])  # [s]
    cutoff = np.array([50e3, 45e3, 55e3])  # [Hz]
    response = np.exp(-2j * np.pi * frequency * delay) / np.sqrt(1 + (frequency / cutoff) ** 2)
    for share, decay in ((np.array([0.012, 0.015, 0.009]), 1e-3), (np.array([0.004, 0.006, 0.005]), 10e-3)):
        turning = 2j * np.pi * frequency * decay
        response *= 1 - share * turning / (1 + turning)
    return response
