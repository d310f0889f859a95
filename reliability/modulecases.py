"""Cases that are modules: they raise, hang, end the interpreter, leave threads behind, print."""

from .ground import Case, Ground, Judge, anything, closed, quiet, told
from .scripted import (
    CLOSE,
    config,
    connect,
    header,
    hold,
    readout,
    readouts_in,
    take_answer,
    waveform,
)
from .serverprocess import wait_until

# Each is the body of `process(connection, config, metadata)`, after the first item has come.
RAISING = {
    "ValueError": 'raise ValueError("on purpose")',
    "an exception in C": "import numpy; numpy.linalg.inv(numpy.zeros((2, 2)))",
    "no memory": "import numpy; numpy.empty(1 << 60)",
    "recursion": "again = lambda: again(); again()",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "SystemExit": "import sys; sys.exit()",
    "SystemExit with a text": 'import sys; sys.exit("on purpose")',
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "next(iter([]))",
    "an exception of its own": 'raise type("Own", (BaseException,), {})',
    "an exception that cannot be shown": 'raise type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})',
    "an exception with half a character": 'raise ValueError("\\ud800")',
    "an exception of 1 MiB": 'raise ValueError("x" * (1 << 20))',
    "a group of exceptions": 'raise ExceptionGroup("on purpose", [ValueError(1), TypeError(2)])',
    "an exception with a long history": (
        "error = None\nfor n in range(500):\n    new = ValueError(n); new.__cause__ = error; error = new\nraise error"
    ),
    "what cannot be sent": "connection.send_image(3)",
    "an image of another size than its header": (
        "import ismrmrd, numpy\nimage = ismrmrd.Image.from_array(numpy.zeros((4, 4)))\n"
        "image.getHead().matrix_size[0] = 9\nimage._Image__data = image.data[..., :2]\nconnection.send_image(image)"
    ),
}

LENIENT = {
    "prints": "for _ in range(2000): print('x' * 1000)",
    "prints what is no text": "print('\\ud800')",
    "prints what no terminal shows": "print('\\x00\\x1b[31m\\u2603')",
    "logs much": "import logging\nfor n in range(2000): logging.info('line %d', n)",
    "logs wrongly": "import logging; logging.info('%d %s', 'x')",
    "closes the session": "connection.send_close(); connection.send_close()",
    "takes nothing": "return",
    "takes too much": "for _ in range(9): connection.next()",
    "a thread that reads": (
        "import threading\nthreading.Thread(target=lambda: [None for _ in connection]).start()\nconnection.next()"
    ),
    "a thread that raises": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "an iterator that is left": "iterator = iter(connection); next(iterator)",
    "a file that is left open": "open(__file__); connection.open = 1",
    "changes the folder": "import os; os.chdir('/')",
    "defines what is global": "import socket; connection.marks = socket.getdefaulttimeout()",
}

BREAKING = {
    "closes the connection": "connection.close()",
    "aborts the connection": "connection.abort()",
    "closes the socket": "connection._socket.close()",
    "sends behind CLOSE": "connection.send_close(); connection.send_text('late')",
    "sends half a message": "connection._socket.sendall(b'\\xf0\\x03half')",
}

ENDING = {
    "os._exit(0)": "import os; os._exit(0)",
    "os._exit(3)": "import os; os._exit(3)",
    "os.abort": "import os; os.abort()",
    "a crash in C": "import ctypes; ctypes.string_at(0)",
    "SIGKILL to itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}

BROKEN_FILES = {
    "syntax": "def process(:",
    "nothing": "",
    "import": "import nosuchlibrary\ndef process(connection, config, metadata): pass",
    "exit": "import sys\nsys.exit(3)\ndef process(connection, config, metadata): pass",
    "raise": "raise KeyboardInterrupt\ndef process(connection, config, metadata): pass",
    "arguments": "def process(): pass",
    "generator": "def process(connection, config, metadata):\n    yield 1",
    "coroutine": "async def process(connection, config, metadata): pass",
    "name": "process = 3",
    "bytes": b"\xff\xfe\x00",
}

_HANGS = """
import pathlib, threading
def wait():
    while not pathlib.Path({path!r}).exists():
        threading.Event().wait(0.02)
def process(connection, config, metadata):
    connection.send_text("begins")
    {body}
"""


def _write(ground: Ground, name: str, source: str | bytes) -> str:
    path = ground.folder / f"{name}.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return name


def _module(ground: Ground, number: int, body: str) -> str:
    lines = "\n".join(f"    {line}" for line in ("connection.next()", *body.splitlines()))
    return _write(ground, f"fault{number}", f"def process(connection, config, metadata):\n{lines}\n")


def _session(name: str, number: int = 0) -> list[bytes]:
    data = [readout(row, session=number) for row in range(5)]
    return [config(name), header(), *data[:3], waveform(), *data[3:], CLOSE]


def _cases(ground: Ground, bodies: dict[str, str], judge: Judge, first: int) -> list[Case]:
    cases = []
    for number, (name, body) in enumerate(bodies.items(), first):
        messages = _session(_module(ground, number, body), number)
        cases.append(Case(name, b"".join(messages), readouts_in(messages), judge))
    return cases


def raising(ground: Ground) -> None:
    """Modules that raise, and files that are no modules: the client is told, and nobody else notices."""
    ground.together(_cases(ground, RAISING, told("failed"), 0))
    cases = []
    for number, (name, source) in enumerate(BROKEN_FILES.items()):
        messages = _session(_write(ground, f"broken{number}", source), number)
        # A file without a function process is no module: the default config runs, and the client is warned.
        judge = closed if name in ("nothing", "name") else told()
        cases.append(Case(f"a file with a wrong {name}", b"".join(messages), readouts_in(messages), judge))
    ground.together(cases)


def misbehaving(ground: Ground) -> None:
    """Modules that print, leave things behind, or end the session themselves."""
    ground.together(_cases(ground, LENIENT, quiet, 100))
    ground.together(_cases(ground, BREAKING, anything, 200))


def hanging(ground: Ground) -> None:
    """Modules that wait for ever: they cost their own session, and the server ends in spite of them."""
    release = ground.folder / "release"
    for name, body in {
        "hangs": "wait()",
        "leaves two threads behind": "threading.Thread(target=wait).start(); threading.Thread(target=wait).start()",
        "leaves a daemon behind": "threading.Thread(target=wait, daemon=True).start()",
    }.items():
        source = _HANGS.format(path=str(release), body=body)
        messages = _session(_write(ground, name.replace(" ", "_"), source))
        with ground.checked(name):
            _begin(ground, messages)
            problem = ground.next_client()  # while it hangs
            release.touch()
            assert not problem, problem
        release.unlink()
    messages = _session("hangs")
    for _ in range(3):  # these hang when the server is told to end
        _begin(ground, messages)
        ground.row.cases += 1
    if problem := ground.next_client():
        ground.row.fail(f"beside hanging modules: {problem}")


def _begin(ground: Ground, messages: list[bytes]) -> None:
    """Send a session, and leave it when its module runs."""
    with connect(ground.server.address) as sock:
        sock.sendall(b"".join(messages))
        if not sock.recv(1):
            raise ConnectionError("the module did not begin")
    ground.expect(readouts_in(messages))


def ending(ground: Ground) -> None:
    """Modules that end the interpreter, while another session runs.

    With ``-m`` that costs their own session. In threads it ends the server and all its sessions, as it would any
    program: what had come in is on the disk, and the server serves again after a restart.
    """
    for number, (name, body) in enumerate(ENDING.items(), 300):
        fault = _session(_module(ground, number, body), number)[:5]
        other = _session("null", 1000 + number)
        ground.row.cases += 1
        with connect(ground.server.address) as beside:
            beside.sendall(b"".join(other[:-2]))
            problem = "" if ground.has_saved(b"".join(other[:-2])) else "the session beside it was not saved at once"
            hold(ground.server.address, b"".join(fault))
            ground.expect(readouts_in(fault) + readouts_in(other if ground.processes else other[:-2]))
            if ground.processes:
                beside.sendall(b"".join(other[-2:]))
                problem = problem or quiet(take_answer(beside)) or ground.is_unwell()
            elif not wait_until(lambda: ground.server.process.poll() is not None):
                problem = "the server lives on, and the module does not"
        if problem:
            ground.row.fail(f"{name}: {problem}")
        if not ground.processes:
            ground.restart()
