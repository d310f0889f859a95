"""Noise: its covariance, whitened readouts, noise that cannot be used, and spiral images with correlated noise."""

import ismrmrd
import numpy as np
import pytest

import coils
import rtspiral_bart_tvrecon
import simplenufft1arm
import spiral_xdgrasp_recon
from conftest import make_acquisition, make_header, make_image, make_waveform
from mrdio.dependencies import Dependency
from recon import noise
from recon.noise import NoiseCovariance, NoiseError
from recon.trajectory import ArmCounter
from rtspiral_bart_tvrecon import TfdConfig
from simplenufft1arm import ViewSharingConfig
from simulation.spiralsimulation import sample_noise
from spiral_sessions import Client, configure, small_scan
from spiral_xdgrasp_recon import XdConfig

COILS = 6
RANDOM = np.random.default_rng(5)
# Coils of unequal noise, and with noise in common: the root of a covariance.
MIXING = np.diag([1, 1, 2, 2, 5, 10]) @ (np.eye(COILS) + 0.4 * RANDOM.standard_normal((COILS, COILS, 2)) @ [1, 1j])


def white(random, *shape):
    """Complex noise of variance 1."""
    return (random.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)).astype(np.complex64)


def readout(data, *flags, number=0, dwell=2.5, **header):
    acquisition = ismrmrd.Acquisition.from_array(
        np.ascontiguousarray(data, np.complex64), scan_counter=number, **header
    )
    acquisition.sample_time_us = dwell
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def noise_readout(samples=4000, seed=1, mixing=MIXING, **header):
    data = mixing @ white(np.random.default_rng(seed), len(mixing), samples)
    return readout(data, ismrmrd.ACQ_IS_NOISE_MEASUREMENT, **header)


def covariance_of(samples):
    return samples @ samples.conj().T / samples.shape[1]


def run(items, header=None, mode="auto", stored=None):
    """Messages that come out, and what the client was told."""
    told, warned, asked = [], [], []

    def find(kind):
        asked.append(kind)
        return stored

    out = list(noise.prewhiten(items, header or make_header(), mode, told.append, warned.append, find))
    return out, told, warned, asked


# ---- the covariance ------------------------------------------------------------------------------------------------


def test_whitened_noise_of_correlated_coils_has_the_identity_as_covariance():
    fresh = [readout(MIXING @ white(np.random.default_rng(n), COILS, 50_000), number=n) for n in range(10, 14)]
    measured = [noise_readout(50_000, seed) for seed in (1, 2)]
    out, told, warned, asked = run([*measured, *fresh])
    assert (warned, asked) == ([], [])
    assert told == ["readouts are whitened: 100000 noise samples of 6 coils of this scan"]
    assert len(out) == len(fresh)
    off = np.abs(covariance_of(np.concatenate([each.data for each in out], axis=1)) - np.eye(COILS))
    before = covariance_of(np.concatenate([each.data for each in fresh], axis=1))
    assert off.max() < 0.01
    assert np.abs(before / before[0, 0] - np.eye(COILS)).max() > 10


def test_signal_to_noise_ratio_rises_as_theory_says():
    maps = white(np.random.default_rng(3), COILS, 1)
    signal = 5 * maps * np.ones((1, 40_000))
    sent = readout(signal + MIXING @ white(np.random.default_rng(4), COILS, 40_000))

    def ratio(samples, weights):
        weights = weights / np.linalg.norm(weights)
        combined = coils.combine(samples, weights * np.ones(samples.shape))
        return abs(combined.mean()) / combined.std()

    pre = noise.Prewhitening(make_header())
    (whitened,) = [*pre.apply([noise_readout(20_000, seed) for seed in range(10, 20)] + [sent])]
    gain = ratio(whitened.data, pre.matrix @ maps) / ratio(sent.data, maps)
    psi = MIXING @ MIXING.conj().T
    best = (maps.conj().T @ np.linalg.solve(psi, maps)).real.item()  # Roemer 1990
    plain = np.linalg.norm(maps) ** 4 / (maps.conj().T @ psi @ maps).real.item()
    assert gain == pytest.approx(np.sqrt(best / plain), rel=0.02)
    assert gain > 2


@pytest.mark.parametrize(("dwell", "flat_part"), [(2.5, None), (10.0, None), (2.5, 0.79), (10.0, 0.79)])
def test_noise_is_scaled_to_the_bandwidth_of_the_imaging_readouts(dwell, flat_part):
    """Noise of one density comes through a filter, in the noise readout with the edges of the filter's band."""
    random, count, density = np.random.default_rng(3), 200_000, 4.0  # density: variance x dwell time [us]
    gain = np.ones(count)
    if flat_part is not None:  # the outer 30 % let through as much that 79 % of the power are left
        outer = np.abs(np.fft.fftfreq(count)) > 0.35
        gain[outer] = np.sqrt((flat_part - 0.7) / 0.3)
    seen = np.fft.ifft(gain * np.fft.fft(np.sqrt(density / 2.5) * white(random, 2, count)))
    imaging = np.sqrt(density / dwell) * white(random, 2, count)  # as in the middle of the band
    header = make_header()
    header.acquisitionSystemInformation = ismrmrd.xsd.acquisitionSystemInformationType(
        relativeReceiverNoiseBandwidth=flat_part
    )
    measured = [readout(part, ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for part in np.split(seen, 4, axis=1)]
    out, *_ = run([*measured, *(readout(part, dwell=dwell) for part in np.split(imaging, 4, axis=1))], header)
    samples = np.concatenate([each.data for each in out], axis=1)
    np.testing.assert_allclose(covariance_of(samples), np.eye(2), atol=0.02)


def test_samples_to_be_discarded_do_not_count():
    data = MIXING @ white(RANDOM, COILS, 1000)
    spoilt = np.concatenate([1e3 * np.ones((COILS, 30)), data, 1e3 * np.ones((COILS, 20))], axis=1)
    found = NoiseCovariance([readout(spoilt, discard_pre=30, discard_post=20)])
    assert found.samples == 1000
    np.testing.assert_allclose(found.matrix, covariance_of(data), rtol=1e-4)


@pytest.mark.parametrize(
    ("readouts", "reason"),
    [
        ([], "there are none"),
        ([noise_readout(59)], "59 samples are too few for 6 coils, 60 are enough"),
        ([noise_readout(), noise_readout(mixing=MIXING[:4, :4])], "they have 6 coils, then 4"),
        (
            [readout(np.where(np.arange(100) == 50, np.nan, 1) * np.eye(2, 100), number=7)],
            "scan_counter 7 are not finite",
        ),
        ([readout(np.concatenate([white(RANDOM, 2, 100), np.zeros((1, 100))]))], "channel 2 is dead"),
        ([readout(white(RANDOM, 1, 100) * [[1], [2j]])], "some channels hold the same noise"),
    ],
)
def test_noise_that_cannot_be_used(readouts, reason):
    with pytest.raises(NoiseError, match=reason):
        NoiseCovariance(readouts)


# ---- in the chain --------------------------------------------------------------------------------------------------


def test_whitened_readouts_are_new_ones_with_the_same_header():
    imaging = make_acquisition(3, channels=COILS, samples=20, dimensions=2)
    before = imaging.data.copy()
    (out,), *_ = run([noise_readout(), imaging])
    assert bytes(out.getHead()) == bytes(imaging.getHead())
    np.testing.assert_array_equal(out.traj, imaging.traj)
    np.testing.assert_array_equal(imaging.data, before)
    expected = np.linalg.inv(np.linalg.cholesky(NoiseCovariance([noise_readout()]).matrix)) @ before
    np.testing.assert_allclose(out.data, expected, rtol=1e-4)


def test_order_of_messages_and_what_passes_as_it_is():
    """One matrix for all, that of the first imaging readout's bandwidth; late noise goes to whoever counts readouts."""
    calibration = readout(np.ones((COILS, 8)), ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, number=2, dwell=10)
    body_coil = readout(np.ones((2, 8)), ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA, number=3)
    imaging = [readout(np.ones((COILS, 8)), number=n) for n in (4, 6)]
    waveform, late = make_waveform(1), noise_readout(number=5)
    items = [noise_readout(number=1), calibration, "text", waveform, body_coil, imaging[0], late, imaging[1]]
    out, *_ = run(items)
    assert [getattr(each, "scan_counter", each) for each in out] == [2, "text", 1, 3, 4, 5, 6]
    assert (out[2], out[3], out[5]) == (waveform, body_coil, late)
    for each in (out[0], out[6]):
        np.testing.assert_array_equal(each.data, out[4].data)
    counter = ArmCounter(10, pytest.fail)
    assert [arm.number for each in out[4:] if (arm := counter.place(each))] == [0, 1]


def test_mode_off_and_scans_without_noise_change_nothing():
    items = [noise_readout(), make_waveform(1), make_acquisition(1, channels=COILS)]
    out, told, warned, asked = run(items, mode="off")
    assert (out, told, warned, asked) == (items, [], [], [])
    items = [make_waveform(1), make_acquisition(1), make_acquisition(2)]
    out, told, warned, asked = run(items)
    assert (out, told, warned, asked) == (items, [], [], ["Noise"])


def test_an_image_is_not_held_back():
    image, asked = make_image(1), []
    messages = noise.prewhiten(iter([image]), make_header(), stored=asked.append)
    assert next(messages) is image
    assert asked == []


def test_stored_noise_counts_where_the_scan_has_none():
    stored = Dependency("42_7", None, [make_acquisition(9, channels=COILS), noise_readout(5000)])
    out, told, warned, _ = run([make_acquisition(1, channels=COILS)], stored=stored)
    assert told == ["readouts are whitened: 5000 noise samples of 6 coils of the stored measurement 42_7"]
    own, *_ = run([noise_readout(5000), make_acquisition(1, channels=COILS)], stored=stored)
    np.testing.assert_array_equal(out[0].data, own[0].data)
    assert warned == []


def test_noise_that_cannot_be_used_is_told_and_readouts_stay_as_they_are():
    imaging = make_acquisition(1, channels=4)
    out, told, warned, _ = run([noise_readout(), imaging])
    assert (out, told) == ([imaging], [])
    assert warned == [
        "readouts are not whitened: the 1 noise readouts of this scan cannot be used: they have 6 coils, the scan has 4"
    ]


def test_noise_readouts_of_another_coil_do_not_count():
    body = noise_readout(mixing=np.eye(2))
    _, told, warned, _ = run([body, noise_readout(), readout(np.ones((COILS, 8)))])
    assert not warned
    assert told == ["readouts are whitened: 4000 noise samples of 6 coils of this scan"]


def test_noise_readouts_that_come_too_late_are_told_of():
    _, told, _, _ = run([noise_readout(), readout(np.ones((COILS, 8))), noise_readout()])
    assert told[-1] == "noise readouts after the first imaging readout are not used"


def test_a_readout_with_other_channels_is_no_part_of_the_image():
    with pytest.raises(ValueError, match="scan_counter 2 has 3 channels, those before it have 6"):
        run([noise_readout(), make_acquisition(1, channels=COILS), make_acquisition(2, channels=3)])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_readouts_that_are_not_finite_stay_so(value):
    broken = readout(np.full((COILS, 8), value), number=2)
    out, *_ = run([noise_readout(mixing=1e-6 * MIXING), broken])
    assert not np.isfinite(out[0].data).all()


# ---- spiral images -------------------------------------------------------------------------------------------------


def mixing_of(simulation, *levels, common=0.5):
    """Root of the noise's covariance: levels of the coils, and what each gets of the others."""
    return 0.002 * sample_noise(simulation.trajectory) * np.diag(levels) @ (np.eye(4) + common * np.ones((4, 4)))


def noisy(simulation, mixing, noise_samples):
    """Items of a noiseless scan with noise; a noise readout before, if wanted."""
    random = np.random.default_rng(8)
    if noise_samples:
        yield noise_readout(noise_samples, mixing=mixing, dwell=1e6 * simulation.trajectory.dwell)
    for item in simulation.items():
        if isinstance(item, ismrmrd.Acquisition):
            item.data[:] += mixing @ white(random, *item.data.shape)
        yield item


MODULES = {
    "adaptive": (simplenufft1arm, ViewSharingConfig, {"arms_per_frame": 24, "window_shift": 24}),
    "rssq": (simplenufft1arm, ViewSharingConfig, {"arms_per_frame": 24, "window_shift": 24, "coil_combine": "rssq"}),
    "tfd": (
        rtspiral_bart_tvrecon,
        TfdConfig,
        {"arms_per_frame": 12, "num_chunks": 1, "num_iter": 30, "fov_oversampling": 1.0},
    ),
    "xdgrasp": (spiral_xdgrasp_recon, XdConfig, {"arm_discard_pre": 0, "arm_discard_post": 0, "num_iter": 20}),
}
BINNING = {"n_respiratory_bins": 2, "n_cardiac_bins": 2}


def object_error(images, simulation):
    """Relative error against the object, after the best smooth shading: whitening changes that of the coils."""
    truth = simulation.truth.frame([0])
    y, x = np.mgrid[-1 : 1 : 1j * len(truth), -1 : 1 : 1j * len(truth)]
    shading = np.stack([truth * x**i * y**j for i in range(5) for j in range(5 - i)]).reshape(15, -1).T
    errors = []
    for image in images:
        fitted = shading @ np.linalg.lstsq(shading, image.ravel(), rcond=None)[0]
        errors.append(np.linalg.norm(image.ravel() - fitted) / np.linalg.norm(fitted))
    return float(np.mean(errors))


def reconstructed(name, simulation, folder, monkeypatch, mixing, noise_samples, mode="auto"):
    """Error of a module's images, and what the client was told."""
    module, cls, options = MODULES[name]
    tables = {"binning": BINNING} if name == "xdgrasp" else {}
    configure(monkeypatch, cls, folder, reconstruction=options | {"prewhiten": mode}, **tables)
    client = Client(noisy(simulation, mixing, noise_samples))
    module.process(client, "", simulation.header)
    assert not any("left out" in text or "missing" in text for text in client.texts)
    return object_error(client.pixels, simulation), "\n".join(client.texts)


@pytest.mark.parametrize("name", MODULES)
def test_spiral_images_with_correlated_noise_become_better(tmp_path, monkeypatch, name):
    readouts = {"readouts": 300, "tr": 40e-3} if name == "xdgrasp" else {"readouts": 72, "waveforms": False}
    simulation = small_scan(tmp_path, noise=0, still=True, **readouts)
    scan = name, simulation, tmp_path, monkeypatch, mixing_of(simulation, 1, 1, 1, 12), 20_000
    before, told = reconstructed(*scan, "off")
    assert "whitened" not in told
    error, told = reconstructed(*scan, "auto")
    assert "readouts are whitened: 20000 noise samples of 4 coils of this scan" in told
    assert error < 0.8 * before


@pytest.mark.parametrize("noise_samples", [noise.SAMPLES_PER_COIL * 4, 20_000])
def test_spiral_images_with_equal_noise_stay_as_good(tmp_path, monkeypatch, noise_samples):
    """Also with as few noise samples as are taken."""
    simulation = small_scan(tmp_path, noise=0, still=True, readouts=72, waveforms=False)
    scan = "adaptive", simulation, tmp_path, monkeypatch, mixing_of(simulation, 3, 3, 3, 3, common=0)
    before, told = reconstructed(*scan, 0)
    assert "whitened" not in told
    error, told = reconstructed(*scan, noise_samples)
    assert "are whitened" in told
    assert error < (1.01 if noise_samples > 1000 else 1.05) * before
