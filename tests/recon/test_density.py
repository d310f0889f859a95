"""Density compensation: scale, uniformity, samples at one place, the point spread function of each kind of scan."""

import numpy as np
import pytest

from recon import density, nufft
from recon.density import compensation, weights_of_arms
from simulation import trajectories
from simulation.phantom import Ellipse, kspace

FOV, RESOLUTION = 0.12, 2.5e-3
DISC = Ellipse(0.011, -0.017, 0.03, 0.02, 0.4, 1.0)


def full(kind, golden=False):
    arms, options = {
        "radial": (76, {}),
        "rosette": (90, {}),
        "spiral": (12, {"interleaves": 12}),
        "variable": (8, {"interleaves": 8, "density_power": 1.6}),
    }[kind]
    make = getattr(trajectories, "spiral" if kind == "variable" else kind)
    return make(FOV, RESOLUTION, arms * (3 if golden else 1), golden, **options)


@pytest.mark.parametrize("golden", [False, True])
@pytest.mark.parametrize("kind", ["radial", "rosette", "spiral", "variable"])
def test_object_has_its_density_and_shape(kind, golden):
    k = full(kind, golden)
    weights = compensation(k, (FOV, FOV))
    assert weights.min() > 0
    data = kspace([DISC], k[..., 0], k[..., 1])
    (image,) = nufft.adjoint(k * FOV, data[np.newaxis], (48, 48), weights)
    x = -(np.arange(48) - 24) * RESOLUTION
    distance = np.hypot((x - DISC.x)[np.newaxis], (x - DISC.y)[:, np.newaxis])
    assert abs(image[distance < 0.012].mean() - 1) < 0.01
    assert abs(image[distance > 0.04]).mean() < 0.01


def test_arms_that_are_repeated_share_their_weight():
    k = full("spiral")
    once, twice = compensation(k, (FOV, FOV)), compensation(np.concatenate([k, k]), (FOV, FOV))
    np.testing.assert_allclose(twice[:12] + twice[12:], once, rtol=1e-3)


def test_samples_at_which_the_arms_rest_do_not_make_the_centre_heavy():
    """As when the receiver runs before the gradients do: 200 samples of each arm at k = 0."""
    k = full("spiral")
    resting = compensation(np.concatenate([np.zeros((len(k), 200, 2)), k], axis=1), (FOV, FOV))
    weights = compensation(k, (FOV, FOV))
    np.testing.assert_allclose(resting[:, 201:], weights[:, 1:], rtol=1e-3)
    assert resting[:, :201].sum() == pytest.approx(weights[:, 0].sum(), rel=1e-3)


def test_many_turned_copies_have_the_weights_of_the_first_ones(monkeypatch):
    k = full("spiral", golden=True)
    every = weights_of_arms(k, (FOV, FOV))
    monkeypatch.setattr(density, "MANY_SAMPLES", 12 * k.shape[1])
    some = weights_of_arms(k, (FOV, FOV))
    assert every.max() == some.max() == 1
    np.testing.assert_array_equal(some, some[:1].repeat(len(k), axis=0))
    other = k * np.linspace(0.5, 1, len(k))[:, np.newaxis, np.newaxis]  # no copies
    monkeypatch.setattr(density, "compensation", lambda k, _: np.ones(k.shape[:2]) * np.arange(1, len(k) + 1)[:, None])
    assert len(np.unique(weights_of_arms(other, (FOV, FOV)))) == len(k)


def test_weights_follow_the_field_of_view_of_each_axis():
    k = full("radial")
    square, stretched = compensation(k, (FOV, FOV)), compensation(k * (1, 2), (FOV, FOV / 2))
    np.testing.assert_allclose(stretched, 2 * square, rtol=1e-3)


@pytest.mark.parametrize(
    "k", [np.zeros((4, 2)), np.zeros((2, 4, 3)), np.full((1, 4, 2), np.nan)], ids=["axes", "dimensions", "nan"]
)
def test_what_is_no_trajectory_is_refused(k):
    with pytest.raises(ValueError, match=r"expected \[arm, sample, 2\]"):
        compensation(k, (FOV, FOV))
