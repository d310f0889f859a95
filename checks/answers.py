"""Checks of the images that a module sends, as a scanner would make them: one function for each thing."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ismrmrd
import numpy as np

import mrdhelper
from checks.finding import Finding, fault, ok, warning
from checks.geometry import ANGLE, DISTANCE, problem_of
from checks.scans import Scan

PIXEL_TOLERANCE = 0.01  # of the pixel size, relative
# Longest values of attributes that become DICOM fields (value representations LO, SH, CS, LT) [characters].
LONGEST = {
    "SequenceDescription": 64,
    "SequenceDescriptionAdditional": 64,
    "SeriesDescription": 64,
    "ProtocolName": 64,
    "ImageTypeValue3": 16,
    "ImageTypeValue4": 16,
    "ImageComment": 10240,
    "ImageComments": 10240,
}
LONGEST_OTHER = 10240
WIDEST_WINDOW = 50  # times the range of the pixels
NARROWEST_WINDOW = 0.02

Images = Sequence[Any]


def by_series(images: Iterable[Any]) -> dict[int, list[Any]]:
    """Images of each series, in the order in which they came."""
    series: dict[int, list[Any]] = defaultdict(list)
    for image in images:
        series[image.image_series_index].append(image)
    return dict(series)


def check(images: Images, reports: set[int], scan: Scan) -> Iterator[Finding]:
    """Check all that can be seen on the images of one answer.

    Parameters
    ----------
    images
        Images, in the order in which they came.
    reports
        Series whose pixels do not depend on the object: it is not looked for there.
    scan
        The scan that was sent.
    """
    pictures = [image for image in images if image.image_series_index not in reports]
    for series in sorted(reports):
        yield ok(
            "geometry", f"series {series}: its pixels do not depend on the object (a report?): not looked for there"
        )
    for name, function, what in (
        ("data type", _data_types, images),
        ("series", _series, images),
        ("counters", lambda images, scan: _counters(images, pictures, scan), images),
        ("time stamps", _time_stamps, images),
        ("field of view", _field_of_view, pictures),
        ("geometry", _geometry, pictures),
        ("window", _windows, images),
        ("attributes", lambda images, scan: _attributes(images, pictures, scan), images),
    ):
        found = _first_of_each(function, what, scan)
        if not found and what:
            known = scan.phantom is not None or name not in _GOOD_OF_DATA
            found = [ok(name, _GOOD[name] if known else _GOOD_OF_DATA[name])]
        yield from found


_GOOD = {
    "data type": "16-bit integers, as scanners take them",
    "series": "in each series one kind and one size of image, numbered from 1",
    "counters": "slices and measurement are those of the data",
    "time stamps": "within the time of the scan",
    "field of view": "pixel size and slice thickness are those of the header",
    "geometry": "the object is at its place, to a fifth of a pixel",
    "window": "fits the pixels",
    "attributes": "there, none too long, directions as in the header, those of incoming images kept",
}


_GOOD_OF_DATA = {  # whose object is not known
    "counters": "the measurement is that of the data; slices are not checked",
    "geometry": "positions and directions are those of the data; what is in the images is not known",
}


def _first_of_each(function: Callable[..., Iterator[Finding]], images: Images, scan: Scan) -> list[Finding]:
    """Findings of a check; of those that many images share, the first, with how many there are."""
    groups: dict[tuple[Any, str], list[Finding]] = defaultdict(list)
    for finding in function(images, scan):
        groups[finding.level, finding.text.partition(":")[2][:30]].append(finding)
    result = []
    for same in groups.values():
        first = same[0]
        more = f" (and {len(same) - 1} more like this)" if len(same) > 1 else ""
        result.append(Finding(first.level, first.subject, first.text + more))
    return result


def _name(image: Any) -> str:
    return f"image {image.image_index} of series {image.image_series_index}"


def _data_types(images: Images, scan: Scan) -> Iterator[Finding]:
    for image in images:
        kind = image.data.dtype
        if kind.kind == "c" or image.image_type == ismrmrd.IMTYPE_COMPLEX:
            yield fault(
                "data type",
                f"{_name(image)}: complex pixels, which a scanner takes only where it was told so (an app container "
                "with the injector compleximage): send their magnitude, scaled by mrdhelper.scale_to_int16",
            )
        elif kind not in (np.int16, np.uint16):
            yield fault(
                "data type",
                f"{_name(image)}: pixels are {kind}, which scanners do not show: scale them to int16, one scale for a "
                "series, as mrdhelper.SeriesScale does",
            )


def _series(images: Images, scan: Scan) -> Iterator[Finding]:
    for number, members in by_series(images).items():
        sizes = Counter(image.data.shape for image in members)
        if len(sizes) > 1:
            words = ", ".join(f"{count} of {_size(shape)}" for shape, count in sizes.items())
            yield fault(
                "series", f"series {number}: images of different sizes ({words}): give each size its own series"
            )
        kinds = Counter(_kind(image) for image in members)
        if len(kinds) > 1:
            words = ", ".join(f"{count} with {kind}" for kind, count in kinds.items())
            yield fault(
                "series", f"series {number}: images of different kinds ({words}): give each its own series number"
            )
        indices = [image.image_index for image in members]
        if len(set(indices)) < len(indices):
            most, times = Counter(indices).most_common(1)[0]
            yield fault(
                "series",
                f"series {number}: image_index is {most} for {times} of {len(indices)} images, so that one replaces "
                "the other: count them 1, 2, 3 ... in each series, or give other images another series number",
            )
        elif min(indices) != 1 or max(indices) != len(indices):
            yield warning(
                "series", f"series {number}: image_index runs from {min(indices)} to {max(indices)}, not from 1"
            )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape[:0:-1])


def _kind(image: Any) -> str:
    meta = image.meta
    keys = ("SequenceDescriptionAdditional", "ImageProcessingHistory")
    values = {key: "+".join(mrdhelper.meta_values(meta, key)) for key in keys}
    described = [f"{key} {value[:40]}" for key, value in values.items() if value]
    return ", ".join([f"image_type {image.image_type}", *described])


def _counters(images: Images, pictures: Images, scan: Scan) -> Iterator[Finding]:
    known = {message.measurement_uid for message in scan.messages if hasattr(message, "measurement_uid")}
    for image in images:
        if known and image.measurement_uid not in known:
            yield fault(
                "counters",
                f"{_name(image)}: measurement_uid is {image.measurement_uid}, that of the data is {min(known)}: copy "
                "it, as mrdhelper.update_img_header_from_raw does",
            )
    if scan.phantom is None:  # partitions may count as slices
        return
    for image in pictures:
        if image.slice >= len(scan.places):
            yield fault("counters", f"{_name(image)}: slice is {image.slice}, the data has {len(scan.places)} slices")
    for number, members in by_series(pictures).items():
        missing = set(range(len(scan.places))) - {image.slice for image in members}
        if missing:
            yield fault(
                "counters", f"series {number}: no image has the slice counter {sorted(missing)}, the data has it"
            )


def _time_stamps(images: Images, scan: Scan) -> Iterator[Finding]:
    times = [message.acquisition_time_stamp for message in scan.messages if hasattr(message, "acquisition_time_stamp")]
    if not any(times):
        return
    for image in images:
        stamp = image.acquisition_time_stamp
        if not min(times) <= stamp <= max(times):
            yield fault(
                "time stamps",
                f"{_name(image)}: acquisition_time_stamp is {stamp}, the scan went from {min(times)} to {max(times)} "
                "[2.5 ms]: copy that of a readout",
            )


def _field_of_view(images: Images, scan: Scan) -> Iterator[Finding]:
    encodings = getattr(scan.header, "encoding", None) or []
    rights = [_pixel(each.reconSpace) for each in encodings]
    for image in images:
        size, theirs = image.data.shape[:0:-1], image.field_of_view[:]
        if not all(theirs):
            yield fault("field of view", f"{_name(image)}: field_of_view is {_list(theirs)} mm: it may have no zero")
            continue
        pixel = [extent / count for extent, count in zip(theirs, size, strict=True)]
        resampled = any(_fits(theirs, _view(each.reconSpace)) for each in encodings) and any(
            math.isclose(pixel[0] / right[0], pixel[1] / right[1], rel_tol=0.01) for right in rights
        )
        if rights and not resampled and not any(_fits(pixel, right) for right in rights):
            yield fault(
                "field of view",
                f"{_name(image)}: field_of_view {_list(theirs)} mm for {_size(image.data.shape)} pixels makes pixels "
                f"of {_list(pixel)} mm, those of the header (reconSpace) are {_list(rights[0])} mm",
            )


def _view(space: Any) -> tuple[float, float, float]:
    """Field of view of a space (x, y, z) [mm]."""
    return space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z


def _pixel(space: Any) -> tuple[float, float, float]:
    """Size of the pixels of a space (x, y, z) [mm]."""
    matrix, view = space.matrixSize, space.fieldOfView_mm
    return view.x / max(matrix.x, 1), view.y / max(matrix.y, 1), view.z / max(matrix.z, 1)


def _fits(pixel: Sequence[float], right: Sequence[float]) -> bool:
    pairs = zip(pixel, right, strict=True)
    return all(not known or abs(size / known - 1) <= PIXEL_TOLERANCE for size, known in pairs)


def _list(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _geometry(images: Images, scan: Scan) -> Iterator[Finding]:
    if not scan.places:
        return
    told: set[int] = set()
    for image in images:
        if image.data.shape[1] > 1:
            if image.image_series_index not in told:
                told.add(image.image_series_index)
                yield ok("geometry", f"{_name(image)}: a volume; only single slices are checked")
            continue
        if np.ptp(image.data.real) == 0 and np.ptp(image.data.imag) == 0:
            yield fault("geometry", f"{_name(image)}: all pixels have the same value, the image is blank")
            continue
        if not any(image.read_dir) and any(not any(place.read_dir) for place in scan.places):
            continue  # the data does not say how it lies
        axes = np.array([image.read_dir[:], image.phase_dir[:], image.slice_dir[:]])
        if not np.allclose(axes @ axes.T, np.eye(3), atol=5 * ANGLE):
            yield fault("geometry", f"{_name(image)}: read_dir, phase_dir and slice_dir are not three unit vectors at "
                        "right angles: copy them from a readout")  # fmt: skip
            continue
        problem = problem_of(image, scan.phantom) if scan.phantom is not None else _unlike_all_places(image, scan)
        if problem:
            yield fault("geometry", f"{_name(image)}: {problem}")


def _unlike_all_places(image: Any, scan: Scan) -> str:
    """Say so when an image lies where no readout or image of the data lies; the object is not known."""
    slab = max((each.encodedSpace.fieldOfView_mm.z for each in scan.header.encoding if _is_slab(each)), default=0.0)
    for place in scan.places:
        offset = np.array(image.position[:]) - place.position
        along = float(np.dot(offset, place.slice_dir))  # a partition lies beside the middle of its slab
        across = np.linalg.norm(offset - along * np.array(place.slice_dir))
        turned = (
            not np.allclose(getattr(image, name)[:], getattr(place, name), atol=ANGLE)
            for name in ("read_dir", "phase_dir", "slice_dir")
        )
        if across <= DISTANCE and abs(along) <= DISTANCE + slab / 2 and not any(turned):
            return ""
    return "its position and directions are those of no readout or image of the data"


def _is_slab(encoding: Any) -> bool:
    return bool(encoding.encodedSpace.matrixSize.z > 1)


def _windows(images: Images, scan: Scan) -> Iterator[Finding]:
    for image in images:
        texts = (image.meta.get("WindowCenter"), image.meta.get("WindowWidth"))
        if texts == (None, None):
            continue
        try:
            centre, width = (float(text) for text in texts)
        except (TypeError, ValueError):
            yield fault(
                "window", f"{_name(image)}: WindowCenter {texts[0]} and WindowWidth {texts[1]} are not two numbers"
            )
            continue
        low, high = float(np.abs(image.data).min()), float(np.abs(image.data).max())
        if not np.iscomplexobj(image.data):
            low, high = float(image.data.min()), float(image.data.max())
        extent = max(high - low, 1.0)
        outside = centre - width / 2 > high or centre + width / 2 < low
        if outside or not NARROWEST_WINDOW * extent <= width <= WIDEST_WINDOW * extent:
            yield fault(
                "window",
                f"{_name(image)}: the window shows values from {centre - width / 2:g} to {centre + width / 2:g}, the "
                f"pixels go from {low:g} to {high:g}: the image would look empty",
            )


def _attributes(images: Images, pictures: Images, scan: Scan) -> Iterator[Finding]:
    for image in images:
        for key, value in image.meta.items():
            longest = LONGEST.get(key, LONGEST_OTHER)
            for text in mrdhelper.meta_values({key: value}, key):
                if len(text) > longest and key != "IceMiniHead":
                    yield fault(
                        "attributes",
                        f"{_name(image)}: {key} has {len(text)} characters, DICOM takes {longest}: the scanner cuts or "
                        "refuses it",
                    )
        if not image.meta:
            yield fault("attributes", f"{_name(image)}: no attributes: set at least DataRole, Keep_image_geometry and "
                        "the window, as mrdhelper.build_image does")  # fmt: skip
    for image in pictures:
        if image.meta and str(image.meta.get("Keep_image_geometry", scan.of_type(ismrmrd.Image) and "1")) != "1":
            yield warning(
                "attributes",
                f"{_name(image)}: Keep_image_geometry is not 1: a scanner may use another geometry",
            )
        for key, name in (("ImageRowDir", "read_dir"), ("ImageColumnDir", "phase_dir")):
            values = mrdhelper.meta_values(image.meta, key)
            if image.meta and any(getattr(image, name)) and not _agree(values, getattr(image, name)[:]):
                state = f"is ({', '.join(text[:8] for text in values)})" if values else "is missing"
                yield fault("attributes", f"{_name(image)}: {key} {state}, {name} of the image's header is "
                            f"{tuple(round(v, 3) for v in getattr(image, name))}")  # fmt: skip
    incoming = scan.of_type(ismrmrd.Image)
    if any("IceMiniHead" in image.meta for image in incoming):
        for image in pictures:
            if "IceMiniHead" not in image.meta:
                yield fault(
                    "attributes",
                    f"{_name(image)}: the mini header (IceMiniHead) of the incoming image is lost: begin with a copy "
                    "of its attributes, ismrmrd.Meta(image.meta)",
                )


def _agree(texts: Sequence[str], direction: Sequence[float]) -> bool:
    try:
        return bool(np.allclose([float(text) for text in texts], direction, atol=ANGLE))
    except ValueError:
        return False
