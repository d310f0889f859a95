"""MRD files as other programs lay them out, and files that lie."""

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.hdf5 import acquisition_header_dtype, image_header_dtype, waveform_header_dtype
from test_mrdfile import READOUTS, WAVEFORMS, assert_same_image, read_all, write

from conftest import make_image, write_mrd_file
from mrdio.h5groups import MrdFileError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.h5"


# ---- layouts of other programs -------------------------------------------------------------------------------------


def aligned(dtype: np.dtype, without: tuple[str, ...] = ()) -> np.dtype:
    """The same fields as a C++ compiler aligns them."""
    fields = []
    for name in dtype.names:
        field = dtype[name]
        if name not in without:
            fields.append((name, aligned(field, without) if field.names else field.base, field.shape))
    return np.dtype(fields, align=True)


def rewrite(path, name, head_dtype, change=lambda head: None):
    """Store a table of readouts or waveforms again with another layout of its headers."""
    with h5py.File(path, "a") as file:
        group = file["dataset"]
        old = group[name][()]
        dtype = np.dtype([("head", head_dtype), *((part, old.dtype[part]) for part in old.dtype.names[1:])])
        new = np.zeros(len(old), dtype)
        for part in old.dtype.names[1:]:
            new[part] = old[part]
        copy_fields(old["head"], new["head"])
        change(new["head"])
        del group[name]
        group.create_dataset(name, data=new, maxshape=(None,), chunks=True)


def copy_fields(old, new):
    for name in set(new.dtype.names) & set(old.dtype.names):
        if new.dtype[name].names:
            copy_fields(old[name], new[name])
        else:
            new[name] = old[name]


def test_headers_aligned_as_in_cpp(path):
    images = [make_image(number, meta={"a": "b"}) for number in range(2)]
    write(path, *READOUTS, *WAVEFORMS, *images)
    assert aligned(acquisition_header_dtype).itemsize > acquisition_header_dtype.itemsize
    rewrite(path, "data", aligned(acquisition_header_dtype))
    rewrite(path, "waveforms", aligned(waveform_header_dtype))
    with h5py.File(path, "a") as file:
        group = file["dataset/image_0"]
        heads = group["header"][()].astype(aligned(image_header_dtype))
        attributes = group["attributes"][()]
        del group["header"], group["attributes"]
        group.create_dataset("header", data=heads[:, None], maxshape=(None, 1), chunks=True)  # [image, 1] in C++
        group.create_dataset("attributes", data=attributes[:, None], dtype=h5py.string_dtype("ascii"))
    readouts, waveforms, read_images = read_all(path)
    assert readouts == READOUTS
    assert waveforms == WAVEFORMS
    for image, expected in zip(read_images, images, strict=True):
        assert_same_image(image, expected)


def test_packed_waveform_headers_are_read(path):
    write(path, *WAVEFORMS)
    packed = np.dtype([(name, waveform_header_dtype[name]) for name in waveform_header_dtype.names])
    assert packed.itemsize < waveform_header_dtype.itemsize
    rewrite(path, "waveforms", packed)
    assert read_all(path)[1] == WAVEFORMS


def test_fields_that_an_older_format_lacks_are_zero(path):
    write(path, *READOUTS[:2])
    rewrite(path, "data", aligned(acquisition_header_dtype, without=("user_int", "segment")))
    first, second = read_all(path)[0]
    assert first.data.tolist() == READOUTS[0].data.tolist()
    assert list(second.user_int) == [0] * 8
    assert (first.scan_counter, second.scan_counter) == (1, 2)


def test_fields_that_a_newer_format_adds_are_passed_over(path):
    write(path, *READOUTS)
    rewrite(path, "data", np.dtype([("future", "<f8"), *acquisition_header_dtype.descr]))
    assert read_all(path)[0] == READOUTS


def test_big_endian_tables_are_read(path):
    write(path, *READOUTS)
    rewrite(path, "data", acquisition_header_dtype.newbyteorder(">"))
    assert read_all(path)[0] == READOUTS


def test_layout_on_disk_is_that_of_the_package(path, tmp_path):
    items = [*READOUTS, *WAVEFORMS, make_image(1), make_image(2, dtype="c8", series=1)]
    write(path, *items)
    write_mrd_file(tmp_path / "package.h5", items)
    with h5py.File(path) as ours, h5py.File(tmp_path / "package.h5") as theirs:
        names = []
        theirs["dataset"].visit(names.append)
        for name in names:
            if isinstance(theirs["dataset"][name], h5py.Dataset):
                assert ours["dataset"][name].dtype == theirs["dataset"][name].dtype
                assert ours["dataset"][name].shape == theirs["dataset"][name].shape


# ---- files that lie ------------------------------------------------------------------------------------------------


def refuse(path, pattern, group=None):
    with pytest.raises(MrdFileError, match=pattern) as caught:
        read_all(path, group)
    assert str(path) in str(caught.value)


def test_no_such_file(tmp_path):
    refuse(tmp_path / "missing.h5", "there is no file")
    assert not (tmp_path / "missing.h5").exists()


def test_a_folder(tmp_path):
    refuse(tmp_path, "is no file")


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all" * 100, b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" * 99])
def test_no_hdf5(path, content):
    path.write_bytes(content)
    refuse(path, "cannot be read as HDF5")


def test_a_file_that_was_cut_off(path):
    write(path, *READOUTS)
    path.write_bytes(path.read_bytes()[:3000])
    refuse(path, "cannot be read as HDF5")


def test_several_groups_are_listed(path):
    write(path, READOUTS[0], group="scan a")
    write(path, READOUTS[1], group="scan b")
    refuse(path, "has 2 groups, name one of them: scan a, scan b")
    refuse(path, "has no group 'scan c', it has: scan a, scan b", "scan c")


def test_no_group(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros(3)
    refuse(path, "has (0|no) groups?")
    refuse(path, "has no group 'kspace', it has: none", "kspace")


def test_an_empty_group_holds_nothing(path):
    write(path)
    assert read_all(path) == ([], [], [])


def set_field(name, value):
    def change(head):
        head[name][1] = value

    return change


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("active_channels", 9, r"data has 15 values where its header says \(9, 3\)"),
        ("number_of_samples", 65535, r"data has 15 values where its header says \(5, 65535\)"),
        ("active_channels", 0, r"data has 15 values where its header says \(0, 3\)"),
        ("trajectory_dimensions", 2, r"trajectory has 9 values where its header says \(3, 2\)"),
    ],
)
def test_readouts_of_another_size_than_their_header_says(path, field, value, pattern):
    write(path, *READOUTS)
    rewrite(path, "data", acquisition_header_dtype, set_field(field, value))
    refuse(path, pattern)


def test_waveforms_of_another_size_than_their_header_says(path):
    write(path, *WAVEFORMS)
    rewrite(path, "waveforms", waveform_header_dtype, set_field("channels", 2))
    refuse(path, r"waveform has 9 values where its header says \(2, 9\)")


def test_half_a_complex_number(path):
    write(path, *READOUTS)
    with h5py.File(path, "a") as file:
        rows = file["dataset/data"][()]
        rows["data"][1] = rows["data"][1][:-1]
        file["dataset/data"][:] = rows
    refuse(path, "data has|complex")


@pytest.mark.parametrize(
    "table",
    [
        np.zeros(3),
        np.zeros((2, 4, 4), np.complex64),
        np.zeros(3, [("x", "f4")]),
        np.zeros(3, [("head", "f4"), ("traj", "f4"), ("data", "f4")]),
        np.zeros(3, acquisition_header_dtype),
    ],
    ids=["numbers", "array", "other fields", "flat head", "headers only"],
)
@pytest.mark.parametrize("name", ["data", "waveforms"])
def test_tables_of_another_kind(path, name, table):
    with h5py.File(path, "w") as file:
        file[f"dataset/{name}"] = table
    refuse(path, "dataset|data|waveforms")


@pytest.mark.parametrize("name", ["data", "waveforms", "xml"])
def test_groups_where_tables_are_expected(path, name):
    with h5py.File(path, "w") as file:
        file.create_group(f"dataset/{name}/inner")
    refuse(path, name)


def test_images_stored_as_the_group_itself(path):
    """``ismrmrd.File(...)['dataset'].images`` stores images where readouts are expected."""
    with ismrmrd.File(path, "w") as file:
        file["dataset"].images = [make_image(1)]
    refuse(path, "dataset")


def test_image_groups_without_headers(path):
    with h5py.File(path, "w") as file:
        file["dataset/image_0/data"] = np.zeros((1, 1, 1, 2, 2), np.float32)
    refuse(path, "header")


@pytest.mark.parametrize("data_type", [0, 9, 77])
def test_images_of_unknown_type(path, data_type):
    write(path, make_image(1))
    with h5py.File(path, "a") as file:
        heads = file["dataset/image_0/header"][()]
        heads["data_type"] = data_type
        file["dataset/image_0/header"][:] = heads
    refuse(path, "image_0|data.type")


def test_a_refused_file_is_not_kept_open(path):
    write(path, READOUTS[0], group="a")
    write(path, READOUTS[0], group="b")
    refuse(path, "name one of them")
    with h5py.File(path, "a") as file:  # would fail while it is open for reading
        file["c"] = 1
