"""Cartesian reconstruction at its simplest: Fourier transform, root sum of squares, oversampling removed.

Send raw data with config ``simplefft``. One magnitude image comes back for each repetition, slice, contrast, set and
cardiac phase, as soon as the repetition is complete. Several averages are averaged, undersampled and partial Fourier
data are zero-filled. A scan whose header does not call it Cartesian, such as EPI, is refused: its image would be wrong.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coils
import mrdhelper
from connection import Connection
from recon import cartesian

logger = logging.getLogger(__name__)


def process(connection: Connection, config: Any, metadata: Any) -> None:
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
    to_pixels = mrdhelper.SeriesScale(metadata, connection.warn, headroom=1.0)
    index = 0
    for planes in cartesian.sort_repetitions(connection, metadata, connection.warn):
        images = [reconstruct(plane) for plane in planes]
        to_pixels.see(*images)
        for plane, phases in zip(planes, images, strict=True):
            for head, pixels in zip(plane.heads, map(to_pixels, phases), strict=True):
                index += 1
                connection.send_image(
                    mrdhelper.build_image(pixels, head, metadata, index=index, field_of_view=plane.field_of_view)
                )
    if index == 0:
        connection.warn("there were no imaging readouts, so there is no image")
    logger.info("sent %d images", index)


def reconstruct(plane: cartesian.KSpacePlane) -> NDArray[np.float32]:
    """Reconstruct one plane to magnitude images [phase, row, column]."""
    image = cartesian.to_image(plane)  # [channel, row, column, phase]
    return np.moveaxis(coils.rssq(image), -1, 0)
