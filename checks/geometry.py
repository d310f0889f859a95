"""Geometry of an image: whether it shows the object where its header says that it lies, and what is wrong if not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.phantom import Phantom, Place

AGREEMENT = 0.85  # least correlation of an image with the object that is taken as one of it; good ones have 0.98
TOLERANCE = 0.2  # of a shift [pixel]: half a pixel is a common mistake
ANGLE = 1e-3  # by which directions may differ
DISTANCE = 0.05  # by which positions may differ [mm]

_TURNS = {  # of pixels [row, column]
    "mirrored along its rows (left and right)": lambda p: p[:, ::-1],
    "mirrored along its columns (up and down)": lambda p: p[::-1],
    "turned by 180 degrees": lambda p: p[::-1, ::-1],
    "transposed (rows and columns are exchanged)": lambda p: p.T,
    "turned by 90 degrees": lambda p: p.T[::-1],
    "turned by -90 degrees": lambda p: p.T[:, ::-1],
    "transposed and turned by 180 degrees": lambda p: p.T[::-1, ::-1],
}


@dataclass(frozen=True)
class Fit:
    """Agreement of an image with what it has to show.

    Attributes
    ----------
    agreement : float
        Correlation without its sign, as contrast may be inverted.
    shift : tuple of float
        Of the image against the header (columns, rows) [pixel].
    """

    agreement: float
    shift: tuple[float, float]


def fit(expected: NDArray[np.float64], pixels: NDArray[np.float64]) -> Fit:
    """Compare two pictures [row, column]; a shift of up to a pixel comes from the gradients, by least squares."""
    if np.ptp(expected) == 0 or np.ptp(pixels) == 0:
        return Fit(0.0, (0.0, 0.0))
    agreement = abs(float(np.corrcoef(expected.ravel(), pixels.ravel())[0, 1]))
    rows, columns = np.gradient(expected)
    terms = np.stack([np.ones(expected.size), expected.ravel(), columns.ravel(), rows.ravel()], axis=1)
    _, gain, along, across = np.linalg.lstsq(terms, pixels.ravel(), rcond=None)[0]
    return Fit(agreement, (float(-along / gain), float(-across / gain)) if gain else (0.0, 0.0))


def picture_of(image: Any) -> NDArray[np.float64]:
    """Magnitude [row, column] of an image of one partition; several channels as root of the sum of squares."""
    data = np.abs(image.data[:, 0].astype(complex if np.iscomplexobj(image.data) else float))
    return np.sqrt(np.sum(data**2, axis=0)) if len(data) > 1 else data[0]


def problem_of(image: Any, phantom: Phantom) -> str:
    """Describe what is wrong with the geometry of an image; empty when nothing is.

    Parameters
    ----------
    image
        Of one partition.
    phantom
        The object.
    """
    pixels = picture_of(image)
    here = fit(phantom.picture(image), pixels)
    if here.agreement >= AGREEMENT and max(map(abs, here.shift)) <= TOLERANCE:
        return ""
    if here.agreement >= AGREEMENT:
        return (
            f"the image is shifted by {here.shift[0]:.2f} pixels along its rows and {here.shift[1]:.2f} along its "
            "columns: pixel N // 2 of N is the one at the header's position"
        )
    return next(_explanations(image, phantom, pixels), "the image does not show the object that was scanned")


def _explanations(image: Any, phantom: Phantom, pixels: NDArray[np.float64]) -> Iterator[str]:
    """Yield what explains the image, the header's fields first."""
    place = _nearest(image, phantom.places)
    for name in ("read_dir", "phase_dir", "slice_dir"):
        theirs, right = getattr(image, name)[:], getattr(place, name)
        if not np.allclose(theirs, right, atol=ANGLE):
            yield f"{name} is {_vector(theirs)}, that of the data is {_vector(right)}, but the pixels are as there"
    for number, other in enumerate(phantom.places):
        head = image.getHead()
        head.position = other.position
        moved = fit(phantom.picture(head), pixels)
        if moved.agreement >= AGREEMENT and not np.allclose(image.position[:], other.position, atol=DISTANCE):
            yield (
                f"the image shows slice {number}, which lies at {_vector(other.position)} mm, but its position is "
                f"{_vector(image.position[:])} mm"
            )
    for what, turned in _TURNS.items():
        candidate = turned(pixels)
        expected = phantom.picture(image)
        if candidate.shape == expected.shape:
            agreement = fit(expected, candidate).agreement
        else:
            agreement = _resized_agreement(image, phantom, candidate)
        if agreement >= AGREEMENT:
            yield f"the image is {what} against read_dir and phase_dir of its header"
    shift, agreement = _best_shift(phantom.picture(image), pixels)
    if agreement >= AGREEMENT:
        yield f"the image is shifted by {shift[0]} pixels along its rows and {shift[1]} along its columns"


def _resized_agreement(image: Any, phantom: Phantom, candidate: NDArray[np.float64]) -> float:
    """Agreement of pixels whose rows and columns have been exchanged, with sizes that are exchanged, too."""
    head = image.getHead()
    columns, rows, partitions = head.matrix_size[:]
    x, y, z = head.field_of_view[:]
    head.matrix_size = (rows, columns, partitions)
    best = 0.0
    for view in ((x, y, z), (y, x, z)):
        head.field_of_view = view
        best = max(best, fit(phantom.picture(head), candidate).agreement)
    return best


def _nearest(image: Any, places: tuple[Place, ...]) -> Place:
    return min(places, key=lambda place: float(np.linalg.norm(np.array(place.position) - image.position[:])))


def _best_shift(expected: NDArray[np.float64], pixels: NDArray[np.float64]) -> tuple[tuple[int, int], float]:
    """Shift (columns, rows) in whole pixels, with wrap-around, that explains most, and the agreement then."""
    spectrum = np.fft.fft2(pixels - pixels.mean()) * np.fft.fft2(expected - expected.mean()).conj()
    correlation = np.abs(np.fft.ifft2(spectrum).real)
    row, column = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    back = np.roll(pixels, (-row, -column), axis=(0, 1))
    rows, columns = pixels.shape
    shift = (int((column + columns // 2) % columns - columns // 2), int((row + rows // 2) % rows - rows // 2))
    return shift, fit(expected, back).agreement


def _vector(values: Any) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
