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
from typing import Any

import numpy as np
from numpy.typing import NDArray

import configuration
import constants
import memory
import mrdhelper
import physio
import solvers
import spiral
from native_recon import Penalty
from readouts import Readouts, prepare_each, receive, repetition_time

logger = logging.getLogger(__name__)

TAPERED_PART = 0.1  # of the readout, at its end


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over: one image for each slice, respiratory state and cardiac phase.

    Parameters
    ----------
    connection
        Yields readouts and waveforms; sends the images, then the waveforms.
    config
        Not used: the settings stand in the configuration file.
    metadata
        The MRD header; its user parameter ``tSequenceVariant`` names the metafile.
    """
    warn, tell = spiral.to_client(connection), spiral.to_client(connection, constants.MRD_LOGGING_INFO)
    settings = configuration.load(configuration.XdConfig)
    solver = solvers.open_solver(settings.reconstruction, connection.send_text, tell)
    scan = spiral.SpiralScan(settings, metadata, warn, keep_waveforms=True)

    slices = receive(scan, connection, settings.reconstruction.fov_oversampling)
    tr = repetition_time(metadata)
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
    readouts: Readouts, waveforms: Iterable[Any], settings: configuration.XdConfig, tr: float | None,
    warn: Callable[[str], None],
) -> physio.BinTable:  # fmt: skip
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
    cardiac = physio.cardiac_bins(triggers, raster.size, binning.n_cardiac_bins)
    amplitude = physio.respiration(waveforms, raster)
    respiratory = physio.respiratory_bins(amplitude, binning.n_respiratory_bins, binning.resp_discard, raster.tr)
    keep = physio.arm_discard(discard.arm_discard_pre, discard.arm_discard_post, raster.tr, raster.size)
    table = physio.bin_table(
        np.where(readouts.usable, np.where(keep, respiratory, physio.NO_BIN)[raster.index], physio.NO_BIN),
        np.where(keep, cardiac, physio.NO_BIN)[raster.index],
        binning.n_respiratory_bins,
        binning.n_cardiac_bins,
        binning.fill_small_bins,
    )
    if empty := np.count_nonzero(table.counts == 0):
        warn(f"{empty} of {table.counts.size} bins have no readout: their images come from their neighbours alone")
    return table


def describe(bins: physio.BinTable, readouts: Readouts) -> str:
    """How full the bins of a slice are, in words."""
    states, phases, arms = bins.readouts.shape
    count, used = len(readouts), bins.counts.sum()
    return (
        f"slice {readouts.slice}: {count} readouts received, {count - used} of them in no bin; {bins.counts.min()} to "
        f"{bins.counts.max()} in each of {states} respiratory states x {phases} cardiac phases, made {arms} in all"
    )


def check_memory(slices: Sequence[physio.BinTable], matrix: int) -> None:
    """Refuse slices whose images, kept until all have one scale, do not fit into the memory together.

    Raises
    ------
    memory.ShortageError
        They do not.
    """
    needed = sum(4 * bins.counts.size * matrix**2 for bins in slices)
    if len(slices) > 1 and needed > (room := memory.usable()):
        raise memory.ShortageError(f"the images of {len(slices)} slices", needed, room)


def taper(samples: int) -> NDArray[np.float32]:
    """Weights [samples] that lead a readout smoothly to its end.

    They are the second half of a Tukey window of twice the length, as wide a cosine as `TAPERED_PART` says.
    """
    position = (np.arange(samples) + samples) / (2 * samples - 1)
    phase = np.maximum(position - (1 - TAPERED_PART / 2), 0) / (TAPERED_PART / 2)
    return (0.5 + 0.5 * np.cos(np.pi * phase)).astype(np.float32)


def part_of(
    readouts: Readouts, maps: NDArray[Any], bins: physio.BinTable, options: configuration.XdReconstruction
) -> solvers.Part:
    """Return what the solver needs: all bins [respiratory, cardiac] together."""
    return solvers.Part(
        samples=readouts.samples[bins.readouts],
        coordinates=readouts.coordinates[np.array(readouts.columns)[bins.readouts]],
        maps=maps,
        penalties=(
            Penalty(axis=0, weight=options.reg_lambda_resp, cyclic=True),
            Penalty(axis=1, weight=options.reg_lambda_card, cyclic=True),
        ),
        iterations=options.num_iter,
        columns=len(readouts.coordinates),
        weights=bins.weights,
    )


def middle(bins: physio.BinTable, respiratory: int, cardiac: int) -> int:
    """Readout in the middle of a bin; an empty one has the scan's first."""
    used = int(bins.weights[respiratory, cardiac].sum())
    return int(bins.readouts[respiratory, cardiac, used // 2]) if used else 0
