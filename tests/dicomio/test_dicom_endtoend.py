"""Raw data of a point to a DICOM file: dcmtk finds the point in the patient where the headers say that it is.

The signal is exp(-2 pi i k r). With the scanner's sign convention an image shows r at -r along read_dir and phase_dir,
since columns and rows count along these directions; simulated Cartesian data has no such turn.
"""

import numpy as np
import pytest

import dicom_tools as tools
import mrd2dicom
import simplefft
import simplenufft1arm
from cartesian_data import FakeConnection, make_header, point_kspace, readouts_of
from mrdio.mrdfile import MrdWriter
from recon.trajectory import write_metafile
from simplenufft1arm import ViewSharingConfig
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, readout_axes, simulate

ROTATION = (20, -30, 40)  # [degree]
POSITION = (11.0, -22.0, 33.0)  # [mm]


def found_by_dcmtk(tmp_path, module, items, header):
    """Patient coordinates [mm] of the bright spot in the only image that a module makes."""
    connection = FakeConnection(items)
    module.process(connection, "", header)
    with MrdWriter(tmp_path / "images.h5") as writer:
        writer.write_header(header.toXML("utf-8"))
        for image in connection.images:
            writer.write(image)
    assert mrd2dicom.convert(tmp_path / "images.h5", tmp_path / "out") == 1
    (path,) = (tmp_path / "out").iterdir()
    place, shown = tools.seen_by_dcmtk(path, tmp_path)
    row, column = np.unravel_index(np.argmax(shown), shown.shape)
    rows, columns = np.mgrid[row - 3 : row + 4, column - 3 : column + 4]
    weights = shown[rows, columns].astype(float) ** 2
    return place(np.sum(rows * weights) / weights.sum(), np.sum(columns * weights) / weights.sum())


@pytest.mark.parametrize(("vendor", "sign"), [("Simulation", 1), ("SIEMENS", -1)])
@pytest.mark.parametrize("shape", [(32, 40), (33, 41)])
def test_cartesian(vendor, sign, shape, tmp_path):
    read, phase, normal = readout_axes(ROTATION)
    rows, columns = shape
    extent = (4.0 * columns, 6.0 * rows, 5.0)  # [mm]
    x, y = 7 * 4.0, -5 * 6.0
    header = make_header(
        (columns, rows, 1),
        encoded_fov=extent,
        vendor=vendor,
        kspace_encoding_step_1=(0, rows - 1, rows // 2),
    )
    items = readouts_of(
        point_kspace([(x, y, 1.0)], shape, extent[:2]),
        position=POSITION,
        read_dir=tuple(read),
        phase_dir=tuple(phase),
        slice_dir=tuple(normal),
    )
    found = found_by_dcmtk(tmp_path, simplefft, items, header)
    np.testing.assert_allclose(found, np.array(POSITION) + sign * (x * read + y * phase), atol=0.01)


@pytest.mark.parametrize("matrix", [64, 63])
def test_spiral(matrix, tmp_path, monkeypatch):
    trajectory = design_spiral(
        SpiralDesign(fov=0.256, resolution=0.256 / matrix, interleaves=8, arms=24, pre_discard=6)
    )
    x, y = 40.3, -61.7  # [mm]
    scan = Scan(
        readouts=24,
        coils=4,
        noise=0,
        still=True,
        waveforms=False,
        tr=20e-3,
        point=(x, y),
        rotation=ROTATION,
        position=POSITION,
    )
    simulation = simulate(trajectory, scan)
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "seq_meta"):
        (tmp_path / folder).mkdir()
    toml = "metafile_paths = ['seq_meta']\n[reconstruction]\narms_per_frame = 24\nwindow_shift = 24\n"
    (tmp_path / ViewSharingConfig.FILE).write_text(toml)
    write_metafile(trajectory, tmp_path / "seq_meta" / trajectory.file.name)
    found = found_by_dcmtk(tmp_path, simplenufft1arm, simulation.items(), simulation.header)
    read, phase, _ = readout_axes(ROTATION)
    np.testing.assert_allclose(found, np.array(POSITION) - x * read - y * phase, atol=0.1 * 256 / matrix)
