"""Fallback images when a reconstruction fails: simple images of the data, to show that data came in.

While a session has sent no image yet, the newest of its messages are kept, bounded in bytes. When its module fails, the
client gets the error, and then images of the kept messages: by the module's own ``fallback(items, metadata)``, or else

- of images: the images as they came;
- of readouts of a sequence whose metafile or Pulseq file is found, or of a scan that is not Cartesian and whose
  readouts carry their trajectory: per slice, contrast and set the root sum of squares of the density-weighted gridding
  of all arms;
- of Cartesian readouts: the root sum of squares of the Fourier transform of the lines that came.

They are marked in their attributes, and have series of their own.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

import mrdhelper
from mrdio.codec import MrdError
from recon.mrdencoding import encoding_of, is_imaging

logger = logging.getLogger(__name__)

# Memory of a message besides its arrays: measured 0.9 kB for a readout, and a place in the queue [bytes].
OVERHEAD = 1024

SERIES = 900  # added to the series of fallback images
LARGEST_SERIES = 0xFFFF
LONGEST_TIME = 60.0  # after which no further fallback image is begun [s]

OwnFallback = Callable[[Any, Any], Any]


class Kept:
    """The newest messages of a session: references to readouts and waveforms, copies of images.

    Iterate over it for the messages, oldest first. (Modules change images in place; what some of them do to readouts,
    such as a taper, does no harm.)

    Parameters
    ----------
    limit : int
        How much is kept at most [bytes]; a message that is larger is not kept at all.

    Attributes
    ----------
    taken : int
        How many messages there have been.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Any, int]] = deque()
        self._size = 0
        self.taken = 0
        # Of imaging readouts that are no longer kept: counter of the first, and how many; others behind the first.
        self._first_counter: int | None = None
        self._imaging = self._others = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return (item for item, _ in self._items)

    def add(self, item: Any) -> None:
        """Keep a readout, waveform or image, and drop the oldest ones above the limit."""
        self.taken += 1
        size = item.data.nbytes + OVERHEAD
        if isinstance(item, ismrmrd.Acquisition):
            size += item.traj.nbytes
        elif isinstance(item, ismrmrd.Image):
            size += sum(len(key) + len(str(value)) for key, value in item.meta.items())
            if size <= self._limit:
                item = _copy_of(item)
        self._items.append((item, size))
        self._size += size
        while self._size > self._limit:
            self._forget()

    def _forget(self) -> None:
        item, size = self._items.popleft()
        self._size -= size
        if isinstance(item, ismrmrd.Acquisition):
            if is_imaging(item):
                self._imaging += 1
                if self._first_counter is None:
                    self._first_counter = item.scan_counter
            elif self._imaging:
                self._others += 1

    @property
    def arms_before(self) -> int:
        """Number of imaging readouts before the first that is kept, lost ones counted where counters tell."""
        counters = (each.scan_counter for each in self if isinstance(each, ismrmrd.Acquisition) and is_imaging(each))
        first = next(counters, None)
        if first is None or self._first_counter is None:
            return 0
        return max(first - self._first_counter - self._others, self._imaging)


def _copy_of(image: ismrmrd.Image) -> ismrmrd.Image:
    meta = ismrmrd.Meta({key: list(value) if isinstance(value, list) else value for key, value in image.meta.items()})
    return ismrmrd.Image(head=image.getHead(), data=image.data.copy(), meta=meta)


# ---- sending -------------------------------------------------------------------------------------------------------


def send(connection: Any, kept: Kept, metadata: Any, reason: str, own: OwnFallback | None = None) -> int:
    """Send simple images in place of those that a module did not make, and tell the client that they are.

    Errors here are logged, and told to the client in one line.

    Parameters
    ----------
    connection : Connection
        Of the session.
    kept : Kept
        Messages that came in.
    metadata : ismrmrd.xsd.ismrmrdHeader or str
        The header.
    reason : str
        Why the images are needed, in one line.
    own : callable, optional
        The module's own ``fallback(items, metadata)``, which returns or yields images. When it fails before its first
        image, the general ways follow.

    Returns
    -------
    int
        How many images were sent.
    """
    if not kept.taken:
        return 0
    ways: list[Callable[[Kept, Any], tuple[str, Any]]] = [by_content]
    if own is not None:
        ways.insert(0, lambda items, header: ("made by the module's own fallback", own(items, header)))
    sent = 0
    for way in ways:
        try:
            how, images = way(kept, metadata)
            end = time.monotonic() + LONGEST_TIME
            for image in _listed(images):
                if time.monotonic() > end:
                    how += f", no more of them after {LONGEST_TIME:g} s"
                    break
                connection.send_image(marked(image, how, reason))
                sent += 1
        except MrdError as error:
            logger.warning("The client could not be sent fallback images: %s", error)
            break
        except BaseException as error:
            logger.debug("A fallback failed", exc_info=error)
            _tell(connection, f"no fallback image could be made: {type(error).__name__}: {error}")
        else:
            if sent:
                _tell(connection, f"{sent} fallback image(s), {how}: not what was asked for, since {reason}")
        if sent:
            break
    return sent


def _listed(images: Any) -> Iterable[ismrmrd.Image]:
    """Iterate over what a module's fallback returns: images, one of them, or None."""
    if images is None:
        return ()
    return (image for image in ([images] if isinstance(images, ismrmrd.Image) else images) if image is not None)


def _tell(connection: Any, text: str) -> None:
    try:
        connection.warn(text.partition("\n")[0])
    except MrdError as error:
        logger.debug("The client could not be told: %s", error)


def marked(image: ismrmrd.Image, how: str, reason: str) -> ismrmrd.Image:
    """Mark an image as a fallback: in its attributes and by its series.

    Parameters
    ----------
    image
        Changed in place; its pixels stay as they are.
    how
        How it was made.
    reason
        Why.
    """
    image.image_series_index = min(SERIES + image.image_series_index, LARGEST_SERIES)
    meta = image.meta
    meta["Fallback"] = reason
    meta["ImageComment"] = "; ".join([f"FALLBACK IMAGE, {how}: {reason}", *mrdhelper.meta_values(meta, "ImageComment")])
    for key in ("ImageProcessingHistory", "SequenceDescriptionAdditional"):
        mrdhelper.append_to_meta(meta, key, "FALLBACK")
    meta["Keep_image_geometry"] = "1"
    return image


# ---- making --------------------------------------------------------------------------------------------------------


def by_content(kept: Kept, metadata: Any) -> tuple[str, Iterator[ismrmrd.Image]]:
    """Make images of the kept messages; returns the method, in words, and the images.

    Raises
    ------
    ValueError
        No image can be made of them; says why.
    """
    from recon import trajectory, trajectorysources
    from recon.readouttrajectory import carries_trajectory

    images = [item for item in kept if isinstance(item, ismrmrd.Image)]
    if images:
        return "as it came", iter(images)
    count = sum(isinstance(item, ismrmrd.Acquisition) and is_imaging(item, metadata) for item in kept)
    if not count:
        raise ValueError(f"none of the {kept.taken} messages that came is an imaging readout, or small enough to keep")
    of = f"of the last {count} readouts" if len(kept) < kept.taken else f"of {count} readouts"
    folders = metafile_folders()
    try:
        trajectorysources.find(metadata, folders)
    except trajectory.TrajectoryError as not_found:
        try:
            encoding_of(metadata, 0)
        except ValueError as error:
            if not any(carries_trajectory(item) for item in kept if isinstance(item, ismrmrd.Acquisition)):
                raise ValueError(f"{error}; {not_found}; the readouts carry no trajectory") from None
        else:
            return f"root sum of squares of the Fourier transform {of}", transformed(kept, metadata)
    return f"plain gridding {of}", gridded(kept, metadata, folders)


def metafile_folders() -> tuple[Path, ...]:
    """Folders in which any reconstruction looks for metafiles."""
    from recon import configuration, trajectory

    folders: list[Path] = []
    spirals = configuration.SpiralConfig.__subclasses__()
    others = [each for each in configuration.MetafileConfig.__subclasses__() if hasattr(each, "FILE")]
    for settings in (*spirals, *others):
        try:
            folders += configuration.load(settings).metafile_paths
        except configuration.ConfigurationError as error:  # perhaps what made the module fail
            logger.debug("Not asked for folders: %s", error)
    return tuple(dict.fromkeys([*folders, *trajectory.DEFAULT_FOLDERS]))


def gridded(kept: Kept, metadata: Any, folders: tuple[Path, ...]) -> Iterator[ismrmrd.Image]:
    """One image per slice, contrast and set: all its arms, density-weighted and gridded, and the root sum of squares.

    Of a slice whose orientation changes, the newest orientation counts. Repetitions are one image: each alone may have
    too few arms for one.
    """
    import coils
    from recon import noncartesian

    to_pixels = mrdhelper.SeriesScale(metadata, logger.debug)
    usable = _usable(kept, metadata, lambda each: each.data.shape)
    for each in usable:
        each.idx.repetition = 0
    index = 0
    for slabs in noncartesian.sort_repetitions(
        usable, metadata, folders, logger.debug, logger.debug, first_arm=kept.arms_before
    ):
        for slab in slabs:
            for head, pixels in zip(slab.image_heads, coils.rssq(noncartesian.to_image(slab)), strict=True):
                index += 1
                yield mrdhelper.build_image(
                    to_pixels(pixels), head, metadata, index=index, field_of_view=slab.field_of_view
                )


def transformed(kept: Kept, metadata: Any) -> Iterator[ismrmrd.Image]:
    """Root sum of squares of the Fourier transform of each plane, on one scale; samples that are no numbers are 0."""
    import coils
    from recon import cartesian

    to_pixels = mrdhelper.SeriesScale(metadata, logger.debug)
    index = 0
    usable = _usable(kept, metadata, lambda each: each.data.shape[0])
    for each in usable:
        np.nan_to_num(each.data, copy=False, nan=0, posinf=0, neginf=0)
    for plane in cartesian.sort_readouts(usable, metadata, logger.debug):
        magnitude = coils.rssq(cartesian.to_image(plane))  # [row, column, phase]
        for phase, head in enumerate(plane.heads):
            index += 1
            yield mrdhelper.build_image(
                to_pixels(magnitude[..., phase]), head, metadata, index=index, field_of_view=plane.field_of_view
            )


def _usable(kept: Kept, metadata: Any, shape: Callable[[ismrmrd.Acquisition], Any]) -> list[ismrmrd.Acquisition]:
    """Readouts without those imaging ones that are unlike most: one of them may be what made the module fail.

    Zeros in place of a position or direction that is no number say that it is not known.
    """
    readouts = [item for item in kept if isinstance(item, ismrmrd.Acquisition)]
    most_common, _ = Counter(shape(each) for each in readouts if is_imaging(each, metadata)).most_common(1)[0]
    usable = [each for each in readouts if not is_imaging(each, metadata) or shape(each) == most_common]
    for each in usable:
        for field in mrdhelper.broken_geometry(each):
            setattr(each, field, (0, 0, 0))
    return usable
