"""The latency ledger and the pace of a scan, on clocks that the tests set."""

import numpy as np
import pytest

from conftest import make_acquisition, make_header, make_image, make_waveform
from recon.latency import CATCH_UP, LatencyLedger, ScanClock
from sending import pacing
from sending.pacing import Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


def test_latencies_frame_rate_and_backlog(clock, told):
    ledger = LatencyLedger(told.append, clock)
    for number in range(1, 101):
        arrival = ledger.arrived()
        ledger.begin(arrival, 0.1 * number)
        clock.sleep(0.001 * number)
        ledger.sent(arrival)
        clock.sleep(0.1 - 0.001 * number)
    summary = ledger.summary()
    assert "100 images, 10.0 per second" in summary
    # the first image waits for the set-up and does not count
    assert "p50 51.0, p95 96.0, p99 100.0 ms" in summary
    assert "largest backlog 0 readouts" in summary
    assert told == []


def test_falling_behind_is_said_once_with_by_how_much(clock, told):
    ledger = LatencyLedger(told.append, clock)
    arrivals = []
    for number in range(1000):  # readouts every 10 ms, work takes 20 ms each
        while len(arrivals) < 1000 and 100 + 0.01 * len(arrivals) <= clock.now:
            arrivals.append(ledger.arrived())
        ledger.begin(arrivals[number] if number < len(arrivals) else clock.now, 0.01 * number)
        clock.sleep(0.02)
    assert len(told) == 1
    assert told[0].startswith("the reconstruction is 1.5 s behind the scan, 15")
    assert ledger.largest_backlog == pytest.approx(500, abs=5)


def test_file_that_comes_faster_than_it_was_acquired_is_not_behind(clock, told):
    ledger = LatencyLedger(told.append, clock)
    arrivals = [ledger.arrived(0.01 * number) for number in range(1000)]
    for number, arrival in enumerate(arrivals):  # acquired every 10 ms, work takes 5 ms
        ledger.begin(arrival, 0.01 * number)
        clock.sleep(0.005)
    assert clock.now - 100 > CATCH_UP
    assert told == []


def test_readouts_of_a_file_can_wait_and_those_of_a_scan_cannot(clock, told):
    file, scan = LatencyLedger(told.append, clock), LatencyLedger(told.append, clock)
    for number in range(200):
        file.arrived(0.01 * number)
        clock.sleep(0.005)
    assert file.can_wait
    for number in range(200):
        arrival = scan.arrived(0.01 * number)
        clock.sleep(0.01)
    assert not scan.can_wait
    clock.sleep(0.5)
    assert scan.behind(arrival, 1.99) == pytest.approx(0.51)
    scan.complete()
    assert scan.can_wait, "nothing is gained by hurry when the scan is over"


def test_file_stays_a_file_where_it_has_to_wait_for_the_reconstruction(clock, told):
    ledger = LatencyLedger(told.append, clock)
    for number in range(50):  # 1 s of a scan at once; the rest is let in more slowly than it was acquired
        ledger.arrived(0.02 * number)
    for number in range(50, 300):
        clock.sleep(0.04)
        ledger.arrived(0.02 * number)
    assert ledger.can_wait


def test_scan_whose_first_readouts_waited_for_the_server_is_no_file(clock, told):
    """It was one for good, and its reconstruction never gave anything up."""
    ledger, ready = LatencyLedger(told.append, clock), 5.0
    ledger.set_up = ready
    for number in range(500):
        clock.now = 100 + max(0.02 * number, ready)
        arrival = ledger.arrived(0.02 * number)
    assert not ledger.can_wait
    clock.sleep(0.3)
    assert ledger.behind(arrival, 0.02 * number) == pytest.approx(0.3)


def test_time_without_stamps_is_counted_by_repetitions():
    scan_clock = ScanClock(0.005)
    assert [scan_clock(0.0, n) for n in (3, 4, 6)] == pytest.approx([0, 0.005, 0.015])
    scan_clock = ScanClock(0.005)
    stamps = [10.0, 10.1, 0.02, 0.03, 0.0, 0.05]  # the third one is over midnight, the fifth is none
    assert [scan_clock(stamp, n) for n, stamp in enumerate(stamps)] == pytest.approx(
        [0, 0.1, 0.105, 0.115, 0.12, 0.125]
    )
    assert ScanClock(None)(0.0, 5) == 0


def test_scan_without_images_has_a_summary(told):
    assert LatencyLedger(told.append).summary() == "no image was made"


def test_items_leave_at_their_time_stamps(clock):
    items = [make_waveform(0, time=1000), make_acquisition(0), make_acquisition(2), make_waveform(1, time=1030)]
    left = []
    for item in Pace(make_header(), clock, clock.sleep).paced(iter(items)):
        left.append(clock.now - 100)
        assert item is items[len(left) - 1]
    np.testing.assert_allclose(left, np.array([0, 0, 20, 30]) * 2.5e-3 + pacing.LEAD)


def test_readouts_without_time_stamps_leave_at_tr(clock):
    header = make_header()
    header.sequenceParameters = type("Parameters", (), {"TR": [7.0]})()
    items = [make_acquisition(number) for number in range(3)]
    for item in items:
        item.acquisition_time_stamp = 0
    left = [clock.now - 100 for _ in Pace(header, clock, clock.sleep).paced(iter(items))]
    np.testing.assert_allclose(left, pacing.LEAD + np.array([0, 7e-3, 14e-3]))


def test_scan_that_crosses_midnight_keeps_its_pace(clock):
    items = [make_acquisition(number) for number in range(4)]
    for number, item in enumerate(items):
        item.acquisition_time_stamp = (pacing.TICKS_PER_DAY - 4 + 4 * number) % pacing.TICKS_PER_DAY
    items[1].acquisition_time_stamp = pacing.TICKS_PER_DAY - 2
    left = [clock.now - 100 for _ in Pace(make_header(), clock, clock.sleep).paced(iter(items))]
    np.testing.assert_allclose(left, pacing.LEAD + np.array([0, 5e-3, 20e-3, 30e-3]))


def test_waveform_without_a_time_stamp_does_not_set_the_clock(clock):
    items = [make_waveform(0, time=0), make_acquisition(0), make_acquisition(1)]
    left = [clock.now - 100 for _ in Pace(make_header(), clock, clock.sleep).paced(iter(items))]
    np.testing.assert_allclose(left, pacing.LEAD + np.array([0, 0, 25e-3]))


def test_images_pass_at_once(clock):
    images = [make_image(number) for number in range(3)]
    assert list(Pace(make_header(), clock, clock.sleep).paced(iter(images))) == images
    assert clock.now == 100


def test_lag_is_reported(clock):
    pace = Pace(make_header(), clock, clock.sleep)
    for _ in pace.paced(iter([make_acquisition(number) for number in range(100)])):
        clock.sleep(0.03)  # sending takes 30 ms, the scan 25 ms
    assert "100 items left p50" in pace.summary()
    assert f"at most {99 * 5:.1f} ms late" in pace.summary()
