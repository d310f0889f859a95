"""One process converts the recordings of a server: what it says, and what becomes of a stream that it dies of."""

import errno
import logging
import os
import signal
import sys
import textwrap
import threading

import psutil
import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, bytes_of, make_acquisition, make_header, write_module
from mrdio import conversion, streamfiles
from mrdio.limits import Limits
from mrdio.mrdfile import MrdReader
from server_process import is_running, wait_until

CONTENT = bytes_of(ConfigFile("null"), make_header(), make_acquisition())


def write_stream(folder, session):
    path = folder / f"2026-01-02_03-04-05_{session}.mrdpart"
    path.write_bytes(CONTENT)
    return path


def replace_recorder(monkeypatch, folder, source):
    """Have another program convert, which gets the same command line."""
    path = write_module(folder, "stand_in", textwrap.dedent(source))
    monkeypatch.setattr(streamfiles, "RECORDER", path)


def conversions():
    """Processes that convert for this one."""
    children = psutil.Process().children()
    return [each for each in children if is_running(each) and str(streamfiles.RECORDER) in each.cmdline()]


def hold(peer, *items):
    peer.send(*items)
    peer.send_close()
    return peer.receive()


def test_one_process_converts_all(converter, tmp_path):
    pids = set()
    for number in range(3):
        stream = write_stream(tmp_path, f"session-{number}")
        assert converter.convert(stream).wait(PATIENCE)
        (process,) = conversions()
        pids.add(process.pid)
    assert len(pids) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"] * 3


def test_process_starts_with_the_first_recording(server, connect, tmp_path):
    running = server()
    hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition())
    assert conversions() == []
    hold(connect(running.address), ConfigFile("savedataonly"), make_header(), make_acquisition())
    assert wait_until(lambda: list((tmp_path / "saved").glob("*.h5")))
    assert len(conversions()) == 1


def test_lines_of_a_conversion_are_those_of_its_session(converter, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert converter.convert(write_stream(tmp_path, "session-7"), "session-7").wait(PATIENCE)
    (line,) = [record for record in caplog.records if "was saved as" in record.getMessage()]
    assert line.session == "session-7"


def test_what_a_library_prints_in_a_conversion_is_a_warning_and_no_answer(converter, tmp_path, caplog, monkeypatch):
    printing = """
        import json, sys
        for line in sys.stdin:
            path, token = json.loads(line)
            print('CRITICAL forged\\n5\\n[]\\n{"level": []}\\n{"done": "forged"}', flush=True)
            sys.stderr.buffer.write(b'ERROR \\xff')
            sys.stderr.flush()
            print("\\n" + json.dumps({"done": token}), flush=True)
        """
    replace_recorder(monkeypatch, tmp_path, printing)
    assert converter.convert(tmp_path / "any.mrdpart").wait(PATIENCE)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", text)
        for text in ("CRITICAL forged", "5", "[]", '{"level": []}', '{"done": "forged"}', "ERROR \ufffd")
    ]


def test_what_cannot_be_read_of_a_conversion_is_a_warning_and_ends_nothing(converter, tmp_path, caplog, monkeypatch):
    deep = """
        import json, sys
        for line in sys.stdin:
            path, token = json.loads(line)
            print("[" * 200000)
            print(json.dumps({"done": token}), flush=True)
        """
    replace_recorder(monkeypatch, tmp_path, deep)
    assert converter.convert(tmp_path / "any.mrdpart").wait(PATIENCE)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "[" * 200000)]


def test_fault_in_one_conversion_does_not_end_those_to_come(converter, tmp_path, caplog, monkeypatch):
    def fail(line):
        raise MemoryError("none left")

    stream = write_stream(tmp_path, "session-1")
    with monkeypatch.context() as patch:
        patch.setattr("serving.converter.json.loads", fail)
        assert converter.convert(stream).wait(PATIENCE)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{stream} is not converted now, it is kept as it is: none left"
    stream = write_stream(tmp_path, "session-2")
    assert converter.convert(stream).wait(PATIENCE)
    assert not stream.exists()


def test_stream_that_crashes_the_process_is_kept_and_the_next_is_converted(converter, tmp_path, monkeypatch, caplog):
    """HDF5 may crash on a full disk; the server must not."""
    crashing = f"""
        import os, sys
        sys.path.insert(0, {str(streamfiles.RECORDER.parent)!r})
        import recorder
        convert = recorder.convert_stream
        recorder.convert_stream = lambda path, limits: os.abort() if "bad" in path.name else convert(path, limits)
        sys.exit(recorder.main())
        """
    replace_recorder(monkeypatch, tmp_path, crashing)
    folder = tmp_path / "saved"
    folder.mkdir()
    streams = [write_stream(folder, name) for name in ("session-1", "bad", "session-2")]
    for done in [converter.convert(stream) for stream in streams]:
        assert done.wait(PATIENCE)
    assert streams[1].read_bytes() == CONTENT
    assert sorted(path.suffix for path in folder.iterdir()) == [".h5", ".h5", ".mrdpart"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == f"{streams[1]} has not been converted, it is kept as it is: the conversion ended with -6"


def test_process_that_was_killed_between_two_recordings_is_replaced(converter, tmp_path, caplog):
    assert converter.convert(write_stream(tmp_path, "session-1")).wait(PATIENCE)
    (process,) = conversions()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert converter.convert(write_stream(tmp_path, "session-2")).wait(PATIENCE)
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"] * 2
    assert caplog.records == []


def test_process_that_dies_behind_a_conversion_is_no_error(converter, tmp_path, monkeypatch, caplog):
    """The file is there, only the answer is missing: it would be wrong to call the stream kept."""
    replace_recorder(
        monkeypatch, tmp_path, "import json, os, sys\nos.unlink(json.loads(sys.stdin.readline())[0])\nos.abort()\n"
    )
    assert converter.convert(write_stream(tmp_path, "session-1")).wait(PATIENCE)
    assert caplog.records == []


def test_process_that_cannot_be_started_is_told_in_a_line_and_tried_again(converter, tmp_path, monkeypatch, caplog):
    stream = write_stream(tmp_path, "session-1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "missing"))
        assert converter.convert(stream).wait(PATIENCE)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{stream} is not converted now, it is kept as it is: ")
    assert converter.convert(stream).wait(PATIENCE)
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"]


def test_session_waits_neither_for_its_own_conversion_nor_for_a_leftover(server, connect, tmp_path, monkeypatch):
    """Their places are for the next clients; a big leftover may take minutes."""
    waiting = """
        import json, pathlib, sys
        for line in sys.stdin:
            path, token = json.loads(line)
            open(pathlib.Path(path).with_name("leftover" if "session-9" in path else "own")).read()
            pathlib.Path(path).unlink()
            print(json.dumps({"done": token}), flush=True)
        """
    replace_recorder(monkeypatch, tmp_path, waiting)
    folder = tmp_path / "saved"
    folder.mkdir()
    leftover = write_stream(folder, "session-9")
    for name in ("leftover", "own"):
        os.mkfifo(folder / name)
    running = server(save_data=True, limits=Limits(sessions=1))
    with (folder / "leftover").open("w"):  # its conversion has begun, and goes on until this ends
        hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition())
        with (folder / "own").open("w"):
            assert wait_until(lambda: not running.server.running)
        assert wait_until(lambda: list(folder.glob("*.mrdpart")) == [leftover])
    assert wait_until(lambda: not leftover.exists())


@pytest.mark.parametrize("processes", [False, True])
def test_folder_that_cannot_be_listed_is_told_and_ends_nothing(
    server, connect, tmp_path, monkeypatch, caplog, processes
):
    scan, folder, fails = os.scandir, tmp_path / "saved", threading.Event()
    fails.set()

    def scan_or_fail(path="."):
        if str(path) == str(folder) and fails.is_set():
            raise OSError(errno.EIO, "Input/output error")
        return scan(path)

    monkeypatch.setattr("os.scandir", scan_or_fail)
    running = server(save_data=True, server_options={"processes": processes})
    for number in range(2):
        assert hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition()) == []
        assert wait_until(lambda seen=number + 1: caplog.text.count("cannot be looked for") == 1 + processes * seen)
    fails.clear()
    monkeypatch.undo()
    for stream in streamfiles.streams_in(folder) if processes else ():
        assert conversion.convert_stream(stream) is not None


def test_folder_is_looked_through_only_for_sessions_that_may_have_been_recorded(server, connect, tmp_path, monkeypatch):
    """It may hold many files, and the server may have no business there."""
    looked, look = [], streamfiles.streams_of

    def look_and_note(folder, session):
        looked.append(session)
        return look(folder, session)

    monkeypatch.setattr(streamfiles, "streams_of", look_and_note)
    running = server(server_options={"processes": True}, save_folder=tmp_path / "kept")
    for config in ("null", "savedataonly"):
        hold(connect(running.address), ConfigFile(config), make_header())
    running.stop()
    assert looked == ["session-2"]


def test_stopping_ends_a_conversion_without_an_error(converter, tmp_path, monkeypatch, caplog):
    replace_recorder(monkeypatch, tmp_path, "import sys\nfor line in sys.stdin: print('begun', flush=True)\n")
    first, second = (converter.convert(write_stream(tmp_path, f"session-{number}")) for number in (1, 2))
    assert wait_until(lambda: "begun" in caplog.text)
    assert converter.stop() == set(tmp_path.glob("*.mrdpart"))
    assert first.is_set()
    assert second.is_set()
    assert converter.convert(tmp_path / "late.mrdpart").is_set()
    assert [record.getMessage() for record in caplog.records] == ["begun"]
    assert len(list(tmp_path.glob("*.mrdpart"))) == 2


def test_process_ends_with_a_server_that_is_killed(tmp_path):
    """It reads until there is nobody any more who writes."""
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        sys.executable, [sys.executable, str(streamfiles.RECORDER), "--follow"], os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
    )  # fmt: skip
    os.close(reading)
    os.close(writing)
    assert wait_until(lambda: os.waitpid(pid, os.WNOHANG) == (pid, 0)), os.kill(pid, signal.SIGKILL)


# ---- sessions in processes -----------------------------------------------------------------------------------------

ENDINGS = {
    "well": "list(connection)",
    "crash": "next(iter(connection)); os._exit(3)",
    "killed": "next(iter(connection)); os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_recording_of_a_process_is_converted_when_it_has_ended(server, connect, tmp_path, caplog, monkeypatch, ending):
    """Nobody connects meanwhile, and no earlier recording that is kept is tried again."""
    monkeypatch.setattr("server.HOUSEKEEPING", 600.0)
    write_module(tmp_path, "ends", f"import os\ndef process(connection, config, metadata): {ENDINGS[ending]}\n")
    options = {"module_folders": (tmp_path,), "save_data": True, "server_options": {"processes": True}}
    bad = tmp_path / "kept" / "2026-01-02_03-04-05_session-9.mrdpart"
    bad.mkdir(parents=True)  # before the server starts, which looks for leftovers once
    running = server(**options, save_folder=tmp_path / "kept")
    assert wait_until(lambda: f"{bad} is passed over" in caplog.text)
    peer = connect(running.address)
    peer.send(ConfigFile("ends"), make_header(), make_acquisition())
    if ending == "well":
        peer.send_close()
    peer.reader.read()
    assert wait_until(lambda: list((tmp_path / "kept").glob("*.h5")))
    assert wait_until(lambda: not running.server.running)
    running.stop()
    assert caplog.text.count("is passed over") == 1
    bad.rmdir()
    (path,) = (tmp_path / "kept").iterdir()
    with MrdReader(path) as saved:
        assert saved.acquisition_count == 1
