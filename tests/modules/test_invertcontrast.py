import base64
import importlib.util
import json
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

import invertcontrast
import mrdhelper
from cartesian_data import FakeConnection, make_header, make_image, make_readout, point_kspace, readouts_of

SOURCE = Path(invertcontrast.__file__)


def run(items, metadata="no header", module=invertcontrast, **parameters):
    connection = FakeConnection(items)
    module.process(connection, {"parameters": parameters} if parameters else "invertcontrast", metadata)
    assert connection.closed == 0
    for image in connection.images:  # what goes out must survive the wire
        assert np.array_equal(ismrmrd.Image.from_bytes(image.to_bytes()).data, image.data)
    return connection


# ---------------------------------------------------------------------------------------------------------- images
def test_images_are_normalised_together_and_inverted():
    a, b = np.array([[0, 100], [50, 25]], np.int16), np.array([[200, 0], [0, 1]], np.int16)
    images = run([make_image(a, index=1), make_image(b, index=2)]).images
    np.testing.assert_array_equal(images[0].data[0, 0], 4095 - np.rint(a / 200 * 4095))
    np.testing.assert_array_equal(images[1].data[0, 0], 4095 - np.rint(b / 200 * 4095))
    assert [image.image_index for image in images] == [1, 2]
    head, meta = images[0].getHead(), images[0].meta
    assert (head.data_type, head.image_type) == (ismrmrd.DATATYPE_SHORT, ismrmrd.IMTYPE_MAGNITUDE)
    assert (meta["DataRole"], meta["Keep_image_geometry"]) == ("Image", "1")
    assert (meta["WindowCenter"], meta["WindowWidth"]) == ("2048", "4096")
    assert [float(v) for v in meta["ImageRowDir"]] == [1, 0, 0]
    assert meta["ImageProcessingHistory"][-1] == "INVERT"


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64])
def test_pixel_types_and_bits(dtype):
    data = np.array([[0, 1], [2, 4]], dtype)
    image = run([make_image(data)], make_header(bits=8)).images[0]
    np.testing.assert_array_equal(image.data[0, 0], [[255, 191], [127, 0]])


def test_existing_attributes_stay():
    meta = {"ImageRowDir": ["0", "0", "1"], "ImageComment": "mine", "ImageProcessingHistory": "SCANNER"}
    image = run([make_image(np.ones((2, 2), np.int16), meta=meta)]).images[0]
    assert (image.meta["ImageRowDir"], image.meta["ImageComment"]) == (["0", "0", "1"], "mine")
    assert image.meta["ImageProcessingHistory"] == ["SCANNER", "INVERT"]


def test_series_are_scaled_apart_even_when_they_interleave():
    items = [make_image(np.full((2, 2), (series + 1) * 10, np.int16), series=series) for series in (0, 1, 0, 1)]
    items[2].data[:] = 5
    images = run(items).images
    assert [image.image_series_index for image in images] == [0, 0, 1, 1]
    assert [int(image.data[0, 0, 0, 0]) for image in images] == [0, 4095 - 2048, 0, 0]


def test_sizes_may_differ_in_a_series():
    items = [make_image(np.full(shape, 7, np.int16), index=n) for n, shape in enumerate([(2, 3), (4, 5), (2, 3)])]
    images = run(items).images
    assert sorted(image.data.shape for image in images) == [(1, 1, 2, 3), (1, 1, 2, 3), (1, 1, 4, 5)]


def test_volumes_and_channels_keep_their_axes():
    data = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    image = run([make_image(data)]).images[0]
    np.testing.assert_array_equal(image.data, 4095 - np.rint(data / 119 * 4095).astype(np.int16))
    assert tuple(image.matrix_size) == (5, 4, 3)


def test_empty_images_do_not_divide_by_zero():
    image = run([make_image(np.zeros((3, 3), np.int16))]).images[0]
    assert np.all(image.data == 4095)


@pytest.mark.parametrize(
    "kind", [ismrmrd.IMTYPE_PHASE, ismrmrd.IMTYPE_REAL, ismrmrd.IMTYPE_IMAG, ismrmrd.IMTYPE_COMPLEX]
)
def test_other_image_types_pass_through(kind):
    image = make_image(
        np.array([[1, 2], [3, 4]], np.complex64 if kind == ismrmrd.IMTYPE_COMPLEX else np.int16), image_type=kind
    )
    assert run([image]).images == [image]


def test_series_end_of_the_scanner_sends_at_once():
    mini = base64.b64encode(b'<ParamBool."BIsSeriesEnd">  { "true"  }').decode()
    connection = FakeConnection()
    sent = []

    def scan():
        yield make_image(np.ones((2, 2), np.int16), index=1)
        yield make_image(np.ones((2, 2), np.int16), index=2, meta={"IceMiniHead": mini})
        sent.append(len(connection.images))
        yield make_image(np.ones((2, 2), np.int16), index=3)

    connection.items = scan()
    invertcontrast.process(connection, "invertcontrast", "")
    assert sent == [2]
    assert len(connection.images) == 3


@pytest.mark.parametrize("encoded", ["not base64!", "AAA", ["x", "y"]])
def test_a_broken_mini_header_is_survived(encoded):
    assert len(run([make_image(np.ones((2, 2), np.int16), meta={"IceMiniHead": encoded})]).images) == 1


# ---------------------------------------------------------------------------------------------------------- options
def test_option_roi():
    image = run([make_image(np.ones((16, 24), np.int16))], options="roi").images[0]
    x, y, rgb, *_ = mrdhelper.parse_roi(image.meta["ROI_example"])
    assert (x.min(), x.max(), y.min(), y.max()) == (10, 14, 6, 10)
    assert rgb == (0, 1, 0)


def test_option_colormap():
    assert run([make_image(np.ones((4, 4), np.int16))], options="colormap").images[0].meta["LUTFileName"]


def test_option_rgb():
    data = np.array([[0, 1], [2, 4]], np.int16)
    image = run([make_image(data)], options="rgb").images[0]
    head = image.getHead()
    assert (head.image_type, head.channels, head.data_type) == (ismrmrd.IMTYPE_RGB, 3, ismrmrd.DATATYPE_USHORT)
    assert image.data.shape == (3, 1, 2, 2)
    assert image.data[:, 0, 1, 1].tolist() == [0, 0, 127]  # inverted: the brightest is dark blue of the colour map
    assert image.data[:, 0, 0, 0].tolist() == [127, 0, 0]
    assert image.meta["InternalSend"] == "1"
    assert not [key for key in image.meta if key.startswith("Window")]


def test_option_complex():
    header = make_header((8, 6, 1))
    kspace = point_kspace([(1, 1, 1.0)], (6, 8), (8, 6))
    image = run(readouts_of(np.stack([kspace, 2j * kspace])), header, options="complex").images[0]
    assert (image.image_type, image.data.dtype, image.data.shape) == (
        ismrmrd.IMTYPE_COMPLEX,
        np.complex64,
        (2, 1, 6, 8),
    )
    np.testing.assert_allclose(image.data[:, 0, 4, 5], [1, 2j], atol=1e-6)
    assert not [key for key in image.meta if key.startswith("Window")]


def test_wrong_option_is_named():
    with pytest.raises(ValueError, match="'options' is 'rainbow'"):
        run([make_image(np.ones((2, 2), np.int16))], options="rainbow")


@pytest.mark.parametrize("value", [True, "True"])
def test_send_original(value):
    data = np.array([[1, 2], [3, 4]], np.int16)
    original, inverted = run([make_image(data, series=2)], sendOriginal=value).images
    np.testing.assert_array_equal(original.data[0, 0], data)
    assert (original.image_series_index, inverted.image_series_index) == (101, 2)


def test_the_json_file_is_valid_and_leaves_the_config_alone():
    settings = json.loads(SOURCE.with_suffix(".json").read_text())
    assert set(settings["parameters"]).isdisjoint({"config", "customconfig"})
    connection = FakeConnection([make_image(np.ones((2, 2), np.int16))])
    invertcontrast.process(connection, settings, "")
    assert len(connection.images) == 1


# --------------------------------------------------------------------------------------------------------- raw data
@pytest.mark.parametrize("vendor", ["GE", "SIEMENS"])
def test_raw_data_is_reconstructed_and_inverted(vendor):
    header = make_header((16, 10, 1), (8, 10, 1), (16, 10, 5), (8, 10, 5), vendor=vendor)
    kspace = point_kspace([(1, 2, 1.0), (-2, -3, 0.5)], (10, 16), (16, 10))
    noise = make_readout(np.ones((1, 16)), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    (image,) = run([noise, ismrmrd.Waveform(), *readouts_of(kspace)], header).images
    sign = -1 if vendor == "SIEMENS" else 1
    expected = np.full((10, 8), 4095.0)
    expected[5 + 2 * sign, 4 + sign], expected[5 - 3 * sign, 4 - 2 * sign] = 0, 4095 - 2047.5
    np.testing.assert_allclose(image.data[0, 0], expected, atol=1)
    assert (image.image_index, image.image_series_index) == (1, 0)
    assert image.getHead().field_of_view[:] == [8, 10, 5]
    assert image.getHead().position[:] == [1, 2, 3]


def test_raw_series_has_one_scale_and_counts_images():
    header = make_header((8, 6, 1))
    items = [
        readout
        for slice_ in range(2)
        for readout in readouts_of(point_kspace([(0, 0, 1.0 + slice_)], (6, 8), (8, 6)), slice=slice_)
    ]
    images = run(items, header).images
    assert [int(image.data.min()) for image in images] == [4095 - 2048, 0]
    assert [image.image_index for image in images] == [1, 2]


def test_nothing_comes_of_nothing():
    assert not run([]).images
    assert not run([make_readout(np.ones(4), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])], make_header()).images
    assert invertcontrast.process_image([], None, "invertcontrast", "") == []


# -------------------------------------------------------------------------- the tutorials, as a reader applies them
def edited_copy(folder, name, source):
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.debugFolder = str(folder)
    return module


def replace_block(source, comment, new):
    """Replace the block that begins with a comment and ends before the next empty line."""
    lines = source.split("\n")
    (begin,) = (number for number, line in enumerate(lines) if line.strip() == comment)
    end = lines.index("", begin)
    indent = lines[begin][: lines[begin].index("#")]
    lines[begin:end] = [indent + line if line else line for line in new.strip("\n").split("\n")]
    return "\n".join(lines)


HANNING = """
# Apply Hanning filter
logging.info("Applying Hanning filter to k-space data")
filt = np.sqrt(np.outer(np.hanning(data.shape[1]), np.hanning(data.shape[2])))
filt = np.expand_dims(filt, axis=(0,3))
data = np.multiply(data,filt)
np.save(debugFolder + "/" + "rawFilt.npy", data)

# Fourier Transform
data = fft.fftshift( data, axes=(1, 2))
data = fft.ifft2(    data, axes=(1, 2))
data = fft.ifftshift(data, axes=(1, 2))
"""

EDGES = """
# Normalize to range 0-255
data = data.astype(np.float64)
data *= 255/data.max()

# Apply a 2D high-pass filter for each image
logging.info("Applying high-pass image filter")
from PIL import Image, ImageFilter
for iImg in range(data.shape[-1]):
    im = Image.fromarray(np.squeeze(data[...,iImg])).convert('RGB')
    im = im.filter(ImageFilter.FIND_EDGES)
    data[:,:,0,0,iImg] = np.asarray(im)[...,0]

# Rescale back to 16-bit
data = data * maxVal/data.max()
data = data.astype(np.int16)
np.save(debugFolder + "/" + "imgFiltered.npy", data)
"""


@pytest.mark.parametrize("vendor", ["GE", "SIEMENS"])
@pytest.mark.parametrize("whole_block", [True, False])
def test_tutorial_filter_in_kspace(tmp_path, vendor, whole_block):
    """Replace the transform as the tutorial does, or only put the filter before it, which suits odd sizes, too."""
    source = SOURCE.read_text()
    if whole_block:
        source = replace_block(source, "# Fourier transform", HANNING)
        columns, rows = 32, 24
    else:
        block = source[source.index("        # Fourier transform") :].split("\n\n")[0]
        unindented = "\n".join(line.strip() for line in block.split("\n"))
        filtering = HANNING.split("\n\n")[0]
        source = replace_block(source, "# Fourier transform", filtering + "\n\n" + unindented)
        columns, rows = 33, 23
    module = edited_copy(tmp_path, "filterkspace", source)

    header = make_header((columns, rows, 1), vendor=vendor)
    rng = np.random.default_rng(0)
    points = [(x, y, a) for x, y, a in zip(rng.integers(-8, 8, 9), rng.integers(-8, 8, 9), rng.random(9), strict=True)]
    kspace = point_kspace(points, (rows, columns), (columns, rows))
    (image,) = run(readouts_of(kspace), header, module=module).images

    filtered = kspace * np.sqrt(np.outer(np.hanning(rows), np.hanning(columns)))
    y, x = np.arange(rows) - rows // 2, np.arange(columns) - columns // 2
    sign = -1 if vendor == "SIEMENS" else 1
    expected = np.abs(
        np.exp(sign * 2j * np.pi * np.outer(y, y) / rows)
        @ filtered
        @ np.exp(sign * 2j * np.pi * np.outer(x, x) / columns)
    )
    np.testing.assert_allclose(image.data[0, 0], 4095 - expected / expected.max() * 4095, atol=1)
    saved = np.load(tmp_path / "rawFilt.npy")
    np.testing.assert_allclose(saved[0, :, :, 0], filtered, atol=1e-5)
    plain = run(readouts_of(kspace), header).images[0]
    assert np.abs(plain.data - image.data.astype(float)).max() > 400  # the filter does something


@pytest.mark.parametrize("raw", [False, True])
def test_tutorial_filter_on_images(tmp_path, raw):
    source = replace_block(SOURCE.read_text(), "# Invert image contrast", "")
    source = replace_block(source, "# Normalize and convert to int16", EDGES)
    module = edited_copy(tmp_path, "filterimage", "from PIL import Image, ImageFilter\n" + source)
    square = np.zeros((24, 32))
    square[8:16, 10:22] = 1
    if raw:
        kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(square)))
        items, header = readouts_of(kspace), make_header((32, 24, 1))
    else:
        items, header = [make_image((100 * square).astype(np.int16), index=n) for n in (1, 2)], "no header"
    images = run(items, header, module=module).images
    assert len(images) == (1 if raw else 2)
    for image in images:
        pixels = image.data[0, 0]
        assert image.data.dtype == np.int16
        assert pixels.max() == 4095
        edge = np.zeros(square.shape, bool)
        edge[8:16, 10:22] = True
        edge[9:15, 11:21] = False
        assert pixels[edge].min() > 1000
        assert pixels[9:15, 11:21].max() <= 16  # flat inside
        assert pixels[:7].max() <= 16  # and outside
    assert np.load(tmp_path / "imgFiltered.npy").shape == (24, 32, 1, 1, len(images))
