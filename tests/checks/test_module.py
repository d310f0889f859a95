"""Faults planted in copies of modules are found; in the project's own modules there are none."""

import logging
import sys

import pytest
from planted_faults import FAULTS, PROJECT, write

from checks import module
from checks.finding import Level, worst
from checks.scanner import Scanner

SHORT = 2.0  # patience with a module that never ends [s]
SHIPPED = ["simplefft", "invertcontrast", "cartesian_recon", "analyzeflow", "report", "filter", "simplenufft",
           "simplenufft1arm", "rtspiral_live_tvrecon", "rtspiral_bart_tvrecon", "spiral_xdgrasp_recon"]  # fmt: skip
QUICK = {  # settings that take less time than the shipped ones
    "rtspiral_bart_tvrecon": "[reconstruction]\nnum_iter = 3\nnum_chunks = 1\n",
    "rtspiral_live_tvrecon": "[reconstruction]\nnum_iter = 1\ncalibration_arms = 35\n",
    "spiral_xdgrasp": "[reconstruction]\nnum_iter = 3\n[binning]\nn_respiratory_bins = 4\nn_cardiac_bins = 6\n",
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def scanner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    for name in FAULTS:
        write(folder, name)
    with Scanner([PROJECT, PROJECT / "custom", folder], patience=20.0) as running:
        yield running


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(scanner, monkeypatch, name):
    subject, words = FAULTS[name][2:]
    if name == "never_ends":
        monkeypatch.setattr(scanner, "patience", SHORT)
    try:
        findings = list(module.examine(scanner, f"faulty_{name}", paced=False))
    finally:
        sys.modules[f"mrd_module_faulty_{name}"].released.set()
    found = [each for each in findings if each.level]
    assert [each for each in found if each.subject == subject and words in each.text], found
    assert len(found) <= 3, found  # a fault is told once, not with all that follows from it


@pytest.mark.parametrize("name", SHIPPED)
def test_the_projects_modules_are_in_order(scanner, monkeypatch, tmp_path, name):
    (tmp_path / "configs").mkdir()
    for config, text in QUICK.items():
        (tmp_path / "configs" / f"{config}_config.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    findings = list(module.examine(scanner, name))
    assert worst(findings) is Level.OK, [each for each in findings if each.level]
    assert {"input", "bad data", "state"} <= {each.subject for each in findings}
