import json
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

import client
import report
from cartesian_data import FakeConnection, make_header, make_image, make_readout
from mrdio.mrdfile import MrdReader, MrdWriter
from mrdio.mrdheader import parse_header
from recon.configuration import ConfigurationError

PROJECT = Path(report.__file__).parent


def run(items, metadata="no header", **parameters):
    connection = FakeConnection(items)
    report.process(connection, {"parameters": parameters} if parameters else "report", metadata)
    image = connection.images[-1]
    assert np.array_equal(ismrmrd.Image.from_bytes(image.to_bytes()).data, image.data)
    return connection, image, ismrmrd.Meta.deserialize(image.meta.serialize())


def full_header():
    xsd = ismrmrd.xsd
    header = make_header((320, 160, 1), recon=(192, 160, 1), encoded_fov=(426.5, 220, 5), recon_fov=(256, 220, 5))
    header.acquisitionSystemInformation = xsd.acquisitionSystemInformationType(
        systemVendor="Maker", systemModel="Open", systemFieldStrength_T=0.55, receiverChannels=12
    )
    header.measurementInformation = xsd.measurementInformationType(
        protocolName="GRE <räumlich> & quer", patientPosition=xsd.patientPositionType.HFS
    )
    header.sequenceParameters = xsd.sequenceParametersType(TR=[5.3], TE=[2.1, 4.2], flipAngle_deg=[15])
    return header


def text_rows(picture):
    """How many separate rows of text a picture [row, column] shows."""
    lit = (picture > 0).any(axis=1)
    return int(np.count_nonzero(lit[1:] & ~lit[:-1]))


def test_header_facts():
    _, _, meta = run([], full_header())
    expected = {
        "protocolName": "GRE <räumlich> & quer", "scanner": "Maker Open", "fieldStrength": "0.55 T",
        "receiverChannels": "12", "trajectory": "cartesian", "fieldOfView": "256 x 220 x 5 mm",
        "matrixSize": "192 x 160 x 1", "acceleration": "1 x 1", "repetitionTime": "5.3 ms",
        "echoTime": "2.1, 4.2 ms", "flipAngle": "15 deg", "inputData": "nothing",
    }  # fmt: skip
    assert {name: meta.get(name) for name in expected} == expected
    assert "inversionTime" not in meta


@pytest.mark.parametrize("large", [0.0, 1e6])
def test_image_statistics_against_numpy(large):
    rng = np.random.default_rng(5)
    stacks = [rng.normal(large, 3, shape) for shape in ((1, 2, 7, 5), (1, 1, 6, 4), (1, 1, 3, 3))]
    images = [make_image(stack, series=number, index=1) for number, stack in enumerate(stacks)]
    for number, image in enumerate(images):
        image.acquisition_time_stamp = 1000 + 400 * number
    _, image, meta = run(images)
    pixels = np.concatenate([stack.ravel() for stack in stacks])
    assert float(meta["pixelMean"]) == pytest.approx(pixels.mean(), rel=1e-5)
    assert float(meta["pixelDeviation"]) == pytest.approx(pixels.std(), rel=1e-5)
    assert float(meta["pixelMinimum"]) == pytest.approx(pixels.min(), rel=1e-5)
    assert float(meta["pixelMaximum"]) == pytest.approx(pixels.max(), rel=1e-5)
    assert (meta["inputData"], meta["imageSeries"], meta["imageSize"]) == ("3 images", "3", "5 x 7 x 2")
    assert meta["duration"] == "2.0 s"
    assert image.image_series_index == 3  # a series of its own


def test_readouts_are_counted():
    readouts = [make_readout(np.ones((2, 8)), row=row, counter=row) for row in range(5)]
    readouts[0].patient_table_position = (0, 0, 77)
    _, image, meta = run(readouts)
    assert meta["inputData"] == "5 readouts"
    assert "pixelMean" not in meta
    head = image.getHead()
    assert (tuple(head.patient_table_position), head.acquisition_time_stamp) == ((0, 0, 77), 1000)
    assert (tuple(head.read_dir), tuple(head.phase_dir), tuple(head.slice_dir)) == ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def test_complex_and_broken_pixels():
    data = np.array([[3 + 4j, 0], [np.nan, np.inf]], np.complex64)
    _, _, meta = run([make_image(data, image_type=ismrmrd.IMTYPE_COMPLEX)])
    assert (meta["pixelMinimum"], meta["pixelMaximum"], meta["pixelMean"]) == ("0", "5", "2.5")
    _, _, meta = run([make_image(np.full((2, 2), np.nan, np.float32))])
    assert "pixelMean" not in meta


@pytest.mark.parametrize(
    "metadata",
    ["", "no header", None,
     parse_header('<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding/></ismrmrdHeader>')],
)  # fmt: skip
def test_missing_header_fields_are_left_out(metadata):
    connection, image, meta = run([], metadata)
    assert meta["inputData"] == "nothing"
    assert not {"scanner", "protocolName", "fieldOfView", "trajectory"} & set(meta.keys())
    assert image.data.any()
    assert "no readouts and no images" in connection.logs[0][1]


@pytest.mark.parametrize("size", [256, 512, 700])
def test_the_picture_shows_a_row_for_each_value(size):
    values = report.header_facts(full_header())
    picture = report.draw_table(values, size)
    assert picture.shape == (size, size)
    assert text_rows(picture) == len(values)
    assert not picture[:, -size // 50 :].any()  # nothing runs out at the right, nor on any other side
    assert not picture[-size // 50 :].any()
    assert not picture[: size // 50].any()
    assert not picture[:, : size // 50].any()
    assert picture.max() > 200


def test_a_long_value_is_cut_and_many_rows_make_the_picture_higher():
    values = {f"name{number}": "W" * 200 for number in range(60)}
    picture = report.draw_table(values, 256)
    assert picture.shape[0] > 256
    assert picture.shape[1] == 256
    assert text_rows(picture) == 60
    assert not picture[:, -5:].any()


def test_letters_differ():
    """The picture holds text, not boxes: other letters give another picture."""
    assert np.any(report.draw_table({"a": "Zürich"}, 256) != report.draw_table({"a": "Zurich"}, 256))


def test_pixels_and_window():
    _, image, meta = run([], full_header(), reportSize="300")
    assert (image.data.dtype, image.data.shape) == (np.int16, (1, 1, 300, 300))
    assert image.data.max() > 3000
    assert (meta["WindowCenter"], meta["WindowWidth"]) == ("2048", "4096")
    assert tuple(image.getHead().field_of_view) == (300, 300, 1)


def test_original_images_on_request():
    images = [make_image(np.ones((3, 3), np.int16), series=4)]
    assert len(run(images)[0].images) == 1
    connection, image, _ = run(images, sendOriginal="True")
    assert connection.images == [*images, image]
    assert image.image_series_index == 5


@pytest.mark.parametrize("parameters", [{"reportSize": 10}, {"reportSize": 300.5}, {"sendOriginal": "perhaps"}])
def test_wrong_parameters_are_named(parameters):
    with pytest.raises(ConfigurationError, match=next(iter(parameters))):
        run([], **parameters)


def test_the_example_json_says_the_defaults():
    sent = json.loads((PROJECT / "report.json").read_text("utf-8"))
    assert report.read_parameters(report.Parameters, sent) == report.Parameters()
    assert set(sent["parameters"]) == {"reportSize", "sendOriginal"}


def test_through_server_and_client_the_values_are_in_the_file(server, tmp_path):
    source, output = tmp_path / "scan.h5", tmp_path / "report.h5"
    with MrdWriter(source, "dataset") as writer:
        writer.write_header(full_header())
        writer.write(make_image(np.arange(12, dtype=np.uint16).reshape(3, 4)))
    running = server(module_folders=(PROJECT,))
    outcome = client.run(client.ClientOptions(source, port=running.port, config="report", output=output))
    assert outcome.errors == []
    with MrdReader(output) as file:
        (image,) = file.images()
    assert (image.meta["protocolName"], image.meta["pixelMean"]) == ("GRE <räumlich> & quer", "5.5")
