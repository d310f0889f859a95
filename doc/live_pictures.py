"""Make the picture of ``doc/live.md``: ``python doc/live_pictures.py``."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from drawing import save, show, show_line, white_of  # noqa: E402
from live import ARMS, CASES, frames_of, run, simulated, write_scan  # noqa: E402
from streaming import running_server  # noqa: E402

import coils  # noqa: E402

FRAMES, FIRST = 140, 70  # of the scan, and the first one that is shown


def main() -> None:
    """Make the picture."""
    simulation = simulated(FRAMES, 128, 8)
    tr = 1e-3 * simulation.header.sequenceParameters.TR[0]
    shown = range(FIRST, FRAMES - 8)
    groups = [range(ARMS * n, ARMS * (n + 1)) for n in shown]
    movies = {"truth": simulation.truth.frames(groups) * coils.rssq(simulation.truth.maps())}
    with tempfile.TemporaryDirectory() as name:
        raw = write_scan(simulation, Path(name))
        with running_server(folder=Path(name)) as (port, _):
            for case in CASES:
                images, _ = run(case, Path(name), raw, port)
                frames = frames_of(case, images, tr)
                movies[case.name] = np.array([frames[n].data[0, 0] for n in shown], float)

    truth = movies["truth"]
    moving = truth.var(axis=0)
    column = int(moving.sum(axis=0).argmax())  # a line through the heart
    quickest = int(np.abs(np.diff(truth, axis=0)).sum(axis=(1, 2)).argmax())
    white, seconds, extent = white_of(list(truth)), len(shown) * ARMS * tr, 100 * simulation.trajectory.fov
    figure = Figure(figsize=(2 * len(movies), 4.2), layout="constrained")
    places = figure.subplots(2, len(movies), sharey="row")
    for (upper, lower), (name, movie) in zip(places.T, movies.items(), strict=True):
        pixels = movie * (movie * truth).sum() / (movie * movie).sum()
        show(upper, pixels[quickest], name, white)
        show_line(lower, pixels[:, :, column].T, seconds, extent, white)
    places[1, 0].set_ylabel("column through\nthe heart [cm]", fontsize=9)
    save(figure, "live")


if __name__ == "__main__":
    main()
