"""Partial Fourier against the whole k-space of an object in closed form, whose coils give its image a smooth phase."""

import numpy as np
import pytest

import coils
from recon import partialfourier
from recon.fourier import centred_ifft
from simulation import phantom

FOV = 0.2  # [m]
AXES = {"partition": 1, "row": 2, "sample": 3}


def whole(axis, points, other=40, shift=0.0):
    """K-space [coil, partition, row, sample] with `points` along one axis and 1 along one; the echo may be shifted."""
    first, second = ((np.arange(size) - size // 2) / FOV for size in (points, other))
    kspace = phantom.ring_of_coils(4, FOV).kspace(
        phantom.shepp_logan(0.9 * FOV), second[np.newaxis], first[:, np.newaxis] + shift / FOV, dtype=np.complex64
    )
    return {
        "partition": kspace[:, :, np.newaxis],
        "row": kspace[:, np.newaxis],
        "sample": kspace.swapaxes(1, 2)[:, np.newaxis],
    }[axis]


def cut(kspace, **kept):
    """K-space with only some points along axes; returns it with its extents."""
    extents = [kept.get(axis, (0, kspace.shape[number])) for axis, number in AXES.items()]
    box = tuple(slice(*extent) for extent in extents)
    partial = np.zeros_like(kspace)
    partial[(slice(None), *box)] = kspace[(slice(None), *box)]
    return partial, extents


def image(kspace):
    for axis in (1, 2, 3):
        kspace = centred_ifft(kspace, axis)
    return coils.rssq(kspace)


def gain(kspace, expected, **kept):
    """Error of POCS over that of zero-filling."""
    partial, extents = cut(kspace, **kept)
    filled = partialfourier.pocs(partial, extents)
    assert filled.dtype == np.complex64
    truth = image(expected)
    return np.linalg.norm(image(filled) - truth) / np.linalg.norm(image(partial) - truth)


def noisy(kspace, level=0.01):
    """Noise of that standard deviation in the image over its maximum."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(kspace.shape) + 1j * random.standard_normal(kspace.shape)
    return (kspace + level * image(kspace).max() * np.sqrt(kspace[0].size / 2) * noise).astype(np.complex64)


@pytest.mark.parametrize("missing", ["beginning", "end"])
@pytest.mark.parametrize(("fraction", "limit"), [(0.625, 0.55), (0.75, 0.8)])
@pytest.mark.parametrize(
    ("axis", "points", "shift"),
    [("row", 64, 0), ("row", 65, 0), ("row", 64, 0.7), ("partition", 48, 0), ("sample", 64, 0), ("sample", 57, -2.5)],
)
def test_it_beats_zero_filling(axis, points, shift, fraction, limit, missing):
    kspace = whole(axis, points, shift=shift)
    number = round(fraction * points)
    kept = (points - number, points) if missing == "beginning" else (0, number)
    assert gain(noisy(kspace), kspace, **{axis: kept}) < limit


@pytest.mark.parametrize("missing", ["beginning", "end"])
def test_the_point_without_a_counterpart_does_no_harm(missing):
    """Row 0 of an even size has none: iterated without that care it grows until zero-filling is better."""
    kspace = whole("row", 96)
    assert gain(kspace, kspace, row=(12, 96) if missing == "beginning" else (0, 84)) < 0.8


def test_two_axes_at_once():
    kspace = whole("row", 64, other=56)
    assert gain(noisy(kspace), kspace, row=(0, 40), sample=(20, 56)) < 0.7


def test_what_was_measured_stays_but_for_the_transition():
    partial, extents = cut(whole("row", 64), row=(20, 64))
    filled = partialfourier.pocs(partial, extents)
    np.testing.assert_allclose(filled[:, :, 24:], partial[:, :, 24:], atol=1e-5 * np.abs(partial).max())
    assert np.abs(filled[:, :, 1:20]).max() > 0


@pytest.mark.parametrize("kept", [(0, 64), (8, 57), (9, 56)])
def test_a_symmetric_extent_is_not_touched(kept):
    """A lower resolution is no partial Fourier."""
    partial, extents = cut(whole("row", 64), row=kept)
    assert partialfourier.pocs(partial, extents) is partial


def test_too_few_points_beyond_the_peak_leave_zeros_and_a_word():
    partial, extents = cut(whole("row", 64), row=(29, 64))
    texts = []
    assert partialfourier.pocs(partial, extents, texts.append) is partial
    assert "row axis: 3 of 64" in texts[0]


def test_an_extent_outside_the_axis_is_named():
    with pytest.raises(ValueError, match=r"row axis is 3 to 65"):
        partialfourier.pocs(np.zeros((1, 1, 64, 8), np.complex64), [(0, 1), (3, 65), (0, 8)])


def test_zeros_stay_zeros():
    zeros = np.zeros((1, 1, 64, 8), np.complex64)
    np.testing.assert_array_equal(partialfourier.pocs(zeros, [(0, 1), (20, 64), (0, 8)], lambda text: None), zeros)


def test_extent_of():
    assert partialfourier.extent_of(np.array([0, 0, 1, 0, 1, 0], bool)) == (2, 5)
    assert partialfourier.extent_of(np.zeros(3, bool)) == (0, 0)
