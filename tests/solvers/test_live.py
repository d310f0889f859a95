"""The live window: its operators, its steps, and its images against the truth and the batch solver."""

from types import SimpleNamespace

import numpy as np
import pytest

from recon.arrays import to_host
from recon.fieldcorrection import Correction
from recon.readouts import data_scale
from solvers import arrivingframe, calibration, live, livestart, native_recon
from solvers.arrivingframe import ArmTables, ArrivingFrame
from solvers.backends import LAMBDA_FRAMES
from solvers.linops import ArmFields, Encoding, HeldDifference
from solvers.native_recon import Penalty
from solvers.team import Team
from spiral_sessions import change, error, received, small_scan, true_images

ARMS, FRAMES, STEADY = 7, 40, 20  # frames from STEADY on are compared: those before give maps and scale
LAMBDA = 0.00008


def random_complex(*shape, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.fixture(scope="module")
def team():
    with Team(1) as team:
        yield team


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), 40, 20, readouts=ARMS * FRAMES, heart_rate=75)


@pytest.fixture(scope="module")
def readouts(simulation):
    return received(simulation)


@pytest.fixture(scope="module")
def truth(simulation):
    return true_images(simulation, [range(ARMS * n, ARMS * (n + 1)) for n in range(STEADY, FRAMES)])


@pytest.fixture(scope="module")
def tables(readouts, team):
    return ArmTables(readouts.coordinates, (readouts.matrix, readouts.matrix), team)


def movie(readouts, tables, team, *, lag=0, window=4, iterations=6, reg_lambda=LAMBDA, everywhere=False):
    """Live images of the frames from STEADY on [frame, row, column], for data over their scale."""
    start = livestart.begin(
        readouts,
        lambda correction: tables,
        arms=ARMS,
        weight=reg_lambda * LAMBDA_FRAMES,
        window_frames=window,
        team=team,
    )
    images = []
    for frame in range(FRAMES):
        for n in range(frame * ARMS, (frame + 1) * ARMS):
            start.arriving.add(readouts.columns[n], readouts.samples[n])
        start.window.advance(*start.arriving.take())
        for _ in range(iterations):
            start.window.refine(window if everywhere else live.NEWEST)
        images.append(to_host(start.window.image(min(lag, frame))))
        start.window.refine(window)
    images += [to_host(start.window.image(lag - n)) for n in range(1, lag + 1)]
    return np.array(images[lag:])[STEADY:]


def test_held_differences_are_those_behind_a_frame_of_zeros():
    images, difference = random_complex(5, 6), HeldDifference()
    np.testing.assert_allclose(difference(images), np.diff(images, axis=0, prepend=0), rtol=1e-6)
    other = random_complex(5, 6, seed=2)
    np.testing.assert_allclose(
        np.vdot(difference(images), other), np.vdot(images, difference.adjoint(other)), rtol=1e-5
    )
    modes = difference.modes(images)
    np.testing.assert_allclose(difference.modes(modes, inverse=True), images, atol=1e-5)
    through_modes = difference.modes(difference.eigenvalues(5)[:, np.newaxis] * modes, inverse=True)
    np.testing.assert_allclose(through_modes, difference.adjoint(difference(images)), atol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_frame_built_up_arm_by_arm_has_the_batch_solvers_operators(readouts, team, monkeypatch, kept):
    monkeypatch.setattr("solvers.arrivingframe.KERNEL_BYTES", 1 << 40 if kept else 0)
    tables = ArmTables(readouts.coordinates[:12], (readouts.matrix, readouts.matrix), team)
    maps, mixing = random_complex(2, readouts.matrix, readouts.matrix), random_complex(2, 4, seed=3)
    arriving = ArrivingFrame(tables, maps, mixing, 2.0)
    for frame in ([0, 5, 2], [7, 11], []):  # two in a row: nothing of the first is left in the second
        for n in frame:
            arriving.add(n, readouts.samples[n])
        kernel, adjoint = arriving.take()
        if not frame:
            assert not kernel.any()
            assert not adjoint.any()
            continue
        encoding = Encoding(readouts.coordinates[np.newaxis, frame], None, maps, team)
        expected = encoding.adjoint(readouts.samples[np.newaxis, frame], mixing)[0] / 2
        np.testing.assert_allclose(adjoint, expected, atol=1e-4 * abs(expected).max())
        np.testing.assert_allclose(kernel, encoding.kernels()[0], atol=1e-5 * abs(kernel).max())


@pytest.mark.parametrize(
    ("lag", "most_error", "least_change"), [(0, 0.095, 0.96), (1, 0.093, 0.965), (2, 0.092, 0.966)]
)
def test_images_agree_with_the_truth(readouts, tables, team, truth, lag, most_error, least_change):
    images = np.abs(movie(readouts, tables, team, lag=lag))
    assert error(images, truth) < most_error
    assert change(images, truth) > least_change


def test_later_frames_improve_a_frame(readouts, tables, team, truth):
    missed = [1 - change(np.abs(movie(readouts, tables, team, lag=lag)), truth) for lag in (0, 1)]
    assert missed[1] < 0.9 * missed[0]


def test_images_approach_those_of_the_batch_solver(readouts, tables, team):
    """With the same weight, as window, lag and iterations grow."""
    maps = calibration.coil_maps(readouts)
    scale = data_scale(readouts, maps, ARMS, range(5, 20))
    columns = np.reshape(readouts.columns, (FRAMES, ARMS))
    weight = 0.0002 * LAMBDA_FRAMES
    batch = native_recon.reconstruct(
        readouts.samples.reshape(FRAMES, ARMS, *readouts.samples.shape[1:]), readouts.coordinates[columns], maps,
        (Penalty(0, weight, False),), iterations=40, threads=1,
        scale=scale,
    )[STEADY:-6]  # fmt: skip
    batch = np.fft.ifft2(np.fft.fft2(batch) * tables.sampled)
    distances = []
    for options in (
        {"lag": 0, "window": 1, "iterations": 1},
        {"lag": 1, "window": 4, "iterations": 3},
        {"lag": 6, "window": 10, "iterations": 10},
    ):
        images = movie(readouts, tables, team, reg_lambda=0.0002, everywhere=True, **options)[:-6]
        distances.append(np.linalg.norm(scale * images - batch) / np.linalg.norm(batch))
    assert distances[1] < 0.5 * distances[0]
    assert distances[2] < 0.85 * distances[1]
    assert distances[2] < 0.035


@pytest.mark.parametrize("kept", [True, False])
def test_the_gpu_gives_the_same_images(cupy, readouts, team, monkeypatch, kept):
    monkeypatch.setattr("solvers.arrivingframe.KERNEL_BYTES", 1 << 40 if kept else 0)
    shape = (readouts.matrix, readouts.matrix)
    on_cpu, on_gpu = (
        movie(readouts, ArmTables(readouts.coordinates, shape, team, device), team, iterations=2) for device in (-1, 0)
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3 * abs(on_cpu).max())


def test_unsampled_frequencies_stay_as_they_are(readouts, tables, team):
    """The corners of k-space would take up noise, with each frame a little more."""
    images = movie(readouts, tables, team)
    corners = np.abs(np.fft.fft2(images))[:, ~tables.sampled]
    assert corners.size
    np.testing.assert_allclose(corners, 0, atol=1e-4 * np.abs(np.fft.fft2(images)).max())


def test_a_frame_without_data_is_the_one_before_it(readouts, tables, team):
    start = livestart.begin(readouts, lambda correction: tables, arms=ARMS, weight=0.005, window_frames=3, team=team)
    before = start.window.image()
    for _ in range(3):
        start.window.advance(*start.arriving.take())
        start.window.refine(live.NEWEST)
    assert np.isfinite(start.window.image()).all()
    np.testing.assert_allclose(start.window.image(), before, atol=1e-5 * abs(before).max())


def test_without_weight_and_with_many_arms_each_frame_is_its_own_image(team):
    """Least squares: nothing of the frames before is left where the data determine all."""
    rng = np.random.default_rng(4)
    coordinates, maps = (rng.random((6, 90, 2)) - 0.5) * 8, random_complex(2, 8, 8, seed=5)
    tables, images = ArmTables(coordinates, (8, 8), team), random_complex(3, 8, 8, seed=6)
    tables.sampled[:] = True
    encoding = Encoding(np.tile(coordinates, (3, 1, 1, 1)), None, maps, team)
    kernels, adjoints = encoding.kernels(), encoding.adjoint(encoding.forward(images))
    window = live.LiveWindow(maps, kernels[0], 0 * adjoints[0], tables.sampled, weight=0.0, frames=2, team=team)
    for kernel, adjoint, image in zip(kernels, adjoints, images, strict=True):
        window.advance(kernel, adjoint)
        for _ in range(60):
            window.refine(1)
        np.testing.assert_allclose(window.image(), image, atol=2e-2 * abs(image).max())


def test_best_step_leaves_out_a_second_direction_that_adds_nothing():
    assert live.best_step(2.0, 0.0, 0.0, 4.0, 0.0) == (2.0, 0.0)
    assert live.best_step(2.0, 2.0, 2.0, 4.0, 4.0) == (2.0, 0.0)
    assert live.best_step(0.0, 0.0, 0.0, 0.0, 0.0) == (0.0, 0.0)
    matrix, along = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -2.0])
    np.testing.assert_allclose(live.best_step(3.0, 1.0, 2.0, *along), np.linalg.solve(matrix, along))


@pytest.mark.parametrize("kept", [True, False])
def test_an_arriving_frame_with_field_terms_is_that_of_the_encoding(simulation, monkeypatch, kept):
    """Kernels of single arms kept or not; E^H y of the frame, too."""
    if not kept:
        monkeypatch.setattr(arrivingframe, "KERNEL_BYTES", 0)
    rng = np.random.default_rng(2)
    coordinates = (rng.random((5, 30, 2)) - 0.5) * 12
    temporal = rng.standard_normal((5, 2, 30)).astype(np.complex64)
    terms = SimpleNamespace(spatial=random_complex(2, 12, 12, seed=3))
    maps, mixing = random_complex(2, 12, 12, seed=4), random_complex(2, 3, seed=5)
    samples, arms = random_complex(3, 3, 30, seed=6), [4, 0, 2]
    with Team(2) as team:
        tables = ArmTables(coordinates, (12, 12), team, correction=Correction(terms, temporal))
        arriving = ArrivingFrame(tables, maps, mixing, 2.0)
        for arm, each in zip(arms, samples, strict=True):
            arriving.add(arm, each)
        kernel, adjoint = arriving.take()
        fields = ArmFields(terms.spatial, temporal, np.array([arms]))
        encoding = Encoding(coordinates[np.newaxis, arms], None, maps, team, fields=fields)
        np.testing.assert_allclose(kernel, encoding.kernels()[0], atol=1e-4 * abs(kernel).max())
        expected = encoding.adjoint(samples[np.newaxis], mixing)[0] / 2
        np.testing.assert_allclose(adjoint, expected, atol=1e-3 * abs(expected).max())
