"""Reconstruction of spiral scans with constraints along respiration and cardiac cycle.

Readouts are sorted into respiratory states and cardiac phases by the pilot tone or the ECG. Minimised is, over the
images x of all bins,

    1/2 ||W (E x - y)||^2 + lambda_resp ||D_resp x||_1 + lambda_card ||D_card x||_1,

E: coil maps and non-uniform Fourier transform of each bin's own arms; D: differences to the next respiratory state and
to the next cardiac phase, both cyclic; W: 0 for arms that only fill up a bin, else 1. Readouts that are no measurement
(see `outliers`) are in no bin. By the solver of this server, or by BART. Settings:
``configs/spiral_xdgrasp_config.toml``, read for each scan. See ``doc/xdgrasp.md``.

Reference: Feng et al., Magn Reson Med 2016;75:775, doi 10.1002/mrm.25665 (extra dimensions in place of motion).
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import tukey

import mrdhelper
from connection import Connection
from recon import configuration, memory, noise, physio, physiobins, spiral
from recon.configuration import SpiralConfig, parameter
from recon.fieldsources import open_correction
from recon.readouts import Readouts, prepare_each, receive
from solvers import backends as solvers
from solvers.linops import arm_fields
from solvers.native_recon import Penalty
from solvers.problem import IterativeReconstruction

logger = logging.getLogger(__name__)

TAPERED_PART = 0.1  # of the readout, at its end


@dataclass(frozen=True)
class XdReconstruction(IterativeReconstruction):
    """Table [reconstruction] of the dual temporally constrained reconstruction."""

    num_iter: int = parameter(300, "Iterations of the optimisation.", minimum=1)
    arm_discard_pre: float = parameter(5.0, "Time at the start of the scan that is left out.", "s", minimum=0)
    arm_discard_post: float = parameter(5.0, "Time at the end of the scan that is left out.", "s", minimum=0)
    reg_lambda_resp: float = parameter(0.0005, "Weight of the total variation along respiration.", minimum=0)
    reg_lambda_card: float = parameter(0.0005, "Weight of the total variation along the cardiac cycle.", minimum=0)


@dataclass(frozen=True)
class XdBinning:
    """Table [binning] of the dual temporally constrained reconstruction."""

    n_respiratory_bins: int = parameter(12, "Respiratory states.", minimum=1)
    n_cardiac_bins: int = parameter(20, "Cardiac phases.", minimum=1)
    trigger_source: str = parameter(
        "pilottone_derivative",
        "Where the cardiac triggers come from; respiration always comes from the pilot tone.",
        choices=("ecg", "pilottone", "pilottone_derivative"),
    )
    ecg_pilottone_delay: float = parameter(
        0.15, "How much later a pilot-tone trigger comes than that of the ECG.", "s", minimum=-5, maximum=5
    )
    resp_discard: float = parameter(
        0.1, "Fraction of the readouts, of extreme respiratory amplitude, that is left out.", minimum=0, maximum=0.9
    )
    fill_small_bins: bool = parameter(
        True, "true: fill every bin up to the largest with arms of weight zero; false: crop all to the smallest."
    )


@dataclass(frozen=True)
class XdConfig(SpiralConfig):
    """Configuration of `spiral_xdgrasp_recon`."""

    FILE: ClassVar[str] = "configs/spiral_xdgrasp_config.toml"

    reconstruction: XdReconstruction = field(default_factory=XdReconstruction)
    binning: XdBinning = field(default_factory=XdBinning)


def process(connection: Connection, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over: one image for each slice, respiratory state and cardiac phase.

    Parameters
    ----------
    connection
        Yields readouts and waveforms; sends the images, then the waveforms.
    config
        Not used: the settings are in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` has the signature of the sequence.
    """
    warn, tell = connection.warn, connection.info
    settings = configuration.load(XdConfig)
    solver = solvers.open_solver(settings.reconstruction, connection.send_text, tell)
    fields = open_correction(settings.reconstruction, metadata, connection, settings.metafile_paths)
    scan = spiral.SpiralScan(settings, metadata, warn, keep_waveforms=True, tell=tell, fields=fields)

    prewhiten = settings.reconstruction.prewhiten
    messages = noise.prewhiten(connection, metadata, prewhiten, tell, warn, connection.dependency)
    slices = receive(scan, messages, settings.reconstruction.fov_oversampling)
    solvers.leave_fields(solver, slices, warn)
    tr = mrdhelper.repetition_time(metadata)
    hearts = prepare_each(lambda one: (one, sort(one, scan.waveforms, settings, tr, warn)), slices, warn)
    check_memory([bins for _, bins in hearts], scan.matrix)
    for readouts, bins in hearts:
        tell(describe(bins, readouts))
        np.multiply(readouts.samples, taper(readouts.samples.shape[-1]), out=readouts.samples)
    parts = (part_of(readouts, solver.coil_maps(readouts), bins, settings.reconstruction) for readouts, bins in hearts)
    with closing(solver.reconstruct(parts, len(hearts))) as results:
        series = [np.abs(images) for images in results]

    index, bits = itertools.count(1), mrdhelper.bits_stored(metadata)
    brightest = max(map(mrdhelper.largest_magnitude, series))
    for (readouts, bins), images in zip(hearts, series, strict=True):
        for respiratory, cardiac in np.ndindex(bins.counts.shape):
            pixels = mrdhelper.scale_to_int16(images[respiratory, cardiac], bits, brightest)
            head = readouts.heads[middle(bins, respiratory, cardiac)]
            image = scan.image(pixels, head, next(index))
            image.set, image.phase = respiratory, cardiac
            connection.send_image(image)
    for waveform in scan.waveforms:
        connection.send_waveform(waveform)


def sort(
    readouts: Readouts, waveforms: Iterable[Any], settings: XdConfig, tr: float | None,
    warn: Callable[[str], None],
) -> physiobins.BinTable:  # fmt: skip
    """Sort readouts into respiratory states and cardiac phases.

    Parameters
    ----------
    readouts
        Of one slice, in the order of acquisition; those that are not usable are in no bin.
    waveforms
        Of any kind, in any order.
    settings
        The configuration.
    tr
        Repetition time of the MRD header [s]; only compared with that of the time stamps.
    warn
        Called with a text for the client.

    Raises
    ------
    physio.PhysioError
        The waveforms do not give what is asked for.
    """
    binning, discard = settings.binning, settings.reconstruction
    stamps, counters = zip(*((one.acquisition_time_stamp, one.scan_counter) for one in readouts.heads), strict=True)
    # What is between two readouts of a slice when slices take turns is not missing: its TR is so many times as long.
    turns = max(int(np.median(np.diff(counters))), 1) if len(counters) > 1 else 1
    raster = physio.readout_raster(np.array(stamps), np.array(counters) // turns, tr and tr * turns, warn)
    triggers = physio.cardiac_triggers(waveforms, binning.trigger_source, raster, binning.ecg_pilottone_delay)
    cardiac = physiobins.cardiac_bins(triggers, raster.size, binning.n_cardiac_bins)
    amplitude = physio.respiration(waveforms, raster)
    respiratory = physiobins.respiratory_bins(amplitude, binning.n_respiratory_bins, binning.resp_discard, raster.tr)
    keep = physiobins.arm_discard(discard.arm_discard_pre, discard.arm_discard_post, raster.tr, raster.size)
    table = physiobins.bin_table(
        np.where(readouts.usable, np.where(keep, respiratory, physiobins.NO_BIN)[raster.index], physiobins.NO_BIN),
        np.where(keep, cardiac, physiobins.NO_BIN)[raster.index],
        binning.n_respiratory_bins,
        binning.n_cardiac_bins,
        binning.fill_small_bins,
    )
    if empty := np.count_nonzero(table.counts == 0):
        warn(f"{empty} of {table.counts.size} bins have no readout: their images come from their neighbours alone")
    return table


def describe(bins: physiobins.BinTable, readouts: Readouts) -> str:
    """Filling of the bins of a slice, in words."""
    states, phases, arms = bins.readouts.shape
    count, used = len(readouts), bins.counts.sum()
    return (
        f"slice {readouts.slice}: {count} readouts received, {count - used} of them in no bin; {bins.counts.min()} to "
        f"{bins.counts.max()} in each of {states} respiratory states x {phases} cardiac phases, made {arms} in all"
    )


def check_memory(slices: Sequence[physiobins.BinTable], matrix: int) -> None:
    """Refuse slices whose images, kept until all have one scale, do not fit into the memory together.

    Raises
    ------
    memory.ShortageError
        They do not.
    """
    needed = sum(4 * bins.counts.size * matrix**2 for bins in slices)
    if len(slices) > 1 and needed > (usable := memory.usable()):
        raise memory.ShortageError(f"the images of {len(slices)} slices", needed, usable)


def taper(samples: int) -> NDArray[np.float32]:
    """Weights [samples] that taper the end of a readout.

    They are the second half of a Tukey window of twice the length, `TAPERED_PART` of which is cosine.
    """
    return tukey(2 * samples, TAPERED_PART)[samples:].astype(np.float32)


def part_of(
    readouts: Readouts, maps: NDArray[Any], bins: physiobins.BinTable, options: XdReconstruction
) -> solvers.Part:
    """Return the solver's input: all bins [respiratory, cardiac] together."""
    columns = np.array(readouts.columns)[bins.readouts]
    return solvers.Part(
        samples=readouts.samples[bins.readouts],
        coordinates=readouts.coordinates[columns],
        maps=maps,
        penalties=(
            Penalty(axis=0, weight=options.reg_lambda_resp, cyclic=True),
            Penalty(axis=1, weight=options.reg_lambda_card, cyclic=True),
        ),
        iterations=options.num_iter,
        columns=len(readouts.coordinates),
        weights=bins.weights,
        fields=arm_fields(readouts.correction, columns),
    )


def middle(bins: physiobins.BinTable, respiratory: int, cardiac: int) -> int:
    """Readout in the middle of a bin; an empty one has the scan's first."""
    used = int(bins.weights[respiratory, cardiac].sum())
    return int(bins.readouts[respiratory, cardiac, used // 2]) if used else 0
