"""Images from undersampled Cartesian k-space and coil maps: SENSE by conjugate gradients, and l1-wavelet.

The readout is sampled without gaps: it is transformed first, and the iterations transform the phase encodings only.

How it compares: ``python benchmarks/cartesian.py``.

References
----------
Pruessmann et al., Magn Reson Med 2001;46:638, doi 10.1002/mrm.1241 (SENSE by conjugate gradients). Lustig et al., Magn
Reson Med 2007;58:1182, doi 10.1002/mrm.21391 (l1-wavelet). Beck, Teboulle, SIAM J Imaging Sci 2009;2:183 (FISTA).
Robson et al., Magn Reson Med 2008;60:895, doi 10.1002/mrm.21728 (g-factor).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.conditioning import robust_scale
from recon.sampling import acquired_region
from recon.spectrum import estimate_noise, local_energy

CHUNK = 2**19  # complex numbers worked on at once: small enough for the processor's cache
WAVELET, LEVELS = "db4", 4
LEAST_SIGNAL = 0.1  # of the noise
LEAST_THRESHOLD = 0.003  # of l1_wavelet, where there is little noise: less removes aliasing too slowly


class Encoding:
    """E = sampling . Fourier transform of the phase encodings . coil maps, with norm 1 at most.

    Parameters
    ----------
    maps
        [set, coil, partition, row, column], the sum of |map|^2 over coils is 1 or 0, x = 0 at index N // 2.
    sampled
        [partition, row], k = 0 at index N // 2.

    Raises
    ------
    ValueError
        Maps and lines are of different sizes.
    """

    def __init__(self, maps: NDArray[np.complexfloating], sampled: NDArray[np.bool_]) -> None:
        import scipy.fft

        if maps.ndim != 5 or maps.shape[2:4] != sampled.shape:
            raise ValueError(
                f"maps are {maps.shape}, lines {sampled.shape}: expected [set, coil, partition, row, column] and "
                "[partition, row] of one size"
            )
        self._fft = scipy.fft
        # Index 0 at the origin, so that no transform needs a shift; the column first: columns do not mix.
        self._shift = [n // 2 for n in sampled.shape]
        rolled = np.roll(maps, [-n for n in self._shift], axis=(2, 3)).astype(np.complex64)
        self._maps = np.ascontiguousarray(rolled.transpose(4, 0, 1, 2, 3))
        self._sampled = np.fft.ifftshift(sampled)
        self.shape = (maps.shape[0], *maps.shape[2:])

    def _parts(self) -> Any:
        """Groups of columns that are worked on at once."""
        step = max(CHUNK // self._maps[0, 0].size, 1)
        return (slice(begin, begin + step) for begin in range(0, len(self._maps), step))

    def adjoint(self, kspace: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        """E^H of k-space [coil, partition, row, sample]: image [column, set, partition, row] with the origin first."""
        if kspace.shape != self._maps.shape[2:] + self._maps.shape[:1]:
            raise ValueError(f"k-space is {kspace.shape}, maps are for {self._maps.shape[2:] + self._maps.shape[:1]}")
        sampled = np.where(self._sampled[..., np.newaxis], np.fft.ifftshift(kspace, axes=(1, 2, 3)), 0)
        hybrid = self._fft.fftshift(self._fft.ifft(sampled.astype(np.complex64), axis=3, norm="ortho"), axes=3)
        hybrid = hybrid.transpose(3, 0, 1, 2)
        image = np.empty((len(self._maps), *self.shape[:3]), np.complex64)
        for part in self._parts():
            coil_images = self._fft.ifft2(hybrid[part], norm="ortho")
            image[part] = (self._maps[part].conj() * coil_images[:, np.newaxis]).sum(axis=2)
        return image

    def normal(self, image: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """E^H E of an image [column, set, partition, row]."""
        result = np.empty_like(image)
        axes = (2, 3) if image.shape[2] > 1 else (3,)
        for part in self._parts():
            maps = self._maps[part]
            coil_images = (maps * image[part, :, np.newaxis]).sum(axis=1)
            kspace = self._fft.fftn(coil_images, axes=axes, overwrite_x=True)
            kspace *= self._sampled
            coil_images = self._fft.ifftn(kspace, axes=axes, overwrite_x=True)
            result[part] = (maps.conj() * coil_images[:, np.newaxis]).sum(axis=2)
        return result

    def to_image(self, image: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Image [set, partition, row, column], x = 0 at index N // 2, scaled as the inverse transform of k-space is."""
        image = np.roll(image.transpose(1, 2, 3, 0), self._shift, axis=(1, 2))
        return image / np.float32(np.sqrt(np.prod(self.shape[1:])))


def automatic_weight(
    kspace: NDArray[np.complexfloating],
    sampled: NDArray[np.bool_],
    maps: NDArray[np.complexfloating],
    noise_variance: float | None = None,
) -> float:
    """Weight for `sense`: variance of the noise over the energy in a pixel of the signal that was not sampled.

    That is the weight of least mean squared error for an image of white signal within the maps. The signal is taken as
    strong as that of the acquired samples around the missing lines; the whole image has a larger mean energy, of which
    most is in the calibration lines.

    Parameters
    ----------
    kspace, sampled, maps
        As for `sense`.
    noise_variance
        Mean |noise|^2 of a sample, 1 for whitened data; None: `spectrum.estimate_noise`.
    """
    noise, signal = _noise_and_signal(kspace, sampled, maps, noise_variance)
    return noise / signal if signal > 0 else 0.0


def _noise_and_signal(
    kspace: NDArray[Any], sampled: NDArray[np.bool_], maps: NDArray[Any], noise_variance: float | None
) -> tuple[float, float]:
    """Mean |noise|^2, and mean |signal|^2 of a pixel within the maps, by the missing lines' share of k-space."""
    energy = local_energy(kspace, sampled)
    noise = estimate_noise(kspace, sampled) if noise_variance is None else noise_variance
    missing = energy[acquired_region(sampled) & ~sampled]
    present = missing[missing > 0] if (missing > 0).any() else energy[energy > 0]
    if not present.size:
        return noise, 0.0
    inside = (np.abs(maps).max(axis=1) > 0).any(axis=0).mean()
    return noise, maps.shape[1] * max(present.mean() - noise, LEAST_SIGNAL * noise) / max(inside, 1 / maps[0, 0].size)


def sense(
    kspace: NDArray[np.complexfloating],
    sampled: NDArray[np.bool_],
    maps: NDArray[np.complexfloating],
    num_iter: int = 20,
    reg_lambda: float | None = None,
    noise_variance: float | None = None,
) -> NDArray[np.complex64]:
    """Minimise 1/2 ||E m - y||^2 + reg_lambda / 2 ||m||^2 by conjugate gradients; any sampling pattern.

    Parameters
    ----------
    kspace
        [coil, partition, row, sample], white noise.
    sampled
        [partition, row], where there is a line.
    maps
        [set, coil, partition, row, column], from `espirit.coil_maps`.
    num_iter
        Iterations, at most; they end when the residual has fallen to 1e-4 of the data.
    reg_lambda
        Weight against noise amplification. E^H E of fully sampled k-space is 1, so that it does not depend on the scale
        of the data: 0.01 damps what the coils encode with less than a hundredth of the energy. None: that of
        `automatic_weight`.
    noise_variance
        For `automatic_weight`.

    Returns
    -------
    Images [set, partition, row, column], divided by the number of k-space points as `cartesian.to_image` does.
    `coils.rssq` over the sets is the magnitude.

    Raises
    ------
    ValueError
        The sizes do not fit each other.
    """
    encoding = Encoding(maps, sampled)
    residual = encoding.adjoint(kspace)
    if reg_lambda is None:
        reg_lambda = automatic_weight(kspace, sampled, maps, noise_variance)
    image, direction = np.zeros_like(residual), residual
    power = start = np.vdot(residual, residual).real
    for _ in range(num_iter):
        if not power > 1e-8 * start:
            break
        result = encoding.normal(direction) + np.float32(reg_lambda) * direction
        step = power / np.vdot(direction, result).real
        image, residual = image + step * direction, residual - step * result
        power, before = np.vdot(residual, residual).real, power
        direction = residual + power / before * direction
    return encoding.to_image(image)


def l1_wavelet(
    kspace: NDArray[np.complexfloating],
    sampled: NDArray[np.bool_],
    maps: NDArray[np.complexfloating],
    num_iter: int = 30,
    reg_lambda: float | None = None,
    noise_variance: float | None = None,
) -> NDArray[np.complex64]:
    """Lower 1/2 ||E m - y||^2 + reg_lambda ||W m||_1 by FISTA, W a Daubechies wavelet transform.

    For random and regular sampling. W is moved by a random shift, the same in every run, from one iteration to the
    next (Figueiredo, Nowak, IEEE Trans Image Process 2003;12:906). That removes noise far better than a fixed W, but
    there is no fixed objective that the iterations end at: the number of iterations is a setting as the weight is, and
    more of them are not always better.

    Parameters
    ----------
    kspace, sampled, maps
        As for `sense`.
    num_iter
        Iterations of one E^H E and one wavelet transform.
    reg_lambda
        Threshold for wavelet coefficients of data that are scaled by `conditioning.robust_scale` of E^H y: larger
        values leave less noise and less detail. None: chosen by the noise and the signal of the lines that are missing,
        as the maximum a posteriori for white noise and coefficients with a Laplace distribution asks for: variance of
        the noise over half the mean coefficient, and `LEAST_THRESHOLD` at least.
    noise_variance
        For that choice; as for `automatic_weight`.

    Returns
    -------
    Images as of `sense`.

    Raises
    ------
    ValueError
        The sizes do not fit each other, or the samples are zero or not finite (`conditioning.SampleError`).
    """
    encoding = Encoding(maps, sampled)
    data = encoding.adjoint(kspace)
    scale = robust_scale(data)
    if reg_lambda is None:
        noise, signal = _noise_and_signal(kspace, sampled, maps, noise_variance)
        reg_lambda = max(2 * noise / np.sqrt(signal) / scale, LEAST_THRESHOLD)
    threshold = reg_lambda * scale
    shifts = np.random.default_rng(0)
    image = ahead = np.zeros_like(data)
    momentum = 1.0
    for _ in range(num_iter):
        update = _shrink(ahead + data - encoding.normal(ahead), threshold, shifts)
        momentum, before = (1 + np.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead = update + np.float32((before - 1) / momentum) * (update - image)
        image = update
    return encoding.to_image(image)


def _shrink(image: NDArray[np.complex64], threshold: float, shifts: np.random.Generator) -> NDArray[np.complex64]:
    """Soft threshold of the wavelet coefficients of images [column, set, partition, row]."""
    import pywt

    block = 2**LEVELS
    axes = [axis for axis in (0, 2, 3) if image.shape[axis] >= block]
    shift = [int(shifts.integers(block)) for _ in axes]
    # The periodic transform is orthonormal for multiples of the block.
    widths = [(0, -n % block if axis in axes else 0) for axis, n in enumerate(image.shape)]
    approximation = np.roll(np.pad(image, widths), shift, axes)
    levels = []
    for _ in range(LEVELS if axes else 0):
        details = pywt.dwtn(approximation, WAVELET, "periodization", axes)
        approximation = details.pop("a" * len(axes))
        for name, values in details.items():
            size = np.abs(values)
            details[name] = values * (np.maximum(size - threshold, 0) / np.maximum(size, np.finfo(np.float32).tiny))
        levels.append(details)
    for details in reversed(levels):
        approximation = pywt.idwtn(details | {"a" * len(axes): approximation}, WAVELET, "periodization", axes)
    moved_back = np.roll(approximation, [-step for step in shift], axes)
    return moved_back[tuple(slice(n) for n in image.shape)]


def g_factor(
    maps: NDArray[np.complexfloating], sampled: NDArray[np.bool_], reg_lambda: float = 0.002
) -> NDArray[np.float32]:
    """Noise of `sense`, converged, over that of full sampling, divided by the root of the acceleration.

    Exact, for any pattern, by inverting E^H E + reg_lambda of each column. For white noise. The acceleration is the
    number of sites of the acquired region over that of the lines.

    Parameters
    ----------
    maps, sampled
        As for `sense`, one partition.
    reg_lambda
        As for `sense`; for its default that of `automatic_weight`.

    Returns
    -------
    g [set, partition, row, column]; where the maps are 0 it is 0.

    Raises
    ------
    ValueError
        There is more than one partition, or the sizes do not fit each other.
    """
    if maps.ndim != 5 or maps.shape[2:4] != sampled.shape or len(sampled) != 1:
        raise ValueError(f"maps are {maps.shape}, lines {sampled.shape}: expected one partition of one size")
    from scipy.linalg.lapack import cpotrf, cpotri

    sets, _, _, rows, columns = maps.shape
    places = np.arange(rows) - rows // 2
    fourier = np.exp(-2j * np.pi / rows * np.outer(places[sampled[0]], places)) / np.sqrt(rows)
    spread = np.tile(fourier.conj().T @ fourier, (sets, sets)).astype(np.complex64)
    weight = max(reg_lambda, 1e-6)
    diagonal = np.eye(sets * rows, dtype=np.complex64) * np.float32(weight)
    variance = np.empty((columns, sets * rows))
    for column in range(columns):
        sensitivities = maps[:, :, 0, :, column].transpose(1, 0, 2).reshape(maps.shape[1], -1).astype(np.complex64)
        normal = (sensitivities.conj().T @ sensitivities) * spread
        inverse = np.tril(cpotri(cpotrf(normal + diagonal, lower=True)[0], lower=True)[0])
        squares = np.abs(inverse) ** 2
        own = np.diagonal(inverse).real
        # diag(B A B) = diag(B) - lambda diag(B B) for B = 1 / (A + lambda), of which the lower triangle is there
        variance[column] = own - weight * (squares.sum(axis=0) + squares.sum(axis=1) - own**2)
    sites = acquired_region(sampled).sum()
    g = np.sqrt(variance.clip(0) * rows * np.count_nonzero(sampled)) / sites
    return g.T.reshape(sets, 1, rows, columns).astype(np.float32)
