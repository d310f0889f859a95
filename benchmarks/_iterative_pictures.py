"""Pictures of the iterative reconstructions for the guides: good choices beside bad ones, next to the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from iterative import ARMS, TFD_SCAN
from matplotlib.figure import Figure

ROWS, COLUMNS = slice(28, 100), slice(34, 106)  # pixels round the heart
LINE = 62  # row through both ventricles
STATES, PHASES = 6, 8
BRIGHTEST = 1.1
Pair = tuple[np.ndarray, np.ndarray]


def draw(kept: Mapping[str, Pair], folder: Path) -> None:
    """Draw all pictures.

    Parameters
    ----------
    kept
        By name in the benchmark's table: images and true images [image, row, column], density 1 is 1.
    folder
        Where they go.
    """
    names = iter(kept.items())
    tfd = [next(names) for _ in range(6)]
    xd = list(names)
    _, (_, truth) = tfd[0]
    images = [pair[0] for _, pair in tfd]
    shared, good, _, small, large, _ = images
    titles = ("truth", "view-sharing\n55 arms", "TFD, reg_lambda\n0.00002: streaks", "0.0002: right",
              "0.002: blurred in time")  # fmt: skip
    tfd_picture(titles, (truth, shared, small, good, large)).savefig(folder / "tfd.png")

    truth = xd[0][1][1]
    images = [pair[0] for _, pair in xd]
    alone, good, large, small, unweighted = images
    grid_picture(good).savefig(folder / "xdgrasp.png")
    titles = ("truth", "gridding\neach bin alone", "weights\n0.00005", "0.0005: right", "0.005: too large",
              "0.0005, filled with\nzeros, no weights")  # fmt: skip
    choices_picture(titles, (truth, alone, small, good, large, unweighted)).savefig(folder / "xdgrasp_choices.png")


def _figure(rows: int, columns: int, heights: Sequence[float], titles: Sequence[str]) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.7 * columns, 1.7 * sum(heights) + 0.5), dpi=90, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure, axes


def _show(axis, image: np.ndarray, brightest: float = BRIGHTEST) -> None:  # noqa: ANN001 -- an axis of matplotlib
    axis.imshow(image, cmap="gray", vmin=0, vmax=brightest, interpolation="nearest", aspect="auto")


def tfd_picture(titles: Sequence[str], movies: Sequence[np.ndarray]) -> Figure:
    """Contracted and relaxed heart, and a line through it over time, of movies [frame, row, column]."""
    blood = movies[0][:, ROWS, COLUMNS].sum(axis=(1, 2))
    inner = slice(5, -5)
    contracted, relaxed = (pick(blood[inner]) + 5 for pick in (np.argmin, np.argmax))
    figure, axes = _figure(3, len(movies), (1, 1, 0.7), titles)
    for column, movie in zip(axes.T, movies, strict=True):
        _show(column[0], movie[contracted, ROWS, COLUMNS])
        _show(column[1], movie[relaxed, ROWS, COLUMNS])
        _show(column[2], movie[:, LINE, COLUMNS])
    for axis, label in zip(axes[:, 0], ("contracted", "relaxed", "time [s]"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    frame_time = ARMS * TFD_SCAN.tr
    seconds = np.arange(0, len(movies[0]) * frame_time, 0.5)
    axes[2, 0].set_yticks(seconds / frame_time - 0.5, [f"{second:g}" for second in seconds], fontsize=8)
    return figure


def grid_picture(images: np.ndarray) -> Figure:
    """All bins [respiratory * cardiac, row, column]: respiration downwards, cardiac phase to the right."""
    tiles = images[:, ROWS, COLUMNS].reshape(STATES, PHASES, ROWS.stop - ROWS.start, -1)
    mosaic = tiles.transpose(0, 2, 1, 3).reshape(STATES * tiles.shape[2], -1)
    figure, ((axis,),) = _figure(1, 1, (1,), ("",))
    figure.set_size_inches(7.2, 5.5)
    _show(axis, mosaic)
    for ticks, count, size in ((axis.set_xticks, PHASES, tiles.shape[3]), (axis.set_yticks, STATES, tiles.shape[2])):
        ticks(size * (np.arange(count) + 0.5) - 0.5, range(count))
    axis.tick_params(length=0)
    axis.set_xlabel("cardiac phase (image.phase), from the heartbeat on")
    axis.set_ylabel(
        f"respiratory state (image.set)\n{STATES // 2} to {STATES - 1}: falling      0 to {STATES // 2 - 1}: rising"
    )
    return figure


def choices_picture(titles: Sequence[str], bins: Sequence[np.ndarray]) -> Figure:
    """A contracted and a relaxed heart of bins [respiratory * cardiac, row, column]."""
    blood = bins[0][:, ROWS, COLUMNS].sum(axis=(1, 2))
    figure, axes = _figure(2, len(bins), (1, 1), titles)
    for column, images in zip(axes.T, bins, strict=True):
        for axis, place in zip(column, (blood.argmin(), blood.argmax()), strict=True):
            _show(axis, images[place, ROWS, COLUMNS])
    return figure
