"""Says before a scan what is ready and what is not: this machine, the settings, a module, a scanner's app container.

    python doctor.py                              this machine and all settings
    python doctor.py simplefft                    a module as well, in the real server on a simulated scanner
    python doctor.py mymodule -M mine             a module of your own
    python doctor.py simplefft --header scan.h5   with a scan that fits this header; --data: with these data
    python doctor.py simplefft --matrix 192 --coils 16 --tr 5      will it keep up?

The exit status is 1 when there is a fault. See doc/doctor.md.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Before NumPy is loaded, as main.py has it: the module runs as it does there.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from checks import container, files, machine, module, scans, settings
from checks.finding import Finding, Level, fault, show, warning
from checks.scanner import Scanner
from mrdio.codec import MrdError
from mrdio.commandline import number
from mrdio.h5groups import MrdFileError
from mrdio.recordings import DEFAULT_FOLDER
from recon.configuration import PROJECT_FOLDER
from recon.trajectory import TrajectoryError
from serving.processes import leave
from serving.session import DEPENDENCIES

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Says before a scan what is ready and what is not. Exit status 1: there is a fault.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("module", nargs="?", help="module to run on a simulated scanner")
    add("--header", type=Path, metavar="FILE", help="XML, .h5 or stream file: a simulated scan fits its header")
    add("--data", type=Path, metavar="FILE", help=".h5 or stream file: what is in it is sent")
    add("-M", "--moduleFolder", type=Path, action="append", default=[], metavar="FOLDER",
        help="further folder with modules; may be given several times")  # fmt: skip
    add("--input", choices=scans.KINDS, action="append", default=[],
        help="kind of data that the module is for; by default all those for which it sends images")  # fmt: skip
    add("--patience", type=number(0.1, float), default=60.0, metavar="SECONDS",
        help="time that the module may take to end after the last data")  # fmt: skip
    add("--no-machine", dest="machine", action="store_false", help="check the module only, or the container")

    add = parser.add_argument_group("will the module keep up?").add_argument
    add("--matrix", type=number(8, high=2048), help="matrix of a simulated scan")
    add("--coils", type=number(1, high=256), help="its coils")
    add("--tr", type=number(0.1, float, 1e5), metavar="MS", help="its repetition time")

    add = parser.add_argument_group("as the server is started").add_argument
    add("-p", "--port", type=number(0, high=65535), default=9002, help="port that the server is to listen on")
    add("-H", "--host", default="127.0.0.1", help="address that it is to listen on")
    add("-S", "--savedataFolder", type=Path, default=Path(DEFAULT_FOLDER), metavar="FOLDER", help="for saved data")
    add("--dependencyFolder", type=Path, metavar="FOLDER",
        help=f"for measurements that scans depend on (default: {DEPENDENCIES}, beside that of saved data)")  # fmt: skip

    add = parser.add_argument_group("a scanner's app container").add_argument
    add("--container", type=Path, metavar="FILE", help="image as docker save wrote it")
    add("--newestCuda", default=".".join(map(str, container.NEWEST_CUDA)), help="newest CUDA that the host takes")

    add("--colour", choices=("auto", "always", "never"), default="auto", help="auto: when a terminal shows it")
    options = parser.parse_args(arguments)
    if options.module is None and (options.header or options.data or options.matrix or options.coils or options.tr):
        parser.error("--header, --data, --matrix, --coils and --tr need a module")
    try:
        major, minor = map(int, options.newestCuda.split("."))
        options.newestCuda = major, minor
    except ValueError:
        parser.error(f"--newestCuda {options.newestCuda} is no version such as 11.8")
    return options


def findings(options: argparse.Namespace, folders: Sequence[Path]) -> Iterator[Finding]:
    """Yield all findings, as the command line asks for them."""
    if options.machine:
        beside = options.savedataFolder.absolute().parent / DEPENDENCIES
        place = machine.Place(options.host, options.port, options.savedataFolder, options.dependencyFolder or beside)
        yield from machine.check(place)
    if options.machine or options.module:
        yield from settings.check(folders, options.module or "")
    if options.container is not None:
        yield from container.check(options.container, options.newestCuda)
    if options.module is not None:
        found = module.find(options.module, folders)
        yield found
        if not found.level:
            with Scanner(folders, options.patience) as scanner:
                yield from check_module(scanner, options, folders)


def check_module(scanner: Scanner, options: argparse.Namespace, folders: Sequence[Path]) -> Iterator[Finding]:
    """Yield the findings about a module: in general, or with a header, with data, or at a size."""
    name = options.module
    special = options.header or options.data or options.matrix or options.coils or options.tr
    if not special or options.input:
        yield from module.examine(scanner, name, options.input)
    try:
        if options.header:
            text, header = files.read_header(options.header)
            yield from files.describe(header)
            try:
                scan = files.simulated(text, header, settings.sequence_folders(folders, name))
                yield from module.examine_scan(scanner, name, scan)
            except files.NotSimulated as error:
                yield warning("header", str(error))
        if options.data:
            yield from module.examine_scan(scanner, name, files.recorded(options.data))
    except (OSError, ValueError, MrdFileError, MrdError, TrajectoryError) as error:
        yield fault("header" if options.header else "data", str(error))
    if options.matrix or options.coils or options.tr:
        yield from keeps_up(scanner, name, options)


def keeps_up(scanner: Scanner, name: str, options: argparse.Namespace) -> Iterator[Finding]:
    """Yield the findings about a scan of a certain matrix, number of coils and TR."""
    matrix, coils, tr = options.matrix or 128, options.coils or 8, 1e-3 * (options.tr or 10.0)
    for kind in options.input or ("cartesian", "spiral"):
        try:
            scan = scans.sized(kind, matrix, coils, tr)
        except ValueError as error:
            yield warning("speed", f"{kind}: {error}")
            continue
        results = list(module.examine_scan(scanner, name, scan))
        if options.input or any(each.subject == "speed" for each in results):
            yield from results
            return
    yield fault("speed", f"{name} sends no image for Cartesian nor for spiral k-space")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    # What the module logs is not shown: what its client reads is.
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    folders = list(dict.fromkeys(path.resolve() for path in (PROJECT_FOLDER, Path.cwd(), *options.moduleFolder)))
    for folder in folders:
        if not folder.is_dir():
            show([fault("module", f"there is no module folder {folder}")], sys.stdout, colours=False)
            return 1
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    colours = options.colour == "always" or (
        options.colour == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    begin, seen = time.monotonic(), []
    stdout = sys.stdout  # a module's own output goes elsewhere
    for finding in settings.unique(findings(options, folders)):
        seen.append(finding)
        show([finding], stdout, colours)
    counts = {level: sum(each.level is level for each in seen) for level in Level}
    faults, warnings = counts[Level.FAULT], counts[Level.WARNING]
    stdout.write(
        f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}, {counts[Level.OK]} ok, "
        f"{time.monotonic() - begin:.1f} s\n"
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(leave(main()))
