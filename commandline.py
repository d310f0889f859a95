"""What the command lines share."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path


def number(low: float, kind: type = int, high: float = 1e9) -> Callable[[str], float]:
    """Make an argparse type for a number between limits."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__
    return parse


def log_to(console: logging.Handler, verbose: bool, logfile: Path | None, line_end: str = "\n") -> None:
    """Send log records to a console, and to a file if there is one.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    handlers = [console]
    if logfile is not None:
        logfile.absolute().parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(logfile, encoding="utf-8"))
    for handler in handlers:
        handler.terminator = line_end
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s %(levelname)-8s %(message)s", level=level, handlers=handlers, force=True)
    for chatty in ("h5py", "matplotlib", "PIL", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
