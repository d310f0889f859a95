"""MRD files: HDF5 in batches, both ways.

Layout of a group: ``xml`` (MRD header), ``data`` (readouts), ``waveforms``,
``image_<series>/{data,header,attributes}``, and, as servers of this kind keep them, ``config``, ``config_file`` and
``configAdditional`` (JSON parameters).

Reading or writing one readout at a time, as ``ismrmrd.Dataset`` does, costs an HDF5 call and several small allocations
each; whole slices are limited by HDF5's variable-length elements alone (``benchmarks/`` has the figures).
"""

import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import (
    acquisition_dtype,
    acquisition_header_dtype,
    get_hdf5type,
    image_header_dtype,
    waveform_dtype,
    waveform_header_dtype,
)

from mrdio.codec import IMAGE_DTYPES, make_image
from mrdio.h5groups import Inside, MrdFileError, image_groups, open_mrd, reading, refuse_raw_data

logger = logging.getLogger(__name__)

BATCH = 256
BATCH_BYTES = 32 << 20
DISK_MARGIN = 4 << 20  # disk space that is left free, for what HDF5 writes besides [bytes]
IMAGE_BATCH = 16  # headers in a chunk: each series takes up one whole chunk of them at least
# Image attributes and texts are both UTF-8, declared as the ISMRMRD libraries declare them: the C++ one cannot read a
# header that is declared as UTF-8.
ATTRIBUTES = h5py.string_dtype("utf-8")
TEXT = h5py.string_dtype("ascii")


class MrdReader:
    """One group of an MRD .h5 file, read in slices.

    Parameters
    ----------
    path : path-like
        The file.
    group : str, optional
        The group to read; may be left out when the file has only one.

    Attributes
    ----------
    group : str
        Name of the group.
    header_xml, config, config_text, json_parameters : str or None
        Opening messages of the session, as far as the file holds them.
    acquisition_count, waveform_count, image_count : int
        How much there is to read.

    Raises
    ------
    MrdFileError
        If the file is no MRD file, the group is not there, or must be named because there are several.
    """

    def __init__(self, path: Path | str, group: str | None = None) -> None:
        self.path = Path(path)
        self._file = open_mrd(self.path)
        try:
            inside = Inside(self._file)
            with reading(f"{self.path}: its list of groups"):
                self.group = self._only_group(inside) if group is None else group
                self._group = inside.find_mrd(self.group)
                if not isinstance(self._group, h5py.Group):
                    there = ", ".join(inside.groups()) or "none"
                    raise MrdFileError(f"{self.path} has no group '{group}', it has: {there}")
            with self._reading("something"):
                self.image_groups = image_groups(self._group)
                self.header_xml = self._text("xml")
                self.config = self._text("config_file")
                self.config_text = self._text("config")
                self.json_parameters = self._text("configAdditional")
                self.acquisition_count = self._count("data")
                self.waveform_count = self._count("waveforms")
                self.image_count = sum(self._count(f"{name}/data") for name in self.image_groups)
        except BaseException:
            self._file.close()
            raise

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return reading(f"{self.path}: {what} of group '{self.group}'")

    def _only_group(self, inside: Inside) -> str:
        groups = inside.groups()
        if not groups:
            raise MrdFileError(f"{self.path} has no group, so it is no MRD file")
        if len(groups) > 1:
            raise MrdFileError(f"{self.path} has {len(groups)} groups, name one of them: {', '.join(groups)}")
        return groups[0]

    def _text(self, name: str) -> str | None:
        if name not in self._group:
            return None
        if not isinstance(self._group[name], h5py.Dataset):
            raise MrdFileError(f"{self.path}: '{self.group}/{name}' is to be a text")
        value = np.ravel(self._group[name][()])
        if not value.size:
            return None
        return value[0].decode("utf-8", "replace") if isinstance(value[0], bytes) else str(value[0])

    def _count(self, name: str) -> int:
        return len(self._group[name]) if name in self._group else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _records(self, name: str, header_dtype: np.dtype) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Slices of a table, each with its headers packed as the `ismrmrd` structures lay them out.

        Other programs align the fields of the headers differently, so these are copied field by field.
        """
        table = self._group[name]
        for start in range(0, len(table), BATCH):
            records = table[start : start + BATCH]
            heads = np.zeros(len(records), header_dtype)
            _copy_fields(records["head"], heads)
            yield heads, records

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """Yield the readouts in the order of the file."""
        if not self.acquisition_count:
            return
        with self._reading("data"):
            for heads, records in self._records("data", acquisition_header_dtype):
                for head, trajectory, data in zip(heads, records["traj"], records["data"], strict=True):
                    header = ismrmrd.AcquisitionHeader.from_buffer_copy(head)
                    shape = (header.active_channels, header.number_of_samples)
                    trajectory_shape = (header.number_of_samples, header.trajectory_dimensions)
                    yield ismrmrd.Acquisition(
                        header,
                        self._shaped(data.astype(np.float32, copy=False).view(np.complex64), shape, "data"),
                        self._shaped(trajectory.astype(np.float32, copy=False), trajectory_shape, "trajectory"),
                    )

    def waveforms(self) -> Iterator[ismrmrd.Waveform]:
        """Yield the waveforms in the order of the file."""
        if not self.waveform_count:
            return
        with self._reading("waveforms"):
            for heads, records in self._records("waveforms", waveform_header_dtype):
                for head, data in zip(heads, records["data"], strict=True):
                    header = ismrmrd.WaveformHeader.from_buffer_copy(head)
                    shape = (header.channels, header.number_of_samples)
                    yield ismrmrd.Waveform(header, self._shaped(data.astype(np.uint32, copy=False), shape, "waveform"))

    def images(self, name: str | None = None) -> Iterator[ismrmrd.Image]:
        """Yield the images of one sub-group, or of all of them in the order of their series."""
        for group in self.image_groups if name is None else [name]:
            with self._reading(group):
                parts = self._group[group]
                for index in range(len(parts["data"])):
                    yield self._image(parts, index)

    def image(self, name: str, index: int) -> ismrmrd.Image:
        """Read one image of a sub-group, counted from 0."""
        with self._reading(name):
            return self._image(self._group[name], index)

    def image_shape(self, name: str) -> tuple[int, ...]:
        """Number of images of a sub-group, and the shape of each: (images, channels, z, y, x)."""
        with self._reading(name):
            return self._group[name]["data"].shape

    def _image(self, parts: h5py.Group, index: int) -> ismrmrd.Image:
        head = np.zeros(1, image_header_dtype)
        _copy_fields(parts["header"][index : index + 1], head)
        header = ismrmrd.ImageHeader.from_buffer_copy(head)
        data = parts["data"][index]
        if data.dtype.names:  # complex numbers are kept as pairs
            real, imaginary = data.dtype.names
            pairs, data = data, np.empty(data.shape, IMAGE_DTYPES[header.data_type])
            data.real, data.imag = pairs[real], pairs[imaginary]  # in sums, infinity would spoil the other part
        attributes = np.ravel(parts["attributes"][index])[0] if "attributes" in parts else ""
        if isinstance(attributes, bytes):
            attributes = attributes.decode("utf-8", "replace")
        return make_image(header, attributes, np.ascontiguousarray(data))

    def _shaped(self, values: np.ndarray, shape: tuple[int, int], what: str) -> np.ndarray:
        if values.size != shape[0] * shape[1]:
            raise MrdFileError(f"{self.path}: {what} has {values.size} values where its header says {shape}")
        return values.reshape(shape)


def _copy_fields(source: np.ndarray, target: np.ndarray) -> None:
    given = source.dtype.names
    if given is None:
        raise ValueError("it has a number where the fields of a header are to be")
    for name in target.dtype.names or ():
        if name not in given:
            continue  # a field that came with a later version of the format stays zero
        if target.dtype[name].names:
            _copy_fields(source[name], target[name])
        else:
            target[name] = source[name]


class MrdWriter:
    """Appends to one group of an MRD .h5 file, in batches.

    Parameters
    ----------
    path : path-like
        The file; made if it is not there, else added to.
    group : str
        The group; images, readouts and waveforms that it already holds are kept.
    keep_free : int
        What is left free on the disk [bytes].
    image_groups : int or None
        How many groups of images, of a series, size and type each, are made at most: each costs some kilobytes, however
        small its images are. None: no limit.
    locking : bool or None
        Whether HDF5 locks the file; None: as HDF5 does by itself. False if the caller holds a lock on it already.
    replace : bool
        Whether what the group holds already is removed. The space is used again for what is written.

    Raises
    ------
    MrdFileError
        If the file cannot be written, or is no HDF5 file, or the group cannot be made, or is to be replaced and holds
        raw data.
    """

    def __init__(
        self,
        path: Path | str,
        group: str = "dataset",
        keep_free: int = DISK_MARGIN,
        image_groups: int | None = None,
        locking: bool | None = None,
        replace: bool = False,
    ) -> None:
        self.path = Path(path)
        self._keep_free = max(DISK_MARGIN, keep_free)
        self._groups_left = math.inf if image_groups is None else image_groups
        try:
            self._file = h5py.File(self.path, "a", locking=locking)
        except OSError as error:
            raise MrdFileError(f"{self.path} cannot be written: {error}") from error
        self.group = group
        try:
            there = Inside(self._file).find_mrd(group)
            if replace and there is not None:
                refuse_raw_data(there)
                del self._file[group]
            self._group = self._file.require_group(group)
        except MrdFileError:
            self._file.close()
            raise
        except (TypeError, ValueError) as error:
            self._file.close()
            raise MrdFileError(f"{self.path} has no room for a group '{group}': {error}") from error
        self._acquisitions: list[ismrmrd.Acquisition] = []
        self._waveforms: list[ismrmrd.Waveform] = []
        self._batch_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the remaining items and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _write_text(self, name: str, text: str) -> None:
        if name in self._group:
            del self._group[name]
        self._group.create_dataset(name, data=[text.replace("\0", "").encode()], dtype=TEXT)

    def note(self, name: str, value: str) -> bool:
        """Keep a text under a name among the group's HDF5 attributes; returns False if just that is there already."""
        name = os.fsencode(name).decode("utf-8", "replace")  # file names may be no UTF-8
        if self._group.attrs.get(name) == value:
            return False
        self._group.attrs[name] = value
        return True

    def write_header(self, header: Any) -> None:
        """Write the MRD header, given as XML text or as `ismrmrd.xsd.ismrmrdHeader`."""
        self._write_text("xml", header if isinstance(header, str) else header.toXML("utf-8"))

    def write_config(self, name: str) -> None:
        """Write the name of the config that the session asked for."""
        self._write_text("config_file", name)

    def write_config_text(self, text: str) -> None:
        """Write the config that the session sent as text."""
        self._write_text("config", text)

    def write_json_parameters(self, text: str) -> None:
        """Write the JSON parameters of the session."""
        self._write_text("configAdditional", text)

    def write(self, item: ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image) -> None:
        """Append one item. Readouts and waveforms are kept back until there are enough of them for one HDF5 call.

        Raises
        ------
        TypeError
            If the item is none of the three.
        OSError
            If it does not fit on the disk.
        MrdFileError
            If it would need a further group of images, and there are as many as there may be.
        """
        if isinstance(item, ismrmrd.Image):
            self._write_image(item)
            return
        if isinstance(item, ismrmrd.Acquisition):
            self._acquisitions.append(item)
            self._batch_bytes += item.traj.nbytes
        elif isinstance(item, ismrmrd.Waveform):
            self._waveforms.append(item)
        else:
            raise TypeError(f"an MRD file holds acquisitions, waveforms and images, not a {type(item).__name__}")
        self._batch_bytes += item.data.nbytes
        if len(self._acquisitions) + len(self._waveforms) >= BATCH or self._batch_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the readouts and waveforms that were kept back, and hand all to the operating system."""
        self._check_room(self._batch_bytes)
        if self._acquisitions:
            rows = np.zeros(len(self._acquisitions), acquisition_dtype)
            for row, acquisition in zip(rows, self._acquisitions, strict=True):
                row["head"] = np.frombuffer(bytes(acquisition.getHead()), acquisition_header_dtype)[0]
                row["traj"] = np.ascontiguousarray(acquisition.traj, np.float32).ravel()
                row["data"] = np.ascontiguousarray(acquisition.data, np.complex64).ravel().view(np.float32)
            self._append("data", rows)
        if self._waveforms:
            rows = np.zeros(len(self._waveforms), waveform_dtype)
            for row, waveform in zip(rows, self._waveforms, strict=True):
                row["head"] = np.frombuffer(bytes(waveform.getHead()), waveform_header_dtype)[0]
                row["data"] = np.ascontiguousarray(waveform.data, np.uint32).ravel()
            self._append("waveforms", rows)
        self._acquisitions, self._waveforms, self._batch_bytes = [], [], 0
        self._file.flush()

    def _check_room(self, count: int) -> None:
        """Refuse to write what does not fit on the disk: HDF5 may crash when the disk runs full."""
        free = shutil.disk_usage(self.path.absolute().parent).free
        wanted = count + self._keep_free
        if free < wanted:
            raise OSError(errno.ENOSPC, f"{free} bytes are free, {wanted} are wanted", str(self.path))

    def _append(self, name: str, rows: np.ndarray) -> None:
        if name not in self._group:
            self._group.create_dataset(name, (0,), rows.dtype, maxshape=(None,), chunks=(BATCH,))
        table = self._group[name]
        start = len(table)
        table.resize(start + len(rows), axis=0)
        table[start:] = rows

    def _write_image(self, image: ismrmrd.Image) -> None:
        head = image.getHead()
        data = np.ascontiguousarray(image.data, IMAGE_DTYPES[head.data_type]).view(get_hdf5type(head.data_type))
        attributes = image.attribute_string
        self._check_room(data.nbytes + len(attributes))
        parts = self._image_parts(head.image_series_index, data)
        count = len(parts["data"])
        for name, value in (
            ("data", data),
            ("header", np.frombuffer(bytes(head), image_header_dtype)[0]),
            ("attributes", attributes),
        ):
            parts[name].resize(count + 1, axis=0)
            parts[name][count] = value
        self._file.flush()

    def _image_parts(self, series: int, data: np.ndarray) -> h5py.Group:
        """Sub-group for an image: all images of one share shape and type, others go to a further one."""
        name, further = f"image_{series}", 0
        while name in self._group:
            existing = self._group[name].get("data") if isinstance(self._group[name], h5py.Group) else None
            if (
                existing is not None and existing.shape[1:] == data.shape and existing.dtype == data.dtype
                and existing.maxshape[0] is None  # other programs write groups that cannot grow
            ):  # fmt: skip
                return self._group[name]
            further += 1
            name = f"image_{series}_{further}"
        if self._groups_left < 1:
            raise MrdFileError(f"{self.path}: images of too many series, sizes and types")
        self._groups_left -= 1
        if further:
            logger.warning(
                "An image of series %d has another size or type (%s %s) than those before it: it goes to '%s'.",
                series, "x".join(map(str, data.shape)), data.dtype, name,
            )  # fmt: skip
        parts = self._group.create_group(name)
        chunks = (1, *data.shape) if data.size else True
        parts.create_dataset("data", (0, *data.shape), data.dtype, maxshape=(None, *data.shape), chunks=chunks)
        parts.create_dataset("header", (0,), image_header_dtype, maxshape=(None,), chunks=(IMAGE_BATCH,))
        parts.create_dataset("attributes", (0,), ATTRIBUTES, maxshape=(None,), chunks=(IMAGE_BATCH,))
        return parts
