"""Modules that raise, print, hang, end the interpreter or leave threads behind; and files that are no modules."""

import pytest

from checked_server import Case, session
from scripted import anything, closed, connect, hold, quiet, readouts_in, take_answer, told
from server_process import wait_until

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
HANGING = {
    "hangs": "wait()",
    "leaves two threads behind": "threading.Thread(target=wait).start(); threading.Thread(target=wait).start()",
    "leaves a daemon behind": "threading.Thread(target=wait, daemon=True).start()",
}


def _source(body):
    lines = "\n".join(f"    {line}" for line in ("connection.next()", *body.splitlines()))
    return f"def process(connection, config, metadata):\n{lines}\n"


# Name: source of the module, and judge. A file without a function process is no module: the default config runs, and
# the client is warned.
CASES = {
    **{name: (_source(body), told("failed")) for name, body in RAISING.items()},
    **{f"a file with a wrong {name}": (source, closed if name in ("nothing", "name") else told())
       for name, source in BROKEN_FILES.items()},
    **{name: (_source(body), quiet) for name, body in LENIENT.items()},
    **{name: (_source(body), anything) for name, body in BREAKING.items()},
}  # fmt: skip


def _write(checked, name, source):
    (checked.folder / f"{name}.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    return name


@pytest.fixture(scope="module")
def problems(checked):
    cases = {}
    for number, (name, (source, judge)) in enumerate(CASES.items()):
        messages = session(_write(checked, f"fault{number}", source), number)
        cases[name] = Case(b"".join(messages), readouts_in(messages), judge)
    return checked.run(cases)


@pytest.mark.parametrize("name", CASES)
def test_misbehaving_module(name, problems):
    assert not problems[name]


def _begin(checked, messages):
    """Send a session, and leave it when its module runs."""
    with connect(checked.address) as sock:
        sock.sendall(b"".join(messages))
        assert sock.recv(1), "the module did not begin"
    checked.expect(readouts_in(messages))


@pytest.mark.parametrize("name", HANGING)
def test_hanging_module_costs_its_own_session(checked, name):
    release = checked.folder / "release"
    _begin(checked, session(_write(checked, "hangs", _HANGS.format(path=str(release), body=HANGING[name]))))
    checked.serve_next()  # while it hangs
    release.touch()
    checked.check()
    release.unlink()


@pytest.mark.parametrize("name", ENDING)
def test_module_that_ends_the_interpreter(checked, name):
    """With ``-m`` that costs its own session. In threads it ends the server and all its sessions, as it would any
    program: what had come in is on the disk, and the server serves again after a restart.
    """
    number = 300 + list(ENDING).index(name)
    fault = session(_write(checked, f"fault{number}", _source(ENDING[name])), number)[:5]
    other = session("null", 1000 + number)
    with connect(checked.address) as beside:
        beside.sendall(b"".join(other[:-2]))
        assert checked.has_saved(b"".join(other[:-2])), "the session beside it was not saved at once"
        hold(checked.address, b"".join(fault))
        checked.expect(readouts_in(fault) + readouts_in(other if checked.processes else other[:-2]))
        if checked.processes:
            beside.sendall(b"".join(other[-2:]))
            assert not quiet(take_answer(beside))
            checked.check()
        else:
            assert wait_until(lambda: checked.server.process.poll() is not None), "the server lives on"
            checked.restart()


def test_server_ends_although_modules_hang(checked):
    """They hang when it is told to stop; the fixture checks that it does."""
    hanging = _write(checked, "hangs_to_the_end", _HANGS.format(path=str(checked.folder / "never"), body="wait()"))
    for number in range(3):
        _begin(checked, session(hanging, 2000 + number))
    checked.serve_next()
