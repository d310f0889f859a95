import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

import generate_spiral_dataset as generator
from mrdio.mrdfile import MrdReader
from recon.gradientresponse import load_girf, predict_trajectory, rotation_of
from recon.trajectory import TrajectoryError, find_metafile, read_metafile, signature_of, write_metafile
from simulation.spiraldesign import synthetic_girf
from simulation.spiraltruth import Truth

SMALL = ["-m", "48", "--interleaves", "12", "-c", "2", "-a", "40", "--arms-in-metafile", "20"]


@pytest.fixture
def run(tmp_path, capsys):
    """Run the tool; returns what it printed and the MRD file's header, readouts and waveforms."""
    (tmp_path / "seq_meta").mkdir()

    def call(*arguments, group="dataset", interleaves=True):
        output = tmp_path / "raw.h5"
        small = SMALL if interleaves else [*SMALL[:2], *SMALL[4:]]
        assert generator.main([*small, "-o", str(output), "--seq-meta", str(tmp_path / "seq_meta"), *arguments]) == 0
        with MrdReader(output, group) as reader:
            header = ismrmrd.xsd.CreateFromDocument(reader.header_xml)
            return capsys.readouterr().out, header, list(reader.acquisitions()), list(reader.waveforms())

    return call


def test_raw_data_metafile_and_truth_belong_together(run, tmp_path):
    text, header, readouts, waveforms = run()
    trajectory = read_metafile(find_metafile(signature_of(header), [tmp_path / "seq_meta"]))
    assert (len(readouts), trajectory.arms, trajectory.matrix_size()) == (40, 20, 48)
    assert trajectory.fitted_to(readouts[0]) is trajectory
    assert {waveform.waveform_id for waveform in waveforms} == {0, 1025}
    truth = Truth.load(tmp_path / "raw_truth.h5")
    assert truth.frame(range(40)).shape == (48, 48)
    assert truth.maps().shape == (2, 48, 48)
    np.testing.assert_array_equal(truth.actual_k, trajectory.k)
    for what in ("raw.h5: 40 readouts of 2 coils", trajectory.file.name, "raw_truth.h5", "48 x 48"):
        assert what in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.h5", "raw_truth.h5", "seq_meta"]


def test_data_is_that_of_the_simulation_and_repeatable(run):
    first, second = (run("-s", "7")[2] for _ in range(2))
    other = run("-s", "8")[2]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert not np.array_equal(first[3].data, other[3].data)


def test_an_invented_response_is_written_and_explains_the_data(run, tmp_path):
    text, header, readouts, _ = run("--girf", "--rotate", "30", "0", "-20", "--patient-position", "FFS")
    assert "raw_girf.mat" in text
    response = load_girf(tmp_path / "raw_girf.mat")
    np.testing.assert_allclose(response, synthetic_girf())
    trajectory = read_metafile(find_metafile(signature_of(header), [tmp_path / "seq_meta"]))
    predicted = predict_trajectory(trajectory.k, response, trajectory.dwell, rotation_of(readouts[0], header))
    truth = Truth.load(tmp_path / "raw_truth.h5")
    np.testing.assert_allclose(truth.actual_k, predicted, atol=1e-3)  # directions are stored in single precision
    assert np.abs(predicted - trajectory.k).max() > 1


def test_a_given_response_is_used(run, tmp_path):
    from scipy.io import savemat

    delayed = np.exp(-2j * np.pi * (np.arange(100) - 50)[:, None] / 100 * np.ones(3))  # by one point of the raster
    savemat(tmp_path / "delay.mat", {"GIRF": delayed})
    text, *_ = run("--girf", str(tmp_path / "delay.mat"))
    assert "delay.mat" in text
    assert not (tmp_path / "raw_girf.mat").exists()
    assert np.abs(Truth.load(tmp_path / "raw_truth.h5").actual_k - generator.read_metafile(
        next((tmp_path / "seq_meta").iterdir())).k).max() > 0.5  # fmt: skip


def test_a_given_metafile_is_used_and_copied(run, tmp_path):
    design = generator.SpiralDesign(fov=0.2, resolution=4e-3, interleaves=9, arms=11)
    trajectory = generator.design_spiral(design, tmp_path)
    file = write_metafile(trajectory)
    _, header, readouts, _ = run("--metafile", str(file))
    read = read_metafile(find_metafile(signature_of(header), [tmp_path / "seq_meta"]))
    assert read.file == tmp_path / "seq_meta" / file.name
    assert (read.arms, read.matrix_size(), readouts[0].number_of_samples) == (11, 50, trajectory.readout_length)
    run("--metafile", str(tmp_path / "seq_meta" / file.name))  # where it belongs already


@pytest.mark.parametrize(
    ("kind", "named", "arms"), [("radial", "radial", 76), ("rosette", "other", 96), ("variable", "spiral", 16)]
)
def test_other_trajectories_are_in_the_metafile_or_in_the_readouts(run, tmp_path, kind, named, arms):
    options = ("--trajectory", kind, "--ordering", "linear", "--interleaves", str(arms), "--dwell", "1")
    _, header, readouts, _ = run(*options)
    trajectory = read_metafile(find_metafile(signature_of(header), [tmp_path / "seq_meta"]))
    assert header.encoding[0].trajectory.value == named
    assert (trajectory.arms, readouts[0].trajectory_dimensions) == (arms, 0)
    for path in (tmp_path / "seq_meta").iterdir():
        path.unlink()
    text, header, carried, _ = run(*options, "--carry", "rad/m")
    assert "trajectory in the readouts" in text
    assert not list((tmp_path / "seq_meta").iterdir())
    with pytest.raises(TrajectoryError, match="has no userParameterString"):
        signature_of(header)
    for column, (before, now) in enumerate(zip(readouts, carried, strict=True)):
        np.testing.assert_array_equal(before.data, now.data)
        np.testing.assert_allclose(now.traj[now.discard_pre :] / (2 * np.pi), trajectory.k[column % arms], atol=1e-3)


def test_default_number_of_arms_fills_k_space(run):
    assert "76 arms" in run("--trajectory", "radial", "--ordering", "linear", "--carry", "cycles", interleaves=False)[0]


def test_a_stack_has_its_partitions_in_header_counters_and_trajectory(run):
    _, header, readouts, _ = run("--partitions", "3", "--carry", "cycles", "--ordering", "linear", "-a", "40")
    space, limits = header.encoding[0].encodedSpace, header.encoding[0].encodingLimits.kspace_encoding_step_2
    assert (space.matrixSize.z, space.fieldOfView_mm.z) == (3, pytest.approx(18))
    assert (limits.minimum, limits.maximum, limits.center) == (0, 2, 1)
    assert [r.idx.kspace_encode_step_2 for r in readouts] == [n // 12 % 3 for n in range(40)]
    assert [r.idx.repetition for r in readouts] == [n // 36 for n in range(40)]
    kz = [set(r.traj[:, 2].tolist()) for r in readouts[::12]]
    assert kz == [{-1.0}, {0.0}, {1.0}, {-1.0}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partitions", "2", "--slices", "2"), "partitions is 2, must be 1 to 1"),
        (("--partitions", "2", "--point", "1", "2"), "point is (1.0, 2.0), must be (x, y), or in a stack (x, y, z)"),
        (("--point", "1", "2", "3"), "must be (x, y), or in a stack"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, capsys, options, message):
    (tmp_path / "seq_meta").mkdir()
    files = ("-o", str(tmp_path / "raw.h5"), "--seq-meta", str(tmp_path / "seq_meta"))
    assert generator.main([*SMALL, *files, *options]) == 1
    assert message in capsys.readouterr().err


def test_options_reach_the_data(run):
    _, header, readouts, waveforms = run(
        "--seconds", "0.5", "--tr", "10", "--slices", "2", "--slice-order", "sequential", "--drop", "6", "-C",
        "--dummies", "3", "--no-waveforms", "--ordering", "linear", "--point", "10", "-20", "--remove-oversampling",
        "--pre-discard", "10", "--dwell", "2.5", "-d", "other", "--position", "1", "2", "3", group="other",
    )  # fmt: skip
    assert len(readouts) == 50 - 6 + 1 + 3
    assert waveforms == []
    assert header.encoding[0].encodingLimits.kspace_encoding_step_1.maximum == 11
    assert readouts[-1].sample_time_us == 5.0
    assert readouts[0].position[:] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tr", "1"], "a TR of 1 ms is too short"),
        (["--metafile", "no such file.mat"], "is no signature"),
        (["--metafile", "abc.mat"], "abc.mat"),
        (["--girf", "missing.mat"], "missing.mat"),
        (["--slew", "-3"], "slew is -3"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(tmp_path, capsys, arguments, message):
    (tmp_path / "seq_meta").mkdir()
    options = [*SMALL, "-o", str(tmp_path / "raw.h5"), "--seq-meta", str(tmp_path / "seq_meta"), *arguments]
    assert generator.main(options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "raw.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fov", "nan"], "--fov is nan"),
        (["--seconds", "-1"], "--seconds is -1"),
        (["-c", "0"], "0 is not between 1 and 1024"),
        (["--seq-meta", "nowhere/seq_meta"], "there is no folder"),
        (["--point", "inf", "0"], "finite"),
        (["-o", "nowhere/raw.h5"], "no file in an existing folder"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        generator.parse_arguments(["--seq-meta", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
