"""A client is killed, limited and interrupted while it writes into a file with an earlier group.

``TRIALS=50 python -m pytest tests/faults/test_client_output.py -rP`` makes 50 trials of each kind, and prints their
figures; the client is run by the Python of the tests.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import h5py
import ismrmrd
import numpy as np
import psutil
import pytest
from ismrmrd.serialization import ProtocolDeserializer

from checked_server import TRIALS
from scripted import CLOSE, PATIENCE, header, message, unread
from server_process import PROJECT

COUNT, EARLIER = 40, 80  # images of a run, and of the earlier group
INTERVAL = 0.01  # between two images [s]
JOIN = 0.8  # how long after the last image signals still come [s]
IN_FLIGHT = 0.1  # what the client received so long before a signal is on the disk [s]
LONGEST_END = 2.0  # between a signal and the client's end [s]


def image(number):
    """Image whose pixels follow from its number."""
    pixels = np.random.default_rng(number).standard_normal((1, 1, 64, 64)).astype(np.float32)
    return ismrmrd.Image.from_array(pixels, transpose=False, image_index=number, image_series_index=1)


MESSAGES = [message(image(number)) for number in range(COUNT)]
SIZE = len(MESSAGES[0])


class ImagesServer(threading.Thread):
    """Takes one session, sends images at a steady pace, and then CLOSE."""

    def __init__(self, interval):
        super().__init__(name="images server", daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sent = 0
        self.started = threading.Event()
        self._interval = interval

    def run(self):
        with self.listener:
            sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(OSError):
            for raw in MESSAGES:
                sock.sendall(raw)
                self.sent += 1
                self.started.set()
                time.sleep(self._interval)
            sock.sendall(CLOSE)
            while sock.recv(1 << 16):
                pass

    def received(self):
        """Number of whole images that the client has read."""
        return self.sent - -(-unread(self.port) // SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the client sends, and an output with an earlier group."""
    folder = tmp_path_factory.mktemp("files")
    raw, earlier = folder / "raw.h5", folder / "earlier.h5"
    with ismrmrd.Dataset(raw, "dataset") as dataset:
        dataset.write_xml_header(header()[6:])  # behind identifier and length
        dataset.append_acquisition(ismrmrd.Acquisition.from_array(np.ones((1, 4), np.complex64)))
    with ismrmrd.Dataset(earlier, "earlier") as dataset:
        for number in range(EARLIER):
            dataset.append_image("image_1", image(1000 + number))
    return raw, earlier


class Run:
    """One run of the client into a copy of the output."""

    def __init__(self, files, folder, interval=INTERVAL, limit=None, project=PROJECT):
        raw, self.earlier = files
        self.output, self.log = folder / "out.h5", folder / "client.log"
        shutil.copy(self.earlier, self.output)
        self.server = ImagesServer(interval)
        self.server.start()
        command = [
            sys.executable, project / "client.py", raw, "-p", self.server.port, "-o", self.output, "-G", "run",
            "--timeout", 20, "--quiet",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.client = psutil.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=folder, preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(psutil.NoSuchProcess):
            self.client.kill()
        self.client.wait()
        self.server.join(PATIENCE)

    def wait_for_moment(self, chance):
        """Wait for a moment of chance after the first image; returns how many had been received 100 ms before."""
        assert self.server.started.wait(PATIENCE), "the client does not come"
        time.sleep(chance.uniform(0.0, COUNT * INTERVAL + JOIN))
        received = self.server.received()
        time.sleep(IN_FLIGHT)
        return received

    def part(self):
        """Stream beside the output; None when there is none."""
        return next(self.output.parent.glob("*.part-*.mrd"), None)

    def in_stream(self):
        """Number of images that the `ismrmrd` package reads from the stream."""
        found = 0
        with self.part().open("rb") as stream, contextlib.suppress(EOFError):
            for item in ProtocolDeserializer(stream).deserialize():
                if isinstance(item, ismrmrd.Image):
                    assert np.array_equal(item.data, image(found).data), f"image {found} of the stream is another"
                    found += 1
        return found

    def in_output(self):
        """Number of images of the run that stand in the output, beside the earlier group."""
        with h5py.File(self.output) as file, h5py.File(self.earlier) as before:
            for name in ("data", "header", "attributes"):
                one, other = (each["earlier/image_1"][name][()] for each in (file, before))
                assert np.array_equal(one, other), f"{name} of the earlier group"
            pixels = file["run/image_1/data"][()] if "run/image_1" in file else []
        for number, data in enumerate(pixels):
            assert np.array_equal(data, image(number).data), f"image {number}"
        return len(pixels)

    def check_ending(self, status):
        """Check the client's exit status, which is 0 when it had ended before, and its one error line."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        assert self.client.returncode in (0, status), lines
        if self.client.returncode:
            (line,) = lines
            assert line.startswith("error: ")
            assert self.part() is None or str(self.part()) in line
        assert not list(self.output.parent.glob(".*"))

    def check(self, received):
        """Check that the output is the earlier file or holds the whole run too, and that nothing received is lost."""
        if self.output.read_bytes() == self.earlier.read_bytes():
            readable = self.in_stream() if self.part() else 0
        else:
            readable = self.in_output()
            assert readable == COUNT, "a part of a run stands in the output"
        print(f"received {received}, readable {readable}")
        assert readable >= received

    def check_command(self):
        """Let the command put the stream, if there is one, into the output."""
        if self.part() is None:
            return
        found = self.in_stream()
        command = [sys.executable, PROJECT / "recorder.py", self.part(), "-o", self.output, "-G", "run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert self.in_output() == found, done.stderr


@pytest.mark.parametrize("trial", range(TRIALS))
def test_kill(files, tmp_path, trial):
    """Every second time the process that puts the run into the output is killed, too."""
    with Run(files, tmp_path) as run:
        received = run.wait_for_moment(random.Random(trial))
        with contextlib.suppress(psutil.NoSuchProcess):
            run.client.suspend()
            children = run.client.children()
            run.client.kill()
            for child in children if trial % 2 == 0 else ():
                child.kill()
            psutil.wait_procs([run.client, *children], PATIENCE)
        run.check(received)
        run.check_command()


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("reached", ["stream", "copy", "HDF5"])
def test_file_size_limit(files, tmp_path, trial, reached):
    """No file may grow beyond a limit that the run, the copy of the output, or the run in it, reaches."""
    earlier, whole = files[1].stat().st_size, SIZE * COUNT
    bounds = {"stream": (2000, whole), "copy": (whole + 2000, earlier), "HDF5": (earlier, earlier + whole)}
    limit = random.Random(trial).randrange(*bounds[reached])
    with Run(files, tmp_path, 0.0, limit) as run:
        run.client.wait(PATIENCE)
        run.check_ending(1)
        run.check(min(COUNT, (limit - 1000) // SIZE))


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize(("signum", "times"), [(signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGHUP, 2)])
def test_signal(files, tmp_path, trial, signum, times):
    """As a terminal sends it, to the client's process group; a second one follows."""
    chance = random.Random(trial)
    with Run(files, tmp_path) as run:
        received = run.wait_for_moment(chance)
        begin = time.monotonic()
        for number in range(times):
            time.sleep(chance.uniform(0.0, 0.3) if number else 0.0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.client.pid, signum)
        run.client.wait(PATIENCE)
        assert time.monotonic() - begin < LONGEST_END
        run.check_ending(128 + signum)
        run.check(received)
        run.check_command()


def test_spoilt_output_is_found_out(files, tmp_path):
    (tmp_path / "client.py").write_text(
        "import pathlib, socket, sys\n"
        "sock = socket.create_connection(('127.0.0.1', int(sys.argv[3])))\n"
        "pathlib.Path(sys.argv[5]).write_bytes(b'no HDF5')\n"
        "while sock.recv(1 << 20): pass\n"
    )
    with Run(files, tmp_path, project=tmp_path) as run:
        received = run.wait_for_moment(random.Random(1))
        with pytest.raises(OSError, match="file signature not found"):
            run.check(received)
