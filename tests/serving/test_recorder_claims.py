"""Whoever writes or converts a stream has it for himself: several converters, modules that fork, and odd files."""

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, bytes_of, make_acquisition, make_header, write_module
from mrdio import conversion, streamfiles
from mrdio.conversion import convert_stream, finish_leftovers
from mrdio.mrdfile import MrdReader
from mrdio.recordings import Recorder
from server_process import wait_until

CONTENT = bytes_of(ConfigFile("null"), make_header(), make_acquisition())


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "saved" / "2026-01-02_03-04-05_session-1.mrdpart"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


# ---- several converters --------------------------------------------------------------------------------------------


def test_stream_stays_claimed_until_it_is_gone(stream, monkeypatch):
    """A second converter comes at the very moments before and after each step of the first."""
    seen = []

    def come() -> None:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=lambda: seen.append(convert_stream(stream)))
            other.start()
            other.join()

    def between(function):
        def call(path, *arguments, **keywords):
            come()
            done = function(path, *arguments, **keywords)
            come()
            return done

        return call

    for name in ("replace", "unlink"):
        monkeypatch.setattr(streamfiles.Path, name, between(getattr(streamfiles.Path, name)))
    target = convert_stream(stream)
    assert len(seen) >= 6
    assert set(seen) == {None}
    assert list(stream.parent.iterdir()) == [target]


def test_stream_that_another_has_converted_is_passed_over_in_silence(stream, monkeypatch, caplog):
    """It was found, and has been converted before it is opened; or opened, and converted before it is locked."""
    flock = fcntl.flock

    def convert_first(*arguments):
        monkeypatch.setattr(streamfiles.fcntl, "flock", flock)
        assert convert_stream(stream) is not None
        flock(*arguments)

    monkeypatch.setattr(streamfiles, "streams_in", lambda folder: [stream])
    monkeypatch.setattr(streamfiles.fcntl, "flock", convert_first)
    assert finish_leftovers(stream.parent) == []
    assert finish_leftovers(stream.parent) == []
    assert len(list(stream.parent.glob("*.h5"))) == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_another_file_of_the_same_name_is_left_alone(stream, monkeypatch, caplog):
    """Somebody moves the stream while it is converted, and puts another in its place."""

    def move_away(*arguments, open_file=conversion.MrdWriter, **keywords):
        stream.rename(stream.with_suffix(".moved"))
        stream.write_bytes(b"another")
        return open_file(*arguments, **keywords)

    monkeypatch.setattr(conversion, "MrdWriter", move_away)
    assert convert_stream(stream) is not None
    assert stream.read_bytes() == b"another"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_new_recording_is_not_taken_for_a_leftover(tmp_path, monkeypatch):
    """A converter finds the stream between its creation and its claim, while it is empty."""

    def create_new(folder, stem, suffix, create_new=streamfiles.create_new):
        file = create_new(folder, stem, suffix)
        monkeypatch.setattr(streamfiles, "create_new", create_new)
        assert finish_leftovers(folder) == []
        return file

    monkeypatch.setattr(streamfiles, "create_new", create_new)
    running = Recorder(tmp_path, "session-1", CONTENT)
    running.finish()
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == CONTENT


def test_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(streamfiles.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        Recorder(tmp_path, "session-1", CONTENT)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "2026-01-02_03-04-05_session-1.mrdpart").write_bytes(CONTENT)
    assert finish_leftovers(tmp_path) == []
    assert "No locks available" in caplog.text


# ---- modules that fork ---------------------------------------------------------------------------------------------

FORKING = """
import multiprocessing, os, pathlib, time
def process(connection, config, metadata):
    items = iter(connection)
    next(items)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    pathlib.Path({pids!r}).write_text(str(child.pid))
    {ending}
"""


@pytest.mark.parametrize(
    ("processes", "ending"),
    [(False, "list(items)"), (True, "list(items); multiprocessing.process._children.clear()"), (True, "os._exit(3)")],
)
def test_child_of_a_module_does_not_keep_its_recording(server, connect, tmp_path, processes, ending):
    """The child outlives the session, and the process of the session."""
    pids = tmp_path / "pid"
    write_module(tmp_path, "forking", FORKING.format(pids=str(pids), ending=ending))
    running = server(module_folders=(tmp_path,), save_data=True, server_options={"processes": processes})
    peer = connect(running.address)
    peer.send(ConfigFile("forking"), make_header(), make_acquisition(0), make_acquisition(1))
    assert wait_until(pids.exists)
    peer.send_close()
    try:
        assert wait_until(lambda: list((tmp_path / "saved").glob("*.h5")))
        os.kill(int(pids.read_text()), 0)  # the child lives
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)
        for child in multiprocessing.active_children():
            child.join(PATIENCE)
    running.stop()
    (path,) = (tmp_path / "saved").iterdir()
    with MrdReader(path) as saved:
        assert 1 <= saved.acquisition_count <= 2


def test_end_of_a_recording_unlocks_it_for_all_who_have_the_open_file(tmp_path):
    """As a program that another thread is just about to start, or a library's own fork, has it."""
    running = Recorder(tmp_path, "session-1", CONTENT)
    stream = str(running.stream_path)
    mine = {int(each.name): os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
    copies = [os.dup(descriptor) for descriptor, target in mine.items() if target == stream]
    assert copies
    running.finish()
    try:
        assert convert_stream(running.stream_path) is not None
    finally:
        for copy in copies:
            os.close(copy)


# ---- odd files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe", "link to a folder"])
def test_what_is_no_file_is_passed_over_with_a_warning(stream, tmp_path, caplog, kind):
    odd = stream.with_name("2026-01-02_03-04-04_odd.mrdpart")
    real = tmp_path / "real" if kind.startswith("link") else odd
    os.mkfifo(real) if "pipe" in kind else real.mkdir()
    if real is not odd:
        odd.symlink_to(real)
    assert len(finish_leftovers(stream.parent)) == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert line.startswith(f"{odd} is passed over: it is no file")
    assert odd.exists()
