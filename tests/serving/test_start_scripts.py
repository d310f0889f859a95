"""The scripts that a scanner starts the server with, in folders whose names have spaces."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ismrmrd.serialization import ConfigFile

import main
from conftest import PATIENCE, Peer, make_acquisition, make_header

PROJECT = Path(main.__file__).parent
PLAIN = "start-fire-python-server.sh"
SAVING = "start-fire-python-server-with-data-storage.sh"
SYNCING = "sync-code-and-start-fire-python-server.sh"
SCRIPTS = (PLAIN, SAVING, SYNCING)


@pytest.fixture
def installed(tmp_path):
    """Folder with the scripts, and with a main.py that writes down how it was started."""
    code = tmp_path / "opt code" / "server"
    code.mkdir(parents=True)
    for name in SCRIPTS:
        shutil.copy(PROJECT / name, code)
    (code / "main.py").write_text("import os, sys; print('started', os.getcwd(), os.getpid(), sys.argv[1:])\n")
    return code


def run(script, *arguments, code, cwd, shell="sh", **variables):
    """Run a script to its end; returns its own output, and its process identifier."""
    environment = {"MRD_CODE_DIR": str(code), "PYTHON": sys.executable, "PATH": os.environ["PATH"]} | variables
    process = subprocess.Popen(
        [shell, code / script, *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err, process.pid


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_log_takes_the_output_and_exec_leaves_no_shell(installed, tmp_path, shell):
    log = tmp_path / "share" / "my log" / "server.log"  # its folder is made
    code, out, err, pid = run(PLAIN, str(log), code=installed, cwd=tmp_path, shell=shell)
    assert (code, out, err) == (0, "", "")
    assert log.read_text() == f"started {installed} {pid} {['-v', '-r', '-H', '0.0.0.0', '-p', '9002']}\n"
    run(PLAIN, str(log), code=installed, cwd=tmp_path, shell=shell, PORT="9010")
    assert log.read_text().count("started") == 2  # added to, not overwritten
    assert "'9010'" in log.read_text()


def test_a_relative_log_lies_where_the_script_was_started(installed, tmp_path):
    run(PLAIN, "server.log", code=installed, cwd=tmp_path)
    assert "started" in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [[], [""]])
def test_without_a_log_output_is_discarded(installed, tmp_path, script, arguments):
    (tmp_path / "share").mkdir()
    before = set(tmp_path.rglob("*"))
    code, out, err, _ = run(script, *arguments, code=installed, cwd=tmp_path, MRD_SHARE_CODE_DIR="share")
    assert (code, out, err) == (0, "", "")
    assert set(tmp_path.rglob("*")) == before


def test_an_error_before_logging_starts_is_in_the_log(installed, tmp_path):
    (installed / "main.py").write_text("import nothing_of_that_name\n")
    code, *_ = run(PLAIN, "server.log", code=installed, cwd=tmp_path)
    assert code == 1
    assert "nothing_of_that_name" in (tmp_path / "server.log").read_text()


def test_wrong_folders_fail(installed, tmp_path):
    code, _, err, _ = run(PLAIN, code=installed, cwd=tmp_path, MRD_CODE_DIR=str(tmp_path / "nowhere"))
    assert code != 0
    assert "nowhere" in err


@pytest.mark.parametrize("folder", [None, "saved data"])
def test_data_storage(installed, tmp_path, folder):
    variables = {} if folder is None else {"MRD_SAVED_DATA_DIR": folder}
    run(SAVING, "server.log", code=installed, cwd=tmp_path, **variables)
    expected = ["-p", "9002", "-s", "-S", folder or "/tmp/share/saved_data"]
    assert str(expected)[1:] in (tmp_path / "server.log").read_text()


def test_the_servers_own_command_line_takes_what_the_scripts_pass():
    arguments = main.parse_arguments(["-v", "-r", "-H", "0.0.0.0", "-p", "9002", "-s", "-S", "/tmp/share/saved_data"])
    assert (arguments.host, arguments.port, arguments.savedata, arguments.crlf) == ("0.0.0.0", 9002, True, True)


def test_sync_replaces_adds_and_keeps(installed, tmp_path):
    share = tmp_path / "share" / "my code"
    (share / "configs").mkdir(parents=True)
    (share / "main.py").write_text("print('the new one')\n")
    (share / "configs" / ".hidden file").write_text("x")
    (share / SYNCING).write_text("echo the shell ran what was copied over it\n" * 200)
    (installed / "kept.py").write_text("kept")
    code, out, err, _ = run(SYNCING, "server.log", code=installed, cwd=tmp_path, MRD_SHARE_CODE_DIR=str(share))
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "server.log").read_text() == "the new one\n"
    assert (installed / "configs" / ".hidden file").read_text() == "x"
    assert (installed / "kept.py").read_text() == "kept"


def test_sync_without_a_shared_folder_starts_what_is_installed(installed, tmp_path):
    share = str(tmp_path / "nothing")
    code, _, err, _ = run(SYNCING, "server.log", code=installed, cwd=tmp_path, MRD_SHARE_CODE_DIR=share)
    assert code == 0
    assert share in err
    assert "started" in (tmp_path / "server.log").read_text()


def test_default_paths_are_those_that_scanners_use():
    texts = {name: (PROJECT / name).read_text() for name in SCRIPTS}
    assert "/opt/code/python-ismrmrd-server" in texts[PLAIN]
    assert "/opt/code/python-ismrmrd-server" in texts[SYNCING]
    assert "/tmp/share/code" in texts[SYNCING]
    assert "/tmp/share/saved_data" in texts[SAVING]
    for name in SCRIPTS:
        assert os.access(PROJECT / name, os.X_OK)
        assert b"\r" not in (PROJECT / name).read_bytes()


def test_the_real_server_starts_saves_and_ends_on_a_signal(tmp_path, no_leaks):
    log, saved = tmp_path / "server.log", tmp_path / "saved data"
    environment = {"MRD_CODE_DIR": str(PROJECT), "PYTHON": sys.executable, "PORT": "0"}
    environment["MRD_SAVED_DATA_DIR"] = str(saved)
    process = subprocess.Popen(["sh", PROJECT / SAVING, log], cwd=tmp_path, env=os.environ | environment)
    try:
        deadline, found = time.monotonic() + PATIENCE, None
        while found is None and time.monotonic() < deadline and process.poll() is None:
            found = re.search(rb"Listening on 0\.0\.0\.0:(\d+)", log.read_bytes() if log.exists() else b"")
        assert found, log.read_bytes()
        peer = Peer(socket.create_connection(("127.0.0.1", int(found[1])), timeout=PATIENCE))
        peer.send(ConfigFile("null"), make_header(), make_acquisition())
        peer.send_close()
        assert peer.receive() == []
        peer.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(2 * PATIENCE) == 0
    assert b"The server has ended" in log.read_bytes()
    assert log.read_bytes().count(b"\r\n") == log.read_bytes().count(b"\n") > 0
    assert len(list(saved.glob("*.h5"))) == 1
