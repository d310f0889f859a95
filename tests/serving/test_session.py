"""Sessions from the first byte to the last: what runs, what the client is told, and that every ending comes."""

import json
import logging
import struct
import threading
import tracemalloc
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText

import connection as connection_module
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
from mrdio.limits import MIB, Limits
from serving.summary import Outcome

ECHO_CONFIG = """
import json
def process(connection, config, metadata):
    connection.send_text(json.dumps([config, type(metadata).__name__, str(metadata)[:200]]))
    for item in connection:
        pass
"""


def log_text(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


def hold(peer, *items, close=True):
    """Send a whole session and take what comes back."""
    peer.send(*items)
    if close:
        peer.send_close()
    return peer.receive()


def errors(texts):
    return [text for text in texts if isinstance(text, str) and text.startswith(("ERROR", "CRITICAL"))]


# ---- which module runs, and with what ------------------------------------------------------------------------------


def test_config_name_and_header_reach_the_module(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO_CONFIG)
    peer = connect(server(module_folders=(tmp_path,)).address)
    (text,) = hold(peer, ConfigFile("echo"), make_header())
    assert json.loads(text)[:2] == ["echo", "ismrmrdHeader"]
    assert peer.is_at_end()


@pytest.mark.parametrize("key", ["customconfig", "config"])
def test_json_parameters_choose_the_module_and_are_its_config(server, connect, tmp_path, key):
    write_module(tmp_path, "echo", ECHO_CONFIG)
    parameters = {"parameters": {key: "echo", "strength": 3}}
    texts = hold(
        connect(server(module_folders=(tmp_path,)).address), ConfigFile("null"), make_header(), json.dumps(parameters)
    )
    assert json.loads(texts[0])[0] == parameters


def test_custom_config_wins_over_config_unless_it_is_empty(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO_CONFIG)
    running = server(module_folders=(tmp_path,))
    for custom, answers in (("null", 0), ("", 1)):
        parameters = {"parameters": {"config": "echo", "customconfig": custom}}
        texts = hold(connect(running.address), ConfigFile("x"), make_header(), json.dumps(parameters))
        assert len(texts) == answers


def test_config_text_may_be_json_parameters(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO_CONFIG)
    config = ConfigText(json.dumps({"parameters": {"config": "echo"}}))
    texts = hold(connect(server(module_folders=(tmp_path,)).address), config, make_header())
    assert json.loads(texts[0])[0] == {"parameters": {"config": "echo"}}


def test_header_that_is_no_header_is_passed_on_as_text(server, connect, tmp_path):
    write_module(tmp_path, "echo", ECHO_CONFIG)
    peer = connect(server(module_folders=(tmp_path,)).address)
    text = b"Dummy XML header\0"
    peer.send(ConfigFile("echo"))
    peer.send_raw(struct.pack("<HI", 3, len(text)) + text)
    peer.send_close()
    assert json.loads(peer.receive()[0])[1:] == ["str", "Dummy XML header"]


@pytest.mark.parametrize("name", ["nosuchmodule", "os", "client", "server", "../null", "json.tool", "", "x" * 1000])
def test_unknown_config_runs_the_default_and_warns(server, connect, name):
    texts = hold(connect(server().address), ConfigFile(name), make_header())
    assert len(texts) == 1
    assert texts[0].startswith("WARNING  there is no module")
    assert "default config 'null'" in texts[0]


@pytest.mark.parametrize("sent", [ConfigText, str])
def test_long_text_that_names_no_module_is_not_copied_many_times(server, connect, caplog, sent):
    """Not whole into log lines, nor to look for a module of that name."""
    caplog.set_level(logging.INFO)
    text = " " + "\x01" * (8 * MIB)
    opening = [ConfigFile("null"), make_header(), text] if sent is str else [ConfigText(text), make_header()]
    peer = connect(server().address)
    data = bytes_of(*opening, close=True)
    tracemalloc.start()
    try:
        peer.send_raw(data)
        peer.receive()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text)
    assert all(len(line) < 5000 for line in log_text(caplog).splitlines())


@pytest.mark.parametrize("config", ["null", " null\n", "null" + " " * 5000])
def test_white_space_around_a_config(server, connect, config):
    assert hold(connect(server().address), ConfigText(config), make_header()) == []


def test_default_config_that_does_not_exist_is_an_error_at_start(server):
    with pytest.raises(ValueError, match="no module for the default config 'nothere'"):
        server(default_config="nothere")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [('{"parameters": ', "cannot be read"), ('{"parameters": [1]}', "to be an object"),
     ('{"parameters": {"config": 3}}', '"config"'), ("{" * 100_000, "cannot be read")],
)  # fmt: skip
def test_broken_json_parameters_are_refused(server, connect, parameters, said):
    texts = hold(connect(server().address), ConfigFile("null"), make_header(), parameters)
    assert len(texts) == 1
    assert texts[0].startswith("ERROR")
    assert said in texts[0]


def test_module_edited_on_disk_is_used_by_the_next_session(server, connect, tmp_path):
    running = server(module_folders=(tmp_path,))
    for version in "abc":
        write_module(tmp_path, "edited", f"def process(c, config, metadata): c.send_text('{version}'); list(c)")
        assert hold(connect(running.address), ConfigFile("edited"), make_header()) == [version]


def test_module_of_another_server_of_this_kind_runs_unchanged(server, connect, tmp_path):
    """It closes the session itself, tests for None, reads config as text or dictionary, and knows the constants."""
    write_module(
        tmp_path,
        "older",
        """
import ismrmrd, logging, traceback
import constants
def process(connection, config, metadata):
    logging.info("Config: \\n%s", config)
    group = []
    try:
        for item in connection:
            if isinstance(item, ismrmrd.Acquisition):
                group.append(item)
            elif item is None:
                break
        image = ismrmrd.Image.from_array(group[0].data.real.copy(), acquisition=group[0], transpose=False)
        connection.send_image([image, None])
        connection.send_logging(constants.MRD_LOGGING_INFO, "%d" % len(group))
    except Exception as e:
        connection.send_logging(constants.MRD_LOGGING_ERROR, traceback.format_exc())
    finally:
        connection.send_close()
""",
    )
    peer = connect(server(module_folders=(tmp_path,)).address)
    image, text = hold(peer, ConfigFile("older"), make_header(), make_acquisition(1), make_acquisition(2))
    assert text == "INFO     2"
    assert image.data.shape == (1, 1, 2, 8)
    assert peer.is_at_end(), "CLOSE came once, and nothing behind it"


# ---- endings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", ["raise ValueError('coil 3')", "raise SystemExit(3)", "import nosuchthing"])
def test_exception_of_a_module_reaches_the_client_with_traceback_then_close(server, connect, tmp_path, raised):
    source = f"def process(connection, config, metadata):\n    next(iter(connection))\n    {raised}"
    write_module(tmp_path, "failing", source)
    peer = connect(server(module_folders=(tmp_path,)).address)
    texts = hold(peer, ConfigFile("failing"), make_header(), *(make_acquisition(i) for i in range(50)))
    assert errors(texts) == texts[:1]
    assert texts[0].startswith("ERROR    failing failed: ")
    assert "failing.py" in texts[0]
    assert raised in texts[0]
    assert peer.is_at_end()


UNUSUAL = """
import asyncio
class Unspeakable(Exception):
    def __str__(self): raise RuntimeError("no words")
class Own(BaseException): pass
def process(connection, config, metadata):
    raise {}
"""


@pytest.mark.parametrize(
    "raised", ["KeyboardInterrupt", "asyncio.CancelledError", "GeneratorExit", "Own", "Unspeakable", "MemoryError"]
)
def test_unusual_exceptions_reach_the_client_too(server, connect, tmp_path, raised):
    write_module(tmp_path, "unusual", UNUSUAL.format(raised))
    (text,) = hold(connect(server(module_folders=(tmp_path,)).address), ConfigFile("unusual"), make_header())
    assert text.startswith("ERROR    unusual failed: ")
    assert raised.rpartition(".")[2] in text


@pytest.mark.parametrize("source", ["    yield 1", "    await connection"])
def test_process_that_would_not_run_is_refused(server, connect, tmp_path, source):
    word = "async " if "await" in source else ""
    write_module(tmp_path, "idle", f"{word}def process(connection, config, metadata):\n{source}\n")
    (text,) = hold(connect(server(module_folders=(tmp_path,)).address), ConfigFile("idle"), make_header())
    assert "plain function" in text


def test_peer_that_never_finishes_its_opening_is_ended(server, connect):
    peer = connect(server(limits=Limits(opening=0.2)).address)
    peer.send_raw(bytes_of(ConfigFile("null"))[:50])
    (text,) = peer.receive()
    assert text.startswith("ERROR")


def test_module_may_take_items_with_next(server, connect, tmp_path):
    source = """
def process(connection, config, metadata):
    first, second, third = next(connection), connection.next(), next(connection, "the end")
    connection.send_text(f"{first.scan_counter} {second.scan_counter} {third} {connection.next()}")
"""
    write_module(tmp_path, "stepwise", source)
    peer = connect(server(module_folders=(tmp_path,)).address)
    answer = hold(peer, ConfigFile("stepwise"), make_header(), make_acquisition(1), make_acquisition(2))
    assert answer == ["1 2 the end None"]


def test_arrays_are_written_for_whoever_develops_a_module(server, connect, tmp_path):
    source = "def process(connection, config, metadata):\n    connection.debug('k-space', next(connection).data)\n"
    write_module(tmp_path, "debugging", source)
    for folder in (tmp_path / "arrays", None):
        running = server(module_folders=(tmp_path,), debug_folder=folder)
        assert hold(connect(running.address), ConfigFile("debugging"), make_header(), make_acquisition(1)) == []
    (written,) = (tmp_path / "arrays").rglob("*.npy")
    np.testing.assert_array_equal(np.load(written), make_acquisition(1).data)


def test_error_arrives_although_the_client_has_sent_much_that_nobody_reads(server, connect, in_thread, tmp_path):
    write_module(tmp_path, "failing", "def process(connection, config, metadata): raise ValueError('early')")
    peer = connect(server(module_folders=(tmp_path,)).address)
    peer.send(ConfigFile("failing"), make_header())
    sending = in_thread(lambda: [peer.send(make_acquisition(i, 32, 4000)) for i in range(40)] and peer.send_close())
    text, *_ = peer.receive()
    assert "early" in text
    sending.result()


def test_module_that_cannot_be_loaded_tells_its_author_why(server, connect, tmp_path):
    write_module(tmp_path, "typo", "def process(connection, config, metadata):\n    retrun 3\n")
    (text,) = hold(connect(server(module_folders=(tmp_path,)).address), ConfigFile("typo"), make_header())
    assert text.startswith("ERROR")
    assert "typo.py" in text
    assert "line 2" in text


@pytest.mark.parametrize(
    ("opening", "ending"),
    [
        (b"", "a connection without data"),
        (bytes_of(close=True), "a session without config"),
        (bytes_of(ConfigFile("null"), close=True), "a dependency query"),
    ],
)
def test_peers_that_ask_for_nothing_end_quietly(server, connect, caplog, opening, ending):
    caplog.set_level(logging.INFO)
    running = server()
    peer = connect(running.address)
    peer.send_raw(opening)
    peer.sock.shutdown(1)
    assert peer.receive() == []
    running.stop()
    assert ending in log_text(caplog)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("cut", [1, 100, 350, -1])
def test_peer_that_dies_in_a_readout_leaves_one_clear_line(server, connect, caplog, cut):
    running = server()
    peer = connect(running.address)
    peer.send(ConfigFile("null"), make_header(), make_acquisition(1))
    peer.send_raw(bytes_of(make_acquisition(2))[:cut])
    peer.sock.shutdown(1)
    peer.reader.read()
    running.stop()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    assert lines[0].startswith("the stream ends after")
    assert "after 1 readouts" in lines[0]


def test_bytes_that_are_no_message_are_named_to_the_client(server, connect):
    peer = connect(server().address)
    peer.send(ConfigFile("null"), make_header())
    peer.send_raw(b"GET / HTTP/1.1\r\n\r\n")
    peer.sock.shutdown(1)
    (text,) = peer.receive()
    assert text.startswith("ERROR")
    assert "message identifier 17735" in text


def test_session_that_does_not_open_with_a_config_is_refused(server, connect):
    (text,) = hold(connect(server().address), make_acquisition())
    assert "opens with CONFIG_FILE or CONFIG_TEXT" in text


def test_silent_peer_is_ended_after_the_timeout(server, connect):
    peer = connect(server(timeout=0.2).address)
    peer.send(ConfigFile("null"), make_header())
    (text,) = peer.receive()
    assert "sent nothing for 0.2 s" in text


def test_peer_that_does_not_read_is_ended_after_the_timeout(server, connect, tmp_path, caplog):
    write_module(
        tmp_path,
        "flood",
        "import ismrmrd, numpy\n"
        "def process(connection, config, metadata):\n"
        "    image = ismrmrd.Image.from_array(numpy.zeros((2000, 2000), 'f4'))\n"
        "    while True: connection.send_image(image)\n",
    )
    running = server(module_folders=(tmp_path,), timeout=0.2)
    peer = connect(running.address)
    peer.send(ConfigFile("flood"), make_header(), make_acquisition())
    peer.reader.read(2)
    running.stop()
    assert "broke while sending" in log_text(caplog)


# ---- stopping ------------------------------------------------------------------------------------------------------

WAITING = """
import threading
started, go_on = threading.Event(), threading.Event()
def process(connection, config, metadata):
    connection.send_text("started")
    items = list(connection)
    connection.send_text(f"finished {len(items)}")
"""


def test_running_session_may_finish_within_the_grace_time(server, connect, tmp_path, in_thread):
    write_module(tmp_path, "waiting", WAITING)
    running = server(module_folders=(tmp_path,), server_options={"grace": PATIENCE})
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition())
    first = peer.reader.read(2 + 4 + len("started"))
    assert first.endswith(b"started")
    stopping = in_thread(running.stop)
    peer.send(make_acquisition())
    peer.send_close()
    assert peer.receive() == ["finished 2"]
    stopping.result()


def test_session_that_outlasts_the_grace_time_is_ended_with_a_word(server, connect, tmp_path):
    write_module(tmp_path, "waiting", WAITING)
    running = server(module_folders=(tmp_path,), server_options={"grace": 0.1})
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition())
    assert peer.reader.read(2 + 4 + len("started"))
    running.stop()
    (text,) = peer.receive()
    assert text.startswith("ERROR")
    assert "being stopped" in text


def test_too_many_sessions_are_refused_with_a_reason(server, connect, tmp_path):
    write_module(tmp_path, "waiting", WAITING)
    running = server(module_folders=(tmp_path,), limits=Limits(sessions=1))
    first, second = connect(running.address), connect(running.address)
    first.send(ConfigFile("waiting"), make_header())
    (text,) = second.receive()
    assert "limit" in text
    first.send_close()
    assert first.receive() == ["started", "finished 0"]


def test_no_module_sees_a_changed_process_environment(server, connect, tmp_path):
    """A session leaves the search path, the folder and the environment of the server as they were."""
    import os
    import sys

    before = list(sys.path), Path.cwd(), dict(os.environ)
    write_module(tmp_path, "echo", ECHO_CONFIG)
    hold(connect(server(module_folders=(tmp_path,)).address), ConfigFile("echo"), make_header())
    assert (list(sys.path), Path.cwd(), dict(os.environ)) == before


def test_images_are_received_and_sent(server, connect, tmp_path):
    write_module(
        tmp_path,
        "echoimages",
        "def process(connection, config, metadata):\n    for item in connection: connection.send_image(item)\n",
    )
    images = [make_image(i, dtype=dtype, meta={"n": str(i)}) for i, dtype in enumerate(["f4", "i2", "c8"])]
    back = hold(connect(server(module_folders=(tmp_path,)).address), ConfigFile("echoimages"), make_header(), *images)
    assert [image.meta["n"] for image in back] == ["0", "1", "2"]
    for sent, received in zip(images, back, strict=True):
        assert (sent.data == received.data).all()
        assert sent.data.dtype == received.data.dtype


def test_legacy_attributes_tell_where_data_are_saved(server, connect, tmp_path):
    write_module(
        tmp_path,
        "where",
        "def process(connection, config, metadata):\n"
        "    connection.send_text(f'{connection.savedata} {connection.savedataFolder} {connection.mrdFilePath}')\n"
        "    list(connection)\n",
    )
    running = server(module_folders=(tmp_path,), save_data=True)
    peer = connect(running.address)
    peer.send(ConfigFile("where"), make_header())
    peer.send_close()
    saved, folder, path = peer.receive()[0].split(" ")
    assert (saved, folder) == ("True", str(tmp_path / "saved"))
    assert path.startswith(folder)


# ---- summaries -----------------------------------------------------------------------------------------------------

FAILING = "def process(connection, config, metadata):\n    list(connection)\n    raise ValueError('coil 3\\nand 4')"
IMAGES = """
import ismrmrd, numpy
def process(connection, config, metadata):
    for item in connection:
        if isinstance(item, ismrmrd.Acquisition):
            connection.send_image(ismrmrd.Image.from_array(numpy.abs(item.data)))
        else:
            connection.send_waveform(item)
"""


@pytest.fixture
def summaries(server, tmp_path):
    """Start a server that keeps the summaries of its sessions: ``running, summaries = ...()``."""

    def start(**options):
        for name, source in (("failing", FAILING), ("images", IMAGES), ("waiting", WAITING)):
            write_module(tmp_path, name, source)
        ended = []
        return server(module_folders=(tmp_path,), ended=ended.append, **options), ended

    return start


def the_summary(running, ended, caplog):
    """The only summary, and its line in the log."""
    running.stop()
    (summary,) = ended
    (line,) = [record.getMessage() for record in caplog.records if hasattr(record, "summary")]
    assert line == str(summary)
    return summary, line


@pytest.mark.parametrize("processes", [False, True])
def test_summary_of_a_session_that_is_completed(summaries, connect, caplog, processes):
    caplog.set_level(logging.INFO)
    running, ended = summaries(server_options={"processes": processes})
    peer = connect(running.address)
    hold(peer, ConfigFile("images"), make_header(), *(make_acquisition(i) for i in range(3)), make_waveform(1))
    running.stop()
    (summary,) = ended
    assert (summary.session, summary.config, summary.module) == ("session-1", "images", "images")
    assert summary.peer == "{}:{}".format(*peer.sock.getsockname())
    assert (summary.outcome, summary.reason, summary.errors) == (Outcome.COMPLETED, "", 0)
    assert (summary.received_readouts, summary.received_waveforms, summary.received_images) == (3, 1, 0)
    assert (summary.sent_readouts, summary.sent_waveforms, summary.sent_images) == (0, 1, 3)
    # Each readout comes with 342 bytes besides its samples; each image has 206 besides its attributes and pixels.
    assert summary.received_bytes > 3 * (342 + 16 * 8)
    assert summary.sent_bytes > 3 * (206 + 16 * 4)
    assert 0 < summary.seconds < PATIENCE
    if not processes:
        assert "received 3 readouts, 1 waveforms, 0 images" in the_summary(running, ended, caplog)[1]


def test_summary_of_a_session_that_failed(summaries, connect, caplog):
    caplog.set_level(logging.INFO)
    running, ended = summaries()
    hold(connect(running.address), ConfigFile("failing"), make_header(), make_acquisition(1))
    summary, line = the_summary(running, ended, caplog)
    assert (summary.outcome, summary.reason) == (Outcome.FAILED, "failing failed: ValueError: coil 3")
    assert (summary.errors, summary.fallback_images, summary.sent_images) == (1, 1, 1)
    assert line.startswith("ended, failed: failing failed: ValueError: coil 3; client 127.0.0.1:")
    assert "sent 0 readouts, 0 waveforms, 1 images (1 of them fallback)" in line


def test_summary_of_a_client_that_is_gone(summaries, connect, caplog):
    caplog.set_level(logging.INFO)
    running, ended = summaries()
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition(1))
    assert peer.reader.read(2 + 4 + len("started"))
    peer.close()
    summary, _ = the_summary(running, ended, caplog)
    assert (summary.outcome, summary.module, summary.received_readouts) == (Outcome.CLIENT_GONE, "waiting", 1)


def test_summary_of_what_cannot_be_run(summaries, connect, caplog):
    caplog.set_level(logging.INFO)
    running, ended = summaries()
    hold(connect(running.address), ConfigFile("null"), make_header(), '{"parameters": 3}')
    summary, _ = the_summary(running, ended, caplog)
    assert summary.outcome is Outcome.REFUSED
    assert '"parameters"' in summary.reason


@pytest.mark.parametrize("processes", [False, True])
def test_summary_of_a_session_that_is_interrupted(summaries, connect, processes):
    running, ended = summaries(server_options={"grace": 0.0, "processes": processes})
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition(1))
    assert peer.reader.read(2 + 4 + len("started"))
    running.stop()
    (summary,) = ended
    assert (summary.outcome, summary.reason) == (Outcome.INTERRUPTED, "the server is being stopped")
    assert summary.received_readouts == 1


def test_summary_of_a_session_that_does_not_end_when_it_is_interrupted(summaries, connect, tmp_path, monkeypatch):
    monkeypatch.setattr("server.BREAK_OFF_WAIT", 0.1)
    go_on = tmp_path / "go on"
    source = "import pathlib, time\ndef process(connection, config, metadata):\n    connection.send_text('started')\n"
    source += f"    while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.02)"
    running, ended = summaries(server_options={"grace": 0.0})
    write_module(tmp_path, "stuck", source)
    peer = connect(running.address)
    peer.send(ConfigFile("stuck"), make_header(), make_acquisition(1))
    assert peer.reader.read(2 + 4 + len("started"))
    running.stop()
    go_on.touch()
    (summary,) = ended
    assert (summary.outcome, summary.module) == (Outcome.INTERRUPTED, "stuck")


def test_summary_of_a_process_that_is_killed(summaries, connect, caplog):
    caplog.set_level(logging.INFO)
    running, ended = summaries(server_options={"processes": True})
    peer = connect(running.address)
    peer.send(ConfigFile("waiting"), make_header(), make_acquisition(1))
    assert peer.reader.read(2 + 4 + len("started"))
    running.server.kill_sessions()
    assert peer.is_at_end()
    summary, line = the_summary(running, ended, caplog)
    assert (summary.outcome, summary.reason) == (Outcome.KILLED, "by signal 9 (SIGKILL)")
    assert (summary.config, summary.module) == ("waiting", "waiting")
    assert summary.peer == "{}:{}".format(*peer.sock.getsockname())
    assert line.startswith("ended, killed: by signal 9 (SIGKILL); client 127.0.0.1:")
    assert summary.seconds > 0


def test_threads_have_separate_send_and_receive_locks(connection_pair):
    """A thread that waits for data does not keep another from sending."""
    ours, theirs = connection_pair
    waiting = threading.Thread(target=lambda: list(ours), daemon=True)
    waiting.start()
    ours.send_text("not blocked")
    assert theirs.next() == "not blocked"
    theirs.send_close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


@pytest.fixture
def connection_pair(no_leaks):
    import socket

    pair = socket.socketpair()
    for sock in pair:
        sock.settimeout(PATIENCE)
    connections = [connection_module.Connection(sock) for sock in pair]
    yield connections
    for each in connections:
        each.close()


def test_header_of_an_older_ismrmrd_version_is_still_read(server, connect, tmp_path):
    """Elements that today's schema demands are absent, others are unknown."""
    write_module(
        tmp_path,
        "matrix",
        "def process(connection, config, metadata):\n"
        "    connection.send_text(str(metadata.encoding[0].encodedSpace.matrixSize.x)); list(connection)\n",
    )
    xml = header_xml(matrix=24).replace("<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz>", "<old>1</old>")
    assert "<old>" in xml
    peer = connect(server(module_folders=(tmp_path,)).address)
    data = xml.encode()
    peer.send(ConfigFile("matrix"))
    peer.send_raw(struct.pack("<HI", 3, len(data)) + data)
    peer.send_close()
    assert peer.receive() == ["24"]


def test_waveforms_reach_a_module(server, connect, tmp_path):
    write_module(
        tmp_path,
        "count",
        "import ismrmrd\n"
        "def process(connection, config, metadata):\n"
        "    n = sum(isinstance(item, ismrmrd.Waveform) for item in connection)\n"
        "    connection.send_text(f'{n} {connection.recvAcqs} {connection.recvWaveforms}')\n",
    )
    waveform = ismrmrd.Waveform.from_array(make_acquisition().data.real.astype("u4"))
    peer = connect(server(module_folders=(tmp_path,)).address)
    assert hold(peer, ConfigFile("count"), make_header(), waveform, make_acquisition(), waveform) == ["2 1 2"]
