"""Every source of a trajectory through client and server, at the pace of the scan."""

import dataclasses
import logging
from pathlib import Path

import pytest

import client
import main
from mrdio.mrdfile import MrdReader, MrdWriter
from pulseq_files import carrying, header_of, spiral_sequence, write
from recon import trajectorysources
from recon.trajectory import write_metafile
from rtspiral_live_tvrecon import LiveConfig
from simplenufft import NufftConfig
from simplenufft1arm import ViewSharingConfig
from simulation.spiralsimulation import Scan, simulate

TOML = """metafile_paths = ["seq_meta"]
[reconstruction]
arms_per_frame = 8
window_shift = 8
"""
LIVE_TOML = """metafile_paths = ["seq_meta"]
[reconstruction]
arms_per_frame = 8
calibration_arms = 16
"""


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Folder with a sequence, and a scan of it."""
    folder = tmp_path_factory.mktemp("scan")
    file, signature = write(spiral_sequence(8, FOV=[0.24, 0.24, 0.005], Resolution_mm=10), folder / "spiral.seq")
    found = trajectorysources.find(header_of(signature), [folder]).trajectory
    trajectory = dataclasses.replace(found, file=Path(f"{signature}.mat"))
    return file, simulate(trajectory, Scan(readouts=32, coils=4, noise=0.001, still=True, waveforms=False, tr=10e-3))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        *(("simplenufft1arm", source) for source in ("metafile", "sequence", "readouts")),
        ("rtspiral_live_tvrecon", "readouts"),
        ("simplenufft", "sequence"),
    ],
)
def test_the_client_sends_at_the_pace_of_the_scan(server, scan, tmp_path, monkeypatch, caplog, module, source):
    caplog.set_level(logging.INFO)
    sequence, simulation = scan
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "seq_meta"):
        (tmp_path / folder).mkdir()
    Path(ViewSharingConfig.FILE).write_text(TOML)
    Path(NufftConfig.FILE).write_text('metafile_paths = ["seq_meta"]')
    Path(LiveConfig.FILE).write_text(LIVE_TOML)
    if source == "metafile":
        write_metafile(simulation.trajectory, tmp_path / "seq_meta" / simulation.trajectory.file.name)
        said = f"trajectory: metafile {simulation.trajectory.file.name}"
    elif source == "sequence":
        for suffix in (".seq", ".seq.npz"):
            (tmp_path / "seq_meta" / f"a{suffix}").write_bytes(sequence.with_suffix(suffix).read_bytes())
        said = "trajectory: Pulseq sequence a.seq: 8 readouts of 8 different arms"
    else:
        said = "trajectory of the readouts taken as cycles/FOV"
    with MrdWriter(tmp_path / "raw.h5") as writer:
        writer.write_header(simulation.header)
        for item in carrying(simulation) if source == "readouts" else simulation.items():
            writer.write(item)
    running = server(module_folders=(main.PROJECT_FOLDER,))
    result = client.run(client.ClientOptions(tmp_path / "raw.h5", port=running.port, config=module, realtime=True))
    assert result.errors == []
    with MrdReader(result.output, result.group) as file:
        images = list(file.images())
    assert len(images) == 4
    assert not any("Fallback" in image.meta for image in images)
    assert any(said in record.getMessage() for record in caplog.records)
