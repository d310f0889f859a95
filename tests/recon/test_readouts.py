"""The readouts of a scan, kept for later, and the scale of their data."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io

import coils
from recon import conditioning, readouts, spiral
from rtspiral_bart_tvrecon import TfdConfig, TfdReconstruction
from simulation.spiraldesign import synthetic_girf
from spiral_sessions import received, small_scan


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=98)


def session(folder):
    """A scan about to be received; the header says nothing of slices."""
    return spiral.SpiralScan(TfdConfig((folder,)), small_scan(folder, readouts=4).header)


# --- readouts
def test_readouts_are_kept_once_while_they_come(simulation):
    kept = received(simulation)
    expected = np.stack([simulation.trajectory.samples(one) for one in simulation.acquisitions()])
    np.testing.assert_array_equal(kept.samples, expected)
    assert kept.columns == [n % 89 for n in range(98)]
    assert kept.numbers == list(range(98))
    assert len(received(simulation, most=70)) == 70


def test_readouts_that_do_not_belong_together_are_refused(tmp_path):
    one, other = (next(iter(small_scan(tmp_path, readouts=4, rotation=(n, 0, 0)).acquisitions())) for n in (0, 9))
    other.scan_counter = 2
    with pytest.raises(readouts.DataError, match="readout 2 has another orientation than the first of slice 0"):
        readouts.receive(session(tmp_path), [one, other], 1.0)
    with pytest.raises(readouts.DataError, match="no imaging readout"):
        readouts.receive(SimpleNamespace(readouts=iter), [], 1.0)
    one, other = (next(iter(small_scan(tmp_path, readouts=4, coils=n).acquisitions())) for n in (2, 3))
    with pytest.raises(readouts.DataError, match="has 3 coils, the first has 2"):
        readouts.receive(session(tmp_path), [one, other], 1.0)


@pytest.mark.parametrize("interleaved", [True, False])
def test_readouts_are_kept_by_slice(tmp_path, interleaved):
    simulation = small_scan(tmp_path, readouts=12, slices=3, interleaved=interleaved)
    acquisitions = list(simulation.acquisitions())
    kept = readouts.receive(session(tmp_path), acquisitions, 1.0, most=3)
    assert [one.slice for one in kept] == [0, 1, 2]
    for number, one in enumerate(kept):
        numbers = np.flatnonzero(simulation.truth.slice == number)[:3]
        assert one.numbers == one.columns == numbers.tolist()
        expected = [simulation.trajectory.samples(acquisitions[n]) for n in numbers]
        np.testing.assert_array_equal(one.samples, expected)
        assert one.coordinates is kept[0].coordinates


def test_slices_that_cannot_be_prepared_are_left_out(tmp_path):
    simulation = small_scan(tmp_path, readouts=12, slices=3)
    acquisitions = list(simulation.acquisitions())
    for one in acquisitions[1::3]:
        one.data[:] = 0
    slices, told = readouts.receive(session(tmp_path), acquisitions, 1.0), []

    def prepare(one):
        if one.slice == 2:
            raise readouts.DataError("it is too thin")
        return one.slice

    assert readouts.prepare_each(prepare, slices, told.append) == [0]
    unusable = "none of the 4 imaging readouts can be used"
    assert told == [f"slice 1 is left out: {unusable}; 1 more, which the log lists"]
    with pytest.raises(readouts.DataError, match=unusable):
        readouts.prepare_each(prepare, slices[1:], told.append)
    assert len(told) == 1


def test_the_gradient_response_corrects_the_trajectory(tmp_path):
    response = synthetic_girf()
    simulation = small_scan(tmp_path, readouts=4, girf=response, rotation=(10.0, 20.0, 30.0))
    scipy.io.savemat(tmp_path / "girf.mat", {"GIRF": response})
    actual = simulation.truth.actual_k * simulation.trajectory.image_fov()
    for apply, error in ((True, 0.0), (False, 0.48)):
        settings = TfdReconstruction(apply_girf=apply, girf_file=tmp_path / "girf.mat")
        scan = spiral.SpiralScan(TfdConfig((tmp_path,), settings), simulation.header)
        (kept,) = readouts.receive(scan, simulation.acquisitions(), 1.0)
        assert np.abs(kept.coordinates - actual).max() == pytest.approx(error, abs=error / 2 + 1e-5)


# --- data scale
def one_point(value):
    """Cartesian k-space of a single bright pixel in an 8 x 8 image."""
    k = np.mgrid[-4:4, -4:4].reshape(2, -1).T[np.newaxis].astype(float)
    samples = np.full((1, 1, 64), value, np.complex64)
    return SimpleNamespace(coordinates=k, samples=samples, columns=[0], usable=[True], correction=None)


def test_data_scale_of_a_bright_point_is_the_maximum():
    scale = readouts.data_scale(one_point(0.5), np.ones((1, 8, 8), np.complex64), 1, range(1))
    assert scale == pytest.approx(0.5 * 64 / 8, rel=1e-3)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_data_without_a_scale_are_refused(value):
    with pytest.raises(conditioning.SampleError, match="nothing to reconstruct"), np.errstate(all="ignore"):
        readouts.data_scale(one_point(value), np.ones((1, 8, 8), np.complex64), 1, range(1))


def test_the_scale_of_many_frames_is_that_of_some(simulation, monkeypatch):
    kept = received(simulation)
    maps = simulation.truth.maps()
    maps = (maps / coils.rssq(maps)).astype(np.complex64)
    every = readouts.data_scale(kept, maps, 2, range(49))
    monkeypatch.setattr(readouts, "SCALE_FRAMES", 10)
    assert readouts.data_scale(kept, maps, 2, range(49)) == pytest.approx(every, rel=0.02)
