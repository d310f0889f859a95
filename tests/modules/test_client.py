"""The client: what it sends, what it keeps, and what its user reads when something is wrong."""

import json
import logging
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer

import client
from conftest import (
    PATIENCE,
    bytes_of,
    header_xml,
    make_acquisition,
    make_header,
    make_image,
    make_waveform,
    write_module,
    write_mrd_file,
)
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from sending import clientsession

PROJECT = Path(client.__file__).parent

IMAGES_MODULE = """
import ismrmrd, numpy
def process(connection, config, metadata):
    for item in connection:
        if isinstance(item, ismrmrd.Acquisition):
            image = ismrmrd.Image.from_array(numpy.abs(item.data), acquisition=item)
            image.image_index = item.scan_counter
            connection.send_image(image)
"""


@pytest.fixture
def raw(tmp_path):
    return write_mrd_file(tmp_path / "raw.h5", [make_acquisition(i) for i in range(5)], xml=header_xml())


@pytest.fixture
def images_server(server, tmp_path):
    write_module(tmp_path, "images", IMAGES_MODULE)
    return server(module_folders=(tmp_path,))


def run(raw, running, **options):
    return client.run(client.ClientOptions(raw, port=running.port, **{"config": "images", **options}))


class PeerServer:
    """A server made of the ismrmrd package: records one session, answers with what it is given."""

    def __init__(self, *answers, close=True):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received = []
        self.answers, self.close = answers, close
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE)
        with sock, sock.makefile("rb") as reader, sock.makefile("wb") as writer:
            self.received = list(ProtocolDeserializer(reader).deserialize())
            serializer = ProtocolSerializer(writer)
            for answer in self.answers:
                serializer.serialize(answer)
            if self.close:
                serializer.close()

    def join(self):
        self.thread.join(PATIENCE)
        self.listener.close()


@pytest.fixture
def peer_server():
    servers = []

    def start(*answers, **options):
        servers.append(PeerServer(*answers, **options))
        return servers[-1]

    yield start
    for each in servers:
        each.join()


def test_images_are_kept_with_header_in_the_named_group(raw, images_server, tmp_path):
    result = run(raw, images_server, output=tmp_path / "out.h5", out_group="dataset")
    assert result.sent == {"acquisitions": 5, "waveforms": 0, "images": 0}
    assert result.received == {"acquisitions": 0, "waveforms": 0, "images": 5}
    assert result.errors == []
    with MrdReader(tmp_path / "out.h5") as out:
        assert out.group == "dataset"
        assert out.header_xml == header_xml()
        for number, image in enumerate(out.images()):
            np.testing.assert_array_equal(image.data[0, 0], np.abs(make_acquisition(number).data))


def test_several_runs_share_an_output_file_named_after_the_input(raw, images_server):
    first, second = run(raw, images_server), run(raw, images_server)
    assert first.output == second.output == raw.with_name("raw_results.h5")
    assert first.group != second.group
    for each in (first, second):
        with MrdReader(each.output, each.group) as out:
            assert out.image_count == 5


def test_sent_messages_are_what_the_file_holds(raw, peer_server):
    peer = peer_server()
    result = run(raw, peer)
    peer.join()
    assert result.errors == []
    config, header, *readouts = peer.received
    assert (type(config), str(config)) == (ConfigFile, "images")
    assert header == make_header()
    assert readouts == [make_acquisition(i) for i in range(5)]


def test_waveforms_are_sent_in_time_order_when_asked(tmp_path, peer_server):
    items = [make_acquisition(i) for i in range(4)] + [make_waveform(i, time=1005 + 10 * i) for i in range(5)]
    raw = write_mrd_file(tmp_path / "raw.h5", items, xml=header_xml())
    for asked, expected in ((False, "AAAA"), (True, "AWAWAWAWW")):
        peer = peer_server()
        run(raw, peer, send_waveforms=asked)
        peer.join()
        kinds = "".join("A" if isinstance(item, ismrmrd.Acquisition) else "W" for item in peer.received[2:])
        assert kinds == expected


def test_images_of_a_file_are_sent_with_their_attributes(tmp_path, peer_server):
    images = [make_image(i, series=series, meta={"n": str(i)}) for i, series in enumerate([0, 0, 2, 10])]
    source = write_mrd_file(tmp_path / "images.h5", images, xml=header_xml())
    peer = peer_server()
    run(source, peer)
    peer.join()
    assert [image.meta["n"] for image in peer.received[2:]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("closed", [True, False])
def test_stream_files_are_read_with_or_without_close(tmp_path, peer_server, closed):
    source = tmp_path / "raw.mrd"
    source.write_bytes(bytes_of(ConfigFile("x"), make_header(), *(make_acquisition(i) for i in range(3)), close=closed))
    peer = peer_server()
    result = run(source, peer, output=tmp_path / "out.h5")
    peer.join()
    assert result.errors == []
    assert peer.received[1:] == [make_header(), *(make_acquisition(i) for i in range(3))]


def test_truncated_stream_file_is_an_error_that_names_it(tmp_path, images_server):
    source = tmp_path / "raw.mrd"
    source.write_bytes(bytes_of(make_header(), make_acquisition(0), make_acquisition(1))[:-5])
    result = run(source, images_server, output=tmp_path / "out.h5")
    assert len(result.errors) >= 1
    assert "raw.mrd" in result.errors[0]
    assert "breaks off" in result.errors[0]


# ---- config and JSON parameters --------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_local_json_file_is_sent_as_parameters(raw, peer_server, in_folder):
    (in_folder / "images.json").write_text('{"parameters": {"strength": 2}}')
    peer = peer_server()
    run(raw, peer)
    peer.join()
    assert json.loads(peer.received[2]) == {"parameters": {"strength": 2}}


@pytest.mark.parametrize("ignore", [True, False])
def test_modules_named_in_json_are_left_out_when_asked(raw, peer_server, in_folder, ignore):
    parameters = {"parameters": {"config": "other", "customconfig": "third", "strength": 2}}
    (in_folder / "images.json").write_text(json.dumps(parameters))
    peer = peer_server()
    run(raw, peer, ignore_json_config=ignore)
    peer.join()
    sent = json.loads(peer.received[2])["parameters"]
    assert sent == ({"strength": 2} if ignore else parameters["parameters"])


def test_json_parameters_of_the_file_are_sent(raw, peer_server):
    from mrdio.mrdfile import MrdWriter

    with MrdWriter(raw) as writer:
        writer.write_json_parameters('{"parameters": {"a": 1}}')
    peer = peer_server()
    run(raw, peer)
    peer.join()
    assert json.loads(peer.received[2]) == {"parameters": {"a": 1}}


@pytest.mark.parametrize(
    ("places", "sent"), [("here file beside", "here"), ("file beside", "file"), ("beside", "beside"), ("", None)]
)
def test_json_parameters_are_looked_for_here_in_the_file_and_beside_the_client(
    raw, peer_server, in_folder, monkeypatch, places, sent
):
    from mrdio.mrdfile import MrdWriter

    monkeypatch.setattr(clientsession, "BESIDE_CLIENT", in_folder / "client")
    (in_folder / "client").mkdir()
    for place, folder in (("here", in_folder), ("beside", in_folder / "client")):
        if place in places:
            (folder / "images.json").write_text(json.dumps({"parameters": {"from": place}}))
    if "file" in places:
        with MrdWriter(raw) as writer:
            writer.write_json_parameters('{"parameters": {"from": "file"}}')
    peer = peer_server()
    run(raw, peer)
    peer.join()
    texts = [json.loads(item)["parameters"]["from"] for item in peer.received[2:] if isinstance(item, str)]
    assert texts == ([sent] if sent else [])


def test_json_files_of_our_modules_are_found_from_any_folder(in_folder):
    options = client.ClientOptions(Path("raw.h5"), config="analyzeflow")
    assert json.loads(clientsession.json_parameters(options, None))["parameters"]["venc"] == 0


def test_broken_json_file_is_an_error_that_names_it(raw, in_folder):
    (in_folder / "images.json").write_text('{"parameters": ')
    with pytest.raises(client.ClientError, match=r"images\.json cannot be read"):
        client.run(client.ClientOptions(raw, config="images", port=1))


def test_local_config_file_is_sent_as_text(raw, peer_server, tmp_path):
    (tmp_path / "config.xml").write_text("<configuration/>")
    peer = peer_server()
    run(raw, peer, config_file=tmp_path / "config.xml")
    peer.join()
    assert peer.received[0] == "<configuration/>"


# ---- what the server says, and what goes wrong -----------------------------------------------------------------------


def test_server_messages_are_logged_by_severity(raw, peer_server, caplog):
    caplog.set_level(logging.DEBUG)
    peer = peer_server("INFO     all is well", "WARNING  mind the gap", "DEBUG    detail", "no severity")
    assert run(raw, peer).errors == []
    name = clientsession.__name__
    said = {record.getMessage(): record.levelname for record in caplog.records if record.name == name}
    assert said["server: all is well"] == "INFO"
    assert said["server: mind the gap"] == "WARNING"
    assert said["server: detail"] == "DEBUG"
    assert said["server: no severity"] == "INFO"


def test_error_message_of_the_server_is_an_error(raw, peer_server):
    result = run(raw, peer_server("ERROR    the coil is broken\nTraceback..."))
    assert result.errors == ["the coil is broken"]


def test_traceback_from_the_server_keeps_its_lines(raw, server, tmp_path):
    write_module(tmp_path, "failing", "def process(connection, config, metadata):\n    raise ValueError('no coil')")
    running = server(module_folders=(tmp_path,))
    lines = command("-p", running.port, "-c", "failing", raw, cwd=tmp_path).stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if "failed: ValueError: no coil" in line)
    assert lines[first + 1] == "    Traceback (most recent call last):"
    assert any(line.startswith("    ") and "raise ValueError('no coil')" in line for line in lines)
    assert not any("\\n" in line for line in lines)


def test_misspelt_config_names_the_closest_module_at_the_client(raw, images_server, caplog, tmp_path):
    write_module(tmp_path, "helpers", "def something_else(): pass")
    write_module(tmp_path, "broken", "def process(:")
    assert run(raw, images_server, config="imagse").errors == []
    (said,) = [record.getMessage() for record in caplog.records if "no module" in record.getMessage()]
    assert "did you mean 'images'? known are images, null, savedataonly, savedep" in said


def test_strict_makes_the_default_config_an_error(raw, images_server, tmp_path):
    done = command("-p", images_server.port, "-c", "imagse", "--strict", "-o", "out.h5", raw, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: there is no module 'imagse'" in done.stderr
    assert not (tmp_path / "out.h5").exists()
    done = command("-p", images_server.port, "-c", "images", "--strict", "-o", "out.h5", raw, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_session_without_close_is_an_error_and_its_images_are_kept(raw, peer_server, tmp_path):
    result = run(raw, peer_server(make_image(1), close=False), output=tmp_path / "out.h5")
    assert len(result.errors) == 1
    assert "without CLOSE" in result.errors[0]
    with MrdReader(tmp_path / "out.h5") as out:
        assert out.image_count == 1


def test_silent_server_is_given_up_after_the_timeout(raw, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = client.run(client.ClientOptions(raw, port=listener.getsockname()[1], timeout=0.2))
    assert "sent nothing for 0.2 s" in result.errors[0]


def test_refused_connection_is_tried_again_until_the_server_is_there(raw, tmp_path, in_thread):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running = in_thread(client.run, client.ClientOptions(raw, port=port, config="null"))
    refused_once = threading.Event()
    refused_once.wait(0.3)
    with socket.create_server(("127.0.0.1", port)) as listener:
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as reader, sock.makefile("wb") as writer:
            received = list(ProtocolDeserializer(reader).deserialize())
            ProtocolSerializer(writer).close()
    assert len(received) == 7
    assert running.result().errors == []


def test_nobody_listening_is_an_error(raw, monkeypatch):
    monkeypatch.setattr(clientsession, "CONNECT_PATIENCE", 0.1)
    with pytest.raises(client.ClientError, match="no server answers at localhost:1"):
        client.run(client.ClientOptions(raw, port=1))


@pytest.mark.parametrize("obstacle", ["text", "folder", "group", "images"])
def test_output_that_cannot_take_the_images_is_an_error(raw, images_server, tmp_path, obstacle):
    output = tmp_path / "out.h5"
    if obstacle == "text":
        output.write_text("no HDF5")
    elif obstacle == "folder":
        output.mkdir()
    else:
        with h5py.File(output, "w") as file:
            file["g" if obstacle == "group" else "g/xml"] = 1 if obstacle == "group" else [1]
            if obstacle == "images":
                file["g/image_0"] = 1
    options = {"output": output, "out_group": "g"}
    if obstacle in ("text", "folder"):
        with pytest.raises(MrdFileError, match=r"out\.h5 cannot be written"):
            run(raw, images_server, **options)
    elif obstacle == "group":
        result = run(raw, images_server, **options)
        assert "could not be kept" in result.errors[0]
    else:  # a further group is found
        assert run(raw, images_server, **options).errors == []


def test_output_that_another_client_writes_is_an_error(raw, images_server, tmp_path):
    other = "import h5py, sys; file = h5py.File('out.h5', 'w'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", other], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(MrdFileError, match="cannot be written"):
            run(raw, images_server, output=tmp_path / "out.h5")


def counts(path):
    with h5py.File(path) as file:
        return {group: len(file[group]["image_0/data"]) for group in file}


def test_images_that_join_an_earlier_group_are_told_of(raw, images_server, tmp_path, caplog):
    for expected in (5, 10):
        caplog.clear()
        run(raw, images_server, output=tmp_path / "out.h5", out_group="g")
        assert counts(tmp_path / "out.h5") == {"g": expected}
        told = [record.getMessage() for record in caplog.records if "--overwrite" in record.getMessage()]
        assert len(told) == (expected > 5)


def test_overwrite_replaces_that_group_alone(raw, images_server, tmp_path, caplog):
    output = tmp_path / "out.h5"
    run(raw, images_server, output=output, out_group="other")
    for _ in range(2):
        assert run(raw, images_server, output=output, out_group="g", overwrite=True).errors == []
        assert counts(output) == {"g": 5, "other": 5}
    assert "already" not in caplog.text


def test_failed_run_does_not_overwrite(raw, server, tmp_path):
    write_module(tmp_path, "images", IMAGES_MODULE)
    write_module(tmp_path, "failing", IMAGES_MODULE + "    raise ValueError('no coil')\n")
    running, output = server(module_folders=(tmp_path,)), tmp_path / "out.h5"
    run(raw, running, output=output, out_group="g")
    before = output.read_bytes()
    done = command("-p", running.port, "-c", "failing", "-o", "out.h5", "-G", "g", "--overwrite", raw, cwd=tmp_path)
    assert done.returncode == 1
    assert output.read_bytes() == before
    (part,) = tmp_path.glob("out.part-*.mrd")
    assert part.name in done.stderr
    line = shlex.split(done.stderr.splitlines()[-1].rpartition(": ")[2])
    assert line[-1] == "--overwrite"
    assert subprocess.run(line, check=False).returncode == 0
    assert counts(output) == {"g": 5}
    assert output.read_bytes() != before


def test_overwrite_leaves_raw_data_alone(raw, images_server, tmp_path):
    other = Path(shutil.copy(raw, tmp_path / "other.h5"))
    with pytest.raises(MrdFileError, match="'dataset' holds raw data: it is not replaced"):
        run(raw, images_server, output=other, out_group="dataset", overwrite=True)
    assert other.read_bytes() == raw.read_bytes()


def test_session_without_images_leaves_no_file(raw, images_server, tmp_path):
    assert run(raw, images_server, config="null", output=tmp_path / "out.h5").errors == []
    assert not (tmp_path / "out.h5").exists()


def test_texts_of_a_server_do_not_steer_the_terminal(raw, peer_server, caplog):
    run(raw, peer_server("WARNING  \x1b[2Jcleared"))
    assert "\x1b" not in caplog.text
    assert "cleared" in caplog.text


def test_json_file_with_a_byte_order_mark_is_read(raw, peer_server, in_folder):
    (in_folder / "images.json").write_text('{"parameters": {}}', "utf-8-sig")
    peer = peer_server()
    run(raw, peer)
    peer.join()
    assert json.loads(peer.received[2]) == {"parameters": {}}


def test_output_over_input_is_refused(raw):
    with pytest.raises(client.ClientError, match="overwrite the input"):
        client.run(client.ClientOptions(raw, output=raw))


def test_missing_and_unsuitable_inputs_are_named(tmp_path):
    with pytest.raises(MrdFileError, match=r"nothere\.h5 cannot be read"):
        client.run(client.ClientOptions(tmp_path / "nothere.h5"))
    (tmp_path / "text.h5").write_text("this is no MRD file")
    with pytest.raises(MrdFileError, match=r"text\.h5 is no MRD \.h5 file"):
        client.run(client.ClientOptions(tmp_path / "text.h5"))


def test_transposed_images_are_fixed_when_asked(raw, peer_server, tmp_path):
    images = [make_image(0, (1, 1, 4, 6)), make_image(1, (1, 1, 6, 4)), make_image(2, (1, 1, 4, 6))]
    for fix, counts in ((True, [3]), (False, [2, 1])):
        output = tmp_path / f"out{fix}.h5"
        run(raw, peer_server(*images), output=output, fix_transposed=fix)
        with MrdReader(output) as out:
            kept = [list(out.images(name)) for name in out.image_groups]
        assert [len(each) for each in kept] == counts
        if fix:
            np.testing.assert_array_equal(kept[0][1].data, images[1].data.swapaxes(2, 3))
            assert kept[0][1].getHead().matrix_size[0] == 6


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*arguments, cwd):
    line = [sys.executable, PROJECT / "client.py", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_command_succeeds_and_counts(raw, images_server, tmp_path):
    done = command("-p", images_server.port, "-c", "images", "-o", "out.h5", "-G", "g", "--mrd2gif", raw, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sent     5 acquisitions, 0 waveforms, 0 images" in done.stdout
    assert "received 0 acquisitions, 0 waveforms, 5 images" in done.stdout
    assert (tmp_path / "out_g_image_0.gif").is_file()


def test_command_fails_in_one_line_when_the_module_fails(raw, server, tmp_path):
    write_module(tmp_path, "failing", "def process(connection, config, metadata): raise ValueError('no coil')")
    running = server(module_folders=(tmp_path,))
    done = command("-p", running.port, "-c", "failing", "--quiet", raw, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: failing failed: ValueError: no coil"


def test_command_fails_in_one_line_without_input(tmp_path):
    done = command("nothere.h5", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: nothere.h5 cannot be read: No such file or directory\n"


def test_config_on_the_command_line_wins_over_json(raw, images_server, tmp_path):
    (tmp_path / "images.json").write_text('{"parameters": {"config": "null"}}')
    done = command("-p", images_server.port, "-c", "images", "-o", "out.h5", raw, cwd=tmp_path)
    assert "5 images" in done.stdout


def test_help_shows_no_default_that_is_none(capsys):
    with pytest.raises(SystemExit):
        client.parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert "default: None" not in shown
    assert "default: False" not in shown
    assert "(default: 9002)" in shown


def test_log_file_is_written(raw, images_server, tmp_path):
    done = command("-p", images_server.port, "-c", "images", "--quiet", "-l", "logs/c.log", raw, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "logs" / "c.log").is_file()
