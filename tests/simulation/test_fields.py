"""Simulated scans in fields that are not what they should be."""

import dataclasses

import numpy as np
import pytest

from recon import concomitant
from simulation import fields, twoechoes
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, simulate
from simulation.spiraltruth import Truth

TRAJECTORY = design_spiral(SpiralDesign(resolution=0.256 / 64, interleaves=8, arms=5))
VIALS = (-60.0, 20.0, 110.0)


def samples(readouts=5, **scan):
    """Noise-free readouts [readout, coil, sample], without samples to discard, and the simulation."""
    made = simulate(TRAJECTORY, Scan(readouts=readouts, coils=2, noise=0, waveforms=False, **scan))
    return np.stack([item.data[:, TRAJECTORY.pre_discard :] for item in made.acquisitions()]), made


def difference(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


def seconds(echo_time):
    return echo_time + TRAJECTORY.dwell * np.arange(TRAJECTORY.k.shape[1])


def test_each_vial_turns_with_its_own_frequency():
    got, simulation = samples(vials=VIALS)
    truth, time = simulation.truth, seconds(simulation.scan.echo_times[0])
    expected = sum(
        fields.moving_kspace(np.broadcast_to(ellipse, (5, 1, 6)), TRAJECTORY.k, truth.coils)
        * np.exp(-2j * np.pi * frequency * time)
        for ellipse, frequency in zip(truth.still_object, VIALS, strict=True)
    )
    assert difference(got, expected / truth.pixel**2) < 1e-5


def test_off_resonance_that_grows_over_the_image_is_that_of_its_map():
    """A direct sum over the points of a disc, with the frequency that the map tells at its place."""
    grows = fields.OffResonance(90, 150, -80)
    got, simulation = samples(point=(40, -24), off_resonance=grows)
    plain, _ = samples(point=(40, -24))
    row, column = 32 + 6, 32 - 10  # of pixels of 4 mm
    hertz = simulation.truth.field_map()[row, column]
    assert hertz == pytest.approx(90 - 150 * 5 / 32 - 80 * 3 / 32)
    turned = plain * np.exp(-2j * np.pi * hertz * seconds(simulation.scan.echo_times[0]))
    assert difference(got, turned) < 0.03 < 0.1 < difference(got, plain)


@pytest.mark.parametrize("rotation", [(0, 0, 35), (90, 0, 0), (25, -40, 10)], ids=["axial", "coronal", "oblique"])
def test_concomitant_fields_at_a_point(rotation):
    """As the reconstruction predicts them at the disc's place, by a formula of its own."""
    scan = {"point": (40, -24), "rotation": rotation, "position": (20, 30, 100)}
    got, simulation = samples(4, concomitant=True, **scan)
    plain, _ = samples(4, **scan)
    head = next(simulation.acquisitions()).getHead()
    times = concomitant.integrals(TRAJECTORY.k[:4], TRAJECTORY.dwell, 0.55)
    cycles = times @ concomitant.shapes(head, (64, 64), (256, 256))[:, 32 + 6, 32 - 10]
    turned = plain * np.exp(-2j * np.pi * cycles)[:, np.newaxis]
    assert difference(got, turned) < 0.02
    assert difference(plain, turned) > 0.05


def test_sum_over_points_is_the_closed_form_without_concomitant_fields():
    exact, _ = samples(4, vials=VIALS, off_resonance=fields.OffResonance(10, 50, 20), rotation=(90, 0, 0))
    summed, _ = samples(
        4, vials=VIALS, off_resonance=fields.OffResonance(10, 50, 20), rotation=(90, 0, 0), concomitant=True,
        field_strength=20,
    )  # fmt: skip
    assert difference(summed, exact) < 0.02


def test_truth_file_has_the_map(tmp_path):
    _, simulation = samples(vials=VIALS, off_resonance=fields.OffResonance(5))
    simulation.truth.save(tmp_path / "truth.h5")
    loaded = Truth.load(tmp_path / "truth.h5")
    found = loaded.field_map()
    for x, y, frequency in zip(*loaded.still_object[:, :2].T, VIALS, strict=True):
        assert found[round(32 - y / 4e-3), round(32 - x / 4e-3)] == frequency + 5


@pytest.mark.parametrize("kind", twoechoes.KINDS)
def test_two_echoes_differ_by_the_phase_of_each_vial(kind):
    _, simulation = samples(vials=(-60.0,), slices=2)
    scan = twoechoes.scan_of(simulation, kind, (2e-3, 4e-3), 16)
    twoechoes.depend(simulation.header, scan.header)
    (named,) = simulation.header.measurementInformation.measurementDependency
    assert (named.dependencyType, named.measurementID) == ("FieldMap", "spiral_phantom_fieldmap")
    assert scan.header.sequenceParameters.TE == [2, 4]
    readouts = {}
    for item in scan.acquisitions():
        key = item.idx.slice, item.idx.contrast, item.idx.kspace_encode_step_1
        readouts[key] = item.data[:, TRAJECTORY.pre_discard if kind == "spiral" else 0 :]
    lines = 5 if kind == "spiral" else 16
    assert len(readouts) == 2 * 2 * lines
    for number in range(2):
        for line in range(lines):
            ratio = np.vdot(readouts[number, 0, line], readouts[number, 1, line])
            assert np.angle(ratio) == pytest.approx(2 * np.pi * 60 * 2e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("scan", "text"),
    [
        ({"vials": (1.0,), "point": (0, 0)}, "give one of them"),
        ({"vials": (np.nan,)}, "finite"),
        ({"concomitant": True, "partitions": 2}, "not for stacks"),
        ({"field_strength": 0}, "b0 is 0"),
        ({"echo_times": (0.004, 0.006)}, "too short for readouts"),
    ],
)
def test_scans_that_make_no_sense_are_refused(scan, text):
    with pytest.raises(ValueError, match=text):
        simulate(TRAJECTORY, dataclasses.replace(Scan(), **scan))
