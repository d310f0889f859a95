"""The backends: which one is taken, what the client hears, parts that travel, memory that is not there."""

import pickle

import numpy as np
import pytest

import bart_recon
import bart_tools
import cluster
import configuration
import memory
import native_recon
import nufft
import solvers
from spiral_sessions import fake_bart


def settings(**values):
    return configuration.from_mapping(configuration.TfdConfig, {"reconstruction": values}, "test").reconstruction


def choose(**values):
    """The solver that is taken, and what the client is told of it."""
    told = []
    solver = solvers.open_solver(settings(**values), print, told.append)
    (text,) = told
    return solver, text


@pytest.fixture
def without_bart(monkeypatch, tmp_path):
    """A machine that has no BART."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in bart_tools.ENVIRONMENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# --- choice
def test_auto_takes_bart_when_it_is_there():
    solver, text = choose()
    assert isinstance(solver, bart_recon.BartSolver)
    version = bart_tools.find_bart().version
    assert text == f'computing with BART {version} on the CPU, which backend = "auto" takes when it is there'


def test_auto_takes_the_native_solver_where_there_is_no_bart(without_bart):
    solver, text = choose()
    assert isinstance(solver, solvers.NativeSolver)
    assert text.startswith('computing with the native solver on the CPU, as backend = "auto" found no BART to use:')
    assert "There is no executable bart in" in text


def test_auto_takes_the_native_solver_for_a_gpu_that_bart_cannot_use(monkeypatch):
    monkeypatch.setattr(nufft, "open_backend", lambda device: None)
    solver, text = choose(gpu_device=1)
    assert isinstance(solver, solvers.NativeSolver)
    assert solver.gpu_device == 1
    assert text.startswith("computing with the native solver on the GPU 1, as")
    assert "needs a BART built with CUDA" in text


def test_auto_takes_a_bart_with_cuda_for_a_gpu(tmp_path):
    solver, text = choose(gpu_device=1, BART_TOOLBOX_PATH=str(fake_bart(tmp_path / "cuda", "", cuda=1)))
    assert isinstance(solver, bart_recon.BartSolver)
    assert "on the GPU 1" in text


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize(("gpu_device", "where"), [(-1, "CPU"), (3, "GPU 3")])
def test_with_a_scheduler_the_workers_compute(monkeypatch, backend, gpu_device, where):
    """Neither BART nor a GPU is looked for here."""
    for module, name in ((bart_tools, "find_bart"), (nufft, "open_backend")):
        monkeypatch.setattr(module, name, lambda *arguments: pytest.fail("looked for here"))
    address, asked = "tcp://host:8786", []
    monkeypatch.setattr(cluster, "check", asked.append)
    solver, text = choose(backend=backend, gpu_device=gpu_device, scheduler=address)
    assert (solver.scheduler, solver.gpu_device, asked) == (address, gpu_device, [address])
    because = ', as backend = "auto" takes it when there is a scheduler: BART computes here only'
    expected = f"computing with the native solver on the {where} of each worker of {address}"
    assert text == expected + (because if backend == "auto" else "")


def test_bart_is_not_for_a_cluster():
    with pytest.raises(configuration.ConfigurationError, match=r'backend = "bart".*scheduler = "tcp://host:1"'):
        choose(backend="bart", scheduler="tcp://host:1")


def test_native_does_not_look_for_bart(monkeypatch):
    monkeypatch.setattr(bart_tools, "find_bart", lambda configured: pytest.fail("BART was looked for"))
    solver, text = choose(backend="native")
    assert isinstance(solver, solvers.NativeSolver)
    assert text == "computing with the native solver on the CPU"


def test_bart_is_bart_or_an_error(without_bart, tmp_path):
    with pytest.raises(bart_tools.BartNotFoundError, match="apt-get install bart"):
        choose(backend="bart")
    solver, text = choose(backend="bart", BART_TOOLBOX_PATH=str(fake_bart(tmp_path / "one", "")))
    assert text == f"computing with {solver}"


def test_the_native_solver_needs_cupy_for_a_gpu(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(nufft.GpuUnavailableError, match="needs CuPy"):
        choose(backend="native", gpu_device=0)


def test_no_other_backend():
    with pytest.raises(configuration.ConfigurationError, match='backend = \'cuda\': must be one of "auto", "bart", "n'):
        settings(backend="cuda")


# --- what the client hears
def test_the_client_hears_of_a_silent_solver():
    now, heard = [0.0], []
    reporter = solvers.Reporter(heard.append, clock=lambda: now[0])
    reporter.begin("BART pics")
    for now[0] in (1.0, 1.9, 2.0, 3.9, 4.5):
        assert reporter.check() is False
        if now[0] == 2.0:
            reporter.report("iteration 3")
    assert heard == [
        "INFO     BART pics: 2 s elapsed",
        "INFO     iteration 3",
        "INFO     BART pics: 4 s elapsed",
    ]


# --- the native solver's parts
def small_part(frames=(3,), matrix=8):
    rng = np.random.default_rng(3)
    shape = (*frames, 2, 30)
    samples = rng.normal(size=(*frames, 2, 2, 30)) + 1j * rng.normal(size=(*frames, 2, 2, 30))
    return solvers.Part(
        samples=samples.astype(np.complex64),
        coordinates=rng.uniform(-4, 4, (*shape, 2)).astype(np.float32),
        maps=np.full((2, matrix, matrix), 2**-0.5, np.complex64),
        penalties=tuple(native_recon.Penalty(axis, 0.01, True) for axis in range(len(frames))),
        iterations=3,
        columns=2,
    )


def test_a_part_travels():
    """Reconstructed from its bytes alone, it gives the same."""
    part = small_part()
    there = pickle.loads(pickle.dumps((solvers.reconstruct_part, part, -1)))
    images = there[0](there[1:], lambda text: None)
    assert images.shape == (3, 8, 8)
    np.testing.assert_array_equal(images, solvers.reconstruct_part((part, -1), lambda text: None))


def test_parts_come_in_order_and_one_by_one():
    given = []

    def parts():
        for frames in ((2,), (3,), (2, 2)):
            given.append(frames)
            yield small_part(frames)

    for n, images in enumerate(solvers.NativeSolver(-1, solvers.Reporter(lambda text: None)).reconstruct(parts())):
        assert len(given) == n + 1
        assert images.shape == (*given[-1], 8, 8)


def test_a_part_that_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    words = "2 x 3 frames of 8 x 8 pixels from 2 arms of 30 samples and 2 coils need about .* are there: choose fewer"
    with pytest.raises(memory.ShortageError, match=words):
        solvers.reconstruct_part((small_part((2, 3)), -1), print)


def test_the_weight_of_a_difference_does_not_depend_on_the_length_of_the_scan():
    solver = solvers.NativeSolver(-1, solvers.Reporter(print))
    weights = {solver.weight_over_time(0.0002, frames, parts) for frames, parts in ((48, 1), (48, 3), (2000, 5))}
    assert weights == {0.0002 * 48}
