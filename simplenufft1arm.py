"""Real-time view-sharing reconstruction of spiral scans: a movie while the scan goes on.

Frame j is the adjoint NUFFT of the density-weighted arms j * window_shift ... j * window_shift + arms_per_frame - 1; it
is sent as soon as its last arm is in. Receiving, gridding and sending overlap. Settings:
``configs/rtspiral_vs_config.toml``, read for each scan.

References: Lim et al., Magn Reson Med 2017, doi 10.1002/mrm.26314 (real-time spirals); Inati et al., ISMRM 2014 p. 4407
(coil maps).
"""

import functools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import coils
import configuration
import constants
import mrdhelper
import nufft
import spiral
from pipeline import threaded
from slidingwindow import SlidingWindow
from trajectory import Trajectory

logger = logging.getLogger(__name__)

READOUTS_WAITING = 1024  # that may wait while the reconstruction is busy, some seconds; then the sender has to wait
FRAMES_WAITING = 64


def prepare(config: Any, metadata: Any) -> None:
    """Do what can be done before the first readout comes: compile, read the trajectory, make its tables."""
    settings = configuration.load(configuration.ViewSharingConfig)
    scan = spiral.SpiralScan(settings, metadata)
    nufft.open_backend(settings.reconstruction.gpu_device)
    nufft.warm_up()
    if scan.response is None:  # else the tables wait for the orientation that the first readout brings
        plan_for(scan, settings.reconstruction, None)


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan frame by frame, and send each frame at once.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` names the metafile.
    """
    warn = spiral.to_client(connection)
    settings = configuration.load(configuration.ViewSharingConfig)
    nufft.open_backend(settings.reconstruction.gpu_device)
    scan = spiral.SpiralScan(settings, metadata, warn)

    readouts = threaded(scan.readouts(connection), READOUTS_WAITING, "receiving")
    frames = threaded(reconstruct(readouts, scan, settings.reconstruction), FRAMES_WAITING, "reconstructing")
    to_pixels = as_complex if settings.reconstruction.save_complex else spiral.SeriesScale(metadata, warn)
    for index, frame in enumerate(frames, start=1):
        connection.send_image(scan.image(to_pixels(frame.pixels), frame.head, index, frame.attributes(scan.ledger)))
        scan.ledger.sent(frame.arrival)
    spiral.to_client(connection, constants.MRD_LOGGING_INFO)(scan.ledger.summary())


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


@dataclass
class Slice:
    """What goes on in one slice: its window of arms, its coil maps, the headers of its latest arms."""

    plan: nufft.ArmPlan
    window: SlidingWindow
    heads: deque[ismrmrd.AcquisitionHeader]
    maps: Any = field(default=None)


def reconstruct(
    readouts: Iterable[spiral.SpiralReadout], scan: spiral.SpiralScan, settings: Any
) -> Iterator[Frame]:
    """Grid each arm when it comes, and yield each frame with its last arm.

    Parameters
    ----------
    readouts
        Of all slices, as they come.
    scan
        Where they come from.
    settings
        Table [reconstruction] of the configuration.
    """
    combined = combine_by_maps if settings.coil_combine == "adaptive" else combine_by_rssq
    length, shift = settings.arms_per_frame, settings.window_shift
    if settings.ignore_arms_per_frame:
        length = shift = scan.nominal.interleaves
    slices: dict[int, Slice] = {}
    for readout in readouts:
        scan.ledger.begin(readout.arrival, mrdhelper.ticks_to_seconds(readout.head.acquisition_time_stamp))
        here = slices.get(readout.head.idx.slice)
        if here is None:
            plan = plan_for(scan, settings, readout)
            window = SlidingWindow(plan, readout.samples.shape[0], length, shift)
            here = slices[readout.head.idx.slice] = Slice(plan, window, deque(maxlen=length))
        here.heads.append(readout.head)
        grid = here.window.add(readout.column, readout.samples)
        if grid is not None:
            yield Frame(
                pixels=nufft.to_host(combined(here, here.plan.image(grid))),
                head=here.heads[len(here.heads) // 2],
                arrival=readout.arrival,
                arrival_time=time.time() - (scan.ledger.now() - readout.arrival),
            )


def as_complex(pixels: NDArray[Any]) -> NDArray[np.complex64]:
    """Complex pixels, unscaled."""
    return pixels.astype(np.complex64)


def combine_by_maps(here: Slice, images: Any) -> Any:
    """Combine coil images [coil, row, column] with the maps of the slice's first frame."""
    if here.maps is None:
        here.maps, _ = coils.inati(images)
    return coils.combine(images, here.maps)


def combine_by_rssq(here: Slice, images: Any) -> Any:
    """Combine coil images [coil, row, column] by the root of the sum of squares."""
    return coils.rssq(images)


def plan_for(scan: spiral.SpiralScan, settings: Any, readout: spiral.SpiralReadout | None) -> nufft.ArmPlan:
    """Tables of the trajectory for a readout's orientation and length, or, without readout, for the metafile's own."""
    fitted = scan.nominal if readout is None else scan.trajectory_of(readout)
    return _plan(fitted, settings.fov_oversampling, settings.gpu_device)


@functools.lru_cache(maxsize=4)
def _plan(fitted: Trajectory, fov_oversampling: float, gpu_device: int) -> nufft.ArmPlan:
    """Tables of a trajectory; kept, since slices share them and the next scan is often like the last."""
    size = fitted.matrix_size(fov_oversampling)
    coordinates = fitted.cycles_per_fov(fov_oversampling)
    return nufft.ArmPlan(coordinates, (size, size), fitted.weights, gpu_device=gpu_device)
