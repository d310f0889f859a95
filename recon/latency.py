"""Latency ledger of a real-time reconstruction: how long each image took after its last readout had arrived."""

import time
from collections.abc import Callable

import numpy as np

BEHIND = 0.5  # a reconstruction this much behind the scan says so [s]
AHEAD = 0.25  # readouts that come this much earlier than they were acquired are of a file [s]
CATCH_UP = 3.0  # after the first readout: time to work off what came in during the set-up [s]


class LatencyLedger:
    """Keeps the latencies of a scan, and says once when the reconstruction falls behind.

    Parameters
    ----------
    warn : callable
        Called once, with a text, when a readout had to wait for longer than `BEHIND` and is late against the scan's own
        time stamps by as much. (A file that is sent faster than it was acquired makes readouts wait, too, but not
        late.)
    clock : callable
        Time in seconds [s].
    """

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._warn = warn
        self._clock = clock
        self._told = False
        self._first_arrival: float | None = None
        self._first_stamp = 0.0
        self._last_sent = 0.0
        self.latencies: list[float] = []
        self.received = self.processed = self.largest_backlog = 0

    def now(self) -> float:
        """Time [s] on the ledger's clock."""
        return self._clock()

    def arrived(self) -> float:
        """Note the arrival of a readout; returns its time [s]. Called by the receiving thread."""
        self.received += 1
        now = self._clock()
        if self._first_arrival is None:
            self._first_arrival = now
        return now

    def begin(self, arrival: float, stamp: float) -> None:
        """Note that the work on a readout begins.

        Parameters
        ----------
        arrival : float
            What `arrived` returned for it [s].
        stamp : float
            Its acquisition time stamp [s].
        """
        self.processed += 1
        self.largest_backlog = max(self.largest_backlog, self.received - self.processed)
        if self.processed == 1:
            self._first_stamp = stamp
        behind = self.behind(arrival, stamp)
        if behind > BEHIND and self.elapsed > CATCH_UP and not self._told:
            self._told = True
            self._warn(
                f"the reconstruction is {behind:.1f} s behind the scan, {self.received - self.processed} readouts wait"
            )

    @property
    def elapsed(self) -> float:
        """Time since the first readout arrived [s]."""
        return 0.0 if self._first_arrival is None else self._clock() - self._first_arrival

    def behind(self, arrival: float, stamp: float) -> float:
        """How late the work on a readout is [s]: it waits for so long, and is late against the time stamps by as much.

        Parameters
        ----------
        arrival
            When it arrived [s].
        stamp
            Its acquisition time stamp [s].
        """
        return min(self._clock() - arrival, self.elapsed - (stamp - self._first_stamp))

    def can_wait(self, arrival: float, stamp: float) -> bool:
        """Tell whether a readout came well before it would have during the scan: from a file, for which nobody waits.

        Parameters
        ----------
        arrival
            When it arrived [s].
        stamp
            Its acquisition time stamp [s].
        """
        return stamp - self._first_stamp - (arrival - (self._first_arrival or arrival)) > AHEAD

    def epoch(self, arrival: float) -> float:
        """Time since the epoch [s] of a moment on the ledger's clock [s]."""
        return time.time() - (self.now() - arrival)

    def sent(self, arrival: float) -> None:
        """Note that an image has been sent whose last readout arrived at `arrival` [s]."""
        self._last_sent = self._clock()
        self.latencies.append(self._last_sent - arrival)

    def summary(self) -> str:
        """Latencies (without the first image, which waits for the set-up), frame rate and backlog in one line."""
        if not self.latencies or self._first_arrival is None:
            return "no image was made"
        settled = self.latencies[1:] or self.latencies
        p50, p95, p99 = 1e3 * np.percentile(settled, (50, 95, 99), method="inverted_cdf")
        rate = len(self.latencies) / max(self._last_sent - self._first_arrival, 1e-9)
        return (
            f"{len(self.latencies)} images, {rate:.1f} per second; latency from last readout to image sent: "
            f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms; largest backlog {self.largest_backlog} readouts"
        )
