"""Number of iterations that there is time for while a scan goes on."""

PATIENCE = 8  # frames that a reconstruction is behind by, at least, before it leaves frames out
RECOVERY = 5  # frames in time, one after the other, after which one step more is tried


class Effort:
    """Iterations, and frames that they change, that there is time for: all while the reconstruction keeps up.

    With each frame by which it falls behind the scan one step more is given up: an iteration, down to one; then half of
    the window. Only then, and far behind, frames are left out. Steps are kept until it has been in time for a while, as
    otherwise it would stay as many frames behind as it has to give up steps.

    Parameters
    ----------
    iterations
        Of a frame that is in time.
    window
        Frames that are iterated on then.
    """

    def __init__(self, iterations: int, window: int) -> None:
        self._iterations, self._window = iterations, window
        self._given_up = self._in_time = 0
        self._behind = 0.0
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
        if frames and behind >= self._behind:
            most = self._iterations - 1 + self._window.bit_length()
            self._given_up = min(max(self._given_up + 1, frames), most)
        self._behind = behind
        self._in_time = 0 if frames else self._in_time + 1
        if self._in_time >= RECOVERY:
            self._given_up, self._in_time = max(self._given_up - 1, 0), 0
        count = max(self._iterations - self._given_up, 1)
        window = self._window >> max(self._given_up - self._iterations + 1, 0)
        if not window and frames >= PATIENCE:
            count = 0
        return count, max(window, 1)

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
