"""Coil maps of our own: agreement with the true ones, orientation, noise, few arms, data that tell nothing."""

import numpy as np
import pytest

import coils
from recon import nufft
from recon.readouts import DataError
from solvers import calibration
from spiral_sessions import maps_agreement, received, small_scan


@pytest.mark.parametrize(
    ("matrix", "interleaves", "n_coils", "noise", "fov_oversampling"),
    [(128, 34, 8, 0.003, 1.0), (128, 34, 6, 0.02, 1.5), (63, 17, 8, 0.003, 1.0), (48, 12, 4, 0.003, 1.27)],
)
def test_maps_agree_with_the_true_ones(tmp_path, matrix, interleaves, n_coils, noise, fov_oversampling):
    simulation = small_scan(tmp_path, matrix, interleaves, readouts=150, coils=n_coils, noise=noise)
    maps = calibration.coil_maps(received(simulation, fov_oversampling))
    size = round(matrix * fov_oversampling)
    assert maps.shape == (n_coils, size, size)
    assert maps.dtype == np.complex64
    np.testing.assert_allclose(coils.rssq(maps), 1, rtol=1e-5)
    assert maps_agreement(maps, simulation) >= 0.9998
    for wrong in (maps[:, ::-1], maps.transpose(0, 2, 1), np.roll(maps, 3, axis=2), maps.conj()):
        assert maps_agreement(wrong, simulation) < 0.9995


@pytest.mark.parametrize(("arms", "noise", "least"), [(7, 0.003, 0.9995), (150, 0.05, 0.999)])
def test_few_arms_and_much_noise(tmp_path, arms, noise, least):
    simulation = small_scan(tmp_path, 64, 17, readouts=arms, coils=8, noise=noise)
    assert maps_agreement(calibration.coil_maps(received(simulation)), simulation) >= least


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_agreement_does_not_depend_on_the_unit_of_the_data(tmp_path, unit):
    simulation = small_scan(tmp_path, readouts=40)
    kept = received(simulation)
    kept.samples[:] *= np.float32(unit)
    assert maps_agreement(calibration.coil_maps(kept), simulation) >= 0.9999


def test_a_single_coil_and_one_that_sees_nothing(tmp_path):
    kept = received(small_scan(tmp_path, readouts=40, coils=1))
    np.testing.assert_allclose(np.abs(calibration.coil_maps(kept)), 1, rtol=1e-5)
    kept = received(small_scan(tmp_path, readouts=40, coils=4))
    kept.samples[:, 2] = 0
    maps = calibration.coil_maps(kept)
    assert not maps[2].any()
    np.testing.assert_allclose(coils.rssq(maps), 1, rtol=1e-5)


def test_readouts_of_the_middle_of_the_scan_are_taken(tmp_path):
    kept = received(small_scan(tmp_path, readouts=200, coils=1))
    coordinates, samples = calibration.central_samples(kept)
    assert 15 < np.linalg.norm(coordinates, axis=-1).max() < 16
    assert coordinates.shape[:2] == (144, samples.shape[-1])
    np.testing.assert_array_equal(samples[0], kept.samples[28][..., : samples.shape[-1]])
    np.testing.assert_array_equal(coordinates[0], kept.coordinates[28, : samples.shape[-1]])


def test_the_normal_operator_is_that_of_the_transform(tmp_path):
    """Its convolution against transforming there and back."""
    coordinates, samples = calibration.central_samples(received(small_scan(tmp_path, readouts=12, coils=2)))
    model = calibration._Model(coordinates, samples, 20)
    rng = np.random.default_rng(1)
    images = (rng.normal(size=(2, 20, 20)) + 1j * rng.normal(size=(2, 20, 20))).astype(np.complex64)
    there_and_back = nufft.adjoint(coordinates, nufft.forward(coordinates, images), (20, 20))
    normal = model.normal(images)
    factor = np.vdot(normal, there_and_back) / np.linalg.norm(normal) ** 2
    assert abs(factor.imag) < 1e-4 * factor.real
    np.testing.assert_allclose(factor * normal, there_and_back, atol=1e-3 * np.abs(there_and_back).max())


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_data_that_tell_nothing_are_refused(value):
    with pytest.raises(DataError, match="nothing to make coil maps from"):
        calibration.nlinv(np.zeros((2, 9, 2)), np.full((2, 1, 9), value, np.complex64))


def test_a_trajectory_without_a_centre_is_refused(tmp_path):
    kept = received(small_scan(tmp_path, readouts=4))
    kept.coordinates += 40
    with pytest.raises(DataError, match="no sample lies within 16 cycles"):
        calibration.coil_maps(kept)
