"""Field maps of two echoes: values, unwrapping, both kinds of scans through the server, what cannot be used."""

import subprocess
import sys

import ismrmrd.xsd
import numpy as np
import pytest

from mrdio.dependencies import Dependency
from mrdio.mrdfile import MrdReader
from recon import twoechoes
from recon.configuration import FieldSettings
from recon.fieldmap import FieldMapError
from recon.fieldsources import open_correction
from recon.twoechoes import field_of, unwrapped
from server_process import PROJECT
from simulation import twoechoes as scans
from simulation.fields import OffResonance
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, simulate
from spiral_sessions import Client, error

BETWEEN = 2e-3  # [s]


def echoes(hertz, coils=3):
    """Two echoes of a disc [coil, row, column], with phases of the coils."""
    rows, columns = (np.indices(hertz.shape) - np.reshape([n // 2 for n in hertz.shape], (2, 1, 1))) / 40
    disc = (np.hypot(rows, columns) < 0.4).astype(complex)
    first = np.stack([disc * np.exp(1j * (n + rows - n * columns)) for n in range(coils)])
    return first, first * np.exp(-2j * np.pi * hertz * BETWEEN), disc.real > 0


def test_field_has_sign_and_size_of_the_convention():
    rows, columns = np.indices((40, 50))
    hertz = 30.0 + 2.0 * (columns - 25) - 3.0 * (rows - 20)
    first, second, inside = echoes(hertz)
    found = field_of(first, second, BETWEEN)
    np.testing.assert_allclose(found[inside], hertz[inside], atol=12)  # at the edge smoothing mixes the neighbours
    assert np.median(np.abs(found[inside] - hertz[inside])) < 0.1
    assert np.isnan(found[0, 0])


def test_fields_beyond_a_turn_are_unwrapped():
    """Growth by 800 Hz over the disc; echoes 2 ms apart wrap at 250 Hz."""
    hertz = 25.0 * (np.indices((40, 50))[1] - 25)
    first, second, inside = echoes(hertz)
    found = field_of(first, second, BETWEEN)
    away = (found - hertz)[inside]
    assert np.ptp(np.round(away * BETWEEN)) == 0  # of one turn as a whole nothing is known
    assert np.abs(away).max() < 80


def test_unwrapping_goes_through_the_bright_pixels():
    """A line of noise between two regions does not turn the far one, as there is a way around it."""
    phase = np.tile(np.linspace(0, 12, 30), (9, 1))
    quality = np.ones(phase.shape)
    wrapped = np.angle(np.exp(1j * phase))
    wrapped[:7, 15], quality[:7, 15] = np.random.default_rng(1).uniform(-3, 3, 7), 0.1
    got = unwrapped(wrapped, quality)
    good = quality == 1
    np.testing.assert_allclose(np.ptp((got - phase)[good]), 0, atol=1e-9)


@pytest.fixture(scope="module")
def simulation():
    design = SpiralDesign(resolution=0.256 / 48, interleaves=6, arms=18, ordering="linear")
    fields = OffResonance(40, 150, -80)
    return simulate(design_spiral(design), Scan(readouts=18, coils=3, noise=0.001, slices=1, still=True,
                                                waveforms=False, off_resonance=fields, carried="1/m"))  # fmt: skip


def measurement_of(scan):
    header = ismrmrd.xsd.CreateFromDocument(ismrmrd.xsd.ToXML(scan.header))
    return Dependency("fields", header, list(scan.acquisitions()))


@pytest.mark.parametrize("kind", scans.KINDS)
def test_scan_of_two_echoes_gives_the_true_map(simulation, kind):
    texts = []
    made = twoechoes.measured(measurement_of(scans.scan_of(simulation, kind)), [], texts.append, texts.append)
    head = next(iter(simulation.acquisitions())).getHead()
    got = made.on_grid(head, (48, 48), (256.0, 256.0))
    inside = simulation.truth.frame([0], 48) > 0.3
    wrong = (got - simulation.truth.field_map(48))[inside]
    assert np.sqrt((wrong**2).mean()) < 4
    assert "echoes 2 ms apart" in texts[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m.header, "sequenceParameters", None), "expected two echo times"),
        (lambda m: setattr(m.header.sequenceParameters, "TE", [4.0, 2.0]), "expected two echo times that rise"),
        (lambda m: [setattr(each.idx, "contrast", 0) for each in m.readouts], "has one echo"),
        (lambda m: m.readouts.clear(), "has one echo"),
        (lambda m: setattr(m.header, "encoding", []), "has no encoding"),
        (lambda m: setattr(m.header.encoding[0].encodedSpace.matrixSize, "y", 0), "cannot be reconstructed"),
    ],
)
def test_scans_that_are_no_two_echoes_are_told_and_not_corrected(simulation, change, words):
    measurement = measurement_of(scans.scan_of(simulation, "cartesian"))
    change(measurement)
    with pytest.raises(FieldMapError, match=words):
        twoechoes.measured(measurement, [], print, print)
    client = Client([])
    client.dependency = lambda kind: measurement if kind == "FieldMap" else None
    fields = open_correction(FieldSettings(field_map="dependency", concomitant="off"), None, client)
    assert not fields.active
    assert any("off-resonance is not corrected" in text for text in client.texts)


def test_missing_scan_is_told_and_not_corrected():
    client = Client([])
    assert not open_correction(FieldSettings(field_map="dependency", concomitant="off"), None, client).active
    (text,) = client.texts
    assert "no scan of two echoes was found" in text
    assert "savedep" in text


@pytest.mark.parametrize("kind", scans.KINDS)
def test_from_the_scan_of_two_echoes_to_the_sharp_image(server, tmp_path, monkeypatch, kind):
    """As a user would: both files from the command line, the map's first, then the same scan with and without it."""
    running = server(module_folders=(PROJECT,))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()

    def run(script, *arguments):
        command = [sys.executable, str(PROJECT / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    size = ("-m", "48", "--interleaves", "6", "-a", "55", "-c", "3", "--still", "--no-waveforms", "--carry", "1/m")
    size += ("--seq-meta", str(tmp_path / "seq_meta"))
    run("generate_spiral_dataset.py", *size, "-o", "plain.h5")
    field = ("--off-resonance", "40", "250", "-150", "--field-map-scan", kind)
    assert "send it first" in run("generate_spiral_dataset.py", *size, *field, "-o", "raw.h5")
    client = ("client.py", "-p", str(running.port), "-c")
    run(*client, "savedep", "raw_fieldmap.h5")
    images = {}
    for name, source, setting in (("plain", "plain", ""), ("blurred", "raw", ""), ("sharp", "raw", "dependency")):
        (tmp_path / "configs" / "simplenufft_config.toml").write_text(
            f'[reconstruction]\nfield_map = "{setting}"\ncoil_combine = "rssq"\n'
        )
        told = run(*client, "simplenufft", "-o", f"{name}.h5.out.h5", f"{source}.h5")
        assert ("off-resonance are corrected by" in told) == (name == "sharp")
        with MrdReader(tmp_path / f"{name}.h5.out.h5") as file:
            images[name] = np.stack([image.data[0, 0] for image in file.images()]).astype(float)
    blurred, sharp = (error(images[name], images["plain"]) for name in ("blurred", "sharp"))
    assert sharp < 0.03 < 0.06 < blurred
