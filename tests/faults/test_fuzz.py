"""Every input of the corpus, and a short run of the fuzzer itself."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from reliability import fuzz, fuzztargets

INPUTS = sorted(path for path in fuzz.CORPUS.glob("*/*"))


@pytest.fixture(autouse=True)
def every_log_line_is_formatted():
    root, handler = logging.getLogger(), fuzztargets.StrictHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)
    root.removeHandler(handler)


def test_every_target_has_inputs_and_every_folder_is_a_target():
    assert {path.parent.name for path in INPUTS} == set(fuzztargets.TARGETS) == set(fuzztargets.WORDS)
    assert sum(path.stat().st_size for path in INPUTS) < 1 << 20


@pytest.mark.parametrize("target", fuzztargets.TARGETS)
def test_the_corpus_holds_what_was_found_before(target):
    for path in INPUTS:
        if path.parent.name == target:
            try:
                fuzztargets.TARGETS[target](path.read_bytes())
            except Exception as error:
                error.add_note(f"input: {path}")
                raise


@pytest.mark.parametrize("target", fuzztargets.TARGETS)
def test_no_input_is_too_short(target):
    for data in (b"", b"\0", b"\xff", b"\n"):
        fuzztargets.TARGETS[target](data)


def test_a_short_run_finds_nothing(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda target: fuzz.run_target(target, 1, tmp_path, seed=1), fuzztargets.TARGETS))
    for outcome in outcomes:
        assert outcome.finding is None, outcome.said
        assert outcome.inputs > len(list((fuzz.CORPUS / outcome.target).iterdir())), outcome.said
        assert outcome.covered >= outcome.covered_before > 10, outcome.said


def test_a_fault_is_found_and_its_input_kept(tmp_path):
    """A copy of the project whose texts may raise."""
    copy = tmp_path / "project"
    (copy / "tests" / "fuzz_corpus").mkdir(parents=True)
    rooms = ("", "reliability/", "simulation/", "mrdio/", "recon/", "solvers/", "serving/")
    for path in (path for room in rooms for path in fuzz.PROJECT.glob(f"{room}*.py")):
        target = copy / path.relative_to(fuzz.PROJECT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text("utf-8"), "utf-8")
    (copy / "tests" / "fuzz_corpus" / "header").mkdir()
    (copy / "tests" / "fuzz_corpus" / "header" / "one").write_bytes(b"1")
    codec = copy / "mrdio" / "codec.py"
    source = codec.read_text("utf-8")
    codec.write_text(source.replace("except UnicodeDecodeError", "except UnicodeEncodeError"), "utf-8")
    done = subprocess.run(
        [sys.executable, str(copy / "reliability" / "fuzz.py"), "--seconds", "20", "--work", str(tmp_path / "work")],
        text=True, capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (finding,) = (tmp_path / "work" / "findings").iterdir()
    with pytest.raises(UnicodeDecodeError):
        finding.read_bytes().decode()
    assert f"header: {finding}" in done.stdout
    assert "UnicodeDecodeError" in done.stdout


def test_a_missing_fuzzer_is_named(monkeypatch, capsys):
    monkeypatch.setattr(fuzz.importlib.util, "find_spec", lambda name: None)
    assert fuzz.main(["--seconds", "1"]) == 2
    assert "needs the package atheris" in capsys.readouterr().err
