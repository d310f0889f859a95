"""The scan of two echoes that a field map is made of: of the same object, slices and fields as a simulated spiral scan.

Cartesian: both echoes after each excitation, of fewer and larger pixels than the spiral's images, and of a larger field
of view. Spiral: the same arms, first all with the one echo time, then all with the other. Nothing moves.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import ismrmrd
import ismrmrd.xsd
import numpy as np

from simulation.spiralsimulation import FIRST_TIME_STAMP, SLICE_THICKNESS, Simulation, readout_axes, simulate

KINDS = ("cartesian", "spiral")
DEPENDENCY = "FieldMap"  # the kind that a header names
ECHO_TIMES = (2e-3, 4e-3)  # [s]
MATRIX = 64
FOV_FACTOR = 1.25
OVERSAMPLING = 2
DWELL = 5e-6  # [s]
TR = 10e-3  # [s]


class TwoEchoes(Protocol):
    """A simulated scan of two echoes."""

    @property
    def header(self) -> ismrmrd.xsd.ismrmrdHeader:
        """MRD header."""

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """Yield the readouts in the order of time."""


def scan_of(
    simulation: Simulation, kind: str, echo_times: tuple[float, float] = ECHO_TIMES, matrix: int = MATRIX
) -> TwoEchoes:
    """Scan of two echoes of what a simulation looks at.

    Parameters
    ----------
    simulation
        The spiral scan.
    kind
        One of `KINDS`.
    echo_times
        [s].
    matrix
        Pixels along each side of a Cartesian scan.

    Raises
    ------
    ValueError
        The echo times are not two that rise, or it is a stack.
    """
    scan, trajectory = simulation.scan, simulation.trajectory
    if not 0 < echo_times[0] < echo_times[1] < math.inf:
        raise ValueError(f"echo times are {echo_times}: expected two positive numbers, the second one larger")
    if scan.partitions > 1:
        raise ValueError("scans of two echoes are simulated for slices, not for stacks: partitions must be 1")
    still = simulate(
        trajectory,
        dataclasses.replace(
            scan,
            readouts=2 * trajectory.arms * scan.slices,
            echo_times=echo_times,
            tr=max(TR, echo_times[1] + 1.5 * trajectory.readout_length * trajectory.dwell),
            still=True,
            waveforms=False,
            noise_scan=False,
            dummies=0,
            lost=0,
        ),
    )
    information = still.header.measurementInformation
    information.measurementID = f"{simulation.header.measurementInformation.measurementID}_fieldmap"
    information.protocolName = f"two echoes, {kind}"
    return still if kind == "spiral" else CartesianTwoEchoes(still, matrix)


def depend(header: ismrmrd.xsd.ismrmrdHeader, on: ismrmrd.xsd.ismrmrdHeader) -> None:
    """Name a scan of two echoes in the header of another one."""
    header.measurementInformation.measurementDependency.append(
        ismrmrd.xsd.measurementDependencyType(
            dependencyType=DEPENDENCY, measurementID=on.measurementInformation.measurementID
        )
    )


@dataclass(frozen=True, eq=False)
class CartesianTwoEchoes:
    """A Cartesian scan of two echoes, without concomitant fields, whose effect is the same in both.

    Attributes
    ----------
    spiral
        A spiral scan of the same, with these echo times.
    matrix
        Pixels along each side.
    """

    spiral: Simulation
    matrix: int

    @property
    def fov(self) -> float:
        """Field of view [m]."""
        return FOV_FACTOR * self.spiral.trajectory.image_fov()

    @property
    def header(self) -> ismrmrd.xsd.ismrmrdHeader:
        """MRD header."""
        xsd, n, extent = ismrmrd.xsd, self.matrix, 1e3 * self.fov
        made = copy.deepcopy(self.spiral.header)
        encoding = made.encoding[0]
        encoding.trajectory = xsd.trajectoryType.CARTESIAN
        encoding.encodedSpace, encoding.reconSpace = (
            xsd.encodingSpaceType(
                matrixSize=xsd.matrixSizeType(x=factor * n, y=n, z=1),
                fieldOfView_mm=xsd.fieldOfViewMm(x=factor * extent, y=extent, z=1e3 * SLICE_THICKNESS),
            )
            for factor in (OVERSAMPLING, 1)
        )
        encoding.encodingLimits.kspace_encoding_step_1 = xsd.limitType(minimum=0, maximum=n - 1, center=n // 2)
        return made

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """Yield the readouts, line by line, of all slices."""
        spiral, n, samples = self.spiral, self.matrix, OVERSAMPLING * self.matrix
        scan, random = spiral.scan, np.random.default_rng([spiral.scan.seed, 4])
        along = (np.arange(samples) - samples // 2) / (OVERSAMPLING * self.fov)
        down = (np.arange(n) - n // 2) / self.fov
        k = np.stack(np.meshgrid(along, down), axis=-1)  # [line, sample, (kx, ky)]
        since_echo = np.broadcast_to(DWELL * (np.arange(samples) - samples // 2), (n, samples))
        pixel, points = self.fov / n, n * samples
        lines = {
            (number, contrast): spiral.signal(
                np.full(n, np.flatnonzero(spiral.truth.slice == number)[0]), k, since_echo + echo_time, False
            )
            / np.float32(pixel**2)
            for number in range(scan.slices)
            for contrast, echo_time in enumerate(scan.echo_times)
        }
        deviation = np.float32(scan.noise * math.sqrt(points))
        counter = 0
        for line in range(n):
            for number in range(scan.slices):
                for contrast in range(len(scan.echo_times)):
                    noise = random.standard_normal((scan.coils, samples, 2), np.float32).view(np.complex64)[..., 0]
                    counter += 1
                    readout = ismrmrd.Acquisition.from_array(lines[number, contrast][line] + deviation * noise)
                    readout.scan_counter = counter
                    readout.acquisition_time_stamp = FIRST_TIME_STAMP + (counter - 1) // 2 * round(TR / 2.5e-3)
                    readout.center_sample = samples // 2
                    readout.sample_time_us = 1e6 * DWELL
                    axes = readout_axes(scan.rotation).tolist()
                    readout.read_dir, readout.phase_dir, readout.slice_dir = map(tuple, axes)
                    readout.position = tuple(spiral.position(number))
                    readout.idx.kspace_encode_step_1, readout.idx.slice = line, number
                    readout.idx.contrast = contrast
                    yield readout
