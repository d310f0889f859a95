"""Tools of the DICOM tests: files to convert, round trips, flat views of datasets, and independent programs."""

import io
import logging
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import ismrmrd
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

import dicom2mrd
import mrd2dicom
from mrdio.codec import MessageId, encode, read_messages
from mrdio.mrdfile import MrdReader, MrdWriter


def testdata(name):
    """Path of a file of pydicom's or pydicom-data's; missing ones fail, they are pinned in requirements-test.txt."""
    path = get_testdata_file(name, download=False)
    assert path is not None, f"{name} is missing: install pydicom-data as requirements-test.txt pins it"
    return Path(path)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        for element in dataset.iterall():  # values are converted when they are looked at
            _ = element.value
        return dataset


def outputs(folder):
    """Datasets of an output folder, in the order of their numbers."""
    return sorted((read(path) for path in folder.iterdir()), key=lambda d: (d.SeriesNumber, d.InstanceNumber))


def images_in(path, group=None):
    with MrdReader(path, group) as reader:
        return list(reader.images())


def over_the_wire(image):
    """The image as the other end of a connection reads it."""
    stream = io.BytesIO(b"".join(bytes(part) for part in encode(MessageId.ISMRMRD_IMAGE, image)))
    (message,) = read_messages(stream)
    return message.content


def round_trip(folder, tmp_path, change=None):
    """DICOM -> MRD -> wire, `change` (a function of an image), wire -> MRD -> DICOM. Returns the output datasets."""
    there, back, out = tmp_path / "there.h5", tmp_path / "back.h5", tmp_path / "out"
    dicom2mrd.convert(folder, there)
    with MrdReader(there) as reader, MrdWriter(back, "dataset") as writer:
        writer.write_header(reader.header_xml)
        for image in reader.images():
            image = over_the_wire(image)
            writer.write(over_the_wire(change(image) if change else image))
    mrd2dicom.convert(back, out)
    return outputs(out)


def folder_of(tmp_path, *datasets_or_paths):
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for number, item in enumerate(datasets_or_paths):
        if isinstance(item, Dataset):
            item.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
        else:
            shutil.copy(item, folder)
    return folder


def flat(dataset, prefix=""):
    """{path: value} of all attributes but the pixels; numbers as numbers, empty values as None."""
    values = {}
    for element in dataset:
        name = prefix + (element.keyword or str(element.tag))
        if element.keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") or element.tag.element == 0:
            continue
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                values |= flat(item, f"{name}[{number}].")
        else:
            values[name] = _comparable(element)
    return values


def _comparable(element):
    value = element.value
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    if element.VR in ("DS", "IS", "FD", "FL", "SL", "SS", "UL", "US"):
        return tuple(np.atleast_1d(np.array(value, dtype=float)).tolist())
    if isinstance(value, bytes):
        return value
    return str(value)


def differences(before, after):
    """Names of attributes that are not the same in two datasets."""
    a, b = flat(before), flat(after)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def run_program(*command):
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is missing: these tests need Debian's dicom3tools and dcmtk (test.sh installs them)")
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)


def seen_by_dcmtk(path, tmp_path):
    """An image as dcmtk reads it: a function from (row, column) to patient coordinates [mm], and its grey values."""
    tags = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    dump = run_program("dcmdump", "+L", *(part for tag in tags for part in ("+P", tag)), path).stdout
    values = [np.array(text.split("\\"), float) for text in re.findall(r"DS \[([^\]]*)\]", dump)]
    spacing, first, orientation = sorted(values, key=len)
    picture = tmp_path / "picture.pgm"
    assert run_program("dcm2pnm", "+op", "+Wm", path, picture).returncode == 0
    raw = picture.read_bytes()
    columns, rows = map(int, re.match(rb"P5\s(?:#.*\s)*(\d+) (\d+)\s255\s", raw).groups())

    def place(row, column):
        return first + orientation[:3] * spacing[1] * column + orientation[3:] * spacing[0] * row

    return place, np.frombuffer(raw[-rows * columns :], np.uint8).reshape(rows, columns)


def dicom_errors(dataset_or_path, tmp_path):
    """Errors that dciodvfy finds, without the values that name an object.

    Left out is its complaint about attributes that it thinks forbidden in DERIVED enhanced MR objects: of each of them
    PS3.3 2024e (tables C.8-87 and C.8-85) says "may be present otherwise".
    """
    path = dataset_or_path
    if isinstance(path, Dataset):
        path = tmp_path / "checked.dcm"
        dataset_or_path.save_as(path, enforce_file_format=True)
    result = run_program("dciodvfy", "-new", path)
    text = result.stdout + result.stderr
    assert re.search(r"^[A-Z]\w+$", text, re.MULTILINE), f"dciodvfy did not recognise {path}: {text[:300]}"
    return {re.sub(r"<[\d.]{20,}>", "<UID>", line) for line in text.splitlines() if _is_error(line, text)}


def _is_error(line, text):
    too_strict = "EnhancedMR" in text and "(which may not be present otherwise)" in line
    return line.startswith("Error") and not too_strict


def mr_dataset(rows=6, columns=10, **attributes):
    """A valid classic MR image, not square in any respect, oblique."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.Modality = "MR"
    dataset.Manufacturer = "Somebody"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientPosition = "19700102", "F", "FFS"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240501", "101500", "1"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 7, 1, 1
    dataset.Laterality = ""
    dataset.SeriesDescription, dataset.ProtocolName = "t1 oblique", "t1"
    dataset.AcquisitionTime = "101530.123400"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
    dataset.MRAcquisitionType, dataset.EchoTrainLength = "2D", 1
    dataset.RepetitionTime, dataset.EchoTime, dataset.FlipAngle = "8.6", "3.25", "15"
    dataset.MagneticFieldStrength, dataset.ImagingFrequency = "2.89", "123.251"
    dataset.PixelSpacing = ["1.25", "0.8"]
    along_row, along_column = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    dataset.ImageOrientationPatient = [f"{value:g}" for value in (*along_row, *along_column)]
    dataset.ImagePositionPatient = ["-12.5", "30.25", "101.75"]
    dataset.SliceThickness = "4.5"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = "1000", "2000"
    rng = np.random.default_rng(7)
    dataset.PixelData = rng.integers(0, 4096, (rows, columns)).astype("<u2").tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW"
    return dataset


def item(**attributes):
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def enhanced_dataset(frames=4):
    """pydicom-data's enhanced MR object, which has no functional groups, with functional groups for `frames` frames."""
    dataset = read(testdata("emri_small.dcm"))
    pixels = dataset.pixel_array[:frames]
    dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VELOCITY", "NONE"]
    for name in ("VelocityEncodingDirection", "VelocityEncodingMinimumValue", "FrameLaterality"):
        delattr(dataset, name)
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.DeviceSerialNumber = "Somebody", "Model", "1"
    dataset.ApplicableSafetyStandardAgency = "IEC"
    dataset.AcquisitionContextSequence = []
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID="1.2.3.4.5")]
    dataset.DimensionIndexSequence = [
        item(
            DimensionIndexPointer=0x00209057,
            FunctionalGroupPointer=0x00209111,
            DimensionOrganizationUID="1.2.3.4.5",
        )
    ]
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=["1.5", "2.0"], SliceThickness="3")],
            PlaneOrientationSequence=[item(ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])],
            FrameAnatomySequence=[
                item(
                    FrameLaterality="U",
                    AnatomicRegionSequence=[
                        item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")
                    ],
                )
            ],
            PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="-4096", RescaleType="US")],
            MRTimingAndRelatedParametersSequence=[
                item(
                    RepetitionTime="20",
                    FlipAngle="15",
                    EchoTrainLength=0,
                    RFEchoTrainLength=0,
                    GradientEchoTrainLength=1,
                )
            ],
            MREchoSequence=[item(EffectiveEchoTime=3.5)],
            MRImageFrameTypeSequence=[
                item(
                    FrameType=["ORIGINAL", "PRIMARY", "VELOCITY", "NONE"],
                    PixelPresentation="MONOCHROME",
                    VolumetricProperties="VOLUME",
                    VolumeBasedCalculationTechnique="NONE",
                    ComplexImageComponent="PHASE",
                    AcquisitionContrast="FLOW_ENCODED",
                )
            ],
        )
    ]
    dataset.ComplexImageComponent = "PHASE"
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(
                    FrameAcquisitionDateTime=f"20240501101530.{number}50000",
                    FrameReferenceDateTime="20240501101530",
                    FrameAcquisitionDuration=20.0,
                    StackID="1",
                    InStackPositionNumber=number + 1,
                    DimensionIndexValues=[number + 1],
                )
            ],
            PlanePositionSequence=[item(ImagePositionPatient=[f"{10 + 3.5 * number:g}", "-60", "40"])],
            FrameVOILUTSequence=[item(WindowCenter="0", WindowWidth=f"{4000 + number}")],
            CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=30.0 * number)],
            MRVelocityEncodingSequence=[
                item(
                    VelocityEncodingDirection=[0.0, 0.6, -0.8],
                    VelocityEncodingMinimumValue=-150.0,
                    VelocityEncodingMaximumValue=150.0,
                )
            ],
        )
        for number in range(frames)
    ]
    return dataset


PHILIPS = "Philips MR Imaging DD 005"


def philips_dataset(frames=3):
    """The enhanced object as Philips' scanners write it: each frame also has, in a private sequence, what a classic
    object would say of it, in classic terms: five values of image type, its own window, rescaling and position.
    """
    dataset = enhanced_dataset(frames)
    dataset.Manufacturer = "Philips"
    for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        classic = item(
            ImageType=["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"],
            InstanceNumber=number + 1,
            TriggerTime=f"{7 * number}",
            EchoTime="99",
            SliceThickness="77",
            ImagePositionPatient=["1", "2", "3"],
            WindowCenter="11",
            WindowWidth="22",
            RescaleSlope="3",
            RescaleIntercept="5",
        )
        groups.private_block(0x2005, PHILIPS, create=True).add_new(0x0F, "SQ", [classic])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.private_block(0x2005, PHILIPS, create=True).add_new(0x0E, "SQ", [item(EchoTime="98")])
    return dataset


def changed(function, head=None, meta=None):
    """A function that makes an image with other pixels, header fields and meta attributes, as a module would."""

    def change(image):
        header, attributes = image.getHead(), ismrmrd.Meta(image.meta)
        attributes.update(meta or {})
        for name, value in (head or {}).items():
            setattr(header, name, value)
        return ismrmrd.Image(head=header, data=np.ascontiguousarray(function(image.data)), meta=attributes)

    return change


def rescaled(dataset):
    """Pixels after rescaling, as an independent reading of the dataset gives them."""
    pixels = dataset.pixel_array.astype(float)
    return pixels * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))


logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
