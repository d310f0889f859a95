"""Echo planar scans made in closed form: each sample of each line at its own place of k-space."""

import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

from cartesian_data import make_header, make_readout
from recon import cartesian, epi
from recon.epiphase import fit_line
from simulation import phantom

FOV = 0.2  # [m]
TIMING = {
    "rampUpTime": 160,
    "flatTopTime": 240,
    "rampDownTime": 160,
    "acqDelayTime": 32,
    "numSamples": 80,
    "dwellTime": 6.2,
    "echoSpacing": 560,
}
NOISE = 1e-3  # far above the signal of a navigator
OBJECT = phantom.shepp_logan(0.85 * FOV)


def header(timing=TIMING, matrix=(40, 36), identifier="ConventionalEPI", **kwargs):
    """Readout oversampling 2; times of the timing that are whole numbers are userParameterLong."""
    columns, rows = matrix
    metadata = make_header(
        encoded=(2 * columns, rows, 1),
        recon=(columns, rows, 1),
        encoded_fov=(2e3 * FOV, 1e3 * FOV, 4),
        recon_fov=(1e3 * FOV, 1e3 * FOV, 4),
        trajectory="epi",
        kspace_encoding_step_1=(0, rows - 1, rows // 2),
        **kwargs,
    )
    xsd = ismrmrd.xsd
    metadata.encoding[0].trajectoryDescription = xsd.trajectoryDescriptionType(
        identifier=identifier,
        userParameterLong=[xsd.userParameterLongType(name=k, value=v) for k, v in timing.items() if isinstance(v, int)],
        userParameterDouble=[
            xsd.userParameterDoubleType(name=k, value=v) for k, v in timing.items() if not isinstance(v, int)
        ],
    )
    return metadata


def places(timing, points):
    """K-space of the samples in points of the encoded matrix, by numerical integration of the gradient."""
    ramp_up, flat, ramp_down = (timing[name] for name in ("rampUpTime", "flatTopTime", "rampDownTime"))
    fine = np.linspace(0, ramp_up + flat + ramp_down, 200001)
    gradient = np.interp(fine, np.cumsum([0, ramp_up, flat, ramp_down]), [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * np.diff(fine))])
    begin, samples, dwell = (timing[name] for name in ("acqDelayTime", "numSamples", "dwellTime"))
    start, stop = np.interp([begin, begin + samples * dwell], fine, area)
    middle = np.interp(begin + (np.arange(samples) + 0.5) * dwell, fine, area)
    return (middle - area[-1] / 2) / (stop - start) * points


class Scan:
    """Lines of a scan: `shift` [points] and `constant` [rad] of reversed lines over forward ones, may be one a coil."""

    def __init__(self, timing=TIMING, matrix=(40, 36), coils=3, shift=0.0, constant=0.0, noise=0.0):
        self.columns, self.rows = matrix
        self.sensitivity = phantom.ring_of_coils(coils, FOV)
        self.k = places(timing, 2 * self.columns)
        self.dwell = timing["dwellTime"]
        self.shift, self.constant = np.broadcast_to(shift, coils), np.broadcast_to(constant, coils)
        self.random, self.noise = np.random.default_rng(1), np.broadcast_to(noise, coils)

    def line(self, row, reverse, time=0.0, flags=(), **idx):
        """Readout of a row, ``time`` [rad] of phase by off-resonance; a row of None is a navigator."""
        ky = 0.0 if row is None else (row - self.rows // 2) / FOV
        sign = -1 if reverse else 1
        data = np.stack(
            [
                self.sensitivity.kspace(OBJECT, sign * (self.k - shift / 2) / (2 * FOV), ky)[coil]
                for coil, shift in enumerate(self.shift)
            ]
            if self.shift.any()
            else self.sensitivity.kspace(OBJECT, sign * self.k / (2 * FOV), ky)
        )
        data = data * np.exp(1j * (time - sign * self.constant[:, None] / 2))
        data = data + self.noise[:, None] * (
            self.random.standard_normal(data.shape) + 1j * self.random.standard_normal(data.shape)
        )
        flags = [*flags, *([ismrmrd.ACQ_IS_REVERSE] if reverse else [])]
        readout = make_readout(data, row=self.rows // 2 if row is None else row, flags=flags, **idx)
        readout.sample_time_us = self.dwell
        return readout

    def navigators(self, directions=(True, False, True), drift=0.0, **idx):
        flags = [ismrmrd.ACQ_IS_PHASECORR_DATA]
        return [self.line(None, reverse, n * drift, flags, **idx) for n, reverse in enumerate(directions)]

    def shot(self, rows=None, first_reverse=False, drift=0.0, **idx):
        rows = range(self.rows) if rows is None else rows
        return [self.line(row, (n % 2 == 1) != first_reverse, n * drift, **idx) for n, row in enumerate(rows)]

    def truth(self):
        """K-space [coil, row, sample] on the encoded matrix."""
        kx = (np.arange(2 * self.columns) - self.columns) / (2 * FOV)
        ky = (np.arange(self.rows) - self.rows // 2) / FOV
        return self.sensitivity.kspace(OBJECT, kx[None], ky[:, None])


def image(items, metadata, mode="auto"):
    """Coil images [coil, row, column] of a scan, and what was told and warned."""
    told, warned = [], []
    lines = epi.corrected(items, metadata, mode, told.append, warned.append)
    planes = list(cartesian.sort_readouts(lines, epi.cartesian_header(metadata), warned.append))
    return [cartesian.to_image(plane)[..., 0] for plane in planes], told, warned


def image_of(kspace, metadata):
    """Coil images of a fully sampled k-space [coil, row, sample] by the Cartesian chain."""
    lines = [make_readout(kspace[:, row], row=row) for row in range(kspace.shape[1])]
    (plane,) = cartesian.sort_readouts(lines, epi.cartesian_header(metadata))
    return cartesian.to_image(plane)[..., 0]


def along_x(kspace, centre):
    """Image [coil, pixel] of the 40 pixels that are kept, from samples [coil, sample] with k = 0 at `centre`."""
    x = np.arange(40) - 20
    return kspace @ np.exp(2j * np.pi / 80 * np.outer(np.arange(kspace.shape[1]) - centre, x))


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# ----------------------------------------------------------------------------------------------------- the header
def test_other_identifiers_are_accepted():
    assert epi.trapezoid_of(header(identifier="MyEPI").encoding[0]).samples == 80


@pytest.mark.parametrize("name", epi.REQUIRED)
def test_a_missing_value_is_named(name):
    timing = {key: value for key, value in TIMING.items() if key != name}
    with pytest.raises(ValueError, match=f"lacks {name}"):
        epi.trapezoid_of(header(timing).encoding[0])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("dwellTime", 7.1, "acqDelayTime 32 .* is longer than the gradient"),
        ("acqDelayTime", 80, "is longer than the gradient"),
        ("echoSpacing", 500, "echoSpacing 500 us is shorter"),
        ("dwellTime", 0.0, "dwellTime"),
        ("rampUpTime", -1, "rampUpTime"),
        ("flatTopTime", float("nan"), "flatTopTime"),
        ("numSamples", 10**5, "numSamples"),
    ],
)
def test_values_that_contradict_are_named(name, value, text):
    with pytest.raises(ValueError, match=text):
        epi.trapezoid_of(header({**TIMING, name: value}).encoding[0])


def test_no_description_is_named():
    metadata = header()
    metadata.encoding[0].trajectoryDescription = None
    with pytest.raises(ValueError, match="no trajectoryDescription"):
        list(epi.corrected(Scan().shot(), metadata))


@pytest.mark.parametrize("change", [{"numSamples": 78}, {"dwellTime": 6.0}])
def test_a_readout_that_contradicts_the_header_is_named(change):
    with pytest.raises(ValueError, match="the header's"):
        list(epi.corrected(Scan().shot(), header({**TIMING, **change})))


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*auto"):
        list(epi.corrected([], header(), "linear"))


# ----------------------------------------------------------------------------------------------------- regridding
@pytest.mark.parametrize("matrix", [(40, 36), (37, 33)])
def test_ramps_are_regridded_and_reversed_lines_turned_round(matrix):
    scan, metadata = Scan(matrix=matrix), header(matrix=matrix)
    (found,), _, _ = image(scan.shot(), metadata, "none")
    expected = image_of(scan.truth(), metadata)
    assert error(found, expected) < 0.012
    lines = [r.data[:, ::-1] if r.is_flag_set(ismrmrd.ACQ_IS_REVERSE) else r.data for r in scan.shot()]
    plain = np.stack(lines, 1)[..., : 2 * matrix[0]]
    plain = np.pad(plain, ((0, 0), (0, 0), (0, 2 * matrix[0] - plain.shape[2])))
    assert error(image_of(plain, metadata), expected) > 0.3  # as if the samples lay at equal distances


def test_lines_of_both_directions_agree_when_the_samples_lie_asymmetrically():
    timing = {**TIMING, "acqDelayTime": 12}
    scan, metadata = Scan(timing), header(timing)
    told = []
    forward, backward = epi.corrected(
        [scan.line(20, False), scan.line(20, True)], metadata, "none", told.append, told.append
    )
    assert forward.center_sample == backward.center_sample
    assert not backward.is_flag_set(ismrmrd.ACQ_IS_REVERSE)
    expected = along_x(scan.truth()[:, 20, 40 - forward.center_sample :], forward.center_sample)
    assert error(along_x(forward.data, forward.center_sample), expected) < 0.03
    assert error(along_x(backward.data, backward.center_sample), expected) < 0.03
    assert ["of 80 points" in text for text in told] == [True]


def test_discarded_samples_do_not_count():
    scan, metadata = Scan(), header()
    line = scan.line(20, True)
    clean = next(epi.corrected([scan.line(20, True)], metadata, "none"))
    line.data[:, :3] = 100
    line.discard_pre = 3
    found = next(epi.corrected([line], metadata, "none"))
    start = clean.center_sample - found.center_sample
    assert 70 < found.number_of_samples < 80
    expected = along_x(clean.data[:, start : start + found.number_of_samples], found.center_sample)
    assert error(along_x(found.data, found.center_sample), expected) < 0.03


def test_noise_is_not_amplified():
    trapezoid = epi.trapezoid_of(header().encoding[0])
    matrix = epi.regridding(trapezoid.position(np.arange(80) + 0.5, 80), 80)
    gain = np.linalg.norm(matrix[20:60], axis=1) * np.sqrt(80)  # of the pixels that are kept, 1 for a plain transform
    assert gain.max() < 1.25


# ----------------------------------------------------------------------------------------------------- the ghost
@pytest.mark.parametrize("mode", ["auto", "joint", "coil"])
@pytest.mark.parametrize("directions", [(True, False, True), (False, True, False), (False, True, False, True, False)])
def test_navigators_remove_the_ghost_whatever_off_resonance_adds(mode, directions):
    scan, metadata = Scan(shift=0.8, constant=-2.0), header()
    items = scan.navigators(directions, drift=0.4) + scan.shot()
    expected = image_of(scan.truth(), metadata)
    (found,), told, warned = image(items, metadata, mode)
    (ghost,), _, _ = image(items, metadata, "none")
    assert error(found, expected) < 0.02
    assert error(ghost, expected) > 0.5
    assert warned == []
    assert "-2.00 rad" in told[0]


def test_each_coil_has_its_own_phase_unless_noise_would_decide():
    phases = {"shift": [0.2, 0.8, 0.6], "constant": [0.4, -0.4, 0.1]}
    scan, noisy, metadata = Scan(**phases), Scan(**phases, noise=[0, 0, NOISE]), header()
    items = noisy.navigators() + scan.shot()
    expected = image_of(scan.truth(), metadata)
    errors = {}
    for mode in ("auto", "joint", "coil"):
        (found,), _, _ = image(items, metadata, mode)
        errors[mode] = [error(found[coil], expected[coil]) for coil in range(3)]
    assert max(errors["auto"][:2]) < 0.02 < 0.05 < min(errors["joint"][:2])
    assert errors["auto"][2] == errors["joint"][2] < errors["coil"][2]


def test_the_latest_navigators_of_the_slice_count():
    metadata = header(slice=(0, 1, 0), repetition=(0, 1, 0))
    items = []
    first, second = Scan(shift=0.5, constant=1.0), Scan(shift=-0.7, constant=-1.5)
    for repetition, scans in enumerate(((first, second), (second, first))):
        shots = []
        for number, scan in enumerate(scans):
            items += scan.navigators(slice=number, repetition=repetition)
            shots.append(scan.shot(slice=number, repetition=repetition))
        items += [line for pair in zip(*shots, strict=True) for line in pair]
    expected = image_of(first.truth(), metadata)
    images, _, warned = image(items, metadata)
    assert len(images) == 4
    assert max(error(found, expected) for found in images) < 0.02
    assert warned == []


def test_shots_may_begin_in_either_direction():
    scan, metadata = Scan(shift=0.8, constant=1.0), header(segment=(0, 1, 0))
    items = []
    for number in (0, 1):
        items += scan.navigators(segment=number)
        items += scan.shot(range(number, scan.rows, 2), first_reverse=number == 1, segment=number)
    (found,), _, warned = image(items, metadata)
    assert error(found, image_of(scan.truth(), metadata)) < 0.02
    assert warned == []


@pytest.mark.parametrize("step", [1, 2])
def test_without_navigators_the_lines_tell_the_phase_and_so_does_a_warning(step):
    """Also where every other line was left out, as for parallel imaging."""
    scan, metadata = Scan(shift=0.8, constant=1.0), header()
    lines = scan.shot(range(0, scan.rows, step))
    (found,), _, warned = image(lines, metadata)
    truth = scan.truth()
    truth[:, np.arange(scan.rows) % step > 0] = 0
    expected = image_of(truth, metadata)
    assert error(found, expected) < 0.06
    assert "no navigators" in warned[0]
    assert error(image(lines, metadata, "none")[0][0], expected) > 0.25


def test_without_navigators_and_with_few_lines_a_ghost_is_announced():
    scan = Scan(shift=0.8)
    _, _, warned = image(scan.shot(range(12)), header())
    assert "expect a ghost" in warned[0]


def test_navigators_of_one_direction_are_refused_and_the_former_ones_kept():
    scan, metadata = Scan(shift=0.8, constant=1.0), header()
    lines = scan.shot()
    items = scan.navigators() + lines[:9] + scan.navigators((True, True)) + lines[9:]
    (found,), _, warned = image(items, metadata)
    assert error(found, image_of(scan.truth(), metadata)) < 0.02
    assert "2 navigators of slice 0, 2 of them reversed" in warned[0]


def test_navigators_that_are_noise_or_not_finite_are_not_used():
    scan, metadata = Scan(shift=0.8), header()
    noisy, broken = scan.navigators(), scan.navigators()
    random = np.random.default_rng(0)
    for readout in noisy:
        readout.data[:] = random.standard_normal((3, 80)) + 1j * random.standard_normal((3, 80))
    broken[1].data[0, 5] = np.nan
    for items, text in ((noisy, "tell no phase"), (broken, "not finite")):
        (found,), _, warned = image([*items, *scan.shot()], metadata)
        assert text in warned[0]
        assert error(found, image_of(scan.truth(), metadata)) < 0.06  # from the lines


def test_lines_of_one_direction_need_no_correction_but_a_word():
    scan = Scan()
    (found,), _, warned = image([scan.line(row, False) for row in range(scan.rows)], header())
    assert error(found, image_of(scan.truth(), header())) < 0.012
    assert ["ACQ_IS_REVERSE" in text for text in warned] == [True]


# ----------------------------------------------------------------------------------------------------- the stream
def test_all_else_goes_through():
    scan, metadata = Scan(), header()
    noise = make_readout(np.ones((3, 16)), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    items = [noise, *scan.navigators(), "text", *scan.shot()[:2]]
    found = list(epi.corrected(items, metadata))
    assert found[0] is noise
    assert found[1] == "text"
    assert [readout.idx.kspace_encode_step_1 for readout in found[2:]] == [0, 1]


def test_a_cartesian_encoding_is_left_alone():
    readout = make_readout(np.ones((2, 16)))
    assert list(epi.corrected([readout], make_header())) == [readout]


def test_lines_with_navigators_do_not_wait():
    scan = Scan()
    lines = scan.shot()
    taken = iter([*scan.navigators(), *lines])
    assert next(epi.corrected(taken, header())).idx.kspace_encode_step_1 == 0
    assert len(list(taken)) == len(lines) - 1


def test_lines_that_are_not_finite_stay_so_and_spoil_no_other():
    scan, metadata = Scan(), header()
    lines = scan.shot()
    lines[3].data[0, 0] = np.inf
    _, _, warned = image(lines, metadata)
    assert any("samples are not finite" in text for text in warned)


def test_the_number_of_channels_must_not_change():
    with pytest.raises(ValueError, match="has 2 channels; those before it have 3"):
        list(epi.corrected([*Scan().navigators(), *Scan(coils=2).shot()], header()))


def test_the_phase_of_a_line_wraps_without_harm():
    x = np.arange(41) - 20
    constant, slope, coherence = fit_line(np.exp(1j * (2 + 0.9 * x)) * np.hanning(41))
    np.testing.assert_allclose((constant, slope), (2, 0.9), atol=1e-3)
    assert coherence > 0.999
