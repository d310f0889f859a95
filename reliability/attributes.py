"""Time that a scan takes while other clients send images with as many attributes as the limit allows.

    python reliability/attributes.py --clients 32

The scan: 256 Cartesian readouts to ``simplefft``. The other clients send images of one pixel with 4 MiB of attributes,
without pause, to the module ``null`` of the same server, in threads.
"""

import argparse
import contextlib
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reliability.scripted import CLOSE, config, header, image, readout, take_answer
from reliability.serverprocess import ServerProcess

READOUTS = 256
LENGTH_AT = struct.calcsize("<H") + 198  # of an image's attributes, in its message


def heavy_image(size: int = 4 << 20) -> bytes:
    """IMAGE message with so many bytes of attributes, each as short as can be."""
    plain = image()
    (length,) = struct.unpack_from("<Q", plain, LENGTH_AT)
    frame = b"<ismrmrdMeta>", b"</ismrmrdMeta>"
    one = b"<meta><name>n%05d</name><value>1</value></meta>"
    count = (size - len(b"".join(frame))) // len(one % 0)
    attributes = b"".join([frame[0], *(one % (n % 100_000) for n in range(count)), frame[1]])
    return plain[:LENGTH_AT] + struct.pack("<Q", len(attributes)) + attributes + plain[LENGTH_AT + 8 + length :]


def scan(address: tuple[str, int]) -> float:
    """Send the scan and take its image; returns how long that took [s]."""
    begin = time.monotonic()
    with socket.create_connection(address) as sock:
        sock.sendall(config("simplefft") + header(READOUTS, 64))
        for number in range(READOUTS):
            sock.sendall(readout(number, 4, 64))
        sock.sendall(CLOSE)
        take_answer(sock)
    return time.monotonic() - begin


def press(address: tuple[str, int], block: bytes, stopped: threading.Event) -> None:
    """Send the image again and again."""
    with contextlib.suppress(OSError), socket.create_connection(address) as sock:
        sock.sendall(config("null") + header())
        while not stopped.is_set():
            sock.sendall(block)


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32, help="clients that send the images")
    parser.add_argument("--scans", type=int, default=3, help="how often the scan is timed")
    parser.add_argument("--size", type=int, default=4 << 20, help="bytes of attributes of an image")
    arguments = parser.parse_args()
    block, stopped = heavy_image(arguments.size), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder))
        try:
            scan(server.address)
            alone = [scan(server.address) for _ in range(arguments.scans)]
            others = [threading.Thread(target=press, args=(server.address, block, stopped), daemon=True)
                      for _ in range(arguments.clients)]  # fmt: skip
            for other in others:
                other.start()
            time.sleep(2)
            beside = [scan(server.address) for _ in range(arguments.scans)]
        finally:
            stopped.set()
            server.end_all()
    print(f"scan alone: {statistics.median(alone):.2f} s")
    print(f"beside {arguments.clients} clients with {arguments.size} bytes of attributes an image: "
          f"{statistics.median(beside):.2f} s ({min(beside):.2f} to {max(beside):.2f})")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
