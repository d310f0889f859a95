"""Clients of the soak test: a process with a few threads, each of which holds one session after the other.

    python -m reliability.soakclient FOLDER HOST PORT --threads 2 --until 1234.5

What they send was made before (`soakscans`), so that the machine's time is the server's. Each session's begin and end
are reported as a line of JSON on a pipe; the process may be killed at any moment, and is.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd

from connection import Connection
from mrdio.codec import MrdError

from .soakscans import PROTOCOL, Scan, read_scans

PATIENCE = 60.0  # longest silence of the server [s]
SLOW_BUFFER = 16 << 10  # of a client that reads slowly [bytes]
SLOW_PAUSE = 0.05  # between the images that it reads [s]

LONGEST_PROBLEM = 500  # characters: a report has to fit into one write

# What may happen to a session, and how often.
FAULTS = {"none": 0.75, "cut": 0.1, "reset": 0.05, "slow reader": 0.1}


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
    sent : int
        Bytes.
    readouts, items : int
        Readouts that were sent whole; readouts and images.
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
        Where `soakscans.make_scans` has written.
    address : tuple
        The server's.
    references : dict
        For each scan, the digests of the images that have to come; a scan that is not named is not compared.
    """

    def __init__(self, folder: Path, address: tuple[str, int], references: dict[str, list[str]]) -> None:
        self.scans = read_scans(folder)
        self._bytes = {scan.name: (folder / scan.file).read_bytes() for scan in self.scans}
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
        protocol = PROTOCOL[:-12] + secrets.token_hex(6)
        report, start = Report(scan.name, fault, protocol=protocol), time.monotonic()
        length = scan.ends[-1]
        cut = min(int(where * length), length - 1) if fault in ("cut", "reset") else length
        sent_at = [0.0] * len(scan.ends)
        with socket.socket() as sock:
            if fault == "slow reader":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
            sock.settimeout(PATIENCE)
            sock.connect(self._address)
            problems: list[str] = []
            sending = sock.dup()  # `Connection` counts its waits itself, and takes the socket's own away
            sending.settimeout(PATIENCE)
            content = memoryview(self._bytes[scan.name].replace(PROTOCOL.encode(), protocol.encode(), 1))[:cut]
            arguments = (sending, scan, content, sent_at, problems)
            sender = threading.Thread(target=self._send, args=arguments, daemon=True)
            sender.start()
            if fault == "reset":
                sender.join()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                came_at, errors, ending = self._receive(sock, report, SLOW_PAUSE if fault == "slow reader" else 0.0)
                sender.join()
                if fault == "none" and len(came_at) == len(scan.waited_for):
                    pairs = zip(came_at, scan.waited_for, strict=True)
                    report.latencies = [came - sent_at[number] for came, number in pairs]
                judged = self._judge(scan, report, cut < length, errors, ending)
                report.problem = ("" if scan.crashes else "; ".join(problems)) or judged
        report.seconds = time.monotonic() - start
        report.sent = cut
        report.readouts = sum(end <= cut for end in scan.ends[2 : 2 + scan.readouts])
        report.items = sum(end <= cut for end in scan.ends[2:-1])
        return report

    def _send(
        self, sock: socket.socket, scan: Scan, view: memoryview, sent_at: list[float], problems: list[str]
    ) -> None:
        """Send bytes at the scan's pace, and note when each message was sent."""
        begin, cut = 0, len(view)
        due = time.monotonic()
        try:
            with sock:
                if not scan.pace:
                    sock.sendall(view)
                for number, end in enumerate(scan.ends if scan.pace else ()):
                    if begin >= cut:
                        break
                    time.sleep(max(0.0, due - time.monotonic()))
                    sock.sendall(view[begin:end])
                    sent_at[number] = time.monotonic()
                    begin, due = end, due + scan.pace
                if cut < scan.ends[-1]:
                    sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            problems.append(f"sending: {error}")

    def _receive(self, sock: socket.socket, report: Report, pause: float) -> tuple[list[float], list[str], str]:
        """Take what comes; returns the times of the images, the texts of errors, and what was wrong with the ending."""
        came_at, errors = [], []
        connection = Connection(sock)
        try:
            for item in connection:
                if isinstance(item, ismrmrd.Image):
                    came_at.append(time.monotonic())
                    report.images.append(hashlib.blake2b(item.data.tobytes(), digest_size=8).hexdigest())
                    time.sleep(pause)
                elif isinstance(item, str) and item.startswith(("ERROR", "CRITICAL")):
                    errors.append(item.partition("\n")[0])
        except MrdError as error:
            return came_at, errors, str(error)
        return came_at, errors, ""

    def _judge(self, scan: Scan, report: Report, is_cut: bool, errors: list[str], ending: str) -> str:
        """Faults of the answer to a session; empty when nothing is."""
        if scan.crashes:
            return "" if ending or is_cut else "the module did not crash"
        if ending:
            return f"no CLOSE: {ending}"
        if is_cut:
            return ""  # whatever came: there was a CLOSE
        if scan.fails:
            return "" if errors else "the failure of the module was not told"
        if errors:
            return errors[0]
        expected = self._references.get(scan.name)
        if expected is None or report.images == expected:
            return ""
        different = sum(one != other for one, other in zip(report.images, expected, strict=False))
        return f"{len(report.images)} images instead of {len(expected)}, {different} of them with other pixels"

    def run(self, number: int, until: float, pause: float, seed: str, tell: Callable[[dict], None]) -> None:
        """Hold sessions chosen by chance until a time on the monotonic clock [s]."""
        choice = random.Random(f"{seed}-{number}")
        while time.monotonic() < until:
            (scan,) = choice.choices(self.scans, [each.weight for each in self.scans])
            (fault,) = choice.choices(list(FAULTS), list(FAULTS.values()))
            tell({"event": "begin", "thread": number, "scan": scan.name})
            try:
                report = self.hold(scan, fault, choice.random())
            except OSError as error:
                report = Report(scan.name, fault, f"{type(error).__name__}: {error}")
            report.problem = report.problem[:LONGEST_PROBLEM]
            tell({"event": "end", "thread": number} | dataclasses.asdict(report))
            time.sleep(min(choice.expovariate(1 / pause) if pause else 0.0, max(0.0, until - time.monotonic())))


def main() -> None:
    """Be a process of clients."""
    parser = argparse.ArgumentParser(description="Clients of the soak test.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--until", type=float, required=True, help="on the monotonic clock [s]")
    parser.add_argument("--pause", type=float, required=True, help="mean pause between two sessions [s]")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--pipe", type=int, required=True, help="file descriptor for the reports")
    options = parser.parse_args()
    references = json.loads((options.folder / "references.json").read_text("utf-8"))
    client = Client(options.folder, (options.host, options.port), references)

    def tell(event: dict) -> None:
        line = json.dumps(event | {"process": os.getpid()}) + "\n"
        os.write(options.pipe, line.encode())  # up to 4096 bytes are written in one piece, whoever writes besides

    arguments = (options.until, options.pause, options.seed, tell)
    threads = [threading.Thread(target=client.run, args=(number, *arguments)) for number in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
