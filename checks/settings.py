"""Checks of the configuration files, and of the files that they name."""

import inspect
import logging
import socket
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checks.finding import Finding, fault, ok, warning
from checks.machine import bart, gpu
from recon import fieldsources, gradientresponse
from recon.configuration import PROJECT_FOLDER, ConfigurationError, load, project_path
from recon.fieldmap import FieldMapError, read_file
from recon.gradientresponse import GirfError
from recon.pulseq import check_signature
from recon.trajectory import TrajectoryError, read_metafile
from serving.module_loader import ModuleError, ModuleLoader

logger = logging.getLogger(__name__)

CONNECT_WAIT = 2.0  # for the scheduler of a cluster [s]


def classes(folders: Sequence[Path], only: str = "") -> tuple[dict[str, Any], list[Finding]]:
    """Find the configuration classes of modules, by the file that each reads; modules that cannot be loaded are faults.

    Parameters
    ----------
    folders
        Where modules lie.
    only
        Name of the only module to look at; empty: all.
    """
    loader, found, problems = ModuleLoader(folders), {}, []
    for name in dict.fromkeys(path.stem for folder in folders for path in sorted(folder.glob(f"{only or '*'}.py"))):
        try:
            process = loader.load(name)
        except ModuleError as error:
            problems.append(fault("module", str(error)))
            continue
        for each in vars(sys.modules[process.__module__]).values() if process else ():
            own = inspect.isclass(each) and isinstance(getattr(each, "FILE", None), str)
            if own and each.__module__ == process.__module__:
                found[each.FILE] = each
    return found, problems


def check(folders: Sequence[Path], only: str = "") -> Iterator[Finding]:
    """Yield the findings about all configuration files, or about that of one module."""
    found, problems = classes(folders, only)
    yield from problems
    for file, cls in found.items():
        try:
            settings: Any = load(cls)
        except ConfigurationError as error:
            yield fault("settings", str(error))
            continue
        yield ok("settings", f"{_shown(project_path(file))}: keys and values can be used")
        yield from _named_files(file, settings)
    if not only:
        for path in sorted((PROJECT_FOLDER / "configs").glob("*.toml")):
            if f"configs/{path.name}" not in found:
                yield _unread(path)


def _shown(path: Path) -> Path:
    return path.relative_to(PROJECT_FOLDER) if path.is_relative_to(PROJECT_FOLDER) else path


def _unread(path: Path) -> Finding:
    try:
        tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        return fault("settings", f"{_shown(path)}: {error}")
    return warning("settings", f"{_shown(path)}: no module reads this file (is its name misspelt?)")


def _named_files(file: str, settings: Any) -> Iterator[Finding]:
    """Yield the findings about what a configuration names: folders, response, solver, GPU, cluster."""
    options: Any = getattr(settings, "reconstruction", None)
    if folders := getattr(settings, "metafile_paths", ()):
        yield from sequences(folders)
    if getattr(options, "apply_girf", False):
        try:
            path = gradientresponse.find_girf(options.girf_file)
            gradientresponse.load_girf(path)
            yield ok("response", f"{file}: {_shown(path)} can be read")
        except GirfError as error:
            yield fault("response", f"{file}: {error}")
    name = getattr(options, "field_map", "")
    if name not in ("", fieldsources.AUTO, fieldsources.DEPENDENCY):
        try:
            read_file(project_path(name), logger.warning)
            yield ok("field map", f"{file}: {_shown(project_path(name))} can be read")
        except FieldMapError as error:
            yield fault("field map", f"{file}: {error}")
    if getattr(options, "backend", "") == "bart":
        yield bart(required=True, configured=str(options.BART_TOOLBOX_PATH or ""))
    if (device := getattr(options, "gpu_device", -1)) >= 0:
        yield gpu(device)
    if scheduler := getattr(options, "scheduler", ""):
        yield _reachable(file, scheduler)


def _reachable(file: str, scheduler: str) -> Finding:
    place = urlsplit(scheduler)
    try:
        with socket.create_connection((place.hostname or "", place.port or 8786), timeout=CONNECT_WAIT):
            return ok("cluster", f"{scheduler} answers")
    except (OSError, ValueError) as error:
        return fault("cluster", f"{file}: the scheduler {scheduler} does not answer ({error}): start it, or set "
                     'scheduler = ""')  # fmt: skip


def sequences(folders: Sequence[Path]) -> Iterator[Finding]:
    """Yield the findings about folders of metafiles and Pulseq files."""
    count, broken = 0, False
    for folder in folders:
        if not folder.is_dir():
            yield fault("sequences", f"metafile_paths: there is no folder {folder}")
            continue
        for path in sorted((*folder.glob("*.mat"), *folder.glob("*.seq"))):
            count += 1
            try:
                if path.suffix == ".mat":
                    read_metafile(path)
                else:
                    check_signature(path, path.read_bytes())
            except (TrajectoryError, OSError) as error:
                broken = True
                yield fault("sequences", str(error))
    where = ", ".join(str(_shown(folder)) for folder in folders)
    yield ok("sequences", f"{where}: {count} metafiles and Pulseq files" + (", see above" if broken else ""))


def unique(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Leave out findings that came before: several configurations name the same folders."""
    seen: set[Finding] = set()
    for finding in findings:
        if finding not in seen:
            seen.add(finding)
            yield finding


def sequence_folders(folders: Sequence[Path], module: str) -> tuple[Path, ...]:
    """Folders in which a module looks for metafiles and Pulseq files."""
    for cls in classes(folders, module)[0].values():
        try:
            if found := getattr(load(cls), "metafile_paths", ()):
                return tuple(found)
        except ConfigurationError:
            continue  # which `check` tells
    return (project_path("seq_meta"),)
