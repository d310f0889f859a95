"""Saving under bad conditions: it stops with a message, what was saved stays, and the session goes on."""

import errno
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from ismrmrd.serialization import ConfigFile

import recorder
from conftest import PATIENCE, Peer, bytes_of, header_xml, make_acquisition, make_header, write_module
from constants import MessageId
from mrdio import recordings, streamfiles
from mrdio.conversion import convert_stream, protocol_name
from mrdio.limits import MIB, Limits
from mrdio.mrdfile import MrdReader
from mrdio.recordings import Recorder
from mrdio.streamfiles import make_folder
from server import HANDLES
from server_process import ServerProcess

COUNTING = """
def process(connection, config, metadata):
    connection.send_text("started")
    connection.send_text(f"received {len(list(connection))}")
"""
READOUT = len(bytes_of(make_acquisition()))
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT, errno.EFBIG, errno.ESTALE]


class FailingFile:
    """File of a recording whose disk takes so many bytes and no more."""

    def __init__(self, file, room, code):
        self._file, self._room, self._code = file, room, code

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, chunk):
        if not self._room:
            raise OSError(self._code, os.strerror(self._code))
        taken = self._file.write(chunk[: self._room])
        self._room -= taken
        return taken


def counting_session(peer, count, between=lambda: None):
    """Hold a session of two halves; returns the texts that came back."""
    peer.send(ConfigFile("counting"), make_header(), make_acquisition(0))
    first = []
    while first[-1:] != ["started"]:
        identifier, length = struct.unpack("<HI", peer.reader.read(6))
        assert identifier == MessageId.TEXT
        first.append(peer.reader.read(length).decode())
    between()
    peer.send(*(make_acquisition(number) for number in range(1, count)))
    peer.send_close()
    return first[:-1] + peer.receive()


@pytest.fixture
def counting(server, connect, tmp_path):
    """Hold a counting session with a server that saves; returns the texts and the folder."""
    write_module(tmp_path, "counting", COUNTING)

    def hold(count=50, between=lambda: None, **options):
        running = server(module_folders=(tmp_path,), save_data=True, **options)
        texts = counting_session(connect(running.address), count, between)
        running.stop()
        return texts, tmp_path / "saved"

    return hold


# ---- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FULL, ids=[errno.errorcode[code] for code in FULL])
def test_disk_that_fills_up_costs_the_rest_of_the_recording(counting, monkeypatch, code):
    opening = len(bytes_of(ConfigFile("counting"), make_header()))
    room = opening + 10 * READOUT + 17

    def create_new(folder, stem, suffix, create_new=streamfiles.create_new):
        return FailingFile(create_new(folder, stem, suffix), room, code)

    monkeypatch.setattr(streamfiles, "create_new", create_new)
    texts, folder = counting(50)
    assert texts[-1] == "received 50"
    (error,) = texts[:-1]
    assert error.startswith("ERROR    What comes in is no longer being saved: ")
    assert os.strerror(code) in error
    (path,) = folder.iterdir()
    with MrdReader(path) as saved:
        assert list(saved.acquisitions()) == [make_acquisition(number) for number in range(10)]


def test_room_that_is_to_stay_free_stays_free(counting, monkeypatch):
    """The disk is looked at before each step: with steps of a few readouts, it is full after some of them."""
    monkeypatch.setattr(recordings, "RESERVE", 10 * READOUT)
    monkeypatch.setattr("connection.RECEIVE_BUFFER", 1000)
    left = iter(100 * MIB - 20_000 * step for step in range(1_000_000))
    usage = shutil.disk_usage

    def shrinking(path):
        return SimpleNamespace(free=next(left)) if path.name == "saved" else usage(path)

    monkeypatch.setattr(recordings.shutil, "disk_usage", shrinking)
    texts, folder = counting(400, limits=Limits(disk=100 * MIB - 150_000))
    assert texts[-1] == "received 400"
    (error,) = texts[:-1]
    assert "are free on the disk, " in error
    assert error.endswith("(--limit minDisk)")
    (path,) = folder.iterdir()
    with MrdReader(path) as saved:
        assert 20 < saved.acquisition_count < 400
        assert all(one == make_acquisition(number) for number, one in enumerate(saved.acquisitions()))


def test_full_disk_is_noticed_before_the_first_byte(counting, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    texts, folder = counting(5, limits=Limits(disk=free + (1 << 40)))
    assert texts[-1] == "received 5"
    assert "--limit minDisk" in texts[0]
    assert list(folder.iterdir()) == []  # no empty file is left


def test_last_room_of_a_disk_is_used(tmp_path, monkeypatch):
    """Less than a whole step is left, but enough for what comes."""
    monkeypatch.setattr(recordings.shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * MIB))
    steps, told = [], []
    monkeypatch.setattr(recordings, "_reserve", lambda file, start, length: steps.append((start, length)))
    running = Recorder(tmp_path, "session-1", b"", Limits(disk=8 * MIB), told.append)
    for _ in range(2):
        running.write(memoryview(bytes(MIB)))
    assert steps == [(0, 2 * MIB)]
    assert told == []
    running.write(memoryview(bytes(3 * MIB)))
    assert len(told) == 1
    assert running.stream_path.stat().st_size == 2 * MIB
    running.finish()


LIMITED = """
import errno, pathlib, resource, sys
sys.path[:0] = {paths!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
from mrdio import recordings, streamfiles
said = []
running = recordings.Recorder(pathlib.Path({folder!r}), "session-1", b"", None, said.append)
content = pathlib.Path({source!r}).read_bytes()
for start in range(0, len(content), 5000):
    running.write(memoryview(content)[start : start + 5000])
running.finish()
print(said)
"""


def test_limit_of_the_system_on_files(tmp_path):
    """A real write that the system refuses in the middle, in a process that may only write files of 64 KiB."""
    readouts = [make_acquisition(number, channels=4, samples=64) for number in range(40)]
    source = tmp_path / "source"
    source.write_bytes(bytes_of(ConfigFile("null"), make_header(), *readouts))
    assert source.stat().st_size > 80_000
    folder = tmp_path / "saved"
    script = LIMITED.format(paths=[str(Path(recorder.__file__).parent)], folder=str(folder), source=str(source))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("What comes in is no longer being saved") == 1
    assert os.strerror(errno.EFBIG) in done.stdout
    (stream,) = folder.iterdir()
    assert stream.read_bytes() == source.read_bytes()[:65536]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536
    with MrdReader(convert_stream(stream)) as saved:
        assert 20 < saved.acquisition_count < 40
        assert all(one == other for one, other in zip(saved.acquisitions(), readouts, strict=False))


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("how", ["removed", "moved"])
def test_folder_that_vanishes_is_told_and_the_session_goes_on(counting, tmp_path, caplog, how, processes):
    folder = tmp_path / "saved"

    def vanish():
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")

    texts, _ = counting(50, vanish, server_options={"processes": processes})
    assert "received 50" in texts
    (error,) = [text for text in texts if text.startswith("ERROR")]
    assert error.endswith("has been removed or moved")
    logged = sum("has been removed or moved" in record.getMessage() for record in caplog.records)
    assert logged == (0 if processes else 1)  # a process has a log of its own
    assert "kept" not in caplog.text  # which would not be true
    if how == "moved":
        (stream,) = (tmp_path / "elsewhere").iterdir()
        with MrdReader(convert_stream(stream)) as saved:
            assert saved.acquisition_count == 50


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_folder_that_cannot_be_written_is_told_and_the_session_goes_on(counting, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(streamfiles, "create_new", refuse)
    texts, folder = counting(5)
    assert texts[-1] == "received 5"
    (error,) = texts[:-1]
    assert error.startswith(f"ERROR    what comes in cannot be saved in {folder}: ")
    assert os.strerror(code) in error


# ---- who may read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [errno.EIO, errno.EPERM, None])
def test_disk_error_when_a_recording_gets_its_name_leaves_no_empty_file(tmp_path, monkeypatch, links):
    def fail(code):
        def call(*_):
            raise OSError(code, os.strerror(code))

        return call

    (tmp_path / "20261125_134417_localizer.h5").write_bytes(b"another recording")
    stream = tmp_path / "20261125_134417_session.mrdpart"
    stream.write_bytes(bytes_of(make_header(), make_acquisition()))
    with monkeypatch.context() as patches:
        patches.setattr(Path, "replace", fail(errno.EIO))
        if links is not None:
            patches.setattr(os, "link", fail(links))
            assert convert_stream(stream) is None
            assert {path.name for path in tmp_path.iterdir()} == {"20261125_134417_localizer.h5", stream.name}
        else:
            assert convert_stream(stream) is not None  # no step makes an empty file
    if links is not None:
        assert convert_stream(stream).name == "20261125_134417_localizer_2.h5"
    assert (tmp_path / "20261125_134417_localizer.h5").read_bytes() == b"another recording"
    assert len(list(tmp_path.iterdir())) == 2
    with MrdReader(tmp_path / "20261125_134417_localizer_2.h5") as reader:
        assert reader.acquisition_count == 1


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o000, 0o640, 0o750), (0o077, 0o600, 0o700)])
def test_recordings_are_not_for_everybody(counting, tmp_path, umask, file_mode, folder_mode):
    folder, modes = tmp_path / "new" / "saved", []
    previous = os.umask(umask)
    try:
        counting(5, lambda: modes.extend(stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()),
                 save_folder=folder)  # fmt: skip
    finally:
        os.umask(previous)
    assert modes == [file_mode]
    (path,) = folder.iterdir()
    assert path.suffix == ".h5"
    assert stat.S_IMODE(path.stat().st_mode) == file_mode
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)] == [folder_mode] * 2
    with h5py.File(path) as file:
        assert len(file["dataset/data"]) == 5


def test_folders_that_are_there_stay_as_they_are(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    make_folder(tmp_path / "open")
    make_folder(tmp_path / "open" / "saved")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "saved")


# ---- names ---------------------------------------------------------------------------------------------------------

NASTY = [
    "/etc/passwd", "../../x", "..\\..\\x", "C:\\x", "~root", "a/./b", ".hidden", "-rf", "x;rm -rf /", "$(id)", "`id`",
    "x\ny", "x\ty", "a&b|c>d<e", "x'y\"z", "*?[a]{b}", "%s%n", "..", ".", " ", "", "x\u202ey", "\u2044etc", "\uff0fetc",
    "x" * 5000, "µ" * 5000, "\U0001f600", "x ", "x.h5", "x.mrdpart", "NUL", "LPT1",
    "x\x7fy", "e\u0301", "\ufeffx", "x:y",
]  # fmt: skip


@pytest.mark.parametrize("protocol", NASTY)
def test_no_protocol_name_leaves_the_folder_or_its_alphabet(tmp_path, protocol):
    escaped = protocol.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    xml = header_xml("NAME").replace("NAME", escaped)
    name = protocol_name(xml)
    assert len(name) <= 64
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    folder = tmp_path / "saved"
    folder.mkdir()
    stream = folder / "2026-01-02_03-04-05_session-1.mrdpart"
    text = xml.encode()
    header = struct.pack("<HI", MessageId.METADATA_XML_TEXT, len(text)) + text
    stream.write_bytes(bytes_of(ConfigFile("null")) + header + bytes_of(make_acquisition()))
    converted = convert_stream(stream)
    assert converted is not None
    assert list(folder.iterdir()) == [converted]
    assert converted.name == "_".join(part for part in ("2026-01-02_03-04-05", name) if part) + ".h5"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


# ---- file handles --------------------------------------------------------------------------------------------------


def test_server_without_file_handles_tells_each_client_in_a_line_and_saves_the_others(tmp_path):
    write_module(tmp_path, "counting", COUNTING)
    running, peers, refused = ServerProcess("-d", "null", "-s", "-S", "saved", "--grace", "1", cwd=tmp_path), [], 0
    try:
        _, hard = running.process.rlimit(resource.RLIMIT_NOFILE)
        running.process.rlimit(resource.RLIMIT_NOFILE, (running.process.num_fds() + HANDLES + 6, hard))
        for number in range(8):
            peer = Peer(socket.create_connection(running.address, timeout=PATIENCE))
            peer.send(ConfigFile("counting"), make_header(), make_acquisition(number))
            identifier, length = struct.unpack("<HI", peer.reader.read(6))
            assert identifier == MessageId.TEXT
            text = peer.reader.read(length).decode()
            if text == "started":
                peers.append(peer)
            else:
                assert text.startswith("ERROR    the server already serves ")
                assert "no file handles" in text
                assert peer.receive() == []
                peer.close()
                refused += 1
        assert peers
        assert refused
        for peer in peers:
            peer.send_close()
            assert peer.receive() == ["received 1"]
        assert running.stop() == 0
    finally:
        running.end_all()
        for peer in peers:
            peer.close()
    log = running.log()
    assert "ERROR" not in log
    assert "Traceback" not in log
    assert log.count("no file handles") == refused
    saved = list((tmp_path / "saved").iterdir())
    assert len(saved) == len(peers)
    for path in saved:
        with MrdReader(path) as reader:
            assert reader.acquisition_count == 1
