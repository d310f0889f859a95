"""Previews are judged by what Pillow reads back from them."""

import logging
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from PIL import Image, ImageSequence

import mrd2dicom
import mrd2gif
import mrdhelper
from mrdio import pictures
from mrdio.mrdfile import MrdWriter

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


def make_image(plane, meta=None, image_type=ismrmrd.IMTYPE_MAGNITUDE, series=0, **header):
    """MRD image of pixels [y, x], [z, y, x] or [channels, z, y, x]."""
    data = np.asarray(plane)
    data = data[(np.newaxis,) * (4 - data.ndim)]
    image = ismrmrd.Image.from_array(data, transpose=False)
    image.image_type = image_type
    image.image_series_index = series
    for name, value in header.items():
        setattr(image, name, value)
    image.attribute_string = ismrmrd.Meta(meta or {}).serialize()
    return image


def point(row, column, shape=(5, 7), value=1000, dtype=np.int16):
    plane = np.zeros(shape, dtype)
    plane[row, column] = value
    return plane


@pytest.fixture
def preview(tmp_path):
    """Write images to a new file and return the frames [frame, y, x, 3] of the one preview that is made of it."""

    def make(*images, **options):
        (tmp_path / "img.h5").unlink(missing_ok=True)
        with MrdWriter(tmp_path / "img.h5") as writer:
            for image in images:
                writer.write(image)
        (written,) = mrd2gif.convert(tmp_path / "img.h5", **{"labels": False, **options})
        return read_frames(written)

    return make


def read_frames(path):
    with Image.open(path) as image:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def film(path):
    with Image.open(path) as image:
        return image.n_frames, image.info["duration"]


# ---- geometry, frames and tiles


@pytest.mark.parametrize("shape", [(5, 7), (64, 48), (1, 1), (300, 257)])
@pytest.mark.parametrize("png", [False, True])
def test_orientation_and_enlargement(preview, shape, png):
    row, column = shape[0] // 3, shape[1] // 2
    (frame,) = preview(make_image(point(row, column, shape)), png=png)
    factor = max(1, -(-256 // max(shape)))
    expected = point(row, column, shape, value=255, dtype=np.uint8).repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(frame, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("repetitions", [(2, 0, 1), (0, 0, 0)])
def test_frames_come_in_stored_order(preview, repetitions):
    """Also where a module leaves all counters alike."""
    images = [make_image(point(0, 3 * n), repetition=repetition) for n, repetition in enumerate(repetitions)]
    frames = preview(*images, rescale=1)
    assert [int(np.argmax(frame[0, :, 0])) for frame in frames] == [0, 3, 6]


def test_slices_are_tiled_and_keep_their_place(preview):
    """Three slices, stored slice by slice and interleaved; slice 1 of phase 1 is missing."""
    places = [(2, 0), (2, 1), (0, 0), (0, 1), (1, 0)]
    images = [make_image(point(phase, index), slice=index, phase=phase) for index, phase in places]
    frames = preview(*images, rescale=1)[..., 0]
    assert frames.shape == (2, 10, 14)
    expected = np.zeros_like(frames)
    expected[0, 0, 0] = expected[0, 0, 7 + 1] = expected[0, 5, 2] = 255
    expected[1, 1, 0] = expected[1, 5 + 1, 2] = 255
    np.testing.assert_array_equal(frames, expected)


def test_slice_counter_that_counts_frames_is_no_mosaic(preview):
    frames = preview(*[make_image(point(0, n), slice=n, repetition=n) for n in range(5)], rescale=1)
    assert frames.shape == (5, 5, 7, 3)


def test_partitions_are_tiled(preview):
    volume = np.stack([point(0, z) for z in range(5)])
    frames = preview(make_image(volume), make_image(volume[:, ::-1]), rescale=1)[..., 0]
    assert frames.shape == (2, 10, 21)
    for z in range(5):
        row, column = divmod(z, 3)
        assert frames[0, 5 * row, 7 * column + z] == 255
        assert frames[1, 5 * row + 4, 7 * column + z] == 255
    assert np.count_nonzero(frames) == 10


@pytest.mark.parametrize("options", [{"png": True}, {"mosaic": True}])
def test_still_of_a_series_has_a_row_of_slices_for_each_time(preview, options):
    images = [make_image(point(t, s), slice=s, repetition=t) for t in range(3) for s in range(2)]
    frames = preview(*images, rescale=1, **options)[..., 0]
    assert frames.shape == (1, 2 * 5, 4 * 7)  # 6 tiles: two times of two slices beside each other
    for t in range(3):
        for s in range(2):
            assert frames[0, 5 * (t // 2) + t, 7 * (2 * (t % 2) + s) + s] == 255


def test_size_is_limited(preview):
    with pytest.raises(ValueError, match="17500 x 12500 pixels is too large"):
        preview(make_image(point(0, 0)), rescale=2500)


# ---- window, types, channels


def test_each_image_has_the_window_of_its_attributes(preview):
    plane = np.array([[0, 100, 150], [175, 200, 900]], np.uint16)
    images = [make_image(plane, {"WindowCenter": c, "WindowWidth": "100"}) for c in ("150", "200")]
    frames = preview(*images, rescale=1)[..., 0]
    np.testing.assert_array_equal(frames, [[[0, 0, 128], [191, 255, 255]], [[0, 0, 0], [64, 128, 255]]])


@pytest.mark.parametrize("window", [("x", "10"), ("5", "0"), ("nan", "10"), ("5", ""), ("5", "inf")])
def test_window_that_is_none_is_replaced(preview, window):
    plane = np.float32([[0.0, 0.5, 1.0]])
    (frame,) = preview(make_image(plane, {"WindowCenter": window[0], "WindowWidth": window[1]}), rescale=1)
    assert frame[0, 0, 0] == 0
    assert 126 <= frame[0, 1, 0] <= 129
    assert frame[0, 2, 0] == 255


def disc(radius, value=1000, size=100, background=0):
    """Circle round the middle of a square image, with noise of a magnitude image around it."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    noise = np.random.default_rng(7).rayleigh(background, (size, size)) if background else np.zeros((size, size))
    return np.where(np.hypot(rows, columns) < radius, value, noise).astype(np.float32)


def test_one_window_for_the_series(preview):
    """The gray of an object does not change when another image is brighter."""
    ramp = np.arange(10000, dtype=np.float32).reshape(100, 100)
    frames = preview(make_image(ramp), make_image(ramp.T / 2))
    low = np.percentile(np.concatenate([ramp.ravel(), ramp.ravel() / 2]), 0.5)
    high = np.percentile(ramp[ramp > 0.1 * np.percentile(ramp, 99.9)], 98)
    for frame, plane in zip(frames, (ramp, ramp.T / 2), strict=True):
        expected = np.clip((plane - low) / (high - low), 0, 1) * 255
        assert np.abs(frame[1::3, 1::3, 0] - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_window_of_a_series_with_headroom_is_that_of_its_pixels(preview, bits):
    """Live modules leave headroom above the first images: with a window of all bits, all of them were dark."""
    meta = {}
    mrdhelper.set_window(meta, bits)
    object_value = mrdhelper.largest_pixel(bits) // 2
    frames = preview(*[make_image(disc(20 + n, object_value).astype(np.int16), meta) for n in range(3)], rescale=1)
    assert frames[:, 50, 50, 0].tolist() == [255] * 3


@pytest.mark.parametrize("radius", [3, 10, 45])
def test_background_does_not_count(preview, radius):
    """A small object in a large field of view is as bright as one that fills it, and noise around it stays dark."""
    plane = disc(radius, background=10)
    plane[50, 50] = 500
    (frame,) = preview(make_image(plane), rescale=1)
    assert frame[50, 51, 0] == 255
    assert 120 <= frame[50, 50, 0] <= 130
    assert np.median(frame[:5, :, 0]) < 5


def test_bright_images_before_the_steady_state_do_not_darken_the_others(preview):
    scales = [5, 2, *[1 + 0.001 * n for n in range(20)]]
    frames = preview(*[make_image(disc(30) * scale) for scale in scales], rescale=1)
    assert frames[:, 50, 50, 0].min() >= 245


def test_echoes_keep_their_decay(preview):
    frames = preview(*[make_image(disc(30) * 0.7**n, contrast=n) for n in range(6)], rescale=1)
    np.testing.assert_allclose(frames[:, 50, 50, 0], 255 * 0.7 ** np.arange(6), atol=1)


def test_images_with_negative_values_are_windowed_by_all_pixels(preview):
    plane = np.random.default_rng(3).uniform(-np.pi, np.pi, (100, 100)).astype(np.float32)
    (frame,) = preview(make_image(plane, image_type=ismrmrd.IMTYPE_PHASE), rescale=1)
    np.testing.assert_allclose(frame[..., 0], np.clip((plane / np.pi + 1) * 127.5, 0, 255), atol=3)


def test_image_types_have_their_own_window(preview):
    magnitude, phase = np.float32([[0, 1000, 4000]]), np.float32([[-3, -3, 3]])
    frames = preview(make_image(magnitude), make_image(phase, image_type=ismrmrd.IMTYPE_PHASE), rescale=1)
    assert frames[:, 0, [0, 2], 0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(
    "pixels", [np.complex64([[3 + 4j, -10, 0, 2.5j]]), np.float32([[[[3, 0, 0, 1.5]]], [[[4, -10, 0, 2]]]])]
)
def test_magnitude_and_root_sum_of_squares(preview, pixels):
    (frame,) = preview(make_image(pixels, {"WindowCenter": 5, "WindowWidth": 10}), rescale=1)
    np.testing.assert_array_equal(frame[0, :, 0], [128, 255, 0, 64])


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i8", "f4", "f8", "c8", "c16"])
def test_all_data_types(preview, dtype):
    (frame,) = preview(make_image(point(2, 4, dtype=dtype)), rescale=1)
    assert np.argwhere(frame[..., 0] == 255).tolist() == [[2, 4]]


@pytest.mark.parametrize("value", [0, 7, -7, np.nan, np.inf, -np.inf, 1e300])
def test_images_all_alike(preview, value):
    (frame,) = preview(make_image(np.full((3, 4), value, np.float64)), rescale=1)
    assert np.unique(frame).tolist() == [255 if value > 0 else 0]


def test_values_that_are_no_numbers(preview):
    plane = np.tile(np.float32([[0, 1, 2, 3]]), (100, 1))
    plane[0, :3] = np.nan, np.inf, -np.inf
    (frame,) = preview(make_image(plane), rescale=1)
    assert frame[0, :3, 0].tolist() == [0, 255, 0]
    assert frame[1, :, 0].tolist() == [0, 85, 170, 255]


# ---- colours


def test_rgb_images(preview):
    row = np.uint16([RED, GREEN, BLUE, WHITE, (10, 20, 30), (300, 0, 65535)])
    data = np.stack([row, row[::-1]]).transpose(2, 0, 1)[:, np.newaxis]
    meta = {"WindowCenter": 10, "WindowWidth": 3}  # a window is for gray values
    (frame,) = preview(make_image(data, meta, ismrmrd.IMTYPE_RGB))
    np.testing.assert_array_equal(frame[20::43, 20::43], np.minimum([row, row[::-1]], 255))


def test_rgb_images_of_many_colours_are_close(preview):
    rows, columns = np.mgrid[:120, :130].astype(np.uint16)
    data = np.stack([rows * 2, columns, 255 - rows])[:, np.newaxis]
    (gif,) = preview(make_image(data, image_type=ismrmrd.IMTYPE_RGB), rescale=1)
    png = preview(make_image(data, image_type=ismrmrd.IMTYPE_RGB), rescale=1, png=True)[0]
    np.testing.assert_array_equal(png, np.moveaxis(data[:, 0], 0, -1))
    assert np.abs(gif.astype(int) - png).mean() < 8


@pytest.mark.parametrize(
    ("name", "colours"),
    [("MicroDeltaHotMetal.pal", "hot"), ("Hot Iron", "hot"), ("Rainbow.pal", "jet"), ("gist_earth.lut", "gist_earth")],
)
def test_look_up_tables(preview, name, colours):
    import matplotlib as mpl

    plane = np.float32([[0, 0.25, 0.5, 1]])
    (frame,) = preview(make_image(plane, {"LUTFileName": name, "WindowCenter": 0.5, "WindowWidth": 1}), rescale=1)
    np.testing.assert_array_equal(frame[0], mpl.colormaps[colours]([0, 64, 128, 255], bytes=True)[:, :3])


def test_unknown_look_up_table_is_gray_and_logged(preview, caplog):
    with caplog.at_level(logging.WARNING):
        (frame,) = preview(make_image(np.int16([[0, 5, 10]]), {"LUTFileName": "../Odd name.pal"}))
    assert np.ptp(frame, axis=-1).max() == 0
    assert "'../Odd name.pal' is not known" in caplog.text


# ---- overlays


def is_colour(frame, colour):
    return (frame == colour).all(axis=-1)


def test_roi_is_drawn_at_its_pixels(preview):
    """A rectangle from column 10, row 20 to column 40, row 30: line through the pixel centres, nothing elsewhere."""
    plane = np.arange(64 * 50, dtype=np.float32).reshape(64, 50)
    roi = mrdhelper.create_roi([10, 40, 40, 10, 10], [20, 20, 30, 30, 20], (1, 0, 0), 1, 0, 1)
    (frame,) = preview(make_image(plane, {"ROI_heart": roi}), rescale=5)
    red = is_colour(frame, RED)
    expected = np.zeros_like(red)
    rows, columns = slice(20 * 5 + 2, 30 * 5 + 3), slice(10 * 5 + 2, 40 * 5 + 3)
    expected[[20 * 5 + 2, 30 * 5 + 2], columns] = True
    expected[rows, 10 * 5 + 2] = expected[rows, 40 * 5 + 2] = True
    np.testing.assert_array_equal(red, expected)
    np.testing.assert_array_equal(np.ptp(frame[~red], axis=-1), 0)


def test_palette_holds_overlays_and_grays(preview):
    """Three colours beside a ramp of gray: the GIF has exactly the colours of the PNG."""
    plane = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    colours = np.eye(3).tolist()
    meta = {f"ROI_{n}": mrdhelper.create_roi([5, 60], [9 * n, 40], rgb, 2) for n, rgb in enumerate(colours)}
    (gif,) = preview(make_image(plane, meta))
    (png,) = preview(make_image(plane, meta), png=True)
    np.testing.assert_array_equal(gif, png)
    assert len(np.unique(gif.reshape(-1, 3), axis=0)) == mrd2gif.OVERLAY_LEVELS + 3


def test_roi_thickness_style_and_visibility(preview):
    def line(row, rgb, thickness, style=0, visibility=1):
        return mrdhelper.create_roi([5, 45], [row, row], rgb, thickness, style, visibility)

    meta = {
        "ROI_thick": line(10, (1, 0, 0), 3),
        "ROI_dashed": line(20, (0, 1, 0), 1, style=1),
        "ROI_hidden": line(30, (0, 0, 1), 1, visibility=0),
    }
    (frame,) = preview(make_image(np.zeros((40, 50), np.int16), meta), rescale=4)
    column = is_colour(frame, RED)[:, 100]
    assert column.sum() == 3
    assert 4 * 10 <= np.flatnonzero(column).mean() <= 4 * 11
    dashed = is_colour(frame, GREEN)
    assert set(np.argwhere(dashed)[:, 0]) <= {81, 82}
    assert 0.4 < dashed.any(axis=0)[4 * 5 + 2 : 4 * 45 + 2].mean() < 0.7
    assert np.abs(np.diff(dashed.any(axis=0).astype(int))).sum() >= 2 * 15
    assert not is_colour(frame, BLUE).any()


def test_overlays_stay_on_their_tile(preview):
    roi = mrdhelper.create_roi([-100, 500], [3, 3], (0, 1, 0), 1, 0, 1)
    images = [make_image(np.zeros((8, 6), np.int16), {"ROI_1": roi} if s == 1 else None, slice=s) for s in range(4)]
    (frame,) = preview(*images, rescale=3)
    columns = np.argwhere(is_colour(frame, GREEN))
    assert columns[:, 1].min() == 18
    assert columns[:, 1].max() == 35
    assert set(columns[:, 0]) == {10}


def test_roi_of_one_point(preview):
    (frame,) = preview(make_image(np.zeros((9, 9)), {"ROI_1": mrdhelper.create_roi([6], [2], (1, 0, 0), 2)}), rescale=9)
    rows, columns = np.nonzero(is_colour(frame, RED))
    assert rows.mean() == pytest.approx(2 * 9 + 4, abs=1)
    assert columns.mean() == pytest.approx(6 * 9 + 4, abs=1)


def test_text_is_drawn(preview):
    shown = mrdhelper.create_text(10, 20, (1, 1, 0), 1, "12.3 µm é")
    hidden = mrdhelper.create_text(10, 40, (0, 1, 0), 0, "not this")
    plane = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    (frame,) = preview(make_image(plane, {"Text_1": shown, "Text_2": hidden}), rescale=4)
    rows, columns = np.nonzero(is_colour(frame, (255, 255, 0)))
    assert rows.size > 60
    assert 80 <= rows.min() <= rows.max() <= 80 + 20
    assert 40 <= columns.min() <= 46
    assert not is_colour(frame, GREEN).any()


BAD_OVERLAYS = {
    "ROI_x": [["1", "0", "0", "1"], "word", ["1", "0", "0", "1", "0", "1", "nan", "2"]],
    "Text_x": [["1", "0", "0"], ["1", "0", "0", "inf", "0", "1", "text"]],
}


@pytest.mark.parametrize(("name", "values"), [(name, bad) for name, values in BAD_OVERLAYS.items() for bad in values])
def test_overlay_that_cannot_be_read_is_logged(preview, caplog, name, values):
    with caplog.at_level(logging.WARNING):
        (frame,) = preview(make_image(point(1, 1), {name: values}))
    assert f"Attribute {name} is not drawn" in caplog.text
    assert frame.max() == 255


def test_overlays_of_extreme_values(preview):
    meta = {
        "ROI_far": mrdhelper.create_roi([-1e30, 1e30], [1, 1e30], (5, -1, 0), 1e9, 1, 1),
        "ROI_none": mrdhelper.create_roi([], []),
        "Text_long": mrdhelper.create_text(1e30, 0, (1, 0, 0), 1, "x" * 100000),
    }
    preview(make_image(point(1, 1), meta))


# ---- labels

AXIAL = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1)}
CORONAL = {"read_dir": (-1, 0, 0), "phase_dir": (0, 0, 1), "slice_dir": (0, 1, 0)}


def glyphs(text):
    """Pixels of a text as labels have them, cropped to what is drawn."""
    canvas = Image.new("L", (400, 30))
    pen = mrd2gif.ImageDraw.Draw(canvas)
    pen.fontmode = "1"
    pen.text((5, 5), text, 255, mrd2gif.text_font(mrd2gif.LABEL_PX))
    return np.asarray(canvas.crop(canvas.getbbox())) > 0


def places(frame, text):
    """Row and column of the middle of each place where a label has this text, and nothing else beside it."""
    wanted = np.pad(glyphs(text), 1)
    windows = np.lib.stride_tricks.sliding_window_view((frame == mrd2gif.LABEL_INK).all(axis=-1), wanted.shape)
    return [tuple(place + np.array(wanted.shape) // 2) for place in np.argwhere((windows == wanted).all(axis=(-1, -2)))]


def labelled(preview, *images, **options):
    return preview(*images, labels=True, **options)


@pytest.mark.parametrize(("geometry", "letters"), [(AXIAL, "RALP"), (CORONAL, "LFRH")])
def test_letters_stand_at_the_edges_that_they_name(preview, geometry, letters):
    plane = np.zeros((60, 100), np.int16)
    (frame,) = labelled(preview, make_image(plane, **geometry), png=True)
    height, width = 180, 300
    expected = [(height / 2, 7), (7, width / 2), (height / 2, width - 7), (height - 6, width / 2)]
    for letter, place in zip(letters, expected, strict=True):
        assert any(np.allclose(found, place, atol=4) for found in places(frame, letter)), letter
        assert len(places(frame, letter)) == 1


def test_letters_are_left_out_where_the_directions_say_nothing(preview):
    (bare,) = preview(make_image(disc(30)))
    (frame,) = labelled(preview, make_image(disc(30)))
    assert frame.shape[0] == bare.shape[0] + mrd2gif.STRIP_PX
    assert places(frame, "series 0")
    assert not (frame[: len(bare)] == mrd2gif.LABEL_INK).all(axis=-1).any()


def test_letters_are_drawn_again_where_the_orientation_changes(preview):
    images = [make_image(disc(30), slice=s, **geometry) for s, geometry in enumerate([AXIAL, AXIAL, CORONAL, CORONAL])]
    (frame,) = labelled(preview, *images)
    assert [len(places(frame, letter)) for letter in "RALPFH"] == [2, 1, 2, 1, 1, 1]
    for number in range(4):
        ((row, column),) = places(frame, f"slice {number}")
        assert (row // 200, column // 200) == divmod(number, 2)
        assert row % 200 < 12
    assert places(frame, "series 0   4 slices")


def test_frames_say_number_counters_and_time(preview):
    images = [
        make_image(disc(30), series=3, set=n // 2, phase=n % 2, repetition=n, acquisition_time_stamp=1000 + 20 * n)
        for n in range(4)
    ]
    frames = labelled(preview, *images)
    for n, frame in enumerate(frames):
        assert places(frame, f"frame {n + 1}/4   phase {n % 2}   set {n // 2}   {0.05 * n:.2f} s   series 3")
    (still,) = labelled(preview, *images, mosaic=True)
    assert places(still, "4 frames   0.15 s   series 3")
    for n in range(4):
        ((row, column),) = places(still, f"{n + 1}   phase {n % 2}")
        assert (row // 200, column // 200) == divmod(n, 2)


def test_image_types_are_named(preview):
    images = [make_image(disc(30), image_type=kind) for kind in (ismrmrd.IMTYPE_MAGNITUDE, ismrmrd.IMTYPE_PHASE)]
    for frame, name in zip(labelled(preview, *images), ("magnitude", "phase"), strict=True):
        assert places(frame, f"frame {1 + (name == 'phase')}/2   {name}   series 0")


def test_labels_change_no_pixel_beside_them(preview):
    ramp = np.arange(100 * 100, dtype=np.float32).reshape(100, 100)
    (bare,) = preview(make_image(ramp, **AXIAL))
    (frame,) = labelled(preview, make_image(ramp, **AXIAL))
    changed = np.abs(frame[: len(bare)].astype(int) - bare).max(axis=-1) > 2
    assert 0 < changed.mean() < 0.02


def test_words_that_do_not_fit_are_left_out(preview):
    """On small tiles, and in the strip: the first ones stay."""
    images = [make_image(disc(30, size=70), set=n, acquisition_time_stamp=1000 + 20 * n) for n in range(12)]
    frames = labelled(preview, *images, rescale=1)
    assert places(frames[0], "frame 1/12")
    assert frames.shape[2] == 70
    (still,) = labelled(preview, *images, rescale=1, mosaic=True)
    assert places(still, "12   set 11")
    assert not preview(*images, rescale=1)[..., 0].shape[1] % 70


def test_labels_of_the_command_line(tmp_path):
    with MrdWriter(tmp_path / "img.h5") as writer:
        writer.write(make_image(disc(30)))
    sizes = []
    for flags in ([], ["--no-labels"]):
        assert mrd2gif.main([*flags, str(tmp_path / "img.h5")]) == 0
        sizes.append(read_frames(tmp_path / "img_dataset_image_0.gif").shape[1:3])
    assert sizes == [(300 + mrd2gif.STRIP_PX, 300), (300, 300)]


# ---- duration


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([1000, 1039, 1078, 1117], 100),  # 97.5 ms, on the raster of a GIF
        ([1000, 1020, 1040, 1360], 50),  # one pause
        ([0, 0, 0, 0], 100),
        ([1000, 900, 1100, 1200], 100),
        ([0, 4000, 8000, 12000], 100),  # 10 s: no film
    ],
)
def test_duration_of_time_stamps(tmp_path, stamps, expected):
    with MrdWriter(tmp_path / "img.h5") as writer:
        for column, stamp in enumerate(stamps):
            writer.write(make_image(point(0, column), acquisition_time_stamp=stamp))
    (written,) = mrd2gif.convert(tmp_path / "img.h5")
    assert film(written) == (4, expected)


@pytest.mark.parametrize(("flags", "expected"), [(["-d", "250"], 250), (["--fps", "50"], 20)])
def test_duration_of_the_command_line(tmp_path, flags, expected):
    with MrdWriter(tmp_path / "img.h5") as writer:
        for column in range(3):
            writer.write(make_image(point(0, column), acquisition_time_stamp=40 * column))
    assert mrd2gif.main([*flags, str(tmp_path / "img.h5")]) == 0
    assert film(tmp_path / "img_dataset_image_0.gif") == (3, expected)


# ---- files and command line


def test_names_of_all_groups(tmp_path, capsys):
    source = tmp_path / "my scan.h5"
    for group in ("2024-05-01 12:34:56.789", "2024-05-01_12_34_56.789", "a/b"):
        with MrdWriter(source, group) as writer:
            writer.write(make_image(point(0, 0), series=0))
            writer.write(make_image(point(0, 0), series=12))
            writer.write(make_image(point(0, 0, (6, 6)), series=12))
    assert mrd2gif.main([str(source)]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    stem = "my scan_2024-05-01_12_34_56.789"
    assert names == [
        *(f"{stem}_image_{s}.gif" for s in ("0", "12", "12_1")),
        *(f"{stem}_image_{s}_2.gif" for s in ("0", "12", "12_1")),
        *(f"my scan_a_b_image_{s}.gif" for s in ("0", "12", "12_1")),
    ]
    assert sorted(names) == sorted(path.name for path in tmp_path.glob("*.gif"))


def test_one_group_and_another_folder(tmp_path):
    for group in ("one", "two"):
        with MrdWriter(tmp_path / "img.h5", group) as writer:
            writer.write(make_image(point(0, 0)))
    assert mrd2gif.main(["-g", "two", "-o", str(tmp_path / "new" / "folder"), "--png", str(tmp_path / "img.h5")]) == 0
    assert list(tmp_path.rglob("*.png")) == [tmp_path / "new" / "folder" / "img_two_image_0.png"]


def make_bad_file(path, kind):
    if kind == "text":
        path.write_text("no HDF5")
    elif kind == "no headers":
        with h5py.File(path, "w") as file:
            file["dataset/image_0/data"] = np.zeros((2, 1, 1, 4, 4))
    elif kind != "none":
        with MrdWriter(path, "other" if kind == "other group" else "dataset") as writer:
            writer.write_config("null")
            if kind != "no images":
                writer.write(make_image(np.ones((100, 100))))
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("none", "there is no file"),
        ("text", "HDF5"),
        ("no images", "holds no images in group 'dataset'"),
        ("other group", "no group 'dataset'"),
        ("no headers", "image_0 of group 'dataset' is not laid out"),
        ("cut off", "HDF5"),
    ],
)
def test_files_without_previews(tmp_path, capsys, kind, says):
    """One line, status 1, and the other files of the command line are still done."""
    make_bad_file(tmp_path / "bad.h5", kind)
    with MrdWriter(tmp_path / "good.h5") as writer:
        writer.write(make_image(point(0, 0)))
    assert mrd2gif.main(["-g", "dataset", str(tmp_path / "bad.h5"), str(tmp_path / "good.h5")]) == 1
    output, errors = capsys.readouterr()
    assert len(errors.splitlines()) == 1
    assert errors.startswith("mrd2gif: ")
    assert says in errors
    assert "bad.h5" in errors
    assert output.splitlines() == [str(tmp_path / "good_dataset_image_0.gif")]


@pytest.mark.parametrize(("command", "start"), [(mrd2gif, "mrd2gif: "), (mrd2dicom, "error: ")])
def test_damaged_files_are_one_line_each(tmp_path, capsys, command, start):
    """Bytes lost or overwritten anywhere in a file; one that can still be read is converted."""
    with MrdWriter(tmp_path / "img.h5") as writer:
        for number in range(4):
            writer.write(make_image(np.ones((4, 4)), {"WindowCenter": 1, "WindowWidth": 2}, series=number % 2))
    whole = (tmp_path / "img.h5").read_bytes()
    rng = np.random.default_rng(11)
    bad = tmp_path / "bad.h5"
    refused = 0
    for number in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, 8000, 20):
            content[place] = rng.integers(0, 256)
        bad.write_bytes(content[: rng.integers(8, len(whole))] if number % 3 == 0 else content)
        status = command.main(["-o", str(tmp_path / "out"), "-g", "dataset", str(bad)])
        errors = capsys.readouterr().err.splitlines()
        assert status == len([line for line in errors if line.startswith(start)])
        assert not any("Traceback" in line for line in errors)
        refused += status
    assert refused > 30


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "data",
            np.zeros((2, 1, 1, 0, 4), np.float32),
            "no preview of 'dataset/image_0': pixels of shape (1, 1, 0, 4)",
        ),
        ("data", np.zeros((2, 1, 1, 1, 4, 4), np.float32), "image_0 of group 'dataset' is not laid out"),
        ("data", np.array([b"pixels"] * 2), "image_0 of group 'dataset' is not laid out"),
        ("header", np.zeros(1), "image_0 of group 'dataset' is not laid out"),
        ("attributes", np.zeros(0), "image_0 of group 'dataset' is not laid out"),
    ],
)
def test_images_of_a_wrong_layout(tmp_path, capsys, name, value, says):
    with MrdWriter(tmp_path / "bad.h5") as writer:
        for _ in range(2):
            writer.write(make_image(np.ones((4, 4))))
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        del file["dataset/image_0"][name]
        file["dataset/image_0"][name] = value
    assert mrd2gif.main([str(tmp_path / "bad.h5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.glob("*.gif"))


def test_images_too_large_are_refused_before_they_are_read(tmp_path, capsys):
    with MrdWriter(tmp_path / "bad.h5") as writer:
        writer.write(make_image(np.ones((4, 4), np.float32)))
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        del file["dataset/image_0/data"]
        shape, chunks = (1, 1, 1, 20000, 20000), (1, 1, 1, 100, 100)
        file["dataset/image_0"].create_dataset("data", shape, np.float32, chunks=chunks)
    assert mrd2gif.main([str(tmp_path / "bad.h5")]) == 1
    assert "images of 20000 x 20000 pixels, expected at most 16384 a side" in capsys.readouterr().err


# ---- long series


@pytest.fixture(scope="module")
def long_series(tmp_path_factory):
    """256 images, each of other values, in a file that is made at once."""
    path = tmp_path_factory.mktemp("long") / "img.h5"
    with MrdWriter(path) as writer:
        writer.write(make_image(np.zeros((160, 160), np.float32)))
    with h5py.File(path, "r+") as file:
        group = file["dataset/image_0"]
        for name in ("data", "header", "attributes"):
            first = group[name][0]
            group[name].resize(256, axis=0)
            group[name][:] = np.array([first] * 256, group[name].dtype)
        group["data"][:] = np.random.default_rng(5).random(group["data"].shape, np.float32)
    return path


@pytest.mark.parametrize("options", [{"rescale": 1}, {"mosaic": True, "rescale": 1}], ids=["film", "mosaic"])
def test_memory_is_that_of_what_is_shown(long_series, tmp_path, monkeypatch, options):
    """The pixels of the file are 26 MB; shown are a film of 0.5 million pixels, or one picture of 6.5 million."""
    monkeypatch.setattr(mrd2gif, "FILM_PX", 2**19)
    monkeypatch.setattr(pictures, "WINDOW_SAMPLES", 2**16)
    tracemalloc.start()
    try:
        (written,) = mrd2gif.convert(long_series, folder=tmp_path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with Image.open(written) as picture:
        shown = picture.n_frames * picture.width * picture.height
    assert 2**18 < shown < 2**23
    assert peak < 2 * shown + 2**23


def test_a_film_that_is_too_long_is_thinned_out_and_says_so(long_series, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mrd2gif, "FILM_PX", 52 * 160 * 160)
    (written,) = mrd2gif.convert(long_series, folder=tmp_path, rescale=1, duration=20, labels=False)
    assert "A film of 256 frames of 160 x 160 pixels is too long: one of 5 is shown" in caplog.text
    assert film(written) == (52, 100)
    with h5py.File(long_series) as file:
        expected = file["dataset/image_0/data"][5 * 51, 0, 0]
    with Image.open(written) as picture:
        picture.seek(51)
        shown = np.asarray(picture.convert("L"), float)
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("flags", [["-r", "0"], ["-d", "-5"], ["--fps", "nan"], ["--fps", "5", "-d", "5"]])
def test_wrong_options(tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        mrd2gif.main([*flags, str(tmp_path / "img.h5")])
    assert exit_info.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_start_is_quick():
    """Neither help nor gray pictures without text wait for matplotlib."""
    program = "import mrd2gif, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
