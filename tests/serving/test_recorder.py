"""What comes in is kept: as a stream while it arrives, as an MRD file at the end, and after a crash."""

import errno
import json
import logging
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText

import client
import recorder
from conftest import (
    PATIENCE,
    bytes_of,
    header_xml,
    make_acquisition,
    make_header,
    make_image,
    make_waveform,
    write_module,
)
from constants import MessageId
from mrdio import conversion, recordings, streamfiles
from mrdio.conversion import convert_stream, finish_leftovers, protocol_name
from mrdio.limits import MIB, Limits
from mrdio.mrdfile import MrdReader
from mrdio.recordings import Recorder
from server_process import wait_until
from serving.converter import Converter


def saved_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hold(peer, *items):
    peer.send(*items)
    peer.send_close()
    return peer.receive()


def test_session_is_saved_as_an_mrd_file_named_after_its_protocol(server, connect, tmp_path):
    running = server(save_data=True)
    readouts = [make_acquisition(i, samples=4 + i, dimensions=i % 3) for i in range(5)]
    waveforms = [make_waveform(i) for i in range(3)]
    images = [make_image(i, meta={"number": str(i)}) for i in range(2)]
    parameters = json.dumps({"parameters": {"strength": 1}})
    peer = connect(running.address)
    assert hold(peer, ConfigFile("null"), make_header("knee / T1"), parameters, *readouts, *waveforms, *images) == []
    running.stop()
    (name,) = saved_files(tmp_path / "saved")
    assert name.endswith("_knee_T1.h5")
    with MrdReader(tmp_path / "saved" / name) as saved:
        assert saved.config == "null"
        assert saved.json_parameters == parameters
        assert saved.header_xml == header_xml("knee / T1")
        assert list(saved.acquisitions()) == readouts
        assert list(saved.waveforms()) == waveforms
        back = list(saved.images())
        assert [image.meta["number"] for image in back] == ["0", "1"]
        assert all((one.data == other.data).all() for one, other in zip(images, back, strict=True))


def test_saved_file_can_be_sent_by_the_client(server, tmp_path, connect):
    running = server(save_data=True)
    hold(connect(running.address), ConfigFile("null"), make_header(), *(make_acquisition(i) for i in range(4)))
    running.stop()
    (saved,) = (tmp_path / "saved").iterdir()
    again = server()
    result = client.run(client.ClientOptions(saved, port=again.port, config="null", output=tmp_path / "out.h5"))
    assert result.sent["acquisitions"] == 4
    assert result.errors == []


@pytest.mark.parametrize("requested", ["config", "json"])
def test_config_savedataonly_saves_everything_from_the_first_byte(server, connect, tmp_path, requested):
    running = server()
    opening = [ConfigFile("savedataonly"), make_header()]
    if requested == "json":
        opening = [ConfigFile("x"), make_header(), json.dumps({"parameters": {"config": "savedataonly"}})]
    assert hold(connect(running.address), *opening, *(make_acquisition(i) for i in range(7))) == []
    running.stop()
    (path,) = (tmp_path / "saved").iterdir()
    with MrdReader(path) as saved:
        assert saved.acquisition_count == 7
        assert saved.header_xml == header_xml()


def test_nothing_is_saved_unless_asked(server, connect, tmp_path):
    running = server()
    hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition())
    running.stop()
    assert not (tmp_path / "saved").exists()


def test_data_behind_a_failing_module_are_saved_too(server, connect, tmp_path):
    write_module(tmp_path, "failing", "def process(connection, config, metadata): raise ValueError('early')")
    running = server(module_folders=(tmp_path,), save_data=True)
    hold(connect(running.address), ConfigFile("failing"), make_header(), *(make_acquisition(i) for i in range(300)))
    running.stop()
    (path,) = (tmp_path / "saved").iterdir()
    with MrdReader(path) as saved:
        assert saved.acquisition_count == 300


def test_broken_session_keeps_every_complete_message(server, connect, tmp_path):
    running = server(save_data=True)
    peer = connect(running.address)
    peer.send(ConfigFile("null"), make_header(), make_acquisition(0), make_acquisition(1))
    peer.send_raw(bytes_of(make_acquisition(2))[:-3])
    peer.sock.shutdown(1)
    peer.reader.read()
    running.stop()
    (path,) = (tmp_path / "saved").iterdir()
    with MrdReader(path) as saved:
        assert list(saved.acquisitions()) == [make_acquisition(0), make_acquisition(1)]


def test_stream_with_bytes_that_are_no_message_is_kept_beside_the_mrd_file(tmp_path):
    stream = tmp_path / "2026-01-02_03-04-05_session-1.mrdpart"
    stream.write_bytes(bytes_of(ConfigText("x"), make_header(), make_acquisition()) + b"\xff\xff and more")
    content = stream.read_bytes()
    converted = convert_stream(stream)
    assert saved_files(tmp_path) == [
        "2026-01-02_03-04-05_localizer.h5",
        "2026-01-02_03-04-05_localizer.mrd.broken",
    ]
    assert (tmp_path / "2026-01-02_03-04-05_localizer.mrd.broken").read_bytes() == content
    with MrdReader(converted) as saved:
        assert saved.acquisition_count == 1


def test_no_recording_overwrites_another(tmp_path):
    for number in range(3):
        stream = tmp_path / f"2026-01-02_03-04-05_session-{number}.mrdpart"
        stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), make_acquisition(number)))
        convert_stream(stream)
    names = saved_files(tmp_path)
    assert len(names) == 3
    found = set()
    for name in names:
        with MrdReader(tmp_path / name) as saved:
            found |= {acquisition.scan_counter for acquisition in saved.acquisitions()}
    assert found == {0, 1, 2}


@pytest.mark.parametrize(
    ("protocol", "name"),
    [("t1_tse", "t1_tse"), ("../../etc/passwd", "etc_passwd"), ("a" * 200, "a" * 64), ("Schädel: MR", "Sch_del_MR"),
     ("...", ""), ("CON<>|?*", "CON")],
)  # fmt: skip
def test_protocol_names_are_made_safe_for_file_names(protocol, name):
    xml = header_xml("NAME").replace("NAME", protocol.replace("<", "&lt;").replace(">", "&gt;").replace("\0", ""))
    assert protocol_name(xml) == name


@pytest.mark.parametrize("xml", ["no header", "", header_xml().replace("<protocolName>localizer</protocolName>", "")])
def test_header_without_protocol_gives_a_name_without_one(xml):
    assert protocol_name(xml) == ""


def test_leftovers_of_a_crash_are_finished_by_the_command(tmp_path):
    stream = tmp_path / "2026-01-02_03-04-05_session-9.mrdpart"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header("crashed"), *(make_acquisition(i) for i in range(3))))
    unfinished = stream.with_suffix(f".{stream.stat().st_ino}.h5part")
    unfinished.write_bytes(b"the half-written file of that crash")
    command = [sys.executable, "recorder.py", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(recorder.__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "1 recordings finished" in done.stdout
    assert saved_files(tmp_path) == ["2026-01-02_03-04-05_crashed.h5"]


def test_leftovers_are_finished_at_the_next_start(server, connect, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "2026-01-02_03-04-05_session-9.mrdpart").write_bytes(
        bytes_of(ConfigFile("null"), make_header("crashed"), make_acquisition())
    )
    running = server(save_data=True)
    hold(connect(running.address), ConfigFile("null"), make_header())  # by then it has started
    assert wait_until((folder / "2026-01-02_03-04-05_crashed.h5").is_file)


def test_stream_of_a_running_recording_is_left_alone(tmp_path, converter):
    running = Recorder(tmp_path, "session-1", convert=converter.convert)
    running.write(memoryview(bytes_of(ConfigFile("null"), make_header(), make_acquisition())))
    assert finish_leftovers(tmp_path) == []
    assert running.stream_path.exists()
    running.finish()
    converter.finish(PATIENCE)
    (saved,) = saved_files(tmp_path)
    assert saved.endswith("_localizer.h5")


def test_stream_file_holds_the_very_bytes_that_came(tmp_path):
    content = bytes_of(ConfigFile("null"), make_header(), *(make_acquisition(i) for i in range(20)))
    running = Recorder(tmp_path, "session-1", content[:100])
    for start in range(100, len(content), 777):
        running.write(memoryview(content)[start : start + 777])
    assert running.stream_path.read_bytes() == content
    running.finish()


def test_session_without_data_leaves_no_file(tmp_path, converter):
    opening = bytes_of(ConfigFile("null"), make_header())
    running = Recorder(tmp_path, "session-1", opening, convert=converter.convert)
    running.finish()
    converter.finish(PATIENCE)
    assert saved_files(tmp_path) == []


def test_full_disk_costs_the_recording_not_the_session(server, connect, tmp_path, monkeypatch):
    def full(file, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recordings, "_reserve", full)
    running = server(save_data=True)
    texts = hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition())
    assert len(texts) == 1
    assert texts[0].startswith("ERROR")
    assert "No space left" in texts[0]


def test_folder_that_cannot_be_made(server, connect, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        server(save_data=True, save_folder=tmp_path / "file" / "saved")
    running = server(save_folder=tmp_path / "file" / "saved")
    (text,) = hold(connect(running.address), ConfigFile("savedataonly"), make_header(), make_acquisition())
    assert text.startswith("ERROR")
    assert "cannot be saved" in text


def test_failed_conversion_keeps_the_stream(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    content = bytes_of(ConfigFile("null"), make_header(), make_acquisition())
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    stream.write_bytes(content)
    monkeypatch.setattr(conversion, "MrdWriter", fail)
    caplog.set_level(logging.ERROR)
    assert convert_stream(stream) is None
    assert stream.read_bytes() == content
    assert "kept" in caplog.text


def test_conversion_that_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch, caplog):
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), make_acquisition()))
    monkeypatch.setattr(recordings.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert convert_stream(stream) is None
    assert saved_files(tmp_path) == [stream.name]
    assert "are free" in caplog.text


@pytest.mark.parametrize("make", [make_acquisition, make_image])
def test_conversion_leaves_the_room_that_is_to_stay_free(tmp_path, monkeypatch, caplog, make):
    """The disk is looked at on the way, too: others fill it."""
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), *(make(i) for i in range(600))))
    left = iter(range(100 * MIB, 0, -10 * MIB))
    monkeypatch.setattr(recordings.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(left)))
    assert convert_stream(stream, Limits(disk=75 * MIB)) is None
    assert saved_files(tmp_path) == [stream.name]
    assert "bytes are free" in caplog.text
    assert "kept" in caplog.text


def test_conversion_process_keeps_to_the_room_that_is_to_stay_free(tmp_path, caplog):
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), make_acquisition()))
    converter = Converter(Limits(disk=1 << 49))
    converter.start()
    assert converter.convert(stream).wait(PATIENCE)
    converter.stop()
    assert saved_files(tmp_path) == [stream.name]
    assert "--limit minDisk" in caplog.text


def test_small_stream_of_many_series_does_not_become_a_large_file(tmp_path, monkeypatch, caplog):
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    images = [make_image(i, (1, 1, 1, 1), series=i) for i in range(101)]
    monkeypatch.setattr(conversion, "IMAGE_GROUPS", 100)
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), *images))
    assert convert_stream(stream) is None
    assert saved_files(tmp_path) == [stream.name]
    assert "too many series" in caplog.text
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), *images[:100], images[0], images[99]))
    saved = convert_stream(stream)
    assert saved.stat().st_size < 100 * 20_000
    with MrdReader(saved) as reader:
        assert len(list(reader.images())) == 102


def test_header_cannot_forge_log_lines_of_the_conversion(tmp_path, caplog, monkeypatch, converter):
    """Nor does an encoding of the console that has no such characters cost any."""
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    caplog.set_level(logging.INFO)
    forged = "1\nCRITICAL on fire 心臓\x85CRITICAL too\nINFO session-9 ended"
    field = "<H1resonanceFrequency_Hz>"
    xml = header_xml().replace(field, f"{field}{forged}").encode()
    assert forged.encode() in xml
    header = struct.pack("<HI", MessageId.METADATA_XML_TEXT, len(xml)) + xml
    content = bytes_of(ConfigFile("null")) + header + bytes_of(make_acquisition())
    running = Recorder(tmp_path, "session-1", content, convert=converter.convert)
    running.finish()
    converter.finish(PATIENCE)
    assert any("on fire 心臓\x85CRITICAL too\nINFO" in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not [record for record in caplog.records if record.getMessage().startswith(("on fire", "session-9", "too"))]


def test_stopping_does_not_wait_for_a_conversion(server, connect, tmp_path, monkeypatch, caplog):
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(streamfiles, "RECORDER", slow)
    monkeypatch.setattr("server.BREAK_OFF_WAIT", 0.2)
    running = server(save_data=True, save_folder=tmp_path / "kept", server_options={"grace": 0.1})
    hold(connect(running.address), ConfigFile("null"), make_header(), make_acquisition())
    start = time.monotonic()
    running.stop()
    assert time.monotonic() - start < PATIENCE
    (left,) = (tmp_path / "kept").iterdir()
    assert f"1 recordings stay streams in {left.parent}: they are converted at the next start" in caplog.text
    monkeypatch.undo()
    assert convert_stream(left) is not None


def test_recorded_stream_is_an_ismrmrd_stream_that_the_client_reads(server, tmp_path):
    stream = tmp_path / "raw.mrd"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), *(make_acquisition(i) for i in range(4))))
    running = server()
    result = client.run(client.ClientOptions(stream, port=running.port, config="null", output=tmp_path / "out.h5"))
    assert (result.sent["acquisitions"], result.errors) == (4, [])


def test_images_of_different_sizes_are_all_kept(tmp_path):
    images = [make_image(i, shape) for i, shape in enumerate([(1, 1, 4, 5), (1, 1, 5, 4), (1, 1, 4, 5)])]
    stream = tmp_path / "2026-01-02_03-04-05_s.mrdpart"
    stream.write_bytes(bytes_of(ConfigFile("null"), make_header(), *images))
    with h5py.File(convert_stream(stream)) as file:
        counts = {name: len(file["dataset"][name]["data"]) for name in file["dataset"] if name.startswith("image_")}
    assert counts == {"image_0": 2, "image_0_1": 1}
