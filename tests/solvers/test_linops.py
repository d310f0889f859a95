"""E, D and E^H E: adjoint and linear, against direct sums, on odd and non-square sizes."""

import numpy as np
import pytest

from solvers import linops, toeplitz
from solvers.linops import ArmFields, Difference, Encoding
from solvers.team import Team

SHAPES = [(9, 14), (13, 11), (16, 16), (17, 22)]  # 13 and 17 are transformed as 14 and 18


def random_complex(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def problem(shape, frames=3, arms=4, coils=2, samples=25, seed=1):
    """Coordinates [frame, arm, sample, 2], weights [frame, arm], maps."""
    rng = np.random.default_rng(seed)
    coordinates = ((rng.random((frames, arms, samples, 2)) - 0.5) * shape[::-1]).astype(np.float32)
    weights = rng.random((frames, arms)).astype(np.float32)
    weights[0, 1] = weights[-1, -1] = 0
    return rng, coordinates, weights, random_complex(rng, coils, *shape)


def dense(coordinates, maps):
    """E of one frame as a matrix [arm * coil * sample, pixel], by direct sums."""
    _, ny, nx = maps.shape
    y, x = np.meshgrid(-(np.arange(ny) - ny // 2) / ny, -(np.arange(nx) - nx // 2) / nx, indexing="ij")
    phase = coordinates[..., 0, None, None] * x + coordinates[..., 1, None, None] * y
    wave = np.exp(-2j * np.pi * phase.astype(float)) / np.sqrt(ny * nx)
    return (wave[:, None] * maps[:, None]).reshape(-1, ny * nx)


def relative(one, other):
    return np.linalg.norm(np.subtract(one, other)) / np.linalg.norm(other)


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_agrees_with_direct_sums(shape):
    rng, coordinates, weights, maps = problem(shape)
    images, samples = random_complex(rng, 3, *shape), random_complex(rng, 3, 4, 2, 25)
    with Team(2) as team:
        encoding = Encoding(coordinates, weights, maps, team)
        forward, adjoint = encoding.forward(images), encoding.adjoint(samples)
        normal = toeplitz.ToeplitzNormal(encoding.kernels(), maps, team)
        result = np.empty_like(images)
        normal(images, result)
        misfit = encoding.data_term(images, samples)
    expected_misfit = 0.0
    for n in range(3):
        matrix, w = dense(coordinates[n], maps), np.repeat(weights[n], 2 * 25)
        taken = (matrix @ images[n].ravel()).reshape(4, 2, 25)
        assert relative(forward[n], taken * (weights[n] > 0)[:, None, None]) < 2e-4
        assert relative(adjoint[n].ravel(), matrix.conj().T @ (w * samples[n].ravel())) < 2e-4
        assert relative(result[n].ravel(), matrix.conj().T @ (w * (matrix @ images[n].ravel()))) < 2e-4
        expected_misfit += 0.5 * (weights[n][:, None, None] * abs(taken - samples[n]) ** 2).sum()
        diagonal = np.fft.fft2((matrix.conj().T * w @ matrix).reshape(*shape, *shape), axes=(0, 1))
        diagonal = np.fft.ifft2(diagonal, axes=(2, 3)).reshape(np.prod(shape), -1).diagonal()
        kernel = normal.kernels[n]
        assert relative(toeplitz.k_space_diagonal(kernel, maps).ravel(), diagonal.real) < 2e-4
    assert misfit == pytest.approx(expected_misfit, rel=2e-4)


def field_terms(rng, shape, columns, terms=3, samples=25, several=True):
    """Terms that are nothing but numbers, those of time with a phase in common."""
    arms = 7 if several else 1
    phase = np.exp(2j * np.pi * rng.random((arms, 1, samples)))
    temporal = (rng.standard_normal((arms, terms, samples)) * phase).astype(np.complex64)
    return ArmFields(random_complex(rng, terms, *shape), temporal, columns)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("several", [False, True])
def test_encoding_with_field_terms_agrees_with_direct_sums(shape, several):
    rng, coordinates, weights, maps = problem(shape)
    coordinates[1, 1] = coordinates[0, 2]  # an arm that occurs twice
    columns = np.array([[0, 6, 1, 2], [3, 1, 4, 5], [4, 2, 0, 3]])
    columns[2], coordinates[2] = columns[1], coordinates[1]
    fields = field_terms(rng, shape, columns, several=several)
    images, samples = random_complex(rng, 3, *shape), random_complex(rng, 3, 4, 2, 25)
    with Team(2) as team:
        encoding = Encoding(coordinates, weights, maps, team, fields=fields)
        forward, adjoint = encoding.forward(images), encoding.adjoint(samples)
        normals = [toeplitz.ToeplitzNormal(encoding.kernels(), maps, team, batch, encoding.spatial) for batch in (1, 2)]
        results = [np.empty_like(images) for _ in normals]
        for normal, result in zip(normals, results, strict=True):
            normal(images, result)
        misfit = encoding.data_term(images, samples)
    expected_misfit = 0.0
    for n in range(3):
        of_terms = [dense(coordinates[n], maps * term).reshape(4, 2, 25, -1) for term in fields.spatial]
        temporal = fields.temporal[columns[n] if several else [0] * 4]
        matrix = sum(temporal[:, term, None, :, None] * each for term, each in enumerate(of_terms)).reshape(200, -1)
        w = np.repeat(weights[n], 2 * 25)
        taken = (matrix @ images[n].ravel()).reshape(4, 2, 25)
        assert relative(forward[n], taken * (weights[n] > 0)[:, None, None]) < 3e-4
        assert relative(adjoint[n].ravel(), matrix.conj().T @ (w * samples[n].ravel())) < 3e-4
        for result in results:
            assert relative(result[n].ravel(), matrix.conj().T @ (w * (matrix @ images[n].ravel()))) < 3e-4
        expected_misfit += 0.5 * (weights[n][:, None, None] * abs(taken - samples[n]) ** 2).sum()
        diagonal = np.fft.fft2((matrix.conj().T * w @ matrix).reshape(*shape, *shape), axes=(0, 1))
        diagonal = np.fft.ifft2(diagonal, axes=(2, 3)).reshape(np.prod(shape), -1).diagonal()
        found = toeplitz.k_space_diagonal(normals[0].kernels[n], maps, fields.spatial)
        assert relative(found.ravel(), diagonal.real) < 3e-4
    assert misfit == pytest.approx(expected_misfit, rel=3e-4)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_encoding_with_field_terms_and_its_adjoint_are_a_pair(shape):
    rng, coordinates, weights, maps = problem(shape)
    fields = field_terms(rng, shape, rng.integers(0, 7, (3, 4)))
    image, samples = random_complex(rng, 3, *shape), random_complex(rng, 3, 4, 2, 25)
    with Team(1) as team:
        encoding = Encoding(coordinates, weights, maps, team, fields=fields)
        left = np.vdot(samples, weights[:, :, None, None] * encoding.forward(image))
        assert left == pytest.approx(np.vdot(encoding.adjoint(samples), image), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_normal_operator_is_linear_selfadjoint_and_the_same_in_batches(shape, batch):
    rng, coordinates, weights, maps = problem(shape, frames=5)
    one, other = random_complex(rng, 5, *shape), random_complex(rng, 5, *shape)
    with Team(2) as team:
        normal = toeplitz.ToeplitzNormal(Encoding(coordinates, weights, maps, team).kernels(), maps, team, batch)
        results = [np.empty_like(one) for _ in range(3)]
        for images, result in zip((one, other, 2 * one - 3j * other), results, strict=True):
            normal(images, result)
    assert relative(results[2], 2 * results[0] - 3j * results[1]) < 1e-5
    assert np.vdot(other, results[0]) == pytest.approx(np.vdot(results[1], one), rel=1e-4)
    assert abs(np.vdot(one, results[0]).imag) < 1e-5 * np.vdot(one, results[0]).real


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_and_its_adjoint_are_a_pair_in_the_weighted_inner_product(shape):
    rng, coordinates, weights, maps = problem(shape)
    one, other = random_complex(rng, 3, *shape), random_complex(rng, 3, *shape)
    samples = random_complex(rng, 3, 4, 2, 25)
    with Team(1) as team:
        encoding = Encoding(coordinates, weights, maps, team)
        forward = encoding.forward(one)
        left = np.vdot(samples, weights[:, :, None, None] * forward)
        assert left == pytest.approx(np.vdot(encoding.adjoint(samples), one), rel=1e-3)
        combined = encoding.forward(2 * one - 3j * other)
        assert relative(combined, 2 * forward - 3j * encoding.forward(other)) < 1e-5


def test_coils_are_mixed_on_the_way():
    rng, coordinates, weights, maps = problem((9, 14))
    mixing, samples = random_complex(rng, 2, 6), random_complex(rng, 3, 4, 6, 25)
    with Team(1) as team:
        encoding = Encoding(coordinates, weights, maps, team)
        mixed = np.einsum("vc,facs->favs", mixing, samples)
        assert relative(encoding.adjoint(samples, mixing), encoding.adjoint(mixed)) < 1e-5


def test_arms_that_repeat_are_planned_once():
    rng, coordinates, _, _ = problem((9, 14))
    coordinates[1] = coordinates[0, ::-1]
    coordinates[2, 0] = np.nan
    counts = np.ones((3, 4), bool)
    counts[2, 0] = False
    arms, columns = linops.distinct_arms(coordinates, counts)
    assert arms.shape == (7, 25, 2)
    np.testing.assert_array_equal(columns[:2], [[0, 1, 2, 3], [3, 2, 1, 0]])
    np.testing.assert_array_equal(arms[columns][counts], coordinates[counts])
    many = (rng.random((1, 3 * linops.Plan.PART + 5, 25, 2)) - 0.5) * 9  # more arms than one part of a plan has
    maps = random_complex(rng, 2, 9, 9)
    image = random_complex(rng, 1, 9, 9)
    with Team(2) as team:
        forward = Encoding(many, None, maps, team).forward(image)
    assert relative(forward.ravel(), dense(many[0], maps) @ image.ravel()) < 2e-4


def test_encoding_refuses_what_does_not_fit():
    _, coordinates, weights, maps = problem((9, 14))
    with Team(1) as team:
        for text, *arguments in (
            (r"expected \(frames, arms, samples, 2\)", coordinates[0], weights),
            (r"weights are \(3, 3\), expected \(3, 4\)", coordinates, weights[:, :3]),
            ("not negative", coordinates, -weights),
            ("not negative", coordinates, weights * np.nan),
            ("no arm", coordinates, 0 * weights),
        ):
            with pytest.raises(ValueError, match=text):
                Encoding(*arguments, maps, team)


# --- differences
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 0), ((4, 3, 7), 1), ((1, 6), 0), ((2, 3), 0)])
def test_differences_their_adjoint_and_their_modes(shape, axis, cyclic):
    rng, difference = np.random.default_rng(3), Difference(axis, cyclic)
    images = random_complex(rng, *shape)
    steps = difference(images)
    for n in range(shape[axis] - (not cyclic)):
        following = images.take((n + 1) % shape[axis], axis)
        np.testing.assert_array_equal(steps.take(n, axis), following - images.take(n, axis))
    other = random_complex(rng, *steps.shape)
    assert np.vdot(other, steps) == pytest.approx(np.vdot(difference.adjoint(other), images), abs=1e-5)
    modes = difference.modes(images)
    eigenvalues = difference.eigenvalues(shape[axis]).reshape([-1 if n == axis else 1 for n in range(len(shape))])
    np.testing.assert_allclose(
        difference.modes(eigenvalues.astype(np.float32) * modes, inverse=True), difference.adjoint(steps), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(modes), np.linalg.norm(images), rtol=1e-5)


def test_sigpy_has_the_same_cyclic_differences():
    import sigpy.linop

    images = random_complex(np.random.default_rng(4), 5, 3, 4)
    theirs = sigpy.linop.FiniteDifference(images.shape, axes=(0,))
    np.testing.assert_allclose(np.roll(theirs(images)[0], -1, 0), Difference(0, True)(images), atol=1e-6)
