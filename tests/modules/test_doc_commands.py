"""Each guide begins with commands to copy. They are run as they stand, in a copy of the project's folder.

Only ports are replaced, and options that make a scan small are appended to commands that generate data.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mrdio.mrdfile import MrdReader
from server_process import PATIENCE, PROJECT, ServerProcess, wait_until

DOC = PROJECT / "doc"
SMALL = ["-m", "32", "-c", "2", "-a", "84"]
# Options that are appended to the generators' commands, and images that the last client's output holds at least.
GUIDES = {
    "cartesian.md": ([], 1),
    "cluster.md": (SMALL, 12),
    "fields.md": (SMALL, 2),
    "live.md": (SMALL, 2),
    "modules.md": ([], 1),
    "openrecon.md": ([], 0),
    "scanner.md": (["-m", "64"], 1),
    "sequences.md": (["-m", "32", "-c", "2"], 2),
    "tfd.md": (SMALL, 12),
    "view.md": (SMALL, 0),
    "xdgrasp.md": (["-m", "16", "-c", "1", "--seconds", "14"], 240),
}
ELSEWHERE = {
    "containers.md": "needs Docker; what does not is run by test_readme.py",
    "devcontainers.md": "needs Docker and an editor",
    "doctor.md": "test_doctor.py",
    "filters.md": "test_readme.py",
    "gpu.md": "needs a GPU",
    "helpers.md": "test_helpers_page.py",
    "native.md": "its commands are those of tfd.md; a second block needs BART",
    "performance.md": "commands of spiral.md and doctor.md: test_readme.py, test_doctor.py",
    "spiral.md": "test_readme.py",
}
REFERENCE = {  # no commands to begin with
    "benchmarks.md",
    "conventions.md",
    "glossary.md",
    "options.md",
    "other-servers.md",
    "protocol.md",
    "reliability.md",
    "troubleshooting.md",
    "viewers.md",
}


def first_commands(name):
    """Commands of the first block of a document, before its first section."""
    beginning = re.split(r"^## ", (DOC / name).read_text("utf-8"), maxsplit=1, flags=re.MULTILINE)[0]
    found = re.search(r"^```(?:sh|bash)?\n(.*?)^```$", beginning, re.MULTILINE | re.DOTALL)
    return found[1].splitlines() if found else []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Desk:
    """A copy of the project's folder, and the programs that run in it."""

    def __init__(self, folder):
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
        for name in tracked.decode().split("\0")[:-1]:
            if name.partition("/")[0] not in ("tests", "doc", "benchmarks") and (PROJECT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, folder / name)
        self.folder, self.servers, self.ports = folder, {}, {}

    def begin(self, sizes):
        """Begin with a guide: nothing is left of others but servers, which read their settings for each scan."""
        for path in self.folder.glob("*.h5"):
            path.unlink()
        self.sizes, self.others, self.output = sizes, [], None

    def port(self, written):
        """Free port in place of one that a document names; the same each time."""
        return self.ports.setdefault(written, str(free_port()))

    def background(self, command, **environment):
        log = self.folder / f"log{len(self.others)}"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
        self.others.append(process)
        return process, lambda: log.read_text("utf-8", "replace")

    def run(self, line):
        for written in re.findall(r"\b(?:8786|9003|9010)\b", line):
            line = line.replace(written, self.port(written))
        words = shlex.split(line)
        if words[:2] == ["python", "main.py"]:
            if line not in self.servers:
                self.servers[line] = ServerProcess(*words[2:], cwd=self.folder, program=self.folder / "main.py")
            self.server = self.servers[line]
            assert self.server.port, self.server.log()
        elif words[:3] == ["python", "-m", "dask"]:
            _, log = self.background([sys.executable, *words[1:], *(["--no-dashboard"])])
            assert wait_until(lambda: "Scheduler at" in log() or "Registered to" in log()), log()
        elif line.endswith("server.log"):
            _, log = self.background(["bash", "-c", line], PYTHON=sys.executable)
            file = self.folder / "server.log"
            assert wait_until(lambda: file.exists() and "Listening" in file.read_text("utf-8")), log()
        elif words[0] != "python":
            assert words[0] in ("cp", "sed")
            subprocess.run(words, cwd=self.folder, check=True)
        else:
            self.program(words[1:])

    def program(self, words):
        if words[0].startswith("generate_"):
            words += self.sizes
        if words[0] == "client.py" and "-p" not in words:
            words[1:1] = ["-p", str(self.server.port)]
        command = [sys.executable, *words]
        if "--loop" in words:  # it ends with Ctrl+C
            process, log = self.background(command)
            assert wait_until(lambda: "session-2" in self.server.log()), log()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
            return
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        if words[0] == "client.py" and "-o" in words:
            self.output = self.folder / words[words.index("-o") + 1]

    def end(self):
        for process in reversed(self.others):
            process.terminate()
            process.wait(PATIENCE + 20)

    def stop(self):
        for server in self.servers.values():
            assert server.stop() == 0, server.log()


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = Desk(tmp_path_factory.mktemp("project"))
    yield desk
    desk.stop()


@pytest.mark.parametrize("name", GUIDES)
def test_first_commands_of_a_guide(name, desk):
    sizes, images = GUIDES[name]
    desk.begin(sizes)
    try:
        for line in first_commands(name):
            desk.run(line)
    finally:
        desk.end()
    if images:
        with MrdReader(desk.output) as file:
            assert file.image_count >= images


@pytest.mark.parametrize("path", sorted(DOC.glob("*.md")), ids=lambda path: path.stem)
def test_guides_begin_with_commands(path):
    """A new page belongs into one of the tables above."""
    assert first_commands(path.name) or path.name in REFERENCE or path.name in ELSEWHERE
    assert not first_commands(path.name) or path.name in GUIDES or path.name in ELSEWHERE, "nothing runs them"


def test_commands_that_others_run_are_run():
    """Tests that `ELSEWHERE` names are there."""
    for reason in ELSEWHERE.values():
        for name in re.findall(r"test_\w+\.py", reason):
            assert list(Path(PROJECT, "tests").rglob(name)), name
