import logging
import threading

import numpy as np
import pytest

from serving.debugarrays import DebugArrays


def files(folder):
    return sorted(path.name for path in folder.rglob("*.npy"))


def test_arrays_are_numbered_and_come_back_exactly(tmp_path):
    debug = DebugArrays(tmp_path / "not" / "made", "session-1")
    a, b = np.arange(6, dtype=np.complex64).reshape(2, 3), np.array(2.5)
    debug.save("kspace", a)
    debug.save("scale", b)
    debug.save("kspace", [[1, 2]])
    assert files(tmp_path) == ["0001_kspace.npy", "0002_scale.npy", "0003_kspace.npy"]
    assert debug.folder.parent == tmp_path / "not" / "made"
    assert debug.folder.name.endswith("_session-1")
    read = np.load(debug.folder / "0001_kspace.npy")
    assert read.dtype == a.dtype
    np.testing.assert_array_equal(read, a)
    np.testing.assert_array_equal(np.load(debug.folder / "0003_kspace.npy"), [[1, 2]])


def test_nothing_is_made_before_the_first_array(tmp_path):
    DebugArrays(tmp_path / "debug", "session-1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../up", "/root", "a b\n", "ü" * 500, "", "x\0y", "C:\\x"])
def test_names_stay_in_the_folder(tmp_path, name):
    debug = DebugArrays(tmp_path, name)
    debug.save(name, np.ones(2))
    (file,) = tmp_path.rglob("*.npy")
    assert file.parent.parent == tmp_path
    assert len(file.name) < 120


def test_what_cannot_be_written_is_logged_and_does_not_raise(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        DebugArrays(tmp_path / "file", "s").save("kspace", np.ones(2))
        DebugArrays(tmp_path / "ok", "s").save("objects", np.array([object()]))
        DebugArrays(tmp_path / "ok", "s").save("ragged", [[1], [1, 2]])
    assert [record.args[0] for record in caplog.records] == ["kspace", "objects", "ragged"]
    assert files(tmp_path) == []


def test_arrays_of_a_gpu_are_fetched(tmp_path):
    class OnGpu:
        __cuda_array_interface__ = {}  # noqa: RUF012

        def get(self):
            return np.arange(3)

    debug = DebugArrays(tmp_path, "s")
    debug.save("gpu", OnGpu())
    np.testing.assert_array_equal(np.load(debug.folder / "0001_gpu.npy"), [0, 1, 2])


def test_threads_get_numbers_of_their_own(tmp_path):
    debug = DebugArrays(tmp_path, "s")
    threads = [threading.Thread(target=debug.save, args=("a", np.ones(1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == [f"{number:04d}_a.npy" for number in range(1, 21)]
