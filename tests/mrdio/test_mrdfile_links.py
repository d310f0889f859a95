"""MRD files that lead to other files are refused by name, before these are opened."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import client
from conftest import header_xml, make_acquisition, make_image, write_mrd_file
from mrdio import h5groups
from mrdio.h5groups import MrdFileError, open_mrd
from mrdio.mrdfile import MrdReader, MrdWriter
from mrdio.mrdsource import open_source
from sending.outputfile import check_output

SECRET = b"root:secret:0:0\n" * 64


@pytest.fixture
def raw(tmp_path):
    return write_mrd_file(tmp_path / "raw.h5", [make_acquisition(n) for n in range(3)], xml=header_xml())


def pipe_behind_a_link(file, folder):
    os.mkfifo(folder / "pipe")
    del file["dataset/data"]
    file["dataset/data"] = h5py.ExternalLink(folder / "pipe", "/data")


def soft_link_to_an_external_one(file, folder):
    file["far/away"] = h5py.ExternalLink("elsewhere.h5", "/")
    file["dataset/waveforms"] = h5py.SoftLink("/far/away/waveforms")


def virtual(file, folder):
    file["dataset"].create_group("image_0")
    layout = h5py.VirtualLayout((4,), np.uint8)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file["dataset/image_0"].create_virtual_dataset("data", layout)


def external_storage(file, folder):
    """Pixels of an image that are the bytes of another file."""
    (folder / "secret").write_bytes(SECRET)
    group = file["dataset"].create_group("image_0")
    shape = (1, 1, 1, 8, 16)
    group.create_dataset("data", shape, np.uint16, external=[(str(folder / "secret"), 0, 256)])


def a_group_elsewhere(file, folder):
    file.move("dataset", "first")
    file["dataset"] = h5py.ExternalLink("elsewhere.h5", "/")


CASES = {
    pipe_behind_a_link: "/dataset/data is a link to another file, .*pipe",
    soft_link_to_an_external_one: "/far/away is a link to another file, elsewhere.h5",
    virtual: "/dataset/image_0/data is a virtual data set",
    external_storage: "/dataset/image_0/data lies in another file, .*secret",
    a_group_elsewhere: "/dataset is a link to another file, elsewhere.h5",
}


@pytest.mark.parametrize("craft", CASES, ids=lambda craft: craft.__name__)
def test_a_file_that_leads_to_others_is_refused(raw, tmp_path, craft):
    with h5py.File(raw, "a") as file:
        craft(file, tmp_path)
    for open_it in (open_mrd, MrdReader, MrdWriter, open_source):
        with pytest.raises(MrdFileError, match=CASES[craft]):
            open_it(raw, "dataset")


def test_links_to_other_files_that_nobody_reads_are_in_nobodys_way(raw, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits without an end
    with h5py.File(raw, "a") as file:
        for place in ("mine", "dataset/mine"):
            file[place] = h5py.ExternalLink(tmp_path / "pipe", "/")
    check_output(raw, "dataset")
    with MrdWriter(raw) as writer:
        writer.write(make_image())
    with MrdReader(raw) as reader:  # the only group that lies in this file
        assert reader.group == "dataset"
        assert (len(list(reader.acquisitions())), len(list(reader.images()))) == (3, 1)
    with h5py.File(raw) as file:
        assert isinstance(file.get("dataset/mine", getlink=True), h5py.ExternalLink)
    with pytest.raises(MrdFileError, match=r"no group 'else', it has: dataset$"):
        MrdReader(raw, "else")


@pytest.mark.parametrize("place", ["/", "/dataset", "/dataset/image_0"])
def test_many_links_are_not_all_gone_through(raw, monkeypatch, place):
    """A small file can hold very many links to one object; each costs time."""
    monkeypatch.setattr(h5groups, "STEPS", 20)
    with h5py.File(raw, "a") as file:
        for number in range(30):
            file.require_group(place)[f"x{number}"] = file["dataset/data"]
    with MrdReader(raw, "dataset") as reader:
        assert len(list(reader.acquisitions())) == 3
    with h5py.File(raw, "a") as file:
        for number in range(1, 30):
            file["dataset"][f"image_{number}"] = h5py.SoftLink(f"/dataset/image_{number}")  # in a circle
    with pytest.raises(MrdFileError, match=r"too many groups and links .*: at most 20"):
        MrdReader(raw, "dataset")


@pytest.mark.parametrize("path", ["/dataset/round", "round", "/dataset/itself/dataset/round"])
def test_a_link_in_a_circle_is_an_error(raw, monkeypatch, path):
    monkeypatch.setattr(h5groups, "STEPS", 100)
    with h5py.File(raw, "a") as file:
        file["dataset/itself"] = file["/"]
        file["dataset/round"] = h5py.SoftLink(path)
    with pytest.raises(MrdFileError, match="too many groups and links"):
        MrdReader(raw, "dataset/round")


def test_links_within_the_file_are_followed(raw):
    with h5py.File(raw, "a") as file:
        file["same"] = h5py.SoftLink("/dataset")
        file["again"] = file["dataset"]
        file["dataset/itself"] = file["/"]  # groups in a circle
        file["nowhere"] = h5py.SoftLink("/not/there")
    for group in ("same", "again", "dataset"):
        with MrdReader(raw, group) as reader:
            assert len(list(reader.acquisitions())) == 3


def test_a_link_to_nowhere_is_an_error_that_names_it(raw):
    with h5py.File(raw, "a") as file:
        del file["dataset/data"]
        file["dataset/data"] = h5py.SoftLink("/not/there")
    with pytest.raises(MrdFileError, match="dataset"):
        open_source(raw)


def test_the_clients_user_is_told(raw, tmp_path):
    with h5py.File(raw, "a") as file:
        external_storage(file, tmp_path)
    command = [sys.executable, client.__file__, raw]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "image_0/data lies in another file" in line


def test_an_output_that_leads_to_others_is_left_alone(raw, tmp_path):
    output = tmp_path / "out.h5"
    with MrdWriter(output, "first") as writer:
        writer.write(make_image())
    with h5py.File(output, "a") as file:
        file["second"] = h5py.ExternalLink("raw.h5", "/dataset")
    with pytest.raises(MrdFileError, match="/second is a link to another file"):
        client.run(client.ClientOptions(raw, output=output, out_group="second", port=1))


def test_an_output_that_is_no_hdf5_file_is_named_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MrdFileError, match="pipe is no file"):
        check_output(tmp_path / "pipe", "run")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(MrdFileError, match="it is no HDF5 file"):
        check_output(tmp_path / "empty.h5", "run")


def test_a_pipe_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MrdFileError, match="pipe is a pipe or device"):
        open_source(tmp_path / "pipe")
