"""The command: a machine in order, one with three things broken, headers and data of files, sizes, containers."""

import base64
import io
import json
import socket
import subprocess
import sys
import tarfile

import ismrmrd.xsd
import pytest

from checks import container, machine, pace, scans
from checks.finding import Level
from checks.label import LABEL
from checks.scanner import Answer
from mrdio.mrdfile import MrdWriter
from server_process import PROJECT
from tools import openrecon


def doctor(folder, *arguments):
    """Exit status and output of the command in a folder; nothing else of this machine is looked at than is said."""
    command = [sys.executable, str(PROJECT / "doctor.py"), "--colour", "never", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def faults(output):
    """Subjects of the faults in an output."""
    return [line.split()[1] for line in output.splitlines() if line.startswith("FAULT")]


def test_a_machine_in_order(tmp_path):
    status, output = doctor(tmp_path, "-p", 0, "-S", tmp_path / "saved")
    assert (status, faults(output)) == (0, []), output
    for subject in ("Python", "packages", "compiled code", "BART", "GPU", "port", "clock", "settings", "sequences"):
        assert f" {subject} " in output, subject


def test_three_things_broken(tmp_path):
    """A misspelt key, a folder that cannot be made, a metafile that is none."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rtspiral_vs_config.toml").write_text("[reconstruction]\narms_per_fram = 55\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "seq_meta").mkdir()
    (tmp_path / "seq_meta" / f"{'a' * 32}.mat").write_text("nothing")
    status, output = doctor(tmp_path, "-p", 0, "-S", tmp_path / "file" / "saved")
    assert status == 1
    assert set(faults(output)) == {"settings", "save", "sequences", "dependencies"}, output
    assert "arms_per_fram" in output
    assert "did you mean 'arms_per_frame'" in output or "arms_per_frame" in output


def test_a_port_that_cannot_be_had():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = machine.port("127.0.0.1", taken.getsockname()[1])
    assert (found.level, found.subject) == (Level.WARNING, "port")
    assert machine.port("192.0.2.1", 9002).level is Level.FAULT  # no address of this machine


@pytest.mark.parametrize(("text", "level"), [("numpy==0.0.1\n", Level.WARNING), ("no-such-package==1\n", Level.FAULT)])
def test_packages_that_are_not_the_pinned_ones(tmp_path, text, level):
    (tmp_path / "requirements.txt").write_text(text)
    assert machine.packages(tmp_path / "requirements.txt").level is level


def test_an_old_python_and_a_wrong_clock():
    assert machine.python((3, 10, 1)).level is Level.FAULT
    assert machine.clock(0.0).level is Level.FAULT


def test_a_module_with_a_header(tmp_path):
    (tmp_path / "header.xml").write_text(ismrmrd.xsd.ToXML(scans.make_header((30, 34), 5.0, 3, 5e-3, oversampling=2)))
    status, output = doctor(tmp_path, "simplefft", "--no-machine", "--header", tmp_path / "header.xml")
    assert status == 0, output
    assert "Cartesian k-space by the header" in output
    assert " geometry " in output


def test_a_module_with_data(tmp_path):
    scan = scans.make("cartesian")
    with MrdWriter(tmp_path / "raw.h5") as file:
        file.write_header(scan.header_xml)
        for message in scan.messages:
            file.write(message)
    status, output = doctor(tmp_path, "simplefft", "--no-machine", "--data", tmp_path / "raw.h5")
    assert status == 0, output
    assert "raw.h5: 4 images" in output


def test_a_file_that_is_no_header(tmp_path):
    (tmp_path / "header.xml").write_text("<nothing/>")
    status, output = doctor(tmp_path, "simplefft", "--no-machine", "--header", tmp_path / "header.xml")
    assert (status, faults(output)) == (1, ["header"]), output


def test_a_module_that_is_not_there(tmp_path):
    status, output = doctor(tmp_path, "simplefftt", "--no-machine")
    assert status == 1
    assert "there is no module 'simplefftt'" in output


def test_a_module_that_cannot_be_loaded_is_told_once(tmp_path):
    (tmp_path / "broken.py").write_text(
        "import nothing_of_that_name\ndef process(connection, config, metadata): pass\n"
    )
    status, output = doctor(tmp_path, "broken", "--no-machine")
    assert (status, faults(output)) == (1, ["module"]), output


def test_images_of_other_pixels_in_the_same_field_of_view_are_no_fault(tmp_path):
    """As from a module that interpolates, or makes images smaller."""
    source = (PROJECT / "simplefft.py").read_text("utf-8")
    assert "return np.moveaxis(coils.rssq(image), -1, 0)" in source
    (tmp_path / "larger.py").write_text(
        source.replace(
            "return np.moveaxis(coils.rssq(image), -1, 0)",
            "from scipy.ndimage import zoom\n    pixels = np.moveaxis(coils.rssq(image), -1, 0)\n"
            "    return zoom(np.pad(pixels, ((0, 0), (0, 1), (0, 1)), mode='edge'), (1, 2, 2), order=1)[:, :-2, :-2]",
        )
    )
    _, output = doctor(tmp_path, "larger", "--no-machine", "--input", "cartesian")
    assert "ok       field of view" in output, output


def test_a_module_at_the_size_of_a_scan(tmp_path):
    status, output = doctor(tmp_path, "simplefft", "--no-machine", "--matrix", 64, "--coils", 4, "--tr", 4)
    assert status == 0, output
    assert "readouts of 4 coils, TR 4 ms" in " ".join(output.split())


@pytest.mark.parametrize(
    ("part", "first", "behind", "level", "words"),
    [
        (0.3, 0.1, 0.0, Level.OK, "30 %"),
        (0.9, 0.1, 0.0, Level.WARNING, "little to spare"),
        (3.0, 1.1, 0.5, Level.WARNING, "when the scan is over"),
        (3.0, 0.1, 0.1, Level.WARNING, "it keeps up, 100 ms behind"),
        (3.0, 0.1, 2.0, Level.FAULT, "falls behind, at the scan's pace by 2.00 s"),
    ],
)
def test_whether_a_module_keeps_up(part, first, behind, level, words):
    scan = scans.sized("cartesian", 128, 1, 4e-3)
    duration = pace.duration_of(scan)
    fast = Answer(seconds=part * duration)
    at_pace = Answer(seconds=duration + behind, last_sent=duration, image_times=[first * duration, duration + behind])
    found = pace.finding(scan, fast, 1000, 10**9, at_pace)
    assert found.level is level, found
    assert words in found.text


def test_memory_that_a_longer_scan_would_not_have():
    scan = scans.sized("cartesian", 128, 1, 4e-3)
    found = pace.finding(scan, Answer(seconds=0.1), 600, 1000, None)
    assert found.level is Level.WARNING
    assert "may not fit into the memory" in found.text


# ---- containers ------------------------------------------------------------------------------------------------------


def saved(path, config, files=()):
    """Write an image as ``docker save`` does."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in files:
            archive.addfile(tarfile.TarInfo(name))
    parts = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps({"config": config}).encode(),
        "manifest.json": json.dumps([{"Config": "config.json", "Layers": ["layer.tar"]}]).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def image():
    """Configuration of an image that is in order."""
    label = openrecon.make_label("simplefft", None, openrecon.App("reconstruction"))
    return {
        "Labels": {LABEL: base64.b64encode(json.dumps(label).encode()).decode()},
        "Cmd": ["python3", "main.py", "-v", "-H", "0.0.0.0", "-p", str(label["reconstruction"]["port"])],
    }


def test_a_container_in_order(tmp_path, image):
    saved(tmp_path / "app.tar", image, ["usr/lib/libcudart.so.11.0", "usr/lib/cupy_cuda11x-13.6.0.dist-info/METADATA"])
    found = list(container.check(tmp_path / "app.tar"))
    assert [each.level for each in found] == [Level.OK] * 5, found


@pytest.mark.parametrize(
    ("change", "files", "subject"),
    [
        ({"Labels": {}}, [], "label"),
        ({"Labels": {LABEL: "e30="}}, [], "label"),
        ({"User": "mrd"}, [], "user"),
        ({}, ["lib/cupy_cuda12x-14.0.1.dist-info/METADATA"], "CUDA"),
        ({"Env": ["CUDA_VERSION=12.4.1"]}, [], "CUDA"),
        ({"Cmd": ["python3", "main.py", "-p", "9002"]}, [], "command"),
        ({"Cmd": ["python3", "main.py", "-H", "0.0.0.0", "-p", "1234"]}, [], "command"),
    ],
)
def test_faults_of_a_container(tmp_path, image, change, files, subject):
    saved(tmp_path / "app.tar", image | change, files)
    assert [each.subject for each in container.check(tmp_path / "app.tar") if each.level] == [subject]


def test_a_file_that_is_no_container(tmp_path):
    (tmp_path / "app.tar").write_text("nothing")
    assert [each.level for each in container.check(tmp_path / "app.tar")] == [Level.FAULT]
