"""doc/helpers.md: its names exist with their parameters, no helper is left out, and its modules run in a server."""

import ast
import importlib
import inspect
import json
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from connection import Connection
from mrdio.mrdfile import MrdReader
from mrdio.testing import Recording
from server_process import PROJECT, ServerProcess

PAGE = (PROJECT / "doc" / "helpers.md").read_text("utf-8")
ROWS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
ENTRIES = [entry for row in ROWS for entry in re.findall(r"`([^`]+)`", row)]
MODULES = {
    re.search(r"^`(\w+)\.py`", text, re.MULTILINE)[1]: re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    for text in re.split(r"^### ", PAGE.split("## Three modules")[1].split("## Names")[0], flags=re.MULTILINE)[1:]
}


def name_of(entry):
    return entry.partition("(")[0]


@pytest.fixture(scope="module")
def connection():
    one, other = socket.socketpair()
    with one, other:
        yield Connection(one)


def value_of(name, connection):
    """Object of a dotted name: of the connection, or of the longest part of it that is a module."""
    if name.startswith("connection."):
        return getattr(connection, name.partition(".")[2])
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_name_exists_with_its_parameters(entry, connection):
    value = value_of(name_of(entry), connection)
    if "(" not in entry:
        return
    names = list(inspect.signature(value).parameters)
    names = names[1:] if names[0:1] == ["self"] else names
    defaults = {each.name: each.default for each in inspect.signature(value).parameters.values()}
    shown = [part.partition("=") for part in re.split(r", (?![^(]*\))", entry.partition("(")[2][:-1]) if part != "*"]
    for name, equals, default in (each for each in shown if each[0]):
        assert name in names
        if equals:
            assert defaults[name] == ast.literal_eval(default), f"default of {name}"
    order = [names.index(name) for name, *_ in shown if name]
    assert order == sorted(order)


def test_no_helper_is_left_out():
    public = set()
    for node in ast.parse((PROJECT / "mrdhelper.py").read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            public.add(node.name)
        elif isinstance(node, ast.Assign):
            public.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom):  # what other modules use as mrdhelper's is named again
            public.update(alias.name for alias in node.names if alias.asname)
    public = {f"mrdhelper.{name}" for name in public if not name.startswith("_")} - {"mrdhelper.logger"}
    assert public <= set(map(name_of, ENTRIES))


def test_a_recording_has_what_a_connection_has():
    for entry in ENTRIES:
        name = name_of(entry).partition("connection.")[2]
        if "(" in entry and hasattr(Connection, name):
            theirs = inspect.signature(getattr(Connection, name))
            assert [*inspect.signature(getattr(Recording(), name)).parameters] == [*theirs.parameters][1:], name


def test_a_recording_keeps_what_is_sent():
    recording = Recording(["one", "two"], dependencies={"Noise": "stored"})
    recording.warn("careful")
    recording.send_text("plain")
    recording.debug("numbers", [1, 2])
    recording.send_image([None])
    assert recording == ["one", "two"]
    assert recording.said == [("WARNING", "careful"), ("", "plain")]
    assert recording.arrays == [("numbers", [1, 2])]
    assert recording.sent == []
    assert (recording.dependency("Noise"), recording.dependency("SenMap")) == ("stored", None)


# ---- the three modules, through a server ---------------------------------------------------------------------------


class Desk:
    """Folder with the page's modules, a server in it, and the client that sends data to it."""

    def __init__(self, folder):
        self.folder = folder
        for name, source in MODULES.items():
            (folder / f"{name}.py").write_text(source, "utf-8")
        self.run("generate_cartesian_shepp_logan_dataset.py", "-m", "64", "-C", "-o", "phantom_raw.h5")
        spiral = "-m 48 -a 288 -c 4 --still --slices 2 --seq-meta seq_meta -o spiral_raw.h5"
        self.run("generate_spiral_dataset.py", *spiral.split())
        self.server = ServerProcess("-v", "--debug-folder", "debug", cwd=folder)

    def run(self, program, *arguments):
        command = [sys.executable, PROJECT / program, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def send(self, module, file):
        """Images [image, row, column] that come back, and what the client says."""
        output = self.folder / f"{module}.h5"
        said = self.run("client.py", "-p", str(self.server.port), "-c", module, "-G", "dataset", "-o", output, file)
        with MrdReader(output) as reader:
            return np.array([image.data[0, 0].astype(float) for image in reader.images()]), said


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = Desk(tmp_path_factory.mktemp("desk"))
    yield desk
    assert desk.server.stop() == 0, desk.server.log()


def likeness(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


def test_filter_of_images(desk):
    plain, _ = desk.send("simplefft", "phantom_raw.h5")
    (settings,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (desk.folder / "smooth.json").write_text(settings, "utf-8")
    smooth, _ = desk.send("smooth", "simplefft.h5")
    assert np.abs(np.diff(smooth)).max() < 0.5 * np.abs(np.diff(plain)).max()
    assert abs(smooth.mean() / plain.mean() - 1) < 0.01

    (desk.folder / "smooth.json").write_text(json.dumps({"parameters": {"sigmo": 4}}), "utf-8")
    desk.send("smooth", "simplefft.h5")
    desk.server.wait_for("sigmo: unknown key; did you mean sigma?")


def test_cartesian_with_whitening(desk):
    plain, _ = desk.send("simplefft", "phantom_raw.h5")
    (image,), said = desk.send("whitened", "phantom_raw.h5")
    assert "whitened" in said
    assert likeness(image, plain[0]) > 0.98
    (array,) = (desk.folder / "debug").glob("*/0001_coil_images.npy")
    assert np.load(array).shape == (8, 64, 64, 1)


def test_mean_of_a_spiral_scan(desk):
    images, said = desk.send("spiralmean", "spiral_raw.h5")
    expected, _ = desk.send("simplenufft", "spiral_raw.h5")
    expected = expected.reshape(-1, 2, 48, 48).mean(0)  # of repetitions
    assert images.shape == (2, 48, 48)
    assert "trajectory: metafile" in said
    assert min(likeness(*pair) for pair in zip(images, expected, strict=True)) > 0.999


def test_snippets_of_the_page(desk, monkeypatch, capsys):
    desk.send("whitened", "phantom_raw.h5")
    monkeypatch.chdir(desk.folder)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.split("## Intermediate images")[1], re.DOTALL)
    for code in snippets:
        exec(compile(code, "documentation", "exec"), names := {})
    assert capsys.readouterr().out.startswith("(8, 64, 64, 1) complex64 ")
    assert len(names["connection"]) == 65
    assert names["header"].encoding[0].encodedSpace.matrixSize.y == 64


# ---- the editor ----------------------------------------------------------------------------------------------------


def test_editor_starts_programs_that_take_these_options():
    configurations = json.loads((PROJECT / ".vscode" / "launch.json").read_text("utf-8"))["configurations"]
    for each in configurations:
        assert f'"{each["name"]}"' in PAGE
        if "program" in each:
            program = each["program"].replace("${workspaceFolder}", str(PROJECT))
            known = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)
            assert all(option in known.stdout for option in each["args"] if option.startswith("-"))
