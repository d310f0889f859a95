import random
import re

import ismrmrd
import numpy as np
import pytest

from cartesian_data import indices, make_header, make_image, make_readout, point_kspace, readouts_of
from recon import cartesian, kspacevolume, mrdencoding


def planes_of(readouts, header):
    warnings = []
    return list(cartesian.sort_readouts(readouts, header, warnings.append)), warnings


def one_plane(readouts, header):
    planes, _ = planes_of(readouts, header)
    assert len(planes) == 1
    return planes[0]


# ------------------------------------------------------------------------------------------------ flags
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], True),
        ([ismrmrd.ACQ_IS_NOISE_MEASUREMENT], False),
        ([ismrmrd.ACQ_IS_PHASECORR_DATA], False),
        ([ismrmrd.ACQ_IS_NAVIGATION_DATA], False),
        ([ismrmrd.ACQ_IS_DUMMYSCAN_DATA], False),
        ([ismrmrd.ACQ_IS_RTFEEDBACK_DATA], False),
        ([ismrmrd.ACQ_IS_HPFEEDBACK_DATA], False),
        ([ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA], False),
        ([ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], False),
        ([ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING], True),
        ([ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING], True),
        ([ismrmrd.ACQ_IS_REVERSE, ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_USER8], True),
    ],
)
def test_is_imaging(flags, expected):
    readout = make_readout(np.ones((1, 4)), flags=flags)
    assert cartesian.is_imaging(readout) is expected
    assert cartesian.is_imaging(readout.getHead()) is expected


@pytest.mark.parametrize(
    ("mode", "used", "told"),
    [("embedded", True, False), ("interleaved", True, False), ("separate", False, False), ("external", False, False),
     ("other", False, True), (None, False, True)],
)  # fmt: skip
def test_calibration_lines_belong_into_the_image_by_the_mode_of_the_header(mode, used, told):
    header = make_header((4, 5, 1), calibration=mode, acceleration=2, kspace_encoding_step_1=(0, 4, 2))
    readouts = [make_readout(np.full(4, 1 + row), row=row) for row in (0, 2, 4)]
    readouts += [make_readout(np.full(4, 7), row=row, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]) for row in (1, 3, 3)]
    flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PHASECORR_DATA]
    readouts.append(make_readout(np.full(4, 9), row=1, flags=flags))
    planes, warnings = planes_of(readouts, header)
    assert planes[0].kspace[0, :, 0, 0].tolist() == ([1, 7, 3, 7, 5] if used else [1, 0, 3, 0, 5])
    assert any("aliasing" in text for text in warnings) is not used
    assert [text for text in warnings if f"calibrationMode is {mode or 'absent'}" in text] == warnings[:1] * told


def test_calibration_lines_of_another_encoding_space_follow_its_own_mode():
    header = make_header((4, 3, 1), calibration="embedded")
    header.encoding += make_header((4, 3, 1), calibration="separate").encoding
    readouts = readouts_of(np.full((3, 4), 2.0))
    readouts += readouts_of(np.full((3, 4), 9.0), encoding_space_ref=1, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
    planes, warnings = planes_of(readouts, header)
    assert len(planes) == 1
    np.testing.assert_allclose(planes[0].kspace, 2)
    assert not warnings


def test_readouts_of_another_encoding_space_are_an_image_of_their_own():
    header = make_header((4, 3, 1))
    header.encoding += make_header((6, 5, 1)).encoding
    planes, warnings = planes_of(
        readouts_of(np.full((3, 4), 2.0)) + readouts_of(np.full((5, 6), 9.0), encoding_space_ref=1), header
    )
    assert [plane.kspace.shape[1:3] for plane in planes] == [(3, 4), (5, 6)]
    assert [np.unique(plane.kspace).tolist() for plane in planes] == [[2], [9]]
    assert not warnings


# -------------------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize("vendor", ["SIEMENS", "Siemens Healthineers", "GE", None])
@pytest.mark.parametrize(
    ("encoded", "recon"),
    [((16, 16), (16, 16)), ((15, 15), (15, 15)), ((32, 12), (16, 12)), ((30, 13), (15, 11)), ((14, 9), (7, 9)),
     ((18, 21), (9, 14))],
)  # fmt: skip
@pytest.mark.parametrize("zero_fill", [1, 2])
def test_points_are_where_they_belong(vendor, encoded, recon, zero_fill):
    """Point objects on pixel centres: each must light up its pixel, and (without zero-filling) no other."""
    pixel = 2.0
    fov = (encoded[0] * pixel, encoded[1] * pixel)
    matrix = (recon[0] * zero_fill, recon[1] * zero_fill)
    recon_fov = (recon[0] * pixel, recon[1] * pixel)
    header = make_header((*encoded, 1), (*matrix, 1), (*fov, 5), (*recon_fov, 5), vendor=vendor,
                         kspace_encoding_step_1=(0, encoded[1] - 1, encoded[1] // 2))  # fmt: skip
    points = [(0, 0, 1.0), (2 * pixel, 0, 2.0), (-pixel, 3 * pixel, 3.0), (pixel, -2 * pixel, 1.5)]
    kspace = point_kspace(points, (encoded[1], encoded[0]), fov)
    plane = one_plane(readouts_of(kspace), header)
    image = cartesian.to_image(plane)[0, :, :, 0]

    assert image.shape == (matrix[1], matrix[0])
    sign = -1 if vendor and "siemens" in vendor.lower() else 1
    expected = np.zeros(image.shape)
    for x, y, amplitude in points:
        row = matrix[1] // 2 + sign * round(y / pixel * zero_fill)
        column = matrix[0] // 2 + sign * round(x / pixel * zero_fill)
        expected[row, column] = amplitude
    if zero_fill == 1:
        np.testing.assert_allclose(image, expected, atol=2e-6)
    else:
        lit = expected > 0
        np.testing.assert_allclose(image[lit], expected[lit], atol=2e-6)  # the scale does not change
        row, column = np.unravel_index(np.argmax(np.abs(image)), image.shape)
        assert expected[row, column] == 3.0


@pytest.mark.parametrize("vendor", ["SIEMENS", "GE"])
@pytest.mark.parametrize(("encoded", "recon"), [((16, 10), (20, 25)), ((15, 11), (8, 22)), ((24, 14), (12, 14))])
def test_to_recon_space_is_to_image(vendor, encoded, recon):
    rng = np.random.default_rng(1)
    header = make_header((*encoded, 1), (*recon, 1), (48, 28, 5), (24, 28, 5), vendor=vendor)
    kspace = rng.standard_normal((2, encoded[1], encoded[0])) + 1j * rng.standard_normal((2, encoded[1], encoded[0]))
    plane = one_plane(readouts_of(kspace), header)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(plane.kspace, axes=(1, 2)), axes=(1, 2)), axes=(1, 2))
    np.testing.assert_allclose(cartesian.to_recon_space(image, plane), cartesian.to_image(plane), atol=1e-6)


def test_interpolated_pixels_show_the_band_limited_object():
    """Odd to even, anisotropic zero-filling, against the direct Fourier sum at each pixel."""
    header = make_header((9, 7, 1), (14, 10, 1), (90, 70, 5), (90, 70, 5), vendor="Siemens")
    kspace = point_kspace([(13.0, -11.0, 1.0), (-20.0, 5.0, 2.0)], (7, 9), (90, 70))
    image = cartesian.to_image(one_plane(readouts_of(kspace), header))[0, :, :, 0]
    x, y = -indices(14) * 90 / 14, -indices(10) * 70 / 10
    kx, ky = indices(9) / 90, indices(7) / 70
    expected = np.exp(2j * np.pi * np.outer(y, ky)) @ kspace @ np.exp(2j * np.pi * np.outer(kx, x)) / kspace.size
    np.testing.assert_allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize("fov", [(0, 0, 0), (float("nan"), 0, 0), (-5, 10, 1)])
def test_without_field_of_view_the_matrix_is_cropped_only(fov):
    header = make_header((12, 10, 1), (8, 10, 1), fov, fov)
    header.encoding[0].encodedSpace.fieldOfView_mm.y = 0.0
    image = cartesian.to_image(one_plane(readouts_of(point_kspace([(2, 1, 1.0)], (10, 12), (12, 10))), header))
    expected = np.zeros((10, 8))
    expected[6, 6] = 1
    np.testing.assert_allclose(image[0, :, :, 0], expected, atol=1e-6)


# ------------------------------------------------------------------------------------------- placement
def test_limits_place_partial_fourier_and_order_does_not_matter():
    kspace = point_kspace([(1, 2, 1.0), (-3, 1, 0.5)], (12, 10), (10, 12))
    header = make_header((10, 12, 1), kspace_encoding_step_1=(0, 8, 3))  # rows 3 to 11 were acquired, the centre is 6
    readouts = readouts_of(kspace[3:])
    random.Random(1).shuffle(readouts)
    plane = one_plane(readouts, header)
    np.testing.assert_allclose(plane.kspace[0, 3:, :, 0], kspace[3:], atol=1e-6)
    assert not plane.kspace[0, :3].any()
    assert plane.head.idx.kspace_encode_step_1 == 3  # the representative is the line at k = 0
    assert cartesian.missing_lines(plane) is None


def test_centre_that_was_never_set_is_ignored():
    kspace = point_kspace([(1, 2, 1.0)], (12, 10), (10, 12))
    plane = one_plane(readouts_of(kspace), make_header((10, 12, 1), kspace_encoding_step_1=(0, 11, 0)))
    np.testing.assert_allclose(plane.kspace[0, :, :, 0], kspace, atol=1e-6)


def test_asymmetric_echo_discards_and_reversed_readouts():
    full = np.exp(1j * np.arange(16))  # k = 0 at sample 8
    header = make_header((16, 4, 1))
    readouts = [
        make_readout(full[4:], row=0, center=4),
        make_readout(np.r_[99, 99, full[4:], 99], row=1, center=6, discard_pre=2, discard_post=1),
        make_readout(full[4:][::-1], row=2, center=4, flags=[ismrmrd.ACQ_IS_REVERSE]),
        make_readout(np.r_[99, full[::-1], 99, 99], row=3, center=10, discard_pre=1, discard_post=2,
                     flags=[ismrmrd.ACQ_IS_REVERSE]),
    ]  # fmt: skip
    plane = one_plane(readouts, header)
    for row in range(3):
        np.testing.assert_allclose(plane.kspace[0, row, 4:, 0], full[4:], atol=1e-6)
        assert not plane.kspace[0, row, :4].any()
    np.testing.assert_allclose(plane.kspace[0, 3, :, 0], full, atol=1e-6)


def test_centre_sample_that_was_never_set():
    plane = one_plane([make_readout(np.arange(16), row=0, center=0)], make_header((16, 4, 1)))
    np.testing.assert_array_equal(plane.kspace[0, 0, :, 0], np.arange(16))


@pytest.mark.parametrize("center", [8, 16])
def test_removed_oversampling_is_recognised(center):
    """The header still tells of 32 samples over 64 mm; the readouts have 16 over 32 mm."""
    header = make_header((32, 8, 1), (16, 8, 1), (64, 16, 5), (32, 16, 5), vendor="GE")
    kspace = point_kspace([(4.0, -2.0, 1.0)], (8, 16), (32, 16))
    plane = one_plane(readouts_of(kspace, center=center), header)
    expected = np.zeros((8, 16))
    expected[3, 10] = 1
    np.testing.assert_allclose(cartesian.to_image(plane)[0, :, :, 0], expected, atol=1e-6)


def test_averages_and_segments_are_merged_by_their_mean():
    header = make_header((4, 2, 1))
    readouts = [make_readout(np.full(4, value), row=0, average=a) for a, value in enumerate((1, 2, 6))]
    readouts += [make_readout(np.full(2, 5), row=1, center=0, segment=1), make_readout(np.full(4, 1), row=1)]
    plane = one_plane(readouts, header)
    np.testing.assert_allclose(plane.kspace[0, 0, :, 0], 3)
    np.testing.assert_allclose(plane.kspace[0, 1, :, 0], [1, 1, 3, 3])
    np.testing.assert_array_equal(plane.sampled, [[[3], [2]]])


def test_counters_make_planes_and_phases():
    header = make_header((4, 2, 1))
    readouts = [
        make_readout(np.full(4, 100 * s + 10 * c + p), row=row, slice=s, contrast=c, phase=p)
        for row in range(2)
        for p in (0, 5)
        for c in range(2)
        for s in (1, 0)
    ]
    planes, warnings = planes_of(readouts, header)
    assert [(p.head.idx.slice, p.head.idx.contrast) for p in planes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for plane in planes:
        assert plane.kspace.shape == (1, 2, 4, 2)
        assert [head.idx.phase for head in plane.heads] == [0, 5]
        value = 100 * plane.head.idx.slice + 10 * plane.head.idx.contrast
        np.testing.assert_allclose(plane.kspace[..., 0], value)
        np.testing.assert_allclose(plane.kspace[..., 1], value + 5)
    assert not warnings


def test_readouts_outside_the_matrix_are_reported_not_wrapped():
    header = make_header((8, 4, 1), kspace_encoding_step_1=(0, 3, 2))
    good = readouts_of(np.ones((4, 8)))
    bad = [
        make_readout(np.full(8, 9.0), row=4),
        make_readout(np.full(8, 9.0), row=65535),
        make_readout(np.full(8, 9.0), row=0, partition=3),
        make_readout(np.full(12, 1.0), row=1),
    ]
    planes, warnings = planes_of(good + bad, header)
    np.testing.assert_allclose(planes[0].kspace, 1)
    assert len(warnings) == 1
    assert warnings[0].startswith("4 readouts")


def test_readouts_that_all_lie_outside_the_matrix_are_an_error_that_says_where_they_lie():
    header = make_header((8, 4, 1), kspace_encoding_step_1=(0, 3, 2))
    with pytest.raises(ValueError, match=r"none of 2 readouts .*_encode_step_1 is 40 where 0 to 3 would be right"):
        planes_of([make_readout(np.ones(8), row=row) for row in (40, 41)], header)
    with pytest.raises(ValueError, match=r"kspace_encode_step_2 is 5 where 0 to 0 would be"):
        planes_of([make_readout(np.ones(8), partition=5)], header)
    with pytest.raises(ValueError, match=r"samples begin at column 15 of 8"):
        planes_of([make_readout(np.ones(20), center=1, discard_pre=12)], header)


def test_a_slice_that_lies_outside_the_matrix_gives_no_black_image():
    header = make_header((8, 4, 1), kspace_encoding_step_1=(0, 3, 2))
    planes, warnings = planes_of([*readouts_of(np.ones((4, 8))), make_readout(np.ones(8), row=99, slice=1)], header)
    assert [plane.head.idx.slice for plane in planes] == [0]
    (warning,) = warnings
    assert warning.startswith("an image is not made: none of 1 readouts has a place in the matrix")


def test_a_cardiac_phase_that_lies_outside_the_matrix_does_not_stop_the_others():
    header = make_header((8, 4, 1), kspace_encoding_step_1=(0, 3, 2))
    planes, warnings = planes_of([*readouts_of(np.ones((4, 8))), make_readout(np.ones(8), row=99, phase=1)], header)
    np.testing.assert_allclose(planes[0].kspace[..., 0], 1)
    assert [text[:10] for text in warnings] == ["1 readouts"]


@pytest.mark.parametrize(
    ("rows", "limits", "text"),
    [
        (range(16), (0, 15, 8), None),
        (range(4, 13), (0, 8, 4), None),  # the protocol's resolution: the limits promise no more
        (range(4, 12), (0, 15, 8), "8 of 16 phase encoding lines were acquired, those about the k-space centre: "),
        (range(5, 16), (0, 15, 8), "11 of 16 phase encoding lines were acquired, more on one side"),
        (range(5, 16), None, "11 of 16 phase encoding lines were acquired, more on one side"),
        (range(8), (0, 15, 8), "8 of 16 phase encoding lines were acquired, without the k-space centre"),
        ([0, 2, 4, 6, 8, 10, 12, 14], (0, 15, 8), "8 of 16 phase encoding lines were acquired: .* expect aliasing"),
        ([4, 6, 8, 10, 12], (0, 15, 8), "5 of 16 phase encoding lines were acquired: .* expect aliasing"),
        ([8, 11, 14], (0, 0, 0), "3 of 7 phase encoding lines were acquired: .* expect aliasing"),  # limits never set
    ],
)
def test_what_missing_lines_do_is_said(rows, limits, text):
    first = 8 - limits[2] if limits else 0
    header = make_header((4, 16, 1), **({} if limits is None else {"kspace_encoding_step_1": limits}))
    planes, warnings = planes_of([make_readout(np.ones(4), row=row - first) for row in rows], header)
    assert len(warnings) == (text is not None)
    assert text is None or re.search(text, warnings[0])
    assert np.flatnonzero(planes[0].kspace[0, :, 0, 0]).tolist() == list(rows)


def test_missing_lines_of_a_slab():
    """Acceleration along the partitions, a shifted pattern, half of the partitions; corners are left out on purpose."""
    header = make_header((2, 6, 6), acceleration=2, kspace_encoding_step_1=(0, 5, 3), kspace_encoding_step_2=(0, 5, 3))

    def warning(chosen):
        places = [(y, z) for z in range(6) for y in range(6) if chosen(y, z)]
        return planes_of([make_readout(np.ones(2), row=y, partition=z) for y, z in places], header)[1]

    assert "18 of 36 phase encoding lines were acquired (acceleration 2 x 1)" in warning(lambda y, z: z % 2 == 0)[0]
    assert "expect aliasing" in warning(lambda y, z: (y + z) % 2 == 0)[0]
    assert "24 of 36 phase encoding lines were acquired, more on one side" in warning(lambda y, z: z < 4)[0]
    assert not warning(lambda y, z: (y - 2.5) ** 2 + (z - 2.5) ** 2 < 10)


def test_missing_lines_are_reported_once():
    header = make_header((8, 8, 1), acceleration=2, kspace_encoding_step_1=(0, 7, 4), repetition=(0, 1, 0))
    readouts = [make_readout(np.ones(8), row=row, repetition=r) for r in range(2) for row in range(r, 8, 2)]
    planes, warnings = planes_of(readouts, header)
    assert len(planes) == 2
    assert len(warnings) == 1
    assert "4 of 8" in warnings[0]
    assert "acceleration 2" in warnings[0]


def test_a_readout_with_other_channels_is_named():
    readouts = [make_readout(np.ones((2, 4)), row=0, counter=1), make_readout(np.ones((3, 4)), row=1, counter=2)]
    with pytest.raises(ValueError, match="scan_counter 2 has 3 channels; those before it have 2"):
        planes_of(readouts, make_header((4, 2, 1)))


def test_other_items_are_ignored_and_images_refused():
    header = make_header((4, 2, 1))
    noise = make_readout(np.ones((7, 99)), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    plane = one_plane([noise, None, "text", ismrmrd.Waveform(), *readouts_of(np.ones((2, 4)))], header)
    np.testing.assert_allclose(plane.kspace, 1)
    with pytest.raises(TypeError, match="image"):
        planes_of([make_image(np.zeros((2, 2), np.int16))], header)


# -------------------------------------------------------------------------------------------- streaming
def test_complete_repetitions_come_while_the_scan_goes_on():
    header = make_header((4, 2, 1), kspace_encoding_step_1=(0, 1, 1), slice=(0, 1, 0), repetition=(0, 2, 0))
    taken = []

    def scan():
        for repetition in range(3):
            for row in range(2):
                for s in range(2):
                    taken.append((repetition, row, s))
                    yield make_readout(np.full(4, repetition), row=row, slice=s, repetition=repetition)

    seen = []
    for planes in cartesian.sort_repetitions(scan(), header):
        seen.append(len(taken))
        assert [plane.head.idx.slice for plane in planes] == [0, 1]
        np.testing.assert_allclose(planes[0].kspace, planes[0].head.idx.repetition)
    assert seen == [6, 10, 12]  # each slice when its next repetition has begun


def test_interleaved_or_shuffled_repetitions_are_not_torn_apart():
    header = make_header((4, 4, 1), kspace_encoding_step_1=(0, 3, 2), repetition=(0, 2, 0))
    readouts = [make_readout(np.full(4, r), row=row, repetition=r) for row in range(4) for r in range(3)]
    for order in (readouts, random.Random(2).sample(readouts, len(readouts))):
        planes, warnings = planes_of(order, header)
        repetitions = [plane.head.idx.repetition for plane in planes]
        assert repetitions == [0, 1, 2] if order is readouts else sorted(repetitions) == [0, 1, 2]
        assert not warnings
        for plane in planes:
            np.testing.assert_allclose(plane.kspace, plane.head.idx.repetition)
            np.testing.assert_array_equal(plane.sampled, 1)


# ----------------------------------------------------------------------------------------------- three dimensions
@pytest.mark.parametrize("vendor", ["SIEMENS", "GE"])
def test_partitions_of_a_slab(vendor):
    """A point at a known place; 6 encoded partitions of 2 mm, of which 4 are kept."""
    nx, ny, nz = 8, 7, 6
    header = make_header((nx, ny, nz), (nx, ny, 4), (8, 7, 12), (8, 7, 8), vendor=vendor,
                         kspace_encoding_step_2=(0, 5, 3), kspace_encoding_step_1=(0, 6, 3))  # fmt: skip
    x, y, z = 2.0, 1.0, 2.0
    kz, ky, kx = np.meshgrid(indices(nz) / 12, indices(ny) / 7, indices(nx) / 8, indexing="ij")
    kspace = np.exp(-2j * np.pi * (kx * x + ky * y + kz * z))
    readouts = [
        make_readout(kspace[partition, row], row=row, partition=partition)
        for partition in range(nz)
        for row in range(ny)
    ]
    planes, warnings = planes_of(readouts, header)
    assert not warnings
    assert [plane.head.idx.slice for plane in planes] == [0, 1, 2, 3]
    assert [plane.head.position[2] for plane in planes] == [3 - 4, 3 - 2, 3, 3 + 2]
    assert planes[0].field_of_view == (8, 7, 2)
    volume = np.stack([cartesian.to_image(plane)[0, :, :, 0] for plane in planes])
    sign = -1 if vendor == "SIEMENS" else 1
    expected = np.zeros((4, ny, nx))
    expected[2 + sign, 3 + sign, 4 + 2 * sign] = 1
    np.testing.assert_allclose(volume, expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ hostile headers
def test_without_mrd_header_it_says_so():
    with pytest.raises(ValueError, match="needs a valid MRD header"):
        planes_of([make_readout(np.ones(4))], "no header")


def test_sizes_are_bounded(monkeypatch):
    readout = [make_readout(np.ones(4))]
    with pytest.raises(ValueError, match=r"encodedSpace.matrixSize.x is 65535; expected 1 to"):
        planes_of(readout, make_header((65535, 4, 1)))
    with pytest.raises(ValueError, match=r"reconSpace.matrixSize.y is 0"):
        planes_of(readout, make_header((4, 4, 1), (4, 0, 1)))
    with pytest.raises(ValueError, match="matrix x of the field of view"):
        planes_of(readout, make_header((4, 4, 1), (4, 4, 1), (1e30, 4, 1), (1, 4, 1)))
    monkeypatch.setattr(kspacevolume, "MAX_POINTS", 1000)
    with pytest.raises(ValueError, match="beyond 1000 points"):
        planes_of(readout, make_header((32, 32, 1)))


def test_unknown_encoding_space_and_trajectory():
    with pytest.raises(ValueError, match="encoding space 3; the header has 1"):
        planes_of([make_readout(np.ones(4), encoding_space_ref=3)], make_header((4, 4, 1)))
    header = make_header((4, 4, 1))
    header.encoding[0].trajectory = "Cartesian"  # the schema's library passes on what is none of its words
    assert len(planes_of(readouts_of(np.ones((4, 4))), header)[0]) == 1


@pytest.mark.parametrize(
    ("trajectory", "right"),
    [("epi", "cartesian_recon reconstructs EPI"), ("radial", "simplenufft"), ("goldenangle", "simplenufft"),
     ("spiral", "simplenufft"), ("other", "simplenufft")],
)  # fmt: skip
def test_a_trajectory_that_is_not_cartesian_is_refused_at_its_first_readout(trajectory, right):
    def scan():
        yield make_readout(np.ones(4))
        pytest.fail("asked for more")

    with pytest.raises(ValueError, match=f"trajectory is '{trajectory}', .* needs 'cartesian'; {right}"):
        planes_of(scan(), make_header((4, 4, 1), trajectory=trajectory))


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(1, np.nan)])
def test_a_readout_that_is_not_finite_is_left_out_and_told(value):
    """It would make the whole image black; its line is missing instead."""
    readouts = readouts_of(np.ones((4, 8)))
    readouts[2].data[0, 3] = value
    (plane,), warnings = planes_of(readouts, make_header((8, 4, 1), kspace_encoding_step_1=(0, 3, 2)))
    assert plane.sampled.ravel().tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(plane.kspace[0, [0, 1, 3], :, 0], 1)
    assert not plane.kspace[0, 2].any()
    first, total, missing = warnings
    assert first.startswith("readout 3 is left out: its samples are not finite")
    assert total == "1 of 4 imaging readouts hold samples that are not finite: they are left out"
    assert "3 of 4 phase encoding lines were acquired" in missing


def test_a_scan_of_nothing_finite_is_an_error():
    readouts = readouts_of(np.full((4, 8), np.nan))
    with pytest.raises(ValueError, match="4 of 4 imaging readouts hold samples that are not finite"):
        planes_of(readouts, make_header((8, 4, 1)))


def test_a_header_without_trajectory_is_named():
    header = make_header((4, 4, 1))
    header.encoding[0].trajectory = None
    with pytest.raises(ValueError, match="the header names no trajectory"):
        planes_of([make_readout(np.ones(4))], header)


def with_trajectory(k):
    readout = ismrmrd.Acquisition.from_array(np.ones((1, len(k)), np.complex64), k.astype(np.float32))
    readout.center_sample = len(k) // 2
    return readout


def test_spokes_in_a_scan_that_the_header_calls_cartesian_are_refused():
    line = np.linspace(-0.5, 0.5, 16)
    header = make_header((16, 8, 1))

    def spokes(*angles):
        return [with_trajectory(np.outer(line, (np.cos(angle), np.sin(angle)))) for angle in angles]

    with pytest.raises(ValueError, match="has another direction than those before, as in a radial scan"):
        planes_of(spokes(0, 0.4), header)
    planes_of(spokes(0, np.pi, 1e-4), header)  # reversed lines, and what rounding does


def test_the_trajectory_of_discarded_samples_does_not_count():
    k = np.stack([np.r_[np.zeros(4), np.linspace(-0.5, 0.5, 16)], np.zeros(20)], axis=1)
    readout = with_trajectory(k)
    readout.discard_pre, readout.center_sample = 4, 12
    planes_of([readout], make_header((16, 4, 1)))


def test_a_trajectory_in_the_readouts_must_be_cartesian():
    """A spiral and a ramp-sampled readout in a scan that the header calls Cartesian, and lines that are."""
    header, angle, line = make_header((64, 4, 1)), np.linspace(0, 20, 64), np.linspace(-0.5, 0.5, 64)
    spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1)
    ramps = np.stack([np.sin(np.pi * line), np.zeros(64)], axis=1)
    for k in (spiral, ramps, spiral - spiral[::-1]):
        with pytest.raises(ValueError, match="no straight line with samples at equal distances"):
            planes_of([with_trajectory(k)], header)
    noisy = line + np.random.default_rng(1).normal(0, 1e-3, 64)
    for k in (line, noisy, line[::-1], np.zeros(64), np.full(64, np.nan)):
        assert len(planes_of([with_trajectory(np.stack([k, np.full(64, 0.2)], axis=1))], header)[0]) == 1


def test_orientation_is_decided_by_the_vendor():
    assert mrdencoding.is_mirrored(make_header(vendor="SIEMENS"))
    assert not mrdencoding.is_mirrored(make_header(vendor="Philips"))
    assert not mrdencoding.is_mirrored("no header")
