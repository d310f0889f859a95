"""GRAPPA against exact k-space."""

import numpy as np
import pytest

import coils
import parallel_data as data
from recon import grappa
from recon.sampling import IrregularSamplingError, Lattice, acquired_region, find_lattice


def filled(kspace, sampled, calibration=None, variance=None):
    calibration = data.centre(kspace) if calibration is None else calibration
    return grappa.calibrate(calibration, kspace, sampled, variance).fill(kspace, sampled)


def quality(scan, kspace):
    return data.error(data.magnitude(data.to_images(kspace)), scan.truth)


@pytest.mark.parametrize(
    ("rows", "columns", "step", "first", "limit"), [(96, 80, 2, 0, 0.06), (97, 81, 2, 1, 0.06), (95, 64, 3, 2, 0.12)]
)
def test_missing_lines_are_filled(rows, columns, step, first, limit):
    scan = data.scan(rows, columns)
    sampled = data.pattern(rows, step, first=first)
    before = np.where(sampled[..., np.newaxis], scan.full, np.nan)

    result = filled(before.copy(), sampled, data.centre(scan.full))

    np.testing.assert_array_equal(result[:, sampled], scan.full[:, sampled])
    zeros = quality(scan, np.where(sampled[..., np.newaxis], scan.full, 0))
    assert quality(scan, result) < min(limit, 0.5 * zeros)


@pytest.mark.parametrize(("step", "part"), [(2, 0.2), (3, 0.6)])
def test_an_object_larger_than_the_field_of_view(step, part):
    scan = data.scan(128, 96, wrap=1.25, noise=0.001)
    sampled = data.pattern(128, step)
    zeros = quality(scan, np.where(sampled[..., np.newaxis], scan.full, 0))
    assert quality(scan, filled(scan.full, sampled)) < part * zeros


@pytest.mark.parametrize("lattice", [(2, 2, 0), (2, 2, 1), (1, 3, 1), (1, 4, 2)])
def test_partitions(lattice):
    kspace, density = data.volume((20, 32, 24), 6)
    p, r = np.indices(kspace.shape[1:3])
    sampled = (Lattice(*lattice).places(p, r) == 0) | (abs(p - 10) < 6) & (abs(r - 16) < 8)
    sampled &= ((p - 10) / 10) ** 2 + ((r - 16) / 16) ** 2 <= 1.2  # corners were not acquired

    result = filled(kspace, sampled, kspace[:, 5:16, 9:24])

    region = acquired_region(sampled)[..., np.newaxis]
    assert not np.where(region, 0, result).any()
    full, zeros = (np.where(lines, kspace, 0) for lines in (region, sampled[..., np.newaxis]))
    errors = [data.error(data.magnitude(data.to_images(each)), density) for each in (full, result, zeros)]
    assert errors[1] < errors[0] + 0.15 * (errors[2] - errors[0])


def test_lines_beyond_partial_fourier_stay_zero():
    scan = data.scan()
    sampled = data.pattern(96, 2)
    sampled[:, :30] = False
    result = filled(scan.full, sampled)
    assert not result[:, :, :30].any()
    assert np.abs(result[:, :, 30:95]).min(axis=(0, 3)).all()


def test_kernels_serve_the_next_repetition_wherever_its_lines_begin():
    scan = data.scan()
    kernels = grappa.calibrate(data.centre(scan.full), scan.full, data.pattern(96, 2, 0))
    for first in (0, 1):
        assert quality(scan, kernels.fill(scan.full, data.pattern(96, 2, 0, first))) < 0.06
    with pytest.raises(ValueError, match="the calibration was made for 8 coils"):
        kernels.fill(scan.full, data.pattern(96, 3, 0))
    with pytest.raises(ValueError, match="4 coils"):
        kernels.fill(scan.full[:4], data.pattern(96, 2, 0))
    irregular = data.pattern(96, 2, 0)
    irregular[0, 40] = False
    with pytest.raises(IrregularSamplingError):
        kernels.fill(scan.full, irregular)


@pytest.mark.parametrize(
    ("number", "step", "noise", "wrap", "limit"),
    [(10, 4, 0.004, 1.0, 0.1), (8, 3, 0.005, 1.3, 0.1), (8, 4, 0.01, 1.0, 0.145), (6, 3, 0.02, 1.0, 0.18)],
)
def test_weights_suit_the_signal_to_noise_ratio_of_what_they_fill(number, step, noise, wrap, limit):
    scan = data.scan(coils=number, noise=noise, wrap=wrap)  # those of the calibration lines would be up to 0.26
    sampled = data.pattern(96, step)
    assert quality(scan, filled(scan.full, sampled, variance=noise**2 * 96 * 80)) < limit
    assert quality(scan, filled(scan.full, sampled)) < 1.05 * limit


def test_weights_do_not_amplify_noise_and_do_not_depend_on_the_scale():
    scan = data.scan(noise=0.005, wrap=1.3)
    sampled = data.pattern(96, 3)
    result = filled(scan.full, sampled)
    plain = filled(scan.full, sampled, variance=0.0)
    assert quality(scan, result) < 0.8 * quality(scan, plain)
    for scale in (1e-9, 1e9):
        np.testing.assert_allclose(filled(scan.full * scale, sampled) / scale, result, atol=2e-3 * np.abs(result).max())


def test_the_noise_is_estimated():
    scan = data.scan(noise=0.01)
    sampled = data.pattern(96, 2)
    known, estimated = filled(scan.full, sampled, variance=0.01**2 * 96 * 80), filled(scan.full, sampled)
    assert quality(scan, estimated) == pytest.approx(quality(scan, known), rel=0.05)


def test_few_calibration_lines_get_a_smaller_kernel_or_an_error():
    scan = data.scan()
    sampled = data.pattern(96, 3)
    assert quality(scan, filled(scan.full, sampled, data.centre(scan.full, 8))) < 0.15
    with pytest.raises(grappa.CalibrationError, match=r"1 x 3 lines.* 1 x 4 lines are the least"):
        filled(scan.full, sampled, data.centre(scan.full, 3))
    for bad in (0, np.nan):
        with pytest.raises(grappa.CalibrationError, match="zero or not finite"):
            filled(scan.full, sampled, data.centre(scan.full) * bad)


def test_full_sampling_stays_as_it_is():
    scan = data.scan()
    np.testing.assert_array_equal(filled(scan.full, np.ones((1, 96), bool)), scan.full)


@pytest.mark.parametrize(("step", "calibration"), [(2, 0), (3, 0), (3, 24)])
def test_g_factor_agrees_with_replicas(step, calibration):
    scan = data.scan(96, 32, noise=0.001)
    sampled = data.pattern(96, step, calibration)
    kernels = grappa.calibrate(data.centre(scan.full), scan.full, sampled)
    g = kernels.g_factor(scan.maps, sampled)[0]

    rng, total = np.random.default_rng(3), np.zeros((96, 32))
    for _ in range(100):
        noise = data.white(rng, scan.full.shape).astype(np.complex64)
        total += np.abs(coils.combine(data.to_images(kernels.fill(noise, sampled)), scan.maps)[0]) ** 2
    region = acquired_region(sampled).sum()
    full = 2 * region / (96 * 32 * 96)  # variance of the fully sampled image
    replicas = np.sqrt(total / 100 / full * np.count_nonzero(sampled) / region)
    assert np.sqrt((g**2).mean() / (replicas**2).mean()) == pytest.approx(1, abs=0.03)
    # 100 replicas leave a standard deviation of 5 % in a pixel, so 1.25 % in a mean of 16
    blocks = [np.sqrt((each**2).reshape(24, 4, 8, 4).mean(axis=(1, 3))) for each in (g, replicas)]
    assert np.abs(blocks[0] / blocks[1] - 1).mean() < 0.05


def test_g_factor_of_partitions():
    kspace, _ = data.volume((16, 28, 12))
    p, r = np.indices(kspace.shape[1:3])
    sampled = Lattice(2, 2, 1).places(p, r) == 0
    kernels = grappa.calibrate(kspace, kspace, sampled)
    weights = np.zeros(kspace.shape, np.complex64)
    weights[2] = 1
    g = kernels.g_factor(weights, sampled)
    rng, total = np.random.default_rng(3), np.zeros(g.shape)
    for _ in range(40):
        noise = data.white(rng, kspace.shape).astype(np.complex64)
        total += np.abs(data.to_images(kernels.fill(noise, sampled))[2]) ** 2
    region = acquired_region(sampled).sum()
    replicas = np.sqrt(total / 40 * kspace[0].size / 2 * sampled.size / region * np.count_nonzero(sampled) / region)
    assert np.sqrt((g**2).mean() / (replicas**2).mean()) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="weights are"):
        kernels.g_factor(weights[:3], sampled)
    assert find_lattice(sampled).factor == 4
