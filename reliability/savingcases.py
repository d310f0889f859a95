"""Cases in which what comes in cannot be saved: the client is told, and its session goes on."""

import contextlib
import resource
import shutil
from collections.abc import Iterator

from .ground import Ground, quiet, told
from .scripted import CLOSE, Answer, config, connect, header, hold, readout, readouts_in, take_answer

_COUNTING = """
def process(connection, config, metadata):
    connection.send_text(f"received {sum(1 for _ in connection)}")
"""

_LARGEST_FILE = 200_000  # [bytes], when the disk is as good as full


def _session(name: str, count: int, session: int) -> list[bytes]:
    return [config(name), header(), *(readout(n, 4, 256, session=session) for n in range(count)), CLOSE]


def _problem(answer: Answer, count: int, *words: str) -> str:
    """Faults of the answer to a session that could not be saved."""
    said = "\n".join(answer.errors)
    good = answer.closed and f"received {count}" in answer.texts and all(word in said for word in words)
    return "" if good else f"answered with {answer}"


def saving(ground: Ground) -> None:
    """A disk that fills up, a folder that vanishes before and during a session, and one that cannot be made."""
    (ground.folder / "counting.py").write_text(_COUNTING)
    saved = ground.server.saved
    away = saved.with_name("away")

    with ground.checked("a disk that is full"), _largest_file(ground, _LARGEST_FILE):
        messages = _session("counting", 60, 1)
        problem = _problem(hold(ground.server.address, b"".join(messages)), 60, "no longer being saved", str(saved))
        assert not problem, problem
        ground.expect(readouts_in(messages, _LARGEST_FILE))

    with ground.checked("a folder that vanishes during the session"):
        messages = _session("counting", 20, 2)
        with connect(ground.server.address) as sock:
            sock.sendall(b"".join(messages[:10]))
            assert ground.has_saved(b"".join(messages[:10])), "not saved at once"
            saved.rename(away)
            sock.sendall(b"".join(messages[10:]))
            problem = _problem(take_answer(sock), 20, "no longer being saved", str(saved))
            assert not problem, problem
        ground.expect(readouts_in(messages[:10]))  # they are where the folder is now

    shutil.copytree(away, saved, dirs_exist_ok=True)
    shutil.rmtree(away)
    with ground.checked("a folder that vanishes between sessions"):
        saved.rename(away)
        messages = _session("counting", 20, 3)
        problem = quiet(hold(ground.server.address, b"".join(messages)))
        assert not problem, problem
        ground.expect(readouts_in(messages))
    shutil.copytree(away, saved, dirs_exist_ok=True)
    shutil.rmtree(away)

    for name, spoil in (
        ("a file where the folder should be", lambda: saved.write_text("in the way")),
        ("a folder that nobody can write", lambda: saved.symlink_to("/proc/self", target_is_directory=True)),
    ):
        saved.rename(away)
        spoil()
        messages = _session("counting", 20, 4)
        ground.row.cases += 2
        problem = _problem(hold(ground.server.address, b"".join(messages)), 20, "cannot be saved", str(saved))
        refused = told("cannot be saved")(hold(ground.server.address, b"".join(_session("savedataonly", 20, 4))))
        saved.unlink()
        away.rename(saved)
        for said in (problem, refused):
            if said:
                ground.row.fail(f"{name}: {said}")
        with ground.checked(name, 0):
            pass


@contextlib.contextmanager
def _largest_file(ground: Ground, size: int) -> Iterator[None]:
    """Let no file of the server and of its sessions grow beyond a size."""
    processes = ground.server.tree()
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for process in processes:
            process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
