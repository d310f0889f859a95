"""Headers, flags and orders of readouts that real scanners and converters send, through the whole module."""

import copy
import itertools

import ismrmrd
import numpy as np
import pytest

from cartesian_scans import EMBEDDED, SEPARATE, SMALL, error, reconstruct, truth, warnings
from mrdio.dependencies import Dependency
from recon.calibrationlines import CalibrationLines
from recon.sampling import IrregularSamplingError, find_lattice
from recon.volumes import sort_volumes
from simulation import cartesiansimulation as simulation
from simulation.cartesiansimulation import Epi, Noise, Scan

LIMIT = 0.08
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
TWO_FOLD = Scan(**SMALL, acceleration=2, **EMBEDDED)
UNCALIBRATED = Scan(**SMALL, acceleration=2, calibration="embedded", calibration_width=0)


def readouts_of(scan):
    return list(simulation.acquisitions(scan))


def copied(readout, scale=1, **counters):
    """Copy of a readout with other counters."""
    made = ismrmrd.Acquisition(readout.getHead(), (scale * readout.data).astype(np.complex64))
    for name, value in counters.items():
        setattr(made.idx, name, value)
    return made


def is_calibration(readout):
    return readout.is_flag_set(CALIBRATION)


# --------------------------------------------------------------------------------------------- headers that say little
@pytest.mark.parametrize("acceleration", [2, 3])
@pytest.mark.parametrize("mode", [None, "separate", "other"])
def test_embedded_lines_calibrate_whatever_the_header_calls_them(mode, acceleration):
    scan = Scan(**SMALL, acceleration=acceleration, **EMBEDDED)
    header = simulation.header(scan)
    if mode is None:
        header.encoding[0].parallelImaging = None
    else:
        header.encoding[0].parallelImaging.calibrationMode = ismrmrd.xsd.calibrationModeType(mode)
    connection = reconstruct(scan, header=header)
    assert error(connection, truth(scan)) < LIMIT
    assert not warnings(connection)


@pytest.mark.parametrize("scan", [Scan(**SMALL), Scan(**SMALL, acceleration=2, **SEPARATE)], ids=["full", "separate"])
@pytest.mark.parametrize("part", ["encodingLimits", "fieldOfView_mm"])
def test_header_without_limits_or_field_of_view(scan, part):
    header = simulation.header(scan)
    encoding = header.encoding[0]
    setattr(encoding if part == "encodingLimits" else encoding.encodedSpace, part, None)
    assert error(reconstruct(scan, header=header), truth(scan)) < LIMIT


def test_number_of_slices_in_the_place_of_partitions():
    scan = Scan(**SMALL, slices=4)
    header = simulation.header(scan)
    for space in (header.encoding[0].encodedSpace, header.encoding[0].reconSpace):
        space.matrixSize.z = 4
    connection = reconstruct(scan, header=header)
    assert error(connection, truth(scan)) < LIMIT
    positions = [image.position[2] for image in connection.images]
    np.testing.assert_allclose(positions, [image.position[2] for image in reconstruct(scan).images])
    (text,) = warnings(connection)
    assert "encodedSpace.matrixSize.z is 4" in text


def test_slab_of_one_readout_stays_a_slab():
    scan = Scan(columns=16, rows=16, partitions=8, coils=2)
    (volume,) = sort_volumes(readouts_of(scan)[:1], simulation.header(scan))
    assert volume.partitions.points == 8


def test_centre_that_ignores_partial_fourier_is_corrected():
    for options in ({}, {"acceleration": 2, **EMBEDDED}):
        scan = Scan(**SMALL, partial_fourier=0.75, **options)
        header = simulation.header(scan)
        header.encoding[0].encodingLimits.kspace_encoding_step_1.center = 40
        connection = reconstruct(scan, header=header)
        assert error(connection, truth(scan)) < LIMIT
        assert any("center is 40, but the k-space centre is at" in text for text in warnings(connection))


def test_oversampling_removed_on_the_way_and_the_centre_unset():
    scan = Scan(**SMALL)
    readouts = []
    for each in readouts_of(scan):
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(each.data, axes=1)), axes=1)[:, 36:108]
        head = each.getHead()
        head.number_of_samples, head.center_sample = 72, 0
        data = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1)), axes=1)
        readouts.append(ismrmrd.Acquisition(head, data.astype(np.complex64)))
    assert error(reconstruct(scan, readouts), truth(scan)) < LIMIT


def test_slices_excited_together_are_told_of():
    header = simulation.header(Scan(**SMALL))
    header.encoding[0].parallelImaging.multiband = ismrmrd.xsd.multibandType(
        multiband_factor=2, deltaKz=1.0, calibration=ismrmrd.xsd.multibandCalibrationType.OTHER, calibration_encoding=0
    )
    (text,) = warnings(reconstruct(Scan(**SMALL), header=header))
    assert "multiband_factor is 2" in text


def test_volume_that_the_memory_cannot_hold_is_refused_at_its_first_readout():
    header = simulation.header(Scan(**SMALL))
    header.encoding[0].encodedSpace.matrixSize.y = header.encoding[0].encodedSpace.matrixSize.z = 8000
    header.encoding[0].encodingLimits.kspace_encoding_step_2.maximum = 7999
    readouts = iter(readouts_of(Scan(**SMALL)))
    with pytest.raises(ValueError, match="are the most that this machine has memory for"):
        reconstruct(Scan(**SMALL), readouts, header)
    assert len(list(readouts)) == 79


# ----------------------------------------------------------------------------------------------- order of the readouts
@pytest.mark.parametrize("by_shot", [False, True])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_slab_whose_partitions_or_shots_end_with_a_flag(acceleration, by_shot):
    kind = EMBEDDED | {"calibration_width": 12} if acceleration > 1 else {}
    scan = Scan(columns=36, rows=40, coils=8, partitions=10, acceleration=acceleration, noise=0.001, **kind)
    order = readouts_of(scan)
    counters = ["kspace_encode_step_1", "kspace_encode_step_2"] if by_shot else ["kspace_encode_step_2", "slice"]
    order.sort(key=lambda each: getattr(each.idx, counters[0]))
    for each, after in itertools.pairwise(order):
        each.clear_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        if getattr(each.idx, counters[0]) != getattr(after.idx, counters[0]):
            each.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    connection = reconstruct(scan, order)
    assert len(connection.images) == 10
    assert error(connection, truth(scan)) < LIMIT
    assert not warnings(connection)


def test_first_slice_without_signal_does_not_set_the_brightness():
    scan = Scan(**SMALL, slices=3)
    order = [copied(each, scale=1e-3 if each.idx.slice == 0 else 1) for each in readouts_of(scan)]
    connection = reconstruct(scan, order)
    connection.images = connection.images[1:]
    assert error(connection, truth(scan)[1:]) < LIMIT
    assert not warnings(connection)


def test_few_lines_after_their_image_make_no_further_one():
    readouts = readouts_of(Scan(**SMALL))
    connection = reconstruct(Scan(**SMALL), [*readouts, *map(copied, readouts[30:35])])
    assert error(connection, truth(Scan(**SMALL))) < LIMIT
    (text,) = warnings(connection)
    assert text.startswith("5 readouts came after the image")


def test_scan_of_another_coil_comes_first():
    scan = Scan(**SMALL)
    header = simulation.header(scan)
    header.encoding.append(copy.deepcopy(header.encoding[0]))
    body = [copied(each, set=1) for each in readouts_of(Scan(**SMALL | {"coils": 2}))]
    for each in body:
        each.encoding_space_ref = 1
    connection = reconstruct(scan, body + readouts_of(scan), header)
    assert [image.data.shape for image in connection.images] == [(1, 1, 80, 72)] * 2
    connection.images = [each for each in connection.images if each.set == 0]
    assert error(connection, truth(scan)) < LIMIT


def test_averages_that_the_header_does_not_tell_of_in_repetitions_of_one_slice_after_the_other():
    scan = Scan(**SMALL, slices=2, repetitions=2, averages=2)
    header = simulation.header(scan)
    header.encoding[0].encodingLimits.average = None
    order = sorted(readouts_of(scan), key=lambda each: (each.idx.slice, each.idx.repetition, each.idx.average))
    connection = reconstruct(scan, order, header)
    assert len(connection.images) == 4
    assert not warnings(connection)


@pytest.mark.parametrize("repetitions", [1, 2])
@pytest.mark.parametrize("kind", [EMBEDDED, SEPARATE], ids=["embedded", "separate"])
def test_calibration_lines_after_those_of_the_image(kind, repetitions):
    scan = Scan(**SMALL, slices=2, repetitions=repetitions, acceleration=2, **kind)
    order = sorted(readouts_of(scan), key=lambda each: (each.idx.repetition, each.idx.slice, is_calibration(each)))
    connection = reconstruct(scan, order)
    connection.images.sort(key=lambda image: (image.repetition, image.slice))
    assert error(connection, np.tile(truth(scan), (repetitions, 1, 1))) < LIMIT
    assert not warnings(connection)


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize("limit", [False, True])
def test_cardiac_phases(by_line, limit):
    header = simulation.header(TWO_FOLD)
    if limit:
        header.encoding[0].encodingLimits.phase = ismrmrd.xsd.limitType(minimum=0, maximum=3, center=0)
    order = [copied(each, phase=phase) for phase in range(4) for each in readouts_of(TWO_FOLD)]
    if by_line:
        order.sort(key=lambda each: each.idx.kspace_encode_step_1)
    connection = reconstruct(TWO_FOLD, order, header)
    assert sorted(image.phase for image in connection.images) == [0, 1, 2, 3]
    assert error(connection, np.repeat(truth(TWO_FOLD), 4, axis=0)) < LIMIT


def test_cardiac_phase_that_lies_outside_the_matrix():
    readouts = readouts_of(Scan(**SMALL))
    readouts.insert(40, copied(readouts[0], phase=1, kspace_encode_step_1=900))
    connection = reconstruct(Scan(**SMALL), readouts)
    assert error(connection, truth(Scan(**SMALL))) < LIMIT
    (text,) = warnings(connection)
    assert "outside the matrix" in text


def test_only_the_first_repetition_has_calibration_lines():
    first, later = (list(simulation.acquisitions(each)) for each in (TWO_FOLD, UNCALIBRATED))
    order = [copied(each, repetition=n) for n in range(4) for each in (later if n else first)]
    connection = reconstruct(TWO_FOLD, order)
    assert error(connection, np.repeat(truth(TWO_FOLD), 4, axis=0)) < LIMIT
    assert not warnings(connection)


# ------------------------------------------------------------------------------------------ which lines are calibrating
def stored(scan, change=lambda readout: readout, header=None):
    readouts = [change(each) for each in readouts_of(scan)]
    return {"SenMap": Dependency("maps", header or simulation.header(scan), readouts)}.get


@pytest.mark.parametrize("rows", [range(28, 31), range(28, 36)], ids=["few", "no centre"])
def test_useless_lines_do_not_hide_the_stored_ones(rows):
    scan = Scan(**SMALL, acceleration=2, **SEPARATE)
    order = [each for each in readouts_of(scan) if not is_calibration(each) or each.idx.kspace_encode_step_1 in rows]
    connection = reconstruct(scan, order, dependency=stored(Scan(**SMALL)))
    assert error(connection, truth(scan)) < LIMIT


def test_stored_slices_are_found_by_their_position():
    scan = Scan(**SMALL, slices=3, acceleration=2, calibration="embedded", calibration_width=0)
    other = Scan(**SMALL, slices=3)
    connection = reconstruct(scan, dependency=stored(other, lambda each: copied(each, slice=2 - each.idx.slice)))
    assert error(connection, truth(scan)) < 0.1
    assert not warnings(connection)


def _moved(readout):
    readout.position[0] += 50
    return readout


def _turned(readout):
    readout.read_dir, readout.phase_dir = readout.phase_dir, readout.read_dir
    return readout


@pytest.mark.parametrize(
    ("change", "reason"), [(_moved, "their position is"), (_turned, "their read_dir is")], ids=["moved", "turned"]
)
def test_stored_lines_of_another_place_are_refused(change, reason):
    connection = reconstruct(UNCALIBRATED, dependency=stored(Scan(**SMALL), change))
    assert sum(reason in text for text in warnings(connection)) == 1
    assert any("expect aliasing" in text for text in warnings(connection))


@pytest.mark.parametrize(
    ("other", "header", "reason"),
    [
        (Scan(**SMALL, partitions=4), None, "they are of a 3-D scan"),
        (Scan(**SMALL), "no XML", "their header has no encoding"),
        (Scan(**SMALL | {"columns": 96}), None, "their field of view along x"),
    ],
    ids=["3-D", "text", "field of view"],
)
def test_stored_lines_that_do_not_fit_are_refused(other, header, reason):
    connection = reconstruct(UNCALIBRATED, dependency=stored(other, header=header))
    assert sum(reason in text for text in warnings(connection)) == 1


def test_calibration_of_each_contrast_is_kept_apart():
    scan = Scan(**SMALL, acceleration=2, **SEPARATE)
    readouts = readouts_of(scan)
    order = [
        copied(each, scale=-1 if contrast else 1, contrast=contrast)
        for part in (True, False)
        for contrast in (0, 1)
        for each in readouts
        if is_calibration(each) is part
    ]
    connection = reconstruct(scan, order)
    assert error(connection, np.repeat(truth(scan), 2, axis=0)) < LIMIT


@pytest.mark.parametrize("counter", ["phase", "set", "contrast"])
def test_lines_of_one_phase_calibrate_the_others(counter):
    first, later = readouts_of(TWO_FOLD), readouts_of(UNCALIBRATED)
    order = [copied(each, **{counter: n}) for n in range(3) for each in (later if n else first)]
    connection = reconstruct(TWO_FOLD, order)
    assert error(connection, np.repeat(truth(TWO_FOLD), 3, axis=0)) < LIMIT
    assert not warnings(connection)


@pytest.mark.parametrize("mode", ["separate", "embedded"])
def test_repetition_of_calibration_lines_alone(mode):
    scan = Scan(**SMALL, acceleration=2, **SEPARATE)
    header = simulation.header(scan)
    header.encoding[0].parallelImaging.calibrationMode = ismrmrd.xsd.calibrationModeType(mode)
    lines = [each for each in readouts_of(scan) if is_calibration(each)]
    image = [each for each in readouts_of(scan) if not is_calibration(each)]
    order = [*map(copied, lines), *(copied(each, repetition=n) for n in (1, 2) for each in image)]
    connection = reconstruct(scan, order, header)
    assert error(connection, np.repeat(truth(scan), 2, axis=0)) < LIMIT
    assert not warnings(connection)


def test_broken_calibration_line_is_left_out():
    scan = Scan(**SMALL, acceleration=2, **SEPARATE)
    readouts = readouts_of(scan)
    central = next(each for each in readouts if is_calibration(each) and each.idx.kspace_encode_step_1 == 40)
    central.data[0, 0] = np.nan
    connection = reconstruct(scan, readouts)
    assert error(connection, truth(scan)) < LIMIT
    (text,) = warnings(connection)
    assert text.startswith("1 calibration lines hold samples that are not finite")


def test_calibration_lines_of_earlier_repetitions_are_dropped():
    scan = Scan(**SMALL, acceleration=2, **SEPARATE)
    lines = CalibrationLines(simulation.header(scan))
    readouts = [each for each in readouts_of(scan) if not is_calibration(each)]
    (volume,) = sort_volumes(readouts, simulation.header(scan))
    for repetition in range(3):
        for each in readouts_of(scan):
            if is_calibration(each):
                lines.add(copied(each, scale=1 + repetition, repetition=repetition))
    expected = np.mean([each.data for each in readouts_of(scan) if is_calibration(each)][12], axis=0)
    block = lines.of(volume, 0).block[:, 0, 12].mean(axis=0)
    np.testing.assert_allclose(block, 3 * expected, rtol=1e-5)


def test_repetitions_that_bring_no_new_lines_do_not_wait_for_ever():
    header = simulation.header(UNCALIBRATED)
    header.encoding[0].parallelImaging.calibrationMode = ismrmrd.xsd.calibrationModeType.INTERLEAVED
    order = [copied(each, repetition=n) for n in range(4) for each in readouts_of(UNCALIBRATED)]
    volumes = sort_volumes(order, header)
    received = CalibrationLines(header).awaited(volumes)
    assert [next(received).key.repetition for _ in range(3)] == [0, 1, 2]
    assert next(volumes).key.repetition == 3  # it has not been asked for


def test_epi_with_reference_lines_of_another_sequence():
    scan = Scan(**SMALL | {"rows": 72}, acceleration=2, epi=Epi(), **SEPARATE)
    flash = Scan(**SMALL | {"rows": 72}, acceleration=2, **SEPARATE)
    lines = [each for each in readouts_of(flash) if is_calibration(each)]
    for each in lines:
        each.sample_time_us = 20.0
    order = lines + [each for each in readouts_of(scan) if not is_calibration(each)]
    connection = reconstruct(scan, order)
    assert error(connection, truth(scan)) < 0.1
    assert not warnings(connection)


# ------------------------------------------------------------------------------------------------------- data that fail
def test_aborted_scan_is_told_of():
    scan = Scan(**SMALL)
    (text,) = warnings(reconstruct(scan, readouts_of(scan)[:52]))
    assert (
        "rows 0 to 51 were acquired, the header's encodingLimits promise 0 to 79: the rest is taken as left out" in text
    )


@pytest.mark.parametrize("coils", [1, 2])
def test_too_few_coils_are_told_of(coils):
    scan = Scan(**SMALL | {"coils": coils}, acceleration=3, **EMBEDDED)
    assert any(f"{coils} coil(s) cannot make up" in text for text in warnings(reconstruct(scan)))


def test_zeros_and_noise_are_no_spikes():
    scan = Scan(**SMALL)
    random = np.random.default_rng(1)
    noise = readouts_of(scan)
    for each in noise:
        each.data[:] = random.standard_normal((*each.data.shape, 2)) @ [1, 1j]
    assert not warnings(reconstruct(scan, noise))
    (text,) = warnings(reconstruct(scan, [copied(each, scale=0) for each in readouts_of(scan)]))
    assert "are zero" in text


def test_spike_is_told_of():
    readouts = readouts_of(Scan(**SMALL))
    readouts[5].data[0, 3] = 1e6
    (text,) = warnings(reconstruct(Scan(**SMALL), readouts))
    assert "far from the k-space centre" in text


@pytest.mark.parametrize("factor", [1e-22, 1e18])
@pytest.mark.parametrize("method", ["auto", "sense", "l1-wavelet"])
def test_scale_of_the_data_does_not_matter(method, factor):
    scaled = [copied(each, scale=np.float32(factor)) for each in readouts_of(TWO_FOLD)]
    connection = reconstruct(TWO_FOLD, scaled, acceleration=method)
    assert error(connection, truth(TWO_FOLD)) < LIMIT
    assert not warnings(connection)


@pytest.mark.parametrize("factor", [1e-22, 1e25])
def test_scale_of_the_noise_does_not_matter(factor):
    scan = Scan(**SMALL, noise_scan=True, noise_model=Noise(readouts=30))
    readouts = readouts_of(scan)
    scaled = [copied(each, scale=np.float32(factor)) for each in readouts[:30]] + readouts[30:]
    options = {"prewhiten": "auto", "coil_combine": "adaptive"}
    expected, changed = (reconstruct(scan, items, **options) for items in (readouts, scaled))
    difference = changed.images[0].data.astype(int) - expected.images[0].data
    assert abs(difference).max() <= 2


def test_few_lines_of_a_large_matrix_are_no_lattice():
    sampled = np.zeros((1024, 1024), bool)
    sampled[tuple(np.random.default_rng(0).integers(1024, size=(2, 60)))] = True
    with pytest.raises(IrregularSamplingError):
        find_lattice(sampled)


def test_header_is_left_as_it_came():
    header = simulation.header(TWO_FOLD)
    before = copy.deepcopy(header)
    reconstruct(TWO_FOLD, header=header)
    assert header == before
