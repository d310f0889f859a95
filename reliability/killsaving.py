"""Kill test: SIGKILL at random moments of sessions that are being saved, and what is recovered afterwards.

    python reliability/killsaving.py --kills 100

Two clients send 1000 readouts a second each. 100 ms before the kill they note how many they have handed over, and the
system tells how much of that the server has not read yet. The others have been received: they have to stand, byte by
byte, in an MRD file after a restart of the server, or after ``python recorder.py FOLDER``; every file has to open with
`h5py`, with `ismrmrd`, and with Debian's ``ismrmrd_info``. Of sessions that go on, and of those whose conversion is
killed, nothing at all may be missing. The exit status is not 0 when anything was lost, or does not open.

With ``--slow`` a module takes 5 ms for each readout and falls behind: what waits in the system's buffers then has not
been received, and goes with the connection.
"""

import argparse
import contextlib
import math
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reliability.scripted import CLOSE, hold, saved_readouts
from reliability.sender import OPENING, Sender
from reliability.serverprocess import PATIENCE, PROJECT, ServerProcess, wait_until

# What was received so long before the kill is on the disk [s].
IN_FLIGHT = 0.1

# Longest time between the first readout and the kill, and between the end of the clients and the kill of what converts
# their recordings, which runs already [s].
LONGEST, LONGEST_CONVERSION = 0.5, 0.1

KINDS = {
    "server, sessions in threads": False,
    "one session's process": True,
    "server and all its processes": True,
    "conversion, sessions in threads": False,
    "conversion, sessions in processes": True,
}

_SLOW = "import time\ndef process(connection, config, metadata):\n    for item in connection: time.sleep(0.005)\n"


@dataclass
class Outcome:
    """Outcome of the kills of one kind."""

    kills: int = 0
    sent: int = 0
    recovered: int = 0
    late: int = 0
    oldest: float = 0.0
    lost: int = 0
    files: int = 0
    opened: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if nothing was lost and everything opens."""
        return not self.lost and self.files == self.opened and not self.problems


def kill_once(kind: str, seed: int, folder: Path, outcome: Outcome, module: str = "null") -> None:
    """Start a server and two clients, kill at a moment that the seed decides, recover, compare.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    seed : int
        Decides the moment, and how the recordings are recovered.
    folder : Path
        An empty folder.
    outcome : Outcome
        Gets the figures.
    module : str
        What the sessions run.
    """
    chance = random.Random(seed)
    (folder / "slow.py").write_text(_SLOW)
    server = ServerProcess(folder, "-s", processes=KINDS[kind])
    finished = kind.startswith("conversion")
    try:
        if finished:
            hold(server.address, OPENING + CLOSE)
            if not wait_until(lambda: server.converters() and not list(server.saved.iterdir())):
                raise RuntimeError(f"a recording without data is not removed:\n{server.log()}")
        senders = [Sender(server.address, each, config_name=module, count=100 if finished else None) for each in (1, 2)]
        for sender in senders:
            sender.start()
        if not wait_until(lambda: _are_saved(server.saved, len(senders))):
            raise RuntimeError(f"the sessions do not begin:\n{server.log()}")
        moment, received = _kill(kind, server, senders, chance)
        for sender in senders:
            sender.stop()
            if not sender.wait(PATIENCE):
                outcome.problems.append(f"{kind}, seed {seed}: a client waits for ever")
        if kind == "one session's process":  # the server has lived on, and finishes what the session left by itself
            if not wait_until(lambda: not list(server.saved.glob("*.mrdpart"))):
                outcome.problems.append(f"{kind}, seed {seed}: the server leaves the stream alone")
            server.stop()
        server.end_all()
        if problem := _recover(folder, by_restart=chance.random() < 0.5):
            outcome.problems.append(f"{kind}, seed {seed}: {problem}")
    finally:
        server.end_all()
    outcome.kills += 1
    _compare(server.saved, senders, moment, received, outcome)


def _are_saved(saved: Path, sessions: int) -> bool:
    """True if so many sessions take in readouts: before, what is handed over waits until the header has been read."""
    sizes = []
    for path in saved.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been converted
            sizes.append(path.stat().st_size)
    return sum(size > len(OPENING) for size in sizes) >= sessions


def _kill(
    kind: str, server: ServerProcess, senders: list[Sender], chance: random.Random
) -> tuple[float, dict[Sender, int]]:
    """Kill what is to be killed at a moment of chance.

    Returns
    -------
    tuple
        The moment [s], and how many readouts of each client the server had received 100 ms before.
    """
    received = {}
    if kind.startswith("conversion"):
        for sender in senders:
            sender.wait(PATIENCE)
        time.sleep(chance.uniform(0, LONGEST_CONVERSION))
        victims = [*server.converters(), *(server.tree() if chance.random() < 0.5 else [])]
    else:
        time.sleep(chance.uniform(0, LONGEST))
        victims = {
            "server, sessions in threads": lambda: [server.process],
            "one session's process": lambda: server.sessions()[:1],
            "server and all its processes": server.tree,
        }[kind]()
        received = {sender: len(sender.handed) - math.ceil(sender.unread() / sender.size) for sender in senders}
        time.sleep(IN_FLIGHT)
    moment = time.monotonic()
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    return moment, received


def _recover(folder: Path, by_restart: bool) -> str:
    """Turn what was left into MRD files, as the next start of the server does or by the command."""
    saved = folder / "saved"
    if by_restart:
        server = ServerProcess(folder, "-s")
        done = wait_until(lambda: not list(saved.glob("*part")))
        server.stop()
        return "" if done else f"the restart leaves streams:\n{server.log()}"
    command = [sys.executable, str(PROJECT / "recorder.py"), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    return f"recorder.py leaves streams:\n{done.stdout}" if list(saved.glob("*part")) else ""


def _compare(saved: Path, senders: list[Sender], moment: float, received: dict[Sender, int], outcome: Outcome) -> None:
    for path in sorted(saved.glob("*.h5")):
        outcome.files += 1
        told = subprocess.run(["ismrmrd_info", str(path)], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            outcome.opened += 1
        else:
            outcome.problems.append(f"ismrmrd_info does not open {path.name}: {told.stdout} {told.stderr}")
    found = sum((readouts for _, readouts in saved_readouts(saved)), Counter())
    for sender in senders:
        for number, (handed, raw) in enumerate(sender.handed):
            outcome.sent += 1
            if found[raw]:
                found[raw] -= 1
                outcome.recovered += 1
            elif sender.answer.closed or number < received.get(sender, math.inf):  # the former has gone on to its end
                outcome.lost += 1
            else:
                outcome.late += 1
                outcome.oldest = max(outcome.oldest, moment - handed)
    if found.total():
        outcome.problems.append(f"{found.total()} readouts were saved that nobody sent")


def run_kills(
    kills: int, seed: int = 1, module: str = "null", kinds: tuple[str, ...] = tuple(KINDS)
) -> dict[str, Outcome]:
    """Kill so many times, each kind in its turn; returns what came of each kind."""
    outcomes = {kind: Outcome() for kind in kinds}
    for number in range(kills):
        kind = kinds[number % len(kinds)]
        with tempfile.TemporaryDirectory() as folder:
            kill_once(kind, seed + number, Path(folder), outcomes[kind], module)
    return outcomes


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="SIGKILL at random moments of sessions that are being saved.")
    parser.add_argument("--kills", type=int, default=100, help="how many times")
    parser.add_argument("--seed", type=int, default=1, help="decides the moments")
    parser.add_argument("--slow", action="store_true", help="measure what a module that falls behind costs")
    arguments = parser.parse_args()
    kinds = tuple(kind for kind in KINDS if not (arguments.slow and kind.startswith("conversion")))
    outcomes = run_kills(arguments.kills, arguments.seed, "slow" if arguments.slow else "null", kinds)
    print("| killed | kills | readouts sent | recovered | not received yet | oldest of them | lost | files | open |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    total = Outcome()
    for kind, outcome in outcomes.items():
        print(_line(kind, outcome))
        for key in ("kills", "sent", "recovered", "late", "lost", "files", "opened", "problems"):
            setattr(total, key, getattr(total, key) + getattr(outcome, key))
        total.oldest = max(total.oldest, outcome.oldest)
    print(_line("**all**", total))
    for problem in total.problems:
        print(problem, file=sys.stderr)
    return 0 if total.is_good else 1


def _line(title: str, outcome: Outcome) -> str:
    oldest = f"{1e3 * outcome.oldest:.1f} ms" if outcome.late else ""
    return (
        f"| {title} | {outcome.kills} | {outcome.sent} | {outcome.recovered} | {outcome.late} | {oldest} "
        f"| {outcome.lost} | {outcome.files} | {outcome.opened} |"
    )


if __name__ == "__main__":
    sys.exit(main())
