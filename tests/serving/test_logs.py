"""Log lines: the session of each, none forged by what comes in, text and JSON."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest
from ismrmrd.serialization import ConfigFile

from conftest import PATIENCE, make_acquisition, make_header, write_module
from mrdio import logs
from mrdio.commandline import log_to
from mrdio.logs import JsonFormatter, SessionFilter, TextFormatter, escaped
from recon.pipeline import threaded
from server_process import ServerProcess
from serving.summary import Outcome, SessionSummary
from solvers.team import Team

FORGERY = "all is well\n2026-01-01 00:00:00,000 INFO     session-9  forged\r\x1b[2Jgone\u2028too\u202ereversed"


class Log:
    """A logger with a handler of its own; `lines` are what it wrote."""

    def __init__(self, formatter):
        self.stream = io.StringIO(newline="")
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(formatter)
        self.handler.addFilter(SessionFilter())
        self.logger = logging.Logger("logger.of.the.test")  # noqa: LOG001 -- one that nobody else knows
        self.logger.addHandler(self.handler)

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def lines(self):
        return self.text.splitlines()


@pytest.fixture
def session():
    """The context of a session."""
    outside = logs.current_session()
    logs.enter_session("session-7")
    yield
    logs.enter_session(outside)


# ---- lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [True, False])
def test_text_line(sessions):
    log = Log(TextFormatter(sessions=sessions))
    log.logger.warning("%d readouts", 3)
    session = "-          " if sessions else ""
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} WARNING  {session}3 readouts\n", log.text)


def test_json_line():
    log = Log(JsonFormatter())
    log.logger.warning("%d readouts", 3, extra={"session": "session-2"})
    entry = json.loads(log.text)
    moment = datetime.fromisoformat(entry.pop("time"))
    assert moment.tzinfo is not None
    assert abs((datetime.now().astimezone() - moment).total_seconds()) < 60
    assert entry == {
        "level": "WARNING", "session": "session-2", "logger": "logger.of.the.test", "message": "3 readouts",
    }  # fmt: skip


@pytest.mark.parametrize("make", [TextFormatter, JsonFormatter])
def test_what_comes_in_cannot_forge_a_line(make):
    log = Log(make())
    log.logger.info("text from the client: %s", FORGERY)
    assert len(log.lines) == 1
    assert log.text.count("\n") == 1
    assert "\x1b" not in log.text
    assert "\u202e" not in log.text
    if make is JsonFormatter:
        assert json.loads(log.text)["message"].endswith(FORGERY)
    else:
        assert r"all is well\n2026" in log.text
        assert r"\r\x1b[2Jgone\u2028too\u202ereversed" in log.text


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_traceback_keeps_its_lines_and_none_of_them_passes_for_a_record(line_end):
    log = Log(TextFormatter(line_end, sessions=True))
    log.handler.terminator = line_end
    try:
        raise ValueError(FORGERY)
    except ValueError as error:
        log.logger.error("failed", exc_info=error)
    lines = log.text.split(line_end)
    assert lines[0].endswith(" ERROR    -          failed")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == ""
    assert all(line.startswith("    ") for line in lines[1:-1])
    assert r"    2026-01-01 00:00:00,000 INFO     session-9  forged\r\x1b[2Jgone\u2028too\u202ereversed" in lines
    assert log.text.count("\n") == log.text.count(line_end)


def test_traceback_is_one_string_of_json():
    log = Log(JsonFormatter())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.logger.exception("failed")
    (line,) = log.lines
    assert json.loads(line)["traceback"].endswith("ValueError: two\nlines")


def test_exception_that_cannot_say_what_it_is():
    class UnspeakableError(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    for formatter in (TextFormatter(), JsonFormatter()):
        log = Log(formatter)
        try:
            raise UnspeakableError
        except UnspeakableError:
            log.logger.exception("failed")
        assert "UnspeakableError" in log.text


@pytest.mark.parametrize("make", [lambda: TextFormatter(sessions=True), JsonFormatter])
@pytest.mark.parametrize(
    "extra",
    [{"session": object()}, {"session": None}, {"session": "a\nb"}, {"summary": 5}, {"summary": {"x": {1, 2}}},
     {"summary": {(1, 2): 3}}, {"traceback": None}, {"traceback": 3}],
)  # fmt: skip
def test_odd_facts_cost_no_line(make, extra):
    log = Log(make())
    log.logger.error("words", extra=extra)
    (line,) = log.lines
    assert "words" in line


@pytest.mark.parametrize("as_json", [False, True])
def test_console_without_the_characters_of_a_line(tmp_path, as_json):
    script = (
        "import logging, sys; from mrdio.commandline import log_to; "
        f"log_to(logging.StreamHandler(sys.stdout), False, None, as_json={as_json}); logging.error('config 心臓')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(logs.__file__).parents[1], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert r"config \u5fc3\u81d3" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("text", ["", "Größe 3 µs", "日本語", "a\\b"])
def test_what_is_printable_stays(text):
    assert escaped(text) == text


def test_half_a_character_can_be_written(tmp_path):
    logging_handlers = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    try:
        log_to(logging.NullHandler(), False, tmp_path / "log")
        logging.getLogger("x").error("half \udcff")
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers[:] = logging_handlers
        logging.getLogger().setLevel(level)
    assert r"half \udcff" in (tmp_path / "log").read_text("utf-8")


# ---- sessions of threads -------------------------------------------------------------------------------------------


def test_threads_of_a_session_carry_its_id(session, no_leaks):
    log = Log(TextFormatter(sessions=True))

    def work(items):
        for item in items:
            log.logger.info("works")
            yield item

    list(threaded(work(threaded(work([1]), 1, "first")), 1, "second"))
    with Team(2) as team:
        team.each(lambda _: log.logger.info("pooled"), 1)
    assert [line.split()[3] for line in log.lines] == ["session-7"] * 3


def test_sessions_at_once_do_not_mix(no_leaks):
    log = Log(JsonFormatter())
    barrier = threading.Barrier(3)

    def session(name):
        logs.enter_session(name)
        barrier.wait(PATIENCE)
        list(threaded(map(log.logger.info, [name]), 1, "child"))
        log.logger.info(name)

    started = [threading.Thread(target=session, args=(f"session-{number}",)) for number in range(3)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    entries = [json.loads(line) for line in log.lines]
    assert len(entries) == 6
    assert all(entry["session"] == entry["message"] for entry in entries)


def test_failure_of_a_thread_is_logged_once_and_not_printed(monkeypatch, no_leaks, capsys, caplog):
    monkeypatch.setattr(threading, "excepthook", logs.log_thread_failure)

    def fail():
        raise ValueError("in a thread")

    for target in (fail, sys.exit):
        thread = threading.Thread(target=target, name="worker")
        thread.start()
        thread.join()
    (record,) = caplog.records
    assert record.getMessage() == "thread worker failed"
    assert record.exc_info[0] is ValueError
    assert capsys.readouterr().err == ""


# ---- the server ----------------------------------------------------------------------------------------------------

TALKING = """
import contextvars, logging, threading
def process(connection, config, metadata):
    for item in connection: pass
    logging.getLogger("mine").info("from the module")
    log = logging.getLogger("mine").info
    thread = threading.Thread(target=contextvars.copy_context().run, args=(log, "from its thread"))
    thread.start()
    thread.join()
    connection.send_logging("WARNING", "to client and log\\nforged")
    raise ValueError("coil 3")
"""


@pytest.fixture
def talk(tmp_path, connect):
    """Run a server with these flags, hold a session that fails, return its log's lines."""

    def run(*flags):
        write_module(tmp_path, "talking", TALKING)
        running = ServerProcess("-d", "null", "-l", "log", "--no-fallback", *flags, cwd=tmp_path)
        peer = connect(("127.0.0.1", running.port))
        peer.send(ConfigFile("talking"), make_header(), make_acquisition(1))
        peer.send_close()
        peer.receive()
        peer.close()
        assert running.stop() == 0
        return (tmp_path / "log").read_bytes().decode().splitlines()

    return run


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_log_of_a_session_for_people(talk, mode):
    lines = talk(*mode)
    words = {
        "Listening on": "-", "connected from": "session-1", "config 'talking' runs talking": "session-1",
        "from the module": "session-1", "from its thread": "session-1", "to client and log\\nforged": "session-1",
        "talking failed: ValueError: coil 3": "session-1", "ended, failed:": "session-1", "The server has ended": "-",
    }  # fmt: skip
    for word, session in words.items():
        found = [line for line in lines if word in line and "ended, failed" in line] or [
            line for line in lines if word in line
        ]
        assert found, word
        assert found[0].split()[3] == session, word
    assert sum("Traceback (most recent call last)" in line for line in lines) == 1
    (summary,) = [line for line in lines if " ended, " in line]
    assert "client 127.0.0.1:" in summary
    assert "config 'talking', talking; received 1 readouts" in summary


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_log_of_a_session_for_machines(talk, mode):
    entries = [json.loads(line) for line in talk("--log-json", "--crlf", *mode)]
    mine = [entry for entry in entries if entry["session"] == "session-1"]
    assert {"from the module", "from its thread", "to client and log\nforged"} <= {entry["message"] for entry in mine}
    (failure,) = [entry for entry in entries if "traceback" in entry]
    assert failure["traceback"].endswith("ValueError: coil 3")
    assert "\n" not in failure["message"]
    (summary,) = [entry for entry in entries if "outcome" in entry]
    assert (summary["outcome"], summary["module"], summary["received_readouts"]) == ("failed", "talking", 1)
    assert summary["peer"].startswith("127.0.0.1:")
    assert summary["level"] == "INFO"
    assert summary == mine[-1]
    assert all(datetime.fromisoformat(entry["time"]).tzinfo for entry in entries)


def test_crlf_with_json(talk, tmp_path):
    talk("--log-json", "-r")
    text = (tmp_path / "log").read_bytes()
    assert text.count(b"\r\n") == text.count(b"\n") > 3


# ---- summaries -----------------------------------------------------------------------------------------------------


def test_summary_survives_the_way_from_process_to_process():
    summary = SessionSummary("session-1", "127.0.0.1:5", "con\nfig", "module", received_bytes=2**40, seconds=1.5)
    summary.end(Outcome.KILLED, "by signal 9\nand more")
    back = SessionSummary.from_json(summary.to_json())
    assert back == summary
    assert back.reason == "by signal 9"
    assert str(back).startswith("ended, killed: by signal 9; client 127.0.0.1:5, config 'con\\nfig', module;")
