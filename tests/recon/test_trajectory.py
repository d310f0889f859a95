import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest
from ismrmrd import xsd
from scipy.io import loadmat, savemat

from recon.trajectory import (
    ArmCounter,
    Gap,
    Trajectory,
    TrajectoryError,
    find_metafile,
    read_metafile,
    signature_of,
    write_metafile,
)

SIGNATURE = "0123456789abcdef0123456789ABCDEF"


def spiral(arms=5, samples=12, pre_discard=4, **changes):
    radius, angle = np.linspace(0, 250, samples), np.linspace(0, 9, samples)
    turn = np.arange(arms)[:, None] * 2.4
    k = np.stack([radius * np.cos(angle + turn), radius * np.sin(angle + turn)], axis=-1)
    values = {
        "file": Path("unused.mat"), "k": k, "weights": np.linspace(0, 1, samples), "dwell": 2e-6,
        "pre_discard": pre_discard, "fov": 0.256, "resolution": 0.002, "interleaves": arms, "arm_ordering": "ga",
    }  # fmt: skip
    return Trajectory(**(values | changes))


def header(value=SIGNATURE, name="tSequenceVariant"):
    other = xsd.userParameterStringType(name="first", value="x")
    wanted = xsd.userParameterStringType(name=name, value=value)
    return SimpleNamespace(userParameters=xsd.userParametersType(userParameterString=[other, wanted]))


def readout(counter=1, samples=16, flags=(), coils=2, dwell_us=2.0, **fields):
    data = np.arange(coils * samples).reshape(coils, samples).astype(np.complex64)
    acquisition = ismrmrd.Acquisition.from_array(data, scan_counter=counter, sample_time_us=dwell_us, **fields)
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def contents(**changes):
    """What a metafile holds, in its own layout; a change to None leaves the entry out."""
    kx, ky = np.moveaxis(spiral().k, -1, 0)
    param = {"fov": 25.6, "spatial_resolution": 2.0, "repetitions": 5, "interleaves": 5, "ga_rotation": 111.25,
             "matrix_size": [128, 128], "pre_discard": 4, "arm_ordering": "linear", "dt": 2e-6}  # fmt: skip
    content = {"kx": kx.T, "ky": ky.T, "kz": 0 * kx.T, "w": np.linspace(0, 1, 12)[None]}
    for key, value in changes.items():
        (content if key in content or key == "param" else param)[key] = value
    content.setdefault("param", {key: value for key, value in param.items() if value is not None})
    return {key: value for key, value in content.items() if value is not None}


# --- metafile -------------------------------------------------------------------------------------------------------


def test_metafile_in_physical_units(tmp_path):
    savemat(tmp_path / "m.mat", contents())
    trajectory = read_metafile(tmp_path / "m.mat")
    np.testing.assert_array_equal(trajectory.k, spiral().k)
    np.testing.assert_array_equal(trajectory.weights, np.linspace(0, 1, 12))
    assert trajectory.k.dtype == np.float64
    assert (trajectory.arms, trajectory.readout_length) == (5, 16)
    assert (trajectory.fov, trajectory.resolution) == pytest.approx((0.256, 0.002))
    assert (trajectory.dwell, trajectory.pre_discard) == (2e-6, 4)
    assert (trajectory.interleaves, trajectory.arm_ordering) == (5, "linear")


def test_written_metafile_reads_the_same_and_has_the_designers_layout(tmp_path):
    written = spiral(arms=3, interleaves=2, arm_ordering="linear_custom", dwell=1.5e-6)
    file = write_metafile(written, tmp_path / f"{SIGNATURE}.mat", ga_rotation=112.0)
    again = read_metafile(file)
    np.testing.assert_array_equal(again.k, written.k)
    np.testing.assert_array_equal(again.weights, written.weights)
    for name in ("dwell", "pre_discard", "fov", "resolution", "interleaves", "arm_ordering"):
        assert getattr(again, name) == pytest.approx(getattr(written, name)), name
    raw = loadmat(file)
    assert raw["kx"].shape == raw["ky"].shape == raw["kz"].shape == (12, 3)
    assert raw["w"].shape == (1, 12)
    param = raw["param"][0, 0]
    assert param["fov"].item() == pytest.approx(25.6)
    assert param["matrix_size"].tolist() == [[128, 128]]
    assert param["repetitions"].item() == 3


def test_a_single_arm_stays_an_arm(tmp_path):
    assert read_metafile(write_metafile(spiral(arms=1), tmp_path / "m.mat")).k.shape == (1, 12, 2)


def test_old_metafile_without_dwell_and_others(tmp_path):
    old = {"dt": None, "interleaves": None, "arm_ordering": None, "repetitions": None, "kz": None}
    savemat(tmp_path / "m.mat", contents(**old, w=np.linspace(0, 1, 12)[:, None]))
    trajectory = read_metafile(tmp_path / "m.mat")
    assert (trajectory.dwell, trajectory.interleaves, trajectory.arm_ordering) == (1e-6, 5, "")
    assert trajectory.weights.shape == (12,)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kx": None}, "has no kx"),
        ({"w": None}, "has no w"),
        ({"param": None}, "has no structure param"),
        ({"param": 3.0}, "has no structure param"),
        ({"fov": None}, "has no param.fov"),
        ({"kx": np.zeros((12, 4))}, r"shapes \(12, 4\), \(12, 5\)"),
        ({"kx": np.full((12, 5), np.nan)}, "kx must hold finite real numbers"),
        ({"ky": np.full((12, 5), 1j)}, "ky must hold finite"),
        ({"kz": np.full((12, 5), 99.0)}, "no two-dimensional spiral"),
        ({"w": np.ones((1, 11))}, r"w has shape \(1, 11\), must be 1 x 12"),
        ({"w": np.zeros((1, 12))}, "nothing else than zeros"),
        ({"w": -np.ones((1, 12))}, "negative"),
        ({"fov": 0.0}, "param.fov is 0.0"),
        ({"fov": np.inf}, "param.fov is inf"),
        ({"fov": [1.0, 2.0]}, "must be one number"),
        ({"fov": "wide"}, "param.fov"),
        ({"pre_discard": -1}, "param.pre_discard is -1"),
        ({"pre_discard": 1.5}, "whole number"),
        ({"dt": 0}, "param.dt"),
    ],
)
def test_metafile_that_cannot_be_used(tmp_path, changes, told):
    savemat(tmp_path / "m.mat", contents(**changes))
    with pytest.raises(TrajectoryError, match=told) as caught:
        read_metafile(tmp_path / "m.mat")
    assert str(tmp_path / "m.mat") in str(caught.value)


def test_damaged_metafile_is_named(tmp_path):
    file = write_metafile(spiral(), tmp_path / "m.mat")
    content = file.read_bytes()
    for length in (0, 3, 100, 200, 900, len(content) - 9):
        file.write_bytes(content[:length])
        with pytest.raises(TrajectoryError, match=r"m\.mat"):
            read_metafile(file)


# --- signature and search -------------------------------------------------------------------------------------------


def test_signature_by_name_and_its_first_32_characters():
    assert signature_of(header()) == SIGNATURE
    assert signature_of(header(SIGNATURE + "\0\x7f/../x")) == SIGNATURE


@pytest.mark.parametrize("value", ["../../etc/passwd", "a/b", "a\\b", "..", "a.b", "a\0b", "a b", "a\n", "é", "*"])
def test_hostile_signature(value):
    with pytest.raises(TrajectoryError, match="only letters and digits"):
        signature_of(header(value))


@pytest.mark.parametrize(
    "metadata", [header(name="other"), header(""), SimpleNamespace(userParameters=None), "no header", None]
)
def test_absent_signature(metadata):
    with pytest.raises(TrajectoryError, match="tSequenceVariant"):
        signature_of(metadata)


def test_first_folder_that_has_the_metafile(tmp_path):
    folders = [tmp_path / "absent", tmp_path / "one", tmp_path / "two"]
    for folder, arms in zip(folders[1:], (3, 4), strict=True):
        folder.mkdir()
        write_metafile(spiral(arms=arms), folder / f"{SIGNATURE}.mat")
    trajectory = read_metafile(find_metafile(signature_of(header()), folders))
    assert (trajectory.arms, trajectory.file) == (3, tmp_path / "one" / f"{SIGNATURE}.mat")


def test_missing_metafile_says_what_was_looked_for_where_and_what_is_near(tmp_path):
    write_metafile(spiral(), tmp_path / f"{SIGNATURE[:-1]}0.mat")
    with pytest.raises(TrajectoryError) as caught:
        find_metafile(SIGNATURE, [tmp_path, tmp_path / "absent"])
    told = str(caught.value)
    for part in (f"{SIGNATURE}.mat", f"{tmp_path}, ", f"{tmp_path / 'absent'} (no such", f"similar: {SIGNATURE[:-1]}0"):
        assert part in told


# --- readouts ---------------------------------------------------------------------------------------------------------


def test_full_readout_loses_the_discarded_samples_once():
    trajectory = spiral()
    acquisition = readout(discard_pre=4)
    assert trajectory.fitted_to(acquisition) is trajectory
    np.testing.assert_array_equal(trajectory.samples(acquisition), acquisition.data[:, 4:])
    untouched = spiral(pre_discard=0)
    np.testing.assert_array_equal(untouched.samples(readout(samples=12)), readout(samples=12).data)


@pytest.mark.parametrize("pre_discard", [0, 4, 5])
@pytest.mark.parametrize("samples", [12, 13])
def test_removed_oversampling_keeps_every_second_point_of_the_raster(pre_discard, samples):
    trajectory = spiral(samples=samples, pre_discard=pre_discard)
    total = pre_discard + samples
    if total % 2:
        with pytest.raises(TrajectoryError):
            trajectory.fitted_to(readout(samples=total // 2))
        return
    fitted = trajectory.fitted_to(readout(samples=total // 2, dwell_us=4.0))
    on_raster = np.arange(0, total, 2)
    kept = on_raster[on_raster >= pre_discard] - pre_discard
    np.testing.assert_array_equal(fitted.k, trajectory.k[:, kept])
    np.testing.assert_array_equal(fitted.weights, trajectory.weights[kept])
    assert fitted.readout_length == total // 2
    assert fitted.dwell == 2 * trajectory.dwell
    assert fitted.samples(readout(samples=total // 2)).shape == (2, len(kept))


@pytest.mark.parametrize("samples", [1, 7, 9, 12, 15, 17, 32])
def test_other_readout_length_is_an_error_with_both_numbers(samples):
    with pytest.raises(TrajectoryError, match=rf"{samples} samples.* describes 16 .*4 to discard and 12 .*would be 8"):
        spiral().fitted_to(readout(samples=samples))


def test_readout_that_differs_from_those_before():
    with pytest.raises(TrajectoryError, match="readout 9 has 15 samples, expected 16"):
        spiral().samples(readout(9, samples=15))


def test_samples_that_the_header_discards_are_left_out_as_well():
    trajectory = spiral()  # 4 to discard and 12 samples
    acquisition = readout(discard_pre=7)
    acquisition.discard_post = 2
    fitted = trajectory.fitted_to(acquisition)
    np.testing.assert_array_equal(fitted.k, trajectory.k[:, 3:10])
    np.testing.assert_array_equal(fitted.weights, trajectory.weights[3:10])
    np.testing.assert_array_equal(fitted.samples(acquisition), acquisition.data[:, 7:14])
    with pytest.raises(TrajectoryError, match="discards 8 samples at its start and 0 at its end, expected at most 7"):
        fitted.samples(readout(discard_pre=8))
    with pytest.raises(TrajectoryError, match="discard_pre = 16 and discard_post = 0 of the readouts leave no sample"):
        trajectory.fitted_to(readout(discard_pre=16))


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fov", "resolution", "oversampling", "matrix"),
    [(0.256, 0.002, 1, 128), (0.256, 0.002, 1.5, 192), (0.3, 0.002, 1.0, 150), (0.258, 0.002, 1.0, 129),
     (0.24, 0.0017, 1, 141)],
)  # fmt: skip
def test_matrix_and_phase_of_a_pixel(fov, resolution, oversampling, matrix):
    """A shift by one pixel is a phase of 2 pi k * resolution, whatever the rounding of the matrix."""
    trajectory = spiral(fov=fov, resolution=resolution)
    assert trajectory.matrix_size(oversampling) == matrix
    phase_per_pixel = 2 * np.pi * trajectory.cycles_per_fov(oversampling) / matrix
    np.testing.assert_allclose(phase_per_pixel, 2 * np.pi * trajectory.k * resolution, rtol=1e-12)


# --- counting ---------------------------------------------------------------------------------------------------------


def count(readouts, columns=4):
    gaps = []
    counter = ArmCounter(columns, gaps.append)
    return [counter.place(one) for one in readouts], gaps


def test_columns_repeat():
    arms, gaps = count([readout(n) for n in range(1, 11)])
    assert [arm.number for arm in arms] == list(range(10))
    assert [arm.column for arm in arms] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert gaps == []


def test_lost_readouts_leave_the_others_in_place():
    arms, gaps = count([readout(n) for n in (7, 8, 11, 12, 21)])
    assert [arm.number for arm in arms] == [0, 1, 4, 5, 14]
    assert gaps == [Gap(8, 2), Gap(12, 8)]


@pytest.mark.parametrize(
    "flag",
    [
        ismrmrd.ACQ_IS_NOISE_MEASUREMENT, ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_PHASECORR_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
    ],
)  # fmt: skip
def test_readouts_that_are_none_of_imaging_are_not_counted(flag):
    others = {1, 2, 5, 6, 9}
    arms, gaps = count([readout(n, flags=[flag] if n in others else []) for n in range(1, 11)])
    assert [arm and arm.number for arm in arms] == [None, None, 0, 1, None, None, 2, 3, None, 4]
    assert gaps == []


def test_readouts_that_come_late_go_where_they_belong():
    arms, gaps = count([readout(n) for n in (1, 2, 4, 3, 5, 9, 7, 10)])
    assert [arm.number for arm in arms] == [0, 1, 3, 2, 4, 8, 6, 9]
    assert gaps == [Gap(2, 1), Gap(5, 3)]


@pytest.mark.parametrize("strange", [0, 3, 9000, 2**32 - 1])
def test_noise_readout_with_a_counter_of_its_own_shifts_nothing(strange):
    noise = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
    readouts = [*(readout(n) for n in range(1, 11)), readout(strange, flags=noise), readout(11), readout(12)]
    arms, gaps = count(readouts)
    assert [arm.number for arm in arms if arm] == list(range(12))
    assert gaps == []


def test_loss_next_to_a_navigator():
    navigator = [ismrmrd.ACQ_IS_NAVIGATION_DATA]
    arms, gaps = count([readout(1), readout(3, flags=navigator), readout(6), readout(7)])
    assert [arm and arm.number for arm in arms] == [0, None, 4, 5]
    assert gaps == [Gap(1, 3)]


def test_count_runs_over_all_slices():
    interleaved = [readout(n + 1, idx=ismrmrd.EncodingCounters(slice=n % 3)) for n in range(9)]
    sequential = [readout(n + 1, idx=ismrmrd.EncodingCounters(slice=n // 3)) for n in range(9)]
    for readouts in (interleaved, sequential):
        arms, gaps = count(readouts)
        assert [arm.column for arm in arms] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
        assert gaps == []


@pytest.mark.parametrize("counters", [[0, 0, 0, 0], [1, 2, 1, 2], [5, 5, 6, 7]])
def test_counter_that_does_not_advance(counters, caplog):
    arms, gaps = count([readout(n) for n in counters])
    assert [arm.number for arm in arms] == [0, 1, 2, 3]
    assert gaps == []
    assert caplog.text.count("counting readouts as they arrive") == 1


def test_gaps_go_to_the_log_by_default(caplog):
    counter = ArmCounter(4)
    with caplog.at_level(logging.WARNING):
        for n in (1, 2**32 - 1):
            counter.place(readout(n))
    assert f"{2**32 - 3} readout(s) missing after scan counter 1" in caplog.text
    assert counter.missing == 2**32 - 3


def test_trajectory_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        spiral().dwell = 1.0
