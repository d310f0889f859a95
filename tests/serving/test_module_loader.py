"""Names that came over the network: what runs, and above all what does not."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from conftest import PATIENCE, write_module
from serving.module_loader import ModuleError, ModuleLoader

PROCESS = "def process(connection, config, metadata):\n    return {result!r}\n"

# Leaves a file behind as soon as any of it runs.
MARK = "from pathlib import Path\nPath({marker!r}).touch()\n"


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "something_ran"


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "modules"
    path.mkdir()
    return path


def marking(marker: Path, source: str = PROCESS.format(result="ran")) -> str:
    return MARK.format(marker=str(marker)) + source


def run(loader: ModuleLoader, name: str) -> object:
    process = loader.load(name)
    assert process is not None
    return process(None, None, None)


# ---- what runs -----------------------------------------------------------------------------------------------------


def test_a_module_in_the_folder_runs(folder):
    path = write_module(folder, "simple", PROCESS.format(result=3))
    loader = ModuleLoader([folder])
    assert loader.find("simple") == path.resolve()
    assert run(loader, "simple") == 3


def test_the_first_folder_with_the_name_wins(folder, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    write_module(folder, "both", PROCESS.format(result="first"))
    write_module(second, "both", PROCESS.format(result="second"))
    write_module(second, "other", PROCESS.format(result="only here"))
    assert run(ModuleLoader([folder, second]), "both") == "first"
    assert run(ModuleLoader([second, folder]), "both") == "second"
    assert run(ModuleLoader([folder, second]), "other") == "only here"


@pytest.mark.parametrize(
    "source",
    [
        "process = lambda connection, config, metadata: 'ran'",
        "other = process = lambda connection, config, metadata: 'ran'",
        "from functools import partial\nprocess: object = partial(lambda word, *_: word, 'ran')",
        "from mine import process",
        "from mine import run as process",
        "if True:\n    def process(*_): return 'ran'",
        "if False:\n    pass\nelse:\n    def process(*_): return 'ran'",
        "if False:\n    pass\nelif True:\n    def process(*_): return 'ran'",
        "try:\n    from mine import process\nexcept ImportError:\n    raise",
        "try:\n    import no_such_library\nexcept ImportError:\n    def process(*_): return 'ran'",
        "try:\n    pass\nfinally:\n    def process(*_): return 'ran'",
        "import contextlib\nwith contextlib.suppress(OSError):\n    def process(*_): return 'ran'",
        "def process(*_): return 'first'\ndef process(*_): return 'ran'",
        "# -*- coding: latin-1 -*-\ndef process(*_): return 'ran'  # µ",
        "\ufeffdef process(*_): return 'ran'",
        "def process(*_): return 'ran'\n\x0c\n",
        "def process(*_):\r\n    return 'ran'\r\n",
    ],
)
def test_ways_of_defining_process(folder, source, monkeypatch):
    write_module(folder, "mine", "def process(*_): return 'ran'\nrun = process\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    path = folder / "ways.py"
    path.write_bytes(source.encode("latin-1" if "latin-1" in source else "utf-8"))
    try:
        assert run(ModuleLoader([folder]), "ways") == "ran"
    finally:
        sys.modules.pop("mine", None)


def test_module_knows_its_file_and_its_own_name(folder):
    path = write_module(folder, "self", "def process(*_): return __file__, __name__")
    file, name = run(ModuleLoader([folder]), "self")
    assert Path(file) == path.resolve()
    assert name not in ("self", "__main__")


def test_dataclasses_and_pickles_of_a_module_work(folder):
    source = """
        from __future__ import annotations
        import dataclasses, pickle
        @dataclasses.dataclass
        class Setting:
            value: int = 4
        def process(*_): return pickle.loads(pickle.dumps(Setting())).value
    """
    write_module(folder, "classes", "\n".join(line[8:] for line in source.splitlines()))
    assert run(ModuleLoader([folder]), "classes") == 4


def test_a_symlink_that_the_owner_of_the_folder_made_counts(folder, tmp_path):
    target = write_module(tmp_path, "elsewhere", PROCESS.format(result="linked"))
    (folder / "linked.py").symlink_to(target)
    assert run(ModuleLoader([folder]), "linked") == "linked"


# ---- what does not run ---------------------------------------------------------------------------------------------


NO_NAMES = [
    "", " ", ".", "..", "x.py", "../outside", "./inside", "sub/inside", "sub.inside", "a.b", "a\\b", "/etc/passwd",
    "inside\0", "inside\0.txt", "inside\n", " inside", "inside ", "é", "ｉnside", "1st", "a-b", "a b", "inside;x", "~",
    "%69nside", "file:inside", "x" * 129, "x" * 5000, "\ud800", "con:", "__init__", "inside()", "{inside}",
]  # fmt: skip


def test_names_that_are_none(folder, tmp_path, marker):
    """Nothing runs although there are files that a careless path would reach."""
    (folder / "sub").mkdir()
    for place in (folder, folder / "sub", tmp_path):
        for stem in ("inside", "outside", "é", "a-b", "a.b", "1st", "a b", "x.py", "x" * 129):
            write_module(place, stem, marking(marker))
    loader = ModuleLoader([folder])
    for name in NO_NAMES:
        assert loader.find(name) is None, name
        assert loader.load(name) is None, name
        assert not marker.exists(), name
    assert loader.find("inside") is not None


@pytest.mark.parametrize(
    "name",
    ["os", "sys", "json", "antigravity", "this", "numpy", "ismrmrd", "pytest", "client", "server", "main", "session",
     "module_loader", "connection", "import", "class", "None", "process", "builtins", "__main__", "conftest"],
)  # fmt: skip
def test_what_is_installed_is_no_module(folder, name):
    before = set(sys.modules)
    assert ModuleLoader([folder]).load(name) is None
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["client", "server", "main", "session", "codec", "recorder", "mrdfile", "conftest"])
def test_files_of_the_server_itself_are_no_modules(name):
    project = Path(__file__).parents[2]
    assert ModuleLoader([project, project / "tests"]).load(name) is None


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = 1",
        "# def process(connection, config, metadata): pass",
        "text = '''\ndef process(connection, config, metadata): pass\n'''",
        "def processes(connection, config, metadata): pass",
        "def outer():\n    def process(connection, config, metadata): pass",
        "class Inner:\n    def process(self, connection, config, metadata): pass",
        "from json import loads as process_",
        "x.process = 1",
    ],
)
def test_a_file_without_process_does_not_run(folder, marker, source):
    write_module(folder, "without", marking(marker, source))
    loader = ModuleLoader([folder])
    assert loader.find("without") is None
    assert loader.load("without") is None
    assert not marker.exists()


def test_finding_runs_nothing(folder, marker):
    write_module(folder, "found", marking(marker))
    loader = ModuleLoader([folder])
    assert loader.find("found") is not None
    assert not marker.exists()
    assert run(loader, "found") == "ran"
    assert marker.exists()


def test_folders_pipes_and_broken_links_are_no_modules(folder, marker):
    (folder / "package.py").mkdir()
    write_module(folder / "package.py", "__init__", marking(marker))
    (folder / "package").mkdir()
    write_module(folder / "package", "__init__", marking(marker))
    os.mkfifo(folder / "pipe.py")
    (folder / "nowhere.py").symlink_to(folder / "not_there.py")
    (folder / "circle.py").symlink_to(folder / "circle.py")
    loader = ModuleLoader([folder, folder / "no_such_folder"])
    for name in ("package", "pipe", "nowhere", "circle", "missing"):
        assert loader.load(name) is None
    assert not marker.exists()


def test_a_file_without_process_does_not_hide_a_module_in_a_later_folder(folder, tmp_path):
    (tmp_path / "second").mkdir()
    write_module(folder, "both", "HELPER = 1\n")
    path = write_module(tmp_path / "second", "both", PROCESS.format(result="second"))
    loader = ModuleLoader([folder, tmp_path / "second"])
    assert loader.find("both") == path.resolve()
    assert run(loader, "both") == "second"


# ---- edits ---------------------------------------------------------------------------------------------------------


def test_an_edit_is_used_next_time_even_within_the_same_second_and_length(folder):
    path = write_module(folder, "edited", PROCESS.format(result=1))
    loader = ModuleLoader([folder])
    before = loader.load("edited")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    length = path.stat().st_size
    write_module(folder, "edited", PROCESS.format(result=2))
    os.utime(path, ns=times)
    assert path.stat().st_size == length
    assert run(loader, "edited") == 2
    assert before(None, None, None) == 1  # a session that runs keeps what it has


def test_an_unchanged_file_is_not_run_again(folder, marker):
    write_module(folder, "same", marking(marker))
    loader = ModuleLoader([folder])
    loader.load("same")
    marker.unlink()
    loader.load("same")
    assert not marker.exists()


def test_a_removed_file_is_gone_and_a_new_one_found(folder):
    loader = ModuleLoader([folder])
    assert loader.load("coming") is None
    path = write_module(folder, "coming", PROCESS.format(result=1))
    assert run(loader, "coming") == 1
    path.unlink()
    assert loader.load("coming") is None


# ---- files that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def process(:\n", "is no valid Python"),
        (b"def process(*_):\nreturn\n", "is no valid Python"),
        (b"def process(*_): pass\n\0", "is no valid Python"),
        (b"def process(*_): '\xff'\n", "is no valid Python"),
        (b"# coding: no-such-coding\ndef process(*_): pass\n", "is no valid Python"),
        (b"def process(*_): pass\nreturn\n", "is no valid Python|raised SyntaxError"),
        (b"def process(*_): pass\nraise RuntimeError('no scanner')\n", "raised RuntimeError when .* no scanner"),
        (b"import no_such_library\ndef process(*_): pass\n", "raised ModuleNotFoundError .*no_such_library"),
        (b"def process(*_): pass\nraise SystemExit(3)\n", "raised SystemExit when it was loaded: 3"),
        (b"def process(*_): pass\nraise KeyboardInterrupt\n", "raised KeyboardInterrupt"),
        (b"process = 3\n", "process is no function"),
        (b"def process(*_): pass\ndel process\n", "process is no function"),
    ],
)
def test_errors_name_the_file(folder, source, reason):
    path = folder / "failing.py"
    path.write_bytes(source)
    loader = ModuleLoader([folder])
    before = set(sys.modules)
    with pytest.raises(ModuleError, match=reason) as caught:
        loader.load("failing")
    assert str(path) in str(caught.value)
    if "no function" not in reason:
        assert set(sys.modules) == before


def test_a_file_that_was_repaired_loads(folder):
    write_module(folder, "repaired", "def process(*_) pass")
    loader = ModuleLoader([folder])
    with pytest.raises(ModuleError):
        loader.load("repaired")
    write_module(folder, "repaired", PROCESS.format(result="works"))
    assert run(loader, "repaired") == "works"
    write_module(folder, "repaired", PROCESS.format(result="works") + "raise ValueError")
    with pytest.raises(ModuleError):
        loader.load("repaired")
    write_module(folder, "repaired", PROCESS.format(result="again"))
    assert run(loader, "repaired") == "again"


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(folder, monkeypatch):
    path = write_module(folder, "secret", PROCESS.format(result=1)).resolve()
    read_bytes = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # as root, permissions would not keep the test out
    with pytest.raises((ModuleError, PermissionError), match=str(path)):
        ModuleLoader([folder]).load("secret")


# ---- neighbours ----------------------------------------------------------------------------------------------------


def test_a_module_named_like_a_library_does_not_shadow_it(folder):
    write_module(folder, "json", "import json\ndef process(*_): return json.loads('[1]'), __name__")
    result, name = run(ModuleLoader([folder]), "json")
    assert result == [1]
    assert name != "json"
    assert sys.modules["json"] is json
    assert "process" not in vars(json)


def test_the_server_keeps_its_own_files_and_libraries_when_modules_have_their_names(tmp_path):
    """With the search path as main.py sets it: neighbours can be imported, but nothing is shadowed."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("json", "recon", "numpy", "colorsys"):
        write_module(folder, name, "def process(*_): return 'own'\nOWN = True\n")
    write_module(folder, "neighbour", "VALUE = 5\n")
    write_module(
        folder, "user",
        "import colorsys, json, neighbour, numpy, recon\n"
        "def process(*_): return [hasattr(each, 'OWN') for each in (json, numpy, recon, colorsys)], neighbour.VALUE\n",
    )  # fmt: skip
    script = (
        "import sys; from pathlib import Path; from serving.module_loader import ModuleLoader;"
        "folder = Path(sys.argv[1]);"
        "sys.path.append(str(folder)); load = ModuleLoader([folder]).load;"
        "print(load('json')(1, 2, 3), load('numpy')(1, 2, 3), load('user')(1, 2, 3))"
    )
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=project, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "own own ([False, False, False, False], 5)"


def test_loading_from_several_threads_at_once_runs_the_file_once(folder, in_thread, monkeypatch):
    watch = types.SimpleNamespace(runs=[], may_end=threading.Event())
    monkeypatch.setitem(sys.modules, "watch_of_this_test", watch)
    source = "from watch_of_this_test import runs, may_end\nruns.append(1)\nmay_end.wait(10)\n"
    write_module(folder, "slow", source + PROCESS.format(result="ran"))
    loader = ModuleLoader([folder])
    barrier = threading.Barrier(9)

    def load() -> object:
        barrier.wait(PATIENCE)
        return loader.load("slow")

    loading = [in_thread(load) for _ in range(8)]
    barrier.wait(PATIENCE)
    watch.may_end.set()
    assert len({running.result() for running in loading}) == 1
    assert watch.runs == [1]


def test_looking_for_modules_in_several_threads_at_once(folder, in_thread):
    """Python 3.11 loses count when another thread parses while it does, for which a garbage collection is enough."""
    source = "def other(a):\n    return [[a + 1, (2, 3)], {a: 4}]\n"
    write_module(folder, "fine", PROCESS.format(result="ran") + 40 * source)
    loader = ModuleLoader([folder])
    threshold = gc.get_threshold()

    def let_others_run(phase: str, info: dict) -> None:
        time.sleep(1e-5)

    gc.callbacks.append(let_others_run)
    gc.set_threshold(20)
    try:
        looking = [in_thread(lambda: [loader.find("fine") for _ in range(3)]) for _ in range(8)]
        found = [running.result() for running in looking]
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(let_others_run)
    assert found == [[folder / "fine.py"] * 3] * 8
