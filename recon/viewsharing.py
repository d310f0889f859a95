"""View-sharing of spiral arms: images of a moving window of arms, slice by slice."""

from __future__ import annotations

import functools
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import coils
from recon import arrays, memory, nufft
from recon.slidingwindow import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    import ismrmrd
    from numpy.typing import NDArray

    from recon.configuration import SpiralReconstruction
    from recon.spiral import SpiralScan
    from recon.spiralreadout import SpiralReadout
    from recon.trajectory import Trajectory

FOOTPRINT = 55  # arms of a frame where nothing else is asked for
USABLE_PART = 0.5  # of the readouts of a frame, at least; else it is not made
NEW_ARMS = 256  # whose tables are kept at once, where readouts bring their trajectories
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
    plan_of_new_arm
        Makes the tables of an arm that `plan` has not, see `SpiralReadout.k`.
    """

    def __init__(
        self, plan: nufft.ArmPlan, first: SpiralReadout, length: int, shift: int, adaptive: bool,
        plan_of_new_arm: Callable[[SpiralReadout], nufft.ArmPlan] | None = None,
    ) -> None:  # fmt: skip
        self.orientation = first.orientation
        self._plan = plan
        self._window = SlidingWindow(plan, first.samples.shape[0], length, shift)
        self._arms: deque[tuple[ismrmrd.AcquisitionHeader, bool]] = deque(maxlen=length)  # and whether usable
        self._adaptive = adaptive
        self._maps: Any = None
        self._plan_of_new_arm = plan_of_new_arm
        self._new_arms: dict[int, nufft.ArmPlan] = {}

    def add(self, readout: SpiralReadout) -> Any | None:
        """Grid a readout; returns the grid of the frame that it completes, if it does."""
        self._arms.append((readout.head, readout.usable))
        samples = readout.samples if readout.usable else None
        if readout.k is None:
            return self._window.add(readout.column, samples)
        return self._window.add(0, samples, self._new_arm(readout))

    def _new_arm(self, readout: SpiralReadout) -> nufft.ArmPlan:
        assert self._plan_of_new_arm is not None
        if readout.column not in self._new_arms:
            if len(self._new_arms) >= NEW_ARMS:
                self._new_arms.clear()
            self._new_arms[readout.column] = self._plan_of_new_arm(readout)
        return self._new_arms[readout.column]

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
    plan: nufft.ArmPlan, coil_count: int, length: int, shift: int, slice_count: int, gpu_device: int = -1,
    setting: str = "window_shift",
) -> None:  # fmt: skip
    """Raise a ValueError when the windows of all slices would take more memory than one reconstruction may take.

    It names the setting that tells the shift from frame to frame.
    """
    needed = slice_count * SlidingWindow.grids(length, shift) * math.prod(plan.grid_shape) * coil_count * 8
    limit = memory.usable(gpu_device)
    if needed > limit:
        raise ValueError(
            f"frames of {length} arms with {setting} = {shift}, {coil_count} coils, {slice_count} slices and a "
            f"grid of {plan.grid_shape} would take {needed >> 20} MiB, more than {limit >> 20} MiB: choose a larger "
            f"{setting}, or a smaller fov_oversampling"
        )


def plan_for(scan: SpiralScan, fitted: Trajectory, settings: SpiralReconstruction) -> nufft.ArmPlan:
    """Tables of a trajectory; those of the sequence's own are kept, since the next scan is often like the last."""
    make = _kept_plan if fitted is scan.nominal else _make_plan
    return make(fitted, settings.fov_oversampling, settings.gpu_device)


def plan_of_new_arm(scan: SpiralScan, readout: SpiralReadout, settings: SpiralReconstruction) -> nufft.ArmPlan:
    """Tables of the one arm that a readout brought, and that the scan's trajectory has not."""
    return _make_plan(scan.trajectory_of_new_arm(readout), settings.fov_oversampling, settings.gpu_device)


def _make_plan(fitted: Trajectory, fov_oversampling: float, gpu_device: int) -> nufft.ArmPlan:
    size = fitted.matrix_size(fov_oversampling)
    coordinates = fitted.cycles_per_fov(fov_oversampling)
    return nufft.ArmPlan(coordinates, (size, size), fitted.weights, gpu_device=gpu_device)


_kept_plan = functools.lru_cache(maxsize=2)(_make_plan)
