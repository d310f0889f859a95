"""Pulseq sequences (`.seq`) as trajectories: the file's signature, its readouts from a cache file, field of view.

`pulseqreadouts` reads the sequence, in a process of its own, once for each content: the result is kept in a file beside
the sequence, or in the user's cache folder where that cannot be written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recon.configuration import PROJECT_FOLDER
from recon.pulseqreadouts import ImageReadouts, digest_of
from recon.readoutorder import ReadoutOrder
from recon.trajectory import Trajectory, TrajectoryError

logger = logging.getLogger(__name__)

MAX_BYTES = 128 << 20  # of a sequence
MAX_CACHE_BYTES = 1 << 30
TAIL = 4096  # bytes at the end of a sequence, in which its signature stands
TIME_LIMIT = 30.0  # for reading a sequence [s]
SIGNATURE_MARK = b"\n[SIGNATURE]"
HEADER_TOLERANCE = 0.01  # of a field of view that the trajectory still supports


# --- Signature ------------------------------------------------------------------------------------------------------


def stated_signature(file: Path) -> str | None:
    """Signature that a sequence states at its end; None when it states none, as formats before 1.4."""
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - TAIL))
        return _stated(content.read())


def _stated(content: bytes) -> str | None:
    _, mark, section = content.replace(b"\r\n", b"\n").rpartition(SIGNATURE_MARK)
    found = re.search(rb"^Hash[ \t]+([0-9A-Fa-f]+)\s*$", section, re.MULTILINE) if mark else None
    return found[1].decode().lower() if found else None


def check_signature(file: Path, content: bytes) -> None:
    """Check that a sequence is as its author's toolbox wrote it.

    The signature is the MD5 hash of all that stands before its section, without the last line break.

    Raises
    ------
    TrajectoryError
        The content has another hash than the one that it states.
    """
    stated = _stated(content[-TAIL:])
    if stated is None:
        return
    # A copy through an editor or a version control system may have changed the line ends.
    found = _hash(content)
    if stated not in (found, _hash(content.replace(b"\r\n", b"\n")) if b"\r\n" in content else found):
        raise TrajectoryError(
            f"{file} was changed after it was written: it states the signature {stated}, but its content has "
            f"{found}; copy the file that the scanner played"
        )


def _hash(content: bytes) -> str:
    return hashlib.md5(content.rpartition(SIGNATURE_MARK)[0], usedforsecurity=False).hexdigest()


# --- Readouts, from the cache or anew -------------------------------------------------------------------------------


def read_readouts(file: Path) -> ImageReadouts:
    """Read the image readouts of a sequence, once for each content.

    Raises
    ------
    TrajectoryError
        Names the file and why it cannot be used.
    """
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise TrajectoryError(f"{file} has {size >> 20} MiB; sequences up to {MAX_BYTES >> 20} MiB are read")
        content = file.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"cannot read {file}: {error.strerror or error}") from error
    check_signature(file, content)
    digest = digest_of(content)
    caches = list(cache_files(file, digest))
    for cache in caches:
        if (kept := load(cache, digest)) is not None:
            return kept
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "readouts.npz"
        readouts = _read_anew(file, content, result)
        keep(result, caches)
    return readouts


def keep(result: Path, caches: Sequence[Path]) -> None:
    """Keep a result as the first of the cache files that can be written; other sessions never see half of it."""
    for cache in caches:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".cache-", dir=cache.parent) as folder:
                shutil.copyfile(result, whole := Path(folder) / cache.name)
                whole.replace(cache)
        except OSError as error:  # the next place
            logger.info("No cache file %s: %s", cache, error)
        else:
            return


def cache_files(file: Path, digest: str) -> Iterator[Path]:
    """Yield the places for the cache file of a sequence: beside it, and in the user's cache folder."""
    yield file.with_name(f"{file.name}.npz")
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return
    yield folder / "mrd-server" / f"{digest}.seq.npz"


def _read_anew(file: Path, content: bytes, result: Path) -> ImageReadouts:
    """Read a sequence in a process of its own, which writes `result`."""
    source = result.with_name("sequence.seq")  # what was hashed, whatever becomes of the file meanwhile
    source.write_bytes(content)
    command = [sys.executable, "-m", "recon.pulseqreadouts", str(source), str(result)]
    # More threads would only take address space, which is limited.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    try:
        done = subprocess.run(
            command, cwd=PROJECT_FOLDER, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=TIME_LIMIT, check=False, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TrajectoryError(f"{file} takes more than {TIME_LIMIT:g} s to read: it is damaged, or too long") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the reader ended with status {done.returncode}"]
        raise TrajectoryError(f"{file} cannot be read as a Pulseq sequence: {lines[-1]}")
    readouts = load(result, digest_of(content))
    if readouts is None:
        raise TrajectoryError(f"{file} gave no usable readouts; the log says why")
    return readouts


def load(cache: Path, digest: str) -> ImageReadouts | None:
    """Load the readouts that a cache file keeps for a content; None when it keeps none, or is damaged."""
    if not cache.is_file():
        return None
    try:
        with zipfile.ZipFile(cache) as archive:
            if sum(each.file_size for each in archive.infolist()) > MAX_CACHE_BYTES:
                raise ValueError("it is too large")
        with np.load(cache, allow_pickle=False) as arrays:
            if arrays["source"].item() != digest:
                return None  # of an older content
            return _checked({field.name: arrays[field.name] for field in dataclasses.fields(ImageReadouts)})
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with it: the sequence is read anew
        logger.warning("The cache file %s is not used: %s", cache, error)
        return None


def _checked(arrays: dict[str, Any]) -> ImageReadouts:
    kinds = {"k": "f", "weights": "f", "order": "i", "samples": "i", "first_run_only": "b", "kz": "f"}
    shared = {name: arrays[name] for name in kinds}
    k, weights, order, samples, first_run_only, kz = shared.values()
    if k.ndim != 3 or k.shape[2] != 2 or 0 in k.shape or weights.shape != k.shape[:2] or order.ndim != 1:
        raise ValueError(f"shapes k {k.shape}, weights {weights.shape}, order {order.shape}")
    if not order.shape == samples.shape == first_run_only.shape == kz.shape:
        raise ValueError(
            f"shapes order {order.shape}, samples {samples.shape}, once {first_run_only.shape}, kz {kz.shape}"
        )
    for name, array in shared.items():
        if array.dtype.kind != kinds[name] or not np.isfinite(array).all():
            raise ValueError(f"{name} has {array.dtype}, or is not finite")
    if weights.min() < 0 or not -1 <= order.min() <= order.max() < len(k) or order.max() < 0 or samples.min() < 1:
        raise ValueError("weights, order or samples out of range")
    others: dict[str, Any] = {
        name: float(arrays[name]) for name in ("dwell", "defined_fov", "defined_resolution", "supported_fov")
    }
    for array in shared.values():  # by sessions
        array.flags.writeable = False
    others["remarks"] = tuple(str(each) for each in arrays["remarks"])
    return ImageReadouts(**shared, **others)


# --- Trajectory -----------------------------------------------------------------------------------------------------


def trajectory_from(file: Path, readouts: ImageReadouts, asked_fov: float = 0.0) -> tuple[Trajectory, str]:
    """Trajectory of a sequence, and what its user should know.

    The field of view is that of the sequence's definitions; else that of the header, as far as the trajectory supports
    it: golden-angle arms together support a larger one than is wanted; else what the trajectory supports. The
    resolution is that of the definitions, or that of the largest |k|.

    Parameters
    ----------
    file
        The sequence.
    readouts
        Of the sequence.
    asked_fov
        Field of view of the MRD header [m]; 0: it has none.

    Raises
    ------
    TrajectoryError
        There is no field of view: neither definitions nor header have one, and the arms leave gaps.
    """
    fov, where = _field_of_view(readouts, asked_fov)
    if not math.isfinite(fov):
        raise TrajectoryError(
            f"{file} defines no field of view, its readouts do not cover k-space, and the MRD header has none: add a "
            "definition FOV [m]"
        )
    largest = float(np.linalg.norm(readouts.k, axis=-1).max())
    defined = readouts.defined_resolution
    resolution, by = (defined, "as defined") if math.isfinite(defined) else (0.5 / largest, "from the largest |k|")
    trajectory = Trajectory(
        file=file,
        k=readouts.k,
        weights=readouts.weights,
        dwell=readouts.dwell,
        pre_discard=0,
        fov=fov,
        resolution=resolution,
        interleaves=len(readouts.k),
        order=ReadoutOrder(readouts.order, readouts.samples, readouts.first_run_only, readouts.kz),
    )
    told = (
        f"Pulseq sequence {file.name}: {len(readouts.order)} readouts of {len(readouts.k)} different arms, field of "
        f"view {1e3 * fov:.4g} mm {where}, resolution {1e3 * resolution:.4g} mm {by}"
    )
    return trajectory, "; ".join([told, *readouts.remarks])


def _field_of_view(readouts: ImageReadouts, asked: float) -> tuple[float, str]:
    """Field of view [m], and where it comes from."""
    if math.isfinite(readouts.defined_fov):
        return readouts.defined_fov, "as defined"
    supported = readouts.supported_fov
    if asked > 0 and not asked > (1 + HEADER_TOLERANCE) * supported:
        return asked, "of the MRD header"
    return supported, "that the trajectory supports"
