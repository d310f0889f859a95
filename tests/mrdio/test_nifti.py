"""NIfTI files: axes and directions by a point at a known place, also oblique; what is none."""

import nibabel
import numpy as np
import pytest

from mrdio import nifti


def write(path, shape=(5, 6, 7), rotation=0.3):
    """File with one bright voxel (3, 1, 4), of voxels of 2 x 3 x 4 mm; returns the voxel's place towards R, A, S."""
    c, s = np.cos(rotation), np.sin(rotation)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([2.0, 3.0, 4.0])
    affine[:3, 3] = (10, -20, 30)
    data = np.zeros(shape, np.float32)
    data[3, 1, 4] = 7
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return (affine @ (3, 1, 4, 1))[:3]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxel_is_at_its_place(tmp_path, name):
    x, y, z = write(tmp_path / name)
    values, to_patient = nifti.read(tmp_path / name)
    assert values.shape == (7, 6, 5)
    assert values[4, 1, 3] == 7
    np.testing.assert_allclose(to_patient @ (4, 1, 3, 1), (-x, -y, z, 1), atol=1e-4)


def test_later_axes_come_first_and_missing_ones_are_of_length_one(tmp_path):
    write(tmp_path / "a.nii", (5, 6, 7, 2, 3))
    assert nifti.read(tmp_path / "a.nii")[0].shape == (3, 2, 7, 6, 5)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3), np.float32), np.eye(4)), tmp_path / "b.nii")
    assert nifti.read(tmp_path / "b.nii")[0].shape == (1, 3, 4)


def test_values_are_scaled_as_the_file_says(tmp_path):
    image = nibabel.Nifti1Image(np.array([[[1.0, -300.0]]]), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.read(tmp_path / "a.nii")[0].ravel(), [1, -300], atol=0.01)


def test_files_of_other_kinds_are_refused_with_their_name(tmp_path):
    image = nibabel.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "a.mgz")
    with pytest.raises(nifti.NiftiError, match=r"a.mgz is a file of MGHImage, no NIfTI file"):
        nifti.read(tmp_path / "a.mgz")
    with pytest.raises(nifti.NiftiError, match=r"none.nii"):
        nifti.read(tmp_path / "none.nii")
