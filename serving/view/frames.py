"""Images and waveforms in the form that the page takes: a length, a JSON header, and numbers.

A frame is four bytes with the length of the header (little-endian), the header, padded with spaces to a multiple of
eight bytes with those four, and the numbers. Images have 16 bits a pixel, whatever they were sent with.
"""

import io
import json
import math
import struct
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from constants import MessageId
from mrdhelper import ticks_to_seconds
from mrdio.codec import read_content
from mrdio.limits import Limits
from recon.physio import ECG, ECG_TRIGGER_ROW, PILOT_TONE, PILOT_TONE_ZERO, TRIGGER_ROW
from serving.view.feed import Letter

LONGEST = 500  # of an attribute that is shown [characters]
_LENGTH = struct.Struct("<I")
_READ = Limits()


class Frame(NamedTuple):
    """An image, ready to be sent to viewers.

    Attributes
    ----------
    number : int
        How many images the session had sent, this one included.
    series : int
        Its series.
    time : float
        When it was sent, since the epoch [s].
    content : bytes
        What viewers get.
    """

    number: int
    series: int
    time: float
    content: bytes


def pack(header: dict[str, Any], *numbers: Any) -> bytes:
    """Pack a frame."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % 8)
    return b"".join((_LENGTH.pack(len(text)), text, *numbers))


def image_frame(letter: Letter) -> Frame:
    """Make the frame of an image.

    Raises
    ------
    MrdError
        If its bytes are no image.
    """
    image = read_content(MessageId.ISMRMRD_IMAGE, io.BytesIO(letter.content), _READ).content
    head, meta = image.getHead(), image.meta
    pixels, scale, offset = to_16_bits(image.data)
    channels, depth, rows, columns = pixels.shape
    width, height = head.field_of_view[0] / columns, head.field_of_view[1] / rows
    milliseconds = _number(meta.get("ProcessingTime_ms"))
    if milliseconds is None and math.isfinite(letter.waited):
        milliseconds = 1e3 * letter.waited
    header = {
        "type": "image", "number": letter.number, "sent": letter.time, "series": head.image_series_index,
        "index": head.image_index, "slice": head.slice, "stamp": ticks_to_seconds(head.acquisition_time_stamp),
        "shape": [channels, depth, rows, columns], "signed": pixels.dtype.kind == "i", "scale": scale,
        "offset": offset, "rgb": head.image_type == ismrmrd.IMTYPE_RGB and channels == 3, "window": _window(meta),
        "aspect": height / width if 0 < width < math.inf and 0 < height < math.inf else 1.0,
        "latency": milliseconds, "waiting": _number(meta.get("ReadoutsWaiting")),
        **{key: text for key, text in _words(meta).items() if text},
    }  # fmt: skip
    return Frame(letter.number, head.image_series_index, letter.time, pack(header, pixels.tobytes()))


def to_16_bits(data: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Pixels of any MRD type in 16 bits; returns them, and scale and offset: value = offset + scale * pixel.

    Integers that fit are kept as they are; of complex pixels the magnitude is taken. Pixels that are no numbers become
    the smallest that there is.
    """
    if data.dtype in (np.int16, np.uint16):
        return data, 1.0, 0.0
    values = np.abs(data) if np.iscomplexobj(data) else data
    finite = np.isfinite(values)
    known = values[finite]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if values.dtype.kind in "iu":
        for kind in (np.int16, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return values.astype(kind), 1.0, 0.0
    scale = high / 65535 - low / 65535  # their difference may be too large for a number
    if not scale > 0:
        return np.zeros(values.shape, np.uint16), 1.0, low
    stored = np.where(finite, values, low) / scale - low / scale
    return np.rint(np.clip(stored, 0, 65535)).astype(np.uint16), scale, low


def _window(meta: ismrmrd.Meta) -> list[float] | None:
    """Return centre and width of the window in an image's attributes."""
    centre, width = _number(meta.get("WindowCenter")), _number(meta.get("WindowWidth"))
    return None if centre is None or width is None or width <= 0 else [centre, width]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _words(meta: ismrmrd.Meta) -> dict[str, str]:
    """Return what an image says of itself; no other attribute is shown, since some hold the patient's name."""
    keys = {
        "fallback": "Fallback", "missing": "MissingDependency", "method": "ReconstructionMethod",
        "description": "SequenceDescriptionAdditional",
    }  # fmt: skip
    values = {name: meta.get(key) for name, key in keys.items()}
    return {
        name: ", ".join(map(str, value))[:LONGEST] if isinstance(value, list) else str(value or "")[:LONGEST]
        for name, value in values.items()
    }


class Packet(NamedTuple):
    """Part of a waveform: what is shown of it.

    Attributes
    ----------
    kind : int
        Its ``waveform_id``.
    time, interval : float
        Time of the first sample, as the scanner counts, and from sample to sample [s].
    curve : ndarray
        Samples, float32 [samples].
    triggers : list of float
        Times of the triggers in it [s].
    """

    kind: int
    time: float
    interval: float
    curve: NDArray[np.float32]
    triggers: list[float]


_TRIGGERS = {ECG: (ECG_TRIGGER_ROW, 0), PILOT_TONE: (TRIGGER_ROW, PILOT_TONE_ZERO)}  # row, value without trigger


def waveform_packet(letter: Letter, on: dict[int, bool]) -> Packet | None:
    """Make of a waveform what is shown of it; None if it is empty.

    Parameters
    ----------
    letter
        Holds it.
    on
        Of each kind, whether the trigger was on at the end of the packet before; is brought up to date.

    Raises
    ------
    MrdError
        If its bytes are no waveform.
    """
    waveform = read_content(MessageId.ISMRMRD_WAVEFORM, io.BytesIO(letter.content), _READ).content
    kind, rows, interval = waveform.waveform_id, waveform.data, 1e-6 * waveform.sample_time_us
    if not rows.size or not 0 < interval < math.inf:
        return None
    start = float(ticks_to_seconds(waveform.time_stamp))
    zero = PILOT_TONE_ZERO if kind == PILOT_TONE else 0
    row, nothing = _TRIGGERS.get(kind, (len(rows), 0))
    triggers: list[float] = []
    if row < len(rows):
        is_on = rows[row] != nothing
        begins = is_on & ~np.concatenate(([on.get(kind, False)], is_on[:-1]))
        on[kind] = bool(is_on[-1])
        triggers = [start + interval * int(sample) for sample in np.flatnonzero(begins)]
    return Packet(kind, start, interval, (rows[0].astype(np.float64) - zero).astype(np.float32), triggers)


def waveform_frame(kind: int, packets: list[Packet]) -> bytes:
    """Pack packets of one kind: their headers, and all curves behind each other as float32."""
    parts = [[each.time, each.interval, each.curve.size, each.triggers] for each in packets]
    return pack({"type": "waveform", "id": kind, "packets": parts}, *(each.curve.tobytes() for each in packets))
