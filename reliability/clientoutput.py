"""Output test: the client is killed, limited and interrupted while it writes into a file with an earlier group.

    python reliability/clientoutput.py --kills 200 --limits 20 --interrupts 50 --python python3.11 python3.12

A scripted server sends images at a steady pace. At a moment that a seed decides, between the first image and the end of
the client, the client gets SIGKILL (in half of the cases so does the process that puts the run into the output), or
Ctrl+C once or twice, SIGTERM or SIGHUP; or its files may not grow beyond a limit. Each time

- the output is, byte by byte, the earlier file, or it holds the earlier group and the whole run;
- every image that the client had received 100 ms before can be read, pixel by pixel, in the output or in a stream
  beside it, and ``outputfile.py`` puts what the stream holds into the output;
- the client ends within 2 s of a signal, with the exit status and the error line that belong to it.

The exit status is not 0 when any of this failed. ``--project`` tests the client of another folder.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import psutil
from ismrmrd.serialization import ProtocolDeserializer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reliability.scripted import CLOSE, header, message
from reliability.sender import unread
from reliability.serverprocess import PATIENCE, PROJECT

COUNT, EARLIER = 40, 80  # images of a run, and of the earlier group
SHAPE = (1, 1, 64, 64)
INTERVAL = 0.01  # between two images [s]
JOIN = 0.8  # how long after the last image signals still come [s]
IN_FLIGHT = 0.1  # what the client received so long before a signal is on the disk [s]
LONGEST_END = 2.0  # between a signal and the client's end [s]


def image(number: int) -> ismrmrd.Image:
    """Image whose pixels follow from its number."""
    pixels = np.random.default_rng(number).standard_normal(SHAPE).astype(np.float32)
    return ismrmrd.Image.from_array(pixels, transpose=False, image_index=number, image_series_index=1)


class ImagesServer(threading.Thread):
    """Takes one session, sends images at a steady pace, and then CLOSE."""

    def __init__(self, interval: float = INTERVAL) -> None:
        super().__init__(name="images server", daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sent = 0
        self.started = threading.Event()
        self._interval = interval

    def run(self) -> None:
        """Hold the session, until the client is gone."""
        with self.listener:
            sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(OSError):
            for raw in _MESSAGES:
                sock.sendall(raw)
                self.sent += 1
                self.started.set()
                time.sleep(self._interval)
            sock.sendall(CLOSE)
            while sock.recv(1 << 16):
                pass

    def received(self) -> int:
        """Number of whole images that the client has read."""
        return self.sent - -(-unread(self.port) // len(_MESSAGES[0]))


_MESSAGES = [message(image(number)) for number in range(COUNT)]


@dataclass
class Outcome:
    """Outcome of the trials of one kind."""

    trials: int = 0
    intact: int = 0
    joined: int = 0
    received: int = 0
    readable: int = 0
    lost: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if the earlier group was intact each time and nothing went wrong."""
        return self.intact == self.trials and not self.lost and not self.problems


class Trials:
    """Runs of one client into copies of one output file.

    Parameters
    ----------
    folder : Path
        An empty folder.
    project : Path
        Where the client is.
    python : str
        Which Python runs it.
    seed : int
        Decides the moments.
    """

    def __init__(self, folder: Path, project: Path = PROJECT, python: str = sys.executable, seed: int = 1) -> None:
        self._folder, self._project = folder, project
        self._python = str(Path(shutil.which(python) or python).absolute())
        self._chance = random.Random(seed)
        self._raw, self._earlier = folder / "raw.h5", folder / "earlier.h5"
        with ismrmrd.Dataset(self._raw, "dataset") as dataset:
            dataset.write_xml_header(header()[6:])  # behind identifier and length
            dataset.append_acquisition(ismrmrd.Acquisition.from_array(np.ones((1, 4), np.complex64)))
        with ismrmrd.Dataset(self._earlier, "earlier") as dataset:
            for number in range(EARLIER):
                dataset.append_image("image_1", image(1000 + number))

    def kill(self, number: int, outcome: Outcome) -> None:
        """SIGKILL at a random moment: to the client, every second time also to the process that it has started."""
        with self._trial(outcome, f"kill {number}", ImagesServer()) as trial:
            received = trial.wait_for_moment(self._chance)
            with contextlib.suppress(psutil.NoSuchProcess):
                trial.client.suspend()
                children = trial.client.children()
                trial.client.kill()
                for child in children if number % 2 else ():
                    child.kill()
                psutil.wait_procs([trial.client, *children], PATIENCE)
            trial.check(received)
            trial.check_command()

    def interrupt(self, number: int, outcome: Outcome, signum: int) -> None:
        """End by a signal at a random moment, as a terminal sends it; every second time a further one follows."""
        with self._trial(outcome, f"{signal.Signals(signum).name} {number}", ImagesServer()) as trial:
            received = trial.wait_for_moment(self._chance)
            start = time.monotonic()
            trial.signal(signum)
            if number % 2:
                time.sleep(self._chance.uniform(0.0, 0.3))
                trial.signal(signum)
            trial.wait()
            trial.check_ending((128 + signum,), time.monotonic() - start)
            trial.check(received)
            trial.check_command()

    def limit(self, number: int, outcome: Outcome) -> None:
        """Let no file grow beyond a limit that the run, the copy of the output, or the run in it, reaches."""
        earlier, run = self._earlier.stat().st_size, len(_MESSAGES[0]) * COUNT
        low, high = ((2000, run), (run + 2000, earlier), (earlier, earlier + run))[number % 3]
        limit = self._chance.randrange(low, high)
        with self._trial(outcome, f"limit {limit}", ImagesServer(0.0), limit) as trial:
            trial.wait()
            trial.check_ending((1,))
            trial.check(min(COUNT, (limit - 1000) // len(_MESSAGES[0])))

    @contextlib.contextmanager
    def _trial(self, outcome: Outcome, name: str, server: ImagesServer, limit: int | None = None):  # noqa: ANN202
        outcome.trials += 1
        output = Path(tempfile.mkdtemp(dir=self._folder)) / "out.h5"
        shutil.copy(self._earlier, output)
        server.start()
        command = [
            self._python, str(self._project / "client.py"), str(self._raw), "-p", str(server.port), "-o", str(output),
            "-G", "run", "--timeout", "20", "--quiet",
        ]  # fmt: skip
        log = output.with_name("client.log")
        with log.open("wb") as stderr:
            client = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
                cwd=output.parent, preexec_fn=None if limit is None else lambda: _limit_files(limit),
            )  # fmt: skip
        trial = Trial(client, server, output, log, self._earlier, outcome, name, self._project)
        try:
            yield trial
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                client.kill()
            client.wait()
            server.join(PATIENCE)
            shutil.rmtree(output.parent)


@dataclass
class Trial:
    """One run of the client, and what is to hold after it."""

    client: psutil.Popen
    server: ImagesServer
    output: Path
    log: Path
    earlier: Path
    outcome: Outcome
    name: str
    project: Path

    def wait_for_moment(self, chance: random.Random) -> int:
        """Wait for a moment of chance after the first image; returns how many had been received 100 ms before."""
        if not self.server.started.wait(PATIENCE):
            self._fail("the client does not come")
        time.sleep(chance.uniform(0.0, COUNT * INTERVAL + JOIN))
        received = self.server.received()
        time.sleep(IN_FLIGHT)
        return received

    def signal(self, signum: int) -> None:
        """Send a signal to the client's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.client.pid, signum)

    def wait(self) -> None:
        """Wait for the end of the client."""
        try:
            self.client.wait(PATIENCE)
        except psutil.TimeoutExpired:
            self._fail("the client does not end")

    def check_ending(self, expected: tuple[int, ...], seconds: float = 0.0) -> None:
        """Compare the end of the client with what it has to be; it may have ended well before the signal."""
        self.outcome.slowest = max(self.outcome.slowest, seconds)
        status, lines = self.client.returncode, self.log.read_text("utf-8", "replace").splitlines()
        if seconds > LONGEST_END:
            self._fail(f"the end takes {seconds:.2f} s")
        if status not in (0, *expected):
            self._fail(f"the exit status is {status}: {lines[-1:]}")
        elif status and not (len(lines) == 1 and lines[0].startswith("error: ")):
            self._fail(f"not one error line: {lines}")
        elif (part := self._part()) and str(part) not in "".join(lines):
            self._fail(f"{part} is not named: {lines}")
        if left := list(self.output.parent.glob(".*")):
            self._fail(f"{left} is left")

    def check(self, received: int) -> None:
        """Look into the output and the stream beside it, after the client's end."""
        found = 0
        if self.output.read_bytes() == self.earlier.read_bytes():
            self.outcome.intact += 1
            found = self._in_stream()
        else:
            try:
                self._compare_earlier_group()
                self.outcome.intact += 1
                found = self._in_output()
                self.outcome.joined += found == COUNT
                if found != COUNT:
                    self._fail(f"{found} of {COUNT} images stand in the output")
            except (OSError, LookupError, AssertionError) as error:
                self._fail(f"the output is spoilt: {error!r}"[:300])
        self.outcome.received += received
        self.outcome.readable += found
        self.outcome.lost += max(0, received - found)

    def check_command(self) -> None:
        """Let the command put the stream, if there is one, into the output, and look into that."""
        part, command = self._part(), self.project / "outputfile.py"
        if part is None:
            return
        found = self._in_stream()
        done = subprocess.run(
            [sys.executable, str(command), str(part), "-o", str(self.output), "-G", "run"],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        try:
            self._compare_earlier_group()
            joined = self._in_output()
            assert joined == found, f"{joined} images instead of {found}"
        except (OSError, LookupError, AssertionError) as error:
            self._fail(f"the stream does not come into the output: {error!r}: {done.stderr}")

    def _part(self) -> Path | None:
        return next(self.output.parent.glob("*.part-*.mrd"), None)

    def _in_stream(self) -> int:
        """Number of images that the `ismrmrd` package reads from the stream."""
        part, found = self._part(), 0
        if part is None:
            return 0
        with part.open("rb") as stream, contextlib.suppress(EOFError):
            for item in ProtocolDeserializer(stream).deserialize():
                if isinstance(item, ismrmrd.Image):
                    if not np.array_equal(item.data, image(found).data):
                        self._fail(f"image {found} of the stream is another")
                    found += 1
        return found

    def _compare_earlier_group(self) -> None:
        with h5py.File(self.output) as now, h5py.File(self.earlier) as before:
            for name in ("data", "header", "attributes"):
                same = np.array_equal(now["earlier/image_1"][name][()], before["earlier/image_1"][name][()])
                assert same, f"{name} of the earlier group"

    def _in_output(self) -> int:
        """Number of images of the run that stand in the output."""
        with h5py.File(self.output) as file:
            pixels = file["run/image_1/data"][()] if "run/image_1" in file else []
            for number, data in enumerate(pixels):
                assert np.array_equal(data, image(number).data), f"image {number}"
        return len(pixels)

    def _fail(self, text: str) -> None:
        self.outcome.problems.append(f"{self.name}: {text}")


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kills, limits and interrupts of a client that writes its output.")
    parser.add_argument("--kills", type=int, default=200, help="how many SIGKILLs")
    parser.add_argument("--limits", type=int, default=20, help="how many file size limits")
    parser.add_argument("--interrupts", type=int, default=50, help="how many Ctrl+C for each Python, and a fifth as "
                        "many SIGTERM and SIGHUP")  # fmt: skip
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="Pythons; the first one does all else")
    parser.add_argument("--project", type=Path, default=PROJECT, help="folder of the client that is tested")
    parser.add_argument("--seed", type=int, default=1, help="decides the moments")
    arguments = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as root:
        for python in arguments.python:
            version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
            trials = Trials(Path(tempfile.mkdtemp(dir=root)), arguments.project.resolve(), python, arguments.seed)
            if not outcomes:
                for kind, times, once in (("SIGKILL", arguments.kills, trials.kill),
                                          ("file size limit", arguments.limits, trials.limit)):  # fmt: skip
                    outcome = outcomes[f"{kind}, Python {version}"] = Outcome()
                    for number in range(times):
                        once(number, outcome)
            for title, signum, times in (
                ("Ctrl+C", signal.SIGINT, arguments.interrupts),
                ("SIGTERM", signal.SIGTERM, arguments.interrupts // 5),
                ("SIGHUP", signal.SIGHUP, arguments.interrupts // 5),
            ):
                outcome = outcomes[f"{title}, Python {version}"] = Outcome()
                for number in range(times):
                    trials.interrupt(number, outcome, signum)
    print("| what | times | earlier group intact | whole run in the output | images received | readable | lost "
          "| slowest end | other faults |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind, outcome in outcomes.items():
        end = f"{outcome.slowest:.2f} s" if outcome.slowest else ""
        print(f"| {kind} | {outcome.trials} | {outcome.intact} | {outcome.joined} | {outcome.received} "
              f"| {outcome.readable} | {outcome.lost} | {end} | {len(outcome.problems)} |")  # fmt: skip
        for problem in outcome.problems:
            print(problem, file=sys.stderr)
    return 0 if all(outcome.is_good for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
