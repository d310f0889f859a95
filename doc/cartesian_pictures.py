"""Make the picture of ``doc/cartesian.md``: ``python doc/cartesian_pictures.py``."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from drawing import save, show  # noqa: E402

import cartesian_recon  # noqa: E402
from cartesian_recon import CartesianConfig, CartesianReconstruction  # noqa: E402
from mrdio.testing import Recording  # noqa: E402
from recon import configuration  # noqa: E402
from simulation import cartesiansimulation as simulation  # noqa: E402
from simulation.cartesiansimulation import Epi, Noise, Scan  # noqa: E402


def images(scan: Scan, **options: object) -> list[np.ndarray]:
    """Images of a simulated scan, with these keys of the table [reconstruction]."""
    settings = CartesianConfig(CartesianReconstruction(**options))
    configuration.load = lambda cls: settings
    recording = Recording(simulation.acquisitions(scan))
    cartesian_recon.process(recording, "cartesian_recon", simulation.header(scan))
    return [image.data[0, 0] for image in recording.sent]


def main() -> None:
    """Make the picture."""
    size = {"columns": 192, "rows": 192, "coils": 8, "noise": 0.004}
    accelerated = Scan(
        **size, acceleration=3, calibration="embedded", calibration_width=24, noise_scan=True,
        noise_model=Noise(readouts=10),
    )  # fmt: skip
    partial = Scan(**size, partial_fourier=0.6, phase=0.8)
    train = Scan(**size, epi=Epi(delay=3.0, phase=0.6))
    snr, g_factor = images(accelerated, snr_units=True)
    panels = [
        ("R = 3: missing lines are zero", images(accelerated, acceleration="none")[0], None),
        ("R = 3: GRAPPA", images(accelerated)[0], None),
        ("R = 3: signal / noise", snr, 0.0),
        ("R = 3: g-factor", np.where(snr > 5, g_factor, np.nan), 1.0),
        ("partial Fourier 0.6: zeros", images(partial, partial_fourier="zero")[0], None),
        ("partial Fourier 0.6: POCS", images(partial)[0], None),
        ("EPI: without phase correction", images(train, phase_correction="none")[0], None),
        ("EPI: with the navigators' phase", images(train)[0], None),
    ]
    figure = Figure(figsize=(14, 7.2), layout="constrained")
    axes = figure.subplots(2, 4)
    for axis, (title, pixels, lowest) in zip(axes.flat, panels, strict=True):
        show(axis, pixels, title)
        if lowest is not None:  # a map with a scale
            shown = axis.imshow(pixels, cmap="viridis", vmin=lowest, vmax=np.nanpercentile(pixels, 99.5))
            figure.colorbar(shown, ax=axis, shrink=0.8).locator.set_params(nbins=6)
    save(figure, "cartesian", dpi=70)


if __name__ == "__main__":
    main()
