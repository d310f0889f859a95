"""Latency ledger of a real-time reconstruction: how long each image took after its last readout had arrived."""

import time
from collections.abc import Callable

import numpy as np

BEHIND = 0.5  # a reconstruction this much behind the scan says so [s]
AHEAD = 0.25  # readouts that come this much earlier than they were acquired are of a file [s]
DRIFT = 0.005  # of the scanner's clock, or of a repetition time that is not exact, against the clock here
CATCH_UP = 3.0  # after the first readout: time to work off what came in during the set-up [s]


class ScanClock:
    """Time of readouts since the first one, by their time stamps, or by the repetition time where those tell nothing.

    A time stamp of 0 is none. One that is earlier than that of the readout before (midnight, a counter that has run
    over) does not tell how much later the readout is.

    Parameters
    ----------
    tr
        Repetition time [s]; None: not known.
    """

    def __init__(self, tr: float | None) -> None:
        self._tr = tr or 0.0
        self._last: tuple[float, int] | None = None
        self._time = 0.0

    def __call__(self, stamp: float, number: int) -> float:
        """Return the time of a readout since the first one [s]; 0 for all of them where nothing tells it.

        Parameters
        ----------
        stamp
            Its acquisition time stamp [s].
        number
            Which imaging readout of the scan it is.
        """
        if self._last is not None:
            before, number_before = self._last
            told = 0 < before <= stamp
            self._time += stamp - before if told else self._tr * (number - number_before)
        self._last = stamp, number
        return self._time


class LatencyLedger:
    """Keeps the latencies of a scan, and says once when the reconstruction falls behind.

    Parameters
    ----------
    warn : callable
        Called once, with a text, when a readout had to wait for longer than `BEHIND` and is late against the scan's own
        time by as much. (A file that is sent faster than it was acquired makes readouts wait, too, but not
        late.)
    clock : callable
        Time in seconds [s].

    Attributes
    ----------
    set_up : float
        How long the first readouts may have waited for the server to start [s].
    """

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._warn = warn
        self._clock = clock
        self._told = False
        self._first_arrival: float | None = None
        self._lead = 0.0  # how much earlier than during the scan a readout came, at most, after the first one [s]
        self._of_file = self._complete = False
        self.set_up = 0.0
        self._last_sent = 0.0
        self.latencies: list[float] = []
        self.received = self.processed = self.largest_backlog = 0

    def now(self) -> float:
        """Time [s] on the ledger's clock."""
        return self._clock()

    def arrived(self, moment: float = 0.0) -> float:
        """Note the arrival of a readout; returns its time [s]. Called by the receiving thread.

        Parameters
        ----------
        moment : float
            When it was acquired, from the first one on [s], see `ScanClock`.
        """
        self.received += 1
        now = self._clock()
        if self._first_arrival is None:
            self._first_arrival = now
        self._lead = max(self._lead, moment - (now - self._first_arrival))
        self._of_file |= self._lead > self.set_up + AHEAD + DRIFT * moment
        return now

    def complete(self) -> None:
        """Note that the last readout has arrived. Called by the receiving thread."""
        self._complete = True

    def begin(self, arrival: float, moment: float) -> None:
        """Note that the work on a readout begins.

        Parameters
        ----------
        arrival : float
            What `arrived` returned for it [s].
        moment : float
            When it was acquired, from the first one on [s].
        """
        self.processed += 1
        self.largest_backlog = max(self.largest_backlog, self.received - self.processed)
        behind = self.behind(arrival, moment)
        if behind > BEHIND and self.elapsed > CATCH_UP and not self._told:
            self._told = True
            self._warn(
                f"the reconstruction is {behind:.1f} s behind the scan, {self.received - self.processed} readouts wait"
            )

    @property
    def elapsed(self) -> float:
        """Time since the first readout arrived [s]."""
        return 0.0 if self._first_arrival is None else self._clock() - self._first_arrival

    def behind(self, arrival: float, moment: float) -> float:
        """Delay of the work on a readout [s]: how long it has waited, but no more than it is late against the scan.

        Parameters
        ----------
        arrival
            When it arrived [s].
        moment
            When it was acquired, from the first one on [s].
        """
        waited = 0.0 if self._of_file else self._lead  # the first one, for the server to start
        return min(self._clock() - arrival, self.elapsed - moment + waited)

    @property
    def can_wait(self) -> bool:
        """True when nobody waits for images: readouts come from a file, or the scan is over.

        Those of a file come before they would have during the scan, by more than what has waited for the server to
        start. That they come more slowly later, because their reader is slow, does not make them a scan's.
        """
        return self._of_file or self._complete

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
