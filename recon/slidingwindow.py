"""The grids of a moving window of spiral arms, for view-sharing reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recon.fieldplan import FieldPlan
    from recon.nufft import ArmPlan


class SlidingWindow:
    """Grids of a moving window of arms: frame j holds arms_per_frame arms from arm j * window_shift on.

    Each arm is gridded once, into the piece of time that it belongs to. Pieces end where any frame starts or ends, so
    that every frame is a sum of whole pieces. Nothing is ever subtracted, so nothing drifts: sums of the older pieces
    are kept from the right, sums of the newer ones from the left, and a frame is one of each (a queue of two stacks).
    When the older ones are used up, the newer ones become the older; that is done while the next frame's arms come in.

    Parameters
    ----------
    plan
        The trajectory's plan.
    coils
        Number of receive coils.
    arms_per_frame, window_shift
        Length and step of the window [arms]. With a step longer than the window the arms in between are not used.

    Raises
    ------
    ValueError
        A number is below 1.

    Notes
    -----
    Memory: 2 * (arms_per_frame // window_shift) + 3 grids, at most.
    How the choice was made: ``python benchmarks/nufft_backends.py`` (``doc/benchmarks.md``), against one running sum
    that adds the newest arm and subtracts the oldest.

    Sums of pieces grid every arm once instead of twice, and their error does not depend on the length of the scan.
    The price is memory, 2.4 MB / 10.6 MB a grid; with a shift of one arm it is a grid per arm of the window.
    """

    def __init__(self, plan: ArmPlan | FieldPlan, coils: int, arms_per_frame: int, window_shift: int) -> None:
        for name, value in (("coils", coils), ("arms_per_frame", arms_per_frame), ("window_shift", window_shift)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        self._plan, self._coils = plan, coils
        self._length, self._shift = arms_per_frame, window_shift
        self._count = 0  # arms so far
        self._start = 0  # the first arm of the next frame
        # Pieces and sums are pairs (number of arms until its end, grid).
        self._older: list[tuple[int, Any]] = []  # sums up to the newest of the older pieces; the oldest piece's is last
        self._newer: list[tuple[int, Any]] = []  # single pieces, the newest is last
        self._free: list[Any] = []
        self._open, self._newer_sum = plan.zeros(coils), plan.zeros(coils)

    @staticmethod
    def grids(arms_per_frame: int, window_shift: int) -> int:
        """Return how many grids a window takes at most."""
        return 2 * (arms_per_frame // window_shift) + 3

    @property
    def begins_frame(self) -> bool:
        """True where the next arm is the first one of a frame."""
        return self._count % self._shift == 0

    def add(self, arm: int, data: Any, plan: ArmPlan | FieldPlan | None = None) -> Any | None:
        """Take the next arm; return the grid of the frame that it completes, for `ArmPlan.image`, or None.

        Parameters
        ----------
        arm
            Which arm of the trajectory it is.
        data
            Samples [coil, samples]; None: the arm only keeps its place.
        plan
            Has the arm, if the trajectory's own has not; of the same image size.
        """
        # Here and not after a frame, so that a frame need not wait for it.
        with self._plan.device():
            self._drop()
        used = self._count % self._shift < self._length
        if used and data is not None:
            (plan or self._plan).add_arm(self._open, arm, data)
        self._count += 1
        if not used:
            return None
        complete = self._count >= self._length and (self._count - self._length) % self._shift == 0
        with self._plan.device():
            if complete or self._count % self._shift == 0:
                self._close_piece()
            if not complete:
                return None
            self._start = self._count - self._length + self._shift
            return self._newer_sum + self._older[-1][1] if self._older else self._newer_sum.copy()

    def _close_piece(self) -> None:
        self._newer_sum += self._open
        self._newer.append((self._count, self._open))
        if self._free:
            self._open = self._free.pop()
            self._open.fill(0)
        else:
            self._open = self._plan.zeros(self._coils)

    def _drop(self) -> None:
        """Forget the pieces that lie before the next frame's first arm."""
        while pieces := self._older[-1:] or self._newer[:1]:
            if pieces[0][0] > self._start:
                break
            if not self._older:
                self._age()
            self._free.append(self._older.pop()[1])

    def _age(self) -> None:
        """Turn the newer pieces into sums from the right."""
        while self._newer:
            end, grid = self._newer.pop()
            if self._older:
                grid += self._older[-1][1]
            self._older.append((end, grid))
        self._newer_sum.fill(0)
