"""The MRD header of a set of DICOM series."""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ismrmrd import xsd
from xsdata.models.datatype import XmlDate, XmlTime

from dicomio.frames import Frame, mrd_geometry
from mrdhelper import SECONDS_PER_TICK

logger = logging.getLogger(__name__)

# Proton gyromagnetic ratio over 2 pi [Hz/T] (CODATA), for headers whose object does not give the imaging frequency.
GAMMA_BAR = 42.577478518e6

_TIME = re.compile(r"(\d{2})(?:(\d{2})(?:(\d{2})(\.\d{1,9})?)?)?")
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_XML_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class SeriesFacts:
    """Facts of one series for the header: its first frame, and the values that occur in it.

    Attributes
    ----------
    first
        Its first frame.
    slices, contrasts, phases, repetitions, sets
        How many values each counter takes.
    echo_times
        All echo times [ms], rising.
    """

    first: Frame
    slices: int = 1
    contrasts: int = 1
    phases: int = 1
    repetitions: int = 1
    sets: int = 1
    echo_times: list[float] = field(default_factory=list)


def seconds_of_day(text: str) -> float | None:
    """Seconds since midnight [s] of a DICOM TM or DT value; None when it is none."""
    digits = text.strip()
    if re.match(r"\d{14}", digits):
        digits = digits[8:]
    digits = digits.replace(":", "")
    match = _TIME.match(digits)
    if not match:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return 3600.0 * hours + 60.0 * minutes + seconds + float(match.group(4) or 0)


def acquisition_time(frame: Frame) -> str:
    """Acquisition time of a frame, as the object says it; empty when it does not."""
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionTime", "AcquisitionDateTime"):
        if text := frame.text(keyword):
            return text
    return ""


def acquisition_ticks(frame: Frame) -> int:
    """Acquisition time of a frame [ticks of 2.5 ms since midnight]; 0 when it is not known."""
    return round((seconds_of_day(acquisition_time(frame)) or 0.0) / SECONDS_PER_TICK)


def trigger_time(frame: Frame) -> float | None:
    """Delay after the cardiac trigger [ms]; None when there is none."""
    for keyword in ("TriggerTime", "ActualCardiacTriggerDelayTime", "NominalCardiacTriggerDelayTime"):
        value = frame.number(keyword)
        if value is not None:
            return value
    return None


def echo_time(frame: Frame) -> float | None:
    """Echo time [ms]; None when it is not known."""
    value = frame.number("EffectiveEchoTime")
    return frame.number("EchoTime") if value is None else value


def clean_text(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _XML_FORBIDDEN.sub("", text)


def mrd_header(series: Sequence[SeriesFacts]) -> xsd.ismrmrdHeader:
    """Build the header: patient, study, scanner and sequence of the first series, one encoding for each series.

    Facts that an object does not state are left out; nothing is made up, except the resonance frequency that MRD
    demands (0 when not even the field strength is known).
    """
    frame = series[0].first
    frequency, field_strength = frame.number("ImagingFrequency"), frame.number("MagneticFieldStrength")
    if frequency is None:
        frequency = frame.number("TransmitterFrequency")
    hertz = frequency * 1e6 if frequency else (field_strength or 0.0) * GAMMA_BAR
    return xsd.ismrmrdHeader(
        version=1,
        subjectInformation=_subject(frame),
        studyInformation=_study(frame),
        measurementInformation=_measurement(frame),
        acquisitionSystemInformation=_system(frame, field_strength),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=round(hertz)),
        encoding=[_encoding(facts) for facts in series],
        sequenceParameters=_sequence(series[0]),
    )


def _optional(frame: Frame, keyword: str) -> str | None:
    return clean_text(frame.text(keyword)) or None


def _date(frame: Frame, keyword: str) -> XmlDate | None:
    match = _DATE.match(frame.text(keyword))
    if not match:
        return None
    try:
        return XmlDate.from_date(dt.date(*(int(part) for part in match.groups())))
    except ValueError:
        return None


def _time(frame: Frame, keyword: str) -> XmlTime | None:
    seconds = seconds_of_day(frame.text(keyword))
    if seconds is None:
        return None
    whole = int(seconds)
    fraction = round((seconds - whole) * 1e6)
    return XmlTime(whole // 3600, whole // 60 % 60, min(whole % 60, 59), min(fraction, 999_999) * 1000)


def _subject(frame: Frame) -> xsd.subjectInformationType:
    sex = frame.text("PatientSex").upper()
    return xsd.subjectInformationType(
        patientName=_optional(frame, "PatientName"),
        patientID=_optional(frame, "PatientID"),
        patientWeight_kg=frame.number("PatientWeight"),
        patientHeight_m=frame.number("PatientSize"),
        patientBirthdate=_date(frame, "PatientBirthDate"),
        patientGender=sex if sex in ("M", "F", "O") else None,
    )


def _study(frame: Frame) -> xsd.studyInformationType:
    accession = frame.text("AccessionNumber")  # a number in MRD, any text in DICOM
    return xsd.studyInformationType(
        studyDate=_date(frame, "StudyDate"),
        studyTime=_time(frame, "StudyTime"),
        studyID=_optional(frame, "StudyID"),
        accessionNumber=int(accession) if re.fullmatch(r"[1-9]\d{0,17}", accession) else None,
        referringPhysicianName=_optional(frame, "ReferringPhysicianName"),
        studyDescription=_optional(frame, "StudyDescription"),
        studyInstanceUID=_optional(frame, "StudyInstanceUID"),
        bodyPartExamined=_optional(frame, "BodyPartExamined"),
    )


def _measurement(frame: Frame) -> xsd.measurementInformationType | None:
    position = frame.text("PatientPosition").upper()
    known = [member.value for member in xsd.patientPositionType]
    if position and position not in known:
        logger.warning("PatientPosition '%s' is none of MRD's (%s): HFS is written", position, ", ".join(known))
    number = frame.number("SeriesNumber")
    return xsd.measurementInformationType(
        patientPosition=xsd.patientPositionType(position if position in known else "HFS"),
        seriesDate=_date(frame, "SeriesDate"),
        seriesTime=_time(frame, "SeriesTime"),
        initialSeriesNumber=int(number) if number is not None and number >= 0 else None,
        protocolName=_optional(frame, "ProtocolName"),
        sequenceName=_optional(frame, "SequenceName") or _optional(frame, "PulseSequenceName"),
        seriesDescription=_optional(frame, "SeriesDescription"),
        seriesInstanceUIDRoot=_optional(frame, "SeriesInstanceUID"),
        frameOfReferenceUID=_optional(frame, "FrameOfReferenceUID"),
    )


def _system(frame: Frame, field_strength: float | None) -> xsd.acquisitionSystemInformationType:
    return xsd.acquisitionSystemInformationType(
        systemVendor=_optional(frame, "Manufacturer"),
        systemModel=_optional(frame, "ManufacturerModelName"),
        systemFieldStrength_T=field_strength,
        institutionName=_optional(frame, "InstitutionName"),
        stationName=_optional(frame, "StationName"),
        deviceSerialNumber=_optional(frame, "DeviceSerialNumber"),
    )


def _encoding(facts: SeriesFacts) -> xsd.encodingType:
    frame = facts.first
    width, height, depth = mrd_geometry(frame).field_of_view
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=int(frame.number("Columns") or 1), y=int(frame.number("Rows") or 1), z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=height, z=depth),
    )
    counters = {
        "slice": facts.slices,
        "contrast": facts.contrasts,
        "phase": facts.phases,
        "repetition": facts.repetitions,
        "set": facts.sets,
    }
    return xsd.encodingType(
        encodedSpace=space,
        reconSpace=space,
        # The objects do not reliably say how k-space was sampled.
        trajectory=xsd.trajectoryType.OTHER,
        encodingLimits=xsd.encodingLimitsType(
            **{name: xsd.limitType(minimum=0, maximum=min(n, 65536) - 1, center=0) for name, n in counters.items()}
        ),
    )


def _sequence(facts: SeriesFacts) -> xsd.sequenceParametersType:
    frame = facts.first

    def known(keyword: str) -> list[float]:
        value = frame.number(keyword)
        return [] if value is None else [value]

    # InversionTimes is the enhanced objects' attribute.
    return xsd.sequenceParametersType(
        TR=known("RepetitionTime"),
        TE=facts.echo_times,
        TI=known("InversionTime") or known("InversionTimes"),
        flipAngle_deg=known("FlipAngle"),
    )
