"""Velocity encoding of phase contrast images, as DICOM objects say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dicomio.files import PYDICOM_ERRORS, quiet_pydicom
from dicomio.frames import Frame

# Text of Siemens' private attribute, for example v150in, v80_through, v120fh.
_SIEMENS_GROUP, _SIEMENS_CREATOR, _SIEMENS_FLOW = 0x0051, "SIEMENS MR HEADER", 0x14
_SIEMENS_TEXT = re.compile(r"v(\d+(?:\.\d+)?)[\s_]*([A-Za-z]*)")


@dataclass(frozen=True)
class VelocityEncoding:
    """Velocity encoding of a frame.

    Attributes
    ----------
    venc
        Velocity of a phase of pi [cm/s].
    direction
        Unit vector in patient coordinates as three numbers, or the vendor's word for it; empty when it is not known.
    """

    venc: float
    direction: tuple[str, ...] = ()


def velocity_encoding(frame: Frame) -> VelocityEncoding | None:
    """Velocity encoding of a frame: the standard attributes, else Siemens' private one; None when there is none."""
    venc = frame.number("VelocityEncodingMaximumValue")
    direction = frame.numbers("VelocityEncodingDirection", 3)
    if venc and venc > 0 and direction and any(direction):
        return VelocityEncoding(venc, tuple(f"{component:g}" for component in direction))
    try:
        with quiet_pydicom():
            text = frame.dataset.private_block(_SIEMENS_GROUP, _SIEMENS_CREATOR)[_SIEMENS_FLOW].value
    except PYDICOM_ERRORS:
        return None
    match = _SIEMENS_TEXT.match(text.decode("latin-1") if isinstance(text, bytes) else str(text))
    if not match or float(match.group(1)) == 0:
        return None
    return VelocityEncoding(float(match.group(1)), (match.group(2).lower(),) if match.group(2) else ())
