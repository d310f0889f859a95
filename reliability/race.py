"""Race test: several processes convert the recordings of one folder at the same time.

    python reliability/race.py --rounds 20

Each round starts 2, 3 or 4 times ``python recorder.py FOLDER`` at once. Afterwards each stream has to be one MRD file
that opens, with its own readouts; nothing else may lie in the folder, and no converter may tell of an error. The exit
status is 1 when anything is lost, there twice, empty or unreadable.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

import ismrmrd

from mrdio.commandline import number
from mrdio.mrdfile import MrdFileError, MrdReader
from reliability.scripted import CLOSE, config, header, readout
from reliability.serverprocess import PATIENCE

READOUTS = 3  # of a stream
CONVERTERS = (2, 3, 4)


@dataclass
class Result:
    """Outcome of the streams of some rounds."""

    streams: int = 0
    lost: int = 0
    twice: int = 0
    unreadable: int = 0
    left: int = 0
    errors: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True when every stream has become one file, without a word of an error."""
        return not (self.lost or self.twice or self.unreadable or self.left or self.errors)

    def __add__(self, other: "Result") -> "Result":
        return Result(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def run_round(folder: Path, converters: int, streams: int) -> Result:
    """Convert the streams of one folder by several processes at once.

    Parameters
    ----------
    folder : Path
        An empty folder.
    converters, streams : int
        How many processes, and how many streams.
    """
    for each in range(streams):
        messages = [config("null"), header(), *(readout(row, session=each) for row in range(READOUTS)), CLOSE]
        (folder / f"2026-01-02_03-04-05_session-{each}.mrdpart").write_bytes(b"".join(messages))
    command = [sys.executable, str(PROJECT / "recorder.py"), str(folder)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(converters)
    ]
    try:
        said = "".join(process.communicate(timeout=PATIENCE + streams)[0] for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return _judge(folder, streams, said)


def _judge(folder: Path, streams: int, said: str) -> Result:
    wrong = [line for line in said.splitlines() if not line.partition(" ")[2].partition(" ")[2].startswith("INFO")]
    result = Result(streams, errors=len(wrong), told=wrong[:3])
    found: Counter[int] = Counter()
    for path in folder.iterdir():
        if path.suffix != ".h5":
            result.left += 1
            continue
        try:
            with MrdReader(path) as reader:
                readouts: list[ismrmrd.Acquisition] = list(reader.acquisitions())
        except MrdFileError:
            readouts = []
        sessions = {each.measurement_uid for each in readouts}
        if len(readouts) == READOUTS and len(sessions) == 1:
            found.update(sessions)
        else:
            result.unreadable += 1
    result.lost = sum(not found[each] for each in range(streams))
    result.twice = sum(found[each] > 1 for each in range(streams))
    return result


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Several processes convert the recordings of one folder at the same time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=number(1), default=20, help="how often")
    parser.add_argument("--streams", type=number(1), default=150, help="recordings in each round")
    arguments = parser.parse_args()
    results = {converters: Result() for converters in CONVERTERS}
    rounds: Counter[int] = Counter()
    for each in range(arguments.rounds):
        converters = CONVERTERS[each % len(CONVERTERS)]
        rounds[converters] += 1
        with tempfile.TemporaryDirectory(prefix="race") as folder:
            results[converters] += run_round(Path(folder), converters, arguments.streams)
    total = sum(results.values(), Result())
    print("| converters | rounds | streams | lost | twice | empty or unreadable | left over | false error lines |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for title, count, result in (*((f"{key}", rounds[key], results[key]) for key in CONVERTERS),
                                 ("**all**", arguments.rounds, total)):  # fmt: skip
        print(f"| {title} | {count} | {result.streams} | {result.lost} | {result.twice} | {result.unreadable} "
              f"| {result.left} | {result.errors} |")  # fmt: skip
    for line in total.told[:10]:
        print(line, file=sys.stderr)
    return 0 if total.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
