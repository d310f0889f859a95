"""Readouts of any 2-D non-Cartesian scan to images: each slice, or slab of a stack, from all its arms.

A stack has partitions along kz, told by ``kspace_encode_step_2``, each with arms of its own or the same ones.

Geometry: field of view and matrix are those of the header's reconSpace. The orientation is the scanner's, whatever the
vendor, as in `nufft`: pixel (row, column) shows x = -(column - N // 2) * pixel, y = -(row - N // 2) * pixel, and
partition p z = -(p - N // 2) * its thickness, with x, y, z along kx, ky, kz.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import memory, nufft
from recon.armsource import ArmReadout, ArmSource, find_source
from recon.cartesian import field_of_view, partition_heads
from recon.density import compensation
from recon.fieldcorrection import Correction, FieldCorrection
from recon.fieldplan import FieldPlan, combined
from recon.fourier import Axis, to_image_axis
from recon.kspacevolume import partition_axis
from recon.mrdencoding import checked_size, extent, first_index, griddable_encoding
from recon.outliers import OutlierFilter, UnusableScanError
from recon.readoutgroups import Key, ReadoutGroup, by_repetition, sort_groups
from recon.sequenceextent import designed_field_of_view
from recon.telling import once

logger = logging.getLogger(__name__)

PLANS = 4  # whose tables are kept for the next images with the same arms
BYTES_PER_SAMPLE = 600  # of one image's arms, while their tables are made


@dataclass(frozen=True, eq=False)
class Arms:
    """Samples of one slice, or of one partition of a slab.

    Attributes
    ----------
    k
        K-space [arm, sample, (kx, ky)] in cycles per field of view of the image; no arm is there twice.
    samples
        complex64 [coil, arm, sample]; the mean of readouts of the same arm.
    weights
        Density compensation [arm, sample].
    plan
        Tables of the weighted adjoint transform.
    dwell
        Time from sample to sample [s]; 0: not known.
    """

    k: NDArray[np.float64]
    samples: NDArray[np.complex64]
    weights: NDArray[np.float64]
    plan: nufft.ArmPlan
    dwell: float = 0.0


@dataclass(frozen=True, eq=False)
class Slab:
    """All arms of one slice, or of a slab with its partitions, in one cardiac phase.

    Attributes
    ----------
    key
        Its counters.
    encoding
        The header's.
    heads
        Header of the readout in the middle of those that it was made of.
    partitions
        Sizes along the partitions; of a single slice all are 1.
    shape
        Image size (rows, columns).
    planes
        Arms of each partition in k-space, k = 0 at N // 2; None where there are none.
    """

    key: Key
    encoding: Any
    heads: tuple[ismrmrd.AcquisitionHeader]
    partitions: Axis
    shape: tuple[int, int]
    planes: Sequence[Arms | None]

    @property
    def image_heads(self) -> list[ismrmrd.AcquisitionHeader]:
        """Headers of the images, one for each partition, with slice number and position of their own."""
        return partition_heads(self, 0)

    @property
    def field_of_view(self) -> tuple[float, float, float] | None:
        """Field of view of one image (x, y, z) [mm]."""
        return field_of_view(self)


def sort_repetitions(
    items: Iterable[Any],
    metadata: Any,
    metafile_folders: Sequence[Path],
    tell: Callable[[str], None] = logger.info,
    warn: Callable[[str], None] = logger.warning,
    first_arm: int = 0,
) -> Iterator[list[Slab]]:
    """Sort the imaging readouts of a scan into slices and slabs, and yield them one repetition at a time.

    A repetition comes as soon as its slices, contrasts and sets are complete, see `readoutgroups.sort_groups`, or at
    the end of the scan, whole or not. Readouts that are no measurement are left out, see `outliers`.

    Parameters
    ----------
    items
        Readouts; waveforms, texts and None among them are ignored.
    metadata
        The MRD header.
    metafile_folders
        Where a metafile is looked for.
    tell, warn
        Called with a text for the client: where the trajectory comes from; what is missing or left out.
    first_arm
        Imaging readouts of the scan that came before the first item.

    Yields
    ------
    Slabs of one repetition, sorted by encoding space, slice, contrast, set and cardiac phase.

    Raises
    ------
    TypeError
        When an image is among the items.
    TrajectoryError, ReadoutTrajectoryError
        There is no trajectory, or it does not fit the readouts.
    UnusableScanError
        No readout is a measurement.
    ValueError
        When the header is missing, says EPI or sizes beyond limits, the number of channels changes, a geometry is not
        finite, or an image has too many samples for the memory.
    """
    tell, warn = once(tell), once(warn)
    source = find_source(metadata, metafile_folders, tell, warn, first_arm)
    groups = sort_groups(
        _received(items, source),
        encoding_of=lambda number: griddable_encoding(metadata, number),
        warn=warn,
        readout_of=lambda each: each.head,
    )
    builder = _Builder(source, warn)
    for repetition in by_repetition(groups):
        slabs = [slab for group in repetition for slab in builder.slabs(group)]
        if slabs:
            yield slabs
    builder.finish()


def to_image(slab: Slab, fields: FieldCorrection | None = None) -> NDArray[np.complex64]:
    """Transform the samples of a slab to its images.

    The weighted adjoint transform of each partition's arms, then the inverse Fourier transform along the partitions.
    The order makes no difference to the image, and in this one the arms may differ from partition to partition. With
    field correction, the terms' images are combined last, as fields differ from partition to partition of the image.

    Parameters
    ----------
    slab
        Samples.
    fields
        Corrects field errors; None: nothing does.

    Returns
    -------
    Images [coil, partition, row, column].
    """
    coil_count = next(each.samples.shape[0] for each in slab.planes if each is not None)
    correction = _correction(slab, fields)
    if correction is None:
        return _to_images(slab, coil_count, lambda number, arms: arms.plan.adjoint(arms.samples))
    spatial, count = correction.terms.spatial, len(correction)
    first = np.cumsum([0, *(0 if each is None else len(each.k) for each in slab.planes)])

    def term_images(number: int, arms: Arms) -> NDArray[np.complex64]:
        own = slice(first[number], first[number + 1]) if len(correction.temporal) > 1 else slice(None)
        plan = FieldPlan(arms.plan, spatial[:, number], correction.temporal[own])
        grid = plan.zeros(coil_count)
        for arm in range(len(arms.k)):
            plan.add_arm(grid, arm, arms.samples[:, arm])
        return plan.term_images(grid).reshape(-1, *slab.shape)

    images = _to_images(slab, count * coil_count, term_images)
    return combined(images.reshape(count, coil_count, *images.shape[1:]), spatial[:, np.newaxis])


def _to_images(slab: Slab, count: int, of_plane: Callable[[int, Arms], NDArray[np.complex64]]) -> NDArray[np.complex64]:
    """So many images [image, partition, row, column] of the planes' own [image, row, column]."""
    images = np.zeros((count, len(slab.planes), *slab.shape), np.complex64)
    for number, arms in enumerate(slab.planes):
        if arms is not None:
            images[:, number] = of_plane(number, arms)
    if len(slab.planes) > 1:
        images = to_image_axis(images, slab.partitions, 1, mirrored=True)
    return images.astype(np.complex64, copy=False)


def _correction(slab: Slab, fields: FieldCorrection | None) -> Correction | None:
    """Terms of all partitions' images, for the arms of all planes in k-space one after the other."""
    if fields is None or not fields.active:
        return None
    planes = [each for each in slab.planes if each is not None]
    fov = image_size(slab.encoding)[1]
    millimetres = 1e3 * fov[0], 1e3 * fov[1]
    k = np.concatenate([each.k for each in planes]) / fov
    if len(slab.planes) == 1 and fields.is_due(slab.heads[0]):
        fields.learn(slab.heads[0], planes[0].plan, planes[0].samples, k, planes[0].dwell, millimetres)
    return fields.terms(k, planes[0].dwell, slab.image_heads, slab.shape, millimetres)


def _received(items: Iterable[Any], source: ArmSource) -> Iterator[ArmReadout]:
    """Yield the imaging readouts of a scan with their arms."""
    coils = None
    for item in items:
        if isinstance(item, ismrmrd.Image):
            raise TypeError("got an image; a non-Cartesian reconstruction needs raw data (readouts)")
        if not isinstance(item, ismrmrd.Acquisition):
            continue
        readout = source.receive(item)
        if readout is None:
            continue
        mrdhelper.check_geometry(item)
        coils = item.active_channels if coils is None else coils
        if item.active_channels != coils:
            raise ValueError(
                f"readout with scan_counter {item.scan_counter} has {item.active_channels} channels; "
                f"those before it have {coils}"
            )
        yield readout


class _Builder:
    """Makes slabs of groups of readouts, with tables that they share.

    Parameters
    ----------
    source
        Of their trajectories.
    warn
        Called with a text for the client.
    """

    def __init__(self, source: ArmSource, warn: Callable[[str], None]) -> None:
        self._source, self._warn = source, warn
        self._plans: dict[tuple[Any, ...], tuple[NDArray[np.float64], nufft.ArmPlan]] = {}
        self._made = self._told = False
        self._unusable: UnusableScanError | None = None

    def slabs(self, group: ReadoutGroup[ArmReadout]) -> Iterator[Slab]:
        """Yield one slab for each cardiac phase of a group, unless none of its readouts is a measurement."""
        try:
            usable = self._usable(group.readouts)
        except UnusableScanError as error:
            self._unusable = self._unusable or error
            self._warn(f"no image of slice {group.key.slice} in repetition {group.key.repetition}: {error}")
            return
        for phase in sorted({each.head.idx.phase for each in usable}):
            mine = self._in_one_place([each for each in usable if each.head.idx.phase == phase])
            self._made = True
            yield self._slab(group.key, group.encoding, mine)

    def finish(self) -> None:
        """Raise an UnusableScanError if no readout of the scan was a measurement."""
        if self._unusable and not self._made:
            raise self._unusable

    def _usable(self, readouts: list[ArmReadout]) -> list[ArmReadout]:
        """Readouts that are measurements, as compared with others of the same image."""
        texts: list[str] = []
        # Lines that pass by the centre differ in brightness, as those of a Cartesian scan do.
        judged = all(each.passes_centre for each in readouts)
        marked = OutlierFilter(texts.append, by_brightness=judged).marked(readouts)
        usable = [each for each in marked if each.usable and isinstance(each, ArmReadout)]
        for text in texts:
            (logger.warning if self._told else self._warn)(text)
        self._told = self._told or bool(texts)
        return usable

    def _in_one_place(self, readouts: list[ArmReadout]) -> list[ArmReadout]:
        """Readouts with the orientation and position of the newest: an image of several would be wrong."""
        newest = readouts[-1]
        mine = [
            each
            for each in readouts
            if each.orientation == newest.orientation and each.head.position[:] == newest.head.position[:]
        ]
        if len(mine) < len(readouts):
            self._warn(
                f"{len(readouts) - len(mine)} readouts are left out: others of the same image, which came later, have "
                "another orientation or position"
            )
        return mine

    def _slab(self, key: Key, encoding: Any, readouts: list[ArmReadout]) -> Slab:
        partitions = partition_axis(encoding, [each.head for each in readouts])
        offset = first_index(encoding, "kspace_encoding_step_2", partitions.points) if partitions.points > 1 else 0
        counters = {each.head.idx.kspace_encode_step_2 for each in readouts}
        if partitions.points == 1 and len(counters) > 1:
            raise ValueError(
                f"readouts of one slice have kspace_encode_step_2 {min(counters)} to {max(counters)}, but "
                "encodedSpace.matrixSize.z is 1: it has to be the number of partitions"
            )
        planes: dict[int, list[int]] = {number: [] for number in range(partitions.points)}
        outside = 0
        for number, each in enumerate(readouts):
            partition = each.head.idx.kspace_encode_step_2 + offset if partitions.points > 1 else 0
            outside += partition not in planes
            planes.get(partition, []).append(number)
        if outside == len(readouts):
            raise ValueError(
                f"none of {outside} readouts lies in the matrix: kspace_encode_step_2 of the first is "
                f"{readouts[0].head.idx.kspace_encode_step_2}, expected {-offset} to {partitions.points - offset - 1} "
                "by the header's encodedSpace and encodingLimits"
            )
        if outside:
            self._warn(f"{outside} readouts have a kspace_encode_step_2 outside of the matrix: they are left out")
        if empty := sum(not plane for plane in planes.values()):
            self._warn(
                f"{empty} of {partitions.points} partitions are missing: they are taken as zero, expect blurring"
            )
        shape, _ = image_size(encoding)
        k, weights = self._source.arms(readouts, encoding)
        arms = [
            self._arms([readouts[n] for n in plane], encoding, k[plane], None if weights is None else weights[plane])
            if plane
            else None
            for plane in planes.values()
        ]
        return Slab(
            key=key,
            encoding=encoding,
            heads=(readouts[len(readouts) // 2].head,),
            partitions=partitions,
            shape=shape,
            planes=arms,
        )

    def _arms(
        self,
        readouts: list[ArmReadout],
        encoding: Any,
        k: NDArray[np.float64],
        weights: NDArray[np.float64] | None,
    ) -> Arms:
        shape, fov = image_size(encoding)
        first, place = distinct_arms(k)
        needed, limit = len(first) * k.shape[1] * BYTES_PER_SAMPLE, memory.usable()
        if needed > limit:
            raise ValueError(
                f"one image of {len(first)} arms with {k.shape[1]} samples would take {needed >> 20} MiB, more than "
                f"{limit >> 20} MiB: its readouts need counters, such as repetition, that make several images of them"
            )
        samples = np.zeros((len(first), *readouts[0].samples.shape), np.complex64)
        for arm, readout in zip(place, readouts, strict=True):
            samples[arm] += readout.samples
        samples /= np.bincount(place)[:, np.newaxis, np.newaxis]
        k = k[first]
        encoded = tuple(extent(encoding.encodedSpace.fieldOfView_mm, axis) for axis in "xy")
        name = (k.tobytes(), None if weights is None else weights[first].tobytes(), shape, fov, encoded)
        if name not in self._plans:
            if len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            if weights is None:
                designed = designed_field_of_view(k, encoding)
                weights = compensation(k, (designed, designed))
            else:
                weights = as_areas(weights[first], k)
            self._plans[name] = weights, nufft.ArmPlan(k * fov, shape, weights)
        weights, plan = self._plans[name]
        return Arms(k * fov, np.ascontiguousarray(np.moveaxis(samples, 1, 0)), weights, plan, readouts[0].dwell)


def distinct_arms(k: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find readouts of the same arm.

    Parameters
    ----------
    k
        [readout, sample, (kx, ky)].

    Returns
    -------
    first
        Readout with each arm for the first time [arm].
    place
        Arm of each readout [readout].
    """
    numbers: dict[bytes, int] = {}
    place = np.array([numbers.setdefault(each.tobytes(), len(numbers)) for each in k])
    return np.unique(place, return_index=True)[1], place


def as_areas(weights: NDArray[np.float64], k: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale weights [arm, sample] so that they add up to the disc [1/m^2] that k reaches, however many arms there are.

    So images of incomplete sets are as bright as others.
    """
    return weights * (np.pi * (k**2).sum(axis=-1).max() / weights.sum())


def image_size(encoding: Any) -> tuple[tuple[int, int], tuple[float, float]]:
    """Image size (rows, columns), and field of view (x, y) [m], of the header's reconSpace.

    Raises
    ------
    ValueError
        One of them is missing or beyond limits.
    """
    space = encoding.reconSpace
    if getattr(space, "matrixSize", None) is None:
        raise ValueError("the header's encoding has no reconSpace with a matrixSize")
    columns, rows = (checked_size(f"reconSpace.matrixSize.{n}", getattr(space.matrixSize, n)) for n in "xy")
    fov = (1e-3 * extent(space.fieldOfView_mm, "x"), 1e-3 * extent(space.fieldOfView_mm, "y"))
    if not all(fov):
        raise ValueError("reconSpace has no fieldOfView_mm: without it the size of the pixels is not known")
    return (rows, columns), fov
