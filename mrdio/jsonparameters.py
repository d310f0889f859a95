"""JSON parameters of a session, as they come over the network: bounded in size and depth before they are read."""

import json
import re
from typing import Any

from mrdio.limits import Limits, flag_of

# Brackets outside strings; possessive, so that no text makes it try again, and with an end for every string that
# begins, so that none is read twice. An unfinished string hides its brackets, and is refused by the JSON reader itself.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)

# What editors of one system put first, and white space.
_BEGINNING = re.compile(r"\ufeff*+\s*+\{")


def _depth(text: str) -> int:
    depth = deepest = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        bracket = found[0]
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest


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
        How long and how deep it may be.

    Raises
    ------
    ValueError
        If it is longer or deeper than allowed, or no JSON.
    """
    size = len(text)
    if size <= limits.json:  # no copy of what is too long anyway
        size = len(text.encode("utf-8", "replace"))
    if size > limits.json:
        raise ValueError(f"they are at least {size} bytes long, the limit is {limits.json} ({flag_of('json')})")
    text = text.lstrip("\ufeff")
    depth = _depth(text)
    if depth > limits.json_depth:
        raise ValueError(f"they are nested {depth} deep, the limit is {limits.json_depth} ({flag_of('json_depth')})")
    try:
        return json.loads(text)
    except RecursionError:  # when somebody allows more depth than Python has
        raise ValueError(f"they are nested {depth} deep, deeper than they can be read") from None
