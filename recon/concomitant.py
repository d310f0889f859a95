"""Concomitant (Maxwell) fields: the phase that gradients add beside the one that is asked for.

With a gradient G(t) [T/m] at a place (x, y, z) [m] from the isocentre, and B0 along z, the field is larger by

    B_c = 1 / (2 B0) [ (Gx^2 + Gy^2) z^2 + Gz^2 (x^2 + y^2) / 4 - Gx Gz x z - Gy Gz y z ],

and spins gain phi_c = gamma_bar * integral of B_c [cycles]. With the gradient in the plane of the image, (gu, gv) along
kx and ky, it is a sum of three products of a function of time and one of place:

    phi_c(r, t) = (q_uu + q_vv) (I_uu + I_vv) / 2 + (q_uu - q_vv) (I_uu - I_vv) / 2 + 2 q_uv I_uv,
    I_ij(t) = gamma_bar / (2 B0) * integral of gi gj,

of which the second and third change sign as the arm turns and stay small. In an axial plane all q are constants.

The device's z axis is the patient's, up to its sign, in all positions on the table (`GIRF.PATIENT_TO_DEVICE`), and B_c
does not change with a rotation about z or a reflection: the patient position makes no difference.

References: Bernstein et al., Magn Reson Med 1998;39:300, doi 10.1002/mrm.1910390218; King et al., Magn Reson Med
1999;41:103, doi 10.1002/(SICI)1522-2594(199901)41:1<103::AID-MRM15>3.0.CO;2-M.
"""

from __future__ import annotations

from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

GAMMA_BAR = 42.576e6  # [Hz/T], of protons
SAME_PLACE = 5.0  # [mm], by which a plane may move and keep its terms: their phase, about z^2, changes by 10 % at 10 cm


def field_strength(header: Any) -> float | None:
    """B0 [T] of the MRD header: as it says, or by the resonance frequency; None where it has neither."""
    system = getattr(header, "acquisitionSystemInformation", None)
    conditions = getattr(header, "experimentalConditions", None)
    stated = getattr(system, "systemFieldStrength_T", None)
    by_frequency = (getattr(conditions, "H1resonanceFrequency_Hz", None) or 0) / GAMMA_BAR
    found = float(stated or by_frequency)
    return found if 0 < found < np.inf else None


def integrals(k: NDArray[np.floating], dwell: float, b0: float) -> NDArray[np.float64]:
    """Functions of time of the phase, since the first sample of each arm.

    Parameters
    ----------
    k
        K-space [arm, sample, (kx, ky)] [1/m].
    dwell
        Time from sample to sample [s].
    b0
        Main field [T].

    Returns
    -------
    (I_uu + I_vv) / 2, (I_uu - I_vv) / 2, I_uv [arm, sample, 3] [cycles/m^2].
    """
    steps = np.diff(np.asarray(k, float), axis=1, prepend=k[:, :1])
    u, v = steps[..., 0], steps[..., 1]
    products = np.stack([(u**2 + v**2) / 2, (u**2 - v**2) / 2, u * v], axis=-1)
    return np.cumsum(products, axis=1) / (2 * b0 * GAMMA_BAR * dwell)


def shapes(
    head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
) -> NDArray[np.float64]:
    """Functions of place of the phase, on the image's grid.

    Parameters
    ----------
    head
        Of a readout: its position is the centre of the image, from the isocentre.
    shape
        Rows and columns.
    field_of_view
        Of the image (x, y) [mm].

    Returns
    -------
    q_uu + q_vv, q_uu - q_vv, 2 q_uv [3, row, column] [m^2].
    """
    read, phase = np.array(head.read_dir, float), np.array(head.phase_dir, float)
    x, y, z = np.moveaxis(positions(head, shape, field_of_view), -1, 0)
    nothing = np.zeros_like(z)
    square = np.array(
        [
            [z**2, nothing, -x * z / 2],
            [nothing, z**2, -y * z / 2],
            [-x * z / 2, -y * z / 2, (x**2 + y**2) / 4],
        ]
    )  # B_c is G^T square G / (2 B0)
    uu, vv, uv = (
        np.einsum("i,ijrc,j->rc", one, square, other) for one, other in ((read, read), (phase, phase), (read, phase))
    )
    return np.stack([uu + vv, uu - vv, 2 * uv])


def positions(
    head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
) -> NDArray[np.float64]:
    """Places of the pixels [row, column, (x, y, z)] in patient coordinates, from the isocentre [m].

    Parameters are those of `shapes`.
    """
    down, across = (
        1e-3 * extent * (np.arange(n) - n // 2) / n for n, extent in zip(shape, field_of_view[::-1], strict=True)
    )
    return (
        1e-3 * np.array(head.position, float)
        + across[:, np.newaxis] * np.array(head.read_dir, float)
        + down[:, np.newaxis, np.newaxis] * np.array(head.phase_dir, float)
    )
