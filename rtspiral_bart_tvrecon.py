"""Temporal finite difference (TFD) reconstruction of spiral scans, through BART: a movie of few arms per frame.

Minimises, over the frames x of a chunk of the scan,

    1/2 ||E x - y||^2 + weight * ||D_t x||,

E: coil maps and non-uniform Fourier transform of each frame's own arms; D_t: difference from frame to frame, and, as
BART takes it, from the last to the first; its norm is, pixel by pixel, taken over the whole chunk; weight: reg_lambda
times the frames of a chunk. Settings: ``configs/rtspiral_bart_tvrecon_config.toml``, read for each scan. See
``doc/tfd.md``.

Reference: Lim et al., Magn Reson Med 2019;81:234, doi 10.1002/mrm.27393 (temporal finite differences, spirals).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import bart_recon
import configuration
import constants
import mrdhelper
import spiral
from bart_tools import TIME_DIM

logger = logging.getLogger(__name__)

OVERLAP = 3  # frames that chunks reach into their neighbours; dropped afterwards
TIME_TOLERANCE = 0.05  # between the time stamps and the header's TR, over the whole scan [s]
UNSTEADY_FRAMES = 5  # at the start of a scan, too bright to tell the data's scale


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over, and send its frames chunk by chunk, then its waveforms.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` names the metafile.
    """
    warn, tell = spiral.to_client(connection), spiral.to_client(connection, constants.MRD_LOGGING_INFO)
    settings = configuration.load(configuration.TfdConfig)
    options = settings.reconstruction
    solver = bart_recon.open_solver(options, connection.send_text)
    scan = spiral.SpiralScan(settings, metadata, warn, keep_waveforms=True)

    most = options.num_recon_frames * options.arms_per_frame
    readouts = bart_recon.receive(scan, connection, options.fov_oversampling, most)
    frames = number_of_frames(len(readouts), options, warn)
    chunks = list(split(frames, options.num_chunks))
    tell(f"{len(readouts)} readouts kept: {frames} frames in {len(chunks)} part(s)")

    check_time(readouts, metadata, warn)
    maps = solver.coil_maps(readouts)
    scale = bart_recon.data_scale(readouts, maps, options.arms_per_frame, steady(chunks[0]))
    weight = options.reg_lambda * frames / len(chunks)
    to_pixels = spiral.SeriesScale(metadata, warn)
    for chunk in chunks:
        images = reconstruct(solver, readouts, maps, chunk, scale, weight, options)
        to_pixels.see(images)
        for frame, image in zip(chunk.kept, images, strict=True):
            head = head_of(readouts, frame, options.arms_per_frame, metadata)
            connection.send_image(scan.image(to_pixels(image), head, index=frame + 1))
    for waveform in scan.waveforms:
        connection.send_waveform(waveform)


@dataclass(frozen=True)
class Chunk:
    """Frames that are reconstructed together, and those of them that are kept."""

    frames: range
    kept: range


def number_of_frames(readouts: int, options: configuration.TfdReconstruction, warn: Callable[[str], None]) -> int:
    """Frames to reconstruct: those asked for, or as many as there are.

    Raises
    ------
    bart_recon.DataError
        The readouts do not make one frame.
    """
    available = readouts // options.arms_per_frame
    if available == 0:
        raise bart_recon.DataError(f"{readouts} readouts are fewer than the {options.arms_per_frame} of one frame")
    if available < options.num_recon_frames:
        warn(f"the scan has {available} frames, fewer than num_recon_frames = {options.num_recon_frames}: all are made")
    return min(available, options.num_recon_frames)


def split(frames: int, count: int) -> Iterator[Chunk]:
    """Split frames into chunks of equal length, give or take one, that overlap on their inner sides."""
    count = min(count, frames)
    borders = [n * frames // count for n in range(count + 1)]
    for start, stop in pairwise(borders):
        yield Chunk(range(max(start - OVERLAP, 0), min(stop + OVERLAP, frames)), range(start, stop))


def steady(chunk: Chunk) -> range:
    """Frames of the first chunk that tell the data's scale."""
    return chunk.kept[UNSTEADY_FRAMES:] or chunk.kept


def reconstruct(
    solver: bart_recon.Solver, readouts: bart_recon.Readouts, maps: NDArray[Any], chunk: Chunk, scale: float,
    weight: float, options: configuration.TfdReconstruction,
) -> NDArray[np.complex64]:  # fmt: skip
    """Reconstruct the frames of a chunk together; returns those that are kept [frame, row, column]."""
    arms = options.arms_per_frame
    part = slice(chunk.frames.start * arms, chunk.frames.stop * arms)
    shape = (len(chunk.frames), arms)
    columns = np.reshape(readouts.columns[part], shape)
    images = solver.pics(
        ["-m", "-w", scale, "-e", "-S", "-R", f"T:1024:1024:{weight:.9g}", "-d", 4, "-i", options.num_iter],
        readouts.samples[part].reshape(*shape, *readouts.samples.shape[1:]),
        readouts.coordinates[columns],
        maps,
        (TIME_DIM,),
    )
    return images[chunk.kept.start - chunk.frames.start :][: len(chunk.kept)]


def check_time(readouts: bart_recon.Readouts, metadata: Any, warn: Callable[[str], None]) -> None:
    """Say so when the header's TR, which the time stamps of frames follow, does not agree with those of readouts."""
    tr = bart_recon.repetition_time(metadata)
    first, last = readouts.heads[0], readouts.heads[-1]
    measured = (last.acquisition_time_stamp - first.acquisition_time_stamp) * mrdhelper.SECONDS_PER_TICK
    counted = (readouts.numbers[-1] - readouts.numbers[0]) * (tr or 0.0)
    if tr and measured > 0 and abs(measured - counted) > TIME_TOLERANCE:
        by_header = f"{counted:.3f} s by the header's TR of {1e3 * tr:g} ms, which the frames' times follow"
        warn(f"the scan took {measured:.3f} s by its time stamps, but {by_header}")


def head_of(readouts: bart_recon.Readouts, frame: int, arms: int, metadata: Any) -> ismrmrd.AcquisitionHeader:
    """Header that stands for a frame: that of its middle readout, with the time at which the frame begins.

    Time stamps of single readouts are good to a tick; counted from the first by TR, frames are evenly spaced, and stay
    so where readouts were lost.
    """
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(readouts.heads[frame * arms + arms // 2])
    begin = readouts.heads[frame * arms].acquisition_time_stamp
    if tr := bart_recon.repetition_time(metadata):
        since = (readouts.numbers[frame * arms] - readouts.numbers[0]) * tr / mrdhelper.SECONDS_PER_TICK
        begin = round(readouts.heads[0].acquisition_time_stamp + since)
    head.acquisition_time_stamp = begin
    return head
