"""The fault table of ``python reliability/faults.py``, group by group, in threads and in processes."""

import pytest

from reliability import bytecases
from reliability.faults import GROUPS, MODES, run_group
from reliability.ground import Case, Ground, closed, quiet, told
from reliability.scripted import FINISH, Answer, config, phantom, phantom_problem, readouts_in, representative


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", GROUPS)
def test_group_passes_and_loses_nothing(group, mode, tmp_path):
    row = run_group(group, mode, tmp_path)
    assert row.is_good, "\n".join(row.problems)
    assert row.cases > 3
    assert row.whole > 0
    assert row.failed == row.lost == 0


# ---- the table can fail --------------------------------------------------------------------------------------------


def test_what_is_not_saved_is_counted_as_lost(tmp_path):
    ground = Ground(tmp_path, processes=False)
    messages = representative()
    ground.together([Case("cut", b"".join(messages)[:-1], readouts_in(messages), told("the stream ends"), FINISH)])
    ground.expect(readouts_in(representative(session=9)))  # nobody has sent these
    row = ground.finish()
    assert (row.cases, row.failed, row.lost) == (2, 1, 2)
    assert "2 of" in row.problems[0]


def test_wrong_answers_and_what_is_left_behind_are_counted_as_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("reliability.ground.LEFT_PATIENCE", 0.2)
    (tmp_path / "leaking.py").write_text(
        "import threading\n"
        "def process(connection, config, metadata):\n"
        "    threading.Thread(target=threading.Event().wait, args=(600,), daemon=True).start()\n"
    )
    ground = Ground(tmp_path, processes=False)
    raw = phantom()
    ground.together([Case("right", b"".join(raw), readouts_in(raw), told("what it does not say"))])
    leaking = [config("leaking"), *raw[1:]]
    ground.together([Case("leaking", b"".join(leaking), readouts_in(leaking), quiet)])
    row = ground.finish()
    assert (row.cases, row.failed, row.lost) == (3, 2, 0)
    assert row.problems[0].startswith("right: answered with [], 1 images, CLOSE")
    assert "threads instead of" in row.problems[1]


def test_streams_that_differ_by_a_byte_are_counted_as_lost(tmp_path):
    ground = Ground(tmp_path, processes=False)
    messages = representative()
    ground.together([Case("whole", b"".join(messages), readouts_in(messages), quiet)])
    stream = max(ground.server.saved.glob("*.mrdpart"), key=lambda path: path.read_bytes() == b"".join(messages))
    stream.write_bytes(b"".join(messages)[:-1] + b"\x05")
    ground.match_streams(5)
    assert (ground.row.failed, ground.row.lost) == (1, 2)
    ground.server.end_all()


def test_judges():
    assert closed(Answer(closed=True)) == quiet(Answer(closed=True)) == ""
    assert closed(Answer())
    assert quiet(Answer(closed=True, texts=["ERROR no"]))
    assert told("yes")(Answer(closed=True))
    assert told("no", "way")(Answer(closed=True, texts=["ERROR no"]))
    assert told("no")(Answer(closed=True, texts=["ERROR no"])) == ""
    assert phantom_problem(Answer(closed=True))


def test_every_boundary_and_header_byte_is_cut_in_processes_too():
    messages = representative()
    places = set(bytecases.cut_places(messages, every_byte=False))
    end = 0
    for message in messages:
        assert {end, end + 1, end + 2, end + len(message) - 1, end + len(message)} <= places
        end += len(message)
    begin = sum(map(len, messages[:3]))
    assert set(range(begin, begin + 2 + 340)) <= places
    assert max(places) == end
