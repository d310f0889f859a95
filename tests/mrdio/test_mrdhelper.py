import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest

import mrdhelper
from cartesian_data import make_header, make_readout
from constants import MessageId
from mrdio.codec import IMAGE_DTYPES, encode
from mrdio.pixeltypes import PIXEL_TYPES


def header_with_parameters():
    xsd = ismrmrd.xsd
    header = make_header()
    header.userParameters = xsd.userParametersType(
        userParameterLong=[xsd.userParameterLongType(name="a", value=3)],
        userParameterDouble=[xsd.userParameterDoubleType(name="a", value=1.5)],
        userParameterString=[xsd.userParameterStringType(name="a", value="text")],
        userParameterBase64=[xsd.userParameterBase64Type(name="a", value="hé".encode())],
    )
    return header


@pytest.mark.parametrize("way", ["direct", "through xml"])
def test_user_parameters(way):
    header = header_with_parameters()
    if way == "through xml":
        header = ismrmrd.xsd.CreateFromDocument(header.toXML("utf-8"))
    assert mrdhelper.get_userParameterLong_value(header, "a") == 3
    assert mrdhelper.get_userParameterDouble_value(header, "a") == 1.5
    assert mrdhelper.get_userParameterString_value(header, "a") == "text"
    assert mrdhelper.get_userParameterBase64_value(header, "a") == "hé"


@pytest.mark.parametrize("metadata", ["no valid header", None, make_header(), header_with_parameters()])
def test_absent_user_parameters_are_none(metadata):
    for kind in ("Long", "Double", "String", "Base64"):
        assert getattr(mrdhelper, f"get_userParameter{kind}_value")(metadata, "absent") is None


def test_bits_stored():
    assert mrdhelper.bits_stored("text") == 12
    assert mrdhelper.bits_stored(make_header(bits=16)) == 16
    with pytest.raises(ValueError, match="BitsStored is 99; expected 1 to 16"):
        mrdhelper.bits_stored(make_header(bits=99))


def test_ticks():
    assert mrdhelper.ticks_to_seconds(400) == 1.0


def test_meta_value():
    assert mrdhelper.get_meta_value(ismrmrd.Meta(a="1"), "a") == "1"
    assert mrdhelper.get_meta_value(ismrmrd.Meta(), "a") is None
    assert mrdhelper.get_meta_value(None, "a") is None


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, "int", 3), ("3", "int", 3), (3.0, "int", 3), (2.5, "float", 2.5), ("2.5", "double", 2.5),
        ("x", "str", "x"), (4, "string", "4"), ("roi", "choice", "roi"),
        (True, "bool", True), ("True", "bool", True), ("false", "boolean", False), (0, "bool", False),
    ],
)  # fmt: skip
def test_json_parameter(value, kind, expected):
    result = mrdhelper.get_json_config_param({"parameters": {"key": value}}, "key", type=kind)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", "int"),
        (2.5, "int"),
        (True, "int"),
        (float("inf"), "int"),
        ([], "float"),
        (True, "float"),
        ({}, "str"),
        ("maybe", "bool"),
        (2, "bool"),
    ],
)
def test_wrong_json_parameter_names_key_and_value(value, kind):
    with pytest.raises(ValueError, match=r"'threshold'.*expected"):
        mrdhelper.get_json_config_param({"parameters": {"threshold": value}}, "threshold", type=kind)


def test_unknown_json_type_is_an_error():
    with pytest.raises(ValueError, match="'integer' is not known"):
        mrdhelper.get_json_config_param("name", "key", type="integer")


@pytest.mark.parametrize("config", ["invertcontrast", None, {}, {"parameters": None}, {"parameters": {"key": None}}])
def test_absent_json_parameter_is_the_default(config):
    assert mrdhelper.get_json_config_param(config, "key", default=7, type="int") == 7


def test_roi_round_trip():
    values = mrdhelper.create_roi([1, 2.5, 3], [4, 5, 6], rgb=(0, 0.5, 1), thickness=2, style=1, visibility=0)
    assert values[:6] == ["0", "0.5", "1", "2", "1", "0"]
    assert values[6:10] == ["1", "4", "2.5", "5"]
    x, y, rgb, thickness, style, visibility = mrdhelper.parse_roi(values)
    np.testing.assert_array_equal(x, [1, 2.5, 3])
    np.testing.assert_array_equal(y, [4, 5, 6])
    assert (rgb, thickness, style, visibility) == ((0, 0.5, 1), 2, 1, 0)


@pytest.mark.parametrize("values", [["1"] * 5, ["1"] * 7, ["x"] * 8, ["nan"] * 8, [None] * 8])
def test_broken_roi_is_a_value_error(values):
    with pytest.raises(ValueError, match="ROI"):
        mrdhelper.parse_roi(values)


def test_text_round_trip():
    values = mrdhelper.create_text(10, 20, (1, 0, 0.5), 1, "peak: 3 m/s")
    assert values == ["1", "0", "0.5", "10", "20", "1", "peak: 3 m/s"]
    assert mrdhelper.parse_text(values) == (10, 20, (1, 0, 0.5), 1, "peak: 3 m/s")
    with pytest.raises(ValueError, match="7 values"):
        mrdhelper.parse_text(values[:-1])


MINIHEAD = """<ParamMap."x"> { <ParamBool."BIsSeriesEnd">  { "true"  }
<ParamBool."Off"> { } <ParamBool."Said"> { "false" } <ParamLong."NumberInSeries">  { 3 } <ParamLong."Neg"> { -12 }
<ParamDouble."TE">  { <Precision> 6  2.5e-1 } <ParamDouble."TR"> { 7. } <ParamString."Name.1"> { "a ""b"" c" }
<ParamString."Empty"> { } }"""


def test_minihead():
    assert mrdhelper.extract_minihead_bool_param(MINIHEAD, "BIsSeriesEnd") is True
    assert mrdhelper.extract_minihead_bool_param(MINIHEAD, "Off") is False
    assert mrdhelper.extract_minihead_bool_param(MINIHEAD, "Said") is False
    assert mrdhelper.extract_minihead_long_param(MINIHEAD, "NumberInSeries") == 3
    assert mrdhelper.extract_minihead_long_param(MINIHEAD, "Neg") == -12
    assert mrdhelper.extract_minihead_double_param(MINIHEAD, "TE") == 0.25
    assert mrdhelper.extract_minihead_double_param(MINIHEAD, "TR") == 7.0
    assert mrdhelper.extract_minihead_string_param(MINIHEAD, "Name.1") == 'a "b" c'
    assert mrdhelper.extract_minihead_string_param(MINIHEAD, "NameX1") == ""


@pytest.mark.parametrize("text", ["", None, "nonsense", MINIHEAD])
def test_absent_minihead_values(text):
    assert mrdhelper.extract_minihead_bool_param(text, "absent") is False
    assert mrdhelper.extract_minihead_long_param(text, "absent") == 0
    assert mrdhelper.extract_minihead_double_param(text, "absent") == 0.0
    assert mrdhelper.extract_minihead_string_param(text, "absent") == ""


def test_update_header_copies_what_an_image_inherits():
    readout = make_readout(np.ones((2, 8)), slice=3, contrast=1, phase=2, repetition=4, set=5, average=6)
    readout.measurement_uid = 77
    readout.physiology_time_stamp = (9, 8, 7)
    readout.user_int = tuple(range(8))
    readout.user_float = tuple(0.5 * n for n in range(8))
    readout.patient_table_position = (0, 0, -5)
    head = ismrmrd.ImageHeader()
    assert mrdhelper.update_img_header_from_raw(head, readout.getHead()) is head
    assert (head.slice, head.contrast, head.phase, head.repetition, head.set, head.average) == (3, 1, 2, 4, 5, 6)
    assert head.position[:] == [1, 2, 3]
    assert head.read_dir[:] == [1, 0, 0]
    assert head.phase_dir[:] == [0, 1, 0]
    assert head.slice_dir[:] == [0, 0, 1]
    assert head.patient_table_position[:] == [0, 0, -5]
    assert (head.measurement_uid, head.acquisition_time_stamp) == (77, 1001)
    assert head.physiology_time_stamp[:] == [9, 8, 7]
    assert head.user_int[:] == list(range(8))
    assert head.user_float[:] == [0.5 * n for n in range(8)]
    assert (head.image_type, head.image_index, head.image_series_index) == (ismrmrd.IMTYPE_MAGNITUDE, 1, 0)


def test_update_header_with_none_changes_nothing():
    head = ismrmrd.ImageHeader()
    head.image_index, head.slice = 5, 2
    mrdhelper.update_img_header_from_raw(head, None)
    assert (head.image_index, head.slice) == (5, 2)


def test_update_header_from_an_image_header():
    source = ismrmrd.ImageHeader()
    source.slice, source.position = 4, (1, 2, 3)
    head = mrdhelper.update_img_header_from_raw(ismrmrd.ImageHeader(), source)
    assert (head.slice, head.position[:]) == (4, [1, 2, 3])


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (15, 32767), (16, 32767)])
def test_scale_reaches_the_top_and_clips(bits, top):
    data = np.array([0.0, 1.0, 2.0, 3.0, -3.0])
    np.testing.assert_array_equal(mrdhelper.scale_to_int16(data, bits, maximum=2), [0, round(top / 2), top, top, -top])
    assert mrdhelper.scale_to_int16(data, bits).max() == top


def test_scale_survives_odd_input():
    data = np.array([np.nan, np.inf, -np.inf, 1e300, 1.0], dtype=np.float64)
    scaled = mrdhelper.scale_to_int16(data, 12, maximum=1.0)
    np.testing.assert_array_equal(scaled, [0, 4095, -4095, 4095, 4095])
    np.testing.assert_array_equal(mrdhelper.scale_to_int16(np.array([np.nan, np.inf, 5]), 12), [0, 4095, 4095])
    assert not mrdhelper.scale_to_int16(np.zeros((2, 3)), 12).any()
    assert not mrdhelper.scale_to_int16(np.full((2, 3), np.nan), 12).any()
    assert mrdhelper.scale_to_int16(np.empty((0, 3)), 12).shape == (0, 3)
    assert mrdhelper.scale_to_int16(np.array([3 + 4j, 0]), 12).tolist() == [4095, 0]
    assert mrdhelper.scale_to_int16(np.array([-32768, 1], dtype=np.int16), 12).tolist() == [-4095, 0]
    with pytest.raises(ValueError, match="maximum"):
        mrdhelper.scale_to_int16(data, 12, maximum=-1)


@pytest.mark.parametrize(
    ("shape", "matrix", "channels"), [((3, 5), (5, 3, 1), 1), ((2, 3, 5), (5, 3, 2), 1), ((4, 2, 3, 5), (5, 3, 2), 4)]
)
def test_build_image(shape, matrix, channels):
    header = make_header(recon_fov=(100, 80, 5), encoded_fov=(200, 80, 5), bits=10)
    readout = make_readout(np.ones((2, 8)), slice=3)
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    image = mrdhelper.build_image(data, readout.getHead(), header, index=7, series=2, meta={"ImageComment": "x"})
    head = image.getHead()
    assert tuple(head.matrix_size) == matrix
    assert head.channels == channels
    np.testing.assert_array_equal(image.data.reshape(shape), data)
    assert (head.image_index, head.image_series_index, head.slice) == (7, 2, 3)
    assert (head.image_type, head.data_type) == (ismrmrd.IMTYPE_MAGNITUDE, ismrmrd.DATATYPE_SHORT)
    assert head.field_of_view[:] == [100, 80, 5]
    meta = ismrmrd.Meta.deserialize(image.attribute_string)
    assert (meta["DataRole"], meta["Keep_image_geometry"], meta["ImageComment"]) == ("Image", "1", "x")
    assert (meta["WindowCenter"], meta["WindowWidth"]) == ("512", "1024")
    assert [float(v) for v in meta["ImageRowDir"]] == [1, 0, 0]
    assert [float(v) for v in meta["ImageColumnDir"]] == [0, 1, 0]
    assert ismrmrd.Image.from_bytes(image.to_bytes()).getHead().image_index == 7


def test_build_complex_and_float_images_without_header():
    image = mrdhelper.build_image(np.ones((4, 4), np.complex64), None, "text", index=1, field_of_view=(1, 2, 3))
    assert image.image_type == ismrmrd.IMTYPE_COMPLEX
    assert image.getHead().field_of_view[:] == [1, 2, 3]
    assert "WindowCenter" not in image.meta
    assert "ImageRowDir" not in image.meta  # directions of length zero say nothing
    phase = mrdhelper.build_image(np.ones((4, 4), np.int16), None, "text", index=1, image_type=ismrmrd.IMTYPE_PHASE)
    assert phase.image_type == ismrmrd.IMTYPE_PHASE
    assert "WindowCenter" not in phase.meta


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3,), r"\(3,\) has 1 axes"),
        ((1, 1, 1, 2, 3), r"\(1, 1, 1, 2, 3\)"),
        ((1, 65536), r"\(1, 65536\) has more than"),
    ],
)
def test_build_image_names_shapes_that_do_not_fit(shape, said):
    with pytest.raises(ValueError, match=said):
        mrdhelper.build_image(np.zeros(shape, np.float32), None, "", index=1)


LIMITS = {"bool": [False, True], "int64": [-(2**31), 2**31 - 1], "uint64": [0, 2**32 - 1]}


@pytest.mark.parametrize(
    ("given", "sent"),
    [("uint8", "uint16"), ("int8", "int16"), ("bool", "uint16"), ("float16", "float32"), ("int64", "int32"),
     ("uint64", "uint32"), (">f4", "float32"), (">i2", "int16"),
     *((name, name) for name in PIXEL_TYPES)],
)  # fmt: skip
def test_build_image_takes_every_type_without_loss(given, sent):
    info = np.iinfo(given) if np.dtype(given).kind in "iu" else None if given == "bool" else np.finfo(given)
    values = np.array([LIMITS.get(given) or [info.min, info.max]], given)
    image = mrdhelper.build_image(values, None, "", index=1)
    assert IMAGE_DTYPES[image.getHead().data_type] == sent
    written = b"".join(map(bytes, encode(MessageId.ISMRMRD_IMAGE, image)))
    received = np.frombuffer(written[-2 * np.dtype(sent).itemsize :], sent)
    np.testing.assert_array_equal(received, values[0])


@pytest.mark.parametrize(("value", "said"), [(2**31, "from 0 to 2147483648"), (-(2**31) - 1, "from -2147483649 to 0")])
def test_integers_that_would_wrap_are_refused(value, said):
    with pytest.raises(ValueError, match=rf"shape \(1, 2\).*{said}.*astype"):
        mrdhelper.build_image(np.array([[0, value]]), None, "", index=1)


@pytest.mark.parametrize("dtype", ["U3", "datetime64[s]", "object", "i2,i2"])
def test_build_image_names_the_types_that_it_takes(dtype):
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*expected one of uint16, .*complex128"):
        mrdhelper.build_image(np.zeros((2, 3), dtype), None, "", index=1)


@pytest.mark.parametrize(
    ("of_header", "dtype", "expected"),
    [(ismrmrd.IMTYPE_PHASE, "i2", ismrmrd.IMTYPE_PHASE), (ismrmrd.IMTYPE_REAL, "f4", ismrmrd.IMTYPE_REAL),
     (ismrmrd.IMTYPE_COMPLEX, "f4", ismrmrd.IMTYPE_MAGNITUDE), (ismrmrd.IMTYPE_PHASE, "c8", ismrmrd.IMTYPE_COMPLEX),
     (0, "f4", ismrmrd.IMTYPE_MAGNITUDE)],
)  # fmt: skip
def test_build_image_keeps_type_and_counters_of_an_image(of_header, dtype, expected):
    head = ismrmrd.ImageHeader()
    head.image_type, head.image_index, head.image_series_index = of_header, 9, 4
    head.slice, head.repetition, head.phase = 3, 2, 5
    head.field_of_view = (10, 20, 30)
    pixels = np.zeros((3, 5), dtype)
    image = mrdhelper.build_image(pixels, head, make_header())
    assert (image.image_type, image.image_index, image.image_series_index) == (expected, 9, 4)
    assert (image.slice, image.repetition, image.phase) == (3, 2, 5)
    assert tuple(image.field_of_view) == (10, 20, 30)
    given = mrdhelper.build_image(pixels, head, "", index=1, series=0, image_type=ismrmrd.IMTYPE_REAL)
    assert (given.image_type, given.image_index, given.image_series_index) == (ismrmrd.IMTYPE_REAL, 1, 0)
    alone = mrdhelper.build_image(pixels, None, "")
    assert (alone.image_index, alone.image_series_index) == (1, 0)


def test_directions_that_are_there_stay():
    meta = {"ImageRowDir": ["0", "0", "1"]}
    mrdhelper.set_image_directions(meta, make_readout(np.ones((1, 4))).getHead())
    assert meta["ImageRowDir"] == ["0", "0", "1"]
    assert [float(v) for v in meta["ImageColumnDir"]] == [0, 1, 0]
