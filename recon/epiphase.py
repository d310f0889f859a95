"""Phase between the lines of an echo planar readout that were read forwards and backwards.

Delays of the gradients and eddy currents shift the samples of one direction against those of the other: a phase that is
linear along x, and a constant. Uncorrected, a copy of the object appears half a field of view away.

References
----------
Bruder et al.: Image reconstruction for echo planar imaging with nonequidistant k-space sampling. MRM 1992;23:311
(navigators without phase encoding). Clare: Iterative Nyquist ghost correction for single and multi-shot EPI using an
entropy measure. Proc. ISMRM 2008, 1041 (without navigators).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

CLEAR = 0.8  # coherence from which a coil's own fit is taken
USABLE = 0.65  # coherence below which a fit means nothing: that of noise reaches 0.6 for 32 pixels, 0.35 for 160
FEWEST_LINES = 8  # of each direction, from which entropy tells the ghost from the object
LARGEST_SHIFT = 4.0  # of the lines of one direction against the other that entropy looks for [k-space samples]


class EchoLine(NamedTuple):
    """One line of an echo train: its direction, its row, and its data [coil, pixel] in image space along x."""

    reverse: bool
    row: int
    data: NDArray[Any]


def navigator_phase(navigators: Sequence[EchoLine], mode: str, pixels: int) -> NDArray[np.float64] | None:
    """Phase of the reversed lines over the forward ones, from navigators.

    Each navigator between two of the other direction is compared with the sum of these two, in which the phase that
    off-resonance adds from echo to echo cancels. Where there is none such, neighbours are compared. The phase is that
    of the straight line which maximises the sum of the products of both, so that pixels count by their magnitude.

    Parameters
    ----------
    navigators
        In the order of acquisition.
    mode
        "joint": one line for all coils, from those whose navigators are clear, if any; "coil": one for each; "auto":
        one for each coil whose navigators are clear, the joint one for the others, in which noise would decide.
    pixels
        Middle pixels of the lines to look at, those of the final image: beyond them regridding amplifies noise.

    Returns
    -------
    Phase [coil, pixel] [rad] of all pixels of the lines; None when there are no navigators of both directions, or no
    signal in them.
    """
    triples = [
        _product(middle, before.data + after.data)
        for before, middle, after in zip(navigators, navigators[1:], navigators[2:], strict=False)
        if before.reverse == after.reverse != middle.reverse
    ]
    pairs = [
        _product(first, second.data)
        for first, second in itertools.pairwise(navigators)
        if first.reverse != second.reverse
    ]
    if not pairs:
        return None
    products = np.sum(triples or pairs, axis=0)
    size = products.shape[1]
    products = products[:, _middle(size, pixels)]
    x = np.arange(size) - size // 2
    own = [fit_line(product) for product in products]
    clear = np.array([coherence >= CLEAR for _, _, coherence in own])
    joint = fit_line(products[clear if clear.any() else slice(None)].sum(axis=0))
    if joint[2] < USABLE:
        return None
    lines = [
        line if mode == "coil" or (mode == "auto" and distinct) else joint
        for line, distinct in zip(own, clear, strict=True)
    ]
    return np.stack([constant + slope * x for constant, slope, _ in lines])


def _middle(size: int, pixels: int) -> slice:
    """The middle `pixels` of an axis, x = 0 at index N // 2 of either."""
    kept = min(pixels, size)
    return slice(size // 2 - kept // 2, size // 2 - kept // 2 + kept)


def _product(line: EchoLine, others: NDArray[Any]) -> NDArray[np.complex128]:
    """Product of a reversed line and a conjugate forward one, whichever of both `line` is."""
    product = others.astype(np.complex128) * line.data.conj()
    return product.conj() if line.reverse else product


def fit_line(product: NDArray[Any]) -> tuple[float, float, float]:
    """Fit constant + slope * x to the phase of complex numbers, weighted by their magnitude; wraps do no harm.

    Parameters
    ----------
    product
        Complex [pixel], x = 0 at index N // 2.

    Returns
    -------
    constant, slope : float
        The line [rad], [rad / pixel].
    coherence : float
        Magnitude of the sum without this phase, over the sum of magnitudes: 1 for a perfect fit, 0 without signal.
    """
    size = len(product)
    x = np.arange(size) - size // 2

    def missed(slope: float) -> float:
        return -abs(np.sum(product * np.exp(-1j * slope * x)))

    total = np.abs(product).sum()
    if not total > 0:
        return 0.0, 0.0, 0.0
    spectrum = np.abs(np.fft.fft(product, 4 * size))
    best, step = 2 * np.pi * np.fft.fftfreq(4 * size)[spectrum.argmax()], 2 * np.pi / (4 * size)
    slope = optimize.minimize_scalar(missed, bounds=(best - step, best + step), method="bounded").x
    constant = np.angle(np.sum(product * np.exp(-1j * slope * x)))
    return float(constant), float(slope), -missed(slope) / total


def entropy_phase(lines: Sequence[EchoLine], pixels: int) -> NDArray[np.float64] | None:
    """Phase of the reversed lines over the forward ones, from the lines of an image: that of least entropy.

    One line for all coils. Its constant is taken to lie within 90 degrees: 180 degrees more would only move the image
    by half a field of view, which no image can tell.

    Parameters
    ----------
    lines
        Lines of one shot or image.
    pixels
        Middle pixels of the lines to look at, those of the final image.

    Returns
    -------
    Phase [pixel] [rad] of all pixels of the lines; None when there are too few lines.
    """
    lines = [line for line in lines if np.isfinite(line.data).all()]
    reversed_lines = sum(line.reverse for line in lines)
    if min(reversed_lines, len(lines) - reversed_lines) < FEWEST_LINES:
        return None
    first = min(line.row for line in lines)
    step = int(np.gcd.reduce([line.row - first for line in lines])) or 1
    size = lines[0].data.shape[1]
    kept = _middle(size, pixels)
    kspace = np.zeros(
        (2, (max(line.row for line in lines) - first) // step + 1, *lines[0].data[:, kept].shape), complex
    )
    for line in lines:
        kspace[int(line.reverse), (line.row - first) // step] = line.data[:, kept]
    forward, backward = np.fft.ifft(kspace, axis=1)  # [row, coil, pixel]
    energy = (np.abs(forward) ** 2 + np.abs(backward) ** 2).sum(axis=1)
    mixed = 2 * (forward * backward.conj()).sum(axis=1)
    x = np.arange(size) - size // 2

    def entropy(line: Sequence[float]) -> float:
        constant, slope = line
        power = np.maximum(energy + (mixed * np.exp(1j * (constant + slope * x[kept]))).real, 0)
        amplitude = np.sqrt(power / power.sum())
        return -float(np.sum(amplitude * np.log(amplitude + 1e-30)))

    if not energy.sum() > 0:
        return None
    unit = 2 * np.pi / size  # slope of a shift by one sample
    slopes = unit * np.arange(-LARGEST_SHIFT, LARGEST_SHIFT + 0.25, 0.25)
    constants = np.linspace(-np.pi / 2, np.pi / 2, 12, endpoint=False)
    best = min(((constant, slope) for constant in constants for slope in slopes), key=entropy)
    simplex = [best, (best[0] + 0.1, best[1]), (best[0], best[1] + 0.1 * unit)]
    found = optimize.minimize(
        entropy, best, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-7}
    ).x
    constant = (found[0] + np.pi / 2) % np.pi - np.pi / 2
    return constant + found[1] * x
