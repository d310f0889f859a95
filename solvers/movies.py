"""A scan as movies: the frames of each slice, and the chunks of frames that an iterative solver takes together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import memory
from recon.readouts import DataError, Readouts, data_scale, frame_head, prepare_each
from solvers.linops import arm_fields
from solvers.native_recon import Penalty
from solvers.problem import Part, Solver

UNSTEADY_FRAMES = 5  # at the start of a scan, too bright to tell the data's scale


class Chunk(NamedTuple):
    """Frames that are reconstructed together, and those of them that are kept."""

    frames: range
    kept: range


@dataclass(frozen=True, eq=False)
class Movie:
    """The frames of one slice.

    Attributes
    ----------
    readouts
        Of the slice.
    arms
        Readouts of a frame: frame n consists of those from n * arms on.
    chunks
        In which it is reconstructed.
    empty
        How many of its frames have no usable readout.
    """

    readouts: Readouts
    arms: int
    chunks: tuple[Chunk, ...]
    empty: int = 0

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(len(chunk.kept) for chunk in self.chunks)

    @property
    def steady(self) -> Sequence[int]:
        """Frames of the first chunk that tell the data's scale: those with data, the first ones only if need be."""
        kept = self.chunks[0].kept
        frames = [frame for frame in kept if any(self.readouts.usable[frame * self.arms : (frame + 1) * self.arms])]
        return [frame for frame in frames if frame - kept.start >= UNSTEADY_FRAMES] or frames

    def parts(self, maps: NDArray[Any], scale: float, weight: float, iterations: int) -> Iterator[Part]:
        """Yield the input of a solver for each chunk.

        Parameters
        ----------
        maps
            [coil, row, column].
        scale
            Divisor of the samples.
        weight
            Of the differences from frame to frame.
        iterations
            At most.
        """
        readouts = self.readouts
        for chunk in self.chunks:
            numbers = slice(chunk.frames.start * self.arms, chunk.frames.stop * self.arms)
            shape = (len(chunk.frames), self.arms)
            usable = np.reshape(readouts.usable[numbers], shape)
            columns = np.reshape(readouts.columns[numbers], shape)
            yield Part(
                samples=readouts.samples[numbers].reshape(*shape, *readouts.samples.shape[1:]),
                coordinates=readouts.coordinates[columns],
                maps=maps,
                penalties=(Penalty(axis=0, weight=weight, cyclic=False),),
                iterations=iterations,
                columns=len(readouts.coordinates),
                scale=scale,
                weights=None if usable.all() else usable.astype(np.float32),
                fields=arm_fields(readouts.correction, columns),
            )

    def head(self, frame: int, tr: float | None) -> ismrmrd.AcquisitionHeader:
        """Header of a frame: that of its middle readout, with the time at which the frame begins.

        Time stamps of single readouts are good to a tick; counted from the slice's first by TR [s], frames are evenly
        spaced, and stay so where readouts were lost, or belong to other slices.
        """
        readouts, first = self.readouts, frame * self.arms
        return frame_head(
            readouts.heads[first + self.arms // 2],
            readouts.heads[first],
            readouts.heads[0],
            readouts.numbers[first] - readouts.numbers[0],
            tr,
        )


def divide(
    slices: Sequence[Readouts],
    solver: Solver,
    *,
    arms: int,
    frames: int,
    chunks: int,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[Movie]:
    """Divide slices into frames, and those into chunks, where there are data; the client is told how many.

    Parameters
    ----------
    slices
        The readouts of each.
    solver
        Tells how far chunks reach into their neighbours, and the memory that they take.
    arms
        Readouts of a frame.
    frames
        Of each slice, at most.
    chunks
        Of each slice; 0: as few as fit into the memory that is free.
    tell, warn
        Called with a text for the client.

    Returns
    -------
    A movie for each slice that can be reconstructed.

    Raises
    ------
    DataError
        The readouts of no slice make one frame, or no readout of any frame is usable.
    memory.ShortageError
        Not even a single frame with its neighbours fits into the memory.
    """
    movies = prepare_each(lambda readouts: _divide(readouts, solver, arms, frames, chunks), slices, warn)
    count, made = sum(len(movie.readouts) for movie in movies), sum(movie.frames for movie in movies)
    of_slices = f" of {len(movies)} slices" if len(movies) > 1 else ""
    tell(f"{count} readouts kept: {made} frames{of_slices} in {sum(len(one.chunks) for one in movies)} part(s)")
    if (most := max(movie.frames for movie in movies)) < frames:
        each = " of a slice at most" if of_slices else ""
        warn(f"the scan has {most} frames{each}, fewer than num_recon_frames = {frames}: all are made")
    if empty := sum(movie.empty for movie in movies):
        warn(f"{empty} frame(s) have no usable readout and come from their neighbours; parts of them are not made")
    return movies


def _divide(readouts: Readouts, solver: Solver, arms: int, most: int, count: int) -> Movie:
    available = len(readouts) // arms
    if available == 0:
        raise DataError(f"{len(readouts)} readouts are fewer than the {arms} of one frame")
    frames = min(available, most)
    with_data = np.any(np.reshape(readouts.usable[: frames * arms], (frames, -1)), axis=1)
    count = count or _chunks_that_fit(solver, readouts, frames, arms)
    chunks = tuple(one for one in split(frames, count, solver.overlap) if with_data[one.kept].any())
    if not chunks:
        raise DataError(f"none of the readouts of its {frames} frames can be used")
    return Movie(readouts, arms, chunks, empty=int(np.count_nonzero(~with_data)))


def split(frames: int, count: int, overlap: int) -> Iterator[Chunk]:
    """Split frames into chunks of equal length, give or take one, that reach so far into their neighbours."""
    count = min(count, frames)
    borders = [n * frames // count for n in range(count + 1)]
    for start, stop in pairwise(borders):
        yield Chunk(range(max(start - overlap, 0), min(stop + overlap, frames)), range(start, stop))


def _chunks_that_fit(solver: Solver, readouts: Readouts, frames: int, arms: int) -> int:
    """Fewest chunks of which each fits into the memory that is free."""
    usable = memory.usable(solver.memory_device)
    (_, coils, samples), columns = readouts.samples.shape, len(readouts.coordinates)
    terms = 0 if readouts.correction is None else len(readouts.correction)
    for count in range(1, frames + 1):
        longest = min(-(-frames // count) + 2 * solver.overlap, frames)
        needed = solver.memory_needed((longest,), arms, coils, samples, readouts.matrix, columns, terms)
        if needed <= usable:
            return count
    raise memory.ShortageError(f"{longest} frames together", needed, usable)


def reconstruct(
    series: Sequence[Movie], solver: Solver, reg_lambda: float, iterations: int, to_pixels: mrdhelper.SeriesScale
) -> Generator[tuple[Movie, int, NDArray[np.int16]], None, None]:
    """Reconstruct movies, and yield their frames as (movie, number of the frame, pixels).

    Parameters
    ----------
    series
        The movies.
    solver
        Computes them.
    reg_lambda
        Weight of the temporal total variation, as the configuration has it.
    iterations
        At most.
    to_pixels
        Intensity scale of all frames, which the first chunk gives.
    """

    def problems() -> Iterator[Part]:
        for movie in series:
            maps = solver.coil_maps(movie.readouts)
            scale = data_scale(movie.readouts, maps, movie.arms, movie.steady)
            weight = solver.weight_over_time(reg_lambda, movie.frames, len(movie.chunks))
            yield from movie.parts(maps, scale, weight, iterations)

    brightness = relative_brightness(series)
    with closing(solver.reconstruct(problems(), sum(len(movie.chunks) for movie in series))) as results:
        for chunk in images(series, results):
            to_pixels.see(np.array([brightness * mrdhelper.largest_magnitude(image) for _, _, image in chunk]))
            for movie, frame, image in chunk:
                yield movie, frame, to_pixels(image)


def images(
    movies: Iterable[Movie], results: Iterable[NDArray[np.complex64]]
) -> Iterator[list[tuple[Movie, int, NDArray[np.complex64]]]]:
    """Yield the frames of each chunk as (movie, number of the frame, image), without the overlap.

    Parameters
    ----------
    movies
        Whose chunks were reconstructed.
    results
        Images [frame, row, column] of all chunks, in order.
    """
    chunks = [(movie, chunk) for movie in movies for chunk in movie.chunks]
    for (movie, chunk), frames in zip(chunks, results, strict=True):
        kept = frames[chunk.kept.start - chunk.frames.start :][: len(chunk.kept)]
        yield [(movie, number, image) for number, image in zip(chunk.kept, kept, strict=True)]


def relative_brightness(movies: Sequence[Movie]) -> float:
    """Brightness of the brightest slice over that of the first, by their samples; 1 when none is brighter."""
    if len(movies) == 1:
        return 1.0
    first, *others = (
        float(np.linalg.norm(movie.readouts.samples) / sum(movie.readouts.usable) ** 0.5) for movie in movies
    )
    return max(1.0, *(other / first for other in others)) if first > 0 else 1.0
