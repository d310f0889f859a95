"""View-sharing against the truth: geometry, gradient correction, frames, slices, settings, latency."""

import logging

import numpy as np
import pytest
from ismrmrd import IMTYPE_COMPLEX

import client
import coils
import main
import simplenufft1arm
from conftest import PATIENCE
from mrdio.mrdfile import MrdReader, MrdWriter
from recon import configuration, memory, nufft, spiral
from recon.fieldcorrection import FieldCorrection
from recon.slidingwindow import SlidingWindow
from recon.trajectory import SIGNATURE_PARAMETER, write_metafile
from simplenufft1arm import ViewSharingConfig, ViewSharingReconstruction
from simulation.spiraldesign import SpiralDesign, design_spiral, synthetic_girf
from simulation.spiralsimulation import Scan, simulate
from spiral_sessions import Client, configure, in_axial_fields


def design(matrix=64, **options):
    defaults = {"fov": 0.256, "resolution": 0.256 / matrix, "interleaves": 8, "arms": 24, "pre_discard": 6}
    return design_spiral(SpiralDesign(**defaults | options))


def settings(folder, **reconstruction):
    values = {"arms_per_frame": 24, "window_shift": 24, "coil_combine": "rssq"} | reconstruction
    return ViewSharingConfig(metafile_paths=(folder,), reconstruction=ViewSharingReconstruction(**values))


@pytest.fixture
def reconstruct(tmp_path):
    """Reconstruct a simulated scan without a socket; returns the frames, and what was told to the client."""

    def run(simulation, config=None, items=None, **options):
        write_metafile(simulation.trajectory, tmp_path / simulation.trajectory.file.name)
        config = config or settings(tmp_path, **options)
        told = []
        fields = FieldCorrection(config.reconstruction, simulation.header)
        scan = spiral.SpiralScan(config, simulation.header, told.append, fields=fields)
        readouts = scan.readouts(simulation.items() if items is None else items)
        return list(simplenufft1arm.reconstruct(readouts, scan, config.reconstruction)), told

    return run


def still(**options):
    return Scan(**{"readouts": 24, "coils": 4, "noise": 0, "still": True, "waveforms": False, "tr": 20e-3} | options)


def relative_error(image, truth):
    """Error after the best scale factor."""
    image = np.abs(image)
    return np.linalg.norm(image * (np.vdot(image, truth) / np.vdot(image, image)) - truth) / np.linalg.norm(truth)


def centre_of(image):
    """Centre of mass (row, column) of the bright spot in an image, around its maximum."""
    image = np.abs(image) ** 2
    row, column = np.unravel_index(np.argmax(image), image.shape)
    rows, columns = np.mgrid[row - 3 : row + 4, column - 3 : column + 4]
    spot = image[rows, columns]
    return np.sum(rows * spot) / spot.sum(), np.sum(columns * spot) / spot.sum()


# ---- accuracy and geometry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", [64, 63])
@pytest.mark.parametrize("combination", ["rssq", "adaptive"])
def test_static_object_agrees_with_the_truth(reconstruct, matrix, combination):
    simulation = simulate(design(matrix), still())
    (frame,), _ = reconstruct(simulation, coil_combine=combination)
    truth = simulation.truth.frame([0]) * np.linalg.norm(simulation.truth.maps(), axis=0)
    assert relative_error(frame.pixels, truth) < 0.12  # an exact adjoint has 0.11 against the pixels of this few


@pytest.mark.parametrize("matrix", [64, 63])
@pytest.mark.parametrize("corrected", [False, True])
def test_point_lands_where_it_is(reconstruct, tmp_path, matrix, corrected):
    """Also with gradient correction, for data that carry the distortion."""
    trajectory = design(matrix)
    pixel = 1e3 * trajectory.resolution
    place = (40.3, -61.7)  # [mm]
    girf = synthetic_girf() if corrected else None
    simulation = simulate(trajectory, still(point=place, girf=girf, rotation=(20, -30, 40)))
    options = {}
    if corrected:
        options = {"apply_girf": True, "girf_file": write_girf(tmp_path, girf)}
    (frame,), _ = reconstruct(simulation, **options)
    expected = [matrix // 2 - place[1] / pixel, matrix // 2 - place[0] / pixel]
    np.testing.assert_allclose(centre_of(frame.pixels), expected, atol=0.05)


def write_girf(folder, girf):
    from scipy.io import savemat

    savemat(folder / "girf.mat", {"GIRF": girf})
    return folder / "girf.mat"


@pytest.mark.parametrize("late", [0, 12e-6])  # [s]; late gradients sample the centre more densely than was planned
def test_gradient_correction_restores_distorted_data(reconstruct, tmp_path, late):
    trajectory, girf = design(), synthetic_girf()
    frequency = (np.arange(len(girf)) - len(girf) // 2) / (len(girf) * 10e-6)
    girf = girf * np.exp(-2j * np.pi * frequency * late)[:, np.newaxis]
    distorted = simulate(trajectory, still(girf=girf))
    truth = distorted.truth.frame([0]) * np.linalg.norm(distorted.truth.maps(), axis=0)
    (undistorted,), _ = reconstruct(simulate(trajectory, still()))
    (uncorrected,), _ = reconstruct(distorted)
    (corrected,), _ = reconstruct(distorted, apply_girf=True, girf_file=write_girf(tmp_path, girf))
    best = relative_error(undistorted.pixels, truth)
    assert relative_error(corrected.pixels, truth) < 1.05 * best
    assert relative_error(uncorrected.pixels, truth) > 1.5 * best


@pytest.mark.parametrize("carried", ["", "1/m"])
def test_concomitant_fields_of_each_slice_are_corrected(monkeypatch, tmp_path, carried):
    """Also for arms that readouts bring when the tables are made."""
    trajectory = design(interleaves=4)
    write_metafile(trajectory, tmp_path / trajectory.file.name)
    scan = still(readouts=96, slices=2, position=(0.0, 0.0, 130.0), carried=carried, field_strength=0.55)
    simulation = simulate(trajectory, scan)

    def run(items, asked):
        table = {"arms_per_frame": 16, "window_shift": 16, "coil_combine": "rssq", "concomitant": asked}
        configure(monkeypatch, ViewSharingConfig, tmp_path, reconstruction=table)
        session = Client(items)
        simplenufft1arm.process(session, "simplenufft1arm", simulation.header)
        return session

    plain = run(simulation.acquisitions(), "off").pixels
    assert len(plain) == 6
    disturbed = run(in_axial_fields(simulation.acquisitions(), trajectory), "off").pixels
    session = run(in_axial_fields(simulation.acquisitions(), trajectory), "auto")
    for one, bad, good in zip(plain, disturbed, session.pixels, strict=True):
        assert relative_error(bad, one) > 0.05
        assert relative_error(good, one) < 0.01
    assert any("concomitant fields at 0.55 T are corrected" in text for text in session.texts)


def test_readouts_that_bring_arms_without_a_dwell_time_are_imaged_uncorrected(monkeypatch, tmp_path):
    scan = still(readouts=96, position=(0.0, 0.0, 130.0), carried="1/m", field_strength=0.55)
    simulation = simulate(design(interleaves=4), scan)
    items = list(simulation.acquisitions())
    images = []
    for asked, dwell in (("off", 4.0), ("auto", 0.0)):
        for item in items:
            item.sample_time_us = dwell
        table = {"arms_per_frame": 16, "window_shift": 16, "concomitant": asked}
        configure(monkeypatch, ViewSharingConfig, tmp_path, reconstruction=table)
        session = Client(items)
        simplenufft1arm.process(session, "simplenufft1arm", simulation.header)
        images.append(session.pixels)
    np.testing.assert_array_equal(*images)
    (text,) = (text for text in session.texts if "fields" in text)
    assert "WARNING" in text
    assert "no sample_time_us" in text


def test_slice_that_moves_along_its_axis_has_a_new_correction(reconstruct):
    """Its frames begin anew, since grids of both places cannot be added."""
    trajectory = design(interleaves=4)
    there, back = (
        simulate(trajectory, still(readouts=24, position=(0.0, 0.0, z))).acquisitions() for z in (130.0, -40.0)
    )
    items = [*in_axial_fields(there, trajectory), *in_axial_fields(back, trajectory)]
    for n, item in enumerate(items, start=1):
        item.scan_counter = n
    simulation = simulate(trajectory, still(field_strength=0.55))
    frames, _ = reconstruct(simulation, items=items)
    (plain,), _ = reconstruct(simulation)
    assert len(frames) == 2
    for frame in frames:
        assert relative_error(frame.pixels, plain.pixels) < 0.01


def test_larger_field_of_view_has_more_pixels_of_the_same_size(reconstruct):
    simulation = simulate(design(), still(point=(30.0, -50.0)))
    (frame,), _ = reconstruct(simulation, fov_oversampling=1.5)
    assert frame.pixels.shape == (96, 96)
    np.testing.assert_allclose(centre_of(frame.pixels), [48 + 50 / 4, 48 - 30 / 4], atol=0.05)


@pytest.mark.parametrize(("matrix", "oversampling", "size"), [(64, 1.5, 96), (64, 1.3, 83), (63, 1.5, 94)])
def test_field_of_view_is_that_of_whole_pixels(reconstruct, tmp_path, matrix, oversampling, size):
    simulation = simulate(design(matrix), still(readouts=4))
    reconstruct(simulation)
    scan = spiral.SpiralScan(settings(tmp_path, fov_oversampling=oversampling), simulation.header)
    assert scan.matrix == size
    np.testing.assert_allclose(scan.field_of_view, (256 / matrix * size, 256 / matrix * size, 6))


def test_preparing_makes_the_tables_that_the_scan_uses(tmp_path, monkeypatch):
    """With all that before the first readout, nothing is left to be made when it comes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    toml = f"metafile_paths = ['{tmp_path}']\n[reconstruction]\narms_per_frame = 24\nwindow_shift = 24\n"
    (tmp_path / ViewSharingConfig.FILE).write_text(toml)
    simulation = simulate(design(), still())
    write_metafile(simulation.trajectory, tmp_path / simulation.trajectory.file.name)
    simplenufft1arm.prepare("simplenufft1arm", simulation.header)
    monkeypatch.setattr(nufft, "ArmPlan", None)
    config = configuration.load(ViewSharingConfig)
    scan = spiral.SpiralScan(config, simulation.header)
    frames = simplenufft1arm.reconstruct(scan.readouts(simulation.items()), scan, config.reconstruction)
    assert len(list(frames)) == 1


def test_oversampling_removed_on_the_way_is_recognised(reconstruct):
    simulation = simulate(design(pre_discard=7), still(point=(30.0, -50.0), remove_oversampling=True))
    (frame,), _ = reconstruct(simulation)
    np.testing.assert_allclose(centre_of(frame.pixels), [32 + 50 / 4, 32 - 30 / 4], atol=0.05)


# ---- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "shift", "readouts"),
    [(8, 3, 40), (8, 8, 40), (5, 7, 40), (8, 1, 20), (24, 5, 23), (1, 1, 5), (7, 4, 50)],
)
def test_frame_j_holds_its_arms_in_any_relation_of_length_and_shift(reconstruct, length, shift, readouts):
    simulation = simulate(design(), still(readouts=readouts))
    frames, _ = reconstruct(simulation, arms_per_frame=length, window_shift=shift)
    data = np.stack([simulation.trajectory.samples(item) for item in simulation.acquisitions()], axis=1)
    starts = range(0, readouts - length + 1, shift)
    assert len(frames) == len(starts)
    for frame, start in zip(frames, starts, strict=True):
        columns = simulation.truth.column[start : start + length]
        coordinates = simulation.trajectory.cycles_per_fov()[columns]
        weights = np.broadcast_to(simulation.trajectory.weights, coordinates.shape[:2])
        alone = coils.rssq(nufft.adjoint(coordinates, data[:, start : start + length], (64, 64), weights))
        counter = simulation.truth.scan_counter[start + length // 2]
        assert frame.head.scan_counter == counter, "the header is that of the readout in the middle"
        np.testing.assert_allclose(frame.pixels, alone, atol=2e-4 * alone.max())


def test_image_leaves_with_its_last_arm(tmp_path):
    simulation = simulate(design(), still(readouts=30))
    config = settings(tmp_path, arms_per_frame=10, window_shift=4)
    write_metafile(simulation.trajectory, tmp_path / simulation.trajectory.file.name)
    scan = spiral.SpiralScan(config, simulation.header)
    seen = []

    def watched():
        for item in simulation.acquisitions():
            seen.append(item)
            yield item

    frames = simplenufft1arm.reconstruct(scan.readouts(watched()), scan, config.reconstruction)
    assert [(len(seen), frame.head.scan_counter) for frame in frames] == [
        (10, 6), (14, 10), (18, 14), (22, 18), (26, 22), (30, 26)]  # fmt: skip


def test_broken_first_frame_does_not_spoil_the_coil_maps(reconstruct):
    simulation = simulate(design(), still(readouts=72))
    clean, _ = reconstruct(simulation, coil_combine="adaptive")
    for broken in (np.nan, 0):
        items = list(simulation.acquisitions())
        for item in items[:24]:
            item.data[:] *= broken
        frames, _ = reconstruct(simulation, items=items, coil_combine="adaptive")
        assert relative_error(frames[-1].pixels, np.abs(clean[-1].pixels)) < 1e-3


def test_orientation_that_changes_starts_the_slice_afresh(reconstruct, tmp_path):
    girf = synthetic_girf()
    girf[:, 0] *= np.exp(-2j * np.pi * (np.arange(3800) - 1900) / 38e-3 * 20e-6)  # one axis is late
    first, second = (
        simulate(design(), still(girf=girf, rotation=(0, 0, angle), point=(30.0, -50.0))) for angle in (0, 90)
    )
    items = [*first.acquisitions(), *second.acquisitions()]
    for number, item in enumerate(items):
        item.scan_counter = number + 1
    frames, _ = reconstruct(first, items=items, apply_girf=True, girf_file=write_girf(tmp_path, girf))
    assert len(frames) == 2
    for frame in frames:
        np.testing.assert_allclose(centre_of(frame.pixels), [32 + 50 / 4, 32 - 30 / 4], atol=0.05)


@pytest.mark.parametrize("combination", ["adaptive", "rssq"])
def test_a_gpu_gives_the_same(cupy, reconstruct, combination):
    simulation = simulate(design(), still())
    on_cpu, on_gpu = (
        reconstruct(simulation, coil_combine=combination, gpu_device=device)[0][0].pixels for device in (-1, 0)
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4 * abs(on_cpu).max())


def test_more_memory_than_there_is_is_an_error_that_names_the_keys(reconstruct):
    simulation = simulate(design(), still())
    with pytest.raises(ValueError, match=r"frames of .* arms with window_shift.*fov_oversampling"):
        reconstruct(simulation, arms_per_frame=1_000_000, window_shift=1)


def test_more_slices_than_there_is_memory_for_are_an_error_that_names_them(reconstruct, monkeypatch):
    """The memory of this machine would take minutes to fill: there is just enough for two slices."""
    for_one = SlidingWindow.grids(4, 4) * 4 * 192**2 * 8  # of 4 coils; 1.5 times as wide as the image [bytes]
    monkeypatch.setattr(memory, "usable", lambda device: 2 * for_one)
    simulation = simulate(design(64), still(slices=3, readouts=12, coils=4))
    with pytest.raises(ValueError, match=r"frames of .* arms with window_shift.*, 3 slices and .*fov_oversampling"):
        reconstruct(simulation, fov_oversampling=2.0, arms_per_frame=4, window_shift=4)


def test_lost_readouts_do_not_shift_the_others(reconstruct):
    simulation = simulate(design(), still(readouts=48, lost=9, point=(30.0, -50.0)))
    frames, told = reconstruct(simulation, arms_per_frame=30, window_shift=30)
    np.testing.assert_allclose(centre_of(frames[0].pixels), [32 + 50 / 4, 32 - 30 / 4], atol=0.05)
    assert any("missing after scan counter" in text for text in told)
    assert any("9 readouts were missing in all" in text for text in told)


def test_readouts_that_are_not_of_imaging_are_left_out(reconstruct):
    simulation = simulate(design(), still(noise_scan=True, dummies=5))
    frames, told = reconstruct(simulation, items=simulation.acquisitions())
    truth = simulation.truth.frame([0]) * np.linalg.norm(simulation.truth.maps(), axis=0)
    assert len(frames) == 1
    assert relative_error(frames[0].pixels, truth) < 0.12
    assert told == []


@pytest.mark.parametrize("interleaved", [True, False])
def test_slices_have_their_own_windows_and_maps(reconstruct, interleaved):
    simulation = simulate(design(), still(readouts=75, slices=3, interleaved=interleaved))
    frames, _ = reconstruct(simulation, arms_per_frame=24, window_shift=24, coil_combine="adaptive")
    assert sorted(frame.head.idx.slice for frame in frames) == [0, 1, 2]
    scale = np.linalg.norm(simulation.truth.maps(), axis=0)
    firsts = [np.flatnonzero(simulation.truth.slice == number)[:1] for number in range(3)]
    truths = [simulation.truth.frame(first) * scale for first in firsts]
    for frame in frames:
        errors = [relative_error(frame.pixels, truth) for truth in truths]
        assert np.argmin(errors) == frame.head.idx.slice, errors


def test_linear_ordering_takes_all_interleaves(reconstruct):
    simulation = simulate(design(ordering="linear", interleaves=9), still(readouts=36))
    frames, _ = reconstruct(simulation, ignore_arms_per_frame=True, arms_per_frame=5, window_shift=2)
    assert len(frames) == 4
    for frame in frames[1:]:
        np.testing.assert_allclose(frame.pixels, frames[0].pixels, rtol=1e-4, atol=1e-4 * frames[0].pixels.max())


def test_last_of_many_frames_is_like_a_fresh_one(reconstruct):
    """Nothing drifts."""
    simulation = simulate(design(32, interleaves=4, arms=12), still(readouts=1200, coils=2))
    frames, _ = reconstruct(simulation, arms_per_frame=12, window_shift=5)
    first = frames[0]
    again = [frame for frame in frames if (frame.head.scan_counter - first.head.scan_counter) % 12 == 0][-1]
    assert again.head.scan_counter > 1100
    assert np.abs(again.pixels - first.pixels).max() < 1e-5 * np.abs(first.pixels).max()


# ---- through the server --------------------------------------------------------------------------------------------


@pytest.fixture
def scanner(server, tmp_path, monkeypatch):
    """Run a simulated scan through client and server, in a folder with its own configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "seq_meta").mkdir()
    running = server(module_folders=(main.PROJECT_FOLDER,))

    def run(simulation, toml="", **options):
        text = '"metafile_paths" = ["seq_meta"]\n[reconstruction]\n' + toml
        (tmp_path / ViewSharingConfig.FILE).write_text(text)
        write_metafile(simulation.trajectory, tmp_path / "seq_meta" / simulation.trajectory.file.name)
        with MrdWriter(tmp_path / "raw.h5") as writer:
            if not options.pop("again", False):
                writer.write_header(simulation.header)
                for item in simulation.items():
                    writer.write(item)
        result = client.run(
            client.ClientOptions(tmp_path / "raw.h5", port=running.port, config="simplenufft1arm", **options)
        )
        if not result.received["images"]:
            return result, []
        with MrdReader(result.output, result.group) as file:
            return result, list(file.images())

    return run


KEYS = '"apply_girf" = false\n"gpu_device" = -1\n"arms_per_frame" = 24\n"window_shift" = 12\n'


def test_images_carry_geometry_time_and_latency(scanner):
    scan = still(readouts=60, rotation=(10, 20, 30), position=(5.0, -7.0, 11.0), slices=2, noise=0.01)
    simulation = simulate(design(), scan)
    result, images = scanner(simulation, KEYS)
    assert result.errors == []
    assert len(images) == 2
    acquisitions = {item.scan_counter: item for item in simulation.acquisitions()}
    for index, image in enumerate(images, start=1):
        head = image.getHead()
        middle = np.flatnonzero(simulation.truth.slice == head.slice)[12]
        centre = acquisitions[int(simulation.truth.scan_counter[middle])]
        assert head.image_index == index
        assert head.acquisition_time_stamp == centre.acquisition_time_stamp
        for field in ("position", "read_dir", "phase_dir", "slice_dir"):
            np.testing.assert_array_equal(getattr(head, field), getattr(centre, field))
        np.testing.assert_allclose(head.field_of_view, (256, 256, 6))
        np.testing.assert_allclose([float(v) for v in image.meta["ImageRowDir"]], head.read_dir, atol=1e-6)
        np.testing.assert_allclose([float(v) for v in image.meta["ImageColumnDir"]], head.phase_dir, atol=1e-6)
        assert image.data.dtype == np.int16
        assert 0 < image.data.max() < 4096
        assert 0 <= float(image.meta["ProcessingTime_ms"]) < 1e3 * PATIENCE
        assert image.meta["LastReadoutArrival"].startswith("20")


def test_one_intensity_scale_for_the_whole_series(scanner):
    simulation = simulate(design(), still(readouts=24 * 4))
    _, images = scanner(simulation, KEYS.replace('"window_shift" = 12', '"window_shift" = 24'))
    assert len(images) == 4
    for image in images[1:]:
        assert np.abs(image.data.astype(int) - images[0].data).max() <= 1


def test_complex_images_are_unscaled(scanner, reconstruct):
    simulation = simulate(design(), still())
    _, (image,) = scanner(simulation, KEYS + '"save_complex" = true\n"coil_combine" = "adaptive"\n')
    (frame,), _ = reconstruct(simulation, coil_combine="adaptive")
    assert image.data.dtype == np.complex64
    assert image.image_type == IMTYPE_COMPLEX
    np.testing.assert_allclose(image.data[0, 0], frame.pixels, rtol=1e-5, atol=1e-5 * np.abs(frame.pixels).max())


def test_configuration_is_read_anew_for_each_scan(scanner):
    simulation = simulate(design(), still(readouts=48))
    for shift, count in ((24, 2), (12, 3), (6, 5)):
        toml = KEYS.replace("= 12", f"= {shift}")
        _, images = scanner(simulation, toml, again=shift != 24, out_group=f"shift{shift}")
        assert len(images) == count


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('"arms_per_farme" = 5', "did you mean arms_per_frame?"),
        ('"arms_per_frame" = "many"', "must be a whole number from 1 to 1000000"),
        ('"coil_combine" = "sum"', 'one of "adaptive", "rssq"'),
        ('"gpu_device" = 7', "set gpu_device = -1 for the CPU"),
        ('"apply_girf" = true', "apply_girf"),
        ('"apply_girf" = true\n"girf_file" = "nothere.mat"', "nothere.mat"),
        ("arms_per_frame = ", "cannot be parsed"),
    ],
)
def test_wrong_settings_are_reported_to_the_client_by_name(scanner, toml, said):
    result, images = scanner(simulate(design(32), still(coils=1)), toml)
    assert all("Fallback" in image.meta for image in images)
    assert len(result.errors) == 1
    assert said in result.errors[0]


def test_unknown_sequence_is_reported_to_the_client(scanner):
    simulation = simulate(design(32), still(coils=1))
    signature = simulation.trajectory.file.stem
    for parameter in simulation.header.userParameters.userParameterString:
        if parameter.name == SIGNATURE_PARAMETER:
            parameter.value = "f" * 40
    result, _ = scanner(simulation, KEYS)
    assert "f" * 32 in result.errors[0]
    assert "f" * 33 not in result.errors[0]
    assert "seq_meta" in result.errors[0]
    assert signature not in result.errors[0]


def test_summary_of_the_latency_reaches_the_client(scanner, caplog):
    caplog.set_level(logging.INFO)
    scanner(simulate(design(32), still(coils=1, readouts=60)), KEYS)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("server: 4 images")]
    assert len(said) == 1
    for word in ("per second", "p50", "p95", "p99", "largest backlog"):
        assert word in said[0]


def test_readout_of_another_length_is_an_error(scanner):
    simulation = simulate(design(32), still(coils=1))
    simulation.trajectory.file.parent.mkdir(exist_ok=True)
    longer = simulate(design(32, pre_discard=20), still(coils=1))
    simulation.header.userParameters, longer.header.userParameters = (
        longer.header.userParameters, simulation.header.userParameters)  # fmt: skip
    result, _ = scanner(simulation, KEYS)
    assert result.errors, "the metafile of the other design is not there"
    write_metafile(longer.trajectory, f"seq_meta/{longer.trajectory.file.name}")
    result, _ = scanner(simulation, KEYS, again=True)
    assert "samples" in result.errors[0]


def test_settings_made_by_hand_find_the_metafile_in_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "PROJECT_FOLDER", tmp_path)
    for folder in ("seq_meta", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trajectory = design()
    write_metafile(trajectory, tmp_path / "seq_meta" / trajectory.file.name)
    scan = spiral.SpiralScan(ViewSharingConfig(), simulate(trajectory, still()).header)
    assert scan.nominal.arms == trajectory.arms
