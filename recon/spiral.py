"""Shared by the spiral reconstructions: configuration and trajectory of a scan, its readouts, its images."""

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import gradientresponse, nufft, readouttrajectory, trajectory, trajectorysources
from recon.configuration import SpiralConfig, project_path
from recon.fieldcorrection import Correction, FieldCorrection
from recon.latency import LatencyLedger, ScanClock
from recon.outliers import OutlierFilter
from recon.ownarms import OwnArms
from recon.sequencereadouts import PlayedReadout, SequenceReadouts
from recon.spiralreadout import SpiralReadout

logger = logging.getLogger(__name__)

ORIENTATIONS = 16  # whose trajectories are kept at once
FOV_TOLERANCE = 0.01  # relative difference of the header's field of view that is reported


UNKNOWN_READOUTS = 1 << 20  # of one run of a sequence, where only the readouts tell the trajectory


class Imaging(NamedTuple):
    """An imaging readout.

    With its arrival on the clock of the scan's ledger [s], and when it was acquired, from the first one on [s].
    """

    played: PlayedReadout
    arrival: float
    moment: float


class SpiralScan:
    """Trajectory, readouts and images of one spiral scan.

    Its trajectory comes from the first of `trajectorysources` that has it, else from the readouts themselves: then the
    first readouts are held back until they tell the unit of their trajectories and the density of the samples.

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
    tell
        Called with a text for the client that is no warning: where the trajectory comes from.
    hold
        Imaging readouts held back where they bring their own trajectory. None: all of the scan, for reconstructions
        that need to know all arms.
    fields
        Corrects field errors; None: nothing does.

    Attributes
    ----------
    nominal
        Trajectory as it was designed; None until readouts that bring their own have come.

    Raises
    ------
    GirfError
        The gradient response cannot be used: found out before any readout has come.
    """

    def __init__(
        self,
        config: SpiralConfig,
        header: Any,
        warn: Callable[[str], None] = logger.warning,
        keep_waveforms: bool = False,
        tell: Callable[[str], None] = logger.info,
        hold: int | None = None,
        fields: FieldCorrection | None = None,
    ) -> None:
        self.fields = fields
        self._config = config.reconstruction
        self._keep_waveforms = keep_waveforms
        self._header = header
        self.warn = warn
        self.tell = tell
        self._hold = hold
        self.nominal: trajectory.Trajectory | None = None
        self._not_found = ""  # why there is no trajectory by the signature
        self._own: OwnArms | None = None
        try:
            self.nominal, told = load_nominal(config, header)
            tell(told)
        except trajectory.TrajectoryError as error:
            self._not_found = str(error)
        self.response = None
        if self._config.apply_girf:
            self.response = gradientresponse.load_girf(gradientresponse.find_girf(self._config.girf_file))
        self.trajectory: trajectory.Trajectory | None = None  # on the raster of the readouts, once one has come
        self.waveforms: list[ismrmrd.Waveform] = []
        self.ledger = LatencyLedger(warn)
        readouts = self.nominal.readouts if self.nominal is not None else UNKNOWN_READOUTS
        self._counter = trajectory.ArmCounter(readouts, self._report_gap)
        self._gaps = 0
        self._partition: int | None = None
        self._clock = ScanClock(mrdhelper.repetition_time(header))
        self._trajectories: dict[tuple[float, ...], trajectory.Trajectory] = {}

    @property
    def designed(self) -> trajectory.Trajectory:
        """Trajectory as it was designed.

        Raises
        ------
        TrajectoryError
            No source has it, and no readout that brings its own has come; lists what was looked for where.
        """
        if self.nominal is None:
            raise trajectory.TrajectoryError(f"{self._not_found}; the readouts carry no trajectory themselves")
        return self.nominal

    @property
    def matrix(self) -> int:
        """Pixels along each side of the images."""
        return self.designed.matrix_size(self._config.fov_oversampling)

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
            No source has the trajectory; or a readout does not have the length that it describes.
        TypeError
            An image came.
        UnusableScanError
            No readout is usable.
        ValueError
            As `mrdhelper.check_geometry`: readouts are told apart by their orientation. Or they are those of a stack.
        """
        return OutlierFilter(self.warn).marked(self._received(items))

    def _received(self, items: Iterable[Any]) -> Iterator[SpiralReadout]:
        imaging = self._imaging(items)
        yield from self._of_own_trajectories(imaging) if self.nominal is None else self._of_sequence(imaging)
        if self._counter.missing:
            self.warn(f"{self._counter.missing} readouts were missing in all")

    def _imaging(self, items: Iterable[Any]) -> Iterator[Imaging]:
        sequence = SequenceReadouts(self.nominal, self.warn, self.tell) if self.nominal is not None else None
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
            self._check_partition(item)
            played = PlayedReadout(item, arm.number, 0) if sequence is None else sequence.take(item, arm.number)
            if played is None:
                continue
            stamp = mrdhelper.ticks_to_seconds(item.acquisition_time_stamp)
            moment = self._clock(stamp, played.number)
            yield Imaging(played, self.ledger.arrived(moment), moment)
        self.ledger.complete()

    def _check_partition(self, acquisition: ismrmrd.Acquisition) -> None:
        partition = acquisition.idx.kspace_encode_step_2
        if self._partition is None:
            self._partition = partition
        elif partition != self._partition:
            raise ValueError(
                f"readout {acquisition.scan_counter} is of partition {partition} (kspace_encode_step_2), those before "
                f"it of {self._partition}: this module makes 2-D images, in which they would mix; simplenufft takes "
                "stacks"
            )

    def _of_sequence(self, imaging: Iterable[Imaging]) -> Iterator[SpiralReadout]:
        """Yield readouts whose arms the sequence tells by their numbers."""
        for (item, number, arm), arrival, moment in imaging:
            if self.trajectory is None:
                self.trajectory = self.designed.fitted_to(item)
            samples = self.trajectory.samples(item)
            yield SpiralReadout(samples, arm, number, item.getHead(), arrival, moment=moment)

    def _of_own_trajectories(self, imaging: Iterator[Imaging]) -> Iterator[SpiralReadout]:
        """Yield readouts that carry their trajectories."""
        held = deque(itertools.islice(self._carriers(imaging), self._hold))
        if not held:
            return
        own = self._own = OwnArms([each.played.acquisition for each in held], self._header, self._tell_own)
        self.nominal = self.trajectory = own.trajectory
        while held:  # each is free when it is taken
            yield self._own_readout(own, held.popleft())
        for each in self._carriers(imaging):
            yield self._own_readout(own, each)

    def _carriers(self, imaging: Iterable[Imaging]) -> Iterator[Imaging]:
        for each in imaging:
            if self._own is None and not readouttrajectory.carries_trajectory(each.played.acquisition):
                raise trajectory.TrajectoryError(
                    f"{self._not_found}; readout {each.played.acquisition.scan_counter} carries no trajectory itself"
                )
            yield each

    def _tell_own(self, text: str) -> None:
        self.tell(f"{text}; there is no other source: {self._not_found}")

    def _own_readout(self, own: OwnArms, imaging: Imaging) -> SpiralReadout:
        (item, number, _), arrival, moment = imaging
        column, k = own.place(item)
        samples = item.data[:, readouttrajectory.kept_samples(item)]
        return SpiralReadout(samples, column, number, item.getHead(), arrival, k=k, moment=moment)

    def trajectory_of(self, readout: SpiralReadout) -> trajectory.Trajectory:
        """Trajectory on the raster of the readouts, corrected for the readout's orientation where that is asked for."""
        if self.response is None and self.trajectory is not None:
            return self.trajectory
        if readout.orientation not in self._trajectories:
            if len(self._trajectories) >= ORIENTATIONS:
                self._trajectories.clear()
            corrected = self._corrected(self.designed, readout)
            # Trajectories of the readouts themselves are on their raster.
            fitted = corrected.fitted_to(readout.head) if self._own is None else corrected
            self._trajectories[readout.orientation] = fitted
        return self._trajectories[readout.orientation]

    def trajectory_of_new_arm(self, readout: SpiralReadout) -> trajectory.Trajectory:
        """As `trajectory_of`, of one arm: that of a readout that brought one which `nominal` has not."""
        assert self._own is not None
        assert readout.k is not None
        return self._corrected(self._own.one(readout.k), readout)

    def place_of(self, readout: SpiralReadout) -> tuple[float, ...]:
        """What tells readouts apart that cannot be in one image: orientation, and position where terms depend on it."""
        return readout.orientation + (() if self.fields is None else self.fields.place(readout.head))

    def correction(self, readout: SpiralReadout) -> Correction | None:
        """Terms of the field correction in the plane of a readout, for all arms; None: there is nothing to correct."""
        if self.fields is None:
            return None
        fitted, size = self.trajectory_of(readout), self.matrix
        extent = 1e3 * self.designed.image_fov(self._config.fov_oversampling)
        found = self.fields.terms(fitted.k, fitted.dwell, [readout.head], (size, size), (extent, extent))
        return None if found is None else found.plane()

    @property
    def learns_field(self) -> bool:
        """True where the scan's own data tell the off-resonance, see `learn_field`."""
        return self.fields is not None and self.fields.learns

    def learn_field(self, readout: SpiralReadout, columns: NDArray[np.intp], samples: NDArray[np.complex64]) -> bool:
        """Learn the off-resonance in the plane of a readout.

        Parameters
        ----------
        readout
            One of them.
        columns
            Arms, each of which is there once [arm].
        samples
            complex64 [coil, arm, sample].

        Returns
        -------
        True when `correction` has changed.
        """
        assert self.fields is not None
        fitted, size = self.trajectory_of(readout), self.matrix
        extent = 1e3 * self.designed.image_fov(self._config.fov_oversampling)
        coordinates = fitted.cycles_per_fov(self._config.fov_oversampling)[columns]
        weights = fitted.weights[columns] if fitted.weights.ndim > 1 else fitted.weights
        plan = nufft.ArmPlan(coordinates, (size, size), weights)
        return self.fields.learn(readout.head, plan, samples, fitted.k[columns], fitted.dwell, (extent, extent))

    def temporal_of_new_arm(self, readout: SpiralReadout, correction: Correction) -> NDArray[np.complex64]:
        """As `Correction.temporal`, of one arm that a readout brought and that `nominal` has not."""
        assert self.fields is not None
        arm = self.trajectory_of_new_arm(readout)
        return correction.terms.temporal(self.fields.times(arm.k, arm.dwell))

    def _corrected(self, nominal: trajectory.Trajectory, readout: SpiralReadout) -> trajectory.Trajectory:
        if self.response is None:
            return nominal
        return gradientresponse.correct_trajectory(nominal, self.response, readout.head, self._header)

    @functools.cached_property
    def field_of_view(self) -> tuple[float, float, float]:
        """Field of view of the images (x, y, z) [mm]: the header's, times the oversampling.

        The pixel size comes from the trajectory, so a header that contradicts it is reported, and not followed.
        """
        designed = 1e3 * self.designed.fov
        x, y, z = mrdhelper.recon_field_of_view(self._header) or (designed, designed, 0.0)
        if max(abs(x - designed), abs(y - designed)) > FOV_TOLERANCE * designed:
            if x or y:
                self.warn(f"the header's field of view is {x:g} x {y:g} mm, the trajectory's {designed:g} mm counts")
            x = y = designed
        factor = self.matrix / self.designed.matrix_size()  # of whole pixels, as the images have them
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


def load_nominal(config: SpiralConfig, header: Any) -> trajectorysources.Found:
    """Trajectory of a scan as it was designed, by the signature of its sequence; see `trajectorysources.find`."""
    # project_path: also of a configuration made by hand.
    return trajectorysources.find(header, [project_path(folder) for folder in config.metafile_paths])
