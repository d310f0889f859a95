"""Drawing for the pictures of the guides: one window for what is compared, few and readable ticks, small files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mrdio.pictures import window_from_values

PICTURES = Path(__file__).resolve().parent / "pictures"


def show(axes: Axes, image: NDArray, title: str = "", white: float | None = None) -> None:
    """Draw an image [row, column] in gray from 0 to `white`, without axes; by default white is taken from the image."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=white or white_of([image]), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def white_of(images: Sequence[NDArray]) -> float:
    """Value of the images [row, column] that is shown white, as in the previews of `mrd2gif`."""
    return window_from_values([np.ravel(image) for image in images])[1]


def show_line(axes: Axes, line: NDArray, seconds: float, extent: float, white: float) -> None:
    """Draw a line of an image over time [position, frame]; time is from 0 to `seconds` [s], position in [cm]."""
    axes.imshow(
        line, cmap="gray", vmin=0, vmax=white, aspect="auto", interpolation="nearest", extent=(0, seconds, extent, 0)
    )
    axes.set_xlabel("time [s]", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=5)


def save(figure: Figure, name: str, dpi: int = 90, folder: Path = PICTURES) -> None:
    """Write a picture of the guides as PNG with a palette of 256 colours, a third of the size of all colours."""
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    path = folder / f"{name}.png"
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
