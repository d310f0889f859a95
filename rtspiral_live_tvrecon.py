"""Live temporal finite difference (TFD) reconstruction of spiral scans: a sharp movie while the scan goes on.

Minimises, over the latest frames x_1 ... x_W,

    1/2 ||W (E x - y)||^2 + weight * (||x_1 - x_0||_1 + ||D_t x||_1),

E, W and D_t as in `rtspiral_bart_tvrecon`, x_0: the frame before them, which has been given out. When the last readout
of a frame is in, the window moves on by that frame, a few iterations follow, and the frame `lag_frames` before it is
sent. The first images, until there are coil maps, are view-shared, as those of `simplenufft1arm`. With `final_series`,
the whole scan is reconstructed once more when it is over, by the batch solver. Settings:
``configs/rtspiral_live_tvrecon_config.toml``, read for each scan. See ``doc/live.md``.

Reference: Lim et al., Magn Reson Med 2019;81:234, doi 10.1002/mrm.27393 (temporal finite differences, spirals).
"""

import itertools
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mrdhelper
from connection import Connection
from recon import configuration, nufft, realtime, spiral, viewsharing
from recon.configuration import SpiralConfig
from recon.fieldsources import open_correction
from recon.readouts import Readouts
from solvers import liveslices, livestart, movies
from solvers.backends import NativeSolver
from solvers.liveslices import LiveReconstruction
from solvers.problem import IterativeReconstruction, Reporter

FINAL_SERIES = 1  # its number; that of the live images is 0
FINAL_WEIGHT = 2.5  # weight for the whole scan over that of the live images, whose newest frame has no later one


@dataclass(frozen=True)
class LiveConfig(SpiralConfig):
    """Configuration of `rtspiral_live_tvrecon`."""

    FILE: ClassVar[str] = "configs/rtspiral_live_tvrecon_config.toml"

    reconstruction: LiveReconstruction = field(default_factory=LiveReconstruction)


def prepare(config: Any, metadata: Any) -> None:
    """Do what can be done before the first readout comes: compile, read the trajectory, make its tables."""
    settings = configuration.load(LiveConfig)
    scan = spiral.SpiralScan(settings, metadata)
    nufft.open_backend(settings.reconstruction.gpu_device)
    nufft.warm_up()
    livestart.rehearse(settings.reconstruction.gpu_device)
    # Else the tables wait for what the first readouts bring: their trajectory, or their orientation.
    if scan.nominal is not None and scan.response is None:
        viewsharing.plan_for(scan, scan.nominal, settings.reconstruction)
        liveslices.tables_for(scan, settings.reconstruction, scan.nominal)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan frame by frame, and send each frame at once; then, if asked for, the whole scan.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` has the signature of the sequence.
    """
    settings = configuration.load(LiveConfig)
    options = settings.reconstruction
    nufft.open_backend(options.gpu_device)
    fields = open_correction(options, metadata, connection, settings.metafile_paths)
    scan = spiral.SpiralScan(settings, metadata, connection.warn, tell=connection.info, fields=fields)
    if scan.nominal is None:
        connection.warn("images begin when the scan is over: only its readouts tell the trajectory, as they come")
    tr = mrdhelper.repetition_time(metadata)

    kept: list[Readouts] = []
    readouts = realtime.receive(connection, scan, metadata, options.prewhiten)
    frames = liveslices.reconstruct(readouts, scan, options, tr, kept)
    realtime.send(connection, scan, frames, mrdhelper.SeriesScale(metadata, connection.warn))
    if options.final_series and kept:
        if scan.learns_field:
            for readouts_of_slice in kept:
                readouts_of_slice.correct(scan.correction(readouts_of_slice.first))
        solver = NativeSolver(options.gpu_device, Reporter(connection.send_text))
        series = movies.divide(
            kept, solver, arms=options.arms_per_frame, frames=max(map(len, kept)) // options.arms_per_frame or 1,
            chunks=0, tell=connection.info, warn=connection.warn,
        )  # fmt: skip
        index, to_pixels = itertools.count(1), mrdhelper.SeriesScale(metadata, connection.warn)
        reg_lambda, iterations = FINAL_WEIGHT * options.reg_lambda, IterativeReconstruction.num_iter
        with closing(movies.reconstruct(series, solver, reg_lambda, iterations, to_pixels)) as results:
            for movie, frame, pixels in results:
                connection.send_image(scan.image(pixels, movie.head(frame, tr), next(index), series=FINAL_SERIES))
