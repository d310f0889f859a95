"""Server and client from Python, without command lines: simulate, reconstruct, draw.

    python doc/example.py [FOLDER]

writes ``example.png`` into a folder: a frame of a beating heart next to the truth, and a line through it over time.
"""

import sys
import threading
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from client import ClientOptions, run  # noqa: E402
from mrdio.mrdfile import MrdReader  # noqa: E402
from recon.configuration import project_path  # noqa: E402
from recon.trajectory import write_metafile  # noqa: E402
from server import Server, ServerOptions  # noqa: E402
from serving.session import SessionOptions  # noqa: E402
from simulation.rawfile import write_raw  # noqa: E402
from simulation.spiraldesign import SpiralDesign, design_spiral  # noqa: E402
from simulation.spiralsimulation import Scan, simulate  # noqa: E402


def main(folder: Path) -> Path:
    """Run the example; returns the picture."""
    # A scan: 3.4 s of a beating, breathing chest, with the metafile that its reconstruction looks for.
    simulation = simulate(design_spiral(SpiralDesign()), Scan(readouts=600, coils=4))
    write_metafile(simulation.trajectory, project_path("seq_meta") / simulation.trajectory.file.name)
    write_raw(simulation.header, [simulation.items()], folder / "example_raw.h5")

    # The server, in a thread, on any free port; modules come from the project's folder.
    server = Server(ServerOptions(port=0, session=SessionOptions(module_folders=(PROJECT,))))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        source, output = folder / "example_raw.h5", folder / "example_img.h5"
        result = run(ClientOptions(source, port=server.address[1], config="simplenufft1arm", output=output))
    finally:
        server.stop()
        thread.join()
    if result.errors:
        raise SystemExit(result.errors[0])

    with MrdReader(result.output, result.group) as file:
        frames = np.stack([image.data[0, 0] for image in file.images()]).astype(float)
    middles = [range(17 * number + 24, 17 * number + 31) for number in range(len(frames))]
    seconds = 17 * simulation.scan.tr * len(frames)
    truth = simulation.truth.frames(middles)
    return draw(frames, truth, seconds, 100 * simulation.trajectory.fov, folder / "example.png")


def draw(frames: np.ndarray, truth: np.ndarray, seconds: float, fov: float, path: Path) -> Path:
    """Draw a frame [row, column] and a line through it over time [s], reconstructed and true; `fov` is in [cm]."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (title, images) in enumerate((("reconstructed", frames), ("truth", truth))):
        white = np.percentile(images, 99.5)
        over_time = images[:, :, images.shape[2] * 5 // 8].T  # a column through the heart
        axes[0, column].imshow(images[len(images) // 2], cmap="gray", vmin=0, vmax=white, extent=(0, fov, fov, 0))
        axes[0, column].set(title=title, xlabel="[cm]", ylabel="[cm]")
        axes[1, column].imshow(over_time, cmap="gray", vmin=0, vmax=white, aspect="auto", extent=(0, seconds, fov, 0))
        axes[1, column].set(xlabel="time [s]", ylabel="[cm]")
    figure.savefig(path, dpi=80)
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
