"""Ends processes with all that was started in them: processes and threads that modules leave end with the server."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from typing import NoReturn

# How long functions registered for the end of the interpreter may take [s]: those of a module may never end.
LAST_STEPS = 3.0


def lead_group() -> None:
    """Give this process, and all that it will start, a process group of their own, where the system has such."""
    if hasattr(os, "setsid"):
        os.setsid()  # no mere group: one in the background must not write to every terminal


def kill_group(leader: int) -> None:
    """Kill every process of a group, named by the process that led it; it may have ended already."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(leader, signal.SIGKILL)


def group_lives(leader: int) -> bool:
    """True if a group still has a process; as long as it has, the system gives its number to no other."""
    if not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def leave(status: int) -> NoReturn:
    """End this process at once, with all that modules have started in it.

    Python itself would wait without an end for threads, and for children of `multiprocessing` that are no daemons.
    Functions registered for the end of the interpreter run before: they remove temporary folders and end BART.
    """
    for child in multiprocessing.active_children():
        child.kill()
    last_steps = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    with contextlib.suppress(RuntimeError):  # no threads left
        last_steps.start()
        last_steps.join(LAST_STEPS)
    _kill_descendants()
    os._exit(status)


def _kill_descendants() -> None:
    """Kill all that this process has started, but for the helpers of `multiprocessing`.

    These end by themselves, and the tracker takes down first what was shared in memory.
    """
    import psutil  # here: listening is not to wait for it

    helpers = {  # the stubs leave out what is private
        forkserver._forkserver._forkserver_pid,  # type: ignore[attr-defined]
        resource_tracker._resource_tracker._pid,  # type: ignore[attr-defined]
    }
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process().children(recursive=True):
            if process.pid not in helpers:
                with contextlib.suppress(psutil.Error):
                    process.kill()
