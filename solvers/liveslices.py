"""The live reconstruction of the slices of a scan: from readouts as they come to frames, see `live` for the algorithm.

Each slice begins with view-shared images. Coil maps and what else the iterations start with are made in the background
from its first readouts; then each frame is iterated on as soon as its last readout is in.
"""

import contextvars
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon import arrays, memory, nufft, spiral
from recon.conditioning import SampleError
from recon.configuration import ConfigurationError, SpiralReconstruction, parameter
from recon.fieldcorrection import Correction
from recon.fieldplan import with_fields
from recon.outliers import BRIGHT, norm_of
from recon.readouts import DataError, Readouts, check_coils, frame_head, learn_field
from recon.realtime import Frame
from recon.spiralreadout import SpiralReadout
from recon.trajectory import Trajectory
from recon.viewsharing import FOOTPRINT, PACE, USABLE_PART, SharedViews, check_memory, in_time, plan_for
from solvers import livestart
from solvers.arrivingframe import ArmTables
from solvers.backends import LAMBDA_FRAMES
from solvers.effort import Effort
from solvers.live import NEWEST, WINDOW_PART, LiveWindow
from solvers.livestart import LiveStart
from solvers.team import Team

REPLAYED = 3  # iterations, at most, of the frames with which the iterative images begin

Key = tuple[int, int, int]  # slice, contrast, set: readouts of other ones are no measurement of the same image


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
        3, "Latest frames that the iterations change; more than lag_frames.", minimum=1, maximum=1000
    )
    num_iter: int = parameter(
        5, "Iterations on the newest frames for each frame; fewer where the machine is too slow.", minimum=1
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
    slices: dict[Key, LiveSlice] = {}
    with Team(1 if options.gpu_device >= 0 else None) as team, preparing() as background:
        live = Live(scan, options, tr, team, background)
        for readout in readouts:
            scan.ledger.begin(readout.arrival, readout.moment)
            key = (readout.head.idx.slice, readout.head.idx.contrast, readout.head.idx.set)
            here = slices.get(key)
            if here is None or here.place != scan.place_of(readout) or here.outgrown:
                if here is not None:
                    yield from here.finish()
                brighter = here is not None and here.outgrown
                here = slices[key] = LiveSlice(live, readout, len(slices | {key: here}), brighter)
                if options.final_series and live.memory_left >= 0:
                    kept.append(here.kept)
            yield from here.add(readout)
        for here in slices.values():
            yield from here.finish()
        for text in live.summaries():
            scan.warn(text)


@contextmanager
def preparing() -> Iterator[ThreadPoolExecutor]:
    """Thread of the background; what it has not begun at the end is not waited for."""
    background = ThreadPoolExecutor(1, "preparing")
    try:
        yield background
    finally:
        background.shutdown(cancel_futures=True)


class Live:
    """Settings, threads and book-keeping that all slices of a scan share.

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
        self.effort = Effort(options.num_iter, options.window_frames)
        self.empty = 0  # frames without a usable readout
        self.dropped = 0  # view-shared images that were not made
        self.without_images = self.view_shared = 0  # slices that ended before images, before iterations could begin
        self.plan_of = functools.lru_cache(maxsize=8)(functools.partial(plan_for, scan, settings=options))
        self._tables_of = functools.lru_cache(maxsize=8)(functools.partial(tables_for, scan, options))
        self._team, self._background = team, background
        self.memory_left = memory.usable()  # for the readouts of the final series [bytes]

    @property
    def shared_arms(self) -> int:
        """Arms of a view-shared image: whole frames, so that it comes when a live one would."""
        shared = min(FOOTPRINT, self.scan.designed.interleaves)
        return -(-shared // self.options.arms_per_frame) * self.options.arms_per_frame

    def can_wait(self, readout: SpiralReadout) -> bool:
        """Tell whether nobody waits for the image of a readout, or nothing tells how late it is."""
        return self.scan.ledger.can_wait or not readout.moment

    def behind(self, readout: SpiralReadout) -> float:
        """Delay of the work on a readout [s]; 0 where nobody waits for it."""
        return 0.0 if self.can_wait(readout) else self.scan.ledger.behind(readout.arrival, readout.moment)

    def keep(self, kept: Readouts, readout: SpiralReadout) -> None:
        """Keep a readout for the final series, while there is memory for it; the client is told when it ends."""
        size = readout.samples.nbytes
        self.memory_left -= size
        if self.memory_left >= 0:
            kept.append(readout)
        elif self.memory_left >= -size:
            self.scan.warn(
                f"the final series ends with readout {readout.head.scan_counter}: later ones would take more memory "
                "than there is; live images go on"
            )

    def make_tables(self, fitted: Trajectory) -> Future[ArmTables]:
        """Make the tables of a trajectory in the background; what goes wrong shows when they are used."""
        return self._background.submit(contextvars.copy_context().run, self._tables_of, fitted, None)

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
            if self.scan.learns_field:
                learn_field(self.scan, readouts)
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
        if self.without_images:
            yield (
                f"{self.without_images} slice(s) or orientation(s) have no image: each view-shared one takes "
                f"{self.shared_arms} readouts that follow one another, at least half of them usable"
            )
        if self.dropped:
            yield f"{self.dropped} frame(s) were not made: fewer than half of their readouts could be used"
        if self.view_shared:
            yield (
                f"{self.view_shared} slice(s) or orientation(s) ended before the iterations could begin: all of their "
                "images are view-shared; a smaller calibration_arms begins earlier"
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
    brighter
        It is the new start of a slice that is `outgrown`.

    Attributes
    ----------
    place
        Of its readouts, see `SpiralScan.place_of`.
    kept
        Its readouts, for the final series.
    outgrown
        Its readouts have become far brighter than those that coil maps and scale come from, as when the scan began
        before there was a signal: a new start is needed.
    """

    def __init__(self, live: Live, first: SpiralReadout, slice_count: int, brighter: bool = False) -> None:
        options, scan, arms = live.options, live.scan, live.options.arms_per_frame
        self.place = scan.place_of(first)
        self._live, self._first, self._fitted = live, first, scan.trajectory_of(first)
        uncorrected, coil_count = live.plan_of(self._fitted), first.samples.shape[0]
        self._correction = live.in_time(scan.correction(first), uncorrected, coil_count)
        plan = with_fields(uncorrected, self._correction)
        check_memory(plan, coil_count, live.shared_arms, arms, slice_count, options.gpu_device, "arms_per_frame")
        check_window(options, scan.matrix, slice_count)
        single = self._correction is None or len(self._correction) == 1
        self._tables = live.make_tables(self._fitted) if single else None
        self._shared: SharedViews | None = SharedViews(plan, first, live.shared_arms, arms, adaptive=True)
        self._brighter = brighter  # until the first image
        self._latest: Any = None  # magnitude of the latest view-shared image
        self._coordinates = self._fitted.cycles_per_fov(options.fov_oversampling).astype(np.float32)
        self._calibration = self._no_readouts()
        self.kept = self._no_readouts()  # apart, as the background works on the others
        self.outgrown = False
        self._beginning: Future[LiveStart] | None = None
        self._start: LiveStart | None = None
        self._gain: float | None = None  # from the window's images to view-shared ones
        self._brightest = 0.0  # norm of a readout in the brightest frame of the calibration
        self._frame: list[SpiralReadout] = []
        # Frames that are later than the middle of the latest view-shared image: no image has shown them.
        unseen = (live.shared_arms - 1 - live.shared_arms // 2) // arms
        self._unseen: deque[list[SpiralReadout]] = deque(maxlen=unseen)
        self._waiting: deque[tuple[SpiralReadout, SpiralReadout, SpiralReadout]] = deque()
        self._begins: deque[float] = deque(maxlen=2)  # times of the latest frames [s]
        self._told = False

    def _no_readouts(self) -> Readouts:
        correction = None if self._live.scan.learns_field else self._correction
        return Readouts(self._first, self._coordinates, self._live.scan.matrix, correction)

    def add(self, readout: SpiralReadout) -> Iterator[Frame]:
        """Take a readout; yields the frames that it gives out, if it does.

        Raises
        ------
        DataError
            It has other coils than the first.
        """
        check_coils(readout, self._first)
        options = self._live.options
        if options.final_series:
            self._live.keep(self.kept, readout)
        if not self._frame:
            self._begins.append(readout.moment)
        self._frame.append(readout)
        grid = None
        if self._shared is not None:
            grid = self._shared.add(readout)
        elif self._start is not None and readout.usable:
            self._start.arriving.add(readout.column, self._demodulated(readout))
        if len(self._frame) < options.arms_per_frame:
            return
        frame, self._frame = self._frame, []
        self._compare_brightness(frame)
        if self.outgrown:
            return
        if self._shared is None:
            yield from self._iterate(frame)
            return
        self._unseen.append(frame)
        if grid is not None:
            yield from self._view_shared(self._shared, grid, readout)
        yield from self._try_to_start(frame)

    def _demodulated(self, readout: SpiralReadout) -> NDArray[np.complex64]:
        """Samples [coil, sample], with a single field term taken out; several are in the tables."""
        if self._correction is None or len(self._correction) > 1:
            return readout.samples
        factors = self._correction.demodulation
        return readout.samples * factors[readout.column if len(factors) > 1 else 0]

    def finish(self) -> Iterator[Frame]:
        """Yield the frames that still wait for later ones, of which there will be none."""
        for future in (self._tables, self._beginning):
            if future is not None:
                future.cancel()
        if self._start is None and not self.outgrown:
            self._live.without_images += self._latest is None
            self._live.view_shared += self._latest is not None
        while self._waiting:
            yield self._give_out()

    def _compare_brightness(self, frame: list[SpiralReadout]) -> None:
        """Find out whether the readouts are far brighter than those of the calibration."""
        norms = [norm_of(readout.samples) for readout in frame if readout.usable]
        if not norms:
            return
        brightness = median(norms)
        if self._brightest and brightness > BRIGHT * self._brightest:
            self.outgrown = True
            self._live.scan.warn(
                f"from readout {frame[0].head.scan_counter} on the signal is {brightness / self._brightest:.0f} times "
                "as bright as where its coil maps come from: they are made anew, and images are scaled anew"
            )
        if self._start is None and self._beginning is None:
            self._brightest = max(self._brightest, brightness)

    def _view_shared(self, shared: SharedViews, grid: Any, last: SpiralReadout) -> Iterator[Frame]:
        if shared.usable_part < USABLE_PART:
            self._live.dropped += 1
            return
        pixels, head = shared.frame(grid)
        self._latest = abs(pixels)
        epoch = self._live.scan.ledger.epoch(last.arrival)
        yield Frame(pixels, head, last.arrival, epoch, "view-sharing", self._brighter)
        self._brighter = False

    def _try_to_start(self, frame: list[SpiralReadout]) -> Iterator[Frame]:
        """Let the iterations begin, once all that they need is there, with the frames that no image has shown yet."""
        live, options = self._live, self._live.options
        if self._beginning is None and any(readout.usable for readout in frame):
            for readout in frame:
                self._calibration.append(readout)
            if sum(self._calibration.usable) >= options.calibration_arms:
                self._beginning = live.begin(self._calibration, self._fitted)
        if self._beginning is None or self._latest is None:
            return
        if not self._beginning.done() and not live.can_wait(frame[-1]):
            return
        try:
            start = self._beginning.result()
        except (DataError, SampleError) as error:
            if not self._told:
                live.scan.warn(f"images stay view-shared for the time being: {error}")
            self._told, self._beginning = True, None
            self._calibration = self._no_readouts()
            return
        self._start, self._beginning, self._shared = start, None, None
        if live.scan.learns_field:
            self._correction = live.scan.correction(self._first)
        self._calibration = self._no_readouts()
        while self._unseen:
            unseen = self._unseen.popleft()
            for readout in unseen:
                if readout.usable:
                    start.arriving.add(readout.column, self._demodulated(readout))
            count, length = self._affordable(frame[-1])
            yield from self._move_on(unseen, min(max(count, 1), REPLAYED), length)

    def _iterate(self, frame: list[SpiralReadout]) -> Iterator[Frame]:
        """Iterate as much as there is time for; yields the frame that is given out."""
        assert self._start is not None
        count, length = self._affordable(frame[-1])
        self._live.effort.note(count, length)
        yield from self._move_on(frame, count, length)
        if length > NEWEST:
            part = WINDOW_PART if self._live.options.lag_frames < NEWEST else WINDOW_PART // 2
            for _ in range(-(-count // part)):
                self._start.window.refine(length)

    def _affordable(self, latest: SpiralReadout) -> tuple[int, int]:
        """Iterations and length of the window that there is time for when the latest readout is in."""
        return self._live.effort.afford(self._live.behind(latest), self._begins[-1] - self._begins[0])

    def _move_on(self, frame: list[SpiralReadout], count: int, length: int) -> Iterator[Frame]:
        """Move the window on by a frame that is complete, and iterate; yields the frame that is given out."""
        assert self._start is not None
        self._live.empty += not any(readout.usable for readout in frame)
        window = self._start.window
        window.advance(*self._start.arriving.take())
        for _ in range(count):
            window.refine(min(NEWEST, length))
        self._waiting.append((frame[0], frame[len(frame) // 2], frame[-1]))
        if len(self._waiting) > self._live.options.lag_frames:
            if count:
                yield self._give_out()
            else:
                self._waiting.popleft()

    def _give_out(self) -> Frame:
        """Return the frame that has waited longest."""
        assert self._start is not None
        first, middle, last = self._waiting.popleft()
        pixels = arrays.to_host(self._start.window.image(len(self._waiting)))
        if self._gain is None:  # of images of the same time, as the signal may have changed since the calibration
            magnitude = abs(pixels)
            self._gain = float((magnitude * self._latest).sum() / (magnitude * magnitude).sum())
        count = first.number - self._first.number
        head = frame_head(middle.head, first.head, self._first.head, count, self._live.tr)
        return Frame(
            pixels * np.float32(self._gain), head, last.arrival, self._live.scan.ledger.epoch(last.arrival), "live TFD"
        )


def check_window(options: LiveReconstruction, matrix: int, slice_count: int) -> None:
    """Raise a ValueError when the windows of all slices would take more memory than one reconstruction may take."""
    needed, limit = slice_count * LiveWindow.memory(options.window_frames, matrix), memory.usable(options.gpu_device)
    if needed > limit:
        raise ValueError(
            f"window_frames = {options.window_frames} of {matrix} x {matrix} pixels in {slice_count} slices would take "
            f"{needed >> 20} MiB, more than {limit >> 20} MiB: choose fewer frames, or a smaller fov_oversampling"
        )


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
