"""JSON parameters of a session, as they come over the network: bounded in size and depth before they are read."""

import json
import re
from typing import Any

from limits import Limits, flag_of

# Brackets outside strings; possessive, so that no text makes it try again. An unfinished string hides its brackets, and
# is refused by the JSON reader itself.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)


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


def parse_parameters(text: str, limits: Limits) -> dict[str, Any]:
    """Read JSON parameters.

    Parameters
    ----------
    text : str
        The text of the message, which begins with ``{``.
    limits : Limits
        How long and how deep it may be.

    Raises
    ------
    ValueError
        If it is longer or deeper than allowed, or no JSON.
    """
    size = len(text.encode("utf-8", "replace"))
    if size > limits.json:
        raise ValueError(f"they are {size} bytes long, the limit is {limits.json} ({flag_of('json')})")
    depth = _depth(text)
    if depth > limits.json_depth:
        raise ValueError(f"they are nested {depth} deep, the limit is {limits.json_depth} ({flag_of('json_depth')})")
    try:
        return json.loads(text)
    except RecursionError:  # when somebody allows more depth than Python has
        raise ValueError(f"they are nested {depth} deep, deeper than they can be read") from None
