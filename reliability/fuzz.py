"""Coverage-guided fuzzing of everything that takes bytes from outside.

    python reliability/fuzz.py --seconds 120
    python reliability/fuzz.py --seconds 3600 --target messages --target session

Each target runs in a process of its own, for so many seconds, from the inputs in ``tests/fuzz_corpus`` and those that
earlier runs found worth keeping (``--work``). A finding ends its target; its input is kept, and is to become a file of
``tests/fuzz_corpus/<target>``, from where the tests run it ever after. The exit status is 1 when there
are findings.
"""

import argparse
import importlib.util
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CORPUS = PROJECT / "tests" / "fuzz_corpus"

# Whose branches guide the mutations; what is compiled (numpy, expat, HDF5) cannot be watched, and need not be.
WATCHED = [
    "mrdio.codec", "connection", "serving.session", "recorder", "mrdio.mrdfile", "mrdio.mrdheader",
    "recon.configuration", "serving.module_loader", "recon.moduleparameters", "recon.matfile", "recon.trajectory",
    "tomllib", "mrdio.jsonparameters", "mrdio.socketstream",
]  # fmt: skip
ALSO_WATCHED = {"header": ["xsdata.formats.dataclass.parsers"], "attributes": ["ismrmrd.meta"]}

LONGEST_INPUT = 8192  # [bytes]
TIME_LIMIT = 10  # of one input, which takes a thousandth of that [s]
MEMORY_LIMIT = 2048  # of the process [MiB]


@dataclass(frozen=True)
class Outcome:
    """Outcome of one target's run.

    Attributes
    ----------
    target : str
        Its name.
    inputs : int
        How many inputs were run.
    covered, covered_before : int
        Branches reached in the end, and by the inputs that were there before.
    kept : int
        Inputs in the corpus in the end.
    finding : Path or None
        The input that broke a promise.
    said : str
        What the process wrote.
    """

    target: str
    inputs: int
    covered: int
    covered_before: int
    kept: int
    finding: Path | None
    said: str


def missing() -> str | None:
    """Reason why the fuzzer cannot run here; None when it can."""
    if importlib.util.find_spec("atheris") is not None:
        return None
    return (
        "the fuzzer needs the package atheris (pip install -r requirements-test.txt), which is built for Linux on "
        f"x86-64 with Python 3.11 to 3.13; this is {sys.platform} with Python {sys.version.split()[0]}"
    )


def run_target(target: str, seconds: int, work: Path, seed: int = 0, merge: bool = False) -> Outcome:
    """Fuzz one target in a process of its own.

    Parameters
    ----------
    target : str
        Name in `fuzztargets.TARGETS`.
    seconds : int
        How long [s].
    work : Path
        Folder for the inputs that are found and for the findings.
    seed : int
        Of the random numbers; 0 takes one from the clock.
    merge : bool
        Instead of fuzzing, add those inputs of the work folder to the repository's that reach something new.
    """
    found, seeds = work / target, CORPUS / target
    for folder in (found, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    findings = work / "findings"
    findings.mkdir(exist_ok=True)
    before = set(findings.iterdir())
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        options = {
            "max_len": LONGEST_INPUT, "timeout": TIME_LIMIT, "rss_limit_mb": MEMORY_LIMIT, "print_final_stats": 1,
            "artifact_prefix": f"{findings}/{target}-", "seed": seed,
            # Merged are inputs that reach further branches; how often they do counts for the mutations only.
            **({"merge": 1, "use_counters": 0} if merge else {"max_total_time": seconds}),
        }  # fmt: skip
        folders = [seeds, found] if merge else [found, seeds]  # what is new goes to the first
        command = [sys.executable, str(HERE / "fuzz.py"), "--worker", target, f"{folder}/words"]
        command += [*(f"-{name}={value}" for name, value in options.items()), *map(str, folders)]
        done = subprocess.run(
            command, env=os.environ | {"TMPDIR": folder}, cwd=folder, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * seconds + 600,
        )  # fmt: skip
    new = sorted(set(findings.iterdir()) - before)
    if done.returncode and not new:
        raise RuntimeError(f"the fuzzer of {target} ended with {done.returncode}:\n{done.stdout}")
    covered = [int(each) for each in re.findall(r"\bcov: (\d+)", done.stdout)] or [0]
    kept = [int(each) for each in re.findall(r"\bcorp: (\d+)", done.stdout)] or [0]
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    return Outcome(
        target, int(inputs[1]) if inputs else 0, covered[-1], covered[0], kept[-1], new[0] if new else None, done.stdout
    )


def work_on(target: str, words: Path, arguments: Sequence[str]) -> None:
    """Be the process that fuzzes a target; does not return."""
    import atheris

    sys.path.insert(0, str(PROJECT))
    with atheris.instrument_imports(include=[*WATCHED, *ALSO_WATCHED.get(target, [])]):
        import fuzztargets
    root = logging.getLogger()
    root.addHandler(fuzztargets.StrictHandler())
    root.setLevel(logging.DEBUG)
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in fuzztargets.WORDS[target])
    words.write_text("".join(f'"{each}"\n' for each in quoted), "utf-8")
    itself = shlex.join([sys.executable, __file__, "--worker", target, str(words)])  # a merge starts it anew
    atheris.Setup([itself, f"-dict={words}", *arguments], fuzztargets.TARGETS[target])
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets one after the other; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--worker"]:
        work_on(arguments[1], Path(arguments[2]), arguments[3:])
    names = [folder.name for folder in sorted(CORPUS.iterdir())]
    parser = argparse.ArgumentParser(description="Fuzz everything that takes bytes from outside.")
    add = parser.add_argument
    add("--seconds", type=int, default=60, help="time for each target [s] (default: %(default)s)")
    add("--target", action="append", choices=names, help="fuzz only this one; may be given several times")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "mrd-fuzz", metavar="FOLDER",
        help="keeps findings, and inputs for the next run (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the random numbers; 0: from the clock (default: %(default)s)")
    add("--merge", action="store_true", help="do not fuzz: add what the work folder has and the repository's corpus "
        "lacks to that corpus")  # fmt: skip
    options = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    work = options.work.absolute()
    if options.merge:
        for name in options.target or names:
            run_target(name, 0, work, merge=True)
            print(f"{name}: {len(list((CORPUS / name).iterdir()))} inputs", flush=True)
        return 0
    outcomes = []
    print("| target | inputs run | branches reached | of them new | corpus | finding |\n|" + " --- |" * 6, flush=True)
    for name in options.target or names:
        outcome = run_target(name, options.seconds, work, options.seed)
        outcomes.append(outcome)
        print(
            f"| {name} | {outcome.inputs} | {outcome.covered} | {outcome.covered - outcome.covered_before} | "
            f"{outcome.kept} | {outcome.finding or 'none'} |",
            flush=True,
        )
    for outcome in outcomes:
        if outcome.finding is not None:
            print(f"\n{outcome.target}: {outcome.finding}\n{outcome.said[-4000:]}")
    return int(any(outcome.finding for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
