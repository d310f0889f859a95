"""simplenufft against the truth: every kind of scan, geometry, sorting, sources of the trajectory, what is refused."""

import copy

import ismrmrd
import numpy as np
import pytest

import simplenufft
from pulseq_files import header_of, spiral_sequence, write
from recon import density, memory, noncartesian, pulseq, trajectorysources
from recon.outliers import UnusableScanError
from recon.readouttrajectory import ReadoutTrajectoryError
from recon.trajectory import TrajectoryError, write_metafile
from simplenufft import NufftConfig
from simulation import trajectories
from simulation.phantom import Coils
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralphantom import chest, moving_kspace
from simulation.spiralsimulation import SLICE_THICKNESS, Scan, simulate
from spiral_sessions import Client, configure, in_axial_fields

PIXEL = 4.0  # [mm]
ARMS = {"spiral": 8, "radial": 64, "rosette": 84, "variable": 11}
KIND = {"spiral": "spiral", "radial": "radial", "rosette": "other", "variable": "spiral"}


def make(shape="spiral", matrix=40, readouts=None, ordering="linear", arms=None, **scan):
    """Simulated scan; noiseless, still and with its trajectory in the readouts unless the options say otherwise."""
    design = SpiralDesign(
        fov=1e-3 * PIXEL * matrix, resolution=1e-3 * PIXEL, interleaves=arms or ARMS[shape], ordering=ordering, arms=34
    )
    trajectory = design_spiral(design) if shape == "spiral" else trajectories.design(shape, design)
    default = {"coils": 1, "noise": 0, "still": True, "waveforms": False, "tr": 20e-3, "carried": "1/m"}
    default["kind"] = KIND[shape]
    readouts = readouts or trajectory.arms * scan.get("partitions", 1)
    return simulate(trajectory, Scan(readouts=readouts, **default | scan))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the module; returns its images and what it told the client."""

    def call(simulation, items=None, **settings):
        configure(monkeypatch, NufftConfig, tmp_path, reconstruction={"coil_combine": "rssq"} | settings)
        client = Client([])
        client.items = simulation.items() if items is None else items(client) if callable(items) else items
        simplenufft.process(client, "simplenufft", simulation.header)
        return client

    return call


def centre_of(image):
    """Centre (row, column) of the bright spot in an image."""
    row, column = np.unravel_index(np.argmax(image), image.shape)
    rows, columns = np.mgrid[row - 3 : row + 4, column - 3 : column + 4]
    spot = image[rows, columns].astype(float) ** 2
    return np.sum(rows * spot) / spot.sum(), np.sum(columns * spot) / spot.sum()


def relative_error(image, truth):
    image = image.astype(float)
    return np.linalg.norm(image * (np.vdot(image, truth) / np.vdot(image, image)) - truth) / np.linalg.norm(truth)


# ---- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "rows", "pixel"), [(40, 40, PIXEL), (41, 33, PIXEL), (64, 81, PIXEL / 2)])
@pytest.mark.parametrize("kind", ARMS)
def test_a_point_lands_where_it_is(run, kind, columns, rows, pixel):
    """Also in images that are odd, not square, or finer than the scan."""
    simulation = make(kind, point=(-23.0, 37.0))
    space = simulation.header.encoding[0].reconSpace = copy.deepcopy(simulation.header.encoding[0].reconSpace)
    space.matrixSize.x, space.matrixSize.y = columns, rows
    space.fieldOfView_mm.x, space.fieldOfView_mm.y = pixel * columns, pixel * rows
    (image,) = run(simulation).images
    assert image.data.shape == (1, 1, rows, columns)
    assert tuple(image.field_of_view) == pytest.approx((pixel * columns, pixel * rows, 1e3 * SLICE_THICKNESS))
    assert centre_of(image.data[0, 0]) == pytest.approx((rows // 2 - 37 / pixel, columns // 2 + 23 / pixel), abs=0.1)


@pytest.mark.parametrize("kind", ["spiral", "radial"])
@pytest.mark.parametrize("partitions", [4, 5])
def test_a_point_in_a_stack_lands_in_its_partition(run, kind, partitions):
    thickness = 1e3 * SLICE_THICKNESS
    simulation = make(kind, partitions=partitions, point=(-23.0, 37.0, thickness), rotation=(20.0, 10.0, -30.0))
    client = run(simulation)
    assert [image.slice for image in client.images] == list(range(partitions))
    largest = [int(image.data.max()) for image in client.images]
    there = partitions // 2 - 1  # z = -(p - P // 2) * thickness
    assert np.argmax(largest) == there
    assert max(value for p, value in enumerate(largest) if p != there) < 0.3 * largest[there]
    image = client.images[there]
    assert centre_of(image.data[0, 0]) == pytest.approx((20 - 37 / PIXEL, 20 + 23 / PIXEL), abs=0.1)
    assert tuple(image.field_of_view)[2] == pytest.approx(thickness)
    slice_dir = np.array(image.slice_dir)
    for p, each in enumerate(client.images):
        np.testing.assert_allclose(each.position, (p - partitions // 2) * thickness * slice_dir, atol=1e-4)


@pytest.mark.parametrize("partitions", [1, 4])
def test_concomitant_fields_are_corrected_where_each_partition_is(run, partitions):
    thickness = 1e3 * SLICE_THICKNESS
    place = (-23.0, 37.0) if partitions == 1 else (-23.0, 37.0, thickness)
    simulation = make(
        arms=4, partitions=partitions, point=place, position=(0.0, 0.0, 150.0), matrix=64, field_strength=0.55
    )
    height = 0.0 if partitions == 1 else -SLICE_THICKNESS  # kz goes against the patient's z
    there = max(partitions // 2 - 1, 0)
    plain, disturbed, corrected = (
        run(simulation, items, concomitant=asked)
        for items, asked in (
            (simulation.acquisitions(), "off"),
            (in_axial_fields(simulation.acquisitions(), simulation.trajectory, height), "off"),
            (in_axial_fields(simulation.acquisitions(), simulation.trajectory, height), "auto"),
        )
    )
    truth = plain.images[there].data[0, 0].astype(float)
    assert relative_error(disturbed.images[there].data[0, 0], truth) > 0.1
    assert relative_error(corrected.images[there].data[0, 0], truth) < 0.01
    assert any("concomitant fields at 0.55 T are corrected" in text for text in corrected.texts)


def test_partitions_of_a_stack_are_the_chest_at_each_height(run):
    simulation = make(partitions=3, matrix=48)
    client = run(simulation)
    truths = [simulation.truth.frame([0], partition=p) for p in range(3)]
    errors = [[relative_error(image.data[0, 0], truth) for truth in truths] for image in client.images]
    assert np.argmin(errors, axis=1).tolist() == [0, 1, 2]
    assert max(np.diag(errors)) < 0.2


def test_arms_may_differ_from_partition_to_partition(run):
    """A disc with soft edges in the middle partition, seen by arms that are turned in the others."""
    simulation = make(partitions=3, point=(12.0, 20.0, 0.0))
    angle = np.exp(1j * np.linspace(0, 0.5, 3))[np.arange(24) // 8]
    k = simulation.trajectory.k[np.arange(24) % 8] @ [1, 1j] * angle[:, np.newaxis]
    items = []
    for item, place in zip(simulation.acquisitions(), k, strict=True):
        item.traj[10:, :2] = np.stack([place.real, place.imag], axis=-1)
        item.data[0, 10:] = np.exp(-2j * np.pi * (place.real * 0.012 + place.imag * 0.020) - (np.abs(place) / 80) ** 2)
        item.data[:] *= np.sinc(item.traj[0, 2] * SLICE_THICKNESS)
        items.append(item)
    images = run(simulation, items).images
    assert centre_of(images[1].data[0, 0]) == pytest.approx((20 - 20 / PIXEL, 20 - 12 / PIXEL), abs=0.1)
    assert images[1].data.max() > 5 * max(images[0].data.max(), images[2].data.max())


def test_outer_partitions_may_reach_less_far(run):
    """As in a stack that fills a sphere. The unit is one for all partitions, also if the first ones reach nowhere."""
    simulation = make(partitions=5, point=(12.0, 20.0, 0.0))
    scales = np.sqrt(1.01 - np.linspace(-1, 1, 5) ** 2)
    items = list(simulation.acquisitions())
    for item in items:
        item.traj[:, :2] *= scales[item.idx.kspace_encode_step_2]
        k = item.traj[:, :2].astype(float)
        item.data[0] = np.exp(-2j * np.pi * (k @ [0.012, 0.020])) * np.exp(-np.sum(k**2, axis=-1) / 80**2)
    images = run(simulation, items).images
    assert np.argmax([image.data.max() for image in images]) == 2
    assert centre_of(images[2].data[0, 0]) == pytest.approx((20 - 20 / PIXEL, 20 - 12 / PIXEL), abs=0.1)


def test_stack_whose_partitions_run_backwards_is_refused(run):
    """By the readouts' kz: the partitions would be in the wrong order."""
    simulation = make(partitions=4)
    items = list(simulation.acquisitions())
    for item in items:
        item.idx.kspace_encode_step_2 = 3 - item.idx.kspace_encode_step_2
    with pytest.raises(ReadoutTrajectoryError, match="expected one positive value"):
        run(simulation, items)


def test_stack_whose_header_has_one_partition_is_refused(run):
    """The partitions would be added up."""
    simulation = make(partitions=4)
    encoding = simulation.header.encoding[0]
    encoding.encodedSpace.matrixSize.z = encoding.reconSpace.matrixSize.z = 1
    encoding.encodingLimits.kspace_encoding_step_2 = None
    with pytest.raises(ValueError, match=r"kspace_encode_step_2 0 to 3, but encodedSpace\.matrixSize\.z is 1"):
        run(simulation)


# ---- quality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARMS)
@pytest.mark.parametrize("combine", ["adaptive", "rssq"])
def test_image_is_the_truth(run, kind, combine):
    simulation = make(kind, matrix=48, coils=4, readouts=None)
    (image,) = run(simulation, coil_combine=combine).images
    truth = simulation.truth.frame([0]) * np.sqrt((np.abs(simulation.truth.maps()) ** 2).sum(axis=0))
    assert relative_error(image.data[0, 0], truth) < (0.16 if kind in ("rosette", "radial") else 0.12)
    assert relative_error(image.data[0, 0].T, truth) > 0.3


@pytest.mark.parametrize("part", [0.5, 1.5])
def test_the_field_of_view_of_the_image_makes_no_difference(run, part):
    """The density is that of the acquired field of view, whatever part of the plane is shown."""
    simulation = make(matrix=48)
    (whole,) = run(simulation).images
    space = simulation.header.encoding[0].reconSpace = copy.deepcopy(simulation.header.encoding[0].reconSpace)
    size = space.matrixSize.x = space.matrixSize.y = int(48 * part)
    space.fieldOfView_mm.x = space.fieldOfView_mm.y = PIXEL * size
    (image,) = run(simulation).images
    common = [each.data[0, 0] for each in (whole, image)]
    shown = [each[tuple(slice(n // 2 - 12, n // 2 + 12) for n in each.shape)].astype(float) for each in common]
    assert relative_error(shown[1], shown[0]) < 0.01


@pytest.mark.parametrize("blades", [1, 9])
def test_lines_that_pass_by_the_centre_are_all_of_the_image(run, blades):
    """Lines of a Cartesian grid, or of blades that turn: outer ones are dark, none of them is left out."""
    matrix, fov = 40, 0.160
    simulation = make("radial", matrix=matrix)
    first = next(simulation.acquisitions())
    ellipses = chest(0, 0, 0, fov)[np.newaxis]
    items = []
    width = matrix if blades == 1 else 8
    for angle in np.pi * np.arange(blades) / blades:
        for line in np.arange(width) - (width - 1) / 2 if blades > 1 else np.arange(width) - width // 2:
            k = (np.arange(matrix) - matrix // 2 + 1j * line) / fov * np.exp(1j * angle)
            k = np.stack([k.real, k.imag], axis=-1)
            item = ismrmrd.Acquisition.from_array(
                moving_kspace(ellipses, k[np.newaxis], Coils(((0.0, 0.0),), ((1.0,),)))[0].astype(np.complex64),
                k.astype(np.float32), scan_counter=len(items) + 1,
            )  # fmt: skip
            for name in ("position", "read_dir", "phase_dir", "slice_dir", "sample_time_us"):
                setattr(item, name, getattr(first, name))
            items.append(item)
    simulation.header.encoding[0].encodingLimits.kspace_encoding_step_1 = None
    client = run(simulation, items)
    assert not [text for text in client.texts if text.startswith("WARNING")]
    assert relative_error(client.images[0].data[0, 0], simulation.truth.frame([0])) < 0.15


@pytest.mark.parametrize("unit", ["cycles", "rad/m", "pixel"])
def test_units_make_no_difference(run, unit):
    reference, other = run(make("radial")).images[0], run(make("radial", carried=unit)).images[0]
    np.testing.assert_allclose(other.data, reference.data, atol=5)


def test_metafile_or_readouts_make_little_difference(run, tmp_path):
    simulation = make(matrix=48, carried="")
    write_metafile(simulation.trajectory, tmp_path / simulation.trajectory.file.name)
    client = run(simulation)
    (image,) = client.images
    assert any("trajectory: metafile" in text for text in client.texts)
    assert relative_error(image.data[0, 0], simulation.truth.frame([0])) < 0.12
    (carried,) = run(make(matrix=48)).images
    assert relative_error(image.data[0, 0], carried.data[0, 0].astype(float)) < 0.05


def test_why_the_metafile_is_not_taken_is_told(run, tmp_path):
    simulation = make()
    file = tmp_path / simulation.trajectory.file.name
    file.write_bytes(b"damaged")
    simulation.header.userParameters = header_of(file.stem).userParameters
    client = run(simulation)
    assert len(client.images) == 1
    assert any(f"no other source: metafile: {file}" in text for text in client.texts)


def test_sequence_is_read_before_the_first_readout(run, monkeypatch, tmp_path):
    """The first reading of a long one takes seconds."""
    _, signature = write(spiral_sequence(8, FOV=[0.24, 0.24, 0.005]), tmp_path / "any.seq")
    configure(monkeypatch, NufftConfig, tmp_path)
    simplenufft.prepare("simplenufft", header_of(signature))
    monkeypatch.setattr(pulseq, "read_readouts", lambda *_: pytest.fail("it is read again"))
    assert "any.seq" in trajectorysources.find(header_of(signature), [tmp_path]).told


# ---- sorting -------------------------------------------------------------------------------------------------------


def counters(client):
    return [(i.repetition, i.slice, i.contrast, i.set, i.phase) for i in client.images]


def test_one_image_for_each_set_of_counters(run):
    simulation = make()
    limits = simulation.header.encoding[0].encodingLimits
    limits.contrast = limits.set = limits.phase = ismrmrd.xsd.limitType(minimum=0, maximum=1, center=0)
    items = []
    for repetition in range(2):
        for name in ("slice", "contrast", "set", "phase"):
            for item in make(point=(0.0, 0.0)).acquisitions():
                item.idx.repetition = repetition
                setattr(item.idx, name, 1)
                items.append(item)
    client = run(simulation, items)
    kinds = [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    assert counters(client) == [(repetition, *kind) for repetition in range(2) for kind in kinds]
    assert [image.image_index for image in client.images] == list(range(1, 9))


def test_images_come_while_the_scan_goes_on_and_an_incomplete_set_at_its_end(run):
    simulation = make(readouts=8 * 3 + 4, point=(8.0, -20.0))
    sent = []

    def scan(client):
        for item in simulation.acquisitions():
            sent.append(len(client.images))
            yield item

    client = run(simulation, scan)
    assert counters(client) == [(repetition, 0, 0, 0, 0) for repetition in range(4)]
    assert sent[-1] == 3
    for image in client.images[:3]:
        assert centre_of(image.data[0, 0]) == pytest.approx((25, 18), abs=0.1)
    last = client.images[3].data[0, 0]
    assert np.unravel_index(last.argmax(), last.shape) == (25, 18)


def test_stack_of_few_arms_is_not_torn_apart(run):
    """Readouts are compared with others of their partition: that must not let some of a repetition come too late."""
    client = run(make(arms=3, partitions=4, readouts=36, point=(8.0, -20.0, 0.0)))
    assert [(image.repetition, image.slice) for image in client.images] == [(r, p) for r in range(3) for p in range(4)]
    assert not [text for text in client.texts if text.startswith("WARNING")]
    for image in client.images[2::4]:
        assert centre_of(image.data[0, 0]) == pytest.approx((25, 18), abs=0.1)


def test_repetition_without_any_signal_is_left_out_and_told(run):
    simulation = make(readouts=24)
    items = list(simulation.acquisitions())
    for item in items[8:16]:
        item.data[:] = 0
    client = run(simulation, items)
    assert [image.repetition for image in client.images] == [0, 2]
    assert any("repetition 1" in text and "none of the 8 imaging readouts" in text for text in client.texts)


def test_scan_without_any_signal_is_refused(run):
    simulation = make()
    items = list(simulation.acquisitions())
    for item in items:
        item.data[:] = 0
    with pytest.raises(UnusableScanError, match="none of the 8 imaging readouts can be used: 8 all zero"):
        run(simulation, items)


def test_readouts_of_one_arm_are_averaged(run):
    once = list(make(point=(8.0, -20.0)).acquisitions())
    twice = [*once, *make(point=(8.0, -20.0)).acquisitions()]
    for item in twice[8:]:
        item.idx.average = 1
        item.scan_counter += 8
    images = [run(make(), items).images for items in (once, twice)]
    assert [len(each) for each in images] == [1, 1]
    np.testing.assert_allclose(images[0][0].data, images[1][0].data, atol=1)


def test_header_comes_from_the_middle_readout(run):
    simulation = make(slices=2, interleaved=False, readouts=16, position=(1.0, 2.0, 3.0))
    for image, first in zip(run(simulation).images, (0, 8), strict=True):
        middle = list(simulation.acquisitions())[first + 4]
        assert image.acquisition_time_stamp == middle.acquisition_time_stamp
        assert image.position[:] == middle.position[:]


def test_samples_to_discard_are_no_part_of_the_image(run):
    simulation = make(point=(8.0, -20.0))
    items = list(simulation.acquisitions())
    assert items[0].discard_pre == 10
    for item in items:
        item.discard_post = 3
        item.data[:, :10] = 1e5
        item.data[:, -3:] = 1e5
    (image,) = run(simulation, items).images
    assert centre_of(image.data[0, 0]) == pytest.approx((25, 18), abs=0.1)


def test_orientation_that_changes_within_an_image_is_told(run):
    items = list(make(point=(8.0, -20.0)).acquisitions())
    for item in items[:3]:
        item.position = (0.0, 0.0, 50.0)
    client = run(make(), items)
    assert len(client.images) == 1
    assert any("3 readouts are left out: others of the same image" in text for text in client.texts)


def test_equal_arms_share_their_tables(monkeypatch, run):
    calls = []
    monkeypatch.setattr(noncartesian, "compensation", lambda *a: calls.append(1) or density.compensation(*a))
    assert len(run(make(readouts=24, slices=1)).images) == 3
    assert len(run(make(partitions=4)).images) == 4
    assert len(calls) == 2


# ---- what is refused, or told ----------------------------------------------------------------------------------------


def test_scan_without_any_trajectory_is_refused(run):
    simulation = make(carried="")
    with pytest.raises(TrajectoryError, match=r"this scan has no trajectory: no metafile .*carries none.*traj is"):
        run(simulation)


def test_cartesian_scan_without_a_trajectory_is_told_where_to_go(run):
    with pytest.raises(TrajectoryError, match="cartesian_recon and simplefft reconstruct such scans"):
        run(make(carried="", kind="cartesian"))


def test_trajectory_of_unknown_unit_is_refused(run):
    items = list(make().acquisitions())
    for item in items:
        item.traj[:] *= 1e6
    with pytest.raises(ReadoutTrajectoryError, match="none of these is near"):
        run(make(), items)


def test_changing_number_of_channels_is_refused(run):
    items = [*list(make().acquisitions())[:4], *list(make(coils=2).acquisitions())[4:]]
    with pytest.raises(ValueError, match="has 2 channels; those before it have 1"):
        run(make(), items)


def test_image_is_refused(run):
    with pytest.raises(TypeError, match="needs raw data"):
        run(make(), [ismrmrd.Image.from_array(np.zeros((4, 4), np.float32))])


def test_header_without_a_field_of_view_is_refused(run):
    simulation = make()
    simulation.header.encoding[0].reconSpace.fieldOfView_mm.x = 0
    with pytest.raises(ValueError, match="reconSpace has no fieldOfView_mm"):
        run(simulation)


def test_epi_is_refused(run):
    """Its readouts may carry a trajectory, but gridding them leaves ghosts."""
    with pytest.raises(ValueError, match=r"trajectory is 'epi'.*cartesian_recon reconstructs EPI"):
        run(make(kind="epi"))


def test_image_that_is_too_large_for_the_memory_is_refused(run, monkeypatch):
    monkeypatch.setattr(memory, "usable", lambda: 1 << 20)
    with pytest.raises(ValueError, match=r"one image of 8 arms with .* would take .* MiB, more than 1 MiB"):
        run(make())


def test_missing_partitions_are_told(run):
    simulation = make(partitions=4)
    client = run(simulation, list(simulation.acquisitions())[:24])
    assert len(client.images) == 4
    assert any("1 of 4 partitions are missing" in text for text in client.texts)


def test_no_readouts_no_image(run):
    client = run(make(), [])
    assert not client.images
    assert "no imaging readouts" in client.texts[-1]


def test_a_readout_that_is_no_measurement_is_left_out(run):
    simulation = make("radial", point=(8.0, -20.0))
    items = list(simulation.acquisitions())
    items[7].data[0, 30] = np.nan
    client = run(simulation, items)
    assert centre_of(client.images[0].data[0, 0]) == pytest.approx((25, 18), abs=0.1)
    assert any("1 of 64 imaging readouts left out" in text for text in client.texts)
