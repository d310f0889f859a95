"""Reconstruction through BART: coil maps, data scale, what is asked for of which BART."""

import logging
import re

import numpy as np
import pytest

import bart_tools
import coils
from mrdio import cfl
from recon import readouts
from rtspiral_bart_tvrecon import TfdReconstruction
from solvers import bart_recon
from solvers.native_recon import Penalty
from solvers.problem import Part, Reporter
from spiral_sessions import fake_bart, maps_agreement, one_thread, received, small_scan

ARMS = 7

_one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


def solver(folder="", **settings):
    settings = TfdReconstruction(BART_TOOLBOX_PATH=folder, **settings)
    return bart_recon.BartSolver(bart_recon.find_bart(settings), settings.gpu_device, Reporter(print))


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=98)


# --- coil maps
@pytest.mark.parametrize(("fov_oversampling", "matrix"), [(1.0, 48), (1.27, 61)])
def test_coil_maps_agree_with_the_true_ones(simulation, fov_oversampling, matrix):
    maps = solver().coil_maps(received(simulation, fov_oversampling))
    assert maps.shape == (4, matrix, matrix)
    np.testing.assert_allclose(coils.rssq(maps), 1, rtol=1e-5)
    assert maps_agreement(maps, simulation) >= 0.999
    assert maps_agreement(maps[:, ::-1], simulation) < 0.99  # else the test could not see a wrong orientation


def test_a_newer_bart_is_told_the_size_of_the_maps(simulation, tmp_path):
    """It has options that Debian's lacks: this one writes them down and passes the others on."""
    real = bart_tools.find_bart().path
    folder = fake_bart(tmp_path / "new", f'echo "$@" >> {tmp_path}/calls\nshift 7\nexec {real} nlinv "$@"\n')
    script = folder / "bart"
    script.write_text(script.read_text().replace("[-i d]", "[-a f] [-b f] [-i d] [-x d:d:d]"))
    maps = solver(folder).coil_maps(received(simulation))
    call = (tmp_path / "calls").read_text()
    assert re.match(r"nlinv -a 32 -b 16 -x 32:32:1 -S -d 4 -i 13 -t in\d+ in\d+ out0 out1\n$", call)
    assert maps_agreement(maps, simulation) >= 0.999


# --- frames
def test_data_scale_is_the_one_that_bart_finds(simulation, caplog):
    kept = received(simulation)
    maps = simulation.truth.maps()
    maps = (maps / coils.rssq(maps)).astype(np.complex64)
    scale = readouts.data_scale(kept, maps, ARMS, range(14))
    columns = np.reshape(kept.columns, (14, ARMS))
    with caplog.at_level(logging.DEBUG, "bart_tools"):
        solver().pics(
            ["-m", "-e", "-R", "T:1024:1024:0.01", "-d", 5, "-i", 1],
            kept.samples.reshape(14, ARMS, *kept.samples.shape[1:]), kept.coordinates[columns], maps,
        )  # fmt: skip
    barts = float(re.search(r"Scaling: ([\d.]+)", caplog.text[caplog.text.index("bart pics") :])[1])
    assert scale == pytest.approx(barts, rel=5e-3)


@pytest.mark.parametrize(
    ("frames", "scale", "penalties", "call"),
    [
        ((3,), 0.5, [(0, 0.01)], r"pics -m -e -w 0.5 -S -R T:1024:1024:0.01 -d 4 -i 9 -t in\d+ in\d+ in\d+ out0"),
        ((2, 3), None, [(0, 0.25), (1, 0.5)],
         r"pics -m -e -R T:1024:0:0.25 -R T:2048:0:0.5 -d 4 -i 9 -t in\d+ -p in\d+ in\d+ in\d+ out0"),
    ],
)  # fmt: skip
def test_a_part_becomes_a_command(tmp_path, frames, scale, penalties, call):
    """Images come back in the order that the frames went in."""
    size = 5
    images = np.arange(np.prod(frames) * size * size).reshape(*frames, size, size).astype(np.complex64)
    axes = (*bart_recon.FRAME_AXES[: len(frames)], cfl.PHS1_DIM, cfl.READ_DIM)
    cfl.write_cfl(tmp_path / "made", cfl.on_axes(images, *axes))
    copy = f"for e in hdr cfl; do cp {tmp_path}/made.$e out0.$e; done"
    folder = fake_bart(tmp_path / "fake", f'echo "$@" > {tmp_path}/call\n{copy}\n')
    part = Part(
        samples=np.ones((*frames, 2, 3, 4), np.complex64), coordinates=np.zeros((*frames, 2, 4, 2), np.float32),
        maps=np.ones((3, size, size), np.complex64), penalties=tuple(Penalty(*one, True) for one in penalties),
        iterations=9, columns=2, scale=scale, weights=None if len(frames) == 1 else np.ones((*frames, 2), np.float32),
    )  # fmt: skip
    (back,) = solver(folder).reconstruct([part], 1)
    np.testing.assert_array_equal(back, images)
    assert re.fullmatch(call, (tmp_path / "call").read_text().strip())


def test_the_weight_grows_with_the_frames_of_a_part():
    assert solver().weight_over_time(0.001, 30, 3) == pytest.approx(0.01)


# --- which BART
def test_a_gpu_needs_a_bart_with_cuda(tmp_path):
    with pytest.raises(bart_tools.BartError, match=r"gpu_device = 0 needs a BART built with CUDA.*gpu_device = -1"):
        solver(gpu_device=0)
    with pytest.raises(bart_tools.BartNotFoundError, match="apt-get install bart"):
        solver(tmp_path)
    folder = fake_bart(tmp_path / "cuda", 'echo "$CUDA_VISIBLE_DEVICES: $@"; exit 1', cuda=1)
    for device, words in ((1, "1: pics -g -i 3"), (-1, r"\(|: : pics -i 3|: pics -i 3")):
        with pytest.raises(bart_tools.BartError, match=words):
            solver(folder, gpu_device=device).run("pics", ["-i", 3], np.ones(1))
