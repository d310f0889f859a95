"""What the iterative reconstructions share: readouts, coil maps, data scale, BART's progress and its end."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io

import bart_recon
import bart_tools
import coils
import configuration
import spiral
from bart_tools import TIME_DIM
from simulation.spiraldesign import synthetic_girf
from spiral_sessions import fake_bart, one_thread, small_scan

ARMS = 7

_one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


def received(simulation, fov_oversampling=1.0, most=None):
    folder = simulation.trajectory.file.parent
    settings = configuration.TfdReconstruction(fov_oversampling=fov_oversampling)
    scan = spiral.SpiralScan(configuration.TfdConfig((folder,), settings), simulation.header)
    return bart_recon.receive(scan, simulation.acquisitions(), fov_oversampling, most)


def solver(folder="", **settings):
    return bart_recon.open_solver(configuration.TfdReconstruction(BART_TOOLBOX_PATH=folder, **settings), print)


def agreement(maps, simulation):
    """Mean inner product of maps with the true ones where the object is, 1 at best."""
    true = simulation.truth.maps(maps.shape[1])
    true /= coils.rssq(true)
    inside = simulation.truth.frame([0], maps.shape[1]) > 0.05
    return np.abs((maps.conj() * true).sum(axis=0))[inside].mean()


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=98)


# --- readouts
def test_readouts_are_kept_once_while_they_come(simulation):
    readouts = received(simulation)
    expected = np.stack([simulation.trajectory.samples(one) for one in simulation.acquisitions()])
    np.testing.assert_array_equal(readouts.samples, expected)
    assert readouts.columns == [n % 89 for n in range(98)]
    assert readouts.numbers == list(range(98))
    assert len(received(simulation, most=70)) == 70


def test_readouts_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(bart_recon.DataError, match="readout 2 is of another slice"):
        received(small_scan(tmp_path, readouts=8, slices=2))
    with pytest.raises(bart_recon.DataError, match="no imaging readout"):
        bart_recon.receive(SimpleNamespace(readouts=iter), [], 1.0)
    one, other = (next(iter(small_scan(tmp_path, readouts=4, coils=n).acquisitions())) for n in (2, 3))
    settings = configuration.TfdConfig((tmp_path,))
    scan = spiral.SpiralScan(settings, small_scan(tmp_path, readouts=4).header)
    with pytest.raises(bart_recon.DataError, match="has 3 coils, the first has 2"):
        bart_recon.receive(scan, [one, other], 1.0)


def test_the_gradient_response_corrects_the_trajectory(tmp_path):
    response = synthetic_girf()
    simulation = small_scan(tmp_path, readouts=4, girf=response, rotation=(10.0, 20.0, 30.0))
    scipy.io.savemat(tmp_path / "girf.mat", {"GIRF": response})
    actual = simulation.truth.actual_k * simulation.trajectory.image_fov()
    for apply, error in ((True, 0.0), (False, 0.48)):
        settings = configuration.TfdReconstruction(apply_girf=apply, girf_file=tmp_path / "girf.mat")
        scan = spiral.SpiralScan(configuration.TfdConfig((tmp_path,), settings), simulation.header)
        readouts = bart_recon.receive(scan, simulation.acquisitions(), 1.0)
        assert np.abs(readouts.coordinates - actual).max() == pytest.approx(error, abs=error / 2 + 1e-5)


# --- coil maps
@pytest.mark.parametrize(("fov_oversampling", "matrix"), [(1.0, 48), (1.27, 61)])
def test_coil_maps_agree_with_the_true_ones(simulation, fov_oversampling, matrix):
    maps = solver().coil_maps(received(simulation, fov_oversampling))
    assert maps.shape == (4, matrix, matrix)
    np.testing.assert_allclose(coils.rssq(maps), 1, rtol=1e-5)
    assert agreement(maps, simulation) >= 0.999
    assert agreement(maps[:, ::-1], simulation) < 0.99  # else the test could not see a wrong orientation


def test_a_newer_bart_is_told_the_size_of_the_maps(simulation, tmp_path):
    """It has options that Debian's lacks: this one writes them down and passes the others on."""
    real = bart_tools.find_bart().path
    folder = fake_bart(tmp_path / "new", f'echo "$@" >> {tmp_path}/calls\nshift 7\nexec {real} nlinv "$@"\n')
    script = folder / "bart"
    script.write_text(script.read_text().replace("[-i d]", "[-a f] [-b f] [-i d] [-x d:d:d]"))
    maps = solver(folder).coil_maps(received(simulation))
    call = (tmp_path / "calls").read_text()
    assert re.match(r"nlinv -a 32 -b 16 -x 32:32:1 -S -d 4 -i 13 -t in\d+ in\d+ out0 out1\n$", call)
    assert agreement(maps, simulation) >= 0.999


# --- data scale
def test_data_scale_is_the_one_that_bart_finds(simulation, caplog):
    readouts = received(simulation)
    maps = simulation.truth.maps()
    maps = (maps / coils.rssq(maps)).astype(np.complex64)
    scale = bart_recon.data_scale(readouts, maps, ARMS, range(14))
    columns = np.reshape(readouts.columns, (14, ARMS))
    with caplog.at_level(logging.DEBUG, "bart_tools"):
        solver().pics(
            ["-m", "-e", "-R", "T:1024:1024:0.01", "-d", 5, "-i", 1],
            readouts.samples.reshape(14, ARMS, *readouts.samples.shape[1:]),
            readouts.coordinates[columns], maps, (TIME_DIM,),
        )  # fmt: skip
    barts = float(re.search(r"Scaling: ([\d.]+)", caplog.text[caplog.text.index("bart pics") :])[1])
    assert scale == pytest.approx(barts, rel=5e-3)


def one_point(value):
    """Cartesian k-space of a single bright pixel in an 8 x 8 image."""
    k = np.mgrid[-4:4, -4:4].reshape(2, -1).T[np.newaxis].astype(float)
    samples = np.full((1, 1, 64), value, np.complex64)
    return SimpleNamespace(coordinates=k, samples=samples, columns=[0])


def test_data_scale_of_a_bright_point_is_the_maximum():
    scale = bart_recon.data_scale(one_point(0.5), np.ones((1, 8, 8), np.complex64), 1, range(1))
    assert scale == pytest.approx(0.5 * 64 / 8, rel=1e-3)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_data_without_a_scale_are_refused(value):
    with pytest.raises(bart_recon.DataError, match="nothing to reconstruct"), np.errstate(all="ignore"):
        bart_recon.data_scale(one_point(value), np.ones((1, 8, 8), np.complex64), 1, range(1))


# --- the client
def test_the_client_hears_of_a_silent_bart():
    now, heard = [0.0], []
    reporter = bart_recon.Reporter(heard.append, clock=lambda: now[0])
    reporter.begin("pics")
    for now[0] in (1.0, 1.9, 2.0, 3.9, 4.5):
        assert reporter.check() is False
        if now[0] == 2.0:
            reporter.report("iteration 3")
    assert heard == [
        "INFO     BART pics: 2 s elapsed",
        "INFO     iteration 3",
        "INFO     BART pics: 4 s elapsed",
    ]


def test_a_gpu_needs_a_bart_with_cuda(tmp_path):
    with pytest.raises(bart_tools.BartError, match=r"gpu_device = 0 needs a BART built with CUDA.*gpu_device = -1"):
        solver(gpu_device=0)
    with pytest.raises(bart_tools.BartNotFoundError, match="apt-get install bart"):
        solver(tmp_path)
    folder = fake_bart(tmp_path / "cuda", 'echo "$CUDA_VISIBLE_DEVICES: $@"; exit 1', cuda=1)
    for device, words in ((1, "1: pics -g -i 3"), (-1, r"\(|: : pics -i 3|: pics -i 3")):
        with pytest.raises(bart_tools.BartError, match=words):
            solver(folder, gpu_device=device).run("pics", ["-i", 3], np.ones(1))
