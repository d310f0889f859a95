"""Named intermediate arrays for authors of modules: ``connection.debug("kspace", kspace)``.

Nothing happens unless the server is started with a folder for them. Then each array becomes a file
``FOLDER/<date and time>_<session>/<number>_<name>.npy``, which ``numpy.load`` reads.
"""

import itertools
import logging
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MAX_NAME = 100
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")


class DebugArrays:
    """Writes the named arrays of one session.

    Parameters
    ----------
    folder : Path
        Where the session gets a folder of its own, made with its first array.
    session : str
        Name of the session.
    """

    def __init__(self, folder: Path, session: str) -> None:
        started = datetime.now().astimezone().strftime("%Y%m%dT%H%M%S.%f")
        self.folder = folder / f"{started}_{_plain(session)}"
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def save(self, name: str, array: Any) -> None:
        """Write an array, numbered in the order of the calls.

        An array that cannot be written (a full disk, objects instead of numbers) is logged, and never ends a
        reconstruction.

        Parameters
        ----------
        name : str
            Its name; anything but letters, digits, ``-`` and ``_`` becomes ``_``.
        array : array_like
            Any shape and type of numbers, also on a GPU.
        """
        with self._lock:
            number = next(self._numbers)
        path = self.folder / f"{number:04d}_{_plain(name)}.npy"
        try:
            values = np.asarray(array.get() if hasattr(array, "__cuda_array_interface__") else array)
            if values.dtype.hasobject:
                raise TypeError("it holds Python objects, not numbers")
            self.folder.mkdir(0o750, parents=True, exist_ok=True)  # they show patients
            np.save(path, values, allow_pickle=False)
        except (OSError, ValueError, TypeError) as error:
            logger.warning("The debug array '%s' is not written: %s", _plain(name), error)
            return
        logger.debug("Debug array %s, %s %s", path, values.dtype, values.shape)


def _plain(name: str) -> str:
    return _NOT_PLAIN.sub("_", str(name)[:MAX_NAME]) or "_"
