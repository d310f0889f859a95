"""Finds and loads the reconstruction module that a config names.

The name comes over the network. It counts only if it is a plain identifier, a file of that name lies in one of the
folders that the person who started the server chose, and the file's own source defines ``process``. The source is
inspected before any of it runs, so naming ``client``, ``os``, ``../x`` or an installed package executes nothing.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import logging
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Process = Callable[[Any, Any, Any], object]

# Python 3.11, and some later ones, count the depth of a syntax tree in one place for all threads: two that are made at
# once raise a SystemError (CPython's issue 106905).
_ONE_TREE_AT_A_TIME = threading.Lock()

LONGEST_COMPARED = 100  # characters of a name that is compared with those of modules

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class ModuleError(Exception):
    """A module's file is there, but it cannot be loaded; the message says why."""


@dataclass(frozen=True)
class _Loaded:
    source: bytes
    module: types.ModuleType


class ModuleLoader:
    """Loads modules from a fixed list of folders.

    Parameters
    ----------
    folders : sequence of Path
        Where modules may lie; the first folder that has a file of the name, which defines ``process``, wins.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.resolve() for folder in folders]
        self._loaded: dict[Path, _Loaded] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> Path | None:
        """File of a module, or None if the name is none, or no folder has a file of it that defines ``process``.

        Raises
        ------
        ModuleError
            If a file has a syntax error.
        """
        if not _NAME.fullmatch(name):
            return None
        for folder in self.folders:
            path = folder / f"{name}.py"
            if path.is_file() and _defines_process(_parse(path, path.read_bytes()).body):
                return path
        return None

    def names(self) -> list[str]:
        """Names of all modules, in alphabetical order; files that are no valid Python are left out."""
        found = set()
        for path in (path for folder in self.folders for path in folder.glob("*.py") if _NAME.fullmatch(path.stem)):
            with contextlib.suppress(ModuleError, OSError):
                source = path.read_bytes()
                if b"process" in source and _defines_process(_parse(path, source).body):
                    found.add(path.stem)
        return sorted(found)

    def load(self, name: str) -> Process | None:
        """``process`` of a module as it is on disk now, or None if there is no such module.

        A file that has changed since it was last loaded is loaded anew; running sessions keep the version that they
        have. Files that the module imports are imported once, as usual in Python.

        Raises
        ------
        ModuleError
            If the file has a syntax error, or raises when it is loaded.
        """
        path = self.find(name)
        if path is None:
            return None
        with self._lock:
            source = path.read_bytes()
            loaded = self._loaded.get(path)
            if loaded is None or loaded.source != source:
                loaded = _Loaded(source, _execute(name, path, source))
                self._loaded[path] = loaded
                logger.info("Loaded module %s from %s", name, path)
        process = getattr(loaded.module, "process", None)
        if not callable(process):
            raise ModuleError(f"{path}: process is no function")
        if inspect.isgeneratorfunction(process) or inspect.iscoroutinefunction(process):
            raise ModuleError(f"{path}: process must be a plain function: one with yield or async would not run")
        return process


def known_names(name: str, known: Sequence[str]) -> str:
    """Clause that suggests the closest of the known names, and lists them all."""
    near = difflib.get_close_matches(name[:LONGEST_COMPARED], known, n=1)
    suggestion = f"did you mean '{near[0]}'? " if near else ""
    return f"{suggestion}known are {', '.join(known)}"


def _parse(path: Path, source: bytes) -> ast.Module:
    try:
        with _ONE_TREE_AT_A_TIME:
            return ast.parse(importlib.util.decode_source(source), str(path))
    except (SyntaxError, ValueError) as error:
        raise ModuleError(f"{path} is no valid Python: {error}") from error


def _defines_process(body: Iterable[ast.stmt]) -> bool:
    """True if top-level statements, also those within if, try and with, bind the name ``process``."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name="process") | ast.AsyncFunctionDef(name="process"):
                return True
            case ast.Assign(targets=targets) if any(isinstance(t, ast.Name) and t.id == "process" for t in targets):
                return True
            case ast.AnnAssign(target=ast.Name(id="process"), value=ast.expr()):
                return True
            case ast.ImportFrom(names=names) if any((alias.asname or alias.name) == "process" for alias in names):
                return True
            case ast.If() | ast.Try() | ast.With():
                inner = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
                inner += [handler.body for handler in getattr(statement, "handlers", [])]
                if any(_defines_process(part) for part in inner):
                    return True
    return False


def _execute(name: str, path: Path, source: bytes) -> types.ModuleType:
    """Run a module's source under a name of its own, so that a file ``json.py`` cannot replace the library.

    The source is compiled here: Python's bytecode cache compares whole seconds and would miss a quick edit.
    """
    module = types.ModuleType(f"mrd_module_{name}")
    module.__file__ = str(path)
    previous = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        tree = _parse(path, source)
        with _ONE_TREE_AT_A_TIME:
            code = compile(tree, str(path), "exec")
        exec(code, module.__dict__)
    except BaseException as error:
        if previous is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = previous
        if isinstance(error, ModuleError):
            raise
        raise ModuleError(f"{path} raised {type(error).__name__} when it was loaded: {error}") from error
    return module
