"""Scans of several slices through both iterative reconstructions, and their parts on the workers of a cluster."""

import itertools
import re
from types import ModuleType

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

import bart_tools
import mrdhelper
import rtspiral_bart_tvrecon as tfd
import spiral_xdgrasp_recon as xd
from dask_cluster import PROJECT, kill
from recon.readouts import DataError
from rtspiral_bart_tvrecon import TfdConfig
from simulation.spiralsimulation import FIRST_TIME_STAMP
from solvers import cluster
from spiral_sessions import Client, configure, error, small_scan, true_images
from spiral_xdgrasp_recon import XdConfig

ARMS, FRAMES = 7, 12
CONFIGURATIONS = {tfd: TfdConfig, xd: XdConfig}
TFD = {"reconstruction": {"backend": "native", "arms_per_frame": ARMS, "num_recon_frames": FRAMES, "num_chunks": 2,
                          "fov_oversampling": 1.0, "num_iter": 25, "reg_lambda": 0.0002}}  # fmt: skip
XD = {
    "reconstruction": {"backend": "native", "arm_discard_pre": 0, "arm_discard_post": 0, "num_iter": 10},
    "binning": {"n_respiratory_bins": 4, "n_cardiac_bins": 4, "trigger_source": "pilottone"},
}


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Two slices that take turns."""
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, 40, 8, readouts=2 * ARMS * FRAMES, slices=2, coils=3, heart_rate=75, seed=1)


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    """The same for dual constraints: a few readouts cover several breaths."""
    folder = tmp_path_factory.mktemp("meta")
    return small_scan(folder, 32, 16, readouts=600, tr=16e-3, slices=2, coils=2, heart_rate=66)


def through(module: ModuleType, simulation, tables, items=None, client=None, scaled=False):
    """Send items of a scan through a module; images that are not scaled are what the solver made."""
    client = client or Client(())
    client.items = simulation.items() if items is None else items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bart_tools, "find_bart", None)
        if not scaled:
            patch.setattr(mrdhelper, "scale_to_int16", lambda pixels, *scale: pixels)
        configure(patch, CONFIGURATIONS[module], simulation.trajectory.file.parent, **tables)
        module.process(client, module.__name__, simulation.header)
    return client


@pytest.fixture(scope="module")
def movies(movie):
    return through(tfd, movie, TFD)


def alone(simulation, number):
    """Items of one slice, and the scan's first readout, from which arms are counted."""
    for item in simulation.items():
        if isinstance(item, ismrmrd.Waveform) or item.idx.slice == number or item.scan_counter == 1:
            yield item


def of_slice(client, number):
    return [image for image in client.images if image.slice == number]


def header_of(image):
    """What tells of an image when and where it is."""
    place = (*image.position, *image.read_dir, *image.phase_dir, *image.slice_dir)
    return image.acquisition_time_stamp, image.slice, image.set, image.phase, place


def pixels_of(images):
    return np.stack([image.data[0, 0] for image in images]).astype(float)


# --- slices
def test_frames_of_both_slices_are_the_true_ones(movie, movies):
    assert [image.slice for image in movies.images] == [0] * FRAMES + [1] * FRAMES
    assert [image.image_index for image in movies.images] == list(range(1, 2 * FRAMES + 1))
    assert movies.texts[2] == "INFO     168 readouts kept: 24 frames of 2 slices in 4 part(s)"
    positions = {one.idx.slice: tuple(one.position) for one in movie.acquisitions()}
    assert len(set(positions.values())) == 2
    for number in (0, 1):
        groups = np.flatnonzero(movie.truth.slice == number).reshape(FRAMES, ARMS)
        images = of_slice(movies, number)
        truth = true_images(movie, groups)
        assert error(pixels_of(images), truth) < 0.1
        assert error(pixels_of(of_slice(movies, 1 - number)), truth) > 0.2
        for image, group in zip(images, groups, strict=True):
            began = FIRST_TIME_STAMP + movie.truth.time[group[0]] / mrdhelper.SECONDS_PER_TICK
            assert abs(image.acquisition_time_stamp - began) <= 1
            assert tuple(image.position) == positions[number]


@pytest.mark.parametrize(("module", "number"), [(tfd, 0), (tfd, 1), (xd, 1)])
def test_a_slice_is_what_it_is_alone(request, module, number):
    fixture, tables = {tfd: ("movie", TFD), xd: ("heart", XD)}[module]
    simulation = request.getfixturevalue(fixture)
    together = request.getfixturevalue({tfd: "movies", xd: "hearts"}[module])
    client = through(module, simulation, tables, alone(simulation, number), scaled=module is xd)
    assert {image.slice for image in client.images} == {number}
    for here, there in zip(client.images, of_slice(together, number), strict=True):
        assert header_of(here) == header_of(there)
    assert error(client.pixels, pixels_of(of_slice(together, number))) < 1e-3
    left_out = [text for text in client.texts if text.startswith("WARNING  slice 0 is left out")]
    assert len(left_out) == number  # with slice 1, of slice 0 came the first readout only


@pytest.fixture(scope="module")
def hearts(heart):
    return through(xd, heart, XD, scaled=True)


def test_bins_of_both_slices_share_one_scale(hearts):
    assert [(image.slice, image.set, image.phase) for image in hearts.images] == list(np.ndindex(2, 4, 4))
    assert [image.image_index for image in hearts.images] == list(range(1, 33))
    darker, brighter = sorted(pixels_of(of_slice(hearts, number)).max() for number in (0, 1))
    assert darker < brighter == 4095
    assert not any("missing" in text or "TR is" in text for text in hearts.texts)  # a slice's turn is not lost


def test_a_brighter_slice_has_room(movie, movies):
    def items():
        for item in movie.acquisitions():
            item.data[:] *= 4 if item.idx.slice else 1
            yield item

    client = through(tfd, movie, TFD, items(), scaled=True)
    assert not any("clips" in text for text in client.texts)
    assert 4095 > pixels_of(of_slice(client, 1)).max() > 2000
    factors = [
        np.linalg.norm(pixels_of(of_slice(client, number))) / np.linalg.norm(pixels_of(of_slice(movies, number)))
        for number in (0, 1)
    ]
    assert factors[1] / factors[0] == pytest.approx(4, rel=0.01)


def test_slices_after_a_pause_of_different_length(tmp_path):
    """One after the other, the second later and shorter: its times are its own."""
    simulation = small_scan(tmp_path, readouts=8 * ARMS, slices=2, interleaved=False, waveforms=False)

    def items():
        for item in itertools.islice(simulation.acquisitions(), 6 * ARMS):
            item.acquisition_time_stamp += 4000 * item.idx.slice
            yield item

    tables = {"reconstruction": TFD["reconstruction"] | {"num_iter": 1}}
    client = through(tfd, simulation, tables, items())
    assert [image.slice for image in client.images] == [0, 0, 0, 0, 1, 1]
    for n, image in enumerate(client.images):
        began = FIRST_TIME_STAMP + 4000 * image.slice + n * ARMS * simulation.scan.tr / mrdhelper.SECONDS_PER_TICK
        assert abs(image.acquisition_time_stamp - began) <= 1
    (warning,) = [text for text in client.texts if text.startswith("WARNING")]
    assert "the scan has 4 frames of a slice at most, fewer than num_recon_frames = 12: all are made" in warning


def test_no_slice_has_a_frame(movie):
    with pytest.raises(DataError, match="6 readouts are fewer than the 7 of one frame"):
        through(tfd, movie, TFD, itertools.islice(movie.acquisitions(), 12))


def test_images_of_too_many_slices_are_refused(heart, monkeypatch):
    monkeypatch.setattr(xd.memory, "usable", lambda: 2 * 16 * 32**2 * 4 - 1)
    with pytest.raises(xd.memory.ShortageError, match="the images of 2 slices need"):
        through(xd, heart, XD)


# --- a cluster
def test_a_worker_that_dies_changes_nothing(dask, movie, movies):
    dask.workers(2)
    dead = []

    class Killer(Client):
        def send_text(self, text):
            super().send_text(text)
            found = re.search(r"(part \d+ of 4): on (tcp://\S+:\d+): iterative reconstruction", text)
            if found and not dead:
                dead.extend(found.groups())
                kill(dask.worker_at(dead[1]))

    tables = {"reconstruction": TFD["reconstruction"] | {"backend": "auto", "scheduler": dask.address}}
    client = through(tfd, movie, tables, client=Killer(()))
    assert client.texts[0] == f"INFO     computing with the native solver on the CPU of each worker of {dask.address}"
    part, address = dead
    workers = {found[1] for text in client.texts if (found := re.search(rf"{part}: on (tcp://\S+:\d+): ", text))}
    assert len(workers - {address}) == 1  # the other one has done it again
    assert [image.slice for image in client.images] == [image.slice for image in movies.images]
    # Every process finds the fastest FFT by itself, and each rounds in its own way.
    assert np.linalg.norm(client.pixels - movies.pixels) < 1e-4 * np.linalg.norm(movies.pixels)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("auto", r'scheduler = "tcp://127.0.0.1:9" does not answer .* start it with "python -m dask scheduler"'),
        ("bart", r'backend = "bart" computes here, but scheduler = "tcp://127.0.0.1:9" asks for the workers'),
    ],
)
def test_the_client_is_told_why_there_is_no_cluster(server, connect, monkeypatch, movie, backend, words):
    monkeypatch.setattr(cluster, "CONNECT_WAIT", 0.5)
    running = server(module_folders=(PROJECT,), server_options={"grace": 0.1}, fallback_memory=0)
    tables = {"reconstruction": TFD["reconstruction"] | {"backend": backend, "scheduler": "tcp://127.0.0.1:9"}}
    configure(monkeypatch, TfdConfig, movie.trajectory.file.parent, **tables)
    peer = connect(running.address)
    peer.send(ConfigFile(tfd.__name__), movie.header, *itertools.islice(movie.acquisitions(), 2 * ARMS))
    peer.send_close()
    *_, told = peer.receive()
    assert told.startswith("ERROR")
    assert re.search(words, told)
