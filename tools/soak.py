"""Load for minutes or hours: a server that saves, clients of every kind, cuts and kills; figures over time.

    python tools/soak.py --clients 8 --minutes 30 --plot soak.png

Prints the figures as Markdown; the plot is optional. The exit status is 1 when a session did not end as
expected, when a recording is missing or double, or when memory, threads, files or processes of the server grow.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [each for each in map(str, (PROJECT, PROJECT / "tests")) if each not in sys.path]

from mrdio.commandline import number
from mrdio.conversion import protocol_name
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from server import HOUSEKEEPING
from server_process import ServerProcess
from tools.soakclients import Client, ClientProcesses, Report
from tools.soakfigures import AT_REST, Run, Sample, draw, judge, summary
from tools.soakscans import FAILS_AFTER, make_scans

PERIOD = 1.0  # of the samples [s]
REST = 60.0  # how long the server may take to finish what it has begun, when the clients have gone [s]
LOOK = 0.25  # how often it is looked at until then [s]
CALM = HOUSEKEEPING + 1  # how long nothing may have changed: so often the server forgets sessions that have ended [s]
NOT_HANDLED = (
    "Exception in thread", "Exception ignored", "Fatal Python error", "Segmentation fault", "kept as it is",
)  # fmt: skip


class RecordingCheck:
    """Opens the recordings of the server, compares and removes them, so that the disk does not run full.

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
        self.folder, self.opened, self.items = folder, 0, 0
        self.found: dict[str, list[int]] = {}
        self.problems: list[str] = []

    def empty(self) -> None:
        """Open and remove complete recordings."""
        for path in self.folder.glob("*.broken"):
            self.problems.append(f"{path.name} could not be read to its end")
            path.unlink()
        for path in self.folder.glob("*.h5"):
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
        """Compare the recordings with what the clients have sent; returns what is missing or double."""
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


def take_sample(server: ServerProcess, saved: Path, begin: float) -> Sample:
    """Look at the server and its processes; the time counts from a begin on the monotonic clock [s]."""
    counts, own = server.counts(), server.process.memory_info().rss
    counts |= {"memory": own, "helpers": counts["memory"] - own, "temporary": len(server.temporary_folders())}
    return {"time": time.monotonic() - begin} | counts | {"recordings": len(list(saved.glob("*")))}


def wait_for_rest(server: ServerProcess, check: RecordingCheck) -> Sample:
    """Wait until nothing of the server has changed for a while, and nothing is left to convert; then look at it."""
    calm, deadline = 0.0, time.monotonic() + REST
    before: Sample = {}
    while calm < CALM and time.monotonic() < deadline:
        time.sleep(LOOK)
        check.empty()
        now = take_sample(server, check.folder, 0.0)
        same = before and all(now[name] == before[name] for name in AT_REST)
        calm = calm + LOOK if same and not now["recordings"] else 0.0
        before = now
    return before


def warm_up(folder: Path, address: tuple[str, int]) -> None:
    """Have each scan reconstructed alone, and keep the images as the reference for all later sessions.

    Raises
    ------
    RuntimeError
        If a session does not end as expected, or gives other images at its second time.
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
    check = RecordingCheck(folder / "saved")
    arguments = ["-d", "null", "-s", "-S", check.folder, "--grace", "1", *["-m"] * options.processes]
    with contextlib.ExitStack() as ending:
        server = ServerProcess(*arguments, cwd=folder, temporary=folder / "temporary")
        ending.callback(server.end_all)
        warm_up(folder, server.address)
        before = wait_for_rest(server, check)
        opened, items = check.opened, check.items
        clients = ClientProcesses(folder, server.address, options)
        ending.callback(clients.kill)
        samples = []
        while time.monotonic() < clients.until:
            clients.disturb()
            check.empty()
            samples.append(take_sample(server, check.folder, clients.begin))
            time.sleep(max(0.0, clients.begin + PERIOD * len(samples) - time.monotonic()))
        killed = clients.end()
        seconds = time.monotonic() - clients.begin
        after = wait_for_rest(server, check)
        status, log = server.stop(), server.log()
    run = Run(seconds, before, after, samples, clients.reports, killed, check.opened - opened, check.items - items)
    run.problems = judge(run) + check.problems + check.compare(report for _, report in run.reports)
    run.problems += [f"the server's log holds {text!r}" for text in NOT_HANDLED if text in log]
    run.problems += [f"the server ended with {status}"] * (status != 0)
    if run.problems:
        print(log, file=sys.stderr)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Load a server for minutes or hours.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--clients", type=number(1, high=1000), default=8, help="sessions that run at a time, at most")
    add("--minutes", type=number(0.05, float), default=30.0, help="how long clients come")
    add("--plot", type=Path, help="picture to write")
    add("--processes", action="store_true", help="give each session of the server a process (main.py -m)")
    add("--pause", type=number(0, float), default=2.0, help="mean pause of a client between two sessions [s]")
    add("--seed", type=number(0), default=1, help="of everything that happens by chance")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        run = soak(options, Path(folder))
    print(summary(run))
    if options.plot:
        draw(run, options.plot)
    return int(bool(run.problems))


if __name__ == "__main__":
    sys.exit(main())
