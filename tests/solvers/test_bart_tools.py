"""BART is found, run, watched and cleaned up after: with Debian's BART, and with scripts that misbehave."""

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import bart_tools as bt
from mrdio import cfl
from server_process import wait_until

PROBE = '[ "$1" = version ] && { echo v0.9.00; echo CUDA=1; exit 0; }\n'
HEADER = r"printf '# Dimensions\n4 2 1 1 1 1 1 1 1 1 1 1 1 1 1 1 \n' > out0.hdr" + "\n"


@pytest.fixture(scope="module")
def bart():
    return bt.find_bart()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Folder in which every temporary folder of `run` lies, so that what is left behind shows."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(bt, "RAM_DISK", folder)
    return folder


@pytest.fixture
def fake(tmp_path):
    """Make an executable `bart` of a few shell lines; it answers `version` like a BART with CUDA."""

    def make(body: str, name: str = "fake") -> bt.Bart:
        folder = tmp_path / name
        folder.mkdir()
        script = folder / "bart"
        script.write_text("#!/bin/sh\n" + PROBE + body)
        script.chmod(0o755)
        return bt.find_bart(folder)

    return make


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def random_complex(rng, shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


# --- finding
def test_debian_bart_is_found_and_asked(bart):
    assert bart.version.startswith("v0.")
    assert {"-i", "-t", "-g", "-S", "-m", "--lowmem"} <= bart.options("nlinv")
    assert {"-R", "-e", "-p", "-w", "-d", "-l", "-U", "--lowmem"} <= bart.options("pics")
    assert not {"-i3", "-T", "T", "-1", "-A"} & bart.options("pics")


def test_options_of_a_newer_bart_are_asked_once(fake, tmp_path):
    help_text = "Usage: nlinv [-i d] [-a f] [-x d:d:d] [--real-time]\n\n-b d\\t\\tcoil order\n--sens-os val   f\n"
    bart = fake(f"echo asked >> '{tmp_path}/asked'; printf '{help_text}'\n")
    assert bart.cuda
    for option in ("-a", "-b", "-x", "-i", "--real-time", "--sens-os"):
        assert option in bart.options("nlinv")
    assert "-g" not in bart.options("nlinv")
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_configured_place_wins_then_environment_then_path(fake, monkeypatch):
    one, two, three = fake("", "one"), fake("", "two"), fake("", "three")
    monkeypatch.setenv("PATH", str(one.path.parent), prepend=":")
    assert bt.find_bart().path == one.path
    monkeypatch.setenv("BART_PATH", str(two.path.parent))
    assert bt.find_bart().path == two.path
    monkeypatch.setenv("BART_TOOLBOX_PATH", str(three.path))
    assert bt.find_bart().path == three.path
    assert bt.find_bart(two.path).path == two.path
    monkeypatch.setenv("BART_TOOLBOX_PATH", "/nowhere")
    assert bt.find_bart().path == two.path


def test_a_rebuilt_bart_is_asked_anew(fake):
    old = fake("")
    old.path.write_text("#!/bin/sh\necho v1.0.00-12-gabc; echo CUDA=0\n")
    os.utime(old.path, ns=(1, 1))
    new = bt.find_bart(old.path)
    assert (old.version, old.cuda) == ("v0.9.00", True)
    assert (new.version, new.cuda) == ("v1.0.00-12-gabc", False)


def test_no_bart_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(bt.BartNotFoundError, match=rf"{tmp_path} \(config value .*apt-get install bart"):
        bt.find_bart(tmp_path)
    for name in bt.ENVIRONMENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TOOLBOX_PATH", "/no/bart/here")
    with pytest.raises(bt.BartNotFoundError, match=r"/no/bart/here \(environment variable TOOLBOX_PATH\), PATH"):
        bt.find_bart()


def test_something_else_named_bart_is_refused(tmp_path):
    script = tmp_path / "bart"
    script.write_text("#!/bin/sh\necho Eat my shorts\n")
    script.chmod(0o755)
    with pytest.raises(bt.BartError, match=r"not the BART toolbox.*Eat my shorts"):
        bt.find_bart(script)
    script.write_text("no program at all")
    os.utime(script, ns=(1, 1))
    with pytest.raises(bt.BartError, match="cannot be run"):
        bt.find_bart(script)
    script.chmod(0o644)
    with pytest.raises(bt.BartNotFoundError):
        bt.find_bart(script)


# --- arrays
@pytest.mark.parametrize("order", ["C", "F"])
def test_cfl_is_column_major_whatever_the_order(tmp_path, monkeypatch, order):
    monkeypatch.setattr(cfl, "SLAB", 200)  # several slabs, some smaller than one index of the last axis
    array = random_complex(np.random.default_rng(1), (5, 7, 3)).copy(order)
    cfl.write_cfl(tmp_path / "a", array)
    expected = b"".join(array[i, j, k].tobytes() for k in range(3) for j in range(7) for i in range(5))
    assert (tmp_path / "a.cfl").read_bytes() == expected
    back = cfl.read_cfl(tmp_path / "a")
    assert back.shape == (5, 7, 3) + (1,) * 13
    assert np.array_equal(back.reshape(5, 7, 3), array)


@pytest.mark.parametrize(("order", "copied"), [("F", False), ("C", True)])
def test_only_a_fortran_ordered_array_is_not_copied(tmp_path, order, copied):
    array = np.zeros((64, 64, 128), np.complex64, order=order)
    tracemalloc.start()
    try:
        cfl.write_cfl(tmp_path / "a", array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (peak > array.nbytes / 8) == copied


def test_placing_axes_copies_nothing():
    data = np.zeros((9, 2, 4), np.complex64)  # [time, coil, sample]
    placed = cfl.on_axes(data, cfl.TIME_DIM, cfl.COIL_DIM, cfl.PHS1_DIM)
    assert placed.shape == cfl.dimensions({cfl.PHS1_DIM: 4, cfl.COIL_DIM: 2, cfl.TIME_DIM: 9})
    assert placed.flags.f_contiguous
    assert np.shares_memory(placed, data)


def test_real_and_double_arrays_are_converted(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    cfl.write_cfl(tmp_path / "a", array)
    assert np.array_equal(cfl.read_cfl(tmp_path / "a")[..., 0].reshape(2, 3), array)


@pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 16), (-1, 2)])
def test_wrong_axes_are_named(axes):
    with pytest.raises(ValueError, match="BART axes"):
        cfl.on_axes(np.zeros((2, 3)), *axes)


@pytest.mark.parametrize("shape", [(0, 3), (1,) * 17])
def test_arrays_that_bart_has_not_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="at most 16 dimensions"):
        cfl.write_cfl(tmp_path / "a", np.zeros(shape))


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ("# Dimensions\n2 3 \n", 48, None),
        ("# Dimensions\n2 3 \n", 40, "40 bytes, its header .* says 48"),
        ("# Dimensions\n2 3 \n", 56, "56 bytes"),
        ("# Dimensions\n2 0 \n", 0, "no 1 to 16 sizes"),
        ("# Dimensions\n2 -3 \n", 48, "no 1 to 16 sizes"),
        ("# Dimensions\n" + "1 " * 17 + "\n", 8, "no 1 to 16 sizes"),
        ("# Dimensions\n" + "9" * 5000 + "\n", 8, "no 1 to 16 sizes"),
        ("# Dimensions\n999999999999 999999999999 \n", 8, "8 bytes"),
        ("garbage", 48, "no 1 to 16 sizes"),
        ("", 48, "no 1 to 16 sizes"),
    ],
)
def test_headers_are_checked(tmp_path, header, size, message):
    (tmp_path / "a.hdr").write_text(header)
    (tmp_path / "a.cfl").write_bytes(bytes(size))
    if message is None:
        assert cfl.read_cfl(tmp_path / "a").shape[:2] == (2, 3)
    else:
        with pytest.raises(bt.BartError, match=message):
            cfl.read_cfl(tmp_path / "a")


# --- Debian's BART
@pytest.mark.parametrize("shape", [(7, 5, 3), (16, 9, 1)])
def test_fft_equals_numpy(bart, scratch, shape):
    array = random_complex(np.random.default_rng(2), shape)
    (out,) = bt.run(bart, "fft", ["-u", 3], array, threads=1)
    centred = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(array, axes=(0, 1)), axes=(0, 1), norm="ortho"), axes=(0, 1))
    assert out.shape == shape + (1,) * 13
    assert np.linalg.norm(out.reshape(shape) - centred) < 1e-6 * np.linalg.norm(centred)
    assert not list(scratch.iterdir())


def test_the_ram_disk_serves_only_when_it_has_room(fake, tmp_path, monkeypatch):
    bart = fake("pwd >&2; exit 1")  # it runs where its files are

    def place(output_bytes):
        with pytest.raises(bt.BartError) as error:
            bt.run(bart, "pics", output_bytes=output_bytes)
        return str(error.value).partition("exit status 1: ")[2]

    monkeypatch.setattr(bt, "RAM_DISK", tmp_path)
    assert place(1000).startswith(f"{tmp_path}/mrd-bart-")
    usual = f"{tempfile.gettempdir()}/mrd-bart-"
    assert place(10**18).startswith(usual)
    monkeypatch.setattr(bt, "RAM_DISK", tmp_path / "absent")
    assert place(1000).startswith(usual)


def radial_data(bart):
    """Small radial data set [trajectory, k-space, maps], all made by BART."""
    (trajectory,) = bt.run(bart, "traj", ["-r", "-x", 24, "-y", 15], threads=1)
    (kspace,) = bt.run(bart, "phantom", ["-k", "-s", 3, "-t", trajectory], threads=1)
    (maps,) = bt.run(bart, "phantom", ["-S", 3, "-x", 24], threads=1)
    return trajectory, kspace, maps


def test_progress_of_pics_and_nlinv(bart, scratch):
    trajectory, kspace, maps = radial_data(bart)
    seen = []
    options = ["-m", "-e", "-S", "-R", "T:3:0:0.001", "-d", 4, "-i", 45, "-t", trajectory]
    bt.run(bart, "pics", options, kspace, maps, threads=1, progress=seen.append, progress_interval=0)
    steps = np.diff([report.iteration for report in seen])
    assert seen[0].iteration == 10
    assert np.all((steps >= 0) & (steps <= 10))  # inner iterations are not reported, nor counted again
    assert seen[-1].total == 45 < seen[-1].iteration <= 55
    assert seen[-1].remaining == 0
    assert f"pics: iteration {seen[-1].iteration}, more than the 45 asked for" in str(seen[-1])
    assert seen[0].remaining > 0
    assert "pics: iteration 10 of 45" in str(seen[0])

    seen = []
    image, sens = bt.run(
        bart, "nlinv", ["-d4", "-i6", "-t", trajectory], kspace, outputs=2, progress=seen.append, progress_interval=0
    )
    assert image.shape[:2] == (24, 24)
    assert sens.shape[3] == 3
    assert [(report.iteration, report.total) for report in seen] == [(n, 6) for n in range(1, 7)]


def test_the_last_iteration_is_reported_whatever_the_interval(bart, scratch):
    """BART really does 10 iterations for 2 and for 9, and 20 for 10: that is what the client has to hear."""
    trajectory, kspace, maps = radial_data(bart)
    last, images = [], []
    for asked in (2, 9, 10):
        seen = []
        options = ["-m", "-e", "-S", "-R", "T:3:0:0.001", "-d", 4, "-i", asked, "-t", trajectory]
        (image,) = bt.run(bart, "pics", options, kspace, maps, threads=1, progress=seen.append, progress_interval=600)
        last.append(seen[-1].iteration)
        images.append(image)
    assert last == [10, 10, 20]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.allclose(images[1], images[2], rtol=1e-3)


def test_barts_own_words_are_in_the_error(bart, scratch):
    with pytest.raises(bt.BartError, match=r"bart pics .*invalid option -- 'Z'"):
        bt.run(bart, "pics", ["-Z"], np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(bt.BartError, match=r"Loading cfl file absent.*No such file"):
        bt.run(bart, "fft", [3, "absent"])
    assert not list(scratch.iterdir())


def test_sessions_side_by_side(bart, scratch):
    rng = np.random.default_rng(3)
    arrays = [random_complex(rng, (33, 17 + n)) for n in range(4)]
    results = {}

    def session(n):
        (results[n],) = bt.run(bart, "fft", ["-u", 2], arrays[n], threads=1)

    threads = [threading.Thread(target=session, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for n, array in enumerate(arrays):
        expected = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(array, axes=1), norm="ortho"), axes=1)
        assert np.allclose(results[n].reshape(array.shape), expected, atol=1e-5)
    assert not list(scratch.iterdir())


# --- BARTs that misbehave
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo busy; echo 'ERROR: no coils' >&2; exit 3", "pics failed with exit status 3: busy | ERROR: no coils"),
        ("printf '\\033[31mERROR: red\\033[0m'; exit 1", "bart pics failed with exit status 1: ERROR: red"),
        ("exit 7", "bart pics failed with exit status 7: it printed nothing"),
        ("kill -9 $$", "bart pics was ended by signal 9 (Killed) (the system may have run out of memory): it printed"),
        ("kill -BUS $$", "bart pics was ended by signal 7 (Bus error) (the disk may be full)"),
        ("echo fine", "bart pics ended well, but there is no out0.hdr: No such file or directory: fine"),
        (HEADER, "bart pics ended well, but there is no out0.cfl"),
        (HEADER + ": > out0.cfl", "but out0.cfl has 0 bytes"),
        (HEADER + "printf 12345678 > out0.cfl", "but out0.cfl has 8 bytes, its header (4, 2, 1"),
        ("echo rubbish > out0.hdr; echo x > out0.cfl", "out0.hdr has no 1 to 16 sizes after '# Dimensions': 'rubbish"),
        ("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1", " | end"),
        ("head -c 200000 /dev/urandom; echo; echo end; exit 1", " | end"),
    ],
)
def test_failures_are_told_in_barts_words(fake, scratch, body, message):
    with pytest.raises(bt.BartError) as caught:
        bt.run(fake(body), "pics", ["-i", 3], np.ones((4, 2)))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert not list(scratch.iterdir())


def test_unknown_lines_do_not_disturb_progress(fake, scratch):
    body = HEADER + "head -c 64 /dev/zero > out0.cfl\n"
    body += "printf '#x: \\nStep: , Res\\n  0\\t \\n#2: 1.5\\n12345678901234567890\\n'"
    seen = []
    (out,) = bt.run(fake(body), "pics", ["-i", 3], progress=seen.append)
    assert out.shape[:2] == (4, 2)
    assert [report.iteration for report in seen] == [3]


HANGING = "trap '' TERM INT HUP\n"
HANGING += "(trap '' TERM INT HUP; echo $$ > '{0}/parent'; while :; do sleep 100; done) & echo $! > '{0}/child'\n"


@pytest.mark.parametrize("ending", ["wait", "while :; do echo garbage; done", "exec 1>&- 2>&-; wait"])
def test_cancelling_takes_down_the_whole_group(fake, scratch, tmp_path, ending):
    cancelled = threading.Event()
    bart = fake(HANGING.format(tmp_path) + ending)
    errors = []

    def session():
        try:
            bt.run(bart, "pics", [], np.ones((4, 2)), cancelled=cancelled)
        except bt.BartCancelledError as error:
            errors.append(str(error))

    thread = threading.Thread(target=session)
    thread.start()
    assert wait_until(lambda: all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in ("child", "parent")))
    assert len(list(scratch.iterdir())) == 1
    begin = time.monotonic()
    cancelled.set()
    thread.join(5)
    assert time.monotonic() - begin < 1
    assert errors == ["bart pics was cancelled"]
    for name in ("child", "parent"):
        pid = int((tmp_path / name).read_text())
        assert wait_until(lambda pid=pid: not is_alive(pid))
    assert not list(scratch.iterdir())


def test_cancelled_before_the_start(fake, scratch):
    with pytest.raises(bt.BartCancelledError, match="before it began"):
        bt.run(fake("exit 0"), "pics", cancelled=lambda: True)


def test_the_time_limit_ends_a_hanging_bart(fake, scratch, tmp_path):
    begin = time.monotonic()
    with pytest.raises(bt.BartTimeoutError, match=r"limit of 0.3 s: I think"):
        bt.run(fake("echo I think\n" + HANGING.format(tmp_path) + "wait"), "pics", timeout=0.3)
    assert time.monotonic() - begin < 2
    assert wait_until(lambda: not is_alive(int((tmp_path / "child").read_text())))
    assert not list(scratch.iterdir())


def test_bart_does_not_outlive_a_server_that_is_killed(fake, tmp_path):
    bart = fake(f'echo $$ > "{tmp_path}/pid"\nexec sleep 600\n')
    source = f"import bart_tools as bt; bt.run(bt.find_bart({str(bart.path)!r}), 'pics')"
    server = subprocess.Popen([sys.executable, "-c", source], cwd=Path(bt.__file__).parent)
    pid = tmp_path / "pid"
    assert wait_until(lambda: pid.is_file() and pid.read_text().strip(), 20)
    server.kill()
    server.wait()
    assert wait_until(lambda: not is_alive(int(pid.read_text())))
    bt.run(fake("exit 0", "next"), "pics", outputs=0)  # the next command takes down what is left
    assert not list(bt.RAM_DISK.glob(f"mrd-bart-{server.pid}-*"))


def test_children_left_by_an_ended_bart_are_killed(fake, scratch, tmp_path):
    body = HANGING.format(tmp_path) + HEADER + "head -c 64 /dev/zero > out0.cfl; exit 0"
    begin = time.monotonic()
    bt.run(fake(body), "pics")
    assert time.monotonic() - begin < 2
    assert wait_until(lambda: not is_alive(int((tmp_path / "child").read_text())))


def test_what_the_progress_callback_raises_ends_the_command(fake, scratch, tmp_path):
    def gone(progress):
        raise ConnectionResetError("the client is gone")

    with pytest.raises(ConnectionResetError, match="client is gone"):
        bt.run(fake(HANGING.format(tmp_path) + "echo '#0: 1.0'; wait"), "pics", progress=gone)
    assert not list(scratch.iterdir())
    assert wait_until(lambda: not is_alive(int((tmp_path / "child").read_text())))


def test_a_full_disk_while_writing_is_told(fake, scratch, monkeypatch):
    def full(base, array):
        raise OSError(28, "No space left on device")

    bart = fake("exit 0")
    monkeypatch.setattr(bt, "write_cfl", full)
    with pytest.raises(bt.BartError, match="cannot write an input of bart pics: No space left on device"):
        bt.run(bart, "pics", [], np.ones(3))
    assert not list(scratch.iterdir())


def test_a_disk_that_fills_under_bart_is_told(fake, scratch):
    body = HEADER + "head -c 10 /dev/zero > /dev/full || exit 1"
    with pytest.raises(bt.BartError, match=r"exit status 1: .*No space left"):
        bt.run(fake(body), "pics")
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("gpu_device", "visible", "expected"), [(-1, "0,1", ""), (3, None, "3"), (1, "4, 6", "6"), (0, "", "0")]
)
def test_the_environment_is_as_asked_and_ours_unchanged(fake, scratch, monkeypatch, gpu_device, visible, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    before = dict(os.environ)
    with pytest.raises(bt.BartError, match=rf"threads=5 gpu=<{expected}> home=.+ cwd=.*bart-"):
        bt.run(
            fake('echo "threads=$OMP_NUM_THREADS gpu=<$CUDA_VISIBLE_DEVICES> home=$PATH cwd=$PWD"; exit 1'),
            "pics", gpu_device=gpu_device, threads=5,
        )  # fmt: skip
    assert dict(os.environ) == before


def test_a_gpu_that_is_not_visible_is_an_error(fake, scratch, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(bt.BartError, match="gpu_device 2 is not among the 2"):
        bt.run(fake("exit 0"), "pics", gpu_device=2)


def test_the_folder_is_private(fake, scratch):
    body = "stat -c %a . ; exit 1"
    with pytest.raises(bt.BartError, match=r": 700$"):
        bt.run(fake(body), "pics")


def test_output_goes_to_the_log(fake, scratch, caplog):
    with caplog.at_level(logging.DEBUG, "bart_tools"), pytest.raises(bt.BartError):
        bt.run(fake("echo hello from bart; printf '#4: 1\\n'; exit 1"), "pics", ["-i", 9])
    assert "bart pics: hello from bart" in caplog.text
    assert "BART pics: iteration 5 of 9" in caplog.text
