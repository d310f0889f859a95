"""One session over one socket: what comes, what goes, and the names that modules call."""

import socket
import struct

import pytest
from ismrmrd.serialization import ConfigFile, ConfigText

import constants
from conftest import bytes_of, make_acquisition, make_header, make_image, make_waveform, wait_for, watched
from constants import MessageId
from mrdio.codec import ProtocolError, SessionEnded, StreamBroken
from mrdio.limits import Limits

NOTHING_RECEIVED = "(after 0 readouts, 0 waveforms and 0 images)"
LARGE = (1, 1, 512, 1024)  # an image of 2 MiB, more than any buffer between the two sides


# ---- receiving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
def test_iteration_yields_everything_and_ends_at_close(pair, tcp):
    connection, peer = pair(tcp=tcp)
    items = [make_acquisition(1), make_waveform(2), "text", make_image(3), make_acquisition(4, dimensions=2)]
    peer.send(*items)
    peer.send_close()
    assert not connection.is_exhausted
    assert list(connection) == items
    assert connection.is_exhausted
    assert (connection.recvAcqs, connection.recvWaveforms, connection.recvImages) == (2, 1, 1)
    assert (connection.sentAcqs, connection.sentWaveforms, connection.sentImages) == (0, 0, 0)


def test_bad_attributes_of_many_images_are_logged_once(pair, caplog):
    connection, peer = pair()
    (whole,) = [bytes_of(make_image(meta={"name": "value"}))]
    peer.send(make_image(meta={"name": "value"}))
    for _ in range(5):
        peer.send_raw(whole.replace(b"<ismrmrdMeta>", b"<ismrmrdMata>"))
    peer.send_close()
    assert ["UnreadableAttributes" in image.meta for image in connection] == [False, True, True, True, True, True]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("The attributes of image 2 are no valid MRD meta XML")


def test_iteration_can_be_taken_up_again(pair):
    connection, peer = pair()
    items = [make_acquisition(number) for number in range(4)]
    peer.send(*items)
    peer.send_close()
    assert next(iter(connection)) == items[0]
    assert connection.next() == items[1]
    assert list(connection) == items[2:]
    assert list(connection) == []


def test_receive_gives_identifiers(pair):
    connection, peer = pair()
    peer.send(ConfigFile("null"), ConfigText("<a/>"), make_header(), "{}")
    peer.send_close()
    received = [connection.receive().identifier for _ in range(5)]
    assert received == [1, 2, 3, 5, 4]


def test_next_gives_none_at_the_end_and_after_it(pair):
    connection, peer = pair()
    peer.send(make_acquisition(1))
    peer.send_close()
    assert [connection.next() for _ in range(4)] == [make_acquisition(1), None, None, None]
    assert connection.is_exhausted


def test_peek_does_not_take(pair):
    connection, peer = pair()
    peer.send("text", make_waveform(1))
    peer.send_close()
    seen = []
    while not connection.is_exhausted:
        assert connection.peek_mrd_message_identifier() == connection.peek_mrd_message_identifier()
        seen.append(connection.peek_mrd_message_identifier())
        connection.next()
    assert seen == [MessageId.TEXT, MessageId.ISMRMRD_WAVEFORM, MessageId.CLOSE]
    assert connection.peek_mrd_message_identifier() is None


def test_end_without_close_raises_with_counts(pair):
    connection, peer = pair()
    peer.send(make_acquisition(1), make_acquisition(2), make_waveform(3))
    peer.close()
    received = []
    with pytest.raises(StreamBroken) as caught:
        received.extend(connection)
    assert str(caught.value) == "the stream ends without CLOSE (after 2 readouts, 1 waveforms and 0 images)"
    assert connection.recvAcqs == 2
    assert connection.is_exhausted


def test_a_peer_that_leaves_at_once(pair):
    connection, peer = pair()
    peer.close()
    assert connection.peek_mrd_message_identifier() is None
    with pytest.raises(StreamBroken, match="the stream ends without CLOSE"):
        connection.next()


@pytest.mark.parametrize("cut", [1, 2, 100, 342, -1])
def test_end_within_a_message_raises_with_what_came_and_what_was_expected(pair, cut):
    connection, peer = pair()
    peer.send(make_acquisition(1))
    peer.send_raw(bytes_of(make_acquisition(2))[:cut])
    peer.close()
    received = []
    with pytest.raises(
        StreamBroken, match=r"the stream ends after \d+ bytes? of a.* expected \d+ \(after 1 readouts, 0 w"
    ):
        received.extend(connection)
    assert received == [make_acquisition(1)]


def test_a_reset_connection_raises(pair):
    connection, peer = pair(tcp=True)
    peer.send(make_acquisition(1))
    assert connection.next() == make_acquisition(1)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(StreamBroken, match=r"the connection broke while receiving: .*reset.* \(after 1 readouts"):
        connection.next()


def test_no_message_raises_and_names_it(pair):
    connection, peer = pair()
    peer.send(make_acquisition(1))
    peer.send_raw(b"GET / HTTP/1.1\r\n")
    assert connection.next() == make_acquisition(1)
    with pytest.raises(ProtocolError, match=r"message identifier 17735 is not one of .* \(after 1 readouts"):
        connection.next()
    assert connection.is_exhausted


def test_limits_hold(pair):
    connection, peer = pair(limits=Limits(text=3, data=63))
    peer.send("abc", make_acquisition(samples=4, channels=1), make_acquisition(samples=8, channels=1))
    assert connection.next() == "abc"
    assert connection.next() == make_acquisition(samples=4, channels=1)
    with pytest.raises(ProtocolError, match="would take 64 bytes, the limit is 63"):
        connection.next()


def test_silence_is_limited(pair):
    connection, peer = pair(timeout=0.05)
    peer.send_raw(bytes_of(make_acquisition(1))[:50])
    with pytest.raises(StreamBroken) as caught:
        connection.next()
    assert str(caught.value) == f"the peer has sent nothing for 0.05 s, and has not sent CLOSE {NOTHING_RECEIVED}"


class Observer:
    def __init__(self) -> None:
        self.seen = bytearray()

    def write(self, chunk: memoryview) -> None:
        self.seen += chunk


def test_observer_sees_exactly_the_bytes(pair, in_thread):
    connection, peer = pair()
    observer = Observer()
    connection.observe(observer)
    large = make_image(7, LARGE, meta={"a": "b"})
    items = [ConfigFile("null"), make_header(), *map(make_acquisition, range(20)), large, make_waveform(1), "end"]
    raw = bytes_of(*items, close=True)
    sent = in_thread(peer.send_raw, raw)
    assert len(list(connection)) == len(items)
    sent.result()
    assert bytes(observer.seen) == raw


def test_observer_sees_what_came_of_a_stream_that_breaks_off(pair):
    connection, peer = pair()
    observer = Observer()
    connection.observe(observer)
    raw = bytes_of(make_acquisition(1), make_acquisition(2))[:-5]
    peer.send_raw(raw)
    peer.close()
    with pytest.raises(StreamBroken):
        list(connection)
    assert bytes(observer.seen) == raw


def test_a_detached_observer_sees_no_more(pair):
    connection, peer = pair()
    observer = Observer()
    connection.observe(observer)
    peer.send("first")
    assert connection.next() == "first"
    connection.observe(None)
    peer.send("second")
    assert connection.next() == "second"
    assert bytes(observer.seen) == bytes_of("first")


# ---- sending -------------------------------------------------------------------------------------------------------


def test_everything_that_can_be_sent(pair):
    connection, peer = pair()
    connection.send_config_file("config")
    connection.send_config_text("<config />")
    connection.send_metadata(make_header().toXML())
    connection.send_json_parameters({"parameters": {"config": "x"}})
    connection.send_json_parameters('{"as": "text"}')
    connection.send_text("text")
    connection.send_acquisition(make_acquisition(1))
    connection.send_waveform(make_waveform(2))
    connection.send_image(make_image(3))
    connection.send_close()
    assert peer.receive() == [
        ConfigFile("config"), ConfigText("<config />"), make_header(), '{"parameters": {"config": "x"}}',
        '{"as": "text"}', "text", make_acquisition(1), make_waveform(2), make_image(3),
    ]  # fmt: skip
    assert (connection.sentAcqs, connection.sentWaveforms, connection.sentImages) == (1, 1, 1)


def test_send_image_takes_lists_with_none_among_them(pair):
    connection, peer = pair()
    images = [make_image(number) for number in range(4)]
    connection.send_image([images[0], None, images[1]])
    connection.send_image(None)
    connection.send_image([])
    connection.send_image([None])
    connection.send_image((images[2],))
    connection.send_image(image for image in [None, images[3]])
    connection.send_close()
    assert peer.receive() == images
    assert connection.sentImages == 4


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (constants.MRD_LOGGING_DEBUG, "DEBUG    words"),
        (constants.MRD_LOGGING_INFO, "INFO     words"),
        (constants.MRD_LOGGING_WARNING, "WARNING  words"),
        (constants.MRD_LOGGING_ERROR, "ERROR    words"),
        (constants.MRD_LOGGING_CRITICAL, "CRITICAL words"),
        ("INFO", "INFO     words"),
    ],
)
def test_send_logging_pads_the_severity_and_logs_here(pair, caplog, level, line):
    connection, peer = pair()
    caplog.set_level("DEBUG")
    connection.send_logging(level, "words")
    connection.send_close()
    assert peer.receive() == [line]
    assert [(record.levelname, record.message) for record in caplog.records] == [(level.strip(), "words")]


def test_partial_writes_arrive_complete(pair, in_thread):
    connection, peer = pair()
    watched(connection).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    images = [make_image(number, LARGE, meta={"number": str(number)}) for number in range(2)]

    def read_slowly() -> bytes:
        parts = []
        while part := peer.sock.recv(3001):
            parts.append(part)
        return b"".join(parts)

    received = in_thread(read_slowly)
    connection.send_image(images)
    connection.send_close()
    connection.close()
    assert received.result() == bytes_of(*images, close=True)
    assert watched(connection).writes > 10


def test_messages_of_several_threads_do_not_mix(pair, in_thread):
    connection, peer = pair()
    watched(connection).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    received = in_thread(peer.receive)
    senders = [
        in_thread(lambda first: [connection.send_acquisition(make_acquisition(first + i)) for i in range(25)], first)
        for first in (0, 100, 200, 300)
    ]
    for sender in senders:
        sender.result()
    connection.send_close()
    numbers = [acquisition.scan_counter for acquisition in received.result()]
    assert all(acquisition == make_acquisition(acquisition.scan_counter) for acquisition in received.result())
    assert sorted(numbers) == [first + i for first in (0, 100, 200, 300) for i in range(25)]
    assert connection.sentAcqs == 100


def test_a_blocked_reader_does_not_block_a_sender(pair, in_thread):
    connection, peer = pair()
    reader = in_thread(connection.next)
    wait_for(watched(connection).receiving)
    connection.send_image(make_image(1))
    connection.send_close()
    assert peer.receive() == [make_image(1)]
    assert reader.thread.is_alive()
    peer.send(make_acquisition(2))
    assert reader.result() == make_acquisition(2)


def test_a_blocked_sender_does_not_block_a_reader(pair, in_thread):
    connection, peer = pair()
    sender = in_thread(connection.send_image, make_image(1, LARGE))
    wait_for(watched(connection).sending)
    peer.send(make_acquisition(2))
    assert connection.next() == make_acquisition(2)
    assert sender.thread.is_alive()
    received = in_thread(peer.receive)
    sender.result()
    connection.send_close()
    assert received.result() == [make_image(1, LARGE)]


def test_room_to_send_is_waited_for_with_a_limit(pair):
    connection, peer = pair(timeout=0.05)
    with pytest.raises(StreamBroken) as caught:
        connection.send_image([make_image(1), make_image(2, LARGE)])
    assert str(caught.value) == "the connection broke while sending: the peer has taken nothing for 0.05 s"
    assert connection.sentImages == 1
    # What follows would be taken for the missing bytes, CLOSE included.
    with pytest.raises(SessionEnded) as caught:
        connection.send_text("more")
    broken = "the connection broke while sending: the peer has taken nothing for 0.05 s"
    assert str(caught.value) == f"TEXT cannot be sent: {broken}"
    connection.send_close()
    connection.close()
    rest = peer.reader.read()
    assert bytes_of(make_image(1), make_image(2, LARGE)).startswith(rest)


def test_sending_to_a_peer_that_has_left(pair):
    connection, peer = pair()
    peer.close()
    with pytest.raises(StreamBroken, match=r"the connection broke while sending: .*[Pp]ipe"):
        connection.send_text("anybody there?")
    connection.send_close()


def test_a_message_that_cannot_be_made_leaves_the_stream_whole(pair):
    connection, peer = pair()
    with pytest.raises(ProtocolError):
        connection.send_config_file("x" * 2000)
    connection.send_text("still here")
    connection.send_close()
    assert peer.receive() == ["still here"]


# ---- names that modules call ---------------------------------------------------------------------------------------

IDENTIFIERS = {
    "INT_ID_MIN": 0, "CONFIG_FILE": 1, "CONFIG_TEXT": 2, "METADATA_XML_TEXT": 3, "CLOSE": 4, "TEXT": 5,
    "INT_ID_MAX": 999, "EXT_ID_MIN": 1000, "ACQUISITION": 1001, "NEW_MEASUREMENT": 1002, "END_OF_SCAN": 1003,
    "IMAGE_CPLX_FLOAT": 1004, "IMAGE_REAL_FLOAT": 1005, "IMAGE_REAL_USHORT": 1006, "EMPTY": 1007,
    "ISMRMRD_ACQUISITION": 1008, "ISMRMRD_IMAGE_CPLX_FLOAT": 1009, "ISMRMRD_IMAGE_REAL_FLOAT": 1010,
    "ISMRMRD_IMAGE_REAL_USHORT": 1011, "DICOM": 1012, "CLOUD_JOB": 1013, "GADGETCLOUD_JOB": 1014,
    "ISMRMRD_IMAGEWITHATTRIB_CPLX_FLOAT": 1015, "ISMRMRD_IMAGEWITHATTRIB_REAL_FLOAT": 1016,
    "ISMRMRD_IMAGEWITHATTRIB_REAL_USHORT": 1017, "DICOM_WITHNAME": 1018, "DEPENDENCY_QUERY": 1019,
    "ISMRMRD_IMAGE_REAL_SHORT": 1020, "ISMRMRD_IMAGEWITHATTRIB_REAL_SHORT": 1021, "ISMRMRD_IMAGE": 1022,
    "RECONDATA": 1023, "ISMRMRD_WAVEFORM": 1026, "EXT_ID_MAX": 4096,
}  # fmt: skip


def test_constants_have_their_names():
    found = {name: value for name, value in vars(constants).items() if name.startswith("MRD_MESSAGE_")}
    assert found == {f"MRD_MESSAGE_{name}": value for name, value in IDENTIFIERS.items()}
    for identifier in range(1001, 1024):
        assert identifier in found.values()


@pytest.mark.parametrize("word", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_severities_are_padded_to_eight_characters(word):
    assert getattr(constants, f"MRD_LOGGING_{word}") == word.ljust(8)


def test_connection_has_its_names(pair):
    connection, _ = pair()
    for name in (
        "next", "send_image", "send_acquisition", "send_waveform", "send_text", "send_logging", "send_close",
        "peek_mrd_message_identifier", "__iter__",
    ):  # fmt: skip
        assert callable(getattr(connection, name))
    for name in ("recvAcqs", "recvImages", "recvWaveforms", "sentAcqs", "sentImages", "sentWaveforms"):
        assert getattr(connection, name) == 0
    assert connection.is_exhausted is False
    assert connection.savedata is False
    assert (connection.savedataFolder, connection.mrdFilePath) == ("", "")


def test_a_module_of_another_server_runs(pair):
    """The calls that modules of this kind of server make, in the order they make them."""
    connection, peer = pair()
    peer.send(make_acquisition(1), make_waveform(2))
    peer.send_close()
    connection.send_logging(constants.MRD_LOGGING_INFO, "starting")
    counts = {1008: 0, 1026: 0}
    for item in connection:
        if item is None:
            break
        counts[1008 if item == make_acquisition(1) else 1026] += 1
    connection.send_image([make_image(3), None])
    connection.send_close()
    connection.send_close()
    connection.close()
    assert counts == {constants.MRD_MESSAGE_ISMRMRD_ACQUISITION: 1, constants.MRD_MESSAGE_ISMRMRD_WAVEFORM: 1}
    assert peer.reader.read() == bytes_of("INFO     starting", make_image(3), close=True)
