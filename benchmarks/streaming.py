"""Streaming: reading files, taking in readouts, saving them, sending while receiving, starting.

    python benchmarks/streaming.py

Each row is measured next to what it is compared with, in turn, several times; medians are printed.
"""

import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ismrmrd
import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from connection import Connection
from constants import MessageId
from mrdio.codec import encode
from mrdio.mrdfile import MrdReader, MrdWriter

ROUNDS = 7
READOUTS = 32_768
CHANNELS, SAMPLES = 8, 512


def message_bytes(identifier: MessageId, content: object = None) -> bytes:
    """Bytes of one message."""
    return b"".join(bytes(part) for part in encode(identifier, content))


READOUT = message_bytes(
    MessageId.ISMRMRD_ACQUISITION, ismrmrd.Acquisition.from_array(np.ones((CHANNELS, SAMPLES), np.complex64))
)
VOLUME = len(READOUT) * READOUTS


def send_scan(port: int) -> float:
    """Send a scan from a process of its own and wait for the answer to its CLOSE; returns the time [s]."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(message_bytes(MessageId.CONFIG_FILE, "null"))
    sock.sendall(message_bytes(MessageId.METADATA_XML_TEXT, "no header"))
    block = READOUT * 32
    start = time.perf_counter()
    if (child := os.fork()) == 0:
        for _ in range(READOUTS // 32):
            sock.sendall(block)
        sock.sendall(message_bytes(MessageId.CLOSE))
        os._exit(0)
    answer = sock.recv(2)
    elapsed = time.perf_counter() - start
    if answer != message_bytes(MessageId.CLOSE):
        raise RuntimeError(f"the server answered {answer!r}")
    os.waitpid(child, 0)
    sock.close()
    return elapsed


def copy_over_loopback() -> float:
    """Time to receive the same bytes and drop them [s]."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if (child := os.fork()) == 0:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                block = READOUT * 32
                for _ in range(READOUTS // 32):
                    sock.sendall(block)
            os._exit(0)
        sock, _ = listener.accept()
        buffer = bytearray(1 << 20)
        start = time.perf_counter()
        while sock.recv_into(buffer):
            pass
        elapsed = time.perf_counter() - start
        sock.close()
        os.waitpid(child, 0)
        return elapsed


@contextmanager
def running_server(*arguments: str, folder: Path | None = None) -> Iterator[tuple[int, subprocess.Popen]]:
    """Run `main.py`; yields its port and its process."""
    command = [sys.executable, str(PROJECT / "main.py"), "-p", "0", "-d", "null", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    for line in process.stdout:
        if found := re.search(r"Listening on \S+:(\d+)", line):
            break
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        yield int(found[1]), process
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def ingest() -> list[str]:
    """Server against a loopback copy, and saving against not saving."""
    copies, plain, saving = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server() as (port, _),
        running_server("-s", "-S", folder) as (saving_port, _),
    ):
        for _ in range(ROUNDS):
            copies.append(copy_over_loopback())
            plain.append(send_scan(port))
            saving.append(send_scan(saving_port))
            wait_until_saved(Path(folder))
    rows = []
    for name, times, reference, against in (
        ("server takes readouts in, `null`", plain, copies, "loopback copy"),
        ("the same, saving them", saving, plain, "not saving"),
    ):
        rate = VOLUME / statistics.median(times) / 1e9
        ratio = statistics.median(one / other for one, other in zip(reference, times, strict=True))
        rows.append(row(name, f"{rate:.2f} GB/s, {READOUTS / statistics.median(times):.0f} readouts/s", ratio, against))
    loopback = VOLUME / statistics.median(copies) / 1e9
    return [row("loopback copy", f"{loopback:.2f} GB/s", 1, "itself"), *rows]


def wait_until_saved(folder: Path) -> None:
    """Wait until the recording has become an MRD file, which would disturb the next round; then remove it."""
    while not list(folder.glob("*.h5")) or list(folder.glob("*part")):
        time.sleep(0.05)
    for path in folder.glob("*.h5"):
        path.unlink()


def row(name: str, figure: str, ratio: float, against: str) -> str:
    """One line of the table."""
    return f"| {name} | {figure} | {ratio:.2f} x {against} |"


def reading() -> list[str]:
    """The client's reader against one call per readout."""
    count = 2048
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.h5"
        data = np.ones((8, 1510), np.complex64)
        with MrdWriter(path) as writer:
            for number in range(count):
                writer.write(ismrmrd.Acquisition.from_array(data, scan_counter=number))
        one_by_one, sliced = [], []
        for _ in range(3):
            with ismrmrd.Dataset(path, "dataset", mode="r") as dataset:
                sample = 100
                start = time.perf_counter()
                for number in range(sample):
                    dataset.read_acquisition(number)
                one_by_one.append(sample / (time.perf_counter() - start))
            with MrdReader(path) as reader:
                start = time.perf_counter()
                for _ in reader.acquisitions():
                    pass
                sliced.append(count / (time.perf_counter() - start))
    ratio = statistics.median(one / other for one, other in zip(sliced, one_by_one, strict=True))
    return [row("client reads HDF5 (8 x 1510)", f"{statistics.median(sliced):.0f} readouts/s", ratio, "Dataset")]


def sending_while_waiting() -> list[str]:
    """Time that sending takes while another thread waits for data in the same connection."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    waiting = threading.Thread(target=lambda: list(connection), daemon=True)
    waiting.start()
    image = ismrmrd.Image.from_array(np.zeros((128, 128), np.int16))
    receiving = drain(theirs)
    times = [timed(lambda: connection.send_image(image)) for _ in range(200)]
    theirs.sendall(message_bytes(MessageId.CLOSE))
    waiting.join()
    ours.close()
    receiving.join()
    theirs.close()
    times.sort()
    figure = f"median {times[100] * 1e3:.3f} ms, p99 {times[198] * 1e3:.3f} ms"
    return [f"| sending 128 x 128 while a thread waits in a read | {figure} | limit 1 ms |"]


def drain(sock: socket.socket) -> threading.Thread:
    """Read and drop in a thread."""
    thread = threading.Thread(target=lambda: [None for _ in iter(lambda: sock.recv(1 << 20), b"")], daemon=True)
    thread.start()
    return thread


def timed(call: Callable[[], object]) -> float:
    """Time of one call [s]."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def starting() -> list[str]:
    """Time from start to listening."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with running_server():
            times.append(time.perf_counter() - start)
    imports = [timed(lambda: subprocess.run([sys.executable, "-c", "import ismrmrd"], check=True)) for _ in range(5)]
    listening = statistics.median(times)
    return [row("start to listening", f"{listening:.2f} s", listening / statistics.median(imports), "import ismrmrd")]


def deserialising() -> list[str]:
    """Readouts taken apart in memory, against the ismrmrd package."""
    from mrdio.codec import read_messages

    count = 4096
    content = READOUT * count
    ours, theirs = [], []
    for _ in range(3):
        ours.append(timed(lambda: sum(1 for _ in read_messages(io.BufferedReader(io.BytesIO(content), 1 << 20)))))
        stream = io.BytesIO(content)

        def take(stream: io.BytesIO = stream) -> None:
            for _ in range(count):
                stream.read(2)
                ismrmrd.Acquisition.deserialize_from(stream.read)

        theirs.append(timed(take))
    ratio = statistics.median(one / other for one, other in zip(theirs, ours, strict=True))
    return [row("readouts from bytes", f"{count / statistics.median(ours):.0f} /s", ratio, "ismrmrd package")]


def main() -> None:
    """Print the table."""
    print("| work | figure | ratio |\n| --- | --- | --- |")
    for measure in (reading, deserialising, ingest, sending_while_waiting, starting):
        for line in measure():
            print(line, flush=True)


if __name__ == "__main__":
    main()
