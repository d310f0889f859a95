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
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import configuration, memory, noise, spiral
from recon.configuration import SpiralConfig, parameter
from recon.readouts import DataError, Readouts, data_scale, prepare_each, receive, repetition_time
from solvers import backends as solvers
from solvers.native_recon import Penalty
from solvers.problem import IterativeReconstruction

logger = logging.getLogger(__name__)

TIME_TOLERANCE = 0.05  # between the time stamps and the header's TR, over the whole scan [s]
UNSTEADY_FRAMES = 5  # at the start of a scan, too bright to tell the data's scale


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


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over, and send its frames, slice by slice and in time, then its waveforms.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` names the metafile.
    """
    warn, tell = connection.warn, connection.info
    settings = configuration.load(TfdConfig)
    options = settings.reconstruction
    solver = solvers.open_solver(options, connection.send_text, tell)
    scan = spiral.SpiralScan(settings, metadata, warn, keep_waveforms=True)

    most = options.num_recon_frames * options.arms_per_frame
    messages = noise.prewhiten(connection, metadata, options.prewhiten, tell, warn, connection.dependency)
    slices = receive(scan, messages, options.fov_oversampling, most)
    movies = prepare_each(lambda readouts: divide(readouts, solver, options), slices, warn)
    describe(movies, options, tell, warn)
    check_time(slices, metadata, warn)

    index, to_pixels, room = itertools.count(1), mrdhelper.SeriesScale(metadata, warn), room_for(movies)
    chunks = [(movie.readouts, chunk) for movie in movies for chunk in movie.chunks]
    with closing(solver.reconstruct(parts_of(movies, solver, options), len(chunks))) as results:
        for (readouts, chunk), images in zip(chunks, results, strict=True):
            kept = images[chunk.kept.start - chunk.frames.start :][: len(chunk.kept)]
            to_pixels.see(np.array(room * mrdhelper.largest_magnitude(kept)))
            for frame, image in zip(chunk.kept, kept, strict=True):
                head = head_of(readouts, frame, options.arms_per_frame, metadata)
                connection.send_image(scan.image(to_pixels(image), head, next(index)))
    for waveform in scan.waveforms:
        connection.send_waveform(waveform)


@dataclass(frozen=True)
class Chunk:
    """Frames that are reconstructed together, and those of them that are kept."""

    frames: range
    kept: range


@dataclass(frozen=True, eq=False)
class Movie:
    """A slice, the chunks in which it is reconstructed, and how many of its frames have no usable readout."""

    readouts: Readouts
    chunks: tuple[Chunk, ...]
    empty: int

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(len(chunk.kept) for chunk in self.chunks)


def divide(readouts: Readouts, solver: solvers.Solver, options: TfdReconstruction) -> Movie:
    """Divide the frames of a slice into chunks: those asked for, or as many as there are, where there are data.

    Raises
    ------
    DataError
        The readouts do not make one frame, or no readout of any frame is usable.
    memory.ShortageError
        Not even a single frame with its neighbours fits into the memory.
    """
    available = len(readouts) // options.arms_per_frame
    if available == 0:
        raise DataError(f"{len(readouts)} readouts are fewer than the {options.arms_per_frame} of one frame")
    frames = min(available, options.num_recon_frames)
    count = options.num_chunks or chunks_that_fit(solver, readouts, frames, options)
    with_data = np.reshape(readouts.usable[: frames * options.arms_per_frame], (frames, -1)).any(axis=1)
    chunks = tuple(one for one in split(frames, count, solver.overlap) if with_data[one.kept].any())
    if not chunks:
        raise DataError(f"none of the readouts of its {frames} frames can be used")
    return Movie(readouts, chunks, empty=int(np.count_nonzero(~with_data)))


def describe(
    movies: Sequence[Movie], options: TfdReconstruction, tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:  # fmt: skip
    """Tell the client what will be made, and warn if that is less than was asked for."""
    readouts, frames = sum(len(movie.readouts) for movie in movies), sum(movie.frames for movie in movies)
    slices = f" of {len(movies)} slices" if len(movies) > 1 else ""
    tell(f"{readouts} readouts kept: {frames} frames{slices} in {sum(len(one.chunks) for one in movies)} part(s)")
    if (most := max(movie.frames for movie in movies)) < options.num_recon_frames:
        each = " of a slice at most" if slices else ""
        asked = f"num_recon_frames = {options.num_recon_frames}"
        warn(f"the scan has {most} frames{each}, fewer than {asked}: all are made")
    if empty := sum(movie.empty for movie in movies):
        warn(f"{empty} frame(s) have no usable readout and come from their neighbours; parts of them are not made")


def room_for(movies: Sequence[Movie]) -> float:
    """Brightness of the brightest slice over that of the first, by their samples; 1 when none is brighter."""
    if len(movies) == 1:
        return 1.0
    first, *others = (
        float(np.linalg.norm(movie.readouts.samples) / sum(movie.readouts.usable) ** 0.5) for movie in movies
    )
    return max(1.0, *(other / first for other in others)) if first > 0 else 1.0


def split(frames: int, count: int, overlap: int) -> Iterator[Chunk]:
    """Split frames into chunks of equal length, give or take one, that reach so far into their neighbours."""
    count = min(count, frames)
    borders = [n * frames // count for n in range(count + 1)]
    for start, stop in pairwise(borders):
        yield Chunk(range(max(start - overlap, 0), min(stop + overlap, frames)), range(start, stop))


def steady(movie: Movie, arms: int) -> Sequence[int]:
    """Frames of the first chunk that tell the data's scale: those with data, the first ones if there are no others."""
    kept, usable = movie.chunks[0].kept, movie.readouts.usable
    frames = [frame for frame in kept if any(usable[frame * arms : (frame + 1) * arms])]
    return [frame for frame in frames if frame - kept.start >= UNSTEADY_FRAMES] or frames


def chunks_that_fit(solver: solvers.Solver, readouts: Readouts, frames: int, options: TfdReconstruction) -> int:
    """Fewest chunks of which each fits into the memory that is free.

    Raises
    ------
    memory.ShortageError
        Not even a single frame with its neighbours does.
    """
    room = memory.usable(-1 if options.scheduler else options.gpu_device)  # workers are taken to have as much
    (_, coils, samples), columns = readouts.samples.shape, len(readouts.coordinates)
    for count in range(1, frames + 1):
        longest = min(-(-frames // count) + 2 * solver.overlap, frames)
        needed = solver.memory_needed((longest,), options.arms_per_frame, coils, samples, readouts.matrix, columns)
        if needed <= room:
            return count
    raise memory.ShortageError(f"{longest} frames together", needed, room)


def parts_of(movies: Iterable[Movie], solver: solvers.Solver, options: TfdReconstruction) -> Iterator[solvers.Part]:
    """Yield what the solver needs for the chunks of all slices, each when it is asked for."""
    for movie in movies:
        readouts = movie.readouts
        maps = solver.coil_maps(readouts)
        scale = data_scale(readouts, maps, options.arms_per_frame, steady(movie, options.arms_per_frame))
        weight = solver.weight_over_time(options.reg_lambda, movie.frames, len(movie.chunks))
        for chunk in movie.chunks:
            yield part_of(readouts, chunk, maps, scale, weight, options)


def part_of(
    readouts: Readouts, chunk: Chunk, maps: NDArray[Any], scale: float, weight: float,
    options: TfdReconstruction,
) -> solvers.Part:  # fmt: skip
    """Return what the solver needs for a chunk."""
    arms = options.arms_per_frame
    numbers = slice(chunk.frames.start * arms, chunk.frames.stop * arms)
    shape = (len(chunk.frames), arms)
    usable = np.reshape(readouts.usable[numbers], shape)
    return solvers.Part(
        samples=readouts.samples[numbers].reshape(*shape, *readouts.samples.shape[1:]),
        coordinates=readouts.coordinates[np.reshape(readouts.columns[numbers], shape)],
        maps=maps,
        penalties=(Penalty(axis=0, weight=weight, cyclic=False),),
        iterations=options.num_iter,
        columns=len(readouts.coordinates),
        scale=scale,
        weights=None if usable.all() else usable.astype(np.float32),
    )


def check_time(slices: Iterable[Readouts], metadata: Any, warn: Callable[[str], None]) -> None:
    """Say so when the header's TR, which the time stamps of frames follow, does not agree with those of readouts.

    Within each slice, as scans may pause from one to the next.
    """
    tr = repetition_time(metadata)
    for readouts in slices:
        first, last = readouts.heads[0], readouts.heads[-1]
        measured = (last.acquisition_time_stamp - first.acquisition_time_stamp) * mrdhelper.SECONDS_PER_TICK
        counted = (readouts.numbers[-1] - readouts.numbers[0]) * (tr or 0.0)
        if tr and measured > 0 and abs(measured - counted) > TIME_TOLERANCE:
            by_header = f"{counted:.3f} s by the header's TR of {1e3 * tr:g} ms, which the frames' times follow"
            warn(f"slice {readouts.slice} took {measured:.3f} s by its time stamps, but {by_header}")
            return


def head_of(readouts: Readouts, frame: int, arms: int, metadata: Any) -> ismrmrd.AcquisitionHeader:
    """Header that stands for a frame: that of its middle readout, with the time at which the frame begins.

    Time stamps of single readouts are good to a tick; counted from the slice's first by TR, frames are evenly spaced,
    and stay so where readouts were lost, or belong to other slices.
    """
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(readouts.heads[frame * arms + arms // 2])
    begin = readouts.heads[frame * arms].acquisition_time_stamp
    if tr := repetition_time(metadata):
        since = (readouts.numbers[frame * arms] - readouts.numbers[0]) * tr / mrdhelper.SECONDS_PER_TICK
        begin = round(readouts.heads[0].acquisition_time_stamp + since)
    head.acquisition_time_stamp = begin
    return head
