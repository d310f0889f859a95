"""The algorithms alone, on operators that are matrices."""

import numpy as np
import pytest

from solvers import admm
from solvers.admm import ConjugateGradients, KSpaceInverse, TemporalAdmm, Term, inner, soft
from solvers.linops import Difference
from solvers.team import Team


def random_complex(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def test_soft_threshold():
    values = np.array([0, 3, -3j, 0.5 + 0.5j, 3 + 4j], np.complex64)
    np.testing.assert_allclose(soft(values, 1), [0, 2, -2j, 0, 0.8 * (3 + 4j)], rtol=1e-6)
    np.testing.assert_array_equal(soft(values, 0), values)
    np.testing.assert_array_equal(soft(values, 1e6), 0)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("frames", [(5,), (3, 2)])
def test_the_inverse_inverts(frames, batch):
    rng, shape = np.random.default_rng(1), (6, 7)
    density = (0.5 + rng.random(shape)).astype(np.float32)
    terms = [Term(Difference(axis, axis == 0), 0.1, 2.0 + axis) for axis in range(len(frames))]
    images = random_complex(rng, *frames, *shape)
    back = np.fft.ifft2(density * np.fft.fft2(images))
    for term in terms:
        back += term.penalty * term.difference.adjoint(term.difference(images))
    gradient = back.astype(np.complex64)
    with Team(2) as team:
        product = KSpaceInverse(density, terms, frames, team, batch)(gradient)
    np.testing.assert_allclose(gradient, images, atol=1e-5)
    assert product == pytest.approx(np.vdot(images, back).real, rel=1e-5)


def identity(images, out):
    out[...] = images


def test_with_the_identity_the_result_is_the_soft_threshold_of_one_step():
    # Two frames: mean and difference are apart, and the difference d of y becomes soft(d, 2 weight).
    rng, shape = np.random.default_rng(2), (4, 5)
    y = random_complex(rng, 2, *shape)
    terms = [Term(Difference(0, False), 0.4, 1.0)]
    images, gradient = np.zeros_like(y), y.copy()
    with Team(1) as team:
        invert = KSpaceInverse(np.ones(shape, np.float32), terms, (2,), team, 1)
        algorithm = TemporalAdmm(identity, invert, terms, images, gradient, 0.5 * inner(y, y), team)
        for _ in range(60):
            algorithm.update()
    step = soft(y[1] - y[0], 0.8)
    expected = y.mean(axis=0) + np.stack([-step, step]) / 2
    np.testing.assert_allclose(images, expected, atol=1e-4)
    value = 0.5 * np.linalg.norm(expected - y) ** 2 + 0.4 * abs(step).sum()
    assert algorithm.objective == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(gradient, y - images, atol=1e-5)


def test_blocks_divide_the_pixels_and_change_nothing(monkeypatch):
    monkeypatch.setattr(admm, "SMALLEST_BLOCK", 3)
    results = []
    for size in (1, 30, 10**6):
        monkeypatch.setattr(admm, "BLOCK", size)
        rng = np.random.default_rng(3)
        y = random_complex(rng, 4, 5, 5)
        parts = admm.blocks(y.reshape(4, 25))
        np.testing.assert_array_equal(np.concatenate([np.arange(25)[part] for part in parts]), np.arange(25))
        terms = [Term(Difference(0, True), 0.4, 1.0)]
        images = np.zeros_like(y)
        with Team(2) as team:
            invert = KSpaceInverse(np.ones((5, 5), np.float32), terms, (4,), team, 1)
            algorithm = TemporalAdmm(identity, invert, terms, images, y.copy(), 0.5 * inner(y, y), team)
            for _ in range(5):
                algorithm.update()
        results.append(images)
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], atol=1e-6)


def test_conjugate_gradients_end_with_as_many_steps_as_there_are_eigenvalues():
    rng, shape = np.random.default_rng(4), (3, 4)
    solution = random_complex(rng, 2, *shape)
    factors = np.array([1.0, 3.0, 10.0], np.float32)[rng.integers(0, 3, (2, *shape))]

    def normal(images, out):
        out[...] = factors * images

    images, gradient = np.zeros_like(solution), factors * solution
    with Team(1) as team:
        invert = KSpaceInverse(np.ones(shape, np.float32), (), (2,), team, 1)
        start = 0.5 * inner(solution, gradient)
        algorithm = ConjugateGradients(normal, invert, images, gradient, start)
        values = []
        for _ in range(3):
            algorithm.update()
            values.append(algorithm.objective)
    np.testing.assert_allclose(images, solution, atol=1e-4)
    assert start > values[0] > values[1] > values[2]
    assert values[2] == pytest.approx(0, abs=1e-4 * start)


def test_a_solved_problem_stays_as_it_is():
    y = np.zeros((2, 3, 3), np.complex64)
    terms = [Term(Difference(0, False), 0.4, 1.0)]
    with Team(1) as team:
        for frame_terms in (terms, ()):
            images, gradient = y.copy(), y.copy()
            invert = KSpaceInverse(np.ones((3, 3), np.float32), frame_terms, (2,), team, 1)
            if frame_terms:
                algorithm = TemporalAdmm(identity, invert, terms, images, gradient, 0.0, team)
            else:
                algorithm = ConjugateGradients(identity, invert, images, gradient, 0.0)
            algorithm.update()
            assert algorithm.objective == 0
            assert not images.any()
