"""MRD images to DICOM: without a DICOM origin, with a hostile one, and where their pixels lie in the patient."""

import base64
import json
import re

import ismrmrd
import numpy as np
import pytest
from pydicom.uid import UID

import dicom_tools as tools
import mrd2dicom
import mrdhelper
from dicomio.packing import HASH_KEY, pixel_hash
from dicomio.pixels import ValueRange, store
from mrdio.mrdfile import MrdWriter

OBLIQUE = ((0.6, 0.8, 0.0), (0.48, -0.36, 0.8), (0.64, -0.48, -0.6))  # read, phase, slice: orthonormal


def image_of(pixels, field_of_view=(200.0, 150.0, 5.0), position=(11.0, -22.0, 33.0), directions=OBLIQUE, **options):
    head = ismrmrd.ImageHeader()
    head.position = position
    head.read_dir, head.phase_dir, head.slice_dir = directions
    stamp = options.pop("acquisition_time_stamp", 0)
    head.acquisition_time_stamp, head.physiology_time_stamp = stamp, (options.pop("trigger", 0), 0, 0)
    options.setdefault("index", 1)
    return mrdhelper.build_image(pixels, head, None, field_of_view=field_of_view, **options)


def header_xml():
    """A header as raw data has it, with the patient, study and sequence filled in."""
    xsd = ismrmrd.xsd
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=20, y=15, z=1), fieldOfView_mm=xsd.fieldOfViewMm(x=200, y=150, z=5)
    )
    return xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientName="Roe^Ann", patientID="X\\1", patientGender="F"),
        studyInformation=xsd.studyInformationType(
            studyInstanceUID="1.2.3.77", studyDescription="heart", bodyPartExamined="HEART"
        ),
        measurementInformation=xsd.measurementInformationType(
            patientPosition=xsd.patientPositionType.FFP, protocolName="spiral ü", frameOfReferenceUID="1.2.3.88"
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="SIEMENS", systemFieldStrength_T=0.55
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=23_500_000),
        encoding=[
            xsd.encodingType(
                encodedSpace=space,
                reconSpace=space,
                encodingLimits=xsd.encodingLimitsType(),
                trajectory=xsd.trajectoryType.SPIRAL,
            )
        ],
        sequenceParameters=xsd.sequenceParametersType(TR=[6.5], TE=[1.25], TI=[300.0], flipAngle_deg=[25.0]),
    ).toXML("utf-8")


def written(tmp_path, *images, header=True):
    path = tmp_path / "images.h5"
    with MrdWriter(path) as writer:
        if header:
            writer.write_header(header_xml())
        for image in images:
            writer.write(image)
    mrd2dicom.convert(path, tmp_path / "out")
    return tools.outputs(tmp_path / "out")


def ramp(rows=15, columns=20):
    return np.arange(rows * columns, dtype=np.int16).reshape(rows, columns)


# ------------------------------------------------------------------------------------------------- no DICOM origin
def test_image_from_raw_data(tmp_path):
    image = image_of(ramp(), series=3, index=4, acquisition_time_stamp=round(36930.5 / 2.5e-3), trigger=20)
    (found,) = written(tmp_path, image)
    assert tools.dicom_errors(found, tmp_path) == set()
    assert found.SOPClassUID.name == "MR Image Storage"
    assert (found.PatientName, found.PatientID, found.PatientSex) == ("Roe^Ann", "X 1", "F")
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID, found.PatientPosition) == ("1.2.3.77", "1.2.3.88", "FFP")
    assert (found.SeriesNumber, found.InstanceNumber, found.Modality) == (3, 1, "MR")
    assert list(found.ImageType) == ["ORIGINAL", "PRIMARY", "M"]
    assert (found.RepetitionTime, found.EchoTime, found.FlipAngle) == (6.5, 1.25, 25)
    assert (found.MagneticFieldStrength, found.ImagingFrequency) == (0.55, 23.5)
    assert (found.AcquisitionTime, found.TriggerTime) == ("101530.500000", 50)
    assert (found.SeriesDescription, found.MRAcquisitionType) == ("spiral ü", "2D")
    assert list(found.PixelSpacing) == [10, 10]
    assert found.SliceThickness == 5
    np.testing.assert_array_equal(found.pixel_array, ramp())
    assert (found.WindowCenter, found.WindowWidth) == (2048, 4096)


def test_nothing_is_made_up_without_header_and_geometry(tmp_path):
    directions = ((0, 0, 0),) * 3
    image = image_of(ramp(), field_of_view=(0, 0, 0), directions=directions)
    (found,) = written(tmp_path, image, header=False)
    assert tools.dicom_errors(found, tmp_path) == set()
    assert "not known" in found.ImageComments
    for keyword in ("PatientName", "PatientID", "StudyDate", "PatientPosition", "EchoTime", "SliceThickness"):
        assert found[keyword].is_empty
    assert "AcquisitionTime" not in found
    assert UID(found.StudyInstanceUID).is_valid


def test_time_stamps_that_are_no_trigger_delays(tmp_path):
    (found,) = written(tmp_path, image_of(ramp(), trigger=10_016_767, acquisition_time_stamp=2**31))
    assert "TriggerTime" not in found
    assert "AcquisitionTime" not in found
    assert tools.dicom_errors(found, tmp_path) == set()


@pytest.mark.parametrize(("rows", "columns"), [(15, 20), (16, 21), (12, 9), (13, 18)])
def test_point_phantom_in_patient_coordinates(rows, columns, tmp_path):
    """A point at (x, y) [mm] in the plane, imaged as the reconstructions do: x = 0 is at column N // 2.

    dcmtk reads geometry and pixels back; nothing of this project takes part in that.
    """
    spacing = np.array([6.25, 4.0])  # between rows, between columns
    position = np.array([11.0, -22.0, 33.0])
    steps = np.array([-4, 3])  # rows, columns from the centre
    read, phase, _ = (np.array(direction) for direction in OBLIQUE)
    point = position + steps[1] * spacing[1] * read + steps[0] * spacing[0] * phase
    pixels = np.zeros((rows, columns), np.int16)
    pixels[rows // 2 + steps[0], columns // 2 + steps[1]] = 1000
    written(tmp_path, image_of(pixels, field_of_view=(columns * spacing[1], rows * spacing[0], 5.0)))

    (path,) = (tmp_path / "out").iterdir()
    place, shown = tools.seen_by_dcmtk(path, tmp_path)
    assert shown.shape == (rows, columns)
    found = place(*np.argwhere(shown)[0])
    np.testing.assert_allclose(found, point, atol=1e-4)


@pytest.mark.parametrize("slices", [4, 5])
def test_volume_becomes_slices(slices, tmp_path):
    pixels = np.arange(slices * 6, dtype=np.int16).reshape(slices, 2, 3)
    found = written(tmp_path, image_of(pixels, field_of_view=(3, 2, 2.5 * slices)))
    assert len(found) == slices
    normal = np.array(OBLIQUE[2])
    for index, dataset in enumerate(found):
        np.testing.assert_array_equal(dataset.pixel_array, pixels[index])
        assert dataset.SliceThickness == 2.5
        # slice N // 2 is at the position; in the plane, pixel (1, 1) is
        centre = np.array(dataset.ImagePositionPatient, float)
        centre += np.array(dataset.ImageOrientationPatient[:3], float) + np.array(
            dataset.ImageOrientationPatient[3:], float
        )
        np.testing.assert_allclose(centre, [11, -22, 33] + 2.5 * (index - slices // 2) * normal, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e7])
def test_floats_survive_to_half_a_step(scale, tmp_path):
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(2, 15, 20)) * scale).astype(np.float32)
    found = written(tmp_path, *(image_of(value, index=number + 1) for number, value in enumerate(values)))
    assert len({(d.RescaleSlope, d.RescaleIntercept) for d in found}) == 1
    for dataset, value in zip(found, values, strict=True):
        step = (values.max() - values.min()) / 65535
        assert np.abs(tools.rescaled(dataset) - value).max() <= 0.5001 * step
        assert tools.dicom_errors(dataset, tmp_path) == set()


def test_whole_floats_are_stored_as_they_are(tmp_path):
    (found,) = written(tmp_path, image_of(ramp().astype(np.float32) - 100))
    np.testing.assert_array_equal(found.pixel_array, ramp() - 100.0)
    assert "RescaleSlope" not in found
    assert found.PixelRepresentation == 1


def test_scaling_of_odd_values(caplog):
    for values in (np.full((1, 2, 2), 0.3), np.array([[[np.nan, 0.5, np.inf, -2.25]]])):
        stored = store(values)
        back = stored.values * stored.slope + stored.intercept
        finite = np.isfinite(values)
        np.testing.assert_allclose(back[finite], values[finite], atol=0.51 * (2.75 / 65535))
    assert "finite" in caplog.text
    assert ValueRange.of(np.full(3, np.nan)) == ValueRange(0.0, 0.0, False)
    huge = store(np.array([[[-1.7e308, 1.7e308]]]))
    assert huge.values.tolist() == [[[0, 65535]]]
    large = np.array([[[0, 2**32 - 1]]], np.uint32)
    stored = store(large)
    assert np.abs(stored.values * stored.slope + stored.intercept - large).max() <= 0.51 * stored.slope


def test_complex_images_become_magnitude_and_phase(tmp_path):
    rng = np.random.default_rng(6)
    values = (rng.normal(size=(15, 20)) + 1j * rng.normal(size=(15, 20))).astype(np.complex64)
    magnitude, phase = written(tmp_path, image_of(values, series=2))
    assert (magnitude.SeriesNumber, phase.SeriesNumber) == (2, 1002)
    assert magnitude.SeriesInstanceUID != phase.SeriesInstanceUID
    assert magnitude.StudyInstanceUID == phase.StudyInstanceUID
    assert (magnitude.ImageType[2], phase.ImageType[2]) == ("M", "P")
    assert phase.SeriesDescription == "spiral ü_phase"
    np.testing.assert_allclose(tools.rescaled(magnitude), np.abs(values), atol=0.51 * np.ptp(np.abs(values)) / 65535)
    np.testing.assert_allclose(tools.rescaled(phase), np.angle(values), atol=0.51 * 2 * np.pi / 65535)


def test_channels_are_series(tmp_path):
    found = written(tmp_path, image_of(np.stack([ramp(), 2 * ramp()])[:, np.newaxis]))
    assert [dataset.SeriesDescription for dataset in found] == ["spiral ü_channel 1", "spiral ü_channel 2"]
    np.testing.assert_array_equal(found[1].pixel_array, 2 * ramp())


def test_colours(tmp_path):
    pixels = np.random.default_rng(8).integers(0, 256, (3, 1, 15, 21)).astype(np.uint16)
    (found,) = written(tmp_path, image_of(pixels, image_type=ismrmrd.IMTYPE_RGB))
    assert (found.PhotometricInterpretation, found.BitsAllocated) == ("RGB", 8)
    np.testing.assert_array_equal(np.moveaxis(found.pixel_array, -1, 0), pixels[:, 0])
    assert tools.dicom_errors(found, tmp_path) == set()


def test_window_and_description_of_a_module(tmp_path):
    meta = {"WindowCenter": "150", "WindowWidth": "80", "SequenceDescriptionAdditional": "TFD"}
    meta["ImageComment"] = "4 coils"
    (found,) = written(tmp_path, image_of(ramp().astype(np.float32) / 7, meta=meta))
    assert (found.WindowCenter, found.WindowWidth) == (150, 80)
    assert (found.SeriesDescription, found.ImageComments) == ("spiral ü_TFD", "4 coils")


# ---------------------------------------------------------------------------------------------------------- hostile
def packed(model):
    return base64.b64encode(json.dumps(model).encode()).decode()


VALID = {
    "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.4"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3.500"]},
    "0020000E": {"vr": "UI", "Value": ["1.2.3.501"]},
}


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        packed([1, 2]),
        packed({}),
        packed({**VALID, "0020000D": {"vr": "UI", "Value": ["../../etc"]}}),
        base64.b64encode(b"[" * 100_000).decode(),
        base64.b64encode(b'{"a": ').decode(),
    ],
)
def test_broken_attributes_leave_the_most_necessary(text, tmp_path, caplog):
    (found,) = written(tmp_path, image_of(ramp(), meta={"DicomJson": text}))
    assert "DicomJson" in caplog.text
    assert found.PatientName == "Roe^Ann"
    np.testing.assert_array_equal(found.pixel_array, ramp())
    assert tools.dicom_errors(found, tmp_path) == set()


@pytest.mark.parametrize(
    "element",
    [
        {"00280008": {"vr": "IS", "Value": ["many"]}},
        {"00280010": {"vr": "XX", "Value": [5]}},
        {"nonsense": 7},
        {"00280010": 7},
        {"00200011": {"vr": "IS", "Value": [10**30]}},
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": 12}]}},
        {"00101010": {"vr": "AS", "BulkDataURI": "file:///etc/passwd"}},
        {"00020010": {"vr": "UI", "Value": ["1.2"]}},
        {"7FE00010": {"vr": "OW", "InlineBinary": "AAAA"}},
        {"00280100": {"vr": "US", "Value": [7]}},
        {"52009230": {"vr": "SQ", "Value": [{}, 5]}},
        {"00081140": {"vr": "SQ", "Value": "no list"}},
        {"52009230": {"vr": "LO", "Value": ["text"]}},
        {"00280008": {"vr": "IS", "Value": [2**31 - 1]}},
        {"00080018": {"vr": "UI", "Value": ["1.2", "1.3"]}, "00280008": {"vr": "IS", "Value": [5]}},
        {"00080005": {"vr": "CS", "Value": ["ISO 2022 NONSENSE"]}},
        {"00281053": {"vr": "DS", "Value": ["steep"]}, "00281052": {"vr": "DS", "Value": [1]}},
    ],
)
def test_hostile_attributes_never_stop_the_conversion(element, tmp_path):
    (found,) = written(tmp_path, image_of(ramp(), meta={"DicomJson": packed({**VALID, **element})}))
    np.testing.assert_array_equal(found.pixel_array, ramp())
    assert found.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert tools.run_program("dcmdump", next((tmp_path / "out").iterdir())).returncode == 0


def test_new_matrix_of_a_source_whose_directions_are_none(tmp_path, caplog):
    lost = (0.0, 0.0, 0.0)
    dataset = tools.mr_dataset(3, 4, ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    meta = {"DicomJson": packed({key: value for key, value in dataset.to_json_dict().items() if key != "7FE00010"})}
    (found,) = written(tmp_path, image_of(ramp(), position=lost, directions=(lost, lost, lost), meta=meta))
    assert "not orthogonal" in caplog.text
    np.testing.assert_array_equal(found.pixel_array, ramp())
    assert found.ImageComments == mrd2dicom.GEOMETRY_UNKNOWN


@pytest.mark.parametrize(
    "element",
    [
        {"00280010": {"vr": "US", "Value": [3]}},
        {"00280002": {"vr": "US", "Value": [3]}},
        {"00280101": {"vr": "US", "Value": [0]}},
        {"00280004": {"vr": "CS", "Value": ["PALETTE COLOR"]}},
        {"00280004": {"vr": "CS", "Value": ["YBR_FULL"]}},
    ],
)
def test_description_that_contradicts_the_unchanged_pixels(element, tmp_path, caplog):
    """The pixels are said to be the source's, so that they would be put back as the attributes describe them."""
    pixels = ramp()
    dataset = tools.mr_dataset(*pixels.shape, BitsStored=16, HighBit=15, PixelRepresentation=1)
    model = {key: value for key, value in dataset.to_json_dict().items() if key != "7FE00010"} | element
    meta = {"DicomJson": packed(model), HASH_KEY: pixel_hash(image_of(pixels).data)}
    (found,) = written(tmp_path, image_of(pixels, meta=meta))
    assert "only the most necessary" in caplog.text
    np.testing.assert_array_equal(found.pixel_array, pixels)
    assert tools.dicom_errors(found, tmp_path) == set()


@pytest.mark.parametrize("frames", [-4, 0])
@pytest.mark.parametrize("changed", [False, True])
def test_impossible_number_of_frames(frames, changed, tmp_path):
    element = {"00280008": {"vr": "IS", "Value": [frames]}}
    dataset = tools.mr_dataset(*ramp().shape, BitsStored=16, HighBit=15, PixelRepresentation=1)
    model = {key: value for key, value in dataset.to_json_dict().items() if key != "7FE00010"} | element
    meta = {"DicomJson": packed(model)} | ({} if changed else {HASH_KEY: pixel_hash(image_of(ramp()).data)})
    (found,) = written(tmp_path, image_of(ramp(), meta=meta))
    assert found.NumberOfFrames == 1
    np.testing.assert_array_equal(found.pixel_array, ramp())


@pytest.mark.parametrize("values", [("1e308", "0"), ("1", "-1e309"), ("1e308", "-1e308"), ("1e-320", "0")])
def test_rescaling_without_finite_result(values, tmp_path, caplog):
    meta = {"RescaleSlope": values[0], "RescaleIntercept": values[1]}
    (found,) = written(tmp_path, image_of(100 * ramp().astype(np.float32) / 7, meta=meta))
    expected = 100 * ramp() / 7
    step = np.ptp(expected) / 65535
    if float(values[0]) > 1:
        assert "leaves no finite numbers" in caplog.text
        assert np.abs(tools.rescaled(found) - expected).max() <= 0.51 * step
    assert np.all(np.isfinite(tools.rescaled(found)))
    assert tools.dicom_errors(found, tmp_path) == set()


def test_window_without_finite_result(tmp_path, caplog):
    meta = {"RescaleSlope": "1e9", "RescaleIntercept": "0", "WindowCenter": "1e308", "WindowWidth": "1e308"}
    (found,) = written(tmp_path, image_of(ramp(), meta=meta))
    assert "no finite one" in caplog.text
    assert "WindowCenter" not in found
    assert found.RescaleSlope == 1e9


def empty_image():
    return ismrmrd.Image(head=ismrmrd.ImageHeader(), data=np.zeros((1, 1, 0, 4), np.int16))


def test_images_without_pixels(tmp_path, caplog, capsys):
    assert len(written(tmp_path, empty_image(), image_of(ramp()))) == 1
    assert "1 of 2 images have no pixels" in caplog.text
    with MrdWriter(tmp_path / "empty.h5") as writer:
        writer.write(empty_image())
    assert mrd2dicom.main([str(tmp_path / "empty.h5")]) == 1
    assert "has pixels" in capsys.readouterr().err
    assert not (tmp_path / "empty").exists()


def test_a_header_that_is_none(tmp_path):
    """Read leniently, a header may hold text where numbers belong, or nothing at all."""
    xml = header_xml().replace(">6.5<", ">fast<").replace(">23500000<", ">NaN<").replace("0.55", "strong")
    xml = xml.replace("1.2.3.77", "../..").replace("<x>20</x>", "<x>twenty</x>")
    for name, text in (("a", xml), ("b", "<ismrmrdHeader/>"), ("c", "no header")):
        path = tmp_path / f"{name}.h5"
        with MrdWriter(path) as writer:
            writer.write_header(text)
            writer.write(image_of(ramp()))
        mrd2dicom.convert(path, tmp_path / name)
        (found,) = tools.outputs(tmp_path / name)
        assert tools.dicom_errors(found, tmp_path) == set()
        assert found.RepetitionTime is None
        np.testing.assert_array_equal(found.pixel_array, ramp())


def test_file_names_stay_in_the_folder(tmp_path):
    meta = {"SeriesDescription": "../../évil\\name\x07/..", "SequenceDescriptionAdditional": "x" * 500}
    model = {**VALID, "00200011": {"vr": "IS", "Value": [-5]}, "00200013": {"vr": "IS", "Value": [-1]}}
    images = [
        image_of(ramp(), meta=meta),
        image_of(ramp(), series=4, meta={"DicomJson": packed(model), "SeriesDescription": "/"}),
    ]
    found = written(tmp_path, *images)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9_]+\.dcm", name) for name in names)
    assert all(len(dataset.SeriesDescription) <= 64 for dataset in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.h5", "out"]


def test_existing_files_are_kept(tmp_path):
    written(tmp_path, image_of(ramp()))
    (path,) = (tmp_path / "out").iterdir()
    before = path.read_bytes()
    mrd2dicom.convert(tmp_path / "images.h5", tmp_path / "out")
    assert path.read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("window", [("NaN", "5"), ("1e400", "x"), (["1", "2"], ["3", "4"]), ("5", "-3")])
def test_odd_windows(window, tmp_path):
    meta = {"WindowCenter": window[0], "WindowWidth": window[1], "RescaleSlope": "0", "RescaleIntercept": "inf"}
    (found,) = written(tmp_path, image_of(ramp(), meta=meta))
    assert found.WindowWidth > 0
    assert tools.dicom_errors(found, tmp_path) == set()


# ------------------------------------------------------------------------------------------------------ command line
def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "images.h5"
    for group in ("one", "two"):
        with MrdWriter(path, group) as writer:
            writer.write(image_of(ramp()))
    assert mrd2dicom.main([str(path)]) == 1
    assert "one, two" in capsys.readouterr().err
    assert mrd2dicom.main(["-g", "two", str(path)]) == 0
    assert "1 DICOM files" in capsys.readouterr().out
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert mrd2dicom.main(["-g", "one", "-o", str(tmp_path / "a" / "b"), str(path)]) == 0
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    assert mrd2dicom.main([str(tmp_path / "nothing.h5")]) == 1
    with MrdWriter(tmp_path / "raw.h5") as writer:
        writer.write_header(header_xml())
    assert mrd2dicom.main([str(tmp_path / "raw.h5")]) == 1
    assert "no images" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
