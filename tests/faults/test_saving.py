"""What comes in cannot be saved: the client is told, and its session goes on."""

import contextlib
import resource
import shutil

import pytest

from scripted import CLOSE, config, connect, header, hold, quiet, readout, readouts_in, take_answer, told

_COUNTING = """
def process(connection, config, metadata):
    connection.send_text(f"received {sum(1 for _ in connection)}")
"""
LARGEST_FILE = 200_000  # when the disk is as good as full [bytes]


def _session(checked, name, count, session):
    (checked.folder / "counting.py").write_text(_COUNTING)
    return [config(name), header(), *(readout(n, 4, 256, session=session) for n in range(count)), CLOSE]


def _assert_told(answer, count, *words):
    assert not told(*words)(answer)
    assert f"received {count}" in answer.texts


@contextlib.contextmanager
def _away(checked):
    """The folder of the recordings is gone; what lies there then comes to what was there before."""
    away = checked.saved.with_name("away")
    checked.saved.rename(away)
    yield
    checked.saved.mkdir(exist_ok=True)
    shutil.copytree(away, checked.saved, dirs_exist_ok=True)
    shutil.rmtree(away)


def test_disk_that_is_full(checked):
    messages = _session(checked, "counting", 60, 1)
    processes = checked.server.tree()
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    answer = hold(checked.address, b"".join(messages))
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _assert_told(answer, 60, "no longer being saved", str(checked.saved))
    checked.expect(readouts_in(messages, LARGEST_FILE))
    checked.check()


def test_folder_that_vanishes_during_the_session(checked):
    messages = _session(checked, "counting", 20, 2)
    with connect(checked.address) as sock:
        sock.sendall(b"".join(messages[:10]))
        assert checked.has_saved(b"".join(messages[:10])), "not saved at once"
        with _away(checked):
            sock.sendall(b"".join(messages[10:]))
            _assert_told(take_answer(sock), 20, "no longer being saved", str(checked.saved))
    checked.expect(readouts_in(messages[:10]))  # they are where the folder is now
    checked.check()


def test_folder_that_vanishes_between_sessions(checked):
    messages = _session(checked, "counting", 20, 3)
    with _away(checked):
        assert not quiet(hold(checked.address, b"".join(messages)))
    checked.expect(readouts_in(messages))
    checked.check()


@pytest.mark.parametrize("obstacle", ["a file", "a folder that nobody can write"])
def test_folder_that_cannot_be_made(checked, obstacle):
    with _away(checked):
        if obstacle == "a file":
            checked.saved.write_text("in the way")
        else:
            checked.saved.symlink_to("/proc/self", target_is_directory=True)
        answer = hold(checked.address, b"".join(_session(checked, "counting", 20, 4)))
        refused = hold(checked.address, b"".join(_session(checked, "savedataonly", 20, 4)))
        checked.saved.unlink()
    _assert_told(answer, 20, "cannot be saved", str(checked.saved))
    assert not told("cannot be saved")(refused)
    checked.check()
