"""Log lines for people and machines: each has the id of its session, and no text from the network can imitate one."""

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import datetime
from typing import Any

logger = logging.getLogger(__name__)

OUTSIDE = "-"  # in place of a session's id, in lines of the server itself

_session: ContextVar[str] = ContextVar("session", default=OUTSIDE)


# ---- the session of a line -----------------------------------------------------------------------------------------


def enter_session(session: str) -> None:
    """Have all lines of this context carry a session's id.

    A thread that a module starts belongs to the session when it runs in a copy of the context:
    ``Thread(target=contextvars.copy_context().run, args=(work,))``. (Python 3.14 can be told to do so by itself.)
    """
    _session.set(session)


def current_session() -> str:
    """Id of the session that this context works for."""
    return _session.get()


def log_thread_failure(failure: Any) -> None:
    """Log what ended a thread: a `threading.excepthook` that does not print."""
    if failure.exc_type is not SystemExit:
        name = "an ended thread" if failure.thread is None else f"thread {failure.thread.name}"
        logger.error("%s failed", name, exc_info=(failure.exc_type, failure.exc_value, failure.exc_traceback))


class SessionFilter(logging.Filter):
    """Gives records the attribute ``session``, unless they were logged with one in ``extra``."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if not hasattr(record, "session"):
            record.session = current_session()
        return True


# ---- the text of a line --------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    r"""Text in one line: what is not printable, such as line ends and control characters, as ``\n``, ``\x1b``, ..."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class TextFormatter(logging.Formatter):
    r"""One line for each record; the lines of a traceback follow, indented, so that none can pass for a record.

    Parameters
    ----------
    line_end : str
        ``"\n"`` or ``"\r\n"``.
    sessions : bool
        Whether lines tell their session, which a `SessionFilter` gives them.
    """

    def __init__(self, line_end: str = "\n", sessions: bool = False) -> None:
        super().__init__()
        self._line_end = line_end
        self._sessions = sessions

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        session = f"{escaped(str(vars(record)['session'])):<10} " if self._sessions else ""
        lines = [f"{self.formatTime(record)} {record.levelname:<8} {session}{escaped(record.getMessage())}"]
        lines += [f"    {escaped(line)}" for line in _traceback(record).split("\n") if line]
        return self._line_end.join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, in one line.

    Keys: ``time`` (ISO 8601 with the zone), ``level``, ``session``, ``logger``, ``message``; ``traceback`` where there
    is one; the line that ends a session has the fields of its `summary.SessionSummary` besides.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        summary = getattr(record, "summary", None)
        entry = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "session": str(vars(record)["session"]),
            "logger": record.name,
            "message": record.getMessage(),
            **(summary if isinstance(summary, dict) else {}),
        }
        if text := _traceback(record):
            entry["traceback"] = text
        return json.dumps(entry, default=str, skipkeys=True)  # modules may add any values


def _traceback(record: logging.LogRecord) -> str:
    """Traceback of a record: its attribute ``traceback``, or as usual; empty where there is none.

    Also for exceptions whose text cannot be made.
    """
    given = getattr(record, "traceback", None)
    parts = [given.rstrip("\n")] if isinstance(given, str) else []
    if record.exc_info and record.exc_info[1] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


# ---- summaries -----------------------------------------------------------------------------------------------------


def log_summary(summary: Any) -> None:
    """Log the line that ends a session, a `summary.SessionSummary`."""
    logger.info("%s", summary, extra={"session": summary.session, "summary": summary.fields()})
