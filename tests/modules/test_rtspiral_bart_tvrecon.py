"""TFD by both backends: frames against the truth, chunks, what the client is told, sessions that go wrong."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer

import bart_tools
import rtspiral_bart_tvrecon as tfd
from conftest import PATIENCE
from recon import memory
from recon.readouts import DataError
from rtspiral_bart_tvrecon import TfdConfig, TfdReconstruction
from server_process import wait_until
from solvers import backends as solvers
from solvers import movies, native_recon, timekeeper
from spiral_sessions import (
    Client,
    change,
    configure,
    error,
    fake_bart,
    in_axial_fields,
    in_linear_field,
    is_alive,
    know_the_field,
    one_thread,
    small_scan,
    true_images,
)

PROJECT = Path(tfd.__file__).parent
ARMS, FRAMES = 7, 16
BACKENDS = ("bart", "native")
SETTINGS = {"backend": "bart", "arms_per_frame": ARMS, "num_recon_frames": FRAMES, "num_chunks": 1,
            "fov_oversampling": 1.0, "num_iter": 20, "reg_lambda": 0.0004}  # fmt: skip
GROUPS = [range(ARMS * n, ARMS * (n + 1)) for n in range(FRAMES)]

_one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), readouts=ARMS * FRAMES + 3, heart_rate=75, seed=1)


def through_the_module(simulation, items=None, **settings):
    """Send items of a scan through the module; for the native solver there is no BART, and it tells all."""
    client = Client(items or simulation.items())
    settings = SETTINGS | settings
    with pytest.MonkeyPatch.context() as patch:
        if settings["backend"] == "native":
            patch.setattr(bart_tools, "find_bart", None)
            patch.setattr(timekeeper, "REPORT_INTERVAL", 0.0)
        configure(patch, TfdConfig, simulation.trajectory.file.parent, reconstruction=settings)
        tfd.process(client, "rtspiral_bart_tvrecon", simulation.header)
    return client


@pytest.fixture(scope="module")
def reconstruct(simulation):
    """Send items through the module: `reconstruct(items, num_chunks=3)`; keeps what has been made already."""
    made = {}

    def run(items=None, **settings):
        key = tuple(settings.items())
        if items is None and key in made:
            return made[key]
        client = through_the_module(simulation, items, **settings)
        if items is None:
            made[key] = client
        return client

    return run


def frame_errors(images, truth):
    factor = (images * truth).sum() / (images * images).sum()
    return np.linalg.norm(factor * images - truth, axis=(1, 2)) / np.linalg.norm(truth, axis=(1, 2))


# --- frames
@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_the_true_ones(reconstruct, simulation, backend):
    client = reconstruct(backend=backend)
    truth = true_images(simulation, GROUPS)
    still = np.broadcast_to(truth.mean(axis=0), truth.shape)
    assert error(still, truth) > 0.12  # what there is to win
    assert error(client.pixels, truth) < 0.085
    assert change(client.pixels, truth) > 0.95
    for wrong in (client.pixels[:, ::-1], client.pixels.transpose(0, 2, 1), np.roll(client.pixels, 1, axis=2)):
        assert error(wrong, truth) > 0.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_concomitant_fields_of_an_axial_plane_make_no_difference(reconstruct, simulation, backend, tmp_path):
    """A demodulation is exact, with BART, too."""
    there = small_scan(
        tmp_path,
        readouts=ARMS * FRAMES + 3,
        heart_rate=75,
        seed=1,
        position=(0.0, 0.0, 250.0),
        noise=0.003,
        field_strength=0.55,
    )
    items = list(in_axial_fields(there.acquisitions(), there.trajectory))
    client = through_the_module(there, items, backend=backend)
    assert error(client.pixels, reconstruct(backend=backend).pixels) < 0.01
    assert any("concomitant fields at 0.55 T are corrected by 1 term" in text for text in client.texts)
    blurred = through_the_module(there, items, backend="native", concomitant="off")
    assert error(blurred.pixels, client.pixels) > 0.05


def test_a_field_that_varies_over_the_image_is_corrected(reconstruct, simulation, monkeypatch):
    disturbed, truth = in_linear_field(simulation), true_images(simulation, GROUPS)
    best = error(reconstruct(backend="native").pixels, truth)
    assert error(through_the_module(disturbed, backend="native").pixels, truth) > 1.5 * best
    know_the_field(monkeypatch, tfd)
    client = through_the_module(disturbed, backend="native", num_chunks=2)
    assert error(client.pixels, truth) < 1.1 * best
    assert change(client.pixels, truth) > 0.95
    (text,) = (text for text in client.texts if "off-resonance are corrected" in text)
    assert int(re.search(r"by (\d+) term", text).group(1)) > 1


def test_the_client_is_told_what_bart_cannot_correct(simulation, monkeypatch):
    know_the_field(monkeypatch, tfd)
    client = through_the_module(in_linear_field(simulation), backend="bart", num_iter=1)
    assert any("fields are not corrected: BART" in text for text in client.texts)
    assert len(client.images) == FRAMES


def test_the_native_solver_is_as_good_as_bart(reconstruct, simulation):
    truth = true_images(simulation, GROUPS)
    bart, native = reconstruct().pixels, reconstruct(backend="native", reg_lambda=0.0002).pixels
    assert error(native, truth) <= error(bart, truth)
    assert change(native, truth) >= change(bart, truth)
    assert error(native, bart) < 0.06  # other images differ by more than 0.2


def test_auto_is_native_and_good_with_linear_ordering(tmp_path, monkeypatch):
    """Arms in order leave a gap in k-space for several frames; BART is installed, and is not asked."""
    monkeypatch.setattr(bart_tools, "find_bart", lambda configured: pytest.fail("BART was looked for"))
    frames = 48
    simulation = small_scan(
        tmp_path, 64, 31, "linear", readouts=ARMS * frames, coils=8, noise=0.0005, heart_rate=75, seed=1
    )
    settings = {"backend": "auto", "num_recon_frames": frames, "num_iter": 120, "reg_lambda": 0.0002}
    client = through_the_module(simulation, **settings)
    truth = true_images(simulation, [range(ARMS * n, ARMS * (n + 1)) for n in range(frames)])
    assert client.texts[0] == "INFO     computing with the native solver on the CPU"
    assert error(client.pixels, truth) < 0.07
    assert change(client.pixels, truth) > 0.97


def test_a_gpu_gives_the_same(cupy, reconstruct):
    client = reconstruct(backend="native", gpu_device=0, num_chunks=0)
    assert error(client.pixels, reconstruct(backend="native").pixels) < 0.005
    assert client.texts[0] == "INFO     computing with the native solver on the GPU 0"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("matrix", "fov_oversampling"), [(64, 1.0), (63, 1.0), (64, 1.27)])
def test_point_lands_where_it_is(tmp_path, backend, matrix, fov_oversampling):
    x, y = 40.3, -61.7  # [mm]
    simulation = small_scan(tmp_path, matrix, 16, readouts=24, point=(x, y))
    settings = {"backend": backend, "arms_per_frame": 12, "num_recon_frames": 2, "fov_oversampling": fov_oversampling}
    client = through_the_module(simulation, **settings)
    size, pixel = round(matrix * fov_oversampling), 256 / matrix
    weight = np.maximum(client.pixels[1] / client.pixels[1].max() - 0.3, 0)
    assert weight.shape == (size, size)
    centre = [(weight.sum(axis=1 - axis) * np.arange(size)).sum() / weight.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, [size // 2 - y / pixel, size // 2 - x / pixel], atol=0.1)


def test_images_carry_geometry_and_evenly_spaced_times(reconstruct, simulation):
    client = reconstruct()
    first = next(iter(simulation.acquisitions()))
    ticks = ARMS * simulation.scan.tr / 2.5e-3
    for n, image in enumerate(client.images):
        assert image.acquisition_time_stamp == round(first.acquisition_time_stamp + n * ticks)
        assert image.image_index == n + 1
        assert image.data.dtype == np.int16
        assert tuple(image.field_of_view) == pytest.approx((256, 256, 6))
        assert tuple(image.read_dir) == tuple(first.read_dir)
    assert client.pixels.max() == pytest.approx(4095 / 1.5, abs=2)  # one scale, with room above


def test_waveforms_come_back_as_they_were(reconstruct, simulation):
    sent = list(simulation.waveforms())
    back = reconstruct().waveforms
    assert [(one.waveform_id, one.time_stamp) for one in back] == [(one.waveform_id, one.time_stamp) for one in sent]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(back, sent, strict=True))


def test_the_client_is_told_what_goes_on(reconstruct):
    texts = reconstruct().texts
    assert re.match(r"INFO     computing with BART \S+ on the CPU", texts[0])
    assert texts[1].startswith("INFO     num_iter = 20: BART computes in steps of up to 10 iterations")
    assert re.match(r"INFO     trajectory: metafile \w+\.mat", texts[2])
    assert texts[3] == "INFO     112 readouts kept: 16 frames in 1 part(s)"
    progress = re.compile(
        r"INFO     part 1 of 1: BART pics: iteration \d+ of 20, \d+ s elapsed, about \d+ s left for the whole scan"
    )
    assert any(progress.fullmatch(text) for text in texts)
    assert any(re.search("BART pics: iteration 2[1-9], more than the 20 asked for", text) for text in texts)
    assert not any(text.startswith("WARNING") for text in texts)


def test_the_native_solver_tells_how_far_it_is(reconstruct):
    texts = reconstruct(backend="native").texts
    assert texts[0] == "INFO     computing with the native solver on the CPU"
    assert re.match(r"INFO     trajectory: metafile \w+\.mat", texts[1])
    assert texts[2] == "INFO     112 readouts kept: 16 frames in 1 part(s)"
    progress = re.compile(
        r"INFO     part 1 of 1: iterative reconstruction: \d+ of 20 iterations, objective [\d.e+]+, \d+ s elapsed, "
        r"about \d+ s left for the whole scan"
    )
    assert any(progress.fullmatch(text) for text in texts)
    assert not any(text.startswith("WARNING") for text in texts)


def test_more_frames_than_there_are(reconstruct):
    client = reconstruct(num_recon_frames=2000, num_iter=1)
    assert len(client.images) == FRAMES
    (warning,) = [text for text in client.texts if text.startswith("WARNING")]
    assert "the scan has 16 frames, fewer than num_recon_frames = 2000" in warning


def test_lost_readouts_move_nothing(reconstruct, simulation):
    """Trajectory and times go by the scan counter."""
    kept = [item for item in simulation.acquisitions() if not 30 <= item.scan_counter - 1 < 33]
    client = reconstruct(kept)
    start = client.images[0].acquisition_time_stamp
    assert client.images[10].acquisition_time_stamp == round(start + (10 * ARMS + 3) * simulation.scan.tr / 2.5e-3)
    numbers = np.delete(np.arange(ARMS * FRAMES + 3), np.s_[30:33])
    assert error(client.pixels, true_images(simulation, numbers.reshape(FRAMES, ARMS))) < 0.08


def test_too_few_readouts_for_a_frame(reconstruct, simulation):
    with pytest.raises(DataError, match="5 readouts are fewer than the 7 of one frame"):
        reconstruct(list(itertools.islice(simulation.acquisitions(), 5)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_of_one_frame(reconstruct, simulation, backend):
    client = reconstruct(list(itertools.islice(simulation.acquisitions(), ARMS)), backend=backend, num_chunks=0)
    (image,) = client.images
    assert image.data.max() > 2000
    assert error(client.pixels, true_images(simulation, GROUPS[:1])) < 0.35


# --- chunks
def test_seams_of_chunks_are_invisible(reconstruct, simulation):
    """A seam's frames lose no more by chunking than others do; 3 chunks do not divide the frames evenly."""
    truth = true_images(simulation, GROUPS)
    whole = frame_errors(reconstruct().pixels, truth)
    chunked = frame_errors(reconstruct(num_chunks=3, reg_lambda=3 * SETTINGS["reg_lambda"]).pixels, truth)
    seams = [4, 5, 9, 10]
    elsewhere = [n for n in range(FRAMES) if n not in seams]
    assert (chunked / whole)[seams].mean() < 1.05 * (chunked / whole)[elsewhere].mean()
    assert error(chunked, whole) < 0.15


def test_native_images_do_not_depend_on_the_number_of_chunks(tmp_path):
    simulation = small_scan(tmp_path, 32, 8, readouts=96 * ARMS, noise=0.002, heart_rate=75)
    settings = {"backend": "native", "num_recon_frames": 96, "num_iter": 60, "reg_lambda": 0.0002}
    whole, thirds = (through_the_module(simulation, **settings, num_chunks=count).pixels for count in (1, 3))
    assert error(thirds, whole) < 0.01
    assert change(thirds, whole) > 0.998


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_follow_from_the_free_memory(reconstruct, simulation, monkeypatch, backend):
    client = reconstruct(backend=backend, num_chunks=0, num_iter=1)
    assert any("16 frames in 1 part(s)" in text for text in client.texts)
    samples = simulation.trajectory.k.shape[1]
    solver = solvers.open_solver(TfdReconstruction(backend=backend), print, print)
    monkeypatch.setattr(type(solver), "overlap", 2)
    monkeypatch.setattr(memory, "usable", lambda device: solver.memory_needed((8,), ARMS, 4, samples, 48, 89))
    client = reconstruct(backend=backend, num_chunks=0, num_iter=2)
    assert any("16 frames in 4 part(s)" in text for text in client.texts)  # of 4 frames and 2 on either side
    assert len(client.images) == FRAMES


def test_frames_that_do_not_fit_however_divided_are_refused(reconstruct, monkeypatch):
    monkeypatch.setattr(memory, "usable", lambda device: 1000)
    with pytest.raises(memory.ShortageError, match="16 frames together need about"):
        reconstruct(backend="native", num_chunks=0, num_iter=3)


@pytest.mark.parametrize(("frames", "count"), [(48, 3), (2000, 5), (17, 5), (4, 9), (1, 1), (7, 7)])
def test_chunks_cover_all_frames_once_and_overlap(frames, count):
    chunks = list(movies.split(frames, count, 3))
    assert len(chunks) == min(frames, count)
    assert [n for chunk in chunks for n in chunk.kept] == list(range(frames))
    assert max(len(chunk.kept) for chunk in chunks) - min(len(chunk.kept) for chunk in chunks) <= 1
    for chunk in chunks:
        assert chunk.frames == range(max(chunk.kept.start - 3, 0), min(chunk.kept.stop + 3, frames))


def test_frames_that_tell_the_scale_are_not_the_first_ones_nor_without_data():
    def steady(usable, kept):
        readouts = types.SimpleNamespace(usable=[bool(each) for each in usable for _ in range(2)])
        return list(movies.Movie(readouts, 2, (movies.Chunk(range(len(usable)), kept),)).steady)

    assert steady([1] * 19, range(16)) == list(range(5, 16))
    assert steady([1] * 6, range(3)) == [0, 1, 2]
    assert steady([1] * 5 + [0] * 3 + [1] * 4, range(8)) == [0, 1, 2, 3, 4]
    assert steady([1] * 5 + [0, 1, 0] + [1] * 4, range(8)) == [6]


# --- sessions that go wrong
@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Folder for all of BART's files, so that what is left behind shows."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(bart_tools, "RAM_DISK", folder)
    return folder


@pytest.fixture
def session(simulation, server, connect, monkeypatch, scratch):
    """Server, and a function that opens a session with a BART of some shell lines (or a folder without one)."""
    running = server(module_folders=(PROJECT,), server_options={"grace": 0.1}, fallback_memory=0)

    def start(bart="", readouts=ARMS * 3, close=True, **settings):
        folder = simulation.trajectory.file.parent
        settings = SETTINGS | {"BART_TOOLBOX_PATH": str(bart), "num_recon_frames": 3} | settings
        configure(monkeypatch, TfdConfig, folder, reconstruction=settings)
        peer = connect(running.address)
        items = itertools.islice(simulation.acquisitions(), readouts)
        peer.send(ConfigFile("rtspiral_bart_tvrecon"), simulation.header, *items)
        if close:
            peer.send_close()
        return peer

    return running, start


def serves_on(start):
    texts = start(bart_tools.find_bart().path).receive()
    return sum(isinstance(item, ismrmrd.Image) for item in texts) == 3


def test_without_bart_the_client_is_told_before_the_scan_is_over(session, tmp_path):
    _, start = session
    peer = start(tmp_path, readouts=1, close=False)
    (text,) = peer.receive()
    assert text.startswith("ERROR")
    assert "apt-get install bart" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'nlinv is out of tune' >&2; exit 3", "bart nlinv failed with exit status 3: nlinv is out of tune"),
        (r"printf '# Dimensions\n32 32 1 1\n' > out0.hdr; printf 123 > out0.cfl; exit 0", "out0.cfl has 3 bytes"),
        ("exit 0", "there is no out0"),
        ("cat /dev/zero > /dev/full; exit 1", "No space left on device"),
        ("kill -9 $$", "was ended by signal 9"),
    ],
)
def test_a_bart_that_fails_is_reported_and_leaves_nothing(session, scratch, tmp_path, body, words):
    _, start = session
    received = start(fake_bart(tmp_path / "bad", body)).receive()
    assert not any(isinstance(item, ismrmrd.Image) for item in received)
    assert re.match(r"ERROR    rtspiral_bart_tvrecon failed: \S*BartError", received[-1])
    assert words in received[-1]
    assert list(scratch.iterdir()) == []


def test_after_a_failure_the_server_serves_on(session, scratch, tmp_path):
    _, start = session
    start(fake_bart(tmp_path / "bad", "exit 1")).receive()
    assert serves_on(start)
    assert list(scratch.iterdir()) == []


HANGS = "echo $$ > '{0}.new'; mv '{0}.new' '{0}'; sleep 600"


def hanging(tmp_path):
    """BART that hangs, and the file that it writes its process id into."""
    return fake_bart(tmp_path / "hangs", HANGS.format(tmp_path / "pid")), tmp_path / "pid"


def test_bart_ends_when_the_client_has_gone(session, scratch, tmp_path, monkeypatch):
    monkeypatch.setattr(solvers.Reporter, "interval", 0.1)
    _, start = session
    bart, pid = hanging(tmp_path)
    peer = start(bart)
    assert wait_until(pid.exists)
    assert is_alive(int(pid.read_text()))
    peer.close()
    assert wait_until(lambda: not is_alive(int(pid.read_text())))
    assert wait_until(lambda: not list(scratch.iterdir()))


def test_bart_ends_when_the_server_is_stopped(session, scratch, tmp_path, monkeypatch):
    monkeypatch.setattr(solvers.Reporter, "interval", 0.1)
    running, start = session
    bart, pid = hanging(tmp_path)
    peer = start(bart)
    assert wait_until(pid.exists)
    running.stop()
    assert not is_alive(int(pid.read_text()))
    assert list(scratch.iterdir()) == []
    assert any("the server is being stopped" in text for text in peer.receive())


def test_bart_ends_when_a_server_of_processes_is_terminated(simulation, tmp_path, monkeypatch, connect):
    """With the real interval of reports: a session has 3 s before its process is killed."""
    bart, pid = hanging(tmp_path)
    settings = SETTINGS | {"BART_TOOLBOX_PATH": str(bart)}
    configure(monkeypatch, TfdConfig, simulation.trajectory.file.parent, reconstruction=settings)
    options = ["-p", "0", "-m", "-d", "null", "--grace", "0"]
    command = [sys.executable, str(PROJECT / "main.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            port = next(found[1] for line in server.stdout if (found := re.search(r"Listening on \S+:(\d+)", line)))
            peer = connect(("127.0.0.1", int(port)))
            readouts = itertools.islice(simulation.acquisitions(), ARMS)
            peer.send(ConfigFile("rtspiral_bart_tvrecon"), simulation.header, *readouts)
            peer.send_close()
            assert wait_until(pid.exists, 3 * PATIENCE)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=2 * PATIENCE)
        finally:
            server.kill()  # else leaving the block would wait for it, should something above fail
    assert not is_alive(int(pid.read_text()))


# --- sessions of the native solver
@pytest.fixture
def endless(monkeypatch):
    """The native solver never finds that it is done."""
    monkeypatch.setattr(native_recon, "QUIET_ITERATIONS", 10**9)
    return {"backend": "native", "num_iter": 10**7}


def reconstructing():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reconstruction")]


def until_progress(peer):
    """Read what the server sends until the solver speaks."""
    for item in ProtocolDeserializer(peer.reader).deserialize():
        if isinstance(item, str) and "objective" in item:
            return
    pytest.fail("no progress came")


def test_without_bart_a_session_gives_images(session, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    _, start = session
    received = start(backend="auto").receive()
    assert sum(isinstance(item, ismrmrd.Image) for item in received) == 3
    assert "INFO     computing with the native solver on the CPU" in received


def test_a_backend_that_there_is_not(session):
    _, start = session
    received = start(backend="gpu", readouts=1, close=False).receive()
    assert "reconstruction.backend = 'gpu': must be one of" in received[-1]


def test_the_native_solver_ends_when_the_client_has_gone(session, endless):
    _, start = session
    peer = start(**endless)
    until_progress(peer)
    peer.close()
    assert wait_until(lambda: not reconstructing(), 3)


def test_the_native_solver_ends_when_the_server_is_stopped(session, endless):
    running, start = session
    peer = start(**endless)
    until_progress(peer)
    begin = time.monotonic()
    running.stop()
    assert time.monotonic() - begin < 3
    assert not reconstructing()
