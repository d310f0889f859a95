"""Reconstruction of spiral scans with constraints along respiration and cardiac cycle, through BART.

Readouts are sorted into respiratory states and cardiac phases by the pilot tone or the ECG. Minimised is, over the
images x of all bins,

    1/2 ||W (E x - y)||^2 + lambda_resp ||D_resp x||_1 + lambda_card ||D_card x||_1,

E: coil maps and non-uniform Fourier transform of each bin's own arms; D: differences to the next respiratory state and
to the next cardiac phase; W: 0 for arms that only fill up a bin, else 1. Settings:
``configs/spiral_xdgrasp_config.toml``, read for each scan. See ``doc/xdgrasp.md``.

Reference: Feng et al., Magn Reson Med 2016;75:775, doi 10.1002/mrm.25665 (extra dimensions in place of motion).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

import bart_recon
import configuration
import constants
import mrdhelper
import physio
import spiral
from bart_tools import TIME2_DIM, TIME_DIM

logger = logging.getLogger(__name__)

TAPERED_PART = 0.1  # of the readout, at its end


def process(connection: Any, config: Any, metadata: Any) -> None:
    """Reconstruct a spiral scan when it is over: one image for each respiratory state and cardiac phase.

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
    solver = bart_recon.open_solver(settings.reconstruction, connection.send_text)
    scan = spiral.SpiralScan(settings, metadata, warn, keep_waveforms=True)

    readouts = bart_recon.receive(scan, connection, settings.reconstruction.fov_oversampling)
    bins = sort(readouts.heads, scan.waveforms, settings, bart_recon.repetition_time(metadata), warn)
    tell(describe(bins, len(readouts)))
    np.multiply(readouts.samples, taper(readouts.samples.shape[-1]), out=readouts.samples)
    maps = solver.coil_maps(readouts)
    images = reconstruct(solver, readouts, maps, bins, settings.reconstruction)

    pixels = mrdhelper.scale_to_int16(images, mrdhelper.bits_stored(metadata))
    for index, (respiratory, cardiac) in enumerate(np.ndindex(bins.counts.shape), start=1):
        head = readouts.heads[middle(bins, respiratory, cardiac)]
        image = scan.image(pixels[respiratory, cardiac], head, index)
        image.set, image.phase = respiratory, cardiac
        connection.send_image(image)
    for waveform in scan.waveforms:
        connection.send_waveform(waveform)


def sort(
    heads: Iterable[ismrmrd.AcquisitionHeader], waveforms: Iterable[Any], settings: configuration.XdConfig,
    tr: float | None, warn: Callable[[str], None],
) -> physio.BinTable:  # fmt: skip
    """Sort readouts into respiratory states and cardiac phases.

    Parameters
    ----------
    heads
        Of the readouts, in the order of acquisition.
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
    stamps, counters = zip(*((head.acquisition_time_stamp, head.scan_counter) for head in heads), strict=True)
    raster = physio.readout_raster(np.array(stamps), np.array(counters), tr, warn)
    triggers = physio.cardiac_triggers(waveforms, binning.trigger_source, raster, binning.ecg_pilottone_delay)
    cardiac = physio.cardiac_bins(triggers, raster.size, binning.n_cardiac_bins)
    amplitude = physio.respiration(waveforms, raster)
    respiratory = physio.respiratory_bins(amplitude, binning.n_respiratory_bins, binning.resp_discard, raster.tr)
    keep = physio.arm_discard(discard.arm_discard_pre, discard.arm_discard_post, raster.tr, raster.size)
    table = physio.bin_table(
        np.where(keep, respiratory, physio.NO_BIN)[raster.index],
        np.where(keep, cardiac, physio.NO_BIN)[raster.index],
        binning.n_respiratory_bins,
        binning.n_cardiac_bins,
        binning.fill_small_bins,
    )
    if empty := np.count_nonzero(table.counts == 0):
        warn(f"{empty} of {table.counts.size} bins have no readout: their images come from their neighbours alone")
    return table


def describe(bins: physio.BinTable, readouts: int) -> str:
    """How full the bins are, in words."""
    states, phases, arms = bins.readouts.shape
    return (
        f"{readouts} readouts received, {readouts - bins.counts.sum()} of them in no bin; {bins.counts.min()} to "
        f"{bins.counts.max()} in each of {states} respiratory states x {phases} cardiac phases, made {arms} in all"
    )


def taper(samples: int) -> NDArray[np.float32]:
    """Weights [samples] that lead a readout smoothly to its end.

    They are the second half of a Tukey window of twice the length, as wide a cosine as `TAPERED_PART` says.
    """
    position = (np.arange(samples) + samples) / (2 * samples - 1)
    phase = np.maximum(position - (1 - TAPERED_PART / 2), 0) / (TAPERED_PART / 2)
    return (0.5 + 0.5 * np.cos(np.pi * phase)).astype(np.float32)


def reconstruct(
    solver: bart_recon.Solver, readouts: bart_recon.Readouts, maps: NDArray[Any], bins: physio.BinTable,
    options: configuration.XdReconstruction,
) -> NDArray[np.complex64]:  # fmt: skip
    """Reconstruct all bins together; returns images [respiratory, cardiac, row, column]."""
    columns = np.array(readouts.columns)[bins.readouts]
    along_respiration = f"T:1024:0:{options.reg_lambda_resp:.9g}"
    along_heartbeat = f"T:2048:0:{options.reg_lambda_card:.9g}"
    return solver.pics(
        ["-e", "-r", 0, "-R", along_respiration, "-R", along_heartbeat, "-d", 4, "-i", options.num_iter],
        readouts.samples[bins.readouts],
        readouts.coordinates[columns],
        maps,
        (TIME_DIM, TIME2_DIM),
        bins.weights,
    )


def middle(bins: physio.BinTable, respiratory: int, cardiac: int) -> int:
    """Readout in the middle of a bin; an empty one has the scan's first."""
    used = int(bins.weights[respiratory, cardiac].sum())
    return int(bins.readouts[respiratory, cardiac, used // 2]) if used else 0
