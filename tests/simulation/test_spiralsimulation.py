import dataclasses

import ismrmrd
import numpy as np
import pytest

import coils
from recon import nufft, physio, physiobins
from recon.trajectory import ArmCounter, signature_of
from simulation.spiraldesign import SpiralDesign, design_spiral, synthetic_girf
from simulation.spiralsimulation import Scan, readout_axes, simulate
from simulation.spiraltruth import Truth

SMALL = SpiralDesign(fov=0.256, resolution=4e-3, interleaves=15, arms=34, pre_discard=6)
TRAJECTORY = design_spiral(SMALL)
STILL = Scan(readouts=34, coils=4, still=True, noise=0.0, waveforms=False)


def reconstruct(simulation, k=None, oversampling=1.0):
    """Coil images [coil, y, x] from all readouts, as a reconstruction would: from metafile and readouts alone."""
    nominal, counter = simulation.trajectory, None
    fitted, images = None, 0
    for acquisition in simulation.acquisitions():
        if fitted is None:
            fitted = (nominal if k is None else dataclasses.replace(nominal, k=k)).fitted_to(acquisition)
            counter = ArmCounter(fitted.arms, on_gap=lambda _: None)
        arm = counter.place(acquisition)
        if arm is not None:
            size = fitted.matrix_size(oversampling)
            coordinates = fitted.cycles_per_fov(oversampling)[arm.column]
            images += nufft.adjoint(coordinates, fitted.samples(acquisition), (size, size), fitted.weights)
    return images


def relative_error(image, truth):
    scale = (image * truth).sum() / (image**2).sum()
    return np.linalg.norm(scale * image - truth) / np.linalg.norm(truth)


def test_reconstruction_is_the_truth():
    simulation = simulate(TRAJECTORY, STILL)
    truth = simulation.truth.frame([0]) * coils.rssq(simulation.truth.maps())
    assert relative_error(coils.rssq(reconstruct(simulation)), truth) < 0.065
    images = reconstruct(simulation, oversampling=1.5)
    larger = simulation.truth.frame([0], 96)
    body = larger > 0.1
    assert relative_error(coils.rssq(images)[body], (larger * coils.rssq(simulation.truth.maps(96)))[body]) < 0.065
    maps = simulation.truth.maps(96)
    agreement = np.abs((images * maps.conj()).sum(0)) / (coils.rssq(images) * coils.rssq(maps))
    assert agreement[body].mean() > 0.998


def test_density_one_is_pixel_value_one():
    simulation = simulate(TRAJECTORY, dataclasses.replace(STILL, coils=1))
    edge = np.linalg.norm(TRAJECTORY.k, axis=-1).max() * TRAJECTORY.resolution
    image = reconstruct(simulation)[0] * np.pi * edge**2 / (TRAJECTORY.weights.sum() * 34)
    truth = simulation.truth.frame([0])
    assert image.sum().real == pytest.approx(truth.sum(), rel=0.05)
    assert (image.real * truth).sum() / (truth**2).sum() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("matrix", [64, 63, 41])
@pytest.mark.parametrize("girf", [None, synthetic_girf()], ids=["ideal", "distorted"])
def test_a_point_lands_where_it_is(matrix, girf):
    trajectory = design_spiral(dataclasses.replace(SMALL, fov=matrix * 4e-3))
    x, y = 21.3, -34.9
    scan = dataclasses.replace(STILL, coils=1, point=(x, y), girf=girf, rotation=(20.0, 10.0, -30.0))
    simulation = simulate(trajectory, scan)
    image = np.abs(reconstruct(simulation, simulation.truth.actual_k)[0])
    row, column = np.unravel_index(image.argmax(), image.shape)
    part = image[row - 4 : row + 5, column - 4 : column + 5]
    part = np.where(part > 0.2 * part.max(), part, 0)
    rows, columns = np.mgrid[row - 4 : row + 5, column - 4 : column + 5]
    assert (part * rows).sum() / part.sum() == pytest.approx(matrix // 2 - y / 4, abs=0.05)
    assert (part * columns).sum() / part.sum() == pytest.approx(matrix // 2 - x / 4, abs=0.05)
    truth = simulation.truth.frame([0])
    assert (truth * np.mgrid[:matrix, :matrix][0]).sum() / truth.sum() == pytest.approx(matrix // 2 - y / 4, abs=0.03)


@pytest.mark.parametrize("rotation", [(0.0, 0.0, 0.0), (25.0, -40.0, 15.0)])
def test_distorted_data_needs_the_true_trajectory(rotation):
    trajectory = design_spiral(dataclasses.replace(SMALL, resolution=2.5e-3))
    scan = dataclasses.replace(STILL, rotation=rotation)
    ideal = simulate(trajectory, scan)
    distorted = simulate(trajectory, dataclasses.replace(scan, girf=synthetic_girf()))
    truth = ideal.truth.frame([0]) * coils.rssq(ideal.truth.maps())
    without = relative_error(coils.rssq(reconstruct(ideal)), truth)
    corrected = relative_error(coils.rssq(reconstruct(distorted, distorted.truth.actual_k)), truth)
    nominal = relative_error(coils.rssq(reconstruct(distorted)), truth)
    assert corrected < 1.05 * without
    assert nominal > 2 * without
    np.testing.assert_array_equal(distorted.trajectory.k, trajectory.k)


def test_moving_data_blurs_when_many_readouts_are_shared():
    scan = Scan(readouts=330, coils=4, noise=0.0, waveforms=False)
    simulation = simulate(design_spiral(dataclasses.replace(SMALL, arms=330)), scan)
    trajectory, truth = simulation.trajectory, simulation.truth
    data = np.stack([trajectory.samples(acquisition) for acquisition in simulation.acquisitions()], axis=1)
    weight = coils.rssq(truth.maps())
    groups = [range(n, n + 7) for n in range(28, 294, 14)]
    frames = truth.frames(groups) * weight

    def share(group):
        window = slice(group[3] - 27, group[3] + 28)
        samples = np.ascontiguousarray(data[:, window])
        return coils.rssq(nufft.adjoint(trajectory.cycles_per_fov()[window], samples, (64, 64), trajectory.weights))

    shared = np.stack([share(group) for group in groups])
    assert relative_error(shared, frames) > 0.11  # 0.12 and more at the usual resolution
    assert np.corrcoef((shared - shared.mean(0)).ravel(), (frames - frames.mean(0)).ravel())[0, 1] > 0.7


def test_true_frames_are_means_of_their_readouts():
    truth = simulate(TRAJECTORY, Scan(readouts=200, coils=2, slices=2)).truth
    assert truth.frames([[0], [60, 60, 0]]).shape == (2, 64, 64)
    single = truth.frames([[0], [60]])
    np.testing.assert_allclose(truth.frame([60, 60, 0]), (2 * single[1] + single[0]) / 3, atol=1e-12)
    assert np.linalg.norm(single[0] - single[1]) > 0.05 * np.linalg.norm(single[0])
    assert np.linalg.norm(truth.frame([0]) - truth.frame([1])) > 0.05 * np.linalg.norm(single[0])  # the other slice


def test_truth_survives_its_file(tmp_path):
    chest = Scan(readouts=40, coils=3, slices=2, lost=3, girf=synthetic_girf())
    for scan in (chest, Scan(readouts=9, point=(1.0, 2.0))):
        truth = simulate(TRAJECTORY, scan).truth
        truth.save(tmp_path / "truth.h5")
        read = Truth.load(tmp_path / "truth.h5")
        for field in dataclasses.fields(Truth):
            if field.name != "coils":
                np.testing.assert_array_equal(getattr(read, field.name), getattr(truth, field.name))
        np.testing.assert_array_equal(read.maps(), truth.maps())
        np.testing.assert_array_equal(read.frame([1, 5]), truth.frame([1, 5]))


@pytest.mark.parametrize("remove_oversampling", [False, True])
def test_noise_level_is_that_of_a_gridded_image(remove_oversampling):
    scan = dataclasses.replace(STILL, noise=0.05, point=(0.0, 0.0), remove_oversampling=remove_oversampling)
    difference = reconstruct(simulate(TRAJECTORY, scan)) - reconstruct(
        simulate(TRAJECTORY, dataclasses.replace(scan, noise=0.0))
    )
    edge = np.linalg.norm(TRAJECTORY.k, axis=-1).max() * TRAJECTORY.resolution
    used = TRAJECTORY.weights[:: 2 if remove_oversampling else 1].sum()
    assert (difference * np.pi * edge**2 / (34 * used)).real.std() == pytest.approx(0.05, rel=0.05)


def test_readouts_carry_what_a_scanner_says():
    scan = Scan(readouts=70, coils=3, noise_scan=True, dummies=4, lost=5, slices=3, rotation=(10.0, 20.0, 30.0))
    simulation = simulate(TRAJECTORY, scan)
    readouts = list(simulation.acquisitions())
    assert len(readouts) == 1 + 4 + 65
    assert readouts[0].is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert all(readout.is_flag_set(ismrmrd.ACQ_IS_DUMMYSCAN_DATA) for readout in readouts[1:5])
    imaging, truth = readouts[5:], simulation.truth
    received = np.flatnonzero(truth.received)
    np.testing.assert_array_equal(truth.scan_counter[received], received + 6)
    assert [readout.scan_counter for readout in imaging] == (received + 6).tolist()
    assert [readout.idx.kspace_encode_step_1 for readout in imaging] == (received % 34).tolist()
    assert [readout.idx.slice for readout in imaging] == (received % 3).tolist()
    stamps = np.array([readout.acquisition_time_stamp for readout in imaging]) - imaging[0].acquisition_time_stamp
    assert np.abs(stamps * 2.5e-3 - received * 5.74e-3).max() <= 1.25e-3 + 1e-9
    assert readouts[4].acquisition_time_stamp < imaging[0].acquisition_time_stamp
    assert imaging[0].is_flag_set(ismrmrd.ACQ_FIRST_IN_SLICE)
    assert imaging[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)
    assert [readout.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for readout in imaging] == [False] * 64 + [True]
    readout = imaging[1]
    assert (readout.active_channels, readout.number_of_samples) == (3, TRAJECTORY.readout_length)
    assert readout.sample_time_us == pytest.approx(2.0)
    axes = readout_axes((10.0, 20.0, 30.0))
    np.testing.assert_allclose([readout.read_dir, readout.phase_dir, readout.slice_dir], axes, atol=1e-6)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    positions = {readout.idx.slice: tuple(np.round(np.dot(axes, readout.position), 3) + 0.0) for readout in imaging}
    assert positions == {0: (0, 0, -9), 1: (0, 0, 0), 2: (0, 0, 9)}
    counter = ArmCounter(TRAJECTORY.arms, on_gap=lambda _: None)
    arms = [counter.place(readout) for readout in readouts]
    assert [arm.column for arm in arms if arm] == truth.column[received].tolist()
    assert counter.missing == 5


def test_slices_can_follow_one_another():
    simulation = simulate(TRAJECTORY, Scan(readouts=50, coils=1, slices=2, interleaved=False))
    readouts = list(simulation.acquisitions())
    assert [readout.idx.slice for readout in readouts] == [0] * 25 + [1] * 25
    first = [n for n, readout in enumerate(readouts) if readout.is_flag_set(ismrmrd.ACQ_FIRST_IN_SLICE)]
    last = [n for n, readout in enumerate(readouts) if readout.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert (first, last) == ([0, 25], [24, 49])


def test_items_come_in_the_order_of_time_and_again():
    simulation = simulate(TRAJECTORY, Scan(readouts=400, coils=1))
    items = list(simulation.items())
    assert sum(isinstance(item, ismrmrd.Acquisition) for item in items) == 400
    assert {item.waveform_id for item in items if isinstance(item, ismrmrd.Waveform)} == {0, 1025}
    ends = []
    for item in items:
        if isinstance(item, ismrmrd.Waveform):
            ends.append(item.time_stamp + item.number_of_samples * item.sample_time_us / 2500)
        elif ends:
            assert ends[-1] <= item.acquisition_time_stamp  # never before it is complete
    assert ends == sorted(ends)
    np.testing.assert_array_equal(items[5].data, next(x for n, x in enumerate(simulation.items()) if n == 5).data)


@pytest.mark.parametrize("source", physio.TRIGGER_SOURCES)
def test_waveforms_sort_readouts_as_the_truth_does(source):
    """Every assigned readout in the right cardiac bin, at least 99 % in the right respiratory one."""
    simulation = simulate(TRAJECTORY, Scan(readouts=2304, coils=1))
    truth, waveforms = simulation.truth, list(simulation.waveforms())
    raster = physio.readout_raster(43200 * 400 + np.rint(truth.time / 2.5e-3), truth.scan_counter)
    found = physiobins.cardiac_bins(physio.cardiac_triggers(waveforms, source, raster, 0.15), 2304, 8)
    beats = np.rint(truth.beats / 5.74e-3).astype(int)
    right = physiobins.cardiac_bins(beats[(beats > -200) & (beats < 2304)], 2304, 8)
    np.testing.assert_array_equal(found[right >= 0][100:-300], right[right >= 0][100:-300])
    assert (found == right)[found >= 0].mean() > 0.99
    breathing = physiobins.respiratory_bins(physio.respiration(waveforms, raster), 6, 0.1, raster.tr)
    expected = physiobins.respiratory_bins(truth.inhalation, 6, 0.1, 5.74e-3)
    assert (breathing == expected)[breathing >= 0].mean() > 0.99


def test_header():
    scan = Scan(readouts=20, coils=3, slices=2, patient_position="FFP")
    header = ismrmrd.xsd.CreateFromDocument(simulate(TRAJECTORY, scan).header.toXML("utf-8"))
    assert signature_of(header) == TRAJECTORY.file.stem
    encoding = header.encoding[0]
    assert encoding.trajectory.value == "spiral"
    assert (encoding.reconSpace.matrixSize.x, encoding.reconSpace.fieldOfView_mm.y) == (64, pytest.approx(256))
    assert encoding.encodingLimits.slice.maximum == 1
    assert header.measurementInformation.patientPosition.value == "FFP"
    assert header.sequenceParameters.TR == [5.74]
    assert header.acquisitionSystemInformation.receiverChannels == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readouts": 2}, "readouts is 2"),
        ({"tr": 1e-3}, "a TR of 1 ms is too short"),
        ({"lost": 33}, "lost is 33, must be 0 to 32"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"slices": 35}, "too few for 35 slices"),
    ],
)
def test_impossible_scans_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        simulate(TRAJECTORY, dataclasses.replace(STILL, **change))


def test_an_odd_number_of_samples_cannot_be_halved():
    odd = dataclasses.replace(TRAJECTORY, pre_discard=TRAJECTORY.pre_discard + 1)
    with pytest.raises(ValueError, match="cannot be halved"):
        simulate(odd, dataclasses.replace(STILL, remove_oversampling=True))
