import h5py
import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

import generate_cartesian_shepp_logan_dataset as generator
import simplefft
from mrdio.mrdfile import MrdReader
from recon import cartesian
from simulation import phantom


def read(path, group="dataset"):
    with MrdReader(path, group) as reader:
        return ismrmrd.xsd.CreateFromDocument(reader.header_xml), list(reader.acquisitions())


@pytest.mark.parametrize(
    ("columns", "rows", "oversampling"), [(48, 48, 1), (47, 47, 2), (60, 40, 2), (41, 56, 1), (32, 32, 3)]
)
def test_reconstruction_is_the_phantom(columns, rows, oversampling):
    """Against the band-limited truth: the fine raster of object times sensitivity, transformed by a plain sum."""
    scan = generator.Scan(columns=columns, rows=rows, coils=3, oversampling=oversampling, noise=0.0)
    plane = next(cartesian.sort_readouts(generator.acquisitions(scan), generator.header(scan)))
    image = simplefft.reconstruct(plane)[0]
    assert image.shape == (rows, columns)

    fine, samples = 9, columns * oversampling
    shape, pixel = (rows * fine, columns * fine), (scan.pixel / fine, scan.pixel / fine)
    x, y = phantom.pixel_grid(shape, pixel)
    density = phantom.image(scan.object, shape, pixel, subpixels=3) * scan.coil_ring.maps(x, y)
    frequency_x = (np.arange(samples) - samples // 2) / (samples * scan.pixel)
    frequency_y = (np.arange(rows) - rows // 2) / (rows * scan.pixel)
    spectrum = (
        np.exp(-2j * np.pi * np.outer(frequency_y, y[:, 0]))
        @ density
        @ np.exp(-2j * np.pi * np.outer(x[0], frequency_x))
        / fine**2
    )
    centres_x, centres_y = phantom.pixel_grid((rows, columns), (scan.pixel, scan.pixel))
    coil_images = (
        np.exp(2j * np.pi * np.outer(centres_y[:, 0], frequency_y))
        @ spectrum
        @ np.exp(2j * np.pi * np.outer(frequency_x, centres_x[0]))
        / (rows * samples)
    )
    truth = np.sqrt(np.sum(np.abs(coil_images) ** 2, axis=0))
    assert np.linalg.norm(image - truth) / np.linalg.norm(truth) < 5e-3


@pytest.mark.parametrize(("columns", "rows"), [(128, 128), (127, 91)])
def test_reconstruction_agrees_with_the_raster_away_from_edges(columns, rows):
    scan = generator.Scan(columns=columns, rows=rows, coils=4, noise=0.0)
    image = simplefft.reconstruct(next(cartesian.sort_readouts(generator.acquisitions(scan), generator.header(scan))))[
        0
    ]
    grid = phantom.pixel_grid((rows, columns), (scan.pixel, scan.pixel))
    sensitivity = np.sqrt(np.sum(np.abs(scan.coil_ring.maps(*grid)) ** 2, axis=0))
    raster = phantom.image(scan.object, (rows, columns), (scan.pixel, scan.pixel)) * sensitivity
    assert np.corrcoef(image.ravel(), raster.ravel())[0, 1] > 0.98
    edges = np.maximum(*map(np.abs, np.gradient(raster / sensitivity)))
    flat = raster > 0.05
    for down in range(-3, 4):
        for right in range(-3, 4):
            flat &= np.roll(edges, (down, right), (0, 1)) < 1e-6
    assert flat.sum() > 500
    ratio = image[flat] / raster[flat]
    assert np.abs(ratio - 1).mean() < 0.1  # what is left is Gibbs ringing
    assert ratio.mean() == pytest.approx(1, abs=0.01)


def test_noise_level_is_that_of_a_coil_image():
    scan = generator.Scan(columns=64, rows=48, coils=2, noise=0.05, seed=3)
    clean = generator.Scan(columns=64, rows=48, coils=2, noise=0.0)
    header = generator.header(scan)
    noisy, exact = (
        cartesian.to_image(next(cartesian.sort_readouts(generator.acquisitions(s), header))) for s in (scan, clean)
    )
    difference = noisy - exact
    assert difference.real.std() == pytest.approx(0.05, rel=0.03)
    assert difference.imag.std() == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize(("acceleration", "width"), [(2, 12), (3, 13), (3, 0)])
def test_accelerated_scan_comes_back_with_its_calibration_lines(acceleration, width):
    """Against the closed-form k-space, with zeros where the scan has no line, summed up to an image plainly."""
    scan = generator.Scan(columns=40, rows=37, coils=3, noise=0.0, acceleration=acceleration, calibration_width=width)
    kx = (np.arange(80) - 40) / (80 * scan.pixel)
    ky = (np.arange(37) - 18) / (37 * scan.pixel)
    kspace = scan.coil_ring.kspace(scan.object, kx, ky[:, np.newaxis]) / scan.pixel**2
    x, y = (np.arange(40) - 20) * scan.pixel, (np.arange(37) - 18) * scan.pixel
    warnings = []
    planes = list(cartesian.sort_readouts(generator.acquisitions(scan), generator.header(scan), warnings.append))
    assert len(planes) == acceleration
    assert "expect aliasing" in warnings[0]
    for shot, plane in enumerate(planes):
        begin = 18 - width // 2
        rows = sorted({*range(shot, 37, acceleration), *range(begin, begin + width)})
        zero_filled = np.zeros_like(kspace)
        zero_filled[:, rows] = kspace[:, rows]
        coil_images = (
            np.exp(2j * np.pi * np.outer(y, ky)) @ zero_filled @ np.exp(2j * np.pi * np.outer(kx, x)) / (37 * 80)
        )
        truth = np.sqrt(np.sum(np.abs(coil_images) ** 2, axis=0))
        image = simplefft.reconstruct(plane)[0]
        assert np.linalg.norm(image - truth) / np.linalg.norm(truth) < 1e-5


def test_headers_and_flags(tmp_path):
    path = tmp_path / "x.h5"
    generator.main(["-m", "16", "12", "-c", "3", "-r", "2", "-a", "2", "-w", "4", "-C", "-o", str(path), "-d", "group"])
    header, readouts = read(path, "group")
    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y) == (32, 12)
    assert (encoding.reconSpace.matrixSize.x, encoding.reconSpace.matrixSize.y) == (16, 12)
    assert encoding.encodedSpace.fieldOfView_mm.x == pytest.approx(600)
    assert encoding.reconSpace.fieldOfView_mm.x == pytest.approx(300)
    assert encoding.reconSpace.fieldOfView_mm.y == pytest.approx(225)
    limits = encoding.encodingLimits
    assert (limits.kspace_encoding_step_1.maximum, limits.kspace_encoding_step_1.center) == (11, 6)
    assert limits.repetition.maximum == 3
    assert encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 == 2
    assert header.acquisitionSystemInformation.receiverChannels == 3
    assert header.measurementInformation.patientPosition.value == "HFS"

    assert readouts[0].is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert [r.scan_counter for r in readouts] == list(range(1, len(readouts) + 1))
    assert np.diff([r.acquisition_time_stamp for r in readouts]).tolist() == [4] * (len(readouts) - 1)
    scans = [[r for r in readouts[1:] if r.idx.repetition == repetition] for repetition in range(4)]
    assert [r.idx.kspace_encode_step_1 for r in scans[0]] == [0, 2, 4, 5, 6, 7, 8, 10]
    assert [r.idx.kspace_encode_step_1 for r in scans[3]] == [1, 3, 4, 5, 6, 7, 9, 11]

    def rows_with(flag, scan):
        return [r.idx.kspace_encode_step_1 for r in scan if r.is_flag_set(flag)]

    assert rows_with(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, scans[0]) == [5, 7]
    assert rows_with(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING, scans[0]) == [4, 6]
    for flag in (ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION):
        assert rows_with(flag, scans[1]) == [1]
    for flag in (ismrmrd.ACQ_LAST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION):
        assert rows_with(flag, scans[0]) == [10]
    assert [r.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for r in readouts] == [False] * (len(readouts) - 1) + [True]
    one = readouts[5]
    assert (one.center_sample, one.active_channels, one.channel_mask[0]) == (16, 3, 7)
    assert (one.read_dir[:], one.phase_dir[:], one.slice_dir[:]) == ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    assert one.sample_time_us > 0


def test_the_same_seed_gives_the_same_data_and_the_file_is_replaced(tmp_path, capsys):
    path = tmp_path / "x.h5"
    arguments = ["-m", "8", "-c", "2", "-n", "0.1", "-o", str(path)]
    assert generator.main([*arguments, "-s", "5"]) == 0
    _, first = read(path)
    assert generator.main([*arguments, "-s", "5"]) == 0
    _, second = read(path)
    assert generator.main([*arguments, "-s", "6"]) == 0
    _, third = read(path)
    assert len(first) == len(second) == 8
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0].data, third[0].data)
    assert list(tmp_path.iterdir()) == [path]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "in place of" not in lines[0]
    assert "in place of" in lines[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "1"],
        ["-m", "8", "8", "8"],
        ["-n", "nan"],
        ["-m", "8", "-a", "9"],
        ["-m", "4096", "-O", "3"],
        ["-c", "x"],
        ["--noise-output", "no such folder/x.h5"],
        ["--partial-fourier", "0.4"],
        ["--slices", "2", "--partitions", "2"],
        ["--epi-shots", "2"],
        ["--noise-dwell", "2"],
    ],
)
def test_nonsense_is_refused(arguments, tmp_path):
    with pytest.raises(SystemExit) as caught:
        generator.main([*arguments, "-o", str(tmp_path / "x.h5")])
    assert caught.value.code == 2


def test_noise_measurement_and_truth_are_written_beside_the_scan(tmp_path, capsys):
    path, noise_file = tmp_path / "x.h5", tmp_path / "noise.h5"
    arguments = ["-m", "16", "12", "-c", "3", "--slices", "2", "--noise-correlation", "0.4", "--noise-readouts", "5"]
    arguments += ["--noise-output", str(noise_file), "--noise-dwell", "8", "--truth", "--phase", "0.5", "-o", str(path)]
    assert generator.main(arguments) == 0
    header, readouts = read(path)
    noise_header, noise = read(noise_file)
    (dependency,) = header.measurementInformation.measurementDependency
    assert dependency.measurementID == noise_header.measurementInformation.measurementID
    assert len(readouts) == 2 * 12
    assert len(noise) == 5
    assert {r.sample_time_us for r in noise} == {8.0}
    with h5py.File(tmp_path / "x_truth.h5") as truth:
        assert truth["density"].shape == (2, 12, 16)
        assert truth["maps"].shape == (3, 2, 12, 16)
        assert truth["noise_covariance"].shape == (3, 3)
    lines = capsys.readouterr().out.splitlines()
    assert str(noise_file) in lines[1]
    assert "x_truth.h5" in lines[2]


def test_every_option_reaches_the_scan(tmp_path):
    options = """-m 12 10 -c 2 -C --epi --epi-shots 2 --epi-delay 0.5 --epi-phase 0.1 --epi-ramp 0.2
        --epi-first-reversed --partitions 6 -a 2 --acceleration-2 2 --shift 1 -w 4 --calibration separate
        --partial-fourier 0.8 --slice-partial-fourier 0.7 --missing-end --averages 2 --object-size 1.2 --phase 0.3
        --dwell 3 --noise-readouts 2 --noise-dwell 6 --noise-bandwidth 0.8 --noise-covariance-seed 4
        --noise-correlation 0.1"""
    _, scan = generator.parse_arguments([*options.split(), "-o", str(tmp_path / "x.h5")])
    assert scan == generator.Scan(
        columns=12, rows=10, coils=2, noise_scan=True, partitions=6, acceleration=2, acceleration_2=2, shift=1,
        calibration_width=4, calibration="separate", partial_fourier=0.8, slice_partial_fourier=0.7,
        missing_end=True, averages=2,
        object_size=1.2, phase=0.3, dwell=3.0,
        epi=generator.Epi(shots=2, delay=0.5, phase=0.1, ramp=0.2, first_reversed=True),
        noise_model=generator.Noise(correlation=0.1, covariance_seed=4, readouts=2, dwell=6.0, bandwidth=0.8),
    )  # fmt: skip
    _, scan = generator.parse_arguments(["--asymmetric-echo", "0.7", "--slices", "3", "-o", str(tmp_path / "x.h5")])
    assert scan == generator.Scan(asymmetric_echo=0.7, slices=3)
