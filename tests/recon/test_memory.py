"""How much memory there is, by the system, by control groups of both kinds, and by a GPU."""

import pickle

import psutil
import pytest

from recon import cgroups, memory

MIB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups: `groups(lines of /proc/self/cgroup, {folder: {file: text}})`."""

    def make(own, folders):
        (tmp_path / "own").write_text(own)
        for folder, files in folders.items():
            (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (tmp_path / "fs" / folder / name).write_text(text)
        monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "own")
        monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "fs")

    return make


def unified(limit, current, cached=0):
    statistics = f"anon 1\ninactive_file {cached}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{current}\n", "memory.stat": statistics}


def test_without_limits_the_machine_counts(groups):
    groups("0::/user\n", {"user": unified("max", 5)})
    there = psutil.virtual_memory().available
    assert memory.free() == pytest.approx(there, rel=0.2)
    assert memory.usable() == pytest.approx(memory.SHARE * there, rel=0.2)


def test_the_tightest_limit_counts_and_caches_are_free(groups):
    groups("0::/a/b\n", {"a/b": unified(60 * MIB, 20 * MIB, 5 * MIB), "a": unified(50 * MIB, 30 * MIB)})
    assert memory.free() == 20 * MIB
    groups("0::/a/b\n", {"a": unified("max", 30 * MIB)})
    assert memory.free() == 45 * MIB


def test_a_container_that_sees_its_own_group_as_the_root(groups):
    groups("0::/docker/0123\n", {"": unified(40 * MIB, 30 * MIB)})
    assert memory.free() == 10 * MIB


def test_groups_of_the_first_kind(groups):
    statistics = f"inactive_file 1\ntotal_inactive_file {MIB}\n"
    files = {"memory.limit_in_bytes": f"{80 * MIB}", "memory.usage_in_bytes": f"{30 * MIB}", "memory.stat": statistics}
    groups("3:cpu,cpuacct:/x\n4:memory:/x\n0::/\n", {"memory/x": files})
    assert memory.free() == 51 * MIB


def test_a_group_that_is_over_its_limit_has_nothing(groups):
    groups("0::/\n", {"": unified(MIB, 2 * MIB)})
    assert memory.usable() == 0


def test_a_system_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "none")
    assert memory.free() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_shortage_names_the_numbers():
    error = memory.ShortageError("7 frames together", 3 * 2**30, 2**29)
    text = str(error)
    assert str(pickle.loads(pickle.dumps(error))) == text  # it may come from a worker of a cluster
    assert text.startswith("7 frames together need about 3.0 GiB of memory, and 0.5 GiB are there: choose")


def test_memory_of_a_gpu(cupy):
    assert MIB < memory.usable(0) < memory.free(0)
