"""Terms of fields: how near they come to the exact exponential, for fields of all kinds."""

import ismrmrd
import numpy as np
import pytest

from recon import concomitant
from recon.fieldterms import Phase, exponential, find_terms
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import readout_axes

SHAPE = (60, 48)
ARMS = design_spiral(SpiralDesign(arms=21, dwell=4e-6))
SECONDS = ARMS.dwell * np.arange(ARMS.k.shape[1])
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]
Y, X = (ROWS - 30) / 60, (COLUMNS - 24) / 48
MAPS = {
    "linear": 150 * X - 80 * Y,
    "ellipses": -60.0 + 80 * (X > 0) + 90 * (Y > 0.2),
    "air": 5 * X + 300 * (np.hypot(X - 0.3, Y) < 0.04),
    "one frequency": np.full(SHAPE, 110.0),
}


def phase_of(df=None, position=None, rotation=(0.0, 0.0, 0.0)):
    times, places = [], []
    if df is not None:
        times.append(np.broadcast_to(SECONDS[:, np.newaxis], (*ARMS.k.shape[:2], 1)))
        places.append(df[np.newaxis])
    if position is not None:
        head = ismrmrd.AcquisitionHeader()
        head.read_dir, head.phase_dir, head.slice_dir = map(tuple, readout_axes(rotation).tolist())
        head.position = position
        times.append(concomitant.integrals(ARMS.k, ARMS.dwell, 0.55))
        places.append(concomitant.shapes(head, SHAPE, (256.0, 256.0)))
    return Phase(np.concatenate(times, axis=-1), np.concatenate(places))


def left_over(phase, terms):
    """Error [time, pixel] over a random part of all samples."""
    random = np.random.default_rng(0)
    arms, samples = (random.integers(0, n, 800) for n in ARMS.k.shape[:2])
    exact = exponential(phase.times[arms, samples], phase.places.reshape(len(phase.places), -1).T)
    return np.abs(exact - terms.temporal(phase.times)[arms, :, samples] @ terms.spatial.reshape(len(terms), -1))


CASES = {name: {"df": df} for name, df in MAPS.items()} | {
    "sagittal": {"position": (100.0, 0.0, 0.0), "rotation": (0.0, 90.0, 0.0)},
    "coronal, 10 cm up": {"position": (0.0, 0.0, 100.0), "rotation": (90.0, 0.0, 0.0)},
    "oblique with a map": {"df": MAPS["linear"], "position": (0.0, 50.0, 100.0), "rotation": (30.0, 40.0, 0.0)},
}


@pytest.mark.parametrize("tolerance", [3e-2, 1e-2, 1e-3])
@pytest.mark.parametrize("case", CASES)
def test_error_is_within_the_tolerance(case, tolerance):
    phase = phase_of(**CASES[case])
    terms = find_terms(phase, tolerance)
    error = left_over(phase, terms)
    assert np.sqrt((error**2).mean()) <= 1.1 * tolerance
    assert np.sqrt((error**2).mean(axis=0)).max() <= 6 * tolerance  # the pixel with the largest
    assert len(terms) <= 30


def test_fewer_terms_are_the_best_of_them():
    phase = phase_of(MAPS["linear"])
    terms = find_terms(phase, 1e-3)
    for count in range(1, len(terms)):
        error = np.sqrt((left_over(phase, terms.first(count)) ** 2).mean())
        assert error == pytest.approx(terms.errors[count], rel=0.3)
        assert len(terms.first(count)) == count


def test_one_frequency_is_exact_with_one_term():
    phase = phase_of(MAPS["one frequency"])
    terms = find_terms(phase, 1e-2)
    assert len(terms) == 1
    assert left_over(phase, terms).max() < 1e-5


def test_field_that_makes_no_difference_needs_no_terms():
    assert find_terms(phase_of(np.full(SHAPE, 0.1)), 1e-2) is None


def test_field_that_is_not_finite_is_refused():
    broken = MAPS["linear"].copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        find_terms(phase_of(broken), 1e-2)
