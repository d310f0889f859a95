"""The live view: time from sent to painted in Chromium, and what viewers cost the scan.

    python benchmarks/view.py [--rounds N]

A scan sends 25 readouts a second through the server, each of which comes back as an image of 192 x 192 pixels. Its
latency is the time from the sending of a readout to the arrival of its image. Scans with and without viewers take turns
on the same server each, so that what else the machine does meets all of them; figures are medians over the rounds. The
painted time is taken in the page, after the browser has painted. "Ten viewers" are one Chromium, eight plain sockets
and one that takes nothing after its first frame; they get what the others leave of the processor, as they would be on
other machines.
"""

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import psutil
from streaming import PROJECT, running_server

sys.path.insert(0, str(PROJECT))

from connection import Connection

SIZE, RATE, SECONDS = 192, 25, 10
MODULE = f"""
import numpy as np
import mrdhelper
def process(connection, config, metadata):
    movie = np.random.default_rng(0).integers(0, 4096, (50, {SIZE}, {SIZE})).astype(np.int16)
    for number, readout in enumerate(connection, start=1):
        connection.send_image(mrdhelper.build_image(movie[number % 50], readout.getHead(), metadata, index=number))
"""


def scan(port: int, seconds: float = SECONDS) -> list[float]:
    """Send readouts at the pace of a scan; returns how long each image took [ms]."""
    connection = Connection(socket.create_connection(("127.0.0.1", port), timeout=60))
    sent: list[float] = []
    arrived: list[float] = []
    readout = ismrmrd.Acquisition.from_array(np.zeros((8, 256), np.complex64))

    def receive() -> None:
        arrived.extend(time.perf_counter() for item in connection if isinstance(item, ismrmrd.Image))

    receiver = threading.Thread(target=receive)
    receiver.start()
    connection.send_config_file("movie")
    connection.send_metadata("no header")
    start = time.perf_counter()
    for number in range(round(seconds * RATE)):
        time.sleep(max(0.0, start + number / RATE - time.perf_counter()))
        sent.append(time.perf_counter())
        connection.send_acquisition(readout)
    connection.send_close()
    receiver.join()
    connection.close()
    return [1e3 * (end - begin) for begin, end in zip(sent, arrived, strict=True)][RATE:]


def watch(port: int, viewers: int, stopped: int) -> None:
    """Be so many viewers over plain sockets, until the standard input ends; some take nothing after a frame."""
    from websockets.sync.client import connect

    def view(is_slow: bool) -> None:
        with connect(f"ws://127.0.0.1:{port}/live", origin=f"http://127.0.0.1:{port}", compression=None) as server:
            watched = None
            for said in server:
                if isinstance(said, str) and '"sessions"' in said:
                    newest = json.loads(said)["sessions"][-1:]
                    if newest and newest[0]["name"] != watched:
                        watched = newest[0]["name"]
                        server.send(json.dumps({"watch": watched}))
                elif isinstance(said, bytes) and is_slow:
                    threading.Event().wait()
                elif isinstance(said, bytes):
                    server.send('{"got": 1}')

    for number in range(viewers):
        threading.Thread(target=view, args=(number < stopped,), daemon=True).start()
    sys.stdin.read()


@contextlib.contextmanager
def plain_viewers(port: int, viewers: int, stopped: int) -> Iterator[None]:
    """Viewers in a process of their own."""
    command = [sys.executable, __file__, "--watch", str(port), str(viewers), str(stopped)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        time.sleep(1)
        yield
        process.stdin.close()


@contextlib.contextmanager
def chromium(port: int) -> Iterator[Any]:
    """Open the view in headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#link.up")
        yield page
        browser.close()


def give_way() -> None:
    """Let the viewers use only what others leave of the processor."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "main.py" not in " ".join(process.cmdline()):
                process.nice(19)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="scans of each kind")
    parser.add_argument("--watch", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(*options.watch)
        return
    names = ("no view", "view, nobody watches", "one Chromium", "ten viewers, one of them stopped")
    p50, p99 = ({name: [] for name in names} for _ in range(2))
    painted: list[float] = []
    skipped = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "movie.py").write_text(MODULE)
        view = free_port()
        with (
            running_server(folder=Path(folder)) as (plain, _),
            running_server("--view", str(view), folder=Path(folder)) as (watched, _),
        ):
            for _ in range(options.rounds):
                for name in names:
                    with contextlib.ExitStack() as viewers:
                        page = None
                        if name in names[2:]:
                            page = viewers.enter_context(chromium(view))
                        if name == names[3]:
                            viewers.enter_context(plain_viewers(view, 9, 1))
                            give_way()
                        latencies = scan(plain if name == names[0] else watched)
                        if name == names[2]:
                            painted += page.evaluate("paintDelays")[RATE:]
                            words = page.inner_text("#counts")
                            skipped += int(words.split()[0]) if words else 0
                    p50[name].append(float(np.percentile(latencies, 50)))
                    p99[name].append(float(np.percentile(latencies, 99)))
    print("| scan | latency p50 [ms] | p99 [ms] | p99 beside no view [ms] |\n| --- | --- | --- | --- |")
    for name in names:
        more = statistics.median(each - alone for each, alone in zip(p99[name], p99[names[0]], strict=True))
        print(f"| {name} | {statistics.median(p50[name]):.2f} | {statistics.median(p99[name]):.2f} | {more:+.2f} |")
    count = options.rounds * RATE * SECONDS
    middle, most = np.percentile(painted, (50, 95))
    print(f"| sent to painted in Chromium | {middle:.1f} | p95 {most:.1f} | {skipped} of {count} images left out |")


if __name__ == "__main__":
    main()
