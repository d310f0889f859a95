"""The live view over plain sockets: what it tells, whom it tells it to, and that nobody waits for it."""

import http.client
import re
import socket
import subprocess
import sys
import threading

import ismrmrd
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

import view_parts
from conftest import PATIENCE, make_acquisition, make_header, make_image, make_waveform, write_module
from constants import MessageId
from mrdio.codec import encode
from server_process import PROJECT, wait_until
from serving.summary import Outcome, SessionSummary
from serving.view import ViewError, feed, hub, site
from serving.view.feed import Kind, Mailbox
from serving.view.hub import Hub
from serving.view.site import View
from view_parts import ECHO, Viewer, image_of, patterned, pixels_of


@pytest.fixture
def view(no_leaks):
    opened = []

    def start(**options):
        opened.append(View(0, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def scene(view, server, tmp_path):
    """A view, and a port of a server with the module ``echo`` that it shows."""
    write_module(tmp_path, "echo", ECHO)

    def start(**options):
        shown = view(**options)
        return shown, server(view=shown, module_folders=(tmp_path,)).port

    return start


@pytest.fixture
def open_scan():
    opened = []

    def start(*arguments, **options):
        opened.append(view_parts.open_scan(*arguments, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def viewers():
    opened = []

    def start(view, session=None, **options):
        opened.append(Viewer(view if isinstance(view, int) else view.address[1], **options))
        if session:
            opened[-1].until(lambda viewer: session in viewer.sessions)
            opened[-1].watch(session)
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def finish(peer):
    peer.send_close()
    peer.receive()


# ---- what is shown -------------------------------------------------------------------------------------------------

DTYPES = [np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64, np.complex64, np.complex128]


def test_pixels_of_every_type_are_those_that_were_sent(scene, viewers, open_scan):
    view, port = scene()
    peer = open_scan(port)
    sent = [make_image(n, (2, 3, 6, 5), dtype, series=n) for n, dtype in enumerate(DTYPES)]
    sent.append(image_of(np.array([[0, 70_000]], np.uint32)[None, None], series=8))
    sent.append(image_of(np.array([[np.nan, -np.inf, -3, 5]], np.float32)[None, None], series=9))
    sent.append(image_of(np.full((1, 1, 2, 2), 7.5, np.float32), series=10))
    peer.send(*sent)
    viewer = viewers(view, "session-1")
    viewer.until(lambda viewer: len(viewer.images) == len(sent))
    shown = {header["series"]: pixels_of((header, numbers)) for header, numbers in viewer.images}
    for series, image in enumerate(sent[:8]):
        tolerance = 0 if image.data.dtype.kind in "iu" else np.abs(image.data).max() / 65535
        np.testing.assert_allclose(shown[series], np.abs(image.data), atol=tolerance, rtol=0)
    np.testing.assert_allclose(shown[8][0, 0, 0], [0, 70_000])
    np.testing.assert_allclose(shown[9][0, 0, 0], [-3, -3, -3, 5], atol=1e-3)
    np.testing.assert_allclose(shown[10], 7.5)


def check_all_is_told(peer, view_port, viewers):
    """In threads and in processes alike."""
    image = image_of(patterned(5, 4), stamp=1010, WindowCenter="90", WindowWidth="50", ProcessingTime_ms="12.5",
                     ReadoutsWaiting="3", PatientName="Roe^Ann")  # fmt: skip
    waveform = make_waveform(16, channels=5, samples=8, time=1000)  # its id is that of the ECG
    waveform.data[4] = [0, 0, 1, 1, 0, 0, 2, 0]
    peer.send(make_acquisition(1), waveform, "WARNING  look here", image)
    viewer = viewers(view_port, "session-1")
    viewer.until(lambda viewer: viewer.images and viewer.waveforms and viewer.messages)
    header, _ = viewer.images[0]
    np.testing.assert_array_equal(pixels_of(viewer.images[0]), patterned(5, 4))
    assert (header["window"], header["latency"], header["waiting"], header["stamp"]) == ([90, 50], 12.5, 3, 2.525)
    assert "Roe" not in str(viewer.images[0])
    assert (viewer.messages[0]["level"], viewer.messages[0]["text"]) == ("WARNING", "look here")
    trace, numbers = viewer.waveforms[0]
    ((start, interval, samples, triggers),) = trace["packets"]
    assert (trace["id"], start, samples) == (0, 2.5, 8)
    assert triggers == pytest.approx([2.5 + 2 * interval, 2.5 + 6 * interval])
    np.testing.assert_array_equal(np.frombuffer(numbers, np.float32), waveform.data[0].astype(np.float32))
    viewer.until(lambda viewer: viewer.sessions["session-1"]["sent_images"] == 1)
    told = viewer.sessions["session-1"]
    assert (told["protocol"], told["module"], told["outcome"], told["readouts"]) == ("cine <b>", "echo", "running", 8)
    assert (told["received_readouts"], told["received_waveforms"]) == (1, 1)
    peer.send("fail")
    viewer.until(lambda viewer: viewer.sessions["session-1"]["outcome"] == "failed")
    viewer.until(lambda viewer: (viewer.messages[-1]["level"] == "WARNING" and len(viewer.messages) > 1)
                 or viewer.messages[-1]["level"] == "ERROR")  # fmt: skip
    assert "on purpose" in viewer.sessions["session-1"]["reason"]
    peer.close()


def test_all_is_told_of_a_session_in_a_thread(scene, viewers, open_scan):
    view, port = scene()
    check_all_is_told(open_scan(port, header=make_header("cine <b>")), view.address[1], viewers)


def test_all_is_told_of_a_session_in_a_process(start, tmp_path, viewers, open_scan):
    write_module(tmp_path, "echo", ECHO)
    running = start("-d", "null", "-m", "--view", "0")
    view_port = int(re.search(r"View: open http://127.0.0.1:(\d+)/", running.log())[1])
    check_all_is_told(open_scan(running.port, header=make_header("cine <b>")), view_port, viewers)
    assert running.stop() == 0, running.log()


SETTINGS = """
from recon import configuration
from simplenufft import NufftConfig
def process(connection, config, metadata):
    configuration.load(NufftConfig)
    for item in connection: pass
    connection.send_text("read")
"""


def test_settings_that_the_module_read_are_shown(scene, viewers, tmp_path, open_scan, caplog):
    caplog.set_level("INFO")  # as the server has it
    view, port = scene()
    write_module(tmp_path, "reads", SETTINGS)
    peer = open_scan(port, "reads")
    peer.send(make_acquisition(1))
    viewer = viewers(view, "session-1")
    viewer.until(lambda viewer: viewer.details.get("settings"))
    ((file, values),) = viewer.details["settings"].items()
    assert file.endswith("simplenufft_config.toml")
    assert values["reconstruction"]["prewhiten"] == "auto"
    finish(peer)


def test_images_of_a_failed_session_are_marked_as_fallback(scene, viewers, open_scan, tmp_path):
    view, port = scene()
    write_module(tmp_path, "fails", "def process(connection, config, metadata):\n    list(connection)\n    1 / 0")
    peer = open_scan(port, "fails")
    peer.send(make_image(1))
    finish(peer)
    viewer = viewers(view, "session-1")
    viewer.until(lambda viewer: viewer.images)
    assert "division by zero" in viewer.images[0][0]["fallback"]
    viewer.until(lambda viewer: viewer.sessions["session-1"]["fallback_images"] == 1)


@pytest.mark.parametrize("names", [False, True])
def test_patients_are_named_only_when_that_is_asked_for(scene, viewers, open_scan, names):
    view, port = scene(names=names)
    header = make_header()
    header.subjectInformation = ismrmrd.xsd.subjectInformationType(patientName="Roe^Ann", patientID="4711")
    peer = open_scan(port, header=header)
    peer.send(make_image(1))
    viewer = viewers(view, "session-1")
    viewer.until(lambda viewer: viewer.images)
    finish(peer)
    viewer.until(lambda viewer: viewer.sessions["session-1"]["outcome"] == "completed")
    assert viewer.sessions["session-1"]["patient"] == ("Roe^Ann, 4711" if names else "")


# ---- who may see it ------------------------------------------------------------------------------------------------


def answer(view, host, origin=None, path="/", socket_too=False):
    """Status and headers of a request."""
    connection = http.client.HTTPConnection(*view.address, timeout=PATIENCE)
    connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
    for name, value in (("Host", host), ("Origin", origin)):
        if value is not None:
            connection.putheader(name, value)
    if socket_too:
        for name, value in {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}.items():  # fmt: skip
            connection.putheader(name, value)
    connection.endheaders()
    found = connection.getresponse()
    connection.close()
    return found.status, found.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "", None])
def test_foreign_name_in_host_is_refused(view, host):
    """A page of an attacker whose name leads here would be of the same origin as the view."""
    shown = view()
    host = host and host.format(port=shown.address[1])
    assert answer(shown, host)[0] in (400, 403)
    assert answer(shown, host, origin=f"http://{host}", path=site.SOCKET, socket_too=True)[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "10.1.2.3", "{name}:80"])
def test_own_name_and_addresses_are_served(view, host):
    """Also through a tunnel, which has another port."""
    shown = view()
    host = host.format(port=shown.address[1], name=socket.gethostname())
    assert answer(shown, host)[0] == 200
    assert answer(shown, host, origin=f"http://{host}", path=site.SOCKET, socket_too=True)[0] == 101


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", "", None, "https://localhost"])
def test_socket_is_for_the_own_page_only(view, origin):
    shown = view()
    assert answer(shown, f"127.0.0.1:{shown.address[1]}", origin, site.SOCKET, socket_too=True)[0] == 403


def test_page_may_run_only_what_comes_with_it(view):
    shown = view()
    own = f"127.0.0.1:{shown.address[1]}"
    for path in ("/", "/view.js", "/view.css"):
        status, headers = answer(shown, own, path=path)
        assert status == 200
        assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/../site.py", "/view.py", "//", "/%2e%2e/site.py"):
        assert answer(shown, own, path=path)[0] == 404


@pytest.mark.parametrize("said", ["{", "[]", "null", '{"got": "x"}', '{"stop": 1}', "x" * 2000, "[" * 1000, b"\0"])
def test_viewer_that_says_something_else_is_left(view, viewers, said):
    shown = view()
    viewer = viewers(shown)
    viewer.socket.send(said)
    with pytest.raises(ConnectionClosed):
        viewer.until(lambda viewer: False)
    viewers(shown).until(lambda viewer: viewer.identity)


def test_further_viewers_are_told_that_there_are_too_many(view, viewers, monkeypatch):
    monkeypatch.setattr(site, "VIEWERS", 2)
    shown = view()
    first, _ = [viewers(shown) for _ in range(2)]
    third = viewers(shown)
    with pytest.raises(ConnectionClosed, match="2 viewers watch already"):
        third.until(lambda viewer: False)
    first.close()
    assert wait_until(lambda: len(shown._viewers) == 1)
    viewers(shown).until(lambda viewer: viewer.identity)


def test_idle_connections_take_no_handles(view, monkeypatch):
    monkeypatch.setattr(site, "CONNECTIONS", 8)
    shown = view()
    idle = [socket.create_connection(shown.address, timeout=PATIENCE) for _ in range(20)]
    assert [each.recv(1) for each in idle[8:]] == [b""] * 12
    for each in idle:
        each.close()
    own = f"127.0.0.1:{shown.address[1]}"

    def is_served():
        try:
            return answer(shown, own)[0] == 200
        except OSError:
            return False

    assert wait_until(is_served)


# ---- nobody waits for it -------------------------------------------------------------------------------------------


def test_viewer_that_takes_nothing_costs_the_scan_nothing(scene, viewers, open_scan, monkeypatch):
    """It has at most four frames on their way, and goes on with the newest one."""
    monkeypatch.setattr(site, "BEHIND", 0)
    view, port = scene()
    peer = open_scan(port)
    peer.send(image_of(patterned(192, 192)))
    stopped, quick = viewers(view, "session-1", slow=True), viewers(view, "session-1")
    for viewer in (stopped, quick):
        viewer.until(lambda viewer: viewer.images)
    answers = threading.Thread(target=lambda: setattr(peer, "answers", peer.receive()))
    answers.start()
    for number in range(2, 151):
        peer.send(image_of(patterned(192, 192, number), number))
        quick.until(lambda viewer, number=number: any(h["number"] == number for h, _ in viewer.images[-1:]))
    peer.send_close()
    answers.join(PATIENCE)
    assert len(peer.answers) == 150
    stopped.until(lambda viewer: viewer.sessions["session-1"]["outcome"] == "completed")
    assert [header["number"] for header, _ in stopped.images] == [1, 2, 3, 4]
    assert [header["number"] for header, _ in quick.images] == list(range(1, 151))
    stopped.slow = False
    stopped.socket.send('{"got": 4}')
    stopped.until(lambda viewer: len(viewer.images) == 5)
    assert stopped.images[4][0]["number"] == 150
    stopped.until(lambda viewer: len(viewer.images) == 150)
    assert sorted(header["number"] for header, _ in stopped.images) == list(range(1, 151))


def test_letters_that_nobody_takes_are_bounded_and_the_newest_are_kept(monkeypatch):
    monkeypatch.setattr(feed, "WAITING", 1000)
    woken = []
    mailbox = Mailbox(lambda: woken.append(1))
    for number in range(100):
        mailbox.put(bytes([Kind.IMAGE, number]) + bytes(98))
        mailbox.put(bytes([Kind.SUMMARY, number]))
    for number in range(feed.TEXTS + 5):
        mailbox.put(bytes([Kind.TEXT, number % 256]))
    letters = mailbox.take()
    assert len(woken) == 1
    assert [letter[1] for letter in letters if letter[0] == Kind.IMAGE] == list(range(90, 100))
    assert [letter[1] for letter in letters if letter[0] == Kind.SUMMARY] == [99]
    assert sum(letter[0] == Kind.TEXT for letter in letters) == feed.TEXTS
    assert mailbox.take() == []


def letters_of(*images):
    """Letters of images, as a feed writes them."""
    writer = feed.Feed(lambda: None)
    for image in images:
        writer.sent(MessageId.ISMRMRD_IMAGE, [memoryview(part) for part in encode(MessageId.ISMRMRD_IMAGE, image)])
    return writer.take()


def test_history_is_bounded_by_series_and_in_all(monkeypatch):
    monkeypatch.setattr(hub, "SERIES_IMAGES", 10)
    monkeypatch.setattr(hub, "ALL_BYTES", 100_000)
    kept = Hub()
    kept.take("a", letters_of(image_of(patterned(8, 8), series=1), *[image_of(patterned(8, 8))] * 30))
    session = kept.sessions["a"]
    assert list(session.images) == [1, *range(22, 32)]  # the only one of the other series stays
    assert session.details(0, 0)["series"] == {1: [1, 1], 0: [22, 30]}
    kept.take("b", letters_of(*[image_of(patterned(100, 100), number) for number in range(1, 9)]))
    assert not kept.sessions["a"].images
    assert list(kept.sessions["b"].images) == [5, 6, 7, 8]
    assert kept.sessions["b"].size <= 100_000
    for number in range(30):
        summary = SessionSummary(f"session-{number}")
        summary.end(Outcome.COMPLETED)
        kept.end(summary)
    assert sum(each.summary.outcome is Outcome.COMPLETED for each in kept.sessions.values()) == hub.RECENT
    assert {"a", "b"} <= set(kept.sessions)  # they run


def test_number_of_series_is_bounded(monkeypatch):
    monkeypatch.setattr(hub, "SERIES", 3)
    kept = Hub()
    kept.take("a", letters_of(*[image_of(patterned(4, 4), series=number // 2) for number in range(10)]))
    assert kept.sessions["a"].details(0, 0)["series"] == {2: [5, 2], 3: [7, 2], 4: [9, 2]}
    assert kept.sessions["a"].size == sum(len(each.content) for each in kept.sessions["a"].images.values())


def test_letter_that_cannot_be_read_costs_only_itself():
    kept = Hub()
    (good,) = letters_of(image_of(patterned(4, 4)))
    kept.take("a", [good[:60], bytes([99]) + good[1:], good[:-1], good])
    assert list(kept.sessions["a"].images) == [1]


def test_large_image_is_counted_but_not_copied(monkeypatch):
    monkeypatch.setattr(feed, "LARGEST", 10_000)
    kept = Hub()
    kept.take("a", letters_of(image_of(patterned(100, 100)), image_of(patterned(4, 4))))
    assert list(kept.sessions["a"].images) == [2]


# ---- starting ------------------------------------------------------------------------------------------------------


def test_server_that_shows_nothing_does_not_import_the_view():
    code = "import main, sys; print([name for name in sys.modules if 'websockets' in name or 'view.' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_taken_port_is_named(view):
    with pytest.raises(ViewError, match=r"127\.0\.0\.1:\d+: .*does another one listen there"):
        View(view().address[1])


def test_open_view_is_warned_of(view, caplog):
    shown = view(host="0.0.0.0")
    assert "asks for no password" in caplog.text
    assert shown.url == f"http://localhost:{shown.address[1]}/"
