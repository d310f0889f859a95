"""Spiral trajectories: the sequence's metafile and the MRD header into one frozen `Trajectory`.

The metafile (`<signature>.mat`, MATLAB 5) is written by the sequence designer RTSpiral PyPulseq. A readout of the scan
belongs to the column of the metafile that `ArmCounter` tells.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mrdhelper import get_userParameterString_value
from recon.matfile import MatFileError, read_mat
from recon.mrdencoding import is_imaging
from recon.readoutorder import ReadoutOrder

logger = logging.getLogger(__name__)

SIGNATURE_PARAMETER = "tSequenceVariant"
SIGNATURE_LENGTH = 32
DEFAULT_FOLDERS = (Path(__file__).resolve().parent.parent / "seq_meta",)
DWELL_OF_OLD_FILES = 1e-6  # [s], of metafiles without param.dt


class TrajectoryError(ValueError):
    """No trajectory for this scan; the text names the signature, file or number, and what would be right."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A 2-D trajectory and what its source says besides.

    Attributes
    ----------
    file
        The metafile or sequence; for trajectories of the readouts themselves, a text in its place.
    k
        K-space [arms, samples, (kx, ky)] [1/m] with s(k) = integral rho(r) exp(-2 pi i k.r) dr.
    weights
        Density compensation [samples], the same for every arm, or [arms, samples].
    dwell
        Time from sample to sample [s].
    pre_discard
        Samples at the start of each received readout that come before the first sample of `k`.
    fov
        Designed field of view [m].
    resolution
        Pixel size [m].
    interleaves
        Number of different arms; with linear ordering the columns repeat after this many.
    arm_ordering
        "ga", "linear" or "linear_custom"; empty when the source does not say.
    order
        Of the imaging readouts. None: the arms one after the other.
    post_discard
        Samples at the end of each received readout that come after the last sample of `k`.
    """

    file: Path
    k: NDArray[np.float64]
    weights: NDArray[np.float64]
    dwell: float
    pre_discard: int
    fov: float
    resolution: float
    interleaves: int
    arm_ordering: str = ""
    order: ReadoutOrder | None = None
    post_discard: int = 0

    @property
    def arms(self) -> int:
        """Number of arms: columns of the metafile."""
        return self.k.shape[0]

    @property
    def readouts(self) -> int:
        """Number of imaging readouts of one run of the sequence."""
        return self.arms if self.order is None else len(self.order)

    def arm_of(self, number: int) -> int:
        """Arm of the imaging readout `number` of the scan, from 0; -1 for one that is none of the image's."""
        return number % self.arms if self.order is None else int(self.order.arms[self.order.piece(number).place])

    @property
    def readout_length(self) -> int:
        """Samples of a received readout: discarded ones and those of `k`."""
        return self.pre_discard + self.k.shape[1] + self.post_discard

    def matrix_size(self, fov_oversampling: float = 1.0) -> int:
        """Pixels along each side of an image of `fov_oversampling` times the designed field of view."""
        return round(fov_oversampling * self.fov / self.resolution)

    def image_fov(self, fov_oversampling: float = 1.0) -> float:
        """Field of view of that image [m]: whole pixels, so it differs from the designed one by rounding."""
        return self.matrix_size(fov_oversampling) * self.resolution

    def cycles_per_fov(self, fov_oversampling: float = 1.0) -> NDArray[np.float64]:
        """K-space [arms, samples, (kx, ky)] in cycles per image field of view, as a NUFFT takes it.

        Physical units: scaling the largest |k| to half the matrix instead would change the pixel size, by 0.5 % for a
        typical design and by another amount once the trajectory is corrected.
        """
        return self.k * self.image_fov(fov_oversampling)

    def fitted_to(self, acquisition: ismrmrd.Acquisition) -> Trajectory:
        """Return the trajectory on the raster on which readouts arrive.

        A readout has all samples, or half of them when readout oversampling was removed on the way: then every second
        point of the raster counts. Samples that the readout's header discards are left out; its `discard_pre` counts
        those of `pre_discard`. Correct for the gradient response first: its delays belong to the receiver's raster.

        Raises
        ------
        TrajectoryError
            The readout has another number of samples, or discards all.
        """
        received, expected = acquisition.number_of_samples, self.readout_length
        if received == expected:
            fitted = self
        elif 2 * received == expected:
            first = self.pre_discard % 2
            fitted = dataclasses.replace(
                self,
                k=self.k[:, first::2],
                weights=self.weights[..., first::2],
                dwell=2 * self.dwell,
                pre_discard=(self.pre_discard + first) // 2,
            )
            logger.info("Readout oversampling was removed on the way: using every second trajectory sample")
        else:
            raise TrajectoryError(
                f"a readout has {received} samples, but {self.file} describes {expected} ({self.pre_discard} to discard"
                f" and {self.k.shape[1]} of trajectory); without readout oversampling it would be {expected / 2:g}"
            )
        return fitted._without(acquisition.discard_pre, acquisition.discard_post)

    def _without(self, pre: int, post: int) -> Trajectory:
        """Return the trajectory without samples at both ends that readouts discard."""
        first, last = max(pre - self.pre_discard, 0), self.k.shape[1] - max(post - self.post_discard, 0)
        if (first, last) == (0, self.k.shape[1]):
            return self
        if first >= last:
            raise TrajectoryError(
                f"discard_pre = {pre} and discard_post = {post} of the readouts leave no sample of "
                f"{self.readout_length}"
            )
        return dataclasses.replace(
            self,
            k=self.k[:, first:last],
            weights=self.weights[..., first:last],
            pre_discard=self.pre_discard + first,
            post_discard=self.readout_length - self.pre_discard - last,
        )

    def samples(self, acquisition: ismrmrd.Acquisition) -> NDArray[np.complex64]:
        """Samples [coils, samples] of a readout that belong to `k`: all but the discarded ones (a view, no copy).

        Raises
        ------
        TrajectoryError
            The readout has another length than the trajectory: `fitted_to` was not called, or readouts differ.
        """
        if acquisition.number_of_samples != self.readout_length:
            raise TrajectoryError(
                f"readout {acquisition.scan_counter} has {acquisition.number_of_samples} samples, "
                f"expected {self.readout_length} as in the readouts before"
            )
        if acquisition.discard_pre > self.pre_discard or acquisition.discard_post > self.post_discard:
            raise TrajectoryError(
                f"readout {acquisition.scan_counter} discards {acquisition.discard_pre} samples at its start and "
                f"{acquisition.discard_post} at its end, expected at most {self.pre_discard} and {self.post_discard} "
                "as in the readouts before"
            )
        return acquisition.data[:, self.pre_discard : self.readout_length - self.post_discard]


def ring_areas(radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of k-space, over pi, between the radii half-way to the neighbours of each sample, [samples].

    A sample of evenly turned arms stands for its share of this ring: the density compensation, but for a factor.
    Beyond the last sample the ring is taken as wide as before it.

    Parameters
    ----------
    radius
        Distance of each sample from the centre [samples] [1/m].
    """
    middle = (radius[1:] + radius[:-1]) / 2
    edges = np.concatenate(([0], middle, [2 * radius[-1] - middle[-1]]))
    return np.diff(edges**2)


# --- Finding and reading --------------------------------------------------------------------------------------------


def signature_of(header: Any) -> str:
    """Signature of the sequence: the user parameter `tSequenceVariant` of the MRD header, found by name.

    Scanners sometimes append characters to it, so that the first 32 count.

    Raises
    ------
    TrajectoryError
        It is absent, or holds characters that no signature has (it becomes part of a file's name).
    """
    value = get_userParameterString_value(header, SIGNATURE_PARAMETER)
    if not value:
        raise TrajectoryError(
            f'the MRD header has no userParameterString "{SIGNATURE_PARAMETER}" with the signature of the sequence: '
            "by it the metafile or Pulseq file is found"
        )
    signature = value[:SIGNATURE_LENGTH]
    if not re.fullmatch(r"[0-9A-Za-z]+", signature):
        raise TrajectoryError(
            f'the sequence signature {signature!r} of user parameter "{SIGNATURE_PARAMETER}" is invalid: '
            "only letters and digits are allowed"
        )
    return signature


def find_metafile(signature: str, folders: Sequence[Path] = DEFAULT_FOLDERS) -> Path:
    """Find `<signature>.mat` in the first folder that has it.

    Raises
    ------
    TrajectoryError
        Names the signature, the folders, those that do not exist, and metafiles of similar name.
    """
    for folder in folders:
        file = Path(folder) / f"{signature}.mat"
        if file.is_file():
            return file
    places = [f"{folder}" if Path(folder).is_dir() else f"{folder} (no such folder)" for folder in folders]
    present = [file.stem for folder in folders for file in sorted(Path(folder).glob("*.mat"))]
    near = difflib.get_close_matches(signature, present, n=3, cutoff=0.5)
    found = f"similar: {', '.join(near)}" if near else f"{len(present)} other metafile(s) there"
    raise TrajectoryError(f"no metafile {signature}.mat in {', '.join(places)}; {found}")


def read_metafile(file: str | Path) -> Trajectory:
    """Read and check a metafile.

    Raises
    ------
    TrajectoryError
        Names the file and what is wrong with it.
    """
    file = Path(file)
    try:
        content = read_mat(file, ["kx", "ky", "kz", "w", "param"])
    except MatFileError as error:
        raise TrajectoryError(f"metafile: {error}") from error
    try:
        return _checked(file, content)
    except ValueError as error:
        raise TrajectoryError(f"metafile {file}: {error}") from error


def _checked(file: Path, content: dict[str, Any]) -> Trajectory:
    kx, ky, weights = (_numbers(content, key) for key in ("kx", "ky", "w"))
    kz = _numbers(content, "kz") if "kz" in content else np.zeros_like(kx)
    if kx.ndim != 2 or 0 in kx.shape or not kx.shape == ky.shape == kz.shape:
        raise ValueError(f"kx, ky, kz have shapes {kx.shape}, {ky.shape}, {kz.shape}, must be equal: samples x arms")
    if weights.shape != kx.shape and (weights.size != kx.shape[0] or min(weights.shape) != 1):
        raise ValueError(
            f"w has shape {weights.shape}, must be 1 x {kx.shape[0]}, one weight for each sample, or shaped as kx"
        )
    if weights.min() < 0 or weights.max() == 0:
        raise ValueError("w has negative weights or nothing else than zeros")
    largest = float(np.hypot(kx, ky).max())
    if largest == 0:
        raise ValueError("kx and ky are zero throughout")
    if np.abs(kz).max() > 1e-3 * largest:
        raise ValueError(f"kz reaches {np.abs(kz).max():g} 1/m: this is no two-dimensional spiral")

    param = content.get("param")
    if param is None or param.dtype.names is None or param.size != 1:
        raise ValueError("has no structure param")
    names = param.dtype.names
    repetitions = _scalar(param, "repetitions", 1) if "repetitions" in names else kx.shape[1]
    if repetitions != kx.shape[1]:
        logger.warning("%s: param.repetitions is %g, but there are %d arms", file.name, repetitions, kx.shape[1])
    dwell = _scalar(param, "dt", 1e-9) if "dt" in names else DWELL_OF_OLD_FILES
    ordering = param["arm_ordering"].item() if "arm_ordering" in names else np.array([""])
    return Trajectory(
        file=file,
        k=np.stack([kx.T, ky.T], axis=-1),
        weights=weights.T if weights.shape == kx.shape and kx.shape[1] > 1 else weights.ravel(),
        dwell=dwell,
        pre_discard=_whole(param, "pre_discard", 0),
        fov=1e-2 * _scalar(param, "fov", 1e-3),
        resolution=1e-3 * _scalar(param, "spatial_resolution", 1e-3),
        interleaves=_whole(param, "interleaves", 1) if "interleaves" in names else kx.shape[1],
        arm_ordering=str(ordering.flat[0]) if ordering.size else "",
    )


def _numbers(content: dict[str, Any], key: str) -> NDArray[np.float64]:
    if key not in content:
        raise ValueError(f"has no {key}")
    values = content[key]
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or values.size == 0:
        raise ValueError(f"{key} must hold finite real numbers")
    return values.astype(np.float64)


def _scalar(param: NDArray[Any], name: str, minimum: float) -> float:
    if name not in (param.dtype.names or ()):
        raise ValueError(f"has no param.{name}")
    value = np.asarray(param[name].item()).squeeze()
    if value.size != 1 or value.dtype.kind not in "iuf" or not minimum <= float(value.item()) < np.inf:
        raise ValueError(f"param.{name} is {value.tolist()}, must be one number of at least {minimum:g}")
    return float(value.item())


def _whole(param: NDArray[Any], name: str, minimum: int) -> int:
    value = _scalar(param, name, minimum)
    if value != round(value):
        raise ValueError(f"param.{name} is {value:g}, must be a whole number")
    return round(value)


def write_metafile(trajectory: Trajectory, file: str | Path | None = None, ga_rotation: float = 0.0) -> Path:
    """Write a metafile as the sequence designer does, so that `read_metafile` gives the same trajectory.

    Parameters
    ----------
    trajectory
        What to write.
    file
        Where to; by default `trajectory.file`.
    ga_rotation
        Angle from arm to arm [degree], for the record.

    Returns
    -------
    The file written.
    """
    from scipy.io import savemat

    file = Path(file if file is not None else trajectory.file)
    kx, ky = np.moveaxis(trajectory.k, -1, 0)
    weights = trajectory.weights.T if trajectory.weights.ndim == 2 else trajectory.weights
    size = trajectory.matrix_size()
    param = {
        "fov": 1e2 * trajectory.fov,
        "spatial_resolution": 1e3 * trajectory.resolution,
        "repetitions": float(trajectory.arms),
        "interleaves": float(trajectory.interleaves),
        "ga_rotation": ga_rotation,
        "matrix_size": np.array([[size, size]], float),
        "pre_discard": float(trajectory.pre_discard),
        "arm_ordering": trajectory.arm_ordering,
        "dt": trajectory.dwell,
    }
    content = {"kx": kx.T, "ky": ky.T, "kz": np.zeros_like(kx.T), "w": np.atleast_2d(weights), "param": param}
    savemat(file, content)
    return file


# --- Counting readouts ----------------------------------------------------------------------------------------------


class Gap(NamedTuple):
    """Readouts that did not arrive: `missing` of them after the readout with scan counter `after`."""

    after: int
    missing: int


class Arm(NamedTuple):
    """Where an imaging readout belongs: its `number` in the scan, from 0, and its `column` in the metafile."""

    number: int
    column: int


def log_gap(gap: Gap) -> None:
    """Report a gap to the log."""
    logger.warning("%d readout(s) missing after scan counter %d", gap.missing, gap.after)


class ArmCounter:
    """Numbers the imaging readouts of a scan and finds the metafile's column of each.

    The n-th imaging readout that the scanner made uses column (n - 1) mod columns. `scan_counter` tells n relative to
    the first imaging readout, so that a lost readout leaves the later ones where they are; readouts that arrive but
    are none of imaging (noise, navigators, ...) are taken off. A lost readout counts as an imaging one.

    The sequence plays its arms one after the other whatever slice they excite, so the count runs over all slices: when
    the slice changes with every readout, a slice sees every n-th column; when slices follow one another, a slice goes
    on where the one before stopped. Counters such as kspace_encode_step_1 are not reliable here and not used.

    A readout that comes late, behind one with a higher counter, goes where it belongs. A counter that stands still or
    starts again (some converters leave it zero) cannot tell of gaps: such readouts are numbered as they arrive.

    Parameters
    ----------
    columns
        Arms of the trajectory.
    on_gap
        Called once for each gap, at the imaging readout after it.
    """

    def __init__(self, columns: int, on_gap: Callable[[Gap], None] = log_gap) -> None:
        self.columns = columns
        self.missing = 0
        """Readouts lost so far."""
        self._on_gap = on_gap
        self._start: tuple[int, int] | None = None  # counter and number of the readout that counting starts from
        self._highest = 0  # scan counter of imaging readouts so far
        self._last_number = -1
        self._others: list[int] = []  # scan counters, in order, of readouts that are none of imaging
        self._gaps: list[tuple[int, int]] = []  # first and last scan counter of what is missing, in order
        self._told = False

    def place(self, acquisition: ismrmrd.Acquisition) -> Arm | None:
        """Number the next readout; None for one that is not of imaging. Call it with every readout of the scan."""
        counter = acquisition.scan_counter
        if not is_imaging(acquisition):
            self._pass_by(counter)
            return None
        if self._start is None:
            self._restart(counter)
        elif counter > self._highest:
            self._advance(counter)
        elif not self._arrives_late(counter):
            if not self._told:
                text = "scan_counter goes from %d to %d: counting readouts as they arrive"
                logger.warning(text, self._highest, counter)
                self._told = True
            self._restart(counter)
        assert self._start is not None  # or _restart has set it
        start, first = self._start
        number = first + counter - start - bisect.bisect_left(self._others, counter)
        self._last_number = max(self._last_number, number)
        return Arm(number, number % self.columns)

    def _pass_by(self, counter: int) -> None:
        """Take a readout that is none of imaging off the count, if its counter goes on with that of the others."""
        latest = max([self._highest, *self._others[-1:]])
        if self._start is not None and 0 < counter - latest <= self.columns:
            self._others.append(counter)

    def _restart(self, counter: int) -> None:
        self._start = (counter, self._last_number + 1)
        self._highest = counter
        self._others, self._gaps = [], []

    def _advance(self, counter: int) -> None:
        between = bisect.bisect_left(self._others, counter) - bisect.bisect_right(self._others, self._highest)
        lost = counter - self._highest - 1 - between
        if lost:
            self.missing += lost
            self._gaps.append((self._highest + 1, counter - 1))
            self._on_gap(Gap(self._highest, lost))
        self._highest = counter

    def _arrives_late(self, counter: int) -> bool:
        """True if a counter fills a gap, which is smaller then."""
        place = bisect.bisect_right(self._gaps, counter, key=lambda gap: gap[0]) - 1
        if place < 0 or not self._gaps[place][0] <= counter <= self._gaps[place][1] or counter in self._others:
            return False
        first, last = self._gaps[place]
        rest = ((first, counter - 1), (counter + 1, last))
        self._gaps[place : place + 1] = [part for part in rest if part[0] <= part[1]]
        self.missing -= 1
        return True
