import dataclasses
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest
from ismrmrd import xsd
from scipy.io import savemat
from scipy.special import erf

from GIRF import PATIENT_TO_DEVICE, RASTER, GirfError, rotation_to_physical
from recon.gradientresponse import correct_trajectory, find_girf, load_girf, predict_trajectory, rotation_of
from recon.trajectory import Trajectory

X, Y, Z = np.eye(3)
AXIAL = (X, Y, Z)
CORONAL = (Z, X, Y)
SAGITTAL = (Y, Z, X)


def oblique():
    """Orthonormal directions along no axis."""
    directions, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    return tuple(directions.T)


def frequencies(n):
    return (np.arange(n) - n // 2) / (n * RASTER)


def response(transfer, n=600):
    """GIRF of n points, the same on all axes, or one transfer function for each."""
    functions = transfer if isinstance(transfer, (list, tuple)) else [transfer] * 3
    return np.stack([function(frequencies(n)) for function in functions], axis=1)


def delay(seconds):
    return lambda f: np.exp(-2j * np.pi * f * seconds)


def low_pass(seconds):
    return lambda f: 1 / (1 + 2j * np.pi * f * seconds)


def unit(f):
    return np.ones(f.shape, complex)


def pulse(t, width, centre):
    """k of a Gaussian gradient pulse: smooth, so that nothing of it is above the band of the response."""
    return 100 * (1 + erf((t - centre) / width))


def pulses(samples, dwell, late=0.0):
    """Two arms [2, samples, 2], each axis with a pulse of its own, late by some time [s]."""
    t = (np.arange(samples) + 1) * dwell - late
    end = samples * dwell
    widths = end / np.array([[9, 11], [10, 12]])
    centres = end * np.array([[0.45, 0.5], [0.55, 0.4]])
    return np.stack([[pulse(t, widths[a, i], centres[a, i]) for i in range(2)] for a in range(2)]).transpose(0, 2, 1)


# (points of the response, samples, dwell): window of the response; odd sizes; dwell that fits no window; a readout
# longer than the response; one point of the response per sample; readout as long as the window
SAMPLINGS = [
    (600, 1000, 2e-6),
    (601, 999, 1e-6),
    (600, 700, 2.3e-6),
    (380, 3000, 2e-6),
    (381, 1501, 3.7e-6),
    (400, 200, 10e-6),
    (400, 2000, 2e-6),
    (300, 150, 16e-6),
]


@pytest.mark.parametrize(("n", "samples", "dwell"), SAMPLINGS)
@pytest.mark.parametrize("seconds", [0.0, 3.4e-6, 25e-6, -7e-6])
def test_pure_delay_shifts_by_exactly_that_delay(n, samples, dwell, seconds):
    predicted = predict_trajectory(
        pulses(samples, dwell), response(delay(seconds), n), dwell, rotation_to_physical(*oblique(), "HFS"), t0=0
    )
    np.testing.assert_allclose(predicted, pulses(samples, dwell, seconds), atol=2e-3)  # of 200


@pytest.mark.parametrize(("n", "samples", "dwell"), SAMPLINGS)
def test_unit_response_returns_the_nominal_trajectory(n, samples, dwell):
    k = pulses(samples, dwell)
    predicted = predict_trajectory(k, response(unit, n), dwell, rotation_to_physical(*AXIAL, "HFS"), t0=0)
    np.testing.assert_allclose(predicted, k, atol=1e-4)


def test_default_t0_takes_back_system_dwell_and_receiver_delay():
    k, dwell = pulses(1000, 2e-6), 2e-6
    predicted = predict_trajectory(k, response(delay(0.85e-6 + 1e-6 + 3e-6)), dwell, np.eye(3))
    np.testing.assert_allclose(predicted, k, atol=1e-4)


@pytest.mark.parametrize(("n", "samples", "dwell"), [(600, 1000, 2e-6), (600, 700, 2.3e-6), (300, 2500, 2e-6)])
def test_single_pole_low_pass_of_a_ramp(n, samples, dwell):
    """Gradient s t becomes s (t - tau (1 - exp(-t / tau))); k is its integral. The readout ends on the ramp."""
    tau, slope = 60e-6, 2e8
    t = np.arange(1, samples + 1) * dwell
    k = np.zeros((3, samples, 2))
    k[:, :, 0] = slope * t**2 / 2
    k[:, :, 1] = -k[:, :, 0] / 2
    expected = slope * (t**2 / 2 - tau * t + tau**2 * (1 - np.exp(-t / tau)))
    predicted = predict_trajectory(k, response(low_pass(tau), n), dwell, np.eye(3), t0=0)
    largest = slope * tau * t[-1]  # what the low-pass takes away
    for arm in predicted:
        np.testing.assert_allclose(arm[:, 0], expected, atol=2e-3 * largest)
        np.testing.assert_allclose(arm[:, 1], -expected / 2, atol=1e-3 * largest)


def test_arms_that_do_not_start_in_the_centre_are_refused():
    """As spokes: a step from 0 to their first sample is no gradient, and k would be wrong by half of k-space."""
    k = pulses(300, 2e-6) + np.array([250.0, 0.0])
    with pytest.raises(GirfError, match=r"one starts at \|k\| = 250 1/m"):
        predict_trajectory(k, response(low_pass(20e-6)), 2e-6, np.eye(3))


def test_readouts_without_a_dwell_time_are_refused():
    """Those that bring their trajectory and have no sample_time_us: a time that was guessed moved k-space anyhow."""
    with pytest.raises(GirfError, match=r"no sample_time_us: set apply_girf = false"):
        predict_trajectory(pulses(300, 2e-6), response(low_pass(20e-6)), 0.0, np.eye(3))


def test_arms_do_not_see_each_other():
    """More arms than are transformed at once, and the last alone."""
    k = np.concatenate([pulses(300, 2e-6) * scale for scale in np.linspace(0.5, 1, 40)])
    rotation = rotation_to_physical(*oblique(), "FFP")
    mixed = response([low_pass(20e-6), unit, delay(5e-6)])
    together = predict_trajectory(k, mixed, 2e-6, rotation)
    for arm in (0, 63, 64, 79):
        alone = predict_trajectory(k[arm : arm + 1], mixed, 2e-6, rotation)
        np.testing.assert_allclose(together[arm], alone[0], atol=1e-9)


def test_response_without_conjugate_symmetry_acts_by_its_real_part():
    """Taking the real part of the prediction is what averages H(f) and conj H(-f)."""
    n, samples, dwell = 600, 1000, 2e-6
    noise = np.random.default_rng(0).standard_normal((n, 3, 2)) @ [0.05, 0.05j]
    girf = response(low_pass(30e-6), n) + noise
    ramp = 5e7 * (np.arange(samples) * dwell) ** 2  # ends with the gradient on, so that its way to zero counts
    k = pulses(samples, dwell)[:1] + ramp[:, np.newaxis]
    gradient = np.zeros((3000, 3))
    start = (3000 - samples - 200) // 2
    gradient[start : start + samples] = np.diff(k[0], axis=0, prepend=0) @ np.array([[1, 0, 0], [0, -1, 0]])
    end = gradient[start + samples - 1]
    gradient[start + samples : start + samples + 200] = (
        0.5 * (1 + np.cos(np.pi * np.arange(1, 201) / 200))[:, None] * end
    )
    full = np.zeros((3000, 3), complex)
    full[np.arange(n) - n // 2] = girf
    full[-n // 2] = 0  # the edge of the band has no partner
    answer = np.fft.ifft(np.fft.fft(gradient, axis=0) * full, axis=0).real[start : start + samples]
    expected = np.cumsum(answer[:, :2] * [1, -1], axis=0)
    np.testing.assert_allclose(predict_trajectory(k, girf, dwell, np.eye(3), t0=0)[0], expected, atol=1e-9)


# --- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", PATIENT_TO_DEVICE)
def test_isotropic_response_does_not_depend_on_the_orientation(position):
    k, dwell = pulses(500, 2e-6), 2e-6
    girf = response(low_pass(40e-6))
    rotation = rotation_to_physical(*oblique(), position)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        predict_trajectory(k, girf, dwell, rotation), predict_trajectory(k, girf, dwell, np.eye(3)), atol=1e-9
    )


@pytest.mark.parametrize("position", PATIENT_TO_DEVICE)
@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL, oblique()])
def test_anisotropic_response_acts_on_the_physical_axes(position, directions):
    """Each physical axis has its own delay: readout axes mix the delayed pulses by their direction cosines."""
    delays = (4e-6, 11e-6, 23e-6)
    samples, dwell = 1000, 2e-6
    read, phase, _ = directions
    to_device = np.array(PATIENT_TO_DEVICE[position])
    # In the patient a positive x gradient of the sequence goes along -read_dir, and kx with it; ky along -(-phase_dir).
    x_axis, y_axis = to_device @ -read, to_device @ phase
    gradient = np.stack([x_axis, -y_axis], axis=1)  # physical axes from (gx, -gy) of the metafile's (kx, ky)
    late = np.stack([pulses(samples, dwell, one) for one in delays])
    expected = np.einsum("pi,pasj,pj->asi", gradient, late, gradient)
    rotation = rotation_to_physical(*directions, position)
    predicted = predict_trajectory(pulses(samples, dwell), response([delay(one) for one in delays]), dwell, rotation, 0)
    np.testing.assert_allclose(predicted, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("position", "left", "back", "head"),
    [
        ("HFS", X, -Y, -Z), ("HFP", -X, Y, -Z), ("FFS", -X, -Y, Z), ("FFP", X, Y, Z),
        ("HFDR", Y, X, -Z), ("HFDL", -Y, -X, -Z), ("FFDR", Y, -X, Z), ("FFDL", -Y, X, Z),
    ],
)  # fmt: skip
def test_where_patient_axes_lie_in_the_scanner(position, left, back, head):
    """Turning the patient over negates left and back; turning feet first negates left and head."""
    np.testing.assert_array_equal(np.array(PATIENT_TO_DEVICE[position]), np.stack([left, back, head], axis=1))
    assert np.linalg.det(np.array(PATIENT_TO_DEVICE[position], float)) == pytest.approx(1)


def test_readout_gradient_of_plain_slices_lies_on_one_physical_axis():
    """Columns: where the readout axes x and y go, by hand from the patient axes."""
    np.testing.assert_allclose(rotation_to_physical(*AXIAL, "FFP")[:, :2].T, [-X, Y])
    np.testing.assert_allclose(rotation_to_physical(*AXIAL, "HFS")[:, :2].T, [-X, -Y])
    np.testing.assert_allclose(rotation_to_physical(*CORONAL, "HFS")[:, :2].T, [Z, X])
    np.testing.assert_allclose(rotation_to_physical(*SAGITTAL, "HFDR")[:, :2].T, [-X, -Z])


def test_three_axes_of_k():
    k = np.concatenate([pulses(1000, 2e-6), pulses(1000, 2e-6)[..., :1]], axis=-1)
    rotation = rotation_to_physical(*oblique(), "HFDL")
    predicted = predict_trajectory(k, response(delay(8e-6)), 2e-6, rotation, t0=0)
    late = pulses(1000, 2e-6, 8e-6)
    np.testing.assert_allclose(predicted, np.concatenate([late, late[..., :1]], axis=-1), atol=1e-4)


@pytest.mark.parametrize("position", ["HFX", "", "hfs", "None"])
def test_unknown_patient_position(position):
    with pytest.raises(GirfError, match=f"'{position}' is unknown, must be one of HFS, HFP"):
        rotation_to_physical(*AXIAL, position)


@pytest.mark.parametrize("directions", [(0 * X, 0 * Y, 0 * Z), (X, X, Z), (2 * X, Y, Z), (X * np.nan, Y, Z)])
def test_directions_that_are_no_axes(directions):
    with pytest.raises(GirfError, match="not orthonormal"):
        rotation_to_physical(*directions, "HFS")


def header(position):
    return SimpleNamespace(measurementInformation=SimpleNamespace(patientPosition=position))


def acquisition(directions=AXIAL):
    names = ("read_dir", "phase_dir", "slice_dir")
    data = np.zeros((1, 8), np.complex64)
    return ismrmrd.Acquisition.from_array(
        data, **{n: tuple(map(float, d)) for n, d in zip(names, directions, strict=True)}
    )


def test_rotation_from_the_headers_in_single_precision():
    directions = oblique()
    rotation = rotation_of(acquisition(directions), header(xsd.patientPositionType.HFDR))
    np.testing.assert_allclose(rotation, rotation_to_physical(*directions, "HFDR"), atol=1e-6)
    np.testing.assert_allclose(rotation, rotation_of(acquisition(directions), header("HFDR")), atol=0)
    with pytest.raises(GirfError, match="'None' is unknown"):
        rotation_of(acquisition(), SimpleNamespace(measurementInformation=None))


def test_correcting_a_trajectory_changes_its_k_alone():
    k = pulses(500, 2e-6)
    trajectory = Trajectory(Path("m.mat"), k, np.ones(500), 2e-6, 0, 0.256, 0.002, 2)
    corrected = correct_trajectory(trajectory, response(low_pass(30e-6)), acquisition(), header("HFS"))
    expected = predict_trajectory(k, response(low_pass(30e-6)), 2e-6, rotation_to_physical(*AXIAL, "HFS"))
    np.testing.assert_array_equal(corrected.k, expected)
    assert dataclasses.replace(corrected, k=k, weights=trajectory.weights).fov == trajectory.fov
    assert np.abs(corrected.k - k).max() > 1


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_file_of_the_response(tmp_path, dtype):
    girf = response(low_pass(50e-6), 380).astype(dtype)
    savemat(tmp_path / "girf.mat", {"GIRF": girf})
    np.testing.assert_array_equal(load_girf(tmp_path / "girf.mat"), girf)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"girf": np.ones((8, 3))}, "has no key GIRF"),
        ({"GIRF": np.ones((3, 380), complex)}, r"shape \(3, 380\).*must be complex numbers \[frequencies, 3\]"),
        ({"GIRF": np.ones((380, 3, 1, 2))}, "shape"),
        ({"GIRF": "text"}, "shape"),
        ({"GIRF": np.full((380, 3), np.nan)}, "not finite"),
        ({"GIRF": np.fft.ifftshift(response(low_pass(1e-3), 380), axes=0)}, "zero frequency belongs in the centre"),
    ],
)
def test_file_that_is_no_response(tmp_path, content, told):
    savemat(tmp_path / "girf.mat", content)
    with pytest.raises(GirfError, match=told) as caught:
        load_girf(tmp_path / "girf.mat")
    assert str(tmp_path / "girf.mat") in str(caught.value)


def test_damaged_file(tmp_path):
    savemat(tmp_path / "girf.mat", {"GIRF": response(unit, 380)})
    content = (tmp_path / "girf.mat").read_bytes()
    (tmp_path / "girf.mat").write_bytes(content[:-100])
    with pytest.raises(GirfError, match=r"girf\.mat is no intact MATLAB file"):
        load_girf(tmp_path / "girf.mat")


def test_search_beside_the_project(tmp_path):
    with pytest.raises(GirfError, match="there is none: set girf_file") as caught:
        find_girf(None, tmp_path)
    assert f"{tmp_path}" in str(caught.value)
    assert "apply_girf = false" in str(caught.value)
    (tmp_path / "GIRF_2024.mat").touch()
    (tmp_path / "other.mat").touch()
    assert find_girf(None, tmp_path) == tmp_path / "GIRF_2024.mat"
    (tmp_path / "girf.mat").touch()
    with pytest.raises(GirfError, match=r"one file girf\*\.mat .* there is GIRF_2024\.mat, girf\.mat"):
        find_girf(None, tmp_path)
    assert find_girf(tmp_path / "girf.mat") == tmp_path / "girf.mat"
    with pytest.raises(GirfError, match=r"no gradient impulse response at .*absent\.mat"):
        find_girf(tmp_path / "absent.mat")


def test_prediction_is_continuous_where_the_window_grows():
    """The same readout with the response's own window and with a longer one, for which the response is resampled."""
    girf, dwell = response(low_pass(40e-6), 600), 2e-6
    results = []
    for samples in (1250, 1400, 1600):
        k = np.zeros((1, samples, 2))
        k[:, :1000] = pulses(1000, dwell)[:1]
        k[:, 1000:] = k[:, 999:1000]
        results.append(predict_trajectory(k, girf, dwell, np.eye(3))[:, :1250])
    for one, other in pairwise(results):
        np.testing.assert_allclose(one, other, atol=1e-3)
