"""Cartesian reconstruction at its simplest: Fourier transform, root sum of squares, oversampling removed.

Send raw data with config ``simplefft``. One magnitude image comes back for each repetition, slice, contrast, set and
cardiac phase, as soon as the repetition is complete. Several averages are averaged, undersampled and partial Fourier
data are zero-filled. A scan whose header does not call it Cartesian, such as EPI, is refused: its image would be wrong.
"""

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cartesian
import coils
import constants
import mrdhelper

logger = logging.getLogger(__name__)


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct Cartesian raw data and send the images.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: there is nothing to set.
    metadata
        The MRD header.
    """
    warn = functools.partial(connection.send_logging, constants.MRD_LOGGING_WARNING)
    bits = mrdhelper.bits_stored(metadata)
    maximum = 0.0  # one scale for the whole series, from the first repetition that is not empty
    index = 0
    for planes in cartesian.sort_repetitions(connection, metadata, warn):
        images = [reconstruct(plane) for plane in planes]
        brightest = max(mrdhelper.largest_magnitude(image) for image in images)
        maximum = maximum or brightest
        if brightest > 1.1 * maximum:
            warn(f"an image is {brightest / maximum:.2f} times as bright as the first ones: its brightest pixels clip")
        for plane, image in zip(planes, images, strict=True):
            for head, pixels in zip(plane.heads, mrdhelper.scale_to_int16(image, bits, maximum), strict=True):
                index += 1
                connection.send_image(
                    mrdhelper.build_image(pixels, head, metadata, index=index, field_of_view=plane.field_of_view)
                )
    if index == 0:
        warn("there were no imaging readouts, so there is no image")
    logger.info("sent %d images", index)


def reconstruct(plane: cartesian.KSpacePlane) -> NDArray[np.float32]:
    """Reconstruct one plane to magnitude images [phase, row, column]."""
    image = cartesian.to_image(plane)  # [channel, row, column, phase]
    return np.moveaxis(coils.rssq(image), -1, 0)
