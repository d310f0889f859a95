"""MRD files against those of the `ismrmrd` package, the layout of other programs, and files that lie."""

import logging

import h5py
import ismrmrd
import numpy as np
import pytest

from conftest import header_xml, make_acquisition, make_header, make_image, make_waveform, write_mrd_file
from mrdio import mrdfile
from mrdio.h5groups import MrdFileError, image_groups
from mrdio.mrdfile import BATCH, MrdReader, MrdWriter

DTYPES = ["u2", "i2", "u4", "i4", "f4", "f8", "c8", "c16"]


def write(path, *items, group="dataset"):
    with MrdWriter(path, group) as writer:
        for item in items:
            writer.write(item)
    return path


def read_all(path, group=None):
    with MrdReader(path, group) as reader:
        return list(reader.acquisitions()), list(reader.waveforms()), list(reader.images())


def assert_same_image(image, expected):
    np.testing.assert_array_equal(image.data, expected.data)
    assert image.data.dtype.kind == expected.data.dtype.kind
    assert image.meta == expected.meta
    head, expected_head = image.getHead(), expected.getHead()
    head.attribute_string_len = expected_head.attribute_string_len = 0
    assert head == expected_head


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.h5"


# ---- round trips ---------------------------------------------------------------------------------------------------

READOUTS = [
    make_acquisition(1),
    make_acquisition(2, channels=5, samples=3, dimensions=3),
    make_acquisition(3, channels=1, samples=1),
    make_acquisition(4, samples=0),
    make_acquisition(5, channels=0, samples=2, dimensions=1),
]
WAVEFORMS = [make_waveform(1), make_waveform(2, channels=1, samples=9), make_waveform(3, samples=0)]


def test_what_is_written_is_read(path):
    images = [make_image(1, meta={"key": "größer", "list": ["1", "2"]}), make_image(2), make_image(3, series=4)]
    mixed = [READOUTS[0], images[0], WAVEFORMS[0], *READOUTS[1:], *WAVEFORMS[1:], *images[1:]]
    write(path, *mixed)
    readouts, waveforms, read_images = read_all(path)
    assert readouts == READOUTS
    assert waveforms == WAVEFORMS
    for image, expected in zip(read_images, images, strict=True):
        assert_same_image(image, expected)
    with MrdReader(path) as reader:
        assert (reader.acquisition_count, reader.waveform_count, reader.image_count) == (5, 3, 3)
        assert reader.image_groups == ["image_0", "image_4"]
        assert [image.image_index for image in reader.images("image_0")] == [1, 2]


def test_the_package_reads_what_is_written(path):
    images = [make_image(number, dtype="f4", meta={"a": "b"}) for number in range(2)]
    with MrdWriter(path) as writer:
        writer.write_header(header_xml())
        for item in [*READOUTS, *WAVEFORMS, *images]:
            writer.write(item)
    with ismrmrd.Dataset(path, "dataset", mode="r") as dataset:
        assert ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header()) == make_header()
        assert [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())] == READOUTS
        assert [dataset.read_waveform(i) for i in range(dataset.number_of_waveforms())] == WAVEFORMS
        for index in range(dataset.number_of_images("image_0")):
            assert_same_image(dataset.read_image("image_0", index), images[index])
    with ismrmrd.File(path, "r") as file:
        assert file["dataset"].header == make_header()
        assert list(file["dataset"].acquisitions) == READOUTS
        assert list(file["dataset"].waveforms) == WAVEFORMS
        assert_same_image(file["dataset/image_0"].images[1], images[1])


def test_what_the_package_writes_one_by_one_is_read(path):
    write_mrd_file(path, [*READOUTS, *WAVEFORMS, make_image(7, series=2, meta={"a": "b"})], xml=header_xml())
    readouts, waveforms, images = read_all(path)
    assert readouts == READOUTS
    assert waveforms == WAVEFORMS
    assert_same_image(images[0], make_image(7, series=2, meta={"a": "b"}))
    with MrdReader(path) as reader:
        assert reader.header_xml == header_xml()


def test_what_the_package_writes_at_once_is_read(path):
    images = [make_image(number, meta={"a": str(number)}) for number in range(3)]
    with ismrmrd.File(path, "w") as file:
        file["dataset"].header = make_header()
        file["dataset"].acquisitions = READOUTS[:3]
        file["dataset"].waveforms = WAVEFORMS[:2]
        file["dataset/image_0"].images = images
    readouts, waveforms, read_images = read_all(path)
    assert readouts == READOUTS[:3]
    assert waveforms == WAVEFORMS[:2]
    for image, expected in zip(read_images, images, strict=True):
        assert_same_image(image, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pixel_type(path, dtype):
    images = [make_image(number, (2, 1, 3, 4), dtype) for number in range(2)]
    write(path, *images)
    for image, expected in zip(read_all(path)[2], images, strict=True):
        assert_same_image(image, expected)
    with ismrmrd.Dataset(path, "dataset", mode="r") as dataset:
        assert_same_image(dataset.read_image("image_0", 1), images[1])


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "i4"])  # the package cannot write its own i4
def test_every_pixel_type_from_the_package(path, dtype):
    images = [make_image(number, (2, 1, 3, 4), dtype) for number in range(2)]
    write_mrd_file(path, images)
    for image, expected in zip(read_all(path)[2], images, strict=True):
        assert_same_image(image, expected)


def test_platform_integers_of_the_package_are_kept_as_32_bits(path):
    pixels = np.arange(-3, 3).reshape(1, 1, 2, 3)  # int64, which the package files under the 32-bit type
    write(path, ismrmrd.Image.from_array(pixels))
    np.testing.assert_array_equal(read_all(path)[2][0].data, pixels)
    with h5py.File(path) as file:
        assert file["dataset/image_0/data"].dtype == np.dtype("<i4")
        assert file["dataset/image_0/data"].shape == (1, 1, 1, 2, 3)


def test_arrays_in_another_memory_order_are_written_right(path):
    readout, waveform, image = make_acquisition(1, samples=6), make_waveform(2), make_image(3)
    write(
        path,
        ismrmrd.Acquisition(readout.getHead(), np.asfortranarray(readout.data), readout.traj),
        waveform,
        ismrmrd.Image(image.getHead(), meta=image.meta, data=np.asfortranarray(image.data)),
    )
    readouts, waveforms, images = read_all(path)
    assert readouts == [readout]
    assert waveforms == [waveform]
    assert_same_image(images[0], image)


# ---- batches and appending -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + 3])
def test_batches_lose_nothing(path, count):
    readouts = [make_acquisition(number, channels=1, samples=2) for number in range(count)]
    waveforms = [make_waveform(number, channels=1, samples=2) for number in range(count // 3)]
    write(path, *readouts, *waveforms)
    assert read_all(path) == (readouts, waveforms, [])


def test_large_readouts_are_not_held_back(path, monkeypatch):
    monkeypatch.setattr(mrdfile, "BATCH_BYTES", 1000)
    readouts = [make_acquisition(number, samples=50) for number in range(7)]
    with MrdWriter(path) as writer:
        for readout in readouts[:5]:
            writer.write(readout)
        with h5py.File(path) as file:  # the same file in the same process
            assert len(file["dataset/data"]) == 4
        for readout in readouts[5:]:
            writer.write(readout)
    assert read_all(path)[0] == readouts


def test_appending_keeps_what_is_there(path):
    images = [make_image(number) for number in range(3)]
    write(path, READOUTS[0], WAVEFORMS[0], images[0])
    write(path, READOUTS[1], WAVEFORMS[1], images[1])
    write_mrd_file(path, [READOUTS[2], images[2]])
    readouts, waveforms, read_images = read_all(path)
    assert readouts == READOUTS[:3]
    assert waveforms == WAVEFORMS[:2]
    assert [image.image_index for image in read_images] == [0, 1, 2]


def test_appending_to_what_the_package_wrote(path):
    write_mrd_file(path, [READOUTS[0], WAVEFORMS[0], make_image(0)])
    write(path, READOUTS[1], WAVEFORMS[1], make_image(1))
    readouts, waveforms, images = read_all(path)
    assert readouts == READOUTS[:2]
    assert waveforms == WAVEFORMS[:2]
    assert [image.image_index for image in images] == [0, 1]


def test_an_image_is_kept_where_its_group_cannot_grow(path):
    with ismrmrd.File(path, "w") as file:
        file["dataset/image_0"].images = [make_image(0)]  # of fixed size
    write(path, make_image(1))
    assert sorted(image.image_index for image in read_all(path)[2]) == [0, 1]


def test_several_groups_share_a_file(path):
    for number, group in enumerate(("2026-01-01 10:00:00.123", "2026-01-01 10:05:00.456")):
        write(path, make_acquisition(number), make_image(number), group=group)
    for number, group in enumerate(("2026-01-01 10:00:00.123", "2026-01-01 10:05:00.456")):
        readouts, _, images = read_all(path, group)
        assert readouts == [make_acquisition(number)]
        assert images[0].image_index == number


def test_what_was_written_survives_a_module_that_fails(path):
    def fail_after_writing():
        with MrdWriter(path) as writer:
            writer.write(READOUTS[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_writing()
    assert read_all(path)[0] == READOUTS[:1]


# ---- images that do not fit together -------------------------------------------------------------------------------


def test_images_of_other_size_or_type_go_to_further_groups(path, caplog):
    images = [
        make_image(0, (1, 1, 4, 4)),
        make_image(1, (1, 1, 4, 5)),  # other size
        make_image(2, (1, 1, 4, 4), "u2"),  # other type
        make_image(3, (1, 1, 4, 4)),  # fits the first again
        make_image(4, (1, 1, 4, 5)),  # fits the second
        make_image(5, (3, 1, 4, 4)),
        make_image(6, (1, 1, 4, 4), series=1),
    ]
    with caplog.at_level(logging.WARNING):
        write(path, *images)
    with MrdReader(path) as reader:
        assert reader.image_groups == ["image_0", "image_0_1", "image_0_2", "image_0_3", "image_1"]
        assert reader.image_count == 7
        found = {name: [image.image_index for image in reader.images(name)] for name in reader.image_groups}
    assert found == {"image_0": [0, 3], "image_0_1": [1, 4], "image_0_2": [2], "image_0_3": [5], "image_1": [6]}
    for image in read_all(path)[2]:
        assert_same_image(image, images[image.image_index])
    assert len(caplog.records) == 3
    assert "series 0" in caplog.text
    assert "1x1x4x5 float32" in caplog.text


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (0, 1, 2, 2), (1, 1, 1, 0)])
def test_images_without_pixels_are_kept(path, shape):
    write(path, make_image(1, shape), make_image(2))
    images = read_all(path)[2]
    assert {image.image_index: image.data.shape for image in images} == {1: shape, 2: (1, 1, 6, 5)}


def test_image_groups_are_ordered_by_number(path):
    for series in (10, 2, 0):
        write(path, make_image(series, series=series))
    write(path, make_image(3, (1, 1, 2, 2), series=2))
    with h5py.File(path, "a") as file:
        file["dataset"].create_group("image_7")  # without data
        file["dataset"].create_dataset("data", data=[1])
        assert image_groups(file["dataset"]) == ["image_0", "image_2", "image_2_1", "image_10"]


# ---- texts ---------------------------------------------------------------------------------------------------------


def test_texts(path):
    with MrdWriter(path) as writer:
        writer.write_header(make_header())
        writer.write_config("first")
        writer.write_config("größe")
        writer.write_config_text("<config>\0</config>")
        writer.write_json_parameters('{"parameters": {"µ": 1}}')
        writer.write(READOUTS[0])
    with MrdReader(path) as reader:
        assert ismrmrd.xsd.CreateFromDocument(reader.header_xml.encode()) == make_header()
        assert reader.config == "größe"
        assert reader.config_text == "<config></config>"
        assert reader.json_parameters == '{"parameters": {"µ": 1}}'


def test_what_is_absent_is_none(path):
    write(path, READOUTS[0])
    with MrdReader(path) as reader:
        assert (reader.header_xml, reader.config, reader.config_text, reader.json_parameters) == (None,) * 4
        assert (reader.waveform_count, reader.image_count) == (0, 0)
        assert list(reader.waveforms()) == list(reader.images()) == []


@pytest.mark.parametrize(
    "stored",
    [b"text", "text", [b"text"], np.array([[b"text"]], h5py.string_dtype("ascii")), np.array([b"text"], "S4")],
)
def test_ways_of_storing_a_text(path, stored):
    write(path, READOUTS[0])
    with h5py.File(path, "a") as file:
        file["dataset"]["xml"] = stored
    with MrdReader(path) as reader:
        assert reader.header_xml == "text"


def test_a_text_that_is_no_utf_8_is_read(path):
    write(path, READOUTS[0])
    with h5py.File(path, "a") as file:
        file["dataset"].create_dataset("xml", data=[b"<institution>Universit\xe4t"], dtype=h5py.string_dtype("ascii"))
    with MrdReader(path) as reader:
        assert reader.header_xml.startswith("<institution>Universit")


# ---- writing where it cannot be ------------------------------------------------------------------------------------


def test_writing_into_what_is_no_hdf5(path):
    path.write_text("a letter")
    with pytest.raises(MrdFileError, match=r"scan\.h5 cannot be written"):
        MrdWriter(path)
    assert path.read_text() == "a letter"


def test_writing_into_a_folder_or_nowhere(tmp_path):
    with pytest.raises(MrdFileError, match=str(tmp_path)):
        MrdWriter(tmp_path)
    with pytest.raises(MrdFileError, match="no_folder"):
        MrdWriter(tmp_path / "no_folder" / "scan.h5")


def test_other_objects_are_refused(path):
    with MrdWriter(path) as writer, pytest.raises(TypeError, match="acquisitions, waveforms and images, not a str"):
        writer.write("text")


def test_replaced_images_leave_their_space(tmp_path):
    sizes = []
    for _ in range(5):
        with MrdWriter(tmp_path / "out.h5", "g", replace=True) as writer:
            for number in range(8):
                writer.write(make_image(number, (1, 1, 128, 128)))
        sizes.append((tmp_path / "out.h5").stat().st_size)
    assert sizes[4] < 2 * sizes[0]
