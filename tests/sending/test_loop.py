"""``client.py --realtime --loop``: a recording again and again, for demonstrations."""

import signal
import subprocess
import sys

import pytest

import client
from conftest import header_xml, make_acquisition, write_module, write_mrd_file
from server_process import PROJECT, wait_until

ONE_IMAGE = """
import ismrmrd
def process(connection, config, metadata):
    for item in connection:
        connection.send_image(ismrmrd.Image.from_array(abs(item.data), acquisition=item))
"""


def test_file_is_sent_until_the_client_is_ended_and_nothing_is_kept(server, tmp_path):
    write_module(tmp_path, "image", ONE_IMAGE)
    ended = []
    port = server(module_folders=(tmp_path,), ended=ended.append).port
    raw = write_mrd_file(tmp_path / "raw.h5", [make_acquisition(1)], xml=header_xml())
    command = [sys.executable, PROJECT / "client.py", "-p", str(port), "-c", "image", "--realtime", "--loop", raw]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as looping:
        assert wait_until(lambda: len(ended) >= 2)
        looping.send_signal(signal.SIGINT)
        said, _ = looping.communicate()
    assert looping.returncode == 130
    assert [(each.sent_images, each.outcome) for each in ended[:2]] == [(1, "completed")] * 2
    assert "received" in said
    assert "output" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.py", "raw.h5"]


def test_loop_ends_with_the_first_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(client, "configure_logging", lambda *_: None)  # else it would stay for other tests
    raw = write_mrd_file(tmp_path / "raw.h5", [make_acquisition(1)], xml=header_xml())
    arguments = client.parse_arguments(["-a", "nowhere.invalid", "--realtime", "--loop", str(raw)])
    assert client._run_command(arguments) == 1
    assert "nowhere.invalid" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--loop"], ["--realtime", "--loop", "-o", "out.h5"]])
def test_options_that_do_not_go_with_it_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        client.parse_arguments([*arguments, "raw.h5"])
    assert "--loop" in capsys.readouterr().err
