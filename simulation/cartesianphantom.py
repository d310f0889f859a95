"""Object of the Cartesian scans: the Shepp-Logan phantom with an extent along z, its phase, and its coils.

Each ellipse is the cross-section of a cylinder, so that k-space is a product of closed forms: the ellipse's along x and
y, a sinc along z. Sensitivities and phase are sums of complex exponentials, which keep it so.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import jv

from simulation import phantom

# Middle and height of each ellipse's cylinder as part of the object's depth. All contain z = 0, where the object is the
# plane phantom; the two large dark ones reach to different ends, so that up and down differ.
_EXTENTS = ((0.0, 0.8), (0.0, 0.7), (0.08, 0.4), (-0.08, 0.4), *[(0.04, 0.3)] * 6)
SMALLEST_TERM = 1e-7  # of the series for the phase
VARIATION_ALONG_Z = 0.6  # of a coil's sensitivity
ANGLE = 2.4  # from coil to coil, of the variation along z [rad]


@dataclass(frozen=True)
class Cylinder:
    """An ellipse that extends along z.

    Attributes
    ----------
    ellipse
        Its cross-section.
    z, height
        Its middle and its height [m].
    """

    ellipse: phantom.Ellipse
    z: float
    height: float

    def overlap(self, low: float, high: float) -> float:
        """Length of the part between two z [m]."""
        return max(min(high, self.z + self.height / 2) - max(low, self.z - self.height / 2), 0.0)

    def contains(self, z: float) -> bool:
        """True where z [m] is inside."""
        return abs(z - self.z) <= self.height / 2


def cylinders(size: float, depth: float) -> tuple[Cylinder, ...]:
    """Shepp-Logan phantom of cylinders.

    Parameters
    ----------
    size
        Edge of the square that holds its cross-section [m].
    depth
        Along z [m]; the object takes up 0.8 of it.
    """
    return tuple(
        Cylinder(ellipse, z * depth, height * depth)
        for ellipse, (z, height) in zip(phantom.shepp_logan(size), _EXTENTS, strict=True)
    )


def groups_by_extent(items: tuple[Cylinder, ...]) -> list[tuple[Cylinder, ...]]:
    """Cylinders that share their extent along z, together."""
    groups = defaultdict(list)
    for item in items:
        groups[item.z, item.height].append(item)
    return [tuple(group) for group in groups.values()]


def coils_along_z(count: int, depth: float) -> phantom.Coils:
    """Factors of the coils' sensitivities along z: 1 + 0.6 exp(2.4 i coil) sin(pi z / depth); 1 for a single coil.

    They are given as coils whose exponentials vary along x, which stands for z here.
    """
    amplitude = VARIATION_ALONG_Z if count > 1 else 0.0
    waves = amplitude * np.exp(1j * ANGLE * np.arange(count)) / 2j
    f = 0.5 / depth
    return phantom.Coils(
        frequencies=((0.0, 0.0), (f, 0.0), (-f, 0.0)), weights=tuple((1.0, wave, -wave) for wave in waves)
    )


def slab_signal(cylinder: Cylinder, along_z: phantom.Coils, kz: float) -> NDArray[np.complex128]:
    """Transform along z of a cylinder's extent times the coils' factors, [coil] [m]."""
    frequency = kz - np.array(along_z.frequencies)[:, 0]
    terms = cylinder.height * np.sinc(cylinder.height * frequency) * np.exp(-2j * np.pi * frequency * cylinder.z)
    return np.asarray(along_z.weights) @ terms


def with_phase(coils: phantom.Coils, amplitude: float, size: float) -> phantom.Coils:
    """Multiply sensitivities by exp(i amplitude sin(pi (x + y) / size + 0.7)), a smooth phase of the object.

    It is a sum of exponentials by the expansion of Jacobi and Anger, exp(i a sin t) = sum over n of J_n(a) exp(i n t);
    terms below 1e-7 are left out.

    Parameters
    ----------
    coils
        Sensitivities.
    amplitude
        Of the phase [rad].
    size
        Over which the phase varies by half a period, along x and along y [m].
    """
    if amplitude == 0:
        return coils
    orders = np.arange(-60, 61)
    orders = orders[np.abs(jv(orders, amplitude)) > SMALLEST_TERM]
    unit = 0.5 / size
    product: dict[tuple[int, int], NDArray[np.complex128]] = {}
    for (fx, fy), weights in zip(coils.frequencies, np.asarray(coils.weights, complex).T, strict=True):
        for n in orders:
            place = (round(fx / unit) + int(n), round(fy / unit) + int(n))
            product[place] = product.get(place, 0) + jv(n, amplitude) * np.exp(0.7j * n) * weights
    return phantom.Coils(
        frequencies=tuple((unit * x, unit * y) for x, y in product),
        weights=tuple(map(tuple, np.array(list(product.values())).T.tolist())),
    )
