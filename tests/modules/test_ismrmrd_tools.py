"""Our reconstruction of a file made by the C++ ismrmrd tools, against their own reconstruction of it."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest

import client
import generate_cartesian_shepp_logan_dataset as generator
import main
from conftest import PATIENCE
from mrdio.mrdfile import MrdReader


def run_tool(name, *arguments):
    tool = shutil.which(name)
    assert tool, f"{name} is missing: ./test.sh installs it, or says how (Debian package ismrmrd-tools)"
    subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True, timeout=6 * PATIENCE)


@pytest.fixture
def reconstruct(server, tmp_path):
    running = server(module_folders=(main.PROJECT_FOLDER,))

    def through_server(path, config="simplefft"):
        options = client.ClientOptions(path, port=running.port, config=config, output=tmp_path / "ours.h5")
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
    """Every line that the tool wrote is in the image: a plain transform of them, zeros between, gives the same."""
    path = tmp_path / "raw.h5"
    run_tool("ismrmrd_generate_cartesian_shepp_logan", "-o", path, "-m", 64, "-a", 3, "-w", 16)
    images = reconstruct(path)
    assert "expect aliasing" in caplog.text
    with MrdReader(path, "dataset") as raw:
        kspace = np.zeros((3, 8, 64, 128), complex)
        for readout in raw.acquisitions():
            kspace[readout.idx.repetition, :, readout.idx.kspace_encode_step_1] = readout.data
    coil_images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(2, 3))), axes=(2, 3))
    for image, theirs in zip(images, np.sqrt((np.abs(coil_images[..., 32:96]) ** 2).sum(axis=1)), strict=True):
        assert correlation(image, theirs) >= 0.99999


def test_accelerated_data_are_unfolded(reconstruct, tmp_path, caplog):
    """Interleaved lines, with calibration lines and a noise readout, against the C++ image of all lines."""
    caplog.set_level("INFO")
    paths = tmp_path / "accelerated.h5", tmp_path / "full.h5"
    for path, options in zip(paths, (["-a", 2, "-w", 24, "-C"], ["-r", 1]), strict=True):
        run_tool("ismrmrd_generate_cartesian_shepp_logan", "-o", path, "-m", 128, "-n", 0.003, *options)
    run_tool("ismrmrd_recon_cartesian_2d", paths[1])
    with h5py.File(paths[1]) as file:
        theirs = np.squeeze(file["dataset/cpp/data"][0])
    images = reconstruct(paths[0], "cartesian_recon")
    assert "grappa makes up for the others" in caplog.text
    assert len(images) == 2
    for image in images:
        assert correlation(image, theirs) > 0.998
    for image in reconstruct(paths[0], "simplefft"):
        assert correlation(image, theirs) < 0.97


@pytest.mark.parametrize(
    "options", [["-m", 64, "-C"], ["-m", 60, 40, "-c", 3, "--phase", 1, "--noise-correlation", 0.5]]
)
def test_the_cpp_tools_reconstruct_what_our_generator_writes(reconstruct, tmp_path, options):
    path = tmp_path / "raw.h5"
    assert generator.main(["-o", str(path), *map(str, options)]) == 0
    (ours,) = reconstruct(path)
    run_tool("ismrmrd_recon_cartesian_2d", path)
    with h5py.File(path) as file:
        theirs = np.squeeze(file["dataset/cpp/data"][0])
    assert correlation(ours, theirs) >= 0.9999
