"""Groups of an MRD .h5 file: opened and found without following links, or storage, into other files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

# Objects that are examined in a group.
_MEMBERS = {"xml", "config", "config_file", "configAdditional", "data", "waveforms"}
_IMAGES = ("image_", "images_")
_IMAGE_PARTS = ("data", "header", "attributes")

# Groups and links that are followed in a file: four for each series. A small file may hold very many, in cycles.
STEPS = 20_000


class MrdFileError(OSError):
    """A file cannot be opened or is no MRD file; the message names the file and what is missing."""


def image_groups(group: h5py.Group) -> list[str]:
    """Names of the image sub-groups of a group, in the order of their series numbers."""

    def series(name: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", name)]

    names = [
        name
        for name in group
        if name.startswith(_IMAGES) and isinstance(item := group.get(name), h5py.Group) and "data" in item
    ]
    return sorted(names, key=lambda name: (series(name), name))


class LeadsElsewhereError(MrdFileError):
    """Something in a file is, or is kept in, another file."""


class Inside:
    """Finds what is in a file, and follows no link to another one.

    HDF5 would open the other file, whatever it is, and its bytes would become data. Nothing is opened before its link
    is known to stay in the file. Objects that are not asked for are not examined.

    Parameters
    ----------
    file : h5py.File
        The file.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._steps_left = STEPS

    def find(self, group: h5py.Group, path: str) -> Any:
        """Open an object by its path from a group; None where there is none.

        Raises
        ------
        MrdFileError
            There is an external link on the way, or it is a virtual data set or one with external storage, or it cannot
            be read; the text names it.
        """
        names = path.split("/")[::-1]
        item = self._file["/"] if path.startswith("/") else group
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            if not isinstance(item, h5py.Group):
                return None
            place = f"{item.name.rstrip('/')}/{name}"
            self._steps_left -= 1
            if self._steps_left < 0:  # soft links may form cycles, and each may be long
                raise MrdFileError(f"{self._file.filename}: too many groups and links (at {place}): at most {STEPS}")
            try:
                link = item.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    text = f"{place} is a link to another file, {link.filename}: not followed"
                    raise LeadsElsewhereError(f"{self._file.filename}: {text}")
                if isinstance(link, h5py.SoftLink):
                    names += link.path.split("/")[::-1]
                    item = self._file["/"] if link.path.startswith("/") else item
                elif link is None:
                    return None
                else:
                    item = item[name]
                    self._refuse_other_storage(item, place)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise MrdFileError(f"{self._file.filename}: {place} cannot be read: {error}") from error
        return item

    def _refuse_other_storage(self, item: Any, place: str) -> None:
        if isinstance(item, h5py.Dataset):
            if item.is_virtual:
                text = f"{place} is a virtual data set, of other files: not read"
                raise LeadsElsewhereError(f"{self._file.filename}: {text}")
            if item.external:
                text = f"{place} lies in another file, {item.external[0][0]}: not read"
                raise LeadsElsewhereError(f"{self._file.filename}: {text}")

    def find_mrd(self, name: str) -> Any:
        """Open a group by its path, after all that it holds of an MRD file has been found in the file.

        Raises
        ------
        MrdFileError
            As `find`.
        """
        group = self.find(self._file, name)
        if isinstance(group, h5py.Group):
            for member in group:
                if member in _MEMBERS:
                    self.find(group, member)
                elif member.startswith(_IMAGES) and isinstance(images := self.find(group, member), h5py.Group):
                    for part in _IMAGE_PARTS:
                        self.find(images, part)
        return group

    def groups(self) -> list[str]:
        """Names of the file's groups, without those that lie in other files."""
        names = []
        for name in self._file:
            with suppress(LeadsElsewhereError):
                if isinstance(self.find(self._file, name), h5py.Group):
                    names.append(name)
        return names


def refuse_raw_data(group: Any) -> None:
    """Check that a group holds no readouts: those of a measurement cannot be made again, as images can.

    Raises
    ------
    MrdFileError
        If it does.
    """
    if isinstance(group, h5py.Group) and "data" in group:
        raise MrdFileError(f"{group.file.filename}: group '{group.name.strip('/')}' holds raw data: it is not replaced")


def open_mrd(path: Path | str, group: str | None = None) -> h5py.File:
    """Open an MRD .h5 file for reading.

    Parameters
    ----------
    path : path-like
        The file.
    group : str, optional
        A group that may be there, and is to lead to no other file. All else in the file is not looked at.

    Raises
    ------
    MrdFileError
        If there is no such file, it is no HDF5 file, or something in the group leads to another file.
    """
    path = Path(path)
    if not path.is_file():
        raise MrdFileError(f"{path} is no file" if path.exists() else f"there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "it is no HDF5 file" if "signature not found" in str(error) else error
        raise MrdFileError(f"{path} cannot be read as HDF5: {reason}") from error
    try:
        if group is not None:
            with reading(f"{path}: group '{group}'"):
                Inside(file).find_mrd(group)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn what a strange or damaged layout makes h5py, numpy and ismrmrd raise into an error that names the place."""
    try:
        yield
    except MrdFileError:
        raise
    except (
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise MrdFileError(f"{place} is not laid out as in an MRD file: {error}") from error


def image_holders(path: Path | str) -> list[str]:
    """Names of the groups of a file, at any depth, that hold images.

    Raises
    ------
    MrdFileError
        If the file cannot be read.
    """
    names: list[str] = []

    with open_mrd(path) as file, reading(f"{path}: its list of groups"):
        inside = Inside(file)

        def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group) and any(member.startswith(_IMAGES) for member in item):
                inside.find_mrd(name)
                if image_groups(item):
                    names.append(name)

        file.visititems(add)  # which follows neither soft nor external links
    return names
