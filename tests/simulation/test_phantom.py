import numpy as np
import pytest

from simulation import phantom

SIZE = 0.24
ELLIPSES = (phantom.Ellipse(0.02, -0.03, 0.05, 0.03, 0.6, 1.0), phantom.Ellipse(-0.04, 0.01, 0.02, 0.04, -0.2, -0.5))


def direct_sum(density, pixel, kx, ky):
    """Fourier integral of a fine raster as a plain sum; density [..., row, column]."""
    x, y = phantom.pixel_grid(density.shape[-2:], pixel)
    return np.tensordot(density, np.exp(-2j * np.pi * (kx * x[..., None] + ky * y[..., None])), axes=2) * np.prod(pixel)


@pytest.fixture(scope="module")
def k():
    return np.random.default_rng(0).uniform(-40, 40, (2, 20))


def test_value_at_the_centre_is_the_integral():
    area = sum(np.pi * e.a * e.b * e.intensity for e in ELLIPSES)
    assert phantom.kspace(ELLIPSES, 0.0, 0.0) == pytest.approx(area, rel=1e-12)


def test_circle_against_the_integral_over_chords():
    """A disc off the centre: its transform along x is the integral of its chords."""
    disc = [phantom.Ellipse(0.01, 0.02, 0.03, 0.03, 0.3, 2.0)]
    nodes, weights = np.polynomial.legendre.leggauss(400)
    angle = nodes * np.pi / 2  # x = radius sin(angle), which takes the roots away from the ends
    kx = 25.0
    chords = 2 * 0.03 * np.cos(angle) * np.exp(-2j * np.pi * kx * (0.01 + 0.03 * np.sin(angle))) * 0.03 * np.cos(angle)
    assert phantom.kspace(disc, kx, 0.0) == pytest.approx(2.0 * np.pi / 2 * np.sum(weights * chords), rel=1e-10)


def test_kspace_agrees_with_a_fine_raster(k):
    pixel = (SIZE / 350, SIZE / 281)
    fine = phantom.image(ELLIPSES, (350, 281), pixel, subpixels=4)
    signal = phantom.kspace(ELLIPSES, *k)
    error = np.linalg.norm(signal - direct_sum(fine, pixel, *k)) / np.linalg.norm(signal)
    assert error < 4e-3


def test_kspace_with_coils_agrees_with_a_fine_raster(k):
    pixel = (SIZE / 350, SIZE / 281)
    coils = phantom.ring_of_coils(3, SIZE)
    maps = coils.maps(*phantom.pixel_grid((350, 281), pixel))
    fine = phantom.image(ELLIPSES, (350, 281), pixel, subpixels=4) * maps
    signal = coils.kspace(ELLIPSES, *k)
    error = np.linalg.norm(signal - direct_sum(fine, pixel, *k)) / np.linalg.norm(signal)
    assert signal.shape == (3, 20)
    assert error < 4e-3


def test_shapes_and_chunks(monkeypatch):
    coils = phantom.ring_of_coils(4, SIZE)
    kx, ky = np.linspace(-9, 9, 7), np.linspace(-5, 5, 5)[:, np.newaxis]
    whole = coils.kspace(ELLIPSES, kx, ky)
    assert whole.shape == (4, 5, 7)
    monkeypatch.setattr(phantom, "CHUNK", 4)
    np.testing.assert_allclose(coils.kspace(iter(ELLIPSES), kx, ky), whole, rtol=1e-12)
    assert coils.kspace(ELLIPSES, kx, ky, dtype=np.complex64).dtype == np.complex64


@pytest.mark.parametrize("shape", [(6, 6), (7, 5), (5, 8)])
def test_image_pixels_are_means_over_their_area(shape):
    pixel = (0.02, 0.03)
    image = phantom.image([phantom.Ellipse(0.03, -0.02, 0.031, 0.022, 0.0, 4.0)], shape, pixel, subpixels=32)
    assert image.sum() * np.prod(pixel) == pytest.approx(4.0 * np.pi * 0.031 * 0.022, rel=5e-3)
    assert np.unravel_index(np.argmax(image), shape) == (shape[0] // 2 - 1, shape[1] // 2 + 1)


def test_coils_sensitivities_follow_their_formula():
    x, y, size, count = 0.03, -0.05, 0.2, 5
    maps = phantom.ring_of_coils(count, size).maps(x, y)
    u, v = np.pi * x / size, np.pi * y / size
    for coil in range(count):
        a = 2 * np.pi * coil / count
        c, s = np.cos(a), np.sin(a)
        real = 0.6 + 0.4 * (c * np.sin(u) + s * np.sin(v))
        expected = np.exp(1j * a) * (real + 0.3j * (c * np.cos(v) - s * np.cos(u))) / np.sqrt(count)
        assert maps[coil] == pytest.approx(expected, rel=1e-12)
    assert phantom.ring_of_coils(1, size).maps(x, y) == pytest.approx(1)


def test_shepp_logan_is_upright_and_has_known_densities():
    image = phantom.image(phantom.shepp_logan(0.2), (200, 200), (1e-3, 1e-3), subpixels=1)
    np.testing.assert_allclose(np.unique(image.round(6)), [0, 0.1, 0.2, 0.3, 0.4, 1.0], atol=1e-6)
    assert image[65, 100] == pytest.approx(0.3)  # the large bright ellipse is in the upper half
    assert image[135, 100] == pytest.approx(0.2)
