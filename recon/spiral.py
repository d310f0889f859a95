"""Shared by the spiral reconstructions: configuration and trajectory of a scan, its readouts, its images."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ismrmrd
from numpy.typing import NDArray

import mrdhelper
from recon import gradientresponse, trajectory
from recon.configuration import SpiralConfig, project_path
from recon.latency import LatencyLedger
from recon.outliers import OutlierFilter
from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

ORIENTATIONS = 16  # whose trajectories are kept at once
FOV_TOLERANCE = 0.01  # relative difference of the header's field of view that is reported


class SpiralScan:
    """Trajectory, readouts and images of one spiral scan.

    Parameters
    ----------
    config
        The module's configuration.
    header
        The MRD header.
    warn
        Called with a text for the client.
    keep_waveforms
        Whether waveforms are kept; else they are dropped, so that memory does not grow with the scan.

    Raises
    ------
    TrajectoryError, GirfError
        The metafile or the gradient response cannot be used: found out before any readout has come.
    """

    def __init__(
        self,
        config: SpiralConfig,
        header: Any,
        warn: Callable[[str], None] = logger.warning,
        keep_waveforms: bool = False,
    ) -> None:
        self._config = config.reconstruction
        self._keep_waveforms = keep_waveforms
        self._header = header
        self.warn = warn
        self.nominal = load_nominal(config, header)
        self.response = None
        if self._config.apply_girf:
            self.response = gradientresponse.load_girf(gradientresponse.find_girf(self._config.girf_file))
        self.trajectory: trajectory.Trajectory | None = None  # on the raster of the readouts, once one has come
        self.waveforms: list[ismrmrd.Waveform] = []
        self.ledger = LatencyLedger(warn)
        self.matrix = self.nominal.matrix_size(self._config.fov_oversampling)
        self._counter = trajectory.ArmCounter(self.nominal.arms, self._report_gap)
        self._gaps = 0
        self._trajectories: dict[tuple[float, ...], trajectory.Trajectory] = {}

    def _report_gap(self, gap: trajectory.Gap) -> None:
        trajectory.log_gap(gap)
        self._gaps += 1
        if self._gaps == 1:
            self.warn(f"{gap.missing} readouts are missing after scan counter {gap.after}; the log lists any further")

    def readouts(self, items: Iterable[Any]) -> Iterator[SpiralReadout]:
        """Yield the imaging readouts of a session; waveforms are kept in `waveforms`.

        Those that are no measurement are not `usable`.

        Raises
        ------
        TrajectoryError
            A readout does not have the length that the metafile describes.
        TypeError
            An image came.
        UnusableScanError
            No readout is usable.
        ValueError
            As `mrdhelper.check_geometry`: readouts are told apart by their orientation.
        """
        return OutlierFilter(self.warn).marked(self._received(items))

    def _received(self, items: Iterable[Any]) -> Iterator[SpiralReadout]:
        for item in items:
            if isinstance(item, ismrmrd.Waveform):
                if self._keep_waveforms:
                    self.waveforms.append(item)
                continue
            if isinstance(item, ismrmrd.Image):
                raise TypeError("an image came, but a spiral reconstruction needs raw data (readouts)")
            if not isinstance(item, ismrmrd.Acquisition):
                continue
            arm = self._counter.place(item)
            if arm is None:
                continue
            mrdhelper.check_geometry(item)
            if self.trajectory is None:
                self.trajectory = self.nominal.fitted_to(item)
            yield SpiralReadout(
                samples=self.trajectory.samples(item),
                column=arm.column,
                number=arm.number,
                head=item.getHead(),
                arrival=self.ledger.arrived(),
            )
        if self._counter.missing:
            self.warn(f"{self._counter.missing} readouts were missing in all")

    def trajectory_of(self, readout: SpiralReadout) -> trajectory.Trajectory:
        """Trajectory on the raster of the readouts, corrected for the readout's orientation where that is asked for."""
        if readout.orientation not in self._trajectories:
            if len(self._trajectories) >= ORIENTATIONS:
                self._trajectories.clear()
            corrected = self.nominal
            if self.response is not None:
                corrected = gradientresponse.correct_trajectory(self.nominal, self.response, readout.head, self._header)
            self._trajectories[readout.orientation] = corrected.fitted_to(readout.head)
        return self._trajectories[readout.orientation]

    @functools.cached_property
    def field_of_view(self) -> tuple[float, float, float]:
        """Field of view of the images (x, y, z) [mm]: the header's, times the oversampling.

        The pixel size comes from the metafile, so a header that contradicts it is reported, and not followed.
        """
        designed = 1e3 * self.nominal.fov
        x, y, z = mrdhelper.recon_field_of_view(self._header) or (designed, designed, 0.0)
        if max(abs(x - designed), abs(y - designed)) > FOV_TOLERANCE * designed:
            if x or y:
                self.warn(f"the header's field of view is {x:g} x {y:g} mm, the metafile's {designed:g} mm counts")
            x = y = designed
        factor = self.matrix / self.nominal.matrix_size()  # of whole pixels, as the images have them
        return (factor * x, factor * y, z)

    def image(
        self,
        pixels: NDArray[Any],
        head: ismrmrd.AcquisitionHeader,
        index: int,
        meta: dict[str, Any] | None = None,
        series: int = 0,
    ) -> ismrmrd.Image:
        """Output image of pixels [row, column], with the geometry and time of the readout that stands for it."""
        return mrdhelper.build_image(
            pixels, head, self._header, index=index, series=series, field_of_view=self.field_of_view, meta=meta
        )


def load_nominal(config: SpiralConfig, header: Any) -> trajectory.Trajectory:
    """Trajectory of a scan as it was designed; kept for the next scan as long as the metafile stays as it is."""
    folders = [project_path(folder) for folder in config.metafile_paths]  # also of a configuration made by hand
    file = trajectory.find_metafile(trajectory.signature_of(header), folders)
    status = file.stat()
    return _read_metafile(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_metafile(file: Path, modified: int, size: int) -> trajectory.Trajectory:
    nominal = trajectory.read_metafile(file)
    # It is shared by sessions, so it must not be changed.
    for array in (nominal.k, nominal.weights):
        array.flags.writeable = False
    return nominal
