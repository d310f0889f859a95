"""The layout: few files at the root, and imports that point one way, as read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FLOORS = (  # each imports from those before it and from its own
    {"constants", "recon.arrays", "serving.processes"},
    {"mrdio"},
    {"connection", "mrdhelper", "coils", "GIRF", "bart_tools"},
    {"sending"},
    {"recon"},
    {"solvers"},
    {"serving"},
    {"server"},
    {"main", "simulation"},
    {"checks"},
    {"doctor"},
)
NOT_FOR_MODULES = {"serving", "server", "main", "checks", "doctor"}
ROOMS = {"mrdio", "recon", "solvers", "serving", "dicomio", "sending", "simulation", "serving/view", "checks"}
MOST_AT_ROOT = 26


def floor(name):
    """Number of the floor of a module, of the first of its own name and its package's that has one."""
    for candidate in (name, name.partition(".")[0]):
        for number, floor in enumerate(FLOORS):
            if candidate in floor:
                return number
    return None


def ours(folders):
    return [path for folder in folders for path in sorted((PROJECT / folder).glob("*.py"))]


def imported(path):
    """Names of modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            parent = PROJECT / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (parent / f"{alias.name}.py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def name_of(path):
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


@pytest.mark.parametrize("path", ours(["", *sorted(ROOMS)]), ids=name_of)
def test_imports_point_one_way(path):
    own = floor(name_of(path))
    at_root = {each.stem for each in ours([""])}
    for name in imported(path):
        theirs = floor(name)
        if own is not None:
            assert theirs is None or theirs <= own, f"{path.name} stands below {name}"
            assert theirs is not None or name not in at_root, f"{path.name} imports {name}, a module or a command"
        elif path.parent.name != "simulation" and path.stem not in NOT_FOR_MODULES:
            assert name.partition(".")[0] not in NOT_FOR_MODULES, f"{path.name} imports {name}, the server's own"


def test_few_files_stand_at_the_root():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert len([name for name in listed.split() if "/" not in name]) <= MOST_AT_ROOT


def test_every_room_says_what_it_is_for():
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((PROJECT / room / "__init__.py").read_text("utf-8"))), room


@pytest.mark.parametrize("path", sorted((PROJECT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_benchmarks_find_what_they_import(path):
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
