"""Flow against the closed form of Poiseuille flow in a round vessel: v(r) = v_max (1 - (r/R)^2)."""

import json
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

import analyzeflow
import client
from cartesian_data import FakeConnection, make_header, make_image
from mrdio.mrdfile import MrdReader, MrdWriter
from recon.configuration import ConfigurationError

PROJECT = Path(analyzeflow.__file__).parent
VENC, PEAK = 150.0, 120.0  # [cm/s]


def poiseuille(shape=(33, 40), centre=(18, 15), radius=11.5, peak=PEAK):
    """Velocity [cm/s] and whether a pixel is in the vessel; off centre, so that a flip or a transpose is seen."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    r2 = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / radius**2
    return np.where(r2 < 1, peak * (1 - r2), 0.0), r2 < 1


def flow_pair(velocity, inside, seed=0, venc=VENC, kind="unsigned", **fields):
    """Magnitude and phase image; outside the vessel there is a weak magnitude and a random phase."""
    rng = np.random.default_rng(seed)
    magnitude = np.where(inside, 900, rng.integers(0, 60, inside.shape)).astype(np.uint16)
    phase = np.where(inside, velocity / venc, rng.uniform(-1, 0.999, inside.shape))  # in units of venc
    pixels = {
        "unsigned": np.rint(phase * 2048 + 2048).clip(0, 4095).astype(np.uint16),
        "signed": np.rint(phase * 2048).clip(-2048, 2047).astype(np.int16),
        "radians": (phase * np.pi).astype(np.float32),
    }[kind]
    meta = {"Venc": str(venc)} if venc else {}
    images = [
        make_image(magnitude, series=1, image_type=ismrmrd.IMTYPE_MAGNITUDE),
        make_image(pixels, series=2, image_type=ismrmrd.IMTYPE_PHASE, meta=meta),
    ]
    for image in images:
        for name, value in fields.items():
            setattr(image, name, value)
    return images


def run(items, metadata="no header", **parameters):
    connection = FakeConnection(items)
    analyzeflow.process(connection, {"parameters": parameters} if parameters else "analyzeflow", metadata)
    velocities = [image for image in connection.images if "VelocityUnit" in image.meta]
    for image in velocities:  # what goes out must survive the wire
        assert np.array_equal(ismrmrd.Image.from_bytes(image.to_bytes()).data, image.data)
    return connection, velocities


def in_cm_s(image):
    assert image.data.dtype == np.int16
    assert (image.meta["VelocityUnit"], image.meta["RescaleIntercept"]) == ("cm/s", "0")
    return image.data[0, 0] * float(image.meta["RescaleSlope"])


@pytest.mark.parametrize("kind", ["unsigned", "signed", "radians"])
@pytest.mark.parametrize("sign", [1, -1])
def test_poiseuille_flow(kind, sign):
    velocity, inside = poiseuille(peak=sign * PEAK)
    connection, (image,) = run(flow_pair(velocity, inside, kind=kind))
    measured = in_cm_s(image)
    step = VENC / (2048 if kind != "radians" else 4096)
    np.testing.assert_allclose(measured[inside], velocity[inside], atol=step / 2 * 1.001)
    assert np.all(measured[~inside] == 0)
    # Mean velocity of the closed form is half the peak; the rest is the pixels at the edge.
    assert measured[inside].mean() == pytest.approx(sign * PEAK / 2, rel=0.02)
    assert connection.logs == []


def test_header_and_attributes():
    velocity, inside = poiseuille()
    pair = flow_pair(velocity, inside, slice=3, phase=7, position=(1, 2, 3))
    pair[1].meta = ismrmrd.Meta({"Venc": "150", "VencDirection": "through", "ImageProcessingHistory": "DICOM"})
    connection, (image,) = run(pair)
    assert connection.images[0] is pair[0]
    head, meta = image.getHead(), image.meta
    assert (head.image_type, head.image_series_index, head.slice, head.phase) == (ismrmrd.IMTYPE_PHASE, 102, 3, 7)
    assert tuple(head.position) == (1, 2, 3)
    assert meta["ImageProcessingHistory"] == ["DICOM", "VELOCITY"]
    assert (meta["VencDirection"], float(meta["Venc"])) == ("through", 150)
    assert (meta["WindowCenter"], meta["WindowWidth"], meta["Keep_image_geometry"]) == ("0", "8192", "1")
    assert [float(v) for v in meta["ImageRowDir"]] == [1, 0, 0]


def test_any_order_slices_phases_and_sizes():
    expected, items = {}, []
    for slice_, shape in enumerate([(33, 40), (24, 31)]):
        for phase in range(3):
            velocity, inside = poiseuille(shape, (12, 13), 9, peak=20 * (phase + 1) + 10 * slice_)
            expected[slice_, phase] = velocity
            items += flow_pair(velocity, inside, slice=slice_, phase=phase, position=(0, 0, 8 * slice_))
    np.random.default_rng(1).shuffle(items)
    _, images = run(items)
    assert len(images) == 6
    for image in images:
        np.testing.assert_allclose(in_cm_s(image), expected[image.slice, image.phase], atol=VENC / 4096 * 1.001)


def test_one_magnitude_serves_three_directions():
    velocity, inside = poiseuille()
    magnitude, *_ = flow_pair(velocity, inside)
    phases = [flow_pair(velocity * factor, inside, set=number)[1] for number, factor in enumerate((1, -0.5, 0.25))]
    _, images = run([*phases, magnitude])
    assert [round(float(in_cm_s(image)[18, 15])) for image in images] == [120, -60, 30]


def test_sets_tell_magnitudes_apart_and_else_their_order():
    velocity, inside = poiseuille()
    for counters in ({"set": 1}, {"image_index": 2}):
        first = flow_pair(velocity, inside)
        second = flow_pair(velocity, inside, **counters)
        second[0].data[:] = 0
        second[0].data[0, 0, 18, 15] = 900  # only the middle is above the threshold
        _, images = run([second[0], first[1], first[0], second[1]])
        assert [int(np.count_nonzero(image.data)) for image in images] == [np.count_nonzero(inside), 1]


def test_unpaired_images_come_back_unchanged_with_a_warning():
    velocity, inside = poiseuille()
    pairs = [flow_pair(velocity, inside, slice=number) for number in range(3)]
    other_size = make_image(np.zeros((5, 5), np.uint16))
    other_size.slice = 1
    connection, images = run([*pairs[0], pairs[1][1], other_size, pairs[2][0]])
    assert len(images) == 1
    assert pairs[1][1] in connection.images
    assert len(connection.images) == 5
    ((level, text),) = connection.logs
    assert level.strip() == "WARNING"
    assert "1 of 2 phase images sent back unchanged: no magnitude image" in text


def test_unclear_magnitudes_are_not_guessed():
    velocity, inside = poiseuille()
    connection, images = run([*flow_pair(velocity, inside), flow_pair(velocity, inside)[0]])
    assert images == []
    assert "no magnitude image" in connection.logs[0][1]


@pytest.mark.parametrize("where", ["JSON", "double", "long", "meta wins", "junk"])
def test_venc_is_found(where):
    velocity, inside = poiseuille()
    xsd, header = ismrmrd.xsd, make_header()
    users = xsd.userParametersType()
    if where in ("double", "meta wins", "junk"):
        users.userParameterDouble = [xsd.userParameterDoubleType(name="Venc", value=75.0)]
    if where == "long":
        users.userParameterLong = [xsd.userParameterLongType(name="FlowVenc", value=75)]
    header.userParameters = users
    pair = flow_pair(velocity, inside)
    pair[1].meta = ismrmrd.Meta({"meta wins": {"Venc": "75"}, "junk": {"Venc": "v75"}}.get(where, {}))
    if where == "meta wins":
        users.userParameterDouble[0].value = 1.0
    _, (image,) = run(pair, header, **({"venc": "75"} if where == "JSON" else {}))
    np.testing.assert_allclose(in_cm_s(image), velocity / 2, atol=VENC / 8192 * 1.001)


@pytest.mark.parametrize("venc", [None, "nan", "-5", ["1", "2"]])
def test_without_venc_velocity_is_in_units_of_it(venc):
    velocity, inside = poiseuille()
    pair = flow_pair(velocity, inside, venc=VENC)
    pair[1].meta = ismrmrd.Meta({} if venc is None else {"Venc": venc})
    connection, (image,) = run(pair)
    assert image.meta["VelocityUnit"] == "venc"
    scaled = image.data[0, 0] * float(image.meta["RescaleSlope"])
    np.testing.assert_allclose(scaled, velocity / VENC, atol=1 / 4096)
    assert "without venc" in connection.logs[0][1]


def test_threshold_is_a_fraction_of_the_series_largest_magnitude():
    velocity, inside = poiseuille()
    first, second = flow_pair(velocity, inside, phase=0), flow_pair(velocity, inside, phase=1)
    second[0].data[:] = second[0].data // 4  # 225 of 900
    counts = {}
    for threshold in (0.2, 0.3):
        _, images = run([*first, *second], maskThreshold=threshold)
        counts[threshold] = [int(np.count_nonzero(image.data)) for image in images]
    assert counts == {0.2: [np.count_nonzero(inside)] * 2, 0.3: [np.count_nonzero(inside), 0]}


def test_rescale_attributes_of_dicom_images():
    """Stored 0 to 1000 means -500 to 500: zero at 500."""
    pixels = np.array([[0, 250], [500, 1000]], np.uint16)
    image = make_image(
        pixels,
        image_type=ismrmrd.IMTYPE_PHASE,
        meta={"RescaleSlope": "2", "RescaleIntercept": "-1000", "Venc": "80"},
    )
    _, (velocity,) = run([make_image(np.full((2, 2), 9, np.uint16)), image])
    np.testing.assert_allclose(in_cm_s(velocity), [[-80, -40], [0, 80]])


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((2, 2), 5000, np.uint16), "outside 0 to 4096"),
        (np.full((2, 2), 4000, np.int16), "outside -2048 to 2048"),
        (np.full((2, 2), 180, np.float32), "outside -3.1416 to 3.1416"),
        (np.ones((2, 2), np.complex64), "complex"),
    ],
)
def test_pixels_that_are_no_phase_come_back_unchanged(pixels, said):
    image = make_image(pixels, image_type=ismrmrd.IMTYPE_PHASE, meta={"Venc": "80"})
    connection, velocities = run([make_image(np.ones((2, 2), np.uint16)), image])
    assert velocities == []
    assert image in connection.images
    assert said in connection.logs[0][1]


def test_bits_stored_of_the_header():
    image = make_image(np.full((2, 2), 49152, np.uint16), image_type=ismrmrd.IMTYPE_PHASE, meta={"Venc": "80"})
    _, (velocity,) = run([make_image(np.ones((2, 2), np.uint16)), image], make_header(bits=16))
    np.testing.assert_allclose(in_cm_s(velocity), 40)


def test_pixels_that_are_not_finite():
    phase = make_image(
        np.array([[np.nan, np.inf], [1, -1]], np.float32), image_type=ismrmrd.IMTYPE_PHASE, meta={"Venc": "3.2"}
    )
    magnitude = make_image(np.array([[1, 1], [np.nan, 1]], np.float32))
    _, (image,) = run([magnitude, phase])
    assert image.data[0, 0].tolist() == [[0, 0], [0, -round(4096 / np.pi)]]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"maskThreshold": 1.5}, "maskThreshold = 1.5: must be a number from 0 to 1"), ({"venc": "fast"}, "venc = 'fast'"),
     ({"maskThreshold": True}, "maskThreshold = True")],
)  # fmt: skip
def test_wrong_parameters_are_named(parameters, said):
    with pytest.raises(ConfigurationError, match="JSON parameters") as caught:
        run([], **parameters)
    assert said in str(caught.value)


def test_what_is_no_flow_data_is_said():
    connection, _ = run([ismrmrd.Acquisition.from_array(np.ones((1, 4), np.complex64))])
    assert [text for _, text in connection.logs] == [
        "1 readouts are ignored: analyzeflow takes images", "there were no phase images, so there is no velocity",
    ]  # fmt: skip


def test_the_example_json_says_the_defaults():
    sent = json.loads((PROJECT / "analyzeflow.json").read_text("utf-8"))
    assert analyzeflow.read_parameters(analyzeflow.Parameters, sent) == analyzeflow.Parameters()
    assert set(sent["parameters"]) == {"maskThreshold", "venc"}


def test_through_server_and_client(server, tmp_path):
    velocity, inside = poiseuille()
    source, output = tmp_path / "flow.h5", tmp_path / "velocity.h5"
    with MrdWriter(source, "dataset") as writer:
        writer.write_header(make_header())
        for image in flow_pair(velocity, inside):
            writer.write(image)
    running = server(module_folders=(PROJECT,))
    outcome = client.run(client.ClientOptions(source, port=running.port, config="analyzeflow", output=output))
    assert outcome.errors == []
    with MrdReader(output) as file:
        images = {image.image_series_index: image for image in file.images()}
    assert sorted(images) == [1, 102]
    np.testing.assert_allclose(in_cm_s(images[102]), velocity, atol=VENC / 4096 * 1.001)
