"""How much work there is time for while a scan goes on."""


class Effort:
    """Iterations that there is time for: all while the reconstruction keeps up with the scan.

    For each frame's duration that it is behind there is one iteration fewer, down to one, and the window is not
    iterated on; at twice as many frames as there are iterations, frames are left out until it has caught up.

    Parameters
    ----------
    iterations
        Of a frame that is in time.
    """

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._done: list[int] = [0] * (iterations + 1)  # frames by the number of their iterations

    def iterations(self, behind: float, duration: float) -> int:
        """Return the iterations for a frame [0: it is left out], and count it.

        Parameters
        ----------
        behind
            How late its last readout is worked on [s].
        duration
            From the frame before to this one [s]; 0: not known.
        """
        frames = int(behind / duration) if behind > 0 and duration > 0 else 0
        count = max(self._iterations - frames, 1) if frames < 2 * self._iterations else 0
        self._done[count] += 1
        return count

    def summary(self) -> str | None:
        """Return what had to be given up, in words for the client; None: nothing."""
        frames = sum(self._done)
        if self._done[-1] == frames:
            return None
        mean = sum(n * count for n, count in enumerate(self._done)) / frames
        left_out = f", {self._done[0]} of {frames} frames were left out" if self._done[0] else ""
        return (
            f"this machine was too slow at times: {mean:.1f} of {self._iterations} iterations per frame on average"
            f"{left_out}; a smaller num_iter or window_frames, or more arms_per_frame, needs less"
        )
