"""Header, metadata and attribute helpers, int16 scaling, and the one function that builds an output image."""

import base64
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdio.jsonparameters import ALLOWED, convert
from mrdio.overlays import create_roi as create_roi
from mrdio.overlays import create_text as create_text
from mrdio.overlays import parse_roi as parse_roi
from mrdio.overlays import parse_text as parse_text
from mrdio.pixeltypes import to_pixel_type
from mrdio.timestamps import SECONDS_PER_TICK as SECONDS_PER_TICK
from mrdio.timestamps import ticks_to_seconds as ticks_to_seconds

logger = logging.getLogger(__name__)

DEFAULT_BITS_STORED = 12
INT16_MAXIMUM = int(np.iinfo(np.int16).max)
_LONGEST_AXIS = 2**16 - 1  # sizes are 16-bit numbers in an image's header
HEADROOM = 1.5  # of a series' scale above its first images

_PLACE = ("position", "read_dir", "phase_dir", "slice_dir")
_GEOMETRY = (*_PLACE, "patient_table_position")
_STAMPS = ("measurement_uid", "acquisition_time_stamp", "physiology_time_stamp", "user_int", "user_float")
_COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")


# ------------------------------------------------------------------------------------------- the header's values
def _user_parameter(metadata: Any, group: str, name: str) -> Any:
    """Value of the user parameter `name` in `metadata.userParameters.<group>`, None where there is none."""
    parameters = getattr(getattr(metadata, "userParameters", None), group, None) or []
    return next((parameter.value for parameter in parameters if parameter.name == name), None)


def get_userParameterLong_value(metadata: Any, name: str) -> int | None:
    """Integer user parameter `name` of the MRD header; None when absent or when there is no valid header."""
    value = _user_parameter(metadata, "userParameterLong", name)
    return None if value is None else int(value)


def get_userParameterDouble_value(metadata: Any, name: str) -> float | None:
    """Floating-point user parameter `name` of the MRD header; None when absent or when there is no valid header."""
    value = _user_parameter(metadata, "userParameterDouble", name)
    return None if value is None else float(value)


def get_userParameterString_value(metadata: Any, name: str) -> str | None:
    """Text user parameter `name` of the MRD header; None when absent or when there is no valid header."""
    value = _user_parameter(metadata, "userParameterString", name)
    return None if value is None else str(value)


def get_userParameterBase64_value(metadata: Any, name: str) -> str | None:
    """Base64 user parameter `name`, decoded to text; None when absent or when there is no valid header."""
    value = _user_parameter(metadata, "userParameterBase64", name)
    if value is None:
        return None
    # The schema library may have decoded the element already.
    raw = value if isinstance(value, bytes) else base64.b64decode(value)
    return raw.decode("utf-8", errors="replace")


def bits_stored(metadata: Any) -> int:
    """Bits that an integer image pixel may use: the user parameter BitsStored, 12 when absent.

    Raises
    ------
    ValueError
        When the header's value is outside 1 to 16.
    """
    bits = get_userParameterLong_value(metadata, "BitsStored")
    if bits is None:
        return DEFAULT_BITS_STORED
    if not 1 <= bits <= 16:
        raise ValueError(f"user parameter BitsStored is {bits}; expected 1 to 16")
    return bits


def get_meta_value(meta: Mapping[str, Any] | None, key: str) -> Any:
    """Value of a meta attribute, None when it is absent."""
    return None if meta is None else meta.get(key)


# ------------------------------------------------------------------------------------------ the client's settings
_PARAMETER_TYPES: dict[str, type] = {
    "int": int, "float": float, "double": float, "str": str, "string": str, "choice": str,
    "bool": bool, "boolean": bool,
}  # fmt: skip


def get_json_config_param(config: Any, key: str, default: Any = None, type: str = "str") -> Any:
    """Read one parameter that the client sent along as JSON.

    Parameters
    ----------
    config
        Argument of `process`: the parsed JSON object, or the config name when the client sent no JSON.
    key
        Name below `config["parameters"]`.
    default
        Returned as it is when the parameter is absent.
    type
        'int', 'float'/'double', 'str'/'string'/'choice' or 'bool'/'boolean'.

    Raises
    ------
    ValueError
        When the type is unknown, or the value does not have that type; it names key, value and what is allowed.
    """
    if type not in _PARAMETER_TYPES:
        raise ValueError(f"parameter type {type!r} is not known; expected one of {', '.join(_PARAMETER_TYPES)}")
    parameters = config.get("parameters") if isinstance(config, Mapping) else None
    value = parameters.get(key) if isinstance(parameters, Mapping) else None
    if value is None:
        return default
    kind = _PARAMETER_TYPES[type]
    try:
        return convert(value, kind)
    except ValueError:
        raise ValueError(f"JSON parameter {key!r} is {value!r}; expected {ALLOWED[kind]}") from None


# ------------------------------------------------------------------------------- the vendor's serialised mini header
_PRECISION = r"(?:<Precision>\s*\d+\s+)?"


def _minihead_value(text: str | None, kind: str, name: str, pattern: str) -> str | None:
    """First group of ``<Param{kind}."{name}"> { pattern }``, None when absent."""
    match = re.search(rf'<Param{kind}\."{re.escape(name)}">\s*\{{\s*{pattern}\s*\}}', text or "")
    return match.group(1) if match else None


def extract_minihead_bool_param(text: str | None, name: str) -> bool:
    """Boolean parameter of the mini header text; False when absent."""
    return (_minihead_value(text, "Bool", name, r'"([A-Za-z]*)"') or "").lower() == "true"


def extract_minihead_long_param(text: str | None, name: str) -> int:
    """Integer parameter of the mini header text; 0 when absent."""
    return int(_minihead_value(text, "Long", name, r"([-+]?\d{1,20})") or 0)


def extract_minihead_double_param(text: str | None, name: str) -> float:
    """Floating-point parameter of the mini header text; 0.0 when absent."""
    number = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"
    return float(_minihead_value(text, "Double", name, _PRECISION + number) or 0.0)


def extract_minihead_string_param(text: str | None, name: str) -> str:
    """Text parameter of the mini header text; empty when absent. Doubled quotation marks mean one."""
    return (_minihead_value(text, "String", name, r'"((?:[^"]|"")*)"') or "").replace('""', '"')


def append_to_meta(meta: ismrmrd.Meta, key: str, *values: str) -> None:
    """Append to an attribute that holds one value or a list of them, such as ``ImageProcessingHistory``."""
    meta[key] = [*meta_values(meta, key), *values]


def meta_values(meta: Mapping[str, Any], key: str) -> list[str]:
    """Values of a meta attribute as a list of texts; empty when it is absent."""
    value = meta.get(key)
    values = value if isinstance(value, list) else [value]
    return [str(each) for each in values if each is not None]


# ------------------------------------------------------------------------------------------------------ geometry
def broken_geometry(head: Any) -> list[str]:
    """Names of the fields for position and direction cosines that hold NaN or infinity."""
    if math.isfinite(sum(map(sum, (head.position, head.read_dir, head.phase_dir, head.slice_dir)))):
        return []  # readouts come fast: nearly all of them end here
    return [field for field in _PLACE if not all(map(math.isfinite, getattr(head, field)))]


def check_geometry(head: Any) -> None:
    """Check that it can be known where an image lies, and how it is turned.

    Zeros, as many simulations have them, say that it is not known: they pass.

    Parameters
    ----------
    head
        Readout or image, or the header of one.

    Raises
    ------
    ValueError
        A field holds NaN or infinity: two readouts could not even be told to have the same orientation.
    """
    for field in broken_geometry(head):
        counter = getattr(head, "scan_counter", None)
        which = f"image {head.image_index}" if counter is None else f"readout {counter} (its scan_counter)"
        values = ", ".join(f"{value:g}" for value in getattr(head, field))
        raise ValueError(f"{which}: {field} is ({values}); expected three finite numbers, zeros where it is not known")


def repetition_time(metadata: Any) -> float | None:
    """TR of the MRD header [s]; None when it does not say."""
    times = getattr(getattr(metadata, "sequenceParameters", None), "TR", None) or [0.0]
    return 1e-3 * float(times[0]) if 0 < times[0] < math.inf else None


# ------------------------------------------------------------------------------------------------- output images
def update_img_header_from_raw(imgHead: ismrmrd.ImageHeader, rawHead: Any) -> ismrmrd.ImageHeader:
    """Copy what an image inherits from a readout: geometry, counters, time stamps, user fields.

    Type (magnitude), index (1) and series (0) get their defaults. Size and data type follow from the pixels.

    Parameters
    ----------
    imgHead
        Changed in place.
    rawHead
        Header of the readout (or image) that the image inherits from; None leaves `imgHead` alone.

    Returns
    -------
    `imgHead`.

    Raises
    ------
    ValueError
        As `check_geometry`.
    """
    if rawHead is None:
        return imgHead
    check_geometry(rawHead)
    for field in (*_GEOMETRY, *_STAMPS):
        setattr(imgHead, field, getattr(rawHead, field))
    counters = getattr(rawHead, "idx", rawHead)  # an image header holds its counters directly
    for field in _COUNTERS:
        setattr(imgHead, field, getattr(counters, field))
    imgHead.version = 1
    imgHead.image_type = ismrmrd.IMTYPE_MAGNITUDE
    imgHead.image_index = 1
    imgHead.image_series_index = 0
    return imgHead


def set_image_directions(meta: dict[str, Any], head: Any) -> None:
    """Add ImageRowDir and ImageColumnDir to `meta` from read_dir and phase_dir, where they are missing.

    A direction of length zero says that the geometry is unknown, so it is not written.
    """
    for key, direction in (("ImageRowDir", head.read_dir), ("ImageColumnDir", head.phase_dir)):
        if meta.get(key) is None and any(direction):
            meta[key] = [f"{component:.18f}" for component in direction]


def set_window(meta: dict[str, Any], bits: int) -> None:
    """Set WindowCenter and WindowWidth in `meta` so that the whole range of `bits` bits is shown."""
    width = largest_pixel(bits) + 1
    meta["WindowCenter"] = str(width // 2)
    meta["WindowWidth"] = str(width)


def largest_pixel(bits: int) -> int:
    """Largest pixel value of an int16 image that uses `bits` bits."""
    return min(2**bits - 1, INT16_MAXIMUM)


def largest_magnitude(data: NDArray[Any]) -> float:
    """Largest finite magnitude in an array of any shape; 0 when there is none."""
    magnitude = np.abs(data if np.issubdtype(data.dtype, np.inexact) else data.astype(np.float64))
    return float(np.max(magnitude, initial=0, where=np.isfinite(magnitude)))


def scale_to_int16(data: NDArray[Any], bits: int, maximum: float | None = None) -> NDArray[np.int16]:
    """Scale pixels to integers, so that `maximum` becomes the largest value of `bits` bits.

    Values beyond are clipped, never wrapped. Give the same `maximum` for every image of a series, so that its
    intensities can be compared.

    Parameters
    ----------
    data
        Real pixels of any shape, or complex ones, of which the magnitude is taken. NaN becomes 0.
    bits
        Bits to use, see `bits_stored`.
    maximum
        Value that becomes the largest; by default the largest finite magnitude of `data`.

    Returns
    -------
    int16 array of the same shape; zeros when the maximum is 0.

    Raises
    ------
    ValueError
        When the maximum is negative or not finite.
    """
    if np.iscomplexobj(data):
        data = np.abs(data)
    if maximum is None:
        maximum = largest_magnitude(data)
    if not 0 <= maximum < np.inf:
        raise ValueError(f"maximum is {maximum}; expected a finite value that is not negative")
    if maximum == 0:
        return np.zeros(np.shape(data), dtype=np.int16)
    top = largest_pixel(bits)
    with np.errstate(over="ignore"):
        scaled = np.asarray(data, dtype=np.float64) / maximum * top
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), -top, top)).astype(np.int16)


def recon_field_of_view(metadata: Any, encoding_space_ref: int = 0) -> tuple[float, float, float] | None:
    """Field of view (x, y, z) [mm] of the reconstructed space; None when the header does not say."""
    encodings = getattr(metadata, "encoding", None) or []
    if encoding_space_ref >= len(encodings):
        return None
    fov = getattr(encodings[encoding_space_ref].reconSpace, "fieldOfView_mm", None)
    return None if fov is None else (fov.x, fov.y, fov.z)


class SeriesScale:
    """One intensity scale for all images of a series: int16, from the first images, with headroom above them.

    Parameters
    ----------
    header
        The MRD header, for BitsStored.
    warn
        Called once with a text when later images are brighter than the headroom allows.
    headroom
        How much brighter than the first images later ones may be.
    """

    def __init__(self, header: Any, warn: Callable[[str], None] = logger.warning, headroom: float = HEADROOM) -> None:
        self._bits = bits_stored(header)
        self._warn = warn
        self._headroom = headroom
        self._maximum = 0.0
        self._told = False

    def see(self, *pixels: NDArray[Any]) -> None:
        """Take the scale from images of any shape, those that come first if known, unless there is one already."""
        if not self._maximum:
            self._maximum = self._headroom * max(map(largest_magnitude, pixels))

    def widen(self, pixels: NDArray[Any]) -> None:
        """Take the scale from a later image, from here on, if that is brighter than the first ones."""
        self._maximum = max(self._maximum, self._headroom * largest_magnitude(pixels))

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.int16]:
        """Scale the magnitude of an image."""
        self.see(pixels)
        largest = largest_magnitude(pixels)
        if largest > self._maximum and not self._told:
            self._told = True
            times = largest / self._maximum * self._headroom
            self._warn(f"an image is {times:.2f} times as bright as the first: its brightest pixels clip")
        return scale_to_int16(np.abs(pixels), self._bits, self._maximum)


def build_image(
    data: NDArray[Any],
    raw_head: Any,
    metadata: Any,
    *,
    index: int | None = None,
    series: int | None = None,
    image_type: int | None = None,
    field_of_view: Sequence[float] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> ismrmrd.Image:
    """Build an image to send: pixels, header and meta attributes. Every module makes its images here.

    Parameters
    ----------
    data
        Pixels [channel, z, y, x], [z, y, x] or [y, x]. The eight MRD pixel types are uint16, int16, uint32, int32,
        float32, float64, complex64 and complex128. Further ones become the nearest of these that holds all their
        values: uint8 and bool uint16, int8 int16, float16 float32; int64 becomes int32, and uint64 uint32, if they fit.
    raw_head
        Header of the readout or image that the image inherits from; None leaves geometry, counters and time stamps at
        zero.
    metadata
        MRD header; may be text when the client sent no valid one.
    index
        Number of the image in its series, counted from 1; by default that of an image's header, else 1.
    series
        Series number; by default that of an image's header, else 0.
    image_type
        An ``ismrmrd.IMTYPE_*``. By default complex for complex pixels; for others that of an image's header, unless
        that is complex, else magnitude.
    field_of_view
        (x, y, z) [mm]; by default that of an image's header, else that of the MRD header's reconSpace.
    meta
        Further attributes, which win over the ones set here.

    Raises
    ------
    ValueError
        When `data` has not 2 to 4 axes, or one that is too long, or pixels that no MRD type holds, or as
        `check_geometry`.
    """
    data = np.asarray(data)
    if not 2 <= data.ndim <= 4:
        wanted = "[channel, z, y, x], [z, y, x] or [y, x]"
        raise ValueError(f"image data of shape {data.shape} has {data.ndim} axes; expected {wanted}")
    if max(data.shape) > _LONGEST_AXIS:
        raise ValueError(f"image data of shape {data.shape} has more than {_LONGEST_AXIS} pixels along an axis")
    pixels = np.ascontiguousarray(to_pixel_type(data))[(np.newaxis,) * (4 - data.ndim)]
    head = update_img_header_from_raw(ismrmrd.ImageHeader(), raw_head)
    head.version = 1
    given = raw_head if isinstance(raw_head, ismrmrd.ImageHeader | ismrmrd.Image) else ismrmrd.ImageHeader()
    head.image_type = image_type or _image_type(pixels, given.image_type)
    head.image_index = (given.image_index or 1) if index is None else index
    head.image_series_index = given.image_series_index if series is None else series
    if field_of_view is None and any(given.field_of_view):
        field_of_view = given.field_of_view
    if field_of_view is None:
        field_of_view = recon_field_of_view(metadata, getattr(raw_head, "encoding_space_ref", 0))
    if field_of_view is not None:
        head.field_of_view = tuple(field_of_view)

    attributes = ismrmrd.Meta(DataRole="Image", ImageProcessingHistory=["PYTHON"], Keep_image_geometry="1")
    if head.image_type == ismrmrd.IMTYPE_MAGNITUDE and np.issubdtype(pixels.dtype, np.integer):
        set_window(attributes, bits_stored(metadata))
    set_image_directions(attributes, head)
    attributes.update(meta or {})
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.int64)  # as ismrmrd holds MRD's 32-bit integers
    return ismrmrd.Image(head=head, data=pixels, meta=attributes)


def _image_type(pixels: NDArray[Any], of_header: int) -> int:
    if np.iscomplexobj(pixels):
        return ismrmrd.IMTYPE_COMPLEX
    return ismrmrd.IMTYPE_MAGNITUDE if of_header in (0, ismrmrd.IMTYPE_COMPLEX) else of_header
