import numpy as np
import pytest

from recon import physio
from simulation.spiralphysiology import CONTRACTION, ECG_INTERVAL, ecg, make_physiology, pilot_tone

TR, READOUTS, START = 5.74e-3, 3000, 1_000_000


@pytest.fixture(scope="module")
def physiology():
    return make_physiology(READOUTS * TR, np.random.default_rng(5), heart_rate=70, breathing_rate=15)


def test_beats_and_breaths_have_their_rates_and_vary(physiology):
    beats, breaths = np.diff(physiology.beats), np.diff(physiology.breaths)
    assert beats.mean() == pytest.approx(60 / 70, rel=0.03)
    assert 0.02 < beats.std() / beats.mean() < 0.08
    assert breaths.mean() == pytest.approx(4, rel=0.05)
    for starts in (physiology.beats, physiology.breaths):
        assert starts[0] < -2 < READOUTS * TR + 2 < starts[-1]


def test_state_runs_through_the_beat_without_jumps(physiology):
    times = np.linspace(0, READOUTS * TR, 40_000)
    state = physiology.state(times)
    for values, largest in ((state.contraction, 1.0), (state.inhalation, 1.25)):
        assert values.min() >= 0
        assert 0.75 < values.max() <= largest
        assert np.abs(np.diff(values)).max() < 4e-3
    for phase, starts in ((state.cardiac_phase, physiology.beats), (state.respiratory_phase, physiology.breaths)):
        assert 0 <= phase.min() <= phase.max() < 1
        assert np.count_nonzero(np.diff(phase) < 0) == np.count_nonzero((starts > 0) & (starts < times[-1]))
    knots, values = CONTRACTION
    after_a_beat = physiology.state(physiology.beats[3] + physiology.mean_beat * np.array(knots))
    np.testing.assert_allclose(after_a_beat.contraction, values, atol=1e-9)
    np.testing.assert_allclose(after_a_beat.since_beat, physiology.mean_beat * np.array(knots), atol=1e-9)


def test_heartbeats_can_come_with_readouts(physiology):
    snapped = make_physiology(READOUTS * TR, np.random.default_rng(5), 70, 15, TR).beats / TR
    np.testing.assert_allclose(snapped, np.rint(snapped), atol=1e-6)
    np.testing.assert_allclose(snapped, physiology.beats / TR, atol=0.5001)


def test_heart_rate_sways_with_breathing(physiology):
    long = make_physiology(300.0, np.random.default_rng(1))
    phase = long.state(long.beats[:-1]).respiratory_phase
    assert np.corrcoef(np.sin(2 * np.pi * phase), np.diff(long.beats))[0, 1] < -0.5
    assert np.array_equal(long.beats, make_physiology(300.0, np.random.default_rng(1)).beats)


def test_ecg_triggers_are_at_the_beats(physiology):
    packets = list(ecg(physiology, READOUTS * TR, START, np.random.default_rng(0)))
    assert len(packets) > 10
    assert {(packet.waveform_id, packet.channels, packet.sample_time_us) for packet in packets} == {(0, 5, 2500.0)}
    stamps = [packet.time_stamp for packet in packets]
    assert np.diff(stamps).tolist() == [packet.number_of_samples for packet in packets[:-1]]  # one sample a tick
    rows = np.hstack([packet.data for packet in packets])
    found = np.flatnonzero(rows[4]) * ECG_INTERVAL
    inside = physiology.beats[(physiology.beats > ECG_INTERVAL) & (physiology.beats < READOUTS * TR - ECG_INTERVAL)]
    np.testing.assert_allclose(found[-inside.size :], inside, atol=ECG_INTERVAL / 2 + 1e-9)
    lead = rows[0].astype(float)
    peaks = [np.argmax(lead[n - 100 : n + 100]) - 100 for n in np.flatnonzero(rows[4])[1:-1]]
    assert np.abs(peaks).max() <= 1  # the trigger is the R wave


def test_pilot_tone_has_one_sample_for_each_readout(physiology):
    delay = 0.15
    packets = list(pilot_tone(physiology, READOUTS, TR, delay, START, np.random.default_rng(0)))
    rows = np.hstack([packet.data for packet in packets])
    assert rows.shape == (5, READOUTS)
    assert rows.dtype == np.uint32
    assert {(packet.waveform_id, round(packet.sample_time_us, 2)) for packet in packets} == {(1025, 5740.0)}
    signed = rows.astype(np.int64) - 2**31
    times = np.arange(READOUTS) * TR
    assert np.corrcoef(signed[0], physiology.state(times).inhalation)[0, 1] > 0.999
    assert np.corrcoef(signed[1], physiology.state(times - delay).contraction)[0, 1] < -0.99
    for row in (2, 4):
        found = times[signed[row] != 0]
        expected = physiology.beats + delay
        expected = expected[(expected > TR) & (expected < times[-1] - TR)]
        np.testing.assert_allclose(found[-expected.size :], expected, atol=TR / 2 + 1e-9)
    starts = np.cumsum([0] + [packet.number_of_samples for packet in packets[:-1]])
    assert [packet.time_stamp for packet in packets] == [START + round(n * TR / 2.5e-3) for n in starts]


@pytest.mark.parametrize("source", physio.TRIGGER_SOURCES)
def test_what_reads_the_waveforms_finds_the_beats(physiology, source):
    raster = physio.readout_raster(START + np.rint(np.arange(READOUTS) * TR / 2.5e-3))
    random = np.random.default_rng(0)
    waveforms = [
        *ecg(physiology, READOUTS * TR, START, random),
        *pilot_tone(physiology, READOUTS, TR, 0.15, START, random),
    ]
    triggers = physio.cardiac_triggers(waveforms, source, raster, 0.15)
    beats = physiology.beats / TR
    inside = beats[(beats > 0) & (beats < READOUTS - 0.15 / TR - 1)]
    distance = np.abs(triggers[:, np.newaxis] - inside).min(axis=0)
    assert distance.max() < 1.6


def test_a_still_heart_still_has_waveforms(physiology):
    import dataclasses

    still = dataclasses.replace(physiology, still=True)
    assert not still.state(np.linspace(0, 10, 50)).contraction.any()
    assert not still.state(np.linspace(0, 10, 50)).inhalation.any()
    packet = next(pilot_tone(still, 64, TR, 0.0, START, np.random.default_rng(0)))
    assert np.ptp(packet.data[0].astype(np.int64)) > 1e4
