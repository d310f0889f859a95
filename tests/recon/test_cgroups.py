"""Control groups as files of either version."""

import pytest

from recon import cgroups
from recon.cgroups import memory_of_groups


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Make a system of files: ``system("0::/a/b", {"a/memory.max": "100"})``."""
    root = tmp_path / "cgroup"
    monkeypatch.setattr(cgroups, "CGROUPS", root)
    monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "own")

    def make(own, files):
        (tmp_path / "own").write_text(own + "\n")
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return list(memory_of_groups())

    return make


def test_second_version_with_groups_above(system):
    files = {
        "a/b/memory.max": "1000", "a/b/memory.current": "300", "a/b/memory.stat": "anon 1\ninactive_file 100\n",
        "a/memory.max": "max", "a/memory.current": "400", "a/memory.stat": "inactive_file 0\n",
        "memory.max": "5000", "memory.current": "900", "memory.stat": "anon 1\n",
    }  # fmt: skip
    assert system("0::/a/b", files) == [(1000, 200), (5000, 900)]


def test_first_version(system):
    files = {
        "memory/x/memory.limit_in_bytes": "700", "memory/x/memory.usage_in_bytes": "50",
        "memory/x/memory.stat": "total_inactive_file 20\ninactive_file 10\n",
    }  # fmt: skip
    assert system("9:name=systemd:/\n4:cpu,memory:/x\n0::/", files) == [(700, 30)]


def test_container_that_sees_the_path_of_its_host(system):
    files = {"memory.max": "800", "memory.current": "8", "memory.stat": ""}
    assert system("0::/docker/0123", files) == [(800, 8)]


def test_path_that_leads_out_reads_nothing_there(system):
    assert system("0::/../../etc", {}) == []


def test_system_without_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "nothing")
    assert list(memory_of_groups()) == []
