"""Whether a module keeps up with a scan: time and memory that it takes, with data as fast as it takes them."""

import threading
from types import TracebackType
from typing import Self

import ismrmrd
import psutil

from checks.finding import Finding, fault, ok, warning
from checks.scanner import Answer
from checks.scans import Scan
from mrdio.limits import MIB

SHORT = 0.5  # length of a scan that is too short to judge by [s]
LAG = 0.2  # of the scan's time, that the last image may come late
COMFORTABLE = 0.7  # of the scan's time that a module may take: other programs run, too
SAMPLING = 0.02  # of the memory [s]
LARGE_PART = 0.5  # of the free memory


class Memory:
    """Largest growth of this process's memory within a with statement.

    Attributes
    ----------
    most : int
        [bytes].
    """

    def __init__(self) -> None:
        self.most = 0
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory of the doctor")

    def __enter__(self) -> Self:
        self._begin = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self._process.memory_info().rss - self._begin)
            if self._stopped.wait(SAMPLING):
                return


def duration_of(scan: Scan) -> float:
    """Length of a scan [s]."""
    return len(scan.of_type(ismrmrd.Acquisition)) * scan.tr


def timing(scan: Scan, answer: Answer) -> Finding:
    """Tell when images come, of a scan that was sent at a scanner's pace."""
    duration = duration_of(scan)
    if not answer.image_times:
        return fault("time", f"at a scanner's pace ({duration:.2f} s) no image comes")
    first, last = answer.image_times[0], answer.image_times[-1]
    after = f"{1e3 * (last - duration):.0f} ms after it" if last > duration else "before it ends"
    scanned = f"of a scan of {duration:.2f} s, sent at its pace"
    return ok("time", f"{scanned}, the first image comes after {first:.2f} s, the last {after}")


def finding(scan: Scan, answer: Answer, used: int, free: int, at_pace: Answer | None) -> Finding:
    """Judge whether a module keeps up.

    Parameters
    ----------
    scan
        The scan, sent as fast as the module took it.
    answer
        Answer to it.
    used, free
        Memory that the module took, and that is free [bytes].
    at_pace
        Answer to the scan at its own pace; only needed where the module takes longer than the scan.
    """
    readouts = scan.of_type(ismrmrd.Acquisition)
    duration = duration_of(scan)
    part = answer.seconds / duration
    coils = readouts[0].active_channels if readouts else 0
    text = (
        f"{len(readouts)} readouts of {coils} coils, TR {1e3 * scan.tr:.3g} ms, last {duration:.2f} s; the module "
        f"takes {answer.seconds:.2f} s for them ({100 * part:.0f} %) and {used / MIB:.0f} MiB of memory "
        f"({free / MIB:.0f} are free)"
    )
    if used > LARGE_PART * free:
        return warning("speed", f"{text}: a longer scan may not fit into the memory")
    if duration < SHORT:
        return ok("speed", f"{text}: too short a scan to judge by")
    if part <= COMFORTABLE:
        return ok("speed", text)
    if part <= 1:
        return warning("speed", f"{text}: it keeps up, with little to spare; end other programs")
    if at_pace is None or not at_pace.image_times or at_pace.image_times[0] > at_pace.last_sent:
        return warning("speed", f"{text}: its images come when the scan is over, later than that by this time")
    lag = at_pace.seconds - at_pace.last_sent
    if lag <= LAG * duration:  # it does less when time is short
        return warning("speed", f"{text}; at the scan's pace it keeps up, {1e3 * lag:.0f} ms behind at the end")
    return fault("speed", f"{text}: it falls behind, at the scan's pace by {lag:.2f} s in the end: take fewer coils, a "
                 "smaller matrix, a longer TR, a faster machine, or other settings of the module")  # fmt: skip
