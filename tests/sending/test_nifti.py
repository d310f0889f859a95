"""NIfTI files in and out: points at known places, frames, types, and what cannot be held."""

import gzip
import subprocess
import sys

import nibabel
import numpy as np
import pytest

import client
from conftest import header_xml, make_image, write_mrd_file
from dicomio.geometry import to_planes
from mrdio import nifti
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader, MrdWriter
from sending.inputs import open_input
from sending.niftiimages import write_group
from server_process import PROJECT

SHAPE = (5, 7, 4)  # x, y, z: odd and even, not square
POINT = (1, 5, 2)  # index x, y, z of the one bright pixel


def rotation(*angles):
    """About x, y and z [degree]."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        turn = np.eye(3)
        one, two = [each for each in range(3) if each != axis]
        turn[[one, two, one, two], [one, two, two, one]] = (
            np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle))  # fmt: skip
        result = turn @ result
    return result


def affine(axes, sizes=(1.5, 2.0, 6.0), origin=(-11.0, 23.0, -5.0)):
    """NIfTI's matrix (RAS)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(axes) @ np.diag(sizes)
    matrix[:3, 3] = origin
    return matrix


AFFINES = {
    "axial": affine(np.eye(3)),
    "axial, as DICOM converters write it": affine(np.diag([-1, 1, 1])),
    "sagittal": affine([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": affine(rotation(20, -35, 50)),
    "oblique, left-handed": affine(rotation(-10, 70, 5) @ np.diag([1, 1, -1])),
    "tilted gantry": affine([[1, 0, 0], [0, 1, 0.4], [0, 0, 1]]),
}


def save(path, values, matrix, code=1, **zooms):
    image = nibabel.Nifti1Image(values, matrix)
    image.set_sform(matrix, code)
    image.set_qform(None if code == 0 else matrix, 0)
    image.header.set_xyzt_units("mm", zooms.get("unit", "sec"))
    if "interval" in zooms:
        image.header.set_zooms((*image.header.get_zooms()[:3], zooms["interval"]))
    nibabel.save(image, path)
    return path


def to_mrd(source, target):
    with open_input(source) as opened, MrdWriter(target) as writer:
        writer.write_header(opened.header_xml)
        images = list(opened.items)
        assert len(images) == opened.total
        for image in images:
            writer.write(image)
    return images


@pytest.mark.parametrize("matrix", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("end", nifti.NAMES)
def test_a_point_lies_at_its_place_in_mrd_and_back(tmp_path, matrix, end):
    values = np.zeros(SHAPE, np.int16)
    values[POINT] = 100
    source = save(tmp_path / f"in{end}", values, matrix)
    images = to_mrd(source, tmp_path / "images.h5")
    ((image, row, column),) = [(image, *index) for image in images for index in np.argwhere(image.data[0, 0])]
    (plane,) = to_planes(image.getHead())
    in_patient = plane.pixel_centre(row, column)  # to the left, back, head
    np.testing.assert_allclose(in_patient * [-1, -1, 1], (matrix @ [*POINT, 1])[:3], atol=1e-4)
    assert image.getHead().slice_dir[:] != [0, 0, 0]
    assert (row, column) == POINT[1::-1]

    (written,) = write_group(tmp_path / "images.h5", None, tmp_path / f"out{end}")
    back = nibabel.load(written)
    np.testing.assert_allclose(back.affine, matrix, atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), values)
    assert back.get_data_dtype() == np.int16


def test_images_of_a_known_place_are_written_there(tmp_path):
    """Not by way of our own reading: a sagittal image, by hand."""
    image = make_image(1, (1, 1, 7, 5))
    head = image.getHead()
    head.matrix_size, head.field_of_view = (5, 7, 1), (10.0, 21.0, 4.0)
    head.read_dir, head.phase_dir, head.slice_dir = (0, 1, 0), (0, 0, -1), (-1, 0, 0)
    head.position = (30.0, 10.0, -20.0)  # pixel (row 3, column 2): 30 mm to the left, 10 to the back, 20 to the feet
    image.setHead(head)
    write_mrd_file(tmp_path / "one.h5", [image], xml=header_xml())
    (path,) = write_group(tmp_path / "one.h5", None, tmp_path / "one.nii")
    back = nibabel.load(path)
    np.testing.assert_allclose((back.affine @ [2, 3, 0, 1])[:3], [-30, -10, -20], atol=1e-5)
    np.testing.assert_allclose((back.affine @ [3, 3, 0, 1])[:3], [-30, -12, -20], atol=1e-5)  # a column on: backwards
    np.testing.assert_allclose((back.affine @ [2, 4, 0, 1])[:3], [-30, -10, -23], atol=1e-5)  # a row on: to the feet
    assert nibabel.aff2axcodes(back.affine) == ("P", "I", "R")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj)[..., 0], image.data[0, 0].T)
    np.testing.assert_allclose(back.header.get_zooms(), [2, 3, 4])


@pytest.mark.parametrize("unit", [("sec", 1), ("msec", 1000)])
def test_frames_are_the_fourth_axis_with_their_time(tmp_path, unit):
    rng = np.random.default_rng(3)
    values = rng.integers(-300, 300, (*SHAPE, 3)).astype(np.float32)
    source = save(tmp_path / "in.nii", values, AFFINES["oblique"], interval=0.5 * unit[1], unit=unit[0])
    images = to_mrd(source, tmp_path / "images.h5")
    assert [(each.repetition, each.slice) for each in images] == [(t, z) for t in range(3) for z in range(4)]
    assert [each.image_index for each in images] == list(range(1, 13))
    assert [each.acquisition_time_stamp for each in images[::4]] == [0, 200, 400]
    (path,) = write_group(tmp_path / "images.h5", None, tmp_path / "out.nii")
    back = nibabel.load(path)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), values)
    assert back.header.get_zooms()[3] == 0.5


@pytest.mark.parametrize("order", ["frames first", "slices first", "mixed", "no counters"])
def test_slices_and_frames_may_come_in_any_order(tmp_path, order):
    values = np.arange(4 * 2 * 3 * 2).reshape(4, 2, 3, 2).astype(np.int16)
    images = to_mrd(save(tmp_path / "in.nii", values, AFFINES["oblique"]), tmp_path / "in.h5")
    if order == "slices first":
        images.sort(key=lambda each: each.slice)
    elif order == "mixed":
        images = [images[number] for number in np.random.default_rng(1).permutation(len(images))]
    elif order == "no counters":
        for image in images:
            image.repetition = image.slice = 0
    write_mrd_file(tmp_path / "mixed.h5", images, xml=header_xml())
    (path,) = write_group(tmp_path / "mixed.h5", None, tmp_path / "out.nii")
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), values)


def test_three_dimensional_images_are_stacks(tmp_path):
    image = make_image(0, (1, 4, 7, 5))
    head = image.getHead()
    head.field_of_view, head.read_dir, head.phase_dir, head.slice_dir = (5, 7, 8), (1, 0, 0), (0, 1, 0), (0, 0, 1)
    head.position = (0, 0, 0)
    image.setHead(head)
    write_mrd_file(tmp_path / "in.h5", [image], xml=header_xml())
    (path,) = write_group(tmp_path / "in.h5", None, tmp_path / "out.nii")
    back = nibabel.load(path)
    assert back.shape == (5, 7, 4)
    np.testing.assert_allclose((back.affine @ [2, 3, 2, 1])[:3], 0, atol=1e-6)  # the middle, as MRD counts it
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), image.data[0].T)


@pytest.mark.parametrize(
    ("dtype", "sent"), [("u1", "u2"), (">i2", "i2"), ("i8", "i4"), ("f8", "f8"), ("c8", "c8"), ("i1", "i2")]
)
def test_types(tmp_path, dtype, sent):
    values = (np.arange(6).reshape(2, 3, 1) - (0 if dtype[0] == "u" else 3)).astype(dtype)
    image = nibabel.Nifti1Image(values, np.eye(4), dtype=dtype.strip(">"))
    nibabel.save(image, tmp_path / "in.nii")
    (image,) = to_mrd(tmp_path / "in.nii", tmp_path / "in.h5")
    with MrdReader(tmp_path / "in.h5") as reader:
        (kept,) = reader.images()
    np.testing.assert_array_equal(kept.data[0, 0], values[..., 0].T)
    (path,) = write_group(tmp_path / "in.h5", None, tmp_path / "out.nii")
    back = np.asanyarray(nibabel.load(path).dataobj)
    assert back.dtype == ("f4" if sent == "c8" else sent)


def test_scaled_values_are_read_and_other_units_of_length(tmp_path):
    image = nibabel.Nifti1Image(np.arange(6, dtype=np.int16).reshape(2, 3, 1), np.diag([0.002, 0.003, 0.004, 1]))
    image.header.set_slope_inter(0.5, 10)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "in.nii")
    content = bytearray((tmp_path / "in.nii").read_bytes())
    values, geometry = nifti.read(tmp_path / "in.nii")
    stored = np.frombuffer(content[-12:], np.int16).reshape(3, 2)
    slope, inter = nibabel.load(tmp_path / "in.nii").dataobj.slope, nibabel.load(tmp_path / "in.nii").dataobj.inter
    np.testing.assert_allclose(values[0, 0], slope * stored + inter)
    np.testing.assert_allclose(np.linalg.norm(geometry.affine[:3, :3], axis=0), [2, 3, 4], rtol=1e-6)


def test_a_place_that_is_not_known_stays_so(tmp_path):
    source = save(tmp_path / "in.nii", np.ones(SHAPE, np.float32), np.diag([2.0, 3, 4, 1]), code=0)
    images = to_mrd(source, tmp_path / "in.h5")
    assert all(not any(image.read_dir) for image in images)
    (path,) = write_group(tmp_path / "in.h5", None, tmp_path / "out.nii")
    back = nibabel.load(path)
    assert (back.header["qform_code"], back.header["sform_code"]) == (0, 0)
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.header.get_zooms(), [2, 3, 4])


def test_orientations_and_series_are_files_of_their_own(tmp_path):
    images = []
    for number, axes in enumerate((np.eye(3), [[0, 0, 1], [1, 0, 0], [0, 1, 0]])):
        source = save(tmp_path / f"{number}.nii", np.full((4, 4, 2), number, np.int16), affine(axes))
        images += to_mrd(source, tmp_path / f"{number}.h5")
    extra = make_image(1, (1, 1, 3, 3), series=5)
    write_mrd_file(tmp_path / "all.h5", [*images, extra], xml=header_xml())
    paths = write_group(tmp_path / "all.h5", None, tmp_path / "out.nii.gz")
    assert [path.name for path in paths] == ["out_image_0.nii.gz", "out_image_0_2.nii.gz", "out_image_5.nii.gz"]
    assert [nibabel.load(path).shape for path in paths] == [(4, 4, 2), (4, 4, 2), (3, 3, 1)]
    with pytest.raises(MrdFileError, match=r"out_image_0\.nii\.gz already"):
        write_group(tmp_path / "all.h5", None, tmp_path / "out.nii.gz")
    assert write_group(tmp_path / "all.h5", None, tmp_path / "out.nii.gz", overwrite=True) == paths


def stack(tmp_path, change):
    images = to_mrd(
        save(tmp_path / "in.nii", np.ones((4, 4, 3, 2), np.int16), np.diag([1.0, 1, 5, 1])), tmp_path / "a.h5"
    )
    write_mrd_file(tmp_path / "b.h5", change(images), xml=header_xml())
    return tmp_path / "b.h5"


def shifted(images, which, by):
    images[which].position = tuple(np.add(tuple(images[which].position), by))
    return images


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images: images[:-1], "3 slices have from 1 to 2 images"),
        (lambda images: shifted(images, 2, (0, 0, 1)), "4 slices have from 1 to 2 images"),
        (lambda images: shifted(shifted(images, 2, (0, 0, 1)), 5, (0, 0, 1)), "even distances: .*0.00, 5.00, 11.00 mm"),
        (lambda images: shifted(images, 4, (1, 0, 0)), "move in their plane, by 1.00 mm"),
    ],
)
def test_what_nifti_does_not_hold_is_named(tmp_path, change, said):
    with pytest.raises(ValueError, match=f"image_0: its .*{said}"):
        write_group(stack(tmp_path, change), None, tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()


def test_complex_images_are_told_of(tmp_path, caplog):
    write_mrd_file(tmp_path / "in.h5", [make_image(1, dtype=np.complex64)], xml=header_xml())
    (path,) = write_group(tmp_path / "in.h5", None, tmp_path / "out.nii")
    with MrdReader(tmp_path / "in.h5") as reader:
        (image,) = reader.images()
    np.testing.assert_allclose(np.asanyarray(nibabel.load(path).dataobj), np.abs(image.data[0]).T)
    assert "the magnitude is written" in caplog.text


def nifti_bytes(tmp_path, values, matrix=None):
    image = nibabel.Nifti1Image(values, None, dtype=values.dtype)
    image.header.set_sform(np.eye(4) if matrix is None else matrix, 1)
    nibabel.save(image, tmp_path / "good.nii")
    return (tmp_path / "good.nii").read_bytes()


SHEARED = np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
ONES = np.ones((4, 4, 2))
COLOUR = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD = {
    "cut": (lambda folder: nifti_bytes(folder, ONES)[:-20], "cannot be read as NIfTI"),
    "only a header": (lambda folder: nifti_bytes(folder, ONES)[:352], "cannot be read as NIfTI"),
    "compressed text": (lambda folder: gzip.compress(b"text"), "no NIfTI header"),
    "cut and compressed": (lambda folder: gzip.compress(nifti_bytes(folder, ONES))[:-30], "cannot be read as NIfTI"),
    "colour": (lambda folder: nifti_bytes(folder, COLOUR), r"expected numbers \[x, y\]"),
    "five axes": (lambda folder: nifti_bytes(folder, np.ones((2, 2, 2, 2, 3))), r"\(2, 2, 2, 2, 3\)"),
    "sheared": (lambda folder: nifti_bytes(folder, ONES, SHEARED), "not at right angles"),
    "no size": (lambda folder: nifti_bytes(folder, ONES, np.diag([0.0, 1, 1, 1])), "no size"),
    "large integers": (lambda folder: nifti_bytes(folder, np.full((2, 2), 2.0**40).astype("u8")), "at most 32 bits"),
}


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_bad_files_are_named(tmp_path, make, said):
    (tmp_path / "bad.nii.gz").write_bytes(make(tmp_path))
    with pytest.raises(MrdFileError, match=said) as caught:
        open_input(tmp_path / "bad.nii.gz")
    assert "bad.nii.gz" in str(caught.value)


# ---- the client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(server):
    return server(module_folders=(PROJECT,))


def test_client_reads_and_writes_nifti(running, tmp_path):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    source = save(tmp_path / "in.nii.gz", values, AFFINES["oblique"])
    options = {"source": source, "output": tmp_path / "out.nii.gz", "config": "invertcontrast", "port": running.port}
    result = client.run(client.ClientOptions(**options))
    assert result.errors == []
    assert result.files == [tmp_path / "out.nii.gz"]
    back = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(back.affine, AFFINES["oblique"], atol=1e-4)
    inverted = np.asanyarray(back.dataobj).astype(float)
    assert np.corrcoef(inverted.ravel(), values.ravel())[0, 1] < -0.999
    with pytest.raises(MrdFileError, match=r"out\.nii\.gz already: --overwrite"):
        client.run(client.ClientOptions(**options))
    assert client.run(client.ClientOptions(**options, overwrite=True)).errors == []
    assert {path.name for path in tmp_path.iterdir()} == {"in.nii.gz", "out.nii.gz"}
    with pytest.raises(client.ClientError, match="no groups"):
        client.run(client.ClientOptions(**options, out_group="g"))


def test_images_that_nifti_does_not_hold_are_kept(running, tmp_path):
    source = stack(tmp_path, lambda images: images[:-1])
    result = client.run(client.ClientOptions(source, output=tmp_path / "out.nii", port=running.port))
    (error,) = result.errors
    assert "3 slices have from 1 to 2 images" in error
    kept = error.rpartition("kept in ")[2]
    with MrdReader(kept) as reader:
        assert reader.image_count == 5


def test_images_of_a_file_become_nifti_without_a_server(tmp_path):
    write_mrd_file(tmp_path / "in.h5", [make_image(1)], xml=header_xml())
    line = [sys.executable, PROJECT / "mrd2dicom.py", "in.h5", "-o", "out.nii.gz"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "out.nii.gz\n"), done.stderr
    assert nibabel.load(tmp_path / "out.nii.gz").shape == (5, 6, 1)
