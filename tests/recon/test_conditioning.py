"""Coil compression and the data's scale."""

import numpy as np
import pytest

from recon.conditioning import SampleError, compression, robust_scale


def test_compression_keeps_the_energy_with_the_fewest_combinations():
    rng = np.random.default_rng(1)
    sources = rng.standard_normal((2, 6, 200)) + 1j * rng.standard_normal((2, 6, 200))
    sources[:, 2:] *= 0.01  # two strong ones in six coils
    unitary = np.linalg.qr(rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6)))[0]
    samples = (unitary @ sources)[:, np.newaxis].astype(np.complex64)

    mixing, energy = compression(samples, np.ones((2, 1)))

    assert mixing.shape == (2, 6)
    np.testing.assert_allclose(mixing @ mixing.conj().T, np.eye(2), atol=1e-6)
    kept = np.linalg.norm(mixing @ samples[:, 0]) ** 2
    assert kept == pytest.approx(energy, rel=1e-5)
    assert kept > 0.999 * np.linalg.norm(samples) ** 2


def test_weights_decide_what_counts():
    rng = np.random.default_rng(2)
    samples = np.zeros((1, 3, 2, 50), np.complex64)
    samples[0, 0, 0], samples[0, 1, 1] = rng.standard_normal(50), rng.standard_normal(50)
    samples[0, 2] = np.nan
    mixing, energy = compression(samples, np.array([[0.5, 0, 0]]))
    np.testing.assert_allclose(abs(mixing), [[1, 0]], atol=1e-6)
    assert energy == pytest.approx(0.5 * np.linalg.norm(samples[0, 0]) ** 2, rel=1e-5)
    with pytest.raises(SampleError, match="no numbers"):
        compression(samples, np.ones((1, 3)))
    with pytest.raises(SampleError, match="nothing to reconstruct"):
        compression(0 * samples[:, :2], np.ones((1, 2)))


def test_the_scale_is_a_percentile_unless_single_pixels_are_far_brighter():
    images = np.linspace(0, 100, 101) * np.exp(1j * np.arange(101))
    assert robust_scale(images) == pytest.approx(90)
    images[-1] = 1000
    assert robust_scale(images) == pytest.approx(1000)
    for bad in (0 * images, images * np.nan):
        with pytest.raises(SampleError, match="nothing to reconstruct"):
            robust_scale(bad)
