#!/usr/bin/env python3
"""Preview the images of MRD files: one GIF, animated if there are several images, for each image sub-group.

``python mrd2gif.py img.h5`` writes ``img_<group>_image_<series>.gif`` beside ``img.h5``. Drawn are:

- *Frames* are images of one average, contrast, phase, repetition and set, in stored order. Slices of a frame, and
  partitions of 3-D images, are tiled from left to right and top to bottom. Pixels are drawn square.
- *Window*: WindowCenter and WindowWidth of the image, black at centre - width/2 and white at centre + width/2. Where
  they only say how many bits a pixel has, or are missing, one window is taken from the pixels of all images of that
  type in the series that are not background (`mrdio.pictures.window_from_values`), so that the brightness does not
  flicker.
- *Labels*: series, frame, counters that change, and time since the first image, below the picture; slice, and frame of
  a still picture, on the tile; letters of the patient's sides (L or R, P or A, H or F) at the edges, from the header's
  read_dir and phase_dir, on the first tile and where they change. ``--no-labels`` leaves all of them out.
- *Pixels*: complex data as magnitude, several channels as their root sum of squares, RGB images (type 6) in colour.
- *Overlays*: ROI_* and Text_* attributes, on every tile of their image, in screen pixels above the enlarged picture.
- *Colours*: LUTFileName, shown with the matplotlib colour map that looks most like it.

Images are read one by one, twice: first for the window and the order, then to be drawn. A film of more pixels than a
viewer holds is thinned out: every so many frames one is shown, for the time of all of them.
"""

import argparse
import functools
import itertools
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicomio.geometry import edge_letters
from mrdio.h5groups import image_holders
from mrdio.mrdfile import MrdReader
from mrdio.pictures import LARGEST_PX, Entry, Picture, Series, read_picture, survey
from mrdio.timestamps import ticks_to_seconds

logger = logging.getLogger(__name__)

DEFAULT_DURATION_MS = 100  # [ms] a frame, when the time stamps do not tell
DURATION_RANGE_MS = (20, 2000)  # [ms] viewers ignore shorter frames; longer ones are pauses of the scan, not a film
SMALLEST_PX = 256  # [px] smaller pictures are enlarged
ROWS_AT_ONCE = 64  # that are turned into palette entries: a mosaic may have hundreds of millions of pixels
FILM_PX = 2**28  # [px] of all frames of a film: Pillow keeps them until the last, and viewers all the time
OVERLAY_LEVELS = 240  # gray levels when something is drawn on top: a GIF palette has 256 entries for both
TEXT_PX = 12  # [px] height of the letters
LABEL_PX = 10  # [px] height of the letters of labels
STRIP_PX = 15  # [px] height of the strip below the picture that says what is shown
LETTERS_PX = 64  # [px] a tile of fewer has no labels
LABEL_INK, LABEL_EDGE = (200, 200, 200), (0, 0, 0)
COUNTERS = ("average", "contrast", "phase", "repetition", "set", "type")  # of `Entry.frame`
TYPES = {
    ismrmrd.IMTYPE_MAGNITUDE: "magnitude", ismrmrd.IMTYPE_PHASE: "phase", ismrmrd.IMTYPE_REAL: "real",
    ismrmrd.IMTYPE_IMAG: "imaginary", ismrmrd.IMTYPE_COMPLEX: "complex", ismrmrd.IMTYPE_RGB: "RGB",
}  # fmt: skip
TEXT_LENGTH = 256  # characters of a text that are drawn

# matplotlib colour map <- names of look-up tables as scanners and DICOM (PS3.6 Annex B) use them, in small letters
# without ending, vendor prefix and separators. Names that matplotlib knows itself need no entry.
LOOK_ALIKES = {
    "gray": ("gray", "grey", "grayscale", "greyscale"),
    "gray_r": ("inverse", "inversegray", "inversegrey", "invertedgray"),
    "hot": ("hotmetal", "hotiron", "hotbody", "thermal", "blackbody"),
    "gnuplot2": ("hotmetalblue",),
    "nipy_spectral": ("pet", "pet20step", "spectrum"),
    "jet": ("rainbow", "perfusion"),
    "RdBu_r": ("flow", "velocity"),
    "autumn": ("fall",),
}


def convert(
    path: str | Path,
    group: str | None = None,
    *,
    folder: str | Path | None = None,
    png: bool = False,
    rescale: int | None = None,
    duration: float | None = None,
    mosaic: bool = False,
    labels: bool = True,
) -> list[Path]:
    """Write a preview of every image series of an MRD file.

    Parameters
    ----------
    path : str or Path
        MRD file (HDF5).
    group : str, optional
        Only this group of the file.
    folder : str or Path, optional
        Where the previews go; made if it is not there. Default: the folder of the file.
    png : bool
        PNG instead of GIF; several images are tiled.
    rescale : int, optional
        Enlargement. Default: the smallest that makes the longer side at least 256 pixels.
    duration : float, optional
        Time that a frame stays [ms]. Default: from the acquisition time stamps, or 100 ms.
    mosaic : bool
        All images of a series tiled in one still picture.
    labels : bool
        Say which series, slice, frame and time is shown, and which side of the patient is where.

    Returns
    -------
    list of Path
        Files written, at least one.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, has no such group, or holds no images; the message is one line.
    """
    path = Path(path)
    folder = path.parent if folder is None else Path(folder)
    suffix = ".png" if png else ".gif"
    written: list[Path] = []
    for name in image_holders(path) if group is None else [group]:
        with MrdReader(path, name) as reader:
            for series_name in reader.image_groups:
                if not reader.image_shape(series_name)[0]:
                    continue
                target = unused_name(folder, [path.stem, name, series_name], suffix, written)
                try:
                    series = survey(reader, series_name)
                    frames, time_step = render_series(series, rescale, duration, still=mosaic or png, labels=labels)
                    folder.mkdir(parents=True, exist_ok=True)
                    save_frames(frames, target, time_step)
                except ValueError as error:
                    raise ValueError(f"{path}: no preview of '{name}/{series_name}': {error}") from error
                written.append(target)
    if not written:
        raise ValueError(f"{path} holds no images" + (f" in group '{group}'" if group else ""))
    return written


@functools.lru_cache(maxsize=32)
def colour_table(name: str) -> np.ndarray:
    """Colours [256, 3] uint8 for a LUTFileName; gray, with a log line, for a name that is not known."""
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)
    stem = re.sub(r"\.(pal|lut|icc|dcm)$", "", name.strip().lower())
    key = re.sub(r"[^a-z0-9]", "", stem).removeprefix("microdelta")
    map_name = next((like for like, names in LOOK_ALIKES.items() if key in names), None)
    if not key or map_name == "gray":
        return gray
    import matplotlib as mpl  # slow to import, and most previews are gray

    map_name = map_name or {known.lower(): known for known in mpl.colormaps}.get(stem)
    if map_name is None:
        logger.warning("Look-up table '%s' is not known: shown in gray", name[:80])
        return gray
    return mpl.colormaps[map_name](np.arange(256), bytes=True)[:, :3]


def render_series(
    series: Series,
    rescale: int | None = None,
    duration: float | None = None,
    *,
    still: bool = False,
    labels: bool = True,
) -> tuple[Iterator[Image.Image], float]:
    """Draw a series as RGB frames of one size (one frame, if `still`), each when it is asked for.

    Returns
    -------
    The frames, and the time that each stays [ms].
    """
    frames = group_frames(series.entries)
    words = Words(series.entries, frames)
    duration = duration or frame_duration([next(entry for entry in frame if entry).time_stamp for frame in frames])
    planes, height, width = series.shape
    slots = planes * len(frames[0])
    columns = math.ceil(math.sqrt(slots))
    if still and len(frames) > 1:  # the slices of one frame stay in one row
        columns = min(math.ceil(math.sqrt(len(frames) * slots) / slots), len(frames)) * slots
        slots *= len(frames)
        frames = [list(itertools.chain.from_iterable(frames))]

    size = np.array([columns * width, math.ceil(slots / columns) * height])
    factor = rescale or math.ceil(SMALLEST_PX / size.max())
    size *= factor
    strip = STRIP_PX if labels and size[0] >= LETTERS_PX else 0
    size[1] += strip
    if size.max() > LARGEST_PX:
        raise ValueError(f"a preview of {size[0]} x {size[1]} pixels is too large: at most {LARGEST_PX} a side")
    if (every := math.ceil(len(frames) * int(size.prod()) / FILM_PX)) > 1 < len(frames):
        logger.warning(
            "A film of %d frames of %d x %d pixels is too long: one of %d is shown", len(frames), *size, every
        )
        frames, duration = frames[::every], duration * every

    levels = OVERLAY_LEVELS if series.has_overlays or labels else 256
    roomy = labels and factor * min(width, height) >= LETTERS_PX

    def draw(frame: list[Entry | None]) -> Image.Image:
        canvas = Image.new("RGB", tuple(size.tolist()))
        shown = None  # letters of the tile before
        for number, entry in enumerate(frame):
            if entry is None:
                continue
            picture = read_picture(series, entry)
            letters = edge_letters(picture.head)
            for z in range(planes):
                row, column = divmod(number * planes + z, columns)
                tile = draw_tile(to_colours(picture, z, levels), picture, factor)
                if roomy:
                    draw_labels(tile, words.of_tile(entry, z if planes > 1 else None, still=still), letters, shown)
                    shown = letters
                canvas.paste(tile, (column * width * factor, row * height * factor))
        if strip:
            write_label(canvas, (3, canvas.height - STRIP_PX + 1), words.of_frame(frame, still=still), canvas.width - 6)
        return canvas

    return map(draw, frames), duration


class Words:
    """Labels of the images of a series: which of them is shown, and when it was acquired.

    Parameters
    ----------
    entries
        Images in stored order.
    frames
        The same, [frame][slice], as `group_frames` sorts them.
    """

    def __init__(self, entries: Sequence[Entry], frames: Sequence[Sequence[Entry | None]]) -> None:
        self._number = {entry.index: n for n, frame in enumerate(frames, 1) for entry in frame if entry}
        self._frames = len(frames)
        self._slices = len(frames[0])
        self._start = min(entry.time_stamp for entry in entries)
        self._end = max(entry.time_stamp for entry in entries)
        self._changing = [
            place for place, values in enumerate(zip(*(entry.frame for entry in entries), strict=True))
            if len(set(values)) > 1 and COUNTERS[place] != "repetition"  # that one counts frames
        ]  # fmt: skip

    def of_frame(self, frame: Sequence[Entry | None], *, still: bool) -> list[str]:
        """Words below a picture, the most important first."""
        first = next(entry for entry in frame if entry)
        if still and self._frames > 1:
            span = [f"{ticks_to_seconds(self._end - self._start):.2f} s"] if self._end > self._start else []
            words = [f"{self._frames} frames", *span]
        else:
            words = self._which(first, "frame ", f"/{self._frames}")
        return [*words, f"series {first.series}", *([f"{self._slices} slices"] if self._slices > 1 else [])]

    def of_tile(self, entry: Entry, partition: int | None, *, still: bool) -> list[str]:
        """Words on a tile: what the words below the picture leave open."""
        words = [f"slice {entry.slice}"] if self._slices > 1 else []
        if partition is not None:
            words.append(f"z {partition}")
        return [*self._which(entry, "", ""), *words] if still else words

    def _which(self, entry: Entry, before: str, after: str) -> list[str]:
        if self._frames == 1:
            return []
        words = [f"{before}{self._number[entry.index]}{after}"]
        for place in self._changing:
            value = entry.frame[place]
            words.append(
                TYPES.get(value, f"type {value}") if place == len(COUNTERS) - 1 else f"{COUNTERS[place]} {value}"
            )
        if self._end > self._start:
            words.append(f"{ticks_to_seconds(entry.time_stamp - self._start):.2f} s")
        return words


def draw_labels(
    tile: Image.Image, words: Sequence[str], letters: tuple[str, ...] | None, shown: tuple[str, ...] | None
) -> None:
    """Write words into the upper left corner of a tile, and the patient's sides at its edges unless they were shown."""
    if letters is None or letters == shown:
        write_label(tile, (3, 1), words, tile.width - 6)
        return
    write_label(tile, (3, 1), words, tile.width // 2 - 3 * LABEL_PX)  # as far as the upper letters
    middle, bottom, right = (tile.width / 2, tile.height / 2), tile.height - 2, tile.width - 3
    places = ((3, middle[1]), (middle[0], 1), (right, middle[1]), (middle[0], bottom))
    for place, anchor, letter in zip(places, ("lm", "ma", "rm", "md"), letters, strict=True):
        write_label(tile, place, [letter], tile.width, anchor)


def write_label(
    picture: Image.Image, place: tuple[float, float], words: Sequence[str], width: int, anchor: str = "la"
) -> None:
    """Write as many words as fit into `width` pixels, gray with a black edge so that they are read on any image."""
    pen, font = ImageDraw.Draw(picture), text_font(LABEL_PX)
    pen.fontmode = "1"
    lines = ("   ".join(words[:count]) for count in range(len(words), 0, -1))
    line = next((line for line in lines if font.getlength(line) <= width), "")
    pen.text(place, line, LABEL_INK, font, anchor, stroke_width=1, stroke_fill=LABEL_EDGE)


def group_frames(entries: Sequence[Entry]) -> list[list[Entry | None]]:
    """Sort images into frames [frame][slice], frames in stored order, slices by their counter, None where one lacks.

    An image whose counters came before begins a further frame: many modules leave the counters at zero.
    """
    frames: dict[tuple, dict[int, Entry]] = {}
    seen: Counter[tuple] = Counter()
    for entry in entries:
        place = entry.frame, entry.slice
        frames.setdefault((entry.frame, seen[place]), {})[entry.slice] = entry
        seen[place] += 1
    slices = sorted({entry.slice for entry in entries})
    if 2 * len(entries) < len(frames) * len(slices):  # the slice counter counts something else
        return [[entry] for entry in entries]
    return [[frame.get(index) for index in slices] for frame in frames.values()]


def frame_duration(time_stamps: Sequence[int]) -> float:
    """Time that a frame stays [ms] from acquisition time stamps [ticks of 2.5 ms]; 100 ms if they make no film."""
    steps = np.diff(np.asarray(time_stamps, np.int64))
    if not steps.size or steps.min() <= 0:
        return DEFAULT_DURATION_MS
    duration = 1000 * ticks_to_seconds(float(np.median(steps)))
    return duration if DURATION_RANGE_MS[0] <= duration <= DURATION_RANGE_MS[1] else DEFAULT_DURATION_MS


def to_colours(picture: Picture, z: int, levels: int) -> np.ndarray:
    """Colours [y, x, 3] uint8 of a plane in so many levels of gray; values that are not a number are black."""
    plane = picture.planes[z]
    if plane.ndim == 3:
        return plane
    low, high = picture.window
    scaled = ((plane.astype(np.float64) - low) / (high - low)).clip(0, 1)
    steps = np.rint(np.nan_to_num(scaled) * (levels - 1)).astype(np.intp)
    return colour_table(picture.lut)[steps * 255 // (levels - 1)]


def draw_tile(plane: np.ndarray, picture: Picture, factor: int) -> Image.Image:
    """Enlarge colours [y, x, 3] by an integer factor (nearest neighbour) and draw ROIs and texts on top."""
    tile = Image.fromarray(np.ascontiguousarray(plane.repeat(factor, axis=0).repeat(factor, axis=1)))
    pen = ImageDraw.Draw(tile)
    pen.fontmode = "1"  # without smoothing: its shades would need palette entries

    def on_screen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        points = np.stack([np.ravel(x), np.ravel(y)], axis=1).astype(np.float64)
        return ((points + 0.5) * factor - 0.5).clip(-LARGEST_PX, LARGEST_PX)  # whole numbers are pixel centres

    def ink(rgb: Sequence[float]) -> tuple[int, ...]:
        return tuple(np.rint(np.clip(np.nan_to_num(rgb), 0, 1) * 255).astype(int).tolist())

    for x, y, rgb, thickness, style, _ in picture.rois:
        draw_outline(pen, on_screen(x, y), ink(rgb), int(np.clip(thickness, 1, 64)), dashed=bool(style))
    for x, y, rgb, _, text in picture.texts:
        pen.text(on_screen(x, y)[0].tolist(), text[:TEXT_LENGTH], ink(rgb), text_font(TEXT_PX))
    return tile


@functools.cache
def text_font(height: int) -> ImageFont.FreeTypeFont:
    """Font of texts and labels: matplotlib's, which has accents and Greek; matplotlib itself is slow to import."""
    matplotlib = files("matplotlib")
    return ImageFont.truetype(str(matplotlib / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), height)


def draw_outline(
    pen: ImageDraw.ImageDraw, points: np.ndarray, ink: tuple[int, ...], thickness: int, *, dashed: bool
) -> None:
    """Draw a line through points [n, (x, y)] [px] as they are given: a closed outline repeats its first point."""
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    if travelled[-1] == 0:
        pen.ellipse([*(points[0] - thickness / 2), *(points[0] + thickness / 2)], fill=ink)
        return
    if not dashed:
        pen.line(points.ravel().tolist(), fill=ink, width=thickness, joint="curve")
        return
    dash = 4 * thickness
    for start in np.arange(0.0, travelled[-1], 2 * dash):
        inner = travelled[(travelled > start) & (travelled < start + dash)]
        at = np.concatenate([[start], inner, [min(start + dash, travelled[-1])]])
        line = np.stack([np.interp(at, travelled, points[:, 0]), np.interp(at, travelled, points[:, 1])], axis=1)
        pen.line(line.ravel().tolist(), fill=ink, width=thickness)


def to_palette(frame: Image.Image) -> Image.Image:
    """Turn an RGB frame into a palette frame: exact with up to 256 colours, else the closest without dithering."""
    counted = frame.getcolors(256)
    if counted is None:
        return frame.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours = np.array(sorted(colour for _, colour in counted), np.uint32)
    weights = np.array([65536, 256, 1], np.uint32)
    index = np.empty(frame.size[::-1], np.uint8)
    for top in range(0, len(index), ROWS_AT_ONCE):
        strip = index[top : top + ROWS_AT_ONCE]
        pixels = np.asarray(frame.crop((0, top, frame.width, top + len(strip))), np.uint32)
        strip[:] = np.searchsorted(colours @ weights, pixels @ weights)
    indexed = Image.fromarray(index)
    indexed.putpalette(colours.astype(np.uint8).tobytes())
    return indexed


def save_frames(frames: Iterator[Image.Image], target: Path, duration: float) -> None:
    """Write a PNG of the first frame, or a GIF that repeats for ever; equal frames in a row become one longer frame."""
    first = next(frames)
    if target.suffix == ".png":
        first.save(target)
        return
    raster = max(10, round(duration, -1))  # a GIF counts time in 10 ms
    second = next(frames, None)
    animation: dict[str, Any] = {}
    if second is not None:
        others = map(to_palette, itertools.chain([second], frames))
        animation = {"save_all": True, "append_images": others, "duration": raster, "loop": 0}
    to_palette(first).save(target, **animation)


def unused_name(folder: Path, parts: Sequence[str], suffix: str, taken: Sequence[Path]) -> Path:
    """Path in `folder` of the parts joined by ``_``, those after the first as every system accepts them.

    It differs from the paths in `taken`, also where the case of letters does not count.
    """
    stem = "_".join([parts[0], *(re.sub(r"[^\w.-]+", "_", part)[:80] for part in parts[1:])])
    names = {path.name.lower() for path in taken}
    candidates = itertools.chain([stem], (f"{stem}_{count}" for count in itertools.count(2)))
    return folder / next(name + suffix for name in candidates if (name + suffix).lower() not in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, 1 if a file gave no preview."""
    parser = argparse.ArgumentParser(description="Preview the images of MRD files as GIF or PNG.")
    parser.add_argument("files", nargs="+", metavar="file.h5", help="MRD file with images")
    parser.add_argument("-g", "--in-group", help="only this group of the file (default: all)")
    parser.add_argument("-o", "--out-folder", dest="folder", help="folder of the previews (default: the file's)")
    parser.add_argument("--png", action="store_true", help="PNG instead of GIF; several images are tiled")
    parser.add_argument("-m", "--mosaic", action="store_true", help="tile all images of a series in one still picture")
    parser.add_argument("--no-labels", dest="labels", action="store_false", help="pixels alone, without labels")
    parser.add_argument("-r", "--rescale", type=int, metavar="N", help="enlarge N times (default: to 256 px)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("-d", "--duration", type=float, metavar="MS", help="time that a frame stays [ms]")
    speed.add_argument("--fps", type=float, help="frames per second (default: as acquired, or 10)")
    args = parser.parse_args(arguments)
    for name in ("rescale", "duration", "fps"):
        if (value := getattr(args, name)) is not None and not 0 < value < 1e5:
            parser.error(f"--{name} {value} is not above 0")
    options = {name: getattr(args, name) for name in ("folder", "png", "rescale", "duration", "mosaic", "labels")}
    if args.fps:
        options["duration"] = 1000 / args.fps
    status = 0
    for file in args.files:
        try:
            written = convert(file, args.in_group, **options)
        except (OSError, ValueError) as error:
            print(f"mrd2gif: {' '.join(str(error).split())}", file=sys.stderr)
            status = 1
        else:
            print(*written, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
