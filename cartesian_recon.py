"""Cartesian reconstruction of clinical scans: noise, EPI, acceleration, partial Fourier, coil combination.

One magnitude image comes back for each repetition, slice (or partition), contrast, set and cardiac phase, as soon as
its data are complete; those of the first repetition come together, as they give the intensity scale. Settings:
``configs/cartesian_recon_config.toml``, read for each scan. See ``doc/cartesian.md``.

The steps, each a function or a generator of its own: readouts are whitened (`recon.noise`); those of EPI regridded and
corrected (`recon.epi`); sorted into volumes (`recon.volumes`); missing lines filled (`recon.parallel`); missing sides
of k-space filled (`recon.partialfourier`); coils combined (`coils`).
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import coils
import mrdhelper
from connection import Connection
from recon import cartesian, configuration, epi, noise, parallel, partialfourier
from recon.calibrationlines import CalibrationLines
from recon.conditioning import virtual_coils
from recon.configuration import parameter
from recon.fourier import centred_ifft
from recon.kspacevolume import KSpaceVolume
from recon.mrdencoding import multiband_factor
from recon.reconspace import ReconSpace
from recon.telling import once
from recon.volumes import sort_volumes

logger = logging.getLogger(__name__)

FAR_PEAK = "the largest sample lies far from the k-space centre: a spike, no signal, or a wrong centre in the header"
G_FACTOR = {"ImageComments": "g-factor", "ImageProcessingHistory": ["PYTHON", "GFACTOR"]}


@dataclass(frozen=True)
class CartesianReconstruction:
    """Table [reconstruction] of the Cartesian reconstruction."""

    prewhiten: str = parameter("auto", "Whiten readouts where the noise is known.", choices=("auto", "off"))
    phase_correction: str = parameter("auto", "Of EPI lines in both directions.", choices=epi.MODES)
    acceleration: str = parameter("auto", "What makes up for missing lines.", choices=parallel.METHODS)
    reg_lambda: float = parameter(0.0, "Weight of the regularisation; 0: from the data.", minimum=0)
    num_iter: int = parameter(0, "Iterations of sense and l1-wavelet; 0: their own.", minimum=0)
    partial_fourier: str = parameter("auto", "What fills a side that is missing.", choices=("auto", "pocs", "zero"))
    coil_combine: str = parameter("adaptive", "How coils become one image.", choices=("adaptive", "rssq"))
    coil_compression: int = parameter(16, "Virtual coils at most; 0: all coils.", minimum=0)
    snr_units: bool = parameter(False, "Send images in units of their noise, and g-factor maps.")


@dataclass(frozen=True)
class CartesianConfig:
    """Configuration of `cartesian_recon`."""

    FILE: ClassVar[str] = "configs/cartesian_recon_config.toml"

    reconstruction: CartesianReconstruction = field(default_factory=CartesianReconstruction)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct Cartesian or EPI raw data and send the images.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header.
    """
    options = configuration.load(CartesianConfig).reconstruction
    whitening = noise.Prewhitening(metadata, options.prewhiten, connection.info, connection.warn, connection.dependency)
    readouts = whitening.apply(connection)
    readouts = epi.corrected(readouts, metadata, options.phase_correction, connection.info, connection.warn)
    header = epi.cartesian_header(metadata)

    lines = CalibrationLines(header, whitening.whitened, connection.dependency, connection.warn)
    reconstruct = Reconstruction(options, metadata, lines, whitening, connection.info, connection.warn)
    to_pixels = None if options.snr_units else mrdhelper.SeriesScale(header, connection.warn)
    volumes = lines.awaited(sort_volumes(readouts, header, connection.warn, lines.add))
    results = ((volume, phase, *reconstruct(volume, phase)) for volume in volumes for phase in range(len(volume.heads)))
    batches = ([each] for each in results) if to_pixels is None else cartesian.first_repetition_together(results)
    index = 0
    for batch in batches:
        if to_pixels is not None:
            to_pixels.see(*(magnitude for _, _, magnitude, _ in batch))
        for volume, phase, magnitude, g_factor in batch:
            view = cartesian.field_of_view(volume)
            for head, pixels, gain in zip(cartesian.partition_heads(volume, phase), magnitude, g_factor, strict=True):
                index += 1
                build = functools.partial(mrdhelper.build_image, index=index, field_of_view=view)
                connection.send_image(build(pixels if to_pixels is None else to_pixels(pixels), head, header))
                if options.snr_units:
                    connection.send_image(build(gain, head, header, series=1, meta=G_FACTOR))
    if index == 0:
        connection.warn("there were no imaging readouts, so there is no image")


class Reconstruction:
    """The steps from a volume to its images, and what is kept from one repetition to the next.

    Parameters
    ----------
    options
        Table [reconstruction].
    metadata
        The MRD header.
    lines
        Finds the calibration lines of a volume.
    whitening
        Knows whether readouts are whitened.
    tell, warn
        Called with a text for the client.
    """

    def __init__(
        self,
        options: CartesianReconstruction,
        metadata: Any,
        lines: CalibrationLines,
        whitening: noise.Prewhitening,
        tell: Callable[[str], None] = logger.info,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self._options, self._metadata, self._lines, self._whitening = options, metadata, lines, whitening
        self._tell, self._warn = once(tell), once(warn)
        for encoding in getattr(metadata, "encoding", None) or []:
            if bands := multiband_factor(encoding):
                self._warn(f"multiband_factor is {bands}: slices excited together are not told apart, they overlap")
        settings = (options.reg_lambda or None, options.num_iter or None)
        self._parallel = parallel.ParallelImaging(options.acceleration, *settings, self._tell, self._warn)
        self._origins: dict[tuple[int, ...], tuple[Any, ...]] = {}  # of the calibration lines of each series
        self._mixing: dict[tuple[int, ...], NDArray[np.complex64]] = {}

    def __call__(self, volume: KSpaceVolume, phase: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Reconstruct one cardiac phase of a volume.

        Returns
        -------
        magnitude
            [partition, row, column]; with `snr_units`, in units of the noise of the image's real part.
        g_factor
            Of the same size, with `snr_units`; else zeros.
        """
        options = self._options
        space = ReconSpace(volume)
        sampled, series = volume.sampled[..., phase] > 0, (*volume.key[1:], phase)
        if missing := cartesian.missing_ends(sampled, volume.encoding):
            self._warn(missing)
        if cartesian.has_far_peak(volume.kspace[..., phase]):
            self._warn(FAR_PEAK)
        # Whatever the unit of the data is: energies neither overflow nor vanish.
        unit = float(np.abs(volume.kspace[..., phase]).max())
        if unit == 0:
            self._warn("all samples of an image are zero: it is black")
            unit = 1.0
        kspace = space.without_oversampling(volume.kspace[..., phase] / unit)
        calibration = self._lines.of(volume, phase)
        if calibration.origin != self._origins.get(series):  # lines of this repetition: what others gave is left
            self._origins[series] = calibration.origin
            self._parallel.forget(series)
            self._mixing.pop(series, None)
        block = space.without_oversampling(calibration.block / unit) if calibration.rows else None
        mixing = self._virtual_coils(series, kspace if block is None else block)
        kspace = np.tensordot(mixing, kspace, 1)
        block = None if block is None else np.tensordot(mixing, block, 1)
        variance = space.noise_variance / unit**2 if self._whitening.matrix is not None else None
        filled = self._parallel.fill(series, kspace, sampled, block, variance)
        kspace = filled.kspace
        if options.partial_fourier != "zero" and not options.snr_units:
            kspace = partialfourier.pocs(kspace, space.extents(sampled), self._warn)
        images = space.to_image(kspace)
        magnitude = np.float32(unit) * (coils.rssq(images) if filled.combined else self._combined(images))
        if not options.snr_units:
            return magnitude, np.zeros_like(magnitude)
        level, g_factor = self._noise(filled, volume, phase)
        return magnitude / space.resized(level), space.resized(g_factor)

    def _virtual_coils(self, series: tuple[int, ...], kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Orthonormal combinations [combination, coil] that are worked with: they keep white noise white."""
        count = len(kspace)
        if series not in self._mixing or self._mixing[series].shape[1] != count:
            most = self._options.coil_compression or count
            self._mixing[series] = virtual_coils(kspace, most) if count > most else np.eye(count, dtype=np.complex64)
        return self._mixing[series]

    def _combined(self, images: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Magnitude [partition, row, column] of coil images [coil, partition, row, column]."""
        if self._options.coil_combine == "rssq":
            return coils.rssq(images)
        return np.abs(coils.combine(images, self._weights(images)))

    def _weights(self, images: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Weights of the coils in each pixel, of norm 1: [coil, partition, row, column]."""
        if self._options.coil_combine == "rssq":
            return images / np.maximum(coils.rssq(images), np.finfo(np.float32).tiny)
        maps, _ = coils.inati(images[:, 0] if images.shape[1] == 1 else images)
        return maps.reshape(images.shape)

    def _noise(
        self, filled: parallel.Filled, volume: KSpaceVolume, phase: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Noise of the real part of the combined image, and g-factor, in the matrix of k-space; ones if not known."""
        is_epi = epi.is_epi(self._metadata.encoding[volume.key.encoding_space_ref])
        if filled.noise is None or self._whitening.matrix is None or is_epi:
            self._warn(
                "snr_units: images are in their own units, since the noise of an image is known only for whitened "
                "readouts that are fully sampled or filled by GRAPPA, and not for EPI"
            )
            ones = np.ones(filled.kspace.shape[1:], np.float32)
            return ones, ones
        images = filled.kspace
        for axis in (1, 2, 3):
            images = centred_ifft(images, axis)
        count = volume.sampled[..., phase]
        relative, g_factor = filled.noise(self._weights(images.astype(np.complex64)))
        points = volume.kspace[0, ..., 0].size
        samples = filled.sites * (volume.samples[1] - volume.samples[0])
        averaging = np.mean(1 / count[count > 0])
        return relative * np.float32(np.sqrt(0.5 * samples * averaging) / points), g_factor
