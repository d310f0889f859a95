"""Frames of the moving window against frames gridded anew."""

import numpy as np
import pytest

from recon.fieldplan import FieldPlan
from recon.nufft import ArmPlan
from recon.slidingwindow import SlidingWindow

ARMS = 13


@pytest.fixture(scope="module")
def plan():
    rng = np.random.default_rng(1)
    return ArmPlan((rng.random((ARMS, 20, 2)) - 0.5) * 8, (8, 9), rng.random(20))


def arm_data(number):
    """Return the samples of the n-th arm of an endless scan, 2 coils."""
    rng = np.random.default_rng(number)
    return (rng.standard_normal((2, 20)) + 1j * rng.standard_normal((2, 20))).astype(np.complex64)


def fresh_grid(plan, numbers):
    grid = plan.zeros(2).astype(complex)
    for number in numbers:
        arm = plan.zeros(2)
        plan.add_arm(arm, number % ARMS, arm_data(number))
        grid += arm
    return grid


@pytest.mark.parametrize(
    ("length", "shift"),
    [(1, 1), (1, 3), (4, 1), (5, 5), (6, 3), (6, 2), (5, 2), (7, 4), (3, 7), (8, 9), (55, 17), (17, 55)],
)
def test_every_frame_is_the_sum_of_its_arms(plan, length, shift):
    window = SlidingWindow(plan, 2, length, shift)
    total = 3 * length + 4 * shift + 1

    frames = {}
    for number in range(total):
        grid = window.add(number % ARMS, arm_data(number))
        if grid is not None:
            frames[number] = grid

    assert list(frames) == list(range(length - 1, total, shift))
    for last, grid in frames.items():
        truth = fresh_grid(plan, range(last - length + 1, last + 1))
        assert np.linalg.norm(grid - truth) < 1e-6 * np.linalg.norm(truth)


def test_refused_arm_does_not_count(plan):
    window = SlidingWindow(plan, 2, 2, 2)
    window.add(0, arm_data(0))

    with pytest.raises(ValueError, match="data is"):
        window.add(1, np.ones((2, 7), np.complex64))

    assert window.add(1, arm_data(1)) is not None


def test_frames_stay_as_they_were(plan):
    window = SlidingWindow(plan, 2, 6, 2)
    frames = [frame for n in range(30) if (frame := window.add(n % ARMS, arm_data(n))) is not None]

    for index, frame in enumerate(frames):
        np.testing.assert_allclose(frame, fresh_grid(plan, range(2 * index, 2 * index + 6)), atol=1e-5)


def test_no_drift_and_no_growth_over_50000_arms(plan, monkeypatch):
    length, shift, total = 55, 17, 50_000
    made = []
    zeros = plan.zeros
    monkeypatch.setattr(plan, "zeros", lambda coils: made.append(coils) or zeros(coils))
    window = SlidingWindow(plan, 2, length, shift)
    samples = [1e3 * arm_data(n) if n < total // 2 else arm_data(n) for n in (0, total)]

    last, frame, made_early = 0, None, 0
    for number in range(total):
        # Large values first: what a running sum would leave behind of them would show in the small ones.
        grid = window.add(number % ARMS, samples[0] if number < total // 2 else samples[1])
        if grid is not None:
            last, frame = number, grid
        if number == 1000:
            made_early = len(made)

    truth = zeros(2)
    for number in range(last - length + 1, last + 1):
        plan.add_arm(truth, number % ARMS, samples[1])
    assert np.linalg.norm(frame - truth) < 1e-6 * np.linalg.norm(truth)
    assert len(made) == made_early <= 2 * (length // shift) + 3


@pytest.mark.parametrize("numbers", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_numbers_below_one_are_refused(plan, numbers):
    with pytest.raises(ValueError, match="is 0, expected 1 or more"):
        SlidingWindow(plan, *numbers)


@pytest.mark.parametrize("with_terms", [False, True])
def test_gpu_does_the_same(cupy, plan, with_terms):
    from recon.arrays import to_host

    rng = np.random.default_rng(1)
    gpu = ArmPlan((rng.random((ARMS, 20, 2)) - 0.5) * 8, (8, 9), rng.random(20), gpu_device=0)
    plans = [gpu, plan]
    if with_terms:
        spatial, temporal = (
            (rng.standard_normal(size) + 1j * rng.standard_normal(size)).astype(np.complex64)
            for size in ((3, 8, 9), (ARMS, 3, 20))
        )
        plans = [FieldPlan(each, spatial, temporal) for each in plans]
    windows = [SlidingWindow(each, 2, 5, 2) for each in plans]

    for number in range(20):
        on_gpu, on_cpu = (window.add(number % ARMS, arm_data(number)) for window in windows)
        assert (on_gpu is None) == (on_cpu is None)
        if on_gpu is not None:
            images = [to_host(each.image(grid)) for each, grid in zip(plans, (on_gpu, on_cpu), strict=True)]
            np.testing.assert_allclose(*images, atol=1e-4 * abs(images[1]).max())
