"""Images in fields that are off, from exact signals: with the true map they are as without any field."""

import logging
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

from recon import nufft
from recon.concomitant import positions
from recon.configuration import ConfigurationError, FieldSettings
from recon.fieldcorrection import FieldCorrection
from recon.fieldplan import FieldPlan, combined, with_fields
from simulation.fields import detuned_kspace, points_signal
from simulation.phantom import Coils, Ellipse
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralphantom import array_coils, as_parameters, raster
from simulation.spiralsimulation import readout_axes

FOV, MATRIX = 0.256, 80
SHAPE = (MATRIX, MATRIX)
SPIRAL = design_spiral(SpiralDesign(resolution=FOV / MATRIX, interleaves=9, dwell=4e-6, ordering="linear"))
SECONDS = SPIRAL.dwell * np.arange(SPIRAL.k.shape[1])
ELLIPSES = (
    Ellipse(-0.06, 0.02, 0.035, 0.07, 0.3, 1.0),
    Ellipse(0.045, -0.06, 0.05, 0.03, -0.4, 0.8),
    Ellipse(0.05, 0.06, 0.03, 0.025, 0.0, 1.2),
    Ellipse(0.02, 0.005, 0.012, 0.02, 0.5, 0.6),
)
FREQUENCIES = (-60.0, 20.0, 110.0, 20.0)  # [Hz]
UNIFORM = Coils(frequencies=((0.0, 0.0),), weights=((1.0,),))
TRUTH = sum(raster(as_parameters(one), MATRIX, FOV / MATRIX) for one in ELLIPSES)
NO_STRENGTH = SimpleNamespace(acquisitionSystemInformation=None, experimentalConditions=None)
LOW = SimpleNamespace(
    acquisitionSystemInformation=SimpleNamespace(systemFieldStrength_T=0.55), experimentalConditions=None
)


class Known:
    """Field map that is known."""

    def __init__(self, hertz):
        self.hertz = np.asarray(hertz, np.float32)

    def on_grid(self, head, shape, field_of_view):
        assert shape == self.hertz.shape
        assert field_of_view == pytest.approx((1e3 * FOV, 1e3 * FOV))
        return self.hertz


def head_at(position=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0)):
    head = ismrmrd.AcquisitionHeader()
    head.read_dir, head.phase_dir, head.slice_dir = map(tuple, readout_axes(rotation).tolist())
    head.position = position
    return head


def pixels():
    """Places x, y [m] of the pixels, each [row, column], along kx and ky."""
    y, x = -FOV / MATRIX * (np.mgrid[:MATRIX, :MATRIX] - MATRIX // 2)
    return x, y


def true_map():
    """Frequency of the ellipse that is nearest to a pixel [Hz]."""
    x, y = pixels()
    distance = [
        np.hypot(
            (np.cos(e.angle) * (x - e.x) + np.sin(e.angle) * (y - e.y)) / e.a,
            (np.cos(e.angle) * (y - e.y) - np.sin(e.angle) * (x - e.x)) / e.b,
        )
        for e in ELLIPSES
    ]
    return np.array(FREQUENCIES)[np.argmin(distance, axis=0)]


def correction_of(hertz=None, header=NO_STRENGTH, head=None, **settings):
    fields = FieldCorrection(FieldSettings(**settings), header, None if hertz is None else Known(hertz))
    found = fields.terms(SPIRAL.k, SPIRAL.dwell, [head or head_at()], SHAPE, (1e3 * FOV, 1e3 * FOV))
    return None if found is None else found.plane()


def image_of(samples, correction=None):
    """Image [row, column] of samples [1, arm, sample]."""
    plan = with_fields(nufft.ArmPlan(SPIRAL.cycles_per_fov(), SHAPE, SPIRAL.weights), correction)
    grid = plan.zeros(1)
    for arm in range(SPIRAL.arms):
        plan.add_arm(grid, arm, samples[:, arm])
    return plan.image(grid)[0]


def error(image, truth=TRUTH):
    image = np.abs(image)
    return np.linalg.norm(image * (image * truth).sum() / (image**2).sum() - truth) / np.linalg.norm(truth)


def without_field():
    return UNIFORM.kspace(ELLIPSES, SPIRAL.k[..., 0], SPIRAL.k[..., 1])


def test_ellipses_of_own_frequencies_are_as_sharp_as_without_a_field():
    assert 3.5e-3 < SECONDS[-1] < 4.5e-3
    samples = detuned_kspace(UNIFORM, ELLIPSES, FREQUENCIES, SPIRAL.k[..., 0], SPIRAL.k[..., 1], SECONDS)
    best = error(image_of(without_field()))
    assert error(image_of(samples)) > 1.3 * best
    assert error(image_of(samples, correction_of(true_map()))) < 1.15 * best
    # The sign convention: the map of the other sign makes it worse than no map.
    assert error(image_of(samples, correction_of(-true_map()))) > 1.3 * error(image_of(samples))
    samples = detuned_kspace(UNIFORM, ELLIPSES, -np.array(FREQUENCIES), *np.moveaxis(SPIRAL.k, -1, 0), SECONDS)
    assert error(image_of(samples, correction_of(-true_map()))) < 1.15 * best
    assert error(image_of(samples, correction_of(true_map()))) > 1.3 * error(image_of(samples))


def test_linear_field_is_the_shift_of_k_that_it_makes():
    slope = np.array([150.0, -80.0]) / FOV  # [Hz/m]
    k = SPIRAL.k + slope * SECONDS[:, np.newaxis]
    samples = UNIFORM.kspace(ELLIPSES, k[..., 0], k[..., 1])
    x, y = pixels()
    best = error(image_of(without_field()))
    assert error(image_of(samples)) > 1.1 * best
    assert error(image_of(samples, correction_of(slope[0] * x + slope[1] * y))) < 1.05 * best
    assert error(image_of(samples, correction_of(-slope[0] * x - slope[1] * y))) > 1.3 * best


def test_axial_plane_off_the_isocentre_at_low_field():
    head = head_at((0.0, 0.0, 100.0))
    gradients = np.diff(SPIRAL.k, axis=1, prepend=SPIRAL.k[:, :1]) / SPIRAL.dwell / 42.576e6
    hertz = 42.576e6 * (gradients**2).sum(axis=-1) * 0.1**2 / (2 * 0.55)
    samples = without_field() * np.exp(-2j * np.pi * np.cumsum(hertz, axis=1) * SPIRAL.dwell)
    best = error(image_of(without_field()))
    assert error(image_of(samples)) > 1.15 * best
    correction = correction_of(header=LOW, head=head)
    assert len(correction) == 1
    assert error(image_of(samples, correction)) < 1.02 * best
    both = correction_of(np.full(SHAPE, 40.0), LOW, head)  # with a map
    samples *= np.exp(-2j * np.pi * 40 * SECONDS)
    assert error(image_of(samples, both)) < 1.02 * best


@pytest.mark.parametrize("rotation", [(0.0, 90.0, 0.0), (90.0, 0.0, 0.0), (30.0, 40.0, 0.0)])
def test_other_planes_at_low_field_as_a_direct_sum_over_points(rotation):
    head = head_at((100.0, 20.0, 100.0), rotation)
    x, y = pixels()
    inside = TRUTH > 0
    flat = np.stack([x[inside], y[inside]], axis=1)
    # The formula for each point, by gradients on the patient's axes.
    there = positions(head, SHAPE, (1e3 * FOV, 1e3 * FOV))[inside]
    to_patient = -np.array([head.read_dir, head.phase_dir])
    samples, plain = np.empty((2, 1, *SPIRAL.k.shape[:2]), complex)
    for arm, k in enumerate(SPIRAL.k):
        g = np.diff(k @ to_patient, axis=0, prepend=k[:1] @ to_patient) / SPIRAL.dwell / 42.576e6
        (gx, gy, gz), (px, py, pz) = g.T[..., np.newaxis], there.T
        field = (gx**2 + gy**2) * pz**2 + gz**2 * (px**2 + py**2) / 4 - gx * gz * px * pz - gy * gz * py * pz
        cycles = np.cumsum(42.576e6 * field / (2 * 0.55), axis=0) * SPIRAL.dwell
        samples[0, arm] = points_signal(TRUTH[inside], flat, k, cycles)
        plain[0, arm] = points_signal(TRUTH[inside], flat, k, np.zeros_like(cycles))
    best = image_of(plain)
    correction = correction_of(header=LOW, head=head)
    assert error(image_of(samples), np.abs(best)) > 0.05
    assert error(image_of(samples, correction), np.abs(best)) < 0.02
    assert len(correction) <= 30


def test_transforms_with_terms_are_the_sum_over_pixels_and_samples():
    """The adjoint against direct sums with the exact phases of a map, for several coils."""
    random = np.random.default_rng(1)
    hertz = true_map()
    samples = random.standard_normal((3, SPIRAL.arms, len(SECONDS), 2)).view(complex)[..., 0].astype(np.complex64)
    fine = correction_of(hertz, field_tolerance=1e-3)
    plan = FieldPlan(nufft.ArmPlan(SPIRAL.cycles_per_fov(), SHAPE), fine.terms.spatial, fine.temporal)
    grid = plan.zeros(3)
    for arm in range(SPIRAL.arms):
        plan.add_arm(grid, arm, samples[:, arm])
    images = plan.image(grid)
    x, y = pixels()
    size = np.abs(images).mean()
    for row, column in ((40, 40), (23, 61), (70, 5)):
        phase = SPIRAL.k @ [x[row, column], y[row, column]] + hertz[row, column] * SECONDS
        expected = (samples * np.exp(2j * np.pi * phase)).sum(axis=(1, 2))
        np.testing.assert_allclose(images[:, row, column], expected, atol=0.02 * size)
    np.testing.assert_allclose(combined(plan.term_images(grid), fine.terms.spatial), images, atol=1e-3 * size)


def test_coils_keep_their_places_among_the_terms():
    coils = array_coils(3, FOV)
    samples = detuned_kspace(coils, ELLIPSES, FREQUENCIES, SPIRAL.k[..., 0], SPIRAL.k[..., 1], SECONDS)
    correction = correction_of(true_map())
    plan = with_fields(nufft.ArmPlan(SPIRAL.cycles_per_fov(), SHAPE, SPIRAL.weights), correction)
    grid = plan.zeros(3)
    for arm in range(SPIRAL.arms):
        plan.add_arm(grid, arm, samples[:, arm])
    for one, each in zip(plan.image(grid), samples, strict=True):
        np.testing.assert_allclose(one, image_of(each[np.newaxis], correction), atol=1e-3 * np.abs(one).max())


def test_time_runs_from_the_centre_of_k_space():
    fields = FieldCorrection(FieldSettings(), NO_STRENGTH, Known(true_map()))
    assert fields.times(SPIRAL.k, 2e-6)[0, [0, 10], 0] == pytest.approx([0, 20e-6])
    assert fields.times(SPIRAL.k[:, ::-1], 2e-6)[0, [0, -1], 0] == pytest.approx([-2e-6 * (len(SECONDS) - 1), 0])


def test_time_of_arms_that_end_in_the_centre_runs_to_it():
    """Where every other arm goes inward; and of rosettes, that come back, from the first time on."""
    fields = FieldCorrection(FieldSettings(), NO_STRENGTH, Known(true_map()))
    both = np.concatenate([SPIRAL.k, SPIRAL.k[:, ::-1]])
    times = fields.times(both, 2e-6)[..., 0]
    np.testing.assert_allclose(times[: SPIRAL.arms, 10], 20e-6)
    np.testing.assert_allclose(times[SPIRAL.arms :, 0], -2e-6 * (len(SECONDS) - 1))
    turns = np.linspace(0, 4, 401)[:-1]
    angles = 0.7 * turns + 0.3 * np.arange(5)[:, np.newaxis]
    rosette = 200 * np.sin(np.pi * turns + 0.5)[:, np.newaxis] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    for arm in rosette:
        first = np.linalg.norm(arm, axis=-1)[:100].argmin()
        assert fields.times(arm[np.newaxis], 2e-6)[0, first, 0] == 0


@pytest.mark.parametrize(("centre", "same"), [(0.0, True), (30.0, False)])
def test_place_changes_only_with_movements_that_matter(centre, same):
    """A position that follows breathing, or is rounded, must not begin frames anew with every readout."""
    fields = FieldCorrection(FieldSettings(), LOW)
    random = np.random.default_rng(1)
    first = fields.place(head_at((5.0, 6.0, 100.0)))
    later = {fields.place(head_at((5.0, 6.0 + each, 100.0 + centre))) for each in random.uniform(-2, 2, 50)}
    assert len(later) == 1
    assert (later == {first}) == same


@pytest.mark.parametrize(
    ("asked", "tesla", "corrected"),
    [("auto", 0.55, True), ("auto", 1.5, False), ("on", 1.5, True), ("off", 0.55, False), ("auto", None, False)],
)
def test_concomitant_fields_are_corrected_at_low_field_or_when_asked_for(asked, tesla, corrected):
    texts = []
    header = SimpleNamespace(
        acquisitionSystemInformation=SimpleNamespace(systemFieldStrength_T=tesla), experimentalConditions=None
    )
    fields = FieldCorrection(FieldSettings(concomitant=asked), header, None, texts.append, texts.append)
    assert fields.active == corrected
    found = fields.terms(SPIRAL.k, SPIRAL.dwell, [head_at((0.0, 0.0, 100.0))], SHAPE, (1e3 * FOV, 1e3 * FOV))
    assert (found is not None) == corrected
    expected = "concomitant fields at 0.55 T are" if tesla == 0.55 else "concomitant fields at 1.50 T are"
    assert any(f"{expected} corrected by 1 term" in text for text in texts) == corrected
    assert any("not corrected: the header has no" in text for text in texts) == (asked == "auto" and tesla is None)


def test_asking_for_concomitant_fields_without_a_main_field_is_refused():
    with pytest.raises(ConfigurationError, match="systemFieldStrength_T"):
        FieldCorrection(FieldSettings(concomitant="on"), NO_STRENGTH)


def test_without_a_dwell_time_nothing_is_corrected_and_the_client_is_told_once():
    texts = []
    fields = FieldCorrection(FieldSettings(), LOW, warn=texts.append)
    for _ in range(2):
        assert fields.terms(SPIRAL.k, 0.0, [head_at()], SHAPE, (1e3 * FOV, 1e3 * FOV)) is None
    (text,) = texts
    assert "sample_time_us" in text


def test_terms_are_left_out_where_there_is_no_time_and_the_client_is_told_whenever_more_are():
    texts = []
    fields = FieldCorrection(FieldSettings(field_tolerance=1e-3), NO_STRENGTH, Known(true_map()), warn=texts.append)
    x, y = pixels()
    correction = correction_of(1e3 * x - 2e3 * y, field_tolerance=1e-3)
    assert len(correction) >= 4
    assert fields.keep_pace(correction, 3e-3, 4e-3) is correction
    assert not texts
    fewer = fields.keep_pace(correction, 8e-3, 4e-3)
    assert len(fewer) == len(correction) // 2 == fewer.temporal.shape[1]
    fields.keep_pace(correction, 8e-3, 4e-3)
    assert len(texts) == 1
    assert len(fields.keep_pace(correction, 1.0, 1e-3)) == 1
    assert "1 term(s) are used" in texts[1]
    assert "8.00 ms per readout" in texts[0]
    assert "4.00 ms" in texts[0]
    assert f"{len(fewer)} term(s) are used" in texts[0]


def test_the_client_is_told_how_well_fields_are_corrected(caplog):
    texts = []
    caplog.set_level(logging.INFO)
    fields = FieldCorrection(FieldSettings(), NO_STRENGTH, Known(true_map()), texts.append)
    for _ in range(2):
        found = fields.terms(SPIRAL.k, SPIRAL.dwell, [head_at()], SHAPE, (1e3 * FOV, 1e3 * FOV))
    (text,) = (text for text in texts if "term(s)" in text)
    assert f"{len(found)} term(s)" in text
    assert f"{170 * SECONDS[-1]:.2f} cycles" in text


@pytest.mark.parametrize("k", [SPIRAL.k, SPIRAL.k[:, ::-1]])
def test_the_client_is_told_of_planes_that_take_more_terms_than_those_before(k):
    texts = []
    fields = FieldCorrection(FieldSettings(), LOW, tell=texts.append)
    counts = []
    for rotation, place in (((0, 0, 0), (0, 0, 100)), ((0, 90, 0), (100, 0, 0)), ((0, 0, 0), (0, 0, 120))):
        head = head_at(tuple(map(float, place)), tuple(map(float, rotation)))
        counts.append(len(fields.terms(k, SPIRAL.dwell, [head], SHAPE, (1e3 * FOV, 1e3 * FOV))))
    one, two = texts
    assert counts[1] > counts[0] == counts[2] == 1
    assert "by 1 term(s)" in one
    assert "differ by 0.00 cycles" in one
    assert f"by {counts[1]} term(s)" in two
    assert "differ by 0.00 cycles" not in two
