"""Non-Cartesian reconstruction at its simplest: gridding of all arms, coils combined. Spirals, radial scans, rosettes.

Send raw data with config ``simplenufft``. One magnitude image comes back for each repetition, slice, contrast, set and
cardiac phase, as soon as the repetition is complete, or at the end of the scan; one for each partition of a 3-D stack.
The trajectory is that of the sequence's metafile or Pulseq file, or else the one that the readouts carry, as it was
designed, without a gradient response. Settings: ``configs/simplenufft_config.toml``, read for each scan.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import coils
import mrdhelper
from connection import Connection
from recon import configuration, noise, noncartesian, nufft
from recon.configuration import FieldSettings, MetafileConfig, parameter
from recon.fieldcorrection import FieldCorrection
from recon.fieldsources import open_correction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NufftReconstruction(FieldSettings):
    """Table [reconstruction]."""

    coil_combine: str = parameter(
        "adaptive",
        "adaptive: by coil maps from each image itself (Inati); rssq: root sum of squares.",
        choices=("adaptive", "rssq"),
    )
    prewhiten: str = parameter(
        "auto",
        "auto: whiten readouts (equal, uncorrelated noise of all coils) where the noise is known; off: leave them.",
        choices=("auto", "off"),
    )


@dataclass(frozen=True)
class NufftConfig(MetafileConfig):
    """Configuration of `simplenufft`."""

    FILE: ClassVar[str] = "configs/simplenufft_config.toml"

    reconstruction: NufftReconstruction = field(default_factory=NufftReconstruction)


def prepare(config: Any, metadata: Any) -> None:
    """Do what can be done before the first readout comes: read the trajectory, compile."""
    noncartesian.find_source(metadata, configuration.load(NufftConfig).metafile_paths)
    nufft.warm_up()


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct non-Cartesian raw data and send the images.

    Parameters
    ----------
    connection
        Yields the readouts, sends the images.
    config
        Not used: the settings are in the configuration file.
    metadata
        The MRD header.
    """
    settings = configuration.load(NufftConfig)
    fields = open_correction(settings.reconstruction, metadata, connection, settings.metafile_paths)
    to_pixels = mrdhelper.SeriesScale(metadata, connection.warn)
    readouts = noise.prewhiten(
        connection, metadata, settings.reconstruction.prewhiten, connection.info, connection.warn, connection.dependency
    )
    index = 0
    for slabs in noncartesian.sort_repetitions(
        readouts, metadata, settings.metafile_paths, connection.info, connection.warn
    ):
        images = [reconstruct(slab, settings.reconstruction.coil_combine, fields) for slab in slabs]
        to_pixels.see(*images)
        for slab, partitions in zip(slabs, images, strict=True):
            for head, pixels in zip(slab.image_heads, map(to_pixels, partitions), strict=True):
                index += 1
                connection.send_image(
                    mrdhelper.build_image(pixels, head, metadata, index=index, field_of_view=slab.field_of_view)
                )
    if index == 0:
        connection.warn("there were no imaging readouts, so there is no image")
    logger.info("sent %d images", index)


def reconstruct(
    slab: noncartesian.Slab, coil_combine: str, fields: FieldCorrection | None = None
) -> NDArray[np.float32]:
    """Reconstruct one slice or slab to magnitude images [partition, row, column]."""
    image = noncartesian.to_image(slab, fields)  # [coil, partition, row, column]
    if coil_combine == "rssq":
        return coils.rssq(image)
    _, combined = coils.inati(image)
    return np.abs(combined)
