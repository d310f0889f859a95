"""Noise of the receiver: its covariance between coils from noise readouts, and readouts without it (prewhitening).

Covariance Psi = X X^H / n of n noise samples X [coil, n]; whitening matrix W, the inverse of the Cholesky factor of
Psi, so that W Psi W^H = 1: in whitened readouts the noise of each coil has variance 1 (real and imaginary part
together), and that of different coils is uncorrelated. Coil combination and parallel imaging then weight each coil as
well as can be (Roemer et al., Magn Reson Med 1990;16:192; Pruessmann et al., Magn Reson Med 2001;46:638).

Noise per sample is proportional to the receiver's bandwidth, so the covariance is that of the noise readouts times
dwell_noise / dwell_imaging / r. The header's relativeReceiverNoiseBandwidth r (about 0.79) is the part of the noise
that the receiver's filter passes over its whole band; images come from its middle, where it passes all (Kellman and
McVeigh, Magn Reson Med 2005;54:1439).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdio.dependencies import Dependency
from recon.mrdencoding import is_imaging

logger = logging.getLogger(__name__)

SAMPLES_PER_COIL = 10  # with fewer, whitened noise would be as uneven as it mostly is without whitening
SMALLEST_EIGENVALUE = 1e-6  # of the correlation matrix; below, two channels hold the same


class NoiseError(ValueError):
    """The noise readouts do not give a covariance; the text says why."""


def is_noise(item: Any) -> bool:
    """True for a readout flagged as noise measurement."""
    return isinstance(item, ismrmrd.Acquisition) and item.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


class NoiseCovariance:
    """Covariance of the noise between coils, from noise readouts.

    Parameters
    ----------
    readouts
        Acquisitions with noise alone, samples [coil, sample].

    Attributes
    ----------
    coils, samples
        Numbers of coils, and of samples of each.
    dwell
        Time from sample to sample of the first readout [us]; 0 when its header does not say.
    matrix
        complex128 [coil, coil], for this dwell time.

    Raises
    ------
    NoiseError
        There is no readout, they have different numbers of coils, samples are not finite or too few, a channel is
        dead, or channels hold the same.
    """

    def __init__(self, readouts: Iterable[ismrmrd.Acquisition]) -> None:
        self.samples, total = 0, None
        for readout in readouts:
            stop = max(readout.number_of_samples - readout.discard_post, readout.discard_pre)
            samples = readout.data[:, readout.discard_pre : stop].astype(np.complex128)
            dwell = readout.sample_time_us
            if total is None:
                self.coils, self.dwell = len(samples), dwell
                total = np.zeros((self.coils, self.coils), np.complex128)
            if len(samples) != self.coils:
                raise NoiseError(f"they have {self.coils} coils, then {len(samples)}")
            if not np.isfinite(samples).all():
                raise NoiseError(f"samples of the one with scan_counter {readout.scan_counter} are not finite")
            total += bandwidth_factor(dwell, self.dwell) * (samples @ samples.conj().T)
            self.samples += samples.shape[1]
        if total is None:
            raise NoiseError("there are none")
        if self.samples < SAMPLES_PER_COIL * self.coils:
            enough = SAMPLES_PER_COIL * self.coils
            raise NoiseError(f"{self.samples} samples are too few for {self.coils} coils, {enough} are enough")
        self.matrix = total / self.samples
        _check(self.matrix)

    def whitening(self, dwell: float = 0, relative_bandwidth: float = 1.0) -> NDArray[np.complex64]:
        """Matrix W [coil, coil] that whitens readouts.

        Parameters
        ----------
        dwell
            Of the readouts, from sample to sample [us]; 0: the same as that of the noise.
        relative_bandwidth
            The header's relativeReceiverNoiseBandwidth, see `relative_noise_bandwidth`.
        """
        psi = bandwidth_factor(self.dwell, dwell) / relative_bandwidth * self.matrix
        return np.linalg.inv(np.linalg.cholesky(psi)).astype(np.complex64)


def bandwidth_factor(measured: float, wanted: float) -> float:
    """Factor on the noise variance from one dwell time to another [us]; 1 when a header does not say it."""
    known = 0 < measured < math.inf and 0 < wanted < math.inf
    return measured / wanted if known else 1.0


def relative_noise_bandwidth(metadata: Any) -> float:
    """The header's relativeReceiverNoiseBandwidth; 1 when it does not say, or says nonsense."""
    value = getattr(getattr(metadata, "acquisitionSystemInformation", None), "relativeReceiverNoiseBandwidth", None)
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else 1.0


def _check(psi: NDArray[np.complex128]) -> None:
    """Raise a NoiseError unless a covariance can be inverted."""
    variance = psi.diagonal().real
    if dead := np.flatnonzero(variance <= 0).tolist():
        raise NoiseError(f"channel {dead[0]} is dead: all its noise samples are zero")
    deviation = np.sqrt(variance)
    if np.linalg.eigvalsh(psi / np.outer(deviation, deviation))[0] < SMALLEST_EIGENVALUE:
        raise NoiseError("some channels hold the same noise")


class Prewhitening:
    """Whitens the readouts of a scan where its noise is known.

    Noise readouts that come before the first imaging readout are taken out and used; without any, those of the stored
    measurement that the header names. All other readouts are whitened, calibration lines and navigators too, by one
    matrix for the whole scan: signals can be compared as before. They are new readouts with the same header. Noise
    readouts that come later are passed on as they are, for steps that count readouts.

    The client is told what whitens, or why noise that there is cannot be used: then readouts pass as they are.

    Parameters
    ----------
    metadata
        The MRD header.
    mode
        "auto", or "off": messages pass as they are.
    tell, warn
        Called with a text for the client.
    stored
        ``connection.dependency``: returns the stored measurement of a kind, here "Noise", that the header names.

    Attributes
    ----------
    matrix
        W [coil, coil] once the first imaging readout has come; None when readouts pass as they are.
    """

    def __init__(
        self,
        metadata: Any,
        mode: str = "auto",
        tell: Callable[[str], None] = logger.info,
        warn: Callable[[str], None] = logger.warning,
        stored: Callable[[str], Dependency | None] = lambda kind: None,
    ) -> None:
        self.matrix: NDArray[np.complex64] | None = None
        self._metadata, self._mode = metadata, mode
        self._tell, self._warn, self._stored = tell, warn, stored

    def apply(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield readouts, waveforms and images: the connection's, or those of a generator over it; readouts whitened.

        Raises
        ------
        ValueError
            An imaging readout has another number of channels than those before it.
        """
        if self._mode == "off":
            yield from items
            return
        items = iter(items)
        # What comes before the first imaging readout, whose bandwidth decides.
        noise: list[ismrmrd.Acquisition] = []
        held: list[Any] = []
        for item in items:
            (noise if is_noise(item) else held).append(item)
            if isinstance(item, ismrmrd.Image) or self._is_imaging(item):
                break
        readouts = [item for item in held if isinstance(item, ismrmrd.Acquisition)]
        if readouts:
            self.matrix = _whitening(noise, readouts[-1], self._metadata, self._tell, self._warn, self._stored)
        messages = itertools.chain(held, items)
        del noise, held, readouts  # or they would stay in memory as long as the scan
        late = False
        for item in messages:
            if is_noise(item) and not late:
                late = True
                self._tell("noise readouts after the first imaging readout are not used")
            yield self.whitened(item)

    def whitened(self, item: Any) -> Any:
        """Whiten one readout, of this scan or of a calibration measurement; anything else is returned as it is."""
        if self.matrix is None or not isinstance(item, ismrmrd.Acquisition) or is_noise(item):
            return item
        if item.active_channels == len(self.matrix):
            return whitened(item, self.matrix)
        if self._is_imaging(item):
            raise ValueError(
                f"the readout with scan_counter {item.scan_counter} has {item.active_channels} channels, "
                f"those before it have {len(self.matrix)}: they must be the same throughout"
            )
        return item  # such as a readout of the body coil

    def _is_imaging(self, item: Any) -> bool:
        return isinstance(item, ismrmrd.Acquisition) and is_imaging(item, self._metadata)


def prewhiten(items: Iterable[Any], metadata: Any, *settings: Any, **options: Any) -> Iterator[Any]:
    """Yield the messages of a scan, readouts whitened where its noise is known, see `Prewhitening`."""
    return Prewhitening(metadata, *settings, **options).apply(items)


def whitened(readout: ismrmrd.Acquisition, matrix: NDArray[np.complex64]) -> ismrmrd.Acquisition:
    """New readout with the same header and trajectory, its samples multiplied by a matrix [coil, coil]."""
    with np.errstate(invalid="ignore", over="ignore"):  # readouts that are not finite are told of where they are judged
        samples = matrix @ readout.data
    return ismrmrd.Acquisition(readout.getHead(), samples, readout.traj)


def _whitening(
    noise: list[ismrmrd.Acquisition],
    readout: ismrmrd.Acquisition,
    metadata: Any,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    stored: Callable[[str], Dependency | None],
) -> NDArray[np.complex64] | None:
    """Whitening matrix for readouts like the given one; None, and the client told why, where there is none."""
    source = "of this scan"
    if not noise:
        measurement = stored("Noise")
        if measurement is None:
            return None
        noise, source = measurement.readouts, f"of the stored measurement {measurement.measurement}"
        noise = [each for each in noise if is_noise(each)] or noise
    noise = [each for each in noise if each.active_channels == readout.active_channels] or noise  # of its own coils
    try:
        covariance = NoiseCovariance(noise)
        if covariance.coils != readout.active_channels:
            raise NoiseError(f"they have {covariance.coils} coils, the scan has {readout.active_channels}")
        matrix = covariance.whitening(readout.sample_time_us, relative_noise_bandwidth(metadata))
    except NoiseError as error:
        warn(f"readouts are not whitened: the {len(noise)} noise readouts {source} cannot be used: {error}")
        return None
    tell(f"readouts are whitened: {covariance.samples} noise samples of {covariance.coils} coils {source}")
    return matrix
