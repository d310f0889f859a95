"""MRD version 2 streams in and out, against the `mrd` package: what it writes is read, and it reads what is written."""

import importlib.metadata
import io
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass

import ismrmrd
import mrd
import numpy as np
import pytest
from ismrmrd import xsd
from mrd.tools import phantom, stream_recon

import client
from conftest import (
    header_xml,
    make_acquisition,
    make_header,
    make_image,
    make_waveform,
    write_mrd_file,
)
from mrdio.h5groups import MrdFileError
from mrdio.mrd2header import comparable, convert
from mrdio.mrdfile import MrdReader, MrdWriter
from mrdio.mrdheader import parse_header
from sending.inputs import open_input
from sending.mrd2streams import write_group
from server_process import PROJECT

DTYPES = (np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64, np.complex64, np.complex128)


def stream(path, *items, header=None):
    """Write a stream with the package."""
    with mrd.BinaryMrdWriter(str(path)) as writer:
        writer.write_header(header)
        writer.write_data(items)
    return path


def readout(channels=2, samples=6, dimensions=0, **head):
    values = np.arange(channels * samples).reshape(channels, samples) * (1 + 2j)
    trajectory = np.arange(dimensions * samples, dtype=np.float32).reshape(dimensions, samples)
    return mrd.StreamItem.Acquisition(
        mrd.Acquisition(head=mrd.AcquisitionHeader(**head), data=values.astype(np.complex64), trajectory=trajectory)
    )


def items_of(path, waveforms=True):
    with open_input(path, waveforms=waveforms) as source:
        return list(source.items)


def items_by_package(path):
    with mrd.BinaryMrdReader(str(path)) as reader:
        return reader.read_header(), list(reader.read_data())


# ---- whole streams ---------------------------------------------------------------------------------------------------
def test_client_reconstructs_a_stream_as_the_package_does(server, tmp_path):
    running = server(module_folders=(PROJECT,))
    source = tmp_path / "phantom.bin"
    with source.open("wb") as file:
        phantom.generate(file, matrix=24, coils=3, oversampling=2, repetitions=2, noise_level=0.0)
    theirs = io.BytesIO()
    with source.open("rb") as file:
        stream_recon.reconstruct_mrd_stream(file, theirs)
    theirs.seek(0)
    options = {"output": tmp_path / "out.mrd2", "port": running.port, "config": "simplefft"}
    result = client.run(client.ClientOptions(source, **options))
    assert (result.errors, result.files) == ([], [tmp_path / "out.mrd2"])
    assert result.sent["acquisitions"] == 32 + 2 * 24
    header, ours = items_by_package(tmp_path / "out.mrd2")
    expected_header = mrd.BinaryMrdReader(theirs).read_header()
    assert header == expected_header
    theirs.seek(0)
    reader = mrd.BinaryMrdReader(theirs)
    reader.read_header()
    for one, two in zip(ours, reader.read_data(), strict=True):
        assert one.value.data.shape == two.value.data.shape == (1, 1, 24, 24)
        np.testing.assert_allclose(
            one.value.data / one.value.data.max(), two.value.data / two.value.data.max(), atol=2e-3
        )
        assert one.value.head.repetition == two.value.head.repetition
        np.testing.assert_array_equal(one.value.head.field_of_view, two.value.head.field_of_view)
        np.testing.assert_array_equal(one.value.head.col_dir, two.value.head.col_dir)
    with pytest.raises(MrdFileError, match="--overwrite"):
        client.run(client.ClientOptions(source, **options))
    assert client.run(client.ClientOptions(source, **options, overwrite=True)).errors == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_comes_back_as_it_was(tmp_path, dtype):
    image = make_image(3, (2, 3, 6, 5), dtype, series=4, meta={"A": "1.50", "B": ["x", "7"]})
    head = image.getHead()
    head.position, head.read_dir, head.phase_dir, head.slice_dir = (1, 2, 3), (0, 1, 0), (0, 0, 1), (1, 0, 0)
    head.repetition, head.slice, head.user_float[7], head.physiology_time_stamp[2] = 65535, 2, 1.5, 9
    head.flags = 1 << 20
    image.setHead(head)
    readouts = [make_acquisition(number, dimensions=2) for number in range(3)]
    for acquisition in readouts:
        acquisition.setChannelActive(1)
        acquisition.setChannelActive(70)
        acquisition.available_channels = 71
    items = [*readouts, make_waveform(0, time=1005), image]
    source = tmp_path / "in.h5"
    with MrdWriter(source) as writer:
        writer.write_header(header_xml())
        for item in items:
            writer.write(item)
    (written,) = write_group(source, None, tmp_path / "out.mrd2")
    header, theirs = items_by_package(written)
    assert header.measurement_information.protocol_name == "localizer"
    assert [item.tag for item in theirs[:4]] == ["Acquisition", "WaveformUint32", "Acquisition", "Acquisition"]
    assert theirs[0].value.head.channel_order == [1, 70]
    np.testing.assert_array_equal(theirs[0].value.trajectory, readouts[0].traj.T)
    assert theirs[4].value.data.dtype == dtype
    np.testing.assert_array_equal(theirs[4].value.data, image.data)

    first, waveform, *others, back = items_of(written)
    for one, two in zip([first, *others], readouts, strict=True):
        head = two.getHead()
        head.version = 0
        assert bytes(one.getHead()) == bytes(head)
        np.testing.assert_array_equal(one.data, two.data)
        np.testing.assert_array_equal(one.traj, two.traj)
    np.testing.assert_array_equal(waveform.data, make_waveform(0).data)
    assert (waveform.time_stamp, waveform.sample_time_us) == (1005, 400.0)
    head = image.getHead()
    head.version = head.attribute_string_len = 0
    got = back.getHead()
    got.attribute_string_len = 0
    assert bytes(got) == bytes(head)
    assert dict(back.meta) == {"A": "1.50", "B": ["x", "7"]}
    np.testing.assert_array_equal(back.data, image.data)
    with open_input(written) as opened:
        assert parse_header(opened.header_xml) == make_header()
        assert not any(isinstance(item, ismrmrd.Waveform) for item in opened.items)


# ---- the header ------------------------------------------------------------------------------------------------------
def filled(kind, depth=0):
    """Object of a class of either package with every field set."""
    args = [each for each in typing.get_args(kind) if each is not type(None)]
    if typing.get_origin(kind) is list:
        return [filled(args[0], depth + 1), filled(args[0], depth + 2)]
    if args:
        return filled(args[0], depth)
    if hasattr(kind, "__members__"):
        return list(kind)[-1]
    if kind in (int, float, str, bytes):
        return {int: 7 + depth, float: 2.5 + depth, str: f"t{depth}é", bytes: b"\0\xff"}[kind]
    if kind.__name__ == "XmlDate":
        return kind(2026, 11, 5)
    if kind.__name__ == "XmlTime":
        return kind.from_string("23:04:05.125")
    return kind(**{name: filled(hint, depth + 1) for name, hint in typing.get_type_hints(kind).items()})


def test_every_element_of_the_header_comes_back():
    header = filled(xsd.ismrmrdHeader)
    header.subjectInformation.patientGender = "O"
    header.userParameters.userParameterBase64[0].value = bytes(range(256))
    theirs = convert(header, mrd.Header)
    written = io.BytesIO()
    with mrd.BinaryMrdWriter(written) as writer:
        writer.write_header(theirs)
        writer.write_data([])
    written.seek(0)
    back = convert(mrd.BinaryMrdReader(written).read_header(), xsd.ismrmrdHeader)
    for element in fields(header):
        if element.name != "sequenceParameters":  # some of its numbers have 32 bits there
            assert str(getattr(back, element.name)) == str(getattr(header, element.name))
    assert back.sequenceParameters.TR == header.sequenceParameters.TR


def test_both_versions_have_the_same_elements():
    def compare(ours, theirs):
        a = {comparable(name): hint for name, hint in typing.get_type_hints(ours).items()}
        b = {comparable(name): hint for name, hint in typing.get_type_hints(theirs).items()}
        assert a.keys() == b.keys(), ours
        for name in a:
            (inner,) = {each for each in (typing.get_args(a[name]) or (a[name],)) if each is not type(None)}
            (their,) = {each for each in (typing.get_args(b[name]) or (b[name],)) if each is not type(None)}
            if is_dataclass(inner):
                compare(inner, their)
            elif hasattr(inner, "__members__"):
                known = {comparable(each) for each in inner.__members__}
                assert {comparable(each) for each in their.__members__} - {"noacceleration"} == known

    compare(xsd.ismrmrdHeader, mrd.Header)


def test_no_acceleration_is_an_absent_calibration_mode():
    mode = mrd.ParallelImagingType(calibration_mode=mrd.CalibrationMode.NOACCELERATION)
    assert convert(mode, xsd.parallelImagingType).calibrationMode is None


def test_a_header_that_lacks_something_names_it():
    header = make_header()
    header.encoding[0].encodedSpace.matrixSize = None
    with pytest.raises(ValueError, match=r"header\.encoding\.encoded_space\.matrix_size is missing"):
        convert(header, mrd.Header)
    header = make_header()
    header.encoding[0].trajectory = "rosette"
    with pytest.raises(ValueError, match=r"header\.encoding\.trajectory is 'rosette'.*SPIRAL"):
        convert(header, mrd.Header)


def test_images_whose_header_version_2_refuses_are_kept(server, tmp_path):
    running = server(module_folders=(PROJECT,))
    xml = header_xml().replace("<patientPosition>HFS</patientPosition>", "")
    assert xml != header_xml()
    source = write_mrd_file(tmp_path / "in.h5", [make_image(1, dtype=np.int16)], xml=xml)
    result = client.run(client.ClientOptions(source, output=tmp_path / "out.mrd2", port=running.port))
    (error,) = result.errors
    assert "patient_position is missing" in error
    with MrdReader(error.rpartition("kept in ")[2]) as reader:
        assert reader.image_count == 1
    assert not [path for path in tmp_path.iterdir() if "out.mrd2" in path.name]


# ---- readouts of other programs --------------------------------------------------------------------------------------
def test_fields_that_are_absent(tmp_path):
    (item,) = items_of(stream(tmp_path / "in.mrd2", readout()))
    assert (item.center_sample, item.acquisition_time_stamp, item.active_channels) == (3, 0, 2)
    assert item.traj.shape == (6, 0)
    with open_input(tmp_path / "in.mrd2") as source:
        assert source.header_xml is None


def test_channels_are_in_the_order_of_their_numbers(tmp_path):
    given = readout(channels=3, channel_order=[5, 1, 3])
    (item,) = items_of(stream(tmp_path / "in.mrd2", given))
    np.testing.assert_array_equal(item.data, given.value.data[[1, 2, 0]])
    assert [channel for channel in range(8) if item.isChannelActive(channel)] == [1, 3, 5]
    assert item.available_channels == 6


def too_long(data):
    data.trajectory = np.zeros((2, 5), np.float32)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            readout(idx=mrd.EncodingCounters(kspace_encode_step_1=65536)),
            "kspace_encode_step_1 is 65536, which does not",
        ),
        (readout(idx=mrd.EncodingCounters(user=[0, 70000])), "user is 70000"),
        (readout(center_sample=70000), "center_sample is 70000"),
        (readout(samples=65536), "number_of_samples is 65536"),
        (readout(user_int=list(range(9))), "user_int has 9 values: MRD version 1 has 8"),
        (readout(channel_order=[0]), r"2 channels has the channel order \[0\]"),
        (readout(channel_order=[3, 3]), r"channel order \[3, 3\]"),
        (readout(channel_order=[0, 1024]), "channel 1024"),
        (mrd.StreamItem.ArrayComplexFloat(np.zeros((2, 2), np.complex64)), "item of the type ArrayComplexFloat"),
    ],
)
def test_what_version_1_does_not_hold_is_named(tmp_path, item, said):
    with pytest.raises(MrdFileError, match=said):
        items_of(stream(tmp_path / "in.mrd2", item))


def test_a_trajectory_of_another_length_is_named(tmp_path):
    item = readout(dimensions=2)
    too_long(item.value)
    with pytest.raises(MrdFileError, match="6 samples, and 5 of its trajectory"):
        items_of(stream(tmp_path / "in.mrd2", item))


# ---- streams that cannot be read -------------------------------------------------------------------------------------
def test_a_stream_that_breaks_off_is_an_error_wherever(tmp_path):
    whole = stream(tmp_path / "in.mrd2", *[readout() for _ in range(3)], header=convert(make_header(), mrd.Header))
    data = whole.read_bytes()
    begin = data.index(b"localizer")
    for end in [5, 9, 30, *range(begin, len(data), 7), len(data) - 1]:
        whole.write_bytes(data[:end])
        with pytest.raises(MrdFileError, match=r"breaks off|is damaged"):
            items_of(whole)


def test_a_session_whose_stream_breaks_off_has_an_error(server, tmp_path):
    running = server(module_folders=(PROJECT,))
    images = write_mrd_file(tmp_path / "in.h5", [make_image(number, dtype=np.int16) for number in range(3)])
    (source,) = write_group(images, None, tmp_path / "in.mrd2")
    source.write_bytes(source.read_bytes()[:-20])
    result = client.run(client.ClientOptions(source, output=tmp_path / "out.h5", port=running.port))
    assert "in.mrd2 breaks off" in " ".join(result.errors)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"yardl\1\0\0\0\5{...}", "another version of MRD than 2.1 .*mrd_to_ismrmrd"),
        (b"yardl\2\0\0\0\5{...}", "another version of MRD than 2.1"),
        (b"yardl", "breaks off|is damaged"),
    ],
)
def test_other_versions_are_named(tmp_path, content, said):
    path = tmp_path / "in.mrd2"
    path.write_bytes(content)
    with pytest.raises(MrdFileError, match=said):
        open_input(path)


def test_streams_without_data_are_named(tmp_path):
    with pytest.raises(MrdFileError, match="holds neither readouts nor images"):
        open_input(stream(tmp_path / "in.mrd2"))


def test_without_the_package_both_ways_say_what_to_install(tmp_path):
    """In a process of its own that has all packages but this one; an output fails before anything is sent."""
    stream(tmp_path / "in.mrd2", readout())
    write_mrd_file(tmp_path / "in.h5", [make_image()])
    code = (
        "import importlib.metadata as m, runpy, sys; given = m.version\n"
        "def version(name):\n"
        "    if name == 'mrd-python': raise m.PackageNotFoundError(name)\n"
        "    return given(name)\n"
        "m.version = version; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv.pop(0))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for arguments in (["in.mrd2", "-o", "out.h5"], ["in.h5", "-o", "out.mrd2"]):
        command = [sys.executable, "-c", code, str(PROJECT), str(PROJECT / "client.py"), "-p", "1", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "pip install -r requirements-mrd2.txt" in done.stderr
        assert ("or convert the file with mrd_to_ismrmrd" in done.stderr) == (arguments[0] == "in.mrd2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5", "in.mrd2"]


def test_another_version_of_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.2.1")
    with pytest.raises(MrdFileError, match=r"needs the package mrd-python 2\.1, here is 2\.2\.1"):
        open_input(stream(tmp_path / "in.mrd2", readout()))
