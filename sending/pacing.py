"""Sends at the pace of a scan: readouts and waveforms leave when their time stamps, or TR, say so."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import ismrmrd
import numpy as np

from mrdio.mrdsource import Item
from mrdio.timestamps import ticks_to_seconds

logger = logging.getLogger(__name__)

TICKS_PER_DAY = 24 * 3600 * 400
LONG_WAIT = 10.0  # is announced [s]
LEAD = 2.0  # between header and first readout, in which a scanner prepares and a server can set up [s]


class Pace:
    """Yields items at their times, and records how late each one was.

    Parameters
    ----------
    header
        MRD header, for TR: readouts without time stamps leave at its pace.
    clock, sleep : callable
        Time in seconds, and how to wait [s].
    """

    def __init__(
        self,
        header: Any,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        repetition_times = getattr(getattr(header, "sequenceParameters", None), "TR", None) or [0.0]
        self._tr = 1e-3 * repetition_times[0]  # [ms] in the header
        self._clock = clock
        self._sleep = sleep
        self._lags: list[float] = []

    def paced(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items at their times; images have none and pass at once."""
        start = first_stamp = None
        readouts = 0
        for item in items:
            if isinstance(item, ismrmrd.Image):
                yield item
                continue
            is_readout = isinstance(item, ismrmrd.Acquisition)
            stamp = item.acquisition_time_stamp if is_readout else item.time_stamp
            if start is None:
                start = self._clock() + LEAD
            if first_stamp is None and stamp:
                first_stamp = stamp
            due = self._tr * readouts
            if stamp:
                since = (stamp - first_stamp) % TICKS_PER_DAY  # scans may cross midnight
                due = 0 if since > TICKS_PER_DAY // 2 else ticks_to_seconds(since)  # an item from before the first
            readouts += is_readout
            wait = start + due - self._clock()
            if wait > LONG_WAIT:
                logger.warning("the next item leaves in %.0f s: so far apart are the time stamps", wait)
            if wait > 0:
                self._sleep(wait)
            self._lags.append(max(0.0, self._clock() - start - due))
            yield item

    def summary(self) -> str:
        """Lateness of the items, in a line."""
        if not self._lags:
            return "nothing had a time to leave at"
        p50, p99 = 1e3 * np.percentile(self._lags, (50, 99), method="inverted_cdf")
        largest = 1e3 * max(self._lags)
        return f"paced: {len(self._lags)} items left p50 {p50:.1f}, p99 {p99:.1f}, at most {largest:.1f} ms late"
