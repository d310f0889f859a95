"""Readouts of a scan against those of its sequence: segments, repetitions, flags that differ from the labels."""

import dataclasses
from pathlib import Path

import ismrmrd
import numpy as np
import pypulseq
import pytest

from pulseq_files import SYSTEM, adc, excitation, gradients, label, spiral_arm, spiral_sequence, text_of
from recon import noncartesian, trajectorysources
from recon.pulseq import trajectory_from
from recon.pulseqreadouts import SequenceError, image_readouts
from recon.readoutorder import ReadoutOrder
from recon.readouttrajectory import ReadoutTrajectoryError
from recon.sequencereadouts import SequenceReadouts
from recon.trajectory import TrajectoryError
from simulation.spiralsimulation import Scan, simulate

ARMS, SAMPLES, DWELL = 8, 300, 4e-6


@pytest.fixture
def nominal(tmp_path):
    """Trajectory of a sequence."""
    return trajectory_from(
        Path("a.seq"), image_readouts(text_of(spiral_sequence(ARMS, FOV=[0.24, 0.24, 5e-3]), tmp_path))
    )[0]


@pytest.fixture
def image(nominal, monkeypatch):
    """Gridded image [coil, row, column] of a scan of the sequence, and what the client was told."""

    def make(change=lambda items: items, trajectory=nominal):
        found = trajectorysources.Found(trajectory, "")
        monkeypatch.setattr(trajectorysources, "find", lambda *_: found)
        scan = Scan(readouts=ARMS, coils=2, noise=0, still=True, waveforms=False, tr=20e-3)
        simulation = simulate(nominal, scan)
        told = []
        items = change(list(simulation.acquisitions()))
        ((slab,),) = noncartesian.sort_repetitions(items, simulation.header, [], told.append, told.append)
        return noncartesian.to_image(slab)[:, 0], told

    return make


def cut(items, pieces):
    """Acquisitions, each in equal segments that have their own scan counters."""
    cut = []
    for item in items:
        for part in np.split(item.data, pieces, axis=1):
            head = item.getHead()
            head.number_of_samples, head.scan_counter = part.shape[1], len(cut) + 1
            head.center_sample = 0
            cut.append(ismrmrd.Acquisition(head, np.ascontiguousarray(part)))
    return cut


# ---- segments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [2, 3, 12])
def test_segments_of_readouts_are_joined(image, pieces):
    """Two segments are as long as a readout without its oversampling: they have another dwell time."""
    whole, _ = image()
    joined, told = image(lambda items: cut(items, pieces))
    np.testing.assert_array_equal(joined, whole)
    assert [text for text in told if f"segments of {SAMPLES // pieces} samples: {pieces} make one" in text]


def test_segments_without_scan_counters_are_joined(image):
    def without_counters(items):
        items = cut(items, 3)
        for item in items:
            item.scan_counter = 0
        return items

    np.testing.assert_array_equal(image(without_counters)[0], image()[0])


def test_a_lost_segment_loses_its_readout_only(image):
    without, _ = image(lambda items: items[:2] + items[3:])
    items = []

    def lose(all_items):
        items[:] = cut(all_items, 3)
        return items[:7] + items[8:]

    lost, told = image(lose)
    np.testing.assert_array_equal(lost, without)
    assert [text for text in told if "of its segments, only 2 came" in text]


def test_readouts_without_oversampling_are_no_segments(nominal):
    told = []
    readouts = SequenceReadouts(nominal, told.append, told.append)
    played = readouts.take(acquisition(SAMPLES // 2, 2 * DWELL), 0)
    assert played.acquisition.number_of_samples == SAMPLES // 2
    assert not told


# ---- labels and flags ------------------------------------------------------------------------------------------------


def acquisition(samples=SAMPLES, dwell=DWELL, counter=1, flag=None):
    made = ismrmrd.Acquisition.from_array(np.ones((1, samples), np.complex64))
    made.scan_counter, made.sample_time_us = counter, 1e6 * dwell
    if flag is not None:
        made.set_flag(flag)
    return made


def sequence_with_noise(samples, *labels):
    """An unlabelled readout without excitation, and two arms."""
    sequence = pypulseq.Sequence(SYSTEM)
    sequence.add_block(adc(samples), *labels)
    for turn in (1, 1j):
        sequence.add_block(excitation(), label("ONCE", 0))
        sequence.add_block(*gradients(spiral_arm() * turn), adc())
    return sequence


def arms_of(sequence, acquisitions, folder):
    """Arms of the imaging acquisitions of a scan, and what the client was told."""
    readouts = image_readouts(text_of(sequence, folder))
    told = []
    scan = SequenceReadouts(trajectory_from(Path("a.seq"), readouts, 0.24)[0], told.append, told.append)
    taken = [scan.take(each, number) for number, each in enumerate(acquisitions)]
    return [None if each is None else each.arm for each in taken], told


def test_readouts_of_the_first_repetition_only_are_not_expected_again(tmp_path):
    sequence = sequence_with_noise(SAMPLES, label("ONCE", 1))
    arms, told = arms_of(sequence, [acquisition() for _ in range(7)], tmp_path)
    assert arms == [None, 0, 1, 0, 1, 0, 1]
    assert not told


def test_readouts_of_the_last_repetition_only_are_refused(tmp_path):
    with pytest.raises(SequenceError, match="ONCE = 2"):
        image_readouts(text_of(sequence_with_noise(SAMPLES, label("ONCE", 2)), tmp_path))


def test_noise_that_only_the_scan_flags_is_found_by_its_length(tmp_path):
    """It is not counted as imaging then, so that each readout would be taken for the one before."""
    with pytest.raises(TrajectoryError, match=r"has 300 samples where a\.seq plays one of 40: .*\(NOISE, NAV\)"):
        arms_of(sequence_with_noise(40), [acquisition()], tmp_path)


def test_noise_that_only_the_scan_flags_is_told_at_the_last_readout(tmp_path):
    last = acquisition(flag=ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    arms, told = arms_of(sequence_with_noise(SAMPLES), [acquisition(), last], tmp_path)
    assert arms == [None, 0]
    assert "the last readout of the scan is number 2 of 3 that a.seq plays" in told[0]
    _, told = arms_of(sequence_with_noise(SAMPLES), [acquisition(), acquisition(), last], tmp_path)
    assert not told


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_discarded_samples_are_no_part_of_the_image(image):
    def spoil(items):
        for item in items:
            item.discard_pre, item.discard_post = 2, 5
            item.data[:, :2] = item.data[:, -5:] = 1e4
        return items

    sound, spoilt = image()[0], image(spoil)[0]
    assert np.linalg.norm(spoilt - sound) < 0.05 * np.linalg.norm(sound)


def test_another_dwell_time_is_told_the_client(nominal):
    for dwell, samples, expected in ((DWELL, SAMPLES, 0), (0.0, SAMPLES, 0), (2 * DWELL, SAMPLES // 2, 0),
                                     (1.25 * DWELL, SAMPLES, 1)):  # fmt: skip
        for trajectory in (nominal, dataclasses.replace(nominal, order=None)):
            told = []
            readouts = SequenceReadouts(trajectory, told.append, told.append)
            for number in range(2):
                readouts.take(acquisition(samples, dwell), number)
            assert len(told) == expected
            assert all("dwell time of 5 us, a.seq gives 4 us" in text for text in told)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_order_of_segments_and_runs():
    once = np.array([True, False, False])
    order = ReadoutOrder(np.array([-1, 0, 1]), np.array([40, 300, 300]), once, np.zeros(3), segment=100)
    pieces = [order.piece(number) for number in range(14)]
    assert [piece.place for piece in pieces] == [0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2, 1]
    assert [piece.readout for piece in pieces] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    assert [piece.number for piece in pieces] == [0, *[0, 1, 2] * 4, 0]
    assert [piece.pieces for piece in pieces] == [1, *[3] * 13]


# ---- stacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "fault"),
    [
        (lambda number: number // 4, None),
        (lambda number: 0, "kspace_encode_step_2 = 0 have kz -50 and 0"),
        (lambda number: 2 - number // 4, "changes by -50 to -50"),
    ],
    ids=["right", "not counted", "backwards"],
)
def test_partitions_of_the_scan_are_those_of_the_sequence(tmp_path, partition, fault):
    """Else partitions are added up, or mirrored."""
    sequence = pypulseq.Sequence(SYSTEM)
    for kz in (-50, 0, 50):
        for turn in range(4):
            sequence.add_block(excitation())
            sequence.add_block(pypulseq.make_trapezoid("z", area=kz, duration=1e-3, system=SYSTEM))
            sequence.add_block(*gradients(spiral_arm() * 1j**turn), adc())
    sequence.set_definition("FOV", [0.24, 0.24, 0.06])
    nominal = trajectory_from(Path("a.seq"), image_readouts(text_of(sequence, tmp_path)))[0]
    assert nominal.arms == 4
    readouts = SequenceReadouts(nominal, pytest.fail, pytest.fail)

    def take():
        for number in range(12):
            item = ismrmrd.Acquisition.from_array(np.ones((1, 300), np.complex64), sample_time_us=4)
            item.idx.kspace_encode_step_2 = partition(number)
            yield readouts.take(item, number)

    if fault is None:
        assert [each.arm for each in take()] == [0, 1, 2, 3] * 3
    else:
        with pytest.raises(ReadoutTrajectoryError, match=fault):
            list(take())
