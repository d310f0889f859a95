"""Coverage-guided fuzzing of everything that takes bytes from outside.

    python tools/fuzz.py --minutes 2
    python tools/fuzz.py --minutes 60 --target messages --target session

Each target of ``tests/faults/fuzz_targets.py`` runs in a process of its own, for so long, from the inputs in
``tests/fuzz_corpus`` and those that earlier runs found worth keeping (``--work``). A finding ends its target; its input
is kept, and is to become a file of ``tests/fuzz_corpus/TARGET``, from where the tests run it ever after. The exit
status is 1 when there are findings, 2 when the fuzzer is missing.
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
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CORPUS = PROJECT / "tests" / "fuzz_corpus"

# Whose branches guide the mutations; what is compiled (numpy, expat, HDF5) cannot be watched, and need not be.
WATCHED = [
    "mrdio.codec", "connection", "serving.session", "mrdio.recordings", "mrdio.mrdfile", "mrdio.mrdheader",
    "recon.configuration", "serving.module_loader", "recon.moduleparameters", "recon.matfile", "recon.trajectory",
    "tomllib", "mrdio.jsonparameters", "mrdio.socketstream",
]  # fmt: skip
ALSO_WATCHED = {"header": ["xsdata.formats.dataclass.parsers"], "attributes": ["ismrmrd.meta"]}

# Longest input [bytes], time of one, which takes a thousandth of that [s], and memory of the process [MiB].
BOUNDS = {"max_len": 8192, "timeout": 10, "rss_limit_mb": 2048}


def run_target(target: str, seconds: float, work: Path, seed: int = 0, merge: bool = False) -> tuple[str, list[Path]]:
    """Fuzz one target in a process of its own.

    Parameters
    ----------
    target : str
        Its name.
    seconds : float
        How long [s].
    work : Path
        Folder for the inputs that are found and for the findings.
    seed : int
        Of the random numbers; 0 takes one from the clock.
    merge : bool
        Instead of fuzzing, add those inputs of the work folder to the repository's that reach something new.

    Returns
    -------
    tuple
        What the process wrote, and inputs that broke a promise.

    Raises
    ------
    RuntimeError
        If the fuzzer ends with an error and without a finding.
    """
    found, seeds, findings = work / target, CORPUS / target, work / "findings"
    for folder in (found, seeds, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    # Merged are inputs that reach further branches; how often they do counts for the mutations only.
    task = {"merge": 1, "use_counters": 0} if merge else {"max_total_time": max(1, round(seconds))}
    options = BOUNDS | task | {"print_final_stats": 1, "artifact_prefix": f"{findings}/{target}-", "seed": seed}
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        command = [sys.executable, __file__, "--worker", target, f"{scratch}/words"]
        command += [f"-{name}={value}" for name, value in options.items()]
        command += map(str, [seeds, found] if merge else [found, seeds])  # what is new goes to the first
        done = subprocess.run(
            command, env=os.environ | {"TMPDIR": scratch}, cwd=scratch, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * seconds + 600,
        )  # fmt: skip
    new = sorted(set(findings.iterdir()) - before)
    if done.returncode and not new:
        raise RuntimeError(f"the fuzzer of {target} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout, new


def figure(name: str, said: str) -> int:
    """Last figure of a name that the fuzzer wrote; 0 when there is none."""
    return int([0, *re.findall(rf"\b{name}: (\d+)", said)][-1])


def work_on(target: str, words: Path, arguments: Sequence[str]) -> None:
    """Be the process that fuzzes a target; does not return."""
    import atheris

    sys.path[:0] = map(str, (PROJECT, PROJECT / "tests", PROJECT / "tests" / "faults"))
    with atheris.instrument_imports(include=[*WATCHED, *ALSO_WATCHED.get(target, [])]):
        import fuzz_targets
    root = logging.getLogger()
    root.addHandler(fuzz_targets.StrictHandler())
    root.setLevel(logging.DEBUG)
    function, dictionary = fuzz_targets.TARGETS[target]
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in dictionary)
    words.write_text("".join(f'"{each}"\n' for each in quoted), "utf-8")
    itself = shlex.join([sys.executable, __file__, "--worker", target, str(words)])  # a merge starts it anew
    atheris.Setup([itself, f"-dict={words}", *arguments], function)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets one after the other; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--worker"]:
        work_on(arguments[1], Path(arguments[2]), arguments[3:])
    names = [folder.name for folder in sorted(CORPUS.iterdir())]
    parser = argparse.ArgumentParser(description="Fuzz everything that takes bytes from outside.")
    add = parser.add_argument
    add("--minutes", type=float, default=1.0, help="time for each target [min] (default: %(default)s)")
    add("--target", action="append", choices=names, help="fuzz only this one; may be given several times")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "mrd-fuzz", metavar="FOLDER",
        help="keeps findings, and inputs for the next run (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the random numbers; 0: from the clock (default: %(default)s)")
    add("--merge", action="store_true", help="do not fuzz: add what the work folder has and the repository's corpus "
        "lacks to that corpus")  # fmt: skip
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("error: the fuzzer needs the package atheris (pip install -r requirements-test.txt), which is built for "
              f"Linux on x86-64 with Python 3.11 to 3.13; this is {sys.platform} with Python "
              f"{sys.version.split()[0]}", file=sys.stderr)  # fmt: skip
        return 2
    status = 0
    print("| target | inputs run | branches reached | corpus | finding |\n|" + " --- |" * 5, flush=True)
    for name in options.target or names:
        said, findings = run_target(name, 60 * options.minutes, options.work.absolute(), options.seed, options.merge)
        inputs, covered, kept = (figure(each, said) for each in ("number_of_executed_units", "cov", "corp"))
        print(f"| {name} | {inputs} | {covered} | {kept} | {', '.join(map(str, findings)) or 'none'} |", flush=True)
        if findings:
            print(said[-4000:], file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
