"""`python main.py` as its users start it."""

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PATIENCE = 10.0  # how long a test waits for what has to come [s]


class ServerProcess:
    """`python main.py` on a free port."""

    def __init__(self, *arguments, cwd):
        self.process = subprocess.Popen(
            [sys.executable, PROJECT / "main.py", "-p", "0", *map(str, arguments)],
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip
        self.lines = []
        self.port = None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"Listening on \S+:(\d+)", line):
                self.port = int(found[1])
                break
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self._reader.start()

    def stop(self, signum=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(signum)
        status = self.process.wait(PATIENCE + 20)
        self._reader.join(PATIENCE)
        self.process.stdout.close()
        return status

    def wait_for(self, word):
        deadline = time.monotonic() + PATIENCE
        while word not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def log(self):
        return "".join(self.lines)


@pytest.fixture(name="start")
def start_server_process(tmp_path):
    running = []

    def start_server(*arguments):
        running.append(ServerProcess(*arguments, cwd=tmp_path))
        assert running[-1].port, running[-1].log()
        return running[-1]

    yield start_server
    for each in running:
        if each.process.poll() is None:
            each.stop(signal.SIGKILL)
