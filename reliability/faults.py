"""Fault table: what may go wrong with a session, done to a real server, in threads and in processes.

    python reliability/faults.py [--only GROUP ...] [--modes threads processes]

After each case (of the many that run side by side: after each batch of 32) the next client has to get the right image,
and threads, sockets, file descriptors, processes and temporary folders have to be as many as before. At the end of a
group, the server has to end by itself and leave nothing, and every readout that was sent whole before its fault has to
stand in an MRD file that `h5py` and `ismrmrd` open. The exit status is not 0 when anything failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reliability import bytecases, contentcases, modulecases, savingcases, signalcases
from reliability.ground import Ground, Row

MODES = ("threads", "processes")

# Limits that the cases of a group run into [s].
_SHORT = [f"--limit={each}" for each in ("timeout=0.7", "openingTime=1.5", "messageTime=1.5", "sendTimeout=0.7")]


@dataclass(frozen=True)
class Group:
    """Cases of one kind: what the table calls them, what runs them, further arguments of the server."""

    title: str
    run: Callable[[Ground], None]
    arguments: tuple[str, ...] = ()


GROUPS = {
    "fin": Group("cut after every byte: end of the stream", bytecases.cut_with_fin),
    "rst": Group("cut after every byte: reset", bytecases.cut_with_rst),
    "slow": Group("whole sessions, 1 to 341 bytes at a time", bytecases.slow),
    "trickling": Group("a byte now and then, for ever", bytecases.trickling, _SHORT),
    "silent": Group("silent after a part, connection kept", bytecases.silent, _SHORT),
    "unread": Group("a peer that never reads", bytecases.unread, _SHORT),
    "lengths": Group("false lengths: 0, 1, maximum, negative", bytecases.lengths),
    "identifiers": Group("unknown identifiers", bytecases.identifiers),
    "order": Group("wrong order, twice, behind the end", bytecases.order),
    "samples": Group("NaN, Inf, empty, not fitting the header", contentcases.samples),
    "texts": Group("malformed, huge, non-UTF-8 XML and JSON", contentcases.texts),
    "raising": Group("modules that raise or cannot be loaded", modulecases.raising),
    "misbehaving": Group("modules that print, leak, end the session", modulecases.misbehaving),
    "hanging": Group("modules that hang or leave threads", modulecases.hanging),
    "ending": Group("modules that end the interpreter", modulecases.ending),
    "server": Group("SIGTERM, SIGINT, SIGKILL of the server", signalcases.server_signals),
    "client": Group("SIGTERM, SIGINT, SIGKILL of the client", signalcases.client_signals),
    "bart": Group("SIGTERM, SIGINT, SIGKILL of BART", signalcases.bart_signals),
    "saving": Group("disk full, folder vanishing or not writable", savingcases.saving),
}


def run_group(name: str, mode: str, folder: Path) -> Row:
    """Run one group against a server of its own.

    Parameters
    ----------
    name : str
        Its name in `GROUPS`.
    mode : str
        ``"threads"`` or ``"processes"``.
    folder : Path
        Where the server works.
    """
    ground = Ground(folder, mode == "processes", *GROUPS[name].arguments)
    try:
        GROUPS[name].run(ground)
        return ground.finish()
    finally:
        ground.server.end_all()


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="What may go wrong, done to a real server.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP",
        help=f"groups to run: {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="how sessions run")
    arguments = parser.parse_args()
    print("| what goes wrong | passed in threads | in processes | readouts sent whole | lost | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    total = {mode: Row() for mode in MODES}
    for name in arguments.only:
        rows = {mode: Row() for mode in MODES}
        for mode in arguments.modes:
            with tempfile.TemporaryDirectory() as folder:
                rows[mode] = row = run_group(name, mode, Path(folder))
            for key in ("cases", "failed", "whole", "lost", "seconds"):
                setattr(total[mode], key, getattr(total[mode], key) + getattr(row, key))
            for problem in row.problems:
                print(f"{name}, {mode}: {problem}", file=sys.stderr)
        print(_line(GROUPS[name].title, rows), flush=True)
    print(_line("**all**", total))
    return 0 if all(not (row.failed or row.lost) for row in total.values()) else 1


def _line(title: str, rows: dict[str, Row]) -> str:
    passed = " | ".join(f"{row.cases - row.failed} of {row.cases}" if row.cases else "" for row in rows.values())
    whole, lost = (sum(getattr(row, key) for row in rows.values()) for key in ("whole", "lost"))
    seconds = " + ".join(f"{row.seconds:.0f}" for row in rows.values() if row.cases)
    return f"| {title} | {passed} | {whole} | {lost} | {seconds} |"


if __name__ == "__main__":
    sys.exit(main())
