"""SENSE and l1-wavelet against exact images, and noise replicas."""

import numpy as np
import pytest

import coils
import parallel_data as data
from recon import espirit
from recon.conditioning import SampleError
from recon.sampling import Lattice
from recon.sense import Encoding, g_factor, l1_wavelet, sense


def maps_of(scan, sets=1):
    return espirit.coil_maps(data.centre(scan.full), scan.full.shape[1:], sets)


@pytest.mark.parametrize("shape", [(2, 3, 1, 12, 7), (1, 4, 4, 9, 5)])
def test_encoding_is_the_sampled_transform(shape):
    rng = np.random.default_rng(0)
    maps = data.white(rng, shape)
    image = data.white(rng, (shape[0], *shape[2:])).astype(np.complex64)
    sampled = rng.random(shape[2:4]) < 0.5
    kspace = np.where(sampled[..., np.newaxis], transform((maps * image[:, np.newaxis]).sum(axis=0)), 0)
    encoding = Encoding(maps, sampled)

    adjoint = encoding.to_image(encoding.adjoint(kspace))
    other = data.white(rng, kspace.shape) * sampled[..., np.newaxis]
    seen = np.vdot(other, kspace)  # <y, E m> = <E^H y, m>, with the scale of the inverse transform
    expected = np.vdot(encoding.to_image(encoding.adjoint(other)), image) * image[0].size
    assert seen == pytest.approx(expected, rel=1e-4)
    rolled = np.roll(image, [-n // 2 if n % 2 == 0 else -(n // 2) for n in sampled.shape], axis=(1, 2))
    normal = encoding.normal(np.ascontiguousarray(rolled.transpose(3, 0, 1, 2)))
    np.testing.assert_allclose(encoding.to_image(normal) * np.sqrt(image[0].size), adjoint, atol=1e-4)


def transform(images):
    """Centred k-space of coil images."""
    axes = (1, 2, 3)
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(images, axes), axes=axes), axes)


@pytest.mark.parametrize(("rows", "columns", "step", "limit"), [(96, 80, 2, 0.05), (97, 63, 2, 0.06), (96, 80, 3, 0.1)])
def test_regular_patterns(rows, columns, step, limit):
    scan = data.scan(rows, columns, noise=0.002)
    sampled = data.pattern(rows, step)
    maps = maps_of(scan)
    zeros = data.error(sense(scan.full, sampled, maps, 1, 0.0)[0], scan.truth)
    for image in (sense(scan.full, sampled, maps, 30, 1e-3), l1_wavelet(scan.full, sampled, maps, 50, 2e-3)):
        assert image.shape == (1, 1, rows, columns)
        assert data.error(image[0], scan.truth) < min(limit, 0.5 * zeros)
        assert np.linalg.norm(np.abs(image[0])) == pytest.approx(np.linalg.norm(scan.truth), rel=0.05)


@pytest.mark.parametrize(
    ("number", "step", "noise"), [(2, 2, 0.01), (2, 2, 0.003), (4, 3, 0.02), (8, 2, 0.03), (8, 3, 0.005)]
)
@pytest.mark.parametrize("known", [True, False])
def test_the_weight_suits_the_noise(number, step, noise, known):
    scan = data.scan(coils=number, noise=noise)
    sampled, maps = data.pattern(96, step), maps_of(scan)
    swept = [data.error(sense(scan.full, sampled, maps, reg_lambda=w)[0], scan.truth) for w in np.logspace(-4, 0, 9)]
    automatic = sense(scan.full, sampled, maps, noise_variance=noise**2 * 96 * 80 if known else None)
    assert data.error(automatic[0], scan.truth) < 1.1 * min(swept)


def test_two_coils_do_not_make_an_image_worse_than_none():
    scan = data.scan(coils=2, noise=0.02)
    sampled = data.pattern(96, 3)
    zeros = data.error(data.magnitude(data.to_images(np.where(sampled[..., np.newaxis], scan.full, 0))), scan.truth)
    maps = maps_of(scan)
    assert data.error(sense(scan.full, sampled, maps)[0], scan.truth) < 0.85 * zeros
    assert data.error(sense(scan.full, sampled, maps, reg_lambda=0.002)[0], scan.truth) > zeros


def test_random_lines():
    scan = data.scan(128, 96, noise=0.005)
    sampled = data.pattern(128, 200) | (np.random.default_rng(1).random((1, 128)) < 0.3)
    maps = maps_of(scan)
    errors = [
        data.error(image[0], scan.truth)
        for image in (l1_wavelet(scan.full, sampled, maps), sense(scan.full, sampled, maps))
    ]
    assert errors[0] < 0.08
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("step", [2, 3])
def test_two_sets_for_an_object_larger_than_the_field_of_view(step):
    scan = data.scan(128, 96, wrap=1.25, noise=0.001)
    sampled = data.pattern(128, step)
    one, two = (sense(scan.full, sampled, maps_of(scan, sets), 30, 1e-3) for sets in (1, 2))
    assert data.error(coils.rssq(two), scan.truth) < 0.5 * data.error(coils.rssq(one), scan.truth)


def test_partitions():
    kspace, density = data.volume((16, 24, 20), 6)
    p, r = np.indices(kspace.shape[1:3])
    sampled = (Lattice(2, 2, 1).places(p, r) == 0) | (abs(p - 8) < 5) & (abs(r - 12) < 7)
    maps = espirit.coil_maps(kspace[:, 4:13, 6:19], density.shape)
    full = data.error(coils.combine(data.to_images(kspace), maps[0]), density)
    for image in (sense(kspace, sampled, maps, 30, 1e-4), l1_wavelet(kspace, sampled, maps, 50, 5e-4)):
        assert data.error(image[0], density) < full + 0.05


@pytest.mark.parametrize("method", [sense, l1_wavelet])
def test_the_scale_does_not_matter(method):
    scan = data.scan(48, 32)
    sampled, maps = data.pattern(48, 2), maps_of(scan)
    image = method(scan.full, sampled, maps)
    for scale in (1e-9, 1e9):
        scaled = method(scan.full * np.float32(scale), sampled, maps) / scale
        np.testing.assert_allclose(scaled, image, atol=1e-3 * np.abs(image).max())


def test_wrong_sizes_and_empty_data():
    scan = data.scan(48, 32)
    sampled, maps = data.pattern(48, 2), scan.maps[np.newaxis]
    with pytest.raises(ValueError, match="of one size"):
        sense(scan.full, sampled[:, :40], maps)
    with pytest.raises(ValueError, match="maps are for"):
        sense(scan.full[:4], sampled, maps)
    with pytest.raises(SampleError, match="nothing to reconstruct"):
        l1_wavelet(0 * scan.full, sampled, maps)
    assert not sense(0 * scan.full, sampled, maps).any()
    with pytest.raises(ValueError, match="one partition"):
        g_factor(np.ones((1, 2, 2, 8, 8)), np.ones((2, 8), bool))


@pytest.mark.parametrize(("step", "calibration"), [(2, 0), (3, 24)])
def test_g_factor_agrees_with_replicas(step, calibration):
    scan = data.scan(64, 24)
    sampled, maps, weight = data.pattern(64, step, calibration), scan.maps[np.newaxis], 0.01
    g = g_factor(maps, sampled, weight)[0, 0]
    rng, total = np.random.default_rng(2), np.zeros(g.shape)
    for _ in range(100):
        noise = data.white(rng, scan.full.shape).astype(np.complex64)
        total += np.abs(sense(noise, sampled, maps, 60, weight)[0, 0]) ** 2
    sites = np.flatnonzero(sampled[0])
    region = sites[-1] - sites[0] + 1
    replicas = np.sqrt(total / 100 / (2 * region / (64 * 24 * 64)) * len(sites) / region)
    assert np.sqrt((g**2).mean() / (replicas**2).mean()) == pytest.approx(1, abs=0.03)
    blocks = [np.sqrt((each**2).reshape(16, 4, 6, 4).mean(axis=(1, 3))) for each in (g, replicas)]
    assert np.abs(blocks[0] / blocks[1] - 1).mean() < 0.05
