"""The README's recipes, run as they are written there."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

from conftest import PATIENCE
from mrdio.mrdfile import MrdReader
from server_process import PROJECT, ServerProcess

README = (PROJECT / "README.md").read_text("utf-8")


def document(name):
    return (PROJECT / "doc" / name).read_text("utf-8")


def section(title, text=README):
    """Text of a section, up to the next heading."""
    return re.split(r"^#{2,3} ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(title, language="", text=README):
    """Code blocks of a section, dedented as they are indented in a list."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", section(title, text), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) if language == "" else code for name, code in found if name == language]


def commands(title, text=README):
    return [line for block in blocks(title, text=text) for line in block.splitlines() if line]


def commands_with(word, title):
    """Commands of the blocks of a section that hold a word."""
    return [line for block in blocks(title) if word in block for line in block.splitlines()]


class Walk:
    """Runs commands of the README in a folder; the server is started by its own command, on another port."""

    def __init__(self, folder):
        self.folder, self.servers = folder, []

    def __call__(self, lines):
        for line in lines:
            program, *arguments = shlex.split(line)
            assert program == "python", line
            if arguments[0] == "main.py":
                self.servers.append(ServerProcess(*arguments[1:], cwd=self.folder))
                continue
            if arguments[0] == "client.py":
                arguments[1:1] = ["-p", str(self.servers[-1].port)]
            script = [sys.executable, PROJECT / arguments[0], *arguments[1:]]
            done = subprocess.run(script, cwd=self.folder, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr

    def end(self):
        for each in self.servers:
            assert each.stop() == 0, each.log()


@pytest.fixture
def walk(tmp_path):
    walk = Walk(tmp_path)
    yield walk
    walk.end()


PHANTOM = "1. Reconstruct a phantom"
OWN_DATA = "3. Reconstruct data that you have"
SCANNER = "4. Take it to the scanner"
MOVIE = "5. Watch a spiral movie while it is acquired"
FILTERS = document("filters.md")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A walk that goes on behind the first two steps with the phantom: the data are there, and the server runs."""
    walk = Walk(tmp_path_factory.mktemp("phantom"))
    walk(commands(PHANTOM)[:2])
    yield walk
    walk.end()


def images(path):
    with MrdReader(path) as file:
        return [image.data[0, 0].astype(float) for image in file.images()]


def test_phantom_step_by_step(phantom):
    phantom(commands(PHANTOM)[2:])
    assert (phantom.folder / "phantom_img_dataset_image_0.gif").is_file()
    code = textwrap.dedent(blocks(PHANTOM, "python")[0])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=phantom.folder, env={"PYTHONPATH": str(PROJECT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout == "1 (1, 1, 256, 256) PYTHON\n", done.stderr


def copy_of_invertcontrast(path, old, new):
    source = (PROJECT / "invertcontrast.py").read_text("utf-8")
    assert len(re.findall(old, source, re.DOTALL)) == 1, "the README speaks of lines that are not in the module"
    path.write_text(re.sub(old, lambda _: new, source, flags=re.DOTALL), "utf-8")


def test_dicom_images(walk, tmp_path):
    source = Path(pydicom.data.get_testdata_file("MR_small.dcm", download=False))
    (tmp_path / "dicoms" / "series").mkdir(parents=True)
    shutil.copy(source, tmp_path / "dicoms" / "series" / "slice")
    walk(["python main.py -v", *commands_with("dicom", OWN_DATA)])
    (written,) = (tmp_path / "dicom_img_inverted").rglob("*.dcm")
    before, after = (pydicom.dcmread(path) for path in (source, written))
    assert after.PatientID == before.PatientID
    assert np.corrcoef(before.pixel_array.ravel(), after.pixel_array.ravel())[0, 1] < -0.999


def test_spiral_scans(walk, tmp_path):
    """The page on spirals shows the same commands, and the start of the server with them."""
    (block,) = re.findall(r"^```\n(python generate.*?)```$", document("spiral.md"), re.MULTILINE | re.DOTALL)
    make, start, *rest = block.splitlines()
    assert [make, *rest] == commands(MOVIE)
    (tmp_path / "seq_meta").mkdir()
    walk([make, start, *rest])
    with Image.open(tmp_path / next(tmp_path.glob("spiral_img*.gif"))) as movie:
        assert movie.n_frames > 50
    walk(commands_with("radial", OWN_DATA))
    first, second = images(tmp_path / "radial_img.h5")
    assert first.shape == (128, 128)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999


def test_keeping_what_comes_in(walk, tmp_path):
    start, *_ = commands(SCANNER)
    walk([*commands(PHANTOM)[:1], start])
    walk(["python client.py -c null phantom_raw.h5"])
    deadline = time.monotonic() + PATIENCE
    while not (saved := list((tmp_path / "saved_data").glob("*.h5"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    walk(["python recorder.py saved_data", f"python client.py -c null {saved[0]}"])


def documented(name, pattern):
    """Commands of a document that match, as they stand there."""
    found = re.findall(rf"^({pattern}.*)$", document(name), re.MULTILINE)
    assert found
    return found


def test_commands_about_containers_that_need_no_docker(walk, tmp_path):
    shutil.copytree(PROJECT / "custom", tmp_path / "custom")
    walk([*commands(PHANTOM)[:1], *documented("containers.md", "python main.py")])
    walk([*documented("containers.md", "python client.py"), "python client.py -c filter -o filtered.h5 phantom_raw.h5"])
    (plain,), (filtered,) = images(tmp_path / "phantom_img.h5"), images(tmp_path / "filtered.h5")
    assert filtered.shape == plain.shape
    assert not np.array_equal(filtered, plain)


def test_example_from_python(tmp_path):
    (tmp_path / "seq_meta").mkdir()
    done = subprocess.run(
        [sys.executable, PROJECT / "doc" / "example.py", tmp_path], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "example.png") as picture:
        assert picture.size == (640, 480)


def test_filter_in_kspace(phantom):
    (code,) = blocks("A filter in k-space", "python", FILTERS)
    anchor = "".join(code.splitlines(keepends=True)[:2])
    copy_of_invertcontrast(phantom.folder / "filterkspace.py", re.escape(anchor), code)
    phantom(commands("A filter in k-space", FILTERS))
    phantom(["python client.py -c invertcontrast -o phantom_plain.h5 phantom_raw.h5"])
    (filtered,), (plain,) = images(phantom.folder / "phantom_filtered.h5"), images(phantom.folder / "phantom_plain.h5")
    spectra = [np.abs(np.fft.fftshift(np.fft.fft2(image))) for image in (filtered, plain)]
    outer = [spectrum[:32].sum() / spectrum.sum() for spectrum in spectra]
    assert outer[0] < 0.3 * outer[1]


def test_filter_on_images(phantom):
    (code,) = blocks("A filter on images", "python", FILTERS)
    old = r"    # Normalize and convert to int16\n.*?data = maxVal - data\n    data = data.astype\(np.int16\)\n"
    copy_of_invertcontrast(phantom.folder / "filterimage.py", old, code)
    phantom(commands("A filter on images", FILTERS))
    phantom(["python client.py -c simplefft -o phantom_fft.h5 phantom_raw.h5"])
    (edges,), (plain,) = images(phantom.folder / "phantom_edges.h5"), images(phantom.folder / "phantom_fft.h5")
    gradient = np.hypot(*np.gradient(plain))
    assert edges[gradient > 400].mean() > 10 * edges[gradient < 100].mean()


@pytest.mark.parametrize(("title", "program"), [("The server's options", "main"), ("The client's options", "client")])
def test_option_tables_name_every_option(title, program):
    options = r"(?<![\w-])(--[A-Za-z][A-Za-z0-9-]*)"
    shown = subprocess.run([sys.executable, PROJECT / f"{program}.py", "--help"], capture_output=True, text=True)
    known = set(re.findall(options, shown.stdout)) - {"--help"}
    assert set(re.findall(options, section(title, document("options.md")))) == known


def test_readme_fits_into_200_lines():
    assert len(README.splitlines()) <= 200
