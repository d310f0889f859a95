"""Checks of an app container for a scanner, as ``docker save`` writes it: label, user, CUDA, command, size."""

import base64
import binascii
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks.finding import Finding, fault, ok, warning
from checks.label import LABEL, problems

NEWEST_CUDA = (11, 8)  # that the driver of scanners' computers takes; ask the vendor about yours
LARGE = 10 * 2**30  # bytes
ADVICE_CUDA = "build with docker/build-image.sh cuda11"

_CUDART = re.compile(r"(?:^|/)libcudart\.so\.(\d+)(?:\.(\d+))?")
_CUPY = re.compile(r"(?:^|/)cupy_cuda(\d\d)x-[^/]*\.dist-info(?:/|$)")


def check(path: Path, newest_cuda: tuple[int, int] = NEWEST_CUDA) -> Iterator[Finding]:
    """Yield the findings about a container.

    Parameters
    ----------
    path
        Archive that ``docker save`` wrote.
    newest_cuda
        Newest version of CUDA that the host takes.
    """
    try:
        with tarfile.open(path) as archive:
            manifest = json.load(_member(archive, "manifest.json"))[0]
            settings = json.load(_member(archive, manifest["Config"])).get("config") or {}
            files = {name for layer in manifest["Layers"] for name in _names(archive, layer)}
    except (OSError, tarfile.TarError, ValueError, KeyError, IndexError, TypeError) as error:
        yield fault("container", f"{path} cannot be read as an image that docker save wrote: {error}")
        return
    labels = settings.get("Labels") or {}
    yield label(labels)
    yield user(settings.get("User") or "")
    yield cuda(files, settings.get("Env") or [], newest_cuda)
    yield command((settings.get("Entrypoint") or []) + (settings.get("Cmd") or []), _port(labels))
    yield size(path.stat().st_size)


def _member(archive: tarfile.TarFile, name: str) -> Any:
    content = archive.extractfile(name)
    if content is None:
        raise KeyError(f"{name} is no file")
    return content


def _names(archive: tarfile.TarFile, layer: str) -> list[str]:
    """Names of the files of a layer."""
    with tarfile.open(fileobj=_member(archive, layer)) as files:
        return files.getnames()


def _decoded(labels: dict[str, str]) -> Any:
    """Content of the label; raises ValueError when it is none."""
    try:
        return json.loads(base64.b64decode(labels[LABEL], validate=True))
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"it is no base64 text: {error}") from error


def label(labels: dict[str, str]) -> Finding:
    """Check the label against the vendor's schema."""
    if LABEL not in labels:
        return fault("label", f"the image has no label {LABEL}: the scanner does not see it as an app; "
                     "doc/openrecon.md tells how to give it one")  # fmt: skip
    try:
        content = _decoded(labels)
    except ValueError as error:
        return fault("label", f"it cannot be read: {error}; tools/openrecon.py makes one")
    if found := problems(content):
        return fault("label", f"it is against the schema: {'; '.join(found)}")
    return ok("label", f"{content['general']['name']['en']} {content['general']['version']}, as the schema has it")


def _port(labels: dict[str, str]) -> int | None:
    try:
        return int(_decoded(labels)["reconstruction"]["port"])
    except (ValueError, KeyError, TypeError):
        return None


def user(name: str) -> Finding:
    """Check that the image runs as root, as the scanner's host expects."""
    if name.partition(":")[0] in ("", "0", "root"):
        return ok("user", "root")
    return fault("user", f"the image runs as the user {name}: scanners run an app as root, and folders that they share "
                 "belong to root: end its file with USER root")  # fmt: skip


def cuda(files: set[str], environment: list[str], newest: tuple[int, int]) -> Finding:
    """Check the version of CUDA, as libraries and packages of the image tell it."""
    found: dict[tuple[int, int], str] = {}
    for name in sorted(files):
        if match := _CUDART.search(name):
            # The library of 11.x is called libcudart.so.11.0 or libcudart.so.11.x.y, its number of no meaning.
            found[int(match[1]), 0] = name
        elif match := _CUPY.search(name):
            found[int(match[1]), 0] = name
    for entry in environment:
        if match := re.fullmatch(r"CUDA_VERSION=(\d+)\.(\d+).*", entry):
            found[int(match[1]), int(match[2])] = entry
    if not found:
        return ok("CUDA", "none in the image: it computes on the CPU")
    version = max(found)
    limit = ".".join(map(str, newest))
    if version > newest:
        text = f"{found[version]} is of CUDA {version[0]}, the host takes {limit} at most: {ADVICE_CUDA}"
        return fault("CUDA", text)
    return ok("CUDA", f"{version[0]}.x, not newer than {limit}")


def command(words: list[str], port: int | None) -> Finding:
    """Check that the image starts the server on every network, and on the port of the label."""
    line = " ".join(words)
    if "main.py" not in line and "start-fire" not in line:
        return warning("command", f"the image starts {line or 'nothing'!r}: is that the server?")
    if "main.py" in line and "0.0.0.0" not in words:
        return fault("command", f"{line!r} listens inside the container only: add -H 0.0.0.0")
    given = words[words.index("-p") + 1] if "-p" in words[:-1] else "9002"
    if "main.py" in line and port is not None and given != str(port):
        return fault("command", f"{line!r} listens on port {given}, the label says {port}")
    return ok("command", line)


def size(count: int) -> Finding:
    """Check the size of the archive [bytes]."""
    text = f"{count / 2**30:.1f} GiB"
    if count > LARGE:
        return warning("size", f"{text}: more than {LARGE / 2**30:.0f} GiB take long to install, and may not fit")
    return ok("size", text)
