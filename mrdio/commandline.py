"""Options and log set-up that the command lines share."""

import argparse
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from mrdio.logs import JsonFormatter, SessionFilter, TextFormatter, log_thread_failure


def number(low: float, kind: type = int, high: float = 1e9) -> Callable[[str], float]:
    """Make an argparse type for a number between limits."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__
    return parse


def log_to(
    console: logging.Handler,
    verbose: bool,
    logfile: Path | None,
    line_end: str = "\n",
    sessions: bool = False,
    as_json: bool = False,
) -> None:
    r"""Send log records to a console, and to a file if there is one.

    Characters that the console's encoding lacks are written as ``\u5fc3``.

    Parameters
    ----------
    console : logging.Handler
        The console's handler.
    verbose : bool
        Whether details are logged.
    logfile : Path or None
        File that is added to.
    line_end : str
        How lines end.
    sessions : bool
        Whether lines tell their session.
    as_json : bool
        Whether each line is a JSON object, which always tells its session.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    stream = getattr(console, "stream", None)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    handlers = [console]
    if logfile is not None:
        logfile.absolute().parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(logfile, encoding="utf-8"))
    formatter = JsonFormatter() if as_json else TextFormatter(line_end, sessions)
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.terminator = line_end
        handler.setFormatter(formatter)
        handler.addFilter(SessionFilter())
    if sessions:
        threading.excepthook = log_thread_failure
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=handlers, force=True)
    for chatty in ("h5py", "matplotlib", "PIL", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
