"""Letters of the patient's sides, for orientations whose letters are known."""

import ismrmrd
import numpy as np
import pytest

from dicomio.geometry import edge_letters

C, S = np.cos(np.radians(40)), np.sin(np.radians(40))
TILT = np.radians(5)
# read_dir: rising column; phase_dir: rising row. Axes are x to the left, y to the back, z to the head.
KNOWN = {
    "axial, seen from the feet": ((1, 0, 0), (0, 1, 0), ("R", "A", "L", "P")),
    "coronal, seen from the front": ((1, 0, 0), (0, 0, -1), ("R", "H", "L", "F")),
    "sagittal, seen from the left": ((0, 1, 0), (0, 0, -1), ("A", "H", "P", "F")),
    "axial, turned by 90 degree": ((0, 1, 0), (-1, 0, 0), ("A", "L", "P", "R")),
    "axial, 5 degree towards coronal": ((1, 0, 0), (0, np.cos(TILT), np.sin(TILT)), ("R", "A", "L", "P")),
    "axial, 40 degree towards coronal": ((1, 0, 0), (0, C, S), ("R", "AF", "L", "PH")),
    "axial, 50 degree towards coronal": ((1, 0, 0), (0, S, C), ("R", "FA", "L", "HP")),
    "sagittal, 40 degree towards coronal": ((S, C, 0), (0, 0, -1), ("AR", "H", "PL", "F")),
    "double oblique": ((C, S * C, S * S), (-S, C * C, C * S), ("RAF", "LAF", "LPH", "RPH")),
    "45 degree: both letters, x first": ((0.5**0.5, 0.5**0.5, 0), (0, 0, 1), ("RA", "F", "LP", "H")),
    "not of length 1": ((10, 0, 0), (0, 0.1, 0), ("R", "A", "L", "P")),
}


def head(read_dir, phase_dir):
    header = ismrmrd.ImageHeader()
    header.read_dir, header.phase_dir = read_dir, phase_dir
    return header


@pytest.mark.parametrize(("read_dir", "phase_dir", "letters"), KNOWN.values(), ids=KNOWN)
def test_known_orientations(read_dir, phase_dir, letters):
    assert edge_letters(head(read_dir, phase_dir)) == letters


@pytest.mark.parametrize("phase_dir", [(0, 0, 0), (1, 0, 0), (0, np.nan, 0)])
def test_directions_that_say_nothing_have_no_letters(phase_dir):
    assert edge_letters(head((1, 0, 0), phase_dir)) is None
