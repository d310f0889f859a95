"""What the tests of the live view share: a module that gives back what it gets, and a viewer over a plain WebSocket."""

import contextlib
import json
import socket
import struct
from typing import Any

import ismrmrd
import numpy as np
from websockets.sync.client import ClientConnection, connect

from conftest import PATIENCE, Peer, make_header

# Images and texts come back; so does the error that a text asks for.
ECHO = """
import ismrmrd
def process(connection, config, metadata):
    for item in connection:
        if isinstance(item, str) and item == "fail":
            raise ValueError("on purpose")
        if isinstance(item, str):
            connection.send_text(item)
        elif isinstance(item, ismrmrd.Image):
            connection.send_image(item)
"""


def unpack(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a frame."""
    (length,) = struct.unpack_from("<I", frame)
    return json.loads(frame[4 : 4 + length]), frame[4 + length :]


def pixels_of(frame: tuple[dict[str, Any], bytes]) -> np.ndarray:
    """Values of an image's pixels [channel, z, y, x]."""
    header, numbers = frame
    stored = np.frombuffer(numbers, "<i2" if header["signed"] else "<u2").reshape(header["shape"])
    return header["offset"] + header["scale"] * stored.astype(float)


def patterned(columns: int, rows: int, number: int = 0) -> np.ndarray:
    """Pixels that tell row, column and image apart, uint16 [1, 1, row, column]."""
    return (np.arange(rows)[:, None] * 40 + np.arange(columns) * 7 + 13 * number).astype(np.uint16)[None, None] % 4096


def image_of(pixels: np.ndarray, number: int = 1, series: int = 0, stamp: int = 0, **meta: Any) -> ismrmrd.Image:
    """Image to be sent."""
    head = ismrmrd.ImageHeader()
    head.version, head.image_type = 1, ismrmrd.IMTYPE_MAGNITUDE
    head.image_index, head.image_series_index, head.acquisition_time_stamp = number, series, stamp
    head.field_of_view = (200.0, 200.0, 5.0)
    return ismrmrd.Image(head, meta=ismrmrd.Meta(meta), data=np.ascontiguousarray(pixels))


def open_scan(port: int, module: str = "echo", header: Any = None) -> Peer:
    """Begin a session."""
    from ismrmrd.serialization import ConfigFile

    peer = Peer(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
    peer.send(ConfigFile(module), header or make_header())
    return peer


class Viewer:
    """A viewer that keeps what it is told; it acknowledges frames unless it is slow."""

    def __init__(self, port: int, slow: bool = False) -> None:
        self.slow = slow
        self.sessions: dict[str, dict[str, Any]] = {}
        self.messages: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {}
        self.images: list[tuple[dict[str, Any], bytes]] = []
        self.waveforms: list[tuple[dict[str, Any], bytes]] = []
        self.identity = ""
        self._open = contextlib.ExitStack()
        address, origin = f"ws://127.0.0.1:{port}/live", f"http://127.0.0.1:{port}"
        self.socket: ClientConnection = self._open.enter_context(
            connect(address, origin=origin, open_timeout=PATIENCE, compression=None)
        )

    def watch(self, name: str) -> None:
        self.socket.send(json.dumps({"watch": name}))

    def take(self) -> None:
        """Take one message."""
        said = self.socket.recv(timeout=PATIENCE)
        if isinstance(said, bytes):
            header, numbers = unpack(said)
            (self.images if header["type"] == "image" else self.waveforms).append((header, numbers))
            if header["type"] == "image" and not self.slow:
                self.socket.send('{"got": 1}')
            return
        told = json.loads(said)
        if told["type"] == "server":
            self.identity = told["identity"]
        elif told["type"] == "sessions":
            self.sessions = {each["name"]: each for each in told["sessions"]}
        elif told["type"] == "details":
            self.messages += told.pop("messages")
            self.details |= told

    def until(self, condition: Any) -> None:
        """Take messages until a condition holds."""
        while not condition(self):
            self.take()

    def close(self) -> None:
        self._open.close()
