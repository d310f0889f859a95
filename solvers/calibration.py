"""Coil maps from the centre of k-space: image and maps estimated together (nlinv), without another program.

The samples y_j of coil j are taken for those of a product, image m times map c_j, both unknown. The maps are smooth:
they are the transforms of spectra s_j that are damped by (1 + 32 |k|^2)^8. Gauss-Newton steps, each solved by conjugate
gradients, minimise

    sum over j of ||F (m c_j) - y_j||^2  +  alpha (||m - 1||^2 + sum over j of ||s_j||^2),

and alpha is halved from step to step. So the image forms first, then finer and finer detail of the maps, and the number
of steps decides how much noise goes into them. F is the non-uniform Fourier transform; only F^H F is needed, a
convolution.

``python benchmarks/coil_maps.py`` (``doc/benchmarks.md``) compares it with maps from images of low resolution, ESPIRiT
of SigPy, and nlinv of BART. ESPIRiT is as good, but slower, and needs k-space that is fully sampled.

Reference: Uecker et al., Magn Reson Med 2008;60:674, doi 10.1002/mrm.21691.
"""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

import coils
from recon import nufft
from recon.fieldplan import combined
from recon.readouts import DataError, Readouts
from solvers.admm import ConjugateGradients, inner
from solvers.linops import ArmFields

logger = logging.getLogger(__name__)

ARMS = 144  # enough to fill k-space several times
MATRIX = 32  # pixels along each side of the image that comes with the maps; samples below 16 cycles per field of view
NEWTON_STEPS = 9  # 8 to 11 are as good on the phantom; more follow the noise
ALPHA = 1.0  # weight of the regularisation in the first step, for data of norm `DATA_NORM`
DATA_NORM = 100.0
SMOOTHNESS, ORDER = 32.0, 8
CG_STEPS, CG_TOLERANCE = 30, 0.1


def central_samples(readouts: Readouts) -> tuple[NDArray[np.floating], NDArray[np.complexfloating]]:
    """Centre of k-space of usable readouts in the middle of the scan.

    Returns
    -------
    coordinates
        k [arm, sample, (kx, ky)] in cycles per field of view, below `MATRIX` / 2.
    samples
        [arm, coil, sample].

    Raises
    ------
    DataError
        No sample lies there.
    """
    taken, central = _centre(readouts)
    arms = readouts.coordinates[np.array(readouts.columns)[taken]]
    return arms[:, central], readouts.samples[taken][..., central]


def central_fields(readouts: Readouts) -> ArmFields | None:
    """Field terms of what `central_samples` returns, for images of `MATRIX` pixels; None: there are none."""
    if readouts.correction is None:
        return None
    taken, central = _centre(readouts)
    terms, temporal = readouts.correction.terms, readouts.correction.temporal
    columns = np.array(readouts.columns)[taken]
    rows, across = (n // 2 + (np.arange(MATRIX) - MATRIX // 2) * n // MATRIX for n in terms.spatial.shape[1:])
    of_arms = temporal[columns] if len(temporal) > 1 else temporal
    return ArmFields(terms.spatial[:, rows[:, np.newaxis], across], of_arms[..., central], np.arange(len(taken)))


def _centre(readouts: Readouts) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Readouts that maps are made from, and which of their samples lie in the centre of k-space."""
    usable = np.flatnonzero(readouts.usable)
    start = max(len(usable) - ARMS, 0) // 2
    taken = usable[start : start + ARMS]
    arms = readouts.coordinates[np.array(readouts.columns)[taken]]
    central = np.linalg.norm(arms, axis=-1).max(axis=0) < MATRIX / 2
    if not np.any(central):
        raise DataError(f"no sample lies within {MATRIX / 2:g} cycles per field of view")
    return taken, central


def coil_maps(readouts: Readouts) -> NDArray[np.complex64]:
    """Coil maps from readouts in the middle of the scan.

    Returns
    -------
    Maps [coil, row, column], the sum of |map|^2 over coils is 1.

    Raises
    ------
    DataError
        The centre of k-space is empty.
    """
    start = time.perf_counter()
    maps = nlinv(*central_samples(readouts), fields=central_fields(readouts))
    upsampled = coils.upsample_maps(maps, (readouts.matrix, readouts.matrix), 2.0).astype(np.complex64)
    logger.info("Coil maps made in %.2f s", time.perf_counter() - start)
    return upsampled


class _Model:
    """The map from image and spectra to samples, its derivative, and inner products in place of the samples.

    Unknowns are one vector: the image [N, N], then the spectra [coil, 2 N, 2 N]. Maps cover twice the field of view, so
    that they need not be periodic within it; the field of view is the first N rows and columns of theirs.
    """

    def __init__(self, coordinates: NDArray, samples: NDArray, size: int, fields: ArmFields | None = None) -> None:
        import scipy.fft

        self._fft = scipy.fft
        self.size, self.coils = size, samples.shape[1]
        ones = np.ones((1, *coordinates.shape[:-1]), np.complex64)
        response = nufft.adjoint(2 * coordinates, ones, (2 * size, 2 * size))[0]
        kernel = self._fft.fft2(self._fft.ifftshift(response)).real
        strength = kernel.max()  # of the normal operator: a unit that does not depend on the number of arms
        self._kernel = (kernel / strength).astype(np.float32)

        peak = np.abs(samples).max()
        if not (np.isfinite(peak) and peak > 0):
            raise DataError("the centre of k-space is zero or not finite: there is nothing to make coil maps from")
        scaled = (samples / peak).astype(np.complex64)
        data = _adjoint(coordinates, scaled.transpose(1, 0, 2), (size, size), fields)
        self.data = (data * (DATA_NORM / (np.linalg.norm(scaled) * np.sqrt(strength)))).astype(np.complex64)

        frequency = self._fft.fftfreq(2 * size)
        squared = frequency[:, None] ** 2 + frequency**2
        self._damping = ((1 + SMOOTHNESS * squared) ** -ORDER).astype(np.float32)

    def start(self) -> NDArray[np.complex64]:
        """Unknowns to start from, and to stay near: an image of ones, no maps."""
        ones = np.ones(self.size**2, np.complex64)
        return np.concatenate([ones, np.zeros(4 * self.coils * self.size**2, np.complex64)])

    def split(self, unknowns: NDArray) -> tuple[NDArray, NDArray]:
        """Image and spectra."""
        shape = (self.coils, 2 * self.size, 2 * self.size)
        return unknowns[: self.size**2].reshape(self.size, self.size), unknowns[self.size**2 :].reshape(shape)

    def whole_maps(self, spectra: NDArray) -> NDArray:
        """Maps over twice the field of view, which begins at their first row and column."""
        return self._fft.ifft2(self._damping * spectra, norm="ortho")

    def maps(self, spectra: NDArray) -> NDArray:
        """Maps over the field of view."""
        return self.whole_maps(spectra)[:, : self.size, : self.size]

    def spectra(self, maps: NDArray) -> NDArray:
        """Adjoint of `maps`."""
        return self._damping * self._fft.fft2(maps, (2 * self.size, 2 * self.size), norm="ortho")

    def normal(self, images: NDArray) -> NDArray:
        """F^H F of coil images, by convolution on a grid of twice the size."""
        padded = self._fft.fft2(images, (2 * self.size, 2 * self.size))
        return self._fft.ifft2(self._kernel * padded)[:, : self.size, : self.size]

    def derivative_adjoint(self, image: NDArray, maps: NDArray, coil_images: NDArray) -> NDArray:
        """Adjoint of the product's derivative: from a change of the coil images to one of the unknowns."""
        along_image = (maps.conj() * coil_images).sum(axis=0)
        return np.concatenate([along_image.ravel(), self.spectra(image.conj() * coil_images).ravel()])


def _adjoint(coordinates: NDArray, samples: NDArray, shape: tuple[int, int], fields: ArmFields | None) -> NDArray:
    """Images [coil, row, column] of samples [coil, arm, sample], with field terms if there are some.

    In the centre of k-space fields are a matter of blur, not of density: F^H F without them stays what it is.
    """
    if fields is None:
        return nufft.adjoint(coordinates, samples, shape)
    of_terms = fields.temporal.conj().transpose(1, 0, 2)[:, np.newaxis] * samples  # [term, coil, arm, sample]
    images = nufft.adjoint(coordinates, of_terms.reshape(-1, *samples.shape[1:]), shape)
    return combined(images.reshape(*of_terms.shape[:2], *shape), fields.spatial)


def nlinv(
    coordinates: NDArray, samples: NDArray, size: int = MATRIX, steps: int = NEWTON_STEPS,
    fields: ArmFields | None = None,
) -> NDArray:  # fmt: skip
    """Estimate image and coil maps together.

    Parameters
    ----------
    coordinates
        k [arm, sample, (kx, ky)] in cycles per field of view.
    samples
        [arm, coil, sample].
    size
        Pixels along each side of the field of view, even.
    steps
        Gauss-Newton steps.
    fields
        Field terms, on the pixels of the image; their `columns` are the arms as they are. None: there are none.

    Returns
    -------
    Maps [coil, 2 size, 2 size] over twice the field of view, in the scanner's orientation.

    Raises
    ------
    DataError
        The samples are zero or not finite.
    """
    model = _Model(coordinates, samples, size, fields)
    begin = unknowns = model.start()
    for step in range(steps):
        alpha = np.float32(ALPHA / 2**step)
        image, spectra = model.split(unknowns)
        maps = model.maps(spectra)

        def normal(
            change: NDArray, out: NDArray, image: NDArray = image, maps: NDArray = maps, alpha: np.float32 = alpha
        ) -> None:
            image_change, spectra_change = model.split(change)
            coil_images = model.normal(image_change * maps + image * model.maps(spectra_change))
            out[:] = model.derivative_adjoint(image, maps, coil_images) + alpha * change

        residual = model.data - model.normal(image * maps)
        gradient = model.derivative_adjoint(image, maps, residual) + alpha * (begin - unknowns)
        enough = CG_TOLERANCE**2 * inner(gradient, gradient)
        change = np.zeros_like(unknowns)
        solver = ConjugateGradients(normal, lambda step: inner(step, step), change, gradient, 0.0)
        for _ in range(CG_STEPS):
            if inner(gradient, gradient) <= enough:
                break
            solver.update()
        unknowns = unknowns + change
    whole = model.whole_maps(model.split(unknowns)[1])
    return np.roll(whole, size // 2, axis=(1, 2))  # the field of view into the middle
