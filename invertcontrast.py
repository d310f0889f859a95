"""Example module for raw data and for images: images come back with their contrast inverted.

Copy this file to begin a module of your own. `process_raw` is the place for a filter in k-space, `process_image` the
place for one on images.
"""

import base64
import logging
import tempfile
from typing import Any

import ismrmrd
import numpy as np
import numpy.fft as fft
from numpy.typing import NDArray

import coils
import mrdhelper
from connection import Connection
from recon import cartesian

logger = logging.getLogger(__name__)

# A place for arrays that you want to look at while you develop a copy of this module, for example
# np.save(debugFolder + "/" + "kspace.npy", data). This module itself writes nothing there.
debugFolder = tempfile.gettempdir()

OPTIONS = ("", "roi", "colormap", "rgb", "complex")
ORIGINAL_SERIES_OFFSET = 99  # originals go to a series of their own, this much after that of the inverted images


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Invert the contrast of all images that come in, as raw data or as images.

    Parameters
    ----------
    connection
        Yields readouts and images, sends the images.
    config
        The config name, or the JSON object with ``parameters``: ``options`` ('roi' adds a region of interest,
        'colormap' a colour table, 'rgb' makes colour images, 'complex' returns complex images without inversion) and
        ``sendOriginal`` (true: the images come back without inversion, too).
    metadata
        The MRD header.
    """
    acqGroup: list[ismrmrd.Acquisition] = []
    imgGroups: dict[int, list[ismrmrd.Image]] = {}  # by series
    empty = True
    for item in connection:
        empty = False
        if isinstance(item, ismrmrd.Acquisition):
            acqGroup.append(item)
        elif isinstance(item, ismrmrd.Image):
            if item.image_type not in (0, ismrmrd.IMTYPE_MAGNITUDE):
                connection.send_image(item)  # a phase or a complex image has no contrast to invert
                continue
            imgGroups.setdefault(item.image_series_index, []).append(item)
            if mrdhelper.extract_minihead_bool_param(mini_header(item), "BIsSeriesEnd"):
                connection.send_image(
                    process_image(imgGroups.pop(item.image_series_index), connection, config, metadata)
                )
    if acqGroup:
        connection.send_image(process_raw(acqGroup, connection, config, metadata))
    for imgGroup in imgGroups.values():
        connection.send_image(process_image(imgGroup, connection, config, metadata))
    if empty:
        connection.warn("there were no readouts and no images, so there is no image")


def process_raw(acqGroup: list[Any], connection: Connection, config: Any, metadata: Any) -> list[ismrmrd.Image]:
    """Reconstruct Cartesian readouts, and hand the images to `process_image`.

    Parameters
    ----------
    acqGroup
        The readouts of the scan; those that are none of imaging are left out.
    connection
        For warnings to the client.
    config, metadata
        As in `process`.

    Returns
    -------
    Images, ready to be sent.
    """
    wantComplex = get_option(config) == "complex"
    reconstructed = []  # (pixels [channel, row, column], header, field of view)
    data: NDArray[Any]
    for plane in cartesian.sort_readouts(acqGroup, metadata, connection.warn):
        # k-space, sorted into a Cartesian grid [channel, phase encode, readout, phase]
        data = plane.kspace

        # Fourier transform
        data = fft.ifftshift(data, axes=(1, 2))
        data = fft.ifft2(data, axes=(1, 2))
        data = fft.fftshift(data, axes=(1, 2))

        # Pixel size and orientation of the scanner, oversampling removed
        data = cartesian.to_recon_space(data, plane)

        # Coils are kept apart where the phase matters
        data = data if wantComplex else coils.rssq(data)[np.newaxis]
        for iPhase, head in enumerate(plane.heads):
            reconstructed.append((data[..., iPhase], head, plane.field_of_view))

    if not reconstructed:
        connection.warn("there were no imaging readouts, so there is no image")
        return []

    bits = mrdhelper.bits_stored(metadata)
    maximum = max(mrdhelper.largest_magnitude(pixels) for pixels, _, _ in reconstructed)
    imgGroup = []
    for index, (pixels, head, field_of_view) in enumerate(reconstructed, start=1):
        pixels = pixels.astype(np.complex64) if wantComplex else mrdhelper.scale_to_int16(pixels, bits, maximum)
        imgGroup.append(
            mrdhelper.build_image(pixels[:, np.newaxis], head, metadata, index=index, field_of_view=field_of_view)
        )
    return process_image(imgGroup, connection, config, metadata)


def process_image(
    imgGroup: list[ismrmrd.Image], connection: Connection, config: Any, metadata: Any
) -> list[ismrmrd.Image]:
    """Invert the contrast of the images of one series.

    Parameters
    ----------
    imgGroup
        The images. Those of one size are scaled together.
    connection
        Not used here, but a copy of this module may want to talk to the client.
    config, metadata
        As in `process`.

    Returns
    -------
    Images, ready to be sent.
    """
    groups = group_by_size(imgGroup)
    if len(groups) != 1:
        return [image for group in groups for image in process_image(group, connection, config, metadata)]

    option = get_option(config)
    originals = []
    if mrdhelper.get_json_config_param(config, "sendOriginal", default=False, type="bool"):
        originals = [original_image(image) for image in imgGroup]
    if option == "complex":
        return originals + [complex_image(image) for image in imgGroup]

    # Images as one array [row, column, z, channel, image]
    data = np.stack([image.data for image in imgGroup], axis=-1).transpose((2, 3, 1, 0, 4))
    data = np.abs(data * 1.0)

    # Largest pixel value
    bits = mrdhelper.bits_stored(metadata)
    maxVal = mrdhelper.largest_pixel(bits)

    # Normalize and convert to int16
    data = mrdhelper.scale_to_int16(data, bits)

    # Invert image contrast
    data = maxVal - data
    data = data.astype(np.int16)

    images = []
    for iImg, image in enumerate(imgGroup):
        pixels = data[..., iImg].transpose((3, 2, 0, 1))  # [channel, z, row, column]
        head, meta = image.getHead(), ismrmrd.Meta(image.meta)
        head.image_type = ismrmrd.IMTYPE_MAGNITUDE
        meta["DataRole"] = "Image"
        mrdhelper.append_to_meta(meta, "ImageProcessingHistory", "INVERT")
        meta["SequenceDescriptionAdditional"] = "Inverted"
        meta["Keep_image_geometry"] = "1"
        mrdhelper.set_window(meta, bits)
        mrdhelper.set_image_directions(meta, head)
        if option == "roi":
            meta["ROI_example"] = example_roi(rows=pixels.shape[2], columns=pixels.shape[3])
        elif option == "colormap":
            meta["LUTFileName"] = "MicroDeltaHotMetal.pal"
        elif option == "rgb":
            pixels = to_rgb(pixels[0], maxVal)
            head.image_type = ismrmrd.IMTYPE_RGB
            meta["InternalSend"] = "1"  # colours are not for the scanner's image pipeline
            del meta["WindowCenter"], meta["WindowWidth"]
        images.append(ismrmrd.Image(head=head, data=np.ascontiguousarray(pixels), meta=meta))
    return originals + images


def get_option(config: Any) -> str:
    """Return what the client asks for in the JSON parameter ``options``."""
    option = mrdhelper.get_json_config_param(config, "options", default="", type="choice")
    if option not in OPTIONS:
        raise ValueError(f"JSON parameter 'options' is {option!r}; expected one of {OPTIONS}")
    return option


def group_by_size(imgGroup: list[ismrmrd.Image]) -> list[list[ismrmrd.Image]]:
    """Divide images into lists of the same size, each in the order of arrival."""
    groups: dict[tuple[int, ...], list[ismrmrd.Image]] = {}
    for image in imgGroup:
        groups.setdefault(image.data.shape, []).append(image)
    return list(groups.values())


def mini_header(image: ismrmrd.Image) -> str | None:
    """Return the vendor's mini header of an image as text, None where there is none."""
    encoded = mrdhelper.get_meta_value(image.meta, "IceMiniHead")
    if not isinstance(encoded, str):
        return None
    try:
        return base64.b64decode(encoded).decode("utf-8", errors="replace")
    except ValueError as error:
        logger.warning("the attribute IceMiniHead is no base64 text and is left unread: %s", error)
        return None


def original_image(image: ismrmrd.Image) -> ismrmrd.Image:
    """Copy an image as it is to the series of the originals."""
    head = image.getHead()
    head.image_series_index += ORIGINAL_SERIES_OFFSET
    meta = ismrmrd.Meta(image.meta)
    meta["Keep_image_geometry"] = "1"
    return ismrmrd.Image(head=head, data=image.data.copy(), meta=meta)


def complex_image(image: ismrmrd.Image) -> ismrmrd.Image:
    """Copy an image with complex pixels, without a window, which would mean nothing."""
    head = image.getHead()
    head.image_type = ismrmrd.IMTYPE_COMPLEX
    meta = ismrmrd.Meta({key: value for key, value in image.meta.items() if not key.startswith("Window")})
    meta["Keep_image_geometry"] = "1"
    mrdhelper.set_image_directions(meta, head)
    return ismrmrd.Image(head=head, data=image.data.astype(np.complex64), meta=meta)


def example_roi(rows: int, columns: int) -> list[str]:
    """Green square in the middle of an image, as the value of a meta attribute named ``ROI_*``."""
    half = min(rows, columns) / 8
    x = columns / 2 + half * np.array([-1, 1, 1, -1, -1])
    y = rows / 2 + half * np.array([-1, -1, 1, 1, -1])
    return mrdhelper.create_roi(x, y, rgb=(0, 1, 0), thickness=1, style=0, visibility=1)


def to_rgb(pixels: NDArray[Any], maxVal: int) -> NDArray[np.uint16]:
    """Colours of pixels from 0 to `maxVal` [z, row, column], as values from 0 to 255 [3, z, row, column]."""
    import matplotlib as mpl

    colours = mpl.colormaps["jet"](pixels / maxVal, bytes=True)[..., :3]
    return np.moveaxis(colours, -1, 0).astype(np.uint16)
