"""The backends: which one is taken, what the client hears, parts that travel, memory that is not there."""

import pickle
import re

import numpy as np
import pytest

import bart_tools
from recon import configuration, memory, nufft
from rtspiral_bart_tvrecon import TfdConfig
from solvers import backends as solvers
from solvers import bart_recon, cluster, native_recon, timekeeper
from spiral_sessions import fake_bart


def settings(**values):
    return configuration.from_mapping(TfdConfig, {"reconstruction": values}, "test").reconstruction


def choose(**values):
    """The solver that is taken, and the texts that the client is told of it."""
    told = []
    solver = solvers.open_solver(settings(**values), print, told.append)
    return solver, *told


def ignore(*report):
    pass


@pytest.fixture
def without_bart(monkeypatch, tmp_path):
    """A machine that has no BART."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in bart_tools.ENVIRONMENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# --- choice
def test_auto_is_native_with_bart_installed(monkeypatch):
    monkeypatch.setattr(bart_tools, "find_bart", lambda configured: pytest.fail("BART was looked for"))
    for values in ({}, {"backend": "auto"}, {"backend": "native"}):
        solver, text = choose(**values)
        assert isinstance(solver, solvers.NativeSolver)
        assert text == "computing with the native solver on the CPU"


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_bart_that_is_named_but_not_used_is_told(tmp_path, backend):
    told = []
    solvers.open_solver(settings(backend=backend, BART_TOOLBOX_PATH=str(tmp_path)), print, told.append)
    assert told[1:] == [f'BART_TOOLBOX_PATH = "{tmp_path}" is not used: set backend = "bart" to compute with it']


def test_a_gpu_is_used_through_bart_when_bart_is_asked_for(tmp_path):
    path = str(fake_bart(tmp_path / "cuda", "", cuda=1))
    solver, text, _ = choose(backend="bart", gpu_device=1, BART_TOOLBOX_PATH=path)
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
    assert text == f"computing with the native solver on the {where} of each worker of {address}"


def test_bart_is_not_for_a_cluster():
    with pytest.raises(configuration.ConfigurationError, match=r'backend = "bart".*scheduler = "tcp://host:1"'):
        choose(backend="bart", scheduler="tcp://host:1")


def test_bart_is_bart_or_an_error(without_bart, tmp_path):
    with pytest.raises(bart_tools.BartNotFoundError, match="apt-get install bart"):
        choose(backend="bart")
    solver, *told = choose(backend="bart", num_iter=2, BART_TOOLBOX_PATH=str(fake_bart(tmp_path / "one", "")))
    steps = "steps of up to 10 iterations, and begins another one until more than num_iter are done"
    assert told == [f"computing with {solver}", f"num_iter = 2: BART computes in {steps}"]


def test_the_native_solver_needs_cupy_for_a_gpu(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(nufft.GpuUnavailableError, match=r'needs CuPy.* gpu_device = -1 .* or backend = "bart" to use'):
        choose(gpu_device=0)


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


@pytest.fixture
def clocked():
    """A reporter, its clock, and what it sends."""
    now, heard = [100.0], []
    return solvers.Reporter(heard.append, clock=lambda: now[0]), now, heard


def test_the_client_hears_which_part_it_is_and_the_time_left_for_all(clocked):
    reporter, now, heard = clocked
    reporter.expect(5)
    now[0] += 2
    reporter.report("coil maps")
    now[0] += 6
    reporter.report("iteration 3 of 6", left=2.0)  # 10 s for this part, so 40 s for the others
    reporter.next_part()
    now[0] += 22  # 30 s until now
    reporter.report("iteration 5 of 6", left=6.0)  # 36 s for two parts, so 54 s for three
    for _ in range(3):
        reporter.next_part()
    now[0] += 60
    reporter.report("iteration 6 of 6", left=0.0)
    assert heard == [
        "INFO     part 1 of 5: coil maps",
        "INFO     part 1 of 5: iteration 3 of 6, about 42 s left for the whole scan",
        "INFO     part 2 of 5: iteration 5 of 6, about 60 s left for the whole scan",
        "INFO     part 5 of 5: iteration 6 of 6, about 0 s left for the whole scan",
    ]


def test_parts_side_by_side_share_the_time(clocked):
    """Two of four parts are computed at a time, each in 10 s."""
    reporter, now, heard = clocked
    reporter.expect(4)
    now[0] += 5
    reporter.report("half", 5.0, number=2)
    reporter.report("half", 5.0, number=1)
    now[0] += 10
    reporter.report("half", 5.0, number=4)
    assert heard == [
        "INFO     part 2 of 4: half, about 15 s left for the whole scan",
        "INFO     part 1 of 4: half, about 15 s left for the whole scan",
        "INFO     part 4 of 4: half, about 5 s left for the whole scan",
    ]


def test_the_native_solver_counts_its_parts(clocked, monkeypatch):
    monkeypatch.setattr(timekeeper, "REPORT_INTERVAL", 0.0)
    reporter, _, heard = clocked
    list(solvers.NativeSolver(-1, reporter).reconstruct([small_part(), small_part()], 2))
    counts = [re.match(r"INFO     part (\d) of 2: iterative reconstruction: ", text)[1] for text in heard]
    assert counts == sorted(counts)
    assert set(counts) == {"1", "2"}
    assert any(re.search(r"3 of 3 iterations, .* left for the whole scan$", text) for text in heard)


def test_bart_counts_its_parts(clocked):
    reporter, _, heard = clocked
    solver = bart_recon.BartSolver(bart_tools.find_bart(), -1, reporter)
    list(solver.reconstruct([small_part(), small_part()], 2))
    said = r"BART pics: iteration 10, more than the 3 asked for, \d+ s elapsed, about 0 s left for the whole scan"
    counts = [int(re.fullmatch(rf"INFO     part (\d) of 2: {said}", text)[1]) for text in heard]
    assert counts == [1, 2]


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
    images = there[0](there[1:], ignore)
    assert images.shape == (3, 8, 8)
    np.testing.assert_array_equal(images, solvers.reconstruct_part((part, -1), ignore))


def test_parts_come_in_order_and_one_by_one():
    given = []

    def parts():
        for frames in ((2,), (3,), (2, 2)):
            given.append(frames)
            yield small_part(frames)

    for n, images in enumerate(solvers.NativeSolver(-1, solvers.Reporter(ignore)).reconstruct(parts(), 3)):
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
