"""Our reconstruction of a file made by the C++ ismrmrd tools, against their own reconstruction of it."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest

import client
import main
from conftest import PATIENCE
from mrdfile import MrdReader


def run_tool(name, *arguments):
    tool = shutil.which(name)
    assert tool, f"{name} is missing: ./test.sh installs it, or says how (Debian package ismrmrd-tools)"
    subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True, timeout=6 * PATIENCE)


@pytest.fixture
def reconstruct(server, tmp_path):
    running = server(module_folders=(main.PROJECT_FOLDER,))

    def through_server(path):
        options = client.ClientOptions(path, port=running.port, config="simplefft", output=tmp_path / "ours.h5")
        result = client.run(options)
        assert result.errors == []
        with MrdReader(result.output, result.group) as out:
            return [image.data[0, 0].astype(float) for image in out.images()]

    return through_server


def correlation(one, other):
    return np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("options", [["-m", 64], ["-m", 96, "-c", 4, "-O", 1, "-n", 0], ["-m", 64, "-C", "-k"]])
def test_simplefft_agrees_with_the_cpp_reconstruction(reconstruct, tmp_path, options):
    path = tmp_path / "raw.h5"
    run_tool("ismrmrd_generate_cartesian_shepp_logan", "-o", path, *options)
    (ours,) = reconstruct(path)
    run_tool("ismrmrd_recon_cartesian_2d", path)
    with h5py.File(path) as file:
        theirs = np.squeeze(file["dataset/cpp/data"][0])
    assert ours.shape == theirs.shape
    assert correlation(ours, theirs) >= 0.9999


def test_accelerated_data_with_calibration_lines_are_handled(reconstruct, tmp_path, caplog):
    path = tmp_path / "raw.h5"
    run_tool("ismrmrd_generate_cartesian_shepp_logan", "-o", path, "-m", 64, "-a", 2, "-w", 16)
    images = reconstruct(path)
    assert [image.shape for image in images] == [(64, 64), (64, 64)]
    assert "expect aliasing" in caplog.text
