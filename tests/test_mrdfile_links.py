"""MRD files that lead to other files are refused by name, before anything is opened."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import client
from conftest import header_xml, make_acquisition, make_image, write_mrd_file
from mrdfile import MrdFileError, MrdReader, MrdWriter, open_mrd
from mrdsource import open_source

SECRET = b"root:secret:0:0\n" * 64


@pytest.fixture
def raw(tmp_path):
    return write_mrd_file(tmp_path / "raw.h5", [make_acquisition(n) for n in range(3)], xml=header_xml())


def pipe_behind_a_link(file, folder):
    os.mkfifo(folder / "pipe")
    del file["dataset/data"]
    file["dataset/data"] = h5py.ExternalLink(folder / "pipe", "/data")


def other_group(file, folder):
    file["other"] = h5py.ExternalLink("elsewhere.h5", "/")


def soft_link_to_an_external_one(file, folder):
    file["far/away"] = h5py.ExternalLink("elsewhere.h5", "/")
    file["dataset/waveforms"] = h5py.SoftLink("/far/away/waveforms")


def virtual(file, folder):
    layout = h5py.VirtualLayout((4,), np.uint8)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file["dataset"].create_virtual_dataset("virtual", layout)


def external_storage(file, folder):
    """Pixels of an image that are the bytes of another file."""
    (folder / "secret").write_bytes(SECRET)
    group = file["dataset"].create_group("image_0")
    shape = (1, 1, 1, 8, 16)
    group.create_dataset("data", shape, np.uint16, external=[(str(folder / "secret"), 0, 256)])


def deep(file, folder):
    """As deep as recursion would not survive."""
    group = file
    for _ in range(2000):
        group = group.create_group("g")
    group["x"] = h5py.ExternalLink("elsewhere.h5", "/")


CASES = {
    pipe_behind_a_link: "/dataset/data is a link to another file, .*pipe",
    other_group: "/other is a link to another file, elsewhere.h5",
    soft_link_to_an_external_one: "/far/away is a link to another file, elsewhere.h5",
    virtual: "/dataset/virtual is a virtual data set",
    external_storage: "/dataset/image_0/data lies in another file, .*secret",
    deep: "/g/x is a link to another file",
}


@pytest.mark.parametrize("craft", CASES, ids=lambda craft: craft.__name__)
def test_a_file_that_leads_to_others_is_refused(raw, tmp_path, craft):
    with h5py.File(raw, "a") as file:
        craft(file, tmp_path)
    for open_it in (open_mrd, MrdReader, MrdWriter, open_source):
        with pytest.raises(MrdFileError, match=CASES[craft]):
            open_it(raw)


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


def test_a_pipe_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MrdFileError, match="pipe is a pipe or device"):
        open_source(tmp_path / "pipe")
