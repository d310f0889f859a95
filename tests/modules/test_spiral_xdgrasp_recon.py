"""Dual temporal constraints: readouts in the right bins, images of bins against the truth, what is sent."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal.windows

import bart_tools
import spiral_xdgrasp_recon as xd
from recon import configuration, memory, physio
from simulation.gridding import gridded
from solvers import backends as solvers
from solvers import bart_recon, timekeeper
from spiral_sessions import (
    Client,
    change,
    configure,
    error,
    in_linear_field,
    know_the_field,
    one_thread,
    small_scan,
    true_images,
)
from spiral_xdgrasp_recon import XdConfig

SOURCES = ("ecg", "pilottone", "pilottone_derivative")
BACKENDS = ("bart", "native")
SETTINGS = {"backend": "bart", "arm_discard_pre": 0, "arm_discard_post": 0, "num_iter": 30,
            "reg_lambda_resp": 0.0005, "reg_lambda_card": 0.0005}  # fmt: skip
BINNING = {"n_respiratory_bins": 4, "n_cardiac_bins": 4, "trigger_source": "pilottone"}


READOUTS, TR = 600, 20e-3  # 12 s, so that a few readouts cover several breaths

_one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, matrix=40, interleaves=24, readouts=READOUTS, tr=TR, heart_rate=66)


def configuration_of(binning=None, **reconstruction):
    tables = {"reconstruction": SETTINGS | reconstruction, "binning": BINNING | (binning or {})}
    return configuration.from_mapping(XdConfig, tables, "test")


def run(simulation, items=None, binning=None, **reconstruction):
    """Send items through the module."""
    client = Client(simulation.items() if items is None else items)
    tables = {"reconstruction": SETTINGS | reconstruction, "binning": BINNING | (binning or {})}
    with pytest.MonkeyPatch.context() as patch:
        if tables["reconstruction"]["backend"] == "native":
            patch.setattr(bart_tools, "find_bart", None)  # there is none to be found
            patch.setattr(timekeeper, "REPORT_INTERVAL", 0.0)
        configure(patch, XdConfig, simulation.trajectory.file.parent, **tables)
        xd.process(client, "spiral_xdgrasp_recon", simulation.header)
    return client


def test_a_gpu_gives_the_same(cupy, simulation, native):
    client = run(simulation, backend="native", gpu_device=0)
    assert error(client.pixels, native.pixels) < 0.005


@pytest.fixture(scope="module")
def heads(simulation):
    return [acquisition.getHead() for acquisition in simulation.acquisitions()]


@pytest.fixture(scope="module")
def filled(simulation):
    return run(simulation)


@pytest.fixture(scope="module")
def native(simulation):
    return run(simulation, backend="native")


def all_usable(heads):
    return SimpleNamespace(heads=heads, usable=[True] * len(heads))


def bins_of(simulation, heads, binning=None, **reconstruction):
    settings = configuration_of(binning, **reconstruction)
    return xd.sort(all_usable(heads), list(simulation.waveforms()), settings, simulation.scan.tr, print)


def members(bins):
    return [bins.readouts[place][bins.weights[place] > 0] for place in np.ndindex(bins.counts.shape)]


# --- bins
def true_bins(simulation, n_respiratory, n_cardiac, delay=0.0):
    """Bins by the state of the phantom itself: cardiac in whole readouts from the heartbeats that a waveform shows."""
    truth = simulation.truth
    shown = truth.beats[(truth.beats + delay >= 0) & (truth.beats + delay <= truth.time[-1])]
    beats = np.rint(shown / simulation.scan.tr).astype(int)
    width = int(0.9 * np.diff(beats).min()) // n_cardiac
    readouts = np.arange(truth.time.size)
    since = readouts - beats[np.clip(np.searchsorted(beats, readouts, "right") - 1, 0, None)]
    cardiac = np.where((since >= 0) & (since < width * n_cardiac), since // width, -1)
    low, high = np.quantile(truth.inhalation, [0.05, 0.95])
    half = n_respiratory // 2
    up = np.clip(np.floor(half * (truth.inhalation - low) / (high - low)), 0, half - 1).astype(int)
    return np.where(truth.respiratory_phase < 0.5, up, n_respiratory - 1 - up), cardiac


@pytest.mark.parametrize("source", SOURCES)
def test_readouts_are_in_the_right_bin(tmp_path, source):
    simulation = small_scan(tmp_path, readouts=2304, coils=1, heart_rate=66)
    heads = [acquisition.getHead() for acquisition in simulation.acquisitions()]
    binning = {"n_respiratory_bins": 6, "n_cardiac_bins": 8, "trigger_source": source}
    bins = bins_of(simulation, heads, binning)
    respiratory, cardiac = true_bins(simulation, 6, 8, 0.0 if source == "ecg" else 0.15)
    right = [
        (respiratory[n], cardiac[n]) == place
        for place, group in zip(np.ndindex(bins.counts.shape), members(bins), strict=True)
        for n in group
    ]
    assert len(right) > 0.6 * 2304
    assert np.mean(right) >= 0.99


def test_the_pilot_tones_delay_is_taken_off(simulation, heads):
    """The same phases as by the ECG, which has none; without it, phases are late."""
    ecg, tone, late = (
        bins_of(simulation, heads, {"trigger_source": source, "ecg_pilottone_delay": delay})
        for source, delay in (("ecg", 0.15), ("pilottone", 0.15), ("pilottone", 0.0))
    )
    shared = set(np.concatenate(members(ecg))) & set(np.concatenate(members(tone))) & set(np.concatenate(members(late)))

    def phases(bins):
        return {n: place[1] for place, group in zip(np.ndindex(4, 4), members(bins), strict=True) for n in group}

    def agreeing(bins):
        return np.mean([phases(ecg)[n] == phases(bins)[n] for n in shared])

    assert agreeing(tone) > 0.9
    assert agreeing(late) < 0.5


def test_seconds_at_both_ends_stay_out(simulation, heads):
    tr = simulation.scan.tr
    bins = bins_of(simulation, heads, arm_discard_pre=2.0, arm_discard_post=1.0)
    used = np.concatenate(members(bins))
    assert used.min() * tr >= 2.0
    assert (used.max() + 1) * tr <= READOUTS * tr - 1.0
    everything = np.concatenate(members(bins_of(simulation, heads)))
    assert everything.min() * tr < 1.0
    assert everything.max() * tr > READOUTS * tr - 1.0


def test_the_client_is_warned_of_empty_bins(simulation, heads):
    told = []
    settings = configuration_of({"n_respiratory_bins": 12, "n_cardiac_bins": 20})
    bins = xd.sort(all_usable(heads), list(simulation.waveforms()), settings, None, told.append)
    empty = (bins.counts == 0).sum()
    assert told == [f"{empty} of 240 bins have no readout: their images come from their neighbours alone"]
    assert xd.middle(bins, *np.argwhere(bins.counts == 0)[0]) == 0


# --- images
def test_images_of_bins_are_the_true_ones(simulation, heads, filled):
    bins = bins_of(simulation, heads)
    assert bins.counts.min() < bins.counts.max()  # so that bins are filled up
    groups = members(bins)
    truth = true_images(simulation, groups)
    alone = error(gridded(simulation, groups), truth)
    assert error(filled.pixels, truth) < 0.3 * alone
    assert change(filled.pixels, truth) > 0.95


def test_images_of_the_native_solver_are_as_good(simulation, heads, filled, native):
    truth = true_images(simulation, members(bins_of(simulation, heads)))
    assert error(native.pixels, truth) <= error(filled.pixels, truth)
    assert change(native.pixels, truth) >= change(filled.pixels, truth)
    assert error(native.pixels, filled.pixels) < 0.05
    assert "INFO     computing with the native solver on the CPU" in native.texts
    assert any(text.startswith("INFO     part 1 of 1: iterative reconstruction: ") for text in native.texts)


def test_a_field_that_varies_over_the_image_is_corrected(simulation, heads, native, monkeypatch):
    disturbed, truth = in_linear_field(simulation), true_images(simulation, members(bins_of(simulation, heads)))
    best = error(native.pixels, truth)
    assert error(run(disturbed, backend="native").pixels, truth) > 1.2 * best
    know_the_field(monkeypatch, xd)
    client = run(disturbed, backend="native")
    assert error(client.pixels, truth) < 1.1 * best
    assert change(client.pixels, truth) > 0.95
    assert any("off-resonance are corrected by" in text for text in client.texts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_taken_for_samples_are_wrong(simulation, heads, filled, native, monkeypatch, backend):
    """The tests above would see it if what fills up bins had a weight."""
    solver = {"bart": bart_recon.BartSolver, "native": solvers.NativeSolver}[backend]
    reconstruct = solver.reconstruct

    def without_weights(self, parts, count):
        (part,) = parts
        zero_filled = part.samples * part.weights[..., np.newaxis, np.newaxis]
        return reconstruct(self, [dataclasses.replace(part, samples=zero_filled, weights=None)], count)

    monkeypatch.setattr(solver, "reconstruct", without_weights)
    truth = true_images(simulation, members(bins_of(simulation, heads)))
    right = {"bart": filled, "native": native}[backend]
    assert error(run(simulation, backend=backend).pixels, truth) > 2 * error(right.pixels, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", [40, 41])
def test_point_lands_where_it_is(tmp_path, backend, matrix):
    x, y = 40.3, -61.7  # [mm]
    simulation = small_scan(tmp_path, matrix, 24, readouts=300, tr=TR, heart_rate=66, point=(x, y))
    client = run(simulation, backend=backend, binning={"n_respiratory_bins": 2, "n_cardiac_bins": 2})
    weight = client.pixels[2] ** 2
    centre = [(weight.sum(axis=1 - axis) * np.arange(matrix)).sum() / weight.sum() for axis in (0, 1)]
    expected = [matrix // 2 - place * matrix / 256 for place in (y, x)]
    np.testing.assert_allclose(centre, expected, atol=0.1)


def test_bins_that_do_not_fit_into_the_memory_are_refused(simulation, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 2**20)
    with pytest.raises(memory.ShortageError, match=r"4 x 4 frames of 40 x 40 pixels .* need about .*choose fewer"):
        run(simulation, backend="native")


def test_images_name_their_bins_and_share_one_scale(simulation, heads, filled):
    bins = bins_of(simulation, heads)
    assert [(image.set, image.phase) for image in filled.images] == list(np.ndindex(4, 4))
    assert [image.image_index for image in filled.images] == list(range(1, 17))
    assert filled.pixels.max() == 4095
    assert all(image.data.dtype == np.int16 for image in filled.images)
    for image, group in zip(filled.images, members(bins), strict=True):
        assert image.acquisition_time_stamp == heads[group[len(group) // 2]].acquisition_time_stamp


def test_waveforms_come_back_as_they_were(simulation, filled):
    sent = list(simulation.waveforms())
    assert [one.time_stamp for one in filled.waveforms] == [one.time_stamp for one in sent]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(filled.waveforms, sent, strict=True))


def test_the_client_is_told_how_full_the_bins_are(simulation, heads, filled):
    bins = bins_of(simulation, heads)
    (text,) = [text for text in filled.texts if "readouts received" in text]
    assert f"{bins.counts.min()} to {bins.counts.max()} in each of 4 respiratory states x 4 cardiac phases" in text
    assert f"{READOUTS - bins.counts.sum()} of them in no bin" in text


def test_bins_cropped_to_the_smallest(simulation, heads):
    """Fewer readouts, no filling; triggers of the derivative, no delay; ends left out."""
    binning = {"fill_small_bins": False, "trigger_source": "pilottone_derivative", "ecg_pilottone_delay": 0}
    settings = {"arm_discard_pre": 0.5, "arm_discard_post": 0.5}
    bins = bins_of(simulation, heads, binning, **settings)
    assert bins.weights.min() == 1
    assert bins.readouts.shape[-1] == bins.counts.min() > 4
    truth = true_images(simulation, members(bins))
    client = run(simulation, binning=binning, **settings)
    assert error(client.pixels, truth) < 0.5 * error(gridded(simulation, members(bins)), truth)


def test_an_empty_bin_cannot_be_cropped_to(simulation):
    with pytest.raises(physio.PhysioError, match=r"no readout is in bin \(respiratory \d+, cardiac \d+\)"):
        run(simulation, binning={"n_respiratory_bins": 12, "n_cardiac_bins": 20, "fill_small_bins": False})


def test_missing_waveforms_are_named(simulation):
    with pytest.raises(physio.PhysioError, match="no pilot-tone waveform"):
        run(simulation, simulation.acquisitions())


def test_taper_is_half_a_tukey_window():
    for length in (8, 101, 1508):
        np.testing.assert_allclose(xd.taper(length), scipy.signal.windows.tukey(2 * length, 0.1)[length:], atol=1e-6)


def test_without_bart_nothing_is_received(simulation, tmp_path):
    def items():
        pytest.fail("a readout was asked for")
        yield

    with pytest.raises(bart_tools.BartNotFoundError, match="apt-get install bart"):
        run(simulation, items(), BART_TOOLBOX_PATH=str(tmp_path))
