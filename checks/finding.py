"""A finding of the doctor, and how it is shown."""

import enum
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

LABEL, SUBJECT, WIDTH = 9, 15, 118  # columns of the output


class Level(enum.IntEnum):
    """How bad a finding is; only a fault makes the exit status 1."""

    OK = 0
    WARNING = 1
    FAULT = 2


_WORDS = {Level.OK: "ok", Level.WARNING: "warning", Level.FAULT: "FAULT"}
_COLOURS = {Level.OK: "\033[32m", Level.WARNING: "\033[33m", Level.FAULT: "\033[1;31m"}
_PLAIN = "\033[0m"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes
    ----------
    level : Level
        How bad it is.
    subject : str
        Name of the check, one or two words.
    text : str
        State of the matter; for a warning or a fault, also what to do.
    """

    level: Level
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """Make a finding that all is well."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """Make a finding that may matter."""
    return Finding(Level.WARNING, subject, text)


def fault(subject: str, text: str) -> Finding:
    """Make a finding of what will fail."""
    return Finding(Level.FAULT, subject, text)


def worst(findings: Iterable[Finding]) -> Level:
    """Level of the worst finding; OK when there is none."""
    return max((finding.level for finding in findings), default=Level.OK)


def show(findings: Iterable[Finding], stream: TextIO, colours: bool) -> None:
    """Write findings, one below the other: level, subject, text.

    Parameters
    ----------
    findings
        They are written as they come.
    stream
        Where to.
    colours
        Whether the level is coloured, too; the word is always there.
    """
    indent = " " * (LABEL + SUBJECT)
    for finding in findings:
        word = f"{_WORDS[finding.level]:<{LABEL}}"
        if colours:
            word = _COLOURS[finding.level] + word + _PLAIN
        lines = [
            line
            for part in finding.text.splitlines()
            for line in textwrap.wrap(part, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
        ]
        first, *rest = lines or [""]
        gap = "" if len(finding.subject) < SUBJECT else "\n" + indent
        stream.write(f"{word}{finding.subject:<{0 if gap else SUBJECT}}{gap}{first}\n")
        stream.writelines(f"{indent}{line}\n" for line in rest)
        stream.flush()
