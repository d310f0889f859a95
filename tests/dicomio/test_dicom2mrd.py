"""DICOM to MRD: finding files, pixels, geometry, counters, time stamps and the header."""

import io
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

import dicom2mrd
import dicom_tools as tools
import mrd2dicom
from dicomio import files
from dicomio import geometry as dicomgeometry
from dicomio.files import DicomFileError
from dicomio.header import seconds_of_day
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from mrdio.mrdheader import parse_header


def converted(tmp_path, *datasets):
    out = tmp_path / "out.h5"
    dicom2mrd.convert(tools.folder_of(tmp_path, *datasets), out)
    return tools.images_in(out)


def header_of(path):
    with MrdReader(path) as reader:
        return parse_header(reader.header_xml)


# ---------------------------------------------------------------------------------------------------- finding files
def test_files_are_found_by_their_content(tmp_path, caplog):
    folder = tmp_path / "dicoms"
    (folder / "a" / "b").mkdir(parents=True)
    small = tools.testdata("MR_small.dcm")
    for name in ("one.dcm", "a/two.IMA", "a/b/three", "a/b/1.2.840.4"):
        shutil.copy(small, folder / name)
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "a" / "empty").touch()
    (folder / "a" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (folder / "a" / "letter.ima").write_text("Dear radiologist, this is no DICOM file at all. " * 9)
    shutil.copy(tools.testdata("test-SR.dcm"), folder / "report")
    (folder / "short").write_bytes(tools.testdata("MR_truncated.dcm").read_bytes())
    assert dicom2mrd.convert(folder, tmp_path / "out.h5") == 4
    skipped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert len(skipped) == 3
    for name in ("broken.dcm", "letter.ima", "short"):
        assert sum(name in message for message in skipped) == 1


@pytest.mark.parametrize("length", [200, 500])
def test_files_cut_before_their_image_are_named(length, tmp_path):
    folder = tools.folder_of(tmp_path, tools.mr_dataset())
    (folder / "cut").write_bytes(tools.testdata("MR_small.dcm").read_bytes()[:length])
    shutil.copy(tools.testdata("test-SR.dcm"), folder / "report")
    command = (sys.executable, Path(dicom2mrd.__file__), "-o", tmp_path / "out.h5", folder)
    result = tools.run_program(*command)
    assert result.returncode == 0
    assert "WARNING: skipped" in result.stderr
    assert str(folder / "cut") in result.stderr
    assert "report" not in result.stderr


def test_no_slope_counts_as_one(tmp_path):
    (image,) = converted(tmp_path, tools.mr_dataset(RescaleSlope="0", RescaleIntercept="-5"))
    assert (float(image.meta["RescaleSlope"]), float(image.meta["RescaleIntercept"])) == (1, -5)
    (found,) = tools.outputs(written_back(tmp_path))
    assert (found.RescaleSlope, found.RescaleIntercept) == (1, -5)


def written_back(tmp_path):
    mrd2dicom.convert(tmp_path / "out.h5", tmp_path / "back")
    return tmp_path / "back"


def test_command_line(tmp_path, capsys):
    folder = tools.folder_of(tmp_path, tools.mr_dataset())
    out = tmp_path / "out.h5"
    assert dicom2mrd.main(["-o", str(out), str(folder), "-g", "mine"]) == 0
    assert "1 images" in capsys.readouterr().out
    with h5py.File(out) as file:
        assert list(file) == ["mine"]
    assert dicom2mrd.main(["-o", str(out), str(folder), "-g", "mine"]) == 1
    assert "'mine' already" in capsys.readouterr().err
    assert dicom2mrd.main(["-o", str(out), str(folder), "-g", "other"]) == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    assert dicom2mrd.main(["-o", str(tmp_path / "no.h5"), str(empty)]) == 1
    assert str(empty) in capsys.readouterr().err
    assert dicom2mrd.main(["-o", str(tmp_path / "no.h5"), str(tmp_path / "nowhere")]) == 1
    assert not (tmp_path / "no.h5").exists()


@pytest.mark.parametrize("group", ["", "/", ".", "a/"])
def test_impossible_group(group, tmp_path):
    with pytest.raises(MrdFileError, match="group"):
        dicom2mrd.convert(tools.folder_of(tmp_path, tools.mr_dataset()), tmp_path / "out.h5", group)


def test_a_missing_decoder_is_named(tmp_path, caplog):
    folder = tools.folder_of(tmp_path, tools.testdata("MR_small_jpeg_ls_lossless.dcm"))
    with pytest.raises(DicomFileError):
        dicom2mrd.convert(folder, tmp_path / "out.h5")
    assert "JPEG-LS" in caplog.text
    assert "pyjpegls" in caplog.text


def test_an_impossible_number_of_frames_costs_no_memory(tmp_path, caplog):
    folder = tools.folder_of(tmp_path, tools.mr_dataset(NumberOfFrames=2**31 - 1), tools.mr_dataset())
    assert dicom2mrd.convert(folder, tmp_path / "out.h5") == 1
    assert "2147483647 frames" in caplog.text


def test_more_frames_than_mrd_numbers_are_refused_at_once(tmp_path, caplog):
    tiny = tools.mr_dataset(rows=1, columns=1, NumberOfFrames=65536, PixelData=bytes(2 * 65536))
    assert dicom2mrd.convert(tools.folder_of(tmp_path, tiny, tools.mr_dataset()), tmp_path / "out.h5") == 1
    assert "000.dcm: it says that it has 65536 frames, expected at most 65535" in caplog.text


def test_deflated_files_are_inflated_up_to_a_limit(tmp_path, caplog, monkeypatch):
    source = tools.mr_dataset(rows=1000, columns=1000, PixelData=bytes(2 * 10**6))
    source.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    folder = tools.folder_of(tmp_path, source)
    (path,) = folder.iterdir()
    bare = path.read_bytes()[132:]  # without preamble
    assert len(bare) < 10**4
    (folder / "bare.dcm").write_bytes(bare)
    assert dicom2mrd.convert(folder, tmp_path / "out.h5") == 2
    monkeypatch.setattr(files, "LARGEST_INFLATED", 1 << 20)
    with pytest.raises(DicomFileError):
        dicom2mrd.convert(folder, tmp_path / "none.h5")
    assert caplog.text.count("inflated it has more than 1 MiB") == 2


def encoded_dataset(syntax, *frames, **attributes):
    """An object of 8-bit pixels that holds these compressed frames, whatever its attributes say."""
    dataset = tools.mr_dataset(BitsAllocated=8, BitsStored=8, HighBit=7, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def picture(kind, size):
    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    return file.getvalue()


def jpeg_that_says(width, height):
    data = picture("JPEG", (10, 6))
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def rle_frame(size):
    """Runs of 128 zeros in two bytes each."""
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * (size // 2)


BOMBS = {
    "RLE": (RLELossless, rle_frame(17 << 20), "an RLE frame has 17825856 bytes"),
    "JPEG": (JPEGBaseline8Bit, jpeg_that_says(65535, 65535), "a compressed frame is too large"),
    "JPEG of another size": (
        JPEGBaseline8Bit,
        jpeg_that_says(4000, 3000),
        "a compressed frame has 3000 x 4000 pixels, expected 6 x 10",
    ),
    "JPEG 2000 of another size": (
        JPEG2000Lossless,
        picture("JPEG2000", (500, 400)),
        "a compressed frame has 400 x 500 pixels, expected 6 x 10",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_of_huge_pixels_are_refused(name, tmp_path, caplog):
    """None is decoded first: the most that decoders take is a small multiple of the file."""
    syntax, frame, says = BOMBS[name]
    folder = tools.folder_of(tmp_path, encoded_dataset(syntax, frame), tools.mr_dataset())
    tracemalloc.start()
    try:
        assert dicom2mrd.convert(folder, tmp_path / "out.h5") == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert says in caplog.text
    assert peak < 100 << 20


@pytest.mark.parametrize(
    ("shape", "frames", "says"),
    [
        ((65535, 65535), 1, "1 frames of 65535 x 65535 pixels, 4095 MiB"),
        ((8192, 8192), 300, "300 frames of 8192 x 8192"),
    ],
)
def test_compressed_objects_that_say_they_are_huge_are_refused(shape, frames, says, tmp_path, caplog):
    source = encoded_dataset(JPEG2000Lossless, *[picture("JPEG2000", (4, 4))] * frames)
    source.Rows, source.Columns = shape
    source.NumberOfFrames = frames
    with pytest.raises(DicomFileError):
        dicom2mrd.convert(tools.folder_of(tmp_path, source), tmp_path / "out.h5")
    assert says in caplog.text


def test_frames_that_are_missing_are_named(tmp_path, caplog):
    source = tools.mr_dataset()
    source.compress(RLELossless)
    (frame,) = generate_frames(source.PixelData, number_of_frames=1)
    source.PixelData, source.NumberOfFrames = encapsulate([frame] * 2, has_bot=True), 3
    assert dicom2mrd.convert(tools.folder_of(tmp_path, source), tmp_path / "out.h5") == 2
    assert "its pixels end after 2 of 3 frames" in caplog.text


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    folder = tools.folder_of(tmp_path, tools.mr_dataset())
    (tmp_path / "out.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert dicom2mrd.main(["-o", str(tmp_path / "out.h5"), str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


# --------------------------------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (7, 9), (5, 8), (1, 1)])
def test_position_is_the_centre_pixels(rows, columns, tmp_path):
    """By hand: 1.25 mm between rows, 0.8 mm between columns; rows run along (0.8, 0.6, 0), columns along (0, 0, -1)."""
    pixels = np.zeros((rows, columns), "<u2").tobytes()
    (image,) = converted(tmp_path, tools.mr_dataset(rows=rows, columns=columns, PixelData=pixels))
    head = image.getHead()
    x = 0.8 * (columns // 2)
    y = 1.25 * (rows // 2)
    np.testing.assert_allclose(tuple(head.position), (-12.5 + 0.8 * x, 30.25 + 0.6 * x, 101.75 - y), rtol=1e-6)
    np.testing.assert_allclose(tuple(head.read_dir), (0.8, 0.6, 0), atol=1e-7)
    np.testing.assert_allclose(tuple(head.phase_dir), (0, 0, -1), atol=1e-7)
    np.testing.assert_allclose(tuple(head.slice_dir), (-0.6, 0.8, 0), atol=1e-7)
    np.testing.assert_allclose(tuple(head.field_of_view), (0.8 * columns, 1.25 * rows, 4.5), rtol=1e-6)
    assert tuple(head.matrix_size) == (columns, rows, 1)
    assert image.data.shape == (1, 1, rows, columns)
    # and the way back is the inverse
    (plane,) = dicomgeometry.to_planes(head)
    np.testing.assert_allclose(plane.first_pixel, (-12.5, 30.25, 101.75), atol=2e-5)
    np.testing.assert_allclose(plane.spacing, (1.25, 0.8), rtol=1e-6)


def test_images_without_geometry_get_none(tmp_path):
    (image,) = converted(tmp_path, tools.testdata("SC_rgb_jpeg.dcm"))
    assert tuple(image.read_dir) == (0, 0, 0)
    assert tuple(image.field_of_view) == (256, 256, 0)


# ----------------------------------------------------------------------------------------------------------- pixels
@pytest.mark.parametrize(
    ("bits", "signed", "kind"),
    [
        (8, 0, np.uint16),
        (8, 1, np.int16),
        (16, 0, np.uint16),
        (16, 1, np.int16),
        (32, 0, np.uint32),
        (32, 1, np.float64),
    ],
)
def test_pixel_types(bits, signed, kind, tmp_path):
    values = np.arange(60).reshape(6, 10) - 30 * signed
    stored = values.astype(("<i" if signed else "<u") + str(bits // 8))
    dataset = tools.mr_dataset(
        BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed, PixelData=stored.tobytes()
    )
    (image,) = converted(tmp_path, dataset)
    assert image.data.dtype == kind
    np.testing.assert_array_equal(image.data[0, 0], values)


def test_rescaling_stands_beside_the_stored_values(tmp_path):
    dataset = tools.mr_dataset(RescaleSlope="0.5", RescaleIntercept="-100", RescaleType="US")
    (image,) = converted(tmp_path, dataset)
    np.testing.assert_array_equal(image.data[0, 0], dataset.pixel_array)
    assert (float(image.meta["RescaleSlope"]), float(image.meta["RescaleIntercept"])) == (0.5, -100)
    # DICOM's window 1000 +- 1000 is about rescaled values: 0.5 * 2200 - 100 = 1000
    assert (float(image.meta["WindowCenter"]), float(image.meta["WindowWidth"])) == (2200, 4000)


def test_colours(tmp_path):
    path = tools.testdata("SC_rgb_rle_2frame.dcm")
    truth = tools.read(path).pixel_array
    images = converted(tmp_path, path)
    assert len(images) == 2
    for number, image in enumerate(images):
        assert image.image_type == ismrmrd.IMTYPE_RGB
        assert image.data.shape == (3, 1, 100, 100)
        np.testing.assert_array_equal(np.moveaxis(image.data[:, 0], 0, -1), truth[number])


def test_deep_colours_are_reduced_with_a_warning(tmp_path, caplog):
    (image,) = converted(tmp_path, tools.testdata("SC_rgb_rle_16bit.dcm"))
    truth = tools.read(tools.testdata("SC_rgb_rle_16bit.dcm")).pixel_array / 257
    np.testing.assert_allclose(np.moveaxis(image.data[:, 0], 0, -1), truth, atol=0.5)
    assert "8 bits" in caplog.text
    assert "DicomPixelHash" not in image.meta


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}, ismrmrd.IMTYPE_MAGNITUDE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, ismrmrd.IMTYPE_PHASE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "R"]}, ismrmrd.IMTYPE_REAL),
        ({"ImageType": ["DERIVED", "PRIMARY", "I"]}, ismrmrd.IMTYPE_IMAG),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "VELOCITY MAP", "P", "PCA"]}, ismrmrd.IMTYPE_PHASE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]}, ismrmrd.IMTYPE_MAGNITUDE),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, ismrmrd.IMTYPE_MAGNITUDE),
        ({"ComplexImageComponent": "IMAGINARY"}, ismrmrd.IMTYPE_IMAG),
    ],
)
def test_image_types(attributes, kind, tmp_path):
    (image,) = converted(tmp_path, tools.mr_dataset(**attributes))
    assert image.image_type == kind


# ------------------------------------------------------------------------------------- series, counters, time stamps
def test_series_and_slices_have_their_order(tmp_path):
    """Instance numbers run against the slice normal (-0.6, 0.8, 0), and files come in neither order."""
    first = {"SeriesInstanceUID": "1.2.3.9", "SeriesNumber": 12}
    datasets = [
        tools.mr_dataset(InstanceNumber=3 - slice_, ImagePositionPatient=["0", f"{10 * slice_}", "0"], **first)
        for slice_ in (1, 0, 2)
    ]
    images = converted(tmp_path, *datasets, tools.mr_dataset())
    assert [(i.image_series_index, i.image_index, i.slice) for i in images] == [
        (1, 1, 0),
        (2, 1, 2),
        (2, 2, 1),
        (2, 3, 0),
    ]
    assert [image.meta["SeriesNumber"] for image in images] == ["7", "12", "12", "12"]
    header = header_of(tmp_path / "out.h5")
    assert len(header.encoding) == 2
    assert header.encoding[1].encodingLimits.slice.maximum == 2


def test_flow_series(tmp_path):
    """Two encodings of three heart phases: Siemens' private text, trigger times, ticks."""

    def flow(phase, text, number):
        dataset = tools.mr_dataset(
            TriggerTime=f"{40.5 * phase + 7.5}",
            InstanceNumber=number,
            AcquisitionTime=f"10153{phase}.5",
            ImageType=["ORIGINAL", "PRIMARY", "P"],
        )
        dataset.private_block(0x0051, "SIEMENS MR HEADER", create=True).add_new(0x14, "SH", text)
        return dataset

    texts = ["v150in", "v80.5_fh"]
    datasets = [flow(phase, texts[e], 1 + phase + 3 * e) for e in (0, 1) for phase in (0, 1, 2)]
    images = converted(tmp_path, *datasets)
    assert [(i.set, i.phase, i.repetition) for i in images] == [(e, p, 0) for e in (0, 1) for p in (0, 1, 2)]
    assert {(i.meta["Venc"], i.meta["VencDirection"]) for i in images} == {("150.0", "in"), ("80.5", "fh")}
    assert [i.physiology_time_stamp[0] for i in images[:3]] == [3, 19, 35]  # 7.5, 48, 88.5 ms in 2.5 ms
    assert [float(i.meta["TriggerTime"]) for i in images[:3]] == [7.5, 48.0, 88.5]
    assert images[1].acquisition_time_stamp == round((10 * 3600 + 15 * 60 + 31.5) / 2.5e-3)
    assert images[1].meta["AcquisitionTime"] == "101531.5"


def test_echoes_and_repetitions(tmp_path):
    datasets = [
        tools.mr_dataset(EchoTime=echo, InstanceNumber=number)
        for number, echo in enumerate(["9.2", "4.6", "9.2", "4.6"], start=1)
    ]
    images = converted(tmp_path, *datasets)
    assert [(i.contrast, i.repetition) for i in images] == [(1, 0), (0, 0), (1, 1), (0, 1)]
    assert header_of(tmp_path / "out.h5").sequenceParameters.TE == [4.6, 9.2]


def test_enhanced_frames(tmp_path):
    images = converted(tmp_path, tools.enhanced_dataset())
    assert len(images) == 4
    assert {image.image_type for image in images} == {ismrmrd.IMTYPE_PHASE}
    assert [image.slice for image in images] == [3, 2, 1, 0]  # the normal points to -x, the frames go along +x
    for number, image in enumerate(images):
        # rows along y with 2 mm between columns, columns along -z with 1.5 mm between rows, 64 x 64
        np.testing.assert_allclose(tuple(image.position), (10 + 3.5 * number, -60 + 64, 40 - 48), atol=1e-5)
        assert tuple(image.field_of_view) == (128, 96, 3)
        assert image.meta["VencDirection"] == ["0", "0.6", "-0.8"]
        assert float(image.meta["Venc"]) == 150
        assert image.physiology_time_stamp[0] == 12 * number
        assert image.acquisition_time_stamp == round((36930 + 0.1 * number + 0.05) / 2.5e-3)
        assert (float(image.meta["RescaleSlope"]), float(image.meta["RescaleIntercept"])) == (2, -4096)
        assert float(image.meta["WindowWidth"]) == (4000 + number) / 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("101530.25", 36930.25),
        ("10:15:30", 36930),
        ("20240501101530.5+0200", 36930.5),
        ("10", 36000),
        ("", None),
        ("noon", None),
        ("99", None),
    ],
)
def test_times(text, seconds):
    assert seconds_of_day(text) == seconds


# ----------------------------------------------------------------------------------------------------------- header
def test_header(tmp_path):
    converted(tmp_path, tools.mr_dataset(InversionTime="450"))
    header = header_of(tmp_path / "out.h5")
    assert header.subjectInformation.patientName == "Doe^Jane"
    assert str(header.subjectInformation.patientBirthdate) == "1970-01-02"
    assert header.studyInformation.studyInstanceUID == "1.2.3.1"
    assert str(header.studyInformation.studyTime) == "10:15:00"
    assert header.measurementInformation.patientPosition.value == "FFS"
    assert header.measurementInformation.protocolName == "t1"
    assert header.measurementInformation.frameOfReferenceUID == "1.2.3.3"
    assert header.acquisitionSystemInformation.systemVendor == "Somebody"
    assert header.acquisitionSystemInformation.systemFieldStrength_T == 2.89
    assert header.experimentalConditions.H1resonanceFrequency_Hz == 123251000
    parameters = header.sequenceParameters
    assert (parameters.TR, parameters.TE, parameters.TI, parameters.flipAngle_deg) == ([8.6], [3.25], [450], [15])
    space = header.encoding[0].reconSpace
    assert (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z) == (10, 6, 1)
    assert (space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z) == (8, 7.5, 4.5)


def test_odd_values_leave_gaps_not_errors(tmp_path):
    dataset = tools.mr_dataset(PatientSex="X", StudyDate="", PatientPosition="", AccessionNumber="A-17/x")
    for name in ("MagneticFieldStrength", "ImagingFrequency", "AcquisitionTime", "SeriesNumber", "WindowCenter"):
        delattr(dataset, name)
    (image,) = converted(tmp_path, dataset)
    header = header_of(tmp_path / "out.h5")
    assert header.subjectInformation.patientGender is None
    assert header.studyInformation.studyDate is None
    assert header.studyInformation.accessionNumber is None
    assert header.experimentalConditions.H1resonanceFrequency_Hz == 0
    assert image.acquisition_time_stamp == 0
    assert "WindowCenter" not in image.meta
