"""DICOM attributes for an MRD image that has no DICOM origin: from the MRD header, and nothing made up.

An attribute that neither header nor image gives is empty where DICOM allows it. Where it does not, the value says that
it is not known, and ImageComments says so in words.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import ismrmrd
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from dicomio.geometry import Plane
from mrdhelper import ticks_to_seconds

# A time stamp beyond this is no delay after a heartbeat: without triggers, scanners count from when they were started.
LONGEST_BEAT = 10.0  # [s]

# Of the body parts that DICOM names (PS3.16, annex L), those that there are two of and that MR images.
PAIRED_PARTS = frozenset(
    {"ANKLE", "ARM", "BREAST", "CALF", "CLAVICLE", "EAR", "ELBOW", "EXTREMITY", "EYE", "FEMUR", "FINGER", "FOOT"}
    | {"FOREARM", "HAND", "HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LUNG", "ORBIT", "SHOULDER", "THIGH", "THUMB"}
    | {"TMJ", "TOE", "WRIST"}
)

COMPONENTS = {
    ismrmrd.IMTYPE_MAGNITUDE: ("M", "MAGNITUDE"),
    ismrmrd.IMTYPE_PHASE: ("P", "PHASE"),
    ismrmrd.IMTYPE_REAL: ("R", "REAL"),
    ismrmrd.IMTYPE_IMAG: ("I", "IMAGINARY"),
}

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]+")


def clean(text: Any, limit: int = 64) -> str:
    """Text for a DICOM attribute of at most `limit` characters, without control characters and backslashes."""
    return "" if text is None else _UNSAFE.sub(" ", str(text)).strip()[:limit].strip()


def clean_name(text: Any) -> str:
    """Person name: at most 64 characters in each of three groups, with at most five parts."""
    groups = clean(text, 200).split("=")[:3]
    return "=".join("^".join(group.split("^")[:5])[:64] for group in groups)


def valid_uid(text: Any) -> bool:
    """True if a text is a DICOM unique identifier, or one but for leading zeros, which some programs write."""
    return isinstance(text, str) and len(text) <= 64 and _UID.fullmatch(text) is not None


def decimal(value: float) -> str:
    """Number as DICOM's decimal string of at most 16 characters."""
    return format_number_as_ds(float(value))


def optional_decimal(value: Any) -> str | None:
    """Number as `decimal` writes it; None when it is no finite number. A header read leniently may hold anything."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return decimal(number) if math.isfinite(number) else None


def minimal_dataset(header: Any, head: ismrmrd.ImageHeader, kind: int, study_uid: str) -> Dataset:
    """Patient, study, series, equipment and acquisition attributes of an image; no pixels, geometry or series UID.

    Parameters
    ----------
    header
        MRD header; may be text or None when there is no valid one.
    head
        Image header.
    kind
        MRD image type of what is to be stored. Colours make a secondary capture, the rest an MR image.
    study_uid
        Study instance UID when the header has none.
    """
    dataset = Dataset()
    is_colour = kind == ismrmrd.IMTYPE_RGB
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SecondaryCaptureImageStorage if is_colour else MRImageStorage
    # Reconstructed from raw data as far as is known; a colour image is made from other images.
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"] if is_colour else ["ORIGINAL", "PRIMARY", COMPONENTS[kind][0]]
    if is_colour:
        dataset.ConversionType = "WSD"
        dataset.PatientOrientation = ""
    dataset.Modality = "MR"
    _patient(dataset, getattr(header, "subjectInformation", None))
    _study(dataset, getattr(header, "studyInformation", None), study_uid)
    _series(dataset, getattr(header, "measurementInformation", None))
    _system(dataset, header)
    if not is_colour:
        _acquisition(dataset, header)
    seconds = ticks_to_seconds(head.acquisition_time_stamp)
    if 0 < seconds < 86400:
        dataset.AcquisitionTime = (dt.datetime.min + dt.timedelta(seconds=seconds)).strftime("%H%M%S.%f")
    trigger = ticks_to_seconds(head.physiology_time_stamp[0])
    if 0 < trigger < LONGEST_BEAT and not is_colour:
        dataset.TriggerTime = decimal(1e3 * trigger)
        dataset.ScanOptions = "CG"  # a trigger time needs it
    return dataset


def _patient(dataset: Dataset, subject: Any) -> None:
    dataset.PatientName = clean_name(getattr(subject, "patientName", None))
    dataset.PatientID = clean(getattr(subject, "patientID", None))
    dataset.PatientBirthDate = _date(getattr(subject, "patientBirthdate", None))
    sex = clean(getattr(subject, "patientGender", None))
    dataset.PatientSex = sex if sex in ("M", "F", "O") else ""
    for keyword, name in (("PatientWeight", "patientWeight_kg"), ("PatientSize", "patientHeight_m")):
        if number := optional_decimal(getattr(subject, name, None)):
            setattr(dataset, keyword, number)


def _study(dataset: Dataset, study: Any, study_uid: str) -> None:
    uid = getattr(study, "studyInstanceUID", None)
    dataset.StudyInstanceUID = uid if valid_uid(uid) else study_uid
    dataset.StudyDate = _date(getattr(study, "studyDate", None))
    dataset.StudyTime = _time(getattr(study, "studyTime", None))
    dataset.StudyID = clean(getattr(study, "studyID", None), 16)
    dataset.AccessionNumber = clean(getattr(study, "accessionNumber", None), 16)
    dataset.ReferringPhysicianName = clean_name(getattr(study, "referringPhysicianName", None))
    if description := clean(getattr(study, "studyDescription", None)):
        dataset.StudyDescription = description
    if part := clean(getattr(study, "bodyPartExamined", None), 16).upper():
        dataset.BodyPartExamined = part
    if not part or part in PAIRED_PARTS:
        dataset.Laterality = ""  # not allowed for a part of which there is only one


def _series(dataset: Dataset, measurement: Any) -> None:
    if date := _date(getattr(measurement, "seriesDate", None)):
        dataset.SeriesDate = date
    if time := _time(getattr(measurement, "seriesTime", None)):
        dataset.SeriesTime = time
    position = getattr(measurement, "patientPosition", None)
    dataset.PatientPosition = clean(getattr(position, "value", position), 16)
    if protocol := clean(getattr(measurement, "protocolName", None)):
        dataset.ProtocolName = protocol
    if sequence := clean(getattr(measurement, "sequenceName", None), 16):
        dataset.SequenceName = sequence
    dataset.SeriesDescription = clean(getattr(measurement, "seriesDescription", None)) or protocol
    uid = getattr(measurement, "frameOfReferenceUID", None)
    if valid_uid(uid):
        dataset.FrameOfReferenceUID = uid
    dataset.PositionReferenceIndicator = ""


def _system(dataset: Dataset, header: Any) -> None:
    system = getattr(header, "acquisitionSystemInformation", None)
    dataset.Manufacturer = clean(getattr(system, "systemVendor", None))
    for keyword, name, limit in (
        ("ManufacturerModelName", "systemModel", 64),
        ("InstitutionName", "institutionName", 64),
        ("StationName", "stationName", 16),
        ("DeviceSerialNumber", "deviceSerialNumber", 64),
    ):
        if text := clean(getattr(system, name, None), limit):
            setattr(dataset, keyword, text)


def _acquisition(dataset: Dataset, header: Any) -> None:
    system = getattr(header, "acquisitionSystemInformation", None)
    if field := optional_decimal(getattr(system, "systemFieldStrength_T", None)):
        dataset.MagneticFieldStrength = field
    frequency = getattr(getattr(header, "experimentalConditions", None), "H1resonanceFrequency_Hz", None)
    if isinstance(frequency, int) and frequency > 0:
        dataset.ImagingFrequency = decimal(frequency / 1e6)
    # "Research mode" is the one term that claims nothing about the sequence.
    dataset.ScanningSequence = "RM"
    dataset.SequenceVariant = "NONE"
    dataset.ScanOptions = ""
    dataset.EchoTrainLength = None
    encodings = getattr(header, "encoding", None) or []
    matrix = getattr(getattr(encodings[0], "encodedSpace", None), "matrixSize", None) if encodings else None
    partitions = getattr(matrix, "z", None)
    dataset.MRAcquisitionType = ("3D" if partitions > 1 else "2D") if isinstance(partitions, int) else ""
    sequence = getattr(header, "sequenceParameters", None)
    # DICOM allows an inversion time only where the sequence is said to have an inversion, which MRD does not tell:
    # headers of sequences without one have a TI, too.
    for keyword, name in (("RepetitionTime", "TR"), ("EchoTime", "TE"), ("FlipAngle", "flipAngle_deg")):
        number = optional_decimal(next(iter(getattr(sequence, name, None) or []), None))
        if number is not None or keyword in ("RepetitionTime", "EchoTime"):
            setattr(dataset, keyword, number)


def put_plane(dataset: Dataset, plane: Plane) -> None:
    """Set the image plane of a classic dataset."""
    dataset.PixelSpacing = [decimal(value) for value in plane.spacing]
    dataset.ImageOrientationPatient = [decimal(value) for value in (*plane.along_row, *plane.along_column)]
    dataset.ImagePositionPatient = [decimal(value) for value in plane.first_pixel]
    dataset.SliceThickness = None if plane.thickness is None else decimal(plane.thickness)


def _date(value: Any) -> str:
    digits = re.sub(r"\D", "", str(value or ""))[:8]
    return digits if len(digits) == 8 else ""


def _time(value: Any) -> str:
    match = re.match(r"(\d{2}):(\d{2}):(\d{2})(\.\d{1,6})?", str(value or ""))
    return "".join(part or "" for part in match.groups()) if match else ""
