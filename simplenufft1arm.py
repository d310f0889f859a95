"""Real-time view-sharing reconstruction of spiral scans: a movie while the scan goes on.

Frame j is the adjoint NUFFT of the density-weighted arms j * window_shift ... j * window_shift + arms_per_frame - 1; it
is sent as soon as its last arm is in. Receiving, gridding and sending overlap. Settings:
``configs/rtspiral_vs_config.toml``, read for each scan.

References: Lim et al., Magn Reson Med 2017, doi 10.1002/mrm.26314 (real-time spirals); Inati et al., ISMRM 2014 p. 4407
(coil maps).
"""

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import coils
import mrdhelper
from connection import Connection
from recon import arrays, configuration, memory, noise, nufft, spiral
from recon.configuration import SpiralConfig, SpiralReconstruction, parameter
from recon.pipeline import threaded
from recon.slidingwindow import SlidingWindow
from recon.spiralreadout import SpiralReadout
from recon.trajectory import Trajectory

logger = logging.getLogger(__name__)

WAITING_BYTES = 128 << 20  # of readouts that may wait while the reconstruction is busy; then the sender has to wait
FRAMES_WAITING = 64
USABLE_PART = 0.5  # of the readouts of a frame, at least; else it is not made
MAPS_PART = 0.9  # of those of the frame whose coil maps are kept; until then each frame has its own


@dataclass(frozen=True)
class ViewSharingReconstruction(SpiralReconstruction):
    """Table [reconstruction] of the view-sharing reconstruction."""

    arms_per_frame: int = parameter(
        55, "Arms gridded into one frame: its temporal footprint.", "arms", minimum=1, maximum=1_000_000
    )
    window_shift: int = parameter(
        17, "Arms from the start of one frame to the start of the next.", "arms", minimum=1, maximum=1_000_000
    )
    ignore_arms_per_frame: bool = parameter(
        False, "Take as many arms per frame, and shift by as many, as the metafile has interleaves."
    )
    coil_combine: str = parameter(
        "adaptive",
        "adaptive: by coil maps from the first frame (Inati); rssq: root sum of squares.",
        choices=("adaptive", "rssq"),
    )
    save_complex: bool = parameter(False, "Send complex images, unscaled, instead of scaled magnitude images.")


@dataclass(frozen=True)
class ViewSharingConfig(SpiralConfig):
    """Configuration of `simplenufft1arm`."""

    FILE: ClassVar[str] = "configs/rtspiral_vs_config.toml"

    reconstruction: ViewSharingReconstruction = field(default_factory=ViewSharingReconstruction)


def prepare(config: Any, metadata: Any) -> None:
    """Do what can be done before the first readout comes: compile, read the trajectory, make its tables."""
    settings = configuration.load(ViewSharingConfig)
    scan = spiral.SpiralScan(settings, metadata)
    nufft.open_backend(settings.reconstruction.gpu_device)
    nufft.warm_up()
    if scan.response is None:  # else the tables need the orientation of the first readout
        plan_for(scan, settings.reconstruction, scan.nominal)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan frame by frame, and send each frame at once.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings are in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` names the metafile.
    """
    settings = configuration.load(ViewSharingConfig)
    nufft.open_backend(settings.reconstruction.gpu_device)
    scan = spiral.SpiralScan(settings, metadata, connection.warn)

    prewhiten = settings.reconstruction.prewhiten
    messages = noise.prewhiten(connection, metadata, prewhiten, connection.info, connection.warn, connection.dependency)
    readouts = threaded(scan.readouts(messages), WAITING_BYTES, "receiving", weight=lambda each: each.samples.nbytes)
    frames = threaded(reconstruct(readouts, scan, settings.reconstruction), FRAMES_WAITING, "reconstructing")
    to_pixels = as_complex if settings.reconstruction.save_complex else mrdhelper.SeriesScale(metadata, connection.warn)
    index = 0
    for index, frame in enumerate(frames, start=1):
        connection.send_image(scan.image(to_pixels(frame.pixels), frame.head, index, frame.attributes(scan.ledger)))
        scan.ledger.sent(frame.arrival)
    if index == 0:
        received = scan.ledger.received
        few = "fewer usable ones than one frame of a slice takes"
        connection.warn(f"no image was made: {received} imaging readouts came, {few}")
    connection.info(scan.ledger.summary())


@dataclass(frozen=True, eq=False)
class Frame:
    """A reconstructed frame.

    Attributes
    ----------
    pixels
        Combined image [row, column], complex; real and positive for the root sum of squares.
    head
        Header of the readout in the middle of the frame.
    arrival
        When its last readout arrived [s].
    arrival_time
        The same in seconds since the epoch [s].
    """

    pixels: NDArray[Any]
    head: ismrmrd.AcquisitionHeader
    arrival: float
    arrival_time: float

    def attributes(self, ledger: Any) -> dict[str, str]:
        """Return the meta attributes of the latency: when the last readout arrived, how long the frame took [ms]."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.arrival_time))
        return {
            "LastReadoutArrival": f"{moment}.{int(self.arrival_time % 1 * 1000):03d}",
            "ProcessingTime_ms": f"{1e3 * (ledger.now() - self.arrival):.3f}",
        }


class Slice:
    """One slice in one orientation: its window of arms, its coil maps, the headers of its latest arms.

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
    """

    def __init__(self, plan: nufft.ArmPlan, first: SpiralReadout, length: int, shift: int, adaptive: bool) -> None:
        self.orientation = first.orientation
        self._plan = plan
        self._window = SlidingWindow(plan, first.samples.shape[0], length, shift)
        self._arms: deque[tuple[ismrmrd.AcquisitionHeader, bool]] = deque(maxlen=length)  # and whether usable
        self._adaptive = adaptive
        self._maps: Any = None

    def add(self, readout: SpiralReadout) -> Any | None:
        """Grid a readout; returns the grid of the frame that it completes, if it does."""
        self._arms.append((readout.head, readout.usable))
        return self._window.add(readout.column, readout.samples if readout.usable else None)

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


def reconstruct(
    readouts: Iterable[SpiralReadout], scan: spiral.SpiralScan, settings: ViewSharingReconstruction
) -> Iterator[Frame]:
    """Grid each arm when it comes, and yield each frame with its last arm, if enough of them are usable.

    Parameters
    ----------
    readouts
        Of all slices, as they come.
    scan
        Where they come from.
    settings
        Table [reconstruction] of the configuration.

    Raises
    ------
    ValueError
        The frames of all slices together would take more memory than the machine can spare.
    """
    length, shift = settings.arms_per_frame, settings.window_shift
    if settings.ignore_arms_per_frame:
        length = shift = scan.nominal.interleaves
    plan_of = functools.lru_cache(maxsize=8)(functools.partial(plan_for, scan, settings))
    slices: dict[int, Slice] = {}
    dropped = 0
    for readout in readouts:
        scan.ledger.begin(readout.arrival, mrdhelper.ticks_to_seconds(readout.head.acquisition_time_stamp))
        number = readout.head.idx.slice
        here = slices.get(number)
        if here is None or here.orientation != readout.orientation:
            plan = plan_of(scan.trajectory_of(readout))
            windows = len(slices | {number: here})
            check_memory(plan, readout.samples.shape[0], length, shift, windows, settings.gpu_device)
            here = slices[number] = Slice(plan, readout, length, shift, settings.coil_combine == "adaptive")
        grid = here.add(readout)
        if grid is not None and here.usable_part < USABLE_PART:
            dropped += 1
        elif grid is not None:
            moment = time.time() - (scan.ledger.now() - readout.arrival)
            yield Frame(*here.frame(grid), arrival=readout.arrival, arrival_time=moment)
    if dropped:
        scan.warn(f"{dropped} frame(s) were not made: fewer than half of their readouts could be used")


def check_memory(
    plan: nufft.ArmPlan, coil_count: int, length: int, shift: int, slice_count: int, gpu_device: int = -1
) -> None:
    """Raise a ValueError when the windows of all slices would take more memory than one reconstruction may take."""
    needed = slice_count * SlidingWindow.grids(length, shift) * math.prod(plan.grid_shape) * coil_count * 8
    limit = memory.usable(gpu_device)
    if needed > limit:
        raise ValueError(
            f"arms_per_frame = {length} with window_shift = {shift}, {coil_count} coils, {slice_count} slices and a "
            f"grid of {plan.grid_shape} would take {needed >> 20} MiB, more than {limit >> 20} MiB: choose a larger "
            "window_shift, or a smaller fov_oversampling"
        )


def as_complex(pixels: NDArray[Any]) -> NDArray[np.complex64]:
    """Complex pixels, unscaled."""
    return pixels.astype(np.complex64)


def plan_for(scan: spiral.SpiralScan, settings: ViewSharingReconstruction, fitted: Trajectory) -> nufft.ArmPlan:
    """Tables of a trajectory; those of the metafile are kept, since the next scan often has the same."""
    make = _kept_plan if fitted is scan.nominal else _make_plan
    return make(fitted, settings.fov_oversampling, settings.gpu_device)


def _make_plan(fitted: Trajectory, fov_oversampling: float, gpu_device: int) -> nufft.ArmPlan:
    size = fitted.matrix_size(fov_oversampling)
    coordinates = fitted.cycles_per_fov(fov_oversampling)
    return nufft.ArmPlan(coordinates, (size, size), fitted.weights, gpu_device=gpu_device)


_kept_plan = functools.lru_cache(maxsize=2)(_make_plan)
