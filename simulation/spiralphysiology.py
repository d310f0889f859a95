"""A heart that beats and a chest that breathes, and the waveforms that ECG and pilot tone record of them.

Everything is a function of time since the first imaging readout [s], drawn once from a seed: neither heartbeats nor
breaths are equally long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdhelper import SECONDS_PER_TICK
from recon.physio import (
    DERIVATIVE_TRIGGER_ROW,
    ECG,
    ECG_TRIGGER_ROW,
    PILOT_TONE,
    PILOT_TONE_ZERO,
    RESPIRATION_ROW,
    ROWS,
    TRIGGER_ROW,
)

CONTRACTION = ((0.0, 0.33, 0.55, 0.68, 0.80), (0.0, 1.0, 0.2, 0.2, 0.0))
"""Contraction, 1 at the end of systole, over time since the beat in mean beats: ejection, filling, rest, kick."""
SHORTEST_BEAT, LONGEST_BEAT = 0.86, 1.2  # of the mean beat
ECG_INTERVAL = 2.5e-3  # [s]
ECG_PACKET = 200  # samples
PILOT_PACKET = 64  # samples
CARDIAC_ROW, DERIVATIVE_ROW = 1, 3  # of the pilot tone
ECG_WAVES = ((-0.18, 0.025, 0.15), (-0.02, 0.008, -0.1), (0.0, 0.010, 1.0), (0.025, 0.010, -0.25), (0.27, 0.045, 0.3))
"""P, Q, R, S and T: time after R [s], width [s], height."""


@dataclass(frozen=True, eq=False)
class State:
    """State of heart and chest at some times.

    Attributes
    ----------
    cardiac_phase, respiratory_phase
        Part of the beat and of the breath that is over, 0 to below 1 [times]; a breath begins and ends exhaled.
    contraction
        0 relaxed to 1 at the end of systole [times].
    inhalation
        0 exhaled to about 1 inhaled [times].
    since_beat
        Time since the last heartbeat [s], [times].
    """

    cardiac_phase: NDArray[np.float64]
    respiratory_phase: NDArray[np.float64]
    contraction: NDArray[np.float64]
    inhalation: NDArray[np.float64]
    since_beat: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Physiology:
    """Heartbeats and breaths.

    Attributes
    ----------
    beats
        Times of the R waves [s], ascending, from before 0 until after the end.
    breaths
        Times when inhaling begins [s], likewise.
    depths
        Largest inhalation of each breath, 1 on average [breaths - 1].
    mean_beat
        Time between heartbeats [s].
    still
        Whether nothing moves all the same: the waveforms go on.
    """

    beats: NDArray[np.float64]
    breaths: NDArray[np.float64]
    depths: NDArray[np.float64]
    mean_beat: float
    still: bool = False

    def state(self, times: NDArray[np.floating]) -> State:
        """State at times [s] of any shape."""
        beat, since_beat, cardiac_phase = _part(self.beats, times)
        breath, _, respiratory_phase = _part(self.breaths, times)
        since_beat = np.where(beat >= 0, since_beat, 0.0)
        knots, values = CONTRACTION
        place = np.interp(since_beat / self.mean_beat, knots, np.arange(len(knots)))
        first = np.minimum(place.astype(int), len(knots) - 2)
        smooth = 0.5 - 0.5 * np.cos(np.pi * (place - first))
        contraction = np.take(values, first) * (1 - smooth) + np.take(values, first + 1) * smooth
        inhalation = self.depths[breath] * (0.5 - 0.5 * np.cos(2 * np.pi * respiratory_phase))
        moves = 0.0 if self.still else 1.0
        return State(cardiac_phase, respiratory_phase, moves * contraction, moves * inhalation, since_beat)


def _part(starts: NDArray[np.float64], times: NDArray[np.floating]) -> tuple[NDArray, NDArray, NDArray]:
    """Index of the period that each time is in, time since its start [s], and part of it that is over."""
    index = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(starts) - 2)
    since = times - starts[index]
    return index, since, since / (starts[index + 1] - starts[index])


def make_physiology(
    duration: float,
    random: np.random.Generator,
    heart_rate: float = 84.0,
    breathing_rate: float = 18.0,
    tr: float | None = None,
) -> Physiology:
    """Draw heartbeats and breaths for a scan.

    Breaths vary by 8 % in length and depth; beats by 3 % at random and 4 % with breathing, as they do in rest.

    Parameters
    ----------
    duration
        Time to cover [s]; two seconds before and after are covered as well.
    random
        Source of the random numbers.
    heart_rate, breathing_rate
        Mean rates [1/min].
    tr
        Time between readouts [s]: every heartbeat then comes with a readout, so that there is no doubt about the
        readouts that belong to it. None: at any time.
    """
    mean_beat, mean_breath = 60 / heart_rate, 60 / breathing_rate
    end = duration + 2
    count = math.ceil((end + 2) / mean_breath * 1.5) + 4
    breaths = -2 - random.uniform(1, 2) * mean_breath + np.concatenate(
        ([0], np.cumsum(mean_breath * np.clip(1 + 0.08 * random.standard_normal(count), 0.75, 1.25)))
    )  # fmt: skip
    depths = np.clip(1 + 0.08 * random.standard_normal(count), 0.75, 1.25)
    beats = [-2 - random.uniform(1, 2) * mean_beat]
    while beats[-1] <= end + mean_beat:
        _, _, breath_phase = _part(breaths, np.array(beats[-1]))
        sway = 1 - 0.04 * math.sin(2 * np.pi * float(breath_phase)) + 0.03 * random.standard_normal()
        beats.append(beats[-1] + mean_beat * min(max(sway, SHORTEST_BEAT), LONGEST_BEAT))
    times = np.array(beats)
    if tr is not None:
        times = tr * np.rint(times / tr)
    return Physiology(times, breaths, depths, mean_beat)


def ecg(physiology: Physiology, duration: float, start: int, random: np.random.Generator) -> Iterator[ismrmrd.Waveform]:
    """Yield the ECG in packets: four leads and, in row 4, the triggers.

    A trigger is one sample other than zero, the one nearest to the R wave.

    Parameters
    ----------
    physiology
        The heartbeats.
    duration
        Length [s].
    start
        Time stamp of time 0 [ticks].
    random
        Source of the noise.
    """
    samples = math.ceil(duration / ECG_INTERVAL)
    triggers = np.rint(physiology.beats / ECG_INTERVAL).astype(int)
    for number, first in enumerate(range(0, samples, ECG_PACKET)):
        index = np.arange(first, min(first + ECG_PACKET, samples))
        distance = index[:, np.newaxis] * ECG_INTERVAL - physiology.beats
        distance = distance[:, np.abs(distance).min(axis=0) < 1]
        lead = sum(h * np.exp(-0.5 * ((distance - t) / width) ** 2).sum(axis=1) for t, width, h in ECG_WAVES)
        rows = np.zeros((ROWS, index.size), np.uint32)
        for row, gain in enumerate((1.0, 0.7, -0.5, 0.4)):
            rows[row] = np.rint(2048 + 800 * gain * lead + 8 * random.standard_normal(index.size))
        rows[ECG_TRIGGER_ROW] = np.isin(index, triggers) * 16384
        stamp = start + round(first * ECG_INTERVAL / SECONDS_PER_TICK)
        yield _waveform(rows, ECG, number, stamp, ECG_INTERVAL)


def pilot_tone(
    physiology: Physiology, readouts: int, tr: float, delay: float, start: int, random: np.random.Generator
) -> Iterator[ismrmrd.Waveform]:
    """Yield the pilot tone in packets: one sample for each imaging readout, signed values with an offset of 2^31.

    Rows: respiration, heart, triggers, derivative of the heart's signal, triggers of the derivative. Both triggers are
    single samples, `delay` late; the respiration is not delayed.

    Parameters
    ----------
    physiology
        Heartbeats and breaths.
    readouts, tr
        Number of imaging readouts; time between them [s].
    delay
        By how much triggers come late [s].
    start
        Time stamp of the first imaging readout [ticks].
    random
        Source of the noise.
    """
    triggers = np.rint((physiology.beats + delay) / tr).astype(int)
    moving = Physiology(physiology.beats, physiology.breaths, physiology.depths, physiology.mean_beat)
    for number, first in enumerate(range(0, readouts, PILOT_PACKET)):
        index = np.arange(first, min(first + PILOT_PACKET, readouts))
        now, before = (moving.state((index - n) * tr - delay).contraction for n in (0, 1))
        rows = np.zeros((ROWS, index.size))
        rows[RESPIRATION_ROW] = 1e6 * moving.state(index * tr).inhalation + 3e2 * random.standard_normal(index.size)
        rows[CARDIAC_ROW] = -1e5 * now + 1e3 * random.standard_normal(index.size)
        rows[DERIVATIVE_ROW] = -1e4 * (now - before) / tr
        rows[TRIGGER_ROW] = rows[DERIVATIVE_TRIGGER_ROW] = np.isin(index, triggers) * 1000.0
        stored = (np.rint(rows).astype(np.int64) + PILOT_TONE_ZERO).astype(np.uint32)
        yield _waveform(stored, PILOT_TONE, number, start + round(first * tr / SECONDS_PER_TICK), tr)


def _waveform(rows: NDArray[np.uint32], kind: int, number: int, stamp: int, interval: float) -> ismrmrd.Waveform:
    return ismrmrd.Waveform.from_array(
        rows, waveform_id=kind, scan_counter=number, time_stamp=stamp, sample_time_us=1e6 * interval
    )
