"""Load for minutes or hours: a server that saves, clients of every kind, cuts and kills; figures over time as a plot.

    python reliability/soak.py --clients 8 --minutes 30 --plot doc/pictures/soak.png

Prints a summary as Markdown, and writes the figures as JSON beside the plot. The exit status is 1 when a session came
to something else than it had to, or when memory, threads, files or processes of the server have grown.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

import psutil

from mrdio.commandline import number
from mrdio.mrdfile import MrdFileError, MrdReader
from mrdio.recordings import protocol_name
from reliability.serverprocess import ServerProcess
from reliability.soakclient import Client, Report
from reliability.soakfigures import AT_REST, Run, Sample, draw, judge, save, summary
from reliability.soakscans import FAILS_AFTER, make_scans
from server import HOUSEKEEPING

PERIOD = 1.0  # of the samples [s]
KILL_EVERY = 10.0  # mean time between two killed processes of clients [s]
REST = 60.0  # how long the server may take to finish what it has begun, when the clients have gone [s]
LOOK = 0.25  # how often it is looked at until then [s]
CALM = HOUSEKEEPING + 1  # how long nothing may have changed: so often the server forgets sessions that have ended [s]
PROCESSES = 4  # of clients, at most
NOT_HANDLED = (
    "Exception in thread", "Exception ignored", "Fatal Python error", "Segmentation fault", "kept as it is",
)  # fmt: skip


class Crowd:
    """The processes of clients, and what they report.

    Parameters
    ----------
    folder : Path
        Where the scans are.
    address : tuple
        The server's.
    options : argparse.Namespace
        The command line.

    Attributes
    ----------
    reports : list of (float, Report)
        When each session ended, since the begin [s], and how.
    kills : int
        How many processes were killed.
    """

    def __init__(self, folder: Path, address: tuple[str, int], options: argparse.Namespace) -> None:
        self.reports: list[tuple[float, Report]] = []
        self.kills = 0
        self.begin = time.monotonic()
        self.until = self.begin + 60 * options.minutes
        self._settings = {"until": self.until, "pause": options.pause}
        self._arguments = [str(folder), *map(str, address)]
        self._seed = options.seed
        self._choice = random.Random(options.seed)
        self._mean = min(KILL_EVERY, 60 * options.minutes / 5)  # a short run is to have kills, too
        self._next_kill = self.begin + self._choice.expovariate(1 / self._mean)
        self._running: dict[tuple[int, int], str] = {}
        reading, self._writing = os.pipe()
        self._listener = threading.Thread(target=self._listen, args=(reading,), name="reports", daemon=True)
        self._listener.start()
        count = min(PROCESSES, options.clients)
        shares = [options.clients // count + (place < options.clients % count) for place in range(count)]
        self._processes = [(self._start(f"{place}", threads), threads) for place, threads in enumerate(shares)]

    def _start(self, place: str, threads: int) -> subprocess.Popen:
        settings = self._settings | {"threads": threads, "seed": f"{self._seed}-{place}", "pipe": self._writing}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "reliability.soakclient", *self._arguments, *flags]
        return subprocess.Popen(command, cwd=PROJECT, pass_fds=[self._writing])

    def _listen(self, reading: int) -> None:
        """Take the reports of all clients, until all of them have ended."""
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                session = (event.pop("process"), event.pop("thread"))
                if event.pop("event") == "begin":
                    self._running[session] = event["scan"]
                else:
                    self._running.pop(session, None)
                    self.reports.append((time.monotonic() - self.begin, Report(**event)))

    def disturb(self) -> None:
        """Kill a process of clients when it is time to, and put another one in its place."""
        now = time.monotonic()
        if not self._next_kill < now < self.until:
            return
        self._next_kill = now + self._choice.expovariate(1 / self._mean)
        place = self._choice.randrange(len(self._processes))
        victim, threads = self._processes[place]
        victim.kill()
        victim.wait()
        self.kills += 1
        self._processes[place] = (self._start(f"{place}-{self.kills}", threads), threads)

    def end(self) -> dict[str, int]:
        """Wait for the clients; returns, by scan, the sessions that went down with their process."""
        for process, _ in self._processes:
            process.wait(10 * REST)
        self.kill()
        return dict(Counter(self._running.values()))

    def kill(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for process, _ in self._processes:
            process.kill()
            process.wait()
        if self._listener.is_alive():
            os.close(self._writing)
            self._listener.join()


class Keeper:
    """Opens what the server has saved, and removes it, so that the disk does not run full.

    Attributes
    ----------
    opened, items : int
        Recordings, and the readouts and images in them.
    found : dict
        By protocol, the readouts and images of each recording.
    problems : list of str
        Recordings that could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened = self.items = 0
        self.found: dict[str, list[int]] = {}
        self.problems: list[str] = []

    def empty(self) -> None:
        """Take what is complete."""
        for path in self._folder.glob("*.broken"):
            self.problems.append(f"{path.name} could not be read to its end")
            path.unlink()
        for path in self._folder.glob("*.h5"):
            if not path.stat().st_size:
                continue  # a name that has been taken for a file to come
            try:
                with MrdReader(path) as reader:
                    count = reader.acquisition_count + reader.image_count
                self.items += count
                self.found.setdefault(protocol_name(reader.header_xml or ""), []).append(count)
            except MrdFileError as error:
                self.problems.append(str(error))
            self.opened += 1
            path.unlink()

    def compare(self, reports: Iterable[Report]) -> list[str]:
        """Compare the recordings with what the clients have sent; returns what is missing, or there twice."""
        problems: Counter[str] = Counter()
        for report in reports:
            counts = self.found.get(report.protocol, [])
            # After a reset, and behind a crash, the server has received some of it.
            least = 0 if report.fault == "reset" else report.items
            if report.scan == "soakcrashing":
                least = min(least, FAILS_AFTER)
            if len(counts) > 1:
                problems[f"{report.scan}, {report.fault}: saved {len(counts)} times"] += 1
            elif not least <= sum(counts) <= report.items:
                saved = f"{sum(counts)} of {report.items} readouts and images" if counts else "nothing"
                problems[f"{report.scan}, {report.fault}: {saved} saved"] += 1
        return [f"{count} x {text}" for text, count in problems.items()]


def take_sample(server: ServerProcess, begin: float) -> Sample:
    """Look at the server and its processes; the time counts from a begin on the monotonic clock [s]."""
    memory = tree = threads = handles = 0
    found = server.tree()
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            own = process.memory_info().rss
            threads += process.num_threads()
            handles += process.num_fds()
            tree += own
            memory += own if process.pid == server.process.pid else 0
    recordings = len(list(server.saved.iterdir()))
    temporary = len(server.temporary_folders())
    return Sample(time.monotonic() - begin, memory, tree, threads, handles, len(found) - 1, recordings, temporary)


def wait_for_rest(server: ServerProcess, keeper: Keeper) -> Sample:
    """Wait until nothing of the server has changed for a while, and nothing is left to convert; then look at it."""
    calm, deadline = 0.0, time.monotonic() + REST
    before = None
    while calm < CALM and time.monotonic() < deadline:
        time.sleep(LOOK)
        keeper.empty()
        now = take_sample(server, 0.0)
        same = before is not None and all(getattr(now, name) == getattr(before, name) for name in AT_REST)
        calm = calm + LOOK if same and not now.recordings else 0.0
        before = now
    return now


def warm_up(folder: Path, address: tuple[str, int]) -> None:
    """Have each scan reconstructed alone, and keep what comes as the reference for all later sessions.

    Raises
    ------
    RuntimeError
        If a session does not come to what it has to, or comes to something else at its second time.
    """
    references: dict[str, list[str]] = {}
    for _ in range(2):
        client = Client(folder, address, references)
        for scan in client.scans:
            report = client.hold(scan)
            if report.problem or len(report.images) < len(scan.waited_for):
                raise RuntimeError(f"alone, {scan.name} came to {report}")
            references.setdefault(scan.name, report.images)
    (folder / "references.json").write_text(json.dumps(references), "utf-8")


def soak(options: argparse.Namespace, folder: Path) -> Run:
    """Run the server and its clients."""
    make_scans(folder, crashing=options.processes)
    with contextlib.ExitStack() as ending:
        server = ServerProcess(folder, "-s", processes=options.processes)
        ending.callback(server.end_all)
        keeper = Keeper(server.saved)
        warm_up(folder, server.address)
        before = wait_for_rest(server, keeper)
        opened, items = keeper.opened, keeper.items
        crowd = Crowd(folder, server.address, options)
        ending.callback(crowd.kill)
        samples = []
        while time.monotonic() < crowd.until:
            crowd.disturb()
            keeper.empty()
            samples.append(take_sample(server, crowd.begin))
            time.sleep(max(0.0, crowd.begin + PERIOD * len(samples) - time.monotonic()))
        killed = crowd.end()
        seconds = time.monotonic() - crowd.begin
        after = wait_for_rest(server, keeper)
        status, log = server.stop(), server.log()
    run = Run(
        shlex.join(["python", *sys.argv]), seconds, before, after, samples, crowd.reports, killed, crowd.kills,
        keeper.opened - opened, keeper.items - items,
    )  # fmt: skip
    run.problems = judge(run) + keeper.problems + keeper.compare(report for _, report in run.reports)
    run.problems += [f"the server's log holds {text!r}" for text in NOT_HANDLED if text in log]
    if status != 0:
        run.problems.append(f"the server ended with {status}")
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Load a server for minutes or hours.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--clients", type=number(1, high=1000), default=8, help="sessions that run at a time, at most")
    add("--minutes", type=number(0.05, float), default=30.0, help="how long clients come")
    add("--plot", type=Path, default=Path("soak.png"), help="picture to write; the figures go beside it as .json")
    add("--processes", action="store_true", help="give each session of the server a process (main.py -m)")
    add("--pause", type=number(0, float), default=2.0, help="mean pause of a client between two sessions [s]")
    add("--seed", type=number(0), default=1, help="of everything that happens by chance")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        run = soak(options, Path(folder))
        if run.problems:
            kept = options.plot.with_suffix(".log")
            kept.write_text((Path(folder) / "server.log").read_text("utf-8", "replace"), "utf-8")
    draw(run, options.plot)
    save(run, options.plot.with_suffix(".json"))
    print(summary(run))
    return int(bool(run.problems))


if __name__ == "__main__":
    sys.exit(main())
