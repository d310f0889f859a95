"""A Dask scheduler and workers as processes, for the tests of what runs on a cluster; fixtures through conftest.py."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parent.parent
WORKER = ("--nthreads", "1", "--no-nanny", "--preload", "cluster_parts")  # which has solvers report at once


class Dask:
    """A scheduler and its workers, as processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: list[subprocess.Popen] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-show")
        for line in self.scheduler.stderr:
            if found := re.search(r"Scheduler at: +(tcp://\S+)", line):
                self.address = found[1]
                break

    def _start(self, role: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", role, *arguments, "--no-dashboard"],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT / "tests"), "DASK_TEMPORARY_DIRECTORY": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if role == "scheduler" else subprocess.DEVNULL,
            text=True,
        )

    def workers(self, count: int) -> dict[int, subprocess.Popen]:
        """So many workers that live, by process number; those of earlier tests, where they still do."""
        self._workers = [worker for worker in self._workers if worker.poll() is None]
        while len(self._workers) > count:
            kill(self._workers.pop())
        while len(self._workers) < count:
            self._workers.append(self._start("worker", self.address, *WORKER))
        return {worker.pid: worker for worker in self._workers}

    def worker_at(self, address: str) -> subprocess.Popen:
        """The worker that listens at an address."""
        port = int(address.rpartition(":")[2])
        for worker in self._workers:
            if any(one.laddr.port == port for one in psutil.Process(worker.pid).net_connections() if not one.raddr):
                return worker
        raise LookupError(f"no worker listens at {address}")

    def end(self) -> None:
        for process in (*self._workers, self.scheduler):
            if process.poll() is None:
                kill(process)


def kill(process: subprocess.Popen) -> None:
    """End a process at once."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    if process.stderr:
        process.stderr.close()


@pytest.fixture(scope="session")
def dask_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dask]]:
    """Where the scheduler stands that tests share, for starting it takes seconds."""
    shared: list[Dask] = []
    yield shared
    for dask in shared:
        dask.end()


@pytest.fixture
def dask(dask_processes: list[Dask], tmp_path_factory: pytest.TempPathFactory, no_leaks: None) -> Dask:
    """A scheduler that lives; its workers may be those of earlier tests."""
    if not dask_processes or dask_processes[-1].scheduler.poll() is not None:
        dask_processes.append(Dask(tmp_path_factory.mktemp("dask")))
    return dask_processes[-1]
