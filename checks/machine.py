"""Checks of this machine: Python and packages, caches, BART, GPU, port, folders, disks, clock, processor, memory."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bart_tools
from checks.finding import Finding, fault, ok, warning
from mrdio.limits import MIB, Limits
from recon import memory, nufft
from recon.configuration import PROJECT_FOLDER

OLDEST, NEWEST = (3, 11), (3, 13)  # versions of Python that the project is tested with
DISK_RESERVE = 10  # times the limit on free disk space, below which there is a warning
SMALL_MEMORY = 2048 * MIB
SLOW_CLOCK = 86400.0  # by which the clock may be behind the newest file of the project [s]


@dataclass(frozen=True)
class Place:
    """Where the server is to run.

    Attributes
    ----------
    host, port : str, int
        Where it is to listen.
    save_folder, dependency_folder : Path
        Where it is to keep data.
    """

    host: str
    port: int
    save_folder: Path
    dependency_folder: Path


def check(place: Place) -> Iterator[Finding]:
    """Yield all findings about this machine."""
    yield python()
    yield packages(PROJECT_FOLDER / "requirements.txt")
    yield compiled_cache()
    yield bart()
    yield gpu()
    yield port(place.host, place.port)
    for name, folder in (("save folder", place.save_folder), ("dependencies", place.dependency_folder),
                         ("temporary", Path(tempfile.gettempdir()))):  # fmt: skip
        yield writable(name, folder)
    yield clock(time.time())
    yield processor()


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Check the version of Python."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST:
        return fault("Python", f"{text}: the server needs {OLDEST[0]}.{OLDEST[1]} or newer")
    if version[:2] > NEWEST:
        return warning("Python", f"{text}: the project is tested up to {NEWEST[0]}.{NEWEST[1]}")
    return ok("Python", f"{text} ({platform.system()} {platform.machine()})")


def pinned(file: Path) -> dict[str, str]:
    """Packages that a requirements file pins, with their versions."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in file.read_text("utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {name.partition("[")[0]: version for name, _, version in pairs}


def packages(file: Path) -> Finding:
    """Compare the installed packages with the pins of a requirements file."""
    missing, other = [], []
    pins = pinned(file)
    for name, version in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name}=={version}")
            continue
        if installed != version:
            other.append(f"{name} {installed} (pinned: {version})")
    advice = f"python -m pip install -r {file.name}"
    if missing:
        return fault("packages", f"not installed: {', '.join(missing)}: {advice}")
    if other:
        return warning("packages", f"other versions than those that are tested: {', '.join(other)}: {advice}")
    return ok("packages", f"all {len(pins)} of {file.name} in the pinned versions")


def compiled_cache() -> Finding:
    """Check that compiled loops can be kept: where Numba looks, in its order."""
    configured = os.environ.get("NUMBA_CACHE_DIR")
    beside = PROJECT_FOLDER / "recon" / "__pycache__"
    own = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "numba"
    for folder in [Path(configured)] if configured else [beside, own]:
        if not _problem(folder):
            return ok("compiled code", f"is kept in {folder}")
    return warning("compiled code", "can be kept nowhere: the first scan after each start waits while they compile; "
                   "set NUMBA_CACHE_DIR to a folder that can be written")  # fmt: skip


def bart(required: bool = False, configured: str = "") -> Finding:
    """Look for BART; `required`: a configuration names it as the solver."""
    try:
        found = bart_tools.find_bart(configured)
    except bart_tools.BartError as error:
        if required:
            return fault("BART", str(error))
        return ok("BART", 'is not installed; only backend = "bart" of two modules needs it')
    return ok("BART", f"{found.version} at {found.path}, {'with' if found.cuda else 'without'} CUDA")


def gpu(device: int = -1) -> Finding:
    """Open a GPU that a configuration asks for; -1: none does."""
    if device >= 0:
        try:
            nufft.open_backend(device)
            free = memory.free(device)
        except nufft.GpuUnavailableError as error:
            return fault("GPU", str(error))
        return ok("GPU", f"number {device} answers, {free / 2**30:.1f} GiB of its memory are free")
    try:
        version = next(
            f"{each} {importlib.metadata.version(each)}"
            for each in ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")
            if _installed(each)
        )
    except StopIteration:
        return ok("GPU", "none is asked for (gpu_device = -1), CuPy is not installed")
    return ok("GPU", f"none is asked for (gpu_device = -1); {version} is installed")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def port(host: str, number: int) -> Finding:
    """Check that the server can listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            if sys.platform != "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        with contextlib.suppress(OSError), socket.create_connection((host, number), timeout=1):
            return warning("port", f"{host}:{number} is taken by a program that answers: if it is not the server, "
                           "end it, or choose another port (-p)")  # fmt: skip
        return fault(
            "port", f"{host}:{number} cannot be listened on ({error.strerror or error}): choose another one (-p)"
        )
    return ok("port", f"{host}:{number} is free")


def _problem(folder: Path) -> str:
    """Say why nothing can be written in a folder, or, if it is not there, in the first one above it that is."""
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    if not existing.is_dir():
        return f"{existing} is no folder"
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"nothing can be written in {existing}: {error.strerror}"


def writable(name: str, folder: Path, limits: Limits | None = None) -> Finding:
    """Check that a folder can be written, or made, and that its disk has free space."""
    limit = (limits or Limits()).disk
    problem = _problem(folder)
    if problem:
        return fault(name, f"{folder}: {problem}: change its rights, or choose another folder")
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    text = f"{folder}{'' if existing == folder else ' can be made'}: {free / 2**30:.1f} GiB of the disk are free"
    if free <= limit:
        return fault(name, f"{text}; saving stops at {limit / 2**30:g} GiB (--limit minDisk): delete old data")
    if free <= DISK_RESERVE * limit:
        return warning(name, f"{text}: enough for few scans; saving stops at {limit / 2**30:g} GiB")
    return ok(name, text)


def clock(now: float) -> Finding:
    """Check that the clock is not behind the project's own files; `now` [s] since 1970."""
    newest = max(path.stat().st_mtime for path in PROJECT_FOLDER.glob("*.py"))
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < newest - SLOW_CLOCK:
        return fault("clock", f"{text} is before files of this project were written: recordings would be named "
                     "wrongly, and old measurements taken for new; set the clock")  # fmt: skip
    return ok("clock", text)


def processor() -> Finding:
    """Describe cores and memory, and warn when others use them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    free = memory.free()
    text = f"{cores} cores, of which other programs use {min(load, 99):.1f}; {free / 2**30:.1f} GiB of memory are free"
    if free < SMALL_MEMORY:
        return warning("processor", f"{text}: end other programs")
    if load > 0.5 * cores:
        return warning("processor", f"{text}: scans will be slower than they could be")
    return ok("processor", text)
