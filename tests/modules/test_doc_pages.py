"""What pages say of the code: messages, keys and names that they quote are there."""

import ast
import re
import tomllib

import h5py
import numpy as np
import pytest

import mrdhelper
from conftest import make_acquisition, make_header
from mrdio.mrdfile import MrdWriter
from server_process import PROJECT

FOLDERS = ("", "mrdio", "recon", "solvers", "serving", "sending", "checks", "dicomio", "simulation")
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def page(name):
    return (PROJECT / "doc" / name).read_text("utf-8")


def table_cells(text, column):
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[column].strip("| ") for row in rows if len(row) > column]


@pytest.fixture(scope="module")
def literals():
    """Texts of the source, implicit concatenation joined; what is filled in is an ellipsis."""
    found = []
    for folder in FOLDERS:
        for path in (PROJECT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else ELLIPSIS for part in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%(?:\.\d+)?[sdgfr]", ELLIPSIS, node.value))
    return found


GIVEN = page("troubleshooting.md").split("## Installing")[0]  # what follows is of other programs
MESSAGES = [text for cell in table_cells(GIVEN, 0) for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_software(message, literals):
    pattern = ".*".join(map(re.escape, message.split(ELLIPSIS)))
    assert any(re.fullmatch(pattern, text, re.DOTALL) for text in literals)


def keys():
    names = set()
    for path in (PROJECT / "configs").glob("*.toml"):
        for name, value in tomllib.loads(path.read_text("utf-8")).items():
            names |= set(value) if isinstance(value, dict) else {name}
    return names


def test_keys_are_those_of_the_settings():
    cells = " ".join(table_cells(page("performance.md"), 0))
    named = set(re.findall(r"`([a-z_]+)(?: = [^`]*)?`", cells))
    assert len(named) > 10
    assert named <= keys()


def test_conventions_name_places_in_the_code():
    for place in re.findall(r"`((?:recon|GIRF)[/.][\w/.]+)`", page("conventions.md")):
        if place.endswith(".py"):
            assert (PROJECT / place).is_file(), place
            continue
        *module, name = place.split(".")
        source = PROJECT.joinpath(*module).with_suffix(".py").read_text("utf-8")
        assert re.search(rf"^(?:def |class )?{name}\b", source, re.MULTILINE), place


def test_images_are_read_without_the_project(tmp_path, monkeypatch, capsys):
    """What viewers.md says of the file holds, for Python and for the names that the MATLAB lines use."""
    head = make_acquisition(1).getHead()
    image = mrdhelper.build_image(np.zeros((6, 5), np.int16), head, make_header(), index=1)
    with MrdWriter(tmp_path / "phantom_img.h5") as file:
        file.write(image)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page("viewers.md"), re.DOTALL)
    exec(compile(code, "documentation", "exec"), names := {})
    assert capsys.readouterr().out.startswith("(1, 1, 1, 6, 5) int16 [")
    np.testing.assert_array_equal(names["positions"][0], head.position)
    (code,) = re.findall(r"```matlab\n(.*?)```", page("viewers.md"), re.DOTALL)
    with h5py.File("phantom_img.h5") as file:
        for name in re.findall(r"group '/(\S+)'", code):
            assert f"dataset/{name}" in file
        assert set(re.findall(r"head\.(\w+)", code)) <= set(file["dataset/image_0/header"].dtype.names)
