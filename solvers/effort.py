"""How much work there is time for while a scan goes on."""

PATIENCE = 8  # frames that a reconstruction is behind by, at least, before it leaves frames out


class Effort:
    """Iterations, and frames that they change, that there is time for: all while the reconstruction keeps up.

    For each frame's duration that it is behind the scan there is one iteration fewer, down to one; then the window is
    half as long; then frames are left out, until it has caught up.

    Parameters
    ----------
    iterations
        Of a frame that is in time.
    window
        Frames that are iterated on then.
    """

    def __init__(self, iterations: int, window: int) -> None:
        self._iterations, self._window = iterations, window
        self._done: list[int] = [0] * (iterations + 1)  # frames by the number of their iterations
        self._shortened = 0

    def afford(self, behind: float, duration: float) -> tuple[int, int]:
        """Return iterations [0: the frame is left out] and the length of the window for a frame.

        Parameters
        ----------
        behind
            How late its last readout is worked on [s].
        duration
            From the frame before to this one [s]; 0: not known.
        """
        frames = int(behind / duration) if behind > 0 and duration > 0 else 0
        count, halvings = max(self._iterations - frames, 1), max(frames - self._iterations + 1, 0)
        window = max(self._window >> halvings, 1)
        if frames >= PATIENCE and not self._window >> halvings:
            count = 0
        return count, window

    def note(self, count: int, window: int) -> None:
        """Count a frame that had so many iterations on so long a window."""
        self._done[count] += 1
        self._shortened += count > 0 and window < self._window

    def summary(self) -> str | None:
        """Return what had to be given up, in words for the client; None: nothing."""
        frames = sum(self._done)
        fewer = frames - self._done[-1]
        if not fewer + self._shortened:
            return None
        mean = sum(n * count for n, count in enumerate(self._done)) / frames
        shortened = f", {self._shortened} with a shorter window" if self._shortened else ""
        left_out = f", {self._done[0]} left out" if self._done[0] else ""
        return (
            f"this machine was too slow at times: of {frames} frames {fewer} with fewer iterations ({mean:.1f} of "
            f"{self._iterations} on average){shortened}{left_out}; a smaller num_iter or window_frames, or more "
            "arms_per_frame, needs less"
        )
