"""Velocity images from phase contrast images: phase becomes velocity, and where there is only noise, zero.

Send the magnitude and phase images of a flow scan, in any order. Magnitude images come back as they are. For each phase
image that has a magnitude image, a velocity image comes back, in a series of its own: int16 pixels from -4096 to 4096,
which RescaleSlope in the meta attributes turns into velocity [cm/s].
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from connection import Connection
from recon.configuration import parameter
from recon.moduleparameters import read_parameters

logger = logging.getLogger(__name__)

VENC_PIXEL = 4096  # pixel value of a velocity of venc: twice the steps of a 12-bit phase image
VELOCITY_SERIES_OFFSET = 100  # velocities go to a series of their own, this much after that of the phase images
VENC_NAMES = ("Venc", "VENC", "venc", "FlowVenc")  # names of meta attributes and user parameters, the first found wins


@dataclass(frozen=True)
class Parameters:
    """Parameters that a client may set."""

    maskThreshold: float = parameter(
        0.1, "Velocity is zero where the magnitude is below this fraction of the largest.", minimum=0, maximum=1
    )
    venc: float = parameter(
        0.0, "Velocity of a phase of 180 degrees; 0: the one that the images carry.", "cm/s", minimum=0, maximum=10000
    )


class FlowError(ValueError):
    """A phase image that cannot be turned into velocity; the message says why."""


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Turn phase images into masked velocity images.

    Parameters
    ----------
    connection
        Yields images, sends images.
    config
        The config name, or the JSON object with the `Parameters`.
    metadata
        The MRD header; its user parameters may hold BitsStored and the venc [cm/s].
    """
    parameters = read_parameters(Parameters, config)
    magnitudes: list[ismrmrd.Image] = []
    phases: list[ismrmrd.Image] = []
    readouts = 0
    for item in connection:
        if isinstance(item, ismrmrd.Acquisition):
            readouts += 1
        elif isinstance(item, ismrmrd.Image) and item.image_type == ismrmrd.IMTYPE_PHASE:
            phases.append(item)
        elif isinstance(item, ismrmrd.Image):
            connection.send_image(item)
            if item.image_type in (0, ismrmrd.IMTYPE_MAGNITUDE):
                magnitudes.append(item)
    if readouts:
        connection.warn(f"{readouts} readouts are ignored: analyzeflow takes images")
    if not phases:
        connection.warn("there were no phase images, so there is no velocity")
    for image in velocity_images(phases, magnitudes, parameters, metadata, connection.warn):
        connection.send_image(image)


def velocity_images(
    phases: Sequence[ismrmrd.Image],
    magnitudes: Sequence[ismrmrd.Image],
    parameters: Parameters,
    metadata: Any,
    warn: Callable[[str], None],
) -> Iterator[ismrmrd.Image]:
    """Yield one image for each phase image, in the same order: its velocity, or itself where that cannot be had."""
    bits = mrdhelper.bits_stored(metadata)
    largest: dict[int, float] = {}  # by series, because a scanner scales each on its own
    for image in magnitudes:
        series = image.image_series_index
        largest[series] = max(largest.get(series, 0.0), mrdhelper.largest_magnitude(image.data))
    problems: Counter[str] = Counter()
    for phase, magnitude in zip(phases, find_magnitudes(phases, magnitudes), strict=True):
        try:
            if magnitude is None:
                raise FlowError("no magnitude image belongs to it")
            velocity = to_velocity(phase.data, phase.meta, bits)
        except FlowError as error:
            problems[f"sent back unchanged: {error}"] += 1
            yield phase
            continue
        threshold = parameters.maskThreshold * largest[magnitude.image_series_index]
        venc = parameters.venc or find_venc(phase.meta, metadata)
        if venc is None:
            problems["without venc: its velocity is in units of the unknown venc, not in cm/s"] += 1
        yield build_velocity_image(mask(velocity, magnitude.data, threshold), phase, venc)
    for problem, count in problems.items():
        warn(f"{count} of {len(phases)} phase images {problem}")


def find_magnitudes(phases: Sequence[ismrmrd.Image], magnitudes: Sequence[ismrmrd.Image]) -> list[ismrmrd.Image | None]:
    """Find the magnitude image that belongs to each phase image.

    Both show the same slice, cardiac phase, repetition, average and contrast at the same place, in the same size. One
    magnitude image may serve several encoding directions. Where there are several, the counter ``set`` tells them
    apart, or else their order.

    Returns
    -------
    One magnitude image for each of `phases`, None where none can be told to belong to it.
    """
    places: dict[Any, tuple[list[ismrmrd.Image], list[ismrmrd.Image]]] = {}
    for kind, images in enumerate((phases, magnitudes)):
        for image in images:
            places.setdefault(_place(image), ([], []))[kind].append(image)
    found: dict[int, ismrmrd.Image] = {}
    for here, candidates in places.values():
        sets = Counter(candidate.set for candidate in candidates)
        if len(candidates) == 1:
            pairs = [(phase, candidates[0]) for phase in here]
        elif all(sets[phase.set] == 1 for phase in here):
            by_set = {candidate.set: candidate for candidate in candidates}
            pairs = [(phase, by_set[phase.set]) for phase in here]
        elif len(here) == len(candidates):
            pairs = list(zip(sorted(here, key=_order), sorted(candidates, key=_order), strict=True))
        else:
            pairs = []
        found.update((id(phase), magnitude) for phase, magnitude in pairs)
    return [found.get(id(phase)) for phase in phases]


def _place(image: ismrmrd.Image) -> tuple[Any, ...]:
    position = tuple(round(coordinate, 2) for coordinate in image.position)  # [mm]
    counters = (image.slice, image.phase, image.repetition, image.average, image.contrast)
    return (image.data.shape, position, counters)


def _order(image: ismrmrd.Image) -> tuple[int, ...]:
    return (image.image_series_index, image.set, image.image_index)


def to_velocity(pixels: NDArray[Any], meta: Mapping[str, Any], bits: int) -> NDArray[np.float64]:
    """Read the pixels of a phase image as velocity in units of venc.

    Floating-point pixels are radians. Integers are what RescaleSlope and RescaleIntercept make of them, if there are
    both and they place zero in the middle; else `bits` bits cover one turn, with zero in the middle: 0 to 4095 with
    2048 for zero when unsigned, as scanners send them, -2048 to 2047 when signed.

    Parameters
    ----------
    pixels
        Pixels of any shape.
    meta
        Meta attributes of the image.
    bits
        Bits that integer pixels use.

    Returns
    -------
    Velocity of the same shape, from -1 to 1; 0 where a pixel is not finite.

    Raises
    ------
    FlowError
        When the pixels are complex, or outside the range.
    """
    if np.iscomplexobj(pixels):
        raise FlowError("its pixels are complex, so they are no phase")
    slope, intercept = _number(meta.get("RescaleSlope")), _number(meta.get("RescaleIntercept"))
    if slope is not None and intercept is not None and slope > 0 > intercept:
        half = zero = -intercept / slope
    elif np.issubdtype(pixels.dtype, np.floating):
        half, zero = math.pi, 0.0
    else:
        half = 2.0 ** (bits - 1)
        zero = half if np.issubdtype(pixels.dtype, np.unsignedinteger) else 0.0
    velocity = np.nan_to_num((pixels.astype(np.float64) - zero) / half, nan=0.0, posinf=0.0, neginf=0.0)
    if np.max(np.abs(velocity), initial=0) > 1.001:
        raise FlowError(f"its pixels are outside {zero - half:.5g} to {zero + half:.5g}, the range of its phase")
    return np.clip(velocity, -1, 1)


def mask(velocity: NDArray[np.float64], magnitude: NDArray[Any], threshold: float) -> NDArray[np.float64]:
    """Set velocity to zero where the magnitude, of the same shape, is below a threshold or not finite."""
    return np.where(np.isfinite(magnitude) & (magnitude >= threshold), velocity, 0.0)


def find_venc(meta: Mapping[str, Any], metadata: Any) -> float | None:
    """Velocity of a phase of pi [cm/s], from an image's meta attributes or the header; None when neither says."""
    values = [meta.get(name) for name in VENC_NAMES]
    for name in VENC_NAMES:
        values += [
            mrdhelper.get_userParameterDouble_value(metadata, name),
            mrdhelper.get_userParameterLong_value(metadata, name),
        ]
    numbers = (_number(value) for value in values)
    return next((number for number in numbers if number is not None and number > 0), None)


def _number(value: Any) -> float | None:
    """Finite number of a meta attribute; None when it is absent, a list, or no number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def build_velocity_image(velocity: NDArray[np.float64], phase: ismrmrd.Image, venc: float | None) -> ismrmrd.Image:
    """Build the image to send: velocity in units of venc [channel, z, row, column], header of the phase image."""
    head, meta = phase.getHead(), ismrmrd.Meta(phase.meta)
    head.image_series_index = (head.image_series_index + VELOCITY_SERIES_OFFSET) % 2**16
    unit = "venc" if venc is None else "cm/s"
    slope = (venc or 1.0) / VENC_PIXEL
    meta["DataRole"] = "Image"
    mrdhelper.append_to_meta(meta, "ImageProcessingHistory", "VELOCITY")
    meta["SequenceDescriptionAdditional"] = "Velocity"
    meta["ImageComment"] = f"velocity = pixel * {slope:.6g} {unit}"
    meta["Keep_image_geometry"] = "1"
    meta["RescaleSlope"], meta["RescaleIntercept"], meta["VelocityUnit"] = repr(slope), "0", unit
    meta["WindowCenter"], meta["WindowWidth"] = "0", str(2 * VENC_PIXEL)
    if venc is not None:
        meta["Venc"] = repr(venc)
    mrdhelper.set_image_directions(meta, head)
    pixels = np.rint(velocity * VENC_PIXEL).astype(np.int16)
    return ismrmrd.Image(head=head, data=np.ascontiguousarray(pixels), meta=meta)
