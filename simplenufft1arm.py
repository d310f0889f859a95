"""Real-time view-sharing reconstruction of spiral scans: a movie while the scan goes on.

Frame j is the adjoint NUFFT of the density-weighted arms j * window_shift ... j * window_shift + arms_per_frame - 1; it
is sent as soon as its last arm is in. Receiving, gridding and sending overlap. Settings:
``configs/rtspiral_vs_config.toml``, read for each scan.

References: Lim et al., Magn Reson Med 2017, doi 10.1002/mrm.26314 (real-time spirals); Inati et al., ISMRM 2014 p. 4407
(coil maps).
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import mrdhelper
from connection import Connection
from recon import configuration, nufft, realtime, spiral
from recon.configuration import SpiralConfig, SpiralReconstruction, parameter
from recon.fieldcorrection import Correction
from recon.fieldlearning import learning
from recon.fieldplan import with_fields
from recon.fieldsources import open_correction
from recon.realtime import Frame
from recon.spiralreadout import SpiralReadout
from recon.viewsharing import (
    FOOTPRINT,
    USABLE_PART,
    SharedViews,
    check_memory,
    in_time,
    plan_for,
    plan_of_new_arm,
)


@dataclass(frozen=True)
class ViewSharingReconstruction(SpiralReconstruction):
    """Table [reconstruction] of the view-sharing reconstruction."""

    arms_per_frame: int = parameter(
        FOOTPRINT, "Arms gridded into one frame: its temporal footprint.", "arms", minimum=1, maximum=1_000_000
    )
    window_shift: int = parameter(
        17, "Arms from the start of one frame to the start of the next.", "arms", minimum=1, maximum=1_000_000
    )
    ignore_arms_per_frame: bool = parameter(
        False, "Take as many arms per frame, and shift by as many, as the sequence has interleaves."
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
    # Else the tables wait for what the first readouts bring: their trajectory, or their orientation.
    if scan.nominal is not None and scan.response is None:
        plan_for(scan, scan.nominal, settings.reconstruction)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan frame by frame, and send each frame at once.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings are in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` has the signature of the sequence.
    """
    settings = configuration.load(ViewSharingConfig)
    nufft.open_backend(settings.reconstruction.gpu_device)
    hold = FOOTPRINT if settings.reconstruction.ignore_arms_per_frame else settings.reconstruction.arms_per_frame
    fields = open_correction(settings.reconstruction, metadata, connection, settings.metafile_paths)
    scan = spiral.SpiralScan(settings, metadata, connection.warn, tell=connection.info, hold=hold, fields=fields)

    readouts = realtime.receive(connection, scan, metadata, settings.reconstruction.prewhiten)
    to_pixels = as_complex if settings.reconstruction.save_complex else mrdhelper.SeriesScale(metadata, connection.warn)
    frames = reconstruct(readouts, scan, settings.reconstruction, mrdhelper.repetition_time(metadata))
    realtime.send(connection, scan, frames, to_pixels)


def reconstruct(
    readouts: Iterable[SpiralReadout], scan: spiral.SpiralScan, settings: ViewSharingReconstruction,
    tr: float | None = None,
) -> Iterator[Frame]:  # fmt: skip
    """Grid each arm when it comes, and yield each frame with its last arm, if enough of them are usable.

    Parameters
    ----------
    readouts
        Of all slices, as they come.
    scan
        Where they come from.
    settings
        Table [reconstruction] of the configuration.
    tr
        Repetition time [s], which the field correction has to keep up with; None: not known.

    Raises
    ------
    ValueError
        The frames of all slices together would take more memory than the machine can spare.
    """
    length, shift = settings.arms_per_frame, settings.window_shift
    plan_of = functools.lru_cache(maxsize=8)(functools.partial(plan_for, scan, settings=settings))
    slices: dict[int, SharedViews] = {}
    following: dict[int, SharedViews] = {}  # with a new correction, until they have a window of arms
    dropped = 0

    def terms_in_time(correction: Correction | None, readout: SpiralReadout) -> Correction | None:
        plan = plan_of(scan.trajectory_of(readout))
        return in_time(correction, plan, scan, readout.samples.shape[0], shift, tr)

    def open_views(readout: SpiralReadout, correction: Correction | None) -> SharedViews:
        plan, coil_count = with_fields(plan_of(scan.trajectory_of(readout)), correction), readout.samples.shape[0]
        windows = len(slices | following | {readout.head.idx.slice: None})
        check_memory(plan, coil_count, length, shift, windows, settings.gpu_device)
        return SharedViews(
            plan, readout, length, shift, settings.coil_combine == "adaptive", scan.place_of(readout),
            functools.partial(plan_of_new_arm, scan, settings, correction),
        )  # fmt: skip

    with learning(scan, terms_in_time) as learner:
        for readout in readouts:
            scan.ledger.begin(readout.arrival, readout.moment)
            number = readout.head.idx.slice
            here = slices.get(number)
            if here is None or here.place != scan.place_of(readout):
                if settings.ignore_arms_per_frame:
                    length = shift = scan.designed.interleaves
                here = slices[number] = open_views(readout, terms_in_time(scan.correction(readout), readout))
                following.pop(number, None)
            elif here.begins_frame:
                changed, correction = learner.news(readout)
                if changed:
                    try:
                        following[number] = open_views(readout, correction)
                    except ValueError as error:
                        scan.warn(f"images go on as they were, without the new field correction: {error}")
            learner.add(readout)
            grid = here.add(readout)
            if number in following and (better := following[number].add(readout)) is not None:
                here, grid = following.pop(number), better
                slices[number] = here
            if grid is not None and here.usable_part < USABLE_PART:
                dropped += 1
            elif grid is not None:
                yield Frame(*here.frame(grid), arrival=readout.arrival, arrival_time=scan.ledger.epoch(readout.arrival))
    if dropped:
        scan.warn(f"{dropped} frame(s) were not made: fewer than half of their readouts could be used")


def as_complex(pixels: NDArray[Any]) -> NDArray[np.complex64]:
    """Complex pixels, unscaled."""
    return pixels.astype(np.complex64)
