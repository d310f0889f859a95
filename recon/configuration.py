"""Configuration files: TOML or JSON into frozen dataclasses, with every value checked once.

A module declares its parameters as a dataclass whose fields are made by `parameter`: default, description, unit and
allowed values stand together, once. `load` reads a file into such a dataclass; `declared` lists the declaration for
programs that show it to a user.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import math
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing import Protocol

    from _typeshed import DataclassInstance

    class FileDataclass(DataclassInstance, Protocol):
        """Configuration dataclass that names its file."""

        FILE: ClassVar[str]


logger = logging.getLogger(__name__)

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
"""Where relative paths start that the folder in which the server was started does not have."""

Config = TypeVar("Config", bound="DataclassInstance")
FileConfig = TypeVar("FileConfig", bound="FileDataclass")


class ConfigurationError(ValueError):
    """A configuration that cannot be used; the text names file, key and value, and what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """Declaration of one parameter, besides its name, type and default."""

    description: str
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    pattern: str | None = None
    example: str | None = None


@dataclass(frozen=True)
class Declaration:
    """One parameter as `declared` lists it; `table` is empty at the top level of the file."""

    table: str
    name: str
    kind: Any
    default: Any
    parameter: Parameter

    @property
    def key(self) -> str:
        """Table and name as one word, `reconstruction.num_iter`."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def allowed(self) -> str:
        """Allowed values of this parameter, in words."""
        return allowed(self.kind, self.parameter)


def parameter(
    default: Any,
    description: str,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
    example: str | None = None,
) -> Any:
    """Declare a parameter of a configuration dataclass.

    Parameters
    ----------
    default
        Value when the file does not name the key.
    description
        One sentence for the user.
    unit
        Physical unit, such as "s".
    minimum, maximum
        Smallest and largest allowed number, both included.
    choices
        Allowed strings.
    pattern, example
        Regular expression that a text must match as a whole, unless it is empty; one that does.

    Returns
    -------
    A `dataclasses.field` that carries a `Parameter`.
    """
    declared_as = Parameter(description, unit, minimum, maximum, choices, pattern, example)
    return field(default=default, metadata={"parameter": declared_as})


def declared(cls: type, table: str = "") -> Iterator[Declaration]:
    """List the parameters of a configuration dataclass: its own, then those of its tables.

    A field made by `parameter` is a key; any other field must be a dataclass, which is a table of the file.
    """
    kinds = typing.get_type_hints(cls)
    tables = []
    for item in dataclasses.fields(cls):
        if "parameter" in item.metadata:
            yield Declaration(table, item.name, kinds[item.name], item.default, item.metadata["parameter"])
        else:
            tables.append(item.name)
    for name in tables:
        yield from declared(kinds[name], name)


def allowed(kind: Any, limits: Parameter) -> str:
    """Say in words which values a parameter takes."""
    if limits.choices:
        return "one of " + ", ".join(f'"{choice}"' for choice in limits.choices)
    if limits.pattern:
        return f'empty, or such as "{limits.example}"'
    if kind == tuple[Path, ...]:
        return 'a list of folders, such as ["seq_meta"]'
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}.get(
        kind, "a path in quotes"
    )
    if limits.minimum is not None and limits.maximum is not None:
        words += f" from {limits.minimum} to {limits.maximum}"
    elif limits.minimum is not None:
        words += f" of at least {limits.minimum}"
    elif limits.maximum is not None:
        words += f" of at most {limits.maximum}"
    return words + (f" [{limits.unit}]" if limits.unit else "")


def project_path(text: str | Path) -> Path:
    """Make a path absolute: `~` is the user's home.

    A relative path starts in the folder in which the server was started if it is there, else in the project's folder.
    """
    path = Path(text).expanduser()
    here = Path.cwd() / path
    return here if here.exists() else PROJECT_FOLDER / path


def convert(value: Any, kind: Any, limits: Parameter) -> Any:
    """Check one value against its declaration and return it in the declared type.

    Raises
    ------
    ValueError
        The value is of another type or out of range (the text says nothing more: `allowed` does).
    """
    if kind == tuple[Path, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise ValueError("no list of paths")
        return tuple(project_path(item) for item in value)
    expected = (int, float) if kind is float else kind if kind in (bool, int) else str
    # In Python true is an int; in a configuration file it is not.
    if not isinstance(value, expected) or (kind is not bool and isinstance(value, bool)):
        raise ValueError("wrong type")
    if kind is float:
        value = float(value)
        if not math.isfinite(value):
            raise ValueError("not finite")
    if limits.choices and value not in limits.choices:
        raise ValueError("no such choice")
    if limits.pattern and value and not re.fullmatch(limits.pattern, value):
        raise ValueError("of another form")
    if limits.minimum is not None and value < limits.minimum:
        raise ValueError("too small")
    if limits.maximum is not None and value > limits.maximum:
        raise ValueError("too large")
    if kind == Path | None:
        return project_path(value) if value else None
    return value


def unknown_key(table: str, name: str, known: list[Declaration]) -> str:
    """Explain a key that is not declared: where it belongs, what it may have meant, or what there is."""
    key = f"{table}.{name}" if table else name
    for other in known:
        if other.name == name:
            place = f"in the table [{other.table}]" if other.table else "at the top of the file, before the first table"
            return f"{key}: this key belongs {place}"
    here = [other.name for other in known if other.table == table]
    near = difflib.get_close_matches(name, [other.name for other in known], n=1)
    tables = sorted({f"[{other.table}]" for other in known if other.table} if not table else set())
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{key}: unknown key; {hint}Known here: {', '.join(here + tables)}"


def from_mapping(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Check a parsed configuration and make the dataclass of it.

    Parameters
    ----------
    cls
        Configuration dataclass; keys that `values` lacks take their defaults.
    values
        Keys and tables as TOML or JSON gives them.
    source
        Named in the error: the file, or where else the values came from.

    Raises
    ------
    ConfigurationError
        Names every unknown key and every value of wrong type or range, with what is allowed.
    """
    problems: list[str] = []
    result = _read_table(cls, values, "", list(declared(cls)), problems)
    if problems:
        raise ConfigurationError(f"{source}: " + "; ".join(problems))
    return result


def _read_table(
    cls: type[Config], values: Mapping[str, Any], table: str, known: list[Declaration], problems: list[str]
) -> Config:
    kinds = typing.get_type_hints(cls)
    names = {item.name: item for item in dataclasses.fields(cls)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{table}.{name}" if table else name
        if name not in names:
            problems.append(unknown_key(table, name, known))
        elif "parameter" not in names[name].metadata:
            if isinstance(value, Mapping):
                found[name] = _read_table(kinds[name], value, name, known, problems)
            else:
                problems.append(f"{key} = {value!r}: must be a table, [{name}]")
        else:
            limits = names[name].metadata["parameter"]
            try:
                found[name] = convert(value, kinds[name], limits)
            except (ValueError, OverflowError, OSError, RuntimeError):  # the latter two of paths that cannot be
                problems.append(f"{key} = {value!r}: must be {allowed(kinds[name], limits)}")
    for name, item in names.items():  # also a default starts where relative paths start
        if name not in found and kinds[name] == tuple[Path, ...] and item.default is not dataclasses.MISSING:
            found[name] = tuple(project_path(path) for path in item.default)
    return cls(**found)


def load(cls: type[FileConfig], path: str | Path | None = None) -> FileConfig:
    """Read a configuration file.

    Parameters
    ----------
    cls
        Configuration dataclass.
    path
        A `.json` file is read as JSON, any other as TOML; by default the `FILE` of the class.

    Raises
    ------
    ConfigurationError
        The file is missing, is no valid TOML or JSON (with the line), or holds an unknown key or a wrong value.
    """
    file = project_path(path if path is not None else cls.FILE)
    try:
        # Windows editors put a byte order mark in front, which neither parser takes.
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: is not UTF-8 text: {error}") from error
    try:
        values = json.loads(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "; write a Windows path in single quotes" if "'\\'" in str(error) else ""
        raise ConfigurationError(f"{file}: cannot be parsed: {error}{hint}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file}: holds {type(values).__name__}, must hold keys and tables")
    settings = from_mapping(cls, values, str(file))
    logger.info("Settings read from %s", file, extra={"settings": settings, "file": file})  # the live view shows them
    return settings


# --- The non-Cartesian reconstructions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldSettings:
    """Keys of a table [reconstruction]: which field errors are corrected, and how well; see `fieldterms`."""

    concomitant: str = parameter(
        "auto",
        "Correct the concomitant fields of the gradients. auto: at fields below 1 T.",
        choices=("auto", "on", "off"),
    )
    field_map: str = parameter(
        "", 'Map of the off-resonance: empty (not corrected), "auto", "dependency", or a file; see doc/fields.md.'
    )
    field_tolerance: float = parameter(
        1e-2, "Error of the field correction, relative to the signal: smaller takes longer.", minimum=1e-4, maximum=0.5
    )


@dataclass(frozen=True)
class SpiralReconstruction(FieldSettings):
    """Table [reconstruction]: what every spiral reconstruction takes."""

    apply_girf: bool = parameter(
        False, "Correct the trajectory with the scanner's gradient impulse response; needs a measured one."
    )
    girf_file: Path | None = parameter(  # noqa: RUF009 - parameter returns a dataclasses.field
        None, "MATLAB file with the gradient impulse response; empty: the one girf*.mat beside the server's code."
    )
    prewhiten: str = parameter(
        "auto",
        "auto: whiten readouts (equal, uncorrelated noise of all coils) where the noise is known; off: leave them.",
        choices=("auto", "off"),
    )
    gpu_device: int = parameter(-1, "Number of the GPU that computes; -1 computes on the CPU.", minimum=-1)
    fov_oversampling: float = parameter(
        1.0, "Reconstructed field of view over the designed one.", minimum=0.5, maximum=8
    )


@dataclass(frozen=True)
class MetafileConfig:
    """Settings of every module that takes trajectories of metafiles; a module's own class names its `FILE`."""

    FILE: ClassVar[str]
    metafile_paths: tuple[Path, ...] = parameter(
        (Path("seq_meta"),),
        "Folders in which the metafile or Pulseq file of the sequence is looked for, in this order.",
    )


@dataclass(frozen=True)
class SpiralConfig(MetafileConfig):
    """Top level of every spiral configuration file."""

    reconstruction: SpiralReconstruction = field(default_factory=SpiralReconstruction)
