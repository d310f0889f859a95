import ismrmrd
import numpy as np
import pytest

from recon import cartesian
from simulation import phantom
from simulation.cartesianphantom import cylinders
from simulation.cartesiansimulation import (
    Epi,
    Noise,
    Scan,
    acquisitions,
    check,
    density,
    header,
    maps,
    noise_acquisitions,
    noise_covariance,
    noise_header,
)

SMALL = {"columns": 12, "rows": 10, "coils": 3, "noise": 0.0}
CALIBRATION, BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
REVERSE, NAVIGATOR = ismrmrd.ACQ_IS_REVERSE, ismrmrd.ACQ_IS_PHASECORR_DATA


def filled(scan):
    """K-space [coil, partition, row, sample] of a scan, placed by header and counters alone; readouts at each place."""
    encoding = header(scan).encoding[0]
    size, limits = encoding.encodedSpace.matrixSize, encoding.encodingLimits
    kspace = np.zeros((scan.coils, size.z, size.y, size.x), np.complex64)
    count = np.zeros(kspace.shape[1:3], int)
    for readout in acquisitions(scan):
        row = readout.idx.kspace_encode_step_1 - limits.kspace_encoding_step_1.center + size.y // 2
        partition = readout.idx.kspace_encode_step_2 - limits.kspace_encoding_step_2.center + size.z // 2
        first = size.x // 2 - readout.center_sample
        kspace[:, partition, row, first : first + readout.number_of_samples] = readout.data
        count[partition, row] += 1
    return kspace, count


def images_of(scan):
    """Root sum of squares [plane, row, column] and position along z [mm] of what the project's transform makes."""
    planes = list(cartesian.sort_readouts(acquisitions(scan), header(scan)))
    pixels = [np.sqrt((np.abs(cartesian.to_image(plane)) ** 2).sum(axis=0))[..., 0] for plane in planes]
    return np.array(pixels), [plane.head.position[2] for plane in planes]


def correlation(one, other):
    return np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)


def rssq(scan):
    return np.sqrt((np.abs(maps(scan)) ** 2).sum(axis=0))


# ------------------------------------------------------------------------------------------------------ object and z
@pytest.mark.parametrize("partitions", [4, 5])
def test_3d_kspace_is_the_integral_along_z(partitions):
    """Against a sum over thin layers, each with the exact k-space of the ellipses in it."""
    scan = Scan(**SMALL, partitions=partitions)
    z = (np.arange(4000) + 0.5) / 4000 * scan.depth - scan.depth / 2
    solids = cylinders(scan.size, scan.depth)
    kspace, _ = filled(scan)
    for partition, row, sample in ((0, 5, 12), (1, 3, 14), (partitions - 1, 6, 9)):
        kx, ky = (sample - 12) / (24 * scan.pixel), (row - 5) / (10 * scan.pixel)
        kz = (partition - partitions // 2) / (partitions * 5e-3)
        factors = scan.coils_along_z.maps(z, 0.0) * np.exp(-2j * np.pi * kz * z) * scan.depth / 4000
        expected = sum(
            scan.coil_ring.kspace([solid.ellipse], kx, ky) * factors[:, np.abs(z - solid.z) < solid.height / 2].sum(1)
            for solid in solids
        )
        expected /= scan.pixel**2 * 5e-3
        assert np.linalg.norm(kspace[:, partition, row, sample] - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("partitions", "columns", "rows"), [(24, 40, 33), (25, 45, 56)])
def test_each_partition_shows_its_own_part_of_the_object(partitions, columns, rows):
    scan = Scan(columns=columns, rows=rows, coils=4, noise=0.0, partitions=partitions)
    images, positions = images_of(scan)
    truth = density(scan) * rssq(scan)
    assert positions == pytest.approx([5 * (n - partitions // 2) for n in range(partitions)])
    for image, plane in zip(images, truth, strict=True):
        if np.linalg.norm(plane) > 0.1 * np.linalg.norm(truth):
            assert correlation(image, plane) > 0.9  # sharp edges ring
    error = np.linalg.norm(images - truth)
    for axis in range(3):
        assert error < 0.9 * np.linalg.norm(images - np.flip(truth, axis))


def test_truth_holds_as_much_as_the_object():
    scan = Scan(columns=64, rows=64, coils=1, partitions=16)
    volume = sum(np.pi * s.ellipse.a * s.ellipse.b * s.ellipse.intensity * s.height for s in scan.cylinders)
    assert density(scan).sum() * scan.pixel**2 * 5e-3 == pytest.approx(volume, rel=2e-3)


def test_slices_lie_at_their_positions_and_differ():
    scan = Scan(columns=48, rows=48, coils=4, noise=0.0, slices=5, oversampling=1)
    images, positions = images_of(scan)
    assert positions == pytest.approx([-15, -7.5, 0, 7.5, 15])
    truth = density(scan)
    np.testing.assert_allclose(truth[2], phantom.image(scan.object, (48, 48), (scan.pixel, scan.pixel)), atol=1e-12)
    assert len({plane.tobytes() for plane in truth}) == 5 - 1  # both ends are the skull alone
    for image, plane in zip(images, truth * rssq(scan), strict=True):
        assert correlation(image, plane) > 0.95


def test_the_object_may_be_larger_than_the_field_of_view():
    """The image is the object folded into the field of view along the lines."""
    scan = Scan(columns=60, rows=40, coils=1, noise=0.0, object_size=1.3)
    images, _ = images_of(scan)
    tall = phantom.image(scan.object, (120, 60), (scan.pixel, scan.pixel))
    folded = tall.reshape(3, 40, 60).sum(axis=0)
    assert tall[:40].any()
    assert correlation(images[0], folded) > 0.98


def test_phase_of_the_object_is_smooth_and_of_modulus_one():
    scan = Scan(columns=20, rows=16, coils=2, phase=1.3)
    x, y = phantom.pixel_grid((16, 20), (scan.pixel, scan.pixel))
    factor = np.exp(1.3j * np.sin(np.pi * (x + y) / scan.size + 0.7))
    plain = phantom.ring_of_coils(2, scan.size).maps(x, y)
    np.testing.assert_allclose(maps(scan)[:, 0], plain * factor, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- partial k-space
@pytest.mark.parametrize("missing_end", [False, True])
@pytest.mark.parametrize(("rows", "partitions", "columns"), [(10, 6, 12), (11, 7, 13)])
def test_partial_scan_is_part_of_the_whole_one(rows, partitions, columns, missing_end):
    size = {"columns": columns, "rows": rows, "partitions": partitions, "coils": 2, "noise": 0.0, "oversampling": 1}
    whole, _ = filled(Scan(**size))
    scan = Scan(
        **size, partial_fourier=0.7, slice_partial_fourier=0.8, asymmetric_echo=0.75, missing_end=missing_end
    )  # fmt: skip
    part, count = filled(scan)
    lines, deep = (slice(0, round(0.7 * rows)), slice(0, round(0.8 * partitions)))
    if not missing_end:
        lines, deep = slice(rows - lines.stop, rows), slice(partitions - deep.stop, partitions)
    expected = np.zeros_like(whole)
    skipped = columns - round(0.75 * columns)
    expected[:, deep, lines, skipped:] = whole[:, deep, lines, skipped:]
    np.testing.assert_array_equal(part, expected)
    assert count.max() == 1
    limits = header(scan).encoding[0].encodingLimits
    for limit, number in (
        (limits.kspace_encoding_step_1, lines.stop - lines.start),
        (limits.kspace_encoding_step_2, deep.stop - deep.start),
    ):
        assert (limit.minimum, limit.maximum) == (0, number - 1)
        assert limit.minimum < limit.center < limit.maximum
    assert next(acquisitions(scan)).number_of_samples == columns - skipped


# -------------------------------------------------------------------------------------------------------- acceleration
def test_the_same_lines_in_every_repetition_with_embedded_calibration():
    scan = Scan(**SMALL, repetitions=2, acceleration=3, calibration_width=4, calibration="embedded")
    readouts = list(acquisitions(scan))
    parallel = header(scan).encoding[0].parallelImaging
    assert (parallel.calibrationMode.value, parallel.accelerationFactor.kspace_encoding_step_1) == ("embedded", 3)
    for repetition in range(2):
        rows = {r.idx.kspace_encode_step_1: r for r in readouts if r.idx.repetition == repetition}
        assert list(rows) == [2, 3, 4, 5, 6, 8]
        assert [row for row, r in rows.items() if r.is_flag_set(BOTH)] == [5]
        assert [row for row, r in rows.items() if r.is_flag_set(CALIBRATION)] == [3, 4, 6]
    assert sum(r.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for r in readouts) == 1
    assert header(scan).encoding[0].encodingLimits.repetition.maximum == 1


def test_separate_calibration_lines_come_first_with_another_contrast():
    scan = Scan(**SMALL, slices=2, acceleration=2, calibration_width=4, calibration="separate")
    full = Scan(**SMALL, slices=2)
    exact = {(r.idx.slice, r.idx.kspace_encode_step_1): r.data for r in acquisitions(full)}
    readouts = list(acquisitions(scan))
    assert header(scan).encoding[0].parallelImaging.calibrationMode.value == "separate"
    assert [r.is_flag_set(CALIBRATION) for r in readouts] == [True] * 8 + [False] * 10
    assert not any(r.is_flag_set(BOTH) for r in readouts)
    assert [r.idx.kspace_encode_step_1 for r in readouts] == [3, 4, 5, 6] * 2 + [1, 3, 5, 7, 9] * 2
    for r in readouts:
        factor = 2 if r.is_flag_set(CALIBRATION) else 1
        np.testing.assert_allclose(r.data, factor * exact[r.idx.slice, r.idx.kspace_encode_step_1], rtol=1e-6)


def test_caipirinha_shift():
    """Breuer 2006, 2 x 2 with shift 1: a chessboard of the acquired lines; the k-space centre is one of them."""
    size = {**SMALL, "rows": 8, "partitions": 6}
    scan = Scan(**size, acceleration=2, acceleration_2=2, shift=1, calibration="embedded")
    kspace, count = filled(scan)
    pattern = [
        "..o...o.",
        "o...o...",
        "..o...o.",
        "o...o...",
        "..o...o.",
        "o...o...",
    ]
    assert ["".join(".o"[n] for n in line) for line in count] == pattern
    whole, _ = filled(Scan(**size))
    np.testing.assert_array_equal(kspace, whole * (count > 0)[..., np.newaxis])
    factor = header(scan).encoding[0].parallelImaging.accelerationFactor
    assert (factor.kspace_encoding_step_1, factor.kspace_encoding_step_2) == (2, 2)
    _, plain = filled(Scan(**size, acceleration=2, acceleration_2=2, calibration_width=2, calibration="embedded"))
    block = np.zeros((6, 8), bool)
    block[1::2, ::2] = block[2:4, 3:5] = True
    np.testing.assert_array_equal(plain > 0, block)


def test_the_shift_moves_from_line_to_line_by_itself():
    scan = Scan(**{**SMALL, "rows": 6, "coils": 1}, partitions=9, acceleration_2=3, shift=1, calibration="embedded")
    _, count = filled(scan)
    for row in range(6):
        np.testing.assert_array_equal(np.flatnonzero(count[:, row]), np.arange((4 + row - 3) % 3, 9, 3))


def test_averages_are_the_same_lines_again():
    scan = Scan(**SMALL, averages=2, slices=2)
    readouts = list(acquisitions(scan))
    assert [(r.idx.slice, r.idx.average) for r in readouts[::10]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    np.testing.assert_array_equal(readouts[0].data, readouts[10].data)
    assert header(scan).encoding[0].encodingLimits.average.maximum == 1
    for flag in (ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_LAST_IN_SLICE):
        assert sum(r.is_flag_set(flag) for r in readouts) == 2
    for flag in (ismrmrd.ACQ_FIRST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_REPETITION):
        assert sum(r.is_flag_set(flag) for r in readouts) == 1


# ----------------------------------------------------------------------------------------------------------------- EPI
def epi_parameters(scan):
    description = header(scan).encoding[0].trajectoryDescription
    assert description.identifier == "ConventionalEPI"
    pairs = [*description.userParameterLong, *description.userParameterDouble]
    return {pair.name: pair.value for pair in pairs}


def positions_by_quadrature(p, delay, extent):
    """K of the samples of a line [1/m]: a fine sum over the gradient's course, as the header describes it."""
    time = (np.arange(200_000) + 0.5) * p["echoSpacing"] / 200_000
    corners = np.cumsum([0, p["rampUpTime"], p["flatTopTime"], p["rampDownTime"]])
    gradient = np.interp(time, corners, [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum(gradient)]) * p["echoSpacing"] / 200_000
    edges = np.arange(200_001) * p["echoSpacing"] / 200_000
    window = p["acqDelayTime"] + np.array([0, p["numSamples"] * p["dwellTime"]])
    per_sample = np.diff(np.interp(window, edges, area))[0] / p["numSamples"]
    samples = p["acqDelayTime"] + (np.arange(p["numSamples"]) + 0.5) * p["dwellTime"] - delay
    return (np.interp(samples, edges, area) - area[-1] / 2) / per_sample / extent


@pytest.mark.parametrize(("columns", "rows", "ramp", "dwell"), [(20, 14, 0.29, 3.1), (21, 13, 0.4, 5.0)])
def test_epi_samples_are_exact_where_the_gradient_brings_them(columns, rows, ramp, dwell):
    epi = Epi(delay=0.8, phase=0.4, ramp=ramp)
    scan = Scan(columns=columns, rows=rows, coils=3, noise=0.0, dwell=dwell, epi=epi)
    p = epi_parameters(scan)
    assert p["etl"] == rows
    assert p["numberOfNavigators"] == 3
    assert p["echoSpacing"] == p["rampUpTime"] + p["flatTopTime"] + p["rampDownTime"]
    assert p["acqDelayTime"] + p["numSamples"] * p["dwellTime"] <= p["echoSpacing"]
    kx = positions_by_quadrature(p, epi.delay, scan.samples * scan.pixel)
    assert np.diff(kx).min() < 0.7 * np.diff(kx).max()  # samples are taken on the ramps
    ideal = positions_by_quadrature(p, 0.0, scan.samples * scan.pixel)
    assert ideal == pytest.approx(-ideal[::-1], abs=0.6 * np.diff(ideal).max())
    phase = np.exp(0.4j * (1 + 0.5 * np.sin(np.arange(3))))[:, np.newaxis]
    readouts = list(acquisitions(scan))
    assert [r.is_flag_set(REVERSE) for r in readouts] == [n % 2 == 1 for n in range(rows + 3)]
    for n, readout in enumerate(readouts):
        row = rows // 2 if n < 3 else n - 3
        assert readout.idx.kspace_encode_step_1 == row
        way = -1 if readout.is_flag_set(REVERSE) else 1
        exact = scan.coil_ring.kspace(scan.object, way * kx, (row - rows // 2) / (rows * scan.pixel)) / scan.pixel**2
        exact = exact * phase if way < 0 else exact
        np.testing.assert_allclose(readout.data, exact, atol=1e-5 * np.abs(exact).max())


def test_epi_readouts_look_like_those_of_a_siemens_scanner():
    """Flags and counters as in a converted ep2d_bold: R F R navigators, then lines F R F R ..."""
    scan = Scan(columns=8, rows=6, coils=2, epi=Epi(first_reversed=True))
    readouts = list(acquisitions(scan))

    def flags(readout):
        return {bit for bit in range(1, 65) if readout.is_flag_set(bit)} - {1, 2, 13, 14}

    assert [flags(r) for r in readouts[:5]] == [{7, 22, 24, 28}, {24, 28}, {22, 24, 28}, {7}, {22}]
    assert flags(readouts[-1]) == {8, 22, 25}
    assert [r.idx.segment for r in readouts] == [1, 0] * 4 + [1]
    assert [r.idx.average for r in readouts] == [0, 0, 1] + [0] * 6
    assert [r.idx.kspace_encode_step_1 for r in readouts] == [3, 3, 3, 0, 1, 2, 3, 4, 5]
    assert {r.center_sample for r in readouts} == {8}
    encoding = header(scan).encoding[0]
    assert encoding.trajectory.value == "epi"
    assert (encoding.encodingLimits.segment.minimum, encoding.encodingLimits.segment.maximum) == (0, 1)
    assert set(epi_parameters(scan)) == {
        "etl", "numberOfNavigators", "rampUpTime", "rampDownTime", "flatTopTime", "acqDelayTime", "numSamples",
        "echoSpacing", "dwellTime",
    }  # fmt: skip


def test_the_lobe_of_a_siemens_scan_comes_out_again():
    """80 x 80, dwell 3.1 us, as acquired: ramps of 160, top of 240, samples from 32 us, echo spacing 560 us."""
    lobe = Scan(columns=80, rows=80, dwell=3.1, epi=Epi(ramp=160 / 560)).lobe
    assert (lobe.samples, lobe.echo_spacing) == (160, pytest.approx(560, abs=6))
    assert lobe.ramp_time == pytest.approx(160, abs=3)
    assert lobe.acquisition_delay == pytest.approx(32, abs=3)


def test_shots_of_epi_are_trains_with_navigators_of_their_own():
    scan = Scan(columns=8, rows=7, coils=2, slices=2, epi=Epi(shots=3))
    readouts = list(acquisitions(scan))
    lines = [(r.idx.slice, r.idx.user[0], r.idx.kspace_encode_step_1) for r in readouts if not r.is_flag_set(NAVIGATOR)]
    one = [(0, 0), (0, 3), (0, 6), (1, 1), (1, 4), (2, 2), (2, 5)]
    assert lines == [(0, *line) for line in one] + [(1, *line) for line in one]
    assert sum(r.is_flag_set(NAVIGATOR) for r in readouts) == 2 * 3 * 3
    reversed_ = [r.is_flag_set(REVERSE) for r in readouts[:16]]
    assert reversed_ == [False, True, False, True, False, True] + [False, True, False, True, False] * 2
    assert epi_parameters(scan)["etl"] == 3
    stamps = [r.acquisition_time_stamp for r in readouts]
    assert stamps == sorted(stamps)


def test_accelerated_epi_with_separate_calibration():
    epi = Epi()
    scan = Scan(
        columns=8, rows=12, coils=2, acceleration=2, calibration_width=4, calibration="separate", epi=epi
    )  # fmt: skip
    readouts = list(acquisitions(scan))
    steps = [r.idx.kspace_encode_step_1 for r in readouts]
    assert steps == [6] * 3 + [4, 5, 6, 7] + [6] * 3 + [0, 2, 4, 6, 8, 10]
    assert [r.is_flag_set(CALIBRATION) for r in readouts] == [False] * 3 + [True] * 4 + [False] * 9
    assert epi_parameters(scan)["etl"] == 6


# --------------------------------------------------------------------------------------------------------------- noise
def covariance(samples):
    return samples @ samples.conj().T / samples.shape[1]


def test_noise_has_its_covariance_at_the_bandwidth_of_its_readouts():
    model = Noise(correlation=0.6, readouts=40, dwell=8.0, bandwidth=0.8)
    size = {"columns": 64, "rows": 24, "coils": 4}
    scan = Scan(**size, noise=0.02, noise_scan=True, dwell=2.0, noise_model=model)
    readouts = list(acquisitions(scan))
    expected = noise_covariance(scan)
    mixed = expected / np.sqrt(np.outer(*[np.diagonal(expected).real] * 2))
    assert 0.1 < np.abs(mixed - np.eye(4)).max() < 1
    assert np.diagonal(expected).real.mean() == pytest.approx(2 * 0.02**2 * 24 * 128)
    flagged = [r for r in readouts if r.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert flagged == readouts[:40]
    assert {r.sample_time_us for r in flagged} == {8.0}
    noise = covariance(np.concatenate([r.data for r in flagged], axis=1))
    assert np.linalg.norm(noise * 4 / 0.8 - expected) < 0.04 * np.linalg.norm(expected)
    assert header(scan).acquisitionSystemInformation.relativeReceiverNoiseBandwidth == 0.8
    clean = list(acquisitions(Scan(**size, noise=0.0, dwell=2.0)))
    difference = [r.data - exact.data for r, exact in zip(readouts[40:], clean, strict=True)]
    assert {r.sample_time_us for r in readouts[40:]} == {2.0}
    imaging = covariance(np.concatenate(difference, axis=1))
    assert np.linalg.norm(imaging - expected) < 0.05 * np.linalg.norm(expected)


def test_covariance_has_a_seed_of_its_own():
    def of(**model):
        return noise_covariance(Scan(coils=4, noise_model=Noise(correlation=0.5, **model)))

    assert not np.allclose(of(), of(covariance_seed=1))
    np.testing.assert_array_equal(of(), noise_covariance(Scan(coils=4, seed=3, noise_model=Noise(correlation=0.5))))
    plain = noise_covariance(Scan(coils=4, noise_model=Noise(covariance_seed=5)))
    np.testing.assert_allclose(plain, 2 * 0.01**2 * 256 * 512 * np.eye(4), atol=1e-12)


def test_noise_measurement_of_its_own_is_named_by_the_scan():
    scan = Scan(**{**SMALL, "noise": 0.1}, noise_model=Noise(readouts=3, dependency=True))
    noise = list(noise_acquisitions(scan))
    assert len(noise) == 3
    assert all(r.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) and r.number_of_samples == 24 for r in noise)
    assert not np.array_equal(noise[0].data, noise[1].data)
    (dependency,) = header(scan).measurementInformation.measurementDependency
    assert dependency.dependencyType == "Noise"
    assert dependency.measurementID == noise_header(scan).measurementInformation.measurementID
    assert dependency.measurementID != header(scan).measurementInformation.measurementID
    assert not header(Scan()).measurementInformation.measurementDependency


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"partial_fourier": 0.5}, "partial Fourier is 0.5 of 10"),
        ({"partitions": 4, "slice_partial_fourier": 0.4}, "slice partial Fourier is 0.4 of 4"),
        ({"asymmetric_echo": float("nan")}, "asymmetric echo is nan"),
        ({"acceleration": 6, "partial_fourier": 0.6, "acceleration_2": 1, "rows": 8}, "acceleration is 6"),
        ({"acceleration_2": 2}, "acceleration along the partitions is 2"),
        ({"partitions": 4, "acceleration_2": 2, "shift": 2}, "CAIPIRINHA shift is 2, must be 0 to 1"),
        ({"slices": 2, "partitions": 2}, "not both"),
        ({"calibration": "none"}, "interleaved, embedded, separate"),
        ({"object_size": 0.0}, "object size is 0"),
        ({"epi": Epi(delay=1e3)}, r"EPI delay \[us\] is 1000"),
        ({"epi": Epi(), "dwell": float("inf")}, r"dwell time \[us\] is inf"),
        ({"epi": Epi(ramp=float("nan"))}, "ramp of an EPI line is nan"),
        ({"noise_model": Noise(dwell=0.0)}, "dwell time of noise"),
        ({"epi": Epi(ramp=0.6)}, "ramp of an EPI line is 0.6"),
        ({"epi": Epi(), "asymmetric_echo": 0.8}, "no asymmetric echo"),
        ({"epi": Epi(), "acceleration": 2, "calibration_width": 4}, "must be separate"),
        ({"noise_model": Noise(correlation=1.0)}, "noise correlation is 1"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, text):
    check(Scan(**SMALL))
    with pytest.raises(ValueError, match=text):
        check(Scan(**{**SMALL, **wrong}))
