"""Transforms in place, by each of the libraries."""

import sys

import numpy as np
import pyfftw
import pytest
import scipy.fft

from solvers import transforms
from solvers.transforms import FftwTransform, Transform, open_transform


@pytest.mark.parametrize("shape", [(4, 5), (3, 8, 6), (2, 3, 16, 16), (1, 7)])
@pytest.mark.parametrize("kind", ["scipy", "fftw"])
def test_forward_and_inverse(shape, kind):
    transform = Transform(shape, scipy.fft) if kind == "scipy" else FftwTransform(shape, pyfftw)
    assert transform.buffer.shape == shape
    assert not transform.buffer.any()
    rng = np.random.default_rng(1)
    images = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    transform.buffer[...] = images
    transform.forward()
    np.testing.assert_allclose(transform.buffer, np.fft.fft2(images), atol=1e-4)
    transform.inverse()
    np.testing.assert_allclose(transform.buffer / (shape[-1] * shape[-2]), images, atol=1e-5)


def test_without_fftw_scipy_is_used(monkeypatch, caplog):
    assert isinstance(open_transform((4, 4)), FftwTransform)
    monkeypatch.setitem(sys.modules, "pyfftw", None)
    transforms._pyfftw.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert type(open_transform((4, 4))) is Transform
        assert "pyfftw is not installed" in caplog.text
    finally:
        transforms._pyfftw.cache_clear()
