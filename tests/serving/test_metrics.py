"""Prometheus metrics: what is counted, where it is served, and what stands in the way."""

import errno
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from wsgiref.simple_server import WSGIServer

import psutil
import pytest
from ismrmrd.serialization import ConfigFile
from prometheus_client.parser import text_string_to_metric_families

import client
from conftest import PATIENCE, header_xml, make_acquisition, make_header, write_module, write_mrd_file
from server_process import PROJECT, ServerProcess, wait_until
from serving import metrics as metrics_of_the_server
from serving.metrics import CONNECTIONS, Metrics, MetricsError
from serving.summary import Outcome, SessionSummary

FAILING = "def process(connection, config, metadata):\n    list(connection)\n    raise ValueError('broken')"


@pytest.fixture
def metrics(no_leaks):
    started = []

    def start(port=0):
        started.append(Metrics(port))
        return started[-1]

    yield start
    for each in started:
        each.close()


def read(port):
    """Samples by name and labels: ``{"mrd_bytes_total received": 3.0}``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def summary(outcome=Outcome.COMPLETED, **counts):
    made = SessionSummary("session-1", **counts)
    made.end(outcome)
    return made


def test_sessions_are_counted(metrics):
    counting = metrics()
    counting.count(summary(received_readouts=3, received_bytes=1000, sent_images=2, sent_bytes=50, seconds=0.2))
    counting.count(summary(Outcome.CLIENT_GONE, received_readouts=4, received_waveforms=1, seconds=2))
    counting.count(summary(Outcome.FAILED, sent_images=1, fallback_images=1, errors=2, seconds=0.05))
    found = read(counting.address[1])
    assert found["mrd_sessions_total completed"] == found["mrd_sessions_total client gone"] == 1
    assert found["mrd_sessions_total failed"] == 1
    assert found["mrd_sessions_total killed"] == found["mrd_sessions_total refused"] == 0
    assert "mrd_sessions_total running" not in found
    assert found["mrd_messages_total received readouts"] == 7
    assert found["mrd_messages_total received waveforms"] == 1
    assert found["mrd_messages_total sent images"] == 3
    assert (found["mrd_bytes_total received"], found["mrd_bytes_total sent"]) == (1000, 50)
    assert (found["mrd_fallback_images_total"], found["mrd_errors_total"]) == (1, 2)
    assert found["mrd_session_seconds_count"] == 3
    assert found["mrd_session_seconds_bucket 0.1"] == 1
    assert found["mrd_session_seconds_sum"] == pytest.approx(2.25)
    (info,) = [name for name in found if name.startswith("mrd_server_info")]
    assert sys.version.split()[0] in info


def test_idle_connections_keep_nobody_out_and_hold_no_handles(metrics):
    """Two hundred, of which each would hold a file handle and a thread; the oldest give way to the newer ones."""
    counting = metrics()
    idle = [socket.create_connection(counting.address, timeout=PATIENCE) for _ in range(200)]
    assert [each.recv(1) for each in idle[:-CONNECTIONS]] == [b""] * (200 - CONNECTIONS)
    assert wait_until(lambda: sum("process_request" in each.name for each in threading.enumerate()) <= CONNECTIONS)
    assert read(counting.address[1])["mrd_sessions_running"] == 0
    for each in idle:
        each.close()


def test_silent_connection_ends_by_itself(metrics, monkeypatch):
    monkeypatch.setattr(metrics_of_the_server._Handler, "timeout", 0.05)
    counting = metrics()
    with socket.create_connection(counting.address, timeout=PATIENCE) as silent:
        silent.sendall(b"GET /met")
        assert silent.recv(1) == b""


def test_connection_that_cannot_be_accepted_is_tried_again_after_a_pause(metrics, monkeypatch):
    """It would cost a whole core: the listener stays ready as long as no file handle is free."""
    pauses, tries, counting = [], [], metrics()
    accept = WSGIServer.get_request

    def fail_thrice(server):
        tries.append(len(pauses))
        if len(tries) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(WSGIServer, "get_request", fail_thrice)
    monkeypatch.setattr("time.sleep", pauses.append)
    assert read(counting.address[1])["mrd_sessions_running"] == 0
    assert tries[:4] == [0, 1, 2, 3]
    assert min(pauses) > 0


def test_what_runs_and_waits_is_asked_for_when_metrics_are_read(metrics):
    counting = metrics()
    running = [1, 2]
    counting.watch(running=lambda: len(running), waiting=lambda: 5)
    assert read(counting.address[1])["mrd_sessions_running"] == 2
    running.pop()
    found = read(counting.address[1])
    assert (found["mrd_sessions_running"], found["mrd_sessions_waiting"]) == (1, 5)


def test_several_at_once_count_apart(metrics):
    one, other = metrics(), metrics()
    one.count(summary())
    assert read(one.address[1])["mrd_sessions_total completed"] == 1
    assert read(other.address[1])["mrd_sessions_total completed"] == 0


def test_only_this_machine_is_served(metrics):
    port = metrics().address[1]
    listening = [each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_port_that_is_taken(no_leaks):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(MetricsError, match=rf"127.0.0.1:{port}: .*does another one listen there"):
            Metrics(port)


def test_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MetricsError, match="pip install prometheus-client"):
        Metrics(0)


def test_package_is_not_imported_unless_it_is_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, main; print('prometheus_client' in sys.modules)"],
        cwd=PROJECT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "False\n"


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_server_counts_its_sessions(tmp_path, mode, connect):
    write_module(tmp_path, "failing", FAILING)
    write_module(tmp_path, "dying", "import os, signal\ndef process(c, n, m): os.kill(os.getpid(), signal.SIGKILL)")
    running = ServerProcess("-d", "null", "--metrics", "0", *mode, cwd=tmp_path)
    try:
        port = int(re.search(r"http://127.0.0.1:(\d+)/metrics", running.log())[1])
        source = write_mrd_file(tmp_path / "raw.h5", [make_acquisition(i) for i in range(9)], xml=header_xml(matrix=16))
        for config in ("null", "failing", *(["dying"] if mode else [])):
            client.run(client.ClientOptions(source, port=running.port, config=config, output=tmp_path / "out.h5"))
        waiting = connect(("127.0.0.1", running.port))  # a further connection makes the server look after the others
        waiting.send(ConfigFile("null"), make_header(), make_acquisition())
        running.wait_for(f"session-{3 + len(mode)}  config 'null' runs")
        running.wait_for("session-2  ended")
        if mode:
            running.wait_for("session-3  ended, killed: by signal 9 (SIGKILL)")
        found = read(port)
        waiting.send_close()
    finally:
        assert running.stop() == 0
    assert found["mrd_sessions_total completed"] == found["mrd_sessions_total failed"] == 1
    assert found["mrd_sessions_total killed"] == len(mode)
    assert found["mrd_messages_total received readouts"] == 18
    assert found["mrd_fallback_images_total"] == found["mrd_messages_total sent images"] == 1
    assert found["mrd_errors_total"] == 1
    assert found["mrd_bytes_total received"] > 18 * 342
    assert found["mrd_sessions_running"] >= 1
    assert found["mrd_sessions_waiting"] == 0


def test_server_does_not_start_without_the_metrics_that_it_was_asked_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = subprocess.run(
            [sys.executable, PROJECT / "main.py", "-p", "0", "-d", "null", "--metrics", str(other.getsockname()[1])],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert "The server cannot start: metrics cannot be served at 127.0.0.1:" in done.stdout
