"""The checks can fail: what is lost, left behind or answered wrongly is noticed."""

import pytest

from checked_server import Case, CheckedServer
from scripted import (
    FINISH,
    Answer,
    closed,
    config,
    phantom,
    quiet,
    readouts_in,
    representative,
    right_phantom,
    told,
)


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory):
    running = CheckedServer(tmp_path_factory.mktemp("unchecked"), processes=False)
    yield running
    running.server.end_all()


def test_streams_that_differ_by_a_byte_are_lost(unchecked):
    raw = b"".join(representative())
    assert unchecked.run({"whole": Case(raw, readouts_in(representative()), quiet)}) == {"whole": ""}
    (stream,) = [path for path in unchecked.saved.glob("*.mrdpart") if path.read_bytes() == raw]
    stream.write_bytes(raw[:-1] + b"\x05")
    with pytest.raises(AssertionError, match="1 of 5 sessions are not saved as they were sent"):
        unchecked.match_streams(5)
    stream.write_bytes(raw)
    unchecked.match_streams(5)


def test_wrong_answers_are_problems(unchecked):
    raw = phantom()
    problems = unchecked.run({"right": Case(b"".join(raw), readouts_in(raw), told("what it does not say"))})
    assert problems["right"].startswith("answered with [], 1 images, CLOSE")


def test_what_is_left_behind_is_a_problem(unchecked):
    (unchecked.folder / "leaking.py").write_text(
        "import threading\n"
        "def process(connection, config, metadata):\n"
        "    threading.Thread(target=threading.Event().wait, args=(600,), daemon=True).start()\n"
    )
    raw = [config("leaking"), *phantom()[1:]]
    assert not unchecked.hold_case(Case(b"".join(raw), [], quiet))
    with pytest.raises(AssertionError, match=r"left are \d+ threads instead of"):
        unchecked.check(0.1)


def test_what_is_not_saved_is_lost(unchecked):
    raw = b"".join(representative())
    assert not unchecked.hold_case(Case(raw[:-1], readouts_in(representative()), told("the stream ends"), FINISH))
    unchecked.expect(readouts_in(representative(session=9)))  # nobody has sent these
    with pytest.raises(AssertionError, match=r"2 of \d+ readouts are not in the saved files"):
        unchecked.finish()


def test_judges():
    assert closed(Answer(closed=True)) == quiet(Answer(closed=True)) == ""
    assert closed(Answer())
    assert quiet(Answer(closed=True, texts=["ERROR no"]))
    assert told("yes")(Answer(closed=True))
    assert told("no", "way")(Answer(closed=True, texts=["ERROR no"]))
    assert told("no")(Answer(closed=True, texts=["ERROR no"])) == ""
    assert right_phantom(Answer(closed=True))
