"""Maps from files: a point at a known place, oblique, of other sizes; what is no map."""

import ismrmrd
import nibabel
import numpy as np
import pytest
import scipy.io

import mrdhelper
from mrdio.mrdfile import MrdWriter
from recon import concomitant
from recon.configuration import ConfigurationError, FieldSettings
from recon.fieldmap import FieldMapError, GridMap, read_file
from recon.fieldsources import open_correction
from simulation.spiralsimulation import readout_axes
from spiral_sessions import Client

SHAPE, FOV = (31, 42), (210.0, 155.0)  # pixels of 5 mm
GROWTH, MIDDLE = np.array([0.7, -1.1, 0.4]), 25.0  # of a linear field in the patient [Hz/mm], [Hz]


def head_at(position=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0), number=0):
    head = ismrmrd.AcquisitionHeader()
    head.read_dir, head.phase_dir, head.slice_dir = map(tuple, readout_axes(rotation).tolist())
    head.position = position
    head.idx.slice = number
    return head


def field_at(places):
    """Of the linear field at places in patient coordinates [..., (x, y, z)] [mm]."""
    return MIDDLE + places @ GROWTH


def nifti(path, rotation=(20.0, -35.0, 15.0), shape=(50, 44, 40), voxel=(6.0, 7.0, 8.0)):
    """Write a map of the linear field; its affine matrix is towards R, A, S."""
    affine = np.eye(4)
    affine[:3, :3] = readout_axes(rotation).T * voxel
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + (8, -5, 12)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    nibabel.save(nibabel.Nifti1Image(field_at(places * (-1, -1, 1)).astype(np.float32), affine), path)
    return path


@pytest.mark.parametrize("rotation", [(0, 0, 0), (90, 0, 0), (25, -40, 10)], ids=["axial", "coronal", "oblique"])
def test_nifti_map_is_resampled_where_the_image_lies(tmp_path, rotation):
    """A field that grows linearly in the patient, in a map of other voxels and another orientation."""
    head = head_at((12.0, -7.0, 20.0), rotation)
    expected = field_at(1e3 * concomitant.positions(head, SHAPE, FOV))
    got = read_file(nifti(tmp_path / "map.nii.gz"), pytest.fail).on_grid(head, SHAPE, FOV)
    assert got.shape == SHAPE
    np.testing.assert_allclose(got[8:-8, 8:-8], expected[8:-8, 8:-8], atol=0.1)


def test_point_of_a_nifti_map_is_at_its_place(tmp_path):
    """25 mm to the left, 40 mm to the back and 10 mm to the head of the isocentre."""
    data = np.zeros((41, 41, 41), np.float32)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = -100.0
    data[20 - 5, 20 - 8, 20 + 2] = 90.0  # +x is right, +y anterior
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "map.nii")
    got = read_file(tmp_path / "map.nii", pytest.fail).on_grid(head_at((0, 0, 10.0)), SHAPE, FOV)
    row, column = np.unravel_index(got.argmax(), SHAPE)
    assert (row, column) == (31 // 2 + 8, 42 // 2 + 5)
    assert got[row, column] == pytest.approx(90, abs=1e-3)


@pytest.mark.parametrize("rotation", [(0, 0, 0), (25, -40, 10)], ids=["axial", "oblique"])
def test_map_of_mrd_images_has_their_geometry(tmp_path, rotation):
    """Slices in another order, of another field of view than the images."""
    shape, fov, thickness = (40, 36), (252.0, 280.0), 12.0
    normal = readout_axes(rotation)[2]
    with MrdWriter(tmp_path / "map.h5") as file:
        for number, height in enumerate((24.0, -12.0, 0.0, 12.0, -24.0)):
            head = head_at(tuple(np.array([5.0, 3.0, -4.0]) + height * normal), rotation, number)
            hertz = field_at(1e3 * concomitant.positions(head, shape, fov)).astype(np.float32)
            file.write(mrdhelper.build_image(hertz, head, None, index=number, field_of_view=(*fov, thickness)))
    head = head_at(tuple(np.array([0.0, 10.0, 0.0]) + 7.0 * normal), rotation)
    got = read_file(tmp_path / "map.h5", pytest.fail).on_grid(head, SHAPE, FOV)
    expected = field_at(1e3 * concomitant.positions(head, SHAPE, FOV))
    np.testing.assert_allclose(got, expected, atol=0.1)


def mrd_map(path, heads_and_hertz):
    """Write images of 8 x 10 pixels, each with its header, value and series."""
    with MrdWriter(path) as file:
        for index, (head, hertz, series) in enumerate(heads_and_hertz):
            pixels = np.full((8, 10), hertz, np.float32)
            file.write(mrdhelper.build_image(pixels, head, None, index=index, series=series, field_of_view=(*FOV, 5.0)))
    return path


def test_slices_are_told_apart_by_their_places(tmp_path):
    """Some programs leave the slice counter 0."""
    path = mrd_map(tmp_path / "map.h5", [(head_at((0, 0, 10.0 * n)), 10.0 * n, 0) for n in range(3)])
    assert read_file(path, pytest.fail).on_grid(head_at((0, 0, 20.0)), SHAPE, FOV).max() == 20


def test_readouts_without_directions_are_told_and_not_corrected(tmp_path):
    """All pixels would take the value of one place."""
    texts = []
    found = read_file(nifti(tmp_path / "map.nii"), texts.append)
    assert found.on_grid(ismrmrd.AcquisitionHeader(), SHAPE, FOV) is None
    assert "read_dir and phase_dir do not say how they lie in the field map map.nii" in texts[0]


def test_map_of_a_part_of_the_image_is_told(tmp_path):
    texts = []
    path = nifti(tmp_path / "map.nii", (0, 0, 0), (12, 12, 12))
    read_file(path, texts.append).on_grid(head_at((8.0, -5.0, 12.0)), SHAPE, FOV)
    assert "does not reach as far as" in texts[0]


def test_map_of_one_slice_is_told_where_it_is_taken_for_others():
    texts = []
    found = GridMap("m", np.ones(SHAPE), texts.append)
    found.on_grid(head_at(), SHAPE, FOV)
    assert not texts
    assert found.on_grid(head_at(number=1), SHAPE, FOV).max() == 1
    assert texts == ["the field map m has one slice: it is taken for slice 1, too"]


def test_map_that_ends_before_the_slice_is_told_once(tmp_path):
    texts = []
    found = read_file(nifti(tmp_path / "map.nii", (0, 0, 0)), texts.append)
    for _ in range(2):
        found.on_grid(head_at((0, 0, 250.0)), SHAPE, FOV)
    (text,) = texts
    assert "does not reach as far as 100 % of slice 0, whose centre is at (0, 0, 250) mm" in text


@pytest.mark.parametrize("ending", [".npy", ".mat"])
def test_map_without_geometry_is_on_the_images_grid(tmp_path, ending):
    volume = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    path = tmp_path / f"map{ending}"
    if ending == ".npy":
        np.save(path, volume)
    else:
        scipy.io.savemat(path, {"field_map": volume})
    found = read_file(path, pytest.fail)
    for number in (2, 0):
        np.testing.assert_array_equal(found.on_grid(head_at(number=number), SHAPE, FOV), volume[number])


@pytest.mark.parametrize("shape", [(20, 28), (62, 84), (33, 41)])
def test_map_of_another_matrix_has_the_same_centre(shape):
    texts = []
    rows, columns = (np.arange(n) - n // 2 for n in shape)
    got = GridMap("m", 100 + 30 * columns / shape[1] - 50 * rows[:, np.newaxis] / shape[0], texts.append).on_grid(
        head_at(), SHAPE, FOV
    )
    rows, columns = (np.arange(n) - n // 2 for n in SHAPE)
    expected = 100 + 30 * columns / SHAPE[1] - 50 * rows[:, np.newaxis] / SHAPE[0]
    np.testing.assert_allclose(got[2:-2, 2:-2], expected[2:-2, 2:-2], atol=0.01)
    assert f"has {shape[0]} x {shape[1]} pixels, the images have 31 x 42" in texts[0]


def test_places_without_a_value_have_the_nearest_one():
    hertz = np.full((2, 5, 7), np.nan)
    hertz[0, 2, 1], hertz[0, 2, 5] = 10, 50
    found = GridMap("m", hertz)
    for number in (0, 1):
        got = found.on_grid(head_at(number=number), (5, 7), FOV)
        assert got[:, 0].tolist() == [10] * 5
        assert got[:, 6].tolist() == [50] * 5


def test_slice_that_a_map_has_not_is_told_and_not_corrected():
    texts = []
    assert GridMap("m", np.ones((2, *SHAPE)), texts.append).on_grid(head_at(number=2), SHAPE, FOV) is None
    assert "has 2 slices: slice 2 is not corrected" in texts[0]


def broken(path):
    path.write_bytes(b"nothing of the kind" * 50)


def sheared(path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4) + np.eye(4, k=1) * 0.5), path)


def damaged(path):
    """Compressed data with a part of ones."""
    content = bytearray(nifti(path).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)


def promising(path):
    """A header that says more than any memory holds."""
    content = bytearray(nifti(path, shape=(4, 4, 4)).read_bytes())
    content[42:48] = np.full(3, 30000, "<i2").tobytes()
    path.write_bytes(content)


def without_a_unit(path):
    """A code of the unit of length that NIfTI does not have."""
    content = bytearray(nifti(path, shape=(4, 4, 4)).read_bytes())
    content[123] = 4
    path.write_bytes(content)


def unfinished(path):
    np.save(path, np.ones((4, 4)))
    path.write_bytes(path.read_bytes().replace(b"}", b"("))


def two_series(path):
    mrd_map(path, [(head_at(), 1000.0, 0), (head_at(), 50.0, 1)])


def movie(path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.npy", lambda path: None, "No such file"),
        ("a.npy", broken, "cannot read the field map"),
        ("a.npy", lambda path: np.save(path, np.array([{}])), "cannot read the field map"),
        ("a.npy", lambda path: np.save(path, np.ones((4, 4), complex)), "expected real numbers in Hz"),
        ("a.npy", lambda path: np.save(path, np.ones(4)), r"expected real numbers in Hz, \[row, column\]"),
        ("a.npy", lambda path: np.save(path, np.full((4, 4), np.nan)), "no value that is a number"),
        ("a.mat", broken, "cannot read the field map"),
        ("a.mat", lambda path: scipy.io.savemat(path, {"b0": np.ones((4, 4))}), "no variable field_map"),
        ("a.nii", broken, "cannot read the field map"),
        ("a.nii.gz", broken, "cannot read the field map"),
        ("a.nii.gz", damaged, "a.nii.gz cannot be read as NIfTI"),
        ("a.nii", promising, "says that it holds more than the memory does"),
        ("a.nii", without_a_unit, "unknown code 4 of a unit"),
        ("a.nii", movie, "has 2 volumes: expected one"),
        ("a.npy", unfinished, "cannot read the field map"),
        ("a.h5", two_series, "has 2 images in 1 places: expected one of each slice"),
        ("a.nii", sheared, "not at right angles"),
        ("a.h5", broken, "cannot read the field map"),
        ("a.txt", broken, 'expected "dependency", "auto", or a file that ends in'),
    ],
)
def test_what_is_no_map_is_refused_with_its_name(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(FieldMapError, match=words):
        read_file(tmp_path / name, pytest.fail)
    with pytest.raises(ConfigurationError, match=words):
        open_correction(FieldSettings(field_map=str(tmp_path / name)), None, Client([]))
