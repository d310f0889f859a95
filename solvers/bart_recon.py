"""Iterative spiral reconstruction through BART: coil maps by `nlinv`, frames by `pics`.

Arrays have C order here, [frame, ..., arm, sample]; BART gets them through `cfl.on_axes`, without copies. Images
are [..., row, column] in the scanner's orientation: BART is given -k, and so pixel (row, col) shows the object at
x = -(col - N // 2), y = -(row - N // 2) pixels, for even and odd N alike.

References: Uecker et al., Magn Reson Med 2008;60:674, doi 10.1002/mrm.21691 (nlinv: image and coil maps together);
Uecker et al., Magn Reson Med 2014;71:990, doi 10.1002/mrm.24751 (pics: reconstruction with given maps).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import bart_tools
import coils
from mrdio.cfl import COIL_DIM, PHS1_DIM, PHS2_DIM, READ_DIM, TIME2_DIM, TIME_DIM, on_axes
from recon.readouts import Readouts
from solvers import calibration
from solvers.problem import IterativeReconstruction, Part, Reporter

logger = logging.getLogger(__name__)

NEWTON_STEPS = 13
STEPS = "BART computes in steps of up to 10 iterations, and begins another one until more than num_iter are done"
FRAME_AXES = (TIME_DIM, TIME2_DIM)  # BART's, of the axes of frames


@dataclass(frozen=True)
class BartSolver:
    """An installed BART, computing for one client.

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
    overlap: ClassVar[int] = 3
    corrects_fields: ClassVar[bool] = False

    def __str__(self) -> str:
        where = f"GPU {self.gpu_device}" if self.gpu_device >= 0 else "CPU"
        return f"BART {self.bart.version} on the {where}"

    @property
    def memory_device(self) -> int:
        """GPU whose memory limits a part, -1 for this machine's."""
        return self.gpu_device

    def run(
        self, command: str, options: Sequence[str | float | NDArray[Any]], *inputs: NDArray[Any], outputs: int = 1,
        output_bytes: int | None = None,
    ) -> tuple[NDArray[np.complex64], ...]:  # fmt: skip
        """Run a command, on the GPU if there is one to use; as `bart_tools.run` otherwise."""

        def report(progress: bart_tools.Progress) -> None:
            # Coil maps come before a part: their time left says nothing about the part's.
            self.reporter.report(str(progress), progress.remaining if command == "pics" else None)

        self.reporter.begin(f"BART {command}")
        return bart_tools.run(
            self.bart, command, [*(["-g"] if self.gpu_device >= 0 else []), *options], *inputs, outputs=outputs,
            cancelled=self.reporter.check, progress=report, progress_interval=self.reporter.interval,
            gpu_device=self.gpu_device, output_bytes=output_bytes,
        )  # fmt: skip

    def coil_maps(self, readouts: Readouts) -> NDArray[np.complex64]:
        """Coil maps by nlinv, from the centre of k-space of readouts in the middle of the scan.

        Returns
        -------
        Maps [coil, row, column], the sum of |map|^2 over coils is 1.
        """
        coordinates, samples = calibration.central_samples(readouts)
        modern = {"-a", "-b", "-x"} <= self.bart.options("nlinv")
        size = f"{calibration.MATRIX}:{calibration.MATRIX}:1"
        oversampling: list[str | float] = ["-a", 32, "-b", 16, "-x", size] if modern else []
        image, maps = self.run(
            "nlinv",
            [*oversampling, "-S", "-d", 4, "-i", NEWTON_STEPS, "-t",
             on_axes(for_bart(coordinates), PHS2_DIM, PHS1_DIM, READ_DIM)],
            on_axes(samples, PHS2_DIM, COIL_DIM, PHS1_DIM),
            outputs=2,
        )  # fmt: skip
        pixels = calibration.MATRIX if modern else image.shape[READ_DIM]  # of the field of view; maps cover more
        maps = maps.T.reshape(samples.shape[1], *maps.shape[PHS1_DIM::-1])
        upsampled = coils.upsample_maps(maps, (readouts.matrix, readouts.matrix), maps.shape[-1] / pixels)
        return upsampled.astype(np.complex64)

    def pics(
        self, options: Sequence[str | float], samples: NDArray[Any], coordinates: NDArray[Any], maps: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> NDArray[np.complex64]:  # fmt: skip
        """Reconstruct frames together, with the regularisation that the options say.

        Parameters
        ----------
        options
            Of `bart pics`, without trajectory and weights.
        samples
            [*frames, arm, coil, sample]; at most two axes of frames, which are `FRAME_AXES` for BART.
        coordinates
            [*frames, arm, sample, (kx, ky)] in cycles per field of view.
        maps
            [coil, row, column].
        weights
            [*frames, arm], 0 for arms that only fill up; None: all count.

        Returns
        -------
        Images [*frames, row, column].
        """
        frames, matrix = samples.shape[:-3], maps.shape[1:]
        frame_axes = FRAME_AXES[: len(frames)]
        arguments = [*options, "-t", on_axes(for_bart(coordinates), *frame_axes, PHS2_DIM, PHS1_DIM, READ_DIM)]
        if weights is not None:
            of_samples = np.broadcast_to(weights[..., np.newaxis], (*weights.shape, samples.shape[-1]))
            arguments += ["-p", on_axes(of_samples, *frame_axes, PHS2_DIM, PHS1_DIM)]
        (images,) = self.run(
            "pics", arguments, on_axes(samples, *frame_axes, PHS2_DIM, COIL_DIM, PHS1_DIM),
            on_axes(maps, COIL_DIM, PHS1_DIM, READ_DIM), output_bytes=8 * math.prod(frames) * maps[0].size,
        )  # fmt: skip
        return images.T.reshape(*frames[::-1], *matrix).transpose(*range(len(frames))[::-1], -2, -1)

    def weight_over_time(self, reg_lambda: float, frames: int, parts: int) -> float:
        """Weight of the differences in time: BART's norm is joint over the frames of a part, and grows with them."""
        return reg_lambda * frames / parts

    def memory_needed(
        self, frames: Sequence[int], arms: int, coils: int, samples: int, matrix: int, columns: int, terms: int = 0
    ) -> int:
        """Memory that BART takes for a part, its files on the RAM disk included [bytes]; columns, terms do not matter.

        An estimate from BART 0.8 on the CPU, for 24 and 48 frames, 4 and 8 coils, 7 and 20 arms: a constant, 19 images
        and 9 per coil for each frame, twice the samples.
        """
        count = math.prod(frames)
        images, data = 8 * matrix**2 * count, 8 * arms * samples * count
        files = images + data * (coils + 3)  # the trajectory has three complex numbers for each sample
        return 32 * 2**20 + images * (20 + 9 * coils) + 2 * data * coils + files

    def reconstruct(self, parts: Iterable[Part], count: int) -> Generator[NDArray[np.complex64], None, None]:
        """Yield the images [*frames, row, column] of each of `count` parts, in their order.

        BART's differences are cyclic whatever the penalties say. With one axis, a pixel's differences are thresholded
        jointly; with two, each by itself.
        """
        self.reporter.expect(count)
        for part in parts:
            options: list[str | float] = ["-m", "-e"]
            if part.scale is not None:
                options += ["-w", part.scale, "-S"]
            for penalty in part.penalties:
                flag = 1 << FRAME_AXES[penalty.axis]
                options += ["-R", f"T:{flag}:{flag if len(part.penalties) == 1 else 0}:{penalty.weight:.9g}"]
            options += ["-d", 4, "-i", part.iterations]
            yield self.pics(options, part.samples, part.coordinates, part.maps, part.weights)
            self.reporter.next_part()


def find_bart(settings: IterativeReconstruction) -> bart_tools.Bart:
    """Find BART, and see that it can do what the configuration asks for.

    Raises
    ------
    bart_tools.BartNotFoundError
        There is none; says how to get one.
    bart_tools.BartError
        A GPU is asked for, but this BART was built without CUDA.
    """
    bart = bart_tools.find_bart(settings.BART_TOOLBOX_PATH or "")
    if settings.gpu_device >= 0 and not bart.cuda:
        raise bart_tools.BartError(
            f"gpu_device = {settings.gpu_device} needs a BART built with CUDA; {bart.path} ({bart.version}) is not: "
            "set gpu_device = -1 for the CPU, or BART_TOOLBOX_PATH to the folder of your own build"
        )
    return bart


def for_bart(coordinates: NDArray[Any]) -> NDArray[np.complex64]:
    """Trajectory [..., (x, y, z)] as BART takes it, from k [..., (kx, ky)] in cycles per field of view."""
    trajectory = np.zeros((*coordinates.shape[:-1], 3), np.complex64)
    np.negative(coordinates, out=trajectory[..., :2], casting="same_kind")
    return trajectory
