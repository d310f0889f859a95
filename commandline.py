"""What the command lines share."""

import argparse
from collections.abc import Callable


def number(low: float, kind: type = int, high: float = 1e9) -> Callable[[str], float]:
    """Make an argparse type for a number between limits."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__
    return parse
