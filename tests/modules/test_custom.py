"""The example of a custom module, served from its own folder."""

import json
import subprocess
import sys

import ismrmrd
import numpy as np
import pytest

from cartesian_data import FakeConnection, make_header, make_image, make_readout, point_kspace, readouts_of
from mrdio.mrdfile import MrdReader, MrdWriter
from recon.configuration import ConfigurationError
from server_process import PROJECT, ServerProcess
from serving.module_loader import ModuleLoader

CUSTOM = PROJECT / "custom"


@pytest.fixture(scope="module")
def process():
    return ModuleLoader([CUSTOM]).load("filter")


def run(process, items, metadata="no header", **parameters):
    connection = FakeConnection(items)
    process(connection, {"parameters": parameters} if parameters else "filter", metadata)
    return connection.images


def median(pixels, window):
    """Median by sorting each neighbourhood, edge pixels going on beyond the edge."""
    half = window // 2
    padded = np.pad(pixels, half, mode="edge")
    return np.array(
        [
            [np.sort(padded[y : y + window, x : x + window], axis=None)[window**2 // 2] for x in range(pixels.shape[1])]
            for y in range(pixels.shape[0])
        ]
    )


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_median_of_each_slice_and_channel(process, window, dtype):
    pixels = np.random.default_rng(2).integers(0, 1000, (2, 3, 7, 10)).astype(dtype)
    (image,) = run(process, [make_image(pixels)], windowSize=window)
    assert image.data.dtype == dtype
    for channel in range(2):
        for z in range(3):
            np.testing.assert_array_equal(image.data[channel, z], median(pixels[channel, z], window))


def test_header_and_attributes_stay(process):
    meta = {"ImageProcessingHistory": "SCANNER", "A": "b"}
    image = make_image(np.ones((4, 4), np.int16), series=7, index=3, meta=meta)
    (filtered,) = run(process, [image])
    assert (filtered.image_series_index, filtered.image_index) == (7, 3)
    assert filtered.meta["ImageProcessingHistory"] == ["SCANNER", "MEDIAN"]
    assert (filtered.meta["A"], filtered.meta["SequenceDescriptionAdditional"]) == ("b", "Median3")


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, ismrmrd.IMTYPE_PHASE), (np.complex64, 0)])
def test_phase_and_complex_images_pass_through(process, dtype, kind):
    image = make_image(np.array([[0, 9], [5, 1]], dtype), image_type=kind)
    assert run(process, [image]) == [image]


def test_raw_data_are_reconstructed_and_filtered(process):
    kspace = point_kspace([(2, -3, 1)], (16, 16), (16, 16))
    readouts = readouts_of(kspace)
    (sharp,) = run(process, [make_readout(np.ones((1, 16)), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), *readouts],
                   make_header((16, 16, 1)), windowSize=1)  # fmt: skip
    assert sharp.data[0, 0, 8 - 3, 8 + 2] == sharp.data.max() == 4095
    (smooth,) = run(process, readouts, make_header((16, 16, 1)), windowSize=3)
    assert smooth.data.max() <= 1  # one pixel is no median
    assert run(process, []) == []


@pytest.mark.parametrize("size", [0, 4, 33, -3, 2.5, "three", "4", True, [3]])
def test_wrong_window_sizes_are_named(process, size):
    with pytest.raises(ConfigurationError, match=r"JSON parameters: windowSize = "):
        run(process, [], windowSize=size)


def test_even_is_said_to_be_wrong(process):
    with pytest.raises(ConfigurationError, match="windowSize = 4: must be an odd number"):
        run(process, [], windowSize="4")


def test_served_without_copying_and_configured_by_its_json(tmp_path):
    """``main.py -M custom`` serves it; a client started in that folder sends ``filter.json``."""
    pixels = np.random.default_rng(3).integers(0, 1000, (9, 8)).astype(np.uint16)
    with MrdWriter(tmp_path / "in.h5", "dataset") as writer:
        writer.write_header(make_header())
        writer.write(make_image(pixels))
    five = tmp_path / "five"
    five.mkdir()
    shipped = json.loads((CUSTOM / "filter.json").read_text("utf-8"))
    (five / "filter.json").write_text(json.dumps(shipped | {"parameters": {"windowSize": 5}}), "utf-8")
    running = ServerProcess("-d", "null", "-M", CUSTOM, cwd=tmp_path)
    assert running.port, running.log()
    for folder, window in ((CUSTOM, 3), (five, 5)):
        output = tmp_path / f"out{window}.h5"
        command = [sys.executable, PROJECT / "client.py", "-p", str(running.port), "-c", "filter", "-o", output]
        done = subprocess.run([*command, tmp_path / "in.h5"], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        with MrdReader(output) as file:
            (image,) = file.images()
        np.testing.assert_array_equal(image.data[0, 0], median(pixels, window))
    assert running.stop() == 0
