"""Never an empty scan: what the client of a failed module gets, how it is marked, and what keeping costs."""

import io
import subprocess
import sys
import threading
import time

import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

import cartesian_data
import coils
import simplefft
import spiral_sessions
from conftest import (
    PATIENCE,
    bytes_of,
    make_acquisition,
    make_header,
    make_image,
    make_waveform,
    write_module,
    write_mrd_file,
)
from constants import MessageId
from mrdio.codec import IMAGE_DTYPES, encode, read_content
from mrdio.limits import Limits
from mrdio.mrdfile import MrdReader
from recon import nufft
from rtspiral_bart_tvrecon import TfdConfig
from server_process import PROJECT, ServerProcess
from serving import fallback
from serving.fallback import Kept
from simulation import trajectories
from simulation.spiraldesign import SpiralDesign
from simulation.spiralsimulation import Scan, simulate

FAILS_AFTER = """
import ismrmrd
def process(connection, config, metadata):
    for number, item in enumerate(connection, start=1):
        if number == {count}:
            raise ValueError("the module broke")
"""

FAILS = """
def process(connection, config, metadata):
    items = list(connection)
    raise ValueError("the module broke")
"""

INVERTS_THEN_FAILS = """
def process(connection, config, metadata):
    for image in connection:
        image.data[:] = 4095 - image.data
        image.meta["Inverted"] = "1"
        image.meta["list"].append("changed")
        image.image_index = 99
    raise ValueError("the module broke")
"""


def cartesian_scan(rows=15, columns=22, channels=3, slices=1):
    """Header and readouts of an asymmetric object, different for each slice."""
    header = cartesian_data.make_header((columns, rows, 1), kspace_encoding_step_1=(0, rows - 1, rows // 2))
    rng = np.random.default_rng(5)
    readouts = []
    for number in range(slices):
        object_ = np.zeros((channels, rows, columns), np.complex64)
        object_[:, 2 : rows // 2, 3 + number : columns // 2] = 1 + rng.random((channels, 1, 1))
        object_[:, rows - 4, columns - 3] = 4
        kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(object_, axes=(1, 2))), axes=(1, 2))
        readouts += cartesian_data.readouts_of(kspace, slice=number)
    for counter, readout in enumerate(readouts, start=1):
        readout.scan_counter = counter
    return header, readouts


def expected(header, readouts):
    """What simplefft makes of them [image, row, column]."""
    connection = cartesian_data.FakeConnection(readouts)
    simplefft.process(connection, "simplefft", header)
    return pixels_of(connection.images)


def pixels_of(images):
    return np.stack([image.data[0, 0] for image in images]).astype(float)


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def hold(peer, config, header, items):
    """Hold a whole session; returns images and texts."""
    peer.send(ConfigFile(config), header, *items)
    peer.send_close()
    answers = peer.receive()
    assert peer.is_at_end()
    return [each for each in answers if not isinstance(each, str)], [each for each in answers if isinstance(each, str)]


def assert_marked(images, word):
    for image in images:
        assert "the module broke" in image.meta["Fallback"]
        assert image.meta["ImageComment"].startswith(f"FALLBACK IMAGE, {word}")
        assert "FALLBACK" in image.meta["SequenceDescriptionAdditional"]
        assert image.image_series_index >= fallback.SERIES


# ---- sessions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns", "count"), [(15, 22, 15), (16, 9, 3), (7, 7, 1), (32, 33, 20)])
def test_cartesian_scan_comes_back_as_simplefft_has_it(server, connect, tmp_path, rows, columns, count):
    """Also what came after the failure is in it."""
    write_module(tmp_path, "failing", FAILS_AFTER.format(count=count))
    header, readouts = cartesian_scan(rows, columns)
    peer = connect(server(module_folders=(tmp_path,)).address)
    images, texts = hold(peer, "failing", header, readouts)
    assert texts[0].startswith("ERROR    failing failed: ValueError: the module broke")
    assert texts[1].startswith("WARNING  1 fallback image(s), root sum of squares of the Fourier transform of")
    assert len(texts) == 2
    assert correlation(pixels_of(images), expected(header, readouts)) > 0.99
    assert_marked(images, "root sum of squares")
    assert images[0].position[0] == 1
    assert images[0].data.dtype == np.int16


def test_each_slice_has_its_image(server, connect, tmp_path):
    write_module(tmp_path, "failing", FAILS)
    header, readouts = cartesian_scan(slices=3)
    images, _ = hold(connect(server(module_folders=(tmp_path,)).address), "failing", header, readouts)
    assert [image.slice for image in images] == [0, 1, 2]
    assert [image.image_index for image in images] == [1, 2, 3]
    assert correlation(pixels_of(images), expected(header, readouts)) > 0.99


def test_readouts_that_may_have_made_the_module_fail_do_not_spoil_the_image(server, connect, tmp_path):
    write_module(tmp_path, "failing", FAILS)
    header, readouts = cartesian_scan()
    whole = expected(header, readouts)
    readouts[3].data[:, 5] = np.nan
    readouts[2] = cartesian_data.make_readout(np.ones((5, 22)), row=2)  # of other coils
    images, _ = hold(connect(server(module_folders=(tmp_path,)).address), "failing", header, readouts)
    assert 0.9 < correlation(pixels_of(images), whole) < 1


def test_images_come_back_as_they_were_though_the_module_changed_them(server, connect, tmp_path):
    write_module(tmp_path, "failing", INVERTS_THEN_FAILS)
    sent = [
        make_image(number, dtype=dtype, series=number, meta={"n": str(number), "list": ["a", "b"], "ImageComment": "c"})
        for number, dtype in enumerate(("i2", "u2", "f4", "f8", "c8"))
    ]
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "failing", make_header(), sent)
    assert "5 fallback image(s), as it came" in texts[1]
    for before, after in zip(sent, images, strict=True):
        np.testing.assert_array_equal(after.data, before.data)
        assert (after.image_index, after.meta["n"]) == (before.image_index, before.meta["n"])
        assert after.meta["list"] == ["a", "b"]
        assert after.image_series_index == fallback.SERIES + before.image_series_index
        assert "Inverted" not in after.meta
        assert after.meta["ImageComment"].endswith("; c")
    assert_marked(images, "as it came")


def test_switched_off_there_is_none(server, connect, tmp_path):
    write_module(tmp_path, "failing", FAILS)
    header, readouts = cartesian_scan()
    peer = connect(server(module_folders=(tmp_path,), fallback_memory=0).address)
    images, texts = hold(peer, "failing", header, readouts)
    assert images == []
    assert len(texts) == 1


@pytest.mark.parametrize("after", ["raise ValueError('the module broke')", "pass"])
def test_scan_that_has_images_gets_no_others(server, connect, tmp_path, after):
    source = "def process(connection, config, metadata):\n    for item in connection: connection.send_image(item)\n    "
    write_module(tmp_path, "echo", source + after)
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "echo", make_header(), [make_image(1)])
    assert len(images) == 1
    assert "Fallback" not in images[0].meta
    assert len(texts) == (after != "pass")


def test_module_that_makes_no_images_and_does_not_fail_gets_none(server, connect, tmp_path):
    write_module(tmp_path, "quiet", "def process(connection, config, metadata): list(connection)")
    header, readouts = cartesian_scan()
    assert hold(connect(server(module_folders=(tmp_path,)).address), "quiet", header, readouts) == ([], [])


def test_module_that_cannot_be_loaded_does_not_cost_the_scan(server, connect, tmp_path):
    write_module(tmp_path, "typo", "def process(connection, config, metadata):\n    retrun 3\n")
    header, readouts = cartesian_scan()
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "typo", header, readouts)
    assert "no valid Python" in texts[0]
    assert correlation(pixels_of(images), expected(header, readouts)) > 0.99


def test_nothing_came_nothing_is_said(server, connect, tmp_path):
    write_module(tmp_path, "failing", FAILS)
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "failing", make_header(), [])
    assert images == []
    assert len(texts) == 1


OWN = (
    FAILS
    + """
def fallback(items, metadata):
    import mrdhelper, numpy
    {before}
    for item in items:
        pixels = numpy.abs(item.data)
        yield mrdhelper.build_image(pixels, item.getHead(), metadata, index=item.scan_counter)
"""
)


def test_own_fallback_of_a_module_comes_first(server, connect, tmp_path):
    write_module(tmp_path, "own", OWN.format(before=""))
    sent = [make_acquisition(number) for number in (1, 2, 3)]
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "own", make_header(), sent)
    assert "3 fallback image(s), made by the module's own fallback" in texts[1]
    for readout, image in zip(sent, images, strict=True):
        np.testing.assert_array_equal(image.data[0, 0], np.abs(readout.data))
    assert_marked(images, "made by the module's own fallback")


@pytest.mark.parametrize("raised", ["KeyError('gone')", "SystemExit(1)", "MemoryError()"])
def test_own_fallback_that_fails_is_told_in_a_line_and_the_general_one_follows(server, connect, tmp_path, raised):
    write_module(tmp_path, "own", OWN.format(before=f"raise {raised}"))
    header, readouts = cartesian_scan()
    images, texts = hold(connect(server(module_folders=(tmp_path,)).address), "own", header, readouts)
    assert texts[0].startswith("ERROR    own failed: ValueError: the module broke")
    assert texts[1].startswith(f"WARNING  no fallback image could be made: {raised.partition('(')[0]}")
    assert "\n" not in texts[1]
    assert correlation(pixels_of(images), expected(header, readouts)) > 0.99


@pytest.mark.parametrize(
    ("header", "said"),
    [(cartesian_data.make_header(trajectory="spiral"), "trajectory is 'spiral'"), ("no header", "valid MRD header")],
)
def test_data_that_nothing_can_be_made_of(server, connect, tmp_path, header, said):
    write_module(tmp_path, "failing", FAILS)
    _, readouts = cartesian_scan()
    peer = connect(server(module_folders=(tmp_path,)).address)
    if isinstance(header, str):
        peer.send(ConfigFile("failing"))
        peer.send_raw(b"\x03\x00\x0a\x00\x00\x00no header\0")
        peer.send(*readouts)
        peer.send_close()
        _, *texts = [None, *peer.receive()]
    else:
        _, texts = hold(peer, "failing", header, readouts)
    assert len(texts) == 2
    assert texts[1].startswith("WARNING  no fallback image could be made: ValueError: ")
    assert said in texts[1]


@pytest.mark.parametrize("module", ["simplefft", "invertcontrast"])
@pytest.mark.parametrize("trajectory", ["epi", "other"])
def test_refused_trajectory_gives_no_image_that_is_wrong(server, connect, module, trajectory):
    """Neither the module's nor a fallback image, which would be the same wrong one."""
    header, readouts = cartesian_scan()
    header.encoding[0].trajectory = ismrmrd.xsd.trajectoryType(trajectory)
    images, texts = hold(connect(server(module_folders=(PROJECT,)).address), module, header, readouts)
    assert not images
    assert texts[0].startswith(f"ERROR    {module} failed: ValueError: the header's trajectory is '{trajectory}'")
    assert texts[1].startswith("WARNING  no fallback image could be made: ")
    assert len(texts) == 2


def test_silence_of_the_peer_does_not_keep_it_from_its_images(server, connect, tmp_path):
    write_module(tmp_path, "waiting", "def process(connection, config, metadata): list(connection)")
    header, readouts = cartesian_scan()
    peer = connect(server(module_folders=(tmp_path,), timeout=0.3).address)
    peer.send(ConfigFile("waiting"), header, *readouts)
    error, image, told = peer.receive()
    assert "sent nothing for 0.3 s" in error
    assert correlation(pixels_of([image]), expected(header, readouts)) > 0.99
    assert told.startswith("WARNING  1 fallback image(s)")


@pytest.mark.parametrize("save", [False, True])
def test_peer_that_pauses_after_the_failure_gets_the_images_then(server, connect, tmp_path, save):
    write_module(tmp_path, "failing", FAILS_AFTER.format(count=4))
    header, readouts = cartesian_scan()
    running = server(module_folders=(tmp_path,), save_data=save, limits=Limits(fallback_wait=0.3))
    peer = connect(running.address)
    peer.send(ConfigFile("failing"), header, *readouts[:-1])
    start = time.monotonic()
    answers = peer.receive()
    assert time.monotonic() - start < PATIENCE / 2
    assert "Fallback" in answers[1].meta
    peer.send(readouts[-1])  # which does not break the connection
    peer.send_close()
    assert peer.is_at_end()
    peer.close()
    running.stop()
    for saved in (tmp_path / "saved").glob("*.h5"):
        with MrdReader(saved) as file:
            assert file.acquisition_count == len(readouts)
    assert len(list((tmp_path / "saved").glob("*.h5"))) == save


def test_peer_that_goes_on_sending_after_the_failure_gets_the_images_in_time(server, connect, in_thread, tmp_path):
    write_module(tmp_path, "failing", FAILS_AFTER.format(count=4))
    header, readouts = cartesian_scan()
    peer = connect(server(module_folders=(tmp_path,), timeout=1.0, save_data=True).address)
    peer.send(ConfigFile("failing"), header, *readouts)
    answered = threading.Event()

    def go_on():
        while not answered.wait(0.05):
            peer.send(readouts[-1])

    sending = in_thread(go_on)
    try:
        answers = peer.receive()
    finally:
        answered.set()
        sending.result()
    assert "Fallback" in answers[1].meta


def test_session_that_is_interrupted_has_no_fallback(server, connect, tmp_path):
    source = "    next(connection)\n    connection.send_text('on')\n    list(connection)"
    write_module(tmp_path, "waiting", f"def process(connection, config, metadata):\n{source}")
    header, readouts = cartesian_scan()
    running = server(module_folders=(tmp_path,), server_options={"grace": 0.0})
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), header, *readouts)
    assert peer.reader.read(2 + 4 + 2).endswith(b"on")
    running.stop()
    (text,) = peer.receive()
    assert "being stopped" in text


def test_recorded_scan_is_whole_although_the_module_failed_early(server, connect, tmp_path):
    write_module(tmp_path, "failing", FAILS_AFTER.format(count=1))
    header, readouts = cartesian_scan()
    running = server(module_folders=(tmp_path,), save_data=True)
    images, _ = hold(connect(running.address), "failing", header, readouts)
    assert len(images) == 1
    running.stop()
    (saved,) = (tmp_path / "saved").glob("*.h5")
    with MrdReader(saved) as file:
        assert file.acquisition_count == len(readouts)


def test_what_a_module_held_is_let_go_before_the_fallback(server, connect, tmp_path):
    """Its arrays, and the threads of a pipeline that failed, do not stay until some garbage collection."""
    write_module(
        tmp_path,
        "pipes",
        """
from recon.pipeline import threaded
def broken(items):
    for item in items:
        raise ValueError("the module broke")
        yield
def process(connection, config, metadata):
    for item in threaded(broken(threaded(connection, 1, "first link")), 1, "second link"):
        pass
def fallback(items, metadata):
    import threading
    for thread in threading.enumerate():
        if thread.name.endswith("link"):
            thread.join(5)
    names = [thread.name for thread in threading.enumerate() if thread.name.endswith("link")]
    raise RuntimeError(f"left: {names}")
""",
    )
    header, readouts = cartesian_scan()
    import gc

    gc.disable()
    try:
        _, texts = hold(connect(server(module_folders=(tmp_path,)).address), "pipes", header, readouts)
    finally:
        gc.enable()
    assert "left: []" in texts[1]


# ---- spirals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return spiral_sessions.small_scan(tmp_path_factory.mktemp("meta"), readouts=89, seed=3, still=True)


def plainly_gridded(simulation, readouts, first):
    """Root sum of squares of one gridding of arms that follow one another [row, column]."""
    trajectory = simulation.trajectory
    columns = (first + np.arange(len(readouts))) % trajectory.arms
    samples = np.stack([readout.data[:, trajectory.pre_discard :] for readout in readouts], axis=1)
    size = trajectory.matrix_size()
    images = nufft.adjoint(trajectory.cycles_per_fov()[columns], samples, (size, size), trajectory.weights)
    return coils.rssq(images)


def test_tfd_whose_bart_fails_gives_a_gridded_image(server, connect, monkeypatch, simulation, tmp_path):
    bart = spiral_sessions.fake_bart(tmp_path / "bart", "echo 'no more memory' >&2; exit 1\n")
    folder = simulation.trajectory.file.parent
    settings = {"BART_TOOLBOX_PATH": str(bart), "arms_per_frame": 7, "num_recon_frames": 12, "fov_oversampling": 1.0}
    settings["backend"] = "bart"
    spiral_sessions.configure(monkeypatch, TfdConfig, folder, reconstruction=settings)
    items = list(simulation.acquisitions())
    peer = connect(server(module_folders=(PROJECT,)).address)
    images, texts = hold(peer, "rtspiral_bart_tvrecon", simulation.header, items)
    failure = next(text for text in texts if text.startswith("ERROR"))
    assert "no more memory" in failure
    (image,) = pixels_of(images)
    truth = spiral_sessions.true_images(simulation, [range(89)])[0]
    plain = plainly_gridded(simulation, items, 0)
    ours, theirs = spiral_sessions.error(image, truth), spiral_sessions.error(plain, truth)
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert ours < 0.12
    assert spiral_sessions.error(image.T, truth) > 0.2
    assert "plain gridding of 89 readouts" in images[0].meta["ImageComment"]
    assert tuple(images[0].field_of_view) == pytest.approx((256, 256, 6))


@pytest.mark.parametrize("counters", [True, False])
def test_arms_find_their_place_although_the_first_ones_are_forgotten(monkeypatch, simulation, counters):
    """The place follows from the number of an arm in the scan: a wrong one would be no image at all."""
    folder = simulation.trajectory.file.parent
    monkeypatch.setattr(fallback, "metafile_folders", lambda: (folder,))
    items = list(simulation.acquisitions())
    noise = cartesian_data.make_readout(np.ones((4, 10)), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    kept = Kept(50 * (items[0].data.nbytes + fallback.OVERHEAD))
    sequence = [noise, *items[:5], noise, *items[5:]]
    for counter, item in enumerate(sequence, start=1):
        item.scan_counter = counter if counters else 0
        kept.add(item)
    assert kept.arms_before == 89 - 50
    how, images = fallback.by_content(kept, simulation.header)
    (image,) = pixels_of(images)
    assert how == "plain gridding of the last 50 readouts"
    assert correlation(image, plainly_gridded(simulation, items[39:], 39)) > 0.9999
    for number, item in enumerate(items, start=1):
        item.scan_counter = number


@pytest.mark.parametrize(("kind", "partitions"), [("radial", 1), ("rosette", 1), ("radial", 3)])
def test_scan_whose_readouts_carry_their_trajectory_gives_gridded_images(server, connect, tmp_path, kind, partitions):
    """It was nothing before."""
    write_module(tmp_path, "failing", FAILS)
    design = SpiralDesign(resolution=6.4e-3, interleaves=80, ordering="linear")
    trajectory = trajectories.design(kind, design)
    scan = {"coils": 2, "still": True, "kind": "radial" if kind == "radial" else "other", "carried": "cycles"}
    simulated = simulate(trajectory, Scan(readouts=80 * partitions, partitions=partitions, **scan))
    items = list(simulated.acquisitions())
    for number, item in enumerate(items):
        item.idx.repetition = number // 10  # each of them alone would be streaks
    images, _ = hold(connect(server(module_folders=(tmp_path,)).address), "failing", simulated.header, items)
    assert len(images) == partitions
    assert f"plain gridding of {80 * partitions} readouts" in images[0].meta["ImageComment"]
    for number, image in enumerate(pixels_of(images)):
        truth = simulated.truth.frame([0], partition=number) * coils.rssq(simulated.truth.maps())
        assert spiral_sessions.error(image, truth) < 0.25
        assert spiral_sessions.error(image.T, truth) > 0.3


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_newest_messages_are_kept_within_the_limit():
    size = make_acquisition(1).data.nbytes + fallback.OVERHEAD
    kept = Kept(10 * size + 5)
    for number in range(1000):
        kept.add(make_acquisition(number))
        assert len(kept) <= 10
    assert [item.scan_counter for item in kept] == list(range(990, 1000))
    assert kept.taken == 1000


def test_memory_is_bounded_whatever_comes():
    """Small readouts with much overhead, trajectories, attributes: measured against the limit."""
    import tracemalloc

    limit = 400_000
    kinds = [
        lambda n: make_acquisition(n, channels=1, samples=1),
        lambda n: make_acquisition(n, samples=50, dimensions=3),
        lambda n: make_image(n, meta={"text": "x" * 5000, "list": ["y" * 50] * 20}),
        make_waveform,
    ]
    for make in kinds:
        make(0)
        kept = Kept(limit)
        tracemalloc.start()
        for number in range(1200):
            kept.add(make(number))
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert used < 1.5 * limit
        assert len(kept) > 20


def test_readouts_are_not_copied_and_images_are():
    kept = Kept(1 << 20)
    readout, image = make_acquisition(1), make_image(1)
    kept.add(readout)
    kept.add(image)
    first, second = kept
    assert first is readout
    assert not np.shares_memory(second.data, image.data)


@pytest.mark.parametrize("dtype", list(IMAGE_DTYPES.values()))
def test_copies_of_images_are_sent_as_the_bytes_that_came(dtype):
    content = bytes_of(make_image(3, dtype=dtype, meta={"n": "1"}))[2:]
    image = read_content(MessageId.ISMRMRD_IMAGE, io.BytesIO(content), Limits()).content
    kept = Kept(1 << 20)
    kept.add(image)
    (copy,) = kept
    assert b"".join(map(bytes, encode(MessageId.ISMRMRD_IMAGE, copy)))[2:] == content


def test_message_larger_than_the_limit_is_not_kept():
    kept = Kept(10_000)
    kept.add(make_acquisition(1))
    kept.add(make_image(1, shape=(1, 1, 100, 100)))
    assert len(kept) == 0
    assert kept.taken == 2


def test_keeping_ends_with_the_first_image(pair):
    connection, peer = pair()
    connection.keeper = Kept(1 << 20)
    peer.send(make_acquisition(1))
    assert connection.next().scan_counter == 1
    assert len(connection.keeper) == 1
    connection.send_image(make_image(1))
    assert connection.keeper is None
    peer.send(make_acquisition(2))
    assert connection.next().scan_counter == 2


def test_iteration_ends_when_another_thread_takes_the_last_message(pair, in_thread, monkeypatch):
    connection, peer = pair(timeout=PATIENCE)
    lock, asked = threading.RLock(), threading.Event()

    class Noticing:
        def __enter__(self):
            asked.set()
            return lock.acquire()

        def __exit__(self, *_):
            lock.release()

    monkeypatch.setattr(connection, "_receive_lock", Noticing())
    peer.send_close()
    with lock:
        items = in_thread(lambda: list(connection))
        assert asked.wait(PATIENCE)
        connection.receive()
    assert items.result() == []


def test_rest_is_taken_up_to_close_even_while_a_thread_of_the_module_waits(pair, in_thread):
    connection, peer = pair(timeout=PATIENCE)
    waiting = threading.Event()

    def wait():
        waiting.set()
        return list(connection)

    items = in_thread(wait)
    assert waiting.wait(PATIENCE)
    connection.keeper = Kept(1 << 20)
    rest = in_thread(connection.drain, PATIENCE, PATIENCE, last=False)
    peer.send(*(make_acquisition(number) for number in range(5)))
    peer.send_close()
    rest.result()
    items.result()
    assert len(connection.keeper) == 5
    assert connection.is_exhausted


# ---- the whole way -------------------------------------------------------------------------------------------------


def test_client_of_a_process_keeps_the_images_and_fails(tmp_path):
    write_module(tmp_path, "failing", FAILS)
    header, readouts = cartesian_scan()
    raw = write_mrd_file(tmp_path / "raw.h5", readouts, xml=ismrmrd.xsd.ToXML(header))
    for flags, count in (([], 1), (["--no-fallback"], 0)):
        running = ServerProcess("-m", "-d", "null", *flags, cwd=tmp_path)
        try:
            done = subprocess.run(
                [sys.executable, PROJECT / "client.py", "-p", str(running.port), "-c", "failing", "-G", f"g{count}",
                 "-o", tmp_path / "out.h5", raw],
                cwd=tmp_path, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        finally:
            assert running.stop() == 0
        assert done.returncode == 1
        assert "error: failing failed: ValueError: the module broke" in done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("fallback")]
        assert lines == ["fallback 1 of the images are simple fallback images: the reconstruction failed"][:count]
        assert f"sent 0 readouts, 0 waveforms, {count} images" in running.log()
    with MrdReader(tmp_path / "out.h5", "g1") as file:
        (image,) = file.images()
    assert correlation(pixels_of([image]), expected(header, readouts)) > 0.99


def test_a_bad_readout_does_not_spoil_the_gridded_image(monkeypatch, simulation):
    monkeypatch.setattr(fallback, "metafile_folders", lambda: (simulation.trajectory.file.parent,))
    kept = Kept(1 << 30)
    for number, item in enumerate(simulation.acquisitions()):
        item.data[:] *= {0: 1e6, 40: 1e3}.get(number, 1)
        if number == 20:
            item.data[1, 9] = np.nan
        kept.add(item)
    (image,) = pixels_of(fallback.by_content(kept, simulation.header)[1])
    assert correlation(image, plainly_gridded(simulation, list(simulation.acquisitions()), 0)) > 0.995
