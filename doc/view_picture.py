"""Make the picture of ``doc/view.md``: ``python doc/view_picture.py``; needs Chromium."""

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "benchmarks")]

from streaming import running_server  # noqa: E402

SHOWN_AFTER = 70  # images


def main() -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        (folder / "seq_meta").mkdir()
        probe.bind(("127.0.0.1", 0))
        view = probe.getsockname()[1]
        probe.close()

        def run(script: str, *arguments: str) -> subprocess.Popen:
            return subprocess.Popen([sys.executable, str(PROJECT / script), *arguments], cwd=folder)

        cartesian = ("-m", "192", "-c", "8", "-n", "0.02", "--slices", "6")
        run("generate_cartesian_shepp_logan_dataset.py", *cartesian, "-o", "phantom.h5").wait()
        run("generate_spiral_dataset.py", "--seq-meta", "seq_meta", "-a", "2400", "-o", "spiral.h5").wait()
        (folder / "broken.py").write_text(
            "def process(connection, config, metadata):\n    list(connection)\n    1 / 0\n"
        )
        with running_server("--view", str(view), folder=folder) as (port, _), sync_playwright() as playwright:
            send = ("-p", str(port), "--quiet", "-o", "images.h5")
            run("client.py", *send, "-c", "simplefft", "phantom.h5").wait()
            run("client.py", *send, "-c", "broken", "phantom.h5").wait()
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{view}/")
            live = run("client.py", *send, "-c", "simplenufft1arm", "--realtime", "-w", "spiral.h5")
            shown = f"() => parseInt(document.getElementById('place').textContent) > {SHOWN_AFTER}"
            page.wait_for_function(shown, timeout=120_000)
            page.keyboard.press("a")
            page.wait_for_timeout(500)  # for the plots
            page.screenshot(path=PROJECT / "doc" / "pictures" / "view.png")
            browser.close()
            live.terminate()
            live.wait()


if __name__ == "__main__":
    main()
