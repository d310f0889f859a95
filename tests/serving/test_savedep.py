"""Sessions that keep a measurement for later scans, and scans that depend on one."""

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText

from conftest import make_acquisition, make_header, write_module
from mrdio.dependencies import DependencyStore
from mrdio.limits import Limits

ECHO = """
import ismrmrd, numpy
from recon import noise
def process(connection, config, metadata):
    items = noise.prewhiten(connection, metadata, "auto", connection.info, connection.warn, connection.dependency)
    for item in items:
        image = ismrmrd.Image.from_array(item.data, acquisition=item, transpose=False)
        image.meta = ismrmrd.Meta({"ImageComment": "mine"})
        connection.send_image([image, image])
"""


def header_of(measurement, depends_on=None):
    header = make_header()
    information = header.measurementInformation
    information.measurementID = measurement
    if depends_on:
        dependency = ismrmrd.xsd.measurementDependencyType(dependencyType="Noise", measurementID=depends_on)
        information.measurementDependency = [dependency]
    return header


def noise_readout(seed=0):
    random = np.random.default_rng(seed)
    data = (random.standard_normal((2, 500, 2)) @ [[3], [3j]])[..., 0].astype(np.complex64)
    acquisition = ismrmrd.Acquisition.from_array(data, scan_counter=1)
    acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return acquisition


def hold(peer, *items):
    """A whole session; returns texts and images."""
    peer.send(*items)
    peer.send_close()
    answer = peer.receive()
    return [each for each in answer if isinstance(each, str)], [each for each in answer if not isinstance(each, str)]


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


CONFIGS = ["savedep", "savedep.xml", "default_measurement_dependencies", "default_measurement_dependencies.xml"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_measurement_is_kept_and_no_image_comes(server, connect, tmp_path, config):
    running = server()
    texts, images = hold(connect(running.address), ConfigFile(config), header_of("42_7"), noise_readout())
    assert texts == ["INFO     1 readouts, waveforms and images are kept as the measurement 42_7"]
    assert images == []
    assert names(tmp_path / "dependencies") == ["42_7.dependency.mrd"]
    texts, images = hold(connect(running.address), ConfigText(config), header_of("43"))
    assert texts == ["WARNING  nothing came of the measurement 43: nothing is kept"]


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_scan_is_whitened_by_the_measurement_that_its_header_names_after_a_restart(start, connect, tmp_path, mode):
    write_module(tmp_path, "echo", ECHO)
    options = [*mode, "-d", "null", "-M", str(tmp_path), "--dependencyFolder", str(tmp_path / "kept")]
    running = start(*options)
    hold(connect(("127.0.0.1", running.port)), ConfigFile("savedep"), header_of("42_7"), noise_readout())
    assert running.stop() == 0, running.log()
    running = start(*options)
    scan = (ConfigFile("echo"), header_of("44", "42_7"), make_acquisition(1))
    texts, images = hold(connect(("127.0.0.1", running.port)), *scan)
    assert running.stop() == 0, running.log()
    assert texts == ["INFO     readouts are whitened: 500 noise samples of 2 coils of the stored measurement 42_7"]
    factor = np.linalg.norm(images[0].data) / np.linalg.norm(make_acquisition(1).data)
    assert factor == pytest.approx(1 / (3 * 2**0.5), rel=0.1)
    assert "MissingDependency" not in images[0].meta


def test_a_missing_measurement_is_told_and_marked_and_stops_nothing(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO)
    running = server(module_folders=(tmp_path,))
    scan = (ConfigFile("echo"), header_of("44", "42_7"), *(make_acquisition(n) for n in range(3)))
    texts, images = hold(connect(running.address), *scan)
    reason = "the measurement 42_7 is not there: it has not been sent with the config savedep, or has been removed"
    assert texts == [f"WARNING  the scan depends on a measurement (Noise) that is missing: {reason}"]
    assert len(images) == 6
    for image in images:
        assert image.meta["MissingDependency"] == "Noise"
        assert image.meta["ImageComment"] == ["mine", f"made without Noise: {reason}"]


def test_a_scan_with_noise_of_its_own_misses_nothing(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO)
    running = server(module_folders=(tmp_path,))
    scan = (ConfigFile("echo"), header_of("44", "42_7"), noise_readout(), make_acquisition(1))
    texts, images = hold(connect(running.address), *scan)
    assert texts == ["INFO     readouts are whitened: 500 noise samples of 2 coils of this scan"]
    assert "MissingDependency" not in images[0].meta


@pytest.mark.parametrize("name", ["../../x", "", ".x", "a b"])
def test_an_id_that_is_no_name_is_told(server, connect, tmp_path, name):
    write_module(tmp_path, "echo", ECHO)
    running = server(module_folders=(tmp_path,))
    texts, images = hold(connect(running.address), ConfigFile("savedep"), header_of(name), noise_readout())
    assert len(texts) == 1  # and no fallback
    assert texts[0].startswith(f"ERROR    the measurementID {name!r} is no name: expected")
    assert images == []
    if name:
        texts, images = hold(connect(running.address), ConfigFile("echo"), header_of("1", name), make_acquisition(1))
        assert "is no name" in texts[0]
        assert images[0].meta["MissingDependency"] == "Noise"
    assert names(tmp_path) == ["echo.py"]


def test_a_full_disk_is_told(server, connect, tmp_path):
    running = server(limits=Limits(disk=1 << 60))
    texts, images = hold(connect(running.address), ConfigFile("savedep"), header_of("7"), noise_readout())
    assert "are free on the disk" in texts[0]
    assert texts[0].startswith("ERROR    the measurement 7 is not kept:")
    assert (len(texts), images) == (1, [])


def test_sessions_with_one_id_at_a_time_leave_one_whole_measurement(server, connect, in_thread, tmp_path):
    running = server()
    peers = [connect(running.address) for _ in range(8)]
    sent = [[make_acquisition(100 * n + i) for i in range(20)] for n in range(8)]
    sessions = [
        in_thread(hold, peer, ConfigFile("savedep"), header_of("7"), *items)
        for peer, items in zip(peers, sent, strict=True)
    ]
    for session in sessions:
        texts, _ = session.result()
        assert texts == ["INFO     20 readouts, waveforms and images are kept as the measurement 7"]
    found = [each.scan_counter for each in DependencyStore(tmp_path / "dependencies").load("7").readouts]
    assert found in [[each.scan_counter for each in items] for items in sent]
    assert names(tmp_path / "dependencies") == ["7.dependency.mrd"]


def test_a_session_that_breaks_off_leaves_no_measurement_but_what_came(server, connect, tmp_path, caplog):
    running = server()
    peer = connect(running.address)
    peer.send(ConfigFile("savedep"), header_of("7"), noise_readout())
    peer.sock.shutdown(1)
    peer.reader.read()
    running.stop()
    assert "the first 1 readouts, waveforms and images are in" in caplog.text
    (part,) = (tmp_path / "dependencies").iterdir()
    assert part.suffix == ".mrdpart"
