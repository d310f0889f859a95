"""Fixtures and samples that the tests share.

Samples are plain functions (``from conftest import make_image``); what has to be ended is a fixture. Everything that
plays the other side of a session is made of the `ismrmrd` package alone, never of the code under test.
"""

import gc
import io
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Before NumPy is imported, here and in every program that a test starts: where others use the processor, threads of a
# matrix product wait for each other far longer than one thread needs for it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

import strict_cupy
from checked_server import checked  # noqa: F401 - fixture
from connection import Connection
from dask_cluster import dask, dask_processes  # noqa: F401 - fixtures
from mrdio.limits import Limits
from recon import nufft
from server import Server, ServerOptions
from server_process import PATIENCE, start_server_process  # noqa: F401 - PATIENCE is imported from here
from serving.converter import Converter
from serving.session import SessionOptions
from serving.summary import SessionSummary


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Escape what is no Unicode in captured output: a worker of pytest-xdist cannot send it otherwise."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


# ---- samples -------------------------------------------------------------------------------------------------------


def make_acquisition(number: int = 0, channels: int = 2, samples: int = 8, dimensions: int = 0) -> Any:
    """Readout whose content and header depend on its number; data [channels, samples]."""
    rng = np.random.default_rng([1, number])
    data = (rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))).astype(
        np.complex64
    )
    trajectory = rng.standard_normal((samples, dimensions)).astype(np.float32)
    acquisition = ismrmrd.Acquisition.from_array(
        data,
        trajectory,
        scan_counter=number,
        measurement_uid=77,
        acquisition_time_stamp=1000 + 10 * number,
        center_sample=samples // 2,
        sample_time_us=2.5,
        position=tuple(float(value) for value in rng.integers(-50, 50, 3)),
        user_int=tuple(range(number, number + 8)),
    )
    acquisition.idx.kspace_encode_step_1 = number % 65536
    acquisition.idx.user[7] = 7
    acquisition.setFlag(ismrmrd.ACQ_USER8)
    return acquisition


def make_waveform(number: int = 0, channels: int = 3, samples: int = 5, time: int | None = None) -> Any:
    """Waveform whose content depends on its number; data [channels, samples]."""
    rng = np.random.default_rng([2, number])
    return ismrmrd.Waveform.from_array(
        rng.integers(0, 2**32, (channels, samples), dtype=np.uint32),
        scan_counter=number,
        time_stamp=1000 + 10 * number if time is None else time,
        waveform_id=number % 16,
        sample_time_us=400.0,
    )


def make_image(
    number: int = 0,
    shape: tuple[int, int, int, int] = (1, 1, 6, 5),
    dtype: Any = np.float32,
    series: int = 0,
    meta: dict[str, Any] | None = None,
) -> Any:
    """Image whose content depends on its number; data [channels, z, y, x]."""
    rng = np.random.default_rng([3, number])
    dtype = np.dtype(dtype)
    pixels = rng.integers(0, 200, shape) + (1j * rng.integers(0, 200, shape) if dtype.kind == "c" else 0)
    head = ismrmrd.ImageHeader()
    head.version = 1
    head.image_index = number
    head.image_series_index = series
    head.image_type = ismrmrd.IMTYPE_COMPLEX if dtype.kind == "c" else ismrmrd.IMTYPE_MAGNITUDE
    head.field_of_view = (200.0, 240.0, 5.0)
    head.measurement_uid = 77
    as_platform_integer = pixels.astype(np.int64 if dtype == np.int32 else dtype)
    image = ismrmrd.Image(head, meta=ismrmrd.Meta(meta or {}), data=as_platform_integer)
    # The package takes the 32-bit integers of the format to be those of the platform, so they are put right here.
    image._Image__data = pixels.astype(dtype)
    return image


def make_header(protocol: str = "localizer", matrix: int = 8) -> ismrmrd.xsd.ismrmrdHeader:
    """Valid MRD header of a square Cartesian scan."""
    xsd = ismrmrd.xsd
    space = xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=matrix, y=matrix, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=200.0, y=200.0, z=5.0),
    )
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_1=xsd.limitType(minimum=0, maximum=matrix - 1, center=matrix // 2)
    )
    return xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_500_000),
        measurementInformation=xsd.measurementInformationType(
            protocolName=protocol, patientPosition=xsd.patientPositionType.HFS
        ),
        encoding=[
            xsd.encodingType(
                encodedSpace=space, reconSpace=space, encodingLimits=limits, trajectory=xsd.trajectoryType.CARTESIAN
            )
        ],
    )


def header_xml(protocol: str = "localizer", matrix: int = 8) -> str:
    """XML of `make_header`, as the `ismrmrd` package writes it."""
    return ismrmrd.xsd.ToXML(make_header(protocol, matrix))


def bytes_of(*items: Any, close: bool = False) -> bytes:
    """Bytes of messages as the `ismrmrd` package serialises them (``ConfigFile``, ``ConfigText``, headers, data)."""
    stream = io.BytesIO()
    serializer = ProtocolSerializer(stream)
    for item in items:
        serializer.serialize(item)
    if close:
        serializer.close()
    return stream.getvalue()


def write_mrd_file(path: Path, items: Iterable[Any] = (), group: str = "dataset", xml: str | None = None) -> Path:
    """MRD .h5 written one item at a time by ``ismrmrd.Dataset``, images into ``image_<series>``; returns the path."""
    with ismrmrd.Dataset(path, group, mode="a") as dataset:
        dataset._file.require_group(group)
        if xml is not None:
            dataset.write_xml_header(xml)
        for item in items:
            if isinstance(item, ismrmrd.Acquisition):
                dataset.append_acquisition(item)
            elif isinstance(item, ismrmrd.Waveform):
                dataset.append_waveform(item)
            else:
                dataset.append_image(f"image_{item.image_series_index}", item)
    return path


def write_module(folder: Path, name: str, source: str) -> Path:
    """Write ``<name>.py`` into a folder; returns its path."""
    path = folder / f"{name}.py"
    path.write_text(source, "utf-8")
    return path


# ---- leaks ---------------------------------------------------------------------------------------------------------


def pytest_collection_finish() -> None:
    """Set aside what is there before the first test, modules and tests: `no_leaks` would go through it every time."""
    gc.collect()
    gc.freeze()


def open_sockets() -> set[str]:
    """Sockets that this process has open (empty where the system does not tell)."""
    folder = Path("/proc/self/fd")
    found = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            target = os.readlink(entry)  # noqa: PTH115 -- socket:[123] is no path
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith("socket:"):
            found.add(target)
    return found


def join_threads_except(before: set[threading.Thread]) -> list[threading.Thread]:
    """Wait for threads that were started since; returns those that did not end."""
    started = [thread for thread in threading.enumerate() if thread not in before]
    for thread in started:
        thread.join(PATIENCE)
    return [thread for thread in started if thread.is_alive()]


@pytest.fixture(params=["strict", pytest.param("real", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy's stand-in (`strict_cupy`), and CuPy itself: that skips where it, or a GPU, is missing."""
    if request.param == "strict":
        for name, module in strict_cupy.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    module = pytest.importorskip("cupy")
    try:
        nufft.open_backend(0)
    except nufft.GpuUnavailableError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail when the test, with all fixtures that use this one, leaves a thread or a socket behind."""
    threads = set(threading.enumerate())
    sockets = open_sockets()
    yield
    left = join_threads_except(threads)
    assert not left, f"threads are left: {left}"
    gc.collect()  # a forgotten socket gives its ResourceWarning, which is an error here, in this test
    assert open_sockets() <= sockets, "sockets are left"


@pytest.fixture
def converter(no_leaks: None) -> Iterator[Converter]:
    """Converter of recordings with its own process, ended at the end: ``Recorder(folder, name, convert=...)``."""
    running = Converter()
    running.start()
    yield running
    running.stop()


# ---- our server ----------------------------------------------------------------------------------------------------


@dataclass
class RunningServer:
    """A server in a thread."""

    server: Server
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.server.serve, name="server under test")
        self.thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return self.server.address

    @property
    def port(self) -> int:
        return self.server.address[1]

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(PATIENCE + 10)
        assert not self.thread.is_alive(), "the server has not stopped"


StartServer = Callable[..., RunningServer]


@pytest.fixture
def server(tmp_path: Path, no_leaks: None) -> Iterator[StartServer]:
    """Start a server: ``server(module_folders=(folder,), save_data=True, server_options={"grace": 0.1})``.

    Keywords are those of `SessionOptions`, ``timeout``, which goes into its limits, and ``ended`` and ``view`` as for
    `Server`.
    Recordings go to ``tmp_path / "saved"`` and the default config is ``null`` unless they say otherwise. At the end
    each server is stopped and joined, and neither a thread, nor a socket, nor an unfinished recording may be left.
    """
    running: list[RunningServer] = []
    folders = {tmp_path}

    def start(
        *,
        server_options: dict[str, Any] | None = None,
        limits: Limits | None = None,
        timeout: float = PATIENCE,
        ended: Callable[[SessionSummary], object] = lambda summary: None,
        view: Any = None,
        **session_options: Any,
    ) -> RunningServer:
        session = {"default_config": "null", "save_folder": tmp_path / "saved"} | session_options
        session["limits"] = replace(limits or Limits(), timeout=timeout)
        options = {"port": 0, "grace": PATIENCE} | (server_options or {})
        folders.add(session["save_folder"])
        running.append(RunningServer(Server(ServerOptions(session=SessionOptions(**session), **options), ended, view)))
        return running[-1]

    yield start
    for each in running:
        each.stop()
    unfinished = [path for folder in folders for pattern in ("*.mrdpart", "*.h5part") for path in folder.glob(pattern)]
    assert not unfinished, f"unfinished recordings are left: {unfinished}"


# ---- a client that is not ours -------------------------------------------------------------------------------------


class Peer:
    """The other side of a session, made of the `ismrmrd` package over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.reader = sock.makefile("rb")
        self.writer = sock.makefile("wb")
        self._serializer = ProtocolSerializer(self.writer)

    def send(self, *items: Any) -> None:
        """Send ``ConfigFile``, ``ConfigText``, headers, texts and data."""
        for item in items:
            self._serializer.serialize(item)
        self.writer.flush()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        self.writer.flush()

    def send_close(self) -> None:
        """Send CLOSE."""
        self._serializer.close()

    def receive(self) -> list[Any]:
        """Take everything up to CLOSE; EOFError when it does not come."""
        return list(ProtocolDeserializer(self.reader).deserialize())

    def is_at_end(self) -> bool:
        """Whether the other side has ended the connection, with nothing left to read."""
        return self.reader.read(1) == b""

    def close(self) -> None:
        """Close the socket."""
        for part in (self.reader, self.writer, self.sock):
            try:
                part.close()
            except OSError:
                continue  # what could not be flushed any more


@pytest.fixture
def connect(no_leaks: None) -> Iterator[Callable[[tuple[str, int]], Peer]]:
    """Connect a `Peer` to an address; closed at the end (before a server that the test names after it is stopped)."""
    peers: list[Peer] = []

    def open_peer(address: tuple[str, int]) -> Peer:
        peers.append(Peer(socket.create_connection(address, timeout=PATIENCE)))
        return peers[-1]

    yield open_peer
    for peer in peers:
        peer.close()


@pytest.fixture
def in_thread(no_leaks: None) -> Iterator[Callable[..., "Running"]]:
    """Run a function in a thread: ``in_thread(function, *arguments).result()``; joined at the end."""
    started: list[Running] = []

    def start(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Running:
        started.append(Running(function, arguments, keywords))
        return started[-1]

    yield start
    for running in started:
        running.thread.join(PATIENCE)
        assert not running.thread.is_alive(), f"{running.thread.name} still runs"


class Running:
    """A function that runs in a thread, and what comes of it."""

    def __init__(self, function: Callable[..., Any], arguments: tuple, keywords: dict[str, Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._value = function(*arguments, **keywords)
            except BaseException as error:  # noqa: BLE001 -- raised again by result()
                self._error = error

        self.thread = threading.Thread(target=run, name=getattr(function, "__name__", "function"), daemon=True)
        self.thread.start()

    def result(self, timeout: float = PATIENCE) -> Any:
        """Value of the function, or the exception that it raised."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"{self.thread.name} has not ended within {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._value


# ---- a connection and its peer -------------------------------------------------------------------------------------


class WatchedSocket:
    """A socket that tells when somebody is about to wait in it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.receiving = threading.Event()
        self.sending = threading.Event()
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recv_into(self, buffer: Any) -> int:
        self.receiving.set()
        return self._socket.recv_into(buffer)

    def sendmsg(self, buffers: list) -> int:
        self.writes += 1
        self.sending.set()
        return self._socket.sendmsg(buffers)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


Pair = tuple[Connection, Peer]


@pytest.fixture
def pair(no_leaks) -> Iterator[Callable[..., Pair]]:
    """Connection under test and its peer: ``pair(timeout=..., limits=..., tcp=True)``."""
    opened: list[Any] = []

    def open_pair(timeout: float = PATIENCE, limits: Limits | None = None, tcp: bool = False) -> Pair:
        ours, theirs = tcp_pair() if tcp else socket.socketpair()
        ours.settimeout(timeout)
        opened.extend([Connection(WatchedSocket(ours), limits), Peer(theirs)])
        return opened[-2], opened[-1]

    yield open_pair
    for side in opened:
        side.close()


def watched(connection: Connection) -> WatchedSocket:
    return connection._socket


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE)
