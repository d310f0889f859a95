"""From a volume's k-space to the image that the header's reconSpace describes, in steps that allow work in between."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.fourier import Axis, centred_fft, centred_ifft, mirror, resize_centred, to_image_axis
from recon.kspacevolume import KSpaceVolume
from recon.partialfourier import extent_of, is_partial
from recon.sampling import acquired_region

PARTITION, ROW, COLUMN = 1, 2, 3  # axes of [coil, partition, row, column]


class ReconSpace:
    """Sizes and orientation of a volume's image.

    Where the readout is complete, its oversampling is removed first: all that follows is faster. Where one of its sides
    is missing (an asymmetric echo), that side has to be filled before.

    Parameters
    ----------
    volume
        The volume.

    Attributes
    ----------
    removes_oversampling
        Whether `without_oversampling` does something.
    noise_variance
        Mean |noise|^2 of a sample after `without_oversampling`, when it was 1 before.
    """

    def __init__(self, volume: KSpaceVolume) -> None:
        self._volume = volume
        self._axes = (volume.partitions, volume.rows, volume.columns)
        self.removes_oversampling = not is_partial(volume.columns.points, volume.samples)
        columns = volume.columns
        self.noise_variance = columns.pixels / columns.points if self.removes_oversampling else 1.0

    def without_oversampling(self, kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """K-space [coil, partition, row, sample] of the reconstructed field of view along the readout alone."""
        if not self.removes_oversampling:
            return kspace
        image = to_image_axis(kspace, self._volume.columns, COLUMN, self._volume.mirrored)
        return centred_fft(image, COLUMN).astype(np.complex64)

    def extents(self, sampled: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
        """First acquired index, and the one after the last, of the axes of k-space after `without_oversampling`.

        Parameters
        ----------
        sampled
            [partition, row].
        """
        region = acquired_region(sampled)
        columns = self._volume.columns
        along = (0, columns.pixels) if self.removes_oversampling else self._volume.samples
        return extent_of(np.any(region, axis=1)), extent_of(np.any(region, axis=0)), along

    def to_image(self, kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Image [coil, partition, row, column] of k-space after `without_oversampling`; as `cartesian.to_image`."""
        image = kspace
        for number, axis in zip((PARTITION, ROW), self._axes, strict=False):
            image = to_image_axis(image, axis, number, self._volume.mirrored)
        if self.removes_oversampling:
            return centred_ifft(image, COLUMN).astype(np.complex64)
        return to_image_axis(image, self._volume.columns, COLUMN, self._volume.mirrored).astype(np.complex64)

    def resized(self, values: NDArray[Any]) -> NDArray[Any]:
        """Map of the matrix of k-space [partition, row, column] to the pixels of the image, each by the nearest."""
        for number, axis in enumerate(self._axes):
            if number < 2 or not self.removes_oversampling:
                values = _nearest(values, axis, number, self._volume.mirrored)
        return values


def _nearest(values: NDArray[Any], axis: Axis, number: int, mirrored: bool) -> NDArray[Any]:
    values = mirror(values, [number]) if mirrored else values
    if axis.transform == axis.points:
        return resize_centred(values, axis.pixels, number)
    place = (np.arange(axis.pixels) - axis.pixels // 2) * axis.points / axis.transform + axis.points // 2
    return np.take(values, np.rint(place).astype(int).clip(0, axis.points - 1), number)
