"""Both ends of a reconstruction that runs while the scan does: readouts come in, frames go out, and are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
from numpy.typing import NDArray

from connection import Connection
from mrdhelper import SeriesScale
from recon import noise
from recon.latency import LatencyLedger
from recon.pipeline import threaded
from recon.spiral import SpiralScan
from recon.spiralreadout import SpiralReadout

WAITING_BYTES = 128 << 20  # of readouts that may wait while the reconstruction is busy; then the sender has to wait
FRAMES_WAITING = 64


@dataclass(frozen=True, eq=False)
class Frame:
    """A reconstructed frame.

    Attributes
    ----------
    pixels
        Combined image [row, column], complex; real and positive for the root sum of squares.
    head
        Header of the readout in the middle of the frame.
    arrival
        When its last readout arrived [s].
    arrival_time
        The same in seconds since the epoch [s].
    method
        By which reconstruction it was made, where a module has more than one.
    brighter
        Frames from here on are so much brighter than those before that they need another intensity scale.
    """

    pixels: NDArray[Any]
    head: ismrmrd.AcquisitionHeader
    arrival: float
    arrival_time: float
    method: str = ""
    brighter: bool = False

    def attributes(self, ledger: LatencyLedger) -> dict[str, str]:
        """Return the meta attributes: when the last readout arrived, how long the frame took [ms], and the method.

        And how many readouts have arrived that are still to be worked on.
        """
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.arrival_time))
        return {
            "LastReadoutArrival": f"{moment}.{int(self.arrival_time % 1 * 1000):03d}",
            "ProcessingTime_ms": f"{1e3 * (ledger.now() - self.arrival):.3f}",
            "ReadoutsWaiting": str(ledger.received - ledger.processed),
        } | ({"ReconstructionMethod": self.method} if self.method else {})


def receive(connection: Connection, scan: SpiralScan, metadata: Any, prewhiten: str) -> Iterator[SpiralReadout]:
    """Yield the imaging readouts of a session, which a thread takes in ahead.

    Parameters
    ----------
    connection
        Yields them.
    scan
        What they belong to.
    metadata
        The MRD header.
    prewhiten
        Setting of that name, see `noise.prewhiten`.
    """
    scan.ledger.set_up = getattr(connection, "set_up", 0.0)  # which classes that stand for a connection may lack
    messages = noise.prewhiten(connection, metadata, prewhiten, connection.info, connection.warn, connection.dependency)
    return threaded(scan.readouts(messages), WAITING_BYTES, "receiving", weight=lambda each: each.samples.nbytes)


def send(
    connection: Connection, scan: SpiralScan, frames: Iterable[Frame], to_pixels: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Send frames, which a thread makes ahead, and tell the client how long they took.

    Parameters
    ----------
    connection
        Takes the images.
    scan
        What the frames belong to.
    frames
        Made by iterating.
    to_pixels
        Makes of a frame's complex pixels those of the image.
    """
    index = 0
    for index, frame in enumerate(threaded(frames, FRAMES_WAITING, "reconstructing"), start=1):
        if frame.brighter and isinstance(to_pixels, SeriesScale):
            to_pixels.widen(frame.pixels)
        connection.send_image(scan.image(to_pixels(frame.pixels), frame.head, index, frame.attributes(scan.ledger)))
        scan.ledger.sent(frame.arrival)
    if index == 0:
        received = scan.ledger.received
        few = "fewer usable ones than one frame of a slice takes"
        connection.warn(f"no image was made: {received} imaging readouts came, {few}")
    connection.info(scan.ledger.summary())
