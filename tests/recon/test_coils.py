"""Coil maps against known sensitivities."""

import numpy as np
import pytest

import coils


def positions(shape):
    """Return coordinates from -1 to 1 along each axis, 0 at pixel n//2."""
    return np.meshgrid(*((np.arange(n) - n // 2) / n * 2 for n in shape), indexing="ij")


def make_phantom(shape, number, noise=0.0, seed=0):
    """Return images [coil, ...], true normalised maps and the object, which is lopsided and has an empty surround."""
    axes = positions(shape)
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((number, len(shape)))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    maps = np.stack(
        [
            np.exp(-sum((x - 1.1 * c) ** 2 for x, c in zip(axes, centre, strict=True)) / 1.5)
            * np.exp(1j * (axes[0] * centre[0] + 1.3 * axes[-1] + 2 * i))
            for i, centre in enumerate(centres)
        ]
    )
    maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    truth = 1.0 * (sum((x / 0.8) ** 2 for x in axes) < 1) + 0.8 * (sum((x - 0.3) ** 2 for x in axes) < 0.06)
    images = maps * truth
    images = images + noise * (rng.standard_normal(images.shape) + 1j * rng.standard_normal(images.shape))
    return images.astype(np.complex64), maps, truth


def length(maps):
    return np.sqrt((np.abs(maps) ** 2).sum(axis=0))


@pytest.mark.parametrize(
    ("shape", "number", "smoothing"),
    [((64, 64), 8, 5), ((61, 48), 5, 5), ((33, 47), 1, 5), ((16, 25, 22), 4, 3)],
)
def test_inati_finds_the_maps(shape, number, smoothing):
    images, truth, phantom = make_phantom(shape, number, noise=0.01)
    before = images.copy()

    maps, combined = coils.inati(images, smoothing)

    inside = phantom > 0
    agreement = np.abs((maps.conj() * truth).sum(axis=0))
    assert maps.dtype == combined.dtype == np.complex64
    assert agreement[inside].mean() > 0.997
    assert agreement[inside].min() > 0.99
    np.testing.assert_allclose(length(maps), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs(combined)[inside], phantom[inside], atol=0.06)
    np.testing.assert_array_equal(images, before)


def test_inati_phase_is_smooth():
    images, _, phantom = make_phantom((64, 65), 6, noise=0.005)

    maps, _ = coils.inati(images)

    for axis in (0, 1):
        first, second = (np.delete(maps, drop, axis=axis + 1) for drop in (-1, 0))
        inside = (np.delete(phantom, -1, axis=axis) > 0) & (np.delete(phantom, 0, axis=axis) > 0)
        assert (first.conj() * second).sum(axis=0).real[inside].min() > 0.98


def test_inati_puts_nothing_elsewhere():
    """One bright pixel may touch the maps of its block and nothing else, on an odd matrix."""
    images = np.zeros((2, 21, 23), np.complex64)
    images[0] = 1
    images[1, 4, 17] = 100

    maps, _ = coils.inati(images, smoothing=3)

    touched = np.abs(maps[1]) > 0.5
    expected = np.zeros((21, 23), bool)
    expected[3:6, 16:19] = True
    np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_inati_does_not_depend_on_the_scale(scale):
    images, _, _ = make_phantom((32, 32), 4, noise=0.01)

    maps, _ = coils.inati(images * np.float32(scale))

    np.testing.assert_allclose(maps, coils.inati(images)[0], atol=1e-4)


@pytest.mark.parametrize("signal", ["nothing", "noise", "object without noise", "coils that cancel"])
def test_inati_stays_finite(signal):
    images, _, _ = make_phantom((24, 31), 3, noise=0 if signal == "object without noise" else 1e-3)
    if signal == "nothing":
        images[:] = 0
    elif signal == "noise":
        images -= make_phantom((24, 31), 3)[0]
    elif signal == "coils that cancel":
        images[:] = np.array([1, -1, 0])[:, None, None] * (np.arange(31) - 15)

    maps, combined = coils.inati(images)

    assert np.isfinite(maps).all()
    assert np.isfinite(combined).all()
    np.testing.assert_allclose(length(maps), 1, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros((2, 4, 4)),),
        (np.zeros((4, 4), np.complex64),),
        (np.zeros((2, 0, 4), np.complex64),),
        (np.zeros((2, 4, 4), np.complex64), 4),
        (np.zeros((2, 4, 4), np.complex64), 5, 0),
    ],
)
def test_inati_refuses(arguments):
    with pytest.raises(ValueError, match="expected"):
        coils.inati(*arguments)


def test_rssq_and_combine():
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((3, 5, 4)) + 1j * rng.standard_normal((3, 5, 4))
    maps /= length(maps)
    image = rng.standard_normal((5, 4)) + 1j * rng.standard_normal((5, 4))

    np.testing.assert_allclose(coils.combine(maps * image, maps), image, rtol=1e-12)
    np.testing.assert_allclose(coils.rssq(maps * image), np.abs(image), rtol=1e-12)
    np.testing.assert_allclose(coils.rssq(np.moveaxis(maps, 0, 2), axis=2), 1, rtol=1e-12)
    with pytest.raises(ValueError, match=r"images are \(2, 5, 4\), maps \(3, 5, 4\)"):
        coils.combine(maps[:2], maps)


def bandlimited_maps(size, field_of_view, highest):
    """Return maps [2, y, x] made of waves that fit into twice the field of view, on pixels around 0 at size//2."""
    rng = np.random.default_rng(2)
    frequencies = np.arange(-highest, highest + 1)
    waves = [
        np.exp(2j * np.pi * np.outer((np.arange(n) - n // 2) / n * f / 2, frequencies))
        for n, f in zip(size, field_of_view, strict=True)
    ]
    amplitudes = rng.standard_normal((2, len(frequencies), len(frequencies)))
    return np.einsum("ya,xb,cab->cyx", *waves, amplitudes)


@pytest.mark.parametrize("low", [(16, 16), (15, 16), (13, 15)])
@pytest.mark.parametrize("shape", [(32, 32), (33, 31), (24, 45), (7, 7)])
def test_upsampled_maps_are_exact(low, shape):
    highest = 5 if min(shape) > 10 else 3
    maps = bandlimited_maps(low, (2, 2), highest)
    truth = bandlimited_maps(shape, (1, 1), highest)

    result = coils.upsample_maps(maps, shape)

    np.testing.assert_allclose(result, truth / length(truth), atol=1e-6)


def test_upsampling_interpolates_the_highest_frequency():
    maps = np.stack([np.tile([1.0, 3.0], (6, 3)), np.full((6, 6), 2.0)]) + 0j

    result = coils.upsample_maps(maps, (6, 12), oversampling=1)

    ratio = result[0] / result[1]
    np.testing.assert_allclose(ratio[:, ::2], maps[0] / maps[1], atol=1e-12)
    np.testing.assert_allclose(ratio[:, 1::2], 1, atol=1e-12)


def test_upsampling_keeps_empty_maps_and_refuses_fractions():
    assert not coils.upsample_maps(np.zeros((2, 8, 8), complex), (9, 9)).any()
    with pytest.raises(ValueError, match=r"oversampling 1.5 of 9 pixels is no whole number"):
        coils.upsample_maps(np.zeros((2, 8, 8), complex), (8, 9), oversampling=1.5)
    with pytest.raises(ValueError, match=r"expected \[coil, y, x\]"):
        coils.upsample_maps(np.zeros((8, 8), complex), (8, 8))


def test_gpu_does_the_same(cupy):
    from recon.arrays import to_host

    images, _, _ = make_phantom((61, 48), 5, noise=0.01)
    maps, combined = coils.inati(cupy.asarray(images))

    for on_gpu, on_cpu in zip((maps, combined), coils.inati(images), strict=True):
        np.testing.assert_allclose(to_host(on_gpu), on_cpu, atol=1e-4)
    upsampled = coils.upsample_maps(maps, (61, 64))
    np.testing.assert_allclose(to_host(upsampled), coils.upsample_maps(to_host(maps), (61, 64)), atol=1e-5)
