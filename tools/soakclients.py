"""Clients of a soak: sessions of every kind, in processes that may be killed at any moment."""

import argparse
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
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd

from connection import Connection
from mrdio.codec import MrdError

PROJECT = Path(__file__).resolve().parent.parent
KILL_EVERY = 10.0  # mean time between two killed processes of clients [s]
PROCESSES = 4  # of clients, at most
PATIENCE = 60.0  # longest silence of the server [s]
ENDING_PATIENCE = 600.0  # longest time until a process of clients has ended its sessions [s]
SLOW_BUFFER, SLOW_PAUSE = 16 << 10, 0.05  # of a client that reads slowly [bytes], and between two images [s]

# Faults that a client makes, and how often.
FAULTS = {"none": 0.75, "cut": 0.1, "reset": 0.05, "slow reader": 0.1}

PROTOCOL = "soak-000000000000"  # in each header; a client puts the name of its session there, which names the recording


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


@dataclass
class Report:
    """Outcome of a session.

    Attributes
    ----------
    scan, fault : str
        Scan that was sent, and the fault that the client made on purpose.
    problem : str
        Deviation from the expected answer; empty when there was none.
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
            Scan to send.
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
    """Receive; returns the times of the images, the texts of errors, and the error of the ending."""
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


def run_clients(
    folder: str, host: str, port: str, until: str, pause: str, threads: str, seed: str, pipe: str
) -> None:  # fmt: skip
    """Run clients as the whole work of a process, which may be killed at any moment."""
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


class ClientProcesses:
    """Processes of clients, and their reports.

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
        command = [sys.executable, "-m", "tools.soakclients", *map(str, arguments)]
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
        killed, threads = self._processes[place]
        killed.kill()
        killed.wait()
        self.kills += 1
        self._processes[place] = (self._start(f"{place}-{self.kills}", threads), threads)

    def end(self) -> int:
        """Wait for the clients; returns how many sessions ended with a killed process."""
        for process, _ in self._processes:
            process.wait(ENDING_PATIENCE)
        self.kill()
        return len(self._running)

    def kill(self) -> None:
        """Kill all processes that still run."""
        for process, _ in self._processes:
            process.kill()
            process.wait()
        if self._listener.is_alive():
            os.close(self._writing)
            self._listener.join()


if __name__ == "__main__":
    run_clients(*sys.argv[1:])
