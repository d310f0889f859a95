"""Where the field map of a scan comes from: a file, a scan of two echoes, or the scan's own data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mrdio.dependencies import Dependency
from recon import twoechoes
from recon.autofield import AutoFieldMap
from recon.configuration import ConfigurationError, FieldSettings, project_path
from recon.fieldcorrection import FieldCorrection, FieldMap
from recon.fieldmap import FieldMapError, read_file

DEPENDENCY, AUTO = "dependency", "auto"


class Client(Protocol):
    """What a `connection.Connection` has of use here."""

    dependency: Callable[[str], Dependency | None]

    def info(self, text: str) -> None:
        """Tell the client."""

    def warn(self, text: str) -> None:
        """Warn the client."""


def open_correction(
    settings: FieldSettings, header: Any, connection: Client, metafile_folders: Sequence[Path] = ()
) -> FieldCorrection:
    """Field correction of a scan, with the field map that the configuration names.

    Where a scan of two echoes is missing, or no map can be made of it, the client is told, and there is no map.

    Parameters
    ----------
    settings
        The keys ``concomitant``, ``field_map`` and ``field_tolerance``.
    header
        The MRD header.
    connection
        Told what is corrected; its ``dependency`` returns the scan of two echoes that the header names.
    metafile_folders
        Where the trajectory of a scan of two echoes is looked for.

    Raises
    ------
    ConfigurationError
        The file cannot be used; or as `FieldCorrection`.
    """
    field_map = _open(settings.field_map, connection, metafile_folders)
    return FieldCorrection(settings, header, field_map, connection.info, connection.warn)


def _open(name: str, connection: Client, metafile_folders: Sequence[Path]) -> FieldMap | None:
    if not name:
        return None
    if name == AUTO:
        return AutoFieldMap()
    if name != DEPENDENCY:
        try:
            return read_file(project_path(name), connection.warn)
        except FieldMapError as error:
            raise ConfigurationError(str(error)) from error
    measurement = connection.dependency(twoechoes.KIND)
    if measurement is None:
        connection.warn(
            'off-resonance is not corrected: field_map = "dependency", but no scan of two echoes was found. It has to '
            f'be sent before, with the config savedep, and named by a measurementDependency of type "{twoechoes.KIND}"'
        )
        return None
    try:
        return twoechoes.measured(measurement, metafile_folders, connection.info, connection.warn)
    except FieldMapError as error:
        connection.warn(f"off-resonance is not corrected: {error}")
        return None
