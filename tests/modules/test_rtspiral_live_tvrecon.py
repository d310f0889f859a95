"""The live reconstruction through its module: start, lag, slices, orientations, bad readouts, ends, final series."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

import mrdhelper
import rtspiral_live_tvrecon as live
from recon import configuration, spiral
from recon.configuration import ConfigurationError
from recon.fieldcorrection import FieldCorrection
from recon.latency import LatencyLedger
from recon.readouts import DataError, Readouts
from rtspiral_live_tvrecon import LiveConfig
from simulation.spiralsimulation import FIRST_TIME_STAMP
from solvers import liveslices, livestart
from solvers.effort import Effort
from solvers.live import LiveWindow
from solvers.liveslices import LiveReconstruction
from spiral_sessions import (
    Client,
    change,
    configure,
    error,
    in_axial_fields,
    in_linear_field,
    know_the_field,
    small_scan,
    true_images,
)

ARMS, FRAMES, CALIBRATION = 7, 40, 112  # the latter 16 frames
FIRST = 13  # iterative frame: the first one that no view-shared image shows
LIVE, SHARED = "live TFD", "view-sharing"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, 40, 20, readouts=ARMS * FRAMES + 3, heart_rate=75, waveforms=False)


def through(simulation, items=None, scaled=False, **options):
    """Send a scan through the module, as fast as it takes it; images that are not scaled are what was made."""
    # Simulated beforehand: readouts that come more slowly than a file's would not be waited for.
    client = Client(list(simulation.items()) if items is None else items)
    with pytest.MonkeyPatch.context() as patch:
        if not scaled:
            patch.setattr(mrdhelper, "scale_to_int16", lambda pixels, *scale: pixels)
        table = {"calibration_arms": CALIBRATION} | options
        configure(patch, LiveConfig, simulation.trajectory.file.parent, reconstruction=table)
        live.process(client, "rtspiral_live_tvrecon", simulation.header)
    return client


def made_by(client, method):
    return [image for image in client.images if image.meta.get("ReconstructionMethod") == method]


def pixels(images):
    return np.abs(np.stack([image.data[0, 0] for image in images])).astype(float)


def truth_of(simulation, frames):
    return true_images(simulation, [range(ARMS * n, ARMS * (n + 1)) for n in frames])


@pytest.fixture(scope="module")
def movie(scan):
    return through(scan)


def test_view_shared_images_come_first_then_iterative_ones_and_no_frame_is_missing(scan, movie):
    methods = [image.meta["ReconstructionMethod"] for image in movie.images]
    # Eight frames of 7 arms make up the view-shared footprint of 55, so that the first image comes with the eighth.
    assert methods == [SHARED] * 9 + [LIVE] * (FRAMES - FIRST)
    assert [image.image_index for image in movie.images] == list(range(1, 37))
    # The last view-shared one shows frame 12, in its middle: each frame from the first one shown on is shown once.
    ticks = ARMS * 1e-3 * scan.header.sequenceParameters.TR[0] / mrdhelper.SECONDS_PER_TICK
    shown = [round((image.acquisition_time_stamp - FIRST_TIME_STAMP) / ticks) for image in movie.images]
    assert shown == list(range(4, FRAMES))


def test_iterative_images_agree_with_the_truth_and_change_as_it_does(scan, movie):
    images, truth = pixels(made_by(movie, LIVE)), truth_of(scan, range(FIRST, FRAMES))
    assert error(images, truth) < 0.1
    assert change(images, truth) > 0.96
    assert error(images[:1], truth[:1]) < 0.13, "also the very first one"


def test_a_gpu_gives_the_same(cupy, scan, movie):
    on_gpu = through(scan, gpu_device=0)
    assert [image.image_index for image in on_gpu.images] == [image.image_index for image in movie.images]
    assert error(pixels(on_gpu.images), pixels(movie.images)) < 0.005


def test_concomitant_fields_of_an_axial_plane_make_no_difference(movie, tmp_path):
    there = small_scan(
        tmp_path,
        40,
        20,
        readouts=ARMS * FRAMES + 3,
        heart_rate=75,
        waveforms=False,
        position=(0.0, 0.0, 300.0),
        field_strength=0.55,
    )
    items = list(in_axial_fields(there.acquisitions(), there.trajectory))
    expected = pixels(movie.images)
    assert error(pixels(through(there, items).images), expected) < 0.01
    assert error(pixels(through(there, items, concomitant="off").images), expected) > 0.05


def test_a_field_that_varies_over_the_image_is_corrected(scan, movie, monkeypatch):
    """In both kinds of images, and in the final series; with time for all terms."""
    monkeypatch.setattr(FieldCorrection, "keep_pace", lambda self, correction, *times: correction)
    disturbed, truth = in_linear_field(scan), truth_of(scan, range(FIRST, FRAMES))
    best = error(pixels(made_by(movie, LIVE)), truth)
    assert error(pixels(made_by(through(disturbed), LIVE)), truth) > 1.3 * best
    know_the_field(monkeypatch, live)
    client = through(disturbed, final_series=True)
    assert error(pixels(made_by(client, LIVE)), truth) < 1.1 * best
    shared = slice(0, 9)
    assert error(pixels(made_by(client, SHARED)), pixels(movie.images[shared])) < 0.05
    final = [image for image in client.images if image.image_series_index == live.FINAL_SERIES]
    assert error(pixels(final)[FIRST:], truth) < best


def test_terms_are_left_out_where_iterations_would_be_late(scan, monkeypatch):
    """A machine that would take a second for an iteration; images come all the same, and the client is told."""
    monkeypatch.setattr(livestart, "seconds_per_iteration", lambda *arguments: 1.0)
    know_the_field(monkeypatch, live)
    client = through(in_linear_field(scan))
    assert len(client.images) == 36
    (text,) = (text for text in client.texts if "per readout, the scan leaves" in text)
    assert "1 term(s) are used" in text


def test_brightness_does_not_jump_where_the_iterations_begin(scan, movie):
    images, truth = pixels(movie.images), truth_of(scan, range(4, FRAMES))
    gain = (images * truth).sum(axis=(1, 2)) / (truth * truth).sum(axis=(1, 2))
    assert abs(gain[9] / gain[8] - 1) < 0.1
    assert np.ptp(gain[9:]) < 0.03 * gain[9], "nor later"


def test_time_stamps_are_those_of_the_frames_beginnings(scan, movie):
    ticks = ARMS * 1e-3 * scan.header.sequenceParameters.TR[0] / mrdhelper.SECONDS_PER_TICK
    expected = [round(FIRST_TIME_STAMP + n * ticks) for n in range(FIRST, FRAMES)]
    assert [image.acquisition_time_stamp for image in made_by(movie, LIVE)] == expected


def test_images_carry_their_latency_and_the_summary_comes(movie):
    assert all(float(image.meta["ProcessingTime_ms"]) >= 0 for image in movie.images)
    assert all(image.meta["LastReadoutArrival"] for image in movie.images)
    assert sum("latency from last readout to image sent" in text for text in movie.texts) == 1


@pytest.mark.parametrize("lag", [0, 3])
def test_a_frame_is_sent_when_so_many_later_ones_are_in(scan, lag):
    """Seen from the readouts that have been taken by then; at the end the last frames are sent without waiting."""
    simulated = list(scan.items())
    settings = LiveReconstruction(lag_frames=lag, window_frames=4, calibration_arms=CALIBRATION)
    taken = []

    def watched():
        for item in simulated:
            taken.append(item)
            yield item

    config = LiveConfig((scan.trajectory.file.parent,), settings)
    session = spiral.SpiralScan(config, scan.header)
    frames = liveslices.reconstruct(session.readouts(watched()), session, settings, None, [])
    begun = [(frame.head.scan_counter, len(taken)) for frame in frames if frame.method == LIVE]
    first = ARMS * FIRST
    middles = [first + ARMS * n + ARMS // 2 + 1 for n in range(FRAMES - FIRST)]
    assert [counter for counter, _ in begun] == middles
    for n, (_, count) in enumerate(begun):
        # A readout may be held back by the search for outliers, never more than one frame of them.
        assert count >= min(first + ARMS * (n + 1 + lag), len(simulated))
        begin = max(n, CALIBRATION // ARMS - FIRST - 1)  # the first ones come together
        assert count < first + ARMS * (begin + 2 + lag) + ARMS or count == len(simulated)


def test_every_readout_counts(scan):
    """One whose samples are others changes the image of its own frame, wherever it stands in it."""
    reference = pixels(made_by(through(scan, lag_frames=0), LIVE))
    for place in (0, ARMS - 1):
        items = list(scan.items())
        other = items[ARMS * 30 + place]
        other.data[:] *= 1.5
        images = pixels(made_by(through(scan, items, lag_frames=0), LIVE))
        distance = np.linalg.norm(images - reference, axis=(1, 2)) / np.linalg.norm(reference, axis=(1, 2))
        assert distance[: 30 - FIRST].max() < 1e-5
        assert distance[30 - FIRST] > 1e-3
        other.data[:] /= 1.5


def test_two_slices_in_turn_are_what_each_is_alone(tmp_path):
    two = small_scan(
        tmp_path, 40, 20, readouts=2 * ARMS * 24, slices=2, interleaved=True, coils=3, heart_rate=75, waveforms=False
    )
    both = through(two)
    for number in (0, 1):
        # The scan's first readout stays, as arms are counted from it.
        items = (item for item in two.items() if item.idx.slice == number or item.scan_counter == 1)
        alone = [image for image in through(two, items).images if image.slice == number]
        images = [image for image in both.images if image.slice == number]
        assert [one.meta["ReconstructionMethod"] for one in images] == [SHARED] * 9 + [LIVE] * 11
        np.testing.assert_allclose(pixels(images), pixels(alone), rtol=1e-3, atol=1e-3 * pixels(alone).max())


def test_another_orientation_starts_anew_and_loses_no_frame(scan):
    items = list(scan.items())[: ARMS * 20] * 2
    copies = [ismrmrd.Acquisition.from_array(item.data) for item in items]
    for number, (copy, item) in enumerate(zip(copies, items, strict=True)):
        copy.setHead(item.getHead())
        copy.scan_counter = number + 1
        copy.acquisition_time_stamp = FIRST_TIME_STAMP + round(number * 2.3)
        if number >= ARMS * 20:
            copy.read_dir, copy.phase_dir = (0, 1, 0), (-1, 0, 0)
    client = through(scan, copies, lag_frames=2)
    methods = [image.meta["ReconstructionMethod"] for image in client.images]
    assert methods == 2 * ([SHARED] * 9 + [LIVE] * 7)
    assert [image.read_dir[1] for image in client.images] == [client.images[0].read_dir[1]] * 16 + [1] * 16


def test_bad_readouts_are_left_out(scan):
    items = list(scan.items())
    items[ARMS * 25 + 2].data[:] = np.nan
    images = pixels(made_by(through(scan, items), LIVE))
    assert len(images) == FRAMES - FIRST
    assert error(images, truth_of(scan, range(FIRST, FRAMES))) < 0.105


def test_a_scan_that_ends_before_its_calibration_says_so(scan):
    client = through(scan, list(scan.items())[: ARMS * 10])
    assert len(client.images) == 3
    assert {image.meta["ReconstructionMethod"] for image in client.images} == {SHARED}
    assert any("smaller calibration_arms" in text for text in client.texts)


def test_without_a_readout_the_client_is_told(scan):
    client = through(scan, [])
    assert not client.images
    assert any("no image was made" in text for text in client.texts)


def test_final_series_is_that_of_the_batch_reconstruction(scan):
    client = through(scan, final_series=True, scaled=True)
    final = [image for image in client.images if image.image_series_index == live.FINAL_SERIES]
    assert [image.image_index for image in final] == list(range(1, FRAMES + 1))
    assert len(client.images) == FRAMES + 36
    truth = truth_of(scan, range(FRAMES))
    assert change(pixels(final), truth) > 0.965
    first = made_by(client, LIVE)[0]
    assert final[FIRST].acquisition_time_stamp == first.acquisition_time_stamp


def test_no_window_for_the_lag_is_refused_with_what_would_be_right(scan, tmp_path):
    with pytest.raises(ConfigurationError, match="window_frames = 2 must be larger than lag_frames = 2"):
        through(scan, window_frames=2, lag_frames=2)


def test_the_shipped_configuration_is_the_default():
    assert configuration.load(LiveConfig, configuration.PROJECT_FOLDER / LiveConfig.FILE).reconstruction == (
        LiveReconstruction()
    )


def test_a_reconstruction_that_is_late_gives_up_iterations_then_window_then_frames_and_recovers():
    effort, duration = Effort(iterations=3, window=4), 0.04
    assert effort.summary() is None
    late = [0, 0.5, 1.5, 2.5, 3.5, 4.5, 7.5, 8.5, 7.5, 1.5]  # frames
    expected = [(3, 4), (3, 4), (2, 4), (1, 4), (1, 2), (1, 1), (1, 1), (0, 1), (1, 1), (1, 1)]
    assert [effort.afford(frames * duration, duration) for frames in late] == expected
    for each in expected:
        effort.note(*each)
    told = "of 10 frames 8 with fewer iterations (1.4 of 3 on average), 5 with a shorter window, 1 left out"
    assert told in effort.summary()
    assert [effort.afford(0, duration) for _ in range(25)][4::5] == [(1, 1), (1, 2), (1, 4), (2, 4), (3, 4)]
    assert Effort(4, 4).afford(5.0, 0.0) == (4, 4), "without time stamps nobody knows"


IMPORTED = """
import sys
import threading
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from pathlib import Path

import pytest

import rtspiral_live_tvrecon as live
from spiral_sessions import Client, configure, small_scan

folder = Path(sys.argv[1])
scan = small_scan(folder, 24, 10, readouts=84, coils=2, waveforms=False)
client = Client(list(scan.items()))
configure(pytest.MonkeyPatch(), live.LiveConfig, folder, reconstruction={"calibration_arms": 56})
live.prepare("", scan.header)
before = set(sys.modules)
live.process(client, "", scan.header)
assert any(image.meta["ReconstructionMethod"] == "live TFD" for image in client.images)
print("imported by then:", *sorted(set(sys.modules) - before)[:9])
"""


def test_nothing_is_left_to_import_when_the_first_readout_comes(tmp_path):
    """It took more than a second, while the scan went on: the iterations began that much later on a fresh server."""
    tests = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, tmp_path], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("imported by then:")


def copies(items):
    """Readouts that can be changed without changing the scan's."""
    made = []
    for item in items:
        copy = ismrmrd.Acquisition.from_array(item.data.copy())
        copy.setHead(item.getHead())
        made.append(copy)
    return made


def test_coil_maps_from_noise_are_made_anew_when_the_signal_comes(scan):
    """As when the scan starts before the patient is excited: images of noise maps had an error of 0.7 to the end."""
    items, rng = copies(scan.items()), np.random.default_rng(5)
    for item in items[:CALIBRATION]:
        noise = rng.standard_normal((*item.data.shape, 2), np.float32).view(np.complex64)[..., 0]
        item.data[:] = 0.002 * abs(item.data).max() * noise
    client = through(scan, items, scaled=True)
    assert any("coil maps" in text and "made anew" in text for text in client.texts)
    assert not any("clip" in text for text in client.texts)
    late = client.images[-9:]
    assert {image.meta["ReconstructionMethod"] for image in late} == {LIVE}
    assert error(pixels(late), truth_of(scan, range(31, FRAMES))) < 0.11


def test_brightness_does_not_jump_while_the_signal_approaches_its_steady_state(scan):
    items = copies(scan.items())
    decay = [1 + 4 * np.exp(-n / 60) for n in range(len(items))]
    for item, factor in zip(items, decay, strict=True):
        item.data[:] *= factor
    client = through(scan, items)
    images, truth = pixels(client.images), truth_of(scan, range(4, FRAMES))
    gain = (images * truth).sum(axis=(1, 2)) / (truth * truth).sum(axis=(1, 2))
    relative = gain / [np.mean(decay[ARMS * n : ARMS * (n + 1)]) for n in range(4, FRAMES)]
    assert abs(relative[-1] / relative[8] - 1) < 0.1


@pytest.mark.parametrize("stamps", ["zero", "wrapping"])
def test_time_stamps_that_tell_nothing_cost_no_iterations(scan, movie, stamps):
    """They made a file look late: 1.4 of 4 iterations, or no iterative image at all."""
    items = copies(scan.items())
    for n, item in enumerate(items):
        item.acquisition_time_stamp = 0 if stamps == "zero" else (2**32 - 300 + round(2.3 * n)) % 2**32
    client = through(scan, items)
    assert len(client.images) == len(movie.images)
    np.testing.assert_allclose(pixels(client.images), pixels(movie.images), rtol=1e-4, atol=1)
    assert not any("too slow" in text for text in client.texts)


def test_coils_that_change_are_an_error_that_names_the_readout(scan):
    items = copies(scan.items())
    one = items[200]
    fewer = ismrmrd.Acquisition.from_array(one.data[:3].copy())
    head = one.getHead()
    head.active_channels = 3
    fewer.setHead(head)
    items[200] = fewer
    with pytest.raises(DataError, match="readout 201 has 3 coils, the first has 4"):
        through(scan, items)


def test_sets_and_contrasts_have_images_of_their_own(scan):
    """Such as flow-encoded ones: mixed in one frame, their phases cancelled."""
    items = copies(scan.items())
    for n, item in enumerate(items):
        item.idx.set = n // ARMS % 2
        item.data[:] *= np.exp(2.5j * item.idx.set)
    client = through(scan, items, calibration_arms=70)
    for number in (0, 1):
        images = [image for image in made_by(client, LIVE) if image.set == number]
        assert len(images) > 5
        assert error(pixels(images)[-5:], truth_of(scan, range(30 + number, FRAMES, 2))) < 0.14


def test_a_slice_too_short_for_an_image_is_told(scan):
    items = copies(scan.items())
    for n, item in enumerate(items):
        item.idx.slice = n >= ARMS * 35
    client = through(scan, items)
    assert {image.slice for image in client.images} == {0}
    assert any("1 slice(s) or orientation(s) have no image: each view-shared one takes 56" in t for t in client.texts)


def test_view_shared_frames_that_are_not_made_are_told(scan):
    items = copies(scan.items())
    for item in items[:60]:
        item.data[:] = 0
    client = through(scan, items)
    assert any("frame(s) were not made: fewer than half" in text for text in client.texts)


def test_frames_without_data_do_not_fill_the_memory_while_the_calibration_waits(scan, monkeypatch):
    items, kept = copies(scan.items()), []
    for item in items[:180]:
        item.data[:] = 0
    append = Readouts.append
    monkeypatch.setattr(Readouts, "append", lambda self, readout: (kept.append(readout), append(self, readout)))
    client = through(scan, items, calibration_arms=56)
    assert made_by(client, LIVE)
    assert len(kept) < 56 + 2 * ARMS


def test_windows_beyond_the_memory_are_refused_with_what_would_be_right(scan, monkeypatch):
    monkeypatch.setattr("recon.memory.usable", lambda device=-1: 64 << 20)
    with pytest.raises(
        ValueError, match=r"window_frames = 900 of 40 x 40 pixels in 1 slices would take .* fewer frames"
    ):
        through(scan, window_frames=900)


def test_starts_of_orientations_that_have_passed_are_not_waited_for(scan, monkeypatch):
    """An orientation that changes faster than maps are made piled them up."""
    items, begun, over = copies(scan.items()), [], threading.Event()
    for n, item in enumerate(items):
        if n // ARMS % 2:
            item.read_dir, item.phase_dir = (0, 1, 0), (-1, 0, 0)
    make = livestart.begin

    def begin(*args, **options):
        begun.append(1)
        over.wait(30)
        return make(*args, **options)

    def watched():
        yield from items
        over.set()

    monkeypatch.setattr(LatencyLedger, "can_wait", False)
    monkeypatch.setattr(livestart, "begin", begin)
    monkeypatch.setattr("solvers.liveslices.Live.shared_arms", ARMS)
    through(scan, watched(), calibration_arms=ARMS)
    assert len(begun) <= 2


class AtOnce(Executor):
    """Does what is submitted at once, so that no test depends on how fast a thread is."""

    def submit(self, work, /, *args, **options):
        future = Future()
        future.set_result(work(*args, **options))
        return future


def paced(monkeypatch, simulation, folder, seconds=0.0, **options):
    """Live frames of a scan at its own pace, and what the client is told.

    On a clock by which an iteration on one frame takes so many seconds, and all else no time.
    """
    now, texts, refine = [100.0], [], LiveWindow.refine
    settings = LiveReconstruction(calibration_arms=CALIBRATION, **options)
    scan = spiral.SpiralScan(LiveConfig((folder,), settings), simulation.header, texts.append)
    scan.ledger = LatencyLedger(texts.append, lambda: now[0])
    tr = 1e-3 * simulation.header.sequenceParameters.TR[0]

    def arriving():
        for item in simulation.items():
            now[0] = 100.0 + tr * item.scan_counter
            yield item

    def taken(readouts):
        for readout in readouts:
            now[0] = max(now[0], readout.arrival)
            yield readout

    def timed(window, frames):
        now[0] += seconds * frames
        refine(window, frames)

    monkeypatch.setattr(LiveWindow, "refine", timed)
    monkeypatch.setattr(liveslices, "preparing", lambda: nullcontext(AtOnce()))
    readouts = scan.readouts(arriving())
    if scan.nominal is not None:  # else they are held back until the scan is over
        readouts = list(readouts)
        now[0], scan.ledger = 100.0, LatencyLedger(texts.append, lambda: now[0])
        scan.ledger.arrived()
    frames = liveslices.reconstruct(taken(readouts), scan, settings, tr, [])
    return [frame for frame in frames if frame.method == LIVE], texts


GIVEN_UP = ("with fewer iterations", "with a shorter window", "left out")


@pytest.mark.parametrize(("seconds", "given_up"), [(0.002, 0), (0.004, 1), (0.022, 2), (0.1, 3)])
def test_a_slow_machine_gives_up_iterations_then_window_then_frames(monkeypatch, scan, seconds, given_up):
    frames, texts = paced(monkeypatch, scan, scan.trajectory.file.parent, seconds)
    summary = next((text for text in texts if "too slow" in text), "")
    assert tuple(each for each in GIVEN_UP if each in summary) == GIVEN_UP[:given_up]
    left_out = int(re.search(r"(\d+) left out", summary)[1]) if given_up == 3 else 0
    assert len(frames) == FRAMES - FIRST - left_out > 0


def test_a_machine_that_stays_too_slow_does_not_stay_behind():
    """It stayed behind by a frame for each iteration that it had to give up."""
    effort, now, lateness = Effort(iterations=5, window=3), 0.0, []
    for n in range(200):  # frames of 40 ms, an iteration takes 15 ms
        lateness.append(max(now - 0.04 * n, 0.0))
        count, _ = effort.afford(lateness[-1], 0.04)
        now = max(now, 0.04 * n) + 0.015 * count
    assert max(lateness[20:]) < 0.08


def test_readouts_that_were_held_back_for_their_trajectory_lose_no_frame(monkeypatch, tmp_path, tmp_path_factory):
    """They are worked on when the scan is over, and looked late by all of its length."""
    elsewhere = tmp_path_factory.mktemp("meta")
    carrying = small_scan(elsewhere, 40, 20, readouts=ARMS * 30, waveforms=False, carried="cycles")
    frames, texts = paced(monkeypatch, carrying, tmp_path, 0.004)
    assert len(frames) == 30 - FIRST
    assert not any("too slow" in text for text in texts)


def test_a_stack_is_refused_and_not_mixed_into_2d_images(scan):
    items = copies(scan.items())
    for n, item in enumerate(items):
        item.idx.kspace_encode_step_2 = n % 4
    with pytest.raises(ValueError, match=r"readout 2 is of partition 1 .* simplenufft takes stacks"):
        through(scan, items)


def test_orientations_share_tables_where_they_share_the_trajectory(monkeypatch, tmp_path):
    """Without the oversampling of the readout, each new orientation made its own, of the same arms."""
    halved, made = small_scan(tmp_path, 40, 20, readouts=ARMS * 10, waveforms=False, remove_oversampling=True), []
    items = copies(halved.items())
    for n, item in enumerate(items):
        turned = n // ARMS
        item.read_dir = np.cos(turned), np.sin(turned), 0
        item.phase_dir = -np.sin(turned), np.cos(turned), 0
    make = liveslices.ArmTables
    monkeypatch.setattr(liveslices, "ArmTables", lambda *args: made.append(1) or make(*args))
    monkeypatch.setattr(liveslices, "preparing", lambda: nullcontext(AtOnce()))
    monkeypatch.setattr("solvers.liveslices.Live.shared_arms", ARMS)
    assert through(halved, items).images
    assert len(made) == 1


def test_a_final_series_beyond_the_memory_ends_early_and_the_live_one_goes_on(scan, monkeypatch):
    """Its readouts filled the memory, and the live images were lost with the server."""
    one = next(iter(scan.items())).data.nbytes
    monkeypatch.setattr(liveslices, "memory", SimpleNamespace(usable=lambda device=-1: ARMS * 30 * one))
    client = through(scan, final_series=True)
    final = [image for image in client.images if image.image_series_index == live.FINAL_SERIES]
    assert len(made_by(client, LIVE)) == FRAMES - FIRST
    assert 20 <= len(final) <= 31
    assert sum("the final series ends with readout" in text for text in client.texts) == 1


def test_memory_of_view_shared_images_is_refused_in_settings_that_there_are(scan, monkeypatch):
    monkeypatch.setattr("recon.memory.usable", lambda device=-1: 1 << 20)
    with pytest.raises(ValueError, match="larger arms_per_frame") as refused:
        through(scan)
    assert "window_shift" not in str(refused.value)
