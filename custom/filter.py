"""Example of a module that lives outside the server's folder: magnitude images come back median-filtered.

``python main.py -M custom`` serves it from here. A client that is started in this folder sends ``filter.json`` along,
which sets the filter's window.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np

import coils
import mrdhelper
from recon import cartesian
from recon.configuration import ConfigurationError, parameter
from recon.moduleparameters import read_parameters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """Parameters that a client may set."""

    windowSize: int = parameter(
        3, "Side of the square whose median is taken; odd, so that it has a middle.", "px", minimum=1, maximum=31
    )

    def __post_init__(self) -> None:
        """Check what a range cannot say."""
        if self.windowSize % 2 == 0:
            raise ConfigurationError(f"JSON parameters: windowSize = {self.windowSize}: must be an odd number")


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Filter all magnitude images that come in, as images or as Cartesian raw data; other images pass through.

    Parameters
    ----------
    connection
        Yields readouts and images, sends images.
    config
        The config name, or the JSON object with the `Parameters`.
    metadata
        The MRD header.
    """
    window = read_parameters(Parameters, config).windowSize
    readouts = []
    images = 0
    for item in connection:
        if isinstance(item, ismrmrd.Acquisition):
            readouts.append(item)
        elif isinstance(item, ismrmrd.Image):
            is_magnitude = item.image_type in (0, ismrmrd.IMTYPE_MAGNITUDE) and not np.iscomplexobj(item.data)
            connection.send_image(filter_image(item, window) if is_magnitude else item)
            images += 1
    if not (readouts or images):
        connection.warn("there were no readouts and no images, so there is no image")
    for image in reconstruct(readouts, metadata, connection.warn):
        connection.send_image(filter_image(image, window))


def filter_image(image: ismrmrd.Image, window: int) -> ismrmrd.Image:
    """Replace each pixel by the median of the `window` x `window` pixels around it, within its slice and channel."""
    from scipy.ndimage import median_filter

    # Beyond the edge, the pixels at the edge go on.
    pixels = median_filter(image.data, size=(1, 1, window, window), mode="nearest")
    head, meta = image.getHead(), ismrmrd.Meta(image.meta)
    mrdhelper.append_to_meta(meta, "ImageProcessingHistory", "MEDIAN")
    meta["SequenceDescriptionAdditional"] = f"Median{window}"
    meta["Keep_image_geometry"] = "1"
    mrdhelper.set_image_directions(meta, head)
    return ismrmrd.Image(head=head, data=pixels, meta=meta)


def reconstruct(readouts: list[Any], metadata: Any, warn: Callable[[str], None]) -> Iterator[ismrmrd.Image]:
    """Yield magnitude images of Cartesian readouts, scaled together."""
    planes = list(cartesian.sort_readouts(readouts, metadata, warn)) if readouts else []
    magnitudes = [coils.rssq(cartesian.to_image(plane)) for plane in planes]  # [row, column, phase]
    bits = mrdhelper.bits_stored(metadata)
    largest = max(map(mrdhelper.largest_magnitude, magnitudes), default=0)
    index = 0
    for plane, magnitude in zip(planes, magnitudes, strict=True):
        for phase, head in enumerate(plane.heads):
            index += 1
            pixels = mrdhelper.scale_to_int16(magnitude[..., phase], bits, largest)
            yield mrdhelper.build_image(pixels, head, metadata, index=index, field_of_view=plane.field_of_view)
