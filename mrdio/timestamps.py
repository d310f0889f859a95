"""Time stamps of MRD headers in seconds."""

from typing import Any

SECONDS_PER_TICK = 2.5e-3  # [s], the raster of all time stamps in MRD headers


def ticks_to_seconds(ticks: Any) -> Any:
    """Convert MRD time stamps (ticks of 2.5 ms since midnight) to seconds.

    Parameters
    ----------
    ticks
        One time stamp or an array of them [ticks].

    Returns
    -------
    The same in seconds [s].
    """
    return ticks * SECONDS_PER_TICK
