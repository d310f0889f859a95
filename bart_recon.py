"""What the iterative spiral reconstructions share: readouts kept for BART, coil maps, data scale, optimisation.

Arrays have C order here, [frame, ..., arm, sample]; BART sees them through `bart_tools.on_axes`, without copies. Images
are [..., row, column] in the scanner's orientation: BART is given -k, and so pixel (row, col) shows the object at
x = -(col - N // 2), y = -(row - N // 2) pixels, for even and odd N alike.

References: Uecker et al., Magn Reson Med 2008;60:674, doi 10.1002/mrm.21691 (nlinv: image and coil maps together);
Uecker et al., Magn Reson Med 2014;71:990, doi 10.1002/mrm.24751 (pics: reconstruction with given maps).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import bart_tools
import coils
import constants
import nufft
from bart_tools import COIL_DIM, PHS1_DIM, PHS2_DIM, READ_DIM, on_axes
from configuration import BartReconstruction
from spiral import SpiralReadout, SpiralScan

logger = logging.getLogger(__name__)

CALIBRATION_ARMS = 144  # enough to fill k-space several times; nlinv takes a second for them
CALIBRATION_MATRIX = 32  # pixels along each side of the image that nlinv makes besides the maps
NEWTON_STEPS = 13
REPORT_INTERVAL = 2.0  # [s]; a session that is broken off has 3 s to end, and notices it with the next report
FIRST_ROWS = 64


class DataError(ValueError):
    """The readouts cannot be reconstructed; the text says why and what would be right."""


# --- Readouts -------------------------------------------------------------------------------------------------------


class Readouts:
    """Readouts of one slice, kept once.

    Attributes
    ----------
    samples
        complex64 [readout, coil, sample].
    columns, numbers
        Arm of the trajectory, and number in the scan, of each readout [readouts].
    heads
        Their headers.
    coordinates
        K-space of the trajectory's arms [column, sample, (kx, ky)] in cycles per image field of view, float32.
    matrix
        Pixels along each side of the images.
    """

    def __init__(self, scan: SpiralScan, first: SpiralReadout, fov_oversampling: float) -> None:
        self._first = first
        self._rows = np.empty((FIRST_ROWS, *first.samples.shape), np.complex64)
        self.columns: list[int] = []
        self.numbers: list[int] = []
        self.heads: list[ismrmrd.AcquisitionHeader] = []
        self.coordinates = scan.trajectory_of(first).cycles_per_fov(fov_oversampling).astype(np.float32)
        self.matrix = scan.matrix

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def samples(self) -> NDArray[np.complex64]:
        """All samples (a view: changing them changes the readouts)."""
        return self._rows[: len(self)]

    def append(self, readout: SpiralReadout) -> None:
        """Keep a readout.

        Raises
        ------
        DataError
            It has other coils, or lies in another slice, than the first, or holds NaN or infinity.
        """
        first = self._first
        if readout.samples.shape != first.samples.shape:
            raise DataError(
                f"readout {readout.head.scan_counter} has {readout.samples.shape[0]} coils, "
                f"the first has {first.samples.shape[0]}: they must be the same throughout"
            )
        if (readout.head.idx.slice, readout.orientation) != (first.head.idx.slice, first.orientation):
            raise DataError(
                f"readout {readout.head.scan_counter} is of another slice than the first: this reconstruction takes "
                "scans of one slice"
            )
        if not np.isfinite(readout.samples).all():  # one would make all images of its part black
            raise DataError(f"readout {readout.head.scan_counter} holds samples that are no numbers")
        if len(self) == len(self._rows):  # in place where the system can remap memory: no second copy
            self._rows.resize((len(self) + max(FIRST_ROWS, len(self) // 8), *first.samples.shape), refcheck=False)
        self._rows[len(self)] = readout.samples
        self.columns.append(readout.column)
        self.numbers.append(readout.number)
        self.heads.append(readout.head)


def receive(
    scan: SpiralScan, items: Iterable[Any], fov_oversampling: float, most: int | None = None
) -> Readouts:
    """Take a whole scan in, and keep its first `most` imaging readouts.

    Raises
    ------
    DataError
        There is none, or they do not belong together.
    """
    kept: Readouts | None = None
    for readout in scan.readouts(items):
        if kept is None:
            kept = Readouts(scan, readout, fov_oversampling)
        if most is None or len(kept) < most:
            kept.append(readout)
    if kept is None:
        raise DataError("no imaging readout was received")
    if not any(samples.any() for samples in kept.samples):
        raise DataError(f"all samples of the {len(kept)} imaging readouts are zero")
    return kept


def repetition_time(metadata: Any) -> float | None:
    """TR of the MRD header [s]; None when it does not say."""
    times = getattr(getattr(metadata, "sequenceParameters", None), "TR", None) or [0.0]
    return 1e-3 * float(times[0]) if 0 < times[0] < math.inf else None


# --- BART for one client --------------------------------------------------------------------------------------------


class Reporter:
    """Tells the client how far BART is; through this, BART also ends when there is nobody to be told.

    `report` passes on what BART says, `check` speaks up while BART is silent. Once the session is over, because the
    client is gone or the server is being stopped, sending raises, and BART is killed on the way out of
    `bart_tools.run`.

    Parameters
    ----------
    send
        Sends a text to the client, raises when the session is over.
    clock
        Time [s].
    """

    def __init__(self, send: Callable[[str], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._command = ""
        self._begin = self._last = clock()

    def begin(self, command: str) -> None:
        """A command begins."""
        self._command = command
        self._begin = self._last = self._clock()

    def report(self, progress: Any) -> None:
        """Send a progress report."""
        self._last = self._clock()
        self._send(f"{constants.MRD_LOGGING_INFO} {progress}")

    def check(self) -> bool:
        """Send a sign of life if nothing has been sent for `REPORT_INTERVAL`; False: nobody cancels BART."""
        if self._clock() - self._last >= REPORT_INTERVAL:
            self.report(f"BART {self._command}: {self._clock() - self._begin:.0f} s elapsed")
        return False


@dataclass(frozen=True)
class Solver:
    """An installed BART at work for one client.

    Attributes
    ----------
    bart
        Which one.
    gpu_device
        GPU to use, -1 for the CPU.
    reporter
        Tells the client.
    """

    bart: bart_tools.Bart
    gpu_device: int
    reporter: Reporter

    def run(
        self, command: str, options: Sequence[str | float | NDArray[Any]], *inputs: NDArray[Any], outputs: int = 1,
        output_bytes: int | None = None,
    ) -> tuple[NDArray[np.complex64], ...]:  # fmt: skip
        """Run a command, on the GPU if there is one to use; as `bart_tools.run` otherwise."""
        self.reporter.begin(command)
        return bart_tools.run(
            self.bart, command, [*(["-g"] if self.gpu_device >= 0 else []), *options], *inputs, outputs=outputs,
            cancelled=self.reporter.check, progress=self.reporter.report, progress_interval=REPORT_INTERVAL,
            gpu_device=self.gpu_device, output_bytes=output_bytes,
        )  # fmt: skip

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Coil maps by nlinv, from the centre of k-space of readouts in the middle of the scan.

        Returns
        -------
        Maps [coil, row, column], the sum of |map|^2 over coils is 1.
        """
        count = min(CALIBRATION_ARMS, len(readouts))
        chosen = slice((len(readouts) - count) // 2, (len(readouts) - count) // 2 + count)
        arms = readouts.coordinates[readouts.columns[chosen]]
        central = np.linalg.norm(arms, axis=-1).max(axis=0) < CALIBRATION_MATRIX / 2
        if not np.any(central):
            raise DataError(f"no sample lies within {CALIBRATION_MATRIX / 2:g} cycles per field of view")
        samples = readouts.samples[chosen][..., central]
        modern = {"-a", "-b", "-x"} <= self.bart.options("nlinv")
        size = f"{CALIBRATION_MATRIX}:{CALIBRATION_MATRIX}:1"
        image, maps = self.run(
            "nlinv",
            [*(["-a", 32, "-b", 16, "-x", size] if modern else []), "-S", "-d", 4, "-i", NEWTON_STEPS, "-t",
             on_axes(for_bart(arms[:, central]), PHS2_DIM, PHS1_DIM, READ_DIM)],
            on_axes(samples, PHS2_DIM, COIL_DIM, PHS1_DIM),
            outputs=2,
        )  # fmt: skip
        pixels = CALIBRATION_MATRIX if modern else image.shape[READ_DIM]  # of the field of view; maps cover more
        maps = maps.T.reshape(samples.shape[1], *maps.shape[PHS1_DIM::-1])
        upsampled = coils.upsample_maps(maps, (readouts.matrix, readouts.matrix), maps.shape[-1] / pixels)
        return upsampled.astype(np.complex64)

    def pics(
        self, options: Sequence[str | float], samples: NDArray[Any], coordinates: NDArray[Any], maps: NDArray[Any],
        frame_axes: tuple[int, ...], weights: NDArray[Any] | None = None,
    ) -> NDArray[np.complex64]:  # fmt: skip
        """Reconstruct frames together, with the regularisation that the options say.

        Parameters
        ----------
        options
            Of `bart pics`, without trajectory and weights.
        samples
            [*frames, arm, coil, sample].
        coordinates
            [*frames, arm, sample, (kx, ky)] in cycles per field of view.
        maps
            [coil, row, column].
        frame_axes
            BART's axis of each axis of `frames`, ascending.
        weights
            [*frames, arm], 0 for arms that only fill up; None: all count.

        Returns
        -------
        Images [*frames, row, column].
        """
        frames, matrix = samples.shape[:-3], maps.shape[1:]
        arguments = [*options, "-t", on_axes(for_bart(coordinates), *frame_axes, PHS2_DIM, PHS1_DIM, READ_DIM)]
        if weights is not None:
            of_samples = np.broadcast_to(weights[..., np.newaxis], (*weights.shape, samples.shape[-1]))
            arguments += ["-p", on_axes(of_samples, *frame_axes, PHS2_DIM, PHS1_DIM)]
        (images,) = self.run(
            "pics", arguments, on_axes(samples, *frame_axes, PHS2_DIM, COIL_DIM, PHS1_DIM),
            on_axes(maps, COIL_DIM, PHS1_DIM, READ_DIM), output_bytes=8 * int(np.prod(frames)) * maps[0].size,
        )  # fmt: skip
        return images.T.reshape(*frames[::-1], *matrix).transpose(*range(len(frames))[::-1], -2, -1)


def open_solver(settings: BartReconstruction, send: Callable[[str], Any]) -> Solver:
    """Find BART and see that it can do what the configuration asks for.

    Parameters
    ----------
    settings
        Table [reconstruction] of the configuration.
    send
        Sends a text to the client.

    Raises
    ------
    bart_tools.BartNotFoundError
        There is no BART; says how to get one.
    bart_tools.BartError
        A GPU is asked for, but this BART was built without CUDA.
    """
    bart = bart_tools.find_bart(settings.BART_TOOLBOX_PATH or "")
    if settings.gpu_device >= 0 and not bart.cuda:
        raise bart_tools.BartError(
            f"gpu_device = {settings.gpu_device} needs a BART built with CUDA; {bart.path} ({bart.version}) is not: "
            "set gpu_device = -1 for the CPU, or BART_TOOLBOX_PATH to the folder of your own build"
        )
    return Solver(bart, settings.gpu_device, Reporter(send))


def for_bart(coordinates: NDArray[Any]) -> NDArray[np.complex64]:
    """Trajectory [..., (x, y, z)] as BART takes it, from k [..., (kx, ky)] in cycles per field of view."""
    trajectory = np.zeros((*coordinates.shape[:-1], 3), np.complex64)
    np.negative(coordinates, out=trajectory[..., :2], casting="same_kind")
    return trajectory


# --- Data scale -----------------------------------------------------------------------------------------------------


def data_scale(readouts: Readouts, maps: NDArray[Any], arms_per_frame: int, frames: range) -> float:
    """Scale of the data, as BART estimates it: what `pics -w` divides by.

    From the coil-combined adjoint images of some frames: the 90th percentile of their magnitude, or, where the maximum
    is farther above it than twice its distance from the median, the maximum.

    Parameters
    ----------
    readouts
        Where frame n consists of those from n * arms_per_frame on.
    maps
        [coil, row, column].
    arms_per_frame
        Readouts of a frame.
    frames
        Which frames to look at.

    Raises
    ------
    DataError
        The data are zero, or not finite.
    """
    magnitudes = np.empty((len(frames), *maps.shape[1:]), np.float32)
    for frame, magnitude in zip(frames, magnitudes, strict=True):
        part = slice(frame * arms_per_frame, (frame + 1) * arms_per_frame)
        coordinates, samples = readouts.coordinates[readouts.columns[part]], readouts.samples[part]
        images = nufft.adjoint(coordinates, samples.transpose(1, 0, 2), maps.shape[1:])
        magnitude[:] = np.abs(coils.combine(images, maps))
    magnitudes /= np.sqrt(maps[0].size)  # BART's transform is a unitary one
    median, high = np.percentile(magnitudes, [50, 90])
    largest = float(magnitudes.max())
    scale = float(high) if largest - high < 2 * (high - median) else largest
    if not (np.isfinite(scale) and scale > 0):
        raise DataError(f"the images of the data reach {largest:g}: zeros or not finite, nothing to reconstruct")
    logger.info("Data scale %g (maximum %g, 90th percentile %g, median %g)", scale, largest, high, median)
    return scale
