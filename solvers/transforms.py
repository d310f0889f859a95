"""Fourier transforms of one buffer, in place, again and again: most of the time of an iteration.

On the CPU by FFTW where `pyfftw <https://github.com/pyFFTW/pyFFTW>`_ is installed, which is optional for its licence
(``requirements-fftw.txt``), else by SciPy; on a GPU by CuPy.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

ROW_PADDING = 8  # pixels; rows that lie a power of two apart share cache lines, and columns are transformed more slowly
PLANNING_TIME = 0.3  # [s] that FFTW may try algorithms for, once per size and process


class Transform:
    """A buffer and its two-dimensional Fourier transforms, along the last two axes and in place.

    Parameters
    ----------
    shape
        Of the buffer, (..., rows, columns).
    fft
        `scipy.fft`, `cupyx.scipy.fft` or another module with `fft2` and `ifft2`.
    xp
        NumPy or CuPy.

    Attributes
    ----------
    buffer
        complex64; its rows may lie further apart than they are long.
    """

    def __init__(self, shape: tuple[int, ...], fft: Any, xp: Any = np) -> None:
        self.buffer = xp.zeros(shape, xp.complex64)
        self._fft = fft

    def forward(self) -> None:
        """Transform with exp(-2 pi i ...)."""
        self.buffer[...] = self._fft.fft2(self.buffer)

    def inverse(self) -> None:
        """Transform with exp(+2 pi i ...), not divided by the number of pixels."""
        self.buffer[...] = self._fft.ifft2(self.buffer, norm="forward")


class FftwTransform(Transform):
    """The same by FFTW, one thread."""

    def __init__(self, shape: tuple[int, ...], pyfftw: Any) -> None:
        rows = pyfftw.zeros_aligned((*shape[:-1], shape[-1] + ROW_PADDING), np.complex64)
        self.buffer = rows[..., : shape[-1]]
        axes = (len(shape) - 2, len(shape) - 1)
        self._forward, self._inverse = (
            pyfftw.FFTW(
                self.buffer, self.buffer, axes, direction, flags=("FFTW_MEASURE",), planning_timelimit=PLANNING_TIME
            ).execute
            for direction in ("FFTW_FORWARD", "FFTW_BACKWARD")
        )
        self.buffer[...] = 0  # planning has written into it

    def forward(self) -> None:
        """Transform with exp(-2 pi i ...)."""
        self._forward()

    def inverse(self) -> None:
        """Transform with exp(+2 pi i ...), not divided by the number of pixels."""
        self._inverse()


def fourier_module(xp: Any) -> Any:
    """Return `scipy.fft`, or its counterpart for CuPy arrays."""
    if xp is np:
        import scipy.fft

        return scipy.fft
    import cupyx.scipy.fft

    return cupyx.scipy.fft


@functools.cache
def _pyfftw() -> Any:
    """Return pyfftw if it is installed."""
    try:
        import pyfftw
    except ImportError:
        logger.info("pyfftw is not installed: iterative reconstructions are faster with it")
        return None
    return pyfftw


def open_transform(shape: tuple[int, ...], xp: Any = np) -> Transform:
    """Return a buffer of this shape with the fastest transforms that there are for it."""
    pyfftw = _pyfftw() if xp is np else None
    return Transform(shape, fourier_module(xp), xp) if pyfftw is None else FftwTransform(shape, pyfftw)
