"""Readout gradient of an EPI train: one trapezoidal lobe for each line, sampled on its ramps, too."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 0.06  # of the lobe, before the first sample and after the last one


@dataclass(frozen=True)
class Lobe:
    """Trapezoid of one line; the next one, of the other sign, follows at once.

    Attributes
    ----------
    ramp_time, flat_top_time
        Of each ramp; of the top [us].
    acquisition_delay
        From the beginning of the lobe to that of the first sample's dwell time [us].
    samples
        Number of samples.
    dwell
        Time from sample to sample [us].
    """

    ramp_time: int
    flat_top_time: int
    acquisition_delay: int
    samples: int
    dwell: float

    @property
    def echo_spacing(self) -> int:
        """Length of the lobe [us]."""
        return 2 * self.ramp_time + self.flat_top_time

    def area(self, time: NDArray[np.floating]) -> NDArray[np.float64]:
        """Integral of the lobe, whose top is 1, from its beginning to each time [us]."""
        up = np.clip(time, 0, self.ramp_time)
        top = np.clip(time - self.ramp_time, 0, self.flat_top_time)
        down = np.clip(time - self.ramp_time - self.flat_top_time, 0, self.ramp_time)
        slope = 1 / max(self.ramp_time, 1)
        return slope * up**2 / 2 + top + down - slope * down**2 / 2

    def positions(self, delay: float = 0.0) -> NDArray[np.float64]:
        """Positions of the samples of a line from left to right, in the order of time [samples].

        A sample stands at the middle of its dwell time, which suits the navigators of a Siemens scan: odd and even ones
        then nearly agree. As in Gadgetron's EPI reconstruction, the area of the lobe while samples are taken is one
        unit of k for each sample, and k is 0 half way through the lobe.

        Parameters
        ----------
        delay
            By how much the gradient comes later than it should [us].
        """
        begin = float(self.acquisition_delay)
        times = begin + (np.arange(self.samples) + 0.5) * self.dwell
        first, last, middle = self.area(np.array([begin, begin + self.samples * self.dwell, self.echo_spacing / 2]))
        return (self.area(times - delay) - middle) * self.samples / (last - first)


def make_lobe(samples: int, dwell: float, ramp: float) -> Lobe:
    """Lay a lobe round the samples of a line.

    Parameters
    ----------
    samples, dwell
        Their number, and the time from one to the next [us].
    ramp
        Part of the lobe that each ramp takes, 0 to 0.5.
    """
    duration = math.ceil(round(samples * dwell, 6))  # as MRD headers want it: whole microseconds
    length = duration / (1 - 2 * MARGIN)
    delay = round(MARGIN * length)
    ramp_time = min(round(ramp * length), (duration + 2 * delay) // 2)
    return Lobe(ramp_time, duration + 2 * delay - 2 * ramp_time, delay, samples, dwell)
