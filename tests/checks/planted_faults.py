"""Copies of modules with one fault each, all known ones of the field."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

BUILD = "mrdhelper.build_image(pixels, head, metadata, index=index, field_of_view=plane.field_of_view)"
SEND = f"connection.send_image(\n                    {BUILD}\n                )"
LOOP = "for head, pixels in zip(plane.heads, map(to_pixels, phases), strict=True):"


def built(change: str) -> tuple[str, str]:
    """Edit of simplefft: the image `i` is changed before it is sent, by statements that ; separates."""
    lines = [f"i = {BUILD}", *change.split("; "), "connection.send_image(i)"]
    return SEND, ("\n" + 16 * " ").join(lines)


SWALLOWING = """def process(connection, config, metadata):
    try:
        guarded(connection, config, metadata)
    except Exception:
        pass


def ignored"""
BY_COUNTER = (
    "in cartesian.sort_repetitions("
    "(lines[each.idx.kspace_encode_step_1] is None and each for each in connection if hasattr(each, 'idx'))"
)

# What is changed: module, (old, new) of its source, subject and words of the finding that has to come.
FAULTS = {
    "transposed": ("simplefft", [("to_pixels, phases", "to_pixels, phases.swapaxes(1, 2)")],
                   "geometry", "transposed"),
    "mirrored": ("simplefft", [("to_pixels, phases", "to_pixels, phases[:, :, ::-1]")],
                 "geometry", "mirrored along its rows"),
    "upside_down": ("simplefft", [("to_pixels, phases", "to_pixels, phases[:, ::-1]")],
                    "geometry", "mirrored along its columns"),
    "half_a_pixel": ("simplefft", [("to_pixels, phases", "to_pixels, (phases + np.roll(phases, 1, 2)) / 2")],
                     "geometry", "shifted by 0.5"),
    "three_pixels": ("simplefft", [("to_pixels, phases", "to_pixels, np.roll(phases, 3, 1)")],
                     "geometry", "0 pixels along its rows and 3 along its columns"),
    "first_position": ("simplefft", [built("i.position = planes[0].heads[0].position")],
                       "geometry", "shows slice 1, which lies at"),
    "read_dir": ("simplefft", [built("i.read_dir = tuple(-x for x in i.read_dir); "
                                     "i.meta['ImageRowDir'] = [str(x) for x in i.read_dir]")],
                 "geometry", "read_dir is"),
    "row_dir": ("simplefft", [built("i.meta['ImageRowDir'], i.meta['ImageColumnDir'] = "
                                    "i.meta['ImageColumnDir'], i.meta['ImageRowDir']")],
                "attributes", "ImageRowDir is"),
    "field_of_view": ("simplefft", [("plane.field_of_view", "(480, 192, 6)")],
                      "field of view", "makes pixels of 12 x 6 x 6 mm"),
    "no_index": ("simplefft", [("index=index", "index=0")], "series", "image_index is 0 for 4 of 4"),
    "one_series": ("simplefft", [built("connection.send_image(i); i = ismrmrd.Image(head=i.getHead(), data=4095 - "
                                       "i.data, meta=i.meta); i.image_index += 100; "
                                       "i.meta['SequenceDescriptionAdditional'] = 'Inverted'")],
                   "series", "different kinds"),
    "sizes": ("simplefft", [("to_pixels, phases", "to_pixels, phases[:, :, :-2 * (index % 2) or None]")],
              "series", "different sizes"),
    "time_stamp": ("simplefft", [built("i.acquisition_time_stamp = 0")], "time stamps", "is 0"),
    "uid": ("simplefft", [built("i.measurement_uid = 0")], "counters", "measurement_uid is 0"),
    "slice_lost": ("simplefft", [(LOOP, f"if plane.heads[0].idx.slice:\n                continue\n            {LOOP}")],
                   "counters", "no image has the slice counter [1]"),
    "floats": ("simplefft", [("pixels, head, metadata", "pixels.astype(np.float32), head, metadata")],
               "data type", "float32"),
    "complex": ("simplefft", [("pixels, head, metadata", "pixels.astype(np.complex64), head, metadata")],
                "data type", "complex"),
    "window": ("simplefft", [built("i.meta['WindowCenter'] = '200000'; i.meta['WindowWidth'] = '100'")],
               "window", "from 199950 to 200050"),
    "overlong": ("simplefft", [built("i.meta['SequenceDescriptionAdditional'] = 'x' * 100")],
                 "attributes", "has 100 characters, DICOM takes 64"),
    "no_attributes": ("simplefft", [built("i.meta = ismrmrd.Meta()")], "attributes", "no attributes"),
    "mini_header": ("invertcontrast", [("ismrmrd.Meta(image.meta)", "ismrmrd.Meta()")], "attributes", "mini header"),
    "swallows": ("simplefft", [("index = 0\n", "index = 0\n    return ignored(connection)\n")],
                 "input", "not a word to the client"),
    "swallows_bad_data": ("simplefft", [("def process(", "def guarded("), ("index == 0", "False"),
                                        ("def ignored", SWALLOWING)],
                          "bad data", "not a word to the client"),
    "never_ends": ("simplefft", [("if index == 0", "released.wait()\n    if index == 0")],
                   "ending", "has not ended"),
    "closes_first": ("simplefft", [("index += 1", "connection.send_close()\n                index += 1")],
                     "input", "CLOSE"),
    "prints": ("simplefft", [("index += 1", "print('image', index)\n                index += 1")],
               "output", "the module prints ('image 0')"),
    "empty_scan": ("simplefft", [("    if index == 0", "    connection.info(str(1 / index))\n    if index == 0")],
                   "bad data", "ZeroDivisionError"),
    "bad_counter": ("simplefft", [("in cartesian.sort_repetitions(connection", BY_COUNTER)],
                    "bad data", "IndexError"),
    "state": ("simplefft", [(SEND, f"kept.append({BUILD})\n                connection.send_image(kept)")],
              "series", "image_index is 1 for 4 of 10"),
    "state_between_scans": ("simplefft", [("to_pixels, phases", "to_pixels, phases if kept else phases.copy()"),
                                          ("index += 1", "index += 1 + len(kept)"),
                                          ("    if index == 0", "    kept.append(1)\n    if index == 0")],
                            "state", "after another scan"),
    "environment": ("simplefft", [("index = 0\n", "index = 0\n    os.environ['OMP_NUM_THREADS'] = '7'\n")],
                    "side effects", "os.environ"),
}  # fmt: skip

MORE = """
import os
import threading

import ismrmrd

kept = []
lines = [None] * 64
released = threading.Event()


def ignored(connection):
    for _ in connection:
        try:
            raise ValueError("broken")
        except Exception:
            pass
"""


def write(folder: Path, name: str) -> None:
    """Write the copy of a module with a fault into a folder, as ``faulty_<name>.py``."""
    module, edits, _, _ = FAULTS[name]
    source = (PROJECT / f"{module}.py").read_text("utf-8")
    source = source.replace("import logging\n", f"import logging\n{MORE}", 1)
    for old, new in edits:
        assert old in source, (name, old)
        source = source.replace(old, new)
    (folder / f"faulty_{name}.py").write_text(source, "utf-8")
