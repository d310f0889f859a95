"""Our server and client against programs that are not ours: the packages `ismrmrd` and `gadgetron`."""

import json
import socket
import subprocess
import sys
import threading

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer

import client
from client import ClientOptions
from conftest import PATIENCE, Peer, bytes_of, make_acquisition, make_header, make_image, make_waveform, write_module
from conftest import write_mrd_file as package_file

READOUTS = [make_acquisition(number, channels=3, samples=16, dimensions=2) for number in range(20)]
WAVEFORMS = [make_waveform(number, time=1000 + 40 * number) for number in range(5)]
IMAGES = [
    make_image(0, meta={"DataRole": "Image", "Größe": ["1", "µ"]}),
    make_image(1, (3, 2, 4, 5), "u2"),
    make_image(2, (1, 1, 7, 5), "c8", series=1),
    make_image(3, (1, 1, 4, 4), "f8", series=2),
]

# ---- our server, their client --------------------------------------------------------------------------------------

ECHO = """
def process(connection, config, metadata):
    for item in connection:
        if type(item).__name__ == "Image":
            connection.send_image(item)
        elif type(item).__name__ == "Acquisition":
            connection.send_acquisition(item)
        else:
            connection.send_waveform(item)
"""

SUM = """
import ismrmrd
import numpy as np

import constants

def process(connection, config, metadata):
    connection.send_logging(constants.MRD_LOGGING_INFO, f"{config} {metadata.encoding[0].encodedSpace.matrixSize.x}")
    rows = [item for item in connection if isinstance(item, ismrmrd.Acquisition)]
    data = np.stack([np.abs(row.data).sum(axis=0) for row in rows]).astype(np.float32)
    connection.send_image([None, ismrmrd.Image.from_array(data, acquisition=rows[0], image_index=1)])
    connection.send_close()
"""


@pytest.fixture
def ours(server, tmp_path):
    write_module(tmp_path, "echo", ECHO)
    write_module(tmp_path, "summing", SUM)
    return server(module_folders=(tmp_path,))


def test_null_takes_everything_and_gives_nothing(ours, connect):
    peer = connect(ours.address)
    peer.send(ConfigFile("null"), make_header(), *READOUTS, *WAVEFORMS, *IMAGES)
    peer.send_close()
    assert peer.receive() == []
    assert peer.is_at_end()


@pytest.mark.parametrize("config", [ConfigFile("echo"), ConfigText("echo"), ConfigText("echo\0")])
def test_what_is_sent_back_is_the_same_byte_for_byte(ours, connect, config):
    peer = connect(ours.address)
    items = [READOUTS[0], WAVEFORMS[0], *IMAGES, *READOUTS[1:], *WAVEFORMS[1:]]
    peer.send(config, make_header(), *items)
    peer.send_close()
    assert peer.reader.read() == bytes_of(*items, close=True)


def test_an_image_is_made_of_readouts(ours, connect):
    peer = connect(ours.address)
    peer.send(ConfigFile("summing"), make_header(matrix=12), *READOUTS)
    peer.send_close()
    text, image = peer.receive()
    assert text == "INFO     summing 12"
    np.testing.assert_array_equal(
        image.data[0, 0], np.stack([np.abs(readout.data).sum(axis=0) for readout in READOUTS]).astype(np.float32)
    )
    assert image.measurement_uid == READOUTS[0].measurement_uid
    assert peer.is_at_end()


def test_images_come_while_data_are_still_sent(ours, connect):
    peer = connect(ours.address)
    peer.send(ConfigFile("echo"), make_header())
    answers = ProtocolDeserializer(peer.reader).deserialize()
    for item in [*IMAGES, READOUTS[0]]:
        peer.send(item)
        assert next(answers) == item
    peer.send_close()
    assert list(answers) == []


def test_json_parameters_as_a_config_text_or_a_text(ours, connect):
    parameters = json.dumps({"parameters": {"config": "null", "customconfig": "echo"}})
    for opening in ((ConfigFile("null"), make_header(), parameters), (ConfigText(parameters), make_header())):
        peer = connect(ours.address)
        peer.send(*opening, IMAGES[0])
        peer.send_close()
        assert peer.receive() == [IMAGES[0]]


def test_an_error_that_has_no_utf_8_still_reaches_the_client_and_ends_with_close(server, connect, tmp_path):
    write_module(tmp_path, "quoting", "def process(c, config, m):\n    raise ValueError(config['parameters']['x'])")
    peer = connect(server(module_folders=(tmp_path,)).address)
    peer.send(ConfigFile("quoting"), make_header(), r'{"parameters": {"x": "half a pair: \ud800"}}')
    peer.send_close()
    (text,) = peer.receive()
    assert text.startswith("ERROR    ")
    assert "half a pair" in text


def test_a_config_name_that_has_no_utf_8_falls_back_to_the_default(ours, connect):
    peer = connect(ours.address)
    peer.send(ConfigFile("null"), make_header(), r'{"parameters": {"config": "\ud800"}}', *READOUTS)
    peer.send_close()
    (text,) = peer.receive()
    assert text.startswith("WARNING  ")


# ---- our client, their server --------------------------------------------------------------------------------------


@pytest.fixture
def their_server(in_thread, no_leaks):
    """Serve one session with a handler that gets a `Peer`: ``port, running = their_server(handler)``."""
    listeners = []

    def start(handler):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(PATIENCE)
        listeners.append(listener)

        def serve():
            sock, _ = listener.accept()
            peer = Peer(sock)
            try:
                return handler(peer)
            finally:
                peer.close()

        return listener.getsockname()[1], in_thread(serve)

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def scan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the client looks for <config>.json
    return package_file(tmp_path / "scan.h5", [*READOUTS, *WAVEFORMS, *IMAGES[:1]], xml=make_header().toXML())


def hold_session(scan, port, **options):
    output = scan.with_name("out.h5")
    options = {"config": "anything", "output": output, "out_group": "images", "timeout": PATIENCE} | options
    return client.run(ClientOptions(source=scan, address="127.0.0.1", port=port, **options))


def test_a_server_that_closes_at_once_gets_whole_messages(scan, their_server):
    def close_then_take_all(peer):
        peer.send_close()
        return peer.reader.read()

    port, served = their_server(close_then_take_all)
    hold_session(scan, port)
    possible = [
        bytes_of(ConfigFile("anything"), make_header(), *[*READOUTS, IMAGES[0]][:count], close=True)
        for count in range(22)
    ]
    assert served.result() in possible


def take_session(peer):
    """Everything that a client sends, as the package reads it."""
    return list(ProtocolDeserializer(peer.reader).deserialize())


def test_a_whole_session_of_our_client(scan, their_server):
    def reconstruct(peer):
        received = take_session(peer)
        peer.send("INFO     hello", *IMAGES[:2])
        peer.send("WARNING  it is warm", *IMAGES[2:])
        peer.send_close()
        return received

    port, served = their_server(reconstruct)
    result = hold_session(scan, port, send_waveforms=True)
    config, header, *items = served.result()
    assert (config, header) == (ConfigFile("anything"), make_header())
    assert isinstance(config, ConfigFile)
    assert [item for item in items if isinstance(item, ismrmrd.Acquisition)] == READOUTS
    assert [item for item in items if isinstance(item, ismrmrd.Waveform)] == WAVEFORMS
    assert [item for item in items if isinstance(item, ismrmrd.Image)] == IMAGES[:1]
    times = [
        item.time_stamp if isinstance(item, ismrmrd.Waveform) else item.acquisition_time_stamp for item in items[:-1]
    ]
    assert times == sorted(times)
    assert result.errors == []
    assert result.sent == {"acquisitions": 20, "waveforms": 5, "images": 1}
    assert result.received == {"acquisitions": 0, "waveforms": 0, "images": 4}
    with ismrmrd.Dataset(result.output, "images", mode="r") as dataset:
        for name, image in zip(("image_0", "image_0_1", "image_1", "image_2"), IMAGES, strict=True):
            stored = dataset.read_image(name, 0)
            np.testing.assert_array_equal(stored.data, image.data)
            assert stored.meta == image.meta
        assert ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header()) == make_header()


def test_bytes_of_a_whole_session_of_our_client(scan, their_server):
    expected = bytes_of(ConfigFile("anything"), make_header(), *READOUTS, *IMAGES[:1], close=True)

    def take_bytes(peer):
        received = peer.reader.read(len(expected))
        peer.send_close()
        return received + peer.reader.read()

    port, served = their_server(take_bytes)
    assert hold_session(scan, port).errors == []
    assert served.result() == expected


def test_json_parameters_of_our_client(scan, their_server):
    parameters = {"parameters": {"config": "other", "options": "µ"}}
    scan.with_name("anything.json").write_text(json.dumps(parameters), "utf-8")

    def reconstruct(peer):
        received = take_session(peer)
        peer.send_close()
        return received

    port, served = their_server(reconstruct)
    assert hold_session(scan, port).errors == []
    assert json.loads(served.result()[2]) == parameters
    assert served.result()[3] == READOUTS[0]


def test_texts_that_end_with_nul_are_understood(scan, their_server):
    def complain(peer):
        take_session(peer)
        text = b"ERROR    no coil\0"
        peer.send_raw(b"\x05\x00" + len(text).to_bytes(4, "little") + text)
        peer.send_close()

    port, _ = their_server(complain)
    assert hold_session(scan, port).errors == ["no coil"]


def test_a_server_that_leaves_without_close_is_an_error(scan, their_server):
    def leave(peer):
        take_session(peer)
        peer.send(IMAGES[0])

    port, _ = their_server(leave)
    result = hold_session(scan, port)
    assert len(result.errors) == 1
    assert "the stream ends without CLOSE (after 0 readouts, 0 waveforms and 1 images)" in result.errors[0]
    with ismrmrd.Dataset(result.output, "images", mode="r") as dataset:
        assert dataset.number_of_images("image_0") == 1


def test_our_client_and_our_server(scan, ours):
    result = hold_session(scan, ours.port, config="echo", send_waveforms=True)
    assert result.errors == []
    assert result.received == {"acquisitions": 20, "waveforms": 5, "images": 1} == result.sent
    with ismrmrd.File(result.output, "r") as file:
        assert list(file["images"].acquisitions) == READOUTS
        assert list(file["images"].waveforms) == WAVEFORMS


# ---- gadgetron.external.listen -------------------------------------------------------------------------------------

# Runs on its own, under the warnings that the package has with today's Python: its listening socket is never closed.
GADGETRON = """
import sys
import ismrmrd
import numpy as np
from gadgetron.external import listen

def reconstruct(connection):
    print("config", connection.config.find("name").text, flush=True)
    print("matrix", connection.header.encoding[0].encodedSpace.matrixSize.x, flush=True)
    kinds = {"Acquisition": 0, "Waveform": 0}
    total = 0
    for item in connection:
        kinds[type(item).__name__] += 1
        total += float(np.abs(item.data.astype(np.complex128)).sum())
    print("received", kinds["Acquisition"], kinds["Waveform"], f"{total:.6e}", flush=True)
    for number in range(3):
        pixels = np.full((1, 1, 4, 5 + number), number + 0.5, np.float32)
        image = ismrmrd.Image.from_array(pixels, image_index=number, image_series_index=7)
        image.meta = {"SequenceDescription": f"image {number}"}
        connection.send(image)

print("ready", flush=True)
listen(int(sys.argv[1]), reconstruct)
print("done", flush=True)
"""


def test_gadgetron_as_the_server(scan, tmp_path, no_leaks):
    config = tmp_path / "config.xml"
    config.write_text("<configuration><name>größer</name></configuration>", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-X", "utf8", "-c", GADGETRON, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8") as them:
        watchdog = threading.Timer(PATIENCE * 3, them.kill)
        watchdog.start()
        try:
            assert them.stdout.readline() == "ready\n", them.stderr.read()
            package_file(tmp_path / "raw.h5", [*READOUTS, *WAVEFORMS], xml=make_header(matrix=24).toXML())
            result = hold_session(tmp_path / "raw.h5", port, config_file=config, send_waveforms=True)
            output, errors = them.communicate()
        finally:
            them.kill()
            watchdog.cancel()
            watchdog.join()
    total = sum(float(np.abs(item.data.astype(np.complex128)).sum()) for item in [*READOUTS, *WAVEFORMS])
    assert output.splitlines() == ["config größer", "matrix 24", f"received 20 5 {total:.6e}", "done"], errors
    assert them.returncode == 0
    assert result.errors == []
    assert result.sent == {"acquisitions": 20, "waveforms": 5, "images": 0}
    assert result.received["images"] == 3
    with ismrmrd.Dataset(result.output, "images", mode="r") as dataset:
        for number, name in enumerate(("image_7", "image_7_1", "image_7_2")):
            image = dataset.read_image(name, 0)
            np.testing.assert_array_equal(image.data, np.full((1, 1, 4, 5 + number), number + 0.5))
            assert image.meta["SequenceDescription"] == f"image {number}"
