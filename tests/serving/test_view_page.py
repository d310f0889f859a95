"""The page of the live view in a real browser: what it paints, mouse and keyboard, reconnecting, text from outside."""

import re
import shutil
import threading
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from playwright.sync_api import sync_playwright

import view_parts
from conftest import PATIENCE, make_acquisition, make_header, make_waveform, write_module
from server import Server, ServerOptions
from server_process import wait_until
from serving.session import SessionOptions
from serving.view import site
from serving.view.site import View
from view_parts import ECHO, image_of, patterned

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'

# Values of the canvas around its centre, which holds an image of w x h pixels in its own size.
READ = """([w, h]) => {
  const canvas = document.getElementById("image");
  const [x, y] = [Math.floor((canvas.width - w) / 2), Math.floor((canvas.height - h) / 2)];
  return [...canvas.getContext("2d").getImageData(x, y, w, h).data];
}"""


class Scene:
    """A server with a view that can be started again at the same port, and a scan that is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = self.view_port = 0
        self.peers = []
        self.start()

    def start(self) -> None:
        self.view = View(self.view_port)
        self.view_port = self.view.address[1]
        session = SessionOptions(default_config="null", module_folders=(self.folder,), save_folder=self.folder)
        self.server = Server(ServerOptions(port=self.port, grace=0.1, session=session), view=self.view)
        self.port = self.server.address[1]
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def stop(self) -> None:
        for peer in self.peers:
            peer.close()
        self.peers = []
        self.server.stop()
        self.thread.join(PATIENCE)
        self.view.close()

    def scan(self, **options):
        self.peers.append(view_parts.open_scan(self.port, **options))
        return self.peers[-1]


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "there is no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def scene(tmp_path):
    write_module(tmp_path, "echo", ECHO)
    running = Scene(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def page(browser, scene):
    """The page, of which no script may fail and nothing may be refused."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(1000 * PATIENCE)
    complaints = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda line: complaints.append(line.text) if "Content Security" in line.text else None)
    opened.goto(f"http://127.0.0.1:{scene.view_port}/")
    yield opened
    opened.close()
    assert complaints == []


def shows(page, selector, text):
    found = "([at, text]) => document.querySelector(at)?.textContent.includes(text)"
    page.wait_for_function(found, arg=[selector, text])


def painted(page, columns, rows):
    """Pixels of an image that is shown in its own size, uint8 [row, column, colour]."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.array(page.evaluate(READ, [columns, rows]), np.uint8).reshape(rows, columns, 4)[..., :3]


def grey(pixels, centre, width):
    """Grey values of a window."""
    return np.rint(np.clip(255 * ((pixels.astype(float) - centre) / width + 0.5), 0, 255))


def send_movie(peer, count=6, **meta):
    for number in range(1, count + 1):
        peer.send(image_of(patterned(61, 37, 20 * number), number, WindowCenter="2048", WindowWidth="4096", **meta))


def test_pixels_that_are_painted_are_those_that_were_sent(page, scene):
    peer = scene.scan()
    peer.send(image_of(patterned(61, 37), WindowCenter="2048", WindowWidth="4096"))
    shows(page, "#place", "1 / 1")
    page.keyboard.press("f")  # one for one
    found = painted(page, 61, 37)
    np.testing.assert_allclose(found, grey(patterned(61, 37)[0, 0], 2048, 4096)[..., None].repeat(3, -1), atol=0.5001)
    signed = patterned(61, 37).astype(np.int16) - 2000
    peer.send(image_of(signed, 2, WindowCenter="0", WindowWidth="3000"))
    shows(page, "#place", "2 / 2")
    np.testing.assert_allclose(painted(page, 61, 37)[..., 0], grey(signed[0, 0], 0, 3000), atol=0.5001)
    real = np.linspace(-1e-3, 2e-3, 61 * 37, dtype=np.float32).reshape(1, 1, 37, 61)  # all of it, without a window
    peer.send(image_of(real, 3))
    shows(page, "#place", "3 / 3")
    np.testing.assert_allclose(painted(page, 61, 37)[..., 0], grey(real[0, 0], 0.5e-3, 3e-3), atol=1)  # of 16 bits
    colours = np.stack([patterned(61, 37, n)[0] % 256 for n in range(3)])
    coloured = image_of(colours, 4, WindowCenter="127.5", WindowWidth="255")
    coloured.image_type = ismrmrd.IMTYPE_RGB
    peer.send(coloured)
    shows(page, "#place", "4 / 4")
    np.testing.assert_array_equal(painted(page, 61, 37), np.moveaxis(colours[:, 0], 0, -1))


def test_keyboard_goes_through_the_images(page, scene):
    peer = scene.scan()
    send_movie(peer)
    shows(page, "#place", "6 / 6")
    page.keyboard.press("f")
    for key, place in (("ArrowLeft", 5), ("ArrowLeft", 4), ("ArrowRight", 5), ("Home", 1), ("End", 6), (" ", 6)):
        page.keyboard.press(key)
        shows(page, "#place", f"{place} / 6")
        expected = grey(patterned(61, 37, 20 * place)[0, 0], 2048, 4096)
        np.testing.assert_allclose(painted(page, 61, 37)[..., 0], expected, atol=0.5001)
    peer.send(image_of(patterned(61, 37), 7))  # paused: the image stays
    shows(page, "#place", "6 / 7")
    page.keyboard.press(" ")  # plays on, up to the newest, and is live again
    page.wait_for_function("() => document.getElementById('live').className === 'on'")
    shows(page, "#place", "7 / 7")


def test_mouse_scrubs_and_changes_the_window(page, scene):
    peer = scene.scan()
    send_movie(peer)
    shows(page, "#place", "6 / 6")
    page.locator("#scrub").fill("2")
    shows(page, "#place", "3 / 6")
    shows(page, "#play", "Play")
    shows(page, "#windowing", "window 2048, 4096")
    middle = page.locator("#image").bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 150, y + 75)  # half as wide, and darker by a quarter of it
    page.mouse.up()
    shows(page, "#windowing", "window 3072, 2048")
    page.click("#size")
    expected = grey(patterned(61, 37, 60)[0, 0], 3072, 2048)
    np.testing.assert_allclose(painted(page, 61, 37)[..., 0], expected, atol=0.5001)
    page.mouse.move(x, y)
    column, row, value = map(int, re.fullmatch(r"x (\d+), y (\d+): (\d+)", page.inner_text("#value")).groups())
    assert (column, row) == (pytest.approx(30, abs=1), pytest.approx(18, abs=1))
    assert value == patterned(61, 37, 60)[0, 0, row, column]
    page.mouse.dblclick(x, y)
    shows(page, "#windowing", "window 2048, 4096")
    page.click("#live")
    shows(page, "#place", "6 / 6")


def test_slices_are_shown_beside_each_other_or_one_by_one(page, scene):
    peer = scene.scan()
    for number in range(4):
        image = image_of(np.full((1, 1, 40, 40), 1000 * number, np.uint16), WindowCenter="2048", WindowWidth="4096")
        image.slice = number
        peer.send(image)
    shows(page, "#place", "4 / 4")
    page.keyboard.press("f")
    found = painted(page, 80, 80)[..., 0]
    corners = [int(found[y, x]) for y in (10, 70) for x in (10, 70)]
    assert corners == pytest.approx([0, 62, 125, 187], abs=1)
    page.keyboard.press("m")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    shows(page, "#corner", "slice 2")
    assert abs(int(painted(page, 40, 40)[20, 20, 0]) - 125) <= 1


def test_page_comes_back_when_the_server_has_been_started_again(page, scene):
    send_movie(scene.scan())
    shows(page, "#place", "6 / 6")
    scene.stop()
    shows(page, "#link", "trying again")
    scene.start()
    send_movie(scene.scan(header=make_header("second")), 2)
    shows(page, "#link", "connected")
    shows(page, "#place", "2 / 2")
    shows(page, "#sessions", "second")
    assert page.locator(".session").count() == 1  # those of the server before are gone


def test_text_from_outside_is_shown_as_text(page, scene):
    peer = scene.scan(header=make_header(HOSTILE))
    peer.send(
        make_acquisition(1),
        f"ERROR    {HOSTILE}",
        image_of(patterned(8, 8), Fallback=HOSTILE, ReconstructionMethod=HOSTILE),
    )
    for place in ("#sessions", "#title", "#messages .ERROR", "#mark", "#corner"):
        shows(page, place, HOSTILE)
    assert "FALLBACK IMAGE" in page.inner_text("#mark")
    assert page.evaluate("() => [document.images.length, window.hacked, document.scripts.length]") == [0, None, 1]


def test_foreign_page_cannot_read_the_view(browser, scene):
    """Neither by its own name, nor by one of the attacker's that leads to this machine."""
    foreign = browser.new_page()
    foreign.route("http://evil.example/", lambda route: route.fulfill(body="<p>hello</p>", content_type="text/html"))
    foreign.goto("http://evil.example/")
    opened = """(url) => new Promise((done) => {
        const socket = new WebSocket(url);
        socket.onmessage = () => done("read");
        socket.onerror = () => done("refused");
    })"""
    assert foreign.evaluate(opened, f"ws://127.0.0.1:{scene.view_port}/live") == "refused"
    read = f"() => fetch('http://127.0.0.1:{scene.view_port}/').then(() => 'read', () => 'refused')"
    assert foreign.evaluate(read) == "refused"
    foreign.close()


def test_messages_by_severity_and_waveforms(page, scene):
    peer = scene.scan()
    waveform = make_waveform(16, channels=5, samples=400, time=1000)
    waveform.data[:] = 0
    waveform.data[0] = (1000 * np.sin(np.arange(400) / 10) + 1000).astype(np.uint32)
    waveform.data[4, 200] = 1
    peer.send(make_acquisition(1), "INFO     trajectory: of nothing", "WARNING  mind", "ERROR    broken", waveform)
    shows(page, "#messages", "broken")
    page.select_option("#severity", "2")
    assert page.locator("#messages li:visible").all_inner_texts()[0].endswith("mind")
    page.select_option("#severity", "3")
    assert page.locator("#messages li:visible").count() == 1
    page.click("#tab-settings")
    shows(page, "#settings", "trajectory: of nothing")
    page.wait_for_selector("#traces:visible")
    colours = """() => {
        const canvas = document.getElementById("traces");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let [green, amber] = [0, 0];
        for (let n = 0; n < data.length; n += 4) {
            if (data[n + 1] > data[n] + 40 && data[n + 3] > 150) green += 1;
            if (data[n] > data[n + 2] + 60 && data[n + 3] > 50) amber += 1;
        }
        return [green, amber];
    }"""
    green, amber = page.evaluate(colours)
    assert green > 50  # the curve
    assert amber > 8  # the trigger


def test_slow_page_goes_on_with_the_newest_image_and_says_what_it_has_left_out(page, scene, monkeypatch):
    monkeypatch.setattr(site, "BEHIND", 0)
    peer = scene.scan()
    peer.send(image_of(patterned(61, 37)))
    shows(page, "#place", "1 / 1")
    session = page.context.new_cdp_session(page)
    paused = threading.Event()
    session.on("Debugger.paused", lambda event: paused.set())
    session.send("Debugger.enable")
    page.evaluate("() => void setTimeout(() => { debugger; })")
    while not paused.is_set():
        page.wait_for_timeout(10)  # [ms]; events come only during calls
    for number in range(2, 101):
        peer.send(image_of(patterned(61, 37, number), number))
    assert wait_until(lambda: scene.view.hub.sessions["session-1"].summary.sent_images == 100)
    (viewer,) = scene.view._viewers
    assert len(viewer._in_flight) <= 4
    session.send("Debugger.resume")
    session.send("Debugger.disable")
    shows(page, "#place", "100 / 100")  # in the end it has them all
    skipped = int(page.inner_text("#counts").split()[0])
    assert skipped >= 90
