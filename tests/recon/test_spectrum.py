"""Energy and noise in parts of k-space."""

import numpy as np
import pytest

import parallel_data as data
from recon.spectrum import estimate_noise, local_energy


@pytest.mark.parametrize(("coils", "step", "noise"), [(2, 2, 0.003), (8, 3, 0.005), (16, 2, 0.02)])
def test_noise_is_told_from_signal(coils, step, noise):
    scan = data.scan(coils=coils, noise=noise)
    sampled = data.pattern(96, step)
    before = np.where(sampled[..., np.newaxis], scan.full, np.nan)
    assert 0.4 < estimate_noise(before, sampled) / (noise**2 * 96 * 80) < 1.3


def test_zeros_hold_no_noise():
    scan = data.scan(coils=2, noise=0.02)
    sampled = data.pattern(96, 2)
    echo = scan.full.copy()
    echo[..., :24] = 0  # an asymmetric echo
    assert estimate_noise(echo, sampled) == pytest.approx(estimate_noise(scan.full, sampled), rel=0.4)
    assert estimate_noise(0 * scan.full, sampled) == 0


@pytest.mark.parametrize(("step", "partitions"), [(1, 1), (3, 1), (12, 1), (3, 4)])
def test_energy_is_that_of_the_lines_nearby(step, partitions):
    sampled = data.pattern(64, step, 0, partitions=partitions)
    rows = 1.0 + np.arange(64)
    kspace = np.ones((3, partitions, 64, 20)) * np.sqrt(rows)[:, np.newaxis] * np.exp(1j)
    kspace[:, ~sampled] = np.nan
    energy = local_energy(kspace, sampled, (1, step))
    assert energy.shape == kspace.shape[1:]
    middle = np.arange(16, 44)
    assert np.abs(energy[:, middle] / rows[middle, np.newaxis] - 1).max() < 0.5 * step / 16 + 0.05
