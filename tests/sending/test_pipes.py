"""The client in a pipe: standard input and output in place of files."""

import io
import os
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest

from conftest import bytes_of, header_xml, make_header, make_image, write_module, write_mrd_file
from mrdio.mrdfile import MrdReader
from server_process import PROJECT

CLIENT = shlex.join([sys.executable, str(PROJECT / "client.py")])


@pytest.fixture
def images(tmp_path):
    """A file of images."""
    source = [make_image(number, dtype=np.int16) for number in range(3)]
    return write_mrd_file(tmp_path / "images.h5", source, xml=header_xml())


BRIGHTER = """
def process(connection, config, metadata):
    for image in connection:
        image.data[:] += 1
        connection.send_image(image)
"""


@pytest.fixture
def send(server, tmp_path):
    write_module(tmp_path, "brighter", BRIGHTER)
    running = server(module_folders=(tmp_path,))

    def run(line, **options):
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        line = line.replace("CLIENT", f"{CLIENT} -p {running.port}")
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=environment, capture_output=True, **options
        )

    return run


def pixels(path):
    with MrdReader(path) as reader:
        return [image.data for image in reader.images()]


def test_two_clients_in_a_pipe_are_two_sessions(images, send, tmp_path):
    done = send("cat images.h5 | CLIENT -c brighter - -o - | CLIENT -c brighter - -o - > twice.h5")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"received 0 acquisitions, 0 waveforms, 3 images") == 2
    np.testing.assert_array_equal(pixels(tmp_path / "twice.h5"), np.add(pixels(images), 2))
    assert not list(tmp_path.glob("mrd-client-*"))


def test_a_stream_comes_through_a_pipe_into_a_named_group(send, tmp_path):
    stream = bytes_of(make_header(), *(make_image(number) for number in range(3)), close=True)
    done = send("CLIENT -c brighter -G g -o out.h5 -", input=stream)
    assert done.returncode == 0, done.stderr
    assert b"output   out.h5 group 'g'" in done.stdout
    with MrdReader(tmp_path / "out.h5", "g") as reader:
        assert reader.image_count == 3


def test_nothing_stands_in_standard_output_but_the_file(images, send):
    done = send("CLIENT -v -c brighter -G g images.h5 -o -")
    with h5py.File(io.BytesIO(done.stdout)) as file:
        assert list(file) == ["g"]
    assert send("CLIENT -c null images.h5 -o -").stdout == b""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("CLIENT - -o out.h5 < /dev/null", "standard input is empty"),
        ("echo text | CLIENT - -o out.h5", "standard-input is no MRD .h5 file"),
        ("cat images.h5 | CLIENT -", "give it with -o"),
        ("CLIENT images.h5 -o - --mrd2gif", "--mrd2gif needs images in an .h5 file"),
    ],
)
def test_pipes_that_do_not_work_are_errors(images, send, line, said):
    done = send(line)
    assert done.returncode in (1, 2)
    assert said in done.stderr.decode()


def test_terminals_are_no_files(images, send):
    master, terminal = os.openpty()
    try:
        line = f"{CLIENT} -p 1"
        for arguments, channel, name in (("- -o out.h5", "stdin", "input"), ("images.h5 -o -", "stdout", "output")):
            done = subprocess.run(
                [*shlex.split(line), *arguments.split()],
                cwd=images.parent,
                stderr=subprocess.PIPE,
                **{channel: terminal},
            )
            assert done.returncode == 1
            assert f"standard {name} is a terminal" in done.stderr.decode()
    finally:
        os.close(master)
        os.close(terminal)


def test_images_stay_when_the_program_that_reads_them_has_ended(images, send, tmp_path):
    done = send("CLIENT -c brighter images.h5 -o - | false")
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "standard output cannot be written: [Errno 32] Broken pipe; the images are kept in " in said
    kept = said.rpartition("kept in ")[2].strip()
    assert len(pixels(kept)) == 3
