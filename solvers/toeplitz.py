"""The normal operator of non-Cartesian imaging without its samples: four Fourier transforms per coil and direction.

E^H W E, to the samples of a frame and back, takes an image to its convolution with the frame's point spread function

    h(d) = sum over samples of weight * exp(-2 pi i k.d / N),    d = r - r' in pixels, -N < d < N along each axis,

between two multiplications by coil maps. As d reaches over twice the image, one circular convolution would need twice
as many pixels along each axis, three quarters of them zeros. A Toeplitz matrix of N x N is, however, half the sum of a
circulant one and of a skew-circulant one, which is a circulant one between multiplications by exp(i pi r / N) and its
conjugate: the even and the odd frequencies of the long transform. In two dimensions

    E^H W E x = sum over coils c and four phases p of  conj(m_c p) F^-1 Q_p F (m_c p x),

with transforms F of the image's own size, which fit into a cache, and without padding. The Q_p, the
Fourier transform of h divided among the four phases, are real numbers, as the weights are.

With field terms (`recon.fieldterms`) E is a sum of B_l F C_l, and there is a point spread function for each pair of
them, with weight * conj(b_l) b_m in place of the weight:

    E^H W E x = sum over coils, phases, l and m of  conj(c_l m_c p) F^-1 Q_p,l,m F (c_m m_c p x).

The b_l of a sample differ by real factors, so that these weights are real, and so are the Q, which are symmetric in l
and m: pairs with l <= m tell all. That takes L times the Fourier transforms, and L^2 multiplications at each frequency.

References: Wajer, Pruessmann, Proc. ISMRM 2001, 767, and Fessler et al., IEEE Trans Signal Process 2005;53:3393, doi
10.1109/TSP.2005.853152 (the normal operator as a convolution). T. Chan, SIAM J Sci Stat Comput 1988;9:766, doi
10.1137/0909051 (the best circulant, here as the diagonal in k-space).
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon import nufft
from recon.arrays import array_module
from solvers.team import Team
from solvers.transforms import fourier_module, open_transform

PHASES = 4


def transform_size(pixels: int) -> int:
    """Length of the transforms for so many pixels: the same, or a little more where that is faster."""
    from scipy.fft import next_fast_len

    return next_fast_len(pixels)


def kernel(spread: Any) -> Any:
    """Return the factors of the frequencies of one frame.

    Parameters
    ----------
    spread
        The point spread function h [2 rows, 2 columns], h(0) in the middle, both lengths twice a `transform_size`.

    Returns
    -------
    float32 [phase, row frequency, column frequency], with all factors that the transforms leave open.
    """
    xp = array_module(spread)
    rows, columns = (n // 2 for n in spread.shape)
    # h(-d) is the conjugate of h(d), so that the transform is real; the imaginary part comes from d = -N, of no use.
    frequencies = fourier_module(xp).fft2(xp.fft.ifftshift(spread)).real.astype(xp.float32)
    dealt = frequencies.reshape(rows, 2, columns, 2).transpose(1, 3, 0, 2).reshape(PHASES, rows, columns)
    return dealt / xp.float32(PHASES * rows * columns)


def pairs(terms: int) -> list[tuple[int, int]]:
    """Pairs (l, m) of terms, l <= m, in the order in which kernels have them."""
    return [(one, other) for one in range(terms) for other in range(one, terms)]


def k_space_diagonal(kernel: Any, maps: Any, spatial: Any = None) -> Any:
    """Diagonal of the normal operator in k-space: how densely each of the image's frequencies is sampled.

    Its inverse, between Fourier transforms, is the best that a multiplication in k-space can do in place of the normal
    operator's inverse (T. Chan's circulant, here with coil maps).

    Parameters
    ----------
    kernel
        Of a frame, or the mean of several [phase, row frequency, column frequency]; with field terms [phase, pair,
        row frequency, column frequency].
    maps
        [coil, row, column].
    spatial
        Field terms [term, row, column]; None: there are none.

    Returns
    -------
    float32 [row frequency, column frequency] of the image's own size, in the order of the Fourier transform.
    """
    xp, (_, ny, nx) = array_module(maps), maps.shape
    fft, (rows, columns) = fourier_module(xp), kernel.shape[-2:]
    size = (2 * rows, 2 * columns)
    spatial = xp.ones((1, ny, nx), np.complex64) if spatial is None else spatial
    spectra = [fft.fft2(maps * shape, s=size) for shape in spatial]
    diagonal = xp.zeros((ny, nx), np.float32)
    of_pairs = xp.moveaxis(kernel.reshape(PHASES, -1, rows, columns), 1, 0)
    for (one, other), each in zip(pairs(len(spatial)), of_pairs, strict=True):
        frequencies = each.reshape(2, 2, rows, columns).transpose(2, 0, 3, 1).reshape(size)
        spread = fft.ifft2(frequencies) * (PHASES * rows * columns)
        # Of the maps with themselves, and of those of the other term.
        overlap = fft.ifft2((spectra[one] * spectra[other].conj()).sum(axis=0))
        circulant = _wrapped(_wrapped(spread * overlap.conj(), ny).T, nx).T
        # A pair stands for its conjugate, too.
        diagonal += (1 if one == other else 2) * fft.fft2(circulant).real.astype(np.float32) / (ny * nx)
    return diagonal


def _wrapped(spread: Any, pixels: int) -> Any:
    """Add what belongs to distances d and d - pixels up, along the first axis."""
    sums = spread[:pixels].copy()
    sums[1:] += spread[len(spread) - pixels + 1 :]
    return sums


class ToeplitzNormal:
    """x -> E^H W E x for frames x [frame, row, column], each with a kernel of its own.

    Parameters
    ----------
    kernels
        float32 [frame, phase, row frequency, column frequency], see `kernel`; with field terms [frame, phase, pair,
        row frequency, column frequency], see `pairs`.
    maps
        complex64 [coil, row, column], a NumPy or a CuPy array as the kernels.
    team
        Threads that work on the frames.
    batch
        Frames that are transformed at once: one for the CPU, whose caches are small, many for a GPU.
    spatial
        Field terms, complex64 [term, row, column]; None: there are none.
    """

    def __init__(self, kernels: Any, maps: Any, team: Team, batch: int = 1, spatial: Any = None) -> None:
        xp = array_module(kernels)
        self.kernels, self.maps, self.team, self.batch = kernels, maps, team, min(batch, len(kernels))
        self.spatial = spatial
        self._conjugate_maps = maps.conj()
        self._phases = xp.asarray(phases(kernels.shape[-2:], maps.shape[1:]))
        together = (len(maps),) if spatial is None else (len(spatial),)  # all coils, or all terms of a coil
        self._scratch: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        for _ in range(min(team.size, len(kernels))):
            transform = open_transform((self.batch, *together, *kernels.shape[-2:]), xp)
            self._scratch.put((transform, xp.empty((self.batch, *together, *maps.shape[1:]), xp.complex64)))

    def __call__(self, images: Any, out: Any, first: int = 0) -> None:
        """Write the result for images [frame, row, column] to out, of the same shape; both complex64.

        The first of them has the kernel number `first`.
        """
        apply = self._apply if self.spatial is None else self._apply_terms

        def work(n: int) -> None:
            frames = slice(n * self.batch, (n + 1) * self.batch)
            scratch = self._scratch.get()
            apply(images[frames], self.kernels[first:][frames], out[frames], *scratch)
            self._scratch.put(scratch)

        self.team.each(work, -(-len(images) // self.batch))

    def _apply(self, images: Any, kernels: Any, out: Any, transform: Any, product: Any) -> None:
        xp, (ny, nx), count = array_module(images), images.shape[1:], len(images)
        whole, product = transform.buffer[:count], product[:count]
        inside = whole[..., :ny, :nx]
        out[...] = 0
        for p in range(PHASES):
            whole[..., ny:, :], whole[..., :ny, nx:] = 0, 0  # nothing, where the transforms have the image's size
            xp.multiply(self.maps, (images * self._phases[p])[:, np.newaxis], out=inside)
            transform.forward()
            xp.multiply(whole, kernels[:, p, np.newaxis].astype(xp.complex64), out=whole)  # faster than mixed types
            transform.inverse()
            xp.multiply(inside, self._conjugate_maps, out=product)
            out += product.sum(axis=1) * self._phases[p].conj()

    def _apply_terms(self, images: Any, kernels: Any, out: Any, transform: Any, product: Any) -> None:
        """Coil by coil: all terms of one fit into a cache."""
        xp, (ny, nx), count = array_module(images), images.shape[1:], len(images)
        whole, product = transform.buffer[:count], product[:count]
        inside = whole[..., :ny, :nx]
        conjugate = self.spatial.conj()
        out[...] = 0
        for p in range(PHASES):
            turned = images * self._phases[p]
            total = xp.zeros_like(out)
            for coil, conjugate_coil in zip(self.maps, self._conjugate_maps, strict=True):
                whole[..., ny:, :], whole[..., :ny, nx:] = 0, 0
                xp.multiply(self.spatial, (turned * coil)[:, np.newaxis], out=inside)
                transform.forward()
                _mix(whole, kernels[:, p])
                transform.inverse()
                xp.multiply(inside, conjugate, out=product)
                total += product.sum(axis=1) * conjugate_coil
            out += total * self._phases[p].conj()


def _mix(spectra: Any, kernels: Any) -> None:
    """Multiply spectra [frame, term, ...] by the symmetric matrices of kernels [frame, pair, ...], in place."""
    if array_module(spectra) is np:
        for frame, kernel in zip(spectra, kernels, strict=True):
            _compiled_mix()(frame, kernel)
        return
    before = spectra.copy()
    spectra[...] = 0
    for n, (one, other) in enumerate(pairs(spectra.shape[1])):
        spectra[:, one] += kernels[:, n] * before[:, other]
        if one != other:
            spectra[:, other] += kernels[:, n] * before[:, one]


@functools.lru_cache(maxsize=1)
def _compiled_mix() -> Callable:
    """`_mix` of one frame as a compiled loop, row by row so that both sides of it stay in a cache."""

    def mix(spectra: NDArray[np.complex64], kernels: NDArray[np.float32]) -> None:
        terms, rows, columns = spectra.shape
        before = np.empty((terms, columns), spectra.dtype)
        for y in range(rows):
            for one in range(terms):
                for x in range(columns):
                    before[one, x] = spectra[one, y, x]
                    spectra[one, y, x] = 0
            n = 0
            for one in range(terms):
                for x in range(columns):
                    spectra[one, y, x] += kernels[n, y, x] * before[one, x]
                n += 1
                for other in range(one + 1, terms):
                    for x in range(columns):
                        spectra[one, y, x] += kernels[n, y, x] * before[other, x]
                        spectra[other, y, x] += kernels[n, y, x] * before[one, x]
                    n += 1

    return nufft.compiled(mix)


def phases(size: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Factors from odd to even frequencies, [phase, row, column]: exp(-i pi r / N) along none, one or both axes."""
    down, across = (
        np.exp(-1j * np.pi * np.outer([0, 1], np.arange(n) / length)) for n, length in zip(shape, size, strict=True)
    )
    return (down[:, np.newaxis, :, np.newaxis] * across[:, np.newaxis, :]).reshape(PHASES, *shape).astype(np.complex64)
