"""Temporal finite difference (TFD) reconstruction of spiral scans: a movie of few arms per frame.

Minimises, over the frames x of a part of the scan,

    1/2 ||W (E x - y)||^2 + weight * ||D_t x||,

E: coil maps and non-uniform Fourier transform of each frame's own arms; W: 0 for readouts that are no measurement (see
`outliers`), else 1; D_t: difference from frame to frame. By the solver of this server, or by BART, whose norm is, pixel
by pixel, taken over all frames of a part, and whose last frame is followed by the first. Settings:
``configs/rtspiral_bart_tvrecon_config.toml``, read for each scan. See ``doc/tfd.md``.

Reference: Lim et al., Magn Reson Med 2019;81:234, doi 10.1002/mrm.27393 (temporal finite differences, spirals).
"""

import itertools
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mrdhelper
from connection import Connection
from recon import configuration, noise, spiral
from recon.configuration import SpiralConfig, parameter
from recon.fieldsources import open_correction
from recon.readouts import Readouts, receive
from solvers import backends, movies
from solvers.problem import IterativeReconstruction

TIME_TOLERANCE = 0.05  # between the time stamps and the header's TR, over the whole scan [s]


@dataclass(frozen=True)
class TfdReconstruction(IterativeReconstruction):
    """Table [reconstruction] of the temporal finite difference reconstruction."""

    fov_oversampling: float = parameter(
        1.5, "Reconstructed field of view over the designed one.", minimum=0.5, maximum=8
    )
    arms_per_frame: int = parameter(7, "Arms of one frame: its temporal footprint.", "arms", minimum=1)
    num_recon_frames: int = parameter(2000, "Frames to reconstruct; arms after the last are left out.", minimum=1)
    num_chunks: int = parameter(
        5, "Parts of the time series that are reconstructed one by one; 0: as few as the free memory allows.", minimum=0
    )
    reg_lambda: float = parameter(0.0002, "Weight of the temporal total variation.", minimum=0)


@dataclass(frozen=True)
class TfdConfig(SpiralConfig):
    """Configuration of `rtspiral_bart_tvrecon`."""

    FILE: ClassVar[str] = "configs/rtspiral_bart_tvrecon_config.toml"

    reconstruction: TfdReconstruction = field(default_factory=TfdReconstruction)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over, and send its frames, slice by slice and in time, then its waveforms.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings are in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` has the signature of the sequence.
    """
    settings = configuration.load(TfdConfig)
    options = settings.reconstruction
    solver = backends.open_solver(options, connection.send_text, connection.info)
    fields = open_correction(options, metadata, connection, settings.metafile_paths)
    scan = spiral.SpiralScan(
        settings, metadata, connection.warn, keep_waveforms=True, tell=connection.info, fields=fields
    )

    most = options.num_recon_frames * options.arms_per_frame
    messages = noise.prewhiten(
        connection, metadata, options.prewhiten, connection.info, connection.warn, connection.dependency
    )
    slices = receive(scan, messages, options.fov_oversampling, most)
    backends.leave_fields(solver, slices, connection.warn)
    series = movies.divide(
        slices, solver, arms=options.arms_per_frame, frames=options.num_recon_frames, chunks=options.num_chunks,
        tell=connection.info, warn=connection.warn,
    )  # fmt: skip
    tr = mrdhelper.repetition_time(metadata)
    check_time(slices, tr, connection)

    index, to_pixels = itertools.count(1), mrdhelper.SeriesScale(metadata, connection.warn)
    frames = movies.reconstruct(series, solver, options.reg_lambda, options.num_iter, to_pixels)
    with closing(frames):
        for movie, frame, pixels in frames:
            connection.send_image(scan.image(pixels, movie.head(frame, tr), next(index)))
    for waveform in scan.waveforms:
        connection.send_waveform(waveform)


def check_time(slices: Iterable[Readouts], tr: float | None, connection: Connection) -> None:
    """Warn when the header's TR [s], which the time stamps of frames follow, does not agree with those of readouts.

    Within each slice, as scans may pause from one to the next.
    """
    for readouts in slices:
        first, last = readouts.heads[0], readouts.heads[-1]
        measured = (last.acquisition_time_stamp - first.acquisition_time_stamp) * mrdhelper.SECONDS_PER_TICK
        counted = (readouts.numbers[-1] - readouts.numbers[0]) * (tr or 0.0)
        if tr and measured > 0 and abs(measured - counted) > TIME_TOLERANCE:
            by_header = f"{counted:.3f} s by the header's TR of {1e3 * tr:g} ms, which the frames' times follow"
            connection.warn(f"slice {readouts.slice} took {measured:.3f} s by its time stamps, but {by_header}")
            return
