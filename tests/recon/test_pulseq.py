import hashlib
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pypulseq
import pytest

from pulseq_files import (
    SYSTEM,
    adc,
    excitation,
    gradients,
    label,
    spiral_arm,
    spiral_sequence,
    text_of,
    write,
)
from recon import pulseq
from recon.configuration import PROJECT_FOLDER
from recon.pulseqreadouts import SequenceError, image_readouts
from recon.trajectory import TrajectoryError


def many_events():
    """Spiral with prephasers, delays, refocusing, readouts of odd lengths and pulses in the middle of gradients."""
    sequence = pypulseq.Sequence(SYSTEM)
    for number in range(3):
        sequence.add_block(excitation(), pypulseq.make_trapezoid("x", area=30, duration=2e-3, system=SYSTEM))
        sequence.add_block(pypulseq.make_delay(1.3e-3))
        prephaser = pypulseq.make_trapezoid("y", area=-50.0 - number, duration=0.7e-3, delay=50e-6, system=SYSTEM)
        sequence.add_block(prephaser, pypulseq.make_trapezoid("x", area=45, duration=0.6e-3, system=SYSTEM))
        if number == 1:
            sequence.add_block(
                excitation(180, "refocusing"), pypulseq.make_trapezoid("z", area=90, duration=2e-3, system=SYSTEM)
            )
        arm = spiral_arm() * np.exp(2j * number)
        sequence.add_block(*gradients(arm, 40e-6), adc(251, 3.7e-6, 20e-6 + number * 5e-6))
        flat = pypulseq.make_extended_trapezoid(
            "y", amplitudes=np.array([0, 3e4, 3e4, 0]), times=np.array([0, 1e-4, 7e-4, 1e-3]), system=SYSTEM
        )
        sequence.add_block(flat, adc(251, 3.7e-6, 10e-6))
        sequence.add_block(pypulseq.make_trapezoid("z", area=400, duration=1e-3, system=SYSTEM))
    return sequence


@pytest.mark.parametrize("old", [False, True], ids=["1.5", "1.4"])
def test_k_space_is_that_of_pypulseq(tmp_path, old):
    sequence = many_events()
    readouts = image_readouts(text_of(sequence, tmp_path, old))
    expected = sequence.calculate_kspace()[0].reshape(3, 6, 251)[:2].transpose(1, 2, 0)
    assert readouts.order.tolist() == list(range(6))
    np.testing.assert_allclose(readouts.k, expected, atol=1e-4 * np.abs(expected).max())
    assert readouts.dwell == pytest.approx(3.7e-6)


def test_k_space_is_the_integral_of_the_gradients(tmp_path):
    sequence = many_events()
    readouts = image_readouts(text_of(sequence, tmp_path))
    waves = sequence.waveforms()
    t_excitation = sequence.rf_times()[0]
    t_adc = sequence.adc_times()[0].reshape(6, 251)
    for readout, excited in ((0, t_excitation[0]), (5, t_excitation[2])):
        fine = np.linspace(excited, t_adc[readout, -1], 200_001)
        for axis in (0, 1):
            g = np.interp(fine, *waves[axis], left=0, right=0)
            k = np.concatenate(([0], np.cumsum((g[1:] + g[:-1]) / 2 * np.diff(fine))))
            expected = np.interp(t_adc[readout], fine, k)
            np.testing.assert_allclose(readouts.k[readout, :, axis], expected, atol=1e-3)


def test_a_refocusing_pulse_negates_k(tmp_path):
    for flips, sign in (((), 1), ((180,), -1), ((180, 180), 1)):
        sequence = pypulseq.Sequence(SYSTEM)
        sequence.add_block(excitation())
        sequence.add_block(pypulseq.make_trapezoid("x", area=100, duration=1e-3, system=SYSTEM))
        for flip in flips:
            sequence.add_block(excitation(flip, "refocusing"))
        sequence.add_block(adc())
        for old in (False, True):
            k = image_readouts(text_of(sequence, tmp_path, old)).k
            np.testing.assert_allclose(k[0], np.tile([100.0 * sign, 0], (300, 1)), rtol=1e-5)


def test_only_distinct_readouts_are_kept_with_their_order(tmp_path):
    readouts = image_readouts(text_of(spiral_sequence(arms=4, runs=3), tmp_path))
    assert readouts.k.shape == (4, 300, 2)
    assert readouts.order.tolist() == [0, 1, 2, 3] * 3


def test_readouts_that_are_none_of_the_images(tmp_path):
    """Unlabelled ones stay in the count, as converters cannot flag them; labelled ones are not counted."""
    sequence = pypulseq.Sequence(SYSTEM)
    sequence.add_block(adc())  # before any excitation: noise
    sequence.add_block(label("NOISE", 1), adc())
    sequence.add_block(label("NOISE", 0))
    sequence.add_block(excitation())  # a dummy
    sequence.add_block(*gradients(spiral_arm()))
    for turn in (1, 1j):
        sequence.add_block(excitation())
        sequence.add_block(label("NAV", 1), adc())
        sequence.add_block(label("NAV", 0), adc(35))  # of another length
        sequence.add_block(*gradients(spiral_arm() * turn), adc())
    sequence.add_block(label("REF", 1), adc())  # calibration only
    sequence.add_block(label("IMA", 1), adc())  # for both
    readouts = image_readouts(text_of(sequence, tmp_path))
    assert readouts.order.tolist() == [-1, -1, 0, -1, 1, 2]
    assert readouts.samples.tolist() == [300, 35, 300, 35, 300, 300]
    assert readouts.k.shape == (3, 300, 2)
    assert "3 of 6 readouts are none of the image's" in readouts.remarks[0]


def with_rotation(text, quaternions):
    """Text of a 1.5 sequence in which the n-th readout has the n-th rotation."""
    lines, number, inside = [], 0, False
    for line in text.partition("[SIGNATURE]")[0].splitlines():
        inside = line == "[BLOCKS]" or (inside and not line.startswith("["))
        words = line.split()
        if inside and len(words) == 8 and words[6] != "0" and not line.startswith("#"):
            number += 1
            line = " ".join([*words[:7], str(number)])
        if line.startswith("[SHAPES]"):
            lines += ["[EXTENSIONS]", *(f"{n} 1 {n} 0" for n in range(1, number + 1)), ""]
            lines += ["# id RotQuat0 RotQuatX RotQuatY RotQuatZ", "extension ROTATIONS 1"]
            lines += [f"{n} {q[0]:.9g} {q[1]:.9g} {q[2]:.9g} {q[3]:.9g}" for n, q in enumerate(quaternions, 1)] + [""]
        lines.append(line)
    return "\n".join(lines)


def test_rotations_turn_the_gradients(tmp_path):
    sequence = pypulseq.Sequence(SYSTEM)
    for _ in range(4):
        sequence.add_block(excitation())
        sequence.add_block(*gradients(spiral_arm()), adc())
    angles = np.radians([0, 30, 111.25, 200])
    quaternions = [(np.cos(a / 2), 0, 0, np.sin(a / 2)) for a in angles]
    readouts = image_readouts(with_rotation(text_of(sequence, tmp_path), quaternions))
    k = readouts.k[..., 0] + 1j * readouts.k[..., 1]
    np.testing.assert_allclose(k, k[0] * np.exp(1j * angles)[:, None], atol=1e-4)
    assert np.abs(k[0]).max() > 45
    # about x, y becomes z: no two-dimensional trajectory
    with pytest.raises(SequenceError, match="kz changes by up to"):
        image_readouts(with_rotation(text_of(sequence, tmp_path), [(np.sqrt(0.5), np.sqrt(0.5), 0, 0)] * 4))


def with_loop(text):
    rotated = with_rotation(text, [(1, 0, 0, 0)])
    return rotated.replace("1 1 1 0\n", "1 1 1 1\n")


OLD = """# Pulseq sequence file
# Created by MATLAB mr toolbox

[VERSION]
major 1
minor {minor}
revision 1

[DEFINITIONS]
{definitions}

# Format of blocks:
[BLOCKS]
1 0 1 0 0 0 0{extension}
2 1 0 0 0 0 0{extension}
3 0 0 1 2 0 1{extension}

[RF]
1 250 1 2 100 0 0

[GRADIENTS]
2 40000 3 30

[TRAP]
1 80000 100 1000 100 50

[ADC]
1 64 10000 150 500 3.14159

[DELAYS]
1 5000

[SHAPES]

shape_id 1
num_samples 100
1
0
0
97

shape_id 2
num_samples 100
0
0
98

shape_id 3
num_samples 100
{ramp}
"""


@pytest.mark.parametrize("minor", [2, 3])
def test_old_formats(minor):
    """With a delay event, without block durations and raster times; the last line of the file ends it."""
    text = OLD.format(
        minor=minor,
        definitions="FOV 240 240 5" if minor == 2 else "Name old ",
        extension="" if minor == 2 else " 0",
        ramp="0.01\n0.01\n98",
    )
    readouts = image_readouts(text.rstrip())
    t = 150e-6 + (np.arange(64) + 0.5) * 10e-6
    np.testing.assert_allclose(readouts.k[0, :, 0], 80000 * (50e-6 + (t - 150e-6)), rtol=1e-6)
    since = t - 30e-6  # the gradient rises by 1 % of 40000 Hz/m from one raster interval to the next
    rise = 40000 * 0.01 * (since**2 / 2 / 10e-6 + since / 2) - 200 * 5e-6 / 2  # from 0, to the first sample
    np.testing.assert_allclose(readouts.k[0, :, 1], rise, rtol=1e-6)
    assert readouts.defined_fov == pytest.approx(0.24) if minor == 2 else np.isnan(readouts.defined_fov)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # pypulseq's
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "", "no image readout"),
        (lambda text: "garbage\n" * 1000, "Unknown section code: garbage"),
        (lambda text: text[: len(text) // 2], None),
        (lambda text: text.replace("num_samples 120", "num_samples 99999999999"), "claims 1e\\+11 samples"),
        (lambda text: text.replace("[TRAP]", "[FRAP]"), "Unknown section code: \\[FRAP\\]"),
        (lambda text: text.replace("minor 5", "minor 1"), "Unsupported version 1.1"),
        (with_loop, "comes back to its entry 1"),
    ],
    ids=["empty", "garbage", "cut", "huge shape", "unknown section", "too old", "loop"],
)
def test_hostile_sequences_are_refused_with_a_reason(tmp_path, change, reason):
    text = text_of(spiral_sequence(arms=1), tmp_path)
    changed = change(text)
    assert changed != text
    with pytest.raises(Exception, match=reason):
        image_readouts(changed)


def test_a_file_without_image_readouts_is_refused(tmp_path):
    sequence = pypulseq.Sequence(SYSTEM)
    sequence.add_block(*gradients(spiral_arm()), adc())
    with pytest.raises(SequenceError, match="none follows an excitation pulse"):
        image_readouts(text_of(sequence, tmp_path))
    sequence = pypulseq.Sequence(SYSTEM)
    sequence.add_block(excitation())
    sequence.add_block(adc())
    with pytest.raises(SequenceError, match="no gradient along x or y"):
        image_readouts(text_of(sequence, tmp_path))


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Content of a sequence, its signature, and its cache file's content."""
    file, signature = write(spiral_sequence(FOV=[0.24, 0.24, 0.005]), tmp_path_factory.mktemp("sequence") / "a.seq")
    pulseq.read_readouts(file)
    return file.read_bytes(), signature, file.with_name("a.seq.npz").read_bytes()


@pytest.fixture
def no_reading(monkeypatch):
    def refuse(*_):
        raise AssertionError("the sequence was read anew")

    monkeypatch.setattr(pulseq, "_read_anew", refuse)


def test_the_reader_s_process_gives_what_its_function_gives(example, tmp_path, no_reading):
    content, _, cache = example
    (tmp_path / "a.seq").write_bytes(content)
    (tmp_path / "a.seq.npz").write_bytes(cache)
    kept, made = pulseq.read_readouts(tmp_path / "a.seq"), image_readouts(content.decode())
    for name in (
        "k",
        "order",
        "samples",
        "first_run_only",
        "kz",
        "weights",
        "dwell",
        "defined_fov",
        "supported_fov",
        "remarks",
    ):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))


def test_the_signature_is_stated_and_verified(example, tmp_path):
    content, signature, _ = example
    file = tmp_path / "a.seq"
    file.write_bytes(content)
    assert pulseq.stated_signature(file) == signature
    pulseq.check_signature(file, content)
    pulseq.check_signature(file, content.replace(b"\n", b"\r\n"))
    with pytest.raises(TrajectoryError, match=f"changed after it was written: it states the signature {signature}"):
        pulseq.check_signature(file, content.replace(b"0.24", b"0.25", 1))
    file.write_bytes(content.partition(b"\n[SIGNATURE]")[0])
    assert pulseq.stated_signature(file) is None


def damaged_caches(content):
    def with_arrays(**changes):
        with np.load(io.BytesIO(content)) as arrays:
            changed = {name: arrays[name] for name in arrays.files} | changes
        file = io.BytesIO()
        np.savez(file, **{name: value for name, value in changed.items() if value is not None})
        return file.getvalue()

    return {
        "empty": b"",
        "garbage": b"PK\x03\x04" + bytes(range(256)) * 20,
        "cut": content[: len(content) // 2],
        "pickle": pickle.dumps(pytest.fail),
        "objects": with_arrays(k=np.array([[[{}]]], object)),
        "lacking": with_arrays(order=None),
        "shape": with_arrays(weights=np.ones((1, 1))),
        "not finite": with_arrays(k=np.full((8, 300, 2), np.nan)),
        "out of range": with_arrays(order=np.array([0, 8])),
        "older content": with_arrays(source=np.array("0" * 64)),
    }


def test_broken_cache_files_are_not_used(example, tmp_path):
    content, _, cache = example
    digest = pulseq.digest_of(content)
    file = tmp_path / "a.seq.npz"
    for name, damaged in damaged_caches(cache).items():
        file.write_bytes(damaged)
        assert pulseq.load(file, digest) is None, name
    file.write_bytes(cache)
    assert pulseq.load(file, digest).k.shape == (8, 300, 2)


def test_a_broken_cache_file_is_made_anew(example, tmp_path, monkeypatch):
    content, _, cache = example
    monkeypatch.setattr(pulseq, "_read_anew", lambda file, content, result: result.write_bytes(cache) and "anew")
    (tmp_path / "a.seq").write_bytes(content)
    (tmp_path / "a.seq.npz").write_bytes(cache[:1000])
    assert pulseq.read_readouts(tmp_path / "a.seq") == "anew"
    assert (tmp_path / "a.seq.npz").read_bytes() == cache
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.seq", "a.seq.npz"]


def test_the_cache_folder_serves_where_the_sequence_lies_in_a_folder_that_cannot_be_written(
    example, tmp_path, monkeypatch
):
    content, _, cache = example
    made = []

    def read_anew(file, content, result):
        made.append(file)
        result.write_bytes(cache)
        return pulseq.load(result, pulseq.digest_of(content))

    monkeypatch.setattr(pulseq, "_read_anew", read_anew)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "a.seq"
    file.write_bytes(content)
    file.with_name("a.seq.npz").mkdir()  # stands for a folder that cannot be written: tests may run as root
    for _ in range(2):
        assert pulseq.read_readouts(file).k.shape == (8, 300, 2)
    assert len(made) == 1
    assert [each.suffix for each in (tmp_path / "cache" / "mrd-server").iterdir()] == [".npz"]


def test_limits_of_size_and_time(example, tmp_path, monkeypatch):
    file = tmp_path / "a.seq"
    file.write_bytes(example[0])
    monkeypatch.setattr(pulseq, "TIME_LIMIT", 0.01)
    with pytest.raises(TrajectoryError, match=r"a\.seq takes more than 0\.01 s to read"):
        pulseq.read_readouts(file)
    monkeypatch.setattr(pulseq, "MAX_BYTES", 1000)
    with pytest.raises(TrajectoryError, match=r"a\.seq has 0 MiB; sequences up to"):
        pulseq.read_readouts(file)


def test_what_pypulseq_cannot_read_is_told_with_its_reason(tmp_path):
    content = b"[VERSION]\nmajor 1\nminor 5\nrevision 0\n\n[NONSENSE]\n1\n"
    signature = hashlib.md5(content, usedforsecurity=False).hexdigest()
    file = tmp_path / "a.seq"
    file.write_bytes(content + f"\n[SIGNATURE]\nType md5\nHash {signature}\n".encode())
    with pytest.raises(TrajectoryError, match=r"a\.seq cannot be read as a Pulseq sequence: .*Unknown section code"):
        pulseq.read_readouts(file)
    assert [each.name for each in tmp_path.iterdir()] == ["a.seq"]


@pytest.mark.parametrize(
    ("definitions", "asked", "fov", "resolution", "told"),
    [
        (
            {"FOV": [0.24, 0.2, 0.005], "Resolution_mm": 10},
            0.0,
            0.24,
            0.01,
            "240 mm as defined, resolution 10 mm as de",
        ),
        ({"FOV": [240, 240, 5], "Resolution": 0.01}, 0.3, 0.24, 0.01, "as defined"),
        ({"MatrixSize": [24, 24], "FOV": [0.24, 0.24, 0.005]}, 0.0, 0.24, 0.01, "resolution 10 mm as defined"),
        ({"Resolution_mm": 1}, 0.0, None, 0.01, "mm that the trajectory supports, resolution 10 mm from the largest"),
        ({}, 0.2, 0.2, 0.01, "200 mm of the MRD header"),
        ({}, 2.0, None, 0.01, "that the trajectory supports"),
    ],
)
def test_field_of_view_and_resolution(tmp_path, definitions, asked, fov, resolution, told):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pypulseq's, of millimetres
        readouts = image_readouts(text_of(spiral_sequence(**definitions), tmp_path))
    trajectory, text = pulseq.trajectory_from(Path("a.seq"), readouts, asked)
    assert trajectory.fov == pytest.approx(fov or 0.24, rel=1e-6 if fov else 0.1)
    assert trajectory.resolution == pytest.approx(resolution, rel=0.03)
    assert told in text


def test_starting_the_server_does_not_load_pypulseq():
    code = "import main, server, sys; from recon import trajectorysources; sys.exit('pypulseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_FOLDER, check=False).returncode == 0
