"""The lattice of undersampled scans."""

import numpy as np
import pytest

import parallel_data as data
from recon.sampling import IrregularSamplingError, Lattice, acquired_region, calibration_block, find_lattice


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("calibration", [0, 1, 23, 24])
@pytest.mark.parametrize(("begin", "end"), [(0, 97), (30, 97), (0, 70)])
def test_rows(step, calibration, begin, end):
    for first in range(step):
        sampled = data.pattern(97, step, calibration, first)
        sampled[:, :begin] = sampled[:, end:] = False
        assert find_lattice(sampled) == Lattice(1, step, 0, 0, first)


@pytest.mark.parametrize(
    "lattice", [(2, 2, 0, 1, 1), (2, 2, 1, 0, 1), (1, 3, 1, 0, 2), (1, 4, 2, 0, 3), (3, 1, 0, 2, 0)]
)
@pytest.mark.parametrize("calibration", [0, 8])
@pytest.mark.parametrize("elliptical", [False, True])
def test_partitions_and_rows(lattice, calibration, elliptical):
    lattice, shape = Lattice(*lattice), (24, 41)
    p, r = np.indices(shape)
    sampled = lattice.places(p, r) == 0
    sampled |= (abs(p - 12) < calibration // 2) & (abs(r - 20) < calibration // 2)
    if elliptical:
        sampled &= ((p - 12) / 12) ** 2 + ((r - 20) / 20) ** 2 <= 1
    assert find_lattice(sampled) == lattice
    assert not (sampled & ~acquired_region(sampled)).any()


def test_random_lines_and_lost_lines_are_irregular():
    sampled = data.pattern(96, 2)
    sampled[0, 10] = False
    random = np.random.default_rng(0).random((1, 96)) < 0.3
    random[0, 40:56] = True
    for lines in (sampled, random, np.zeros((1, 96), bool)):
        with pytest.raises(IrregularSamplingError, match="regular distances"):
            find_lattice(lines)


def test_calibration_block():
    assert calibration_block(data.pattern(96, 3)) == (slice(0, 1), slice(36, 61))  # 60 is on the lattice
    assert calibration_block(data.pattern(97, 2, 0, 1)) == (slice(0, 1), slice(47, 48))  # 48, the centre, is missing
    sampled = np.zeros((1, 96), bool)
    sampled[0, 51:70] = True
    assert calibration_block(sampled) == (slice(0, 0), slice(0, 0))
    sampled = np.zeros((10, 12), bool)
    sampled[3:8, 2:11] = True
    assert calibration_block(sampled) == (slice(3, 8), slice(2, 11))
