"""Simulated scans through `cartesian_recon` without a socket, and the truth they were made of."""

from unittest import mock

import numpy as np

import cartesian_recon
import constants
from cartesian_data import FakeConnection
from cartesian_recon import CartesianConfig, CartesianReconstruction
from recon import configuration
from simulation import cartesiansimulation as simulation
from simulation.cartesiansimulation import Scan

SMALL = {"columns": 72, "rows": 80, "coils": 8, "noise": 0.002}
EMBEDDED = {"calibration": "embedded", "calibration_width": 20}
SEPARATE = {"calibration": "separate", "calibration_width": 24}


def reconstruct(scan, items=None, header=None, dependency=lambda kind: None, **options):
    """Reconstruct the readouts of a simulated scan (or others); returns the connection."""
    settings = CartesianConfig(CartesianReconstruction(**{"coil_combine": "rssq", "prewhiten": "off"} | options))
    connection = FakeConnection(simulation.acquisitions(scan) if items is None else items)
    connection.dependency = dependency
    with mock.patch.object(configuration, "load", return_value=settings):
        cartesian_recon.process(connection, "cartesian_recon", header or simulation.header(scan))
    return connection


def truth(scan):
    """Root sum of squares of what full sampling without noise shows [plane, row, column], by NumPy alone."""
    kept = {name: getattr(scan, name) for name in ("columns", "rows", "coils", "slices", "partitions", "object_size")}
    kspace = np.zeros((scan.coils, scan.slices * scan.partitions, scan.rows, scan.samples), complex)
    for readout in simulation.acquisitions(Scan(**kept, phase=scan.phase, noise=0)):
        idx = readout.idx
        kspace[:, idx.slice + idx.kspace_encode_step_2, idx.kspace_encode_step_1] = readout.data
    axes = (2, 3) if scan.partitions == 1 else (1, 2, 3)
    images = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes=axes), axes=axes), axes=axes)
    first = scan.samples // 2 - scan.columns // 2
    return np.linalg.norm(images[..., first : first + scan.columns], axis=0)


def error(connection, expected):
    """Relative error of all images together, after the best scale factor."""
    images = np.array([image.data[0, 0] for image in connection.images], float)
    assert images.shape == expected.shape
    factor = np.vdot(images, expected) / np.vdot(images, images)
    return np.linalg.norm(images * factor - expected) / np.linalg.norm(expected)


def warnings(connection):
    return [text for level, text in connection.logs if level == constants.MRD_LOGGING_WARNING]
