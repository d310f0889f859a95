"""Load for minutes or hours: a server that saves, clients of every kind, cuts and kills; figures over time.

    python tools/soak.py --clients 8 --minutes 30 --plot soak.png

Prints the figures as Markdown; the plot is optional. The exit status is 1 when a session came to something else than it
had to, when a recording is missing or there twice, or when memory, threads, files or processes of the server grow.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [each for each in map(str, (PROJECT, PROJECT / "tests")) if each not in sys.path]

import ismrmrd
import numpy as np

from connection import Connection
from mrdio.codec import MrdError
from mrdio.commandline import number
from mrdio.conversion import protocol_name
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from recon.trajectory import write_metafile
from scripted import CLOSE, cartesian, config, header, message, named
from server import HOUSEKEEPING
from server_process import ServerProcess
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan as SpiralScan
from simulation.spiralsimulation import simulate

MIB = 1 << 20
PERIOD = 1.0  # of the samples [s]
KILL_EVERY = 10.0  # mean time between two killed processes of clients [s]
REST = 60.0  # how long the server may take to finish what it has begun, when the clients have gone [s]
LOOK = 0.25  # how often it is looked at until then [s]
CALM = HOUSEKEEPING + 1  # how long nothing may have changed: so often the server forgets sessions that have ended [s]
PROCESSES = 4  # of clients, at most
PATIENCE = 60.0  # longest silence of the server [s]
SLOW_BUFFER, SLOW_PAUSE = 16 << 10, 0.05  # of a client that reads slowly [bytes], and between two images [s]
NOT_HANDLED = (
    "Exception in thread", "Exception ignored", "Fatal Python error", "Segmentation fault", "kept as it is",
)  # fmt: skip

# How much the memory may be larger in the last quarter of a run than in the second one; in a short run the second one
# still belongs to the time in which each thread takes the memory that it will use again and again.
MAY_GROW_SHARE, MAY_GROW, JUDGED_FROM = 0.10, 32 * MIB, 150.0  # of it, [bytes], [s]
AT_REST = ("threads", "files", "processes", "recordings", "temporary")  # are to be back when the clients have gone

# What may happen to a session, and how often.
FAULTS = {"none": 0.75, "cut": 0.1, "reset": 0.05, "slow reader": 0.1}

TR = 5.74e-3  # of the spiral [s]
ARMS_PER_FRAME, WINDOW_SHIFT, FRAMES = 55, 17, 11
FAILS_AFTER = 20  # readouts
PROTOCOL = "soak-000000000000"  # in each header; a client puts the name of its session there, which names the recording
MODULES = {
    "soakfailing": 'raise RuntimeError("this module always fails")',
    "soakcrashing": "import os; os._exit(3)",  # as a crash in native code does
}

# ---- what is sent --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A session as a client sends it.

    Attributes
    ----------
    name : str
        Names the file with its bytes, too.
    ends : list of int
        Where each message ends in it.
    readouts : int
        How many readouts it has.
    weight : float
        How often clients choose it.
    pace : float
        Time from readout to readout, 0: as fast as it goes [s].
    waited_for : list of int
        Of each image, the number of the message behind which it can come at the earliest; empty: not measured.
    """

    name: str
    ends: list[int]
    readouts: int
    weight: float = 1.0
    pace: float = 0.0
    waited_for: list[int] = field(default_factory=list)


def make_scans(folder: Path, crashing: bool = False) -> list[Scan]:
    """Write all scans into a folder, with the configuration and the modules that they need, and a list of them.

    Parameters
    ----------
    folder : Path
        Where to.
    crashing : bool
        Whether there is one whose module ends its process, which is to be that of its session only.
    """
    scans = []

    def add(
        name: str, head: bytes, data: Sequence[bytes], readouts: int, weight: float = 1.0, pace: float = 0.0,
        waited_for: Sequence[int] = (),
    ) -> None:  # fmt: skip
        messages = [config(name), head, *data, CLOSE]
        (folder / f"{name}.bin").write_bytes(b"".join(messages))
        ends = np.cumsum([len(each) for each in messages]).tolist()
        scans.append(Scan(name, ends, readouts, weight, pace, list(waited_for)))

    def noise(rows: int, channels: int, samples: int) -> list[bytes]:
        parts = np.random.default_rng([rows, channels, samples]).standard_normal((2, rows, channels, samples))
        return cartesian(parts[0] + 1j * parts[1])

    head = header(protocol=PROTOCOL)
    add("simplefft", header(96, 96, PROTOCOL), noise(96, 4, 96), 96, weight=3)
    add("invertcontrast", head, _images(), 0, weight=2)
    add("null", head, noise(512, 8, 256), 512, weight=2)
    for name in ("soakfailing", "soakcrashing")[: 1 + crashing]:
        lines = f"for number, _ in enumerate(connection):\n        if number == {FAILS_AFTER}: {MODULES[name]}"
        (folder / f"{name}.py").write_text(f"def process(connection, config, metadata):\n    {lines}\n", "utf-8")
        add(name, header(48, 48, PROTOCOL), noise(48, 4, 48), 48)

    (folder / "configs").mkdir()
    (folder / "seq_meta").mkdir()
    settings = f"[reconstruction]\narms_per_frame = {ARMS_PER_FRAME}\nwindow_shift = {WINDOW_SHIFT}\n"
    toml = folder / "configs" / "rtspiral_vs_config.toml"
    toml.write_text(f'metafile_paths = ["seq_meta"]\n{settings}', "utf-8")
    trajectory = design_spiral(SpiralDesign(resolution=4e-3, interleaves=13, arms=89), folder / "seq_meta")
    write_metafile(trajectory)
    arms = ARMS_PER_FRAME + (FRAMES - 1) * WINDOW_SHIFT
    spiral = simulate(trajectory, SpiralScan(readouts=arms, tr=TR, coils=4, waveforms=False))
    last_arms = [2 + ARMS_PER_FRAME - 1 + frame * WINDOW_SHIFT for frame in range(FRAMES)]
    data = [message(each) for each in spiral.acquisitions()]
    add("simplenufft1arm", message(named(spiral.header, PROTOCOL)), data, arms, weight=2, pace=TR, waited_for=last_arms)
    (folder / "scans.json").write_text(json.dumps([dataclasses.asdict(scan) for scan in scans]), "utf-8")
    return scans


def _images() -> list[bytes]:
    """More than the buffers between server and client hold, so that a slow reader is felt."""
    random, items = np.random.default_rng(5), []
    for index in range(32):
        item = ismrmrd.Image.from_array(random.integers(0, 2000, (256, 256), np.int16), transpose=False)
        item.image_index, item.image_type = index + 1, ismrmrd.IMTYPE_MAGNITUDE
        item.meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": ["FIRE", "PYTHON"]})
        items.append(message(item))
    return items


# ---- clients -------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Outcome of a session.

    Attributes
    ----------
    scan, fault : str
        What was sent, and what the client did to it on purpose.
    problem : str
        What was not as it has to be; empty when all was.
    images : list of str
        Digests of the images that came.
    latencies : list of float
        From the last readout of each image to the image [s].
    seconds : float
        From connecting to the server's CLOSE [s].
    sent, readouts, items : int
        Bytes; readouts that were sent whole; readouts and images.
    protocol : str
        Protocol in the header, which no other session has.
    """

    scan: str
    fault: str
    problem: str = ""
    images: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    sent: int = 0
    readouts: int = 0
    items: int = 0
    protocol: str = ""


class Client:
    """Holds sessions.

    Parameters
    ----------
    folder : Path
        Where `make_scans` has written.
    address : tuple
        The server's.
    references : dict
        For each scan, the digests of the images that have to come; a scan that is not named is not compared.
    """

    def __init__(self, folder: Path, address: tuple[str, int], references: dict[str, list[str]]) -> None:
        self.scans = [Scan(**scan) for scan in json.loads((folder / "scans.json").read_text("utf-8"))]
        self._bytes = {scan.name: (folder / f"{scan.name}.bin").read_bytes() for scan in self.scans}
        self._address, self._references = address, references

    def hold(self, scan: Scan, fault: str = "none", where: float = 1.0) -> Report:
        """Hold one session.

        Parameters
        ----------
        scan : Scan
            What to send.
        fault : str
            One of `FAULTS`.
        where : float
            After which share of the bytes a fault comes that ends the session.
        """
        protocol, start, length = PROTOCOL[:-12] + secrets.token_hex(6), time.monotonic(), scan.ends[-1]
        cut = min(int(where * length), length - 1) if fault in ("cut", "reset") else length
        report = Report(scan.name, fault, sent=cut, protocol=protocol)
        report.readouts = sum(end <= cut for end in scan.ends[2 : 2 + scan.readouts])
        report.items = sum(end <= cut for end in scan.ends[2:-1])
        content = memoryview(self._bytes[scan.name].replace(PROTOCOL.encode(), protocol.encode(), 1))[:cut]
        sent_at, problems = [0.0] * len(scan.ends), list[str]()
        with socket.socket() as sock:
            if fault == "slow reader":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
            sock.settimeout(PATIENCE)
            sock.connect(self._address)
            sending = sock.dup()  # `Connection` counts its waits itself, and takes the socket's own away
            sending.settimeout(PATIENCE)
            sender = threading.Thread(target=_send, args=(sending, scan, content, sent_at, problems), daemon=True)
            sender.start()
            if fault == "reset":
                sender.join()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                came_at, errors, ending = _receive(sock, report, SLOW_PAUSE if fault == "slow reader" else 0.0)
                sender.join()
                if fault == "none" and len(came_at) == len(scan.waited_for):
                    report.latencies = [
                        came - sent_at[each] for came, each in zip(came_at, scan.waited_for, strict=True)
                    ]
                judged = self._judge(scan, report, cut < length, errors, ending)
                report.problem = ("" if scan.name == "soakcrashing" else "; ".join(problems)) or judged
        report.seconds = time.monotonic() - start
        return report

    def _judge(self, scan: Scan, report: Report, is_cut: bool, errors: list[str], ending: str) -> str:
        """Faults of the answer to a session; empty when there are none."""
        if scan.name == "soakcrashing":
            return "" if ending or is_cut else "the module did not crash"
        if ending:
            return f"no CLOSE: {ending}"
        if is_cut:
            return ""  # whatever came: there was a CLOSE
        if scan.name == "soakfailing":
            return "" if errors else "the failure of the module was not told"
        expected = self._references.get(scan.name, report.images)
        if errors or report.images == expected:
            return "".join(errors[:1])
        different = sum(one != other for one, other in zip(report.images, expected, strict=False))
        return f"{len(report.images)} images instead of {len(expected)}, {different} of them with other pixels"

    def run(self, place: int, until: float, pause: float, seed: str, tell: Callable[[dict], None]) -> None:
        """Hold sessions chosen by chance until a time on the monotonic clock [s]."""
        choice = random.Random(f"{seed}-{place}")
        while time.monotonic() < until:
            (scan,) = choice.choices(self.scans, [each.weight for each in self.scans])
            (fault,) = choice.choices(list(FAULTS), list(FAULTS.values()))
            tell({"begins": scan.name, "thread": place})
            try:
                report = self.hold(scan, fault, choice.random())
            except OSError as error:
                report = Report(scan.name, fault, f"{type(error).__name__}: {error}")
            report.problem = report.problem[:500]  # a report has to fit into one write
            tell({"thread": place} | dataclasses.asdict(report))
            time.sleep(min(choice.expovariate(1 / pause) if pause else 0.0, max(0.0, until - time.monotonic())))


def _send(sock: socket.socket, scan: Scan, view: memoryview, sent_at: list[float], problems: list[str]) -> None:
    """Send bytes at the scan's pace, and note when each message was sent."""
    begin, due = 0, time.monotonic()
    try:
        with sock:
            if not scan.pace:
                sock.sendall(view)
            for place, end in enumerate(scan.ends if scan.pace else ()):
                if begin >= len(view):
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                sock.sendall(view[begin:end])
                sent_at[place] = time.monotonic()
                begin, due = end, due + scan.pace
            if len(view) < scan.ends[-1]:
                sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        problems.append(f"sending: {error}")


def _receive(sock: socket.socket, report: Report, pause: float) -> tuple[list[float], list[str], str]:
    """Take what comes; returns the times of the images, the texts of errors, and what was wrong with the ending."""
    came_at, errors = [], []
    try:
        for item in Connection(sock):
            if isinstance(item, ismrmrd.Image):
                came_at.append(time.monotonic())
                report.images.append(hashlib.blake2b(item.data.tobytes(), digest_size=8).hexdigest())
                time.sleep(pause)
            elif isinstance(item, str) and item.startswith(("ERROR", "CRITICAL")):
                errors.append(item.partition("\n")[0])
    except MrdError as error:
        return came_at, errors, str(error)
    return came_at, errors, ""


def be_clients(
    folder: str, host: str, port: str, until: str, pause: str, threads: str, seed: str, pipe: str
) -> None:  # fmt: skip
    """Be a process of clients, which may be killed at any moment."""
    references = json.loads((Path(folder) / "references.json").read_text("utf-8"))
    client = Client(Path(folder), (host, int(port)), references)

    def tell(event: dict) -> None:
        line = json.dumps(event | {"process": os.getpid()}) + "\n"
        os.write(int(pipe), line.encode())  # up to 4096 bytes are written in one piece, whoever writes besides

    arguments = (float(until), float(pause), seed, tell)
    running = [threading.Thread(target=client.run, args=(place, *arguments)) for place in range(int(threads))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


class Crowd:
    """The processes of clients, and what they report.

    Attributes
    ----------
    reports : list of (float, Report)
        When each session ended, since the begin [s], and how.
    kills : int
        How many processes were killed.
    """

    def __init__(self, folder: Path, address: tuple[str, int], options: argparse.Namespace) -> None:
        self.reports: list[tuple[float, Report]] = []
        self.kills, self.begin = 0, time.monotonic()
        self.until = self.begin + 60 * options.minutes
        self._arguments = [folder, *address, self.until, options.pause]
        self._seed, self._choice = options.seed, random.Random(options.seed)
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
        arguments = [*self._arguments, threads, f"{self._seed}-{place}", self._writing]
        command = [sys.executable, __file__, "--be-clients", *map(str, arguments)]
        return subprocess.Popen(command, cwd=PROJECT, pass_fds=[self._writing])

    def _listen(self, reading: int) -> None:
        """Take the reports of all clients, until all of them have ended."""
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                session = (event.pop("process"), event.pop("thread"))
                if "begins" in event:
                    self._running[session] = event["begins"]
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

    def end(self) -> int:
        """Wait for the clients; returns how many sessions went down with their process."""
        for process, _ in self._processes:
            process.wait(10 * REST)
        self.kill()
        return len(self._running)

    def kill(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for process, _ in self._processes:
            process.kill()
            process.wait()
        if self._listener.is_alive():
            os.close(self._writing)
            self._listener.join()


# ---- the server ----------------------------------------------------------------------------------------------------


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
        self.folder, self.opened, self.items = folder, 0, 0
        self.found: dict[str, list[int]] = {}
        self.problems: list[str] = []

    def empty(self) -> None:
        """Take what is complete."""
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


Sample = dict[str, float]  # time [s]; memory of the server's process and of the others [bytes]; what `AT_REST` names


def take_sample(server: ServerProcess, saved: Path, begin: float) -> Sample:
    """Look at the server and its processes; the time counts from a begin on the monotonic clock [s]."""
    counts, own = server.counts(), server.process.memory_info().rss
    counts |= {"memory": own, "helpers": counts["memory"] - own, "temporary": len(server.temporary_folders())}
    return {"time": time.monotonic() - begin} | counts | {"recordings": len(list(saved.glob("*")))}


def wait_for_rest(server: ServerProcess, keeper: Keeper) -> Sample:
    """Wait until nothing of the server has changed for a while, and nothing is left to convert; then look at it."""
    calm, deadline = 0.0, time.monotonic() + REST
    before: Sample = {}
    while calm < CALM and time.monotonic() < deadline:
        time.sleep(LOOK)
        keeper.empty()
        now = take_sample(server, keeper.folder, 0.0)
        same = before and all(now[name] == before[name] for name in AT_REST)
        calm = calm + LOOK if same and not now["recordings"] else 0.0
        before = now
    return before


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


# ---- figures -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Everything that a run gathers: times [s], the server at rest and in between, sessions, and what must not be."""

    seconds: float
    before: Sample
    after: Sample
    samples: list[Sample]
    reports: list[tuple[float, Report]]
    killed: int = 0  # sessions whose client was killed
    recordings: int = 0
    saved: int = 0  # readouts and images in the recordings
    problems: list[str] = field(default_factory=list)


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Median of the memory in the second quarter of a run, when the server has warmed up, and in the last [bytes]."""
    values = [sample["memory"] for sample in samples]
    quarter = max(1, len(values) // 4)
    return float(np.median(values[quarter : 2 * quarter] or values)), float(np.median(values[-quarter:]))


def judge(run: Run) -> list[str]:
    """Problems of a run: sessions that ended wrongly, and anything that has grown."""
    wrong = Counter(f"{report.scan}, {report.fault}: {report.problem}" for _, report in run.reports if report.problem)
    problems = [f"{count} x {text}" for text, count in wrong.items()]
    early, late = growth(run.samples)
    if run.seconds >= JUDGED_FROM and late > (1 + MAY_GROW_SHARE) * early + MAY_GROW:
        problems.append(f"the server's memory has grown from {early / MIB:.0f} to {late / MIB:.0f} MiB")
    if run.after["helpers"] > (1 + MAY_GROW_SHARE) * run.before["helpers"] + MAY_GROW:
        helpers = " before, and ".join(f"{each['helpers'] / MIB:.0f}" for each in (run.before, run.after))
        problems.append(f"its helpers' memory was {helpers} MiB after")
    grown = [name for name in AT_REST if run.after[name] > run.before[name]]
    problems += [f"at rest there were {run.before[name]} {name} before, and {run.after[name]} after" for name in grown]
    return problems


def summary(run: Run) -> str:
    """Table of the run in Markdown."""
    reports = [report for _, report in run.reports]
    early, late = growth(run.samples)
    good = Counter(report.fault for report in reports if not report.problem)
    latencies = [latency for report in reports for latency in report.latencies]
    p50, p95, p99 = 1e3 * np.percentile(latencies or [np.nan], [50, 95, 99])
    rows = {
        "sessions": f"{len(reports) + run.killed} in {run.seconds / 60:.1f} min",
        "went to their end, every pixel right": f"{good['none'] + good['slow reader']}, of them {good['slow reader']} "
        "with a slow reader",
        "broken off by the client": f"{good['cut']} by the end of the stream, {good['reset']} by a reset, {run.killed} "
        "with their killed client",
        "**ended in any other way**": f"**{sum(bool(report.problem) for report in reports)}**",
        "taken in": f"{sum(report.readouts for report in reports) / run.seconds:.0f} readouts/s, "
        f"{sum(report.sent for report in reports) / 1e6 / run.seconds:.1f} MB/s",
        "recordings that were opened": f"{run.recordings}, with {run.saved} readouts and images",
        "last readout of a spiral frame to its image": f"p50 {p50:.3g}, p95 {p95:.3g}, p99 {p99:.3g} ms, of "
        f"{len(latencies)} images",
        "memory of the server's own process": f"{early / MIB:.0f} MiB in the second quarter, "
        f"{late / MIB:.0f} MiB in the last",
    }
    for name in AT_REST:
        rows[f"{name} at rest"] = f"{run.before[name]} before, {run.after[name]} after"
    lines = ["| soak | figure |", "| --- | --- |", *(f"| {name} | {figure} |" for name, figure in rows.items()), ""]
    problems = [f"PROBLEM: {problem}" for problem in run.problems] or ["no problems"]
    return "\n".join([*lines, *problems])


def draw(run: Run, path: Path) -> None:
    """Draw sessions that ended, the latency of frames, memory, and what else may leak over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 9), layout="constrained")
    sessions, latency, memory, counts = figure.subplots(4, 1, sharex=True)
    clock = [sample["time"] / 60 for sample in run.samples]
    ends = [time / 60 for time, _ in run.reports]
    sessions.plot(ends, range(1, len(ends) + 1))
    sessions.set_ylabel("sessions that ended")
    slowest = [(time / 60, 1e3 * max(each.latencies)) for time, each in run.reports if each.latencies]
    latency.plot([time for time, _ in slowest], [latency for _, latency in slowest], ".")
    latency.set(yscale="log", ylabel="slowest spiral frame [ms]")
    memory.plot(clock, [sample["memory"] / MIB for sample in run.samples])
    memory.set(ylabel="memory [MiB]", ylim=(0, None))
    for name in AT_REST:
        counts.plot(clock, [sample[name] for sample in run.samples], label=name)
    counts.legend()
    counts.set(ylabel="number", xlabel="time [min]")
    figure.savefig(path, dpi=100)


def soak(options: argparse.Namespace, folder: Path) -> Run:
    """Run the server and its clients."""
    make_scans(folder, crashing=options.processes)
    keeper = Keeper(folder / "saved")
    arguments = ["-d", "null", "-s", "-S", keeper.folder, "--grace", "1", *["-m"] * options.processes]
    with contextlib.ExitStack() as ending:
        server = ServerProcess(*arguments, cwd=folder, temporary=folder / "temporary")
        ending.callback(server.end_all)
        warm_up(folder, server.address)
        before = wait_for_rest(server, keeper)
        opened, items = keeper.opened, keeper.items
        crowd = Crowd(folder, server.address, options)
        ending.callback(crowd.kill)
        samples = []
        while time.monotonic() < crowd.until:
            crowd.disturb()
            keeper.empty()
            samples.append(take_sample(server, keeper.folder, crowd.begin))
            time.sleep(max(0.0, crowd.begin + PERIOD * len(samples) - time.monotonic()))
        killed = crowd.end()
        seconds = time.monotonic() - crowd.begin
        after = wait_for_rest(server, keeper)
        status, log = server.stop(), server.log()
    run = Run(seconds, before, after, samples, crowd.reports, killed, keeper.opened - opened, keeper.items - items)
    run.problems = judge(run) + keeper.problems + keeper.compare(report for _, report in run.reports)
    run.problems += [f"the server's log holds {text!r}" for text in NOT_HANDLED if text in log]
    run.problems += [f"the server ended with {status}"] * (status != 0)
    if run.problems:
        print(log, file=sys.stderr)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line tool; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--be-clients"]:
        be_clients(*arguments[1:])
        return 0
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
