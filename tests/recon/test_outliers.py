"""Readouts that are no measurement: which are found, and what the three spiral modules make of the others."""

import itertools

import ismrmrd
import numpy as np
import pytest

import rtspiral_bart_tvrecon as tfd
import simplenufft1arm as sharing
import spiral_xdgrasp_recon as xd
from recon.outliers import BRIGHT, HISTORY, TOGETHER, OutlierFilter, UnusableScanError
from recon.spiralreadout import SpiralReadout
from rtspiral_bart_tvrecon import TfdConfig
from simplenufft1arm import ViewSharingConfig
from spiral_sessions import Client, configure, error, one_thread, small_scan, true_images
from spiral_xdgrasp_recon import XdConfig

BAD = (np.nan, np.inf, 1e3, 1e6, BRIGHT + 1)
COUNT = 60
STEADY = [1.0] * 20

_one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


# --- the rule
def readouts_of(levels, slices=None):
    for number, level in enumerate(levels):
        head = ismrmrd.AcquisitionHeader(scan_counter=number + 1)
        head.idx.slice = slices[number] if slices else 0
        samples = np.full((2, 2), level, np.complex64)
        yield SpiralReadout(samples, column=number % 7, number=number, head=head, arrival=0.0)


def left_out(levels, *slices):
    """Numbers of the readouts that are left out, and what is told; the others are as they were, in their order."""
    told = []
    marked = list(OutlierFilter(told.append).marked(readouts_of(levels, *slices)))
    assert sorted(each.number for each in marked) == list(range(len(levels)))
    for each in marked:
        assert each.column == each.number % 7
        expected = 2 * levels[each.number] if each.usable else 0
        assert np.linalg.norm(each.samples) == pytest.approx(expected, rel=1e-6)
        assert each.samples.shape == (2, 2)
    for number in {each.head.idx.slice for each in marked}:
        numbers = [each.number for each in marked if each.head.idx.slice == number]
        assert numbers == sorted(numbers)
    return [each.number for each in marked if not each.usable], told


@pytest.mark.parametrize("value", [*BAD, 3e38, 0])
@pytest.mark.parametrize("place", [0, 1, TOGETHER - 1, TOGETHER, COUNT // 2, COUNT - 1])
def test_one_bad_readout_is_found_and_told_wherever_it_is(value, place):
    levels = [1 + 0.2 * np.sin(n) for n in range(COUNT)]
    levels[place] = value
    numbers, told = left_out(levels)
    assert numbers == [place]
    first, total = told
    assert first.startswith(f"readout {place + 1} is left out: ")
    assert total.startswith(f"1 of {COUNT} imaging readouts left out in all: 1 ")


FEW = [(1000, 1000), (1e6, 1000, np.nan), (np.nan,) * 30, (0,) * 30, (1000, *[np.nan] * 9, 1000, 0)]
MANY = [(1000,) * (TOGETHER - 1), (1000, 30, 1e6, 200, 5000, 7e4, 900, 10, 1e5)]  # none like the one before


@pytest.mark.parametrize(("before", "bad"), [*((0, bad) for bad in FEW), *((20, bad) for bad in FEW + MANY)])
def test_several_bad_readouts_are_found(before, bad):
    numbers, told = left_out([1.0] * before + list(bad) + STEADY)
    assert numbers == list(range(before, before + len(bad)))
    assert len(told) == 2


def test_kinds_are_counted():
    numbers, told = left_out([*STEADY, np.nan, 1, 1e4, 1, 0, 1, np.inf, 1])
    assert numbers == [20, 22, 24, 26]
    assert told == [
        "readout 21 is left out: its samples are not finite; the log lists any further",
        "4 of 28 imaging readouts left out in all: 2 not finite, 1 far brighter than their neighbours, 1 all zero",
    ]


@pytest.mark.parametrize(
    "levels",
    [
        1 + 9 * np.exp(-np.arange(50) / 15),  # approach to the steady state
        10 ** (1 - np.arange(50) / 50),
        np.where(np.arange(50) % 2, 1, 2) * np.exp(-np.arange(50) / 20) + 1,  # that of balanced SSFP, alternating
        np.abs(1 - 2 * np.exp(-np.arange(300) / 150)) + 0.01,  # inversion recovery, through zero
        np.abs(1 - 2 * np.exp(-(np.arange(400) % 100) / 60)) + 0.01,  # again and again
        np.linspace(0.1, 1, 10).tolist() + STEADY,  # ramped up flip angles
        [*STEADY, 0.001, *STEADY, 0.01, 0.02, *STEADY],  # dark ones
        [*STEADY, *np.geomspace(1, 0.001, 60), *np.geomspace(0.001, 1, 60)],
        [1.0],
        [1.0, 2.0],
    ],
)
def test_signals_that_change_raise_no_alarm(levels):
    assert left_out(levels) == ([], [])


@pytest.mark.parametrize("factor", [20, 1000])
def test_brightness_that_stays_is_kept_and_told_once(factor):
    """Another gain; a pause in which the magnetisation recovers; readouts of noise alone at the start."""
    numbers, told = left_out([*STEADY, *np.array(STEADY) * factor, *STEADY, *np.array(STEADY) * factor, factor * 100])
    assert numbers == [80]
    assert told[0].startswith(f"readouts from scan counter 21 on are {factor} times as bright as those before")
    assert [text.split(" ")[0] for text in told[1:]] == ["readout", "1"]
    decay = 1 + (factor - 1) * np.exp(-np.arange(60) / 20)
    assert left_out([*STEADY, *decay])[0] == []


@pytest.mark.parametrize(
    ("period", "bright"),
    [([4, 1, 1, 1], 1), ([5, 1], 1), ([8, 2.5, 1], 1), ([10, 3.5, 1.5, *[1] * 12], 2)],
)
def test_brightness_that_comes_again_and_again_is_kept_after_a_few_times(period, bright):
    """Triggered scans, inversions, echoes without a counter of their own."""
    numbers, told = left_out(period * 20)
    assert len(numbers) <= bright * (TOGETHER - 1)
    assert all(period[number % len(period)] > BRIGHT / 2 for number in numbers)
    assert not numbers or any("come again and again" in text for text in told)


@pytest.mark.parametrize("after", [[20, 20, 0], [20, 20, 20, 20, 0], [20, 20, 20, 20, 0.5], [1000, 1000, 1000, 0.5]])
def test_a_new_level_with_dark_ones_among_them_is_found(after):
    numbers, told = left_out([*STEADY, *(after * 60)])
    sound = [number for number in numbers if after[(number - len(STEADY)) % len(after)]]
    assert len(sound) < HISTORY
    assert any("they are kept" in text for text in told)


def test_sparks_that_come_again_are_left_out_all_the_same():
    levels = [1.0] * 600
    for place in range(20, 600, 30):
        levels[place] = 1000
    assert left_out(levels)[0] == list(range(20, 600, 30))


@pytest.mark.parametrize("counter", ["contrast", "set", "kspace_encode_step_2"])
def test_echoes_sets_and_partitions_are_judged_by_themselves(counter):
    def items():
        for readout in readouts_of([20.0, 1.0] * COUNT):
            setattr(readout.head.idx, counter, readout.number % 2)
            yield readout

    assert all(each.usable for each in OutlierFilter(pytest.fail).marked(items()))


@pytest.mark.parametrize("slices", [[0, 1, 2] * COUNT, np.repeat([0, 1, 2], COUNT).tolist()])
def test_slices_are_judged_by_themselves(slices):
    levels = [{0: 1.0, 1: 20.0, 2: 0.01}[number] for number in slices]
    assert left_out(levels, slices) == ([], [])
    bad = [slices.index(number) for number in range(3)]
    for place in bad:
        levels[place] *= 2 * BRIGHT
    assert left_out(levels, slices)[0] == bad


def test_only_bright_readouts_and_the_first_ones_wait():
    taken = []

    def watched():
        for readout in readouts_of([*STEADY, 1000, 1, 1, np.nan, 1, 1000, 1000, 1, 1]):
            taken.append(readout)
            yield readout

    waits = [len(taken) - 1 - each.number for each in OutlierFilter(lambda text: None).marked(watched())]
    assert waits == [4, 3, 2, 1, *[0] * 16, 1, 0, 0, 0, 0, 2, 1, 0, 0]


@pytest.mark.parametrize("levels", [[np.nan] * 8, [0.0] * 8, [np.nan, 0, np.inf]])
def test_a_scan_of_nothing_else_is_an_error(levels):
    with pytest.raises(UnusableScanError, match=f"none of the {len(levels)} imaging readouts can be used: .*[1-8] "):
        left_out(levels)


def test_a_slice_of_nothing_else_is_none():
    numbers, _ = left_out([1, np.nan] * 20, [0, 1] * 20)
    assert numbers == list(range(1, 40, 2))


# --- the modules
def spoiled(simulation, bad):
    """Items of a scan; `bad` has a factor for some of its readouts, or what one sample becomes."""
    readouts = itertools.count()
    for item in simulation.items():
        if isinstance(item, ismrmrd.Acquisition) and (value := bad.get(next(readouts))) is not None:
            if 0 < value < np.inf:
                item.data[:] *= value
            else:
                item.data[0, item.data.shape[1] // 2] = value
        yield item


def through(module, config, simulation, bad, **tables):
    client = Client(spoiled(simulation, bad))
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, config, simulation.trajectory.file.parent, **tables)
        module.process(client, module.__name__, simulation.header)
    return client


def warnings_of(client):
    return [text for text in client.texts if text.startswith("WARNING")]


ARMS_SHARED, SHIFT, READOUTS = 48, 12, 120
GROUPS_SHARED = [range(start, start + ARMS_SHARED) for start in range(0, READOUTS - ARMS_SHARED + 1, SHIFT)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=READOUTS, heart_rate=75, waveforms=False)


def view_sharing(simulation, bad, arms=ARMS_SHARED):
    table = {"arms_per_frame": arms, "window_shift": SHIFT}
    return through(sharing, ViewSharingConfig, simulation, bad, reconstruction=table)


@pytest.fixture(scope="module")
def whole(shared):
    client = view_sharing(shared, {})
    assert warnings_of(client) == []
    return client


@pytest.mark.parametrize(
    ("place", "value"), [*((0, value) for value in BAD), (READOUTS // 2, 1e3), (READOUTS - 1, np.nan)]
)
def test_a_view_sharing_movie_misses_one_arm(shared, whole, place, value):
    truth, client = true_images(shared, GROUPS_SHARED), view_sharing(shared, {place: value})
    assert len(client.images) == len(GROUPS_SHARED)
    assert error(client.pixels, truth) < 1.1 * error(whole.pixels, truth)
    np.testing.assert_allclose(client.pixels.max(axis=(1, 2)), whole.pixels.max(axis=(1, 2)), rtol=0.03)
    assert len(warnings_of(client)) == 2
    assert f"readout {place + 1} is left out" in warnings_of(client)[0]


def test_frames_with_few_usable_readouts_are_not_made(shared, whole):
    """Neither scale nor coil maps come from them."""
    client = view_sharing(shared, dict.fromkeys(range(41), np.nan))
    assert len(client.images) == len(whole.images) - 2
    assert "WARNING  2 frame(s) were not made: fewer than half of their readouts could be used" in client.texts
    assert error(client.pixels, true_images(shared, GROUPS_SHARED)[2:]) < 0.1
    assert client.pixels.max(axis=(1, 2)) == pytest.approx(client.pixels.max(), rel=0.1)
    assert [image.image_index for image in client.images] == list(range(1, len(client.images) + 1))


def test_a_frame_of_bad_readouts_alone(shared):
    client = view_sharing(shared, dict.fromkeys(range(12, 24), np.nan), arms=SHIFT)
    assert len(client.images) == READOUTS // SHIFT - 1
    assert client.pixels.max(axis=(1, 2)).min() > 1000


def test_a_scan_of_bad_readouts_is_an_error(shared):
    with pytest.raises(UnusableScanError, match="none of the 120 imaging readouts can be used: 120 not finite"):
        view_sharing(shared, dict.fromkeys(range(READOUTS), np.nan))


ARMS, FRAMES = 7, 16
GROUPS = [range(ARMS * n, ARMS * (n + 1)) for n in range(FRAMES)]


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=ARMS * FRAMES, heart_rate=75, seed=1)


def differences(simulation, bad, backend="native", **settings):
    table = {"backend": backend, "arms_per_frame": ARMS, "num_recon_frames": FRAMES, "num_chunks": 1,
             "fov_oversampling": 1.0, "num_iter": 20, "reg_lambda": 0.0002} | settings  # fmt: skip
    return through(tfd, TfdConfig, simulation, bad, reconstruction=table)


@pytest.mark.parametrize(
    ("backend", "bad"),
    [
        ("native", {0: 1e6}),
        ("native", {56: np.nan}),
        ("native", {ARMS * FRAMES - 1: 1e3}),
        ("bart", {0: np.nan, 56: 1e3, ARMS * FRAMES - 1: 1e6}),
    ],
)
def test_frames_of_temporal_differences_do_with_the_other_readouts(movie, backend, bad):
    """Without any bad readout the error is 0.074 and 0.076."""
    client, truth = differences(movie, bad, backend), true_images(movie, GROUPS)
    assert error(client.pixels, truth) < 0.085
    brightest = truth.max(axis=(1, 2)) * client.pixels.max() / truth.max()
    np.testing.assert_allclose(client.pixels.max(axis=(1, 2)), brightest, rtol=0.1)
    assert len(warnings_of(client)) == 2


@pytest.mark.parametrize("frame", [0, 8])
def test_a_frame_of_bad_readouts_comes_from_its_neighbours(movie, frame):
    truth = true_images(movie, GROUPS)
    client = differences(movie, dict.fromkeys(GROUPS[frame], np.nan))
    assert len(client.images) == FRAMES
    assert error(client.pixels[frame], truth[frame]) < 0.9 * error(truth.mean(axis=0), truth[frame])
    assert error(np.delete(client.pixels, frame, axis=0), np.delete(truth, frame, axis=0)) < 0.095
    assert any("1 frame(s) have no usable readout and come from their neighbours" in text for text in client.texts)


@pytest.mark.parametrize("backend", ["native", "bart"])
def test_a_part_of_bad_readouts_is_left_out(movie, backend):
    """Though the first of the four parts shares frames with the second, which has a usable readout in its last one."""
    bad = dict.fromkeys(range(GROUPS[0].start, GROUPS[7].start), np.nan)
    client = differences(movie, bad, backend, num_chunks=4, num_iter=5)
    assert len(client.images) == FRAMES - 4
    assert client.pixels.max(axis=(1, 2))[-8:].min() > 1500
    ticks = ARMS * movie.scan.tr / 2.5e-3
    first = next(movie.acquisitions()).acquisition_time_stamp
    assert client.images[-1].acquisition_time_stamp == round(first + (FRAMES - 1) * ticks)
    assert any("7 frame(s) have no usable readout" in text for text in client.texts)


def test_the_scale_comes_from_the_first_frames_when_the_others_of_the_part_are_bad(movie):
    client = differences(movie, dict.fromkeys(range(GROUPS[5].start, GROUPS[7].stop), np.nan), num_chunks=2, num_iter=5)
    assert len(client.images) == FRAMES
    assert client.pixels.max(axis=(1, 2)).min() > 1500


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, 32, 16, readouts=400, tr=20e-3, coils=2, heart_rate=66)


def test_bad_readouts_are_in_no_bin(heart):
    tables = {
        "reconstruction": {"backend": "native", "arm_discard_pre": 0, "arm_discard_post": 0, "num_iter": 10},
        "binning": {"n_respiratory_bins": 2, "n_cardiac_bins": 4, "trigger_source": "pilottone"},
    }
    whole = through(xd, XdConfig, heart, {}, **tables)
    bad = {0: np.nan, 200: np.nan, 201: 1e6, 320: 1e3, 399: np.inf}
    client = through(xd, XdConfig, heart, bad, **tables)
    assert error(client.pixels, whole.pixels) < 0.05
    assert warnings_of(whole) == []
    assert "5 of 400 imaging readouts left out" in warnings_of(client)[1]


def test_scans_as_the_generator_makes_them_raise_no_alarm(tmp_path):
    for seed, scan in enumerate(({"slices": 3}, {"noise": 0.3}, {"dummies": 5, "noise_scan": True, "lost": 9})):
        simulation = small_scan(tmp_path, readouts=300, coils=1, waveforms=False, seed=seed, **scan)
        told = []
        settings = TfdConfig((tmp_path,))
        list(tfd.spiral.SpiralScan(settings, simulation.header, told.append).readouts(simulation.items()))
        assert not any("left out" in text or "bright" in text for text in told)
