"""DICOM -> MRD -> (a module) -> MRD -> DICOM: what stays the same, and that what changed is said truthfully."""

import copy

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

import dicom_tools as tools
from dicomio import files as dicomfiles
from dicomio.frames import Frame, frame_count, plane_of

# Every output is a new object of a new series, made now.
NEW_OBJECT = {"SOPInstanceUID", "SeriesInstanceUID", "InstanceCreationDate", "InstanceCreationTime"}
# Says which device made the object, which is another now; and filling bytes at the end of the file.
LEFT_OUT = {"InstanceCreatorUID", "DataSetTrailingPadding"}
DERIVED = {
    "ContentDate",
    "ContentTime",
    "ImageType",
    "SeriesNumber",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SourceImageSequence[0].ReferencedSOPClassUID",
    "SourceImageSequence[0].ReferencedSOPInstanceUID",
}

UNCHANGED = [
    # name, further differences
    ("MR_small.dcm", set()),
    ("MR_small_RLE.dcm", set()),
    ("MR_small_bigendian.dcm", set()),
    ("MR_small_expb.dcm", set()),
    ("MR_small_implicit.dcm", set()),
    ("MR_small_jp2klossless.dcm", set()),
    ("MR_small_padded.dcm", set()),
    ("examples_overlay.dcm", set()),
    ("MR-SIEMENS-DICOM-WithOverlays.dcm", set()),
    ("MR2_J2KI.dcm", set()),
    ("MR2_J2KR.dcm", set()),
    ("MR2_UNCI.dcm", set()),
    ("MR2_UNCR.dcm", set()),
    ("emri_small.dcm", set()),
    ("emri_small_RLE.dcm", set()),
    ("emri_small_big_endian.dcm", set()),
    ("emri_small_jpeg_2k_lossless.dcm", set()),
    ("CT_small.dcm", set()),
    ("eCT_Supplemental.dcm", set()),
    ("liver.dcm", set()),
    ("693_J2KI.dcm", set()),
    ("rtdose.dcm", {"InstanceNumber"}),  # the source has none, which DICOM requires
    ("SC_rgb_jpeg.dcm", set()),
    ("SC_rgb_rle_2frame.dcm", set()),
    ("ExplVR_BigEnd.dcm", {"PlanarConfiguration"}),
    ("SC_ybr_full_422_uncompressed.dcm", {"PhotometricInterpretation"}),
]
CRASHES_DCIODVFY = {"rtdose.dcm", "ExplVR_BigEnd.dcm"}  # it fails an assertion on the originals


@pytest.mark.parametrize(("name", "further"), UNCHANGED, ids=[name for name, _ in UNCHANGED])
def test_what_no_module_touched_comes_back_as_it_was(name, further, tmp_path):
    path = tools.testdata(name)
    before = tools.read(path)
    (after,) = tools.round_trip(tools.folder_of(tmp_path, path), tmp_path)

    assert tools.differences(before, after) - NEW_OBJECT - LEFT_OUT == further
    with dicomfiles.quiet_pydicom():
        np.testing.assert_array_equal(tools.rescaled(after), tools.rescaled(before))
    for index in range(frame_count(before)):
        old, new = plane_of(Frame(before, index)), plane_of(Frame(after, index))
        assert (old is None) == (new is None)
        if old is not None:
            corners = [(0, 0), (0, old.shape[1] - 1), (old.shape[0] - 1, 0)]
            for corner in corners:
                np.testing.assert_allclose(new.pixel_centre(*corner), old.pixel_centre(*corner), atol=1e-4)
    assert after.SOPInstanceUID != before.get("SOPInstanceUID")
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert after.file_meta.ImplementationClassUID == dicomfiles.IMPLEMENTATION_CLASS_UID
    if name not in CRASHES_DCIODVFY:
        (written,) = (tmp_path / "out").iterdir()
        assert tools.dicom_errors(written, tmp_path) <= tools.dicom_errors(path, tmp_path)


def test_characters_of_many_languages_survive(tmp_path):
    folder = tools.testdata("MR_small.dcm").parents[1] / "charset_files"
    for language in ("Arab", "Fren", "Germ", "Greek", "H31", "H32", "Hbrw", "I2", "Russ", "X1"):
        name = f"chr{language}"
        place = tmp_path / name
        place.mkdir()
        path = folder / f"{name}.dcm"
        (after,) = tools.round_trip(tools.folder_of(place, path), place)
        assert tools.differences(tools.read(path), after) - NEW_OBJECT - LEFT_OUT == set(), name


def test_words_of_big_endian_files(tmp_path):
    """The big-endian file is dcmtk's work; overlays are 16-bit words in it."""
    source = tools.mr_dataset()
    source.add_new(0x60000010, "US", 6)
    source.add_new(0x60000011, "US", 10)
    source.add_new(0x60000040, "CS", "G")
    source.add_new(0x60000050, "SS", [1, 1])
    source.add_new(0x60000100, "US", 1)
    source.add_new(0x60000102, "US", 0)
    source.add_new(0x60003000, "OW", bytes(range(1, 9)))
    little, folder = tmp_path / "little.dcm", tmp_path / "in"
    folder.mkdir()
    source.save_as(little, enforce_file_format=True)
    assert tools.run_program("dcmconv", "+tb", little, folder / "big.dcm").returncode == 0
    assert tools.read(folder / "big.dcm")[0x60003000].value != source[0x60003000].value
    (after,) = tools.round_trip(folder, tmp_path)
    assert tools.differences(source, after) == NEW_OBJECT
    np.testing.assert_array_equal(after.pixel_array, source.pixel_array)


BITS = [(8, 0), (8, 1), (16, 0), (16, 1), (32, 0), (32, 1)]


@pytest.mark.parametrize(("bits", "signed"), BITS)
def test_integers_of_every_size_come_back(bits, signed, tmp_path):
    kind = np.dtype(("<i" if signed else "<u") + str(bits // 8))
    limits = np.iinfo(kind)
    values = np.linspace(limits.min, limits.max, 60).astype(kind).reshape(6, 10)
    source = tools.mr_dataset(
        BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed, PixelData=values.tobytes()
    )
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path)
    np.testing.assert_array_equal(after.pixel_array, values)
    assert tools.differences(source, after) == NEW_OBJECT


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floats_come_back(keyword, kind, tmp_path):
    values = np.random.default_rng(3).normal(0, 1e-3, (6, 10)).astype(kind)
    source = tools.mr_dataset(BitsAllocated=8 * values.itemsize)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(source, name)
    setattr(source, keyword, values.tobytes())
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path)
    np.testing.assert_array_equal(after.pixel_array, values)
    assert tools.differences(source, after) == NEW_OBJECT


# --------------------------------------------------------------------------------------------------- changed pixels
def invert(data):
    return (4095 - data.astype(int)).astype(np.int16)


def test_inverted_contrast_is_derived(tmp_path):
    source = tools.mr_dataset()
    meta = {
        "SequenceDescriptionAdditional": "Inverted",
        "ImageProcessingHistory": ["DICOM", "INVERT"],
        "WindowCenter": "2048",
        "WindowWidth": "4096",
        "ImageComment": "made by a test",
    }
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, tools.changed(invert, meta=meta))
    expected = DERIVED | {"SeriesDescription", "DerivationDescription", "WindowCenter", "WindowWidth", "ImageComments"}
    assert tools.differences(source, after) == NEW_OBJECT | expected
    np.testing.assert_array_equal(after.pixel_array, 4095 - source.pixel_array.astype(int))
    assert list(after.ImageType) == ["DERIVED", "SECONDARY", "M"]
    assert (after.SeriesNumber, after.SeriesDescription) == (1007, "t1 oblique_Inverted")
    assert (after.WindowCenter, after.WindowWidth, after.ImageComments) == (2048, 4096, "made by a test")
    assert (after.DerivationDescription, after.BitsStored) == ("INVERT", 12)
    assert after.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (after.SmallestImagePixelValue, after.LargestImagePixelValue) == (
        after.pixel_array.min(),
        after.pixel_array.max(),
    )
    assert tools.dicom_errors(after, tmp_path) == set() == tools.dicom_errors(source, tmp_path)


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.float32, np.float64])
def test_same_values_in_another_type_are_unchanged(kind, tmp_path):
    source = tools.mr_dataset()
    (after,) = tools.round_trip(
        tools.folder_of(tmp_path, source), tmp_path, tools.changed(lambda data: data.astype(kind))
    )
    assert tools.differences(source, after) == NEW_OBJECT


def test_rescaled_phase_keeps_its_meaning(tmp_path):
    """A module works on stored values; window and rescaling of the output are in the source's units."""
    attributes = {
        "ImageType": ["ORIGINAL", "PRIMARY", "P"],
        "RescaleSlope": "2",
        "RescaleIntercept": "-4096",
        "RescaleType": "US",
        "WindowCenter": "-4",
        "WindowWidth": "8192",
    }
    source = tools.mr_dataset(**attributes)
    (after,) = tools.round_trip(
        tools.folder_of(tmp_path, source), tmp_path, tools.changed(lambda data: data / 2 + np.float32(0.25))
    )
    wanted = 2 * (source.pixel_array / 2 + 0.25) - 4096
    step = float(after.RescaleSlope)
    assert np.abs(tools.rescaled(after) - wanted).max() <= 0.5 * step * (1 + 1e-6)
    assert step < 2 * 2048 / 65000
    assert (after.WindowCenter, after.WindowWidth) == (-4, 8192)
    assert list(after.ImageType) == ["DERIVED", "SECONDARY", "P"]


def test_a_crop_moves_the_first_pixel(tmp_path):
    """A module that crops moves `position` along with the pixel that it denotes; the pixels stay where they were."""
    source = tools.mr_dataset(rows=7, columns=10)
    old = plane_of(Frame(source))

    def crop(image):
        # Pixel (rows // 2, columns // 2) was (3, 5) of 7 x 10; of the 4 x 7 crop from (1, 2) on it is (2 + 1, 3 + 2).
        centre = old.pixel_centre(2 + 1, 3 + 2)
        head = {
            "position": tuple(centre),
            "field_of_view": (7 * 0.8, 4 * 1.25, 4.5),
        }
        return tools.changed(lambda data: data[:, :, 1:5, 2:9], head=head)(image)

    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, crop)
    new = plane_of(Frame(after))
    assert (after.Rows, after.Columns) == (4, 7)
    np.testing.assert_allclose(new.pixel_centre(0, 0), old.pixel_centre(1, 2), atol=1e-4)
    np.testing.assert_allclose(new.pixel_centre(3, 6), old.pixel_centre(4, 8), atol=1e-4)
    np.testing.assert_array_equal(after.pixel_array, source.pixel_array[1:5, 2:9])
    assert tools.dicom_errors(after, tmp_path) == set()


def test_lost_geometry_is_the_sources(tmp_path):
    source = tools.mr_dataset()
    head = dict.fromkeys(("position", "read_dir", "phase_dir", "slice_dir", "field_of_view"), (0, 0, 0))
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, tools.changed(invert, head=head))
    assert tools.differences(source, after) == NEW_OBJECT | DERIVED


def test_colours_from_a_grey_image_are_a_secondary_capture(tmp_path):
    source = tools.mr_dataset()
    change = tools.changed(lambda data: np.concatenate([data // 16, data * 0, 255 - data // 16]), {"image_type": 6})
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, change)
    assert (after.PhotometricInterpretation, after.SOPClassUID.name) == ("RGB", "Secondary Capture Image Storage")
    np.testing.assert_array_equal(after.pixel_array[..., 0], source.pixel_array // 16)
    np.testing.assert_array_equal(after.pixel_array[..., 2], 255 - source.pixel_array // 16)
    assert "WindowCenter" not in after
    assert after.PatientID == "4711"
    assert tools.dicom_errors(after, tmp_path) == set()


def test_series_and_instance_numbers(tmp_path):
    """Two source series; one comes back as it was and inverted, the other only inverted and all in one."""
    folder = tools.folder_of(
        tmp_path,
        tools.mr_dataset(InstanceNumber=4),
        tools.mr_dataset(InstanceNumber=5, PixelData=tools.mr_dataset().PixelData[::-1]),
        tools.mr_dataset(SeriesInstanceUID="1.2.3.20", SeriesNumber=1007, InstanceNumber=9),
    )
    there, back = tmp_path / "there.h5", tmp_path / "back.h5"
    tools.dicom2mrd.convert(folder, there)
    with tools.MrdWriter(back) as writer:
        for image in tools.images_in(there):
            if image.image_series_index == 1:
                writer.write(tools.changed(lambda data: data, {"image_series_index": 100})(image))
            writer.write(tools.changed(invert)(image))
    tools.mrd2dicom.convert(back, tmp_path / "out")
    found = [(d.SeriesNumber, d.InstanceNumber, d.ImageType[0]) for d in tools.outputs(tmp_path / "out")]
    assert found == [
        (7, 4, "ORIGINAL"),
        (7, 5, "ORIGINAL"),
        (1007, 4, "DERIVED"),
        (1007, 5, "DERIVED"),
        (2007, 9, "DERIVED"),
    ]
    series = {(d.SeriesNumber, d.SeriesInstanceUID, d.StudyInstanceUID) for d in tools.outputs(tmp_path / "out")}
    assert len(series) == 3
    assert len({uid for _, uid, _ in series}) == 3
    assert {study for _, _, study in series} == {"1.2.3.1"}


# ------------------------------------------------------------------------------------------------- enhanced objects
def test_enhanced_object_comes_back_whole(tmp_path):
    source = tools.enhanced_dataset()
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path)
    assert tools.differences(source, after) == NEW_OBJECT
    np.testing.assert_array_equal(after.pixel_array, source.pixel_array)
    assert tools.dicom_errors(after, tmp_path) == tools.dicom_errors(source, tmp_path)


def test_enhanced_object_with_one_changed_frame(tmp_path):
    source = tools.enhanced_dataset()

    def change(image):
        return tools.changed(invert)(image) if image.meta["DicomFrame"] == "2" else image

    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, change)
    expected = source.pixel_array.astype(int)
    expected[1] = 4095 - expected[1]
    np.testing.assert_array_equal(after.pixel_array, expected)
    assert list(after.ImageType) == ["MIXED", "PRIMARY", "VELOCITY", "NONE"]
    types = [Frame(after, index).texts("FrameType")[0] for index in range(4)]
    assert types == ["ORIGINAL", "DERIVED", "ORIGINAL", "ORIGINAL"]
    assert "MRImageFrameTypeSequence" not in after.SharedFunctionalGroupsSequence[0]
    assert [Frame(after, index).number("WindowWidth") for index in range(4)] == [4000, 4001, 4002, 4003]
    assert Frame(after, 1).number("RescaleIntercept") == -4096
    assert after.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert tools.dicom_errors(after, tmp_path) <= tools.dicom_errors(source, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        tools.changed(lambda data: (data * 0.37 - 5).astype(np.float32)),
        tools.changed(lambda data: np.concatenate([data // 16] * 3), {"image_type": 6}),
        tools.changed(lambda data: data.astype(np.complex64) * 1j, {"image_type": 5}),
        tools.changed(lambda data: data[:, :, 2:-1, 1:]),
    ],
    ids=["float", "colour", "complex", "crop"],
)
def test_changed_enhanced_objects_are_valid(change, tmp_path):
    source = tools.enhanced_dataset()
    for after in tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, change):
        assert after.NumberOfFrames == 4
        assert tools.dicom_errors(after, tmp_path) <= tools.dicom_errors(source, tmp_path)


def test_private_sequences_are_not_the_frames(tmp_path):
    """Philips repeats each frame's attributes, in classic terms, in a private sequence of its functional groups."""
    source, plain = tools.philips_dataset(), tools.enhanced_dataset(3)
    for index in range(3):
        here, there = Frame(source, index), Frame(plain, index)
        assert here.texts("ImageType") == there.texts("ImageType") == ["ORIGINAL", "PRIMARY", "VELOCITY", "NONE"]
        for keyword in ("WindowWidth", "RescaleSlope", "SliceThickness", "TriggerTime", "EchoTime"):
            assert here.number(keyword) == there.number(keyword)
        np.testing.assert_array_equal(plane_of(here).first_pixel, plane_of(there).first_pixel)


@pytest.mark.parametrize(
    "wanted",
    [None, ["DERIVED", "SECONDARY", "M"], ["DERIVED", "PRIMARY", "M_FFE", "M", "FFE"], ["DERIVED", "PRIMARY"]],
    ids=["none", "classic", "Philips", "short"],
)
def test_changed_philips_object_has_no_new_error(wanted, tmp_path):
    """Also where a module sets an image type that is one of classic objects, which enhanced ones may not have."""
    source = tools.philips_dataset()
    change = tools.changed(invert, meta=None if wanted is None else {"ImageType": wanted})
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, change)
    assert list(after.ImageType) == ["DERIVED", "PRIMARY", "VELOCITY", "NONE"]
    assert [Frame(after, index).texts("FrameType") for index in range(3)] == [list(after.ImageType)] * 3
    assert tools.dicom_errors(after, tmp_path) - tools.dicom_errors(source, tmp_path) == set()
    private = [groups[0x2005, 0x100F].value[0] for groups in after.PerFrameFunctionalGroupsSequence]
    assert [list(classic.ImageType)[2:] for classic in private] == [["M_FFE", "M", "FFE"]] * 3
    assert after.SharedFunctionalGroupsSequence[0].private_block(0x2005, tools.PHILIPS)[0x0E].value[0].EchoTime == 98


def test_frames_of_different_types_keep_theirs(tmp_path):
    """An object with magnitude and phase frames says MIXED of itself, and the truth of each frame."""
    source = tools.enhanced_dataset(2)
    shared = source.SharedFunctionalGroupsSequence[0]
    kinds = [("M", "MAGNITUDE"), ("VELOCITY", "PHASE")]
    for groups, (kind, component) in zip(source.PerFrameFunctionalGroupsSequence, kinds, strict=True):
        groups.MRImageFrameTypeSequence = copy.deepcopy(shared.MRImageFrameTypeSequence)
        groups.MRImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
        groups.MRImageFrameTypeSequence[0].ComplexImageComponent = component
    del shared.MRImageFrameTypeSequence
    source.ImageType = ["ORIGINAL", "PRIMARY", "MIXED", "NONE"]
    source.ComplexImageComponent = "MIXED"
    (after,) = tools.round_trip(tools.folder_of(tmp_path, source), tmp_path, tools.changed(invert))
    assert list(after.ImageType) == ["DERIVED", "PRIMARY", "MIXED", "NONE"]
    types = [Frame(after, index).texts("FrameType") for index in range(2)]
    assert types == [["DERIVED", "PRIMARY", kind, "NONE"] for kind, _ in kinds]
    assert tools.dicom_errors(after, tmp_path) - tools.dicom_errors(source, tmp_path) == set()


def test_some_frames_of_a_multiframe_object(tmp_path):
    """A module sends two of fifteen frames back: so many there are, with their places."""
    source = tools.read(tools.testdata("rtdose.dcm"))
    dicom, back = tmp_path / "there.h5", tmp_path / "back.h5"
    tools.dicom2mrd.convert(tools.folder_of(tmp_path, tools.testdata("rtdose.dcm")), dicom)
    images = tools.images_in(dicom)
    assert len(images) == 15
    with tools.MrdWriter(back) as writer:
        for index in (2, 7):
            writer.write(images[index])
    tools.mrd2dicom.convert(back, tmp_path / "out")
    (after,) = tools.outputs(tmp_path / "out")
    np.testing.assert_array_equal(after.pixel_array, source.pixel_array[[2, 7]])
    for new, old in ((0, 2), (1, 7)):
        there, here = plane_of(Frame(source, old)), plane_of(Frame(after, new))
        np.testing.assert_allclose(here.pixel_centre(3, 4), there.pixel_centre(3, 4), atol=1e-4)


def test_output_is_part_10_with_our_implementation_uid(tmp_path):
    (after,) = tools.round_trip(tools.folder_of(tmp_path, tools.mr_dataset()), tmp_path)
    assert pydicom.uid.UID(after.file_meta.ImplementationClassUID).is_valid
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    dump = tools.run_program("dcmdump", "+P", "PatientName", next((tmp_path / "out").iterdir()))
    assert dump.returncode == 0
    assert "[Doe^Jane]" in dump.stdout
