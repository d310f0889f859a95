"""Stand-in for CuPy on machines without a GPU: NumPy underneath, but as strict as CuPy about whose arrays it gets.

An array of this kind never becomes a NumPy array by itself, and cannot be combined with one; only `asarray` and `get`
lead in and out. So the code for the GPU runs here, and what CuPy would refuse first is refused. Whether CuPy has a
function, and computes the same, is not tested by this.
"""

import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

IMPLICIT = "Implicit conversion to a NumPy array is not allowed. Please use `.get()`"


class ndarray:
    """Array on the make-believe GPU."""

    __module__ = "cupy"  # by which `recon.arrays` knows it

    def __init__(self, data: np.ndarray) -> None:
        self._data = data

    def get(self) -> np.ndarray:
        """Copy to the host."""
        return self._data.copy()

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise TypeError(IMPLICIT)

    def __array_ufunc__(self, ufunc: Any, method: str, *arguments: Any, **options: Any) -> Any:
        return _call(getattr(ufunc, method), *arguments, **options)

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, options: Any) -> Any:
        return _call(function, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._data, name)
        return _wrapped_function(value) if callable(value) else _wrapped(value)

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self._data[_bare(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._data[_bare(key)] = _bare(value)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        return (_wrapped(each) for each in self._data)

    def __float__(self) -> float:
        return float(self._data)

    def __int__(self) -> int:
        return int(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    __hash__ = None


def _operator(name: str) -> Any:
    def method(self: ndarray, *others: Any) -> Any:
        if any(isinstance(other, np.ndarray) for other in others):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        result = getattr(self._data, name)(*_bare(others))
        return self if name.startswith("__i") and name != "__invert__" else _wrapped(result)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    for _kind in ("", "r", "i"):
        setattr(ndarray, f"__{_kind}{_name}__", _operator(f"__{_kind}{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _bare(value: Any) -> Any:
    """NumPy's arrays within ours; theirs are refused, as CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._data
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_bare(each) for each in value)
    return value


def _wrapped(value: Any) -> Any:
    """Our arrays for NumPy's; also a single number is an array on the GPU."""
    if isinstance(value, np.ndarray | np.number | np.bool_):
        return ndarray(np.asarray(value))
    return type(value)(_wrapped(each) for each in value) if type(value) in (list, tuple) else value


def _call(function: Any, *arguments: Any, **options: Any) -> Any:
    return _wrapped(function(*_bare(arguments), **{name: _bare(value) for name, value in options.items()}))


def _wrapped_function(function: Any) -> Any:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return _call(function, *arguments, **options)

    wrapper.at = lambda array, index, values: function.at(_bare(array), _bare(index), _bare(values))
    return wrapper


class _Namespace(types.ModuleType):
    """A module whose functions take and return our arrays."""

    def __init__(self, name: str, below: Any) -> None:
        super().__init__(name)
        self._below = below

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._below, name)
        if isinstance(value, type) or not callable(value):
            return value  # types and constants
        return _wrapped_function(value)


def _asarray(value: Any, dtype: Any = None, **options: Any) -> ndarray:
    """Copy from the host: the way in."""
    return ndarray(np.array(value._data if isinstance(value, ndarray) else value, dtype=dtype, **options))


class _Device(contextlib.nullcontext):
    pass


def modules() -> dict[str, types.ModuleType]:
    """Return the modules `cupy` and `cupyx`, to be put into `sys.modules`."""
    cupy = _Namespace("cupy", np)
    cupy.ndarray = ndarray
    cupy.asarray = cupy.array = _asarray
    cupy.asnumpy = lambda array: array.get()
    cupy.fft = _Namespace("cupy.fft", np.fft)
    cupy.linalg = _Namespace("cupy.linalg", np.linalg)
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, memGetInfo=lambda: (8 << 30, 16 << 30), CUDARuntimeError=RuntimeError
    )
    cupy.cuda = types.SimpleNamespace(runtime=runtime, Device=_Device)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    found = {"cupy": cupy, "cupy.fft": cupy.fft, "cupyx": types.ModuleType("cupyx")}
    found["cupyx.scipy"] = found["cupyx"].scipy = types.ModuleType("cupyx.scipy")
    for name in ("fft", "ndimage", "signal"):
        module = _Namespace(f"cupyx.scipy.{name}", importlib.import_module(f"scipy.{name}"))
        found[f"cupyx.scipy.{name}"] = module
        setattr(found["cupyx.scipy"], name, module)
    return found
