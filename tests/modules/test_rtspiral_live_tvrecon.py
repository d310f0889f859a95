"""The live reconstruction through its module: start, lag, slices, orientations, bad readouts, ends, final series."""

import os
import subprocess
import sys
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

import mrdhelper
import rtspiral_live_tvrecon as live
from recon import configuration, spiral
from recon.configuration import ConfigurationError
from recon.latency import LatencyLedger
from rtspiral_live_tvrecon import LiveConfig
from simulation.spiralsimulation import FIRST_TIME_STAMP
from solvers import liveslices
from solvers.effort import Effort
from solvers.liveslices import LiveReconstruction
from spiral_sessions import Client, change, configure, error, small_scan, true_images

ARMS, FRAMES, CALIBRATION = 7, 40, 112  # the latter 16 frames
LIVE, SHARED = "live TFD", "view-sharing"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, 40, 20, readouts=ARMS * FRAMES + 3, heart_rate=75, waveforms=False)


def through(simulation, items=None, scaled=False, **options):
    """Send a scan through the module, as fast as it takes it; images that are not scaled are what was made."""
    client = Client(simulation.items() if items is None else items)
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


def test_view_shared_images_come_first_then_iterative_ones_and_none_is_missing(movie):
    methods = [image.meta["ReconstructionMethod"] for image in movie.images]
    # Eight frames of 7 arms make up the view-shared footprint of 55, so that the first image comes with the eighth.
    assert methods == [SHARED] * 9 + [LIVE] * 24
    assert [image.image_index for image in movie.images] == list(range(1, 34))
    stamps = [image.acquisition_time_stamp for image in movie.images]
    assert stamps == sorted(set(stamps))


def test_iterative_images_agree_with_the_truth_and_change_as_it_does(scan, movie):
    images, truth = pixels(made_by(movie, LIVE)), truth_of(scan, range(16, 40))
    assert error(images, truth) < 0.1
    assert change(images, truth) > 0.96
    assert error(images[:1], truth[:1]) < 0.13, "also the very first one"


def test_brightness_does_not_jump_where_the_iterations_begin(scan, movie):
    images, truth = pixels(movie.images), truth_of(scan, [*range(3, 12), *range(16, 40)])
    gain = (images * truth).sum(axis=(1, 2)) / (truth * truth).sum(axis=(1, 2))
    assert abs(gain[9] / gain[8] - 1) < 0.1
    assert np.ptp(gain[9:]) < 0.03 * gain[9], "nor later"


def test_time_stamps_are_those_of_the_frames_beginnings(scan, movie):
    ticks = ARMS * 1e-3 * scan.header.sequenceParameters.TR[0] / mrdhelper.SECONDS_PER_TICK
    expected = [round(FIRST_TIME_STAMP + n * ticks) for n in range(16, 40)]
    assert [image.acquisition_time_stamp for image in made_by(movie, LIVE)] == expected


def test_images_carry_their_latency_and_the_summary_comes(movie):
    assert all(float(image.meta["ProcessingTime_ms"]) >= 0 for image in movie.images)
    assert all(image.meta["LastReadoutArrival"] for image in movie.images)
    assert sum("latency from last readout to image sent" in text for text in movie.texts) == 1


@pytest.mark.parametrize("lag", [0, 3])
def test_a_frame_is_sent_when_so_many_later_ones_are_in(scan, lag):
    """Seen from the readouts that have been taken by then; at the end the last frames are sent without waiting."""
    simulated = list(scan.items())
    settings = LiveReconstruction(lag_frames=lag, calibration_arms=CALIBRATION)
    taken = []

    def watched():
        for item in simulated:
            taken.append(item)
            yield item

    config = LiveConfig((scan.trajectory.file.parent,), settings)
    session = spiral.SpiralScan(config, scan.header)
    frames = liveslices.reconstruct(session.readouts(watched()), session, settings, None, [])
    begun = [(frame.head.scan_counter, len(taken)) for frame in frames if frame.method == LIVE]
    first = ARMS * 16
    middles = [first + ARMS * n + ARMS // 2 + 1 for n in range(24)]
    assert [counter for counter, _ in begun] == middles
    for n, (_, count) in enumerate(begun):
        # A readout may be held back by the search for outliers, never more than one frame of them.
        assert count >= min(first + ARMS * (n + 1 + lag), len(simulated))
        assert count < first + ARMS * (n + 2 + lag) + ARMS or count == len(simulated)


def test_every_readout_counts(scan):
    """One whose samples are others changes the image of its own frame, wherever it stands in it."""
    reference = pixels(made_by(through(scan, lag_frames=0), LIVE))
    for place in (0, 3, ARMS - 1):
        items = list(scan.items())
        other = items[ARMS * 30 + place]
        other.data[:] *= 1.5
        images = pixels(made_by(through(scan, items, lag_frames=0), LIVE))
        distance = np.linalg.norm(images - reference, axis=(1, 2)) / np.linalg.norm(reference, axis=(1, 2))
        assert distance[:14].max() < 1e-5
        assert distance[14] > 1e-3
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
        assert [one.meta["ReconstructionMethod"] for one in images] == [SHARED] * 9 + [LIVE] * 8
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
    assert methods == 2 * ([SHARED] * 9 + [LIVE] * 4)
    assert [image.read_dir[1] for image in client.images] == [client.images[0].read_dir[1]] * 13 + [1] * 13


def test_bad_readouts_are_left_out(scan):
    items = list(scan.items())
    items[ARMS * 25 + 2].data[:] = np.nan
    images = pixels(made_by(through(scan, items), LIVE))
    assert len(images) == 24
    assert error(images, truth_of(scan, range(16, 40))) < 0.105


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
    assert len(client.images) == FRAMES + 33
    truth = truth_of(scan, range(FRAMES))
    assert change(pixels(final), truth) > 0.965
    first = made_by(client, LIVE)[0]
    assert final[16].acquisition_time_stamp == first.acquisition_time_stamp


def test_no_window_for_the_lag_is_refused_with_what_would_be_right(scan, tmp_path):
    with pytest.raises(ConfigurationError, match="window_frames = 2 must be larger than lag_frames = 2"):
        through(scan, window_frames=2, lag_frames=2)


def test_the_shipped_configuration_is_the_default():
    assert configuration.load(LiveConfig, configuration.PROJECT_FOLDER / LiveConfig.FILE).reconstruction == (
        LiveReconstruction()
    )


def test_a_reconstruction_that_is_late_gives_up_iterations_then_frames_and_recovers():
    effort, frame = Effort(4), 0.04
    assert effort.summary() is None
    late = [0.0, 0.03, 0.05, 0.13, 0.2, 0.3, 0.33, 0.1, 0.0]
    assert [effort.iterations(behind, frame) for behind in late] == [4, 4, 3, 1, 1, 1, 0, 2, 4]
    assert "2.2 of 4 iterations per frame" in effort.summary()
    assert "1 of 9 frames were left out" in effort.summary()
    assert Effort(4).iterations(5.0, 0.0) == 4, "without time stamps nobody knows"


def test_readouts_of_a_file_can_wait_and_those_of_a_scan_cannot():
    now = [10.0]
    ledger = LatencyLedger(lambda text: None, clock=lambda: now[0])
    ledger.begin(ledger.arrived(), 100.0)
    now[0] = 10.1
    assert ledger.can_wait(ledger.arrived(), 101.0)
    now[0] = 11.5
    assert not ledger.can_wait(11.0, 101.0)
    assert ledger.behind(11.0, 101.0) == pytest.approx(0.5)


IMPORTED = """
import sys
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
