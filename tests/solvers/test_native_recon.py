"""The iterative reconstruction of our own: against independent solvers and limits that are known, and its conduct."""

import threading
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize

from recon import nufft
from recon.conditioning import SampleError, robust_scale
from solvers import native_recon, timekeeper, transforms
from solvers.linops import ArmFields
from solvers.native_recon import Penalty, memory_needed, reconstruct

MANY = {"iterations": 400, "tolerance": 0.0, "threads": 1, "scale": 1.0}


def random_complex(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def scan(frames=(4,), arms=5, length=30, coils=2, shape=(5, 4), noise=0.02, seed=1):
    """Return samples, coordinates, maps of frames that change a little: a step in half of the image."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    maps = random_complex(rng, coils, *shape)
    still = random_complex(rng, *shape)
    images = np.broadcast_to(still, (*frames, *shape)).copy()
    images[frames[0] // 2 :, ..., : ny // 2, :] += 0.5
    coordinates = ((rng.random((*frames, arms, length, 2)) - 0.5) * (nx, ny)).astype(np.float32)
    samples = np.stack([
        matrix_of(coordinates[place], maps) @ images[place].ravel() for place in np.ndindex(frames)
    ]).reshape(*frames, arms, coils, length)  # fmt: skip
    return (samples + noise * random_complex(rng, *samples.shape)).astype(np.complex64), coordinates, maps, images


def matrix_of(coordinates, maps):
    """E of one frame as a matrix [arm * coil * sample, pixel], by direct sums."""
    _, ny, nx = maps.shape
    y, x = np.meshgrid(-(np.arange(ny) - ny // 2) / ny, -(np.arange(nx) - nx // 2) / nx, indexing="ij")
    phase = coordinates[..., 0, None, None].astype(float) * x + coordinates[..., 1, None, None].astype(float) * y
    wave = np.exp(-2j * np.pi * phase) / np.sqrt(ny * nx)
    return (wave[:, None] * maps[:, None]).reshape(-1, ny * nx)


def differences(images, penalties):
    for one in penalties:
        yield one.weight, (np.roll(images, -1, one.axis) - images if one.cyclic else np.diff(images, axis=one.axis))


def objective(images, samples, coordinates, maps, penalties, weights=None):
    """Value of what is minimised, by direct sums in double precision."""
    value = 0.0
    for place in np.ndindex(samples.shape[:-3]):
        misfit = matrix_of(coordinates[place], maps) @ images[place].ravel().astype(complex) - samples[place].ravel()
        weight = 1.0 if weights is None else np.repeat(weights[place], misfit.size // len(weights[place]))
        value += 0.5 * (weight * abs(misfit) ** 2).sum()
    return value + sum(weight * abs(one).sum() for weight, one in differences(images.astype(complex), penalties))


def convex_solver(samples, coordinates, maps, penalties, weights):
    """Minimise the objective by a general solver (L-BFGS), magnitudes smoothed less and less."""
    frames, pixels = samples.shape[:-3], maps[0].size
    shape = (*frames, *maps.shape[1:])
    gram, projection = np.empty((*frames, pixels, pixels), complex), np.empty((*frames, pixels), complex)
    for place in np.ndindex(frames):
        matrix = matrix_of(coordinates[place], maps)
        weighted = matrix.conj().T * np.repeat(weights[place], samples[place][0].size)
        gram[place], projection[place] = weighted @ matrix, weighted @ samples[place].ravel()

    def smooth(flat, epsilon):
        images = flat.view(complex).reshape(shape)
        rows = images.reshape(projection.shape)
        change_of_misfit = np.einsum("...ij,...j->...i", gram, rows) - projection
        value = 0.5 * np.vdot(rows, change_of_misfit - projection).real
        gradient = change_of_misfit.reshape(shape)
        for one, (weight, change) in zip(penalties, differences(images, penalties), strict=True):
            size = np.sqrt(abs(change) ** 2 + epsilon**2)
            value += weight * size.sum()
            pull, index = weight * change / size, np.arange(change.shape[one.axis])
            lead = [slice(None)] * one.axis
            np.add.at(gradient, (*lead, (index + 1) % shape[one.axis]), pull)
            np.add.at(gradient, (*lead, index), -pull)
        return value, gradient.ravel().view(float)

    flat = np.zeros(2 * projection.size)
    for epsilon in 10.0 ** np.arange(-1.0, -6.0, -1.0):
        options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-13}
        flat = scipy.optimize.minimize(smooth, flat, (epsilon,), jac=True, method="L-BFGS-B", options=options).x
    return flat.view(complex).reshape(shape)


CASES = {
    "time": ((4,), (Penalty(0, 0.3, False),)),
    "cyclic time": ((4,), (Penalty(0, 0.3, True),)),
    "respiration and cardiac phase": ((3, 4), (Penalty(0, 0.2, True), Penalty(1, 0.3, True))),
    "only the second axis": ((2, 3), (Penalty(1, 0.3, False),)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_minimiser_is_that_of_a_general_convex_solver(case):
    frames, penalties = CASES[case]
    samples, coordinates, maps, _ = scan(frames)
    weights = np.ones(samples.shape[:-2], np.float32)
    weights[0, ..., -1] = 0.5
    found = reconstruct(samples, coordinates, maps, penalties, weights=weights, **MANY)
    expected = convex_solver(samples, coordinates, maps, penalties, weights)

    values = [objective(images, samples, coordinates, maps, penalties, weights) for images in (found, expected)]
    assert abs(values[0] / values[1] - 1) < 1e-4
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_without_penalties_each_frame_is_the_least_squares_solution():
    samples, coordinates, maps, _ = scan(frames=(3,), noise=0.3)
    for penalties in ((), (Penalty(0, 0.0, False),)):
        found = reconstruct(samples, coordinates, maps, penalties, **MANY)
        for n, image in enumerate(found):
            matrix = matrix_of(coordinates[n], maps)
            expected = np.linalg.lstsq(matrix, samples[n].ravel(), rcond=None)[0]
            assert np.linalg.norm(image.ravel() - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_huge_weight_makes_all_frames_the_one_image_that_fits_best():
    samples, coordinates, maps, _ = scan(frames=(3, 2), noise=0.3)
    penalties = (Penalty(0, 1e3, False), Penalty(1, 1e3, True))
    found = reconstruct(samples, coordinates, maps, penalties, **MANY)
    matrices = np.concatenate([matrix_of(coordinates[place], maps) for place in np.ndindex(3, 2)])
    expected = np.linalg.lstsq(matrices, samples.ravel(), rcond=None)[0].reshape(maps.shape[1:])
    assert np.linalg.norm(found - expected, axis=(-2, -1)).max() < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("frames", "coils", "shape"), [((1,), 2, (5, 4)), ((1, 1), 1, (4, 7)), ((3,), 1, (1, 13)), ((2, 1), 3, (9, 2))]
)
def test_single_frames_coils_and_rows(frames, coils, shape):
    samples, coordinates, maps, _ = scan(frames, coils=coils, shape=shape, arms=6)
    penalties = [Penalty(axis, 0.1, axis == 0) for axis in range(len(frames))]
    found = reconstruct(samples, coordinates, maps, penalties, **MANY)
    assert found.shape == (*frames, *shape)
    assert found.dtype == np.complex64
    value = objective(found, samples, coordinates, maps, penalties)
    rng = np.random.default_rng(2)
    for _ in range(5):  # a minimum: any other images are worse
        other = found + 0.1 * abs(found).mean() * random_complex(rng, *found.shape)
        assert objective(other, samples, coordinates, maps, penalties) > value


def test_arms_of_weight_zero_count_nothing_whatever_they_hold():
    samples, coordinates, maps, _ = scan(frames=(2, 2), arms=4)
    weights = np.ones((2, 2, 4), np.float32)
    weights[0, 0, 3] = weights[1, 0, 1:] = weights[1, 1] = 0
    padded = weights == 0
    penalties, options = (Penalty(0, 0.1, True), Penalty(1, 0.1, True)), {"iterations": 5, "weights": weights}
    results = []
    for filling, place in ((0, 0), (100, 3), (np.nan, np.nan)):
        samples[padded], coordinates[padded] = filling, place
        results.append(reconstruct(samples, coordinates, maps, penalties, **options))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_samples_times_a_factor_give_images_times_that_factor():
    samples, coordinates, maps, _ = scan()
    penalties = (Penalty(0, 0.02, False),)
    one, other = (reconstruct(factor * samples, coordinates, maps, penalties, iterations=20) for factor in (1, 1e-6))
    np.testing.assert_allclose(1e6 * other, one, atol=1e-4 * abs(one).max())
    # ... which is not so with a fixed scale, for which the weight is another one
    other = reconstruct(1e-6 * samples, coordinates, maps, penalties, scale=1.0, iterations=20)
    assert abs(1e6 * other - one).max() > 0.02 * abs(one).max()


def test_the_scale_is_barts_percentile_of_the_adjoint():
    samples, coordinates, maps, _ = scan(coils=1)
    adjoint = [matrix_of(coordinates[n], maps).conj().T @ samples[n].ravel() for n in range(4)]
    magnitudes = np.abs(adjoint)
    middle, high, largest = np.percentile(magnitudes, [50, 90, 100])
    assert robust_scale(np.array(adjoint)) == high
    assert largest - high < 2 * (high - middle)
    penalties = (Penalty(0, 0.05, False),)
    by_itself = reconstruct(samples, coordinates, maps, penalties, iterations=10)
    given = reconstruct(samples, coordinates, maps, penalties, iterations=10, scale=float(high))
    np.testing.assert_allclose(by_itself, given, atol=2e-3 * abs(given).max())


def test_threads_and_transforms_change_nothing(monkeypatch):
    samples, coordinates, maps, _ = scan(frames=(5,), shape=(13, 11), arms=8)
    penalties = (Penalty(0, 0.05, False),)
    results = [reconstruct(samples, coordinates, maps, penalties, iterations=8, threads=n) for n in (1, 2, 3)]
    monkeypatch.setattr(transforms, "_pyfftw", lambda: None)
    results.append(reconstruct(samples, coordinates, maps, penalties, iterations=8, threads=2))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5 * abs(results[0]).max())


def test_a_start_near_the_end_saves_iterations():
    samples, coordinates, maps, _ = scan()
    penalties = (Penalty(0, 0.3, False),)
    end = reconstruct(samples, coordinates, maps, penalties, **MANY)
    value = objective(end, samples, coordinates, maps, penalties)
    options = {**MANY, "iterations": 1}
    warm = reconstruct(samples, coordinates, maps, penalties, **options, start=end)
    cold = reconstruct(samples, coordinates, maps, penalties, **options)
    excess = [objective(images, samples, coordinates, maps, penalties) / value - 1 for images in (warm, cold)]
    assert excess[0] < 0.1 * excess[1]


def test_progress_tells_the_objective_and_the_iteration_stops_by_itself(monkeypatch):
    monkeypatch.setattr(timekeeper, "REPORT_INTERVAL", 0.0)
    samples, coordinates, maps, _ = scan()
    penalties = (Penalty(0, 0.3, False),)
    reports = []
    images = reconstruct(
        samples, coordinates, maps, penalties, scale=1.0, iterations=500, tolerance=1e-4, progress=reports.append
    )
    assert reports[0].objective is None
    assert "preparing" in str(reports[0])
    last = reports[-1]
    assert 10 < last.iteration < 500 == last.iterations
    assert last.remaining > 0
    assert f"{last.iteration} of 500 iterations" in str(last)
    # without the misfit of the coils that were left out, here none
    assert last.objective == pytest.approx(objective(images, samples, coordinates, maps, penalties), rel=2e-3)
    assert all(b.elapsed >= a.elapsed and b.iteration >= a.iteration for a, b in pairwise(reports))


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_progress_raises_ends_the_work_and_leaves_nothing(monkeypatch, at, threads):
    monkeypatch.setattr(timekeeper, "REPORT_INTERVAL", 0.0)
    samples, coordinates, maps, _ = scan()
    before = threading.active_count()

    def gone(progress):
        if progress.iteration >= at:
            raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="the client is gone"):
        reconstruct(
            samples, coordinates, maps, (Penalty(0, 0.3, False),), iterations=10**9, tolerance=0.0, progress=gone,
            threads=threads,
        )  # fmt: skip
    assert threading.active_count() == before


def test_what_makes_no_sense_is_refused():
    samples, coordinates, maps, images = scan()
    time = (Penalty(0, 0.1, False),)

    def refused(error, text, *arguments, **options):
        with pytest.raises(error, match=text):
            reconstruct(*arguments, iterations=1, **options)

    broken = samples.copy()
    broken[2, 1, 0, 3] = np.nan
    refused(SampleError, "no numbers", broken, coordinates, maps, time)
    refused(SampleError, "nothing to reconstruct", 0 * samples, coordinates, maps, time)
    refused(SampleError, "nothing to reconstruct", samples, coordinates, maps, time, weights=np.zeros((4, 5)))
    refused(ValueError, "finite", samples, coordinates * np.inf, maps, time)
    refused(ValueError, "finite", samples, coordinates, maps * np.nan, time)
    refused(ValueError, "finite", samples, coordinates, maps, time, start=images * np.nan)
    refused(ValueError, "not negative", samples, coordinates, maps, time, weights=-np.ones((4, 5)))
    refused(ValueError, r"coordinates are \(4, 5, 30\)", samples, coordinates[..., 0], maps, time)
    refused(ValueError, r"weights are \(4, 4\), expected \(4, 5\)", samples, coordinates, maps, time,
            weights=np.ones((4, 4)))  # fmt: skip
    refused(ValueError, r"maps are \(1, 5, 4\), expected \(2,", samples, coordinates, maps[:1], time)
    refused(ValueError, r"samples are \(5, 2, 30\)", samples[0], coordinates[0], maps, time)
    refused(ValueError, r"start are \(3, 5, 4\)", samples, coordinates, maps, time, start=images[:3])
    refused(ValueError, "axis must be one of 1", samples, coordinates, maps, (Penalty(1, 0.1, False),))
    for weight in (-1.0, np.inf, np.nan):
        refused(ValueError, "not negative", samples, coordinates, maps, (Penalty(0, weight, False),))
    for scale in (0.0, -1.0, np.nan):
        refused(ValueError, "scale is", samples, coordinates, maps, time, scale=scale)
    refused(nufft.GpuUnavailableError, "no device", samples, coordinates, maps, time, gpu_device=-2)


@pytest.mark.parametrize(
    ("frames", "arms", "columns"), [((80,), 2, None), ((160,), 2, 16), ((10, 12), 2, 16), ((24,), 24, None)]
)
def test_memory_needed_is_what_is_taken(frames, arms, columns):
    rng = np.random.default_rng(5)
    length, coils, matrix = 200, 2, 60
    distinct = (rng.random((columns or arms * np.prod(frames), length, 2)).astype(np.float32) - 0.5) * matrix
    coordinates = np.resize(distinct, (*frames, arms, length, 2))
    samples = random_complex(rng, *frames, arms, coils, length)
    maps = random_complex(rng, coils, matrix, matrix)
    penalties = [Penalty(axis, 0.1, True) for axis in range(len(frames))]

    def work():
        reconstruct(samples, coordinates, maps, penalties, iterations=2, threads=2)

    work()  # what is loaded and planned once
    tracemalloc.start()
    work()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = memory_needed(frames, arms, coils, length, matrix, columns=columns, threads=2)
    assert needed == pytest.approx(taken, rel=0.2)


@pytest.mark.parametrize("with_terms", [False, True])
def test_the_gpu_gives_the_same_images(cupy, with_terms):
    samples, coordinates, maps, _ = scan(frames=(3, 2), shape=(13, 12), arms=8)
    penalties = (Penalty(0, 0.05, False), Penalty(1, 0.05, True))
    options = {"iterations": 200, "tolerance": 0.0}  # from a start that depends on rounding, to one minimum
    if with_terms:
        place, time = np.linspace(-1, 1, 12), np.linspace(0, 1, samples.shape[-1])
        spatial = np.stack([np.ones((13, 12)), np.tile(0.5j * place, (13, 1))]).astype(np.complex64)
        temporal = np.stack([np.ones_like(time), time])[np.newaxis].astype(np.complex64)
        options["fields"] = ArmFields(spatial, temporal, np.zeros((3, 2, 8), int))
    on_cpu, on_gpu = (reconstruct(samples, coordinates, maps, penalties, **options, gpu_device=n) for n in (-1, 0))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4 * abs(on_cpu).max())


def test_what_a_gpu_does_is_the_same_with_arrays_of_the_cpu(monkeypatch):
    samples, coordinates, maps, _ = scan(frames=(5, 2), shape=(13, 12), arms=8)
    penalties = (Penalty(0, 0.05, False), Penalty(1, 0.05, True))
    options = {"iterations": 8, "start": np.zeros((5, 2, 13, 12), np.complex64), "scale": 1.0}
    expected = reconstruct(samples, coordinates, maps, penalties, **options)
    monkeypatch.setattr(nufft, "open_backend", lambda device: nufft.ArrayBackend())
    monkeypatch.setattr(native_recon, "GPU_BATCH", 4)
    result = reconstruct(samples, coordinates, maps, penalties, **options, gpu_device=0)
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())
