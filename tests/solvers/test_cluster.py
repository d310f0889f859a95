"""Parts of a reconstruction in this process and on a real Dask scheduler with real workers, some of which die."""

import re
import sys
import time

import pytest

import cluster_parts
from dask_cluster import kill
from solvers import cluster


def ignore(text, left=None, number=None):
    pass


def test_parts_run_here_in_order():
    reports = []

    def report(text, left=None, number=None):
        reports.append((text, left, number))

    assert list(cluster.run(cluster_parts.square, iter([3, 1, 2]), report)) == [9, 1, 4]
    assert reports == [("squaring 3", 1.5, 1), ("squaring 1", 1.5, 2), ("squaring 2", 1.5, 3)]


def test_parts_are_taken_as_they_are_needed_here():
    taken = []

    def parts():
        for part in range(3):
            taken.append(part)
            yield part

    results = cluster.run(cluster_parts.square, parts(), ignore)
    assert next(results) == 0
    assert taken == [0]


def test_what_reporting_raises_ends_the_work_here():
    def gone(text, left=None, number=None):
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="gone"):
        list(cluster.run(cluster_parts.square, [1], gone))


def test_two_workers_give_results_in_order(dask):
    dask.workers(2)
    reports = []

    def report(text, left, number):
        if "squaring" in text:
            reports.append((re.sub(r"on tcp://127.0.0.1:\d+: ", "", text), left, number))

    results = cluster.run(cluster_parts.square, iter(range(20)), report, dask.address)
    assert list(results) == [part * part for part in range(20)]
    assert reports
    for text, left, number in reports:
        assert (text, left) == (f"squaring {number - 1}", 1.5)


def test_a_worker_killed_in_the_middle_is_replaced(dask, tmp_path):
    workers = dask.workers(2)
    go = tmp_path / "go"
    seen = []

    def kill_the_first(text, left, number):
        if (found := re.search(r"process (\d+)", text)) is None:
            return
        seen.append(int(found[1]))
        if len(seen) == 1:
            kill(workers[seen[0]])
            go.touch()

    results = list(cluster.run(cluster_parts.wait_for_file, [go] * 3, kill_the_first, dask.address))
    (survivor,) = set(workers) - {seen[0]}
    assert results == [survivor] * 3


def test_what_a_part_raises_comes_back(dask):
    dask.workers(1)
    with pytest.raises(ValueError, match="the heart cannot be done"):
        list(cluster.run(cluster_parts.fail, ["the heart"], ignore, dask.address))


def test_what_reporting_raises_ends_the_work_on_the_worker(dask, tmp_path):
    dask.workers(1)
    never = tmp_path / "never"

    def gone(text, left, number):
        if "waiting" in text:
            raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="gone"):
        list(cluster.run(cluster_parts.wait_for_file, [never], gone, dask.address))
    deadline = time.monotonic() + 10
    ended = never.with_suffix(".ended")
    while not (ended.exists() and ended.read_text()):
        assert time.monotonic() < deadline, "the part goes on"
        time.sleep(0.02)
    assert "cancelled" in ended.read_text()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch, no_leaks):
    monkeypatch.setattr(cluster, "CONNECT_WAIT", 0.5)
    with pytest.raises(cluster.ClusterError, match=r'scheduler = "tcp://127.0.0.1:9" does not answer.*leave the key'):
        list(cluster.run(cluster_parts.square, [1], ignore, "tcp://127.0.0.1:9"))


@pytest.mark.parametrize("address", ["127.0.0.1:notaport", "nonsense://127.0.0.1:9", "tcp://", "]["])
def test_an_address_that_is_none_is_named(monkeypatch, address, no_leaks):
    monkeypatch.setattr(cluster, "CONNECT_WAIT", 0.5)
    with pytest.raises(cluster.ClusterError, match="does not answer"):
        list(cluster.run(cluster_parts.square, [1], ignore, address))


def test_a_scheduler_without_workers_is_named(dask, monkeypatch):
    dask.workers(0)
    monkeypatch.setattr(cluster, "CONNECT_WAIT", 1.0)
    with pytest.raises(cluster.ClusterError, match=r"has no workers: start some with"):
        list(cluster.run(cluster_parts.square, [1], ignore, dask.address))


@pytest.mark.parametrize(("victim", "said"), [("worker", "has no workers"), ("scheduler", "is out of reach|dropped")])
def test_work_that_nobody_can_do_any_more_ends(dask, monkeypatch, tmp_path, victim, said):
    (worker,) = dask.workers(1).values()
    monkeypatch.setattr(cluster, "WORKERS_WAIT", 0.5)
    dies = worker if victim == "worker" else dask.scheduler

    def kill_it(text, left, number):
        if "process" in text:
            kill(dies)

    with pytest.raises(cluster.ClusterError, match=said):
        list(cluster.run(cluster_parts.wait_for_file, [tmp_path / "never"], kill_it, dask.address))


def test_workers_without_the_files_are_told_what_they_lack(dask, monkeypatch):
    dask.workers(1)
    monkeypatch.setitem(sys.modules, "only_here", type(sys)("only_here"))
    exec("def part(part, report): pass", sys.modules["only_here"].__dict__)
    with pytest.raises(cluster.ClusterError, match=r"only_here.*need the files of this server"):
        list(cluster.run(sys.modules["only_here"].part, [1], ignore, dask.address))
