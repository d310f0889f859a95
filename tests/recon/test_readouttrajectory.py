"""Readouts' own trajectories: the unit by the header, samples to discard, what is refused."""

import ismrmrd
import ismrmrd.xsd as xsd
import numpy as np
import pytest

from recon.readouttrajectory import ReadoutTrajectoryError, find_unit, read_trajectory
from simulation import trajectories

PIXEL = 2e-3
K = trajectories.radial(0.128, PIXEL, 5)


def space(x, y, width, height):
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=x, y=y, z=1), fieldOfView_mm=xsd.fieldOfViewMm(x=width, y=height, z=5)
    )


def encoding(encoded=(64, 64, 128, 128), recon=(64, 64, 128, 128)):
    return xsd.encodingType(
        encodedSpace=space(*encoded),
        reconSpace=space(*recon),
        encodingLimits=xsd.encodingLimitsType(),
        trajectory=xsd.trajectoryType.OTHER,
    )


def readouts(k, **fields):
    made = []
    for number, each in enumerate(k):
        readout = ismrmrd.Acquisition()
        readout.resize(len(each), 1, each.shape[1])
        readout.traj[:] = each
        readout.scan_counter = number
        for name, value in fields.items():
            setattr(readout, name, value)
        made.append(readout)
    return made


@pytest.mark.parametrize(
    ("name", "factor"),
    [("cycles/FOV", 0.128), ("1/m", 1), ("rad/m", 2 * np.pi), ("cycles/pixel (+-0.5)", PIXEL)],
)
def test_each_unit_is_found_and_told(name, factor):
    told = []
    k = read_trajectory(readouts(K * factor), encoding(), told.append)
    np.testing.assert_allclose(k, K, rtol=1e-5)
    assert told == [f"trajectory of the readouts taken as {name}: |k| then reaches 1.00 of the matrix's edge"]


@pytest.mark.parametrize(("width", "height"), [(0.128, 0.064), (0.064, 0.128)])
def test_cycles_of_a_field_of_view_that_is_not_square(width, height):
    header = encoding((round(width / PIXEL), round(height / PIXEL), 1e3 * width, 1e3 * height))
    np.testing.assert_allclose(read_trajectory(readouts(K * (width, height)), header), K, rtol=1e-5)


def test_matrix_that_counts_spokes_does_not_mislead():
    np.testing.assert_allclose(read_trajectory(readouts(K * 0.128), encoding((64, 5, 128, 128))), K, rtol=1e-5)


@pytest.mark.parametrize("fov", [0.128, 0.256])
def test_cycles_of_the_encoded_or_the_reconstructed_field_of_view(fov):
    unit = find_unit(K * fov, encoding((128, 128, 256, 256)))
    np.testing.assert_allclose(unit.factors, 1 / fov)


def test_unit_in_doubt_is_told():
    unit = find_unit(np.array([[0.7 * 80, 0]]), encoding((160, 160, 500, 500)))
    assert unit.name == "cycles/FOV (or is it 1/m?)"


def test_coarser_than_the_matrix_is_taken_and_told():
    told = []
    np.testing.assert_allclose(read_trajectory(readouts(K / 2), encoding(), told.append), K / 2, rtol=1e-6)
    (text,) = told
    assert text.startswith(
        "trajectory of the readouts taken as 1/m: |k| then reaches 0.50 of the matrix's edge, expected"
    )


def test_discarded_samples_are_left_out():
    (k,) = read_trajectory(readouts(K[:1], discard_pre=3, discard_post=4), encoding())
    np.testing.assert_allclose(k, K[0, 3:-4], rtol=1e-6)


def test_third_dimension_that_stays():
    flat = np.concatenate([K, np.full((*K.shape[:2], 1), 7.0)], axis=-1)
    np.testing.assert_allclose(read_trajectory(readouts(flat), encoding()), K, rtol=1e-6)


def kz(values):
    return np.concatenate([K, np.broadcast_to(values, (*K.shape[:2], 1))], axis=-1)


def stack(values):
    """One readout for each partition, with its kz."""
    made = readouts(kz(np.resize(values, 5)[:, None, None]))[: len(values)]
    for number, each in enumerate(made):
        each.idx.kspace_encode_step_2 = number
    return made


def test_partitions_may_be_missing():
    made = stack([0.0, 5.0, 10.0])
    read_trajectory([made[0], made[2]], encoding())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (readouts(1e5 * K), "largest .k. of the readouts' trajectory is 2.5e.07; by encodedSpace"),
        (readouts(0 * K), "none of these is near"),
        (readouts(K[..., :1]), r"carries no 2-D trajectory: traj is \(128, 1\); expected \(128, 2\)"),
        (readouts(np.where(K > 240, np.nan, K)), "readout 0 has values that are not finite"),
        (readouts(kz(np.linspace(0, 9, 128)[:, None])), "kz of readout 0 goes from 0 to 9"),
        (readouts(kz(np.arange(5.0)[:, None, None])), "kspace_encode_step_2 = 0 have kz 0 and 1"),
        (
            stack([0.0, -5.0, -10.0]),
            "kz of the partitions changes by -5 to -5 from one kspace_encode_step_2 to the next",
        ),
        (stack([0.0, 10.0, 5.0]), "kz of the partitions changes by -5 to 10"),
        (readouts(K, discard_pre=100, discard_post=28), "leave none"),
        (readouts(K) + readouts(K[:, 1:]), "127 to 128 samples"),
        (readouts(K) + readouts(kz(0.0)), r"have \[2, 3\] dimensions"),
    ],
)
def test_what_cannot_be_used_is_refused(made, message):
    with pytest.raises(ReadoutTrajectoryError, match=message):
        read_trajectory(made, encoding())


def test_header_without_a_field_of_view_is_refused():
    with pytest.raises(ReadoutTrajectoryError, match=r"encodedSpace has no matrixSize\.x or fieldOfView_mm"):
        find_unit(K, encoding((64, 64, 0, 0)))
