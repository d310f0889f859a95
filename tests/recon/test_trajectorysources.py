import dataclasses
from pathlib import Path

import numpy as np
import pytest

import simplenufft1arm
from pulseq_files import carrying, header_of, spiral_sequence, write
from recon import readouts as kept_readouts
from recon import spiral, trajectorysources
from recon.readoutorder import ReadoutOrder
from recon.trajectory import TrajectoryError, write_metafile
from simplenufft1arm import ViewSharingConfig, ViewSharingReconstruction
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, simulate

DEFINITIONS = {"FOV": [0.24, 0.24, 0.005], "Resolution_mm": 10}
ARMS = 8


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """A sequence that has been read once, and its signature."""
    file, signature = write(spiral_sequence(ARMS, **DEFINITIONS), tmp_path_factory.mktemp("sequence") / "any name.seq")
    trajectorysources.find(header_of(signature), [file.parent])
    return file, signature


@pytest.fixture(scope="module")
def simulation(sequence):
    """A scan of the sequence."""
    file, signature = sequence
    found = trajectorysources.find(header_of(signature), [file.parent]).trajectory
    trajectory = dataclasses.replace(found, file=Path(f"{signature}.mat"))
    return simulate(trajectory, scan_of(3 * ARMS))


def scan_of(readouts, **options):
    defaults = {"coils": 2, "noise": 0, "still": True, "waveforms": False, "tr": 20e-3}
    return Scan(readouts=readouts, **defaults | options)


def frames(simulation, folder, items=None, told=None, **options):
    """View-shared frames of a scan."""
    settings = ViewSharingReconstruction(
        **{"arms_per_frame": ARMS, "window_shift": ARMS, "coil_combine": "rssq"} | options
    )
    config = ViewSharingConfig(metafile_paths=(folder,), reconstruction=settings)
    tell = (told if told is not None else []).append
    scan = spiral.SpiralScan(config, simulation.header, tell, tell=tell, hold=settings.arms_per_frame)
    readouts = scan.readouts(simulation.items() if items is None else items)
    return simplenufft1arm.reconstruct(readouts, scan, settings)


def difference(image, other):
    """Relative difference of two magnitude images after the best factor."""
    image, other = np.abs(image), np.abs(other)
    factor = np.vdot(image, other) / np.vdot(image, image)
    return np.linalg.norm(factor * image - other) / np.linalg.norm(other)


def test_a_sequence_is_found_by_its_signature_whatever_its_name(sequence, tmp_path):
    file, signature = sequence
    write(spiral_sequence(4), tmp_path / f"{signature}.seq")  # another one that bears its name
    found = trajectorysources.find(header_of(signature.upper() + "x"), [tmp_path, file.parent])
    assert found.trajectory.file == file
    assert found.trajectory.arms == ARMS
    assert "trajectory: Pulseq sequence any name.seq: 8 readouts of 8 different arms" in found.told
    assert trajectorysources.find(header_of(signature), [file.parent]).trajectory is found.trajectory, "it is kept"


def test_a_sequence_without_signature_is_found_by_its_name(sequence, tmp_path):
    file, signature = sequence
    (tmp_path / f"{signature}.seq").write_bytes(file.read_bytes().partition(b"\n[SIGNATURE]")[0] + b"\n")
    assert list(trajectorysources.sequences_of(signature, [tmp_path])) == [tmp_path / f"{signature}.seq"]


def test_the_metafile_comes_first_and_a_damaged_one_is_told(sequence, simulation, tmp_path):
    file, signature = sequence
    write_metafile(simulation.trajectory, tmp_path / f"{signature}.mat")
    found = trajectorysources.find(header_of(signature), [tmp_path, file.parent])
    assert found.told == f"trajectory: metafile {signature}.mat"
    np.testing.assert_allclose(found.trajectory.k, simulation.trajectory.k)
    np.testing.assert_allclose(found.trajectory.weights, simulation.trajectory.weights)
    (tmp_path / f"{signature}.mat").write_bytes(b"damaged")
    found = trajectorysources.find(header_of(signature), [tmp_path, file.parent])
    assert "Pulseq sequence any name.seq" in found.told
    assert "damaged" not in found.told
    assert f"{signature}.mat is no intact MATLAB file" in found.told


def test_a_damaged_sequence_is_told_with_the_source_that_is_taken_instead(sequence, simulation, tmp_path):
    file, _ = sequence
    (tmp_path / "damaged.seq").write_bytes(file.read_bytes().replace(b"0.24", b"0.25", 1))
    told = []
    assert len(list(frames(simulation, tmp_path, carrying(simulation), told))) == 3
    assert "trajectory of the readouts taken as cycles/FOV" in told[0]
    assert "damaged.seq was changed after it was written" in told[0]


def test_when_none_fits_the_message_lists_what_was_looked_for_where(simulation, tmp_path):
    signature = simulation.trajectory.file.stem
    (tmp_path / "other.seq").write_text("")
    with pytest.raises(TrajectoryError) as raised:
        list(frames(simulation, tmp_path))
    for text in (f"no metafile {signature}.mat in {tmp_path}",
                 f"no Pulseq sequence (.seq) with the signature {signature}",
                 "1 other(s) there", "readout 1 carries no trajectory itself"):  # fmt: skip
        assert text in str(raised.value)


def test_a_sequence_that_cannot_be_opened_is_told(simulation, tmp_path):
    file = tmp_path / simulation.trajectory.file.with_suffix(".seq").name
    file.mkdir()  # stands for one without permission: tests may run as root
    with pytest.raises(TrajectoryError, match=rf"cannot read {file}: Is a directory"):
        list(frames(simulation, tmp_path))


def test_all_sources_give_the_same_images(sequence, simulation, tmp_path):
    write_metafile(simulation.trajectory, tmp_path / simulation.trajectory.file.name)
    by_metafile = list(frames(simulation, tmp_path))
    by_sequence = list(frames(simulation, sequence[0].parent))
    by_readouts = list(frames(simulation, tmp_path / "none", carrying(simulation)))
    truth = simulation.truth.frames([range(ARMS)])[0]
    for metafile, pulseq, own in zip(by_metafile, by_sequence, by_readouts, strict=True):
        assert difference(pulseq.pixels, metafile.pixels) < 1e-5
        assert difference(own.pixels, metafile.pixels) < 0.01
        assert own.head.scan_counter == metafile.head.scan_counter
    assert difference(by_sequence[0].pixels, truth) < 0.3  # of 24 x 24 pixels


def test_readouts_that_are_none_of_the_images_are_counted_and_left_out(sequence, simulation, tmp_path):
    nominal = simulation.trajectory
    arms = np.concatenate(([-1], np.arange(ARMS)))
    order = ReadoutOrder(arms, np.full(ARMS + 1, nominal.readout_length), np.zeros(ARMS + 1, bool), np.zeros(ARMS + 1))
    scan = spiral.SpiralScan(ViewSharingConfig(metafile_paths=(sequence[0].parent,)), simulation.header)
    scan.nominal = dataclasses.replace(nominal, order=order)
    assert [each.column for each in scan.readouts(simulation.items())] == [*range(ARMS)] * 2 + [*range(5)]
    assert [scan.nominal.arm_of(number) for number in (0, 1, 9, 10)] == [-1, 0, -1, 0]


def test_golden_angle_arms_known_only_as_they_arrive_are_streamed(tmp_path):
    """No arm comes twice; each frame is out before the readout behind it comes, as with a metafile."""
    trajectory = design_spiral(SpiralDesign(resolution=8e-3, interleaves=6, arms=89, dwell=4e-6), tmp_path)
    simulation = simulate(trajectory, scan_of(48))
    write_metafile(trajectory)
    expected = list(frames(simulation, tmp_path, arms_per_frame=12, window_shift=4))
    taken = []

    def arriving():
        for item in carrying(simulation):
            taken.append(item.scan_counter)
            yield item

    made = []
    for frame in frames(simulation, tmp_path / "none", arriving(), arms_per_frame=12, window_shift=4):
        made.append(frame)
        assert taken[-1] == 12 + 4 * (len(made) - 1)
    assert len(made) == len(expected) == 10
    for own, metafile in zip(made, expected, strict=True):
        assert difference(own.pixels, metafile.pixels) < 0.1  # other density weights
        assert own.pixels.shape == metafile.pixels.shape
    truth = simulation.truth.frames([range(36, 48)])[0]
    assert difference(made[-1].pixels, truth) < 1.1 * difference(expected[-1].pixels, truth)


def test_reconstructions_of_whole_scans_take_readouts_trajectories(simulation, tmp_path):
    scan = spiral.SpiralScan(ViewSharingConfig(metafile_paths=(tmp_path,)), simulation.header)
    (slice_,) = kept_readouts.receive(scan, carrying(simulation), 1.0)
    assert slice_.columns == [*range(ARMS)] * 3
    np.testing.assert_allclose(slice_.coordinates, simulation.trajectory.cycles_per_fov(), atol=1e-3)
    assert scan.matrix == 24


def test_a_readout_that_brings_no_usable_trajectory_among_others_is_named(simulation, tmp_path):
    items = list(carrying(simulation))
    bare = next(simulation.acquisitions())
    for place, text in ((1, "readout 1 carries no trajectory itself"), (20, "readout 1 carries no 2-D trajectory")):
        with pytest.raises(TrajectoryError, match=text):
            list(frames(simulation, tmp_path, [*items[:place], bare, *items[place:]]))
