"""Clinical Cartesian scans through the whole module, against the density and sensitivities that they were made of."""

import dataclasses

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

import cartesian_recon
from cartesian_data import FakeConnection
from cartesian_scans import EMBEDDED, SMALL, error, reconstruct, truth, warnings
from mrdio.dependencies import Dependency
from recon import cartesian, volumes
from recon.configuration import PROJECT_FOLDER
from recon.reconspace import ReconSpace
from simulation import cartesiansimulation as simulation
from simulation.cartesiansimulation import Epi, Noise, Scan


def test_truth_is_the_density_but_for_what_the_matrix_resolves():
    scan = Scan(**SMALL)
    density = simulation.density(scan) * np.linalg.norm(simulation.maps(scan), axis=0)
    assert np.linalg.norm(truth(scan) - density) < 0.15 * np.linalg.norm(density)


# ------------------------------------------------------------------------------------------------------- kinds of scans
LIMIT = 0.08


@pytest.mark.parametrize(
    ("scan", "zero_filled"),
    [
        (Scan(**SMALL), None),
        (Scan(**SMALL, slices=3), None),
        (Scan(**SMALL, acceleration=2, **EMBEDDED), 0.2),
        (Scan(**SMALL, acceleration=3, **EMBEDDED), 0.2),
        (Scan(**SMALL, acceleration=2, calibration="separate", calibration_width=24), 0.3),
        (Scan(**SMALL, acceleration=2, slices=2, **EMBEDDED), 0.2),
        (Scan(**SMALL | {"columns": 71, "rows": 75}, acceleration=2, **EMBEDDED), 0.2),
        (Scan(**SMALL, partial_fourier=0.65, phase=0.7), None),
        (Scan(**SMALL, partial_fourier=0.7, missing_end=True, acceleration=2, **EMBEDDED), 0.2),
        (Scan(**SMALL, asymmetric_echo=0.7, phase=0.7), None),
        (Scan(**SMALL | {"rows": 72}, epi=Epi(phase=0.4, delay=2.0)), None),
        (Scan(**SMALL | {"rows": 72}, epi=Epi(shots=2, first_reversed=True)), None),
        (Scan(**SMALL, averages=2), None),
    ],
    ids=lambda value: "" if not isinstance(value, Scan) else "-".join(
        f"{field.name}={getattr(value, field.name)}"[:30]
        for field in dataclasses.fields(Scan)
        if getattr(value, field.name) != field.default and field.name not in (*SMALL, "calibration_width", "epi")
    ),
)  # fmt: skip
def test_images_agree_with_the_truth(scan, zero_filled):
    connection = reconstruct(scan)
    expected = truth(scan)
    assert not warnings(connection)
    assert error(connection, expected) < LIMIT
    if zero_filled is not None:
        assert error(reconstruct(scan, acceleration="none"), expected) > zero_filled


def test_partial_fourier_is_sharper_than_with_zeros():
    scan = Scan(**SMALL, partial_fourier=0.625, phase=0.7)
    errors = [error(reconstruct(scan, partial_fourier=mode), truth(scan)) for mode in ("auto", "pocs", "zero")]
    assert errors[0] == errors[1] < 0.8 * errors[2]


@pytest.mark.parametrize("shift", [0, 1])
def test_slab_accelerated_in_both_directions(shift):
    size = {"columns": 40, "rows": 44, "partitions": 20, "coils": 12, "noise": 0.0005}
    scan = Scan(**size, acceleration=2, acceleration_2=2, shift=shift, calibration="embedded", calibration_width=12)
    connection = reconstruct(scan)
    expected = truth(scan)
    assert error(connection, expected) < 0.5 * error(reconstruct(scan, acceleration="none"), expected)
    assert [image.slice for image in connection.images] == list(range(20))
    positions = [image.position[2] for image in connection.images]
    np.testing.assert_allclose(positions, 1e3 * simulation.plane_positions(scan), atol=1e-4)
    assert not warnings(connection)


def test_object_larger_than_the_field_of_view():
    scan = Scan(**SMALL, object_size=1.3, acceleration=2, **EMBEDDED)
    auto, none = (error(reconstruct(scan, acceleration=method), truth(scan)) for method in ("auto", "none"))
    assert auto < 0.08 < 0.15 < none


@pytest.mark.parametrize(("method", "limit"), [("sense", 0.17), ("l1-wavelet", 0.17), ("grappa", 0.14)])
def test_methods_that_are_asked_for(method, limit):
    scan = Scan(**SMALL, acceleration=2, **EMBEDDED)
    connection = reconstruct(scan, acceleration=method)
    assert error(connection, truth(scan)) < limit
    assert any(f"{method} makes up for the others" in text for _, text in connection.logs)


def test_interleaved_repetitions_calibrate_each_other():
    scan = Scan(**SMALL, acceleration=2, repetitions=2)  # four images of every second line each, none of calibration
    connection = reconstruct(scan)
    assert [image.repetition for image in connection.images] == [0, 1, 2, 3]
    assert error(connection, np.repeat(truth(scan), 4, axis=0)) < LIMIT
    assert not warnings(connection)


def test_irregular_lines_and_a_lost_one():
    scan = Scan(**SMALL)
    readouts = list(simulation.acquisitions(scan))
    lost = reconstruct(scan, [each for each in readouts if each.idx.kspace_encode_step_1 != 52])
    assert error(lost, truth(scan)) < LIMIT
    assert any("79 of 80 lines were acquired, a few are missing: sense" in text for _, text in lost.logs)
    taken = np.random.default_rng(3).random(80) < 0.5
    taken[28:52] = True
    irregular = reconstruct(scan, [each for each in readouts if taken[each.idx.kspace_encode_step_1]])
    assert error(irregular, truth(scan)) < 0.17
    assert any("irregularly: l1-wavelet" in text for _, text in irregular.logs)


def test_without_calibration_the_image_comes_with_a_warning():
    scan = Scan(**SMALL, acceleration=2, calibration="embedded", calibration_width=0)
    connection = reconstruct(scan)
    assert len(connection.images) == 1
    (text,) = warnings(connection)
    assert "taken as zero, expect aliasing" in text


# ---------------------------------------------------------------------------------------- noise and other measurements
def test_whitening_raises_the_signal_to_noise_ratio():
    noise = Noise(correlation=0.8, readouts=30)
    scan = Scan(**SMALL | {"noise": 0.05}, noise_scan=True, noise_model=noise)
    clean = dataclasses.replace(scan, noise=0.0, noise_scan=False)
    errors = {}
    for mode in ("auto", "off"):
        settings = {"prewhiten": mode, "coil_combine": "adaptive"}
        expected = np.array([image.data[0, 0] for image in reconstruct(clean, coil_combine="adaptive").images], float)
        errors[mode] = error(reconstruct(scan, **settings), expected)
    assert errors["auto"] < 0.9 * errors["off"]


def test_noise_and_calibration_from_stored_measurements():
    scan = Scan(**SMALL, acceleration=2, calibration="embedded", calibration_width=0)
    other = Scan(**SMALL | {"rows": 80}, noise_scan=True, noise_model=Noise(readouts=20))
    readouts = list(simulation.acquisitions(other))
    noise, lines = readouts[:20], [each for each in readouts[20:] if 26 <= each.idx.kspace_encode_step_1 < 54]
    kept = {
        "Noise": Dependency("noise", simulation.header(other), noise),
        "SenMap": Dependency("maps", simulation.header(other), lines),
    }
    connection = reconstruct(scan, dependency=kept.get, prewhiten="auto")
    assert error(connection, truth(scan)) < LIMIT
    assert not warnings(connection)
    assert any("stored measurement noise" in text for _, text in connection.logs)


@pytest.mark.parametrize("options", [{}, {"acceleration": 2, **EMBEDDED}], ids=["full", "accelerated"])
def test_images_in_units_of_their_noise(options):
    size = {"columns": 48, "rows": 48, "coils": 4, "noise": 0.01}
    noise = Noise(correlation=0.5, readouts=100, dwell=10.0)
    scans = [Scan(**size, **options, noise_scan=True, noise_model=noise, seed=seed) for seed in range(16)]
    sent = [reconstruct(scan, snr_units=True, prewhiten="auto", coil_combine="adaptive").images for scan in scans]
    assert [image.image_series_index for image in sent[0]] == [0, 1]
    images = np.array([image.data[0, 0] for image, _ in sent])
    bright = images.mean(axis=0) > 8
    assert bright.sum() > 200
    assert np.sqrt(images.var(axis=0, ddof=1)[bright].mean()) == pytest.approx(1, abs=0.08)
    assert sent[0][1].meta["ImageComments"] == "g-factor"
    assert (np.median(sent[0][1].data[0, 0][bright]) > 1.02) == bool(options)


def test_units_of_noise_need_to_know_it():
    connection = reconstruct(Scan(**SMALL), snr_units=True)
    (text,) = warnings(connection)
    assert "snr_units: images are in their own units" in text


# ------------------------------------------------------------------------------------------- streaming and geometry
def test_images_leave_when_their_slice_is_complete():
    scan = Scan(**SMALL, acceleration=2, slices=3, repetitions=2, **EMBEDDED)
    readouts = list(simulation.acquisitions(scan))
    taken = []
    connection = FakeConnection()

    def items():
        for readout in readouts:
            taken.append(len(connection.images))
            yield readout

    connection.items = items()
    cartesian_recon.process(connection, "", simulation.header(scan))
    assert len(connection.images) == 6
    last_of_slice = [n for n, each in enumerate(readouts) if each.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert taken[last_of_slice[-1]] == 5


@pytest.mark.parametrize("vendor", ["SIEMENS", "GE"])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("columns", "rows", "partitions"), [(31, 28, 1), (30, 27, 1), (20, 17, 8), (21, 18, 7)])
def test_image_is_that_of_the_simple_reconstruction(vendor, asymmetric, columns, rows, partitions):
    size = {"columns": columns, "rows": rows, "partitions": partitions, "coils": 3}
    scan = Scan(**size, asymmetric_echo=0.7 if asymmetric else 1.0)
    header = simulation.header(scan)
    header.acquisitionSystemInformation.systemVendor = vendor
    (volume,) = volumes.sort_volumes(simulation.acquisitions(scan), header)
    space = ReconSpace(volume)
    assert space.removes_oversampling is not asymmetric
    image = space.to_image(space.without_oversampling(volume.kspace[..., 0]))
    planes = [cartesian.to_image(plane)[..., 0] for plane in cartesian.split(volume)]
    np.testing.assert_allclose(image, np.stack(planes, axis=1), atol=1e-5 * abs(image).max())


def test_whole_session(server, connect):
    running = server(module_folders=(PROJECT_FOLDER,))
    scan = Scan(**SMALL, acceleration=2, **EMBEDDED, noise_scan=True)
    peer = connect(running.address)
    peer.send(ConfigFile("cartesian_recon"), simulation.header(scan), *simulation.acquisitions(scan))
    peer.send_close()
    received = peer.receive()
    (image,) = [each for each in received if isinstance(each, ismrmrd.Image)]
    assert image.data.dtype == np.int16
    assert image.data.max() > 2000
    texts = [each for each in received if isinstance(each, str)]
    assert any("readouts are whitened" in text for text in texts)
    assert not any(text.startswith(("WARNING", "ERROR")) for text in texts)


def test_spike_in_the_calibration_lines_does_not_spoil_later_repetitions():
    scan = Scan(**SMALL, acceleration=2, repetitions=2, **EMBEDDED)
    readouts = list(simulation.acquisitions(scan))
    readouts[25].data[0, 70] = 1e6
    connection = reconstruct(scan, readouts)
    connection.images = connection.images[1:]
    assert error(connection, truth(scan)) < LIMIT
