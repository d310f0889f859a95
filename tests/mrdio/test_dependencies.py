"""The store of measurements that scans depend on: names, what is kept, what is removed."""

import os
import time
from types import SimpleNamespace

import ismrmrd
import numpy as np
import pytest

from conftest import make_acquisition, make_header, make_waveform
from mrdio import mrdsource, recordings
from mrdio.codec import StreamBroken
from mrdio.dependencies import DependencyError, DependencyLookup, DependencyStore, named_in
from mrdio.limits import Limits


def header_of(measurement=None, depends_on=()):
    header = make_header()
    header.measurementInformation.measurementID = measurement
    header.measurementInformation.measurementDependency = [
        ismrmrd.xsd.measurementDependencyType(dependencyType=kind, measurementID=name) for kind, name in depends_on
    ]
    return header


def readouts(count, start=0, samples=8):
    return [make_acquisition(start + n, samples=samples) for n in range(count)]


def counters(store, measurement):
    return [each.scan_counter for each in store.load(measurement).readouts]


@pytest.fixture
def store(tmp_path):
    return DependencyStore(tmp_path / "new" / "folder")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "folder"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_kept_is_found_by_its_id_with_its_header_and_readouts(store, folder):
    sent = [make_acquisition(1, 3, 20, 2), make_waveform(1), "a text", make_acquisition(2)]
    assert store.keep(iter(sent), header_of("42_7")) == ("42_7", 3)
    found = store.load("42_7")
    assert found.measurement == "42_7"
    assert found.header.measurementInformation.measurementID == "42_7"
    for one, other in zip(found.readouts, [sent[0], sent[3]], strict=True):
        assert bytes(one.getHead()) == bytes(other.getHead())
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.traj, other.traj)
    assert names(folder) == ["42_7.dependency.mrd"]
    assert (folder / "42_7.dependency.mrd").stat().st_mode & 0o007 == 0
    with mrdsource.open_source(folder / "42_7.dependency.mrd", waveforms=True) as source:  # as the client reads it
        assert sum(1 for _ in source.items) == 3


BAD = ["", ".", "..", ".hidden", "../x", "a/b", "a\\b", "/etc/passwd", "a b", "ä", "a\n", "a\0", "x" * 129, "~x", None]


@pytest.mark.parametrize("name", BAD)
def test_only_plain_names_reach_the_file_system(tmp_path, store, name):
    with pytest.raises(DependencyError, match="is no name: expected 1 to 128 of the characters"):
        store.keep(readouts(1), header_of(name))
    with pytest.raises(DependencyError, match="is no name"):
        store.load(name)
    assert list(tmp_path.iterdir()) == []


def test_names_of_scanners_are_plain_ones(store):
    for name in ("175749__2.2.1107.5.2.50.175749.30000020113008352930900002402_432", "-1", "x" * 128):
        store.keep(readouts(1), header_of(name))
        assert counters(store, name) == [0]


def test_a_header_that_is_none_cannot_name_a_measurement(store):
    with pytest.raises(DependencyError, match="without a valid MRD header"):
        store.keep(readouts(1), "no header")


def test_the_latest_complete_one_counts(store, folder):
    """Two at once, of which the second one to begin is complete first; and one that nothing came of."""

    def one_inside_the_other():
        yield from readouts(2)
        store.keep(readouts(3, 10), header_of("7"))
        assert counters(store, "7") == [10, 11, 12]
        yield from readouts(1, 2)

    store.keep(one_inside_the_other(), header_of("7"))
    assert counters(store, "7") == [0, 1, 2]
    assert store.keep([], header_of("7")) == ("7", 0)
    assert counters(store, "7") == [0, 1, 2]
    assert names(folder) == ["7.dependency.mrd"]


def test_one_that_breaks_off_stays_in_a_stream_and_replaces_nothing(store, folder):
    def broken():
        yield from readouts(2, 10)
        raise StreamBroken("the stream ends")

    store.keep(readouts(3), header_of("7"))
    with pytest.raises(StreamBroken, match=r"7 is not kept: the stream ends; the first 2 readouts.* are in .*mrdpart"):
        store.keep(broken(), header_of("7"))
    assert counters(store, "7") == [0, 1, 2]
    (part,) = folder.glob("*.mrdpart")
    with mrdsource.open_source(part) as source:
        assert [each.scan_counter for each in source.items] == [10, 11]


def test_full_disk_is_told_and_what_came_before_stays(store, folder, monkeypatch):
    store.keep(readouts(3), header_of("7"))
    left = iter([Limits().disk + 100_000] + [0] * 100)
    monkeypatch.setattr(recordings.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(left)))
    with pytest.raises(DependencyError, match=r"not kept: .* are free on the disk.*the first 3 readouts"):
        store.keep(readouts(5, 10, samples=2000), header_of("7"))
    assert counters(store, "7") == [0, 1, 2]
    (part,) = folder.glob("*.mrdpart")
    with mrdsource.open_source(part) as source:
        items = source.items
        assert [next(items).scan_counter for _ in range(3)] == [10, 11, 12]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DependencyError, match="no measurement can be kept in"):
        DependencyStore(tmp_path / "file" / "folder").keep(readouts(1), header_of("7"))


def test_a_damaged_measurement_is_told(store, folder):
    store.keep(readouts(3), header_of("7"))
    path = folder / "7.dependency.mrd"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DependencyError, match="the measurement 7 cannot be read: the stream ends"):
        store.load("7")


# ---- what is removed -----------------------------------------------------------------------------------------------


def test_old_measurements_are_removed_and_nothing_else(folder):
    store = DependencyStore(folder, Limits(dependency_age=3600))
    for name in ("old", "young"):
        store.keep(readouts(1), header_of(name))
    others = ["raw.h5", "raw.mrd", "2026-01-01_00-00-00_session-1.mrdpart"]
    for name in (*others, "2026-01-01_00-00-00_dependency-x.mrdpart"):
        (folder / name).touch()
    for name in (*others, "2026-01-01_00-00-00_dependency-x.mrdpart", "old.dependency.mrd"):
        os.utime(folder / name, (0, time.time() - 3700))
    with pytest.raises(DependencyError, match=r"old is not there: .* or has been removed"):
        store.load("old")
    assert names(folder) == sorted([*others, "young.dependency.mrd"])


def test_the_oldest_are_removed_where_there_is_too_much(folder):
    store = DependencyStore(folder, Limits(dependencies=110_000))
    for age, name in ((30, "c"), (20, "a"), (10, "b")):  # of 34 kB each
        store.keep(readouts(2, samples=1000), header_of(name))
        os.utime(folder / f"{name}.dependency.mrd", (0, time.time() - age))
    store.keep(readouts(2, samples=1000), header_of("d"))
    assert names(folder) == [f"{name}.dependency.mrd" for name in "abd"]
    store.keep(readouts(10, samples=1000), header_of("huge"))
    assert names(folder) == ["huge.dependency.mrd"]


def test_one_that_is_being_written_is_not_removed(folder):
    store = DependencyStore(folder, Limits(dependencies=50_000))

    def slow():
        yield from readouts(4, samples=1000)
        store.keep(readouts(1), header_of("other"))
        yield from readouts(1, 4)

    store.keep(slow(), header_of("slow"))
    assert counters(store, "slow") == [0, 1, 2, 3, 4]


# ---- what a scan depends on ----------------------------------------------------------------------------------------


def test_a_scan_finds_what_its_header_names_by_kind(store):
    missing = []
    store.keep(readouts(2), header_of("n1"))
    store.keep(readouts(3), header_of("s1"))
    header = header_of("9", [("SenMap", "s1"), ("Noise", "n0"), ("Noise", "n1")])
    lookup = DependencyLookup(store, header, lambda *words: missing.append(words))
    assert named_in(header, "noise") == ["n0", "n1"]
    assert len(lookup("Noise").readouts) == 2
    assert len(lookup("SenMap").readouts) == 3
    assert lookup("Shim") is None
    assert missing == []


@pytest.mark.parametrize("name", ["n0", "../../etc/passwd"])
def test_what_is_missing_is_told_once(store, name):
    missing = []
    lookup = DependencyLookup(store, header_of("9", [("Noise", name)]), lambda *words: missing.append(words))
    assert [lookup("Noise"), lookup("Noise")] == [None, None]
    ((kind, reason),) = missing
    assert kind == "Noise"
    assert repr(name)[1:-1] in reason


@pytest.mark.parametrize("header", ["no header", None, SimpleNamespace(measurementInformation=None), make_header()])
def test_headers_that_name_nothing(store, header):
    assert DependencyLookup(store, header, pytest.fail)("Noise") is None


def labelled(measurement, coils, depends_on=()):
    header = header_of(measurement, depends_on)
    header.acquisitionSystemInformation = ismrmrd.xsd.acquisitionSystemInformationType(
        coilLabel=[ismrmrd.xsd.coilLabelType(coilNumber=n, coilName=name) for n, name in enumerate(coils)]
    )
    return header


@pytest.mark.parametrize(("theirs", "order"), [(["A", "B"], [0, 1]), (["B", "A"], [1, 0]), (["", ""], [0, 1])])
def test_channels_come_in_the_order_of_the_scan(store, theirs, order):
    readout = ismrmrd.Acquisition.from_array(np.arange(16, dtype=np.complex64).reshape(2, 8))
    store.keep([readout], labelled("n1", theirs))
    found = DependencyLookup(store, labelled("9", ["A", "B"], [("Noise", "n1")]), pytest.fail)("Noise")
    np.testing.assert_array_equal(found.readouts[0].data, readout.data[order])


def test_a_measurement_of_other_coils_is_refused(store):
    missing = []
    store.keep(readouts(2), labelled("n1", ["A", "C"]))
    lookup = DependencyLookup(store, labelled("9", ["A", "B"], [("Noise", "n1")]), lambda *words: missing.append(words))
    assert lookup("Noise") is None
    assert "is of the coils A, C, the scan of A, B" in missing[0][1]
