"""Every input of the corpus, and a short run of the fuzzer itself."""

import logging
import os
import subprocess
import sys

import fuzz_targets
import pytest
from fuzz_targets import TARGETS

from tools import fuzz

INPUTS = sorted(path for path in fuzz.CORPUS.glob("*/*"))
SHORT = (b"", b"\0", b"\xff", b"\n")


@pytest.fixture(autouse=True)
def every_log_line_is_formatted():
    root, handler = logging.getLogger(), fuzz_targets.StrictHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)
    root.removeHandler(handler)


def test_every_target_has_inputs_and_every_folder_is_a_target():
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 1 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_promise(target):
    """Those of the corpus, among which is what was found before, and the shortest."""
    for name, data in [
        *((path, path.read_bytes()) for path in INPUTS if path.parent.name == target),
        *enumerate(SHORT),
    ]:
        try:
            TARGETS[target][0](data)
        except Exception as error:
            error.add_note(f"input: {name}")
            raise


def test_a_short_run_finds_nothing(tmp_path):
    """Of the target that reaches most, since nearly all of it is the start of the fuzzer, the same for all targets."""
    target = "session"
    said, findings = fuzz.run_target(target, 1, tmp_path, seed=1)
    assert not findings, said
    assert fuzz.figure("number_of_executed_units", said) > len(list((fuzz.CORPUS / target).iterdir())), said
    assert fuzz.figure("cov", said) > 10, said


def test_a_fault_is_found_and_its_input_kept(tmp_path):
    """A copy of the project whose texts may raise."""
    copy = tmp_path / "project"
    rooms = ("", "tools", "tests", "tests/faults", "simulation", "mrdio", "recon", "solvers", "serving")
    for path in (path for room in rooms for path in (fuzz.PROJECT / room).glob("*.py")):
        target = copy / path.relative_to(fuzz.PROJECT)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_text(path.read_text("utf-8"), "utf-8")
    (copy / "tests" / "fuzz_corpus" / "header").mkdir(parents=True)
    (copy / "tests" / "fuzz_corpus" / "header" / "one").write_bytes(b"1")
    codec = copy / "mrdio" / "codec.py"
    source = codec.read_text("utf-8")
    codec.write_text(source.replace("except UnicodeDecodeError", "except UnicodeEncodeError"), "utf-8")
    done = subprocess.run(
        [sys.executable, str(copy / "tools" / "fuzz.py"), "--minutes", "0.3", "--work", str(tmp_path / "work")],
        text=True, capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (finding,) = (tmp_path / "work" / "findings").iterdir()
    with pytest.raises(UnicodeDecodeError):
        finding.read_bytes().decode()
    assert str(finding) in done.stdout
    assert "UnicodeDecodeError" in done.stderr


def test_a_missing_fuzzer_is_named(monkeypatch, capsys):
    monkeypatch.setattr(fuzz.importlib.util, "find_spec", lambda name: None)
    assert fuzz.main([]) == 2
    assert "needs the package atheris" in capsys.readouterr().err
