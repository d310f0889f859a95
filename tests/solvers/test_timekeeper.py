"""What is reported about a reconstruction, and when."""

import pytest

from solvers import timekeeper
from solvers.timekeeper import Timekeeper


def test_reports_come_at_intervals_with_an_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timekeeper.time, "monotonic", lambda: now[0])
    reports = []
    keeper = Timekeeper(10, reports.append)
    for now[0] in (100.5, 101.1, 101.9):
        keeper.pulse()
    assert [str(report) for report in reports] == ["iterative reconstruction: preparing, 1 s elapsed"]
    now[0] = 104.0
    keeper.begin(50.0)
    for now[0], objective in ((104.5, 40.0), (105.0, 30.0)):
        keeper.iterated(objective)
    assert len(reports) == 2
    assert (reports[1].iteration, reports[1].objective) == (1, 40.0)
    assert reports[1].remaining == pytest.approx(4.5)
    now[0] = 106.0
    assert keeper.progress().remaining == pytest.approx(8.0)
    assert str(keeper.progress()) == ("iterative reconstruction: 2 of 10 iterations, objective 30, 6 s elapsed")


def test_nobody_needs_to_listen():
    keeper = Timekeeper(1, None)
    keeper.pulse()
    assert keeper.progress().objective is None
