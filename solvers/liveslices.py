"""The live reconstruction of the slices of a scan: from readouts as they come to frames, see `live` for the algorithm.

Each slice begins with view-shared images. Coil maps and what else the iterations start with are made in the background
from its first readouts; then each frame is iterated on as soon as its last readout is in.
"""

import contextvars
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mrdhelper
from recon import arrays, nufft, spiral
from recon.conditioning import SampleError
from recon.configuration import ConfigurationError, SpiralReconstruction, parameter
from recon.fieldcorrection import Correction
from recon.fieldplan import with_fields
from recon.readouts import DataError, Readouts, frame_head
from recon.realtime import Frame
from recon.spiralreadout import SpiralReadout
from recon.trajectory import Trajectory
from recon.viewsharing import FOOTPRINT, PACE, USABLE_PART, SharedViews, check_memory, in_time, plan_for
from solvers import livestart
from solvers.arrivingframe import ArmTables
from solvers.backends import LAMBDA_FRAMES
from solvers.effort import Effort
from solvers.live import NEWEST, WINDOW_PART
from solvers.livestart import LiveStart
from solvers.team import Team


@dataclass(frozen=True)
class LiveReconstruction(SpiralReconstruction):
    """Table [reconstruction] of the live reconstruction."""

    arms_per_frame: int = parameter(
        7, "Arms of one frame: its temporal footprint.", "arms", minimum=1, maximum=1_000_000
    )
    lag_frames: int = parameter(
        1, "Frames that are awaited before a frame is sent: 0 sends it at once.", minimum=0, maximum=100
    )
    window_frames: int = parameter(
        4, "Latest frames that the iterations change; more than lag_frames.", minimum=1, maximum=1000
    )
    num_iter: int = parameter(
        4, "Iterations on the newest frames for each frame; fewer where the machine is too slow.", minimum=1
    )
    reg_lambda: float = parameter(0.00008, "Weight of the temporal total variation, in the unit of TFD.", minimum=0)
    calibration_arms: int = parameter(
        144, "Arms that coil maps and data scale are made from; until then images are view-shared.", "arms",
        minimum=1, maximum=1_000_000,
    )  # fmt: skip
    final_series: bool = parameter(
        False, "Reconstruct the whole scan once more when it is over, and send that as a second series."
    )

    def __post_init__(self) -> None:
        if self.window_frames <= self.lag_frames:
            raise ConfigurationError(
                f"reconstruction.window_frames = {self.window_frames} must be larger than lag_frames = "
                f"{self.lag_frames}: a frame is sent from the window"
            )


def reconstruct(
    readouts: Iterable[SpiralReadout], scan: spiral.SpiralScan, options: LiveReconstruction, tr: float | None,
    kept: list[Readouts],
) -> Iterator[Frame]:  # fmt: skip
    """Work each arm in when it comes, and yield frames.

    Parameters
    ----------
    readouts
        Of all slices, as they come.
    scan
        Where they come from.
    options
        Table [reconstruction] of the configuration.
    tr
        Repetition time [s]; None: not known.
    kept
        With `final_series`, the readouts of each slice are put here.

    Raises
    ------
    DataError
        The readouts of a slice do not belong together.
    ValueError
        The windows of all slices together would take more memory than the machine can spare.
    """
    slices: dict[int, LiveSlice] = {}
    with Team(1 if options.gpu_device >= 0 else None) as team, ThreadPoolExecutor(1, "preparing") as background:
        live = Live(scan, options, tr, team, background)
        for readout in readouts:
            scan.ledger.begin(readout.arrival, seconds(readout))
            number = readout.head.idx.slice
            here = slices.get(number)
            if here is None or here.place != scan.place_of(readout):
                if here is not None:
                    yield from here.finish()
                here = LiveSlice(live, readout, len(slices | {number: here}))
                slices[number] = here
                if options.final_series:
                    kept.append(here.kept)
            yield from here.add(readout)
        for here in slices.values():
            yield from here.finish()
        for text in live.summaries():
            scan.warn(text)


class Live:
    """What all slices of a scan have in common.

    Parameters
    ----------
    scan
        Where the readouts come from.
    options
        Table [reconstruction] of the configuration.
    tr
        Repetition time [s]; None: not known.
    team
        Works on the frames.
    background
        Makes coil maps while view-shared images are sent.
    """

    def __init__(
        self, scan: spiral.SpiralScan, options: LiveReconstruction, tr: float | None, team: Team,
        background: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.scan, self.options, self.tr = scan, options, tr
        self.effort = Effort(options.num_iter)
        self.empty = 0  # frames without a usable readout
        self.view_shared = 0  # slices that ended before the iterations could begin
        self.plan_of = functools.lru_cache(maxsize=8)(functools.partial(plan_for, scan, settings=options))
        self._tables_of = functools.lru_cache(maxsize=8)(functools.partial(tables_for, scan, options))
        self._team, self._background = team, background

    @property
    def shared_arms(self) -> int:
        """Arms of a view-shared image: whole frames, so that it comes when a live one would."""
        shared = min(FOOTPRINT, self.scan.designed.interleaves)
        return -(-shared // self.options.arms_per_frame) * self.options.arms_per_frame

    def make_tables(self, fitted: Trajectory) -> None:
        """Make the tables of a trajectory in the background; what goes wrong shows when they are used."""
        self._background.submit(contextvars.copy_context().run, self._tables_of, fitted, None)

    def in_time(self, correction: Correction | None, plan: nufft.ArmPlan, coil_count: int) -> Correction | None:
        """As many field terms as view-shared images have time for."""
        return in_time(correction, plan, self.scan, coil_count, self.options.arms_per_frame, self.tr)

    def _keep_pace(self, correction: Correction, needed: float) -> Correction:
        """As many field terms as the iterations have time for, of which fewer are done first."""
        if self.tr is None or self.scan.fields is None or self.options.gpu_device >= 0:  # it is the CPU's time
            return correction
        return self.scan.fields.keep_pace(correction, needed / self.options.arms_per_frame, PACE * self.tr)

    def begin(self, readouts: Readouts, fitted: Trajectory) -> Future[LiveStart]:
        """Make coil maps and what else the iterations start with, in the background."""
        options = self.options

        def work() -> LiveStart:
            return livestart.begin(
                readouts, functools.partial(self._tables_of, fitted), arms=options.arms_per_frame,
                weight=options.reg_lambda * LAMBDA_FRAMES, window_frames=options.window_frames, team=self._team,
                iterations=-(-options.num_iter // 2), keep_pace=self._keep_pace,
            )  # fmt: skip

        return self._background.submit(contextvars.copy_context().run, work)  # log lines carry the session's id

    def summaries(self) -> Iterator[str]:
        """Yield what the client should know when the scan is over."""
        if (slow := self.effort.summary()) is not None:
            yield slow
        if self.view_shared:
            yield (
                f"{self.view_shared} slice(s) ended before the iterations could begin: all of their images are "
                "view-shared; a smaller calibration_arms begins earlier"
            )
        if self.empty:
            yield f"{self.empty} frame(s) have no usable readout and come from those before them"


class LiveSlice:
    """One slice in one orientation: view-shared images first, then iterative ones.

    Parameters
    ----------
    live
        What it has in common with the others.
    first
        Its first readout.
    slice_count
        Slices of the scan so far, for the memory that they take.
    """

    def __init__(self, live: Live, first: SpiralReadout, slice_count: int) -> None:
        options, scan, arms = live.options, live.scan, live.options.arms_per_frame
        self.place = scan.place_of(first)
        self._live, self._first, self._fitted = live, first, scan.trajectory_of(first)
        uncorrected, coil_count = live.plan_of(self._fitted), first.samples.shape[0]
        self._correction = live.in_time(scan.correction(first), uncorrected, coil_count)
        plan = with_fields(uncorrected, self._correction)
        check_memory(plan, coil_count, live.shared_arms, arms, slice_count, options.gpu_device)
        if self._correction is None or len(self._correction) == 1:
            live.make_tables(self._fitted)
        self._shared: SharedViews | None = SharedViews(plan, first, live.shared_arms, arms, adaptive=True)
        self._latest: Any = None  # magnitude of the latest view-shared image
        self._coordinates = self._fitted.cycles_per_fov(options.fov_oversampling).astype(np.float32)
        self._calibration = self._no_readouts()
        self.kept = self._no_readouts()  # of the final series; apart, as the background works on the others
        self._beginning: Future[LiveStart] | None = None
        self._start: LiveStart | None = None
        self._gain = 1.0  # from the window's images to view-shared ones
        self._frame: list[SpiralReadout] = []
        self._waiting: deque[tuple[SpiralReadout, SpiralReadout, SpiralReadout]] = deque()
        self._told = False
        self._last_begin: float | None = None

    def _no_readouts(self) -> Readouts:
        return Readouts(self._first, self._coordinates, self._live.scan.matrix, self._correction)

    def add(self, readout: SpiralReadout) -> Iterator[Frame]:
        """Take a readout; yields the frame that it gives out, if it does."""
        options = self._live.options
        if options.final_series:
            self.kept.append(readout)
        if self._start is None and self._beginning is None:
            self._calibration.append(readout)
        self._frame.append(readout)
        grid = None
        if self._shared is not None:
            grid = self._shared.add(readout)
        elif self._start is not None and readout.usable:
            self._start.arriving.add(readout.column, self._demodulated(readout))
        if len(self._frame) < options.arms_per_frame:
            return
        if self._shared is None:
            yield from self._iterate()
        else:
            if grid is not None and self._shared.usable_part >= USABLE_PART:
                yield self._view_shared(self._shared, grid, readout)
            self._try_to_start(readout)
        self._frame = []

    def _demodulated(self, readout: SpiralReadout) -> NDArray[np.complex64]:
        """Samples [coil, sample], with a single field term taken out; several are in the tables."""
        if self._correction is None or len(self._correction) > 1:
            return readout.samples
        factors = self._correction.demodulation
        return readout.samples * factors[readout.column if len(factors) > 1 else 0]

    def finish(self) -> Iterator[Frame]:
        """Yield the frames that still wait for later ones, of which there will be none."""
        self._live.view_shared += self._start is None
        while self._waiting:
            yield self._give_out()

    def _view_shared(self, shared: SharedViews, grid: Any, last: SpiralReadout) -> Frame:
        pixels, head = shared.frame(grid)
        self._latest = abs(pixels)
        return Frame(pixels, head, last.arrival, self._live.scan.ledger.epoch(last.arrival), "view-sharing")

    def _try_to_start(self, last: SpiralReadout) -> None:
        """Let the iterations begin with the next frame, once all that they need is there."""
        live, options = self._live, self._live.options
        if self._beginning is None and sum(self._calibration.usable) >= options.calibration_arms:
            self._beginning = live.begin(self._calibration, self._fitted)
        if self._beginning is None or self._latest is None:
            return
        if not self._beginning.done() and not live.scan.ledger.can_wait(last.arrival, seconds(last)):
            return
        try:
            start = self._beginning.result()
        except (DataError, SampleError) as error:
            if not self._told:
                live.scan.warn(f"images stay view-shared for the time being: {error}")
            self._told, self._beginning = True, None
            self._calibration = self._no_readouts()
            return
        still = abs(arrays.to_host(start.window.image()))
        self._gain = float((still * self._latest).sum() / (still * still).sum())
        self._start, self._beginning, self._shared = start, None, None
        self._calibration = self._no_readouts()

    def _iterate(self) -> Iterator[Frame]:
        """Move the window on by the frame that is complete, and iterate; yields the frame that is given out."""
        live, options, frame = self._live, self._live.options, self._frame
        assert self._start is not None
        live.empty += not any(readout.usable for readout in frame)
        begin, last = seconds(frame[0]), frame[-1]
        duration = begin - self._last_begin if self._last_begin is not None else 0.0
        self._last_begin = begin
        ledger, moment = live.scan.ledger, (last.arrival, seconds(last))
        count = live.effort.iterations(0.0 if ledger.can_wait(*moment) else ledger.behind(*moment), duration)
        window = self._start.window
        window.advance(*self._start.arriving.take())
        for _ in range(count):
            window.refine(NEWEST)
        self._waiting.append((frame[0], frame[options.arms_per_frame // 2], last))
        if len(self._waiting) > options.lag_frames:
            if count:
                yield self._give_out()
            else:
                self._waiting.popleft()
        if count == options.num_iter:
            for _ in range(-(-count // WINDOW_PART)):
                window.refine(options.window_frames)

    def _give_out(self) -> Frame:
        """Return the frame that has waited longest."""
        assert self._start is not None
        first, middle, last = self._waiting.popleft()
        pixels = arrays.to_host(self._start.window.image(len(self._waiting))) * np.float32(self._gain)
        count = first.number - self._first.number
        head = frame_head(middle.head, first.head, self._first.head, count, self._live.tr)
        return Frame(pixels, head, last.arrival, self._live.scan.ledger.epoch(last.arrival), "live TFD")


def seconds(readout: SpiralReadout) -> float:
    """Acquisition time stamp [s]."""
    return mrdhelper.ticks_to_seconds(readout.head.acquisition_time_stamp)


def tables_for(
    scan: spiral.SpiralScan, options: LiveReconstruction, fitted: Trajectory, correction: Correction | None = None
) -> ArmTables:
    """Tables of a trajectory for the iterations; those of the metafile's own are kept for the next scan."""
    keep = fitted is scan.nominal and correction is None
    make: Callable[..., ArmTables] = _kept_tables if keep else _make_tables
    return make(fitted, options.fov_oversampling, options.gpu_device, correction)


def _make_tables(
    fitted: Trajectory, fov_oversampling: float, gpu_device: int, correction: Correction | None
) -> ArmTables:
    size = fitted.matrix_size(fov_oversampling)
    with Team(1 if gpu_device >= 0 else None) as team:
        return ArmTables(fitted.cycles_per_fov(fov_oversampling), (size, size), team, gpu_device, correction)


_kept_tables = functools.lru_cache(maxsize=2)(_make_tables)
