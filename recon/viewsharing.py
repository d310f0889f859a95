"""View-sharing of spiral arms: images of a moving window of arms, slice by slice."""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

import coils
from recon import arrays, memory, nufft
from recon.fieldplan import FieldPlan, with_fields
from recon.slidingwindow import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    import ismrmrd
    from numpy.typing import NDArray

    from recon.configuration import SpiralReconstruction
    from recon.fieldcorrection import Correction
    from recon.spiral import SpiralScan
    from recon.spiralreadout import SpiralReadout
    from recon.trajectory import Trajectory

FOOTPRINT = 55  # arms of a frame where nothing else is asked for
USABLE_PART = 0.5  # of the readouts of a frame, at least; else it is not made
NEW_ARMS = 256  # whose tables are kept at once, where readouts bring their trajectories
PACE = 0.7  # of the repetition time that gridding and transforms may take
REPEATS = 3  # of which the fastest counts: the first ones warm up
MAPS_PART = 0.9  # of those of the frame whose coil maps are kept; until then each frame has its own


class SharedViews:
    """View-sharing of one slice in one orientation: its window of arms, coil maps, the headers of its latest arms.

    Parameters
    ----------
    plan
        Tables of the trajectory.
    first
        Its first readout.
    length, shift
        Arms of a frame, and from frame to frame.
    adaptive
        Whether coils are combined by maps; else by the root of the sum of squares.
    place
        Its orientation, and position if that matters, see `SpiralScan.place_of`.
    plan_of_new_arm
        Makes the tables of an arm that `plan` has not, see `SpiralReadout.k`.
    """

    def __init__(
        self, plan: nufft.ArmPlan | FieldPlan, first: SpiralReadout, length: int, shift: int, adaptive: bool,
        place: tuple[float, ...] = (),
        plan_of_new_arm: Callable[[SpiralReadout], nufft.ArmPlan | FieldPlan] | None = None,
    ) -> None:  # fmt: skip
        self.place = place
        self._plan = plan
        self._window = SlidingWindow(plan, first.samples.shape[0], length, shift)
        self._arms: deque[tuple[ismrmrd.AcquisitionHeader, bool]] = deque(maxlen=length)  # and whether usable
        self._adaptive = adaptive
        self._maps: Any = None
        self._plan_of_new_arm = plan_of_new_arm
        self._new_arms: dict[int, nufft.ArmPlan | FieldPlan] = {}

    def add(self, readout: SpiralReadout) -> Any | None:
        """Grid a readout; returns the grid of the frame that it completes, if it does."""
        self._arms.append((readout.head, readout.usable))
        samples = readout.samples if readout.usable else None
        if readout.k is None:
            return self._window.add(readout.column, samples)
        return self._window.add(0, samples, self._new_arm(readout))

    def _new_arm(self, readout: SpiralReadout) -> nufft.ArmPlan | FieldPlan:
        assert self._plan_of_new_arm is not None
        if readout.column not in self._new_arms:
            if len(self._new_arms) >= NEW_ARMS:
                self._new_arms.clear()
            self._new_arms[readout.column] = self._plan_of_new_arm(readout)
        return self._new_arms[readout.column]

    @property
    def begins_frame(self) -> bool:
        """True where the next arm is the first one of a frame."""
        return self._window.begins_frame

    @property
    def usable_part(self) -> float:
        """Part of the latest arms, those of one frame, that are usable."""
        return sum(usable for _, usable in self._arms) / len(self._arms)

    def frame(self, grid: Any) -> tuple[NDArray[Any], ismrmrd.AcquisitionHeader]:
        """Image of a frame from its grid, as bright as with all its arms, and the header of its middle readout."""
        with self._plan.device():
            pixels = self._combine(self._plan.image(grid)) / self.usable_part
        return arrays.to_host(pixels), self._arms[len(self._arms) // 2][0]

    def _combine(self, images: Any) -> Any:
        """Combine coil images [coil, row, column]."""
        if not self._adaptive:
            return coils.rssq(images)
        if self._maps is not None:
            return coils.combine(images, self._maps)
        maps, combined = coils.inati(images)
        if self.usable_part >= MAPS_PART:
            self._maps = maps
        return combined


def check_memory(
    plan: nufft.ArmPlan | FieldPlan, coil_count: int, length: int, shift: int, slice_count: int, gpu_device: int = -1,
    setting: str = "window_shift",
) -> None:  # fmt: skip
    """Raise a ValueError when the windows of all slices would take more memory than one reconstruction may take.

    It names the setting that tells the shift from frame to frame.
    """
    needed = slice_count * SlidingWindow.grids(length, shift) * plan.grid_bytes(coil_count)
    limit = memory.usable(gpu_device)
    if needed > limit:
        raise ValueError(
            f"frames of {length} arms with {setting} = {shift}, {coil_count} coils, {slice_count} slices and "
            f"grids of {plan.grid_bytes(coil_count) >> 10} KiB would take {needed >> 20} MiB, more than {limit >> 20} "
            f"MiB: choose a larger {setting} or field_tolerance, or a smaller fov_oversampling"
        )


def plan_for(scan: SpiralScan, fitted: Trajectory, settings: SpiralReconstruction) -> nufft.ArmPlan:
    """Tables of a trajectory; those of the sequence's own are kept, since the next scan is often like the last."""
    make = _kept_plan if fitted is scan.nominal else _make_plan
    return make(fitted, settings.fov_oversampling, settings.gpu_device)


def plan_of_new_arm(
    scan: SpiralScan, settings: SpiralReconstruction, correction: Correction | None, readout: SpiralReadout
) -> nufft.ArmPlan | FieldPlan:
    """Tables of the one arm that a readout brought, and that the scan's trajectory has not."""
    plan = _make_plan(scan.trajectory_of_new_arm(readout), settings.fov_oversampling, settings.gpu_device)
    if correction is None:
        return plan
    return FieldPlan(plan, correction.terms.spatial, scan.temporal_of_new_arm(readout, correction))


def in_time(
    correction: Correction | None, plan: nufft.ArmPlan, scan: SpiralScan, coil_count: int, shift: int,
    tr: float | None, measure: Callable[[FieldPlan, int, int], float] | None = None,
) -> Correction | None:  # fmt: skip
    """As many terms of a correction as view-sharing has time for.

    Parameters
    ----------
    correction
        As the tolerance asks for it.
    plan
        Tables of the trajectory.
    scan
        What it belongs to.
    coil_count
        Number of coils.
    shift
        Arms from frame to frame.
    tr
        Repetition time [s]; None: not known, all terms are taken.
    measure
        Used in place of `seconds_per_readout`.
    """
    if correction is None or scan.fields is None or tr is None:
        return correction
    needed = (measure or seconds_per_readout)(with_fields(plan, correction), coil_count, shift)
    return scan.fields.keep_pace(correction, needed, PACE * tr)


def seconds_per_readout(plan: FieldPlan, coil_count: int, shift: int) -> float:
    """Time that gridding an arm takes, and its share of a frame's transform, measured [s]."""
    samples = np.zeros((coil_count, plan.temporal.shape[-1]), np.complex64)
    grid = plan.zeros(coil_count)
    arms, frames = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        plan.add_arm(grid, 0, samples)
        middle = time.perf_counter()
        arrays.to_host(plan.image(grid))
        arms.append(middle - start)
        frames.append(time.perf_counter() - middle)
    return min(arms) + min(frames) / shift


def _make_plan(fitted: Trajectory, fov_oversampling: float, gpu_device: int) -> nufft.ArmPlan:
    size = fitted.matrix_size(fov_oversampling)
    coordinates = fitted.cycles_per_fov(fov_oversampling)
    return nufft.ArmPlan(coordinates, (size, size), fitted.weights, gpu_device=gpu_device)


_kept_plan = functools.lru_cache(maxsize=2)(_make_plan)
