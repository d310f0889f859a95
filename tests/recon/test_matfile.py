import numpy as np
import pytest
from scipy.io import savemat

from recon.matfile import MatFileError, read_mat


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def mat_file(request, tmp_path):
    file = tmp_path / "some.mat"
    content = {
        "a": np.arange(6.0).reshape(2, 3),
        "c": np.array([[1 + 2j]]),
        "s": {"fov": 3.0, "name": "ga", "empty": "", "cells": np.array([1, "x"], dtype=object)},
        "other": 1,
    }
    savemat(file, content, do_compression=request.param)
    return file


def test_reads_numbers_texts_and_structures(mat_file):
    content = read_mat(mat_file, ["a", "c", "s", "absent"])
    assert list(content) == ["a", "c", "s"]
    np.testing.assert_array_equal(content["a"], np.arange(6.0).reshape(2, 3))
    assert content["c"].item() == 1 + 2j
    assert content["s"]["fov"].item().item() == 3
    assert content["s"]["name"].item().item() == "ga"


COMPLETE = ["a", "c", "s"]


def outcome(file):
    """Names of the variables read, or nothing where the file is refused by name."""
    try:
        return list(read_mat(file, COMPLETE))
    except MatFileError as error:
        return [] if str(file) in str(error) else COMPLETE


def test_no_truncated_file_is_taken_for_a_complete_one(mat_file):
    content = mat_file.read_bytes()
    for length in [*range(140), *range(140, len(content), 13), len(content) - 1]:
        mat_file.write_bytes(content[:length])
        assert outcome(mat_file) != COMPLETE, length


def test_wrong_type_codes_do_not_reach_the_reader(tmp_path):
    """Each of these takes scipy's reader, and with it the process, down."""
    file = tmp_path / "some.mat"
    savemat(file, {"a": np.arange(6.0).reshape(2, 3)})
    content = bytearray(file.read_bytes())
    data_tag = content.index(np.arange(6.0).reshape(2, 3).T.tobytes()) - 8
    flags = 128 + 8 + 8
    for position, value in ((data_tag, 102), (data_tag + 1, 81), (data_tag, 14), (flags + 1, 8), (flags, 140)):
        damaged = content.copy()
        damaged[position] = value
        file.write_bytes(damaged)
        with pytest.raises(MatFileError, match=r"some\.mat"):
            read_mat(file, ["a"])


def test_variables_of_other_classes_do_not_matter_unless_asked_for(tmp_path):
    import scipy.sparse

    savemat(tmp_path / "sparse.mat", {"a": np.eye(2), "sparse": scipy.sparse.csc_array(np.eye(3))})
    assert set(read_mat(tmp_path / "sparse.mat", ["a"])) == {"a"}
    with pytest.raises(MatFileError, match="class 5"):
        read_mat(tmp_path / "sparse.mat", ["sparse"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no header of version 5"),
        (b"\x89HDF\r\n", "no header"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384), "save it with -v7"),
    ],
)
def test_other_files(tmp_path, content, told):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(MatFileError, match=told):
        read_mat(tmp_path / "x.mat", ["a"])


def test_missing_file(tmp_path):
    with pytest.raises(MatFileError, match=r"x\.mat: No such file"):
        read_mat(tmp_path / "x.mat", ["a"])
