"""Threads that share work: each item once, errors pass through, nothing stays behind."""

import threading

import pytest

from conftest import PATIENCE
from solvers import team
from solvers.team import Team


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_each_item_is_worked_on_once(size, count):
    done = []
    with Team(size) as workers:
        workers.each(done.append, count)
    assert sorted(done) == list(range(count))


def test_work_is_shared():
    both = threading.Barrier(2, timeout=PATIENCE)
    with Team(2) as workers:
        workers.each(lambda n: both.wait(), 2)  # ends only if two threads are in it at once


def test_a_team_has_a_thread_for_each_processor():
    with Team() as workers:
        assert workers.size == team.processors() >= 1


@pytest.mark.parametrize("size", [1, 2])
def test_errors_of_the_work_end_it(size):
    before, done = threading.active_count(), []

    def work(n):
        done.append(n)
        if n == 3:
            raise KeyError("item 3")

    with pytest.raises(KeyError, match="item 3"), Team(size) as workers:
        workers.each(work, 10_000)
    assert len(done) < 10_000
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [1, 2])
def test_the_pulse_beats_while_there_is_work_and_may_end_it(monkeypatch, size):
    monkeypatch.setattr(team, "PULSE", 0.001)
    before, beats, enough = threading.active_count(), [], threading.Event()

    def pulse():
        assert threading.current_thread() is threading.main_thread()
        beats.append(1)
        if len(beats) == 3:
            enough.set()
            raise ConnectionError("gone")

    def work(n):
        if size == 2:
            enough.wait(PATIENCE)

    with pytest.raises(ConnectionError, match="gone"), Team(size, pulse) as workers:
        workers.each(work, 10**9)
    assert len(beats) == 3
    assert threading.active_count() == before
