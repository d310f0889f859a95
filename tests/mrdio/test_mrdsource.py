"""What a client sends: the same content from .h5 and from stream files, and clear errors from all others."""

import gc

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile

from conftest import bytes_of, header_xml, make_acquisition, make_header, make_image, make_waveform, write_mrd_file
from mrdio.h5groups import MrdFileError
from mrdio.mrdsource import in_time_order, open_source

READOUTS = [make_acquisition(number) for number in range(4)]  # time stamps 1000, 1010, 1020, 1030
WAVEFORMS = [make_waveform(number, time=time) for number, time in enumerate((990, 1010, 1015, 2000))]
IMAGES = [make_image(number) for number in range(2)]
MERGED = [
    WAVEFORMS[0], READOUTS[0], WAVEFORMS[1], READOUTS[1], WAVEFORMS[2], READOUTS[2], READOUTS[3], WAVEFORMS[3],
]  # fmt: skip


def read(path, **options):
    with open_source(path, **options) as source:
        return list(source.items), source


@pytest.fixture
def h5(tmp_path):
    path = tmp_path / "scan.h5"
    return write_mrd_file(path, [*READOUTS, *WAVEFORMS, *IMAGES], xml=header_xml())


@pytest.fixture
def stream(tmp_path):
    def write(*items, close=True, tail=b""):
        path = tmp_path / "scan.mrd"
        path.write_bytes(bytes_of(*items, close=close) + tail)
        return path

    return write


def refuse(path, pattern, **options):
    with pytest.raises(MrdFileError, match=pattern) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    gc.collect()  # a file that was left open gives its ResourceWarning, which is an error here


# ---- .h5 -----------------------------------------------------------------------------------------------------------


def test_h5_without_waveforms(h5):
    items, source = read(h5)
    assert items == [*READOUTS, *IMAGES]
    assert source.total == 6
    assert source.header_xml == header_xml()
    assert source.json_parameters is None


def test_h5_with_waveforms_in_time_order(h5):
    items, source = read(h5, waveforms=True)
    assert items == [*MERGED, *IMAGES]
    assert source.total == 10


def test_h5_with_json_parameters(h5):
    with h5py.File(h5, "a") as file:
        file["dataset/configAdditional"] = ['{"parameters": {}}']
    assert read(h5)[1].json_parameters == '{"parameters": {}}'


def test_groups(tmp_path):
    path = tmp_path / "scan.h5"
    write_mrd_file(path, READOUTS[:1], group="first", xml="<first/>")
    write_mrd_file(path, READOUTS[1:3], group="second")
    assert read(path, group="first")[0] == READOUTS[:1]
    items, source = read(path, group="second")
    assert items == READOUTS[1:3]
    assert source.header_xml is None
    refuse(path, "has 2 groups, name one of them: first, second")
    refuse(path, "has no group 'third', it has: first, second", group="third")


def test_h5_with_images_alone(tmp_path):
    path = write_mrd_file(tmp_path / "images.h5", IMAGES)
    items, source = read(path, waveforms=True)
    assert items == IMAGES
    assert source.total == 2


def test_the_kind_of_file_is_seen_by_its_content(h5, stream):
    renamed = h5.rename(h5.with_suffix(".mrd"))
    assert len(read(renamed)[0]) == 6
    renamed = stream(*READOUTS).rename(h5)
    assert len(read(renamed)[0]) == 4


def test_the_file_is_closed_at_the_end(h5):
    with open_source(h5) as source:
        next(source.items)
    with h5py.File(h5, "a") as file:  # would fail while it is open for reading
        del file["dataset/waveforms"]


@pytest.mark.parametrize("items", [[], WAVEFORMS])
def test_h5_with_nothing_to_send(tmp_path, items):
    path = write_mrd_file(tmp_path / "scan.h5", items, xml=header_xml())
    refuse(path, "group 'dataset' holds neither readouts nor images to send")
    with h5py.File(path, "a") as file:
        file["closed"] = np.array([1])


# ---- streams -------------------------------------------------------------------------------------------------------

OPENING = (ConfigFile("null"), make_header(), '{"parameters": {"config": "x"}}')


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("opening", [(), OPENING[:1], OPENING[:2], OPENING, OPENING[1:]])
def test_streams(stream, close, opening):
    items, source = read(stream(*opening, *READOUTS, *IMAGES, close=close))
    assert items == [*READOUTS, *IMAGES]
    assert source.total is None
    assert source.header_xml == (make_header().toXML() if OPENING[1] in opening else None)
    assert source.json_parameters == (OPENING[2] if OPENING[2] in opening else None)


def test_stream_with_waveforms_keeps_its_order(stream):
    path = stream(OPENING[1], *MERGED)
    assert read(path, waveforms=True)[0] == MERGED
    assert read(path)[0] == READOUTS


def test_texts_between_data_are_left_out(stream):
    items, source = read(stream(OPENING[1], READOUTS[0], "INFO     hello", READOUTS[1], '{"parameters": {}}'))
    assert items == READOUTS[:2]
    assert source.json_parameters is None


def test_what_stands_behind_close_is_left_out(stream):
    assert read(stream(*READOUTS[:2], tail=bytes_of(READOUTS[2]) + b"garbage"))[0] == READOUTS[:2]


@pytest.mark.parametrize("missing", [1, 17, 128, 300, 468])
def test_a_truncated_stream_gives_what_is_whole_then_raises(stream, missing):
    path = stream(OPENING[1], *READOUTS, close=False)
    path.write_bytes(path.read_bytes()[:-missing])
    items = []
    with open_source(path) as source, pytest.raises(MrdFileError, match="breaks off: the stream ends after") as caught:
        items.extend(source.items)
    assert str(path) in str(caught.value)
    assert items == READOUTS[:3]


def test_a_stream_that_breaks_off_in_its_opening(stream):
    path = stream(OPENING[1], close=False)
    path.write_bytes(path.read_bytes()[:-1])
    refuse(path, "is no MRD .h5 file, and as an ISMRMRD stream it breaks off: the stream ends after")


def test_garbage_within_a_stream(stream):
    path = stream(*READOUTS[:2], close=False, tail=b"garbage")
    items = []
    with open_source(path) as source, pytest.raises(MrdFileError, match="message identifier 24935 is not one of"):
        items.extend(source.items)
    assert items == READOUTS[:2]


@pytest.mark.parametrize(
    "content",
    [b"", bytes_of(close=True), bytes_of(*OPENING), bytes_of(*OPENING, close=True)],
    ids=["empty", "close", "opening", "opening and close"],
)
def test_a_stream_with_nothing_to_send(tmp_path, content):
    path = tmp_path / "scan.mrd"
    path.write_bytes(content)
    refuse(path, "no|neither|nothing")


@pytest.mark.parametrize("content", [b"a letter\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(5000), b"\x01"])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "scan.h5"
    path.write_bytes(content)
    refuse(path, "is no MRD .h5 file, and as an ISMRMRD stream it breaks off")


def test_missing_files_and_folders(tmp_path):
    refuse(tmp_path / "missing.h5", "cannot be read: No such file")
    refuse(tmp_path, "cannot be read: Is a directory")


def test_damaged_h5(tmp_path, h5):
    h5.write_bytes(h5.read_bytes()[:1000])
    refuse(h5, "cannot be read as HDF5")


def test_a_stream_file_is_closed_at_the_end(stream):
    with open_source(stream(*READOUTS)) as source:
        next(source.items)
    with pytest.raises(ValueError, match="closed"):
        list(source.items)


# ---- time order ----------------------------------------------------------------------------------------------------


def acquisition_at(time):
    acquisition = ismrmrd.Acquisition()
    acquisition.acquisition_time_stamp = time
    return acquisition


def waveform_at(time):
    return make_waveform(time=time)


@pytest.mark.parametrize(
    ("readouts", "waveforms", "merged"),
    [
        ([], [], ""),
        ([1], [], "a1"),
        ([], [1, 2], "w1 w2"),
        ([5], [1, 5, 6], "w1 w5 a5 w6"),
        ([1, 2, 3], [9], "a1 a2 a3 w9"),
        ([4, 5], [1, 2], "w1 w2 a4 a5"),
        ([3, 1, 4], [2, 2, 4], "w2 w2 a3 a1 w4 a4"),  # readouts are never reordered
        ([0, 0], [0], "w0 a0 a0"),
    ],
)
def test_time_order(readouts, waveforms, merged):
    items = in_time_order(map(acquisition_at, readouts), map(waveform_at, waveforms))
    found = [
        f"a{item.acquisition_time_stamp}" if isinstance(item, ismrmrd.Acquisition) else f"w{item.time_stamp}"
        for item in items
    ]
    assert " ".join(found) == merged


def test_time_order_takes_one_item_at_a_time():
    taken = []

    def readouts():
        for time in range(1000):
            taken.append(time)
            yield acquisition_at(time)

    items = in_time_order(readouts(), iter([waveform_at(500)]))
    next(items)
    assert len(taken) == 1
