"""Concomitant fields: against the formula written out for a gradient system, in every position on the table."""

from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

from GIRF import PATIENT_TO_DEVICE
from recon import concomitant
from recon.fieldterms import Phase, find_terms
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import readout_axes

B0 = 0.55
SHAPE, FOV = (6, 8), (320.0, 240.0)
ARMS = design_spiral(SpiralDesign(arms=3))


def head_at(position, rotation=(0.0, 0.0, 0.0)):
    head = ismrmrd.AcquisitionHeader()
    head.read_dir, head.phase_dir, head.slice_dir = map(tuple, readout_axes(rotation).tolist())
    head.position = position
    return head


def phase(head):
    """Phase [arm, sample, row, column] of the product of both functions."""
    times = concomitant.integrals(ARMS.k, ARMS.dwell, B0)
    return np.einsum("asf,frc->asrc", times, concomitant.shapes(head, SHAPE, FOV))


def exact_phase(head, patient_position):
    """The formula on the physical axes, integrated over the gradients that make the trajectory."""
    to_device = np.array(PATIENT_TO_DEVICE[patient_position], float)
    in_patient = -(ARMS.k[..., :1] * np.array(head.read_dir) + ARMS.k[..., 1:] * np.array(head.phase_dir))
    gx, gy, gz = np.moveaxis(
        np.diff(in_patient @ to_device.T, axis=1)[..., np.newaxis, np.newaxis] / ARMS.dwell / 42.576e6, 2, 0
    )
    x, y, z = np.moveaxis(concomitant.positions(head, SHAPE, FOV) @ to_device.T, -1, 0)
    field = ((gx**2 + gy**2) * z**2 + gz**2 * (x**2 + y**2) / 4 - gx * gz * x * z - gy * gz * y * z) / (2 * B0)
    return np.cumsum(42.576e6 * field * ARMS.dwell, axis=1)


@pytest.mark.parametrize("patient_position", PATIENT_TO_DEVICE)
def test_phase_is_that_of_the_formula_in_any_position(patient_position):
    head = head_at((20.0, -30.0, 100.0), (25.0, 40.0, 10.0))
    there = phase(head)[:, 1:]
    assert np.abs(there).max() > 0.5
    np.testing.assert_allclose(there, exact_phase(head, patient_position), rtol=1e-5, atol=1e-6)


def test_places_of_pixels_follow_the_images_header():
    head = head_at((5.0, 6.0, 7.0), (90.0, 0.0, 0.0))
    places = concomitant.positions(head, SHAPE, FOV)
    np.testing.assert_allclose(places[3, 4], [5e-3, 6e-3, 7e-3], atol=1e-9)
    np.testing.assert_allclose(places[3, 5] - places[3, 4], 0.04 * np.array(head.read_dir), atol=1e-9)
    np.testing.assert_allclose(places[4, 4] - places[3, 4], 0.04 * np.array(head.phase_dir), atol=1e-9)


def test_an_axial_plane_takes_one_exact_term():
    times = concomitant.integrals(ARMS.k, ARMS.dwell, B0)
    terms = find_terms(Phase(times, concomitant.shapes(head_at((0.0, 0.0, 100.0)), SHAPE, FOV)), 1e-2)
    assert len(terms) == 1
    exact = np.exp(-2j * np.pi * phase(head_at((0.0, 0.0, 100.0)))[..., 0, 0])
    np.testing.assert_allclose(terms.temporal(times)[:, 0] * terms.spatial[0, 0, 0], exact, atol=1e-5)
    np.testing.assert_allclose(terms.spatial, terms.spatial[0, 0, 0], atol=1e-6)


def test_nothing_is_to_correct_at_the_isocentre():
    places = concomitant.shapes(head_at((0.0, 0.0, 0.0)), SHAPE, FOV)
    assert find_terms(Phase(concomitant.integrals(ARMS.k, ARMS.dwell, B0), places), 1e-2) is None


@pytest.mark.parametrize(
    ("stated", "frequency", "expected"),
    [(0.55, 127_728_000, 0.55), (None, 23_616_000, 0.5547), (None, None, None), (0.0, 0, None)],
)
def test_field_strength_is_that_of_the_header(stated, frequency, expected):
    header = SimpleNamespace(
        acquisitionSystemInformation=SimpleNamespace(systemFieldStrength_T=stated),
        experimentalConditions=SimpleNamespace(H1resonanceFrequency_Hz=frequency),
    )
    assert concomitant.field_strength(header) == (expected and pytest.approx(expected, rel=1e-3))
