"""Triggers and bins against a heart and a breath whose phases are known in closed form."""

from itertools import pairwise

import ismrmrd
import numpy as np
import pytest

from recon import physio, physiobins
from recon.physio import ECG, PILOT_TONE, PhysioError
from recon.physiobins import NO_BIN

TR = 5.7413e-3  # [s]
START = 36000.0013  # [s] since midnight, off the raster of ticks
TICK = 2.5e-3
READOUTS = 9000
BEAT = 0.8337  # [s]
BREATH = 3.917  # [s]


def ticks(seconds):
    return np.floor(np.asarray(seconds) / TICK).astype(np.int64)


def times(n=READOUTS, tr=TR):
    return START + tr * np.arange(n)


def packets(waveform_id, rows, start, interval, length=None):
    """Cut rows [5, n] into waveforms of `length` samples."""
    cut = []
    for number, first in enumerate(range(0, rows.shape[1], length or rows.shape[1])):
        data = np.ascontiguousarray(rows[:, first : first + (length or rows.shape[1])].astype(np.uint32))
        waveform = ismrmrd.Waveform.from_array(data)
        head = waveform.getHead()
        head.waveform_id, head.scan_counter = waveform_id, number
        head.time_stamp, head.sample_time_us = int(ticks(start + first * interval)), 1e6 * interval
        waveform.setHead(head)
        cut.append(waveform)
    return cut


def beats(n=READOUTS, tr=TR, first=0.1):
    """Times of the heartbeats [s], every 12th two percent early."""
    count = int(n * tr / BEAT) + 1
    return START + first + BEAT * (np.arange(count) - 0.02 * (np.arange(count) % 12 == 5))


def ecg(beat_times, interval=1e-3, n=READOUTS, length=None):
    """ECG [waveforms]: a trigger at the sample nearest to each beat."""
    start = START - 1.2345
    rows = np.zeros((5, int((n * TR + 3) / interval)))
    rows[0] = 2048 + 100 * np.sin(np.arange(rows.shape[1]))
    rows[4, np.rint((beat_times - start) / interval).astype(int)] = 1
    return packets(ECG, rows, start, interval, length)


def breath_phase(seconds):
    """Respiratory phase in turns; the amplitude is -cos, so breathing in begins at 0."""
    return (seconds - START) / BREATH + 0.19


def pilot_tone(beat_times, delay=0.0, n=READOUTS, length=None, noise=0.0, first=0):
    """Pilot tone [waveforms] with a sample for each readout from number `first` on."""
    seconds = START + TR * np.arange(first, first + n)
    rows = np.full((5, n), 2.0**31)
    rows[0] += 1e6 * (-np.cos(2 * np.pi * breath_phase(seconds)))
    rows[0] += 1e6 * noise * np.random.default_rng(5).standard_normal(n)
    for row in (2, 4):
        late = np.rint((beat_times + (delay if row == 2 else 2 * delay) - seconds[0]) / TR).astype(int)
        rows[row, late[(late >= 0) & (late < n)]] += 1 if row == 2 else -1
    return packets(PILOT_TONE, np.rint(rows), seconds[0], TR, length)


def true_cardiac_bins(beat_times, n_bins, n=READOUTS):
    """From the definition, readout by readout: whole readouts after the one nearest to each beat."""
    on = [round((beat - START) / TR) for beat in beat_times]
    width = int(0.9 * min(b - a for a, b in pairwise(on))) // n_bins
    truth = np.full(n, NO_BIN)
    for trigger in on:
        for readout in range(max(trigger, 0), min(trigger + n_bins * width, n)):
            truth[readout] = (readout - trigger) // width
    return truth


def true_respiratory_bins(seconds, n_bins):
    """In closed form: the first half of a turn is the rise, divided evenly in amplitude, the second half the fall."""
    turn = breath_phase(seconds) % 1
    level = (1 - np.cos(2 * np.pi * turn)) / 2
    up, down = (n_bins + 1) // 2, n_bins // 2
    return np.where(turn < 0.5, np.floor(level * up), n_bins - 1 - np.floor(level * down)).astype(int)


@pytest.fixture
def raster():
    return physio.readout_raster(ticks(times()), np.arange(READOUTS) + 77)


# --- raster
@pytest.mark.parametrize("rounding", [np.floor, np.rint])
def test_raster_is_much_finer_than_a_tick(rounding):
    raster = physio.readout_raster(rounding(times() / TICK))
    assert raster.tr == pytest.approx(TR, abs=2e-9)
    assert raster.size == READOUTS
    error = raster.times - times() + (TICK / 2 if rounding is np.floor else 0)
    assert np.abs(error).max() < 1e-4


def test_lost_readouts_leave_their_slots_empty(caplog):
    keep = np.setdiff1d(np.arange(READOUTS), [3, 500, 501, 8000])
    raster = physio.readout_raster(ticks(times())[keep], keep + 12)
    assert np.array_equal(raster.index, keep)
    assert raster.tr == pytest.approx(TR, abs=2e-9)
    assert "4 of 9000 readouts are missing" in caplog.text


def test_a_pause_shifts_what_follows_it(caplog):
    paused = times(2000) + np.where(np.arange(2000) >= 700, 100 * TR, 0)
    raster = physio.readout_raster(ticks(paused), np.arange(2000))
    assert np.array_equal(raster.index, np.arange(2000) + np.where(np.arange(2000) >= 700, 100, 0))
    assert "paused 1 times, for 0.57" in caplog.text


def test_the_headers_tr_is_compared(caplog):
    physio.readout_raster(ticks(times()), tr=5.74e-3)
    assert not caplog.text
    physio.readout_raster(ticks(times()), tr=5.0e-3)
    assert "TR is 0.005 s by the header" in caplog.text


@pytest.mark.parametrize(
    ("stamps", "counters", "message"),
    [
        ([5], None, "at least 2 readouts, there are 1"),
        ([], None, "there are 0"),
        ([7, 7, 7], None, "do not ascend"),
        ([9, 8, 7], None, "do not ascend"),
        ([*range(999), 2**32 - 1], None, "spread over"),
        ([1, 2, 3], [0, 1, 2**32 - 1], "spread over"),
    ],
)
def test_impossible_readouts_are_refused(stamps, counters, message):
    with pytest.raises(PhysioError, match=message):
        physio.readout_raster(np.array(stamps), counters)


# --- joining packets
def test_packets_in_any_order_make_one_signal():
    rows = np.random.default_rng(1).integers(0, 2**32, (5, 1000))
    whole = physio.collect(packets(ECG, rows, START, 1e-3), ECG)
    cut = packets(ECG, rows, START, 1e-3, 37)
    other = packets(PILOT_TONE, rows, START, 1e-3, 10)
    mixed = [*cut, *other]
    np.random.default_rng(2).shuffle(mixed)
    signal = physio.collect(mixed, ECG)
    assert np.array_equal(signal.rows, rows)
    assert np.array_equal(whole.rows, rows)
    assert signal.interval == pytest.approx(1e-3)
    true = START + 1e-3 * np.arange(1000)
    assert np.abs(signal.times - true).max() <= TICK
    assert np.abs(whole.times - true).max() <= TICK


def test_gaps_stay_and_doubles_go(caplog):
    rows = np.arange(5000).reshape(5, 1000)
    cut = packets(ECG, rows, START, 1e-2, 100)
    signal = physio.collect([*cut[:4], *cut[6:], cut[7]], ECG)
    assert np.array_equal(signal.rows, np.delete(rows, np.s_[400:600], axis=1))
    assert signal.times[400] - signal.times[399] == pytest.approx(2.01, abs=2 * TICK)
    assert "nothing for 2.0" in caplog.text
    assert "100 samples" in caplog.text
    assert "came twice" in caplog.text
    overlapping = packets(ECG, rows[:, :600], START, 1e-2) + packets(ECG, rows[:, 500:], START + 5, 1e-2)
    assert np.array_equal(physio.collect(overlapping, ECG).rows, rows)


def test_rounded_sampling_times_do_not_drift():
    rows = np.zeros((5, 100_000))
    cut = packets(ECG, rows, START, 2.50017e-3, 1000)
    for waveform in cut:
        head = waveform.getHead()
        head.sample_time_us = 2500.0
        waveform.setHead(head)
    signal = physio.collect(cut, ECG)
    assert np.abs(signal.times - START - 2.50017e-3 * np.arange(100_000)).max() < TICK


def test_missing_and_unusable_waveforms_are_named():
    pt = packets(PILOT_TONE, np.zeros((5, 9)), START, TR)
    with pytest.raises(PhysioError, match=r"no ECG waveform \(waveform_id 0\); the 1 packets .* ids \[1025\]"):
        physio.collect(pt, ECG)
    with pytest.raises(
        PhysioError, match=r"no pilot-tone waveform \(waveform_id 1025\): no waveforms .* client\.py -w"
    ):
        physio.collect([], PILOT_TONE)
    with pytest.raises(PhysioError, match="has 5 rows, this has 3"):
        physio.collect(packets(ECG, np.zeros((3, 9)), START, TR), ECG)
    with pytest.raises(PhysioError, match="no ECG waveform"):
        physio.collect(packets(ECG, np.zeros((5, 0)), START, TR, 5), ECG)
    for interval in (0.0, np.inf, np.nan):
        bad = packets(ECG, np.zeros((5, 9)), START, 1e-3)
        head = bad[0].getHead()
        head.sample_time_us = interval
        bad[0].setHead(head)
        with pytest.raises(PhysioError, match="one sample_time_us above 0"):
            physio.collect(bad, ECG)
    with pytest.raises(PhysioError, match="one sample_time_us above 0"):
        physio.collect(packets(ECG, np.zeros((5, 9)), START, 1e-3) + packets(ECG, np.zeros((5, 9)), START, 2e-3), ECG)


# --- cardiac
@pytest.mark.parametrize("length", [None, 250])
@pytest.mark.parametrize("interval", [1e-3, 2.5e-3])
@pytest.mark.parametrize("n_bins", [8, 20])
def test_ecg_bins(raster, interval, n_bins, length):
    beat_times = beats()
    waveforms = ecg(beat_times, interval, length=length)[::-1]
    found = physiobins.cardiac_bins(physio.cardiac_triggers(waveforms, "ecg", raster, delay=0.3), raster.size, n_bins)
    truth = true_cardiac_bins(beat_times, n_bins)
    assert np.mean(truth >= 0) > 0.7
    right = np.mean(found[truth >= 0] == truth[truth >= 0])
    if n_bins == 8:
        assert right >= 0.99
    else:  # ticks move some triggers by one readout, and with them every edge of the bins, here 6 readouts apart
        assert right >= 0.96
    assert np.mean(np.abs(found - truth)[(truth >= 0) & (found >= 0)] <= 1) == 1


@pytest.mark.parametrize("delay", [0.0, 0.15])
@pytest.mark.parametrize("source", ["pilottone", "pilottone_derivative"])
@pytest.mark.parametrize("length", [None, 100])
def test_pilot_tone_bins(raster, source, delay, length):
    beat_times = beats()
    waveforms = pilot_tone(beat_times, delay, length=length)[::-1]
    late = delay if source == "pilottone" else 2 * delay
    found = physiobins.cardiac_bins(physio.cardiac_triggers(waveforms, source, raster, late), raster.size, 8)
    truth = true_cardiac_bins(beat_times, 8)
    within = (truth >= 0) & (times() < times()[-1] - late)  # triggers after the last readout are not known
    # a delay that is no whole number of TR moves some triggers by one readout
    assert np.mean(found[within] == truth[within]) >= (0.98 if delay else 0.99)


def test_lost_readouts_do_not_move_the_bins():
    beat_times = beats()
    keep = np.setdiff1d(np.arange(READOUTS), np.random.default_rng(3).integers(1, READOUTS - 1, 300))
    raster = physio.readout_raster(ticks(times())[keep], keep)
    for waveforms in (pilot_tone(beat_times), pilot_tone(beat_times, first=-40, n=READOUTS + 100, length=500)):
        found = physiobins.cardiac_bins(physio.pilot_tone_triggers(waveforms, raster), raster.size, 8)[raster.index]
        truth = true_cardiac_bins(beat_times, 8)[keep]
        assert np.mean(found == truth) >= 0.99


def test_trigger_pulses_of_several_samples_count_once(raster):
    waveforms = ecg(beats())
    rows = waveforms[0].data
    rows[4] = rows[4] | np.roll(rows[4], 1) | np.roll(rows[4], 2)
    assert np.array_equal(physio.ecg_triggers(waveforms, raster), physio.ecg_triggers(ecg(beats()), raster))


def test_cardiac_errors_say_what_is_missing(raster):
    flat = ecg(np.array([START]))
    flat[0].data[4] = 0
    with pytest.raises(PhysioError, match=r"row 4 of the ECG waveform \(waveform_id 0\) has 0 triggers .*readouts"):
        physio.ecg_triggers(flat, raster)
    with pytest.raises(PhysioError, match=r"row 2 of the pilot-tone waveform \(waveform_id 1025\) has 0 triggers"):
        physio.pilot_tone_triggers(pilot_tone(np.array([0.0])), raster)
    with pytest.raises(PhysioError, match="has 1 triggers"):
        physio.ecg_triggers(ecg(np.array([START + 5])), raster)
    with pytest.raises(PhysioError, match=r"from 359.* do not overlap"):
        physio.ecg_triggers(packets(ECG, np.ones((5, 100)), START - 60, 0.1), raster)
    with pytest.raises(PhysioError, match=r"overlap for 3\d % of the readouts, needed is 50 %"):
        physio.ecg_triggers(packets(ECG, np.ones((5, 180)), START, 0.1), raster)
    with pytest.raises(PhysioError, match="one of ecg, pilottone, pilottone_derivative, not 'finger'"):
        physio.cardiac_triggers([], "finger", raster)
    with pytest.raises(PhysioError, match="10 readouts, too few for 12 cardiac bins"):
        physiobins.cardiac_bins(np.arange(0, 100, 10), 100, 12)
    with pytest.raises(PhysioError, match="from 1 triggers"):
        physiobins.cardiac_bins(np.array([4, 4]), 100, 2)


# --- respiratory
@pytest.mark.parametrize("n_bins", [1, 2, 6, 7, 8, 12])
@pytest.mark.parametrize("length", [None, 100])
def test_cyclic_respiratory_bins(raster, n_bins, length):
    amplitude = physio.respiration(pilot_tone(beats(), length=length)[::-1], raster)
    found = physiobins.respiratory_bins(amplitude, n_bins, 0.0, raster.tr)
    truth = true_respiratory_bins(times(), n_bins)
    assert found.min() >= 0
    if n_bins == 1:
        assert not np.any(found)
    else:
        assert np.mean(found == truth) >= 0.99
        begin = np.flatnonzero(np.diff(found))
        order = np.diff(found[begin]) % n_bins
        assert np.mean(order == 1) > 0.97  # through all bins in cyclic order


def test_the_slope_withstands_noise(raster):
    clean = physio.respiration(pilot_tone(beats()), raster)
    noisy = physio.respiration(pilot_tone(beats(), noise=0.1), raster)
    amplitude_only = np.abs(np.sin(2 * np.pi * breath_phase(times()))) > 0.3  # away from the turning points
    rising = physiobins.respiratory_bins(noisy, 2, 0.0, raster.tr) == 0
    true = physiobins.respiratory_bins(clean, 2, 0.0, raster.tr) == 0
    assert np.array_equal(rising[amplitude_only], true[amplitude_only])
    assert np.mean(rising == true) > 0.98


def test_extremes_are_discarded(raster):
    amplitude = physio.respiration(pilot_tone(beats()), raster)
    bins = physiobins.respiratory_bins(amplitude, 6, 0.1, raster.tr)
    out = bins == NO_BIN
    assert np.mean(out) == pytest.approx(0.1, abs=0.002)
    assert np.mean(out & (amplitude > 0)) == pytest.approx(0.05, abs=0.002)
    assert np.abs(amplitude[out]).min() > np.abs(amplitude[~out]).max() - 1e3


def test_slots_without_amplitude_have_no_bin(raster):
    cut = pilot_tone(beats(), length=100)
    amplitude = physio.respiration([*cut[:10], *cut[12:-3]], raster)
    bins = physiobins.respiratory_bins(amplitude, 8, 0.0, raster.tr)
    assert np.array_equal(np.isnan(amplitude), bins == NO_BIN)
    assert np.count_nonzero(bins == NO_BIN) == pytest.approx(500, abs=6)
    truth = true_respiratory_bins(times(), 8)
    assert np.mean(bins[bins >= 0] == truth[bins >= 0]) >= 0.985


def test_respiratory_errors_say_what_is_missing(raster):
    with pytest.raises(PhysioError, match=r"row 0 \(respiration\) of the pilot-tone waveform .* is flat: 0"):
        physio.respiration(packets(PILOT_TONE, np.full((5, READOUTS), 2**31), START, TR), raster)
    with pytest.raises(PhysioError, match="do not overlap"):
        physio.respiration(packets(PILOT_TONE, np.ones((5, 9)), START + 100, TR), raster)
    with pytest.raises(PhysioError, match="only rises: not one breath"):
        physiobins.respiratory_bins(np.arange(50.0), 4, 0.0, TR)
    with pytest.raises(PhysioError, match="is flat"):
        physiobins.respiratory_bins(np.ones(50), 4, 0.0, TR)
    with pytest.raises(PhysioError, match="no readout has"):
        physiobins.respiratory_bins(np.full(50, np.nan), 4, 0.0, TR)
    for n_bins, discard in ((0, 0), (4, 1), (4, -0.1), (4, np.nan)):
        with pytest.raises(PhysioError, match="respiratory bins"):
            physiobins.respiratory_bins(np.arange(50.0), n_bins, discard, TR)


def test_what_is_odd_is_told_to_whoever_asked():
    told = []
    stamps = 1000 + np.round(np.arange(500) * 2.4).astype(int)
    raster = physio.readout_raster(stamps, np.arange(500), tr=5e-3, warn=told.append)
    assert len(told) == 1
    assert "TR is 0.005 s by the header" in told[0]
    assert raster.warn == told.append
