"""JSON parameters of a session, as they come over the network: bounded in size, and their values in the right type."""

import json
import re
from typing import Any

from mrdio.limits import Limits, flag_of

# What editors of one system put first, and white space.
_BEGINNING = re.compile(r"\ufeff*+\s*+\{")


ALLOWED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


def is_json(text: str) -> bool:
    """True if a text is meant as JSON parameters; a large one is not copied for that."""
    return _BEGINNING.match(text) is not None


def parse_parameters(text: str, limits: Limits) -> dict[str, Any]:
    """Read JSON parameters.

    Parameters
    ----------
    text : str
        The text of the message, for which `is_json` holds.
    limits : Limits
        How long it may be.

    Raises
    ------
    ValueError
        If it is longer than allowed, deeper than Python reads, or no JSON.
    """
    size = len(text)
    if size <= limits.json:  # no copy of what is too long anyway
        size = len(text.encode("utf-8", "replace"))
    if size > limits.json:
        raise ValueError(f"they are at least {size} bytes long, the limit is {limits.json} ({flag_of('json')})")
    try:
        return json.loads(text.lstrip("\ufeff"))
    except RecursionError:  # the reader ends by itself, after some thousand brackets
        raise ValueError("they are nested deeper than they can be read") from None


def convert(value: Any, kind: type) -> Any:
    """Convert a value that a client sent to the type that a module asks for.

    Scanners send numbers and switches as text as well: ``"5"`` and ``"True"`` are converted.

    Parameters
    ----------
    value : Any
        As JSON gives it.
    kind : type
        int, float, bool or str.

    Raises
    ------
    ValueError
        If it says nothing of that type; `ALLOWED` says what would.
    """
    is_switch = isinstance(value, bool)
    try:
        if kind is bool:
            return _SWITCHES[str(value).strip().lower()]
        if isinstance(value, str):
            return kind(value)
        if is_switch or not isinstance(value, int | float) or (kind is int and value != int(value)):
            raise ValueError("of another type")
        return kind(value)
    except (KeyError, OverflowError) as error:
        raise ValueError("of another type") from error
