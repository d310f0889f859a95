"""The server as its users start it: the command line, signals, processes, many clients at once."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

import client
import main
from conftest import PATIENCE, Peer, header_xml, make_acquisition, make_header, write_module, write_mrd_file
from mrdio.mrdfile import MrdReader
from server_process import PROJECT

SCALE_MODULE = """
import ismrmrd, numpy
def process(connection, config, metadata):
    for item in connection:
        if isinstance(item, ismrmrd.Acquisition):
            image = ismrmrd.Image.from_array(numpy.abs(item.data) * 2, acquisition=item)
            image.image_index = item.scan_counter % 65536
            connection.send_image(image)
"""

WAITING_MODULE = """
def process(connection, config, metadata):
    connection.send_text("started")
    for item in connection: pass
    connection.send_text("finished")
"""

STUCK_MODULE = """
import time
def process(connection, config, metadata):
    connection.send_text("started")
    time.sleep(600)
"""


def open_waiting_session(port):
    peer = Peer(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition())
    assert peer.reader.read(2 + 4 + len("started")).endswith(b"started")
    return peer


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_sixteen_clients_at_once_get_exactly_their_own_images(start, tmp_path, mode):
    write_module(tmp_path, "scale", SCALE_MODULE)
    running = start("-d", "null", *mode)
    sources = []
    for number in range(16):
        items = [make_acquisition(1000 * number + i, samples=16 + number) for i in range(20)]
        sources.append((write_mrd_file(tmp_path / f"raw{number}.h5", items, xml=header_xml()), items))
    results = {}

    def run(number):
        options = client.ClientOptions(
            sources[number][0], port=running.port, config="scale", output=tmp_path / f"out{number}.h5"
        )
        results[number] = client.run(options)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * PATIENCE)
    assert running.stop() == 0, running.log()
    for number, (_, items) in enumerate(sources):
        assert results[number].errors == []
        with MrdReader(tmp_path / f"out{number}.h5") as out:
            images = list(out.images())
        assert len(images) == 20
        for image, item in zip(images, items, strict=True):
            np.testing.assert_array_equal(image.data[0, 0], 2 * np.abs(item.data))


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_lets_a_session_finish(start, tmp_path, mode, signum):
    write_module(tmp_path, "waiting", WAITING_MODULE)
    running = start("-d", "null", "--grace", "20", *mode)
    peer = open_waiting_session(running.port)
    running.process.send_signal(signum)
    peer.send(make_acquisition(1))
    peer.send_close()
    assert peer.receive() == ["finished"]
    peer.close()
    assert running.process.wait(PATIENCE) == 0
    running.stop()
    assert "The server has ended" in running.log()


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_session_is_ended_after_the_grace_time(start, tmp_path, mode):
    write_module(tmp_path, "waiting", WAITING_MODULE)
    running = start("-d", "null", "--grace", "0.2", *mode)
    peer = open_waiting_session(running.port)
    assert running.stop(signal.SIGINT) == 0
    (text,) = peer.receive()
    assert "being stopped" in text
    peer.close()


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_second_signal_ends_at_once(start, tmp_path, mode):
    write_module(tmp_path, "stuck", STUCK_MODULE)
    running = start("-d", "null", "--grace", "600", *mode)
    peer = Peer(socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE))
    peer.send(ConfigFile("stuck"), make_header(), make_acquisition())
    peer.reader.read(13)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("Stopping")
    assert running.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    assert peer.reader.read() == b""  # the session's process has ended with it
    peer.close()


def test_stuck_module_does_not_keep_the_server_alive(start, tmp_path):
    """Both kinds of server at the same time, since each waits for the module as long as it may."""
    write_module(tmp_path, "stuck", STUCK_MODULE)
    servers = [start("-d", "null", "--grace", "0.1", *mode) for mode in ([], ["-m"])]
    peers = [Peer(socket.create_connection(("127.0.0.1", each.port), timeout=PATIENCE)) for each in servers]
    for peer in peers:
        peer.send(ConfigFile("stuck"), make_header(), make_acquisition())
        peer.reader.read(13)
    for each in servers:
        each.process.send_signal(signal.SIGTERM)
    assert [each.process.wait(PATIENCE) for each in servers] == [0, 0]
    for peer in peers:
        peer.close()


def test_processes_leave_nothing_behind_and_save(start, tmp_path):
    running = start("-m", "-d", "null", "-s", "-S", tmp_path / "saved")
    source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition(i) for i in range(9)], xml=header_xml())
    for _ in range(2):
        assert client.run(client.ClientOptions(source, port=running.port, config="null")).errors == []
    assert running.stop() == 0
    saved = list((tmp_path / "saved").iterdir())
    assert len(saved) == 2
    for path in saved:
        with MrdReader(path) as file:
            assert file.acquisition_count == 9


def test_file_in_the_current_folder_does_not_stand_in_for_ours(start, tmp_path):
    (tmp_path / "session.py").write_text("raise SystemExit('the wrong session.py')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy.py')")
    source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition()], xml=header_xml())
    for mode in ([], ["-m"]):
        running = start("-d", "null", *mode)
        assert client.run(client.ClientOptions(source, port=running.port, config="null")).errors == []
        assert running.stop() == 0


def test_process_that_dies_is_logged(start, tmp_path):
    write_module(tmp_path, "dying", "import os\ndef process(connection, config, metadata): os._exit(7)\n")
    running = start("-d", "null", "-m")
    source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition()], xml=header_xml())
    for _ in range(2):  # a further connection makes the server look after the first one's process
        result = client.run(client.ClientOptions(source, port=running.port, config="dying"))
        assert len(result.errors) == 1
    running.wait_for("session-1  its process ended with exit code 7")
    running.wait_for("session-1  ended, failed: its process ended with exit code 7; client 127.0.0.1:")
    assert running.stop() == 0


def test_what_a_session_had_saved_when_its_process_died_becomes_a_file_at_once(start, tmp_path):
    write_module(tmp_path, "dying", "import os\ndef process(connection, config, metadata): os._exit(0)\n")
    write_module(tmp_path, "waiting", WAITING_MODULE)
    running = start("-d", "null", "-m", "-s", "-S", tmp_path / "saved")
    peer = open_waiting_session(running.port)  # its recording is not touched
    source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition()], xml=header_xml())
    for _ in range(2):  # a further connection makes the server look after the first one's process
        client.run(client.ClientOptions(source, port=running.port, config="dying"))
    running.wait_for("What came in was saved as")
    (saved, *_) = (tmp_path / "saved").glob("*.h5")
    with MrdReader(saved) as reader:
        assert reader.acquisition_count == 1
    peer.close()
    assert running.stop() == 0


def test_flags_of_users_start_scripts(start, tmp_path):
    """Short and long names, as scripts on scanners pass them."""
    for arguments in (
        ["-H", "127.0.0.1", "-d", "null", "-v", "-l", "a/s.log", "-s", "-S", "saved", "-m", "-r"],
        ["--host", "127.0.0.1", "--defaultConfig", "null", "--verbose", "--logfile", "b/s.log", "--savedata",
         "--savedataFolder", "saved", "--multiprocessing", "--crlf"],
    ):  # fmt: skip
        running = start(*arguments)
        assert running.stop() == 0
        log = (tmp_path / arguments[arguments.index("-l" if "-l" in arguments else "--logfile") + 1]).read_bytes()
        assert b"Listening" in log
        assert log.count(b"\r\n") == log.count(b"\n") > 0


def test_files_with_names_of_the_servers_own_are_warned_of(start, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_module(folder, "mrdhelper", "def process(c, config, m):\n  c.send_text('mine')\n")
    write_module(folder, "other", "WORD = 'helped'")
    running = start("-d", "null", "-M", folder, "-M", PROJECT)
    assert running.log().count("'import ") == 1
    theirs = folder / "mrdhelper.py"
    assert f"{theirs}: the server has a file mrdhelper.py, too, and 'import mrdhelper'" in running.log()
    peer = Peer(socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE))
    peer.send(ConfigFile("mrdhelper"), make_header())
    peer.send_close()
    assert peer.receive() == ["mine"]
    peer.close()


def test_modules_of_further_folders_and_their_neighbours(start, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_module(folder, "neighbour", "WORD = 'helped'")
    write_module(folder, "mymodule", "def process(c, config, m):\n  import neighbour\n  c.send_text(neighbour.WORD)\n")
    running = start("-d", "null", "-M", folder)
    peer = Peer(socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE))
    peer.send(ConfigFile("mymodule"), make_header())
    peer.send_close()
    assert peer.receive() == ["helped"]
    peer.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["-d", "nothere"], "no module for the default config 'nothere'"), (["-M", "nofolder"], "no module folder"),
     (["-p", "99999"], "is not between"), (["-H", "not.a.host.invalid"], "cannot start")],
)  # fmt: skip
def test_wrong_command_lines_say_what_is_wrong(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2)
    assert said in done.stdout + done.stderr


def test_port_in_use_is_an_error(start, tmp_path):
    running = start("-d", "null")
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", "-p", str(running.port)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "does another one listen there" in done.stdout


def test_default_host_is_loopback():
    arguments = main.parse_arguments([])
    assert (arguments.host, arguments.port) == ("127.0.0.1", 9002)
    assert arguments.savedataFolder == Path("/tmp/share/saved_data")
    assert arguments.defaultConfig == "invertcontrast"


def test_no_file_descriptors_are_left_after_many_sessions(start, tmp_path):
    running = start("-d", "null")
    source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition()], xml=header_xml())

    def descriptors():
        return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))

    client.run(client.ClientOptions(source, port=running.port, config="null"))
    before = descriptors()
    for _ in range(20):
        client.run(client.ClientOptions(source, port=running.port, config="null"))
    assert descriptors() <= before + 1  # the last session's thread may just be ending
