"""Non-uniform transforms against direct sums in double precision, closed forms and SigPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recon import arrays, nufft

SHAPES = [(32, 32), (33, 33), (24, 35), (7, 6), (1, 5)]
ERROR = {np.complex64: 1.5e-4, np.complex128: 1e-9}


def random_complex(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def random_coords(rng, shape, *leading):
    """Return points over all of k-space, the edges and its outside included."""
    coords = (rng.random((*leading, 2)) - 0.5) * 1.1 * np.array(shape[::-1])
    coords[..., 0, :] = -np.array(shape[::-1]) / 2
    coords[..., 1, :] = np.array(shape[::-1]) / 2
    coords[..., 2, :] = 0
    return coords


def exponentials(coords, shape):
    """Return exp(-2 pi i kx x) and exp(-2 pi i ky y), [samples, n] each, at the pixels of the scanner's convention."""
    factors = []
    for k, n in zip(coords.T, shape[::-1], strict=True):
        position = -(np.arange(n) - n // 2) / n
        factors.append(np.exp(-2j * np.pi * np.outer(k, position)))
    return factors


def direct_forward(coords, image):
    x, y = exponentials(coords, image.shape[1:])
    return np.einsum("cyx,sy,sx->cs", image, y, x, optimize=True)


def direct_adjoint(coords, data, shape):
    x, y = exponentials(coords, shape)
    return np.einsum("cs,sy,sx->cyx", data, y.conj(), x.conj(), optimize=True)


def relative(result, truth):
    return np.linalg.norm(result - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_direct_sums(shape, dtype):
    rng = np.random.default_rng(1)
    coords = random_coords(rng, shape, 400)
    data, image = random_complex(rng, 3, 400).astype(dtype), random_complex(rng, 3, *shape).astype(dtype)

    adjoint = nufft.adjoint(coords, data, shape)
    forward = nufft.forward(coords, image)

    assert adjoint.dtype == forward.dtype == dtype
    assert relative(adjoint, direct_adjoint(coords, data.astype(complex), shape)) < ERROR[dtype]
    assert relative(forward, direct_forward(coords, image.astype(complex))) < ERROR[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_adjoint_are_a_pair(shape):
    rng = np.random.default_rng(2)
    coords = random_coords(rng, shape, 5, 40)
    data, image = random_complex(rng, 2, 5, 40), random_complex(rng, 2, *shape)

    left = np.vdot(data, nufft.forward(coords, image))
    right = np.vdot(nufft.adjoint(coords, data, shape), image)

    assert abs(left - right) < 1e-12 * np.linalg.norm(data) * np.linalg.norm(nufft.forward(coords, image))


@pytest.mark.parametrize("shape", [(32, 32), (33, 33), (32, 45)])
def test_point_object_lands_where_it_is(shape):
    rows, cols = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    k = np.stack(np.meshgrid(*(np.arange(-(n // 2), (n + 1) // 2) for n in shape[::-1])), axis=-1).reshape(-1, 2)
    row, col = 5.25, 20.5
    x, y = -(col - shape[1] // 2) / shape[1], -(row - shape[0] // 2) / shape[0]
    apodised = np.prod(np.cos(np.pi * k / shape[::-1]) ** 4, axis=1)
    signal = apodised * np.exp(-2j * np.pi * (k @ [x, y]))

    image = np.abs(nufft.adjoint(k, signal[None], shape)[0]) ** 2

    assert abs((rows * image).sum() / image.sum() - row) < 0.01
    assert abs((cols * image).sum() / image.sum() - col) < 0.01


def test_sigpy_agrees():
    import sigpy

    rng = np.random.default_rng(3)
    shape = (30, 40)
    coords, data = random_coords(rng, shape, 500), random_complex(rng, 2, 500)

    # SigPy's coordinates are (y, x), its pixels grow with x and y, its result is divided by sqrt(ny nx).
    reference = sigpy.nufft_adjoint(data, -coords[:, ::-1], (2, *shape), oversamp=2, width=6) * np.sqrt(np.prod(shape))

    assert relative(nufft.adjoint(coords, data, shape), reference) < 1e-3


@pytest.mark.parametrize("per_arm", [False, True])
def test_arms_add_up_with_their_weights(per_arm):
    rng = np.random.default_rng(4)
    shape, arms, samples = (20, 21), 6, 50
    coords = random_coords(rng, shape, arms, samples)
    weights = rng.random((arms, samples) if per_arm else samples)
    data = random_complex(rng, 3, arms, samples).astype(np.complex64)
    plan = nufft.ArmPlan(coords, shape, weights)

    grid = plan.zeros(3)
    for arm in (4, 1, 4):
        plan.add_arm(grid, arm, data[:, arm])

    weighted = data * weights
    truth = sum(direct_adjoint(coords[arm], weighted[:, arm], shape) for arm in (4, 1, 4))
    assert relative(plan.image(grid), truth) < 1.5e-4
    every = direct_adjoint(coords.reshape(-1, 2), weighted.reshape(3, -1), shape)
    assert relative(plan.adjoint(data), every) < 1.5e-4
    one_call = nufft.adjoint(coords, data.astype(complex), shape, weights)
    assert relative(one_call, every) < 1e-6  # weighted is single precision


def test_forward_has_no_density_weights():
    rng = np.random.default_rng(5)
    coords, image = random_coords(rng, (16, 16), 2, 30), random_complex(rng, 1, 16, 16)

    data = nufft.ArmPlan(coords, (16, 16), np.full(30, 0.1)).forward(image)

    assert data.shape == (1, 2, 30)
    assert relative(data.reshape(1, -1), direct_forward(coords.reshape(-1, 2), image)) < 1.5e-4


def test_image_leaves_the_grid_alone():
    plan = nufft.ArmPlan(np.zeros((1, 4, 2)), (8, 8))
    grid = plan.zeros(1)
    plan.add_arm(grid, 0, np.ones((1, 4), np.complex64))
    before = grid.copy()

    plan.image(grid)

    np.testing.assert_array_equal(grid, before)


def test_array_backend_does_the_same():
    """The code that runs on a GPU, run with NumPy."""
    rng = np.random.default_rng(6)
    shape, coords = (18, 15), random_coords(rng, (18, 15), 3, 40)
    data, image = random_complex(rng, 2, 3, 40), random_complex(rng, 2, *shape)
    cpu = nufft.ArmPlan(coords, shape, dtype=np.complex128)
    array = nufft.ArmPlan(coords, shape, dtype=np.complex128, backend=nufft.ArrayBackend())

    np.testing.assert_allclose(array.adjoint(data), cpu.adjoint(data), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(array.forward(image), cpu.forward(image), rtol=1e-12, atol=1e-10)


def test_loops_are_compiled_once_by_the_plan():
    coords = np.zeros((2, 10, 2))
    plan = nufft.ArmPlan(coords, (16, 16))
    spread, interpolate = nufft._compiled_loops()
    before = len(spread.signatures), len(interpolate.signatures)

    grid = plan.zeros(4)
    plan.add_arm(grid, np.int64(1), np.asfortranarray(np.ones((4, 10))))
    plan.forward(plan.image(grid))

    assert (len(spread.signatures), len(interpolate.signatures)) == before


def test_install_folder_that_cannot_be_written_to(monkeypatch):
    import numba

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: (loop, options)

    monkeypatch.setattr(numba, "njit", njit)
    (_, options), _ = nufft._compiled_loops.__wrapped__()

    assert options["nogil"]


def test_import_is_light():
    heavy = "('numba', 'scipy.fft', 'cupy', 'sigpy')"
    code = f"from recon import nufft; import sys; print([m for m in {heavy} if m in sys.modules])"

    folder = Path(nufft.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coords": np.zeros((4, 2))}, r"coords is \(4, 2\), expected \(arms, samples, 2\)"),
        ({"coords": np.full((1, 4, 2), np.nan)}, "finite"),
        ({"weights": np.full(4, np.inf)}, "finite"),
        ({"weights": np.ones(5)}, "broadcast"),
        ({"shape": (0, 8)}, "expected .ny, nx."),
        ({"dtype": np.float32}, "float32, expected complex64 or complex128"),
    ],
)
def test_wrong_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nufft.ArmPlan(**({"coords": np.zeros((1, 4, 2)), "shape": (8, 8)} | arguments))


@pytest.mark.parametrize(
    ("arm", "shape", "message"),
    [
        (2, (1, 4), "arm 2 is not in the trajectory, which has arms 0 to 1"),
        (-1, (1, 4), "arm -1"),
        (0, (1, 5), r"data is \(1, 5\), expected \(coils, samples\) = \(1, 4\)"),
        (0, (2, 4), r"data is \(2, 4\)"),
    ],
)
def test_wrong_arms_are_refused(arm, shape, message):
    plan = nufft.ArmPlan(np.zeros((2, 4, 2)), (8, 8))

    with pytest.raises(ValueError, match=message):
        plan.add_arm(plan.zeros(1), arm, np.ones(shape, np.complex64))


def test_wrong_grids_and_images_are_refused():
    plan = nufft.ArmPlan(np.zeros((1, 4, 2)), (8, 8))

    with pytest.raises(ValueError, match="made by zeros"):
        plan.add_arm(np.zeros((8, 8, 1), np.complex64), 0, np.ones((1, 4), np.complex64))
    with pytest.raises(ValueError, match=r"image is \(1, 8, 9\)"):
        plan.forward(np.zeros((1, 8, 9), np.complex64))
    with pytest.raises(ValueError, match="data is"):
        nufft.adjoint(np.zeros((4, 2)), np.zeros((1, 5), np.complex64), (8, 8))


@pytest.mark.parametrize("gpu_device", [-2, 4711])
def test_missing_gpu_is_an_error_with_the_way_out(gpu_device):
    with pytest.raises(nufft.GpuUnavailableError, match="set gpu_device = -1 for the CPU"):
        nufft.open_backend(gpu_device)


def test_gpu_number_beyond_the_last(monkeypatch):
    class Cupy:
        fft = None

        class cuda:
            class runtime:
                CUDARuntimeError = OSError

                @staticmethod
                def getDeviceCount():
                    return 2

    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    assert nufft.open_backend(1).xp is Cupy
    with pytest.raises(nufft.GpuUnavailableError, match=r"gpu_device = 2, but the GPUs are numbered 0 to 1; set"):
        nufft.open_backend(2)


def test_gpu_does_the_same(cupy):
    rng = np.random.default_rng(7)
    shape, coords = (128, 127), random_coords(rng, (128, 127), 8, 500)
    data, image = random_complex(rng, 4, 8, 500), random_complex(rng, 4, *shape)
    for dtype, tolerance in ((np.complex64, 1e-5), (np.complex128, 1e-12)):
        cpu = nufft.ArmPlan(coords, shape, dtype=dtype)
        gpu = nufft.ArmPlan(coords, shape, dtype=dtype, gpu_device=0)
        assert relative(arrays.to_host(gpu.adjoint(data)), cpu.adjoint(data)) < tolerance
        assert relative(arrays.to_host(gpu.forward(image)), cpu.forward(image)) < tolerance
