"""Every limit that the server keeps to: one place for defaults and flags; doc/reliability.md has the reasons."""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from commandline import number

MIB = 1 << 20

# The kinds of data that a limit on messages protects from are also those of a recorded stream.
MESSAGE_LIMITS = ("data", "text", "header", "attributes")


def _limit(default: float, flag: str, text: str, unit: int = 1, low: float = 1) -> Any:
    """Field with its flag; the flag counts in units of the field's own (bytes are given in MiB)."""
    return dataclasses.field(default=default, metadata={"flag": flag, "help": text, "unit": unit, "low": low})


def _size(default: int, flag: str, text: str, low: float = 1 / MIB) -> Any:
    """Field in bytes with a flag in MiB."""
    return _limit(default * MIB, flag, f"{text} [MiB]", MIB, low)


def _time(default: float, flag: str, text: str) -> Any:
    return _limit(default, flag, f"{text} [s]", 1, 0.01)


@dataclass(frozen=True)
class Limits:
    """What peers, modules and recordings may use.

    Attributes
    ----------
    data, text, header, attributes, json : int
        Largest payload of a readout, image or waveform; longest text or config; longest MRD header; longest meta
        attributes of an image; longest JSON parameters [bytes].
    json_depth : int
        How deep JSON parameters may be nested.
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
        How many further ones may wait for a place, if they may wait.
    waiting_time : float
        How long they may wait [s].
    memory : int
        Memory of the server with all its child processes [bytes]; 0: a share of what the machine has (`memoryguard`).
    session_memory : int
        Memory of one session [bytes]; 0: no limit but that of the server.
    disk : int
        What saving leaves free on the disk [bytes].
    """

    data: int = _size(4096, "--maxMessage", "largest readout, image or waveform")
    text: int = _size(64, "--maxText", "longest text or config")
    header: int = _size(4, "--maxHeader", "longest MRD header")
    attributes: int = _size(4, "--maxAttributes", "longest meta attributes of an image")
    json: int = _size(1, "--maxJson", "longest JSON parameters")
    json_depth: int = _limit(64, "--maxJsonDepth", "deepest nesting of JSON parameters")
    images: int = _limit(1_000_000, "--maxImages", "images that a session may send back")
    timeout: float = _time(3600, "--timeout", "longest silence of a client")
    opening: float = _time(60, "--openingTime", "time for config and header")
    message_time: float = _time(600, "--messageTime", "time for one message, in either direction")
    send_timeout: float = _time(60, "--sendTimeout", "longest time for which a client takes nothing of what is sent")
    fallback_wait: float = _time(60, "--fallbackWait", "longest silence of a client before it gets fallback images")
    sessions: int = _limit(64, "--maxSessions", "sessions that are served at once")
    waiting: int = _limit(64, "--maxWaiting", "further sessions that may wait for a place, with --overload wait")
    waiting_time: float = _time(300, "--waitingTime", "how long they may wait")
    memory: int = _size(0, "--maxMemory", "memory of the server; 0: 80 %% of what the machine or the container has", 0)
    session_memory: int = _size(0, "--sessionMemory", "memory of one session; 0: as much as the server", 0)
    disk: int = _size(1024, "--minDisk", "what saving leaves free on the disk", 0)


def flag_of(name: str) -> str:
    """Flag of a field of `Limits`."""
    return Limits.__dataclass_fields__[name].metadata["flag"]


def add_limits(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of the named fields, or of all, to a command line."""
    for field in dataclasses.fields(Limits):
        if names and field.name not in names:
            continue
        facts = field.metadata
        in_units = field.default / facts["unit"]
        parser.add_argument(
            facts["flag"],
            dest=f"limit_{field.name}",
            type=number(facts["low"], int if field.type is int and facts["unit"] == 1 else float),
            default=int(in_units) if in_units.is_integer() else in_units,
            metavar="MIB" if facts["unit"] == MIB else "N" if field.type is int else "SECONDS",
            help=facts["help"],
        )


def read_limits(arguments: argparse.Namespace) -> Limits:
    """Limits that a command line sets; the defaults where it has no such flag."""
    values = {}
    for field in dataclasses.fields(Limits):
        value = getattr(arguments, f"limit_{field.name}", None)
        if value is not None:
            values[field.name] = field.type(value * field.metadata["unit"])
    return Limits(**values)


def as_arguments(limits: Limits, *names: str) -> list[str]:
    """Command line that sets the named fields, for another process."""
    return [
        part
        for name in names
        for part in (flag_of(name), repr(getattr(limits, name) / Limits.__dataclass_fields__[name].metadata["unit"]))
    ]
