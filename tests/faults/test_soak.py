"""A short soak, and that it would notice what it is there to notice."""

import pytest

from tools import soak, soakfigures
from tools.soakclients import Client, Report
from tools.soakfigures import AT_REST, MIB, Run
from tools.soakscans import TR, make_scans

REST = {"time": 0.0, "memory": 100 * MIB, "helpers": 20 * MIB, **dict.fromkeys(AT_REST, 4)}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    make_scans(folder)
    return folder


def test_short_soaks_have_no_problems(tmp_path, in_thread, capfd):
    """Both kinds at the same time: much of a short soak is waiting for servers to come to rest."""
    plot = tmp_path / "soak.png"
    short = ["--clients", "3", "--minutes", "0.05", "--pause", "0.3"]
    running = [in_thread(soak.main, [*short, *more]) for more in (["--plot", str(plot)], ["--processes"])]
    statuses = [each.result(180) for each in running]
    said, log = capfd.readouterr()
    assert statuses == [0, 0], said + log
    assert said.count("no problems") == 2
    assert said.count("**ended in any other way** | **0**") == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


# ---- what a client notices -----------------------------------------------------------------------------------------


@pytest.fixture
def hold(scans, server):
    """Hold a session of a scan with a server in this process that runs another module in its place."""

    def run(name, module=None, references=None, **keywords):
        modules = {} if module is None else {"module_folders": (module.parent,), "default_config": module.stem}
        client = Client(scans, server(**modules).address, references or {})
        (scan,) = [each for each in client.scans if each.name == name]
        return client.hold(scan, **keywords)

    return run


@pytest.fixture
def module(tmp_path):
    def write(body):
        path = tmp_path / "stands_in.py"
        path.write_text(f"import ismrmrd, numpy\ndef process(connection, config, metadata):\n    {body}\n", "utf-8")
        return path

    return write


IMAGE = "ismrmrd.Image.from_array(numpy.ones((2, 2), numpy.int16), transpose=False)"
TAKE_ALL = "list(connection)"


def test_images_are_compared(hold, module):
    path = module(f"{TAKE_ALL}; connection.send_image({IMAGE})")
    first = hold("simplefft", path)
    assert (first.problem, len(first.images), first.readouts) == ("", 1, 96)
    assert hold("simplefft", path, {"simplefft": first.images}).problem == ""
    other = hold("simplefft", path, {"simplefft": ["0"]})
    assert other.problem == "1 images instead of 1, 1 of them with other pixels"
    assert hold("simplefft", path, {"simplefft": first.images * 2}).problem.startswith("1 images instead of 2")


def test_an_error_is_a_problem_unless_the_module_is_to_fail(hold, module):
    path = module("raise ValueError('odd')")
    assert "ValueError: odd" in hold("simplefft", path).problem
    assert hold("soakfailing", path).problem == ""
    assert hold("soakfailing", module(TAKE_ALL)).problem == "the failure of the module was not told"


def test_a_missing_close_is_a_problem(hold, module):
    assert hold("simplefft", module("connection.abort()")).problem


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_session_that_the_client_breaks_off_is_none(hold, module, fault):
    report = hold("simplefft", module(TAKE_ALL), fault=fault, where=0.5)
    assert report.problem == ""
    assert 40 < report.readouts < 50


def test_latency_is_that_from_the_last_readout(hold, module):
    """Eleven images at once, behind the last readout: the first frame's last readout was sent long before."""
    path = module(f"{TAKE_ALL}; connection.send_image([{IMAGE} for _ in range(11)])")
    report = hold("simplenufft1arm", path)
    assert report.problem == ""
    seconds = 170 * TR  # from the first frame's last readout to the scan's
    assert report.latencies[0] > 0.9 * seconds
    assert all(one > other for one, other in zip(report.latencies, report.latencies[1:], strict=False))


# ---- what the figures say ------------------------------------------------------------------------------------------


def run_of(samples, reports=(), **after):
    return Run(200.0, REST, REST | after, list(samples), [(1.0, each) for each in reports])


def test_steady_figures_are_no_problem():
    wavy = [REST | {"memory": (100 + number % 7) * MIB, "threads": 5 + number % 3} for number in range(100)]
    assert soakfigures.judge(run_of(wavy, [Report("null", "none"), Report("null", "cut")])) == []


def test_growing_memory_is_a_problem():
    growing = [REST | {"memory": (100 + number) * MIB} for number in range(100)]
    assert soakfigures.judge(run_of(growing)) == ["the server's memory has grown from 137 to 187 MiB"]


def test_memory_that_helpers_keep_is_a_problem():
    assert soakfigures.judge(run_of([REST], helpers=60 * MIB)) == [
        "its helpers' memory was 20 before, and 60 MiB after"
    ]


@pytest.mark.parametrize("name", AT_REST)
def test_what_is_not_back_is_a_problem(name):
    assert soakfigures.judge(run_of([REST], **{name: 5})) == [f"at rest there were 4 {name} before, and 5 after"]


def test_wrong_sessions_are_counted():
    wrong = [Report("null", "none", "no CLOSE"), Report("null", "none", "no CLOSE"), Report("simplefft", "cut", "odd")]
    run = run_of([REST], wrong)
    run.problems = soakfigures.judge(run)
    assert run.problems == ["2 x null, none: no CLOSE", "1 x simplefft, cut: odd"]
    text = soakfigures.summary(run)
    assert "| **ended in any other way** | **3** |" in text
    assert "PROBLEM: 2 x null, none: no CLOSE" in text


def test_unreadable_recordings_are_a_problem(tmp_path):
    (tmp_path / "torn.h5").write_bytes(b"no HDF5")
    (tmp_path / "to_come.h5").touch()
    (tmp_path / "odd.mrd.broken").touch()
    check = soak.RecordingCheck(tmp_path)
    check.empty()
    assert [path.name for path in tmp_path.iterdir()] == ["to_come.h5"]
    assert len(check.problems) == 2
    assert check.opened == 1


@pytest.mark.parametrize(
    ("report", "counts", "problem"),
    [
        (Report("null", "none", items=9, protocol="p"), [9], ""),
        (Report("null", "none", items=9, protocol="p"), [8], "1 x null, none: 8 of 9 readouts and images saved"),
        (Report("null", "cut", items=9, protocol="p"), [], "1 x null, cut: nothing saved"),
        (Report("null", "cut", items=0, protocol="p"), [], ""),
        (Report("null", "cut", items=9, protocol="p"), [9, 9], "1 x null, cut: saved 2 times"),
        (Report("null", "reset", items=9, protocol="p"), [5], ""),
        (Report("soakcrashing", "none", items=48, protocol="p"), [21], ""),
        (Report("soakcrashing", "none", items=48, protocol="p"), [19], "1 x soakcrashing, none: 19 of 48 readouts and"),
    ],
)
def test_recordings_are_compared_with_what_was_sent(tmp_path, report, counts, problem):
    check = soak.RecordingCheck(tmp_path)
    check.found["p"] = counts
    problems = check.compare([report])
    assert problems == [] if not problem else problems[0].startswith(problem)
