import dataclasses

import numpy as np
import pytest

from GIRF import checked_response
from recon.trajectory import read_metafile, write_metafile
from simulation.spiraldesign import (
    GAMMA_BAR,
    SpiralDesign,
    arm_rotation,
    density_weights,
    design_spiral,
    spiral_arm,
    synthetic_girf,
)

SMALL = SpiralDesign(fov=0.2, resolution=4e-3, interleaves=12, arms=21, pre_discard=3)
DESIGNS = {
    "usual": SpiralDesign(),
    "gradient-limited": SpiralDesign(gradient=12e-3, interleaves=8),
    "single shot": dataclasses.replace(SMALL, interleaves=1),
    "odd sizes": SpiralDesign(fov=0.3, resolution=2.3e-3, dwell=1.3e-6, slew=60.0, interleaves=16),
}


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_gradients_use_their_limits_and_keep_them(design):
    arm = spiral_arm(design)
    gradient = np.diff(arm) / (GAMMA_BAR * design.dwell)
    slew = np.diff(gradient, prepend=0) / design.dwell
    assert np.abs(gradient).max() <= 1.001 * design.gradient
    assert np.abs(slew).max() <= 1.002 * design.slew
    slow = np.abs(gradient[1:]) < 0.99 * design.gradient
    assert np.abs(slew[1:])[slow].min() > 0.98 * design.slew  # nothing is given away
    if design is DESIGNS["gradient-limited"]:
        assert np.abs(gradient).max() > 0.999 * design.gradient


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_turns_are_as_far_apart_as_the_field_of_view_asks(design):
    arm = spiral_arm(design)
    angle = np.unwrap(np.angle(arm[1:]))
    pitch = np.polyfit(angle, np.abs(arm[1:]), 1)[0] * 2 * np.pi / design.interleaves
    assert pitch == pytest.approx(1 / design.fov, rel=1e-3)
    assert arm[0] == 0
    assert (arm.size + design.pre_discard) % 2 == 0
    step = np.abs(np.diff(arm)).max()
    assert 0.5 / design.resolution - 2 * step < np.abs(arm[-1]) <= 0.5 / design.resolution * (1 + 1e-9)


def test_weights_sum_to_the_area_of_the_disc():
    arm = spiral_arm(SMALL)
    weights = density_weights(arm)
    assert weights.max() == 1
    radius, step = np.abs(arm[-1]), np.abs(arm[-1]) - np.abs(arm[-2])
    unit = (np.abs(arm[200:202]).mean() ** 2 - np.abs(arm[199:201]).mean() ** 2) / weights[200]
    assert weights.sum() * unit == pytest.approx((radius + step / 2) ** 2, rel=1e-9)


@pytest.mark.parametrize("ordering", ["ga", "linear"])
def test_arms_are_turned(ordering):
    design = dataclasses.replace(SMALL, ordering=ordering)
    trajectory = design_spiral(design)
    assert trajectory.arms == trajectory.interleaves == (21 if ordering == "ga" else 12)
    complex_k = trajectory.k[..., 0] + 1j * trajectory.k[..., 1]
    turn = np.exp(1j * np.radians(arm_rotation(design)))
    np.testing.assert_allclose(complex_k[1:], complex_k[:-1] * turn, atol=1e-9)
    assert arm_rotation(design) == pytest.approx(137.50776 if ordering == "ga" else 30)


def test_metafile_round_trip_under_its_signature(tmp_path):
    trajectory = design_spiral(SMALL, tmp_path)
    file = write_metafile(trajectory)
    assert len(file.stem) == 32
    assert set(file.stem) <= set("0123456789abcdef")
    read = read_metafile(file)
    np.testing.assert_array_equal(read.k, trajectory.k)
    np.testing.assert_array_equal(read.weights, trajectory.weights)
    assert (read.dwell, read.pre_discard, read.arm_ordering) == (2e-6, 3, "ga")
    assert (read.fov, read.resolution) == pytest.approx((0.2, 4e-3))


def test_signature_depends_on_the_content():
    designs = (SMALL, dataclasses.replace(SMALL, pre_discard=4), *DESIGNS.values())
    assert len({design_spiral(design).file for design in designs}) == 6
    assert design_spiral(SMALL).file == design_spiral(SMALL).file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fov": 0.0}, "fov is 0"),
        ({"slew": float("nan")}, "slew is nan"),
        ({"interleaves": 0}, "interleaves is 0, must be at least 1"),
        ({"ordering": "random"}, "ordering is 'random', must be ga or linear"),
        ({"resolution": 0.15}, "no two pixels"),
        ({"slew": 1e-3}, "samples, must have 8 to"),
        ({"dwell": 1e-3}, "samples, must have 8 to"),
    ],
)
def test_impossible_designs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        design_spiral(dataclasses.replace(SMALL, **change))


def test_synthetic_response_is_that_of_a_real_system():
    response = checked_response(synthetic_girf())
    assert response.shape == (3800, 3)
    assert response[1900] == pytest.approx(np.ones(3))
    np.testing.assert_allclose(response[1901:], np.conj(response[1899:0:-1]), atol=1e-12)  # real impulse response
    assert np.abs(response).max() <= 1 + 1e-9
    assert np.abs(response[0]).max() < 0.8
