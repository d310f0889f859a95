"""Cardiac bins from triggers, and the readouts of every pair of bins."""

import logging

import numpy as np
import pytest

from recon import physiobins
from recon.physio import PhysioError
from recon.physiobins import NO_BIN


def test_bins_are_whole_readouts_within_the_shortest_beat():
    bins = physiobins.cardiac_bins(np.array([3, 53, 93]), 110, 5)  # shortest beat 40: 36 readouts, 5 bins of 7
    expected = np.full(110, -1)
    for trigger in (3, 53, 93):
        expected[trigger : trigger + 35] = np.repeat(np.arange(5), 7)[: 110 - trigger]
    assert np.array_equal(bins, expected)
    before = physiobins.cardiac_bins(np.array([-10, 40]), 50, 3)
    assert list(before[:6]) == [0, 0, 0, 0, 0, 1]  # a beat that began before the scan


@pytest.mark.parametrize("where", [0.2, 0.3, 0.5, 0.7, 0.8])
def test_double_triggers_do_not_shrink_the_beats(where):
    rng = np.random.default_rng(4)
    true = np.cumsum(rng.integers(130, 160, 60))
    doubled = np.sort(np.concatenate((true, (true[5:50:9] + where * np.diff(true)[5:50:9]).astype(int))))
    assert np.array_equal(physiobins.without_double_triggers(doubled), true)
    assert np.array_equal(physiobins.cardiac_bins(doubled, 9000, 8), physiobins.cardiac_bins(true, 9000, 8))


@pytest.mark.parametrize("where", [0.03, 0.97])
def test_of_two_triggers_close_together_one_stays(where):
    true = np.cumsum(np.random.default_rng(4).integers(130, 160, 60))
    doubled = np.sort(np.concatenate((true, (true[5:50:9] + where * np.diff(true)[5:50:9]).astype(int))))
    found = physiobins.without_double_triggers(doubled)
    assert np.abs(found - true).max() <= 5


def test_two_spurious_triggers_in_one_beat_and_at_the_ends():
    true = 100 * np.arange(1, 20)
    assert np.array_equal(physiobins.without_double_triggers(np.sort([*true, 530, 560])), true)
    assert np.array_equal(physiobins.without_double_triggers(np.sort([*true, 90, 1920])), true)


def test_natural_variation_is_kept():
    true = np.cumsum([100, 80, 120, 75, 110, 65, 100, 130])
    assert np.array_equal(physiobins.without_double_triggers(true), true)


def test_a_missed_trigger_leaves_a_part_of_no_bin():
    true = 100 * np.arange(20)
    bins = physiobins.cardiac_bins(np.delete(true, 7), 2000, 9)
    full = physiobins.cardiac_bins(true, 2000, 9)
    assert np.all(bins[700:800] == NO_BIN)
    assert np.array_equal(np.delete(bins, np.s_[700:800]), np.delete(full, np.s_[700:800]))


# --- choosing readouts
@pytest.mark.parametrize(
    ("pre", "post", "kept"), [(0, 0, (0, 100)), (1, 0, (10, 100)), (0, 1, (0, 90)), (0.31, 0.29, (4, 97))]
)
def test_arm_discard(pre, post, kept):
    keep = physiobins.arm_discard(pre, post, 0.1, 100)
    assert np.array_equal(np.flatnonzero(keep), np.arange(*kept))


@pytest.mark.parametrize(("pre", "post"), [(5, 5), (0, 10), (-1, 0), (np.nan, 0)])
def test_arm_discard_leaves_something(pre, post):
    with pytest.raises(PhysioError, match=r"nothing is left|times from 0 on"):
        physiobins.arm_discard(pre, post, 0.1, 100)


RESPIRATORY = np.array([0, 0, 1, 1, -1, 0, 1, 0, 1, 0])
CARDIAC = np.array([0, 1, 0, 1, 0, -1, 0, 0, 1, 0])


def test_filling_pads_with_weight_zero():
    table = physiobins.bin_table(RESPIRATORY, CARDIAC, 2, 2, fill_small_bins=True)
    assert table.counts.tolist() == [[3, 1], [2, 2]]
    assert table.weights.tolist() == [[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]]
    assert table.readouts[0, 0].tolist() == [0, 7, 9]
    assert table.readouts[1, 1, :2].tolist() == [3, 8]
    assert np.all((table.readouts >= 0) & (table.readouts < 10))


def test_cropping_to_the_smallest():
    table = physiobins.bin_table(RESPIRATORY, CARDIAC, 2, 2, fill_small_bins=False)
    assert table.readouts.tolist() == [[[0], [1]], [[2], [3]]]
    assert np.all(table.weights == 1)


def test_empty_bins_are_named(caplog):
    with pytest.raises(PhysioError, match=r"bin \(respiratory 0, cardiac 2\), \(respiratory 1, cardiac 2\): use fewer"):
        physiobins.bin_table(RESPIRATORY, CARDIAC, 2, 3, fill_small_bins=False)
    with caplog.at_level(logging.WARNING):
        table = physiobins.bin_table(RESPIRATORY, CARDIAC, 2, 3, fill_small_bins=True)
    assert np.all(table.weights[:, 2] == 0)
    assert "(respiratory 0, cardiac 2)" in caplog.text
    with pytest.raises(PhysioError, match="none of 4 readouts"):
        physiobins.bin_table(np.full(4, -1), np.zeros(4), 2, 2, fill_small_bins=True)
    with pytest.raises(PhysioError, match="and 47 more"):
        physiobins.bin_table(RESPIRATORY, CARDIAC, 7, 8, fill_small_bins=False)
