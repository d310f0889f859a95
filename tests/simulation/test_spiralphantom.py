import numpy as np
import pytest

from simulation import phantom
from simulation.spiralphantom import array_coils, as_parameters, chest, coil_maps, moving_kspace, raster

PIXEL = 4e-3


def ellipses_of(parameters):
    return [phantom.Ellipse(*row) for row in parameters]


@pytest.fixture(scope="module")
def states():
    return chest(np.array([0.0, 0.4, 1.0]), np.array([0.2, 1.0, 0.0]), np.array([0.0, -1.0, 1.0]))


def test_kspace_is_the_closed_form(states):
    coils, random = array_coils(5), np.random.default_rng(0)
    k = random.uniform(-300, 300, (3, 40, 2))
    k[:, 0] = 0
    signal = moving_kspace(states, k, coils)
    assert (signal.shape, signal.dtype) == ((3, 5, 40), np.complex64)
    for arm in range(3):
        exact = coils.kspace(ellipses_of(states[arm]), k[arm, :, 0], k[arm, :, 1])
        assert np.abs(signal[arm] - exact).max() < 5e-7 * np.abs(exact).max()


def test_kspace_is_the_sum_over_a_fine_raster(states):
    """Made another way: raster times sensitivity, summed numerically."""
    coils, fine, size = array_coils(3), 2.5e-4, 1024
    image = raster(states[0], size, fine, 4)
    x, y = (-grid for grid in phantom.pixel_grid((size, size), (fine, fine)))
    objects = image * coils.maps(x, y)
    k = np.array([[0.0, 0.0], [11.0, -7.0], [-60.0, 35.0], [3.0, 90.0]])
    direct = np.stack(
        [np.exp(-2j * np.pi * ky * y[:, 0]) @ objects @ np.exp(-2j * np.pi * kx * x[0]) for kx, ky in k], axis=-1
    )
    signal = moving_kspace(states[:1], k[np.newaxis], coils)[0]
    # Averaging over pixels multiplies k-space by sinc(k * pixel), above 0.999 here.
    np.testing.assert_allclose(direct * fine**2, signal, atol=1e-4 * np.abs(signal).max())


@pytest.mark.parametrize("matrix", [64, 63])
def test_raster_is_the_mean_over_pixels_in_the_output_orientation(states, matrix):
    plain = phantom.image(ellipses_of(states[1]), (matrix | 1, matrix | 1), (PIXEL, PIXEL), subpixels=24)[::-1, ::-1]
    image = raster(states[1], matrix, PIXEL, 24)
    # An even image has one row and column more at the start, so the odd one is compared where both are.
    image, plain = (image[1:, 1:], plain[1:-1, 1:-1]) if matrix % 2 == 0 else (image, plain)
    assert image.shape == plain.shape
    assert np.abs(image - plain).max() < 0.03
    assert np.linalg.norm(image - plain) < 3e-3 * np.linalg.norm(plain)


def test_raster_keeps_the_area_and_cuts_at_the_edge():
    one = as_parameters(phantom.Ellipse(0.011, -0.02, 0.03, 0.013, 0.7, 2.0))
    assert raster(one, 64, PIXEL, 32).sum() * PIXEL**2 == pytest.approx(2 * np.pi * 0.03 * 0.013, rel=1e-3)
    tiny = as_parameters(phantom.Ellipse(0.011, -0.02, 1e-4, 2e-4, 0.7, 2.0))
    assert raster(tiny, 64, PIXEL, 512).sum() * PIXEL**2 == pytest.approx(2 * np.pi * 2e-8, rel=2e-2)
    assert np.argwhere(raster(tiny, 64, PIXEL, 512))[:, 0].tolist() == [32 + 5]
    beyond = as_parameters(phantom.Ellipse(-0.13, 0.0, 0.03, 0.013, 0.3, 1.0))
    np.testing.assert_allclose(raster(beyond, 64, PIXEL), raster(beyond, 96, PIXEL)[16:80, 16:80], atol=1e-12)
    outside = as_parameters(phantom.Ellipse(0.5, 0.5, 0.03, 0.013, 0.3, 1.0))
    assert not raster(outside, 64, PIXEL).any()


def test_chest_moves_as_told_and_is_not_symmetric(states):
    relaxed, contracted = chest([0.0, 1.0], 0.0)
    assert (relaxed[:, 2:4].prod(1) * relaxed[:, 5]).sum() > (contracted[:, 2:4].prod(1) * contracted[:, 5]).sum()
    image = raster(relaxed, 64, PIXEL)
    assert (image * np.arange(64)).sum() / image.sum() > 32.3  # the heart is on the right of the image
    for flipped in (image[::-1], image[:, ::-1], image.T):
        assert np.linalg.norm(image - flipped) > 0.2 * np.linalg.norm(image)
    for state in (*chest(np.linspace(0, 1, 5), np.linspace(1.3, 0, 5)), *states):
        density = raster(state, 64, PIXEL)
        assert density.min() > -1e-9
        assert 0.9 < density.max() < 1.3
        assert not density[[0, -1]].any()
        assert not density[:, [0, -1]].any()  # inside the field of view
    larger = chest(0.3, 0.5, 0.0, 2 * 0.256)
    np.testing.assert_allclose(larger[..., :4], 2 * chest(0.3, 0.5)[..., :4])


@pytest.mark.parametrize("count", [1, 2, 8, 12])
def test_coils(count):
    coils = array_coils(count, 0.2)
    maps = coil_maps(coils, 40, 5e-3)
    assert maps.shape == (count, 40, 40)
    rssq = np.sqrt((np.abs(maps) ** 2).sum(0))
    assert 0.2 < rssq.min() <= rssq.max() < 1.3
    assert np.linalg.matrix_rank(maps.reshape(count, -1), 1e-3) == min(count, 8)
    # Pixel (row, column) shows x = -(column - 20) pixels, y = -(row - 20) pixels.
    np.testing.assert_allclose(maps[:, 7, 31], coils.maps(-11 * 5e-3, 13 * 5e-3))


def test_shapes_are_checked(states):
    with pytest.raises(ValueError, match=r"expected \[arms, n, 6\]"):
        moving_kspace(states[0], np.zeros((1, 4, 2)), array_coils(2))
    with pytest.raises(ValueError, match="ellipses are"):
        moving_kspace(states, np.zeros((2, 4, 2)), array_coils(2))
