"""Every limit that the server keeps to: one place for names, defaults and reasons."""

import argparse
import dataclasses
import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20

# The kinds of data that a limit on messages protects from are also those of a recorded stream.
MESSAGE_LIMITS = ("data", "text", "header", "attributes")


def _limit(default: float, name: str, limits: str, reason: str, unit: int = 1, low: float = 1) -> Any:
    """Field with its name on the command line, where it counts in units of the field's own (bytes in MiB)."""
    facts = {"name": name, "limits": limits, "reason": reason, "unit": unit, "low": low}
    return dataclasses.field(default=default, metadata=facts)


def _size(default: int, name: str, limits: str, reason: str, low: float = 1 / MIB) -> Any:
    """Field in bytes that counts in MiB on the command line."""
    return _limit(default * MIB, name, limits, reason, MIB, low)


def _time(default: float, name: str, limits: str, reason: str) -> Any:
    return _limit(default, name, limits, reason, 1, 0.01)


@dataclass(frozen=True)
class Limits:
    """Limits on what peers, modules and recordings use.

    Attributes
    ----------
    data, text, header, attributes, json : int
        Largest payload of a readout, image or waveform; longest text or config; longest MRD header; longest meta
        attributes of an image; longest JSON parameters [bytes].
    images : int
        How many images a session may send back.
    timeout : float
        Longest silence of a peer [s].
    opening : float
        How long a peer may take to send config and header [s].
    message_time : float
        How long one message may take from its first byte to its last, in either direction [s].
    send_timeout : float
        How long a peer may take nothing of what is being sent to it [s].
    fallback_wait : float
        Longest silence of a peer whose module has failed, before it gets fallback images [s].
    sessions : int
        How many sessions are served at once.
    waiting : int
        How many further ones may wait until a session ends, if they may wait.
    waiting_time : float
        How long they may wait [s].
    memory : int
        Memory of the server with all its child processes [bytes]; 0: a share of what the machine has (`memoryguard`).
    session_memory : int
        Memory of one session in a process of its own [bytes]; 0: no limit but that of the server.
    disk : int
        Disk space that saving leaves free [bytes].
    dependency_age : float
        How long a measurement that later scans depend on is kept [s].
    dependencies : int
        How much is kept of such measurements [bytes].
    """

    data: int = _size(4096, "maxMessage", "a readout, waveform or image", "a volume of 1024³ with 32-bit pixels")
    text: int = _size(64, "maxText", "a text, a config", "tables in configs; everything else is far below")
    header: int = _size(
        4, "maxHeader", "an MRD header",
        "real ones have tens of kB; reading a hostile one takes up to 1 s for each MiB",
    )  # fmt: skip
    attributes: int = _size(
        4, "maxAttributes", "the attributes of an image",
        "those with all DICOM fields of an image have tens of kB; the same",
    )  # fmt: skip
    json: int = _size(1, "maxJson", "JSON parameters", "real ones have some kB")
    images: int = _limit(
        1_000_000, "maxImages", "images that a session sends back",
        "five hours of 50 images a second; a module in an endless loop ends at this number",
    )  # fmt: skip
    timeout: float = _time(
        3600, "timeout", "silence of a client",
        "a scanner may wait for a patient between two readouts",
    )  # fmt: skip
    opening: float = _time(60, "openingTime", "config and header", "a scanner sends both as soon as it connects")
    message_time: float = _time(
        600, "messageTime", "one message from its first byte to its last, in either direction",
        "4096 MiB at 60 Mbit/s; a client that sends or takes a byte a minute is not served without end",
    )  # fmt: skip
    send_timeout: float = _time(
        60, "sendTimeout", "time for which a client takes nothing of what is sent to it",
        "buffers of the system take some MB before that counts",
    )  # fmt: skip
    fallback_wait: float = _time(
        60, "fallbackWait", "silence of a client whose module has failed, before it gets fallback images",
        "longer than a pause between two parts of a scan, and short enough for the operator",
    )  # fmt: skip
    sessions: int = _limit(
        64, "maxSessions", "sessions at once",
        "threads cost little, and memory is limited by itself",
    )  # fmt: skip
    waiting: int = _limit(64, "maxWaiting", "further ones that wait, with --overload wait", "")
    waiting_time: float = _time(300, "waitingTime", "how long they wait", "as long as one reconstruction may take")
    memory: int = _size(
        0, "maxMemory", "memory of the server and all that it starts",
        "0 stands for 80 % of what the machine, or the container, has: the system ends the whole server when there is "
        "none left", low=0,
    )  # fmt: skip
    session_memory: int = _size(
        0, "sessionMemory", "memory of one session, with -m",
        "0: no less than the server; a value must include the libraries that a module loads, 500 MiB", low=0,
    )  # fmt: skip
    disk: int = _size(
        1024, "minDisk", "disk space that saving leaves free",
        "logs and other programs need disk space; a conversion that would take it is not made, and the stream stays",
        low=0,
    )  # fmt: skip
    dependency_age: float = _time(
        30 * 86400, "dependencyAge", "age of a measurement that scans depend on",
        "30 days; such measurements are of the same examination, and scans are reconstructed again later",
    )  # fmt: skip
    dependencies: int = _size(
        10240, "maxDependencies", "all measurements that scans depend on together; the newest stays anyway",
        "thousands of noise measurements of some MB",
    )  # fmt: skip


def _facts(name: str) -> Any:
    return Limits.__dataclass_fields__[name].metadata


def flag_of(name: str) -> str:
    """Option that sets a field of `Limits`, to be named in a message."""
    return f"--limit {_facts(name)['name']}"


def table(limits: Limits) -> str:
    """All limits as a table in Markdown: name, value, what it limits, reason for the default."""
    lines = ["| name | value | what it limits | reason for the default |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(Limits):
        facts = field.metadata
        unit = " MiB" if facts["unit"] == MIB else " s" if field.type is float else ""
        value = f"{getattr(limits, field.name) / facts['unit']:.12g}{unit}"
        lines.append(f"| `{facts['name']}` | {value} | {facts['limits']} | {facts['reason']} |")
    return "\n".join(lines)


class _SetLimit(argparse.Action):
    """Collects ``NAME=VALUE`` in a dictionary of fields."""

    def __init__(self, names: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._fields = {_facts(name)["name"]: Limits.__dataclass_fields__[name] for name in names}

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, text: Any, option: str | None = None) -> None:
        """Read one."""
        name, _, given = text.partition("=")
        field = self._fields.get(name)
        if field is None:
            near = difflib.get_close_matches(name, self._fields, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            parser.error(f"{option} {text}: there is no limit {name!r}; {hint}Known are: {', '.join(self._fields)}")
        kind = int if field.type is int and field.metadata["unit"] == 1 else float
        try:
            number = kind(given)
        except ValueError:
            number = math.nan
        if not field.metadata["low"] <= number <= 1e9:
            word = "whole number" if kind is int else "number"
            parser.error(f"{option} {text}: must be {name}= and a {word} of at least {field.metadata['low']:.3g}")
        amount = number * field.metadata["unit"]
        value = int(amount) if field.type is int else float(amount)
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), field.name: value})


class _ShowLimits(argparse.Action):
    """Prints all limits, as the options before this one set them, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *_: Any) -> None:
        """Print them."""
        sys.stdout.write(table(read_limits(namespace)) + "\n")
        parser.exit()


def add_limits(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add ``--limit NAME=VALUE``, for the named fields or for all, and ``--limits`` to a command line."""
    names = names or tuple(Limits.__dataclass_fields__)
    parser.add_argument(
        "--limit", action=_SetLimit, names=names, metavar="NAME=VALUE", default=argparse.SUPPRESS,
        help="set a limit; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--limits", action=_ShowLimits, nargs=0, default=argparse.SUPPRESS,
        help="print the limits with their values and reasons, and end",
    )  # fmt: skip


def read_limits(arguments: argparse.Namespace) -> Limits:
    """Limits that a command line sets; the defaults where it sets none."""
    return Limits(**getattr(arguments, "limit", {}))


def as_arguments(limits: Limits, *names: str) -> list[str]:
    """Command line that sets the named fields, for another process."""
    return [
        part
        for name in names
        for part in ("--limit", f"{_facts(name)['name']}={getattr(limits, name) / _facts(name)['unit']!r}")
    ]
