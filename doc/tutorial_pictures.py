"""Make the pictures of the guides that show what their own commands give.

    python doc/tutorial_pictures.py [phantom] [spiral] [trajectories] [filters] [dicom]

Each runs the commands of a guide in an empty folder, against a server of its own; without names, all are made.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.figure import Figure
from numpy.typing import NDArray

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from drawing import PICTURES, save, show, show_line, white_of  # noqa: E402
from streaming import running_server  # noqa: E402

from mrdhelper import SECONDS_PER_TICK  # noqa: E402
from mrdio.mrdfile import MrdReader  # noqa: E402

TRAJECTORIES = {
    "spiral": ("--carry", "cycles", "-a", "144"),
    "radial": ("--trajectory", "radial", "--carry", "cycles", "--ordering", "linear", "-a", "404"),
    "rosette": ("--trajectory", "rosette", "--carry", "1/m", "--ordering", "linear", "-a", "404"),
}


class Desk:
    """Empty folder and running server, for the commands of a guide.

    Parameters
    ----------
    folder
        Where the commands are run.
    port
        Of the server.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self._port = folder, port

    def run(self, script: str, *arguments: str) -> None:
        """Run a command of the project."""
        subprocess.run([sys.executable, str(PROJECT / script), *arguments], cwd=self.folder, check=True)

    def reconstruct(self, module: str, source: str, output: str) -> NDArray:
        """Send a file through the server; returns the images [image, row, column]."""
        self.run("client.py", "-p", str(self._port), "--quiet", "-c", module, "-o", output, source)
        return self.images(output)

    def images(self, name: str) -> NDArray:
        """Images of a file [image, row, column]."""
        with MrdReader(self.folder / name) as reader:
            return np.array([image.data[0, 0] for image in reader.images()], float)

    def phantom(self) -> None:
        """Raw data of a Cartesian scan, as ./demo.sh makes them."""
        self.run(
            "generate_cartesian_shepp_logan_dataset.py", "-m", "192", "-c", "8", "-n", "0.02", "-o", "phantom_raw.h5"
        )


def phantom(desk: Desk) -> None:
    """README: what mrd2gif makes of the first reconstruction."""
    desk.phantom()
    desk.reconstruct("simplefft", "phantom_raw.h5", "phantom_img.h5")
    desk.run("mrd2gif.py", "--png", "phantom_img.h5")
    (made,) = desk.folder.glob("phantom_img*.png")
    shutil.copy(made, PICTURES / "phantom.png")


def spiral(desk: Desk) -> None:
    """doc/spiral.md: frames of the view-sharing movie, and a line through the heart over time."""
    desk.run("generate_spiral_dataset.py", "--seq-meta", "seq_meta", "-o", "spiral_raw.h5")
    movie = desk.reconstruct("simplenufft1arm", "spiral_raw.h5", "spiral_img.h5")
    with MrdReader(desk.folder / "spiral_img.h5") as reader:
        heads = [image.getHead() for image in reader.images()]
    times = SECONDS_PER_TICK * np.array(
        [head.acquisition_time_stamp - heads[0].acquisition_time_stamp for head in heads]
    )
    extent = heads[0].field_of_view[0] / 10
    white = white_of(list(movie))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    for axes, number in zip(upper.subplots(1, 4), range(10, 22, 3), strict=True):
        show(axes, movie[number], f"frame {number + 1}, {times[number]:.2f} s", white)
    column = int(movie.var(axis=0).sum(axis=0).argmax())
    axes = lower.subplots()
    show_line(axes, movie[:, :, column].T, times[-1], extent, white)
    axes.set_ylabel("column through\nthe heart [cm]", fontsize=9)
    save(figure, "spiral")


def trajectories(desk: Desk) -> None:
    """doc/sequences.md: k-space of three kinds of readouts, and what simplenufft makes of them."""
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    for (upper, lower), (name, options) in zip(figure.subplots(2, 3).T, TRAJECTORIES.items(), strict=True):
        desk.run("generate_spiral_dataset.py", *options, "--still", "-o", f"{name}.h5")
        with MrdReader(desk.folder / f"{name}.h5") as reader:
            arms = [item.traj.copy() for item in reader.acquisitions()]
        for arm in arms[:: max(1, len(arms) // 9)]:
            k = arm / np.abs(np.concatenate(arms)).max()
            upper.plot(k[:, 0], k[:, 1], linewidth=0.6)
        upper.set_title(f"{name}: {len(arms)} readouts", fontsize=10)
        upper.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        upper.tick_params(labelsize=8)
        upper.set_xlabel("$k_x / k_{max}$", fontsize=9)
        show(lower, desk.reconstruct("simplenufft", f"{name}.h5", f"{name}_img.h5")[0])
    figure.axes[0].set_ylabel("$k_y / k_{max}$", fontsize=9)
    save(figure, "trajectories")


def filters(desk: Desk) -> None:
    """doc/filters.md: the phantom, and what its two filters make of it."""
    text = (PROJECT / "doc" / "filters.md").read_text("utf-8")
    kspace, pixels = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = (PROJECT / "invertcontrast.py").read_text("utf-8")
    anchor = "".join(kspace.splitlines(keepends=True)[:2])
    normalising = re.search(
        r"    # Normalize and convert to int16\n.*?data = data.astype\(np.int16\)\n(?=\n)", module, re.S
    )
    (desk.folder / "filterkspace.py").write_text(module.replace(anchor, kspace), "utf-8")
    (desk.folder / "filterimage.py").write_text(module.replace(normalising[0], pixels), "utf-8")
    desk.phantom()
    figure = Figure(figsize=(8, 3.1), layout="constrained")
    titles = {
        "simplefft": "simplefft:\nno filter",
        "filterkspace": "filterkspace: Hanning,\ncontrast still inverted",
        "filterimage": "filterimage:\nedges",
    }
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        show(axes, desk.reconstruct(name, "phantom_raw.h5", f"{name}.h5")[0], title)
    save(figure, "filters")


def dicom(desk: Desk) -> None:
    """README: DICOM images, inverted by a module, and DICOM again."""
    desk.phantom()
    desk.reconstruct("simplefft", "phantom_raw.h5", "phantom_img.h5")
    desk.run("mrd2dicom.py", "-o", "dicoms", "phantom_img.h5")
    desk.run("dicom2mrd.py", "-o", "dicom_img.h5", "dicoms")
    desk.reconstruct("invertcontrast", "dicom_img.h5", "dicom_img_inverted.h5")
    desk.run("mrd2dicom.py", "-o", "inverted", "dicom_img_inverted.h5")
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("dicoms", "inverted"), strict=True):
        (path,) = (path for path in (desk.folder / name).rglob("*") if path.is_file())
        dataset = pydicom.dcmread(path)
        show(axes, dataset.pixel_array, f"{name}/:\n{dataset.SeriesDescription}")
    save(figure, "dicom")


MADE: tuple[Callable[[Desk], None], ...] = (phantom, spiral, trajectories, filters, dicom)


def main() -> None:
    """Make the pictures that the command line names."""
    for make in MADE:
        if make.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            with tempfile.TemporaryDirectory() as name, running_server(folder=Path(name)) as (port, _):
                make(Desk(Path(name), port))


if __name__ == "__main__":
    main()
