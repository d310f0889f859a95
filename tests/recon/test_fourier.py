import numpy as np
import pytest

import coils
from recon import fourier


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_centred_transforms_are_the_direct_sum(size):
    x = np.random.default_rng(0).standard_normal((3, size)) + 1j
    n = np.arange(size) - size // 2
    matrix = np.exp(-2j * np.pi * np.outer(n, n) / size)
    np.testing.assert_allclose(fourier.centred_fft(x, 1), x @ matrix, atol=1e-12)
    np.testing.assert_allclose(fourier.centred_ifft(x, 1), x @ matrix.conj() / size, atol=1e-12)


@pytest.mark.parametrize("old", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("new", [1, 4, 5, 6, 7])
def test_resize_keeps_the_centre(old, new):
    data = np.broadcast_to(np.arange(old) - old // 2 + 100, (2, old))
    resized = fourier.resize_centred(data, new, 1)
    expected = np.arange(new) - new // 2
    inside = (expected >= -(old // 2)) & (expected < old - old // 2)
    np.testing.assert_array_equal(resized, np.broadcast_to(np.where(inside, expected + 100, 0), (2, new)))


@pytest.mark.parametrize("size", [4, 5])
def test_mirror_keeps_the_centre_and_is_its_own_inverse(size):
    data = np.arange(size)
    mirrored = fourier.mirror(data, [0])
    for offset in range(-((size - 1) // 2), (size - 1) // 2 + 1):
        assert mirrored[size // 2 + offset] == data[size // 2 - offset]
    np.testing.assert_array_equal(fourier.mirror(mirrored, [0]), data)


def test_root_sum_of_squares():
    image = np.array([[3.0 + 0j], [4j]])
    np.testing.assert_allclose(coils.rssq(image), [5.0])
